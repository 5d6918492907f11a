//! Filling the target from one source: gives keys to the lanes, and hands the pairs back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::dump::{Coverage, DumpError};
use super::entry::Entry;
use super::lane::{Lane, LaneEnd};
use super::node_stats::node_stats;
use super::progress::{PairProgress, Phase};
use super::spool::{SlotId, Spool};
use super::{Context, Fill, JobError, JobEvent, NO_CAS};
use crate::backend::NodeError;
use crate::ids::{NodeId, PairId};
use crate::protocol::expiry::Offset;
use crate::protocol::item::Offsets;

/// A lane holds this many bytes of items at most: more would pass through slower memory than the
/// processor's caches, and is no faster (seen with items of 10 KiB: 4 lanes of 4 and of 1 MiB take
/// 6 and 7 % less time than 2 of 4 MiB, at 29 and 15 MiB of memory in place of 19).
const LANE_BYTES: usize = 2 << 20;
/// A pair is ready to be handed back when no more keys than this wait: they fit into the gate's
/// budget many times over.
const READY_KEYS: usize = 512;
/// Pause before a source is enumerated again for a pair whose re-copy queue overflowed.
const OVERFLOW_PAUSE: Duration = Duration::from_millis(100);
/// Passes over a source whose enumeration misses items; they end early with one that finds nothing
/// new.
const MAX_LEAKY_PASSES: usize = 5;

mod adopt;
mod feed;
mod hand;
mod marked;
mod passes;
mod slot;

use adopt::Adopting;
use hand::{Hand, ask};
use marked::Marked;
use slot::{REFUSED_PAUSE, RETRY_PAUSE, Slot};

type Step = BoxFuture<'static, (Lane, Result<(), JobError>)>;

/// How the filling from one source ended.
pub(super) struct RefillEnd {
    pub(super) result: Result<(), JobError>,
    pub(super) drains: Vec<crate::backend::Drain>,
    pub(super) undone: bool,
}

pub(super) struct Refill {
    ctx: Arc<Context>,
    source: NodeId,
    target: NodeId,
    fill: Fill,
    /// How far the target's dates are ahead, by its `stats`. (The lanes learn it better where items
    /// expire.)
    offset: Offset,
    stop: CancellationToken,
    /// The target leads what is handed back.
    pub(super) leads: bool,
    slots: Vec<Slot>,
    spool: Arc<Mutex<Spool>>,
    /// Keys found, or pushed for another copy.
    work: Arc<Notify>,
    idle: Vec<Lane>,
    running: FuturesUnordered<Step>,
    /// The enumeration under way.
    pass: Option<BoxFuture<'static, Result<Coverage, DumpError>>>,
    passes: usize,
    /// The enumeration under way, or the last one, is the target's. Of a target that is compared,
    /// this many are still to come.
    sweeping: bool,
    sweeps: usize,
    swept: usize,
    /// Items on their way to the leader, their bytes, and those that are to be looked at again.
    adopting: FuturesUnordered<BoxFuture<'static, Adopting>>,
    adopting_bytes: usize,
    adopt_again: VecDeque<(Entry, Instant)>,
    /// Those that the leader refuses.
    refused_adoptions: VecDeque<(Entry, Instant)>,
    /// The source cannot be enumerated: its pairs are filled from the reads that pass through, and
    /// never handed back.
    trickle: bool,
    /// An item of the source without a cas id was seen.
    no_cas: bool,
    coverage: Coverage,
    /// Enumerated keys that are on a lane, and those of this pass that the target did not have.
    streaming: usize,
    new_in_pass: u64,
    pass_ended: Instant,
    hand: Hand,
    /// `flush_all` wants to run: its end.
    flush: Option<BoxFuture<'static, ()>>,
    /// The rate limiter gave nothing: when to ask again.
    limited_until: Option<Instant>,
    /// Clients are yielded to until then.
    resting_until: Option<Instant>,
    /// Where the round over the pairs' re-copy queues goes on.
    turn: usize,
    named_failures: usize,
    lane_bytes: usize,
}

impl Refill {
    /// `sources` = how many sources the job's memory is shared by.
    pub(super) fn new(
        ctx: Arc<Context>,
        (source, target): (NodeId, NodeId),
        fill: Fill,
        offset: Offset,
        pairs: Vec<PairId>,
        sources: usize,
        stop: CancellationToken,
    ) -> Refill {
        let now = Instant::now();
        let work = Arc::new(Notify::new());
        let slots = pairs.into_iter().map(|pair| {
            let recopy = ctx.recopy.get(&pair).cloned().unwrap_or_default();
            recopy.watch(work.clone());
            Slot {
                pair,
                recopy,
                lone: ctx.lone.get(&pair).cloned(),
                marked: Marked::default(),
                refused_at: now,
                refused_pause: REFUSED_PAUSE.0,
                tried_at: None,
                in_flight: 0,
                done: false,
                retry_at: now,
                pause: RETRY_PAUSE.0,
            }
        });
        let half = ctx.tuning.memory_bytes / 2 / sources.max(1);
        Refill {
            slots: slots.collect(),
            source,
            target,
            fill,
            offset,
            stop,
            leads: false,
            spool: Arc::new(Mutex::new(Spool::new(half))),
            work,
            idle: Vec::new(),
            running: FuturesUnordered::new(),
            pass: None,
            passes: 0,
            sweeping: false,
            sweeps: usize::from(fill.compares()),
            swept: 0,
            adopting: FuturesUnordered::new(),
            adopting_bytes: 0,
            adopt_again: VecDeque::new(),
            refused_adoptions: VecDeque::new(),
            trickle: false,
            no_cas: false,
            coverage: Coverage::Whole,
            streaming: 0,
            new_in_pass: 0,
            pass_ended: now,
            hand: Hand::Idle,
            flush: None,
            limited_until: None,
            resting_until: None,
            turn: 0,
            named_failures: 0,
            lane_bytes: (half / ctx.tuning.lanes.max(1)).min(LANE_BYTES),
            ctx,
        }
    }

    /// Fills the pairs and hands them back. Always ends with every copy either verified, undone, or
    /// reported.
    pub(super) async fn run(mut self) -> RefillEnd {
        let result = match self.connect().await {
            Ok(()) => self.drive().await,
            Err(error) => Err(error),
        };
        self.pass = None;
        if result.is_err() {
            // The lanes' reads are given up; what they sent to the target is awaited.
            self.stop.cancel();
        }
        while let Some((lane, _)) = self.running.next().await {
            self.idle.push(lane);
        }
        let mut end = RefillEnd { result, drains: Vec::new(), undone: true };
        let lanes = std::mem::take(&mut self.idle).into_iter();
        for LaneEnd { drains, undone } in join_all(lanes.map(|lane| lane.unwind(&self.ctx.tuning))).await {
            end.drains.extend(drains);
            end.undone &= undone;
        }
        end
    }

    async fn connect(&mut self) -> Result<(), JobError> {
        let stop = self.stop.clone();
        // The source's own; only needed where items are added there and it was not measured yet.
        let mut source = self.offset;
        if self.fill == Fill::Adopt {
            let offset = stop.run_until_cancelled(source_offset(&self.ctx, self.source)).await;
            source = offset.ok_or(JobError::Cancelled)?.map_err(|e| JobError::Source(self.source, e))?;
        }
        let offsets = Offsets { source, target: self.offset };
        for _ in 0..self.ctx.tuning.lanes.max(1) {
            let lane = Lane::connect(&self.ctx, (self.source, self.target), offsets, self.lane_bytes);
            self.idle.push(stop.run_until_cancelled(lane).await.ok_or(JobError::Cancelled)??);
        }
        Ok(())
    }

    async fn drive(&mut self) -> Result<(), JobError> {
        if self.fill != Fill::Adopt {
            self.begin_pass().await?;
        }
        let stop = self.stop.clone();
        let work = self.work.clone();
        let disk = self.spool.lock().unwrap_or_else(PoisonError::into_inner).disk();
        loop {
            // Before the keys are asked for: one that comes in between is not to be slept over.
            let read = disk.changed.notified();
            self.decide().await?;
            if self.slots.iter().all(|slot| slot.done) {
                return Ok(());
            }
            self.feed()?;
            let wake = self.next_timer();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(JobError::Cancelled),
                // Before the lanes: a dump that is not read at full speed freezes the source.
                coverage = optional(&mut self.pass) => self.end_pass(coverage).await?,
                Some((lane, result)) = self.running.next() => {
                    self.idle.push(lane);
                    self.collect();
                    result?;
                    if self.no_cas && self.fill.compares() {
                        return Err(JobError::blind(self.source));
                    }
                    if self.no_cas && !self.trickle {
                        self.begin_trickle(NO_CAS.to_owned()).await?;
                    }
                }
                answer = self.hand.answer() => self.answered(answer)?,
                Some(adopted) = self.adopting.next() => self.adopted(adopted)?,
                () = optional(&mut self.flush) => self.flush = None,
                () = work.notified() => {}
                () = read, if self.spool_len() > 0 => {}
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    /// Starts what can be started: another pass, the hand-back of a pair, its next step.
    async fn decide(&mut self) -> Result<(), JobError> {
        let now = Instant::now();
        if let Hand::Draining { slot, until } = self.hand {
            if self.leads {
                self.slots[slot.index()].marked.withdraw();
            }
            let s = &self.slots[slot.index()];
            let refused = self.leads && s.is_refused();
            let empty = s.in_flight == 0 && s.recopy.is_empty() && s.marked.is_withdrawn();
            if empty || now >= until || self.trickle {
                // The target refused items again behind the gate: it may lead only with all of
                // them.
                self.drained(slot, empty && !refused && !s.recopy.overflowed() && !self.trickle);
            }
            return Ok(());
        }
        if self.trickle {
            // The keys that were lost are not on the target, like every key not read yet.
            for slot in self.slots.iter().filter(|slot| slot.recopy.overflowed()) {
                slot.recopy.forget_overflow();
            }
            return Ok(());
        }
        let again = !self.adopt_again.is_empty() || !self.refused_adoptions.is_empty();
        let adopting = !self.adopting.is_empty() || again;
        let streamed = self.pass.is_none() && self.spool_len() == 0 && self.streaming == 0 && !adopting;
        if !streamed || !matches!(self.hand, Hand::Idle) {
            return Ok(());
        }
        if self.coverage == Coverage::Leaky && self.new_in_pass > 0 && self.passes < MAX_LEAKY_PASSES {
            return self.begin_pass().await;
        }
        if self.sweeps > 0 {
            self.begin_sweep();
            return Ok(());
        }
        if self.fill == Fill::Adopt {
            // The source holds everything now. Copying is another one's.
            self.slots.iter_mut().for_each(|slot| slot.done = true);
            return Ok(());
        }
        if self.overflowed() {
            if now >= self.pass_ended + OVERFLOW_PAUSE {
                return self.begin_pass().await;
            }
            return Ok(());
        }
        if !self.ctx.progress.trickles() {
            self.ctx.progress.set_phase(Phase::HandingBack);
        }
        self.retry_refused(now);
        if self.leads {
            self.slots.iter_mut().filter(|slot| !slot.done).for_each(|slot| slot.marked.withdraw());
        }
        // What is tried again and not refused yet is waited for a while, so that the gate is not
        // closed in vain.
        let tried = |s: &Slot| s.tried_at.is_some_and(|at| now < at + REFUSED_PAUSE.0) && s.in_flight > 0;
        let refused = |s: &Slot| self.leads && (s.is_refused() || tried(s));
        let ready = |s: &Slot| !s.done && s.retry_at <= now && s.recopy.len() <= READY_KEYS && !refused(s);
        let ready = |s: &Slot| ready(s) && s.marked.is_withdrawn();
        if let Some(slot) = self.slots.iter().position(ready).map(SlotId::at) {
            let pair = self.slots[slot.index()].pair;
            let reply = ask(self.ctx.clone(), move |reply| JobEvent::Ready { pair, reply });
            self.hand = Hand::Asking { slot, reply };
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<Instant> {
        let now = Instant::now();
        let hand = match self.hand {
            Hand::Draining { until, .. } => Some(until),
            _ if self.trickle => None,
            Hand::Idle if self.overflowed() => Some(self.pass_ended + OVERFLOW_PAUSE),
            Hand::Idle => {
                let later = |s: &Slot| if self.leads && s.is_refused() { s.refused_at } else { s.retry_at };
                self.slots.iter().filter(|s| !s.done).map(later).filter(|&at| at > now).min()
            }
            _ => None,
        };
        let again =
            [&self.adopt_again, &self.refused_adoptions].into_iter().filter_map(|q| q.front()).map(|(_, at)| *at);
        let rests = self.limited_until.into_iter().chain(self.resting_until);
        hand.filter(|&at| at > now).into_iter().chain(rests).chain(again.filter(|at| *at > now)).min()
    }

    /// Whether clients wait for the lanes, or would make more work than is done if they rested:
    /// whatever is disturbed by that.
    fn is_urgent(&self) -> bool {
        if matches!(self.hand, Hand::Draining { .. }) || self.ctx.shared.quiesce.try_read().is_err() {
            return true;
        }
        let behind = |slot: &Slot| !slot.done && slot.recopy.len() > READY_KEYS;
        let streamed = self.pass.is_none() && self.streaming == 0 && self.spool_len() == 0;
        !self.trickle && (streamed || self.slots.iter().any(behind))
    }

    fn slot_ids(&self) -> impl Iterator<Item = SlotId> + use<> {
        (0..self.slots.len()).map(SlotId::at)
    }

    fn overflowed(&self) -> bool {
        self.slots.iter().any(|slot| !slot.done && slot.recopy.overflowed())
    }

    fn spool_len(&self) -> usize {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

async fn source_offset(ctx: &Context, source: NodeId) -> Result<Offset, NodeError> {
    let mut pipe = ctx.connect(source).await?;
    Ok(node_stats(&mut pipe, ctx).await?.offset)
}

/// Waits for a future that may not be there: then for ever.
async fn optional<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn count(ctx: &Context, pair: PairId, counter: impl Fn(&PairProgress) -> &AtomicU64, n: u64) {
    if let Some(progress) = ctx.progress.pair(pair) {
        counter(progress).fetch_add(n, Relaxed);
    }
}
