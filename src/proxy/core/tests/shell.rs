//! The shell around each worker, as `src/server/worker.rs` does it: what a turn left in the outbox
//! is carried out.

use super::node::command_len;
use super::world::{Process, Wire, World};
use crate::pair::Reason;
use crate::proxy::link::LinkState;

impl World {
    pub(super) fn settle(&mut self, worker: usize) {
        loop {
            let out = std::mem::take(&mut self.cores[worker].outbox);
            let idle = out.dials.is_empty() && out.dirty_conns.is_empty() && out.dirty_clients.is_empty();
            if idle && out.resumable.is_empty() && out.events.is_empty() && out.peers.is_empty() {
                return;
            }
            self.events[worker].extend(out.events);
            for (to, message) in out.peers {
                self.peers[worker][to.index()].push_back(message);
            }
            for at in out.hangups {
                self.wires[worker][at.node.index()] = Wire::default();
            }
            let core = &mut self.cores[worker];
            for (at, _) in out.dials {
                if self.process[at.node.index()] == Process::Dead {
                    core.conn_down(at, Reason::Refused);
                } else {
                    self.wires[worker][at.node.index()] = Wire { up: true, ..Wire::default() };
                    core.conn_up(at);
                }
            }
            for at in out.dirty_conns {
                let (state, out) = core.conn_to_write(at);
                let wire = &mut self.wires[worker][at.node.index()];
                if state == LinkState::Discarding {
                    // Our half is closed; the node closes the other one when it has seen
                    // everything.
                    wire.broken = true;
                    continue;
                }
                let bytes = take(out);
                if !wire.up || wire.broken {
                    continue;
                }
                wire.raw.extend_from_slice(&bytes);
                while let Some(len) = command_len(&wire.raw) {
                    wire.to.push_back(wire.raw.drain(..len).collect());
                }
            }
            for index in out.dirty_clients {
                let Some(client) = core.client(index) else { continue };
                client.dirty = false;
                let bytes = client.unsent().map_or_else(Vec::new, take);
                *self.told.entry((worker, index)).or_default() += &String::from_utf8_lossy(&bytes);
                self.history.answered(worker, index, &bytes);
                if client.closing && client.is_idle() {
                    core.client_gone(index);
                } else {
                    core.client_written(index);
                }
            }
            for index in out.resumable {
                core.client_resume(index);
            }
        }
    }
}

/// What a socket would take.
pub(super) fn take(out: &mut crate::protocol::out::OutQueue) -> Vec<u8> {
    let mut all = Vec::new();
    while !out.is_empty() {
        let mut slices = [std::io::IoSlice::new(&[]); crate::protocol::out::MAX_SLICES];
        let count = out.slices(&mut slices);
        let flat: Vec<u8> = slices[..count].iter().flat_map(|s| s.iter().copied()).collect();
        out.advance(flat.len());
        all.extend_from_slice(&flat);
    }
    all
}
