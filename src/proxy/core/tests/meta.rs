//! Commands of the meta protocol: as safe as the classic ones in every order of everything, and
//! what is stale or about to be recomputed is never fresh anywhere.

use crate::ids::Place;
use crate::pair::State;

use super::explore::{Errors, holds};
use super::history::Req::{self, *};
use super::repair::diverged;
use super::world::{Fault, World};

const EVERY: [Req; 12] =
    [Mg, Vivify, Recache, MgTouch, Ms("7"), MsAdd("7"), MsAppend("7"), MsCas("7"), Ma, MaMake, Md, Invalidate];

/// Those that the leader alone remembers.
const MARKING: [Req; 3] = [Vivify, Recache, Invalidate];

fn world(state: State, item: Option<&str>, programs: &[&[Req]], fault: Option<Fault>) -> World {
    let mut world = World::new(1, state, item, programs);
    world.fault = fault;
    world.history.marked_may_go = fault.is_some() || state != State::Mirrored;
    world
}

fn each_command(fault: Option<Fault>) {
    for req in EVERY {
        for item in [None, Some("5")] {
            let programs: [&[Req]; 1] = [&[Gets, req, Mg]];
            let make = || world(State::Mirrored, item, &programs, fault);
            holds(&format!("{req:?} with {item:?}, {fault:?}"), make, Errors::None);
        }
    }
}

#[test]
fn a_node_that_fails_is_not_noticed() {
    each_command(None);
    for node in [0, 1] {
        for fault in [Fault::Kill(node), Fault::Reset(node), Fault::Restart(node), Fault::Hang(node)] {
            each_command(Some(fault));
        }
    }
}

#[test]
fn a_strangers_flush_is_not_noticed() {
    for fault in [Fault::Flush(0), Fault::Flush(1), Fault::Evict(0)] {
        for req in EVERY {
            for item in [None, Some("5")] {
                let programs: [&[Req]; 1] = [&[Gets, req, MsAdd("9"), Mg]];
                let make = || world(State::Mirrored, item, &programs, Some(fault));
                holds(&format!("{req:?} with {item:?}, {fault:?}"), make, Errors::None);
            }
        }
    }
}

/// What is marked stays marked, or is gone, whatever is done with it next.
#[test]
fn what_is_marked_is_never_fresh_again_by_a_fail_over() {
    for marking in MARKING {
        for next in [Mg, MgTouch, Touch, Vivify, Ms("8"), MsAppend("8"), Ma, MsAdd("8"), Md] {
            for fault in [None, Some(Fault::Kill(0)), Some(Fault::Kill(1))] {
                let programs: [&[Req]; 1] = [&[Gat, marking, next, Mg]];
                let make = || world(State::Mirrored, Some("5"), &programs, fault);
                holds(&format!("{marking:?}, {next:?}, {fault:?}"), make, Errors::None);
            }
        }
    }
}

#[test]
fn two_writers_through_a_fail_over() {
    for (a, b) in [(Ma, Incr), (MaMake, MaMake), (MsAppend("1"), Md), (Invalidate, Ms("9")), (Vivify, MsAdd("1"))] {
        for item in [None, Some("5")] {
            for fault in [Fault::Kill(0), Fault::Kill(1), Fault::Reset(0)] {
                let programs: [&[Req]; 2] = [&[a], &[b, Mg]];
                let make = || world(State::Mirrored, item, &programs, Some(fault));
                holds(&format!("{a:?} against {b:?} with {item:?}, {fault:?}"), make, Errors::None);
            }
        }
    }
}

#[test]
fn commands_during_a_resync_end_in_equal_copies() {
    for leader in [Place::Primary, Place::Backup] {
        for req in EVERY {
            for before in [Gets, Gat] {
                let programs: [&[Req]; 1] = [&[before, req, Mg]];
                let make = || world(State::Recovering { leader }, Some("5"), &programs, None);
                holds(&format!("{req:?} during a resync from the {leader}"), make, Errors::None);
            }
        }
    }
}

#[test]
fn a_difference_is_repaired_before_the_client_is_answered() {
    for (a, b) in [(Ma, Ma), (Ma, Ms("8")), (MsAppend("1"), Md), (MgTouch, Ma), (Invalidate, Touch)] {
        let programs: [&[Req]; 2] = [&[a], &[b, Mg]];
        let make = || {
            let mut world = diverged(&programs, None, None);
            world.history.marked_may_go = true;
            world
        };
        holds(&format!("{a:?}, {b:?}"), make, Errors::None);
    }
}
