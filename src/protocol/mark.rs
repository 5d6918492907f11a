//! The mark of a fleet of proxies on each of its servers: of which of them it is the turn.

use std::fmt;
use std::time::Duration;

use crate::ids::Generation;
use crate::later;
use crate::lease;

use super::number::parse_u64;

/// What stands on a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FleetMark {
    /// The fleet's name, without blanks.
    pub name: String,
    pub generation: Generation,
    /// Where other proxies reach the active one.
    pub address: String,
    /// Its lease; nothing where it has not told that.
    pub lease: Duration,
}

impl fmt::Display for FleetMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.generation, self.name, self.address)?;
        if !self.lease.is_zero() {
            write!(f, " {}{}", self.lease.as_micros(), later::word())?;
        }
        Ok(())
    }
}

impl FleetMark {
    /// Reads a fleet marker.
    pub fn parse(bytes: &[u8]) -> Option<FleetMark> {
        let mut words = std::str::from_utf8(bytes).ok()?.split(' ');
        let number = |word: &str| parse_u64(word.as_bytes());
        let generation = Generation::believed(number(words.next()?)?)?;
        let (name, address) = (words.next()?.to_owned(), words.next()?.to_owned());
        let lease = Duration::from_micros(
            words.next().and_then(number).filter(|&us| us <= lease::MOST_BELIEVED_US).unwrap_or_default(),
        );
        Some(FleetMark { name, generation, address, lease })
    }

    /// Whether the proxy with this mark is over where that one stands: a later turn's, or another
    /// fleet's. (The same generation at another address: see `Authority`, which judges by the same.
    /// Another lease is no other turn: its microseconds are cut off in a mark.)
    pub fn is_ended_by(&self, found: &FleetMark) -> bool {
        let same_turn = found.generation == self.generation && found.address == self.address;
        found.name != self.name || found.generation >= self.generation && !same_turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(generation: u64, name: &str, address: &str) -> FleetMark {
        let (name, address) = (name.to_owned(), address.to_owned());
        FleetMark { name, generation: Generation(generation), address, lease: Duration::ZERO }
    }

    #[test]
    fn marks_read_back_as_written_and_nothing_else_reads() {
        for lease in [Duration::ZERO, Duration::from_millis(300)] {
            let mark = FleetMark { lease, ..mark(17, "prod", "10.0.0.5:12000") };
            assert_eq!(FleetMark::parse(mark.to_string().as_bytes()), Some(mark));
        }
        for bad in ["long", "3600000001"] {
            let mark = FleetMark::parse(format!("17 prod 10.0.0.5:12000 {bad}").as_bytes());
            assert_eq!(mark.map(|mark| mark.lease), Some(Duration::ZERO), "{bad}");
        }
        for bad in ["", "x prod a", "+7 prod a", "17", "17 prod", "99999999999 prod a"] {
            assert_eq!(FleetMark::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_later_turn_or_another_fleet_ends_a_proxy_and_an_earlier_one_does_not() {
        let own = mark(7, "a", "here:1");
        for (found, ends) in [
            (mark(7, "a", "here:1"), false),
            (mark(6, "a", "there:1"), false),
            (mark(8, "a", "there:1"), true),
            (mark(8, "a", "here:1"), true),
            (mark(7, "a", "there:1"), true),
            (mark(1, "b", "there:1"), true),
        ] {
            assert_eq!(own.is_ended_by(&found), ends, "{found}");
            let other_lease = FleetMark { lease: Duration::from_secs(3), ..found };
            assert_eq!(own.is_ended_by(&other_lease), ends, "{other_lease}");
        }
    }
}
