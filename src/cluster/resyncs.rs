//! What the control plane's jobs and scrubs go by, and the scrub that is under way.

use tokio_util::sync::CancellationToken;

use super::verify::Scrubs;
use crate::config::Settings;
use crate::resync::Shared;

/// See the module's words.
pub(super) struct Resyncs {
    pub(super) shared: Shared,
    pub(super) scrubs: Scrubs,
    /// Ends the governor, which tells them to give way to clients.
    pub(super) governor: CancellationToken,
    /// The number of the last job.
    last: u64,
}

impl Resyncs {
    /// Of this many nodes; none is under way.
    pub(super) fn new(nodes: usize, settings: &Settings) -> Resyncs {
        Resyncs {
            shared: Shared::new(nodes, settings.resync_rate),
            scrubs: Scrubs::default(),
            governor: CancellationToken::new(),
            last: 0,
        }
    }

    /// The number of the next job, by which it is told from those before it.
    pub(super) fn next_serial(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// How fast those under way may work from here on.
    pub(super) fn take_settings(&self, settings: &Settings) {
        self.shared.limiter.set(settings.resync_rate);
        self.scrubs.take_settings(settings);
    }
}
