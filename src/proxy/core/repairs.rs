//! Repairs: the two copies answered one write differently.

use bytes::Bytes;

use crate::ids::{Incarnation, NodeId, PairId, UNSURE};
use crate::pair::Reason;
use crate::protocol::clock;
use crate::protocol::item::{Answer, Code, Item, are_equal};
use crate::protocol::key::Key;
use crate::protocol::node::{self, Ask};
use crate::protocol::outcome::Outcome;
use crate::protocol::reply::{Frame, Reply, ReplyKind};
use crate::proxy::handles::{ConnId, OpId};
use crate::proxy::link::{Flight, LinkState, RepairStep};
use crate::proxy::op::{Decisive, Kind, Repair, Stage};
use crate::rules::{Rule, holds};

use super::{Core, OUTCOME_UNKNOWN};

/// How often a repair that finds the leader's item changed under it begins again before it is given
/// up and counted.
const REPAIR_TRIES: u32 = 3;

/// Repairs that begin again in one tick: with very many, the others do in the next ones.
const REPAIRS_PER_TICK: usize = 4096;

/// What follows from an answer to one command of a repair.
enum Told {
    /// The next step, once nothing else is awaited.
    GoesOn,
    /// Nothing now: the repair is over, has begun again, or first gives a right back.
    Waits,
    /// It is no answer to what was asked.
    Nonsense,
}

impl Core {
    /// Leader and follower answered differently: drop the follower's copy, add the leader's,
    /// verify; later writes of the key wait.
    ///
    /// `decisive`: what the follower's answer means if it leads next.
    pub(super) fn repair(&mut self, id: OpId, decisive: Option<Decisive>) {
        self.repair_with(id, Repair { decisive, ..Repair::default() });
    }

    /// The same where both answered alike, and may differ all the same: only a copy that does is
    /// dropped.
    pub(super) fn compare(&mut self, id: OpId, decisive: Decisive) {
        self.repair_with(id, Repair { decisive: Some(decisive), doubted: true, ..Repair::default() });
    }

    fn repair_with(&mut self, id: OpId, repair: Repair) {
        self.fences.begin_counting(&self.ops, self.now.us);
        if self.ops[id].stage.is_in_flight() {
            self.fences.discount(&self.ops[id]);
        }
        let op = &mut self.ops[id];
        op.stage = Stage::Repair;
        op.repair = Some(Box::new(repair));
        let key = Bytes::copy_from_slice(op.key());
        let write = op.kind != Kind::Mend;
        if let Some(fence) = self.fences.get_mut(&key) {
            // An older write of the key is being repaired: when it is equal, so is this one.
            fence.attached.push(id);
            if write && let Some(key) = self.fences.pass(&key) {
                self.repair_read(&key);
            }
            return;
        }
        if self.fences.put_up(&key, id, &self.ops) {
            self.repair_read(&key);
        }
    }

    pub(super) fn repair_read(&mut self, key: &Bytes) {
        let date = self.date();
        let Some(fence) = self.fences.get_mut(key) else { return };
        fence.begin(date);
        let id = fence.owner;
        let op = &self.ops[id];
        let pair = op.pair;
        let leader = self.pairs.leader_of(pair);
        let (Some(leader), Some(follower)) = (leader, self.pairs.follower_of(pair)) else {
            return self.repair_broken(id, leader);
        };
        if let Some(node) = [leader, follower].into_iter().find(|&node| self.pairs.is_void(pair, node)) {
            return self.repair_broken(id, Some(node));
        }
        let (leader, follower) = (self.links.of(leader, op.hash), self.links.of(follower, op.hash));
        // The leader may have executed a parked operation, which is run again on the follower if
        // that one leads next: it must not get there by a repair meanwhile.
        if self.pairs[pair].parked.in_doubt > 0 {
            // Parked operations end in bounded time.
            return self.repair_later(key, None);
        }
        if let Some(at) = [leader, follower].into_iter().find(|&at| !self.is_ready_for_repair(at)) {
            return self.repair_later(key, Some(at.node));
        }
        let marked = self.links[leader.node].incarnation.is_some();
        // In front of it: between the two the node may turn to its next second, and then the copy's
        // time is a second too short, not too long.
        let dated = self.links[leader.node].offset.is_some();
        if dated {
            self.links[leader].out(self.now.us).put(clock::CLOCK_READ);
            self.sent(leader, Flight::Repair(id, RepairStep::Clock), 0);
        }
        node::mg_unmoved(self.links[leader].out(self.now.us), Key::known(key), Ask::KeyAndItem);
        self.send_step(id, leader, RepairStep::Read);
        // Behind it: whether the leader's memory was still the one that the route was made for. If
        // it had just gone, "repairing" would destroy the good copy.
        if marked {
            self.links[leader].out(self.now.us).put(node::MARKER_READ);
            self.send_step(id, leader, RepairStep::Marker);
        } else if let Some(fence) = self.fences.get_mut(key) {
            fence.marker_ok = true;
        }
        // No write has found a difference here: perhaps there is none.
        let op = &self.ops[id];
        let compared = op.kind == Kind::Mend || op.repair.as_ref().is_some_and(|repair| repair.doubted);
        if compared {
            node::mg_unmoved(self.links[follower].out(self.now.us), Key::known(key), Ask::KeyAndItem);
            self.send_step(id, follower, RepairStep::Compare);
        }
        self.set_outstanding(id, 1 + u32::from(dated) + u32::from(marked) + u32::from(compared));
    }

    /// A connection may have broken while nothing was in flight on it: that is no fault, so no new
    /// route follows. It is dialled again.
    fn is_ready_for_repair(&mut self, at: ConnId) -> bool {
        if self.links[at].state == LinkState::Idle {
            self.dial(at);
        }
        self.links[at].state == LinkState::Ready
    }

    /// A command of a repair is in the connection's queue.
    fn send_step(&mut self, id: OpId, at: ConnId, step: RepairStep) {
        let number = self.links[at].push(Flight::Repair(id, step), self.now.us, 0);
        self.outbox.mark_conn(&mut self.links[at], at);
        if let Some(repair) = &mut self.ops[id].repair {
            repair.sent.push((at, number));
        }
    }

    /// The repair begins again at a later tick, unless one of the nodes is deposed before. `node`:
    /// for which it waits. That node is late as any that does not answer: clients wait behind the
    /// repair, and its marker may be gone and refused again and again.
    fn repair_later(&mut self, key: &Bytes, node: Option<NodeId>) {
        self.fences.retry(key, self.now.us);
        if let Some(node) = node
            && let Some(fence) = self.fences.get_mut(key)
        {
            let since_us = fence.is_stuck(self.now.us);
            self.links[node].repair_waits(since_us, self.now.us);
        }
    }

    /// Repairs that wait for a marker or a connection are tried again. Called at every tick.
    pub(super) fn retry_repairs(&mut self) {
        for _ in 0..REPAIRS_PER_TICK {
            let Some(due) = self.fences.next_due(self.now.us) else { break };
            if let Some(key) = due {
                self.repair_read(&key);
            }
        }
        self.fences.forget(self.now.us);
    }

    /// A repair that waits for a marker or a connection has nothing in flight that could be voided,
    /// and the gate waits for it.
    pub(super) fn void_waiting_repairs(&mut self, pair: PairId, node: NodeId) {
        let owners: Vec<OpId> = self.fences.waiting().filter(|owner| self.ops[*owner].pair == pair).collect();
        for owner in owners {
            self.repair_broken(owner, Some(node));
        }
    }

    pub(super) fn set_outstanding(&mut self, id: OpId, count: u32) {
        if let Some(repair) = &mut self.ops[id].repair {
            repair.outstanding = count;
        }
    }

    /// `false`: that is no answer to the repair's command.
    pub(super) fn repair_answered(
        &mut self,
        id: OpId,
        node: NodeId,
        step: RepairStep,
        reply: &Reply,
        unit: &Bytes,
    ) -> bool {
        let Some(op) = self.ops.get_mut(id) else { return true };
        let key = Bytes::copy_from_slice(op.key());
        let Some(repair) = &mut op.repair else { return true };
        repair.outstanding = repair.outstanding.saturating_sub(1);
        let outstanding = repair.outstanding;
        if outstanding == 0 {
            repair.sent.clear();
        }
        let frame = Frame::first(unit, reply, self.date());
        match self.repair_told((id, node), &key, step, &frame) {
            Told::GoesOn if outstanding > 0 => {}
            Told::GoesOn => match step {
                RepairStep::Clock
                | RepairStep::Marker
                | RepairStep::Read
                | RepairStep::GiveBack
                | RepairStep::Compare => self.repair_write(&key),
                RepairStep::Drop | RepairStep::Add => self.repair_verify(&key),
                RepairStep::Verify => {}
            },
            Told::Waits => {}
            Told::Nonsense => {
                // No answer to this command, or none to go on with: the caller gives the connection
                // up, and nobody else would end the repair.
                self.repair_broken(id, Some(node));
                return false;
            }
        }
        true
    }

    /// What a node has answered to one command of a repair.
    fn repair_told(&mut self, (id, node): (OpId, NodeId), key: &Bytes, step: RepairStep, frame: &Frame<'_>) -> Told {
        let Some(fence) = self.fences.get_mut(key) else { return Told::Waits };
        match (step, frame.kind()) {
            (RepairStep::Marker, ReplyKind::MetaVa { data }) if frame.text(data) != UNSURE.as_bytes() => {
                let known = self.links[node].incarnation;
                fence.marker_ok = known.is_none_or(|i| Incarnation::parse(frame.text(data)) == Some(i));
                if !fence.marker_ok {
                    self.fault(node, Reason::MarkerStale);
                }
            }
            (RepairStep::Marker, ReplyKind::MetaVa { .. } | ReplyKind::MetaEn) => {
                self.fault(node, Reason::MarkerLost);
            }
            (RepairStep::Clock, ReplyKind::MetaVa { .. } | ReplyKind::MetaEn) => {
                fence.asked.shown = clock::shown(frame);
            }
            (RepairStep::Read | RepairStep::Compare, ReplyKind::MetaVa { .. } | ReplyKind::MetaEn) => {
                let Ok(answer) = Answer::to(key, frame) else { return Told::Nonsense };
                let item = (answer.code == Code::Value).then(|| answer.item(frame, fence.asked));
                if step == RepairStep::Compare {
                    (fence.copy, fence.copy_stale) = (Some(item), answer.stale);
                } else if self.repair_has_read((id, node), key, item, &answer) {
                    return Told::Waits;
                }
            }
            (RepairStep::GiveBack, ReplyKind::MetaHd | ReplyKind::MetaNf | ReplyKind::MetaEx) => {}
            (RepairStep::Drop, ReplyKind::MetaHd | ReplyKind::MetaNf) => {}
            (RepairStep::Add, ReplyKind::MetaHd) => {}
            (RepairStep::Add, ReplyKind::MetaNs | ReplyKind::ServerError | ReplyKind::ClientError) => {
                // Refused for its size, for want of memory or for what it is: the follower holds
                // nothing of the key rather than something old.
                self.stats.repair_failed();
                (fence.failed, fence.copied) = (true, false);
            }
            (RepairStep::Verify, ReplyKind::MetaHd | ReplyKind::MetaEn) => {
                self.repair_verified(id, key, frame);
                return Told::Waits;
            }
            (RepairStep::Marker | RepairStep::Drop, ReplyKind::ServerError) => {
                self.stats.repair_failed();
                fence.failed = true;
            }
            _ => return Told::Nonsense,
        }
        Told::GoesOn
    }

    /// The leader's item was read. Returns whether the right to recompute it is to be given back
    /// before anything else.
    fn repair_has_read(
        &mut self,
        (id, node): (OpId, NodeId),
        key: &Bytes,
        item: Option<Item>,
        answer: &Answer,
    ) -> bool {
        if let Some(fence) = self.fences.get_mut(key) {
            // A stale item must not become a fresh one, and a remaining time of 0 stored back would
            // mean for ever.
            fence.item = Some(item.filter(|item| !answer.stale && item.seen.ttl != 0));
        }
        if answer.stale && holds(Rule::MarkedStaysGone) {
            self.miss(id);
        }
        let gives_back = answer.won && answer.cas != 0 && holds(Rule::WonIsGivenBack);
        if gives_back {
            self.give_back(id, node, key, answer.cas);
        }
        gives_back
    }

    /// The leader's item was looked at once more, behind the follower's new copy.
    fn repair_verified(&mut self, id: OpId, key: &Bytes, frame: &Frame<'_>) {
        let Some(fence) = self.fences.get_mut(key) else { return };
        let cas = |answer: Answer| (answer.code == Code::Done).then_some(answer.cas);
        let now = Answer::to_unechoed(frame).ok().and_then(cas);
        let read = fence.item.as_ref().and_then(|i| i.as_ref().map(|i| i.cas));
        if now == read || read.is_none() {
            if !fence.failed {
                self.stats.repaired();
            }
            return self.repair_done(key);
        }
        let Some(repair) = &mut self.ops[id].repair else { return };
        repair.tries += 1;
        if repair.tries < REPAIR_TRIES {
            return self.repair_read(key);
        }
        self.stats.repair_failed();
        fence.failed = true;
        self.repair_done(key);
    }

    /// The repair's look at a stale item has won the right to recompute it, which a client must
    /// get.
    fn give_back(&mut self, id: OpId, leader: NodeId, key: &Bytes, cas: u64) {
        let leader = self.links.of(leader, self.ops[id].hash);
        node::md_stale(self.links[leader].out(self.now.us), Key::known(key), cas);
        self.send_step(id, leader, RepairStep::GiveBack);
        if let Some(repair) = &mut self.ops[id].repair {
            repair.outstanding += 1;
        }
    }

    pub(super) fn repair_write(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.get(key) else { return };
        let id = fence.owner;
        let op = &self.ops[id];
        let (pair, hash) = (op.pair, op.hash);
        let leader = self.pairs.leader_of(pair);
        if !fence.marker_ok {
            // Told already. Either the leader's memory is gone: then the next route is under way;
            // or the marker alone was evicted and is written again: to give up now would leave two
            // copies that differ in a mirrored pair.
            return self.repair_later(key, leader);
        }
        let (Some(node), Some(item)) = (self.pairs.follower_of(pair), fence.item.clone()) else {
            return self.repair_broken(id, leader);
        };
        if self.pairs.is_void(pair, node) {
            return self.repair_broken(id, Some(node));
        }
        if fence.copy.as_ref().is_some_and(|copy| !fence.copy_stale && are_equal(&item, copy)) {
            let op = &mut self.ops[id];
            if op.kind == Kind::Mend {
                op.answer = Some(Outcome::NotStored);
            }
            return self.repair_done(key);
        }
        let at = self.links.of(node, hash);
        if !self.is_ready_for_repair(at) {
            return self.repair_later(key, Some(node));
        }
        if let Some(fence) = self.fences.get_mut(key) {
            fence.goes_on();
        }
        // One that is over by now is dropped, and that is all.
        let from = leader.and_then(|leader| self.links[leader].offset);
        let (to, now) = (self.links[node].offset, self.date());
        let item = item.and_then(|item| item.seen.exptime_of_copy(from, to, now).map(|exptime| (item, exptime)));
        let out = self.links[at].out(self.now.us);
        node::md_unechoed(out, Key::known(key));
        if let Some((item, exptime)) = &item {
            let key = if item.binary { Key::new(key, true) } else { Key::known(key) };
            node::ms_add(out, key, &item.value, (item.flags, *exptime), false);
        }
        if let Some(fence) = self.fences.get_mut(key) {
            (fence.written, fence.copied) = (true, item.is_some());
        }
        self.send_step(id, at, RepairStep::Drop);
        if item.is_some() {
            self.send_step(id, at, RepairStep::Add);
        }
        self.set_outstanding(id, 1 + u32::from(item.is_some()));
    }

    pub(super) fn repair_verify(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.get(key) else { return };
        let id = fence.owner;
        if matches!(fence.item, Some(None)) {
            // Nothing was copied that could be wrong, and to look at a stale item would win it.
            self.stats.repaired();
            return self.repair_done(key);
        }
        let op = &self.ops[id];
        let leader = self.pairs.leader_of(op.pair).filter(|&leader| !self.pairs.is_void(op.pair, leader));
        let leader = leader.map(|leader| self.links.of(leader, op.hash));
        let Some(leader) = leader.filter(|&leader| self.links[leader].state == LinkState::Ready) else {
            // The follower holds what the leader held when it answered: that is as good as
            // verified, for the writes are fenced. If it has refused it, it holds nothing of it,
            // and the leader's word counts only if that one is still there.
            return match leader {
                _ if !fence.failed => self.repair_done(key),
                Some(leader) => {
                    self.is_ready_for_repair(leader);
                    self.repair_later(key, Some(leader.node))
                }
                None => self.repair_broken(id, self.pairs.leader_of(op.pair)),
            };
        };
        node::mg_unmoved(self.links[leader].out(self.now.us), Key::known(key), Ask::Cas);
        self.send_step(id, leader, RepairStep::Verify);
        self.set_outstanding(id, 1);
    }

    pub(super) fn repair_done(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.remove(key) else { return };
        if fence.failed {
            self.miss(fence.owner);
        }
        let pair = self.ops[fence.owner].pair;
        if let Some(flow) = &self.pairs[pair].flow {
            match fence.failed {
                true => flow.lone.insert(key),
                false => flow.lone.remove(key),
            }
        }
        for id in std::iter::once(fence.owner).chain(fence.attached) {
            self.note_brief_write(id, false);
            if fence.failed && self.ops[id].kind == Kind::Mend {
                self.fail(id, OUTCOME_UNKNOWN);
            } else {
                self.finish_with_answer(id);
            }
        }
        for id in fence.queue {
            self.begin(id);
        }
    }

    /// The repair cannot go on because `node` is out of use. `None`: the pair never had a leader.
    pub(super) fn repair_broken(&mut self, id: OpId, node: Option<NodeId>) {
        let op = &self.ops[id];
        let pair = op.pair;
        let key = Bytes::copy_from_slice(op.key());
        let leader = self.pairs.leader_of(pair);
        let Some(fence) = self.fences.remove(&key) else { return };
        let owner = fence.owner;
        self.miss(owner);
        self.forget_repair_flights(owner);
        for id in std::iter::once(owner).chain(fence.attached) {
            match leader {
                // The follower is lost: the leader's answer stands, once the loss is recorded. (A
                // mend ends here, undone.)
                Some(leader) if node != Some(leader) || self.ops[id].kind == Kind::Mend => {
                    self.leave_flight(id);
                    self.park(id, Stage::Held(leader));
                }
                _ if fence.copied => {
                    self.note_brief_write(id, false);
                    self.finish_with_answer(id);
                }
                Some(leader) if self.may_be_decided_without(id, fence.written) => {
                    let memory = self.links[leader].incarnation;
                    self.leave_flight(id);
                    self.park(id, Stage::Executed(leader, memory));
                }
                _ => self.fail(id, OUTCOME_UNKNOWN),
            }
        }
        for id in fence.queue {
            self.begin(id);
        }
    }

    /// Whether the client's answer is known in case the leader, which executed the operation and is
    /// lost, does not lead again. `written`: the repair has begun to change the follower's copy,
    /// and has not finished that.
    fn may_be_decided_without(&self, id: OpId, written: bool) -> bool {
        match self.ops[id].repair.as_ref().and_then(|repair| repair.decisive.as_ref()) {
            // The follower holds nothing, as it has said.
            Some(Decisive { absent: true, .. }) => true,
            Some(Decisive { absent: false, .. }) => !written,
            // It was sent nothing of it: there it is as new.
            None => true,
        }
    }

    pub(super) fn forget_repair_flights(&mut self, id: OpId) {
        let sent = self.ops[id].repair.as_mut().map(|repair| std::mem::take(&mut repair.sent)).unwrap_or_default();
        for (at, number) in sent {
            self.links[at].void_repair(number, id);
            self.tell_undrained(at.node);
        }
        #[cfg(test)]
        for sent in self.links.iter().flat_map(|link| &link.conns).flat_map(|conn| &conn.flights) {
            assert!(!matches!(sent.flight, Flight::Repair(op, _) if op == id), "a repair's command is not found");
        }
    }
}
