//! Which refills are due: what a node lacks, how it is filled, and who leads a pair of which no
//! full copy is left.

use crate::config::ResyncMode;
use crate::ids::{NodeId, PairId, Place};
use crate::pair::{self, Reason, State};
use crate::resync::Fill;

use super::Cluster;

impl Cluster {
    /// Whether the node at `place` may lead the pair, of which no full copy is left, with what it
    /// did not miss, and soon.
    pub(super) fn may_lead_with_rest(&self, pair: PairId, place: Place) -> bool {
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
    pub(super) fn awaits_undo(&self, pair: PairId, place: Place) -> bool {
        self.pairs[pair.index()].pair.state() == State::Dark { in_sync: Some(place), fallback: None }
            && self.is_being_filled(self.node_at(pair, place.other()), pair)
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
