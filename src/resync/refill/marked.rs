//! What the source alone holds: items that are stale there, or that a client was told to recompute.
//!
//! Where the target comes to lead they are misses, and must stay so under every later leader: what
//! is left of them on the source is deleted before. Where the source goes on leading it is the one
//! that lacks nothing now, and has what the target has not if it comes back from its next absence:
//! these keys count as missed by the node that is away.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::super::entry::{End, Entry};
use super::super::lane::{ENTRY_BYTES, Lane};
use super::super::spool::SlotId;
use super::Refill;
use crate::protocol::key::wire_form;
use crate::rules::{Rule, holds};

/// This many keys of a pair are remembered at most. (An item more may be seen again, as what it
/// was, when its node leads again.)
const MARKED_KEYS: usize = 1 << 16;

/// Of one pair.
#[derive(Debug, Default)]
pub(super) struct Marked {
    /// Keys whose items were marked when they were last looked at.
    keys: BTreeSet<Bytes>,
    /// Those whose items are to be deleted.
    to_withdraw: BTreeSet<Bytes>,
}

impl Marked {
    /// What came of a key.
    pub(super) fn note(&mut self, entry: &Entry, end: End) {
        match end {
            End::Skipped if entry.marked && self.keys.len() < MARKED_KEYS => {
                self.keys.insert(entry.key.clone());
            }
            End::Skipped if entry.marked => {}
            _ => {
                self.keys.remove(&entry.key);
            }
        }
    }

    /// Whether nothing is left to be deleted.
    pub(super) fn is_withdrawn(&self) -> bool {
        self.to_withdraw.is_empty()
    }

    /// The target is about to lead.
    pub(super) fn withdraw(&mut self) {
        if holds(Rule::MarkedStaysGone) {
            self.to_withdraw.append(&mut self.keys);
        }
    }
}

impl Refill {
    /// Puts up to `limit` keys on the lane whose items are to be deleted; returns how many.
    pub(super) fn admit_withdrawals(&mut self, lane: &mut Lane, slot: SlotId, limit: usize) -> usize {
        let mut admitted = 0;
        while admitted < limit
            && let Some(key) = self.slots[slot.index()].marked.to_withdraw.pop_first()
        {
            let Some(binary) = wire_form(&key) else { continue };
            self.slots[slot.index()].in_flight += 1;
            lane.admit(Entry::new(key, binary, slot, ENTRY_BYTES, true).withdrawn());
            admitted += 1;
        }
        admitted
    }

    /// The pair is mirrored.
    pub(super) fn is_mirrored(&mut self, slot: SlotId) {
        let slot = &mut self.slots[slot.index()];
        slot.done = true;
        if let Some(missed) = self.ctx.missed.get(&slot.pair)
            && !self.leads
            && holds(Rule::MarkedStaysGone)
        {
            slot.marked.keys.iter().for_each(|key| missed.insert(key));
        }
    }
}
