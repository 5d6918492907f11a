//! One `lru_crawler metadump`, from the command to its end, even if nothing waits for it any more.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use super::NO_CAS;
use super::crawls::Turn;
use super::spool::Disk;
use crate::backend::{NodeError, Pipe};
use crate::protocol::dump::{self, Said};
use crate::protocol::node;

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
    /// Its crawler was busy with others' crawls for too long, or its hash table with growing.
    Busy,
    /// It answers, but a dump that was begun does not go on.
    StandsStill,
    /// The keys could not be kept.
    Spool(std::io::Error),
}

impl From<NodeError> for DumpError {
    fn from(error: NodeError) -> DumpError {
        DumpError::Node(error)
    }
}

/// Longest dump line, in bytes: a key of 250 bytes, each written as `%XX`, and some numbers.
const MAX_LINE_BYTES: usize = 4096;
/// How much of an unreadable line is logged. Every last line that memcached writes is shorter.
const MAX_TOLD_BYTES: usize = 120;
/// For what is waited for as long as it takes.
const ENDLESS: Duration = Duration::from_secs(365 * 86_400);

#[derive(PartialEq, Eq, Debug)]
pub(super) struct DumpLine<'a> {
    pub(super) key: &'a [u8],
    /// Bytes of the whole item.
    pub(super) size: u32,
    /// The whole of it, without its end.
    pub(super) line: &'a [u8],
}

pub(super) enum DumpEnd {
    Complete,
    Again,
    UnknownMode,
    Off(String),
}

/// A connection to a node whose crawler has no other dump under way.
pub(super) struct Free {
    pub(super) pipe: Pipe,
    pub(super) turn: Turn,
}

/// A dump that is under way. Dropped before its end, it is read to it all the same.
pub(super) struct Dump {
    /// Nothing behind its end, or that of the connection.
    by: Option<Free>,
    /// Of a line, what has come.
    rest: Vec<u8>,
}

impl Free {
    pub(super) fn ask(mut self, coverage: Coverage) -> Result<Dump, NodeError> {
        self.pipe.send(match coverage {
            Coverage::Whole => node::DUMP_HASH,
            Coverage::Leaky => node::DUMP_LISTS,
        })?;
        Ok(Dump { by: Some(self), rest: Vec::new() })
    }
}

impl Dump {
    pub(super) async fn read(
        mut self,
        timeout: Duration,
        disk: &Disk,
        on_key: &mut (impl FnMut(DumpLine<'_>) -> std::io::Result<()> + Send),
    ) -> Result<(DumpEnd, Free), DumpError> {
        let mut key = Vec::new();
        // A drip of bytes is no progress; a whole line is: an almost empty table of many buckets
        // shows few.
        let mut since = Instant::now();
        loop {
            let Some(by) = &mut self.by else { return Err(DumpError::StandsStill) };
            // After a deadline of its own the pipe would be of no more use.
            let chunk = by.pipe.read_chunk(Instant::now() + ENDLESS);
            let Ok(chunk) = timeout_at(since + timeout, chunk).await else { return Err(DumpError::StandsStill) };
            let chunk = chunk.inspect_err(|_| drop(self.by.take()))?;
            let (mut at, read_at) = (0, Instant::now());
            while let Some(length) = memchr::memchr(b'\n', &chunk[at..]) {
                let end = at + length;
                let done = if self.rest.is_empty() {
                    line(&chunk[at..end], &mut key, on_key)
                } else {
                    self.rest.extend_from_slice(&chunk[at..end]);
                    let done = line(&self.rest, &mut key, on_key);
                    self.rest.clear();
                    done
                };
                at = end + 1;
                match done {
                    Ok(None) => {}
                    Ok(Some(end)) => return self.by.take().map(|by| (end, by)).ok_or(DumpError::StandsStill),
                    Err(error) => {
                        // The end may be among what has come.
                        self.rest.extend_from_slice(&chunk[at..]);
                        return Err(error);
                    }
                }
            }
            self.rest.extend_from_slice(&chunk[at..]);
            // The copying shares this task: one chunk, then its turn. A crawler that is never
            // waited for would starve it until the target's answers, though long there, count as
            // too late.
            yield_now().await;
            disk.room().await;
            since = if at > 0 { Instant::now() } else { since + read_at.elapsed() };
            if self.rest.len() > MAX_LINE_BYTES {
                return Err(NodeError::Protocol("a dump line without end".to_owned()).into());
            }
        }
    }
}

impl Free {
    /// Whatever else comes, the node's crawler is done when it has said so, or has gone. `rest`:
    /// what has come already.
    async fn read_to_its_end(mut self, mut rest: Vec<u8>) {
        loop {
            let whole = memchr::memrchr(b'\n', &rest).map_or(0, |at| at + 1);
            if rest[..whole].split(|&byte| byte == b'\n').any(is_end) {
                return;
            }
            rest.drain(..whole);
            // A line that is longer than an end is none, cut off as it is.
            rest.truncate(MAX_TOLD_BYTES);
            let Ok(chunk) = self.pipe.read_chunk(Instant::now() + ENDLESS).await else { return };
            self.turn.goes_on();
            rest.extend_from_slice(&chunk);
        }
    }
}

fn is_end(line: &[u8]) -> bool {
    let said = dump::parse(line, &mut Vec::new());
    matches!(said, Some(Said::End | Said::Busy | Said::UnknownMode | Said::Refused))
}

impl Drop for Dump {
    fn drop(&mut self) {
        let Some(by) = self.by.take() else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        by.turn.goes_on();
        by.pipe.keep_alive();
        runtime.spawn(by.read_to_its_end(std::mem::take(&mut self.rest)));
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
