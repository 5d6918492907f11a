//! One pair, its two model nodes, one or two workers, a small control plane around the real
//! [`Pair`], and clients with a script. Everything that waits somewhere is a choice;
//! [`World::choices`] lists them, [`World::step`] takes one.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use crate::backend::marker::{FLEET_KEY, INCARNATION_KEY};
use crate::ids::{Epoch, Incarnation, Life, NodeId, PairId, Place, Term, UNSURE};
use crate::keys::{Lone, Missed, MissedBudget, Recopy};
use crate::pair::{self, Gate, Loss, Pair, Reason, State};
use crate::protocol::mark::FleetMark;
use crate::proxy::handles::{ClientId, ConnId, Ticket};
use crate::ring::Distribution;
use crate::testing::digest::Digest;

use super::super::*;
use super::copier::Copier;
use super::history::{History, Req};
use super::node::Node;
use super::shell::{client_says, node_says};

/// What the workers are given for an answer, and for that of a last full copy.
pub(super) const TIMEOUT_US: u64 = 250_000;
pub(super) const LEADER_TIMEOUT_US: u64 = 2_000_000;

pub(super) const KEY: &str = "k";
pub(super) const PAIR: PairId = PairId(0);
/// Ticks after which nothing may wait for one any more.
const MAX_TICKS: u8 = 8;

pub(super) const MARKER: &str = "00000000000000a1";

/// What goes wrong, once, at any point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// The process is gone: connections break, new ones are refused.
    Kill(usize),
    /// It is back at once, empty.
    Restart(usize),
    /// Connections break, the memory stays.
    Reset(usize),
    /// It accepts and does not answer; once everybody has noticed it may wake and answer
    /// everything.
    Hang(usize),
    /// The marker is evicted, the memory stays.
    Evict(usize),
    /// The same, and it is being written again.
    Unsure(usize),
    /// A stranger says `flush_all`: the memory is gone, connections and the count of cas ids stay.
    Flush(usize),
    /// The fleet's mark is evicted, the memory stays.
    EvictMark(usize),
    /// Another proxy takes this one's place, marks both nodes, and serves the key from the second.
    Replace,
    /// The target's resync is cancelled, then it hangs.
    CancelThenHang(usize),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    /// A client sends its next command.
    Send(usize),
    /// A node executes the next command of a worker's connection.
    Execute {
        worker: usize,
        node: usize,
    },
    /// A worker reads what the node has answered.
    Deliver {
        worker: usize,
        node: usize,
    },
    /// A worker sees that its connection is broken.
    Break {
        worker: usize,
        node: usize,
    },
    /// The control plane takes a worker's next event.
    Event(usize),
    /// A worker takes the control plane's next command.
    Command(usize),
    /// A worker takes the next message of another.
    Peer(usize, usize),
    /// The control plane's record is written, or fails.
    Record,
    Fault,
    /// The time of an answer is over.
    Timeout,
    /// The longer time of a last full copy, too.
    Patience,
    /// A hung node goes on.
    Wake,
    /// The control plane sends its next order.
    Order,
    Copy,
    HandBack,
    /// The workers look around, some milliseconds later.
    Tick,
}

#[derive(Default, Hash, Debug)]
pub(super) struct Wire {
    pub(super) up: bool,
    /// The other end is gone; not noticed yet.
    pub(super) broken: bool,
    pub(super) raw: Vec<u8>,
    pub(super) to: VecDeque<Vec<u8>>,
    pub(super) back: VecDeque<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Process {
    Running,
    Dead,
    Hung,
}

/// What the control plane may ask of the key's owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Mend,
    Adopt(&'static str),
}

/// Of the only worker; `times`: for an answer, and for that of a last full copy, microseconds.
pub(super) fn alone(times: (u64, u64), item_size_max: usize) -> CoreSettings {
    CoreSettings {
        worker: WorkerId(0),
        workers: 1,
        lanes: 1,
        timeout_us: times.0,
        leader_timeout_us: times.1,
        item_size_max,
        operator_commands: true,
    }
}

pub(super) struct World {
    pub(super) cores: Vec<Core>,
    pub(super) now: Now,
    pub(super) nodes: [Node; 2],
    pub(super) process: [Process; 2],
    pub(super) wires: Vec<[Wire; 2]>,
    pub(super) peers: Vec<Vec<VecDeque<PeerMessage>>>,
    pub(super) events: Vec<VecDeque<Event>>,
    pub(super) commands: Vec<VecDeque<Command>>,
    pub(super) pair: Pair,
    pub(super) round: u64,
    pub(super) unconfirmed: BTreeSet<WorkerId>,
    pub(super) in_use: [bool; 2],
    pub(super) undrained: BTreeSet<(WorkerId, u16)>,
    pub(super) record_due: bool,
    pub(super) recopy: Arc<Recopy>,
    pub(super) missed: Arc<Missed>,
    pub(super) lone: Arc<Lone>,
    /// Set while the pair adopts.
    pub(super) written: Option<Arc<Missed>>,
    pub(super) orders: VecDeque<Order>,
    /// Orders sent, and what became of those that ended.
    pub(super) ordered: usize,
    pub(super) settled: Vec<Settlement>,
    /// What was under way to a node when its connections broke: it may execute it all the same, or
    /// the beginning of it.
    pub(super) late: [Vec<Vec<u8>>; 2],
    pub(super) copier: Option<Copier>,
    pub(super) history: History,
    pub(super) fault: Option<Fault>,
    pub(super) faulted: bool,
    timeouts: u8,
    ticks: u8,
    /// Without it a new route is opened before the workers have confirmed: what `routes.py` warns
    /// of.
    pub(super) barrier: bool,
    /// The copies differed from the start: only what every client was told last is not judged.
    pub(super) diverged: bool,
    /// The copies differed from the start, and nobody knows until a write notices.
    pub(super) unequal: bool,
    /// Of the fleet that this proxy is one of.
    pub(super) mark: Option<FleetMark>,
    /// What each client was told, by worker and place.
    pub(super) told: std::collections::BTreeMap<(usize, ClientId), String>,
}

impl World {
    /// Mirrored (or as told), every connection up, `programs[i]` run by a client of worker
    /// `i % workers`.
    pub(super) fn new(workers: u16, state: State, item: Option<&str>, programs: &[&[Req]]) -> World {
        let spec = |name: &str| vec![name.parse().unwrap()];
        let topology = Arc::new(Topology::new(&spec("a:1"), &spec("b:1"), Distribution::Modula));
        let (adds, gone) = (Arc::new(Adds::new()), Arc::new(Gone::default()));
        let core = |worker| {
            let times = (TIMEOUT_US, LEADER_TIMEOUT_US);
            let settings = CoreSettings { worker, workers, ..alone(times, 1 << 20) };
            let mut core = Core::new(settings, topology.clone(), Arc::new(WorkerStats::new(2)), adds.clone());
            core.remember(gone.clone());
            core
        };
        let n = workers as usize;
        let mut world = World {
            cores: (0..workers).map(WorkerId).map(core).collect(),
            now: Now::default(),
            nodes: [Node::default(), Node::default()],
            process: [Process::Running; 2],
            wires: (0..n).map(|_| [Wire::default(), Wire::default()]).collect(),
            peers: (0..n).map(|_| (0..n).map(|_| VecDeque::new()).collect()).collect(),
            events: (0..n).map(|_| VecDeque::new()).collect(),
            commands: (0..n).map(|_| VecDeque::new()).collect(),
            pair: Pair::new(Epoch(1), Term(7)),
            round: 0,
            unconfirmed: BTreeSet::new(),
            in_use: [true; 2],
            undrained: BTreeSet::new(),
            record_due: false,
            recopy: Arc::new(Recopy::new()),
            missed: Arc::new(Missed::new(Arc::new(MissedBudget::new(1 << 20)))),
            lone: Arc::new(Lone::new(Arc::new(MissedBudget::new(1 << 20)))),
            written: None,
            orders: VecDeque::new(),
            ordered: 0,
            settled: vec![],
            late: [vec![], vec![]],
            copier: None,
            history: History::new(programs, item, n),
            fault: None,
            faulted: false,
            timeouts: 0,
            ticks: 0,
            barrier: true,
            diverged: false,
            unequal: false,
            mark: None,
            told: std::collections::BTreeMap::new(),
        };
        world.connect(programs.len(), state, item);
        world.begin(state);
        world
    }

    /// Nodes hold their markers and the item, workers may connect, and clients have.
    fn connect(&mut self, clients: usize, state: State, item: Option<&str>) {
        for (at, node) in self.nodes.iter_mut().enumerate() {
            node.put(INCARNATION_KEY, MARKER);
            let place = if at == 0 { Place::Primary } else { Place::Backup };
            if let Some(value) = item
                && (state == State::Mirrored || state.leader() == Some(place))
            {
                node.put(KEY, value);
            }
        }
        let n = self.cores.len();
        for worker in 0..n {
            for node in 0..2 {
                let incarnation = Some(Incarnation(0xa1));
                let allow = Command::Allow { node: NodeId(node), incarnation, life: Life(1) };
                self.cores[worker].handle_command(self.now, allow);
                self.settle(worker);
            }
        }
        for client in 0..clients {
            let key = self.cores[client % n].handle_connect(self.now);
            self.history.clients[client].key = Some(key);
        }
    }

    fn begin(&mut self, state: State) {
        if matches!(state, State::Recovering { .. }) {
            self.copier = Some(Copier::new());
            self.apply(pair::Event::Start(State::Degraded { leader: state.leader().unwrap() }, Reason::Starting));
            self.run();
            self.apply(pair::Event::BeginRecovery);
        } else {
            self.apply(pair::Event::Start(state, Reason::Starting));
        }
        self.run();
        assert_eq!((self.pair.state(), self.pair.gate()), (state, Gate::Open));
    }

    /// Its writes are told of behind the fleet's mark, which both nodes have.
    pub(super) fn prove_writes(&mut self, mark: FleetMark) {
        for node in &mut self.nodes {
            node.put(FLEET_KEY, &mark.to_string());
        }
        for core in &mut self.cores {
            core.prove_writes(mark.clone());
        }
        self.mark = Some(mark);
    }

    /// Takes the first choice until only clients, copies and faults are left.
    pub(super) fn run(&mut self) {
        let free = |c: &Choice| {
            !matches!(
                c,
                Choice::Send(_)
                    | Choice::Order
                    | Choice::Fault
                    | Choice::Copy
                    | Choice::HandBack
                    | Choice::Wake
                    | Choice::Tick
            )
        };
        while let Some(choice) = self.choices().into_iter().find(free) {
            self.step(&choice);
        }
    }

    pub(super) fn choices(&self) -> Vec<Choice> {
        let mut all = Vec::new();
        for worker in 0..self.cores.len() {
            if !self.events[worker].is_empty() {
                all.push(Choice::Event(worker));
            }
            if !self.commands[worker].is_empty() {
                all.push(Choice::Command(worker));
            }
            for from in 0..self.cores.len() {
                if !self.peers[from][worker].is_empty() {
                    all.push(Choice::Peer(from, worker));
                }
            }
            for node in 0..2 {
                let wire = &self.wires[worker][node];
                if !wire.to.is_empty() && self.process[node] == Process::Running {
                    all.push(Choice::Execute { worker, node });
                }
                if !wire.back.is_empty() {
                    all.push(Choice::Deliver { worker, node });
                }
                if wire.up && wire.broken && wire.to.is_empty() {
                    all.push(Choice::Break { worker, node });
                }
            }
        }
        if self.record_due {
            all.push(Choice::Record);
        }
        all.extend(self.history.ready().map(Choice::Send));
        if let Some(copier) = &self.copier {
            if copier.has_work(&self.recopy) && self.copy_possible() {
                all.push(Choice::Copy);
            } else if copier.is_done(&self.recopy) && self.pair.gate() == Gate::Open && !self.has_orders() {
                all.push(Choice::HandBack);
            }
        }
        if !self.orders.is_empty() {
            all.push(Choice::Order);
        }
        if self.fault.is_some() && !self.faulted {
            all.push(Choice::Fault);
        }
        if let Some(hung) = self.hung() {
            let healthy_is_quiet = self.wires.iter().all(|w| w[1 - hung].to.is_empty() && w[1 - hung].back.is_empty());
            let waits = healthy_is_quiet && (self.waits_for(hung) || self.copier.is_some());
            if self.timeouts == 0 && waits {
                all.push(Choice::Timeout);
            } else if self.timeouts == 1 && waits && all.is_empty() {
                all.push(Choice::Patience);
            }
            if self.timeouts > 0 && !self.in_use[hung] {
                all.push(Choice::Wake);
            }
        }
        if all.is_empty() && (self.history.unanswered() || self.has_orders()) && self.ticks < MAX_TICKS {
            all.push(Choice::Tick);
        }
        all
    }

    /// Orders to be sent, or to be settled.
    pub(super) fn has_orders(&self) -> bool {
        !self.orders.is_empty() || self.ordered > self.settled.len()
    }

    fn order(&mut self) {
        let (ticket, pair, key) = (Ticket(self.ordered as u64), PAIR, Bytes::from_static(KEY.as_bytes()));
        self.ordered += 1;
        let command = match self.orders.pop_front().unwrap() {
            Order::Mend => Command::Mend { ticket, pair, key },
            Order::Adopt(value) => {
                let item = Adopted { value: Bytes::from_static(value.as_bytes()), flags: 0, exptime: 0 };
                Command::Adopt { ticket, pair, key, item }
            }
        };
        let owner = crate::proxy::owner_of(KEY.as_bytes(), self.cores.len() as u16);
        self.commands[owner.index()].push_back(command);
    }

    fn copy_possible(&self) -> bool {
        self.process == [Process::Running; 2] && matches!(self.pair.gate(), Gate::Open | Gate::Closing | Gate::Draining)
    }

    fn hung(&self) -> Option<usize> {
        self.process.iter().position(|&p| p == Process::Hung)
    }

    fn waits_for(&self, node: usize) -> bool {
        self.wires.iter().any(|w| !w[node].to.is_empty())
    }

    pub(super) fn step(&mut self, choice: &Choice) {
        match *choice {
            Choice::Send(client) => self.send(client),
            Choice::Execute { worker, node } => {
                let command = self.wires[worker][node].to.pop_front().unwrap();
                let mut answer = self.nodes[node].execute(&command);
                // What is asked of an item before it counts is asked in one write with the count.
                if command.ends_with(b" s u\r\n") {
                    let count = self.wires[worker][node].to.pop_front().unwrap();
                    answer.extend(self.nodes[node].execute(&count));
                }
                self.wires[worker][node].back.push_back(answer);
            }
            Choice::Deliver { worker, node } => {
                let bytes = self.wires[worker][node].back.pop_front().unwrap();
                node_says(&mut self.cores[worker], self.now, NodeId(node as u16), &bytes);
                self.settle(worker);
            }
            Choice::Break { worker, node } => {
                self.wires[worker][node] = Wire::default();
                self.cores[worker].handle_conn_down(self.now, ConnId::first(NodeId(node as u16)), Reason::Reset);
                self.settle(worker);
            }
            Choice::Event(worker) => {
                let event = self.events[worker].pop_front().unwrap();
                self.worker_said(event);
            }
            Choice::Command(worker) => {
                let command = self.commands[worker].pop_front().unwrap();
                self.cores[worker].handle_command(self.now, command);
                self.settle(worker);
            }
            Choice::Peer(from, to) => {
                let message = self.peers[from][to].pop_front().unwrap();
                self.cores[to].handle_peer(self.now, message);
                self.settle(to);
            }
            Choice::Record => self.record(),
            Choice::Order => self.order(),
            Choice::Fault => self.strike(),
            Choice::Timeout | Choice::Patience => {
                self.timeouts += 1;
                if let (Some(hung), State::Recovering { leader }) = (self.hung(), self.pair.state())
                    && (hung != leader as usize || self.timeouts == 2)
                    && self.copier.take().is_some()
                {
                    // The job's own connection is late too; its source, as the last full copy, is
                    // waited for longer.
                    self.apply(pair::Event::ResyncEnded(Reason::ResyncFailed));
                    self.lost(NodeId(hung as u16), Reason::Timeout, Loss::Suspected, true);
                }
                self.tick_after(if self.timeouts == 1 { 250_001 } else { 2_000_001 });
            }
            Choice::Wake => {
                let hung = self.hung().unwrap();
                self.process[hung] = Process::Running;
            }
            Choice::Copy => self.copy(),
            Choice::HandBack => self.apply(pair::Event::HandBack),
            Choice::Tick => {
                self.ticks += 1;
                self.tick_after(10_000);
            }
        }
    }

    fn copy(&mut self) {
        let State::Recovering { leader } = self.pair.state() else { return self.copier = None };
        let (source, target) = (leader as usize, leader.other() as usize);
        let mut copier = self.copier.take().unwrap();
        copier.step(&mut self.nodes, source, target, &self.recopy);
        let drained = copier.is_done(&self.recopy) && self.pair.gate() == Gate::Draining;
        self.copier = Some(copier);
        if drained {
            self.copier = None;
            self.apply(pair::Event::Drained(true));
        }
    }

    fn send(&mut self, client: usize) {
        let line = self.history.send(client);
        let worker = client % self.cores.len();
        let index = self.history.clients[client].key.unwrap().id;
        self.input(worker, index, &line);
    }

    pub(super) fn input(&mut self, worker: usize, index: ClientId, bytes: &[u8]) {
        client_says(&mut self.cores[worker], self.now, index, bytes);
        self.settle(worker);
    }

    /// All workers look around so much later.
    pub(super) fn tick_after(&mut self, us: u64) {
        self.pass(us);
        for worker in 0..self.cores.len() {
            self.cores[worker].handle_tick(self.now);
            self.settle(worker);
        }
    }

    pub(super) fn pass(&mut self, us: u64) {
        self.now.us += us;
        self.now.date_us += us;
    }

    fn strike(&mut self) {
        self.faulted = true;
        match self.fault.unwrap() {
            Fault::Kill(node) => {
                self.process[node] = Process::Dead;
                self.break_wires(node);
            }
            Fault::Restart(node) => {
                self.nodes[node] = Node::default();
                self.break_wires(node);
            }
            Fault::Reset(node) => self.break_wires(node),
            Fault::Hang(node) => self.process[node] = Process::Hung,
            Fault::Evict(node) => {
                self.nodes[node].items.remove(INCARNATION_KEY.as_bytes());
            }
            Fault::Unsure(node) => self.nodes[node].put(INCARNATION_KEY, UNSURE),
            Fault::Flush(node) => self.nodes[node].items.clear(),
            Fault::EvictMark(node) => {
                self.nodes[node].items.remove(FLEET_KEY.as_bytes());
            }
            Fault::Replace => {
                for node in &mut self.nodes {
                    node.put(FLEET_KEY, &super::marks::mark(8).to_string());
                }
                let there = self.nodes[1].items.get(KEY.as_bytes());
                let there = there.map(|item| String::from_utf8(item.value.clone()).unwrap());
                self.history.reads_elsewhere(there.as_deref());
                self.nodes[0].items.remove(KEY.as_bytes());
            }
            Fault::CancelThenHang(node) => {
                self.copier = None;
                self.apply(pair::Event::ResyncEnded(Reason::Cancelled));
                self.process[node] = Process::Hung;
            }
        }
    }

    pub(super) fn break_wires(&mut self, node: usize) {
        for wires in &mut self.wires {
            wires[node].broken |= wires[node].up;
            self.late[node].extend(wires[node].to.drain(..));
        }
    }

    /// The node when it has executed what is still under way to it: all of it, or as much as it
    /// got.
    pub(super) fn ends_of(&self, node: usize) -> Vec<Node> {
        let waiting = self.wires.iter().flat_map(|wires| &wires[node].to);
        let mut ends = vec![self.nodes[node].clone()];
        for command in self.late[node].iter().chain(waiting) {
            let mut next = ends[ends.len() - 1].clone();
            next.execute(command);
            ends.push(next);
        }
        ends
    }

    /// Whether a worker noticed that the copies differ.
    pub(super) fn noticed(&self) -> bool {
        self.cores.iter().any(|core| core.stats.diverged.load(Relaxed) > 0)
    }

    /// A hash of everything that decides what can happen next.
    pub(super) fn digest(&self) -> u64 {
        let mut sink = Digest::default();
        for core in &self.cores {
            let parts = (&core.clients, &core.ops, &core.links, &core.pairs, &core.fences);
            let _ = write!(sink, "{parts:?}");
            if core.wary {
                let _ = write!(sink, "{:?}", (&core.looks, &core.gone));
            }
        }
        // Hash each node's changing fields as bytes.
        for node in &self.nodes {
            (&node.items, node.cas, node.flushes, node.ghosts).hash(&mut sink);
        }
        (&self.wires, &self.late).hash(&mut sink);
        let _ = write!(sink, "{:?}", (self.process, &self.peers, &self.events, &self.commands));
        let _ = write!(
            sink,
            "{:?}",
            (
                &self.pair,
                self.round,
                &self.unconfirmed,
                self.in_use,
                self.record_due,
                self.timeouts,
                self.ticks,
                self.now.us
            )
        );
        let _ = write!(
            sink,
            "{:?}",
            (&self.recopy, &self.copier, &self.history, self.faulted, &self.orders, &self.settled)
        );
        sink.finish()
    }
}
