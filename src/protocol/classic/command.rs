//! One command line of the classic text protocol, verb by verb: which words it takes, and how
//! memcached answers wrong ones.

use std::ops::Range;

use super::super::foreign::Foreign;
use super::super::line::Words;
use super::super::meta::{self, Hidden, Verb};
use super::super::number::{client_i32, client_u32, client_u64};
use super::super::request::{Admin, Close, Keyed, Keys, Kind, Limits, Parsed, Request, Style, item_size};
use super::super::{KEY_LEN_MAX, answer};
use super::SAID;

/// The longest value whose length, CR LF included, fits memcached's `int`.
const VALUE_LEN_MAX: usize = i32::MAX as usize - 2;

/// A command line being parsed.
pub(super) struct Command<'a> {
    /// All that has arrived; the line is at its start.
    pub(super) buf: &'a [u8],
    /// Length of the line with its newline.
    pub(super) line_len: usize,
    pub(super) limits: &'a Limits,
}

impl Command<'_> {
    pub(super) fn parse(&self, mut words: Words<'_>) -> Parsed {
        let Some(name) = words.next() else {
            return self.reject(answer::ERROR, false);
        };
        match &self.buf[name] {
            // `bget` is an old name that memcached still accepts.
            b"get" | b"bget" => self.retrieval(Kind::Get, words),
            b"gets" => self.retrieval(Kind::Gets, words),
            b"gat" => self.retrieval(Kind::Gat, words),
            b"gats" => self.retrieval(Kind::Gats, words),
            b"set" => self.storage(Kind::Set, words),
            b"add" => self.storage(Kind::Add, words),
            b"replace" => self.storage(Kind::Replace, words),
            b"append" => self.storage(Kind::Append, words),
            b"prepend" => self.storage(Kind::Prepend, words),
            b"cas" => self.storage(Kind::Cas, words),
            b"incr" => self.arithmetic(Kind::Incr, words),
            b"decr" => self.arithmetic(Kind::Decr, words),
            b"delete" => self.delete(words),
            b"touch" => self.touch(words),
            b"flush_all" => self.flush_all(words),
            b"verbosity" => self.verbosity(words),
            b"stats" => self.administer(Admin::Stats(words.rest()), false),
            b"resync" => self.administer(Admin::Resync(words.rest()), false),
            b"node" => self.administer(Admin::Node(words.rest()), false),
            b"lru_crawler" => self.lru_crawler(words),
            b"cache_memlimit" => self.cache_memlimit(words),
            b"slabs" => self.slabs(words),
            b"lru" | b"extstore" => self.unadjusted(words),
            b"watch" => self.watch(words),
            b"shutdown" => self.shutdown(),
            b"refresh_certs" => self.refresh_certs(),
            // These two take any number of words and heed none.
            b"version" => self.administer(Admin::Version, false),
            b"quit" => self.administer(Admin::Quit, false),
            b"mg" => self.meta(Verb::Get, words),
            b"ms" => self.meta(Verb::Set, words),
            b"md" => self.meta(Verb::Delete, words),
            b"ma" => self.meta(Verb::Arithmetic, words),
            b"me" => self.meta(Verb::Debug, words),
            b"mn" => {
                let request = Request::Admin(Admin::Noop);
                Parsed::Request { request, style: Style::Meta(Hidden::Nothing), len: self.line_len }
            }
            name => self.unknown(name, words),
        }
    }

    fn accept(&self, request: Keyed, noreply: bool) -> Parsed {
        let request = Request::Keyed(request);
        Parsed::Request { request, style: Style::Classic { noreply }, len: self.line_len }
    }

    pub(super) fn administer(&self, admin: Admin, noreply: bool) -> Parsed {
        let request = Request::Admin(admin);
        Parsed::Request { request, style: Style::Classic { noreply }, len: self.line_len }
    }

    pub(super) fn reject(&self, reply: &'static [u8], noreply: bool) -> Parsed {
        let reply = if noreply { answer::SILENCE } else { reply };
        Parsed::Reject { reply, style: SAID, len: self.line_len, swallow: 0, close: None }
    }

    fn retrieval(&self, kind: Kind, mut words: Words<'_>) -> Parsed {
        let mut exptime = 0;
        let with_exptime = matches!(kind, Kind::Gat | Kind::Gats);
        if with_exptime {
            let Some(word) = words.next() else {
                return self.reject(answer::ERROR, false);
            };
            let Some(number) = client_i32(&self.buf[word]) else {
                return self.reject(answer::BAD_EXPTIME, false);
            };
            exptime = number.into();
        }
        let mut keys = Keys { span: 0..0, count: 0 };
        for key in words {
            // One bad key spoils the whole request. memcached has served the earlier ones by then,
            // and touched them if it is a gat; here nothing is forwarded that is not right as a
            // whole.
            if key.len() > KEY_LEN_MAX {
                return self.reject(answer::BAD_FORMAT, false);
            }
            keys.span = if keys.count == 0 { key } else { keys.span.start..key.end };
            keys.count += 1;
        }
        match keys.count {
            // `gat 10` gets END from memcached: it found none of no keys. Answered here, without
            // waiting for a node.
            0 if with_exptime => self.reject(answer::END, false),
            0 => self.reject(answer::ERROR, false),
            _ => self.accept(Keyed { exptime, ..Keyed::new(kind, keys) }, false),
        }
    }

    /// A key and this many words with it, and perhaps `noreply`.
    #[inline(always)]
    fn one_key(&self, words: Words<'_>, count: usize) -> Result<(Args<'_>, bool), Parsed> {
        let args = Args::collect(self.buf, words);
        if args.count != count && args.count != count + 1 {
            return Err(self.reject(answer::ERROR, false));
        }
        let noreply = args.noreply();
        if args.key().len() > KEY_LEN_MAX {
            return Err(self.reject(answer::BAD_FORMAT, noreply));
        }
        Ok((args, noreply))
    }

    /// `<verb> <key> <flags> <exptime> <length> [noreply]`, with a cas id behind the length for
    /// `cas`.
    pub(super) fn storage(&self, kind: Kind, words: Words<'_>) -> Parsed {
        if kind != Kind::Cas
            && let Some((key, [flags, exptime, length])) = words.word_and_numbers()
            && key.len() <= KEY_LEN_MAX
        {
            let request = Keyed { flags, exptime: exptime.into(), ..Keyed::new(kind, Keys::one(key)) };
            return self.value(request, false, length as usize);
        }
        self.storage_spelled(kind, words)
    }

    pub(super) fn storage_spelled(&self, kind: Kind, words: Words<'_>) -> Parsed {
        let (args, noreply) = match self.one_key(words, if kind == Kind::Cas { 5 } else { 4 }) {
            Ok(args) => args,
            Err(rejected) => return rejected,
        };
        let numbers = (client_u32(args.word(1)), client_i32(args.word(2)), client_i32(args.word(3)));
        let (Some(flags), Some(exptime), Some(length)) = numbers else {
            return self.reject(answer::BAD_FORMAT, noreply);
        };
        let cas = if kind == Kind::Cas { client_u64(args.word(4)) } else { Some(0) };
        let (Some(cas), Ok(length @ ..=VALUE_LEN_MAX)) = (cas, usize::try_from(length)) else {
            return self.reject(answer::BAD_FORMAT, noreply);
        };
        let keys = Keys::one(args.key());
        self.value(Keyed { flags, exptime: exptime.into(), cas, ..Keyed::new(kind, keys) }, noreply, length)
    }

    /// The value behind the line of a storage command.
    fn value(&self, request: Keyed, noreply: bool, value_len: usize) -> Parsed {
        let style = Style::Classic { noreply };
        if item_size(request.keys.span.len(), request.flags, value_len) > self.limits.item_size_max {
            return Parsed::TooLarge { request, style, len: self.line_len, swallow: value_len + 2 };
        }
        let data = self.line_len..self.line_len + value_len;
        let len = data.end + 2;
        match self.buf.get(data.end..len) {
            None => Parsed::Incomplete { need: len },
            Some(b"\r\n") => Parsed::Request { request: Request::Keyed(Keyed { data, ..request }), style, len },
            // memcached takes exactly the announced length, and reads on behind it, be it in the
            // middle of the value.
            Some(_) => {
                let reply = if noreply { answer::SILENCE } else { answer::BAD_DATA_CHUNK };
                Parsed::Reject { reply, style: SAID, len, swallow: 0, close: None }
            }
        }
    }

    fn arithmetic(&self, kind: Kind, words: Words<'_>) -> Parsed {
        let (args, noreply) = match self.one_key(words, 2) {
            Ok(args) => args,
            Err(rejected) => return rejected,
        };
        match client_u64(args.word(1)) {
            Some(delta) => self.accept(Keyed { delta, ..Keyed::new(kind, Keys::one(args.key())) }, noreply),
            None => self.reject(answer::BAD_DELTA, noreply),
        }
    }

    fn touch(&self, words: Words<'_>) -> Parsed {
        let (args, noreply) = match self.one_key(words, 2) {
            Ok(args) => args,
            Err(rejected) => return rejected,
        };
        match client_i32(args.word(1)) {
            Some(exptime) => self
                .accept(Keyed { exptime: exptime.into(), ..Keyed::new(Kind::Touch, Keys::one(args.key())) }, noreply),
            None => self.reject(answer::BAD_EXPTIME, noreply),
        }
    }

    /// `delete <key> [0] [noreply]`: the 0 was once a time during which the key could not be added.
    fn delete(&self, words: Words<'_>) -> Parsed {
        let args = Args::collect(self.buf, words);
        if !(1..=3).contains(&args.count) {
            return self.reject(answer::ERROR, false);
        }
        // A lone `noreply` is a key.
        let noreply = args.count > 1 && args.noreply();
        let zero = args.word(1) == b"0";
        let right = match args.count {
            1 => true,
            2 => zero || noreply,
            _ => zero && noreply,
        };
        if !right {
            return self.reject(answer::BAD_DELETE, noreply);
        }
        if args.key().len() > KEY_LEN_MAX {
            return self.reject(answer::BAD_FORMAT, noreply);
        }
        self.accept(Keyed::new(Kind::Delete, Keys::one(args.key())), noreply)
    }

    /// `flush_all [delay] [noreply]`.
    fn flush_all(&self, words: Words<'_>) -> Parsed {
        let args = Args::collect(self.buf, words);
        if args.count > 2 {
            return self.reject(answer::ERROR, false);
        }
        let noreply = args.noreply();
        if args.count == usize::from(noreply) {
            return self.administer(Admin::FlushAll { delay: 0 }, noreply);
        }
        match client_i32(args.word(0)) {
            Some(delay) => self.administer(Admin::FlushAll { delay: delay.into() }, noreply),
            None => self.reject(answer::BAD_EXPTIME, noreply),
        }
    }

    fn verbosity(&self, words: Words<'_>) -> Parsed {
        let args = Args::collect(self.buf, words);
        if args.count != 1 && args.count != 2 {
            return self.reject(answer::ERROR, false);
        }
        let noreply = args.noreply();
        match client_u32(args.word(0)) {
            Some(level) => self.administer(Admin::Verbosity { level }, noreply),
            None => self.reject(answer::BAD_FORMAT, noreply),
        }
    }

    fn meta(&self, verb: Verb, words: Words<'_>) -> Parsed {
        meta::Command { buf: self.buf, line_len: self.line_len, limits: self.limits }.parse(verb, words)
    }

    /// A browser's request is closed without an answer, so that a web page cannot make it talk
    /// memcached. memcached comes to this test only for names that no command begins like, and only
    /// knows the first 23 words.
    fn unknown(&self, name: &[u8], words: Words<'_>) -> Parsed {
        const WORDS_MAX: usize = 23;
        let other_branch = matches!(name, [_] | [b'm', _] | [b'g' | b's' | b'a' | b'c' | b'i' | b'd' | b't', ..]);
        let last = words.take(WORDS_MAX - 1).last().map_or(name, |word| &self.buf[word]);
        if last.starts_with(b"HTTP/") && !other_branch {
            return Parsed::Reject {
                reply: answer::SILENCE,
                style: SAID,
                len: self.line_len,
                swallow: 0,
                close: Some(Close::Foreign(Foreign::Http)),
            };
        }
        self.reject(answer::ERROR, false)
    }
}

/// The words behind a command's name, for commands that take a few.
pub(super) struct Args<'a> {
    buf: &'a [u8],
    words: [(usize, usize); Args::KEPT],
    /// How many there are; [`Args::TOO_MANY`] stands for more than any command takes.
    pub(super) count: usize,
}

impl<'a> Args<'a> {
    /// As many as `cas` takes at most.
    const KEPT: usize = 6;
    const TOO_MANY: usize = Args::KEPT + 1;

    pub(super) fn collect(buf: &'a [u8], words: Words<'_>) -> Args<'a> {
        let mut args = Args { buf, words: [(0, 0); Args::KEPT], count: 0 };
        for word in words.take(Args::TOO_MANY) {
            if let Some(slot) = args.words.get_mut(args.count) {
                *slot = (word.start, word.end);
            }
            args.count += 1;
        }
        args
    }

    /// Empty if there are not that many.
    pub(super) fn word(&self, index: usize) -> &'a [u8] {
        &self.buf[self.range(index)]
    }

    fn key(&self) -> Range<usize> {
        self.range(0)
    }

    /// Where it stands.
    pub(super) fn range(&self, index: usize) -> Range<usize> {
        let (start, end) = self.words[index];
        start..end
    }

    /// memcached looks for `noreply` in the last word only, whatever belongs there.
    /// `incr noreply noreply` is so an `incr` of the key `noreply` with a bad delta, about which it
    /// keeps silent.
    pub(super) fn noreply(&self) -> bool {
        self.count.checked_sub(1).is_some_and(|last| last < Args::KEPT && self.word(last) == b"noreply")
    }
}
