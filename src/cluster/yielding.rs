//! Resyncs give way to clients: the governor is told what workers wait for, and the resyncs what it
//! says.

use tokio::time::{Instant, sleep};

use super::Cluster;
use crate::resync::{Governor, TICK};
use crate::stats::LATENCY_BUCKETS;

impl Cluster {
    /// While no resync runs it looks whether clients are there.
    pub(super) fn spawn_governor(&mut self) {
        self.governor = self.shutdown.child_token();
        let Some(budget) = self.settings.resync_latency.filter(|_| self.marked()) else { return };
        let (stats, pace, shutdown) = (self.stats.clone(), self.pace.clone(), self.governor.clone());
        tokio::spawn(async move {
            let (mut governor, started) = (Governor::new(budget), Instant::now());
            loop {
                let at_work = pace.at_work();
                tokio::select! {
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
        let percent = self.pace.percent();
        let word = match percent {
            _ if self.settings.resync_latency.is_none() => "off",
            _ if !self.pace.at_work() => "idle",
            0 => "listening",
            100 => "full",
            _ => "yielding",
        };
        (word, percent)
    }
}
