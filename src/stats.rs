//! Counters. Each worker has its own; readers add them up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why connections end: reasons with two texts each, in the order of the definition.
macro_rules! reasons {
    ($(#[$of:meta])* $seen:vis enum $name:ident { $($(#[$doc:meta])* $why:ident = $first:literal, $second:literal;)* }) => {
        $(#[$of])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        $seen enum $name {
            $($(#[$doc])* $why,)*
        }

        impl $name {
            const ALL: &'static [$name] = &[$($name::$why,)*];

            const fn texts(self) -> (&'static str, &'static str) {
                match self {
                    $($name::$why => ($first, $second),)*
                }
            }
        }
    };
}
pub(crate) use reasons;

pub mod closings;
pub mod requests;

use requests::Requests;

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Default, Debug)]
        #[repr(align(128))] // a cache line pair of its own, so that workers do not slow each other
        pub struct $name {
            $($(#[$field_doc])* pub $field: AtomicU64,)*
            /// By node.
            pub nodes: Vec<NodeStats>,
            pub requests: Requests,
        }

        impl $name {
            /// Every counter's name and value, in the order of the definition.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                let under = |name, counted: &AtomicU64| (name, counted.load(Relaxed) + self.requests.under(name));
                vec![$(under(stringify!($field), &self.$field),)*]
            }
        }
    };
}

counters! {
    /// One worker's counters, under memcached's names where it has them. What `requests` counts of
    /// classic commands is not counted here as well, see [`WorkerStats::all`].
    WorkerStats {
        /// Client connections open now.
        curr_connections,
        /// Client connections ever accepted.
        total_connections,
        /// Client connections refused because of `--max-clients`.
        rejected_connections,
        /// Clients that have closed their connection, or broken it.
        closed_by_client,
        /// Clients that have said `quit`.
        closed_quit,
        /// Clients closed for `--idle-timeout`.
        closed_idle,
        /// Clients closed for `--max-clients`.
        closed_too_many,
        /// Clients closed because there was no memory for their line.
        closed_no_memory,
        /// Clients closed because they speak TLS.
        closed_tls,
        /// Because they speak HTTP.
        closed_http,
        /// Because they speak Redis's protocol.
        closed_redis,
        /// Because of a line too long that is no get.
        closed_long_line,
        /// Because of a header of the binary protocol that cannot be.
        closed_bad_header,
        /// Because this process ends.
        closed_shutdown,
        /// Keys asked for by get and gets.
        cmd_get,
        /// Storage commands.
        cmd_set,
        /// touch, gat, gats, and what has given a new time by mg.
        cmd_touch,
        /// delete commands.
        cmd_delete,
        /// incr and decr.
        cmd_arithmetic,
        /// flush_all commands.
        cmd_flush,
        /// Commands of the meta protocol.
        cmd_meta,
        /// delete commands of keys that were there.
        delete_hits,
        /// And of others.
        delete_misses,
        /// incr commands, likewise.
        incr_hits,
        /// Likewise.
        incr_misses,
        /// decr commands, likewise.
        decr_hits,
        /// Likewise.
        decr_misses,
        /// cas commands that stored.
        cas_hits,
        /// Of keys that were not there.
        cas_misses,
        /// Of items that were changed since.
        cas_badval,
        /// touch, gat, gats of keys that were there.
        touch_hits,
        /// And of others.
        touch_misses,
        /// Items above the limit.
        store_too_large,
        /// Items that found no memory.
        store_no_memory,
        /// Keys found.
        get_hits,
        /// Keys not found.
        get_misses,
        /// Bytes from clients.
        bytes_read,
        /// Bytes to clients.
        bytes_written,
        /// Requests refused because they are at fault.
        client_errors,
        /// Requests answered with `SERVER_ERROR` by the proxy itself.
        server_errors,
        /// Writes whose two copies answered differently.
        diverged,
        /// Keys whose copies were made equal again after that.
        repaired,
        /// Keys that could not be: the follower holds nothing of them.
        repair_failed,
    }
}

/// One worker's gauges of a node.
#[derive(Default, Debug)]
pub struct NodeStats {
    /// Connections open.
    pub connections: AtomicU64,
    /// Connections that it refused while another one stood.
    pub refused: AtomicU64,
    /// Commands unanswered.
    pub in_flight: AtomicU64,
    /// Commands sent.
    pub sent: AtomicU64,
    /// How long it took to answer.
    pub latencies: Latencies,
}

/// Buckets of [`Latencies`]: the last one begins at 14 s.
pub const LATENCY_BUCKETS: usize = 96;

/// How long answers took: four buckets for each doubling, from 1 microsecond on. Of a node there is
/// one sample for each read from it, the oldest command that it answers: what the governor of the
/// resyncs needs, for one store a turn.
#[derive(Debug)]
pub struct Latencies {
    counts: [AtomicU64; LATENCY_BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

impl Latencies {
    /// Counts one answer.
    #[inline(always)]
    pub(crate) fn add(&self, us: u64) {
        add(&self.counts[Latencies::bucket(us)], 1);
        add(&self.sum_us, us);
    }

    /// The same for a time of an hour at most, of which nobody asks whether it is 1 microsecond or
    /// 7.
    #[inline(always)]
    pub(crate) fn add_coarsely(&self, us: u32) {
        let at_least = us.max(4);
        let doubling = at_least.ilog2();
        let bucket = (doubling - 1) * 4 + (at_least >> (doubling - 2) & 3);
        add(&self.counts[(bucket as usize).min(LATENCY_BUCKETS - 1)], 1);
        add(&self.sum_us, us.into());
    }

    /// Adds what was counted since the start to `sum`.
    pub(crate) fn add_to(&self, sum: &mut [u64; LATENCY_BUCKETS]) {
        self.counts.iter().zip(sum).for_each(|(count, sum)| *sum += count.load(Relaxed));
    }

    /// All times together, microseconds.
    pub(crate) fn sum_us(&self) -> u64 {
        self.sum_us.load(Relaxed)
    }

    /// The least time that belongs to a bucket.
    pub(crate) fn least(bucket: usize) -> u64 {
        if bucket < 8 {
            return bucket as u64;
        }
        (4 + bucket as u64 % 4) << (bucket / 4 - 1)
    }

    /// Where a time belongs.
    pub(crate) fn bucket(us: u64) -> usize {
        if us < 4 {
            return us as usize;
        }
        let doubling = us.ilog2();
        let quarter = us >> (doubling - 2) & 3;
        ((doubling as usize - 1) * 4 + quarter as usize).min(LATENCY_BUCKETS - 1)
    }
}

/// A worker is the only writer of its counters, so a plain load and store does what a locked add
/// would.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

impl WorkerStats {
    /// Zeroes, for a worker with connections to `nodes` nodes.
    pub fn new(nodes: usize) -> WorkerStats {
        WorkerStats { nodes: (0..nodes).map(|_| NodeStats::default()).collect(), ..WorkerStats::default() }
    }

    /// Keys found, and not found.
    pub(crate) fn hits_and_misses(&self) -> (u64, u64) {
        let under = |name, counted: &AtomicU64| counted.load(Relaxed) + self.requests.under(name);
        (under("get_hits", &self.get_hits), under("get_misses", &self.get_misses))
    }

    /// Adds how often all nodes took how long to `sum`.
    pub(crate) fn add_latencies(&self, sum: &mut [u64; LATENCY_BUCKETS]) {
        self.nodes.iter().for_each(|node| node.latencies.add_to(sum));
    }

    pub(crate) fn read(&self, hit: bool) {
        add(if hit { &self.get_hits } else { &self.get_misses }, 1);
    }

    pub(crate) fn refused(&self) {
        add(&self.server_errors, 1);
    }

    pub(crate) fn diverged(&self) {
        add(&self.diverged, 1);
    }

    pub(crate) fn repaired(&self) {
        add(&self.repaired, 1);
    }

    pub(crate) fn repair_failed(&self) {
        add(&self.repair_failed, 1);
    }

    pub(crate) fn connected(&self) {
        add(&self.curr_connections, 1);
        add(&self.total_connections, 1);
    }

    pub(crate) fn disconnected(&self) {
        self.curr_connections.store(self.curr_connections.load(Relaxed).saturating_sub(1), Relaxed);
    }

    pub(crate) fn rejected(&self) {
        add(&self.rejected_connections, 1);
    }

    pub(crate) fn took(&self, bytes: usize) {
        add(&self.bytes_read, bytes as u64);
    }

    pub(crate) fn gave(&self, bytes: usize) {
        add(&self.bytes_written, bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_grow_by_quarters_of_a_doubling() {
        let at: Vec<usize> = [0, 3, 4, 7, 8, 10, 15, 16, 1 << 20].into_iter().map(Latencies::bucket).collect();
        assert_eq!(at, [0, 3, 4, 7, 8, 9, 11, 12, 76]);
        assert_eq!(Latencies::bucket(u64::MAX), LATENCY_BUCKETS - 1);
        for bucket in (0..LATENCY_BUCKETS).filter(|bucket| !(4..8).contains(bucket) || *bucket == 4) {
            assert_eq!(Latencies::bucket(Latencies::least(bucket)), bucket);
        }
        for us in (4..10_000).chain([1 << 20, u32::MAX]) {
            let latencies = Latencies::default();
            latencies.add_coarsely(us);
            let mut counts = [0; LATENCY_BUCKETS];
            latencies.add_to(&mut counts);
            assert_eq!((counts[Latencies::bucket(us.into())], latencies.sum_us()), (1, us.into()), "{us}");
        }
        for us in 1..10_000 {
            assert!(Latencies::bucket(us) >= Latencies::bucket(us - 1));
        }
    }
}
