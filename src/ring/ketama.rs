//! libmemcached's ketama-compatible consistent hashing (`MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED` with
//! MD5).
//!
//! Every server gets points on a circle of 32-bit numbers; a key belongs to the first point at or
//! after its own hash. The layout follows libmemcached's `update_continuum` to the letter, its use
//! of single-precision floats included: a client library that used to place keys itself must find
//! them where the proxy puts them.

use std::fmt::Write;

use md5::{Digest, Md5};

use super::spec::{DEFAULT_PORT, ServerSpec};

/// Points of a server of average weight: 40 digests, each cut into 4 points.
const POINTS_PER_SERVER: f32 = 160.0;
/// An MD5 digest holds four 32-bit points.
const POINTS_PER_HASH: usize = 4;

/// One ring of points. Two arrays, so that the binary search touches nothing but the points.
#[derive(Clone, Debug)]
pub(super) struct Continuum {
    /// Ascending.
    points: Box<[u32]>,
    /// The server that owns the point of the same index.
    owners: Box<[u16]>,
}

impl Continuum {
    pub(super) fn new(servers: &[ServerSpec]) -> Continuum {
        let total_weight: u64 = servers.iter().map(|server| u64::from(server.weight)).sum();
        let mut continuum: Vec<(u32, u16)> = Vec::new();
        let mut name = String::new();
        for (index, server) in servers.iter().enumerate() {
            for digest_index in 0..digests(server.weight, total_weight, servers.len()) {
                name.clear();
                // libmemcached leaves the default port out of the name.
                let written = if server.addr.port == DEFAULT_PORT {
                    write!(name, "{}-{digest_index}", server.addr.host)
                } else {
                    write!(name, "{}:{}-{digest_index}", server.addr.host, server.addr.port)
                };
                debug_assert!(written.is_ok(), "writing to a String cannot fail");
                let digest: [u8; 16] = Md5::digest(name.as_bytes()).into();
                let (words, _) = digest.as_chunks::<POINTS_PER_HASH>();
                continuum.extend(words.iter().map(|word| (u32::from_le_bytes(*word), index as u16)));
            }
        }
        // Stable: of two servers on one point the one given first wins, as with glibc's (merging)
        // qsort under libmemcached.
        continuum.sort_by_key(|&(point, _)| point);
        Continuum {
            points: continuum.iter().map(|&(point, _)| point).collect(),
            owners: continuum.iter().map(|&(_, owner)| owner).collect(),
        }
    }

    /// Where an arc ends, ascending.
    pub(super) fn points(&self) -> impl Iterator<Item = u32> {
        self.points.iter().copied()
    }

    /// The server that owns a hash; 0 on an empty ring.
    pub(super) fn owner(&self, hash: u32) -> usize {
        let at = self.points.partition_point(|&point| point < hash);
        // Past the last point the circle starts again.
        self.owners.get(at).or(self.owners.first()).map_or(0, |&owner| usize::from(owner))
    }
}

/// How many digests a server puts on the circle. Floats and their rounding as in libmemcached.
fn digests(weight: u32, total_weight: u64, servers: usize) -> u32 {
    let share = weight as f32 / total_weight as f32;
    let exact = share * POINTS_PER_SERVER / POINTS_PER_HASH as f32 * servers as f32;
    (f64::from(exact) + 0.000_000_000_1) as f32 as u32
}

/// A key's place on the circle: the first four bytes of its MD5, little endian.
pub(super) fn hash(key: &[u8]) -> u32 {
    let digest: [u8; 16] = Md5::digest(key).into();
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Distribution, Topology};
    use std::collections::HashMap;

    #[test]
    fn equals_every_line_of_libmemcacheds_vectors() {
        let rings: HashMap<&str, Topology> = [
            ("three", &["10.0.0.1", "10.0.0.2", "10.0.0.3"][..]),
            ("ports", &["127.0.0.1:11311", "127.0.0.1:11312", "127.0.0.1:11313", "127.0.0.1:11314"]),
            (
                "five",
                &[
                    "192.168.1.193:11211",
                    "192.168.1.193:11212",
                    "192.168.1.197:11211",
                    "192.168.1.198:12000",
                    "192.168.1.199:11211",
                ],
            ),
            ("weighted", &["10.0.0.1:11211:1", "10.0.0.2:11211:2", "10.0.0.3:11211:5"]),
        ]
        .into_iter()
        .map(|(name, servers)| {
            let specs: Vec<ServerSpec> = servers.iter().map(|server| server.parse().unwrap()).collect();
            (name, Topology::new(&specs, &[], Distribution::Ketama))
        })
        .collect();
        let mut lines = 0;
        for line in
            include_str!("../../tests/vectors/ketama-libmemcached.tsv").lines().filter(|line| !line.starts_with('#'))
        {
            let columns: Vec<&str> = line.split('\t').collect();
            let ring = &rings[columns[0]];
            let owner = ring.nodes_of(ring.pair_of(columns[1].as_bytes())).0;
            assert_eq!(ring.addr(owner).to_string(), columns[2], "{} on ring {}", columns[1], columns[0]);
            lines += 1;
        }
        assert_eq!(lines, 2036);
    }

    #[test]
    fn shares_follow_the_weights() {
        assert_eq!([digests(1, 3, 3), digests(1, 8, 3), digests(2, 8, 3), digests(5, 8, 3)], [40, 15, 30, 75]);
        assert_eq!(digests(1, 1, 1), 40);
        assert_eq!(digests(u32::MAX, u64::from(u32::MAX), 1), 40);
    }

    #[test]
    fn a_tie_goes_to_the_server_given_first() {
        let same: Vec<ServerSpec> = ["a", "a"].iter().map(|name| name.parse().unwrap()).collect();
        let continuum = Continuum::new(&same);
        assert!((0..1000u32).all(|i| continuum.owner(i.wrapping_mul(0x9e37_79b9)) == 0));
        assert_eq!((continuum.owner(0), continuum.owner(u32::MAX)), (0, 0));
        assert_eq!(Continuum::new(&[]).owner(7), 0);
    }
}
