//! Operations: begun, sent, stranded, finished.

use crate::ids::NodeId;
use crate::pair::Reason;
use crate::protocol::expiry;
use crate::protocol::key::Key;
use crate::protocol::node::{self, Ask};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::proxy::handles::{ConnId, OpId};
use crate::proxy::link::{Flight, LinkState};
use crate::proxy::op::{self, Asker, Kind, Mirror, Op, Origin, Stage, Wire};
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
    pub(super) fn take_in(&mut self, op: Op) -> OpId {
        if op.creates() {
            self.adds.begun(op.hash);
        }
        self.ops.insert(op)
    }

    pub(super) fn begin(&mut self, id: OpId) {
        if self.wary && self.looks_first(id) {
            return;
        }
        let op = &self.ops[id];
        let write = op.kind.is_write();
        match &self.pairs[op.pair].route {
            Route::Closed => self.park(id, Stage::Parked),
            Route::Dark(reason) => {
                let refusal = dark_line(*reason);
                self.stats.refused();
                self.fail(id, refusal)
            }
            // A write that is parked although the route is open met a broken node: those behind it
            // must not overtake it on a new connection to that node, which then executes the later
            // of two writes first.
            Route::Open(_) if write && !self.pairs[op.pair].parked.is_empty() => {
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
                if write && self.fences.is_counting() {
                    self.fences.count(op);
                }
                let op = &mut self.ops[id];
                if op.exptime > 0 && op.date.is_none() {
                    self.date_op(id);
                }
                let op = &mut self.ops[id];
                op.stage = Stage::Leader(leader);
                self.send_op(id, leader);
            }
        }
    }

    /// Done once: another leader, and the follower, get the same date.
    fn date_op(&mut self, id: OpId) {
        let now = self.date();
        let op = &mut self.ops[id];
        op.date = expiry::date(op.exptime, now);
        if op.kind == Kind::Set {
            self.note_brief_write(id, true);
        }
    }

    /// Queues the command of the operation's present stage for a node.
    pub(super) fn send_op(&mut self, id: OpId, node: NodeId) {
        let op = &self.ops[id];
        let at = self.links.of(node, op.hash);
        let conn = &mut self.links[at];
        match conn.state {
            LinkState::Ready => {
                if conn.must_wait(op.bytes, op.kind.is_write(), op.hash) {
                    return conn.waiting.push(id, op.hash, self.now.us);
                }
                self.send_now(id, at);
            }
            LinkState::Idle => {
                conn.waiting.push(id, op.hash, self.now.us);
                self.dial(at);
            }
            LinkState::Dialing | LinkState::Checking => conn.waiting.push(id, op.hash, self.now.us),
            // Behind a connection in doubt nothing is sent; the fault is reported, and the pair's
            // next route decides.
            LinkState::Discarding => self.unsent(id, node),
        }
    }

    /// The operation's exptime as it is sent to a node.
    #[inline(always)]
    fn exptime_on(&self, op: &Op, node: NodeId) -> i64 {
        if op.exptime <= 0 { op.exptime } else { self.exptime_dated(op, node) }
    }

    fn exptime_dated(&self, op: &Op, node: NodeId) -> i64 {
        let Some(there) = self.links[node].offset else { return op.exptime };
        match (op.date, op.stage) {
            (Some(date), _) => there.exptime(date, self.date()),
            // A client's own date is one of the leader's clock: the follower's item ends in the
            // same second.
            (None, Stage::Follower(_)) if op.exptime > expiry::RELATIVE_MAX_SECS => {
                let leader = self.pairs.leader_of(op.pair).and_then(|leader| self.links[leader].offset);
                leader.map_or(op.exptime, |leader| there.exptime(leader.here(op.exptime), self.date()))
            }
            (None, _) => op.exptime,
        }
    }

    #[inline(always)]
    fn send_now(&mut self, id: OpId, at: ConnId) {
        let op = &self.ops[id];
        let bytes = op.bytes;
        // Classic gets are only ever sent to the leader.
        if matches!(op.kind, Kind::Get | Kind::Gets) && op.wire == Wire::Classic {
            let conn = &mut self.links[at];
            conn.put_get(op.kind, op.key(), id, self.now.us, bytes);
            return self.outbox.mark_conn(conn, at);
        }
        let exptime = self.exptime_on(op, at.node);
        let marked = self.links[at.node].incarnation.is_some();
        let conn = &mut self.links[at];
        match op.stage {
            Stage::Leader(_) => {
                let term = self.pairs[op.pair].flow.as_ref().and_then(|f| f.term);
                op.encode_leader(conn.out(self.now.us), term, exptime);
                // Its success says that the key was not there: the proof comes with the answer.
                conn.marker_due |= (op.kind.only_adds() || op.initial.is_some()) && marked;
            }
            Stage::Look(_) => {
                node::mg(conn.out(self.now.us), Key::known(op.key()), Ask::State);
            }
            Stage::GiveBack { cas, .. } => {
                node::md_stale(conn.out(self.now.us), Key::known(op.key()), cas);
            }
            _ => {
                if op.sent == Mirror::Arithmetic && holds(Rule::BlanksAreCompared) {
                    node::mg_unmoved(conn.out(self.now.us), Key::known(op.key()), Ask::Length);
                    conn.push(Flight::Length(id), self.now.us, 0);
                }
                op.encode_follower(conn.out(self.now.us), op.sent, exptime);
                self.outbox.mark_conn_urgent(conn, at);
            }
        }
        conn.push(Flight::Op(id), self.now.us, bytes);
        self.outbox.mark_conn(conn, at);
        if self.mark.is_some() {
            self.ask_mark_behind(id, at);
        }
    }

    /// Sends what has waited for room in the connection.
    pub(super) fn send_waiting(&mut self, at: ConnId) {
        while let Some(id) = self.links[at].waiting.first() {
            let conn = &mut self.links[at];
            if conn.state != LinkState::Ready || !conn.has_room(self.ops[id].bytes) {
                return;
            }
            conn.waiting.pop();
            self.send_now(id, at);
        }
    }

    /// `bytes`: what it counts for among what the connection has outstanding.
    pub(super) fn sent(&mut self, at: ConnId, flight: Flight, bytes: u32) {
        let conn = &mut self.links[at];
        conn.push(flight, self.now.us, bytes);
        self.outbox.mark_conn(conn, at);
    }

    /// An operation was never sent to the node it waited for: it is as new, or the follower is lost
    /// before it got its part.
    pub(super) fn unsent(&mut self, id: OpId, node: NodeId) {
        match self.ops[id].stage {
            Stage::Follower(n) if n == node => self.strand(id, node),
            _ => {
                self.leave_flight(id);
                self.park(id, Stage::Parked);
            }
        }
    }

    /// The answer of `node` for this operation will not come, or counts for nothing.
    pub(super) fn strand(&mut self, id: OpId, node: NodeId) {
        let op = &self.ops[id];
        match op.stage {
            Stage::Leader(n) if n == node => {
                self.leave_flight(id);
                self.park(id, Stage::Unknown(node));
            }
            Stage::Follower(n) if n == node => {
                // There is a leader, and it has answered.
                let stage = self.pairs.leader_of(op.pair).map_or(Stage::Unknown(node), Stage::Held);
                self.leave_flight(id);
                self.park(id, stage);
            }
            Stage::Repair => self.repair_broken(id, Some(node)),
            Stage::Look(n) | Stage::GiveBack { node: n, .. } if n == node => {
                self.leave_flight(id);
                self.park(id, Stage::Parked);
            }
            _ => {}
        }
    }

    /// The operation's key may now differ on the two nodes of its pair: whichever of them is away
    /// with its memory, this key is out of date when it returns.
    pub(super) fn miss(&self, id: OpId) {
        let op = &self.ops[id];
        if op.kind.is_write()
            && let Some(flow) = &self.pairs[op.pair].flow
        {
            flow.missed.insert(op.key());
        }
    }

    /// The operation is not in flight any more: the pair's gate may be waiting for that, and so may
    /// a repair of its key.
    pub(super) fn leave_flight(&mut self, id: OpId) {
        let op = &self.ops[id];
        let pair = op.pair;
        if let Some(closing) = &mut self.pairs[pair].closing
            && closing.in_flight > 0
        {
            closing.in_flight -= 1;
        }
        if self.fences.is_counting() && op.kind.is_write() && op.stage != Stage::Repair {
            self.fences.discount(op);
            if let Some(key) = self.fences.pass(op.key()) {
                self.repair_read(&key);
            }
        }
        self.report_closed(pair);
    }

    pub(super) fn finish_with_answer(&mut self, id: OpId) {
        let answer = self.ops[id].answer.take().unwrap_or(Outcome::Refused(OUTCOME_UNKNOWN));
        self.finish(id, answer);
    }

    /// Ends with an error of the proxy's own.
    pub(super) fn fail(&mut self, id: OpId, refusal: Refusal) {
        let op = &self.ops[id];
        if let Origin::Client(asker) = op.origin {
            let (client, key) = (asker.client.occupant.0, String::from_utf8_lossy(op.key()));
            let said = refusal.words();
            tracing::debug!(client, worker = asker.worker.0, %key, kind = ?op.kind, said, "a request is refused");
        }
        self.finish(id, Outcome::Refused(refusal));
    }

    pub(super) fn finish(&mut self, id: OpId, answer: Outcome) {
        if self.mark.is_some() {
            return self.finish_behind_mark(id, answer);
        }
        self.end(id, answer);
    }

    /// Delivers the answer to the client or order that waits for it.
    pub(super) fn end(&mut self, id: OpId, answer: Outcome) {
        // While a gate closes, the counting in `leave_flight` is only for what was in flight.
        if self.ops[id].stage.is_in_flight() {
            self.leave_flight(id);
        }
        let op = &self.ops[id];
        let (creates, hash, origin) = (op.creates(), op.hash, op.origin);
        if let Origin::Client(Asker { read: false, .. }) = origin {
            op::count_end(op, &answer, &self.stats);
        }
        self.ops.remove(id);
        if creates {
            // It was answered by a node whose memory is proved, or every worker has left the route
            // under which it was not, or its outcome reaches no client.
            self.adds.ended(hash);
        }
        match origin {
            Origin::Client(asker) => self.deliver(asker, answer),
            Origin::Control(ticket) => self.settle(ticket, settlement(&answer)),
            Origin::Look(key) => self.looked(key),
        }
    }
}

fn dark_line(reason: Reason) -> Refusal {
    Refusal::Server(match reason {
        Reason::Refused => "no copy of this key is reachable: its last node refuses connections",
        Reason::Reset => "no copy of this key is reachable: its last node broke the connection",
        Reason::Timeout => "no copy of this key is reachable: its last node does not answer in time",
        Reason::Protocol => "no copy of this key is reachable: its last node does not speak memcached's protocol",
        Reason::ConnectionLimit => "no copy of this key is reachable: its last node takes no more connections (its -c)",
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
