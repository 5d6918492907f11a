//! The readers of sockets that are in tokio's hands (epoll, or memory in tests): each has a small
//! task.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio_util::io::poll_read_buf;

use crate::proxy::{ClientId, ClientKey, ConnId, Reading, Room};

use super::node_ios::{NodeIo, NodeSocket};
use super::{ClientIo, Shell, Worker};

/// Reads from one socket before the others get their turn.
const READS_PER_TURN: usize = 4;

/// Reads from each client at the shutdown: what it had sent by then.
const LAST_READS: usize = 64;

/// What comes of reading from a socket: there is more, but others have their turn first; or the
/// socket, or whoever stalled the client, wakes the reader; or nobody reads there any more.
fn goes_on(reading: Reading, cx: &Context<'_>) -> Poll<()> {
    match reading {
        Reading::GoesOn => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        Reading::Waits => Poll::Pending,
        Reading::Over => Poll::Ready(()),
    }
}

impl Worker {
    pub(super) async fn read_client(self, key: ClientKey) {
        poll_fn(|cx| goes_on(self.read(|shell| shell.read_client(key, cx)), cx)).await;
    }

    pub(super) async fn read_conn(self, at: ConnId) {
        poll_fn(|cx| goes_on(self.work(|shell| shell.read_conn(at, cx)), cx)).await;
    }

    /// [`Worker::work`] of a client's reader.
    fn read<T>(&self, read: impl FnOnce(&mut Shell) -> T) -> T {
        self.work_by(Shell::turn_of_many, read)
    }
}

impl Shell {
    fn read_client(&mut self, key: ClientKey, cx: &mut Context<'_>) -> Reading {
        let (id, now) = (key.id, self.now());
        // A successor may sit in this client's place already.
        if !self.core.is_connected(key) {
            return Reading::Over;
        }
        let mut drained = false;
        for _ in 0..READS_PER_TURN {
            let Some(ClientIo::Stream { stream, reader }) = self.clients[id.index()].as_mut() else {
                return Reading::Over;
            };
            if drained && self.core.reading(id) == Reading::GoesOn && stream.poll_more(cx).is_pending() {
                return Reading::Waits;
            }
            let (buffer, own) = match self.core.client_room(id, &mut self.block) {
                Room::Own(buffer) => (buffer, true),
                Room::Block(buffer) => (buffer, false),
                Room::Waits => {
                    *reader = Some(cx.waker().clone());
                    return Reading::Waits;
                }
                Room::Over => return Reading::Over,
            };
            let room = buffer.capacity() - buffer.len();
            match poll_read_buf(Pin::new(stream), cx, buffer) {
                Poll::Pending => return Reading::Waits,
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.reads = self.reads.wrapping_add(1);
                    self.stats.took(n);
                    if own {
                        self.core.handle_more(now, id);
                    } else {
                        let chunk = self.block.split();
                        self.core.handle_input(now, id, chunk);
                    }
                    drained = n < room;
                }
                Poll::Ready(_) => {
                    // What it asked for and can still read (a half-closed connection) is answered;
                    // then the flusher closes it.
                    self.core.handle_finished(now, id);
                    return Reading::Over;
                }
            }
        }
        Reading::GoesOn
    }

    fn read_conn(&mut self, at: ConnId, cx: &mut Context<'_>) -> Reading {
        for _ in 0..READS_PER_TURN {
            let Some(NodeIo { stream: NodeSocket::Stream(stream), .. }) = self.nodes[at].as_mut() else {
                return Reading::Over;
            };
            match poll_read_buf(Pin::new(stream), cx, self.core.conn_room(at)) {
                Poll::Pending => return Reading::Waits,
                Poll::Ready(Ok(n)) if n > 0 => self.node_received(at),
                Poll::Ready(_) => {
                    let by_node = stream.was_ended_by_node();
                    self.nodes[at] = None;
                    self.core.handle_conn_ended(self.clock.now(), at, by_node);
                    return Reading::Over;
                }
            }
        }
        Reading::GoesOn
    }

    /// Takes what a client has sent already, and nothing that it sends from now on.
    pub(super) fn last_call(&mut self, id: ClientId) {
        let now = self.now();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..LAST_READS {
            let Some(ClientIo::Stream { stream, .. }) = self.clients[id.index()].as_mut() else { return };
            let (buffer, own) = match self.core.client_room(id, &mut self.block) {
                Room::Own(buffer) => (buffer, true),
                Room::Block(buffer) => (buffer, false),
                Room::Waits | Room::Over => break,
            };
            match poll_read_buf(Pin::new(stream), &mut cx, buffer) {
                Poll::Ready(Ok(n)) if n > 0 && own => self.core.handle_more(now, id),
                Poll::Ready(Ok(n)) if n > 0 => self.core.handle_input(now, id, self.block.split()),
                _ => break,
            }
        }
        self.core.handle_finished(now, id);
    }
}
