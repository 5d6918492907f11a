//! What all jobs on the same nodes share, so that together they take no more than one may.

use std::sync::Arc;

use tokio::sync::RwLock;

use super::{Clocks, Crawls, Pace, RateLimiter};

/// See the module's words. Cloned, it is still the same.
#[derive(Clone, Debug)]
pub struct Shared {
    /// How many items a second.
    pub limiter: Arc<RateLimiter>,
    /// How much of the time.
    pub pace: Arc<Pace>,
    /// One enumeration per node at a time.
    pub crawls: Arc<Crawls>,
    pub clocks: Arc<Clocks>,
    /// Held for reading while copies are under way; `flush_all` takes it for writing.
    pub quiesce: Arc<RwLock<()>>,
}

impl Shared {
    /// By those on this many nodes.
    pub fn new(nodes: usize, items_per_s: Option<u64>) -> Shared {
        Shared {
            limiter: Arc::new(RateLimiter::new(items_per_s)),
            pace: Arc::default(),
            crawls: Arc::new(Crawls::new(nodes)),
            clocks: Arc::new(Clocks::new(nodes)),
            quiesce: Arc::new(RwLock::new(())),
        }
    }
}
