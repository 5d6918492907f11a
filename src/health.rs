//! When a node counts as back. Pure: probe results and the time in, verdicts out.
//!
//! A node is lost at the first fault; one good probe does not bring it back. Several in a row do,
//! and a node that is lost again soon after its return waits longer each time, so that a flapping
//! node does not move leadership back and forth. (A new, empty process needs only one probe: that
//! the old one ended proves that this is not the same process in a good moment. After flapping it
//! waits like any other.)
//!
//! One that somebody's only copy is on waits less, but waits: a server may answer probes and refuse
//! all else (memcached at its limit of connections, `-c`). Taken back at once, it was lost 400
//! times a second.

use std::time::Duration;

/// A node lost again within so long after its return is flapping.
const FLAP_WINDOW: Duration = Duration::from_secs(10);
/// What a flapping node waits at first.
const HOLD_MIN: Duration = Duration::from_millis(250);
/// What it waits at most. Not longer: its pairs have one copy meanwhile, and leadership returns
/// only after a whole resync anyway.
const HOLD_MAX: Duration = Duration::from_secs(4);
/// The same for one that is awaited. (The longest also bounds how often its pairs change back and
/// forth, and the log tells of it.)
const AWAITED_HOLD_MIN: Duration = Duration::from_millis(50);
const AWAITED_HOLD_MAX: Duration = Duration::from_secs(1);

/// What `uptime` shows of a memcached that has just begun, in seconds (1.6.18: its clock has a head
/// start, so that no item is ever of second 0).
const UPTIME_AT_START_SECS: u64 = 2;

/// Whether a process of that `uptime`, in whole seconds, may have begun since the node was lost:
/// `away` ago. Both are cut to seconds, so one a second older passes too.
pub fn began_since(uptime: u64, away: Duration) -> bool {
    uptime <= UPTIME_AT_START_SECS + away.as_secs() + 1
}

/// One node's health. Times are measured from any fixed moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    up: bool,
    good: u32,
    /// How often in a row it was lost again soon after its return.
    flaps: u32,
    lost_at: Duration,
    back_at: Option<Duration>,
    /// How often it was lost.
    losses: u64,
}

impl Health {
    /// A node that nothing is known of.
    pub fn new() -> Health {
        Health { up: false, good: 0, flaps: 0, lost_at: Duration::ZERO, back_at: None, losses: 0 }
    }

    /// Whether it is in use.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// How often it was lost.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// It failed. Returns `false` if it was lost already.
    pub fn lost(&mut self, now: Duration) -> bool {
        self.good = 0;
        if !self.up {
            return false;
        }
        self.up = false;
        self.losses += 1;
        self.flaps = match self.back_at {
            Some(at) if now.saturating_sub(at) < FLAP_WINDOW => self.flaps.saturating_add(1),
            _ => 0,
        };
        self.lost_at = now;
        true
    }

    /// Whether it has waited long enough for how often it was lost.
    fn is_free(&self, now: Duration, awaited: bool) -> bool {
        let (least, most) = if awaited { (AWAITED_HOLD_MIN, AWAITED_HOLD_MAX) } else { (HOLD_MIN, HOLD_MAX) };
        let hold = match self.flaps {
            0 => Duration::ZERO,
            flaps => least.saturating_mul(2_u32.saturating_pow(flaps - 1)).min(most),
        };
        now >= self.lost_at + hold
    }

    /// A probe was answered. `needed`: good probes in a row that make it worth taking back.
    /// `awaited`: somebody's only copy is on it, so that little is gained by holding it off.
    pub fn good_probe(&mut self, now: Duration, needed: u32, awaited: bool) -> bool {
        self.good = self.good.saturating_add(1);
        !self.up && self.good >= needed && self.is_free(now, awaited)
    }

    /// Whether this many good probes in a row were seen.
    pub fn is_tried(&self, needed: u32) -> bool {
        self.good >= needed
    }

    /// A probe failed.
    pub fn bad_probe(&mut self) {
        self.good = 0;
    }

    /// It is taken back.
    pub fn back(&mut self, now: Duration) {
        self.up = true;
        self.back_at = Some(now);
    }
}

impl Default for Health {
    fn default() -> Health {
        Health::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Seen of 1.6.18: 2 for its first second. A service manager restarts it within 0.1 s.
    #[test]
    fn a_process_that_has_just_begun_is_newer_than_the_loss() {
        for away in [100, 500, 900, 1500] {
            assert!(began_since(2, Duration::from_millis(away)));
        }
        assert!(began_since(3, S / 2) && !began_since(4, S / 2));
        assert!(began_since(12, 10 * S) && !began_since(14, 10 * S));
    }

    #[test]
    fn several_good_probes_in_a_row_bring_a_node_back() {
        let mut health = Health::new();
        health.back(S);
        assert_eq!((health.is_up(), health.losses()), (true, 0));
        assert!(health.lost(100 * S) && !health.lost(100 * S));
        assert!(!health.good_probe(101 * S, 3, false));
        assert!(!health.good_probe(102 * S, 3, false));
        assert!(health.is_tried(2) && !health.is_tried(3));
        health.bad_probe();
        assert!(!health.is_tried(1));
        assert!(!health.good_probe(103 * S, 3, false));
        assert!(!health.good_probe(104 * S, 3, false));
        assert!(health.good_probe(105 * S, 3, false));
        assert!(health.is_tried(3));
        health.back(105 * S);
        assert!(health.lost(200 * S));
        assert_eq!((health.is_up(), health.losses()), (false, 2));
    }

    #[test]
    fn a_flapping_node_waits_longer_each_time_and_a_steady_one_not_at_all() {
        let mut health = Health::new();
        let mut now = S;
        let mut waits = Vec::new();
        for _ in 0..9 {
            health.back(now);
            health.lost(now + S);
            let lost = now + S;
            now = lost;
            while !health.good_probe(now, 1, false) {
                now += Duration::from_millis(100);
            }
            waits.push((now - lost).as_millis());
        }
        assert_eq!(waits, [300, 500, 1000, 2000, 4000, 4000, 4000, 4000, 4000]);
        health.back(now);
        health.lost(now + 60 * S);
        assert!(health.good_probe(now + 60 * S, 1, false), "a node that had been up for long is taken back at once");
    }

    /// memcached at its `-c`: probes are answered, a worker's connection is refused at once.
    #[test]
    fn an_awaited_node_that_flaps_waits_too_and_a_steady_one_not_at_all() {
        let mut health = Health::new();
        health.back(S);
        health.lost(100 * S);
        let mut now = 100 * S;
        assert!(health.good_probe(now, 1, true), "a steady one is taken back at once");
        let mut waits = Vec::new();
        for _ in 0..8 {
            health.back(now);
            health.lost(now);
            let lost = now;
            while !health.good_probe(now, 1, true) {
                now += Duration::from_millis(10);
            }
            waits.push((now - lost).as_millis());
        }
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000, 1000]);
        assert!(!health.good_probe(now, 1, false), "one that nobody waits for waits longer");
        health.back(now);
        health.lost(now + 10 * S);
        assert!(health.good_probe(now + 10 * S, 1, true), "ten seconds in use, and it is steady again");
    }

    /// Good probes from before the loss, which came while the node was in use or held off, do not
    /// count after it.
    #[test]
    fn what_was_good_before_a_loss_does_not_count_after_it() {
        let mut health = Health::new();
        assert!(!health.is_up(), "nothing is known of it yet");
        health.back(S);
        for _ in 0..5 {
            assert!(!health.good_probe(20 * S, 3, false), "it is in use already");
        }
        assert!(health.lost(30 * S));
        assert!(!health.good_probe(31 * S, 3, false));
        assert!(!health.good_probe(32 * S, 3, false));
        // A request fails although probes are answered.
        assert!(!health.lost(32 * S));
        assert!(!health.good_probe(33 * S, 3, false));
        assert_eq!(health.losses(), 1);
    }

    #[test]
    fn an_awaited_node_is_probed_as_often_as_any() {
        let mut health = Health::new();
        assert!(!health.good_probe(S, 2, true));
        assert!(health.good_probe(S, 2, true));
    }

    #[test]
    fn a_node_flaps_that_is_lost_within_ten_seconds() {
        for (up, flaps) in [(9_999, true), (10_000, false)] {
            let mut health = Health::new();
            health.back(S);
            let lost = S + Duration::from_millis(up);
            health.lost(lost);
            assert_eq!(health.good_probe(lost, 1, false), !flaps, "{up} ms");
        }
    }
}
