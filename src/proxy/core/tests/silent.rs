//! `--idle-timeout` counts from when a client had what it waited for.

use std::time::Duration;

use super::super::*;
use super::large::Alone;
use super::shell::take;
use crate::proxy::handles::ClientId;

const TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT_US: u64 = 2_000_000;

fn is_closed_at(world: &mut Alone, client: ClientId, us: u64) -> bool {
    world.now.us = us;
    world.core.close_silent(world.now, TIMEOUT);
    world.core.is_closing(client)
}

#[test]
fn who_was_answered_late_has_its_time_from_then() {
    for ask in ["get k\r\n", "set k 0 0 1 noreply\r\nx\r\n"] {
        let mut world = Alone::new();
        let client = world.client();
        world.say(client, ask.as_bytes());
        world.sent();
        assert!(!is_closed_at(&mut world, client, 5 * TIMEOUT_US), "it waits");
        world.node_says(if ask.starts_with("get") { b"END\r\n" } else { b"STORED\r\n" });
        assert!(!is_closed_at(&mut world, client, 6 * TIMEOUT_US), "{ask:?}");
        world.told(client);
        assert!(is_closed_at(&mut world, client, 7 * TIMEOUT_US + 1), "{ask:?}");
    }
}

#[test]
fn who_is_about_to_take_an_answer_is_not_silent() {
    for handed_on in [false, true] {
        let mut world = Alone::new();
        let client = world.client();
        world.say(client, b"get k\r\n");
        world.sent();
        world.node_says(format!("VALUE k 0 1000000\r\n{}\r\nEND\r\n", "x".repeat(1_000_000)).as_bytes());
        let mut share = None;
        if handed_on {
            let bytes = world.core.client_to_write(client).unwrap().unsent.map_or_else(Vec::new, take).len();
            share = world.core.handed_on(client, bytes);
            assert!(share.is_some());
            world.core.handle_written(client);
        } else {
            world.core.handle_client_blocked(client);
        }
        assert!(!is_closed_at(&mut world, client, 5 * TIMEOUT_US), "it takes it");
        drop(share);
        world.core.handle_client_writable(client);
        world.told(client);
        assert!(!is_closed_at(&mut world, client, 6 * TIMEOUT_US), "it has its time from then");
        assert!(is_closed_at(&mut world, client, 7 * TIMEOUT_US + 1));
    }
}

/// Nothing is read from it meanwhile.
#[test]
fn who_waits_for_memory_is_not_silent() {
    let mut world = Alone::new();
    world.core.share(Arc::new(Memory::new(1 << 20)));
    let begin = |world: &mut Alone| {
        let client = world.client();
        world.say(client, b"set k 0 0 1000000\r\nx");
        client
    };
    let (holder, starved) = (begin(&mut world), begin(&mut world));
    assert!(world.core.is_stalled(starved) && !world.core.is_stalled(holder));
    assert!(!is_closed_at(&mut world, starved, TIMEOUT_US + 1));
    world.core.handle_gone(holder);
    world.tick_at(TIMEOUT_US + 1);
    world.resume();
    assert!(!world.core.is_stalled(starved), "there is memory");
    assert!(!is_closed_at(&mut world, starved, 2 * TIMEOUT_US), "it goes on now");
    // To the millisecond.
    assert!(is_closed_at(&mut world, starved, 2 * TIMEOUT_US + 1_001), "and did not");
}
