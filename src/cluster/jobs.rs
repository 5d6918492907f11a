//! Refilling nodes: beginning a resync, its questions on the way, its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::{Drain, NodeError, Probe};
use crate::ids::{NodeId, PairId, Place};
use crate::keys::Recopy;
use crate::lease;
use crate::pair::{self, FillEvent, Gate, Loss, Reason, State};
use crate::proxy::Adopted;
use crate::report::figures::counted;
use crate::resync::{self, Context, Fill, JobError, JobEvent, JobSpec, Outcome, Progress, Tuning, Verdict};

use super::nodes::reason_of;
use super::refills::{Failed, JobRun, LastJob};
use super::{Cluster, Internal};

/// What a pair's job is to be told.
#[derive(PartialEq, Eq, Default, Debug)]
pub(super) struct Owed {
    /// The gate that it asked for does not close.
    not_now: bool,
    verdict: Option<Verdict>,
}

impl Cluster {
    pub(super) fn begin_job(&mut self, node: NodeId, pairs: Vec<PairId>, fill: Fill) {
        self.spawn_job(node, pairs, fill, false);
    }

    /// No copy of these pairs is left: what the node holds of them and may be out of date goes,
    /// then the node leads them.
    pub(super) fn begin_purge(&mut self, node: NodeId, pairs: Vec<PairId>, fill: Fill) {
        self.spawn_job(node, pairs, fill, true);
    }

    fn spawn_job(&mut self, node: NodeId, pairs: Vec<PairId>, fill: Fill, purge_only: bool) {
        let source = self.topology.place(node).other();
        let pairs: Vec<_> = pairs.into_iter().map(|p| (p, self.node_at(p, source))).collect();
        let serial = self.resyncs.next_serial();
        let cancel = CancellationToken::new();
        let progress = Arc::new(Progress::new(pairs.iter().map(|(p, _)| *p)));
        let (coordinator, questions) = mpsc::channel(16);
        let mut context = self.context(cancel.clone(), progress.clone(), coordinator);
        for (pair, _) in &pairs {
            self.begin_in_pair(*pair, fill, &mut context);
        }
        self.end_listings();
        self.leave_verify_of(node);
        for (_, source) in &pairs {
            self.leave_verify_of(*source);
        }
        let run = &mut self.nodes[node];
        // One that fills all of the node from the beginning makes up for what went before.
        if fill != Fill::Missed && pairs.len() == self.topology.pairs_of(node).count() {
            run.refills.unread.forget();
        }
        if let Some(count) = run.refills.unread.count() {
            progress.carry_evictions(count);
        }
        let spec =
            JobSpec { target: node, pairs: pairs.clone(), fill, leads: self.topology.place(node) == Place::Primary };
        self.tell_of_job(node, &pairs, fill, purge_only);
        let run = &mut self.nodes[node];
        run.refills.job = Some(JobRun {
            serial,
            pairs,
            fill,
            cancel,
            progress,
            purge_only,
            overtaken: BTreeSet::new(),
            go: None,
            by_operator: run.refills.is_asked_for(),
        });
        self.changed(node);
        self.forward(questions, move |event| Internal::Job { node, serial, event });
        let job = lease::spawn(resync::run(spec, context));
        self.spawn(async move {
            let outcome = job.await.unwrap_or_else(|error| {
                // A bug. The pairs must not wait for its end for ever; what it left on the node is
                // purged by the next one.
                tracing::error!(%error, "a resync broke off");
                Outcome { result: Err(JobError::Aborted), drains: Vec::new(), undone: false, copies_left: true }
            });
            Internal::JobEnded { node, serial, outcome: Box::new(outcome) }
        });
    }

    /// The job's sets of keys of a pair.
    fn begin_in_pair(&mut self, pair: PairId, fill: Fill, context: &mut Context) {
        self.plan(pair, FillEvent::JobBegins(fill));
        let run = &mut self.pairs[pair];
        // All that the target lacks comes to it. A list names what it is known to lack, and no
        // more.
        match fill {
            Fill::Missed => run.lone.forget_known(),
            _ => run.lone.forget(),
        }
        if !matches!(run.pair.state(), State::Recovering { .. }) {
            // A fresh one for each resync: keys of an earlier one are missed, and copied anyway.
            run.recopy = Arc::new(Recopy::noting(run.missed.clone()));
            // What clients write has missed the target, or will until the barrier.
            let written = run.written.clone().filter(|_| fill == Fill::Adopt);
            context.written.extend(written.map(|written| (pair, written)));
        }
        context.recopy.insert(pair, run.recopy.clone());
        context.missed.insert(pair, run.missed.clone());
        context.lone.insert(pair, run.lone.clone());
    }

    fn tell_of_job(&self, node: NodeId, pairs: &[(PairId, NodeId)], fill: Fill, purge_only: bool) {
        let addr = self.topology.addr(node);
        if purge_only && fill == Fill::Missed {
            let missed: usize = pairs.iter().map(|(p, _)| self.pairs[*p].missed.len()).sum();
            tracing::warn!(node = %addr, missed,
                "no full copy is left of some pairs: the node leads them without the keys that it missed, which are lost");
        } else if purge_only {
            tracing::warn!(node = %addr, "no copy is left of some pairs: purging what the node holds of them");
        } else {
            let sources: Vec<String> =
                pairs.iter().map(|(_, source)| self.topology.addr(*source).to_string()).collect();
            tracing::info!(node = %addr, sources = %sources.join(","), ?fill, "resync begins");
        }
    }

    /// What every job shares, and what is its own; the pairs' sets are to be added.
    pub(super) fn context(
        &self,
        cancel: CancellationToken,
        progress: Arc<Progress>,
        coordinator: mpsc::Sender<JobEvent>,
    ) -> Context {
        let (owner, holds) = (self.topology.clone(), self.topology.clone());
        let item_limit = |node: NodeId| self.nodes[node].view.as_ref()?.item_size_max;
        Context {
            dialer: self.dialer.clone(),
            memories: self.topology.nodes().filter_map(|n| Some((n, self.nodes[n].incarnation?))).collect(),
            names: self.memories.clone(),
            item_limits: self.topology.nodes().filter_map(|n| Some((n, item_limit(n)?))).collect(),
            owner: Arc::new(move |key| owner.pair_of(key)),
            holds: Arc::new(move |node, pair| {
                let (primary, backup) = holds.nodes_of(pair);
                node == primary || Some(node) == backup
            }),
            tuning: Tuning {
                memory_bytes: self.settings.resync_memory,
                // The target holds nothing that is needed: it is waited for as long as a leader is
                // for one answer, not longer.
                target_timeout: self.settings.leader_timeout,
                source_timeout: self.settings.longest_wait(),
                ..Tuning::default()
            },
            shared: self.resyncs.shared.clone(),
            cancel,
            progress,
            recopy: BTreeMap::new(),
            missed: BTreeMap::new(),
            lone: BTreeMap::new(),
            written: BTreeMap::new(),
            coordinator,
        }
    }

    pub(super) fn job_said(&mut self, node: NodeId, serial: u64, event: JobEvent) {
        let place = self.topology.place(node);
        let Some(job) = self.nodes[node].refills.job.as_mut().filter(|j| j.serial == serial) else { return };
        match event {
            JobEvent::CannotEnumerate { source, pairs, why } => {
                tracing::warn!(node = %self.topology.addr(node), source = %self.topology.addr(source), why,
                    "the leader cannot be enumerated and keeps leading: the node is filled from the reads that pass through");
                // The job is doing what it can, which counts as well begun.
                self.nodes[node].refills.begin_anew();
                // It lingers now.
                self.unsettled.node(node);
                for pair in pairs {
                    self.apply(pair, pair::Event::CannotEnumerate);
                }
            }
            JobEvent::Purged { reply } => {
                let (pairs, purge_only): (Vec<PairId>, bool) =
                    (job.pairs.iter().map(|(p, _)| *p).collect(), job.purge_only);
                if !self.nodes[node].health.is_up() {
                    // It was lost meanwhile, by a connection that the job does not use. Mirrored it
                    // would count as lost all the same, and no flush would reach it.
                    let _ = reply.send(false);
                    return;
                }
                // From here on the node may be written to.
                self.nodes[node].empty = false;
                if let Some(job) = self.nodes[node].refills.job.as_mut()
                    && let Fill::Empty | Fill::Purge = job.fill
                {
                    job.overtaken.clear();
                }
                if purge_only {
                    let _ = reply.send(false);
                    self.told_together(|cluster| {
                        pairs.iter().for_each(|pair| cluster.apply(*pair, pair::Event::Purged(place)));
                    });
                    return;
                }
                self.told_together(|cluster| {
                    pairs.iter().for_each(|pair| cluster.apply(*pair, pair::Event::BeginRecovery));
                });
                if let Some(job) = self.nodes[node].refills.job.as_mut() {
                    job.go = Some(reply);
                }
                self.unsettled.node(node);
            }
            JobEvent::Adopting { reply } => {
                let pairs: Vec<PairId> = job.pairs.iter().map(|(p, _)| *p).collect();
                self.record_adopting(node, &pairs, reply);
            }
            JobEvent::AllAdopted { reply } => {
                let pairs: Vec<PairId> = job.pairs.iter().map(|(p, _)| *p).collect();
                self.record_adopted(node, &pairs, reply);
            }
            JobEvent::Adopt { pair, key, value, flags, exptime, reply } => {
                self.order_adoption(pair, key, Adopted { value, flags, exptime }, reply);
            }
            JobEvent::Ready { pair, reply } => {
                self.pairs[pair].ready_reply = Some(reply);
                self.apply(pair, pair::Event::HandBack);
            }
            JobEvent::Drained { pair, clean, reply } => {
                self.pairs[pair].drained_reply = Some(reply);
                self.apply(pair, pair::Event::Drained(clean));
            }
        }
    }

    /// What the pair's job waits to hear, where that is known now.
    pub(super) fn owed(&self, id: PairId) -> Owed {
        let run = &self.pairs[id];
        let (state, gate) = (run.pair.state(), run.pair.gate());
        let verdict = match (state, gate) {
            (State::Mirrored, Gate::Open) => Some(Verdict::Mirrored),
            (State::Mirrored, _) => None,
            (State::Recovering { .. }, Gate::Open) => Some(Verdict::Again),
            (State::Recovering { .. }, Gate::Draining) => None,
            _ => Some(Verdict::Abort),
        };
        Owed {
            not_now: run.ready_reply.is_some() && !matches!(gate, Gate::Closing | Gate::Draining),
            verdict: verdict.filter(|_| run.drained_reply.is_some()),
        }
    }

    /// Part of [`settle`](Cluster::settle).
    pub(super) fn answer_job(&mut self, id: PairId) {
        let Owed { not_now, verdict } = self.owed(id);
        let run = &mut self.pairs[id];
        if not_now && let Some(reply) = run.ready_reply.take() {
            let _ = reply.send(false);
        }
        if let Some(verdict) = verdict
            && let Some(reply) = run.drained_reply.take()
        {
            let _ = reply.send(verdict);
        }
    }

    /// Whether the job that waits for its pairs may copy: once all are Recovering with their gates
    /// open. `false`: one cannot be.
    pub(super) fn may_go(&self, node: NodeId) -> Option<bool> {
        let place = self.topology.place(node);
        let job = self.nodes[node].refills.job.as_ref().filter(|job| job.go.is_some())?;
        let mut ready = true;
        for (pair, _) in &job.pairs {
            let pair = &self.pairs[*pair].pair;
            match pair.state() {
                State::Recovering { leader } if leader != place => ready &= pair.gate() == Gate::Open,
                _ => return Some(false),
            }
        }
        ready.then_some(true)
    }

    /// Part of [`settle`](Cluster::settle).
    pub(super) fn answer_go(&mut self, node: NodeId) {
        let Some(goes) = self.may_go(node) else { return };
        if let Some(go) = self.nodes[node].refills.job.as_mut().and_then(|job| job.go.take()) {
            let _ = go.send(goes);
        }
    }

    pub(super) fn abort_job_of(&mut self, pair: PairId) {
        for job in self.jobs_of(pair) {
            job.cancel.cancel();
        }
    }

    /// The pair has a leader alone, and a job may still be at work on the other node.
    pub(super) fn overtake_job_of(&mut self, pair: PairId) {
        for job in self.jobs_of(pair) {
            job.overtaken.insert(pair);
        }
    }

    fn jobs_of(&mut self, pair: PairId) -> impl Iterator<Item = &mut JobRun> {
        let (primary, backup) = self.topology.nodes_of(pair);
        let nodes = match backup {
            Some(backup) => self.nodes.get_disjoint_mut([primary, backup]).map(Vec::from),
            None => self.nodes.get_disjoint_mut([primary]).map(Vec::from),
        };
        let jobs = nodes.into_iter().flatten().filter_map(|node| node.refills.job.as_mut());
        jobs.filter(move |job| job.fills(pair))
    }

    /// The operator's word; `false` if there was nothing to cancel.
    pub(super) fn cancel_job(&mut self, node: NodeId) -> bool {
        let run = &mut self.nodes[node];
        let cancelled = run.refills.cancel();
        if let Some(job) = &run.refills.job {
            job.cancel.cancel();
        }
        cancelled
    }

    pub(super) fn job_ended(&mut self, node: NodeId, serial: u64, outcome: Outcome) {
        if let Err(JobError::Source(source, NodeError::Refused | NodeError::Reset | NodeError::Full(_))) =
            &outcome.result
        {
            // Only the job's own connection broke. If the source is dead, its pairs must learn of
            // that before they learn that the job is over: as `Recovering` they remember that the
            // follower holds a verified part, which leads if the source's memory proves gone. If it
            // lives (it closes idle connections, or takes no more), it keeps leading.
            return self.ask_node(*source, |control| async move {
                let probe = control.probe(&[]).await;
                Internal::SourceChecked { node, serial, outcome: Box::new(outcome), probe }
            });
        }
        self.job_over(node, serial, outcome);
    }

    pub(super) fn source_checked(
        &mut self,
        node: NodeId,
        serial: u64,
        outcome: Outcome,
        probe: Result<Probe, NodeError>,
    ) {
        if let Err(JobError::Source(source, _)) = &outcome.result {
            let known = self.nodes[*source].incarnation;
            match probe {
                Err(error) if self.serves_all_the_same(*source, &error) => {}
                Err(error) => self.fault(*source, reason_of(&error), false),
                Ok(found) if self.marked() && found.incarnation != known => {
                    self.lost(*source, Reason::MarkerLost, Loss::MemoryGone, true)
                }
                Ok(_) => {}
            }
        }
        self.job_over(node, serial, outcome);
    }

    /// The node is not taken back before the connection is drained. One to an earlier address was
    /// abandoned with all that was there.
    fn await_drain(&mut self, drain: Drain) {
        let (node, address) = (drain.node(), drain.address());
        if address != self.address_number(node) {
            return;
        }
        self.nodes[node].drains += 1;
        self.changed(node);
        self.spawn(async move { Internal::DrainDone { node, address, end: drain.await } });
    }

    /// Whether a resync of the node, over this pair among others, is under way or winding up.
    pub(super) fn is_being_filled(&self, node: NodeId, pair: PairId) -> bool {
        self.nodes[node].refills.job.as_ref().is_some_and(|job| !job.purge_only && job.fills(pair))
    }

    /// A source that is lost ends the job of all pairs: another pair's follower must not count for
    /// less because of that.
    fn goes_on_adopting(&self, pair: PairId, node: NodeId) -> bool {
        let run = &self.pairs[pair];
        let leader = self.topology.place(node).other();
        run.plan.goes_on_adopting(run.pair.state(), leader) && !self.nodes[node].refills.is_cancelled()
    }

    /// A job is over: what it leaves behind is judged in this order, because each step depends on
    /// what the pairs have learnt in the ones before.
    fn job_over(&mut self, node: NodeId, serial: u64, outcome: Outcome) {
        let Some(job) = self.nodes[node].refills.job.take_if(|j| j.serial == serial) else { return };
        let Outcome { result, drains, undone, copies_left } = outcome;
        for drain in drains {
            self.await_drain(drain);
        }
        self.judge_evictions(node, &job.progress);
        let (reason, end) = self.tell_end(node, &job, &result);
        for &(pair, _) in job.pairs.iter().filter(|_| copies_left) {
            self.plan(pair, FillEvent::CopiesLeft(job.fill));
        }
        self.give_comparing_up(node, &job, &result);
        self.tell_pairs_of_end(node, &job, &result, reason, undone);
        self.judge_awaited_leaders(node, &job);
        let elapsed = job.progress.elapsed();
        self.nodes[node].refills.last = Some(LastJob { fill: job.fill, progress: job.progress.clone(), elapsed, end });
        match result {
            Ok(()) => self.nodes[node].refills.done(),
            Err(error) => self.try_again(node, &job, &error),
        }
        self.changed(node);
    }

    /// In the log; returns why pairs stay unfilled, and the word of the status.
    fn tell_end(&mut self, node: NodeId, job: &JobRun, result: &Result<(), JobError>) -> (Reason, &'static str) {
        let (addr, progress) = (self.topology.addr(node), &job.progress);
        let (copied, skipped, failed) =
            (progress.sum(|p| &p.copied), progress.sum(|p| &p.skipped), progress.sum(|p| &p.failed));
        match result {
            Ok(()) => {
                let elapsed = Duration::from_millis(progress.elapsed().as_millis() as u64);
                tracing::info!(node = %addr, copied, skipped, failed, bytes = progress.sum(|p| &p.bytes), elapsed = %humantime::format_duration(elapsed),
                    "resync done");
                let what = format!(
                    "resync done: {} in {}",
                    counted(copied, "item", "items"),
                    humantime::format_duration(elapsed)
                );
                self.operators.changes.note(self.server_name(node), what, Reason::None);
                if failed > 0 {
                    tracing::warn!(node = %addr, failed, "the node refused items: its copy lacks them");
                }
                (Reason::None, "done")
            }
            Err(error) if job.purge_only && *error == JobError::Aborted => (Reason::None, "purged"),
            Err(error) => {
                let reason = match error {
                    JobError::Cancelled => Reason::Cancelled,
                    JobError::CannotEnumerate { .. } => Reason::CannotEnumerate,
                    _ => Reason::ResyncFailed,
                };
                let at = error.node().map(|at| tracing::field::display(self.topology.addr(at)));
                tracing::warn!(node = %addr, at, %error, copied, "resync ended early");
                let what = format!("resync ended early after {}: {}", counted(copied, "item", "items"), error.reason());
                self.operators.changes.note(self.server_name(node), what, reason);
                (reason, error.reason())
            }
        }
    }

    /// Copies that cannot be compared are purged and filled.
    fn give_comparing_up(&mut self, node: NodeId, job: &JobRun, result: &Result<(), JobError>) {
        let Err(error) = result else { return };
        if !job.fill.compares() {
            return;
        }
        for &(pair, source) in &job.pairs {
            let cannot =
                matches!(error, JobError::CannotEnumerate { node: which, .. } if [node, source].contains(which));
            if cannot || (job.fill == Fill::Adopt && !self.knows_writes(pair)) {
                tracing::warn!(pair = %self.pair_name(pair), node = %self.topology.addr(node), "the two copies cannot be compared: the node's is purged and filled");
                self.plan(pair, FillEvent::CannotCompare);
            }
        }
    }

    fn tell_pairs_of_end(
        &mut self,
        node: NodeId,
        job: &JobRun,
        result: &Result<(), JobError>,
        reason: Reason,
        undone: bool,
    ) {
        let place = self.topology.place(node);
        for &(pair, _) in &job.pairs {
            self.pairs[pair].ready_reply = None;
            self.pairs[pair].drained_reply = None;
            let state = self.pairs[pair].pair.state();
            if self.goes_on_adopting(pair, node) {
                continue;
            }
            if result.is_err() && matches!(state, State::Recovering { leader } if leader != place) {
                self.apply(pair, pair::Event::ResyncEnded(reason));
            } else if reason == Reason::CannotEnumerate {
                self.apply(pair, pair::Event::CannotEnumerate);
            } else if undone
                && !job.overtaken.contains(&pair)
                && matches!(state, State::Dark { in_sync: Some(p), .. } if p != place)
            {
                self.apply(pair, pair::Event::Undone(place));
            }
        }
    }

    /// Leaders that proved empty while the job was ending: now it is known whether the follower may
    /// lead.
    fn judge_awaited_leaders(&mut self, node: NodeId, job: &JobRun) {
        let leads = self.topology.place(node).other();
        for &(pair, source) in &job.pairs {
            let awaited = matches!(self.pairs[pair].pair.state(), State::Dark { in_sync: Some(p), .. } if p == leads);
            let source = &self.nodes[source];
            // A source that is up and yet awaited came back without the memory that the pair waits
            // for.
            if awaited && (source.memory_gone || source.health.is_up()) {
                let (reason, empty) = (source.reason, source.health.is_up() && source.empty);
                self.apply(pair, pair::Event::Lost(leads, Loss::MemoryGone, reason));
                if empty {
                    self.is_empty_of(pair, leads);
                }
            }
        }
    }

    /// The node that broke it is reported, and the next try is due after a while.
    fn try_again(&mut self, node: NodeId, job: &JobRun, error: &JobError) {
        if let JobError::Target(error) = error
            && !self.serves_all_the_same(node, error)
        {
            self.fault(node, reason_of(error), true);
        }
        if let JobError::Source(source, _) = error {
            self.nodes[*source].hint.notify_one();
        }
        if job.purge_only && !matches!(error, JobError::Aborted | JobError::Cancelled | JobError::Target(_)) {
            // The other one does not wait for what may fail again and again.
            for (pair, _) in &job.pairs {
                self.plan(*pair, FillEvent::ListVoid);
            }
        }
        let (asked, cancelled) = (job.by_operator, *error == JobError::Cancelled);
        let served = job.purge_only && *error == JobError::Aborted;
        if let Some(pause) = self.nodes[node].refills.failed(Failed { asked, cancelled, served }) {
            self.after(pause, Internal::RetryRefill { node });
        }
    }
}

/// Since when, in words of the status.
pub(super) fn seconds(since: Instant) -> u64 {
    since.elapsed().as_secs()
}
