//! Placement: which primary and which backup own a key. Pure.

mod hash;
mod ketama;
mod modula;
mod spec;

use md5::{Digest, Md5};

use crate::ids::{KeyId, NodeId, PairId, Place};
use ketama::Continuum;

pub use spec::{NodeAddr, ServerSpec, SpecError};

/// How keys are spread over the servers of one ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distribution {
    /// magent's: DJB hash masked to 31 bits, modulo the number of servers in the order given.
    Modula,
    /// libmemcached's ketama-compatible consistent hashing (`-k`).
    Ketama,
}

/// The nodes, the two rings, and the pairs they make. Fixed while the proxy runs.
///
/// Nodes are numbered primaries first, then backups, each in the order given. Pair `i * m + j`
/// joins primary `i` and the `j`-th of `m` backups; without backups every primary is a pair of its
/// own.
#[derive(Clone, Debug)]
pub struct Topology {
    nodes: Vec<(NodeAddr, Place)>,
    primaries: usize,
    backups: usize,
    rings: Rings,
    fingerprint: u64,
}

/// Both rings use the same distribution, so a key is hashed once for the two of them.
#[derive(Clone, Debug)]
enum Rings {
    Modula,
    Ketama {
        primaries: Continuum,
        backups: Continuum,
        /// By pair: whether the two rings share an arc.
        used: Box<[bool]>,
    },
}

impl Topology {
    /// Lays out the rings.
    ///
    /// # Panics
    ///
    /// Without a primary, or with more than 65,535 nodes: settings are checked before they get
    /// here.
    pub fn new(primaries: &[ServerSpec], backups: &[ServerSpec], distribution: Distribution) -> Topology {
        assert!(!primaries.is_empty(), "a ring needs at least one primary");
        assert!(primaries.len() + backups.len() <= usize::from(u16::MAX), "at most 65535 nodes");
        let on = |place| move |spec: &ServerSpec| (spec.addr.clone(), place);
        let rings = match distribution {
            Distribution::Modula => Rings::Modula,
            Distribution::Ketama => {
                let (first, second) = (Continuum::new(primaries), Continuum::new(backups));
                let columns = backups.len().max(1);
                let mut used = vec![false; primaries.len() * columns].into_boxed_slice();
                // Between two neighbouring points of either ring the owners are the same; past the
                // last one the circle starts again.
                for hash in first.points().chain(second.points()).chain([u32::MAX]) {
                    used[first.owner(hash) * columns + second.owner(hash)] = true;
                }
                Rings::Ketama { primaries: first, backups: second, used }
            }
        };
        Topology {
            nodes: primaries.iter().map(on(Place::Primary)).chain(backups.iter().map(on(Place::Backup))).collect(),
            primaries: primaries.len(),
            backups: backups.len(),
            rings,
            fingerprint: fingerprint(primaries, backups, distribution),
        }
    }

    /// The pair that owns a key.
    pub fn pair_of(&self, key: &[u8]) -> PairId {
        let columns = self.columns();
        let (primary, column) = match &self.rings {
            Rings::Modula => {
                // A 32-bit division: 64 bits take some processors twice as long.
                let hash = modula::hash(key);
                ((hash % self.primaries as u32) as usize, (hash % columns as u32) as usize)
            }
            Rings::Ketama { primaries, backups, .. } => {
                let hash = ketama::hash(key);
                (primaries.owner(hash), backups.owner(hash))
            }
        };
        PairId((primary * columns + column) as u32)
    }

    /// A hash that chooses which worker and connection serve a key.
    ///
    /// It has nothing in common with the placement on the rings: the keys of one node spread over
    /// all workers. It is the same for the life of the process, and must not be stored.
    pub fn key_hash(key: &[u8]) -> u32 {
        hash::key_hash(key)
    }

    /// The same in more bits: so many that no two keys meet.
    pub fn key_id(key: &[u8]) -> KeyId {
        KeyId(hash::key_id(key))
    }

    /// The two nodes of a pair; no backup in a plain sharding proxy.
    pub fn nodes_of(&self, pair: PairId) -> (NodeId, Option<NodeId>) {
        let columns = self.columns();
        let primary = NodeId((pair.index() / columns) as u16);
        let backup = (self.backups > 0).then(|| NodeId((self.primaries + pair.index() % columns) as u16));
        (primary, backup)
    }

    /// The pair's node on one of the two rings.
    pub fn node_at(&self, pair: PairId, place: Place) -> Option<NodeId> {
        let (primary, backup) = self.nodes_of(pair);
        match place {
            Place::Primary => Some(primary),
            Place::Backup => backup,
        }
    }

    /// On which ring a node stands.
    pub fn place(&self, node: NodeId) -> Place {
        self.nodes[node.index()].1
    }

    /// Where a node listens.
    pub fn addr(&self, node: NodeId) -> &NodeAddr {
        &self.nodes[node.index()].0
    }

    /// All pairs that a node has a part in, in ascending order.
    pub fn pairs_of(&self, node: NodeId) -> impl Iterator<Item = PairId> + use<> {
        let columns = self.columns();
        let (first, step, count) = match self.place(node) {
            Place::Primary => (node.index() * columns, 1, columns),
            Place::Backup => (node.index() - self.primaries, columns, self.primaries),
        };
        (0..count).map(move |i| PairId((first + i * step) as u32))
    }

    /// All nodes, primaries first.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u16).map(NodeId)
    }

    /// All pairs, reachable or not.
    pub fn pairs(&self) -> impl ExactSizeIterator<Item = PairId> + use<> {
        (0..self.pair_count() as u32).map(PairId)
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Number of pairs.
    pub fn pair_count(&self) -> usize {
        self.primaries * self.columns()
    }

    /// Whether items are held twice at all.
    pub fn has_backups(&self) -> bool {
        self.backups > 0
    }

    /// The node that listens at `host:port`, `host` (default port) or `[v6]:port`, spelled as in
    /// the settings.
    pub fn node_by_name(&self, name: &str) -> Option<NodeId> {
        let addr: NodeAddr = name.parse().ok()?;
        self.nodes().find(|&node| *self.addr(node) == addr)
    }

    /// Changes when a key may have changed its owner or a node its number: nodes in order,
    /// distribution, ketama weights.
    ///
    /// Stable over restarts and releases; kept in the nodes' markers.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Whether any key can belong to a pair.
    ///
    /// Modula takes both remainders of one hash, so with n primaries and m backups they agree
    /// modulo gcd(n, m): with two of each, the pairs (0, 1) and (1, 0) never get a key.
    pub fn pair_is_used(&self, pair: PairId) -> bool {
        let columns = self.columns();
        match &self.rings {
            Rings::Modula => {
                let common = gcd(self.primaries, columns);
                (pair.index() / columns) % common == (pair.index() % columns) % common
            }
            Rings::Ketama { used, .. } => used[pair.index()],
        }
    }

    /// Backups per primary in the numbering of pairs; one imaginary column when there are none.
    fn columns(&self) -> usize {
        self.backups.max(1)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// MD5 of a canonical text, because its value must outlive this program's version and the standard
/// library's hasher.
fn fingerprint(primaries: &[ServerSpec], backups: &[ServerSpec], distribution: Distribution) -> u64 {
    let mut text = match distribution {
        Distribution::Modula => String::from("modula\n"),
        Distribution::Ketama => String::from("ketama\n"),
    };
    for (ring, specs) in [("primary", primaries), ("backup", backups)] {
        for spec in specs {
            // Modula knows no weights: changing one there must not make every node look foreign.
            let weight = if distribution == Distribution::Ketama { spec.weight } else { 1 };
            text.push_str(&format!("{ring} {} {weight}\n", spec.addr));
        }
    }
    let digest = Md5::digest(text.as_bytes());
    digest.iter().take(8).fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn specs(names: &[&str]) -> Vec<ServerSpec> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn topology(primaries: usize, backups: usize, distribution: Distribution) -> Topology {
        let ring = |net: &str, count: usize| -> Vec<ServerSpec> {
            (0..count).map(|i| format!("10.0.{net}.{i}:11211").parse().unwrap()).collect()
        };
        Topology::new(&ring("1", primaries), &ring("2", backups), distribution)
    }

    #[test]
    fn both_rings_place_like_a_ring_of_their_own() {
        for distribution in [Distribution::Modula, Distribution::Ketama] {
            let both = Topology::new(&specs(&["a", "b:1", "c:2"]), &specs(&["d", "e:1", "f", "g", "h"]), distribution);
            let primaries = Topology::new(&specs(&["a", "b:1", "c:2"]), &[], distribution);
            let backups = Topology::new(&specs(&["d", "e:1", "f", "g", "h"]), &[], distribution);
            for i in 0..2000 {
                let key = format!("key:{i}");
                let (primary, backup) = both.nodes_of(both.pair_of(key.as_bytes()));
                assert_eq!(primary.index(), primaries.pair_of(key.as_bytes()).index());
                assert_eq!(backup.unwrap().index(), 3 + backups.pair_of(key.as_bytes()).index());
            }
        }
    }

    #[test]
    fn pairs_and_nodes_agree() {
        for (primaries, backups) in [(1, 0), (3, 0), (1, 1), (2, 2), (3, 2), (2, 5)] {
            let topology = topology(primaries, backups, Distribution::Modula);
            assert_eq!(topology.nodes().len(), topology.node_count());
            assert_eq!(topology.pairs().len(), topology.pair_count());
            assert_eq!(topology.has_backups(), backups > 0);
            for node in topology.nodes() {
                assert_eq!(topology.place(node) == Place::Primary, node.index() < primaries);
                let listed: Vec<_> = topology.pairs_of(node).collect();
                let expected: Vec<_> = topology
                    .pairs()
                    .filter(|&pair| topology.node_at(pair, topology.place(node)) == Some(node))
                    .collect();
                assert_eq!(listed, expected);
                assert_eq!(topology.node_by_name(&topology.addr(node).to_string()), Some(node));
            }
        }
    }

    #[test]
    fn unused_pairs_get_no_key_and_used_ones_do() {
        for (primaries, backups) in [(2, 2), (2, 4), (3, 2), (4, 6), (1, 3), (3, 0)] {
            let topology = topology(primaries, backups, Distribution::Modula);
            let seen: HashSet<_> = (0..5000).map(|i| topology.pair_of(format!("k{i}").as_bytes())).collect();
            for pair in topology.pairs() {
                assert_eq!(seen.contains(&pair), topology.pair_is_used(pair), "{primaries}x{backups} {pair:?}");
            }
        }
    }

    /// Also where arcs are few: a server of next to no weight shares them with some of the other
    /// ring's only.
    #[test]
    fn unused_pairs_of_ketama_get_no_key() {
        let (mut used, mut unused) = (0, 0);
        for backups in [&["d:1:1"][..], &["d:1:1", "e:1:1"], &["d:1:1", "e:1:60", "f:1:60", "g:1:60"]] {
            let primaries = specs(&["a:1:60", "b:1:1", "c:1:60", "h:1:60"]);
            let topology = Topology::new(&primaries, &specs(backups), Distribution::Ketama);
            let seen: HashSet<_> = (0..200_000).map(|i| topology.pair_of(format!("k{i}").as_bytes())).collect();
            for pair in topology.pairs() {
                assert_eq!(seen.contains(&pair), topology.pair_is_used(pair), "{backups:?} {pair:?}");
            }
            used += seen.len();
            unused += topology.pair_count() - seen.len();
        }
        assert!(used > 0 && unused > 0, "{used} {unused}");
    }

    #[test]
    fn fingerprint_changes_with_the_ring_only() {
        let base = |distribution| Topology::new(&specs(&["a", "b"]), &specs(&["c"]), distribution).fingerprint();
        let (modula, ketama) = (base(Distribution::Modula), base(Distribution::Ketama));
        assert_eq!(modula, 0x7ec7_58d3_6e3d_f2af, "it is stored on the nodes: it must not change between releases");
        assert_ne!(modula, ketama);
        assert_eq!(
            modula,
            Topology::new(&specs(&["a:11211", "b"]), &specs(&["c"]), Distribution::Modula).fingerprint()
        );
        assert_eq!(
            modula,
            Topology::new(&specs(&["a", "b:11211:2"]), &specs(&["c"]), Distribution::Modula).fingerprint()
        );
        for (primaries, backups) in
            [(&["b", "a"][..], &["c"][..]), (&["a", "b", "c"], &[]), (&["a"], &["b", "c"]), (&["a", "b:1"], &["c"])]
        {
            let other = Topology::new(&specs(primaries), &specs(backups), Distribution::Modula).fingerprint();
            assert_ne!(modula, other);
        }
        let heavier = Topology::new(&specs(&["a", "b:11211:2"]), &specs(&["c"]), Distribution::Ketama).fingerprint();
        assert_ne!(ketama, heavier);
    }

    #[test]
    fn names_are_found_in_every_spelling() {
        let topology = Topology::new(&specs(&["cache1", "[::1]:11300"]), &specs(&["10.0.0.1:7"]), Distribution::Modula);
        assert_eq!(topology.node_by_name("cache1"), Some(NodeId(0)));
        assert_eq!(topology.node_by_name("cache1:11211"), Some(NodeId(0)));
        assert_eq!(topology.node_by_name("[::1]:11300"), Some(NodeId(1)));
        assert_eq!(topology.node_by_name("10.0.0.1:7"), Some(NodeId(2)));
        assert_eq!(topology.node_by_name("10.0.0.1"), None);
        assert_eq!(topology.node_by_name("::1:11300"), None);
        assert_eq!(topology.node_by_name(""), None);
    }

    #[test]
    fn keys_of_one_node_spread_over_workers() {
        let topology = topology(4, 4, Distribution::Modula);
        let mut load = [0u32; 8];
        for i in 0..80_000 {
            let key = format!("key:{i}");
            if topology.nodes_of(topology.pair_of(key.as_bytes())).0 == NodeId(1) {
                load[(Topology::key_hash(key.as_bytes()) % 8) as usize] += 1;
            }
        }
        let mean = load.iter().sum::<u32>() / 8;
        assert!(load.iter().all(|&n| n > mean * 9 / 10 && n < mean * 11 / 10), "{load:?}");
    }
}
