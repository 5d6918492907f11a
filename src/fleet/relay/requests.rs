//! Where one request ends and the next begins, and what answer each is owed: as much as must be
//! known to hand a client over from one active proxy to the next. PURE.
//!
//! Bytes are passed on as they are, so nothing depends on this but what becomes of a client when
//! the active proxy changes: one that is owed nothing stays; one that is owed an answer which
//! cannot be made up is closed. What is not understood for certain makes a connection *opaque*: it
//! is owed something for ever.

use bytes::Bytes;

use crate::protocol::binary::{HEADER_LEN, Header, MAGIC_REQUEST, Opcode};
use crate::report::statistics::Statistics;
use crate::rules::{Rule, holds};

/// A longer line is not parsed. As much as is buffered for a client (`HELD`): a longer one would
/// never be there as a whole.
const LINE_MAX: usize = 64 << 10;

/// Reads of at most so many bytes are kept, to be sent again.
const KEPT_MAX: usize = 2 << 10;

/// What a client is owed for one request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Owed {
    /// One answer.
    Answer,
    /// The same for a request that changes nothing: it can be asked again.
    Read(Bytes),
    /// No answer (`noreply`).
    Nothing,
    /// An answer or none, as it turns out (`q`). Of a change (no `mg`) it is never told that it was
    /// made.
    Perhaps { reads: bool },
    /// `MN`, which answers nothing else: by then all earlier requests are done.
    NoOp,
    /// The same of the binary protocol, which names what is answered.
    Named { opcode: Opcode, opaque: [u8; 4], quiet: bool },
    /// The answer to this proxy's own no-op behind requests that may get none: no client gets it.
    Own,
    /// This, in the place of an answer that does not come.
    Told(Bytes),
}

impl Owed {
    /// Whether its client waits for it. (Of quiet requests it waits for what comes behind them.)
    pub(super) fn is_awaited(&self) -> bool {
        !matches!(self, Owed::Nothing | Owed::Perhaps { .. } | Owed::Own | Owed::Named { quiet: true, .. })
    }
}

/// What stands at the beginning of what a client has sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Head {
    /// A request of so many bytes, its value included.
    Request { bytes: usize, owed: Owed },
    /// A question to this very proxy, of so many bytes.
    OfProxy { bytes: usize },
    /// `reload`, which is for this very proxy where an operator says it.
    Reload { bytes: usize },
    /// Part of one.
    Part,
    /// Not understood: what it is owed is unknown.
    Opaque,
}

pub(super) fn head(input: &[u8]) -> Head {
    match input.first() {
        None => Head::Part,
        Some(&MAGIC_REQUEST) => binary(input),
        Some(_) => match memchr::memchr(b'\n', input) {
            Some(end) => line(&input[..=end]),
            None if input.len() >= LINE_MAX => Head::Opaque,
            None => Head::Part,
        },
    }
}

/// Which statistics a client asks for next, if any.
pub(super) fn statistics(input: &[u8]) -> Option<Statistics> {
    let line = std::str::from_utf8(&input[..memchr::memchr(b'\n', input)?]).ok()?;
    Statistics::asked_by(line.split_ascii_whitespace())
}

/// Whether nothing else has come than what operators say: lines of these, and a part of one.
pub(super) fn is_for_operators(input: &[u8]) -> bool {
    const WORDS: [&[u8]; 7] = [b"stats", b"resync", b"node", b"list", b"version", b"mn", b"quit"];
    let mut lines = input.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let is_one = |line: &[u8]| {
        let mut words = line.split(u8::is_ascii_whitespace);
        words.next().is_some_and(|word| WORDS.contains(&word))
    };
    input.first() != Some(&MAGIC_REQUEST) && input.len() <= LINE_MAX && lines.all(is_one)
}

fn binary(input: &[u8]) -> Head {
    let Some(header) = input.first_chunk::<HEADER_LEN>() else { return Head::Part };
    let header = Header::read(header);
    // A body that its key does not fit in: the active proxy says so, and closes the connection.
    if header.opcode.is_quit() || !header.fits() {
        return Head::Opaque;
    }
    let Header { opcode, body_len, opaque, .. } = header;
    let quiet = opcode.is_quiet();
    Head::Request { bytes: HEADER_LEN + body_len, owed: Owed::Named { opcode, opaque, quiet } }
}

/// What may be followed by a value, or by anything, or ends the connection.
const OTHERS: [&str; 21] = [
    "get", "gets", "gat", "gats", "set", "add", "replace", "append", "prepend", "cas", "delete", "incr", "decr",
    "touch", "ms", "mg", "md", "ma", "me", "quit", "watch",
];

fn line(line: &[u8]) -> Head {
    let Ok(text) = std::str::from_utf8(line) else { return Head::Opaque };
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    // An unknown command is one line, and is answered with `ERROR`; so is an empty line.
    let unknown = Head::Request { bytes: line.len(), owed: Owed::Answer };
    let Some((&verb, rest)) = words.split_first() else { return unknown };
    let silent = rest.last() == Some(&"noreply");
    let plain = if silent { Owed::Nothing } else { Owed::Answer };
    let kept = || if line.len() <= KEPT_MAX { Owed::Read(Bytes::copy_from_slice(line)) } else { Owed::Answer };
    let (value, owed) = match verb {
        "get" | "gets" if !rest.is_empty() => (None, kept()),
        "gat" | "gats" if rest.len() > 1 => (None, Owed::Answer),
        "set" | "add" | "replace" | "append" | "prepend" if rest.len() == 4 + usize::from(silent) => {
            (Some(rest[3]), plain)
        }
        "cas" if rest.len() == 5 + usize::from(silent) => (Some(rest[3]), plain),
        "delete" | "incr" | "decr" | "touch" if !rest.is_empty() => {
            (None, if silent || holds(Rule::PassedOnOnce) { plain } else { kept() })
        }
        "flush_all" | "verbosity" | "cache_memlimit" => (None, plain),
        "mg" | "md" | "ma" | "me" if !rest.is_empty() => {
            let flags = &rest[1..];
            let reads = verb == "mg" && !flags.iter().any(|flag| flag.starts_with(['N', 'R', 'T', 'E', 'q']));
            let perhaps = flags.contains(&"q");
            (
                None,
                if perhaps {
                    Owed::Perhaps { reads: verb == "mg" }
                } else if reads {
                    kept()
                } else {
                    Owed::Answer
                },
            )
        }
        "ms" if rest.len() >= 2 => {
            let perhaps = rest[2..].contains(&"q");
            (Some(rest[1]), if perhaps { Owed::Perhaps { reads: false } } else { Owed::Answer })
        }
        "mn" => (None, Owed::NoOp),
        "version" => (None, Owed::Answer),
        "stats" if rest == ["proxy"] => return Head::OfProxy { bytes: line.len() },
        "reload" if rest.is_empty() => return Head::Reload { bytes: line.len() },
        "stats" | "lru" | "slabs" | "lru_crawler" | "resync" => (None, Owed::Answer),
        _ if OTHERS.contains(&verb) => return Head::Opaque,
        _ => return unknown,
    };
    let Some(value) = value else { return Head::Request { bytes: line.len(), owed } };
    match value.parse::<usize>().ok().filter(|&length| length <= 1 << 30) {
        Some(length) => Head::Request { bytes: line.len() + length + 2, owed },
        None => Head::Opaque,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(request: &[u8]) -> Option<Owed> {
        match head(request) {
            Head::Request { bytes, owed } => {
                assert_eq!(bytes, request.len(), "{}", String::from_utf8_lossy(request));
                Some(owed)
            }
            _ => None,
        }
    }

    #[test]
    fn requests_are_owed_what_memcached_answers() {
        for read in ["get a b\r\n", "gets a\n", "mg a v t k Oabc\r\n"] {
            assert_eq!(owed(read.as_bytes()), Some(Owed::Read(Bytes::from(read))));
        }
        for answered in [
            "set a 0 0 2\r\n\r\n\r\n",
            "cas a 0 0 1 77\r\nx\r\n",
            "mg a v N30\r\n",
            "mg a R30\r\n",
            "mg a T0\r\n",
            "ms a 1 c\r\nx\r\n",
            "ma a N0\r\n",
            "md a I\r\n",
            "incr a 1\r\n",
            "flush_all 5\r\n",
            "stats settings\r\n",
            "lru_crawler metadump all\r\n",
            "gat 10 a\r\n",
        ] {
            assert_eq!(owed(answered.as_bytes()), Some(Owed::Answer), "{answered}");
        }
        for silent in ["set a 0 0 1 noreply\r\nx\r\n", "delete a noreply\r\n", "flush_all noreply\r\n"] {
            assert_eq!(owed(silent.as_bytes()), Some(Owed::Nothing), "{silent}");
        }
        for (perhaps, reads) in [("mg a v q\r\n", true), ("ms a 1 q\r\nx\r\n", false), ("md a q\r\n", false)] {
            assert_eq!(owed(perhaps.as_bytes()), Some(Owed::Perhaps { reads }), "{perhaps}");
        }
        for unknown in ["\r\n", "what\r\n", "what is it\n"] {
            assert_eq!(owed(unknown.as_bytes()), Some(Owed::Answer), "{unknown}");
        }
        for opaque in ["quit\r\n", "watch\r\n", "set a 0 0\r\n", "set a 0 0 -1\r\n", "ms a\r\n"] {
            assert_eq!(head(opaque.as_bytes()), Head::Opaque, "{opaque}");
        }
        assert_eq!(owed(b"mn\r\n"), Some(Owed::NoOp));
        assert_eq!(head(b"stats proxy\r\n"), Head::OfProxy { bytes: 13 });
        for (line, asked) in
            [("stats\r\nget a\r\n", Some(Statistics::All)), ("get a\r\nstats\r\n", None), ("stats", None)]
        {
            assert_eq!(statistics(line.as_bytes()), asked, "{line}");
        }
        for (said, is) in [
            ("stats\r\nresync status\nstats proxy\r\nge", true),
            ("version\r\nget a\r\n", false),
            ("statsproxy\r\n", false),
            ("\r\n", false),
        ] {
            assert_eq!(is_for_operators(said.as_bytes()), is, "{said}");
        }
        assert!(!is_for_operators(&[MAGIC_REQUEST]));
        assert_eq!(head(b"reload\r\n"), Head::Reload { bytes: 8 });
        assert_eq!((head(b""), head(b"get a")), (Head::Part, Head::Part));
        assert_eq!((head(&vec![b'a'; LINE_MAX - 1]), head(&vec![b'a'; LINE_MAX])), (Head::Part, Head::Opaque));
        let get = |code: u8| {
            let mut packet = vec![0; 24];
            (packet[0], packet[1], packet[3], packet[11], packet[15]) = (0x80, code, 1, 1, 7);
            packet.push(b'a');
            packet
        };
        for (code, quiet) in [(0x00, false), (0x09, true), (0x11, true), (0x0a, false), (0x24, true)] {
            assert_eq!(owed(&get(code)), Some(Owed::Named { opcode: Opcode(code), opaque: [0, 0, 0, 7], quiet }));
        }
        assert_eq!((head(&get(0x07)), head(&get(0)[..23])), (Head::Opaque, Head::Part));
        let mut wrong = get(0);
        wrong[11] = 0;
        assert_eq!(head(&wrong), Head::Opaque, "it is closed for that");
    }
}
