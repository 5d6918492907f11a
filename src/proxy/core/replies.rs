//! What nodes answer.

use bytes::{Buf, Bytes, BytesMut};

use crate::ids::{NodeId, Term};
use crate::pair::Reason;
use crate::protocol::meta::{self, Meta, Verb};
use crate::protocol::outcome::{Fields, Outcome};
use crate::protocol::reply::{self, Behind, END_LEN, MISS, MISS_BYTES, ParsedReply, Reply, ReplyError, ReplyKind};
use crate::protocol::told::{self, Told};
use crate::proxy::handles::{ConnId, DialNumber, OpId};
use crate::proxy::link::{Flight, LinkState, Sent};
use crate::proxy::op::{self, Agreement, Decisive, Effect, Kind, Mirror, Op, Stage, Wire};
use crate::proxy::route::{Flow, Follower};
use crate::ring::Topology;
use crate::rules::{Rule, holds};

use super::proofs::has_ended;
use super::{Core, Now, OUTCOME_UNKNOWN};

/// What a leader has answered, beside its effect.
struct Said {
    /// A read has found its item.
    hit: bool,
    /// The key was not there, or may not have been.
    absent: bool,
    /// It was not, to the client's knowledge.
    gone: bool,
    /// What it counted.
    number: Option<u64>,
}

/// What became of a part of an answer.
enum Heed {
    Taken,
    /// More of it has to come before it counts.
    Incomplete,
    /// It is no answer to what was asked.
    Doubt,
}

/// Takes a reply's bytes out of what has come. Where they are always the same line they need not be
/// shared, which costs two atomic operations and a seventh of what a `STORED` does.
#[inline(always)]
fn take_reply(input: &mut BytesMut, reply: &Reply) -> Bytes {
    match reply::fixed_line(&reply.kind) {
        Some(line) => {
            input.advance(reply.len);
            Bytes::from_static(line)
        }
        None => input.split_to(reply.len).freeze(),
    }
}

impl Core {
    /// Room for what a node sends, behind what it has sent.
    #[inline]
    pub fn conn_room(&mut self, at: ConnId) -> &mut BytesMut {
        self.links[at].room()
    }

    /// The room that was taken away to be filled.
    pub fn return_room(&mut self, at: ConnId, room: BytesMut) {
        self.links[at].input = room;
    }

    /// Since when the answer is awaited that comes next from a node, microseconds.
    #[inline]
    pub fn asked_since(&self, at: ConnId) -> Option<u64> {
        self.links[at].flights.front().map(|sent| sent.at_us)
    }

    /// Whether the connection is the one that was asked for by [`Core::poll_dial`].
    pub fn is_current(&self, at: ConnId, dial: DialNumber) -> bool {
        self.links[at].dial == dial
    }

    /// Bytes that are to be written to a node.
    pub fn unsent_to_node(&self, at: ConnId) -> usize {
        self.links[at].unsent()
    }

    /// A node's socket takes no more: the connection is not polled as dirty before it does again.
    pub fn handle_conn_blocked(&mut self, at: ConnId) {
        let conn = &mut self.links[at];
        (conn.dirty, conn.blocked) = (true, true);
    }

    /// It takes more.
    pub fn handle_conn_writable(&mut self, at: ConnId) {
        self.outbox.mark_conn_anyway(&mut self.links[at], at);
    }

    /// This many bytes its socket has not taken (0: it is not full).
    pub fn handle_stuck(&mut self, now: Now, at: ConnId, bytes: usize) {
        self.links[at].is_stuck_with(bytes, now.us);
    }

    /// Takes what has come from a node.
    pub fn handle_node_input(&mut self, now: Now, at: ConnId) {
        self.now = now;
        let conn = &mut self.links[at];
        let more = conn.input.len() - conn.seen;
        self.take_replies(at);
        let conn = &mut self.links[at];
        conn.seen = conn.input.len();
        conn.progress.add(more, self.now.us);
        if !conn.waiting.is_empty() {
            self.send_waiting(at);
        }
    }

    #[inline(always)]
    fn take_replies(&mut self, at: ConnId) {
        loop {
            let (limits, conn) = self.links.limits_and_conn(at);
            if conn.state == LinkState::Discarding {
                conn.input.clear();
                return;
            }
            if conn.input.is_empty() {
                // As most often: what is read of a node ends with an answer.
                conn.need = 0;
                return;
            }
            let reply = match reply::parse_reply_within(&conn.input, limits) {
                Ok(ParsedReply::Reply(reply)) => reply,
                Ok(ParsedReply::Incomplete { need }) => {
                    conn.need = need;
                    return;
                }
                Err(error) => return self.doubt_nonsense(at, &error),
            };
            if matches!(reply.kind, ReplyKind::Error) && reply::is_full(&conn.input[..reply.len]) {
                return self.doubt_for(at, Reason::ConnectionLimit);
            }
            let Some(&sent) = conn.flights.front() else { return self.doubt_unasked(at, reply.len) };
            let shared = matches!(sent.flight, Flight::Get(_) | Flight::VoidGet | Flight::GetEnd);
            let heed = if shared { self.get_answered(at, &reply) } else { self.one_answered(at, sent, &reply) };
            match heed {
                Heed::Taken => {}
                Heed::Incomplete => return,
                Heed::Doubt => {
                    if shared {
                        self.warn_of(at, "answered a get with something else");
                    }
                    return self.doubt(at);
                }
            }
        }
    }

    #[cold]
    fn doubt_nonsense(&mut self, at: ConnId, error: &ReplyError) {
        tracing::warn!(node = %self.topology.addr(at.node), %error, "a node does not speak memcached's protocol");
        self.doubt(at);
    }

    #[cold]
    fn doubt_unasked(&mut self, at: ConnId, len: usize) {
        let said = String::from_utf8_lossy(&self.links[at].input[..len.min(80)]);
        let (node, said) = (self.topology.addr(at.node), said.trim_end());
        tracing::warn!(%node, %said, "a node answered what it was not asked");
        self.doubt(at);
    }

    #[cold]
    fn warn_of(&self, at: ConnId, what: &str) {
        tracing::warn!(node = %self.topology.addr(at.node), "a node {what}");
    }

    /// The whole answer to a command of its own.
    #[inline(always)]
    fn one_answered(&mut self, at: ConnId, sent: Sent, reply: &Reply) -> Heed {
        let conn = &mut self.links[at];
        let mut end = 0;
        if matches!(reply.kind, ReplyKind::Value { .. }) {
            // A value answers a command on one key, so the end must follow at once.
            match reply::behind_value(&conn.input[reply.len..], false) {
                Behind::Fine => end = END_LEN,
                Behind::Incomplete => {
                    conn.need = reply.len + END_LEN;
                    return Heed::Incomplete;
                }
                Behind::Nonsense => {
                    self.warn_of(at, "sent a value where the end of the answer was due");
                    return Heed::Doubt;
                }
            }
        }
        conn.asked_us = sent.at_us;
        conn.arrive();
        conn.answered();
        let unit = take_reply(&mut conn.input, reply);
        conn.input.advance(end);
        let fine = match sent.flight {
            Flight::Op(id) => self.op_answered(id, at, reply, unit),
            Flight::Length(id) => self.length_answered(id, reply, &unit),
            Flight::Repair(id, step) => self.repair_answered(id, at.node, step, reply, &unit),
            Flight::Marker(round) => self.marker_answered(at, round, reply, &unit),
            Flight::Mark => self.mark_answered(at, reply, &unit),
            Flight::Void => {
                conn.voids -= 1;
                self.tell_undrained(at.node);
                true
            }
            Flight::Get(_) | Flight::VoidGet | Flight::GetEnd => unreachable!("a part of a shared line"),
        };
        if fine { Heed::Taken } else { Heed::Doubt }
    }

    /// A part of the answer to a shared `get` line.
    fn get_answered(&mut self, at: ConnId, reply: &Reply) -> Heed {
        let conn = &mut self.links[at];
        match &reply.kind {
            ReplyKind::Value { key, .. } => {
                let key = &conn.input[key.clone()];
                let asked = |f| matches!(f, Flight::Get(id) if self.ops[id].key() == key);
                let mut place = conn.flights.front().is_some_and(|s| asked(s.flight)).then_some(0);
                if place.is_none() {
                    let mut line = conn.flights.iter().map(|s| s.flight).take_while(|f| *f != Flight::GetEnd);
                    place = line.clone().position(asked);
                    if place.is_none() && !line.any(|f| f == Flight::VoidGet) {
                        return Heed::Doubt;
                    }
                }
                // A value counts once what stands behind it shows that it ended there.
                let last = place.is_some_and(|at| conn.flights.get(at + 1).is_some_and(|s| s.flight == Flight::GetEnd));
                match reply::behind_value(&conn.input[reply.len..], !last) {
                    Behind::Fine => {}
                    Behind::Incomplete => {
                        conn.need = reply.len + END_LEN;
                        return Heed::Incomplete;
                    }
                    Behind::Nonsense => return Heed::Doubt,
                }
                let Some(place) = place else {
                    // The value belongs to one of the voided keys of this line; which one does not
                    // matter.
                    conn.answered();
                    conn.input.advance(reply.len);
                    return Heed::Taken;
                };
                // Values come in the order of the keys: those passed over are not there.
                if !self.end_gets(at, place, &MISS, MISS_BYTES) {
                    return Heed::Doubt;
                }
                let conn = &mut self.links[at];
                let unit = conn.input.split_to(reply.len).freeze();
                conn.answered();
                let got = conn.arrive();
                if last {
                    conn.arrive();
                    conn.input.advance(END_LEN);
                }
                match got {
                    Some(Sent { flight: Flight::Get(id), .. }) if self.op_answered(id, at, reply, unit) => Heed::Taken,
                    _ => Heed::Doubt,
                }
            }
            ReplyKind::End | ReplyKind::ServerError | ReplyKind::ClientError | ReplyKind::Error => {
                let unit = take_reply(&mut conn.input, reply);
                let keys = conn.flights.iter().take_while(|s| s.flight != Flight::GetEnd).count();
                if keys > 1 && reply.kind == ReplyKind::ServerError {
                    // Out of memory between two keys memcached throws away what it had not sent of
                    // earlier answers, other commands' too.
                    return Heed::Doubt;
                }
                if !self.end_gets(at, keys, reply, unit) {
                    return Heed::Doubt;
                }
                let conn = &mut self.links[at];
                conn.answered();
                conn.arrive();
                Heed::Taken
            }
            _ => Heed::Doubt,
        }
    }

    /// The next keys of a shared `get` line are answered by no value of their own.
    fn end_gets(&mut self, at: ConnId, keys: usize, reply: &Reply, unit: Bytes) -> bool {
        for _ in 0..keys {
            let conn = &mut self.links[at];
            let sent = conn.arrive();
            conn.asked_us = sent.map_or(0, |sent| sent.at_us);
            match sent.map(|s| s.flight) {
                Some(Flight::Get(id)) => {
                    if !self.op_answered(id, at, reply, unit.clone()) {
                        return false;
                    }
                }
                Some(Flight::VoidGet) => {
                    conn.voids -= 1;
                    self.tell_undrained(at.node);
                }
                _ => return false,
            }
        }
        true
    }

    /// `false`: that is no answer to the operation's command.
    pub(super) fn op_answered(&mut self, id: OpId, at: ConnId, reply: &Reply, unit: Bytes) -> bool {
        match self.ops[id].stage {
            Stage::Leader(_) if self.ops[id].wire != Wire::Classic => self.leader_told(id, at, reply, &unit),
            Stage::Leader(_) => self.leader_answered(id, at, reply, unit),
            Stage::Follower(_) => self.follower_answered(id, reply, &unit),
            Stage::Look(_) | Stage::GiveBack { .. } => self.look_answered(id, at.node, reply, &unit),
            _ => true,
        }
    }

    pub(super) fn leader_answered(&mut self, id: OpId, at: ConnId, reply: &Reply, unit: Bytes) -> bool {
        let op = &self.ops[id];
        let right_key = match &reply.kind {
            ReplyKind::Value { key, .. } => &unit[key.clone()] == op.key(),
            _ => true,
        };
        let held_back = is_held_back(op, reply, &unit);
        let Some(effect) = op::effect(op.kind, &reply.kind).filter(|_| right_key) else {
            // Whatever it executed is unknown; the connection is closed by the caller.
            self.strand(id, at.node);
            return false;
        };
        let (kind, term) = (op.kind, self.pairs[op.pair].flow.as_ref().and_then(|f| f.term));
        let effect = if held_back { Effect::HeldBack } else { effect };
        let number = counted(op, reply, &unit);
        let made = kind.adds() && has_made(op, reply, &unit, number);
        let answer = client_answer(op, reply, unit, term);
        let hit = matches!(reply.kind, ReplyKind::Value { .. } | ReplyKind::MetaHd | ReplyKind::MetaVa { .. });
        let gone = op::shows_absence(kind, &reply.kind);
        self.leader_said(id, at, effect, &Said { hit, absent: made || gone, gone, number }, answer)
    }

    /// The same for an operation of a classic kind that it was asked in the meta protocol.
    fn leader_told(&mut self, id: OpId, at: ConnId, reply: &Reply, unit: &Bytes) -> bool {
        let op = &self.ops[id];
        let told = told::of_node(op.kind, reply, unit);
        // Any write may have a cas id as its condition there.
        let effect = |told: &Told| match told.kind {
            ReplyKind::Exists if op.cas != 0 => Some(Effect::Nothing),
            _ => op::effect(op.kind, &told.kind),
        };
        let Some((told, effect)) = told.and_then(|told| effect(&told).map(|effect| (told, effect))) else {
            self.strand(id, at.node);
            return false;
        };
        let term = self.pairs[op.pair].flow.as_ref().and_then(|f| f.term);
        let answer = told_answer(op, &told, unit, term);
        let (hit, absent) = (matches!(told.kind, ReplyKind::Value { .. }), op.shows_absence(&told.kind));
        let number = if let ReplyKind::Number(number) = told.kind { Some(number) } else { None };
        let gone = op::shows_absence(op.kind, &told.kind);
        self.ops[id].ttl = told.ttl;
        self.leader_said(id, at, effect, &Said { hit, absent, gone, number }, answer)
    }

    #[inline(always)]
    fn leader_said(&mut self, id: OpId, at: ConnId, effect: Effect, said: &Said, answer: Outcome) -> bool {
        let kind = self.ops[id].kind;
        if kind.reads() {
            self.read_answered(id, effect, said.hit);
        }
        let doubted = !kind.is_write() && self.adds.may_have_made(self.ops[id].hash);
        let unproven = self.needs_proof(id, at, doubted || said.absent);
        let gone_us = said.gone.then(|| self.links[at].asked_us);
        let op = &mut self.ops[id];
        if !unproven && has_ended(effect, op.origin) {
            if let Some(asked_us) = gone_us {
                self.tell_gone(id, asked_us);
            }
            self.finish(id, answer);
            return true;
        }
        // Begun anew under another leader it is that one's answer that counts.
        if !op.decided {
            op.answer = Some(answer);
        }
        if let Some(number) = said.number {
            op.number = number;
        }
        if unproven {
            self.hold(id, at, effect, gone_us);
        } else {
            self.leader_decided(id, at.node, effect);
        }
        true
    }

    fn read_answered(&mut self, id: OpId, effect: Effect, hit: bool) {
        let op = &self.ops[id];
        op::count_read(op.kind, hit, &self.stats);
        if hit
            && effect == Effect::Nothing
            && let Some(Flow { follower: Follower::Filling(_, recopy), .. }) = &self.pairs[op.pair].flow
            && recopy.wants_reads()
        {
            // Its leader cannot be enumerated: what is read is copied. (A gat is re-copied anyway.)
            recopy.push_read(op.key());
        }
    }

    /// The leader's answer is in the operation, and counts: the follower is made equal.
    pub(super) fn leader_decided(&mut self, id: OpId, node: NodeId, effect: Effect) {
        let op = &self.ops[id];
        let (kind, pair) = (op.kind, op.pair);
        let follower = self.pairs[pair].flow.as_ref().map_or(&Follower::None, |f| &f.follower);
        let (in_sync, target) = (matches!(follower, Follower::InSync(_)), follower.node());
        let repairs = in_sync && (effect == Effect::Unknown || self.begins_what_was_gone(id));
        if !repairs {
            self.note_brief_write(id, false);
        }
        let Some(target) = target else {
            return self.finish_with_answer(id);
        };
        if self.pairs.is_void(pair, target) {
            self.leave_flight(id);
            return self.park(id, Stage::Held(node));
        }
        if repairs {
            return self.repair(id, None);
        }
        let op = &mut self.ops[id];
        op.sent = match effect {
            Effect::HeldBack if in_sync && holds(Rule::MarkedIsWithheld) => Mirror::Withhold,
            _ if in_sync => op::mirror(kind),
            Effect::Unknown | Effect::HeldBack => Mirror::Drop,
            _ => op::mirror_filling(kind),
        };
        op.stage = Stage::Follower(target);
        self.send_op(id, target);
    }

    /// A counter that may have begun anew on the leader, for it was gone there. The follower may
    /// hold the earlier one for a moment longer, and would count on; what it says would be the
    /// answer if the leader died now.
    #[inline(always)]
    fn begins_what_was_gone(&self, id: OpId) -> bool {
        let op = &self.ops[id];
        op.creates() && self.was_gone(op)
    }

    #[cold]
    #[inline(never)]
    fn was_gone(&self, op: &Op) -> bool {
        op.shows_first_number()
            && holds(Rule::SeenGoneStaysGone)
            && self.gone.was_told(Topology::key_id(op.key()), self.date())
    }

    /// How long the follower's item was before it counts.
    fn length_answered(&mut self, id: OpId, reply: &Reply, unit: &[u8]) -> bool {
        let length = match reply.kind {
            ReplyKind::MetaHd => meta::answer::length(&unit[reply.line.clone()]),
            ReplyKind::MetaEn => Some(0),
            // It has no memory for the answer, and nobody knows.
            ReplyKind::ServerError => Some(u64::MAX),
            _ => None,
        };
        let (Some(length), Some(op)) = (length, self.ops.get_mut(id)) else { return false };
        op.length = u32::try_from(length).unwrap_or(u32::MAX);
        true
    }

    pub(super) fn follower_answered(&mut self, id: OpId, reply: &Reply, unit: &[u8]) -> bool {
        let op = &self.ops[id];
        let pair = op.pair;
        let Stage::Follower(node) = op.stage else { return true };
        let told;
        let (said, agreement) = match (op.kind, op.wire) {
            (Kind::Meta(_), _) => (&reply.kind, op::meta_agreement(op.sent, op.number, reply, unit)),
            (_, Wire::Classic) => (&reply.kind, op::agreement(op.sent, op.number, &reply.kind)),
            (_, Wire::Meta { .. }) => {
                told = told::of_node(op.sent.kind(op.kind), reply, unit);
                (told.as_ref().map_or(&reply.kind, |told| &told.kind), told.as_ref().and_then(|told| op.agrees(told)))
            }
        };
        let Some(agreement) = agreement else {
            self.strand(id, node);
            return false;
        };
        let flow = self.pairs[pair].flow.as_ref();
        if let Some(Flow { follower: Follower::Filling(_, recopy), .. }) = flow {
            // Registered after the copy was dropped and before the client is answered: a hand-back
            // waits for it.
            if op.sent == Mirror::Drop || agreement == Agreement::Differ {
                recopy.push(Bytes::copy_from_slice(op.key()));
                // If the resync is cut off before that copy, the follower lacks the key.
                self.miss(id);
            }
            self.finish_with_answer(id);
            return true;
        }
        let doubted = agreement == Agreement::Agree && op.may_have_blanks();
        if agreement == Agreement::Agree && !doubted {
            if op.sent == Mirror::Withhold && holds(Rule::MarkedStaysGone) {
                // A miss under the next leader, it is none on this node when it comes back.
                self.miss(id);
            }
            // An append or a touch agrees whatever the copies hold.
            if let (Some(flow), Mirror::Set | Mirror::Delete | Mirror::Withhold) = (flow, op.sent) {
                flow.lone.remove(op.key());
            }
            self.finish_with_answer(id);
        } else if flow.is_some_and(|f| self.pairs.is_void(pair, f.leader)) {
            // The leader is deposed: this node leads next, and what it answered decides.
            let answer = decisive_answer(op, said, reply, unit);
            if !doubted {
                self.stats.diverged();
            }
            self.miss(id);
            self.finish(id, answer);
        } else {
            let absent = matches!(
                said,
                ReplyKind::NotFound | ReplyKind::NotStored | ReplyKind::MetaNf | ReplyKind::MetaNs | ReplyKind::MetaEn
            );
            let decisive = Decisive { answer: decisive_answer(op, said, reply, unit), absent };
            if doubted {
                self.compare(id, decisive);
            } else {
                self.stats.diverged();
                self.repair(id, Some(decisive));
            }
        }
        true
    }
}

/// Whether the item that an `mg` has changed is one that the leader alone holds. (A plain `mg`,
/// which is no write, may meet one too, and its client even be told to recompute a stale item:
/// nothing has to be done about that, because no other node holds it.)
#[inline(always)]
fn is_held_back(op: &Op, reply: &Reply, unit: &[u8]) -> bool {
    match op.kind {
        Kind::Meta(meta) if meta.verb == Verb::Get && meta.is_write() => {
            meta::answer::is_held_back(&unit[reply.line.clone()], op.key())
        }
        _ => false,
    }
}

/// Whether a command that may make an item has made it, as far as the answer tells.
#[inline(never)]
fn has_made(op: &Op, reply: &Reply, unit: &[u8], number: Option<u64>) -> bool {
    let Kind::Meta(meta) = op.kind else { return false };
    match number {
        Some(number) => meta::line::initial(op.words(meta)) == number,
        None => meta.verb == Verb::Get && meta::answer::has_won(&unit[reply.line.clone()], op.key()),
    }
}

/// What the leader counted.
#[inline(always)]
fn counted(op: &Op, reply: &Reply, unit: &[u8]) -> Option<u64> {
    match (op.kind, &reply.kind) {
        (_, ReplyKind::Number(number)) => Some(*number),
        (Kind::Meta(Meta { verb: Verb::Arithmetic, .. }), _) => meta::answer::number(reply, unit),
        _ => None,
    }
}

/// The leader's answer as the client gets it. Its cas token carries the term of this leadership.
#[inline(always)]
fn client_answer(op: &Op, reply: &Reply, unit: Bytes, term: Option<Term>) -> Outcome {
    if let Kind::Meta(meta) = op.kind {
        return meta_answer(meta, op, reply, unit, term);
    }
    if let ReplyKind::Value { cas: Some(cas), .. } = reply.kind
        && let Some(term) = term
    {
        return Outcome::Hit(reply::with_cas(&unit, reply, op::client_cas(cas, term)));
    }
    match Outcome::of(&reply.kind, unit) {
        Outcome::Miss => op.miss(),
        outcome => outcome,
    }
}

/// The same for what it said in the meta protocol.
fn told_answer(op: &Op, told: &Told, unit: &Bytes, term: Option<Term>) -> Outcome {
    let cas = term.map_or(told.cas, |term| op::client_cas(told.cas, term));
    let item = |value| {
        let key = op.raw.slice(op.key.0 as usize..op.key.1 as usize);
        Outcome::Item(Box::new(Fields { key, value, flags: told.flags, cas }))
    };
    match &told.kind {
        ReplyKind::Value { data, .. } => item(unit.slice(data.clone())),
        ReplyKind::Touched => item(Bytes::new()),
        ReplyKind::Stored => Outcome::StoredAs(cas),
        ReplyKind::Number(number) => Outcome::NumberAs { number: *number, cas },
        ReplyKind::End => op.miss(),
        said => Outcome::of(said, unit.clone()),
    }
}

#[inline(never)]
fn meta_answer(meta: Meta, op: &Op, reply: &Reply, unit: Bytes, term: Option<Term>) -> Outcome {
    let token = |raw| term.map_or(raw, |term| op::client_cas(raw, term));
    let told = meta::answer::of_leader(meta, op.key(), reply, unit, token);
    Outcome::Raw(meta::answer::as_promised(told, meta, op.key(), || op.words(meta)))
}

/// The client's answer when the leader that answered was deposed and the follower, which leads
/// next, answered something else.
fn decisive_answer(op: &Op, said: &ReplyKind, reply: &Reply, unit: &[u8]) -> Outcome {
    if let Kind::Meta(meta) = op.kind {
        let code: &[u8] = match &reply.kind {
            ReplyKind::MetaNs => b"NS",
            ReplyKind::MetaNf => b"NF",
            ReplyKind::MetaEn => b"EN",
            _ => b"",
        };
        return match meta::answer::number(reply, unit) {
            Some(number) => Outcome::Raw(meta::answer::own_number(number, meta, op.key(), op.words(meta))),
            None if !code.is_empty() => Outcome::Raw(meta::answer::own(code, meta, op.key(), op.words(meta))),
            None => Outcome::Refused(OUTCOME_UNKNOWN),
        };
    }
    match (said, &op.answer) {
        (ReplyKind::Number(number), _) => Outcome::Number(*number),
        (ReplyKind::NotStored, _) => Outcome::NotStored,
        (ReplyKind::NotFound, _) if op.kind.reads() => op.miss(),
        (ReplyKind::NotFound, _) => Outcome::NotFound,
        _ => Outcome::Refused(OUTCOME_UNKNOWN),
    }
}
