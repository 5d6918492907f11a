//! The small names everything else speaks in: nodes, pairs, workers, places, incarnations, terms,
//! epochs, sessions, generations.

mod by_id;

use std::fmt;

pub use by_id::ById;

/// A memcached server behind the proxy: its index in [`crate::ring::Topology`], primaries first,
/// then backups.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u16);

impl NodeId {
    /// The index into per-node tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// All keys that one primary and one backup own together: the unit of replication.
///
/// Without backups every primary is a pair of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PairId(pub u32);

impl PairId {
    /// The index into per-pair tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A worker thread of the proxy, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct WorkerId(pub u16);

impl WorkerId {
    /// The index into per-worker tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// All of this many workers.
    pub fn all(workers: usize) -> impl Iterator<Item = WorkerId> {
        (0..workers as u16).map(WorkerId)
    }
}

/// On which ring a node stands. It never changes while the proxy runs; who *leads* a pair is a
/// role, not a place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Place {
    /// On the ring of primaries (`-s`).
    Primary,
    /// On the ring of backups (`-b`).
    Backup,
}

impl Place {
    /// The place of the other copy.
    #[must_use]
    pub fn other(self) -> Place {
        match self {
            Place::Primary => Place::Backup,
            Place::Backup => Place::Primary,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Primary => "primary",
            Place::Backup => "backup",
        })
    }
}

/// One period of a node in use, from its return to its next loss: what a worker saw in an earlier
/// one is no fault of the present one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Life(pub u32);

impl Life {
    pub fn next(self) -> Life {
        Life(self.0 + 1)
    }
}

/// Which of a node's addresses, counted from its first: a connection belongs to one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AddressNumber(pub u64);

/// One lifetime of a node's memory, by the random number in the marker the proxy keeps on the node.
///
/// It ends when the process restarts or the memory is flushed by anyone but the proxy. A flush of
/// the proxy's own gives it another name, with the same upper half: a flush that is executed once
/// more, or late, is noticed by that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Incarnation {
    const OF_MEMORY: u64 = !0 << 32;

    /// The same memory's name after a flush, by random bits.
    #[must_use]
    pub fn flushed(self, bits: u64) -> Incarnation {
        let other = (bits & !Incarnation::OF_MEMORY).max(1);
        let same = self.0 & !Incarnation::OF_MEMORY == other;
        Incarnation(self.0 & Incarnation::OF_MEMORY | if same { other - 1 } else { other })
    }

    /// Whether both are names of one memory.
    pub fn is_of_one_memory_with(self, other: Incarnation) -> bool {
        (self.0 ^ other.0) & Incarnation::OF_MEMORY == 0
    }

    /// From the marker.
    pub fn parse(marker: &[u8]) -> Option<Incarnation> {
        let digits = (marker.len() == 16).then(|| std::str::from_utf8(marker).ok())?;
        u64::from_str_radix(digits?, 16).ok().map(Incarnation)
    }
}

/// Stands in the incarnation marker's place while an evicted one is written again, and shows
/// nothing, as no marker does.
pub const UNSURE: &str = "unsure";

/// A key, by 64 bits of its hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KeyId(pub u64);

/// Leadership term of a pair: its lower 15 bits are the upper 16 of the cas tokens that clients
/// see. Of those the topmost stays 0: clients in languages without unsigned integers (PHP, Java)
/// misread larger tokens.
///
/// It grows with every change of leader or of the leader's memory, and from start to start, so that
/// a token taken under another one never wins. 0: none was ever given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Term(pub u64);

impl Term {
    /// How many terms tokens can tell apart.
    const IN_TOKENS: u64 = 1 << 15;

    /// One of those that tokens can tell apart, from random bits.
    pub fn random(bits: u64) -> Term {
        Term(bits % (Term::IN_TOKENS - 1) + 1)
    }

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Term {
        let next = Term(self.0 + 1);
        // Tokens of a proxy without backups are the servers' own ids, with nothing above them.
        if next.in_token() == 0 { Term(next.0 + 1) } else { next }
    }

    /// What a token carries of it.
    pub fn in_token(self) -> u64 {
        self.0 % Term::IN_TOKENS
    }
}

/// Counts the changes of who holds what in a pair; starts at unix microseconds and grows from the
/// largest seen.
///
/// Several proxies over the same servers take turns, each turn a *generation*. Its epochs lie above
/// all dates and above all of earlier generations, however many of those are still written:
/// `2^52 + generation * 2^32` is the first. (2^52 microseconds are the year 2112.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u64);

/// One run of a proxy, by the random number in the session marker that it keeps on its servers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl SessionId {
    /// From its digits.
    pub fn parse(digits: &str) -> Option<SessionId> {
        u64::from_str_radix(digits, 16).ok().map(SessionId)
    }
}

/// A turn of a proxy over the servers; counts the active proxies of a fleet, from 1 on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after this.
    #[must_use]
    pub fn next(self) -> Generation {
        Generation(self.0 + 1)
    }

    /// The one that somebody wrote, if it can be counted up from: each has 2^32 epochs, of those
    /// that a record on a server may have.
    pub fn believed(number: u64) -> Option<Generation> {
        const MOST: u64 = 1 << 29;
        (number <= MOST).then_some(Generation(number))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Epoch {
    /// The first of a generation.
    pub fn first_of(generation: Generation) -> Epoch {
        Epoch(Epoch::OF_GENERATIONS + generation.0 * Epoch::IN_GENERATION)
    }

    const OF_GENERATIONS: u64 = 1 << 52;
    const IN_GENERATION: u64 = 1 << 32;

    /// The first that is later than this one and all that whoever wrote it may still write. Of one
    /// that began at a date that is what follows: another proxy begins at a later date.
    #[must_use]
    pub fn outranked(self) -> Epoch {
        match self.0.checked_sub(Epoch::OF_GENERATIONS) {
            None => Epoch(self.0 + 1),
            Some(into) => Epoch(self.0 - into % Epoch::IN_GENERATION + Epoch::IN_GENERATION),
        }
    }
}

/// Every key that begins so belongs to the proxy: invisible to clients, never copied.
pub const RESERVED_PREFIX: &[u8] = b"__resilver__:";

/// Whether a key is one of the proxy's own (a marker).
pub fn is_reserved(key: &[u8]) -> bool {
    key.starts_with(RESERVED_PREFIX)
}
