//! Orders of the control plane about single keys: mend one, adopt one. They are operations like
//! clients' commands, and pass the same owner; but none waits for its pair's next route: the
//! control plane makes the routes, and asks again.

use bytes::Bytes;

use crate::ids::{PairId, is_reserved};
use crate::protocol::outcome::Outcome;
use crate::proxy::handles::Ticket;
use crate::proxy::op::{Kind, Op, Origin, Wire};
use crate::proxy::route::{Flow, Follower, Route};
use crate::ring::Topology;

use super::Core;
use super::messages::{Adopted, Event, Settlement};

/// What became of an order, from the answer that a client would have got.
pub(super) fn settlement(answer: &Outcome) -> Settlement {
    match answer {
        Outcome::Stored | Outcome::StoredAs(_) => Settlement::Done,
        Outcome::NotStored => Settlement::Superfluous,
        _ => Settlement::Failed,
    }
}

impl Core {
    pub(super) fn settle(&mut self, ticket: Ticket, settlement: Settlement) {
        self.outbox.events.push_back(Event::Settled { ticket, settlement });
    }

    /// Compares the two copies of a key, and repairs the follower's.
    pub(super) fn mend(&mut self, ticket: Ticket, pair: PairId, key: Bytes) {
        let slot = &self.pairs[pair];
        let in_sync = matches!(&slot.route, Route::Open(Flow { follower: Follower::InSync(_), .. }));
        // What is parked behind an open gate met a broken node: an edge is near.
        if !in_sync || !slot.parked.is_empty() || !self.may_order(&key) {
            return self.settle(ticket, Settlement::Failed);
        }
        let mut op = order(ticket, Kind::Mend, pair, &key, b"");
        op.answer = Some(Outcome::Stored);
        let id = self.take_in(op);
        self.repair(id, None);
    }

    /// Adds an item that only the follower holds to the leader. All writes of the key pass this
    /// worker and one connection, so nothing comes between the look at what was written and the
    /// `add`.
    pub(super) fn adopt(&mut self, ticket: Ticket, pair: PairId, key: &[u8], item: &Adopted) {
        let written = match &self.pairs[pair].route {
            Route::Open(Flow { follower: Follower::Filling(..), written: Some(written), .. }) => Some(written),
            _ => None,
        };
        let Some(written) = written.filter(|_| self.may_order(key)) else {
            return self.settle(ticket, Settlement::Failed);
        };
        if written.contains(key) {
            // Deleted, perhaps: the add would bring it back.
            return self.settle(ticket, Settlement::Superfluous);
        }
        // Looked at last: an overflow in between emptied the set.
        if written.overflowed() {
            return self.settle(ticket, Settlement::Failed);
        }
        let mut op = order(ticket, Kind::Add, pair, key, &item.value);
        op.flags = item.flags;
        op.exptime = item.exptime;
        let id = self.take_in(op);
        self.begin(id);
    }

    /// Whether the key is this worker's, and no marker.
    fn may_order(&self, key: &[u8]) -> bool {
        self.owner(Topology::key_hash(key)) == self.settings.worker && !is_reserved(key)
    }
}

fn order(ticket: Ticket, kind: Kind, pair: PairId, key: &[u8], value: &[u8]) -> Op {
    let (end, len) = (key.len() as u32, value.len() as u32);
    let raw = [key, value].concat().into();
    Op {
        data: (end, end + len),
        wire: Wire::of_key(key),
        ..Op::new(Origin::Control(ticket), kind, pair, Topology::key_hash(key), raw, (0, end))
    }
}
