//! A node that takes no more connections, and the one that stands in for what it has refused.

use super::super::*;
use super::shell::{client_says, events, take};
use super::waits::{PATIENCE_US, TIMEOUT_US};
use super::world::{MARKER, alone};
use crate::ids::{Incarnation, Life, NodeId};
use crate::keys::{Lone, Missed, MissedBudget};
use crate::pair::Reason;
use crate::proxy::handles::{ClientId, ConnId, Lane, OpId};
use crate::proxy::link::{Flight, RepairStep, Unmarked};
use crate::proxy::route::{Flow, Follower, Route};
use crate::ring::Distribution;

const NODE: NodeId = NodeId(0);
const FULL: &[u8] = b"ERROR Too many open connections\r\n";
const AGAIN_US: u64 = 10_000_000;

fn at(lane: u16) -> ConnId {
    ConnId { node: NODE, lane: Lane(lane) }
}

/// A worker with several connections to one node that leads alone. All of them stand.
struct World {
    core: Core,
    now: Now,
    lanes: u16,
    client: ClientId,
}

impl World {
    /// `marked`: nothing is sent before the node has shown its marker.
    fn new(lanes: u16, marked: bool) -> World {
        let topology = Arc::new(Topology::new(&["a:1".parse().unwrap()], &[], Distribution::Modula));
        let settings = CoreSettings { lanes, ..alone((TIMEOUT_US, PATIENCE_US), 1 << 20) };
        let mut core = Core::new(settings, topology.clone(), Arc::new(WorkerStats::new(1)), Arc::default());
        let budget = || Arc::new(MissedBudget::new(1 << 20));
        let flow = Flow {
            leader: NODE,
            follower: Follower::None,
            term: None,
            writable: true,
            missed: Arc::new(Missed::new(budget())),
            lone: Arc::new(Lone::new(budget())),
            written: None,
        };
        let pair = topology.pairs().next().unwrap();
        core.handle_command(Now::default(), Command::Open { pair, route: Route::Open(flow) });
        let incarnation = marked.then_some(Incarnation(0xa1));
        core.handle_command(Now::default(), Command::Allow { node: NODE, incarnation, life: Life(1) });
        let client = core.handle_connect(Now::default()).id;
        let mut world = World { core, now: Now::default(), lanes, client };
        assert_eq!(world.dialled(), lanes as usize);
        (0..lanes).for_each(|lane| world.up(lane));
        world
    }

    fn up(&mut self, lane: u16) {
        self.core.handle_conn_up(self.now, at(lane));
        self.hears(lane);
    }

    fn dialled(&mut self) -> usize {
        std::iter::from_fn(|| self.core.poll_dial()).count()
    }

    fn says(&mut self, lane: u16, bytes: &[u8]) {
        self.core.conn_room(at(lane)).extend_from_slice(bytes);
        self.core.handle_node_input(self.now, at(lane));
    }

    fn marker(&mut self, lane: u16) {
        self.says(lane, format!("VA {}\r\n{MARKER}\r\n", MARKER.len()).as_bytes());
    }

    /// What the node is sent.
    fn hears(&mut self, lane: u16) -> String {
        let bytes = self.core.conn_to_write(self.now, at(lane)).map_or_else(Vec::new, take);
        String::from_utf8(bytes).unwrap()
    }

    /// A key whose commands take this connection.
    fn key(&self, lane: u16) -> String {
        let takes = |key: &String| Topology::key_hash(key.as_bytes()) % u32::from(self.lanes) == u32::from(lane);
        (0..).map(|i| format!("k{i}")).find(takes).unwrap()
    }

    /// The client stores a value of one byte; returns the command.
    fn set(&mut self, lane: u16, value: char) -> String {
        let set = format!("set {} 0 0 1\r\n{value}\r\n", self.key(lane));
        client_says(&mut self.core, self.now, self.client, set.as_bytes());
        set
    }

    fn tick(&mut self, us: u64) {
        self.now.us = us;
        self.core.handle_tick(self.now);
    }

    /// That the node is lost, as the control plane is told.
    fn faults(&mut self) -> Vec<Reason> {
        let fault = |event| if let Event::Fault { reason, .. } = event { Some(reason) } else { None };
        events(&mut self.core).into_iter().filter_map(fault).collect()
    }
}

/// Lost, it would be refilled; and with the only copy its clients would get errors.
#[test]
fn a_connection_that_is_refused_is_no_loss_while_another_one_stands() {
    for marked in [true, false] {
        let mut world = World::new(2, marked);
        if marked {
            world.marker(0);
        }
        let sets = [world.set(1, 'a'), world.set(1, 'b')].concat();
        assert_eq!(world.hears(1), if marked { "" } else { &sets });
        world.says(1, FULL);
        assert_eq!((world.faults(), world.hears(0)), (Vec::new(), sets), "in their order");
        assert!(world.core.conn_to_write(world.now, at(1)).is_none(), "our half is closed");
        world.core.handle_conn_ended(world.now, at(1), true);
        // What comes next does not overtake them.
        world.tick(2 * AGAIN_US);
        let next = world.set(1, 'c');
        assert_eq!((world.hears(0), world.dialled(), world.faults()), (next, 0, Vec::new()));
        world.says(0, &b"STORED\r\n".repeat(3));
        let told = take(world.core.client_to_write(world.client).unwrap().unsent.unwrap());
        assert_eq!(told, b"STORED\r\n".repeat(3));
        // Then the connection is tried again; and refused again.
        world.tick(2 * AGAIN_US + 1);
        let next = world.set(1, 'd');
        assert_eq!((world.hears(0).as_str(), world.dialled()), ("", 1));
        world.up(1);
        world.says(1, FULL);
        world.core.handle_conn_ended(world.now, at(1), true);
        assert_eq!((world.hears(0), world.faults()), (next, Vec::new()));
        world.says(0, b"STORED\r\n");
        // Not with each command.
        world.tick(3 * AGAIN_US);
        let next = world.set(1, 'e');
        assert_eq!((world.hears(0), world.dialled()), (next, 0));
    }
}

/// Those that are being checked may be refused as well.
#[test]
fn one_may_stand_in_for_several_and_without_any_the_node_is_lost() {
    for fits in [true, false] {
        let mut world = World::new(3, true);
        let sets = [world.set(2, 'a'), world.set(0, 'b'), world.set(2, 'c')];
        world.says(2, FULL);
        world.says(0, FULL);
        assert!(world.faults().is_empty());
        if fits {
            world.marker(1);
            assert!(world.faults().is_empty());
            let heard = world.hears(1);
            assert!(sets.iter().all(|set| heard.contains(set.as_str())), "{heard}");
            assert!(heard.find(&sets[0]) < heard.find(&sets[2]), "{heard}");
        } else {
            world.says(1, FULL);
            assert_eq!(world.faults(), [Reason::ConnectionLimit]);
        }
    }
}

/// What was sent over one that has answered before may have been executed.
#[test]
fn a_connection_that_was_in_use_is_not_one_that_was_refused() {
    let mut world = World::new(2, false);
    world.set(1, 'a');
    world.hears(1);
    world.says(1, b"STORED\r\n");
    world.set(1, 'b');
    world.hears(1);
    world.says(1, FULL);
    assert_eq!((world.faults(), world.hears(0).as_str()), (vec![Reason::ConnectionLimit], ""));
}

/// What is known of it is bound to its own connection.
#[test]
fn nothing_stands_in_for_repairs_and_marks() {
    let new = || {
        let mut world = World::new(2, true);
        world.marker(0);
        world
    };
    assert_eq!(new().core.stand_in_for(at(1)), Some(Lane(0)));
    let mut world = new();
    world.core.links[at(1)].push(Flight::Repair(OpId(0), RepairStep::Read), 0, 0);
    assert_eq!(world.core.stand_in_for(at(1)), None);
    let mut world = new();
    world.core.links[at(1)].unmarked.push_back(Unmarked { op: OpId(0), behind: 0, at_us: 0 });
    assert_eq!(world.core.stand_in_for(at(1)), None);
}

/// Until the node has closed the one that it refused there is no other in its place.
#[test]
fn one_that_was_refused_is_not_used_before_it_is_closed_nor_dialled_for_nothing() {
    let mut world = World::new(2, true);
    world.marker(0);
    world.says(1, FULL);
    world.tick(2 * AGAIN_US);
    let set = world.set(1, 'a');
    assert_eq!((world.hears(0), world.dialled(), world.faults()), (set, 0, Vec::new()));
    world.core.handle_conn_ended(world.now, at(1), true);
    world
        .core
        .handle_command(world.now, Command::Allow { node: NODE, incarnation: Some(Incarnation(0xa1)), life: Life(1) });
    assert_eq!(world.dialled(), 0);
}

#[test]
fn one_that_stands_in_and_breaks_does_so_no_more() {
    let mut world = World::new(2, true);
    world.marker(0);
    world.says(1, FULL);
    world.core.handle_conn_ended(world.now, at(1), true);
    world.set(1, 'a');
    assert!(world.hears(0).ends_with("a\r\n"));
    world.core.handle_conn_ended(world.now, at(0), true);
    assert_eq!(world.faults(), [Reason::Reset]);
    assert!(world.core.links[at(1)].stand_in.is_none());
    // Back again, both are dialled.
    world.dialled();
    world
        .core
        .handle_command(world.now, Command::Allow { node: NODE, incarnation: Some(Incarnation(0xa1)), life: Life(2) });
    assert_eq!(world.dialled(), 2);
}

/// The control plane needs a connection, and the node takes no more.
#[test]
fn one_that_rests_makes_room_and_another_one_is_used_in_its_place() {
    let mut world = World::new(3, false);
    let set = world.set(0, 'a');
    assert_eq!(world.hears(0), set);
    let room = |world: &mut World| {
        world.core.handle_command(world.now, Command::MakeRoom { node: NODE });
        std::iter::from_fn(|| world.core.poll_hangup()).collect::<Vec<_>>()
    };
    assert_eq!(room(&mut world), [at(1)], "the first one owes an answer");
    let set = world.set(1, 'b');
    assert_eq!((world.hears(0), world.dialled(), world.faults()), (set, 0, Vec::new()));
    // The first one stands in and is at work: the last one has to.
    assert_eq!(room(&mut world), [at(2)]);
    assert_eq!(room(&mut world), []);
    world.says(0, &b"STORED\r\n".repeat(2));
    assert_eq!(room(&mut world), [], "all go over the one that is left");
    let set = world.set(2, 'c');
    assert_eq!((world.hears(0), world.dialled(), world.faults()), (set, 0, Vec::new()));
}
