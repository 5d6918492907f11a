//! The data plane of one worker thread, without I/O and without a clock: bytes and commands in,
//! bytes and events out.
//!
//! A request becomes one [`Op`](crate::proxy::op::Op) a key. Reads go to the pair's leader over
//! this worker's own connections. Writes go through the key's *owner* (one worker, one connection
//! per node), leader first, then the follower, then the client is answered; so both nodes see the
//! writes of a key in one order, whichever clients they come from.
//!
//! The worker never decides who leads. It follows the routes the control plane publishes, tells
//! what it sees of the nodes, and parks what cannot go on: an operation whose node broke waits for
//! the pair's next route.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;

use crate::ids::NodeId;
use crate::protocol::expiry::Offset;
use crate::protocol::item::{Asked, Item};
use crate::protocol::outcome::Refusal;
use crate::protocol::request::Limits;
use crate::ring::Topology;
use crate::stats::WorkerStats;

mod clients;
mod conns;
mod edges;
mod messages;
mod operators;
mod ops;
mod orders;
mod proofs;
mod repairs;
mod replies;
mod starved;
mod traces;

pub use clients::owner_of;
pub use messages::{Adopted, Command, Event, PeerMessage, Question, Settlement};

use crate::proxy::adds::Adds;
use crate::proxy::client::{Client, Spare};
use crate::proxy::link::Link;
use crate::proxy::memory::Memory;
use crate::proxy::op::Stage;
use crate::proxy::route::{Flow, Route};
use crate::proxy::table::OpTable;

/// What the worker's shell is to do after a turn.
#[derive(Default, Debug)]
pub struct Outbox {
    /// For the control plane.
    pub events: Vec<Event>,
    /// For other workers.
    pub peers: Vec<(u16, PeerMessage)>,
    /// Connections to open: node, lane, generation.
    pub dials: Vec<(NodeId, usize, u32)>,
    /// Connections that the core has given up: to be closed before anything else is done.
    pub hangups: Vec<(NodeId, usize)>,
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
    parked: Parked,
}

/// Operations that wait for their pair's next route, in order.
#[derive(Debug, Default)]
struct Parked {
    ids: VecDeque<u32>,
    /// How many of them a node may have executed, or has.
    in_doubt: usize,
    /// None of them has waited too long before then.
    look_at_us: u64,
}

impl Parked {
    fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// `look_at_us`: when it has waited too long.
    fn push(&mut self, id: u32, stage: Stage, look_at_us: u64) {
        self.look_at_us = if self.ids.is_empty() { look_at_us } else { self.look_at_us.min(look_at_us) };
        self.in_doubt += usize::from(stage != Stage::Parked);
        self.ids.push_back(id);
    }

    fn take(&mut self) -> VecDeque<u32> {
        std::mem::take(self).ids
    }
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
    item: Option<Option<Item>>,
    /// What the follower holds, once read: only where nobody knows yet that it differs.
    copy: Option<Option<Item>>,
    /// That is stale, and equals nothing.
    copy_stale: bool,
    marker_ok: bool,
    /// When the two were read, and the date that the leader showed just before its item was.
    asked: Asked,
    /// It ends with a difference: the follower refused the item, or the leader's changed again and
    /// again.
    failed: bool,
    /// Set while the repair waits: for the leader's marker to be written again, or for a
    /// connection.
    retry_at_us: Option<u64>,
    /// Since when it has not come further.
    stuck_us: Option<u64>,
}

/// How many writes are in flight by key, except for those that wait for a repair. Counted from the
/// first repair on, and for a while after the last: each has to know of its key's, and a walk over
/// all operations for each of many repairs grows with their square.
#[derive(Debug)]
struct Begun {
    writes: HashMap<Bytes, u32>,
    asked_at_us: u64,
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
    /// Microseconds for which the worker has run since it started; set by the shell at every turn.
    pub now_us: u64,
    /// Microseconds for which it has stood still, which are not in `now_us`; likewise.
    pub stood_still_us: u64,
    /// The date when `now_us` was 0, by the proxy's clock; set by the shell.
    pub began_at: Duration,
    clients: Slab<Client>,
    generation: u32,
    /// Counts the turns in which clients begin requests.
    turn: u32,
    /// The end is near: clients are read from once more, whatever it takes.
    last_turn: bool,
    refusals: operators::Refusals,
    starved: starved::Starved,
    traces: traces::Traces,
    ops: OpTable,
    links: Vec<Link>,
    /// How far the nodes' dates are ahead of the proxy's.
    offsets: Vec<Option<Offset>>,
    pairs: Vec<PairSlot>,
    /// In order, because it is iterated: what a worker does must follow from what it was told
    /// alone.
    fences: BTreeMap<Bytes, Fence>,
    /// Fences whose repair begins again, and when, in that order; what became of one since is in
    /// the fence.
    retries: VecDeque<(u64, Bytes)>,
    begun: Option<Begun>,
    /// What is to be done outside.
    pub outbox: Outbox,
    spare: Spare,
    memory: Arc<Memory>,
    /// What new clients' values are like, in bytes, as far as is known from those before.
    largest: u32,
    stats: Arc<WorkerStats>,
    adds: Arc<Adds>,
}

impl Core {
    /// A worker that knows no route yet: everything waits. `adds`: those of all workers.
    pub fn new(settings: CoreSettings, topology: Arc<Topology>, stats: Arc<WorkerStats>, adds: Arc<Adds>) -> Core {
        let links =
            (0..topology.node_count()).map(|_| Link::new(settings.lanes, usize::from(settings.workers))).collect();
        let pairs = (0..topology.pair_count())
            .map(|_| PairSlot { route: Route::Closed, flow: None, closing: None, parked: Parked::default() })
            .collect();
        Core {
            limits: Limits { item_size_max: settings.item_size_max },
            offsets: vec![None; topology.node_count()],
            settings,
            topology,
            now_us: 0,
            stood_still_us: 0,
            began_at: Duration::ZERO,
            clients: Slab::new(),
            generation: 0,
            turn: 0,
            last_turn: false,
            refusals: operators::Refusals::default(),
            starved: starved::Starved::default(),
            traces: traces::Traces::default(),
            ops: OpTable::default(),
            links,
            pairs,
            fences: BTreeMap::new(),
            retries: VecDeque::new(),
            begun: None,
            outbox: Outbox::default(),
            spare: Spare::default(),
            memory: Arc::default(),
            largest: 0,
            stats,
            adds,
        }
    }
}

const OUTCOME_UNKNOWN: Refusal =
    Refusal::Server("the only copy's node failed before it answered; the command may or may not have taken effect");

/// Until then it stays stalled: nothing more is read from it.
fn resume_later(client: &mut Client, index: u32, outbox: &mut Outbox) {
    if !client.resuming {
        client.resuming = true;
        outbox.resumable.push(index);
    }
}

#[cfg(test)]
mod tests;
