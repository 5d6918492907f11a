//! Keys that a node holds and does not own, because the ring has changed. They do no harm before a
//! later ring gives them back to it: then it would lead with the values they had when they moved.
//! So they are deleted, in the background, and until that is done the node's ring marker says so
//! ([`Leftovers`]): a change of the ring before then makes the node's items void.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::MarkError;
use crate::backend::marker::Leftovers;
use crate::ids::{Incarnation, NodeId, PairId};
use crate::lease;
use crate::pair::{Gate, State};
use crate::resync::{self, JobError, Outcome, Progress};

use super::{Cluster, Internal};

/// A cleaning that failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(10);

/// The cleaning of one node.
#[derive(Default)]
pub(super) struct Cleaning {
    under_way: bool,
    not_before: Option<Instant>,
    warned: bool,
}

#[cfg(test)]
impl Cleaning {
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }
}

impl Cluster {
    /// At every good probe of a node in use: is there something to be cleaned, and nothing in the
    /// way?
    pub(super) fn clean(&mut self, node: NodeId) {
        let run = &self.nodes[node];
        // Another proxy may serve what this one owns nowhere.
        if run.foreign.may_be_shared() {
            return;
        }
        let waits = run.cleaning.not_before.is_some_and(|at| Instant::now() < at);
        if run.leftovers == Leftovers::Clean || run.cleaning.under_way || waits || !run.is_drained() {
            return;
        }
        // What it holds of its own pairs is refilled, one by one; only then may the marker stop
        // calling it stale.
        let mirrored = |p: PairId| {
            let pair = &self.pairs[p].pair;
            pair.state() == State::Mirrored && pair.gate() == Gate::Open
        };
        if run.leftovers == Leftovers::Stale && !self.topology.pairs_of(node).all(mirrored) {
            return;
        }
        let Some(incarnation) = run.incarnation else { return };
        // It asks the control plane nothing.
        let (coordinator, _) = mpsc::channel(1);
        let progress = Arc::new(Progress::new(std::iter::empty()));
        let context = self.context(CancellationToken::new(), progress.clone(), coordinator);
        let mut mark = self.ring_of(node);
        mark.leftovers = Leftovers::Clean;
        self.nodes[node].cleaning.under_way = true;
        self.ask_node(node, |control| async move {
            let Outcome { result, drains, .. } = resync::clean(node, context).await;
            let result = match result {
                Ok(()) => control.ring(incarnation, mark).await.map_err(CleanError::Mark),
                Err(error) => Err(CleanError::Purge(error)),
            };
            // A late delete of a key that the node does not own does no harm; its connection is
            // kept until it is answered all the same.
            lease::spawn(futures::future::join_all(drains));
            Internal::Cleaned { node, incarnation, deleted: progress.purged.load(Relaxed), result }
        });
    }

    pub(super) fn cleaned(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        deleted: u64,
        result: Result<(), CleanError>,
    ) {
        let addr = self.topology.addr(node).to_string();
        let run = &mut self.nodes[node];
        run.cleaning.under_way = false;
        match result {
            // Its memory may be another one by now, with a marker of its own.
            Ok(()) if run.incarnation == Some(incarnation) => {
                run.leftovers = Leftovers::Clean;
                run.cleaning.warned = false;
                tracing::info!(node = %addr, deleted, "the node holds only keys that it owns");
            }
            Ok(()) => {}
            Err(error) => {
                run.cleaning.not_before = Some(Instant::now() + RETRY);
                if !std::mem::replace(&mut run.cleaning.warned, true) {
                    tracing::warn!(node = %addr, %error,
                        "keys that the node does not own cannot be deleted: if the list of servers changes again, all its items are void");
                }
            }
        }
    }
}

/// Why a node is not known to be clean.
#[derive(Debug, thiserror::Error)]
pub(super) enum CleanError {
    /// The deletes.
    #[error("{0}")]
    Purge(JobError),
    #[error("{0}")]
    Mark(MarkError),
}
