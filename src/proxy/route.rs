//! Where the requests of a pair go: what the control plane publishes and every worker keeps a copy
//! of.

use std::sync::Arc;

use crate::ids::{NodeId, Term};
use crate::keys::{Lone, Missed, Recopy};
use crate::pair::Reason;

/// The way of a pair's requests.
#[derive(Clone, Debug)]
pub enum Route {
    /// They wait: the pair is between two states.
    Closed,
    /// They are refused at once with `SERVER_ERROR`: nobody leads.
    Dark(Reason),
    /// They flow.
    Open(Flow),
}

/// An open route.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Answers reads, decides conditional commands.
    pub leader: NodeId,
    /// Made equal before the client is answered.
    pub follower: Follower,
    /// The leadership term that cas tokens carry; `None` without backups, where tokens are the
    /// node's own.
    pub term: Option<Term>,
    /// Whether writes are taken. Not while the node refuses to store the record that it leads
    /// alone.
    pub writable: bool,
    /// The pair's missed keys: one set for as long as the proxy runs.
    pub missed: Arc<Missed>,
    /// The pair's keys that have one copy: one set for as long as the proxy runs.
    pub lone: Arc<Lone>,
    /// While the pair adopts (both nodes were full at the first start): the keys that clients have
    /// written since its first route opened, through any number of attempts. `None`: it does not
    /// adopt.
    pub written: Option<Arc<Missed>>,
}

/// The other copy.
#[derive(Clone, Debug)]
pub enum Follower {
    /// None, or none that is trusted.
    None,
    /// Holds everything.
    InSync(NodeId),
    /// Is being filled: what cannot be repeated on it is dropped there and copied again.
    Filling(NodeId, Arc<Recopy>),
}

impl Follower {
    /// The node, if there is one.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Follower::None => None,
            Follower::InSync(node) | Follower::Filling(node, _) => Some(*node),
        }
    }
}
