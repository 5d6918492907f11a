//! Answers of a leader that say "the key was not there". A node whose memory was emptied under its
//! connections (a stranger's `flush_all`) says so of every key, and the other copy is the good one
//! then. So such an answer counts only when the leader's marker, read behind it on the same
//! connection, is still the one of the route.
//!
//! A connection answers in order: a marker that is fine proves every answer that came before it, so
//! many share one read. What is answered behind a write that waits, waits with it: the follower
//! sees writes in the leader's order, and no client reads what an `add` has stored that may count
//! for nothing.

use std::collections::VecDeque;

use crate::ids::{NodeId, PairId};
use crate::protocol::node;
use crate::protocol::out::OutQueue;
use crate::proxy::handles::{ConnId, OpId};
use crate::proxy::link::{Flight, LinkState, Unproven};
use crate::proxy::op::{Effect, Origin, Stage};
use crate::rules::{Rule, holds};

use super::{Core, Now};

/// Whether a `get` that finds nothing waits for the proof, too. Without, it is answered at once and
/// the marker is read all the same.
const PROVE_MISSES: bool = true;

impl Core {
    /// Whether this answer has to wait. `absent`: it says that the key was not there.
    pub(super) fn needs_proof(&mut self, id: OpId, at: ConnId, absent: bool) -> bool {
        let no_markers = self.links[at].markers == 0;
        // This check would also notice what the check of new connections is for, so a test without
        // that rule switches this off too.
        let checked = holds(Rule::MarkerCheckAfterMiss) && holds(Rule::MarkerCheckOnNewConnections);
        if self.links[at.node].incarnation.is_none() || !checked {
            return false;
        }
        if absent && no_markers {
            self.want_marker(at);
        }
        let conn = &self.links[at];
        conn.unproven_writes > 0 || (absent && (PROVE_MISSES || self.ops[id].kind.is_write()))
    }

    /// The operation waits for the marker with the leader's answer; it stays in flight.
    /// `gone_us`: it says that the key is not there, and was asked then.
    pub(super) fn hold(&mut self, id: OpId, at: ConnId, effect: Effect, gone_us: Option<u64>) {
        let op = &mut self.ops[id];
        op.stage = Stage::Proof(at.node);
        let conn = &mut self.links[at];
        conn.unproven_writes += u32::from(op.kind.is_write());
        conn.unproven.push_back(Unproven { op: id, effect, at_us: self.now.us, gone_us });
    }

    /// The marker is to be read behind everything that this turn sends.
    pub(super) fn want_marker(&mut self, at: ConnId) {
        let conn = &mut self.links[at];
        conn.marker_due = true;
        self.outbox.mark_conn(&mut self.links[at], at);
    }

    /// A connection that is about to be written to, and what is to be written. `None`: nothing more
    /// ever, our half of it is to be closed.
    pub fn conn_to_write(&mut self, now: Now, at: ConnId) -> Option<&mut OutQueue> {
        let conn = &self.links[at];
        if conn.marker_due | conn.mark_due {
            self.put_what_is_due(now, at);
        }
        let conn = &mut self.links[at];
        (conn.dirty, conn.urgent, conn.blocked) = (false, false, false);
        if conn.state == LinkState::Discarding { None } else { Some(conn.out(now.us)) }
    }

    fn put_what_is_due(&mut self, now: Now, at: ConnId) {
        self.now = now;
        let conn = &mut self.links[at];
        // One that is being checked has a marker under way, or asks for one at the next tick.
        if std::mem::take(&mut conn.marker_due) && conn.state == LinkState::Ready {
            self.put_marker(at);
        }
        let conn = &self.links[at];
        if conn.mark_due && conn.state == LinkState::Ready {
            self.put_mark(at);
        }
    }

    pub(super) fn put_marker(&mut self, at: ConnId) {
        let round = self.links[at.node].round;
        let conn = &mut self.links[at];
        conn.out(self.now.us).put(node::MARKER_READ);
        conn.markers += 1;
        self.sent(at, Flight::Marker(round), 0);
    }

    /// The marker is fine: what the connection answered before it is true.
    pub(super) fn proved(&mut self, at: ConnId) {
        while let Some(held) = self.links[at].unproven.pop_front() {
            let op = &self.ops[held.op];
            let (kind, origin) = (op.kind, op.origin);
            self.links[at].unproven_writes -= u32::from(kind.is_write());
            if has_ended(held.effect, origin) {
                if let Some(asked_us) = held.gone_us {
                    self.tell_gone(held.op, asked_us);
                }
                self.finish_with_answer(held.op);
            } else {
                self.leader_decided(held.op, at.node, held.effect);
            }
        }
    }

    /// The marker will not be read behind these answers any more: what they say counts for nothing,
    /// unless the same memory leads again.
    pub(super) fn void_answers(&mut self, node: NodeId, unproven: VecDeque<Unproven>) {
        let memory = self.links[node].incarnation;
        for held in unproven {
            self.leave_flight(held.op);
            // What changed nothing can be asked again anywhere.
            let changed = held.effect != Effect::Nothing;
            self.park(held.op, if changed { Stage::Executed(node, memory) } else { Stage::Parked });
        }
    }

    /// Takes a pair's answers away from a connection to its deposed leader.
    pub(super) fn take_unproven(&mut self, pair: PairId, at: ConnId) -> VecDeque<Unproven> {
        let ops = &self.ops;
        let conn = &mut self.links[at];
        let (ours, others): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut conn.unproven).into_iter().partition(|held| ops[held.op].pair == pair);
        conn.unproven_writes = others.iter().filter(|held| ops[held.op].kind.is_write()).count() as u32;
        conn.unproven = others;
        ours
    }
}

/// Whether nothing is left to do for the follower. An adoption that the leader refuses drops
/// nothing there: that may be the only copy.
pub(super) fn has_ended(effect: Effect, origin: Origin) -> bool {
    effect == Effect::Nothing || (effect == Effect::Unknown && matches!(origin, Origin::Control(_)))
}
