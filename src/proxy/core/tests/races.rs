//! One fault at every possible point of short programs, in every order of deliveries. What protects
//! each rule is named in the test; `without_the_barrier_*` show that the explorer finds what it
//! looks for.

use crate::ids::Place;
use crate::pair::State;

use super::copier::Copier;
use super::explore::{Errors, explore, holds};
use super::history::Req::{self, *};
use super::world::{Fault, KEY, World};

fn world(workers: u16, state: State, item: Option<&str>, programs: &[&[Req]], fault: Option<Fault>) -> World {
    let mut world = World::new(workers, state, item, programs);
    world.fault = fault;
    world
}

const EVERY: [Req; 13] =
    [Get, Gets, Gat, Set("7"), Add("7"), Replace("7"), Append("7"), Prepend("7"), Cas("7"), Incr, Decr, Delete, Touch];

/// Every command in flight at every stage, with the key there and not.
fn each_command(fault: Fault) {
    for req in EVERY {
        for item in [None, Some("5")] {
            let programs: [&[Req]; 1] = [&[Gets, req, Get]];
            let make = || world(1, State::Mirrored, item, &programs, Some(fault));
            holds(&format!("{req:?} with {item:?}, {fault:?}"), make, Errors::None);
        }
    }
}

#[test]
fn a_leader_that_is_killed_is_not_noticed() {
    each_command(Fault::Kill(0));
}

#[test]
fn a_follower_that_is_killed_is_not_noticed() {
    each_command(Fault::Kill(1));
}

#[test]
fn a_node_that_breaks_its_connections_is_not_noticed() {
    each_command(Fault::Reset(0));
    each_command(Fault::Reset(1));
}

#[test]
fn a_node_that_restarts_empty_at_once_is_not_noticed() {
    each_command(Fault::Restart(0));
    each_command(Fault::Restart(1));
}

/// What the hung node executes when it wakes, and answers late, counts for nothing; and its
/// connections are drained by answer.
#[test]
fn a_hung_node_that_wakes_is_not_noticed() {
    each_command(Fault::Hang(0));
    each_command(Fault::Hang(1));
}

#[test]
fn two_writers_of_one_key_through_a_failover() {
    for (a, b) in [(Incr, Incr), (Incr, Set("9")), (Append("1"), Delete), (Add("1"), Delete), (Touch, Incr)] {
        for fault in [Fault::Kill(0), Fault::Kill(1), Fault::Reset(0)] {
            let programs: [&[Req]; 2] = [&[a], &[b, Get]];
            let make = || world(1, State::Mirrored, Some("5"), &programs, Some(fault));
            holds(&format!("{a:?} against {b:?}, {fault:?}"), make, Errors::None);
        }
    }
}

/// `routes.py`: two workers, one counter, one change of leader. The key's owner is either of them.
#[test]
fn two_workers_through_a_failover() {
    for fault in [Fault::Kill(0), Fault::Hang(0), Fault::Kill(1)] {
        for programs in [[&[Incr][..], &[Get][..]], [&[Get][..], &[Incr][..]]] {
            let make = || world(2, State::Mirrored, Some("5"), &programs, Some(fault));
            holds(&format!("{programs:?}, {fault:?}"), make, Errors::None);
        }
    }
}

#[test]
fn two_workers_through_a_hand_back() {
    let state = State::Recovering { leader: Place::Backup };
    for second in [Incr, Get] {
        let programs: [&[Req]; 2] = [&[Incr], &[second]];
        holds("hand-back", || world(2, state, Some("5"), &programs, None), Errors::None);
    }
}

/// The explorer finds the stale read and the lost increment of `routes.py` as soon as routes open
/// without the workers' word.
#[test]
fn without_the_barrier_reads_are_stale_and_increments_lost() {
    let state = State::Recovering { leader: Place::Backup };
    let programs: [&[Req]; 2] = [&[Incr], &[Incr]];
    let broken = |mut world: World| {
        world.barrier = false;
        world
    };
    let hand_back = explore(|| broken(world(2, state, Some("5"), &programs, None)), Errors::Allowed);
    assert!(hand_back.is_err(), "nothing found in {hand_back:?} states");
    let failover = [[&[Incr][..], &[Get][..]], [&[Get][..], &[Incr][..]]].map(|programs| {
        let make = || broken(world(2, State::Mirrored, Some("5"), &programs, Some(Fault::Hang(0))));
        explore(make, Errors::Allowed)
    });
    assert!(failover.iter().any(Result::is_err), "nothing found in {failover:?} states");
}

/// What cannot be repeated on a filling node is dropped there and copied again, whatever the copier
/// is doing.
#[test]
fn commands_during_a_resync_end_in_equal_copies() {
    for leader in [Place::Primary, Place::Backup] {
        for req in EVERY {
            let programs: [&[Req]; 1] = [&[Gets, req, Get]];
            let make = || world(1, State::Recovering { leader }, Some("5"), &programs, None);
            holds(&format!("{req:?} during a resync from the {leader}"), make, Errors::None);
        }
    }
}

/// The source is the only full copy: its loss is an error, but never a wrong answer. The target's
/// loss is nothing.
#[test]
fn either_node_fails_during_a_resync() {
    let leader = Place::Backup;
    for req in [Incr, Set("7"), Append("7"), Delete, Touch] {
        for (fault, errors) in
            [(Fault::Kill(1), Errors::Allowed), (Fault::Kill(0), Errors::None), (Fault::Hang(0), Errors::None)]
        {
            let programs: [&[Req]; 1] = [&[req, Get]];
            let make = || world(1, State::Recovering { leader }, Some("5"), &programs, Some(fault));
            holds(&format!("{req:?}, {fault:?}"), make, errors);
        }
    }
}

/// The resync is cancelled, the gate closes, and then its target hangs: nobody may wait for it.
#[test]
fn a_target_that_hangs_behind_a_cancelled_resync_holds_nobody_up() {
    let programs: [&[Req]; 1] = [&[Set("7"), Get]];
    let fault = Some(Fault::CancelThenHang(0));
    holds(
        "cancel",
        || world(1, State::Recovering { leader: Place::Backup }, Some("5"), &programs, fault),
        Errors::None,
    );
}

/// Both nodes hold the key, and nothing was missed so far.
fn nothing_missed(state: State, program: &[Req], fault: Option<Fault>) -> World {
    let mut world = world(1, state, Some("5"), &[program], fault);
    for node in 0..2 {
        if !world.nodes[node].items.contains_key(KEY.as_bytes()) {
            world.nodes[node].put(KEY, "5");
        }
    }
    world.missed.reset();
    if let State::Recovering { .. } = state {
        world.copier = Some(Copier::of_what_comes());
    }
    world
}

/// What a sole leader executes, or may execute late, the other node missed.
#[test]
fn what_a_sole_leader_is_sent_is_known_to_be_missed() {
    for req in EVERY {
        for fault in [None, Some(Fault::Reset(0)), Some(Fault::Hang(0))] {
            let make = || nothing_missed(State::Degraded { leader: Place::Primary }, &[Gets, req, Get], fault);
            holds(&format!("{req:?}, {fault:?}"), make, Errors::Allowed);
        }
    }
}

/// A partial resync that is cut off: what was dropped on the follower, and what either node may
/// execute late, the follower missed.
#[test]
fn what_a_resync_that_is_cut_off_leaves_behind_is_known_to_be_missed() {
    let leader = Place::Backup;
    for req in EVERY {
        for fault in [Fault::Reset(0), Fault::Hang(0), Fault::CancelThenHang(0), Fault::Reset(1), Fault::Hang(1)] {
            let make = || nothing_missed(State::Recovering { leader }, &[Gets, req, Get], Some(fault));
            holds(&format!("{req:?}, {fault:?}"), make, Errors::Allowed);
        }
    }
}

/// A sole leader that breaks in the middle of an incr: an error, once, and the count is either.
#[test]
fn a_sole_leader_that_breaks_costs_an_error_and_nothing_is_applied_twice() {
    for req in [Incr, Append("7"), Add("7")] {
        for fault in [Fault::Reset(0), Fault::Hang(0)] {
            let programs: [&[Req]; 1] = [&[req, Get]];
            let make = || world(1, State::Degraded { leader: Place::Primary }, Some("5"), &programs, Some(fault));
            holds(&format!("{req:?}, {fault:?}"), make, Errors::Allowed);
        }
    }
}

/// One client's pipelined commands keep their order through the loss of either node.
#[test]
fn pipelined_commands_keep_their_order_through_a_failover() {
    for fault in [Fault::Kill(0), Fault::Reset(0), Fault::Kill(1)] {
        for program in
            [[Set("1"), Set("2"), Get], [Set("1"), Append("2"), Get], [Get, Incr, Get], [Delete, Add("3"), Get]]
        {
            let make = || {
                let mut world = world(1, State::Mirrored, Some("5"), &[&program], Some(fault));
                world.history.pipelined = true;
                world
            };
            holds(&format!("{program:?}, {fault:?}"), make, Errors::None);
        }
    }
}

/// An evicted marker is written again; nobody waits for ever for a connection that was being
/// checked.
#[test]
fn an_evicted_marker_costs_nothing() {
    for node in [0, 1] {
        let programs: [&[Req]; 1] = [&[Get, Incr]];
        holds("evicted", || world(1, State::Mirrored, None, &programs, Some(Fault::Evict(node))), Errors::None);
    }
}

/// A token's raw id means something else on the other node: there the item of a later write may
/// bear the same one.
#[test]
fn a_token_of_an_earlier_leader_never_wins() {
    let programs: [&[Req]; 2] = [&[Gets, Cas("7"), Get], &[Set("9")]];
    let make = || {
        let mut world = world(1, State::Mirrored, Some("5"), &programs, Some(Fault::Kill(0)));
        // The primary counts one ahead: its "5" and the backup's "9" will have the same id.
        world.nodes[0].put(super::world::KEY, "5");
        world
    };
    holds("cas", make, Errors::None);
}
