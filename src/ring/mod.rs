//! Placement: which primary and which backup own a key. Pure.

use std::fmt;

use crate::ids::{NodeId, PairId, Place};

/// Where a node listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NodeAddr {
    /// Host name or literal address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for NodeAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A server as given on the command line: `host:port[:weight]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerSpec {
    /// Where it listens.
    pub addr: NodeAddr,
    /// Its share of the ketama ring, 1 unless given. Modula knows no weights.
    pub weight: u32,
}

/// How keys are spread over the servers of one ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distribution {
    /// magent's: DJB hash masked to 31 bits, modulo the number of servers in the order given.
    Modula,
    /// libmemcached's ketama-compatible consistent hashing (`-k`).
    Ketama,
}

/// The nodes, the two rings, and the pairs they make. Fixed while the proxy runs.
#[derive(Clone, Debug)]
pub struct Topology {
    nodes: Vec<(NodeAddr, Place)>,
    primaries: usize,
    backups: usize,
}

impl Topology {
    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Number of pairs.
    pub fn pair_count(&self) -> usize {
        self.primaries * self.backups.max(1)
    }

    /// The two nodes of a pair; no backup in a plain sharding proxy.
    pub fn nodes_of(&self, pair: PairId) -> (NodeId, Option<NodeId>) {
        let columns = self.backups.max(1);
        let primary = NodeId((pair.index() / columns) as u16);
        let backup = (self.backups > 0).then(|| NodeId((self.primaries + pair.index() % columns) as u16));
        (primary, backup)
    }
}
