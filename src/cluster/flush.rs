//! `flush_all`: a barrier over all pairs. Close every gate, let copies in flight finish, flush
//! every reachable node with its markers re-set in the same write, open, answer. Sent to two nodes
//! at once instead, 20 to 60 keys ended on one node only in 7 of 10 flushes.
//!
//! A *delayed* flush is kept here and run when it is due: the nodes never see a delay, which any
//! later flush would overwrite. It is recorded on every node in reach before it is acknowledged
//! ([`Pending`]), so that a crash of the proxy does not lose it, and is struck off the record
//! behind the closed gates: after they open a second run would end what was written since.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedRwLockWriteGuard;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::marker::{self, Fact, Pending, Record};
use crate::backend::{Drain, MarkError};
use crate::expiry;
use crate::ids::{NodeId, PairId};
use crate::pair::{self, Gate, Loss, Reason, State};
use crate::protocol::answer;
use crate::proxy::Command;
use crate::resync::Fill;

use super::ask::Asker;
use super::nodes::{reason_of, reason_of_mark};
use super::probes::AWAITED_REPORTS;
use super::{Cluster, Internal, RECORD_RETRY};

/// Delayed flushes kept at once, one for each second; more are refused. They stand in one small
/// item on every node.
const MAX_DELAYED: usize = 64;

/// What is under way.
#[derive(Default)]
pub(super) struct Flushes {
    /// Clients waiting for the flush that is running.
    running: Option<Running>,
    /// Asked for while one runs: the next one answers them.
    queued: Vec<Asker>,
    /// A delayed one came due while one runs.
    queued_due: Option<u64>,
    /// Those that are not due yet.
    pub(super) pending: Pending,
    /// Clients that wait for theirs to be recorded.
    unrecorded: Vec<Asker>,
    /// Since when no node in use answered that it is written.
    unheard_since: Option<Instant>,
    /// `pending` is being written on the nodes; and it has changed since.
    recording: bool,
    again: bool,
}

struct Running {
    askers: Vec<Asker>,
    /// Held while nodes are flushed: no copy is in flight.
    guard: Option<OwnedRwLockWriteGuard<()>>,
    /// Nodes whose flush is unanswered, each with what ends the wait; `None` before it was sent.
    waiting: Option<BTreeMap<NodeId, CancellationToken>>,
    /// Whether any node was flushed, or may have been; and which refuse the command (`-F`), with
    /// their words.
    flushed: bool,
    refused: Vec<(NodeId, String)>,
    /// The delayed flushes up to this second are run by this one.
    due: Option<u64>,
    /// Every node has answered; what has changed is being recorded.
    settling: bool,
    /// That pairs which were dark have no copy left is being recorded.
    voiding: bool,
}

impl Running {
    fn new(askers: Vec<Asker>, due: Option<u64>) -> Running {
        let (guard, waiting, refused) = (None, None, Vec::new());
        Running { askers, guard, waiting, flushed: false, refused, due, settling: false, voiding: false }
    }
}

/// The answer where no node was reached.
const UNHEARD: &[u8] =
    b"SERVER_ERROR no server could be flushed; what they hold is void only if the proxy lives until they are back\r\n";

fn unix_seconds() -> u64 {
    crate::ambient::unix_time().as_secs()
}

impl Flushes {
    pub(super) fn is_active(&self) -> bool {
        self.running.is_some()
    }

    /// Whether gates that would open must stay closed. Not yet while copies in flight are waited
    /// for: a fail-over is not to wait too.
    pub(super) fn holds_gates(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.guard.is_some())
    }

    /// Whether nodes are being flushed. None is taken back meanwhile: it would lead with what the
    /// flush ends.
    pub(super) fn is_sent(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.waiting.is_some())
    }
}

impl Cluster {
    pub(super) fn flush_all(&mut self, asker: Asker, delay: i64) {
        let now = unix_seconds();
        let due =
            if delay > expiry::RELATIVE_MAX_SECS { delay.max(0) as u64 } else { now.saturating_add_signed(delay) };
        if due <= now {
            return self.begin_flush(vec![asker], None);
        }
        let pending = &mut self.flush.pending;
        if pending.len() >= MAX_DELAYED && !pending.contains(due) {
            return self.answer(asker, Bytes::from_static(b"SERVER_ERROR too many delayed flushes are pending\r\n"));
        }
        let due = pending.add(due);
        self.await_flush(due, now);
        if !self.marked() {
            return self.answer(asker, Bytes::from_static(answer::OK));
        }
        self.flush.unrecorded.push(asker);
        self.record_pending();
    }

    fn await_flush(&self, due: u64, now: u64) {
        self.after(Duration::from_secs(due.saturating_sub(now)), Internal::FlushDue { due });
    }

    pub(super) fn flush_due(&mut self, due: u64) {
        // An earlier one may have run it along.
        if self.flush.pending.contains(due) {
            tracing::info!("a delayed flush_all is due");
            self.begin_flush(vec![], Some(due));
        }
    }

    /// What a node remembers of delayed flushes. Those that came due while no proxy ran, or none
    /// that knew of them, are run now; nothing opens before.
    pub(super) fn learn_pending(&mut self, found: &Pending) {
        let now = unix_seconds();
        for due in self.flush.pending.merge(found) {
            if due > now {
                self.await_flush(due, now);
            }
        }
        if let Some(due) = self.flush.pending.due_by(now) {
            tracing::warn!("a delayed flush_all came due while no proxy ran");
            self.begin_flush(vec![], Some(due));
        }
    }

    /// Writes the delayed flushes on every node in use. One write at a time, so that the last one
    /// written is the last that was true.
    pub(super) fn record_pending(&mut self) {
        if std::mem::replace(&mut self.flush.recording, true) {
            self.flush.again = true;
            return;
        }
        let askers = std::mem::take(&mut self.flush.unrecorded);
        let pending = self.flush.pending.clone();
        let nodes: Vec<_> = self
            .topology
            .nodes()
            .filter(|n| self.nodes[n.index()].health.is_up())
            .filter_map(|n| Some((n, self.nodes[n.index()].incarnation?, self.controls[n.index()].clone())))
            .collect();
        self.spawn(async move {
            let writes = nodes
                .iter()
                .map(async |(node, incarnation, control)| (*node, control.pending(*incarnation, &pending).await));
            let results = futures::future::join_all(writes).await;
            Internal::PendingRecorded { askers, results }
        });
    }

    pub(super) fn retry_pending(&mut self) {
        self.flush.recording = false;
        self.record_pending();
    }

    pub(super) fn pending_recorded(&mut self, askers: Vec<Asker>, results: Vec<(NodeId, Result<(), MarkError>)>) {
        let recorded = results.iter().any(|(_, result)| result.is_ok());
        let mut waited_for = false;
        for (node, result) in results {
            if let Err(error) = result {
                // A later probe finds the marker missing or old, and has it written again.
                tracing::warn!(node = %self.topology.addr(node), %error, "cannot record the delayed flushes");
                if let MarkError::Node(error) = error {
                    self.fault(node, reason_of(&error), false);
                    waited_for |= reason_of(&error) == Reason::Timeout && self.nodes[node.index()].health.is_up();
                }
            }
        }
        let since = self.flush.unheard_since.take();
        if !recorded && waited_for && since.is_none_or(|since| since.elapsed() < self.settings.leader_timeout) {
            // They stand still together. Nothing that is struck off counts as that before it is
            // known to be.
            self.flush.unheard_since = since.or_else(|| Some(Instant::now()));
            self.flush.unrecorded.extend(askers);
            return self.after(RECORD_RETRY, Internal::RetryPending);
        }
        self.flush.recording = false;
        let answer: &[u8] = if recorded {
            answer::OK
        } else {
            b"SERVER_ERROR no server could record the delayed flush; it is run only if the proxy lives until then\r\n"
        };
        for asker in askers {
            self.answer(asker, Bytes::from_static(answer));
        }
        if std::mem::take(&mut self.flush.again) {
            self.record_pending();
        }
        self.flush_finished();
    }

    fn begin_flush(&mut self, askers: Vec<Asker>, due: Option<u64>) {
        if self.flush.is_active() {
            self.flush.queued.extend(askers);
            self.flush.queued_due = self.flush.queued_due.max(due);
            return;
        }
        self.flush.running = Some(Running::new(askers, due));
        // At once where no copy is in flight: at the start no gate may open before.
        match self.quiesce.clone().try_write_owned() {
            Ok(guard) => self.quiesced(guard),
            Err(_) => {
                let quiesce = self.quiesce.clone();
                self.spawn(async move { Internal::Quiesced { guard: quiesce.write_owned().await } });
            }
        }
    }

    /// No copy is in flight any more, and none begins: now the gates.
    pub(super) fn quiesced(&mut self, guard: OwnedRwLockWriteGuard<()>) {
        let Some(running) = &mut self.flush.running else { return };
        running.guard = Some(guard);
        for pair in self.topology.pairs() {
            if self.pairs[pair.index()].pair.gate() == Gate::Open && !self.pairs[pair.index()].held_for_flush {
                self.close(pair, None);
            }
        }
        self.flush_progress();
    }

    /// Once every pair is closed (or would open only after this), the nodes are flushed.
    pub(super) fn flush_progress(&mut self) {
        let Some(running) = &self.flush.running else { return };
        if running.guard.is_none() || running.waiting.is_some() {
            return;
        }
        // A hand-back that waits for its last copies gives up its gate: the copies wait for this
        // flush.
        let draining: Vec<PairId> =
            self.topology.pairs().filter(|p| self.pairs[p.index()].pair.gate() == Gate::Draining).collect();
        for pair in draining {
            self.apply(pair, pair::Event::Drained(false));
        }
        let closed = self.pairs.iter().all(|run| match run.pair.gate() {
            Gate::Open => run.flush_closed || run.held_for_flush,
            // No write is taken before the record is stored.
            Gate::Recording => run.record_refused,
            _ => false,
        });
        let Some(running) = &mut self.flush.running else { return };
        if !closed || running.waiting.is_some() {
            return;
        }
        // A node that is lost for its mirrored pairs, being late, may lead others all the same.
        let nodes = self.topology.nodes();
        let up: Vec<NodeId> = nodes.filter(|&n| self.nodes[n.index()].health.is_up() || self.leads(n)).collect();
        let Some(running) = &mut self.flush.running else { return };
        let waiting: BTreeMap<_, _> = up.into_iter().map(|node| (node, CancellationToken::new())).collect();
        running.waiting = Some(waiting.clone());
        // What survives on the follower (memcached from 1.6.25 on), or is on one that is not
        // reached, must not be adopted.
        for run in self.pairs.iter_mut().filter(|run| run.adopting) {
            run.adopting = false;
            run.pair.renew();
        }
        for (node, given_up) in waiting {
            let (memory, markers) = (self.nodes[node.index()].incarnation, self.markers(node));
            let (control, internal) = (self.controls[node.index()].clone(), self.internal.clone());
            let (timeout, patience) = (self.settings.timeout, self.settings.leader_timeout.max(self.settings.timeout));
            tokio::spawn(async move {
                let begun = Instant::now();
                let mut flush = pin!(control.flush(memory, &markers, patience, given_up.cancelled()));
                let flushed = loop {
                    tokio::select! {
                        biased;
                        flushed = flush.as_mut() => break flushed,
                        // The probes wait behind it, so it tells itself that the node is late.
                        () = tokio::time::sleep(timeout / AWAITED_REPORTS) => {
                            let _ = internal.send(Internal::FlushAwaited { node, age: begun.elapsed() });
                        }
                    }
                };
                match flushed {
                    Ok(()) => {
                        let _ = internal.send(Internal::Flushed { node, result: Ok(()), drain: None });
                    }
                    Err((error, drain)) => {
                        let life = drain.as_ref().map(Drain::life);
                        let _ = internal.send(Internal::Flushed { node, result: Err(error), drain: life });
                        if let Some(drain) = drain {
                            let life = drain.life();
                            let end = drain.await;
                            let _ = internal.send(Internal::DrainDone { node, life, end });
                        }
                    }
                }
            });
        }
        self.flush_finished();
    }

    /// A node has not answered its flush yet. It is judged as one that is late with a request.
    pub(super) fn flush_awaited(&mut self, node: NodeId, age: Duration) {
        if self.flush.running.as_ref().is_some_and(|r| r.waiting.as_ref().is_some_and(|w| w.contains_key(&node))) {
            self.late(node, age);
        }
    }

    /// The node is lost, and leads nothing any more: its flush is not waited for either.
    pub(super) fn give_flush_up(&self, node: NodeId) {
        if !self.leads(node)
            && let Some(given_up) =
                self.flush.running.as_ref().and_then(|r| r.waiting.as_ref()).and_then(|w| w.get(&node))
        {
            given_up.cancel();
        }
    }

    /// Some pair goes by the node's word.
    fn leads(&self, node: NodeId) -> bool {
        let place = self.topology.place(node);
        self.topology.pairs_of(node).any(|p| self.pairs[p.index()].pair.state().leader() == Some(place))
    }

    /// Everything that the proxy keeps on a node, as it is to be by the pairs' present states.
    pub(super) fn markers(&self, node: NodeId) -> Vec<(String, String)> {
        if !self.marked() {
            return vec![(marker::RING_KEY.to_owned(), self.ring_of(node).to_string())];
        }
        let run = &self.nodes[node.index()];
        let Some(incarnation) = run.incarnation else { return vec![] };
        let mut markers = vec![
            (marker::INCARNATION_KEY.to_owned(), incarnation.to_string()),
            (marker::RING_KEY.to_owned(), self.ring_of(node).to_string()),
            (marker::SESSION_KEY.to_owned(), self.session.to_string()),
        ];
        if !self.flush.pending.is_blank() {
            markers.push((marker::FLUSH_KEY.to_owned(), self.flush.pending.to_string()));
        }
        for pair in self.topology.pairs() {
            if self.pairs[pair.index()].undecided {
                continue;
            }
            let run = &self.pairs[pair.index()].pair;
            let fact = match run.state() {
                State::Mirrored => Fact::Sync,
                State::Degraded { leader } => Fact::Alone(leader),
                State::Recovering { leader } if self.pairs[pair.index()].adopting => Fact::Adopting(leader),
                State::Recovering { leader } => Fact::Filling(leader.other()),
                State::Dark { in_sync: Some(place), .. } => Fact::Alone(place),
                State::Dark { in_sync: None, .. } => Fact::Nobody,
            };
            let record = Record { epoch: run.epoch(), fact, term: run.term(), period: self.period };
            markers.push((marker::pair_key(pair), record.to_string()));
        }
        markers
    }

    /// A last full copy that is not reached holds what the flush has ended: whoever comes back with
    /// it must not lead before a purge. Not before a node was flushed: if all refuse (`-F`),
    /// nothing has changed.
    fn void_dark(&mut self) {
        for pair in self.topology.pairs() {
            // Not even the start-up table may let it lead.
            self.pairs[pair.index()].undecided = false;
            let run = &mut self.pairs[pair.index()];
            if run.pair.state() != State::Mirrored {
                // A node that is away misses this for all its keys.
                run.missed.overflow();
                // What only the follower holds after it has survived it (memcached from 1.6.25 on),
                // and must not be added to the leader.
                run.first_fill = run.first_fill.map(|_| Fill::Compare);
            }
            self.apply(pair, pair::Event::Flushed);
        }
    }

    /// `drain`: it may still be executed, over a connection to that one of the node's addresses.
    pub(super) fn flushed(&mut self, node: NodeId, result: Result<(), MarkError>, drain: Option<u64>) {
        if drain == Some(self.address_life(node)) {
            self.nodes[node.index()].drains += 1;
        }
        match result {
            Ok(()) => {
                self.took_effect();
                if let Some(view) = &mut self.nodes[node.index()].view {
                    view.cmd_flush += 1;
                }
            }
            Err(MarkError::Refused(said)) => {
                // It counts those, too (`-F`).
                if let Some(view) = &mut self.nodes[node.index()].view {
                    view.cmd_flush += 1;
                }
                tracing::warn!(node = %self.topology.addr(node), %said, "a node refuses flush_all");
                if let Some(running) = &mut self.flush.running {
                    running.refused.push((node, said));
                }
            }
            Err(error) => {
                tracing::warn!(node = %self.topology.addr(node), %error, "flush_all failed on a node");
                // It is purged when it comes back, whether it was flushed or not.
                self.lost(node, reason_of_mark(&error), Loss::Suspected, true);
                if drain.is_some() {
                    self.took_effect();
                }
            }
        }
        if let Some(waiting) = self.flush.running.as_mut().and_then(|r| r.waiting.as_mut()) {
            waiting.remove(&node);
        }
        self.flush_finished();
    }

    fn took_effect(&mut self) {
        if let Some(running) = &mut self.flush.running {
            running.flushed = true;
        }
        self.void_dark();
    }

    fn flush_finished(&mut self) {
        if !self.flush.running.as_ref().is_some_and(|r| r.waiting.as_ref().is_some_and(BTreeMap::is_empty)) {
            return;
        }
        let Some(mut running) = self.flush.running.take() else { return };
        if !running.settling {
            running.settling = true;
            if running.flushed || running.refused.is_empty() {
                for (node, _) in std::mem::take(&mut running.refused) {
                    // The others are empty now: this one is out of step with them.
                    self.lost(node, Reason::Protocol, Loss::Suspected, true);
                }
                self.void_dark();
            }
            running.voiding = self.record_nobody();
            if let Some(due) = running.due {
                self.flush.pending.run_up_to(due);
                if self.marked() {
                    self.record_pending();
                }
            }
        }
        if running.voiding || running.due.is_some() && self.flush.recording {
            self.flush.running = Some(running);
            return;
        }
        if running.flushed {
            // Whoever holds anything yet is lost, and purged.
            self.pairs.iter().for_each(|run| run.lone.forget());
        }
        let refusal = running.refused.pop().map(|(_, said)| Bytes::from(format!("{said}\r\n")));
        // No node can even remember it: after a crash of this proxy what they hold would count
        // again.
        let unheard = if running.flushed { Bytes::from_static(answer::OK) } else { Bytes::from_static(UNHEARD) };
        let answer = refusal.unwrap_or(unheard);
        for pair in self.topology.pairs() {
            let run = &self.pairs[pair.index()];
            if run.pair.gate() == Gate::Open {
                self.publish(pair);
            }
        }
        drop(running.guard);
        for asker in running.askers {
            self.answer(asker, answer.clone());
        }
        for node in self.topology.nodes() {
            self.consider(node);
        }
        let (queued, due) = (std::mem::take(&mut self.flush.queued), self.flush.queued_due.take());
        if !queued.is_empty() || due.is_some() {
            self.begin_flush(queued, due);
        }
    }

    /// Records of pairs that no copy is left of, on every node in use, before the flush is
    /// acknowledged: else the next proxy would believe the older record on a node that was away,
    /// and let it lead. Returns whether there are such pairs.
    fn record_nobody(&self) -> bool {
        let records: Vec<(PairId, Record)> = self
            .topology
            .pairs()
            .map(|id| (id, &self.pairs[id.index()]))
            .filter(|(_, run)| !run.undecided && matches!(run.pair.state(), State::Dark { in_sync: None, .. }))
            .map(|(id, run)| {
                let (epoch, term) = (run.pair.epoch(), run.pair.term());
                (id, Record { epoch, fact: Fact::Nobody, term, period: self.period })
            })
            .collect();
        if records.is_empty() || !self.marked() {
            return false;
        }
        let nodes: Vec<_> = self
            .topology
            .nodes()
            .filter(|n| self.nodes[n.index()].health.is_up())
            .filter_map(|n| Some((self.nodes[n.index()].incarnation?, self.controls[n.index()].clone())))
            .collect();
        self.spawn(async move {
            let writes = nodes.iter().map(async |(incarnation, control)| {
                // A node that fails now is noticed by its own probe.
                control.record_where_possible(*incarnation, &records).await;
            });
            futures::future::join_all(writes).await;
            Internal::NobodyRecorded
        });
        true
    }

    pub(super) fn nobody_recorded(&mut self) {
        if let Some(running) = &mut self.flush.running {
            running.voiding = false;
        }
        self.flush_finished();
    }

    pub(super) fn answer(&self, asker: Asker, bytes: Bytes) {
        let _ =
            self.workers[asker.worker as usize].send(Command::Answer { client: asker.client, slot: asker.slot, bytes });
    }
}
