//! Requests, command by command: which lengths each takes, and how memcached answers wrong ones.

use super::super::KEY_LEN_MAX;
use super::super::key::wire_form;
use super::super::request::{Admin, Close, Keyed, Keys, Kind, Limits, Parsed, Request, Style, item_size};
use super::header::{HEADER_LEN, Header, MAGIC_REQUEST, Opcode, Verb};

/// Status and words, as [`super::write::write`] takes them of a request that was refused here.
const UNKNOWN: &[u8] = b"\x00\x81Unknown command";
const INVALID: &[u8] = b"\x00\x04Invalid arguments";
const NOT_FOUND: &[u8] = b"\x00\x01Not found";
const BAD_MAGIC: &[u8] = b"\x00\x04a request of the binary protocol begins with 0x80";
const KEY_TOO_LONG: &[u8] = b"\x00\x04a key with blanks, line ends or NUL has at most 186 bytes here";

/// `Busy`: there is no place for another client.
pub const TOO_MANY: &[u8] = b"\x00\x85Too many open connections";

/// An `incr` or `decr` with this expiry creates nothing.
const NO_INITIAL: u32 = u32::MAX;

/// How parts of `stats` begin that this protocol does not know; of `detail` all but those below.
const TEXT_ONLY: [&[u8]; 5] = [b"cachedump", b"conns", b"extstore", b"detail", b" "];
/// Parts that are told by what a key begins with, as by memcached.
const BY_BEGINNING: [&[u8]; 5] = [b"reset", b"settings", b"detail dump", b"detail on", b"detail off"];
/// Parts that nothing may stand behind.
const ALONE: [&[u8]; 5] = [b"items ", b"slabs ", b"sizes ", b"sizes_enable ", b"sizes_disable "];

/// Whose answer it is, once the header is there.
pub fn style(buf: &[u8]) -> Option<Style> {
    let header = Header::read(buf.first_chunk()?);
    Some(Style::Binary { opcode: header.opcode, opaque: header.opaque })
}

/// Parses the request that `buf` begins with.
pub fn parse(buf: &[u8], limits: &Limits) -> Parsed {
    if buf.first().is_some_and(|&magic| magic != MAGIC_REQUEST) {
        let style = Style::Binary { opcode: Opcode(0), opaque: [0; 4] };
        return Parsed::Reject { reply: BAD_MAGIC, style, len: buf.len(), swallow: 0, close: Some(Close::BadHeader) };
    }
    let Some(header) = buf.first_chunk() else {
        return Parsed::Incomplete { need: HEADER_LEN };
    };
    let header = Header::read(header);
    // As memcached waits before it looks at anything.
    let len = HEADER_LEN + header.extras_len + header.key_len;
    if buf.len() < len {
        return Parsed::Incomplete { need: len };
    }
    Command { buf, len, limits, header }.parse()
}

/// A request of which all but the value is there.
struct Command<'a> {
    buf: &'a [u8],
    /// Bytes up to the value.
    len: usize,
    limits: &'a Limits,
    header: Header,
}

impl Command<'_> {
    fn parse(&self) -> Parsed {
        let &Header { opcode, extras_len, key_len, body_len, .. } = &self.header;
        if !self.header.fits() {
            return self.reject(UNKNOWN, 0, true);
        }
        if key_len > KEY_LEN_MAX {
            return self.reject(INVALID, 0, true);
        }
        let Some(verb) = opcode.verb() else {
            return self.reject(UNKNOWN, self.value_len(), false);
        };
        let fits = match verb {
            Verb::Version | Verb::Noop | Verb::Quit | Verb::SaslList => body_len == 0,
            Verb::Flush => key_len == 0 && body_len == extras_len && matches!(extras_len, 0 | 4),
            Verb::Set | Verb::Add | Verb::Replace => key_len > 0 && extras_len == 8,
            Verb::Get | Verb::Delete => key_len > 0 && extras_len == 0 && body_len == key_len,
            Verb::Increment | Verb::Decrement => key_len > 0 && extras_len == 20 && body_len == key_len + extras_len,
            Verb::Append | Verb::Prepend | Verb::SaslAuth => key_len > 0 && extras_len == 0,
            Verb::Stat => extras_len == 0,
            // What stands behind the key is taken for the next request, as by memcached.
            Verb::Touch | Verb::Gat => key_len > 0 && extras_len == 4,
        };
        if !fits {
            return self.reject(INVALID, 0, true);
        }
        match verb {
            Verb::Version => self.administer(Admin::Version),
            Verb::Noop => self.administer(Admin::Noop),
            Verb::Quit => self.administer(Admin::Quit),
            Verb::Flush if extras_len == 4 => self.administer(Admin::FlushAll { delay: self.exptime(0) }),
            Verb::Flush => self.administer(Admin::FlushAll { delay: 0 }),
            Verb::Stat => self.stat(),
            Verb::SaslList | Verb::SaslAuth => self.reject(UNKNOWN, self.value_len(), false),
            _ if wire_form(self.key()).is_none() => self.reject(KEY_TOO_LONG, self.value_len(), false),
            Verb::Get => self.accept(Keyed { cas: 0, ..self.keyed(Kind::Gets) }),
            // The answer to a touch has client flags and cas id. `mg` would give them without the
            // value, but take the right to recompute a stale item, and no client would learn that.
            Verb::Gat | Verb::Touch => {
                self.accept(Keyed { exptime: self.exptime(0), cas: 0, ..self.keyed(Kind::Gats) })
            }
            Verb::Delete => self.accept(self.keyed(Kind::Delete)),
            Verb::Increment => self.arithmetic(Kind::Incr),
            Verb::Decrement => self.arithmetic(Kind::Decr),
            Verb::Append => self.value(self.keyed(Kind::Append)),
            Verb::Prepend => self.value(self.keyed(Kind::Prepend)),
            Verb::Set => self.storage(Kind::Set),
            Verb::Add => self.storage(Kind::Add),
            Verb::Replace => self.storage(Kind::Replace),
        }
    }

    fn style(&self) -> Style {
        Style::Binary { opcode: self.header.opcode, opaque: self.header.opaque }
    }

    fn key(&self) -> &[u8] {
        &self.buf[HEADER_LEN + self.header.extras_len..self.len]
    }

    /// Bytes of the body behind the key.
    fn value_len(&self) -> usize {
        self.header.body_len - self.header.extras_len - self.header.key_len
    }

    /// Four bytes of the extras.
    fn extra(&self, at: usize) -> u32 {
        self.buf[HEADER_LEN + at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    fn extra_u64(&self, at: usize) -> u64 {
        self.buf[HEADER_LEN + at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }

    /// An expiry or a delay: never negative here, and a far date is the last that text can say.
    fn exptime(&self, at: usize) -> i64 {
        i64::from(self.extra(at)).min(i32::MAX.into())
    }

    fn keyed(&self, kind: Kind) -> Keyed {
        let key = Keys::one(HEADER_LEN + self.header.extras_len..self.len);
        Keyed { cas: self.header.cas, tells_cas: true, ..Keyed::new(kind, key) }
    }

    fn accept(&self, request: Keyed) -> Parsed {
        Parsed::Request { request: Request::Keyed(request), style: self.style(), len: self.len }
    }

    fn administer(&self, admin: Admin) -> Parsed {
        Parsed::Request { request: Request::Admin(admin), style: self.style(), len: self.len }
    }

    fn stat(&self) -> Parsed {
        let begins = |parts: &[&'static [u8]]| parts.iter().find(|part| self.key().starts_with(part)).copied();
        match begins(&BY_BEGINNING) {
            Some(part) => self.administer(Admin::Stats(HEADER_LEN..HEADER_LEN + part.len())),
            None if begins(&TEXT_ONLY).or(begins(&ALONE)).is_some() => self.reject(NOT_FOUND, 0, false),
            None => self.administer(Admin::Stats(HEADER_LEN..self.len)),
        }
    }

    fn reject(&self, reply: &'static [u8], swallow: usize, close: bool) -> Parsed {
        let close = close.then_some(Close::BadHeader);
        Parsed::Reject { reply, style: self.style(), len: self.len, swallow, close }
    }

    fn arithmetic(&self, kind: Kind) -> Parsed {
        let creates = self.extra(16) != NO_INITIAL;
        self.accept(Keyed {
            delta: self.extra_u64(0),
            initial: creates.then(|| self.extra_u64(8)),
            exptime: if creates { self.exptime(16) } else { 0 },
            ..self.keyed(kind)
        })
    }

    fn storage(&self, kind: Kind) -> Parsed {
        self.value(Keyed { flags: self.extra(0), exptime: self.exptime(4), ..self.keyed(kind) })
    }

    fn value(&self, request: Keyed) -> Parsed {
        let (value_len, style) = (self.value_len(), self.style());
        // Before the cas id makes another kind of it: what is too large for a `set` is removed.
        if item_size(self.header.key_len, request.flags, value_len) > self.limits.item_size_max {
            return Parsed::TooLarge { request, style, len: self.len, swallow: value_len };
        }
        let data = self.len..self.len + value_len;
        if self.buf.len() < data.end {
            return Parsed::Incomplete { need: data.end };
        }
        // `add` with a cas id, too: it stores only what is there.
        let compares = request.cas != 0 && matches!(request.kind, Kind::Set | Kind::Add | Kind::Replace);
        let kind = if compares { Kind::Cas } else { request.kind };
        let len = data.end;
        Parsed::Request { request: Request::Keyed(Keyed { kind, data, ..request }), style, len }
    }
}
