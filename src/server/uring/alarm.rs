//! What wakes a worker's thread where it sleeps in its ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Wake;

use nix::sys::eventfd::{EfdFlags, EventFd};

const QUIET: u8 = 0;
const RUNG: u8 = 1;
const ASLEEP: u8 = 2;

/// The waker of all that a worker does beside its sockets. It makes a system call only where the worker sleeps.
#[derive(Debug)]
pub(crate) struct Alarm {
    state: AtomicU8,
    /// Polled by the ring, and never read from: every write is told of.
    event: EventFd,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Alarm> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Alarm { state: AtomicU8::new(RUNG), event })
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// From any thread.
    fn ring(&self) {
        if self.state.swap(RUNG, Ordering::AcqRel) == ASLEEP {
            // It cannot fail: the count would have to reach 2^64.
            let _ = self.event.write(1);
        }
    }

    /// Whether it rings.
    fn is_rung(&self) -> bool {
        self.state.load(Ordering::Relaxed) == RUNG
    }

    /// Whether it has rung since this was last asked.
    pub(crate) fn take(&self) -> bool {
        self.is_rung() && self.state.swap(QUIET, Ordering::AcqRel) == RUNG
    }

    /// Before the worker sleeps: from here on whoever rings sees to it that the ring has news. `false`: it rings.
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
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Alarm>) {
        self.ring();
    }
}
