//! When an item expires: one date for all its copies, by the proxy's own seconds.
//!
//! A node counts whole seconds from its own start, so two nodes show different dates, and move to
//! the next second at different moments. A remaining time that is read on one and stored on another
//! is off by up to a second, and the errors of repeated copies add up (observed: 2.2 s after twelve
//! refills). Dates are whole numbers on every node. So the difference between a node's dates and
//! the proxy's is measured once for each of the node's lives ([`Offset`]), and every copy gets the
//! *same* date by the node's own clock: no error adds up, also for copies of copies.
//!
//! A node shows date `d + offset` from some moment of the second that *ends* with the proxy's date
//! `d`. So an item with the date `d` has expired on each of its nodes by then, and at most a second
//! before: a client's exptime is rounded down to a date, and never lasts longer.

use std::time::Duration;

/// An exptime over this, in seconds, is a date.
pub const RELATIVE_MAX_SECS: i64 = 30 * 24 * 60 * 60;
/// The last date that every memcached takes. Up to 1.6.38 the next one is long past, 1.6.45 refuses
/// it.
pub const DATE_MAX: i64 = i32::MAX as i64;
/// What is to live this long or shorter, in seconds, is not rounded down to a date: of a lock of
/// two seconds a half would be gone. Each node counts it from the second in which it stores it.
pub const SHORT_SECS: i64 = 10;
/// An exptime that has always passed.
const PASSED: i64 = -1;
/// A node that is asked this close to the end of one of the proxy's seconds tells what it shows at
/// its end.
const SHARP: Duration = Duration::from_millis(50);

/// How far a node's dates are ahead of the proxy's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offset {
    secs: i64,
    /// Measured at the end of one of the proxy's seconds; otherwise it may be one too small, and
    /// what is stored or copied by it a second short.
    pub sharp: bool,
}

impl Offset {
    /// Of a node that showed the date `shown` when the proxy's was `now`, or a moment before.
    pub fn seen(shown: i64, now: Duration) -> Offset {
        let left = Duration::from_secs(1).saturating_sub(Duration::from_nanos(now.subsec_nanos().into()));
        Offset { secs: shown - (now.as_secs() as i64 + 1), sharp: left <= SHARP }
    }

    /// A proxy's date as the node's.
    fn there(self, date: i64) -> i64 {
        date.saturating_add(self.secs)
    }

    /// What the node is told of a proxy's date.
    pub fn exptime(self, date: i64, now: Duration) -> i64 {
        let there = self.there(date);
        if there > RELATIVE_MAX_SECS { there.min(DATE_MAX) } else { left(date, now) }
    }

    /// A node's date as the proxy's; never a later one. (By a measurement that is not sharp the
    /// same difference would be a second too late: what expires by it is one that was stored by a
    /// sharp one, perhaps by an earlier proxy, and a copy of it would outlast it.)
    pub fn here(self, date: i64) -> i64 {
        date.saturating_sub(self.secs).saturating_sub(i64::from(!self.sharp))
    }

    /// Takes a later measurement of the same life of a node. The moment at which a node turns to
    /// its next date wanders by a millisecond a second or so, and comes back in one leap: then the
    /// measurement is another one by one, and what was stored before must still be understood. More
    /// than that, and its clock was set, or it was asleep.
    pub fn refine(&mut self, newer: Offset) {
        if newer.sharp && (!self.sharp || newer.secs.abs_diff(self.secs) > 1) {
            *self = newer;
        }
    }
}

/// Of a date that no node would take for one. (A node whose clock stands in January 1970 has dates
/// to come that are as small.)
#[cold]
fn left(date: i64, now: Duration) -> i64 {
    let left = date.saturating_sub(now.as_secs() as i64);
    if left > 0 { left.min(RELATIVE_MAX_SECS) } else { PASSED }
}

/// The date at which an item expires for which a client asks `exptime` at `now`; `None` = each node
/// is told what the client said.
pub fn date(exptime: i64, now: Duration) -> Option<i64> {
    (SHORT_SECS + 1..=RELATIVE_MAX_SECS).contains(&exptime).then(|| now.as_secs() as i64 + exptime)
}

/// The date for a copy of an item that was found with the date `date`, both the proxy's; `None` =
/// it is over, or as good as.
///
/// In its last seconds it may be one that each node counted for itself, which lasts up to a second
/// less than its date says.
pub fn of_copy(date: i64, now: Duration) -> Option<i64> {
    let now = now.as_secs() as i64;
    let date = if date - now <= SHORT_SECS { date - 1 } else { date };
    (date > now).then_some(date)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node's clock: its date turns at `phase` of each second of the proxy's, and is `ahead`.
    struct Node {
        phase: f64,
        ahead: i64,
    }

    impl Node {
        fn shows(&self, now: f64) -> i64 {
            (now - self.phase).floor() as i64 + self.ahead
        }

        fn offset(&self) -> Offset {
            let offset = Offset::seen(self.shows(99.97), Duration::from_secs_f64(99.97));
            assert!(offset.sharp);
            offset
        }

        /// When an item with the node's date `date` is gone, by the proxy's clock.
        fn gone(&self, date: i64) -> f64 {
            (date - self.ahead) as f64 + self.phase
        }
    }

    fn nodes() -> impl Iterator<Item = Node> {
        (0..20).map(|i| Node { phase: f64::from(i) / 20.0, ahead: i64::from(i * i % 7) - 3 })
    }

    #[test]
    fn an_item_is_gone_on_every_node_within_the_second_before_its_date() {
        for node in nodes() {
            for asked in [100.0, 100.01, 100.5, 100.99] {
                let date = date(60, Duration::from_secs_f64(asked)).unwrap();
                let gone = node.gone(node.offset().there(date));
                assert!(gone <= date as f64 && gone > date as f64 - 1.05, "phase {}: {gone} of {date}", node.phase);
                assert!(date as f64 <= asked + 60.0, "never longer than was asked for");
            }
        }
    }

    /// A second of the date's, one of the node's, one of the measurement's, as docs/guarantees.md
    /// says.
    #[test]
    fn an_item_of_a_proxys_first_second_ends_three_seconds_early_at_most_and_its_copies_with_it() {
        for (first, copied) in nodes().zip(nodes().skip(7)) {
            for asked in [99.0, 99.3, 99.7, 99.94] {
                let rough = Offset::seen(first.shows(asked), Duration::from_secs_f64(asked));
                let stored = rough.there(date(60, Duration::from_secs_f64(asked)).unwrap());
                let known = of_copy(first.offset().here(stored), Duration::from_secs_f64(asked + 2.0)).unwrap();
                let copy = copied.gone(copied.offset().there(known));
                for gone in [first.gone(stored), copy] {
                    let (least, most) = (asked + 60.0 - 3.05, asked + 60.0);
                    assert!((least..=most).contains(&gone), "phase {}, at {asked}: {gone}", first.phase);
                }
            }
        }
    }

    /// An item that an earlier proxy stored, or a refill, is copied when the next one has just
    /// begun: its repair waits for no measurement.
    #[test]
    fn a_copy_that_is_made_in_a_proxys_first_second_ends_at_its_date_or_at_most_two_seconds_before() {
        for (first, copied) in nodes().zip(nodes().skip(7)) {
            for now in [99.0, 99.3, 99.7, 99.94, 99.97] {
                let seen = |node: &Node| Offset::seen(node.shows(now), Duration::from_secs_f64(now));
                let stored = first.offset().there(160);
                let date = of_copy(seen(&first).here(stored), Duration::from_secs_f64(now)).unwrap();
                assert!((159..=160).contains(&date), "phase {}, at {now}: {date}", first.phase);
                for to in [seen(&copied), copied.offset()] {
                    let gone = copied.gone(to.there(date));
                    assert!((157.0 - 0.05..=160.0).contains(&gone), "phase {}, at {now}: {gone}", copied.phase);
                }
            }
        }
    }

    #[test]
    fn a_thousand_copies_of_copies_keep_the_date() {
        let (first, all): (Node, Vec<Node>) = (nodes().nth(3).unwrap(), nodes().collect());
        let mut at = first.offset().there(5_000);
        let mut node = &first;
        for i in 0..1_000 {
            let next = &all[i * 7 % all.len()];
            let date = of_copy(node.offset().here(at), Duration::from_secs(200)).unwrap();
            at = next.offset().there(date);
            node = next;
        }
        assert_eq!(node.offset().here(at), 5_000);
    }

    /// It may be one that its node counted for itself: nothing tells. So an item of a few seconds
    /// loses the second that memcached takes, up to two with its first copy, and one with each copy
    /// of a copy; a dated one, two, and one with each copy.
    #[test]
    fn copies_of_copies_in_the_last_ten_seconds_take_a_second_each_and_none_lasts_too_long() {
        let all: Vec<Node> = nodes().collect();
        for (seed, first) in all.iter().enumerate() {
            for asked in [100.0, 100.01, 100.5, 100.99] {
                for exptime in [6, SHORT_SECS, SHORT_SECS + 1] {
                    let ends = asked + exptime as f64;
                    let dated = date(exptime, Duration::from_secs_f64(asked));
                    let own = first.shows(asked) + exptime;
                    let mut at = dated.map_or(own, |date| first.offset().there(date));
                    let mut node = first;
                    for copies in 1..4 {
                        let next = &all[(seed + copies * 7) % all.len()];
                        // Within its last ten seconds.
                        let now = Duration::from_secs_f64(asked + 1.0);
                        at = next.offset().there(of_copy(node.offset().here(at), now).unwrap());
                        node = next;
                        let most = 2.05 + copies as f64;
                        assert!(
                            (ends - most..=ends).contains(&node.gone(at)),
                            "{exptime}, {copies}: {}",
                            node.gone(at) - ends
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_measurement_in_mid_second_errs_to_the_shorter_side() {
        for node in nodes() {
            for now in [99.0, 99.3, 99.7, 99.94] {
                let rough = Offset::seen(node.shows(now), Duration::from_secs_f64(now));
                assert!(!rough.sharp);
                let short = node.offset().secs - rough.secs;
                assert!((0..=1).contains(&short), "{short}");
            }
        }
    }

    #[test]
    fn a_measurement_stays_unless_the_clock_was_set() {
        let sharp = |secs| Offset { secs, sharp: true };
        let mut offset = Offset { secs: 4, sharp: false };
        offset.refine(Offset { secs: 9, sharp: false });
        assert_eq!(offset.secs, 4);
        offset.refine(sharp(5));
        offset.refine(sharp(4));
        offset.refine(sharp(6));
        assert_eq!(offset, sharp(5));
        offset.refine(sharp(8));
        assert_eq!(offset, sharp(8));
    }

    /// A date below 30 days would be taken for a time from now: what is over stays over, and a node
    /// whose clock stands in January 1970 counts what is left.
    #[test]
    fn a_node_is_told_a_date_only_where_it_takes_it_for_one() {
        let now = Duration::from_secs(1_000_000_000);
        let offset = |secs| Offset { secs, sharp: true };
        for (ahead, date, told) in [
            (0, RELATIVE_MAX_SECS + 1, RELATIVE_MAX_SECS + 1),
            (-1, RELATIVE_MAX_SECS + 1, -1),
            (-1_000_000_000, 1_000_000_060, 60),
            (-1_000_000_000, 1_000_000_000, -1),
            (-1_000_000_000, 1_000_000_000 + RELATIVE_MAX_SECS, RELATIVE_MAX_SECS),
            (-1_000_000_000, 1_000_000_001 + RELATIVE_MAX_SECS, RELATIVE_MAX_SECS + 1),
            (0, DATE_MAX, DATE_MAX),
            (1, DATE_MAX, DATE_MAX),
            (-1, DATE_MAX, DATE_MAX - 1),
            (0, i64::MAX, DATE_MAX),
        ] {
            assert_eq!(offset(ahead).exptime(date, now), told, "{date} on a node {ahead} s ahead");
        }
    }

    #[test]
    fn what_lives_for_a_few_seconds_or_by_a_date_of_the_clients_is_left_as_it_is() {
        let now = Duration::from_millis(100_900);
        for exptime in [-1, 0, 1, SHORT_SECS, RELATIVE_MAX_SECS + 1] {
            assert_eq!(date(exptime, now), None, "{exptime}");
        }
        assert_eq!(date(SHORT_SECS + 1, now), Some(111));
        assert_eq!((of_copy(200, now), of_copy(110, now), of_copy(102, now)), (Some(200), Some(109), Some(101)));
        assert_eq!((of_copy(101, now), of_copy(50, now)), (None, None));
    }
}
