//! Repairs: the two copies answered one write differently.

use super::*;

impl Core {
    /// Leader and follower answered differently: drop the follower's copy, add the leader's, verify; later writes of the key wait.
    pub(super) fn repair(&mut self, id: u32) {
        let op = &mut self.ops[id as usize];
        op.stage = Stage::Repair;
        op.repair = Some(Box::new(Repair::default()));
        let key = Bytes::copy_from_slice(op.key());
        let write = op.kind != Kind::Mend;
        if let Some(fence) = self.fences.get_mut(&key) {
            // An older write of the key is being repaired: when it is equal, so is this one.
            fence.attached.push(id);
            if write {
                self.fence_progress_key(&key);
            }
            return;
        }
        let begun = |op: &Op| {
            op.kind.is_write() && op.stage.is_in_flight() && op.stage != Stage::Repair && op.key() == &key[..]
        };
        let waiting_for = self.ops.iter().filter(|(_, op)| begun(op)).count() as u32;
        self.fences.insert(key.clone(), Fence { owner: id, waiting_for, ..Fence::default() });
        if waiting_for == 0 {
            self.repair_read(&key);
        }
    }

    /// A write begun before the fence stood is through.
    pub(super) fn fence_progress(&mut self, id: u32) {
        let key = self.ops[id as usize].key();
        if let Some((key, _)) = self.fences.get_key_value(key) {
            let key = key.clone();
            self.fence_progress_key(&key);
        }
    }

    pub(super) fn fence_progress_key(&mut self, key: &Bytes) {
        if let Some(fence) = self.fences.get_mut(key)
            && fence.waiting_for > 0
        {
            fence.waiting_for -= 1;
            if fence.waiting_for == 0 {
                self.repair_read(key);
            }
        }
    }

    pub(super) fn repair_read(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.get_mut(key) else { return };
        fence.item = None;
        fence.copy = None;
        fence.marker_ok = false;
        fence.failed = false;
        fence.retry_at_us = None;
        let id = fence.owner;
        let op = &self.ops[id as usize];
        let pair = op.pair;
        let leader = self.leader_of(pair);
        let lane = self.lane(op.hash);
        let follower = self.pairs[pair.index()].flow.as_ref().and_then(|f| f.follower.node());
        let Some(follower) = follower else { return self.repair_broken(id, leader) };
        if let Some(node) = [leader, follower].into_iter().find(|&node| self.is_void(pair, node)) {
            return self.repair_broken(id, node);
        }
        // The leader may have executed a parked operation, which is run again on the follower if that one leads next: it must not get there
        // by a repair meanwhile.
        let in_doubt = |&id: &u32| self.ops[id as usize].stage != Stage::Parked;
        if self.pairs[pair.index()].parked.iter().any(in_doubt) {
            return self.repair_later(key);
        }
        if [leader, follower].into_iter().any(|node| !self.is_ready_for_repair(node, lane)) {
            return self.repair_later(key);
        }
        let marked = self.links[leader.index()].incarnation.is_some();
        let out = self.links[leader.index()].conns[lane].out(self.now_us);
        out.put(b"mg ");
        out.put(key);
        out.put(b" v f t c\r\n");
        self.sent(leader, lane, Flight::Repair(id, RepairStep::Read));
        // Behind it: whether the leader's memory was still the one that the route was made for. If it had just gone, "repairing" would
        // destroy the good copy.
        if marked {
            let out = self.links[leader.index()].conns[lane].out(self.now_us);
            out.put(crate::proxy::MARKER_READ);
            self.sent(leader, lane, Flight::Repair(id, RepairStep::Marker));
        } else if let Some(fence) = self.fences.get_mut(key) {
            fence.marker_ok = true;
        }
        // No write has found a difference here: perhaps there is none.
        let compared = self.ops[id as usize].kind == Kind::Mend;
        if compared {
            let out = self.links[follower.index()].conns[lane].out(self.now_us);
            out.put(b"mg ");
            out.put(key);
            out.put(b" v f t c\r\n");
            self.sent(follower, lane, Flight::Repair(id, RepairStep::Compare));
        }
        self.set_outstanding(id, 1 + u32::from(marked) + u32::from(compared));
    }

    /// A connection may have broken while nothing was in flight on it: that is no fault, so no new route follows. It is dialled again.
    fn is_ready_for_repair(&mut self, node: NodeId, lane: usize) -> bool {
        if self.links[node.index()].conns[lane].state == LinkState::Idle {
            self.dial(node, lane);
        }
        self.links[node.index()].conns[lane].state == LinkState::Ready
    }

    /// The repair begins again at a later tick, unless one of the nodes is deposed before.
    fn repair_later(&mut self, key: &Bytes) {
        let at_us = self.now_us + REPAIR_RETRY_US;
        if let Some(fence) = self.fences.get_mut(key) {
            fence.retry_at_us = Some(at_us);
        }
    }

    /// Repairs that wait for a marker or a connection are tried again. Called at every tick.
    pub(super) fn retry_repairs(&mut self) {
        let due = |f: &Fence| f.retry_at_us.is_some_and(|at| at <= self.now_us);
        let keys: Vec<Bytes> = self.fences.iter().filter(|(_, f)| due(f)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.repair_read(&key);
        }
    }

    /// A repair that waits for a marker or a connection has nothing in flight that could be voided, and the gate waits for it.
    pub(super) fn void_waiting_repairs(&mut self, pair: PairId, node: NodeId) {
        let waits = |f: &Fence| f.retry_at_us.is_some() && self.ops[f.owner as usize].pair == pair;
        let owners: Vec<u32> = self.fences.values().filter(|f| waits(f)).map(|f| f.owner).collect();
        for owner in owners {
            self.repair_broken(owner, node);
        }
    }

    pub(super) fn set_outstanding(&mut self, id: u32, count: u32) {
        if let Some(repair) = &mut self.ops[id as usize].repair {
            repair.outstanding = count;
        }
    }

    pub(super) fn repair_answered(
        &mut self,
        id: u32,
        node: NodeId,
        step: RepairStep,
        reply: &Reply,
        unit: &Bytes,
    ) -> bool {
        let Some(op) = self.ops.get_mut(id as usize) else { return true };
        let pair = op.pair;
        let key = Bytes::copy_from_slice(op.key());
        let Some(repair) = &mut op.repair else { return true };
        repair.outstanding = repair.outstanding.saturating_sub(1);
        let outstanding = repair.outstanding;
        let leader = self.leader_of(pair);
        let Some(fence) = self.fences.get_mut(&key) else { return true };
        let flag = |letter| reply::meta_flag(&unit[reply.line.clone()], letter).and_then(parse_i64);
        match (step, &reply.kind) {
            (RepairStep::Marker, ReplyKind::MetaVa { data }) => {
                fence.marker_ok = self.links[leader.index()]
                    .incarnation
                    .is_none_or(|i| unit[data.clone()] == *i.to_string().as_bytes());
                if !fence.marker_ok {
                    self.fault(leader, Reason::MarkerStale, false);
                }
            }
            (RepairStep::Marker, ReplyKind::MetaEn) => {
                self.fault(leader, Reason::MarkerLost, false);
            }
            (RepairStep::Read, ReplyKind::MetaVa { data }) => {
                let item = HeldItem::of(reply, unit, data.clone());
                // A stale item must not become a fresh one, and a remaining time of 0 stored back would mean for ever.
                fence.item = Some((!item.stale && item.ttl != 0).then_some(item));
            }
            (RepairStep::Read, ReplyKind::MetaEn) => fence.item = Some(None),
            (RepairStep::Compare, ReplyKind::MetaVa { data }) => {
                fence.copy = Some(Some(HeldItem::of(reply, unit, data.clone())));
            }
            (RepairStep::Compare, ReplyKind::MetaEn) => fence.copy = Some(None),
            (RepairStep::Drop, ReplyKind::MetaHd | ReplyKind::MetaNf) => {}
            (RepairStep::Add, ReplyKind::MetaHd) => {}
            (RepairStep::Add, ReplyKind::MetaNs | ReplyKind::ServerError) => {
                // Refused for its size or for want of memory: the follower holds nothing of the key rather than something old.
                self.stats.repair_failed();
                fence.failed = true;
                fence.item = Some(None);
            }
            (RepairStep::Verify, ReplyKind::MetaHd | ReplyKind::MetaEn) => {
                let now = (reply.kind == ReplyKind::MetaHd).then(|| flag(b'c').unwrap_or(0) as u64);
                let read = fence.item.as_ref().and_then(|i| i.as_ref().map(|i| i.cas));
                if now == read || read.is_none() {
                    self.stats.repaired();
                    self.repair_done(&key);
                    return true;
                }
                if let Some(repair) = &mut self.ops[id as usize].repair {
                    repair.tries += 1;
                    if repair.tries < REPAIR_TRIES {
                        self.repair_read(&key);
                    } else {
                        self.stats.repair_failed();
                        fence.failed = true;
                        self.repair_done(&key);
                    }
                }
                return true;
            }
            (RepairStep::Marker | RepairStep::Drop, ReplyKind::ServerError) => {
                self.stats.repair_failed();
                fence.failed = true;
            }
            _ => {
                // No answer to this command, or none to go on with: the caller gives the connection up, and nobody else would end
                // the repair.
                self.repair_broken(id, node);
                return false;
            }
        }
        if outstanding > 0 {
            return true;
        }
        match step {
            RepairStep::Marker | RepairStep::Read | RepairStep::Compare => self.repair_write(&key),
            RepairStep::Drop | RepairStep::Add => self.repair_verify(&key),
            RepairStep::Verify => {}
        }
        true
    }

    pub(super) fn repair_write(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.get(key) else { return };
        let id = fence.owner;
        let op = &self.ops[id as usize];
        let (pair, lane) = (op.pair, self.lane(op.hash));
        let follower = self.pairs[pair.index()].flow.as_ref().and_then(|f| f.follower.node());
        if !fence.marker_ok {
            // Told already. Either the leader's memory is gone: then the next route is under way; or the marker alone was evicted and
            // is written again: to give up now would leave two copies that differ in a mirrored pair.
            return self.repair_later(key);
        }
        let (Some(node), Some(item)) = (follower, fence.item.clone()) else {
            return self.repair_broken(id, self.leader_of(pair));
        };
        if self.is_void(pair, node) {
            return self.repair_broken(id, node);
        }
        if fence.copy.as_ref().is_some_and(|copy| HeldItem::are_equal(&item, copy)) {
            self.ops[id as usize].answer = Some(Answer::Static(SUPERFLUOUS));
            return self.repair_done(key);
        }
        if !self.is_ready_for_repair(node, lane) {
            return self.repair_later(key);
        }
        let clock = self.clock_of(node);
        let out = self.links[node.index()].conns[lane].out(self.now_us);
        out.put(b"md ");
        out.put(key);
        out.put(b"\r\n");
        if let Some(item) = &item {
            out.put(b"ms ");
            out.put(key);
            out.put(b" ");
            out.put_number(item.data.len());
            out.put(b" ME F");
            out.put_number(item.flags);
            if item.ttl > 0 {
                out.put(b" T");
                out.put_number(if item.ttl > RELATIVE_EXPTIME_MAX { clock.saturating_add(item.ttl) } else { item.ttl });
            }
            out.put(b"\r\n");
            out.put_shared(item.data.clone());
            out.put(b"\r\n");
        }
        self.sent(node, lane, Flight::Repair(id, RepairStep::Drop));
        if item.is_some() {
            self.sent(node, lane, Flight::Repair(id, RepairStep::Add));
        }
        self.set_outstanding(id, 1 + u32::from(item.is_some()));
    }

    pub(super) fn repair_verify(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.get(key) else { return };
        let id = fence.owner;
        let op = &self.ops[id as usize];
        let leader = self.leader_of(op.pair);
        let lane = self.lane(op.hash);
        if self.is_void(op.pair, leader) || self.links[leader.index()].conns[lane].state != LinkState::Ready {
            // The follower holds what the leader held when it answered: that is as good as verified, for the writes are fenced.
            return self.repair_done(key);
        }
        let out = self.links[leader.index()].conns[lane].out(self.now_us);
        out.put(b"mg ");
        out.put(key);
        out.put(b" c\r\n");
        self.sent(leader, lane, Flight::Repair(id, RepairStep::Verify));
        self.set_outstanding(id, 1);
    }

    pub(super) fn repair_done(&mut self, key: &Bytes) {
        let Some(fence) = self.fences.remove(key) else { return };
        if fence.failed {
            self.miss(fence.owner);
        }
        for id in std::iter::once(fence.owner).chain(fence.attached) {
            if fence.failed && self.ops[id as usize].kind == Kind::Mend {
                self.finish(id, Answer::Static(OUTCOME_UNKNOWN));
            } else {
                self.finish_with_answer(id);
            }
        }
        for id in fence.queue {
            self.begin(id);
        }
    }

    /// The repair cannot go on because `node` is out of use.
    pub(super) fn repair_broken(&mut self, id: u32, node: NodeId) {
        let op = &self.ops[id as usize];
        let pair = op.pair;
        let key = Bytes::copy_from_slice(op.key());
        let leader = self.leader_of(pair);
        let Some(fence) = self.fences.remove(&key) else { return };
        let rewritten = matches!(fence.item, Some(Some(_))) && fence.marker_ok;
        let owner = fence.owner;
        self.miss(owner);
        self.forget_repair_flights(owner);
        for id in std::iter::once(owner).chain(fence.attached) {
            if node != leader || self.ops[id as usize].kind == Kind::Mend {
                // The follower is lost: the leader's answer stands, once the loss is recorded. (A mend ends here, undone.)
                self.leave_flight(id);
                self.park(id, Stage::Held(leader));
            } else if rewritten {
                self.finish_with_answer(id);
            } else {
                self.finish(id, Answer::Static(OUTCOME_UNKNOWN));
            }
        }
        for id in fence.queue {
            self.begin(id);
        }
    }

    pub(super) fn forget_repair_flights(&mut self, id: u32) {
        for link in &mut self.links {
            for conn in &mut link.conns {
                for sent in &mut conn.flights {
                    if matches!(sent.flight, Flight::Repair(op, _) if op == id) {
                        sent.flight = Flight::Void;
                        conn.voids += 1;
                    }
                }
            }
        }
        for index in 0..self.links.len() {
            self.tell_undrained(NodeId(index as u16));
        }
    }
}

impl HeldItem {
    fn of(reply: &Reply, unit: &Bytes, data: std::ops::Range<usize>) -> HeldItem {
        let line = &unit[reply.line.clone()];
        let flag = |letter| reply::meta_flag(line, letter).and_then(parse_i64);
        HeldItem {
            data: unit.slice(data),
            flags: flag(b'f').unwrap_or(0) as u32,
            ttl: flag(b't').unwrap_or(0),
            cas: flag(b'c').unwrap_or(0) as u64,
            stale: [b'W', b'X', b'Z'].into_iter().any(|f| reply::meta_flag(line, f).is_some()),
        }
    }

    /// Whether a client could not tell them apart. The two were read a moment apart, and each node counts seconds by itself.
    fn are_equal(one: &Option<HeldItem>, other: &Option<HeldItem>) -> bool {
        let (Some(a), Some(b)) = (one, other) else { return one.is_none() && other.is_none() };
        let ttl = if a.ttl < 0 || b.ttl < 0 { a.ttl == b.ttl } else { a.ttl.abs_diff(b.ttl) <= 1 };
        ttl && a.flags == b.flags && a.data == b.data && !a.stale && !b.stale
    }
}
