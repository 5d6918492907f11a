//! Connections: dialled, checked, broken, in doubt, late.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{AddressNumber, Incarnation, NodeId, PairId, UNSURE};
use crate::pair::Reason;
use crate::protocol::outcome::Refusal;
use crate::protocol::reply::{Reply, ReplyKind};
use crate::proxy::handles::{ConnId, OpId};
use crate::proxy::link::{Flight, LinkState, Sent, Unmarked, Unproven};
use crate::proxy::op::Op;
use crate::proxy::route::Route;
use crate::rules::{Rule, holds};

use super::fences::REPAIR_SEEN_US;
use super::messages::Event;
use super::{Core, Now};

/// How often operations that wait for their pair's next route are looked at while their time runs.
const LOOKS_AT_PARKED: u64 = 32;

/// A late answer is reported this many times within its timeout: after each eighth, from the
/// first on.
const LATE_REPORTS: u64 = 8;

impl Core {
    pub(super) fn dial(&mut self, at: ConnId) {
        let life = self.links[at.node].life;
        let conn = &mut self.links[at];
        conn.life = life;
        conn.state = LinkState::Dialing;
        conn.dial = conn.dial.next();
        self.outbox.dials.push_back((at, conn.dial));
    }

    /// A dialled connection stands.
    pub fn handle_conn_up(&mut self, now: Now, at: ConnId) {
        self.now = now;
        self.links[at].stands(self.now.us);
        self.links[at].begins();
        if self.links[at.node].incarnation.is_some() && holds(Rule::MarkerCheckOnNewConnections) {
            self.check(at);
        } else {
            self.ready(at);
        }
        self.publish_gauges();
    }

    /// Nothing is sent on the connection until the marker shows whose memory it leads to.
    pub(super) fn check(&mut self, at: ConnId) {
        self.links[at].state = LinkState::Checking;
        self.put_marker(at);
    }

    pub(super) fn ready(&mut self, at: ConnId) {
        let life = self.links[at.node].life;
        let conn = &mut self.links[at];
        conn.life = life;
        conn.state = LinkState::Ready;
        conn.stands(self.now.us);
        self.proved(at);
        let conn = &mut self.links[at];
        for id in conn.waiting.take() {
            self.send_op(id, at.node);
        }
        if !self.links[at].unmarked.is_empty() {
            self.want_mark(at);
        }
    }

    pub(super) fn marker_answered(&mut self, at: ConnId, round: u32, reply: &Reply, unit: &Bytes) -> bool {
        self.links[at].markers -= 1;
        let link = &self.links[at.node];
        if round != link.round {
            // Asked before the control plane named the present memory: the answer may show the
            // one before. Where markers are kept, another read was sent then.
            return matches!(reply.kind, ReplyKind::MetaVa { .. } | ReplyKind::MetaEn);
        }
        let expected = link.incarnation;
        let reason = match &reply.kind {
            ReplyKind::MetaVa { data } if unit[data.clone()] != *UNSURE.as_bytes() => {
                if expected.is_none_or(|i| Incarnation::parse(&unit[data.clone()]) == Some(i)) {
                    None
                } else {
                    Some(Reason::MarkerStale)
                }
            }
            ReplyKind::MetaVa { .. } | ReplyKind::MetaEn => Some(Reason::MarkerLost),
            _ => return false,
        };
        match reason {
            None => {
                if self.links[at].state == LinkState::Checking {
                    self.ready(at);
                } else {
                    self.proved(at);
                }
            }
            Some(reason) => {
                // Nothing more is sent, and nothing that was answered counts: either the memory is
                // gone and the next route is under way, or the marker alone was evicted and is
                // written again.
                self.links[at].state = LinkState::Checking;
                self.fault(at.node, reason);
            }
        }
        true
    }

    pub(super) fn fault(&mut self, node: NodeId, reason: Reason) {
        let life = self.links[node].life;
        self.outbox.events.push_back(Event::Fault { node, life, reason });
    }

    /// A connection that stood has ended. `by_node`: the node closed or reset it.
    pub fn handle_conn_ended(&mut self, now: Now, at: ConnId, by_node: bool) {
        if !by_node && self.links[at].owes_effects() {
            self.outbox.events.push_back(Event::Abandoned { node: at.node });
        }
        self.handle_conn_down(now, at, Reason::Reset);
    }

    /// A dial failed, or the node closed or reset the connection.
    pub fn handle_conn_down(&mut self, now: Now, at: ConnId, reason: Reason) {
        self.now = now;
        self.give_up_conn(at, reason);
        // There may be no tick for long.
        self.publish_gauges();
    }

    fn give_up_conn(&mut self, at: ConnId, reason: Reason) {
        let was = self.links[at].state;
        let (flights, unproven, unmarked) = self.reset_conn(at);
        let asked = |s: &Sent| matches!(s.flight, Flight::Op(_) | Flight::Get(_) | Flight::Repair(..));
        let life = self.links[at.node].life;
        let awaited = flights.iter().any(asked) || !unproven.is_empty() || !unmarked.is_empty();
        if self.links[at].life != life && !awaited {
            // Dialled before the node came back: that it fails says nothing about the node now, and
            // what waits for it goes on waiting.
            self.dial(at);
            return self.tell_undrained(at.node);
        }
        let waiting: Vec<OpId> = self.links[at].waiting.take().collect();
        // Told first: a gate that closes because of what is stranded here must not be taken for one
        // that closed in peace.
        if was == LinkState::Dialing || was == LinkState::Checking || awaited || !waiting.is_empty() {
            self.fault(at.node, reason);
        } else {
            self.outbox.events.push_back(Event::Hint { node: at.node });
        }
        self.void_answers(at.node, unproven);
        self.park_unmarked(at.node, unmarked);
        self.strand_all(at.node, flights, waiting);
        self.tell_undrained(at.node);
    }

    /// The node is at another address. What it was sent at the old one counts for nothing, however
    /// that ends.
    pub(super) fn leave(&mut self, node: NodeId, address: AddressNumber) {
        let mut owing = false;
        for at in self.links.to(node) {
            let conn = &mut self.links[at];
            // One that is being dialled will lead to the new address.
            if matches!(conn.state, LinkState::Idle | LinkState::Dialing) || !holds(Rule::LeaveAtMove) {
                continue;
            }
            owing |= conn.owes_effects();
            self.outbox.hangups.push_back(at);
            let (flights, unproven, unmarked) = self.reset_conn(at);
            let waiting = self.links[at].waiting.take().collect();
            self.void_answers(node, unproven);
            self.park_unmarked(node, unmarked);
            self.strand_all(node, flights, waiting);
        }
        self.tell_undrained(node);
        self.outbox.events.push_back(Event::Left { worker: self.settings.worker, node, address, owing });
        self.publish_gauges();
    }

    /// Forgets all that a connection had to do with.
    pub(super) fn reset_conn(&mut self, at: ConnId) -> (VecDeque<Sent>, VecDeque<Unproven>, VecDeque<Unmarked>) {
        let conn = &mut self.links[at];
        conn.state = LinkState::Idle;
        conn.dial = conn.dial.next();
        conn.clear_out();
        // Whether its socket was full does not matter for the next one: what was to be written is
        // gone, and io_uring does not report how a send ended whose socket was closed.
        (conn.dirty, conn.urgent, conn.blocked) = (false, false, false);
        conn.input.clear();
        (conn.need, conn.seen) = (0, 0);
        conn.voids = 0;
        self.links.stands_in_no_more(at);
        let conn = &mut self.links[at];
        (conn.take_flights(), conn.take_answers(), conn.take_unmarked())
    }

    /// What was sent and unanswered on a connection that is given up, and what waited for it.
    fn strand_all(&mut self, node: NodeId, flights: VecDeque<Sent>, waiting: Vec<OpId>) {
        // A repair that ends on the way answers other operations with its own, so each is looked
        // for first.
        for sent in flights {
            if let Flight::Op(id) | Flight::Get(id) | Flight::Repair(id, _) = sent.flight
                && self.ops.contains(id)
            {
                self.strand(id, node);
            }
        }
        for id in waiting {
            if self.ops.contains(id) {
                self.unsent(id, node);
            }
        }
    }

    /// The framing of a connection is in doubt: nothing more is sent on it, and what it still
    /// executes is over when the node closes it.
    pub(super) fn doubt(&mut self, at: ConnId) {
        self.doubt_for(at, Reason::Protocol);
    }

    pub(super) fn doubt_for(&mut self, at: ConnId, reason: Reason) {
        if self.links[at].state == LinkState::Discarding {
            return;
        }
        let stand_in = if reason == Reason::ConnectionLimit { self.stand_in_for(at) } else { None };
        let conn = &mut self.links[at];
        conn.state = LinkState::Discarding;
        conn.clear_out();
        conn.input.clear();
        conn.seen = 0;
        let flights = conn.take_flights();
        let waiting = conn.waiting.take().collect();
        let (unproven, unmarked) = (conn.take_answers(), conn.take_unmarked());
        if let Some(lane) = stand_in {
            return self.hand_over(at, lane, flights, waiting);
        }
        conn.voids = 1;
        self.fault(at.node, reason);
        self.void_answers(at.node, unproven);
        self.park_unmarked(at.node, unmarked);
        self.strand_all(at.node, flights, waiting);
        // The shell sees the state, closes its half, and reads until the node closes the other. At
        // once, also where what was to be written waits for room.
        self.outbox.mark_conn_anyway(&mut self.links[at], at);
        self.tell_undrained(at.node);
    }

    /// For the log: the answer that has just begun to come from a node took long.
    pub fn tell_slow(&self, at: ConnId, took_us: u64) {
        let conn = &self.links[at];
        if let Some(Flight::Op(id) | Flight::Get(id) | Flight::Length(id)) =
            conn.flights.front().map(|sent| sent.flight)
            && let Some(op) = self.ops.get(id)
        {
            let (key, node) = (String::from_utf8_lossy(op.key()), self.topology.addr(at.node));
            tracing::debug!(%node, %key, kind = ?op.kind, ms = took_us / 1000, "a request is slow");
        }
    }

    pub(super) fn publish_gauges(&self) {
        for (link, gauges) in self.links.iter().zip(&self.stats.nodes) {
            let open = |c: &&crate::proxy::link::Conn| {
                matches!(c.state, LinkState::Checking | LinkState::Ready | LinkState::Discarding)
            };
            gauges.connections.store(link.conns.iter().filter(open).count() as u64, Relaxed);
            gauges.in_flight.store(link.conns.iter().map(|c| c.flights.len() as u64).sum(), Relaxed);
            gauges.sent.store(link.conns.iter().map(crate::proxy::link::Conn::sent).sum(), Relaxed);
        }
    }

    /// Nothing is begun and nothing awaited, so nothing can become late and [`Core::handle_tick`]
    /// has nothing to do.
    pub fn is_quiet(&self) -> bool {
        // An operation that waits for a marker or a mark is in `ops`.
        let quiet = |conn: &crate::proxy::link::Conn| conn.flights.is_empty() && conn.unproven.is_empty();
        self.ops.is_empty()
            && self.starved.is_empty()
            && self.links.iter().all(|link| link.conns.iter().all(quiet))
            && !self.is_stretched()
    }

    /// Looks for nodes that make no progress with what they are asked and for operations parked too
    /// long. Called every few milliseconds, unless [`Core::is_quiet`].
    pub fn handle_tick(&mut self, now: Now) {
        self.now = now;
        self.publish_gauges();
        self.memory.sizes.age(now.us);
        self.give_room_back();
        for node in self.links.nodes() {
            self.tell_lateness(node);
        }
        self.ask_markers_again();
        self.ask_marks_again();
        self.end_stand_ins();
        self.retry_repairs();
        self.relax();
        self.feed_starved();
        for pair in self.pairs.ids() {
            if !self.pairs[pair].parked.is_empty() {
                self.expire_parked(pair);
                self.retry_parked(pair);
            }
        }
    }

    /// The control plane, which judges the node, must know whether it still is late, and when a
    /// timeout is over. Of all connections to the node only the longest wait is reported: more
    /// connections do not make more reports. Past the longest timeout there are none.
    fn tell_lateness(&mut self, node: NodeId) {
        let now_us = self.now.us;
        let link = &mut self.links[node];
        let ages = link.conns.iter_mut().filter_map(|conn| {
            let sent = conn.awaited_since();
            // An answer that waits for a marker which is not written again waits no longer than
            // one that does not come.
            let held = conn.unproven.front().map(|u| u.at_us);
            let unmarked = conn.unmarked.front().map(|u| u.at_us);
            let held = held.into_iter().chain(unmarked);
            let oldest = held.chain(sent).chain(conn.waited_for_since()).min();
            // A node answers in order: what is small waits behind what is large, and is not late
            // while that flows. (Where the marker is missing, or the fleet's mark, answers that say
            // so again and again are no progress.)
            let flows = conn.state == LinkState::Ready;
            let since = oldest.map(|oldest| if flows { conn.progress.owed_since(oldest) } else { oldest });
            let since = since.into_iter().chain(conn.mark_missed_since()).min()?;
            Some(now_us.saturating_sub(since))
        });
        let longest = self.settings.leader_timeout_us.max(self.settings.timeout_us) + 1;
        let repairs = link.repair_waits.filter(|waits| now_us.saturating_sub(waits.seen_us) <= REPAIR_SEEN_US);
        let repairs = repairs.map(|waits| now_us.saturating_sub(waits.since_us));
        let age = ages.chain(repairs).max().unwrap_or(0).min(longest);
        let part = age.saturating_sub(1) * LATE_REPORTS / self.settings.timeout_us.max(1);
        let told = part + u64::from(age > self.settings.leader_timeout_us);
        if told > std::mem::replace(&mut link.lateness, told) {
            let (life, age) = (link.life, Duration::from_micros(age));
            self.outbox.events.push_back(Event::Late { node, life, age });
        }
    }

    /// A connection that found no marker reads it again while operations wait for it: if the marker
    /// alone was evicted, the control plane writes it again without a command to the workers,
    /// because nothing has changed.
    fn ask_markers_again(&mut self) {
        for node in self.links.nodes() {
            for at in self.links.to(node) {
                let conn = &self.links[at];
                if conn.state == LinkState::Checking
                    && !(conn.waiting.is_empty() && conn.unproven.is_empty())
                    && conn.markers == 0
                {
                    self.check(at);
                }
            }
        }
    }

    fn expire_parked(&mut self, pair: PairId) {
        if self.now.us <= self.pairs[pair].parked.look_at_us {
            return;
        }
        let patience = self.parking_patience();
        let late = |op: &Op| self.now.us.saturating_sub(op.parked_at_us) > patience;
        let (late, kept): (Vec<OpId>, Vec<OpId>) =
            self.pairs[pair].parked.take().iter().partition(|&&id| late(&self.ops[id]));
        for id in kept {
            let op = &self.ops[id];
            // Not at every tick again: they were not all parked at once.
            let look_at_us = (op.parked_at_us + patience).max(self.now.us + patience / LOOKS_AT_PARKED);
            self.pairs[pair].parked.push(id, op.stage, look_at_us);
        }
        for id in late {
            self.stats.refused();
            self.fail(id, Refusal::Server("the key's nodes are changing roles and did not finish in time"));
        }
    }

    /// How long an operation waits for its pair's next route, microseconds.
    pub(super) fn parking_patience(&self) -> u64 {
        self.settings.leader_timeout_us + self.settings.timeout_us
    }

    /// A dial that took too long is no reason to depose the last full copy, so no new route
    /// follows: what waited for it is begun again.
    fn retry_parked(&mut self, pair: PairId) {
        let slot = &mut self.pairs[pair];
        if matches!(slot.route, Route::Open(_)) && slot.parked.in_doubt == 0 {
            for id in slot.parked.take() {
                self.unpark(id, false);
            }
        }
    }
}
