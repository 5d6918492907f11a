//! Which keys go on the lanes, and what becomes of them.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};

use futures::future::FutureExt;
use tokio::time::Instant;

use super::super::dump::Coverage;
use super::super::entry::{End, Entry};
use super::super::lane::{ENTRY_BYTES, Lane};
use super::super::progress::PairProgress;
use super::super::spool::SlotId;
use super::super::{Fill, JobError};
use super::{Hand, REFUSED_PAUSE, Refill, count};
use crate::keys::MAX_RECOPY_KEYS;
use crate::protocol::key::wire_form;

/// While both wait, re-copies get a batch divided by this, and enumerated keys the rest; the
/// other way round once a queue of re-copies is half full, since one that overflows costs another
/// pass.
const RECOPY_SHARE: usize = 4;
/// Failed items named in the log, per source.
pub(super) const MAX_NAMED_FAILURES: usize = 10;
/// Booked for a key whose item's size is not known as long as the lane has not seen any, in bytes:
/// memcached's largest by default.
const UNSEEN_BYTES: usize = 1 << 20;
/// A lane that yields to clients may still hold this many bytes of items.
const MIN_LOT_BYTES: usize = 64 << 10;

impl Refill {
    /// Sends every idle lane on that has something to do.
    pub(super) fn feed(&mut self) -> Result<(), JobError> {
        self.limited_until = None;
        let yields = !self.ctx.shared.pace.is_full() && !self.is_urgent();
        self.resting_until = if yields { self.ctx.shared.pace.resting_until() } else { None };
        if self.resting_until.is_some() {
            return Ok(());
        }
        let mut lanes = std::mem::take(&mut self.idle).into_iter();
        while let Some(mut lane) = lanes.next() {
            if yields && !self.running.is_empty() {
                // One at a time.
                self.idle.push(lane);
                continue;
            }
            let admitted = self.admit(&mut lane);
            self.take_ended(&mut lane);
            if admitted.is_err() {
                // They may hold copies that were not verified: the end of the job undoes them.
                self.idle.push(lane);
                self.idle.extend(lanes);
                return admitted;
            }
            if lane.len() == 0 {
                lane.quiesce = None;
                self.idle.push(lane);
                continue;
            }
            let (ctx, stop) = (self.ctx.clone(), self.stop.clone());
            let step = async move {
                let begun = Instant::now();
                let result = lane.step(&ctx.tuning, &stop).await;
                if yields {
                    ctx.shared.pace.worked(begun.elapsed());
                }
                (lane, result)
            };
            self.running.push(step.boxed());
        }
        Ok(())
    }

    /// Gives a lane its next keys, as far as window, memory, rate and `flush_all` allow.
    fn admit(&mut self, lane: &mut Lane) -> Result<(), JobError> {
        // Taken or wanted for writing, the lock cannot be had for reading: the lane empties itself.
        let Ok(turn) = self.ctx.shared.quiesce.clone().try_read_owned() else {
            lane.stop_retries();
            if self.flush.is_none() {
                let quiesce = self.ctx.shared.quiesce.clone();
                self.flush = Some(async move { drop(quiesce.read_owned().await) }.boxed());
            }
            return Ok(());
        };
        lane.quiesce.get_or_insert(Arc::new(turn));
        let batch = self.ctx.tuning.batch.max(1);
        // Three groups are under way: one being read, one added, one verified.
        let room = batch.min((3 * batch).saturating_sub(lane.len()));
        if let Hand::Draining { slot, .. } = self.hand {
            // Clients wait at the gate: nothing else.
            let room = room - self.admit_withdrawals(lane, slot, room);
            let taken = self.admit_recopies(lane, slot, room, self.lane_bytes);
            self.ctx.shared.limiter.book(taken);
            return Ok(());
        }
        // What clients make urgent does not wait; what was enumerated does, until the rest is over,
        // and comes in smaller lots.
        let (share, rests) = (self.ctx.shared.pace.batch(batch), self.ctx.shared.pace.resting_until().is_some());
        let lot_bytes = (self.lane_bytes / batch * share).max(MIN_LOT_BYTES.min(self.lane_bytes));
        let lot = share.min((3 * share).saturating_sub(lane.len()));
        let waiting = if rests { 0 } else { self.spool_len().min(lot) };
        let room = if self.trickle { lot } else { room };
        let queued: Vec<usize> = self
            .slot_ids()
            .map(|id| if self.may_recopy(id) { self.slots[id.index()].recopy.len() } else { 0 })
            .collect();
        let crowded = queued.iter().any(|&keys| keys > MAX_RECOPY_KEYS / 2);
        let part = room.div_ceil(RECOPY_SHARE);
        let share = if crowded { room - part } else { part }.min(queued.iter().sum());
        // Neither may fill the lane's memory alone.
        let bytes = if waiting > 0 { self.lane_bytes - self.lane_bytes / RECOPY_SHARE } else { self.lane_bytes };
        let full = lane.len() > 0 && lane.booked >= bytes.min(lot_bytes);
        let enumerated = if full { 0 } else { self.granted((room - share).min(waiting)) };
        let mut left = room - enumerated;
        for i in 0..self.slots.len() {
            let slot = SlotId::at((self.turn + i) % self.slots.len());
            let wanted = left.min(queued[slot.index()]);
            if self.trickle {
                // Nothing waits for them: an overflow costs no pass.
                let granted = self.granted(wanted);
                left -= self.admit_recopies(lane, slot, granted, bytes);
                continue;
            }
            // They do not wait for the limiter: the queue would grow with what clients write, and
            // the resync never end.
            let taken = self.admit_recopies(lane, slot, wanted, bytes);
            self.ctx.shared.limiter.book(taken);
            left -= taken;
        }
        for slot in self.slot_ids() {
            left -= self.admit_withdrawals(lane, slot, left);
        }
        left -= self.admit_adoptions(lane, left);
        self.turn = self.turn.wrapping_add(1) % self.slots.len().max(1);
        self.admit_enumerated(lane, enumerated.min(left + enumerated), lot_bytes)
    }

    /// The source's enumeration misses nothing.
    pub(super) fn is_whole(&self) -> bool {
        self.coverage == Coverage::Whole
    }

    fn may_recopy(&self, slot: SlotId) -> bool {
        let judged = matches!(self.hand, Hand::Judging { slot: judged, clean: true, .. } if judged == slot);
        // While the target's own items count, it gets no copies.
        self.fill != Fill::Adopt && !judged && !self.slots[slot.index()].done
    }

    fn granted(&mut self, wanted: usize) -> usize {
        if wanted == 0 {
            return 0;
        }
        let granted = self.ctx.shared.limiter.take(wanted);
        if granted < wanted {
            self.limited_until = Some(self.ctx.shared.limiter.next());
        }
        granted
    }

    /// Up to `limit` keys, and up to `bytes` on the lane; returns how many.
    fn admit_recopies(&mut self, lane: &mut Lane, slot: SlotId, limit: usize, bytes: usize) -> usize {
        let booked = unknown_size(lane);
        let free = bytes.saturating_sub(lane.booked) / booked;
        let limit = limit.min(free.max(usize::from(lane.len() == 0)));
        // Out of the queue before the copy starts: a push during the copy is then kept.
        let keys = self.slots[slot.index()].recopy.take_batch(limit);
        let count = keys.len();
        for key in keys {
            match wire_form(&key) {
                Some(binary) => {
                    self.slots[slot.index()].in_flight += 1;
                    let entry = Entry::new(key, binary, slot, booked, true);
                    lane.admit(if self.trickle || self.fill == Fill::Missed { entry.by_content() } else { entry });
                }
                None => self.failed(slot, &key, "the key cannot be written on the wire"),
            }
        }
        count
    }

    fn admit_enumerated(&mut self, lane: &mut Lane, limit: usize, bytes: usize) -> Result<(), JobError> {
        let spool = self.spool.clone();
        let mut spool = spool.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..limit {
            if (lane.len() > 0 && lane.booked >= bytes) || !self.may_adopt() {
                break;
            }
            let Some(found) = spool.pop().map_err(|e| JobError::Spool(e.to_string()))? else { break };
            let slot = found.slot;
            if self.slots[slot.index()].done {
                continue;
            }
            match wire_form(&found.key) {
                Some(binary) => {
                    self.slots[slot.index()].in_flight += 1;
                    self.streaming += 1;
                    // A key that was not enumerated has no size yet.
                    let booked = if found.size == 0 { unknown_size(lane) } else { found.size as usize + ENTRY_BYTES };
                    let entry = Entry::new(found.key, binary, found.slot, booked, false);
                    lane.admit(match self.fill {
                        Fill::Empty | Fill::Purge => entry,
                        // Nothing of a list asks for cas ids: the source may have none.
                        Fill::Missed => entry.by_content(),
                        Fill::CompareRest | Fill::Compare if !self.sweeping => entry.compared(),
                        Fill::CompareRest | Fill::Compare => entry.swept(self.is_whole(), None),
                        Fill::Adopt => entry.swept(true, Some(0)),
                    });
                }
                None => self.failed(slot, &found.key, "the key cannot be written on the wire"),
            }
        }
        Ok(())
    }

    /// Takes what ended on the lane that has just come in.
    pub(super) fn collect(&mut self) {
        if let Some(mut lane) = self.idle.pop() {
            self.take_ended(&mut lane);
            self.idle.push(lane);
        }
    }

    fn take_ended(&mut self, lane: &mut Lane) {
        for (entry, end) in std::mem::take(&mut lane.ended) {
            let slot = entry.slot;
            let pair = self.slots[slot.index()].pair;
            if end != End::Adopt {
                self.adoption_over(&entry);
            }
            self.slots[slot.index()].marked.note(&entry, end);
            let recopied: fn(&PairProgress) -> &AtomicU64 = |p| &p.recopied;
            let again = entry.recopy && !self.trickle;
            let mine = |enumerated: fn(&PairProgress) -> &AtomicU64| if again { recopied } else { enumerated };
            match end {
                End::Copied(bytes) => {
                    count(&self.ctx, pair, mine(|p| &p.copied), 1);
                    count(&self.ctx, pair, |p| &p.bytes, bytes);
                    if self.leads && self.slots[slot.index()].is_refused() {
                        // It takes items again.
                        self.slots[slot.index()].refused_pause = REFUSED_PAUSE.0;
                        self.slots[slot.index()].refused_at = Instant::now();
                    }
                    self.new_in_pass += u64::from(!entry.recopy);
                }
                // Counted when its source was.
                End::Equal | End::Skipped if self.sweeping && !entry.recopy => {}
                End::Equal | End::Skipped => count(&self.ctx, pair, mine(|p| &p.skipped), 1),
                End::Adopt => {
                    self.adopt(entry, lane);
                    continue;
                }
                End::Refused => {
                    self.failed(slot, &entry.key, "the target takes no such item");
                    if let Some(lone) = &self.slots[slot.index()].lone {
                        lone.insert(&entry.key);
                    }
                }
                End::Requeue => self.slots[slot.index()].recopy.push(entry.key),
                End::NoCas => {
                    self.no_cas = true;
                    self.slots[slot.index()].recopy.push(entry.key);
                }
            }
            self.slots[slot.index()].in_flight -= 1;
            self.streaming -= usize::from(!entry.recopy);
        }
    }

    pub(super) fn failed(&mut self, slot: SlotId, key: &[u8], why: &str) {
        count(&self.ctx, self.slots[slot.index()].pair, |p| &p.failed, 1);
        self.named_failures += 1;
        if self.named_failures <= MAX_NAMED_FAILURES {
            let key = String::from_utf8_lossy(key).into_owned();
            tracing::warn!(target_node = self.target.0, key, why, "an item could not be copied");
        }
    }
}

/// What is booked for a key whose item was not seen yet.
fn unknown_size(lane: &Lane) -> usize {
    if lane.largest == 0 { UNSEEN_BYTES } else { lane.largest }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use bytes::Bytes;
    use futures::future::BoxFuture;
    use tokio::io::duplex;
    use tokio::sync::mpsc;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::super::super::Context;
    use super::super::super::JobEvent;
    use super::super::super::dump::DumpError;
    use super::super::super::entry::Stage;
    use super::super::super::governor::Leave;
    use super::super::super::spool::Spool;
    use super::super::LANE_BYTES;
    use super::*;
    use crate::backend::{Dial, NodeStream};
    use crate::ids::{NodeId, PairId};
    use crate::keys::Recopy;
    use crate::protocol::expiry::Offset;
    use crate::protocol::item::{Item, Seen};

    /// Connects to nodes that take everything and answer nothing.
    struct Deaf(Mutex<Vec<tokio::io::DuplexStream>>);

    impl Dial for Deaf {
        fn dial(&self, _: NodeId) -> BoxFuture<'static, std::io::Result<NodeStream>> {
            let (near, far) = duplex(4096);
            self.0.lock().unwrap().push(far);
            async move { Ok(NodeStream::from(near)) }.boxed()
        }
    }

    /// Of one pair, whose nodes answer nothing.
    pub(in super::super) async fn refill() -> Refill {
        refill_of(mpsc::channel(1).0).await
    }

    async fn refill_of(coordinator: mpsc::Sender<JobEvent>) -> Refill {
        let offset = Offset::seen(1_700_000_000, Duration::ZERO);
        let recopy = BTreeMap::from([(PairId(0), Arc::new(Recopy::new()))]);
        let ctx = Context { recopy, coordinator, ..Context::alone(Arc::new(Deaf(Mutex::default())), 2) };
        let stop = CancellationToken::new();
        let nodes = (NodeId(0), NodeId(1));
        let mut refill = Refill::new(Arc::new(ctx), nodes, Fill::Empty, offset, vec![PairId(0)], 1, stop);
        refill.connect().await.unwrap();
        refill
    }

    /// The keys of a source whose crawler stands still come from its clients, until it goes on.
    #[tokio::test(start_paused = true)]
    async fn what_clients_read_is_copied_while_the_crawler_stands_still() {
        let (coordinator, mut told) = mpsc::channel(1);
        let mut refill = refill_of(coordinator).await;
        let turn = refill.ctx.shared.crawls.turn(refill.source, Duration::ZERO).await.unwrap();
        refill.passes = 1;
        refill.end_pass(Err(DumpError::StandsStill)).await.unwrap();
        assert!(matches!(told.try_recv(), Ok(JobEvent::CannotEnumerate { .. })) && refill.trickle);
        refill.decide().await.unwrap();
        let mut over = refill.pass.take().expect("it is waited for");
        assert!(over.as_mut().now_or_never().is_none());
        drop(turn);
        assert!(matches!(over.await, Err(DumpError::Busy)), "the job ends, and the next one lists");
    }

    #[tokio::test(start_paused = true)]
    async fn a_spool_that_fails_loses_no_lane() {
        let mut refill = refill().await;
        for lane in &mut refill.idle {
            let mut entry = Entry::new(Bytes::from_static(b"k"), false, SlotId::ONLY, 0, true);
            let seen = Seen { ttl: -1, asked: Duration::ZERO, answered: Duration::ZERO, shown: None };
            let item = Item { value: Bytes::new(), flags: 0, cas: 7, seen, binary: false };
            entry.stage = Stage::Verify { item, bytes: 0, copy: 3 };
            lane.admit(entry);
        }
        refill.spool = Arc::new(Mutex::new(Spool::broken()));
        assert!(matches!(refill.feed(), Err(JobError::Spool(_))));
        assert_eq!(refill.idle.iter().map(Lane::len).collect::<Vec<_>>(), [1; 4]);
        assert!(refill.running.is_empty());
    }

    async fn with_keys(count: usize, size: u32) -> Refill {
        let mut refill = refill().await;
        let mut spool = Spool::new(1 << 20);
        (0..count).for_each(|i| spool.push(SlotId::ONLY, size, format!("key:{i}").as_bytes()).unwrap());
        refill.spool = Arc::new(Mutex::new(spool));
        refill
    }

    #[tokio::test(start_paused = true)]
    async fn a_resync_that_yields_takes_small_lots_on_one_lane_and_rests_after() {
        for (size, lot) in [(100, 32), (1 << 20, 1)] {
            let mut refill = with_keys(5_000, size).await;
            refill.lane_bytes = 1 << 20;
            let pace = refill.ctx.shared.pace.clone();
            pace.set(Leave::Share(0.0));
            refill.feed().unwrap();
            assert_eq!((refill.running.len(), refill.streaming), (1, lot), "items of {size} bytes");
            // Nothing more as long as that one is not answered; nor before the rest is over.
            refill.feed().unwrap();
            assert_eq!(refill.streaming, lot);
            refill.running.clear();
            pace.worked(Duration::from_millis(1));
            refill.feed().unwrap();
            assert_eq!((refill.running.len(), refill.streaming), (0, lot));
            let until = refill.next_timer().unwrap();
            assert!(until > Instant::now() && until <= Instant::now() + Duration::from_millis(100));
            tokio::time::sleep_until(until).await;
            refill.feed().unwrap();
            assert_eq!(refill.streaming, 2 * lot);
            // All lanes, and full lots, as soon as nobody is there.
            refill.running.clear();
            let mut refill = with_keys(5_000, 100).await;
            refill.feed().unwrap();
            assert_eq!((refill.running.len(), refill.streaming), (4, 4 * 512));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_holds_no_more_bytes_than_its_bound() {
        const SIZE: u32 = 64 << 10;
        let mut refill = with_keys(5_000, SIZE).await;
        refill.feed().unwrap();
        // The last item may be the one that passes it.
        assert_eq!(refill.streaming, 4 * LANE_BYTES.div_ceil(SIZE as usize + ENTRY_BYTES));
    }

    #[tokio::test(start_paused = true)]
    async fn what_clients_make_urgent_does_not_wait_for_the_rest() {
        let mut refill = with_keys(5_000, 100).await;
        refill.ctx.shared.pace.set(Leave::Share(0.0));
        refill.ctx.shared.pace.worked(Duration::from_secs(1));
        refill.feed().unwrap();
        assert_eq!((refill.running.len(), refill.resting_until.is_some()), (0, true));
        // More re-copies than are done in passing: they go, and what was enumerated waits.
        for i in 0..4_000 {
            refill.slots[0].recopy.push(Bytes::from(format!("hot:{i}")));
        }
        refill.idle.iter_mut().for_each(|lane| lane.largest = 600);
        refill.feed().unwrap();
        assert_eq!((refill.running.len(), refill.streaming, refill.slots[0].recopy.len()), (4, 0, 4_000 - 4 * 512));
        // A flush_all waits for the lanes to be empty.
        let mut refill = with_keys(5_000, 100).await;
        refill.ctx.shared.pace.set(Leave::Share(0.0));
        refill.ctx.shared.pace.worked(Duration::from_secs(1));
        let _flush = refill.ctx.shared.quiesce.clone().try_write_owned().unwrap();
        assert!(refill.is_urgent());
        refill.feed().unwrap();
        assert!(refill.flush.is_some() && refill.running.is_empty());
    }
}
