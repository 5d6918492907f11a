//! One budget of items per second for all jobs.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How much of a second's budget may be taken at once.
const BURST: Duration = Duration::from_millis(50);

/// A token bucket on tokio's clock, shared by all jobs.
///
/// Re-copies do not wait for it: clients ask for them, and a queue of them that grows is a resync
/// that never ends. They are [booked](RateLimiter::book), and what else is copied pays for them
/// with half of its budget at most, so that it goes on whatever the clients write.
#[derive(Debug)]
pub struct RateLimiter {
    /// 0 = no limit.
    items_per_s: AtomicU64,
    spent: Mutex<Spent>,
}

#[derive(Default, Debug)]
struct Spent {
    /// The moment up to which the budget is spent. `None` before the first use.
    until: Option<Instant>,
    /// Items copied without asking and not yet paid for; at most a second's budget.
    debt: u64,
}

impl RateLimiter {
    /// `None` = no limit. A limit of 0 is taken as 1.
    pub fn new(items_per_s: Option<u64>) -> RateLimiter {
        let limiter = RateLimiter { items_per_s: AtomicU64::new(0), spent: Mutex::default() };
        limiter.set(items_per_s);
        limiter
    }

    /// From here on.
    pub fn set(&self, items_per_s: Option<u64>) {
        self.items_per_s.store(items_per_s.map_or(0, |n| n.max(1)), Relaxed);
    }

    /// Items a second; `None` = no limit.
    pub fn rate(&self) -> Option<u64> {
        Some(self.items_per_s.load(Relaxed)).filter(|rate| *rate > 0)
    }

    /// How many items, up to `want`, may be copied now; they are booked.
    pub fn take(&self, want: usize) -> usize {
        let Some(rate) = self.rate() else { return want };
        let now = Instant::now();
        let mut spent = self.lock();
        // Unused time is lost, except for the burst.
        let from = spent.until.unwrap_or(now).max(now.checked_sub(BURST).unwrap_or(now));
        let free = now.saturating_duration_since(from).as_nanos().saturating_mul(u128::from(rate)) / 1_000_000_000;
        // At a very low rate a burst holds no whole item: one is granted as soon as the last one is
        // paid for.
        let free = if free == 0 && from <= now && now.duration_since(from) >= BURST { 1 } else { free };
        let free = u64::try_from(free).unwrap_or(u64::MAX);
        // Each item granted pays for itself and for one that is owed.
        let taken = (want as u64).min(free.saturating_sub(spent.debt).max(free.div_ceil(2)));
        if taken > 0 {
            let paid = taken.min(spent.debt);
            spent.debt -= paid;
            spent.until = Some(from + Duration::from_nanos((taken + paid).saturating_mul(1_000_000_000) / rate));
        } else if spent.until.is_none() {
            spent.until = Some(from);
        }
        taken as usize
    }

    /// Counts items that are copied without having been granted.
    pub fn book(&self, items: usize) {
        let Some(rate) = self.rate() else { return };
        let mut spent = self.lock();
        spent.debt = spent.debt.saturating_add(items as u64).min(rate);
    }

    /// When it is worth asking again after [`RateLimiter::take`] gave nothing.
    pub fn next(&self) -> Instant {
        let now = Instant::now();
        self.lock().until.unwrap_or(now).max(now) + BURST / 5
    }

    fn lock(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Items granted; `booked` of others are booked before every asking.
    async fn run(rate: u64, seconds: u64, booked: usize) -> usize {
        let limiter = RateLimiter::new(Some(rate));
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut sum = 0;
        while Instant::now() < end {
            limiter.book(booked);
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
            let sum = run(rate, 10, 0).await as u64;
            assert!(sum >= rate * 9 && sum <= rate * 11, "{sum} items in 10 s at {rate}/s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn leaves_half_to_the_others_whatever_is_booked() {
        for rate in [4, 50, 1_000, 50_000] {
            let sum = run(rate, 10, 1_000_000).await as u64;
            assert!(sum * 2 >= rate * 9 && sum * 2 <= rate * 11 + 20, "{sum} items in 10 s at {rate}/s");
        }
        // What is owed is paid back once, and no more than a second's budget of it.
        let limiter = RateLimiter::new(Some(1_000));
        limiter.book(1_000_000);
        let end = Instant::now() + Duration::from_secs(10);
        let mut sum = 0;
        while Instant::now() < end {
            sum += limiter.take(64);
            tokio::time::sleep_until(limiter.next()).await;
        }
        assert!((8_000..=9_500).contains(&sum), "{sum}");
    }

    #[test]
    fn without_a_limit_all_is_granted() {
        assert_eq!(RateLimiter::new(None).take(123_456), 123_456);
    }
}
