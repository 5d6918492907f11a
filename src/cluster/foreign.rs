//! Another proxy over the same nodes. It shows itself by its open session where this proxy's was: started later, it took this one for
//! dead. Two proxies that see failures each for itself would promote different nodes, so this one promotes nobody while that session
//! is open, and says so. When it ends, what both wrote may differ between the copies: they are compared, as after a crash.

use crate::backend::marker::Session;
use crate::ids::{NodeId, Place};
use crate::pair::{self, Reason, State};
use crate::resync::Fill;

use super::Cluster;

/// What is known of another proxy on one node.
#[derive(Default)]
pub(super) struct Foreign {
    /// Its session, since the second probe that found it: the first may have been under way when this proxy marked the node.
    live: Option<u64>,
    suspected: Option<u64>,
    /// How many such sessions there were.
    pub(super) count: u64,
}

impl Foreign {
    pub(super) fn is_live(&self) -> bool {
        self.live.is_some()
    }
}

impl Cluster {
    /// At every good probe of a node in use: whose session does it carry?
    pub(super) fn judge_session(&mut self, node: NodeId, found: Option<Session>) {
        let foreign = &mut self.nodes[node.index()].foreign;
        match found {
            Some(other) if other.open && other.id != self.session.id => {
                if foreign.live == Some(other.id) {
                    return;
                }
                if foreign.suspected != Some(other.id) {
                    foreign.suspected = Some(other.id);
                    return;
                }
                foreign.live = Some(other.id);
                foreign.count += 1;
                tracing::error!(node = %self.topology.addr(node), session = %format_args!("{:016x}", other.id), reason = %Reason::ForeignSession,
                    "another proxy works on this node: nobody is promoted before it stops. Stop one of the two");
                for pair in self.topology.pairs_of(node) {
                    self.apply(pair, pair::Event::Foreign(true));
                }
            }
            _ => {
                foreign.suspected = None;
                let ended = foreign.live.take();
                if found.is_some_and(|s| s.id != self.session.id)
                    && let Some(incarnation) = self.nodes[node.index()].incarnation
                {
                    let (control, session) = (self.controls[node.index()].clone(), self.session);
                    tokio::spawn(async move {
                        // If this fails, the next probe finds the old session again.
                        let _ = control.session(incarnation, session).await;
                    });
                }
                if let Some(id) = ended {
                    tracing::warn!(node = %self.topology.addr(node), session = %format_args!("{id:016x}"), "the other proxy is gone: what both wrote is compared");
                    self.foreign_ended(node);
                }
            }
        }
    }

    fn foreign_ended(&mut self, node: NodeId) {
        let place = self.topology.place(node);
        for pair in self.topology.pairs_of(node) {
            if self.nodes[self.node_at(pair, place.other()).index()].foreign.is_live() {
                continue;
            }
            let run = &mut self.pairs[pair.index()];
            run.missed.overflow();
            run.first_fill = (run.pair.state() == State::Mirrored).then_some(Fill::Compare);
            // A refill under way knows nothing of what the other one has written, to one node alone perhaps, nor of what it has deleted of an
            // adoption's items.
            self.abort_job_of(pair);
            self.apply(pair, pair::Event::ResyncEnded(Reason::ForeignSession));
            self.apply(pair, pair::Event::Foreign(false));
            // The follower of a leader that lost its memory meanwhile was kept from leading, and has been up all along. (A node that
            // came back with another memory is awaited no more.)
            if let State::Dark { in_sync: Some(awaited), .. } = self.pairs[pair.index()].pair.state()
                && self.nodes[self.node_at(pair, awaited).index()].health.is_up()
            {
                self.apply(pair, pair::Event::BackSame(awaited));
            }
            for place in [Place::Primary, Place::Backup] {
                self.consider(self.node_at(pair, place));
            }
        }
    }

    /// The reason shown for a node.
    pub(super) fn shown_reason(&self, node: NodeId) -> Reason {
        let run = &self.nodes[node.index()];
        if run.foreign.is_live() { Reason::ForeignSession } else { run.reason }
    }
}
