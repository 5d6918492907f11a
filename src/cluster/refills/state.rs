//! The refills of one node: what is wanted, what is under way, how the last one went, and when the
//! next try is due. It decides nothing about pairs, and begins nothing.

use std::time::Duration;

use crate::cluster::jobs::{JobRun, LastJob};

/// After a resync that failed the next try waits so long, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// At most so long.
const PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(in crate::cluster) struct Refills {
    /// The resync under way.
    pub(in crate::cluster) job: Option<JobRun>,
    /// The last one's progress and end.
    pub(in crate::cluster) last: Option<LastJob>,
    /// The operator asked for one, whatever the mode.
    asked: bool,
    /// The operator cancelled one: none begins by itself before the node is lost again or a refill
    /// is asked for.
    cancelled: bool,
    /// The last one failed, and the next try is not due.
    pausing: bool,
    /// Doublings of the pause since something went well.
    failures: u32,
}

/// How one ended that did not end well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cluster) struct Failed {
    /// It was begun by the operator's word.
    pub(in crate::cluster) asked: bool,
    /// It was ended by the operator's word.
    pub(in crate::cluster) cancelled: bool,
    /// It did all that it was there for.
    pub(in crate::cluster) served: bool,
}

impl Refills {
    /// The operator's word. The next one begins at once.
    pub(in crate::cluster) fn ask(&mut self) {
        (self.asked, self.cancelled, self.pausing) = (true, false, false);
    }

    /// The operator's word; `false` if there is nothing to cancel.
    pub(in crate::cluster) fn cancel(&mut self) -> bool {
        if self.job.is_none() && !self.pausing {
            return false;
        }
        (self.asked, self.cancelled) = (false, true);
        true
    }

    pub(in crate::cluster) fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    pub(in crate::cluster) fn is_asked_for(&self) -> bool {
        self.asked
    }

    /// Whether one is to begin where something lacks. `automatic`: without being asked.
    pub(super) fn is_wanted(&self, automatic: bool) -> bool {
        self.asked || automatic && !self.cancelled
    }

    pub(super) fn is_pausing(&self) -> bool {
        self.pausing
    }

    /// The node holds all that it should.
    pub(super) fn well(&mut self) {
        self.asked = false;
    }

    /// What was said of the memory that it had is void.
    pub(in crate::cluster) fn node_lost(&mut self) {
        self.cancelled = false;
    }

    /// The node is back, or a refill does what it can: what failed before says nothing any more.
    pub(in crate::cluster) fn begin_anew(&mut self) {
        self.failures = 0;
    }

    pub(in crate::cluster) fn done(&mut self) {
        (self.failures, self.asked) = (0, false);
    }

    /// Returns after what pause the next try is due, if there is to be one.
    pub(in crate::cluster) fn failed(&mut self, failed: Failed) -> Option<Duration> {
        self.asked |= failed.asked && !failed.cancelled;
        if failed.served {
            return None;
        }
        self.pausing = true;
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
        self.failures += 1;
        Some(pause)
    }

    /// The pause is over.
    pub(in crate::cluster) fn next_is_due(&mut self) {
        self.pausing = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Failed = Failed { asked: false, cancelled: false, served: false };

    #[test]
    fn tries_that_fail_are_further_and_further_apart() {
        let mut refills = Refills::default();
        let mut pauses = Vec::new();
        for _ in 0..40 {
            pauses.extend(refills.failed(FAILED));
            assert!(refills.is_pausing());
            refills.next_is_due();
        }
        assert_eq!(pauses[..3], [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4]);
        assert!(pauses.is_sorted() && pauses.last() == Some(&PAUSE_MAX));
        refills.begin_anew();
        assert_eq!(refills.failed(FAILED), Some(PAUSE_MIN), "the node was lost meanwhile, and is back");
        refills.done();
        assert_eq!(refills.failed(FAILED), Some(PAUSE_MIN));
    }

    /// A purge that is over has nothing to try again.
    #[test]
    fn one_that_has_served_is_not_tried_again() {
        let mut refills = Refills::default();
        assert_eq!(refills.failed(Failed { served: true, asked: true, ..FAILED }), None);
        assert!(!refills.is_pausing() && refills.is_asked_for(), "what was asked for is still to come");
    }

    #[test]
    fn what_is_cancelled_stays_so_until_it_is_asked_for_or_lost() {
        let mut refills = Refills::default();
        assert!(!refills.cancel() && !refills.is_cancelled(), "nothing is under way");
        assert!(refills.is_wanted(true) && !refills.is_wanted(false));
        for lost in [false, true] {
            refills.failed(FAILED);
            assert!(refills.cancel() && !refills.is_wanted(true));
            refills.next_is_due();
            assert!(!refills.is_wanted(true), "the pause is over, and it stays cancelled");
            if lost {
                refills.node_lost();
                assert!(refills.is_wanted(true) && !refills.is_wanted(false));
            } else {
                refills.ask();
                assert!(refills.is_wanted(false), "whatever the mode");
                refills.done();
            }
        }
    }

    /// It survives the try that failed, but not the operator's other word.
    #[test]
    fn the_operators_wish_stands_until_it_is_met() {
        let mut refills = Refills::default();
        refills.ask();
        // A job begins with it, and another event takes the node for well meanwhile.
        refills.well();
        refills.failed(Failed { asked: true, ..FAILED });
        assert!(refills.is_asked_for());
        refills.ask();
        assert!(!refills.is_pausing(), "at once");
        refills.well();
        refills.failed(Failed { asked: true, cancelled: true, ..FAILED });
        assert!(!refills.is_asked_for());
    }
}
