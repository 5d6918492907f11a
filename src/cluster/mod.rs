//! The control plane: the only owner of the pairs' states.
//!
//! # The loop
//!
//! One task, on the thread that called `main`, or of several pools each on its own. It **owns**
//! every pair's state and plan, what is known of every node, the refills, the flush, and the
//! records' epochs and terms; workers have a copy of each route, jobs a few shared sets of keys,
//! and neither changes what the loop owns.
//!
//! All its input comes as events ([`events`](self)): from workers (a gate is closed, a node failed,
//! a client asks), or from its own tasks, each of which ends in an event (an answer of a node, the
//! end of a pause, a job's question). **An event is handled in this order**, without any waiting:
//!
//! 1. The handler compares it with the state that the loop owns. The subject of a late event may no
//!    longer exist: epochs, rounds, serials, lives and incarnations show that.
//! 2. A pair that learns something ([`Cluster::apply`]) changes its state at once, then its plan,
//!    and each effect is carried out: a command to the workers, a task that writes a record.
//! 3. Whatever changed is marked, and [`Cluster::settle`] triggers everything that follows: jobs
//!    are answered, refills begin, a flush continues. No handler calls a reaction itself.
//!
//! So between two events everything is settled, and no event sees a half-finished change. Events of
//! its own tasks go first: a flood of clients' questions must not delay probes and records. Nothing
//! that [`Cluster::settle`] reads changes by time alone: where time matters, a timer sends an
//! event.
//!
//! **Why one thread.** A loss concerns many pairs, a pair two nodes, a node many jobs: with locks,
//! every rule would need an order of taking them, and two rules could see each other's
//! half-finished changes. One owner makes every transition a plain function that tests call in any
//! order.
//!
//! **What it costs.** No request passes through here, except `flush_all`, `stats` and operator
//! commands. A loss of one of n primaries over m backups: m pairs, each with a command to every
//! worker, a confirmation of each, and one record on the survivor; every other node in use gets it
//! as a witness. After each event up to n + m nodes are asked what is due ([`settle`](self)).
//! Nothing here grows with keys or clients; whatever may take long (a list of keys, reading a
//! node's markers) is a task. The channel to the loop is unbounded, but clients' requests in flight
//! bound what workers send, and each task sends one event.
//!
//! # The chapters
//!
//! - `events`: the loop's input, from workers and from its own tasks.
//! - `edges`: a pair learns something; what follows reaches workers and nodes.
//! - `startup`: the first states; `early`: what is heard before them; `ending`: the end.
//! - `precedence`, `terms`: periods, epochs and terms found on nodes, and how this proxy's become
//!   later than all of them.
//! - `nodes`: what is known of a node, and its loss; `returns`: its return.
//! - `probes`: nodes without client traffic; `evictions`: markers that are gone; `refused`: nodes
//!   that take no more connections.
//! - `lateness`: nodes that answer late, and whether others are late too; `clocks`: their dates.
//! - `settle`: after every event, all that follows from it.
//! - `refills`: which refill is due; `jobs`: resyncs under way; `unread`: what a node evicted
//!   while it was filled, asked for later.
//! - `losses`: losses are agreed on before they count.
//! - `names`: host names, resolved only here; a node whose name has a new address.
//! - `flush`: `flush_all`, a barrier over all pairs.
//! - `records`: who leads, written on the nodes.
//! - `orders`: single keys that a worker is to mend or adopt.
//! - `resyncs`: what jobs and scrubs share; `verify`: comparing the copies of mirrored pairs.
//! - `ask`: what operators ask over the text protocol; `operators`: what they wait for;
//!   `inquiries`: what all servers are asked for it; `one_server`: what one is told; `listings`:
//!   all keys; `conns`: who is connected; `desk`: where the admin listener and socket ask;
//!   `changes`: the last changes, for it.
//! - `held`: how much each server holds; `stored`: how large its items may be.
//! - `copies`: keys that are known to have one copy.
//! - `clean`: keys that a node no longer owns.
//! - `lost_items`: items of which no copy is left.
//! - `foreign`: another proxy over the same nodes; `fleet`, `turn`: one of a fleet, and the one
//!   before.
//! - `summary`: what is said of pairs, nodes and the whole; `report`: that as data.
//! - `settings`: those that change while the proxy runs.
//! - `yielding`: resyncs give way to clients.
//!
//! The rules of a pair's life are in [`crate::pair`]; here they meet sockets and time.

#[cfg(test)]
mod alone;
mod ask;
mod asker;
mod changes;
mod clean;
mod clocks;
mod conns;
mod copies;
mod desk;
mod early;
mod edges;
mod ending;
mod events;
mod evictions;
mod fleet;
mod flush;
mod foreign;
mod held;
mod inquiries;
mod jobs;
mod lateness;
mod listings;
mod losses;
mod lost_items;
mod names;
mod nodes;
mod one_server;
mod operators;
mod orders;
mod precedence;
mod probes;
mod records;
mod refills;
mod refused;
mod report;
mod resyncs;
mod returns;
mod settings;
mod settle;
mod startup;
mod stored;
mod summary;
mod terms;
mod turn;
mod unread;
mod verify;
mod yielding;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ambient;
use crate::backend::marker::{Period, Session};
use crate::backend::{Dial, Memories, NodeControl};
use crate::config::{ResyncMode, Settings};
use crate::ids::{ById, Epoch, NodeId, PairId, Place, SessionId, WorkerId};
use crate::keys::{Lone, Missed, MissedBudget, Recopy};
use crate::pair::{Pair, Plan, State};
use crate::proxy::{Command, Event};
use crate::resync::Verdict;
use crate::ring::Topology;
use crate::rules::{Rule, holds};
use crate::stats::WorkerStats;

pub use desk::{Desk, Listed, Listing, SILENT};
use events::Internal;
pub use losses::{Losses, Lost, NoStandby};
pub use names::Names;
use nodes::NodeRun;
#[cfg(test)]
pub(crate) use probes::JITTER;
pub use turn::{Refused, Turn};

/// The quiet time after an unclean start: what a dead proxy's sockets still held lands before
/// anything is acknowledged.
const QUIET_PERIOD: Duration = Duration::from_millis(200);

/// A record that a live node refused to store is tried again so soon; meanwhile the pair's gate
/// stays closed.
const RECORD_RETRY: Duration = Duration::from_millis(50);

/// A pair and what surrounds its present edge.
struct PairRun {
    pair: Pair,
    /// Counts the closings, so that an old confirmation is recognised.
    round: u64,
    /// Workers that have not confirmed the present closing.
    unconfirmed: BTreeSet<WorkerId>,
    /// Keys to be copied again, while it is recovering.
    recopy: Arc<Recopy>,
    /// Keys whose last mutation did not surely reach the node that is away, since it was last
    /// mirrored.
    missed: Arc<Missed>,
    /// How its follower is made equal when that is next begun.
    plan: Plan,
    /// Keys that have one copy while it is mirrored, or being filled; and what is done about them.
    lone: Arc<Lone>,
    copies: copies::Copies,
    /// While it adopts: the keys that clients have written meanwhile.
    written: Option<Arc<Missed>>,
    beginning: startup::Beginning,
    /// Dark, and what its nodes held was ended by a `flush_all`: nothing is lost with them.
    flushed: bool,
    /// The node that may lead in the awaited one's place was in sync.
    fallback_is_full: bool,
    flush_hold: flush::Hold,
    recording: records::Recording,
    /// The resync waits for the gate to close.
    ready_reply: Option<oneshot::Sender<bool>>,
    /// The resync waits to hear what became of the hand-back.
    drained_reply: Option<oneshot::Sender<Verdict>>,
    since: Instant,
    /// The word that is shown for its state, and since when it is that one.
    word: (&'static str, Instant),
}

impl PairRun {
    /// Of all pairs, each of which begins as this one.
    fn all(topology: &Topology, pair: Pair, resync_memory: usize) -> ById<PairId, PairRun> {
        // As much again as one resync's key list.
        let missed = Arc::new(MissedBudget::new(resync_memory / 2));
        let lone = Arc::new(MissedBudget::new(resync_memory / 8));
        topology.pairs().map(|_| PairRun::new(pair.clone(), &missed, &lone)).collect()
    }

    /// At the start, when nothing is known of the pair. What it keeps in mind counts against these
    /// bounds: of missed keys, and of keys that have one copy.
    fn new(pair: Pair, missed: &Arc<MissedBudget>, lone: &Arc<MissedBudget>) -> PairRun {
        let now = Instant::now();
        PairRun {
            pair,
            round: 0,
            unconfirmed: BTreeSet::new(),
            recopy: Arc::new(Recopy::new()),
            missed: Arc::new(Missed::new(missed.clone())),
            plan: Plan::default(),
            lone: Arc::new(Lone::new(lone.clone())),
            copies: copies::Copies::default(),
            written: None,
            beginning: startup::Beginning::new(),
            flushed: false,
            fallback_is_full: false,
            flush_hold: flush::Hold::None,
            recording: records::Recording::default(),
            ready_reply: None,
            drained_reply: None,
            since: now,
            word: ("", now),
        }
    }
}

/// The workers, as the control plane reaches them.
pub struct Workers {
    pub commands: Vec<UnboundedSender<Command>>,
    pub stats: Vec<Arc<WorkerStats>>,
    /// Set by one that ended with operations unfinished.
    pub unclean: Arc<AtomicBool>,
}

/// When it was made.
#[derive(Clone, Copy)]
struct Begun {
    at: Instant,
    /// Since 1970.
    date: Duration,
}

/// The control plane.
pub struct Cluster {
    settings: Settings,
    topology: Arc<Topology>,
    dialer: Arc<dyn Dial>,
    names: Names,
    fleet: fleet::Fleet,
    /// The names that nodes' memories have had, since before flushes.
    memories: Arc<Memories>,
    controls: ById<NodeId, Arc<NodeControl>>,
    operators: operators::Operators,
    workers: Vec<UnboundedSender<Command>>,
    stats: Vec<Arc<WorkerStats>>,
    nodes: ById<NodeId, NodeRun>,
    pairs: ById<PairId, PairRun>,
    /// Shared by the `written` sets of all pairs.
    written_budget: Arc<MissedBudget>,
    internal: UnboundedSender<Internal>,
    inbox: Option<UnboundedReceiver<Internal>>,
    session: Session,
    suspects: lateness::Suspects,
    precedence: precedence::Precedence,
    begun: Begun,
    resyncs: resyncs::Resyncs,
    flush: flush::Flush,
    delayed: flush::Delayed,
    orders: orders::Orders,
    /// Edges that are logged together, with the states before, while several pairs learn of one
    /// thing.
    edges: Option<Vec<(PairId, State)>>,
    lost_items: lost_items::LostItems,
    /// What the present event has changed; empty between two.
    unsettled: settle::Unsettled,
    /// Set by a worker that ended with operations unfinished.
    unclean: Arc<AtomicBool>,
    probe_times: watch::Sender<settings::ProbeTimes>,
    /// Stops the tasks that outlive a single step.
    shutdown: CancellationToken,
}

impl Cluster {
    /// A control plane over `workers`. Nothing happens before [`Cluster::run`].
    pub fn new(
        settings: Settings,
        topology: Arc<Topology>,
        (dialer, names, losses): (Arc<dyn Dial>, Names, Arc<dyn Losses>),
        Workers { commands: workers, stats, unclean }: Workers,
        shutdown: CancellationToken,
    ) -> Cluster {
        let (internal, inbox) = unbounded_channel();
        let unix_us = if holds(Rule::UniqueEpochs) { ambient::unix_time().as_micros() as u64 } else { 0 };
        let patience = settings.probe_timeout.max(settings.timeout);
        let memories = Arc::new(Memories::default());
        let fleet = fleet::Fleet::new(losses, shutdown.child_token());
        let mark = fleet.turn.as_ref().map(|turn| &turn.mark);
        let control = |node| NodeControl::new(node, dialer.clone(), memories.clone(), patience).of_fleet(mark.cloned());
        let precedence = precedence::Precedence::new(Period(unix_us));
        Cluster {
            nodes: topology.nodes().map(|_| NodeRun::new()).collect(),
            controls: topology.nodes().map(|node| Arc::new(control(node))).collect(),
            operators: operators::Operators::new(&topology, &dialer, patience),
            resyncs: resyncs::Resyncs::new(topology.node_count(), &settings),
            suspects: lateness::Suspects::new(topology.node_count(), &settings),
            pairs: PairRun::all(&topology, Pair::new(Epoch(unix_us), precedence.term()), settings.resync_memory),
            probe_times: settings::ProbeTimes::of(&settings),
            written_budget: Arc::new(MissedBudget::new(settings.resync_memory / 2)),
            settings,
            topology,
            dialer,
            names,
            fleet,
            memories,
            workers,
            stats,
            internal,
            inbox: Some(inbox),
            session: Session { id: SessionId(ambient::random_u64()), open: true },
            precedence,
            begun: Begun { at: Instant::now(), date: ambient::unix_time() },
            flush: flush::Flush::default(),
            delayed: flush::Delayed::default(),
            orders: orders::Orders::default(),
            edges: None,
            lost_items: lost_items::LostItems::default(),
            unsettled: settle::Unsettled::default(),
            unclean,
            shutdown,
        }
    }

    /// Runs until the workers are gone and `shutdown` is cancelled.
    ///
    /// # Errors
    ///
    /// Why it does not start: nothing was written on any server.
    pub async fn run(mut self, mut events: UnboundedReceiver<Event>) -> Result<(), Refused> {
        let (Some(mut inbox), Some(mut requests)) = (self.inbox.take(), self.operators.requests.take()) else {
            return Ok(());
        };
        self.spawn_governor();
        self.spawn_copies_ticker();
        let mut early = early::Early::new(self.workers.clone(), self.fleet.losses.clone());
        {
            let mut start = std::pin::pin!(self.start());
            loop {
                tokio::select! {
                    biased;
                    started = &mut start => break started?,
                    heard = either(&mut events, &mut requests) => if early.hear(heard).is_break() {
                        // Servers that hang are not waited for. The session stays open on those
                        // that carry it by now.
                        tracing::warn!("stopped in the start: servers that are marked already make the next one careful");
                        return Ok(());
                    },
                    () = early.waits_too_long() => early.answer_late(),
                }
            }
        }
        self.fleet.losses.started();
        self.settle();
        self.spawn_resolvers();
        for node in self.topology.nodes() {
            self.spawn_prober(node);
        }
        loop {
            tokio::select! {
                biased;
                // First what its own tasks report: a flood of clients' questions must not keep
                // probes and records waiting.
                internal = inbox.recv() => match internal {
                    Some(internal) => self.own_task_said(internal),
                    None => break,
                },
                // By turns, so that neither clients nor who looks at the page keep the other
                // waiting.
                heard = early.next(&mut events, &mut requests) => match heard {
                    Heard::Worker(Some(event)) => self.worker_said(event),
                    Heard::Desk(request) => self.asked_at_the_desk(request),
                    // Every worker has drained its clients and ended.
                    Heard::Worker(None) => break,
                },
            }
            self.settle();
        }
        // From here on requests get no answer.
        drop(requests);
        self.stop(&mut inbox).await;
        Ok(())
    }

    /// Where to ask it things while it runs.
    pub fn desk(&self) -> Desk {
        self.operators.desk.desk()
    }

    /// Whether nodes carry markers: without backups there is nothing to tell apart, and `off`
    /// trusts whoever answers, like magent.
    fn marked(&self) -> bool {
        self.topology.has_backups() && self.settings.resync != ResyncMode::Off
    }

    fn now(&self) -> Duration {
        self.begun.at.elapsed()
    }

    fn node_at(&self, pair: PairId, place: Place) -> NodeId {
        // A place without a node exists only for the backup of a proxy without backups, whose pairs
        // never name it.
        self.topology.node_at(pair, place).unwrap_or(self.topology.nodes_of(pair).0)
    }

    fn pair_name(&self, id: PairId) -> String {
        match self.topology.nodes_of(id) {
            (primary, Some(backup)) => format!("{}|{}", self.topology.addr(primary), self.topology.addr(backup)),
            (primary, None) => self.topology.addr(primary).to_string(),
        }
    }
}

/// What is heard from outside of the control plane.
enum Heard {
    Worker(Option<Event>),
    Desk(desk::Request),
}

async fn either(events: &mut UnboundedReceiver<Event>, requests: &mut mpsc::Receiver<desk::Request>) -> Heard {
    tokio::select! {
        event = events.recv() => Heard::Worker(event),
        // It never closes: the control plane has a handle of its own.
        Some(request) = requests.recv() => Heard::Desk(request),
    }
}

#[cfg(test)]
mod tests {
    use super::alone::unanswered;
    use super::*;

    /// Its servers hang, and may take an hour: who stops it waits for none of them.
    #[tokio::test(start_paused = true)]
    async fn who_is_stopped_in_the_start_ends_with_its_workers() {
        let cluster = unanswered("--timeout 1h -s 127.0.0.1:1 -b 127.0.0.1:2");
        let begun = Instant::now();
        let (worker, events) = unbounded_channel();
        let running = tokio::spawn(cluster.run(events));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!running.is_finished(), "it looks at its servers");
        drop(worker);
        running.await.unwrap().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
