//! Nodes' clocks are measured, once for each life of a node and then looked at now and then: what
//! expires is stored by dates.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{Cluster, Internal};
use crate::ambient;
use crate::ids::NodeId;
use crate::lease;
use crate::protocol::expiry::Offset;
use crate::proxy::Command;

/// A node is asked so long before the end of one of the proxy's seconds: its answer is to come
/// before that.
const BEFORE: Duration = Duration::from_millis(25);
/// How often a measured clock is looked at again.
const AGAIN: Duration = Duration::from_secs(10);

impl Cluster {
    /// Of a node that was just taken back.
    pub(super) fn measure_clock(&mut self, node: NodeId) {
        let run = &mut self.nodes[node];
        run.measuring.cancel();
        run.measuring = self.shutdown.child_token();
        // Without markers nothing is copied, and clients' exptimes go to their node as they are.
        let Some(incarnation) = run.incarnation else { return };
        let found = run.view.as_ref().and_then(|view| view.offset);
        // The same memory is the same process, or one that was restarted warm with its dates: what
        // was measured stays true of its items.
        run.offset = run.offset.filter(|_| run.kept_memory).or(found);
        let (stop, time) = (run.measuring.clone(), run.view.as_ref().map_or(0, |view| view.time as i64));
        self.resyncs.shared.clocks.set(node, run.offset);
        let (control, internal) = (self.controls[node].clone(), self.internal.clone());
        lease::spawn(stop.run_until_cancelled_owned(async move {
            // The item that tells the clock is made first.
            let mut sharp = control.clock(incarnation, time).await.is_ok_and(|o| o.is_some_and(|o| o.sharp));
            loop {
                if sharp {
                    sleep(AGAIN).await;
                }
                sleep_until(next_end_of_a_second()).await;
                // Of a node that fails, the probes tell.
                let Ok(Some(offset)) = control.clock(incarnation, time).await else { continue };
                sharp |= offset.sharp;
                if internal.send(Internal::Clock { node, offset }).is_err() {
                    return;
                }
            }
        }));
    }

    pub(super) fn clock_measured(&mut self, node: NodeId, newer: Offset) {
        let run = &mut self.nodes[node];
        let before = run.offset;
        match &mut run.offset {
            Some(offset) => offset.refine(newer),
            None => run.offset = Some(newer),
        }
        if run.offset == before {
            return;
        }
        self.resyncs.shared.clocks.set(node, run.offset);
        for worker in &self.workers {
            let _ = worker.send(Command::Clock { node, offset: run.offset });
        }
    }
}

fn next_end_of_a_second() -> Instant {
    let now = Instant::now();
    let part = Duration::from_nanos(ambient::date(now).subsec_nanos().into());
    let whole = Duration::from_secs(1);
    let left = (whole * 2).saturating_sub(part + BEFORE);
    // Never now: it is asked in a loop.
    now + if left > whole { left - whole } else { left }
}
