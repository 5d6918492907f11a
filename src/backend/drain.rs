//! The last wait on a connection that is no longer used: until nothing sent over it can still take
//! effect.
//!
//! A node that hung and continues executes the commands that are still in its sockets. Observed: of
//! 60 writes on abandoned connections, 14 were executed after a newer write had been acknowledged;
//! `stats conns` does not even list a connection in the accept queue. So a node is refilled only
//! when every such connection has *answered*, or was closed by the node. A connection that our own
//! kernel ended (`ETIMEDOUT`) proves nothing: the node may still hold the commands, and execute
//! them later.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::AsyncWrite;

use super::NodeStream;
use super::blocks::Blocks;
use super::poll::{poll_read, poll_write};
use crate::ids::{AddressNumber, NodeId};
use crate::protocol::node;
use crate::protocol::out::OutQueue;
use crate::protocol::reply::{self, ReplyKind, ReplyLimits};

/// How many answers are looked at in one go.
const ANSWERS_AT_ONCE: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DrainEnd {
    /// The node answered everything that was sent: nothing is outstanding.
    Answered,
    /// The node closed or reset the connection: nothing is outstanding.
    Closed,
    /// Our own kernel gave the connection up. What was sent may take effect at any time.
    Abandoned,
}

/// Completes when every command sent over the connection was answered, or the connection has ended.
///
/// It has no deadline of its own, on purpose: a node is not refilled before it completes, however
/// long that takes. Dropping it closes the connection and loses the knowledge.
#[derive(Debug)]
#[must_use = "a node must not be refilled before its drains have completed"]
pub struct Drain {
    node: NodeId,
    address: AddressNumber,
    stream: NodeStream,
    out: OutQueue,
    input: BytesMut,
    /// What the node may send.
    limits: ReplyLimits,
    /// How long the answer at the front of `input` will be, where that is known, else 0.
    need: usize,
    blocks: Blocks,
    /// Answers cannot be told apart any more: half-close, so that the node closes after executing
    /// all, and wait for that.
    framing_lost: bool,
    half_closed: bool,
}

impl Drain {
    pub(super) fn new(
        node: NodeId,
        address: AddressNumber,
        stream: NodeStream,
        mut out: OutQueue,
        (input, limits): (BytesMut, ReplyLimits),
        framing_lost: bool,
    ) -> Drain {
        out.put(node::NOOP);
        let blocks = Blocks::default();
        Drain { node, address, stream, out, input, limits, need: 0, blocks, framing_lost, half_closed: false }
    }

    /// The node at the other end.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Under which of the node's addresses the connection was dialled.
    pub fn address(&self) -> AddressNumber {
        self.address
    }

    /// Whether the answer to `mn` is among what was read; takes all whole answers out of the
    /// buffer.
    fn answered(&mut self) -> bool {
        while !self.framing_lost {
            let mut found = Vec::new();
            let Ok(scanned) = reply::scan(&self.input, ANSWERS_AT_ONCE, &self.limits, &mut found) else {
                self.framing_lost = true;
                break;
            };
            self.need = scanned.need;
            if scanned.used == 0 {
                return false;
            }
            bytes::Buf::advance(&mut self.input, scanned.used);
            if found.iter().any(|found| *found.kind() == ReplyKind::MetaMn) {
                return true;
            }
        }
        self.input.clear();
        false
    }
}

impl Future for Drain {
    type Output = DrainEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<DrainEnd> {
        let me = self.get_mut();
        loop {
            let mut moved = false;
            if !me.out.is_empty()
                && let Poll::Ready(written) = poll_write(&mut me.stream, &mut me.out, cx)
            {
                // A failed write is no proof that nothing is left to be executed; the end of
                // reading is.
                if written.is_err() {
                    me.out = OutQueue::default();
                }
                moved = true;
            }
            if me.framing_lost && me.out.is_empty() && !me.half_closed {
                me.half_closed = Pin::new(&mut me.stream).poll_shutdown(cx).is_ready();
            }
            if let Poll::Ready(read) = poll_read(&mut me.stream, &mut me.input, &mut me.blocks, me.need, cx) {
                if !matches!(read, Ok(n) if n > 0) {
                    let by_node = me.stream.was_ended_by_node();
                    return Poll::Ready(if by_node { DrainEnd::Closed } else { DrainEnd::Abandoned });
                }
                moved = true;
            }
            if me.answered() {
                return Poll::Ready(DrainEnd::Answered);
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }
}
