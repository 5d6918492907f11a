//! Other workers, and the edges of pairs: closing, voiding, opening, parking.

use std::time::Duration;

use crate::ids::{Incarnation, NodeId, PairId, Term};
use crate::protocol::reply::ReplyLimits;
use crate::proxy::handles::OpId;
use crate::proxy::link::{Flight, LinkState};
use crate::proxy::op::{Decisive, Origin, Stage};
use crate::proxy::route::{Follower, Route};
use crate::rules::{Rule, holds};

use super::messages::{Command, Event, PeerMessage};
use super::pairs::Closing;
use super::{Core, Now, OUTCOME_UNKNOWN};

impl Core {
    /// Takes a message of another worker.
    pub fn handle_peer(&mut self, now: Now, message: PeerMessage) {
        self.now = now;
        match message {
            PeerMessage::Op(op) => {
                let id = self.take_in(*op);
                self.begin(id);
            }
            PeerMessage::Answer(asker, answer) => self.deliver(asker, answer),
            PeerMessage::TurnAway(client) => {
                self.turn_away(now, client);
            }
        }
    }

    /// Takes a command of the control plane.
    pub fn handle_command(&mut self, now: Now, command: Command) {
        self.now = now;
        match command {
            Command::Close { pair, void, round } => self.close(pair, void, round),
            Command::Open { pair, route } => self.open(pair, route),
            Command::Term { pair, term } => self.change_term(pair, term),
            Command::Allow { node, incarnation, life } => {
                self.links[node].life = life;
                self.allow(node, incarnation);
            }
            Command::Moved { node, address } => self.leave(node, address),
            Command::Clock { node, offset } => self.links[node].offset = offset,
            Command::Answer { client, slot, outcome } => self.answer_exclusive(client, slot, &outcome),
            Command::Settings(new) => self.settings.take(&new),
            // The shell answers this: the core knows no addresses.
            Command::WhoIsConnected { .. } => {}
            Command::Part { client, bytes } => self.tell_part(client, bytes),
            Command::Mend { ticket, pair, key } => self.mend(ticket, pair, key),
            Command::Adopt { ticket, pair, key, item } => self.adopt(ticket, pair, &key, &item),
            Command::ReplyLimit { node, bytes } => self.links[node].replies = ReplyLimits::of_node(bytes),
            Command::Stored { largest, rarely } => self.memory.sizes.are_stored(largest, rarely),
            Command::MakeRoom { node } => self.make_room(node),
            Command::ItemLimit(limit) => self.limits.item_size_max = limit.min(self.settings.item_size_max),
        }
    }

    /// The date by the proxy's clock.
    pub(super) fn date(&self) -> Duration {
        self.date_of(self.now.us)
    }

    /// The date when the worker had run for this long.
    pub(super) fn date_of(&self, us: u64) -> Duration {
        Duration::from_micros((self.now.date_us + us).saturating_sub(self.now.us))
    }

    pub(super) fn allow(&mut self, node: NodeId, incarnation: Option<Incarnation>) {
        let link = &mut self.links[node];
        link.incarnation = incarnation;
        link.round = link.round.wrapping_add(1);
        for at in self.links.to(node) {
            match self.links[at].state {
                LinkState::Idle if self.links[at].stand_in.is_none() => self.dial(at),
                // A connection that outlived the node's absence is to the same process; its memory
                // is checked all the same.
                LinkState::Ready | LinkState::Checking if incarnation.is_some() => self.check(at),
                LinkState::Checking => self.ready(at),
                LinkState::Idle | LinkState::Ready | LinkState::Dialing | LinkState::Discarding => {}
            }
        }
    }

    pub(super) fn close(&mut self, pair: PairId, void: Option<NodeId>, round: u64) {
        let slot = &mut self.pairs[pair];
        let mut voided = slot.closing.take().map(|c| c.void).unwrap_or_default();
        slot.route = Route::Closed;
        if let Some(node) = void
            && !voided.contains(&node)
        {
            voided.push(node);
        }
        // Counted before anything is voided: a voided operation leaves the count, and the last one
        // to leave reports the gate closed. (24 instructions for each operation of the worker, once
        // an edge: 100,000 are about a millisecond. A count that each operation keeps would cost
        // every request instead.)
        let in_flight = self.ops.iter().filter(|op| op.pair == pair && op.stage.is_in_flight()).count();
        let in_flight = if holds(Rule::BarrierAtEdges) { in_flight } else { 0 };
        self.pairs[pair].closing = Some(Closing { round, in_flight, void: voided, reported: false });
        if let Some(node) = void {
            self.void_flights(pair, node);
            self.void_waiting_repairs(pair, node);
        }
        self.report_closed(pair);
    }

    pub(super) fn report_closed(&mut self, pair: PairId) {
        if let Some(closing) = &mut self.pairs[pair].closing
            && closing.in_flight == 0
            && !closing.reported
        {
            closing.reported = true;
            self.outbox.events.push_back(Event::Closed { worker: self.settings.worker, pair, round: closing.round });
        }
    }

    /// What is in flight on a deposed node for the pair counts for nothing any more.
    pub(super) fn void_flights(&mut self, pair: PairId, node: NodeId) {
        for at in self.links.to(node) {
            // They were answered before what is in flight: parked first, they keep their place.
            let unproven = self.take_unproven(pair, at);
            self.void_answers(node, unproven);
            let unmarked = self.take_unmarked(pair, at);
            self.park_unmarked(node, unmarked);
        }
        let mut stranded = Vec::new();
        for conn in &mut self.links[node].conns {
            for sent in &mut conn.flights {
                let (Flight::Op(id) | Flight::Get(id) | Flight::Repair(id, _) | Flight::Length(id)) = sent.flight
                else {
                    continue;
                };
                if self.ops[id].pair == pair {
                    // (A length is asked for an operation that comes right behind it.)
                    if !matches!(sent.flight, Flight::Length(_)) {
                        stranded.push((id, true));
                    }
                    sent.flight = if matches!(sent.flight, Flight::Get(_)) { Flight::VoidGet } else { Flight::Void };
                    conn.voids += 1;
                }
            }
            let waiting = conn.waiting.take_if(|id| self.ops[id].pair == pair);
            stranded.extend(waiting.into_iter().map(|id| (id, false)));
        }
        for (id, sent) in stranded {
            // A repair that ends on the way answers other operations of this list with its own.
            if !self.ops.contains(id) {
                continue;
            }
            match sent {
                true => self.strand(id, node),
                false => self.unsent(id, node),
            }
        }
        self.tell_undrained(node);
    }

    pub(super) fn tell_undrained(&mut self, node: NodeId) {
        let worker = self.settings.worker;
        let link = &mut self.links[node];
        let voids = link.voids();
        if voids && !link.undrained {
            link.undrained = true;
            self.outbox.events.push_back(Event::Undrained { worker, node });
        } else if !voids && link.undrained {
            link.undrained = false;
            self.outbox.events.push_back(Event::Drained { worker, node });
        }
    }

    pub(super) fn open(&mut self, pair: PairId, route: Route) {
        let slot = &mut self.pairs[pair];
        slot.closing = None;
        let (mut copied, mut other_leads) = (false, false);
        if let Route::Open(flow) = &route {
            let before = slot.flow.replace(flow.clone());
            other_leads = before.as_ref().is_some_and(|f| f.leader != flow.leader);
            // The node that leads now was being filled: what its source did before it was lost may
            // have been copied.
            copied = before.is_some_and(|f| matches!(f.follower, Follower::Filling(node, _) if node == flow.leader));
        }
        slot.route = route;
        if other_leads {
            self.become_wary();
        }
        for id in self.pairs[pair].parked.take() {
            self.unpark(id, copied);
        }
    }

    /// Nothing else changes: what is parked goes on waiting for the pair's next route.
    fn change_term(&mut self, pair: PairId, term: Term) {
        let slot = &mut self.pairs[pair];
        let of_route = if let Route::Open(flow) = &mut slot.route { Some(flow) } else { None };
        for flow in of_route.into_iter().chain(&mut slot.flow) {
            flow.term = flow.term.map(|_| term);
        }
    }

    /// `copied`: what another node did for an operation may be on the present leader already.
    pub(super) fn unpark(&mut self, id: OpId, copied: bool) {
        let op = &mut self.ops[id];
        let (leader, writable) = match &self.pairs[op.pair].route {
            Route::Open(flow) => (Some(flow.leader), flow.writable),
            _ => (None, false),
        };
        match op.stage {
            // Acknowledged only once it is recorded that the other node missed it.
            Stage::Held(node) if leader == Some(node) && writable => {
                self.note_brief_write(id, false);
                self.finish_with_answer(id)
            }
            Stage::Held(_) => self.fail(id, OUTCOME_UNKNOWN),
            Stage::Unknown(node) if leader == Some(node) && op.kind.is_write() => {
                // The very node that may have executed it leads: running it again could apply it
                // twice.
                self.fail(id, OUTCOME_UNKNOWN);
            }
            // Its effect may have been copied here already: it must not run a second time.
            Stage::Unknown(_) | Stage::Executed(..) if copied && !op.kind.is_repeatable() => {
                self.fail(id, OUTCOME_UNKNOWN);
            }
            Stage::Executed(node, memory)
                if leader == Some(node) && is_of_one_life(self.links[node].incarnation, memory) && writable =>
            {
                self.note_brief_write(id, false);
                self.finish_with_answer(id)
            }
            // In mid-repair: the node that leads now has answered differently, and that decides.
            Stage::Executed(node, _)
                if leader.is_some_and(|leader| leader != node)
                    && let Some(Decisive { answer, .. }) = op.repair.take().and_then(|repair| repair.decisive) =>
            {
                self.finish(id, answer);
            }
            _ => {
                op.stage = Stage::New;
                self.begin(id);
            }
        }
    }

    pub(super) fn park(&mut self, id: OpId, stage: Stage) {
        if matches!(stage, Stage::Held(_) | Stage::Unknown(_) | Stage::Executed(..)) {
            self.miss(id);
        }
        let patience = self.parking_patience();
        let op = &mut self.ops[id];
        op.stage = stage;
        match op.origin {
            Origin::Client(_) => {}
            // The control plane knows better than to wait for its own next route.
            Origin::Control(_) => return self.fail(id, OUTCOME_UNKNOWN),
            Origin::Look(key) => return self.look_failed(id, key),
        }
        if op.parked_at_us == 0 {
            // Parked again and again it must end all the same.
            op.parked_at_us = self.now.us.max(1);
        }
        let look_at_us = op.parked_at_us + patience;
        self.pairs[op.pair].parked.push(id, stage, look_at_us);
    }
}

/// Whether a memory is still the one that it was. What was executed there before a flush was
/// executed, and is not run again.
fn is_of_one_life(present: Option<Incarnation>, then: Option<Incarnation>) -> bool {
    present == then || present.zip(then).is_some_and(|(present, then)| present.is_of_one_memory_with(then))
}
