//! Operations: begun, sent, stranded, finished.

use crate::ids::{NodeId, PairId};
use crate::pair::Reason;
use crate::protocol::expiry;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::proxy::link::{Flight, LinkState};
use crate::proxy::op::{Kind, Op, Origin, Stage};
use crate::proxy::route::{Follower, Route};
use crate::rules::{Rule, holds};

use super::orders::settlement;
use super::{Core, OUTCOME_UNKNOWN};

const READ_ONLY: Refusal = Refusal::Server(
    "the key's last node cannot record that it leads alone (is it full, with -M?); it can only be read",
);

impl Core {
    /// A place in the worker's table, until it is finished.
    #[inline(always)]
    pub(super) fn take_in(&mut self, op: Op) -> u32 {
        if op.kind == Kind::Add {
            self.adds.begun(op.hash);
        }
        self.ops.insert(op)
    }

    pub(super) fn begin(&mut self, id: u32) {
        let op = &self.ops[id as usize];
        let write = op.kind.is_write();
        match &self.pairs[op.pair.index()].route {
            Route::Closed => self.park(id, Stage::Parked),
            Route::Dark(reason) => {
                let refusal = dark_line(*reason);
                self.stats.refused();
                self.fail(id, refusal)
            }
            // A write that is parked although the route is open met a broken node: those behind it
            // must not overtake it on a new connection to that node, which then executes the later
            // of two writes first.
            Route::Open(_) if write && !self.pairs[op.pair.index()].parked.is_empty() => {
                self.park(id, Stage::Parked);
            }
            Route::Open(flow) => {
                if write
                    && holds(Rule::FencedRepair)
                    && !self.fences.is_empty()
                    && let Some(fence) = self.fences.get_mut(op.key())
                {
                    fence.queue.push_back(id);
                    return;
                }
                if write && !flow.writable {
                    self.stats.refused();
                    return self.fail(id, READ_ONLY);
                }
                if write && matches!(flow.follower, Follower::None) {
                    // Before it is sent: its answer may never come.
                    flow.missed.insert(op.key());
                }
                if write
                    && let Some(written) = &flow.written
                    && matches!(op.origin, Origin::Client(_))
                {
                    // Before it is sent: an adoption that comes later gives way, one that came
                    // earlier is in front of it on the connection.
                    written.insert(op.key());
                }
                let leader = flow.leader;
                if write && self.begun.is_some() {
                    self.count_begun(id);
                }
                let op = &mut self.ops[id as usize];
                if op.exptime > 0 && op.date.is_none() {
                    self.date_op(id);
                }
                let op = &mut self.ops[id as usize];
                op.stage = Stage::Leader(leader);
                self.send_op(id, leader);
            }
        }
    }

    /// Once: another leader, and the follower, are told the same date.
    fn date_op(&mut self, id: u32) {
        let now = self.date();
        let op = &mut self.ops[id as usize];
        op.date = expiry::date(op.exptime, now);
    }

    /// Queues the command of the operation's present stage for a node.
    pub(super) fn send_op(&mut self, id: u32, node: NodeId) {
        let lane = self.lane(self.ops[id as usize].hash);
        match self.links[node.index()].conns[lane].state {
            LinkState::Ready => {
                let op = &self.ops[id as usize];
                let conn = &mut self.links[node.index()].conns[lane];
                if conn.must_wait(op.bytes, op.kind.is_write(), op.hash) {
                    return conn.waiting.push(id, op.hash, self.now_us);
                }
                self.send_now(id, node, lane);
            }
            LinkState::Idle => {
                let hash = self.ops[id as usize].hash;
                self.links[node.index()].conns[lane].waiting.push(id, hash, self.now_us);
                self.dial(node, lane);
            }
            LinkState::Dialing | LinkState::Checking => {
                let hash = self.ops[id as usize].hash;
                self.links[node.index()].conns[lane].waiting.push(id, hash, self.now_us);
            }
            // Behind a connection in doubt nothing is sent; the fault is told, and the pair's next
            // route decides.
            LinkState::Discarding => self.unsent(id, node),
        }
    }

    /// What a node is told of the operation's exptime.
    #[inline(always)]
    fn exptime_on(&self, op: &Op, node: NodeId) -> i64 {
        if op.exptime <= 0 { op.exptime } else { self.exptime_dated(op, node) }
    }

    fn exptime_dated(&self, op: &Op, node: NodeId) -> i64 {
        let Some(there) = self.offsets[node.index()] else { return op.exptime };
        match (op.date, op.stage) {
            (Some(date), _) => there.there(date),
            // A client's own date is one of the leader's clock: the follower's item ends in the
            // same second.
            (None, Stage::Follower(_)) if op.exptime > expiry::RELATIVE_MAX_SECS => {
                let leader = self.offsets[self.leader_of(op.pair).index()];
                leader.map_or(op.exptime, |leader| there.there(leader.here(op.exptime)))
            }
            (None, _) => op.exptime,
        }
    }

    #[inline(always)]
    fn send_now(&mut self, id: u32, node: NodeId, lane: usize) {
        let op = &self.ops[id as usize];
        let bytes = op.bytes;
        // (A read has one stage.)
        if !op.kind.is_write() {
            let conn = &mut self.links[node.index()].conns[lane];
            conn.put_get(op.kind, op.key(), id, self.now_us, bytes);
            return self.mark_conn_dirty(node, lane);
        }
        let exptime = self.exptime_on(op, node);
        let link = &mut self.links[node.index()];
        let (marked, conn) = (link.incarnation.is_some(), &mut link.conns[lane]);
        match op.stage {
            Stage::Leader(_) => {
                let term = self.pairs[op.pair.index()].flow.as_ref().and_then(|f| f.term);
                op.encode_leader(conn.out(self.now_us), term, exptime);
                // Its success says that the key was not there: the proof comes with the answer.
                conn.marker_due |= op.kind == Kind::Add && marked;
            }
            _ => {
                op.encode_follower(conn.out(self.now_us), op.sent, exptime);
                conn.urgent = true;
            }
        }
        self.sent(node, lane, Flight::Op(id), bytes);
    }

    /// Sends what has waited for room in the connection.
    pub(super) fn send_waiting(&mut self, node: NodeId, lane: usize) {
        while let Some(id) = self.links[node.index()].conns[lane].waiting.first() {
            let conn = &mut self.links[node.index()].conns[lane];
            if conn.state != LinkState::Ready || !conn.has_room(self.ops[id as usize].bytes) {
                return;
            }
            conn.waiting.pop();
            self.send_now(id, node, lane);
        }
    }

    /// `bytes`: what it counts for among what the connection has outstanding.
    pub(super) fn sent(&mut self, node: NodeId, lane: usize, flight: Flight, bytes: u32) {
        self.links[node.index()].conns[lane].push(flight, self.now_us, bytes);
        self.mark_conn_dirty(node, lane);
    }

    /// The connection has something to write.
    pub(super) fn mark_conn_dirty(&mut self, node: NodeId, lane: usize) {
        if !self.links[node.index()].conns[lane].dirty {
            self.mark_conn_dirty_anyway(node, lane);
        }
    }

    /// The same also where it waits for room in its socket, which is over or is not to be waited
    /// for. (Being on the list twice does no harm.)
    pub fn mark_conn_dirty_anyway(&mut self, node: NodeId, lane: usize) {
        self.links[node.index()].conns[lane].dirty = true;
        self.outbox.dirty_conns.push((node, lane));
    }

    pub(super) fn lane(&self, hash: u32) -> usize {
        hash as usize % self.settings.lanes
    }

    /// An operation was never sent to the node it waited for: it is as new, or the follower is lost
    /// before it got its part.
    pub(super) fn unsent(&mut self, id: u32, node: NodeId) {
        match self.ops[id as usize].stage {
            Stage::Follower(n) if n == node => self.strand(id, node),
            _ => {
                self.leave_flight(id);
                self.park(id, Stage::Parked);
            }
        }
    }

    /// The answer of `node` for this operation will not come, or counts for nothing.
    pub(super) fn strand(&mut self, id: u32, node: NodeId) {
        let op = &self.ops[id as usize];
        match op.stage {
            Stage::Leader(n) if n == node => {
                self.leave_flight(id);
                self.park(id, Stage::Unknown(node));
            }
            Stage::Follower(n) if n == node => {
                let leader = self.leader_of(op.pair);
                self.leave_flight(id);
                self.park(id, Stage::Held(leader));
            }
            Stage::Repair => self.repair_broken(id, node),
            _ => {}
        }
    }

    /// The operation's key may now differ on the two nodes of its pair: whichever of them is away
    /// with its memory, this key is out of date when it returns.
    pub(super) fn miss(&self, id: u32) {
        let op = &self.ops[id as usize];
        if op.kind.is_write()
            && let Some(flow) = &self.pairs[op.pair.index()].flow
        {
            flow.missed.insert(op.key());
        }
    }

    pub(super) fn leader_of(&self, pair: PairId) -> NodeId {
        match &self.pairs[pair.index()].flow {
            Some(flow) => flow.leader,
            None => self.topology.nodes_of(pair).0,
        }
    }

    pub(super) fn is_void(&self, pair: PairId, node: NodeId) -> bool {
        self.pairs[pair.index()].closing.as_ref().is_some_and(|c| c.void.contains(&node))
    }

    /// The operation is not in flight any more: the pair's gate may be waiting for that, and so may
    /// a repair of its key.
    pub(super) fn leave_flight(&mut self, id: u32) {
        let op = &self.ops[id as usize];
        let pair = op.pair;
        if let Some(closing) = &mut self.pairs[pair.index()].closing
            && closing.in_flight > 0
        {
            closing.in_flight -= 1;
        }
        if self.begun.is_some() && op.kind.is_write() && op.stage != Stage::Repair {
            self.discount_begun(id);
            self.fence_progress(id);
        }
        self.report_closed(pair);
    }

    pub(super) fn finish_with_answer(&mut self, id: u32) {
        let answer = self.ops[id as usize].answer.take().unwrap_or(Outcome::Refused(OUTCOME_UNKNOWN));
        self.finish(id, answer);
    }

    /// Ends with an error of the proxy's own.
    pub(super) fn fail(&mut self, id: u32, refusal: Refusal) {
        let op = &self.ops[id as usize];
        if let Origin::Client(asker) = op.origin {
            let (client, key) = (asker.client.generation, String::from_utf8_lossy(op.key()));
            let said = refusal.words();
            tracing::debug!(client, worker = asker.worker, %key, kind = ?op.kind, said, "a request is refused");
        }
        self.finish(id, Outcome::Refused(refusal));
    }

    pub(super) fn finish(&mut self, id: u32, answer: Outcome) {
        // While a gate closes, the counting in `leave_flight` is only for what was in flight.
        if self.ops[id as usize].stage.is_in_flight() {
            self.leave_flight(id);
        }
        let op = &self.ops[id as usize];
        let (kind, hash, origin) = (op.kind, op.hash, op.origin);
        self.ops.remove(id);
        if kind == Kind::Add {
            // It was answered by a node whose memory is proved, or every worker has left the route
            // under which it was not, or nobody is told what came of it.
            self.adds.ended(hash);
        }
        match origin {
            Origin::Client(asker) => self.deliver(asker, answer),
            Origin::Control(ticket) => self.settle(ticket, settlement(&answer)),
        }
    }
}

fn dark_line(reason: Reason) -> Refusal {
    Refusal::Server(match reason {
        Reason::Refused => "no copy of this key is reachable: its last node refuses connections",
        Reason::Reset => "no copy of this key is reachable: its last node broke the connection",
        Reason::Timeout => "no copy of this key is reachable: its last node does not answer in time",
        Reason::Protocol => "no copy of this key is reachable: its last node does not speak memcached's protocol",
        Reason::StaleAlone => {
            "the reachable copy of this key is recorded as out of date and the current one does not answer"
        }
        Reason::MarkerStale => "no copy of this key is left: what its nodes hold is out of date and not purged yet",
        Reason::MarkerLost | Reason::Empty => {
            "no copy of this key is left: its last node lost its memory and the other is not usable yet"
        }
        _ => "no copy of this key is reachable",
    })
}
