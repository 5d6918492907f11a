//! Emptying the target of a job's pairs before it is filled.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use tokio::time::Instant;

use super::dump::Coverage;
use super::enumerate::enumerate;
use super::spool::{SlotId, Spool};
use super::{Context, Fill, JobError, JobSpec, Outcome};
use crate::backend::{Batch, Pipe};
use crate::ids::{NodeId, PairId, is_reserved};
use crate::keys::Missed;
use crate::protocol::item::{Answer, Code};
use crate::protocol::key::{Key, wire_form};
use crate::protocol::node;

/// Passes before a purge is given up: something keeps writing these keys to the target, past the
/// proxy.
const MAX_PASSES: usize = 20;
/// Passes in a row that must find nothing where a pass may miss items.
const EMPTY_LEAKY_PASSES: usize = 3;
/// Deletes sent at once.
const BATCH: usize = 1024;

/// Deletes from the target every key of the job's pairs, and every key that the target does not own
/// at all (leftovers of another ring), pass after pass until one finds nothing. Reserved keys stay.
///
/// Never by `flush_all`: it would wipe the target's other pairs, leaves survivors under load from
/// 1.6.25 on (seen: 3,987 of 2,400,000), and a delayed one that comes later brings all back to
/// life.
pub(super) async fn purge(spec: &JobSpec, ctx: &Context, pipe: &mut Pipe) -> Result<(), JobError> {
    let pairs: BTreeSet<PairId> = spec.pairs.iter().map(|&(pair, _)| pair).collect();
    let mut empty_passes = 0;
    for _ in 0..MAX_PASSES {
        let mut spool = Spool::new(ctx.tuning.memory_bytes / 2);
        let disk = spool.disk();
        let walk = enumerate(ctx, spec.target, &disk, |line| {
            let pair = (ctx.owner)(line.key);
            let stays = !pairs.contains(&pair) && (ctx.holds)(spec.target, pair);
            if stays || is_reserved(line.key) {
                return Ok(());
            }
            spool.push(SlotId::ONLY, line.size, line.key)
        });
        let walked = ctx.cancel.run_until_cancelled(walk).await.ok_or(JobError::Cancelled)?;
        let coverage = walked.map_err(|e| JobError::of_dump(spec.target, None, e))?;
        if spool.len() == 0 {
            empty_passes += 1;
            if coverage == Coverage::Whole || empty_passes >= EMPTY_LEAKY_PASSES {
                return Ok(());
            }
            continue;
        }
        empty_passes = 0;
        if !delete_all(&mut spool, ctx, pipe).await? && coverage == Coverage::Whole {
            // All that was found can be addressed by no client of the proxy either.
            return Ok(());
        }
    }
    Err(JobError::PurgeUnfinished { passes: MAX_PASSES })
}

/// Deletes from the target what it is known to have missed. Returns the keys; `None` where the list
/// was given up.
///
/// A key that cannot be written on the wire cannot be read by a client either.
pub(super) async fn purge_missed(
    lists: &BTreeMap<PairId, Arc<Missed>>,
    ctx: &Context,
    pipe: &mut Pipe,
    known: &HashSet<Bytes>,
) -> Result<HashSet<Bytes>, JobError> {
    let mut all = HashSet::new();
    let mut spool = Spool::new(ctx.tuning.memory_bytes / 2);
    for missed in lists.values() {
        let keys = missed.list().await.ok_or(JobError::MissedTooMany)?;
        for (i, key) in keys.into_iter().enumerate() {
            if i % BATCH == BATCH - 1 {
                // The control plane shares the thread.
                tokio::task::yield_now().await;
            }
            if !known.contains(&key) {
                spool.push(SlotId::ONLY, 0, &key).map_err(|e| JobError::Spool(e.to_string()))?;
            }
            all.insert(key);
        }
    }
    delete_all(&mut spool, ctx, pipe).await?;
    Ok(all)
}

/// Deletes every key that a node does not own.
pub async fn clean(node: NodeId, ctx: Context) -> Outcome {
    let _at_work = ctx.shared.pace.job();
    let mut outcome = Outcome { result: Ok(()), drains: Vec::new(), undone: true, copies_left: false };
    match ctx.connect(node).await {
        Err(error) => outcome.result = Err(JobError::Target(error)),
        Ok(mut pipe) => {
            let spec = JobSpec { target: node, pairs: Vec::new(), fill: Fill::Purge, leads: false };
            outcome.result = purge(&spec, &ctx, &mut pipe).await;
            if pipe.owes_mutations() {
                outcome.drains.push(pipe.into_drain());
            }
        }
    }
    outcome
}

/// Whether any delete was sent.
async fn delete_all(spool: &mut Spool, ctx: &Context, pipe: &mut Pipe) -> Result<bool, JobError> {
    let mut any = false;
    let mut keys = Vec::with_capacity(BATCH);
    loop {
        if ctx.cancel.is_cancelled() {
            return Err(JobError::Cancelled);
        }
        ctx.shared.pace.rest().await;
        let most = ctx.shared.pace.batch(BATCH);
        let mut batch = Batch::new();
        keys.clear();
        spool.ready().await;
        while keys.len() < most
            && let Some(found) = spool.pop().map_err(|e| JobError::Spool(e.to_string()))?
        {
            let Some(binary) = wire_form(&found.key) else { continue };
            batch.add(|out| node::md(out, Key::new(&found.key, binary), None));
            keys.push(found.key);
        }
        if keys.is_empty() {
            if spool.len() > 0 {
                continue;
            }
            return Ok(any);
        }
        any = true;
        let mut deleted = 0;
        let begun = Instant::now();
        let done = pipe.transfer(batch, ctx.tuning.target_timeout, |i, frame| {
            let key = keys.get(i).ok_or("an answer too many")?;
            match Answer::to(key, &frame)?.code {
                Code::Done => deleted += 1,
                Code::Missing => {}
                code => return Err(format!("unexpected {code:?} to a delete")),
            }
            Ok(())
        });
        done.await.map_err(JobError::Target)?;
        ctx.shared.pace.worked(begun.elapsed());
        ctx.progress.purged.fetch_add(deleted, Relaxed);
    }
}
