//! What all proxies of a fleet agree on: one record, changed by compare-and-swap alone.
//!
//! A swap whose answer did not come may have been made, may be made later, or never. So a swap of
//! unknown outcome counts as not made until a read shows it. A read shows who is active, but
//! extends no lease: it leaves no trace that the others could see.
//!
//! Revisions alone prove nothing: an etcd restored from a backup assigns the same revisions again
//! to other values. So a swap compares both the record and its revision, and every attempted swap
//! writes a unique record, by its holder and a heartbeat that grows with each attempt.

use std::time::Instant;

use super::record::{Holder, Record};

/// What a register held at some moment after it was asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Seen {
    /// Changes with every change of the value; may repeat after a restore. 0: there is no value.
    pub revision: u64,
    pub value: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Value {
    /// No proxy was ever active, or the register has lost its memory.
    Absent,
    Record(Record),
    /// Something that no proxy of this release has written. It is left alone.
    Unreadable,
}

impl Value {
    /// The record, if that is what it is.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Value::Record(record) => Some(record),
            Value::Absent | Value::Unreadable => None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Swapped {
    /// It was made; the record stands there with this revision.
    Done(u64),
    /// Something else stood there: it was not made, and never will be.
    Refused,
    /// The answer did not come: it may have been made, or be made later.
    Unknown,
}

/// A register that could not be asked, or has not answered, in words for the log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unread(pub String);

/// A coordination service, or a file, as far as a fleet needs it. Blocks, until the deadline at
/// most.
pub trait Register: Send {
    /// The value as of some moment after the call, and not before (etcd calls that linearizable).
    fn read(&mut self, deadline: Instant) -> Result<Seen, Unread>;

    /// Puts a record in the place of what was seen, if that still stands there. An error says why
    /// the outcome is [unknown](Swapped::Unknown).
    fn swap(&mut self, seen: &Seen, new: &Record, deadline: Instant) -> Result<Swapped, Unread>;

    /// Whether this process could take the record from that holder: what others see of it beside
    /// the record is there, or was made again.
    fn is_fit(&mut self, _: Holder) -> Result<(), Unread> {
        Ok(())
    }

    /// Whether a swap could be made now, as far as that can be tried.
    fn can_swap(&mut self, _: Instant) -> Result<(), Unread> {
        Ok(())
    }

    /// Whether this holder's process is known to be no more.
    fn is_dead(&mut self, _: Holder) -> bool {
        false
    }

    /// A holder has said nothing for longer than its lease: its process is ended, where that can be
    /// done. Returns what was done, for the log.
    fn end(&mut self, _: Holder) -> Option<String> {
        None
    }
}
