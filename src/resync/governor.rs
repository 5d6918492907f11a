//! PURE. How fast resyncs may copy, by their effect on clients: a budget for what they may add to
//! the 99th percentile of clients' latency.
//!
//! It is measured by how long nodes take to answer the workers ([`Latencies`]), which reflects a
//! busy node, a full network, and a processor used by others. The latency *without* resyncs is
//! measured in the same seconds: they pause for a moment before they begin, and then regularly
//! ([`WORK`], [`REST`]). The load before, an idle night or a client's bulk load, plays no part.
//! While they work, it counts the answers that are later than the 99th percentile of the pauses by
//! more than a part of the budget ([`AT_THE_NODE`]). If there are more than [`TOLERATED`], resyncs
//! slow down; if fewer, they speed up. The median may rise by a small part of the budget
//! ([`MIDDLE`]): clients that wait for each answer before they send the next request get less done.
//! (With an eighth, the 99th percentile of 20,000 reads a second rose by 1.4 ms, with a sixteenth
//! by 0.4 ms, and a million items were copied in 5.3 and 5.6 s. A thirty-second part is next to
//! nothing where nodes answer in 80 µs: the items took 12 s in one run and more than 20 in
//! another.) The speed is never below [`FLOOR`], so that a resync ends whatever clients do, and
//! full without clients.

use std::time::Duration;

use crate::stats::{LATENCY_BUCKETS, Latencies};

/// How often [`Governor::tick`] is to be called while resyncs run, and while none does.
pub const TICK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// The least that the resyncs do.
pub(super) const FLOOR: f64 = 1.0 / 512.0;
/// Where they begin, where clients are known to be there.
const FIRST: f64 = 1.0 / 8.0;
/// How long they work between two rests, and how long they rest. Of a rest the first moment still
/// shows what they did before.
const WORK: Duration = Duration::from_millis(940);
const REST: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(60));
/// The part of the answers at rest that are as late as any.
const LATEST: f64 = 0.010;
/// This many of all answers may be later than that by the budget for the resyncs to work harder,
/// and beyond the second they work less.
const TOLERATED: (f64, f64) = (0.006, 0.010);
/// The part of the budget by which a node's answers may be later. The gauge sees a client's wait at
/// the node alone, and not that for its turn at the proxy and at the processors: with the whole
/// budget for the first, 5,000 reads a second were 2.3 to 2.6 ms later at the 99th percentile on
/// two shared processors; with half of it 1.2, with this 1.0 (a million items: 5.8, 6.5 and 11.5
/// s).
const AT_THE_NODE: f64 = 0.4;
/// Where nearly as many are so late at rest, so much more than then.
const MORE_THAN_USUAL: (f64, f64) = (1.1, 0.004);
/// The median answer may be later by the budget divided by this; this many of all may
/// be later than that for the resyncs to work harder, and beyond the second they work less.
const MIDDLE: u32 = 16;
const TOLERATED_LATER: (f64, f64) = (0.50, 0.55);
/// Answers that are enough for a judgement; how long they are waited for.
const JUDGED: (u64, Duration) = (200, Duration::from_millis(400));
/// With fewer answers a second there are no clients that a resync could disturb.
const IDLE_PER_S: f64 = 20.0;
/// What the answers of earlier rests still count when newer ones come.
const FADE: f64 = 0.8;
const SHRINK: f64 = 0.75;
const GROW: f64 = 1.1;

/// How hard the resyncs may work.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Leave {
    /// As hard as they can.
    Full,
    /// So hard, 0 to 1.
    Share(f64),
    /// Not at all, for as long as it takes to see how clients fare without them.
    Rest,
}

/// Counts since the start, by bucket, over all workers.
pub type Counts = [u64; LATENCY_BUCKETS];

/// See the head of this file.
#[derive(Debug)]
pub struct Governor {
    budget: Duration,
    last: Counts,
    /// Answers while the resyncs rested; older counts fade.
    at_rest: [f64; LATENCY_BUCKETS],
    /// Since the last judgement.
    window: Counts,
    since: Duration,
    share: f64,
    /// No slow answer was seen yet: it doubles.
    fast: bool,
    at_work: bool,
    slice: Slice,
    /// A node is being enumerated.
    crawled: bool,
}

/// What the resyncs do now, and until when.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Slice {
    /// There are no clients: without end.
    Alone,
    Work(Duration),
    /// `settled`: what they did before has been answered.
    Rest {
        until: Duration,
        settled: Option<Duration>,
    },
}

impl Governor {
    /// `budget`: what resyncs may add to the 99th percentile of the answers.
    pub fn new(budget: Duration) -> Governor {
        Governor {
            budget,
            last: [0; LATENCY_BUCKETS],
            at_rest: [0.0; LATENCY_BUCKETS],
            window: [0; LATENCY_BUCKETS],
            since: Duration::ZERO,
            share: 1.0,
            fast: true,
            at_work: false,
            slice: Slice::Alone,
            crawled: false,
        }
    }

    /// `at_work`: a resync is under way; `crawling`: and a node is being enumerated, which cannot
    /// be slowed down.
    pub fn tick(&mut self, now: Duration, counts: &Counts, at_work: bool, crawling: bool) -> Leave {
        for ((window, last), count) in self.window.iter_mut().zip(&mut self.last).zip(counts) {
            *window += count.wrapping_sub(*last);
            *last = *count;
        }
        if at_work && !self.at_work {
            self.begin(now);
        } else if at_work {
            self.go_on(now, crawling);
        } else if now >= self.since + TICK.1 {
            self.forget_window(now);
        }
        self.at_work = at_work;
        match self.slice {
            _ if !at_work => Leave::Full,
            // It disturbs enough by itself.
            Slice::Work(_) | Slice::Rest { .. } if crawling => Leave::Share(FLOOR),
            Slice::Alone | Slice::Work(_) if self.share >= 1.0 => Leave::Full,
            Slice::Alone | Slice::Work(_) => Leave::Share(self.share),
            Slice::Rest { .. } => Leave::Rest,
        }
    }

    fn begin(&mut self, now: Duration) {
        self.at_rest = [0.0; LATENCY_BUCKETS];
        (self.share, self.fast) = (1.0, true);
        self.slice = Slice::Alone;
        if !self.is_alone(now) {
            self.share = FIRST;
            // Nothing was done yet whose answers could be late.
            self.slice = Slice::Rest { until: now + REST.1 - REST.0, settled: None };
        }
        self.forget_window(now);
    }

    fn go_on(&mut self, now: Duration, crawling: bool) {
        if crawling {
            // What clients wait for now says nothing of the copying, nor of how clients fare
            // without it.
            if self.slice != Slice::Alone {
                (self.slice, self.crawled) = (Slice::Work(now), true);
            }
            if now >= self.since + JUDGED.1 {
                self.judge(now);
            }
            return;
        }
        if std::mem::take(&mut self.crawled) {
            return self.rest(now);
        }
        match self.slice {
            Slice::Rest { settled: Some(at), until } if now >= at => {
                self.forget_window(now);
                self.slice = Slice::Rest { until, settled: None };
            }
            Slice::Rest { settled: None, until } if now >= until => {
                for (at_rest, count) in self.at_rest.iter_mut().zip(&self.window) {
                    *at_rest = *at_rest * FADE + *count as f64;
                }
                self.forget_window(now);
                self.slice = Slice::Work(now + WORK);
            }
            Slice::Rest { .. } => {}
            Slice::Work(until) if now >= until => self.rest(now),
            Slice::Work(_) | Slice::Alone => self.judge(now),
        }
    }

    fn rest(&mut self, now: Duration) {
        self.slice = Slice::Rest { until: now + REST.1, settled: Some(now + REST.0) };
    }

    /// Whether so few answers came since the window began that there are no clients.
    fn is_alone(&self, now: Duration) -> bool {
        let (count, time) = (self.window.iter().sum::<u64>(), now.saturating_sub(self.since));
        (count as f64) < (IDLE_PER_S * time.as_secs_f64()).max(2.0)
    }

    fn judge(&mut self, now: Duration) {
        let (count, time) = (self.window.iter().sum::<u64>(), now.saturating_sub(self.since));
        if count < JUDGED.0 && time < JUDGED.1 {
            return;
        }
        if self.is_alone(now) {
            self.share = (self.share * 4.0).min(1.0);
            if self.share >= 1.0 {
                // There are no clients to rest for.
                self.slice = Slice::Alone;
            }
        } else if self.slice == Slice::Alone {
            // Clients have come.
            self.share = self.share.min(FIRST);
            self.rest(now);
        } else if !self.crawled {
            let above = |bucket: usize| self.window[bucket..].iter().sum::<u64>() as f64 / count as f64;
            let slow_from = self.later_than(LATEST, self.budget.mul_f64(AT_THE_NODE));
            let slow = above(slow_from);
            let rested = self.at_rest.iter().sum::<f64>().max(1.0);
            let usual = self.at_rest[slow_from..].iter().sum::<f64>() / rested * MORE_THAN_USUAL.0;
            let later = above(self.later_than(0.5, self.budget / MIDDLE));
            if slow > TOLERATED.1.max(usual + MORE_THAN_USUAL.1) || later > TOLERATED_LATER.1 {
                self.share = (self.share * SHRINK).max(FLOOR);
                self.fast = false;
            } else if slow <= TOLERATED.0.max(usual) && later <= TOLERATED_LATER.0 {
                self.share = (self.share * if self.fast { 2.0 } else { GROW }).min(1.0);
            }
        }
        self.forget_window(now);
    }

    fn forget_window(&mut self, now: Duration) {
        self.window = [0; LATENCY_BUCKETS];
        self.since = now;
    }

    /// The first bucket of answers that are later by `added` than all but the latest `part` of
    /// those at rest.
    fn later_than(&self, part: f64, added: Duration) -> usize {
        let mut above = self.at_rest.iter().sum::<f64>() * part;
        let latest = self.at_rest.iter().rposition(|count| {
            above -= count;
            above < 0.0
        });
        let usual_us = latest.map_or(0, |bucket| Latencies::least(bucket + 1));
        let added_us = u64::try_from(added.as_micros()).unwrap_or(u64::MAX);
        (Latencies::bucket(usual_us.saturating_add(added_us)) + 1).min(LATENCY_BUCKETS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(1);
    /// What of it is left for the nodes' answers, in microseconds.
    const NODES_US: f64 = 1_000.0 * AT_THE_NODE;

    /// Clients, nodes, and resyncs that make answers late the more the harder they work.
    struct World {
        governor: Governor,
        now: Duration,
        counts: Counts,
        leave: Leave,
        per_s: f64,
        usual_us: u64,
        /// What some answers wait more while a resync works as hard as it can, in microseconds, and
        /// their part.
        harm_us: f64,
        harmed: f64,
        owed: [f64; 3],
        rested: Duration,
        worked: f64,
        late: [f64; 2],
        least: f64,
    }

    impl World {
        fn new(per_s: f64, harm_us: f64) -> World {
            World {
                governor: Governor::new(BUDGET),
                now: Duration::ZERO,
                counts: [0; LATENCY_BUCKETS],
                leave: Leave::Full,
                per_s,
                usual_us: 100,
                harm_us,
                harmed: 0.02,
                owed: [0.0; 3],
                rested: Duration::ZERO,
                worked: 0.0,
                late: [0.0; 2],
                least: 1.0,
            }
        }

        fn share(&self) -> f64 {
            match self.leave {
                Leave::Full => 1.0,
                Leave::Share(share) => share,
                Leave::Rest => 0.0,
            }
        }

        fn run(&mut self, seconds: u64, at_work: bool, crawling: bool) {
            let tick = if at_work { TICK.0 } else { TICK.1 };
            let end = self.now + Duration::from_secs(seconds);
            while self.now < end {
                let count = self.per_s * tick.as_secs_f64();
                let harm_us = if at_work { self.harm_us * self.share() } else { 0.0 };
                let (tail, late) = (count * 0.008, count * self.harmed);
                let kinds = [
                    (count - tail - late, self.usual_us),
                    (tail, self.usual_us * 3),
                    (late, self.usual_us + harm_us as u64),
                ];
                for (owed, (count, us)) in self.owed.iter_mut().zip(kinds) {
                    *owed += count;
                    self.counts[Latencies::bucket(us)] += *owed as u64;
                    *owed -= owed.floor();
                }
                self.late[0] += if harm_us > NODES_US * 1.7 { late } else { 0.0 };
                self.late[1] += count;
                self.worked += self.share() * tick.as_secs_f64();
                self.now += tick;
                self.leave = self.governor.tick(self.now, &self.counts, at_work, crawling);
                match self.leave {
                    Leave::Rest => self.rested += tick,
                    _ if at_work => self.least = self.least.min(self.share()),
                    _ => {}
                }
            }
        }

        /// How hard it works on the average of this many seconds.
        fn average(&mut self, seconds: u64) -> f64 {
            self.worked = 0.0;
            self.run(seconds, true, false);
            self.worked / seconds as f64
        }
    }

    #[test]
    fn without_clients_it_is_never_held_back() {
        for per_s in [0.0, 2.0] {
            let mut world = World::new(per_s, 1e6);
            world.run(60, false, false);
            world.run(60, true, false);
            assert_eq!((world.leave, world.least, world.rested), (Leave::Full, 1.0, Duration::ZERO), "{per_s}/s");
        }
    }

    #[test]
    fn what_stays_within_the_budget_goes_at_full_speed_at_once() {
        let mut world = World::new(5_000.0, NODES_US * 0.7);
        world.run(10, false, false);
        assert!(world.average(1) > 0.7);
        assert!(world.average(30) > 0.9);
    }

    #[test]
    fn clients_feel_the_budget_and_not_more() {
        for harm_us in [5e3, 2e4, 1e5] {
            let mut world = World::new(5_000.0, harm_us);
            world.run(10, false, false);
            world.run(5, true, false);
            world.late = [0.0; 2];
            let average = world.average(30);
            let ideal = NODES_US / harm_us;
            assert!(average > ideal * 0.7 && average < ideal * 2.0, "{average} of {ideal}");
            assert!(world.late[0] / world.late[1] < 0.005, "{:?}", world.late);
        }
    }

    /// Most answers wait for the same: by a quarter of the budget none would be too late at the
    /// 99th percentile.
    #[test]
    fn the_answer_in_the_middle_is_held_to_a_small_part_of_the_budget() {
        let mut world = World::new(20_000.0, 2_000.0);
        world.harmed = 0.9;
        world.run(10, false, false);
        world.run(5, true, false);
        let average = world.average(30);
        let ideal = f64::from(1_000 / MIDDLE) / 2_000.0;
        assert!(average > ideal * 0.7 && average < ideal * 2.0, "{average} of {ideal}");
    }

    /// A bulk load just before, or a quiet night.
    #[test]
    fn what_came_before_plays_no_part() {
        let mut averages = Vec::new();
        for before in [(100, 5_000.0), (20_000, 5_000.0), (100, 0.1), (50, 50_000.0)] {
            let mut world = World::new(before.1, 2e4);
            world.usual_us = before.0;
            world.run(60, false, false);
            (world.usual_us, world.per_s) = (100, 5_000.0);
            world.run(1, false, false);
            averages.push(world.average(10));
        }
        let most = averages.iter().copied().fold(0.0, f64::max);
        assert!(averages.iter().all(|average| *average > most * 0.9), "{averages:?}");
    }

    #[test]
    fn never_below_the_floor_so_that_it_ends() {
        let mut world = World::new(50_000.0, 1e9);
        world.run(10, false, false);
        world.run(100, true, false);
        assert_eq!(world.least, FLOOR);
        assert!(world.rested <= Duration::from_secs(8), "{:?}", world.rested);
    }

    #[test]
    fn an_enumeration_is_worked_beside_as_little_as_can_be_and_judges_nobody() {
        let mut world = World::new(5_000.0, NODES_US * 20.0);
        world.run(2, false, false);
        world.run(2, true, true);
        assert_eq!(world.leave, Leave::Share(FLOOR));
        world.run(1, true, false);
        assert!(world.average(10) > 0.03);
    }

    #[test]
    fn slower_answers_that_are_not_a_resyncs_doing_are_no_reason() {
        let mut world = World::new(5_000.0, 500.0);
        world.run(10, false, false);
        world.run(5, true, false);
        world.usual_us = 10_000;
        world.run(15, true, false);
        let average = world.average(10);
        assert!(average > 0.85, "{average}");
    }

    #[test]
    fn clients_that_leave_give_the_time_back_and_those_that_come_are_noticed() {
        let mut world = World::new(5_000.0, 1e5);
        world.run(10, false, false);
        world.run(20, true, false);
        assert!(world.average(1) < 0.1);
        world.per_s = 0.0;
        world.run(3, true, false);
        assert_eq!(world.leave, Leave::Full);
        world.per_s = 5_000.0;
        world.run(3, true, false);
        assert!(world.average(3) < 0.1);
    }
}
