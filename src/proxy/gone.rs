//! Keys that were answered as missing in the last seconds, known to all workers.
//!
//! The two copies of an item do not expire at the same moment: each server's seconds begin at a
//! different moment (see [`crate::protocol::expiry`]). So if the leader changes just then, an item
//! that was missing on the earlier leader may still be on the next one, for [`LASTS`] at most. An
//! operation on a key that was recorded here under an earlier leader first reads the item, and
//! deletes what it finds: `super::core`'s looks.
//!
//! The table has a fixed size, and a later key may replace an earlier one: nothing is allocated,
//! and nothing waits. A replaced key is forgotten, and its item may reappear.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ids::{KeyId, Term};

/// By so much one copy of an item may end after another: a second for the moments at which servers
/// turn to their seconds, one for what a copy made in an item's last ten seconds is given less
/// (`expiry::of_copy`), one for what memcached's timer wanders (0.9 s seen), and one for the time
/// between the two writes of an item that each server counts for itself.
pub(super) const LASTS: Duration = Duration::from_secs(4);

/// What a server shows as an item's remaining seconds may be this many more than are left: its
/// clock is up to a second late, and seconds begun count.
const SHOWN_MORE_SECS: u64 = 2;

/// This many keys have a place each.
const PLACES: usize = 1 << 16;

/// Times are kept in 64ths of a second.
const PER_SEC: u64 = 64;
const TIME_BITS: u32 = 16;
const TERM_BITS: u32 = 15;

/// What stands there of a key: 33 bits of its hash. 16 others choose the place: that one key is
/// taken for another has a chance of 1 in 2^33 each time that one is looked for.
const KEY_BITS: u64 = u64::MAX << (TERM_BITS + TIME_BITS);

/// See the module's words.
#[derive(Debug)]
pub struct Gone {
    /// From the left: bits of the key, the term under which clients were told, the time when the
    /// node was asked. 0: nothing.
    places: Box<[AtomicU64]>,
}

impl Gone {
    pub fn new() -> Gone {
        Gone::with_places(PLACES)
    }

    fn with_places(places: usize) -> Gone {
        Gone { places: (0..places).map(|_| AtomicU64::new(0)).collect() }
    }

    fn place(&self, key: KeyId) -> &AtomicU64 {
        &self.places[key.0 as usize % self.places.len()]
    }

    /// Before a client is told. `asked`: the date when the node was asked, by which a later write
    /// is told from an earlier one.
    pub(super) fn tell(&self, key: KeyId, term: Term, asked: Duration) {
        self.place(key).store((key.0 & KEY_BITS) | term.in_token() << TIME_BITS | time(asked), Ordering::Release);
    }

    /// Whether clients were told under another term than this, and a copy may outlast that still:
    /// then the date when the node was asked, or up to a 64th of a second before.
    pub(super) fn find(&self, key: KeyId, term: Term, now: Duration) -> Option<Duration> {
        self.told(key, now).filter(|(there, _)| *there != term.in_token()).map(|(_, asked)| asked)
    }

    /// Whether clients were told that it is gone, under whatever term.
    pub(super) fn was_told(&self, key: KeyId, now: Duration) -> bool {
        self.told(key, now).is_some()
    }

    /// The term, as in tokens, and the date.
    fn told(&self, key: KeyId, now: Duration) -> Option<(u64, Duration)> {
        let entry = self.place(key).load(Ordering::Acquire);
        if entry == 0 || entry & KEY_BITS != (key.0 & KEY_BITS) {
            return None;
        }
        // Another worker's clock may be a moment ahead.
        let passed = time(now).wrapping_sub(entry) & ((1 << TIME_BITS) - 1);
        let passed = if passed > u64::from(u16::MAX) - PER_SEC { 0 } else { passed };
        let passed = Duration::from_nanos(passed * (1_000_000_000 / PER_SEC));
        let term = entry >> TIME_BITS & ((1 << TERM_BITS) - 1);
        (passed <= LASTS).then(|| (term, now.saturating_sub(passed)))
    }

    /// It was written since, or nothing of it is left.
    pub(super) fn forget(&self, key: KeyId) {
        let place = self.place(key);
        if place.load(Ordering::Acquire) & KEY_BITS == (key.0 & KEY_BITS) {
            place.store(0, Ordering::Release);
        }
    }
}

impl Default for Gone {
    /// For a worker by itself, as in tests: small.
    fn default() -> Gone {
        Gone::with_places(64)
    }
}

fn time(date: Duration) -> u64 {
    (date.as_millis() as u64 * PER_SEC / 1_000) & ((1 << TIME_BITS) - 1)
}

/// Whether an item that has this many seconds left at `now` may be a copy of one that was gone when
/// its node was asked. (Below 0: it never ends.)
pub(super) fn may_outlast(ttl_secs: i64, asked: Duration, now: Duration) -> bool {
    let left = LASTS.saturating_sub(now.saturating_sub(asked));
    let most = left.as_millis().div_ceil(1_000) as u64 + SHOWN_MORE_SECS;
    u64::try_from(ttl_secs).is_ok_and(|secs| secs <= most)
}

/// When the keys of a worker were last written for a few seconds, or until a date of their
/// client's: such an item has little time left, and is told by this alone from what was there
/// before.
///
/// Keys share places by their hash: what only shares one may be read again.
#[derive(Default, Debug)]
pub(super) struct WrittenBriefly {
    /// Empty until there are any.
    places: Vec<Written>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Written {
    /// The date.
    at: Duration,
    hash: u32,
    /// It was about to be sent, and others that were sent before may be answered yet.
    unanswered: bool,
}

/// 96 KiB a worker.
const WRITTEN_PLACES: usize = 1 << 12;

/// What workers' clocks may differ by: each looks at its own once a turn.
const TURN: Duration = Duration::from_millis(100);

impl WrittenBriefly {
    pub(super) fn note(&mut self, hash: u32, at: Duration, unanswered: bool) {
        self.places.resize(WRITTEN_PLACES, Written::default());
        self.places[hash as usize % WRITTEN_PLACES] = Written { at, hash, unanswered };
    }

    /// In its place is an item of one second, of which nothing is noted.
    pub(super) fn forget(&mut self, hash: u32) {
        if let Some(written) = self.places.get_mut(hash as usize % WRITTEN_PLACES)
            && written.hash == hash
            && !written.unanswered
        {
            *written = Written::default();
        }
    }

    /// Whether the key may have been written after a node was asked for it at this date.
    pub(super) fn since(&self, hash: u32, asked: Duration) -> bool {
        self.places.get(hash as usize % WRITTEN_PLACES).is_some_and(|written| written.at + TURN >= asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Term = Term(7);
    const NOW: Duration = Duration::from_millis(1_800_000_000_123);

    fn key(of: &str) -> KeyId {
        crate::ring::Topology::key_id(of.as_bytes())
    }

    #[test]
    fn what_was_told_under_another_term_is_found_for_four_seconds() {
        let gone = Gone::new();
        gone.tell(key("k"), TERM, NOW);
        let found = |key, term, after_ms| gone.find(key, term, NOW + Duration::from_millis(after_ms));
        let asked = found(key("k"), TERM.next(), 3_900).unwrap();
        assert!(asked <= NOW && asked + Duration::from_millis(16) > NOW, "{asked:?}");
        assert_eq!(found(key("k"), TERM.next(), 4_100), None);
        assert_eq!(found(key("k"), TERM, 10), None, "the node that leads says so itself");
        assert_eq!(found(key("other"), TERM.next(), 10), None);
        // Of a worker whose turn began a moment before.
        assert_eq!(
            gone.find(key("k"), TERM.next(), NOW - Duration::from_millis(500)),
            Some(NOW - Duration::from_millis(500))
        );
        assert_eq!(Gone::new().find(KeyId(0), TERM, Duration::ZERO), None, "nobody was told anything");
    }

    #[test]
    fn times_that_come_round_again_are_told_apart_for_a_quarter_of_an_hour() {
        let gone = Gone::new();
        gone.tell(key("k"), TERM, NOW);
        for secs in 5..1_000 {
            assert_eq!(gone.find(key("k"), TERM.next(), NOW + Duration::from_secs(secs)), None, "{secs}");
        }
    }

    #[test]
    fn a_later_key_takes_an_earlier_ones_place_and_no_other_is_forgotten() {
        let gone = Gone::new();
        let (one, other) = (KeyId(1 << 40 | 5), KeyId(2 << 40 | 5));
        gone.tell(one, TERM, NOW);
        gone.forget(other);
        assert!(gone.find(one, TERM.next(), NOW).is_some());
        gone.tell(other, TERM, NOW);
        assert!(gone.find(one, TERM.next(), NOW).is_none() && gone.find(other, TERM.next(), NOW).is_some());
        gone.forget(other);
        assert!(gone.find(other, TERM.next(), NOW).is_none());
    }

    #[test]
    fn sixty_thousand_keys_are_remembered_but_for_those_that_share_a_place() {
        let gone = Gone::new();
        let keys: Vec<KeyId> = (0..20_000).map(|i| key(&format!("user:{i}"))).collect();
        keys.iter().for_each(|&key| gone.tell(key, TERM, NOW));
        let found = keys.iter().filter(|&&key| gone.find(key, TERM.next(), NOW).is_some()).count();
        // By chance 1 - (1 - e^-x) / x of x = 20,000 / 65,536 are lost: 14 %.
        assert!((16_800..17_700).contains(&found), "{found}");
        let strangers = (0..200_000).filter(|i| gone.find(key(&format!("live:{i}")), TERM.next(), NOW).is_some());
        assert_eq!(strangers.count(), 0);
    }

    #[test]
    fn only_what_has_a_few_seconds_left_may_outlast_a_copy() {
        let after = |secs| NOW + Duration::from_secs(secs);
        let may = |ttl, secs| may_outlast(ttl, NOW, after(secs));
        assert!(may(0, 0) && may(6, 0) && may(3, 3) && may(2, 4));
        assert!(!may(7, 0) && !may(4, 3) && !may(3, 4) && !may(-1, 0));
        assert!(!may(crate::protocol::expiry::SHORT_SECS - 2, 0), "a dated item that was just written");
    }

    #[test]
    fn a_write_of_a_few_seconds_is_known_to_come_after_what_was_asked_before() {
        let mut written = WrittenBriefly::default();
        assert!(!written.since(5, NOW));
        written.note(5, NOW, false);
        let later = NOW + Duration::from_millis(500);
        assert!(written.since(5, NOW) && written.since(5, NOW - LASTS) && !written.since(5, later));
        assert!(!written.since(6, NOW - LASTS));
        // A turn of the worker that asked began a little later than the one in which it was noted.
        assert!(written.since(5, NOW + Duration::from_millis(50)));
    }

    #[test]
    fn an_item_of_one_second_takes_the_place_of_what_was_noted_before_it() {
        let mut written = WrittenBriefly::default();
        written.forget(5);
        written.note(5, NOW, false);
        // Another key of the same place.
        written.forget(5 + WRITTEN_PLACES as u32);
        assert!(written.since(5, NOW));
        written.forget(5);
        assert!(!written.since(5, NOW));
        // One that was sent behind it.
        written.note(5, NOW, true);
        written.forget(5);
        assert!(written.since(5, NOW));
    }
}
