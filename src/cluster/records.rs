//! Records: who leads a pair, written on its nodes before its gate opens, and on the others as
//! witnesses.

use tokio::sync::oneshot;

use crate::backend::marker::{Fact, Record};
use crate::backend::{MarkError, NodeError};
use crate::ids::{Epoch, NodeId, PairId, Place};
use crate::lease;
use crate::pair::{self, Gate, Loss, Reason, State};
use crate::proxy::{Command, Route};
use crate::rules::{Rule, holds};

use super::{Cluster, Internal, RECORD_RETRY, nodes};

/// How far a pair's record is.
#[derive(Default)]
pub(super) struct Recording {
    /// Where it is written, in this order.
    pub(super) on: Vec<Place>,
    /// A node refuses to store it, which is tried again and again: a `flush_all` does not wait for
    /// that, for it writes records too.
    pub(super) refused: bool,
    /// … and has done so for long.
    pub(super) given_up: bool,
}

impl Cluster {
    /// Writes the pair's record on `places`, in that order, then on every other node that answers,
    /// as a witness for the next start.
    pub(super) fn record(&mut self, id: PairId, fact: Fact, places: Vec<Place>) {
        let run = &mut self.pairs[id];
        run.recording.on.clone_from(&places);
        let epoch = run.pair.epoch();
        let record = Record { epoch, fact, term: run.pair.term(), period: self.precedence.period() };
        let internal = self.internal.clone();
        if !self.marked() {
            let _ = internal.send(Internal::Recorded { pair: id, epoch, result: Ok(()) });
            return;
        }
        let committed = self.committed(id, &record, places.first().copied());
        let needed: Vec<NodeId> = places.into_iter().map(|place| self.node_at(id, place)).collect();
        let with = |node: NodeId| (node, self.controls[node].clone(), self.nodes[node].incarnation);
        let must: Vec<_> = needed.iter().map(|&node| with(node)).collect();
        let witnesses: Vec<_> = self
            .topology
            .nodes()
            .filter(|n| !needed.contains(n) && self.nodes[*n].health.is_up() && holds(Rule::WitnessRecords))
            .map(with)
            .collect();
        lease::spawn(async move {
            let mut result = Ok(());
            for (node, control, incarnation) in must {
                let Some(incarnation) = incarnation else {
                    result = Err((node, MarkError::MemoryGone));
                    break;
                };
                if let Err(error) = control.record(incarnation, id, record).await {
                    result = Err((node, error));
                    break;
                }
            }
            let recorded = result.is_ok();
            if recorded {
                committed.await;
            }
            let _ = internal.send(Internal::Recorded { pair: id, epoch, result });
            if recorded {
                for (_, control, incarnation) in witnesses {
                    if let Some(incarnation) = incarnation {
                        control.testify(incarnation, [(id, record)]);
                    }
                }
            }
        });
    }

    /// What is recorded where a pair becomes Recovering, before its gate opens.
    pub(super) fn record_filling(&mut self, id: PairId, on: Place) {
        if self.pairs[id].plan.is_adopting() {
            // On the follower: only one that says so itself is adopted from at the next start. The
            // leader is a witness.
            self.record(id, Fact::Adopting(on.other()), vec![on]);
        } else {
            self.record(id, Fact::Filling(on), vec![on]);
        }
    }

    /// Changes the records of pairs that stay Recovering, on the node that is filled and then, as
    /// witnesses, on the others; `reply` hears whether the node carries them.
    ///
    /// `lenient`: also where a node refuses them, full to the brim (`-M`).
    pub(super) fn record_again_for(
        &mut self,
        node: NodeId,
        facts: Vec<(PairId, Fact)>,
        lenient: bool,
        reply: oneshot::Sender<bool>,
    ) {
        let records: Vec<(PairId, Record)> = facts
            .into_iter()
            .map(|(id, fact)| {
                let pair = &mut self.pairs[id].pair;
                pair.renew();
                (id, Record { epoch: pair.epoch(), fact, term: pair.term(), period: self.precedence.period() })
            })
            .collect();
        let known = |n: NodeId| Some((self.controls[n].clone(), self.nodes[n].incarnation?));
        let target = known(node);
        let others = self.topology.nodes().filter(|&n| n != node && self.nodes[n].health.is_up());
        let witnesses: Vec<_> = others.filter_map(known).collect();
        let name = self.topology.addr(node).to_string();
        lease::spawn(async move {
            let Some((control, incarnation)) = target else { return };
            for &(pair, record) in &records {
                match control.record(incarnation, pair, record).await {
                    Ok(()) => {}
                    Err(error @ MarkError::Refused(_)) if lenient => {
                        tracing::warn!(node = name, %error, "an adoption that is cut off could not be taken up again");
                    }
                    Err(error) => {
                        tracing::warn!(node = name, %error, "cannot record how far an adoption is");
                        let _ = reply.send(false);
                        return;
                    }
                }
            }
            let _ = reply.send(true);
            for (control, incarnation) in witnesses {
                control.testify(incarnation, records.iter().copied());
            }
        });
    }

    pub(super) fn recorded(&mut self, id: PairId, epoch: Epoch, result: Result<(), (NodeId, MarkError)>) {
        let pair = &self.pairs[id].pair;
        if pair.epoch() != epoch || pair.gate() != Gate::Recording {
            return;
        }
        match result {
            Ok(()) => self.apply(id, pair::Event::Recorded),
            Err((node, MarkError::Node(error))) => {
                let slow = matches!(error, NodeError::Timeout | NodeError::Unreachable(_));
                if slow {
                    let waited = self.pairs[id].since.elapsed().max(self.settings.timeout);
                    self.late(node, waited);
                    // A last full copy is waited for, and one that is late with others; also one
                    // that is lost for its other pairs and goes on leading this one. (The pair's
                    // next edge ends it, if that came of the fault.)
                    let pair = &self.pairs[id].pair;
                    if pair.epoch() == epoch && pair.gate() == Gate::Recording {
                        self.record_again(id, epoch);
                    }
                    return;
                }
                // The pair's requests wait meanwhile: not for ever.
                let waits = self.pairs[id].since.elapsed() < self.settings.leader_timeout;
                if waits && self.serves_all_the_same(node, &error) {
                    return self.record_again(id, epoch);
                }
                tracing::warn!(node = %self.topology.addr(node), %error, "cannot record a pair's state");
                self.lost(node, nodes::reason_of(&error), Loss::Suspected, true);
            }
            Err((node, error @ (MarkError::MemoryGone | MarkError::OtherMemory))) => {
                tracing::warn!(node = %self.topology.addr(node), %error, "cannot record a pair's state");
                self.lost(node, Reason::MarkerLost, Loss::MemoryGone, true);
            }
            Err((node, MarkError::Newer(found))) => {
                tracing::warn!(node = %self.topology.addr(node), pair = %self.pair_name(id), record = %found,
                    "a later record than this proxy's stands there: it is outranked");
                self.judge_epoch(found.epoch);
                self.pairs[id].pair.outrank(found.epoch);
                self.rise_above(found.term);
                let epoch = self.pairs[id].pair.epoch();
                self.record_again(id, epoch);
            }
            Err((node, error @ (MarkError::Refused(_) | MarkError::Foreign(_) | MarkError::OfFleet(_)))) => {
                let name = self.topology.addr(node);
                if matches!(pair.state(), State::Degraded { leader } if self.node_at(id, leader) == node) {
                    tracing::error!(node = %name, %error, "cannot record a pair's state: its keys can only be read");
                    self.publish_read_only(id);
                    let run = &mut self.pairs[id];
                    run.recording.refused = true;
                    run.recording.given_up = run.since.elapsed() >= self.settings.leader_timeout;
                } else if self.pairs[id].since.elapsed() >= self.settings.leader_timeout {
                    // The other node holds everything and can say so: this one is not worth its
                    // refusal. Not at once, because the first write that is refused frees the old
                    // record's place, so that the next one often succeeds.
                    tracing::error!(node = %name, %error, "cannot record a pair's state");
                    return self.lost(node, Reason::Protocol, Loss::Suspected, true);
                }
                self.unsettled.pair(id);
                self.record_again(id, epoch);
            }
        }
    }

    pub(super) fn record_again(&self, id: PairId, epoch: Epoch) {
        self.after(RECORD_RETRY, Internal::RetryRecord { pair: id, epoch });
    }

    /// A node that is full to the brim (`-M`) cannot store the record: its keys can be read, but a
    /// write would be acknowledged without a trace that the other node missed it.
    fn publish_read_only(&mut self, id: PairId) {
        if self.flush.holds_gates() {
            return;
        }
        if let Route::Open(mut flow) = self.route(id) {
            flow.writable = false;
            for worker in &self.workers {
                let _ = worker.send(Command::Open { pair: id, route: Route::Open(flow.clone()) });
            }
        }
    }

    pub(super) fn retry_record(&mut self, id: PairId, epoch: Epoch) {
        let pair = &self.pairs[id].pair;
        if pair.epoch() != epoch || pair.gate() != Gate::Recording {
            return;
        }
        match pair.state() {
            // In the same order: the first one's is what a loss is struck off by.
            State::Mirrored => {
                let places = self.pairs[id].recording.on.clone();
                self.record(id, Fact::Sync, places)
            }
            State::Degraded { leader } => self.record(id, Fact::Alone(leader), vec![leader]),
            State::Recovering { leader } => self.record_filling(id, leader.other()),
            State::Dark { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backend::NodeView;
    use crate::cluster::alone::alone;

    const PAIR: PairId = PairId(0);
    const SLOW: NodeId = NodeId(0);

    /// The epochs whose record is written again.
    async fn tried_again(cluster: &mut Cluster) -> Vec<Epoch> {
        tokio::time::sleep(2 * RECORD_RETRY).await;
        let mut tried = Vec::new();
        while let Ok(internal) = cluster.inbox.as_mut().expect("not running").try_recv() {
            if let Internal::RetryRecord { pair: PAIR, epoch } = internal {
                tried.push(epoch);
            }
        }
        tried
    }

    /// The record was not written in time. Whether the node is in use after that, and whether the
    /// record is tried again.
    async fn not_recorded(cluster: &mut Cluster) -> (bool, bool) {
        let epoch = cluster.pairs[PAIR].pair.epoch();
        cluster.recorded(PAIR, epoch, Err((SLOW, MarkError::Node(NodeError::Timeout))));
        let tried = tried_again(cluster).await.contains(&epoch);
        (cluster.nodes[SLOW].health.is_up(), tried)
    }

    /// A node comes back with a later record while this proxy's is being written: whatever answers
    /// to that is of an epoch that is over, and without another try the gate would stay closed.
    #[tokio::test(start_paused = true)]
    async fn a_record_that_is_outranked_while_it_is_written_is_written_again() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
        cluster.begin_recording(State::Degraded { leader: Place::Primary });
        let pair = &cluster.pairs[PAIR].pair;
        let epoch = Epoch(pair.epoch().0 + 10);
        let found =
            Record { epoch, fact: Fact::Alone(Place::Backup), term: pair.term(), period: cluster.precedence.period() };
        cluster.outrank_records(&NodeView { records: vec![(PAIR, found)], ..NodeView::default() });
        assert_eq!(tried_again(&mut cluster).await, [Epoch(epoch.0 + 1)]);
    }

    /// Several nodes are late at once: a record takes no longer on them than anything else.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_slow_to_record_among_others_is_waited_for() {
        let mut cluster = alone("-s 127.0.0.1:1 -s 127.0.0.1:2 -b 127.0.0.1:3 --timeout 240ms --leader-timeout 2s");
        cluster.begin_recording(State::Mirrored);
        tokio::time::advance(Duration::from_millis(240)).await;
        cluster.late(NodeId(1), Duration::from_millis(240));
        assert_eq!(not_recorded(&mut cluster).await, (true, true));
        // But not for ever.
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(not_recorded(&mut cluster).await, (false, false));
    }

    /// A hand-back is agreed on before its gate opens, also where its record was refused at first.
    #[tokio::test(start_paused = true)]
    async fn a_record_is_tried_again_as_it_was() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
        cluster.begin_recording(State::Mirrored);
        cluster.record(PAIR, Fact::Sync, vec![Place::Primary, Place::Backup]);
        let epoch = cluster.pairs[PAIR].pair.epoch();
        cluster.retry_record(PAIR, epoch);
        assert_eq!(cluster.pairs[PAIR].recording.on, [Place::Primary, Place::Backup]);
    }

    /// Lost for a pair whose other node is in use, it leads the one that has no other.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_lost_for_its_other_pair_is_still_to_record_this_one() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 -b 127.0.0.1:3 --timeout 240ms --leader-timeout 2s");
        cluster.begin_open(State::Mirrored);
        cluster.lost(NodeId(1), Reason::Reset, Loss::Suspected, true);
        cluster.apply(PAIR, pair::Event::Closed);
        cluster.lost(SLOW, Reason::Timeout, Loss::Suspected, false);
        let pair = &cluster.pairs[PAIR].pair;
        assert_eq!((pair.state(), pair.gate()), (State::Degraded { leader: Place::Primary }, Gate::Recording));
        assert_eq!(not_recorded(&mut cluster).await, (false, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_last_full_copy_that_is_slow_to_record_is_waited_for_as_such() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --timeout 240ms --leader-timeout 2s");
        cluster.begin_recording(State::Degraded { leader: Place::Primary });
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(not_recorded(&mut cluster).await, (true, true));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!not_recorded(&mut cluster).await.0);
    }
}
