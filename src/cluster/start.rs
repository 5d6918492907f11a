//! The start-up table: what a pair's first state is, by what the nodes say. Pure.
//!
//! Nothing is trusted that was not read. Where the design's table calls for a compare pass (after a crash, or adopting two full nodes),
//! this version takes the safe row instead: the primary leads and the backup is purged and refilled.

use crate::backend::marker::{Fact, Record};
use crate::ids::Place;
use crate::pair::State;

/// What one node of a pair shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// It does not answer.
    Unreachable,
    /// It carries no valid marker: a fresh process, or one that the proxy has never seen, or of another ring.
    Blank {
        /// It holds no items at all.
        empty: bool,
    },
    /// It carries a marker.
    Marked {
        /// The pair's record on it.
        record: Option<Record>,
    },
}

/// What is known of a pair when the proxy starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Knowledge {
    /// What the primary shows.
    pub(crate) primary: Seen,
    /// What the backup shows.
    pub(crate) backup: Seen,
    /// The newest record of the pair on any node that answers.
    pub(crate) newest: Option<Record>,
    /// Whether the last proxy stopped cleanly.
    pub(crate) clean: bool,
}

/// Decides; `None` = nobody can be trusted before more nodes answer.
pub(crate) fn decide(known: &Knowledge) -> Option<State> {
    use Place::{Backup, Primary};
    let seen = |place| if place == Primary { known.primary } else { known.backup };
    let alone = |leader| Some(State::Degraded { leader });
    let dark = |place| Some(State::Dark { in_sync: Some(place), fallback: None });
    let nothing = Some(State::Dark { in_sync: None, fallback: None });
    match known.newest.map(|r| r.fact) {
        None => match (known.primary, known.backup) {
            (Seen::Unreachable, Seen::Unreachable) => None,
            (_, Seen::Unreachable) => alone(Primary),
            (Seen::Unreachable, _) => alone(Backup),
            (Seen::Blank { empty: true }, Seen::Blank { empty: true }) => Some(State::Mirrored),
            // Markers without a record come from a start that was cut short.
            (Seen::Blank { .. }, Seen::Marked { .. }) => alone(Backup),
            (Seen::Blank { empty: true }, Seen::Blank { empty: false }) => alone(Backup),
            _ => alone(Primary),
        },
        Some(Fact::Sync) => {
            let newest = known.newest;
            let full = |place| matches!(seen(place), Seen::Marked { record } if record == newest);
            match (full(Primary), full(Backup)) {
                (true, true) if known.clean => Some(State::Mirrored),
                // After a crash a write may have reached one node only: the primary's word counts.
                (true, _) => alone(Primary),
                (false, true) => alone(Backup),
                (false, false) => match (known.primary, known.backup) {
                    (Seen::Unreachable, Seen::Unreachable) => None,
                    // Whoever is away may have it.
                    (Seen::Unreachable, _) => dark(Primary),
                    (_, Seen::Unreachable) => dark(Backup),
                    (Seen::Blank { empty: true }, Seen::Blank { empty: true }) => Some(State::Mirrored),
                    _ => nothing,
                },
            }
        }
        Some(Fact::Alone(_) | Fact::Filling(_)) => {
            let leader = match known.newest.map(|r| r.fact) {
                Some(Fact::Filling(place)) => place.other(),
                Some(Fact::Alone(place)) => place,
                _ => return None,
            };
            match (seen(leader), seen(leader.other())) {
                (Seen::Marked { .. }, _) => alone(leader),
                // The other one missed writes: it does not serve before the leader answers.
                (Seen::Unreachable, _) => dark(leader),
                (Seen::Blank { empty: true }, Seen::Blank { empty: true }) => Some(State::Mirrored),
                (Seen::Blank { .. }, _) => nothing,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Term};
    use Place::{Backup, Primary};

    fn record(epoch: u64, fact: Fact) -> Record {
        Record { epoch: Epoch(epoch), fact, term: Term(1) }
    }

    fn marked(record: Record) -> Seen {
        Seen::Marked { record: Some(record) }
    }

    /// The table of the design, row by row, with the newest record taken from the two nodes.
    #[test]
    fn every_row_of_the_start_up_table() {
        let sync = record(5, Fact::Sync);
        let empty = Seen::Blank { empty: true };
        let items = Seen::Blank { empty: false };
        let alone = |leader| Some(State::Degraded { leader });
        let dark = |place| Some(State::Dark { in_sync: Some(place), fallback: None });
        let none = Some(State::Dark { in_sync: None, fallback: None });
        let cases = [
            ("both in sync, clean", marked(sync), marked(sync), true, Some(State::Mirrored)),
            ("both in sync, crash", marked(sync), marked(sync), false, alone(Primary)),
            ("primary restarted", empty, marked(sync), true, alone(Backup)),
            ("backup restarted", marked(sync), empty, true, alone(Primary)),
            ("backup led alone", marked(sync), marked(record(6, Fact::Alone(Backup))), false, alone(Backup)),
            ("primary led alone", marked(record(6, Fact::Alone(Primary))), marked(sync), false, alone(Primary)),
            (
                "backup was being filled",
                marked(record(6, Fact::Alone(Primary))),
                marked(record(7, Fact::Filling(Backup))),
                false,
                alone(Primary),
            ),
            ("leader's memory gone while filling", empty, marked(record(7, Fact::Filling(Backup))), false, none),
            (
                "hand-back cut between the two records",
                marked(record(7, Fact::Sync)),
                marked(record(6, Fact::Alone(Backup))),
                false,
                alone(Primary),
            ),
            ("both fresh", empty, empty, true, Some(State::Mirrored)),
            ("both with items, no markers", items, items, true, alone(Primary)),
            ("items on the backup only", empty, items, true, alone(Backup)),
            ("items on the primary only", items, empty, true, alone(Primary)),
            ("primary unreachable, backup in sync", Seen::Unreachable, marked(sync), true, alone(Backup)),
            ("backup unreachable, primary in sync", marked(sync), Seen::Unreachable, true, alone(Primary)),
            ("primary unreachable, first start", Seen::Unreachable, items, true, alone(Backup)),
            (
                "unreachable, the other being filled",
                Seen::Unreachable,
                marked(record(7, Fact::Filling(Backup))),
                true,
                dark(Primary),
            ),
            (
                "unreachable, the other recorded as stale",
                Seen::Unreachable,
                marked(record(7, Fact::Alone(Primary))),
                true,
                dark(Primary),
            ),
            ("both unreachable", Seen::Unreachable, Seen::Unreachable, true, None),
            ("both lost their memory", empty, empty, false, Some(State::Mirrored)),
        ];
        for (what, primary, backup, clean, expected) in cases {
            let of = |seen| if let Seen::Marked { record } = seen { record } else { None };
            let newest = [of(primary), of(backup)].into_iter().flatten().max_by_key(|r: &Record| r.epoch);
            assert_eq!(decide(&Knowledge { primary, backup, newest, clean }), expected, "{what}");
        }
    }

    /// A third node remembers that the backup led alone; the backup is away, and the primary still believes that it is in sync.
    #[test]
    fn a_witness_keeps_a_stale_primary_from_leading() {
        let newest = Some(record(9, Fact::Alone(Backup)));
        let known =
            Knowledge { primary: marked(record(5, Fact::Sync)), backup: Seen::Unreachable, newest, clean: false };
        assert_eq!(decide(&known), Some(State::Dark { in_sync: Some(Backup), fallback: None }));
    }

    /// Every combination: what leads alone is never a node that the newest record does not call full, unless it has nothing.
    #[test]
    fn no_combination_lets_a_stale_node_lead() {
        let facts =
            [Fact::Sync, Fact::Alone(Primary), Fact::Alone(Backup), Fact::Filling(Primary), Fact::Filling(Backup)];
        let mut seens = vec![
            Seen::Unreachable,
            Seen::Blank { empty: true },
            Seen::Blank { empty: false },
            Seen::Marked { record: None },
        ];
        for epoch in 1..=2 {
            seens.extend(facts.iter().map(|&f| marked(record(epoch, f))));
        }
        let mut newest_options: Vec<Option<Record>> = facts.iter().map(|&f| Some(record(3, f))).collect();
        newest_options.push(None);
        for &primary in &seens {
            for &backup in &seens {
                for witness in &newest_options {
                    let of = |seen| if let Seen::Marked { record } = seen { record } else { None };
                    let newest =
                        [of(primary), of(backup), *witness].into_iter().flatten().max_by_key(|r: &Record| r.epoch);
                    for clean in [false, true] {
                        let known = Knowledge { primary, backup, newest, clean };
                        let leaders: Vec<Place> = match decide(&known) {
                            Some(State::Mirrored) => vec![Primary, Backup],
                            Some(state) => state.leader().into_iter().collect(),
                            None => vec![],
                        };
                        for leader in leaders {
                            let seen = if leader == Primary { primary } else { backup };
                            assert_ne!(seen, Seen::Unreachable, "{known:?}");
                            if let Some(newest) = newest {
                                let nothing_left =
                                    primary == Seen::Blank { empty: true } && backup == Seen::Blank { empty: true };
                                assert!(newest.full_at(leader) || nothing_left, "{known:?} lets {leader} lead");
                                assert!(
                                    nothing_left || matches!(seen, Seen::Marked { .. }),
                                    "{known:?} lets {leader} lead"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
