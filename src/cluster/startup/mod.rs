//! The start: the markers of every node are read, and every pair gets its first state.
//!
//! - `look`: what every node holds.
//! - `table`: what follows from that for a pair.

mod look;
mod table;

use tokio::time::{Instant, sleep_until};

use crate::backend::marker::{Fact, Record};
use crate::config::ResyncMode;
use crate::ids::{NodeId, PairId, Place};
use crate::pair::{self, CutOff, FillEvent, Gate, Reason, State};
use crate::resync::Fill;
use crate::rules::{Rule, holds};

use super::flush::Hold;
use super::lost_items::Lacks;
use super::nodes::NodeRun;
use super::turn::Refused;
use super::{Cluster, Internal, QUIET_PERIOD};
use table::{Decision, Knowledge, Seen};

pub(super) use look::{FIRST_LOOK_PAUSE, FIRST_LOOKS};

/// A leader that a pair's first decision promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FirstLeader {
    /// None was promised, or none any more.
    NotAwaited,
    /// Requests wait for it.
    Awaited,
    /// They have waited long enough.
    InVain,
}

/// What of the start is still to come for a pair.
pub(super) struct Beginning {
    /// No row of the table has applied yet: too few nodes have answered.
    pub(super) undecided: bool,
    /// The table found no copy that counts, and a node is being emptied that will lead.
    first_leader: FirstLeader,
}

impl Beginning {
    pub(super) fn new() -> Beginning {
        Beginning { undecided: true, first_leader: FirstLeader::NotAwaited }
    }
}

impl Cluster {
    /// Looks at every node and gives every pair its first state.
    pub(super) async fn start(&mut self) -> Result<(), Refused> {
        // The last proxy is no more, or does not act any more: the quiet time begins here, and
        // passes while a server is waited for that has died with it.
        let quiet = Instant::now() + QUIET_PERIOD;
        self.look_up_all().await;
        let pairs = if self.marked() { self.topology.pair_count() } else { 0 };
        self.look_at_all(pairs).await;
        self.judge_fleet()?;
        if self.marked() {
            let open = self.judge_sessions();
            if self.nodes.iter().any(NodeRun::left_unsettled) {
                tracing::warn!("the last proxy did not stop cleanly: its sockets may still hold something");
            }
            if open && holds(Rule::QuietPeriodAfterCrash) {
                sleep_until(quiet).await;
                // What landed meanwhile counts: the last proxy may have been flushing, or recording
                // who leads.
                self.look_at_all(pairs).await;
                self.judge_sessions();
            }
            self.begin_period();
            self.must_be_alone().await?;
            self.begin_turn();
            self.seed_epochs();
            self.begin_terms();
            self.mark_all().await;
            self.look_for_former().await;
        } else {
            self.begin_period();
            self.begin_terms();
            for node in self.topology.nodes() {
                if self.nodes[node].view.is_some() {
                    self.stamp(node);
                }
            }
        }
        for node in self.topology.nodes() {
            if self.nodes[node].view.is_some() {
                let now = self.now();
                let run = &mut self.nodes[node];
                run.health.back(now);
                run.reason = Reason::None;
                self.settle_address(node);
                self.measure_clock(node);
                self.watch_stored(node);
                self.allow(node);
            }
        }
        self.tell_item_limit();
        for node in self.topology.nodes() {
            if let Some(found) = self.nodes[node].view.as_ref().and_then(|v| v.pending.clone()) {
                self.delayed.merge(&found);
            }
        }
        if !self.delayed.pending().is_blank() {
            // All of them together: what one node still has on its list was run by another's word.
            let known = self.delayed.take_known();
            self.learn_pending(&known);
            self.record_pending();
        }
        self.told_together(|cluster| {
            for pair in cluster.topology.pairs() {
                let (primary, backup) = cluster.topology.nodes_of(pair);
                let clean = std::iter::once(primary).chain(backup).all(|n| cluster.nodes[n].session_settled);
                cluster.decide(pair, clean || !holds(Rule::CrashIsNotClean));
            }
        });
        Ok(())
    }

    /// What nodes said that could not be marked then. They are not in use, and have still said who
    /// led.
    fn records_of_unmarked(&self, pair: PairId) -> Vec<Record> {
        let unmarked = self.nodes.iter().filter(|run| holds(Rule::RecordsOfUnmarkedNodes) && run.view.is_none());
        unmarked.filter_map(|run| self.record_in(run.unmarked.as_ref()?, pair)).collect()
    }

    fn seen(&self, node: Option<NodeId>, pair: PairId) -> Seen {
        let Some(node) = node else { return Seen::Unreachable };
        let run = &self.nodes[node];
        let Some(view) = run.view.as_ref().filter(|_| run.health.is_up()) else { return Seen::Unreachable };
        let record = self.record_in(view, pair);
        let full = record.is_some_and(|r| r.full_at(self.topology.place(node)));
        if self.is_stale(node, view) && !full {
            Seen::Stale
        } else if self.is_ours(node, view) {
            Seen::Marked { record }
        } else {
            Seen::Blank { empty: view.curr_items == 0 }
        }
    }

    /// Gives a pair its first state, if what is known suffices.
    pub(super) fn decide(&mut self, pair: PairId, clean: bool) {
        let (primary, backup) = self.topology.nodes_of(pair);
        if !self.marked() {
            let state = self.state_without_markers(primary, backup);
            self.pairs[pair].beginning.undecided = false;
            return self.apply(pair, pair::Event::Start(state, self.reason_at_start(pair, state, true)));
        }
        let newest = self
            .topology
            .nodes()
            .filter(|n| self.nodes[*n].health.is_up())
            .filter_map(|n| self.record_in(self.nodes[n].view.as_ref()?, pair))
            .chain(self.records_of_unmarked(pair))
            .max_by_key(|r| r.epoch);
        let newest = self.agreed(pair, newest).or(newest);
        let known =
            Knowledge { primary: self.seen(Some(primary), pair), backup: self.seen(backup, pair), newest, clean };
        let Decision { mut state, fill, waits } = table::decide(&known);
        if let (State::Recovering { leader }, false) = (state, self.settings.resync == ResyncMode::Auto) {
            // It may not be filled for a long time: the leader alone is written to, and a later
            // start purges the other.
            state = State::Degraded { leader };
        }
        if (state, fill, self.settings.resync == ResyncMode::Auto) == (State::Mirrored, Some(Fill::Compare), false) {
            // Nor is it known when they will be compared.
            state = State::Degraded { leader: Place::Primary };
        }
        let run = &mut self.pairs[pair];
        run.beginning.undecided = waits;
        let cut_off = newest.filter(|_| fill == Some(Fill::Adopt)).and_then(|record| match record.fact {
            Fact::Adopting(leader) => Some(CutOff { leader, epoch: record.epoch }),
            _ => None,
        });
        self.plan(pair, FillEvent::Decided { state, fill, cut_off });
        self.tell_of_first_state(pair, state, fill, newest.is_some());
        // Records on other nodes say that there was something.
        let flushed = newest.is_some_and(|record| record.fact == Fact::Nobody);
        self.pairs[pair].flushed = flushed;
        if state == State::Mirrored && newest.is_some() && !flushed && known.are_empty() {
            self.items_lost(pair, Lacks::Everything);
        }
        let reason = self.reason_at_start(pair, state, waits);
        if matches!(state, State::Dark { in_sync: None, .. }) && !waits || self.awaits_silent(pair, state) {
            self.wait_for_first_leader(pair, state);
        }
        self.apply(pair, pair::Event::Start(state, reason));
        let away = if self.nodes[primary].health.is_up() { Place::Backup } else { Place::Primary };
        if waits && self.speaks_for(pair, away) {
            tracing::error!(pair = %self.pair_name(pair), "the pair waits for a node that does not answer");
        }
    }

    /// By which of its nodes answer.
    fn state_without_markers(&self, primary: NodeId, backup: Option<NodeId>) -> State {
        let up = |node: NodeId| self.nodes[node].health.is_up();
        match (up(primary), backup.is_some_and(up)) {
            (true, true) => State::Mirrored,
            (true, false) => State::Degraded { leader: Place::Primary },
            (false, true) => State::Degraded { leader: Place::Backup },
            (false, false) => State::Dark { in_sync: None, fallback: None },
        }
    }

    /// In the log, what is not as an operator may expect it.
    fn tell_of_first_state(&self, pair: PairId, state: State, fill: Option<Fill>, recorded: bool) {
        if !recorded
            && let State::Degraded { leader } = state
            && self.seen(self.topology.node_at(pair, leader.other()), pair) == Seen::Unreachable
        {
            if self.speaks_for(pair, leader.other()) {
                let node = self.topology.addr(self.node_at(pair, leader));
                tracing::warn!(pair = %self.pair_name(pair), leader = %node,
                    "the other node does not answer and this one carries no markers: it leads on its own word; what only the other holds is added to it when that one answers, or purged if a proxy has used it before");
            }
            return;
        }
        if fill != Some(Fill::Adopt) {
            return;
        }
        if recorded {
            tracing::info!(pair = %self.pair_name(pair), "an adoption was cut off: it goes on");
        } else if let Some(leader) = state.leader().filter(|leader| self.speaks_for(pair, *leader)) {
            let (leader, other) = (self.node_at(pair, leader), self.node_at(pair, leader.other()));
            tracing::warn!(pair = %self.pair_name(pair), leader = %self.topology.addr(leader), other = %self.topology.addr(other),
                "both nodes hold items and nothing tells whose are newer: where they differ the leader's count, and what only the other holds is added to it");
        }
    }

    fn wait_for_first_leader(&mut self, pair: PairId, state: State) {
        let silent = self.awaits_silent(pair, state);
        let what = match silent {
            true => "the server that may lead is silent: requests wait for it",
            false => "no copy that counts is left: the node that is emptied first leads, and requests wait for it",
        };
        tracing::warn!(pair = %self.pair_name(pair), "{what}");
        // Emptying a node with few items takes milliseconds, a full one seconds: as long as a last
        // full copy that is late is waited for. Half of that for a silent node, which the first
        // look has waited for already. A request is refused after that, with the reason.
        let patience = self.settings.leader_timeout / if silent { 2 } else { 1 };
        self.pairs[pair].beginning.first_leader = FirstLeader::Awaited;
        self.after(patience, Internal::WaitedForLeader { pair });
    }

    /// Whether the pair's requests wait for the leader that its first decision promised, rather
    /// than being refused: one of its nodes is there to be emptied, or late.
    pub(super) fn awaits_first_leader(&self, pair: PairId) -> bool {
        let run = &self.pairs[pair];
        let (primary, backup) = self.topology.nodes_of(pair);
        let state = run.pair.state();
        let emptied = || {
            state == State::Dark { in_sync: None, fallback: None }
                && std::iter::once(primary).chain(backup).any(|n| self.nodes[n].health.is_up())
        };
        run.beginning.first_leader == FirstLeader::Awaited && (emptied() || self.awaits_silent(pair, state))
    }

    /// Whether a pair's first leader may be one that is only late: a slow machine is no reason to
    /// refuse what would be answered a moment later.
    fn awaits_silent(&self, pair: PairId, state: State) -> bool {
        let silent = |place: Place| {
            let Some(node) = self.topology.node_at(pair, place) else { return false };
            let run = &self.nodes[node];
            !run.health.is_up() && run.reason == Reason::Timeout
        };
        match state {
            State::Dark { in_sync: Some(place), .. } => silent(place),
            State::Dark { in_sync: None, .. } => silent(Place::Primary) || silent(Place::Backup),
            _ => false,
        }
    }

    pub(super) fn waited_for_leader(&mut self, pair: PairId) {
        let run = &mut self.pairs[pair];
        if run.beginning.first_leader == FirstLeader::Awaited {
            run.beginning.first_leader = FirstLeader::InVain;
            self.unsettled.pair(pair);
        }
    }

    /// Whether waiting for a first leader has become pointless.
    pub(super) fn waits_in_vain(&self, pair: PairId) -> bool {
        self.pairs[pair].beginning.first_leader != FirstLeader::NotAwaited && !self.awaits_first_leader(pair)
    }

    /// Part of [`settle`](Cluster::settle): requests that waited in vain are refused, and no more
    /// wait.
    pub(super) fn end_wait_for_leader(&mut self, pair: PairId) {
        if !self.waits_in_vain(pair) {
            return;
        }
        let run = &mut self.pairs[pair];
        run.beginning.first_leader = FirstLeader::NotAwaited;
        if run.pair.state().leader().is_none() && run.pair.gate() == Gate::Open && run.flush_hold == Hold::None {
            tracing::error!(pair = %self.pair_name(pair), "no node of the pair came to lead in time: its keys are refused until one does");
            self.publish(pair);
        }
    }

    /// Whether this is the first of the pairs of its node at `place`: one log line for all of them.
    fn speaks_for(&self, pair: PairId, place: Place) -> bool {
        let node = self.node_at(pair, place);
        self.topology.pairs_of(node).find(|&p| self.topology.pair_is_used(p)) == Some(pair)
    }

    /// Why a pair is not mirrored from the start on.
    fn reason_at_start(&self, pair: PairId, state: State, waits: bool) -> Reason {
        // Why a node is not in use.
        let away = |place: Place| {
            let run = &self.nodes[self.node_at(pair, place)];
            (!run.health.is_up()).then_some(run.reason).filter(|reason| *reason != Reason::None)
        };
        match state {
            // What answers is recorded as out of date, and what is in sync does not answer. Where
            // neither does, why that one does not.
            State::Dark { in_sync: Some(full), .. } => {
                let other = self.node_at(pair, full.other());
                let silent = !self.nodes[other].health.is_up();
                away(full).filter(|_| silent).unwrap_or(Reason::StaleAlone)
            }
            // What answers is out of date, and nothing that is not is left.
            State::Dark { in_sync: None, .. } if !waits => Reason::MarkerStale,
            State::Dark { in_sync: None, .. } => {
                away(Place::Primary).or_else(|| away(Place::Backup)).unwrap_or(Reason::Starting)
            }
            State::Degraded { leader } => away(leader.other()).unwrap_or(Reason::Starting),
            State::Mirrored | State::Recovering { .. } => Reason::Starting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::alone;

    /// It was called the reason also where no server had answered.
    #[tokio::test(start_paused = true)]
    async fn only_a_server_that_answers_is_out_of_date_alone() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
        let dark = State::Dark { in_sync: Some(Place::Backup), fallback: None };
        cluster.nodes.iter_mut().for_each(|node| node.reason = Reason::Refused);
        assert_eq!(cluster.reason_at_start(PairId(0), dark, false), Reason::Refused);
        let now = cluster.now();
        cluster.nodes[NodeId(0)].health.back(now);
        assert_eq!(cluster.reason_at_start(PairId(0), dark, false), Reason::StaleAlone);
    }
}
