//! Orders of the control plane about one key, against everything that clients and nodes may do
//! meanwhile.

use crate::ids::Place;
use crate::keys::{Missed, MissedBudget};
use crate::pair::State;
use crate::proxy::handles::Ticket;
use bytes::Bytes;

use super::super::*;
use super::copier::Copier;
use super::explore::{Errors, holds, judge};
use super::history::Req::{self, *};
use super::repair::{diverged, until};
use super::world::{Choice, Fault, KEY, Order, World};

const WRITES: [Req; 11] =
    [Gat, Set("7"), Add("7"), Replace("7"), Append("7"), Prepend("7"), Cas("7"), Incr, Decr, Delete, Touch];

/// The copies differ and nobody knows; the control plane has the key mended.
fn to_mend(programs: &[&[Req]], follower: Option<&str>, fault: Option<Fault>) -> World {
    let mut world = diverged(programs, follower, fault);
    world.orders.push_back(Order::Mend);
    world
}

#[test]
fn a_mend_ends_in_equal_copies_whatever_clients_write() {
    for follower in [None, Some("90"), Some("5")] {
        for req in WRITES {
            let programs: [&[Req]; 1] = [&[Gets, req, Get]];
            holds(&format!("{req:?} with {follower:?}"), || to_mend(&programs, follower, None), Errors::None);
        }
        for (a, b) in [(Incr, Set("8")), (Append("1"), Delete)] {
            let programs: [&[Req]; 2] = [&[a], &[b, Get]];
            holds(&format!("{a:?}, {b:?} with {follower:?}"), || to_mend(&programs, follower, None), Errors::None);
        }
        let twice = || {
            let mut world = to_mend(&[&[Incr, Get]], follower, None);
            world.orders.push_back(Order::Mend);
            world
        };
        holds(&format!("mended twice with {follower:?}"), twice, Errors::None);
    }
}

#[test]
fn the_follower_fails_in_mid_mend() {
    for follower in [None, Some("90"), Some("5")] {
        for fault in [Fault::Kill(1), Fault::Reset(1), Fault::Hang(1), Fault::Evict(1)] {
            let programs: [&[Req]; 1] = [&[Incr, Get]];
            // Evicted, the marker is written again, and the difference must be gone at the end.
            holds(&format!("{fault:?}"), || to_mend(&programs, follower, Some(fault)), Errors::None);
        }
    }
}

/// With copies that were equal no client notices anything; with others a survivor's answers cannot
/// all be right.
#[test]
fn the_leader_fails_in_mid_mend() {
    for follower in [None, Some("90"), Some("5")] {
        for fault in
            [Fault::Kill(0), Fault::Reset(0), Fault::Restart(0), Fault::Hang(0), Fault::Evict(0), Fault::Flush(0)]
        {
            let programs: [&[Req]; 1] = [&[Incr, Get]];
            let equal = follower == Some("5");
            let make = || {
                let mut world = to_mend(&programs, follower, Some(fault));
                world.diverged = !equal;
                world.unequal = !equal;
                world
            };
            holds(&format!("{fault:?}"), make, if equal { Errors::None } else { Errors::Allowed });
        }
    }
}

#[test]
fn equal_copies_are_left_alone() {
    for (follower, ttl, settlement) in [
        (Some("5"), 1, Settlement::Superfluous),
        // As a scrub sees it, which is who orders.
        (Some("5"), 2, Settlement::Superfluous),
        (Some("5"), 3, Settlement::Done),
        (Some("50"), 0, Settlement::Done),
        (None, 0, Settlement::Done),
    ] {
        let mut world = to_mend(&[], follower, None);
        let key = KEY.as_bytes();
        world.nodes[0].items.get_mut(key).unwrap().exptime = 100;
        if let Some(copy) = world.nodes[1].items.get_mut(key) {
            copy.exptime = 100 - ttl;
        }
        let before = world.nodes[1].items.get(key).cloned();
        world.step(&Choice::Order);
        world.run();
        assert_eq!(world.settled, [settlement], "{follower:?}, {ttl} s less");
        assert_eq!(world.nodes[1].items.get(key).cloned() == before, settlement == Settlement::Superfluous);
        assert_eq!(world.cores[0].op_count(), 0);
    }
    // Neither holds it; a flag; one that never expires.
    let mut world = to_mend(&[], None, None);
    world.nodes[0].items.remove(KEY.as_bytes());
    world.step(&Choice::Order);
    world.run();
    assert_eq!(world.settled, [Settlement::Superfluous]);
    for change in [|item: &mut super::node::Item| item.flags = 9, |item: &mut super::node::Item| item.exptime = 1] {
        let mut world = to_mend(&[], Some("5"), None);
        change(world.nodes[1].items.get_mut(KEY.as_bytes()).unwrap());
        world.step(&Choice::Order);
        world.run();
        assert_eq!(world.settled, [Settlement::Done]);
        world.unequal = false;
        judge(&world, Errors::None).unwrap();
    }
}

/// A stale item is none that clients are to be given, whatever it holds.
#[test]
fn a_stale_copy_equals_nothing() {
    for follower in [Some("5"), Some("50")] {
        let mut world = to_mend(&[], follower, None);
        world.nodes[1].items.get_mut(KEY.as_bytes()).unwrap().mark.stale = true;
        world.step(&Choice::Order);
        world.run();
        assert_eq!(world.settled, [Settlement::Done], "{follower:?}");
    }
    let mut world = to_mend(&[], Some("5"), None);
    world.nodes[0].items.get_mut(KEY.as_bytes()).unwrap().mark.stale = true;
    world.step(&Choice::Order);
    world.run();
    assert_eq!(world.settled, [Settlement::Done]);
    assert!(!world.nodes[1].items.contains_key(KEY.as_bytes()), "what is stale must not become fresh");
}

/// However many mends come meanwhile, the first one looks when the writes begun before it are
/// through, and finds nothing to do.
#[test]
fn a_mend_waits_for_earlier_writes() {
    let mut world = to_mend(&[&[Incr, Get]], Some("5"), None);
    world.orders.push_back(Order::Mend);
    world.step(&Choice::Send(0));
    for _ in 0..2 {
        world.step(&Choice::Order);
        world.step(&Choice::Command(0));
    }
    let looks = |w: &World| w.wires[0].iter().any(|wire| wire.to.iter().any(|c| c.starts_with(b"mg k k")));
    for node in [0, 1] {
        assert!(!looks(&world));
        world.step(&Choice::Execute { worker: 0, node });
        world.step(&Choice::Deliver { worker: 0, node });
    }
    assert!(looks(&world));
    world.run();
    assert_eq!(world.settled, [Settlement::Superfluous, Settlement::Done]);
}

/// Nobody is told that it is done when a node broke meanwhile, and the gate does not wait for it.
#[test]
fn a_mend_that_is_cut_off_has_failed_at_once() {
    for (command, node) in [("mg k k v", 0), ("mg k k v", 1), ("md k", 1), ("mg k c", 0)] {
        let mut world = to_mend(&[], None, None);
        world.step(&Choice::Order);
        until(&mut world, command, node);
        world.break_wires(node);
        world.step(&Choice::Break { worker: 0, node });
        assert_eq!(world.cores[0].op_count(), 0, "{command} to {node}");
        world.run();
        assert_eq!(world.settled, [Settlement::Failed], "{command} to {node}");
        assert_eq!(world.pair.gate(), crate::pair::Gate::Open);
    }
}

#[test]
fn a_mend_that_the_follower_refuses_has_failed() {
    let mut world = to_mend(&[], None, None);
    world.step(&Choice::Order);
    until(&mut world, "ms k", 1);
    world.wires[0][1].to.pop_back();
    world.step(&Choice::Execute { worker: 0, node: 1 });
    world.wires[0][1].back.push_back(b"SERVER_ERROR out of memory storing object\r\n".to_vec());
    world.run();
    assert_eq!(world.settled, [Settlement::Failed]);
    assert!(world.missed.contains(KEY.as_bytes()));
}

/// A write was given up and its fault told: the copies are not compared while that may still land.
#[test]
fn nothing_is_mended_while_an_edge_is_near() {
    let mut world = to_mend(&[&[Incr]], Some("5"), None);
    world.step(&Choice::Send(0));
    world.break_wires(0);
    world.step(&Choice::Break { worker: 0, node: 0 });
    world.step(&Choice::Order);
    world.step(&Choice::Command(0));
    assert!(world.events[0].contains(&Event::Settled { ticket: Ticket(0), settlement: Settlement::Failed }));
}

/// A second mend of the key, and a write that found the difference, are done when the first is.
#[test]
fn what_comes_to_a_mend_under_way_ends_with_it() {
    let mut world = to_mend(&[&[Incr, Get]], None, None);
    world.orders.push_back(Order::Mend);
    world.step(&Choice::Order);
    world.step(&Choice::Order);
    until(&mut world, "mg k k v", 1);
    world.run();
    assert_eq!(world.settled, [Settlement::Done; 2]);
    world.step(&Choice::Send(0));
    world.run();
    judge(&world, Errors::None).unwrap();
}

#[test]
fn nothing_is_mended_without_a_follower_in_sync_or_by_another_worker() {
    for state in [State::Degraded { leader: Place::Primary }, State::Recovering { leader: Place::Primary }] {
        let mut world = World::new(1, state, Some("5"), &[]);
        world.orders.push_back(Order::Mend);
        world.step(&Choice::Order);
        world.run();
        assert_eq!(world.settled, [Settlement::Failed]);
    }
    let mut world = World::new(2, State::Mirrored, Some("5"), &[]);
    let stranger = 1 - crate::proxy::owner_of(KEY.as_bytes(), 2).index();
    for key in [KEY.as_bytes(), crate::backend::marker::INCARNATION_KEY.as_bytes()] {
        let key = Bytes::from_static(key);
        world.ordered += 1;
        world.commands[stranger].push_back(Command::Mend { ticket: Ticket(0), pair: super::world::PAIR, key });
    }
    world.run();
    assert_eq!(world.settled, [Settlement::Failed; 2]);
}

/// Both rings were full: the backup alone holds the key, with `5`.
fn adopting(workers: u16, programs: &[&[Req]], fault: Option<Fault>) -> World {
    let mut world = World::new(workers, State::Recovering { leader: Place::Primary }, None, programs);
    world.nodes[1].put(KEY, "5");
    let written = Missed::new(Arc::new(MissedBudget::new(1 << 20)));
    written.reset();
    world.written = Some(Arc::new(written));
    world.copier = Some(Copier::of_what_comes());
    world.publish();
    world.run();
    world.orders.push_back(Order::Adopt("5"));
    world.history.may_adopt("5");
    world.fault = fault;
    world
}

/// A deleted key stays deleted, a set one keeps its value, and an `add` that succeeded stays the
/// only one.
#[test]
fn an_adoption_brings_nothing_back() {
    for req in WRITES {
        let programs: [&[Req]; 1] = [&[Gets, req, Get]];
        holds(&format!("{req:?}"), || adopting(1, &programs, None), Errors::None);
    }
    for (a, b) in [(Delete, Set("7")), (Delete, Delete), (Incr, Delete), (Add("7"), Delete), (Add("7"), Add("8"))] {
        let programs: [&[Req]; 2] = [&[a, Get], &[b]];
        holds(&format!("{a:?} and {b:?}"), || adopting(1, &programs, None), Errors::None);
    }
    for programs in [[&[Delete][..], &[Get][..]], [&[Get][..], &[Delete][..]]] {
        holds("two workers", || adopting(2, &programs, None), Errors::None);
    }
}

#[test]
fn either_node_fails_in_mid_adoption() {
    for req in [Delete, Set("7"), Incr] {
        for fault in [Fault::Kill(1), Fault::Reset(1), Fault::Hang(1), Fault::Kill(0), Fault::Hang(0), Fault::Reset(0)]
        {
            let programs: [&[Req]; 1] = [&[req, Get]];
            let errors = if matches!(fault, Fault::Kill(1) | Fault::Reset(1) | Fault::Hang(1)) {
                Errors::None
            } else {
                Errors::Allowed
            };
            holds(&format!("{req:?}, {fault:?}"), || adopting(1, &programs, Some(fault)), errors);
        }
    }
}

#[test]
fn an_adoption_that_cannot_know_what_was_written_fails() {
    // The set overflowed; the pair does not adopt at all.
    for written in [Some(Arc::new(Missed::new(Arc::new(MissedBudget::new(0))))), None] {
        let mut world = adopting(1, &[], None);
        world.written = written;
        world.publish();
        world.run();
        world.step(&Choice::Order);
        world.run();
        assert_eq!(world.settled, [Settlement::Failed]);
        assert!(!world.nodes[0].items.contains_key(KEY.as_bytes()));
    }
}

/// The leader has no room for it: the only copy, on the follower, stays.
#[test]
fn an_adoption_that_the_leader_refuses_drops_nothing() {
    let mut world = adopting(1, &[], None);
    world.step(&Choice::Order);
    while world.wires[0][0].to.is_empty() {
        let choice = world.choices().into_iter().find(|c| matches!(c, Choice::Command(_))).unwrap();
        world.step(&choice);
    }
    world.wires[0][0].to.pop_front();
    world.wires[0][0].back.push_back(b"SERVER_ERROR out of memory storing object\r\n".to_vec());
    world.run();
    assert_eq!(world.settled, [Settlement::Failed]);
    assert_eq!(world.nodes[1].items[KEY.as_bytes()].value, b"5");
    // No client wrote the key: it may be tried again.
    world.orders.push_back(Order::Adopt("5"));
    world.step(&Choice::Order);
    world.run();
    assert_eq!(world.settled, [Settlement::Failed, Settlement::Done]);
    judge(&world, Errors::None).unwrap();
}

/// The node breaks under the `add`, or under its copy: nobody waits for the next route.
#[test]
fn an_adoption_that_is_cut_off_has_failed_at_once() {
    for (command, node) in [("add k", 0), ("set k", 1)] {
        let mut world = adopting(1, &[], None);
        world.step(&Choice::Order);
        until(&mut world, command, node);
        world.break_wires(node);
        world.step(&Choice::Break { worker: 0, node });
        assert_eq!(world.cores[0].op_count(), 0, "{command}");
        world.run();
        assert_eq!(world.settled, [Settlement::Failed], "{command}");
    }
}
