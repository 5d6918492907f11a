//! Who is let in here: as many clients as `-n` says, a few more as operators, and none of them for
//! longer than it has something to say.

use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::dialect::Dialect;
use crate::protocol::out::OutQueue;
use crate::protocol::outcome::Outcome;

use super::requests::{Owed, is_for_operators};
use super::{Over, Relay};

#[cfg(test)]
#[path = "admitted_tests.rs"]
mod tests;

/// Connections beyond `--max-clients` on which operators' commands alone are taken, as at an active
/// proxy.
const OPERATORS: usize = 16;

/// How long a client there may be silent: an operator's program asks at once.
const OPERATOR_SILENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    Client,
    /// All places are taken: nothing but operators' commands is taken here.
    Operator,
    Refused,
}

impl Admission {
    /// Of the last one of so many, where so many clients may come.
    pub(super) fn of(connected: usize, most: usize) -> Admission {
        match connected {
            _ if connected <= most => Admission::Client,
            _ if connected <= most.saturating_add(OPERATORS) => Admission::Operator,
            _ => Admission::Refused,
        }
    }
}

impl Relay {
    /// Something has come: whether it is taken from this client.
    pub(super) fn admit(&mut self) -> Result<(), Over> {
        match self.admission {
            Admission::Operator if !is_for_operators(&self.input) => self.turn_away(),
            _ => Ok(()),
        }
    }

    fn turn_away(&mut self) -> Result<(), Over> {
        let (style, mut out) = (self.dialect.asked(&self.input), OutQueue::default());
        style.write(Outcome::Own(style.too_many()), &mut out);
        // Short words are in one.
        self.to_client.extend_from_slice(out.one_piece().unwrap_or_default());
        Err(Over::TooMany)
    }

    /// When its silence ends the client, unless it says something, or waits for something.
    pub(super) fn silent_at(&self) -> Option<Instant> {
        if self.is_mute_operator() {
            return Some(self.rested + OPERATOR_SILENCE);
        }
        let waits = self.opaque
            || self.waits.is_some()
            || self.reloading.is_some()
            || !self.to_client.is_empty()
            || !self.to_link.is_empty()
            || self.owed.iter().any(Owed::is_awaited);
        self.shared.idle_timeout.filter(|_| !waits).map(|timeout| self.rested + timeout)
    }

    /// In a place for operators, and it has said nothing yet.
    fn is_mute_operator(&self) -> bool {
        self.admission == Admission::Operator && self.dialect == Dialect::Unknown
    }

    /// Ends a client that has been silent for too long.
    pub(super) fn end_silence(&mut self) -> Result<(), Over> {
        match self.silent_at() {
            Some(at) if Instant::now() < at => Ok(()),
            None => Ok(()),
            Some(_) if self.is_mute_operator() => self.turn_away(),
            Some(_) => Err(Over::Idle),
        }
    }
}
