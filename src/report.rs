//! The proxy's state, as plain data. Everything that shows it is rendered from here, for example
//! `resync status` and `stats` by [`lines`]. The control plane fills it in (`cluster/report.rs`),
//! with the words of `cluster/summary.rs`.

use std::net::SocketAddr;

use crate::ids::{Incarnation, Place};
use crate::pair::Reason;
use crate::stats::closings::Closed;
use crate::stats::requests::{Asked, Came};
use crate::stats::{LATENCY_BUCKETS, Latencies};

pub mod figures;
pub mod gathered;
pub mod items;
pub mod json;
pub mod lines;
pub mod metrics;
pub mod names;
pub mod seen;
pub mod since;
pub mod statistics;
pub mod traffic;
mod value;
pub mod verdict;

#[derive(Clone, Debug)]
pub struct Report {
    /// `--resync`: `auto`, `manual`, `off`.
    pub mode: &'static str,
    /// Every item is known to have two copies, and every server is up.
    pub mirrored: bool,
    /// Why that is not so, a sentence each; few, however many pairs there are.
    pub obstacles: Vec<String>,
    /// Keys known to have one copy.
    pub copies_missing: usize,
    /// Pairs in which there are more of them, of which nothing else is known.
    pub pairs_missing_unknown: usize,
    /// Every word that a pair's state can be.
    pub pair_words: [&'static str; 5],
    /// All pairs, also those that never get a key.
    pub pairs: Vec<PairReport>,
    /// Primaries first, in the order given.
    pub nodes: Vec<NodeReport>,
    pub yielding: YieldReport,
    pub verify: VerifyReport,
    pub process: ProcessReport,
    /// Summed over the workers, since the start or `stats reset`. The names are memcached's where
    /// it has them.
    pub counters: Vec<(&'static str, u64)>,
    /// The counters since the start, whatever was reset.
    pub totals: Vec<(&'static str, u64)>,
    /// What clients asked for and what came of it, since the start; what never happened is left
    /// out.
    pub requests: Vec<(Asked, Came, u64)>,
    /// How long clients' requests took since the start.
    pub waits: Vec<(Asked, LatencyReport)>,
    /// How long nodes took to answer since the start.
    pub latency: LatencyReport,
    /// `flush_all` commands that wait for their time.
    pub delayed_flushes: usize,
    /// How often a late node was waited for longer, and given up after that, since the start or
    /// `stats reset`.
    pub late_together: u64,
    pub late_given_up: u64,
    /// Connections that ended at listeners that are not clients', since the process began.
    pub closed: Vec<Closed>,
    /// The last changes, the newest first.
    pub changes: Vec<ChangeReport>,
    pub lost_items: LostItemsReport,
}

/// Items of which no copy was left when their pair got a leader.
#[derive(Clone, Copy, Default, Debug)]
pub struct LostItemsReport {
    /// Of late: pairs that began empty.
    pub pairs_empty: usize,
    /// Of late: pairs that went on without some keys.
    pub pairs_partial: usize,
    /// This many of these keys are known.
    pub keys: usize,
    /// There were more.
    pub more: bool,
    /// When it last happened; `None`: not of late.
    pub seconds_ago: Option<u64>,
    /// All three since the start.
    pub pairs_empty_total: u64,
    pub pairs_partial_total: u64,
    pub keys_total: u64,
}

/// Something that has happened to a server, or to pairs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeReport {
    /// Seconds since 1970.
    pub unix_time: u64,
    /// Of the server or pair; of the first of several pairs.
    pub name: String,
    pub what: String,
    pub reason: Reason,
}

impl Report {
    /// Since the start.
    fn total(&self, name: &str) -> u64 {
        self.totals.iter().find(|(counter, _)| *counter == name).map_or(0, |(_, value)| *value)
    }

    /// Some keys are not refused.
    pub fn serves(&self) -> bool {
        self.pairs.iter().any(|pair| pair.used && pair.leader.is_some())
    }
}

#[derive(Clone, Debug)]
pub struct PairReport {
    /// `PRIMARY|BACKUP`.
    pub name: String,
    /// False: its servers are no key's two owners.
    pub used: bool,
    pub state: &'static str,
    /// The address of the node that leads.
    pub leader: Option<String>,
    pub reason: Reason,
    pub for_seconds: u64,
    /// Keys known to have one copy.
    pub copies_missing: usize,
    /// There are more of them.
    pub missing_unknown: bool,
    /// Of a pair in which somebody leads alone, or was the last to: the keys of which the other one
    /// is known to have missed a write; `None`: it counts as having missed all.
    pub missed: Option<Option<usize>>,
}

#[derive(Clone, Debug)]
pub struct NodeReport {
    /// As it was given on the command line.
    pub addr: String,
    pub place: Place,
    pub state: &'static str,
    pub reason: Reason,
    /// In use: its last probe was answered, and its health counts as good.
    pub up: bool,
    pub resync: ResyncReport,
    /// Of a node that was given by name.
    pub address: Option<AddressReport>,
    /// Another proxy works on it.
    pub foreign: bool,
    /// How often another proxy was noticed on it.
    pub foreign_sessions: u64,
    pub incarnation: Option<Incarnation>,
    pub version: Option<String>,
    /// Workers' connections.
    pub connections: u64,
    /// Those that it refused while others stood, since the start.
    pub refused: u64,
    /// Commands unanswered on them.
    pub in_flight: u64,
    /// Commands sent on them since the start.
    pub sent: u64,
    /// How long it took to answer since the start.
    pub latency: LatencyReport,
    /// How much it holds, if it was asked of late.
    pub held: Option<HeldReport>,
    pub losses: u64,
    pub losses_by_reason: Vec<(Reason, u64)>,
    pub for_seconds: u64,
}

/// What a server says of its memory.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HeldReport {
    /// The proxy's own few among them.
    pub items: u64,
    pub bytes: u64,
    pub bytes_max: u64,
    pub evictions: u64,
}

/// Where a name leads.
#[derive(Clone, Copy, Debug)]
pub struct AddressReport {
    /// In use.
    pub at: Option<SocketAddr>,
    /// Where look-ups lead while the proxy stays at the old one.
    pub elsewhere: Option<SocketAddr>,
}

/// A node's refill: the one under way, or else the last one.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResyncReport {
    /// `running`, `trickle`, `none`, or how the last one ended.
    pub word: &'static str,
    /// `full`, `partial`, `compare`, `adopt`, `none`.
    pub kind: &'static str,
    pub total: u64,
    pub copied: u64,
    pub skipped: u64,
    pub failed: u64,
    pub bytes: u64,
    pub adopted: u64,
    pub evicted: u64,
    pub elapsed_ms: u64,
    /// 0: not known.
    pub eta_seconds: u64,
    /// Some source has not listed its keys yet: the total is not all.
    pub lists: bool,
}

impl ResyncReport {
    /// Items copied a second, since it began.
    pub fn rate(&self) -> u64 {
        if self.elapsed_ms == 0 { 0 } else { (self.copied as f64 * 1000.0 / self.elapsed_ms as f64).round() as u64 }
    }
}

/// How hard resyncs may work, for clients' sake.
#[derive(Clone, Copy, Debug)]
pub struct YieldReport {
    pub state: &'static str,
    pub percent: u32,
}

/// `resync verify`: the one under way, or else the last one.
#[derive(Clone, Copy, Debug)]
pub struct VerifyReport {
    pub state: &'static str,
    pub checked: u64,
    pub different: u64,
    pub repaired: u64,
    pub failed: u64,
    pub pairs_left: u64,
    pub ended_seconds_ago: u64,
    /// Of all pairs that hold keys, the one whose copies were found equal longest ago: when that
    /// was, seconds since 1970. `None`: there is one of which they never were.
    pub all_compared_at: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct ProcessReport {
    pub pid: u32,
    pub uptime_seconds: u64,
    pub uptime_ms: u64,
    /// Now, and when it was started: seconds since 1970.
    pub unix_time: u64,
    pub started_unix_time: u64,
    pub version: &'static str,
    /// What it has used of the processors, in microseconds.
    pub user_us: u64,
    pub system_us: u64,
    pub threads: usize,
    pub max_clients: usize,
}

/// Buckets of waiting times, as [`crate::stats::Latencies`] counts them.
#[derive(Clone, Debug, Default)]
pub struct LatencyReport {
    /// The least time of each bucket in microseconds, and how many answers took at least that, and
    /// less than the next.
    pub buckets: Vec<(u64, u64)>,
    /// All times together, microseconds.
    pub sum_us: u64,
}

impl LatencyReport {
    /// Of several workers.
    pub fn of<'a>(all: impl Iterator<Item = &'a Latencies>) -> LatencyReport {
        let (mut counts, mut sum_us) = ([0; LATENCY_BUCKETS], 0);
        for one in all {
            one.add_to(&mut counts);
            sum_us += one.sum_us();
        }
        let buckets = counts.into_iter().enumerate().map(|(at, count)| (Latencies::least(at), count)).collect();
        LatencyReport { buckets, sum_us }
    }

    /// All of them together.
    pub fn sum<'a>(all: impl Iterator<Item = &'a LatencyReport>) -> LatencyReport {
        let mut sum = LatencyReport::of(std::iter::empty());
        for one in all {
            sum.sum_us += one.sum_us;
            sum.buckets.iter_mut().zip(&one.buckets).for_each(|((_, sum), (_, count))| *sum += count);
        }
        sum
    }

    /// In microseconds, the bucket's upper end: within this time this many of a hundred answers
    /// came. 0: none came.
    pub fn percentile_us(&self, percent: u64) -> u64 {
        let all: u64 = self.buckets.iter().map(|(_, count)| count).sum();
        let wanted = (all * percent).div_ceil(100);
        let mut seen = 0;
        for (at, (least, count)) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return self.buckets.get(at + 1).map_or(*least, |(next, _)| *next);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_upper_end_of_its_bucket() {
        let latency = LatencyReport { buckets: vec![(0, 0), (1, 98), (2, 1), (4, 1), (8, 0)], sum_us: 0 };
        assert_eq!([50, 98, 99, 100].map(|percent| latency.percentile_us(percent)), [2, 2, 4, 8]);
        assert_eq!(LatencyReport::default().percentile_us(99), 0);
        assert_eq!(LatencyReport { buckets: vec![(0, 0), (1, 0)], sum_us: 0 }.percentile_us(50), 0);
    }

    #[test]
    fn a_resync_that_has_just_begun_has_no_rate() {
        assert_eq!(ResyncReport { copied: 7, ..ResyncReport::default() }.rate(), 0);
        assert_eq!(ResyncReport { copied: 7, elapsed_ms: 2000, ..ResyncReport::default() }.rate(), 4);
    }
}
