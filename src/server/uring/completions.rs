//! What the kernel has done: completions, and the news that follow from them.

use std::io;

use bytes::BufMut;
use io_uring::cqueue;
use nix::libc;

use crate::backend::{gives_up, is_from_node};
use crate::proxy::{ClientId, ConnId};

use super::{ALARM, Input, News, Owner, RECEIVE, SEND, SPARE, SocketId, Uring};

impl Uring {
    /// The next news of [`Uring::turn`].
    pub(in crate::server) fn next(&mut self) -> Option<News> {
        loop {
            let entry = self.uring.completion().next()?;
            let slot = SocketId(entry.user_data() as u32 as usize);
            let news = match entry.user_data() >> 32 {
                RECEIVE => self.received(slot, &entry),
                SEND => self.has_sent(slot, entry.result()),
                ALARM => {
                    if !cqueue::more(entry.flags()) {
                        self.watch_alarm();
                    }
                    None
                }
                _ => {
                    self.has_cancelled(slot, entry.result());
                    None
                }
            };
            if news.is_some() {
                return news;
            }
        }
    }

    fn received(&mut self, slot: SocketId, entry: &cqueue::Entry) -> Option<News> {
        match self.slots[slot.0].owner {
            Owner::Client(client) => self.client_received(slot, client, entry),
            Owner::Node(at) => self.node_received(slot, at, entry.result()),
        }
    }

    fn client_received(&mut self, slot: SocketId, client: ClientId, entry: &cqueue::Entry) -> Option<News> {
        let result = entry.result();
        let s = &mut self.slots[slot.0];
        let goes_on = cqueue::more(entry.flags());
        if !goes_on {
            s.receiving = false;
            s.ops -= 1;
        }
        let mut news = None;
        if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
            self.buffers.is_used();
            if result > 0 && !s.closed {
                news = Some(News::Input(client, Input { buffer, len: result as usize }));
            } else {
                self.buffers.give(buffer);
            }
        }
        if goes_on {
            return news;
        }
        // Receiving ended because buffers ran out, it was cancelled, or the kernel wants it
        // renewed.
        let s = &mut self.slots[slot.0];
        if s.closed {
            self.release(slot);
        } else if result > 0 || has_to_wait(result) {
            if s.wanted && result == -libc::ENOBUFS {
                if !std::mem::replace(&mut s.unbuffered, true) {
                    self.unbuffered.push_back(slot);
                }
            } else if s.wanted {
                self.receive(slot);
            }
        } else {
            s.ended = true;
            news = Some(News::End(client));
        }
        news
    }

    fn node_received(&mut self, slot: SocketId, at: ConnId, result: i32) -> Option<News> {
        let s = &mut self.slots[slot.0];
        s.receiving = false;
        s.ops -= 1;
        if s.closed {
            self.release(slot);
            return None;
        }
        if has_to_wait(result) {
            s.receiving = true;
            self.push_receive(slot, true);
            return None;
        }
        let mut room = std::mem::take(&mut s.room);
        if result <= 0 {
            s.unproven |= !is_end_by_node(result);
            return Some(News::NodeEnd { at, by_node: !s.unproven });
        }
        // SAFETY: the kernel has written this many bytes behind those that it held.
        unsafe { room.advance_mut(result as usize) };
        Some(News::Filled(at, room))
    }

    pub(super) fn has_sent(&mut self, slot: SocketId, result: i32) -> Option<News> {
        let s = &mut self.slots[slot.0];
        s.ops -= 1;
        if result > 0 {
            s.out.advance(result as usize);
            if let Owner::Client(_) = s.owner {
                self.sent += result as usize;
            }
        }
        let again = result > 0 && !s.out.is_empty() || [-libc::EINTR, -libc::EAGAIN].contains(&result);
        if again && !s.closed {
            self.push_send(slot);
            return None;
        }
        if result <= 0 && matches!(s.owner, Owner::Node(_)) {
            // Kept: the kernel tells an error once, and receiving then finds an end.
            s.unproven |= result < 0 && gives_up(&io::Error::from_raw_os_error(-result));
            // Whatever the reason, the node is to see the end, and to end the connection itself:
            // that is what receiving finds. (To receive no more would look like that end, and the
            // node may still carry out what it has not read yet.)
            self.shut(slot);
        }
        let s = &mut self.slots[slot.0];
        s.sending = false;
        s.share = None;
        s.broken = result <= 0;
        let out = std::mem::take(&mut s.out);
        if out.is_empty() && out.is_small() && self.spare_queues.len() < SPARE {
            self.spare_queues.push(out);
        }
        if let Some(message) = s.message.take()
            && self.spare_messages.len() < SPARE
        {
            self.spare_messages.push(message);
        }
        if s.closed {
            self.release(slot);
            return None;
        }
        (std::mem::take(&mut s.waits) || s.broken).then_some(News::Sent(s.owner))
    }

    fn has_cancelled(&mut self, slot: SocketId, result: i32) {
        let s = &mut self.slots[slot.0];
        s.ops -= 1;
        // What was cancelled is a receive, or the send of an abandoned socket.
        s.cancelling = false;
        if result < 0 && s.receiving && !s.wanted {
            // It was just busy with it. (Where it had ended, its last completion came before.)
            self.stop_receiving(slot);
        }
        self.release(slot);
    }
}

/// Whether an operation's result shows that the node has ended the connection (see `is_from_node`).
pub(super) fn is_end_by_node(result: i32) -> bool {
    result == 0 || is_from_node(&io::Error::from_raw_os_error(-result))
}

/// Whether it can be tried again: cancelled, interrupted, or short of something.
fn has_to_wait(result: i32) -> bool {
    [-libc::ENOBUFS, -libc::ECANCELED, -libc::EINTR, -libc::EAGAIN].contains(&result)
}
