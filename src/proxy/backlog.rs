//! What came from a client that is not read from. On io_uring the kernel goes on for a moment after
//! a client has to wait: it gives what the client's socket holds, up to half a megabyte.

use std::sync::Arc;

use super::memory::{FREE, Memory};

/// Bytes passed on at a time: what is left when the client has to wait again stays here, where it
/// is counted.
const PIECE: usize = 16 * 1024;

/// Bytes in the order in which they came. All but [`FREE`] of them count in `--client-memory`.
#[derive(Debug)]
pub struct Backlog {
    bytes: Vec<u8>,
    /// This many of them were passed on.
    passed: usize,
    counted: usize,
    memory: Arc<Memory>,
}

impl Backlog {
    pub(super) fn new(memory: Arc<Memory>) -> Backlog {
        Backlog { bytes: Vec::new(), passed: 0, counted: 0, memory }
    }

    /// More has come.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let counted = self.bytes.capacity().saturating_sub(FREE);
        self.memory.hold_back(counted - self.counted);
        self.counted = counted;
    }

    /// The next bytes to be passed on, if any are left.
    pub fn piece(&mut self) -> Option<&[u8]> {
        let from = self.passed;
        self.passed = self.bytes.len().min(from + PIECE);
        (self.passed > from).then(|| &self.bytes[from..self.passed])
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.memory.pass_on(self.counted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_leaves_in_order_and_counts_until_all_of_it_has_left() {
        let memory = Arc::new(Memory::new(1 << 20));
        let mut backlog = Backlog::new(memory.clone());
        let sent: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        sent.chunks(PIECE).for_each(|chunk| backlog.put(chunk));
        assert!(memory.held_back() >= sent.len() - FREE, "{}", memory.held_back());
        assert!(!memory.takes_bursts(), "more than a sixteenth");
        let mut passed = Vec::new();
        while let Some(piece) = backlog.piece() {
            assert!(piece.len() <= PIECE);
            passed.extend_from_slice(piece);
        }
        assert_eq!(passed, sent);
        assert!(memory.held_back() > 0, "its memory is not given back yet");
        drop(backlog);
        assert_eq!((memory.held_back(), memory.takes_bursts()), (0, true));
    }

    #[test]
    fn a_little_of_each_client_is_not_counted() {
        let memory = Arc::new(Memory::new(1 << 20));
        let mut backlog = Backlog::new(memory.clone());
        (0..FREE / PIECE).for_each(|_| backlog.put(&[0; PIECE]));
        assert_eq!(memory.held_back(), 0);
    }
}
