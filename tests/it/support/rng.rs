//! A small seeded generator (splitmix64): the same seed gives the same choices on every machine and
//! version.

/// Seeded random numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Streams of one seed that do not resemble one another.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Rng(seed ^ stream.wrapping_mul(0xd605_1d37_3a1c_4e2b));
        rng.next();
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..bound`; `bound` is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True in `percent` of all cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// Any bytes, `\r\n` among them more often than chance would have it.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
        if len >= 2 && self.percent(30) {
            let at = self.below(len - 1);
            bytes[at..at + 2].copy_from_slice(b"\r\n");
        }
        bytes
    }
}
