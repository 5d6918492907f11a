//! Where the keys come from: passes over the source, sweeps over the target, the list of what it
//! missed, or the reads of clients.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use futures::future::FutureExt;
use tokio::time::Instant;

use crate::ids::{NodeId, PairId, is_reserved};
use crate::resync::dump::{Coverage, DumpError};
use crate::resync::enumerate::enumerate;
use crate::resync::spool::SlotId;
use crate::resync::{Fill, JobError, JobEvent};

use super::{Refill, count};

/// Passes over a target that is compared, where a pass may miss items.
const LEAKY_SWEEPS: usize = 3;

impl Refill {
    pub(super) async fn begin_pass(&mut self) -> Result<(), JobError> {
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
    pub(super) fn begin_sweep(&mut self) {
        self.sweeping = true;
        self.sweeps -= 1;
        self.begin_enumeration(self.target);
    }

    pub(super) fn begin_enumeration(&mut self, node: NodeId) {
        let sweeping = self.sweeping;
        let (ctx, spool, work) = (self.ctx.clone(), self.spool.clone(), self.work.clone());
        let open = self.slots.iter().enumerate().filter(|(_, slot)| !slot.done);
        let slots: BTreeMap<PairId, SlotId> = open.map(|(i, slot)| (slot.pair, SlotId::at(i))).collect();
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
    pub(super) async fn list_missed(&mut self) -> Result<bool, JobError> {
        let mut lists = Vec::new();
        for (i, slot) in self.slots.iter().enumerate().filter(|(_, slot)| !slot.done) {
            let Some(missed) = self.ctx.missed.get(&slot.pair) else { return Ok(false) };
            match missed.list().await {
                Some(keys) => lists.push((SlotId::at(i), slot.pair, keys)),
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

    pub(super) async fn end_pass(&mut self, coverage: Result<Coverage, DumpError>) -> Result<(), JobError> {
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
    /// again. Each is read, added and verified like any other, so what is there is right; but keys
    /// that no client reads never come, so no pair is handed back. Ends when cancelled, or with a
    /// node.
    pub(super) async fn begin_trickle(&mut self, why: String) -> Result<(), JobError> {
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
    pub(super) async fn wait_for_crawler(&mut self) -> Result<(), JobError> {
        self.begin_trickle("its crawler stands still in a dump".to_owned()).await?;
        let (crawls, source) = (self.ctx.shared.crawls.clone(), self.source);
        self.pass = Some(
            async move {
                crawls.is_free(source).await;
                Err(DumpError::Busy)
            }
            .boxed(),
        );
        Ok(())
    }
}
