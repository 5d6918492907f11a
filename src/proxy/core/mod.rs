//! The data plane of one worker thread, without I/O and without a clock.
//!
//! Its driver calls `handle_*` for all that has happened, with the time ([`Now`]), and then polls,
//! as often as it likes, until [`Core::has_output`] is false: [`Core::poll_event`] (for the
//! control plane), [`Core::poll_peer`] (for other workers), [`Core::poll_dial`],
//! [`Core::poll_dirty_conn`] with [`Core::conn_to_write`], [`Core::poll_dirty_client`] with
//! [`Core::client_to_write`]. Only [`Core::poll_hangup`] has to come before anything else is
//! handled, and [`Core::poll_resumable`] begins a new turn ([`Core::next_turn`]). Threads, the
//! simulation and the tests drive it by these calls alone.
//!
//! A request becomes one [`Op`](crate::proxy::op::Op) a key. Reads go to the pair's leader over
//! this worker's own connections. Writes go through the key's *owner* (one worker, one connection
//! per node), leader first, then the follower, then the client is answered; so both nodes see the
//! writes of a key in one order, whichever clients they come from.
//!
//! The worker never decides who leads. It follows the routes that the control plane publishes,
//! reports what it sees of the nodes, and parks what cannot go on: an operation whose node broke
//! waits for the pair's next route.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::ids::{KeyId, WorkerId};
use crate::protocol::outcome::Refusal;
use crate::protocol::request::Limits;
use crate::ring::Topology;
use crate::stats::WorkerStats;

mod bursts;
mod census;
mod clients;
mod conns;
mod edges;
mod fences;
mod key_at;
mod looks;
mod marks;
mod messages;
mod operators;
mod ops;
mod orders;
mod outbox;
mod pairs;
mod proofs;
mod repairs;
mod replies;
mod requests;
mod stand_ins;
mod starved;
mod traces;

pub use census::Connected;
pub use clients::{Reading, Room, ToWrite};
use fences::Fences;
pub use messages::{Adopted, Command, Event, LiveSettings, PeerMessage, Question, Settlement};
use outbox::Outbox;
use pairs::Pairs;
pub use requests::owner_of;

use crate::proxy::adds::Adds;
use crate::proxy::clients::Clients;
use crate::proxy::gone::{Gone, WrittenBriefly};
use crate::proxy::handles::Occupant;
use crate::proxy::in_flight::Spare;
use crate::proxy::links::Links;
use crate::proxy::memory::Memory;
use crate::proxy::table::OpTable;

/// What time it is for a worker.
#[derive(Clone, Copy, Default, Debug)]
pub struct Now {
    /// Microseconds for which the worker has run since it started; those in which it stood still do
    /// not count.
    pub us: u64,
    /// The date by the proxy's clock, microseconds. It goes on while the worker stands still, as
    /// the nodes' dates do.
    pub date_us: u64,
}

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct CoreSettings {
    /// Its number.
    pub worker: WorkerId,
    /// How many there are.
    pub workers: u16,
    /// Connections of this worker to each node.
    pub lanes: u16,
    /// How long an answer may take, microseconds.
    pub timeout_us: u64,
    /// How long the answer of a last full copy may take, microseconds.
    pub leader_timeout_us: u64,
    /// Largest item taken from clients, bytes.
    pub item_size_max: usize,
    /// Clients may say `resync`.
    pub operator_commands: bool,
}

impl CoreSettings {
    /// Of this worker, one of this many, each with this many connections to each node.
    pub(crate) fn new(
        worker: WorkerId,
        (workers, lanes): (u16, u16),
        item_size_max: usize,
        live: &LiveSettings,
    ) -> CoreSettings {
        let (timeout_us, leader_timeout_us, operator_commands) = (0, 0, false);
        let mut settings =
            CoreSettings { worker, workers, lanes, timeout_us, leader_timeout_us, item_size_max, operator_commands };
        settings.take(live);
        settings
    }

    /// What can change while the proxy runs.
    fn take(&mut self, live: &LiveSettings) {
        let micros = |time: Duration| time.as_micros() as u64;
        (self.timeout_us, self.leader_timeout_us) = (micros(live.timeout), micros(live.leader_timeout));
        self.operator_commands = live.operator_commands;
    }
}

/// The data plane of one worker.
#[derive(Debug)]
pub struct Core {
    settings: CoreSettings,
    topology: Arc<Topology>,
    limits: Limits,
    /// Of the call under way.
    now: Now,
    clients: Clients,
    /// Of the last client.
    occupant: Occupant,
    /// Counts the turns in which clients begin requests.
    turn: u32,
    /// The end is near: clients are read from once more, whatever it takes.
    last_turn: bool,
    refusals: operators::Refusals,
    starved: starved::Starved,
    traces: traces::Traces,
    ops: OpTable,
    /// When what a burst has needed was last given back.
    gave_back_us: u64,
    links: Links,
    pairs: Pairs,
    fences: Fences,
    outbox: Outbox,
    spare: Spare,
    memory: Arc<Memory>,
    /// What new clients' values are like, in bytes, as far as is known from those before.
    largest: u32,
    stats: Arc<WorkerStats>,
    adds: Arc<Adds>,
    gone: Arc<Gone>,
    written_briefly: WrittenBriefly,
    /// A leader may show keys that clients were told to be missing; at least until then.
    wary: bool,
    wary_until_us: u64,
    /// In order, as `fences`.
    looks: BTreeMap<KeyId, looks::Look>,
    /// `None`: writes need no mark.
    mark: Option<Box<marks::OwnMark>>,
}

impl Core {
    /// A worker that knows no route yet: everything waits. `adds`: those of all workers.
    pub fn new(settings: CoreSettings, topology: Arc<Topology>, stats: Arc<WorkerStats>, adds: Arc<Adds>) -> Core {
        Core {
            limits: Limits { item_size_max: settings.item_size_max },
            links: Links::new(topology.node_count(), settings.lanes, settings.workers),
            pairs: Pairs::new(topology.pair_count()),
            settings,
            topology,
            now: Now::default(),
            clients: Clients::default(),
            occupant: Occupant(0),
            turn: 0,
            last_turn: false,
            refusals: operators::Refusals::default(),
            starved: starved::Starved::default(),
            traces: traces::Traces::default(),
            ops: OpTable::default(),
            gave_back_us: 0,
            fences: Fences::default(),
            outbox: Outbox::default(),
            spare: Spare::default(),
            memory: Arc::default(),
            largest: 0,
            stats,
            adds,
            gone: Arc::default(),
            written_briefly: WrittenBriefly::default(),
            wary: false,
            wary_until_us: 0,
            looks: BTreeMap::new(),
            mark: None,
        }
    }
}

#[cfg(test)]
impl Core {
    /// Of the last call.
    pub fn now(&self) -> Now {
        self.now
    }
}

const OUTCOME_UNKNOWN: Refusal =
    Refusal::Server("the only copy's node failed before it answered; the command may or may not have taken effect");

#[cfg(test)]
mod tests;
