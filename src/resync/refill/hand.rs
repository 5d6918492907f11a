//! The hand-back of one pair, a step at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::future::{BoxFuture, FutureExt};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::resync::progress::PairProgress;
use crate::resync::spool::SlotId;
use crate::resync::{Context, JobError, JobEvent, Verdict};

use super::Refill;
use super::slot::{REFUSED_PAUSE, Slot};

const REFUSED_KEYS: usize = 64;

/// How far the hand-back of one pair is; one at a time per source.
pub(super) enum Hand {
    Idle,
    Asking { slot: SlotId, reply: BoxFuture<'static, Result<bool, JobError>> },
    Draining { slot: SlotId, until: Instant },
    Judging { slot: SlotId, clean: bool, reply: BoxFuture<'static, Result<Verdict, JobError>> },
}

pub(super) enum Answered {
    Ready(Result<bool, JobError>),
    Drained(Result<Verdict, JobError>),
}

impl Hand {
    /// The control plane's next answer. Safe to drop and call again.
    pub(super) async fn answer(&mut self) -> Answered {
        match self {
            Hand::Asking { reply, .. } => Answered::Ready(reply.await),
            Hand::Judging { reply, .. } => Answered::Drained(reply.await),
            Hand::Idle | Hand::Draining { .. } => std::future::pending().await,
        }
    }
}

impl Refill {
    /// A pair of which the target refused items is not handed back to it: the items are on the
    /// other node alone, which goes on leading, and their keys are tried again.
    pub(super) fn retry_refused(&mut self, now: Instant) {
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

    pub(super) fn drained(&mut self, slot: SlotId, clean: bool) {
        let pair = self.slots[slot.index()].pair;
        let reply = ask(self.ctx.clone(), move |reply| JobEvent::Drained { pair, clean, reply });
        self.hand = Hand::Judging { slot, clean, reply };
    }

    pub(super) fn answered(&mut self, answer: Answered) -> Result<(), JobError> {
        let now = Instant::now();
        match (std::mem::replace(&mut self.hand, Hand::Idle), answer) {
            (Hand::Asking { slot, .. }, Answered::Ready(closed)) => {
                if closed? {
                    self.hand = Hand::Draining { slot, until: now + self.ctx.tuning.gate_budget };
                } else {
                    self.slots[slot.index()].later(now);
                }
            }
            (Hand::Judging { slot, clean, .. }, Answered::Drained(verdict)) => match verdict? {
                Verdict::Mirrored if clean => self.is_mirrored(slot),
                Verdict::Again => self.slots[slot.index()].later(now),
                // Mirrored without having been clean would leave copies in flight: never trusted.
                Verdict::Mirrored | Verdict::Abort => return Err(JobError::Aborted),
            },
            _ => {}
        }
        Ok(())
    }
}

pub(super) fn ask<T: Send + 'static>(
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
