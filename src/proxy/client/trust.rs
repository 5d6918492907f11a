//! How many keys a client may have read at once, by what its values are like and what is known of
//! them: see [`sizes`](crate::proxy::sizes).

use crate::proxy::link::LARGE;
use crate::proxy::memory::{FREE, Memory};

use super::{Client, MAX_READS, MAX_UNSENT};

/// Values up to this size never take more than the `FREE` bytes that a client has beside the
/// account, so their sizes are not tracked.
const TINY: u32 = FREE as u32 / MAX_READS;

/// Keys that a client may have read at once before its first answer: until then the size of its
/// values is not known. Each answer makes it one more.
pub(super) const FIRST_READS: u32 = 16;

/// So many more it may have read for each answer that was what it was believed to be, where others
/// have met large values.
const PROVED_BY_ONE: u32 = 3;

impl Client {
    /// How many more keys may be read now: so many that what is expected of them, and what waits to
    /// be sent, is within bounds.
    #[inline(always)]
    pub(in crate::proxy) fn read_room(&self, memory: &Memory) -> u32 {
        let (reads, unsent) = self.in_flight.as_ref().map_or((0, 0), |f| (f.reads(), f.unsent()));
        let unsent = unsent + self.handed as usize;
        if unsent < FREE && (self.largest <= TINY || self.largest < LARGE && !memory.is_short()) {
            return self.trusted(memory).saturating_sub(reads);
        }
        self.read_room_of_large(reads, unsent, memory)
    }

    /// Keys that it may have read at once, as small as they are believed to be.
    #[inline(always)]
    fn trusted(&self, memory: &Memory) -> u32 {
        let sure = memory.sizes.first_reads() + self.proved;
        if self.reads_max <= sure { self.reads_max } else { self.trusted_beyond(sure, memory) }
    }

    #[cold]
    #[inline(never)]
    fn trusted_beyond(&self, sure: u32, memory: &Memory) -> u32 {
        self.reads_max.min(sure + u32::from(self.doubted) + memory.doubt_room())
    }

    /// This client has met values nearly as large as the largest known: its own estimate is
    /// cautious enough.
    fn knows_large(&self, memory: &Memory) -> bool {
        self.largest >= memory.sizes.largest() / 4
    }

    /// Of the keys that are read, those beyond what it is trusted with: [`MAX_READS`] at most.
    fn beyond_trust(&self, memory: &Memory) -> u16 {
        let reads = self.in_flight.as_ref().map_or(0, |f| f.reads());
        let sure = memory.sizes.first_reads() + self.proved;
        if self.knows_large(memory) { 0 } else { reads.saturating_sub(sure) as u16 }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn doubt_more(&mut self, memory: &Memory) {
        let beyond = self.beyond_trust(memory);
        if beyond > self.doubted {
            memory.doubt(std::mem::replace(&mut self.doubted, beyond), beyond);
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn doubt_less(&mut self, memory: &Memory) {
        let beyond = self.beyond_trust(memory).min(self.doubted);
        memory.doubt(std::mem::replace(&mut self.doubted, beyond), beyond);
    }

    /// It is gone.
    pub(in crate::proxy) fn doubt_nothing(&mut self, memory: &Memory) {
        memory.doubt(std::mem::take(&mut self.doubted), 0);
    }

    fn read_room_of_large(&self, reads: u32, unsent: usize, memory: &Memory) -> u32 {
        let keys = if self.knows_large(memory) { self.reads_max } else { self.trusted(memory) }.saturating_sub(reads);
        // A client with nothing pending may always read one, however large. A get that holds its
        // values back until its last key is answered would otherwise never continue: neither an
        // answer nor a free socket would wake it.
        let first = u32::from(reads == 0 && (unsent == 0 || self.only_its_rest_goes_on()));
        let most = match memory.is_short() {
            true if self.largest >= LARGE => return first,
            true => FREE,
            false => MAX_UNSENT,
        };
        if unsent >= most {
            return first;
        }
        let fit = (most - unsent) as u32 / self.largest.max(1);
        keys.min(fit.saturating_sub(reads)).max(first)
    }

    /// Nothing is awaited for it, nor is there anything that it could take.
    fn only_its_rest_goes_on(&self) -> bool {
        self.handed == 0 && self.in_flight.as_ref().is_some_and(|f| f.has_nothing_to_take() && f.rest_is_next())
    }

    /// A value of this many bytes was read for it, or a miss.
    pub(super) fn learn(&mut self, bytes: usize, memory: &Memory) {
        memory.sizes.met(bytes);
        if memory.sizes.are_mixed() {
            self.prove(bytes);
        }
        self.largest = (self.largest - self.largest / 16).max(bytes as u32);
        self.reads_max = (self.reads_max + 1).min(MAX_READS);
    }

    /// The answer may be what was believed. Once nothing is read nor waits to be, what comes next
    /// is as unknown as ever.
    #[cold]
    #[inline(never)]
    fn prove(&mut self, bytes: usize) {
        let surprises = bytes >= LARGE as usize && bytes / 2 > self.largest as usize;
        let goes_on = self.stalled || self.in_flight.as_ref().is_some_and(|f| f.reads() > 1);
        let proved = (self.proved + PROVED_BY_ONE).min(MAX_READS);
        self.proved = if goes_on && !surprises { proved } else { 0 };
    }
}
