//! PURE. How much of the time the resyncs may work, by what clients feel of them.
//!
//! The gauge is how long nodes take to answer the workers ([`Felt`](crate::stats::Felt)): it sees a node that is busy, a network that is
//! full, and a processor that others use. Without a resync it is noted what is usual; during one, answers that are clearly later than
//! nearly all are then ([`SLOW`]) are counted. More of them than [`TOLERATED`], and the share of the time that resyncs work shrinks by a third;
//! as few as ever, and it grows. Never below [`FLOOR`], so that a resync ends whatever clients do; and whole where there are none.
//!
//! What is usual is looked at again now and then, with the resyncs at rest: clients may do more by now, and that is not a resync's doing.

use std::time::Duration;

use crate::stats::FELT_BUCKETS;

/// How often [`Governor::tick`] is to be called while resyncs run, and while none does.
pub const TICK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// The least share of the time.
pub(super) const FLOOR: f64 = 1.0 / 32.0;
/// The share at the beginning, where clients are known to be there.
const FIRST: f64 = 1.0 / 8.0;
/// An answer is slow so many buckets above the one of the 99th percentile of usual ones: later by a fifth to two fifths.
const SLOW: usize = 2;
/// The part of usual answers that lies above that percentile.
const LATEST: f64 = 0.010;
/// So many of all answers may be slow for the share to grow, and beyond the second it shrinks: one in a hundred, and the percentile of all is
/// where the slow ones begin. Where nearly as many are slow without a resync, so much more than then.
const TOLERATED: (f64, f64) = (0.007, 0.010);
const MORE_THAN_USUAL: (f64, f64) = (1.1, 0.004);
/// Answers that are enough for a judgement; how long they are waited for.
const JUDGED: (u64, Duration) = (200, Duration::from_millis(400));
/// Fewer answers a second: nobody is there whom a resync could disturb.
const IDLE_PER_S: f64 = 20.0;
/// Answers without a resync that tell what is usual.
const USUAL: f64 = 200.0;
/// How long and how often the resyncs rest for that.
const LISTEN: Duration = Duration::from_millis(200);
const LISTEN_EVERY: Duration = Duration::from_secs(10);
/// What older answers still count when newer ones come.
const FADE: f64 = 0.7;
const SHRINK: f64 = 0.7;
const GROW: f64 = 1.1;

/// What the resyncs may do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Leave {
    /// Nobody is disturbed.
    Full,
    /// So much of the time, 0 to 1.
    Share(f64),
    /// Rest, for as long as it takes to see what is usual.
    Rest,
}

/// Counts since the start, by bucket, over all workers.
pub type Counts = [u64; FELT_BUCKETS];

/// See the head of this file.
#[derive(Debug)]
pub struct Governor {
    last: Counts,
    /// Without a resync; older counts fade.
    usual: [f64; FELT_BUCKETS],
    /// Since the last judgement.
    window: Counts,
    since: Duration,
    share: f64,
    /// No slow answer was seen yet: it doubles.
    fast: bool,
    at_work: bool,
    /// The resyncs rest until then.
    listen_until: Option<Duration>,
    listen_at: Duration,
}

impl Default for Governor {
    fn default() -> Governor {
        Governor {
            last: [0; FELT_BUCKETS],
            usual: [0.0; FELT_BUCKETS],
            window: [0; FELT_BUCKETS],
            since: Duration::ZERO,
            share: 1.0,
            fast: true,
            at_work: false,
            listen_until: None,
            listen_at: Duration::ZERO,
        }
    }
}

impl Governor {
    /// `at_work`: a resync is under way; `crawling`: and a node is being enumerated, which cannot be slowed down.
    pub fn tick(&mut self, now: Duration, counts: &Counts, at_work: bool, crawling: bool) -> Leave {
        for ((window, last), count) in self.window.iter_mut().zip(&mut self.last).zip(counts) {
            *window += count.wrapping_sub(*last);
            *last = *count;
        }
        if at_work != self.at_work {
            self.at_work = at_work;
            if at_work {
                self.begin(now);
            } else {
                // Its last moments are nothing usual.
                self.forget_window(now);
            }
        } else if !at_work {
            if now >= self.since + TICK.1 {
                self.learn(now);
            }
        } else if let Some(until) = self.listen_until {
            if now >= until {
                self.learn(now);
                self.listen_until = None;
                self.listen_at = now + LISTEN_EVERY;
            }
        } else {
            self.judge(now, crawling);
        }
        match self.listen_until {
            _ if !at_work => Leave::Full,
            Some(_) => Leave::Rest,
            None if self.share >= 1.0 => Leave::Full,
            // It disturbs enough by itself.
            None if crawling => Leave::Share(FLOOR),
            None => Leave::Share(self.share),
        }
    }

    fn begin(&mut self, now: Duration) {
        self.learn(now);
        self.share = if self.usual.iter().sum::<f64>() > 1.0 { FIRST } else { 1.0 };
        self.fast = true;
        self.listen_at = if self.knows_usual() { now + LISTEN_EVERY } else { now };
    }

    fn judge(&mut self, now: Duration, crawling: bool) {
        let (count, time) = (self.window.iter().sum::<u64>(), now.saturating_sub(self.since));
        if count < JUDGED.0 && time < JUDGED.1 {
            return;
        }
        if (count as f64) < IDLE_PER_S * time.as_secs_f64() {
            self.share = (self.share * 4.0).min(1.0);
        } else if crawling {
            // What is felt now says nothing of the copying.
            self.share = self.share.min(FIRST);
        } else if now >= self.listen_at {
            self.listen_until = Some(now + LISTEN);
        } else if let Some(slow_from) = self.slow_from() {
            let slow: u64 = self.window[slow_from..].iter().sum();
            let part = slow as f64 / count as f64;
            let usual =
                self.usual[slow_from..].iter().sum::<f64>() / self.usual.iter().sum::<f64>() * MORE_THAN_USUAL.0;
            if part > TOLERATED.1.max(usual + MORE_THAN_USUAL.1) && slow > 1 {
                self.share = (self.share * SHRINK).max(FLOOR);
                self.fast = false;
            } else if part <= TOLERATED.0.max(usual) {
                self.share = (self.share * if self.fast { 2.0 } else { GROW }).min(1.0);
            }
        } else {
            self.share = self.share.min(FIRST);
            self.listen_at = now;
        }
        self.forget_window(now);
    }

    /// What was counted since the last time is usual.
    fn learn(&mut self, now: Duration) {
        for (usual, count) in self.usual.iter_mut().zip(&self.window) {
            *usual = *usual * FADE + *count as f64;
        }
        self.forget_window(now);
    }

    fn forget_window(&mut self, now: Duration) {
        self.window = [0; FELT_BUCKETS];
        self.since = now;
    }

    fn knows_usual(&self) -> bool {
        self.usual.iter().sum::<f64>() >= USUAL
    }

    /// The first bucket of slow answers; `None`: it is not known what is usual.
    fn slow_from(&self) -> Option<usize> {
        if !self.knows_usual() {
            return None;
        }
        let mut above = self.usual.iter().sum::<f64>() * LATEST;
        for (bucket, count) in self.usual.iter().enumerate().rev() {
            above -= count;
            if above < 0.0 {
                return Some((bucket + SLOW).min(FELT_BUCKETS - 1));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Felt;

    /// Clients, nodes, and resyncs that make answers slow in proportion to the time that they work.
    struct World {
        governor: Governor,
        now: Duration,
        counts: Counts,
        leave: Leave,
        per_s: f64,
        usual_us: u64,
        /// Of all answers so many are slow while a resync works all the time.
        harm: f64,
        owed: [f64; 3],
        rested: Duration,
        least: f64,
    }

    impl World {
        fn new(per_s: f64, harm: f64) -> World {
            World {
                governor: Governor::default(),
                now: Duration::ZERO,
                counts: [0; FELT_BUCKETS],
                leave: Leave::Full,
                per_s,
                usual_us: 100,
                harm,
                owed: [0.0; 3],
                rested: Duration::ZERO,
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
                let tail = count * 0.008;
                let slow = if at_work { (count * self.harm * self.share()).min(count - tail) } else { 0.0 };
                let kinds =
                    [(count - slow - tail, self.usual_us), (tail, self.usual_us * 3), (slow, self.usual_us * 10)];
                for (owed, (count, us)) in self.owed.iter_mut().zip(kinds) {
                    *owed += count;
                    self.counts[Felt::bucket(us)] += *owed as u64;
                    *owed -= owed.floor();
                }
                self.now += tick;
                self.leave = self.governor.tick(self.now, &self.counts, at_work, crawling);
                match self.leave {
                    Leave::Rest => self.rested += tick,
                    _ if at_work => self.least = self.least.min(self.share()),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn without_clients_it_is_never_held_back() {
        let mut world = World::new(0.0, 1.0);
        world.run(60, false, false);
        world.run(60, true, false);
        assert_eq!((world.leave, world.least, world.rested), (Leave::Full, 1.0, Duration::ZERO));
        // A handful of requests is nobody either.
        let mut world = World::new(2.0, 1.0);
        world.run(60, false, false);
        world.run(60, true, false);
        assert_eq!((world.leave, world.rested), (Leave::Full, Duration::ZERO));
    }

    #[test]
    fn what_nobody_feels_goes_at_full_speed() {
        let mut world = World::new(5_000.0, 0.0);
        world.run(10, false, false);
        world.run(5, true, false);
        assert_eq!(world.leave, Leave::Full);
    }

    #[test]
    fn clients_are_yielded_to_as_much_as_they_are_disturbed() {
        for harm in [0.05, 0.1, 0.2] {
            let mut world = World::new(5_000.0, harm);
            world.run(10, false, false);
            world.run(9, true, false);
            let (mut sum, mut ticks) = (0.0, 0);
            for _ in 0..30 {
                world.run(1, true, false);
                sum += world.share();
                ticks += 1;
            }
            let slow = harm * sum / f64::from(ticks);
            assert!(slow < 0.02, "harm {harm}: {slow} of the answers are slow");
            assert!(slow > 0.001, "harm {harm}: it does hardly anything");
        }
    }

    #[test]
    fn never_below_the_floor_so_that_it_ends() {
        let mut world = World::new(50_000.0, 1000.0);
        world.run(10, false, false);
        world.run(100, true, false);
        assert_eq!(world.least, FLOOR);
        // It rests to listen for a small part of the time only.
        assert!(world.rested <= Duration::from_secs(4), "{:?}", world.rested);
    }

    #[test]
    fn what_is_usual_is_found_out_first_but_not_during_an_enumeration() {
        let mut world = World::new(5_000.0, 0.5);
        world.run(2, true, true);
        assert_eq!((world.leave, world.rested), (Leave::Share(FLOOR), Duration::ZERO));
        world.run(3, true, false);
        assert!(world.rested >= LISTEN && world.governor.knows_usual());
        world.run(30, true, false);
        assert!(world.share() < 0.1, "{:?}", world.leave);
    }

    #[test]
    fn slower_answers_that_are_not_a_resyncs_doing_become_usual() {
        let mut world = World::new(5_000.0, 0.0);
        world.run(10, false, false);
        world.run(5, true, false);
        world.usual_us = 1_000;
        world.run(5, true, false);
        assert!(world.share() < 1.0);
        world.run(90, true, false);
        assert_eq!(world.leave, Leave::Full);
    }

    #[test]
    fn clients_that_leave_give_the_time_back() {
        let mut world = World::new(5_000.0, 1.0);
        world.run(10, false, false);
        world.run(20, true, false);
        assert!(world.share() < 0.1);
        world.per_s = 0.0;
        world.run(3, true, false);
        assert_eq!(world.leave, Leave::Full);
    }
}
