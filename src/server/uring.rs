//! Clients' sockets on io_uring: one system call hands over the answers of a turn and brings what clients have sent meanwhile.
//!
//! Every client has a receive under way that goes on by itself (multishot) and takes a buffer of the ring's only when something has
//! come; so an idle client holds none. What came is copied out at once and the buffer given back.
//!
//! The only module with unsafe code: the kernel reads and writes memory behind the compiler's back. What it rests on: memory that an
//! operation uses stays where it is until the operation's completion was taken ([`Slot::ops`]), and a ring that cannot wait for that
//! leaks it.
#![allow(unsafe_code)]

mod buffers;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use slab::Slab;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::proxy::{MAX_SLICES, OutQueue};
use buffers::{BUFFERS, Buffers};

/// Operations handed over in one system call; more wait for the next.
const SUBMISSIONS: u32 = 1024;

/// Completions that wait to be taken. What is more the kernel keeps.
const COMPLETIONS: u32 = 4096;

/// Their number in the kernel's books.
const BUFFER_GROUP: u16 = 0;

/// Bytes of one send. The kernel waits for a slow reader so many times, and then gives the send a thread of its own; a client must not be
/// able to have one.
const SEND_MOST: usize = 256 * 1024;

/// Queues and messages kept for the next sends.
const SPARE: usize = 256;

/// Whether the event is silenced while the worker is awake: else every send that is done would wake it once more, for nothing. The kernel
/// first says that something was put off, and then reads whether it is to signal that; only here is it sure that nobody sees the two
/// the other way round.
const QUIET_WHILE_AWAKE: bool = cfg!(target_arch = "x86_64");

/// `IORING_ENTER_GETEVENTS`: work that the kernel has put off is done in this call.
const GET_EVENTS: u32 = 1;

/// What an operation is; in the upper half of its `user_data`, the slot in the lower.
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const CANCEL: u64 = 2;

/// What a ring tells of a client.
#[derive(Debug)]
pub(super) enum News {
    /// It sent something.
    Input(u32, Input),
    /// It will send no more.
    End(u32),
    /// A send that was waited for is done, or failed.
    Sent(u32),
}

/// Bytes from a client, in a buffer that is to be given back.
#[derive(Debug)]
pub(super) struct Input {
    buffer: u16,
    len: usize,
}

/// A worker's clients on io_uring.
pub(crate) struct Ring {
    ring: IoUring,
    buffers: Buffers,
    /// Leaked where the kernel may still use what is in it.
    slots: ManuallyDrop<Slab<Slot>>,
    /// Operations in the submission queue.
    queued: u32,
    /// Operations that found no room there.
    waiting: VecDeque<squeue::Entry>,
    spare_queues: Vec<OutQueue>,
    #[expect(clippy::vec_box, reason = "the kernel knows their addresses")]
    spare_messages: Vec<Box<Message>>,
    /// Bytes sent since they were asked for.
    sent: usize,
    /// Turns one after the other that brought nothing.
    in_vain: usize,
    /// Signalled when there is something to be taken.
    event: EventFd,
}

/// One client's socket.
struct Slot {
    fd: OwnedFd,
    /// The client's place in the worker's table.
    owner: u32,
    /// Operations whose last completion was not taken yet. Until there are none the socket stays open and everything where it is.
    ops: u32,
    out: OutQueue,
    /// The pieces of `out` as the kernel wants them, where there are several.
    message: Option<Box<Message>>,
    sending: bool,
    /// Whether somebody waits for the send to be done.
    waits: bool,
    broken: bool,
    receiving: bool,
    /// Whether to receive again when the receive ends.
    wanted: bool,
    /// The other side sends no more.
    ended: bool,
    cancelling: bool,
    /// The client is gone.
    closed: bool,
}

/// The argument of a send of several pieces.
struct Message {
    header: libc::msghdr,
    slices: [libc::iovec; MAX_SLICES],
}

impl Message {
    fn new() -> Box<Message> {
        // SAFETY: both are plain C data, for which zeroes are a valid value.
        Box::new(unsafe { std::mem::zeroed() })
    }

    /// Points to the front of `out`, which must neither change nor go away while this is in use.
    fn fill(&mut self, out: &OutQueue) -> *const libc::msghdr {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = out.slices(&mut slices);
        let (mut left, mut used) = (SEND_MOST, 0);
        for (to, from) in self.slices.iter_mut().zip(&slices[..count]) {
            let len = from.len().min(left);
            *to = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: len };
            (left, used) = (left - len, used + 1);
            if left == 0 {
                break;
            }
        }
        self.header.msg_iov = self.slices.as_mut_ptr();
        self.header.msg_iovlen = used as _;
        &raw const self.header
    }
}

// SAFETY: the pointers in it are its own memory's, and to no thread's in particular. (The kernel wants the ring to be used by the thread
// that has called `start`; from any other it refuses.)
unsafe impl Send for Ring {}

impl Ring {
    /// A ring that is not running yet, so that it can be made before the thread that will use it.
    ///
    /// # Errors
    ///
    /// The kernel is too old (6.1 has everything), or somebody forbids it to this process.
    pub(super) fn new() -> io::Result<Ring> {
        let ring: IoUring = IoUring::builder()
            .dontfork()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            // What has come is looked at when the worker asks, and does not interrupt it.
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(SUBMISSIONS)?;
        let buffers = Buffers::new();
        // SAFETY: the memory is page-aligned, holds as many entries, and lives as long as the ring or longer (see `drop`).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(buffers.list(), BUFFERS, BUFFER_GROUP, 0)?;
        }
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_fd().as_raw_fd())?;
        let mut ring = Ring {
            ring,
            buffers,
            slots: ManuallyDrop::new(Slab::new()),
            queued: 0,
            waiting: VecDeque::new(),
            spare_queues: Vec::new(),
            spare_messages: Vec::new(),
            sent: 0,
            in_vain: 0,
            event,
        };
        for buffer in 0..BUFFERS {
            ring.buffers.give(buffer);
        }
        ring.buffers.publish();
        Ok(ring)
    }

    /// Makes the calling thread the one that uses it. Returns what is signalled (and never to be read from) when there is something to
    /// be taken.
    ///
    /// # Errors
    ///
    /// The system has no more file descriptors.
    pub(super) fn start(self) -> io::Result<(Ring, AsyncFd<OwnedFd>)> {
        self.ring.submitter().register_enable_rings()?;
        let event = self.event.as_fd().try_clone_to_owned()?;
        // SAFETY: it owns the descriptor, and nobody takes that from it.
        let event = unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }?;
        Ok((self, event))
    }

    /// Takes on a socket (in blocking mode: the kernel waits for it, not we) and receives from it. Returns its slot.
    pub(super) fn add(&mut self, fd: OwnedFd, owner: u32) -> usize {
        let slot = self.slots.insert(Slot {
            fd,
            owner,
            ops: 0,
            out: OutQueue::default(),
            message: None,
            sending: false,
            waits: false,
            broken: false,
            receiving: false,
            wanted: false,
            ended: false,
            cancelling: false,
            closed: false,
        });
        self.receive(slot);
        slot
    }

    /// Takes what is in `out` to be sent, if nothing of this socket is being sent; else it says [`News::Sent`] when that is done.
    pub(super) fn send(&mut self, slot: usize, out: &mut OutQueue) -> bool {
        let s = &mut self.slots[slot];
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

    /// Whether something is being sent. If so it says [`News::Sent`] when that is done.
    pub(super) fn waits_for_send(&mut self, slot: usize) -> bool {
        let s = &mut self.slots[slot];
        s.waits = s.sending;
        s.sending
    }

    /// Whether a send has failed.
    pub(super) fn is_broken(&self, slot: usize) -> bool {
        self.slots[slot].broken
    }

    /// Receives nothing more for now. What was received until this takes effect still comes.
    pub(super) fn hush(&mut self, slot: usize) {
        let s = &mut self.slots[slot];
        s.wanted = false;
        if s.receiving && !s.cancelling {
            s.cancelling = true;
            self.cancel(slot, RECEIVE);
        }
    }

    /// Receives, or goes on to.
    pub(super) fn receive(&mut self, slot: usize) {
        let s = &mut self.slots[slot];
        s.wanted = true;
        if !s.receiving && !s.ended {
            s.receiving = true;
            let entry = opcode::RecvMulti::new(Fd(s.fd.as_raw_fd()), BUFFER_GROUP).build();
            self.push(slot, RECEIVE, entry);
        }
    }

    /// The client is gone: nothing more is told of it.
    pub(super) fn close(&mut self, slot: usize) {
        self.hush(slot);
        let s = &mut self.slots[slot];
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

    /// Gives its buffer back.
    pub(super) fn give(&mut self, input: Input) {
        self.buffers.give(input.buffer);
    }

    /// Bytes sent since this was last asked.
    pub(super) fn take_sent(&mut self) -> usize {
        std::mem::take(&mut self.sent)
    }

    /// Whether anything waits for [`Ring::turn`].
    pub(super) fn has_queued(&self) -> bool {
        self.queued > 0
    }

    /// Hands over what is queued and has the kernel look for what has come, for [`Ring::next`]. Does nothing where there is nothing to do.
    pub(super) fn turn(&mut self) {
        self.buffers.publish();
        if self.queued == 0 && !self.has_come() {
            return;
        }
        self.hand_over();
        self.in_vain = if self.ring.completion().is_empty() { self.in_vain + 1 } else { 0 };
    }

    fn hand_over(&mut self) {
        loop {
            // SAFETY: no arguments beside the numbers.
            match unsafe { self.ring.submitter().enter::<libc::sigset_t>(self.queued, 0, GET_EVENTS, None) } {
                Ok(taken) => self.queued -= taken as u32,
                // A signal, or the kernel is short of memory: what is left is handed over in the next turn.
                Err(error)
                    if matches!(
                        Errno::from_raw(error.raw_os_error().unwrap_or(0)),
                        Errno::EINTR | Errno::EAGAIN | Errno::EBUSY
                    ) =>
                {
                    return;
                }
                Err(error) => panic!("io_uring_enter of our own ring, on its thread: {error}"),
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

    /// Whether there is something for [`Ring::next`], or another turn would bring it: the kernel does only so much in one.
    pub(super) fn has_more(&mut self) -> bool {
        self.queued > 0 || !self.ring.completion().is_empty() || self.has_come() && self.in_vain < self.patience()
    }

    /// Before the worker sleeps: from here on the event is signalled. `false`: something has come, so it must not sleep yet.
    pub(super) fn sleep(&mut self) -> bool {
        if QUIET_WHILE_AWAKE {
            self.ring.completion().enable_eventfd();
            // What the kernel puts off from here on sees that; what it put off before is seen by us.
            fence(Ordering::SeqCst);
        }
        self.turn();
        let sleeps = !self.has_more();
        if sleeps {
            self.in_vain = 0;
        }
        sleeps
    }

    /// The worker looks for itself, and needs no signal.
    pub(super) fn awake(&mut self) {
        if QUIET_WHILE_AWAKE {
            self.ring.completion().disable_eventfd();
        }
    }

    /// Turns after which what the kernel says of having put something off is not believed any more. It may say so too late, when that is
    /// done already, and then goes on saying it. But a turn does twenty pieces of work, and those may be twenty sends that went on by one
    /// socket buffer, of which nothing is told; and of what is left then no signal comes. No client has more than two.
    fn patience(&self) -> usize {
        2 + self.slots.len() / 10
    }

    /// Whether the kernel says that it has put something off.
    fn has_come(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// The next news of [`Ring::turn`].
    pub(super) fn next(&mut self) -> Option<News> {
        loop {
            let entry = self.ring.completion().next()?;
            let slot = entry.user_data() as u32 as usize;
            let news = match entry.user_data() >> 32 {
                RECEIVE => self.received(slot, &entry),
                SEND => self.has_sent(slot, entry.result()),
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

    fn received(&mut self, slot: usize, entry: &cqueue::Entry) -> Option<News> {
        let result = entry.result();
        let s = &mut self.slots[slot];
        let goes_on = cqueue::more(entry.flags());
        if !goes_on {
            s.receiving = false;
            s.ops -= 1;
        }
        let mut news = None;
        if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
            if result > 0 && !s.closed {
                news = Some(News::Input(s.owner, Input { buffer, len: result as usize }));
            } else {
                self.buffers.give(buffer);
            }
        }
        if goes_on {
            return news;
        }
        // (Out of buffers, cancelled, or the kernel lets others have their turn: it may go on.)
        let s = &mut self.slots[slot];
        if s.closed {
            self.release(slot);
        } else if result > 0 || [-libc::ENOBUFS, -libc::ECANCELED, -libc::EINTR, -libc::EAGAIN].contains(&result) {
            if s.wanted {
                self.receive(slot);
            }
        } else {
            s.ended = true;
            news = Some(News::End(s.owner));
        }
        news
    }

    fn has_sent(&mut self, slot: usize, result: i32) -> Option<News> {
        let s = &mut self.slots[slot];
        s.ops -= 1;
        if result > 0 {
            s.out.advance(result as usize);
            self.sent += result as usize;
        }
        let again = result > 0 && !s.out.is_empty() || [-libc::EINTR, -libc::EAGAIN].contains(&result);
        if again && !s.closed {
            self.push_send(slot);
            return None;
        }
        s.sending = false;
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

    fn has_cancelled(&mut self, slot: usize, result: i32) {
        let s = &mut self.slots[slot];
        s.ops -= 1;
        // (Of a receive, or of the send of a client that is gone.)
        s.cancelling = false;
        if result < 0 && s.receiving && !s.wanted {
            // It was just busy with it. (Where it had ended, its last completion came before.)
            self.hush(slot);
        }
        self.release(slot);
    }

    fn cancel(&mut self, slot: usize, operation: u64) {
        self.push(slot, CANCEL, opcode::AsyncCancel::new(user_data(slot, operation)).build());
    }

    fn push_send(&mut self, slot: usize) {
        // All or nothing, as far as it goes: else a large answer would come back once for every socket buffer.
        const FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let s = &mut self.slots[slot];
        let fd = Fd(s.fd.as_raw_fd());
        let entry = match s.out.one_piece() {
            Some(piece) => {
                opcode::Send::new(fd, piece.as_ptr(), piece.len().min(i32::MAX as usize) as u32).flags(FLAGS).build()
            }
            None => {
                let message = s.message.get_or_insert_with(|| self.spare_messages.pop().unwrap_or_else(Message::new));
                opcode::SendMsg::new(fd, message.fill(&s.out)).flags(FLAGS as u32).build()
            }
        };
        self.push(slot, SEND, entry);
    }

    fn push(&mut self, slot: usize, operation: u64, entry: squeue::Entry) {
        self.slots[slot].ops += 1;
        let entry = entry.user_data(user_data(slot, operation));
        if !self.waiting.is_empty() || !self.try_push(&entry) {
            self.waiting.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the operation uses is the slot's (or the ring's buffers), which stay until its completion was taken.
        let pushed = unsafe { self.ring.submission().push(entry).is_ok() };
        self.queued += u32::from(pushed);
        pushed
    }

    /// Forgets a client that is gone, once nothing of it is under way.
    fn release(&mut self, slot: usize) {
        let s = &self.slots[slot];
        if s.closed && s.ops == 0 {
            self.slots.remove(slot);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let slots: Vec<usize> = self.slots.iter().filter(|(_, s)| !s.closed).map(|(slot, _)| slot).collect();
        for slot in slots {
            self.close(slot);
        }
        // Everything is cancelled: this ends in a few turns. (In vain on another thread, which only happens if nothing is under way.)
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

fn user_data(slot: usize, operation: u64) -> u64 {
    operation << 32 | slot as u64
}

#[cfg(test)]
#[path = "uring/tests.rs"]
mod tests;
