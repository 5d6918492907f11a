//! While memory is short or full: a get of several keys ends whatever it holds back itself, and who
//! has not taken its last large value gets no other.

use super::super::*;
use super::large::Alone;
use super::shell::take;
use crate::proxy::handles::ClientId;
use crate::proxy::link::LARGE;
use crate::proxy::memory::Share;

const LIMIT: usize = 4 << 20;

fn world() -> Alone {
    let mut world = Alone::new();
    world.core.share(Arc::new(Memory::new(LIMIT)));
    world
}

/// What others hold of the account.
fn others(world: &Alone, bytes: usize) -> Share {
    let mut share = Share::default();
    share.set(bytes, &world.core.memory);
    share
}

/// The node answers each key that it is asked for, with a value of this many bytes, until nothing
/// more comes. Returns how many keys it was asked for, and the most of them at once.
fn serve(world: &mut Alone, bytes: usize) -> (usize, usize) {
    let (mut asked, mut most) = (0, 0);
    loop {
        world.resume();
        let sent = world.sent();
        if sent.is_empty() {
            return (asked, most);
        }
        let mut at_once = 0;
        for line in sent.lines() {
            let keys = line.split(' ').skip(1 + usize::from(line.starts_with("gat")));
            let value = |key: &str| format!("VALUE {key} 0 {bytes}\r\n{}\r\n", "x".repeat(bytes));
            let values: Vec<String> = keys.map(value).collect();
            at_once += values.len();
            world.node_says((values.concat() + "END\r\n").as_bytes());
        }
        asked += at_once;
        most = most.max(at_once);
    }
}

/// Its own values, which it holds back until the last has come, are nothing that its client could
/// take: no answer and no free socket would ever have gone on with it.
#[test]
fn a_get_of_several_keys_ends_while_memory_is_short_or_full() {
    for used in [LIMIT / 2 + 1, LIMIT + 1] {
        for largest in [0, 1000, LARGE, 1 << 20] {
            for (verb, keys, bytes) in [
                ("get", 2, 1000),
                ("gets", 100, 1000),
                ("get", 256, 10),
                ("gat 0", 2, 1000),
                ("gat 0", 100, 1000),
                ("get", 2, LARGE as usize),
                ("get", 3, 1_000_000),
                ("get", 300, 1000),
            ] {
                let mut world = world();
                let _others = others(&world, used);
                world.core.has_met(largest);
                let client = world.client();
                let names: String = (0..keys).map(|i| format!(" k{i}")).collect();
                world.say(client, format!("{verb}{names}\r\n").as_bytes());
                let (mut asked, mut told) = (0, Vec::new());
                loop {
                    let (more, most) = serve(&mut world, bytes);
                    assert!(most <= 1 || largest < LARGE || bytes < LARGE as usize, "{most} large ones at once");
                    let taken = world.told(client);
                    if more == 0 && taken.is_empty() {
                        break;
                    }
                    asked += more;
                    told.extend(taken);
                }
                let case = format!("{verb} of {keys} keys, {bytes} bytes, {largest}, {used}");
                assert_eq!(asked, keys, "{case}");
                let told = String::from_utf8(told).unwrap();
                assert!(told.ends_with("x\r\nEND\r\n") && told.matches("VALUE").count() == keys, "{case}");
                assert!(world.core.is_quiet() && !world.core.is_stalled(client), "{case}");
            }
        }
    }
}

/// A node's answer to `get`.
fn value(key: &str) -> Vec<u8> {
    format!("VALUE {key} 0 1000000\r\n{}\r\nEND\r\n", "x".repeat(1_000_000)).into_bytes()
}

/// Over io_uring a client's queue is empty as soon as the kernel has what was in it.
fn hand_on(world: &mut Alone, client: ClientId) -> Option<Share> {
    let bytes = world.core.client_to_write(client).unwrap().unsent.map_or_else(Vec::new, take).len();
    let share = world.core.handed_on(client, bytes);
    world.core.handle_written(client);
    world.resume();
    share
}

#[test]
fn who_has_not_taken_what_was_handed_on_is_asked_for_no_other() {
    let mut world = world();
    let _others = others(&world, LIMIT / 2 + 1);
    world.core.has_met(1 << 20);
    let client = world.client();
    world.say(client, b"get a\r\nget b\r\n");
    assert_eq!(world.sent(), "get a\r\n");
    world.node_says(&value("a"));
    let share = hand_on(&mut world, client);
    assert!(share.is_some() && world.sent().is_empty() && world.core.is_stalled(client));
    drop(share);
    world.core.handle_client_writable(client);
    assert!(world.told(client).is_empty());
    assert_eq!(world.sent(), "get b\r\n", "it has taken the first");
}

#[test]
fn a_value_for_who_has_not_taken_what_was_handed_on_is_thrown_away_while_memory_is_full() {
    for taken in [false, true] {
        let mut world = world();
        let client = world.client();
        for ask in ["get a\r\n", "get b\r\n"] {
            world.say(client, ask.as_bytes());
            assert_eq!(world.sent(), ask);
        }
        world.node_says(&value("a"));
        let _share = hand_on(&mut world, client);
        let _others = others(&world, LIMIT);
        if taken {
            world.core.handle_client_writable(client);
            world.told(client);
        }
        world.node_says(&value("b"));
        let told = String::from_utf8(world.told(client)).unwrap();
        let said = "SERVER_ERROR answers that clients have not read take all of --client-memory\r\n";
        assert_eq!((told == said, told.starts_with("VALUE b ")), (!taken, taken), "{}", told.len());
    }
}

/// Others could otherwise hold two megabytes more each for a get of many.
#[test]
fn values_of_one_get_leave_as_they_come_while_memory_is_full() {
    let mut world = world();
    let _others = others(&world, LIMIT + 1);
    world.core.has_met(1 << 20);
    let client = world.client();
    world.say(client, b"get a b c\r\n");
    assert_eq!(world.sent(), "get a\r\n");
    world.node_says(&value("a"));
    world.resume();
    assert_eq!(world.sent(), "", "its client is to take the first");
    assert!(world.told(client).starts_with(b"VALUE a "));
    assert_eq!(world.sent(), "get b\r\n");
}
