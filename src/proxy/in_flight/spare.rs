//! Room that clients gave back.

use crate::proxy::client::MAX_READS;
use crate::proxy::memory::Share;
use crate::proxy::pending::SpareTables;

use super::InFlight;
use super::many::Parts;

/// Room that clients gave back, for the next ones.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Spare {
    #[expect(clippy::vec_box, reason = "the boxes go to the clients and come back")]
    in_flight: Vec<Box<InFlight>>,
    /// Of gets of several keys.
    pub(super) parts: Vec<Parts>,
    pub(super) tables: SpareTables,
}

/// Answered gets of several keys whose room is kept: at most 16 KiB each.
const SPARE_PARTS: usize = 64;

/// Clients' room that is kept: some 150 KiB each at most, 1 KiB by the rule.
const SPARE_IN_FLIGHT: usize = 256;

/// Of each of these, as many are kept also where nobody needs them.
const SPARE_KEPT: usize = 8;

/// What a longer pipeline, or a get of more keys, has taken is not kept: one line of 1 MiB may name
/// 500,000.
const SPARE_LEN: usize = 2 * MAX_READS as usize;

impl Spare {
    /// For a client that begins to ask.
    #[inline(always)]
    pub(in crate::proxy) fn in_flight(&mut self) -> Box<InFlight> {
        self.in_flight.pop().unwrap_or_default()
    }

    pub(in crate::proxy) fn give(&mut self, mut over: Box<InFlight>) {
        debug_assert!(over.keys.is_empty() && over.reads == 0 && over.bytes == 0 && over.held == 0);
        debug_assert!(over.receiving.bytes() == 0 && !over.refused);
        debug_assert!(over.lines.is_empty() && over.line.is_none() && !over.spoilt);
        if over.share.bytes() > 0 {
            over.share = Share::default();
        }
        let longest = over.slots.capacity().max(over.keys.capacity());
        if self.in_flight.len() < SPARE_IN_FLIGHT && longest <= SPARE_LEN {
            self.in_flight.push(over);
        }
    }

    /// Whether there is more than others need, for [`Spare::give_back`].
    pub(in crate::proxy) fn is_much(&self) -> bool {
        self.in_flight.len().max(self.parts.len()).max(self.tables.len()) > SPARE_KEPT
    }

    /// What nobody uses now goes back, up to a few. Whoever needs it soon makes it anew: where this
    /// is done once a second, that is nothing to what is asked meanwhile.
    pub(in crate::proxy) fn give_back(&mut self) {
        self.in_flight.truncate(SPARE_KEPT);
        self.parts.truncate(SPARE_KEPT);
        self.tables.truncate(SPARE_KEPT);
    }

    /// What is kept: of clients, of gets, and of tables.
    #[cfg(test)]
    pub(in crate::proxy) fn kept(&self) -> (usize, usize, usize) {
        (self.in_flight.len(), self.parts.len(), self.tables.len())
    }

    pub(super) fn give_parts(&mut self, parts: Parts) {
        if self.parts.len() < SPARE_PARTS && parts.capacity() <= SPARE_LEN {
            self.parts.push(parts);
        }
    }
}
