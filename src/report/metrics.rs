//! The report for Prometheus, in its text format 0.0.4. `docs/monitoring.md` explains each metric,
//! and `tests/it/documents.rs` holds the two against each other.
//!
//! Every name begins with `resilver_`, times are seconds, sizes bytes. Labels name servers,
//! commands and reasons, never keys: how many series there are follows from the servers alone.

use std::fmt::{self, Display, Formatter};

use crate::ids::Place;
use crate::stats::closings::Closed;
use crate::stats::requests::Family;

use super::{HeldReport, LatencyReport, NodeReport, Report};

/// The ends of Prometheus' buckets, each the end of an internal one: they double from 64 us to a
/// second, then 4 s.
const BOUNDS_US: [u64; 16] = [
    64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576, 4_194_304,
];

/// What this proxy is among those over the same servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    pub role: &'static str,
    /// It is the one that may act, at this moment.
    pub lease_held: bool,
}

impl Standing {
    /// There are no others.
    pub const SINGLE: Standing = Standing { role: "single", lease_held: false };
}

/// What is known beside the reports.
#[derive(Clone, Debug)]
pub struct Around {
    pub standing: Standing,
    pub closed: Vec<Closed>,
    pub process: Process,
}

/// One of the process's pools.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// Stands in a label, where it has one.
    pub pool: Option<&'a str>,
    /// `None`: its control plane does not answer.
    pub report: Option<&'a Report>,
    /// Bytes of `--client-memory` in use, and there.
    pub client_memory: (u64, u64),
}

/// What the system knows of the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    pub resident_bytes: u64,
    pub open_files: u64,
    pub open_files_max: u64,
    pub threads: u64,
    pub log_lines_lost: u64,
}

/// A label's name and value.
type Label<'a> = (&'static str, &'a str);

/// A metric, with its series of all pools.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    series: Vec<Series>,
}

/// One line of a metric.
struct Series {
    /// What stands behind the metric's name: `_bucket`, `_sum` and `_count` of a histogram.
    suffix: &'static str,
    labels: Vec<(&'static str, String)>,
    value: String,
}

/// What is shown, under construction. Prometheus refuses a metric whose series stand apart, so each
/// is kept once, in the order in which they were begun.
#[derive(Default)]
struct Metrics {
    all: Vec<Metric>,
    /// The one that was begun last.
    at: usize,
    /// In the labels of each series that is put.
    pool: Option<String>,
}

impl Metrics {
    /// What is put from now on belongs to this metric: a new one, or another pool's.
    fn begin(&mut self, name: &'static str, kind: &'static str, help: &'static str) {
        self.at = self.all.iter().position(|known| known.name == name).unwrap_or(self.all.len());
        if self.at == self.all.len() {
            self.all.push(Metric { name, kind, help, series: Vec::new() });
        }
    }

    fn sample(&mut self, suffix: &'static str, labels: &[Label<'_>], value: impl Display) {
        let Some(metric) = self.all.get_mut(self.at) else { return };
        let pool = self.pool.as_deref().map(|pool| ("pool", pool));
        let labels = pool.iter().chain(labels).map(|(name, value)| (*name, (*value).to_owned())).collect();
        metric.series.push(Series { suffix, labels, value: value.to_string() });
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, value: impl Display) {
        self.begin(name, "gauge", help);
        self.sample("", &[], value);
    }

    fn counter(&mut self, name: &'static str, help: &'static str, value: impl Display) {
        self.begin(name, "counter", help);
        self.sample("", &[], value);
    }

    fn histogram(&mut self, labels: &[Label<'_>], latency: &LatencyReport) {
        let all: u64 = latency.buckets.iter().map(|(_, count)| count).sum();
        for bound in BOUNDS_US {
            let within: u64 = latency.buckets.iter().take_while(|(least, _)| *least < bound).map(|(_, n)| n).sum();
            let bound = seconds(bound).to_string();
            self.sample("_bucket", &[labels, &[("le", &bound)]].concat(), within);
        }
        self.sample("_bucket", &[labels, &[("le", "+Inf")]].concat(), all);
        self.sample("_sum", labels, seconds(latency.sum_us));
        self.sample("_count", labels, all);
    }
}

impl Display for Metrics {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for Metric { name, kind, help, series } in &self.all {
            writeln!(f, "# HELP resilver_{name} {help}\n# TYPE resilver_{name} {kind}")?;
            for Series { suffix, labels, value } in series {
                write!(f, "resilver_{name}{suffix}")?;
                for (at, (label, value)) in labels.iter().enumerate() {
                    write!(f, "{}{label}=\"{}\"", if at == 0 { '{' } else { ',' }, escaped(value))?;
                }
                writeln!(f, "{} {value}", if labels.is_empty() { "" } else { "}" })?;
            }
        }
        Ok(())
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// Quotes, backslashes and ends of lines may stand in a label's value only behind a backslash.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What `/metrics` shows of a proxy of a fleet that does not serve by itself now. (Were it an
/// error, it would look as if the process were down.) `ready`: its clients are served all the same.
pub fn of_one_that_waits(role: &'static str, ready: bool, closed: &[Closed]) -> String {
    let mut out = Metrics::default();
    put_standing(&mut out, Standing { role, lease_held: false });
    put_ready(&mut out, ready);
    put_closed(&mut out, closed);
    out.to_string()
}

fn put_standing(out: &mut Metrics, standing: Standing) {
    out.begin("role", "gauge", "1; what this proxy is among those over the same servers.");
    out.sample("", &[("role", standing.role)], 1);
    let help = "1 while it leads a fleet of proxies; a single one needs no lease.";
    out.gauge("lease_held", help, u8::from(standing.lease_held));
}

fn put_closed(out: &mut Metrics, closed: &[Closed]) {
    let help = "Connections closed at the admin listener, the admin socket, the peer listener, by reason.";
    out.begin("listener_closed_total", "counter", help);
    for Closed { listener, reason, count } in closed {
        out.sample("", &[("listener", listener), ("reason", reason)], count);
    }
}

fn put_ready(out: &mut Metrics, ready: bool) {
    let help = "1 if it can serve: some pair has a server that leads; a standby: the active proxy is reached.";
    out.gauge("ready", help, u8::from(ready));
}

/// What `/metrics` shows of all pools: each metric once, with a series of each of them.
pub fn metrics(pools: &[Shown<'_>], around: &Around) -> String {
    let mut out = Metrics::default();
    let first = pools.iter().find_map(|shown| shown.report);
    if let Some(report) = first {
        report.put_build(&mut out);
    }
    for shown in pools {
        out.pool = shown.pool.map(str::to_owned);
        match shown.report {
            Some(report) => report.put_pool(&mut out, around.standing, shown.client_memory),
            None => put_ready(&mut out, false),
        }
    }
    out.pool = None;
    if let Some(report) = first {
        report.put_process(&mut out, around);
    }
    out.to_string()
}

impl Report {
    fn put_pool(&self, out: &mut Metrics, standing: Standing, client_memory: (u64, u64)) {
        self.put_proxy(out, standing);
        self.put_copies_and_pairs(out);
        self.put_clients(out, client_memory);
        self.put_requests(out);
        self.put_servers(out);
        self.put_resyncs(out);
        self.put_repairs(out);
    }

    fn put_build(&self, out: &mut Metrics) {
        out.begin("build_info", "gauge", "1; the proxy's version, and the memcached whose protocols it speaks.");
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("memcached", self.process.version)];
        out.sample("", &labels, 1);
    }

    fn put_proxy(&self, out: &mut Metrics, standing: Standing) {
        put_standing(out, standing);
        out.gauge("uptime_seconds", "Since it was started.", self.process.uptime_seconds);
        put_ready(out, self.serves());
    }

    fn put_copies_and_pairs(&self, out: &mut Metrics) {
        out.gauge("mirrored", "1 if every item is known to have two copies.", u8::from(self.mirrored));
        out.gauge("obstacles", "What keeps it from being mirrored, see resync status.", self.obstacles.len());
        out.gauge("copies_missing", "Keys known to have one copy.", self.copies_missing);
        out.gauge("copies_missing_unknown_pairs", "Pairs with more such keys.", self.pairs_missing_unknown);
        let lost = &self.lost_items;
        let help = "Pairs that got a leader when no copy was left on either server: what they held is lost.";
        out.counter("pairs_begun_empty_total", help, lost.pairs_empty_total);
        let help = "Pairs that got a leader without keys of which no other copy was left.";
        out.counter("pairs_begun_partial_total", help, lost.pairs_partial_total);
        out.counter("keys_lost_total", "Keys of these that are known.", lost.keys_total);
        out.begin("pairs", "gauge", "Pairs of servers that hold keys, by state.");
        let used = || self.pairs.iter().filter(|pair| pair.used);
        for word in self.pair_words {
            out.sample("", &[("state", word)], used().filter(|pair| pair.state == word).count());
        }
        out.gauge("pairs_unused", "Pairs that never get a key.", self.pairs.len() - used().count());
        out.begin("pair_not_mirrored", "gauge", "1 for each pair that is not mirrored: its state and why.");
        for pair in used().filter(|pair| pair.state != self.pair_words[0]) {
            let reason = pair.reason.to_string();
            out.sample("", &[("pair", &pair.name), ("state", pair.state), ("reason", &reason)], 1);
        }
        out.gauge(
            "missed_keys",
            "Keys of which a server that is away, or being filled, is known to have missed a write.",
            used().filter_map(|pair| pair.missed.flatten()).sum::<usize>(),
        );
        out.gauge(
            "missed_everything_pairs",
            "Pairs whose other server counts as having missed everything.",
            used().filter(|pair| pair.missed == Some(None)).count(),
        );
    }

    fn put_clients(&self, out: &mut Metrics, client_memory: (u64, u64)) {
        out.gauge("clients", "Client connections now.", self.total("curr_connections"));
        out.gauge("clients_max", "Client connections allowed, -n.", self.process.max_clients);
        out.counter("clients_accepted_total", "Client connections taken.", self.total("total_connections"));
        out.counter("clients_refused_total", "Client connections refused for -n.", self.total("rejected_connections"));
        out.begin("clients_closed_total", "counter", "Client connections closed, by reason.");
        for (name, count) in &self.totals {
            if let Some(reason) = name.strip_prefix("closed_") {
                out.sample("", &[("reason", reason)], count);
            }
        }
        out.counter("client_received_bytes_total", "Bytes from clients.", self.total("bytes_read"));
        out.counter("client_sent_bytes_total", "Bytes to clients.", self.total("bytes_written"));
        let (used, there) = client_memory;
        out.gauge("client_memory_bytes", "Requests and answers of clients in memory, beside 64 KiB for each.", used);
        out.gauge("client_memory_max_bytes", "--client-memory.", there);
    }

    fn put_requests(&self, out: &mut Metrics) {
        out.begin(
            "requests_total",
            "counter",
            "Requests answered (each key of a get is one), by command and result; those that occurred.",
        );
        for (asked, came, count) in &self.requests {
            out.sample("", &[("command", asked.text()), ("result", came.text())], count);
        }
        out.counter("get_hits_total", "Keys asked for and found.", self.total("get_hits"));
        out.counter("get_misses_total", "Keys asked for and not found.", self.total("get_misses"));
        out.counter("server_errors_total", "Requests that the proxy itself refused.", self.total("server_errors"));
        out.begin("request_seconds", "histogram", "From when a client's request was begun to when it was answered.");
        for family in Family::ALL {
            let of = self.waits.iter().filter(|(asked, _)| asked.family() == *family).map(|(_, latency)| latency);
            out.histogram(&[("kind", family.text())], &LatencyReport::sum(of));
        }
    }

    fn put_servers(&self, out: &mut Metrics) {
        let mut each = |name, kind, help, put: &dyn Fn(&mut Metrics, &NodeReport)| {
            out.begin(name, kind, help);
            self.nodes.iter().for_each(|node| put(out, node));
        };
        each("server_up", "gauge", "1 if the server answers and is in use.", &|out, node| {
            out.sample("", &[("server", &node.addr), ("place", place(node))], u8::from(node.up));
        });
        each("server_state", "gauge", "1; the server's state and why.", &|out, node| {
            let reason = node.reason.to_string();
            let labels =
                [("server", node.addr.as_str()), ("place", place(node)), ("state", node.state), ("reason", &reason)];
            out.sample("", &labels, 1);
        });
        each("server_info", "gauge", "1; the server's version, and where its name leads.", &|out, node| {
            let address = node.address.and_then(|address| address.at).map_or(String::new(), |at| at.to_string());
            let version = node.version.as_deref().unwrap_or("unknown");
            out.sample("", &[("server", &node.addr), ("version", version), ("address", &address)], 1);
        });
        each("server_state_seconds", "gauge", "Since the server was lost, or came back.", &|out, node| {
            out.sample("", &[("server", &node.addr)], node.for_seconds);
        });
        each("server_lost_total", "counter", "Times that the server was lost, by reason.", &|out, node| {
            for (reason, count) in &node.losses_by_reason {
                out.sample("", &[("server", &node.addr), ("reason", &reason.to_string())], count);
            }
        });
        each("server_foreign_session", "gauge", "1 if another proxy works on the server.", &|out, node| {
            out.sample("", &[("server", &node.addr)], u8::from(node.foreign));
        });
        each("server_connections", "gauge", "Workers' connections to the server.", &|out, node| {
            out.sample("", &[("server", &node.addr)], node.connections);
        });
        let refused = "Connections that the server has refused (its -c) while others stood.";
        each("server_connections_refused_total", "counter", refused, &|out, node| {
            out.sample("", &[("server", &node.addr)], node.refused);
        });
        each("server_in_flight", "gauge", "Commands that the server has not answered.", &|out, node| {
            out.sample("", &[("server", &node.addr)], node.in_flight);
        });
        each("server_commands_total", "counter", "Commands, and keys of gets, sent to the server.", &|out, node| {
            out.sample("", &[("server", &node.addr)], node.sent);
        });
        let mut held = |name, kind, help, value: &dyn Fn(&HeldReport) -> u64| {
            each(name, kind, help, &|out, node| {
                if let Some(held) = &node.held {
                    out.sample("", &[("server", &node.addr)], value(held));
                }
            });
        };
        held("server_items", "gauge", "Items that the server holds.", &|held| held.items);
        held("server_memory_bytes", "gauge", "Bytes that they take.", &|held| held.bytes);
        held("server_memory_max_bytes", "gauge", "Bytes that the server may use, -m.", &|held| held.bytes_max);
        held("server_evictions_total", "counter", "Items that the server evicted since its start.", &|held| {
            held.evictions
        });
        each("server_seconds", "histogram", "How long the server took, once for each read from it.", &|out, node| {
            out.histogram(&[("server", &node.addr)], &node.latency);
        });
        out.counter(
            "servers_late_together_total",
            "Late servers waited for, as others were late too.",
            self.late_together,
        );
        out.counter("servers_late_given_up_total", "Times that this was in vain.", self.late_given_up);
    }

    fn put_resyncs(&self, out: &mut Metrics) {
        let mut each = |name, help, value: &dyn Fn(&NodeReport) -> f64| {
            out.begin(name, "gauge", help);
            for node in &self.nodes {
                out.sample("", &[("server", &node.addr)], value(node));
            }
        };
        let runs = |node: &NodeReport| ["running", "trickle"].contains(&node.resync.word);
        each("resync_running", "1 while the server is being filled.", &|node| f64::from(u8::from(runs(node))));
        each("resync_items", "Items to copy, as far as they are listed.", &|node| node.resync.total as f64);
        each("resync_done_items", "Items copied, or not needed.", &|node| {
            (node.resync.copied + node.resync.skipped) as f64
        });
        each("resync_failed_items", "Items that the server refused.", &|node| node.resync.failed as f64);
        each("resync_copied_bytes", "Bytes of the values copied.", &|node| node.resync.bytes as f64);
        each("resync_items_per_second", "Items copied a second.", &|node| node.resync.rate() as f64);
        each("resync_remaining_items", "Items left of those listed.", &|node| match runs(node) {
            true => node.resync.total.saturating_sub(node.resync.copied + node.resync.skipped) as f64,
            false => 0.0,
        });
        each("resync_eta_seconds", "Time left at that rate; NaN if unknown, 0 if none runs.", &|node| match (
            runs(node),
            node.resync.eta_seconds,
        ) {
            (true, 0) => f64::NAN,
            (true, eta) => eta as f64,
            (false, _) => 0.0,
        });
        each("resync_elapsed_seconds", "Since it began, or that the last one took.", &|node| {
            node.resync.elapsed_ms as f64 / 1000.0
        });
        let ratio = f64::from(self.yielding.percent) / 100.0;
        out.gauge("resync_work_ratio", "How hard resyncs may work for clients' sake; 1 is as hard as they can.", ratio);
    }

    fn put_repairs(&self, out: &mut Metrics) {
        out.counter("diverged_total", "Writes whose two copies answered differently.", self.total("diverged"));
        out.counter("repaired_total", "Keys made equal again after that.", self.total("repaired"));
        out.counter("repair_failed_total", "Times that they could not be.", self.total("repair_failed"));
        let verify = &self.verify;
        let runs = u8::from(verify.state == "running");
        out.gauge("verify_running", "1 while copies are compared (resync verify).", runs);
        out.gauge("verify_checked_keys", "Keys compared by this verify, or the last.", verify.checked);
        out.gauge("verify_different_keys", "Of these, keys whose copies differed.", verify.different);
        out.gauge("verify_repaired_keys", "Of these, keys made equal again.", verify.repaired);
        out.gauge("verify_failed_keys", "Of these, keys that could not be.", verify.failed);
        out.gauge("verify_left_pairs", "Pairs not compared to the end.", verify.pairs_left);
        // By pairs, for a verify may be of one server, or be cancelled, or leave a pair that
        // broke.
        out.gauge(
            "verify_last_done_timestamp_seconds",
            "Since then the copies of every pair were compared and found, or made, equal; 0 if those of one never were.",
            verify.all_compared_at.unwrap_or(0),
        );
        out.gauge("delayed_flushes", "flush_all commands that wait for their time.", self.delayed_flushes);
    }

    fn put_process(&self, out: &mut Metrics, around: &Around) {
        put_closed(out, &around.closed);
        let process = &around.process;
        let used = seconds(self.process.user_us + self.process.system_us);
        out.counter("process_cpu_seconds_total", "Processor time of all threads.", used);
        out.gauge("process_resident_memory_bytes", "Memory in use.", process.resident_bytes);
        out.gauge("process_open_fds", "Open files and sockets.", process.open_files);
        out.gauge("process_max_fds", "The limit of that.", process.open_files_max);
        out.gauge("process_threads", "Threads.", process.threads);
        let help = "Lines of the log that could not be written.";
        out.counter("process_log_lines_lost_total", help, process.log_lines_lost);
        let started = self.process.started_unix_time;
        out.gauge("process_start_time_seconds", "When it was started, seconds since 1970.", started);
    }
}

fn place(node: &NodeReport) -> &'static str {
    match node.place {
        Place::Primary => "primary",
        Place::Backup => "backup",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_what_came_within_each_bound() {
        let mut out = Metrics::default();
        out.begin("x_seconds", "histogram", "Help.");
        let latency = LatencyReport { buckets: vec![(10, 3), (64, 2), (1 << 20, 1), (1 << 23, 1)], sum_us: 2_500_000 };
        out.histogram(&[("server", "a\"b\\c")], &latency);
        let text = out.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["# HELP resilver_x_seconds Help.", "# TYPE resilver_x_seconds histogram"]);
        let with = |line: &str| lines.iter().filter(|l| l.starts_with(line)).count();
        for line in [
            r#"resilver_x_seconds_bucket{server="a\"b\\c",le="0.000064"} 3"#,
            r#"resilver_x_seconds_bucket{server="a\"b\\c",le="0.000128"} 5"#,
            r#"resilver_x_seconds_bucket{server="a\"b\\c",le="1.048576"} 5"#,
            r#"resilver_x_seconds_bucket{server="a\"b\\c",le="4.194304"} 6"#,
            r#"resilver_x_seconds_bucket{server="a\"b\\c",le="+Inf"} 7"#,
            r#"resilver_x_seconds_sum{server="a\"b\\c"} 2.5"#,
            r#"resilver_x_seconds_count{server="a\"b\\c"} 7"#,
        ] {
            assert_eq!(with(line), 1, "{line}: {text}");
        }
        assert_eq!(lines.len(), 2 + BOUNDS_US.len() + 3);
    }

    /// Prometheus refuses a metric whose series stand apart, or that is explained twice.
    #[test]
    fn a_metric_of_several_pools_stands_in_one_place() {
        let mut all = Metrics::default();
        for (pool, value) in [("a", 1), ("b", 2)] {
            all.pool = Some(pool.to_owned());
            all.gauge("x", "Help.", value);
            all.begin("y_total", "counter", "Help.");
            all.sample("", &[("server", "s")], value);
        }
        all.pool = Some("c".to_owned());
        all.gauge("x", "Help.", 0);
        let x =
            "# HELP resilver_x Help.\n# TYPE resilver_x gauge\nresilver_x{pool=\"a\"} 1\nresilver_x{pool=\"b\"} 2\n";
        let y = "resilver_x{pool=\"c\"} 0\n# HELP resilver_y_total Help.\n# TYPE resilver_y_total counter\n";
        let rest = "resilver_y_total{pool=\"a\",server=\"s\"} 1\nresilver_y_total{pool=\"b\",server=\"s\"} 2\n";
        assert_eq!(all.to_string(), format!("{x}{y}{rest}"));
    }
}
