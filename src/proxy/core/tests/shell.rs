//! The shell around each worker, as `src/server/worker.rs` does it: what a turn left in the outbox
//! is carried out.

use super::node::command_len;
use super::world::{Process, Wire, World};
use crate::ids::NodeId;
use crate::pair::Reason;
use crate::proxy::core::{Core, Event, Now, Room, ToWrite};
use crate::proxy::handles::{ClientId, ConnId};
use bytes::BytesMut;

impl World {
    pub(super) fn settle(&mut self, worker: usize) {
        loop {
            let now = self.now;
            let core = &mut self.cores[worker];
            if !core.has_output() {
                return;
            }
            self.events[worker].extend(events(core));
            while let Some((to, message)) = core.poll_peer() {
                self.peers[worker][to.index()].push_back(message);
            }
            while let Some(at) = core.poll_hangup() {
                self.wires[worker][at.node.index()] = Wire::default();
            }
            while let Some((at, _)) = core.poll_dial() {
                if self.process[at.node.index()] == Process::Dead {
                    core.handle_conn_down(now, at, Reason::Refused);
                } else {
                    self.wires[worker][at.node.index()] = Wire { up: true, ..Wire::default() };
                    core.handle_conn_up(now, at);
                }
            }
            while let Some(at) = core.poll_dirty_conn() {
                let out = core.conn_to_write(now, at);
                let wire = &mut self.wires[worker][at.node.index()];
                let Some(out) = out else {
                    // Our half is closed; the node closes the other one when it has seen
                    // everything.
                    wire.broken = true;
                    continue;
                };
                let bytes = take(out);
                if !wire.up || wire.broken {
                    continue;
                }
                wire.raw.extend_from_slice(&bytes);
                while let Some(len) = command_len(&wire.raw) {
                    wire.to.push_back(wire.raw.drain(..len).collect());
                }
            }
            while let Some(id) = core.poll_dirty_client() {
                let Some(ToWrite { closes, unsent, .. }) = core.client_to_write(id) else { continue };
                let bytes = unsent.map_or_else(Vec::new, take);
                *self.told.entry((worker, id)).or_default() += &String::from_utf8_lossy(&bytes);
                self.history.answered(worker, id, &bytes);
                if closes {
                    core.handle_gone(id);
                } else {
                    core.handle_written(id);
                }
            }
            resume(core, now);
        }
    }
}

/// The next turn of the clients whose input had to wait.
pub(super) fn resume(core: &mut Core, now: Now) {
    for _ in 0..core.next_turn() {
        let id = core.poll_resumable().unwrap();
        core.handle_resume(now, id);
    }
}

/// A client sends this, whether or not it is read from.
pub(super) fn client_says(core: &mut Core, now: Now, id: ClientId, bytes: &[u8]) {
    let mut block = BytesMut::new();
    match core.client_room(id, &mut block) {
        Room::Own(room) => {
            room.extend_from_slice(bytes);
            core.handle_more(now, id);
        }
        Room::Block(room) => {
            room.extend_from_slice(bytes);
            core.handle_input(now, id, block);
        }
        // A real shell stops reading here.
        Room::Waits => core.comes_anyway(id, bytes),
        Room::Over => {}
    }
}

/// A node sends this.
pub(super) fn node_says(core: &mut Core, now: Now, node: NodeId, bytes: &[u8]) {
    let at = ConnId::first(node);
    core.conn_room(at).extend_from_slice(bytes);
    core.handle_node_input(now, at);
}

/// What a node is sent.
pub(super) fn node_hears(core: &mut Core, now: Now, node: NodeId) -> String {
    String::from_utf8(core.conn_to_write(now, ConnId::first(node)).map_or_else(Vec::new, take)).unwrap()
}

/// What a client is told; its socket takes all of it.
pub(super) fn client_hears(core: &mut Core, id: ClientId) -> Vec<u8> {
    let told = core.client_to_write(id).unwrap().unsent.map_or_else(Vec::new, take);
    core.handle_written(id);
    told
}

/// What the control plane is told.
pub(super) fn events(core: &mut Core) -> Vec<Event> {
    std::iter::from_fn(|| core.poll_event()).collect()
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
