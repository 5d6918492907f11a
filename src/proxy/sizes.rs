//! How large values may be: those of late, of all clients, and those that nodes hold.
//!
//! A client that has read small values is taken to go on with them: it has hundreds read at once.
//! Where there are large ones that may be wrong, and what was asked for cannot be taken back. So
//! each that begins to read again is answered a few times as it is believed to be, and then it is
//! trusted with more.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

use super::client::MAX_READS;
use super::link::LARGE;

/// How long a large value is remembered at least; at most twice as long.
const LATELY_US: u64 = 60_000_000;

/// What the first values may be together of a client that begins to read again, in bytes, should
/// they be as large as the largest.
const FIRST_BYTES: u32 = 4 << 20;

/// That many it may have read at once, however large: with one alone each get of a few keys would
/// take as many rounds.
const FIRST_LEAST: u32 = 2;

/// See the module's words. Away from what changes with each answer: it is read for each request.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Sizes {
    /// The largest, in bytes; 0 = none is large.
    largest: AtomicU32,
    /// How many are read at first.
    first: AtomicU32,
    /// The largest that clients met of late.
    met: AtomicU32,
    /// The same since `since_s`.
    lately: AtomicU32,
    /// Seconds of a worker's clock.
    since_s: AtomicU32,
    /// The largest that nodes hold.
    stored: AtomicU32,
    /// Hardly any that they hold is large.
    rarely: AtomicBool,
}

impl Default for Sizes {
    fn default() -> Sizes {
        let zero = || AtomicU32::new(0);
        Sizes {
            largest: zero(),
            first: AtomicU32::new(MAX_READS),
            met: zero(),
            lately: zero(),
            since_s: zero(),
            stored: zero(),
            rarely: AtomicBool::new(false),
        }
    }
}

impl Sizes {
    /// How many keys a client that begins to read again may have read at once: as many as any
    /// client, where no value is large.
    #[inline(always)]
    pub(super) fn first_reads(&self) -> u32 {
        self.first.load(Relaxed)
    }

    /// The largest value, or 0 where none is large.
    pub(super) fn largest(&self) -> u32 {
        self.largest.load(Relaxed)
    }

    /// Whether there is a large one.
    #[inline(always)]
    pub(super) fn are_mixed(&self) -> bool {
        self.largest() > 0
    }

    /// Large ones are there, but few, and nobody has met one of late.
    pub(super) fn are_rarely_large(&self) -> bool {
        self.rarely.load(Relaxed) && self.met.load(Relaxed) == 0
    }

    /// A value of so many bytes was read or written.
    #[inline(always)]
    pub(super) fn met(&self, bytes: usize) {
        if bytes >= LARGE as usize {
            self.met_large(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
    }

    #[cold]
    #[inline(never)]
    fn met_large(&self, bytes: u32) {
        if self.lately.load(Relaxed) < bytes {
            self.lately.fetch_max(bytes, Relaxed);
        }
        if self.met.load(Relaxed) < bytes {
            self.met.fetch_max(bytes, SeqCst);
            self.judge();
        }
    }

    /// The largest that nodes hold, by their own words; `rarely`: hardly any is large.
    pub(super) fn are_stored(&self, largest: u32, rarely: bool) {
        self.rarely.store(rarely, Relaxed);
        self.stored.store(largest, SeqCst);
        self.judge();
    }

    /// From what was met and what is stored; again, where another thread has changed one of them
    /// meanwhile.
    fn judge(&self) {
        loop {
            let largest = self.met.load(SeqCst).max(self.stored.load(SeqCst));
            let first = FIRST_BYTES.checked_div(largest).map_or(MAX_READS, |first| first.clamp(FIRST_LEAST, MAX_READS));
            self.largest.store(largest, SeqCst);
            self.first.store(first, SeqCst);
            if self.met.load(SeqCst).max(self.stored.load(SeqCst)) == largest {
                return;
            }
        }
    }

    /// What was met long ago is forgotten. `now_us`: a worker's clock; they differ by little.
    pub(super) fn age(&self, now_us: u64) {
        let (now_s, since_s) = ((now_us / 1_000_000) as u32, self.since_s.load(Relaxed));
        let over = u64::from(now_s.saturating_sub(since_s)) * 1_000_000 >= LATELY_US;
        if over && self.since_s.compare_exchange(since_s, now_s, Relaxed, Relaxed).is_ok() {
            self.met.store(self.lately.swap(0, Relaxed), SeqCst);
            self.judge();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_value_is_remembered_for_a_minute_or_two() {
        let sizes = Sizes::default();
        sizes.met(LARGE as usize - 1);
        assert_eq!((sizes.first_reads(), sizes.are_mixed()), (MAX_READS, false));
        sizes.met(LARGE as usize);
        assert_eq!((sizes.first_reads(), sizes.are_mixed()), (MAX_READS, true));
        sizes.met(1 << 20);
        sizes.met(LARGE as usize);
        assert_eq!((sizes.first_reads(), sizes.largest()), (4, 1 << 20));
        let huge = Sizes::default();
        huge.met(100 << 20);
        assert_eq!(huge.first_reads(), FIRST_LEAST);
        sizes.age(LATELY_US - 1);
        sizes.age(LATELY_US);
        assert_eq!(sizes.largest(), 1 << 20, "it was in the minute before");
        sizes.met(LARGE as usize);
        sizes.age(2 * LATELY_US - 1);
        assert_eq!(sizes.largest(), 1 << 20);
        sizes.age(2 * LATELY_US);
        assert_eq!(sizes.largest(), LARGE);
        sizes.age(3 * LATELY_US);
        assert_eq!((sizes.first_reads(), sizes.are_mixed()), (MAX_READS, false));
    }

    #[test]
    fn what_is_stored_counts_as_long_as_it_is_and_what_was_met_beside_it() {
        let sizes = Sizes::default();
        sizes.are_stored(1 << 20, true);
        assert_eq!((sizes.first_reads(), sizes.largest(), sizes.are_rarely_large()), (4, 1 << 20, true));
        sizes.met(2 << 20);
        assert_eq!((sizes.first_reads(), sizes.largest(), sizes.are_rarely_large()), (2, 2 << 20, false));
        (1..=2).for_each(|minute| sizes.age(minute * LATELY_US));
        assert_eq!((sizes.first_reads(), sizes.largest(), sizes.are_rarely_large()), (4, 1 << 20, true));
        sizes.are_stored(1 << 20, false);
        assert!(!sizes.are_rarely_large());
        sizes.are_stored(0, true);
        assert_eq!((sizes.first_reads(), sizes.are_mixed()), (MAX_READS, false));
    }
}
