//! Filling the target from one source: gives keys to the lanes, and hands the pairs back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::entry::Entry;
use super::enumerate::{Coverage, DumpError, enumerate};
use super::job::node_stats;
use super::lane::{Lane, LaneEnd};
use super::progress::{PairProgress, Phase};
use super::spool::Spool;
use super::{Context, Fill, JobError, JobEvent, NO_CAS, Verdict};
use crate::backend::NodeError;
use crate::ids::{NodeId, PairId, is_reserved};
use crate::keys::{Lone, Recopy};
use crate::protocol::expiry::Offset;
use crate::protocol::item::Offsets;

/// A lane holds so many bytes of items at most: more would pass through slower memory than the
/// processor's caches, and is no faster (seen with items of 10 KiB: 4 lanes of 4 and of 1 MiB take
/// 6 and 7 % less time than 2 of 4 MiB, at 29 and 15 MiB of memory in place of 19).
const LANE_BYTES: usize = 2 << 20;
/// A pair is ready to be handed back when no more keys than this wait: they fit into the gate's
/// budget many times over.
const READY_KEYS: usize = 512;
/// First and longest pause before a pair that could not be handed back is tried again.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// First and longest pause before a target that is to lead is given again what it has refused, and
/// how many keys at once.
const REFUSED_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
const REFUSED_KEYS: usize = 64;
/// Pause before a source is enumerated again for a pair whose re-copy queue overflowed.
const OVERFLOW_PAUSE: Duration = Duration::from_millis(100);
/// Passes over a source whose enumeration misses items; they end early with one that finds nothing
/// new.
const MAX_LEAKY_PASSES: usize = 5;
/// Passes over a target that is compared, where a pass may miss items.
const LEAKY_SWEEPS: usize = 3;

mod adopt;
mod feed;
mod marked;

use adopt::Adopting;
use marked::Marked;

/// One pair of the source.
#[derive(Debug)]
struct Slot {
    pair: PairId,
    recopy: Arc<Recopy>,
    /// The keys of items that the target refused.
    lone: Option<Arc<Lone>>,
    /// Those of items that the source alone holds.
    marked: Marked,
    /// When they are tried again, where the target is to lead.
    refused_at: Instant,
    refused_pause: Duration,
    tried_at: Option<Instant>,
    /// Entries under way.
    in_flight: usize,
    /// Handed back: nothing of it may be copied any more.
    done: bool,
    retry_at: Instant,
    pause: Duration,
}

/// How far the hand-back of one pair is; one at a time per source.
enum Hand {
    Idle,
    Asking { slot: usize, reply: BoxFuture<'static, Result<bool, JobError>> },
    Draining { slot: usize, until: Instant },
    Judging { slot: usize, clean: bool, reply: BoxFuture<'static, Result<Verdict, JobError>> },
}

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
    /// so many are still to come.
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
        // The source's own; only needed where items are added there and nobody measured it.
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

    async fn begin_pass(&mut self) -> Result<(), JobError> {
        for slot in &self.slots {
            // Before it begins: what overflows during the pass needs another one.
            slot.recopy.clear_overflow();
        }
        if self.fill == Fill::Missed && self.list_missed().await? {
            return Ok(());
        }
        self.sweeping = false;
        self.passes += 1;
        self.new_in_pass = 0;
        self.begin_enumeration(self.source);
        Ok(())
    }

    /// The other way round: what the target holds that was not purged.
    fn begin_sweep(&mut self) {
        self.sweeping = true;
        self.sweeps -= 1;
        self.begin_enumeration(self.target);
    }

    fn begin_enumeration(&mut self, node: NodeId) {
        let sweeping = self.sweeping;
        let (ctx, spool, work) = (self.ctx.clone(), self.spool.clone(), self.work.clone());
        let open = self.slots.iter().enumerate().filter(|(_, slot)| !slot.done);
        let slots: BTreeMap<PairId, u32> = open.map(|(i, slot)| (slot.pair, i as u32)).collect();
        self.pass = Some(
            async move {
                let disk = spool.lock().unwrap_or_else(PoisonError::into_inner).disk();
                let walk = enumerate(&ctx, node, &disk, |line| {
                    let pair = (ctx.owner)(line.key);
                    let Some(&slot) = slots.get(&pair) else { return Ok(()) };
                    if is_reserved(line.key) {
                        return Ok(());
                    }
                    count(&ctx, pair, |p| &p.enumerated, u64::from(!sweeping));
                    let mut spool = spool.lock().unwrap_or_else(PoisonError::into_inner);
                    spool.push(slot, line.size, line.key)?;
                    if spool.len() == 1 {
                        work.notify_one();
                    }
                    ctx.progress.spooled_max.fetch_max(spool.len() as u64, Relaxed);
                    Ok(())
                });
                walk.await
            }
            .boxed(),
        );
    }

    /// Instead of an enumeration: the keys that the target missed, all of which were deleted there.
    /// `false`: the list was given up, but what it named is deleted, so that an enumeration will
    /// do.
    async fn list_missed(&mut self) -> Result<bool, JobError> {
        let mut lists = Vec::new();
        for (i, slot) in self.slots.iter().enumerate().filter(|(_, slot)| !slot.done) {
            let Some(missed) = self.ctx.missed.get(&slot.pair) else { return Ok(false) };
            match missed.list().await {
                Some(keys) => lists.push((i as u32, slot.pair, keys)),
                None => return Ok(false),
            }
        }
        let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
        self.ctx.progress.listed(lists.iter().map(|(_, _, keys)| keys.len() as u64).sum());
        for (slot, pair, keys) in lists {
            count(&self.ctx, pair, |p| &p.enumerated, keys.len() as u64);
            for key in keys {
                spool.push(slot, 0, &key).map_err(|e| JobError::Spool(e.to_string()))?;
            }
        }
        self.ctx.progress.spooled_max.fetch_max(spool.len() as u64, Relaxed);
        drop(spool);
        self.pass_ended = Instant::now();
        Ok(true)
    }

    async fn end_pass(&mut self, coverage: Result<Coverage, DumpError>) -> Result<(), JobError> {
        self.pass = None;
        self.pass_ended = Instant::now();
        let coverage = match coverage {
            Ok(coverage) if self.sweeping => {
                // What may have been missed by one may be seen by another.
                if coverage == Coverage::Leaky && self.swept < LEAKY_SWEEPS {
                    self.sweeps += 1;
                }
                self.swept += 1;
                return Ok(());
            }
            Err(error) if self.sweeping => return Err(JobError::of_dump(self.target, None, error)),
            Ok(coverage) => coverage,
            Err(DumpError::Cannot(why)) if self.fill.compares() => {
                return Err(JobError::CannotEnumerate { node: self.source, why });
            }
            Err(DumpError::Cannot(why)) if self.passes == 1 => return self.begin_trickle(why).await,
            Err(DumpError::StandsStill) if self.passes == 1 && !self.fill.compares() && !self.trickle => {
                return self.wait_for_crawler().await;
            }
            Err(error) => return Err(JobError::of_dump(self.source, Some(self.source), error)),
        };
        tracing::debug!(source = self.source.0, pass = self.passes, waiting = self.spool_len(), "enumerated");
        if coverage == Coverage::Leaky && self.coverage == Coverage::Whole {
            tracing::warn!(
                node = self.source.0,
                "the node knows only `metadump all`, which misses items: several passes"
            );
        }
        self.coverage = coverage;
        if self.passes == 1 {
            let found: u64 = self
                .slots
                .iter()
                .filter_map(|s| self.ctx.progress.pair(s.pair))
                .map(|p| p.enumerated.load(Relaxed))
                .sum();
            self.ctx.progress.listed(found);
        }
        Ok(())
    }

    /// From here on the keys come from the workers: those that clients read, and those to be copied
    /// again. Each is read, added and verified like any other, so what is there is right; but what
    /// nobody reads never comes, so no pair is handed back. Ends when cancelled, or with a node.
    async fn begin_trickle(&mut self, why: String) -> Result<(), JobError> {
        self.trickle = true;
        self.pass = None;
        self.ctx.progress.set_trickles();
        self.ctx.progress.listed(0);
        let open = self.slots.iter().filter(|slot| !slot.done);
        let pairs = open.map(|slot| slot.pair).collect();
        let event = JobEvent::CannotEnumerate { source: self.source, pairs, why };
        let told = self.stop.run_until_cancelled(self.ctx.coordinator.send(event)).await;
        told.ok_or(JobError::Cancelled)?.map_err(|_| JobError::Aborted)?;
        for slot in &self.slots {
            slot.recopy.want_reads();
        }
        Ok(())
    }

    /// The same, until the crawler of the source has come to the end of the dump that it stands
    /// still in: then the job ends, and the next one enumerates.
    async fn wait_for_crawler(&mut self) -> Result<(), JobError> {
        self.begin_trickle("its crawler stands still in a dump".to_owned()).await?;
        let (crawls, source) = (self.ctx.crawls.clone(), self.source);
        self.pass = Some(
            async move {
                crawls.is_free(source).await;
                Err(DumpError::Busy)
            }
            .boxed(),
        );
        Ok(())
    }

    /// Starts what can be started: another pass, the hand-back of a pair, its next step.
    async fn decide(&mut self) -> Result<(), JobError> {
        let now = Instant::now();
        if let Hand::Draining { slot, until } = self.hand {
            if self.leads {
                self.slots[slot].marked.withdraw();
            }
            let s = &self.slots[slot];
            let refused = self.leads && s.is_refused();
            let empty = s.in_flight == 0 && s.recopy.is_empty() && s.marked.is_withdrawn();
            if empty || now >= until || self.trickle {
                // (Refused again behind the gate: it leads only with all.)
                self.drained(slot, empty && !refused && !s.recopy.overflowed() && !self.trickle);
            }
            return Ok(());
        }
        if self.trickle {
            // The keys that were lost are not on the target, as every key that nobody has read yet.
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
        if let Some(slot) = self.slots.iter().position(ready) {
            let pair = self.slots[slot].pair;
            let reply = ask(self.ctx.clone(), move |reply| JobEvent::Ready { pair, reply });
            self.hand = Hand::Asking { slot, reply };
        }
        Ok(())
    }

    /// A pair of which the target refused items is not handed back to it: the items are on the
    /// other node alone, which goes on leading, and their keys are tried again.
    fn retry_refused(&mut self, now: Instant) {
        let blocked = |s: &Slot| !s.done && s.is_refused();
        let open = self.slots.iter().filter(|s| !s.done);
        self.ctx.progress.set_waits_for_room(self.leads && open.clone().count() > 0 && open.clone().all(blocked));
        if !self.leads {
            return;
        }
        for slot in self.slots.iter_mut().filter(|s| blocked(s)) {
            if slot.in_flight > 0 || !slot.recopy.is_empty() || slot.refused_at > now {
                continue;
            }
            let Some(lone) = &slot.lone else { continue };
            let keys = lone.take(REFUSED_KEYS);
            // Counted again where they are refused again.
            let failed = |p: &PairProgress| p.failed.fetch_sub(keys.len() as u64, Relaxed);
            self.ctx.progress.pair(slot.pair).map(failed);
            slot.tried_at = Some(now);
            slot.refused_at = now + slot.refused_pause;
            slot.refused_pause = (slot.refused_pause * 2).min(REFUSED_PAUSE.1);
            for key in keys {
                slot.recopy.push(key);
            }
        }
    }

    fn drained(&mut self, slot: usize, clean: bool) {
        let pair = self.slots[slot].pair;
        let reply = ask(self.ctx.clone(), move |reply| JobEvent::Drained { pair, clean, reply });
        self.hand = Hand::Judging { slot, clean, reply };
    }

    fn answered(&mut self, answer: Answered) -> Result<(), JobError> {
        let now = Instant::now();
        match (std::mem::replace(&mut self.hand, Hand::Idle), answer) {
            (Hand::Asking { slot, .. }, Answered::Ready(closed)) => {
                if closed? {
                    self.hand = Hand::Draining { slot, until: now + self.ctx.tuning.gate_budget };
                } else {
                    self.slots[slot].later(now);
                }
            }
            (Hand::Judging { slot, clean, .. }, Answered::Drained(verdict)) => match verdict? {
                Verdict::Mirrored if clean => self.is_mirrored(slot),
                Verdict::Again => self.slots[slot].later(now),
                // Mirrored without having been clean would leave copies in flight: never trusted.
                Verdict::Mirrored | Verdict::Abort => return Err(JobError::Aborted),
            },
            _ => {}
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
        if matches!(self.hand, Hand::Draining { .. }) || self.ctx.quiesce.try_read().is_err() {
            return true;
        }
        let behind = |slot: &Slot| !slot.done && slot.recopy.len() > READY_KEYS;
        let streamed = self.pass.is_none() && self.streaming == 0 && self.spool_len() == 0;
        !self.trickle && (streamed || self.slots.iter().any(behind))
    }

    fn overflowed(&self) -> bool {
        self.slots.iter().any(|slot| !slot.done && slot.recopy.overflowed())
    }

    fn spool_len(&self) -> usize {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Slot {
    fn is_refused(&self) -> bool {
        self.lone.as_ref().is_some_and(|lone| !lone.is_empty())
    }

    fn later(&mut self, now: Instant) {
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(RETRY_PAUSE.1);
    }
}

enum Answered {
    Ready(Result<bool, JobError>),
    Drained(Result<Verdict, JobError>),
}

impl Hand {
    /// The control plane's next answer. Safe to drop and call again.
    async fn answer(&mut self) -> Answered {
        match self {
            Hand::Asking { reply, .. } => Answered::Ready(reply.await),
            Hand::Judging { reply, .. } => Answered::Drained(reply.await),
            Hand::Idle | Hand::Draining { .. } => std::future::pending().await,
        }
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

fn ask<T: Send + 'static>(
    ctx: Arc<Context>,
    event: impl FnOnce(oneshot::Sender<T>) -> JobEvent + Send + 'static,
) -> BoxFuture<'static, Result<T, JobError>> {
    async move {
        let (reply, answer) = oneshot::channel();
        ctx.coordinator.send(event(reply)).await.map_err(|_| JobError::Aborted)?;
        answer.await.map_err(|_| JobError::Aborted)
    }
    .boxed()
}

fn count(ctx: &Context, pair: PairId, counter: impl Fn(&PairProgress) -> &AtomicU64, n: u64) {
    if let Some(progress) = ctx.progress.pair(pair) {
        counter(progress).fetch_add(n, Relaxed);
    }
}
