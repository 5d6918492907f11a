//! The names that nodes' memories have had.
//!
//! Each flush of the proxy's own gives a memory [another name](Incarnation::flushed). Who looks for
//! lost memories asks for the present name: workers and probes. What knows a memory by an earlier
//! name, and is not over yet, asks here whether it still is that one: a record that waited for the
//! flush to end, a refill that connects anew. Only names that this proxy has given count: what a
//! flush of a former one's leaves, executed late, is another memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ids::{Incarnation, NodeId};

/// Of every node the names before and since the last flush that was sent there.
#[derive(Debug, Default)]
pub struct Memories(Mutex<BTreeMap<NodeId, [Incarnation; 2]>>);

impl Memories {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, [Incarnation; 2]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A flush that gives the memory another name is about to be sent.
    pub(super) fn flushes(&self, node: NodeId, from: Incarnation, to: Incarnation) {
        self.lock().insert(node, [from, to]);
    }

    /// Whether the flush was executed will never be known: what is found there counts as another
    /// memory.
    pub(super) fn forget(&self, node: NodeId) {
        self.lock().remove(&node);
    }

    /// Whether the memory found there is the one that was `known`. It may have been flushed by this
    /// proxy since.
    pub fn is(&self, node: NodeId, known: Incarnation, found: Incarnation) -> bool {
        let given = || self.lock().get(&node).is_some_and(|names| names.contains(&found));
        known == found || known.is_of_one_memory_with(found) && given()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record may wait through several flushes; a flush of somebody else's, whatever name it
    /// leaves, is none of them, and neither is one of this proxy's on another memory.
    #[test]
    fn a_memory_is_known_through_this_proxys_flushes_alone() {
        let (memories, node, known) = (Memories::default(), NodeId(1), Incarnation(7 << 32 | 5));
        let (once, twice) = (known.flushed(6), known.flushed(8));
        assert!(memories.is(node, known, known) && !memories.is(node, known, once));
        memories.flushes(node, known, once);
        assert!(memories.is(node, known, once) && memories.is(node, known, known), "it may be under way");
        memories.flushes(node, once, twice);
        assert!(memories.is(node, known, twice) && memories.is(node, once, twice));
        memories.forget(node);
        assert!(!memories.is(node, known, twice) && memories.is(node, twice, twice), "it was in doubt");
        memories.flushes(node, once, twice);
        let (elsewhere, others) = (NodeId(0), Incarnation(8 << 32 | 5));
        assert!(!memories.is(elsewhere, known, twice) && !memories.is(node, others, twice));
        assert!(!memories.is(node, known, known.flushed(9)), "a name that nobody here has given");
    }

    #[test]
    fn a_flush_always_changes_the_name_and_never_the_life() {
        for name in [0, 1, 2, u64::MAX, 7 << 32] {
            for bits in [0, 1, 2, u64::MAX, name] {
                let (before, after) = (Incarnation(name), Incarnation(name).flushed(bits));
                assert!(before != after && before.is_of_one_memory_with(after), "{name} {bits}");
            }
        }
    }
}
