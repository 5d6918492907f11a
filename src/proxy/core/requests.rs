//! Requests: read from what clients send, and begun.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::ids::{WorkerId, is_reserved};
use crate::protocol::key::may_be_named;
use crate::protocol::meta::{self, Flag, Meta, Verb};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::request::{Admin, Close, Keyed, Kind, Parsed, Piece, Request, Style};
use crate::protocol::spelled;
use crate::proxy::client::{Access, Ended};
use crate::proxy::handles::{ClientId, ClientKey, SlotNumber};
use crate::proxy::in_flight::{Begun, Held, Hold, Rest};
use crate::proxy::memory::FREE;
use crate::proxy::op::{self, Asker, Op, Origin, Wire};
use crate::ring::Topology;
use crate::stats::add;
use crate::stats::requests::Asked;

use super::key_at::{KeyAt, decode_in_place, is_encoded};
use super::messages::{Event, PeerMessage, Question};
use super::{Core, Now};

/// Up to this size the beginning of a request is copied out of the shared read block.
const SMALL_PARTIAL: usize = 4096;

const UNSHOWN: Refusal = Refusal::Client("this key has a line end in it, and me would show it as it is");

const RESERVED: Refusal = Refusal::Client("this key is reserved for the proxy");

const OPERATORS_ONLY: Refusal = Refusal::Client(
    "operator commands (resync, node) are not taken here (--operator-commands off); say it on --admin-socket (of several proxies, on that of the active one): resilver ask --proxy PATH …",
);

/// The worker through which all writes of a key go, of this many: whom the control plane tells to
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

/// Takes a request's bytes. Without pipelining those are all bytes that there are, and the buffer
/// is taken whole, shared with no other request.
fn take_front(chunk: &mut BytesMut, len: usize) -> Bytes {
    if len == chunk.len() { std::mem::take(chunk) } else { chunk.split_to(len) }.freeze()
}

/// Keys of one get that are looked at, for what they conflict with, before others have their turn.
const LOOKED_AT_PER_TURN: u32 = 4096;

/// What became of a client's next request.
enum Taken {
    Yes,
    /// It waits for answers to earlier ones, and nothing of it was taken.
    Waits,
    /// The client is gone with it.
    Closed,
}

impl Core {
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
                let cut = chunk.len().min(client.swallow as usize);
                client.swallow -= cut as u32;
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
            if let Parsed::Incomplete { need } = parsed {
                match self.wait_for_rest(id, need, chunk) {
                    Some(rest) => chunk = rest,
                    None => return,
                }
                continue;
            }
            match self.begin_parsed(id, parsed, &mut chunk) {
                Taken::Yes => {}
                Taken::Waits => return self.stall(id, chunk),
                Taken::Closed => return,
            }
        }
    }

    /// Begins what `chunk` begins with.
    #[inline(always)]
    fn begin_parsed(&mut self, id: ClientId, parsed: Parsed, chunk: &mut BytesMut) -> Taken {
        let begun = match parsed {
            Parsed::Request { request, style, len } => {
                if tracing::level_filters::LevelFilter::current() >= tracing::Level::TRACE {
                    self.trace_request(self.clients[id].occupant, &request, style, len);
                }
                match request {
                    Request::Keyed(request) => self.begin_request(id, request, style, chunk, len),
                    Request::Admin(admin) => self.begin_keyless(id, admin, style, chunk, len),
                }
            }
            Parsed::Piece(piece) => {
                let style = self.clients[id].dialect.unasked();
                self.begin_piece(id, *piece, style, chunk)
            }
            Parsed::TooLarge { request, style, len, swallow } => {
                let begun = self.begin_too_large(id, &request, style, chunk, (len, Refusal::TooLarge));
                if begun {
                    self.clients[id].swallow = swallow as u32;
                }
                begun
            }
            Parsed::Reject { reply, style, len, swallow, close } => {
                bytes::Buf::advance(chunk, len);
                self.clients[id].swallow = swallow as u32;
                self.reject(id, (style, len), reply, close);
                if close.is_some() {
                    return Taken::Closed;
                }
                true
            }
            Parsed::Incomplete { .. } => false,
        };
        if begun { Taken::Yes } else { Taken::Waits }
    }

    /// The client's next request, of `len` bytes, is none.
    pub(super) fn reject(
        &mut self,
        id: ClientId,
        (style, len): (Style, usize),
        reply: &'static [u8],
        close: Option<Close>,
    ) {
        let client = &mut self.clients[id];
        let words = close.filter(|_| reply.is_empty()).map_or(reply, Close::words);
        let said = words.trim_ascii_end().escape_ascii();
        tracing::debug!(client = client.occupant.0, %said, "a request is refused");
        client.end_receiving();
        add(&self.stats.client_errors, 1);
        self.answer_at_once(id, style, len, Outcome::Own(words));
        if let Some(close) = close {
            self.close_client(id, Ended::Refused(close));
        }
    }

    /// The request at the front of `chunk` is not whole: `need` bytes, or 0 where its line has no
    /// end yet. It waits for the rest; or it was refused for want of room, and what follows it is
    /// returned.
    fn wait_for_rest(&mut self, id: ClientId, need: usize, mut chunk: BytesMut) -> Option<BytesMut> {
        // How long a line will be is unknown: room for it is asked for in steps.
        let line = need == 0 && chunk.len() > FREE;
        let wanted = if line { (chunk.len() + 1).next_power_of_two() } else { need };
        let client = &mut self.clients[id];
        (client.need, client.searched) = (need as u32, chunk.len() as u32);
        if wanted > FREE {
            // A value has its own bound.
            let too_long = line && wanted > self.memory.receiving_max();
            if client.take_refusal() || too_long {
                if self.refuse_starved(id, &mut chunk) {
                    return Some(chunk);
                }
                self.stall(id, chunk);
                return None;
            }
            client.need = wanted as u32;
            if !self.may_receive(id, wanted) {
                self.stall(id, chunk);
                return None;
            }
        }
        let client = &mut self.clients[id];
        client.need = need as u32;
        if need > chunk.len() + SMALL_PARTIAL {
            // A large item: give it room of its own at once, so that its bytes are copied no
            // second time.
            let mut own = BytesMut::with_capacity(need);
            own.extend_from_slice(&chunk);
            chunk = own;
        }
        client.partial = chunk;
        None
    }

    /// The request at the front of the input waits.
    pub(super) fn stall(&mut self, id: ClientId, chunk: BytesMut) {
        let client = &mut self.clients[id];
        client.stalled = true;
        client.partial = chunk;
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
        // A request without a key.
        let asked = begun(Asked::Other, self.now);
        let slot = client.open_slot(0, false, (style, asked), len, &mut self.spare);
        client.begin_piece(rest);
        if let Some(said) = refused {
            add(&self.stats.client_errors, 1);
            let said = String::from_utf8_lossy(said.trim_ascii_end());
            tracing::debug!(client = client.occupant.0, %said, "a request is refused");
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
        (slot, part): (SlotNumber, u32),
        raw: Bytes,
        KeyAt { place, hash }: KeyAt,
    ) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let kind = request.kind;
        let read = kind.reads();
        let bytes = if read {
            client.begin_read(slot, &self.memory);
            client.largest
        } else {
            let bytes = (request.data.end - request.data.start) as u32;
            self.memory.sizes.met(bytes as usize);
            bytes
        };
        let client = ClientKey { id, occupant: client.occupant };
        let asker = Asker { worker: self.settings.worker, client, slot, part, read };
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
    pub(super) fn begin_rest(&mut self, id: ClientId) {
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
        let occupant = client.occupant;
        let said = refusal.words();
        tracing::debug!(client = occupant.0, limit = self.limits.item_size_max, said, "a request is refused");
        let refused =
            if refusal == Refusal::TooLarge { &self.stats.store_too_large } else { &self.stats.store_no_memory };
        add(refused, 1);
        let error = Outcome::Refused(refusal);
        if !matches!(request.kind, Kind::Set | Kind::Meta(_)) {
            self.answer_client(id, slot, 0, false, error);
            return true;
        }
        let client = ClientKey { id, occupant };
        let asker = Asker { worker: self.settings.worker, client, slot, part: 0, read: false };
        let op = Op {
            answer: Some(error),
            decided: true,
            wire,
            // `raw` ends behind the key: the flags of a store are no flags of a deletion.
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
            op::count_read(op.kind, false, &self.stats);
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
        let words = |range: Range<usize>| spelled::text(&chunk[range]);
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
                tracing::debug!(client = client.occupant.0, level, "verbosity is not changed by clients");
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
        let flushes = matches!(question, Question::FlushAll { delay: ..=0 });
        let client = ClientKey { id, occupant: client.occupant };
        self.outbox.events.push_back(Event::Ask { worker: self.settings.worker, client, slot, question });
        if flushes {
            self.join_flushes(id, chunk);
        }
        true
    }

    /// Those that stand right behind a flush which has not begun are done with it. With a round
    /// each, a pipeline of 10,000 went on long after its client had left, and ended what
    /// others had stored since.
    fn join_flushes(&mut self, id: ClientId, chunk: &mut BytesMut) {
        let client = &mut self.clients[id];
        while !client.turn_is_over()
            && let Parsed::Request { request: Request::Admin(Admin::FlushAll { delay: ..=0 }), style, len } =
                client.dialect.next(chunk, &self.limits)
        {
            bytes::Buf::advance(chunk, len);
            add(&self.stats.cmd_flush, 1);
            client.open_slot(0, false, (style, begun(Asked::Other, self.now)), len, &mut self.spare);
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
