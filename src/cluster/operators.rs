//! What operators and monitors have asked and wait for, and what is kept to be shown to them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{changes, conns, desk, inquiries, listings};
use crate::backend::{Dial, Inquirer};
use crate::ids::{ById, NodeId};
use crate::ring::Topology;

/// See the module's words.
pub(super) struct Operators {
    /// Asks a server on their behalf.
    pub(super) inquirers: ById<NodeId, Arc<Inquirer>>,
    /// Questions to all servers.
    pub(super) inquiries: inquiries::Inquiries,
    /// Commands for one server that are unanswered.
    pub(super) commanded: usize,
    pub(super) listings: listings::Listings,
    pub(super) conns: conns::Conns,
    pub(super) desk: desk::Clerk,
    /// Until the control plane runs: what comes over the desk.
    pub(super) requests: Option<mpsc::Receiver<desk::Request>>,
    /// The last changes of pairs and servers.
    pub(super) changes: changes::Changes,
    /// The proxy's counters at the last `stats reset`.
    base: Vec<u64>,
}

impl Operators {
    /// `patience`: how long a server's answer may take.
    pub(super) fn new(topology: &Topology, dialer: &Arc<dyn Dial>, patience: Duration) -> Operators {
        let inquirer = |node| Arc::new(Inquirer::new(node, dialer.clone(), patience));
        let (desk, requests) = desk::Clerk::open();
        Operators {
            inquirers: topology.nodes().map(inquirer).collect(),
            inquiries: inquiries::Inquiries::default(),
            commanded: 0,
            listings: listings::Listings::default(),
            conns: conns::Conns::default(),
            desk,
            requests: Some(requests),
            changes: changes::Changes::default(),
            base: Vec::new(),
        }
    }

    /// From now on an answer of a server may take this long.
    pub(super) fn allow(&self, patience: Duration) {
        self.inquirers.iter().for_each(|inquirer| inquirer.allow(patience));
    }

    /// `stats reset`: the counters begin at 0 again. `now`: all of them.
    pub(super) fn reset_counters(&mut self, now: &[(&'static str, u64)]) {
        self.base = now.iter().map(|(_, value)| *value).collect();
    }

    /// What has been counted since the last `stats reset`, of what was counted since the start. How
    /// many are connected now is no such count.
    pub(super) fn since_reset(&self, all: &[(&'static str, u64)]) -> Vec<(&'static str, u64)> {
        let base = |at: usize, name| match name {
            "curr_connections" => 0,
            _ => self.base.get(at).copied().unwrap_or(0),
        };
        all.iter().enumerate().map(|(at, &(name, value))| (name, value.wrapping_sub(base(at, name)))).collect()
    }
}
