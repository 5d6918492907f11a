//! Items of which no copy is left. A pair that lost both is healthy again a moment later, and
//! mirrored: that something is missing stands in the log, among the last changes, and for a day in
//! status and statistics.

use std::time::Duration;

use tokio::time::Instant;

use crate::ids::{PairId, Place};
use crate::pair::{self, Loss, State};
use crate::report::LostItemsReport;
use crate::resync::Fill;

use super::{Cluster, summary};

/// How long a loss of items is shown.
const TOLD_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// What a pair's new leader lacks of what was acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lacks {
    /// All of it: no copy that counts was left on either node.
    Everything,
    /// These keys, as many as are known, and perhaps more.
    Keys { known: usize, more: bool },
}

/// What was lost since the counts were last too old to be shown ([`TOLD_FOR`]).
#[derive(Clone, Copy, Default, Debug)]
struct Told {
    empty: usize,
    partial: usize,
    keys: usize,
    more: bool,
    last: Option<Instant>,
}

/// See the module's words.
#[derive(Default, Debug)]
pub(super) struct LostItems {
    /// By the present event.
    fresh: Vec<(PairId, Lacks)>,
    told: Told,
    /// Since the start: pairs that began empty, pairs that went on without keys, keys known.
    totals: [u64; 3],
}

impl LostItems {
    pub(super) fn report(&self) -> LostItemsReport {
        let told = self.told.last.filter(|at| at.elapsed() < TOLD_FOR).map(|at| (self.told, at.elapsed()));
        let (now, ago) = told.unwrap_or_default();
        let [pairs_empty_total, pairs_partial_total, keys_total] = self.totals;
        LostItemsReport {
            pairs_empty: now.empty,
            pairs_partial: now.partial,
            keys: now.keys,
            more: now.more,
            seconds_ago: told.map(|_| ago.as_secs()),
            pairs_empty_total,
            pairs_partial_total,
            keys_total,
        }
    }

    fn add(&mut self, lacks: Lacks) {
        if self.told.last.is_none_or(|at| at.elapsed() >= TOLD_FOR) {
            self.told = Told::default();
        }
        self.told.last = Some(Instant::now());
        match lacks {
            Lacks::Everything => {
                self.told.empty += 1;
                self.totals[0] += 1;
            }
            Lacks::Keys { known, more } => {
                self.told.partial += 1;
                self.told.keys += known;
                self.told.more |= more;
                self.totals[1] += 1;
                self.totals[2] += known as u64;
            }
        }
    }
}

impl Cluster {
    /// What is lost if this event gives the pair a leader.
    pub(super) fn lacks_after(&self, id: PairId, event: pair::Event) -> Option<Lacks> {
        let run = &self.pairs[id];
        match (run.pair.state(), event) {
            // A `flush_all` has ended what there was.
            (State::Dark { in_sync: None, .. }, pair::Event::Purged(_)) if run.flushed => None,
            (State::Dark { in_sync: None, .. }, pair::Event::Purged(place)) => {
                let job = self.nodes[self.node_at(id, place)].refills.job.as_ref();
                Some(match job.is_some_and(|job| job.fill == Fill::Missed && job.fills(id)) {
                    // It was purged of what it had missed alone.
                    true => self.missed_of(id),
                    false => Lacks::Everything,
                })
            }
            // The follower leads with what was copied so far.
            (
                State::Dark { in_sync: Some(leader), fallback: Some(_) },
                pair::Event::Lost(place, Loss::MemoryGone, _),
            ) if place == leader && !run.fallback_is_full => Some(Lacks::Keys { known: 0, more: true }),
            _ => None,
        }
    }

    /// What the node that is away, or follows, is known to have missed.
    pub(super) fn missed_of(&self, id: PairId) -> Lacks {
        let missed = &self.pairs[id].missed;
        match missed.overflowed() {
            true => Lacks::Keys { known: 0, more: true },
            false => Lacks::Keys { known: missed.len(), more: false },
        }
    }

    /// What the operator gives up who lets the node at `place` lead.
    pub(super) fn given_up_for(&self, id: PairId, place: Place) -> Option<Lacks> {
        match self.pairs[id].pair.state() {
            State::Dark { in_sync: Some(full), .. } if full == place => None,
            _ if self.pairs[id].flushed => None,
            _ => Some(self.missed_of(id)),
        }
    }

    /// Told with others of the same event: [`Cluster::tell_lost_items`].
    pub(super) fn items_lost(&mut self, id: PairId, lacks: Lacks) {
        if self.topology.pair_is_used(id) && lacks != (Lacks::Keys { known: 0, more: false }) {
            self.lost_items.fresh.push((id, lacks));
        }
    }

    /// After every event.
    pub(super) fn tell_lost_items(&mut self) {
        let fresh = std::mem::take(&mut self.lost_items.fresh);
        if fresh.is_empty() {
            return;
        }
        fresh.iter().for_each(|(_, lacks)| self.lost_items.add(*lacks));
        let (empty, partial): (Vec<_>, Vec<_>) = fresh.into_iter().partition(|(_, lacks)| *lacks == Lacks::Everything);
        if let Some(&(first, _)) = empty.first() {
            let (pairs, name) = (empty.len(), self.pair_name(first));
            tracing::warn!(pairs, first = %name, "no copy was left on either node: the pairs begin empty, and what they held is lost");
            self.note_lost(first, pairs, "began empty: what it held is lost".to_owned());
        }
        if let Some(&(first, _)) = partial.first() {
            let (mut known, mut unknown) = (0, false);
            for (_, lacks) in &partial {
                if let Lacks::Keys { known: keys, more } = lacks {
                    known += keys;
                    unknown |= more;
                }
            }
            let (pairs, name, keys) = (partial.len(), self.pair_name(first), summary::missing(known, unknown));
            tracing::warn!(pairs, first = %name, keys, "of some keys no copy is left: the pairs go on without them");
            self.note_lost(first, pairs, format!("went on without keys of which no copy is left: {keys}"));
        }
    }

    fn note_lost(&mut self, first: PairId, pairs: usize, what: String) {
        let what = if pairs == 1 { what } else { format!("{what}, as one of {pairs} pairs") };
        let reason = self.pairs[first].pair.reason();
        self.operators.changes.note(format!("pair {}", self.pair_name(first)), what, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::alone;
    use crate::ids::NodeId;
    use crate::pair::{Event, Reason};

    const PAIR: PairId = PairId(0);

    fn told(cluster: &mut Cluster) -> (usize, usize, usize, bool) {
        cluster.tell_lost_items();
        let report = cluster.report().lost_items;
        (report.pairs_empty, report.pairs_partial, report.keys, report.more)
    }

    fn dark(in_sync: Option<Place>) -> Cluster {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
        cluster.pairs[PairId(0)].beginning.undecided = false;
        cluster.apply(PAIR, Event::Start(State::Dark { in_sync, fallback: None }, Reason::Refused));
        cluster
    }

    #[tokio::test(start_paused = true)]
    async fn a_pair_that_begins_empty_is_told_for_a_day() {
        let mut cluster = dark(None);
        cluster.apply(PAIR, Event::Purged(Place::Backup));
        assert_eq!(told(&mut cluster), (1, 0, 0, false));
        assert_eq!(cluster.operators.changes.newest_first()[0].what, "began empty: what it held is lost");
        assert_eq!(cluster.report().lost_items.pairs_empty_total, 1);
        tokio::time::advance(TOLD_FOR - Duration::from_secs(1)).await;
        assert_eq!(told(&mut cluster), (1, 0, 0, false));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(told(&mut cluster), (0, 0, 0, false), "the next day");
        let report = cluster.report().lost_items;
        assert_eq!((report.seconds_ago, report.pairs_empty_total), (None, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_flush_has_ended_is_not_called_lost() {
        let mut cluster = dark(Some(Place::Primary));
        cluster.apply(PAIR, Event::Flushed);
        cluster.apply(PAIR, Event::Purged(Place::Backup));
        assert_eq!(told(&mut cluster), (0, 0, 0, false));
        // What is written from then on counts again.
        cluster.apply(PAIR, Event::Lost(Place::Backup, Loss::MemoryGone, Reason::MarkerLost));
        cluster.apply(PAIR, Event::Purged(Place::Backup));
        assert_eq!(told(&mut cluster), (1, 0, 0, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_operator_gives_up_is_told_as_far_as_it_is_known() {
        let mut cluster = dark(Some(Place::Primary));
        cluster.pairs[PairId(0)].missed.reset();
        [b"a", b"b"].iter().for_each(|key| cluster.pairs[PairId(0)].missed.insert(*key));
        let lacks = cluster.given_up_for(PAIR, Place::Backup).expect("a node that missed writes");
        cluster.items_lost(PAIR, lacks);
        assert_eq!(told(&mut cluster), (0, 1, 2, false));
        assert_eq!(cluster.given_up_for(PAIR, Place::Primary), None);
        cluster.pairs[PairId(0)].missed.overflow();
        assert_eq!(cluster.given_up_for(PAIR, Place::Backup), Some(Lacks::Keys { known: 0, more: true }));
    }

    /// A follower that was in sync when another proxy's work made its pair dark holds all.
    #[tokio::test(start_paused = true)]
    async fn a_follower_that_leads_with_half_of_the_items_is_told_and_one_with_all_is_not() {
        let gone = Event::Lost(Place::Primary, Loss::MemoryGone, Reason::MarkerLost);
        let mut cluster = dark(Some(Place::Primary));
        cluster.apply(PAIR, Event::Undone(Place::Backup));
        cluster.apply(PAIR, gone);
        assert_eq!(told(&mut cluster), (0, 1, 0, true));
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
        cluster.begin_open(State::Mirrored);
        cluster.nodes[NodeId(1)].health.back(Duration::ZERO);
        cluster.apply(PAIR, Event::Foreign(true));
        cluster.apply(PAIR, Event::Lost(Place::Primary, Loss::Suspected, Reason::Reset));
        cluster.apply(PAIR, Event::Foreign(false));
        cluster.apply(PAIR, gone);
        assert_eq!(cluster.pairs[PairId(0)].pair.state(), State::Degraded { leader: Place::Backup });
        assert_eq!(told(&mut cluster), (0, 0, 0, false));
    }
}
