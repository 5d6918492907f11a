//! The hash that spreads keys over workers and connections.

/// Odd constants with about half of their bits set, from wyhash; any such would do.
const MULTIPLIERS: [u64; 2] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db];

/// Eight bytes a step, folded by a 64 × 64 → 128 bit product whose halves are mixed: every input
/// bit reaches every output bit.
///
/// Not keyed: who chooses keys may load one worker with them, as he may load one node.
pub(super) fn key_hash(key: &[u8]) -> u32 {
    let mixed = key_id(key);
    (mixed ^ mixed >> 32) as u32
}

/// The hash before it is folded.
#[inline(always)]
pub(super) fn key_id(key: &[u8]) -> u64 {
    let (words, tail) = key.as_chunks::<8>();
    let mut state = MULTIPLIERS[0] ^ key.len() as u64;
    for word in words {
        state = fold(state ^ u64::from_le_bytes(*word), MULTIPLIERS[0]);
    }
    let last = tail.iter().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
    fold(state ^ last, MULTIPLIERS[1])
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    // A zero operand would swallow all that came before: the sum keeps it.
    (product as u64 ^ (product >> 64) as u64).wrapping_add(a)
}

#[cfg(test)]
mod tests {
    use super::key_hash;
    use std::collections::HashSet;

    #[test]
    fn spreads_similar_keys_over_any_number_of_workers() {
        for workers in [2u32, 3, 4, 7, 16, 64] {
            for style in 0..3 {
                let mut load = vec![0u32; workers as usize];
                for i in 0..64_000u32 {
                    let key = match style {
                        0 => format!("key:{i}"),
                        1 => format!("session/{i:032x}/profile"),
                        _ => format!("{:08}", i * 1000),
                    };
                    load[(key_hash(key.as_bytes()) % workers) as usize] += 1;
                }
                let mean = 64_000 / workers;
                let slack = 6 * mean.isqrt() + 1;
                assert!(load.iter().all(|&n| n.abs_diff(mean) < slack), "{workers} workers, style {style}: {load:?}");
            }
        }
    }

    #[test]
    fn length_and_order_count() {
        let keys: [&[u8]; 8] = [b"", b"\0", b"\0\0", b"ab", b"ba", b"abcdefgh", b"abcdefgh\0", b"habcdefg"];
        let hashes: HashSet<u32> = keys.into_iter().map(key_hash).collect();
        assert_eq!(hashes.len(), keys.len());
    }

    #[test]
    fn few_collisions() {
        let hashes: HashSet<u32> = (0..100_000).map(|i| key_hash(format!("user:{i}").as_bytes())).collect();
        // Chance alone gives about one collision.
        assert!(hashes.len() > 99_980, "{}", hashes.len());
    }
}
