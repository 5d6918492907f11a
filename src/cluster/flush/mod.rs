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
use crate::ids::{Incarnation, NodeId, PairId};
use crate::lease;
use crate::pair::FillEvent;
use crate::pair::{self, Gate, Loss, Reason, State};
use crate::protocol::expiry;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::rules::{Rule, holds};

use crate::cluster::ask::Asker;
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

/// One that a flush which is executed late does not give once more: it would pass unseen, for it
/// puts the markers back. Whoever has sent it may be gone, and another proxy have taken its place.
fn new_name(memory: Incarnation) -> Incarnation {
    if holds(Rule::FlushIsANewMemory) { memory.flushed(crate::ambient::random_u64()) } else { memory }
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
                    waited_for |= reason_of(&error) == Reason::Timeout && self.nodes[node.index()].health.is_up();
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
        match self.quiesce.clone().try_write_owned() {
            Ok(guard) => self.quiesced(guard),
            Err(_) => {
                let quiesce = self.quiesce.clone();
                self.spawn(async move { Internal::Quiesced { guard: quiesce.write_owned().await } });
            }
        }
    }

    /// No copy is in flight any more, and none begins: now the gates.
    pub(in crate::cluster) fn quiesced(&mut self, guard: OwnedRwLockWriteGuard<()>) {
        self.flush.quiesced(guard, self.topology.pairs());
        for pair in self.topology.pairs() {
            self.unsettled.pair(pair);
            if self.pairs[pair.index()].pair.gate() == Gate::Open && !self.pairs[pair.index()].held_for_flush {
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
        if self.pairs[pair.index()].pair.gate() == Gate::Draining {
            // A hand-back that waits for its last copies gives up its gate: the copies wait for
            // this flush.
            self.apply(pair, pair::Event::Drained(false));
        }
        self.flush.gate(pair, self.is_closed_for_flush(pair));
        self.unsettled.flush();
    }

    /// Whether the pair is closed, or would open only after the flush.
    fn is_closed_for_flush(&self, pair: PairId) -> bool {
        let run = &self.pairs[pair.index()];
        match run.pair.gate() {
            Gate::Open => run.flush_closed || run.held_for_flush,
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
        let waiting =
            self.flush.send(nodes.filter(|&n| self.nodes[n.index()].health.is_up() || self.leads(n)).collect());
        for pair in self.topology.pairs() {
            if self.pairs[pair.index()].plan.is_adopting() {
                // Its record is another one from now on.
                self.pairs[pair.index()].pair.renew();
            }
            self.plan(pair, FillEvent::FlushSent);
        }
        for (node, given_up) in waiting {
            self.flush_node(node, given_up);
        }
    }

    fn flush_node(&self, node: NodeId, given_up: CancellationToken) {
        let named = self.nodes[node.index()].incarnation.map(|from| NewName { from, to: new_name(from) });
        let name = named.map(|named| named.to);
        let markers = self.markers(node, name);
        let (control, internal) = (self.controls[node.index()].clone(), self.internal.clone());
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
                    let life = drain.as_ref().map(Drain::life);
                    let _ = internal.send(Internal::Flushed { node, name, result: Err(error), drain: life });
                    if let Some(drain) = drain {
                        let life = drain.life();
                        let end = drain.await;
                        let _ = internal.send(Internal::DrainDone { node, life, end });
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
        self.flush.is_patient_with(node) && !self.nodes[node.index()].health.is_up() && !self.leads(node)
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
        self.topology.pairs_of(node).any(|p| self.pairs[p.index()].pair.state().leader() == Some(place))
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
        markers.extend(self.turn.iter().map(|turn| (marker::FLEET_KEY.to_owned(), turn.mark.to_string())));
        if !self.delayed.pending().is_blank() {
            markers.push((marker::FLUSH_KEY.to_owned(), self.delayed.pending().to_string()));
        }
        for pair in self.topology.pairs() {
            if self.pairs[pair.index()].undecided {
                continue;
            }
            let run = &self.pairs[pair.index()].pair;
            let fact = match run.state() {
                State::Mirrored => Fact::Sync,
                State::Degraded { leader } => Fact::Alone(leader),
                State::Recovering { leader } if self.pairs[pair.index()].plan.is_adopting() => Fact::Adopting(leader),
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
            self.plan(pair, FillEvent::Flushed(self.pairs[pair.index()].pair.state()));
            self.apply(pair, pair::Event::Flushed);
        }
    }

    /// `drain`: it may still be executed, over a connection to that one of the node's addresses.
    pub(in crate::cluster) fn flushed(
        &mut self,
        node: NodeId,
        name: Option<Incarnation>,
        result: Result<Flushed, MarkError>,
        drain: Option<u64>,
    ) {
        if drain == Some(self.address_life(node)) {
            self.nodes[node.index()].drains += 1;
            self.changed(node);
        }
        match result {
            Ok(flushed) => {
                // It counts those that it refuses, too (`-F`).
                if let Some(view) = &mut self.nodes[node.index()].view {
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

    /// Workers check their connections by that name. What they have told of a memory that is not
    /// the one they knew counts no more: every gate is closed, so nothing is forgotten with it.
    fn rename(&mut self, node: NodeId, name: Option<Incarnation>) {
        let Some(name) = name else { return };
        let used = self.nodes[node.index()].health.is_up() || self.leads(node);
        let run = &mut self.nodes[node.index()];
        run.incarnation = Some(name);
        if used {
            run.life += 1;
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
            self.pairs[pair.index()].recording.given_up = false;
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
            // Whoever holds anything yet is lost, and purged.
            self.pairs.iter().for_each(|run| run.lone.forget());
        }
        for pair in self.topology.pairs() {
            let run = &self.pairs[pair.index()];
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
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::cluster::alone::alone;
    use crate::ids::WorkerId;
    use crate::proxy::{ClientId, ClientKey, Command, Event};

    const NODE: NodeId = NodeId(0);

    /// A connection that is checked while the flush is under way finds the name that this gives, or
    /// finds it before its worker was told: that is no loss. Nor is it forgotten later on that
    /// another name is one.
    #[tokio::test(start_paused = true)]
    async fn the_name_that_a_flush_gives_is_no_other_memory() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
        cluster.begin_open(State::Mirrored);
        let before = Incarnation(7 << 32);
        cluster.nodes.iter_mut().for_each(|run| run.incarnation = Some(before));
        let asker = Asker { worker: WorkerId(0), client: ClientKey { id: ClientId(0), generation: 0 }, slot: 1 };
        cluster.flush_all(asker, 0);
        cluster.settle();
        let (pair, round) = (PairId(0), cluster.pairs[0].round);
        cluster.worker_said(Event::Closed { worker: WorkerId(0), pair, round });
        cluster.settle();
        assert!(cluster.flush.awaits(NODE), "it is sent");
        let (life, name) = (cluster.nodes[NODE.index()].life, before.flushed(5));
        let told = |cluster: &mut Cluster, life| {
            cluster.worker_said(Event::Fault { node: NODE, life, reason: Reason::MarkerStale });
            cluster.nodes[NODE.index()].health.is_up()
        };
        assert!(told(&mut cluster, life), "told before the answer came");
        cluster.flushed(NODE, Some(name), Ok(Flushed::Done), None);
        assert_eq!(cluster.nodes[NODE.index()].incarnation, Some(name));
        assert!(told(&mut cluster, life), "told before the worker knew the name");
        assert!(!told(&mut cluster, life + 1), "told of another name than this");
    }

    /// A node does not answer. Its items are void for whoever comes after this proxy only once it
    /// is recorded that the other one leads alone. What the client is told at last.
    async fn flush_that_one_missed(is_full: bool) -> String {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
        cluster.begin_open(State::Mirrored);
        let mut told = heard(&mut cluster);
        cluster.nodes.iter_mut().for_each(|run| run.incarnation = Some(Incarnation(7 << 32)));
        let asker = Asker { worker: WorkerId(0), client: ClientKey { id: ClientId(0), generation: 0 }, slot: 1 };
        let pair = PairId(0);
        let closed = |cluster: &mut Cluster| {
            let round = cluster.pairs[pair.index()].round;
            cluster.worker_said(Event::Closed { worker: WorkerId(0), pair, round });
            cluster.settle();
        };
        cluster.flush_all(asker, 0);
        cluster.settle();
        closed(&mut cluster);
        cluster.flushed(NODE, None, Err(MarkError::Node(crate::backend::NodeError::Timeout)), None);
        cluster.flushed(NodeId(1), None, Ok(Flushed::Done), None);
        cluster.settle();
        assert!(cluster.flush.is_active(), "the gate is being closed");
        closed(&mut cluster);
        assert!(cluster.flush.is_active(), "it is being recorded");
        let epoch = cluster.pairs[pair.index()].pair.epoch();
        let refused = || Err((NodeId(1), MarkError::Refused("SERVER_ERROR out of memory".to_owned())));
        cluster.recorded(pair, epoch, refused());
        cluster.settle();
        assert!(cluster.flush.is_active(), "it is tried again");
        if is_full {
            tokio::time::advance(cluster.settings.leader_timeout).await;
            cluster.recorded(pair, epoch, refused());
        } else {
            cluster.recorded(pair, epoch, Ok(()));
        }
        cluster.settle();
        assert!(!cluster.flush.is_active());
        answered(&mut told)
    }

    /// What the client was told.
    fn answered(told: &mut UnboundedReceiver<Command>) -> String {
        loop {
            if let Command::Answer { outcome: Outcome::Raw(said), .. } = told.try_recv().expect("it was answered") {
                return String::from_utf8_lossy(&said).into();
            }
        }
    }

    /// What workers are told.
    fn heard(cluster: &mut Cluster) -> UnboundedReceiver<Command> {
        let (worker, told) = unbounded_channel();
        cluster.workers = vec![worker];
        told
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_that_nobody_could_record_is_not_called_done() {
        assert_eq!(flush_that_one_missed(false).await, "OK\r\n");
        let said = flush_that_one_missed(true).await;
        assert!(said.starts_with("SERVER_ERROR no server could record the flush"), "{said}");
    }

    /// A full node refused its record for long; the flush gives it room.
    #[tokio::test(start_paused = true)]
    async fn a_record_that_was_refused_before_a_flush_is_tried_again_after_it() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
        cluster.begin_recording(State::Degraded { leader: crate::ids::Place::Primary });
        cluster.nodes.iter_mut().for_each(|run| run.incarnation = Some(Incarnation(7 << 32)));
        let mut told = heard(&mut cluster);
        let pair = PairId(0);
        let epoch = cluster.pairs[pair.index()].pair.epoch();
        tokio::time::advance(cluster.settings.leader_timeout).await;
        cluster.recorded(pair, epoch, Err((NODE, MarkError::Refused("SERVER_ERROR out of memory".to_owned()))));
        let asker = Asker { worker: WorkerId(0), client: ClientKey { id: ClientId(0), generation: 0 }, slot: 1 };
        cluster.flush_all(asker, 0);
        cluster.settle();
        for node in [NODE, NodeId(1)].into_iter().filter(|&node| cluster.flush.awaits(node)).collect::<Vec<_>>() {
            cluster.flushed(node, None, Ok(Flushed::Done), None);
        }
        cluster.settle();
        assert!(cluster.flush.is_active(), "it is tried again");
        cluster.recorded(pair, epoch, Ok(()));
        cluster.settle();
        assert_eq!(answered(&mut told), "OK\r\n");
    }

    /// Both are cut off, and what was sent to them may never come.
    #[tokio::test(start_paused = true)]
    async fn a_flush_that_may_have_reached_nobody_is_not_called_done() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
        cluster.begin_open(State::Mirrored);
        let mut told = heard(&mut cluster);
        cluster.nodes.iter_mut().for_each(|run| run.incarnation = Some(Incarnation(7 << 32)));
        let asker = Asker { worker: WorkerId(0), client: ClientKey { id: ClientId(0), generation: 0 }, slot: 1 };
        cluster.flush_all(asker, 0);
        cluster.settle();
        for _ in 0..3 {
            let (pair, round) = (PairId(0), cluster.pairs[0].round);
            cluster.worker_said(Event::Closed { worker: WorkerId(0), pair, round });
            cluster.settle();
            for node in [NODE, NodeId(1)].into_iter().filter(|&node| cluster.flush.awaits(node)).collect::<Vec<_>>() {
                let late = MarkError::Node(crate::backend::NodeError::Timeout);
                cluster.flushed(node, None, Err(late), Some(cluster.address_life(node)));
            }
            cluster.settle();
        }
        while cluster.flush.is_active() {
            let said = cluster.inbox.as_mut().expect("not running").recv().await.expect("something goes on");
            if let Internal::NobodyRecorded { carried } = said {
                cluster.nobody_recorded(carried);
            }
            cluster.settle();
        }
        let said = answered(&mut told);
        assert!(said.starts_with("SERVER_ERROR no server could record the flush"), "{said}");
    }

    /// The name is written whether or not the flush is refused, unless that is refused too.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_refuses_the_flush_has_the_name_that_it_stored() {
        for renamed in [true, false] {
            let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
            cluster.begin_open(State::Mirrored);
            let (before, name) = (Incarnation(7 << 32), Incarnation(7 << 32).flushed(5));
            cluster.nodes[NODE.index()].incarnation = Some(before);
            let result = Ok(Flushed::Refused { said: "CLIENT_ERROR flush_all not allowed".to_owned(), renamed });
            cluster.flushed(NODE, Some(name), result, None);
            assert_eq!(cluster.nodes[NODE.index()].incarnation, Some(if renamed { name } else { before }));
        }
    }
}
