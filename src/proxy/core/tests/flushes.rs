//! Flushes of one pipeline that stand behind each other.

use super::super::*;
use super::large::Alone;
use super::shell::events;
use crate::protocol::outcome::Outcome;
use crate::proxy::handles::{ClientKey, SlotNumber};

/// What the control plane is asked, if anything.
fn asked(world: &mut Alone) -> Option<(ClientKey, SlotNumber, Question)> {
    events(&mut world.core).into_iter().find_map(|event| match event {
        Event::Ask { client, slot, question, .. } => Some((client, slot, question)),
        _ => None,
    })
}

fn answer(world: &mut Alone, (client, slot): (ClientKey, SlotNumber), outcome: Outcome) {
    world.core.handle_command(world.now, Command::Answer { client, slot, outcome });
    world.resume();
}

/// A round for each went on long after the client had left.
#[test]
fn flushes_that_were_received_together_are_one() {
    let mut world = Alone::new();
    let id = world.client();
    let pipeline = "flush_all\r\nflush_all noreply\r\nflush_all 0\r\nflush_all 5\r\nflush_all\r\nversion\r\n";
    world.say(id, pipeline.as_bytes());
    let (client, slot, question) = asked(&mut world).expect("a flush");
    assert_eq!(question, Question::FlushAll { delay: 0 });
    assert_eq!(asked(&mut world), None);
    answer(&mut world, (client, slot), Outcome::Own(b"SERVER_ERROR none\r\n"));
    assert_eq!(world.told(id), b"SERVER_ERROR none\r\n".repeat(2), "each with reply has one");
    // One with a delay is another matter, and what stands behind it.
    let (client, slot, question) = asked(&mut world).expect("a delayed one");
    assert_eq!(question, Question::FlushAll { delay: 5 });
    answer(&mut world, (client, slot), Outcome::Done);
    let (client, slot, question) = asked(&mut world).expect("the last one");
    assert_eq!(question, Question::FlushAll { delay: 0 });
    assert_eq!(asked(&mut world), None);
    answer(&mut world, (client, slot), Outcome::Done);
    assert_eq!(world.told(id), b"OK\r\nOK\r\nVERSION 1.6.18\r\n");
    assert!(world.core.clients[id].is_idle());
}

/// What is stored between two of them is not ended by the first.
#[test]
fn a_flush_behind_another_command_has_its_own_round() {
    let mut world = Alone::new();
    let id = world.client();
    world.say(id, b"flush_all\r\nset k 0 0 1\r\nx\r\nflush_all noreply\r\n");
    let (client, slot, _) = asked(&mut world).expect("a flush");
    assert!(world.sent().is_empty() && asked(&mut world).is_none());
    answer(&mut world, (client, slot), Outcome::Done);
    assert!(world.sent().starts_with("set k ") && asked(&mut world).is_none());
    world.node_says(b"STORED\r\n");
    world.resume();
    let (client, slot, _) = asked(&mut world).expect("the other one");
    answer(&mut world, (client, slot), Outcome::Done);
    assert_eq!(world.told(id), b"OK\r\nSTORED\r\n");
}
