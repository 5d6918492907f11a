//! Values that clients are sending are counted before they come, and wait where there is no room
//! for them.

use super::super::*;
use super::large::Alone;
use super::shell::client_says;
use crate::proxy::client::Ended;
use crate::proxy::handles::ClientId;

const LIMIT: usize = 4 << 20;
const VALUE: usize = 1_000_000;

/// As long as for a pair's next route.
const PATIENCE_US: u64 = 2_250_000;

fn world() -> Alone {
    let mut world = Alone::new();
    world.core.share(Arc::new(Memory::new(LIMIT)));
    world
}

fn begin(world: &mut Alone, key: &str) -> ClientId {
    let client = world.client();
    world.say(client, format!("set {key} 0 0 {VALUE}\r\nx").as_bytes());
    client
}

/// What a client sends more of its value, behind what it has sent before.
fn send(world: &mut Alone, client: ClientId, bytes: usize, end: &str) {
    assert_eq!(world.core.reading(client), Reading::GoesOn, "nothing is read from one that waits");
    let more = [&vec![b'x'; bytes][..], end.as_bytes()].concat();
    client_says(&mut world.core, world.now, client, &more);
}

fn waits(world: &mut Alone, client: ClientId) -> bool {
    world.core.is_stalled(client)
}

fn tick(world: &mut Alone, us: u64) {
    world.tick_at(us);
    world.resume();
}

#[test]
fn a_value_that_finds_no_memory_waits_for_it_and_is_taken_then() {
    let mut world = world();
    let first = [begin(&mut world, "a"), begin(&mut world, "b")];
    assert!(world.core.memory_used() >= 2 * VALUE, "they are counted before they have come");
    let late = [begin(&mut world, "c"), begin(&mut world, "d")];
    assert_eq!(late.map(|client| waits(&mut world, client)), [true; 2]);
    assert!(world.core.memory_used() < 2 * VALUE + 10_000 && !world.core.is_quiet());
    tick(&mut world, 10_000);
    assert_eq!(late.map(|client| waits(&mut world, client)), [true; 2], "nothing has changed");
    // A small one needs none.
    let small = world.client();
    world.say(small, b"set s 0 0 1\r\nx\r\n");
    assert!(world.sent().starts_with("set s 0 0 1\r\n"));
    send(&mut world, first[0], VALUE - 1, "\r\n");
    assert!(world.sent().starts_with("set a 0 0 1000000\r\n"));
    world.node_says(b"STORED\r\nSTORED\r\n");
    assert_eq!(world.told(first[0]), b"STORED\r\n");
    // In the order in which they came, and no new one before them.
    let new = begin(&mut world, "e");
    tick(&mut world, 20_000);
    assert_eq!([late[0], late[1], new].map(|client| waits(&mut world, client)), [false, true, true]);
    send(&mut world, late[0], VALUE - 1, "\r\n");
    assert!(world.sent().starts_with("set c 0 0 1000000\r\n"));
    world.node_says(b"STORED\r\n");
    assert_eq!(world.told(late[0]), b"STORED\r\n");
    // One that begins and goes on with nothing keeps its room until it leaves.
    world.core.handle_gone(first[1]);
    tick(&mut world, 30_000);
    assert_eq!([late[1], new].map(|client| waits(&mut world, client)), [false; 2]);
    for client in [late[1], new] {
        world.core.handle_gone(client);
    }
    assert_eq!(world.core.memory_used(), 0);
}

#[test]
fn who_finds_no_memory_in_time_is_told_and_goes_on() {
    let mut world = world();
    let holders = [begin(&mut world, "a"), begin(&mut world, "b")];
    let (set, add, quiet) = (begin(&mut world, "c"), world.client(), world.client());
    world.say(add, format!("add d 0 0 {VALUE}\r\nx").as_bytes());
    world.say(quiet, format!("set e 0 0 {VALUE} noreply\r\nx").as_bytes());
    tick(&mut world, PATIENCE_US);
    assert!([set, add, quiet].iter().all(|&client| waits(&mut world, client)));
    assert_eq!(world.sent(), "");
    tick(&mut world, PATIENCE_US + 1);
    // As where an item is too large: nobody is to read what the client believes replaced.
    assert_eq!(world.sent(), "delete c\r\ndelete e\r\n");
    assert_eq!(world.core.memory_used(), 2 * VALUE + 2 * "set a 0 0 1000000\r\n\r\n".len());
    world.node_says(b"DELETED\r\nNOT_FOUND\r\n");
    for (client, told) in [(set, true), (add, true), (quiet, false)] {
        send(&mut world, client, VALUE - 1, "\r\nversion\r\n");
        let said = String::from_utf8(world.told(client)).unwrap();
        assert_eq!(said.contains("SERVER_ERROR out of memory storing object"), told, "{said}");
        assert!(
            said.contains("--client-memory") == told
                && said.ends_with(&format!("VERSION {}\r\n", crate::proxy::VERSION)),
            "{said}"
        );
    }
    // Those that were in time are not concerned.
    send(&mut world, holders[0], VALUE - 1, "\r\n");
    assert!(world.sent().starts_with("set a 0 0 1000000\r\n"));
    assert!(world.core.is_quiet() || world.core.op_count() == 1);
}

#[test]
fn a_long_line_is_counted_too() {
    let mut world = world();
    let _holders = [begin(&mut world, "a"), begin(&mut world, "b")];
    let client = world.client();
    world.say(client, format!("get {}", "k ".repeat(50_000)).as_bytes());
    assert!(waits(&mut world, client));
    tick(&mut world, PATIENCE_US + 1);
    let said = String::from_utf8(world.told(client)).unwrap();
    assert!(said.starts_with("SERVER_ERROR out of memory reading request"), "{said}");
    assert!(world.core.is_closing(client), "where its end is nobody knows");
}

/// One alone may have a value of any size that servers take. A line without an end is no value.
#[test]
fn a_line_beyond_half_of_the_memory_is_refused_at_once() {
    let mut world = world();
    let client = world.client();
    let keys = "k ".repeat(32 << 10);
    world.say(client, b"get ");
    let mut most = 0;
    let said = (0..2 * LIMIT / keys.len())
        .find_map(|_| {
            client_says(&mut world.core, world.now, client, keys.as_bytes());
            most = most.max(world.core.memory_used());
            Some(world.told(client)).filter(|said| !said.is_empty())
        })
        .expect("it ends");
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("SERVER_ERROR out of memory reading request"), "{said}");
    assert!(world.core.is_closing(client) && most <= LIMIT / 2 + 2 * keys.len(), "{most}");
}

/// While the first key's server keeps a client waiting, others may answer all the rest of its line.
#[test]
fn a_line_of_very_many_keys_goes_no_further_than_a_window_beyond_what_is_unanswered() {
    let mut world = world();
    let client = world.client();
    world.say(client, b"get first\r\n");
    world.sent();
    // The proxy's own keys are answered at once.
    world.say(client, format!("get {}\r\n", "__resilver__:x ".repeat(60_000)).as_bytes());
    (0..1000).for_each(|_| world.resume());
    assert!(waits(&mut world, client));
    assert!(world.core.clients[client].pending_keys() <= 4096 + 256);
    world.node_says(b"END\r\n");
    (0..1000).for_each(|_| world.resume());
    assert_eq!(world.told(client), b"END\r\nEND\r\n");
    assert_eq!(world.core.memory_used(), 0);
}

/// What it was amid is no matter.
#[test]
fn who_is_parted_with_amid_its_input_at_the_end_is_closed_because_of_that() {
    let mut world = world();
    let _first = [begin(&mut world, "a"), begin(&mut world, "b")];
    let waiting = begin(&mut world, "c");
    world.core.begin_last_turn();
    world.core.handle_finished(world.now, waiting);
    assert!(waits(&mut world, waiting));
    assert_eq!(world.core.handle_gone(waiting), Some(Ended::Shutdown));
}
