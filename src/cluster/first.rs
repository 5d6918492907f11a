//! The first look: what every node holds when the proxy starts, and the first state of every pair.

use std::time::Duration;

use tokio::time::Instant;

use crate::ambient;
use crate::backend::marker::{Fact, Leftovers, Period, Record, RingMark, Session};
use crate::backend::{NodeControl, NodeError, NodeView};
use crate::config::ResyncMode;
use crate::ids::{Incarnation, NodeId, PairId, Place, Term};
use crate::pair::{self, Gate, Reason, State};
use crate::proxy::Command;
use crate::resync::Fill;
use crate::rules::{Rule, holds};

use super::names::look_for;
use super::nodes::{NodeRun, reason_of};
use super::start::{self, Decision, Knowledge, Seen};
use super::terms;
use super::{Cluster, Internal, QUIET_PERIOD};

/// Looks at a node that refuses or breaks connections before it counts as away, and the pause
/// between them.
pub(super) const FIRST_LOOKS: usize = 3;
pub(super) const FIRST_LOOK_PAUSE: Duration = Duration::from_millis(50);

/// The record of the pair of that number on a node, if it is one of that period.
fn record_of(view: &NodeView, pair: PairId, period: Period) -> Option<Record> {
    view.records.iter().find(|(p, r)| *p == pair && r.period == period).map(|(_, r)| *r)
}

/// One connection that breaks is no reason to let the other node lead with what it has.
async fn first_look(control: &NodeControl, pairs: usize) -> Result<NodeView, NodeError> {
    let mut looked = control.view(pairs).await;
    for _ in 1..FIRST_LOOKS {
        if !matches!(looked, Err(NodeError::Reset | NodeError::Refused)) {
            break;
        }
        tokio::time::sleep(FIRST_LOOK_PAUSE).await;
        looked = control.view(pairs).await;
    }
    looked
}

impl Cluster {
    /// Looks at every node and gives every pair its first state.
    pub(super) async fn start(&mut self) {
        self.look_up_all().await;
        let pairs = if self.marked() { self.topology.pair_count() } else { 0 };
        self.look_at_all(pairs).await;
        if self.marked() {
            let open = self.judge_sessions();
            if self.nodes.iter().any(NodeRun::left_unsettled) {
                tracing::warn!("the last proxy did not stop cleanly: its sockets may still hold something");
            }
            if open && holds(Rule::QuietPeriodAfterCrash) {
                tokio::time::sleep(QUIET_PERIOD).await;
                // What landed meanwhile counts: the last proxy may have been flushing, or recording
                // who leads.
                self.look_at_all(pairs).await;
                self.judge_sessions();
            }
            self.begin_period();
            self.seed_epochs();
            self.begin_terms();
            self.mark_all().await;
        } else {
            self.begin_period();
            self.begin_terms();
            for node in self.topology.nodes() {
                if self.nodes[node.index()].view.is_some() {
                    self.stamp(node);
                }
            }
        }
        for node in self.topology.nodes() {
            if self.nodes[node.index()].view.is_some() {
                let now = self.now();
                let run = &mut self.nodes[node.index()];
                run.health.back(now);
                run.reason = Reason::None;
                self.settle_address(node);
                self.measure_clock(node);
                self.allow(node);
            }
        }
        self.tell_item_limit();
        for node in self.topology.nodes() {
            if let Some(found) = self.nodes[node.index()].view.as_ref().and_then(|v| v.pending.clone()) {
                self.flush.pending.merge(&found);
            }
        }
        if !self.flush.pending.is_blank() {
            // All of them together: what one node still has on its list was run by another's word.
            let known = std::mem::take(&mut self.flush.pending);
            self.learn_pending(&known);
            self.record_pending();
        }
        self.told_together(|cluster| {
            for pair in cluster.topology.pairs() {
                let (primary, backup) = cluster.topology.nodes_of(pair);
                let clean = std::iter::once(primary).chain(backup).all(|n| cluster.nodes[n.index()].session_settled);
                cluster.decide(pair, clean || !holds(Rule::CrashIsNotClean));
            }
        });
    }

    async fn look_at_all(&mut self, pairs: usize) {
        let patience = 2 * self.settings.timeout.max(self.settings.probe_timeout);
        let looks = self.topology.nodes().map(|node| {
            let (control, name) = (&self.controls[node.index()], &self.nodes[node.index()].name);
            look_for(&self.names, name, node, patience, move || first_look(control, pairs))
        });
        let views = futures::future::join_all(looks).await;
        for (node, view) in self.topology.nodes().zip(views) {
            match view {
                Ok(view) => {
                    self.nodes[node.index()].view = Some(view);
                }
                Err(error) => {
                    tracing::warn!(node = %self.topology.addr(node), %error, "node does not answer at the start");
                    let run = &mut self.nodes[node.index()];
                    // What it said before it broke off is not unsaid.
                    run.unmarked = run.view.take();
                    run.reason = reason_of(&error);
                    run.silent_since = Some(Instant::now());
                    run.refused_since = (error == NodeError::Refused).then(Instant::now);
                }
            }
        }
    }

    /// Whether the last proxy left nothing half done on a node: its session there is closed, or was
    /// closed on another node while this one was away. (Each run of a proxy has an id of its own,
    /// and closes no session with work unfinished.) `true`: a session is open.
    fn judge_sessions(&mut self) -> bool {
        let sessions: Vec<_> = self.nodes.iter().filter_map(|run| run.view.as_ref()?.session).collect();
        let settled = |session: Session| sessions.iter().any(|s| s.id == session.id && !s.open);
        for run in &mut self.nodes {
            run.session_settled = run.view.as_ref().and_then(|v| v.session).is_some_and(settled);
        }
        // Also after a clean stop without a node: what the last proxy had sent it before it hung is
        // still in its sockets.
        sessions.iter().any(|session| session.open)
    }

    /// If the nodes were last used under this ring, its period goes on. Otherwise a new one begins.
    fn begin_period(&mut self) {
        let marks: Vec<RingMark> = self.nodes.iter().filter_map(|run| run.view.as_ref()?.ring).collect();
        if let Some(&latest) = marks.iter().max_by_key(|mark| mark.period) {
            self.begin_period_after(latest);
        }
    }

    /// No node that carries a ring marker answered at the start, and this one comes later: what it
    /// says of the period counts, as it would have at the start. Else every node would seem to have
    /// missed one, and nothing that any of them holds would be believed.
    pub(super) fn learn_period(&mut self, view: &NodeView) {
        let Some(mark) = view.ring.filter(|_| self.period_found == Period::default()) else { return };
        if self.nodes.iter().all(|run| run.incarnation.is_none()) {
            self.begin_period_after(mark);
        } else {
            // Nodes without markers carry the new period already: the others are as if the ring had
            // changed.
            self.period_found = mark.period;
        }
    }

    fn begin_period_after(&mut self, latest: RingMark) {
        self.period_found = latest.period;
        if latest.fingerprint == self.fingerprint() {
            self.period = latest.period;
        } else {
            // Whatever the clock says, later than any other.
            self.period = self.period.max(Period(latest.period.0.saturating_add(1)));
            tracing::warn!("the list of servers has changed since they were last used: keys that moved are misses");
        }
    }

    /// Whether a node carries the markers of this place on this ring, in the present period.
    pub(super) fn is_ours(&self, node: NodeId, view: &NodeView) -> bool {
        view.incarnation.is_some() && view.ring.is_some_and(|mark| mark.is_same_place(&self.ring_of(node)))
    }

    /// The ring's, as the nodes' markers name it. A time without records (no backups, or
    /// `--resync=off`) is a ring of its own: whatever the nodes' records say is void after it.
    fn fingerprint(&self) -> u64 {
        self.topology.fingerprint() ^ if self.marked() { 0 } else { u64::MAX }
    }

    /// Tells a node that it is used without records: no more than its ring marker, which ends the
    /// period before. Else a proxy that keeps records would believe the old ones when it comes
    /// back, and let a backup lead that has missed everything since.
    pub(super) fn stamp(&self, node: NodeId) {
        let (control, mark) = (self.controls[node.index()].clone(), self.ring_of(node));
        tokio::spawn(async move {
            // If this fails, the next probe finds it missing, or the node's next return repeats it.
            if let Err(error) = control.stamp(mark).await {
                tracing::debug!(%error, "cannot write a ring marker");
            }
        });
    }

    pub(super) fn ring_of(&self, node: NodeId) -> RingMark {
        let primaries = self.topology.nodes().filter(|&n| self.topology.place(n) == Place::Primary).count();
        RingMark {
            fingerprint: self.fingerprint(),
            node,
            primaries: primaries as u16,
            // Without records there are no pairs: primaries count, and backups (only with
            // `--resync=off`) are refilled from them later.
            backups: if self.marked() { (self.topology.node_count() - primaries) as u16 } else { 0 },
            period: self.period,
            term: self.term,
            leftovers: self.nodes[node.index()].leftovers,
        }
    }

    /// Whether a node that is not [ours](Self::is_ours) holds something that is, or may be, out of
    /// date: it was used under another ring, and since then there was a third one; or under the
    /// last one, and it was not full, or keeps keys that others changed.
    fn is_stale(&self, node: NodeId, view: &NodeView) -> bool {
        let Some(mark) = view.ring else { return view.ring_unread };
        if mark.is_same_place(&self.ring_of(node)) {
            return mark.leftovers == Leftovers::Stale;
        }
        let (place, pairs) = mark.pairs();
        // The node's own record does not know what was written without it: another one's may.
        let full = |pair: &PairId| {
            let own = record_of(view, *pair, mark.period);
            let views = self.nodes.iter().filter_map(|run| run.view.as_ref());
            let newest = views.filter_map(|v| record_of(v, *pair, mark.period)).max_by_key(|r| r.epoch);
            own.is_some_and(|own| {
                let newest = newest.unwrap_or(own);
                own.full_at(place) && newest.full_at(place) && (newest.fact != Fact::Sync || own.epoch >= newest.epoch)
            })
        };
        mark.period != self.period_found || mark.leftovers != Leftovers::Clean || !pairs.iter().all(full)
    }

    /// What the node's ring marker is to say of what it holds now. `decided`: its pairs have their
    /// states, so whatever a stranger holds is out of date.
    pub(super) fn leftovers_on(&self, node: NodeId, view: &NodeView, decided: bool) -> Leftovers {
        match view.ring {
            Some(mark) if self.is_ours(node, view) => mark.leftovers,
            _ if view.curr_items == 0 => Leftovers::Clean,
            _ if decided || self.is_stale(node, view) => Leftovers::Stale,
            _ => Leftovers::Dirty,
        }
    }

    /// The pair's record on a node, if it is one of this period.
    pub(super) fn record_in(&self, view: &NodeView, pair: PairId) -> Option<Record> {
        record_of(view, pair, self.period)
    }

    fn seed_epochs(&mut self) {
        if !holds(Rule::UniqueEpochs) {
            return;
        }
        for node in self.topology.nodes() {
            let Some(view) = &self.nodes[node.index()].view else { continue };
            for &(pair, record) in &view.records {
                if let Some(run) = self.pairs.get_mut(pair.index()) {
                    run.pair.seed(record.epoch);
                }
            }
        }
    }

    fn begin_terms(&mut self) {
        let views = self.nodes.iter().filter_map(|run| run.view.as_ref().or(run.unmarked.as_ref()));
        let found = views.map(terms::named).max().unwrap_or_default();
        if !self.topology.has_backups() {
            // Tokens are the servers' own ids. What was given before is remembered.
            self.term = found;
            return;
        }
        // Servers that are not of this list any more may have been the only ones to see the last
        // terms of it.
        let same_list = self.marked() && self.period == self.period_found;
        let all_read = same_list && self.nodes.iter().all(|run| run.view.is_some());
        self.term = terms::first(found, all_read, ambient::random_u64());
        for run in &mut self.pairs {
            run.pair.begin_at(self.term);
        }
    }

    /// A node that came back is looked at: do tokens exist that this proxy has not given, under
    /// terms that are in use?
    pub(super) fn judge_terms(&mut self, node: NodeId, view: &NodeView) {
        let found = terms::named(view);
        if !self.topology.has_backups() {
            self.term = self.term.max(found);
            return;
        }
        let own = self.pairs.iter().map(|run| run.pair.term()).max().unwrap_or_default();
        let first = self.nodes[node.index()].view.is_none();
        if terms::is_foreign(found, own, first) {
            self.rise_above(found);
        }
    }

    /// Tokens may have been given under this term, and terms below it, by whatever pair's leader:
    /// from now on all terms are above it.
    pub(super) fn rise_above(&mut self, found: Term) {
        let risen: Vec<PairId> =
            self.topology.pairs().filter(|p| self.pairs[p.index()].pair.rise_above(found)).collect();
        if risen.is_empty() {
            return;
        }
        tracing::warn!(
            pairs = risen.len(),
            "a node names later leadership terms than those in use: cas tokens of these pairs count no more"
        );
        for &pair in &risen {
            let term = self.pairs[pair.index()].pair.term();
            for worker in &self.workers {
                let _ = worker.send(Command::Term { pair, term });
            }
        }
        self.term = self.term.max(found.next());
        self.record_term();
    }

    /// The next start is to know it, whatever becomes of the node that named it.
    fn record_term(&self) {
        for node in self.topology.nodes() {
            let run = &self.nodes[node.index()];
            let Some(incarnation) = run.incarnation.filter(|_| run.health.is_up()) else { continue };
            let (control, mark) = (self.controls[node.index()].clone(), self.ring_of(node));
            tokio::spawn(async move {
                // A node that fails now is noticed by its own probe, and the others carry it.
                if let Err(error) = control.ring(incarnation, mark).await {
                    tracing::debug!(%error, "cannot write a ring marker");
                }
            });
        }
    }

    /// The same for a node that did not answer at the start. A record that is later than this
    /// proxy's own must not count at the next start: before anything else, the leader's is made
    /// later still.
    pub(super) fn outrank_records(&mut self, view: &NodeView) {
        for pair in self.topology.pairs() {
            let Some(found) = self.record_in(view, pair) else { continue };
            let run = &mut self.pairs[pair.index()];
            if run.pair.outrank(found.epoch)
                && run.pair.gate() == Gate::Open
                && let State::Degraded { leader } | State::Recovering { leader } = run.pair.state()
            {
                tracing::warn!(pair = %self.pair_name(pair), record = %found, "a node came back with a later record than this proxy's: it is outranked");
                if self.pairs[pair.index()].adopting {
                    // What only the follower holds still counts.
                    self.record_filling(pair, leader.other());
                } else {
                    self.record(pair, Fact::Alone(leader), vec![leader]);
                }
            }
        }
    }

    async fn mark_all(&mut self) {
        for node in self.topology.nodes() {
            let Some(view) = &self.nodes[node.index()].view.clone() else { continue };
            let known = if self.is_ours(node, view) { view.incarnation } else { None };
            let incarnation = known.unwrap_or_else(|| Incarnation(ambient::random_u64()));
            let leftovers = self.leftovers_on(node, view, false);
            self.nodes[node.index()].leftovers = leftovers;
            let marked = self.controls[node.index()].mark(view, incarnation, self.ring_of(node), self.session).await;
            let run = &mut self.nodes[node.index()];
            match marked {
                Ok(()) => {
                    run.incarnation = Some(incarnation);
                    run.empty = run.view.as_ref().is_some_and(|v| v.curr_items == 0);
                }
                Err(error) => {
                    tracing::warn!(node = %self.topology.addr(node), %error, "cannot mark a node");
                    // It is not used now, but the records that it showed are not unseen: a node
                    // that missed writes might lead.
                    run.unmarked = run.view.take();
                    run.reason = Reason::Protocol;
                }
            }
        }
    }

    /// What nodes said that could not be marked then. They are not in use, and have still said who
    /// led.
    fn records_of_unmarked(&self, pair: PairId) -> Vec<Record> {
        let unmarked = self.nodes.iter().filter(|run| holds(Rule::RecordsOfUnmarkedNodes) && run.view.is_none());
        unmarked.filter_map(|run| self.record_in(run.unmarked.as_ref()?, pair)).collect()
    }

    fn seen(&self, node: Option<NodeId>, pair: PairId) -> Seen {
        let Some(node) = node else { return Seen::Unreachable };
        let run = &self.nodes[node.index()];
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
            let up = |node: Option<NodeId>| node.is_some_and(|n| self.nodes[n.index()].health.is_up());
            let state = match (up(Some(primary)), up(backup)) {
                (true, true) => State::Mirrored,
                (true, false) => State::Degraded { leader: Place::Primary },
                (false, true) => State::Degraded { leader: Place::Backup },
                (false, false) => State::Dark { in_sync: None, fallback: None },
            };
            self.pairs[pair.index()].undecided = false;
            return self.apply(pair, pair::Event::Start(state, self.reason_at_start(pair, state, true)));
        }
        let newest = self
            .topology
            .nodes()
            .filter(|n| self.nodes[n.index()].health.is_up())
            .filter_map(|n| self.record_in(self.nodes[n.index()].view.as_ref()?, pair))
            .chain(self.records_of_unmarked(pair))
            .max_by_key(|r| r.epoch);
        let known =
            Knowledge { primary: self.seen(Some(primary), pair), backup: self.seen(backup, pair), newest, clean };
        let Decision { mut state, fill, waits } = start::decide(&known);
        if let (State::Recovering { leader }, false) = (state, self.settings.resync == ResyncMode::Auto) {
            // Nobody knows when it will be filled: the leader alone is written to, and a later
            // start will purge the other.
            state = State::Degraded { leader };
        }
        let run = &mut self.pairs[pair.index()];
        run.adopting = matches!(state, State::Recovering { .. });
        run.resumed = newest.filter(|_| fill == Some(Fill::Adopt));
        run.undecided = waits;
        run.first_fill = fill;
        if newest.is_none()
            && let State::Degraded { leader } = state
            && self.speaks_for(pair, leader.other())
            && self.seen(self.topology.node_at(pair, leader.other()), pair) == Seen::Unreachable
        {
            let node = self.topology.addr(self.node_at(pair, leader));
            tracing::warn!(pair = %self.pair_name(pair), leader = %node,
                "the other node does not answer and this one carries no markers: it leads on its own word, and what only the other holds will be purged");
        }
        if let (Some(Fill::Adopt), Some(_)) = (fill, newest) {
            tracing::info!(pair = %self.pair_name(pair), "an adoption was cut off: it goes on");
        } else if let (Some(Fill::Adopt), Some(leader), true) =
            (fill, state.leader(), state.leader().is_some_and(|p| self.speaks_for(pair, p)))
        {
            let (leader, other) = (self.node_at(pair, leader), self.node_at(pair, leader.other()));
            tracing::warn!(pair = %self.pair_name(pair), leader = %self.topology.addr(leader), other = %self.topology.addr(other),
                "both nodes hold items and nothing tells whose are newer: where they differ the leader's count, and what only the other holds is added to it");
        }
        let reason = self.reason_at_start(pair, state, waits);
        if matches!(state, State::Dark { in_sync: None, .. }) && !waits {
            self.wait_for_first_leader(pair);
        }
        self.apply(pair, pair::Event::Start(state, reason));
        let away = if self.nodes[primary.index()].health.is_up() { Place::Backup } else { Place::Primary };
        if waits && self.speaks_for(pair, away) {
            tracing::error!(pair = %self.pair_name(pair), "the pair waits for a node that does not answer");
        }
    }

    /// As long as for a last full copy that is late: emptying a node of few items takes
    /// milliseconds, one that is full takes seconds.
    fn wait_for_first_leader(&mut self, pair: PairId) {
        tracing::warn!(pair = %self.pair_name(pair),
            "no copy that counts is left: the node that is emptied first leads, and requests wait for it");
        let patience = self.settings.leader_timeout;
        self.pairs[pair.index()].first_leader_by = Some(Instant::now() + patience);
        let internal = self.internal.clone();
        tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            let _ = internal.send(Internal::WaitedForLeader { pair });
        });
    }

    /// Whether the pair's requests wait for the leader that its first decision promised, rather
    /// than being refused: one of its nodes is there to be emptied.
    pub(super) fn awaits_first_leader(&self, pair: PairId) -> bool {
        let run = &self.pairs[pair.index()];
        let (primary, backup) = self.topology.nodes_of(pair);
        run.first_leader_by.is_some_and(|by| Instant::now() < by)
            && run.pair.state() == State::Dark { in_sync: None, fallback: None }
            && std::iter::once(primary).chain(backup).any(|n| self.nodes[n.index()].health.is_up())
    }

    /// After every event: what waited in vain is refused, and nothing waits again.
    pub(super) fn end_wait_for_leader(&mut self, pair: PairId) {
        if self.pairs[pair.index()].first_leader_by.is_none() || self.awaits_first_leader(pair) {
            return;
        }
        let run = &mut self.pairs[pair.index()];
        run.first_leader_by = None;
        if run.pair.state().leader().is_none()
            && run.pair.gate() == Gate::Open
            && !run.held_for_flush
            && !run.flush_closed
        {
            tracing::error!(pair = %self.pair_name(pair), "no node of the pair came to lead in time: its keys are refused until one does");
            self.publish(pair);
        }
    }

    /// Whether this is the first of the pairs of its node at `place`: one word for all of them.
    fn speaks_for(&self, pair: PairId, place: Place) -> bool {
        let node = self.node_at(pair, place);
        self.topology.pairs_of(node).find(|&p| self.topology.pair_is_used(p)) == Some(pair)
    }

    /// Why a pair is not mirrored from the start on.
    fn reason_at_start(&self, pair: PairId, state: State, waits: bool) -> Reason {
        // Why a node is not in use.
        let away = |place: Place| {
            let run = &self.nodes[self.node_at(pair, place).index()];
            (!run.health.is_up()).then_some(run.reason).filter(|reason| *reason != Reason::None)
        };
        match state {
            // What answers is recorded as out of date, and what is in sync does not answer.
            State::Dark { in_sync: Some(_), .. } => Reason::StaleAlone,
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
