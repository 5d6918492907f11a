//! Which refills are due: what a node lacks, how it is filled, and who leads a pair of which no
//! full copy is left.

mod state;

use crate::config::ResyncMode;
use crate::ids::{NodeId, PairId, Place};
use crate::pair::{self, Reason, State};
use crate::resync::Fill;

use super::Cluster;

pub(super) use state::{Failed, JobRun, LastJob, Refills};

/// What is due about a node's copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// All its pairs are mirrored: it is well, and nothing is asked for it.
    Well,
    /// A job that may not end by itself is in the way of others.
    Yield,
    /// It is emptied of pairs of which no copy is left, and leads them then.
    Purge { pairs: Vec<PairId>, fill: Fill },
    /// It is filled.
    Fill { pairs: Vec<PairId>, fill: Fill },
}

impl Cluster {
    /// Whether the node at `place` may lead the pair, of which no full copy is left, with what it
    /// did not miss.
    pub(super) fn may_lead_with_rest(&self, pair: PairId, place: Place) -> bool {
        let (node, run) = (self.node_at(pair, place), &self.pairs[pair]);
        let up = self.nodes[node].health.is_up();
        up && run.plan.may_lead(run.pair.state(), place, !run.missed.overflowed())
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
        self.pairs[pair].pair.state() == State::Dark { in_sync: Some(place), fallback: None }
            && self.is_being_filled(self.node_at(pair, place.other()), pair)
    }

    /// What is to be done about the node's copies.
    pub(super) fn refill_due(&self, node: NodeId) -> Option<Due> {
        let run = &self.nodes[node];
        if !run.health.is_up() {
            return None;
        }
        let place = self.topology.place(node);
        let mirrored = self.topology.pairs_of(node).all(|p| self.pairs[p].pair.state() == State::Mirrored);
        if mirrored {
            return (run.reason != Reason::None || run.refills.is_asked_for()).then_some(Due::Well);
        }
        if !run.is_drained() || !self.topology.has_backups() {
            return None;
        }
        let rest = self.led_with_rest(node);
        // These pairs are dark and this node holds their only copies: they go first.
        let stands_in_way = |job: &JobRun| !rest.iter().all(|p| job.fills(*p));
        if run.refills.job.as_ref().is_some_and(|job| !job.progress.lingers() && !stands_in_way(job)) {
            return None;
        }
        // A trickle: its own pairs are Recovering, and it never ends by itself. All begin again
        // together.
        let ending = run.refills.job.as_ref().map(|job| (!job.is_told_to_end()).then_some(Due::Yield));
        if !rest.is_empty() {
            return ending.unwrap_or(Some(Due::Purge { pairs: rest, fill: Fill::Missed }));
        }
        if run.refills.is_pausing() {
            return None;
        }
        let wanted = run.refills.is_wanted(self.settings.resync == ResyncMode::Auto);
        let left_to_other = |p: &PairId| self.may_lead_with_rest(*p, place.other());
        let orphaned: Vec<PairId> = self.orphans_of(node).filter(|p| !left_to_other(p)).collect();
        // Their gates open together at the start: one pass over the node for all, and no refill
        // that they would have to wait for.
        if orphaned.iter().any(|p| self.pairs[*p].pair.gate() != pair::Gate::Open) {
            return None;
        }
        if !orphaned.is_empty() {
            let fill = if run.empty { Fill::Empty } else { Fill::Purge };
            return ending.unwrap_or(Some(Due::Purge { pairs: orphaned, fill }));
        }
        // Pairs that are degraded but not recorded yet come along in a moment: one pass over the
        // sources for all.
        let coming = |p: PairId| {
            let gate = self.pairs[p].pair.gate();
            self.lacks_refill(p, place) && gate != pair::Gate::Open && !self.is_overdue(p)
        };
        if !wanted || self.topology.pairs_of(node).any(coming) {
            return None;
        }
        // The others are looked at when that job is over.
        let needy = || self.topology.pairs_of(node).filter(|&p| self.needs_refill(p, place));
        let fill = needy().map(|p| self.fill_for(node, p)).min_by_key(|fill| run.refills.rank(*fill))?;
        let pairs = needy().filter(|&p| self.fill_for(node, p) == fill).collect();
        match run.refills.job {
            Some(_) => run.refills.may_give_way_to(fill).then_some(Due::Yield),
            None => Some(Due::Fill { pairs, fill }),
        }
    }

    /// Whether the pair has been in its state for as long as a leader is waited for. Where its gate
    /// is not open by then (a leader that is full takes no record, one that is slow has an
    /// operation under way), the refills of other pairs do not wait for it.
    pub(super) fn is_overdue(&self, pair: PairId) -> bool {
        self.pairs[pair].since.elapsed() >= self.settings.leader_timeout
    }

    /// Part of [`settle`](Cluster::settle).
    pub(super) fn refill_what_is_due(&mut self, node: NodeId) {
        match self.refill_due(node) {
            None => {}
            Some(Due::Well) => {
                let run = &mut self.nodes[node];
                run.reason = Reason::None;
                run.refills.well();
            }
            Some(Due::Yield) => {
                self.nodes[node].refills.give_way();
            }
            Some(Due::Purge { pairs, fill }) => self.begin_purge(node, pairs, fill),
            Some(Due::Fill { pairs, fill }) => self.begin_job(node, pairs, fill),
        }
    }

    /// The node's pairs of which no copy is left: it leads them as soon as it holds nothing of
    /// them.
    fn orphans_of(&self, node: NodeId) -> impl Iterator<Item = PairId> {
        let is_orphan = |p: &PairId| {
            let run = &self.pairs[*p];
            let no_copy = run.pair.state() == State::Dark { in_sync: None, fallback: None };
            // Another proxy may lead a pair of which this one knows no copy.
            no_copy && !run.beginning.undecided && !run.pair.is_foreign() && !self.is_contested(*p)
        };
        self.topology.pairs_of(node).filter(is_orphan)
    }

    /// Pairs of which no full copy is left, and which the node leads with what it did not miss,
    /// once the rest is deleted.
    ///
    /// Without waiting for the next try of a refill, whose source has gone; but a trickle ends
    /// first.
    fn led_with_rest(&self, node: NodeId) -> Vec<PairId> {
        let place = self.topology.place(node);
        let open = |p: PairId| self.pairs[p].pair.gate() == pair::Gate::Open;
        self.orphans_of(node).filter(|&p| open(p) && self.may_lead_with_rest(p, place)).collect()
    }

    /// How the pair's copy on the node is made equal.
    fn fill_for(&self, node: NodeId, pair: PairId) -> Fill {
        let run = &self.pairs[pair];
        let (place, empty) = (self.topology.place(node), self.nodes[node].empty);
        run.plan.fill(run.pair.state(), place, empty, !run.missed.overflowed())
    }

    /// Whether the pair's node at this place is not filled, and nothing fills it.
    pub(super) fn lacks_refill(&self, id: PairId, place: Place) -> bool {
        match self.pairs[id].pair.state() {
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
        let pair = &self.pairs[id].pair;
        let leader = self.node_at(id, place.other());
        self.lacks_refill(id, place)
            && pair.gate() == pair::Gate::Open
            && !pair.is_foreign()
            && self.nodes[leader].health.is_up()
    }
}
