//! After a change of leader: keys that clients were told to be missing are looked for, and what is
//! left is deleted, before anything else is done with such a key.
//!
//! The key's owner asks the new leader how much time the item has left. Where that is no more than
//! a copy can have of one that was gone already, it is deleted as by a client; every operation on
//! the key waits for that, reads too, and then finds what a client expects: nothing. So nothing but
//! the look knows of it, `add` and `incr` are the server's own as ever.
//!
//! One that was written since has more time left, or is known to have been written
//! ([`WrittenBriefly`](crate::proxy::gone::WrittenBriefly)): a lock of a second is not lost by it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{KeyId, NodeId};
use crate::protocol::item::{Answer, Code};
use crate::protocol::outcome::Outcome;
use crate::protocol::reply::{Frame, Reply};
use crate::proxy::gone;
use crate::proxy::handles::OpId;
use crate::proxy::op::{Kind, Op, Origin, Stage, Wire};
use crate::proxy::route::Route;
use crate::ring::Topology;
use crate::rules::{Rule, holds};

use super::Core;
use super::messages::PeerMessage;

/// A look under way.
#[derive(Debug)]
pub(super) struct Look {
    /// When the node was asked that showed the key as gone.
    asked: Duration,
    /// Operations on the key that wait, in order.
    queue: VecDeque<OpId>,
}

/// Longer than anything is found in the table.
const WARY_US: u64 = gone::LASTS.as_micros() as u64 + 1_000_000;

impl Core {
    /// Another node leads a pair from now on.
    pub(super) fn become_wary(&mut self) {
        self.wary = true;
        self.wary_until_us = self.now.us + WARY_US;
    }

    /// Called at every tick. Not while a look is under way: those that come must queue behind it.
    pub(super) fn relax(&mut self) {
        self.wary &= !self.looks.is_empty() || self.now.us <= self.wary_until_us;
    }

    /// A client is about to get a miss; the node was asked at this moment.
    pub(super) fn tell_gone(&self, id: OpId, asked_us: u64) {
        let op = &self.ops[id];
        let term = self.pairs[op.pair].flow.as_ref().and_then(|flow| flow.term);
        if let (Some(term), Origin::Client(_)) = (term, op.origin) {
            self.gone.tell(Topology::key_id(op.key()), term, self.date_of(asked_us));
        }
    }

    /// The operation gives its item a few seconds, or a date of the client's, and took effect, or
    /// is a `set` that is about to be sent (`unanswered`: it is not looked at, so others may look
    /// meanwhile). A node may have been asked for the key just before.
    ///
    /// One second is not noted: that is over within it, perhaps at once, also while the write is
    /// still unanswered. Then it is unclear which came first, and the item counts as expired.
    pub(super) fn note_brief_write(&mut self, id: OpId, unanswered: bool) {
        let op = &self.ops[id];
        // A meta command that creates an item (vivify, N) sets an exptime of its own.
        if op.exptime > 0 && op.date.is_none() || matches!(op.kind, Kind::Meta(_)) {
            let hash = op.hash;
            match op.exptime {
                1 if unanswered => {}
                1 => self.written_briefly.forget(hash),
                _ => self.written_briefly.note(hash, self.date(), unanswered),
            }
        }
    }

    /// Whether the operation waits for a look, or is its key's owner's. The pair's route is open.
    pub(super) fn looks_first(&mut self, id: OpId) -> bool {
        let op = &self.ops[id];
        let (kind, hash, pair) = (op.kind, op.hash, op.pair);
        if matches!(op.origin, Origin::Look(_)) || !holds(Rule::SeenGoneStaysGone) {
            return false;
        }
        let key = Topology::key_id(op.key());
        if let Some(look) = self.looks.get_mut(&key) {
            look.queue.push_back(id);
            return true;
        }
        let Route::Open(flow) = &self.pairs[pair].route else { return false };
        let (leader, term) = (flow.leader, flow.term);
        // What is overwritten is not looked at.
        let Some(term) = term.filter(|_| kind != Kind::Set) else { return false };
        let Some(asked) = self.gone.find(key, term, self.date()) else { return false };
        let owner = self.owner(hash);
        if owner != self.settings.worker {
            let op = Op { stage: Stage::New, parked_at_us: 0, ..self.ops.take(id) };
            self.outbox.peers.push_back((owner, PeerMessage::Op(Box::new(op))));
            return true;
        }
        if self.written_briefly.since(hash, asked) {
            self.gone.forget(key);
            return false;
        }
        let name = Bytes::copy_from_slice(self.ops[id].key());
        let (place, wire) = ((0, name.len() as u32), Wire::of_key(&name));
        let mut look = Op::new(Origin::Look(key), Kind::Delete, pair, hash, name, place);
        (look.stage, look.wire) = (Stage::Look(leader), wire);
        let look = self.take_in(look);
        self.fences.count(&self.ops[look]);
        self.looks.insert(key, Look { asked, queue: VecDeque::from([id]) });
        self.send_op(look, leader);
        true
    }

    /// `false`: that is no answer.
    pub(super) fn look_answered(&mut self, id: OpId, node: NodeId, reply: &Reply, unit: &Bytes) -> bool {
        let Origin::Look(key) = self.ops[id].origin else { return true };
        let now = self.date();
        let answer = Answer::to_unechoed(&Frame::first(unit, reply, now)).ok();
        let looks = matches!(self.ops[id].stage, Stage::Look(_));
        let Some(answer) = answer.filter(|answer| match answer.code {
            Code::Missing | Code::Refused | Code::Done => true,
            Code::Exists => !looks,
            _ => false,
        }) else {
            self.strand(id, node);
            return false;
        };
        if !looks || answer.code != Code::Done {
            self.finish(id, Outcome::Done);
        } else if self.looks.get(&key).is_some_and(|look| gone::may_outlast(answer.ttl, look.asked, now)) {
            self.leave_flight(id);
            self.ops[id].stage = Stage::New;
            self.begin(id);
        } else if answer.won && answer.cas != 0 && holds(Rule::WonIsGivenBack) {
            // The item stays as it is: all other requests for the key wait here.
            self.ops[id].stage = Stage::GiveBack { node, cas: answer.cas };
            self.send_op(id, node);
        } else {
            self.finish(id, Outcome::Done);
        }
        true
    }

    /// What waited for a look goes on. Other workers' reads had to come here until now; also where
    /// the node refused the delete it is not looked at again and again.
    pub(super) fn looked(&mut self, key: KeyId) {
        self.gone.forget(key);
        for id in self.looks.remove(&key).into_iter().flat_map(|look| look.queue) {
            self.begin(id);
        }
    }

    /// A look ends without an answer: its pair's next route begins anew what waits for it.
    pub(super) fn look_failed(&mut self, id: OpId, key: KeyId) {
        self.ops.remove(id);
        for id in self.looks.remove(&key).into_iter().flat_map(|look| look.queue) {
            self.park(id, Stage::Parked);
        }
    }
}
