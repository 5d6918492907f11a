//! What a job has done so far, for `resync status`, metrics and the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::PairId;

/// In place of a number of evictions that was not read from the target.
const NOT_READ: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Reading the target's clock and settings.
    Preparing,
    /// Deleting what the target held of the pairs.
    Purging,
    /// Waiting for the control plane to bring the pairs into Recovering.
    Barrier,
    /// Enumerating the sources and copying.
    Copying,
    /// Everything enumerated is copied; pairs are handed back one by one.
    HandingBack,
    /// Over, well or not.
    Finished,
}

/// Counters of one pair. Written by the job only.
#[derive(Default, Debug)]
pub struct PairProgress {
    /// Keys enumerated on the leader.
    pub enumerated: AtomicU64,
    /// Items copied and verified.
    pub copied: AtomicU64,
    /// Keys that needed no copy: gone, expired, stale, or already equal.
    pub skipped: AtomicU64,
    /// Items that the target refused (too large, out of memory) or whose key cannot be written.
    pub failed: AtomicU64,
    /// Copies made because a mutation or a failed verify asked for them.
    pub recopied: AtomicU64,
    /// Items that only the target held, added to the leader.
    pub adopted: AtomicU64,
    /// Bytes of the values copied.
    pub bytes: AtomicU64,
}

/// Counters of one job. Written by the job only, read by anybody at any time.
#[derive(Debug)]
pub struct Progress {
    phase: AtomicU8,
    trickles: AtomicBool,
    waits_for_room: AtomicBool,
    started_at: Instant,
    /// Keys deleted on the target before the copying.
    pub purged: AtomicU64,
    /// Keys that will have been enumerated when all sources are done; 0 = not known yet.
    pub total: AtomicU64,
    /// Sources that have not listed their keys yet.
    unlisted: AtomicUsize,
    /// Most keys that were lying between enumeration and copying at once.
    pub spooled_max: AtomicU64,
    /// The target's `evictions` when the copying began and, once it has ended, then; or
    /// [`NOT_READ`].
    evictions_before: AtomicU64,
    evictions_after: AtomicU64,
    pairs: BTreeMap<PairId, PairProgress>,
}

impl Progress {
    /// For a job over these pairs; the clock starts now.
    pub fn new(pairs: impl IntoIterator<Item = PairId>) -> Progress {
        Progress {
            phase: AtomicU8::new(Phase::Preparing as u8),
            trickles: AtomicBool::new(false),
            waits_for_room: AtomicBool::new(false),
            started_at: Instant::now(),
            purged: AtomicU64::new(0),
            total: AtomicU64::new(0),
            unlisted: AtomicUsize::new(0),
            spooled_max: AtomicU64::new(0),
            evictions_before: AtomicU64::new(NOT_READ),
            evictions_after: AtomicU64::new(NOT_READ),
            pairs: pairs.into_iter().map(|pair| (pair, PairProgress::default())).collect(),
        }
    }

    /// What the job is doing.
    pub fn phase(&self) -> Phase {
        const ALL: [Phase; 6] =
            [Phase::Preparing, Phase::Purging, Phase::Barrier, Phase::Copying, Phase::HandingBack, Phase::Finished];
        ALL.get(usize::from(self.phase.load(Relaxed))).copied().unwrap_or(Phase::Finished)
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// This many sources begin to list their keys.
    pub(super) fn begin_listing(&self, sources: usize) {
        self.unlisted.store(sources, Relaxed);
    }

    /// One has listed all of its keys, this many.
    pub(super) fn listed(&self, keys: u64) {
        self.total.fetch_add(keys, Relaxed);
        let _ = self.unlisted.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
    }

    /// Whether [`Progress::total`] is not all yet.
    pub fn lists(&self) -> bool {
        self.unlisted.load(Relaxed) > 0
    }

    /// Whether some pair is filled from the reads that pass through, since its leader cannot be
    /// enumerated: such a job does not end by itself, and stays at [`Phase::Copying`].
    pub fn trickles(&self) -> bool {
        self.trickles.load(Relaxed)
    }

    pub(super) fn set_trickles(&self) {
        self.trickles.store(true, Relaxed);
        self.set_phase(Phase::Copying);
    }

    /// Whether such a job, or one that waits for its target to take what it has refused, is at
    /// work: it may not end by itself, and gives way to others of the same node.
    pub fn lingers(&self) -> bool {
        self.trickles() || self.waits_for_room.load(Relaxed)
    }

    pub(super) fn set_waits_for_room(&self, waits: bool) {
        self.waits_for_room.store(waits, Relaxed);
    }

    /// The target's evictions count from `count` on: an earlier job began then, over the same
    /// memory, whose end was not read.
    pub fn carry_evictions(&self, count: u64) {
        self.evictions_before.store(count, Relaxed);
    }

    pub(super) fn begin_evictions(&self, count: u64) {
        let _ = self.evictions_before.compare_exchange(NOT_READ, count, Relaxed, Relaxed);
    }

    pub(super) fn end_evictions(&self, count: u64) {
        self.evictions_after.store(count, Relaxed);
    }

    /// What the target had counted when the job began, if its count at the end was not read:
    /// [`Progress::incomplete`] leaves it out.
    pub fn unread_evictions(&self) -> Option<u64> {
        let before = self.evictions_before.load(Relaxed);
        (before != NOT_READ && self.evictions_after.load(Relaxed) == NOT_READ).then_some(before)
    }

    /// The counters of one pair; `None` if the job does not fill it.
    pub fn pair(&self, pair: PairId) -> Option<&PairProgress> {
        self.pairs.get(&pair)
    }

    /// Sums one counter over the pairs: `progress.sum(|p| &p.copied)`.
    pub fn sum(&self, counter: impl Fn(&PairProgress) -> &AtomicU64) -> u64 {
        self.pairs.values().map(|p| counter(p).load(Relaxed)).sum()
    }

    /// Items that the target evicted while it was filled: the copy is incomplete by about as many.
    pub fn incomplete(&self) -> u64 {
        match self.evictions_after.load(Relaxed) {
            NOT_READ => 0,
            after => after.saturating_sub(self.evictions_before.load(Relaxed)),
        }
    }

    /// Time since the job began.
    pub fn elapsed(&self) -> Duration {
        self.started_at.elapsed()
    }

    /// Keys dealt with per second since the job began.
    pub fn rate_per_s(&self) -> f64 {
        let seconds = self.elapsed().as_secs_f64();
        if seconds > 0.0 { self.done() as f64 / seconds } else { 0.0 }
    }

    /// Time left for the streaming at the rate so far; `None` while the total is not known or
    /// nothing has moved.
    pub fn eta(&self) -> Option<Duration> {
        let (total, rate) = (self.total.load(Relaxed), self.rate_per_s());
        if total == 0 || rate <= 0.0 || self.lists() {
            return None;
        }
        Duration::try_from_secs_f64(total.saturating_sub(self.done()) as f64 / rate).ok()
    }

    fn done(&self) -> u64 {
        self.sum(|p| &p.copied) + self.sum(|p| &p.skipped) + self.sum(|p| &p.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evictions_are_unread_from_the_beginning_that_was_read_to_the_end_that_was() {
        let progress = Progress::new([]);
        assert_eq!((progress.unread_evictions(), progress.incomplete()), (None, 0), "nothing was done yet");
        progress.begin_evictions(5);
        assert_eq!((progress.unread_evictions(), progress.incomplete()), (Some(5), 0));
        let next = Progress::new([]);
        next.carry_evictions(5);
        next.begin_evictions(7);
        assert_eq!(next.unread_evictions(), Some(5));
        next.end_evictions(8);
        assert_eq!((next.unread_evictions(), next.incomplete()), (None, 3));
        let cut_off = Progress::new([]);
        cut_off.end_evictions(8);
        assert_eq!((cut_off.unread_evictions(), cut_off.incomplete()), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn rate_and_eta() {
        let progress = Progress::new([PairId(1), PairId(2)]);
        assert_eq!(progress.eta(), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        progress.pair(PairId(1)).unwrap().copied.store(100, Relaxed);
        progress.total.store(300, Relaxed);
        assert_eq!(progress.rate_per_s(), 50.0);
        assert_eq!(progress.eta(), Some(Duration::from_secs(4)));
        progress.begin_listing(1);
        assert_eq!((progress.lists(), progress.eta()), (true, None), "the total grows");
        progress.listed(100);
        assert_eq!((progress.lists(), progress.eta()), (false, Some(Duration::from_secs(6))));
        progress.set_phase(Phase::Copying);
        assert_eq!(progress.phase(), Phase::Copying);
    }
}
