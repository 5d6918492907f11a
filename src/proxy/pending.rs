//! The keys of one client's unanswered requests: its commands on one key keep their order.

use std::collections::{HashMap, VecDeque};

use super::handles::SlotNumber;

/// This many keys are walked; of more there is a table. A pipeline of 16 costs no more than it did
/// without.
const WALKED_MAX: usize = 32;

/// Tables that are kept for the next client that needs one: some 50 KiB each.
const SPARE_TABLES: usize = 16;

/// A key of an unanswered request.
#[derive(Clone, Copy, Debug)]
struct PendingKey {
    slot: SlotNumber,
    hash: u32,
    write: bool,
}

/// How many reads and writes of one hash are unanswered. The hasher is keyed at random: hashes of
/// keys are not, and a client may choose its keys so that all of them share a place in a table.
type Table = HashMap<u32, [u32; 2]>;

/// See the module's words. In the order in which the requests came; the oldest leave first.
#[derive(Debug, Default)]
pub(super) struct PendingKeys {
    keys: VecDeque<PendingKey>,
    writes: usize,
    /// Of all `keys`, from the moment when many of them were asked about until none is left.
    table: Option<Box<Table>>,
}

/// Tables given back.
#[derive(Debug, Default)]
pub(super) struct SpareTables {
    #[expect(clippy::vec_box, reason = "the boxes go to the clients and come back")]
    tables: Vec<Box<Table>>,
}

impl PendingKeys {
    /// Adds a key of the last request.
    #[inline(always)]
    pub(super) fn push(&mut self, slot: SlotNumber, hash: u32, write: bool) {
        self.keys.push_back(PendingKey { slot, hash, write });
        self.writes += usize::from(write);
        if let Some(table) = &mut self.table {
            table.entry(hash).or_default()[usize::from(write)] += 1;
        }
    }

    /// Takes the oldest key off, if it is one of this request.
    #[inline(always)]
    pub(super) fn pop(&mut self, slot: SlotNumber, spare: &mut SpareTables) -> bool {
        let Some(key) = self.keys.front().filter(|key| key.slot == slot) else { return false };
        let (hash, write) = (key.hash, usize::from(key.write));
        self.keys.pop_front();
        self.writes -= write;
        if self.table.is_some() {
            self.discount(hash, write, spare);
        }
        true
    }

    fn discount(&mut self, hash: u32, write: usize, spare: &mut SpareTables) {
        let Some(table) = &mut self.table else { return };
        if let Some(counts) = table.get_mut(&hash) {
            counts[write] -= 1;
            if *counts == [0, 0] {
                table.remove(&hash);
            }
        }
        if self.keys.is_empty() {
            spare.give(self.table.take());
        }
    }

    /// Whether a command of this kind may have to wait for one of the other kind.
    #[inline(always)]
    pub(super) fn may_conflict(&self, write: bool) -> bool {
        if write { self.writes < self.keys.len() } else { self.writes > 0 }
    }

    /// Whether a command on a key must wait for an unanswered one: a read behind a write (nodes are
    /// reached over several connections, so it could overtake), a write behind a read. Two writes
    /// of one key keep their order at the key's owner.
    ///
    /// What it costs does not grow with the keys: a pipeline that walked them for each of its own
    /// kept all other clients of its worker waiting for 7 s with 100,000 keys, and for four times
    /// as long with twice as many.
    pub(super) fn conflicts(&mut self, hash: u32, write: bool, spare: &mut SpareTables) -> bool {
        if !self.may_conflict(write) {
            return false;
        }
        if self.table.is_none() && self.keys.len() > WALKED_MAX {
            let mut table = spare.tables.pop().unwrap_or_default();
            for key in &self.keys {
                table.entry(key.hash).or_default()[usize::from(key.write)] += 1;
            }
            self.table = Some(table);
        }
        self.found(hash, write)
    }

    /// The same, for a key that was asked about since the last one was added.
    pub(super) fn still_conflicts(&self, hash: u32, write: bool) -> bool {
        self.may_conflict(write) && self.found(hash, write)
    }

    fn found(&self, hash: u32, write: bool) -> bool {
        match &self.table {
            Some(table) => table.get(&hash).is_some_and(|counts| counts[usize::from(!write)] > 0),
            None => self.keys.iter().any(|k| k.hash == hash && k.write != write),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.keys.capacity()
    }
}

impl SpareTables {
    pub(super) fn len(&self) -> usize {
        self.tables.len()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.tables.truncate(len);
    }

    fn give(&mut self, table: Option<Box<Table>>) {
        if let Some(table) = table
            && self.tables.len() < SPARE_TABLES
        {
            debug_assert!(table.is_empty());
            self.tables.push(table);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_as_a_walk_over_all_keys_would() {
        let (mut keys, mut spare) = (PendingKeys::default(), SpareTables::default());
        let mut model: VecDeque<(SlotNumber, u32, bool)> = VecDeque::new();
        let mut state = 16u64;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let (mut first, mut slot, mut tables) = (SlotNumber(0), SlotNumber(0), 0);
        for step in 0..200_000 {
            // By turns mostly more, mostly fewer, down to none.
            if below(100) < if step % 2_000 < 1_000 { 70 } else { 20 } {
                slot = slot.after(u64::from(below(3) == 0));
                let (hash, write) = (below(200) as u32, below(2) == 0);
                keys.push(slot, hash, write);
                model.push_back((slot, hash, write));
            } else if first <= slot {
                while keys.pop(first, &mut spare) {
                    assert_eq!(model.pop_front().map(|key| key.0), Some(first));
                }
                assert!(model.front().is_none_or(|key| key.0 > first));
                first = first.next();
                slot = slot.max(first);
            }
            let (hash, write) = (below(200) as u32, below(2) == 0);
            let walked = model.iter().any(|key| key.1 == hash && key.2 != write);
            assert_eq!(keys.conflicts(hash, write, &mut spare), walked, "step {step}");
            assert_eq!(keys.still_conflicts(hash, write), walked);
            tables += u32::from(keys.table.is_some());
            assert_eq!(keys.is_empty(), model.is_empty());
        }
        assert!(
            tables > 5_000 && spare.tables.len() == 1,
            "one table, again and again: {tables} {}",
            spare.tables.len()
        );
    }
}
