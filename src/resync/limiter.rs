//! One budget of items per second for all jobs.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How much of a second's budget may be taken at once.
const BURST: Duration = Duration::from_millis(50);

/// A token bucket on tokio's clock, shared by all jobs.
#[derive(Debug)]
pub struct RateLimiter {
    items_per_s: Option<u64>,
    /// The moment up to which the budget is spent. `None` before the first use.
    spent_until: Mutex<Option<Instant>>,
}

impl RateLimiter {
    /// `None` = no limit. A limit of 0 is taken as 1.
    pub fn new(items_per_s: Option<u64>) -> RateLimiter {
        RateLimiter { items_per_s: items_per_s.map(|n| n.max(1)), spent_until: Mutex::new(None) }
    }

    /// How many items, up to `want`, may be copied now; they are booked.
    pub fn take(&self, want: usize) -> usize {
        let Some(rate) = self.items_per_s else { return want };
        let now = Instant::now();
        let mut spent = self.spent_until.lock().unwrap_or_else(PoisonError::into_inner);
        // Time that nobody used is lost, but for the burst.
        let from = spent.unwrap_or(now).max(now.checked_sub(BURST).unwrap_or(now));
        let free = now.saturating_duration_since(from).as_nanos().saturating_mul(u128::from(rate)) / 1_000_000_000;
        // At a very low rate a burst holds no whole item: one is granted as soon as the last one is paid for.
        let free = if free == 0 && from <= now && now.duration_since(from) >= BURST { 1 } else { free };
        let taken = want.min(usize::try_from(free).unwrap_or(usize::MAX));
        if taken > 0 {
            *spent = Some(from + Duration::from_nanos((taken as u64).saturating_mul(1_000_000_000) / rate));
        } else if spent.is_none() {
            *spent = Some(from);
        }
        taken
    }

    /// When it is worth asking again after [`RateLimiter::take`] gave nothing.
    pub fn next(&self) -> Instant {
        let now = Instant::now();
        let spent = self.spent_until.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(now);
        spent.max(now) + BURST / 5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(rate: u64, seconds: u64) -> usize {
        let limiter = RateLimiter::new(Some(rate));
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut sum = 0;
        while Instant::now() < end {
            match limiter.take(64) {
                0 => tokio::time::sleep_until(limiter.next()).await,
                n => sum += n,
            }
        }
        sum
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_the_rate() {
        for rate in [3, 50, 1_000, 50_000] {
            let sum = run(rate, 10).await as u64;
            assert!(sum >= rate * 9 && sum <= rate * 11, "{sum} items in 10 s at {rate}/s");
        }
    }

    #[test]
    fn without_a_limit_all_is_granted() {
        assert_eq!(RateLimiter::new(None).take(123_456), 123_456);
    }
}
