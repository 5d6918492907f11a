//! Orders to the owners of single keys: what only a follower holds is adopted by its leader; copies that differ are mended.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Cluster;
use crate::ids::PairId;
use crate::proxy::{Adopted, Command, Settlement, owner_of};
use crate::resync::{Fill, Missed, Settled};

impl Cluster {
    /// A pair that is to adopt remembers what clients write from its first route on: what they delete must not come back.
    pub(super) fn remember_writes(&mut self, id: PairId) {
        let run = &mut self.pairs[id.index()];
        if run.first_fill != Some(Fill::Adopt) {
            run.written = None;
        } else if run.written.is_none() {
            // All pairs together as much as is kept of what nodes miss; more, and the pair cannot adopt.
            let written = Missed::new(self.written_budget.clone());
            written.reset();
            run.written = Some(Arc::new(written));
        }
    }

    /// Whether the pair may still adopt: it knows of every write since its first route.
    pub(super) fn knows_writes(&self, id: PairId) -> bool {
        self.pairs[id.index()].written.as_ref().is_some_and(|written| !written.overflowed())
    }

    pub(super) fn order_adoption(&mut self, pair: PairId, key: Bytes, item: Adopted, reply: oneshot::Sender<Settled>) {
        // Dropped unanswered, the reply ends the resync.
        if self.knows_writes(pair) {
            let owner = owner_of(&key, self.workers.len() as u16);
            let ticket = self.ticket(reply);
            let _ = self.workers[usize::from(owner)].send(Command::Adopt { ticket, pair, key, item });
        }
    }

    /// A number for an order; `reply` hears what became of it.
    pub(super) fn ticket(&mut self, reply: oneshot::Sender<Settled>) -> u64 {
        self.last_ticket += 1;
        self.orders.insert(self.last_ticket, reply);
        self.last_ticket
    }

    pub(super) fn settled(&mut self, ticket: u64, settlement: Settlement) {
        if let Some(reply) = self.orders.remove(&ticket) {
            let _ = reply.send(match settlement {
                Settlement::Done => Settled::Done,
                Settlement::Superfluous => Settled::Superfluous,
                Settlement::Failed => Settled::Failed,
            });
        }
    }
}
