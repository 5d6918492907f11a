//! Small deterministic fuzzing for the parsers' tests: no dependency, the same run every time.

/// Xorshift64*: enough for choosing test bytes.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed | 1)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % bound
    }

    pub(super) fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len())]
    }

    /// Up to `len_max` bytes of any kind.
    pub(super) fn bytes(&mut self, len_max: usize) -> Vec<u8> {
        (0..self.below(len_max + 1)).map(|_| self.below(256) as u8).collect()
    }

    /// One to four edits: a bit flipped, a byte replaced by one that means something, a piece cut
    /// out, doubled or inserted.
    pub(super) fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = b" \r\n\0\t-09"[self.below(8)],
                2 => drop(bytes.drain(at..(at + self.below(9)).min(bytes.len()))),
                3 => {
                    let piece = bytes[at..(at + self.below(9)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => drop(bytes.splice(at..at, self.bytes(5))),
            }
        }
    }
}
