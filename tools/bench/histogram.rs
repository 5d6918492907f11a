//! Latencies in buckets that grow by a twelfth: exact to 4 %, and cheap to fill.

use std::time::Duration;

/// Buckets for each doubling.
const STEPS: f64 = 12.0;

/// How many requests took how long.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
}

impl Histogram {
    pub(crate) fn new() -> Histogram {
        Histogram { buckets: vec![0; 40 * STEPS as usize], count: 0, max: Duration::ZERO }
    }

    pub(crate) fn add(&mut self, time: Duration) {
        let bucket = ((time.as_nanos().max(1) as f64).log2() * STEPS) as usize;
        let last = self.buckets.len() - 1;
        self.buckets[bucket.min(last)] += 1;
        self.count += 1;
        self.max = self.max.max(time);
    }

    pub(crate) fn merge(&mut self, other: &Histogram) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(sum, n)| *sum += n);
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The time that so many in a thousand did not exceed, microseconds.
    pub(crate) fn permille(&self, permille: u64) -> f64 {
        let rank = (self.count * permille).div_ceil(1000).max(1);
        let mut below = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= rank {
                return ((bucket as f64 + 0.5) / STEPS).exp2() / 1000.0;
            }
        }
        self.max.as_secs_f64() * 1e6
    }
}
