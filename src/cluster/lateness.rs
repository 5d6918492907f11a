//! Nodes that answer late: the others are asked, and it is said who is waited for.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{NodeError, Probe};
use crate::ids::{NodeId, PairId};
use crate::pair::{Loss, Reason, State};
use crate::rules::{Rule, holds};
use crate::suspicion::{Lateness, Others, Verdict};

use super::nodes::reason_of;
use super::{Cluster, Internal};

/// That nodes are late together is logged so often at most.
const TOLD_EVERY: Duration = Duration::from_secs(1);

impl Cluster {
    /// An answer of the node is awaited for so long, and still is.
    pub(super) fn late(&mut self, node: NodeId, age: Duration) {
        let lateness = Lateness::of(age, self.settings.timeout, self.settings.leader_timeout);
        let hopeless = lateness == Some(Lateness::Hopeless);
        let led_alone = |p: PairId| self.is_only_copy(p, node);
        if !self.nodes[node.index()].health.is_up()
            || self.topology.pairs_of(node).all(led_alone)
            || !holds(Rule::LateTogether)
        {
            // There is nobody to take its place: how long it is waited for does not depend on
            // others.
            if lateness >= Some(Lateness::Late) {
                if self.nodes[node.index()].health.is_up() {
                    self.suspicions.troubled(node, self.now());
                }
                self.lost(node, Reason::Timeout, Loss::Suspected, hopeless);
            }
            return;
        }
        let (now, others) = (self.now(), self.others(node));
        match self.suspicions.report(node, age, now, &others) {
            Verdict::GiveUp => self.lost(node, Reason::Timeout, Loss::Suspected, hopeless),
            Verdict::Wait(asked) => {
                for other in asked {
                    self.ask_whether_it_answers(other);
                }
                self.tell_who_is_waited_for();
            }
        }
    }

    /// What a node answered that was asked because another one is late.
    pub(super) fn alibi(&mut self, node: NodeId, result: Result<Probe, NodeError>) {
        let now = self.now();
        match result {
            Ok(_) => {
                self.suspicions.answered(node, now);
                if self.nodes[node.index()].silent_since.take().is_some() {
                    // It was probes that it had not answered, and it answers again.
                    self.suspicions.forget(node);
                }
            }
            Err(error) => {
                self.suspicions.unanswered(node, now);
                self.fault(node, reason_of(&error), false);
            }
        }
        for (late, age) in self.suspicions.pending(now) {
            self.late(late, age);
        }
    }

    fn ask_whether_it_answers(&self, node: NodeId) {
        self.ask_node(node, |control| async move { Internal::Alibi { node, result: control.probe(&[]).await } });
    }

    fn others(&self, node: NodeId) -> Others {
        let place = self.topology.place(node);
        let in_use = |n: &NodeId| *n != node && self.nodes[n.index()].health.is_up();
        let partners = self.topology.pairs_of(node).map(|p| self.node_at(p, place.other()));
        Others {
            witnesses: self.topology.nodes().filter(in_use).collect(),
            partners: partners.filter(in_use).collect(),
            only_copy: self.topology.pairs_of(node).any(|p| self.is_only_copy(p, node)),
        }
    }

    /// The node holds the pair's only full copy.
    fn is_only_copy(&self, pair: PairId, node: NodeId) -> bool {
        let place = self.topology.place(node);
        matches!(self.pairs[pair.index()].pair.state(),
            State::Degraded { leader } | State::Recovering { leader } if leader == place)
    }

    fn tell_who_is_waited_for(&mut self) {
        if self.told_late.is_some_and(|at| at.elapsed() < TOLD_EVERY) {
            return;
        }
        let waits = self.suspicions.waited_for(self.now());
        if waits.is_empty() {
            return;
        }
        self.told_late = Some(Instant::now());
        let name = |(node, age): (NodeId, Duration)| format!("{} {}ms", self.topology.addr(node), age.as_millis());
        let nodes = waits.into_iter().map(name).collect::<Vec<_>>().join(", ");
        tracing::warn!(
            nodes,
            "several nodes are late, or this machine is: they are waited for longer, and none is given up yet"
        );
    }

    /// The node has answered a probe: if it was waited for longer, that is over.
    pub(super) fn tell_relief(&mut self, node: NodeId) {
        if let Some(waited) = self.suspicions.relieved(node, self.now()) {
            tracing::info!(node = %self.topology.addr(node), waited = ?Duration::from_millis(waited.as_millis() as u64),
                "a node that was late with others answers again, and was not given up");
        }
    }
}
