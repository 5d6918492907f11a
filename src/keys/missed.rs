//! The keys of one pair whose last mutation did not surely reach a node that is away: when it comes
//! back with the memory that it had, only these are out of date on it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use dashmap::DashSet;

/// What a key costs beside its bytes: its place in the table and the allocation's own.
pub(super) const KEY_OVERHEAD: usize = 96;

/// Longer lists are sorted by a thread of their own.
const SORTED_AT_ONCE: usize = 4096;

/// So are more keys than these freed: half a million, of the one write that was too many, kept a
/// worker for 60 ms.
const FREED_AT_ONCE: usize = 4096;

/// The memory that the missed sets of all pairs share, in bytes.
#[derive(Debug)]
pub struct MissedBudget {
    limit: usize,
    used: AtomicUsize,
}

impl MissedBudget {
    /// This many bytes.
    pub fn new(limit: usize) -> MissedBudget {
        MissedBudget { limit, used: AtomicUsize::new(0) }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    pub(super) fn take(&self, bytes: usize) -> bool {
        if self.used.fetch_add(bytes, Relaxed) + bytes <= self.limit {
            return true;
        }
        self.give_back(bytes);
        false
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

/// One pair's missed keys, for as long as the proxy runs. Workers insert; the control plane reads
/// and resets.
///
/// A key is inserted *before* the mutation is sent to a leader without a follower, and where an
/// answer that is owed is given up: so whatever either node executes later, the key is there. It
/// stays until the pair is mirrored again, through any number of resyncs that were cut off. Past
/// the bound the set *overflows*: it is forgotten, and the node is purged and filled in full.
#[derive(Debug)]
pub struct Missed {
    /// Locked for writing only to put an empty one in its place.
    keys: RwLock<DashSet<Bytes>>,
    overflow: AtomicBool,
    /// Booked in the budget for what is in `keys`.
    bytes: AtomicUsize,
    budget: Arc<MissedBudget>,
}

impl Missed {
    /// Nothing is known yet, which counts as overflowed.
    pub fn new(budget: Arc<MissedBudget>) -> Missed {
        Missed { keys: RwLock::default(), overflow: AtomicBool::new(true), bytes: AtomicUsize::new(0), budget }
    }

    /// Remembers a key. Any thread may call it.
    pub fn insert(&self, key: &[u8]) {
        let keys = self.known();
        if self.overflowed() || keys.contains(key) {
            return;
        }
        let cost = key.len() + KEY_OVERHEAD;
        if !self.budget.take(cost) {
            drop(keys);
            return self.overflow();
        }
        if keys.insert(Bytes::copy_from_slice(key)) {
            self.bytes.fetch_add(cost, Relaxed);
        } else {
            self.budget.give_back(cost);
        }
    }

    /// Whether the key is known to have been missed; says nothing once it overflowed.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.known().contains(key)
    }

    /// Forgets the keys: from here on the whole memory of the node that is away counts as out of
    /// date.
    pub fn overflow(&self) {
        self.overflow.store(true, Relaxed);
        self.forget();
    }

    /// Whether the set says nothing any more.
    pub fn overflowed(&self) -> bool {
        self.overflow.load(Relaxed)
    }

    /// Both nodes hold the same: nothing is missed. Only behind a closed gate, when no worker has
    /// anything of the pair in flight.
    pub fn reset(&self) {
        self.forget();
        self.overflow.store(false, Relaxed);
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.known().len()
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.known().is_empty()
    }

    /// The keys, sorted; `None` if the set overflowed.
    pub fn keys(&self) -> Option<Vec<Bytes>> {
        let mut keys: Vec<Bytes> = self.known().iter().map(|key| key.clone()).collect();
        keys.sort_unstable();
        // Looked at last: an overflow in between emptied the set.
        (!self.overflowed()).then_some(keys)
    }

    /// [`Missed::keys`] of a set that may be large: it is sorted on another thread than the control
    /// plane's.
    pub async fn list(self: &Arc<Missed>) -> Option<Vec<Bytes>> {
        if self.len() <= SORTED_AT_ONCE {
            return self.keys();
        }
        let missed = self.clone();
        tokio::task::spawn_blocking(move || missed.keys()).await.ok()?
    }

    fn known(&self) -> RwLockReadGuard<'_, DashSet<Bytes>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        let forgotten = {
            let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
            self.budget.give_back(self.bytes.swap(0, Relaxed));
            std::mem::take(&mut *keys)
        };
        if forgotten.len() > FREED_AT_ONCE {
            // Without another thread they are freed by this one.
            drop(std::thread::Builder::new().name("forgets".to_owned()).spawn(move || drop(forgotten)));
        }
    }
}

impl Drop for Missed {
    fn drop(&mut self) {
        // The budget outlives it.
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_nothing_before_the_pair_was_mirrored() {
        let missed = Missed::new(Arc::new(MissedBudget::new(1 << 20)));
        missed.insert(b"a");
        assert_eq!(missed.keys(), None);
        missed.reset();
        for key in [b"b", b"a", b"b"] {
            missed.insert(key);
        }
        assert_eq!(missed.keys().unwrap(), ["a", "b"]);
        missed.reset();
        assert_eq!(missed.keys().unwrap(), Vec::<Bytes>::new());
    }

    #[test]
    fn one_pair_past_the_shared_bound_forgets_its_keys_and_gives_the_memory_back() {
        let budget = Arc::new(MissedBudget::new(1 << 20));
        let (one, other) = (Missed::new(budget.clone()), Missed::new(budget.clone()));
        one.reset();
        other.reset();
        other.insert(b"kept");
        let before = budget.used();
        for i in 0..1_000_000 {
            one.insert(format!("key:{i}").as_bytes());
            assert!(budget.used() <= 1 << 20);
        }
        assert_eq!((one.keys(), one.len(), budget.used()), (None, 0, before));
        assert_eq!(other.keys().unwrap(), ["kept"]);
        one.reset();
        one.insert(b"again");
        assert_eq!(one.keys().unwrap(), ["again"]);
        drop(one);
        assert_eq!(budget.used(), before);
    }

    #[test]
    fn threads_insert_side_by_side() {
        let budget = Arc::new(MissedBudget::new(1 << 30));
        let missed = Missed::new(budget.clone());
        missed.reset();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|i| missed.insert(format!("{i}").as_bytes())));
            }
        });
        assert_eq!(missed.len(), 10_000);
        missed.overflow();
        assert_eq!(budget.used(), 0);
    }
}
