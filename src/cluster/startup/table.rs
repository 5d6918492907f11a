//! The start-up table: a pair's first state by the markers on its nodes, and how its other node is
//! made equal. Pure.
//!
//! Only markers that were read are trusted. The first column is the pair's newest record on any
//! node that answers, also a third one; the next two are what the pair's own nodes show ([`Seen`]):
//! *away* (no answer), *empty*, *items* (no marker), *stale* (it missed a period of the ring), *a
//! marker* (whatever its record says, if it has one), *this record* (the newest one itself). The
//! first row that fits counts. The rows are the arms of [`decide`], [`first_start`] and
//! [`cut_off`], in their order. *Fills*: it purges and refills the other one. `docs/resync.md` has
//! the same table.
//!
//! | newest record | one node | the other one | then |
//! |---|---|---|---|
//! | any, or none | empty | empty | Mirrored: there is nothing to lose |
//! | `alone` P | away | away | Dark until P answers |
//! | `adopting`, leader P | away | away | Dark until P answers; then the adoption goes on |
//! | `filling` P | away | away | Dark until the other one answers, from which P was filled |
//! | `nobody` | away | away | Dark; the first that is purged leads |
//! | `sync`, or none | away | away | Dark; decided again when one of them answers |
//! | none | stale | stale | Dark; the first that is purged leads |
//! | none | stale | away | Dark; decided again when the other one answers: it may be adopted |
//! | none | stale | anything else | the other one leads, and fills the stale one |
//! | none | away | anything else | the other one leads; this one is adopted if no proxy has used it, else purged and filled |
//! | none | backup: empty | primary: items or a marker | the primary leads, and fills the backup |
//! | none | primary: empty | backup: items or a marker | the backup leads, and fills the primary |
//! | none | primary: items, no marker | backup: a marker | adoption; the backup leads |
//! | none | primary: items or a marker | backup: items | adoption; the primary leads |
//! | none | a marker | a marker | adoption; the primary leads |
//! | `sync`, sessions closed | this record | this record | Mirrored |
//! | `sync`, a session open (crash) | this record | this record | Mirrored; the copies are compared |
//! | `sync` | this record | anything else | it leads, and fills the other one |
//! | `sync` | away | anything but this record | Dark until the one that is away answers |
//! | `sync` | neither is away | neither has this record | Dark; the first that is purged leads |
//! | `nobody` | any | any | Dark; the first that is purged leads |
//! | `adopting` | leader: a marker | follower: this record | the adoption goes on, under the same leader |
//! | `adopting` | leader: a marker | follower: away | the leader leads; the adoption goes on if the follower comes back as it was, else it is purged |
//! | `adopting` | leader: a marker | follower: anything else | the leader leads, and fills the other one |
//! | `adopting` | leader: away | follower: this record | Dark until the leader answers, then adoption; the follower leads if the leader's memory proves gone |
//! | `adopting` | leader: away | follower: anything else | Dark until the leader answers |
//! | `adopting` | leader: no marker, or stale | follower: this record | the follower leads, and fills the other one |
//! | `adopting` | leader: no marker, or stale | follower: anything else | Dark; the first that is purged leads |
//! | `alone` or `filling` | full one: a marker | any | the full one leads, and fills the other one |
//! | `alone` or `filling` | full one: away | any | Dark until the full one answers |
//! | `alone` or `filling` | full one: no marker, or stale | any | Dark; the first that is purged leads |
//!
//! `Cluster::decide` changes two of these with `--resync=manual`: where an adoption or a comparison
//! would begin, the leader (of a Mirrored pair the primary) leads alone. Where no records are kept
//! (`--resync=off`, no backups) the table is not asked: a pair is mirrored, degraded or dark by
//! which of its nodes answer.

use crate::backend::marker::{Fact, Record};
use crate::ids::Place;
use crate::pair::State;
use crate::resync::Fill;

/// What one node of a pair shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// It does not answer.
    Unreachable,
    /// It carries no valid marker: a fresh process, or one that the proxy has never seen, or that
    /// was full under the ring before.
    Blank {
        /// It holds no items at all.
        empty: bool,
    },
    /// It missed a period of the ring, or part of one: it leads only after a purge, and nothing it
    /// holds is adopted or compared.
    Stale,
    /// It carries a marker.
    Marked {
        /// The pair's record on it.
        record: Option<Record>,
    },
}

impl Seen {
    fn is_empty(self) -> bool {
        self == Seen::Blank { empty: true }
    }
}

/// What is known of a pair when the proxy starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Knowledge {
    /// What the primary shows.
    pub(super) primary: Seen,
    /// What the backup shows.
    pub(super) backup: Seen,
    /// The newest record of the pair on any node that answers.
    pub(super) newest: Option<Record>,
    /// Whether the last proxy that used both nodes stopped cleanly.
    pub(super) clean: bool,
}

impl Knowledge {
    /// Neither node holds anything.
    pub(super) fn are_empty(&self) -> bool {
        self.primary.is_empty() && self.backup.is_empty()
    }
}

/// What becomes of the pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Decision {
    /// Its first state.
    pub(super) state: State,
    /// How the other node is made equal, where a refill would lose what it holds.
    pub(super) fill: Option<Fill>,
    /// No node can be trusted before more nodes answer: then the table is asked again.
    pub(super) waits: bool,
}

impl Decision {
    fn of(state: State) -> Decision {
        Decision { state, fill: None, waits: false }
    }

    fn alone(leader: Place) -> Decision {
        Decision::of(State::Degraded { leader })
    }

    fn dark(in_sync: Option<Place>) -> Decision {
        Decision::of(State::Dark { in_sync, fallback: None })
    }

    /// It leads, and every write reaches the other one too: both nodes' items count.
    fn adopting(leader: Place) -> Decision {
        Decision::of(State::Recovering { leader }).filled_by(Fill::Adopt)
    }

    fn filled_by(self, fill: Fill) -> Decision {
        Decision { fill: Some(fill), ..self }
    }

    fn waiting(self) -> Decision {
        Decision { waits: true, ..self }
    }
}

pub(super) fn decide(known: &Knowledge) -> Decision {
    use Place::{Backup, Primary};
    let seen = |place| if place == Primary { known.primary } else { known.backup };
    if known.are_empty() {
        return Decision::of(State::Mirrored);
    }
    if (known.primary, known.backup) == (Seen::Unreachable, Seen::Unreachable) {
        let in_sync = match known.newest.map(|r| r.fact) {
            Some(Fact::Alone(place)) => Some(place),
            Some(Fact::Adopting(place)) => return Decision::dark(Some(place)).filled_by(Fill::Adopt),
            Some(Fact::Filling(place)) => Some(place.other()),
            // A flush ended what both held: the node that answers first is purged, and leads.
            Some(Fact::Nobody) => return Decision::dark(None),
            _ => None,
        };
        return if in_sync.is_some() { Decision::dark(in_sync) } else { Decision::dark(None).waiting() };
    }
    match known.newest.map(|r| r.fact) {
        None => first_start(known),
        Some(Fact::Sync) => {
            let full = |place| matches!(seen(place), Seen::Marked { record } if record == known.newest);
            match (full(Primary), full(Backup)) {
                (true, true) if known.clean => Decision::of(State::Mirrored),
                // After a crash an unacknowledged write may have reached one node only. Both serve:
                // if the primary served alone and died before the compare pass is over, it would
                // take along what was acknowledged since (1,238 of 2,629 sets in a test).
                (true, true) => Decision::of(State::Mirrored).filled_by(Fill::Compare),
                (true, false) => Decision::alone(Primary),
                (false, true) => Decision::alone(Backup),
                // The node that is away may have it.
                (false, false) if known.primary == Seen::Unreachable => Decision::dark(Some(Primary)),
                (false, false) if known.backup == Seen::Unreachable => Decision::dark(Some(Backup)),
                (false, false) => Decision::dark(None),
            }
        }
        Some(Fact::Nobody) => Decision::dark(None),
        Some(Fact::Adopting(leader)) => cut_off(known, leader, seen(leader), seen(leader.other())),
        Some(fact @ (Fact::Alone(place) | Fact::Filling(place))) => {
            let leader = if fact == Fact::Alone(place) { place } else { place.other() };
            match seen(leader) {
                Seen::Marked { .. } => Decision::alone(leader),
                // The other one missed writes: it does not serve before the leader answers.
                Seen::Unreachable => Decision::dark(Some(leader)),
                Seen::Blank { .. } | Seen::Stale => Decision::dark(None),
            }
        }
    }
}

/// An adoption was cut off. What the follower holds counts only if it says so itself: it has made
/// every write until then.
fn cut_off(known: &Knowledge, leader: Place, leads: Seen, follows: Seen) -> Decision {
    let counts = matches!(follows, Seen::Marked { record } if record == known.newest);
    match leads {
        Seen::Marked { .. } if counts => Decision::adopting(leader),
        // It may come back as it is; else it is purged.
        Seen::Marked { .. } if follows == Seen::Unreachable => Decision::alone(leader).filled_by(Fill::Adopt),
        Seen::Marked { .. } => Decision::alone(leader),
        Seen::Unreachable => {
            let fallback = counts.then_some(leader.other());
            Decision::of(State::Dark { in_sync: Some(leader), fallback }).filled_by(Fill::Adopt)
        }
        // No copy stands there that was not verified: what is left leads.
        Seen::Blank { .. } | Seen::Stale if counts => Decision::alone(leader.other()),
        Seen::Blank { .. } | Seen::Stale => Decision::dark(None),
    }
}

/// No node has a record of the pair.
fn first_start(known: &Knowledge) -> Decision {
    use Place::{Backup, Primary};
    match (known.primary, known.backup) {
        (Seen::Stale, Seen::Stale) => Decision::dark(None),
        // The one that is away may be full by the ring before: then it can be adopted, once it
        // answers.
        (Seen::Stale, Seen::Unreachable) => Decision::dark(Some(Backup)).waiting(),
        (Seen::Unreachable, Seen::Stale) => Decision::dark(Some(Primary)).waiting(),
        (_, Seen::Stale) => Decision::alone(Primary),
        (Seen::Stale, _) => Decision::alone(Backup),
        // Silence proves nothing. (With a purge in this place, a full server that was a third of a
        // second late at a first start, beside a new one, lost all it held.)
        (_, Seen::Unreachable) => Decision::alone(Primary).filled_by(Fill::Adopt),
        (Seen::Unreachable, _) => Decision::alone(Backup).filled_by(Fill::Adopt),
        (primary, Seen::Blank { empty: true }) if !primary.is_empty() => Decision::alone(Primary),
        (Seen::Blank { empty: true }, _) => Decision::alone(Backup),
        // Markers without a record come from a start that was cut short before any pair was open:
        // nothing tells whose items are newer, neither is known to be out of date, and what only
        // one of them holds is kept.
        (Seen::Blank { .. }, Seen::Marked { .. }) => Decision::adopting(Backup),
        _ => Decision::adopting(Primary),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::marker::Period;
    use crate::ids::{Epoch, Term};
    use Place::{Backup, Primary};

    fn record(epoch: u64, fact: Fact) -> Record {
        Record { epoch: Epoch(epoch), fact, term: Term(1), period: Period(1) }
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
        let cut_short = Seen::Marked { record: None };
        let away = Seen::Unreachable;
        let (stale, alone) = (Seen::Stale, Decision::alone);
        let dark = |place| Decision::dark(Some(place));
        let none = Decision::dark(None);
        let mirrored = Decision::of(State::Mirrored);
        let adopt = Decision::adopting;
        let cut_off = marked(record(7, Fact::Adopting(Primary)));
        let from_backup = marked(record(7, Fact::Adopting(Backup)));
        let await_adopting = |leader: Place, fallback| {
            Decision::of(State::Dark { in_sync: Some(leader), fallback }).filled_by(Fill::Adopt)
        };
        let compare = mirrored.filled_by(Fill::Compare);
        let being_filled = marked(record(7, Fact::Filling(Backup)));
        let nobody = marked(record(7, Fact::Nobody));
        let cases = [
            ("both in sync, clean", marked(sync), marked(sync), true, mirrored),
            ("both in sync, crash", marked(sync), marked(sync), false, compare),
            ("primary restarted", empty, marked(sync), true, alone(Backup)),
            ("backup restarted", marked(sync), empty, true, alone(Primary)),
            ("primary a stranger with items", items, marked(sync), true, alone(Backup)),
            ("backup led alone", marked(sync), marked(record(6, Fact::Alone(Backup))), false, alone(Backup)),
            ("primary led alone", marked(record(6, Fact::Alone(Primary))), marked(sync), false, alone(Primary)),
            ("backup was being filled", marked(record(6, Fact::Alone(Primary))), being_filled, false, alone(Primary)),
            ("leader's memory gone while filling", empty, being_filled, false, none),
            (
                "hand-back cut between the two records",
                marked(record(7, Fact::Sync)),
                marked(record(6, Fact::Alone(Backup))),
                false,
                alone(Primary),
            ),
            ("both fresh", empty, empty, true, mirrored),
            ("both with items, no markers", items, items, true, adopt(Primary)),
            ("both with items, no markers, after a crash", items, items, false, adopt(Primary)),
            ("the first start was cut short", cut_short, cut_short, false, adopt(Primary)),
            ("the first start was cut short, one marked", cut_short, items, false, adopt(Primary)),
            ("the first start was cut short, the other marked", items, cut_short, false, adopt(Backup)),
            ("an adoption was cut off", cut_off, cut_off, false, adopt(Primary)),
            ("an adoption was cut off, cleanly", cut_off, cut_off, true, adopt(Primary)),
            ("an adoption was cut off under the backup", from_backup, from_backup, false, adopt(Backup)),
            ("… before the leader was recorded", cut_short, cut_off, false, adopt(Primary)),
            ("… before the leader's older record was replaced", marked(sync), cut_off, false, adopt(Primary)),
            ("… and the follower does not say so", cut_off, marked(sync), false, alone(Primary)),
            (
                "… and the follower missed writes",
                marked(record(8, Fact::Alone(Primary))),
                cut_off,
                false,
                alone(Primary),
            ),
            (
                "… and copies stand on the follower",
                cut_off,
                marked(record(8, Fact::Filling(Backup))),
                false,
                alone(Primary),
            ),
            ("… and the follower's memory is gone", cut_off, empty, false, alone(Primary)),
            ("… and the follower is a stranger", cut_off, items, false, alone(Primary)),
            ("… and the leader's memory is gone", empty, cut_off, false, alone(Backup)),
            ("… and the leader is a stranger", items, cut_off, false, alone(Backup)),
            ("… and the follower is away", cut_off, away, false, alone(Primary).filled_by(Fill::Adopt)),
            ("… and the leader is away", away, cut_off, false, await_adopting(Primary, Some(Backup))),
            ("items on the backup only", empty, items, true, alone(Backup)),
            ("items on the primary only", items, empty, true, alone(Primary)),
            ("primary unreachable, backup in sync", away, marked(sync), true, alone(Backup)),
            ("backup unreachable, primary in sync", marked(sync), away, true, alone(Primary)),
            ("primary unreachable, first start", away, items, true, alone(Backup).filled_by(Fill::Adopt)),
            ("backup unreachable, first start", items, away, true, alone(Primary).filled_by(Fill::Adopt)),
            ("primary unreachable, the backup is new", away, empty, true, alone(Backup).filled_by(Fill::Adopt)),
            ("backup unreachable, the primary is new", empty, away, true, alone(Primary).filled_by(Fill::Adopt)),
            ("primary unreachable, cut short", away, cut_short, false, alone(Backup).filled_by(Fill::Adopt)),
            ("unreachable, the other being filled", away, being_filled, true, dark(Primary)),
            (
                "unreachable, the other recorded as stale",
                away,
                marked(record(7, Fact::Alone(Primary))),
                true,
                dark(Primary),
            ),
            ("both unreachable", away, away, true, none.waiting()),
            ("both lost their memory", empty, empty, false, mirrored),
            ("a flush ended what is left", nobody, nobody, false, none),
            ("a flush ended what the one away holds", away, nobody, false, none),
            ("a flush ended what the other holds", marked(sync), nobody, false, none),
            ("missed a period, the other is away", stale, away, true, dark(Backup).waiting()),
            ("the other missed a period, the primary is away", away, stale, true, dark(Primary).waiting()),
            ("missed a period, the other has items", stale, items, true, alone(Backup)),
            ("missed a period, the other is empty", stale, empty, true, alone(Backup)),
            ("missed a period, the other is in sync", stale, marked(sync), true, alone(Backup)),
            ("the backup missed a period", items, stale, true, alone(Primary)),
            ("both missed a period", stale, stale, true, none),
        ];
        for (what, primary, backup, clean, expected) in cases {
            let of = |seen| if let Seen::Marked { record } = seen { record } else { None };
            let newest = [of(primary), of(backup)].into_iter().flatten().max_by_key(|r: &Record| r.epoch);
            assert_eq!(decide(&Knowledge { primary, backup, newest, clean }), expected, "{what}");
        }
    }

    /// A third node remembers that the backup led alone; the backup is away, and the primary still
    /// believes that it is in sync.
    #[test]
    fn a_witness_keeps_a_stale_primary_from_leading() {
        let newest = Some(record(9, Fact::Alone(Backup)));
        let known =
            Knowledge { primary: marked(record(5, Fact::Sync)), backup: Seen::Unreachable, newest, clean: false };
        assert_eq!(decide(&known), Decision::dark(Some(Backup)));
        let both_away = Knowledge { primary: Seen::Unreachable, ..known };
        assert_eq!(decide(&both_away), Decision::dark(Some(Backup)), "whichever comes first");
    }

    /// Nobody of the pair answers, and a third node has the newest record: who is awaited.
    #[test]
    fn with_both_away_the_newest_record_names_whoever_is_awaited() {
        let away = |fact| {
            let newest = Some(record(9, fact));
            decide(&Knowledge { primary: Seen::Unreachable, backup: Seen::Unreachable, newest, clean: false })
        };
        for place in [Primary, Backup] {
            let awaited = Decision::dark(Some(place));
            assert_eq!(away(Fact::Alone(place)), awaited);
            assert_eq!(away(Fact::Filling(place.other())), awaited, "whoever it was filled from");
            assert_eq!(away(Fact::Adopting(place)), awaited.filled_by(Fill::Adopt));
        }
        assert_eq!(away(Fact::Nobody), Decision::dark(None), "whoever comes is purged");
        assert_eq!(away(Fact::Sync), Decision { waits: true, ..Decision::dark(None) });
    }

    /// A third node knows that both were in sync, and neither shows it.
    #[test]
    fn of_two_that_were_in_sync_the_one_that_is_away_may_have_it() {
        let items = Seen::Blank { empty: false };
        let known =
            |primary, backup| decide(&Knowledge { primary, backup, newest: Some(record(9, Fact::Sync)), clean: true });
        assert_eq!(known(Seen::Unreachable, items), Decision::dark(Some(Primary)));
        assert_eq!(known(items, Seen::Unreachable), Decision::dark(Some(Backup)));
        assert_eq!(known(items, items), Decision::dark(None));
    }

    /// Every combination: what leads alone is never a node that the newest record does not call
    /// full, unless it has nothing; what missed a period never leads, and is neither adopted nor
    /// compared.
    #[test]
    fn no_combination_lets_a_stale_node_lead() {
        let facts = [
            Fact::Sync,
            Fact::Alone(Primary),
            Fact::Alone(Backup),
            Fact::Filling(Primary),
            Fact::Filling(Backup),
            Fact::Adopting(Primary),
            Fact::Adopting(Backup),
            Fact::Nobody,
        ];
        let mut seens = vec![
            Seen::Unreachable,
            Seen::Stale,
            Seen::Blank { empty: true },
            Seen::Blank { empty: false },
            Seen::Marked { record: None },
        ];
        for epoch in 1..=2 {
            seens.extend(facts.iter().map(|&f| marked(record(epoch, f))));
        }
        let mut newest_options: Vec<Option<Record>> = facts.iter().map(|&f| Some(record(3, f))).collect();
        newest_options.push(None);
        let mut filled = [0; 2];
        for &primary in &seens {
            for &backup in &seens {
                for witness in &newest_options {
                    let of = |seen| if let Seen::Marked { record } = seen { record } else { None };
                    let newest =
                        [of(primary), of(backup), *witness].into_iter().flatten().max_by_key(|r: &Record| r.epoch);
                    for clean in [false, true] {
                        let known = Knowledge { primary, backup, newest, clean };
                        let decision = decide(&known);
                        let leaders: Vec<Place> = match decision.state {
                            State::Mirrored => vec![Primary, Backup],
                            state => state.leader().into_iter().collect(),
                        };
                        let nothing_left = primary.is_empty() && backup.is_empty();
                        for leader in leaders {
                            let seen = if leader == Primary { primary } else { backup };
                            assert!(seen != Seen::Unreachable && seen != Seen::Stale, "{known:?}");
                            assert!(!decision.waits, "{known:?}");
                            if let Some(newest) = newest {
                                // In the middle of an adoption the follower has made every write,
                                // and is all that is left.
                                let other = if leader == Primary { backup } else { primary };
                                let left = newest.fact == Fact::Adopting(leader.other())
                                    && of(seen) == Some(newest)
                                    && matches!(other, Seen::Blank { .. } | Seen::Stale);
                                assert!(newest.full_at(leader) || left || nothing_left, "{known:?} lets {leader} lead");
                                assert!(
                                    nothing_left || matches!(seen, Seen::Marked { .. }),
                                    "{known:?} lets {leader} lead"
                                );
                            }
                        }
                        match decision.fill {
                            Some(Fill::Compare) => {
                                filled[0] += 1;
                                assert!(primary == backup && newest == of(primary) && newest.is_some(), "{known:?}");
                            }
                            Some(Fill::Adopt) => {
                                filled[1] += 1;
                                let unknown = |s| matches!(s, Seen::Blank { empty: false } | Seen::Marked { .. });
                                let away = [primary, backup].contains(&Seen::Unreachable);
                                let first = newest.is_none() && (away || unknown(primary) && unknown(backup));
                                let cut_off = newest.and_then(|newest| match newest.fact {
                                    Fact::Adopting(leader) => Some((newest, leader)),
                                    _ => None,
                                });
                                let goes_on = cut_off.is_some_and(|(newest, leader)| {
                                    let follows = if leader == Primary { backup } else { primary };
                                    follows == marked(newest)
                                        || follows == Seen::Unreachable
                                        || decision.state.leader().is_none()
                                });
                                assert!(first || goes_on, "adopts what a record calls out of date: {known:?}");
                                let both = matches!(decision.state, State::Recovering { .. });
                                assert!(
                                    !both
                                        || first
                                        || cut_off.is_some_and(|(newest, leader)| {
                                            (if leader == Primary { backup } else { primary }) == marked(newest)
                                        }),
                                    "writes to what may be out of date: {known:?}"
                                );
                            }
                            fill => assert_eq!(fill, None),
                        }
                    }
                }
            }
        }
        assert!(filled.iter().all(|&n| n > 0), "{filled:?}");
    }
}
