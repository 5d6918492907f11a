//! Operations that wait for a connection: to be ready, or to have room for them.

use std::collections::VecDeque;

use crate::stretch::Stretch;

use super::handles::OpId;

/// Places to which keys that wait are counted, by their hash.
const WAIT_PLACES: usize = 256;

/// One operation that waits.
#[derive(Clone, Copy, Debug)]
struct Waits {
    id: OpId,
    /// Its key's.
    hash: u32,
    /// Since when, microseconds of the worker's clock.
    since_us: u64,
}

/// See the module's words.
#[derive(Default, Debug)]
pub struct Waiting {
    queue: VecDeque<Waits>,
    /// How many wait in each place. Empty until there are any.
    places: Vec<u16>,
}

impl Waiting {
    /// Whether no operation waits.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn push(&mut self, id: OpId, hash: u32, since_us: u64) {
        self.places.resize(WAIT_PLACES, 0);
        let place = &mut self.places[hash as usize % WAIT_PLACES];
        *place = place.saturating_add(1);
        self.queue.push_back(Waits { id, hash, since_us });
    }

    pub(super) fn first(&self) -> Option<OpId> {
        self.queue.front().map(|first| first.id)
    }

    pub(super) fn since_us(&self) -> Option<u64> {
        self.queue.front().map(|first| first.since_us)
    }

    pub(super) fn pop(&mut self) {
        if let Some(first) = self.queue.pop_front() {
            self.forget(first.hash);
        }
    }

    fn forget(&mut self, hash: u32) {
        // One that has counted to its end stays: a write waits behind others then, which is always
        // right.
        if let Some(place) = self.places.get_mut(hash as usize % WAIT_PLACES)
            && *place < u16::MAX
        {
            *place -= 1;
        }
        if self.queue.is_empty() {
            self.places = Vec::new();
        }
    }

    /// Whether an operation on the key may be among those that wait.
    pub(super) fn may_hold(&self, hash: u32) -> bool {
        !self.queue.is_empty() && self.places[hash as usize % WAIT_PLACES] > 0
    }

    /// Takes out those for which `goes` holds.
    pub(super) fn take_if(&mut self, mut goes: impl FnMut(OpId) -> bool) -> Vec<OpId> {
        let (gone, kept): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.queue).into_iter().partition(|waits| goes(waits.id));
        self.queue = kept;
        gone.iter().for_each(|waits| self.forget(waits.hash));
        gone.into_iter().map(|waits| waits.id).collect()
    }

    /// All of them, in order.
    pub(super) fn take(&mut self) -> impl Iterator<Item = OpId> + use<> {
        std::mem::take(self).queue.into_iter().map(|waits| waits.id)
    }

    /// As of a list.
    pub(super) fn is_stretched(&self) -> bool {
        self.queue.is_stretched()
    }

    pub(super) fn give_back(&mut self) {
        self.queue.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_among_those_that_wait_until_its_last_operation_has_left() {
        let mut waiting = Waiting::default();
        (0..6).for_each(|i| waiting.push(OpId(i), i % 3, u64::from(i)));
        waiting.pop();
        assert_eq!((waiting.first(), waiting.since_us(), waiting.may_hold(0)), (Some(OpId(1)), Some(1), true));
        assert_eq!(waiting.take_if(|id| id.0 == 3), [OpId(3)]);
        assert!(!waiting.may_hold(0) && waiting.may_hold(1) && waiting.may_hold(2));
        assert_eq!(waiting.take().collect::<Vec<_>>(), [1, 2, 4, 5].map(OpId));
        assert!(waiting.is_empty() && !waiting.may_hold(1));
    }

    #[test]
    fn of_more_than_can_be_counted_each_may_wait_until_all_have_left() {
        let mut waiting = Waiting::default();
        let many = u32::from(u16::MAX) + 10;
        (0..many).for_each(|i| waiting.push(OpId(i), 7, 0));
        (1..many).for_each(|_| waiting.pop());
        assert!(waiting.may_hold(7), "the last one waits");
        waiting.pop();
        waiting.push(OpId(0), 8, 0);
        assert!(waiting.may_hold(8) && !waiting.may_hold(7));
    }
}
