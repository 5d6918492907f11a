//! Clients of the binary protocol: what is asked of nodes in the meta protocol for them is as safe
//! as what is asked in the classic one, at every moment and with every fault; and keys that text
//! cannot carry.

use crate::ids::Place;
use crate::pair::State;
use crate::protocol::key::wire_form;
use crate::proxy::handles::ClientId;

use super::explore::{Errors, holds};
use super::history::Req::{self, *};
use super::large::Alone;
use super::repair::diverged;
use super::spoken::{Spoken, packet};
use super::world::{Choice, Fault, KEY, World};

const MIRRORED: State = State::Mirrored;

/// What the meta protocol is spoken for.
const WRITES: [Req; 12] = [
    Gat,
    Set("7"),
    Add("7"),
    Replace("7"),
    Append("7"),
    Prepend("7"),
    Cas("7"),
    IncrFrom(3),
    Decr,
    Delete,
    DeleteCas,
    Touch,
];

fn in_binary(mut world: World) -> World {
    world.history.spoken = Spoken::Binary;
    world
}

fn world(state: State, item: Option<&str>, programs: &[&[Req]], fault: Option<Fault>) -> World {
    let mut world = in_binary(World::new(1, state, item, programs));
    world.fault = fault;
    world
}

fn each_command(fault: Fault) {
    for req in WRITES {
        for item in [None, Some("5")] {
            let programs: [&[Req]; 1] = [&[Gets, req, Get]];
            let make = || world(MIRRORED, item, &programs, Some(fault));
            holds(&format!("{req:?} with {item:?}, {fault:?}"), make, Errors::None);
        }
    }
}

#[test]
fn a_leader_that_fails_is_not_noticed() {
    each_command(Fault::Kill(0));
    each_command(Fault::Hang(0));
}

#[test]
fn a_follower_that_fails_is_not_noticed() {
    each_command(Fault::Kill(1));
    each_command(Fault::Reset(1));
}

/// A counter that begins on an emptied leader would go on from its beginning.
#[test]
fn a_strangers_flush_of_the_leader_is_not_noticed() {
    each_command(Fault::Flush(0));
    for req in [IncrFrom(3), Add("7")] {
        let programs: [&[Req]; 2] = [&[req, Get], &[IncrFrom(3), Get]];
        let make = || world(MIRRORED, Some("5"), &programs, Some(Fault::Flush(0)));
        holds(&format!("{req:?} beside a counter"), make, Errors::None);
    }
}

/// A token that came with a store is one for `cas`, as memcached's is; it is worth nothing under
/// another leader.
#[test]
fn a_store_tells_a_token() {
    for write in [Set("7"), Append("7"), IncrFrom(3)] {
        for then in [Cas("8"), DeleteCas] {
            let programs: [&[Req]; 1] = [&[write, then, Get]];
            let make = || world(MIRRORED, Some("5"), &programs, Some(Fault::Kill(0)));
            holds(&format!("{write:?} {then:?}"), make, Errors::None);
            let mut calm = world(MIRRORED, Some("5"), &programs, None);
            while let Some(choice) = calm.choices().into_iter().next() {
                calm.step(&choice);
            }
            let stored = calm.nodes[0].items.get(KEY.as_bytes()).map(|item| item.value.clone());
            assert_eq!(stored, (then == Cas("8")).then(|| b"8".to_vec()), "{write:?} {then:?}");
        }
    }
}

#[test]
fn commands_during_a_resync_end_in_equal_copies() {
    for req in WRITES {
        for item in [None, Some("5")] {
            let programs: [&[Req]; 1] = [&[Gets, req]];
            let make = || world(State::Recovering { leader: Place::Primary }, item, &programs, None);
            holds(&format!("{req:?} with {item:?}"), make, Errors::None);
        }
    }
}

#[test]
fn a_difference_is_repaired_before_the_client_is_answered() {
    // An `add` changes nothing if there is an item.
    for req in WRITES.into_iter().filter(|req| *req != Add("7")) {
        // An append or a touch agrees whatever the copies hold.
        let blind = matches!(req, Gat | Touch | Append(_) | Prepend(_));
        for follower in [None, Some("8"), Some("2")].into_iter().take(if blind { 1 } else { 3 }) {
            let programs: [&[Req]; 1] = [&[Gets, req, Get]];
            holds(&format!("{req:?}"), || in_binary(diverged(&programs, follower, None)), Errors::None);
        }
    }
}

/// Nobody knows whether the first number was stored or counted, and what the follower holds may
/// have other client flags and another expiry: the follower gets the leader's item.
#[test]
fn a_counter_that_comes_to_its_first_number_keeps_flags_and_expiry() {
    let mut world = world(MIRRORED, Some("2"), &[&[IncrFrom(3)]], None);
    for node in &mut world.nodes {
        let item = node.items.get_mut(KEY.as_bytes()).unwrap();
        (item.flags, item.exptime) = (9, 500);
    }
    // The follower's item is older, and a tick behind.
    world.nodes[1].items.remove(KEY.as_bytes());
    while let Some(choice) = world.choices().into_iter().next() {
        world.step(&choice);
    }
    let held = world.nodes.each_ref().map(|node| node.items.get(KEY.as_bytes()).cloned().unwrap());
    assert_eq!((&held[0].value[..], held[0].flags, held[0].exptime), (&b"3"[..], 9, 500));
    assert_eq!((&held[1].value, held[1].flags), (&held[0].value, 9));
}

struct Talk {
    world: World,
    client: ClientId,
}

impl Talk {
    fn new() -> Talk {
        let mut world = in_binary(World::new(1, MIRRORED, Some("5"), &[]));
        let client = world.cores[0].handle_connect(world.now).id;
        Talk { world, client }
    }

    fn ask(&mut self, bytes: &[u8]) {
        self.world.input(0, self.client, bytes);
    }

    fn on_the_way(&self, node: usize) -> Vec<String> {
        self.world.wires[0][node].to.iter().map(|c| String::from_utf8_lossy(c).into_owned()).collect()
    }

    fn hear(&mut self) -> String {
        self.world.run();
        self.world.told.remove(&(0, self.client)).unwrap_or_default()
    }
}

/// A blank, a line's end and a command behind it: all of it is a key.
pub(super) const NASTY: &[u8] = b"k 0 0 1\r\nflush_all\r\n";
pub(super) const CODED: &str = "ayAwIDAgMQ0KZmx1c2hfYWxsDQo=";

#[test]
fn a_key_that_text_cannot_carry_reaches_both_nodes_in_base64() {
    assert_eq!(wire_form(NASTY), Some(true));
    let set = [0; 8];
    let count = [&1_u64.to_be_bytes()[..], &7_u64.to_be_bytes(), &0_u32.to_be_bytes()].concat();
    for (request, leader, follower) in [
        (packet(0x01, &set, NASTY, b"v", 0), "ms KEY 1 b c\r\nv\r\n", Some("ms KEY 1 b\r\nv\r\n")),
        (packet(0x02, &set, NASTY, b"v", 0), "ms KEY 1 b ME c\r\nv\r\n", Some("ms KEY 1 b\r\nv\r\n")),
        (packet(0x00, b"", NASTY, b"", 0), "mg KEY b v f c\r\n", None),
        (packet(0x1d, &[0, 0, 0, 5], NASTY, b"", 0), "mg KEY b v f c T5\r\n", None),
        (packet(0x04, b"", NASTY, b"", 0), "md KEY b\r\n", Some("md KEY b\r\n")),
        (packet(0x0e, b"", NASTY, b"v", 0), "ms KEY 1 b MA c\r\nv\r\n", None),
        (packet(0x05, &count, NASTY, b"", 0), "ma KEY b v c D1 N0 J7 t\r\n", None),
    ] {
        let mut talk = Talk::new();
        talk.ask(&request);
        assert_eq!(talk.on_the_way(0)[0], leader.replace("KEY", CODED));
        for _ in 0..2 {
            if !talk.world.wires[0][0].to.is_empty() {
                talk.world.step(&Choice::Execute { worker: 0, node: 0 });
                talk.world.step(&Choice::Deliver { worker: 0, node: 0 });
            }
        }
        if let Some(follower) = follower {
            assert_eq!(talk.on_the_way(1), [follower.replace("KEY", CODED)]);
        }
        assert!(!talk.hear().is_empty());
        let names = |node: usize| talk.world.nodes[node].items.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(0), names(1), "and so does its repair");
    }
}

/// Too large for the servers: what was there before goes, under the same name.
#[test]
fn a_value_too_large_is_refused_and_the_old_one_goes() {
    let mut talk = Talk::new();
    talk.ask(&packet(0x01, &[0; 8], NASTY, b"v", 0));
    talk.hear();
    assert_eq!(talk.world.nodes[0].items.len(), 3);
    let large = vec![b'x'; 1 << 20];
    talk.ask(&packet(0x01, &[0; 8], NASTY, &large, 0));
    assert!(talk.hear().contains("Too large."));
    assert_eq!(talk.world.nodes.each_ref().map(|node| node.items.len()), [2, 2]);
    talk.ask(&packet(0x0a, b"", b"", b"", 0));
    assert!(!talk.hear().is_empty(), "and the connection goes on");
}

#[test]
fn the_proxys_own_keys_do_not_exist() {
    let mut talk = Talk::new();
    talk.ask(&packet(0x0c, b"", b"__resilver__:incarnation", b"", 0));
    assert!(talk.hear().ends_with("__resilver__:incarnation"), "a miss that names its key");
    talk.ask(&packet(0x01, &[0; 8], b"__resilver__:incarnation", b"v", 0));
    assert!(talk.hear().contains("reserved"));
    assert!(talk.on_the_way(0).is_empty());
}

/// What is quiet keeps its place: a `noop` behind it is answered when it is done.
#[test]
fn quiet_commands_are_done_in_order() {
    let mut talk = Talk::new();
    let (set, get) = (packet(0x11, &[0; 8], b"k", b"new", 0), packet(0x09, b"", b"k", b"", 0));
    let (miss, noop) = (packet(0x09, b"", b"absent", b"", 0), packet(0x0a, b"", b"", b"", 0));
    talk.ask(&[&set[..], &get, &miss, &noop].concat());
    let told = talk.hear();
    let (value, end) = (told.find("new").unwrap(), told.rfind("opaq").unwrap());
    assert!(value < end && told.matches("opaq").count() == 2, "{told:?}");
}

/// What is no protocol of memcached's is answered and closed at once, whatever comes behind.
#[test]
fn a_stranger_is_closed_at_once() {
    for (first, answer) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..], &b"\x15\x03"[..]),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"HTTP/1.1 400 "),
        (b"*1\r\n$4\r\nPING\r\n", b"-ERR "),
    ] {
        let mut talk = Talk::new();
        talk.ask(first);
        assert!(talk.hear().as_bytes().starts_with(answer));
        assert!(talk.world.cores[0].clients.get(talk.client).is_none(), "closed");
    }
    let mut talk = Talk::new();
    talk.ask(b"GET key\r\nversion\r\n");
    assert!(talk.hear().starts_with("ERROR\r\nVERSION "), "a client that shouts is none");
}

/// A network may bring it byte by byte: what is spoken is known as soon as it can be, and for good.
#[test]
fn what_a_client_speaks_is_known_however_it_comes() {
    for (said, answer) in [
        (&b"*1\r\n$4\r\nPING\r\n"[..], &b"-ERR"[..]),
        (b"*\r\n", b"ERROR\r\n"),
        (b"\x16\x03\x01", b"\x15\x03"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
        (&packet(0x0b, b"", b"", b"", 0), b"\x81\x0b"),
    ] {
        for operator in [false, true] {
            for piece in [usize::MAX, 10, 1] {
                let mut world = Alone::new();
                let id = if operator { world.core.handle_operator(world.now).id } else { world.client() };
                said.chunks(piece).for_each(|part| world.say(id, part));
                let (told, said) = (world.told(id), said.escape_ascii());
                let answer = if operator && answer == b"ERROR\r\n" { b"ERROR Too many".as_slice() } else { answer };
                let shown = told.escape_ascii();
                assert!(told.starts_with(answer), "{said} by {piece}, operator: {operator}: {shown}");
            }
        }
    }
}
