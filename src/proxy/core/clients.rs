//! Client connections: requests in, answers out, in order.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::ids::{WorkerId, is_reserved};
use crate::protocol::key::may_be_named;
use crate::protocol::meta::{self, Decoded, Flag, Meta, Verb};
use crate::protocol::out::OutQueue;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::request::{Admin, Close, Keyed, Kind, Parsed, Piece, Request, Style};
use crate::proxy::backlog::Backlog;
use crate::proxy::client::{Access, Client, Ended};
use crate::proxy::gone::Gone;
use crate::proxy::handles::{ClientId, ClientKey};
use crate::proxy::in_flight::{Begun, Held, Hold, Meter, Rest};
use crate::proxy::memory::{FREE, Memory, Share};
use crate::proxy::op::{self, Asker, Op, Origin, Wire};
use crate::ring::Topology;
use crate::stats::add;
use crate::stats::requests::Asked;

use super::messages::{Event, PeerMessage, Question};
use super::{Core, Now};

/// Up to this size the beginning of a request is copied out of the shared read block.
const SMALL_PARTIAL: usize = 4096;

const UNSHOWN: Refusal = Refusal::Client("this key has a line end in it, and me would show it as it is");

const ENDING: Refusal =
    Refusal::Server("the proxy ends before this is answered; the command may or may not have taken effect");

const RESERVED: Refusal = Refusal::Client("this key is reserved for the proxy");

const OPERATORS_ONLY: Refusal = Refusal::Client(
    "operator commands (resync, node) are not taken here (--operator-commands off); say it on --admin-socket: resilver ask --proxy PATH …",
);

/// The worker through which all writes of a key go, of so many: whom the control plane tells to
/// mend or adopt it.
pub fn owner_of(key: &[u8], workers: u16) -> WorkerId {
    owner_of_hash(Topology::key_hash(key), workers)
}

fn owner_of_hash(hash: u32, workers: u16) -> WorkerId {
    WorkerId(((hash >> 16) % u32::from(workers)) as u16)
}

#[inline(always)]
pub(super) fn begun(asked: Asked, now: Now) -> Begun {
    Begun { asked, at_us: now.us as u32 }
}

/// Takes a request's bytes. All there are is the rule without pipelining; then nobody shares them.
fn take_front(chunk: &mut BytesMut, len: usize) -> Bytes {
    if len == chunk.len() { std::mem::take(chunk) } else { chunk.split_to(len) }.freeze()
}

/// Keys of one get that are looked at, for what they conflict with, before others have their turn.
const LOOKED_AT_PER_TURN: u32 = 4096;

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
    /// Its own, behind the beginning of a request: what comes is told of by [`Core::handle_more`].
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

/// A key of a request.
#[derive(Clone, Copy)]
struct KeyAt {
    /// Where it stands in the request's bytes.
    place: (u32, u32),
    hash: u32,
}

impl KeyAt {
    /// `input`: what the request begins.
    #[inline(always)]
    fn new(input: &[u8], key: Range<usize>) -> KeyAt {
        KeyAt { place: (key.start as u32, key.end as u32), hash: Topology::key_hash(&input[key]) }
    }

    /// `input`: what the request begins.
    #[inline(always)]
    fn of(input: &[u8], request: &Keyed) -> KeyAt {
        let span = request.keys.span.clone();
        if is_encoded(request.kind) { KeyAt::encoded(input, span) } else { KeyAt::new(input, span) }
    }

    /// One that stands there in base64, as it will stand in the place of that.
    #[cold]
    #[inline(never)]
    fn encoded(input: &[u8], key: Range<usize>) -> KeyAt {
        let Some(decoded) = Decoded::of(&input[key.clone()]) else { return KeyAt::new(input, key) };
        let bytes = decoded.bytes();
        let place = (key.start as u32, (key.start + bytes.len()) as u32);
        KeyAt { place, hash: Topology::key_hash(bytes) }
    }
}

/// Puts a key in the place of its base64.
#[cold]
#[inline(never)]
fn decode_in_place(input: &mut [u8], key: Range<usize>) {
    if let Some(decoded) = Decoded::of(&input[key.clone()]) {
        let bytes = decoded.bytes();
        input[key.start..key.start + bytes.len()].copy_from_slice(bytes);
    }
}

#[inline(always)]
fn is_encoded(kind: Kind) -> bool {
    matches!(kind, Kind::Meta(meta) if meta.has(Flag::Binary))
}

impl Core {
    /// Clients' answers are counted in this account, of all workers.
    pub fn share(&mut self, memory: Arc<Memory>) {
        self.memory = memory;
    }

    /// What clients are told to be gone is written down here, by all workers.
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
        self.generation = self.generation.wrapping_add(1);
        let mut client = Client::new(self.generation, self.now.us);
        client.largest = self.largest;
        let id = self.clients.insert(client);
        ClientKey { id, generation: self.generation }
    }

    /// A client is gone; what it asked for is still carried through.
    /// Returns why it was closed.
    pub fn handle_gone(&mut self, id: ClientId) -> Option<Ended> {
        let mut client = self.clients.remove(id)?;
        client.settle(&mut self.spare);
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
        self.clients.get(key.id).is_some_and(|client| client.generation == key.generation)
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
        let (generation, closes) = (client.generation, client.closing && client.is_idle());
        Some(ToWrite { key: ClientKey { id, generation }, closes, unsent: client.unsent() })
    }

    /// Its answers were handed to somebody who holds them until they are written: so is their
    /// share.
    pub fn handed_on(&mut self, id: ClientId) -> Option<Share> {
        self.clients.get_mut(id)?.handed_on()
    }

    /// A client's socket takes no more: nothing is told of it before that is over.
    pub fn handle_client_blocked(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(id) {
            client.dirty = true;
        }
    }

    /// It takes more.
    pub fn handle_client_writable(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(id) {
            self.outbox.mark_client_anyway(client, id);
        }
    }

    /// All that a client's queue held is written. Its input goes on in the worker's next turn, if
    /// it waits and need not wait any longer.
    pub fn handle_written(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(id) {
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
        self.clients.get(id).map(|client| ClientKey { id, generation: client.generation })
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
        client.received_us = self.now.us;
        client.take_turn(self.turn);
        client.hear(&chunk);
        self.feed(id, chunk);
    }

    /// More has come behind what was in the client's `partial`.
    pub fn handle_more(&mut self, now: Now, id: ClientId) {
        self.now = now;
        let Some(client) = self.clients.get_mut(id) else { return };
        client.received_us = self.now.us;
        if client.partial.len() >= client.need && !client.line_goes_on() {
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
        // Whoever is closed from now on is closed because of it, also amid its input.
        for id in self.client_ids() {
            let client = &mut self.clients[id];
            if !client.closing {
                client.ended = Ended::Shutdown;
            }
        }
    }

    /// The process ends, and nothing that is unanswered will be answered any more: clients are told
    /// so. Returns how many requests of how many clients those are.
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

    /// Closes the clients that have sent nothing for so long and wait for nothing.
    pub fn close_silent(&mut self, now: Now, timeout: Duration) {
        self.now = now;
        for id in self.client_ids() {
            let client = &self.clients[id];
            let silent = Duration::from_micros(now.us.saturating_sub(client.received_us));
            if client.is_idle() && silent > timeout {
                self.close_client(id, Ended::Silent);
            }
        }
    }

    pub(super) fn feed(&mut self, id: ClientId, chunk: BytesMut) {
        match self.clients.get(id) {
            Some(client) if client.access != Access::Full => self.feed_operator(id, chunk),
            _ => self.feed_requests(id, chunk),
        }
        if let Some(client) = self.clients.get_mut(id) {
            client.count_requests(&self.memory);
            if client.finished && !client.stalled {
                self.close_client(id, if self.last_turn { Ended::Shutdown } else { Ended::Left });
            } else if (1..SMALL_PARTIAL).contains(&client.partial.len()) {
                // The beginning of a request must not keep the whole shared read block alive.
                client.partial = BytesMut::from(&client.partial[..]);
            }
        }
    }

    pub(super) fn feed_requests(&mut self, id: ClientId, mut chunk: BytesMut) {
        loop {
            let Some(client) = self.clients.get_mut(id) else { return };
            if client.closing {
                return;
            }
            if client.swallow > 0 {
                let cut = client.swallow.min(chunk.len());
                client.swallow -= cut;
                bytes::Buf::advance(&mut chunk, cut);
            }
            if chunk.is_empty() {
                // What waits for room is not forgotten because nothing waits behind it.
                client.stalled = client.has_rest();
                return;
            }
            if !client.has_room(&self.memory) {
                client.stalled = true;
                client.partial = chunk;
                return;
            }
            if client.turn_is_over() && !self.last_turn {
                client.stalled = true;
                client.partial = chunk;
                return self.outbox.resume(client, id);
            }
            if let Some(held) = client.take_held() {
                if !self.begin_get(id, *held, &mut chunk) {
                    return self.stall(id, chunk);
                }
                continue;
            }
            let parsed = match client.line() {
                None => client.dialect.next(&chunk, &self.limits),
                Some(line) => line.next(&chunk),
            };
            match parsed {
                Parsed::Incomplete { need } => {
                    // Of a line nobody knows how long it will be: room for it is asked for in
                    // steps.
                    let line = need == 0 && chunk.len() > FREE;
                    let wanted = if line { (chunk.len() + 1).next_power_of_two() } else { need };
                    (client.need, client.searched) = (need, chunk.len() as u32);
                    if wanted > FREE {
                        // A value has its own bound.
                        let too_long = line && wanted > self.memory.receiving_max();
                        if client.take_refusal() || too_long {
                            match self.refuse_starved(id, &mut chunk) {
                                true => continue,
                                false => return self.stall(id, chunk),
                            }
                        }
                        client.need = wanted;
                        if !self.may_receive(id, wanted) {
                            return self.stall(id, chunk);
                        }
                    }
                    let client = &mut self.clients[id];
                    client.need = need;
                    if need > chunk.len() + SMALL_PARTIAL {
                        // A large item: give it room of its own at once, so that its bytes are
                        // copied no second time.
                        let mut own = BytesMut::with_capacity(need);
                        own.extend_from_slice(&chunk);
                        chunk = own;
                    }
                    client.partial = chunk;
                    return;
                }
                Parsed::Request { request, style, len } => {
                    if tracing::level_filters::LevelFilter::current() >= tracing::Level::TRACE {
                        let client = client.generation;
                        self.trace_request(client, &request, style, len);
                    }
                    let begun = match request {
                        Request::Keyed(request) => self.begin_request(id, request, style, &mut chunk, len),
                        Request::Admin(admin) => self.begin_keyless(id, admin, style, &mut chunk, len),
                    };
                    if !begun {
                        return self.stall(id, chunk);
                    }
                }
                Parsed::Piece(piece) => {
                    let style = client.dialect.unasked();
                    if !self.begin_piece(id, *piece, style, &mut chunk) {
                        return self.stall(id, chunk);
                    }
                }
                Parsed::TooLarge { request, style, len, swallow } => {
                    if !self.begin_too_large(id, &request, style, &mut chunk, (len, Refusal::TooLarge)) {
                        return self.stall(id, chunk);
                    }
                    self.clients[id].swallow = swallow;
                }
                Parsed::Reject { reply, style, len, swallow, close } => {
                    let said = reply.trim_ascii_end();
                    tracing::debug!(client = client.generation, said = %String::from_utf8_lossy(said), "a request is refused");
                    bytes::Buf::advance(&mut chunk, len);
                    client.swallow = swallow;
                    client.end_receiving();
                    add(&self.stats.client_errors, 1);
                    let words = close.filter(|_| reply.is_empty()).map_or(reply, Close::words);
                    self.answer_at_once(id, style, len, Outcome::Own(words));
                    if let Some(close) = close {
                        self.close_client(id, Ended::Refused(close));
                        return;
                    }
                }
            }
        }
    }

    /// The request at the front of the input waits.
    pub(super) fn stall(&mut self, id: ClientId, chunk: BytesMut) {
        let client = &mut self.clients[id];
        client.stalled = true;
        client.partial = chunk;
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

    /// Begins a request; `false` = it must wait for answers to earlier ones, and nothing was
    /// consumed.
    #[inline(always)]
    fn begin_request(&mut self, id: ClientId, request: Keyed, style: Style, chunk: &mut BytesMut, len: usize) -> bool {
        if request.keys.count > 1 {
            let next = request.keys.span.start;
            return self.begin_get(id, Held { request, style, len, next, piece: false, rest: None }, chunk);
        }
        let client = &mut self.clients[id];
        let write = request.kind.is_write();
        let key = KeyAt::of(chunk, &request);
        if client.may_conflict(write) && client.conflicts(key.hash, write, &mut self.spare) {
            client.hold(Hold::Key { hash: key.hash, write }, None);
            return false;
        }
        if is_encoded(request.kind) {
            decode_in_place(chunk, request.keys.span.clone());
        }
        let raw = take_front(chunk, len);
        let slot = client.open_slot(1, false, (style, begun(Asked::of(request.kind), self.now)), len, &mut self.spare);
        self.begin_key(id, &request, (slot, 0), raw, key);
        true
    }

    /// The same for a get of several keys.
    fn begin_get(&mut self, id: ClientId, mut get: Held, chunk: &mut BytesMut) -> bool {
        let client = &mut self.clients[id];
        let write = get.request.kind.is_write();
        if client.may_conflict(write) {
            let mut looked = 0;
            for key in get.request.keys.from(chunk, get.next) {
                let hash = Topology::key_hash(&chunk[key.clone()]);
                if client.conflicts(hash, write, &mut self.spare) {
                    get.next = key.start;
                    client.hold(Hold::Key { hash, write }, Some(Box::new(get)));
                    return false;
                }
                looked += 1;
                if looked == LOOKED_AT_PER_TURN {
                    get.next = key.end;
                    client.hold(Hold::Turn, Some(Box::new(get)));
                    self.outbox.resume(client, id);
                    return false;
                }
            }
        }
        let raw = take_front(chunk, get.len);
        let slot = client.open_slot(
            get.request.keys.count,
            true,
            (get.style, begun(Asked::of(get.request.kind), self.now)),
            get.len,
            &mut self.spare,
        );
        if get.piece {
            client.begin_piece(get.rest);
        }
        let room = client.rest_room(&self.memory).max(1);
        self.begin_keys(id, Rest { request: get.request, raw, slot, part: 0 }, room);
        true
    }

    /// Begins a piece of a get that is too long for one turn.
    #[cold]
    #[inline(never)]
    fn begin_piece(&mut self, id: ClientId, piece: Piece, style: Style, chunk: &mut BytesMut) -> bool {
        let Piece { request, refused, len, rest } = piece;
        if request.keys.count > 0 {
            let next = request.keys.span.start;
            return self.begin_get(id, Held { request, style, len, next, piece: true, rest }, chunk);
        }
        let client = &mut self.clients[id];
        bytes::Buf::advance(chunk, len);
        // (It asks for no key.)
        let asked = begun(Asked::Other, self.now);
        let slot = client.open_slot(0, false, (style, asked), len, &mut self.spare);
        client.begin_piece(rest);
        if let Some(said) = refused {
            add(&self.stats.client_errors, 1);
            let said = String::from_utf8_lossy(said.trim_ascii_end());
            tracing::debug!(client = client.generation, %said, "a request is refused");
        }
        self.answer_client(id, slot, 0, false, refused.map_or(Outcome::Miss, Outcome::Own));
        true
    }

    /// Begins as many keys of a request as there is room for; the others wait in the client.
    fn begin_keys(&mut self, id: ClientId, mut rest: Rest, room: u32) {
        let raw = rest.raw.clone();
        let mut keys = rest.request.keys.iter(&raw);
        for _ in 0..room {
            let Some(key) = keys.next() else { return };
            let key = KeyAt::new(&raw, key);
            self.begin_key(id, &rest.request, (rest.slot, rest.part), raw.clone(), key);
            rest.part += 1;
            rest.request.keys.span.start = key.place.1 as usize;
        }
        if keys.next().is_some()
            && let Some(client) = self.clients.get_mut(id)
        {
            client.put_rest(rest);
            client.stalled = true;
            // Where every key was answered at once (a dark pair, the proxy's own keys) no answer
            // will come that goes on with the others.
            if client.may_resume(&self.memory) {
                self.outbox.resume(client, id);
            }
        }
    }

    /// Begins what a request (its slot, and which of its keys) asks of this key in `raw`.
    fn begin_key(
        &mut self,
        id: ClientId,
        request: &Keyed,
        (slot, part): (u64, u32),
        raw: Bytes,
        KeyAt { place, hash }: KeyAt,
    ) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let kind = request.kind;
        if kind.reads() {
            client.begin_read(slot);
        }
        let bytes = if kind.reads() { client.largest } else { (request.data.end - request.data.start) as u32 };
        let client = ClientKey { id, generation: client.generation };
        let asker = Asker { worker: self.settings.worker, client, slot, part, read: kind.reads() };
        let key = &raw[place.0 as usize..place.1 as usize];
        let (pair, wire) = (self.topology.pair_of(key), Wire::of_request(request, key));
        let op = Op {
            data: (request.data.start as u32, request.data.end as u32),
            flags: request.flags,
            exptime: request.exptime,
            cas: request.cas,
            delta: request.delta,
            initial: request.initial,
            tells_cas: request.tells_cas,
            wire,
            bytes,
            ..Op::new(Origin::Client(asker), kind, pair, hash, raw, place)
        };
        self.admit(op, asker);
    }

    /// Goes on with a get of very many keys.
    fn begin_rest(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let room = client.rest_room(&self.memory);
        if room > 0
            && let Some(rest) = client.take_rest()
        {
            self.begin_keys(id, rest, room);
        }
    }

    /// A value is not taken, for which there is this `error`. memcached removes the old item when a
    /// `set` is too large, or finds no memory; so does the pair.
    pub(super) fn begin_too_large(
        &mut self,
        id: ClientId,
        request: &Keyed,
        style: Style,
        chunk: &mut BytesMut,
        (len, refusal): (usize, Refusal),
    ) -> bool {
        let KeyAt { place, hash } = KeyAt::of(chunk, request);
        let client = &mut self.clients[id];
        if client.conflicts(hash, true, &mut self.spare) {
            client.hold(Hold::Key { hash, write: true }, None);
            return false;
        }
        if is_encoded(request.kind) {
            decode_in_place(chunk, request.keys.span.clone());
        }
        let key = &chunk[place.0 as usize..place.1 as usize];
        let (pair, wire) = (self.topology.pair_of(key), Wire::of_request(request, key));
        let raw = chunk.split_to(len).freeze();
        client.end_receiving();
        let slot = client.open_slot(1, false, (style, begun(Asked::of(request.kind), self.now)), len, &mut self.spare);
        let generation = client.generation;
        let said = refusal.words();
        tracing::debug!(client = generation, limit = self.limits.item_size_max, said, "a request is refused");
        let refused =
            if refusal == Refusal::TooLarge { &self.stats.store_too_large } else { &self.stats.store_no_memory };
        add(refused, 1);
        let error = Outcome::Refused(refusal);
        if !matches!(request.kind, Kind::Set | Kind::Meta(_)) {
            self.answer_client(id, slot, 0, false, error);
            return true;
        }
        let client = ClientKey { id, generation };
        let asker = Asker { worker: self.settings.worker, client, slot, part: 0, read: false };
        let op = Op {
            answer: Some(error),
            decided: true,
            wire,
            // (Nothing behind the key: the flags are not those of a deletion.)
            ..Op::new(Origin::Client(asker), removal(request.kind), pair, hash, raw.slice(..place.1 as usize), place)
        };
        self.admit(op, asker);
        true
    }

    /// Sends an operation to its key's owner, or begins it here.
    #[inline(always)]
    pub(super) fn admit(&mut self, op: Op, asker: Asker) {
        let id = asker.client.id;
        let write = op.kind.is_write();
        op::count(op.kind, &self.stats);
        if let Some(client) = self.clients.get_mut(id) {
            client.note_key(asker.slot, op.hash, write);
        }
        if is_reserved(op.key()) {
            // The proxy's own items do not exist for clients.
            let answer = match op.kind {
                Kind::Meta(meta) if meta.reads() => {
                    Outcome::Raw(meta::answer::own(b"EN", meta, op.key(), op.words(meta)))
                }
                kind if kind.reads() => op.miss(),
                _ => {
                    add(&self.stats.client_errors, 1);
                    Outcome::Refused(RESERVED)
                }
            };
            return self.answer_client(id, asker.slot, asker.part, asker.read, answer);
        }
        if matches!(op.kind, Kind::Meta(Meta { verb: Verb::Debug, .. })) && !may_be_named(op.key()) {
            add(&self.stats.client_errors, 1);
            return self.answer_client(id, asker.slot, asker.part, asker.read, Outcome::Refused(UNSHOWN));
        }
        let owner = self.owner(op.hash);
        if write && owner != self.settings.worker {
            self.outbox.peers.push_back((owner, PeerMessage::Op(Box::new(op))));
            return;
        }
        let id = self.take_in(op);
        self.begin(id);
    }

    /// The worker through which all writes of a key go.
    pub(super) fn owner(&self, hash: u32) -> WorkerId {
        owner_of_hash(hash, self.settings.workers)
    }

    pub(super) fn begin_keyless(
        &mut self,
        id: ClientId,
        admin: Admin,
        style: Style,
        chunk: &mut BytesMut,
        len: usize,
    ) -> bool {
        let client = &mut self.clients[id];
        let asks = matches!(
            admin,
            Admin::FlushAll { .. } | Admin::Stats(_) | Admin::Resync(_) | Admin::Node(_) | Admin::List(_)
        );
        if asks && !client.is_idle() {
            return false;
        }
        let words = |range: Range<usize>| String::from_utf8_lossy(&chunk[range]).into_owned();
        let question = match admin {
            Admin::FlushAll { delay } => {
                add(&self.stats.cmd_flush, 1);
                Ok(Question::FlushAll { delay })
            }
            Admin::Stats(args) => Ok(Question::Stats(words(args))),
            Admin::Resync(_) | Admin::Node(_) if !self.settings.operator_commands => {
                Err(Outcome::Refused(OPERATORS_ONLY))
            }
            Admin::Resync(args) => Ok(Question::Resync(words(args))),
            Admin::Node(args) => Ok(Question::Node(words(args))),
            Admin::List(classes) => Ok(Question::List(words(classes))),
            Admin::Version => Err(Outcome::Version(crate::proxy::VERSION)),
            Admin::Noop => Err(Outcome::Done),
            Admin::Quit => Err(Outcome::Quit),
            Admin::Verbosity { level } => {
                // It is the node's affair elsewhere; the proxy's log level is set at its start.
                tracing::debug!(client = client.generation, level, "verbosity is not changed by clients");
                Err(Outcome::Done)
            }
        };
        bytes::Buf::advance(chunk, len);
        let question = match question {
            Ok(question) => question,
            Err(outcome) => {
                let quits = outcome == Outcome::Quit;
                self.answer_at_once(id, style, len, outcome);
                if quits {
                    self.close_client(id, Ended::Quit);
                }
                return true;
            }
        };
        let slot = client.open_slot(0, false, (style, begun(Asked::Other, self.now)), len, &mut self.spare);
        client.exclusive = true;
        let client = ClientKey { id, generation: client.generation };
        self.outbox.events.push_back(Event::Ask { worker: self.settings.worker, client, slot, question });
        true
    }

    /// What no server is asked for.
    pub(super) fn answer_at_once(&mut self, id: ClientId, style: Style, len: usize, answer: Outcome) {
        let asked = begun(Asked::Other, self.now);
        let slot = self.clients[id].open_slot(0, false, (style, asked), len, &mut self.spare);
        self.answer_client(id, slot, 0, false, answer);
    }

    pub(super) fn answer_client(&mut self, id: ClientId, slot: u64, part: u32, read: bool, answer: Outcome) {
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
        // (One that has closed its half takes its answer to the end.)
        let Some(client) = self.clients.of(key) else {
            return self.outbox.events.push_back(Event::Unwanted { worker: self.settings.worker, client: key });
        };
        client.put_part(bytes, &self.memory);
        self.outbox.mark_client(client, key.id);
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

/// What removes an item that a command of this kind has failed to replace.
fn removal(kind: Kind) -> Kind {
    match is_encoded(kind) {
        true => Kind::Meta(Meta::new(Verb::Delete).with(Flag::Binary)),
        false => Kind::Delete,
    }
}
