//! Every sequence of events, explored breadth first until no new state appears, with a model (the
//! *shadow*) of what the two nodes hold.
//!
//! | rule | protected by (in `mod.rs`) |
//! |---|---|
//! | 1 only the diagram's arrows | the `match` arms of `apply` and `lost`; `legal` asserts |
//! | 2 what missed a write does not lead before it is purged | `BackSame`: the guard `p == place`; `Purged`: only with `in_sync: None` |
//! | 3 the last full copy is not deposed on suspicion | `lost`, Recovering: `Dark { in_sync: Some(leader), .. }`; Degraded: `then_some(leader)` |
//! | 4 close, then record, then open | `edge`: `Gate::Closing`; `closed`: `Gate::Recording` |
//! | 5 term and epoch | `advance`: the two increments |
//! | 6 no panic, nothing the gate forbids | the gate in the patterns of `BeginRecovery`, `HandBack`, `Drained`; `can_come` for `Recorded`, `Closed` |
//! | 7 hand-back only from Recovering | the pattern of `HandBack` |
//! | 10 under a foreign session nobody is promoted | `self.foreign` in `apply` and `lost` |
//! | 8 a closing gate waits for no lost node | `void_while_closing`, `edge(.., Some(place))` in `lost` |
//! | 9 what is listed as different is all that differs | `keeps_difference` |
//! | 11 what leads with the rest missed no more than was deleted | `Kept::lost_by`, `Kept::may_lead` |
//! | 12 only what counts is adopted | `Plan`: all that sets `first`, and `NoteWrites` |
//! | 13 a record that says "adopting" is true | `Plan`: all that sets `adopting` |
//! | 14 nothing that counts is purged unasked | `Plan`: all that keeps `first`, and `goes_on_adopting` |
//! | 15 a follower that made all writes leads when its leader is gone | `FollowerMayLead` |

mod judge;
mod shadow;
mod steps;

use std::collections::{HashSet, VecDeque};
use std::sync::LazyLock;

use super::*;
use crate::testing::digest::Quick;
use Place::{Backup, Primary};
use judge::{arrow, judge_effects};
use shadow::{Holds, PLACES, Story, World, at};

fn walk(starts: Vec<World>) -> Vec<World> {
    let mut seen: HashSet<World, Quick> = HashSet::default();
    let mut queue: VecDeque<World> = starts.into();
    let mut reached = Vec::new();
    while let Some(world) = queue.pop_front() {
        for next in world.next() {
            if seen.insert(next.key()) {
                queue.push_back(next);
            }
        }
        reached.push(world);
    }
    reached
}

fn starts() -> Vec<World> {
    use Holds::{Empty, Full, Part, Stale};
    let dark = |in_sync| State::Dark { in_sync, fallback: None };
    let (adopt, cut_off) = (Some(Fill::Adopt), Some(CutOff { leader: Primary, epoch: Epoch(5) }));
    let recovering = State::Recovering { leader: Primary };
    vec![
        World::start(State::Mirrored, [Full, Full], [true, true]),
        World::start(State::Degraded { leader: Backup }, [Stale, Full], [true, true]),
        World::start(State::Degraded { leader: Primary }, [Full, Empty], [true, false]).known(),
        World::start(dark(Some(Backup)), [Stale, Full], [true, false]).known(),
        World::start(dark(None), [Stale, Empty], [true, false]).known(),
        // After a crash.
        World::start(State::Mirrored, [Full, Full], [true, true]).decided(Some(Fill::Compare), None),
        // The same, and the proxy before may only be paused.
        World::start(State::Mirrored, [Full, Full], [true, true]).decided(Some(Fill::Compare), None).awaiting_former(),
        // After a crash, with `--resync=manual`.
        World::start(State::Degraded { leader: Primary }, [Full, Stale], [true, true])
            .decided(Some(Fill::Compare), None),
        World::start(State::Degraded { leader: Primary }, [Full, Stale], [true, true])
            .decided(Some(Fill::Compare), None)
            .awaiting_former(),
        // Both nodes' items count: the follower's are a part that may lead if the leader's memory
        // is gone.
        World::start(recovering, [Full, Part], [true, true]).decided(adopt, None),
        // The same, where the follower does not answer at the start.
        World::start(State::Degraded { leader: Primary }, [Full, Part], [true, false]).decided(adopt, None),
        // The same, taken up again: both are there, one of them, or none.
        World::start(recovering, [Full, Part], [true, true]).decided(adopt, cut_off),
        World::start(State::Degraded { leader: Primary }, [Full, Part], [true, false]).decided(adopt, cut_off),
        World::start(State::Dark { in_sync: Some(Primary), fallback: Some(Backup) }, [Full, Part], [false, true])
            .decided(adopt, cut_off),
        World::start(dark(Some(Primary)), [Full, Part], [false, false]).decided(adopt, cut_off),
    ]
}

/// All that can be reached, walked once for all tests.
static REACHED: LazyLock<Vec<World>> = LazyLock::new(|| walk(starts()));

/// Every distinct state that any sequence of real events can reach; the rules are asserted on the
/// way.
#[test]
fn every_sequence_of_events_keeps_the_rules() {
    let reached = &*REACHED;
    for state in [State::Mirrored, State::Recovering { leader: Primary }, State::Dark { in_sync: None, fallback: None }]
    {
        for gate in [Gate::Open, Gate::Closing] {
            assert!(
                reached.iter().any(|w| w.pair.state == state && w.pair.gate == gate),
                "{state:?} {gate:?} was never reached"
            );
        }
    }
    let fallback = |w: &World| matches!(w.pair.state, State::Dark { fallback: Some(_), .. });
    assert!(reached.iter().any(fallback) && reached.iter().any(|w| w.pair.gate == Gate::Draining));
    let rest = |w: &World| w.story.last().is_some_and(|step| step.ends_with("purged of what it missed"));
    assert!(reached.iter().any(rest), "nobody led with the rest");
    let awaits = |w: &World| w.former && w.listed && w.pair.state == State::Dark { in_sync: None, fallback: None };
    assert!(reached.iter().any(awaits), "no list outlasted its leader beside the former proxy");
    for fill in [Fill::Empty, Fill::Purge, Fill::Missed, Fill::CompareRest, Fill::Compare, Fill::Adopt] {
        assert!(reached.iter().any(|w| w.job == Some(fill)), "{fill:?} never began");
    }
    assert!(reached.iter().any(|w| w.job.is_none() && w.plan.is_adopting()), "no adoption was cut off");
    assert!(reached.len() > 100_000, "{}", reached.len());
}

/// Events that come late, in every reachable state: no panic, no arrow that is not in the diagram,
/// no effect that the gate forbids. Those that cannot come leave nothing as it was: they end the
/// process.
#[test]
fn no_event_in_any_state_does_what_the_gate_forbids() {
    let mut events =
        vec![Event::BeginRecovery, Event::HandBack, Event::Drained(true), Event::Drained(false), Event::Closed];
    events.extend([Event::Recorded, Event::Flushed, Event::ResyncEnded(Reason::Cancelled)]);
    for place in PLACES {
        events.extend([Event::BackSame(place), Event::Purged(place), Event::Undone(place), Event::Distrust(place)]);
        events.extend([Event::Promote(place), Event::Foreign(true), Event::Foreign(false)]);
        let losses = [Loss::Suspected, Loss::SuspectedUncompared, Loss::MemoryGone];
        events.extend(losses.map(|loss| Event::Lost(place, loss, Reason::Reset)));
    }
    let pairs: HashSet<Pair, Quick> = REACHED.iter().map(|w| w.key().pair).collect();
    // One pair of each kind for each event: a panic is slow.
    let mut ended = HashSet::new();
    for before in pairs {
        for &event in &events {
            if !before.can_come(event) {
                let state = std::mem::discriminant(&before.state);
                if ended.insert((std::mem::discriminant(&event), state, before.gate)) {
                    let apply = || before.clone().apply(event);
                    assert!(std::panic::catch_unwind(apply).is_err(), "{event:?} is taken by {before:?}");
                }
                continue;
            }
            let mut after = before.clone();
            let effects = after.apply(event);
            let arrow = before.state == after.state || arrow(before.state, after.state, event);
            assert!(arrow, "{event:?} on {before:?} -> {after:?}");
            judge_effects(&before, &after, event, &effects);
        }
    }
    // `Promote` and `Undone` to 3 states in which somebody leads, behind all gates that there are;
    // `Closed` and `Recorded` behind 3 gates each.
    assert!(ended.len() > 30, "{}", ended.len());
}

/// With `--resync=off` a node is taken at its word; the arrows are still the diagram's, and every
/// edge still closes.
#[test]
fn taken_back_leads_or_follows_without_a_refill() {
    for world in REACHED.iter() {
        for place in PLACES {
            let mut pair = world.pair.clone();
            let (before, effects) = (pair.clone(), pair.apply(Event::TakenBack(place)));
            match before.state {
                State::Degraded { leader } if leader != place => assert_eq!(pair.state, State::Mirrored),
                State::Dark { .. } => assert_eq!(pair.state, State::Degraded { leader: place }),
                _ => {
                    assert_eq!((pair, effects), (before, vec![]));
                    continue;
                }
            }
            assert_eq!(effects, [Effect::Close { void: None }]);
            assert!(pair.epoch > before.epoch && pair.gate == Gate::Closing);
        }
    }
}

/// Records of several ages are found at the start, in any order: what is recorded from then on is
/// later than all of them.
#[test]
fn the_newest_record_gives_the_epoch() {
    let epochs = [Epoch(5), Epoch(9), Epoch(7)];
    for first in 0..epochs.len() {
        let (mut late, mut early) = (Pair::new(Epoch(1_000), Term(1)), Pair::new(Epoch(1), Term(1)));
        for i in 0..epochs.len() {
            late.seed(epochs[(first + i) % epochs.len()]);
            early.seed(epochs[(first + i) % epochs.len()]);
        }
        assert_eq!((late.epoch(), early.epoch()), (Epoch(1_000), Epoch(10)));
    }
}

/// A node that was away at the start carries a later record: the next one written is later still.
/// Of the terms that it names the pair has none after.
#[test]
fn a_later_record_is_outranked() {
    let mut pair = Pair::new(Epoch(10), Term(4));
    assert!(!pair.outrank(Epoch(10)), "its own record, read back");
    assert_eq!((pair.epoch(), pair.term()), (Epoch(10), Term(4)));
    assert!(pair.outrank(Epoch(20)));
    assert!(!pair.rise_above(Term(3)) && pair.rise_above(Term(4)));
    assert_eq!((pair.epoch(), pair.term()), (Epoch(21), Term(5)));
    assert!(pair.rise_above(Term(9)));
    assert_eq!(pair.term(), Term(10));
}

/// A proxy whose turn is over may go on recording, having stood still meanwhile: whatever of its
/// generation is found, the next one's epochs are later than all that it may still write.
#[test]
fn a_record_of_a_former_generation_is_outranked_with_all_of_that_generation() {
    let of = |generation: u64, count: u64| Epoch((1 << 52) + (generation << 32) + count);
    let date = Epoch(1_800_000_000_000_000);
    for count in [0, 5, (1 << 32) - 1] {
        let mut pair = Pair::new(date, Term(1));
        pair.seed(of(7, count));
        assert_eq!(pair.epoch(), of(8, 0));
        pair.seed(of(6, count));
        assert_eq!(pair.epoch(), of(8, 0));
        assert!(pair.outrank(of(9, count)) && !pair.outrank(of(9, (1 << 32) - 1)));
        assert_eq!(pair.epoch(), of(10, 0));
    }
}

/// A leader whose memory counts as gone may yet come back with it: once a follower that holds a
/// part is to lead in its place, the list of what that follower missed says nothing.
#[test]
fn a_partly_filled_follower_ends_the_list_also_in_two_steps() {
    for foreign in [false, true] {
        let mut pair = Pair::new(Epoch(10), Term(4));
        pair.state = State::Recovering { leader: Primary };
        pair.gate = Gate::Open;
        pair.foreign = foreign;
        let mut kept = true;
        for event in [
            Event::Lost(Primary, Loss::Suspected, Reason::Refused),
            Event::Undone(Backup),
            Event::Lost(Primary, Loss::MemoryGone, Reason::Refused),
            Event::BackSame(Backup),
        ] {
            let before = pair.state;
            pair.apply(event);
            kept &= before == pair.state || before.keeps_difference(pair.state);
        }
        assert_eq!(pair.state, State::Degraded { leader: Backup });
        assert!(!kept, "foreign: {foreign}");
    }
}
