//! Single stories: framing in doubt, order within a connection, limits, the proxy's own keys,
//! waiting that ends.

use std::time::Duration;

use crate::ids::{AddressNumber, Incarnation, Life, NodeId, PairId, Place};
use crate::keys::{Lone, Missed, MissedBudget};
use crate::pair::{Gate, Loss, Reason, State};
use crate::protocol::expiry::{self, Offset};
use crate::proxy::handles::{ClientId, ConnId};
use crate::proxy::link::LinkState;
use crate::proxy::route::{Flow, Follower, Route};
use crate::ring::Distribution;

use super::super::*;
use super::shell::{client_hears, client_says, events, node_hears, node_says};
use super::world::{Choice, KEY, PAIR, World, alone};

pub(super) struct Story {
    pub(super) world: World,
    pub(super) client: ClientId,
}

impl Story {
    pub(super) fn new(state: State) -> Story {
        let mut world = World::new(1, state, Some("5"), &[]);
        let client = world.cores[0].handle_connect(world.now).id;
        Story { world, client }
    }

    pub(super) fn say(&mut self, text: &str) {
        self.world.input(0, self.client, text.as_bytes());
    }

    /// Runs everything; what the client was told since the last time.
    pub(super) fn hear(&mut self) -> String {
        self.world.run();
        self.world.told.remove(&(0, self.client)).unwrap_or_default()
    }

    /// Only these steps; what the client was told in them.
    pub(super) fn hear_after(&mut self, steps: &[Choice]) -> String {
        steps.iter().for_each(|step| self.world.step(step));
        self.world.told.remove(&(0, self.client)).unwrap_or_default()
    }

    /// What is on its way to a node, markers aside.
    pub(super) fn on_the_way(&self, node: usize) -> Vec<String> {
        self.world.wires[0][node].to.iter().map(|c| String::from_utf8_lossy(c).into_owned()).collect()
    }

    pub(super) fn after(&mut self, us: u64) {
        self.world.tick_after(us);
    }

    /// The node restarts, with all answers that were on their way, and that its memory is gone is
    /// heard at once.
    fn lose_the_memory_of(&mut self, node: usize) {
        self.world.wires[0][node].back.clear();
        self.world.nodes[node] = Default::default();
        self.world.break_wires(node);
        // All of it before the gate has closed: nobody is refused in between.
        let (lost, other) = (NodeId(node as u16), if node == 0 { Place::Backup } else { Place::Primary });
        self.world.lost(lost, Reason::Reset, Loss::Suspected, true);
        if matches!(self.world.pair.state(), State::Dark { .. }) {
            self.world.apply(crate::pair::Event::Undone(other));
        }
        self.world.lost(lost, Reason::MarkerLost, Loss::MemoryGone, true);
    }

    pub(super) fn value(&self, node: usize) -> Option<&[u8]> {
        self.world.nodes[node].items.get(KEY.as_bytes()).map(|i| i.value.as_slice())
    }
}

/// An answer for another key, garbage, a value without its end: nothing of that connection counts
/// any more, the other copy answers, and the node is not drained before it has closed.
#[test]
fn a_node_whose_framing_is_in_doubt_is_left_at_once() {
    for nonsense in [
        "VALUE other 0 1\r\n9\r\nEND\r\n",
        "garbage\r\n",
        "VALUE k 0 1\r\n9\r\nVALUE k 0 1\r\n9\r\nEND\r\n",
        "STORED\r\n",
    ] {
        let mut story = Story::new(State::Mirrored);
        story.say("get k\r\n");
        story.world.wires[0][0].back.push_back(nonsense.as_bytes().to_vec());
        // As where its socket takes no more, and says so when it does: that is not waited for.
        story.world.cores[0].handle_conn_blocked(ConnId::first(NodeId(0)));
        story.world.step(&Choice::Deliver { worker: 0, node: 0 });
        assert_eq!(story.world.cores[0].link_state(ConnId::first(NodeId(0))), LinkState::Discarding, "{nonsense:?}");
        assert!(story.world.wires[0][0].broken, "our half is closed, behind {nonsense:?}");
        story.world.step(&Choice::Event(0));
        story.world.step(&Choice::Event(0));
        assert!(story.world.undrained.contains(&(WorkerId(0), 0)), "{nonsense:?}");
        assert_eq!(story.hear(), "VALUE k 0 1\r\n5\r\nEND\r\n", "{nonsense:?}");
        assert_eq!(story.world.pair.state(), State::Degraded { leader: Place::Backup });
        assert!(story.world.undrained.is_empty(), "closed by the node");
    }
}

/// Out of memory in the middle of a line for several keys memcached throws answers away, of which
/// nobody knows how many: the other copy answers. (A line for one key has one answer, whatever it
/// is.)
#[test]
fn an_error_in_answer_to_a_shared_line_leaves_its_framing_in_doubt() {
    let error = "SERVER_ERROR out of memory writing get response\r\n";
    for (ask, told, state) in [
        ("get k other\r\n", "VALUE k 0 1\r\n5\r\nEND\r\n", LinkState::Discarding),
        ("get k\r\n", error, LinkState::Ready),
    ] {
        let mut story = Story::new(State::Mirrored);
        story.say(ask);
        assert_eq!(story.on_the_way(0), [ask]);
        story.world.wires[0][0].to.clear();
        story.world.wires[0][0].back.push_back(error.as_bytes().to_vec());
        story.world.step(&Choice::Deliver { worker: 0, node: 0 });
        assert_eq!(story.world.cores[0].link_state(ConnId::first(NodeId(0))), state, "{ask:?}");
        assert_eq!(story.hear(), told, "{ask:?}");
    }
}

#[test]
fn an_answer_that_nobody_asked_for_is_a_fault() {
    let mut story = Story::new(State::Mirrored);
    story.world.wires[0][1].back.push_back(b"STORED\r\n".to_vec());
    story.say("incr k 1\r\n");
    assert_eq!(story.hear(), "6\r\n");
    assert_eq!(story.world.pair.state(), State::Degraded { leader: Place::Primary });
}

/// A read behind its own write waits, and a write behind its own read; other keys go on; answers
/// keep the order.
#[test]
fn a_client_sees_its_own_commands_in_order() {
    let mut story = Story::new(State::Mirrored);
    story.say("set k 0 0 1\r\n7\r\nget other\r\nget k\r\nset k 0 0 1 noreply\r\n8\r\nget k\r\n");
    let sent = story.on_the_way(0);
    assert_eq!(sent, ["set k 0 0 1\r\n7\r\n", "get other\r\n"], "the get waits for the set");
    assert_eq!(story.hear(), "STORED\r\nEND\r\nVALUE k 0 1\r\n7\r\nEND\r\nVALUE k 0 1\r\n8\r\nEND\r\n");
    assert_eq!((story.value(0), story.value(1)), (Some(&b"8"[..]), Some(&b"8"[..])));
}

/// The client has waited for the leader by then: whoever writes to the nodes looks for these first.
#[test]
fn a_followers_part_of_a_write_is_urgent_until_it_is_written() {
    let mut story = Story::new(State::Mirrored);
    let core = &mut story.world.cores[0];
    let (leader, follower) = (NodeId(0), NodeId(1));
    let now = story.world.now;
    client_says(core, now, story.client, b"set k 0 0 1\r\n7\r\n");
    let urgent = |core: &mut Core| [leader, follower].map(|node| core.is_urgent(ConnId::first(node)));
    assert_eq!(urgent(core), [false, false]);
    assert_eq!(core.poll_urgent_conn(), None);
    assert_eq!(core.poll_dirty_conn(), Some(ConnId::first(leader)));
    assert_eq!(node_hears(core, now, leader), "set k 0 0 1\r\n7\r\n");
    node_says(core, now, leader, b"STORED\r\n");
    assert_eq!(urgent(core), [false, true]);
    // Something else for the follower does not make it wait.
    let other = core.handle_connect(now).id;
    client_says(core, now, other, b"set other 0 0 1\r\n7\r\n");
    assert_eq!(core.poll_urgent_conn(), Some(ConnId::first(follower)));
    assert_eq!(node_hears(core, now, follower), "set k 0 0 1\r\n7\r\n");
    assert_eq!(urgent(core), [false, false]);
    assert_eq!(core.poll_urgent_conn(), None);
}

#[test]
fn a_set_that_is_too_large_removes_the_old_item_on_both_nodes() {
    let mut story = Story::new(State::Mirrored);
    let value = "x".repeat(2 << 20);
    story.say(&format!("add k 0 0 {}\r\n{value}\r\n", value.len()));
    assert_eq!(story.hear(), "SERVER_ERROR object too large for cache\r\n");
    assert_eq!(story.value(1), Some(&b"5"[..]), "an add removes nothing");
    story.say(&format!("set k 0 0 {}\r\n{value}\r\nget k\r\n", value.len()));
    assert_eq!(story.hear(), "SERVER_ERROR object too large for cache\r\nEND\r\n");
    assert_eq!((story.value(0), story.value(1)), (None, None));
}

#[test]
fn the_proxys_own_keys_do_not_exist() {
    let mut story = Story::new(State::Mirrored);
    story.say("get __resilver__:incarnation\r\nget k __resilver__:incarnation\r\ndelete __resilver__:incarnation\r\n");
    story.say("set __resilver__:incarnation 0 0 1\r\nx\r\nincr __resilver__:incarnation 1 noreply\r\n");
    let refused = "CLIENT_ERROR this key is reserved for the proxy\r\n";
    assert_eq!(story.hear(), format!("END\r\nVALUE k 0 1\r\n5\r\nEND\r\n{refused}{refused}"));
}

#[test]
fn what_a_client_asked_for_is_carried_through_without_it() {
    let mut story = Story::new(State::Mirrored);
    story.say("incr k 1\r\n");
    story.world.cores[0].handle_gone(story.client);
    // Its successor in the same place is told nothing of it.
    assert_eq!(story.world.cores[0].handle_connect(Now::default()).id, story.client);
    assert_eq!(story.hear(), "");
    assert_eq!((story.value(0), story.value(1)), (Some(&b"6"[..]), Some(&b"6"[..])));
}

/// `flush_all` and `stats` begin when everything before them is answered, and nothing behind them
/// begins before they are.
#[test]
fn commands_of_the_control_plane_stand_alone() {
    let mut story = Story::new(State::Mirrored);
    story.say("incr k 1\r\nflush_all\r\nget k\r\n");
    assert_eq!((story.on_the_way(0).len(), story.world.events[0].len()), (1, 0));
    for node in [0, 1] {
        story.world.step(&Choice::Execute { worker: 0, node });
        let bytes = story.world.wires[0][node].back.pop_front().unwrap();
        let core = &mut story.world.cores[0];
        node_says(core, story.world.now, NodeId(node as u16), &bytes);
        if node == 0 {
            story.world.settle(0);
        }
    }
    let core = &mut story.world.cores[0];
    assert_eq!(core.next_turn(), 1);
    assert_eq!(core.poll_resumable(), Some(story.client));
    core.handle_resume(story.world.now, story.client);
    let events = events(core);
    let [Event::Ask { client, slot, question: Question::FlushAll { delay: 0 }, .. }] = events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(story.on_the_way(0), Vec::<String>::new(), "the get waits for the flush");
    story.world.cores[0].handle_command(
        story.world.now,
        Command::Answer { client, slot, outcome: crate::protocol::outcome::Outcome::Done },
    );
    story.world.settle(0);
    assert_eq!(story.hear(), "6\r\nOK\r\nVALUE k 0 1\r\n6\r\nEND\r\n");
}

/// A gate that does not open is an error after a while, never a hang; and the time counts from the
/// first wait.
#[test]
fn what_waits_too_long_for_a_gate_is_refused() {
    let mut story = Story::new(State::Mirrored);
    story.after(1);
    story.world.cores[0].handle_command(story.world.now, Command::Close { pair: PAIR, void: None, round: 99 });
    story.say("incr k 1\r\nget other\r\n");
    story.after(2_250_000);
    assert_eq!(story.hear(), "");
    story.after(1);
    let told = story.hear();
    assert_eq!(told.matches("SERVER_ERROR the key's nodes are changing roles").count(), 2, "{told}");
    assert_eq!(story.value(0), Some(&b"5"[..]));
}

/// A dial that takes too long does not depose the last full copy: what waited for it is tried
/// again, in order.
#[test]
fn a_slow_dial_to_the_last_copy_is_tried_again() {
    let mut story = Story::new(State::Degraded { leader: Place::Primary });
    story.world.cores[0].handle_conn_down(story.world.now, ConnId::first(NodeId(0)), Reason::Reset);
    events(&mut story.world.cores[0]);
    story.say("incr k 1\r\nincr k 2\r\n");
    // The harness connects at once; here the connection breaks down before it was checked, as if
    // the dial had taken too long.
    story.world.wires[0][0].to.clear();
    story.world.cores[0].handle_conn_down(story.world.now, ConnId::first(NodeId(0)), Reason::Timeout);
    story.world.settle(0);
    assert_eq!(story.hear(), "");
    story.after(10_000);
    assert_eq!(story.hear(), "6\r\n8\r\n");
}

/// A new connection finds no marker because it was evicted: what waits for it goes on once the
/// marker is there again.
#[test]
fn a_connection_that_finds_no_marker_asks_again() {
    for fault in [super::world::Fault::Evict(0), super::world::Fault::Unsure(0)] {
        let mut story = Story::new(State::Mirrored);
        story.world.fault = Some(fault);
        story.world.step(&Choice::Fault);
        story.world.cores[0].handle_conn_down(story.world.now, ConnId::first(NodeId(0)), Reason::Reset);
        events(&mut story.world.cores[0]);
        story.say("incr k 1\r\n");
        assert_eq!(story.hear(), "");
        story.after(10_000);
        assert_eq!(story.hear(), "6\r\n");
        assert_eq!(story.world.pair.state(), State::Mirrored);
    }
}

/// On a filling node an incr is dropped and pushed for another copy before the client is answered.
#[test]
fn a_filling_node_is_never_made_to_count() {
    let mut story = Story::new(State::Recovering { leader: Place::Backup });
    story.world.nodes[0].put(KEY, "5");
    for command in ["incr k 1\r\n", "append k 0 0 1\r\n0\r\n", "touch k 100\r\n", "gat 100 k\r\n"] {
        story.say(command);
        story.world.step(&Choice::Execute { worker: 0, node: 1 });
        story.world.step(&Choice::Deliver { worker: 0, node: 1 });
        assert_eq!(story.on_the_way(0), ["delete k\r\n"]);
        assert!(story.world.recopy.is_empty() && !story.world.told.contains_key(&(0, story.client)));
        assert!(!story.hear().is_empty());
        assert_eq!(story.world.recopy.take_batch(9), [KEY]);
        assert_eq!(story.value(0), None);
    }
    story.say("set k 0 0 1\r\n1\r\n");
    assert_eq!(story.hear(), "STORED\r\n");
    assert!(story.world.recopy.is_empty() && story.value(0) == Some(b"1"));
}

/// The closing of a gate is confirmed once everything is answered: not when the first of several is
/// stranded.
#[test]
fn a_gate_with_something_in_flight_is_not_closed() {
    let mut story = Story::new(State::Mirrored);
    story.say("set k 0 0 1\r\n7\r\n");
    story.world.step(&Choice::Execute { worker: 0, node: 0 });
    story.world.step(&Choice::Deliver { worker: 0, node: 0 });
    story.say("get other\r\n");
    assert_eq!((story.on_the_way(0).len(), story.on_the_way(1).len()), (1, 1));
    let (core, now) = (&mut story.world.cores[0], story.world.now);
    core.handle_command(now, Command::Close { pair: PAIR, void: Some(NodeId(0)), round: 50 });
    let closed = |core: &mut Core| events(core).iter().filter(|e| matches!(e, Event::Closed { round: 50, .. })).count();
    assert_eq!(closed(core), 0, "the follower has not answered");
    node_says(core, now, NodeId(1), b"STORED\r\n");
    assert_eq!(closed(core), 1);
}

/// A broken connection is told before the gate that it closes, or a hand-back would be taken for
/// one in peace.
#[test]
fn a_fault_is_told_before_the_gate_it_closes() {
    let mut story = Story::new(State::Mirrored);
    story.say("incr k 1\r\n");
    let core = &mut story.world.cores[0];
    core.handle_command(story.world.now, Command::Close { pair: PAIR, void: None, round: 50 });
    core.handle_conn_down(story.world.now, ConnId::first(NodeId(0)), Reason::Reset);
    let events = events(core);
    assert!(matches!(events[..], [Event::Fault { .. }, Event::Closed { .. }]), "{events:?}");
    assert_eq!(story.world.pair.gate(), Gate::Open);
}

/// Keys of one get on several nodes: the values come in the order of the request, whichever node is
/// first.
#[test]
fn a_get_of_many_keys_keeps_their_order() {
    let spec = |name: &str| name.parse().unwrap();
    let topology = Arc::new(Topology::new(&[spec("a:1"), spec("b:1"), spec("c:1")], &[], Distribution::Modula));
    let settings = alone((1, 1), 1 << 20);
    let mut core = Core::new(settings, topology.clone(), Arc::new(WorkerStats::new(3)), Arc::default());
    for pair in topology.pairs() {
        let flow = Flow {
            leader: topology.nodes_of(pair).0,
            follower: Follower::None,
            term: None,
            writable: true,
            missed: unused(),
            lone: lone(),
            written: None,
        };
        core.handle_command(Now::default(), Command::Open { pair, route: Route::Open(flow) });
    }
    let now = Now::default();
    let client = core.handle_connect(now).id;
    client_says(&mut core, now, client, b"get k1 k2 k3 k4 k5 k6\r\n");
    let nodes: Vec<NodeId> = topology.nodes().collect();
    for &node in nodes.iter().rev() {
        core.handle_conn_up(now, ConnId::first(node));
        let sent = node_hears(&mut core, now, node);
        assert!(!sent.is_empty(), "the keys are on every node");
        assert_eq!(sent.lines().count(), 1, "one line asks for all keys of a node");
        for key in sent.split_whitespace().skip(1).filter(|k| *k != "k6") {
            node_says(&mut core, now, node, format!("VALUE {key} 0 2\r\n{key}\r\n").as_bytes());
        }
        if !sent.contains("k6") {
            node_says(&mut core, now, node, b"END\r\n");
        }
    }
    let told = String::from_utf8(client_hears(&mut core, client)).unwrap();
    assert_eq!(told, "", "k6 is unanswered");
    let k6 = topology.nodes_of(topology.pair_of(b"k6")).0;
    node_says(&mut core, now, k6, b"END\r\n");
    let told = String::from_utf8(client_hears(&mut core, client)).unwrap();
    let value = |key: &str| format!("VALUE {key} 0 2\r\n{key}\r\n");
    assert_eq!(told, ["k1", "k2", "k3", "k4", "k5"].map(value).concat() + "END\r\n");
}

/// A node is deposed for one of its pairs only, with a line under way that asks for keys of two:
/// one's answer counts for nothing, the other's counts, and the node has drained when the line has
/// ended.
#[test]
fn a_shared_line_may_count_for_some_of_its_keys() {
    let spec = |name: &str| name.parse().unwrap();
    let topology = Arc::new(Topology::new(&[spec("a:1")], &[spec("b:1"), spec("c:1")], Distribution::Modula));
    let keys: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
    let of = |pair: u32| keys.iter().filter(|key| topology.pair_of(key.as_bytes()).0 == pair).collect::<Vec<_>>();
    let (void, live) = (&of(0)[..2], &of(1)[..3]);
    let primary = NodeId(0);
    let value = |key: &str| format!("VALUE {key} 0 {}\r\n{key}\r\n", key.len());
    // The deposed pair's keys are there or not, and so is one of the other's.
    for (voids_hit, missing) in [(true, None), (false, None), (true, Some(1)), (false, Some(2)), (true, Some(0))] {
        let settings = alone((1, 1), 1 << 20);
        let mut core = Core::new(settings, topology.clone(), Arc::new(WorkerStats::new(3)), Arc::default());
        for pair in topology.pairs() {
            let follower = Follower::InSync(topology.nodes_of(pair).1.unwrap());
            let flow = Flow {
                leader: primary,
                follower,
                term: None,
                writable: true,
                missed: unused(),
                lone: lone(),
                written: None,
            };
            core.handle_command(Now::default(), Command::Open { pair, route: Route::Open(flow) });
        }
        let now = Now::default();
        core.handle_conn_up(now, ConnId::first(primary));
        let clients = [core.handle_connect(now).id, core.handle_connect(now).id];
        client_says(&mut core, now, clients[0], format!("get {} {}\r\n", void[0], void[1]).as_bytes());
        client_says(&mut core, now, clients[1], format!("get {} {} {}\r\n", live[0], live[1], live[2]).as_bytes());
        let line = format!("get {} {} {} {} {}\r\n", void[0], void[1], live[0], live[1], live[2]);
        assert_eq!(node_hears(&mut core, now, primary), line);
        core.handle_command(now, Command::Close { pair: PairId(0), void: Some(primary), round: 1 });
        let undrained = |core: &mut Core| {
            events(core).iter().fold(None, |_, event| match event {
                Event::Undrained { .. } => Some(true),
                Event::Drained { .. } => Some(false),
                _ => None,
            })
        };
        assert!(events(&mut core).iter().any(|event| matches!(event, Event::Undrained { .. })));
        let there = live
            .iter()
            .enumerate()
            .filter(|(at, _)| Some(*at) != missing)
            .map(|(_, key)| value(key))
            .collect::<String>();
        let voids = if voids_hit { void.iter().map(|key| value(key)).collect() } else { String::new() };
        // Byte by byte: nothing is told before it is sure.
        for byte in format!("{voids}{there}END\r\n").bytes() {
            node_says(&mut core, now, primary, &[byte]);
        }
        let told = String::from_utf8(client_hears(&mut core, clients[1])).unwrap();
        assert_eq!(told, there + "END\r\n", "{voids_hit} {missing:?}");
        assert_eq!(client_hears(&mut core, clients[0]), b"", "its pair has no route");
        assert_eq!((undrained(&mut core), core.flights(ConnId::first(primary))), (Some(false), 0));
        assert_eq!(core.link_state(ConnId::first(primary)), LinkState::Ready);
    }
}

/// A leader executes a command, the resync copies what came of it, and then the leader's memory is
/// gone before it is answered: the node that was being filled leads, and has it already.
#[test]
fn what_was_copied_before_its_leader_died_is_not_run_again() {
    for (say, kept) in [("incr k 1\r\n", "6"), ("append k 0 0 1\r\n7\r\n", "57"), ("add k 0 0 1\r\n7\r\n", "7")] {
        let mut story = Story::new(State::Recovering { leader: Place::Backup });
        if say.starts_with("add") {
            story.world.nodes[1].items.remove(KEY.as_bytes());
        }
        story.say(say);
        story.world.step(&Choice::Execute { worker: 0, node: 1 });
        for _ in ["read", "add", "verify"] {
            story.world.step(&Choice::Copy);
        }
        assert_eq!(story.value(0), Some(kept.as_bytes()), "copied");
        story.lose_the_memory_of(1);
        let told = story.hear();
        assert!(told.contains("may or may not have taken effect"), "{say:?}: {told:?}");
        assert_eq!(story.value(0), Some(kept.as_bytes()), "{say:?}");
    }
    // Told EXISTS, the client would take its own value for another's.
    let mut story = Story::new(State::Recovering { leader: Place::Backup });
    story.say("gets k\r\n");
    let told = story.hear_after(&[Choice::Execute { worker: 0, node: 1 }, Choice::Deliver { worker: 0, node: 1 }]);
    let token = told.split_whitespace().nth(4).unwrap().to_owned();
    story.say(&format!("cas k 0 0 1 {token}\r\n8\r\n"));
    story.world.step(&Choice::Execute { worker: 0, node: 1 });
    (0..3).for_each(|_| story.world.step(&Choice::Copy));
    story.lose_the_memory_of(1);
    let told = story.hear();
    assert!(told.contains("may or may not have taken effect"), "{told:?}");
    // What can be repeated is.
    let mut story = Story::new(State::Recovering { leader: Place::Backup });
    story.say("set k 0 0 1\r\n9\r\n");
    story.world.step(&Choice::Execute { worker: 0, node: 1 });
    story.lose_the_memory_of(1);
    assert_eq!((story.hear().as_str(), story.value(0)), ("STORED\r\n", Some(&b"9"[..])));
}

/// A sole leader's connection breaks with an incr on it, and the same node leads the next route: it
/// may have counted already.
#[test]
fn what_a_node_may_have_executed_is_never_sent_to_it_again() {
    let mut story = Story::new(State::Degraded { leader: Place::Primary });
    story.say("incr k 1\r\n");
    story.world.step(&Choice::Execute { worker: 0, node: 0 });
    story.world.break_wires(0);
    story.world.step(&Choice::Break { worker: 0, node: 0 });
    let flow = Flow {
        leader: NodeId(0),
        follower: Follower::None,
        term: Some(story.world.pair.term()),
        writable: true,
        missed: unused(),
        lone: lone(),
        written: None,
    };
    // The control plane has made up its mind before it heard of this.
    story.world.events[0].clear();
    let core = &mut story.world.cores[0];
    core.handle_command(story.world.now, Command::Close { pair: PAIR, void: Some(NodeId(0)), round: 50 });
    core.handle_command(story.world.now, Command::Open { pair: PAIR, route: Route::Open(flow) });
    story.world.settle(0);
    let told = story.hear();
    assert!(told.starts_with("SERVER_ERROR"), "{told}");
    assert_eq!(story.value(0), Some(&b"6"[..]));
}

/// A new term is no new route: what waits for one goes on waiting, and the tokens given before
/// count no more.
#[test]
fn a_new_term_ends_the_tokens_and_nothing_else() {
    let mut story = Story::new(State::Degraded { leader: Place::Primary });
    let token = |told: &str| told.split(' ').nth(4).and_then(|w| w.lines().next()).expect("a token").to_owned();
    story.say("gets k\r\n");
    story.world.settle(0);
    let before = token(&story.hear());
    let term = story.world.pair.term().next();
    story.world.cores[0].handle_command(story.world.now, Command::Term { pair: PAIR, term });
    story.say(&format!("cas k 0 0 1 {before}\r\n8\r\n"));
    story.world.settle(0);
    assert_eq!(story.hear(), "EXISTS\r\n");
    story.say("gets k\r\n");
    story.world.settle(0);
    let after = token(&story.hear());
    story.say(&format!("cas k 0 0 1 {after}\r\n8\r\n"));
    story.world.settle(0);
    assert_eq!(story.hear(), "STORED\r\n");
    story.say("incr k 1\r\n");
    story.world.step(&Choice::Execute { worker: 0, node: 0 });
    story.world.break_wires(0);
    story.world.step(&Choice::Break { worker: 0, node: 0 });
    story.world.events[0].clear();
    story.world.cores[0].handle_command(story.world.now, Command::Term { pair: PAIR, term: term.next() });
    story.world.settle(0);
    assert_eq!(story.hear(), "");
}

/// A dial that was begun before the node came back fails after: it is dialled again, what waits
/// goes on waiting, and the node is not blamed. What fails later is a fault of the present life.
#[test]
fn a_connection_of_an_earlier_life_blames_nobody() {
    for ready in [false, true] {
        let mut story = Story::new(State::Degraded { leader: Place::Primary });
        let node = NodeId(0);
        let (core, now) = (&mut story.world.cores[0], story.world.now);
        let allow = |life| Command::Allow { node, incarnation: Some(Incarnation(0xa1)), life };
        if !ready {
            core.handle_conn_down(now, ConnId::first(node), Reason::Reset);
            core.handle_command(now, allow(Life(1)));
        }
        core.handle_command(now, allow(Life(2)));
        client_says(core, now, story.client, b"incr k 1\r\n");
        events(core);
        let dials = |core: &mut Core| std::iter::from_fn(|| core.poll_dial()).count();
        dials(core);
        core.handle_conn_down(now, ConnId::first(node), Reason::Refused);
        assert_eq!(events(core), []);
        assert_eq!(dials(core), 1);
        core.handle_conn_down(now, ConnId::first(node), Reason::Refused);
        let fault = Event::Fault { node, life: Life(2), reason: Reason::Refused };
        assert_eq!(events(core), [fault]);

        // The same, and the second dial succeeds.
        let mut story = Story::new(State::Degraded { leader: Place::Primary });
        let (core, now) = (&mut story.world.cores[0], story.world.now);
        core.handle_command(now, allow(Life(2)));
        client_says(core, now, story.client, b"incr k 1\r\n");
        story.world.break_wires(0);
        story.world.settle(0);
        story.world.step(&Choice::Break { worker: 0, node: 0 });
        assert_eq!(story.hear(), "6\r\n");
    }
}

/// One date for both copies, from the moment at which the command was begun; the nodes' clocks went
/// on while the worker stood still.
#[test]
fn what_expires_is_told_to_both_nodes_as_one_date() {
    let mut story = Story::new(State::Mirrored);
    let core = &mut story.world.cores[0];
    // It began at the date 5,000.4 s, and has stood still for 2.5 s.
    story.world.now = Now { us: 8_000_000, date_us: 5_000_400_000 + 10_500_000 };
    for (node, shown) in [(0, 5_010_007), (1, 5_009_990)] {
        // As seen at the end of the proxy's second 5,010: 17 apart.
        let offset = Some(Offset::seen(shown, Duration::from_millis(5_009_990)));
        core.handle_command(story.world.now, Command::Clock { node: NodeId(node), offset });
    }
    let told =
        |story: &Story| -> Vec<i64> { story.world.nodes.iter().map(|node| node.items[&b"k"[..]].exptime).collect() };
    // A client's own date is the leader's, what lives for a few seconds is nobody's.
    for (exptime, leader, follower) in
        [(60, 5_010_067, 5_010_050), (10, 10, 10), (0, 0, 0), (6_000_000, 6_000_000, 5_999_983)]
    {
        for (command, answer) in [
            (format!("set k 0 {exptime} 1\r\nx\r\n"), "STORED\r\n"),
            (format!("touch k {exptime}\r\n"), "TOUCHED\r\n"),
            (format!("gat {exptime} k\r\n"), "VALUE k 0 1\r\nx\r\nEND\r\n"),
        ] {
            story.say(&command);
            assert_eq!(story.hear(), answer, "{command}");
            assert_eq!(told(&story), [leader, follower], "{command}");
        }
    }
    // The ends of what memcached takes as a date: beyond the last it would be one long past, below
    // the first it would be a time that is counted from now.
    let clock = |story: &mut Story, node, shown| {
        let offset = Some(Offset::seen(shown, Duration::from_millis(5_009_990)));
        story.world.cores[0].handle_command(story.world.now, Command::Clock { node: NodeId(node), offset });
    };
    for (shown, exptime, follower) in [
        (5_009_990, i64::from(i32::MAX), i64::from(i32::MAX) - 17),
        (5_010_024, i64::from(i32::MAX), i32::MAX.into()),
        (5_010_024, i64::from(i32::MAX) - 16, i32::MAX.into()),
        (5_009_990, expiry::RELATIVE_MAX_SECS + 1, -1),
        (5_009_990, expiry::RELATIVE_MAX_SECS + 18, expiry::RELATIVE_MAX_SECS + 1),
        (5_010_024, expiry::RELATIVE_MAX_SECS + 1, expiry::RELATIVE_MAX_SECS + 18),
    ] {
        clock(&mut story, 1, shown);
        story.say(&format!("set k 0 {exptime} 1\r\nx\r\n"));
        assert_eq!((story.hear().as_str(), told(&story)), ("STORED\r\n", vec![exptime, follower]));
    }
    clock(&mut story, 1, 5_009_990);
    // The leader's is not known to a second yet: the follower's copy is no later for it.
    let rough = Some(Offset::seen(5_010_006, Duration::from_millis(5_009_500)));
    story.world.cores[0].handle_command(story.world.now, Command::Clock { node: NodeId(0), offset: rough });
    story.say("set k 0 6000000 1\r\nx\r\n");
    assert_eq!((story.hear().as_str(), told(&story)), ("STORED\r\n", vec![6_000_000, 5_999_983]));
}

/// A connection that our own kernel gave up leaves it open what the node will execute; one that the
/// node ended does not, nor one on which only reads were sent.
#[test]
fn what_a_connection_leaves_behind_is_told_where_the_node_did_not_end_it() {
    for (request, by_node, expected) in
        [("incr k 1\r\n", false, true), ("incr k 1\r\n", true, false), ("get k\r\n", false, false)]
    {
        let mut story = Story::new(State::Mirrored);
        story.say(request);
        let core = &mut story.world.cores[0];
        core.handle_conn_ended(story.world.now, ConnId::first(NodeId(0)), by_node);
        let events = events(core);
        let abandoned = |event: &Event| matches!(event, Event::Abandoned { node: NodeId(0) });
        assert_eq!(events.iter().any(abandoned), expected, "{request:?}, by the node: {by_node}");
        assert!(!expected || abandoned(&events[0]), "told before the fault: {events:?}");
    }
}

/// Every connection that stands is given up, whatever is done on it; one that is being dialled is
/// not, for it will lead to the new address.
#[test]
fn a_worker_leaves_an_address_with_all_that_it_has_there() {
    for (request, owing) in [(None, false), (Some("get k\r\n"), false), (Some("incr k 1\r\n"), true)] {
        let mut story = Story::new(State::Mirrored);
        if let Some(request) = request {
            story.say(request);
        }
        let node = NodeId(0);
        let core = &mut story.world.cores[0];
        let now = story.world.now;
        let hangups = |core: &mut Core| std::iter::from_fn(|| core.poll_hangup()).collect::<Vec<_>>();
        events(core);
        core.handle_command(now, Command::Moved { node, address: AddressNumber(7) });
        let left = Event::Left { worker: WorkerId(0), node, address: AddressNumber(7), owing };
        assert_eq!(events(core), [left], "{request:?}");
        assert_eq!(hangups(core), [ConnId::first(node)], "{request:?}");
        assert_eq!(core.flights(ConnId::first(node)), 0, "{request:?}");
        core.dial(ConnId::first(node));
        core.handle_command(now, Command::Moved { node, address: AddressNumber(8) });
        assert!(hangups(core).is_empty(), "it leads to the present address");
    }
}

/// An operation that was sent is no less in doubt because the node came back: the fault is told.
#[test]
fn what_was_sent_in_an_earlier_life_is_a_fault() {
    let mut story = Story::new(State::Degraded { leader: Place::Primary });
    story.say("incr k 1\r\n");
    let core = &mut story.world.cores[0];
    let allow = Command::Allow { node: NodeId(0), incarnation: Some(Incarnation(0xa1)), life: Life(2) };
    core.handle_command(story.world.now, allow);
    core.handle_conn_down(story.world.now, ConnId::first(NodeId(0)), Reason::Reset);
    let events = events(core);
    assert!(matches!(events[..], [Event::Fault { life: Life(2), .. }]), "{events:?}");
}

fn lone() -> Arc<Lone> {
    Arc::new(Lone::new(Arc::new(MissedBudget::new(0))))
}

fn unused() -> Arc<Missed> {
    Arc::new(Missed::new(Arc::new(MissedBudget::new(0))))
}
