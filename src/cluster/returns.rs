//! The return of a node: it is looked at, marked, and taken back with what it holds.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::ambient;
use crate::backend::{DrainEnd, MarkError, NodeError, NodeView};
use crate::ids::{AddressNumber, Incarnation, NodeId, PairId, SessionId};
use crate::pair::{self, FillEvent, Loss, Reason, State};
use crate::report::figures::counted;
use crate::rules::{Rule, holds};

use super::{Cluster, Internal, QUIET_PERIOD};

/// A node that is back in use.
#[derive(Clone, Copy)]
struct Returned {
    /// It was not seen before in this run.
    first: bool,
    /// It holds nothing, and nothing can land there any more.
    empty: bool,
}

/// What a node's markers say of its memory.
#[derive(Clone, Copy)]
struct Memory {
    /// This run has marked the node before.
    is_known: bool,
    /// It is the memory that was marked.
    same: bool,
    /// Its name from now on.
    incarnation: Incarnation,
}

impl Cluster {
    /// A node whose release is too old for what a refill needs is used all the same.
    pub(super) fn tell_of_version(&self, node: NodeId) {
        let Some(view) = self.nodes[node].view.as_ref().filter(|view| view.deletes_unguarded()) else { return };
        let (node, version) = (self.topology.addr(node), &view.version);
        tracing::warn!(%node, version, "memcached before 1.6.13: a refill may not end while clients write; upgrade it");
    }

    pub(super) fn look(&mut self, node: NodeId) {
        self.nodes[node].looking = true;
        let pairs = if self.marked() { self.topology.pair_count() } else { 0 };
        self.ask_node(node, move |control| async move { Internal::Viewed { node, result: control.view(pairs).await } });
    }

    /// A lost node answers well again: what does it hold?
    pub(super) fn viewed(&mut self, node: NodeId, result: Result<NodeView, NodeError>) {
        let moved = |view: &NodeView| view.address != self.address_number(node) && holds(Rule::OneAddressAConnection);
        if result.as_ref().is_ok_and(moved) {
            // That was another server.
            self.nodes[node].looking = false;
            return;
        }
        let needed = self.probes_needed(node);
        let view = match result {
            Ok(view) => view,
            Err(error) => {
                self.nodes[node].looking = false;
                self.nodes[node].health.bad_probe();
                tracing::debug!(node = %self.topology.addr(node), %error, "a node that answered probes cannot be looked at");
                return;
            }
        };
        self.judge_terms(node, &view);
        let run = &mut self.nodes[node];
        if !run.health.is_tried(needed) && !run.is_new_and_empty(&view) {
            // Another memory, and not a new process: it is probed as often as any.
            run.looking = false;
            return;
        }
        if !self.marked() {
            self.nodes[node].looking = false;
            self.stamp(node);
            return self.take_back(node, view, None);
        }
        let memory = self.learn_memory(node, &view);
        self.mark_viewed(node, view, memory);
    }

    /// What the markers on a node say: of its memory, and of what was before.
    fn learn_memory(&mut self, node: NodeId, view: &NodeView) -> Memory {
        let known = self.nodes[node].incarnation;
        self.learn_period(view);
        let ours = self.is_ours(node, view);
        // A memory that this proxy has marked itself needs no other witness: the ring marker may
        // have been evicted.
        let same = known.map_or(ours, |k| view.incarnation == Some(k));
        let incarnation = match view.incarnation {
            Some(found) if same => found,
            _ => Incarnation(ambient::random_u64()),
        };
        self.outrank_records(view);
        if let Some(found) = &view.pending {
            self.learn_pending(found);
        }
        if known.is_none() || !same {
            let place = self.topology.place(node);
            let counts = |p: PairId| self.pairs[p].beginning.undecided || self.follows_in_adoption(p, place);
            let decided = !self.topology.pairs_of(node).any(counts);
            self.nodes[node].leftovers = self.leftovers_on(node, view, decided);
        }
        Memory { is_known: known.is_some(), same, incarnation }
    }

    /// The node is marked as in use, except where another proxy uses it.
    fn mark_viewed(&mut self, node: NodeId, view: NodeView, memory: Memory) {
        let Memory { is_known, same, incarnation } = memory;
        // Another proxy that took the node over while it was away keeps its session there: the
        // probes judge it.
        let taken = view.session.filter(|s| same && s.open && s.id != self.session.id && is_known);
        let session = taken.unwrap_or(self.session);
        let ring = self.ring_of(node);
        // First seen now, and last used by a proxy that did not say goodbye to it: as at the start.
        let unquiet =
            !is_known && view.session.is_some_and(|s| s.open && s.id != session.id) || self.nodes[node].abandoned;
        let others = (!same && self.is_others(node, &view)).then(|| (self.session.id, self.knock_time()));
        self.ask_node(node, move |control| async move {
            if let Some((session, wait)) = others
                && let Ok(Some(other)) = control.knock(session, wait).await
            {
                return Internal::Marked {
                    node,
                    view: Box::new(view),
                    incarnation,
                    result: Err(MarkError::Foreign(other)),
                };
            }
            if unquiet && holds(Rule::QuietPeriodAfterCrash) {
                tokio::time::sleep(QUIET_PERIOD).await;
            }
            let result = control.mark(&view, incarnation, ring, session).await;
            Internal::Marked { node, view: Box::new(view), incarnation, result }
        });
    }

    pub(super) fn marked_node(
        &mut self,
        node: NodeId,
        view: NodeView,
        incarnation: Incarnation,
        result: Result<Option<SessionId>, MarkError>,
    ) {
        self.nodes[node].looking = false;
        if view.address != self.address_number(node) && holds(Rule::OneAddressAConnection) {
            // That was another server.
            return;
        }
        match result {
            // Workers reported only during the look that old commands may still be executed there:
            // it is looked at again. So is a node that came back in the middle of a flush, which
            // ends what it holds.
            Ok(_) if !self.nodes[node].is_drained() || self.flush.is_sent() => {}
            Ok(session) => {
                if session.is_some() {
                    self.await_word(node);
                }
                self.take_back(node, view, Some(incarnation));
            }
            Err(error) => {
                if let MarkError::OfFleet(mark) = &error {
                    self.fleet.losses.marked_by_other(mark);
                }
                self.nodes[node].health.bad_probe();
                tracing::warn!(node = %self.topology.addr(node), %error, "cannot mark a node that came back");
            }
        }
    }

    fn take_back(&mut self, node: NodeId, view: NodeView, incarnation: Option<Incarnation>) {
        let place = self.topology.place(node);
        let now = self.now();
        let first = self.nodes[node].view.is_none();
        let same = incarnation.is_some() && view.incarnation == incarnation && !first;
        if !same {
            self.nodes[node].refills.unread.forget();
            for pair in self.topology.pairs_of(node) {
                // The list of what the other one missed still tells what is true there.
                let listed = self.may_lead_with_rest(pair, place.other());
                self.plan(pair, FillEvent::OtherMemory { place, first, listed });
            }
        }
        self.settle_address(node);
        let abandoned = std::mem::take(&mut self.nodes[node].abandoned);
        if abandoned {
            self.forget_missed_on(node);
        }
        let run = &mut self.nodes[node];
        run.health.back(now);
        run.away.store(false, Ordering::Relaxed);
        run.reason = if same { Reason::MarkerStale } else { Reason::Empty };
        // What an abandoned connection holds may have landed since.
        run.empty = view.curr_items == 0 && !abandoned;
        run.incarnation = incarnation;
        run.memory_gone = false;
        run.since = Instant::now();
        let returned = Returned { first, empty: run.empty };
        // Of one that was away when this proxy started nothing was known that it could be told by.
        let memory = if same {
            "same"
        } else if first {
            "unknown"
        } else {
            "new"
        };
        tracing::info!(node = %self.topology.addr(node), memory, items = view.curr_items, "node is back");
        let what = format!("back with {memory} memory, {}", counted(view.curr_items, "item", "items"));
        self.operators.changes.note(self.server_name(node), what, Reason::None);
        if first {
            self.judge_resumption(node, &view);
        }
        let record_of = |pair: PairId| self.record_in(&view, pair);
        let full: Vec<PairId> = self
            .topology
            .pairs_of(node)
            .filter(|_| self.is_ours(node, &view))
            .filter(|&p| record_of(p).map_or(self.pairs[p].plan.leads_adoption(place), |r| r.full_at(place)))
            .collect();
        let run = &mut self.nodes[node];
        run.refills.begin_anew();
        run.view = Some(view);
        run.kept_memory = same;
        self.tell_of_version(node);
        self.begin_life(node);
        self.measure_clock(node);
        self.watch_stored(node);
        self.allow(node);
        self.tell_item_limit();
        for pair in self.topology.pairs_of(node) {
            if incarnation.is_none() {
                self.pairs[pair].beginning.undecided = false;
                self.apply(pair, pair::Event::TakenBack(place));
                continue;
            }
            // `first`: it was recorded as the one in sync before this proxy ran, and has kept that
            // memory.
            self.tell_pair_of_return(pair, node, same || (first && full.contains(&pair)), returned);
        }
        if incarnation.is_none() {
            self.nodes[node].reason = Reason::None;
        }
        // Nodes whose refill waited for this one as their source, too.
        self.changed(node);
    }

    /// `counts`: what the node holds of the pair is as good as it was.
    fn tell_pair_of_return(&mut self, pair: PairId, node: NodeId, counts: bool, returned: Returned) {
        let place = self.topology.place(node);
        if self.pairs[pair].beginning.undecided {
            self.decide(pair, false);
        } else if counts {
            self.apply(pair, pair::Event::BackSame(place));
        } else if returned.first && self.follows_in_adoption(pair, place) {
            // What it holds counts, except for what clients have written since.
        } else if self.awaits_undo(pair, place) {
            // The other node's resync is still winding up: only at its end is it known whether that
            // one may lead.
            self.nodes[node].memory_gone = true;
        } else {
            self.apply(pair, pair::Event::Lost(place, Loss::MemoryGone, Reason::MarkerLost));
            if returned.empty {
                self.is_empty_of(pair, place);
            }
        }
    }

    /// Commands that were given up unanswered may have taken effect on the node, in whatever order:
    /// where another one leads, all of it is purged.
    fn forget_missed_on(&mut self, node: NodeId) {
        let place = self.topology.place(node);
        for pair in self.topology.pairs_of(node) {
            if self.pairs[pair].pair.state().leader() == Some(place.other()) {
                self.plan(pair, FillEvent::ListVoid);
            }
        }
    }

    /// A connection of the control plane that was given up has ended.
    pub(super) fn drained(&mut self, node: NodeId, address: AddressNumber, end: DrainEnd) {
        if address == self.address_number(node) {
            if end == DrainEnd::Abandoned {
                self.abandoned(node);
            }
            let run = &mut self.nodes[node];
            run.drains = run.drains.saturating_sub(1);
            self.changed(node);
        }
    }

    /// Old faults count no more, unless a pair still waits for the node by its old route: a last
    /// full copy that was only late.
    fn begin_life(&mut self, node: NodeId) {
        let place = self.topology.place(node);
        let named = |pair: PairId| match self.pairs[pair].pair.state() {
            State::Mirrored | State::Recovering { .. } => true,
            State::Degraded { leader } => leader == place,
            State::Dark { .. } => false,
        };
        if !self.topology.pairs_of(node).any(named) {
            let life = &mut self.nodes[node].life;
            *life = life.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::alone;
    use crate::ids::Place;

    /// Without records, too, the operator can have a backup refilled. Its source is late, and lost
    /// to other pairs; those of the refill wait for it, and it is taken back to them as well.
    #[tokio::test(start_paused = true)]
    async fn without_records_the_source_of_a_refill_comes_back_to_a_pair_that_waited_for_it() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 -b 127.0.0.1:3 --resync=off");
        let refilled = State::Recovering { leader: Place::Primary };
        cluster.begin_open(refilled);
        cluster.lost(NodeId(0), Reason::Timeout, Loss::Suspected, false);
        cluster.take_back(NodeId(0), NodeView::default(), None);
        for pair in cluster.topology.pairs() {
            assert_eq!(cluster.pairs[pair].pair.state(), refilled, "{pair:?}");
        }
    }
}
