//! How hard all resyncs work: the [governor](super::governor)'s word, and the lots and rests that
//! it means, shared by all jobs.
//!
//! What a client waits longer is what stands before it at the nodes and on the processors: a lot of
//! keys. So it is the lots that shrink first, sent one after the other without a rest; the part of
//! the time in which there is one matters little to the latest of answers, as nearly all of them
//! meet one. (Seen: lots of a sixteenth and rests of sixteen times their length copied a tenth, and
//! p99 was the same.) Only below the smallest lot rests come in between.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::governor::{FLOOR, Leave};

/// Parts of the whole in which a share is kept.
const WHOLE: u32 = 1 << 16;
/// The smallest lot, as a part of a full one: 32 keys. Fewer are mostly system calls.
const MIN_PART: usize = 16;
/// Items a second at least, as far as full lots bring them. Where nodes or processors are so busy
/// that each lot takes long, small ones come to next to nothing, whatever clients' latency owes to
/// them (seen: 17 to 52 items a second at a load of 20, where a lot took 0.6 s and more).
const LEAST_PER_S: usize = 1_000;
/// What the last lot took counts this part in the mean.
const NEWEST: u32 = 4;
/// The longest rest.
const MAX_REST: Duration = Duration::from_millis(10);
/// How long is rested while clients are listened to, before that is asked again.
const LISTENING_REST: Duration = Duration::from_millis(5);

/// Shared by all jobs. Written by the control plane's governor; the jobs follow it.
#[derive(Debug)]
pub struct Pace {
    /// Of [`WHOLE`]; 0 = rest.
    share: AtomicU32,
    jobs: AtomicUsize,
    crawls: AtomicUsize,
    resting_until: Mutex<Option<Instant>>,
    /// What a lot takes, with the rest after it, in microseconds: the mean of the last ones.
    cycle_us: AtomicU32,
    /// The first job has begun.
    begun: Notify,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            share: AtomicU32::new(WHOLE),
            jobs: AtomicUsize::new(0),
            crawls: AtomicUsize::new(0),
            resting_until: Mutex::new(None),
            cycle_us: AtomicU32::new(0),
            begun: Notify::new(),
        }
    }
}

impl Pace {
    /// The governor's word.
    pub fn set(&self, leave: Leave) {
        let share = match leave {
            Leave::Full => WHOLE,
            Leave::Share(share) => ((share.clamp(FLOOR, 1.0) * f64::from(WHOLE)) as u32).max(1),
            Leave::Rest => 0,
        };
        self.share.store(share, Relaxed);
    }

    /// How hard resyncs may work, in percent; 0 while they rest, to see how clients fare without
    /// them.
    pub fn percent(&self) -> u32 {
        (u64::from(self.share.load(Relaxed)) * 100).div_ceil(u64::from(WHOLE)) as u32
    }

    /// Whether a job runs.
    pub fn at_work(&self) -> bool {
        self.jobs.load(Relaxed) > 0
    }

    /// Whether one of them enumerates a node.
    pub fn crawling(&self) -> bool {
        self.crawls.load(Relaxed) > 0
    }

    /// A job begins.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// To be held while a job runs.
    pub(crate) fn job(self: &Arc<Pace>) -> AtWork {
        if self.jobs.fetch_add(1, Relaxed) == 0 {
            self.begun.notify_one();
        }
        AtWork { pace: self.clone(), crawl: false }
    }

    /// To be held during an enumeration.
    pub(super) fn crawl(self: &Arc<Pace>) -> AtWork {
        self.crawls.fetch_add(1, Relaxed);
        AtWork { pace: self.clone(), crawl: true }
    }

    /// Whether the resyncs may use all the time there is.
    pub(super) fn is_full(&self) -> bool {
        self.share.load(Relaxed) == WHOLE
    }

    /// How much of `full` is sent in one go: small lots, so that no client waits long behind one.
    pub(super) fn batch(&self, full: usize) -> usize {
        let share = self.share.load(Relaxed) as usize;
        let least = LEAST_PER_S * self.cycle_us.load(Relaxed) as usize / 1_000_000;
        (full * share / WHOLE as usize).max(full / MIN_PART).max(least.min(full)).max(1)
    }

    /// Until when is to be rested; `None` = no longer.
    pub(super) fn resting_until(&self) -> Option<Instant> {
        let share = self.share.load(Relaxed);
        if share == WHOLE {
            return None;
        }
        let now = Instant::now();
        if share == 0 {
            return Some(now + LISTENING_REST);
        }
        self.rest_end().filter(|&until| until > now)
    }

    /// Something was done that took this long: a rest follows, in proportion.
    pub(super) fn worked(&self, time: Duration) {
        let share = self.share.load(Relaxed).max(1);
        if share == WHOLE {
            return;
        }
        let part = f64::from(share) * MIN_PART as f64 / f64::from(WHOLE);
        let rest = if part < 1.0 { time.mul_f64((1.0 - part) / part).min(MAX_REST) } else { Duration::ZERO };
        self.took(time + rest);
        if rest.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut until = self.resting_until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = Some(until.map_or(now, |until| until.clamp(now, now + MAX_REST)) + rest);
    }

    fn took(&self, cycle: Duration) {
        let newest = u32::try_from(cycle.as_micros()).unwrap_or(u32::MAX);
        // Of two jobs that end a lot at once one may be left out.
        let mean = self.cycle_us.load(Relaxed);
        self.cycle_us.store(mean - mean / NEWEST + newest / NEWEST, Relaxed);
    }

    /// Waits as long as is to be rested.
    pub(super) async fn rest(&self) {
        while let Some(until) = self.resting_until() {
            tokio::time::sleep_until(until).await;
        }
    }

    fn rest_end(&self) -> Option<Instant> {
        *self.resting_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job, or an enumeration, that goes on.
#[derive(Debug)]
pub(crate) struct AtWork {
    pace: Arc<Pace>,
    crawl: bool,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let count = if self.crawl { &self.pace.crawls } else { &self.pace.jobs };
        count.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Works in steps of 1 ms for 10 s; the part of the time that it worked.
    async fn works(pace: &Pace, step: Duration) -> f64 {
        let (begun, mut worked) = (Instant::now(), Duration::ZERO);
        while begun.elapsed() < Duration::from_secs(10) {
            pace.rest().await;
            tokio::time::sleep(step).await;
            pace.worked(step);
            worked += step;
        }
        worked.as_secs_f64() / begun.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn rests_only_below_the_smallest_lot() {
        let pace = Pace::default();
        for (share, part) in [(1.0, 1.0), (0.5, 1.0), (0.07, 1.0), (0.03, 0.48), (0.0125, 0.2)] {
            pace.set(if share == 1.0 { Leave::Full } else { Leave::Share(share) });
            let found = works(&pace, Duration::from_millis(2)).await;
            assert!(found > part * 0.7 && found < part * 1.1, "{found} of the time instead of {part}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_node_does_not_make_it_rest_for_ever() {
        let pace = Pace::default();
        pace.set(Leave::Share(FLOOR));
        assert!(works(&pace, Duration::from_secs(1)).await > 0.9);
        // Two that work one after the other add to the rest, up to the bound.
        for _ in 0..100 {
            pace.worked(Duration::from_secs(1));
        }
        assert!(pace.resting_until().unwrap() <= Instant::now() + MAX_REST * 2);
    }

    /// With the smallest lots it would be 52 a second where one takes 0.6 s.
    #[tokio::test(start_paused = true)]
    async fn lots_that_take_long_are_larger() {
        for (step_ms, least, most) in
            [(2, 2_000.0, 3_000.0), (100, 900.0, 1_100.0), (400, 900.0, 1_100.0), (2_000, 250.0, 260.0)]
        {
            let pace = Pace::default();
            pace.set(Leave::Share(FLOOR));
            let step = Duration::from_millis(step_ms);
            works(&pace, step).await;
            let (begun, mut items) = (Instant::now(), 0);
            while begun.elapsed() < Duration::from_secs(60) {
                pace.rest().await;
                items += pace.batch(512);
                tokio::time::sleep(step).await;
                pace.worked(step);
            }
            let per_s = items as f64 / begun.elapsed().as_secs_f64();
            assert!(per_s > least && per_s < most, "{per_s} a second where a lot takes {step_ms} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn small_lots_and_never_none() {
        let pace = Pace::default();
        assert_eq!((pace.batch(512), pace.batch(1), pace.resting_until()), (512, 1, None));
        pace.set(Leave::Share(0.25));
        assert_eq!((pace.batch(512), pace.percent()), (128, 25));
        pace.set(Leave::Share(0.0));
        assert_eq!((pace.batch(512), pace.batch(4), pace.percent()), (32, 1, 1));
        pace.set(Leave::Rest);
        assert!(pace.resting_until().is_some() && pace.percent() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn knows_who_is_at_work() {
        let pace = Arc::new(Pace::default());
        assert!(!pace.at_work() && !pace.crawling());
        let (job, crawl) = (pace.job(), pace.crawl());
        assert!(pace.at_work() && pace.crawling());
        drop((job, crawl));
        assert!(!pace.at_work() && !pace.crawling());
    }
}
