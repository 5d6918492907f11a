//! After every event, what it changed is marked, and [`Cluster::settle`] then triggers everything
//! that follows. No handler calls a reaction itself, so none can forget one, or react to a
//! half-finished change (a loss that only some pairs of the node know yet).
//!
//! What holds after every event, and what brings it about:
//!
//! - A job that waits for its pair's gate, or for what became of it, gets its answer as soon as
//!   that is known: `answer_job`.
//! - A job goes once its pairs are all Recovering and open; one that cannot get there has ended:
//!   `answer_go`.
//! - No request waits for a first leader that cannot come: `end_wait_for_leader`.
//! - Every refill that can begin has begun, and a trickle in its way was told to end; a node that
//!   is well gives no reason, and nothing is asked for it: [`super::refills`].
//! - A `flush_all` whose gates are closed was sent, one that is answered everywhere is over, and no
//!   node is waited for that is lost and leads nothing: [`super::flush`].
//!
//! Each line is a question without side effects, whose answer is "none" once it was acted upon. So
//! settling twice does nothing the second time. In tests, after every event, *all* pairs and nodes
//! are asked, marked or not: that finds a change that was not marked (`assert_settled`), in the
//! simulation with every seed.
//!
//! **What it costs.** An event that marks nothing (probes, clients' questions, single keys) costs
//! nothing. A pair's mark asks its own two nodes, and a node's mark its partners too: with n
//! primaries and m backups n + m questions, each over the n or m pairs of a node, whatever the
//! number of pairs in all.

use std::collections::BTreeSet;

use super::Cluster;
use crate::ids::{NodeId, PairId};
use crate::ring::Topology;

/// What has changed since things were last settled.
#[derive(Default)]
pub(super) struct Unsettled {
    pairs: BTreeSet<PairId>,
    nodes: BTreeSet<NodeId>,
    flush: bool,
    /// What each node's refills went by when it was last asked, of that which changes without an
    /// event: see [`Cluster::unheard`].
    #[cfg(test)]
    seen: std::collections::BTreeMap<NodeId, Vec<bool>>,
}

impl Unsettled {
    /// The pair's state, gate or route is another one, or it is asked for something.
    pub(super) fn pair(&mut self, pair: PairId) {
        self.pairs.insert(pair);
    }

    /// What is wanted of the node alone.
    pub(super) fn node(&mut self, node: NodeId) {
        self.nodes.insert(node);
    }

    /// The node's use, its drains or its job: partners wait for these too.
    pub(super) fn node_and_partners(&mut self, node: NodeId, topology: &Topology) {
        self.nodes.insert(node);
        for pair in topology.pairs_of(node) {
            self.nodes_of(pair, topology);
        }
    }

    pub(super) fn flush(&mut self) {
        self.flush = true;
    }

    fn nodes_of(&mut self, pair: PairId, topology: &Topology) {
        let (primary, backup) = topology.nodes_of(pair);
        self.nodes.extend(std::iter::once(primary).chain(backup));
    }
}

impl Cluster {
    /// See [`Unsettled::node_and_partners`].
    pub(super) fn changed(&mut self, node: NodeId) {
        self.unsettled.node_and_partners(node, &self.topology);
    }

    /// Ends: each thing done takes away its own cause (a reply that was owed, a job that was due,
    /// a flush's next step), and no other one brings it back.
    pub(super) fn settle(&mut self) {
        loop {
            // Replies before refills: a job that is told to end is not yet over.
            if let Some(pair) = self.unsettled.pairs.pop_first() {
                self.answer_job(pair);
                self.end_wait_for_leader(pair);
                self.unsettled.nodes_of(pair, &self.topology);
                self.look_at_gate_for_flush(pair);
            } else if let Some(node) = self.unsettled.nodes.pop_first() {
                self.answer_go(node);
                self.give_flush_up(node);
                self.refill_what_is_due(node);
                #[cfg(test)]
                self.note_unheard(node);
            } else if std::mem::take(&mut self.unsettled.flush) {
                self.advance_flush();
            } else {
                break;
            }
        }
        self.tell_lost_items();
        #[cfg(test)]
        self.assert_settled();
    }
}

#[cfg(test)]
impl Cluster {
    /// What jobs, workers and time change by themselves, and refills go by: these have no event,
    /// and are looked at with the next one, or at the next tick of [`super::copies`].
    fn unheard(&self, node: NodeId) -> Vec<bool> {
        let lingers = |n: NodeId| self.nodes[n].refills.job.as_ref().is_some_and(|job| job.progress.lingers());
        let mut all = vec![lingers(node)];
        for pair in self.topology.pairs_of(node) {
            all.extend([self.pairs[pair].missed.overflowed(), self.is_overdue(pair)]);
        }
        all
    }

    fn note_unheard(&mut self, node: NodeId) {
        let seen = self.unheard(node);
        self.unsettled.seen.insert(node, seen);
    }

    /// Nothing is left to be done, wherever one looks.
    fn assert_settled(&self) {
        for pair in self.topology.pairs() {
            let name = self.pair_name(pair);
            assert_eq!(self.owed(pair), super::jobs::Owed::default(), "the job of {name} was not answered");
            assert!(!self.waits_in_vain(pair), "{name} waits for a first leader in vain");
            assert!(self.flush_knows_gate(pair), "the flush was not told of {name}'s gate");
        }
        for node in self.topology.nodes() {
            let name = self.topology.addr(node);
            assert_eq!(self.may_go(node), None, "the job on {name} was not told to go");
            assert!(!self.flush_is_in_vain(node), "the flush waits for {name}");
            let due = self.refill_due(node);
            let heard = self.unsettled.seen.get(&node).is_none_or(|seen| *seen == self.unheard(node));
            assert!(due.is_none() || !heard, "{name} has {due:?} due");
        }
        assert!(self.next_of_flush().is_none(), "the flush can go on");
    }
}
