//! `--prove-writes`: no client is told that its write is done before the fleet's mark was read
//! behind it, and was this proxy's own. A proxy whose clock stood still with its machine believes a
//! lease that is long over; what it acknowledged could be missing where another one leads by now.
//!
//! The follower's mark is read, or the leader's if there is no follower. That is enough: the next
//! proxy marks a server before it serves anything from it. As long as it serves a key from the
//! server that leads here, too, that server executes the commands of both in one order, which is
//! the order that clients see. Once it serves the key from the follower, the follower is marked.
//! And what this proxy did on the leader, it did before it read the follower's mark.
//!
//! Answers come in order, so one read proves all that its connection executed before, and a turn's
//! writes share one: it is asked for with the last part of a write, and costs no round trip. What
//! was decided without the follower (nothing was stored, or it was repaired) asks for one of its
//! own. Quiet writes wait like all others: a later answer tells their clients that they are done.
//!
//! A mark that is missing or earlier is waited for: the control plane writes it again.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::ids::{NodeId, PairId};
use crate::protocol::mark::FleetMark;
use crate::protocol::node;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::reply::{Reply, ReplyKind};
use crate::proxy::handles::{ConnId, OpId};
use crate::proxy::link::{Flight, LinkState, Unmarked};
use crate::proxy::op::{Origin, Stage};

use super::Core;
use super::messages::Event;

const REPLACED: Refusal =
    Refusal::Server("another proxy has taken this one's place; the command may or may not have taken effect");

/// This proxy's mark on its servers.
#[derive(Debug)]
pub(super) struct OwnMark {
    mark: FleetMark,
    /// As it stands on them.
    text: Bytes,
    /// One of them has shown another's.
    ended: bool,
}

impl Core {
    /// From now on no write is acknowledged before the server's mark was read behind it, and was
    /// this one.
    pub fn prove_writes(&mut self, mark: FleetMark) {
        let text = Bytes::from(mark.to_string());
        self.mark = Some(Box::new(OwnMark { mark, text, ended: false }));
    }

    /// What was sent may be the last part of a write.
    pub(super) fn ask_mark_behind(&mut self, id: OpId, at: ConnId) {
        let op = &self.ops[id];
        let is_last = match op.stage {
            Stage::Follower(_) => true,
            Stage::Leader(_) => self.pairs[op.pair].flow.as_ref().is_some_and(|flow| flow.follower.node().is_none()),
            _ => false,
        };
        self.links[at].mark_due |= is_last && op.kind.is_write() && matches!(op.origin, Origin::Client(_));
    }

    /// The operation is done, but for the mark.
    pub(super) fn finish_behind_mark(&mut self, id: OpId, answer: Outcome) {
        let op = &self.ops[id];
        let is_told_of = matches!(op.origin, Origin::Client(_)) && op.kind.is_write();
        if !is_told_of || matches!(answer, Outcome::Refused(_)) {
            return self.end(id, answer);
        }
        let pair = op.pair;
        let follower = self.pairs.follower_of(pair).filter(|&node| !self.pairs.is_void(pair, node));
        let Some(node) = follower.or(self.pairs.leader_of(pair)).filter(|_| !self.is_ended()) else {
            return self.end(id, Outcome::Refused(REPLACED));
        };
        let at = self.links.of(node, op.hash);
        let is_here = matches!(op.stage, Stage::Leader(n) | Stage::Proof(n) | Stage::Follower(n) if n == node);
        // Operations in flight are counted already; parked and repaired ones are not.
        if self.fences.is_counting() && (!op.stage.is_in_flight() || op.stage == Stage::Repair) {
            self.fences.count(op);
        }
        let op = &mut self.ops[id];
        (op.stage, op.answer) = (Stage::Mark(node), Some(answer));
        let conn = &mut self.links[at];
        let behind = if is_here { 0 } else { conn.sent() };
        let waits = Unmarked { op: id, behind, at_us: self.now.us };
        // If framing is in doubt, the fault is reported and the pair's next route decides.
        conn.unmarked.push_back(waits);
        if conn.state == LinkState::Idle {
            self.dial(at);
        }
        let conn = &mut self.links[at];
        if !is_here || conn.marks == 0 {
            self.want_mark(at);
        }
    }

    fn is_ended(&self) -> bool {
        self.mark.as_ref().is_some_and(|own| own.ended)
    }

    /// The mark is to be read behind everything that this turn sends.
    pub(super) fn want_mark(&mut self, at: ConnId) {
        let conn = &mut self.links[at];
        conn.mark_due = true;
        self.outbox.mark_conn(conn, at);
    }

    pub(super) fn put_mark(&mut self, at: ConnId) {
        let conn = &mut self.links[at];
        conn.mark_due = false;
        conn.out(self.now.us).put(node::FLEET_READ);
        conn.marks += 1;
        self.sent(at, Flight::Mark, 0);
    }

    /// `false`: that is no answer to what was asked.
    pub(super) fn mark_answered(&mut self, at: ConnId, reply: &Reply, unit: &Bytes) -> bool {
        let conn = &mut self.links[at];
        conn.marks -= 1;
        let found = match &reply.kind {
            ReplyKind::MetaVa { data } => &unit[data.clone()],
            ReplyKind::MetaEn => &[],
            _ => return false,
        };
        let Some(own) = &mut self.mark else { return true };
        if own.text == found {
            conn.mark_missing_us = None;
            let number = conn.answered_number();
            let (proved, left) = std::mem::take(&mut conn.unmarked).into_iter().partition(|w| number > w.behind);
            conn.unmarked = left;
            self.end_unmarked(proved, None);
            return true;
        }
        match FleetMark::parse(found).filter(|found| own.mark.is_ended_by(found)) {
            Some(found) => {
                if !std::mem::replace(&mut own.ended, true) {
                    self.outbox.events.push_back(Event::Marked { node: at.node, found });
                }
                for at in self.links.nodes().flat_map(|node| self.links.to(node)).collect::<Vec<_>>() {
                    let unmarked = std::mem::take(&mut self.links[at].unmarked);
                    self.end_unmarked(unmarked, Some(REPLACED));
                }
            }
            None => {
                self.links[at].mark_missing_us.get_or_insert(self.now.us);
                self.outbox.events.push_back(Event::Hint { node: at.node });
            }
        }
        true
    }

    fn end_unmarked(&mut self, unmarked: VecDeque<Unmarked>, refusal: Option<Refusal>) {
        for waits in unmarked {
            match refusal {
                Some(refusal) => self.fail(waits.op, refusal),
                None => {
                    let answer = self.ops[waits.op].answer.take().unwrap_or(Outcome::Refused(REPLACED));
                    self.end(waits.op, answer);
                }
            }
        }
    }

    /// The mark was missing, or an earlier one.
    pub(super) fn ask_marks_again(&mut self) {
        if self.mark.is_none() {
            return;
        }
        for node in self.links.nodes() {
            for at in self.links.to(node) {
                let conn = &self.links[at];
                if conn.state == LinkState::Ready && !conn.unmarked.is_empty() && conn.marks == 0 {
                    self.want_mark(at);
                }
            }
        }
    }

    /// Takes a pair's writes away from a connection to its deposed node.
    pub(super) fn take_unmarked(&mut self, pair: PairId, at: ConnId) -> VecDeque<Unmarked> {
        let ops = &self.ops;
        let conn = &mut self.links[at];
        let (ours, others) = std::mem::take(&mut conn.unmarked).into_iter().partition(|w| ops[w.op].pair == pair);
        conn.unmarked = others;
        ours
    }

    /// The mark will not be read on this node: the follower is lost, or the only copy's node, which
    /// has executed them.
    pub(super) fn park_unmarked(&mut self, node: NodeId, unmarked: VecDeque<Unmarked>) {
        let memory = self.links[node].incarnation;
        for waits in unmarked {
            let leader = self.pairs.leader_of(self.ops[waits.op].pair);
            self.leave_flight(waits.op);
            let stage = match leader {
                Some(leader) if leader != node => Stage::Held(leader),
                _ => Stage::Executed(node, memory),
            };
            self.park(waits.op, stage);
        }
    }
}
