//! Until when this process may act for its fleet.
//!
//! Every send to a server, and every use of a server's answer, comes after [`pass`]: a proxy whose
//! lease has ended blocks there, as if it were paused, until the lease is renewed or the process
//! ends. Commands sent before may have been executed; their answers are in the socket, and count if
//! no other proxy was active meanwhile.

#[cfg(debug_assertions)]
mod hook;
#[cfg(test)]
pub(crate) mod process;
mod pulse;

use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

pub use pulse::{BEAT, beat_forever, turned};

/// What is said of a proxy whose lease does not hold, behind its name or that it is suspended.
pub const OVER: &str = "its lease is over, and nothing is sent to servers before it goes on";

/// No longer one is believed, of what others have written: `--lease` is a minute at most.
pub const MOST_BELIEVED_US: u64 = 3_600_000_000;

/// A moment of this machine's `CLOCK_BOOTTIME`, in microseconds: it goes on while the machine is
/// suspended, and is never set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Boot(pub u64);

impl Boot {
    /// This moment.
    pub fn now() -> Boot {
        #[cfg(test)]
        if let Some(now) = process::now() {
            return now;
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = Boot(now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000);
        #[cfg(debug_assertions)]
        let now = hook::clock(now);
        now
    }

    /// This many microseconds later.
    #[must_use]
    pub fn after(self, us: u64) -> Boot {
        Boot(self.0.saturating_add(us))
    }

    /// Microseconds since then; 0 if that is yet to come.
    pub fn since(self, then: Boot) -> u64 {
        self.0.saturating_sub(then.0)
    }
}

/// Shared by all threads; written by the one that keeps the lease alone.
#[derive(Debug)]
pub struct Lease(AtomicU64);

/// The end of a lease that is never extended again.
const REVOKED: u64 = 1;

/// How often a thread that stands still looks whether the lease goes on.
const LOOK: Duration = Duration::from_millis(1);

impl Lease {
    /// Without coordination: for ever.
    pub const fn unbounded() -> Lease {
        Lease(AtomicU64::new(u64::MAX))
    }

    /// Whether this process may act, at a moment that is now.
    pub fn holds(&self, now: Boot) -> bool {
        now.0 < self.0.load(Ordering::Acquire)
    }

    /// How long it lasts yet.
    pub fn left(&self, now: Boot) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Acquire).saturating_sub(now.0))
    }

    /// Nobody else acts before then.
    pub fn extend(&self, until: Boot) {
        self.change(|end| end.max(until.0));
    }

    /// From now on this process does nothing, before the lease is extended.
    pub fn end(&self) {
        self.change(|_| 0);
    }

    /// From now on this process does nothing more.
    pub fn revoke(&self) {
        self.0.store(REVOKED, Ordering::Release);
    }

    fn change(&self, new: impl Fn(u64) -> u64) {
        // `Err`: it was revoked.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |end| (end != REVOKED).then(|| new(end)));
    }

    /// Returns at a moment at which this process may act. Blocks the thread until then.
    fn pass(&self) {
        // `u64::MAX`: no coordination, and no look at the clock.
        while self.0.load(Ordering::Acquire) != u64::MAX && !self.holds(Boot::now()) {
            pulse::stands_still();
            std::thread::sleep(LOOK);
        }
    }
}

/// This process's own.
static OWN: Lease = Lease::unbounded();

/// The same. (In a simulated world there are several processes on a thread.)
fn own<T>(look: impl FnOnce(&Lease) -> T) -> T {
    #[cfg(test)]
    if let Some(process) = process::present() {
        return look(&process.lease);
    }
    look(&OWN)
}

/// This process does nothing before its lease is extended: where a fleet is kept, before anything
/// is sent.
pub fn end() {
    own(Lease::end);
}

/// Nobody else acts before then.
pub fn extend(until: Boot) {
    own(|lease| lease.extend(until));
    #[cfg(test)]
    process::wake();
}

/// This process does nothing more, whatever those who keep its lease are told yet.
pub fn revoke() {
    own(Lease::revoke);
}

/// How long this process may act yet.
pub fn left() -> Duration {
    own(|lease| lease.left(Boot::now()))
}

/// Whether this process is suspended: its lease does not hold.
pub fn is_over() -> bool {
    own(|lease| !lease.holds(Boot::now()))
}

/// To be called before anything is sent to a server, and between reading what one says and acting
/// on it. Pauses before it, and between it and the sending, make a proxy late; the latter is why a
/// former active proxy is waited for.
#[inline]
pub(crate) fn pass() {
    // A simulated process without a lease does not come here: see `process`.
    #[cfg(test)]
    if process::present().is_some() {
        return;
    }
    OWN.pass();
}

/// Between [`pass`] and the sending: here a test can stop the process.
#[inline]
pub(crate) fn about_to_send(slices: &[IoSlice<'_>]) {
    #[cfg(debug_assertions)]
    hook::before_sending(slices);
    let _ = slices;
}

/// Begins a task that acts for this process, beside the one that begins it.
pub(crate) fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    #[cfg(test)]
    let work = process::as_present(work);
    tokio::spawn(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_holds_until_its_end_and_is_extended_only() {
        let lease = Lease::unbounded();
        lease.end();
        assert!(!lease.holds(Boot(0)));
        lease.extend(Boot(10));
        lease.extend(Boot(5));
        assert!(lease.holds(Boot(9)) && !lease.holds(Boot(10)));
        lease.end();
        assert!(!lease.holds(Boot(0)));
        assert!(Lease::unbounded().holds(Boot(u64::MAX - 1)));
    }

    /// The answer to a heartbeat may be under way.
    #[test]
    fn a_lease_that_was_revoked_is_extended_no_more() {
        let lease = Lease::unbounded();
        lease.end();
        lease.extend(Boot(10));
        lease.revoke();
        assert!(!lease.holds(Boot(5)));
        lease.extend(Boot(20));
        assert!(!lease.holds(Boot(5)));
        lease.end();
        lease.extend(Boot(20));
        assert!(!lease.holds(Boot(5)));
    }

    #[test]
    fn whoever_passes_waits_for_the_lease() {
        let lease = Lease::unbounded();
        lease.pass();
        lease.end();
        let passed = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                lease.pass();
                passed.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(20 * LOOK);
            assert!(!passed.load(Ordering::SeqCst), "it passed without a lease");
            lease.extend(Boot::now().after(60_000_000));
        });
        assert!(passed.load(Ordering::SeqCst));
    }
}
