//! magent's default placement: a DJB hash, modulo the number of servers in the order given.

/// DJB's `hash * 33 + byte` from 5381, masked to 31 bits as magent does to keep its `int` from
/// going negative.
///
/// magent adds plain `char`s, which are signed on x86: bytes over 127 subtract. The vectors hold
/// UTF-8 keys that tell.
pub(super) fn hash(key: &[u8]) -> u32 {
    let add = |hash: u32, &byte: &u8| hash.wrapping_mul(33).wrapping_add_signed(i32::from(byte as i8));
    key.iter().fold(5381, add) & 0x7fff_ffff
}

#[cfg(test)]
mod tests {
    use super::hash;
    use crate::ring::{Distribution, ServerSpec, Topology};

    #[test]
    fn equals_every_line_of_magents_vectors() {
        let rings: Vec<(usize, Topology)> = [2usize, 3, 5, 7]
            .into_iter()
            .map(|count| {
                let specs: Vec<ServerSpec> = (0..count).map(|i| format!("n{i}").parse().unwrap()).collect();
                (count, Topology::new(&specs, &[], Distribution::Modula))
            })
            .collect();
        let mut lines = 0;
        for line in include_str!("../../tests/vectors/modula-magent.tsv").lines().filter(|line| !line.starts_with('#'))
        {
            let columns: Vec<&str> = line.split('\t').collect();
            let key = columns[0].as_bytes();
            assert_eq!(hash(key), columns[1].parse::<u32>().unwrap(), "hash of {}", columns[0]);
            for ((count, ring), owner) in rings.iter().zip(&columns[2..]) {
                assert_eq!(ring.pair_of(key).0, owner.parse::<u32>().unwrap(), "{} on {count} servers", columns[0]);
            }
            assert_eq!(columns.len(), 6);
            lines += 1;
        }
        assert_eq!(lines, 510);
    }
}
