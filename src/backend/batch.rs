//! Commands gathered to be written together.

use bytes::Bytes;

use crate::protocol::key::Key;
pub use crate::protocol::node::Effect;
use crate::protocol::node::{self, Ask};
use crate::protocol::out::OutQueue;

/// Commands to be sent in one go.
///
/// One that changes items must not hold an `mn`: its answer is what tells a [drain](super::Drain)
/// that all is over.
#[derive(Default, Debug)]
pub struct Batch {
    pub(super) out: OutQueue,
    /// Where commands end, in bytes from the batch's beginning.
    pub(super) ends: Vec<u64>,
    pub(super) replies: usize,
    pub(super) mutates: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// An empty batch, with room for this many commands of this many bytes.
    pub fn with_room(bytes: usize, commands: usize) -> Batch {
        Batch { out: OutQueue::with_room(bytes), ends: Vec::with_capacity(commands), ..Batch::default() }
    }

    /// An `mg` for each of these keys, of which it is told whether they are written in base64.
    pub fn of_looks(keys: &[(Bytes, bool)], ask: Ask) -> Batch {
        let mut batch = Batch::new();
        for (key, binary) in keys {
            batch.add(|out| node::mg(out, Key::new(key, *binary), ask));
        }
        batch
    }

    /// Bytes that lie together at the end: all, but where large values lie between.
    pub fn gathered(&self) -> usize {
        self.out.gathered()
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Number of answers expected.
    pub fn replies(&self) -> usize {
        self.replies
    }

    /// Adds a whole command of one answer.
    #[inline]
    pub fn add(&mut self, write: impl FnOnce(&mut OutQueue) -> Effect) {
        let effect = write(&mut self.out);
        self.end(1, effect);
    }

    /// The same for one that is written out already.
    pub fn command(&mut self, line: &[u8], effect: Effect) {
        self.out.put(line);
        self.end(1, effect);
    }

    /// Ends the current command, which will be answered `replies` times.
    pub(super) fn end(&mut self, replies: usize, effect: Effect) {
        self.ends.push(self.out.len() as u64);
        self.replies += replies;
        self.mutates |= effect == Effect::Mutation;
    }
}
