//! The control plane: the only owner of the pairs' states. One task; everything it learns comes as
//! an event, everything it does is a command to the workers or a task of its own whose end is again
//! an event.
//!
//! - [`nodes`](self): who is up, what a node that comes back holds.
//! - `lateness`: nodes that answer late, and whether they are alone with that.
//! - `jobs`: refilling nodes.
//! - `names`: host names, resolved here alone; a node whose name leads elsewhere.
//! - `flush`: `flush_all`, a barrier over all pairs.
//! - `probes`: nodes that nobody asks; evicted markers.
//! - `records`: who leads, written on the nodes.
//! - `orders`: single keys that a worker is to mend or adopt.
//! - `verify`: comparing the copies of mirrored pairs.
//! - `ask`: what operators ask over the text protocol.
//! - `copies`: keys that are known to have one copy.
//! - `clean`: keys that a node no longer owns.
//! - `foreign`: another proxy over the same nodes.
//! - `start`: the first states.
//! - `summary`: what is said of pairs, nodes and the whole.
//! - `terms`: where leadership terms begin.
//! - `yielding`: resyncs give way to clients.
//!
//! The rules of a pair's life are in [`crate::pair`]; here they meet sockets and time.

#[cfg(test)]
mod alone;
mod ask;
mod clean;
mod clocks;
mod copies;
mod first;
mod flush;
mod foreign;
mod jobs;
mod lateness;
mod names;
mod nodes;
mod orders;
mod probes;
mod records;
mod report;
mod start;
mod summary;
mod terms;
mod verify;
mod yielding;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ambient;
use crate::backend::marker::{Fact, Period, Record, Session};
use crate::backend::{Dial, DrainEnd, MarkError, NodeControl, NodeError, NodeView, Probe};
use crate::config::{ResyncMode, Settings};
use crate::expiry::Offset;
use crate::ids::{Epoch, Incarnation, NodeId, PairId, Place, Term};
use crate::keys::{Lone, Missed, MissedBudget, Recopy};
use crate::pair::{self, Gate, Kept, Loss, Pair, State};
use crate::proxy::{Command, Event, Flow, Follower, Route};
use crate::resync::{
    Clocks, Crawls, Fill, JobError, JobEvent, Outcome, Pace, RateLimiter, Settled, Verdict, VerifyEvent,
};
use crate::ring::Topology;
use crate::rules::{Rule, holds};
use crate::stats::WorkerStats;
use crate::suspicion::Suspicions;

pub use names::Names;
use nodes::NodeRun;

/// The quiet time after an unclean start: what a dead proxy's sockets still held lands before
/// anything is acknowledged.
const QUIET_PERIOD: Duration = Duration::from_millis(200);

/// A record that a live node refused to store is tried again so soon; meanwhile the pair's gate
/// stays closed.
const RECORD_RETRY: Duration = Duration::from_millis(50);

/// What the control plane's own tasks report.
enum Internal {
    Probed { node: NodeId, result: Result<Probe, NodeError> },
    Alibi { node: NodeId, result: Result<Probe, NodeError> },
    Viewed { node: NodeId, result: Result<NodeView, NodeError> },
    Marked { node: NodeId, view: Box<NodeView>, incarnation: Incarnation, result: Result<(), MarkError> },
    EvictionChecked { node: NodeId, told: bool, result: Result<NodeView, NodeError> },
    Recorded { pair: PairId, epoch: Epoch, result: Result<(), (NodeId, MarkError)> },
    RetryRecord { pair: PairId, epoch: Epoch },
    Job { node: NodeId, serial: u64, event: JobEvent },
    JobEnded { node: NodeId, serial: u64, outcome: Box<Outcome> },
    SourceChecked { node: NodeId, serial: u64, outcome: Box<Outcome>, probe: Result<Probe, NodeError> },
    Verify { event: VerifyEvent },
    VerifyEnded { result: Result<(), JobError> },
    LookForCopies,
    Mended { pair: PairId, mended: bool },
    Restored { node: NodeId, incarnation: Incarnation, result: Result<(), MarkError> },
    DrainDone { node: NodeId, life: u64, end: DrainEnd },
    Peeked { node: NodeId, to: SocketAddr, found: Result<Option<Incarnation>, NodeError> },
    LookedUp { nodes: Vec<NodeId>, found: std::io::Result<Vec<SocketAddr>> },
    Clock { node: NodeId, offset: Offset },
    RetryRefill { node: NodeId },
    Quiesced { guard: OwnedRwLockWriteGuard<()> },
    Flushed { node: NodeId, result: Result<(), MarkError>, drain: Option<u64> },
    FlushAwaited { node: NodeId, age: Duration },
    ProbeAwaited { node: NodeId, age: Duration },
    RetryPending,
    FlushDue { due: u64 },
    NobodyRecorded,
    WaitedForLeader { pair: PairId },
    PendingRecorded { askers: Vec<ask::Asker>, results: Vec<(NodeId, Result<(), MarkError>)> },
    Cleaned { node: NodeId, incarnation: Incarnation, deleted: u64, result: Result<(), clean::CleanError> },
}

/// A pair and what surrounds its present edge.
struct PairRun {
    pair: Pair,
    /// Counts the closings, so that an old confirmation is told apart.
    round: u64,
    /// Workers that have not confirmed the present closing.
    unconfirmed: BTreeSet<u16>,
    /// Keys to be copied again, while it is recovering.
    recopy: Arc<Recopy>,
    /// Keys whose last mutation did not surely reach the node that is away, since it was last
    /// mirrored.
    missed: Arc<Missed>,
    /// Which of its nodes have kept their memory since then.
    kept: Kept,
    /// Keys that have one copy while it is mirrored, or being filled; and what is done about them.
    lone: Arc<Lone>,
    copies: copies::Copies,
    /// How its follower is filled when that is first done. Set by the start; forgotten when a node
    /// of the pair is lost, distrusted, or refilled in another way; an adoption only when a memory
    /// is lost, for `written` knows what the follower misses.
    first_fill: Option<Fill>,
    /// It opened as mirrored, and has not changed since: what is missed now are the keys that its
    /// follower refused, which a gate that only closed for a `flush_all` (refused, perhaps) does
    /// not forget.
    was_mirrored: bool,
    /// While it adopts: the keys that clients have written meanwhile.
    written: Option<Arc<Missed>>,
    /// It is Recovering, and an adoption that is cut off can be taken up again: its record says so,
    /// and so long as that is true no acknowledged write has missed the follower, and no copy
    /// stands there.
    adopting: bool,
    /// The record that an adoption was taken up again by. Set by the start.
    resumed: Option<Record>,
    /// No start row applied yet: too few nodes have answered.
    undecided: bool,
    /// The start-up table found no copy that counts, and a node is being emptied that will lead:
    /// until then, or this moment, requests wait. Set by the start.
    first_leader_by: Option<Instant>,
    /// Closed for `flush_all` although its own gate is open.
    flush_closed: bool,
    /// Its gate would be open but for a `flush_all`.
    held_for_flush: bool,
    /// A node refuses to store its record, which is tried again and again: a `flush_all` does not
    /// wait for it, for it writes records too.
    record_refused: bool,
    /// The resync waits for the gate to close.
    ready_reply: Option<oneshot::Sender<bool>>,
    /// The resync waits to hear what became of the hand-back.
    drained_reply: Option<oneshot::Sender<Verdict>>,
    since: Instant,
}

impl PairRun {
    /// Whether what the node at `place` holds is right but for the missed keys.
    fn knows_difference(&self, place: Place) -> bool {
        self.kept.by(place) && !self.missed.overflowed()
    }

    /// A node was lost: what was thought of how the follower is to be filled may not hold any more.
    fn forget_fill(&mut self, before: State, place: Place, loss: Loss) {
        let led = match before {
            State::Dark { in_sync, .. } => in_sync,
            state => state.leader(),
        };
        self.first_fill = match self.first_fill {
            // With the leader's memory its word is gone. What the follower holds is looked at when
            // it is back.
            Some(Fill::Adopt) if loss == Loss::MemoryGone && led != Some(place.other()) => None,
            Some(Fill::Adopt) => Some(Fill::Adopt),
            fill if before == self.pair.state() => fill,
            _ => None,
        };
    }
}

/// The control plane.
pub struct Cluster {
    settings: Settings,
    topology: Arc<Topology>,
    dialer: Arc<dyn Dial>,
    names: Names,
    controls: Vec<Arc<NodeControl>>,
    workers: Vec<UnboundedSender<Command>>,
    stats: Vec<Arc<WorkerStats>>,
    /// The counters at the last `stats reset`.
    stats_base: Vec<u64>,
    nodes: Vec<NodeRun>,
    pairs: Vec<PairRun>,
    /// Shared by the `written` sets of all pairs.
    written_budget: Arc<MissedBudget>,
    internal: UnboundedSender<Internal>,
    inbox: Option<UnboundedReceiver<Internal>>,
    session: Session,
    suspicions: Suspicions,
    /// When it was last logged that nodes are late together.
    told_late: Option<Instant>,
    /// Since when the present ring is in force, and the newest such time that was found on any
    /// node; set at the start.
    period: Period,
    period_found: Period,
    /// No pair had this term before this run, and all began at or above it since. 0: none was ever
    /// given.
    term: Term,
    started: Instant,
    crawls: Arc<Crawls>,
    clocks: Arc<Clocks>,
    limiter: Arc<RateLimiter>,
    pace: Arc<Pace>,
    quiesce: Arc<RwLock<()>>,
    flush: flush::Flushes,
    job_serial: u64,
    /// Orders to workers that are not settled, and the last one's number.
    orders: BTreeMap<u64, oneshot::Sender<Settled>>,
    last_ticket: u64,
    scrubs: verify::Scrubs,
    /// Edges that are told together, of pairs and the states before, while several pairs learn of
    /// one thing.
    edges: Option<Vec<(PairId, State)>>,
    /// Set by a worker that ended with operations unfinished.
    unclean: Arc<AtomicBool>,
    /// Stops the tasks that outlive a single step.
    shutdown: CancellationToken,
}

impl Cluster {
    /// A control plane over `workers`. Nothing happens before [`Cluster::run`].
    pub fn new(
        settings: Settings,
        topology: Arc<Topology>,
        (dialer, names): (Arc<dyn Dial>, Names),
        workers: Vec<UnboundedSender<Command>>,
        stats: Vec<Arc<WorkerStats>>,
        unclean: Arc<AtomicBool>,
        shutdown: CancellationToken,
    ) -> Cluster {
        let (internal, inbox) = unbounded_channel();
        let now = Instant::now();
        let unix_us = if holds(Rule::UniqueEpochs) { ambient::unix_time().as_micros() as u64 } else { 0 };
        let controls = topology
            .nodes()
            .map(|node| Arc::new(NodeControl::new(node, dialer.clone(), settings.probe_timeout.max(settings.timeout))))
            .collect();
        // As much again as one resync's key list.
        let budget = Arc::new(MissedBudget::new(settings.resync_memory / 2));
        let term = terms::first(Term::default(), false, ambient::random_u64());
        let lone_budget = Arc::new(MissedBudget::new(settings.resync_memory / 8));
        let pairs = topology
            .pairs()
            .map(|_| PairRun {
                pair: Pair::new(Epoch(unix_us), term),
                round: 0,
                unconfirmed: BTreeSet::new(),
                recopy: Arc::new(Recopy::new()),
                missed: Arc::new(Missed::new(budget.clone())),
                kept: Kept::default(),
                lone: Arc::new(Lone::new(lone_budget.clone())),
                copies: copies::Copies::default(),
                first_fill: None,
                was_mirrored: false,
                written: None,
                adopting: false,
                resumed: None,
                undecided: true,
                first_leader_by: None,
                flush_closed: false,
                held_for_flush: false,
                record_refused: false,
                ready_reply: None,
                drained_reply: None,
                since: now,
            })
            .collect();
        Cluster {
            nodes: topology.nodes().map(|_| NodeRun::new()).collect(),
            crawls: Arc::new(Crawls::new(topology.node_count())),
            clocks: Arc::new(Clocks::new(topology.node_count())),
            limiter: Arc::new(RateLimiter::new(settings.resync_rate)),
            pace: Arc::default(),
            suspicions: Suspicions::new(topology.node_count(), settings.timeout, settings.leader_timeout),
            told_late: None,
            written_budget: Arc::new(MissedBudget::new(settings.resync_memory / 2)),
            settings,
            topology,
            dialer,
            names,
            controls,
            workers,
            stats,
            stats_base: Vec::new(),
            pairs,
            internal,
            inbox: Some(inbox),
            session: Session { id: ambient::random_u64(), open: true },
            period: Period(unix_us),
            period_found: Period::default(),
            term,
            started: now,
            quiesce: Arc::new(RwLock::new(())),
            flush: flush::Flushes::default(),
            job_serial: 0,
            orders: BTreeMap::new(),
            last_ticket: 0,
            scrubs: verify::Scrubs::default(),
            edges: None,
            unclean,
            shutdown,
        }
    }

    /// Runs until the workers are gone and `shutdown` is cancelled.
    pub async fn run(mut self, mut events: UnboundedReceiver<Event>) {
        let Some(mut inbox) = self.inbox.take() else { return };
        self.spawn_governor();
        self.spawn_copies_ticker();
        self.start().await;
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
                event = events.recv() => match event {
                    Some(event) => self.worker_said(event),
                    // Every worker has drained its clients and ended.
                    None => break,
                },
            }
        }
        self.stop().await;
    }

    /// Whether nodes carry markers: without backups there is nothing to tell apart, and `off`
    /// trusts whoever answers, like magent.
    fn marked(&self) -> bool {
        self.topology.has_backups() && self.settings.resync != ResyncMode::Off
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn worker_said(&mut self, event: Event) {
        match event {
            Event::Closed { worker, pair, round } => {
                let run = &mut self.pairs[pair.index()];
                if run.round == round && run.unconfirmed.remove(&worker) && run.unconfirmed.is_empty() {
                    if run.pair.gate() == Gate::Closing {
                        self.apply(pair, pair::Event::Closed);
                    } else {
                        run.flush_closed = true;
                    }
                    self.flush_progress();
                }
            }
            Event::Fault { node, life, reason } => {
                if self.is_of_its_life(node, life) {
                    self.fault(node, reason, false);
                }
            }
            Event::Late { node, life, age } => {
                if self.is_of_its_life(node, life) {
                    self.late(node, age);
                }
            }
            Event::Undrained { worker, node } => {
                self.nodes[node.index()].undrained.insert(worker);
                self.consider_partners(node);
            }
            Event::Drained { worker, node } => {
                self.nodes[node.index()].undrained.remove(&worker);
                self.consider(node);
            }
            Event::Left { worker, node, address, owing } => self.left(worker, node, address, owing),
            Event::Abandoned { node } => self.abandoned(node),
            Event::Hint { node } => self.nodes[node.index()].hint.notify_one(),
            Event::Settled { ticket, settlement } => self.settled(ticket, settlement),
            Event::Ask { worker, client, slot, question } => self.asked(ask::Asker { worker, client, slot }, question),
        }
    }

    fn own_task_said(&mut self, internal: Internal) {
        match internal {
            Internal::Probed { node, result } => self.probed(node, result),
            Internal::Alibi { node, result } => self.alibi(node, result),
            Internal::Viewed { node, result } => self.viewed(node, result),
            Internal::Marked { node, view, incarnation, result } => self.marked_node(node, *view, incarnation, result),
            Internal::EvictionChecked { node, told, result } => self.eviction_checked(node, told, result),
            Internal::Clock { node, offset } => self.clock_measured(node, offset),
            Internal::Recorded { pair, epoch, result } => self.recorded(pair, epoch, result),
            Internal::RetryRecord { pair, epoch } => self.retry_record(pair, epoch),
            Internal::Job { node, serial, event } => self.job_said(node, serial, event),
            Internal::JobEnded { node, serial, outcome } => self.job_ended(node, serial, *outcome),
            Internal::SourceChecked { node, serial, outcome, probe } => {
                self.source_checked(node, serial, *outcome, probe)
            }
            Internal::Verify { event } => self.verify_said(event),
            Internal::VerifyEnded { result } => self.verify_ended(result),
            Internal::LookForCopies => self.look_for_copies(),
            Internal::Mended { pair, mended } => self.mended(pair, mended),
            Internal::Restored { node, incarnation, result } => self.restored(node, incarnation, result),
            Internal::DrainDone { node, life, end } => self.drained(node, life, end),
            Internal::Peeked { node, to, found } => self.peeked(node, to, found),
            Internal::LookedUp { nodes, found } => self.looked_up(&nodes, found),
            Internal::RetryRefill { node } => {
                self.nodes[node.index()].retry_pending = false;
                self.consider(node);
            }
            Internal::Quiesced { guard } => self.quiesced(guard),
            Internal::Flushed { node, result, drain } => self.flushed(node, result, drain),
            Internal::ProbeAwaited { node, age } => self.probe_awaited(node, age),
            Internal::RetryPending => self.retry_pending(),
            Internal::FlushAwaited { node, age } => self.flush_awaited(node, age),
            Internal::FlushDue { due } => self.flush_due(due),
            Internal::NobodyRecorded => self.nobody_recorded(),
            Internal::WaitedForLeader { pair } => self.end_wait_for_leader(pair),
            Internal::PendingRecorded { askers, results } => self.pending_recorded(askers, results),
            Internal::Cleaned { node, incarnation, deleted, result } => {
                self.cleaned(node, incarnation, deleted, result)
            }
        }
    }

    // ---- edges ----------------------------------------------------------------------------------

    fn node_at(&self, pair: PairId, place: Place) -> NodeId {
        // A place without a node exists only for the backup of a proxy without backups, whose pairs
        // never name it.
        self.topology.node_at(pair, place).unwrap_or(self.topology.nodes_of(pair).0)
    }

    /// The only way a pair learns anything.
    fn apply(&mut self, id: PairId, event: pair::Event) {
        let run = &mut self.pairs[id.index()];
        let (before, adopting) = (run.pair.state(), run.adopting);
        let effects = run.pair.apply(event);
        let after = run.pair.state();
        if before != after {
            run.was_mirrored = false;
            // From the next open gate on a write may miss the follower, or a copy may stand there.
            run.adopting &= matches!(after, State::Recovering { .. });
            run.since = Instant::now();
            if !before.keeps_difference(after) || matches!(event, pair::Event::Distrust(_)) {
                run.missed.overflow();
            }
            if matches!(event, pair::Event::Distrust(_)) || after == State::Mirrored {
                run.first_fill = None;
            }
            if before == State::Mirrored {
                self.leave_verify(id);
            }
            if let State::Degraded { .. } = after {
                self.overtake_job_of(id);
            }
            if (before, after) == (State::Mirrored, State::Degraded { leader: Place::Backup }) {
                self.lose_only_copies(id);
            }
            self.log_state(id, before);
        }
        if let pair::Event::Lost(place, loss, _) = event {
            self.pairs[id.index()].forget_fill(before, place, loss);
        }
        for effect in effects {
            self.carry_out(id, effect);
        }
        if let (State::Recovering { leader }, State::Dark { .. }, true) = (before, after, adopting) {
            self.adoption_lost_its_leader(id, leader, event);
        }
        self.answer_job(id);
        self.end_wait_for_leader(id);
        if before != after {
            for place in [Place::Primary, Place::Backup] {
                self.consider(self.node_at(id, place));
            }
        }
    }

    /// What `work` makes of several pairs is told in one line for all that change alike.
    fn told_together(&mut self, work: impl FnOnce(&mut Cluster)) {
        if self.edges.is_some() {
            return work(self);
        }
        self.edges = Some(Vec::new());
        work(self);
        let mut edges = self.edges.take().unwrap_or_default();
        while let Some(&(first, before)) = edges.first() {
            let known = |id: PairId| (self.pairs[id.index()].pair.state().word(), self.pairs[id.index()].pair.reason());
            let (alike, others): (Vec<_>, Vec<_>) =
                edges.into_iter().partition(|&(id, from)| (from, known(id)) == (before, known(first)));
            self.log_edge(first, before, alike.len());
            edges = others;
        }
    }

    fn log_state(&mut self, id: PairId, before: State) {
        if !self.topology.pair_is_used(id) {
            let to = self.pairs[id.index()].pair.state().word();
            return tracing::debug!(pair = %self.pair_name(id), from = before.word(), to, "a pair that never gets a key changed");
        }
        match &mut self.edges {
            Some(edges) => edges.push((id, before)),
            None => self.log_edge(id, before, 1),
        }
    }

    /// `pairs`: so many changed alike, this one among them.
    fn log_edge(&self, id: PairId, before: State, pairs: usize) {
        let pair = &self.pairs[id.index()].pair;
        let leader =
            pair.state().leader().map_or("none".to_owned(), |p| self.topology.addr(self.node_at(id, p)).to_string());
        let name = self.pair_name(id);
        let (from, to, reason) = (before.word(), pair.state().word(), pair.reason());
        match pair.state() {
            State::Dark { .. } if self.pairs[id.index()].undecided && pairs == 1 => {
                tracing::info!(pair = %name, from, to, %leader, %reason, "pair changed");
            }
            State::Dark { .. } if pairs == 1 => {
                tracing::error!(pair = %name, from, to, %leader, %reason, "pair is dark: its keys are refused");
            }
            State::Dark { .. } => {
                tracing::error!(pairs, first = %name, from, to, %reason, "pairs are dark: their keys are refused");
            }
            State::Degraded { .. } if before == State::Mirrored && pairs == 1 => {
                tracing::warn!(pair = %name, from, to, %leader, %reason, "pair is degraded: one copy left");
            }
            State::Degraded { .. } if before == State::Mirrored => {
                tracing::warn!(pairs, first = %name, from, to, %reason, "pairs are degraded: one copy left");
            }
            _ if pairs == 1 => tracing::info!(pair = %name, from, to, %leader, %reason, "pair changed"),
            _ => tracing::info!(pairs, first = %name, from, to, %reason, "pairs changed"),
        }
    }

    fn pair_name(&self, id: PairId) -> String {
        match self.topology.nodes_of(id) {
            (primary, Some(backup)) => format!("{}|{}", self.topology.addr(primary), self.topology.addr(backup)),
            (primary, None) => self.topology.addr(primary).to_string(),
        }
    }

    fn carry_out(&mut self, id: PairId, effect: pair::Effect) {
        match effect {
            pair::Effect::Close { void } => {
                let void = void.map(|place| self.node_at(id, place));
                self.pairs[id.index()].flush_closed = false;
                self.pairs[id.index()].held_for_flush = false;
                self.pairs[id.index()].record_refused = false;
                self.close(id, void);
            }
            pair::Effect::RecordAlone { on } => self.record(id, Fact::Alone(on), vec![on]),
            pair::Effect::RecordFilling { on } => self.record_filling(id, on),
            pair::Effect::RecordSync { follower } => self.record(id, Fact::Sync, vec![follower, follower.other()]),
            pair::Effect::Open => {
                if self.flush.holds_gates() {
                    self.pairs[id.index()].held_for_flush = true;
                    self.flush_progress();
                } else {
                    self.publish(id);
                }
            }
            pair::Effect::FinishCopies => {
                if let Some(reply) = self.pairs[id.index()].ready_reply.take() {
                    let _ = reply.send(true);
                } else {
                    // Nobody copies any more: the job ended in between, and its end brings the pair
                    // back to Degraded.
                    self.apply(id, pair::Event::Drained(false));
                }
            }
            pair::Effect::AbortResync => self.abort_job_of(id),
        }
    }

    fn close(&mut self, id: PairId, void: Option<NodeId>) {
        let run = &mut self.pairs[id.index()];
        run.round += 1;
        run.unconfirmed = (0..self.workers.len() as u16).collect();
        for worker in &self.workers {
            let _ = worker.send(Command::Close { pair: id, void, round: run.round });
        }
    }

    /// Tells the workers the route of the pair's present state.
    fn publish(&mut self, id: PairId) {
        self.remember_writes(id);
        let route = self.route(id);
        if let Route::Open(flow) = &route {
            // From now on items may be written to them: emptiness that was proved before proves
            // nothing any more.
            for node in std::iter::once(flow.leader).chain(flow.follower.node()) {
                self.nodes[node.index()].empty = false;
            }
        }
        let run = &mut self.pairs[id.index()];
        if self.topology.has_backups() && run.pair.state() == State::Mirrored && !run.was_mirrored {
            run.missed.reset();
            run.kept.mirrored();
            // What the follower was refused while it was filled it lacks also after its next
            // absence.
            run.lone.after(None, usize::MAX).iter().for_each(|key| run.missed.insert(key));
            run.first_fill = None;
            run.was_mirrored = true;
        }
        run.held_for_flush = false;
        run.flush_closed = false;
        if !self.awaits_first_leader(id) {
            for worker in &self.workers {
                let _ = worker.send(Command::Open { pair: id, route: route.clone() });
            }
        }
        // A refill begins only behind an open gate.
        for place in [Place::Primary, Place::Backup] {
            self.consider(self.node_at(id, place));
        }
    }

    fn route(&self, id: PairId) -> Route {
        let run = &self.pairs[id.index()];
        let Some(leader) = run.pair.state().leader() else { return Route::Dark(run.pair.reason()) };
        let follower = match run.pair.state() {
            State::Mirrored => self.topology.node_at(id, Place::Backup).map_or(Follower::None, Follower::InSync),
            State::Recovering { leader } => Follower::Filling(self.node_at(id, leader.other()), run.recopy.clone()),
            _ => Follower::None,
        };
        let term = self.topology.has_backups().then(|| run.pair.term());
        let (missed, lone, written) = (run.missed.clone(), run.lone.clone(), run.written.clone());
        Route::Open(Flow { leader: self.node_at(id, leader), follower, term, writable: true, missed, lone, written })
    }

    /// Marks the session closed on every node in use: the next start may trust what it finds.
    async fn stop(&mut self) {
        // A flush without a client that waits for it (a delayed one) may have reached one node of a
        // pair only.
        let settled = !self.flush.is_active() && self.pairs.iter().all(|run| run.pair.gate() == Gate::Open);
        if !self.marked() {
            return;
        }
        if self.unclean.load(Relaxed) || !settled {
            // Some write may have reached one node only: the session stays open, and the next start
            // will compare.
            tracing::warn!("stopping with work unfinished: the next start will treat this as a crash");
            return;
        }
        let closed = Session { id: self.session.id, open: false };
        for node in self.topology.nodes() {
            let run = &self.nodes[node.index()];
            if let (true, Some(incarnation)) = (run.health.is_up(), run.incarnation)
                && let Err(error) = self.controls[node.index()].session(incarnation, closed).await
            {
                tracing::warn!(node = %self.topology.addr(node), %error, "cannot mark the session closed; the next start will be careful");
            }
        }
    }
}
