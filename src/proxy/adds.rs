//! Keys that an `add` may just have made, known to all workers.
//!
//! A leader whose memory was emptied while its connections stayed open (by a `flush_all` that the
//! proxy did not send) accepts an `add` of a key that exists. The marker read behind the `add`
//! shows that, and the `add` is void: see [`super::core`]'s proofs. But until every worker knows, a
//! read by another worker, over another connection, would find the stored item. So reads of such
//! keys wait for the marker too.

use std::sync::atomic::{AtomicU32, Ordering};

/// Keys share places by their hash: a read that only shares one waits in vain, which costs a
/// marker's reading.
const PLACES: usize = 1024;

/// How many `add`s are unfinished, by their keys' places.
#[derive(Debug)]
pub struct Adds {
    counts: Box<[AtomicU32]>,
}

impl Adds {
    /// None.
    pub fn new() -> Adds {
        Adds { counts: (0..PLACES).map(|_| AtomicU32::new(0)).collect() }
    }

    fn count(&self, hash: u32) -> &AtomicU32 {
        &self.counts[hash as usize % PLACES]
    }

    /// Before it is sent to a node.
    pub(super) fn begun(&self, hash: u32) {
        self.count(hash).fetch_add(1, Ordering::SeqCst);
    }

    /// What it stored counts, or the node is not read from any more, or its outcome is unknown.
    pub(super) fn ended(&self, hash: u32) {
        self.count(hash).fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether what was found under a key may come of one.
    pub(super) fn may_have_made(&self, hash: u32) -> bool {
        // The node's answer came after the `add` was sent, which came after the counting.
        self.count(hash).load(Ordering::SeqCst) > 0
    }
}

impl Default for Adds {
    fn default() -> Adds {
        Adds::new()
    }
}
