//! Replies of nodes, in memcached's classic and meta text protocols.
//!
//! Replies are parsed strictly: one that is not exactly as memcached writes it means that the
//! stream is out of step, and then the only safe action is to close the connection.

use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use thiserror::Error;

use super::line::{find_blank, find_low};
use super::number::{leading_u64, parse_u64, short_number};
use super::{KEY_LEN_MAX, answer};

/// What a node said. Ranges are offsets into the buffer that was parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplyKind {
    /// `VALUE`: one item of a get, without the `END` that follows the last one.
    Value {
        key: Range<usize>,
        flags: u32,
        /// The value, without the CR LF behind it.
        data: Range<usize>,
        /// The unique id, in the answer to `gets` and `gats`.
        cas: Option<u64>,
    },
    /// `END`: of values, statistics or a dump.
    End,
    Stored,
    NotStored,
    /// `EXISTS`: cas id out of date.
    Exists,
    NotFound,
    Deleted,
    Touched,
    Ok,
    /// The new value after `incr` or `decr`.
    Number(u64),
    /// `RESET`, after `stats reset`.
    Reset,
    /// `STAT <name> <value>`.
    Stat {
        name: Range<usize>,
        /// All that follows the name; may contain blanks or be empty.
        value: Range<usize>,
    },
    Version {
        /// What follows the word, such as `1.6.18`.
        version: Range<usize>,
    },
    /// `ERROR`, alone or with a reason: the command is unknown or malformed.
    Error,
    /// `CLIENT_ERROR <reason>`.
    ClientError,
    /// `SERVER_ERROR <reason>`.
    ServerError,
    /// `BUSY <reason>`: another crawl is under way.
    Busy,
    /// `HD`: done, or found, without a value. Flags: [`meta_flag`] on the line.
    MetaHd,
    /// `VA`: with a value.
    MetaVa {
        /// The value, without the CR LF behind it.
        data: Range<usize>,
    },
    /// `EN`: a miss of `mg`.
    MetaEn,
    /// `NS`: not stored.
    MetaNs,
    /// `EX`: cas id out of date.
    MetaEx,
    /// `NF`: not found.
    MetaNf,
    /// `MN`: everything before the `mn` was handled.
    MetaMn,
    /// `ME`: debug information about an item.
    MetaMe,
}

/// One reply: a line, or a line and a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    pub kind: ReplyKind,
    /// Its first line, without CR LF.
    pub line: Range<usize>,
    /// Bytes it takes up, value and all.
    pub len: usize,
}

/// What is said of a key that a `get` of several keys passes over, and its bytes.
pub const MISS: Reply = Reply { kind: ReplyKind::End, line: 0..3, len: answer::END.len() };
pub const MISS_BYTES: Bytes = Bytes::from_static(answer::END);

/// What stands behind a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behind {
    /// What belongs there: the end, or another value where one may follow.
    Fine,
    /// That, as far as it has come.
    Incomplete,
    /// Something else: the value did not end there.
    Nonsense,
}

/// Bytes of the end of values, and as many as are looked at behind one.
pub const END_LEN: usize = answer::END.len();

const VALUE: &[u8] = b"VALUE ";

/// The bytes of a reply that is always the same line.
pub fn fixed_line(kind: &ReplyKind) -> Option<&'static [u8]> {
    Some(match kind {
        ReplyKind::End => answer::END,
        ReplyKind::Stored => answer::STORED,
        ReplyKind::NotStored => answer::NOT_STORED,
        ReplyKind::Exists => answer::EXISTS,
        ReplyKind::NotFound => answer::NOT_FOUND,
        ReplyKind::Deleted => answer::DELETED,
        ReplyKind::Touched => answer::TOUCHED,
        _ => return None,
    })
}

/// Looks behind a value; `more`: another one may follow.
#[inline(always)]
pub fn behind_value(rest: &[u8], more: bool) -> Behind {
    let begin = &rest[..rest.len().min(END_LEN)];
    match answer::END.starts_with(begin) || more && b"VALUE".starts_with(begin) {
        true if begin.len() == END_LEN => Behind::Fine,
        true => Behind::Incomplete,
        false => Behind::Nonsense,
    }
}

/// The value that is the whole of these bytes, with another cas id.
pub fn with_cas(bytes: &Bytes, value: &Reply, cas: u64) -> Bytes {
    let line = &bytes[value.line.clone()];
    let head = line.iter().rposition(|&b| b == b' ').map_or(line, |at| &line[..=at]);
    let tail = &bytes[value.line.end..];
    let mut out = BytesMut::with_capacity(head.len() + 20 + tail.len());
    out.extend_from_slice(head);
    out.extend_from_slice(itoa::Buffer::new().format(cas).as_bytes());
    out.extend_from_slice(tail);
    out.freeze()
}

/// How much a node may make us buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyLimits {
    /// Longest line, in bytes, newline included.
    pub line_len_max: usize,
    /// Longest value, in bytes.
    pub value_len_max: usize,
}

/// How much longer than its `-I` a node's item may seem: memcached counts key and header in, and
/// rounds to pages.
const ITEM_SLACK: usize = 4096;

impl ReplyLimits {
    /// For a node that stores items of at most this many bytes, by its `-I`.
    pub fn of_node(item_size_max: usize) -> ReplyLimits {
        ReplyLimits { value_len_max: item_size_max.saturating_add(ITEM_SLACK), ..ReplyLimits::default() }
    }
}

impl Default for ReplyLimits {
    /// 8 KiB a line, memcached's own write buffer being 1 KiB; 1 GiB a value, the largest that `-I`
    /// can be set to. Callers who know the node's `-I` should pass that.
    fn default() -> ReplyLimits {
        ReplyLimits { line_len_max: 8 << 10, value_len_max: 1 << 30 }
    }
}

/// What the buffer begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ParsedReply {
    /// More bytes are needed: keep these and call again.
    Incomplete {
        /// How long the reply will be in all, where that is known (its value has not arrived), else
        /// 0.
        need: usize,
    },
    /// A whole reply.
    Reply(Reply),
}

/// Why a node's bytes are no reply. The connection is out of step: it must be closed, and nothing
/// read from it before is in doubt, but nothing after can be trusted.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ReplyError {
    /// No newline within the limit.
    #[error("reply line of more than {max} bytes")]
    LineTooLong {
        /// The limit, in bytes.
        max: usize,
    },
    /// The value would be longer than the limit.
    #[error("value of {len} bytes announced, {max} at most expected")]
    ValueTooLong {
        /// As announced, in bytes.
        len: u64,
        /// The limit, in bytes.
        max: usize,
    },
    /// The line ends in LF alone.
    #[error("reply line without carriage return: \"{line}\"")]
    BareNewline {
        /// The start of the line, escaped.
        line: String,
    },
    /// `VALUE`, `VA` or `STAT` with a word missing, too many, or no number where one belongs.
    #[error("malformed reply line: {what} in \"{line}\"")]
    Malformed {
        /// What is wrong with it.
        what: &'static str,
        /// The start of the line, escaped.
        line: String,
    },
    /// No reply that memcached gives begins so.
    #[error("unknown reply: \"{line}\"")]
    Unknown {
        /// The start of the line, escaped.
        line: String,
    },
    /// No CR LF behind the value.
    #[error("value of {len} bytes does not end where its length says: \"{line}\"")]
    BadDataEnd {
        /// Its length as announced, in bytes.
        len: usize,
        /// The start of the line before it, escaped.
        line: String,
    },
}

/// A reply within bytes that were read together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    at: usize,
    reply: Reply,
}

impl Found {
    pub fn kind(&self) -> &ReplyKind {
        &self.reply.kind
    }
}

/// What [`scan`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scanned {
    /// Bytes that the replies take.
    pub used: usize,
    /// How long the reply behind them will be in all, where that is known, else 0.
    pub need: usize,
}

/// Finds at most `most` whole replies that `buf` begins with, and adds them to `found`.
pub fn scan(buf: &[u8], most: usize, limits: &ReplyLimits, found: &mut Vec<Found>) -> Result<Scanned, ReplyError> {
    let mut used = 0;
    for _ in 0..most {
        match parse_reply_within(&buf[used..], limits)? {
            ParsedReply::Incomplete { need } => return Ok(Scanned { used, need }),
            ParsedReply::Reply(reply) => {
                let len = reply.len;
                found.push(Found { at: used, reply });
                used += len;
            }
        }
    }
    Ok(Scanned { used, need: 0 })
}

/// A reply and the bytes that it lies in: handed out as slices of them, which copies nothing.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    bytes: &'a Bytes,
    at: usize,
    reply: &'a Reply,
    read_at: Duration,
}

impl<'a> Frame<'a> {
    /// `bytes`: what was scanned; `read_at`: the proxy's date after that.
    pub fn new(bytes: &'a Bytes, found: &'a Found, read_at: Duration) -> Frame<'a> {
        Frame { bytes, at: found.at, reply: &found.reply, read_at }
    }

    /// Of a reply that the bytes begin with.
    pub fn first(bytes: &'a Bytes, reply: &'a Reply, read_at: Duration) -> Frame<'a> {
        Frame { bytes, at: 0, reply, read_at }
    }

    /// When it was read, and so a moment after the node has answered: taken once for all that were
    /// read together. A date of the proxy's own clock.
    pub fn read_at(&self) -> Duration {
        self.read_at
    }

    pub fn kind(&self) -> &'a ReplyKind {
        &self.reply.kind
    }

    /// Its first line, without its end.
    pub fn line(&self) -> &'a [u8] {
        &self.bytes[self.at + self.reply.line.start..self.at + self.reply.line.end]
    }

    /// What a range of its kind stands for.
    pub fn text(&self, range: &Range<usize>) -> &'a [u8] {
        &self.bytes[self.at + range.start..self.at + range.end]
    }

    /// The value of a meta answer. It shares the bytes, which stay allocated as long as it is held.
    pub fn data(&self) -> Option<Bytes> {
        match &self.reply.kind {
            ReplyKind::MetaVa { data } => Some(self.bytes.slice(self.at + data.start..self.at + data.end)),
            _ => None,
        }
    }
}

/// Whether this line is what a memcached with as many connections as it may have says to one more,
/// before it closes it unread.
pub fn is_full(line: &[u8]) -> bool {
    line.starts_with(b"ERROR Too many open connections")
}

/// Parses the reply that `buf` begins with, within the default [`ReplyLimits`]. `None`: more bytes
/// are needed.
pub fn parse_reply(buf: &[u8]) -> Result<Option<Reply>, ReplyError> {
    match parse_reply_within(buf, &ReplyLimits::default())? {
        ParsedReply::Incomplete { .. } => Ok(None),
        ParsedReply::Reply(reply) => Ok(Some(reply)),
    }
}

/// Parses the reply that `buf` begins with.
#[inline(always)]
pub fn parse_reply_within(buf: &[u8], limits: &ReplyLimits) -> Result<ParsedReply, ReplyError> {
    match most_often(buf, limits) {
        Some(reply) => Ok(ParsedReply::Reply(reply)),
        None => parse_any(buf, limits),
    }
}

/// A whole reply that is one of the most frequent, and as every memcached writes it. `None`: some
/// other, none, or not all of it; that takes a longer look.
#[inline(always)]
fn most_often(buf: &[u8], limits: &ReplyLimits) -> Option<Reply> {
    match buf.first_chunk::<6>()? {
        b"VALUE " => plain_value(buf, limits),
        b"STORED" => buf.starts_with(answer::STORED).then(|| fixed_reply(ReplyKind::Stored, answer::STORED)),
        [b'E', b'N', b'D', b'\r', b'\n', _] => Some(fixed_reply(ReplyKind::End, answer::END)),
        _ => None,
    }
}

fn fixed_reply(kind: ReplyKind, line: &[u8]) -> Reply {
    Reply { kind, line: 0..line.len() - 2, len: line.len() }
}

/// A value that has come, with numbers of at most nine digits.
#[inline(always)]
fn plain_value(buf: &[u8], limits: &ReplyLimits) -> Option<Reply> {
    let behind_blank = |at: usize| buf.get(at..)?.strip_prefix(b" ");
    let key = VALUE.len()..VALUE.len() + find_low(&buf[VALUE.len()..])?;
    if !(1..=KEY_LEN_MAX).contains(&key.len()) {
        return None;
    }
    let (flags, digits) = short_number(behind_blank(key.end)?)?;
    let mut at = key.end + 1 + digits;
    let (len, digits) = short_number(behind_blank(at)?)?;
    at += 1 + digits;
    let mut cas = None;
    if let Some(behind) = behind_blank(at) {
        let (id, digits) = leading_u64(behind)?;
        (cas, at) = (Some(id), at + 1 + digits);
    }
    let begin = at + 2;
    let data = begin..begin + len as usize;
    let is_whole = buf.get(at..begin)? == b"\r\n" && buf.get(data.end..data.end + 2)? == b"\r\n";
    let is_allowed = begin <= limits.line_len_max && data.len() <= limits.value_len_max;
    let len = data.end + 2;
    if !(is_whole && is_allowed) {
        return None;
    }
    Some(Reply { kind: ReplyKind::Value { key, flags, data, cas }, line: 0..at, len })
}

fn parse_any(buf: &[u8], limits: &ReplyLimits) -> Result<ParsedReply, ReplyError> {
    let window = &buf[..buf.len().min(limits.line_len_max)];
    let Some(newline) = memchr(b'\n', window) else {
        if buf.len() >= limits.line_len_max {
            return Err(ReplyError::LineTooLong { max: limits.line_len_max });
        }
        return Ok(ParsedReply::Incomplete { need: 0 });
    };
    let Some(line) = buf[..newline].strip_suffix(b"\r") else {
        return Err(ReplyError::BareNewline { line: excerpt(&buf[..newline]) });
    };
    let text = Text { buf, line: 0..line.len(), line_len: newline + 1, limits };
    if let Some(kind) = fixed(line) {
        return Ok(text.line_reply(kind));
    }
    let (word, rest) = match find_blank(line) {
        Some(blank) => (&line[..blank], blank + 1..line.len()),
        None => (line, line.len()..line.len()),
    };
    match word {
        b"VALUE" => text.value(rest),
        b"VA" => text.meta_value(rest),
        b"STAT" => text.stat(rest),
        b"HD" => Ok(text.line_reply(ReplyKind::MetaHd)),
        // Later versions repeat the key where it is asked for.
        b"EN" => Ok(text.line_reply(ReplyKind::MetaEn)),
        b"NS" => Ok(text.line_reply(ReplyKind::MetaNs)),
        b"EX" => Ok(text.line_reply(ReplyKind::MetaEx)),
        b"NF" => Ok(text.line_reply(ReplyKind::MetaNf)),
        b"ME" => Ok(text.line_reply(ReplyKind::MetaMe)),
        b"VERSION" => Ok(text.line_reply(ReplyKind::Version { version: rest })),
        b"SERVER_ERROR" => Ok(text.line_reply(ReplyKind::ServerError)),
        b"CLIENT_ERROR" => Ok(text.line_reply(ReplyKind::ClientError)),
        b"ERROR" => Ok(text.line_reply(ReplyKind::Error)),
        b"BUSY" => Ok(text.line_reply(ReplyKind::Busy)),
        _ => match parse_u64(line) {
            Some(number) => Ok(text.line_reply(ReplyKind::Number(number))),
            None => Err(ReplyError::Unknown { line: excerpt(line) }),
        },
    }
}

/// Replies that are always the same line.
fn fixed(line: &[u8]) -> Option<ReplyKind> {
    Some(match line {
        b"END" => ReplyKind::End,
        b"STORED" => ReplyKind::Stored,
        b"NOT_STORED" => ReplyKind::NotStored,
        b"EXISTS" => ReplyKind::Exists,
        b"NOT_FOUND" => ReplyKind::NotFound,
        b"DELETED" => ReplyKind::Deleted,
        b"TOUCHED" => ReplyKind::Touched,
        b"OK" => ReplyKind::Ok,
        b"RESET" => ReplyKind::Reset,
        b"EN" => ReplyKind::MetaEn,
        b"MN" => ReplyKind::MetaMn,
        _ => return None,
    })
}

/// A whole line, and what may stand behind it.
struct Text<'a> {
    buf: &'a [u8],
    line: Range<usize>,
    line_len: usize,
    limits: &'a ReplyLimits,
}

impl Text<'_> {
    fn line_reply(&self, kind: ReplyKind) -> ParsedReply {
        ParsedReply::Reply(Reply { kind, line: self.line.clone(), len: self.line_len })
    }

    /// `VALUE <key> <flags> <length> [<cas>]`.
    fn value(&self, rest: Range<usize>) -> Result<ParsedReply, ReplyError> {
        let mut at = rest.start;
        let key = self.word(&mut at).ok_or_else(|| self.malformed("no key"))?;
        if key.is_empty() || key.len() > KEY_LEN_MAX {
            return Err(self.malformed("key empty or too long"));
        }
        let flags = self.number(&mut at).and_then(|n| u32::try_from(n).ok());
        let flags = flags.ok_or_else(|| self.malformed("no client flags of 32 bits"))?;
        let len = self.value_len(&mut at)?;
        let mut cas = None;
        if at < self.line.end {
            cas = Some(self.number(&mut at).ok_or_else(|| self.malformed("cas id is no number"))?);
            if at < self.line.end {
                return Err(self.malformed("too many words"));
            }
        }
        let Some(data) = self.data(len)? else {
            return Ok(self.incomplete(len));
        };
        let len = data.end + 2;
        let kind = ReplyKind::Value { key, flags, data, cas };
        Ok(ParsedReply::Reply(Reply { kind, line: self.line.clone(), len }))
    }

    /// `VA <length> <flag>*`.
    fn meta_value(&self, rest: Range<usize>) -> Result<ParsedReply, ReplyError> {
        let mut at = rest.start;
        let len = self.value_len(&mut at)?;
        Ok(match self.data(len)? {
            None => self.incomplete(len),
            Some(data) => {
                let len = data.end + 2;
                ParsedReply::Reply(Reply { kind: ReplyKind::MetaVa { data }, line: self.line.clone(), len })
            }
        })
    }

    fn stat(&self, rest: Range<usize>) -> Result<ParsedReply, ReplyError> {
        let mut at = rest.start;
        match self.word(&mut at) {
            Some(name) if !name.is_empty() => {
                Ok(self.line_reply(ReplyKind::Stat { name, value: at.min(rest.end)..rest.end }))
            }
            _ => Err(self.malformed("no name")),
        }
    }

    /// The word that starts at `at`, which moves behind it and one blank. Nodes separate words by
    /// exactly one.
    fn word(&self, at: &mut usize) -> Option<Range<usize>> {
        let left = self.buf[..self.line.end].get(*at..).filter(|left| !left.is_empty())?;
        let start = *at;
        let end = start + find_blank(left).unwrap_or(left.len());
        *at = end + 1;
        Some(start..end)
    }

    /// As [`Text::word`], of a word that is a number.
    fn number(&self, at: &mut usize) -> Option<u64> {
        let left = self.buf[..self.line.end].get(*at..)?;
        let (number, len) = leading_u64(left)?;
        if left.get(len).is_some_and(|&byte| byte != b' ') {
            return None;
        }
        *at += len + 1;
        Some(number)
    }

    fn value_len(&self, at: &mut usize) -> Result<usize, ReplyError> {
        let len = self.number(at).ok_or_else(|| self.malformed("no length"))?;
        match usize::try_from(len) {
            Ok(fits) if fits <= self.limits.value_len_max => Ok(fits),
            _ => Err(ReplyError::ValueTooLong { len, max: self.limits.value_len_max }),
        }
    }

    fn incomplete(&self, value_len: usize) -> ParsedReply {
        ParsedReply::Incomplete { need: self.line_len.saturating_add(value_len).saturating_add(2) }
    }

    /// Where the value behind the line is; `None` if it has not arrived.
    fn data(&self, len: usize) -> Result<Option<Range<usize>>, ReplyError> {
        let data = self.line_len..self.line_len.saturating_add(len);
        match self.buf.get(data.end..data.end.saturating_add(2)) {
            None => Ok(None),
            Some(b"\r\n") => Ok(Some(data)),
            Some(_) => Err(ReplyError::BadDataEnd { len, line: excerpt(&self.buf[self.line.clone()]) }),
        }
    }

    fn malformed(&self, what: &'static str) -> ReplyError {
        ReplyError::Malformed { what, line: excerpt(&self.buf[self.line.clone()]) }
    }
}

/// Enough of a line to recognise it in a log.
fn excerpt(line: &[u8]) -> String {
    const LEN_MAX: usize = 80;
    line[..line.len().min(LEN_MAX)].escape_ascii().to_string()
}

/// The argument of a flag in the line of a meta reply: `meta_flag(b"HD c12 kfoo", b'c')` is
/// `Some(b"12")`.
///
/// Empty for a flag without argument (`W`, `X`, `Z`), `None` if the flag is not there.
pub fn meta_flag(line: &[u8], flag: u8) -> Option<&[u8]> {
    let mut words = line.split(|&byte| byte == b' ');
    if words.next() == Some(b"VA") {
        words.next();
    }
    words.find_map(|word| word.strip_prefix(&[flag]))
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
