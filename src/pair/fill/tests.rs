//! How a follower is made equal, event by event.

//! What the walk cannot miss, for it is safe without: that a plan is kept as long as it holds,
//! and given up where it does not.

use super::*;
use crate::pair::Reason;
use Place::{Backup, Primary};

/// Until then a follower that was away is compared, and the primary that is late is awaited.
#[test]
fn after_a_crash_a_mirrored_pair_is_uncompared_until_it_was_compared() {
    let mut plan = Plan::default();
    plan.apply(FillEvent::Decided { state: State::Mirrored, fill: Some(Fill::Compare), cut_off: None });
    assert!(!plan.is_uncompared());
    let start = Event::Start(State::Mirrored, Reason::Starting);
    let dark = State::Dark { in_sync: None, fallback: None };
    assert_eq!(plan.apply(edge(start, dark, State::Mirrored)), [FillEffect::ListBegins]);
    plan.apply(FillEvent::Opened(State::Mirrored));
    assert!(plan.awaits(Primary) && !plan.awaits(Backup) && plan.may_follow(Primary, true));
    let lost = |place| Event::Lost(place, Loss::Suspected, Reason::Reset);
    let mut lacks = plan;
    lacks.apply(edge(lost(Backup), State::Mirrored, ALONE));
    assert_eq!((lacks.is_uncompared(), lacks.fill(ALONE, Backup, false, true)), (false, Fill::CompareRest));
    plan.apply(FillEvent::Compared);
    assert!(!plan.is_uncompared() && !plan.awaits(Primary) && !plan.may_follow(Primary, true));
    plan.apply(edge(lost(Backup), State::Mirrored, ALONE));
    assert_eq!(plan.fill(ALONE, Backup, false, true), Fill::Missed);
}

#[test]
fn the_smallest_fill_is_begun_first_and_a_compared_target_is_not_purged() {
    use Fill::{Adopt, Compare, CompareRest, Empty, Missed, Purge};
    let mut fills = [Purge, Adopt, Compare, CompareRest, Empty, Missed];
    fills.sort_by_key(|fill| fill.cost());
    assert_eq!(fills, [Missed, Empty, CompareRest, Compare, Adopt, Purge]);
    assert_eq!(fills.map(Fill::compares), [false, false, true, true, true, false]);
    assert_eq!(fills.map(Fill::keeps_list), [true, false, true, false, false, false]);
}

const ALONE: State = State::Degraded { leader: Primary };
const FILLED: State = State::Recovering { leader: Primary };

fn edge(event: Event, before: State, after: State) -> FillEvent {
    FillEvent::Edge { event, before, after }
}

fn decided(state: State, fill: Fill) -> Plan {
    let mut plan = Plan::default();
    plan.apply(FillEvent::Decided { state, fill: Some(fill), cut_off: None });
    plan
}

/// Also the second time.
#[test]
fn a_list_begins_whenever_a_pair_opens_mirrored() {
    let mut plan = Plan::default();
    for _ in 0..2 {
        assert_eq!(plan.apply(FillEvent::Opened(State::Mirrored)), [FillEffect::ListBegins]);
        assert_eq!(plan.apply(FillEvent::Opened(State::Mirrored)), [], "its gate only closed for a flush");
        let lost = Event::Lost(Backup, Loss::Suspected, Reason::Reset);
        assert_eq!(plan.apply(edge(lost, State::Mirrored, ALONE)), []);
        assert_eq!(plan.fill(ALONE, Backup, false, true), Fill::Missed);
        plan.apply(edge(Event::Drained(true), FILLED, State::Mirrored));
    }
}

/// As the start-up table says after a crash, with the route not open yet.
fn crashed() -> Plan {
    let mut plan = decided(ALONE, Fill::Compare);
    let start = Event::Start(ALONE, Reason::Starting);
    let before = State::Dark { in_sync: None, fallback: None };
    assert_eq!(plan.apply(edge(start, before, ALONE)).last(), Some(&FillEffect::ListBegins));
    plan
}

#[test]
fn after_a_crash_the_follower_is_compared_and_leads_with_the_rest_where_the_leader_is_gone() {
    let gone = State::Dark { in_sync: None, fallback: None };
    let mut plan = crashed();
    // Also where the leader is lost before it was seen again, and when the former proxy has
    // gone.
    assert_eq!(plan.apply(FillEvent::FormerGone(ALONE)), []);
    assert!(plan.may_lead(gone, Backup, true));
    assert_eq!(plan.fill(ALONE, Backup, false, true), Fill::CompareRest);
    assert_eq!(plan.apply(FillEvent::JobBegins(Fill::CompareRest)), []);
    assert_eq!(plan.fill(ALONE, Backup, false, false), Fill::Compare, "the list is full");
    assert_eq!(plan.apply(FillEvent::CopiesLeft(Fill::CompareRest)), [FillEffect::ListVoid]);
    assert_eq!(plan.apply(FillEvent::CopiesLeft(Fill::Missed)), []);
    // What is known to have missed the follower, and no more.
    plan.apply(edge(Event::Drained(true), FILLED, State::Mirrored));
    plan.apply(FillEvent::Opened(State::Mirrored));
    assert_eq!(plan.fill(ALONE, Backup, false, true), Fill::Missed);
    assert_eq!(plan.apply(FillEvent::CopiesLeft(Fill::CompareRest)), [], "of the job's other pairs");
}

#[test]
fn what_cannot_be_compared_after_a_crash_is_not_compared_again() {
    let mut plan = crashed();
    plan.apply(FillEvent::JobBegins(Fill::CompareRest));
    assert_eq!(plan.apply(FillEvent::CannotCompare), [FillEffect::ListVoid]);
    assert_eq!(plan.fill(ALONE, Backup, false, false), Fill::Purge);
}

#[test]
fn a_former_proxy_of_which_more_was_unknown_leaves_no_list() {
    let mut plan = decided(ALONE, Fill::Adopt);
    assert_eq!(plan.apply(FillEvent::FormerGone(ALONE)), [FillEffect::ListVoid]);
    let mut plan = crashed();
    assert_eq!(plan.apply(FillEvent::ForeignEnded(ALONE)), [FillEffect::ListVoid]);
}

#[test]
fn a_distrusted_node_is_filled_in_full() {
    let mut plan = decided(ALONE, Fill::Compare);
    plan.apply(edge(Event::Drained(true), FILLED, State::Mirrored));
    plan.apply(FillEvent::Opened(State::Mirrored));
    let distrust = edge(Event::Distrust(Backup), State::Mirrored, ALONE);
    assert_eq!(plan.apply(distrust), [FillEffect::ListVoid]);
    assert_eq!(plan.fill(ALONE, Backup, false, false), Fill::Purge);
}

/// Half compared, or lost again meanwhile: nobody knows any more that most of it is right.
#[test]
fn a_comparing_is_planned_once() {
    let lost = Event::Lost(Backup, Loss::Suspected, Reason::Reset);
    for (event, before) in [(lost, FILLED), (Event::ResyncEnded(Reason::ResyncFailed), FILLED)] {
        let mut plan = decided(ALONE, Fill::Compare);
        plan.apply(FillEvent::JobBegins(Fill::Compare));
        plan.apply(edge(event, before, ALONE));
        let next = if event == lost { Fill::Purge } else { Fill::Compare };
        assert_eq!(plan.fill(ALONE, Backup, false, false), next, "{event:?}");
    }
    let mut plan = decided(ALONE, Fill::Compare);
    assert_eq!(plan.apply(FillEvent::JobBegins(Fill::Empty)), [FillEffect::ListVoid]);
    assert_eq!(plan.fill(ALONE, Backup, false, false), Fill::Purge, "it was begun in another way");
}

#[test]
fn an_adoption_goes_on_only_as_it_is_recorded_and_under_its_leader() {
    let mut plan = decided(FILLED, Fill::Adopt);
    assert!(plan.is_adopting() && plan.goes_on_adopting(FILLED, Primary));
    assert!(!plan.goes_on_adopting(FILLED, Backup) && !plan.goes_on_adopting(ALONE, Primary));
    plan.apply(FillEvent::FlushSent);
    assert!(!plan.goes_on_adopting(FILLED, Primary));
    plan.apply(FillEvent::Adopting);
    assert!(plan.goes_on_adopting(FILLED, Primary));
    plan.apply(FillEvent::Adopted);
    assert!(!plan.goes_on_adopting(FILLED, Primary) && !plan.is_adopting());
    assert_eq!(plan.fill(FILLED, Backup, false, false), Fill::Compare);
}

/// Its purge would not end.
#[test]
fn what_is_written_to_is_compared_where_nothing_is_planned() {
    assert_eq!(Plan::default().fill(FILLED, Backup, false, false), Fill::Compare);
    assert_eq!(Plan::default().fill(ALONE, Backup, false, false), Fill::Purge);
    assert_eq!(Plan::default().fill(ALONE, Backup, true, true), Fill::Empty);
}

/// A list says nothing of another memory, whoever has it.
#[test]
fn a_list_is_of_the_memory_that_missed_it() {
    let mut plan = Plan::default();
    plan.apply(FillEvent::Opened(State::Mirrored));
    assert!(plan.knows_missed(Backup, true) && !plan.knows_missed(Backup, false));
    let other = |listed| FillEvent::OtherMemory { place: Backup, first: false, listed };
    assert_eq!(plan.apply(other(true)), []);
    assert!(!plan.knows_missed(Backup, true) && plan.knows_missed(Primary, true));
    assert_eq!(plan.apply(other(false)), [FillEffect::ListVoid]);
    let dark = State::Dark { in_sync: None, fallback: None };
    assert!(plan.may_lead(dark, Primary, true) && !plan.may_lead(dark, Backup, true));
}

/// The part that is left leads in the place of nobody who may come back with everything.
#[test]
fn whoever_is_awaited_or_stands_beside_a_verified_part_does_not_lead_with_the_rest() {
    let mut plan = Plan::default();
    plan.apply(FillEvent::Opened(State::Mirrored));
    let dark = |in_sync, fallback| State::Dark { in_sync, fallback };
    for (state, leads) in [
        (dark(None, None), true),
        (dark(Some(Backup), None), true),
        (dark(Some(Primary), None), false),
        (dark(Some(Backup), Some(Primary)), false),
        (ALONE, false),
        (State::Mirrored, false),
    ] {
        assert_eq!(plan.may_lead(state, Primary, true), leads, "{state:?}");
    }
}

#[test]
fn an_adoption_that_was_cut_off_names_its_leader() {
    let mut plan = Plan::default();
    let cut_off = Some(CutOff { leader: Backup, epoch: Epoch(7) });
    plan.apply(FillEvent::Decided { state: FILLED, fill: Some(Fill::Adopt), cut_off });
    assert!(plan.leads_adoption(Backup) && !plan.leads_adoption(Primary));
    assert!(!decided(FILLED, Fill::Adopt).leads_adoption(Primary));
}

#[test]
fn a_loss_that_changes_no_state_changes_no_plan() {
    let lost = Event::Lost(Backup, Loss::Suspected, Reason::Reset);
    let mut plan = decided(ALONE, Fill::Compare);
    plan.apply(edge(lost, ALONE, ALONE));
    assert_eq!(plan.fill(ALONE, Backup, false, false), Fill::Compare);
    plan.apply(edge(Event::BeginRecovery, ALONE, FILLED));
    plan.apply(edge(lost, FILLED, ALONE));
    assert_eq!(plan.fill(ALONE, Backup, false, false), Fill::Purge);
}

#[test]
fn another_proxy_leaves_no_list_and_nothing_to_adopt() {
    for state in [State::Mirrored, ALONE, FILLED] {
        let mut plan = decided(state, Fill::Adopt);
        assert_eq!(plan.apply(FillEvent::ForeignEnded(state)), [FillEffect::ListVoid]);
        assert_ne!(plan.fill(state, Backup, false, false), Fill::Adopt);
    }
    // Two that both were written by two proxies are compared; who missed writes is purged.
    for (state, fill) in [(State::Mirrored, Fill::Compare), (ALONE, Fill::Purge)] {
        let mut plan = Plan::default();
        plan.apply(FillEvent::ForeignEnded(state));
        assert_eq!(plan.fill(ALONE, Backup, false, false), fill, "{state:?}");
    }
}

#[test]
fn a_stranger_follows_in_no_adoption() {
    assert!(decided(ALONE, Fill::Adopt).follows_in_adoption(ALONE, Backup));
    assert!(!decided(ALONE, Fill::Compare).follows_in_adoption(ALONE, Backup));
    assert!(!decided(ALONE, Fill::Adopt).follows_in_adoption(ALONE, Primary));
}
