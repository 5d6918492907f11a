//! The first look: what every node holds when the proxy starts.

use std::time::Duration;

use tokio::time::Instant;

use crate::ambient;
use crate::backend::marker::Session;
use crate::backend::{MarkError, NodeControl, NodeError, NodeView};
use crate::cluster::Cluster;
use crate::cluster::names::look_for;
use crate::cluster::nodes::{NodeRun, reason_of};
use crate::ids::{Incarnation, NodeId, SessionId};
use crate::pair::Reason;

/// Looks at a node that refuses or breaks connections before it counts as away, and the pause
/// between them.
pub(in crate::cluster) const FIRST_LOOKS: usize = 3;
pub(in crate::cluster) const FIRST_LOOK_PAUSE: Duration = Duration::from_millis(50);

/// One connection that breaks is no reason to let the other node lead with what it has.
async fn first_look(control: &NodeControl, pairs: usize) -> Result<NodeView, NodeError> {
    let mut looked = control.view(pairs).await;
    for _ in 1..FIRST_LOOKS {
        if !matches!(looked, Err(NodeError::Reset | NodeError::Refused)) {
            break;
        }
        tokio::time::sleep(FIRST_LOOK_PAUSE).await;
        looked = control.view(pairs).await;
    }
    looked
}

impl Cluster {
    /// A node that was silent for all its time is not looked at again: clients wait meanwhile, and
    /// not long enough for that a second time. The probes see it when it wakes.
    pub(super) async fn look_at_all(&mut self, pairs: usize) {
        let patience = 2 * self.settings.timeout.max(self.settings.probe_timeout);
        let silent = |run: &NodeRun| run.silent_since.is_some() && run.reason == Reason::Timeout;
        let due: Vec<NodeId> = self.topology.nodes().filter(|node| !silent(&self.nodes[*node])).collect();
        let looks = due.iter().map(|&node| {
            let (control, name) = (&self.controls[node], &self.nodes[node].name);
            look_for(&self.names, name, node, patience, move || first_look(control, pairs))
        });
        let views = futures::future::join_all(looks).await;
        for (node, view) in due.into_iter().zip(views) {
            match view {
                Ok(view) => {
                    self.nodes[node].view = Some(view);
                    self.tell_of_version(node);
                }
                Err(error) => {
                    tracing::warn!(node = %self.topology.addr(node), %error, "node does not answer at the start");
                    let run = &mut self.nodes[node];
                    // Keep what it said before the connection broke.
                    run.unmarked = run.view.take();
                    run.reason = reason_of(&error);
                    run.silent_since = Some(Instant::now());
                    run.refused_since = (error == NodeError::Refused).then(Instant::now);
                }
            }
        }
    }

    /// Whether the last proxy left nothing half done on a node: its session there is closed, or was
    /// closed on another node while this one was away. (Each run of a proxy has an id of its own,
    /// and closes no session with work unfinished.) `true`: a session is open.
    pub(super) fn judge_sessions(&mut self) -> bool {
        let sessions: Vec<_> = self.nodes.iter().filter_map(|run| run.view.as_ref()?.session).collect();
        let settled = |session: Session| sessions.iter().any(|s| s.id == session.id && !s.open);
        for run in &mut self.nodes {
            run.session_settled = run.view.as_ref().and_then(|v| v.session).is_some_and(settled);
        }
        // Also after a clean stop without a node: what the last proxy had sent it before it hung is
        // still in its sockets.
        sessions.iter().any(|session| session.open)
    }

    /// Whether the proxy of this session has closed it on some node.
    fn was_closed(&self, id: SessionId) -> bool {
        let closed = Some(Session { id, open: false });
        self.nodes.iter().filter_map(|run| run.view.as_ref()).any(|view| view.session == closed)
    }

    /// Whether this proxy's is the only connection; its workers have none yet. (Another proxy that
    /// lives has one for its probes, as long as it uses the node.)
    pub(in crate::cluster) async fn is_alone_on(&self, node: NodeId) -> bool {
        let sight = self.controls[node].connections().await;
        sight.is_ok_and(|sight| sight.others().is_some_and(|others| others.is_empty()))
    }

    pub(super) async fn mark_all(&mut self) {
        for node in self.topology.nodes() {
            let Some(view) = &self.nodes[node].view.clone() else { continue };
            let known = if self.is_ours(node, view) { view.incarnation } else { None };
            let incarnation = known.unwrap_or_else(|| Incarnation(ambient::random_u64()));
            let leftovers = self.leftovers_on(node, view, false);
            self.nodes[node].leftovers = leftovers;
            let marked = self.controls[node].mark(view, incarnation, self.ring_of(node), self.session).await;
            let run = &mut self.nodes[node];
            match marked {
                Ok(session) => {
                    run.incarnation = Some(incarnation);
                    run.empty = run.view.as_ref().is_some_and(|v| v.curr_items == 0);
                    if session.is_some_and(|id| !self.was_closed(id)) && !self.is_alone_on(node).await {
                        self.await_word(node);
                    }
                }
                Err(error) => {
                    if let MarkError::OfFleet(mark) = &error {
                        self.fleet.losses.marked_by_other(mark);
                    }
                    tracing::warn!(node = %self.topology.addr(node), %error, "cannot mark a node");
                    // It is not used now, but the records that it showed are kept: without them a
                    // node that missed writes might lead.
                    run.unmarked = run.view.take();
                    run.reason = Reason::Protocol;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::{alone, unanswered};

    const PATIENT: &str = "-s 127.0.0.1:1 -b 127.0.0.1:2 --timeout 5s";

    /// With the session of a proxy that crashed on one server and the other hung, clients were
    /// refused at a start: there were two looks, of the whole time each.
    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_waited_for_once_at_a_start() {
        let mut cluster = unanswered(PATIENT);
        let begun = Instant::now();
        cluster.look_at_all(1).await;
        let first = begun.elapsed();
        assert!(first >= Duration::from_secs(5), "{first:?}");
        cluster.look_at_all(1).await;
        assert_eq!(begun.elapsed(), first);
        assert!(cluster.nodes.iter().all(|run| run.view.is_none() && run.reason == Reason::Timeout));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_refuses_is_looked_at_again() {
        let mut cluster = alone(PATIENT);
        cluster.look_at_all(1).await;
        let first = Instant::now();
        cluster.look_at_all(1).await;
        assert!(first.elapsed() > Duration::ZERO, "it may have been started meanwhile");
    }
}
