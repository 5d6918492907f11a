//! Edges: a pair learns something, and what follows from that reaches workers and nodes.

use std::sync::Arc;

use tokio::time::Instant;

use crate::backend::marker::Fact;
use crate::ids::{NodeId, PairId, Place, WorkerId};
use crate::keys::Missed;
use crate::pair::{self, FillEffect, FillEvent, State};
use crate::proxy::{Command, Flow, Follower, Route};

use super::Cluster;
use super::flush::Hold;
use super::records::Recording;

impl Cluster {
    /// The only way a pair learns anything.
    pub(super) fn apply(&mut self, id: PairId, event: pair::Event) {
        let lacks = self.lacks_after(id, event);
        let run = &mut self.pairs[id];
        let before = run.pair.state();
        let effects = run.pair.apply(event);
        let after = run.pair.state();
        run.flushed = after.leader().is_none() && (run.flushed || event == pair::Event::Flushed);
        if let (Some(lacks), Some(_)) = (lacks, after.leader()) {
            self.items_lost(id, lacks);
        }
        let run = &mut self.pairs[id];
        if before != after {
            run.fallback_is_full = before == State::Mirrored;
            run.since = Instant::now();
            if before == State::Mirrored {
                self.leave_verify(id);
            }
            if let State::Degraded { .. } = after {
                self.overtake_job_of(id);
            }
            if (before, after) == (State::Mirrored, State::Degraded { leader: Place::Backup }) {
                self.lose_only_copies(id);
            }
            self.log_state(id, before);
        }
        let orphaned = self.plan(id, FillEvent::Edge { event, before, after });
        for effect in effects {
            self.carry_out(id, effect);
        }
        if let Some(follower) = orphaned {
            self.adoption_lost_its_leader(id, follower, event);
        }
        self.unsettled.pair(id);
    }

    /// The only way a pair's plan learns anything. Returns a follower that has lost the leader of
    /// its adoption.
    pub(super) fn plan(&mut self, id: PairId, event: FillEvent) -> Option<Place> {
        let run = &mut self.pairs[id];
        let mut orphaned = None;
        for effect in run.plan.apply(event) {
            match effect {
                FillEffect::ListVoid => run.missed.overflow(),
                FillEffect::ListBegins => {
                    run.missed.reset();
                    // What the follower was refused while it was filled it lacks also after its
                    // next absence.
                    run.lone.after(None, usize::MAX).iter().for_each(|key| run.missed.insert(key));
                }
                FillEffect::NoteWrites => {
                    // All pairs together as much as is kept of what nodes miss; more, and the pair
                    // cannot adopt.
                    let written = Missed::new(self.written_budget.clone());
                    written.reset();
                    run.written = Some(Arc::new(written));
                }
                FillEffect::ForgetWrites => run.written = None,
                FillEffect::FollowerMayLead(follower) => orphaned = Some(follower),
            }
        }
        orphaned
    }

    /// Does `work` on several pairs, and logs one line for all that change alike.
    pub(super) fn told_together(&mut self, work: impl FnOnce(&mut Cluster)) {
        if self.edges.is_some() {
            return work(self);
        }
        self.edges = Some(Vec::new());
        work(self);
        let mut edges = self.edges.take().unwrap_or_default();
        while let Some(&(first, before)) = edges.first() {
            let known = |id: PairId| (self.pairs[id].pair.state().word(), self.pairs[id].pair.reason());
            let (alike, others): (Vec<_>, Vec<_>) =
                edges.into_iter().partition(|&(id, from)| (from, known(id)) == (before, known(first)));
            self.log_edge(first, before, alike.len());
            edges = others;
        }
    }

    fn log_state(&mut self, id: PairId, before: State) {
        if !self.topology.pair_is_used(id) {
            let to = self.pairs[id].pair.state().word();
            return tracing::debug!(pair = %self.pair_name(id), from = before.word(), to, "a pair that never gets a key changed");
        }
        match &mut self.edges {
            Some(edges) => edges.push((id, before)),
            None => self.log_edge(id, before, 1),
        }
    }

    /// `pairs`: this many changed alike, this one among them.
    fn log_edge(&mut self, id: PairId, before: State, pairs: usize) {
        let pair = &self.pairs[id].pair;
        let leader =
            pair.state().leader().map_or("none".to_owned(), |p| self.topology.addr(self.node_at(id, p)).to_string());
        let name = self.pair_name(id);
        let (from, to, reason) = (before.word(), pair.state().word(), pair.reason());
        let what = match pairs {
            1 => format!("{from} → {to}, led by {leader}"),
            _ => format!("{from} → {to}, as one of {pairs} pairs"),
        };
        self.operators.changes.note(format!("pair {name}"), what, reason);
        match self.pairs[id].pair.state() {
            State::Dark { .. } if self.pairs[id].beginning.undecided && pairs == 1 => {
                tracing::info!(pair = %name, from, to, %leader, %reason, "pair changed");
            }
            State::Dark { .. } if pairs == 1 => {
                tracing::error!(pair = %name, from, to, %leader, %reason, "pair is dark: its keys are refused");
            }
            State::Dark { .. } => {
                tracing::error!(pairs, first = %name, from, to, %reason, "pairs are dark: their keys are refused");
            }
            State::Degraded { .. } if before == State::Mirrored && pairs == 1 => {
                tracing::warn!(pair = %name, from, to, %leader, %reason, "pair is degraded: one copy left");
            }
            State::Degraded { .. } if before == State::Mirrored => {
                tracing::warn!(pairs, first = %name, from, to, %reason, "pairs are degraded: one copy left");
            }
            _ if pairs == 1 => tracing::info!(pair = %name, from, to, %leader, %reason, "pair changed"),
            _ => tracing::info!(pairs, first = %name, from, to, %reason, "pairs changed"),
        }
    }

    fn carry_out(&mut self, id: PairId, effect: pair::Effect) {
        match effect {
            pair::Effect::Close { void } => {
                let void = void.map(|place| self.node_at(id, place));
                self.pairs[id].flush_hold = Hold::None;
                self.pairs[id].recording = Recording::default();
                self.close(id, void);
            }
            pair::Effect::RecordAlone { on } => self.record(id, Fact::Alone(on), vec![on]),
            pair::Effect::RecordFilling { on } => self.record_filling(id, on),
            pair::Effect::RecordSync { follower } => self.record(id, Fact::Sync, vec![follower, follower.other()]),
            pair::Effect::Open => {
                if self.flush.holds_gates() {
                    self.pairs[id].flush_hold = Hold::Kept;
                } else {
                    self.publish(id);
                }
            }
            pair::Effect::FinishCopies => {
                if let Some(reply) = self.pairs[id].ready_reply.take() {
                    let _ = reply.send(true);
                } else {
                    // The job ended in between, and its end brings the pair back to Degraded.
                    self.apply(id, pair::Event::Drained(false));
                }
            }
            pair::Effect::AbortResync => self.abort_job_of(id),
        }
    }

    pub(super) fn close(&mut self, id: PairId, void: Option<NodeId>) {
        let run = &mut self.pairs[id];
        run.round += 1;
        run.unconfirmed = WorkerId::all(self.workers.len()).collect();
        for worker in &self.workers {
            let _ = worker.send(Command::Close { pair: id, void, round: run.round });
        }
    }

    /// Tells the workers the route of the pair's present state.
    pub(super) fn publish(&mut self, id: PairId) {
        if self.topology.has_backups() {
            self.plan(id, FillEvent::Opened(self.pairs[id].pair.state()));
        }
        let route = self.route(id);
        if let Route::Open(flow) = &route {
            // From now on items may be written to them: emptiness that was proved before proves
            // nothing any more.
            for node in std::iter::once(flow.leader).chain(flow.follower.node()) {
                self.nodes[node].empty = false;
            }
        }
        let run = &mut self.pairs[id];
        run.flush_hold = Hold::None;
        if !self.awaits_first_leader(id) {
            for worker in &self.workers {
                let _ = worker.send(Command::Open { pair: id, route: route.clone() });
            }
        }
        self.unsettled.pair(id);
    }

    pub(super) fn route(&self, id: PairId) -> Route {
        let run = &self.pairs[id];
        let Some(leader) = run.pair.state().leader() else { return Route::Dark(run.pair.reason()) };
        let follower = match run.pair.state() {
            State::Mirrored => self.topology.node_at(id, Place::Backup).map_or(Follower::None, Follower::InSync),
            State::Recovering { leader } => Follower::Filling(self.node_at(id, leader.other()), run.recopy.clone()),
            _ => Follower::None,
        };
        let term = self.topology.has_backups().then(|| run.pair.term());
        let (missed, lone, written) = (run.missed.clone(), run.lone.clone(), run.written.clone());
        Route::Open(Flow { leader: self.node_at(id, leader), follower, term, writable: true, missed, lone, written })
    }
}
