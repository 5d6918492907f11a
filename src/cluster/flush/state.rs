//! Where a `flush_all` is: one at a time, and those that wait for it to end. It decides nothing
//! about nodes or pairs, and sends nothing.
//!
//! ```text
//!           no copy in flight       every gate closed     every node answered          recorded
//! Quiescing ────────────────▶ Closing ───────────────▶ Sent ─────────────────▶ Settling ──────▶ over
//! ```

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tokio::sync::OwnedRwLockWriteGuard;
use tokio_util::sync::CancellationToken;

use crate::cluster::asker::Asker;
use crate::ids::{NodeId, PairId};
use crate::protocol::answer;

/// The answer where no node was reached.
const UNHEARD: &[u8] =
    b"SERVER_ERROR no server could be flushed; what they hold is void only if the proxy lives until they are back\r\n";

/// The answer where it is recorded nowhere who missed it.
const FORGOTTEN: &[u8] = b"SERVER_ERROR no server could record the flush; \
    what those hold that missed it is void only if the proxy lives until they are back\r\n";

/// The one that is under way, and the next.
#[derive(Default)]
pub(in crate::cluster) struct Flush {
    running: Option<Running>,
    /// Asked for while one runs: the next one answers them.
    queued: Vec<Asker>,
    /// A delayed one came due while one runs.
    queued_due: Option<u64>,
}

struct Running {
    /// Clients waiting for it.
    askers: Vec<Asker>,
    /// The delayed flushes up to this second are run by it.
    due: Option<u64>,
    stage: Stage,
    /// Held from `Closing` on: no copy is in flight, and none begins.
    guard: Option<OwnedRwLockWriteGuard<()>>,
    /// Whether any node was flushed, or may have been; and which refuse the command (`-F`), with
    /// their words.
    flushed: bool,
    /// Whether some server that missed it may lead with what it holds, if this proxy dies.
    forgotten: bool,
    refused: Vec<(NodeId, String)>,
}

enum Stage {
    /// Copies in flight are waited for.
    Quiescing,
    /// These pairs' gates are not closed yet.
    Closing(BTreeSet<PairId>),
    /// Nodes whose flush is unanswered, each with what ends the wait.
    Sent(BTreeMap<NodeId, CancellationToken>),
    /// Every node has answered; what has changed is being recorded.
    Settling {
        /// That pairs which were dark have no copy left is being written.
        voiding: bool,
        /// Pairs of which it is not recorded yet who leads: a node was lost, being flushed. An
        /// answer before that would be forgotten with this proxy, and the node lead with what the
        /// flush has ended.
        open: BTreeSet<PairId>,
    },
}

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cluster) enum Step {
    /// Every gate is closed: the nodes are flushed.
    Send,
    /// Every node has answered: what that changes is recorded.
    Record,
    /// It is recorded: gates open, clients are answered.
    Finish,
}

/// What every node has answered.
pub(super) struct Answered {
    /// Nodes that refuse the command while others are flushed.
    pub(super) out_of_step: Vec<NodeId>,
    /// Whether what was there is void: not where all refuse.
    pub(super) voids: bool,
    /// The delayed flushes that are struck off.
    pub(super) due: Option<u64>,
}

/// How it ended.
pub(super) struct Finished {
    pub(super) askers: Vec<Asker>,
    pub(super) answer: Bytes,
    pub(super) flushed: bool,
    /// To be dropped once the gates are open.
    pub(super) guard: Option<OwnedRwLockWriteGuard<()>>,
    /// What was asked for meanwhile.
    pub(super) next: Option<(Vec<Asker>, Option<u64>)>,
}

impl Flush {
    pub(in crate::cluster) fn is_active(&self) -> bool {
        self.running.is_some()
    }

    /// Whether gates that would open must stay closed. Not yet while copies in flight are waited
    /// for: a fail-over is not to wait too.
    pub(in crate::cluster) fn holds_gates(&self) -> bool {
        self.running.as_ref().is_some_and(|r| !matches!(r.stage, Stage::Quiescing))
    }

    /// Whether nodes are being flushed. None is taken back meanwhile: it would lead with what the
    /// flush ends.
    pub(in crate::cluster) fn is_sent(&self) -> bool {
        self.running.as_ref().is_some_and(|r| matches!(r.stage, Stage::Sent(_) | Stage::Settling { .. }))
    }

    /// Whether it waits for gates, or may have to.
    pub(super) fn looks_at_gates(&self) -> bool {
        self.running.as_ref().is_some_and(|r| matches!(r.stage, Stage::Closing(_) | Stage::Settling { .. }))
    }

    /// Asked for. `true`: it begins now, and waits for copies in flight.
    pub(super) fn begin(&mut self, askers: Vec<Asker>, due: Option<u64>) -> bool {
        if self.is_active() {
            self.queued.extend(askers);
            self.queued_due = self.queued_due.max(due);
            return false;
        }
        let (guard, refused) = (None, Vec::new());
        let (flushed, forgotten) = (false, false);
        self.running = Some(Running { askers, due, stage: Stage::Quiescing, guard, flushed, forgotten, refused });
        true
    }

    /// No copy is in flight any more; these gates are to be closed.
    pub(super) fn quiesced(&mut self, guard: OwnedRwLockWriteGuard<()>, pairs: impl Iterator<Item = PairId>) {
        if let Some(running) = &mut self.running {
            (running.guard, running.stage) = (Some(guard), Stage::Closing(pairs.collect()));
        }
    }

    /// A pair's gate is closed, or is not, or not any more.
    pub(super) fn gate(&mut self, pair: PairId, closed: bool) {
        if let Some(Running { stage: Stage::Closing(open) | Stage::Settling { open, .. }, .. }) = &mut self.running {
            if closed {
                open.remove(&pair);
            } else {
                open.insert(pair);
            }
        }
    }

    /// Nothing where it waits for no gates.
    #[cfg(test)]
    pub(super) fn waits_for_gate(&self, pair: PairId) -> Option<bool> {
        match &self.running.as_ref()?.stage {
            Stage::Closing(open) | Stage::Settling { open, .. } => Some(open.contains(&pair)),
            _ => None,
        }
    }

    /// `writing`: delayed flushes are being written on the nodes.
    pub(super) fn next(&self, writing: bool) -> Option<Step> {
        let running = self.running.as_ref()?;
        match &running.stage {
            Stage::Closing(open) if open.is_empty() => Some(Step::Send),
            Stage::Sent(waiting) if waiting.is_empty() => Some(Step::Record),
            Stage::Settling { voiding: false, open } if open.is_empty() && (running.due.is_none() || !writing) => {
                Some(Step::Finish)
            }
            _ => None,
        }
    }

    /// It is sent to these nodes; for each what ends the wait for it.
    pub(super) fn send(&mut self, nodes: Vec<NodeId>) -> BTreeMap<NodeId, CancellationToken> {
        let waiting: BTreeMap<_, _> = nodes.into_iter().map(|node| (node, CancellationToken::new())).collect();
        if let Some(running) = &mut self.running {
            running.stage = Stage::Sent(waiting.clone());
        }
        waiting
    }

    fn waiting(&self) -> Option<&BTreeMap<NodeId, CancellationToken>> {
        match &self.running.as_ref()?.stage {
            Stage::Sent(waiting) => Some(waiting),
            _ => None,
        }
    }

    /// Whether the node's answer is waited for, whether or not it was given up.
    pub(in crate::cluster) fn awaits(&self, node: NodeId) -> bool {
        self.waiting().is_some_and(|waiting| waiting.contains_key(&node))
    }

    /// Whether the node's answer is waited for with patience.
    pub(super) fn is_patient_with(&self, node: NodeId) -> bool {
        self.waiting().and_then(|waiting| waiting.get(&node)).is_some_and(|given_up| !given_up.is_cancelled())
    }

    /// The node's answer comes at once, whatever it is.
    pub(super) fn give_up(&self, node: NodeId) {
        if let Some(given_up) = self.waiting().and_then(|waiting| waiting.get(&node)) {
            given_up.cancel();
        }
    }

    /// Items of some node are gone, or may be.
    pub(super) fn took_effect(&mut self) {
        if let Some(running) = &mut self.running {
            running.flushed = true;
        }
    }

    /// Who missed it could not be recorded.
    pub(super) fn forgotten_with_the_proxy(&mut self) {
        if let Some(running) = &mut self.running {
            running.forgotten = true;
        }
    }

    /// Whether every node has answered, and what that changes is being recorded.
    pub(super) fn is_settling(&self) -> bool {
        matches!(self.running, Some(Running { stage: Stage::Settling { .. }, .. }))
    }

    pub(super) fn refused(&mut self, node: NodeId, said: String) {
        if let Some(running) = &mut self.running {
            running.refused.push((node, said));
        }
    }

    pub(super) fn answered(&mut self, node: NodeId) {
        if let Some(Running { stage: Stage::Sent(waiting), .. }) = &mut self.running {
            waiting.remove(&node);
        }
    }

    /// Every node has answered.
    pub(super) fn settle(&mut self) -> Option<Answered> {
        let running = self.running.as_mut()?;
        running.stage = Stage::Settling { voiding: false, open: BTreeSet::new() };
        let voids = running.flushed || running.refused.is_empty();
        let refused = if voids { std::mem::take(&mut running.refused) } else { Vec::new() };
        let out_of_step = refused.into_iter().map(|(node, _)| node).collect();
        Some(Answered { out_of_step, voids, due: running.due })
    }

    /// That pairs have no copy left is being written, or was.
    pub(super) fn voiding(&mut self, under_way: bool) {
        if let Some(Running { stage: Stage::Settling { voiding, .. }, .. }) = &mut self.running {
            *voiding = under_way;
        }
    }

    pub(super) fn finish(&mut self) -> Option<Finished> {
        let Running { askers, guard, flushed, forgotten, mut refused, .. } = self.running.take()?;
        let refusal = refused.pop().map(|(_, said)| Bytes::from(format!("{said}\r\n")));
        // No node can even remember it: after a crash of this proxy what they hold would count
        // again.
        let told = match (flushed, forgotten) {
            (false, _) => UNHEARD,
            (true, true) => FORGOTTEN,
            (true, false) => answer::OK,
        };
        let (queued, due) = (std::mem::take(&mut self.queued), self.queued_due.take());
        let next = (!queued.is_empty() || due.is_some()).then_some((queued, due));
        Some(Finished { askers, answer: refusal.unwrap_or(Bytes::from_static(told)), flushed, guard, next })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::RwLock;

    use super::*;
    use crate::ids::WorkerId;
    use crate::proxy::{ClientId, ClientKey, Occupant, SlotNumber};

    const PAIRS: [PairId; 2] = [PairId(0), PairId(1)];
    const NODES: [NodeId; 2] = [NodeId(0), NodeId(1)];

    fn asker(slot: u64) -> Asker {
        Asker {
            worker: WorkerId(0),
            client: ClientKey { id: ClientId(0), occupant: Occupant(0) },
            slot: SlotNumber(slot),
        }
    }

    fn guard() -> OwnedRwLockWriteGuard<()> {
        Arc::new(RwLock::new(())).try_write_owned().expect("nobody else has it")
    }

    fn slots(askers: &[Asker]) -> Vec<u64> {
        askers.iter().map(|asker| asker.slot.0).collect()
    }

    /// Up to the point where both nodes are asked.
    fn sent(due: Option<u64>) -> Flush {
        let mut flush = Flush::default();
        assert!(flush.begin(vec![asker(1)], due));
        flush.quiesced(guard(), PAIRS.into_iter());
        PAIRS.into_iter().for_each(|pair| flush.gate(pair, true));
        assert_eq!(flush.next(false), Some(Step::Send));
        assert_eq!(flush.send(NODES.to_vec()).len(), 2);
        flush
    }

    /// A fail-over is not to wait for copies too, so gates are held only from `Closing` on; none is
    /// sent anything before each is closed, and one that opens again is waited for again.
    #[test]
    fn gates_are_held_once_no_copy_is_in_flight_and_nodes_are_asked_once_all_are_closed() {
        let mut flush = Flush::default();
        assert!(flush.begin(vec![asker(1)], None) && flush.is_active());
        assert!(!flush.holds_gates() && flush.next(false).is_none(), "copies are in flight");
        flush.gate(PAIRS[0], true);
        flush.quiesced(guard(), PAIRS.into_iter());
        assert!(flush.holds_gates() && flush.looks_at_gates() && !flush.is_sent());
        flush.gate(PAIRS[0], true);
        assert_eq!(flush.next(false), None, "one gate is open");
        flush.gate(PAIRS[0], false);
        flush.gate(PAIRS[1], true);
        assert_eq!(flush.next(false), None, "the first one has opened again");
        flush.gate(PAIRS[0], true);
        assert_eq!(flush.next(false), Some(Step::Send));
    }

    #[test]
    fn it_is_over_once_every_node_has_answered_and_that_is_recorded() {
        let mut flush = sent(Some(7));
        assert!(flush.is_sent() && flush.awaits(NODES[0]) && flush.is_patient_with(NODES[0]));
        flush.gate(PAIRS[0], false);
        assert_eq!(flush.next(false), None, "gates are looked at before it is sent");
        flush.took_effect();
        flush.answered(NODES[0]);
        assert_eq!(flush.next(false), None, "the other one has not answered");
        flush.give_up(NODES[1]);
        assert!(flush.awaits(NODES[1]) && !flush.is_patient_with(NODES[1]));
        flush.answered(NODES[1]);
        assert_eq!(flush.next(false), Some(Step::Record));
        let answered = flush.settle().expect("one is under way");
        assert!(answered.voids && answered.out_of_step.is_empty() && answered.due == Some(7));
        flush.voiding(true);
        assert_eq!(flush.next(false), None, "voided pairs are being recorded");
        flush.voiding(false);
        assert_eq!(flush.next(true), None, "what it strikes off is being recorded");
        assert!(flush.is_sent(), "nobody is taken back yet");
        assert_eq!(flush.next(false), Some(Step::Finish));
        let finished = flush.finish().expect("one is under way");
        assert_eq!((slots(&finished.askers), &finished.answer[..], finished.flushed), (vec![1], answer::OK, true));
        assert!(finished.guard.is_some() && finished.next.is_none() && !flush.is_active());
    }

    /// A node was lost by it: its pairs' gates close once more, and who leads alone is recorded.
    #[test]
    fn it_is_not_over_while_a_loss_is_being_recorded() {
        let mut flush = sent(None);
        flush.took_effect();
        NODES.into_iter().for_each(|node| flush.answered(node));
        flush.settle();
        flush.gate(PAIRS[1], false);
        assert_eq!(flush.next(false), None);
        flush.gate(PAIRS[1], true);
        assert_eq!(flush.next(false), Some(Step::Finish));
    }

    /// Clients that ask meanwhile get one flush together, and a delayed one that came due with it.
    #[test]
    fn what_is_asked_for_meanwhile_is_the_next_one() {
        let mut flush = sent(None);
        assert!(!flush.begin(vec![asker(2)], None));
        assert!(!flush.begin(vec![], Some(9)) && !flush.begin(vec![asker(3)], Some(8)));
        NODES.into_iter().for_each(|node| flush.answered(node));
        flush.settle();
        let (askers, due) = flush.finish().and_then(|finished| finished.next).expect("some asked");
        assert_eq!((slots(&askers), due), (vec![2, 3], Some(9)));
        assert!(flush.begin(askers, due));
    }

    /// Where all refuse, nothing has changed, and the client gets their word. Where one does, it is
    /// out of step with the others.
    #[test]
    fn a_refusal_counts_by_what_the_others_did() {
        for other_flushed in [false, true] {
            let mut flush = sent(None);
            flush.refused(NODES[0], "CLIENT_ERROR flush_all not allowed".to_owned());
            if other_flushed {
                flush.took_effect();
            } else {
                flush.refused(NODES[1], "CLIENT_ERROR flush_all not allowed".to_owned());
            }
            NODES.into_iter().for_each(|node| flush.answered(node));
            let answered = flush.settle().expect("one is under way");
            assert_eq!((answered.voids, answered.out_of_step.len()), (other_flushed, usize::from(other_flushed)));
            let finished = flush.finish().expect("one is under way");
            let expected: &[u8] = if other_flushed { answer::OK } else { b"CLIENT_ERROR flush_all not allowed\r\n" };
            assert_eq!(finished.answer, expected);
        }
    }

    #[test]
    fn where_nobody_could_be_asked_the_client_is_told() {
        let mut flush = sent(None);
        NODES.into_iter().for_each(|node| flush.answered(node));
        assert!(flush.settle().is_some_and(|answered| answered.voids), "whoever is away holds what it has ended");
        assert!(flush.finish().is_some_and(|finished| finished.answer == UNHEARD));
    }
}
