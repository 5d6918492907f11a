//! Requests from clients, in memcached's classic text protocol.
//!
//! What memcached 1.6.18 accepts is accepted, oddities included, and what it refuses is refused
//! with the same bytes: `tests/it/parser_differential.rs` compares the two. The meta protocol is
//! not served yet and answers `ERROR`, like any unknown command; it needs more verbs in [`Verb`]
//! and their arms in `command.rs`.

use std::ops::Range;

use super::answer;
use super::command::Command;
use super::line::{Line, Words, first_line, goes_on};

/// Longest line, in bytes: a get of many keys.
pub const LINE_MAX: usize = super::line::MULTIGET_LINE_LEN_MAX;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verb {
    Get,
    Gets,
    Gat,
    Gats,
    Set,
    Add,
    Replace,
    Append,
    Prepend,
    Cas,
    Incr,
    Decr,
    Delete,
    Touch,
    FlushAll,
    Version,
    Verbosity,
    Stats,
    /// Ours, not memcached's: the operator watches and steers the healing.
    Resync,
    Quit,
}

impl Verb {
    /// The command's name on the wire; also for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::Gets => "gets",
            Verb::Gat => "gat",
            Verb::Gats => "gats",
            Verb::Set => "set",
            Verb::Add => "add",
            Verb::Replace => "replace",
            Verb::Append => "append",
            Verb::Prepend => "prepend",
            Verb::Cas => "cas",
            Verb::Incr => "incr",
            Verb::Decr => "decr",
            Verb::Delete => "delete",
            Verb::Touch => "touch",
            Verb::FlushAll => "flush_all",
            Verb::Version => "version",
            Verb::Verbosity => "verbosity",
            Verb::Stats => "stats",
            Verb::Resync => "resync",
            Verb::Quit => "quit",
        }
    }

    /// Takes any number of keys and answers with values: get, gets, gat, gats.
    pub fn is_retrieval(self) -> bool {
        matches!(self, Verb::Get | Verb::Gets | Verb::Gat | Verb::Gats)
    }

    /// Carries a value: set, add, replace, append, prepend, cas.
    pub fn is_storage(self) -> bool {
        matches!(self, Verb::Set | Verb::Add | Verb::Replace | Verb::Append | Verb::Prepend | Verb::Cas)
    }
}

/// What is done with the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Read.
    Get,
    /// Read with a cas token.
    Gets,
    /// Read and touch.
    Gat,
    /// Read with a cas token and touch.
    Gats,
    /// Store.
    Set,
    /// Store if absent.
    Add,
    /// Store if present.
    Replace,
    /// Add bytes at the end.
    Append,
    /// Add bytes at the front.
    Prepend,
    /// Store if unchanged.
    Cas,
    /// Add to a number.
    Incr,
    /// Subtract from a number.
    Decr,
    /// Remove.
    Delete,
    /// Set the expiry.
    Touch,
    /// No command of a client's: make the two copies equal. It is a repair from its beginning.
    Mend,
}

impl Kind {
    /// The kind of a client's verb; `None` for commands that are not about a key.
    pub fn of(verb: Verb) -> Option<Kind> {
        Some(match verb {
            Verb::Get => Kind::Get,
            Verb::Gets => Kind::Gets,
            Verb::Gat => Kind::Gat,
            Verb::Gats => Kind::Gats,
            Verb::Set => Kind::Set,
            Verb::Add => Kind::Add,
            Verb::Replace => Kind::Replace,
            Verb::Append => Kind::Append,
            Verb::Prepend => Kind::Prepend,
            Verb::Cas => Kind::Cas,
            Verb::Incr => Kind::Incr,
            Verb::Decr => Kind::Decr,
            Verb::Delete => Kind::Delete,
            Verb::Touch => Kind::Touch,
            _ => return None,
        })
    }

    /// Whether the command changes the item: such commands go through the key's owner and on to the
    /// follower.
    pub fn is_write(self) -> bool {
        !matches!(self, Kind::Get | Kind::Gets)
    }

    /// Whether the answer is a value (or a miss).
    pub fn reads(self) -> bool {
        matches!(self, Kind::Get | Kind::Gets | Kind::Gat | Kind::Gats)
    }

    /// Whether a second run after the first leaves the same item and gives the same answer.
    pub fn is_repeatable(self) -> bool {
        !matches!(self, Kind::Add | Kind::Append | Kind::Prepend | Kind::Cas | Kind::Incr | Kind::Decr)
    }
}

/// One request. Ranges are offsets into the buffer that was parsed; what a verb does not have is
/// empty or 0.
///
/// A node must be sent a line written anew from these fields, never the client's own: memcached
/// versions disagree on lines with NULs, tabs or numbers of more than 32 bits, and the fields say
/// how this one was understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// What is asked for.
    pub verb: Verb,
    /// The client expects no answer, not even to an error.
    pub noreply: bool,
    /// The key; for the get family the span from its first key to its last. Any bytes but blank, LF
    /// and NUL.
    pub keys: Range<usize>,
    /// The span holds several keys.
    pub many: bool,
    /// Client flags of a storage command.
    pub flags: u32,
    /// Expiry time of a storage command, touch, gat or gats: seconds, a unix time above 30 days, at
    /// once if negative, never if 0. For `flush_all` its delay in seconds: at once if 0 (which also
    /// stands for none given) or negative. It always fits 32 bits, memcached having cut it to that.
    pub exptime: i64,
    /// The unique id of `cas`.
    pub cas: u64,
    /// By how much to `incr` or `decr`; the level for `verbosity`.
    pub delta: u64,
    /// The value, without the CR LF behind it.
    pub data: Range<usize>,
    /// The words after `stats`, `resync` or `verbosity`, as one span without blanks around it.
    pub args: Range<usize>,
}

impl Request {
    pub(crate) fn new(verb: Verb) -> Request {
        Request {
            verb,
            noreply: false,
            keys: 0..0,
            many: false,
            flags: 0,
            exptime: 0,
            cas: 0,
            delta: 0,
            data: 0..0,
            args: 0..0,
        }
    }

    /// Every key of the request, in order, doubles included. `buf` is the buffer that was parsed.
    pub fn key_iter<'a>(&self, buf: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.keys_from(buf, self.keys.start)
    }

    /// The same from where a key begins on.
    pub(crate) fn keys_from<'a>(&self, buf: &'a [u8], start: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        Words::new(buf, start..self.keys.end).map(move |key| &buf[key])
    }
}

/// What the buffer begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// More bytes are needed: keep these and call again.
    Incomplete {
        /// How long the request will be in all, where that is known (its value has not arrived),
        /// else 0.
        need: usize,
    },
    /// A whole request.
    Request {
        /// Never a retrieval without keys, nor one with a key that is too long.
        request: Request,
        /// Bytes it takes up, value and all.
        len: usize,
    },
    /// A storage command that is right but above the limit.
    ///
    /// The answer is [`answer::TOO_LARGE`], none with `noreply`. A `set` must also remove the old
    /// item: memcached would rather have none than one the client believes replaced.
    TooLarge {
        /// `data` is empty: the value is not looked at.
        request: Request,
        /// Length of the command line.
        len: usize,
        /// Bytes behind the line to throw away: value and CR LF. Some may not have arrived; up to 2
        /// GiB.
        swallow: usize,
    },
    /// A line that is answered at once, without a node.
    Reject {
        /// memcached's own answer; empty where it says nothing.
        reply: &'static [u8],
        /// Bytes taken up.
        len: usize,
        /// Bytes behind them to throw away, as with [`Parsed::TooLarge`].
        swallow: usize,
        /// The connection is to be closed, after the reply.
        close: bool,
    },
}

/// What a client may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest item in bytes, counted as memcached's `-I` counts: see [`item_size`].
    pub item_size_max: usize,
}

impl Default for Limits {
    /// memcached's: 1 MiB.
    fn default() -> Limits {
        Limits { item_size_max: 1 << 20 }
    }
}

/// The size of an item as memcached compares it with `-I`: header, cas id, key and NUL, flags
/// unless 0, value and CR LF.
///
/// With `-C` a node leaves out the 8 bytes of the cas id; here they always count.
pub fn item_size(key_len: usize, flags: u32, value_len: usize) -> usize {
    const HEADER: usize = 48;
    const CAS: usize = 8;
    let flags_len = if flags == 0 { 0 } else { 4 };
    HEADER + CAS + key_len + 1 + flags_len + value_len + 2
}

/// Whether [`parse`] would say of a line without an end that it is one still, where no end is in
/// the first `searched` bytes.
pub(crate) fn line_goes_on(buf: &[u8], searched: usize) -> bool {
    goes_on(buf, searched)
}

/// Parses the request that `buf` begins with.
pub fn parse(buf: &[u8], limits: &Limits) -> Parsed {
    match first_line(buf) {
        Line::Incomplete => Parsed::Incomplete { need: 0 },
        // Without a word, as memcached does: whoever sends this does not speak memcached.
        Line::TooLong { len } => Parsed::Reject { reply: answer::SILENCE, len, swallow: 0, close: true },
        Line::Whole { end, len } => Command { buf, line_len: len, limits }.parse(Words::new(buf, 0..end)),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
