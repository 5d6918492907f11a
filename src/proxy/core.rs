//! The data plane of one worker thread, without I/O and without a clock: bytes and commands in, bytes and events out.
//!
//! A request becomes one [`Op`] a key. Reads go to the pair's leader over this worker's own connections. Writes go through the key's
//! *owner* (one worker, one connection per node), leader first, then the follower, then the client is answered; so both nodes see the
//! writes of a key in one order, whichever clients they come from.
//!
//! The worker never decides who leads. It follows the routes the control plane publishes, tells what it sees of the nodes, and parks
//! what cannot go on: an operation whose node broke waits for the pair's next route.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::{Bytes, BytesMut};
use slab::Slab;

use crate::ids::{Incarnation, NodeId, PairId, is_reserved};
use crate::pair::Reason;
use crate::protocol::number::parse_i64;
use crate::protocol::reply::{self, ParsedReply, Reply, ReplyKind, ReplyLimits};
use crate::protocol::request::{self, Limits, Parsed, Request, Verb};
use crate::ring::Topology;
use crate::stats::WorkerStats;

use super::client::Client;
use super::link::{Flight, Link, LinkState, RepairStep, Sent};
use super::op::{self, Agreement, Answer, ClientKey, Effect, Kind, Mirror, Op, Origin, Repair, Stage};
use super::route::{Flow, Follower, Route};

/// After misses a connection asks for the marker again, at most so often: a node whose memory was emptied under it misses.
const MARKER_CHECK_US: u64 = 10_000;

/// A repair that finds the leader's item changed under it begins again so often before it is given up and counted.
const REPAIR_TRIES: u32 = 3;

/// Seconds up to which an exptime is relative.
const RELATIVE_EXPTIME_MAX: i64 = 60 * 60 * 24 * 30;

/// What a node may make a worker buffer: its own answers are lines of a few hundred bytes and items of at most 1 GiB.
const REPLY_LIMITS: ReplyLimits = ReplyLimits { line_len_max: 8 << 10, value_len_max: 1 << 30 };

/// Up to this size the beginning of a request is copied out of the shared read block.
const SMALL_PARTIAL: usize = 4096;

/// What the control plane tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Begin nothing more for the pair; answer with [`Event::Closed`] once nothing of it is unanswered. From now on what the `void`
    /// node answers counts for nothing.
    Close {
        /// Which pair.
        pair: PairId,
        /// The deposed node.
        void: Option<NodeId>,
        /// Repeated in the answer, so that an old one is told apart.
        round: u64,
    },
    /// The pair's requests flow (or are refused) by this route from now on.
    Open {
        /// Which pair.
        pair: PairId,
        /// The way.
        route: Route,
    },
    /// The node is up with this memory; connections to it are opened, and checked to be to that memory.
    Allow {
        /// Which node.
        node: NodeId,
        /// `None`: no markers are kept.
        incarnation: Option<Incarnation>,
        /// The node's own clock, unix seconds, now.
        unix_time: u64,
    },
    /// The answer to an [`Event::Ask`].
    Answer {
        /// Who asked.
        client: ClientKey,
        /// In which request.
        slot: u64,
        /// What it is told.
        bytes: Bytes,
    },
    /// Items larger than this are refused: the smallest limit of the nodes.
    ItemLimit(usize),
}

/// What a worker tells the control plane.
#[derive(Debug)]
pub enum Event {
    /// Nothing that this worker began for the pair is unanswered.
    Closed {
        /// Which worker.
        worker: u16,
        /// Which pair.
        pair: PairId,
        /// Of which [`Command::Close`].
        round: u64,
    },
    /// A node failed a request.
    Fault {
        /// Which node.
        node: NodeId,
        /// How.
        reason: Reason,
        /// The longer time, granted to a last full copy, is over too.
        patience_over: bool,
    },
    /// Answers that count for nothing are outstanding: until [`Event::Drained`] the node may still execute old commands.
    Undrained {
        /// Which worker.
        worker: u16,
        /// Which node.
        node: NodeId,
    },
    /// They have all come, or their connections were closed by the node.
    Drained {
        /// Which worker.
        worker: u16,
        /// Which node.
        node: NodeId,
    },
    /// A node closed an idle connection: worth a probe.
    Hint {
        /// Which node.
        node: NodeId,
    },
    /// A client's command that the control plane answers.
    Ask {
        /// Which worker.
        worker: u16,
        /// Who asks.
        client: ClientKey,
        /// In which request.
        slot: u64,
        /// What.
        question: Question,
    },
}

/// Client commands that the control plane answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// `flush_all [delay]`, in seconds.
    FlushAll {
        /// Seconds from now, or absolute unix time above 30 days; 0 = now.
        delay: i64,
    },
    /// `stats [args]`.
    Stats(String),
    /// `resync [args]`.
    Resync(String),
}

/// Between workers.
#[derive(Debug)]
pub enum PeerMessage {
    /// A write for a key that the receiver owns.
    Op(Box<Op>),
    /// Its answer.
    Answer(Origin, Answer),
}

/// What the worker's shell is to do after a turn.
#[derive(Default, Debug)]
pub struct Outbox {
    /// For the control plane.
    pub events: Vec<Event>,
    /// For other workers.
    pub peers: Vec<(u16, PeerMessage)>,
    /// Connections to open: node, lane, generation.
    pub dials: Vec<(NodeId, usize, u32)>,
    /// Connections with something to write.
    pub dirty_conns: Vec<(NodeId, usize)>,
    /// Clients with something to write, or to be closed.
    pub dirty_clients: Vec<u32>,
    /// Clients whose input can go on.
    pub resumable: Vec<u32>,
}

/// A pair's route and what waits for the next one.
#[derive(Debug)]
struct PairSlot {
    route: Route,
    /// The last open route: what is in flight while the gate closes goes on by it.
    flow: Option<Flow>,
    /// Set while the gate closes.
    closing: Option<Closing>,
    parked: VecDeque<u32>,
}

#[derive(Debug)]
struct Closing {
    round: u64,
    in_flight: usize,
    void: Vec<NodeId>,
    reported: bool,
}

/// Writes of one key that wait for its repair.
#[derive(Debug, Default)]
struct Fence {
    /// The operation that repairs.
    owner: u32,
    /// Writes of the key begun before; the repair starts when they are through.
    waiting_for: u32,
    /// Operations that found a difference too and are answered with the owner.
    attached: Vec<u32>,
    queue: VecDeque<u32>,
    /// What the leader holds, once read. `None` inside: nothing.
    item: Option<Option<LeaderItem>>,
    marker_ok: bool,
}

#[derive(Debug, Clone)]
struct LeaderItem {
    data: Bytes,
    flags: u32,
    ttl: i64,
    cas: u64,
}

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct CoreSettings {
    /// Its number.
    pub worker: u16,
    /// How many there are.
    pub workers: u16,
    /// Connections of this worker to each node.
    pub lanes: usize,
    /// How long an answer may take, microseconds.
    pub timeout_us: u64,
    /// How long the answer of a last full copy may take, microseconds.
    pub leader_timeout_us: u64,
    /// Largest item taken from clients, bytes.
    pub item_size_max: usize,
}

/// The data plane of one worker.
#[derive(Debug)]
pub struct Core {
    settings: CoreSettings,
    topology: Arc<Topology>,
    limits: Limits,
    /// Microseconds since the worker started; set by the shell at every turn.
    pub now_us: u64,
    clients: Slab<Client>,
    generation: u32,
    ops: Slab<Op>,
    links: Vec<Link>,
    /// The nodes' clocks: unix seconds at microsecond 0 of this worker.
    clocks: Vec<i64>,
    pairs: Vec<PairSlot>,
    fences: HashMap<Bytes, Fence>,
    /// What is to be done outside.
    pub outbox: Outbox,
    stats: Arc<WorkerStats>,
}

impl Core {
    /// A worker that knows no route yet: everything waits.
    pub fn new(settings: CoreSettings, topology: Arc<Topology>, stats: Arc<WorkerStats>) -> Core {
        let links = (0..topology.node_count()).map(|_| Link::new(settings.lanes)).collect();
        let pairs = (0..topology.pair_count())
            .map(|_| PairSlot { route: Route::Closed, flow: None, closing: None, parked: VecDeque::new() })
            .collect();
        Core {
            limits: Limits { item_size_max: settings.item_size_max },
            clocks: vec![0; topology.node_count()],
            settings,
            topology,
            now_us: 0,
            clients: Slab::new(),
            generation: 0,
            ops: Slab::new(),
            links,
            pairs,
            fences: HashMap::new(),
            outbox: Outbox::default(),
            stats,
        }
    }

    // ---- clients ----------------------------------------------------------------------------------------------------------------

    /// A client has connected.
    pub fn client_connected(&mut self) -> ClientKey {
        self.generation = self.generation.wrapping_add(1);
        let index = self.clients.insert(Client::new(self.generation, self.now_us));
        ClientKey { index: index as u32, generation: self.generation }
    }

    /// A client is gone; what it asked for is still carried through.
    pub fn client_gone(&mut self, index: u32) {
        self.clients.try_remove(index as usize);
    }

    /// The client at a place of the table.
    pub fn client(&mut self, index: u32) -> Option<&mut Client> {
        self.clients.get_mut(index as usize)
    }

    /// The clients connected.
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// Every client's place.
    pub fn client_indexes(&self) -> Vec<u32> {
        self.clients.iter().map(|(index, _)| index as u32).collect()
    }

    /// Takes what a client sent that has nothing in its `partial`. What cannot be begun yet goes there.
    pub fn client_input(&mut self, index: u32, chunk: BytesMut) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        debug_assert!(client.partial.is_empty());
        client.heard_us = self.now_us;
        self.feed(index, chunk);
    }

    /// More has come behind what was in the client's `partial`.
    pub fn client_more(&mut self, index: u32) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        client.heard_us = self.now_us;
        if client.partial.len() >= client.need {
            self.client_resume(index);
        }
    }

    /// Goes on with a client's input after answers made room.
    pub fn client_resume(&mut self, index: u32) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        client.stalled = false;
        let chunk = std::mem::take(&mut client.partial);
        self.feed(index, chunk);
    }

    /// Nothing more will be read from a client; it is closed when what it asked for is answered.
    pub fn client_finished(&mut self, index: u32) {
        if let Some(client) = self.clients.get_mut(index as usize) {
            // A request that was read but had to wait is still begun: `feed` goes on until the input is used up.
            client.finished = true;
            if !client.stalled {
                self.close_client(index);
            }
        }
    }

    /// Closes the clients that have sent nothing for so long and wait for nothing.
    pub fn close_silent(&mut self, timeout_us: u64) {
        for index in self.client_indexes() {
            let client = &self.clients[index as usize];
            if client.is_idle() && self.now_us.saturating_sub(client.heard_us) > timeout_us {
                self.close_client(index);
            }
        }
    }

    fn feed(&mut self, index: u32, chunk: BytesMut) {
        self.feed_requests(index, chunk);
        if let Some(client) = self.clients.get_mut(index as usize) {
            if client.finished && !client.stalled {
                self.close_client(index);
            } else if client.partial.len() < SMALL_PARTIAL {
                // The beginning of a request must not keep the whole shared read block alive.
                client.partial = BytesMut::from(&client.partial[..]);
            }
        }
    }

    fn feed_requests(&mut self, index: u32, mut chunk: BytesMut) {
        loop {
            let Some(client) = self.clients.get_mut(index as usize) else { return };
            if client.closing {
                return;
            }
            if client.swallow > 0 {
                let cut = client.swallow.min(chunk.len());
                client.swallow -= cut;
                bytes::Buf::advance(&mut chunk, cut);
            }
            if chunk.is_empty() {
                return;
            }
            if !client.has_room() {
                client.stalled = true;
                client.partial = chunk;
                return;
            }
            match request::parse(&chunk, &self.limits) {
                Parsed::Incomplete { need } => {
                    client.need = need;
                    if need > chunk.len() + SMALL_PARTIAL {
                        // A large item: give it room of its own at once, so that its bytes are copied no second time.
                        let mut own = BytesMut::with_capacity(need);
                        own.extend_from_slice(&chunk);
                        chunk = own;
                    }
                    client.partial = chunk;
                    return;
                }
                Parsed::Request { request, len } => {
                    if !self.begin_request(index, &request, &mut chunk, len) {
                        let client = &mut self.clients[index as usize];
                        client.stalled = true;
                        client.partial = chunk;
                        return;
                    }
                }
                Parsed::TooLarge { request, len, swallow } => {
                    if !self.begin_too_large(index, &request, &mut chunk, len) {
                        let client = &mut self.clients[index as usize];
                        client.stalled = true;
                        client.partial = chunk;
                        return;
                    }
                    self.clients[index as usize].swallow = swallow;
                }
                Parsed::Reject { reply, len, swallow, close } => {
                    bytes::Buf::advance(&mut chunk, len);
                    client.swallow = swallow;
                    let slot = client.open_slot(0, false, reply.is_empty(), len);
                    self.answer_client(index, slot, 0, Answer::Static(reply));
                    if close {
                        self.close_client(index);
                        return;
                    }
                }
            }
        }
    }

    fn close_client(&mut self, index: u32) {
        if let Some(client) = self.clients.get_mut(index as usize) {
            client.closing = true;
            mark_client_dirty(client, index, &mut self.outbox);
        }
    }

    /// Begins a request; `false` = it must wait for answers to earlier ones, and nothing was consumed.
    fn begin_request(&mut self, index: u32, request: &Request, chunk: &mut BytesMut, len: usize) -> bool {
        let Some(kind) = Kind::of(request.verb) else {
            return self.begin_keyless(index, request, chunk, len);
        };
        let client = &mut self.clients[index as usize];
        let write = kind.is_write();
        let mut keys = 0;
        for key in request.key_iter(chunk) {
            keys += 1;
            if client.conflicts(Topology::key_hash(key), write) {
                return false;
            }
        }
        let raw = chunk.split_to(len).freeze();
        let multi = keys > 1;
        let slot = client.open_slot(keys, multi, request.noreply, len);
        let generation = client.generation;
        let base = raw.as_ptr() as usize;
        for (part, key) in request.key_iter(&raw).enumerate() {
            let start = (key.as_ptr() as usize - base) as u32;
            let op = Op {
                origin: Origin {
                    worker: self.settings.worker,
                    client: ClientKey { index, generation },
                    slot,
                    part: part as u32,
                },
                kind,
                pair: self.topology.pair_of(key),
                hash: Topology::key_hash(key),
                raw: raw.clone(),
                key: (start, start + key.len() as u32),
                data: (request.data.start as u32, request.data.end as u32),
                flags: request.flags,
                exptime: request.exptime,
                cas: request.cas,
                delta: request.delta,
                multi,
                stage: Stage::New,
                answer: None,
                number: 0,
                sent: Mirror::Set,
                parked_at_us: 0,
                repair: None,
            };
            self.admit(op, index);
        }
        true
    }

    /// memcached removes the old item when a `set` is too large; so does the pair.
    fn begin_too_large(&mut self, index: u32, request: &Request, chunk: &mut BytesMut, len: usize) -> bool {
        let key = &chunk[request.keys.clone()];
        let hash = Topology::key_hash(key);
        let client = &mut self.clients[index as usize];
        if client.conflicts(hash, true) {
            return false;
        }
        let pair = self.topology.pair_of(key);
        let raw = chunk.split_to(len).freeze();
        let slot = client.open_slot(1, false, request.noreply, len);
        let generation = client.generation;
        let error = Answer::Static(b"SERVER_ERROR object too large for cache\r\n");
        if request.verb != Verb::Set {
            self.answer_client(index, slot, 0, error);
            return true;
        }
        let op = Op {
            origin: Origin { worker: self.settings.worker, client: ClientKey { index, generation }, slot, part: 0 },
            kind: Kind::Delete,
            pair,
            hash,
            key: (request.keys.start as u32, request.keys.end as u32),
            data: (0, 0),
            raw,
            flags: 0,
            exptime: 0,
            cas: 0,
            delta: 0,
            multi: false,
            stage: Stage::New,
            answer: Some(error),
            number: 0,
            sent: Mirror::Delete,
            parked_at_us: 0,
            repair: None,
        };
        self.admit(op, index);
        true
    }

    /// Sends an operation to its key's owner, or begins it here.
    fn admit(&mut self, op: Op, index: u32) {
        let write = op.kind.is_write();
        self.stats.count(op.kind);
        if is_reserved(op.key()) {
            // The proxy's own items do not exist for clients.
            let answer = if op.kind.reads() {
                Answer::Static(b"END\r\n")
            } else {
                Answer::Static(b"CLIENT_ERROR this key is reserved for the proxy\r\n")
            };
            return self.answer_client(index, op.origin.slot, op.origin.part, answer);
        }
        if let Some(client) = self.clients.get_mut(index as usize) {
            client.note_key(op.origin.slot, op.hash, write);
        }
        let owner = self.owner(op.hash);
        if write && owner != self.settings.worker {
            self.outbox.peers.push((owner, PeerMessage::Op(Box::new(op))));
            return;
        }
        let id = self.ops.insert(op) as u32;
        self.begin(id);
    }

    /// The worker through which all writes of a key go.
    fn owner(&self, hash: u32) -> u16 {
        ((hash >> 16) % u32::from(self.settings.workers)) as u16
    }

    fn begin_keyless(&mut self, index: u32, request: &Request, chunk: &mut BytesMut, len: usize) -> bool {
        let client = &mut self.clients[index as usize];
        let asks = matches!(request.verb, Verb::FlushAll | Verb::Stats | Verb::Resync);
        if asks && !client.is_idle() {
            return false;
        }
        let args = String::from_utf8_lossy(&chunk[request.args.clone()]).into_owned();
        bytes::Buf::advance(chunk, len);
        let slot = client.open_slot(0, false, request.noreply, len);
        let question = match request.verb {
            Verb::FlushAll => Question::FlushAll { delay: request.exptime },
            Verb::Stats => Question::Stats(args),
            Verb::Resync => Question::Resync(args),
            Verb::Version => {
                self.answer_client(index, slot, 0, Answer::Static(super::VERSION_LINE.as_bytes()));
                return true;
            }
            Verb::Quit => {
                self.answer_client(index, slot, 0, Answer::Static(b""));
                self.close_client(index);
                return true;
            }
            // Verbosity is the node's affair elsewhere; the proxy's log level is set at its start.
            _ => {
                self.answer_client(index, slot, 0, Answer::Static(b"OK\r\n"));
                return true;
            }
        };
        client.exclusive = true;
        let client = ClientKey { index, generation: client.generation };
        self.outbox.events.push(Event::Ask { worker: self.settings.worker, client, slot, question });
        true
    }

    fn answer_client(&mut self, index: u32, slot: u64, part: u32, answer: Answer) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if client.answer(slot, part, answer) {
            mark_client_dirty(client, index, &mut self.outbox);
            if client.stalled {
                client.stalled = false;
                self.outbox.resumable.push(index);
            }
        }
    }

    fn deliver(&mut self, origin: Origin, answer: Answer) {
        if origin.worker != self.settings.worker {
            self.outbox.peers.push((origin.worker, PeerMessage::Answer(origin, answer)));
            return;
        }
        if self.clients.get(origin.client.index as usize).is_some_and(|c| c.generation == origin.client.generation) {
            self.answer_client(origin.client.index, origin.slot, origin.part, answer);
        }
    }

    // ---- other workers and the control plane ------------------------------------------------------------------------------------

    /// Takes a message of another worker.
    pub fn peer(&mut self, message: PeerMessage) {
        match message {
            PeerMessage::Op(op) => {
                let id = self.ops.insert(*op) as u32;
                self.begin(id);
            }
            PeerMessage::Answer(origin, answer) => self.deliver(origin, answer),
        }
    }

    /// Takes a command of the control plane.
    pub fn command(&mut self, command: Command) {
        match command {
            Command::Close { pair, void, round } => self.close(pair, void, round),
            Command::Open { pair, route } => self.open(pair, route),
            Command::Allow { node, incarnation, unix_time } => self.allow(node, incarnation, unix_time),
            Command::Answer { client, slot, bytes } => {
                if let Some(c) = self.clients.get_mut(client.index as usize)
                    && c.generation == client.generation
                {
                    c.exclusive = false;
                    self.answer_client(client.index, slot, 0, Answer::Bytes(bytes));
                }
            }
            Command::ItemLimit(limit) => self.limits.item_size_max = limit.min(self.settings.item_size_max),
        }
    }

    fn allow(&mut self, node: NodeId, incarnation: Option<Incarnation>, unix_time: u64) {
        self.clocks[node.index()] = unix_time as i64 - (self.now_us / 1_000_000) as i64;
        let link = &mut self.links[node.index()];
        link.incarnation = incarnation;
        link.round = link.round.wrapping_add(1);
        for lane in 0..self.settings.lanes {
            match self.links[node.index()].conns[lane].state {
                LinkState::Idle => self.dial(node, lane),
                // A connection that outlived the node's absence is to the same process; its memory is checked all the same.
                LinkState::Ready | LinkState::Checking if incarnation.is_some() => self.check(node, lane),
                LinkState::Checking => self.ready(node, lane),
                LinkState::Ready | LinkState::Dialing | LinkState::Discarding => {}
            }
        }
    }

    fn close(&mut self, pair: PairId, void: Option<NodeId>, round: u64) {
        let slot = &mut self.pairs[pair.index()];
        let mut voided = slot.closing.take().map(|c| c.void).unwrap_or_default();
        slot.route = Route::Closed;
        if let Some(node) = void
            && !voided.contains(&node)
        {
            voided.push(node);
        }
        slot.closing = Some(Closing { round, in_flight: 0, void: voided, reported: false });
        if let Some(node) = void {
            self.void_flights(pair, node);
        }
        let in_flight = self
            .ops
            .iter()
            .filter(|(_, op)| {
                op.pair == pair && matches!(op.stage, Stage::Leader(_) | Stage::Follower(_) | Stage::Repair)
            })
            .count();
        if let Some(closing) = &mut self.pairs[pair.index()].closing {
            closing.in_flight = in_flight;
        }
        self.report_closed(pair);
    }

    fn report_closed(&mut self, pair: PairId) {
        if let Some(closing) = &mut self.pairs[pair.index()].closing
            && closing.in_flight == 0
            && !closing.reported
        {
            closing.reported = true;
            self.outbox.events.push(Event::Closed { worker: self.settings.worker, pair, round: closing.round });
        }
    }

    /// What is in flight on a deposed node for the pair counts for nothing any more.
    fn void_flights(&mut self, pair: PairId, node: NodeId) {
        let mut stranded = Vec::new();
        for conn in &mut self.links[node.index()].conns {
            for sent in &mut conn.flights {
                let (Flight::Op(id) | Flight::Repair(id, _)) = sent.flight else { continue };
                if self.ops[id as usize].pair == pair {
                    stranded.push((id, true));
                    sent.flight = Flight::Void;
                    conn.voids += 1;
                }
            }
            let (ops, waiting) = (&self.ops, &mut conn.waiting);
            waiting.retain(|&id| {
                let ours = ops[id as usize].pair == pair;
                if ours {
                    stranded.push((id, false));
                }
                !ours
            });
        }
        for (id, sent) in stranded {
            // A repair that ends on the way answers other operations of this list with its own.
            if !self.ops.contains(id as usize) {
                continue;
            }
            match sent {
                true => self.strand(id, node),
                false => self.unsent(id, node),
            }
        }
        self.tell_undrained(node);
    }

    fn tell_undrained(&mut self, node: NodeId) {
        let worker = self.settings.worker;
        let link = &mut self.links[node.index()];
        let voids = link.voids();
        if voids && !link.undrained {
            link.undrained = true;
            self.outbox.events.push(Event::Undrained { worker, node });
        } else if !voids && link.undrained {
            link.undrained = false;
            self.outbox.events.push(Event::Drained { worker, node });
        }
    }

    fn open(&mut self, pair: PairId, route: Route) {
        let slot = &mut self.pairs[pair.index()];
        slot.closing = None;
        if let Route::Open(flow) = &route {
            slot.flow = Some(flow.clone());
        }
        slot.route = route;
        for id in std::mem::take(&mut slot.parked) {
            self.unpark(id);
        }
    }

    fn unpark(&mut self, id: u32) {
        let op = &mut self.ops[id as usize];
        let leader = match &self.pairs[op.pair.index()].route {
            Route::Open(flow) => Some(flow.leader),
            _ => None,
        };
        match op.stage {
            Stage::Held(node) if leader == Some(node) => self.finish_with_answer(id),
            Stage::Held(_) => self.finish(id, Answer::Static(OUTCOME_UNKNOWN)),
            Stage::Unknown(node) if leader == Some(node) && op.kind.is_write() => {
                // The very node that may have executed it leads: running it again could apply it twice.
                self.finish(id, Answer::Static(OUTCOME_UNKNOWN));
            }
            _ => {
                op.stage = Stage::New;
                self.begin(id);
            }
        }
    }

    fn park(&mut self, id: u32, stage: Stage) {
        let op = &mut self.ops[id as usize];
        op.stage = stage;
        op.parked_at_us = self.now_us;
        self.pairs[op.pair.index()].parked.push_back(id);
    }

    // ---- operations -------------------------------------------------------------------------------------------------------------

    fn begin(&mut self, id: u32) {
        let op = &self.ops[id as usize];
        let write = op.kind.is_write();
        match &self.pairs[op.pair.index()].route {
            Route::Closed => return self.park(id, Stage::Parked),
            Route::Dark(reason) => {
                let line = dark_line(*reason);
                self.stats.refused();
                return self.finish(id, Answer::Static(line));
            }
            Route::Open(flow) => {
                if write
                    && !self.fences.is_empty()
                    && let Some(fence) = self.fences.get_mut(op.key())
                {
                    fence.queue.push_back(id);
                    return;
                }
                if op.kind == Kind::Cas && flow.term.is_some_and(|term| op::cas_term(op.cas) != term) {
                    // Taken under another leader or another memory: it must never win, and EXISTS is always a right answer.
                    return self.finish(id, Answer::Static(b"EXISTS\r\n"));
                }
                let leader = flow.leader;
                self.ops[id as usize].stage = Stage::Leader(leader);
                self.send_op(id, leader);
            }
        }
    }

    /// Queues the command of the operation's present stage for a node.
    fn send_op(&mut self, id: u32, node: NodeId) {
        let lane = self.lane(self.ops[id as usize].hash);
        match self.links[node.index()].conns[lane].state {
            LinkState::Ready => {
                let op = &self.ops[id as usize];
                let conn = &mut self.links[node.index()].conns[lane];
                match op.stage {
                    Stage::Leader(_) => {
                        let term = self.pairs[op.pair.index()].flow.as_ref().and_then(|f| f.term);
                        op.encode_leader(&mut conn.out, term);
                    }
                    _ => op.encode_follower(&mut conn.out, op.sent),
                }
                self.sent(node, lane, Flight::Op(id));
            }
            LinkState::Idle => {
                self.links[node.index()].conns[lane].waiting.push_back(id);
                self.dial(node, lane);
            }
            LinkState::Dialing | LinkState::Checking => {
                self.links[node.index()].conns[lane].waiting.push_back(id);
            }
            // Behind a connection in doubt nothing is sent; the fault is told, and the pair's next route decides.
            LinkState::Discarding => self.unsent(id, node),
        }
    }

    fn sent(&mut self, node: NodeId, lane: usize, flight: Flight) {
        let conn = &mut self.links[node.index()].conns[lane];
        conn.flights.push_back(Sent { flight, at_us: self.now_us });
        if !conn.dirty {
            conn.dirty = true;
            self.outbox.dirty_conns.push((node, lane));
        }
    }

    fn lane(&self, hash: u32) -> usize {
        hash as usize % self.settings.lanes
    }

    /// An operation was never sent to the node it waited for: it is as new, or the follower is lost before it got its part.
    fn unsent(&mut self, id: u32, node: NodeId) {
        match self.ops[id as usize].stage {
            Stage::Follower(n) if n == node => self.strand(id, node),
            _ => {
                self.leave_flight(id);
                self.park(id, Stage::Parked);
            }
        }
    }

    /// The answer of `node` for this operation will not come, or counts for nothing.
    fn strand(&mut self, id: u32, node: NodeId) {
        let op = &self.ops[id as usize];
        match op.stage {
            Stage::Leader(n) if n == node => {
                self.leave_flight(id);
                self.park(id, Stage::Unknown(node));
            }
            Stage::Follower(n) if n == node => {
                let leader = self.leader_of(op.pair);
                self.leave_flight(id);
                self.park(id, Stage::Held(leader));
            }
            Stage::Repair => self.repair_broken(id, node),
            _ => {}
        }
    }

    fn leader_of(&self, pair: PairId) -> NodeId {
        match &self.pairs[pair.index()].flow {
            Some(flow) => flow.leader,
            None => self.topology.nodes_of(pair).0,
        }
    }

    fn is_void(&self, pair: PairId, node: NodeId) -> bool {
        self.pairs[pair.index()].closing.as_ref().is_some_and(|c| c.void.contains(&node))
    }

    /// The operation is not in flight any more: the pair's gate may be waiting for that, and so may a repair of its key.
    fn leave_flight(&mut self, id: u32) {
        let op = &self.ops[id as usize];
        let pair = op.pair;
        if let Some(closing) = &mut self.pairs[pair.index()].closing
            && closing.in_flight > 0
        {
            closing.in_flight -= 1;
        }
        if !self.fences.is_empty() && op.kind.is_write() && op.stage != Stage::Repair {
            self.fence_progress(id);
        }
        self.report_closed(pair);
    }

    fn finish_with_answer(&mut self, id: u32) {
        let answer = self.ops[id as usize].answer.take().unwrap_or(Answer::Static(OUTCOME_UNKNOWN));
        self.finish(id, answer);
    }

    fn finish(&mut self, id: u32, answer: Answer) {
        // While a gate closes, the counting in `leave_flight` is only for what was in flight.
        if matches!(self.ops[id as usize].stage, Stage::Leader(_) | Stage::Follower(_) | Stage::Repair) {
            self.leave_flight(id);
        }
        let op = self.ops.remove(id as usize);
        self.deliver(op.origin, answer);
    }

    // ---- answers of nodes -------------------------------------------------------------------------------------------------------

    /// A connection: the shell reads into its `input` and writes its `out`.
    pub fn conn(&mut self, node: NodeId, lane: usize) -> &mut super::link::Conn {
        &mut self.links[node.index()].conns[lane]
    }

    /// Parses what has come from a node.
    pub fn node_input(&mut self, node: NodeId, lane: usize) {
        loop {
            let conn = &mut self.links[node.index()].conns[lane];
            if conn.state == LinkState::Discarding {
                conn.input.clear();
                return;
            }
            let reply = match reply::parse_reply_within(&conn.input, &REPLY_LIMITS) {
                Ok(ParsedReply::Reply(reply)) => reply,
                Ok(ParsedReply::Incomplete { need }) => {
                    conn.need = need;
                    return;
                }
                Err(error) => {
                    tracing::warn!(node = %self.topology.addr(node), %error, "a node does not speak memcached's protocol");
                    return self.doubt(node, lane);
                }
            };
            let mut len = reply.len;
            if matches!(reply.kind, ReplyKind::Value { .. }) {
                // A value answers a command on one key, so the end must follow at once.
                let rest = &conn.input[len..];
                if !b"END\r\n".starts_with(&rest[..rest.len().min(5)]) {
                    tracing::warn!(node = %self.topology.addr(node), "a node sent a value where the end of the answer was due");
                    return self.doubt(node, lane);
                }
                if rest.len() < 5 {
                    conn.need = len + 5;
                    return;
                }
                len += 5;
            }
            let Some(sent) = conn.flights.pop_front() else {
                tracing::warn!(node = %self.topology.addr(node), said = %String::from_utf8_lossy(&conn.input[..len.min(80)]).trim_end(),
                    "a node answered what it was not asked");
                return self.doubt(node, lane);
            };
            conn.lateness = 0;
            let unit = conn.input.split_to(len).freeze();
            let fine = match sent.flight {
                Flight::Op(id) => self.op_answered(id, node, lane, &reply, unit),
                Flight::Repair(id, step) => self.repair_answered(id, step, &reply, &unit),
                Flight::Marker(round) => self.marker_answered(node, lane, round, &reply, &unit),
                Flight::Void => {
                    conn.voids -= 1;
                    self.tell_undrained(node);
                    true
                }
            };
            if !fine {
                return self.doubt(node, lane);
            }
        }
    }

    /// `false`: that is no answer to the operation's command.
    fn op_answered(&mut self, id: u32, node: NodeId, lane: usize, reply: &Reply, unit: Bytes) -> bool {
        match self.ops[id as usize].stage {
            Stage::Leader(_) => self.leader_answered(id, node, lane, reply, unit),
            Stage::Follower(_) => self.follower_answered(id, reply),
            _ => true,
        }
    }

    fn leader_answered(&mut self, id: u32, node: NodeId, lane: usize, reply: &Reply, unit: Bytes) -> bool {
        let op = &self.ops[id as usize];
        let (kind, pair) = (op.kind, op.pair);
        let right_key = match &reply.kind {
            ReplyKind::Value { key, .. } => &unit[key.clone()] == op.key(),
            _ => true,
        };
        let Some(effect) = op::effect(kind, &reply.kind).filter(|_| right_key) else {
            // Whatever it executed is unknown; the connection is closed by the caller.
            self.strand(id, node);
            return false;
        };
        let term = self.pairs[pair.index()].flow.as_ref().and_then(|f| f.term);
        let answer = client_answer(op, reply, unit, term);
        if kind.reads() {
            let hit = matches!(reply.kind, ReplyKind::Value { .. });
            self.stats.read(hit);
            if !hit {
                self.ask_marker_after_miss(node, lane);
            }
        }
        if effect == Effect::Nothing {
            self.finish(id, answer);
            return true;
        }
        let op = &mut self.ops[id as usize];
        if op.answer.is_none() {
            op.answer = Some(answer);
        }
        if let ReplyKind::Number(number) = reply.kind {
            op.number = number;
        }
        let follower = self.pairs[pair.index()].flow.as_ref().map_or(Follower::None, |f| f.follower.clone());
        let Some(target) = follower.node() else {
            self.finish_with_answer(id);
            return true;
        };
        if self.is_void(pair, target) {
            self.leave_flight(id);
            self.park(id, Stage::Held(node));
            return true;
        }
        let op = &mut self.ops[id as usize];
        op.sent = match (&follower, effect) {
            (Follower::InSync(_), Effect::Unknown) => {
                self.repair(id);
                return true;
            }
            (Follower::Filling(..), Effect::Unknown) => Mirror::Delete,
            (Follower::Filling(..), _) => op::mirror_filling(kind),
            _ => op::mirror(kind),
        };
        op.stage = Stage::Follower(target);
        self.send_op(id, target);
        true
    }

    fn follower_answered(&mut self, id: u32, reply: &Reply) -> bool {
        let op = &self.ops[id as usize];
        let pair = op.pair;
        let Stage::Follower(node) = op.stage else { return true };
        let Some(agreement) = op::agreement(op.sent, op.number, &reply.kind) else {
            self.strand(id, node);
            return false;
        };
        let flow = self.pairs[pair.index()].flow.as_ref();
        if let Some(Flow { follower: Follower::Filling(_, recopy), .. }) = flow {
            // Registered after the copy was dropped and before the client is answered: a hand-back waits for it.
            if (op.sent == Mirror::Delete && op.kind != Kind::Delete) || agreement == Agreement::Differ {
                recopy.push(Bytes::copy_from_slice(op.key()));
            }
            self.finish_with_answer(id);
            return true;
        }
        if agreement == Agreement::Agree {
            self.finish_with_answer(id);
        } else if flow.is_some_and(|f| self.is_void(pair, f.leader)) {
            // The leader is deposed: this node leads next, and what it answered decides.
            let answer = decisive_answer(op, reply);
            self.finish(id, answer);
        } else {
            self.stats.diverged();
            self.repair(id);
        }
        true
    }

    fn ask_marker_after_miss(&mut self, node: NodeId, lane: usize) {
        let link = &mut self.links[node.index()];
        let conn = &mut link.conns[lane];
        if link.incarnation.is_none()
            || self.now_us < conn.marker_asked_us + MARKER_CHECK_US
            || conn.state != LinkState::Ready
        {
            return;
        }
        conn.marker_asked_us = self.now_us;
        let round = link.round;
        conn.out.put(super::MARKER_READ);
        self.sent(node, lane, Flight::Marker(round));
    }

    // ---- connections ------------------------------------------------------------------------------------------------------------

    fn dial(&mut self, node: NodeId, lane: usize) {
        let conn = &mut self.links[node.index()].conns[lane];
        conn.state = LinkState::Dialing;
        conn.generation = conn.generation.wrapping_add(1);
        self.outbox.dials.push((node, lane, conn.generation));
    }

    /// A dialled connection stands.
    pub fn conn_up(&mut self, node: NodeId, lane: usize) {
        if self.links[node.index()].incarnation.is_some() {
            self.check(node, lane);
        } else {
            self.ready(node, lane);
        }
    }

    /// Nothing is sent on the connection until the marker shows whose memory it leads to.
    fn check(&mut self, node: NodeId, lane: usize) {
        let round = self.links[node.index()].round;
        let conn = &mut self.links[node.index()].conns[lane];
        conn.state = LinkState::Checking;
        conn.out.put(super::MARKER_READ);
        self.sent(node, lane, Flight::Marker(round));
    }

    fn ready(&mut self, node: NodeId, lane: usize) {
        let conn = &mut self.links[node.index()].conns[lane];
        conn.state = LinkState::Ready;
        for id in std::mem::take(&mut conn.waiting) {
            self.send_op(id, node);
        }
    }

    fn marker_answered(&mut self, node: NodeId, lane: usize, round: u32, reply: &Reply, unit: &Bytes) -> bool {
        if round != self.links[node.index()].round {
            // Asked before the control plane told of the present memory: the answer may show the one before.
            return matches!(reply.kind, ReplyKind::MetaVa { .. } | ReplyKind::MetaEn);
        }
        let expected = self.links[node.index()].incarnation;
        let reason = match &reply.kind {
            ReplyKind::MetaVa { data } => {
                if expected.is_none_or(|i| unit[data.clone()] == *i.to_string().as_bytes()) {
                    None
                } else {
                    Some(Reason::MarkerStale)
                }
            }
            ReplyKind::MetaEn => Some(Reason::MarkerLost),
            _ => return false,
        };
        match reason {
            None => {
                if self.links[node.index()].conns[lane].state == LinkState::Checking {
                    self.ready(node, lane);
                }
            }
            Some(reason) => self.fault(node, reason, false),
        }
        true
    }

    fn fault(&mut self, node: NodeId, reason: Reason, patience_over: bool) {
        self.outbox.events.push(Event::Fault { node, reason, patience_over });
    }

    /// A dial failed, or the node closed or reset the connection.
    pub fn conn_down(&mut self, node: NodeId, lane: usize, reason: Reason) {
        let conn = &mut self.links[node.index()].conns[lane];
        let was = conn.state;
        conn.state = LinkState::Idle;
        conn.generation = conn.generation.wrapping_add(1);
        conn.out = super::out::OutQueue::default();
        conn.input.clear();
        conn.need = 0;
        conn.voids = 0;
        conn.lateness = 0;
        let flights = std::mem::take(&mut conn.flights);
        let waiting = std::mem::take(&mut conn.waiting);
        let mut hurt = was == LinkState::Dialing || was == LinkState::Checking || !waiting.is_empty();
        for sent in flights {
            match sent.flight {
                Flight::Op(id) | Flight::Repair(id, _) => {
                    hurt = true;
                    if self.ops.contains(id as usize) {
                        self.strand(id, node);
                    }
                }
                Flight::Void | Flight::Marker(_) => {}
            }
        }
        for id in waiting {
            if self.ops.contains(id as usize) {
                self.unsent(id, node);
            }
        }
        if hurt {
            self.fault(node, reason, false);
        } else {
            self.outbox.events.push(Event::Hint { node });
        }
        self.tell_undrained(node);
    }

    /// The framing of a connection is in doubt: nothing more is sent on it, and what it still executes is over when the node closes it.
    fn doubt(&mut self, node: NodeId, lane: usize) {
        let conn = &mut self.links[node.index()].conns[lane];
        if conn.state == LinkState::Discarding {
            return;
        }
        conn.state = LinkState::Discarding;
        conn.out = super::out::OutQueue::default();
        conn.input.clear();
        let flights = std::mem::take(&mut conn.flights);
        let waiting = std::mem::take(&mut conn.waiting);
        conn.voids = 1;
        for sent in flights {
            if let Flight::Op(id) | Flight::Repair(id, _) = sent.flight
                && self.ops.contains(id as usize)
            {
                self.strand(id, node);
            }
        }
        for id in waiting {
            if self.ops.contains(id as usize) {
                self.unsent(id, node);
            }
        }
        // The shell sees the state, closes its half, and reads until the node closes the other.
        let conn = &mut self.links[node.index()].conns[lane];
        if !conn.dirty {
            conn.dirty = true;
            self.outbox.dirty_conns.push((node, lane));
        }
        self.fault(node, Reason::Protocol, false);
        self.tell_undrained(node);
    }

    fn publish_gauges(&self) {
        for (link, gauges) in self.links.iter().zip(&self.stats.nodes) {
            let open = |c: &&super::link::Conn| {
                matches!(c.state, LinkState::Checking | LinkState::Ready | LinkState::Discarding)
            };
            gauges.connections.store(link.conns.iter().filter(open).count() as u64, Relaxed);
            gauges.in_flight.store(link.conns.iter().map(|c| c.flights.len() as u64).sum(), Relaxed);
        }
    }

    /// Looks for answers that are late and for operations parked too long. Called every few milliseconds.
    pub fn tick(&mut self) {
        self.publish_gauges();
        for index in 0..self.links.len() {
            for lane in 0..self.settings.lanes {
                let conn = &mut self.links[index].conns[lane];
                let Some(oldest) = conn.flights.iter().find(|s| s.flight != Flight::Void) else { continue };
                let age = self.now_us.saturating_sub(oldest.at_us);
                let lateness =
                    u8::from(age > self.settings.timeout_us) + u8::from(age > self.settings.leader_timeout_us);
                if lateness > conn.lateness {
                    conn.lateness = lateness;
                    self.fault(NodeId(index as u16), Reason::Timeout, lateness > 1);
                }
            }
        }
        let patience = self.settings.leader_timeout_us + self.settings.timeout_us;
        for index in 0..self.pairs.len() {
            while let Some(&id) = self.pairs[index].parked.front()
                && self.now_us.saturating_sub(self.ops[id as usize].parked_at_us) > patience
            {
                self.pairs[index].parked.pop_front();
                self.stats.refused();
                self.finish(
                    id,
                    Answer::Static(b"SERVER_ERROR the key's nodes are changing roles and did not finish in time\r\n"),
                );
            }
        }
    }

    // ---- repair -----------------------------------------------------------------------------------------------------------------

    /// Leader and follower answered differently: drop the follower's copy, add the leader's, verify; later writes of the key wait.
    fn repair(&mut self, id: u32) {
        let op = &mut self.ops[id as usize];
        op.stage = Stage::Repair;
        op.repair = Some(Box::new(Repair::default()));
        let key = Bytes::copy_from_slice(op.key());
        if let Some(fence) = self.fences.get_mut(&key) {
            // An older write of the key is being repaired: when it is equal, so is this one.
            fence.attached.push(id);
            self.fence_progress_key(&key);
            return;
        }
        let begun = |op: &Op| {
            op.kind.is_write() && matches!(op.stage, Stage::Leader(_) | Stage::Follower(_)) && op.key() == &key[..]
        };
        let waiting_for = self.ops.iter().filter(|(_, op)| begun(op)).count() as u32;
        self.fences.insert(key.clone(), Fence { owner: id, waiting_for, ..Fence::default() });
        if waiting_for == 0 {
            self.repair_read(&key);
        }
    }

    /// A write begun before the fence stood is through.
    fn fence_progress(&mut self, id: u32) {
        let key = self.ops[id as usize].key();
        if let Some((key, _)) = self.fences.get_key_value(key) {
            let key = key.clone();
            self.fence_progress_key(&key);
        }
    }

    fn fence_progress_key(&mut self, key: &Bytes) {
        if let Some(fence) = self.fences.get_mut(key)
            && fence.waiting_for > 0
        {
            fence.waiting_for -= 1;
            if fence.waiting_for == 0 {
                self.repair_read(key);
            }
        }
    }

    fn repair_read(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.get_mut(key) else { return };
        fence.item = None;
        fence.marker_ok = false;
        let id = fence.owner;
        let op = &self.ops[id as usize];
        let pair = op.pair;
        let leader = self.leader_of(pair);
        let lane = self.lane(op.hash);
        let follower = self.pairs[pair.index()].flow.as_ref().and_then(|f| f.follower.node());
        let usable =
            |node: NodeId| !self.is_void(pair, node) && self.links[node.index()].conns[lane].state == LinkState::Ready;
        match follower {
            Some(f) if usable(leader) && usable(f) => {}
            Some(f) if usable(leader) => return self.repair_broken(id, f),
            _ => return self.repair_broken(id, leader),
        }
        let marked = self.links[leader.index()].incarnation.is_some();
        let conn = &mut self.links[leader.index()].conns[lane];
        // Read first whether the leader's memory is still the one the route was made for: if it has just gone, "repairing" would
        // destroy the good copy.
        if marked {
            conn.out.put(super::MARKER_READ);
            self.sent(leader, lane, Flight::Repair(id, RepairStep::Marker));
        } else if let Some(fence) = self.fences.get_mut(key) {
            fence.marker_ok = true;
        }
        let conn = &mut self.links[leader.index()].conns[lane];
        conn.out.put(b"mg ");
        conn.out.put(key);
        conn.out.put(b" v f t c\r\n");
        self.sent(leader, lane, Flight::Repair(id, RepairStep::Read));
        self.set_outstanding(id, 1 + u32::from(marked));
    }

    fn set_outstanding(&mut self, id: u32, count: u32) {
        if let Some(repair) = &mut self.ops[id as usize].repair {
            repair.outstanding = count;
        }
    }

    fn repair_answered(&mut self, id: u32, step: RepairStep, reply: &Reply, unit: &Bytes) -> bool {
        let Some(op) = self.ops.get_mut(id as usize) else { return true };
        let pair = op.pair;
        let key = Bytes::copy_from_slice(op.key());
        let Some(repair) = &mut op.repair else { return true };
        repair.outstanding = repair.outstanding.saturating_sub(1);
        let outstanding = repair.outstanding;
        let leader = self.leader_of(pair);
        let Some(fence) = self.fences.get_mut(&key) else { return true };
        let flag = |letter| reply::meta_flag(&unit[reply.line.clone()], letter).and_then(parse_i64);
        match (step, &reply.kind) {
            (RepairStep::Marker, ReplyKind::MetaVa { data }) => {
                fence.marker_ok = self.links[leader.index()]
                    .incarnation
                    .is_none_or(|i| unit[data.clone()] == *i.to_string().as_bytes());
            }
            (RepairStep::Marker, ReplyKind::MetaEn) => {
                self.fault(leader, Reason::MarkerLost, false);
            }
            (RepairStep::Read, ReplyKind::MetaVa { data }) => {
                let stale =
                    [b'W', b'X', b'Z'].into_iter().any(|f| reply::meta_flag(&unit[reply.line.clone()], f).is_some());
                let item = LeaderItem {
                    data: unit.slice(data.clone()),
                    flags: flag(b'f').unwrap_or(0) as u32,
                    ttl: flag(b't').unwrap_or(0),
                    cas: flag(b'c').unwrap_or(0) as u64,
                };
                // A stale item must not become a fresh one, and a remaining time of 0 stored back would mean for ever.
                fence.item = Some((!stale && item.ttl != 0).then_some(item));
            }
            (RepairStep::Read, ReplyKind::MetaEn) => fence.item = Some(None),
            (RepairStep::Drop, ReplyKind::MetaHd | ReplyKind::MetaNf) => {}
            (RepairStep::Add, ReplyKind::MetaHd) => {}
            (RepairStep::Add, ReplyKind::MetaNs | ReplyKind::ServerError) => {
                // Refused for its size or for want of memory: the follower holds nothing of the key rather than something old.
                self.stats.repair_failed();
                fence.item = Some(None);
            }
            (RepairStep::Verify, ReplyKind::MetaHd | ReplyKind::MetaEn) => {
                let now = (reply.kind == ReplyKind::MetaHd).then(|| flag(b'c').unwrap_or(0) as u64);
                let read = fence.item.as_ref().and_then(|i| i.as_ref().map(|i| i.cas));
                if now == read || read.is_none() {
                    self.stats.repaired();
                    self.repair_done(&key);
                    return true;
                }
                if let Some(repair) = &mut self.ops[id as usize].repair {
                    repair.tries += 1;
                    if repair.tries < REPAIR_TRIES {
                        self.repair_read(&key);
                    } else {
                        self.stats.repair_failed();
                        self.repair_done(&key);
                    }
                }
                return true;
            }
            (_, ReplyKind::ServerError) => self.stats.repair_failed(),
            _ => {
                return false;
            }
        }
        if outstanding > 0 {
            return true;
        }
        match step {
            RepairStep::Marker | RepairStep::Read => self.repair_write(&key),
            RepairStep::Drop | RepairStep::Add => self.repair_verify(&key),
            RepairStep::Verify => {}
        }
        true
    }

    fn repair_write(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.get(key) else { return };
        let id = fence.owner;
        let op = &self.ops[id as usize];
        let (pair, lane) = (op.pair, self.lane(op.hash));
        let follower = self.pairs[pair.index()].flow.as_ref().and_then(|f| f.follower.node());
        let (Some(node), true, Some(item)) = (follower, fence.marker_ok, fence.item.clone()) else {
            return self.repair_broken(id, self.leader_of(pair));
        };
        if self.is_void(pair, node) || self.links[node.index()].conns[lane].state != LinkState::Ready {
            return self.repair_broken(id, node);
        }
        let clock = self.clocks[node.index()] + (self.now_us / 1_000_000) as i64;
        let out = &mut self.links[node.index()].conns[lane].out;
        out.put(b"md ");
        out.put(key);
        out.put(b"\r\n");
        if let Some(item) = &item {
            out.put(b"ms ");
            out.put(key);
            out.put(b" ");
            out.put_number(item.data.len());
            out.put(b" ME F");
            out.put_number(item.flags);
            if item.ttl > 0 {
                out.put(b" T");
                out.put_number(if item.ttl > RELATIVE_EXPTIME_MAX { clock + item.ttl } else { item.ttl });
            }
            out.put(b"\r\n");
            out.put_shared(item.data.clone());
            out.put(b"\r\n");
        }
        self.sent(node, lane, Flight::Repair(id, RepairStep::Drop));
        if item.is_some() {
            self.sent(node, lane, Flight::Repair(id, RepairStep::Add));
        }
        self.set_outstanding(id, 1 + u32::from(item.is_some()));
    }

    fn repair_verify(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.get(key) else { return };
        let id = fence.owner;
        let op = &self.ops[id as usize];
        let leader = self.leader_of(op.pair);
        let lane = self.lane(op.hash);
        if self.is_void(op.pair, leader) || self.links[leader.index()].conns[lane].state != LinkState::Ready {
            // The follower holds what the leader held when it answered: that is as good as verified, for the writes are fenced.
            return self.repair_done(key);
        }
        let out = &mut self.links[leader.index()].conns[lane].out;
        out.put(b"mg ");
        out.put(key);
        out.put(b" c\r\n");
        self.sent(leader, lane, Flight::Repair(id, RepairStep::Verify));
        self.set_outstanding(id, 1);
    }

    fn repair_done(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.remove(key) else { return };
        for id in std::iter::once(fence.owner).chain(fence.attached) {
            self.finish_with_answer(id);
        }
        for id in fence.queue {
            self.begin(id);
        }
    }

    /// The repair cannot go on because `node` is out of use.
    fn repair_broken(&mut self, id: u32, node: NodeId) {
        let op = &self.ops[id as usize];
        let pair = op.pair;
        let key = Bytes::copy_from_slice(op.key());
        let leader = self.leader_of(pair);
        let Some(fence) = self.fences.remove(&key) else { return };
        let rewritten = matches!(fence.item, Some(Some(_))) && fence.marker_ok;
        let owner = fence.owner;
        self.forget_repair_flights(owner);
        for id in std::iter::once(owner).chain(fence.attached) {
            if node != leader {
                // The follower is lost: the leader's answer stands, once the loss is recorded.
                self.leave_flight(id);
                self.park(id, Stage::Held(leader));
            } else if rewritten {
                self.finish_with_answer(id);
            } else {
                self.finish(id, Answer::Static(OUTCOME_UNKNOWN));
            }
        }
        for id in fence.queue {
            self.begin(id);
        }
    }

    fn forget_repair_flights(&mut self, id: u32) {
        for link in &mut self.links {
            for conn in &mut link.conns {
                for sent in &mut conn.flights {
                    if matches!(sent.flight, Flight::Repair(op, _) if op == id) {
                        sent.flight = Flight::Void;
                        conn.voids += 1;
                    }
                }
            }
        }
        for index in 0..self.links.len() {
            self.tell_undrained(NodeId(index as u16));
        }
    }
}

const OUTCOME_UNKNOWN: &[u8] =
    b"SERVER_ERROR the only copy's node failed before it answered; the command may or may not have taken effect\r\n";

fn mark_client_dirty(client: &mut Client, index: u32, outbox: &mut Outbox) {
    if !client.dirty {
        client.dirty = true;
        outbox.dirty_clients.push(index);
    }
}

/// What a client is told of the leader's answer.
fn client_answer(op: &Op, reply: &Reply, unit: Bytes, term: Option<crate::ids::Term>) -> Answer {
    match &reply.kind {
        ReplyKind::Stored => Answer::Static(b"STORED\r\n"),
        ReplyKind::NotStored => Answer::Static(b"NOT_STORED\r\n"),
        ReplyKind::Exists => Answer::Static(b"EXISTS\r\n"),
        ReplyKind::NotFound => Answer::Static(b"NOT_FOUND\r\n"),
        ReplyKind::Deleted => Answer::Static(b"DELETED\r\n"),
        ReplyKind::Touched => Answer::Static(b"TOUCHED\r\n"),
        ReplyKind::End => Answer::Static(b"END\r\n"),
        ReplyKind::Value { cas: Some(cas), data, .. } if term.is_some() => {
            // The token the client gets carries the term of this leadership.
            let token = op::client_cas(*cas, term.unwrap_or(crate::ids::Term(0)));
            let line = &unit[reply.line.clone()];
            let head = line.iter().rposition(|&b| b == b' ').map_or(line, |at| &line[..=at]);
            let tail = &unit[data.start - 2..unit.len() - if op.multi { 5 } else { 0 }];
            let mut out = BytesMut::with_capacity(head.len() + 20 + tail.len());
            out.extend_from_slice(head);
            out.extend_from_slice(itoa::Buffer::new().format(token).as_bytes());
            out.extend_from_slice(tail);
            Answer::Bytes(out.freeze())
        }
        ReplyKind::Value { .. } if op.multi => Answer::Bytes(unit.slice(..unit.len() - 5)),
        _ => Answer::Bytes(unit),
    }
}

/// What a client is told when the leader that answered was deposed and the follower, which leads next, answered something else.
fn decisive_answer(op: &Op, reply: &Reply) -> Answer {
    match (&reply.kind, &op.answer) {
        (ReplyKind::Number(number), _) => Answer::Bytes(Bytes::from(format!("{number}\r\n"))),
        (ReplyKind::NotStored, _) => Answer::Static(b"NOT_STORED\r\n"),
        (ReplyKind::NotFound, _) if op.kind.reads() => Answer::Static(b"END\r\n"),
        (ReplyKind::NotFound, _) => Answer::Static(b"NOT_FOUND\r\n"),
        _ => Answer::Static(OUTCOME_UNKNOWN),
    }
}

fn dark_line(reason: Reason) -> &'static [u8] {
    match reason {
        Reason::Refused => b"SERVER_ERROR no copy of this key is reachable: its last node refuses connections\r\n",
        Reason::Reset => b"SERVER_ERROR no copy of this key is reachable: its last node broke the connection\r\n",
        Reason::Timeout => b"SERVER_ERROR no copy of this key is reachable: its last node does not answer in time\r\n",
        Reason::Protocol => b"SERVER_ERROR no copy of this key is reachable: its last node does not speak memcached's protocol\r\n",
        Reason::StaleAlone => b"SERVER_ERROR the reachable copy of this key is recorded as out of date and the current one does not answer\r\n",
        Reason::MarkerLost | Reason::MarkerStale | Reason::Empty => {
            b"SERVER_ERROR no copy of this key is left: its last node lost its memory and the other is not usable yet\r\n"
        }
        _ => b"SERVER_ERROR no copy of this key is reachable\r\n",
    }
}
