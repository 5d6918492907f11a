//! memcached's classic text protocol, as clients speak it: requests in, outcomes out.
//!
//! What memcached 1.6.18 accepts is accepted, oddities included, and what it refuses is refused
//! with the same bytes: `tests/it/parser_differential.rs` compares the two. Lines of the meta
//! protocol stand among the classic ones, and are parsed by [`super::meta`].

mod command;
mod long;
mod refused;

use super::answer;
use super::line::{Line, Words, first_line};
use super::out::OutQueue;
use super::outcome::{Fields, Outcome};
use super::request::{Close, Limits, Parsed, Style};
use command::Command;
pub use long::LongLine;

/// How a request is refused.
pub(super) const SAID: Style = Style::Classic { noreply: false };

/// Parses the request that `buf` begins with.
pub fn parse(buf: &[u8], limits: &Limits) -> Parsed {
    match first_line(buf) {
        Line::Incomplete => Parsed::Incomplete { need: 0 },
        // Without a word, as memcached does: such a client does not speak memcached.
        Line::TooLong { len } => {
            Parsed::Reject { reply: answer::SILENCE, style: SAID, len, swallow: 0, close: Some(Close::LongLine) }
        }
        Line::Long => LongLine::begin(buf),
        Line::Whole { end, len } => Command { buf, line_len: len, limits }.parse(Words::new(buf, 0..end)),
    }
}

/// Writes the answer to a request of one key; a hit is followed by its `END`.
pub fn write(outcome: Outcome, out: &mut OutQueue) {
    match outcome {
        Outcome::Hit(bytes) => {
            out.put_shared(bytes);
            out.put(answer::END);
        }
        Outcome::Raw(bytes) => out.put_shared(bytes),
        Outcome::Item(fields) => item(&fields, out),
        Outcome::Miss | Outcome::MissOf(_) => out.put(answer::END),
        Outcome::Stored | Outcome::StoredAs(_) => out.put(answer::STORED),
        Outcome::NotStored => out.put(answer::NOT_STORED),
        Outcome::Exists => out.put(answer::EXISTS),
        Outcome::NotFound => out.put(answer::NOT_FOUND),
        Outcome::Deleted => out.put(answer::DELETED),
        Outcome::Touched => out.put(answer::TOUCHED),
        Outcome::Done => out.put(answer::OK),
        Outcome::Own(line) => out.put(line),
        Outcome::Version(version) => {
            out.put(b"VERSION ");
            out.put(version.as_bytes());
            out.put(b"\r\n");
        }
        Outcome::Quit => {}
        Outcome::Number(number) | Outcome::NumberAs { number, .. } => {
            out.put_number(number);
            out.put(b"\r\n");
        }
        Outcome::Refused(refusal) => {
            out.put(refusal.kind().as_bytes());
            out.put(refusal.words().as_bytes());
            out.put(b"\r\n");
        }
    }
}

fn item(fields: &Fields, out: &mut OutQueue) {
    out.put(b"VALUE ");
    out.put(&fields.key);
    for number in [fields.flags.into(), fields.value.len() as u64, fields.cas] {
        out.put(b" ");
        out.put_number(number);
    }
    out.put(b"\r\n");
    out.put_shared(fields.value.clone());
    out.put(b"\r\nEND\r\n");
}

#[cfg(test)]
mod parse_tests;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::outcome::Refusal;
    use super::*;

    #[test]
    fn every_outcome_as_memcached_says_it() {
        let told = |outcome| {
            let mut out = OutQueue::default();
            write(outcome, &mut out);
            String::from_utf8(out.one_piece().unwrap().to_vec()).unwrap()
        };
        let item = Bytes::from_static(b"VALUE k 0 1\r\nv\r\n");
        for (outcome, line) in [
            (Outcome::Hit(item), "VALUE k 0 1\r\nv\r\nEND\r\n"),
            (Outcome::Miss, "END\r\n"),
            (Outcome::Stored, "STORED\r\n"),
            (Outcome::NotStored, "NOT_STORED\r\n"),
            (Outcome::Exists, "EXISTS\r\n"),
            (Outcome::NotFound, "NOT_FOUND\r\n"),
            (Outcome::Deleted, "DELETED\r\n"),
            (Outcome::Touched, "TOUCHED\r\n"),
            (Outcome::Done, "OK\r\n"),
            (Outcome::Number(u64::MAX), "18446744073709551615\r\n"),
            (Outcome::Refused(Refusal::Client("no")), "CLIENT_ERROR no\r\n"),
            (Outcome::Refused(Refusal::Server("no")), "SERVER_ERROR no\r\n"),
            (Outcome::Own(b"ERROR\r\n"), "ERROR\r\n"),
            (Outcome::Version("1.6"), "VERSION 1.6\r\n"),
            (Outcome::Quit, ""),
            (Outcome::Raw(Bytes::from_static(b"SERVER_ERROR out of memory\r\n")), "SERVER_ERROR out of memory\r\n"),
        ] {
            assert_eq!(told(outcome), line);
        }
    }
}
