//! The enumerated keys that wait to be copied: in memory up to a bound, beyond it in an unlinked temporary file.
//!
//! An enumeration must be drained at full speed (memcached up to 1.6.18 holds item locks while it writes to the socket, so a
//! stalled reader freezes the server), and the copying is slower than that: the keys between them have to lie somewhere.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::{Buf, Bytes, BytesMut};

/// Records are gathered, written and read in segments of about this many bytes.
const SEGMENT_BYTES: usize = 64 * 1024;
/// Before each key: pair (4 bytes), item size (4), key length (2).
const HEADER_BYTES: usize = 10;

/// A key found by enumeration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Found {
    /// What the finder put with it: an index into the job's pairs.
    pub(super) slot: u32,
    /// `size` of the dump line: bytes of the whole item.
    pub(super) size: u32,
    pub(super) key: Bytes,
}

/// First in, first out.
#[derive(Debug)]
pub(super) struct Spool {
    bound_bytes: usize,
    /// Segments in memory, oldest first; the file's segments come after them, then `tail`.
    memory: VecDeque<Bytes>,
    memory_bytes: usize,
    file: Option<File>,
    /// Lengths of the segments in the file that were not read back yet.
    in_file: VecDeque<usize>,
    read_at: u64,
    write_at: u64,
    tail: BytesMut,
    head: Bytes,
    len: usize,
}

impl Spool {
    pub(super) fn new(bound_bytes: usize) -> Spool {
        Spool {
            bound_bytes,
            memory: VecDeque::new(),
            memory_bytes: 0,
            file: None,
            in_file: VecDeque::new(),
            read_at: 0,
            write_at: 0,
            tail: BytesMut::new(),
            head: Bytes::new(),
            len: 0,
        }
    }

    /// One whose temporary file cannot be read back.
    #[cfg(test)]
    pub(super) fn broken() -> Spool {
        Spool { head: Bytes::from_static(b"cut"), len: 1, ..Spool::new(0) }
    }

    /// Number of keys waiting.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends a key. Fails where the temporary file cannot be written.
    ///
    /// The write is a plain one, on the job's own thread: 64 KiB into the page cache of a file nobody syncs.
    pub(super) fn push(&mut self, slot: u32, size: u32, key: &[u8]) -> io::Result<()> {
        let length = u16::try_from(key.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.tail.extend_from_slice(&slot.to_le_bytes());
        self.tail.extend_from_slice(&size.to_le_bytes());
        self.tail.extend_from_slice(&length.to_le_bytes());
        self.tail.extend_from_slice(key);
        self.len += 1;
        if self.tail.len() >= SEGMENT_BYTES {
            self.seal()?;
        }
        Ok(())
    }

    /// Takes the oldest key. Its bytes share their segment's memory.
    pub(super) fn pop(&mut self) -> io::Result<Option<Found>> {
        if self.head.is_empty() && !self.refill()? {
            return Ok(None);
        }
        if self.head.len() < HEADER_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (slot, size, length) = (self.head.get_u32_le(), self.head.get_u32_le(), self.head.get_u16_le());
        if self.head.len() < usize::from(length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.len -= 1;
        Ok(Some(Found { slot, size, key: self.head.split_to(usize::from(length)) }))
    }

    fn seal(&mut self) -> io::Result<()> {
        let segment = self.tail.split().freeze();
        // Order is kept: once segments lie in the file, later ones go behind them.
        if self.in_file.is_empty() && self.memory_bytes + segment.len() <= self.bound_bytes {
            self.memory_bytes += segment.len();
            self.memory.push_back(segment);
            return Ok(());
        }
        if self.in_file.is_empty() {
            (self.read_at, self.write_at) = (0, 0);
        }
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile()?);
        }
        if let Some(file) = &self.file {
            file.write_all_at(&segment, self.write_at)?;
        }
        self.write_at += segment.len() as u64;
        self.in_file.push_back(segment.len());
        Ok(())
    }

    fn refill(&mut self) -> io::Result<bool> {
        if let Some(segment) = self.memory.pop_front() {
            self.memory_bytes -= segment.len();
            self.head = segment;
        } else if let (Some(length), Some(file)) = (self.in_file.pop_front(), &self.file) {
            let mut segment = vec![0; length];
            file.read_exact_at(&mut segment, self.read_at)?;
            self.read_at += length as u64;
            self.head = Bytes::from(segment);
        } else {
            self.head = self.tail.split().freeze();
        }
        Ok(!self.head.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(i: u32) -> Vec<u8> {
        format!("key-{i}-{}", "x".repeat(i as usize % 200)).into_bytes()
    }

    fn check(bound: usize, chunks: &[(u32, u32)]) -> bool {
        let mut spool = Spool::new(bound);
        let (mut pushed, mut popped) = (0, 0);
        let mut used_file = false;
        for &(push, pop) in chunks {
            for _ in 0..push {
                spool.push(pushed, pushed + 1, &key(pushed)).unwrap();
                pushed += 1;
            }
            used_file |= spool.file.is_some();
            assert!(spool.memory_bytes <= bound);
            for _ in 0..pop.min(pushed - popped) {
                let found = spool.pop().unwrap().unwrap();
                assert_eq!((found.slot, found.size, &found.key[..]), (popped, popped + 1, &key(popped)[..]));
                popped += 1;
            }
            assert_eq!(spool.len() as u32, pushed - popped);
        }
        used_file
    }

    #[test]
    fn keeps_the_order_in_memory_and_in_the_file() {
        assert!(!check(1 << 30, &[(10_000, 3), (5, 20_000), (1, 1)]));
        assert!(check(100_000, &[(10_000, 10), (3_000, 12_000), (9_000, 2_000), (4_000, 90_000), (8_000, 8_000)]));
        assert!(check(0, &[(2_000, 2_000), (2_000, 2_000)]));
    }
}
