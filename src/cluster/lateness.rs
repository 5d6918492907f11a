//! Nodes that answer late: the others are asked, and it is said who is waited for.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{NodeError, Probe};
use crate::config::Settings;
use crate::ids::{NodeId, PairId};
use crate::pair::{Loss, Reason, State};
use crate::rules::{Rule, holds};
use crate::suspicion::{Lateness, Others, Suspicions, Verdict};

use super::nodes::reason_of;
use super::{Cluster, Internal};

/// The shortest time between two log lines about nodes that are late together.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Which nodes are late, and when that was last logged.
pub(super) struct Suspects {
    suspicions: Suspicions,
    told: Option<Instant>,
}

impl Suspects {
    pub(super) fn new(nodes: usize, settings: &Settings) -> Suspects {
        let suspicions = Suspicions::new(nodes, settings.timeout, settings.leader_timeout);
        Suspects { suspicions, told: None }
    }

    pub(super) fn take_settings(&mut self, settings: &Settings) {
        self.suspicions.allow(settings.timeout, settings.leader_timeout);
    }

    /// What is suspected of a node ends with its loss.
    pub(super) fn lost(&mut self, node: NodeId) {
        self.suspicions.lost(node);
    }

    /// How often a late node was waited for longer, and how often one was given up after that.
    pub(super) fn counters(&self) -> (u64, u64) {
        (self.suspicions.held, self.suspicions.given_up)
    }

    pub(super) fn reset_counters(&mut self) {
        (self.suspicions.held, self.suspicions.given_up) = (0, 0);
    }

    /// Who is waited for longer, and for how long, where it is time to log that.
    fn worth_telling(&mut self, now: Duration) -> Option<Vec<(NodeId, Duration)>> {
        if self.told.is_some_and(|at| at.elapsed() < TOLD_EVERY) {
            return None;
        }
        let waits = Some(self.suspicions.waited_for(now)).filter(|waits| !waits.is_empty())?;
        self.told = Some(Instant::now());
        Some(waits)
    }
}

impl Cluster {
    /// An answer of the node is awaited for this long, and still is.
    pub(super) fn late(&mut self, node: NodeId, age: Duration) {
        let lateness = Lateness::of(age, self.settings.timeout, self.settings.leader_timeout);
        let hopeless = lateness == Some(Lateness::Hopeless);
        let led_alone = |p: PairId| self.is_only_copy(p, node);
        if !self.nodes[node].health.is_up() || self.topology.pairs_of(node).all(led_alone) || !holds(Rule::LateTogether)
        {
            // No node can take its place: how long it is waited for does not depend on others.
            if lateness >= Some(Lateness::Late) {
                if self.nodes[node].health.is_up() {
                    self.suspects.suspicions.troubled(node, self.now());
                }
                self.lost(node, Reason::Timeout, Loss::Suspected, hopeless);
            }
            return;
        }
        let (now, others) = (self.now(), self.others(node));
        match self.suspects.suspicions.report(node, age, now, &others) {
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
                self.suspects.suspicions.answered(node, now);
                if self.nodes[node].silent_since.take().is_some() {
                    // It was probes that it had not answered, and it answers again.
                    self.suspects.suspicions.forget(node);
                }
            }
            // It has said so at once.
            Err(error) if self.serves_all_the_same(node, &error) => self.suspects.suspicions.answered(node, now),
            Err(error) => {
                self.suspects.suspicions.unanswered(node, now);
                self.fault(node, reason_of(&error), false);
            }
        }
        for (late, age) in self.suspects.suspicions.pending(now) {
            self.late(late, age);
        }
    }

    fn ask_whether_it_answers(&self, node: NodeId) {
        self.ask_node(node, |control| async move { Internal::Alibi { node, result: control.probe(&[]).await } });
    }

    fn others(&self, node: NodeId) -> Others {
        let place = self.topology.place(node);
        let in_use = |n: &NodeId| *n != node && self.nodes[*n].health.is_up();
        let partners = self.topology.pairs_of(node).map(|p| self.node_at(p, place.other()));
        Others {
            witnesses: self.topology.nodes().filter(in_use).collect(),
            partners: partners.filter(in_use).collect(),
            only_copy: self.topology.pairs_of(node).any(|p| self.is_only_copy(p, node)),
        }
    }

    /// The node holds the pair's only full copy, or the only one with what clients may have read.
    pub(super) fn is_only_copy(&self, pair: PairId, node: NodeId) -> bool {
        let (place, run) = (self.topology.place(node), &self.pairs[pair]);
        run.plan.awaits(place)
            || matches!(run.pair.state(),
                State::Degraded { leader } | State::Recovering { leader } if leader == place)
    }

    fn tell_who_is_waited_for(&mut self) {
        let now = self.now();
        let Some(waits) = self.suspects.worth_telling(now) else { return };
        let name = |(node, age): (NodeId, Duration)| format!("{} {}ms", self.topology.addr(node), age.as_millis());
        let nodes = waits.into_iter().map(name).collect::<Vec<_>>().join(", ");
        tracing::warn!(
            nodes,
            "several nodes are late, or this machine is: they are waited for longer, and none is given up yet"
        );
    }

    /// The node has answered a probe: if it was waited for longer, that is over.
    pub(super) fn tell_relief(&mut self, node: NodeId) {
        if let Some(waited) = self.suspects.suspicions.relieved(node, self.now()) {
            tracing::info!(node = %self.topology.addr(node), waited = ?Duration::from_millis(waited.as_millis() as u64),
                "a node that was late with others answers again, and was not given up");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::advance;

    use super::*;
    use crate::cluster::alone::alone;
    use crate::ids::Place;

    const TIMEOUT_MS: u64 = 240;
    const LATE: NodeId = NodeId(0);

    fn three() -> Cluster {
        let mut cluster = alone("-s 127.0.0.1:1 -s 127.0.0.1:2 -b 127.0.0.1:3 --timeout 240ms --leader-timeout 2s");
        cluster.begin_open(State::Mirrored);
        cluster
    }

    fn answered() -> Result<Probe, NodeError> {
        Ok(Probe {
            incarnation: None,
            missing: false,
            session: None,
            pending: None,
            rival: None,
            knock: None,
            fleet: None,
        })
    }

    fn is_up(cluster: &Cluster, node: NodeId) -> bool {
        cluster.nodes[node].health.is_up()
    }

    /// A node owes an answer, and those that answer meanwhile are asked again and again, until just
    /// before it is late.
    async fn until_late(cluster: &mut Cluster, node: NodeId, answer: &[NodeId]) {
        for age in (30..TIMEOUT_MS).step_by(30) {
            advance(Duration::from_millis(30)).await;
            cluster.late(node, Duration::from_millis(age));
            answer.iter().for_each(|&other| cluster.alibi(other, answered()));
        }
        advance(Duration::from_millis(30)).await;
    }

    /// In calm a hung node costs a round trip more, not the time until it is reported again.
    #[tokio::test(start_paused = true)]
    async fn a_late_node_is_judged_at_the_others_answers() {
        let mut cluster = three();
        until_late(&mut cluster, LATE, &[NodeId(1), NodeId(2)]).await;
        cluster.late(LATE, Duration::from_millis(TIMEOUT_MS));
        assert!(is_up(&cluster, LATE), "nobody has answered since");
        cluster.alibi(NodeId(1), answered());
        assert!(is_up(&cluster, LATE), "one of two has");
        cluster.alibi(NodeId(2), answered());
        assert!(!is_up(&cluster, LATE));
    }

    /// It missed a probe, and the first answer to the question whether it lives is its own.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_answers_again_is_not_given_up_for_a_probe() {
        let mut cluster = three();
        until_late(&mut cluster, LATE, &[NodeId(1), NodeId(2)]).await;
        cluster.probed(LATE, Instant::now(), Err(NodeError::Timeout));
        for node in [LATE, NodeId(1), NodeId(2)] {
            cluster.alibi(node, answered());
            assert!(is_up(&cluster, LATE), "at the answer of {node:?}");
        }
        // Nor is the next probe as old as that one.
        advance(Duration::from_secs(10)).await;
        cluster.probe_awaited(LATE, Duration::from_millis(30));
        assert!(is_up(&cluster, LATE));
    }

    /// The silence of a probe long ago would be hopeless by now.
    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_answered_ends_the_silence_of_those_before() {
        let mut cluster = three();
        cluster.probed(LATE, Instant::now(), Err(NodeError::Timeout));
        advance(Duration::from_millis(500)).await;
        let known = cluster.nodes[LATE].incarnation;
        cluster.probed(LATE, Instant::now(), answered().map(|probe| Probe { incarnation: known, ..probe }));
        advance(Duration::from_secs(10)).await;
        cluster.probe_awaited(LATE, Duration::from_millis(30));
        assert!(is_up(&cluster, LATE));
        // But one that goes on is.
        cluster.probed(LATE, Instant::now(), Err(NodeError::Timeout));
        advance(Duration::from_secs(10)).await;
        cluster.probe_awaited(LATE, Duration::from_millis(30));
        assert!(!is_up(&cluster, LATE));
    }

    /// It hangs or it answers: which of them is not to be found out by the next probe that is due.
    #[tokio::test(start_paused = true)]
    async fn a_late_node_that_is_waited_for_is_probed_at_once() {
        let mut cluster = three();
        let hinted = |cluster: &Cluster| cluster.nodes[LATE].hint.notified().now_or_never().is_some();
        assert!(!hinted(&cluster));
        cluster.probed(LATE, Instant::now(), Err(NodeError::Timeout));
        assert!(is_up(&cluster, LATE) && hinted(&cluster), "after a probe");
        cluster.fault(LATE, Reason::Timeout, false);
        assert!(is_up(&cluster, LATE) && hinted(&cluster), "after a fault");
    }

    /// How long an only copy is waited for depends on nobody; but who is late beside it may be late
    /// for the same reason.
    #[tokio::test(start_paused = true)]
    async fn an_only_copy_that_is_late_excuses_the_others() {
        for leader_is_late in [false, true] {
            let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --timeout 240ms --leader-timeout 2s");
            cluster.begin_open(State::Recovering { leader: Place::Primary });
            let (leader, filled) = (NodeId(0), NodeId(1));
            until_late(&mut cluster, filled, &[leader]).await;
            if leader_is_late {
                cluster.late(leader, Duration::from_millis(TIMEOUT_MS));
                assert!(is_up(&cluster, leader));
            }
            cluster.late(filled, Duration::from_millis(TIMEOUT_MS));
            cluster.alibi(leader, answered());
            assert_eq!(is_up(&cluster, filled), leader_is_late);
        }
    }
}
