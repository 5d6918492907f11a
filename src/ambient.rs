//! Chance and the date: what the proxy takes from its surroundings unasked. The simulation puts its
//! own in their place, so that a run replays exactly.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::{Rng, RngExt};
use tokio::time::Instant;

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

/// The date at a moment, since 1970, by the proxy's own clock: it is set once, and goes evenly from
/// then on whatever is done to the host's.
pub(crate) fn date(at: Instant) -> Duration {
    #[cfg(test)]
    if let Some((begun, date)) = simulated::beginning() {
        return since(at, begun, date);
    }
    static SET: OnceLock<(Instant, Duration)> = OnceLock::new();
    let &(moment, date) = SET.get_or_init(|| (Instant::now(), unix_time()));
    since(at, moment, date)
}

fn since(at: Instant, moment: Instant, date: Duration) -> Duration {
    match at.checked_duration_since(moment) {
        Some(passed) => date + passed,
        None => date.saturating_sub(moment - at),
    }
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

    /// From now on this thread's chance comes from a seed, and its date from tokio's clock, which
    /// begins now.
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

    pub(super) fn beginning() -> Option<(Instant, Duration)> {
        AMBIENT.with_borrow(|a| a.as_ref().map(|(_, begun)| (*begun, EPOCH)))
    }

    pub(super) fn with_rng<T>(take: impl FnOnce(&mut dyn Rng) -> T) -> T {
        AMBIENT.with_borrow_mut(|a| take(&mut a.as_mut().expect("looked at before").0))
    }
}
