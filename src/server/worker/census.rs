//! Who is connected to this worker, for `stats conns`.

use crate::proxy::{Connected, Event};

use super::{ClientIo, Shell};

/// This many are told, each for two system calls: 2,048 in one turn, a millisecond that the others
/// wait.
const TOLD_MAX: usize = 1024;

impl Shell {
    /// Tells the control plane, which asked in this round.
    pub(super) fn tell_connected(&self, round: u64) {
        let told = self.core.client_states(self.clock.now()).take(TOLD_MAX).map(|(id, state, silent)| {
            let (peer, local) = match (self.clients.get(id.index()).and_then(Option::as_ref), &self.uring) {
                (Some(ClientIo::Stream { stream, .. }), _) => stream.ends(),
                (Some(ClientIo::Uring(io)), Some(uring)) => uring.ends(io.slot),
                _ => Default::default(),
            };
            Connected { peer, local, state, silent }
        });
        let told: Vec<Connected> = told.collect();
        let more = self.core.client_count() - told.len();
        // The control plane may have ended.
        let _ = self.events.send(Event::Connected { worker: self.core.worker(), round, told, more });
    }
}
