//! Large values: what is late, and what is asked at once.

use std::collections::VecDeque;

use crate::ids::NodeId;
use crate::pair::Reason;
use crate::progress::FLOOR;
use crate::proxy::handles::{ClientId, ConnId};
use crate::proxy::link::LinkState;
use crate::proxy::op::Stage;

use super::super::*;
use super::shell::{client_hears, client_says, events, node_hears, node_says, resume};
use super::waits::{PATIENCE_US, TIMEOUT_US, core};

const NODE: NodeId = NodeId(0);
const ON_TIME: [bool; 0] = [];

/// A worker with one connection to one node that leads alone.
pub(super) struct Alone {
    pub(super) core: Core,
    pub(super) now: Now,
    /// Of the answer that is awaited: 1 that it is late, 2 that the longer time is over.
    told: u8,
}

impl Alone {
    pub(super) fn new() -> Alone {
        Alone { core: core(0, None), now: Now::default(), told: 0 }
    }

    pub(super) fn client(&mut self) -> ClientId {
        self.core.handle_connect(self.now).id
    }

    pub(super) fn say(&mut self, client: ClientId, text: &[u8]) {
        client_says(&mut self.core, self.now, client, text);
        self.resume();
    }

    /// What the node is sent.
    pub(super) fn sent(&mut self) -> String {
        node_hears(&mut self.core, self.now, NODE)
    }

    pub(super) fn node_says(&mut self, bytes: &[u8]) {
        node_says(&mut self.core, self.now, NODE, bytes);
    }

    /// What the tick then tells of late answers, except for what was told of them before: whether
    /// the longer time is over, too.
    pub(super) fn tick_at(&mut self, us: u64) -> Vec<bool> {
        if self.core.links[NODE].lateness == 0 {
            self.told = 0;
        }
        self.now.us = us;
        self.core.handle_tick(self.now);
        let mut news = Vec::new();
        for event in events(&mut self.core) {
            let Event::Late { age, .. } = event else { continue };
            let age = age.as_micros() as u64;
            let told = u8::from(age > TIMEOUT_US) + u8::from(age > PATIENCE_US);
            if told > self.told {
                self.told = told;
                news.push(told > 1);
            }
        }
        news
    }
}

/// A node answers in order: what is small is not late behind what is large, while that flows. When
/// the flow stops in mid-value, it is.
#[test]
fn a_node_is_late_by_what_it_does_not_move_and_not_by_how_much_is_asked() {
    let mut world = Alone::new();
    let client = world.client();
    world.say(client, b"get large\r\nget small\r\n");
    world.sent();
    world.node_says(b"VALUE large 0 4000000\r\n");
    for quarter in 1..=12 {
        assert_eq!(world.tick_at(quarter * TIMEOUT_US * 3 / 4), ON_TIME, "it flows");
        world.node_says(&vec![b'x'; FLOOR]);
    }
    let last = 12 * TIMEOUT_US * 3 / 4;
    assert_eq!(world.tick_at(last + TIMEOUT_US), ON_TIME);
    assert_eq!(world.tick_at(last + TIMEOUT_US + 1), [false], "it stopped");
    assert_eq!(world.tick_at(last + PATIENCE_US + 1), [true]);
}

#[test]
fn a_drip_is_found_as_soon_as_a_stop() {
    for bytes in ["VALUE k 0 4000000\r\n", ""] {
        let mut world = Alone::new();
        let client = world.client();
        world.say(client, b"get k\r\n");
        world.sent();
        world.node_says(bytes.as_bytes());
        let (mut told, mut at) = (Vec::new(), 0);
        while at < PATIENCE_US + 20_000 {
            at += 10_000;
            if !bytes.is_empty() {
                world.node_says(b"x");
            }
            told.extend(world.tick_at(at).into_iter().map(|patience_over| (patience_over, at)));
        }
        assert_eq!(told, [(false, TIMEOUT_US + 10_000), (true, PATIENCE_US + 10_000)], "{bytes:?}");
    }
}

/// One answer now and then is a drip as well, of a node with which everybody waits for ever.
#[test]
fn answers_that_drip_are_no_progress() {
    let mut world = Alone::new();
    let client = world.client();
    world.say(client, &b"get k\r\n".repeat(100));
    world.sent();
    world.node_says(b"VALUE k 0 1\r\nx\r\nVALUE");
    for byte in b" k 0 1\r\nx\r\nVALU" {
        world.node_says(&[*byte]);
    }
    assert_eq!(world.tick_at(TIMEOUT_US - 1), ON_TIME);
    world.node_says(b"E k 0 1\r\nx\r\n");
    assert_eq!(world.tick_at(TIMEOUT_US + 1), [false]);
    // A slow one that answers many is not hung.
    let mut world = Alone::new();
    let client = world.client();
    world.say(client, &b"get k\r\n".repeat(100));
    world.sent();
    for round in 1..=10 {
        assert_eq!(world.tick_at(round * TIMEOUT_US * 3 / 4), ON_TIME);
        world.node_says(&b"VALUE k 0 1\r\nx\r\n".repeat(9));
    }
}

/// The kernel takes what its buffers hold whether the node reads or not. That a full socket takes
/// more shows that it reads.
#[test]
fn a_write_goes_on_while_a_full_socket_takes_more_of_it() {
    let mut world = Alone::new();
    let client = world.client();
    let mut set = b"set k 0 0 4000000\r\n".to_vec();
    set.resize(set.len() + 4_000_000, b'x');
    set.extend_from_slice(b"\r\n");
    world.say(client, &set);
    let mut left = 3_000_000;
    for quarter in 1..=12 {
        world.now.us = quarter * TIMEOUT_US * 3 / 4;
        world.core.handle_stuck(world.now, ConnId::first(NODE), left);
        assert_eq!(world.tick_at(world.now.us), ON_TIME, "it is taken");
        left -= FLOOR;
    }
    let last = 12 * TIMEOUT_US * 3 / 4;
    left += FLOOR;
    world.stuck_at(last + TIMEOUT_US, left);
    assert_eq!(world.tick_at(last + TIMEOUT_US), ON_TIME);
    world.stuck_at(last + TIMEOUT_US + 1, left);
    assert_eq!(world.tick_at(last + TIMEOUT_US + 1), [false], "it is taken no more");
}

/// Small writes that the kernel of a stopped node takes one after the other are no progress.
#[test]
fn what_a_socket_with_room_takes_is_no_progress() {
    let mut world = Alone::new();
    let client = world.client();
    let mut set = b"set k 0 0 100000\r\n".to_vec();
    set.resize(set.len() + 100_000, b'x');
    set.extend_from_slice(b"\r\n");
    for round in 1..=12 {
        world.say(client, &set);
        world.sent();
        world.stuck_at(round * 20_000, 0);
        assert_eq!(world.tick_at(round * 20_000), ON_TIME);
    }
    assert_eq!(world.tick_at(TIMEOUT_US + 1), [false]);
}

/// The shells' turn for a client that had to wait.
impl Alone {
    pub(super) fn resume(&mut self) {
        resume(&mut self.core, self.now);
    }

    /// This many bytes the node's socket has not taken then.
    fn stuck_at(&mut self, us: u64, bytes: usize) {
        self.now.us = us;
        self.core.handle_stuck(self.now, ConnId::first(NODE), bytes);
    }

    /// What a client is told.
    pub(super) fn told(&mut self, client: ClientId) -> Vec<u8> {
        let told = client_hears(&mut self.core, client);
        self.resume();
        told
    }
}

fn set(key: &str, bytes: usize) -> Vec<u8> {
    format!("set {key} 0 0 {bytes}\r\n{}\r\n", "x".repeat(bytes)).into_bytes()
}

fn keys(sent: &str) -> Vec<&str> {
    let names = |line: &'_ str| !line.starts_with('x');
    sent.lines().filter(|line| names(line)).flat_map(|line| line.split(' ').nth(1)).collect()
}

/// A hundred writers of 1 MB: the node is asked for a few at a time, in their order; what is small
/// does not wait behind the others.
#[test]
fn what_a_connection_has_outstanding_is_bounded_in_bytes() {
    let mut world = Alone::new();
    let writers: Vec<ClientId> = (0..20).map(|_| world.client()).collect();
    for (i, &writer) in writers.iter().enumerate() {
        world.say(writer, &set(&format!("large{i}"), 1_000_000));
    }
    let sent = world.sent();
    assert_eq!(keys(&sent), ["large0", "large1", "large2", "large3"]);
    let small = world.client();
    world.say(small, &set("small", 10));
    world.say(small, b"get other\r\n");
    assert_eq!(keys(&world.sent()), ["small", "other"]);
    world.node_says(b"STORED\r\n");
    assert_eq!(keys(&world.sent()), ["large4"]);
    world.node_says(b"STORED\r\n".repeat(3).as_slice());
    world.node_says(b"STORED\r\nEND\r\n");
    assert_eq!(keys(&world.sent()), ["large5", "large6", "large7"]);
    assert_eq!(world.told(small), b"STORED\r\nEND\r\n");
    // When the node breaks, those that wait were never sent.
    world.core.handle_conn_down(world.now, ConnId::first(NODE), Reason::Reset);
    assert!(world.core.ops.iter().all(|op| matches!(op.stage, Stage::Parked | Stage::Unknown(_))));
    assert_eq!(world.core.ops.iter().filter(|op| op.stage == Stage::Parked).count(), 12);
}

/// memcached at its `-c` answers whatever it is asked with one line, also where nothing was asked.
#[test]
fn a_node_that_takes_no_more_connections_is_told_as_such() {
    for asked in [false, true] {
        let mut world = Alone::new();
        let client = world.client();
        world.say(client, &set("k", 5));
        world.sent();
        if !asked {
            world.node_says(b"STORED\r\n");
        }
        assert!(events(&mut world.core).iter().all(|event| !matches!(event, Event::Fault { .. })));
        world.node_says(b"ERROR Too many open connections\r\n");
        let faults = events(&mut world.core);
        let full = |event: &Event| matches!(event, Event::Fault { reason: Reason::ConnectionLimit, .. });
        assert!(faults.iter().any(full), "{asked}: {faults:?}");
    }
}

/// Two writes of a key keep their order, whichever of them is small.
#[test]
fn a_small_write_does_not_overtake_one_of_its_key() {
    let mut world = Alone::new();
    for key in ["a", "b", "c", "d", "k"] {
        let writer = world.client();
        world.say(writer, &set(key, 1 << 20));
    }
    let writer = world.client();
    world.say(writer, &set("k", 5));
    assert_eq!(keys(&world.sent()), ["a", "b", "c", "d"]);
    world.node_says(b"STORED\r\nSTORED\r\n");
    let sent = world.sent();
    assert_eq!(keys(&sent), ["k", "k"]);
    assert!(sent.starts_with("set k 0 0 1048576") && sent.ends_with("set k 0 0 5\r\nxxxxx\r\n"));
}

#[test]
fn what_is_larger_than_all_room_goes_alone() {
    let mut world = Alone::new();
    let writers = [(); 2].map(|()| world.client());
    for (writer, key) in writers.into_iter().zip(["a", "b"]) {
        world.say(writer, &set(key, 6 << 20));
    }
    assert_eq!(keys(&world.sent()), ["a"]);
    world.node_says(b"STORED\r\n");
    assert_eq!(keys(&world.sent()), ["b"]);
}

/// A client that reads large values and takes none: no more is asked for than fits its bounds, and
/// it goes on when it has taken them.
#[test]
fn a_client_that_takes_nothing_is_asked_for_little() {
    let mut world = Alone::new();
    let client = world.client();
    world.say(client, (0..256).map(|i| format!("get k{i}\r\n")).collect::<String>().as_bytes());
    let first = world.sent();
    assert_eq!(first.split_whitespace().filter(|w| w.starts_with('k')).count(), 16);
    let mut asked: VecDeque<String> =
        first.split_whitespace().filter(|w| w.starts_with('k')).map(str::to_owned).collect();
    let (mut line, mut answered) = (asked.len(), 0);
    // The first line of gets is answered as one.
    while let Some(key) = asked.pop_front() {
        line -= 1;
        let end = if line == 0 { "END\r\n" } else { "" };
        world.node_says(format!("VALUE {key} 0 1000000\r\n{}\r\n{end}", "x".repeat(1_000_000)).as_bytes());
        world.resume();
        answered += 1;
    }
    assert_eq!((world.sent().as_str(), answered), ("", 16), "nothing more while it takes none");
    let told = world.told(client);
    assert!(told.len() > 15_000_000);
    let sent = world.sent();
    assert_eq!(keys(&sent).len() + sent.matches(" k").count() - sent.lines().count(), 4, "{sent}");
    assert_eq!(world.core.memory_used(), 0, "what was taken is given back");
}

/// A value beyond the node's own `-I` is none of memcached's.
#[test]
fn an_answer_is_bounded_by_what_the_node_can_hold() {
    for (bytes, fine) in [(1 << 20, true), (2 << 20, false)] {
        let mut world = Alone::new();
        world.core.handle_command(world.now, Command::ReplyLimit { node: NODE, bytes: 1 << 20 });
        let client = world.client();
        world.say(client, b"get k\r\n");
        world.sent();
        world.node_says(format!("VALUE k 0 {bytes}\r\n").as_bytes());
        assert_eq!(world.core.link_state(ConnId::first(NODE)) == LinkState::Ready, fine, "{bytes}");
    }
}
