//! Requests of clients, whatever protocol they are written in: what is asked for, of which keys.
//! A dialect's parser makes them ([`super::dialect`]).

use std::ops::Range;

use super::binary::Opcode;
use super::classic::LongLine;
use super::foreign::Foreign;
use super::line::Words;
use super::meta::{Hidden, Meta, Mode, Verb};

/// What is done with a key.
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
    /// A command of the meta protocol.
    Meta(Meta),
    /// No command of a client's: make the two copies equal. It is a repair from its beginning.
    Mend,
}

/// Kinds that take the same and are answered alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// Takes any number of keys and answers with values.
    Retrieve,
    /// Carries a value.
    Store,
    Arithmetic,
    Delete,
    Touch,
    /// The meta protocol's.
    Meta,
    /// The proxy's own.
    Mend,
}

impl Kind {
    pub fn family(self) -> Family {
        match self {
            Kind::Get | Kind::Gets | Kind::Gat | Kind::Gats => Family::Retrieve,
            Kind::Set | Kind::Add | Kind::Replace | Kind::Append | Kind::Prepend | Kind::Cas => Family::Store,
            Kind::Incr | Kind::Decr => Family::Arithmetic,
            Kind::Delete => Family::Delete,
            Kind::Touch => Family::Touch,
            Kind::Meta(_) => Family::Meta,
            Kind::Mend => Family::Mend,
        }
    }

    /// Whether the command changes the item: such commands go through the key's owner and on to the
    /// follower.
    pub fn is_write(self) -> bool {
        match self {
            Kind::Get | Kind::Gets => false,
            Kind::Meta(meta) => meta.is_write(),
            _ => true,
        }
    }

    /// Whether the answer is a value (or a miss).
    pub fn reads(self) -> bool {
        match self {
            Kind::Get | Kind::Gets | Kind::Gat | Kind::Gats => true,
            Kind::Meta(meta) => meta.reads(),
            _ => false,
        }
    }

    /// Whether a second run after the first leaves the same item and gives the same answer.
    pub fn is_repeatable(self) -> bool {
        match self {
            Kind::Add | Kind::Append | Kind::Prepend | Kind::Cas | Kind::Incr | Kind::Decr => false,
            Kind::Meta(meta) => meta.is_repeatable(),
            _ => true,
        }
    }

    /// Whether it may store something because nothing was there.
    #[inline(always)]
    pub fn adds(self) -> bool {
        match self {
            Kind::Add => true,
            Kind::Meta(meta) => meta.adds(),
            _ => false,
        }
    }

    /// Whether that is all it may do.
    #[inline(always)]
    pub fn only_adds(self) -> bool {
        match self {
            Kind::Add => true,
            Kind::Meta(meta) => meta.verb == Verb::Set && meta.mode == Mode::Add,
            _ => false,
        }
    }

    /// For the log.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Gets => "gets",
            Kind::Gat => "gat",
            Kind::Gats => "gats",
            Kind::Set => "set",
            Kind::Add => "add",
            Kind::Replace => "replace",
            Kind::Append => "append",
            Kind::Prepend => "prepend",
            Kind::Cas => "cas",
            Kind::Incr => "incr",
            Kind::Decr => "decr",
            Kind::Delete => "delete",
            Kind::Touch => "touch",
            Kind::Meta(meta) => meta.name(),
            Kind::Mend => "mend",
        }
    }
}

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Something of one key, or of several.
    Keyed(Keyed),
    /// Something of the proxy.
    Admin(Admin),
}

impl Request {
    /// For the log.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Keyed(keyed) => keyed.kind.name(),
            Request::Admin(admin) => admin.name(),
        }
    }
}

/// What is asked of keys. Ranges are offsets into the input that was parsed; what a kind does not
/// have is empty or 0.
///
/// A node must be sent a command written anew from these fields, never the client's own: memcached
/// versions disagree on lines with NULs, tabs or numbers of more than 32 bits, and the fields say
/// how this one was understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keyed {
    pub kind: Kind,
    pub keys: Keys,
    /// Client flags of what is stored.
    pub flags: u32,
    /// Expiry time of what is stored or touched: seconds, a unix time above 30 days, at once if
    /// negative, never if 0. It always fits 32 bits, memcached having cut it to that.
    pub exptime: i64,
    /// The unique id of `cas`. Of any other write: the id that the item must have, or 0 for any.
    pub cas: u64,
    /// The client is told the cas id of what it reads or changes.
    pub tells_cas: bool,
    /// By how much to `incr`, `decr` or `ma`.
    pub delta: u64,
    /// What they store where there is nothing, to expire at `exptime`.
    pub initial: Option<u64>,
    /// The value, without what stands behind it.
    pub data: Range<usize>,
}

impl Keyed {
    pub fn new(kind: Kind, keys: Keys) -> Keyed {
        Keyed { kind, keys, flags: 0, exptime: 0, cas: 0, tells_cas: false, delta: 0, initial: None, data: 0..0 }
    }
}

/// The keys of a request: one, which may be any bytes in the binary protocol; or several with
/// blanks between them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keys {
    /// From the first to the last.
    pub span: Range<usize>,
    /// How many there are, doubles included. They are not counted again: that takes as long as to
    /// parse them.
    pub count: u32,
}

impl Keys {
    pub fn one(key: Range<usize>) -> Keys {
        Keys { span: key, count: 1 }
    }

    /// Where each of them stands, in order. `input`: what was parsed.
    pub fn iter<'a>(&self, input: &'a [u8]) -> impl Iterator<Item = Range<usize>> + use<'a> {
        self.from(input, self.span.start)
    }

    /// The same from where one begins on.
    pub fn from<'a>(&self, input: &'a [u8], start: usize) -> impl Iterator<Item = Range<usize>> + use<'a> {
        Words::new(input, start..self.span.end)
    }
}

/// What is asked of the proxy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admin {
    FlushAll {
        /// Seconds, or a unix time above 30 days: at once if 0 (which also stands for none given)
        /// or negative.
        delay: i64,
    },
    /// With the words behind it, as one span without blanks around it.
    Stats(Range<usize>),
    /// Ours, not memcached's: the operator watches and steers the healing.
    Resync(Range<usize>),
    /// Ours too: the operator sends one server a command.
    Node(Range<usize>),
    /// All keys, or those of some classes of items.
    List(Range<usize>),
    Version,
    Verbosity {
        level: u32,
    },
    /// Is answered when all before it is.
    Noop,
    Quit,
}

impl Admin {
    /// For the log.
    pub fn name(&self) -> &'static str {
        match self {
            Admin::FlushAll { .. } => "flush_all",
            Admin::Stats(_) => "stats",
            Admin::Resync(_) => "resync",
            Admin::Node(_) => "node",
            Admin::List(_) => "lru_crawler metadump",
            Admin::Version => "version",
            Admin::Verbosity { .. } => "verbosity",
            Admin::Noop => "noop",
            Admin::Quit => "quit",
        }
    }
}

/// A piece of a get that is too long for one turn, of which all has arrived. Its answer is that of
/// all its pieces, in order, with one end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// With the keys of this piece, perhaps none.
    pub request: Keyed,
    /// What is said instead, and ends the answer.
    pub refused: Option<&'static [u8]>,
    /// Bytes taken up.
    pub len: usize,
    /// What is left of the line.
    pub rest: Option<LongLine>,
}

/// What a client's input begins with.
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
        /// How its outcome is told.
        style: Style,
        /// Bytes it takes up, value and all.
        len: usize,
    },
    /// A piece of a get that is too long for one turn.
    Piece(Box<Piece>),
    /// A storage command that is right but above the limit.
    ///
    /// It is refused in memcached's words. A `set` must also remove the old item: memcached would
    /// rather have none than one the client believes replaced.
    TooLarge {
        /// `data` is empty: the value is not looked at.
        request: Keyed,
        style: Style,
        /// Bytes up to its value.
        len: usize,
        /// Bytes behind them to throw away. Some may not have arrived; up to 4 GiB.
        swallow: usize,
    },
    /// What is answered at once, without a node.
    Reject {
        /// memcached's own answer; empty where it says nothing.
        reply: &'static [u8],
        /// How it is told.
        style: Style,
        /// Bytes taken up.
        len: usize,
        /// Bytes behind them to throw away, as with [`Parsed::TooLarge`].
        swallow: usize,
        /// The connection is to be closed, after the reply, and why.
        close: Option<Close>,
    },
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    Foreign(Foreign),
    /// A line that is no get, longer than memcached takes.
    LongLine,
    /// Lengths in a binary header that cannot be, or text behind a binary request.
    BadHeader,
}

impl Close {
    /// What is sent where memcached would close without a word: silence does not help to find out
    /// what is wrong.
    pub fn words(self) -> &'static [u8] {
        match self {
            Close::Foreign(who) => who.answer(),
            Close::LongLine => b"CLIENT_ERROR line too long\r\n",
            Close::BadHeader => b"\x00\x04Invalid arguments",
        }
    }
}

/// How the outcome of a request is told: chosen by the request's own dialect, and kept until it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    Classic {
        /// The client expects no answer, not even to an error.
        noreply: bool,
    },
    Binary {
        opcode: Opcode,
        /// Comes back as it is.
        opaque: [u8; 4],
    },
    Meta(Hidden),
}

impl Style {
    /// For the log: nothing is said where all is well.
    pub fn is_silent(self) -> bool {
        match self {
            Style::Classic { noreply } => noreply,
            Style::Binary { opcode, .. } => opcode.is_quiet(),
            Style::Meta(hidden) => hidden != Hidden::Nothing,
        }
    }
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
