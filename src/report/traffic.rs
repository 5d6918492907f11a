//! What the proxy and its servers are asked, and how long it takes: printed as `stats traffic`, and
//! taken apart again. What was counted between two of them makes rates. Pure.

use std::collections::BTreeMap;

use super::lines::Lines;
use super::{LatencyReport, Report};
use crate::protocol::statistics::Stats;
use crate::stats::Latencies;

const UPTIME: &str = "uptime_ms";
const CLIENTS: &str = "clients";
const CLIENTS_MAX: &str = "clients_max";

impl Report {
    /// What never happened is left out.
    pub fn stats_traffic(&self) -> Lines {
        let mut out = Lines::default();
        out.put(UPTIME, self.process.uptime_ms);
        out.put(CLIENTS, self.total("curr_connections"));
        out.put(CLIENTS_MAX, self.process.max_clients);
        for (asked, came, count) in &self.requests {
            out.put(format_args!("command:{}:{}", asked.text(), came.text()), count);
        }
        for (asked, latency) in &self.waits {
            latency.put(&mut out, &format!("command:{}", asked.text()));
        }
        for node in &self.nodes {
            out.put(format_args!("server:{}:sent", node.addr), node.sent);
            node.latency.put(&mut out, &format!("server:{}", node.addr));
        }
        out
    }
}

impl LatencyReport {
    fn put(&self, out: &mut Lines, name: &str) {
        for (least, count) in self.buckets.iter().filter(|(_, count)| *count > 0) {
            out.put(format_args!("{name}:us:{least}"), count);
        }
    }
}

/// A command, or a server.
#[derive(Clone, Default, Debug)]
pub struct Line {
    /// By what came of it; of a server what was sent to it.
    pub counts: BTreeMap<String, u64>,
    /// Answers by the least time of their bucket, in microseconds.
    waits: BTreeMap<u64, u64>,
}

impl Line {
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    pub fn count(&self, result: &str) -> u64 {
        self.counts.get(result).copied().unwrap_or(0)
    }

    /// Within this time this many of a hundred answers came; `None`: none came.
    pub fn percentile_us(&self, percent: u64) -> Option<u64> {
        let mut latency = LatencyReport::of(std::iter::empty());
        self.waits.iter().for_each(|(least, count)| latency.buckets[Latencies::bucket(*least)].1 += count);
        (!self.waits.is_empty()).then(|| latency.percentile_us(percent))
    }

    /// See [`Traffic::hits`].
    pub fn hits(&self) -> Option<f64> {
        percent(self.count("hit"), self.count("miss"))
    }

    fn since(&self, before: Option<&Line>) -> Line {
        let Some(before) = before else { return self.clone() };
        Line { counts: difference(&self.counts, &before.counts), waits: difference(&self.waits, &before.waits) }
    }
}

/// What has become more.
fn difference<K: Ord + Clone>(now: &BTreeMap<K, u64>, before: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    let more = |(name, count): (&K, &u64)| {
        let more = count.saturating_sub(before.get(name).copied().unwrap_or(0));
        (more > 0).then(|| (name.clone(), more))
    };
    now.iter().filter_map(more).collect()
}

/// See the module's words. Since the start, or between two looks.
#[derive(Clone, Default, Debug)]
pub struct Traffic {
    pub span_ms: u64,
    pub clients: u64,
    pub clients_max: u64,
    pub commands: BTreeMap<String, Line>,
    pub servers: BTreeMap<String, Line>,
}

impl Traffic {
    /// From the answer to `stats traffic`.
    pub fn of(stats: &Stats) -> Option<Traffic> {
        let mut traffic = Traffic::default();
        let mut known = false;
        for (name, value) in stats {
            let value: u64 = value.parse().ok()?;
            match name.split_once(':') {
                _ if name == UPTIME => (traffic.span_ms, known) = (value, true),
                _ if name == CLIENTS => traffic.clients = value,
                _ if name == CLIENTS_MAX => traffic.clients_max = value,
                Some((kind @ ("command" | "server"), rest)) => {
                    let (name, field) = rest.rsplit_once(':')?;
                    let lines = if kind == "command" { &mut traffic.commands } else { &mut traffic.servers };
                    match name.strip_suffix(":us") {
                        Some(name) => {
                            lines.entry(name.to_owned()).or_default().waits.insert(field.parse().ok()?, value)
                        }
                        None => lines.entry(name.to_owned()).or_default().counts.insert(field.to_owned(), value),
                    };
                }
                _ => {}
            }
        }
        known.then_some(traffic)
    }

    /// What was counted since `before`; everything, if the proxy has been started since.
    pub fn since(&self, before: &Traffic) -> Traffic {
        if before.span_ms > self.span_ms {
            return self.clone();
        }
        let lines = |now: &BTreeMap<String, Line>, before: &BTreeMap<String, Line>| {
            now.iter().map(|(name, line)| (name.clone(), line.since(before.get(name)))).collect()
        };
        Traffic {
            span_ms: self.span_ms - before.span_ms,
            commands: lines(&self.commands, &before.commands),
            servers: lines(&self.servers, &before.servers),
            ..*self
        }
    }

    /// This many of them a second.
    pub fn rate(&self, count: u64) -> f64 {
        count as f64 * 1000.0 / self.span_ms.max(1) as f64
    }

    /// Requests of all commands.
    pub fn requests(&self) -> u64 {
        self.commands.values().map(Line::total).sum()
    }

    /// Of all commands, those that came to this.
    pub fn came(&self, result: &str) -> u64 {
        self.commands.values().map(|line| line.count(result)).sum()
    }

    /// Percent of the keys asked for that were found; `None`: none were asked for.
    pub fn hits(&self) -> Option<f64> {
        percent(self.came("hit"), self.came("miss"))
    }
}

fn percent(hits: u64, misses: u64) -> Option<f64> {
    (hits + misses > 0).then(|| hits as f64 * 100.0 / (hits + misses) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::seen::stats;

    fn traffic(lines: &str) -> Option<Traffic> {
        Traffic::of(&stats(lines))
    }

    #[test]
    fn rates_are_what_was_counted_between_two_looks() {
        let before = traffic("uptime_ms 1000\ncommand:get:hit 100\ncommand:get:us:64 100\nserver:[::1]:7:sent 5");
        let now = "uptime_ms 3000
            clients 7
            clients_max 9
            command:get:hit 190
            command:get:miss 10
            command:get:us:64 100
            command:get:us:128 100
            command:set:stored 50
            server:[::1]:7:sent 205
            server:[::1]:7:us:8 3";
        let (before, now) = (before.expect("known"), traffic(now).expect("known"));
        let since = now.since(&before);
        assert_eq!((since.span_ms, since.clients, since.clients_max), (2000, 7, 9));
        assert_eq!((since.requests(), since.rate(since.requests()), since.hits()), (150, 75.0, Some(90.0)));
        let get = &since.commands["get"];
        assert_eq!((get.percentile_us(50), get.percentile_us(99)), (Some(160), Some(160)), "the bucket's upper end");
        let all = now.commands["get"].percentile_us(50);
        assert_eq!((all, since.commands["set"].percentile_us(50)), (Some(80), None));
        let server = &since.servers["[::1]:7"];
        assert_eq!((server.total(), server.percentile_us(99)), (200, Some(10)));
        assert_eq!(before.since(&now).requests(), 100, "it was started anew");
    }

    #[test]
    fn what_no_proxy_of_ours_says_is_nothing() {
        for lines in ["", "pid 1", "uptime_ms x", "uptime_ms 1\ncommand:get 1", "uptime_ms 1\nserver:a:us:x 1"] {
            assert!(traffic(lines).is_none(), "{lines}");
        }
    }
}
