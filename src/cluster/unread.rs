//! What a node evicted while it was filled, where the resync could not ask for it at its end: it is
//! asked for as soon as the node answers. Until then its pairs count as incomplete.

use super::{Cluster, Internal};
use crate::backend::{NodeError, NodeView};
use crate::ids::{NodeId, PairId};
use crate::resync::Progress;

/// Of one node.
#[derive(Default, Debug)]
pub(super) struct Unread {
    /// Its evictions when that resync began; of the same memory.
    since: Option<u64>,
    asking: bool,
}

impl Unread {
    pub(super) fn count(&self) -> Option<u64> {
        self.since
    }

    /// That memory is gone, or all that was copied into it.
    pub(super) fn forget(&mut self) {
        self.since = None;
    }
}

impl Cluster {
    /// Whether a node of the pair may have evicted copies, which it could not be asked yet.
    pub(super) fn is_in_doubt(&self, id: PairId) -> bool {
        let (primary, backup) = self.topology.nodes_of(id);
        [Some(primary), backup].into_iter().flatten().any(|n| self.nodes[n].refills.unread.since.is_some())
    }

    /// Whether the pair lacks, or may lack, copies of keys that nobody can name.
    pub(super) fn lacks_more(&self, id: PairId) -> bool {
        self.pairs[id].lone.has_more() || self.is_in_doubt(id)
    }

    /// A resync of the node is over.
    pub(super) fn judge_evictions(&mut self, node: NodeId, progress: &Progress) {
        self.nodes[node].refills.unread.since = progress.unread_evictions();
        if progress.incomplete() > 0 {
            self.evicted_during_fill(node, progress.incomplete());
        }
    }

    /// A resync under way reads it itself.
    pub(super) fn ask_of_evictions(&mut self, node: NodeId) {
        let run = &mut self.nodes[node];
        let refills = &mut run.refills;
        if refills.unread.since.is_none() || refills.unread.asking || refills.job.is_some() || !run.health.is_up() {
            return;
        }
        refills.unread.asking = true;
        self.ask_node(
            node,
            move |control| async move { Internal::EvictionsRead { node, result: control.view(0).await } },
        );
    }

    pub(super) fn evictions_read(&mut self, node: NodeId, result: Result<NodeView, NodeError>) {
        let run = &mut self.nodes[node];
        run.refills.unread.asking = false;
        // A resync that began meanwhile counts from the same beginning.
        let (Ok(view), Some(since), None) = (result, run.refills.unread.since, &run.refills.job) else { return };
        if !run.health.is_up() || view.incarnation != run.incarnation {
            return;
        }
        run.refills.unread.forget();
        // A smaller count began anew, and what it was before is unknown.
        if view.evictions != since {
            self.evicted_during_fill(node, view.evictions.abs_diff(since));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::alone::alone;
    use crate::ids::Incarnation;
    use crate::pair::State;

    const NODE: NodeId = NodeId(0);
    const PAIR: PairId = PairId(0);
    const HIS: Option<Incarnation> = Some(Incarnation(7));

    /// Of a primary whose resync began at five evictions, and was cut off.
    fn in_doubt() -> Cluster {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
        cluster.begin_open(State::Mirrored);
        cluster.nodes[NODE].incarnation = HIS;
        let progress = Progress::new([PAIR]);
        progress.carry_evictions(5);
        cluster.judge_evictions(NODE, &progress);
        cluster
    }

    fn read(cluster: &mut Cluster, incarnation: Option<Incarnation>, evictions: u64) {
        let view = NodeView { incarnation, evictions, ..NodeView::default() };
        cluster.evictions_read(NODE, Ok(view));
    }

    /// Whether its copies are compared by themselves in the next minute.
    async fn is_compared(cluster: &mut Cluster) -> bool {
        for _ in 0..60 {
            tokio::time::advance(Duration::from_secs(1)).await;
            cluster.look_for_copies();
        }
        cluster.is_verifying()
    }

    fn shown(cluster: &Cluster) -> (&'static str, bool) {
        let pair = cluster.report().pairs.swap_remove(0);
        (pair.state, pair.missing_unknown)
    }

    #[tokio::test(start_paused = true)]
    async fn a_refill_whose_end_was_not_read_is_judged_when_the_node_answers() {
        let mut cluster = in_doubt();
        assert_eq!(shown(&cluster), ("incomplete", true));
        cluster.look_for_copies();
        assert!(cluster.nodes[NODE].refills.unread.asking && !cluster.is_verifying());
        cluster.evictions_read(NODE, Err(NodeError::Timeout));
        read(&mut cluster, Some(Incarnation(8)), 5);
        assert_eq!(shown(&cluster), ("incomplete", true), "nothing was told of that memory");
        read(&mut cluster, HIS, 5);
        assert_eq!(shown(&cluster), ("mirrored", false), "nothing was evicted");
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_evicted_meanwhile_is_told_then() {
        for found in [6, 4] {
            let mut cluster = in_doubt();
            read(&mut cluster, HIS, found);
            assert!(!cluster.is_in_doubt(PAIR));
            assert_eq!(shown(&cluster), ("incomplete", true), "{found}");
        }
    }

    /// By the word of a leader that may lack items itself the other node's copies would go.
    #[tokio::test(start_paused = true)]
    async fn the_pair_is_not_compared_before_it_has_told() {
        for (found, compared) in [(5, true), (6, false)] {
            let mut cluster = in_doubt();
            // What the other node evicted while it was filled a comparing would put back.
            cluster.evicted_during_fill(NodeId(1), 1);
            assert!(!is_compared(&mut cluster).await, "in doubt");
            read(&mut cluster, HIS, found);
            assert_eq!(is_compared(&mut cluster).await, compared, "{found}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_resync_of_the_same_memory_counts_from_the_same_beginning() {
        let mut cluster = in_doubt();
        cluster.begin_job(NODE, vec![PAIR], crate::resync::Fill::Missed);
        let job = cluster.nodes[NODE].refills.job.take().expect("a job");
        assert_eq!(job.progress.unread_evictions(), Some(5));
    }
}
