//! A lane copies: one connection to the source, one to the target, and the entries that travel between them.
//!
//! In every step each entry has one command outstanding, so the next batch is read while the last one is added and the one
//! before is verified. An entry stays on its lane: that verify is asked on the connection that the item was read on, and undo
//! on the one it was added on, proves that both nodes are still the same processes, whose cas ids mean the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedRwLockReadGuard;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::entry::{End, Entry, Side, Stage, Trouble};
use super::item::NodeClock;
use super::{Context, JobError, Tuning};
use crate::backend::{Batch, Drain, Frame, Pipe};
use crate::ids::NodeId;
use crate::rules::{Rule, holds};

/// What the target must manage per second, in bytes, on top of what its timeout allows, of what the kernel takes at once and does not show
/// on its way: a network that is merely slow is not to be taken for a node that hangs.
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
    /// The largest item seen lately, in bytes: the guess for keys whose size is not known. 0 = none was seen.
    pub(super) largest: usize,
    clock: NodeClock,
    source_clock: NodeClock,
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
        source: NodeId,
        target: NodeId,
        (source_clock, clock): (NodeClock, NodeClock),
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
            clock,
            source_clock,
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

    /// One command of every entry, answered. After an error the lane can only be [unwound](Lane::unwind).
    ///
    /// The target is always heard out, cancelled or not: what was sent to it takes effect. The source is only read from.
    pub(super) async fn step(&mut self, tuning: &Tuning, stop: &CancellationToken) -> Result<(), JobError> {
        let asked = Instant::now();
        let source = self.source.node();
        let mut to_source = Batch::with_room(self.room.0, self.at_source.len());
        let mut to_target = Batch::with_room(self.room.1, self.at_target.len());
        for entry in &mut self.at_source {
            if !entry.command(&mut to_source, &self.source_clock, asked) {
                entry.command(&mut to_source, &self.source_clock, asked);
            }
        }
        // An item that expired while it waited has another command, for the target as well.
        for entry in &mut self.at_target {
            if !entry.command(&mut to_target, &self.clock, asked) {
                entry.command(&mut to_target, &self.clock, asked);
            }
        }
        self.room = (to_source.gathered(), to_target.gathered());
        let mut target_blind = false;
        let unseen = to_target.len().min(KERNEL_BYTES);
        let allowance = Duration::from_millis((unseen / (MIN_BYTES_PER_S / 1000)) as u64);
        let from = stop.run_until_cancelled(self.source.transfer(to_source, tuning.source_timeout, |i, frame| {
            take(&mut self.at_source, i, &frame, asked, &mut false)
        }));
        let to = self.target.transfer(to_target, tuning.target_timeout + allowance, |i, frame| {
            take(&mut self.at_target, i, &frame, asked, &mut target_blind)
        });
        let (from, to) = tokio::join!(biased; from, to);
        self.lost_copies |= target_blind;
        self.sort();
        to.map_err(JobError::Target)?;
        if target_blind {
            return Err(JobError::blind(self.target.node()));
        }
        from.ok_or(JobError::Cancelled)?.map_err(|e| JobError::Source(source, e))
    }

    /// Every entry to the side of its next command. Entries that were not answered are where they were.
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

    /// Ends the lane: undoes every copy that was not verified, guarded by the cas id that the target gave it.
    pub(super) async fn unwind(mut self, tuning: &Tuning) -> LaneEnd {
        let mut drains = Vec::new();
        let mut undone = !self.lost_copies;
        // Not answered: the lane's step failed on the target.
        if self.target.owes_mutations() {
            undone = false;
        } else if holds(Rule::UndoneBeforeFallback) {
            let mut batch = Batch::new();
            let mut copies = Vec::new();
            for entry in self.at_source.iter_mut().chain(&mut self.at_target) {
                if let Some(copy) = entry.unverified() {
                    entry.stage = Stage::Undo { copy };
                    entry.command(&mut batch, &self.clock, Instant::now());
                    copies.push(entry);
                }
            }
            if batch.replies() > 0 {
                let done = self.target.transfer(batch, tuning.target_timeout, |i, frame| {
                    let entry = copies.get_mut(i).ok_or("an answer too many")?;
                    entry.answer(&frame, Instant::now()).map_err(|t| format!("{t:?}"))
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

fn take(entries: &mut [Entry], i: usize, frame: &Frame<'_>, asked: Instant, blind: &mut bool) -> Result<(), String> {
    let entry = entries.get_mut(i).ok_or("an answer too many")?;
    match entry.answer(frame, asked) {
        Ok(()) => Ok(()),
        Err(Trouble::Protocol(what)) => Err(what),
        Err(Trouble::Blind) => {
            *blind = true;
            Ok(())
        }
    }
}
