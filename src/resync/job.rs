//! One job from its beginning to its end.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::oneshot;

use super::node_stats::node_stats;
use super::progress::Phase;
use super::purge::{purge, purge_missed};
use super::refill::Refill;
use super::{Context, Fill, JobError, JobEvent, JobSpec, Outcome};
use crate::backend::Pipe;
use crate::ids::{NodeId, PairId};
use crate::protocol::expiry::Offset;
use crate::rules::{Rule, holds};

/// Runs a job: purge, barrier, copy, hand back, as the head of [`crate::resync`] tells. To stop it,
/// cancel its token and go on awaiting; dropping the future instead loses the knowledge of what is
/// outstanding on the target.
pub async fn run(spec: JobSpec, ctx: Context) -> Outcome {
    let ctx = Arc::new(ctx);
    let _at_work = ctx.shared.pace.job();
    ctx.progress.set_phase(Phase::Preparing);
    // Until the first copy is made, a target that missed nothing may lead if the leader's memory is
    // lost.
    let undone = spec.fill == Fill::Empty || spec.fill == Fill::Adopt && ctx.written.is_empty();
    let mut outcome = Outcome { result: Ok(()), drains: Vec::new(), undone, copies_left: false };
    match ctx.connect(spec.target).await {
        Err(error) => outcome.result = Err(JobError::Target(error)),
        Ok(mut pipe) => {
            outcome.result = steps(&spec, &ctx, &mut pipe, &mut outcome).await;
            if pipe.owes_mutations() {
                outcome.drains.push(pipe.into_drain());
            } else {
                count_evictions(&spec, &ctx, &mut pipe).await;
            }
        }
    }
    ctx.progress.set_phase(Phase::Finished);
    outcome
}

/// Also of a job that ended early, which may have handed pairs back.
async fn count_evictions(spec: &JobSpec, ctx: &Context, pipe: &mut Pipe) {
    let mut stats = node_stats(pipe, ctx).await;
    if stats.is_err() {
        // It was idle all the time that the lanes were at work: the node may have closed it.
        if let Ok(mut pipe) = ctx.connect(spec.target).await {
            stats = node_stats(&mut pipe, ctx).await;
        }
    }
    // If it does not answer, the control plane asks when it does.
    if let Ok(stats) = stats {
        ctx.progress.end_evictions(stats.evictions);
    }
}

async fn steps(spec: &JobSpec, ctx: &Arc<Context>, pipe: &mut Pipe, outcome: &mut Outcome) -> Result<(), JobError> {
    let stats = node_stats(pipe, ctx).await.map_err(JobError::Target)?;
    ctx.progress.begin_evictions(stats.evictions);
    if !stats.has_cas {
        return Err(JobError::blind(spec.target));
    }
    let mut purged = HashSet::new();
    match spec.fill {
        Fill::Empty | Fill::Compare => {}
        Fill::Purge if !holds(Rule::PurgeBeforeFill) => {}
        Fill::Purge => {
            ctx.progress.set_phase(Phase::Purging);
            purge(spec, ctx, pipe).await?;
            // Before, it held what it had missed writes of: nothing that may ever lead.
            outcome.undone = true;
        }
        // This first purge is the only protection: the second one, behind the barrier, is of a node
        // being filled.
        Fill::Missed | Fill::CompareRest if !holds(Rule::MissedPurgedBeforeLead) => {}
        Fill::Missed => {
            ctx.progress.set_phase(Phase::Purging);
            purged = purge_missed(&ctx.missed, ctx, pipe, &purged).await?;
        }
        Fill::CompareRest => {
            ctx.progress.set_phase(Phase::Purging);
            purge_if_listed(ctx, pipe).await?;
        }
        Fill::Adopt => purged = purge_missed(&ctx.written, ctx, pipe, &purged).await?,
    }
    ctx.progress.set_phase(Phase::Barrier);
    if !ask(ctx, |reply| JobEvent::Purged { reply }).await? {
        return Err(JobError::Aborted);
    }
    if spec.fill == Fill::CompareRest {
        outcome.undone = purge_if_listed(ctx, pipe).await?;
    }
    if let Fill::Missed | Fill::Adopt = spec.fill {
        // Clients went on writing to the leader alone until the barrier. Unguarded, as before it:
        // what a worker may have stored since is copied like the others.
        let lists = if spec.fill == Fill::Missed { &ctx.missed } else { &ctx.written };
        purge_missed(lists, ctx, pipe, &purged).await?;
        outcome.undone = true;
    }
    ctx.progress.set_phase(Phase::Copying);
    if spec.fill != Fill::Adopt {
        return refill(spec, spec.fill, stats.offset, ctx, outcome).await;
    }
    if !ask(ctx, |reply| JobEvent::Adopting { reply }).await? {
        return Err(JobError::Aborted);
    }
    refill(spec, Fill::Adopt, stats.offset, ctx, outcome).await?;
    // A copy that is cut off before its verify must not be taken for an item that only the target
    // holds.
    if !ask(ctx, |reply| JobEvent::AllAdopted { reply }).await? {
        return Err(JobError::Aborted);
    }
    refill(spec, Fill::Compare, stats.offset, ctx, outcome).await
}

/// Deletes what the target is known to have missed, all of it each time: what the proxy before sent
/// may have landed since. Returns whether that is known. Every key is compared in any case, and a
/// list that was given up is one only of what the target may lead without.
async fn purge_if_listed(ctx: &Arc<Context>, pipe: &mut Pipe) -> Result<bool, JobError> {
    match purge_missed(&ctx.missed, ctx, pipe, &HashSet::new()).await {
        Err(JobError::MissedTooMany) => Ok(false),
        purged => purged.map(|_| true),
    }
}

/// Fills the target from all sources at once.
async fn refill(
    spec: &JobSpec,
    fill: Fill,
    offset: Offset,
    ctx: &Arc<Context>,
    outcome: &mut Outcome,
) -> Result<(), JobError> {
    let mut by_source: BTreeMap<NodeId, Vec<PairId>> = BTreeMap::new();
    for &(pair, source) in &spec.pairs {
        by_source.entry(source).or_default().push(pair);
    }
    // A failure of one source ends the job: its token stops the others, which undo what is
    // unverified.
    let stop = ctx.cancel.child_token();
    let sources = by_source.len();
    ctx.progress.begin_listing(sources);
    let mut running: FuturesUnordered<_> = by_source
        .into_iter()
        .map(|(source, pairs)| {
            let mut refill =
                Refill::new(ctx.clone(), (source, spec.target), fill, offset, pairs, sources, stop.clone());
            refill.leads = spec.leads;
            refill.run()
        })
        .collect();
    let mut result = Ok(());
    while let Some(end) = running.next().await {
        outcome.drains.extend(end.drains);
        outcome.undone &= end.undone;
        outcome.copies_left |= !end.undone;
        if let Err(error) = end.result {
            stop.cancel();
            // The first real error is the job's: the others were merely stopped by it.
            if matches!(result, Ok(()) | Err(JobError::Cancelled)) {
                result = Err(error);
            }
        }
    }
    result
}

/// Asks the control plane and waits for its answer, however long its barrier takes; it ends the
/// wait by cancelling.
async fn ask(ctx: &Context, event: impl FnOnce(oneshot::Sender<bool>) -> JobEvent) -> Result<bool, JobError> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        ctx.coordinator.send(event(reply)).await.map_err(|_| JobError::Aborted)?;
        answer.await.map_err(|_| JobError::Aborted)
    };
    ctx.cancel.run_until_cancelled(asked).await.ok_or(JobError::Cancelled)?
}
