//! Clients that do not read what they were answered, at the shutdown of a proxy that others stand
//! by for. The clients of all of them wait for its end, and a client that does not read must not
//! delay them: its requests are carried through without it.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::proxy::ClientId;

use super::{ClientIo, Shell, Worker};

pub(super) struct Slow {
    begun: Instant,
    /// How long a client may take nothing of its answers; twice that in all.
    patience: Duration,
    /// What each had not taken, and since when.
    unsent: HashMap<ClientId, (usize, Instant)>,
}

impl Slow {
    pub(super) fn new(patience: Duration) -> Slow {
        Slow { begun: Instant::now(), patience, unsent: HashMap::new() }
    }

    /// Whether a client that has so much to take is waited for no longer.
    fn is_over(&mut self, id: ClientId, unsent: usize, now: Instant) -> bool {
        let (before, since) = self.unsent.entry(id).or_insert((unsent, now));
        if *before != unsent {
            (*before, *since) = (unsent, now);
        }
        unsent > 0 && (now - *since >= self.patience || now - self.begun >= 2 * self.patience)
    }
}

impl Worker {
    /// Parts with those that are waited for no longer.
    pub(super) fn let_slow_go(&self, slow: &mut Slow) {
        let now = Instant::now();
        self.work(|shell| {
            let (mut closed, mut peer) = (0, String::new());
            for id in shell.core.client_ids() {
                let unsent = shell.unsent_to_client(id);
                if slow.is_over(id, unsent, now)
                    && let Some(key) = shell.core.client_key(id)
                {
                    peer = shell.peer(shell.clients[id.index()].as_ref());
                    closed += 1;
                    self.part(shell, key);
                }
            }
            if closed > 0 {
                tracing::warn!(peer, closed, "clients are closed that do not take their answers: the proxy ends");
            }
        });
    }
}

impl Shell {
    fn unsent_to_client(&mut self, id: ClientId) -> usize {
        let handed_on = match (self.clients.get(id.index()), &self.uring) {
            (Some(Some(ClientIo::Uring(io))), Some(uring)) => uring.unsent(io.slot),
            _ => 0,
        };
        handed_on + self.core.unsent_to_client(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_nothing_is_given_up_and_who_takes_little_a_little_later() {
        const MS: Duration = Duration::from_millis(1);
        let mut slow = Slow::new(100 * MS);
        let begun = slow.begun;
        let mut over = |client: u32, unsent: usize, at: u32| slow.is_over(ClientId(client), unsent, begun + at * MS);
        assert!(!over(1, 50, 0) && !over(2, 50, 0) && !over(3, 0, 0));
        assert!(!over(1, 50, 99) && !over(2, 49, 99) && !over(3, 0, 99));
        assert!(over(1, 50, 100) && !over(2, 49, 198));
        // It is answered now.
        assert!(!over(3, 50, 150) && !over(3, 0, 151));
        assert!(over(2, 48, 200) && !over(3, 0, 5000), "what is not answered yet is waited for");
    }
}
