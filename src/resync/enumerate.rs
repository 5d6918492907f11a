//! Which keys a node holds, by `lru_crawler metadump`.

use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::spool::Disk;
use super::{Context, NO_CAS};
use crate::backend::{Effect, NodeError, Pipe};
use crate::ids::NodeId;

/// Longest dump line, in bytes: a key of 250 bytes, each written as `%XX`, and some numbers.
const MAX_LINE_BYTES: usize = 4096;
/// Longest key that memcached keeps, in bytes.
const MAX_KEY_BYTES: usize = 250;
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
                let answer = pipe.ask(b"lru_crawler enable\r\n", Effect::Read, deadline).await?;
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
        Coverage::Whole => b"lru_crawler metadump hash\r\n",
        Coverage::Leaky => b"lru_crawler metadump all\r\n",
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
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if let Some(found) = parse(line, key) {
        if found.blind {
            return Err(DumpError::Cannot(NO_CAS.to_owned()));
        }
        on_key(DumpLine { key, size: found.size }).map_err(DumpError::Spool)?;
        return Ok(None);
    }
    let text = || line[..line.len().min(MAX_TOLD_BYTES)].escape_ascii().to_string();
    Ok(Some(match line {
        b"OK" => return Ok(None),
        b"END" => DumpEnd::Complete,
        // No items at all.
        _ if line.starts_with(b"NOTSTARTED") => DumpEnd::Complete,
        _ if line.starts_with(b"BUSY") => DumpEnd::Again,
        // The hash table is growing; it may stand in for END after part of the keys.
        _ if line.starts_with(b"ERROR locked") => DumpEnd::Again,
        _ if line.starts_with(b"BADCLASS") => DumpEnd::UnknownMode,
        _ if line.starts_with(b"ERROR") || line.starts_with(b"CLIENT_ERROR") => DumpEnd::Off(text()),
        _ => return Err(NodeError::Protocol(format!("dump line {:?}", text())).into()),
    }))
}

struct Parsed {
    size: u32,
    blind: bool,
}

/// Which bytes a dump writes as they are in a key; it writes the others as `%XX`.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        plain[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'-' | b'.' | b'_' | b'~');
        byte += 1;
    }
    plain
};

/// The fields that every version writes, in their order; later ones add some behind them.
const FIELDS: [&[u8]; 6] = [b"exp=", b"la=", b"cas=", b"fetch=", b"cls=", b"size="];

/// Takes a dump line apart and decodes its key into `key`; `None` = it is no such line.
///
/// Strictly: where a piece of the dump is missing, a line is made of the beginning of one and the
/// end of a later one, and the keys between them were never listed. Whoever takes that for a key
/// that cannot be copied hands a pair back without them.
fn parse(line: &[u8], key: &mut Vec<u8>) -> Option<Parsed> {
    let rest = line.strip_prefix(b"key=")?;
    let end = memchr::memchr(b' ', rest)?;
    let (encoded, mut rest) = rest.split_at(end);
    key.clear();
    if encoded.iter().all(|&byte| PLAIN[usize::from(byte)]) {
        key.extend_from_slice(encoded);
    } else {
        let mut bytes = encoded.iter();
        while let Some(&byte) = bytes.next() {
            if byte == b'%' {
                let (high, low) = (hex(*bytes.next()?)?, hex(*bytes.next()?)?);
                key.push(high << 4 | low);
            } else if PLAIN[usize::from(byte)] {
                key.push(byte);
            } else {
                return None;
            }
        }
    }
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return None;
    }
    let (mut size, mut blind) = (0, false);
    // One look at each word: a search for each name would cost as much as all the rest of the line.
    for (at, name) in FIELDS.iter().enumerate() {
        let field = rest.strip_prefix(b" ")?.strip_prefix(*name)?;
        let length = field.iter().position(|&b| b == b' ').unwrap_or(field.len());
        let value = &field[..length];
        match at {
            3 if value == b"yes" || value == b"no" => {}
            0 if value == b"-1" => {}
            0 | 1 | 4 => drop(number(value)?),
            2 => blind = number(value)? == 0,
            5 => size = number(value)?,
            _ => return None,
        }
        rest = &field[length..];
    }
    // What later versions add: words of their own, of which none is another line's.
    let another = |word: &[u8]| word.starts_with(b"key=") || FIELDS.iter().any(|name| word.starts_with(name));
    if !rest.is_empty() && (rest[0] != b' ' || rest[1..].split(|&b| b == b' ').any(another)) {
        return None;
    }
    Some(Parsed { size: u32::try_from(size).unwrap_or(u32::MAX), blind })
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits
        .iter()
        .try_fold(0_u64, |n, &b| b.is_ascii_digit().then(|| n.saturating_mul(10).saturating_add(u64::from(b - b'0'))))
}

fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|d| d as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Option<(Vec<u8>, u32, bool)> {
        let mut key = Vec::new();
        parse(text.as_bytes(), &mut key).map(|p| (key, p.size, p.blind))
    }

    #[test]
    fn reads_lines_of_all_versions() {
        let line = "key=a%09b%25 exp=-1 la=1795362483 cas=2 fetch=yes cls=1 size=69";
        assert_eq!(one(line), Some((b"a\tb%".to_vec(), 69, false)));
        let line = "key=foo exp=5 la=1 cas=0 fetch=no cls=1 size=53 flags=7";
        assert_eq!(one(line), Some((b"foo".to_vec(), 53, true)));
        let long = "%20".repeat(250);
        let line = format!("key={long} exp=5 la=1 cas=1 fetch=no cls=1 size=53");
        assert_eq!(one(&line), Some((vec![b' '; 250], 53, false)));
    }

    #[test]
    fn nonsense_is_no_line() {
        for text in ["", "END", "key=", "key=%zz ", "key=%4", "key=%4 x", "BUSY currently processing crawler request"] {
            assert_eq!(one(text), None, "{text}");
        }
        let rest = "exp=-1 la=1 cas=2 fetch=yes cls=1 size=69";
        for key in ["", &"x".repeat(251), &"x".repeat(300), "a=b", "a b", "a\tb", "a:b"] {
            assert_eq!(one(&format!("key={key} {rest}")), None, "{key}");
        }
    }

    /// Any piece that is missing from two lines on, to any later place, is noticed, unless what is
    /// left is a dump's line to the letter.
    #[test]
    fn a_dump_with_a_piece_missing_is_noticed() {
        let lines = "key=alpha%3A1 exp=-1 la=100 cas=2 fetch=yes cls=1 size=69\nkey=beta exp=5 la=101 cas=3 fetch=no cls=2 size=70\nkey=gamma exp=-1 la=102 cas=4 fetch=no cls=1 size=71";
        let (mut noticed, mut passed) = (0, Vec::new());
        for from in 1..lines.len() {
            for to in from + 1..lines.len() {
                let left = format!("{}{}", &lines[..from], &lines[to..]);
                let cut = &lines[from..to];
                if !cut.contains('\n') {
                    continue;
                }
                // What is left of the broken line, and all others.
                if left.split('\n').all(|line| one(line).is_some()) { passed.push(left) } else { noticed += 1 }
            }
        }
        assert!(noticed > 10 * passed.len(), "{noticed} noticed, {} not", passed.len());
        for left in passed {
            // The cut came where the same field stands in both, so that the line is a true one's
            // form.
            assert!(left.lines().all(|line| line.matches('=').count() == 7), "{left}");
        }
    }
}
