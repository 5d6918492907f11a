//! One [`Core`] driven as `src/server/worker.rs` drives it, without sockets: a turn for each burst
//! of requests. What is around it (model nodes, clients) allocates nothing once it is warm, and
//! what is the `Core`'s is called through functions named `counted_*`, which is what callgrind
//! looks at.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};

use resilver::internals::ids::{Generation, Incarnation, Life, NodeId, Term, WorkerId};
use resilver::internals::keys::{Lone, Missed, MissedBudget};
use resilver::internals::pair::Reason;
use resilver::internals::protocol::mark::FleetMark;
use resilver::internals::protocol::out::{MAX_SLICES, OutQueue};
use resilver::internals::proxy::{
    ClientId, Command, ConnId, Core, CoreSettings, Event, Flow, Follower, Now, Reading, Room, Route,
};
use resilver::internals::ring::{Distribution, ServerSpec, Topology};
use resilver::internals::stats::WorkerStats;

use crate::memcached::{Item, Mark, Memcached, command_len};

/// Different bursts of a client: after them it begins again, with the same keys.
const BURSTS: usize = 16;

/// Turns between two ticks: at 25 ms a tick, 40,000 turns a second.
const TURNS_PER_TICK: usize = 1_000;

#[derive(Clone, Copy, Debug)]
pub enum Request {
    Get {
        keys: usize,
    },
    Set,
    /// `mg` with value and client flags.
    MetaGet,
    /// `ms`
    MetaSet,
}

/// What is asked, and of what.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub name: &'static str,
    /// Two primaries and two backups, or two primaries alone.
    pub mirrored: bool,
    /// With `--prove-writes`.
    pub proved: bool,
    /// In lock step: all ask, all are answered.
    pub clients: usize,
    /// Requests in one burst of each client.
    pub pipeline: usize,
    pub request: Request,
    /// Bytes of every value.
    pub value: usize,
}

struct Burst {
    requests: Vec<u8>,
    answers: Vec<u8>,
}

struct Asker {
    id: ClientId,
    bursts: Vec<Burst>,
    /// Bytes of the burst's answers that have come.
    got: usize,
}

/// A node that has every key, and counts to another number than its pair's other node.
#[derive(Default)]
struct Model {
    memory: Memcached,
    commands: Vec<u8>,
    replies: Vec<u8>,
    /// What stands there before every `incr`.
    counts_from: &'static [u8],
}

pub struct Drive {
    core: Core,
    now: Now,
    topology: Arc<Topology>,
    block: BytesMut,
    askers: Vec<Asker>,
    models: Vec<Model>,
    value: Vec<u8>,
    pipeline: usize,
    turns: usize,
}

/// The proxy's own, on every node.
fn mark() -> FleetMark {
    let (name, address) = ("prod".to_owned(), "10.0.0.5:12000".to_owned());
    FleetMark { name, generation: Generation(7), address, lease: Duration::from_secs(3) }
}

impl Workload {
    pub fn key(&self, client: usize, burst: usize, request: usize, key: usize) -> String {
        format!("key:{client:03}:{burst:02}:{request:02}:{key:02}")
    }

    /// A client's requests of one burst, and the answers that it is to get.
    pub fn burst(&self, client: usize, burst: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut requests, mut answers) = (Vec::new(), Vec::new());
        let value = "v".repeat(self.value);
        for request in 0..self.pipeline {
            match self.request {
                Request::Get { keys } => {
                    requests.extend_from_slice(b"get");
                    for key in (0..keys).map(|key| self.key(client, burst, request, key)) {
                        requests.extend_from_slice(format!(" {key}").as_bytes());
                        answers.extend_from_slice(format!("VALUE {key} 0 {}\r\n{value}\r\n", self.value).as_bytes());
                    }
                    requests.extend_from_slice(b"\r\n");
                    answers.extend_from_slice(b"END\r\n");
                }
                Request::Set => {
                    let key = self.key(client, burst, request, 0);
                    requests.extend_from_slice(format!("set {key} 0 0 {}\r\n{value}\r\n", self.value).as_bytes());
                    answers.extend_from_slice(b"STORED\r\n");
                }
                Request::MetaGet => {
                    let key = self.key(client, burst, request, 0);
                    requests.extend_from_slice(format!("mg {key} v f\r\n").as_bytes());
                    answers.extend_from_slice(format!("VA {} f0\r\n{value}\r\n", self.value).as_bytes());
                }
                Request::MetaSet => {
                    let key = self.key(client, burst, request, 0);
                    requests.extend_from_slice(format!("ms {key} {} T0 F0\r\n{value}\r\n", self.value).as_bytes());
                    answers.extend_from_slice(b"HD\r\n");
                }
            }
        }
        (requests, answers)
    }
}

impl Drive {
    /// Every connection stands, every pair is open.
    pub fn new(workload: &Workload) -> Drive {
        let specs =
            |names: &[&str]| -> Vec<ServerSpec> { names.iter().map(|n| n.parse().expect("a server")).collect() };
        let backups = if workload.mirrored { specs(&["b1:1", "b2:1"]) } else { Vec::new() };
        let topology = Arc::new(Topology::new(&specs(&["a1:1", "a2:1"]), &backups, Distribution::Modula));
        let settings = CoreSettings {
            worker: WorkerId(0),
            workers: 1,
            lanes: 1,
            timeout_us: 250_000,
            leader_timeout_us: 2_000_000,
            item_size_max: 1 << 20,
            operator_commands: true,
        };
        let nodes = topology.node_count();
        // First of all, and without a hole behind them: what an allocation of the core's costs
        // depends on what lies around it.
        let value: &'static [u8] = "v".repeat(workload.value).leak().as_bytes();
        let models = (0..nodes).map(|node| Model::new(node, workload, value)).collect();
        let mut core = Core::new(settings, topology.clone(), Arc::new(WorkerStats::new(nodes)), Arc::default());
        if workload.proved {
            core.prove_writes(mark());
        }
        let missed = Arc::new(Missed::new(Arc::new(MissedBudget::new(1 << 20))));
        let lone = Arc::new(Lone::new(Arc::new(MissedBudget::new(1 << 20))));
        for pair in topology.pairs() {
            let (leader, other) = topology.nodes_of(pair);
            let follower = other.map_or(Follower::None, Follower::InSync);
            let term = other.map(|_| Term(7));
            let flow = Flow {
                leader,
                follower,
                term,
                writable: true,
                missed: missed.clone(),
                lone: lone.clone(),
                written: None,
            };
            core.handle_command(Now::default(), Command::Open { pair, route: Route::Open(flow) });
        }
        let ask = |client| Asker {
            id: ClientId(0),
            bursts: (0..BURSTS)
                .map(|at| {
                    let (requests, answers) = workload.burst(client, at);
                    Burst { requests, answers }
                })
                .collect(),
            got: 0,
        };
        let mut askers: Vec<Asker> = (0..workload.clients).map(ask).collect();
        for asker in &mut askers {
            asker.id = core.handle_connect(Now::default()).id;
        }
        for node in topology.nodes() {
            let incarnation = Some(Incarnation(0xa1));
            core.handle_command(Now::default(), Command::Allow { node, incarnation, life: Life(1) });
        }
        let mut drive = Drive {
            core,
            now: Now::default(),
            topology,
            block: BytesMut::new(),
            askers,
            models,
            value: "v".repeat(workload.value).into_bytes(),
            pipeline: workload.pipeline,
            turns: 0,
        };
        while let Some((at, _)) = drive.core.poll_dial() {
            drive.core.handle_conn_up(drive.now, at);
        }
        drive.exchange();
        drive
    }

    /// This many requests, or a few more to fill the last burst; every answer is compared.
    pub fn run(&mut self, requests: usize) {
        for _ in 0..requests.div_ceil(self.pipeline * self.askers.len()) {
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.turns += 1;
        self.pass(25);
        if self.turns.is_multiple_of(TURNS_PER_TICK) {
            self.core.handle_tick(self.now);
        }
        let burst = self.turns % BURSTS;
        for asker in &mut self.askers {
            asker.got = 0;
            let mut left = asker.bursts[burst].requests.as_slice();
            while !left.is_empty() {
                let own = counted_client_room(&mut self.core, &mut self.block, asker.id);
                put_for(&mut self.core, &mut self.block, asker.id, &mut left);
                counted_client_input(&mut self.core, self.now, &mut self.block, asker.id, own);
            }
        }
        self.exchange();
        for asker in &self.askers {
            assert_eq!(asker.got, asker.bursts[burst].answers.len(), "bytes answered to client {:?}", asker.id);
        }
    }

    /// One client's requests, all of them in its socket: it is read from as it may be. Until all is
    /// answered.
    pub fn pour(&mut self, client: usize, requests: &[u8], answers: Vec<u8>) {
        let mut left = requests;
        self.expect(client, answers);
        while !left.is_empty() {
            self.offer(client, &mut left);
            self.exchange();
        }
        self.assert_answered(client);
    }

    /// What a client is to be answered next.
    pub fn expect(&mut self, client: usize, answers: Vec<u8>) {
        let asker = &mut self.askers[client];
        asker.got = 0;
        asker.bursts[self.turns % BURSTS].answers = answers;
    }

    /// Takes what a client sends, as long as it need not wait; nothing is sent on.
    pub fn offer(&mut self, client: usize, left: &mut &[u8]) {
        let id = self.askers[client].id;
        let mut taken = 0;
        while !left.is_empty() && self.core.reading(id) == Reading::GoesOn {
            let own = counted_client_room(&mut self.core, &mut self.block, id);
            put_for(&mut self.core, &mut self.block, id, left);
            counted_client_input(&mut self.core, self.now, &mut self.block, id, own);
            taken += 1;
        }
        assert!(taken > 0, "client {client} waits, and nothing goes on");
    }

    pub fn assert_answered(&self, client: usize) {
        let asker = &self.askers[client];
        assert_eq!(asker.got, asker.bursts[self.turns % BURSTS].answers.len(), "bytes answered to client {client}");
    }

    pub fn command(&mut self, command: Command) {
        counted_command(&mut self.core, self.now, command);
    }

    fn pass(&mut self, us: u64) {
        self.now.us += us;
        self.now.date_us += us;
    }

    pub fn tick(&mut self, later_us: u64) {
        self.pass(later_us);
        counted_tick(&mut self.core, self.now);
    }

    /// What the worker told the control plane.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.core.poll_event()).collect()
    }

    /// The nodes get what was written for them, and answer nothing yet.
    pub fn write_to_nodes(&mut self) {
        while let Some(at) = self.core.poll_dirty_conn() {
            let out = counted_conn_to_write(&mut self.core, self.now, at).expect("a connection in order");
            let model = &mut self.models[at.node.index()];
            take(out, |piece| model.commands.extend_from_slice(piece));
        }
    }

    /// A node is gone, with what it was sent; its connection is refused from now on.
    pub fn lose(&mut self, node: NodeId) {
        let model = &mut self.models[node.index()];
        (model.memory, model.commands, model.replies) = (Memcached::default(), Vec::new(), Vec::new());
        counted_conn_down(&mut self.core, self.now, node);
    }

    /// The nodes answer what they were sent.
    pub fn answer_nodes(&mut self) {
        for (index, model) in self.models.iter_mut().enumerate() {
            model.execute(&self.value);
            let node = NodeId(index as u16);
            let mut left = model.replies.as_slice();
            while !left.is_empty() {
                counted_node_room(&mut self.core, node);
                put(self.core.conn_room(ConnId::first(node)), &mut left);
                counted_node_input(&mut self.core, self.now, node);
            }
            model.replies.clear();
        }
    }

    /// The flusher and the nodes by turns, until nothing is left to do.
    pub fn exchange(&mut self) {
        loop {
            self.flush_clients();
            if !self.core.has_output() {
                break;
            }
            self.write_to_nodes();
            self.answer_nodes();
            let happens = (self.core.poll_event(), self.core.poll_peer().is_some(), self.core.poll_dial());
            assert_eq!(happens, (None, false, None), "nothing happens");
        }
    }

    fn flush_clients(&mut self) {
        while let Some(id) = self.core.poll_dirty_client() {
            let asker = self.askers.iter_mut().find(|a| a.id == id).expect("a client that was answered");
            let expected = &asker.bursts[self.turns % BURSTS].answers;
            let out = self.core.client_to_write(id).and_then(|client| client.unsent).expect("an answer");
            take(out, |piece| {
                assert!(expected[asker.got..].starts_with(piece), "{id:?} got {:?}", String::from_utf8_lossy(piece));
                asker.got += piece.len();
            });
            self.core.handle_written(id);
        }
        self.resume();
    }
}

impl Drive {
    /// The servers.
    pub fn topology(&self) -> Arc<Topology> {
        self.topology.clone()
    }

    /// Goes on with clients' input that waited, in the next turn.
    pub fn resume(&mut self) {
        for _ in 0..self.core.next_turn() {
            let id = self.core.poll_resumable().expect("as many as were told");
            counted_client_resume(&mut self.core, self.now, id);
        }
    }
}

impl Model {
    /// The one of this number among the nodes, with what is known to be set.
    fn new(node: usize, workload: &Workload, value: &'static [u8]) -> Model {
        let elsewhere = Item { value: value.to_vec(), flags: 0, exptime: 0, cas: 9, mark: Mark::default() };
        let mut memory = Memcached { elsewhere: Some(elsewhere), ..Memcached::default() };
        memory.put(b"__resilver__:incarnation", b"00000000000000a1", 0, 0);
        if workload.proved {
            memory.put(b"__resilver__:fleet", mark().to_string().as_bytes(), 0, 0);
        }
        if matches!(workload.request, Request::Set | Request::MetaSet) {
            for (client, burst) in
                (0..workload.clients).flat_map(|client| (0..BURSTS).map(move |burst| (client, burst)))
            {
                for request in 0..workload.pipeline {
                    memory.put(workload.key(client, burst, request, 0).as_bytes(), value, 0, 0);
                }
            }
        }
        Model { counts_from: if node > 1 { b"0" } else { b"7" }, memory, ..Model::default() }
    }

    /// Answers the whole commands that have come.
    fn execute(&mut self, value: &[u8]) {
        let mut at = 0;
        while let Some(len) = command_len(&self.commands[at..]) {
            let command = &self.commands[at..at + len];
            if command.starts_with(b"set ") {
                let block = &command[command.len() - value.len() - 2..];
                assert!(block.starts_with(value) && block.ends_with(b"v\r\n"), "a value of {} bytes", value.len());
            }
            if let Some(counted) = command.strip_prefix(b"incr ") {
                let key = counted.split(|&byte| byte == b' ').next().expect("a key");
                self.memory.put(key, self.counts_from, 0, 0);
            }
            self.memory.execute(command, &mut self.replies);
            assert!(!self.replies.ends_with(b"ERROR\r\n"), "not known: {}", String::from_utf8_lossy(command));
            at += len;
        }
        self.commands.drain(..at);
    }
}

/// What one read takes: the buffer's room.
fn put(buffer: &mut BytesMut, from: &mut &[u8]) {
    let (now, later) = from.split_at(from.len().min(buffer.capacity() - buffer.len()));
    assert!(!now.is_empty(), "a buffer with room");
    buffer.put_slice(now);
    *from = later;
}

/// The same of what a client sends.
fn put_for(core: &mut Core, block: &mut BytesMut, id: ClientId, from: &mut &[u8]) {
    match core.client_room(id, block) {
        Room::Own(buffer) | Room::Block(buffer) => put(buffer, from),
        Room::Waits | Room::Over => panic!("{id:?} is not to be read from"),
    }
}

/// What writing takes.
fn take(out: &mut OutQueue, mut each: impl FnMut(&[u8])) {
    while !out.is_empty() {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = counted_slices(out, &mut slices);
        let mut written = 0;
        for slice in &slices[..count] {
            each(slice);
            written += slice.len();
        }
        counted_advance(out, written);
    }
}

// What the shell does, line by line (`poll_client`, `poll_conn`, `flush_conn`, `flush_client` in
// `src/server/worker.rs`). None of these calls another, for callgrind looks at what happens between
// the beginning and the end of each.

#[inline(never)]
fn counted_client_room(core: &mut Core, block: &mut BytesMut, id: ClientId) -> bool {
    match core.client_room(id, block) {
        Room::Own(_) => true,
        Room::Block(_) => false,
        Room::Waits | Room::Over => panic!("a client that is not to be read from"),
    }
}

#[inline(never)]
fn counted_client_input(core: &mut Core, now: Now, block: &mut BytesMut, id: ClientId, own: bool) {
    if own {
        core.handle_more(now, id);
    } else {
        let chunk = block.split();
        core.handle_input(now, id, chunk);
    }
}

#[inline(never)]
fn counted_client_resume(core: &mut Core, now: Now, id: ClientId) {
    core.handle_resume(now, id);
}

#[inline(never)]
fn counted_command(core: &mut Core, now: Now, command: Command) {
    core.handle_command(now, command);
}

#[inline(never)]
fn counted_tick(core: &mut Core, now: Now) {
    core.handle_tick(now);
}

#[inline(never)]
fn counted_conn_down(core: &mut Core, now: Now, node: NodeId) {
    core.handle_conn_down(now, ConnId::first(node), Reason::Refused);
}

#[inline(never)]
fn counted_node_room(core: &mut Core, node: NodeId) {
    core.conn_room(ConnId::first(node));
}

#[inline(never)]
fn counted_node_input(core: &mut Core, now: Now, node: NodeId) {
    core.handle_node_input(now, ConnId::first(node));
}

#[inline(never)]
fn counted_conn_to_write(core: &mut Core, now: Now, at: ConnId) -> Option<&mut OutQueue> {
    core.conn_to_write(now, at)
}

#[inline(never)]
fn counted_slices<'a>(out: &'a OutQueue, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
    out.slices(slices)
}

#[inline(never)]
fn counted_advance(out: &mut OutQueue, written: usize) {
    out.advance(written);
}
