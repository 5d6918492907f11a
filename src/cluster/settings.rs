//! Settings that change while the proxy runs.

use std::time::Duration;

use tokio::sync::watch;

use super::Cluster;
use crate::config::Settings;
use crate::proxy::Command;
use crate::resync::Leave;

/// What the probers go by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ProbeTimes {
    pub(super) interval: Duration,
    /// How long any answer to the control plane may take.
    pub(super) timeout: Duration,
}

impl ProbeTimes {
    pub(super) fn of(settings: &Settings) -> watch::Sender<ProbeTimes> {
        watch::Sender::new(ProbeTimes { interval: settings.probe_interval, timeout: settings.timeout })
    }
}

impl Cluster {
    /// Those of them that can ([`Settings::take_live`]) count from here on; what is read from the
    /// settings each time needs nothing else.
    pub(super) fn take_settings(&mut self, new: &Settings) {
        let (latency, mode) = (self.settings.resync_latency, self.settings.resync);
        self.settings.take_live(new);
        let settings = &self.settings;
        let live = settings.live();
        for worker in &self.workers {
            let _ = worker.send(Command::Settings(live));
        }
        self.suspects.take_settings(settings);
        let patience = self.node_timeout();
        self.controls.iter().for_each(|control| control.allow(patience));
        self.operators.allow(patience);
        self.dialer.allow(patience, settings.undelivered());
        self.probe_times.send_replace(ProbeTimes { interval: settings.probe_interval, timeout: settings.timeout });
        // A long pause that has begun is not waited for.
        self.nodes.iter().for_each(|run| run.hint.notify_one());
        self.nodes.iter().for_each(|run| run.look_up.notify_one());
        self.resyncs.take_settings(settings);
        if self.settings.resync_latency != latency {
            self.resyncs.governor.cancel();
            // Until the next one has seen what clients feel.
            self.resyncs.shared.pace.set(Leave::Full);
            self.spawn_governor();
        }
        if self.settings.resync != mode {
            // Servers that waited for the operator's word may be filled by themselves now.
            self.topology.nodes().for_each(|node| self.unsettled.node(node));
        }
    }
}
