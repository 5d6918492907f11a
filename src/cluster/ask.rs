//! What operators ask over the text protocol: `stats`, `resync`, `flush_all`.

use std::fmt::{Display, Write};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::config::ResyncMode;
use crate::ids::{NodeId, PairId, Place};
use crate::pair::{self, Reason, State};
use crate::proxy::{ClientKey, Question};
use crate::resync::Fill;
use crate::ring::Distribution;

use super::Cluster;
use super::jobs::{seconds, sums};
use super::summary::{NodeFacts, PAIR_WORDS, PairFacts, Summary};

/// Who asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) worker: u16,
    pub(super) client: ClientKey,
    pub(super) slot: u64,
}

/// `STAT` lines under construction.
#[derive(Default)]
struct Stats(String);

impl Stats {
    fn put(&mut self, name: impl Display, value: impl Display) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "STAT {name} {value}\r\n");
    }

    fn end(mut self) -> Bytes {
        self.0.push_str("END\r\n");
        Bytes::from(self.0)
    }
}

fn client_error(what: impl Display) -> Bytes {
    Bytes::from(format!("CLIENT_ERROR {what}\r\n"))
}

const OK: Bytes = Bytes::from_static(b"OK\r\n");

impl Cluster {
    pub(super) fn asked(&mut self, asker: Asker, question: Question) {
        let answer = match question {
            Question::FlushAll { delay } => return self.flush_all(asker, delay),
            Question::Stats(args) => match args.as_str() {
                "" => self.stats_general(),
                "servers" => self.stats_servers(),
                "resync" => self.resync_status(false),
                "settings" => self.stats_settings(),
                "reset" => self.stats_reset(),
                // memcached's own answer, which some test suites look for.
                "noreply" => Bytes::from_static(b"ERROR\r\n"),
                other => client_error(format_args!(
                    "stats {other}: unknown; known are: stats, stats servers, stats resync, stats settings, stats reset"
                )),
            },
            Question::Resync(args) => self.resync_asked(&args),
        };
        self.answer(asker, answer);
    }

    fn resync_asked(&mut self, args: &str) -> Bytes {
        let mut words = args.split_ascii_whitespace();
        let (first, second, third) = (words.next(), words.next(), words.next());
        if third.is_some() {
            return client_error(
                "resync: too many words; try resync, resync <host:port>, resync status [all], resync verify [<host:port>], resync cancel [<host:port>], resync lead <host:port>",
            );
        }
        match (first, second) {
            (Some("status"), None) => self.resync_status(false),
            (Some("status"), Some("all")) => self.resync_status(true),
            (Some("status"), Some(word)) => client_error(format_args!(
                "resync status: unexpected word {word}; try resync status, or resync status all"
            )),
            _ if !self.topology.has_backups() => {
                client_error("resync: there are no backups (-b), so there is nothing to refill from")
            }
            (None, _) => {
                for node in self.topology.nodes() {
                    self.ask_refill(node);
                }
                OK
            }
            (Some("verify"), name) => {
                let node = match name.map(|name| self.topology.node_by_name(name).ok_or(name)) {
                    None => None,
                    Some(Ok(node)) => Some(node),
                    Some(Err(name)) => return self.unknown_node(name),
                };
                match self.begin_verify(node) {
                    Ok(()) => OK,
                    Err(why) => client_error(format_args!("resync verify: {why}")),
                }
            }
            (Some("cancel"), None) => {
                self.cancel_verify();
                for node in self.topology.nodes() {
                    self.cancel_job(node);
                }
                OK
            }
            (Some("cancel"), Some(name)) => match self.topology.node_by_name(name) {
                Some(node) if self.cancel_job(node) => OK,
                Some(_) => client_error(format_args!("resync cancel: no resync of {name} is under way")),
                None => self.unknown_node(name),
            },
            (Some("lead"), None) => client_error("resync lead: which server? resync lead <host:port>"),
            (Some("lead"), Some(name)) => match self.topology.node_by_name(name) {
                Some(node) => self.promote(node, name),
                None => self.unknown_node(name),
            },
            (Some(name), None) => match self.topology.node_by_name(name) {
                Some(node) => self.distrust(node, name),
                None => self.unknown_node(name),
            },
            (Some(_), Some(word)) => client_error(format_args!("resync: unexpected word {word}")),
        }
    }

    fn unknown_node(&self, name: &str) -> Bytes {
        let known: Vec<String> = self.topology.nodes().map(|n| self.topology.addr(n).to_string()).collect();
        client_error(format_args!("resync: unknown node or word {name}; nodes are {}", known.join(" ")))
    }

    fn ask_refill(&mut self, node: NodeId) {
        let run = &mut self.nodes[node.index()];
        run.operator = true;
        run.cancelled = false;
        run.retry_pending = false;
        self.consider(node);
    }

    /// Refills a node in full, even if it seems fine.
    fn distrust(&mut self, node: NodeId, name: &str) -> Bytes {
        let place = self.topology.place(node);
        let leads_alone = |p: PairId| matches!(self.pairs[p.index()].pair.state(), State::Degraded { leader } | State::Recovering { leader } if leader == place);
        if self.topology.pairs_of(node).all(leads_alone) {
            return client_error(format_args!(
                "resync: {name} holds the only full copy of its keys, there is nothing to refill it from"
            ));
        }
        if self.topology.pairs_of(node).any(|p| self.pairs[p.index()].pair.is_foreign()) {
            return client_error("resync: another proxy works on these servers; stop one of the two first");
        }
        for pair in self.topology.pairs_of(node) {
            let run = &mut self.pairs[pair.index()];
            if matches!(run.pair.state(), State::Degraded { leader } if leader != place) {
                // In full, also where only a part was to be filled.
                run.missed.overflow();
                run.first_fill = None;
            }
            self.apply(pair, pair::Event::Distrust(place));
        }
        self.ask_refill(node);
        OK
    }

    /// The operator gives up what only the other nodes hold: this one leads its dark pairs with what it has.
    fn promote(&mut self, node: NodeId, name: &str) -> Bytes {
        let place = self.topology.place(node);
        let dark: Vec<PairId> = self
            .topology
            .pairs_of(node)
            .filter(|p| matches!(self.pairs[p.index()].pair.state(), State::Dark { .. }))
            .collect();
        let run = &self.nodes[node.index()];
        if dark.is_empty() {
            return client_error(format_args!("resync lead: {name} has no dark pair"));
        }
        if !run.health.is_up() || !run.is_drained() {
            return client_error(format_args!("resync lead: {name} does not answer, or has old commands to execute"));
        }
        if run.job.is_some() {
            return client_error(format_args!(
                "resync lead: what {name} holds is being changed by a resync; see resync status"
            ));
        }
        for pair in dark {
            tracing::error!(pair = %self.pair_name(pair), leader = name,
                "the operator makes a node lead with what it holds: writes that only the other node has are lost");
            let run = &mut self.pairs[pair.index()];
            run.undecided = false;
            run.first_fill = None;
            // The other one holds what this one never saw, and no list of it.
            run.missed.overflow();
            self.apply(pair, pair::Event::Promote(place));
        }
        OK
    }

    fn mode(&self) -> &'static str {
        match self.settings.resync {
            ResyncMode::Auto => "auto",
            ResyncMode::Manual => "manual",
            ResyncMode::Off => "off",
        }
    }

    /// What is known of a pair, for [`super::summary`].
    fn pair_facts(&self, id: PairId) -> PairFacts {
        let run = &self.pairs[id.index()];
        PairFacts {
            state: run.pair.state(),
            gate: run.pair.gate(),
            reason: run.pair.reason(),
            undecided: run.undecided,
            foreign: run.pair.is_foreign() || self.is_contested(id),
            missing: run.lone.len(),
            more: run.lone.has_more(),
            backup: self.topology.has_backups(),
            recorded: self.marked(),
        }
    }

    fn node_facts(&self, node: NodeId) -> NodeFacts {
        let run = &self.nodes[node.index()];
        let place = self.topology.place(node);
        // Beside what it is to be filled with, what it was being filled with when its resync ended.
        let lacking = self.topology.pairs_of(node).find(|&p| self.lacks_refill(p, place));
        let filled = || run.job.as_ref().and_then(|job| job.pairs.first()).map(|(pair, _)| *pair);
        let needy = lacking.or_else(filled).map(|pair| self.pair_facts(pair).shown().reason);
        NodeFacts {
            up: run.health.is_up(),
            reason: run.reason,
            foreign: run.foreign.is_contested(),
            job: run.job.as_ref().map(|job| job.progress.phase()),
            drained: run.is_drained(),
            needy: needy.filter(|_| lacking.is_some() || run.job.is_some()),
        }
    }

    fn used_pairs(&self) -> impl Iterator<Item = PairId> {
        self.topology.pairs().filter(|&pair| self.topology.pair_is_used(pair))
    }

    fn summary(&self) -> Summary {
        let names: Vec<(String, PairFacts)> =
            self.used_pairs().map(|pair| (self.pair_name(pair), self.pair_facts(pair))).collect();
        let nodes: Vec<(String, NodeFacts)> =
            self.topology.nodes().map(|node| (self.topology.addr(node).to_string(), self.node_facts(node))).collect();
        Summary::of(
            self.topology.has_backups(),
            self.flush.is_active(),
            names.iter().map(|(name, facts)| (name.as_str(), *facts)),
            nodes.iter().map(|(name, facts)| (name.as_str(), *facts)),
        )
    }

    /// Keys known to have one copy, and pairs in which there are more, of which nothing else is known.
    fn copies_missing(&self) -> [(&'static str, usize); 2] {
        let known = self.pairs.iter().map(|run| run.lone.len()).sum();
        let unknown = self.pairs.iter().filter(|run| run.lone.has_more()).count();
        [("copies_missing", known), ("pairs_missing_unknown", unknown)]
    }

    /// `all`: also the pairs that never get a key.
    fn resync_status(&self, all: bool) -> Bytes {
        let mut out = Stats::default();
        out.put("mode", self.mode());
        let summary = self.summary();
        out.put("mirrored", u8::from(summary.is_mirrored()));
        for (name, value) in self.copies_missing() {
            out.put(name, value);
        }
        out.put("pairs_unused", self.topology.pair_count() - self.used_pairs().count());
        for (number, obstacle) in summary.obstacles().enumerate() {
            out.put(format_args!("obstacle:{}", number + 1), obstacle);
        }
        for id in self.topology.pairs().filter(|&pair| all || self.topology.pair_is_used(pair)) {
            let run = &self.pairs[id.index()];
            let name = self.pair_name(id);
            let leader = run.pair.state().leader().map(|p| self.node_at(id, p));
            let shown = self.pair_facts(id).shown();
            out.put(format_args!("pair:{name}:state"), shown.state);
            match leader {
                Some(node) => out.put(format_args!("pair:{name}:leader"), self.topology.addr(node)),
                None => out.put(format_args!("pair:{name}:leader"), "none"),
            }
            out.put(format_args!("pair:{name}:reason"), shown.reason);
            out.put(format_args!("pair:{name}:for_seconds"), seconds(run.since));
            if run.lone.has_more() || !run.lone.is_empty() {
                out.put(format_args!("pair:{name}:copies_missing"), run.lone.len());
                out.put(format_args!("pair:{name}:missing_unknown"), u8::from(run.lone.has_more()));
            }
        }
        for node in self.topology.nodes() {
            let run = &self.nodes[node.index()];
            let addr = self.topology.addr(node);
            let shown = self.node_facts(node).shown();
            out.put(format_args!("node:{addr}:state"), shown.state);
            out.put(format_args!("node:{addr}:reason"), shown.reason);
            let (progress, elapsed, end) = match (&run.job, &run.last) {
                (Some(job), _) => {
                    let word = if job.progress.trickles() { "trickle" } else { "running" };
                    (Some(&job.progress), job.progress.elapsed(), word)
                }
                (None, Some(last)) => (Some(&last.progress), last.elapsed, last.end),
                (None, None) => (None, Duration::ZERO, "none"),
            };
            out.put(format_args!("node:{addr}:resync"), end);
            let fill = run.job.as_ref().map(|job| job.fill).or(run.last.as_ref().map(|last| last.fill));
            out.put(format_args!("node:{addr}:kind"), fill.map_or("none", Fill::word));
            for (name, value) in sums(progress.map(|p| &**p)) {
                out.put(format_args!("node:{addr}:{name}"), value);
            }
            let copied = progress.map_or(0, |p| p.sum(|p| &p.copied)) as f64;
            let rate = if elapsed.is_zero() { 0.0 } else { copied / elapsed.as_secs_f64() };
            out.put(format_args!("node:{addr}:rate"), rate.round() as u64);
            let eta = run.job.as_ref().and_then(|job| job.progress.eta()).unwrap_or_default();
            out.put(format_args!("node:{addr}:eta_seconds"), eta.as_secs());
            out.put(format_args!("node:{addr}:elapsed_seconds"), format_args!("{:.3}", elapsed.as_secs_f64()));
            out.put(format_args!("node:{addr}:items_adopted"), progress.map_or(0, |p| p.sum(|p| &p.adopted)));
            out.put(format_args!("node:{addr}:items_evicted"), progress.map_or(0, |p| p.incomplete()));
        }
        let (word, percent) = self.yielding();
        out.put("yield:state", word);
        out.put("yield:percent", percent);
        for (name, value) in self.verify_lines() {
            out.put(format_args!("verify:{name}"), value);
        }
        out.end()
    }

    /// Every counter, summed over the workers.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        let all: Vec<_> = self.stats.iter().map(|s| s.all()).collect();
        let names = all.first().map(Vec::as_slice).unwrap_or_default();
        names.iter().enumerate().map(|(at, (name, _))| (*name, all.iter().map(|c| c[at].1).sum())).collect()
    }

    fn stats_reset(&mut self) -> Bytes {
        self.stats_base = self.counters().into_iter().map(|(_, value)| value).collect();
        Bytes::from_static(b"RESET\r\n")
    }

    fn stats_general(&self) -> Bytes {
        let mut out = Stats::default();
        let now = crate::ambient::unix_time().as_secs();
        out.put("pid", std::process::id());
        out.put("uptime", self.started.elapsed().as_secs());
        out.put("time", now);
        out.put("version", crate::proxy::VERSION_LINE.trim_start_matches("VERSION ").trim_end());
        out.put("pointer_size", usize::BITS);
        out.put("threads", self.workers.len());
        out.put("max_connections", self.settings.max_clients);
        for (at, (name, value)) in self.counters().into_iter().enumerate() {
            let base = if name == "curr_connections" { 0 } else { self.stats_base.get(at).copied().unwrap_or(0) };
            out.put(name, value.wrapping_sub(base));
        }
        let words: Vec<_> = self.used_pairs().map(|pair| self.pair_facts(pair).shown()).collect();
        for word in PAIR_WORDS {
            out.put(format_args!("pairs_{word}"), words.iter().filter(|shown| shown.state == word).count());
        }
        let unlisted = words.iter().filter(|shown| shown.reason == Reason::CannotEnumerate).count();
        out.put("pairs_cannot_enumerate", unlisted);
        out.put("pairs_unused", self.topology.pair_count() - words.len());
        for (name, value) in self.copies_missing() {
            out.put(name, value);
        }
        out.put("nodes_foreign_session", self.nodes.iter().filter(|n| n.foreign.is_contested()).count());
        out.put("delayed_flushes", self.flush.pending.len());
        out.put("nodes_up", self.nodes.iter().filter(|n| n.health.is_up()).count());
        out.put("nodes_lost", self.nodes.iter().filter(|n| !n.health.is_up()).count());
        out.end()
    }

    fn stats_servers(&self) -> Bytes {
        let mut out = Stats::default();
        for node in self.topology.nodes() {
            let run = &self.nodes[node.index()];
            let addr = self.topology.addr(node);
            out.put(format_args!("{addr}:place"), self.topology.place(node));
            let shown = self.node_facts(node).shown();
            out.put(format_args!("{addr}:state"), shown.state);
            out.put(format_args!("{addr}:reason"), shown.reason);
            if addr.host.parse::<std::net::IpAddr>().is_err() {
                let address = |at: Option<SocketAddr>| at.map_or_else(|| "none".to_owned(), |at| at.to_string());
                out.put(format_args!("{addr}:address"), address(self.address(node)));
                out.put(format_args!("{addr}:leads_elsewhere"), address(self.leads_elsewhere(node)));
            }
            out.put(format_args!("{addr}:foreign_sessions"), run.foreign.count);
            match run.incarnation {
                Some(incarnation) => out.put(format_args!("{addr}:incarnation"), incarnation),
                None => out.put(format_args!("{addr}:incarnation"), "none"),
            }
            out.put(format_args!("{addr}:version"), run.view.as_ref().map_or("unknown", |v| &v.version));
            let sum = |counter: fn(&crate::stats::NodeStats) -> u64| {
                self.stats.iter().map(|s| counter(&s.nodes[node.index()])).sum::<u64>()
            };
            out.put(
                format_args!("{addr}:connections"),
                sum(|n| n.connections.load(std::sync::atomic::Ordering::Relaxed)),
            );
            out.put(format_args!("{addr}:in_flight"), sum(|n| n.in_flight.load(std::sync::atomic::Ordering::Relaxed)));
            out.put(format_args!("{addr}:lost"), run.health.losses());
            for (reason, count) in &run.faults {
                out.put(format_args!("{addr}:lost_{reason}"), count);
            }
            out.put(format_args!("{addr}:for_seconds"), seconds(run.since));
        }
        out.end()
    }

    fn stats_settings(&self) -> Bytes {
        let s = &self.settings;
        let mut out = Stats::default();
        out.put("maxconns", s.max_clients);
        out.put("tcpport", s.listen.first().map_or(0, |a| a.port()));
        out.put("inter", s.listen.first().map_or("NULL".to_owned(), |a| a.ip().to_string()));
        out.put("domain_socket", s.unix_socket.as_ref().map_or("NULL".to_owned(), |p| p.display().to_string()));
        out.put("num_threads", s.threads);
        out.put("item_size_max", s.item_size_max);
        out.put("client_memory", s.client_memory);
        out.put("distribution", if s.distribution == Distribution::Ketama { "ketama" } else { "modula" });
        out.put("node_connections", s.node_connections);
        out.put("resync", self.mode());
        out.put("resync_rate", s.resync_rate.unwrap_or(0));
        out.put("resync_memory", s.resync_memory);
        out.put(
            "resync_latency",
            s.resync_latency.map_or("off".to_owned(), |time| humantime::format_duration(time).to_string()),
        );
        out.put("verify_rate", s.verify_rate.unwrap_or(0));
        out.put("timeout", humantime::format_duration(s.timeout));
        out.put("leader_timeout", humantime::format_duration(s.leader_timeout));
        out.put("leader_grace", humantime::format_duration(s.leader_grace));
        out.put("probe_interval", humantime::format_duration(s.probe_interval));
        out.put("probe_timeout", humantime::format_duration(s.probe_timeout));
        out.put("probe_successes", s.probe_successes);
        let primaries = self.topology.nodes().filter(|n| self.topology.place(*n) == Place::Primary).count();
        out.put("primaries", primaries);
        out.put("backups", self.topology.node_count() - primaries);
        out.end()
    }
}
