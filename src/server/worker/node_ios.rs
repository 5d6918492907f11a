//! A worker's sockets to nodes.

use std::ops::{Index, IndexMut};

use tokio::task::AbortHandle;

use crate::backend::NodeStream;
use crate::ids::NodeId;
use crate::proxy::{ConnId, Lane};
use crate::server::uring::SocketId;

pub(super) struct NodeIo {
    pub(super) stream: NodeSocket,
    /// Its writing half is to be closed, or is.
    pub(super) shut: bool,
    /// The task that reads it; those on io_uring have none.
    pub(super) reader: Option<AbortHandle>,
}

pub(super) enum NodeSocket {
    /// With a task that reads.
    Stream(NodeStream),
    /// On the worker's io_uring, in this place.
    Uring(SocketId),
}

/// See the module's words. `None`: not connected.
pub(super) struct NodeIos {
    nodes: Vec<Vec<Option<NodeIo>>>,
}

impl NodeIos {
    pub(super) fn new(nodes: usize, lanes: usize) -> NodeIos {
        NodeIos { nodes: (0..nodes).map(|_| (0..lanes).map(|_| None).collect()).collect() }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ConnId> + use<> {
        let (nodes, lanes) = (self.nodes.len() as u16, self.nodes.first().map_or(0, Vec::len) as u16);
        (0..nodes).flat_map(move |node| (0..lanes).map(move |lane| ConnId { node: NodeId(node), lane: Lane(lane) }))
    }
}

impl Index<ConnId> for NodeIos {
    type Output = Option<NodeIo>;

    #[inline(always)]
    fn index(&self, at: ConnId) -> &Option<NodeIo> {
        &self.nodes[at.node.index()][usize::from(at.lane.0)]
    }
}

impl IndexMut<ConnId> for NodeIos {
    #[inline(always)]
    fn index_mut(&mut self, at: ConnId) -> &mut Option<NodeIo> {
        &mut self.nodes[at.node.index()][usize::from(at.lane.0)]
    }
}
