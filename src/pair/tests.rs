//! What the walk does not see: another proxy on the pair's nodes, reasons, records found late.

use Place::{Backup, Primary};

use super::*;

fn at(state: State, reason: Reason) -> Pair {
    let mut pair = Pair::new(Epoch(7), Term(3));
    pair.apply(Event::Start(state, reason));
    open(&mut pair);
    pair
}

fn open(pair: &mut Pair) {
    pair.apply(Event::Closed);
    // A dark pair has no record to write.
    if pair.gate() == Gate::Recording {
        pair.apply(Event::Recorded);
    }
    assert_eq!(pair.gate(), Gate::Open);
}

fn recovering() -> Pair {
    let mut pair = at(State::Degraded { leader: Backup }, Reason::Timeout);
    pair.apply(Event::BeginRecovery);
    open(&mut pair);
    pair
}

#[test]
fn a_pair_that_starts_mirrored_has_no_reason_and_any_other_has_the_one_that_was_found() {
    assert_eq!(at(State::Mirrored, Reason::Starting).reason(), Reason::None);
    assert_eq!(at(State::Degraded { leader: Primary }, Reason::StaleAlone).reason(), Reason::StaleAlone);
}

#[test]
fn terms_begin_where_they_are_told_to_and_rise_with_the_first_leader() {
    let mut pair = Pair::new(Epoch(7), Term(3));
    pair.begin_at(Term(40));
    assert_eq!(pair.term(), Term(40));
    pair.apply(Event::Start(State::Mirrored, Reason::None));
    assert_eq!(pair.term(), Term(41));
}

#[test]
fn every_record_is_later_than_the_one_before() {
    let mut pair = at(State::Mirrored, Reason::None);
    let first = pair.epoch();
    pair.renew();
    assert_eq!(pair.epoch(), Epoch(first.0 + 1));
    pair.apply(Event::Lost(Backup, Loss::MemoryGone, Reason::Refused));
    assert_eq!(pair.epoch(), Epoch(first.0 + 2));
    pair.apply(Event::Lost(Primary, Loss::MemoryGone, Reason::Refused));
    let dark = pair.epoch();
    pair.apply(Event::Flushed);
    assert_eq!(pair.epoch(), Epoch(dark.0 + 1));
}

#[test]
fn a_pair_says_whether_another_proxy_works_on_it() {
    let mut pair = at(State::Degraded { leader: Primary }, Reason::Reset);
    assert!(!pair.is_foreign());
    pair.apply(Event::Foreign(true));
    assert!(pair.is_foreign());
    pair.apply(Event::Foreign(false));
    assert!(!pair.is_foreign());
}

#[test]
fn another_proxys_session_is_a_mirrored_pairs_reason_and_its_end_sets_the_copies_to_be_compared() {
    let mut pair = at(State::Mirrored, Reason::None);
    assert_eq!(pair.apply(Event::Foreign(false)), []);
    assert_eq!((pair.state(), pair.reason()), (State::Mirrored, Reason::None));
    assert_eq!(pair.apply(Event::Foreign(true)), []);
    assert_eq!((pair.state(), pair.reason()), (State::Mirrored, Reason::ForeignSession));
    assert_eq!(pair.apply(Event::Foreign(false)), [Effect::Close { void: None }]);
    assert_eq!((pair.state(), pair.reason()), (State::Degraded { leader: Primary }, Reason::ForeignSession));
}

#[test]
fn a_follower_is_not_promoted_while_another_proxy_works_with_the_leader() {
    for (loss, dark) in [
        (Loss::Suspected, State::Dark { in_sync: Some(Primary), fallback: Some(Backup) }),
        (Loss::MemoryGone, State::Dark { in_sync: Some(Backup), fallback: None }),
    ] {
        let mut pair = at(State::Mirrored, Reason::None);
        pair.apply(Event::Foreign(true));
        assert_eq!(pair.apply(Event::Lost(Primary, loss, Reason::Reset)), [Effect::Close { void: Some(Primary) }]);
        assert_eq!((pair.state(), pair.reason()), (dark, Reason::ForeignSession));
        // The follower is one that nobody leads without.
        let mut pair = at(State::Mirrored, Reason::None);
        pair.apply(Event::Foreign(true));
        pair.apply(Event::Lost(Backup, loss, Reason::Reset));
        assert_eq!(pair.state(), State::Degraded { leader: Primary });
    }
}

#[test]
fn nothing_is_handed_back_or_distrusted_while_another_proxy_works_on_the_nodes() {
    let mut pair = recovering();
    pair.apply(Event::Foreign(true));
    assert_eq!(pair.apply(Event::HandBack), []);
    assert_eq!(pair.gate(), Gate::Open);
    pair.apply(Event::Foreign(false));
    assert_eq!(pair.apply(Event::HandBack), [Effect::Close { void: None }]);
    pair.apply(Event::Closed);
    pair.apply(Event::Foreign(true));
    assert_eq!(pair.apply(Event::Drained(true)), [Effect::Open]);
    assert_eq!(pair.state(), State::Recovering { leader: Backup });

    let mut pair = at(State::Mirrored, Reason::None);
    pair.apply(Event::Foreign(true));
    assert_eq!(pair.apply(Event::Distrust(Backup)), []);
    assert_eq!(pair.state(), State::Mirrored);
}

#[test]
fn a_purged_node_leads_a_lost_pair_only_when_no_other_proxy_works_on_it() {
    let mut pair = at(State::Dark { in_sync: None, fallback: None }, Reason::MarkerLost);
    pair.apply(Event::Foreign(true));
    assert_eq!(pair.apply(Event::Purged(Backup)), []);
    pair.apply(Event::Foreign(false));
    assert_eq!(pair.apply(Event::Purged(Backup)), [Effect::Close { void: None }]);
    assert_eq!(pair.state(), State::Degraded { leader: Backup });
}

#[test]
fn what_cannot_be_enumerated_is_a_reason_until_the_next_try_begins() {
    let mut pair = at(State::Degraded { leader: Primary }, Reason::Reset);
    pair.apply(Event::CannotEnumerate);
    assert_eq!(pair.reason(), Reason::CannotEnumerate);
    pair.apply(Event::BeginRecovery);
    assert_eq!(pair.reason(), Reason::ResyncFailed);
    let mut mirrored = at(State::Mirrored, Reason::None);
    mirrored.apply(Event::CannotEnumerate);
    assert_eq!(mirrored.reason(), Reason::None);
    // Any other reason stays while the refill goes on.
    assert_eq!(recovering().reason(), Reason::Timeout);
}

#[test]
fn what_two_copies_lack_stays_known_when_the_one_in_sync_leads_or_is_awaited() {
    let dark = |in_sync| State::Dark { in_sync, fallback: None };
    let leads = |leader| State::Degraded { leader };
    for (from, to, keeps) in [
        (dark(Some(Primary)), leads(Primary), true),
        (dark(Some(Primary)), leads(Backup), false),
        (dark(None), leads(Backup), false),
        (dark(Some(Primary)), dark(Some(Primary)), true),
        (dark(Some(Primary)), dark(Some(Backup)), false),
        (dark(Some(Primary)), dark(None), true),
        (State::Mirrored, leads(Backup), true),
    ] {
        assert_eq!(from.keeps_difference(to), keeps, "{from:?} -> {to:?}");
    }
}

#[test]
fn a_term_rises_with_a_change_of_leader_alone() {
    let mut pair = at(State::Mirrored, Reason::None);
    let first = pair.term();
    pair.apply(Event::Lost(Backup, Loss::Suspected, Reason::Timeout));
    assert_eq!((pair.state(), pair.term()), (State::Degraded { leader: Primary }, first));
    pair.apply(Event::Lost(Primary, Loss::Suspected, Reason::Timeout));
    assert_eq!((pair.state().leader(), pair.term()), (None, first));
    pair.apply(Event::BackSame(Primary));
    assert_eq!((pair.state().leader(), pair.term()), (Some(Primary), first.next()));
}

#[test]
fn a_state_that_none_leads_to_is_never_taken() {
    for (from, to) in [
        (State::Mirrored, State::Recovering { leader: Primary }),
        (State::Mirrored, State::Dark { in_sync: None, fallback: None }),
        (State::Degraded { leader: Primary }, State::Degraded { leader: Backup }),
        (State::Degraded { leader: Primary }, State::Recovering { leader: Backup }),
        (State::Degraded { leader: Primary }, State::Dark { in_sync: Some(Backup), fallback: None }),
        (State::Recovering { leader: Backup }, State::Degraded { leader: Primary }),
        (State::Recovering { leader: Backup }, State::Dark { in_sync: Some(Primary), fallback: None }),
        (State::Recovering { leader: Backup }, State::Dark { in_sync: None, fallback: None }),
    ] {
        assert!(!legal(from, to), "{from:?} -> {to:?}");
    }
}
