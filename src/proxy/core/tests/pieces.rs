//! An answer that is told in pieces: who is gone is told of, and what nobody takes is let go.

use std::sync::Arc;

use bytes::Bytes;

use super::super::*;
use super::large::Alone;
use super::shell::events;
use crate::protocol::outcome::Outcome;
use crate::proxy::handles::{ClientKey, SlotNumber};

/// Bytes that tell when they are dropped.
struct Held(Vec<u8>, #[expect(dead_code, reason = "counts")] Arc<()>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn piece(count: &Arc<()>) -> Bytes {
    Bytes::from_owner(Held(vec![b'x'; 8192], count.clone()))
}

/// Who asks for all keys, and in which request.
fn asker(world: &mut Alone) -> (ClientKey, SlotNumber) {
    match events(&mut world.core).pop() {
        Some(Event::Ask { client, slot, question: Question::List(classes), .. }) => {
            assert_eq!(classes, "all");
            (client, slot)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pieces_are_held_until_they_are_written_and_the_next_request_waits_for_the_end() {
    let mut world = Alone::new();
    let id = world.client();
    world.say(id, b"lru_crawler metadump all\r\nversion\r\n");
    let (client, slot) = asker(&mut world);
    let held = Arc::new(());
    for _ in 0..2 {
        world.core.handle_command(world.now, Command::Part { client, bytes: piece(&held) });
    }
    assert_eq!(Arc::strong_count(&held), 3);
    assert_eq!(world.told(id), vec![b'x'; 2 * 8192]);
    assert_eq!(Arc::strong_count(&held), 1);
    world.core.handle_command(world.now, Command::Answer { client, slot, outcome: Outcome::Own(b"END\r\n") });
    world.resume();
    assert_eq!(world.told(id), b"END\r\nVERSION 1.6.18\r\n");
    assert_eq!(events(&mut world.core), []);
}

/// `printf … | nc -N` closes its half of the connection behind the last request.
#[test]
fn who_has_sent_its_last_request_is_answered_in_full() {
    let mut world = Alone::new();
    let id = world.client();
    world.say(id, b"lru_crawler metadump all\r\n");
    let (client, slot) = asker(&mut world);
    world.core.handle_finished(world.now, id);
    let held = Arc::new(());
    world.core.handle_command(world.now, Command::Part { client, bytes: piece(&held) });
    assert_eq!(world.told(id), vec![b'x'; 8192]);
    world.core.handle_command(world.now, Command::Answer { client, slot, outcome: Outcome::Own(b"END\r\n") });
    assert_eq!(world.told(id), b"END\r\n");
    assert_eq!(events(&mut world.core), []);
}

#[test]
fn the_control_plane_hears_that_a_client_is_gone() {
    let mut world = Alone::new();
    let id = world.client();
    world.say(id, b"lru_crawler metadump all\r\n");
    let (client, _) = asker(&mut world);
    let held = Arc::new(());
    world.core.handle_command(world.now, Command::Part { client, bytes: piece(&held) });
    world.core.handle_gone(id);
    assert_eq!(Arc::strong_count(&held), 1, "let go unwritten");
    // Whoever has its place now is told nothing of it.
    let next = world.client();
    world.core.handle_command(world.now, Command::Part { client, bytes: piece(&held) });
    assert_eq!(events(&mut world.core), [Event::Unwanted { worker: WorkerId(0), client }]);
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(next, id);
}
