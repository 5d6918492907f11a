//! The answer to a get of several keys, until all of it is there.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::protocol::outcome::Outcome;

/// The values of a get of several keys, in request order; then `END`.
#[derive(Debug, Default)]
pub(super) struct Many {
    /// Of the keys begun and not moved to the socket's queue yet.
    pub(super) parts: Parts,
    /// Number of the first of them.
    pub(super) first: u32,
    /// Values leave as they come: there are too many, or too large ones, to be held until the last
    /// one. Then an error stands behind the values that left before it, not in the place of all.
    pub(super) streamed: bool,
    /// What is said instead: an error of one key's node.
    pub(super) failed: Option<Outcome>,
}

/// The keys of a get, in order.
pub(super) type Parts = VecDeque<Part>;

#[derive(Debug)]
pub(super) enum Part {
    Waiting,
    Miss,
    Hit(Bytes),
}

impl Many {
    /// What it holds does not leave. Returns its bytes.
    pub(super) fn forget_values(&mut self) -> usize {
        let mut bytes = 0;
        for part in &mut self.parts {
            if let Part::Hit(value) = part {
                bytes += value.len();
                *part = Part::Miss;
            }
        }
        bytes
    }
}
