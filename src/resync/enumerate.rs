//! Which keys a node holds, by `lru_crawler metadump`.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};

use super::crawls::Turn;
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

/// A dump, and what it needs. Dropped before its end, it is read to it all the same.
struct Dump {
    pipe: Option<Pipe>,
    turn: Option<Turn>,
    /// Of a line, what has come.
    rest: Vec<u8>,
    under_way: bool,
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
    let tuning = &ctx.tuning;
    let turn = ctx.crawls.turn(node, tuning.source_timeout).await.map_err(|_| DumpError::StandsStill)?;
    let pipe = ctx.connect(node).await?;
    let mut asked = Dump { pipe: Some(pipe), turn: Some(turn), rest: Vec::new(), under_way: false };
    let give_up = Instant::now() + tuning.busy_timeout;
    let mut pause = BUSY_PAUSE.0;
    let (mut coverage, mut enabled) = (Coverage::Whole, false);
    let mut table = Table::new();
    loop {
        let Some(pipe) = &mut asked.pipe else { return Err(DumpError::StandsStill) };
        let lines = pipe.stats("", Instant::now() + tuning.source_timeout).await?;
        let end = match table.may_be_walked(&lines, Instant::now()) {
            true => {
                let _crawl = ctx.pace.crawl();
                asked.read(coverage, tuning.source_timeout, disk, &mut on_key).await?
            }
            false => DumpEnd::Again,
        };
        match end {
            DumpEnd::Complete => return Ok(coverage),
            DumpEnd::Again if Instant::now() < give_up => {
                tracing::debug!(node = node.0, ?pause, "the node's crawler is busy, or its table grows");
                sleep(pause).await;
                pause = (pause * 2).min(BUSY_PAUSE.1);
            }
            DumpEnd::Again => return Err(DumpError::Busy),
            DumpEnd::UnknownMode if coverage == Coverage::Whole => coverage = Coverage::Leaky,
            DumpEnd::UnknownMode => return Err(DumpError::Cannot("it knows no metadump".to_owned())),
            DumpEnd::Off(_) if !enabled => {
                enabled = true;
                let Some(pipe) = &mut asked.pipe else { return Err(DumpError::StandsStill) };
                let deadline = Instant::now() + tuning.source_timeout;
                let answer = pipe.ask(node::CRAWLER_ENABLE, Effect::Read, deadline).await?;
                tracing::info!(node = node.0, answer, "the node's lru crawler was off; asked to enable it");
            }
            DumpEnd::Off(_) if coverage == Coverage::Whole => coverage = Coverage::Leaky,
            DumpEnd::Off(why) => return Err(DumpError::Cannot(why)),
        }
    }
}

/// Whether a node's hash table is about to grow, or grows.
///
/// memcached stops all its threads for a moment when that begins, one after another, and its
/// crawler with a lock that a worker takes to begin a dump: met just then, the two wait for each
/// other, and the server answers nobody any more (1.6.18: 1 of 100 servers that were asked again
/// and again while their table began to grow; by reading up to 1.6.45). Before 1.6.28 a dump also
/// waits until the table has grown, and a worker with it.
struct Table {
    /// Since when it is full. It begins to grow within a second of the last item, unless it may not
    /// (`-o no_hashexpand`), or no other comes.
    full_since: Option<Instant>,
}

/// With room for the second that a full table stays as it is on a slow machine.
const GROWS_WITHIN: Duration = Duration::from_secs(3);

impl Table {
    fn new() -> Table {
        Table { full_since: None }
    }

    fn may_be_walked(&mut self, stats: &[(String, String)], now: Instant) -> bool {
        let number = |name: &str| {
            let line = stats.iter().find(|(known, _)| known == name);
            line.and_then(|(_, value)| value.parse::<u64>().ok()).unwrap_or(0)
        };
        if number("hash_is_expanding") != 0 {
            self.full_since = None;
            return false;
        }
        let room = 1u64.checked_shl(number("hash_power_level") as u32).unwrap_or(0) / 2 * 3;
        // What is stored between this look and the dump fits into the fiftieth.
        if room == 0 || number("curr_items") <= room - room / 50 {
            self.full_since = None;
            return true;
        }
        now >= *self.full_since.get_or_insert(now) + GROWS_WITHIN
    }
}

/// For what is waited for as long as it takes.
const ENDLESS: Duration = Duration::from_secs(365 * 86_400);

impl Dump {
    async fn read(
        &mut self,
        coverage: Coverage,
        timeout: Duration,
        disk: &Disk,
        on_key: &mut (impl FnMut(DumpLine<'_>) -> std::io::Result<()> + Send),
    ) -> Result<DumpEnd, DumpError> {
        let Some(pipe) = &mut self.pipe else { return Err(DumpError::StandsStill) };
        pipe.send(match coverage {
            Coverage::Whole => node::DUMP_HASH,
            Coverage::Leaky => node::DUMP_LISTS,
        })?;
        self.under_way = true;
        let end = self.read_lines(timeout, disk, on_key).await;
        self.under_way = match &end {
            Ok(_) => false,
            // The connection has ended.
            Err(DumpError::Node(error)) => matches!(error, NodeError::Protocol(_)),
            Err(_) => true,
        };
        end
    }

    async fn read_lines(
        &mut self,
        timeout: Duration,
        disk: &Disk,
        on_key: &mut (impl FnMut(DumpLine<'_>) -> std::io::Result<()> + Send),
    ) -> Result<DumpEnd, DumpError> {
        let Dump { pipe: Some(pipe), rest, .. } = self else { return Err(DumpError::StandsStill) };
        let mut key = Vec::new();
        // A drip of bytes is no progress; a whole line is: an almost empty table of many buckets
        // shows few.
        let mut since = Instant::now();
        loop {
            // (After a deadline of its own the pipe would be of no more use.)
            let chunk = pipe.read_chunk(Instant::now() + ENDLESS);
            let Ok(chunk) = timeout_at(since + timeout, chunk).await else { return Err(DumpError::StandsStill) };
            let chunk = chunk?;
            let (mut at, read_at) = (0, Instant::now());
            while let Some(length) = memchr::memchr(b'\n', &chunk[at..]) {
                let end = at + length;
                let done = if rest.is_empty() {
                    line(&chunk[at..end], &mut key, on_key)
                } else {
                    rest.extend_from_slice(&chunk[at..end]);
                    let done = line(rest, &mut key, on_key);
                    rest.clear();
                    done
                };
                at = end + 1;
                if let Some(done) = done.inspect_err(|_| rest.extend_from_slice(&chunk[at..]))? {
                    return Ok(done);
                }
            }
            rest.extend_from_slice(&chunk[at..]);
            // The copying shares this task: one chunk, then its turn. A crawler that is never
            // waited for would starve it until the target's answers, though long there, count as
            // too late.
            yield_now().await;
            disk.room().await;
            since = if at > 0 { Instant::now() } else { since + read_at.elapsed() };
            if rest.len() > MAX_LINE_BYTES {
                return Err(NodeError::Protocol("a dump line without end".to_owned()).into());
            }
        }
    }
}

/// No end of a dump has more bytes than this.
const END_MAX_BYTES: usize = MAX_TOLD_BYTES;

impl Dump {
    /// Whatever else comes, the node's crawler is done when it has said so, or has gone.
    async fn read_to_its_end(mut self) {
        let (Some(pipe), Some(turn)) = (&mut self.pipe, &self.turn) else { return };
        let mut rest = std::mem::take(&mut self.rest);
        loop {
            while let Some(length) = memchr::memchr(b'\n', &rest) {
                if is_end(&rest[..length]) {
                    return;
                }
                rest.drain(..=length);
            }
            rest.truncate(END_MAX_BYTES);
            let Ok(chunk) = pipe.read_chunk(Instant::now() + ENDLESS).await else { return };
            turn.goes_on();
            // A line that is longer than an end is none, cut off as it is.
            let mut lines = chunk.split_inclusive(|&byte| byte == b'\n');
            if let Some(first) = lines.next() {
                rest.extend_from_slice(first);
            }
            for line in lines {
                if rest.last() == Some(&b'\n') && is_end(&rest[..rest.len() - 1]) {
                    return;
                }
                rest.clear();
                rest.extend_from_slice(line);
            }
        }
    }
}

fn is_end(line: &[u8]) -> bool {
    let said = dump::parse(line, &mut Vec::new());
    matches!(said, Some(Said::End | Said::Busy | Said::UnknownMode | Said::Refused))
}

impl Drop for Dump {
    fn drop(&mut self) {
        if !self.under_way {
            return;
        }
        let (Some(pipe), Some(turn)) = (self.pipe.take(), self.turn.take()) else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        turn.goes_on();
        pipe.keep_alive();
        let rest = std::mem::take(&mut self.rest);
        runtime.spawn(Dump { pipe: Some(pipe), turn: Some(turn), rest, under_way: false }.read_to_its_end());
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

#[cfg(test)]
#[path = "enumerate_tests.rs"]
mod tests;
