//! Parts of the proxy that the system schedules late: their work waits until they run again.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

thread_local! {
    static WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Whether a worker is at work now, and not the control plane.
pub(super) fn is_worker() -> bool {
    WORKER.get()
}

/// Whether a part gets its turn.
#[derive(Clone, Default)]
pub(super) struct Scheduled(Rc<State>);

#[derive(Default)]
struct State {
    stopped: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Scheduled {
    /// From now on it waits for its turn.
    pub(super) fn stop(&self) {
        self.0.stopped.set(true);
    }

    /// It gets its turn.
    pub(super) fn go_on(&self) {
        self.0.stopped.set(false);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }

    /// The part's work, done when it has its turn.
    pub(super) async fn run(self, worker: bool, work: impl Future<Output = ()>) {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if self.0.stopped.get() {
                self.0.waker.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            WORKER.set(worker);
            let done = work.as_mut().poll(cx);
            WORKER.set(false);
            done
        })
        .await;
    }
}
