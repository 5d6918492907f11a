//! A worker's ways to all nodes.

use std::ops::{Index, IndexMut};

use crate::ids::NodeId;
use crate::protocol::reply::ReplyLimits;

use super::handles::{ConnId, Lane};
use super::link::{Conn, Link};

/// See the module's words.
#[derive(Debug)]
pub(super) struct Links {
    links: Vec<Link>,
    /// Connections to each node.
    lanes: u16,
}

impl Links {
    /// To this many nodes, with `lanes` connections to each of them, none open; so have `workers`
    /// in all.
    pub(super) fn new(nodes: usize, lanes: u16, workers: u16) -> Links {
        Links { links: (0..nodes).map(|_| Link::new(lanes, workers)).collect(), lanes }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.links.len() as u16).map(NodeId)
    }

    /// All connections to a node.
    pub(super) fn to(&self, node: NodeId) -> impl Iterator<Item = ConnId> + use<> {
        (0..self.lanes).map(move |lane| ConnId { node, lane: Lane(lane) })
    }

    /// A connection, and what the node may make the worker buffer on it.
    #[inline(always)]
    pub(super) fn limits_and_conn(&mut self, at: ConnId) -> (&ReplyLimits, &mut Conn) {
        let link = &mut self.links[at.node.index()];
        (&link.replies, &mut link.conns[usize::from(at.lane.0)])
    }

    /// The connection to a node that takes all commands on keys of this hash.
    #[inline(always)]
    pub(super) fn of(&self, node: NodeId, hash: u32) -> ConnId {
        let at = ConnId { node, lane: Lane((hash % u32::from(self.lanes)) as u16) };
        match self[at].stand_in {
            None => at,
            Some(lane) => ConnId { node, lane },
        }
    }

    /// This one stands in for none any more: it is gone, with all that was unanswered on it.
    pub(super) fn stands_in_no_more(&mut self, at: ConnId) {
        for conn in &mut self[at.node].conns {
            if conn.stand_in == Some(at.lane) {
                conn.stand_in = None;
            }
        }
    }
}

impl Index<NodeId> for Links {
    type Output = Link;

    #[inline(always)]
    fn index(&self, node: NodeId) -> &Link {
        &self.links[node.index()]
    }
}

impl IndexMut<NodeId> for Links {
    #[inline(always)]
    fn index_mut(&mut self, node: NodeId) -> &mut Link {
        &mut self.links[node.index()]
    }
}

impl Index<ConnId> for Links {
    type Output = Conn;

    #[inline(always)]
    fn index(&self, at: ConnId) -> &Conn {
        &self.links[at.node.index()].conns[usize::from(at.lane.0)]
    }
}

impl IndexMut<ConnId> for Links {
    #[inline(always)]
    fn index_mut(&mut self, at: ConnId) -> &mut Conn {
        &mut self.links[at.node.index()].conns[usize::from(at.lane.0)]
    }
}
