//! A marker is gone from a node in use: was it evicted, or is the memory gone with it?

use crate::ambient;
use crate::backend::{MarkError, NodeError, NodeView};
use crate::ids::{Incarnation, NodeId};
use crate::pair::{self, Loss, Reason};

use super::nodes::reason_of;
use super::{Cluster, Internal};

impl Cluster {
    /// A marker is gone from a live node: either its memory is, or the marker alone was evicted.
    /// The start time and the count of flushes decide. `told`: a worker has reported it; its
    /// connections found no incarnation marker, and wait for an answer.
    pub(super) fn check_eviction(&mut self, node: NodeId, told: bool) {
        let run = &mut self.nodes[node];
        if !run.health.is_up() || run.looking || !self.marked() {
            return;
        }
        self.nodes[node].looking = true;
        self.ask_node(node, move |control| async move {
            Internal::EvictionChecked { node, told, result: control.view(0).await }
        });
    }

    pub(super) fn eviction_checked(&mut self, node: NodeId, told: bool, result: Result<NodeView, NodeError>) {
        let run = &mut self.nodes[node];
        run.looking = false;
        if !run.health.is_up() {
            return;
        }
        match result {
            Ok(now) => {
                let flushed = run.view.as_ref().is_some_and(|then| now.cmd_flush > then.cmd_flush);
                let evicted = run.view.as_ref().is_some_and(|then| {
                    // The start time is a difference of two clocks read to the second: it wavers by
                    // one.
                    now.started.abs_diff(then.started) <= 1
                        && !flushed
                        && now.time >= then.time
                        && now.curr_items > 0
                        // Somebody wrote there past the proxy: it is not put back over that.
                        && !now.incarnation_unread
                });
                match (now.incarnation, evicted, run.incarnation) {
                    // There after all.
                    (Some(found), _, Some(known)) if found == known && !flushed => {
                        if told {
                            self.allow(node);
                        } else {
                            self.restore_markers(node, now);
                        }
                    }
                    (None, true, Some(known)) => {
                        tracing::warn!(node = %self.topology.addr(node), "its marker was evicted; it is written again");
                        debug_assert_eq!(self.nodes[node].incarnation, Some(known));
                        self.restore_markers(node, now);
                    }
                    (found, _, known) if found.is_some() && found == known => self.flushed_by_a_stranger(node),
                    _ => self.lost(node, Reason::MarkerLost, Loss::MemoryGone, true),
                }
            }
            // The next probe looks again.
            Err(error) if self.serves_all_the_same(node, &error) => {}
            Err(error) => self.fault(node, reason_of(&error), false),
        }
    }

    /// Markers were evicted from a node that kept its memory: they are written again. A node
    /// without its ring marker or its records would look like a stranger after its next absence, or
    /// at the next start.
    fn restore_markers(&mut self, node: NodeId, seen: NodeView) {
        // A pair that is being recorded writes its record anyway.
        let settled = self.topology.pairs_of(node).all(|p| self.pairs[p].pair.gate() == pair::Gate::Open);
        let Some(incarnation) = self.nodes[node].incarnation.filter(|_| settled) else { return };
        let markers = self.markers(node, incarnation);
        self.ask_node(node, move |control| async move {
            let result = control.restore(&seen, &markers).await;
            Internal::Restored { node, incarnation, result }
        });
    }

    pub(super) fn restored(&mut self, node: NodeId, incarnation: Incarnation, result: Result<(), MarkError>) {
        let run = &self.nodes[node];
        if !run.health.is_up() || run.incarnation != Some(incarnation) {
            return;
        }
        match result {
            Ok(()) => self.allow(node),
            Err(MarkError::MemoryGone) => self.flushed_by_a_stranger(node),
            // The next probe finds them missing again, or what stands there now.
            Err(error) => {
                tracing::debug!(node = %self.topology.addr(node), %error, "evicted markers are not written again yet");
            }
        }
    }

    /// Its marker may have outlived its memory: not even this one shows the same memory when the
    /// node is back.
    fn flushed_by_a_stranger(&mut self, node: NodeId) {
        self.nodes[node].incarnation = Some(Incarnation(ambient::random_u64()));
        self.lost(node, Reason::MarkerLost, Loss::MemoryGone, true);
    }
}
