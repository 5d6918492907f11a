//! What a burst has needed is given back, and then the worker rests.

use super::super::fences::Fences;
use super::super::*;
use super::large::Alone;
use crate::proxy::handles::OpId;
use crate::proxy::link::{Conn, Flight, Unmarked, Unproven};
use crate::proxy::op::Effect;

use bytes::Bytes;

/// So many that none of the lists below is short.
const MANY: u32 = 10_000;

#[test]
fn each_list_of_a_connection_is_given_back() {
    let fill: [fn(&mut Conn); 4] = [
        |conn| {
            (0..MANY).for_each(|_| {
                conn.push(Flight::GetEnd, 0, 0);
            });
            while conn.arrive().is_some() {}
        },
        |conn| {
            (0..MANY).for_each(|i| conn.waiting.push(OpId(i), i, 0));
            while conn.waiting.first().is_some() {
                conn.waiting.pop();
            }
        },
        |conn| {
            let held = |i| Unproven { op: OpId(i), effect: Effect::Nothing, at_us: 0, gone_us: None };
            conn.unproven.extend((0..MANY).map(held));
            conn.unproven.clear();
        },
        |conn| {
            conn.unmarked.extend((0..MANY).map(|i| Unmarked { op: OpId(i), behind: 0, at_us: 0 }));
            conn.unmarked.clear();
        },
    ];
    for (list, fill) in fill.into_iter().enumerate() {
        let mut conn = Conn::new(1);
        assert!(!conn.is_stretched());
        fill(&mut conn);
        assert!(conn.is_stretched(), "list {list}");
        conn.give_back();
        assert!(!conn.is_stretched(), "list {list}");
    }
}

#[test]
fn repairs_that_were_to_begin_again_leave_nothing() {
    let (mut fences, key) = (Fences::default(), Bytes::from_static(b"k"));
    fences.put_up(&key, OpId(0), &OpTable::default());
    (0..MANY).for_each(|_| fences.retry(&key, 0));
    while fences.next_due(u64::MAX).is_some() {}
    assert!(fences.is_stretched());
    fences.give_back();
    assert!(!fences.is_stretched());
}

/// What has waited for repairs, and for memory.
#[test]
fn a_worker_gives_back_what_has_waited() {
    let mut world = Alone::new();
    let key = Bytes::from_static(b"k");
    world.core.fences.put_up(&key, OpId(0), &OpTable::default());
    (0..MANY).for_each(|_| world.core.fences.retry(&key, 0));
    while world.core.fences.next_due(u64::MAX).is_some() {}
    world.core.fences.remove(&key);
    world.core.share(Arc::new(Memory::new(2 << 20)));
    let clients: Vec<_> = (0..MANY).map(|_| world.client()).collect();
    for &client in &clients {
        world.say(client, b"set k 0 0 1000000\r\nx");
    }
    for &client in &clients {
        world.core.handle_gone(client);
    }
    assert!(!world.core.starved.is_empty() && world.core.fences.is_stretched());
    (1..=8).for_each(|tick| drop(world.tick_at(tick * 500_000)));
    assert!(world.core.starved.is_empty() && !world.core.starved.is_stretched() && !world.core.fences.is_stretched());
}

/// Very many clients ask at once. A second after the last answer nothing of it is left, and until
/// then there are ticks.
#[test]
fn a_worker_gives_back_what_a_burst_has_needed_and_rests_then() {
    const CLIENTS: u32 = 40_000;
    let mut world = Alone::new();
    let clients: Vec<_> = (0..CLIENTS).map(|_| world.client()).collect();
    for second in 1..=3 {
        clients.iter().for_each(|&client| world.say(client, b"get k\r\n"));
        let lines = world.sent().lines().count();
        world.node_says("END\r\n".repeat(lines).as_bytes());
        let mut told = 0;
        while let Some(client) = world.core.poll_dirty_client() {
            told += u32::from(world.told(client) == b"END\r\n");
        }
        while world.core.poll_dirty_conn().is_some() {}
        assert_eq!((told, world.core.op_count()), (CLIENTS, 0));
        assert!(world.core.outbox.is_stretched() && world.core.spare.is_much() && world.core.ops.is_wide());
        let begun_us = world.now.us;
        let mut us = begun_us;
        while !world.core.is_quiet() {
            us += 25_000;
            assert!(us <= begun_us + 1_100_000, "round {second}: it never rests");
            world.tick_at(us);
        }
        assert!(!world.core.is_stretched());
        assert!(us > begun_us + 900_000, "not with each of the bursts that come in a second: {us}");
    }
    for &client in &clients {
        world.core.handle_gone(client);
    }
    assert_eq!((world.core.client_count(), world.core.client_ids().len()), (0, 0));
}
