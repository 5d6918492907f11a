//! One meta command line: which words it takes, and how memcached 1.6.18 answers wrong ones.

use std::ops::Range;

use super::super::line::Words;
use super::super::number::{client_i32, client_u32, client_u64};
use super::super::request::{Keyed, Keys, Kind, Limits, Parsed, Request, Style, item_size};
use super::super::{KEY_LEN_MAX, answer};
use super::command::{Flag, Meta, Mode, Verb};
use super::{Decoded, Hidden, OPAQUE_LEN_MAX};
use crate::rules::{Rule, holds};

/// Words of a line, its end counted as one, that memcached takes.
const WORDS_MAX: usize = 20;
/// Words that it cuts a line into.
const TOKENS_MAX: usize = 23;
/// The longest value whose length, CR LF included, fits memcached's `int`.
const VALUE_LEN_MAX: usize = i32::MAX as usize - 2;

/// How a request is refused: errors are told also of quiet ones.
const SAID: Style = Style::Meta(Hidden::Nothing);

const TOO_MANY: &[u8] = b"CLIENT_ERROR options flags too long\r\n";
const TOO_MANY_OF_GET: &[u8] = b"CLIENT_ERROR options flags are too long\r\n";
const DUPLICATE: &[u8] = b"CLIENT_ERROR duplicate flag\r\n";
const INVALID: &[u8] = b"CLIENT_ERROR invalid flag\r\n";
const INVALID_OR_DUPLICATE: &[u8] = b"CLIENT_ERROR invalid or duplicate flag\r\n";
const BAD_KEY: &[u8] = b"CLIENT_ERROR error decoding key\r\n";
const BAD_TOKEN: &[u8] = b"CLIENT_ERROR bad token in command line format\r\n";
const BAD_MODE_LEN: &[u8] = b"CLIENT_ERROR incorrect length for M token\r\n";
const BAD_MODE_OF_SET: &[u8] = b"CLIENT_ERROR invalid mode for ms M token\r\n";
const BAD_MODE_OF_ARITHMETIC: &[u8] = b"CLIENT_ERROR invalid mode for ma M token\r\n";
const BAD_INITIAL: &[u8] = b"CLIENT_ERROR invalid numeric initial value\r\n";
const BAD_DELTA: &[u8] = b"CLIENT_ERROR invalid numeric delta value\r\n";
const LONG_OPAQUE: &[u8] = b"CLIENT_ERROR opaque token too long\r\n";

/// A meta command line being parsed.
pub(in super::super) struct Command<'a> {
    /// All that has arrived; the line is at its start.
    pub(in super::super) buf: &'a [u8],
    /// Length of the line with its newline.
    pub(in super::super) line_len: usize,
    pub(in super::super) limits: &'a Limits,
}

/// What the flags of a line say.
struct Flags {
    meta: Meta,
    mode: Option<u8>,
    client_flags: u32,
    exptime: i64,
    /// Expiry of what is made.
    vivified: i64,
    cas: u64,
    delta: u64,
    long_opaque: bool,
}

impl Command<'_> {
    /// `words`: those behind the command's name.
    pub(in super::super) fn parse(&self, verb: Verb, words: Words<'_>) -> Parsed {
        let count = words.clone().take(TOKENS_MAX - 1).count();
        let mut words = words.take(TOKENS_MAX - 1);
        let Some(key) = words.next() else {
            return self.reject(if verb == Verb::Debug { answer::BAD_FORMAT } else { answer::ERROR });
        };
        if key.len() > KEY_LEN_MAX {
            return self.reject(answer::BAD_FORMAT);
        }
        if verb == Verb::Debug {
            return self.debug(key, words.next());
        }
        let length = if verb == Verb::Set { words.next() } else { None };
        if verb == Verb::Set && length.is_none() {
            return self.reject(answer::BAD_FORMAT);
        }
        if count + 2 > WORDS_MAX {
            return self.reject(if verb == Verb::Get { TOO_MANY_OF_GET } else { TOO_MANY });
        }
        match (verb, length) {
            (Verb::Set, Some(length)) => self.set(key, &self.buf[length], words),
            _ => self.valueless(verb, key, words),
        }
    }

    fn reject(&self, reply: &'static [u8]) -> Parsed {
        self.reject_with_value(reply, 0)
    }

    fn reject_with_value(&self, reply: &'static [u8], swallow: usize) -> Parsed {
        Parsed::Reject { reply, style: SAID, len: self.line_len, swallow, close: None }
    }

    fn accept(&self, request: Keyed, hidden: Hidden) -> Parsed {
        Parsed::Request { request: Request::Keyed(request), style: Style::Meta(hidden), len: self.line_len }
    }

    /// `me <key> [b]`: a `b` anywhere else is not looked at.
    fn debug(&self, key: Range<usize>, flag: Option<Range<usize>>) -> Parsed {
        let mut meta = Meta::new(Verb::Debug);
        if flag.is_some_and(|flag| &self.buf[flag] == b"b") {
            if Decoded::of(&self.buf[key.clone()]).is_none() {
                return self.reject(answer::BAD_FORMAT);
            }
            meta = meta.with(Flag::Binary);
        }
        self.accept(Keyed::new(Kind::Meta(meta), Keys::one(key)), Hidden::Nothing)
    }

    fn valueless(&self, verb: Verb, key: Range<usize>, words: impl Iterator<Item = Range<usize>>) -> Parsed {
        let mut flags = match self.flags(verb, key.clone(), words) {
            Ok(flags) => flags,
            // These two have one word for all that is wrong.
            Err(_) if verb != Verb::Get => return self.reject(INVALID_OR_DUPLICATE),
            Err(why) => return self.reject(why),
        };
        if verb == Verb::Arithmetic {
            flags.meta.mode = match flags.mode {
                None | Some(b'I' | b'+') => Mode::Increment,
                Some(b'D' | b'-') => Mode::Decrement,
                Some(_) => return self.reject(BAD_MODE_OF_ARITHMETIC),
            };
        }
        if flags.long_opaque {
            // memcached has carried the command out by then, except for `md`; here nothing is
            // forwarded that is not right as a whole.
            return self.reject(LONG_OPAQUE);
        }
        let quiet = if verb == Verb::Get { Hidden::Misses } else { Hidden::Successes };
        let hidden = if flags.meta.has(Flag::Quiet) { quiet } else { Hidden::Nothing };
        self.accept(flags.keyed(key), hidden)
    }

    fn set(&self, key: Range<usize>, length: &[u8], words: impl Iterator<Item = Range<usize>>) -> Parsed {
        let length = client_i32(length).and_then(|length| usize::try_from(length).ok());
        let Some(length @ ..=VALUE_LEN_MAX) = length else { return self.reject(answer::BAD_FORMAT) };
        // From here on the value goes with what is refused.
        let mut flags = match self.flags(Verb::Set, key.clone(), words) {
            Ok(flags) => flags,
            Err(why) => return self.reject_with_value(why, length + 2),
        };
        flags.meta.mode = match flags.mode {
            None | Some(b'S') => Mode::Set,
            Some(b'E') => Mode::Add,
            Some(b'A') => Mode::Append,
            Some(b'P') => Mode::Prepend,
            Some(b'R') => Mode::Replace,
            Some(_) => return self.reject_with_value(BAD_MODE_OF_SET, length + 2),
        };
        if flags.long_opaque {
            return self.reject_with_value(LONG_OPAQUE, length + 2);
        }
        let hidden = if flags.meta.has(Flag::Quiet) { Hidden::Successes } else { Hidden::Nothing };
        let key_len = match flags.meta.has(Flag::Binary) {
            true => Decoded::of(&self.buf[key.clone()]).map_or(0, |key| key.bytes().len()),
            false => key.len(),
        };
        let request = flags.keyed(key);
        if item_size(key_len, request.flags, length) > self.limits.item_size_max {
            return Parsed::TooLarge { request, style: Style::Meta(hidden), len: self.line_len, swallow: length + 2 };
        }
        let data = self.line_len..self.line_len + length;
        let len = data.end + 2;
        match self.buf.get(data.end..len) {
            None => Parsed::Incomplete { need: len },
            Some(b"\r\n") => {
                let request = Request::Keyed(Keyed { data, ..request });
                Parsed::Request { request, style: Style::Meta(hidden), len }
            }
            Some(_) => Parsed::Reject { reply: answer::BAD_DATA_CHUNK, style: SAID, len, swallow: 0, close: None },
        }
    }

    /// memcached reads on behind a number that is none, and so tells of the last one.
    fn flags(
        &self,
        verb: Verb,
        key: Range<usize>,
        words: impl Iterator<Item = Range<usize>>,
    ) -> Result<Flags, &'static [u8]> {
        let mut flags = Flags::new(verb);
        let mut seen = 0u128;
        let mut wrong = None;
        for word in words {
            let word = &self.buf[word];
            let (first, rest) = (word[0], &word[1..]);
            if first >= 127 || seen & 1 << first != 0 {
                return Err(DUPLICATE);
            }
            seen |= 1 << first;
            let result = match first {
                b'b' if Decoded::of(&self.buf[key.clone()]).is_none() => Err(Some(BAD_KEY)),
                _ => flags.take(first, rest),
            };
            match result {
                Ok(()) => {}
                Err(None) => wrong = wrong.or(Some(answer::BAD_FORMAT)),
                Err(Some(INVALID)) => return Err(INVALID),
                Err(why) => wrong = why,
            }
        }
        match wrong {
            Some(why) => Err(why),
            None => Ok(flags),
        }
    }
}

impl Flags {
    fn new(verb: Verb) -> Flags {
        let meta = Meta::new(verb);
        Flags { meta, mode: None, client_flags: 0, exptime: 0, vivified: 0, cas: 0, delta: 1, long_opaque: false }
    }

    /// `Err`: what is wrong with it; `None` where memcached has no words of its own for that.
    fn take(&mut self, flag: u8, rest: &[u8]) -> Result<(), Option<&'static [u8]>> {
        let flag = match flag {
            b'b' => Flag::Binary,
            b'v' => Flag::Value,
            b'c' => Flag::TellCas,
            b'q' => Flag::Quiet,
            b'I' => Flag::Stale,
            b'x' => Flag::Remove,
            b'C' => {
                self.cas = client_u64(rest).ok_or(Some(BAD_TOKEN))?;
                Flag::Cas
            }
            b'T' => {
                self.exptime = client_i32(rest).ok_or(Some(BAD_TOKEN))?.into();
                Flag::Ttl
            }
            b'N' => {
                self.vivified = client_i32(rest).ok_or(Some(BAD_TOKEN))?.into();
                Flag::Vivify
            }
            b'R' => {
                client_i32(rest).ok_or(Some(BAD_TOKEN))?;
                Flag::Recache
            }
            b'F' => {
                self.client_flags = client_u32(rest).ok_or(None)?;
                return Ok(());
            }
            b'M' => {
                let &[mode] = rest else { return Err(Some(BAD_MODE_LEN)) };
                self.mode = Some(mode);
                return Ok(());
            }
            b'J' => {
                client_u64(rest).ok_or(Some(BAD_INITIAL))?;
                return Ok(());
            }
            b'D' => {
                self.delta = client_u64(rest).ok_or(Some(BAD_DELTA))?;
                return Ok(());
            }
            b'O' => {
                self.long_opaque = rest.len() >= OPAQUE_LEN_MAX;
                return Ok(());
            }
            b'f' | b'h' | b'k' | b'l' | b's' | b't' | b'u' | b'P' | b'L' => return Ok(()),
            b'E' if !holds(Rule::NoChosenCasIds) => return Ok(()),
            _ => return Err(Some(INVALID)),
        };
        self.meta = self.meta.with(flag);
        Ok(())
    }

    fn keyed(self, key: Range<usize>) -> Keyed {
        let makes = self.meta.verb == Verb::Arithmetic && !self.meta.has(Flag::Ttl);
        Keyed {
            flags: self.client_flags,
            exptime: if makes { self.vivified } else { self.exptime },
            cas: self.cas,
            delta: self.delta,
            ..Keyed::new(Kind::Meta(self.meta), Keys::one(key))
        }
    }
}
