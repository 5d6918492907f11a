//! Test: the processes of a simulated world, several on one thread. Each has a lease and a clock of
//! its own; it stands still when it is stopped, and what acts for it also while it has no lease.
//!
//! In the daemon a thread without a lease goes on until it comes to `pass`, which is before it does
//! anything that matters. Here, where all threads are one, it is not polled at all: it may as well
//! have stood still there. Virtual time does not pass within a poll, so nothing that is polled with
//! a lease does anything without one.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::time::Instant;

use super::{Boot, Lease};

/// A machine's `CLOCK_BOOTTIME`.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    begun: Instant,
    /// What it showed then.
    ahead_us: u64,
    /// How far it goes in a thousand microseconds.
    pub(crate) per_thousand: u64,
}

impl Clock {
    pub(crate) fn new(ahead_us: u64, per_thousand: u64) -> Clock {
        Clock { begun: Instant::now(), ahead_us, per_thousand }
    }

    fn now(&self) -> Boot {
        Boot(self.ahead_us + self.begun.elapsed().as_micros() as u64 * self.per_thousand / 1_000)
    }
}

pub(crate) struct Process {
    pub(super) lease: Lease,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stopped: bool,
    /// The clock stands still with it since then; and so many microseconds it did before.
    frozen: Option<Boot>,
    behind_us: u64,
    ended: bool,
    /// Since when one of its threads hangs.
    hangs: Option<Boot>,
    waiting: Vec<Waker>,
}

/// What a part of a process needs to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Needs {
    /// That the process runs: so does who keeps its lease.
    Turns,
    /// A lease too.
    Lease,
}

thread_local! {
    static PRESENT: RefCell<Option<Arc<Process>>> = const { RefCell::new(None) };
}

/// The process that is at work now.
pub(super) fn present() -> Option<Arc<Process>> {
    PRESENT.with_borrow(Clone::clone)
}

pub(super) fn now() -> Option<Boot> {
    PRESENT.with_borrow(|present| present.as_ref().map(|process| process.now()))
}

/// The present process may have got a lease.
pub(super) fn wake() {
    if let Some(process) = present() {
        process.wake();
    }
}

/// A task of the process that begins it, which acts.
pub(super) fn as_present<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let process = present();
    async move {
        match process {
            Some(process) => process.run(Needs::Lease, work).await,
            None => work.await,
        }
    }
}

impl Process {
    /// One without a lease.
    pub(crate) fn new(clock: Clock) -> Arc<Process> {
        let lease = Lease::unbounded();
        lease.end();
        Arc::new(Process { lease, clock, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// What the clock shows.
    fn now(&self) -> Boot {
        let State { frozen, behind_us, .. } = *self.lock();
        frozen.unwrap_or(Boot(self.clock.now().0 - behind_us))
    }

    /// SIGSTOP.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
    }

    /// Its machine stands still, and the clock with it: a snapshot, say.
    pub(crate) fn freeze(&self) {
        let now = self.now();
        let mut state = self.lock();
        state.stopped = true;
        state.frozen.get_or_insert(now);
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) {
        {
            let mut state = self.lock();
            state.stopped = false;
            if let Some(since) = state.frozen.take() {
                state.behind_us = self.clock.now().0 - since.0;
            }
        }
        self.wake();
    }

    /// Nothing of it is done any more.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// One of its threads hangs from now on, or does not any more.
    pub(crate) fn hangs(&self, hangs: bool) {
        let since = hangs.then(|| self.now());
        self.lock().hangs = since;
    }

    pub(super) fn turned(&self) -> Boot {
        let hangs = self.lock().hangs;
        hangs.unwrap_or_else(|| self.now())
    }

    /// Whether it may act, by its own clock.
    pub(crate) fn has_lease(&self) -> bool {
        self.lease.holds(self.now())
    }

    fn goes_on(&self, needs: Needs) -> bool {
        let State { stopped, ended, .. } = *self.lock();
        let leased = needs == Needs::Turns || self.has_lease();
        !stopped && !ended && leased
    }

    /// A part of the process.
    pub(crate) async fn run<T>(self: Arc<Self>, needs: Needs, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if !self.goes_on(needs) {
                self.lock().waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            let before = PRESENT.replace(Some(self.clone()));
            let polled = work.as_mut().poll(cx);
            PRESENT.set(before);
            polled
        })
        .await
    }
}
