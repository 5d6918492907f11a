//! The refills of one node: what is wanted, what is under way, how the last one went, and when the
//! next try is due. It decides nothing about pairs, and begins nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cluster::unread::Unread;
use crate::ids::{NodeId, PairId};
use crate::resync::{Fill, Progress};

/// After a resync that failed the next try waits this long, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// At most this long.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A resync under way.
pub(in crate::cluster) struct JobRun {
    pub(in crate::cluster) serial: u64,
    pub(in crate::cluster) pairs: Vec<(PairId, NodeId)>,
    pub(in crate::cluster) fill: Fill,
    pub(in crate::cluster) cancel: CancellationToken,
    pub(in crate::cluster) progress: Arc<Progress>,
    /// It only empties the node for pairs of which no copy is left.
    pub(in crate::cluster) purge_only: bool,
    /// Pairs that were led by one node alone under it, since it began or since it emptied its node
    /// of them: what that holds has missed writes, however well the job ends.
    pub(in crate::cluster) overtaken: BTreeSet<PairId>,
    /// The job waits for its pairs to be Recovering.
    pub(in crate::cluster) go: Option<oneshot::Sender<bool>>,
    pub(in crate::cluster) by_operator: bool,
}

impl JobRun {
    pub(in crate::cluster) fn fills(&self, pair: PairId) -> bool {
        self.pairs.iter().any(|(p, _)| *p == pair)
    }

    /// Ends it for the sake of pairs that it does not fill.
    pub(in crate::cluster) fn yield_to_others(&self) {
        self.cancel.cancel();
    }

    pub(in crate::cluster) fn is_told_to_end(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// How the last resync of a node went.
pub(in crate::cluster) struct LastJob {
    pub(in crate::cluster) fill: Fill,
    pub(in crate::cluster) progress: Arc<Progress>,
    pub(in crate::cluster) elapsed: Duration,
    /// `done`, or why it ended.
    pub(in crate::cluster) end: &'static str,
}

#[derive(Default)]
pub(in crate::cluster) struct Refills {
    /// The resync under way.
    pub(in crate::cluster) job: Option<JobRun>,
    /// The last one's progress and end.
    pub(in crate::cluster) last: Option<LastJob>,
    /// What the node evicted while it was filled, as long as that could not be asked for.
    pub(in crate::cluster) unread: Unread,
    /// The operator asked for one, whatever the mode.
    asked: bool,
    /// The operator cancelled one: none begins by itself before the node is lost again or a refill
    /// is asked for.
    cancelled: bool,
    /// The last one failed, and the next try is not due.
    pausing: bool,
    /// Doublings of the pause since something went well.
    failures: u32,
    /// How those jobs filled that were ended for the sake of other pairs, since one came to its end
    /// by itself.
    gave_way: Vec<Fill>,
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
        self.gave_way.clear();
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
        self.gave_way.clear();
        self.cancelled = false;
    }

    /// The node is back, or a refill does what it can: what failed before says nothing any more.
    pub(in crate::cluster) fn begin_anew(&mut self) {
        self.failures = 0;
    }

    pub(in crate::cluster) fn done(&mut self) {
        self.gave_way.clear();
        (self.failures, self.asked) = (0, false);
    }

    /// The job under way is to end for the sake of pairs that it does not fill.
    pub(super) fn give_way(&mut self) {
        let Some(job) = &self.job else { return };
        job.yield_to_others();
        if !self.gave_way.contains(&job.fill) {
            self.gave_way.push(job.fill);
        }
    }

    /// What takes the least time comes first, and what has given way behind all else: begun again
    /// before those that it gave way to it would only give way once more, several times a second.
    pub(super) fn rank(&self, fill: Fill) -> (bool, u8) {
        (self.gave_way.contains(&fill), fill.cost())
    }

    /// Whether the job under way, which may not end by itself, ends for pairs that are filled in
    /// this way. Where both are such, one of them goes on. (All of one way begin together.)
    pub(super) fn may_give_way_to(&self, fill: Fill) -> bool {
        self.job
            .as_ref()
            .is_some_and(|job| !job.is_told_to_end() && (job.fill == fill || !self.gave_way.contains(&fill)))
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

    /// Two kinds that never end by themselves, of a source without cas ids: by turns they would
    /// make the node's pairs Degraded and Recovering four times a second.
    #[test]
    fn what_has_given_way_comes_last_and_nothing_gives_way_to_it() {
        let mut refills = Refills::default();
        let first = |refills: &Refills| *[Fill::Purge, Fill::Missed].iter().min_by_key(|f| refills.rank(**f)).unwrap();
        assert_eq!(first(&refills), Fill::Missed);
        refills.gave_way.push(Fill::Missed);
        assert_eq!(first(&refills), Fill::Purge);
        refills.gave_way.push(Fill::Purge);
        assert_eq!(first(&refills), Fill::Missed);
        for end in [Refills::done, Refills::ask, Refills::node_lost] {
            refills.gave_way = vec![Fill::Missed];
            end(&mut refills);
            assert_eq!(first(&refills), Fill::Missed);
        }
        assert!(!refills.may_give_way_to(Fill::Missed), "nothing is under way");
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
