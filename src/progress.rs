//! PURE. What counts as progress of a server that owes answers.
//!
//! The age of a request proves nothing by itself: behind 256 values of 1 MB a healthy server takes
//! as long as those take. A server is late when it has moved less than [`FLOOR`] for the whole
//! deadline. Single bytes, or one small answer now and then, are no progress.

/// Bytes that a server has to move within each deadline: at `--timeout 250ms` it is 256 KiB/s.
pub(crate) const FLOOR: usize = 64 << 10;

/// What a whole answer counts for beside its bytes: eight of them within a deadline are progress,
/// however small.
pub(crate) const ANSWER: usize = 8 << 10;

/// What a server has moved, and since when the next [`FLOOR`] is waited for. `T`: a point in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress<T> {
    moved: usize,
    since: T,
}

impl<T: Copy + PartialOrd> Progress<T> {
    /// Nothing has moved since then.
    pub(crate) fn new(since: T) -> Progress<T> {
        Progress { moved: 0, since }
    }

    /// A whole answer has come. Counts with the bytes that are added next.
    #[inline(always)]
    pub(crate) fn answered(&mut self) {
        self.moved += ANSWER;
    }

    /// This many bytes have moved.
    #[inline(always)]
    pub(crate) fn add(&mut self, bytes: usize, now: T) {
        self.moved += bytes;
        if self.moved >= FLOOR {
            *self = Progress::new(now);
        }
    }

    /// Since when the server owes progress.
    pub(crate) fn since(&self) -> T {
        self.since
    }

    /// The same, where the oldest answer is awaited from `asked` on. What moved before it was asked
    /// is no progress of what it is asked now.
    pub(crate) fn owed_since(&mut self, asked: T) -> T {
        if asked > self.since {
            *self = Progress::new(asked);
        }
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_no_progress_and_a_flow_is() {
        let mut drip = Progress::new(0);
        (1..1000).for_each(|now| drip.add(1, now));
        assert_eq!(drip.owed_since(0), 0);
        let mut flow = Progress::new(0);
        (1..=10).for_each(|now| flow.add(FLOOR / 4, now));
        assert_eq!(flow.owed_since(0), 8);
    }

    #[test]
    fn a_few_answers_are_none_and_many_are() {
        let mut progress = Progress::new(0);
        for now in 1..8 {
            progress.answered();
            progress.add(5, now);
        }
        assert_eq!(progress.owed_since(0), 0);
        progress.answered();
        progress.add(5, 8);
        assert_eq!(progress.owed_since(0), 8);
    }

    /// Else a drip would be found twice as late behind a server that had almost made progress when
    /// it was last asked.
    #[test]
    fn what_moved_before_does_not_count() {
        let mut progress = Progress::new(0);
        progress.add(FLOOR - 1, 1);
        assert_eq!(progress.owed_since(10), 10);
        progress.add(1, 11);
        assert_eq!(progress.owed_since(10), 10);
    }
}
