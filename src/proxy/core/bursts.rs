//! What a burst of requests has needed is given back, some time after it.
//!
//! | grows with | what | goes back |
//! |---|---|---|
//! | clients | `Clients`; the shell's table and io_uring's (`Places`) | as they leave |
//! | requests | `OpTable`; the lists of `Conn`, `Outbox`, `Starved` and `Fences`; `Spare` | here |
//! | sends on io_uring | its spare queues and lists | `Shell::give_back` |
//! | bytes | a client's `partial` and `Backlog`, values | as they are used up |
//! | bytes | a connection's input, an `OutQueue` | when empty, beyond a bound (`room.rs`, `out.rs`) |
//! | keys | what is parked, fenced, looked for | with the last of them |
//! | nothing | `Gone`, `Adds`, `WrittenBriefly` have a fixed size | |
//!
//! What is freed so is the allocator's; `daemon/heap.rs` gives it to the system.

use crate::proxy::link::Conn;

use super::Core;

/// So often, at most. What comes again and again in less time keeps most of its room, and to make
/// the rest anew costs nothing beside it.
const PAUSE_US: u64 = 1_000_000;

impl Core {
    /// Whether there is anything to be given back. Until it is, there are ticks.
    pub(super) fn is_stretched(&self) -> bool {
        self.ops.is_wide()
            || self.spare.is_much()
            || self.outbox.is_stretched()
            || self.starved.is_stretched()
            || self.fences.is_stretched()
            || self.links.iter().any(|link| link.conns.iter().any(Conn::is_stretched))
    }

    /// Called at every tick.
    pub(super) fn give_room_back(&mut self) {
        self.ops.give_back();
        if self.now.us.saturating_sub(self.gave_back_us) < PAUSE_US {
            return;
        }
        self.gave_back_us = self.now.us;
        self.spare.give_back();
        self.outbox.give_back();
        self.starved.give_back();
        self.fences.give_back();
        for node in self.links.nodes() {
            self.links.to(node).for_each(|at| self.links[at].give_back());
        }
    }
}
