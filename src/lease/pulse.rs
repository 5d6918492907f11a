//! Whether all threads that a proxy needs are working: the control plane's, and in a fleet the
//! workers'.
//!
//! A proxy of a fleet with a hanging thread does not serve all its clients, and should lose its
//! lease. So each of these threads regularly reports that it works, also while it waits for a lease
//! (or that would never come back), and the lease is renewed only as long as all do. The reports to
//! a service manager depend on it too, while the control plane answers no questions.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Boot;

/// The longest time between two such reports of the control plane.
pub const BEAT: Duration = Duration::from_secs(1);

/// When a thread last turned.
#[derive(Debug)]
struct Pulse(AtomicU64);

impl Pulse {
    fn beat(&self, now: Boot) {
        self.0.store(now.0, Ordering::Release);
    }
}

/// Of all threads that have said once that they turn, and have not ended.
struct Pulses(Mutex<Vec<Arc<Pulse>>>);

impl Pulses {
    const fn new() -> Pulses {
        Pulses(Mutex::new(Vec::new()))
    }

    fn enter(&self, now: Boot) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse(AtomicU64::new(now.0)));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(pulse.clone());
        pulse
    }

    fn turned(&self, now: Boot) -> Boot {
        let mut pulses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The other one is the thread's own.
        pulses.retain(|pulse| Arc::strong_count(pulse) > 1);
        pulses.iter().map(|pulse| Boot(pulse.0.load(Ordering::Acquire))).min().unwrap_or(now)
    }
}

static PULSES: Pulses = Pulses::new();

thread_local! {
    static PULSE: OnceCell<Arc<Pulse>> = const { OnceCell::new() };
}

/// This thread turns. From the first time on it is needed, until it ends.
fn beat() {
    PULSE.with(|pulse| pulse.get_or_init(|| PULSES.enter(Boot::now())).beat(Boot::now()));
}

/// This thread stands still for want of a lease, and for nothing else.
pub(super) fn stands_still() {
    PULSE.with(|pulse| {
        if let Some(pulse) = pulse.get() {
            pulse.beat(Boot::now());
        }
    });
}

/// Since when all threads that are needed have turned.
pub fn turned() -> Boot {
    #[cfg(test)]
    if let Some(process) = super::process::present() {
        return process.turned();
    }
    PULSES.turned(Boot::now())
}

/// Reports at these intervals that the thread which runs this turns.
pub async fn beat_forever(every: Duration) {
    loop {
        beat();
        tokio::time::sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Lease;

    #[test]
    fn all_threads_have_turned_since_the_one_that_hangs() {
        let pulses = Pulses::new();
        assert_eq!(pulses.turned(Boot(7)), Boot(7), "nobody is needed yet");
        let (one, other) = (pulses.enter(Boot(10)), pulses.enter(Boot(11)));
        other.beat(Boot(20));
        assert_eq!(pulses.turned(Boot(30)), Boot(10));
        one.beat(Boot(25));
        assert_eq!(pulses.turned(Boot(30)), Boot(20));
        drop(other);
        assert_eq!(pulses.turned(Boot(30)), Boot(25), "it has ended");
    }

    /// Else a suspended proxy would never get its lease back.
    #[test]
    fn a_thread_that_stands_still_without_a_lease_turns_all_the_same() {
        let lease = Lease::unbounded();
        lease.end();
        let (tells, hears) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                beat();
                tells.send(PULSE.with(|pulse| pulse.get().cloned())).unwrap();
                lease.pass();
            });
            let pulse = hears.recv().unwrap().expect("it has said that it turns");
            let (begun, first) = (std::time::Instant::now(), pulse.0.load(Ordering::Acquire));
            while pulse.0.load(Ordering::Acquire) == first && begun.elapsed() < Duration::from_secs(20) {
                std::thread::yield_now();
            }
            let last = pulse.0.load(Ordering::Acquire);
            lease.extend(Boot::now().after(60_000_000));
            assert!(last > first, "it counts as hanging");
        });
    }
}
