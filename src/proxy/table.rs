//! A worker's unfinished operations, by number.
//!
//! As a slab, but an operation is 250 bytes long, and what a slab's removal returns is moved
//! several times: a twentieth part of all that a `get` costs. Here one that is finished stays where
//! it is, without what it holds, until its place is needed.

use std::ops::{Index, IndexMut};

use bytes::Bytes;

use super::handles::OpId;
use super::op::Op;

/// Places that are kept whatever happens: a megabyte.
const KEPT: usize = 4096;

/// Places that are given back at a time: a millisecond's work.
const GIVEN_BACK: usize = 16 * KEPT;

/// See the module's words.
#[derive(Default, Debug)]
pub(super) struct OpTable {
    places: Vec<Place>,
    free: Vec<OpId>,
}

#[derive(Debug)]
struct Place {
    op: Op,
    taken: bool,
}

impl OpTable {
    /// Returns its number.
    #[inline(always)]
    pub(super) fn insert(&mut self, op: Op) -> OpId {
        if let Some(id) = self.free.pop() {
            self.places[id.index()] = Place { op, taken: true };
            return id;
        }
        self.places.push(Place { op, taken: true });
        OpId((self.places.len() - 1) as u32)
    }

    pub(super) fn remove(&mut self, id: OpId) {
        let place = &mut self.places[id.index()];
        debug_assert!(place.taken, "{id:?} is finished twice");
        place.taken = false;
        place.op.let_go();
        self.free.push(id);
    }

    /// Returns one that goes on elsewhere.
    pub(super) fn take(&mut self, id: OpId) -> Op {
        let gone = &self[id];
        let empty = Op::new(gone.origin, gone.kind, gone.pair, gone.hash, Bytes::new(), (0, 0));
        let op = std::mem::replace(&mut self[id], empty);
        self.remove(id);
        op
    }

    pub(super) fn get(&self, id: OpId) -> Option<&Op> {
        self.places.get(id.index()).filter(|place| place.taken).map(|place| &place.op)
    }

    pub(super) fn get_mut(&mut self, id: OpId) -> Option<&mut Op> {
        self.places.get_mut(id.index()).filter(|place| place.taken).map(|place| &mut place.op)
    }

    pub(super) fn contains(&self, id: OpId) -> bool {
        self.get(id).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether most of it is free, and that is much.
    #[inline(always)]
    pub(super) fn is_wide(&self) -> bool {
        self.places.len() >= 2 * KEPT && self.len() < self.places.len() / 4
    }

    /// Gives a part of its end back if it is wide, so that a burst does not keep its memory for
    /// ever.
    pub(super) fn give_back(&mut self) {
        if !self.is_wide() {
            return;
        }
        let all = self.places.len();
        let from = all.saturating_sub(GIVEN_BACK).max(KEPT);
        let taken = self.places[from..].iter().rposition(|place| place.taken);
        let end = taken.map_or(from, |at| from + at + 1);
        if all - end < KEPT {
            // Something stands near the end. What begins from now on is put in front.
            self.free.sort_unstable_by_key(|id| id.index() < all / 4);
            return;
        }
        self.places.truncate(end);
        self.places.shrink_to_fit();
        self.free.retain(|id| id.index() < end);
        self.free.shrink_to(end);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Op> {
        self.places.iter().filter(|place| place.taken).map(|place| &place.op)
    }
}

impl Index<OpId> for OpTable {
    type Output = Op;

    #[inline(always)]
    fn index(&self, id: OpId) -> &Op {
        let place = &self.places[id.index()];
        #[cfg(test)]
        assert!(place.taken, "{id:?} is finished");
        &place.op
    }
}

impl IndexMut<OpId> for OpTable {
    #[inline(always)]
    fn index_mut(&mut self, id: OpId) -> &mut Op {
        let place = &mut self.places[id.index()];
        #[cfg(test)]
        assert!(place.taken, "{id:?} is finished");
        &mut place.op
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ids::PairId;
    use crate::proxy::handles::Ticket;
    use crate::proxy::op::{Kind, Origin};

    fn op(ticket: u64) -> Op {
        Op::new(Origin::Control(Ticket(ticket)), Kind::Set, PairId(0), 0, Bytes::from(vec![b'k'; 100]), (0, 100))
    }

    #[test]
    fn a_finished_operation_holds_nothing_and_its_number_is_given_again() {
        let mut table = OpTable::default();
        let (one, other) = (table.insert(op(1)), table.insert(op(2)));
        assert_eq!((table.len(), table.iter().count()), (2, 2));
        let raw = table[one].raw.clone();
        assert!(!raw.is_unique());
        table.remove(one);
        assert!(raw.is_unique() && !table.contains(one) && table.get_mut(one).is_none());
        assert_eq!(table.iter().map(|op| op.origin).collect::<Vec<_>>(), [Origin::Control(Ticket(2))]);
        assert_eq!(table.insert(op(3)), one);
        table.remove(other);
        table.remove(one);
        assert!(table.is_empty() && table.iter().next().is_none());
    }

    #[test]
    fn nothing_is_given_back_of_what_is_in_use_by_a_half() {
        let mut table = OpTable::default();
        let all: Vec<OpId> = (0..4 * KEPT as u64).map(|i| table.insert(op(i))).collect();
        all[2 * KEPT..].iter().for_each(|&id| table.remove(id));
        assert!(!table.is_wide());
        all[KEPT - 1..2 * KEPT].iter().for_each(|&id| table.remove(id));
        assert!(table.is_wide());
    }

    #[test]
    fn what_a_burst_has_needed_is_given_back_and_no_number_is_given_twice() {
        let mut table = OpTable::default();
        let burst: Vec<OpId> = (0..4 * GIVEN_BACK as u64).map(|i| table.insert(op(i))).collect();
        table.give_back();
        assert_eq!(table.places.len(), burst.len(), "all are taken");
        let (first, last) = (burst[0], burst[burst.len() - 1]);
        burst.iter().filter(|id| ![first, last].contains(id)).for_each(|&id| table.remove(id));
        assert!(table.is_wide());
        table.give_back();
        assert_eq!(table.places.len(), burst.len(), "the last is taken");
        // The next ones are put in front, so that the end becomes free.
        let next: Vec<OpId> = (0..1000).map(|i| table.insert(op(i))).collect();
        assert!(next.iter().all(|id| id.index() < burst.len() / 4));
        table.remove(last);
        table.give_back();
        assert_eq!(table.places.len(), 3 * GIVEN_BACK, "not all of it at once");
        (0..3).for_each(|_| table.give_back());
        assert!(table.free.capacity() < burst.len() / 2);
        assert!(table.places.len() <= burst.len() / 4 && table.places.capacity() < burst.len() / 2);
        assert_eq!(table.len(), 1001);
        next.iter().for_each(|&id| table.remove(id));
        while table.is_wide() {
            table.give_back();
        }
        assert!((KEPT..2 * KEPT).contains(&table.places.len()) && table.len() == 1);
        let numbers: std::collections::BTreeSet<u32> = (0..2 * KEPT as u64).map(|i| table.insert(op(i)).0).collect();
        assert_eq!(numbers.len(), 2 * KEPT);
        assert!(!numbers.contains(&first.0) && table.len() == 2 * KEPT + 1 && table.iter().count() == table.len());
    }
}
