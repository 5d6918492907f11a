//! The first look: what every node holds when the proxy starts, and the first state of every pair.

use tokio::time::Instant;

use crate::ambient;
use crate::backend::marker::Record;
use crate::backend::{NodeError, NodeView};
use crate::config::ResyncMode;
use crate::ids::{Incarnation, NodeId, PairId, Place};
use crate::pair::{self, Reason, State};
use crate::rules::{Rule, holds};

use super::nodes::reason_of;
use super::start::{self, Knowledge, Seen};
use super::{Cluster, QUIET_PERIOD};

impl Cluster {
    /// Looks at every node and gives every pair its first state.
    pub(super) async fn start(&mut self) {
        let pairs = if self.marked() { self.topology.pair_count() } else { 0 };
        let looks = self.controls.iter().map(|control| control.view(pairs));
        let views = futures::future::join_all(looks).await;
        let mut unclean = false;
        for (node, view) in self.topology.nodes().zip(views) {
            match view {
                Ok(view) => {
                    unclean |= view.session.is_some_and(|s| s.open) && self.is_ours(node, &view);
                    self.nodes[node.index()].view = Some(view);
                    self.nodes[node.index()].viewed_at = Instant::now();
                }
                Err(error) => {
                    tracing::warn!(node = %self.topology.addr(node), %error, "node does not answer at the start");
                    let run = &mut self.nodes[node.index()];
                    run.reason = reason_of(&error);
                    run.silent_since = Some(Instant::now());
                    run.refused_since = (error == NodeError::Refused).then(Instant::now);
                }
            }
        }
        if self.marked() {
            if unclean {
                tracing::warn!("the last proxy did not stop cleanly: waiting for what its sockets may still hold");
                if holds(Rule::QuietPeriodAfterCrash) {
                    tokio::time::sleep(QUIET_PERIOD).await;
                }
            }
            self.seed_epochs();
            self.mark_all().await;
        }
        for node in self.topology.nodes() {
            if self.nodes[node.index()].view.is_some() {
                let now = self.now();
                let run = &mut self.nodes[node.index()];
                run.health.back(now);
                run.reason = Reason::None;
                self.allow(node);
            }
        }
        self.tell_item_limit();
        for pair in self.topology.pairs() {
            self.decide(pair, !unclean || !holds(Rule::CrashIsNotClean));
        }
    }

    /// A marker of another ring, or of another place on this one, says nothing about this node's items.
    pub(super) fn is_ours(&self, node: NodeId, view: &NodeView) -> bool {
        view.incarnation.is_some() && view.ring.as_deref() == Some(&self.ring_of(node))
    }

    pub(super) fn ring_of(&self, node: NodeId) -> String {
        format!("{:016x} {}", self.topology.fingerprint(), node.0)
    }

    fn seed_epochs(&mut self) {
        if !holds(Rule::UniqueEpochs) {
            return;
        }
        for node in self.topology.nodes() {
            let Some(view) = &self.nodes[node.index()].view else { continue };
            for &(pair, record) in &view.records {
                if let Some(run) = self.pairs.get_mut(pair.index()) {
                    run.pair.seed(record.epoch, record.term);
                }
            }
        }
    }

    async fn mark_all(&mut self) {
        for node in self.topology.nodes() {
            let Some(view) = &self.nodes[node.index()].view else { continue };
            let incarnation = if self.is_ours(node, view) { view.incarnation } else { None };
            let incarnation = incarnation.unwrap_or_else(|| Incarnation(ambient::random_u64()));
            let marked = self.controls[node.index()]
                .mark(view.incarnation, incarnation, &self.ring_of(node), self.session)
                .await;
            let run = &mut self.nodes[node.index()];
            match marked {
                Ok(()) => {
                    run.incarnation = Some(incarnation);
                    run.empty = run.view.as_ref().is_some_and(|v| v.curr_items == 0);
                }
                Err(error) => {
                    tracing::warn!(node = %self.topology.addr(node), %error, "cannot mark a node");
                    // It is not used now, but the records that it showed are not unseen: a node that missed writes might lead.
                    run.unmarked = run.view.take();
                    run.reason = Reason::Protocol;
                }
            }
        }
    }

    fn records_of_unmarked(&self, pair: PairId) -> impl Iterator<Item = Record> {
        let ours = |node: &NodeId| holds(Rule::RecordsOfUnmarkedNodes) && self.nodes[node.index()].view.is_none();
        let unmarked = self.topology.nodes().filter(ours).filter_map(move |node| {
            let view = self.nodes[node.index()].unmarked.as_ref().filter(|view| self.is_ours(node, view))?;
            view.records.iter().find(|(p, _)| *p == pair).map(|(_, record)| *record)
        });
        unmarked.collect::<Vec<_>>().into_iter()
    }

    fn seen(&self, node: Option<NodeId>, pair: PairId) -> Seen {
        let Some(node) = node else { return Seen::Unreachable };
        let run = &self.nodes[node.index()];
        match &run.view {
            Some(view) if run.health.is_up() => {
                if self.is_ours(node, view) {
                    Seen::Marked { record: view.records.iter().find(|(p, _)| *p == pair).map(|(_, r)| *r) }
                } else {
                    Seen::Blank { empty: view.curr_items == 0 }
                }
            }
            _ => Seen::Unreachable,
        }
    }

    /// Gives a pair its first state, if what is known suffices.
    pub(super) fn decide(&mut self, pair: PairId, clean: bool) {
        let (primary, backup) = self.topology.nodes_of(pair);
        if !self.marked() {
            let up = |node: Option<NodeId>| node.is_some_and(|n| self.nodes[n.index()].health.is_up());
            let state = match (up(Some(primary)), up(backup)) {
                (true, true) => State::Mirrored,
                (true, false) => State::Degraded { leader: Place::Primary },
                (false, true) => State::Degraded { leader: Place::Backup },
                (false, false) => State::Dark { in_sync: None, fallback: None },
            };
            self.pairs[pair.index()].undecided = false;
            return self.apply(pair, pair::Event::Start(state));
        }
        let newest: Option<Record> = self
            .topology
            .nodes()
            .filter_map(|node| match self.seen(Some(node), pair) {
                Seen::Marked { record } => record,
                _ => None,
            })
            .chain(self.records_of_unmarked(pair))
            .max_by_key(|r| r.epoch);
        let known =
            Knowledge { primary: self.seen(Some(primary), pair), backup: self.seen(backup, pair), newest, clean };
        let state = start::decide(&known);
        self.pairs[pair.index()].undecided = state.is_none();
        if newest.is_none()
            && let Some(State::Degraded { leader }) = state
            && self.seen(self.topology.node_at(pair, leader.other()), pair) == Seen::Unreachable
        {
            let node = self.topology.addr(self.node_at(pair, leader));
            tracing::warn!(pair = %self.pair_name(pair), leader = %node,
                "the other node does not answer and this one carries no markers: it leads on its own word, and what only the other holds will be purged");
        }
        if let Some(State::Degraded { leader }) = state
            && let other = self.topology.node_at(pair, leader.other())
            && self.seen(other, pair) == (Seen::Blank { empty: false })
            && let Some(other) = other
            && self.settings.resync == ResyncMode::Auto
        {
            tracing::warn!(pair = %self.pair_name(pair), leader = %self.topology.addr(self.node_at(pair, leader)), purged = %self.topology.addr(other),
                "both nodes hold items and nothing tells whose are newer: the leader's count, and what the other holds of the pair is purged and refilled");
        }
        self.apply(pair, pair::Event::Start(state.unwrap_or(State::Dark { in_sync: None, fallback: None })));
        if self.pairs[pair.index()].undecided {
            tracing::error!(pair = %self.pair_name(pair), "no node of the pair answers");
        }
    }
}
