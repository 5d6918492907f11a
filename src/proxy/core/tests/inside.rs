//! What several tests ask of a core that it tells nobody else, and what they make it believe.

use super::super::Core;
use crate::proxy::handles::{ClientId, ConnId};
use crate::proxy::link::LinkState;

impl Core {
    /// Bytes that it counts against its memory.
    pub(super) fn memory_used(&self) -> usize {
        self.memory.used()
    }

    /// The next answers of a large value are held to be this long, as after one that was.
    pub(super) fn has_met(&mut self, bytes: u32) {
        self.largest = bytes;
    }

    /// The same of one client's answers.
    pub(super) fn client_has_met(&mut self, client: ClientId, bytes: u32) {
        self.clients[client].largest = bytes;
    }

    /// Bytes that came although none should have been read. A shell's kernel keeps them.
    pub(super) fn comes_anyway(&mut self, client: ClientId, bytes: &[u8]) {
        self.clients[client].partial.extend_from_slice(bytes);
    }

    pub(super) fn is_closing(&self, client: ClientId) -> bool {
        self.clients[client].closing
    }

    pub(super) fn link_state(&self, at: ConnId) -> LinkState {
        self.links[at].state
    }

    /// Requests on a connection that are unanswered.
    pub(super) fn flights(&self, at: ConnId) -> usize {
        self.links[at].flights.len()
    }

    pub(super) fn is_urgent(&self, at: ConnId) -> bool {
        self.links[at].urgent
    }
}
