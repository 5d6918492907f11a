//! Clients on epoll whose sockets took no more. The system tells of each when it takes some again,
//! and only then it is looked at: to try all of them with every flush made each request dearer by
//! what others do not read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use futures::task::AtomicWaker;

use crate::proxy::ClientKey;

/// Those that may be written to again.
#[derive(Default)]
pub(super) struct Writable {
    told: Mutex<Vec<ClientKey>>,
    any: AtomicBool,
    flusher: AtomicWaker,
}

impl Writable {
    /// Tells of this client when it is woken.
    pub(super) fn waker(self: &Arc<Writable>, client: ClientKey) -> Waker {
        Waker::from(Arc::new(Teller { client, writable: self.clone() }))
    }

    /// The flusher is woken when there is one.
    pub(super) fn wakes(&self, flusher: &Waker) {
        self.flusher.register(flusher);
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    pub(super) fn take(&self) -> Vec<ClientKey> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        self.any.store(false, Ordering::Release);
        std::mem::take(&mut *told)
    }
}

struct Teller {
    client: ClientKey,
    writable: Arc<Writable>,
}

impl Wake for Teller {
    fn wake(self: Arc<Self>) {
        let writable = &self.writable;
        {
            let mut told = writable.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.push(self.client);
            writable.any.store(true, Ordering::Release);
        }
        writable.flusher.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::proxy::{ClientId, Occupant};

    #[derive(Default)]
    struct Counting(AtomicU32);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn those_that_are_told_of_are_taken_once_and_the_flusher_is_woken() {
        let (writable, flusher) = (Arc::new(Writable::default()), Arc::new(Counting::default()));
        let keys = [1, 2].map(|index| ClientKey { id: ClientId(index), occupant: Occupant(7) });
        let wakers = keys.map(|key| writable.waker(key));
        writable.wakes(&flusher.clone().into());
        assert!(writable.is_empty() && writable.take().is_empty());
        wakers[1].wake_by_ref();
        assert_eq!(flusher.0.load(Ordering::Relaxed), 1);
        wakers[0].wake_by_ref();
        assert_eq!(writable.take(), [keys[1], keys[0]]);
        assert!(writable.is_empty());
    }
}
