//! What the loop hears: from workers, and from tasks of its own, each of whose ends is an event.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedRwLockWriteGuard, mpsc};
use tokio::time::Instant;

use crate::backend::{DrainEnd, Flushed, MarkError, NodeControl, NodeError, NodeView, Probe, Stored};
use crate::ids::{AddressNumber, Epoch, Incarnation, NodeId, PairId, SessionId};
use crate::lease;
use crate::pair::{self, Gate};
use crate::protocol::expiry::Offset;
use crate::proxy::Event;
use crate::report::HeldReport;
use crate::resync::{JobError, JobEvent, ListError, Outcome, VerifyEvent};

use super::Cluster;
use super::asker::Asker;
use super::clean::CleanError;
use super::flush::Hold;
use super::inquiries::Answers;

/// What the control plane's own tasks report.
pub(super) enum Internal {
    // ---- nodes: probed, looked at, taken back ---------------------------------------------------
    /// The prober's last probe ended.
    Probed { node: NodeId, begun: Instant, result: Result<Probe, NodeError> },
    /// Where another proxy's session was open: if that one works, it has said so by now.
    WordDue { node: NodeId },
    /// How much it holds, if it has said so; when it was asked.
    Held { node: NodeId, at: Instant, found: Option<HeldReport> },
    /// A probe is unanswered for this long, and goes on.
    ProbeAwaited { node: NodeId, age: Duration },
    /// The node was asked because others are late.
    Alibi { node: NodeId, result: Result<Probe, NodeError> },
    /// A lost node that answers again was looked at.
    Viewed { node: NodeId, result: Result<NodeView, NodeError> },
    /// It carries this proxy's markers now, or refused them.
    Marked { node: NodeId, view: Box<NodeView>, incarnation: Incarnation, result: Result<Option<SessionId>, MarkError> },
    /// A node in use lacked a marker and was looked at. `told`: connections wait for an answer.
    EvictionChecked { node: NodeId, told: bool, result: Result<NodeView, NodeError> },
    /// How many evictions it counts now, by which its last refill is judged.
    EvictionsRead { node: NodeId, result: Result<NodeView, NodeError> },
    /// What was evicted was written again, or not.
    Restored { node: NodeId, incarnation: Incarnation, result: Result<(), MarkError> },
    /// A connection that was given up with commands unanswered has ended. `life`: of the address
    /// that it was to.
    DrainDone { node: NodeId, address: AddressNumber, end: DrainEnd },
    /// How large its items may be.
    Stored { node: NodeId, stored: Stored },
    /// A measurement of its clock.
    Clock { node: NodeId, offset: Offset },
    /// A host name was looked up, for all nodes that bear it.
    LookedUp { nodes: Vec<NodeId>, found: std::io::Result<Vec<SocketAddr>> },
    /// Which memory there is at an address that a name leads to.
    Peeked { node: NodeId, to: SocketAddr, found: Result<Option<Incarnation>, NodeError> },
    /// Keys that the node does not own were deleted, this many, or not all.
    Cleaned { node: NodeId, incarnation: Incarnation, deleted: u64, result: Result<(), CleanError> },

    /// The former active proxy is gone, from this node or from all.
    FormerGone { node: Option<NodeId>, how: &'static str },

    // ---- pairs: records, and the first leader ---------------------------------------------------
    /// The state of that epoch is recorded where it must be; or this node keeps it from that.
    Recorded { pair: PairId, epoch: Epoch, result: Result<(), (NodeId, MarkError)> },
    /// Such a record is due to be tried again.
    RetryRecord { pair: PairId, epoch: Epoch },
    /// The pair's requests have waited long enough for the node that is being emptied to lead.
    WaitedForLeader { pair: PairId },

    // ---- refills --------------------------------------------------------------------------------
    /// A job asks or tells something. Answers go with the event.
    Job { node: NodeId, serial: u64, event: JobEvent },
    /// A job is over.
    JobEnded { node: NodeId, serial: u64, outcome: Box<Outcome> },
    /// A job that is over had lost its source, which was asked whether it lives.
    SourceChecked { node: NodeId, serial: u64, outcome: Box<Outcome>, probe: Result<Probe, NodeError> },
    /// The pause after a refill that failed is over.
    RetryRefill { node: NodeId },

    // ---- copies compared, and single keys mended ------------------------------------------------
    /// The scrub asks or tells something.
    Verify { event: VerifyEvent },
    /// The scrub is over.
    VerifyEnded { result: Result<(), JobError> },
    /// The tick of [`super::copies`].
    LookForCopies,
    /// Some of a pair's lone keys were tried. `mended`: one of them has two copies now.
    Mended { pair: PairId, mended: bool },

    // ---- flush_all ------------------------------------------------------------------------------
    /// No copy is in flight, and none begins while `guard` is held.
    Quiesced { guard: OwnedRwLockWriteGuard<()> },
    /// A node has not answered its flush for this long, which goes on.
    FlushAwaited { node: NodeId, age: Duration },
    /// A node answered its flush, which gave its memory that name. `drain`: it may still take
    /// effect, over a connection to that one of the node's addresses, whose end is a
    /// [`Internal::DrainDone`].
    Flushed {
        node: NodeId,
        name: Option<Incarnation>,
        result: Result<Flushed, MarkError>,
        drain: Option<AddressNumber>,
    },
    /// That pairs which were dark have no copy left is written where it could be.
    NobodyRecorded {
        /// On some node.
        carried: bool,
    },
    /// A delayed flush is due.
    FlushDue { due: u64 },
    /// The delayed flushes were written on each of these nodes, or not; the clients wait for that.
    PendingRecorded { askers: Vec<Asker>, results: Vec<(NodeId, Result<(), MarkError>)> },
    /// They are to be written again.
    RetryPending,

    // ---- what operators ask ---------------------------------------------------------------------
    /// The servers were asked for statistics.
    Gathered(Box<Answers>),
    /// One server was sent a command, and has answered, or not.
    NodeAnswered { asker: Asker, answer: Bytes },
    /// A list of keys is over.
    Listed { asker: Asker, result: Result<(), ListError> },
}

impl Cluster {
    pub(super) fn worker_said(&mut self, event: Event) {
        match event {
            Event::Closed { worker, pair, round } => {
                let run = &mut self.pairs[pair];
                if run.round == round && run.unconfirmed.remove(&worker) && run.unconfirmed.is_empty() {
                    if run.pair.gate() == Gate::Closing {
                        self.apply(pair, pair::Event::Closed);
                    } else {
                        run.flush_hold = Hold::Closed;
                        self.unsettled.pair(pair);
                    }
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
                self.nodes[node].undrained.insert(worker);
                self.changed(node);
            }
            Event::Drained { worker, node } => {
                self.nodes[node].undrained.remove(&worker);
                self.changed(node);
            }
            Event::Left { worker, node, address, owing } => self.left(worker, node, address, owing),
            Event::Abandoned { node } => self.abandoned(node),
            Event::Hint { node } => self.nodes[node].hint.notify_one(),
            Event::Marked { node, found } => self.judge_fleet_mark(node, Some(found)),
            Event::Settled { ticket, settlement } => self.settled(ticket, settlement),
            Event::Connected { worker, round, told, more } => self.connected(worker, round, told, more),
            Event::Unwanted { worker, client } => self.unwanted(worker, client),
            Event::Ask { worker, client, slot, question } => self.asked(Asker { worker, client, slot }, question),
        }
    }

    pub(super) fn own_task_said(&mut self, internal: Internal) {
        match internal {
            Internal::Held { node, at, found } => self.held(node, at, found),
            Internal::WordDue { node } => self.word_due(node),
            Internal::Probed { node, begun, result } => self.probed(node, begun, result),
            Internal::Alibi { node, result } => self.alibi(node, result),
            Internal::Viewed { node, result } => self.viewed(node, result),
            Internal::Marked { node, view, incarnation, result } => self.marked_node(node, *view, incarnation, result),
            Internal::EvictionChecked { node, told, result } => self.eviction_checked(node, told, result),
            Internal::EvictionsRead { node, result } => self.evictions_read(node, result),
            Internal::Stored { node, stored } => self.stored(node, stored),
            Internal::Clock { node, offset } => self.clock_measured(node, offset),
            Internal::FormerGone { node, how } => self.former_gone(node, how),
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
            Internal::DrainDone { node, address, end } => self.drained(node, address, end),
            Internal::Peeked { node, to, found } => self.peeked(node, to, found),
            Internal::LookedUp { nodes, found } => self.looked_up(&nodes, found),
            Internal::RetryRefill { node } => {
                self.nodes[node].refills.next_is_due();
                self.unsettled.node(node);
            }
            Internal::Quiesced { guard } => self.quiesced(guard),
            Internal::Flushed { node, name, result, drain } => self.flushed(node, name, result, drain),
            Internal::ProbeAwaited { node, age } => self.probe_awaited(node, age),
            Internal::RetryPending => self.retry_pending(),
            Internal::Gathered(answers) => self.gathered(*answers),
            Internal::NodeAnswered { asker, answer } => self.node_answered(asker, answer),
            Internal::Listed { asker, result } => self.listed(asker, result),
            Internal::FlushAwaited { node, age } => self.flush_awaited(node, age),
            Internal::FlushDue { due } => self.flush_due(due),
            Internal::NobodyRecorded { carried } => self.nobody_recorded(carried),
            Internal::WaitedForLeader { pair } => self.waited_for_leader(pair),
            Internal::PendingRecorded { askers, results } => self.pending_recorded(askers, results),
            Internal::Cleaned { node, incarnation, deleted, result } => {
                self.cleaned(node, incarnation, deleted, result)
            }
        }
    }

    // ---- tasks ----------------------------------------------------------------------------------

    /// Runs `work` beside the loop, on the same thread; what it comes to is an event.
    pub(super) fn spawn(&self, work: impl Future<Output = Internal> + Send + 'static) {
        let internal = self.internal.clone();
        lease::spawn(async move {
            // The loop may have ended: then the event is dropped.
            let _ = internal.send(work.await);
        });
    }

    /// Asks a node; its answer comes back as an event.
    pub(super) fn ask_node<W>(&self, node: NodeId, ask: impl FnOnce(Arc<NodeControl>) -> W)
    where
        W: Future<Output = Internal> + Send + 'static,
    {
        self.spawn(ask(self.controls[node].clone()));
    }

    /// Sends a node something. No event reports the outcome, or another one does.
    pub(super) fn tell_node<W>(&self, node: NodeId, tell: impl FnOnce(Arc<NodeControl>) -> W)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        lease::spawn(tell(self.controls[node].clone()));
    }

    /// `event` comes after this long.
    pub(super) fn after(&self, wait: Duration, event: Internal) {
        self.spawn(async move {
            tokio::time::sleep(wait).await;
            event
        });
    }

    /// What a job asks comes as events, until it ends.
    pub(super) fn forward<Q: Send + 'static>(
        &self,
        mut questions: mpsc::Receiver<Q>,
        event: impl Fn(Q) -> Internal + Send + 'static,
    ) {
        let internal = self.internal.clone();
        lease::spawn(async move {
            while let Some(question) = questions.recv().await {
                if internal.send(event(question)).is_err() {
                    return;
                }
            }
        });
    }
}
