//! Whether a node's hash table is about to grow, or grows.
//!
//! When that begins, memcached stops all its threads for a moment, one after another, and its
//! crawler by a lock that a worker takes to begin a dump. If both happen at the same time, the two
//! wait for each other, and the server never answers again (1.6.18: 1 of 100 servers that were
//! asked repeatedly while their table began to grow; by its source up to 1.6.45). Before 1.6.28 a
//! dump also waits until the table has grown, and blocks a worker meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::statistics;

/// With room for the second that a full table stays as it is on a slow machine.
pub(super) const GROWS_WITHIN: Duration = Duration::from_secs(3);

/// What is known of it during one enumeration.
#[derive(Default)]
pub(super) struct Table {
    /// Since when it is full. It begins to grow within a second of the last item, unless it may not
    /// (`-o no_hashexpand`), or no other comes.
    full_since: Option<Instant>,
}

impl Table {
    /// `stats`: what the node tells of itself now.
    pub(super) fn may_be_walked(&mut self, stats: &[(String, String)], now: Instant) -> bool {
        let number = |name: &str| statistics::number(stats, name).unwrap_or(0);
        if number("hash_is_expanding") != 0 {
            self.full_since = None;
            return false;
        }
        let room = 1u64.checked_shl(number("hash_power_level") as u32).unwrap_or(0) / 2 * 3;
        // What is stored between this look and the dump fits into the fiftieth.
        if room == 0 || number("curr_items") <= room - room / 50 {
            self.full_since = None;
            return true;
        }
        now >= *self.full_since.get_or_insert(now) + GROWS_WITHIN
    }
}
