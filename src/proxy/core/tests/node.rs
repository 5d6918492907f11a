//! A node of these tests: the model memcached, with a clock that stands still at 0. So an exptime
//! stays as it was written.

use std::ops::{Deref, DerefMut};

use crate::testing::memcached::Memcached;
pub(super) use crate::testing::memcached::{Item, Mark, command_len};

#[derive(Clone, Default, Debug)]
pub(super) struct Node(Memcached);

impl Deref for Node {
    type Target = Memcached;

    fn deref(&self) -> &Memcached {
        &self.0
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Memcached {
        &mut self.0
    }
}

/// The flags of an item that outlasts its copy on the other node.
const OUTLASTS: u32 = 77;

impl Node {
    /// An item whose copy on the other node has ended.
    pub(super) fn put_overdue(&mut self, key: &str, value: &str) {
        self.0.put(key.as_bytes(), value.as_bytes(), OUTLASTS, 1);
    }

    /// What is there as far as clients are concerned.
    pub(super) fn counted(&self, key: &[u8]) -> Option<&Item> {
        self.items.get(key).filter(|item| item.flags != OUTLASTS)
    }

    pub(super) fn put(&mut self, key: &str, value: &str) {
        self.0.put(key.as_bytes(), value.as_bytes(), 0, 0);
    }

    /// Executes one command; the answer's bytes.
    pub(super) fn execute(&mut self, command: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        self.0.execute(command, &mut answer);
        assert_ne!(answer, b"ERROR\r\n", "the model does not know {}", String::from_utf8_lossy(command));
        answer
    }
}

/// What belongs to the leader alone.
pub(super) fn is_held_back(mark: Mark) -> bool {
    mark.stale || mark.sent
}
