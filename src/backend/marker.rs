//! The proxy's own small items on every node: by them it knows which memory a node has, and how far
//! to trust it.
//!
//! memcached has no way to say "this is the same memory as before": pids repeat in containers,
//! start times survive a warm restart, a flush leaves everything but the items. So each node
//! carries markers under [reserved keys](crate::ids::RESERVED_PREFIX), one small fact each (a 2 KB
//! item was seen evicted within a second, a small one survives):
//!
//! - *incarnation*: a random number. Marker gone = memory gone.
//! - *ring*: fingerprint of the two rings, which node this is, the ring's *period*, the term that
//!   its pairs began at, and whether items from before it count.
//! - *session*: which proxy wrote last, and whether it stopped cleanly.
//! - *flush*: delayed `flush_all`s that are acknowledged and not run yet; there only since the
//!   first of them.
//! - *rival*: written by a proxy that found another one's session marker in place of its own, and
//!   that still works, so that the other proxy notices. It expires.
//! - *knock*: written by a proxy with another list of servers, which asks whoever works here to say
//!   so as a rival does. It expires.
//! - *fleet*: of which fleet of proxies this is a server, and the generation and the address of the
//!   active one; there only with `--coordinate`.
//! - *pair N*: epoch, what is so since then (in sync, one place alone, one place being filled),
//!   leadership term, the ring's period.
//!
//! A *period* begins when a proxy starts with another ring than the nodes were last used under. A
//! record of another period says nothing about the pair that has its number now. A node with an
//! older period's marker has missed a period, even if the ring is the same again: keys that other
//! nodes owned meanwhile were changed there.
//!
//! Every change is conditional (`cas`, or `add` if there was none): an unconditional `set` would
//! certify a node that has just restarted. (Except *rival* and *knock*, which certify nothing.)

use std::collections::BTreeSet;
use std::fmt;

use crate::ids::{Epoch, Incarnation, NodeId, PairId, Place, SessionId, Term};

pub use crate::ids::UNSURE;
pub use crate::protocol::mark::FleetMark;

/// The key of the incarnation marker.
pub const INCARNATION_KEY: &str = "__resilver__:incarnation";
/// The key of the ring marker.
pub const RING_KEY: &str = "__resilver__:ring";
/// The key of the session marker.
pub const SESSION_KEY: &str = "__resilver__:session";

/// The key of the delayed flushes.
pub const FLUSH_KEY: &str = "__resilver__:flush";

/// The key under which a proxy says that it works beside another one: the number of its session.
pub const RIVAL_KEY: &str = "__resilver__:rival";

/// The key under which a proxy asks whoever works on the node to say so: the number of its session.
pub const KNOCK_KEY: &str = "__resilver__:knock";

/// The key under which a fleet of proxies says that these are its servers, and which of it is
/// active.
pub const FLEET_KEY: &str = "__resilver__:fleet";

/// The key of a pair's record.
pub fn pair_key(pair: PairId) -> String {
    format!("__resilver__:pair:{}", pair.0)
}

/// What is so since a pair's epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fact {
    /// Both nodes hold everything.
    Sync,
    /// Only this place holds everything.
    Alone(Place),
    /// This place is being filled from the other, which alone holds everything.
    Filling(Place),
    /// This place leads, and what only the other one holds counts too: it is being added. Every
    /// acknowledged write since both count has been made on both, and nothing was copied to the
    /// other one yet.
    Adopting(Place),
    /// No node holds anything that counts: a `flush_all` has ended what the last full copy held
    /// while it was away.
    Nobody,
}

/// When the present ring came into force: unix microseconds, larger than that of any ring known
/// then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Period(pub u64);

/// A pair's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The edge that wrote it.
    pub epoch: Epoch,
    /// What holds since then.
    pub fact: Fact,
    pub term: Term,
    /// The period of the ring that the pair is one of.
    pub period: Period,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, place) = match self.fact {
            Fact::Sync => ("sync", Place::Primary),
            Fact::Alone(place) => ("alone", place),
            Fact::Filling(place) => ("filling", place),
            Fact::Adopting(place) => ("adopting", place),
            Fact::Nobody => ("nobody", Place::Primary),
        };
        write!(f, "{} {word} {place} {} {}", self.epoch.0, self.term.0, self.period.0)
    }
}

impl Record {
    /// Reads a record; `None` if these bytes are none.
    pub fn parse(bytes: &[u8]) -> Option<Record> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut words = text.split(' ');
        let epoch = Epoch(number(words.next()?)?);
        let word = words.next()?;
        let place = match words.next()? {
            "primary" => Place::Primary,
            "backup" => Place::Backup,
            _ => return None,
        };
        let fact = match word {
            "sync" => Fact::Sync,
            "alone" => Fact::Alone(place),
            "filling" => Fact::Filling(place),
            "adopting" => Fact::Adopting(place),
            "nobody" => Fact::Nobody,
            _ => return None,
        };
        let term = Term(number(words.next()?)?);
        let period = Period(number(words.next()?)?);
        words.next().is_none().then_some(Record { epoch, fact, term, period })
    }

    /// Whether a write of `new` over this one would take knowledge away. A record of another period
    /// says nothing of this pair.
    pub fn outlives(&self, new: &Record) -> bool {
        self.period == new.period && self.epoch > new.epoch
    }

    /// Whether a node that carries this record, and stands at `place`, holds everything of the pair
    /// as of the record's epoch.
    pub fn full_at(&self, place: Place) -> bool {
        match self.fact {
            Fact::Sync => true,
            // Adopting, neither is; but the leader's items all count.
            Fact::Alone(p) | Fact::Adopting(p) => p == place,
            Fact::Filling(p) => p != place,
            Fact::Nobody => false,
        }
    }
}

/// Enough for microseconds of 100,000 years.
const MAX_NUMBER: u64 = 1 << 62;

/// An epoch or a time. Anything that can reach a node can write there: a number is rejected if
/// counting up from it would overflow.
fn number(word: &str) -> Option<u64> {
    word.parse().ok().filter(|&n: &u64| n <= MAX_NUMBER)
}

/// What may be thought of the items that a node held when its ring marker was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leftovers {
    /// It holds only keys that it owns.
    Clean,
    /// It may hold keys that it does not own under this ring, and misses their changes. What it
    /// does own is as its records say.
    Dirty,
    /// Nothing it holds may be trusted before it was purged or a record of this period says that it
    /// is full.
    Stale,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingMark {
    /// Of the two rings.
    pub fingerprint: u64,
    /// Which node of them this is.
    pub node: NodeId,
    /// How many primaries the ring has: a record's pair can be told from its number after the ring
    /// has changed.
    pub primaries: u16,
    pub backups: u16,
    /// Since when the ring is in force.
    pub period: Period,
    /// A term that no pair had before, and all began at or above since. 0: unknown.
    pub term: Term,
    /// What else the node may hold.
    pub leftovers: Leftovers,
}

impl fmt::Display for RingMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leftovers = match self.leftovers {
            Leftovers::Clean => "clean",
            Leftovers::Dirty => "dirty",
            Leftovers::Stale => "stale",
        };
        let (node, primaries, backups) = (self.node.0, self.primaries, self.backups);
        let (fingerprint, period, term) = (self.fingerprint, self.period.0, self.term.0);
        write!(f, "{fingerprint:016x} {node} {primaries} {backups} {period} {term} {leftovers}")
    }
}

impl RingMark {
    /// Reads a ring marker; `None` if these bytes are none.
    pub fn parse(bytes: &[u8]) -> Option<RingMark> {
        let text = std::str::from_utf8(bytes).ok()?;
        let words: Vec<&str> = text.split(' ').collect();
        // The term came later.
        let (node, period, term, leftovers) = match words[..] {
            [_, node, _, _, period, leftovers] => (node, period, "0", leftovers),
            [_, node, _, _, period, term, leftovers] => (node, period, term, leftovers),
            _ => return None,
        };
        let (fingerprint, primaries, backups) = (words[0], words[2], words[3]);
        let leftovers = match leftovers {
            "clean" => Leftovers::Clean,
            "dirty" => Leftovers::Dirty,
            "stale" => Leftovers::Stale,
            _ => return None,
        };
        Some(RingMark {
            fingerprint: u64::from_str_radix(fingerprint, 16).ok()?,
            node: NodeId(node.parse().ok()?),
            primaries: primaries.parse().ok()?,
            backups: backups.parse().ok()?,
            period: Period(number(period)?),
            term: Term(number(term)?),
            leftovers,
        })
    }

    /// Whether both name the same node of the same ring in the same period.
    pub fn is_same_place(&self, other: &RingMark) -> bool {
        RingMark { leftovers: other.leftovers, term: other.term, ..*self } == *other
    }

    /// How many pairs the ring has.
    pub fn pair_count(&self) -> usize {
        usize::from(self.primaries) * usize::from(self.backups)
    }

    /// The pairs that the node had a part in, and its place in them; numbered as in
    /// [`crate::ring::Topology`].
    pub fn pairs(&self) -> (Place, Vec<PairId>) {
        let (node, primaries, backups) = (u32::from(self.node.0), u32::from(self.primaries), u32::from(self.backups));
        if node < primaries {
            (Place::Primary, (0..backups).map(|j| PairId(node * backups + j)).collect())
        } else {
            (Place::Backup, (0..primaries).map(|i| PairId(i * backups + node - primaries)).collect())
        }
    }
}

/// Whether that stands in the incarnation marker's place while it is made sure whose memory this
/// is.
pub fn is_unsure(value: &[u8]) -> bool {
    value == UNSURE.as_bytes()
}

/// Reads an incarnation marker.
pub fn parse_incarnation(bytes: &[u8]) -> Option<Incarnation> {
    Incarnation::parse(bytes)
}

/// The session marker: which proxy wrote last, and whether it stopped cleanly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// Random, one for each run of a proxy.
    pub id: SessionId,
    /// Not stopped cleanly (yet).
    pub open: bool,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, if self.open { "open" } else { "closed" })
    }
}

impl Session {
    /// Reads a session marker.
    pub fn parse(bytes: &[u8]) -> Option<Session> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (id, state) = text.split_once(' ')?;
        let open = match state {
            "open" => true,
            "closed" => false,
            _ => return None,
        };
        Some(Session { id: SessionId::parse(id)?, open })
    }
}

/// Delayed flushes, in unix seconds.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Pending {
    /// All that were due up to here were run. A node that was away then still has them on its list.
    done: u64,
    due: BTreeSet<u64>,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.done)?;
        self.due.iter().try_for_each(|due| write!(f, " {due}"))
    }
}

impl Pending {
    /// Reads a marker; `None` if these bytes are none.
    pub fn parse(bytes: &[u8]) -> Option<Pending> {
        let mut numbers = std::str::from_utf8(bytes).ok()?.split(' ').map(number);
        let done = numbers.next()??;
        Some(Pending { done, due: numbers.collect::<Option<_>>()? })
    }

    /// Adds one, at a second that was not run yet; returns which.
    pub fn add(&mut self, due: u64) -> u64 {
        let due = due.min(MAX_NUMBER).max(self.done + 1);
        self.due.insert(due);
        due
    }

    /// What another node remembers: its flushes too, except for those that are known to have been
    /// run. Returns the new ones.
    pub fn merge(&mut self, other: &Pending) -> Vec<u64> {
        let new = other.due.iter().filter(|due| !self.due.contains(due)).copied().collect::<Vec<_>>();
        self.due.extend(&other.due);
        self.run_up_to(self.done.max(other.done));
        new.into_iter().filter(|due| self.due.contains(due)).collect()
    }

    /// All flushes that were due up to `second` have been run.
    pub fn run_up_to(&mut self, second: u64) {
        self.done = self.done.max(second);
        let done = self.done;
        self.due.retain(|&due| due > done);
    }

    /// The last that is due by `second`.
    pub fn due_by(&self, second: u64) -> Option<u64> {
        self.due.range(..=second).next_back().copied()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.due.len()
    }

    /// Whether one waits for this second.
    pub fn contains(&self, due: u64) -> bool {
        self.due.contains(&due)
    }

    /// Whether there is anything to be written at all.
    pub fn is_blank(&self) -> bool {
        *self == Pending::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_as_written_and_nothing_else_reads() {
        for fact in [
            Fact::Sync,
            Fact::Alone(Place::Backup),
            Fact::Filling(Place::Primary),
            Fact::Adopting(Place::Primary),
            Fact::Nobody,
        ] {
            let period = Period(1_795_361_500_000_000);
            let record = Record { epoch: Epoch(1_795_361_500_123_456), fact, term: Term(1_000_000), period };
            assert_eq!(Record::parse(record.to_string().as_bytes()), Some(record));
        }
        for bad in [
            "",
            "1",
            "1 sync",
            "1 sync primary",
            "1 sync primary 1",
            "1 sync primary x 1",
            "x sync primary 1 1",
            "1 sync primary 1 2 3",
            "1 sync primary 1 x",
            "1 what primary 1 1",
        ] {
            assert_eq!(Record::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Record::parse(&[0xff, 0xfe]), None);
        let session = Session { id: SessionId(7), open: true };
        assert_eq!(Session::parse(session.to_string().as_bytes()), Some(session));
        assert_eq!(Session::parse(b"7 ajar"), None);
        assert_eq!(parse_incarnation(Incarnation(255).to_string().as_bytes()), Some(Incarnation(255)));
        assert_eq!(parse_incarnation(b"ff"), None);
    }

    #[test]
    fn nothing_is_believed_that_cannot_be_counted_up_from() {
        let most = u64::MAX;
        assert_eq!(Record::parse(format!("{most} sync primary 1 1").as_bytes()), None);
        assert_eq!(Record::parse(format!("1 sync primary {most} 1").as_bytes()), None);
        assert_eq!(Record::parse(format!("1 sync primary 1 {most}").as_bytes()), None);
        assert_eq!(RingMark::parse(format!("7ec7 3 2 5 {most} 1 clean").as_bytes()), None);
        assert_eq!(RingMark::parse(format!("7ec7 3 2 5 1 {most} clean").as_bytes()), None);
        for bad in [format!("{most}"), format!("1 {most}")] {
            assert_eq!(Pending::parse(bad.as_bytes()), None);
        }
        let mut far = Pending::default();
        far.add(most);
        assert_eq!(Pending::parse(far.to_string().as_bytes()), Some(far), "what this proxy writes it can read");
    }

    #[test]
    fn a_record_outlives_an_older_one_of_its_own_period_only() {
        let at =
            |epoch, period| Record { epoch: Epoch(epoch), fact: Fact::Sync, term: Term(1), period: Period(period) };
        assert!(at(6, 1).outlives(&at(5, 1)));
        assert!(!at(5, 1).outlives(&at(5, 1)) && !at(4, 1).outlives(&at(5, 1)));
        assert!(!at(6, 1).outlives(&at(5, 2)) && !at(6, 2).outlives(&at(5, 1)));
    }

    #[test]
    fn ring_marks_read_back_as_written_and_nothing_else_reads() {
        for leftovers in [Leftovers::Clean, Leftovers::Dirty, Leftovers::Stale] {
            let mark = RingMark {
                fingerprint: 0x7ec7,
                node: NodeId(3),
                primaries: 2,
                backups: 5,
                period: Period(1_795_361_500_123_456),
                term: Term(40_000),
                leftovers,
            };
            assert_eq!(RingMark::parse(mark.to_string().as_bytes()), Some(mark));
        }
        let before = RingMark::parse(b"7ec7 3 2 5 9 clean").expect("as it was written before it had a term");
        assert_eq!((before.period, before.term), (Period(9), Term(0)));
        let bad = "7ec7 3|7ec7 3 2 5 9|7ec7 3 2 5 9 1 dusty|7ec7 3 2 5 9 1 clean 1|7ec7 x 2 5 9 1 clean|";
        for bad in bad.split('|') {
            assert_eq!(RingMark::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_ring_mark_numbers_pairs_as_the_topology_does() {
        for (primaries, backups) in [(1, 1), (2, 3), (3, 2)] {
            let ring = |net: &str, count: u16| -> Vec<crate::ring::ServerSpec> {
                (0..count).map(|i| format!("10.0.{net}.{i}").parse().unwrap()).collect()
            };
            let topology = crate::ring::Topology::new(
                &ring("1", primaries),
                &ring("2", backups),
                crate::ring::Distribution::Modula,
            );
            for node in topology.nodes() {
                let mark = RingMark {
                    fingerprint: 1,
                    node,
                    primaries,
                    backups,
                    period: Period(1),
                    term: Term(40_000),
                    leftovers: Leftovers::Clean,
                };
                assert_eq!(mark.pairs(), (topology.place(node), topology.pairs_of(node).collect()));
                assert_eq!(mark.pair_count(), topology.pair_count());
            }
        }
    }

    #[test]
    fn pending_flushes_read_back_and_none_is_run_twice() {
        let mut here = Pending::default();
        assert!(here.is_blank());
        assert_eq!((here.add(50), here.add(20), here.add(50)), (50, 20, 50));
        assert_eq!(here.len(), 2);
        assert_eq!(Pending::parse(here.to_string().as_bytes()), Some(here.clone()));
        for bad in ["", " ", "1 ", "1 x", "-1", "1,2"] {
            assert_eq!(Pending::parse(bad.as_bytes()), None, "{bad:?}");
        }
        let away = here.clone();
        assert_eq!((here.due_by(19), here.due_by(20), here.due_by(99)), (None, Some(20), Some(50)));
        here.run_up_to(20);
        assert_eq!((here.len(), here.due_by(20), here.is_blank()), (1, None, false));
        // A node that was away brings back the one that was run.
        assert!(here.merge(&away).is_empty());
        assert_eq!(here.to_string(), "20 50");
        let mut fresh = away.clone();
        assert!(fresh.merge(&here).is_empty());
        assert_eq!(fresh, here);
        assert_eq!(Pending::default().merge(&away), [20, 50]);
        assert_eq!(here.add(7), 21, "the clock was set back");
    }

    #[test]
    fn the_data_plane_reads_the_same_marker() {
        assert_eq!(crate::protocol::node::MARKER_READ, format!("mg {INCARNATION_KEY} v\r\n").as_bytes());
    }
}
