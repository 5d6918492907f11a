//! Turns at the servers' crawlers, of which each has one.
//!
//! A dump goes on whether or not anybody reads it, and until memcached 1.6.28 a command that meets
//! one blocks the worker thread that took it. Where the crawler stands still, each further dump
//! takes one thread more, until none is left for clients. So a dump belongs to its server: whoever
//! loses patience with it, or has no more use for it, leaves it to a task that reads it to its end,
//! and nobody asks for another one before. (To close the connection instead crashes memcached up to
//! 1.6.25, if the dump is about to end and its reader is slow.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use crate::ids::NodeId;

/// Of all servers.
#[derive(Debug)]
pub struct Crawls(Vec<Arc<Crawler>>);

#[derive(Default, Debug)]
struct Crawler {
    turn: Arc<Mutex<()>>,
    /// A dump that was given up has not come to its end.
    left: AtomicBool,
}

/// Nobody else's dump is under way.
#[derive(Debug)]
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
    crawler: Arc<Crawler>,
}

/// A dump that was given up has not come to its end for too long.
#[derive(Debug)]
pub(super) struct StandsStill;

impl Crawls {
    pub fn new(nodes: usize) -> Crawls {
        Crawls((0..nodes).map(|_| Arc::default()).collect())
    }

    /// Waits for the enumerations before, each of which has deadlines; for one that was given up
    /// only so long.
    pub(super) async fn turn(&self, node: NodeId, patience: Duration) -> Result<Turn, StandsStill> {
        let crawler = self.0[node.index()].clone();
        loop {
            match timeout(patience, crawler.turn.clone().lock_owned()).await {
                Ok(guard) => return Ok(Turn { _guard: guard, crawler }),
                Err(_) if crawler.left.load(Relaxed) => return Err(StandsStill),
                Err(_) => {}
            }
        }
    }

    /// Completes when the node's crawler has come to the end of what it was asked for.
    pub(super) async fn is_free(&self, node: NodeId) {
        drop(self.0[node.index()].turn.clone().lock_owned().await);
    }
}

impl Turn {
    /// The dump is given up.
    pub(super) fn leave(&self) {
        self.crawler.left.store(true, Relaxed);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.crawler.left.store(false, Relaxed);
    }
}
