//! All writing of a worker. On epoll by its *flusher* task, which runs after the readers of a turn
//! of the event loop.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use tokio::io::AsyncWrite;

use crate::daemon::stir_heap;
use crate::ids::WorkerId;
use crate::lease;
use crate::protocol::out::{MAX_SLICES, OutQueue};
use crate::proxy::{ClientId, ClientKey, ConnId, PeerMessage, ToWrite};

use super::node_ios::NodeSocket;
use super::{ClientIo, Shell, Worker};

/// Times that answers are written, and the others looked for, before what came of it goes to the
/// nodes.
const GATHER_ROUNDS: usize = 5;

/// Clients answered meanwhile after which the nodes wait no longer: as many requests together cost
/// hardly less than more would.
pub(super) const GATHER_ENOUGH: usize = 64;

/// How many sockets a look must have brought something from, of late and on average, to be worth
/// it: one that brings something costs no system call more than to hear of it in the next turn, one
/// that brings nothing costs one in vain.
const WORTH_A_LOOK: u32 = UNIT / 4;

/// While looks are not worth it, one look in this many is made all the same.
const TRIED_ANYWAY: u32 = 32;

/// One socket.
const UNIT: u32 = 1 << 16;

/// Whether to look for more before the nodes are written to.
#[derive(Default)]
struct Looks {
    /// What they have brought: a moving average over about eight.
    brought: u32,
    left_out: u32,
}

impl Looks {
    fn are_worth_it(&mut self) -> bool {
        if self.brought < WORTH_A_LOOK {
            self.left_out = (self.left_out + 1) % TRIED_ANYWAY;
            return self.left_out == 0;
        }
        true
    }

    fn learn(&mut self, sockets: u32) {
        self.brought = self.brought - self.brought / 8 + sockets.min(GATHER_ENOUGH as u32) * (UNIT / 8);
    }
}

impl Worker {
    /// Answers leave first, and then there is one more look for what has come meanwhile, before the
    /// nodes are written to: clients that were just answered ask again, so a node gets their
    /// requests in one piece and not in many. The busier everything is, the more come together;
    /// where nothing comes, the looks are left out.
    pub(super) async fn flush_forever(self) {
        let mut looks = Looks::default();
        loop {
            self.woken().await;
            // With many answers to write, the nodes would idle meanwhile: then theirs comes
            // first.
            let waiting = self.shell.borrow().core.dirty_clients();
            let mut answered = if waiting >= GATHER_ENOUGH { waiting } else { 0 };
            for round in 0..GATHER_ROUNDS {
                if answered >= GATHER_ENOUGH {
                    break;
                }
                let now = poll_fn(|cx| Poll::Ready(self.work(|shell| self.flush_clients(shell, cx)))).await;
                answered += now;
                if now == 0 && round > 0 || !looks.are_worth_it() {
                    break;
                }
                let before = self.shell.borrow().reads;
                tokio::task::yield_now().await;
                looks.learn(self.shell.borrow().reads.wrapping_sub(before));
            }
            poll_fn(|cx| {
                self.work(|shell| self.flush_all(shell, cx));
                Poll::Ready(())
            })
            .await;
        }
    }

    /// Somebody has something for the flusher, or a socket takes more.
    async fn woken(&self) {
        let mut waits = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut waits, true) {
                return Poll::Ready(());
            }
            let shell = &mut *self.shell.borrow_mut();
            if shell.has_output() {
                // Clients whose input goes on: after all others that are ready now.
                cx.waker().wake_by_ref();
            } else {
                shell.flusher = Some(cx.waker().clone());
                shell.writable.wakes(cx.waker());
                if !shell.writable.is_empty() {
                    // Told of in between.
                    cx.waker().wake_by_ref();
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Writes the answers that are ready, and what is urgent, and hands on what concerns others.
    /// Returns how many clients were written to.
    pub(super) fn flush_clients(&self, shell: &mut Shell, cx: &mut Context<'_>) -> usize {
        self.hand_on(shell);
        shell.flush_urgent(cx);
        let mut count = 0;
        while let Some(id) = shell.core.poll_dirty_client() {
            self.flush_client(shell, id);
            count += 1;
        }
        count
    }

    /// To the control plane, other workers, and nodes that are not connected.
    fn hand_on(&self, shell: &mut Shell) {
        while let Some(event) = shell.core.poll_event() {
            // The control plane outlives the workers except for the last moments of a shutdown.
            let _ = shell.events.send(event);
        }
        while let Some((worker, message)) = shell.core.poll_peer() {
            shell.send_to(worker, message);
        }
        while let Some((at, dial)) = shell.core.poll_dial() {
            tokio::task::spawn_local(self.clone().run_conn(at, dial));
        }
    }

    /// Writes everything that is ready. Always done at once; of what a socket does not take it
    /// hears again when that takes more.
    pub(super) fn flush_all(&self, shell: &mut Shell, cx: &mut Context<'_>) {
        shell.reads_on_clock = 0;
        self.hand_on(shell);
        // Two lists that change places, so that neither gives its memory back.
        let mut conns = std::mem::take(&mut shell.flushed_conns);
        std::mem::swap(&mut conns, &mut shell.blocked_conns);
        for at in conns.drain(..) {
            shell.flush_conn(at, cx);
        }
        shell.flushed_conns = conns;
        for key in shell.writable.take() {
            // Another client may have taken the place since.
            if shell.core.is_connected(key) {
                shell.core.handle_client_writable(key.id);
            }
        }
        self.write_all(shell, cx);
        // Once, and what comes of it leaves: a client whose requests are answered at once would go
        // on for as long as it has any, and keep all others waiting.
        let goes_on = shell.core.next_turn();
        for _ in 0..goes_on {
            let Some(id) = shell.core.poll_resumable() else { break };
            shell.core.handle_resume(shell.clock.now(), id);
            match shell.clients.get_mut(id.index()) {
                Some(Some(ClientIo::Stream { reader, .. })) => {
                    if let Some(waker) = reader.take() {
                        waker.wake();
                    }
                }
                Some(Some(ClientIo::Uring(_))) => shell.resume_on_uring(id),
                _ => {}
            }
        }
        if goes_on > 0 {
            self.write_all(shell, cx);
        }
    }

    fn write_all(&self, shell: &mut Shell, cx: &mut Context<'_>) {
        self.hand_on(shell);
        while let Some(at) = shell.core.poll_dirty_conn() {
            shell.flush_conn(at, cx);
        }
        while let Some(id) = shell.core.poll_dirty_client() {
            self.flush_client(shell, id);
        }
    }

    fn flush_client(&self, shell: &mut Shell, id: ClientId) {
        let Some(io) = shell.clients.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let Some(ToWrite { key, closes, unsent }) = shell.core.client_to_write(id) else { return };
        let outcome = match io {
            ClientIo::Stream { stream, .. } => match unsent {
                Some(out) => {
                    let before = out.len();
                    let mut unheard = Context::from_waker(Waker::noop());
                    let mut outcome = write_out(out, |slices| stream.poll_write_slices(&mut unheard, slices));
                    if outcome.is_pending() {
                        let waker = shell.writable.waker(key);
                        let mut heard = Context::from_waker(&waker);
                        outcome = write_out(out, |slices| stream.poll_write_slices(&mut heard, slices));
                    }
                    shell.stats.gave(before - out.len());
                    outcome
                }
                None => Poll::Ready(Ok(())),
            },
            ClientIo::Uring(io) => {
                let Some(uring) = &mut shell.uring else { return };
                let unsent = unsent.filter(|out| !out.is_empty());
                if uring.is_broken(io.slot) {
                    Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
                } else if unsent.is_some_and(|out| !uring.send(io.slot, out)) || closes && uring.waits_for_send(io.slot)
                {
                    Poll::Pending
                } else {
                    Poll::Ready(Ok(()))
                }
            }
        };
        match outcome {
            Poll::Pending => shell.core.handle_client_blocked(id),
            Poll::Ready(Ok(())) if !closes => {
                if let (ClientIo::Uring(io), Some(uring)) = (io, &mut shell.uring)
                    && let Some(share) = shell.core.handed_on(id, uring.unsent(io.slot))
                {
                    uring.keep(io.slot, share);
                }
                shell.core.handle_written(id);
            }
            // Finished, or broken.
            Poll::Ready(_) => self.part(shell, key),
        }
    }

    /// Closes a client's connection. What it asked for is carried through without it.
    pub(super) fn part(&self, shell: &mut Shell, key: ClientKey) {
        let id = key.id;
        let why = shell.core.handle_gone(id);
        stir_heap();
        let gone = shell.take_client_io(id);
        if let Some(why) = why {
            shell.count_ended(why, gone.as_ref());
        }
        // `named` is empty if the log level was lower when the client came.
        if let (Some(peer), Some(why)) = (shell.named.remove(&id), why) {
            let worker = shell.core.worker().0;
            tracing::debug!(client = key.occupant.0, worker, peer, why = why.word(), "a client is closed");
        }
        shell.stats.disconnected();
        self.count.fetch_sub(1, Ordering::Relaxed);
        match gone {
            Some(ClientIo::Stream { reader: Some(waker), .. }) => waker.wake(),
            Some(ClientIo::Uring(io)) => {
                if let Some(uring) = &mut shell.uring {
                    uring.close(io.slot);
                }
            }
            _ => {}
        }
    }
}

impl Shell {
    /// Followers get their part of a write before the looks for more: few come together for them,
    /// and such a write has waited for its leader.
    fn flush_urgent(&mut self, cx: &mut Context<'_>) {
        while let Some(at) = self.core.poll_urgent_conn() {
            self.flush_conn(at, cx);
        }
    }

    pub(super) fn send_to(&mut self, worker: WorkerId, message: PeerMessage) {
        self.work.transit.fetch_add(1, Ordering::SeqCst);
        let _ = self.peers[worker.index()].send(message);
    }

    fn flush_conn(&mut self, at: ConnId, cx: &mut Context<'_>) {
        lease::pass();
        let out = self.core.conn_to_write(self.clock.now(), at);
        let Some(io) = self.nodes[at].as_mut() else { return };
        let Some(out) = out else {
            if !io.shut {
                io.shut = true;
                match (&mut io.stream, &mut self.uring) {
                    // An error means that it is closed already; reading finds that out.
                    (NodeSocket::Stream(stream), _) => drop(Pin::new(stream).poll_shutdown(cx)),
                    (NodeSocket::Uring(slot), Some(uring)) => uring.shut(*slot),
                    (NodeSocket::Uring(_), None) => {}
                }
            }
            return;
        };
        // A broken connection is found by its reader.
        match (&mut io.stream, &mut self.uring) {
            (NodeSocket::Stream(stream), _) => {
                let write = |slices: &[IoSlice<'_>]| {
                    lease::about_to_send(slices);
                    Pin::new(&mut *stream).poll_write_vectored(cx, slices)
                };
                if write_out(out, write).is_pending() {
                    self.core.handle_conn_blocked(at);
                    self.blocked_conns.push(at);
                }
            }
            (NodeSocket::Uring(slot), Some(uring)) => {
                if !out.is_empty() && !uring.is_broken(*slot) && !uring.send(*slot, out) {
                    self.core.handle_conn_blocked(at);
                }
            }
            (NodeSocket::Uring(_), None) => {}
        }
    }
}

/// Writes until the queue is empty or the socket takes no more.
fn write_out(
    out: &mut OutQueue,
    mut write: impl FnMut(&[IoSlice<'_>]) -> Poll<io::Result<usize>>,
) -> Poll<io::Result<()>> {
    while !out.is_empty() {
        let written = match out.one_piece() {
            // The rule; for it alone the array would cost more than all else here.
            Some(piece) => write(&[IoSlice::new(piece)]),
            None => {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let count = out.slices(&mut slices);
                write(&slices[..count])
            }
        };
        match written {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => out.advance(written),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_bring_nothing_are_left_out_and_tried_again() {
        let mut looks = Looks::default();
        let made = |looks: &mut Looks, brought: u32| {
            (0..1000)
                .filter(|_| {
                    let made = looks.are_worth_it();
                    if made {
                        looks.learn(brought);
                    }
                    made
                })
                .count()
        };
        assert_eq!(made(&mut looks, 0), 1000 / TRIED_ANYWAY as usize);
        assert!(made(&mut looks, 1) > 900, "noticed after a few tries");
        assert_eq!(made(&mut looks, 1), 1000);
        assert!(made(&mut looks, 0) < 60);
        // However much they bring.
        made(&mut looks, u32::MAX);
        assert!(made(&mut looks, 0) < 100);
    }
}
