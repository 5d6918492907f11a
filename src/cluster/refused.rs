//! A server at its limit of connections (memcached's `-c`) refuses one of the control plane's, or
//! of a refill, and goes on with those that stand. As long as one of the workers' does, it is in
//! use, and one of theirs gives way, so that it is probed again. But what a probe alone shows (that
//! somebody has flushed a backup, or that another proxy is at work) nobody sees meanwhile: after
//! `--leader-timeout` it is lost.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Cluster;
use crate::backend::NodeError;
use crate::ids::NodeId;
use crate::proxy::Command;
use crate::stats::WorkerStats;

impl Cluster {
    /// Whether that is no fault of the node.
    pub(super) fn serves_all_the_same(&mut self, node: NodeId, error: &NodeError) -> bool {
        if !matches!(error, NodeError::Full(_)) || !self.nodes[node].health.is_up() {
            return false;
        }
        let patience = self.settings.leader_timeout;
        if self.nodes[node].refuses.is_some_and(|since| since.elapsed() >= patience) {
            return false;
        }
        let stand = |stats: &WorkerStats| stats.nodes[node.index()].connections.load(Ordering::Relaxed);
        let all = self.stats.iter().map(|stats| stand(stats)).zip(&self.workers);
        let Some((most, worker)) = all.max_by_key(|(connections, _)| *connections).filter(|(most, _)| *most > 0) else {
            return false;
        };
        if most > 1 {
            let _ = worker.send(Command::MakeRoom { node });
        }
        let run = &mut self.nodes[node];
        run.silent_since = None;
        if run.refuses.is_none() {
            run.refuses = Some(Instant::now());
            tracing::warn!(node = %self.topology.addr(node), %error,
                "a node takes no more connections (its -c): it is used over those that stand for --leader-timeout, and is lost if it takes none by then");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::cluster::alone::alone;
    use crate::ids::PairId;
    use crate::pair::State;

    const NODE: NodeId = NodeId(0);

    fn full() -> NodeError {
        NodeError::Full("ERROR Too many open connections".to_owned())
    }

    /// Without any that stands nobody would notice that its process is another one.
    #[tokio::test(start_paused = true)]
    async fn a_refused_probe_is_a_loss_where_no_connection_stands() {
        for connections in [0, 1, 2] {
            let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 2");
            cluster.begin_open(State::Mirrored);
            let (worker, mut told) = unbounded_channel();
            cluster.workers[1] = worker;
            cluster.stats[1].nodes[NODE.index()].connections.store(connections, Ordering::Relaxed);
            cluster.probed(NODE, Instant::now(), Err(full()));
            cluster.alibi(NODE, Err(full()));
            cluster.eviction_checked(NODE, true, Err(full()));
            assert_eq!(cluster.nodes[NODE].health.is_up(), connections > 0);
            let room =
                std::iter::from_fn(|| told.try_recv().ok()).any(|c| matches!(c, Command::MakeRoom { node: NODE }));
            assert_eq!(room, connections > 1, "the last one serves");
        }
    }

    /// A stranger may flush a backup meanwhile, and no worker's connection shows it.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_cannot_be_probed_is_not_trusted_for_ever() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --leader-timeout 2s");
        cluster.begin_open(State::Mirrored);
        cluster.stats[0].nodes[NODE.index()].connections.store(1, Ordering::Relaxed);
        for (after, up) in [(0, true), (1_500, true), (500, false)] {
            tokio::time::advance(Duration::from_millis(after)).await;
            cluster.probed(NODE, Instant::now(), Err(full()));
            assert_eq!(cluster.nodes[NODE].health.is_up(), up, "{after}");
        }
    }

    /// The record is tried again, but not as long as requests wait.
    #[tokio::test(start_paused = true)]
    async fn a_record_waits_for_room_as_long_as_for_a_leader() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --leader-timeout 2s");
        cluster.begin_recording(State::Mirrored);
        cluster.stats[0].nodes[NODE.index()].connections.store(1, Ordering::Relaxed);
        for over in [false, true] {
            let epoch = cluster.pairs[PairId(0)].pair.epoch();
            cluster.recorded(PairId(0), epoch, Err((NODE, full().into())));
            assert_eq!(cluster.nodes[NODE].health.is_up(), !over);
            tokio::time::advance(Duration::from_secs(2)).await;
        }
    }
}
