//! Client connections: what comes from them, when it goes on, and their answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::ids::WorkerId;
use crate::protocol::out::OutQueue;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::request::Style;
use crate::proxy::backlog::Backlog;
use crate::proxy::client::{Client, Ended};
use crate::proxy::gone::Gone;
use crate::proxy::handles::{ClientId, ClientKey, SlotNumber};
use crate::proxy::in_flight::Meter;
use crate::proxy::memory::{Memory, Share};
use crate::proxy::op::Asker;
use crate::stats::requests::Asked;

use super::messages::{Event, PeerMessage};
use super::requests::begun;
use super::{Core, Now};

const ENDING: Refusal =
    Refusal::Server("the proxy ends before this is answered; the command may or may not have taken effect");

/// Whether a client is to be read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    GoesOn,
    /// Its input waits for answers, for memory, or for its next turn.
    Waits,
    /// Never more: it is closed, once what it asked for is answered, or gone.
    Over,
}

/// Room for what a client sends.
#[derive(Debug)]
pub enum Room<'a> {
    /// Its own, behind the beginning of a request: [`Core::handle_more`] is called for what comes.
    Own(&'a mut BytesMut),
    /// The block that serves all clients in turn: what comes is given to [`Core::handle_input`].
    Block(&'a mut BytesMut),
    /// As [`Reading::Waits`].
    Waits,
    /// As [`Reading::Over`].
    Over,
}

/// What there is to be done with a client.
#[derive(Debug)]
pub struct ToWrite<'a> {
    pub key: ClientKey,
    /// It is to be closed once all of that is written.
    pub closes: bool,
    /// Answers, if there are any.
    pub unsent: Option<&'a mut OutQueue>,
}

impl Core {
    /// Clients' answers are counted in this account, of all workers.
    pub fn share(&mut self, memory: Arc<Memory>) {
        self.memory = memory;
    }

    /// All workers write down here which keys clients were told to be missing.
    pub fn remember(&mut self, gone: Arc<Gone>) {
        self.gone = gone;
    }

    /// Whether clients may bring much before they are stopped.
    #[inline(always)]
    pub fn takes_bursts(&self) -> bool {
        self.memory.takes_bursts()
    }

    /// For what they bring then.
    pub fn backlog(&self) -> Backlog {
        Backlog::new(self.memory.clone())
    }

    /// A client has connected.
    pub fn handle_connect(&mut self, now: Now) -> ClientKey {
        self.now = now;
        self.occupant = self.occupant.next();
        let mut client = Client::new(self.occupant, self.now.us);
        client.largest = self.largest;
        let id = self.clients.insert(client);
        ClientKey { id, occupant: self.occupant }
    }

    /// A client is gone; what it asked for is still carried through.
    /// Returns why it was closed.
    pub fn handle_gone(&mut self, id: ClientId) -> Option<Ended> {
        let mut client = self.clients.remove(id)?;
        client.settle(&mut self.spare);
        client.doubt_nothing(&self.memory);
        Some(client.ended)
    }

    /// Whether a client is to be read from.
    #[inline]
    pub fn reading(&self, id: ClientId) -> Reading {
        match self.clients.get(id) {
            Some(client) if !client.closing => match client.stalled {
                true => Reading::Waits,
                false => Reading::GoesOn,
            },
            _ => Reading::Over,
        }
    }

    /// Whether a client's input waits.
    #[inline]
    pub fn is_stalled(&self, id: ClientId) -> bool {
        self.clients.get(id).is_some_and(|client| client.stalled)
    }

    /// Whether that client still sits in its place.
    #[inline]
    pub fn is_connected(&self, key: ClientKey) -> bool {
        self.clients.get(key.id).is_some_and(|client| client.occupant == key.occupant)
    }

    /// Room for what a client sends.
    #[inline(always)]
    pub fn client_room<'a>(&'a mut self, id: ClientId, block: &'a mut BytesMut) -> Room<'a> {
        match self.clients.get_mut(id) {
            Some(client) if !client.closing => match client.stalled {
                true => Room::Waits,
                false => match client.room(block) {
                    (room, true) => Room::Own(room),
                    (room, false) => Room::Block(room),
                },
            },
            _ => Room::Over,
        }
    }

    /// What is to be done with a client that is dirty.
    #[inline]
    pub fn client_to_write(&mut self, id: ClientId) -> Option<ToWrite<'_>> {
        let client = self.clients.get_mut(id)?;
        client.dirty = false;
        let (occupant, closes) = (client.occupant, client.closing && client.is_idle());
        Some(ToWrite { key: ClientKey { id, occupant }, closes, unsent: client.unsent() })
    }

    /// Its answers were handed to somebody who holds them until they are written, and now so many
    /// bytes: so is their share. If it is `Some`, [`Core::handle_client_writable`] has to follow
    /// when they are.
    pub fn handed_on(&mut self, id: ClientId, bytes: usize) -> Option<Share> {
        self.clients.get_mut(id)?.handed_on(bytes)
    }

    /// A client's socket takes no more: the client is not polled as dirty before it does again.
    pub fn handle_client_blocked(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(id) {
            client.dirty = true;
        }
    }

    /// It takes more, and has taken all that was handed on.
    pub fn handle_client_writable(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(id) {
            client.has_taken();
            self.outbox.mark_client_anyway(client, id);
        }
    }

    /// All that a client's queue held is written. Its input goes on in the worker's next turn, if
    /// it waits and need not wait any longer.
    pub fn handle_written(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(id) {
            client.waits_until(self.now.us);
            if client.stalled && client.may_resume(&self.memory) {
                self.outbox.resume(client, id);
            }
            client.settle(&mut self.spare);
            client.count_written(&self.memory);
        }
    }

    pub fn worker(&self) -> WorkerId {
        self.settings.worker
    }

    /// Who sits in that place.
    pub fn client_key(&self, id: ClientId) -> Option<ClientKey> {
        self.clients.get(id).map(|client| ClientKey { id, occupant: client.occupant })
    }

    /// Bytes that a client was answered and has not taken.
    pub fn unsent_to_client(&mut self, id: ClientId) -> usize {
        self.clients.get_mut(id).and_then(|client| client.unsent()).map_or(0, |out| out.len())
    }

    /// Operations unfinished.
    pub fn op_count(&self) -> usize {
        self.ops.len()
    }

    /// The clients connected.
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// Every client's place.
    pub fn client_ids(&self) -> Vec<ClientId> {
        self.clients.ids().collect()
    }

    /// Takes what a client sent that has nothing in its `partial`. What cannot be begun yet goes
    /// there.
    pub fn handle_input(&mut self, now: Now, id: ClientId, chunk: BytesMut) {
        self.now = now;
        let Some(client) = self.clients.get_mut(id) else { return };
        debug_assert!(client.partial.is_empty());
        client.receives(self.now.us);
        client.take_turn(self.turn);
        client.hear(&chunk);
        self.feed(id, chunk);
    }

    /// More has come behind what was in the client's `partial`.
    pub fn handle_more(&mut self, now: Now, id: ClientId) {
        self.now = now;
        let Some(client) = self.clients.get_mut(id) else { return };
        client.receives(self.now.us);
        client.hear_more();
        if client.partial.len() >= client.need as usize && !client.line_goes_on() {
            client.take_turn(self.turn);
            self.go_on(id);
        }
    }

    /// The worker's turn is over: every client may begin as much again. Returns how many clients'
    /// input goes on in the next one: [`Core::poll_resumable`] names them.
    pub fn next_turn(&mut self) -> usize {
        self.turn = self.turn.wrapping_add(1);
        self.outbox.resumable()
    }

    /// From now on no turn ends before the client's input: there will be no other.
    pub fn begin_last_turn(&mut self) {
        self.last_turn = true;
        // Clients closed from now on are closed for this reason, also amid their input.
        for id in self.client_ids() {
            let client = &mut self.clients[id];
            if !client.closing {
                client.ended = Ended::Shutdown;
            }
        }
    }

    /// The process ends, and unanswered requests will not be answered any more: their clients get
    /// an error. Returns how many requests of how many clients those are.
    pub fn give_clients_up(&mut self, now: Now) -> (usize, usize) {
        self.now = now;
        let (mut requests, mut clients) = (0, 0);
        for id in self.client_ids() {
            let meter = Meter { stats: &self.stats, now_us: self.now.us };
            let client = &mut self.clients[id];
            let mut unanswered = client.give_up(ENDING, &mut self.spare, &self.memory, meter);
            let waits = client.stalled && !client.partial.is_empty();
            if unanswered == 0 && waits {
                // It has asked for something that was not begun.
                let style = client.dialect.unasked();
                self.answer_at_once(id, style, 0, Outcome::Refused(ENDING));
                unanswered = 1;
            }
            requests += unanswered;
            clients += usize::from(unanswered > 0);
            self.close_client(id, Ended::Shutdown);
        }
        (requests, clients)
    }

    /// Goes on with a client's input after answers made room.
    pub fn handle_resume(&mut self, now: Now, id: ClientId) {
        self.now = now;
        if let Some(client) = self.clients.get_mut(id) {
            client.take_another_turn();
            client.waits_until(now.us);
            self.go_on(id);
        }
    }

    fn go_on(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id) else { return };
        (client.stalled, client.resuming) = (false, false);
        self.begin_rest(id);
        let Some(client) = self.clients.get_mut(id) else { return };
        let chunk = std::mem::take(&mut client.partial);
        self.feed(id, chunk);
    }

    /// Nothing more will be read from a client; it is closed when what it asked for is answered.
    pub fn handle_finished(&mut self, now: Now, id: ClientId) {
        self.now = now;
        if let Some(client) = self.clients.get_mut(id) {
            // A request that was read but had to wait is still begun: `feed` goes on until the
            // input is used up.
            client.finished = true;
            if !client.stalled {
                // It may be about to go on with input that had to wait: that is begun first.
                let chunk = std::mem::take(&mut client.partial);
                self.feed(id, chunk);
            }
        }
    }

    /// Closes the clients that have sent nothing for this long, and waited for nothing meanwhile.
    pub fn close_silent(&mut self, now: Now, timeout: Duration) {
        self.now = now;
        for id in self.client_ids() {
            let since_us = self.clients[id].idle_since_us();
            if since_us.is_some_and(|since_us| Duration::from_micros(now.us.saturating_sub(since_us)) > timeout) {
                self.close_client(id, Ended::Silent);
            }
        }
    }

    pub(super) fn close_client(&mut self, id: ClientId, why: Ended) {
        if let Some(client) = self.clients.get_mut(id) {
            if !client.closing {
                client.ended = why;
            }
            client.closing = true;
            self.outbox.mark_client(client, id);
        }
    }

    /// What no server is asked for.
    pub(super) fn answer_at_once(&mut self, id: ClientId, style: Style, len: usize, answer: Outcome) {
        let asked = begun(Asked::Other, self.now);
        let slot = self.clients[id].open_slot(0, false, (style, asked), len, &mut self.spare);
        self.answer_client(id, slot, 0, false, answer);
    }

    pub(super) fn answer_client(&mut self, id: ClientId, slot: SlotNumber, part: u32, read: bool, answer: Outcome) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if read && client.is_new() {
            self.largest = (self.largest - self.largest / 64).max(answer.weight() as u32);
        }
        let meter = Meter { stats: &self.stats, now_us: self.now.us };
        let moved = client.answer((slot, part, read), answer, &mut self.spare, &self.memory, meter);
        if moved {
            self.outbox.mark_client(client, id);
        }
        if client.stalled && (moved || client.has_rest()) && client.may_resume(&self.memory) {
            self.outbox.resume(client, id);
        }
    }

    /// A piece of the answer to what the client alone waits for.
    pub(super) fn tell_part(&mut self, key: ClientKey, bytes: Bytes) {
        // A client that has closed its half still takes the whole answer.
        let Some(client) = self.clients.of(key) else {
            return self.outbox.events.push_back(Event::Unwanted { worker: self.settings.worker, client: key });
        };
        client.put_part(bytes, &self.memory);
        self.outbox.mark_client(client, key.id);
    }

    /// The control plane's answer to what nothing else is begun behind: what is in flight beside it
    /// are flushes that were done with it (`join_flushes`).
    pub(super) fn answer_exclusive(&mut self, client: ClientKey, mut slot: SlotNumber, outcome: &Outcome) {
        let Some(c) = self.clients.of(client) else { return };
        c.exclusive = false;
        for _ in 0..c.unanswered() {
            self.answer_client(client.id, slot, 0, false, outcome.clone());
            slot = slot.next();
        }
    }

    pub(super) fn deliver(&mut self, asker: Asker, answer: Outcome) {
        if asker.worker != self.settings.worker {
            self.outbox.peers.push_back((asker.worker, PeerMessage::Answer(asker, answer)));
            return;
        }
        if self.clients.of(asker.client).is_some() {
            self.answer_client(asker.client.id, asker.slot, asker.part, asker.read, answer);
        }
    }
}
