//! What wakes a worker's thread where it sleeps in its io_uring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Wake;

use nix::sys::eventfd::{EfdFlags, EventFd};

const QUIET: u8 = 0;
const SIGNALLED: u8 = 1;
const ASLEEP: u8 = 2;

/// The waker of all that a worker does beside its sockets. It makes a system call only where the
/// worker sleeps.
#[derive(Debug)]
pub(crate) struct Alarm {
    state: AtomicU8,
    /// Polled by io_uring, and never read from: every write is told of.
    event: EventFd,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Alarm> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Alarm { state: AtomicU8::new(SIGNALLED), event })
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// From any thread.
    fn signal(&self) {
        if self.state.swap(SIGNALLED, Ordering::AcqRel) == ASLEEP {
            // It cannot fail: the count would have to reach 2^64.
            let _ = self.event.write(1);
        }
    }

    /// It was signalled since it was last asked.
    fn is_signalled(&self) -> bool {
        self.state.load(Ordering::Relaxed) == SIGNALLED
    }

    /// As [`Alarm::is_signalled`], and clears it.
    pub(crate) fn take(&self) -> bool {
        self.is_signalled() && self.state.swap(QUIET, Ordering::AcqRel) == SIGNALLED
    }

    /// Before the worker sleeps: from here on a signal also wakes it through io_uring. `false`: it
    /// is signalled already.
    pub(super) fn set(&self) -> bool {
        self.state.compare_exchange(QUIET, ASLEEP, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The worker is awake.
    pub(super) fn unset(&self) {
        let _ = self.state.compare_exchange(ASLEEP, QUIET, Ordering::AcqRel, Ordering::Relaxed);
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Alarm>) {
        self.signal();
    }

    fn wake_by_ref(self: &Arc<Alarm>) {
        self.signal();
    }
}
