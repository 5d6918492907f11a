//! Probes: they find nodes that fail without client traffic.

use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::ambient;
use crate::backend::marker;
use crate::backend::{NodeError, Probe};
use crate::ids::NodeId;
use crate::lease;
use crate::pair::{self, Loss, Reason, State};

use super::nodes::reason_of;
use super::settings::ProbeTimes;
use super::{Cluster, Internal};

/// Jitter keeps many proxies from probing in step: the shortest and the longest time between two
/// probes, in intervals.
pub(crate) const JITTER: Range<f64> = 0.8..1.2;

/// An unanswered probe or flush is reported this many times within its timeout.
pub(super) const AWAITED_REPORTS: u32 = 8;

/// The longest time between two probes of a node that is lost, whatever the interval of healthy
/// ones.
const LOST_PROBE_MAX: Duration = Duration::from_millis(200);
/// The same for a node that refuses connections: a refusal costs next to nothing, and it may be
/// started any moment.
const REFUSED_PROBE_MAX: Duration = Duration::from_millis(20);

/// Awaits an answer, and reports at intervals of `every` for how long.
pub(super) async fn told_while_awaited<T>(
    answer: impl Future<Output = T>,
    every: Duration,
    mut tell: impl FnMut(Duration),
) -> T {
    let begun = Instant::now();
    let mut answer = pin!(answer);
    loop {
        tokio::select! {
            biased;
            answer = answer.as_mut() => return answer,
            () = tokio::time::sleep(every) => tell(begun.elapsed()),
        }
    }
}

impl Cluster {
    pub(super) fn spawn_prober(&self, node: NodeId) {
        let control = self.controls[node].clone();
        let internal = self.internal.clone();
        let hint = self.nodes[node].hint.clone();
        let away = self.nodes[node].away.clone();
        let times = self.probe_times.subscribe();
        let shutdown = self.shutdown.clone();
        let mut others = Vec::new();
        if !self.marked() {
            others.push(marker::RING_KEY.to_owned());
        } else {
            others.extend([marker::RING_KEY.to_owned(), marker::SESSION_KEY.to_owned()]);
            others.extend(self.fleet.turn.iter().map(|_| marker::FLEET_KEY.to_owned()));
            others.extend(self.topology.pairs_of(node).map(marker::pair_key));
        }
        lease::spawn(async move {
            let (mut failed, mut refused) = (false, false);
            loop {
                // Also one that answers, but was lost for another reason: it waits for several good
                // probes.
                let ProbeTimes { interval, timeout } = *times.borrow();
                let interval = match failed || away.load(Ordering::Relaxed) {
                    true if refused => interval.min(REFUSED_PROBE_MAX),
                    true => interval.min(LOST_PROBE_MAX),
                    false => interval,
                };
                let pause = interval.mul_f64(ambient::random_in(JITTER));
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    () = hint.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                }
                let begun = Instant::now();
                let result = told_while_awaited(control.probe(&others), timeout / AWAITED_REPORTS, |age| {
                    let _ = internal.send(Internal::ProbeAwaited { node, age });
                });
                let result = result.await;
                (failed, refused) = (result.is_err(), matches!(result, Err(NodeError::Refused)));
                if internal.send(Internal::Probed { node, begun, result }).is_err() {
                    return;
                }
            }
        });
    }

    /// A node has not answered a probe yet.
    pub(super) fn probe_awaited(&mut self, node: NodeId, age: Duration) {
        let timeout = self.settings.timeout;
        match self.nodes[node].silent_since {
            _ if !self.nodes[node].health.is_up() => {}
            Some(silent) => self.late(node, silent.elapsed() + timeout),
            // A probe has a timeout of its own: the node is not late before that is over, but other
            // nodes may be probed meanwhile.
            None => self.late(node, age.min(timeout / 2)),
        }
    }

    pub(super) fn probed(&mut self, node: NodeId, begun: Instant, result: Result<Probe, NodeError>) {
        match result {
            Ok(found) => self.probe_answered(node, begun, found),
            Err(error) => self.probe_failed(node, error),
        }
    }

    fn probe_answered(&mut self, node: NodeId, begun: Instant, found: Probe) {
        let (now, awaited, needed) = (self.now(), self.is_awaited(node), self.probes_needed(node));
        let run = &mut self.nodes[node];
        run.silent_since = None;
        run.refused_since = None;
        if run.refuses.take().is_some() {
            tracing::info!(node = %self.topology.addr(node), "a node that took no more connections is probed again");
        }
        self.tell_relief(node);
        self.judge_later_mark(found.fleet.as_ref());
        let run = &mut self.nodes[node];
        if run.health.is_up() {
            return self.probe_of_one_in_use(node, begun, found);
        }
        let needed = if run.has_lost_marker(&found) { 1 } else { needed };
        // The look waits until nothing that was sent before can still take effect on the node.
        if run.health.good_probe(now, needed, awaited)
            && !run.looking
            && !self.flush.is_sent()
            && self.nodes[node].is_drained()
        {
            self.look(node);
        }
    }

    fn probe_of_one_in_use(&mut self, node: NodeId, begun: Instant, found: Probe) {
        if !self.marked() {
            if found.missing {
                self.stamp(node);
            }
            return;
        }
        match found.incarnation {
            None => self.check_eviction(node, true),
            known if known != self.nodes[node].incarnation => self.fault(node, Reason::MarkerStale, true),
            // The incarnation's may have outlived a flush that took the others (seen in the source
            // of memcached 1.6.25 and later: the walk of what was written within the second ends at
            // the first older item).
            Some(_) if found.missing => self.check_eviction(node, false),
            Some(_) => {
                self.judge_fleet_mark(node, found.fleet);
                self.judge_session(node, found.session);
                self.judge_rival(node, found.rival, begun);
                self.answer_knock(node, found.knock);
                let pending = &self.delayed.pending();
                if !pending.is_blank() && found.pending.as_ref() != Some(pending) {
                    self.record_pending();
                }
                self.clean(node);
            }
        }
    }

    fn probe_failed(&mut self, node: NodeId, error: NodeError) {
        if self.serves_all_the_same(node, &error) {
            return;
        }
        let (patience, grace) = (self.settings.leader_timeout, self.settings.leader_grace);
        let run = &mut self.nodes[node];
        run.health.bad_probe();
        if run.view.is_none() && run.unmarked.is_none() && !run.health.is_up() {
            // It never was in use: what keeps it away is what was seen last.
            run.reason = reason_of(&error);
        }
        let silent = *run.silent_since.get_or_insert_with(Instant::now);
        if error == NodeError::Refused {
            run.refused_since.get_or_insert_with(Instant::now);
        } else {
            run.refused_since = None;
        }
        let gone = run.refused_since.is_some_and(|since| since.elapsed() >= grace) && !run.memory_gone;
        if reason_of(&error) == Reason::Timeout {
            // The first one was awaited for that long already.
            self.late(node, silent.elapsed() + self.settings.timeout);
        } else {
            self.fault(node, reason_of(&error), silent.elapsed() >= patience);
        }
        if error == NodeError::Timeout {
            self.probe_if_waited_for(node);
        }
        self.try_next_address(node);
        if error == NodeError::Refused {
            self.follow_uncompared(node);
        }
        if gone {
            tracing::warn!(node = %self.topology.addr(node), grace = ?grace, "its process has refused connections beyond the grace: its memory counts as gone");
            self.lost(node, Reason::Refused, Loss::MemoryGone, true);
        }
    }

    /// Its process is gone. Where both copies held all that was acknowledged, and only the
    /// comparing was missing, nothing is waited for.
    fn follow_uncompared(&mut self, node: NodeId) {
        let place = self.topology.place(node);
        for pair in self.topology.pairs_of(node) {
            let run = &self.pairs[pair];
            let awaited = matches!(run.pair.state(), State::Dark { in_sync: Some(p), fallback: Some(_) } if p == place);
            // A partial copy lacks writes that were acknowledged.
            if awaited
                && run.fallback_is_full
                && !run.pair.is_foreign()
                && run.plan.may_follow(place, !run.missed.overflowed())
            {
                self.apply(pair, pair::Event::Lost(place, Loss::MemoryGone, Reason::Refused));
            }
        }
    }

    /// This many good probes in a row bring a node back.
    pub(super) fn probes_needed(&self, node: NodeId) -> u32 {
        if self.is_awaited(node) { 1 } else { self.settings.probe_successes }
    }

    /// Whether some pair cannot go on without this node: then its first good probe counts.
    fn is_awaited(&self, node: NodeId) -> bool {
        let place = self.topology.place(node);
        self.topology.pairs_of(node).any(|pair| {
            let run = &self.pairs[pair];
            run.beginning.undecided
                || match run.pair.state() {
                    State::Dark { in_sync, .. } => in_sync.is_none_or(|p| p == place),
                    _ => false,
                }
        })
    }
}
