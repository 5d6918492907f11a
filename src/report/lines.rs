//! `STAT` lines, under the names by which `resilver wait` and others read them.

use std::collections::HashMap;
use std::fmt::Display;

use bytes::Bytes;

use super::names::{INCARNATION, LOST_ITEMS, MIRRORED, MODE, OBSTACLE, PLACE, READY, ROLE, STATE};
use super::seen::Seen;
use super::{NodeReport, PairReport, Report};
use crate::protocol::statistics::{Stats, Written};
use crate::stats::closings::Closed;

/// Lines under construction.
#[derive(Default)]
pub struct Lines {
    all: Stats,
    /// Of what the servers say.
    places: HashMap<String, usize>,
}

impl Lines {
    /// Behind what the servers say. What is put under one of these names stands in its place.
    pub fn over(servers: Stats) -> Lines {
        let places = servers.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        Lines { all: servers, places }
    }

    pub fn put(&mut self, name: impl Display, value: impl Display) {
        let name = name.to_string();
        match self.places.get(&name) {
            Some(at) => self.all[*at].1 = value.to_string(),
            None => self.all.push((name, value.to_string())),
        }
    }

    /// `stats proxy` of one that is none of several.
    pub fn of_proxy(role: &str, ready: bool) -> Lines {
        let mut out = Lines::default();
        out.put(ROLE, role);
        out.put(READY, u8::from(ready));
        out
    }

    /// As a client is told them.
    pub fn end(self) -> Bytes {
        self.written().end()
    }

    /// The same, in front of a list that is written already.
    pub fn before(self, list: &[u8]) -> Bytes {
        self.written().ended_by(list)
    }

    fn written(self) -> Written {
        let mut out = Written::default();
        self.all.iter().for_each(|(name, value)| out.put(name, value));
        out
    }
}

impl Report {
    /// Everything of it, as `resilver status` sees it, but for what servers say of themselves.
    pub fn seen(&self) -> Option<Seen> {
        let own = self.stats(Vec::new(), (0, 0));
        Seen::of([self.resync_status(false), own, self.stats_servers()].map(|lines| lines.all))
    }

    /// `all`: also the pairs that never get a key.
    pub fn resync_status(&self, all: bool) -> Lines {
        let mut out = Lines::default();
        out.put(MODE, self.mode);
        out.put(MIRRORED, u8::from(self.mirrored));
        self.put_copies(&mut out);
        out.put("pairs_unused", self.unused());
        if let Some(seconds) = self.lost_items.seconds_ago {
            let lost = &self.lost_items;
            out.put(format_args!("{LOST_ITEMS}pairs_empty"), lost.pairs_empty);
            out.put(format_args!("{LOST_ITEMS}pairs_partial"), lost.pairs_partial);
            out.put(format_args!("{LOST_ITEMS}keys"), lost.keys);
            out.put(format_args!("{LOST_ITEMS}keys_unknown"), u8::from(lost.more));
            out.put(format_args!("{LOST_ITEMS}seconds_ago"), seconds);
        }
        for (number, obstacle) in self.obstacles.iter().enumerate() {
            out.put(format_args!("{OBSTACLE}{}", number + 1), obstacle);
        }
        self.pairs.iter().filter(|pair| all || pair.used).for_each(|pair| pair.put(&mut out));
        self.nodes.iter().for_each(|node| node.put_resync(&mut out));
        out.put("yield:state", self.yielding.state);
        out.put("yield:percent", self.yielding.percent);
        out.put("verify:state", self.verify.state);
        for (name, value) in [
            ("checked", self.verify.checked),
            ("different", self.verify.different),
            ("repaired", self.verify.repaired),
            ("failed", self.verify.failed),
            ("pairs_left", self.verify.pairs_left),
            ("ended_seconds_ago", self.verify.ended_seconds_ago),
        ] {
            out.put(format_args!("verify:{name}"), value);
        }
        out
    }

    /// `servers`: what those that lead say, as many as `asked` and not so many as `silent`.
    pub fn stats(&self, servers: Stats, (asked, silent): (usize, usize)) -> Lines {
        let mut out = Lines::over(servers);
        out.put("pid", self.process.pid);
        out.put("uptime", self.process.uptime_seconds);
        out.put("time", self.process.unix_time);
        out.put("version", self.process.version);
        out.put("resilver_version", env!("CARGO_PKG_VERSION"));
        out.put("pointer_size", usize::BITS);
        out.put("threads", self.process.threads);
        out.put("max_connections", self.process.max_clients);
        out.put("rusage_user", seconds(self.process.user_us));
        out.put("rusage_system", seconds(self.process.system_us));
        out.put("accepting_conns", 1);
        out.put("auth_cmds", 0);
        out.put("auth_errors", 0);
        for (name, value) in &self.counters {
            out.put(name, value);
        }
        for Closed { listener, reason, count } in &self.closed {
            out.put(format_args!("{listener}_closed_{reason}"), count);
        }
        out.put("node_latency_p50_us", self.latency.percentile_us(50));
        out.put("node_latency_p99_us", self.latency.percentile_us(99));
        let used = || self.pairs.iter().filter(|pair| pair.used);
        for word in self.pair_words {
            out.put(format_args!("pairs_{word}"), used().filter(|pair| pair.state == word).count());
        }
        let unlisted = used().filter(|pair| pair.reason == crate::pair::Reason::CannotEnumerate).count();
        out.put("pairs_cannot_enumerate", unlisted);
        out.put("pairs_unused", self.unused());
        self.put_copies(&mut out);
        out.put("nodes_foreign_session", self.nodes.iter().filter(|node| node.foreign).count());
        out.put("pairs_begun_empty", self.lost_items.pairs_empty_total);
        out.put("pairs_begun_partial", self.lost_items.pairs_partial_total);
        out.put("keys_lost", self.lost_items.keys_total);
        out.put("delayed_flushes", self.delayed_flushes);
        out.put("nodes_up", self.nodes.iter().filter(|node| node.up).count());
        out.put("nodes_lost", self.nodes.iter().filter(|node| !node.up).count());
        out.put("late_together", self.late_together);
        out.put("late_given_up", self.late_given_up);
        out.put("servers_asked", asked);
        out.put("servers_not_asked", silent);
        out
    }

    pub fn stats_servers(&self) -> Lines {
        let mut out = Lines::default();
        self.nodes.iter().for_each(|node| node.put_server(&mut out));
        out
    }

    /// Where a key belongs: `stats key KEY`.
    pub fn stats_key(&self, key: &str, pair: usize) -> Lines {
        let mut out = Lines::default();
        out.put("key", key);
        if let Some(pair) = self.pairs.get(pair) {
            out.put("pair", &pair.name);
            pair.put(&mut out);
        }
        out
    }

    fn unused(&self) -> usize {
        self.pairs.iter().filter(|pair| !pair.used).count()
    }

    fn put_copies(&self, out: &mut Lines) {
        out.put("copies_missing", self.copies_missing);
        out.put("pairs_missing_unknown", self.pairs_missing_unknown);
    }
}

impl PairReport {
    fn put(&self, out: &mut Lines) {
        let name = &self.name;
        out.put(format_args!("pair:{name}:{STATE}"), self.state);
        out.put(format_args!("pair:{name}:leader"), self.leader.as_deref().unwrap_or("none"));
        out.put(format_args!("pair:{name}:reason"), self.reason);
        out.put(format_args!("pair:{name}:for_seconds"), self.for_seconds);
        // "0 known" would read as a promise that there are none.
        if let Some(missed) = self.missed.filter(|missed| *missed != Some(0)) {
            out.put(format_args!("pair:{name}:missed"), missed.map_or("all".to_owned(), |keys| keys.to_string()));
        }
        if self.copies_missing > 0 || self.missing_unknown {
            out.put(format_args!("pair:{name}:copies_missing"), self.copies_missing);
            out.put(format_args!("pair:{name}:missing_unknown"), u8::from(self.missing_unknown));
        }
    }
}

impl NodeReport {
    fn put_resync(&self, out: &mut Lines) {
        let (addr, resync) = (&self.addr, &self.resync);
        out.put(format_args!("node:{addr}:{STATE}"), self.state);
        out.put(format_args!("node:{addr}:reason"), self.reason);
        out.put(format_args!("node:{addr}:resync"), resync.word);
        out.put(format_args!("node:{addr}:kind"), resync.kind);
        for (name, value) in [
            ("items_total", resync.total),
            ("items_copied", resync.copied),
            ("items_skipped", resync.skipped),
            ("items_failed", resync.failed),
            ("bytes", resync.bytes),
            ("rate", resync.rate()),
            ("eta_seconds", resync.eta_seconds),
        ] {
            out.put(format_args!("node:{addr}:{name}"), value);
        }
        out.put(format_args!("node:{addr}:listing"), u8::from(resync.lists));
        let elapsed = format_args!("{}.{:03}", resync.elapsed_ms / 1000, resync.elapsed_ms % 1000);
        out.put(format_args!("node:{addr}:elapsed_seconds"), elapsed);
        out.put(format_args!("node:{addr}:items_adopted"), resync.adopted);
        out.put(format_args!("node:{addr}:items_evicted"), resync.evicted);
    }

    fn put_server(&self, out: &mut Lines) {
        let addr = &self.addr;
        out.put(format_args!("{addr}:{PLACE}"), self.place);
        out.put(format_args!("{addr}:{STATE}"), self.state);
        out.put(format_args!("{addr}:reason"), self.reason);
        if let Some(address) = &self.address {
            out.put(format_args!("{addr}:address"), or_none(address.at));
            out.put(format_args!("{addr}:leads_elsewhere"), or_none(address.elsewhere));
        }
        out.put(format_args!("{addr}:foreign_sessions"), self.foreign_sessions);
        out.put(format_args!("{addr}:{INCARNATION}"), or_none(self.incarnation));
        out.put(format_args!("{addr}:version"), self.version.as_deref().unwrap_or("unknown"));
        out.put(format_args!("{addr}:connections"), self.connections);
        out.put(format_args!("{addr}:connections_refused"), self.refused);
        out.put(format_args!("{addr}:in_flight"), self.in_flight);
        if let Some(held) = &self.held {
            out.put(format_args!("{addr}:items"), held.items);
            out.put(format_args!("{addr}:bytes"), held.bytes);
            out.put(format_args!("{addr}:bytes_max"), held.bytes_max);
            out.put(format_args!("{addr}:evictions"), held.evictions);
        }
        out.put(format_args!("{addr}:lost"), self.losses);
        for (reason, count) in &self.losses_by_reason {
            out.put(format_args!("{addr}:lost_{reason}"), count);
        }
        out.put(format_args!("{addr}:for_seconds"), self.for_seconds);
    }
}

/// Seconds with six decimals, as memcached has them.
fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

fn or_none(value: Option<impl Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}
