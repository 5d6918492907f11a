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
