//! A lane copies: one connection to the source, one to the target, and the entries that travel
//! between them.
//!
//! In every step each entry has one command outstanding, so the next batch is read while the last
//! one is added and the one before is verified. An entry stays on its lane: that verify is asked on
//! the connection that the item was read on, and undo on the one it was added on, proves that both
//! nodes are still the same processes, whose cas ids mean the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedRwLockReadGuard;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::entry::{End, Entry, Side, Stage, Trouble};
use super::{Clocks, Context, JobError, Tuning};
use crate::ambient;
use crate::backend::{Batch, Drain, Effect, Pipe, give_back};
use crate::ids::NodeId;
use crate::protocol::clock;
use crate::protocol::item::{Asked, Offsets};
use crate::protocol::reply::Frame;
use crate::rules::{Rule, holds};

/// What the target must manage per second, in bytes, on top of what its timeout allows, of what the
/// kernel takes at once and does not show on its way: a network that is merely slow is not to be
/// taken for a node that hangs.
const MIN_BYTES_PER_S: usize = 2 << 20;
/// What the kernel takes at most, in bytes: the buffers of both sides grow to 4 MB and 6 MB.
const KERNEL_BYTES: usize = 10 << 20;
/// Booked with every item, for key and bookkeeping, in bytes.
pub(super) const ENTRY_BYTES: usize = 512;

/// A pair of connections and the entries between them.
#[derive(Debug)]
pub(super) struct Lane {
    source: Pipe,
    target: Pipe,
    at_source: Vec<Entry>,
    at_target: Vec<Entry>,
    /// Where they are sorted to, and where the entries stood before.
    spare: (Vec<Entry>, Vec<Entry>),
    /// Bytes of the last commands to either.
    room: (usize, usize),
    /// Entries that ended in the last step; the driver takes them.
    pub(super) ended: Vec<(Entry, End)>,
    /// Held while any entry is under way: `flush_all` waits for it.
    pub(super) quiesce: Option<Arc<OwnedRwLockReadGuard<()>>>,
    /// Bytes booked by the entries under way.
    pub(super) booked: usize,
    /// The largest item seen lately, in bytes: the guess for keys whose size is not known. 0 = none
    /// was seen.
    pub(super) largest: usize,
    /// Bytes of items that one batch may bring. See [`Brought`].
    budget: usize,
    clocks: Arc<Clocks>,
    /// What is taken for the nodes' dates until [`Lane::date`] has asked.
    offsets: Offsets,
    dated: bool,
    /// Items that expire were seen: the nodes are asked for their clocks with every batch.
    timed: bool,
    /// A copy was made that no undo can be aimed at.
    lost_copies: bool,
}

/// What is left of a lane.
#[derive(Debug)]
pub(super) struct LaneEnd {
    /// Connections on which mutations are outstanding.
    pub(super) drains: Vec<Drain>,
    /// No unverified copy of this lane is on the target, nor can one still land there.
    pub(super) undone: bool,
}

impl Lane {
    pub(super) async fn connect(
        ctx: &Context,
        (source, target): (NodeId, NodeId),
        offsets: Offsets,
        budget: usize,
    ) -> Result<Lane, JobError> {
        let from = ctx.connect(source).await.map_err(|e| JobError::Source(source, e))?;
        let to = ctx.connect(target).await.map_err(JobError::Target)?;
        Ok(Lane {
            source: from,
            target: to,
            at_source: Vec::new(),
            at_target: Vec::new(),
            spare: Default::default(),
            room: (0, 0),
            ended: Vec::new(),
            quiesce: None,
            booked: 0,
            largest: 0,
            budget,
            clocks: ctx.shared.clocks.clone(),
            offsets,
            dated: false,
            timed: false,
            lost_copies: false,
        })
    }

    /// Entries under way.
    pub(super) fn len(&self) -> usize {
        self.at_source.len() + self.at_target.len()
    }

    /// Takes in an entry; it is at its beginning.
    pub(super) fn admit(&mut self, entry: Entry) {
        self.booked += entry.booked;
        match entry.side() {
            Some(Side::Target) => self.at_target.push(entry),
            _ => self.at_source.push(entry),
        }
    }

    /// Entries that would begin anew leave the lane instead, so that it becomes empty soon.
    pub(super) fn stop_retries(&mut self) {
        for entry in std::mem::take(&mut self.at_source) {
            if matches!(entry.stage, Stage::Read) {
                self.end(entry, End::Requeue);
            } else {
                self.at_source.push(entry);
            }
        }
    }

    /// One command of every entry, answered. After an error the lane can only be
    /// [unwound](Lane::unwind).
    ///
    /// The target is always heard out, cancelled or not: what was sent to it takes effect. The
    /// source is only read from.
    pub(super) async fn step(&mut self, tuning: &Tuning, stop: &CancellationToken) -> Result<(), JobError> {
        if !self.dated && self.at_source.iter().chain(&self.at_target).any(Entry::needs_offsets) {
            // Nothing was sent: a job that is ended ends at once.
            stop.run_until_cancelled(self.date()).await.ok_or(JobError::Cancelled)?;
        }
        let asked = ambient::date(Instant::now());
        let source = self.source.node();
        let mut to_source = Batch::with_room(self.room.0, self.at_source.len());
        let mut to_target = Batch::with_room(self.room.1, self.at_target.len());
        let timed = [timed(&self.at_source, self.timed), timed(&self.at_target, self.timed)];
        let offsets = self.offsets;
        if timed[0] {
            to_source.command(clock::CLOCK_READ, Effect::Read);
        }
        for entry in &mut self.at_source {
            if !entry.command(&mut to_source, offsets, asked) {
                entry.command(&mut to_source, offsets, asked);
            }
        }
        if timed[0] {
            to_source.command(clock::CLOCK_READ, Effect::Read);
        }
        if timed[1] {
            to_target.command(clock::CLOCK_READ, Effect::Read);
        }
        // An item that expired while it waited has another command, for the target as well.
        for entry in &mut self.at_target {
            if !entry.command(&mut to_target, offsets, asked) {
                entry.command(&mut to_target, offsets, asked);
            }
        }
        if timed[1] {
            to_target.command(clock::CLOCK_READ, Effect::Read);
        }
        self.room = (to_source.gathered(), to_target.gathered());
        let mut target_blind = false;
        let mut brought = Brought { budget: self.budget, bytes: 0, largest: 0 };
        let (mut source_shows, mut target_shows) = ([None; 2], [None; 2]);
        let unseen = to_target.len().min(KERNEL_BYTES);
        let allowance = Duration::from_millis((unseen / (MIN_BYTES_PER_S / 1000)) as u64);
        let from = stop.run_until_cancelled(self.source.transfer(to_source, tuning.source_timeout, |i, frame| {
            let taken = take(&mut self.at_source, i, &frame, (asked, timed[0], &mut source_shows), &mut false)?;
            if let Some(entry) = taken {
                brought.weigh(entry);
            }
            Ok(())
        }));
        let to = self.target.transfer(to_target, tuning.target_timeout + allowance, |i, frame| {
            take(&mut self.at_target, i, &frame, (asked, timed[1], &mut target_shows), &mut target_blind).map(drop)
        });
        let (from, to) = tokio::join!(biased; from, to);
        self.lost_copies |= target_blind;
        self.largest = self.largest.max(brought.largest);
        self.timed |= self.at_source.iter().chain(&self.at_target).any(|entry| entry.undated);
        if source_shows[0] != source_shows[1] {
            self.at_source.iter_mut().for_each(Entry::date_again);
        }
        self.sort();
        if !self.dated && self.ended.iter().any(|(entry, _)| entry.needs_offsets()) {
            stop.run_until_cancelled(self.date()).await;
        }
        to.map_err(JobError::Target)?;
        if target_blind {
            return Err(JobError::blind(self.target.node()));
        }
        from.ok_or(JobError::Cancelled)?.map_err(|e| JobError::Source(source, e))
    }

    /// Waits until it is known how far the nodes' dates are ahead of the proxy's: a second at most,
    /// once.
    async fn date(&mut self) {
        let [source, target] = self.clocks.of([self.source.node(), self.target.node()]).await;
        self.offsets.source = source.unwrap_or(self.offsets.source);
        self.offsets.target = target.unwrap_or(self.offsets.target);
        self.dated = true;
    }

    /// What it knows of them.
    pub(super) fn offsets(&self) -> Offsets {
        self.offsets
    }

    /// Every entry to the side of its next command. Entries that were not answered are where they
    /// were.
    fn sort(&mut self) {
        let spare = std::mem::take(&mut self.spare);
        let (mut source, mut target) =
            (std::mem::replace(&mut self.at_source, spare.0), std::mem::replace(&mut self.at_target, spare.1));
        for mut entry in source.drain(..).chain(target.drain(..)) {
            if let Stage::Add(item) = &entry.stage {
                // Now its size is known; for a re-copied key it was a guess.
                let bytes = item.value.len() + ENTRY_BYTES;
                self.largest = bytes.max(self.largest - self.largest / 64);
                self.booked = (self.booked + bytes).saturating_sub(entry.booked);
                entry.booked = bytes;
            }
            match (entry.side(), &entry.stage) {
                (Some(Side::Source), _) => self.at_source.push(entry),
                (Some(Side::Target), _) => self.at_target.push(entry),
                (None, &Stage::Done(end)) => self.end(entry, end),
                (None, _) => {}
            }
        }
        self.spare = (source, target);
    }

    fn end(&mut self, entry: Entry, end: End) {
        self.booked = self.booked.saturating_sub(entry.booked);
        self.ended.push((entry, end));
    }

    /// Ends the lane: undoes every copy that was not verified, guarded by the cas id that the
    /// target gave it.
    pub(super) async fn unwind(mut self, tuning: &Tuning) -> LaneEnd {
        let mut drains = Vec::new();
        let mut undone = !self.lost_copies;
        let held = self.at_source.iter().chain(&self.at_target).filter_map(Entry::held);
        let (keys, cas): (Vec<_>, Vec<_>) = held.unzip();
        if !keys.is_empty() {
            // Nothing else gives it back. (If the source owes other answers, it cannot be asked.)
            let held = cas.into_iter().enumerate().collect();
            let _ = give_back(&mut self.source, &keys, held, tuning.target_timeout).await;
        }
        // Not answered: the lane's step failed on the target.
        if self.target.owes_mutations() {
            undone = false;
        } else if holds(Rule::UndoneBeforeFallback) {
            let mut batch = Batch::new();
            let mut copies = Vec::new();
            let now = ambient::date(Instant::now());
            for entry in self.at_source.iter_mut().chain(&mut self.at_target) {
                if let Some(copy) = entry.unverified() {
                    entry.stage = Stage::Undo { copy };
                    entry.command(&mut batch, self.offsets, now);
                    copies.push(entry);
                }
            }
            if batch.replies() > 0 {
                let done = self.target.transfer(batch, tuning.target_timeout, |i, frame| {
                    let entry = copies.get_mut(i).ok_or("an answer too many")?;
                    let asked = Asked { at: now, ..Asked::default() };
                    entry.answer(&frame, asked).map_err(|t| format!("{t:?}"))
                });
                undone &= done.await.is_ok();
            }
        }
        for pipe in [self.source, self.target] {
            if pipe.owes_mutations() {
                drains.push(pipe.into_drain());
            }
        }
        LaneEnd { drains, undone }
    }
}

/// Whether a batch asks for the clock too: before its first and behind its last command.
fn timed(entries: &[Entry], timed: bool) -> bool {
    timed && entries.iter().any(Entry::is_to_be_dated)
}

/// What a batch has brought to be copied. The sizes of keys that were not enumerated are guessed by
/// those of others; where they turn out to be larger by far, a batch of hundreds would bring
/// hundreds of megabytes. What is over the lane's share of the memory is dropped as it comes, and
/// read again later, a few at a time: then it is known what such keys are like.
struct Brought {
    budget: usize,
    bytes: usize,
    largest: usize,
}

impl Brought {
    fn weigh(&mut self, entry: &mut Entry) {
        let Stage::Add(item) = &entry.stage else { return };
        let bytes = item.value.len() + ENTRY_BYTES;
        self.largest = self.largest.max(bytes);
        // One at least, however large.
        if self.bytes > 0 && self.bytes + bytes > self.budget {
            entry.stage = Stage::Done(End::Requeue);
        } else {
            self.bytes += bytes;
        }
    }
}

/// Returns the entry that was answered, if it was one.
fn take<'a>(
    entries: &'a mut [Entry],
    i: usize,
    frame: &Frame<'_>,
    (at, timed, shows): (Duration, bool, &mut [Option<i64>; 2]),
    blind: &mut bool,
) -> Result<Option<&'a mut Entry>, String> {
    if timed && (i == 0 || i == entries.len() + 1) {
        shows[usize::from(i > 0)] = clock::shown(frame);
        return Ok(None);
    }
    let entry = entries.get_mut(i - usize::from(timed)).ok_or("an answer too many")?;
    match entry.answer(frame, Asked { at, timed, shown: shows[0] }) {
        Ok(()) => Ok(Some(entry)),
        Err(Trouble::Protocol(what)) => Err(what),
        Err(Trouble::Blind) => {
            *blind = true;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::item::{Item, Seen};
    use crate::resync::spool::SlotId;

    fn read(bytes: usize) -> Entry {
        let seen = Seen { ttl: -1, asked: Duration::ZERO, answered: Duration::ZERO, shown: None };
        let value = Bytes::from(vec![b'x'; bytes - ENTRY_BYTES]);
        let mut entry = Entry::new(Bytes::from_static(b"k"), false, SlotId::ONLY, 0, false);
        entry.stage = Stage::Add(Item { value, flags: 0, cas: 1, seen, binary: false });
        entry
    }

    /// What is put off holds no value, and one item is always brought, however large.
    #[test]
    fn a_batch_brings_its_budget_or_one_item() {
        let brought = |budget, sizes: &[usize]| {
            let mut brought = Brought { budget, bytes: 0, largest: 0 };
            let mut entries: Vec<Entry> = sizes.iter().map(|&bytes| read(bytes)).collect();
            entries.iter_mut().for_each(|entry| brought.weigh(entry));
            let kept: Vec<bool> = entries.iter().map(|entry| matches!(entry.stage, Stage::Add(_))).collect();
            (kept, brought.largest)
        };
        assert_eq!(brought(10_000, &[4_000, 4_000, 4_000, 2_000]), (vec![true, true, false, true], 4_000));
        assert_eq!(brought(10_000, &[50_000, 1_000]), (vec![true, false], 50_000));
        assert_eq!(brought(10_000, &[9_000, 50_000]), (vec![true, false], 50_000));
    }
}
