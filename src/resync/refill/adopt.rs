//! Items that only the target holds, on their way to the leader.

use std::time::Duration;

use futures::future::FutureExt;
use tokio::time::Instant;

use super::super::entry::Entry;
use super::super::lane::Lane;
use super::super::{JobError, JobEvent, Settled};
use super::{Refill, ask, count};

/// Items under way to their owners at once.
const WINDOW: usize = 256;
/// An item that its owner could not add is looked at again so often; then the leader is taken at its word, and the target's is dropped.
const TRIES: u8 = 5;
/// The first pause before that, doubling.
const PAUSE: Duration = Duration::from_millis(50);

/// An item that was sent to its owner, and what became of it.
pub(super) struct Adopting {
    entry: Entry,
    bytes: usize,
    end: Result<Settled, JobError>,
}

impl Refill {
    /// Whether more keys may be looked at that may have to be adopted.
    pub(super) fn may_adopt(&self) -> bool {
        self.adopting.len() < WINDOW && self.adopting_bytes < self.lane_bytes
    }

    /// Sends what `entry` found to the key's owner.
    pub(super) fn adopt(&mut self, mut entry: Entry, lane: &Lane) {
        let slot = entry.slot as usize;
        let Some(item) = entry.found.take() else { return self.settled(slot) };
        let Some(exptime) = lane.offsets().to_source(&item.seen, Instant::now()) else { return self.settled(slot) };
        let (pair, key, bytes) = (self.slots[slot].pair, entry.key.clone(), item.value.len());
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
        let slot = entry.slot as usize;
        self.adopting_bytes -= bytes;
        match end? {
            Settled::Done => count(&self.ctx, self.slots[slot].pair, |p| &p.adopted, 1),
            // Compared like any key that clients write: if they deleted it, it goes.
            Settled::Superfluous => self.slots[slot].recopy.push(entry.key),
            Settled::Failed => {
                let tries = entry.adopts.unwrap_or(0) + 1;
                if tries < TRIES {
                    entry.adopts = Some(tries);
                    self.adopt_again.push_back((entry, Instant::now() + PAUSE * 2_u32.pow(tries.into())));
                    return Ok(());
                }
                self.failed(slot, &entry.key, "the leader does not take what only the target holds");
                self.slots[slot].recopy.push(entry.key);
            }
        }
        self.settled(slot);
        Ok(())
    }

    /// Gives the lane those that are due to be looked at again.
    pub(super) fn admit_adoptions(&mut self, lane: &mut Lane, limit: usize) -> usize {
        let now = Instant::now();
        for taken in 0..limit {
            if self.adopt_again.front().is_none_or(|(_, at)| *at > now) {
                return taken;
            }
            let Some((entry, _)) = self.adopt_again.pop_front() else { return taken };
            let adopts = entry.adopts;
            lane.admit(entry.again().swept(true, adopts));
        }
        limit
    }

    fn settled(&mut self, slot: usize) {
        self.slots[slot].in_flight -= 1;
        self.streaming -= 1;
    }
}
