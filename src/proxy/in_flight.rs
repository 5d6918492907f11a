//! What a client has asked for and was not answered, and answers that are not written yet.

mod many;
mod spare;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::protocol::classic::LongLine;
use crate::protocol::out::OutQueue;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::request::{Keyed, Style};

use super::client::{MAX_READS, MAX_UNSENT};
use super::handles::SlotNumber;
use super::link::LARGE;
use super::memory::{FREE, Memory, Share};
use super::pending::PendingKeys;
use crate::stats::WorkerStats;
use crate::stats::requests::Asked;

use many::{Many, Part};
pub(super) use spare::Spare;

/// Requests of one client that may be unanswered at once; more stay unread in its socket.
pub(super) const MAX_PIPELINE: usize = 2048;

/// Bytes of requests that one client may have in flight; past it no further request of the client
/// is begun.
pub(super) const MAX_IN_FLIGHT_BYTES: usize = 4 * 1024 * 1024;

/// Values held for one get after which they leave as they come: behind them an error can only stand
/// at the end.
const HELD_MAX: usize = MAX_UNSENT / 2;

const MEMORY_FULL: Refusal = Refusal::Server("answers that clients have not read take all of --client-memory");

/// See the module's words. Only while there is any: the many clients that are idle hold none of it.
#[derive(Debug, Default)]
pub(super) struct InFlight {
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

/// A request whose answer is not written yet.
#[derive(Debug)]
struct Slot {
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

/// The keys of a get that are not begun yet.
#[derive(Debug)]
pub(super) struct Rest {
    /// The request; its `keys` begin with the next one.
    pub(super) request: Keyed,
    pub(super) raw: Bytes,
    pub(super) slot: SlotNumber,
    /// Number of the next key.
    pub(super) part: u32,
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

impl InFlight {
    /// Whether another request may begin.
    #[inline(always)]
    pub(super) fn has_room(&self, memory: &Memory) -> bool {
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
    #[inline(always)]
    pub(super) fn unsent(&self) -> usize {
        self.out.len() + self.held
    }

    #[inline(always)]
    pub(super) fn is_over(&self) -> bool {
        self.slots.is_empty()
            && self.out.is_empty()
            && self.rest.is_none()
            && self.hold.is_none()
            && self.receiving.bytes() == 0
            && self.lines.is_empty()
    }

    /// The first request is answered. `first`: its slot's number.
    #[inline(always)]
    fn close_first(&mut self, first: &mut SlotNumber, spare: &mut Spare, meter: Meter<'_>) -> Option<Slot> {
        let slot = self.slots.pop_front()?;
        self.bytes -= slot.bytes as usize;
        meter.answered(slot.begun);
        while self.keys.pop(*first, &mut spare.tables) {}
        *first = first.next();
        Some(slot)
    }

    /// Keys being read.
    #[inline(always)]
    pub(super) fn reads(&self) -> u32 {
        self.reads
    }

    /// Keys of requests that are unanswered.
    #[inline(always)]
    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Requests that are not answered, or stand behind one that is not.
    pub(super) fn unanswered(&self) -> usize {
        self.slots.len()
    }

    /// Whether every request is answered.
    #[inline(always)]
    pub(super) fn is_answered(&self) -> bool {
        self.slots.is_empty()
    }

    /// Answers to be written.
    #[inline(always)]
    pub(super) fn out(&mut self) -> &mut OutQueue {
        &mut self.out
    }

    /// See [`Hold`]. `get`: what is known of it.
    pub(super) fn hold(&mut self, hold: Hold, get: Option<Box<Held>>) {
        (self.hold, self.held_get) = (Some(hold), get);
    }

    #[inline(always)]
    pub(super) fn take_held(&mut self) -> Option<Box<Held>> {
        self.hold = None;
        self.held_get.take()
    }

    /// Whether what the input waits for has not come.
    #[inline(always)]
    pub(super) fn is_held(&self) -> bool {
        match self.hold {
            Some(Hold::Key { hash, write }) => self.keys.still_conflicts(hash, write),
            Some(Hold::Memory) => self.receiving.bytes() == 0 && !self.refused,
            Some(Hold::Turn) | None => false,
        }
    }

    #[inline(always)]
    pub(super) fn is_starved(&self) -> bool {
        matches!(self.hold, Some(Hold::Memory))
    }

    /// There is memory for the value that comes next.
    pub(super) fn receive(&mut self, share: Share) {
        self.receiving = share;
    }

    #[inline(always)]
    pub(super) fn has_received(&self, bytes: usize) -> bool {
        self.receiving.bytes() >= bytes
    }

    #[inline(always)]
    pub(super) fn end_receiving(&mut self) {
        self.receiving = Share::default();
    }

    /// There is none.
    pub(super) fn refuse_value(&mut self) {
        self.refused = true;
    }

    /// Asked once.
    #[inline(always)]
    pub(super) fn take_refusal(&mut self) -> bool {
        std::mem::take(&mut self.refused)
    }

    #[inline(always)]
    pub(super) fn count_requests(&mut self, memory: &Arc<Memory>) {
        if self.bytes > FREE {
            self.count(memory);
        }
    }

    #[inline(always)]
    pub(super) fn count_written(&mut self, memory: &Arc<Memory>) {
        if self.share.bytes() > 0 {
            self.count(memory);
        }
    }

    /// The share of answers that somebody else holds until they are written.
    pub(super) fn handed_on(&mut self) -> Option<Share> {
        let excess = self.share.bytes().saturating_sub(self.weight());
        (excess > 0).then(|| self.share.split_off(excess))
    }

    #[inline(always)]
    pub(super) fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    #[inline(always)]
    pub(super) fn has_nothing_to_take(&self) -> bool {
        self.out.is_empty()
    }

    /// All is answered that was begun, and the last get goes on with its next key.
    pub(super) fn rest_is_next(&self) -> bool {
        let Some(rest) = &self.rest else { return false };
        let left = rest.request.keys.count - rest.part;
        self.slots.len() == 1 && self.slots.front().is_some_and(|slot| slot.pending == left)
    }

    /// What the get at the front holds back leaves as it comes from now on.
    #[cold]
    fn stream_first(&mut self) {
        if let Some(Slot { reply: Reply::Many(many), .. }) = self.slots.front_mut() {
            many.streamed |= many.failed.is_none();
        }
    }

    /// A piece of the answer to the one request that is unanswered.
    pub(super) fn put_part(&mut self, bytes: Bytes, memory: &Arc<Memory>) {
        self.out.put_shared(bytes);
        self.count(memory);
    }

    #[inline(always)]
    pub(super) fn put_rest(&mut self, rest: Rest) {
        self.rest = Some(rest);
    }

    #[inline(always)]
    pub(super) fn take_rest(&mut self) -> Option<Rest> {
        self.rest.take()
    }

    /// Another request, see [`Client::open_slot`](super::client::Client::open_slot); returns how
    /// many are in front of it. (The slot is made in its place: a move is some 15 instructions.)
    #[inline(always)]
    pub(super) fn open(
        &mut self,
        keys: u32,
        shared: bool,
        (style, begun): (Style, Begun),
        bytes: usize,
        spare: &mut Spare,
    ) -> u64 {
        let reply = if shared { Reply::many(keys, spare) } else { Reply::None };
        if bytes > FREE {
            self.receiving = Share::default();
        }
        let before = self.slots.len() as u64;
        self.slots.push_back(Slot { pending: keys.max(1), style, bytes: bytes as u32, begun, reply, last: None });
        self.bytes += bytes;
        before
    }

    #[inline(always)]
    pub(super) fn line(&self) -> Option<LongLine> {
        self.line
    }

    /// The request that was opened last is a piece of a line, of which this is left.
    pub(super) fn begin_piece(&mut self, rest: Option<LongLine>) {
        if std::mem::replace(&mut self.line, rest).is_none() {
            self.lines.push_back(std::mem::take(&mut self.receiving));
        }
        if let Some(slot) = self.slots.back_mut() {
            slot.last = Some(rest.is_none());
        }
    }

    /// A key of a get is begun. `at`: how many requests are in front of it.
    #[inline(always)]
    pub(super) fn begin_read(&mut self, at: usize) {
        self.reads += 1;
        if let Some(Slot { reply: Reply::Many(many), .. }) = self.slots.get_mut(at) {
            many.parts.push_back(Part::Waiting);
        }
    }

    #[inline(always)]
    pub(super) fn note_key(&mut self, slot: SlotNumber, hash: u32, write: bool) {
        self.keys.push(slot, hash, write);
    }

    #[inline(always)]
    pub(super) fn may_conflict(&self, write: bool) -> bool {
        self.keys.may_conflict(write)
    }

    #[inline(always)]
    pub(super) fn conflicts(&mut self, hash: u32, write: bool, spare: &mut Spare) -> bool {
        self.keys.conflicts(hash, write, &mut spare.tables)
    }

    /// See [`Client::answer`](super::client::Client::answer). `first`: number of the first slot;
    /// `len`: the answer's weight; `handed`: what the client was answered before, and somebody else
    /// holds until it is written.
    #[inline(always)]
    pub(super) fn answer(
        &mut self,
        first: &mut SlotNumber,
        (slot, part, read, len): (SlotNumber, u32, bool, usize),
        mut answer: Outcome,
        spare: &mut Spare,
        (memory, handed): (&Arc<Memory>, usize),
        meter: Meter<'_>,
    ) -> bool {
        self.reads -= u32::from(read);
        if len >= LARGE as usize && memory.is_full() && (self.out.len() + handed > 0 || self.held > HELD_MAX) {
            // The client has other values to take, and when it will is unknown. (It cannot take
            // those that are held back.)
            answer = Outcome::Refused(MEMORY_FULL);
        }
        let Some(at) = slot.place_from(*first) else { return false };
        let Some(entry) = self.slots.get_mut(at) else { return false };
        meter.stats.requests.count(entry.begun.asked, &answer);
        match (&mut entry.reply, answer) {
            (Reply::Many(many), answer) => {
                let part = &mut many.parts[(part - many.first) as usize];
                *part = Part::Miss;
                match answer {
                    // An error stands in the place of all values that have not left.
                    Outcome::Hit(_) if many.failed.is_some() && !many.streamed => {}
                    Outcome::Hit(bytes) => {
                        self.held += bytes.len();
                        *part = Part::Hit(bytes);
                    }
                    Outcome::Miss => {}
                    failure => {
                        many.failed = Some(failure);
                        if !many.streamed {
                            self.held -= many.forget_values();
                        }
                    }
                }
            }
            // Nothing to wait for.
            (_, answer) if at == 0 => {
                let (style, last) = (entry.style, entry.last);
                self.close_first(first, spare, meter);
                self.tell(style, last, answer);
                if !self.slots.is_empty() {
                    self.flush_slots(first, spare, meter);
                }
                self.count(memory);
                return true;
            }
            (reply, answer) => {
                self.held += answer.weight();
                *reply = Reply::One(answer);
            }
        }
        entry.pending -= 1;
        if self.held >= LARGE as usize && memory.is_full() && self.rest_is_next() {
            // The next value comes when it has taken these.
            self.stream_first();
        }
        let moved = at == 0 && self.flush_slots(first, spare, meter);
        self.count(memory);
        moved
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

    /// Whatever is unanswered is answered with this, and nothing else comes. `first`: number of the
    /// first slot. Returns how many requests those are.
    pub(super) fn give_up(
        &mut self,
        said: Refusal,
        first: &mut SlotNumber,
        spare: &mut Spare,
        memory: &Arc<Memory>,
        meter: Meter<'_>,
    ) -> usize {
        (self.rest, self.hold, self.held_get) = (None, None, None);
        let mut given_up = 0;
        for slot in self.slots.iter_mut().filter(|slot| slot.pending > 0) {
            slot.pending = 0;
            given_up += 1;
            let answer = Outcome::Refused(said);
            meter.stats.requests.count(slot.begun.asked, &answer);
            match &mut slot.reply {
                Reply::Many(many) => {
                    if many.failed.is_none() && !many.streamed {
                        self.held -= many.forget_values();
                    }
                    many.parts.iter_mut().filter(|p| matches!(p, Part::Waiting)).for_each(|part| *part = Part::Miss);
                    many.failed.get_or_insert(answer);
                }
                reply => {
                    self.held += answer.weight();
                    *reply = Reply::One(answer);
                }
            }
        }
        self.flush_slots(first, spare, meter);
        self.reads = 0;
        self.count(memory);
        given_up
    }

    /// `first`: number of the first slot.
    fn flush_slots(&mut self, first: &mut SlotNumber, spare: &mut Spare, meter: Meter<'_>) -> bool {
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

impl Reply {
    /// To a get of this many keys.
    fn many(keys: u32, spare: &mut Spare) -> Reply {
        let parts = spare.parts.pop().unwrap_or_default();
        Reply::Many(Many { parts, streamed: keys > MAX_READS, ..Many::default() })
    }
}
