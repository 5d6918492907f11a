//! Turns at the servers' crawlers, of which each has one.
//!
//! A dump goes on whether or not anybody reads it, and until memcached 1.6.28 a command that meets
//! one blocks the worker thread that took it. Where the crawler stands still, each further dump
//! takes one thread more, until none is left for clients. So a dump belongs to its server: a reader
//! that loses patience with it, or needs it no more, leaves it to a task that reads it to its end,
//! and no other one is requested before. (To close the connection instead crashes memcached up to
//! 1.6.25, if the dump is about to end and its reader is slow.)

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout};

use crate::ids::NodeId;

/// Of all servers.
#[derive(Debug)]
pub struct Crawls(Vec<Mutex<Arc<Crawler>>>);

#[derive(Default, Debug)]
struct Crawler {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// When something came last of a dump that was given up, and has not come to its end.
    left: Mutex<Option<Instant>>,
}

/// The right to be the only dump of a server.
#[derive(Debug)]
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
    crawler: Arc<Crawler>,
}

/// A dump that was given up does not go on.
#[derive(Debug)]
pub(super) struct StandsStill;

impl Crawls {
    pub fn new(nodes: usize) -> Crawls {
        Crawls((0..nodes).map(|_| Mutex::default()).collect())
    }

    /// Another server has the node's name.
    pub fn moved(&self, node: NodeId) {
        *self.0[node.index()].lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    fn of(&self, node: NodeId) -> Arc<Crawler> {
        self.0[node.index()].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the enumerations before, each of which has deadlines; for one that was given up as
    /// long as it goes on.
    pub(super) async fn turn(&self, node: NodeId, patience: Duration) -> Result<Turn, StandsStill> {
        let crawler = self.of(node);
        loop {
            let since = crawler.left();
            if since.is_some_and(|since| since.elapsed() >= patience) {
                return Err(StandsStill);
            }
            let patience = patience.saturating_sub(since.map_or(Duration::ZERO, |since| since.elapsed()));
            if let Ok(guard) = timeout(patience, crawler.turn.clone().lock_owned()).await {
                return Ok(Turn { _guard: guard, crawler });
            }
        }
    }

    /// Completes when the node's crawler has come to the end of what it was asked for.
    pub(super) async fn is_free(&self, node: NodeId) {
        drop(self.of(node).turn.clone().lock_owned().await);
    }
}

impl Crawler {
    fn left(&self) -> Option<Instant> {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// The dump was given up, and something has come of it all the same.
    pub(super) fn goes_on(&self) {
        self.tell(Some(Instant::now()));
    }

    fn tell(&self, left: Option<Instant>) {
        *self.crawler.left.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.tell(None);
    }
}
