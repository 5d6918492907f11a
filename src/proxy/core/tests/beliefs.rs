//! What clients that have read small values are asked for at once, where others have met large ones
//! of late.

use super::super::Command;
use super::large::Alone;
use crate::proxy::client::MAX_READS;
use crate::proxy::handles::ClientId;

/// Keys that whoever begins to read is trusted with, where others have met values of 1 MB; and with
/// those that all clients together may have read beyond that.
const TRUSTED: usize = 4;
const BEGINS: usize = TRUSTED + 67;

/// The node answers all keys that it is asked for, with values of this many bytes. Returns how many
/// those are.
fn serve(world: &mut Alone, bytes: usize) -> usize {
    let sent = world.sent();
    let keys: Vec<&str> = sent.lines().flat_map(|line| line.split(' ').skip(1)).collect();
    for line in sent.lines() {
        let value = |key: &str| format!("VALUE {key} 0 {bytes}\r\n{}\r\n", "x".repeat(bytes));
        let values: String = line.split(' ').skip(1).map(value).collect();
        world.node_says((values + "END\r\n").as_bytes());
    }
    world.resume();
    keys.len()
}

/// A client that was answered many times, one small value after the other.
fn known_for_small_values(world: &mut Alone) -> ClientId {
    let client = world.client();
    for _ in 0..2 * MAX_READS {
        world.say(client, b"get small\r\n");
        assert_eq!(serve(world, 1), 1);
        world.told(client);
    }
    client
}

/// Asks in one pipeline, or in one line; returns how many keys the node is asked for in each round,
/// until all are answered.
fn rounds(world: &mut Alone, client: ClientId, line: bool, bytes: usize) -> Vec<usize> {
    let keys = (0..MAX_READS).map(|i| format!("k{i}"));
    let text = match line {
        true => format!("get {}\r\n", keys.collect::<Vec<_>>().join(" ")),
        false => keys.map(|key| format!("get {key}\r\n")).collect(),
    };
    world.say(client, text.as_bytes());
    let mut rounds = Vec::new();
    loop {
        let asked = serve(world, bytes);
        let told = world.told(client);
        world.resume();
        if asked == 0 && told.is_empty() {
            return rounds;
        }
        rounds.extend((asked > 0).then_some(asked));
    }
}

/// Four clients that had read small values asked for 256 of 1 MB each at once: a small one waited
/// four seconds behind that, and who read as fast as it could was told that it did not.
#[test]
fn who_has_read_small_values_is_asked_for_few_at_first_where_large_ones_are_known() {
    for write in [true, false] {
        for line in [true, false] {
            let mut world = Alone::new();
            let client = known_for_small_values(&mut world);
            assert_eq!(rounds(&mut world, client, false, 1), [MAX_READS as usize], "none was large");
            let other = world.client();
            if write {
                let set = format!("set large 0 0 1000000\r\n{}\r\n", "x".repeat(1_000_000));
                world.say(other, set.as_bytes());
                world.sent();
                world.node_says(b"STORED\r\n");
            } else {
                world.say(other, b"get large\r\n");
                serve(&mut world, 1_000_000);
            }
            world.told(other);
            let small = rounds(&mut world, client, line, 1);
            assert!(small[0] == BEGINS && small.len() <= 3, "{small:?}: trusted with more by each answer");
            let small = rounds(&mut world, client, line, 1);
            assert_eq!(small[0], BEGINS, "it begins again");
            let large = rounds(&mut world, client, line, 1_000_000);
            assert!(large[0] == BEGINS && large[1..].iter().all(|&asked| asked <= TRUSTED), "{large:?}");
            assert_eq!(large.iter().sum::<usize>(), MAX_READS as usize);
        }
    }
}

/// However many ask at once, what might be large is bounded for all of them together.
#[test]
fn what_many_are_asked_for_beyond_their_trust_is_bounded_and_theirs_again_when_it_is_answered() {
    const CLIENTS: usize = 40;
    let mut world = Alone::new();
    let clients: Vec<ClientId> = (0..CLIENTS).map(|_| known_for_small_values(&mut world)).collect();
    let other = world.client();
    world.say(other, b"get large\r\n");
    serve(&mut world, 1_000_000);
    let line = format!("get{}\r\n", " k".repeat(50));
    let room = |world: &Alone| world.core.memory.doubt_room() as usize;
    assert_eq!(room(&world), BEGINS - TRUSTED);
    for leaves in [false, true] {
        clients.iter().for_each(|&client| world.say(client, line.as_bytes()));
        assert_eq!(room(&world), 0);
        let asked = serve(&mut world, 1);
        assert_eq!(asked, CLIENTS * TRUSTED + BEGINS - TRUSTED);
        if leaves {
            for &client in &clients {
                world.core.handle_gone(client);
            }
        } else {
            while serve(&mut world, 1) > 0 {}
            clients.iter().for_each(|&client| assert!(world.told(client).ends_with(b"END\r\n")));
        }
        assert_eq!(room(&world), BEGINS - TRUSTED);
    }
}

/// Of large ones that nodes hold it is known before anybody meets one. Where they are rare, more is
/// asked for until somebody does.
#[test]
fn what_nodes_hold_is_believed_before_it_is_met() {
    for (rarely, begins) in [(false, BEGINS), (true, MAX_READS as usize)] {
        let mut world = Alone::new();
        let client = known_for_small_values(&mut world);
        world.core.handle_command(world.now, Command::Stored { largest: 1_000_000, rarely });
        assert_eq!(rounds(&mut world, client, true, 1)[0], begins);
        let large = rounds(&mut world, client, false, 1_000_000);
        assert!(large[0] == begins && large[1..].iter().all(|&asked| asked <= TRUSTED), "{large:?}");
        world.core.handle_command(world.now, Command::Stored { largest: 0, rarely: true });
        (1..=2).for_each(|minute| {
            world.now.us = minute * 60_000_000;
            world.core.handle_tick(world.now);
        });
        let other = known_for_small_values(&mut world);
        assert_eq!(rounds(&mut world, other, true, 1)[0], MAX_READS as usize, "gone again");
    }
}

#[test]
fn a_large_value_that_was_long_ago_holds_nobody_up() {
    let mut world = Alone::new();
    let client = known_for_small_values(&mut world);
    let other = world.client();
    world.say(other, b"get large\r\n");
    serve(&mut world, 1_000_000);
    for minute in 1..=2 {
        assert_eq!(rounds(&mut world, client, true, 1)[0], BEGINS);
        world.now.us = minute * 60_000_000;
        world.core.handle_tick(world.now);
    }
    assert_eq!(rounds(&mut world, client, true, 1), [MAX_READS as usize]);
}

/// Who is known for large values is asked for as many as ever: they are counted for what they are.
#[test]
fn who_has_read_large_values_is_asked_for_as_many_as_it_may_leave_unread() {
    let mut world = Alone::new();
    let client = world.client();
    world.say(client, b"get large\r\n");
    serve(&mut world, 1_000_000);
    world.told(client);
    assert_eq!(rounds(&mut world, client, false, 1_000_000)[0], 4);
}
