//! Nodes: who is up, why not, and what one that comes back holds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::marker::Leftovers;
use crate::backend::{MarkError, NodeError, NodeView, Probe};
use crate::health::{Health, began_since};
use crate::ids::{Incarnation, Life, NodeId, PairId, WorkerId};
use crate::pair::{self, Loss, Reason};
use crate::protocol::expiry::Offset;
use crate::proxy::Command;
use crate::rules::{Rule, holds};

use super::Cluster;
use super::refills::Refills;

/// What the control plane knows of a node.
pub(super) struct NodeRun {
    pub(super) health: Health,
    pub(super) reason: Reason,
    /// The marker on it, as far as known.
    pub(super) incarnation: Option<Incarnation>,
    /// What it said when it was last looked at; empty before the first time.
    pub(super) view: Option<NodeView>,
    /// How far its dates are ahead of the proxy's; in its first second a guess, that errs to the
    /// smaller side.
    pub(super) offset: Option<Offset>,
    /// It was last taken back with the memory that it had.
    pub(super) kept_memory: bool,
    /// Ends the measuring of its clock, and of its items.
    pub(super) measuring: CancellationToken,
    /// What its ring marker says of items that it should not hold.
    pub(super) leftovers: Leftovers,
    pub(super) foreign: super::foreign::Foreign,
    pub(super) former: super::turn::Former,
    pub(super) cleaning: super::clean::Cleaning,
    /// The last proxy left nothing half done on it; as found at the start.
    pub(super) session_settled: bool,
    /// It held no items at all when it was last taken back, and nothing was written to it since.
    pub(super) empty: bool,
    /// Workers with void answers outstanding.
    pub(super) undrained: BTreeSet<WorkerId>,
    /// Connections of the control plane that are being drained.
    pub(super) drains: u32,
    /// Workers that still have connections to an earlier address of it.
    pub(super) leaving: BTreeSet<WorkerId>,
    /// A connection to it was given up with commands unanswered, and nothing proves that they
    /// cannot take effect any more.
    pub(super) abandoned: bool,
    pub(super) name: super::names::Name,
    /// Has its name looked up early.
    pub(super) look_up: Arc<Notify>,
    /// A look at it, or its marking, is under way.
    pub(super) looking: bool,
    /// Since when its process refuses connections.
    pub(super) refused_since: Option<Instant>,
    /// Since when it has not answered.
    pub(super) silent_since: Option<Instant>,
    /// What it said at the start, where it could not be marked then: who led alone counts all the
    /// same.
    pub(super) unmarked: Option<NodeView>,
    /// Its memory is proved gone since it was lost.
    pub(super) memory_gone: bool,
    /// How often it was taken back when no route named it any more; workers repeat it with the
    /// faults that they tell.
    pub(super) life: Life,
    /// Wakes its prober early.
    pub(super) hint: Arc<Notify>,
    /// Since when it takes no more connections, in use over those that stand.
    pub(super) refuses: Option<Instant>,
    /// It was lost and is not taken back: its prober hurries, also while it answers. Written here,
    /// read by the prober.
    pub(super) away: Arc<AtomicBool>,
    pub(super) refills: Refills,
    pub(super) held: super::held::Held,
    /// For which reasons it was lost, and how often.
    pub(super) faults: Vec<(Reason, u64)>,
    pub(super) since: Instant,
}

impl NodeRun {
    /// The last proxy that used it may have left something half done; as found at the start.
    pub(super) fn left_unsettled(&self) -> bool {
        !self.session_settled && self.view.as_ref().is_some_and(|view| view.session.is_some())
    }

    pub(super) fn new() -> NodeRun {
        NodeRun {
            health: Health::new(),
            reason: Reason::Starting,
            incarnation: None,
            view: None,
            offset: None,
            kept_memory: false,
            measuring: CancellationToken::new(),
            leftovers: Leftovers::Clean,
            foreign: Default::default(),
            former: Default::default(),
            cleaning: Default::default(),
            session_settled: false,
            empty: false,
            undrained: BTreeSet::new(),
            drains: 0,
            leaving: BTreeSet::new(),
            abandoned: false,
            name: Default::default(),
            look_up: Arc::new(Notify::new()),
            looking: false,
            refused_since: None,
            silent_since: None,
            unmarked: None,
            memory_gone: false,
            life: Life::default(),
            hint: Arc::new(Notify::new()),
            refuses: None,
            away: Arc::new(AtomicBool::new(false)),
            refills: Refills::default(),
            held: Default::default(),
            faults: Vec::new(),
            since: Instant::now(),
        }
    }

    pub(super) fn is_drained(&self) -> bool {
        let drained = self.undrained.is_empty() && self.drains == 0 || !holds(Rule::DrainByAnswer);
        drained && self.leaving.is_empty()
    }

    /// Whether a probe that was answered found no marker where there was one: its memory is another
    /// one, or was emptied.
    pub(super) fn has_lost_marker(&self, found: &Probe) -> bool {
        self.incarnation.is_some() && found.incarnation.is_none()
    }

    /// A process that was begun after the node was lost, and holds nothing. Its times are its own,
    /// to the second.
    pub(super) fn is_new_and_empty(&self, view: &NodeView) -> bool {
        let uptime = view.time.saturating_sub(view.started);
        view.curr_items == 0 && self.incarnation.is_some() && began_since(uptime, self.since.elapsed())
    }

    fn count_fault(&mut self, reason: Reason) {
        match self.faults.iter_mut().find(|(r, _)| *r == reason) {
            Some((_, count)) => *count += 1,
            None => self.faults.push((reason, 1)),
        }
    }
}

pub(super) fn reason_of(error: &NodeError) -> Reason {
    match error {
        NodeError::Refused => Reason::Refused,
        NodeError::Reset => Reason::Reset,
        NodeError::Timeout | NodeError::Unreachable(_) => Reason::Timeout,
        NodeError::OtherMemory => Reason::MarkerStale,
        NodeError::MarkerLost => Reason::MarkerLost,
        NodeError::Unresolved(_) => Reason::Unresolved,
        NodeError::Protocol(_) => Reason::Protocol,
        NodeError::Full(_) => Reason::ConnectionLimit,
    }
}

pub(super) fn reason_of_mark(error: &MarkError) -> Reason {
    match error {
        MarkError::Node(error) => reason_of(error),
        MarkError::Foreign(_) | MarkError::OfFleet(_) => Reason::ForeignSession,
        MarkError::MemoryGone | MarkError::OtherMemory => Reason::MarkerLost,
        MarkError::Refused(_) | MarkError::Newer(_) => Reason::Protocol,
    }
}

impl Cluster {
    /// Whether a worker tells of the node as it is now, and not of what it saw before it knew that
    /// the node is back. No operation is forgotten with that: the life is a new one only where
    /// every pair's gate was closed meanwhile, and a gate that opens begins or ends what was
    /// parked.
    pub(super) fn is_of_its_life(&self, node: NodeId, life: Life) -> bool {
        life >= self.nodes[node].life
    }

    /// A late node that is not given up is waited for, but not until the next probe is due.
    pub(super) fn probe_if_waited_for(&self, node: NodeId) {
        let run = &self.nodes[node];
        if run.health.is_up() {
            run.hint.notify_one();
        }
    }

    /// A node failed a request or a probe.
    pub(super) fn fault(&mut self, node: NodeId, reason: Reason, patience_over: bool) {
        if reason == Reason::MarkerLost {
            return self.check_eviction(node, true);
        }
        if reason == Reason::MarkerStale && self.flush.awaits(node) {
            // It may be the name that the flush gives its memory; connections are checked anew when
            // that is answered, and if it is not the node is lost.
            return;
        }
        if reason == Reason::Timeout {
            self.late(node, if patience_over { self.settings.leader_timeout } else { self.settings.timeout });
            return self.probe_if_waited_for(node);
        }
        let loss = if reason == Reason::MarkerStale { Loss::MemoryGone } else { Loss::Suspected };
        self.lost(node, reason, loss, patience_over);
    }

    /// A node is not to be used. All its pairs learn it, once; but a last full copy is waited for
    /// longer when it is only late.
    pub(super) fn lost(&mut self, node: NodeId, reason: Reason, loss: Loss, patience_over: bool) {
        let place = self.topology.place(node);
        let waits = |pair: PairId| reason == Reason::Timeout && !patience_over && self.is_only_copy(pair, node);
        let affected: Vec<PairId> = self.topology.pairs_of(node).filter(|&pair| !waits(pair)).collect();
        if affected.is_empty() {
            return;
        }
        let now = self.now();
        let run = &mut self.nodes[node];
        run.memory_gone |= loss == Loss::MemoryGone;
        if run.health.lost(now) {
            run.away.store(true, Ordering::Relaxed);
            self.suspects.lost(node);
            run.reason = reason;
            run.count_fault(reason);
            run.refills.node_lost();
            run.since = Instant::now();
            run.hint.notify_one();
            run.look_up.notify_one();
            tracing::warn!(node = %self.topology.addr(node), %reason, "node lost");
            self.operators.changes.note(self.server_name(node), "lost".to_owned(), reason);
        }
        self.told_together(|cluster| {
            for pair in affected {
                if loss == Loss::MemoryGone && cluster.awaits_undo(pair, place) {
                    // Remembered in `memory_gone`: only at the end of the other node's resync is it
                    // known whether that one may lead.
                    continue;
                }
                let loss = match loss {
                    Loss::Suspected if cluster.pairs[pair].plan.awaits(place) => Loss::SuspectedUncompared,
                    loss => loss,
                };
                cluster.apply(pair, pair::Event::Lost(place, loss, reason));
            }
        });
        self.changed(node);
    }

    /// For [`super::changes`].
    pub(super) fn server_name(&self, node: NodeId) -> String {
        format!("server {}", self.topology.addr(node))
    }

    /// A connection ended with commands unanswered, and it was not the node that ended it: they may
    /// still take effect there. So the node is lost (unless it is a last full copy). It comes back
    /// like one that is taken over from another proxy: after a quiet period, and purged of
    /// everything where it follows.
    pub(super) fn abandoned(&mut self, node: NodeId) {
        tracing::warn!(node = %self.topology.addr(node),
            "this machine's kernel gave up a connection with commands unanswered: the node may still execute them");
        self.nodes[node].abandoned = true;
        self.lost(node, Reason::Timeout, Loss::Suspected, false);
    }

    pub(super) fn allow(&self, node: NodeId) {
        let run = &self.nodes[node];
        for worker in &self.workers {
            let _ = worker.send(Command::Allow { node, incarnation: run.incarnation, life: run.life });
            let _ = worker.send(Command::Clock { node, offset: run.offset });
        }
    }

    /// The smallest `-I` of the nodes is the limit: an item that only one node of a pair can hold
    /// would not be mirrored.
    pub(super) fn tell_item_limit(&self) {
        for (node, run) in self.nodes.all() {
            // A node that was not asked yet may send what any memcached may.
            let Some(bytes) = run.view.as_ref().and_then(|v| v.item_size_max) else { continue };
            for worker in &self.workers {
                let _ = worker.send(Command::ReplyLimit { node, bytes });
            }
        }
        let smallest = self.nodes.iter().filter_map(|n| n.view.as_ref().and_then(|v| v.item_size_max)).min();
        if let Some(limit) = smallest {
            for worker in &self.workers {
                let _ = worker.send(Command::ItemLimit(limit));
            }
        }
    }
}
