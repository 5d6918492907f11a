//! What time it is for a worker.

use std::time::Duration;

use tokio::time::Instant;

use crate::ambient;
use crate::proxy::Now;

/// A worker's clock. It stands still while the worker does.
pub(super) struct Clock {
    started: Instant,
    /// The date then, microseconds.
    began_at_us: u64,
    /// When it was last looked at.
    looked_us: u64,
    stood_still_us: u64,
}

impl Clock {
    /// It begins now.
    pub(super) fn new() -> Clock {
        let started = Instant::now();
        let began_at_us = ambient::date(started).as_micros() as u64;
        Clock { started, began_at_us, looked_us: 0, stood_still_us: 0 }
    }

    /// Returns the time since the last look.
    pub(super) fn look(&mut self) -> Duration {
        let now_us = self.started.elapsed().as_micros() as u64;
        Duration::from_micros(now_us - std::mem::replace(&mut self.looked_us, now_us))
    }

    /// The worker did not run for this long.
    pub(super) fn stood_still(&mut self, time: Duration) {
        self.stood_still_us += time.as_micros() as u64;
    }

    /// When it was last looked at.
    #[inline(always)]
    pub(super) fn now(&self) -> Now {
        Now { us: self.looked_us - self.stood_still_us, date_us: self.began_at_us + self.looked_us }
    }
}
