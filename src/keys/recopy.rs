//! The keys of one pair that must be copied again: the workers push, the job takes.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use dashmap::{DashMap, Entry};
use tokio::sync::Notify;

use super::Missed;

/// Most keys kept for one pair. Past it the whole pair is enumerated again, which costs time, not
/// memory.
pub const MAX_RECOPY_KEYS: usize = 65_536;
/// The same for keys that are pushed because they were read: the rest is left to those that must be
/// copied again.
const MAX_READ_KEYS: usize = MAX_RECOPY_KEYS / 2;
/// Places in the table of keys pushed lately for being read: 512 KiB per pair, only while its
/// leader cannot be enumerated.
const LATELY: usize = 1 << 17;

/// Keys whose copy was dropped on the filling follower because the mutation cannot be executed
/// there (incr, append, touch …).
///
/// A worker first drops the key on the follower and pushes it after the answer. The job takes a key
/// out *before* it copies it, so that a push during the copy is kept and leads to another copy.
///
/// Where the leader cannot be enumerated, the job asks for the keys that clients read as well
/// (`want_reads`): the only way to learn of them.
#[derive(Default, Debug)]
pub struct Recopy {
    /// The keys in the queue, to find duplicates: a hot key is turned away without the queue's
    /// lock. Never iterated: its order would differ from run to run.
    known: DashMap<Bytes, ()>,
    inner: Mutex<Inner>,
    reads: AtomicBool,
    /// What is pushed is not on the follower, which a resync that comes after this one must know.
    missed: Option<Arc<Missed>>,
    /// Fingerprints of keys pushed lately for being read, each in the one place that its hash
    /// names: a hot key is pushed once, and again when another one has taken its place. Made when
    /// reads are first wanted.
    lately: OnceLock<Box<[AtomicU32]>>,
}

#[derive(Default, Debug)]
struct Inner {
    queue: VecDeque<Bytes>,
    overflow: bool,
    watcher: Option<Arc<Notify>>,
}

impl Recopy {
    /// An empty set.
    pub fn new() -> Recopy {
        Recopy::default()
    }

    /// An empty set that notes what is pushed in `missed` as well.
    pub fn noting(missed: Arc<Missed>) -> Recopy {
        Recopy { missed: Some(missed), ..Recopy::default() }
    }

    /// Asks for a copy of the key. Any thread may call it; it never waits for more than another
    /// push.
    pub fn push(&self, key: Bytes) {
        if let Some(missed) = &self.missed {
            missed.insert(&key);
        }
        if !self.enqueue(key, MAX_RECOPY_KEYS) {
            self.set_overflow();
        }
    }

    /// `false`: there is no room for it.
    fn enqueue(&self, key: Bytes, most: usize) -> bool {
        // The entry is held while the key goes into the queue. That it is there already means that
        // its copy has not begun: a key leaves the set after the queue and before `take_batch`
        // returns.
        let Entry::Vacant(entry) = self.known.entry(key.clone()) else { return true };
        let mut inner = self.lock();
        if inner.queue.len() >= most {
            return false;
        }
        inner.queue.push_back(key);
        entry.insert(());
        if let Some(watcher) = &inner.watcher {
            watcher.notify_one();
        }
        true
    }

    /// Whether keys that are read are wanted; a worker asks this for every hit while the pair is
    /// being filled.
    pub fn wants_reads(&self) -> bool {
        self.reads.load(Relaxed)
    }

    /// A client has read an item under this key from the leader: asks for a copy of it, unless that
    /// was done lately or there is too much to do already. No lock is taken for a key that was
    /// pushed lately.
    pub fn push_read(&self, key: &[u8]) {
        let Some(lately) = self.lately.get().filter(|_| self.wants_reads()) else { return };
        let mut hasher = DefaultHasher::new();
        hasher.write(key);
        let hash = hasher.finish();
        // 0 stands for nobody.
        let (place, print) = (&lately[hash as usize % LATELY], (hash >> 32) as u32 | 1);
        if place.swap(print, Relaxed) == print {
            return;
        }
        if !self.enqueue(Bytes::copy_from_slice(key), MAX_READ_KEYS) {
            place.store(0, Relaxed);
        }
    }

    /// From now on keys that are read are wanted, for the rest of this resync.
    pub fn want_reads(&self) {
        self.lately.get_or_init(|| (0..LATELY).map(|_| AtomicU32::new(0)).collect());
        self.reads.store(true, Relaxed);
    }

    /// Makes up for an overflow where there is no enumeration: the keys that were lost are not on
    /// the follower, and each is copied when it is next read, however lately that was before.
    pub fn forget_overflow(&self) {
        self.clear_overflow();
        // After it: a key lost from now on sets it again.
        for place in self.lately.get().into_iter().flatten() {
            place.store(0, Relaxed);
        }
    }

    /// Forgets the keys and asks for another enumeration of the pair (`flush_all`, or a list that
    /// was lost).
    pub fn set_overflow(&self) {
        let mut inner = self.lock();
        inner.overflow = true;
        if let Some(watcher) = &inner.watcher {
            watcher.notify_one();
        }
    }

    /// Takes out the oldest `n` keys at most.
    pub fn take_batch(&self, n: usize) -> Vec<Bytes> {
        let batch: Vec<Bytes> = {
            let mut inner = self.lock();
            let n = n.min(inner.queue.len());
            inner.queue.drain(..n).collect()
        };
        for key in &batch {
            self.known.remove(key);
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
    pub fn watch(&self, watcher: Arc<Notify>) {
        self.lock().watcher = Some(watcher);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::MissedBudget;

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
    fn what_is_pushed_is_known_to_the_next_resync() {
        let missed = Arc::new(Missed::new(Arc::new(MissedBudget::new(1 << 20))));
        missed.reset();
        let recopy = Recopy::noting(missed.clone());
        recopy.push(Bytes::from_static(b"a"));
        recopy.take_batch(1);
        assert_eq!(missed.keys().unwrap(), ["a"]);
    }

    #[test]
    fn a_key_that_is_read_is_wanted_once_and_only_when_asked_for() {
        let recopy = Recopy::new();
        recopy.push_read(b"a");
        assert!(recopy.is_empty());
        recopy.want_reads();
        for key in [b"a", b"b", b"a", b"b"] {
            recopy.push_read(key);
        }
        assert_eq!(recopy.take_batch(9), ["a", "b"]);
        recopy.push_read(b"a");
        assert!(recopy.is_empty());
        // Dropped on the follower, and the push that was to bring it back was lost.
        recopy.set_overflow();
        recopy.forget_overflow();
        recopy.push_read(b"a");
        assert_eq!(recopy.take_batch(9), ["a"]);
        assert!(!recopy.overflowed());
    }

    #[test]
    fn reads_leave_room_and_never_overflow() {
        let recopy = Recopy::new();
        recopy.want_reads();
        for i in 0..2 * MAX_RECOPY_KEYS {
            recopy.push_read(i.to_string().as_bytes());
        }
        assert_eq!(recopy.len(), MAX_READ_KEYS);
        assert!(!recopy.overflowed());
        // One that found no room is not taken for pushed.
        recopy.take_batch(MAX_RECOPY_KEYS);
        let last = 2 * MAX_RECOPY_KEYS - 1;
        recopy.push_read(last.to_string().as_bytes());
        assert_eq!(recopy.take_batch(9), [last.to_string()]);
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
