//! A client was told that the key is gone; the other node holds its copy for a moment longer, and
//! leads next.

use std::cell::Cell;

use crate::ids::{Incarnation, Life, NodeId, Place, Term};
use crate::pair::State;

use super::super::*;
use super::binary::{CODED, NASTY};
use super::explore::{Errors, holds};
use super::history::Req::{self, *};
use super::spoken::{Spoken, packet};
use super::stories::Story;
use super::world::{Choice, Fault, KEY, PAIR, World};
use crate::proxy::route::{Flow, Route};

const EVERY: [Req; 13] =
    [Get, Gets, Gat, Set("7"), Add("7"), Replace("7"), Append("7"), Prepend("7"), Cas("7"), Incr, Decr, Delete, Touch];

/// Of the meta protocol.
const EVERY_META: [Req; 11] =
    [Mg, Vivify, Recache, MgTouch, MsAdd("7"), MsAppend("7"), MsCas("7"), Ma, MaMake, Md, Invalidate];

/// The first client's `get` was answered: a miss.
fn world(workers: u16, programs: &[&[Req]], fault: Fault) -> World {
    world_of(Spoken::Classic, workers, programs, fault)
}

fn world_of(spoken: Spoken, workers: u16, programs: &[&[Req]], fault: Fault) -> World {
    let mut world = World::new(workers, State::Mirrored, None, programs);
    world.history.spoken = spoken;
    // An item marked stale on one node is a miss after a fail-over.
    world.history.marked_may_go = true;
    world.unequal = true;
    world.nodes[1].put_overdue(KEY, "5");
    world.step(&Choice::Send(0));
    world.run();
    world.fault = Some(fault);
    world
}

#[test]
fn whatever_is_asked_next_finds_nothing() {
    for req in EVERY {
        for fault in [Fault::Kill(0), Fault::Hang(0), Fault::Reset(0), Fault::Kill(1)] {
            let programs: [&[Req]; 1] = [&[Get, req, Get]];
            holds(&format!("{req:?}, {fault:?}"), || world(1, &programs, fault), Errors::None);
        }
    }
}

/// The same for clients that speak the binary protocol, and of those that speak the meta protocol.
#[test]
fn whatever_is_asked_next_in_other_protocols_finds_nothing() {
    let binary = [Get, Gat, Add("7"), Replace("7"), Append("7"), Cas("7"), IncrFrom(3), Decr, Delete, DeleteCas, Touch];
    let all = binary.map(|req| (Spoken::Binary, req)).into_iter().chain(EVERY_META.map(|req| (Spoken::Classic, req)));
    for (spoken, req) in all {
        for fault in [Fault::Kill(0), Fault::Hang(0), Fault::Reset(0), Fault::Kill(1)] {
            let programs: [&[Req]; 1] = [&[Get, req, Get]];
            holds(&format!("{req:?}, {fault:?}"), || world_of(spoken, 1, &programs, fault), Errors::None);
        }
    }
}

/// A counter that may have begun anew is copied from the leader. What was read of it there is not
/// what the follower holds before that was told so, whose connection may just be down.
#[test]
fn the_leader_dies_while_a_new_counter_waits_for_the_follower() {
    for steps in 0.. {
        let programs: [&[Req]; 1] = [&[Get, IncrFrom(3), Get]];
        let over = Cell::new(false);
        let make = || {
            let mut world = world_of(Spoken::Binary, 1, &programs, Fault::Reset(1));
            world.nodes[1].items.remove(KEY.as_bytes());
            for _ in 0..steps {
                let Some(choice) = world.choices().into_iter().find(|choice| *choice != Choice::Fault) else {
                    over.set(true);
                    return world;
                };
                world.step(&choice);
            }
            world.step(&Choice::Fault);
            (world.fault, world.faulted) = (Some(Fault::Kill(0)), false);
            world
        };
        make();
        if over.get() {
            break;
        }
        holds(&format!("after {steps} steps"), make, Errors::Allowed);
    }
}

/// Also of a key that stands on no line as it is.
#[test]
fn a_key_that_text_cannot_carry_is_looked_at_too() {
    let mut world = World::new(1, State::Mirrored, None, &[]);
    world.history.spoken = Spoken::Binary;
    let client = world.cores[0].handle_connect(world.now).id;
    world.nodes[1].execute(format!("ms {CODED} 1 b T1\r\n5\r\n").as_bytes());
    assert!(world.nodes[1].items.contains_key(NASTY));
    let get = packet(0x00, b"", NASTY, b"", 0);
    let is_told_so = |world: &mut World| {
        world.input(0, client, &get);
        world.run();
        world.told.remove(&(0, client)).unwrap().ends_with("Not found")
    };
    assert!(is_told_so(&mut world), "the leader has none");
    world.fault = Some(Fault::Kill(0));
    world.step(&Choice::Fault);
    world.run();
    assert!(is_told_so(&mut world));
    assert!(!world.nodes[1].items.contains_key(NASTY));
}

/// The first `get` and what follows it are at either worker, of which one owns the key. While one
/// client's command looks, the other's must not find what is about to be deleted.
#[test]
fn whoever_asks_at_whichever_worker_finds_nothing() {
    for (a, b) in [(Get, Add("7")), (Add("7"), Get), (Incr, Set("7"))] {
        let programs: [&[Req]; 2] = [&[Get, a], &[b]];
        let make = || {
            let mut world = world(2, &programs, Fault::Kill(0));
            world.step(&Choice::Fault);
            world
        };
        holds(&format!("{programs:?}"), make, Errors::None);
    }
}

/// The only node that is left fails in the middle of it.
#[test]
fn a_look_that_is_cut_off_keeps_nobody_waiting() {
    for req in [Get, Add("7"), Incr, Delete] {
        for fault in [Fault::Reset(1), Fault::Kill(1), Fault::Evict(1)] {
            let programs: [&[Req]; 1] = [&[Get, req, Get]];
            let make = || {
                let mut world = world(1, &programs, Fault::Kill(0));
                world.step(&Choice::Fault);
                world.run();
                (world.fault, world.faulted) = (Some(fault), false);
                world
            };
            holds(&format!("{req:?}, {fault:?}"), make, Errors::Allowed);
        }
    }
}

/// The leader has none, the follower an item of this many seconds; the leader was asked, and died.
fn story(follower: &str) -> Story {
    let mut story = Story::new(State::Mirrored);
    story.world.nodes[0].items.remove(KEY.as_bytes());
    if follower.is_empty() {
        story.world.nodes[1].items.remove(KEY.as_bytes());
    } else {
        story.world.nodes[1].execute(format!("set k 0 {follower} 1\r\n5\r\n").as_bytes());
    }
    story.say("get k\r\n");
    assert_eq!(story.hear(), "END\r\n");
    story
}

fn lose_the_leader(story: &mut Story) {
    story.world.fault = Some(Fault::Kill(0));
    story.world.step(&Choice::Fault);
    story.world.run();
}

/// A `set` asks for nothing, and looks at nothing; but it does not overtake.
#[test]
fn commands_on_a_key_keep_their_order_behind_a_look() {
    let mut story = story("1");
    lose_the_leader(&mut story);
    story.say("append k 0 0 1\r\na\r\nadd k 0 0 1\r\nb\r\nset k 0 0 1\r\nc\r\nappend k 0 0 1\r\nd\r\nget k\r\n");
    assert_eq!(story.hear(), "NOT_STORED\r\nSTORED\r\nSTORED\r\nSTORED\r\nVALUE k 0 2\r\ncd\r\nEND\r\n");
    assert_eq!(story.value(1), Some(&b"cd"[..]));
}

/// Also of those that come when the time for looks is over.
#[test]
fn a_command_that_comes_late_does_not_overtake_a_look() {
    let mut story = story("1");
    lose_the_leader(&mut story);
    story.after(3_900_000);
    story.say("append k 0 0 1\r\na\r\n");
    story.after(1_200_000);
    story.say("set k 0 0 1\r\nb\r\n");
    assert_eq!(story.hear(), "NOT_STORED\r\nSTORED\r\n");
    assert_eq!(story.value(1), Some(&b"b"[..]));
    story.after(1);
    assert!(!story.world.cores[0].wary);
}

/// What has more time left than a copy can have is something else: one that the leader evicted, or
/// was written since. An item without an end has -1.
#[test]
fn what_lasts_longer_is_not_hidden() {
    for (exptime, told) in
        [("6", "END\r\n"), ("7", "VALUE k 0 1\r\n5\r\nEND\r\n"), ("0", "VALUE k 0 1\r\n5\r\nEND\r\n")]
    {
        let mut story = story(exptime);
        lose_the_leader(&mut story);
        story.say("get k\r\n");
        assert_eq!(story.hear(), told, "{exptime}");
        assert_eq!(story.value(1).is_some(), told != "END\r\n");
    }
}

/// To look at a stale item wins the right to recompute it, which is a client's.
#[test]
fn a_look_recomputes_nothing() {
    let mut story = story("100");
    story.world.nodes[1].execute(b"md k I\r\n");
    lose_the_leader(&mut story);
    story.say("mg k v\r\nmg k v\r\n");
    assert_eq!(story.hear(), "VA 1 X W\r\n5\r\nVA 1 Z X\r\n5\r\n");
}

/// A lock of two seconds, taken just after it was seen to be free, and just before: it is there,
/// whatever the leader does.
#[test]
fn what_was_written_for_a_few_seconds_is_not_hidden() {
    for (write, told) in [
        ("add k 0 2 1\r\n7\r\n", "STORED\r\n"),
        ("set k 0 10 1\r\n7\r\n", "STORED\r\n"),
        ("set k 0 0 1\r\n7\r\ntouch k 2\r\n", "STORED\r\nTOUCHED\r\n"),
        ("set k 0 0 1\r\n7\r\ngat 2 k\r\n", "STORED\r\nVALUE k 0 1\r\n7\r\nEND\r\n"),
    ] {
        let mut story = story("");
        story.after(500_000);
        story.say(write);
        assert_eq!(story.hear(), told);
        lose_the_leader(&mut story);
        story.say("add k 0 0 1\r\n8\r\nget k\r\n");
        assert_eq!(story.hear(), "NOT_STORED\r\nVALUE k 0 1\r\n7\r\nEND\r\n", "{write}");
    }
}

/// A counter begins anew where it was gone, and is made equal by a repair. The follower is lost in
/// the midst of that, and the client is answered when the loss is recorded. It comes back, is
/// filled, and leads before the time for looks is over.
#[test]
fn a_write_that_was_held_for_a_record_is_not_hidden() {
    let mut story = story("");
    story.after(500_000);
    story.say("ma k N2 J7\r\n");
    for _ in 0..2 {
        // The command, and the marker behind it.
        story.world.step(&Choice::Execute { worker: 0, node: 0 });
        story.world.step(&Choice::Deliver { worker: 0, node: 0 });
    }
    assert!(story.on_the_way(0).iter().any(|read| read.starts_with("mg k ")), "it is repaired");
    story.world.fault = Some(Fault::Reset(1));
    story.world.step(&Choice::Fault);
    assert_eq!(story.hear(), "HD\r\n");
    assert_eq!(story.world.pair.state(), State::Degraded { leader: Place::Primary });
    story.world.nodes[1].execute(b"set k 0 2 1\r\n7\r\n");
    let Route::Open(flow) = story.world.cores[0].pairs[PAIR].route.clone() else { panic!("no leader") };
    let flow = Flow { leader: NodeId(1), term: flow.term.map(Term::next), ..flow };
    let (core, now) = (&mut story.world.cores[0], story.world.now);
    let back = Command::Allow { node: NodeId(1), incarnation: Some(Incarnation(0xa1)), life: Life(2) };
    let close = Command::Close { pair: PAIR, void: Some(NodeId(0)), round: 50 };
    for command in [back, close, Command::Open { pair: PAIR, route: Route::Open(flow) }] {
        core.handle_command(now, command);
    }
    story.world.settle(0);
    story.say("add k 0 0 1\r\n8\r\nget k\r\n");
    assert_eq!(story.hear(), "NOT_STORED\r\nVALUE k 0 1\r\n7\r\nEND\r\n");
}

/// The `add` comes behind a `get` at another worker, and is answered first: the miss that is told
/// then is older than the item.
#[test]
fn a_miss_that_is_told_late_hides_no_lock() {
    let owner = crate::proxy::owner_of(KEY.as_bytes(), 2).index();
    let (mut world, other) = (World::new(2, State::Mirrored, None, &[]), 1 - owner);
    let [reader, writer] = [other, owner].map(|worker| world.cores[worker].handle_connect(Now::default()).id);
    world.input(other, reader, b"get k\r\n");
    world.step(&Choice::Execute { worker: other, node: 0 });
    world.pass(200_000);
    world.input(owner, writer, b"add k 0 2 1\r\n7\r\n");
    while !world.told.contains_key(&(owner, writer)) {
        let of_owner = |c: &Choice| !matches!(c, Choice::Deliver { worker, .. } if *worker == other);
        let choice = world.choices().into_iter().find(of_owner).unwrap();
        world.step(&choice);
    }
    world.run();
    assert_eq!(world.told.remove(&(other, reader)).unwrap(), "END\r\n");
    world.fault = Some(Fault::Kill(0));
    world.step(&Choice::Fault);
    world.run();
    world.input(other, reader, b"get k\r\n");
    world.run();
    assert_eq!(world.told.remove(&(other, reader)).unwrap(), "VALUE k 0 1\r\n7\r\nEND\r\n");
}

/// A `set` is not looked at, and is unanswered when a read looks.
#[test]
fn what_is_being_written_is_not_hidden() {
    let mut story = story("1");
    story.after(500_000);
    lose_the_leader(&mut story);
    let other = story.world.cores[0].handle_connect(story.world.now).id;
    story.say("set k 0 2 1\r\n7\r\n");
    story.world.input(0, other, b"get k\r\n");
    assert_eq!(story.on_the_way(1), ["set k 0 2 1\r\n7\r\n", "get k\r\n"]);
    assert_eq!(story.hear(), "STORED\r\n");
    assert_eq!(story.world.told.remove(&(0, other)).unwrap(), "VALUE k 0 1\r\n7\r\nEND\r\n");
}

/// One look, then none: neither for a key that the new leader was asked for, nor later.
#[test]
fn a_key_is_looked_at_once() {
    let mut story = story("1");
    lose_the_leader(&mut story);
    story.say("get k other\r\n");
    assert_eq!(story.on_the_way(1), ["mg k t c\r\n", "get other\r\n"]);
    assert_eq!(story.hear(), "END\r\n");
    story.say("get k\r\n");
    assert_eq!(story.on_the_way(1)[0], "get k\r\n");
    assert_eq!(story.hear(), "END\r\n");
    let mut story = self::story("1");
    lose_the_leader(&mut story);
    story.after(4_100_000);
    story.say("get k\r\n");
    assert_eq!(story.on_the_way(1), ["get k\r\n"]);
}

/// A leader that takes no writes deletes nothing either: it is asked once.
#[test]
fn a_leader_that_takes_no_writes_is_not_asked_for_ever() {
    let mut story = story("1");
    lose_the_leader(&mut story);
    let Route::Open(flow) = story.world.cores[0].pairs[PAIR].route.clone() else { panic!("no leader") };
    let open = Command::Open { pair: PAIR, route: Route::Open(Flow { writable: false, ..flow }) };
    story.world.cores[0].handle_command(story.world.now, open);
    story.say("get k\r\n");
    assert_eq!(story.hear(), "VALUE k 0 1\r\n5\r\nEND\r\n");
}
