//! Orders to the owners of single keys: what only a follower holds is adopted by its leader; copies
//! that differ are mended.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Cluster;
use crate::backend::NodeView;
use crate::backend::marker::{Fact, Record};
use crate::ids::{NodeId, PairId, Place};
use crate::pair::{self, FillEvent, Loss, State, Word};
use crate::proxy::{Adopted, Command, Settlement, Ticket, owner_of};

/// Those that are not settled yet.
#[derive(Default)]
pub(super) struct Orders {
    replies: BTreeMap<Ticket, oneshot::Sender<Settlement>>,
    last: Ticket,
}

impl Orders {
    /// A number for the next one; `reply` hears what became of it.
    fn begin(&mut self, reply: oneshot::Sender<Settlement>) -> Ticket {
        self.last.0 += 1;
        self.replies.insert(self.last, reply);
        self.last
    }

    fn end(&mut self, ticket: Ticket, settlement: Settlement) {
        if let Some(reply) = self.replies.remove(&ticket) {
            // The job that gave the order may be over.
            let _ = reply.send(settlement);
        }
    }
}

impl Cluster {
    /// What clients have written is deleted on the follower, or was made there too: this is
    /// recorded, so that the next proxy can go on.
    pub(super) fn record_adopting(&mut self, node: NodeId, pairs: &[PairId], reply: oneshot::Sender<bool>) {
        // What a flush leaves behind on the follower is never adopted; dropped unanswered, the
        // reply ends the resync.
        if self.flush.is_active() || !self.are_filled(node, pairs) || !pairs.iter().all(|&p| self.knows_writes(p)) {
            return;
        }
        let mut facts = Vec::new();
        for &pair in pairs {
            if !self.pairs[pair].plan.is_adopting() {
                self.plan(pair, FillEvent::Adopting);
                facts.push((pair, Fact::Adopting(self.topology.place(node).other())));
            }
        }
        self.record_again_for(node, facts, true, reply);
    }

    /// The leaders hold everything: from here on the follower is filled like any other, and purged
    /// if that is cut off.
    pub(super) fn record_adopted(&mut self, node: NodeId, pairs: &[PairId], reply: oneshot::Sender<bool>) {
        if !self.are_filled(node, pairs) {
            return;
        }
        let mut facts = Vec::new();
        for &pair in pairs {
            self.plan(pair, FillEvent::Adopted);
            facts.push((pair, Fact::Filling(self.topology.place(node))));
        }
        self.record_again_for(node, facts, false, reply);
    }

    fn are_filled(&self, node: NodeId, pairs: &[PairId]) -> bool {
        let leader = self.topology.place(node).other();
        pairs.iter().all(|p| self.pairs[*p].pair.state() == State::Recovering { leader })
    }

    /// The leader of a pair that adopts is lost. While a job is at work its end tells whether the
    /// follower may lead; without one nothing was copied there, and it has made every write.
    pub(super) fn adoption_lost_its_leader(&mut self, id: PairId, follower: Place, event: pair::Event) {
        if self.is_being_filled(self.node_at(id, follower), id) {
            return;
        }
        self.apply(id, pair::Event::Undone(follower));
        if let pair::Event::Lost(_, Loss::MemoryGone, _) = event {
            self.apply(id, event);
        }
    }

    /// A node that did not answer at the start, where its items may count, and what it says of
    /// that.
    pub(super) fn judge_resumption(&mut self, node: NodeId, view: &NodeView) {
        let place = self.topology.place(node);
        for pair in self.topology.pairs_of(node) {
            let found = self.record_in(view, pair).filter(|_| self.is_ours(node, view));
            let word = match found {
                // A proxy has used it, and no record tells what it has missed since: it may have
                // been away for a week.
                None if view.ring.is_some() || view.ring_unread || view.session.is_some() => Word::Used,
                None => Word::Nothing,
                Some(Record { fact: Fact::Adopting(leader), epoch, .. })
                    if self.pairs[pair].plan.leads_adoption(leader) =>
                {
                    Word::Adopting(epoch)
                }
                Some(record) => Word::Other(record.epoch),
            };
            self.plan(pair, FillEvent::FirstWord(place, word));
        }
    }

    /// Whether the node at this place is one whose items are to be adopted.
    pub(super) fn follows_in_adoption(&self, pair: PairId, place: Place) -> bool {
        let run = &self.pairs[pair];
        run.plan.follows_in_adoption(run.pair.state(), place)
    }

    /// Whether the pair may still adopt: it knows of every write since its first route.
    pub(super) fn knows_writes(&self, id: PairId) -> bool {
        self.pairs[id].written.as_ref().is_some_and(|written| !written.overflowed())
    }

    pub(super) fn order_adoption(
        &mut self,
        pair: PairId,
        key: Bytes,
        item: Adopted,
        reply: oneshot::Sender<Settlement>,
    ) {
        // Dropped unanswered, the reply ends the resync.
        if self.knows_writes(pair) {
            let owner = owner_of(&key, self.workers.len() as u16);
            let ticket = self.ticket(reply);
            let _ = self.workers[owner.index()].send(Command::Adopt { ticket, pair, key, item });
        }
    }

    /// A number for an order; `reply` hears what became of it.
    pub(super) fn ticket(&mut self, reply: oneshot::Sender<Settlement>) -> Ticket {
        self.orders.begin(reply)
    }

    pub(super) fn settled(&mut self, ticket: Ticket, settlement: Settlement) {
        self.orders.end(ticket, settlement);
    }
}
