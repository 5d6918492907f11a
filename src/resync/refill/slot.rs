//! One pair of the source.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::PairId;
use crate::keys::{Lone, Recopy};

use super::marked::Marked;

/// First and longest pause before a pair that could not be handed back is tried again.
pub(super) const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// First and longest pause before a target that is to lead is given again what it has refused, and
/// how many keys at once.
pub(super) const REFUSED_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// One pair of the source.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) pair: PairId,
    pub(super) recopy: Arc<Recopy>,
    /// The keys of items that the target refused.
    pub(super) lone: Option<Arc<Lone>>,
    /// Those of items that the source alone holds.
    pub(super) marked: Marked,
    /// When they are tried again, where the target is to lead.
    pub(super) refused_at: Instant,
    pub(super) refused_pause: Duration,
    pub(super) tried_at: Option<Instant>,
    pub(super) in_flight: usize,
    /// Handed back: nothing of it may be copied any more.
    pub(super) done: bool,
    pub(super) retry_at: Instant,
    pub(super) pause: Duration,
}

impl Slot {
    pub(super) fn is_refused(&self) -> bool {
        self.lone.as_ref().is_some_and(|lone| !lone.is_empty())
    }

    pub(super) fn later(&mut self, now: Instant) {
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(RETRY_PAUSE.1);
    }
}
