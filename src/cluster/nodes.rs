//! Nodes: who is up, why not, and what one that comes back holds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ambient;
use crate::backend::marker::Leftovers;
use crate::backend::{DrainEnd, MarkError, NodeError, NodeView, Probe};
use crate::config::ResyncMode;
use crate::expiry::Offset;
use crate::health::Health;
use crate::ids::{Incarnation, NodeId, PairId, Place};
use crate::pair::{self, Loss, Reason, State};
use crate::proxy::Command;
use crate::resync::Fill;
use crate::rules::{Rule, holds};

use super::jobs::JobRun;
use super::{Cluster, Internal, QUIET_PERIOD};

/// What the control plane knows of a node.
pub(super) struct NodeRun {
    pub(super) health: Health,
    pub(super) reason: Reason,
    /// The marker on it, as far as known.
    pub(super) incarnation: Option<Incarnation>,
    /// What it said when it was last looked at; empty before the first time.
    pub(super) view: Option<NodeView>,
    /// How far its dates are ahead of the proxy's; in its first second a guess, that errs to the
    /// smaller side.
    pub(super) offset: Option<Offset>,
    /// It was last taken back with the memory that it had.
    pub(super) kept_memory: bool,
    /// Ends the measuring of its clock.
    pub(super) measuring: CancellationToken,
    /// What its ring marker says of items that it should not hold.
    pub(super) leftovers: Leftovers,
    pub(super) foreign: super::foreign::Foreign,
    pub(super) cleaning: super::clean::Cleaning,
    /// The last proxy left nothing half done on it; as found at the start.
    pub(super) session_settled: bool,
    /// It held no items at all when it was last taken back, and nothing was written to it since.
    pub(super) empty: bool,
    /// Workers with void answers outstanding.
    pub(super) undrained: BTreeSet<u16>,
    /// Connections of the control plane that are being drained.
    pub(super) drains: u32,
    /// Workers that still have connections to an earlier address of it.
    pub(super) leaving: BTreeSet<u16>,
    /// A connection to it was given up with commands unanswered, and nothing proves that they
    /// cannot take effect any more.
    pub(super) abandoned: bool,
    pub(super) name: super::names::Name,
    /// Has its name looked up early.
    pub(super) look_up: Arc<Notify>,
    /// A look at it, or its marking, is under way.
    pub(super) looking: bool,
    /// Since when its process refuses connections.
    pub(super) refused_since: Option<Instant>,
    /// Since when it has not answered.
    pub(super) silent_since: Option<Instant>,
    /// What it said at the start, where it could not be marked then: who led alone counts all the
    /// same.
    pub(super) unmarked: Option<NodeView>,
    /// Its memory is proved gone since it was lost.
    pub(super) memory_gone: bool,
    /// How often it was taken back when no route named it any more; workers repeat it with the
    /// faults that they tell.
    pub(super) life: u32,
    /// Wakes its prober early.
    pub(super) hint: Arc<Notify>,
    /// It was lost and is not taken back: its prober hurries, also while it answers. Written here,
    /// read by the prober.
    pub(super) away: Arc<AtomicBool>,
    /// The operator asked for a refill, whatever the mode.
    pub(super) operator: bool,
    /// The operator cancelled its resync: none begins by itself before it is lost again or asked
    /// for.
    pub(super) cancelled: bool,
    pub(super) job: Option<JobRun>,
    /// The last job's progress and end.
    pub(super) last: Option<super::jobs::LastJob>,
    pub(super) retry_pending: bool,
    pub(super) retry_after: Duration,
    /// It was lost for these reasons, so often.
    pub(super) faults: Vec<(Reason, u64)>,
    pub(super) since: Instant,
}

impl NodeRun {
    /// The last proxy that used it may have left something half done; as found at the start.
    pub(super) fn left_unsettled(&self) -> bool {
        !self.session_settled && self.view.as_ref().is_some_and(|view| view.session.is_some())
    }

    pub(super) fn new() -> NodeRun {
        NodeRun {
            health: Health::new(),
            reason: Reason::Starting,
            incarnation: None,
            view: None,
            offset: None,
            kept_memory: false,
            measuring: CancellationToken::new(),
            leftovers: Leftovers::Clean,
            foreign: Default::default(),
            cleaning: Default::default(),
            session_settled: false,
            empty: false,
            undrained: BTreeSet::new(),
            drains: 0,
            leaving: BTreeSet::new(),
            abandoned: false,
            name: Default::default(),
            look_up: Arc::new(Notify::new()),
            looking: false,
            refused_since: None,
            silent_since: None,
            unmarked: None,
            memory_gone: false,
            life: 0,
            hint: Arc::new(Notify::new()),
            away: Arc::new(AtomicBool::new(false)),
            operator: false,
            cancelled: false,
            job: None,
            last: None,
            retry_pending: false,
            retry_after: super::jobs::RETRY_MIN,
            faults: Vec::new(),
            since: Instant::now(),
        }
    }

    pub(super) fn is_drained(&self) -> bool {
        let drained = self.undrained.is_empty() && self.drains == 0 || !holds(Rule::DrainByAnswer);
        drained && self.leaving.is_empty()
    }

    /// Whether a probe that was answered found no marker where there was one: its memory is another
    /// one, or was emptied.
    pub(super) fn has_lost_marker(&self, found: &Probe) -> bool {
        self.incarnation.is_some() && found.incarnation.is_none()
    }

    /// A process that was begun after the node was lost, and holds nothing. Its times are its own,
    /// to the second.
    fn is_new_and_empty(&self, view: &NodeView) -> bool {
        let age = view.time.saturating_sub(view.started);
        view.curr_items == 0 && self.incarnation.is_some() && age <= self.since.elapsed().as_secs() + 1
    }

    fn count_fault(&mut self, reason: Reason) {
        match self.faults.iter_mut().find(|(r, _)| *r == reason) {
            Some((_, count)) => *count += 1,
            None => self.faults.push((reason, 1)),
        }
    }
}

pub(super) fn reason_of(error: &NodeError) -> Reason {
    match error {
        NodeError::Refused => Reason::Refused,
        NodeError::Reset => Reason::Reset,
        NodeError::Timeout | NodeError::Unreachable(_) => Reason::Timeout,
        NodeError::OtherMemory => Reason::MarkerStale,
        NodeError::MarkerLost => Reason::MarkerLost,
        NodeError::Unresolved(_) => Reason::Unresolved,
        NodeError::Protocol(_) => Reason::Protocol,
    }
}

pub(super) fn reason_of_mark(error: &MarkError) -> Reason {
    match error {
        MarkError::Node(error) => reason_of(error),
        MarkError::Foreign(_) => Reason::ForeignSession,
        MarkError::MemoryGone | MarkError::OtherMemory => Reason::MarkerLost,
        MarkError::Refused(_) | MarkError::Newer(_) => Reason::Protocol,
    }
}

impl Cluster {
    /// A node is not to be used. All its pairs learn it, once; but a last full copy is waited for
    /// longer when it is only late.
    pub(super) fn lost(&mut self, node: NodeId, reason: Reason, loss: Loss, patience_over: bool) {
        let place = self.topology.place(node);
        let waited_for = |state: State| matches!(state, State::Degraded { leader } | State::Recovering { leader } if leader == place);
        let affected: Vec<PairId> = self
            .topology
            .pairs_of(node)
            .filter(|pair| {
                !(reason == Reason::Timeout && !patience_over && waited_for(self.pairs[pair.index()].pair.state()))
            })
            .collect();
        if affected.is_empty() {
            return;
        }
        let now = self.now();
        let run = &mut self.nodes[node.index()];
        run.memory_gone |= loss == Loss::MemoryGone;
        if run.health.lost(now) {
            run.away.store(true, Ordering::Relaxed);
            self.suspicions.lost(node);
            run.reason = reason;
            run.count_fault(reason);
            run.cancelled = false;
            run.since = Instant::now();
            tracing::warn!(node = %self.topology.addr(node), %reason, "node lost");
            run.hint.notify_one();
            run.look_up.notify_one();
        }
        self.told_together(|cluster| {
            for pair in affected {
                if loss == Loss::MemoryGone && cluster.awaits_undo(pair, place) {
                    // Remembered in `memory_gone`: only at the end of the other node's resync is it
                    // known whether that one may lead.
                    continue;
                }
                cluster.apply(pair, pair::Event::Lost(place, loss, reason));
            }
        });
        self.give_flush_up(node);
        self.consider_partners(node);
    }

    /// The node may not lead any more with what it did not miss: the other ones of its pairs wait
    /// for that no longer.
    pub(super) fn consider_partners(&mut self, node: NodeId) {
        let place = self.topology.place(node);
        for pair in self.topology.pairs_of(node) {
            self.consider(self.node_at(pair, place.other()));
        }
    }

    /// Whether the node at `place` may lead the pair, of which no full copy is left, with what it
    /// did not miss, and soon.
    fn may_lead_with_rest(&self, pair: PairId, place: Place) -> bool {
        let (node, run) = (self.node_at(pair, place), &self.pairs[pair.index()]);
        let holder = &self.nodes[node.index()];
        let soon = holder.is_drained() && holder.job.as_ref().is_none_or(|job| job.fills(pair));
        holder.health.is_up() && soon && run.knows_difference(place) && run.kept.may_lead(run.pair.state(), place)
    }

    /// The node holds nothing of the pair. If no copy is left it leads, unless the other one has
    /// nearly all.
    pub(super) fn is_empty_of(&mut self, pair: PairId, place: Place) {
        if !self.may_lead_with_rest(pair, place.other()) {
            self.apply(pair, pair::Event::Purged(place));
        }
    }

    /// Whether the pair waits for the node at `place` while the resync of the other one is still
    /// winding up.
    fn awaits_undo(&self, pair: PairId, place: Place) -> bool {
        self.pairs[pair.index()].pair.state() == State::Dark { in_sync: Some(place), fallback: None }
            && self.is_being_filled(self.node_at(pair, place.other()), pair)
    }

    // ---- return ---------------------------------------------------------------------------------

    pub(super) fn look(&mut self, node: NodeId) {
        self.nodes[node.index()].looking = true;
        let control = self.controls[node.index()].clone();
        let internal = self.internal.clone();
        let pairs = if self.marked() { self.topology.pair_count() } else { 0 };
        tokio::spawn(async move {
            let result = control.view(pairs).await;
            let _ = internal.send(Internal::Viewed { node, result });
        });
    }

    /// A lost node answers well again: what does it hold?
    pub(super) fn viewed(&mut self, node: NodeId, result: Result<NodeView, NodeError>) {
        let known = self.nodes[node.index()].incarnation;
        let moved = |view: &NodeView| view.life != self.address_life(node) && holds(Rule::OneAddressAConnection);
        if result.as_ref().is_ok_and(moved) {
            // That was another server.
            self.nodes[node.index()].looking = false;
            return;
        }
        let needed = self.probes_needed(node);
        let view = match result {
            Ok(view) => view,
            Err(error) => {
                self.nodes[node.index()].looking = false;
                self.nodes[node.index()].health.bad_probe();
                tracing::debug!(node = %self.topology.addr(node), %error, "a node that answered probes cannot be looked at");
                return;
            }
        };
        self.judge_terms(node, &view);
        let run = &mut self.nodes[node.index()];
        if !run.health.is_tried(needed) && !run.is_new_and_empty(&view) {
            // Another memory, and not a new process: it is probed as often as any.
            run.looking = false;
            return;
        }
        if !self.marked() {
            self.nodes[node.index()].looking = false;
            self.stamp(node);
            return self.take_back(node, view, None);
        }
        self.learn_period(&view);
        let ours = self.is_ours(node, &view);
        // A memory that this proxy has marked itself needs no other witness: the ring marker may
        // have been evicted.
        let same = known.map_or(ours, |k| view.incarnation == Some(k));
        let incarnation = match view.incarnation {
            Some(found) if same => found,
            _ => Incarnation(ambient::random_u64()),
        };
        self.outrank_records(&view);
        if let Some(found) = &view.pending {
            self.learn_pending(found);
        }
        if known.is_none() || !same {
            let decided = self.topology.pairs_of(node).all(|p| !self.pairs[p.index()].undecided);
            self.nodes[node.index()].leftovers = self.leftovers_on(node, &view, decided);
        }
        let control = self.controls[node.index()].clone();
        // Another proxy that took the node over while it was away keeps its session there: the
        // probes judge it.
        let taken = view.session.filter(|s| same && s.open && s.id != self.session.id && known.is_some());
        let session = taken.unwrap_or(self.session);
        let (ring, internal) = (self.ring_of(node), self.internal.clone());
        // First seen now, and last used by a proxy that did not say goodbye to it: as at the start.
        let unquiet = known.is_none() && view.session.is_some_and(|s| s.open && s.id != session.id)
            || self.nodes[node.index()].abandoned;
        tokio::spawn(async move {
            if unquiet && holds(Rule::QuietPeriodAfterCrash) {
                tokio::time::sleep(QUIET_PERIOD).await;
            }
            let result = control.mark(&view, incarnation, ring, session).await;
            let _ = internal.send(Internal::Marked { node, view: Box::new(view), incarnation, result });
        });
    }

    pub(super) fn marked_node(
        &mut self,
        node: NodeId,
        view: NodeView,
        incarnation: Incarnation,
        result: Result<(), MarkError>,
    ) {
        self.nodes[node.index()].looking = false;
        if view.life != self.address_life(node) && holds(Rule::OneAddressAConnection) {
            // That was another server.
            return;
        }
        match result {
            // Workers told only during the look that old commands may still be executed there: it
            // is looked at again. So is one that came in the middle of a flush, which ends what it
            // holds.
            Ok(()) if !self.nodes[node.index()].is_drained() || self.flush.is_sent() => {}
            Ok(()) => self.take_back(node, view, Some(incarnation)),
            Err(error) => {
                self.nodes[node.index()].health.bad_probe();
                tracing::warn!(node = %self.topology.addr(node), %error, "cannot mark a node that came back");
            }
        }
    }

    fn take_back(&mut self, node: NodeId, view: NodeView, incarnation: Option<Incarnation>) {
        let place = self.topology.place(node);
        let now = self.now();
        let first = self.nodes[node.index()].view.is_none();
        let same = incarnation.is_some() && view.incarnation == incarnation && !first;
        if !same {
            for pair in self.topology.pairs_of(node) {
                // The list of what the other one missed still tells what is true there.
                let listed = self.may_lead_with_rest(pair, place.other());
                let run = &mut self.pairs[pair.index()];
                run.kept.lost_by(place);
                if !listed {
                    run.missed.overflow();
                }
                if !first && run.first_fill == Some(Fill::Adopt) {
                    // What was to be adopted is gone, or who was to adopt it.
                    run.first_fill = None;
                }
            }
        }
        self.settle_address(node);
        let abandoned = std::mem::take(&mut self.nodes[node.index()].abandoned);
        if abandoned {
            self.forget_missed_on(node);
        }
        let run = &mut self.nodes[node.index()];
        run.health.back(now);
        run.away.store(false, Ordering::Relaxed);
        run.reason = if same { Reason::MarkerStale } else { Reason::Empty };
        // What an abandoned connection holds may have landed since.
        run.empty = view.curr_items == 0 && !abandoned;
        run.incarnation = incarnation;
        run.memory_gone = false;
        run.since = Instant::now();
        tracing::info!(node = %self.topology.addr(node), memory = if same { "same" } else { "new" }, items = view.curr_items, "node is back");
        let empty = run.empty;
        if first {
            self.judge_resumption(node, &view);
        }
        let record_of = |pair: PairId| self.record_in(&view, pair);
        let full: Vec<PairId> = self
            .topology
            .pairs_of(node)
            .filter(|_| self.is_ours(node, &view))
            .filter(|&p| record_of(p).map_or(self.leads_adoption(p, place), |r| r.full_at(place)))
            .collect();
        let run = &mut self.nodes[node.index()];
        run.retry_after = super::jobs::RETRY_MIN;
        run.view = Some(view);
        run.kept_memory = same;
        self.begin_life(node);
        self.measure_clock(node);
        self.allow(node);
        self.tell_item_limit();
        for pair in self.topology.pairs_of(node) {
            if incarnation.is_none() {
                self.pairs[pair.index()].undecided = false;
                self.apply(pair, pair::Event::TakenBack(place));
                continue;
            }
            if self.pairs[pair.index()].undecided {
                self.decide(pair, false);
            } else if same || (first && full.contains(&pair)) {
                // `first`: it was recorded as the one in sync before this proxy ran, and has kept
                // that memory.
                self.apply(pair, pair::Event::BackSame(place));
            } else if first && self.follows_in_adoption(pair, place) {
                // What it holds counts, but for what clients have written since.
            } else if self.awaits_undo(pair, place) {
                // The other node's resync is still winding up: only at its end is it known whether
                // that one may lead.
                self.nodes[node.index()].memory_gone = true;
            } else {
                self.apply(pair, pair::Event::Lost(place, Loss::MemoryGone, Reason::MarkerLost));
                if empty {
                    self.is_empty_of(pair, place);
                }
            }
        }
        if incarnation.is_none() {
            self.nodes[node.index()].reason = Reason::None;
        }
        self.consider(node);
        // Nodes whose refill waited for this one as their source.
        self.consider_partners(node);
    }

    /// Commands that were given up unanswered may have taken effect on the node, in whatever order:
    /// where another one leads, all of it is purged.
    fn forget_missed_on(&mut self, node: NodeId) {
        let place = self.topology.place(node);
        for pair in self.topology.pairs_of(node) {
            let run = &mut self.pairs[pair.index()];
            if run.pair.state().leader() == Some(place.other()) {
                run.missed.overflow();
            }
        }
    }

    /// A connection of the control plane that was given up has ended.
    pub(super) fn drained(&mut self, node: NodeId, life: u64, end: DrainEnd) {
        if life == self.address_life(node) {
            if end == DrainEnd::Abandoned {
                self.abandoned(node);
            }
            let run = &mut self.nodes[node.index()];
            run.drains = run.drains.saturating_sub(1);
            self.consider(node);
        }
    }

    /// A connection ended with commands unanswered, and not by the node's doing: they may still
    /// take effect there. So the node is lost, as a last full copy is not, and comes back as one
    /// that is taken over from another proxy: after a quiet period, purged of everything where it
    /// follows.
    pub(super) fn abandoned(&mut self, node: NodeId) {
        tracing::warn!(node = %self.topology.addr(node),
            "this machine's kernel gave up a connection with commands unanswered: the node may still execute them");
        self.nodes[node.index()].abandoned = true;
        self.lost(node, Reason::Timeout, Loss::Suspected, false);
    }

    /// Old faults count no more, unless a pair still waits for the node by its old route: a last
    /// full copy that was only late.
    fn begin_life(&mut self, node: NodeId) {
        let place = self.topology.place(node);
        let named = |pair: PairId| match self.pairs[pair.index()].pair.state() {
            State::Mirrored | State::Recovering { .. } => true,
            State::Degraded { leader } => leader == place,
            State::Dark { .. } => false,
        };
        if !self.topology.pairs_of(node).any(named) {
            self.nodes[node.index()].life += 1;
        }
    }

    pub(super) fn allow(&self, node: NodeId) {
        let run = &self.nodes[node.index()];
        for worker in &self.workers {
            let _ = worker.send(Command::Allow { node, incarnation: run.incarnation, life: run.life });
            let _ = worker.send(Command::Clock { node, offset: run.offset });
        }
    }

    /// The smallest `-I` of the nodes is the limit: an item that only one node of a pair can hold
    /// would not be mirrored.
    pub(super) fn tell_item_limit(&self) {
        for (index, run) in self.nodes.iter().enumerate() {
            let node = NodeId(index as u16);
            // A node that was not asked yet may send what any memcached may.
            let Some(bytes) = run.view.as_ref().and_then(|v| v.item_size_max) else { continue };
            for worker in &self.workers {
                let _ = worker.send(Command::ReplyLimit { node, bytes });
            }
        }
        let smallest = self.nodes.iter().filter_map(|n| n.view.as_ref().and_then(|v| v.item_size_max)).min();
        if let Some(limit) = smallest {
            for worker in &self.workers {
                let _ = worker.send(Command::ItemLimit(limit));
            }
        }
    }

    /// Something changed around a node: is there a refill to begin?
    pub(super) fn consider(&mut self, node: NodeId) {
        if !self.nodes[node.index()].health.is_up() {
            return;
        }
        let place = self.topology.place(node);
        let mirrored = self.topology.pairs_of(node).all(|p| self.pairs[p.index()].pair.state() == State::Mirrored);
        if mirrored {
            let run = &mut self.nodes[node.index()];
            run.reason = Reason::None;
            run.operator = false;
            return;
        }
        let run = &self.nodes[node.index()];
        if run.job.as_ref().is_some_and(|job| !job.progress.lingers())
            || !run.is_drained()
            || !self.topology.has_backups()
        {
            return;
        }
        if self.lead_with_rest(node) || self.nodes[node.index()].retry_pending {
            return;
        }
        let run = &self.nodes[node.index()];
        let automatic = self.settings.resync == ResyncMode::Auto && !run.cancelled;
        let wanted = automatic || run.operator;
        let left_to_other = |p: &PairId| self.may_lead_with_rest(*p, place.other());
        let orphaned: Vec<PairId> = self.orphans_of(node).into_iter().filter(|p| !left_to_other(p)).collect();
        // Their gates open together at the start: one pass over the node for all, and no refill
        // that they would have to wait for.
        if orphaned.iter().any(|p| self.pairs[p.index()].pair.gate() != pair::Gate::Open) {
            return;
        }
        let needy: Vec<(PairId, NodeId)> = self
            .topology
            .pairs_of(node)
            .filter(|&p| self.needs_refill(p, place))
            .map(|p| (p, self.node_at(p, place.other())))
            .collect();
        // Pairs that are degraded but not recorded yet come along in a moment: one pass over the
        // sources for all.
        let coming = self.topology.pairs_of(node).any(|p| {
            let run = &self.pairs[p.index()];
            self.lacks_refill(p, place)
                && run.pair.gate() != pair::Gate::Open
                && run.since.elapsed() < self.settings.leader_timeout
        });
        let refill = wanted && !needy.is_empty() && !coming;
        if let Some(job) = &self.nodes[node.index()].job {
            // A trickle: its own pairs are Recovering, and it never ends by itself. All begin again
            // together.
            if refill || !orphaned.is_empty() {
                job.yield_to_others();
            }
        } else if !orphaned.is_empty() {
            let fill = if self.nodes[node.index()].empty { Fill::Empty } else { Fill::Purge };
            self.begin_purge(node, orphaned, fill);
        } else if refill {
            // What takes the least time comes first; the others are looked at when that job is
            // over.
            let fills: Vec<Fill> = needy.iter().map(|&(p, _)| self.fill_for(node, p)).collect();
            let first = *fills.iter().min_by_key(|fill| fill.cost()).unwrap_or(&Fill::Purge);
            let pairs = needy.into_iter().zip(fills).filter(|(_, fill)| *fill == first).map(|(pair, _)| pair);
            self.begin_job(node, pairs.collect(), first);
        }
    }

    /// The node's pairs of which no copy is left: it leads them as soon as it holds nothing of
    /// them.
    fn orphans_of(&self, node: NodeId) -> Vec<PairId> {
        let is_orphan = |p: &PairId| {
            let run = &self.pairs[p.index()];
            let no_copy = run.pair.state() == State::Dark { in_sync: None, fallback: None };
            no_copy && !run.undecided && !run.pair.is_foreign()
        };
        self.topology.pairs_of(node).filter(is_orphan).collect()
    }

    /// The node leads the pairs of which no full copy is left with what it did not miss, once the
    /// rest is deleted. Whether there are any.
    ///
    /// Without waiting for the next try of a refill, whose source has gone; but a trickle ends
    /// first.
    fn lead_with_rest(&mut self, node: NodeId) -> bool {
        let place = self.topology.place(node);
        let open = |p: PairId| self.pairs[p.index()].pair.gate() == pair::Gate::Open;
        let orphans = self.orphans_of(node).into_iter();
        let pairs: Vec<PairId> = orphans.filter(|&p| open(p) && self.may_lead_with_rest(p, place)).collect();
        if pairs.is_empty() {
            return false;
        }
        match &self.nodes[node.index()].job {
            Some(trickle) => trickle.yield_to_others(),
            None => self.begin_purge(node, pairs, Fill::Missed),
        }
        true
    }

    /// How the pair's copy on the node is made equal.
    fn fill_for(&self, node: NodeId, pair: PairId) -> Fill {
        if self.nodes[node.index()].empty {
            // Emptiness proved once does not last: from the first write on, the next resync purges.
            // A job that ends before that leaves it.
            Fill::Empty
        } else if self.pairs[pair.index()].knows_difference(self.topology.place(node)) {
            Fill::Missed
        } else {
            // One that is Recovering already is written to: a purge would not end.
            let written_to = matches!(self.pairs[pair.index()].pair.state(), State::Recovering { .. });
            self.pairs[pair.index()].first_fill.unwrap_or(if written_to { Fill::Compare } else { Fill::Purge })
        }
    }

    /// Whether the pair's node at this place is not filled, and nothing fills it.
    pub(super) fn lacks_refill(&self, id: PairId, place: Place) -> bool {
        match self.pairs[id.index()].pair.state() {
            State::Degraded { leader } => leader == place.other(),
            // From the start on, where both nodes' items count.
            State::Recovering { leader } => {
                leader == place.other() && !self.is_being_filled(self.node_at(id, place), id)
            }
            _ => false,
        }
    }

    /// Whether a refill of the pair's node at this place could begin.
    fn needs_refill(&self, id: PairId, place: Place) -> bool {
        let pair = &self.pairs[id.index()].pair;
        let leader = self.node_at(id, place.other());
        self.lacks_refill(id, place)
            && pair.gate() == pair::Gate::Open
            && !pair.is_foreign()
            && self.nodes[leader.index()].health.is_up()
    }
}
