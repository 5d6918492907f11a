//! Clients whose large values find no room in `--client-memory`. Nothing more is read from them
//! until there is some; a client that has waited as long as for a pair's next route gets an error,
//! and its value is thrown away as it comes. Those that wait take turns strictly in the order in
//! which they came.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::request::{Limits, Parsed};
use crate::proxy::client::Ended;
use crate::proxy::handles::{ClientId, ClientKey};
use crate::proxy::memory::FREE;
use crate::stretch::Stretch;

use super::Core;

/// memcached's own words where a value finds no memory, and why.
const NO_MEMORY: Refusal =
    Refusal::NoMemory("out of memory storing object: values that clients are sending take half of --client-memory");

/// Of a line, which cannot be passed over.
const NO_MEMORY_FOR_LINE: Refusal = Refusal::NoMemory(
    "out of memory reading request: lines and values that clients are sending take half of --client-memory",
);

/// Clients that wait for memory, each since then.
#[derive(Default, Debug)]
pub(super) struct Starved {
    queue: VecDeque<(ClientKey, u64)>,
}

impl Starved {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// As of a list.
    pub(super) fn is_stretched(&self) -> bool {
        self.queue.is_stretched()
    }

    pub(super) fn give_back(&mut self) {
        self.queue.give_back();
    }
}

impl Core {
    /// Whether this many bytes may be received for the request at the front of a client's input.
    /// `false`: it has to wait.
    pub(super) fn may_receive(&mut self, id: ClientId, bytes: usize) -> bool {
        let Some(client) = self.clients.get_mut(id) else { return false };
        if bytes <= FREE || client.has_received(bytes) {
            return true;
        }
        client.end_receiving();
        if self.starved.is_empty()
            && let Some(share) = self.memory.receive(bytes)
        {
            client.may_receive(share, &mut self.spare);
            return true;
        }
        if !client.is_starved() {
            let key = ClientKey { id, occupant: client.occupant };
            self.starved.queue.push_back((key, self.now.us));
        }
        client.starve(&mut self.spare);
        false
    }

    /// Those that wait go on if there is room by now, and get an error if there was none in time.
    /// Called at every tick, because other clients, also of other workers, make the room.
    pub(super) fn feed_starved(&mut self) {
        let patience = self.parking_patience();
        while let Some(&(key, since_us)) = self.starved.queue.front() {
            if let Some(client) = self.clients.of(key).filter(|c| c.is_starved() && !c.closing) {
                if let Some(share) = self.memory.receive(client.need as usize) {
                    client.may_receive(share, &mut self.spare);
                } else if self.now.us.saturating_sub(since_us) > patience {
                    client.refuse_value();
                } else {
                    return;
                }
                self.outbox.resume(client, key.id);
            }
            self.starved.queue.pop_front();
        }
    }

    /// The request at the front of a client's input found no memory in time.
    pub(super) fn refuse_starved(&mut self, id: ClientId, chunk: &mut BytesMut) -> bool {
        self.stats.refused();
        let dialect = self.clients[id].dialect;
        match dialect.next(chunk, &Limits { item_size_max: 0 }) {
            Parsed::TooLarge { request, style, len, swallow } => {
                if !self.begin_too_large(id, &request, style, chunk, (len, NO_MEMORY)) {
                    // Behind an unanswered command on the same key.
                    self.clients[id].refuse_value();
                    return false;
                }
                self.clients[id].swallow = swallow as u32;
            }
            _ => {
                self.answer_at_once(id, dialect.unasked(), 0, Outcome::Refused(NO_MEMORY_FOR_LINE));
                self.close_client(id, Ended::NoMemory);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::handles::Occupant;

    #[test]
    fn very_many_that_have_waited_leave_nothing() {
        let mut starved = Starved::default();
        let key = ClientKey { id: ClientId(0), occupant: Occupant(0) };
        starved.queue.extend((0..10_000).map(|us| (key, us)));
        assert!(!starved.is_stretched());
        starved.queue.clear();
        assert!(starved.is_stretched());
        starved.give_back();
        assert!(!starved.is_stretched());
    }
}
