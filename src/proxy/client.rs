//! One client connection as the data plane sees it: requests in order, answers in the same order.

mod trust;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::protocol::classic::LongLine;
use crate::protocol::dialect::Dialect;
use crate::protocol::foreign::Foreign;
use crate::protocol::out::OutQueue;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::request::{Close, Style};

use super::handles::{Occupant, SlotNumber};
use super::in_flight::{Begun, Held, Hold, InFlight, Meter, Rest, Spare};
use super::memory::{FREE, Memory, Share};
use super::room;
use trust::FIRST_READS;

/// Bytes of answers that may wait for a client to read them; past it no request of the client is
/// begun.
pub(super) const MAX_UNSENT: usize = 4 * 1024 * 1024;

/// Keys of one client that may be read at once. It bounds what one line asks for: 1 MiB of two-byte
/// keys could name 300,000 large items.
pub(super) const MAX_READS: u32 = 256;

/// What is begun for one client before others have their turn: each request and each key read
/// counts for one, and so does each KiB. A pipeline, a long line or a flood without replies then
/// keeps no other client waiting for more than about a millisecond.
pub(super) const TURN: u32 = 512;

/// Keys of one line that may be unanswered, or wait to be sent behind one that is. While the first
/// one's server keeps it waiting others may answer all the rest of a line that names 500,000: 24 MB
/// for each such client.
const WINDOW: usize = 4096;

/// What a client may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Everything.
    Full,
    /// It came when all places were taken, and has asked for nothing yet.
    Unknown,
    /// Let in beyond the limit, and it asks what operators ask.
    Operator,
}

/// Why a client is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It closed its half, or broke the connection.
    Left,
    Quit,
    /// `--idle-timeout`.
    Silent,
    /// `--max-clients`.
    TooMany,
    /// What it sent is refused, and nothing behind it can be understood.
    Refused(Close),
    /// `--client-memory` has no room for its line.
    NoMemory,
    /// This process ends.
    Shutdown,
}

impl Ended {
    /// For the log.
    pub fn word(self) -> &'static str {
        match self {
            Ended::Left => "it closed the connection",
            Ended::Quit => "quit",
            Ended::Silent => "silent for --idle-timeout",
            Ended::TooMany => "-n/--max-clients are connected",
            Ended::Refused(Close::Foreign(Foreign::Tls)) => "it speaks TLS",
            Ended::Refused(Close::Foreign(Foreign::Http)) => "it speaks HTTP",
            Ended::Refused(Close::Foreign(Foreign::Resp)) => "it speaks Redis's protocol",
            Ended::Refused(Close::LongLine) => "it does not speak memcached's protocol: a line too long that is no get",
            Ended::Refused(Close::BadHeader) => "a binary request with a wrong header",
            Ended::NoMemory => "no memory for its line",
            Ended::Shutdown => "the proxy ends",
        }
    }
}

/// A client connection. Whatever a request needs is in `in_flight`, so that the many that are idle
/// hold none of it.
#[derive(Debug)]
pub struct Client {
    /// Which of those that sat in its place in the worker's table.
    pub occupant: Occupant,
    /// A request that has not arrived whole.
    pub partial: BytesMut,
    /// How long the request in `partial` will be, once known, or may be. (No protocol has a longer
    /// one.)
    pub need: u32,
    /// How much of `partial` is known to hold no end of a line.
    pub(super) searched: u32,
    /// Data of a refused item still to be thrown away.
    pub swallow: u32,
    /// Nothing more is read from it; it is closed when every request is answered and nothing is
    /// unsent.
    pub closing: bool,
    /// Why, once it is closing.
    pub ended: Ended,
    pub(super) access: Access,
    /// What it speaks.
    pub(super) dialect: Dialect,
    /// Nothing more will be read from it, but what was read is still to be begun.
    pub finished: bool,
    /// The last request could not be begun yet: input waits for an answer, or for its next turn.
    pub stalled: bool,
    /// Already on the worker's list of clients whose input goes on.
    pub(super) resuming: bool,
    /// A command that is answered by the control plane is unanswered: nothing behind it begins, but
    /// for flushes behind a flush.
    pub exclusive: bool,
    /// Already on the worker's list of clients to be written to.
    pub dirty: bool,
    /// What was begun for it in the worker's turn of this number, see [`TURN`].
    begun: u32,
    /// See `begun`.
    turn: u32,
    /// When it last sent something, microseconds of the worker's clock.
    pub received_us: u64,
    /// How long after that it still waited for the proxy, in milliseconds: for an answer, for that
    /// to be written, or for memory.
    waited_ms: u32,
    /// Bytes of answers that somebody else holds until they are written, if that is many.
    handed: u32,
    /// What its values are like, in bytes: the largest of late.
    pub(super) largest: u32,
    /// Keys that it may have read at once, as far as that is known.
    reads_max: u32,
    /// What answers have proved since it began to read, see [`super::sizes`].
    proved: u32,
    /// Of the keys that are read, those beyond what it is trusted with.
    doubted: u16,
    /// Number of the first slot.
    first: SlotNumber,
    in_flight: Option<Box<InFlight>>,
}

impl Client {
    /// A client that has just connected.
    pub fn new(occupant: Occupant, now_us: u64) -> Client {
        Client {
            occupant,
            partial: BytesMut::new(),
            need: 0,
            searched: 0,
            swallow: 0,
            closing: false,
            ended: Ended::Left,
            access: Access::Full,
            dialect: Dialect::default(),
            finished: false,
            stalled: false,
            resuming: false,
            exclusive: false,
            dirty: false,
            begun: 0,
            turn: 0,
            received_us: now_us,
            waited_ms: 0,
            handed: 0,
            largest: 0,
            reads_max: FIRST_READS,
            proved: 0,
            doubted: 0,
            first: SlotNumber(0),
            in_flight: None,
        }
    }

    /// What it speaks is known by what it sends first.
    #[inline(always)]
    pub(super) fn hear(&mut self, first: &[u8]) {
        if self.dialect == Dialect::Unknown {
            self.dialect = Dialect::of(first);
        }
    }

    /// The same, where more has come behind what it sent first.
    #[inline(always)]
    pub(super) fn hear_more(&mut self) {
        if self.dialect == Dialect::Unknown {
            self.dialect = Dialect::of(&self.partial);
        }
    }

    /// In this turn of the worker it may begin as much as in any other.
    #[inline(always)]
    pub(super) fn take_turn(&mut self, turn: u32) {
        if self.turn != turn {
            (self.turn, self.begun) = (turn, 0);
        }
    }

    /// It goes on in a turn of its own.
    pub(super) fn take_another_turn(&mut self) {
        self.begun = 0;
    }

    #[inline(always)]
    pub(super) fn turn_is_over(&self) -> bool {
        self.begun >= TURN
    }

    /// Room for the next read: its own, behind the beginning of a request, or else `block`, which
    /// serves all clients of a worker in turn, so that idle ones hold none. `true`: its own.
    pub fn room<'a>(&'a mut self, block: &'a mut BytesMut) -> (&'a mut BytesMut, bool) {
        if self.partial.is_empty() {
            room::make(block, 0);
            return (block, false);
        }
        // No more than it takes, for there may be many such clients.
        self.partial.reserve(room::missing(&self.partial, self.need as usize));
        (&mut self.partial, true)
    }

    /// More has come of a line of which nothing else is known yet, and it does not end there. A
    /// line of 1 MiB that comes in small pieces would be searched from its start with each of them.
    pub(super) fn line_goes_on(&mut self) -> bool {
        let from = self.searched as usize;
        if self.need > 0 || from == 0 || from > self.partial.len() {
            return false;
        }
        let goes_on = self.dialect.goes_on(&self.partial, from);
        self.searched = self.partial.len() as u32;
        goes_on && (self.partial.len() <= FREE || self.has_received(self.partial.len()))
    }

    /// Whether another request may begin.
    #[inline(always)]
    pub(super) fn has_room(&self, memory: &Memory) -> bool {
        let Some(f) = &self.in_flight else { return !self.exclusive };
        !self.exclusive && f.has_room(memory) && self.read_room(memory) > 0
    }

    /// How many more keys of its line may be begun.
    pub(super) fn rest_room(&self, memory: &Memory) -> u32 {
        let pending = self.in_flight.as_ref().map_or(0, |f| f.keys());
        self.read_room(memory).min(WINDOW.saturating_sub(pending) as u32)
    }

    /// Whether it was hardly answered anything yet.
    pub(super) fn is_new(&self) -> bool {
        self.reads_max < 2 * FIRST_READS
    }

    /// Whether waiting input may go on after an answer.
    pub fn may_resume(&self, memory: &Memory) -> bool {
        if !self.has_rest() {
            return self.has_room(memory) && !self.is_held();
        }
        // By the half, so that a long get goes on in strides and not key by key.
        let room = self.rest_room(memory);
        room > 0 && room >= self.in_flight.as_ref().map_or(0, |f| f.reads())
    }

    fn is_held(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.is_held())
    }

    /// There is memory for the value that it is about to send.
    pub(super) fn may_receive(&mut self, share: Share, spare: &mut Spare) {
        self.in_flight_or_new(spare).receive(share);
    }

    /// Whether there is memory for a value of this many bytes, request and all.
    pub(super) fn has_received(&self, bytes: usize) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.has_received(bytes))
    }

    /// It waits for memory.
    pub(super) fn starve(&mut self, spare: &mut Spare) {
        self.in_flight_or_new(spare).hold(Hold::Memory, None);
    }

    /// Whether it waits for memory.
    pub(super) fn is_starved(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.is_starved())
    }

    /// Its value is not received.
    pub(super) fn refuse_value(&mut self) {
        if let Some(f) = &mut self.in_flight {
            f.refuse_value();
        }
    }

    /// Whether the value at the front of its input is not to be received; asked once.
    pub(super) fn take_refusal(&mut self) -> bool {
        self.in_flight.as_mut().is_some_and(|f| f.take_refusal())
    }

    /// The value that it was to send is thrown away, or all there.
    pub(super) fn end_receiving(&mut self) {
        if let Some(f) = &mut self.in_flight {
            f.end_receiving();
        }
    }

    /// Its share of the account follows what it has asked for. (What it is answered is counted with
    /// each answer.)
    #[inline(always)]
    pub(super) fn count_requests(&mut self, memory: &Arc<Memory>) {
        if let Some(f) = &mut self.in_flight {
            f.count_requests(memory);
        }
    }

    /// Likewise after something was written to it.
    pub(super) fn count_written(&mut self, memory: &Arc<Memory>) {
        if let Some(f) = &mut self.in_flight {
            f.count_written(memory);
        }
    }

    /// Its answers were handed to somebody who holds them until they are written, and now so many
    /// bytes: so is their share.
    pub fn handed_on(&mut self, bytes: usize) -> Option<Share> {
        let share = self.in_flight.as_mut()?.handed_on()?;
        self.handed = u32::try_from(bytes).unwrap_or(u32::MAX);
        Some(share)
    }

    /// All that was handed on is written.
    pub(super) fn has_taken(&mut self) {
        self.handed = 0;
    }

    /// Keys of requests that are unanswered.
    #[cfg(test)]
    pub(super) fn pending_keys(&self) -> usize {
        self.in_flight.as_ref().map_or(0, |f| f.keys())
    }

    fn in_flight_or_new(&mut self, spare: &mut Spare) -> &mut InFlight {
        self.in_flight.get_or_insert_with(|| spare.in_flight())
    }

    /// What the request at the front of the input waits for; `get`: what is known of it.
    pub(super) fn hold(&mut self, hold: Hold, get: Option<Box<Held>>) {
        if let Some(f) = &mut self.in_flight {
            f.hold(hold, get);
        }
    }

    /// The request at the front of the input is looked at again.
    pub(super) fn take_held(&mut self) -> Option<Box<Held>> {
        self.in_flight.as_mut()?.take_held()
    }

    /// Requests that are not answered, or stand behind one that is not.
    pub(super) fn unanswered(&self) -> usize {
        self.in_flight.as_ref().map_or(0, |f| f.unanswered())
    }

    /// Whether every request is answered.
    pub fn is_idle(&self) -> bool {
        self.in_flight.as_ref().is_none_or(|f| f.is_answered())
    }

    /// Whether there are answers to be written.
    pub(super) fn has_unsent(&self) -> bool {
        self.handed > 0 || self.in_flight.as_ref().is_some_and(|f| !f.has_nothing_to_take())
    }

    /// It has sent something.
    pub(super) fn receives(&mut self, now_us: u64) {
        (self.received_us, self.waited_ms) = (now_us, 0);
    }

    /// It has waited for the proxy until now.
    pub(super) fn waits_until(&mut self, now_us: u64) {
        let waited = now_us.saturating_sub(self.received_us).div_ceil(1_000);
        self.waited_ms = u32::try_from(waited).unwrap_or(u32::MAX);
    }

    /// Since when it has been silent and has waited for nothing, if so.
    pub(super) fn idle_since_us(&self) -> Option<u64> {
        let waits = !self.is_idle() || self.has_unsent() || self.is_starved();
        (!waits).then_some(self.received_us + 1_000 * u64::from(self.waited_ms))
    }

    /// Answers to be written.
    pub fn unsent(&mut self) -> Option<&mut OutQueue> {
        self.in_flight.as_mut().map(|f| f.out())
    }

    /// Gives back what it needs no more once all is answered and written.
    pub(super) fn settle(&mut self, spare: &mut Spare) {
        if self.in_flight.as_ref().is_some_and(|f| f.is_over())
            && let Some(over) = self.in_flight.take()
        {
            spare.give(over);
        }
    }

    /// Keys of the last get wait until earlier ones are answered.
    pub(super) fn has_rest(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.has_rest())
    }

    /// See [`Client::has_rest`].
    pub(super) fn put_rest(&mut self, rest: Rest) {
        self.in_flight.get_or_insert_default().put_rest(rest);
    }

    /// See [`Client::has_rest`].
    pub(super) fn take_rest(&mut self) -> Option<Rest> {
        self.in_flight.as_mut()?.take_rest()
    }

    /// Opens a slot for a request of `keys` keys (0: one command without a key); returns its
    /// number. `shared`: the answers of several keys are one.
    pub(super) fn open_slot(
        &mut self,
        keys: u32,
        shared: bool,
        (style, begun): (Style, Begun),
        bytes: usize,
        spare: &mut Spare,
    ) -> SlotNumber {
        self.begun += 1 + (bytes >> 10) as u32;
        let f = self.in_flight.get_or_insert_with(|| spare.in_flight());
        self.first.after(f.open(keys, shared, (style, begun), bytes, spare))
    }

    /// The get at the front of its input, if some pieces of it were taken.
    #[inline(always)]
    pub(super) fn line(&self) -> Option<LongLine> {
        self.in_flight.as_ref()?.line()
    }

    /// The slot that was opened last is a piece of a line.
    pub(super) fn begin_piece(&mut self, rest: Option<LongLine>) {
        let Some(f) = &mut self.in_flight else { return };
        f.begin_piece(rest);
    }

    /// A key of a get is begun.
    #[inline(always)]
    pub(super) fn begin_read(&mut self, slot: SlotNumber, memory: &Memory) {
        self.begun += 1;
        let (Some(f), Some(place)) = (&mut self.in_flight, slot.place_from(self.first)) else { return };
        f.begin_read(place);
        if memory.sizes.are_mixed() {
            self.doubt_more(memory);
        }
    }

    /// Notes that the slot's request is about a key. Of a get's keys each is noted, in order.
    #[inline(always)]
    pub fn note_key(&mut self, slot: SlotNumber, hash: u32, write: bool) {
        let Some(f) = &mut self.in_flight else { return };
        f.note_key(slot, hash, write);
    }

    /// Whether a command may have to wait for an unanswered one on the same key.
    pub(super) fn may_conflict(&self, write: bool) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.may_conflict(write))
    }

    /// Whether a command on a key must wait for an unanswered one of this client, see
    /// [`super::pending::PendingKeys::conflicts`].
    pub(super) fn conflicts(&mut self, hash: u32, write: bool, spare: &mut Spare) -> bool {
        self.in_flight.as_mut().is_some_and(|f| f.conflicts(hash, write, spare))
    }

    /// A piece of the answer to the one request that is unanswered.
    pub(super) fn put_part(&mut self, bytes: Bytes, memory: &Arc<Memory>) {
        let Some(f) = &mut self.in_flight else { return };
        f.put_part(bytes, memory);
    }

    /// Answers all that is unanswered with this. Returns how many requests those are.
    pub(super) fn give_up(
        &mut self,
        said: Refusal,
        spare: &mut Spare,
        memory: &Arc<Memory>,
        meter: Meter<'_>,
    ) -> usize {
        self.in_flight.as_mut().map_or(0, |f| f.give_up(said, &mut self.first, spare, memory, meter))
    }

    /// Answers a request, or one key of it, and moves what can be sent to the queue. `read`: it was
    /// counted by [`Client::begin_read`]. Returns whether anything was moved.
    pub(super) fn answer(
        &mut self,
        (slot, part, read): (SlotNumber, u32, bool),
        answer: Outcome,
        spare: &mut Spare,
        memory: &Arc<Memory>,
        meter: Meter<'_>,
    ) -> bool {
        let len = answer.weight();
        if read {
            self.learn(len, memory);
        }
        let now_us = meter.now_us;
        let Some(f) = &mut self.in_flight else { return false };
        let handed = self.handed as usize;
        let moved = f.answer(&mut self.first, (slot, part, read, len), answer, spare, (memory, handed), meter);
        if self.doubted > 0 {
            self.doubt_less(memory);
        }
        if moved {
            self.waits_until(now_us);
        }
        moved
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
