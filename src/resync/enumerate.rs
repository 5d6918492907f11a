//! Which keys a node holds, by `lru_crawler metadump`.

use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::spool::Disk;
use super::{Context, NO_CAS};
use crate::backend::{Effect, NodeError, Pipe};
use crate::ids::NodeId;
use crate::protocol::dump::{self, Said};
use crate::protocol::node;

/// Longest dump line, in bytes: a key of 250 bytes, each written as `%XX`, and some numbers.
const MAX_LINE_BYTES: usize = 4096;
/// So much of a line that is none is told.
const MAX_TOLD_BYTES: usize = 120;
/// Shortest and longest pause before a crawl that was answered `BUSY` is asked for again.
const BUSY_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How much a dump can be trusted to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Coverage {
    /// `metadump hash` walks the hash table and misses nothing that stays.
    Whole,
    /// `metadump all` walks the LRU lists and misses items that move in them meanwhile: the hot
    /// ones. One pass is not enough.
    Leaky,
}

/// Why a dump failed.
#[derive(Debug)]
pub(super) enum DumpError {
    /// The node failed.
    Node(NodeError),
    /// It does not enumerate, by its settings or its version, or what it enumerates cannot be
    /// verified.
    Cannot(String),
    /// Its crawler was busy with others' crawls for too long.
    Busy,
    /// The keys could not be kept.
    Spool(std::io::Error),
}

impl From<NodeError> for DumpError {
    fn from(error: NodeError) -> DumpError {
        DumpError::Node(error)
    }
}

#[derive(PartialEq, Eq, Debug)]
pub(super) struct DumpLine<'a> {
    pub(super) key: &'a [u8],
    /// Bytes of the whole item.
    pub(super) size: u32,
    /// The whole of it, without its end.
    pub(super) line: &'a [u8],
}

enum DumpEnd {
    Complete,
    Again,
    UnknownMode,
    Off(String),
}

/// Walks all keys of a node. `on_key` may see a key twice, and keys that are gone by the time it is
/// called.
///
/// A node has one crawler; jobs wait for each other here rather than on the node, where a command
/// that meets a running dump blocks a worker thread. Other clients' crawls are waited for by asking
/// again. `disk` is where `on_key` puts what it sees.
pub(super) async fn enumerate(
    ctx: &Context,
    node: NodeId,
    disk: &Disk,
    mut on_key: impl FnMut(DumpLine<'_>) -> std::io::Result<()> + Send,
) -> Result<Coverage, DumpError> {
    let _turn = ctx.crawls.turn(node).await;
    let _crawl = ctx.pace.crawl();
    let tuning = &ctx.tuning;
    let mut pipe = ctx.connect(node).await?;
    let give_up = Instant::now() + tuning.busy_timeout;
    let mut pause = BUSY_PAUSE.0;
    let (mut coverage, mut enabled) = (Coverage::Whole, false);
    loop {
        match dump(&mut pipe, coverage, tuning.source_timeout, disk, &mut on_key).await? {
            DumpEnd::Complete => return Ok(coverage),
            DumpEnd::Again if Instant::now() < give_up => {
                tracing::debug!(node = node.0, ?pause, "the node's crawler is busy");
                sleep(pause).await;
                pause = (pause * 2).min(BUSY_PAUSE.1);
            }
            DumpEnd::Again => return Err(DumpError::Busy),
            DumpEnd::UnknownMode if coverage == Coverage::Whole => coverage = Coverage::Leaky,
            DumpEnd::UnknownMode => return Err(DumpError::Cannot("it knows no metadump".to_owned())),
            DumpEnd::Off(_) if !enabled => {
                enabled = true;
                let deadline = Instant::now() + tuning.source_timeout;
                let answer = pipe.ask(node::CRAWLER_ENABLE, Effect::Read, deadline).await?;
                tracing::info!(node = node.0, answer, "the node's lru crawler was off; asked to enable it");
            }
            DumpEnd::Off(_) if coverage == Coverage::Whole => coverage = Coverage::Leaky,
            DumpEnd::Off(why) => return Err(DumpError::Cannot(why)),
        }
    }
}

async fn dump(
    pipe: &mut Pipe,
    coverage: Coverage,
    timeout: Duration,
    disk: &Disk,
    on_key: &mut (impl FnMut(DumpLine<'_>) -> std::io::Result<()> + Send),
) -> Result<DumpEnd, DumpError> {
    pipe.send(match coverage {
        Coverage::Whole => node::DUMP_HASH,
        Coverage::Leaky => node::DUMP_LISTS,
    })?;
    let mut rest: Vec<u8> = Vec::new();
    let mut key = Vec::new();
    // A drip of bytes is no progress; a whole line is: an almost empty table of many buckets shows
    // few.
    let mut since = Instant::now();
    loop {
        let chunk = pipe.read_chunk(since + timeout).await?;
        let (mut at, read_at) = (0, Instant::now());
        while let Some(length) = memchr::memchr(b'\n', &chunk[at..]) {
            let end = at + length;
            let done = if rest.is_empty() {
                line(&chunk[at..end], &mut key, on_key)?
            } else {
                rest.extend_from_slice(&chunk[at..end]);
                let done = line(&rest, &mut key, on_key)?;
                rest.clear();
                done
            };
            at = end + 1;
            if let Some(done) = done {
                return Ok(done);
            }
        }
        rest.extend_from_slice(&chunk[at..]);
        // The copying shares this task: one chunk, then its turn. A crawler that is never waited
        // for would starve it until the target's answers, though long there, count as too late.
        yield_now().await;
        disk.room().await;
        since = if at > 0 { Instant::now() } else { since + read_at.elapsed() };
        if rest.len() > MAX_LINE_BYTES {
            return Err(NodeError::Protocol("a dump line without end".to_owned()).into());
        }
    }
}

/// One line; `Some` = the dump is over.
fn line(
    line: &[u8],
    key: &mut Vec<u8>,
    on_key: &mut (impl FnMut(DumpLine<'_>) -> std::io::Result<()> + Send),
) -> Result<Option<DumpEnd>, DumpError> {
    let text = || line[..line.len().min(MAX_TOLD_BYTES)].trim_ascii_end().escape_ascii().to_string();
    Ok(Some(match dump::parse(line, key) {
        Some(Said::Key { blind: true, .. }) => return Err(DumpError::Cannot(NO_CAS.to_owned())),
        Some(Said::Key { size, .. }) => {
            on_key(DumpLine { key, size, line }).map_err(DumpError::Spool)?;
            return Ok(None);
        }
        Some(Said::Begun) => return Ok(None),
        Some(Said::End) => DumpEnd::Complete,
        Some(Said::Busy) => DumpEnd::Again,
        Some(Said::UnknownMode) => DumpEnd::UnknownMode,
        Some(Said::Refused) => DumpEnd::Off(text()),
        None => return Err(NodeError::Protocol(format!("dump line {:?}", text())).into()),
    }))
}
