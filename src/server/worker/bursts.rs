//! What a burst has needed of a worker's shell is given back.

use crate::proxy::ClientId;
use crate::server::uring::Uring;
use crate::stretch::Stretch;

use super::{ClientIo, Shell};

/// So often, at most, microseconds.
const PAUSE_US: u64 = 1_000_000;

impl Shell {
    /// Whether no tick is needed.
    pub(super) fn is_quiet(&self) -> bool {
        self.core.is_quiet() && !self.uring.as_ref().is_some_and(Uring::is_stretched)
    }

    /// What a burst has needed of the shell goes back, as of the core.
    pub(super) fn give_back(&mut self) {
        let now_us = self.now().us;
        if now_us.saturating_sub(self.gave_back_us) < PAUSE_US {
            return;
        }
        self.gave_back_us = now_us;
        if let Some(uring) = &mut self.uring {
            uring.give_back();
        }
    }

    /// A client's socket is given up; nothing is left of its place at the end of the table.
    pub(super) fn take_client_io(&mut self, id: ClientId) -> Option<ClientIo> {
        let gone = self.clients.get_mut(id.index())?.take();
        while let Some(None) = self.clients.last() {
            self.clients.pop();
        }
        self.clients.give_back();
        gone
    }
}
