//! `resync verify`: the scrub, begun, ended and shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Cluster, Internal};
use crate::ambient;
use crate::config::Settings;
use crate::ids::{NodeId, PairId, Place};
use crate::lease;
use crate::pair::{self, FillEvent, Gate, State};
use crate::proxy::{Command, owner_of};
use crate::report::VerifyReport;
use crate::resync::{JobError, Progress, RateLimiter, Verify, VerifyEvent, VerifyPair, VerifyProgress, verify};

/// Keys a second that are compared after a crash, unless `--resync-rate` is lower, or clients feel
/// it: half of them on each server.
const AFTER_CRASH: u64 = 100_000;

/// Why copies are compared: that says how fast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Why {
    /// An operator's word, or that one server may lack what it evicted.
    Order,
    /// The proxy before this one crashed: whether the copies are equal is not known before.
    Crash,
}

impl Why {
    /// Keys a second; `None`: no limit.
    fn rate(self, settings: &Settings) -> Option<u64> {
        match self {
            Why::Order => settings.verify_rate,
            Why::Crash => Some(settings.resync_rate.unwrap_or(AFTER_CRASH).min(AFTER_CRASH)),
        }
    }
}

/// The scrub under way, and the last one.
#[derive(Default)]
pub(super) struct Scrubs {
    running: Option<Running>,
    last: Option<Last>,
    /// Per pair: when its copies were last compared to the end and differed nowhere any more,
    /// seconds since 1970.
    compared: BTreeMap<PairId, u64>,
}

struct Running {
    why: Why,
    cancel: CancellationToken,
    /// Per pair: it is to be left alone.
    leave: BTreeMap<PairId, CancellationToken>,
    progress: Arc<VerifyProgress>,
    limiter: Arc<RateLimiter>,
    /// Per pair: how often it was known before that more keys have one copy. Not of one on which
    /// another proxy worked: that one may have written behind the comparing.
    more: BTreeMap<PairId, u64>,
}

struct Last {
    progress: Arc<VerifyProgress>,
    /// `done`, or why it ended.
    end: &'static str,
    at: Instant,
}

impl Scrubs {
    /// The one under way goes by these from here on.
    pub(super) fn take_settings(&self, settings: &Settings) {
        if let Some(running) = &self.running {
            running.limiter.set(running.why.rate(settings));
        }
    }
}

impl Cluster {
    /// Compares the mirrored pairs of `node`, or all. An error says why not.
    pub(super) fn begin_verify(&mut self, node: Option<NodeId>) -> Result<(), &'static str> {
        let pairs: Vec<PairId> = match node {
            Some(node) => self.topology.pairs_of(node).collect(),
            None => self.topology.pairs().collect(),
        };
        self.begin_verify_of(&pairs, Why::Order)
    }

    pub(super) fn is_verifying(&self) -> bool {
        self.resyncs.scrubs.running.is_some()
    }

    /// Compares those of the pairs that are mirrored. An error says why not.
    pub(super) fn begin_verify_of(&mut self, wanted: &[PairId], why: Why) -> Result<(), &'static str> {
        if self.resyncs.scrubs.running.is_some() {
            return Err("one is under way; see resync status, or say resync cancel");
        }
        let mut pairs = Vec::new();
        for &pair in wanted {
            let (leader, follower) = self.topology.nodes_of(pair);
            let run = &self.pairs[pair].pair;
            if let (State::Mirrored, Gate::Open, Some(follower)) = (run.state(), run.gate(), follower) {
                pairs.push(VerifyPair { pair, leader, follower, leave: CancellationToken::new() });
            }
        }
        if pairs.is_empty() {
            return Err("no pair is mirrored, so there is nothing to compare");
        }
        let progress = Arc::new(VerifyProgress::default());
        let cancel = CancellationToken::new();
        let (coordinator, questions) = mpsc::channel(16);
        let rate = why.rate(&self.settings);
        let limiter = Arc::new(RateLimiter::new(rate));
        let running = Running {
            why,
            cancel: cancel.clone(),
            leave: pairs.iter().map(|p| (p.pair, p.leave.clone())).collect(),
            progress: progress.clone(),
            limiter: limiter.clone(),
            more: pairs
                .iter()
                .filter(|p| !self.is_contested(p.pair))
                .map(|p| (p.pair, self.pairs[p.pair].lone.more()))
                .collect(),
        };
        tracing::info!(pairs = pairs.len(), rate = rate.unwrap_or(0), "verify begins");
        let work = Verify {
            pairs,
            limiter,
            yields: why == Why::Crash,
            // A write waits for a follower for `--timeout`, and for its pair's next route as long
            // as a leader may take.
            settle: self.settings.timeout + self.settings.leader_timeout,
            progress,
            coordinator,
        };
        let context = self.context(cancel, Arc::new(Progress::new([])), mpsc::channel(1).0);
        self.resyncs.scrubs.running = Some(running);
        self.forward(questions, |event| Internal::Verify { event });
        let scrub = lease::spawn(verify(work, context));
        self.spawn(async move {
            let result = scrub.await.unwrap_or(Err(JobError::Aborted));
            Internal::VerifyEnded { result }
        });
        Ok(())
    }

    pub(super) fn verify_said(&mut self, event: VerifyEvent) {
        match event {
            VerifyEvent::Mend { pair, key, reply } => {
                let owner = owner_of(&key, self.workers.len() as u16);
                let ticket = self.ticket(reply);
                let _ = self.workers[owner.index()].send(Command::Mend { ticket, pair, key });
            }
            VerifyEvent::Refused { pair, key } => self.pairs[pair].lone.insert(&key),
            VerifyEvent::Compared { pair } => {
                self.plan(pair, FillEvent::Compared);
                let more = self.resyncs.scrubs.running.as_ref().and_then(|running| running.more.get(&pair).copied());
                if let Some(more) = more {
                    self.copies_compared(pair, more);
                    self.resyncs.scrubs.compared.insert(pair, ambient::unix_time().as_secs());
                }
            }
        }
    }

    pub(super) fn verify_ended(&mut self, result: Result<(), JobError>) {
        let Some(Running { progress, .. }) = self.resyncs.scrubs.running.take() else { return };
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
        let left = count(&progress.left);
        let end = match &result {
            Ok(()) if left == 0 => "done",
            Ok(()) => "incomplete",
            Err(error) => error.reason(),
        };
        let (checked, different) = (count(&progress.checked), count(&progress.different));
        let (repaired, failed) = (count(&progress.repaired), count(&progress.failed));
        if let Err(JobError::CannotEnumerate { .. }) = &result {
            self.fill_uncompared();
        }
        match &result {
            Ok(()) => tracing::info!(checked, different, repaired, failed, left, "verify {end}"),
            Err(error) => {
                let at = error.node().map(|at| tracing::field::display(self.topology.addr(at)));
                tracing::warn!(checked, different, repaired, failed, left, at, %error, "verify ended early");
            }
        }
        self.resyncs.scrubs.last = Some(Last { progress, end, at: Instant::now() });
    }

    /// A node does not list its keys: what cannot be compared after a crash is filled anew, by the
    /// primary's word.
    fn fill_uncompared(&mut self) {
        for pair in self.topology.pairs() {
            if self.pairs[pair].plan.is_uncompared() {
                self.apply(pair, pair::Event::Distrust(Place::Backup));
            }
        }
    }

    /// `false` if none is under way.
    pub(super) fn cancel_verify(&mut self) -> bool {
        self.resyncs.scrubs.running.as_ref().is_some_and(|running| {
            running.cancel.cancel();
            true
        })
    }

    /// The pair is not mirrored any more.
    pub(super) fn leave_verify(&self, pair: PairId) {
        if let Some(leave) = self.resyncs.scrubs.running.as_ref().and_then(|running| running.leave.get(&pair)) {
            leave.cancel();
        }
    }

    /// A refill of the node begins, which is not to wait for a crawl.
    pub(super) fn leave_verify_of(&self, node: NodeId) {
        for pair in self.topology.pairs_of(node) {
            self.leave_verify(pair);
        }
    }

    /// The lines of `resync status`.
    pub(super) fn verify_report(&self) -> VerifyReport {
        let (state, progress) = match (&self.resyncs.scrubs.running, &self.resyncs.scrubs.last) {
            (Some(running), _) => ("running", Some(&running.progress)),
            (None, Some(last)) => (last.end, Some(&last.progress)),
            (None, None) => ("none", None),
        };
        let count = |counter: fn(&VerifyProgress) -> &std::sync::atomic::AtomicU64| {
            progress.map_or(0, |p| counter(p).load(Relaxed))
        };
        let ended = self.resyncs.scrubs.last.as_ref().map_or(Duration::ZERO, |last| last.at.elapsed());
        VerifyReport {
            state,
            checked: count(|p| &p.checked),
            different: count(|p| &p.different),
            repaired: count(|p| &p.repaired),
            failed: count(|p| &p.failed),
            pairs_left: count(|p| &p.left),
            ended_seconds_ago: ended.as_secs(),
            all_compared_at: self.all_compared_at(),
        }
    }

    fn all_compared_at(&self) -> Option<u64> {
        let used = self.topology.pairs().filter(|pair| self.topology.pair_is_used(*pair));
        let compared: Option<Vec<u64>> = used.map(|pair| self.resyncs.scrubs.compared.get(&pair).copied()).collect();
        compared?.into_iter().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::alone;
    use crate::pair::{Event, Reason};

    /// Since when nothing is known to differ is a matter of pairs: the verify under way, one of one
    /// server, and one that is cancelled say nothing of the others.
    #[tokio::test(start_paused = true)]
    async fn all_are_compared_once_each_pair_was() {
        let mut cluster = alone("-s 127.0.0.1:1 -s 127.0.0.1:2 -b 127.0.0.1:3");
        let pairs = [PairId(0), PairId(1)];
        for pair in pairs {
            for event in [Event::Start(State::Mirrored, Reason::None), Event::Closed, Event::Recorded] {
                cluster.apply(pair, event);
            }
        }
        cluster.begin_verify(Some(NodeId(0))).expect("begun");
        cluster.verify_said(VerifyEvent::Compared { pair: pairs[0] });
        cluster.verify_ended(Ok(()));
        assert_eq!((cluster.verify_report().state, cluster.verify_report().all_compared_at), ("done", None));
        cluster.begin_verify(None).expect("begun");
        cluster.verify_said(VerifyEvent::Compared { pair: pairs[1] });
        let before = cluster.resyncs.scrubs.compared.insert(pairs[0], 7).expect("it was compared");
        assert!(before > 7 && cluster.verify_report().all_compared_at == Some(7), "the one longest ago");
        assert_eq!(cluster.verify_report().state, "running");
        cluster.verify_ended(Err(JobError::Cancelled));
        assert_eq!(cluster.verify_report().all_compared_at, Some(7));
    }

    /// Other settings leave a comparing at the rate that belongs to its cause.
    #[tokio::test(start_paused = true)]
    async fn settings_read_again_change_the_rate_that_a_comparing_goes_by() {
        for (why, before, after) in [(Why::Order, Some(10_000), Some(70)), (Why::Crash, Some(AFTER_CRASH), Some(900))] {
            let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
            cluster.begin_open(State::Mirrored);
            cluster.begin_verify_of(&[PairId(0)], why).expect("begun");
            let rate =
                |cluster: &Cluster| cluster.resyncs.scrubs.running.as_ref().and_then(|running| running.limiter.rate());
            let mut settings = cluster.settings.clone();
            settings.max_clients = 5;
            cluster.take_settings(&settings);
            assert_eq!(rate(&cluster), before, "{why:?}, whose setting stays");
            (settings.verify_rate, settings.resync_rate) = (Some(70), Some(900));
            cluster.take_settings(&settings);
            assert_eq!(rate(&cluster), after, "{why:?}");
        }
    }
}
