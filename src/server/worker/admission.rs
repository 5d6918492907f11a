//! Clients let in, up to `--max-clients` and a few operators beyond.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::daemon::cannot_accept;
use crate::ids::WorkerId;
use crate::lease;
use crate::protocol::answer::TOO_MANY;
use crate::proxy::{ClientKey, PeerMessage};
use crate::server::stream::Stream;
use crate::server::uring::Owner;

use super::listener::Listener;
use super::on_uring::UringClient;
use super::{ClientIo, Shell, Worker};

/// Connections beyond `--max-clients`, over all workers, on which only operators' commands are
/// taken.
const OPERATORS: usize = 16;

/// The number of these, together with those that are being closed to make room.
const OPERATORS_MAX: usize = 4 * OPERATORS;

/// How long a client there may be silent before it is told of the limit: an operator's program asks
/// at once.
const OPERATOR_SILENCE: Duration = Duration::from_secs(2);

/// Clients beyond `--max-clients`, of all workers, in the order in which they came; some have gone,
/// or shown that they are operators. (The lock is taken for such clients only.)
pub(in crate::server) type Beyond = Arc<Mutex<VecDeque<(WorkerId, ClientKey)>>>;

impl Worker {
    /// Until `shutdown`, and then once more for those who wait.
    pub(super) async fn accept_forever(self, mut listener: Listener, shutdown: CancellationToken) {
        loop {
            let mut accepting = pin!(listener.accept());
            // Connections that arrive while there is no lease are answered elsewhere.
            let accepting = poll_fn(|cx| {
                lease::pass();
                accepting.as_mut().poll(cx)
            });
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accepting => accepted,
            };
            match accepted {
                Ok(stream) => {
                    if self.admit(stream) {
                        // Who had to make room for it leaves before the next one comes.
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) => tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    () = cannot_accept("a client", &error) => {}
                },
            }
        }
        for stream in listener.end() {
            self.admit(stream);
        }
    }

    /// Returns whether it was one too many.
    pub(super) fn admit(&self, stream: Stream) -> bool {
        let connected = self.count.fetch_add(1, Ordering::Relaxed);
        let most = self.shell.borrow().live.max_clients;
        let is_one_too_many = connected >= most;
        // Who takes a place among them and says nothing gives way to the next: an operator's
        // command comes at once.
        if connected >= most + OPERATORS
            && (connected >= most + OPERATORS_MAX || !self.work(|shell| self.turn_one_away(shell)))
        {
            self.count.fetch_sub(1, Ordering::Relaxed);
            self.work(|shell| shell.core.handle_refused(shell.clock.now()));
            tokio::task::spawn_local(refuse(stream));
            return true;
        }
        let admitted = self.work(|shell| {
            let key = self.take_client(shell, stream, is_one_too_many)?;
            if is_one_too_many {
                let mut beyond = self.beyond.lock().unwrap_or_else(PoisonError::into_inner);
                if beyond.len() >= 2 * OPERATORS {
                    beyond.pop_front();
                }
                beyond.push_back((shell.core.worker(), key));
            }
            io::Result::Ok(key)
        });
        match admitted {
            Ok(key) if is_one_too_many => {
                let worker = self.clone();
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(OPERATOR_SILENCE).await;
                    worker.work(|shell| shell.core.turn_away(shell.clock.now(), key));
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot take a client on");
                self.work(|shell| shell.stats.rejected());
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
        is_one_too_many
    }

    /// Gives a client its place. `operators_only`: nothing but operators' commands is taken there.
    fn take_client(&self, shell: &mut Shell, stream: Stream, operators_only: bool) -> io::Result<ClientKey> {
        let now = shell.now();
        let key = if operators_only { shell.core.handle_operator(now) } else { shell.core.handle_connect(now) };
        let at = key.id.index();
        let peer = tracing::enabled!(tracing::Level::DEBUG).then(|| stream.peer());
        if shell.clients.len() <= at {
            shell.clients.resize_with(at + 1, || None);
        }
        match &mut shell.uring {
            Some(uring) => match stream.into_blocking() {
                Ok(fd) => {
                    let slot = uring.add(fd, Owner::Client(key.id));
                    uring.receive(slot);
                    shell.clients[at] = Some(ClientIo::Uring(UringClient::new(slot)));
                }
                Err(error) => {
                    shell.core.handle_gone(key.id);
                    return Err(error);
                }
            },
            None => {
                shell.clients[at] = Some(ClientIo::Stream { stream, reader: None });
                tokio::task::spawn_local(self.clone().read_client(key));
            }
        }
        shell.stats.connected();
        if let Some(peer) = peer {
            tracing::debug!(client = key.occupant.0, worker = shell.core.worker().0, peer, "a client has connected");
            shell.named.insert(key.id, peer);
        }
        Ok(key)
    }

    /// One client beyond the limit that has said nothing makes room for another. `false`: there is
    /// none.
    fn turn_one_away(&self, shell: &mut Shell) -> bool {
        let mut beyond = self.beyond.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((worker, key)) = beyond.pop_front() {
            if worker != shell.core.worker() {
                // Only that worker knows whether the client is still silent.
                shell.send_to(worker, PeerMessage::TurnAway(key));
                return true;
            }
            if shell.core.turn_away(shell.clock.now(), key) {
                return true;
            }
        }
        false
    }
}

/// Tells a client too many of the limit.
async fn refuse(stream: Stream) {
    let mut stream = stream;
    let _ = poll_fn(|cx| stream.poll_write_slices(cx, &[IoSlice::new(TOO_MANY)])).await;
}
