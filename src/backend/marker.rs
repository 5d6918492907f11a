//! The proxy's own small items on every node: what came back, and what it may be trusted with.
//!
//! Nothing in memcached says "this is the same memory as before": pids repeat in containers, start times survive a warm restart, a
//! flush leaves everything but the items. So each node carries markers under [reserved keys](crate::ids::RESERVED_PREFIX), one small
//! fact each (a 2 KB item was seen evicted within a second, a small one survives):
//!
//! - *incarnation*: a random number. Marker gone = memory gone.
//! - *ring*: fingerprint of the two rings, and which node this is.
//! - *session*: which proxy wrote last, and whether it stopped cleanly.
//! - *pair N*: epoch, what is so since then (in sync, one place alone, one place being filled), leadership term.
//!
//! Every change is conditional (`cas`, or `add` where there was none): a blind `set` would certify a node that has just restarted.

use std::fmt;

use crate::ids::{Epoch, Incarnation, PairId, Place, Term};

/// The key of the incarnation marker.
pub const INCARNATION_KEY: &str = "__resilver__:incarnation";
/// The key of the ring marker.
pub const RING_KEY: &str = "__resilver__:ring";
/// The key of the session marker.
pub const SESSION_KEY: &str = "__resilver__:session";

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
}

/// A pair's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Since when.
    pub epoch: Epoch,
    /// What.
    pub fact: Fact,
    /// The leadership term.
    pub term: Term,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, place) = match self.fact {
            Fact::Sync => ("sync", Place::Primary),
            Fact::Alone(place) => ("alone", place),
            Fact::Filling(place) => ("filling", place),
        };
        write!(f, "{} {word} {place} {}", self.epoch.0, self.term.0)
    }
}

impl Record {
    /// Reads a record; `None` if these bytes are none.
    pub fn parse(bytes: &[u8]) -> Option<Record> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut words = text.split(' ');
        let epoch = Epoch(words.next()?.parse().ok()?);
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
            _ => return None,
        };
        let term = Term(words.next()?.parse().ok()?);
        words.next().is_none().then_some(Record { epoch, fact, term })
    }

    /// Whether a node that carries this record, and stands at `place`, holds everything of the pair as of the record's epoch.
    pub fn full_at(&self, place: Place) -> bool {
        match self.fact {
            Fact::Sync => true,
            Fact::Alone(p) => p == place,
            Fact::Filling(p) => p != place,
        }
    }
}

/// Reads an incarnation marker.
pub fn parse_incarnation(bytes: &[u8]) -> Option<Incarnation> {
    (bytes.len() == 16)
        .then(|| std::str::from_utf8(bytes).ok().and_then(|t| u64::from_str_radix(t, 16).ok()))?
        .map(Incarnation)
}

/// The session marker: which proxy wrote last, and whether it stopped cleanly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// Random, one for each run of a proxy.
    pub id: u64,
    /// Not stopped cleanly (yet).
    pub open: bool,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x} {}", self.id, if self.open { "open" } else { "closed" })
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
        Some(Session { id: u64::from_str_radix(id, 16).ok()?, open })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_as_written_and_nothing_else_reads() {
        for fact in [Fact::Sync, Fact::Alone(Place::Backup), Fact::Filling(Place::Primary)] {
            let record = Record { epoch: Epoch(1_795_361_500_123_456), fact, term: Term(65535) };
            assert_eq!(Record::parse(record.to_string().as_bytes()), Some(record));
        }
        for bad in [
            "",
            "1",
            "1 sync",
            "1 sync primary",
            "1 sync primary 65536",
            "x sync primary 1",
            "1 sync primary 1 2",
            "1 what primary 1",
        ] {
            assert_eq!(Record::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Record::parse(&[0xff, 0xfe]), None);
        let session = Session { id: 7, open: true };
        assert_eq!(Session::parse(session.to_string().as_bytes()), Some(session));
        assert_eq!(Session::parse(b"7 ajar"), None);
        assert_eq!(parse_incarnation(Incarnation(255).to_string().as_bytes()), Some(Incarnation(255)));
        assert_eq!(parse_incarnation(b"ff"), None);
    }

    #[test]
    fn the_data_plane_reads_the_same_marker() {
        assert_eq!(crate::proxy::MARKER_READ, format!("mg {INCARNATION_KEY} v\r\n").as_bytes());
    }
}
