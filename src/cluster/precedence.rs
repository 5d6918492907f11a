//! Periods of the ring, epochs of records and leadership terms found on nodes, and how this proxy's
//! become later than all of them.

use crate::ambient;
use crate::backend::NodeView;
use crate::backend::marker::{Fact, Leftovers, Period, Record, RingMark};
use crate::ids::{NodeId, PairId, Place, Term};
use crate::pair::{Gate, State};
use crate::proxy::Command;
use crate::rules::{Rule, holds};

use super::{Cluster, terms};

/// The record of the pair of that number on a node, if it is one of that period.
fn record_of(view: &NodeView, pair: PairId, period: Period) -> Option<Record> {
    view.records.iter().find(|(p, r)| *p == pair && r.period == period).map(|(_, r)| *r)
}

/// This proxy's period and terms, and what was found of others'.
pub(super) struct Precedence {
    /// Since when the present ring is in force.
    period: Period,
    /// The newest such time that was found on any node; set at the start.
    found: Period,
    /// No pair had this term before this run, and all began at or above it since. 0: none was ever
    /// given.
    term: Term,
}

impl Precedence {
    /// Nothing is found yet, and a period begins now.
    pub(super) fn new(now: Period) -> Precedence {
        let term = terms::first(Term::default(), false, ambient::random_u64());
        Precedence { period: now, found: Period::default(), term }
    }

    pub(super) fn period(&self) -> Period {
        self.period
    }

    pub(super) fn term(&self) -> Term {
        self.term
    }

    /// The nodes' latest mark: its period goes on if it is of this ring. Otherwise a new one
    /// begins, whatever the clock says later than that; `false`.
    fn follow(&mut self, latest: RingMark, ring: u64) -> bool {
        self.found = latest.period;
        let goes_on = latest.fingerprint == ring;
        self.period = match goes_on {
            true => latest.period,
            false => self.period.max(Period(latest.period.0.saturating_add(1))),
        };
        goes_on
    }

    /// Whether the nodes were last used under the present ring.
    fn goes_on(&self) -> bool {
        self.period == self.found
    }
}

impl Cluster {
    /// If the nodes were last used under this ring, its period goes on. Otherwise a new one begins.
    pub(super) fn begin_period(&mut self) {
        let marks: Vec<RingMark> = self.nodes.iter().filter_map(|run| run.view.as_ref()?.ring).collect();
        if let Some(&latest) = marks.iter().max_by_key(|mark| mark.period) {
            self.begin_period_after(latest);
        }
    }

    /// No node that carries a ring marker answered at the start, and this one comes later: what it
    /// says of the period counts, as it would have at the start. Else every node would seem to have
    /// missed one, and nothing that any of them holds would be believed.
    pub(super) fn learn_period(&mut self, view: &NodeView) {
        let Some(mark) = view.ring.filter(|_| self.precedence.found == Period::default()) else { return };
        if self.nodes.iter().all(|run| run.incarnation.is_none()) {
            self.begin_period_after(mark);
        } else {
            // Nodes without markers carry the new period already: the others are as if the ring had
            // changed.
            self.precedence.found = mark.period;
        }
    }

    fn begin_period_after(&mut self, latest: RingMark) {
        let ring = self.fingerprint();
        if !self.precedence.follow(latest, ring) {
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
        let mark = self.ring_of(node);
        self.tell_node(node, |control| async move {
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
            period: self.precedence.period,
            term: self.precedence.term,
            leftovers: self.nodes[node].leftovers,
        }
    }

    /// Whether a node that is not [ours](Self::is_ours) holds something that is, or may be, out of
    /// date: it was used under another ring, and since then there was a third one; or under the
    /// last one, and it was not full, or keeps keys that others changed.
    pub(super) fn is_stale(&self, node: NodeId, view: &NodeView) -> bool {
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
        mark.period != self.precedence.found || mark.leftovers != Leftovers::Clean || !pairs.iter().all(full)
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
        record_of(view, pair, self.precedence.period)
    }

    pub(super) fn seed_epochs(&mut self) {
        if !holds(Rule::UniqueEpochs) {
            return;
        }
        for node in self.topology.nodes() {
            let Some(view) = &self.nodes[node].view else { continue };
            for &(pair, record) in &view.records {
                if let Some(run) = self.pairs.get_mut(pair) {
                    run.pair.seed(record.epoch);
                }
            }
        }
    }

    pub(super) fn begin_terms(&mut self) {
        let views = self.nodes.iter().filter_map(|run| run.view.as_ref().or(run.unmarked.as_ref()));
        let found =
            views.map(terms::named).chain(self.fleet.turn.as_ref().map(|turn| turn.term)).max().unwrap_or_default();
        if !self.topology.has_backups() {
            // Tokens are the servers' own ids. What was given before is remembered.
            self.precedence.term = found;
            return;
        }
        // Servers that are not of this list any more may have been the only ones to see the last
        // terms of it.
        let same_list = self.marked() && self.precedence.goes_on();
        let all_read = same_list && self.nodes.iter().all(|run| run.view.is_some());
        let term = terms::first(found, all_read, ambient::random_u64());
        self.precedence.term = term;
        self.pairs.iter_mut().for_each(|run| run.pair.begin_at(term));
    }

    /// A node that came back is looked at: do tokens exist that this proxy has not given, under
    /// terms that are in use?
    pub(super) fn judge_terms(&mut self, node: NodeId, view: &NodeView) {
        let found = terms::named(view);
        if !self.topology.has_backups() {
            self.precedence.term = self.precedence.term.max(found);
            return;
        }
        let own = self.pairs.iter().map(|run| run.pair.term()).max().unwrap_or_default();
        let first = self.nodes[node].view.is_none();
        if terms::is_foreign(found, own, first) {
            self.rise_above(found);
        }
    }

    /// Tokens may have been given under this term, and terms below it, by whatever pair's leader:
    /// from now on all terms are above it.
    pub(super) fn rise_above(&mut self, found: Term) {
        let risen: Vec<PairId> = self.topology.pairs().filter(|p| self.pairs[*p].pair.rise_above(found)).collect();
        if risen.is_empty() {
            return;
        }
        tracing::warn!(
            pairs = risen.len(),
            "a node names later leadership terms than those in use: cas tokens of these pairs count no more"
        );
        for &pair in &risen {
            let term = self.pairs[pair].pair.term();
            for worker in &self.workers {
                let _ = worker.send(Command::Term { pair, term });
            }
        }
        self.precedence.term = self.precedence.term.max(found.next());
        self.record_term();
    }

    /// The next start is to know it, whatever becomes of the node that named it.
    fn record_term(&self) {
        for node in self.topology.nodes() {
            let run = &self.nodes[node];
            let Some(incarnation) = run.incarnation.filter(|_| run.health.is_up()) else { continue };
            let mark = self.ring_of(node);
            self.tell_node(node, |control| async move {
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
            let run = &mut self.pairs[pair];
            if !run.pair.outrank(found.epoch) {
                continue;
            }
            if run.pair.gate() == Gate::Recording {
                // What is being written is the earlier epoch's, and its answer counts no more.
                let epoch = run.pair.epoch();
                self.record_again(pair, epoch);
            } else if run.pair.gate() == Gate::Open
                && let State::Degraded { leader } | State::Recovering { leader } = run.pair.state()
            {
                tracing::warn!(pair = %self.pair_name(pair), record = %found, "a node came back with a later record than this proxy's: it is outranked");
                if self.pairs[pair].plan.is_adopting() {
                    // What only the follower holds still counts.
                    self.record_filling(pair, leader.other());
                } else {
                    self.record(pair, Fact::Alone(leader), vec![leader]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_goes_on_under_its_ring_and_ends_under_another() {
        let mark = |fingerprint, period| RingMark {
            fingerprint,
            node: NodeId(0),
            primaries: 1,
            backups: 1,
            period: Period(period),
            term: Term::default(),
            leftovers: Leftovers::Clean,
        };
        for (latest, goes_on, period) in [
            (mark(7, 5), true, 5),
            (mark(8, 5), false, 10),
            // By a clock that was ahead.
            (mark(8, 20), false, 21),
        ] {
            let mut precedence = Precedence::new(Period(10));
            assert_eq!((precedence.follow(latest, 7), precedence.period()), (goes_on, Period(period)), "{latest:?}");
            assert_eq!((precedence.goes_on(), precedence.found), (goes_on, latest.period), "{latest:?}");
        }
    }
}
