//! What the core leaves for its shell to do, until the shell polls for it.

use std::collections::VecDeque;

use crate::ids::WorkerId;
use crate::proxy::client::Client;
use crate::proxy::handles::{ClientId, ConnId, DialNumber};
use crate::proxy::link::Conn;
use crate::stretch::Stretch;

use super::Core;
use super::messages::{Event, PeerMessage};

/// See the module's words. The lists keep their memory: nothing is allocated for a request.
#[derive(Default, Debug)]
pub(super) struct Outbox {
    pub(super) events: VecDeque<Event>,
    pub(super) peers: VecDeque<(WorkerId, PeerMessage)>,
    pub(super) dials: VecDeque<(ConnId, DialNumber)>,
    pub(super) hangups: VecDeque<ConnId>,
    urgent_conns: Queue<ConnId>,
    dirty_conns: Queue<ConnId>,
    dirty_clients: Queue<ClientId>,
    resumable: Queue<ClientId>,
}

/// First in, first out; mostly emptied before more comes. A push costs what a vector's does, which
/// is half of a `VecDeque`'s, and every request makes three.
#[derive(Debug)]
struct Queue<T> {
    items: Vec<T>,
    /// This many of them were taken.
    taken: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { items: Vec::new(), taken: 0 }
    }
}

impl<T: Copy> Queue<T> {
    #[inline(always)]
    fn push(&mut self, item: T) {
        // Once half are taken: moving the rest costs no more than pushing it did.
        if self.items.len() == self.items.capacity() && self.taken * 2 >= self.items.len() {
            self.items.drain(..std::mem::take(&mut self.taken));
        }
        self.items.push(item);
    }

    #[inline(always)]
    fn pop(&mut self) -> Option<T> {
        let item = *self.items.get(self.taken)?;
        self.taken += 1;
        if self.taken == self.items.len() {
            self.items.clear();
            self.taken = 0;
        }
        Some(item)
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.items.len() - self.taken
    }

    #[inline(always)]
    fn is_empty(&self) -> bool {
        // When all are taken, `items` is cleared.
        self.items.is_empty()
    }
}

impl Outbox {
    /// The connection has something to write.
    #[inline(always)]
    pub(super) fn mark_conn(&mut self, conn: &mut Conn, at: ConnId) {
        // An urgent connection is also dirty.
        if !conn.dirty {
            conn.dirty = true;
            self.dirty_conns.push(at);
        }
    }

    /// The same also where it waits for room in its socket, which is over or is not to be waited
    /// for. (Being on the list twice does no harm.)
    pub(super) fn mark_conn_anyway(&mut self, conn: &mut Conn, at: ConnId) {
        (conn.dirty, conn.blocked) = (true, false);
        let list = if conn.urgent { &mut self.urgent_conns } else { &mut self.dirty_conns };
        list.push(at);
    }

    /// What the connection has to write has a follower's part of a write in it.
    #[inline(always)]
    pub(super) fn mark_conn_urgent(&mut self, conn: &mut Conn, at: ConnId) {
        if !std::mem::replace(&mut conn.urgent, true) && !conn.blocked {
            conn.dirty = true;
            self.urgent_conns.push(at);
        }
    }

    /// The client has something to take, or is to be closed.
    #[inline(always)]
    pub(super) fn mark_client(&mut self, client: &mut Client, id: ClientId) {
        if !client.dirty {
            client.dirty = true;
            self.dirty_clients.push(id);
        }
    }

    /// The same also where it waits for room in its socket, which is over.
    pub(super) fn mark_client_anyway(&mut self, client: &mut Client, id: ClientId) {
        client.dirty = true;
        self.dirty_clients.push(id);
    }

    /// Whether a burst has left one of its lists long.
    pub(super) fn is_stretched(&self) -> bool {
        let conns = self.urgent_conns.items.is_stretched() || self.dirty_conns.items.is_stretched();
        let clients = self.dirty_clients.items.is_stretched() || self.resumable.items.is_stretched();
        let told = self.events.is_stretched() || self.peers.is_stretched();
        conns || clients || told || self.dials.is_stretched() || self.hangups.is_stretched()
    }

    /// What is empty of them goes back.
    pub(super) fn give_back(&mut self) {
        self.urgent_conns.items.give_back();
        self.dirty_conns.items.give_back();
        self.dirty_clients.items.give_back();
        self.resumable.items.give_back();
        self.events.give_back();
        self.peers.give_back();
        self.dials.give_back();
        self.hangups.give_back();
    }

    pub(super) fn resumable(&self) -> usize {
        self.resumable.len()
    }

    /// The client's input goes on in the next turn. Until then it stays stalled: nothing more is
    /// read from it.
    pub(super) fn resume(&mut self, client: &mut Client, id: ClientId) {
        if !client.resuming {
            client.resuming = true;
            self.resumable.push(id);
        }
    }
}

impl Core {
    /// For the control plane.
    #[inline]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.outbox.events.pop_front()
    }

    /// For another worker.
    #[inline]
    pub fn poll_peer(&mut self) -> Option<(WorkerId, PeerMessage)> {
        self.outbox.peers.pop_front()
    }

    /// A connection to open, and which dial of it this is.
    #[inline]
    pub fn poll_dial(&mut self) -> Option<(ConnId, DialNumber)> {
        self.outbox.dials.pop_front()
    }

    /// A connection that the core has given up: to be closed before anything else is done.
    pub fn poll_hangup(&mut self) -> Option<ConnId> {
        self.outbox.hangups.pop_front()
    }

    /// A connection with a follower's part of a write to be written.
    #[inline]
    pub fn poll_urgent_conn(&mut self) -> Option<ConnId> {
        loop {
            let at = self.outbox.urgent_conns.pop()?;
            if self.links[at].urgent {
                return Some(at);
            }
        }
    }

    /// A connection with something to write, the urgent ones first.
    #[inline]
    pub fn poll_dirty_conn(&mut self) -> Option<ConnId> {
        let urgent = self.poll_urgent_conn();
        if urgent.is_some() {
            return urgent;
        }
        loop {
            let at = self.outbox.dirty_conns.pop()?;
            // One that was urgent is written by now, and clean.
            if self.links[at].dirty {
                return Some(at);
            }
        }
    }

    /// A client with something to take, or to be closed.
    #[inline]
    pub fn poll_dirty_client(&mut self) -> Option<ClientId> {
        self.outbox.dirty_clients.pop()
    }

    /// How many clients [`Core::poll_dirty_client`] tells of.
    pub fn dirty_clients(&self) -> usize {
        self.outbox.dirty_clients.len()
    }

    /// A client whose input goes on in this turn. To be called as often as [`Core::next_turn`] has
    /// returned: clients that are added meanwhile wait for the turn after it.
    #[inline]
    pub fn poll_resumable(&mut self) -> Option<ClientId> {
        self.outbox.resumable.pop()
    }

    /// Whether there is anything to poll for.
    #[inline]
    pub fn has_output(&self) -> bool {
        let out = &self.outbox;
        !out.events.is_empty()
            || !out.peers.is_empty()
            || !out.dials.is_empty()
            || !out.hangups.is_empty()
            || !out.urgent_conns.is_empty()
            || !out.dirty_conns.is_empty()
            || !out.dirty_clients.is_empty()
            || !out.resumable.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::handles::{ClientKey, Occupant};

    #[test]
    fn each_list_is_given_back() {
        const MANY: usize = 20_000;
        let at = ConnId::first(crate::ids::NodeId(0));
        let event = || Event::Hint { node: at.node };
        let peer = || (WorkerId(0), PeerMessage::TurnAway(ClientKey { id: ClientId(0), occupant: Occupant(0) }));
        for list in 0..8 {
            let mut out = Outbox::default();
            match list {
                0 => out.events.extend((0..MANY).map(|_| event())),
                1 => out.peers.extend((0..MANY).map(|_| peer())),
                2 => out.dials.extend((0..MANY).map(|_| (at, DialNumber(0)))),
                3 => out.hangups.extend((0..MANY).map(|_| at)),
                4 => out.urgent_conns.items.extend((0..MANY).map(|_| at)),
                5 => out.dirty_conns.items.extend((0..MANY).map(|_| at)),
                6 => out.dirty_clients.items.extend((0..MANY).map(|_| ClientId(0))),
                _ => out.resumable.items.extend((0..MANY).map(|_| ClientId(0))),
            }
            assert!(!out.is_stretched(), "list {list} is full");
            out.events.clear();
            out.peers.clear();
            out.dials.clear();
            out.hangups.clear();
            while out.urgent_conns.pop().or_else(|| out.dirty_conns.pop()).is_some() {}
            while out.dirty_clients.pop().or_else(|| out.resumable.pop()).is_some() {}
            assert!(out.is_stretched(), "list {list}");
            out.give_back();
            assert!(!out.is_stretched(), "list {list}");
        }
    }

    #[test]
    fn a_queue_that_is_never_empty_does_not_grow() {
        let mut queue = Queue::default();
        queue.push(0);
        for next in 1..10_000 {
            queue.push(next);
            assert_eq!((queue.pop(), queue.len(), queue.is_empty()), (Some(next - 1), 1, false));
        }
        assert!(queue.items.capacity() <= 8, "{}", queue.items.capacity());
        assert_eq!((queue.pop(), queue.pop(), queue.is_empty()), (Some(9_999), None, true));
    }
}
