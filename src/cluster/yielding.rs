//! Resyncs give way to clients: the governor gets the workers' waiting times, and the resyncs get
//! its verdict.

use tokio::time::{Instant, sleep};

use super::Cluster;
use crate::lease;
use crate::resync::{Governor, TICK};
use crate::stats::LATENCY_BUCKETS;

impl Cluster {
    /// While no resync runs it looks whether clients are there.
    pub(super) fn spawn_governor(&mut self) {
        self.resyncs.governor = self.shutdown.child_token();
        let Some(budget) = self.settings.resync_latency.filter(|_| self.marked()) else { return };
        let (stats, pace, shutdown) =
            (self.stats.clone(), self.resyncs.shared.pace.clone(), self.resyncs.governor.clone());
        lease::spawn(async move {
            let (mut governor, started) = (Governor::new(budget), Instant::now());
            loop {
                let at_work = pace.at_work();
                tokio::select! {
                    // One more word of its own would stand against its successor's, or for ever
                    // where there is none.
                    biased;
                    () = shutdown.cancelled() => return,
                    () = sleep(if at_work { TICK.0 } else { TICK.1 }) => {}
                    () = pace.begun(), if !at_work => {}
                }
                let mut counts = [0; LATENCY_BUCKETS];
                stats.iter().for_each(|worker| worker.add_latencies(&mut counts));
                pace.set(governor.tick(started.elapsed(), &counts, pace.at_work(), pace.crawling()));
            }
        });
    }

    /// What the resyncs do, and how hard they may work, in percent.
    pub(super) fn yielding(&self) -> (&'static str, u32) {
        let percent = self.resyncs.shared.pace.percent();
        let word = match percent {
            _ if self.settings.resync_latency.is_none() => "off",
            _ if !self.resyncs.shared.pace.at_work() => "idle",
            0 => "listening",
            100 => "full",
            _ => "yielding",
        };
        (word, percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::alone;
    use crate::config::Settings;

    /// Its next tick is due at the very moment at which it is to end.
    #[tokio::test(start_paused = true)]
    async fn a_governor_that_is_to_end_says_nothing_more() {
        for _ in 0..64 {
            let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1 --resync-latency 1ms");
            // Clients are there: resyncs would rest, to see how they fare.
            (0..1000).for_each(|_| cluster.stats[0].nodes[0].latencies.add(100));
            let _job = cluster.resyncs.shared.pace.job();
            cluster.spawn_governor();
            tokio::task::yield_now().await;
            tokio::time::advance(TICK.0).await;
            cluster.take_settings(&Settings { resync_latency: None, ..cluster.settings.clone() });
            tokio::task::yield_now().await;
            assert_eq!(cluster.resyncs.shared.pace.percent(), 100, "it slows resyncs down for ever");
        }
    }
}
