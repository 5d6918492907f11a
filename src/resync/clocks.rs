//! What is known of the nodes' clocks: the control plane measures them, jobs wait for it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::ids::NodeId;
use crate::protocol::expiry::Offset;

/// A clock is measured at the end of a second; how long that is waited for.
const PATIENCE: Duration = Duration::from_millis(2500);

/// The nodes' [`Offset`]s, each of the node's present life.
#[derive(Debug)]
pub struct Clocks {
    offsets: Mutex<Vec<Option<Offset>>>,
    /// Who waits is woken in turn: a simulation replays exactly.
    changed: Notify,
}

impl Clocks {
    /// For nodes 0 to `nodes` - 1, of which nothing is known.
    pub fn new(nodes: usize) -> Clocks {
        Clocks { offsets: Mutex::new(vec![None; nodes]), changed: Notify::new() }
    }

    /// What was measured; `None` = the node is in another life.
    pub fn set(&self, node: NodeId, offset: Option<Offset>) {
        if let Some(place) = self.lock().get_mut(node.index()) {
            *place = offset;
        }
        self.changed.notify_waiters();
    }

    /// What is known of two nodes. What is measured and not [sharp](Offset::sharp) yet is waited
    /// for, for a while.
    pub(super) async fn of(&self, nodes: [NodeId; 2]) -> [Option<Offset>; 2] {
        let known = || nodes.map(|node| self.lock().get(node.index()).copied().flatten());
        let sharp = async {
            loop {
                // Before the look: what changes in between is not to be slept over.
                let changed = self.changed.notified();
                if known().iter().flatten().all(|offset| offset.sharp) {
                    return;
                }
                changed.await;
            }
        };
        let _ = timeout_at(Instant::now() + PATIENCE, sharp).await;
        known()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Offset>>> {
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_measurement_is_waited_for_and_not_for_ever() {
        let (clocks, begun) = (Clocks::new(2), Instant::now());
        let sharp = Offset::seen(7, Duration::from_millis(999));
        let rough = Offset::seen(7, Duration::from_millis(1));
        clocks.set(NodeId(0), Some(sharp));
        assert_eq!(clocks.of([NodeId(0), NodeId(1)]).await, [Some(sharp), None]);
        assert_eq!(begun.elapsed(), Duration::ZERO, "nobody measures the other one");
        clocks.set(NodeId(1), Some(rough));
        let nodes = [NodeId(0), NodeId(1)];
        assert_eq!(clocks.of(nodes).await, [Some(sharp), Some(rough)]);
        assert!(begun.elapsed() >= PATIENCE);
        let (found, ()) = tokio::join!(clocks.of(nodes), async { clocks.set(NodeId(1), Some(sharp)) });
        assert_eq!(found, [Some(sharp), Some(sharp)]);
        assert!(begun.elapsed() < PATIENCE * 2);
    }
}
