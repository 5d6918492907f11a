//! A worker's clients where they are on io_uring: no task for each, what they send comes all together.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::unix::AsyncFd;

use crate::proxy::Core;
use crate::server::uring::{News, Ring};

use super::{ClientIo, Shell, Worker};

/// News taken before others have their turn.
const NEWS_PER_TURN: usize = 256;

/// Turns of the ring before others have theirs.
const TURNS: usize = 64;

/// How long what clients had sent by the shutdown is listened to at most: some send without end.
const LAST_CALL: Duration = Duration::from_millis(500);

/// A client on the ring.
pub(super) struct RingClient {
    /// Its place there.
    pub(super) slot: usize,
    /// Its input has to wait.
    pub(super) held: bool,
    /// What came nevertheless, until the ring stopped receiving.
    pub(super) backlog: Vec<u8>,
    /// Nothing comes behind the backlog.
    pub(super) ended: bool,
}

impl RingClient {
    pub(super) fn new(slot: usize) -> RingClient {
        RingClient { slot, held: false, backlog: Vec::new(), ended: false }
    }
}

impl Worker {
    /// Wakes the flusher, whose turns of the ring see to all that comes, when there is something.
    pub(super) async fn watch_ring(self, event: AsyncFd<OwnedFd>) {
        // (An error: the runtime ends.)
        while let Ok(mut ready) = event.readable().await {
            // Never read from: it is told of every signal all the same, and what is signalled from here on is heard of anew.
            ready.clear_ready();
            if let Some(flusher) = self.shell.borrow_mut().flusher.take() {
                flusher.wake();
            }
        }
    }
}

impl Shell {
    /// Hands over what is to be sent, and takes what has come. Returns whether there is more.
    pub(super) fn ring_turn(&mut self) -> bool {
        let mut left = NEWS_PER_TURN;
        for _ in 0..TURNS {
            let Some(ring) = &mut self.ring else { return false };
            // (One brings what some twenty clients have sent.)
            ring.turn();
            while left > 0
                && let Some(news) = self.ring.as_mut().and_then(Ring::next)
            {
                left -= 1;
                self.ring_news(news);
            }
            if left == 0 || !self.ring.as_mut().is_some_and(Ring::has_more) {
                break;
            }
        }
        let Some(ring) = &mut self.ring else { return false };
        self.stats.gave(ring.take_sent());
        ring.has_more()
    }

    /// As [`Shell::ring_turn`], if anything is to be handed over.
    pub(super) fn ring_turn_if_queued(&mut self) -> bool {
        match &mut self.ring {
            Some(ring) if ring.has_queued() => self.ring_turn(),
            Some(ring) => ring.has_more(),
            None => false,
        }
    }

    fn ring_news(&mut self, news: News) {
        match news {
            News::Input(owner, input) => {
                self.turn_of_many();
                let Shell { core, clients, block, ring: Some(ring), .. } = self else { return };
                let bytes = ring.input(&input);
                self.reads = self.reads.wrapping_add(1);
                self.stats.took(bytes.len());
                let Some(Some(ClientIo::Ring(io))) = clients.get_mut(owner as usize) else { return ring.give(input) };
                let over = io.ended || core.client(owner).is_none_or(|client| client.closing);
                if !over && !io.held {
                    take(core, block, owner, bytes);
                    io.held = core.client(owner).is_some_and(|client| client.stalled);
                } else {
                    if !over {
                        io.backlog.extend_from_slice(bytes);
                    }
                    ring.hush(io.slot);
                }
                ring.give(input);
            }
            News::End(owner) => {
                let Some(Some(ClientIo::Ring(io))) = self.clients.get_mut(owner as usize) else { return };
                if !std::mem::replace(&mut io.ended, true) && !io.held {
                    // What it asked for and can still read (a half-closed connection) is answered; then the flusher closes it.
                    self.core.client_finished(owner);
                }
            }
            News::Sent(owner) => {
                if let Some(client) = self.core.client(owner) {
                    client.dirty = true;
                    self.core.outbox.dirty_clients.push(owner);
                }
            }
        }
    }

    /// Goes on with a client that had to wait, after the core has.
    pub(super) fn resume_ringed(&mut self, index: u32) {
        let Shell { core, clients, block, ring: Some(ring), .. } = self else { return };
        let Some(Some(ClientIo::Ring(io))) = clients.get_mut(index as usize) else { return };
        io.held = core.client(index).is_some_and(|client| client.stalled);
        if !io.held && !io.backlog.is_empty() {
            take(core, block, index, &std::mem::take(&mut io.backlog));
            io.held = core.client(index).is_some_and(|client| client.stalled);
        }
        if io.held {
            return;
        }
        if io.ended {
            core.client_finished(index);
        } else {
            ring.receive(io.slot);
        }
    }

    /// Takes all that clients have sent by now.
    pub(super) fn hear_all(&mut self) {
        let begun = Instant::now();
        while self.ring_turn() && begun.elapsed() < LAST_CALL {}
    }

    /// Nothing more is taken from a client.
    pub(super) fn last_ring_call(&mut self, index: u32) {
        let Shell { core, clients, ring: Some(ring), .. } = self else { return };
        let Some(Some(ClientIo::Ring(io))) = clients.get_mut(index as usize) else { return };
        ring.hush(io.slot);
        io.ended = true;
        if !io.held {
            core.client_finished(index);
        }
    }
}

/// Passes on what a client sent, behind the beginning of a request if it has sent one.
fn take(core: &mut Core, block: &mut BytesMut, index: u32, bytes: &[u8]) {
    let Some(client) = core.client(index) else { return };
    let (room, own) = client.room(block);
    room.extend_from_slice(bytes);
    if own {
        core.client_more(index);
    } else {
        core.client_input(index, block.split());
    }
}
