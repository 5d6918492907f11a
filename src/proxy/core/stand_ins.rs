//! A server at its limit of connections (memcached's `-c`) refuses one more and goes on with those
//! that stand. That is no loss of it: what would have gone over the connection that was refused
//! goes over another one of this worker, which stands in for it.
//!
//! Commands on one key keep their order because they take one connection. So they take another one
//! only while none of them is unanswered: a connection that was refused has executed nothing, and
//! they go back once the one that stands in owes nothing at all.

use std::collections::VecDeque;

use crate::ids::NodeId;
use crate::proxy::handles::{ConnId, Lane, OpId};
use crate::proxy::link::{Conn, Flight, LinkState, Sent};
use crate::stats::add;

use super::Core;

/// A connection that was refused is tried again after this long, once the other one is at rest.
const AGAIN_US: u64 = 10_000_000;

impl Core {
    /// Which connection may stand in for one that the node has just refused. `None`: it is none
    /// that was refused at its very beginning, or there is no other.
    pub(super) fn stand_in_for(&self, at: ConnId) -> Option<Lane> {
        let conn = &self.links[at];
        let repairs = |sent: &Sent| matches!(sent.flight, Flight::Repair(..));
        let is_new = !conn.has_answered() && conn.unmarked.is_empty();
        if !is_new || conn.flights.iter().any(repairs) {
            return None;
        }
        let stands = |state| move |lane: &Lane| self.links[ConnId { node: at.node, lane: *lane }].state == state;
        let others = || self.links.to(at.node).map(|other| other.lane).filter(move |&lane| lane != at.lane);
        // One that is being checked may be refused as well. Then a third one stands in for both.
        others().find(stands(LinkState::Ready)).or_else(|| others().find(stands(LinkState::Checking)))
    }

    /// From now on the other one stands in; `flights` and `waiting` were for this one.
    pub(super) fn hand_over(&mut self, at: ConnId, lane: Lane, flights: VecDeque<Sent>, waiting: Vec<OpId>) {
        tracing::warn!(node = %self.topology.addr(at.node), worker = self.settings.worker.0,
            "a node takes no more connections (its -c): another one that stands is used in place of one that was refused");
        for other in self.links.to(at.node) {
            let conn = &mut self.links[other];
            if other == at || conn.stand_in == Some(at.lane) {
                conn.stand_in = Some(lane);
            }
        }
        add(&self.stats.nodes[at.node.index()].refused, 1);
        let conn = &mut self.links[at];
        conn.refused_us = self.now.us;
        conn.voids = 0;
        // The shell closes our half, as of one in doubt.
        self.outbox.mark_conn_anyway(conn, at);
        let sent = flights.into_iter().filter_map(|sent| match sent.flight {
            Flight::Op(id) | Flight::Get(id) => Some(id),
            _ => None,
        });
        for id in sent.chain(waiting) {
            self.send_op(id, at.node);
        }
        self.tell_undrained(at.node);
    }

    /// One that rests, and in whose place another one can be used, is closed: the node has room for
    /// another connection of this proxy then.
    pub(super) fn make_room(&mut self, node: NodeId) {
        let rests = |conn: &Conn| conn.state == LinkState::Ready && conn.owes_nothing() && conn.unsent() == 0;
        let used = |at: &ConnId| self.links[node].conns.iter().any(|conn| conn.stand_in == Some(at.lane));
        let Some(at) = self.links.to(node).find(|at| rests(&self.links[*at]) && !used(at)) else { return };
        let stands = |other: &ConnId| other.lane != at.lane && self.links[*other].state == LinkState::Ready;
        let Some(other) = self.links.to(node).find(stands) else { return };
        self.outbox.hangups.push_back(at);
        self.reset_conn(at);
        let conn = &mut self.links[at];
        (conn.stand_in, conn.refused_us) = (Some(other.lane), self.now.us);
        self.publish_gauges();
    }

    /// Called at every tick: whoever was refused long ago is tried again by the next command.
    pub(super) fn end_stand_ins(&mut self) {
        for node in self.links.nodes() {
            for at in self.links.to(node) {
                let conn = &self.links[at];
                if let Some(lane) = conn.stand_in
                    && conn.state == LinkState::Idle
                    && self.now.us.saturating_sub(conn.refused_us) >= AGAIN_US
                    && self.links[ConnId { node, lane }].owes_nothing()
                {
                    self.links[at].stand_in = None;
                }
            }
        }
    }
}
