//! Chance and the date: what the proxy takes from its surroundings unasked. The simulation puts its own in their place, so that a run
//! replays exactly.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::{Rng, RngExt};

/// A random number.
pub(crate) fn random_u64() -> u64 {
    with_rng(|rng| rng.next_u64())
}

/// A random number within a range.
pub(crate) fn random_in(range: Range<f64>) -> f64 {
    with_rng(|rng| rng.random_range(range))
}

/// The time since 1970.
pub(crate) fn unix_time() -> Duration {
    #[cfg(test)]
    if let Some(now) = simulated::unix_time() {
        return now;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn with_rng<T>(take: impl FnOnce(&mut dyn Rng) -> T) -> T {
    #[cfg(test)]
    if simulated::is_on() {
        return simulated::with_rng(take);
    }
    take(&mut rand::rng())
}

/// A thread's own chance and date, for tests.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::RefCell;
    use std::time::Duration;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use tokio::time::Instant;

    /// When the world begins.
    const EPOCH: Duration = Duration::from_secs(1_800_000_000);

    thread_local! {
        static AMBIENT: RefCell<Option<(SmallRng, Instant)>> = const { RefCell::new(None) };
    }

    /// From now on this thread's chance comes from a seed, and its date from tokio's clock, which begins now.
    pub(crate) fn begin(seed: u64) {
        AMBIENT.set(Some((SmallRng::seed_from_u64(seed), Instant::now())));
    }

    /// Ends what [`begin`] began.
    pub(crate) fn end() {
        AMBIENT.set(None);
    }

    pub(super) fn is_on() -> bool {
        AMBIENT.with_borrow(Option::is_some)
    }

    pub(super) fn unix_time() -> Option<Duration> {
        AMBIENT.with_borrow(|a| a.as_ref().map(|(_, begun)| EPOCH + begun.elapsed()))
    }

    pub(super) fn with_rng<T>(take: impl FnOnce(&mut dyn Rng) -> T) -> T {
        AMBIENT.with_borrow_mut(|a| take(&mut a.as_mut().expect("looked at before").0))
    }
}
