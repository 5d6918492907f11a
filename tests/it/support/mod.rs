//! The black-box harness: real memcached processes, the real `resilver` binary, a strict client,
//! and a judge that knows what was acknowledged. Every test binary uses its part of it.

pub mod client;
pub mod cluster;
pub mod command;
pub mod etcd;
pub mod faulty;
pub mod fleet;
pub mod forwarder;
pub mod judge;
pub mod load;
pub mod memcached;
pub mod names;
pub mod network;
pub mod port;
pub mod proxy;
pub mod rings;
pub mod rng;
pub mod start;

use std::process::Child;
use std::time::{Duration, Instant};

pub use client::{Client, Failure, Stored};
pub use cluster::{Cluster, Shape};
pub use etcd::Etcd;
pub use fleet::Fleet;
pub use forwarder::{Forwarder, Hold};
pub use judge::Verdict;
pub use load::{Load, Mix};
pub use memcached::Memcached;
pub use names::Names;
pub use proxy::{Proxy, Status};
pub use rings::{RingMap, compare_rings, read_node, read_ring};
pub use rng::Rng;

/// Generous: only a hang reaches it, however loaded the machine is.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// By the environment.
pub fn given_seed() -> Option<u64> {
    std::env::var("RESILVER_TEST_SEED").ok().and_then(|s| s.parse().ok())
}

/// The seed of this run: `RESILVER_TEST_SEED`, else from the clock. Printed, so that a failure
/// shows it.
pub fn seed(test: &str) -> u64 {
    let seed = given_seed().unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock after 1970");
        now.as_nanos() as u64 % 1_000_000_007
    });
    eprintln!("{test}: RESILVER_TEST_SEED={seed}");
    seed
}

/// How long workloads of a soak run: `RESILVER_TEST_SECONDS`, else what the test asks for.
pub fn duration_or(default: Duration) -> Duration {
    named_duration().unwrap_or(default)
}

/// Whether this is a soak.
pub fn soaks() -> bool {
    named_duration().is_some()
}

fn named_duration() -> Option<Duration> {
    std::env::var("RESILVER_TEST_SECONDS").ok().and_then(|s| s.parse().ok()).map(Duration::from_secs)
}

/// Polls until the process that was just started answers `version` at `addr`. Fails if the process
/// ends, and after the deadline, with what `told` returns.
pub fn wait_answering(addr: &str, child: &mut Option<Child>, deadline: Duration, told: impl Fn() -> String) {
    let begun = Instant::now();
    loop {
        if let Ok(mut client) = Client::try_connect(addr) {
            client.set_deadline(Duration::from_millis(500));
            if client.version().is_ok() {
                return;
            }
        }
        if let Some(status) = child.as_mut().and_then(|child| child.try_wait().expect("wait")) {
            panic!("{addr} ended at once ({status}): {}", told());
        }
        assert!(begun.elapsed() < deadline, "{addr} does not answer after {deadline:?}: {}", told());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Polls until `what` holds. A deadline missed fails the test and says what was awaited.
pub fn wait_until(what: &str, deadline: Duration, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Seconds since 1970, as memcached counts them.
pub fn unix_now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock after 1970").as_secs() as i64
}
