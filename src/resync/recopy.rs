//! The keys of one pair that must be copied again: the workers push, the job takes.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Most keys kept for one pair. Past it the whole pair is enumerated again, which costs time, not memory.
pub const MAX_RECOPY_KEYS: usize = 65_536;

/// Keys whose copy was dropped on the filling follower because the mutation cannot be executed there (incr, append, touch …).
///
/// A worker first drops the key on the follower and pushes it after the answer. The job takes a key out *before* it
/// copies it, so that a push during the copy is kept and leads to another copy.
#[derive(Default, Debug)]
pub struct Recopy {
    inner: Mutex<Inner>,
}

#[derive(Default, Debug)]
struct Inner {
    queue: VecDeque<Bytes>,
    /// The same keys, to find duplicates. Never iterated: its order would differ from run to run.
    known: HashSet<Bytes>,
    overflow: bool,
    watcher: Option<Arc<Notify>>,
}

impl Recopy {
    /// An empty set.
    pub fn new() -> Recopy {
        Recopy::default()
    }

    /// Asks for a copy of the key. Any thread may call it; it never waits for more than another push.
    pub fn push(&self, key: Bytes) {
        let mut inner = self.lock();
        if inner.queue.len() >= MAX_RECOPY_KEYS {
            inner.overflow = true;
        } else if inner.known.insert(key.clone()) {
            inner.queue.push_back(key);
        } else {
            return;
        }
        if let Some(watcher) = &inner.watcher {
            watcher.notify_one();
        }
    }

    /// Forgets the keys and asks for another enumeration of the pair (`flush_all`, or a list that was lost).
    pub fn set_overflow(&self) {
        let mut inner = self.lock();
        inner.overflow = true;
        if let Some(watcher) = &inner.watcher {
            watcher.notify_one();
        }
    }

    /// Takes out the oldest `n` keys at most.
    pub fn take_batch(&self, n: usize) -> Vec<Bytes> {
        let mut inner = self.lock();
        let n = n.min(inner.queue.len());
        let batch: Vec<Bytes> = inner.queue.drain(..n).collect();
        for key in &batch {
            inner.known.remove(key);
        }
        batch
    }

    /// Number of keys waiting.
    pub fn len(&self) -> usize {
        self.lock().queue.len()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether keys were lost, so that the pair must be enumerated again before it is handed back.
    pub fn overflowed(&self) -> bool {
        self.lock().overflow
    }

    /// Clears the overflow: to be called before the enumeration that makes up for it begins.
    pub fn clear_overflow(&self) {
        self.lock().overflow = false;
    }

    /// Who is told of a push: the one job that fills the pair.
    pub(super) fn watch(&self, watcher: Arc<Notify>) {
        self.lock().watcher = Some(watcher);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_no_duplicates() {
        let recopy = Recopy::new();
        for key in ["a", "b", "a", "c"] {
            recopy.push(Bytes::from_static(key.as_bytes()));
        }
        assert_eq!(recopy.take_batch(2), ["a", "b"]);
        recopy.push(Bytes::from_static(b"a"));
        assert_eq!(recopy.take_batch(9), ["c", "a"]);
        assert!(recopy.is_empty());
    }

    #[test]
    fn overflows_instead_of_growing() {
        let recopy = Recopy::new();
        for i in 0..=MAX_RECOPY_KEYS {
            recopy.push(Bytes::from(i.to_string()));
        }
        assert_eq!(recopy.len(), MAX_RECOPY_KEYS);
        assert!(recopy.overflowed());
        recopy.clear_overflow();
        assert!(!recopy.overflowed());
    }
}
