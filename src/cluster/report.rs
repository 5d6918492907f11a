//! [`Report`], filled in from what the control plane knows.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use tokio::time::Instant;

use crate::config::ResyncMode;
use crate::ids::{NodeId, PairId};
use crate::pair::State;
use crate::report::{
    AddressReport, LatencyReport, NodeReport, PairReport, ProcessReport, Report, ResyncReport, YieldReport,
};
use crate::resync::{Fill, Progress};
use crate::stats::NodeStats;
use crate::stats::closings;
use crate::stats::requests::{Asked, Came};

use super::Cluster;
use super::jobs::seconds;
use super::summary::{NodeFacts, PAIR_WORDS, PairFacts, Summary};

impl Cluster {
    pub(super) fn report(&self) -> Report {
        let pairs: Vec<(PairReport, PairFacts)> = self.topology.pairs().map(|pair| self.pair_report(pair)).collect();
        let nodes: Vec<(NodeReport, NodeFacts)> = self.topology.nodes().map(|node| self.node_report(node)).collect();
        let summary = Summary::of(
            self.topology.has_backups(),
            self.flush.is_active(),
            pairs.iter().filter(|(pair, _)| pair.used).map(|(pair, facts)| (pair.name.as_str(), *facts)),
            nodes.iter().map(|(node, facts)| (node.addr.as_str(), node.place, *facts)),
        );
        let pairs: Vec<PairReport> = pairs.into_iter().map(|(pair, _)| pair).collect();
        let (state, percent) = self.yielding();
        let totals = self.counters();
        let (late_together, late_given_up) = self.suspects.counters();
        let (user_us, system_us) = processor_time();
        Report {
            mode: self.mode(),
            mirrored: summary.is_mirrored(),
            obstacles: summary.obstacles().collect(),
            copies_missing: pairs.iter().map(|pair| pair.copies_missing).sum(),
            pairs_missing_unknown: pairs.iter().filter(|pair| pair.missing_unknown).count(),
            pair_words: PAIR_WORDS,
            pairs,
            nodes: nodes.into_iter().map(|(node, _)| node).collect(),
            yielding: YieldReport { state, percent },
            verify: self.verify_report(),
            process: ProcessReport {
                pid: std::process::id(),
                uptime_seconds: self.begun.at.elapsed().as_secs(),
                uptime_ms: self.begun.at.elapsed().as_millis() as u64,
                unix_time: crate::ambient::unix_time().as_secs(),
                started_unix_time: self.begun.date.as_secs(),
                version: crate::proxy::VERSION,
                user_us,
                system_us,
                threads: self.workers.len(),
                max_clients: self.settings.max_clients,
            },
            counters: self.operators.since_reset(&totals),
            totals,
            requests: self.requests(),
            waits: Asked::ALL.iter().map(|&asked| (asked, self.waits(asked))).collect(),
            latency: LatencyReport::of(self.stats.iter().flat_map(|s| &s.nodes).map(|node| &node.latencies)),
            delayed_flushes: self.delayed.pending().len(),
            late_together,
            late_given_up,
            closed: closings::closed(),
            changes: self.operators.changes.newest_first(),
            lost_items: self.lost_items.report(),
        }
    }

    fn pair_report(&self, id: PairId) -> (PairReport, PairFacts) {
        let run = &self.pairs[id];
        let facts = self.pair_facts(id);
        let shown = facts.shown();
        let (word, since) = run.word;
        let since = (word == shown.state).then(|| since.max(run.since));
        let leader = run.pair.state().leader().map(|place| self.node_at(id, place));
        let report = PairReport {
            name: self.pair_name(id),
            used: self.topology.pair_is_used(id),
            state: shown.state,
            leader: leader.map(|node| self.topology.addr(node).to_string()),
            reason: shown.reason,
            for_seconds: since.map_or(0, seconds),
            copies_missing: run.lone.len(),
            missing_unknown: self.lacks_more(id),
            missed: matches!(
                run.pair.state(),
                State::Degraded { .. } | State::Recovering { .. } | State::Dark { in_sync: Some(_), .. }
            )
            .then(|| (!run.missed.overflowed()).then(|| run.missed.len())),
        };
        (report, facts)
    }

    /// What contradicts a pair's state (another proxy, keys with one copy) comes and goes without a
    /// change of that state: at every tick.
    pub(super) fn note_word(&mut self, id: PairId) {
        let shown = self.pair_facts(id).shown().state;
        let word = &mut self.pairs[id].word;
        if word.0 != shown {
            *word = (shown, Instant::now());
        }
    }

    fn node_report(&self, node: NodeId) -> (NodeReport, NodeFacts) {
        let run = &self.nodes[node];
        let addr = self.topology.addr(node);
        let facts = self.node_facts(node);
        let shown = facts.shown();
        let named = addr.host.parse::<std::net::IpAddr>().is_err();
        let sum = |counter: fn(&NodeStats) -> u64| self.stats.iter().map(|s| counter(&s.nodes[node.index()])).sum();
        let report = NodeReport {
            addr: addr.to_string(),
            place: self.topology.place(node),
            state: shown.state,
            reason: shown.reason,
            up: run.health.is_up(),
            resync: self.resync_report(node),
            address: named.then(|| AddressReport { at: self.address(node), elsewhere: self.leads_elsewhere(node) }),
            foreign: run.foreign.is_contested(),
            foreign_sessions: run.foreign.count,
            incarnation: run.incarnation,
            version: run.view.as_ref().map(|view| view.version.clone()),
            connections: sum(|n| n.connections.load(Relaxed)),
            refused: sum(|n| n.refused.load(Relaxed)),
            in_flight: sum(|n| n.in_flight.load(Relaxed)),
            sent: sum(|n| n.sent.load(Relaxed)),
            latency: LatencyReport::of(self.stats.iter().map(|s| &s.nodes[node.index()].latencies)),
            held: run.held.report(run.since).filter(|_| run.health.is_up()),
            losses: run.health.losses(),
            losses_by_reason: run.faults.clone(),
            for_seconds: seconds(run.since),
        };
        (report, facts)
    }

    fn resync_report(&self, node: NodeId) -> ResyncReport {
        let run = &self.nodes[node];
        let (progress, elapsed, word, fill) = match (&run.refills.job, &run.refills.last) {
            (Some(job), _) => {
                let word = if job.progress.trickles() { "trickle" } else { "running" };
                (&job.progress, job.progress.elapsed(), word, job.fill)
            }
            (None, Some(last)) => (&last.progress, last.elapsed, last.end, last.fill),
            (None, None) => return ResyncReport { word: "none", kind: "none", ..ResyncReport::default() },
        };
        let eta = run.refills.job.as_ref().and_then(|job| job.progress.eta());
        let lists = run.refills.job.as_ref().is_some_and(|job| job.progress.lists());
        ResyncReport { lists, ..of_progress(progress, elapsed, word, fill, eta) }
    }

    /// What clients asked for, and what came of it.
    fn requests(&self) -> Vec<(Asked, Came, u64)> {
        let all = Asked::ALL.iter().flat_map(|&asked| Came::ALL.iter().map(move |&came| (asked, came)));
        let counted =
            all.map(|(asked, came)| (asked, came, self.stats.iter().map(|s| s.requests.of(asked, came)).sum()));
        counted.filter(|(_, _, count)| *count > 0).collect()
    }

    fn waits(&self, asked: Asked) -> LatencyReport {
        LatencyReport::of(self.stats.iter().map(|worker| worker.requests.waits_of(asked)))
    }

    pub(super) fn mode(&self) -> &'static str {
        match self.settings.resync {
            ResyncMode::Auto => "auto",
            ResyncMode::Manual => "manual",
            ResyncMode::Off => "off",
        }
    }

    /// What is known of a pair, for [`super::summary`].
    pub(super) fn pair_facts(&self, id: PairId) -> PairFacts {
        let run = &self.pairs[id];
        PairFacts {
            state: run.pair.state(),
            gate: run.pair.gate(),
            reason: run.pair.reason(),
            undecided: run.beginning.undecided,
            foreign: run.pair.is_foreign() || self.is_contested(id) || self.are_doubted_for_rival(id),
            unproved: self.awaits_word_of(id) || run.plan.is_uncompared(),
            former: self.awaits_former_of(id),
            listed: self.fleet.losses.is_listed(id),
            missing: run.lone.len(),
            more: self.lacks_more(id),
            backup: self.topology.has_backups(),
            recorded: self.marked(),
        }
    }

    fn node_facts(&self, node: NodeId) -> NodeFacts {
        let run = &self.nodes[node];
        let place = self.topology.place(node);
        // Beside what it is to be filled with, what it was being filled with when its resync ended.
        let lacking = self.topology.pairs_of(node).find(|&p| self.lacks_refill(p, place));
        let filled = || run.refills.job.as_ref().and_then(|job| job.pairs.first()).map(|(pair, _)| *pair);
        let needy = lacking.or_else(filled).map(|pair| self.pair_facts(pair).shown().reason);
        NodeFacts {
            up: run.health.is_up(),
            reason: run.reason,
            foreign: run.foreign.is_contested(),
            job: run.refills.job.as_ref().map(|job| job.progress.phase()),
            drained: run.is_drained(),
            needy: needy.filter(|_| lacking.is_some() || run.refills.job.is_some()),
        }
    }

    /// Every counter, summed over the workers.
    pub(super) fn counters(&self) -> Vec<(&'static str, u64)> {
        let all: Vec<_> = self.stats.iter().map(|s| s.all()).collect();
        let names = all.first().map(Vec::as_slice).unwrap_or_default();
        names.iter().enumerate().map(|(at, (name, _))| (*name, all.iter().map(|c| c[at].1).sum())).collect()
    }
}

/// What this process has used, in microseconds: its own time, and the kernel's.
fn processor_time() -> (u64, u64) {
    let us = |time: TimeVal| time.num_microseconds() as u64;
    getrusage(UsageWho::RUSAGE_SELF).map_or((0, 0), |used| (us(used.user_time()), us(used.system_time())))
}

fn of_progress(
    progress: &Progress,
    elapsed: Duration,
    word: &'static str,
    fill: Fill,
    eta: Option<Duration>,
) -> ResyncReport {
    let total = progress.total.load(Relaxed);
    ResyncReport {
        word,
        kind: fill.word(),
        total: total.max(progress.sum(|p| &p.enumerated)),
        copied: progress.sum(|p| &p.copied),
        skipped: progress.sum(|p| &p.skipped),
        failed: progress.sum(|p| &p.failed),
        bytes: progress.sum(|p| &p.bytes),
        adopted: progress.sum(|p| &p.adopted),
        evicted: progress.incomplete(),
        elapsed_ms: elapsed.as_millis() as u64,
        // Less than a second is not "unknown".
        eta_seconds: eta.map_or(0, |eta| eta.as_secs_f64().ceil().max(1.0) as u64),
        lists: false,
    }
}
