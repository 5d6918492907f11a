//! Memory of answers that clients have not taken: one account for all clients of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;

use super::link::LARGE;

/// How much large answers may take that are on their way to clients.
#[derive(Debug)]
pub struct Memory {
    used: AtomicUsize,
    limit: usize,
}

impl Memory {
    /// For so many bytes.
    pub fn new(limit: usize) -> Memory {
        Memory { used: AtomicUsize::new(0), limit }
    }

    /// Counts an answer until the last who holds it has dropped it: written, or its client gone. Small ones are not counted, for they
    /// are copied, and clients' own bounds hold them.
    pub(super) fn count(self: &Arc<Self>, answer: Bytes) -> Bytes {
        if answer.len() < LARGE as usize {
            return answer;
        }
        self.used.fetch_add(answer.len(), Relaxed);
        Bytes::from_owner(Counted { answer, memory: self.clone() })
    }

    /// Bytes counted now.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// More than half is taken: clients are asked for one large value at a time, and for none while they have not taken the last.
    pub(super) fn is_short(&self) -> bool {
        self.used() > self.limit / 2
    }

    /// All is taken.
    pub(super) fn is_full(&self) -> bool {
        self.used() > self.limit
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new(usize::MAX)
    }
}

struct Counted {
    answer: Bytes,
    memory: Arc<Memory>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.answer.len(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_large_counts_until_nobody_holds_it() {
        let memory = Arc::new(Memory::new(100_000));
        let small = memory.count(Bytes::from(vec![0; 1000]));
        assert_eq!((small.len(), memory.used()), (1000, 0));
        let large = memory.count(Bytes::from(vec![1; 60_000]));
        let part = large.slice(10..20);
        drop(large);
        assert_eq!((&part[..], memory.used()), (&[1; 10][..], 60_000));
        assert!(memory.is_short() && !memory.is_full());
        let more = memory.count(Bytes::from(vec![1; 60_000]));
        assert!(memory.is_full());
        drop((part, more));
        assert_eq!(memory.used(), 0);
    }
}
