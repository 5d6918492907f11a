//! Memory that clients make the proxy hold: one account for all clients of the process.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use super::sizes::Sizes;

/// What each client may have beside the account. What is less is not worth a look at what all
/// threads share.
pub(super) const FREE: usize = 64 << 10;

/// What clients together may have read at once beyond what each is trusted with, in bytes, should
/// the values be as large as the largest of late: enough for a few gets of some ten keys to take
/// one round each, and little enough for others not to wait long behind it, if it was wrong. At
/// most a quarter of all.
const DOUBTED_BYTES: usize = 64 << 20;

/// So many times that where large ones are rare, and nobody has met one of late.
const DOUBTED_WHERE_RARE: usize = 4;

/// How much clients' requests and answers may take.
#[derive(Debug)]
pub struct Memory {
    used: AtomicUsize,
    /// Of that, for values that are being received.
    receiving: AtomicUsize,
    /// Beside that: what came from clients that are not read from (`Backlog`).
    held_back: AtomicUsize,
    /// Keys that clients have read at once beyond what each is trusted with, see [`Sizes`].
    doubted: AtomicU32,
    limit: usize,
    /// What their values are like.
    pub(super) sizes: Sizes,
}

impl Memory {
    /// For this many bytes.
    pub fn new(limit: usize) -> Memory {
        let none = || AtomicUsize::new(0);
        let sizes = Sizes::default();
        Memory { used: none(), receiving: none(), held_back: none(), doubted: AtomicU32::new(0), limit, sizes }
    }

    /// Bytes in use, and how many there are.
    pub fn account(&self) -> (u64, u64) {
        ((self.used() + self.held_back()) as u64, self.limit as u64)
    }

    /// Bytes counted now.
    #[inline(always)]
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// More than half is taken: clients are asked for one large value at a time, and for none while
    /// they have not taken the last.
    #[inline(always)]
    pub(super) fn is_short(&self) -> bool {
        self.used() > self.limit / 2
    }

    /// All is taken.
    pub(super) fn is_full(&self) -> bool {
        self.used() + self.held_back() > self.limit
    }

    /// Bytes that came from clients that are not read from.
    #[inline(always)]
    pub(super) fn held_back(&self) -> usize {
        self.held_back.load(Relaxed)
    }

    pub(super) fn hold_back(&self, bytes: usize) {
        self.held_back.fetch_add(bytes, Relaxed);
    }

    pub(super) fn pass_on(&self, bytes: usize) {
        self.held_back.fetch_sub(bytes, Relaxed);
    }

    /// How many more keys clients may have read at once beyond what each is trusted with.
    pub(super) fn doubt_room(&self) -> u32 {
        let bytes = match self.sizes.are_rarely_large() {
            true => (DOUBTED_WHERE_RARE * DOUBTED_BYTES).min(self.limit / 2),
            false => DOUBTED_BYTES.min(self.limit / 4),
        };
        (bytes as u32 / self.sizes.largest().max(1)).saturating_sub(self.doubted.load(Relaxed))
    }

    /// So many of a client were taken from that room, and are now.
    pub(super) fn doubt(&self, before: u16, now: u16) {
        self.doubted.fetch_add(now.into(), Relaxed);
        self.doubted.fetch_sub(before.into(), Relaxed);
    }

    /// Whether a client that is about to be stopped may bring all that its socket holds. (What
    /// clients bring so is no reason to ask those that read for less: it has a sixteenth of its
    /// own.)
    #[inline(always)]
    pub fn takes_bursts(&self) -> bool {
        self.held_back() <= self.limit / 16 && !self.is_full()
    }

    /// How much of it may be used for receiving, unless it is one value.
    pub(super) fn receiving_max(&self) -> usize {
        self.limit / 2
    }

    /// Room for a value that is about to be received. Those that are take half of it at most, so
    /// that clients which begin values and do not go on take nothing from those that read; or one
    /// alone, however large.
    pub(super) fn receive(self: &Arc<Memory>, bytes: usize) -> Option<Share> {
        let before = self.receiving.fetch_add(bytes, Relaxed);
        if before > 0 && before + bytes > self.receiving_max() {
            self.receiving.fetch_sub(bytes, Relaxed);
            return None;
        }
        self.used.fetch_add(bytes, Relaxed);
        Some(Share { bytes, memory: Some(self.clone()), receives: true })
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new(usize::MAX)
    }
}

/// A part of the account, given back when it is dropped.
#[derive(Default)]
pub struct Share {
    bytes: usize,
    memory: Option<Arc<Memory>>,
    /// It is for a value that is being received.
    receives: bool,
}

impl Share {
    #[inline(always)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// It is so large from now on.
    pub(super) fn set(&mut self, bytes: usize, memory: &Arc<Memory>) {
        debug_assert!(!self.receives);
        memory.used.fetch_add(bytes, Relaxed);
        memory.used.fetch_sub(self.bytes, Relaxed);
        self.bytes = bytes;
        if self.memory.is_none() {
            self.memory = Some(memory.clone());
        }
    }

    /// Takes so much off, for somebody else to hold.
    pub(super) fn split_off(&mut self, bytes: usize) -> Share {
        debug_assert!(bytes <= self.bytes && !self.receives);
        self.bytes -= bytes;
        Share { bytes, memory: self.memory.clone(), receives: false }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(memory) = &self.memory else { return };
        memory.used.fetch_sub(self.bytes, Relaxed);
        if self.receives {
            memory.receiving.fetch_sub(self.bytes, Relaxed);
        }
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_counts_until_it_is_dropped() {
        let memory = Arc::new(Memory::new(100_000));
        let mut share = Share::default();
        share.set(60_000, &memory);
        assert!(memory.is_short() && !memory.is_full());
        let part = share.split_off(20_000);
        share.set(90_000, &memory);
        assert_eq!((share.bytes(), part.bytes(), memory.used()), (90_000, 20_000, 110_000));
        assert!(memory.is_full());
        drop(share);
        assert_eq!(memory.used(), 20_000);
        drop(part);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn values_being_received_take_half_or_one_of_them_all() {
        let memory = Arc::new(Memory::new(100_000));
        let half = memory.receive(30_000).expect("room");
        assert!(memory.receive(20_001).is_none());
        let more = memory.receive(20_000).expect("room");
        assert_eq!(memory.used(), 50_000);
        assert!(!memory.is_short(), "those who read have the other half");
        drop((half, more));
        let alone = memory.receive(1_000_000).expect("alone");
        assert!(memory.receive(1).is_none());
        drop(alone);
        assert_eq!((memory.used(), memory.receiving.load(Relaxed)), (0, 0));
    }
}
