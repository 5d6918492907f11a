//! Somebody says `flush_all` to a node past the proxy: memory and markers are gone, connections
//! stay. Nobody may notice, whatever is in flight. And a marker that is evicted looks the same to a
//! worker, but what the node answered is true.

use crate::ids::{Incarnation, Life, NodeId, Place};
use crate::pair::State;

use super::super::*;
use super::explore::{Errors, holds};
use super::history::Req::{self, *};
use super::shell::events;
use super::world::{Choice, Fault, KEY, PAIR, World};

const MIRRORED: State = State::Mirrored;
const SOLE: State = State::Degraded { leader: Place::Primary };

const EVERY: [Req; 13] =
    [Get, Gets, Gat, Set("7"), Add("7"), Replace("7"), Append("7"), Prepend("7"), Cas("7"), Incr, Decr, Delete, Touch];

fn world(state: State, item: Option<&str>, programs: &[&[Req]], fault: Fault) -> World {
    let mut world = World::new(1, state, item, programs);
    world.fault = Some(fault);
    world
}

/// Every command, the key there and not, at every moment of it; then a read and an `add`.
fn each_command(fault: Fault) {
    for req in EVERY {
        for item in [None, Some("5")] {
            let programs: [&[Req]; 1] = [&[Gets, req, Add("9"), Get]];
            let make = || world(MIRRORED, item, &programs, fault);
            holds(&format!("{req:?} with {item:?}, {fault:?}"), make, Errors::None);
        }
    }
}

#[test]
fn a_strangers_flush_of_the_leader_is_not_noticed() {
    each_command(Fault::Flush(0));
}

#[test]
fn a_strangers_flush_of_the_follower_is_not_noticed() {
    each_command(Fault::Flush(1));
}

#[test]
fn an_evicted_marker_is_not_noticed() {
    each_command(Fault::Evict(0));
    each_command(Fault::Evict(1));
    each_command(Fault::Unsure(0));
}

/// What one client's command does on the emptied leader must not make another's look right.
#[test]
fn two_clients_through_a_strangers_flush() {
    let pairs: [(Req, Req); 9] = [
        (Add("7"), Replace("8")),
        (Add("7"), Get),
        (Add("7"), Incr),
        (Add("7"), Append("8")),
        (Add("7"), Add("8")),
        (Delete, Set("8")),
        (Set("8"), Incr),
        (Delete, Add("8")),
        (Gat, Touch),
    ];
    for (a, b) in pairs {
        for item in [None, Some("5")] {
            for fault in [Fault::Flush(0), Fault::Flush(1), Fault::Evict(0)] {
                let programs: [&[Req]; 2] = [&[a], &[b]];
                holds(
                    &format!("{a:?}, {b:?} with {item:?}, {fault:?}"),
                    || world(MIRRORED, item, &programs, fault),
                    Errors::None,
                );
            }
        }
    }
}

/// The other client's worker does not see the `add`, and reaches the leader over a connection of
/// its own.
#[test]
fn two_workers_through_a_strangers_flush() {
    for item in [None, Some("5")] {
        for fault in [Fault::Flush(0), Fault::Flush(1), Fault::Evict(0)] {
            for read in [Get, Gets] {
                // The key's owner is either of them.
                for programs in [[&[Add("7")][..], &[read][..]], [&[read][..], &[Add("7")][..]]] {
                    let make = || {
                        let mut world = World::new(2, MIRRORED, item, &programs);
                        world.fault = Some(fault);
                        world
                    };
                    holds(&format!("{programs:?} with {item:?}, {fault:?}"), make, Errors::None);
                }
            }
        }
    }
}

#[test]
fn pipelined_commands_keep_their_order_through_a_strangers_flush() {
    let programs: [&[Req]; 4] =
        [&[Delete, Set("1"), Incr], &[Add("1"), Incr, Delete], &[Touch, Set("1"), Append("2")], &[Incr, Add("1"), Get]];
    for program in programs {
        for item in [None, Some("5")] {
            for fault in [Fault::Flush(0), Fault::Evict(0), Fault::Reset(0)] {
                let make = || {
                    let mut world = world(MIRRORED, item, &[program], fault);
                    world.history.pipelined = true;
                    world
                };
                holds(&format!("{program:?} with {item:?}, {fault:?}"), make, Errors::None);
            }
        }
    }
}

/// The only full copy is gone: errors, but nobody waits for ever, and nobody is told what is not
/// so. Evicted, its answers are true.
#[test]
fn a_sole_leader_under_a_strangers_flush() {
    for req in EVERY {
        for item in [None, Some("5")] {
            let programs: [&[Req]; 1] = [&[req, Get]];
            let lost = || {
                let mut world = world(SOLE, item, &programs, Fault::Flush(0));
                world.in_use[1] = false;
                world
            };
            holds(&format!("{req:?} with {item:?}, flushed"), lost, Errors::Allowed);
            let evicted = || world(SOLE, item, &programs, Fault::Evict(0));
            holds(&format!("{req:?} with {item:?}, evicted"), evicted, Errors::None);
        }
    }
}

/// While the other copy is filled. With the only full one items are lost, which no history
/// explains; but nobody waits for ever.
#[test]
fn a_strangers_flush_during_a_resync() {
    let state = State::Recovering { leader: Place::Primary };
    for req in [Add("7"), Incr, Delete, Append("7"), Get] {
        for item in [None, Some("5")] {
            for fault in [Fault::Flush(0), Fault::Flush(1), Fault::Evict(0)] {
                let make = || {
                    let mut world = world(state, item, &[&[req, Get]], fault);
                    world.diverged = fault == Fault::Flush(0);
                    world
                };
                let errors = if fault == Fault::Flush(0) { Errors::Allowed } else { Errors::None };
                holds(&format!("{req:?} with {item:?}, {fault:?}"), make, errors);
            }
        }
    }
}

fn sent(world: &World) -> Vec<String> {
    world.wires[0][0].to.iter().map(|c| String::from_utf8_lossy(c).into_owned()).collect()
}

const MARKER_READ: &str = "mg __resilver__:incarnation v\r\n";

/// One marker behind all that a turn sends, and with the `add` itself: it costs no round trip.
#[test]
fn the_proof_of_an_add_is_asked_for_with_it() {
    let mut world = World::new(1, MIRRORED, None, &[&[Add("1"), Add("2"), Get]]);
    world.history.pipelined = true;
    world.step(&Choice::Send(0));
    assert_eq!(sent(&world), ["add k 0 0 1\r\n1\r\n", MARKER_READ]);
    let client = world.cores[0].handle_connect(world.now).id;
    world.input(0, client, b"add a 0 0 1\r\n1\r\nadd b 0 0 1\r\n1\r\nget c\r\n");
    assert_eq!(sent(&world)[2..].iter().filter(|c| *c == MARKER_READ).count(), 1);
}

/// What finds its key asks for no marker.
#[test]
fn a_hit_costs_no_marker() {
    let mut world = World::new(1, MIRRORED, Some("5"), &[&[Get, Gets, Gat, Set("7"), Incr, Append("1"), Delete]]);
    while let Some(choice) = world.choices().into_iter().next() {
        assert!(!sent(&world).iter().any(|c| c == MARKER_READ));
        world.step(&choice);
    }
    assert!(!world.history.unanswered());
}

/// The connection breaks between the `add` and its proof, and the very node leads the next route:
/// in the same memory the answer was right, and the command is not run again, also where this proxy
/// has flushed it since; in another one nothing has happened, and it is.
#[test]
fn an_answer_without_proof_is_right_if_its_memory_leads_again() {
    let flushed = Incarnation(0xa1).flushed(7).0;
    for (memory, told) in [(0xa1, "STORED\r\n"), (flushed, "STORED\r\n"), (0xa2 << 32, "NOT_STORED\r\n")] {
        let mut world = World::new(1, SOLE, None, &[]);
        let client = world.cores[0].handle_connect(world.now).id;
        world.input(0, client, b"add k 0 0 1\r\n1\r\n");
        world.step(&Choice::Execute { worker: 0, node: 0 });
        world.step(&Choice::Deliver { worker: 0, node: 0 });
        world.break_wires(0);
        world.step(&Choice::Break { worker: 0, node: 0 });
        world.events[0].clear();
        // Somebody else's item, by which a second run is seen.
        world.nodes[0].put(KEY, "2");
        world.nodes[0].put(crate::backend::marker::INCARNATION_KEY, &Incarnation(memory).to_string());
        let core = &mut world.cores[0];
        core.handle_command(world.now, Command::Close { pair: PAIR, void: Some(NodeId(0)), round: 50 });
        core.handle_command(
            world.now,
            Command::Allow { node: NodeId(0), incarnation: Some(Incarnation(memory)), life: Life(2) },
        );
        world.settle(0);
        world.events[0].clear();
        world.publish();
        world.run();
        assert_eq!(world.told.remove(&(0, client)).unwrap_or_default(), told);
    }
}

/// The marker is gone and nobody writes it again: what waits for it is late, as if the node did not
/// answer.
#[test]
fn an_answer_whose_marker_stays_away_is_late() {
    let mut world = World::new(1, MIRRORED, None, &[&[Add("1")]]);
    world.step(&Choice::Send(0));
    world.nodes[0].items.clear();
    for _ in 0..2 {
        world.step(&Choice::Execute { worker: 0, node: 0 });
        world.step(&Choice::Deliver { worker: 0, node: 0 });
    }
    world.events[0].clear();
    world.pass(250_001);
    world.cores[0].handle_tick(world.now);
    let late = |e: &Event| matches!(e, Event::Late { age, .. } if age.as_micros() >= 250_000);
    assert!(events(&mut world.cores[0]).iter().any(late));
}
