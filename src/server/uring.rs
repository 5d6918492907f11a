//! A worker's sockets on io_uring: one system call submits all sends, fetches completed receives,
//! and waits if there are none.
//!
//! Every client has a receive pending that repeats itself (multishot) and takes one of io_uring's
//! buffers only when data has arrived; so an idle client holds none. The data is copied out at once
//! and the buffer returned. A node's data goes directly into the buffer that it is parsed and
//! forwarded from, which is lent to io_uring for one receive at a time.
//!
//! The only module with unsafe code: the kernel reads and writes memory behind the compiler's back.
//! Its safety depends on this: memory used by an operation stays in place until the operation's
//! completion was taken ([`Slot::ops`]), and an io_uring instance that cannot wait for that leaks
//! it.
#![allow(unsafe_code)]

mod alarm;
mod buffers;
mod completions;
mod socket;

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use bytes::BytesMut;
use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;
use nix::libc;
use socket2::{SockAddr, SockRef};

use crate::places::Places;
use crate::protocol::out::OutQueue;
use crate::proxy::{ClientId, ConnId, Share};
use crate::stretch::Stretch;
pub(super) use alarm::Alarm;
use buffers::{BUFFERS, Buffers, FEW_BUFFERS};
use socket::{Message, Slot};

/// Operations handed over in one system call; more wait for the next.
const SUBMISSIONS: u32 = 1024;

/// Completions that wait to be taken. What is more the kernel keeps.
const COMPLETIONS: u32 = 4096;

/// Their number in the kernel's books.
const BUFFER_GROUP: u16 = 0;

/// Bytes of one send. A larger one may block so often that the kernel gives it a thread of its own
/// (io-wq), and a slow reader must not cost one.
const SEND_MOST: usize = 256 * 1024;

/// Queues and messages kept for the next sends.
const SPARE: usize = 256;

/// Of these, those that are kept also where nobody needs them: 16 KiB each at most.
const SPARE_KEPT: usize = 8;

/// `IORING_ENTER_GETEVENTS`: work that the kernel has put off is done in this call.
const GET_EVENTS: u32 = 1;

/// `IORING_ENTER_NO_IOWAIT`: a processor that has nothing else to do meanwhile is idle, and not
/// waiting for a disk.
const NO_IOWAIT: u32 = 1 << 7;

/// `IORING_RECVSEND_POLL_FIRST`: nothing has come yet, so it is not looked for before it does.
const POLL_FIRST: u16 = 1;

/// What an operation is; in the upper half of its `user_data`, the slot in the lower.
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const CANCEL: u64 = 2;
const ALARM: u64 = 3;

/// A socket's place in the instance's table; another one comes to stand there after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SocketId(usize);

/// Whose a socket is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// A client's, by its place in the worker's table.
    Client(ClientId),
    /// A node's: which of the worker's connections.
    Node(ConnId),
}

/// What an io_uring instance tells of a socket.
#[derive(Debug)]
pub(super) enum News {
    /// A client sent something.
    Input(ClientId, Input),
    /// A node did, and it is in the room that was given for it.
    Filled(ConnId, BytesMut),
    /// Nothing more will come from a client.
    End(ClientId),
    /// Nothing more will come from a node: by its own doing, or because our kernel gave the
    /// connection up.
    NodeEnd { at: ConnId, by_node: bool },
    /// A send that was waited for is done, or failed.
    Sent(Owner),
}

/// Bytes from a client, in a buffer that is to be given back.
#[derive(Debug)]
pub(super) struct Input {
    buffer: u16,
    len: usize,
}

/// A worker's sockets on io_uring.
pub(crate) struct Uring {
    uring: IoUring,
    buffers: Buffers,
    /// Buffers that the kernel may have.
    most_buffers: u16,
    /// Clients' sockets that found none, in order.
    unbuffered: VecDeque<SocketId>,
    /// Leaked where the kernel may still use what is in it.
    slots: ManuallyDrop<Places<Slot>>,
    /// Operations in the submission queue.
    queued: u32,
    /// Operations that found no room there.
    waiting: VecDeque<squeue::Entry>,
    spare_queues: Vec<OutQueue>,
    #[expect(clippy::vec_box, reason = "the kernel knows their addresses")]
    spare_messages: Vec<Box<Message>>,
    /// Bytes sent to clients since they were asked for.
    sent: usize,
    /// With which the kernel is called.
    flags: u32,
    /// Ends a sleep.
    alarm: Arc<Alarm>,
}

// SAFETY: the pointers in it are its own memory's, and to no thread's in particular. (The kernel
// wants io_uring to be used by the thread that has called `start`; from any other it refuses.)
unsafe impl Send for Uring {}

impl Uring {
    /// An io_uring instance that is not running yet, so that it can be made before the thread that
    /// will use it.
    ///
    /// # Errors
    ///
    /// The kernel is too old (6.1 has everything), or somebody forbids it to this process.
    pub(super) fn new() -> io::Result<Uring> {
        let uring: IoUring = IoUring::builder()
            .dontfork()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            // What has come is looked at when the worker asks, and does not interrupt it.
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(SUBMISSIONS)?;
        let buffers = Buffers::new();
        // SAFETY: the memory is page-aligned, holds as many entries, and lives as long as io_uring
        // or longer (see `drop`).
        unsafe {
            uring.submitter().register_buf_ring_with_flags(buffers.list(), BUFFERS, BUFFER_GROUP, 0)?;
        }
        let flags = GET_EVENTS | if uring.params().is_feature_no_iowait() { NO_IOWAIT } else { 0 };
        let mut uring = Uring {
            uring,
            buffers,
            most_buffers: BUFFERS,
            unbuffered: VecDeque::new(),
            slots: ManuallyDrop::default(),
            queued: 0,
            waiting: VecDeque::new(),
            spare_queues: Vec::new(),
            spare_messages: Vec::new(),
            sent: 0,
            flags,
            alarm: Arc::new(Alarm::new()?),
        };
        for buffer in 0..BUFFERS {
            uring.buffers.give(buffer);
        }
        uring.buffers.publish(BUFFERS);
        Ok(uring)
    }

    /// Makes the calling thread the one that uses it.
    ///
    /// # Errors
    ///
    /// The system is short of memory.
    pub(super) fn start(mut self) -> io::Result<Uring> {
        self.uring.submitter().register_enable_rings()?;
        self.watch_alarm();
        Ok(self)
    }

    /// What ends a sleep from elsewhere.
    pub(super) fn alarm(&self) -> &Arc<Alarm> {
        &self.alarm
    }

    /// Takes on a socket (in blocking mode: the kernel waits for it, not we).
    pub(super) fn add(&mut self, fd: OwnedFd, owner: Owner) -> SocketId {
        SocketId(self.slots.insert(Slot {
            fd,
            owner,
            ops: 0,
            out: OutQueue::default(),
            message: None,
            share: None,
            sending: false,
            waits: false,
            broken: false,
            unproven: false,
            receiving: false,
            room: BytesMut::new(),
            wanted: false,
            unbuffered: false,
            ended: false,
            cancelling: false,
            closed: false,
        }))
    }

    /// Where it comes from, for the log.
    pub(super) fn peer(&self, slot: SocketId) -> String {
        let peer = SockRef::from(&self.slots[slot.0].fd).peer_addr().ok().and_then(|addr| addr.as_socket());
        peer.map_or_else(|| "the unix socket".to_owned(), |addr| addr.to_string())
    }

    /// Its two ends, as memcached writes them: the client's, and the proxy's.
    pub(super) fn ends(&self, slot: SocketId) -> (String, String) {
        let socket = SockRef::from(&self.slots[slot.0].fd);
        let tcp = |addr: io::Result<SockAddr>| Some(format!("tcp:{}", addr.ok()?.as_socket()?));
        let local = socket.local_addr();
        let path = local.as_ref().ok().and_then(SockAddr::as_pathname).map(|path| format!("unix:{}", path.display()));
        (
            tcp(socket.peer_addr()).unwrap_or_else(|| "unix".to_owned()),
            tcp(local).or(path).unwrap_or_else(|| "unix:".to_owned()),
        )
    }

    /// Takes what is in `out` to be sent, if nothing of this socket is being sent; else it says
    /// [`News::Sent`] when that is done.
    pub(super) fn send(&mut self, slot: SocketId, out: &mut OutQueue) -> bool {
        let s = &mut self.slots[slot.0];
        if s.sending {
            s.waits = true;
            return false;
        }
        debug_assert!(s.out.is_empty() && !s.closed);
        s.out = std::mem::replace(out, self.spare_queues.pop().unwrap_or_default());
        s.sending = true;
        self.push_send(slot);
        true
    }

    /// What is being sent takes so much of the clients' account, until that is done and it says
    /// [`News::Sent`].
    pub(super) fn keep(&mut self, slot: SocketId, share: Share) {
        let s = &mut self.slots[slot.0];
        s.waits |= s.sending;
        if s.sending && s.share.is_none() {
            s.share = Some(Box::new(share));
        }
    }

    /// Whether something is being sent. If so it says [`News::Sent`] when that is done.
    pub(super) fn waits_for_send(&mut self, slot: SocketId) -> bool {
        let s = &mut self.slots[slot.0];
        s.waits = s.sending;
        s.sending
    }

    /// Bytes being sent.
    pub(super) fn unsent(&self, slot: SocketId) -> usize {
        self.slots[slot.0].out.len()
    }

    /// Whether a send has failed.
    pub(super) fn is_broken(&self, slot: SocketId) -> bool {
        self.slots[slot.0].broken
    }

    /// Receives nothing more for now. What was received until this takes effect still comes.
    pub(super) fn stop_receiving(&mut self, slot: SocketId) {
        let s = &mut self.slots[slot.0];
        s.wanted = false;
        if s.receiving && !s.cancelling {
            s.cancelling = true;
            self.cancel(slot, RECEIVE);
        }
    }

    /// Receives once, into what `room` has left. `more`: there is something to be received already.
    pub(super) fn receive_into(&mut self, slot: SocketId, room: BytesMut, more: bool) {
        let s = &mut self.slots[slot.0];
        debug_assert!(!s.receiving && !s.closed && room.capacity() > room.len());
        s.room = room;
        s.receiving = true;
        self.push_receive(slot, more);
    }

    fn push_receive(&mut self, slot: SocketId, more: bool) {
        let s = &mut self.slots[slot.0];
        let spare = s.room.spare_capacity_mut();
        let len = spare.len().min(i32::MAX as usize) as u32;
        let flags = if more { 0 } else { POLL_FIRST };
        let entry = opcode::Recv::new(Fd(s.fd.as_raw_fd()), spare.as_mut_ptr().cast(), len).ioprio(flags).build();
        self.push(slot, RECEIVE, entry);
    }

    /// A client is received from, or goes on to be.
    pub(super) fn receive(&mut self, slot: SocketId) {
        let s = &mut self.slots[slot.0];
        s.wanted = true;
        if !s.receiving && !s.ended {
            s.receiving = true;
            let entry = opcode::RecvMulti::new(Fd(s.fd.as_raw_fd()), BUFFER_GROUP).build();
            self.push(slot, RECEIVE, entry);
        }
    }

    /// Sends nothing more: the other side sees the end.
    pub(super) fn shut(&mut self, slot: SocketId) {
        // An error means that it is closed already, which receiving finds out.
        let _ = SockRef::from(&self.slots[slot.0].fd).shutdown(Shutdown::Write);
    }

    /// Its owner gives it up: nothing more is told of it.
    pub(super) fn close(&mut self, slot: SocketId) {
        self.stop_receiving(slot);
        let s = &mut self.slots[slot.0];
        s.closed = true;
        if s.sending {
            self.cancel(slot, SEND);
        }
        self.release(slot);
    }

    /// What came.
    pub(super) fn input(&self, input: &Input) -> &[u8] {
        self.buffers.bytes(input.buffer, input.len)
    }

    /// Whether a client may bring much before it hears that it has to wait. If not, clients share
    /// few buffers, and each turn brings little.
    pub(super) fn takes_bursts(&mut self, much: bool) {
        self.most_buffers = if much { BUFFERS } else { FEW_BUFFERS };
    }

    /// Gives its buffer back.
    pub(super) fn give(&mut self, input: Input) {
        self.buffers.give(input.buffer);
    }

    /// Whether a burst has left it more than others need, for [`Uring::give_back`].
    pub(super) fn is_stretched(&self) -> bool {
        self.spare_queues.len().max(self.spare_messages.len()) > SPARE_KEPT
            || self.unbuffered.is_stretched()
            || self.waiting.is_stretched()
    }

    /// That goes back.
    pub(super) fn give_back(&mut self) {
        self.spare_queues.truncate(SPARE_KEPT);
        self.spare_messages.truncate(SPARE_KEPT);
        self.unbuffered.give_back();
        self.waiting.give_back();
    }

    /// Bytes sent to clients since this was last asked.
    pub(super) fn take_sent(&mut self) -> usize {
        std::mem::take(&mut self.sent)
    }

    /// Hands over what is queued and has the kernel look for what has come, for [`Uring::next`].
    pub(super) fn turn(&mut self) {
        self.enter(0);
    }

    /// As [`Uring::turn`], but waits until there is something, or the alarm is signalled.
    pub(super) fn sleep(&mut self) {
        let waits = self.waiting.is_empty()
            && self.unbuffered.is_empty()
            && self.uring.completion().is_empty()
            && self.alarm.set();
        self.enter(usize::from(waits));
        if waits {
            self.alarm.unset();
        }
    }

    fn enter(&mut self, wait_for: usize) {
        self.buffers.publish(self.most_buffers);
        if !self.unbuffered.is_empty() {
            self.receive_unbuffered();
        }
        loop {
            // SAFETY: no arguments beside the numbers.
            match unsafe {
                self.uring.submitter().enter::<libc::sigset_t>(self.queued, wait_for as u32, self.flags, None)
            } {
                Ok(taken) => self.queued -= taken as u32,
                // A signal, or the kernel is short of memory: what is left is handed over in the
                // next turn.
                Err(error)
                    if matches!(
                        Errno::from_raw(error.raw_os_error().unwrap_or(0)),
                        Errno::EINTR | Errno::EAGAIN | Errno::EBUSY
                    ) =>
                {
                    return;
                }
                Err(error) => panic!("io_uring_enter of our own uring, on its thread: {error}"),
            }
            if self.waiting.is_empty() {
                return;
            }
            while let Some(entry) = self.waiting.pop_front() {
                if !self.try_push(&entry) {
                    self.waiting.push_front(entry);
                    break;
                }
            }
        }
    }

    /// Goes on with as many clients as there are buffers: with all of them, each turn would look at
    /// everybody who waits, for a few who are served.
    fn receive_unbuffered(&mut self) {
        for _ in 0..self.buffers.lent() {
            let Some(slot) = self.unbuffered.pop_front() else { return };
            if let Some(s) = self.slots.get_mut(slot.0)
                && std::mem::take(&mut s.unbuffered)
                && s.wanted
            {
                self.receive(slot);
            }
        }
    }

    fn watch_alarm(&mut self) {
        let fd = Fd(self.alarm.event().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
        self.put(entry.user_data(user_data(SocketId(0), ALARM)));
    }

    fn cancel(&mut self, slot: SocketId, operation: u64) {
        self.push(slot, CANCEL, opcode::AsyncCancel::new(user_data(slot, operation)).build());
    }

    fn push_send(&mut self, slot: SocketId) {
        // All or nothing, as far as it goes: else a large answer would come back once for every
        // socket buffer.
        const FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let s = &mut self.slots[slot.0];
        let fd = Fd(s.fd.as_raw_fd());
        let entry = match s.out.one_piece() {
            Some(piece) => {
                opcode::Send::new(fd, piece.as_ptr(), piece.len().min(SEND_MOST) as u32).flags(FLAGS).build()
            }
            None => {
                let message = s.message.get_or_insert_with(|| self.spare_messages.pop().unwrap_or_else(Message::new));
                opcode::SendMsg::new(fd, message.fill(&s.out)).flags(FLAGS as u32).build()
            }
        };
        self.push(slot, SEND, entry);
    }

    fn push(&mut self, slot: SocketId, operation: u64, entry: squeue::Entry) {
        self.slots[slot.0].ops += 1;
        self.put(entry.user_data(user_data(slot, operation)));
    }

    fn put(&mut self, entry: squeue::Entry) {
        if !self.waiting.is_empty() || !self.try_push(&entry) {
            self.waiting.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the operation uses is the slot's (or io_uring's buffers), which stay until
        // its completion was taken.
        let pushed = unsafe { self.uring.submission().push(entry).is_ok() };
        self.queued += u32::from(pushed);
        pushed
    }

    /// Forgets a socket that was given up, once nothing of it is under way.
    fn release(&mut self, slot: SocketId) {
        let s = &self.slots[slot.0];
        if s.closed && s.ops == 0 {
            self.slots.remove(slot.0);
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let open: Vec<_> = self.slots.iter().filter(|(_, s)| !s.closed).map(|(slot, _)| SocketId(slot)).collect();
        for slot in open {
            self.close(slot);
        }
        // Everything is cancelled: this ends in a few turns. (In vain on another thread, which only
        // happens if nothing is under way.)
        for _ in 0..1000 {
            if self.slots.is_empty() {
                break;
            }
            self.turn();
            while self.next().is_some() {}
        }
        if self.slots.is_empty() {
            // SAFETY: used no more.
            unsafe { ManuallyDrop::drop(&mut self.slots) };
        } else {
            // Rather leaked than written to by the kernel when it is somebody else's.
            self.buffers.leaked = true;
        }
    }
}

fn user_data(slot: SocketId, operation: u64) -> u64 {
    operation << 32 | slot.0 as u64
}

#[cfg(test)]
#[path = "uring/tests.rs"]
mod tests;
