//! What is said of pairs, nodes and the whole: the one place that every word of `resync status`,
//! `stats` and `resilver wait` comes from. Pure.
//!
//! The rule: no word claims more than is known. A pair is called `mirrored` only where every item
//! that its clients can reach is known to have two copies, and the whole only where every used pair
//! is, every node is in use, and nothing under way could still prove it wrong.

use crate::ids::Place;
use crate::pair::{Gate, Reason, State};
use crate::report::figures::some_of;
use crate::resync::Phase;

/// How many obstacles are listed one by one; of more, the number.
const TOLD: usize = 32;

/// Up to this many alike have a line each; more have one line for all.
const ALIKE: usize = 4;
/// This many servers are named in it.
const NAMED: usize = 3;

/// What is known of one pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct PairFacts {
    pub(super) state: State,
    pub(super) gate: Gate,
    /// As the pair itself says.
    pub(super) reason: Reason,
    /// No start row applied yet.
    pub(super) undecided: bool,
    /// Another proxy works on its nodes, or did until now.
    pub(super) foreign: bool,
    /// Whether one does is not known yet.
    pub(super) unproved: bool,
    /// The former active proxy may still be at work on them.
    pub(super) former: bool,
    /// The fleet's record still lists a copy of this pair as lost.
    pub(super) listed: bool,
    /// Keys known to have one copy.
    pub(super) missing: usize,
    /// There are more of them, of which nothing more is known.
    pub(super) more: bool,
    /// It has two nodes.
    pub(super) backup: bool,
    /// Nodes carry records and are compared; not with `--resync=off`.
    pub(super) recorded: bool,
}

/// What is known of one node.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeFacts {
    pub(super) up: bool,
    /// As the node itself says.
    pub(super) reason: Reason,
    /// Another proxy works on it.
    pub(super) foreign: bool,
    /// What its resync is doing.
    pub(super) job: Option<Phase>,
    /// Nothing that was sent before can still take effect.
    pub(super) drained: bool,
    /// Some pair of it is to be filled here, and why that pair is not mirrored.
    pub(super) needy: Option<Reason>,
}

/// A word for a state, and one for its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shown {
    pub(super) state: &'static str,
    pub(super) reason: Reason,
}

/// Where a pair is, for those who look.
pub(super) const PAIR_WORDS: [&str; 5] = ["mirrored", "incomplete", "degraded", "recovering", "dark"];
const MIRRORED: &str = PAIR_WORDS[0];
/// Both nodes have their roles, and are not known to hold the same.
const INCOMPLETE: &str = PAIR_WORDS[1];

impl PairFacts {
    /// By its record the pair is mirrored, and yet its nodes are not known to hold the same.
    /// (Another proxy that is there waits for a closed session.)
    pub(super) fn are_unequal(&self) -> bool {
        let shown = self.shown();
        self.state == State::Mirrored && shown.state == INCOMPLETE && shown.reason == Reason::CopiesMissing
    }

    pub(super) fn shown(&self) -> Shown {
        let contradicted = if self.former {
            Some(Reason::FormerActive)
        } else if self.foreign {
            Some(Reason::ForeignSession)
        } else if self.missing > 0 || self.more {
            Some(Reason::CopiesMissing)
        } else if !self.backup {
            Some(Reason::NoBackup)
        } else if !self.recorded {
            Some(Reason::ResyncOff)
        } else {
            None
        };
        let own = Some(self.reason).filter(|reason| *reason != Reason::None);
        match (self.state, contradicted) {
            (State::Mirrored, _) if self.undecided => Shown { state: INCOMPLETE, reason: Reason::Starting },
            (State::Mirrored, Some(reason)) => Shown { state: INCOMPLETE, reason },
            (State::Mirrored, None) if self.unproved => Shown { state: INCOMPLETE, reason: Reason::Starting },
            (State::Mirrored, None) if self.gate != Gate::Open || self.listed => {
                Shown { state: "recovering", reason: own.unwrap_or(Reason::Recording) }
            }
            // What kept the pair from being mirrored before is no reason any more.
            (State::Mirrored, None) => Shown { state: MIRRORED, reason: Reason::None },
            // Whatever was the reason before, nothing is done about it.
            (state, Some(Reason::FormerActive)) => Shown { state: state.word(), reason: Reason::FormerActive },
            // All but those items is copied: they are why it stays so.
            (State::Recovering { .. }, Some(Reason::CopiesMissing)) if self.missing > 0 => {
                Shown { state: "recovering", reason: Reason::CopiesMissing }
            }
            (state, _) => Shown { state: state.word(), reason: own.unwrap_or(Reason::Starting) },
        }
    }
}

impl NodeFacts {
    pub(super) fn shown(&self) -> Shown {
        let state = match self.job {
            _ if !self.up => "lost",
            Some(Phase::Preparing | Phase::Purging | Phase::Barrier) => "purging",
            Some(Phase::Copying) => "copying",
            // Finished: what it did is still to be judged.
            Some(Phase::HandingBack | Phase::Finished) => "handing_back",
            None if !self.drained => "draining",
            None if self.needy.is_some() => "waiting",
            None => "up",
        };
        let own = Some(self.reason).filter(|reason| *reason != Reason::None);
        // Of a node it would say that the other proxy is still there.
        let ended = |reason| if reason == Reason::ForeignSession { Reason::MarkerStale } else { reason };
        let own = own.or(self.needy.map(ended));
        let reason = match state {
            _ if self.foreign => Reason::ForeignSession,
            "up" => self.reason,
            "lost" => own.unwrap_or(Reason::Starting),
            // Old commands that it has not answered.
            "draining" => own.unwrap_or(Reason::Timeout),
            "handing_back" => own.unwrap_or(Reason::Recording),
            _ => own.unwrap_or(Reason::Starting),
        };
        Shown { state, reason }
    }
}

/// The whole.
#[derive(Debug, Default)]
pub(super) struct Summary {
    /// What keeps it from being mirrored, a sentence each.
    obstacles: Vec<String>,
    untold: usize,
}

/// Things of one kind with the same word and reason, in the order in which the first ones came.
struct Alike<'a, F>(Vec<(Shown, Vec<(&'a str, F)>)>);

impl<'a, F> Alike<'a, F> {
    fn put(&mut self, shown: Shown, name: &'a str, facts: F) {
        match self.0.iter_mut().find(|(known, _)| *known == shown) {
            Some((_, all)) => all.push((name, facts)),
            None => self.0.push((shown, vec![(name, facts)])),
        }
    }
}

impl Summary {
    /// `pairs`: the used ones, with their names. `flushing`: a `flush_all` is under way.
    pub(super) fn of<'a>(
        backups: bool,
        flushing: bool,
        pairs: impl Iterator<Item = (&'a str, PairFacts)>,
        nodes: impl Iterator<Item = (&'a str, Place, NodeFacts)>,
    ) -> Summary {
        let mut summary = Summary::default();
        if !backups {
            summary.tell("there are no backups (-b): nothing is held twice".to_owned());
        }
        let (mut all, mut alike) = (0, Alike(Vec::new()));
        for (name, facts) in pairs {
            all += 1;
            let shown = facts.shown();
            if shown.state != MIRRORED {
                alike.put(shown, name, facts);
            }
        }
        for (shown, pairs) in alike.0 {
            summary.tell_pairs(shown, &pairs, all);
        }
        let nodes: Vec<_> = nodes.collect();
        for place in [Place::Primary, Place::Backup] {
            let here = || nodes.iter().filter(|(_, at, _)| *at == place);
            let mut alike = Alike(Vec::new());
            for (name, _, facts) in here() {
                let shown = facts.shown();
                if shown.state != "up" || facts.foreign {
                    alike.put(shown, name, *facts);
                }
            }
            for (shown, servers) in alike.0 {
                summary.tell_servers(place, shown, &servers, here().count());
            }
        }
        if flushing {
            summary.tell("a flush_all is under way".to_owned());
        }
        summary
    }

    fn tell_pairs(&mut self, shown: Shown, pairs: &[(&str, PairFacts)], all: usize) {
        let Shown { state, reason } = shown;
        let keys = |known: usize, more: bool| match (known, more) {
            (0, false) => String::new(),
            _ => format!(" (keys with one copy: {})", missing(known, more)),
        };
        if pairs.len() <= ALIKE {
            for (name, facts) in pairs {
                let keys = keys(facts.missing, facts.more);
                self.tell(format!("pair {name} is {state}, reason {reason}{keys}"));
            }
            return;
        }
        let keys = keys(pairs.iter().map(|(_, f)| f.missing).sum(), pairs.iter().any(|(_, f)| f.more));
        // A pair's name is long (two server names): show one.
        let some = some_of(&pairs.iter().map(|(name, _)| *name).collect::<Vec<_>>(), 1);
        self.tell(format!("{} of {all} pairs are {state}, reason {reason}: {some}{keys}", pairs.len()));
    }

    fn tell_servers(&mut self, place: Place, shown: Shown, servers: &[(&str, NodeFacts)], all: usize) {
        let Shown { state, reason } = shown;
        if servers.len() <= ALIKE {
            for (name, facts) in servers {
                if facts.foreign {
                    self.tell(format!("another proxy works on server {name}, reason {reason}"));
                }
                if state != "up" {
                    self.tell(format!("server {name} is {state}, reason {reason}"));
                }
            }
            return;
        }
        let some = some_of(&servers.iter().map(|(name, _)| *name).collect::<Vec<_>>(), NAMED);
        let of = match place {
            Place::Primary => format!("{} of {all} primaries", servers.len()),
            Place::Backup => format!("{} of {all} backups", servers.len()),
        };
        if servers.iter().any(|(_, facts)| facts.foreign) {
            self.tell(format!("another proxy works on {of}, reason {reason}: {some}"));
        }
        if state != "up" {
            self.tell(format!("{of} are {state}, reason {reason}: {some}"));
        }
    }

    fn tell(&mut self, obstacle: String) {
        if self.obstacles.len() < TOLD {
            self.obstacles.push(obstacle);
        } else {
            self.untold += 1;
        }
    }

    /// Whether every item is known to have two copies.
    pub(super) fn is_mirrored(&self) -> bool {
        self.obstacles.is_empty()
    }

    /// What is in the way, a sentence each.
    pub(super) fn obstacles(&self) -> impl Iterator<Item = String> {
        let more = (self.untold > 0).then(|| format!("and {} more", self.untold));
        self.obstacles.iter().cloned().chain(more)
    }
}

/// How many keys have one copy, for people.
pub(super) fn missing(known: usize, more: bool) -> String {
    match (known, more) {
        (0, true) => "unknown many".to_owned(),
        (known, true) => format!("{known} and unknown many more"),
        (known, false) => known.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 6] =
        [Phase::Preparing, Phase::Purging, Phase::Barrier, Phase::Copying, Phase::HandingBack, Phase::Finished];
    const GATES: [Gate; 4] = [Gate::Open, Gate::Closing, Gate::Recording, Gate::Draining];
    const REASONS: [Reason; 4] = [Reason::None, Reason::Reset, Reason::CannotEnumerate, Reason::ForeignSession];

    fn states() -> Vec<State> {
        let places = [Place::Primary, Place::Backup];
        let maybe = [None, Some(Place::Primary), Some(Place::Backup)];
        let mut states = vec![State::Mirrored];
        states.extend(places.map(|leader| State::Degraded { leader }));
        states.extend(places.map(|leader| State::Recovering { leader }));
        states.extend(maybe.iter().flat_map(|&in_sync| maybe.map(|fallback| State::Dark { in_sync, fallback })));
        states
    }

    fn all_pairs() -> Vec<PairFacts> {
        let mut all = Vec::new();
        for state in states() {
            for (gate, reason) in GATES.into_iter().flat_map(|gate| REASONS.map(|reason| (gate, reason))) {
                for bits in 0..512_u16 {
                    let bit = |i: u16| bits >> i & 1 == 1;
                    all.push(PairFacts {
                        state,
                        gate,
                        reason,
                        undecided: bit(0),
                        foreign: bit(1),
                        missing: usize::from(bit(2)) * 7,
                        more: bit(3),
                        recorded: bit(4),
                        backup: bit(5),
                        former: bit(6),
                        unproved: bit(7),
                        listed: bit(8),
                    });
                }
            }
        }
        all
    }

    fn all_nodes() -> Vec<NodeFacts> {
        let jobs: Vec<Option<Phase>> = std::iter::once(None).chain(PHASES.map(Some)).collect();
        let needs = [None, Some(Reason::Operator), Some(Reason::ForeignSession)];
        let mut all = Vec::new();
        for (reason, &job) in REASONS.into_iter().flat_map(|reason| jobs.iter().map(move |job| (reason, job))) {
            for (needy, bits) in needs.into_iter().flat_map(|needy| (0..8_u8).map(move |bits| (needy, bits))) {
                let bit = |i: u8| bits >> i & 1 == 1;
                all.push(NodeFacts { up: bit(0), reason, foreign: bit(1), job, drained: bit(2), needy });
            }
        }
        all
    }

    const GOOD: PairFacts = PairFacts {
        state: State::Mirrored,
        gate: Gate::Open,
        reason: Reason::None,
        undecided: false,
        foreign: false,
        unproved: false,
        missing: 0,
        more: false,
        recorded: true,
        backup: true,
        former: false,
        listed: false,
    };
    const WELL: NodeFacts =
        NodeFacts { up: true, reason: Reason::None, foreign: false, job: None, drained: true, needy: None };

    fn summary(pair: PairFacts, node: NodeFacts) -> Summary {
        Summary::of(
            true,
            false,
            [("a", GOOD), ("b", pair)].into_iter(),
            [("c", Place::Primary, WELL), ("d", Place::Backup, node)].into_iter(),
        )
    }

    #[test]
    fn nothing_is_called_mirrored_while_anything_known_contradicts() {
        assert!(summary(GOOD, WELL).is_mirrored());
        let (mut mirrored, mut not) = (0, 0);
        for pair in all_pairs() {
            let equal = pair.state == State::Mirrored && pair.gate == Gate::Open && pair.recorded && pair.backup;
            let contradicted =
                pair.undecided || pair.foreign || pair.unproved || pair.former || pair.missing > 0 || pair.more;
            let contradicted = contradicted || pair.listed;
            let expected = equal && !contradicted;
            let Shown { state, reason } = pair.shown();
            assert_eq!(state == MIRRORED, expected, "{pair:?}");
            assert_eq!(reason == Reason::None, expected, "{pair:?} is {state} for the reason {reason}");
            assert!(PAIR_WORDS.contains(&state), "{state}");
            assert_eq!(summary(pair, WELL).is_mirrored(), expected, "{pair:?}");
            *if expected { &mut mirrored } else { &mut not } += 1;
        }
        assert!(mirrored > 0 && not > 0);
        for node in all_nodes() {
            let expected = node.up && !node.foreign && node.job.is_none() && node.drained && node.needy.is_none();
            assert_eq!(summary(GOOD, node).is_mirrored(), expected, "{node:?}");
            let Shown { state, reason } = node.shown();
            assert!(state == "up" || reason != Reason::None, "{node:?} is {state} for no reason");
            let says = node.foreign || node.reason == Reason::ForeignSession;
            assert_eq!(reason == Reason::ForeignSession, says, "{node:?}");
        }
        let whole = |backups, flushing| {
            let nodes = [("c", Place::Primary, WELL)].into_iter();
            Summary::of(backups, flushing, [("a", GOOD)].into_iter(), nodes).is_mirrored()
        };
        assert_eq!([whole(true, false), whole(true, true), whole(false, false)], [true, false, false]);
    }

    /// Each obstacle is told with its name and its reason; of very many, the number.
    #[test]
    fn obstacles_are_told_and_bounded() {
        let bad = PairFacts { missing: 204, ..GOOD };
        let lost = NodeFacts { up: false, reason: Reason::Reset, ..WELL };
        assert_eq!(
            summary(bad, lost).obstacles().collect::<Vec<_>>(),
            ["pair b is incomplete, reason copies_missing (keys with one copy: 204)", "server d is lost, reason reset"]
        );
        // Alike are told in one line.
        let many = (0..1000).map(|_| ("p", bad));
        let nodes = (0..16).map(|_| ("b:1", Place::Backup, lost)).chain([("p:1", Place::Primary, WELL)]);
        let told: Vec<_> = Summary::of(true, false, many, nodes).obstacles().collect();
        assert_eq!(
            told,
            [
                "1000 of 1000 pairs are incomplete, reason copies_missing: p and 999 more (keys with one copy: 204000)",
                "16 of 16 backups are lost, reason reset: b:1, b:1, b:1 and 13 more"
            ]
        );
        let mut different = Summary::default();
        (0..1000).for_each(|number| different.tell(format!("obstacle {number}")));
        let told: Vec<_> = different.obstacles().collect();
        assert_eq!((told.len(), told.last().map(String::as_str)), (TOLD + 1, Some("and 968 more")));
        assert_eq!(missing(0, true), "unknown many");
        assert_eq!(missing(3, true), "3 and unknown many more");
    }
}
