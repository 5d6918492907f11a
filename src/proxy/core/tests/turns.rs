//! One client's turn ends, whatever it has sent: others have theirs before it goes on.

use super::super::*;
use super::large::Alone;
use super::shell::client_says;
use crate::ids::PairId;
use crate::pair::Reason;
use crate::protocol::request::{Admin, Request, Style};
use crate::proxy::client::TURN;
use crate::proxy::route::Route;

/// Turns that a client takes for what it sends in one piece, and the most that is begun in one of
/// them.
fn turns(world: &mut Alone, text: &[u8]) -> (usize, usize) {
    let client = world.client();
    world.core.next_turn();
    let mut begun = world.core.op_count();
    client_says(&mut world.core, world.now, client, text);
    let (mut turns, mut most) = (0, 0);
    loop {
        turns += 1;
        most = most.max(world.core.op_count() - begun);
        begun = world.core.op_count();
        let goes_on = world.core.next_turn();
        if goes_on == 0 {
            return (turns, most);
        }
        assert_eq!((goes_on, world.core.poll_resumable()), (1, Some(client)));
        world.core.handle_resume(world.now, client);
    }
}

#[test]
fn a_flood_without_replies_is_begun_in_turns() {
    let mut world = Alone::new();
    let flood: String = (0..2_000).map(|i| format!("set {i} 0 0 1 noreply\r\nx\r\n")).collect();
    let (turns, most) = turns(&mut world, flood.as_bytes());
    assert_eq!((turns, world.core.op_count()), (2_000usize.div_ceil(TURN as usize), 2_000));
    assert!(most <= TURN as usize, "{most} in one turn");
}

/// A line of 5 MB: in pieces, of which each turn begins as much as of anything else; the memory
/// that was asked for it is given back, and what stands behind it has its answer.
#[test]
fn a_get_of_very_many_keys_is_begun_in_turns() {
    let mut world = Alone::new();
    world.core.handle_command(world.now, Command::Open { pair: PairId(0), route: Route::Dark(Reason::Refused) });
    let client = world.client();
    let keys: String = (0..50_000).map(|i| format!(" {i:0>104}")).collect();
    let long = format!(" {}", "x".repeat(251));
    for (bad, said, least) in [
        ("", "SERVER_ERROR no copy of this key is reachable", 50_000 / TURN as usize),
        (long.as_str(), "CLIENT_ERROR bad command line format", 10),
    ] {
        let line = format!("get{bad}{keys}\r\nversion\r\n");
        // In pieces: nothing begins before the end of the line.
        for piece in line.as_bytes().chunks(100_000) {
            client_says(&mut world.core, world.now, client, piece);
        }
        let mut turns = 0;
        while world.core.next_turn() > 0 {
            turns += 1;
            assert_eq!(world.core.poll_resumable(), Some(client));
            world.core.handle_resume(world.now, client);
        }
        assert!(turns >= least, "{turns} turns");
        let told = String::from_utf8(world.told(client)).unwrap();
        assert!(told.starts_with(said) && told.lines().count() == 2, "{told}");
        assert!(told.ends_with(&format!("VERSION {}\r\n", crate::proxy::VERSION)), "{told}");
        assert_eq!(world.core.memory_used(), 0);
    }
}

#[test]
fn large_items_are_begun_in_turns() {
    let mut world = Alone::new();
    let set = [b"set k 0 0 200000\r\n".to_vec(), vec![b'x'; 200_000], b"\r\n".to_vec()].concat();
    let (turns, most) = turns(&mut world, &set.repeat(12));
    assert!(turns >= 4 && most <= 3, "{turns} turns, {most} in one");
    assert_eq!(world.core.op_count(), 12);
}

#[test]
fn what_is_answered_at_once_is_answered_in_turns() {
    let mut world = Alone::new();
    world.core.handle_command(world.now, Command::Open { pair: PairId(0), route: Route::Dark(Reason::Refused) });
    let keys: String = (0..10_000).map(|i| format!(" {i}")).collect();
    for (what, text) in [("errors", "x\r\n".repeat(10_000)), ("a dark pair", format!("get{keys}\r\n"))] {
        let (turns, _) = turns(&mut world, text.as_bytes());
        assert!(turns >= 10_000 / TURN as usize, "{what}: {turns} turns");
    }
}

/// At the end nobody has another turn.
#[test]
fn the_last_turn_ends_with_the_input() {
    let mut world = Alone::new();
    world.core.begin_last_turn();
    let flood: String = (0..2_000).map(|i| format!("set {i} 0 0 1 noreply\r\nx\r\n")).collect();
    assert_eq!(turns(&mut world, flood.as_bytes()), (1, 2_000));
}

/// A busy worker answers more than any log takes.
#[test]
fn vv_logs_so_many_requests_a_second() {
    let mut world = Alone::new();
    let (request, style) = (Request::Admin(Admin::Version), Style::Classic { noreply: false });
    for second in [1_000_000, 2_000_000] {
        world.core.now.us = second;
        (0..5_000).for_each(|_| world.core.trace_request(Occupant(1), &request, style, 9));
        assert_eq!(world.core.traces.counts(), (1_000, 4_000));
    }
}
