//! One client connection as the data plane sees it: requests in order, answers in the same order.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::protocol::classic::LongLine;
use crate::protocol::dialect::Dialect;
use crate::protocol::foreign::Foreign;
use crate::protocol::out::OutQueue;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::request::{Close, Keyed, Style};
use crate::stats::WorkerStats;
use crate::stats::requests::Asked;

use super::link::LARGE;
use super::memory::{FREE, Memory, Share};
use super::pending::{PendingKeys, SpareTables};
use super::room;

/// Requests of one client that may be unanswered at once; more stay unread in its socket.
pub(super) const MAX_PIPELINE: usize = 2048;

/// Bytes of answers that may wait for a client to read them; past it no request of the client is
/// begun.
pub(super) const MAX_UNSENT: usize = 4 * 1024 * 1024;

/// Bytes of requests that one client may have in flight; past it no further request of the client
/// is begun.
pub(super) const MAX_IN_FLIGHT_BYTES: usize = 4 * 1024 * 1024;

/// Keys of one client that may be read at once. It bounds what one line asks for: 1 MiB of two-byte
/// keys could name 300,000 large items.
pub(super) const MAX_READS: u32 = 256;

/// What is begun for one client before others have their turn: each request and each key read
/// counts for one, and so does each KiB. A pipeline, a long line or a flood without replies then
/// keeps nobody waiting for more than about a millisecond.
pub(super) const TURN: u32 = 512;

/// Keys of one line that may be unanswered, or wait to be sent behind one that is. While the first
/// one's server keeps it waiting others may answer all the rest of a line that names 500,000: 24 MB
/// for each such client.
const WINDOW: usize = 4096;

/// Up to this size of values no client can leave more unread than it may have beside the account:
/// they are not looked at more closely.
const TINY: u32 = FREE as u32 / MAX_READS;

/// Keys that a client may have read at once before it was answered anything: until then nobody
/// knows what its values are like. Each answer makes it one more.
const FIRST_READS: u32 = 16;

/// Values held for one get after which they leave as they come: behind them an error can only stand
/// at the end.
const HELD_MAX: usize = MAX_UNSENT / 2;

const MEMORY_FULL: Refusal = Refusal::Server("answers that clients have not read take all of --client-memory");

/// A request whose answer is not written yet.
#[derive(Debug)]
pub(super) struct Slot {
    /// Keys (or the one command) still unanswered.
    pending: u32,
    style: Style,
    bytes: u32,
    begun: Begun,
    reply: Reply,
    /// Of a piece of a line: whether it is the last one.
    last: Option<bool>,
}

/// What was asked, and when it was begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) asked: Asked,
    /// Microseconds of the worker's clock, without those above 71 minutes.
    pub(super) at_us: u32,
}

/// What is counted of answers, and what it is counted with.
#[derive(Clone, Copy)]
pub(super) struct Meter<'a> {
    pub(super) stats: &'a WorkerStats,
    pub(super) now_us: u64,
}

impl Meter<'_> {
    /// A request is answered in full, and the client may be told so.
    #[inline(always)]
    fn answered(&self, begun: Begun) {
        self.stats.requests.waited(begun.asked, (self.now_us as u32).wrapping_sub(begun.at_us));
    }
}

#[derive(Debug)]
enum Reply {
    None,
    One(Outcome),
    Many(Many),
}

/// The values of a get of several keys, in request order; then `END`.
#[derive(Debug, Default)]
struct Many {
    /// Of the keys begun and not moved to the socket's queue yet.
    parts: Parts,
    /// Number of the first of them.
    first: u32,
    /// Values leave as they come: there are too many, or too large ones, to be held until the last
    /// one. Then an error stands behind the values that left before it, not in the place of all.
    streamed: bool,
    /// What is said instead: an error of one key's node.
    failed: Option<Outcome>,
}

/// The keys of a get, in order.
type Parts = VecDeque<Part>;

#[derive(Debug)]
enum Part {
    Waiting,
    Miss,
    Hit(Bytes),
}

/// The keys of a get that are not begun yet.
#[derive(Debug)]
pub(super) struct Rest {
    /// The request; its `keys` begin with the next one.
    pub(super) request: Keyed,
    pub(super) raw: Bytes,
    pub(super) slot: u64,
    /// Number of the next key.
    pub(super) part: u32,
}

/// What a client may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Everything.
    Full,
    /// It came when all places were taken, and has asked for nothing yet.
    Unknown,
    /// The same, and it asks what operators ask.
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
        }
    }
}

/// What a client's input waits for, where that is more than room for another request. It is not
/// looked at again before: what is looked at in vain with every answer costs more the more answers
/// are due.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hold {
    /// An unanswered command of the other kind (read, write) on this key.
    Key { hash: u32, write: bool },
    /// Its next turn.
    Turn,
    /// Memory for the value that is to be received.
    Memory,
}

/// A get of several keys that stands at the front of a client's input and cannot begin yet.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) request: Keyed,
    pub(super) style: Style,
    /// Its bytes in all.
    pub(super) len: usize,
    /// Where the first key stands of which it is not known that it conflicts with nothing: nothing
    /// else begins before it, so those in front of it are not looked at again.
    pub(super) next: usize,
    /// It is a piece of a line.
    pub(super) piece: bool,
    /// What is left of that line.
    pub(super) rest: Option<LongLine>,
}

/// A client connection. Whatever a request needs is in `in_flight`, so that the many that are idle
/// hold none of it.
#[derive(Debug)]
pub struct Client {
    /// The occupant count of this place in the worker's table.
    pub generation: u32,
    /// A request that has not arrived whole.
    pub partial: BytesMut,
    /// How long the request in `partial` will be, once known, or may be.
    pub need: usize,
    /// So much of `partial` is known to hold no end of a line.
    pub(super) searched: u32,
    /// Data of a refused item still to be thrown away.
    pub swallow: usize,
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
    /// A command that is answered by the control plane is unanswered: nothing behind it begins.
    pub exclusive: bool,
    /// Already on the worker's list of clients to be written to.
    pub dirty: bool,
    /// What was begun for it in the worker's turn of this number, see [`TURN`].
    begun: u32,
    /// See `begun`.
    turn: u32,
    /// When it last sent something, microseconds of the worker's clock.
    pub received_us: u64,
    /// What its values are like, in bytes: the largest of late.
    pub(super) largest: u32,
    /// Keys that it may have read at once, as far as that is known.
    reads_max: u32,
    /// Number of the first slot.
    first: u64,
    in_flight: Option<Box<InFlight>>,
}

/// What a client has asked for and was not answered, and answers that are not written yet.
#[derive(Debug, Default)]
struct InFlight {
    /// Answers to be written.
    out: OutQueue,
    slots: VecDeque<Slot>,
    keys: PendingKeys,
    /// Keys being read.
    reads: u32,
    bytes: usize,
    /// Bytes of values that wait for earlier answers.
    held: usize,
    /// Keys of the last get that wait until earlier ones are answered; nothing behind them begins.
    rest: Option<Rest>,
    hold: Option<Hold>,
    held_get: Option<Box<Held>>,
    /// What of all this is counted in the account, to [`FREE`].
    share: Share,
    /// Memory for a value that is being received.
    receiving: Share,
    /// The get at the front of the input, of which some pieces were taken.
    line: Option<LongLine>,
    /// Memory of lines that are taken in pieces, of each until the last of them is answered.
    lines: VecDeque<Share>,
    /// A piece of the first of them was answered with an error: what else comes of it is not told.
    spoilt: bool,
    /// There was none for it in time.
    refused: bool,
}

/// Room that clients gave back, for the next ones.
#[derive(Debug, Default)]
pub(super) struct Spare {
    #[expect(clippy::vec_box, reason = "the boxes go to the clients and come back")]
    in_flight: Vec<Box<InFlight>>,
    /// Of gets of several keys.
    parts: Vec<Parts>,
    tables: SpareTables,
}

/// Answered gets of several keys whose room is kept: at most 16 KiB each.
const SPARE_PARTS: usize = 64;

/// Clients' room that is kept: some 150 KiB each at most, 1 KiB by the rule.
const SPARE_IN_FLIGHT: usize = 256;

/// What a longer pipeline, or a get of more keys, has taken is not kept: one line of 1 MiB may name
/// 500,000.
const SPARE_LEN: usize = 2 * MAX_READS as usize;

impl Spare {
    fn give(&mut self, over: Box<InFlight>) {
        debug_assert!(over.keys.is_empty() && over.reads == 0 && over.bytes == 0 && over.held == 0);
        debug_assert!(over.share.bytes() == 0 && over.receiving.bytes() == 0 && !over.refused);
        debug_assert!(over.lines.is_empty() && over.line.is_none() && !over.spoilt);
        let longest = over.slots.capacity().max(over.keys.capacity());
        if self.in_flight.len() < SPARE_IN_FLIGHT && longest <= SPARE_LEN {
            self.in_flight.push(over);
        }
    }

    fn give_parts(&mut self, parts: Parts) {
        if self.parts.len() < SPARE_PARTS && parts.capacity() <= SPARE_LEN {
            self.parts.push(parts);
        }
    }
}

impl Client {
    /// A client that has just connected.
    pub fn new(generation: u32, now_us: u64) -> Client {
        Client {
            generation,
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
            largest: 0,
            reads_max: FIRST_READS,
            first: 0,
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
        self.partial.reserve(room::missing(&self.partial, self.need));
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

    /// How many more keys may be read now: so many that what is expected of them, and what waits to
    /// be sent, is within bounds.
    #[inline(always)]
    pub(super) fn read_room(&self, memory: &Memory) -> u32 {
        let (reads, unsent) = self.in_flight.as_ref().map_or((0, 0), |f| (f.reads, f.unsent()));
        if unsent < FREE && (self.largest <= TINY || self.largest < LARGE && !memory.is_short()) {
            return self.reads_max.saturating_sub(reads);
        }
        self.read_room_of_large(reads, unsent, memory)
    }

    fn read_room_of_large(&self, reads: u32, unsent: usize, memory: &Memory) -> u32 {
        let keys = self.reads_max.saturating_sub(reads);
        // One at least, however large, for whoever waits for none.
        let first = u32::from(reads == 0 && unsent == 0);
        let most = match memory.is_short() {
            true if self.largest >= LARGE => return first,
            true => FREE,
            false => MAX_UNSENT,
        };
        if unsent >= most {
            return 0;
        }
        let fit = (most - unsent) as u32 / self.largest.max(1);
        keys.min(fit.saturating_sub(reads)).max(first)
    }

    /// How many more keys of its line may be begun.
    pub(super) fn rest_room(&self, memory: &Memory) -> u32 {
        let pending = self.in_flight.as_ref().map_or(0, |f| f.keys.len());
        self.read_room(memory).min(WINDOW.saturating_sub(pending) as u32)
    }

    /// A value of so many bytes was read for it, or a miss.
    fn learn(&mut self, bytes: usize) {
        self.largest = (self.largest - self.largest / 16).max(bytes as u32);
        self.reads_max = (self.reads_max + 1).min(MAX_READS);
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
        room > 0 && room >= self.in_flight.as_ref().map_or(0, |f| f.reads)
    }

    fn is_held(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|f| match f.hold {
            Some(Hold::Key { hash, write }) => f.keys.still_conflicts(hash, write),
            Some(Hold::Memory) => f.receiving.bytes() == 0 && !f.refused,
            Some(Hold::Turn) | None => false,
        })
    }

    /// There is memory for the value that it is about to send.
    pub(super) fn may_receive(&mut self, share: Share, spare: &mut Spare) {
        self.in_flight_or_new(spare).receiving = share;
    }

    /// Whether there is memory for a value of so many bytes, request and all.
    pub(super) fn has_received(&self, bytes: usize) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.receiving.bytes() >= bytes)
    }

    /// It waits for memory.
    pub(super) fn starve(&mut self, spare: &mut Spare) {
        self.in_flight_or_new(spare).hold = Some(Hold::Memory);
    }

    /// Whether it waits for memory.
    pub(super) fn is_starved(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|f| matches!(f.hold, Some(Hold::Memory)))
    }

    /// Its value is not received.
    pub(super) fn refuse_value(&mut self) {
        if let Some(f) = &mut self.in_flight {
            f.refused = true;
        }
    }

    /// Whether the value at the front of its input is not to be received; asked once.
    pub(super) fn take_refusal(&mut self) -> bool {
        self.in_flight.as_mut().is_some_and(|f| std::mem::take(&mut f.refused))
    }

    /// The value that it was to send is thrown away, or all there.
    pub(super) fn end_receiving(&mut self) {
        if let Some(f) = &mut self.in_flight {
            f.receiving = Share::default();
        }
    }

    /// Its share of the account follows what it has asked for. (What it is answered is counted with
    /// each answer.)
    #[inline(always)]
    pub(super) fn count_requests(&mut self, memory: &Arc<Memory>) {
        if let Some(f) = &mut self.in_flight
            && f.bytes > FREE
        {
            f.count(memory);
        }
    }

    /// The same of what is written.
    pub(super) fn count_written(&mut self, memory: &Arc<Memory>) {
        if let Some(f) = &mut self.in_flight
            && f.share.bytes() > 0
        {
            f.count(memory);
        }
    }

    /// Its answers were handed to somebody who holds them until they are written: so is their
    /// share.
    pub fn handed_on(&mut self) -> Option<Share> {
        let f = self.in_flight.as_mut()?;
        let excess = f.share.bytes().saturating_sub(f.weight());
        (excess > 0).then(|| f.share.split_off(excess))
    }

    /// Keys of requests that are unanswered.
    #[cfg(test)]
    pub(super) fn pending_keys(&self) -> usize {
        self.in_flight.as_ref().map_or(0, |f| f.keys.len())
    }

    fn in_flight_or_new(&mut self, spare: &mut Spare) -> &mut InFlight {
        self.in_flight.get_or_insert_with(|| spare.in_flight.pop().unwrap_or_default())
    }

    /// What the request at the front of the input waits for; `get`: what is known of it.
    pub(super) fn hold(&mut self, hold: Hold, get: Option<Box<Held>>) {
        if let Some(f) = &mut self.in_flight {
            f.hold = Some(hold);
            f.held_get = get;
        }
    }

    /// The request at the front of the input is looked at again.
    pub(super) fn take_held(&mut self) -> Option<Box<Held>> {
        let f = self.in_flight.as_mut()?;
        f.hold = None;
        f.held_get.take()
    }

    /// Whether every request is answered.
    pub fn is_idle(&self) -> bool {
        self.in_flight.as_ref().is_none_or(|f| f.slots.is_empty())
    }

    /// Whether there are answers to be written.
    pub(super) fn has_unsent(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|f| !f.out.is_empty())
    }

    /// Answers to be written.
    pub fn unsent(&mut self) -> Option<&mut OutQueue> {
        self.in_flight.as_mut().map(|f| &mut f.out)
    }

    /// Gives back what it needs no more once all is answered and written.
    pub(super) fn settle(&mut self, spare: &mut Spare) {
        if self.in_flight.as_ref().is_some_and(|f| f.is_over())
            && let Some(mut over) = self.in_flight.take()
        {
            if over.share.bytes() > 0 {
                over.share = Share::default();
            }
            spare.give(over);
        }
    }

    /// Keys of the last get wait until earlier ones are answered.
    pub(super) fn has_rest(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.rest.is_some())
    }

    /// See [`Client::has_rest`].
    pub(super) fn put_rest(&mut self, rest: Rest) {
        self.in_flight.get_or_insert_default().rest = Some(rest);
    }

    /// See [`Client::has_rest`].
    pub(super) fn take_rest(&mut self) -> Option<Rest> {
        self.in_flight.as_mut()?.rest.take()
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
    ) -> u64 {
        let reply = if shared {
            let parts = spare.parts.pop().unwrap_or_default();
            Reply::Many(Many { parts, streamed: keys > MAX_READS, ..Many::default() })
        } else {
            Reply::None
        };
        self.begun += 1 + (bytes >> 10) as u32;
        let f = self.in_flight.get_or_insert_with(|| spare.in_flight.pop().unwrap_or_default());
        if bytes > FREE {
            f.receiving = Share::default();
        }
        let number = self.first + f.slots.len() as u64;
        f.slots.push_back(Slot { pending: keys.max(1), style, bytes: bytes as u32, begun, reply, last: None });
        f.bytes += bytes;
        number
    }

    /// The get at the front of its input, if some pieces of it were taken.
    #[inline(always)]
    pub(super) fn line(&self) -> Option<LongLine> {
        self.in_flight.as_ref()?.line
    }

    /// The slot that was opened last is a piece of a line.
    pub(super) fn begin_piece(&mut self, rest: Option<LongLine>) {
        let Some(f) = &mut self.in_flight else { return };
        if std::mem::replace(&mut f.line, rest).is_none() {
            f.lines.push_back(std::mem::take(&mut f.receiving));
        }
        if let Some(slot) = f.slots.back_mut() {
            slot.last = Some(rest.is_none());
        }
    }

    /// A key of a get is begun.
    #[inline(always)]
    pub(super) fn begin_read(&mut self, slot: u64) {
        self.begun += 1;
        let Some(f) = &mut self.in_flight else { return };
        f.reads += 1;
        let at = (slot - self.first) as usize;
        if let Some(Slot { reply: Reply::Many(many), .. }) = f.slots.get_mut(at) {
            many.parts.push_back(Part::Waiting);
        }
    }

    /// Notes that the slot's request is about a key. Of a get's keys each is noted, in order.
    #[inline(always)]
    pub fn note_key(&mut self, slot: u64, hash: u32, write: bool) {
        let Some(f) = &mut self.in_flight else { return };
        f.keys.push(slot, hash, write);
    }

    /// Whether a command may have to wait for an unanswered one on the same key.
    pub(super) fn may_conflict(&self, write: bool) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.keys.may_conflict(write))
    }

    /// Whether a command on a key must wait for an unanswered one of this client, see
    /// [`PendingKeys::conflicts`].
    pub(super) fn conflicts(&mut self, hash: u32, write: bool, spare: &mut Spare) -> bool {
        self.in_flight.as_mut().is_some_and(|f| f.keys.conflicts(hash, write, &mut spare.tables))
    }

    /// A piece of the answer to the one request that is unanswered.
    pub(super) fn put_part(&mut self, bytes: Bytes, memory: &Arc<Memory>) {
        let Some(f) = &mut self.in_flight else { return };
        f.out.put_shared(bytes);
        f.count(memory);
    }

    /// Answers a request, or one key of it, and moves what can be sent to the queue. `read`: it was
    /// counted by [`Client::begin_read`]. Returns whether anything was moved.
    pub(super) fn answer(
        &mut self,
        (slot, part, read): (u64, u32, bool),
        mut answer: Outcome,
        spare: &mut Spare,
        memory: &Arc<Memory>,
        meter: Meter<'_>,
    ) -> bool {
        let len = answer.weight();
        if read {
            self.learn(len);
        }
        let Some(f) = &mut self.in_flight else { return false };
        f.reads -= u32::from(read);
        if len >= LARGE as usize && memory.is_full() && f.unsent() > 0 {
            // It has other values to take, and nobody knows when it will.
            answer = Outcome::Refused(MEMORY_FULL);
        }
        let Some(at) = slot.checked_sub(self.first) else { return false };
        let Some(entry) = f.slots.get_mut(at as usize) else { return false };
        meter.stats.requests.count(entry.begun.asked, &answer);
        match (&mut entry.reply, answer) {
            (Reply::Many(many), answer) => {
                let part = &mut many.parts[(part - many.first) as usize];
                *part = Part::Miss;
                match answer {
                    // An error stands in the place of all values that have not left.
                    Outcome::Hit(_) if many.failed.is_some() && !many.streamed => {}
                    Outcome::Hit(bytes) => {
                        f.held += bytes.len();
                        *part = Part::Hit(bytes);
                    }
                    Outcome::Miss => {}
                    failure => {
                        many.failed = Some(failure);
                        if !many.streamed {
                            f.held -= many.forget_values();
                        }
                    }
                }
            }
            // Nothing to wait for.
            (_, answer) if at == 0 => {
                let (style, last) = (entry.style, entry.last);
                f.close_first(&mut self.first, spare, meter);
                f.tell(style, last, answer);
                if !f.slots.is_empty() {
                    f.flush_slots(&mut self.first, spare, meter);
                }
                f.count(memory);
                return true;
            }
            (reply, answer) => {
                f.held += answer.weight();
                *reply = Reply::One(answer);
            }
        }
        entry.pending -= 1;
        let moved = at == 0 && f.flush_slots(&mut self.first, spare, meter);
        f.count(memory);
        moved
    }
}

impl Many {
    /// What it holds does not leave. Returns its bytes.
    fn forget_values(&mut self) -> usize {
        let mut bytes = 0;
        for part in &mut self.parts {
            if let Part::Hit(value) = part {
                bytes += value.len();
                *part = Part::Miss;
            }
        }
        bytes
    }
}

impl InFlight {
    #[inline(always)]
    fn has_room(&self, memory: &Memory) -> bool {
        self.slots.len() < MAX_PIPELINE
            && self.rest.is_none()
            && (self.bytes < FREE || self.bytes < MAX_IN_FLIGHT_BYTES && !memory.is_short())
    }

    /// Bytes of requests and answers.
    #[inline(always)]
    fn weight(&self) -> usize {
        self.bytes + self.unsent()
    }

    /// Follows what there is in steps: a look at what all threads share for each small answer would
    /// cost more than the answer.
    #[inline(always)]
    fn count(&mut self, memory: &Arc<Memory>) {
        if self.weight().wrapping_sub(self.share.bytes()) > FREE {
            self.recount(memory);
        }
    }

    fn recount(&mut self, memory: &Arc<Memory>) {
        let counted = self.weight().saturating_sub(FREE / 2);
        self.share.set(counted, memory);
    }

    /// Bytes of answers that the client has not taken.
    fn unsent(&self) -> usize {
        self.out.len() + self.held
    }

    fn is_over(&self) -> bool {
        self.slots.is_empty()
            && self.out.is_empty()
            && self.rest.is_none()
            && self.hold.is_none()
            && self.receiving.bytes() == 0
            && self.lines.is_empty()
    }

    /// The first request is answered. `first`: its slot's number.
    #[inline(always)]
    fn close_first(&mut self, first: &mut u64, spare: &mut Spare, meter: Meter<'_>) -> Option<Slot> {
        let slot = self.slots.pop_front()?;
        self.bytes -= slot.bytes as usize;
        meter.answered(slot.begun);
        while self.keys.pop(*first, &mut spare.tables) {}
        *first += 1;
        Some(slot)
    }

    /// `last`: as of a slot.
    #[inline(always)]
    fn tell(&mut self, style: Style, last: Option<bool>, said: Outcome) {
        match last {
            None => style.write(said, &mut self.out),
            Some(last) => self.end_piece(style, last, said),
        }
    }

    /// A piece of a line is answered: nothing is said between two, and the first error ends the
    /// answer.
    #[inline(never)]
    fn end_piece(&mut self, style: Style, last: bool, said: Outcome) {
        let well = said == Outcome::Miss;
        if !self.spoilt && (last || !well) {
            style.write(said, &mut self.out);
        }
        self.spoilt = !last && (self.spoilt || !well);
        if last {
            self.lines.pop_front();
        }
    }

    /// `first`: number of the first slot.
    fn flush_slots(&mut self, first: &mut u64, spare: &mut Spare, meter: Meter<'_>) -> bool {
        let mut moved = false;
        while let Some(slot) = self.slots.front_mut() {
            let done = slot.pending == 0;
            if let Reply::Many(many) = &mut slot.reply {
                many.streamed |= self.held > HELD_MAX && many.failed.is_none();
                let all_or_nothing = many.failed.is_none() && done;
                while let Some(part) = many.parts.front()
                    && (done || many.streamed && !matches!(part, Part::Waiting))
                {
                    if let Some(Part::Hit(value)) = many.parts.pop_front() {
                        self.held -= value.len();
                        if (many.streamed || all_or_nothing) && !self.spoilt {
                            slot.style.write_value(value, &mut self.out);
                            moved = true;
                        }
                    }
                    many.first += 1;
                    // Answered, so nothing waits for it any more: the keys of a line of 500,000 are
                    // never all pending.
                    self.keys.pop(*first, &mut spare.tables);
                }
            }
            if !done {
                return moved;
            }
            let Some(slot) = self.close_first(first, spare, meter) else { break };
            moved = true;
            match slot.reply {
                Reply::None => {}
                Reply::One(answer) => {
                    self.held -= answer.weight();
                    self.tell(slot.style, slot.last, answer);
                }
                Reply::Many(many) => {
                    self.tell(slot.style, slot.last, many.failed.unwrap_or(Outcome::Miss));
                    spare.give_parts(many.parts);
                }
            }
        }
        moved
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
