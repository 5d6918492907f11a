//! Commands gathered to be written together.

use bytes::Bytes;

/// Values from this size on, in bytes, are written from where they lie; smaller ones are cheaper to
/// copy.
const OWN_CHUNK_BYTES: usize = 4 * 1024;

/// Whether a command changes what the node holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It only reads.
    Read,
    /// It changes items: unanswered, it may still be executed at any later time.
    Mutation,
}

/// Commands to be sent in one go.
///
/// One that changes items must not hold an `mn`: its answer is what tells a [drain](super::Drain)
/// that all is over.
#[derive(Default, Debug)]
pub struct Batch {
    pub(super) chunks: Vec<Bytes>,
    tail: Vec<u8>,
    pub(super) len: u64,
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

    /// An empty batch, with room for so many commands of so many bytes.
    pub fn with_room(bytes: usize, commands: usize) -> Batch {
        Batch { tail: Vec::with_capacity(bytes), ends: Vec::with_capacity(commands), ..Batch::default() }
    }

    /// Bytes that lie together at the end: all, but where large values lie between.
    pub fn gathered(&self) -> usize {
        self.tail.len()
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of answers expected.
    pub fn replies(&self) -> usize {
        self.replies
    }

    /// Appends bytes of the current command.
    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len() as u64;
    }

    /// Appends a decimal number to the current command.
    pub fn put_number(&mut self, number: impl itoa::Integer) {
        self.put(itoa::Buffer::new().format(number).as_bytes());
    }

    /// Appends a value: a large one is not copied.
    pub fn put_value(&mut self, value: &Bytes) {
        if value.len() < OWN_CHUNK_BYTES {
            return self.put(value);
        }
        self.seal();
        self.chunks.push(value.clone());
        self.len += value.len() as u64;
    }

    /// Ends the current command, which will be answered `replies` times.
    pub fn end(&mut self, replies: usize, effect: Effect) {
        self.ends.push(self.len);
        self.replies += replies;
        self.mutates |= effect == Effect::Mutation;
    }

    /// A whole command of one answer.
    pub fn command(&mut self, line: &[u8], effect: Effect) {
        self.put(line);
        self.end(1, effect);
    }

    pub(super) fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push(Bytes::from(std::mem::take(&mut self.tail)));
        }
    }
}
