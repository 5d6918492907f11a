//! `flush_all`: a barrier over all pairs. Close every gate, let copies in flight finish, flush every reachable node with its markers
//! re-set in the same write, open, answer. Sent to two nodes at once instead, 20 to 60 keys ended on one node only in 7 of 10 flushes.
//!
//! A *delayed* flush is kept here and run when it is due: the nodes never see a delay, which any later flush would overwrite.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedRwLockWriteGuard;

use crate::backend::MarkError;
use crate::backend::marker::{self, Fact, Record};
use crate::ids::{NodeId, PairId};
use crate::pair::{self, Gate, Loss, Reason, State};
use crate::proxy::Command;

use super::ask::Asker;
use super::nodes::reason_of_mark;
use super::{Cluster, Internal};

/// Delayed flushes kept at once; more are refused.
const MAX_DELAYED: usize = 1024;

/// Exptimes above this many seconds are absolute unix times.
const RELATIVE_MAX: i64 = 60 * 60 * 24 * 30;

/// What is under way.
#[derive(Default)]
pub(super) struct Flushes {
    /// Clients waiting for the flush that is running.
    running: Option<Running>,
    /// Asked for while one runs: the next one answers them.
    queued: Vec<Option<Asker>>,
    delayed: usize,
}

struct Running {
    askers: Vec<Option<Asker>>,
    /// Held while nodes are flushed: no copy is in flight.
    guard: Option<OwnedRwLockWriteGuard<()>>,
    /// Nodes whose flush is unanswered; `None` before it was sent.
    waiting: Option<BTreeSet<NodeId>>,
    /// Whether any node was flushed, and which refuse the command (`-F`), with their words.
    flushed: bool,
    refused: Vec<(NodeId, String)>,
}

impl Running {
    fn new(askers: Vec<Option<Asker>>) -> Running {
        Running { askers, guard: None, waiting: None, flushed: false, refused: Vec::new() }
    }
}

impl Flushes {
    pub(super) fn is_active(&self) -> bool {
        self.running.is_some()
    }

    /// Whether gates that would open must stay closed. Not yet while copies in flight are waited for: a fail-over is not to wait too.
    pub(super) fn holds_gates(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.guard.is_some())
    }
}

impl Cluster {
    pub(super) fn flush_all(&mut self, asker: Asker, delay: i64) {
        let delay = if delay > RELATIVE_MAX { delay - crate::ambient::unix_time().as_secs() as i64 } else { delay };
        if delay <= 0 {
            return self.begin_flush(Some(asker));
        }
        if self.flush.delayed >= MAX_DELAYED {
            return self.answer(asker, Bytes::from_static(b"SERVER_ERROR too many delayed flushes are pending\r\n"));
        }
        self.flush.delayed += 1;
        let internal = self.internal.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(delay as u64)).await;
            let _ = internal.send(Internal::FlushDue);
        });
        self.answer(asker, Bytes::from_static(b"OK\r\n"));
    }

    pub(super) fn flush_due(&mut self) {
        self.flush.delayed = self.flush.delayed.saturating_sub(1);
        tracing::info!("a delayed flush_all is due");
        self.begin_flush(None);
    }

    fn begin_flush(&mut self, asker: Option<Asker>) {
        if self.flush.is_active() {
            self.flush.queued.push(asker);
            return;
        }
        self.flush.running = Some(Running::new(vec![asker]));
        let (quiesce, internal) = (self.quiesce.clone(), self.internal.clone());
        tokio::spawn(async move {
            let guard = quiesce.write_owned().await;
            let _ = internal.send(Internal::Quiesced { guard });
        });
    }

    /// No copy is in flight any more, and none begins: now the gates.
    pub(super) fn quiesced(&mut self, guard: OwnedRwLockWriteGuard<()>) {
        let Some(running) = &mut self.flush.running else { return };
        running.guard = Some(guard);
        for pair in self.topology.pairs() {
            if self.pairs[pair.index()].pair.gate() == Gate::Open && !self.pairs[pair.index()].held_for_flush {
                self.close(pair, None);
            }
        }
        self.flush_progress();
    }

    /// Once every pair is closed (or would open only after this), the nodes are flushed.
    pub(super) fn flush_progress(&mut self) {
        let Some(running) = &self.flush.running else { return };
        if running.guard.is_none() || running.waiting.is_some() {
            return;
        }
        // A hand-back that waits for its last copies gives up its gate: the copies wait for this flush.
        let draining: Vec<PairId> =
            self.topology.pairs().filter(|p| self.pairs[p.index()].pair.gate() == Gate::Draining).collect();
        for pair in draining {
            self.apply(pair, pair::Event::Drained(false));
        }
        let closed = self.pairs.iter().all(|run| match run.pair.gate() {
            Gate::Open => run.flush_closed || run.held_for_flush,
            // No write is taken before the record is stored.
            Gate::Recording => run.record_refused,
            _ => false,
        });
        let Some(running) = &mut self.flush.running else { return };
        if !closed || running.waiting.is_some() {
            return;
        }
        // A node that is lost for its mirrored pairs, being late, may lead others all the same.
        let leads = |node: NodeId| {
            let place = self.topology.place(node);
            self.topology.pairs_of(node).any(|p| self.pairs[p.index()].pair.state().leader() == Some(place))
        };
        let up: BTreeSet<NodeId> =
            self.topology.nodes().filter(|&n| self.nodes[n.index()].health.is_up() || leads(n)).collect();
        running.waiting = Some(up.clone());
        self.void_dark();
        for node in up {
            let markers = self.markers(node);
            let (control, internal) = (self.controls[node.index()].clone(), self.internal.clone());
            tokio::spawn(async move {
                match control.flush(&markers).await {
                    Ok(()) => {
                        let _ = internal.send(Internal::Flushed { node, result: Ok(()), drain: false });
                    }
                    Err((error, drain)) => {
                        let _ = internal.send(Internal::Flushed { node, result: Err(error), drain: drain.is_some() });
                        if let Some(drain) = drain {
                            drain.await;
                            let _ = internal.send(Internal::DrainDone { node });
                        }
                    }
                }
            });
        }
        self.flush_finished();
    }

    /// Everything that the proxy keeps on a node, as it is to be by the pairs' present states.
    pub(super) fn markers(&self, node: NodeId) -> Vec<(String, String)> {
        let run = &self.nodes[node.index()];
        let Some(incarnation) = run.incarnation else { return vec![] };
        let mut markers = vec![
            (marker::INCARNATION_KEY.to_owned(), incarnation.to_string()),
            (marker::RING_KEY.to_owned(), self.ring_of(node)),
            (marker::SESSION_KEY.to_owned(), self.session.to_string()),
        ];
        for pair in self.topology.pairs() {
            let run = &self.pairs[pair.index()].pair;
            let fact = match run.state() {
                State::Mirrored => Fact::Sync,
                State::Degraded { leader } => Fact::Alone(leader),
                State::Recovering { leader } => Fact::Filling(leader.other()),
                State::Dark { in_sync: Some(place), .. } => Fact::Alone(place),
                State::Dark { in_sync: None, .. } => continue,
            };
            let record = Record { epoch: run.epoch(), fact, term: run.term() };
            markers.push((marker::pair_key(pair), record.to_string()));
        }
        markers
    }

    /// A last full copy that is not reached holds what the flush has ended: whoever comes back with it must not lead before a purge.
    /// Told at once, for such a node may come back while others are still being flushed.
    fn void_dark(&mut self) {
        for pair in self.topology.pairs() {
            // Not even the start-up table may let it lead.
            self.pairs[pair.index()].undecided = false;
            self.apply(pair, pair::Event::Flushed);
        }
    }

    pub(super) fn flushed(&mut self, node: NodeId, result: Result<(), MarkError>, drain: bool) {
        if drain {
            self.nodes[node.index()].drains += 1;
        }
        match result {
            Ok(()) => {
                if let Some(running) = &mut self.flush.running {
                    running.flushed = true;
                }
                if let Some(view) = &mut self.nodes[node.index()].view {
                    view.cmd_flush += 1;
                }
            }
            Err(MarkError::Refused(said)) => {
                tracing::warn!(node = %self.topology.addr(node), %said, "a node refuses flush_all");
                if let Some(running) = &mut self.flush.running {
                    running.refused.push((node, said));
                }
            }
            Err(error) => {
                tracing::warn!(node = %self.topology.addr(node), %error, "flush_all failed on a node");
                self.flush_failed(node, reason_of_mark(&error));
            }
        }
        if let Some(waiting) = self.flush.running.as_mut().and_then(|r| r.waiting.as_mut()) {
            waiting.remove(&node);
        }
        self.flush_finished();
    }

    /// Whether it took effect is unknown, so nothing the node holds can be trusted: it is purged when it comes back.
    fn flush_failed(&mut self, node: NodeId, reason: Reason) {
        self.lost(node, reason, Loss::Suspected, true);
        self.void_dark();
    }

    fn flush_finished(&mut self) {
        if !self.flush.running.as_ref().is_some_and(|r| r.waiting.as_ref().is_some_and(BTreeSet::is_empty)) {
            return;
        }
        let Some(mut running) = self.flush.running.take() else { return };
        let mut answer = Bytes::from_static(b"OK\r\n");
        for (node, said) in std::mem::take(&mut running.refused) {
            if running.flushed {
                // The others are empty now: this one is out of step with them.
                self.flush_failed(node, Reason::Protocol);
            } else {
                answer = Bytes::from(format!("{said}\r\n"));
            }
        }
        for pair in self.topology.pairs() {
            let run = &self.pairs[pair.index()];
            if run.pair.gate() == Gate::Open {
                self.publish(pair);
            }
        }
        drop(running.guard);
        for asker in running.askers.into_iter().flatten() {
            self.answer(asker, answer.clone());
        }
        for node in self.topology.nodes() {
            self.consider(node);
        }
        let queued = std::mem::take(&mut self.flush.queued);
        if !queued.is_empty() {
            self.begin_flush(None);
            if let Some(running) = &mut self.flush.running {
                running.askers = queued;
            }
        }
    }

    pub(super) fn answer(&self, asker: Asker, bytes: Bytes) {
        let _ =
            self.workers[asker.worker as usize].send(Command::Answer { client: asker.client, slot: asker.slot, bytes });
    }
}
