//! Repairs: the copies of a mirrored pair differ, a write finds out, and anything may fail
//! meanwhile.

use std::sync::atomic::Ordering::Relaxed;

use crate::pair::State;
use crate::rules::Rule;
use crate::rules::off::without;

use super::explore::{Errors, explore, holds, judge, judge_missed};
use super::history::Req::{self, *};
use super::world::{Choice, Fault, KEY, World};

/// Mirrored, but the follower lacks the key or holds another value.
pub(super) fn diverged(programs: &[&[Req]], follower: Option<&str>, fault: Option<Fault>) -> World {
    let mut world = World::new(1, State::Mirrored, Some("5"), programs);
    world.nodes[1].items.remove(KEY.as_bytes());
    if let Some(value) = follower {
        world.nodes[1].put(KEY, value);
    }
    world.unequal = true;
    world.fault = fault;
    world
}

#[test]
fn a_difference_is_repaired_before_the_client_is_answered() {
    for follower in [None, Some("90"), Some("x")] {
        for (a, b) in [(Incr, Incr), (Incr, Set("8")), (Append("1"), Delete), (Touch, Incr), (Gat, Append("2"))] {
            // `append` answers STORED on both whatever they hold: only what answers differently is
            // noticed.
            if follower.is_some() && !matches!(a, Incr) {
                continue;
            }
            let programs: [&[Req]; 2] = [&[a], &[b, Get]];
            holds(&format!("{a:?}, {b:?} with {follower:?}"), || diverged(&programs, follower, None), Errors::None);
        }
    }
}

#[test]
fn later_writes_queue_behind_the_fence() {
    let make = || {
        let mut world = diverged(&[&[Incr, Incr, Decr, Get]], None, None);
        world.history.pipelined = true;
        world
    };
    holds("pipelined", make, Errors::None);
}

/// A counter that gets shorter. `holder`: the node on which somebody holds the item, so that
/// another one replaces it.
fn shortened(holder: usize, then: Req, fault: Option<Fault>) -> World {
    let mut world = World::new(1, State::Mirrored, Some("10"), &[&[Decr, then]]);
    world.nodes[holder].holds_items = true;
    // The history knows one of the two ways.
    world.diverged = true;
    world.fault = fault;
    world
}

#[test]
fn blanks_behind_a_number_are_on_both_copies_or_on_none() {
    for holder in [0, 1] {
        for then in [Get, Incr, Append("1")] {
            let name = |fault: Option<Fault>| format!("held on {holder}, then {then:?}, {fault:?}");
            holds(&name(None), || shortened(holder, then, None), Errors::None);
            for fault in [Fault::Kill(0), Fault::Kill(1), Fault::Hang(1), Fault::Reset(1)] {
                holds(&name(Some(fault)), || shortened(holder, then, Some(fault)), Errors::None);
            }
        }
        let blind = without(Some(Rule::BlanksAreCompared), || explore(|| shortened(holder, Get, None), Errors::None));
        assert!(blind.is_err(), "the copies are equal anyhow: nothing is tested");
    }
}

#[test]
fn the_follower_fails_in_mid_repair() {
    for fault in [Fault::Kill(1), Fault::Reset(1), Fault::Hang(1)] {
        let programs: [&[Req]; 2] = [&[Incr], &[Set("8"), Get]];
        holds(&format!("{fault:?}"), || diverged(&programs, None, Some(fault)), Errors::None);
    }
}

/// The copies differed before: a survivor's answers cannot all be right, but nobody waits for ever
/// and the gate opens.
#[test]
fn the_leader_fails_in_mid_repair() {
    for fault in [Fault::Kill(0), Fault::Reset(0), Fault::Restart(0), Fault::Hang(0)] {
        let make = || {
            let mut world = diverged(&[&[Incr], &[Incr]], None, Some(fault));
            world.diverged = true;
            world
        };
        holds(&format!("{fault:?}"), make, Errors::Allowed);
    }
}

pub(super) fn until(world: &mut World, wanted: &str, node: usize) {
    while !world.wires[0][node].to.iter().any(|c| c.starts_with(wanted.as_bytes())) {
        let choice = world.choices().into_iter().find(|c| *c != Choice::Fault).expect("the command is sent at last");
        world.step(&choice);
    }
}

/// The marker alone is gone: the repair waits until it is written again. Given up, it would leave
/// two copies that differ in a pair that calls itself mirrored.
#[test]
fn a_marker_evicted_in_mid_repair_leaves_no_difference() {
    for fault in [Fault::Evict(0), Fault::Unsure(0)] {
        let mut world = diverged(&[&[Incr]], None, Some(fault));
        until(&mut world, "mg __resilver__", 0);
        world.step(&Choice::Fault);
        world.run();
        assert!(world.history.unanswered(), "the repair waits");
        world.tick_after(20_000);
        world.run();
        judge(&world, Errors::None).unwrap();
    }
}

/// The leader's memory is gone while a repair runs: the follower's copy is the good one and stays.
#[test]
fn a_leader_that_lost_its_memory_destroys_no_copy() {
    let mut world = diverged(&[&[Incr]], Some("90"), None);
    until(&mut world, "mg __resilver__", 0);
    world.nodes[0].items.clear();
    world.run();
    assert_eq!(world.pair.state(), State::Degraded { leader: crate::ids::Place::Backup });
    assert_eq!(world.nodes[1].items[KEY.as_bytes()].value, b"91");
    assert!(!world.history.unanswered());
}

/// Whatever a node answers to a command of the repair, it ends.
#[test]
fn nonsense_in_answer_to_a_repair_ends_it() {
    let steps = [("mg k k v", 0, 0), ("mg __resilver__", 0, 1), ("md k", 1, 0), ("ms k", 1, 1), ("mg k c", 0, 0)];
    for (command, node, nth) in steps {
        for nonsense in ["STORED\r\n", "SERVER_ERROR busy\r\n", "ERROR\r\n"] {
            let mut world = diverged(&[&[Incr], &[Get]], None, None);
            until(&mut world, command, node);
            world.wires[0][node].to.truncate(nth + 1);
            let command = world.wires[0][node].to.remove(nth);
            assert!(command.is_some());
            // The answers before it come; then this.
            while !world.wires[0][node].to.is_empty() {
                world.step(&Choice::Execute { worker: 0, node });
            }
            world.wires[0][node].back.push_back(nonsense.as_bytes().to_vec());
            while !world.wires[0][node].back.is_empty() {
                world.step(&Choice::Deliver { worker: 0, node });
            }
            world.break_wires(node);
            world.run();
            // One tick for the connection, and one for the repair that waits for it.
            for _ in 0..2 {
                world.tick_after(20_000);
                world.run();
            }
            assert!(!world.history.unanswered(), "{command:?} answered {nonsense:?}");
            assert_eq!(world.pair.gate(), crate::pair::Gate::Open);
            judge_missed(&world).unwrap_or_else(|e| panic!("{command:?} answered {nonsense:?}: {e}"));
        }
    }
}

/// The follower refuses the item: the pair stays mirrored, and the follower is known to lack the
/// key.
#[test]
fn a_repair_that_the_follower_refuses_is_not_forgotten() {
    for refusal in ["SERVER_ERROR out of memory storing object\r\n", "CLIENT_ERROR bad command line format\r\n"] {
        let mut world = diverged(&[&[Incr]], None, None);
        until(&mut world, "md k", 1);
        world.wires[0][1].to.pop_back();
        world.step(&Choice::Execute { worker: 0, node: 1 });
        world.wires[0][1].back.push_back(refusal.as_bytes().to_vec());
        world.run();
        assert_eq!(world.pair.state(), State::Mirrored, "{refusal}");
        assert!(!world.history.unanswered() && !world.nodes[1].items.contains_key(KEY.as_bytes()));
        assert!(world.missed.contains(KEY.as_bytes()));
        assert_eq!(world.lone.after(None, 9), [KEY], "it is known to have one copy");
        assert_eq!(world.cores[0].stats.repaired.load(Relaxed), 0);
    }
}

/// The follower has dropped its copy and refuses the leader's, whose connection has just ended:
/// nobody is told of a write that only a lost node holds.
#[test]
fn a_repair_is_refused_and_its_leader_lost() {
    let mut world = diverged(&[&[Incr]], None, Some(Fault::Kill(0)));
    until(&mut world, "md k", 1);
    world.wires[0][1].to.pop_back();
    world.step(&Choice::Execute { worker: 0, node: 1 });
    world.wires[0][1].back.push_back(b"SERVER_ERROR out of memory storing object\r\n".to_vec());
    world.step(&Choice::Fault);
    world.run();
    assert_eq!(world.pair.state(), State::Degraded { leader: crate::ids::Place::Backup });
    assert!(!world.history.unanswered());
    assert_eq!(world.history.told(0), Some("NOT_FOUND"), "as the one says that leads now");
}

fn deliver_all(world: &mut World, node: usize) {
    while !world.wires[0][node].to.is_empty() {
        world.step(&Choice::Execute { worker: 0, node });
    }
    while !world.wires[0][node].back.is_empty() {
        world.step(&Choice::Deliver { worker: 0, node });
    }
}

/// The repair waits for the marker when the leader turns out to be lost: nothing of it is in
/// flight, and the gate closes all the same.
#[test]
fn a_repair_that_waits_ends_with_its_leader() {
    let mut world = diverged(&[&[Incr], &[Incr]], Some("90"), None);
    until(&mut world, "mg __resilver__", 0);
    world.nodes[0].items.clear();
    deliver_all(&mut world, 0);
    world.run();
    assert_eq!(world.pair.state(), State::Degraded { leader: crate::ids::Place::Backup });
    assert!(!world.history.unanswered() && world.pair.gate() == crate::pair::Gate::Open);
}

/// While a key is repaired its later writes are not sent, and the repair begins when the earlier
/// ones are through.
#[test]
fn a_repair_has_the_key_for_itself() {
    let mut world = diverged(&[&[Incr, Incr]], None, None);
    world.history.pipelined = true;
    let sent =
        |w: &World, what: &str| w.wires[0].iter().any(|wire| wire.to.iter().any(|c| c.starts_with(what.as_bytes())));
    world.step(&Choice::Send(0));
    world.step(&Choice::Send(0));
    // Both on the leader; the first one's difference is found with the second one on its way.
    world.step(&Choice::Execute { worker: 0, node: 0 });
    world.step(&Choice::Deliver { worker: 0, node: 0 });
    world.step(&Choice::Execute { worker: 0, node: 1 });
    world.step(&Choice::Deliver { worker: 0, node: 1 });
    assert!(sent(&world, "incr") && !sent(&world, "mg k k"), "the repair waits for the earlier write");
    world.run();
    judge(&world, Errors::None).unwrap();

    let mut world = diverged(&[&[Incr], &[Incr]], None, None);
    world.step(&Choice::Send(0));
    while !sent(&world, "mg k k") {
        let choice = world.choices().into_iter().find(|c| !matches!(c, Choice::Send(_))).unwrap();
        world.step(&choice);
    }
    world.step(&Choice::Send(1));
    assert!(!sent(&world, "incr"), "the later write waits for the repair");
    world.run();
    judge(&world, Errors::None).unwrap();
}

/// The leader executes an incr and breaks before it answers, while an older one's repair waits for
/// it. The incr is run again on the follower, which leads next: what the repair would carry there
/// has it in already.
#[test]
fn a_repair_carries_over_nothing_that_is_run_again() {
    let mut world = diverged(&[&[Incr], &[Incr]], Some("90"), None);
    world.step(&Choice::Send(0));
    world.step(&Choice::Send(1));
    world.step(&Choice::Execute { worker: 0, node: 0 });
    world.step(&Choice::Deliver { worker: 0, node: 0 });
    world.step(&Choice::Execute { worker: 0, node: 0 });
    assert_eq!(world.nodes[0].items[KEY.as_bytes()].value, b"7", "both are in");
    world.step(&Choice::Execute { worker: 0, node: 1 });
    world.step(&Choice::Deliver { worker: 0, node: 1 });
    assert_eq!(world.cores[0].fences.len(), 1, "the first one waits for the second");
    world.wires[0][0].back.clear();
    world.break_wires(0);
    world.step(&Choice::Break { worker: 0, node: 0 });
    // The control plane is slow to hear of it: the worker has a new connection long before its gate
    // closes.
    for _ in 0..3 {
        deliver_all(&mut world, 0);
        deliver_all(&mut world, 1);
        world.step(&Choice::Tick);
    }
    assert_eq!(world.nodes[1].items[KEY.as_bytes()].value, b"91", "the repair has not begun");
    world.run();
    assert_eq!(world.pair.state(), State::Degraded { leader: crate::ids::Place::Backup });
    assert_eq!(world.nodes[1].items[KEY.as_bytes()].value, b"92", "each once");
    assert!(!world.history.unanswered() && world.pair.gate() == crate::pair::Gate::Open);
}

/// A key that has one copy has two again when both nodes stored or deleted it, or its repair has
/// ended well. That both touched what they hold says nothing of what that is.
#[test]
fn a_key_with_one_copy_is_forgotten_when_it_has_two() {
    for (request, stays) in [(Touch, true), (Append("1"), true), (Incr, true), (Set("8"), false), (Delete, false)] {
        let programs: [&[Req]; 1] = [&[request]];
        let mut world = World::new(1, State::Mirrored, Some("5"), &programs);
        world.lone.insert(KEY.as_bytes());
        world.step(&Choice::Send(0));
        world.run();
        assert_eq!(!world.lone.is_empty(), stays, "{request:?}");
    }
    let mut world = diverged(&[&[Incr]], None, None);
    world.lone.insert(KEY.as_bytes());
    world.step(&Choice::Send(0));
    world.run();
    assert!(world.lone.is_empty());
}
