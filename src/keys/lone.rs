//! The keys of one pair that are known to have one copy: the follower refused the item, or the
//! copies could not be made equal.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::MissedBudget;
use super::missed::KEY_OVERHEAD;

/// One pair's keys with one copy, for as long as the proxy runs. Workers and resyncs insert;
/// workers remove what has two copies again; the control plane reads, has the keys mended, and
/// forgets them.
///
/// Past the bound, and where items were evicted during a refill, there are *more*, of which nothing
/// else is known: only a comparing of the whole pair finds out.
#[derive(Debug)]
pub struct Lone {
    /// In order, because they are iterated: what the proxy does must not differ from run to run.
    keys: Mutex<BTreeSet<Bytes>>,
    /// As many as there are in `keys`, so that the lock is not taken while there are none.
    len: AtomicUsize,
    /// How often a key was inserted: whether there is something new to tell.
    inserted: AtomicU64,
    /// How often it was learnt that there are more; and how many of these times are made up for.
    more: AtomicU64,
    resolved: AtomicU64,
    budget: Arc<MissedBudget>,
}

impl Lone {
    /// None. `budget`: shared by all pairs.
    pub fn new(budget: Arc<MissedBudget>) -> Lone {
        let zero = || AtomicU64::new(0);
        Lone {
            keys: Mutex::default(),
            len: AtomicUsize::new(0),
            inserted: zero(),
            more: zero(),
            resolved: zero(),
            budget,
        }
    }

    /// The key has one copy. Any thread may call it.
    pub fn insert(&self, key: &[u8]) {
        self.inserted.fetch_add(1, Relaxed);
        let mut keys = self.lock();
        if keys.contains(key) {
            return;
        }
        if !self.budget.take(key.len() + KEY_OVERHEAD) {
            self.more.fetch_add(1, Relaxed);
            return;
        }
        keys.insert(Bytes::copy_from_slice(key));
        self.len.store(keys.len(), Relaxed);
    }

    /// The key has two copies, or none. Costs one load while no key has one.
    pub fn remove(&self, key: &[u8]) {
        if self.is_empty() {
            return;
        }
        let mut keys = self.lock();
        if keys.remove(key) {
            self.budget.give_back(key.len() + KEY_OVERHEAD);
        }
        self.len.store(keys.len(), Relaxed);
    }

    /// Takes out some keys, which are to be copied now: those that have one copy after that are
    /// inserted again.
    pub fn take(&self, most: usize) -> Vec<Bytes> {
        let taken = self.after(None, most);
        taken.iter().for_each(|key| self.remove(key));
        taken
    }

    /// Some keys that come after `key`, in order; from the first one on after the last.
    pub fn after(&self, key: Option<&Bytes>, most: usize) -> Vec<Bytes> {
        let keys = self.lock();
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        let to = key.map_or(Bound::Excluded(&[][..]), |key| Bound::Included(&key[..]));
        let rest = keys.range::<[u8], _>((from.map(|key| &key[..]), Bound::Unbounded));
        rest.chain(keys.range::<[u8], _>((Bound::Unbounded, to))).take(most).cloned().collect()
    }

    /// Number of keys that are known.
    pub fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// Whether no key is known; there may be more all the same.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a key was inserted.
    pub fn inserted(&self) -> u64 {
        self.inserted.load(Relaxed)
    }

    /// There are more, of which nothing else is known.
    pub fn add_more(&self) {
        self.more.fetch_add(1, Relaxed);
    }

    /// Whether there are more than the keys that are known.
    pub fn has_more(&self) -> bool {
        self.more() > self.resolved.load(Relaxed)
    }

    /// How often it was learnt that there are more: to be read before a comparing that is to find
    /// them all.
    pub fn more(&self) -> u64 {
        self.more.load(Relaxed)
    }

    /// What was learnt up to then is made up for: all copies were compared since.
    pub fn resolve(&self, more: u64) {
        self.resolved.fetch_max(more, Relaxed);
    }

    /// Forgets the keys that are known: they are copied now, or gone.
    pub fn forget_known(&self) {
        let mut keys = self.lock();
        let bytes = keys.iter().map(|key| key.len() + KEY_OVERHEAD).sum();
        keys.clear();
        self.budget.give_back(bytes);
        self.len.store(0, Relaxed);
    }

    /// Forgets everything: the follower is filled anew, or both are empty.
    pub fn forget(&self) {
        self.resolve(self.more());
        self.forget_known();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<Bytes>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lone {
    fn drop(&mut self) {
        // The budget outlives it.
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lone(limit: usize) -> (Lone, Arc<MissedBudget>) {
        let budget = Arc::new(MissedBudget::new(limit));
        (Lone::new(budget.clone()), budget)
    }

    #[test]
    fn keys_come_and_go_and_are_walked_in_a_circle() {
        let (lone, budget) = lone(1 << 20);
        for key in ["c", "a", "b", "a"] {
            lone.insert(key.as_bytes());
        }
        assert_eq!((lone.len(), lone.inserted(), lone.has_more()), (3, 4, false));
        assert_eq!(lone.after(None, 2), ["a", "b"]);
        assert_eq!(lone.after(Some(&Bytes::from_static(b"b")), 2), ["c", "a"]);
        assert_eq!(lone.after(Some(&Bytes::from_static(b"b")), 9), ["c", "a", "b"]);
        lone.remove(b"b");
        lone.remove(b"nothing");
        assert_eq!(lone.take(1), ["a"]);
        assert_eq!(lone.after(None, 9), ["c"]);
        lone.forget();
        assert_eq!((lone.len(), budget.used()), (0, 0));
    }

    #[test]
    fn past_the_bound_there_are_more_until_all_was_compared() {
        let (lone, budget) = lone(10 * (KEY_OVERHEAD + 1));
        for i in 0..12 {
            lone.insert(&[b'a' + i]);
            assert!(budget.used() <= 10 * (KEY_OVERHEAD + 1));
        }
        assert_eq!((lone.len(), lone.has_more()), (10, true));
        let before = lone.more();
        lone.add_more();
        lone.resolve(before);
        assert!(lone.has_more(), "learnt during the comparing");
        lone.resolve(lone.more());
        assert!(!lone.has_more());
        lone.add_more();
        lone.forget_known();
        assert_eq!((lone.len(), lone.has_more(), budget.used()), (0, true, 0));
        lone.forget();
        assert!(!lone.has_more());
        lone.insert(b"again");
        drop(lone);
        assert_eq!(budget.used(), 0);
    }
}
