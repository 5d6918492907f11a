//! The one record of a fleet: which proxy is active, and what the next active one must know.
//!
//! One line of text, words apart by one blank:
//!
//! ```text
//! generation holder           address        heartbeat state   fingerprint      lost        term
//! 17         9f31c0de77aa0b52 10.0.0.5:12000 88213     serving 0123456789abcdef p0-2@9,b5@7 40012
//! ```
//!
//! Behind these stands the holder's lease in microseconds, as `lease_us=3000000`, and `awaits` if
//! the holder does not know that who was active before it is gone. Whatever else stands there, of a
//! later release, this one reads over.

use std::collections::BTreeMap;
use std::fmt;

use crate::ids::{Epoch, Generation, PairId, Place, Term};
use crate::later;
use crate::lease;
use crate::protocol::number::parse_u64;

/// A run of a proxy: random, another one each time it starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Holder(pub u64);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Tenure {
    /// The holder acts, as long as its lease lasts.
    Serving,
    /// The holder has stopped, and does nothing any more.
    Free,
}

/// Copies that are lost, each since an epoch of its pair: the next active proxy lets none of them
/// lead. Not servers: a server that is filled leads its pairs again one after the other, and each
/// of them must leave the list when its lead moves.
///
/// A record on a server of a *later* epoch of the pair knows better, and the list counts no more:
/// it may be that of a register that was restored, or was left for a while (`--leave-fleet`).
/// (Seen: a copy that had been refilled since, and led alone, was purged.)
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Lost(BTreeMap<(Place, PairId), Epoch>);

impl Lost {
    /// The copies of a pair that are lost from this epoch on: one, none, or both where a flush has
    /// ended what they held while they were away.
    pub fn set(&mut self, pair: PairId, epoch: Epoch, lost: &[Place]) {
        for place in [Place::Primary, Place::Backup] {
            if lost.contains(&place) {
                self.0.insert((place, pair), epoch);
            } else {
                self.0.remove(&(place, pair));
            }
        }
    }

    #[cfg(test)]
    pub fn contains(&self, pair: PairId, place: Place) -> bool {
        self.0.contains_key(&(place, pair))
    }

    pub fn iter(&self) -> impl Iterator<Item = (PairId, Place, Epoch)> {
        self.0.iter().map(|(&(place, pair), &epoch)| (pair, place, epoch))
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads what is [displayed](fmt::Display).
    fn parse(text: &str) -> Option<Lost> {
        let mut lost = Lost::default();
        if text == "-" {
            return Some(lost);
        }
        for run in text.split(',') {
            let place = match run.as_bytes().first()? {
                b'p' => Place::Primary,
                b'b' => Place::Backup,
                _ => return None,
            };
            let (pairs, epoch) = run[1..].split_once('@')?;
            let (first, last) = pairs.split_once('-').unwrap_or((pairs, pairs));
            let (first, last, epoch) = (number(first)?, number(last)?, Epoch(number(epoch)?));
            if first > last || last - first > MAX_PAIRS || last > u64::from(u32::MAX) {
                return None;
            }
            lost.0.extend((first..=last).map(|pair| ((place, PairId(pair as u32)), epoch)));
        }
        Some(lost)
    }
}

/// More than any two rings have.
const MAX_PAIRS: u64 = 128 * 128;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut copies = self.iter().peekable();
        let mut between = "";
        while let Some((PairId(first), place, epoch)) = copies.next() {
            let mut last = first;
            while copies.next_if_eq(&(PairId(last + 1), place, epoch)).is_some() {
                last += 1;
            }
            let letter = if place == Place::Primary { 'p' } else { 'b' };
            write!(f, "{between}{letter}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            write!(f, "@{}", epoch.0)?;
            between = ",";
        }
        f.write_str(if between.is_empty() { "-" } else { "" })
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// Counts the holders.
    pub generation: Generation,
    pub holder: Holder,
    /// Where other proxies reach it.
    pub address: String,
    /// Another one with each swap that its holder asks for.
    pub heartbeat: u64,
    pub tenure: Tenure,
    /// The fingerprint of the list of servers.
    pub fingerprint: u64,
    pub lost: Lost,
    /// The highest leadership term that was given.
    pub term: Term,
    /// The active proxy before the holder is not known to be gone. That stays so for the next one:
    /// that the holder has stopped, or is dead, is no proof about the one before it.
    pub awaits: bool,
    /// The holder's lease, in microseconds; 0: the record does not name it.
    pub lease: u64,
}

/// How that is written.
const AWAITS: &str = "awaits";
const LEASE: &str = "lease_us=";

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { generation, holder, address, heartbeat, tenure, fingerprint, lost, term, awaits, lease } = self;
        let state = if *tenure == Tenure::Serving { "serving" } else { "free" };
        write!(f, "{} {holder} {address} {heartbeat} {state} {fingerprint:016x} {lost} {}", generation.0, term.0)?;
        if *lease > 0 {
            write!(f, " {LEASE}{lease}")?;
        }
        if *awaits {
            write!(f, " {AWAITS}")?;
        }
        f.write_str(later::word())
    }
}

impl Record {
    /// Reads a record; `None` if this is none.
    pub fn parse(text: &str) -> Option<Record> {
        let mut words = text.split(' ');
        let mut next = || words.next().filter(|word| !word.is_empty());
        let mut record = Record {
            generation: Generation::believed(number(next()?)?)?,
            holder: Holder(u64::from_str_radix(next()?, 16).ok()?),
            address: next()?.to_owned(),
            heartbeat: number(next()?)?,
            tenure: match next()? {
                "serving" => Tenure::Serving,
                "free" => Tenure::Free,
                _ => return None,
            },
            fingerprint: u64::from_str_radix(next()?, 16).ok()?,
            lost: Lost::parse(next()?)?,
            term: Term(number(next()?)?),
            awaits: false,
            lease: 0,
        };
        for word in words {
            record.awaits |= word == AWAITS;
            if let Some(lease) = word.strip_prefix(LEASE) {
                record.lease = number(lease).filter(|&us| us <= lease::MOST_BELIEVED_US)?;
            }
        }
        Some(record)
    }
}

/// None is believed that cannot be counted up from.
const MAX_NUMBER: u64 = 1 << 62;

fn number(word: &str) -> Option<u64> {
    parse_u64(word.as_bytes()).filter(|&n| n <= MAX_NUMBER)
}

#[cfg(test)]
impl Record {
    /// Of a proxy that serves. Tests put what they mean in the place of the rest.
    pub fn of(holder: Holder) -> Record {
        Record {
            generation: Generation(1),
            holder,
            address: "127.0.0.1:1".to_owned(),
            heartbeat: 1,
            tenure: Tenure::Serving,
            fingerprint: 1,
            lost: Lost::default(),
            term: Term(1),
            awaits: false,
            lease: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lost: Lost) -> Record {
        Record {
            generation: Generation(17),
            holder: Holder(0x9f31_c0de_77aa_0b52),
            address: "[fd00::5]:12000".to_owned(),
            heartbeat: 88_213,
            tenure: Tenure::Serving,
            fingerprint: 0x0123_4567_89ab_cdef,
            lost,
            term: Term(40_012),
            awaits: false,
            lease: 0,
        }
    }

    fn lost(copies: &[(Place, u32)]) -> Lost {
        Lost(copies.iter().map(|&(place, pair)| ((place, PairId(pair)), Epoch(9))).collect())
    }

    #[test]
    fn records_read_back_as_written_and_nothing_else_reads() {
        use Place::{Backup, Primary};
        let sets = [
            (lost(&[]), "-"),
            (lost(&[(Primary, 0), (Primary, 1), (Primary, 2), (Backup, 5)]), "p0-2@9,b5@9"),
            (lost(&[(Backup, 1), (Backup, 3), (Backup, 4)]), "b1@9,b3-4@9"),
        ];
        for (set, shown) in sets {
            for (tenure, awaits, lease) in
                [(Tenure::Serving, false, 0), (Tenure::Free, true, 0), (Tenure::Serving, true, 300_000)]
            {
                let record = Record { tenure, awaits, lease, ..record(set.clone()) };
                let text = record.to_string();
                assert!(text.contains(&format!(" {shown} ")), "{text}");
                assert_eq!(Record::parse(&text), Some(record.clone()));
                assert_eq!(Record::parse(&format!("{text} of a later release")), Some(record));
            }
        }
        let text = record(lost(&[])).to_string();
        let words: Vec<&str> = text.split(' ').collect();
        for (at, bad) in [
            (0, "x"),
            (0, "-1"),
            (0, "+1"),
            (0, "99999999999"),
            (1, "holder"),
            (2, ""),
            (3, ""),
            (4, "gone"),
            (5, "list"),
            (6, "p"),
            (6, "p2-1@9"),
            (6, "p0-99999@9"),
            (6, "q1@9"),
            (6, "p1@9,"),
            (6, "p1"),
            (6, "p1@"),
            (6, "p1@x"),
            (6, ""),
            (7, "1.5"),
            (7, "9223372036854775807"),
            (3, "9223372036854775807"),
        ] {
            let mut words = words.clone();
            words[at] = bad;
            assert_eq!(Record::parse(&words.join(" ")), None, "word {at}: {bad:?}");
        }
        assert_eq!(Record::parse(&words[..7].join(" ")), None);
        for bad in ["long", "-1", "3600000001"] {
            assert_eq!(Record::parse(&format!("{text} lease_us={bad}")), None, "{bad}");
        }
        assert_eq!(Record::parse(""), None);
    }

    #[test]
    fn copies_that_were_lost_at_one_epoch_share_a_run() {
        let mut lost = Lost::default();
        for (pair, epoch) in [(0, 7), (1, 7), (2, 8), (4, 8)] {
            lost.set(PairId(pair), Epoch(epoch), &[Place::Primary]);
        }
        assert_eq!(lost.to_string(), "p0-1@7,p2@8,p4@8");
        assert_eq!(Lost::parse("p0-1@7,p2@8,p4@8"), Some(lost));
    }

    #[test]
    fn a_pair_has_lost_one_copy_or_none_or_both() {
        let mut lost = Lost::default();
        lost.set(PairId(3), Epoch(1), &[Place::Primary, Place::Backup]);
        assert!(lost.contains(PairId(3), Place::Backup) && lost.contains(PairId(3), Place::Primary));
        lost.set(PairId(3), Epoch(2), &[Place::Primary]);
        lost.set(PairId(3), Epoch(3), &[Place::Backup]);
        assert!(lost.contains(PairId(3), Place::Backup) && !lost.contains(PairId(3), Place::Primary));
        assert_eq!(lost.iter().collect::<Vec<_>>(), [(PairId(3), Place::Backup, Epoch(3))]);
        lost.set(PairId(3), Epoch(4), &[]);
        assert!(lost.is_empty());
    }
}
