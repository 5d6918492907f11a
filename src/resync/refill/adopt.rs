//! Items that only the target holds, on their way to the leader.

use std::collections::VecDeque;
use std::time::Duration;

use futures::future::FutureExt;
use tokio::time::Instant;

use super::super::entry::Entry;
use super::super::lane::Lane;
use super::super::spool::SlotId;
use super::super::{JobError, JobEvent, Settlement};
use super::feed::MAX_NAMED_FAILURES;
use super::{Refill, ask, count};
use crate::ambient;

/// Items under way to their owners at once.
const WINDOW: usize = 256;
/// How often an item that its owner could not add is tried, with a pause that doubles; then the
/// leader counts as refusing it.
const TRIES: u8 = 5;
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is tried from then on. The target's is the only copy: it is kept until the leader
/// takes it, or clients end it.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// This many are tried: 300 bytes each, some 5 MB.
const MAX_REFUSED: usize = 16 * 1024;

/// An item that was sent to its owner, and what became of it.
pub(super) struct Adopting {
    entry: Entry,
    bytes: usize,
    end: Result<Settlement, JobError>,
}

impl Refill {
    /// Whether more keys may be looked at that may have to be adopted.
    pub(super) fn may_adopt(&self) -> bool {
        self.adopting.len() < WINDOW && self.adopting_bytes < self.lane_bytes
    }

    /// Sends what `entry` found to the key's owner.
    pub(super) fn adopt(&mut self, mut entry: Entry, lane: &Lane) {
        let slot = entry.slot;
        let Some(item) = entry.found.take() else { return self.settled(slot) };
        let Some(exptime) = lane.offsets().to_source(&item.seen, ambient::date(Instant::now())) else {
            return self.settled(slot);
        };
        let (pair, key, bytes) = (self.slots[slot.index()].pair, entry.key.clone(), item.value.len());
        self.adopting_bytes += bytes;
        let asked = ask(self.ctx.clone(), move |reply| JobEvent::Adopt {
            pair,
            key,
            value: item.value,
            flags: item.flags,
            exptime,
            reply,
        });
        // Read before a flush, it must not be added after it.
        let quiesce = lane.quiesce.clone();
        self.adopting.push(
            async move {
                let end = asked.await;
                drop(quiesce);
                Adopting { entry, bytes, end }
            }
            .boxed(),
        );
    }

    /// What became of it.
    pub(super) fn adopted(&mut self, adopted: Adopting) -> Result<(), JobError> {
        let Adopting { mut entry, bytes, end } = adopted;
        let slot = entry.slot;
        self.adopting_bytes -= bytes;
        let end = end?;
        if end == Settlement::Failed {
            let tries = entry.adopts.unwrap_or(0).saturating_add(1).min(TRIES);
            let now = Instant::now();
            let before = entry.adopts.replace(tries);
            if tries == TRIES && before != Some(TRIES) {
                self.refused_by_leader(slot, &entry.key);
            }
            if tries < TRIES {
                self.adopt_again.push_back((entry, now + PAUSE * 2_u32.pow(tries.into())));
            } else if self.refused_adoptions.len() < MAX_REFUSED {
                self.refused_adoptions.push_back((entry, now + REFUSED_PAUSE));
            } else {
                // The next resync lists them again.
                return Err(JobError::AdoptionRefused(self.source));
            }
            return Ok(());
        }
        self.adoption_over(&entry);
        match end {
            Settlement::Done => count(&self.ctx, self.slots[slot.index()].pair, |p| &p.adopted, 1),
            // Compared like any key that clients write: if they deleted it, it goes.
            _ => self.slots[slot.index()].recopy.push(entry.key),
        }
        self.settled(slot);
        Ok(())
    }

    /// The key has one copy, and stays so until the leader takes it.
    fn refused_by_leader(&mut self, slot: SlotId, key: &[u8]) {
        if let Some(lone) = &self.slots[slot.index()].lone {
            lone.insert(key);
        }
        self.named_failures += 1;
        if self.named_failures <= MAX_NAMED_FAILURES {
            let key = String::from_utf8_lossy(key).into_owned();
            tracing::warn!(
                source_node = self.source.0,
                key,
                "the leader refuses an item that only the follower holds: it is kept there, and tried again"
            );
        }
    }

    /// Adopted, or ended by a client: what was said of it before is over.
    pub(super) fn adoption_over(&self, entry: &Entry) {
        if entry.adopts == Some(TRIES)
            && let Some(lone) = &self.slots[entry.slot.index()].lone
        {
            lone.remove(&entry.key);
        }
    }

    /// Gives the lane those that are due to be looked at again.
    pub(super) fn admit_adoptions(&mut self, lane: &mut Lane, limit: usize) -> usize {
        let now = Instant::now();
        for taken in 0..limit {
            let waiting = [&mut self.adopt_again, &mut self.refused_adoptions];
            let due = |queue: &&mut VecDeque<(Entry, Instant)>| queue.front().is_some_and(|(_, at)| *at <= now);
            let next = waiting.into_iter().find(due).and_then(VecDeque::pop_front);
            let Some((entry, _)) = next else { return taken };
            let adopts = entry.adopts;
            lane.admit(entry.again().swept(true, adopts));
        }
        limit
    }

    fn settled(&mut self, slot: SlotId) {
        self.slots[slot.index()].in_flight -= 1;
        self.streaming -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::feed::tests::refill;
    use super::*;
    use crate::ids::NodeId;
    use crate::keys::{Lone, MissedBudget};

    /// Of a key that was tried so often before.
    fn tried(key: usize, tries: u8, end: Settlement) -> Adopting {
        let entry = Entry::new(Bytes::from(format!("key:{key}")), false, SlotId::ONLY, 0, true);
        Adopting { entry: entry.swept(true, Some(tries)), bytes: 0, end: Ok(end) }
    }

    async fn with_lone() -> (Refill, Arc<Lone>) {
        let mut refill = refill().await;
        let lone = Arc::new(Lone::new(Arc::new(MissedBudget::new(1 << 30))));
        refill.slots[0].lone = Some(lone.clone());
        (refill, lone)
    }

    /// Past the bound the job ends, for the next one lists them again; each of them is counted.
    #[tokio::test(start_paused = true)]
    async fn a_leader_that_refuses_more_than_are_tried_again_ends_the_job() {
        let (mut refill, lone) = with_lone().await;
        for key in 0..MAX_REFUSED {
            assert_eq!(refill.adopted(tried(key, TRIES - 1, Settlement::Failed)), Ok(()));
        }
        assert_eq!((refill.refused_adoptions.len(), lone.len()), (MAX_REFUSED, MAX_REFUSED));
        let over = refill.adopted(tried(MAX_REFUSED, TRIES - 1, Settlement::Failed));
        assert_eq!(over, Err(JobError::AdoptionRefused(NodeId(0))));
        assert_eq!((refill.refused_adoptions.len(), lone.len()), (MAX_REFUSED, MAX_REFUSED + 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_again_is_kept_until_the_leader_takes_it() {
        let (mut refill, lone) = with_lone().await;
        (refill.slots[0].in_flight, refill.streaming) = (1, 1);
        for tries in [TRIES - 2, TRIES - 1, TRIES, TRIES] {
            assert_eq!(refill.adopted(tried(0, tries, Settlement::Failed)), Ok(()));
        }
        assert_eq!((refill.adopt_again.len(), refill.refused_adoptions.len()), (1, 3));
        assert_eq!((lone.len(), lone.inserted()), (1, 1), "told once");
        assert_eq!(refill.adopted(tried(0, TRIES, Settlement::Done)), Ok(()));
        assert_eq!((lone.len(), refill.slots[0].in_flight), (0, 0));
    }
}
