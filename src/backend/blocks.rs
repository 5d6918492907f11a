//! Memory that answers are read into, used again once nobody holds any of it.
//!
//! A block is the system's own and goes back to it when it is freed, so a new one costs a page
//! fault for every 4 KiB: two fifths of the CPU of copying items of 10 KiB (3.3 of 7.8 µs each).

use std::collections::VecDeque;

use bytes::BytesMut;

/// Size of a block, in bytes. Large, because every system call costs as much as several items.
pub(super) const BLOCK_BYTES: usize = 256 * 1024;
/// Full blocks are kept up to this many bytes: the values that a connection's owner has under way
/// lie in them. Beyond it the oldest is freed by the last who holds any of it.
const KEPT_BYTES: usize = 4 << 20;

/// The blocks of one connection beside the one that is read into.
#[derive(Default, Debug)]
pub(super) struct Blocks {
    /// Each with its whole size in bytes; oldest first.
    full: VecDeque<(BytesMut, usize)>,
    kept_bytes: usize,
    /// Size of the block that is read into; 0 before the first.
    size: usize,
}

impl Blocks {
    /// Makes room in `input` for `want` bytes more; what is in it stays.
    pub(super) fn make_room(&mut self, input: &mut BytesMut, want: usize) {
        if input.capacity() - input.len() >= want || input.try_reclaim(want) {
            return;
        }
        let need = input.len() + want;
        let (mut block, size) = self.take(need).unwrap_or_else(|| {
            let size = need.max(BLOCK_BYTES);
            (BytesMut::with_capacity(size), size)
        });
        block.extend_from_slice(input);
        let mut full = std::mem::replace(input, block);
        full.clear();
        let full_size = std::mem::replace(&mut self.size, size);
        if full_size == 0 {
            return;
        }
        self.kept_bytes += full_size;
        self.full.push_back((full, full_size));
        while self.kept_bytes > KEPT_BYTES
            && let Some((_, size)) = self.full.pop_front()
        {
            self.kept_bytes -= size;
        }
    }

    /// A block without references to its memory, with room for `need` bytes.
    fn take(&mut self, need: usize) -> Option<(BytesMut, usize)> {
        let free = self.full.iter_mut().position(|(block, _)| block.try_reclaim(need))?;
        let (block, size) = self.full.remove(free)?;
        self.kept_bytes -= size;
        Some((block, size))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Reads until the block is full; returns where it begins, and what was read.
    fn fill(blocks: &mut Blocks, input: &mut BytesMut) -> (*const u8, Bytes) {
        blocks.make_room(input, BLOCK_BYTES / 4);
        let begin = input.as_ptr();
        while input.capacity() - input.len() >= BLOCK_BYTES / 4 {
            input.extend_from_slice(&[b'x'; BLOCK_BYTES / 4]);
        }
        (begin, input.split().freeze())
    }

    #[test]
    fn a_block_serves_again_once_nobody_holds_any_of_it() {
        let (mut blocks, mut input) = (Blocks::default(), BytesMut::new());
        let (first, held) = fill(&mut blocks, &mut input);
        let (second, also_held) = fill(&mut blocks, &mut input);
        assert_ne!(first, second, "somebody holds the first");
        drop(held.slice(10..));
        drop(held);
        assert_eq!(fill(&mut blocks, &mut input).0, first);
        drop(also_held);
    }

    #[test]
    fn what_was_read_of_the_next_answer_goes_with_it() {
        let (mut blocks, mut input) = (Blocks::default(), BytesMut::new());
        blocks.make_room(&mut input, BLOCK_BYTES);
        input.extend_from_slice(&vec![b'x'; BLOCK_BYTES - 3]);
        input.extend_from_slice(b"abc");
        let held = input.split_to(BLOCK_BYTES - 3);
        blocks.make_room(&mut input, 1 << 20);
        assert_eq!((&input[..], input.capacity() >= 3 + (1 << 20)), (&b"abc"[..], true));
        drop(held);
    }

    #[test]
    fn no_more_is_kept_than_the_bound() {
        let (mut blocks, mut input) = (Blocks::default(), BytesMut::new());
        let mut held = Vec::new();
        for _ in 0..3 * KEPT_BYTES / BLOCK_BYTES {
            held.push(fill(&mut blocks, &mut input).1);
            assert!(blocks.kept_bytes <= KEPT_BYTES);
            assert_eq!(blocks.kept_bytes, blocks.full.iter().map(|(_, size)| size).sum::<usize>());
        }
        assert_eq!(blocks.kept_bytes, KEPT_BYTES);
    }
}
