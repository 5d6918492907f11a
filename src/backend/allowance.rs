//! A time that may be waited for, and may be set anew while others wait by it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// In microseconds; who waits already goes on by what it was.
#[derive(Debug)]
pub(super) struct Allowance(AtomicU64);

impl Allowance {
    pub(super) fn new(time: Duration) -> Allowance {
        Allowance(AtomicU64::new(micros(time)))
    }

    pub(super) fn set(&self, time: Duration) {
        self.0.store(micros(time), Relaxed);
    }

    pub(super) fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Relaxed))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
