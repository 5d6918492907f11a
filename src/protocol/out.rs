//! What waits to be written to one socket.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use bytes::{Buf, Bytes};

/// From this size on a value is queued by reference; below it, copying is cheaper than one more
/// slice in the system call.
const SHARE_FROM: usize = 4096;

/// Slices handed to one vectored write; the kernel takes 1024 at most, and a few dozen already fill
/// a socket buffer.
pub const MAX_SLICES: usize = 64;

/// Bytes queued for a socket: small pieces copied together, large values shared.
#[derive(Default, Debug)]
pub struct OutQueue {
    /// Written before `tail`.
    chunks: VecDeque<Bytes>,
    tail: Vec<u8>,
    /// How much of `tail` is written already.
    head: usize,
    len: usize,
}

impl OutQueue {
    /// An empty one, with room for this many bytes.
    pub fn with_room(bytes: usize) -> OutQueue {
        OutQueue { tail: Vec::with_capacity(bytes), ..OutQueue::default() }
    }

    /// Bytes that lie together at the end: all, but where shared ones lie between.
    pub fn gathered(&self) -> usize {
        self.tail.len()
    }

    /// Bytes still to be written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is left to be written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether its memory is so little that it may be kept for later.
    pub fn is_small(&self) -> bool {
        self.tail.capacity() <= 16 * 1024
    }

    /// Queues a copy.
    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Queues a number in decimal.
    pub fn put_number(&mut self, number: impl itoa::Integer) {
        let mut buffer = itoa::Buffer::new();
        self.put(buffer.format(number).as_bytes());
    }

    /// Queues a part of what somebody else holds too: copied when small, shared when large.
    pub fn put_part(&mut self, bytes: &Bytes, part: Range<usize>) {
        if part.len() < SHARE_FROM { self.put(&bytes[part]) } else { self.put_shared(bytes.slice(part)) }
    }

    /// Queues bytes that somebody else may hold too: copied when small, shared when large.
    pub fn put_shared(&mut self, bytes: Bytes) {
        if bytes.len() < SHARE_FROM {
            return self.put(&bytes);
        }
        if self.head < self.tail.len() {
            let mut small = Bytes::from(std::mem::take(&mut self.tail));
            small.advance(self.head);
            self.chunks.push_back(small);
        } else {
            self.tail.clear();
        }
        self.head = 0;
        self.len += bytes.len();
        self.chunks.push_back(bytes);
    }

    /// Queues what another one holds.
    pub fn append(&mut self, other: OutQueue) {
        if self.is_empty() {
            *self = other;
            return;
        }
        other.chunks.into_iter().for_each(|chunk| self.put_shared(chunk));
        self.put(&other.tail[other.head..]);
    }

    /// Keeps the first bytes, and forgets the others.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.len = len;
        let mut left = len;
        for chunk in &mut self.chunks {
            chunk.truncate(left);
            left -= chunk.len();
        }
        self.chunks.retain(|chunk| !chunk.is_empty());
        self.tail.truncate(self.head + left);
    }

    /// What is to be written, where it is in one piece.
    pub fn one_piece(&self) -> Option<&[u8]> {
        self.chunks.is_empty().then(|| &self.tail[self.head..])
    }

    /// Fills `slices` with the front of the queue; returns how many.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        if let Some(piece) = self.one_piece() {
            slices[0] = IoSlice::new(piece);
            return usize::from(!piece.is_empty());
        }
        let mut count = 0;
        for chunk in self.chunks.iter().take(MAX_SLICES - 1) {
            slices[count] = IoSlice::new(chunk);
            count += 1;
        }
        if self.chunks.len() < MAX_SLICES && self.head < self.tail.len() {
            slices[count] = IoSlice::new(&self.tail[self.head..]);
            count += 1;
        }
        count
    }

    /// Takes `written` bytes off the front.
    pub fn advance(&mut self, mut written: usize) {
        debug_assert!(written <= self.len);
        self.len -= written;
        while let Some(front) = self.chunks.front_mut() {
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.chunks.pop_front();
        }
        self.head += written;
        if self.head == self.tail.len() {
            self.tail.clear();
            self.head = 0;
            // A burst must not leave its memory with an idle connection.
            if self.tail.capacity() > 64 * 1024 {
                self.tail = Vec::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut OutQueue, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = queue.slices(&mut slices);
            let flat: Vec<u8> = slices[..count].iter().flat_map(|s| s.iter().copied()).take(step).collect();
            assert!(!flat.is_empty(), "a queue that is not empty offers something to write");
            all.extend_from_slice(&flat);
            queue.advance(flat.len());
        }
        all
    }

    #[test]
    fn keeps_the_order_of_small_and_shared_pieces_at_every_step_size() {
        for step in [1, 3, 4095, 4096, 5000, 100_000] {
            let mut queue = OutQueue::default();
            let big = Bytes::from(vec![b'x'; 5000]);
            let mut expected = Vec::new();
            for i in 0..80 {
                queue.put(b"head ");
                queue.put_number(i);
                expected.extend_from_slice(format!("head {i}").as_bytes());
                if i % 3 == 0 {
                    queue.put_shared(big.clone());
                    expected.extend_from_slice(&big);
                }
                if i % 7 == 0 {
                    queue.put_shared(Bytes::from_static(b"small"));
                    expected.extend_from_slice(b"small");
                }
            }
            assert_eq!(queue.len(), expected.len());
            assert!(drain(&mut queue, step) == expected, "step {step}");
            assert_eq!(queue.len(), 0);
        }
    }
    #[test]
    fn is_cut_and_joined_at_every_place() {
        let filled = |piece: &[u8]| {
            let mut queue = OutQueue::default();
            queue.put(b"written");
            queue.put_shared(Bytes::from(piece.repeat(SHARE_FROM)));
            queue.put(b"tail");
            queue.advance(7);
            queue
        };
        let all = drain(&mut filled(b"xy"), 100_000);
        for len in [0, 1, SHARE_FROM, 2 * SHARE_FROM, 2 * SHARE_FROM + 1, 2 * SHARE_FROM + 4, 100_000] {
            let mut queue = filled(b"xy");
            queue.truncate(len);
            assert_eq!(queue.len(), len.min(all.len()));
            queue.put(b"behind");
            assert!(drain(&mut queue, 5000) == [&all[..len.min(all.len())], b"behind"].concat(), "{len}");
            for before in [false, true] {
                let mut joined = OutQueue::default();
                if before {
                    joined.put(b"before");
                }
                let mut other = filled(b"xy");
                other.truncate(len);
                joined.append(other);
                joined.put(b"behind");
                let expected =
                    [if before { &b"before"[..] } else { b"" }, &all[..len.min(all.len())], b"behind"].concat();
                assert!(joined.len() == expected.len() && drain(&mut joined, 5000) == expected, "{before} {len}");
            }
        }
    }
}
