//! `flush_all`: a barrier over all pairs. Close every gate, let copies in flight finish, flush
//! every reachable node with its markers re-set in the same write, open, answer. When it was sent
//! to both nodes without gates, 20 to 60 keys were left on one node only after 7 of 10 flushes.
//!
//! A *delayed* flush is kept here and run when it is due: the nodes never see a delay, which any
//! later flush would overwrite. It is recorded on every reachable node before it is acknowledged
//! ([`Pending`]), so that a crash of the proxy does not lose it, and is removed from the record
//! while the gates are closed: after they open, a second run would delete what was written since.
//!
//! - `state`: where it is, and who waits for it.
//! - `delayed`: those that are not due.

mod delayed;
mod state;

use std::time::Duration;

use tokio::sync::OwnedRwLockWriteGuard;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::marker::{self, Fact, Pending, Record};
use crate::backend::{Drain, Flushed, MarkError, NewName};
use crate::ids::{AddressNumber, Incarnation, NodeId, PairId};
use crate::lease;
use crate::pair::FillEvent;
use crate::pair::{self, Gate, Loss, Reason, State};
use crate::protocol::expiry;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::rules::{Rule, holds};

use crate::cluster::asker::Asker;
use crate::cluster::nodes::{reason_of, reason_of_mark};
use crate::cluster::probes::{AWAITED_REPORTS, told_while_awaited};
use crate::cluster::{Cluster, Internal, RECORD_RETRY};

use delayed::Written;
use state::{Answered, Finished, Step};

const TOO_MANY_DELAYED: Refusal = Refusal::Server("too many delayed flushes are pending");
const UNRECORDED: Refusal =
    Refusal::Server("no server could record the delayed flush; it is run only if the proxy lives until then");

pub(in crate::cluster) use delayed::Delayed;
pub(in crate::cluster) use state::Flush;

fn unix_seconds() -> u64 {
    crate::ambient::unix_time().as_secs()
}

/// A name that no earlier flush has used. A flush that is executed late restores its own markers,
/// and under a repeated name would pass unnoticed. Its sender may be gone, and another proxy in
/// its place.
fn new_name(memory: Incarnation) -> Incarnation {
    if holds(Rule::FlushIsANewMemory) { memory.flushed(crate::ambient::random_u64()) } else { memory }
}

/// How a `flush_all` keeps a pair from its clients, besides the pair's own gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cluster) enum Hold {
    None,
    /// All workers have closed it, although its own gate is open.
    Closed,
    /// Its gate opens when the flush is over.
    Kept,
}

impl Cluster {
    pub(in crate::cluster) fn flush_all(&mut self, asker: Asker, delay: i64) {
        let now = unix_seconds();
        let due =
            if delay > expiry::RELATIVE_MAX_SECS { delay.max(0) as u64 } else { now.saturating_add_signed(delay) };
        if due <= now {
            return self.begin_flush(vec![asker], None);
        }
        let Some(due) = self.delayed.add(due) else {
            return self.answer(asker, Outcome::Refused(TOO_MANY_DELAYED));
        };
        self.await_flush(due, now);
        if !self.marked() {
            return self.answer(asker, Outcome::Done);
        }
        self.delayed.await_record(asker);
        self.record_pending();
    }

    fn await_flush(&self, due: u64, now: u64) {
        self.after(Duration::from_secs(due.saturating_sub(now)), Internal::FlushDue { due });
    }

    pub(in crate::cluster) fn flush_due(&mut self, due: u64) {
        // An earlier one may have run it along.
        if self.delayed.pending().contains(due) {
            tracing::info!("a delayed flush_all is due");
            self.begin_flush(vec![], Some(due));
        }
    }

    /// What a node remembers of delayed flushes. Those that came due while no proxy ran, or none
    /// that knew of them, are run now; nothing opens before.
    pub(in crate::cluster) fn learn_pending(&mut self, found: &Pending) {
        let now = unix_seconds();
        for due in self.delayed.merge(found) {
            if due > now {
                self.await_flush(due, now);
            }
        }
        if let Some(due) = self.delayed.pending().due_by(now) {
            tracing::warn!("a delayed flush_all came due while no proxy ran");
            self.begin_flush(vec![], Some(due));
        }
    }

    /// Writes the delayed flushes on every node in use.
    pub(in crate::cluster) fn record_pending(&mut self) {
        let Some((askers, pending)) = self.delayed.begin_write() else { return };
        let nodes: Vec<_> = self
            .topology
            .nodes()
            .filter(|n| self.nodes[*n].health.is_up())
            .filter_map(|n| Some((n, self.nodes[n].incarnation?, self.controls[n].clone())))
            .collect();
        self.spawn(async move {
            let writes = nodes
                .iter()
                .map(async |(node, incarnation, control)| (*node, control.pending(*incarnation, &pending).await));
            let results = futures::future::join_all(writes).await;
            Internal::PendingRecorded { askers, results }
        });
    }

    pub(in crate::cluster) fn retry_pending(&mut self) {
        self.delayed.retry();
        self.record_pending();
    }

    pub(in crate::cluster) fn pending_recorded(
        &mut self,
        askers: Vec<Asker>,
        results: Vec<(NodeId, Result<(), MarkError>)>,
    ) {
        let recorded = results.iter().any(|(_, result)| result.is_ok());
        let mut waited_for = false;
        for (node, result) in results {
            if let Err(error) = result {
                // A later probe finds the marker missing or old, and has it written again.
                tracing::warn!(node = %self.topology.addr(node), %error, "cannot record the delayed flushes");
                if let MarkError::Node(error) = error {
                    self.fault(node, reason_of(&error), false);
                    waited_for |= reason_of(&error) == Reason::Timeout && self.nodes[node].health.is_up();
                }
            }
        }
        // Whatever the write strikes off.
        self.unsettled.flush();
        match self.delayed.written(askers, (recorded, waited_for), Instant::now(), self.settings.leader_timeout) {
            Written::Unheard => self.after(RECORD_RETRY, Internal::RetryPending),
            Written::Over { askers, again } => {
                let outcome = if recorded { Outcome::Done } else { Outcome::Refused(UNRECORDED) };
                for asker in askers {
                    self.answer(asker, outcome.clone());
                }
                if again {
                    self.record_pending();
                }
            }
        }
    }

    fn begin_flush(&mut self, askers: Vec<Asker>, due: Option<u64>) {
        if !self.flush.begin(askers, due) {
            return;
        }
        // At once where no copy is in flight: at the start no gate may open before.
        match self.resyncs.shared.quiesce.clone().try_write_owned() {
            Ok(guard) => self.quiesced(guard),
            Err(_) => {
                let quiesce = self.resyncs.shared.quiesce.clone();
                self.spawn(async move { Internal::Quiesced { guard: quiesce.write_owned().await } });
            }
        }
    }

    /// No copy is in flight any more, and none begins: now the gates.
    pub(in crate::cluster) fn quiesced(&mut self, guard: OwnedRwLockWriteGuard<()>) {
        self.flush.quiesced(guard, self.topology.pairs());
        for pair in self.topology.pairs() {
            self.unsettled.pair(pair);
            if self.pairs[pair].pair.gate() == Gate::Open && self.pairs[pair].flush_hold != Hold::Kept {
                self.close(pair, None);
            }
        }
        // For a proxy without pairs.
        self.unsettled.flush();
    }

    /// Part of [`settle`](Cluster::settle): does the flush wait for the pair's gate?
    pub(in crate::cluster) fn look_at_gate_for_flush(&mut self, pair: PairId) {
        if !self.flush.looks_at_gates() {
            return;
        }
        if self.pairs[pair].pair.gate() == Gate::Draining {
            // A hand-back that waits for its last copies gives up its gate: the copies wait for
            // this flush.
            self.apply(pair, pair::Event::Drained(false));
        }
        self.flush.gate(pair, self.is_closed_for_flush(pair));
        self.unsettled.flush();
    }

    /// Whether the pair is closed, or would open only after the flush.
    fn is_closed_for_flush(&self, pair: PairId) -> bool {
        let run = &self.pairs[pair];
        match run.pair.gate() {
            Gate::Open => run.flush_hold != Hold::None,
            // No write is taken before the record is stored. What the flush itself is to record is
            // tried again for a while: a full server often has room at the second time.
            Gate::Recording if self.flush.is_settling() => run.recording.given_up,
            Gate::Recording => run.recording.refused,
            Gate::Closing | Gate::Draining => false,
        }
    }

    /// Whether the flush waits for the pair's gate, if and only if it has to.
    #[cfg(test)]
    pub(in crate::cluster) fn flush_knows_gate(&self, pair: PairId) -> bool {
        self.flush.waits_for_gate(pair).is_none_or(|waits| waits != self.is_closed_for_flush(pair))
    }

    /// What the flush can do next.
    pub(in crate::cluster) fn next_of_flush(&self) -> Option<Step> {
        self.flush.next(self.delayed.is_writing())
    }

    /// Part of [`settle`](Cluster::settle).
    pub(in crate::cluster) fn advance_flush(&mut self) {
        match self.next_of_flush() {
            Some(Step::Send) => self.send_flush(),
            Some(Step::Record) => self.record_flush(),
            Some(Step::Finish) => self.finish_flush(),
            None => return,
        }
        self.unsettled.flush();
    }

    /// Every pair is closed (or would open only after this): the nodes are flushed.
    fn send_flush(&mut self) {
        // A node that is lost for its mirrored pairs, being late, may lead others all the same.
        let nodes = self.topology.nodes();
        let waiting = self.flush.send(nodes.filter(|&n| self.nodes[n].health.is_up() || self.leads(n)).collect());
        for pair in self.topology.pairs() {
            if self.pairs[pair].plan.is_adopting() {
                // Its record is another one from now on.
                self.pairs[pair].pair.renew();
            }
            self.plan(pair, FillEvent::FlushSent);
        }
        for (node, given_up) in waiting {
            self.flush_node(node, given_up);
        }
    }

    fn flush_node(&self, node: NodeId, given_up: CancellationToken) {
        let named = self.nodes[node].incarnation.map(|from| NewName { from, to: new_name(from) });
        let name = named.map(|named| named.to);
        let markers = self.markers(node, name);
        let (control, internal) = (self.controls[node].clone(), self.internal.clone());
        let (timeout, patience) = (self.settings.timeout, self.settings.leader_timeout.max(self.settings.timeout));
        lease::spawn(async move {
            // The probes wait behind it, so it tells itself that the node is late.
            let flush = control.flush(named, &markers, patience, given_up.cancelled());
            let flushed = told_while_awaited(flush, timeout / AWAITED_REPORTS, |age| {
                let _ = internal.send(Internal::FlushAwaited { node, age });
            });
            match flushed.await {
                Ok(flushed) => {
                    let _ = internal.send(Internal::Flushed { node, name, result: Ok(flushed), drain: None });
                }
                Err((error, drain)) => {
                    let address = drain.as_ref().map(Drain::address);
                    let _ = internal.send(Internal::Flushed { node, name, result: Err(error), drain: address });
                    if let Some(drain) = drain {
                        let address = drain.address();
                        let end = drain.await;
                        let _ = internal.send(Internal::DrainDone { node, address, end });
                    }
                }
            }
        });
    }

    /// A node has not answered its flush yet. It is judged as one that is late with a request.
    pub(in crate::cluster) fn flush_awaited(&mut self, node: NodeId, age: Duration) {
        if self.flush.awaits(node) {
            self.late(node, age);
        }
    }

    /// Whether the node is lost, and leads nothing any more: then its flush is not waited for
    /// either.
    pub(in crate::cluster) fn flush_is_in_vain(&self, node: NodeId) -> bool {
        self.flush.is_patient_with(node) && !self.nodes[node].health.is_up() && !self.leads(node)
    }

    /// Part of [`settle`](Cluster::settle).
    pub(in crate::cluster) fn give_flush_up(&self, node: NodeId) {
        if self.flush_is_in_vain(node) {
            self.flush.give_up(node);
        }
    }

    /// Some pair goes by the node's word.
    fn leads(&self, node: NodeId) -> bool {
        let place = self.topology.place(node);
        self.topology.pairs_of(node).any(|p| self.pairs[p].pair.state().leader() == Some(place))
    }

    /// Everything that the proxy keeps on a node, as it is to be by the pairs' present states; with
    /// its memory's name first.
    pub(in crate::cluster) fn markers(
        &self,
        node: NodeId,
        incarnation: impl Into<Option<Incarnation>>,
    ) -> Vec<(String, String)> {
        if !self.marked() {
            return vec![(marker::RING_KEY.to_owned(), self.ring_of(node).to_string())];
        }
        let Some(incarnation) = incarnation.into() else { return vec![] };
        let mut markers = vec![
            (marker::INCARNATION_KEY.to_owned(), incarnation.to_string()),
            (marker::RING_KEY.to_owned(), self.ring_of(node).to_string()),
            (marker::SESSION_KEY.to_owned(), self.session.to_string()),
        ];
        markers.extend(self.fleet.turn.iter().map(|turn| (marker::FLEET_KEY.to_owned(), turn.mark.to_string())));
        if !self.delayed.pending().is_blank() {
            markers.push((marker::FLUSH_KEY.to_owned(), self.delayed.pending().to_string()));
        }
        for pair in self.topology.pairs() {
            if self.pairs[pair].beginning.undecided {
                continue;
            }
            let run = &self.pairs[pair].pair;
            let fact = match run.state() {
                State::Mirrored => Fact::Sync,
                State::Degraded { leader } => Fact::Alone(leader),
                State::Recovering { leader } if self.pairs[pair].plan.is_adopting() => Fact::Adopting(leader),
                State::Recovering { leader } => Fact::Filling(leader.other()),
                State::Dark { in_sync: Some(place), .. } => Fact::Alone(place),
                State::Dark { in_sync: None, .. } => Fact::Nobody,
            };
            let record = Record { epoch: run.epoch(), fact, term: run.term(), period: self.precedence.period() };
            markers.push((marker::pair_key(pair), record.to_string()));
        }
        markers
    }

    /// A last full copy that is not reached holds what the flush has ended: when its node comes
    /// back, it must not lead before a purge. Done only after a node was flushed: if all refuse
    /// (`-F`), nothing has changed.
    fn void_dark(&mut self) {
        for pair in self.topology.pairs() {
            // Not even the start-up table may let it lead.
            self.pairs[pair].beginning.undecided = false;
            self.plan(pair, FillEvent::Flushed(self.pairs[pair].pair.state()));
            self.apply(pair, pair::Event::Flushed);
        }
    }

    /// `drain`: it may still be executed, over a connection to that one of the node's addresses.
    pub(in crate::cluster) fn flushed(
        &mut self,
        node: NodeId,
        name: Option<Incarnation>,
        result: Result<Flushed, MarkError>,
        drain: Option<AddressNumber>,
    ) {
        if drain == Some(self.address_number(node)) {
            self.nodes[node].drains += 1;
            self.changed(node);
        }
        match result {
            Ok(flushed) => {
                // It counts those that it refuses, too (`-F`).
                if let Some(view) = &mut self.nodes[node].view {
                    view.cmd_flush += 1;
                }
                match flushed {
                    Flushed::Done => {
                        self.rename(node, name);
                        self.took_effect();
                    }
                    Flushed::Refused { said, renamed } => {
                        self.rename(node, name.filter(|_| renamed));
                        tracing::warn!(node = %self.topology.addr(node), %said, "a node refuses flush_all");
                        self.flush.refused(node, said);
                    }
                }
            }
            Err(error) => {
                if let MarkError::OfFleet(found) = &error {
                    self.judge_fleet_mark(node, Some(found.clone()));
                }
                tracing::warn!(node = %self.topology.addr(node), %error, "flush_all failed on a node");
                // It is purged when it comes back, whether it was flushed or not.
                self.lost(node, reason_of_mark(&error), Loss::Suspected, true);
                if drain.is_some() || matches!(error, MarkError::Refused(_)) {
                    self.took_effect();
                }
            }
        }
        self.flush.answered(node);
        self.unsettled.flush();
    }

    /// Workers check their connections by that name. Their reports of a memory other than the one
    /// that they knew no longer count: every gate is closed, so nothing is forgotten with them.
    fn rename(&mut self, node: NodeId, name: Option<Incarnation>) {
        let Some(name) = name else { return };
        let used = self.nodes[node].health.is_up() || self.leads(node);
        let run = &mut self.nodes[node];
        run.incarnation = Some(name);
        if used {
            run.life = run.life.next();
            self.allow(node);
        }
    }

    fn took_effect(&mut self) {
        self.flush.took_effect();
        self.void_dark();
    }

    /// Every node has answered.
    fn record_flush(&mut self) {
        let Some(Answered { out_of_step, voids, due }) = self.flush.settle() else { return };
        // Of a pair whose node was lost by this it is not recorded yet who leads alone. What was
        // refused by a full node has room now, and may have been written with the flush.
        for pair in self.topology.pairs() {
            self.pairs[pair].recording.given_up = false;
            self.unsettled.pair(pair);
        }
        for node in out_of_step {
            // The others are empty now.
            self.lost(node, Reason::Protocol, Loss::Suspected, true);
        }
        if voids {
            self.void_dark();
        }
        let voiding = self.record_nobody();
        self.flush.voiding(voiding);
        if let Some(due) = due {
            self.delayed.strike_off(due);
            if self.marked() {
                self.record_pending();
            }
        }
    }

    fn finish_flush(&mut self) {
        if self.pairs.iter().any(|run| run.pair.gate() == Gate::Recording && run.recording.given_up) {
            self.flush.forgotten_with_the_proxy();
        }
        let Some(Finished { askers, answer, flushed, guard, next }) = self.flush.finish() else { return };
        if flushed {
            // A node that still holds anything counts as lost, and is purged.
            self.pairs.iter().for_each(|run| run.lone.forget());
            self.nodes.iter_mut().for_each(|run| run.refills.unread.forget());
        }
        for pair in self.topology.pairs() {
            let run = &self.pairs[pair];
            if run.pair.gate() == Gate::Open {
                self.publish(pair);
            }
        }
        drop(guard);
        for asker in askers {
            self.answer(asker, Outcome::Raw(answer.clone()));
        }
        if let Some((askers, due)) = next {
            self.begin_flush(askers, due);
        }
    }

    /// Records of pairs that no copy is left of, on every node in use, before the flush is
    /// acknowledged: else the next proxy would believe the older record on a node that was away,
    /// and let it lead. Returns whether there are such pairs.
    fn record_nobody(&self) -> bool {
        let records: Vec<(PairId, Record)> = self
            .topology
            .pairs()
            .map(|id| (id, &self.pairs[id]))
            .filter(|(_, run)| {
                !run.beginning.undecided && matches!(run.pair.state(), State::Dark { in_sync: None, .. })
            })
            .map(|(id, run)| {
                let (epoch, term) = (run.pair.epoch(), run.pair.term());
                (id, Record { epoch, fact: Fact::Nobody, term, period: self.precedence.period() })
            })
            .collect();
        if records.is_empty() || !self.marked() {
            return false;
        }
        let nodes: Vec<_> = self
            .topology
            .nodes()
            .filter(|n| self.nodes[*n].health.is_up())
            .filter_map(|n| Some((self.nodes[n].incarnation?, self.controls[n].clone())))
            .collect();
        let agreed: Vec<_> = records.iter().map(|(id, record)| self.committed(*id, record, None)).collect();
        self.spawn(async move {
            let writes = nodes.iter().map(async |(incarnation, control)| {
                // A node that fails now is noticed by its own probe.
                control.record_where_possible(*incarnation, &records).await
            });
            let carried = futures::future::join_all(writes).await.contains(&true);
            futures::future::join_all(agreed).await;
            Internal::NobodyRecorded { carried }
        });
        true
    }

    pub(in crate::cluster) fn nobody_recorded(&mut self, carried: bool) {
        self.flush.voiding(false);
        if !carried {
            self.flush.forgotten_with_the_proxy();
        }
        self.unsettled.flush();
    }
}

#[cfg(test)]
mod tests;
