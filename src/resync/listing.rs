//! Keys listed for a client that asks for them all (`lru_crawler metadump`).
//!
//! A server that lists must be read at full speed (see [`super::spool`]), and a client may be slow,
//! or stop: between the two the lines lie in memory up to a bound, then in an unlinked file. The
//! next server is not asked before most of it is taken, so the file has about as many bytes as one
//! server has to say.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use super::enumerate::enumerate;
use super::spool::{SlotId, Spool};
use super::{Context, JobError};
use crate::ids::NodeId;

/// Memory for lines that wait, bytes.
const MEMORY_BYTES: usize = 1 << 20;
/// Lines that may wait when the next server is asked.
const LEFT_MAX: usize = 10_000;
/// How often it is looked whether so few are left.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines are handed on in pieces of this many bytes; only the last one is smaller.
const PART_BYTES: usize = 32 * 1024;

/// Why a listing ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("{1}")]
    Server(NodeId, JobError),
    /// The lines that waited are lost.
    #[error("its temporary file cannot be used: {0}")]
    Spool(std::io::Error),
    /// The server is to be read for its other copy.
    #[error("gives way to a resync")]
    GivesWay,
    /// The reader of the lines takes no more.
    #[error("is not taken")]
    Unwanted,
}

/// Lines between servers and the client.
struct Waiting {
    spool: Mutex<Spool>,
    /// There is more, or nothing more will come.
    changed: Notify,
    listed: AtomicBool,
}

/// Lists these nodes one after the other, as their own lines with LF at the end. `wanted` picks
/// lines, by key and line. Dropping the receiver of `pieces` ends it.
pub async fn list(
    ctx: &Context,
    nodes: Vec<NodeId>,
    wanted: impl Fn(NodeId, &[u8], &[u8]) -> bool + Send + Sync,
    pieces: mpsc::Sender<Bytes>,
) -> Result<(), ListError> {
    let waiting =
        Waiting { spool: Mutex::new(Spool::new(MEMORY_BYTES)), changed: Notify::new(), listed: AtomicBool::new(false) };
    let mut taking = pin!(waiting.hand_on(pieces));
    let listing = async {
        let listed = waiting.fill(ctx, nodes, wanted).await;
        waiting.listed.store(true, Relaxed);
        waiting.changed.notify_one();
        listed
    };
    tokio::select! {
        biased;
        listed = listing => taking.await.and(listed),
        // Before the end, to which what the servers were asked for is read all the same.
        taken = taking.as_mut() => taken,
    }
}

impl Waiting {
    async fn fill(
        &self,
        ctx: &Context,
        nodes: Vec<NodeId>,
        wanted: impl Fn(NodeId, &[u8], &[u8]) -> bool + Send + Sync,
    ) -> Result<(), ListError> {
        let disk = self.lock().disk();
        for node in nodes {
            while self.lock().len() > LEFT_MAX {
                sleep(LOOK_EVERY).await;
            }
            let listed = enumerate(ctx, node, &disk, |line| {
                if wanted(node, line.key, line.line) {
                    self.lock().push(SlotId::ONLY, 0, line.line)?;
                    self.changed.notify_one();
                }
                Ok(())
            });
            listed.await.map_err(|error| ListError::Server(node, JobError::of_dump(node, None, error)))?;
        }
        Ok(())
    }

    async fn hand_on(&self, pieces: mpsc::Sender<Bytes>) -> Result<(), ListError> {
        let disk = self.lock().disk();
        let mut part = BytesMut::new();
        loop {
            let (changed, read) = (self.changed.notified(), disk.changed.notified());
            let listed = self.listed.load(Relaxed);
            let left = self.gather(&mut part)?;
            let last = listed && left == 0;
            if part.len() >= PART_BYTES || last && !part.is_empty() {
                if pieces.send(part.split().freeze()).await.is_err() {
                    return Err(ListError::Unwanted);
                }
            } else if last {
                return Ok(());
            } else {
                either(changed, read).await;
            }
        }
    }

    /// Adds waiting lines to a part until it is full. Returns how many are left.
    fn gather(&self, part: &mut BytesMut) -> Result<usize, ListError> {
        let mut spool = self.lock();
        while part.len() < PART_BYTES
            && let Some(line) = spool.pop().map_err(ListError::Spool)?
        {
            part.extend_from_slice(&line.key);
            part.put_u8(b'\n');
        }
        Ok(spool.len())
    }

    fn lock(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn either(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    tokio::select! {
        () = first => {}
        () = second => {}
    }
}
