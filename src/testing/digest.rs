//! A quick hash for searches that remember hundreds of thousands of states. Nobody chooses their
//! input to make it slow, so it needs none of the standard library's care, which took a third of an
//! exploration's time.
#![allow(dead_code)] // Every crate of tests uses its part of it.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// Words, bytes or text, as one number.
#[derive(Clone, Copy, Debug)]
pub struct Digest(u64);

/// For sets and maps.
pub type Quick = BuildHasherDefault<Digest>;

impl Default for Digest {
    fn default() -> Digest {
        Digest::of(0)
    }
}

impl Digest {
    /// Another hash for each seed.
    pub fn of(seed: u64) -> Digest {
        let mut digest = Digest(0x243f_6a88_85a3_08d3);
        digest.add(seed);
        digest
    }

    #[inline(always)]
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
    }
}

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((word, more)) = rest.split_first_chunk() {
            self.add(u64::from_le_bytes(*word));
            rest = more;
        }
        // The last bytes, some of them a second time: together with the length they tell all. (What
        // is written in two pieces is never written in one.)
        let last = match *bytes {
            [.., a, b, c, d, e, f, g, h] => [a, b, c, d, e, f, g, h],
            [a, b, c, d, .., e, f, g] => [a, b, c, d, e, f, g, 0],
            [a, b, c, d, e, f] => [a, b, c, d, e, f, 0, 0],
            [a, b, c, d, e] => [a, b, c, d, e, 0, 0, 0],
            [a, b, c, d] => [a, b, c, d, 0, 0, 0, 0],
            [a, b, c] => [a, b, c, 0, 0, 0, 0, 0],
            [a, b] => [a, b, 0, 0, 0, 0, 0, 0],
            [a] => [a, 0, 0, 0, 0, 0, 0, 0],
            [] => [0; 8],
        };
        self.add(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56));
    }

    fn write_u8(&mut self, n: u8) {
        self.add(n.into());
    }

    fn write_u16(&mut self, n: u16) {
        self.add(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.add(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.add(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.add(n as u64);
    }

    fn finish(&self) -> u64 {
        let mut last = *self;
        last.add(0);
        last.0
    }
}

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// What differs in one byte, in its length or in where it is cut, is another number.
    #[test]
    fn what_differs_has_another_number() {
        let mut seen = HashSet::new();
        let mut count = 0;
        let mut add = |pieces: &[&[u8]]| {
            let mut digest = Digest::default();
            pieces.iter().for_each(|piece| digest.write(piece));
            seen.insert(digest.finish());
            count += 1;
        };
        let text: Vec<u8> = (0..40).collect();
        for len in 0..=text.len() {
            add(&[&text[..len]]);
            for at in 0..len {
                let mut other = text[..len].to_vec();
                other[at] ^= 0x80;
                add(&[&other]);
                if at > 0 {
                    add(&[&text[..at], &text[at..len]]);
                }
            }
        }
        assert_eq!(seen.len(), count);
    }
}
