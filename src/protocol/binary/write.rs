//! Answers: what came of a request, as memcached tells it.

use bytes::Bytes;

use super::super::answer;
use super::super::out::OutQueue;
use super::super::outcome::{Fields, Outcome, Refusal};
use super::super::reply::{ReplyKind, parse_reply};
use super::super::statistics::Line;
use super::header::{Answer, Opcode, Status, Verb};

/// Tells the outcome of a request.
pub fn write(opcode: Opcode, opaque: [u8; 4], outcome: Outcome, out: &mut OutQueue) {
    Writer { opcode, opaque, out }.write(outcome);
}

struct Writer<'a> {
    opcode: Opcode,
    opaque: [u8; 4],
    out: &'a mut OutQueue,
}

impl Writer<'_> {
    fn write(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Hit(bytes) => self.hit(&bytes),
            Outcome::Item(fields) => self.item(&fields),
            Outcome::Miss => self.miss(b""),
            Outcome::MissOf(key) => self.miss(&key),
            Outcome::Stored | Outcome::Deleted | Outcome::Touched | Outcome::Done => self.done(0),
            Outcome::StoredAs(cas) => self.done(cas),
            Outcome::NotStored => self.error(match self.opcode.verb() {
                Some(Verb::Add) => Status::Exists,
                Some(Verb::Replace) => Status::NotFound,
                _ => Status::NotStored,
            }),
            Outcome::Exists => self.error(Status::Exists),
            Outcome::NotFound => self.error(Status::NotFound),
            Outcome::Number(number) => self.number(number, 0),
            Outcome::NumberAs { number, cas } => self.number(number, cas),
            Outcome::Refused(refusal) => self.refused(refusal),
            Outcome::Version(version) => self.body(Status::Success, version.as_bytes()),
            Outcome::Quit => self.done(0),
            Outcome::Own(text) => self.own(text),
            Outcome::Raw(bytes) if self.opcode.verb() == Some(Verb::Stat) => self.stats(&bytes),
            Outcome::Raw(bytes) => self.line(&bytes),
        }
    }

    fn put(&mut self, answer: Answer) {
        answer.put(self.opcode, self.opaque, self.out);
    }

    fn done(&mut self, cas: u64) {
        if !self.opcode.is_quiet() {
            self.put(Answer { cas, ..Answer::default() });
        }
    }

    fn number(&mut self, number: u64, cas: u64) {
        if !self.opcode.is_quiet() {
            self.put(Answer { body_len: 8, cas, ..Answer::default() });
            self.out.put(&number.to_be_bytes());
        }
    }

    fn error(&mut self, status: Status) {
        self.body(status, status.words().as_bytes());
    }

    fn body(&mut self, status: Status, text: &[u8]) {
        self.put(Answer { status: status as u16, body_len: text.len() as u32, ..Answer::default() });
        self.out.put(text);
    }

    /// In words chosen by the parser: status and text.
    fn own(&mut self, words: &'static [u8]) {
        let Some((status, text)) = words.split_first_chunk() else { return };
        self.put(Answer { status: u16::from_be_bytes(*status), body_len: text.len() as u32, ..Answer::default() });
        self.out.put(text);
    }

    /// A read has found nothing. `key`: where it is to be named.
    fn miss(&mut self, key: &[u8]) {
        if self.opcode.is_quiet() {
            return;
        }
        if key.is_empty() || !self.opcode.names_key() {
            return self.error(Status::NotFound);
        }
        let len = key.len() as u16;
        self.put(Answer { status: Status::NotFound as u16, key_len: len, body_len: len.into(), ..Answer::default() });
        self.out.put(key);
    }

    /// A node's `VALUE` line and value.
    fn hit(&mut self, bytes: &Bytes) {
        // An outcome holds a whole reply.
        let Ok(Some(reply)) = parse_reply(bytes) else { return self.error(Status::Internal) };
        let ReplyKind::Value { key, flags, data, cas } = reply.kind else { return self.error(Status::Internal) };
        self.item(&Fields { key: bytes.slice(key), value: bytes.slice(data), flags, cas: cas.unwrap_or_default() });
    }

    fn item(&mut self, fields: &Fields) {
        let key: &[u8] = if self.opcode.names_key() { &fields.key } else { b"" };
        let value = match self.opcode.verb() {
            Some(Verb::Touch) => Bytes::new(),
            _ => fields.value.clone(),
        };
        self.put(Answer {
            extras_len: 4,
            key_len: key.len() as u16,
            body_len: (4 + key.len() + value.len()) as u32,
            cas: fields.cas,
            ..Answer::default()
        });
        self.out.put(&fields.flags.to_be_bytes());
        self.out.put(key);
        self.out.put_shared(value);
    }

    fn refused(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::TooLarge => self.error(Status::TooLarge),
            Refusal::Client(words) => self.body(Status::Invalid, words.as_bytes()),
            Refusal::NoMemory(words) => self.body(Status::OutOfMemory, words.as_bytes()),
            Refusal::Server(words) => self.body(Status::Internal, words.as_bytes()),
        }
    }

    /// A line of text, of a node or of the control plane.
    fn line(&mut self, bytes: &[u8]) {
        let line = bytes.trim_ascii_end();
        match line {
            b"OK" => self.done(0),
            b"CLIENT_ERROR cannot increment or decrement non-numeric value" => self.error(Status::NotNumeric),
            b"SERVER_ERROR object too large for cache" => self.error(Status::TooLarge),
            _ => {
                let (status, words) = if let Some(words) = line.strip_prefix(b"SERVER_ERROR ") {
                    let memory = words.to_ascii_lowercase().starts_with(b"out of memory");
                    (if memory { Status::OutOfMemory } else { Status::Internal }, words)
                } else if let Some(words) = line.strip_prefix(b"CLIENT_ERROR ") {
                    (Status::Invalid, words)
                } else {
                    return self.error(Status::Unknown);
                };
                self.body(status, words);
            }
        }
    }

    /// `STAT` lines, one answer each, and one without a name at the end.
    fn stats(&mut self, bytes: &[u8]) {
        if matches!(Line::parse(bytes), Line::Prefix(_)) {
            // `stats detail dump`, as one value.
            let name = b"detailed";
            let body_len = (name.len() + bytes.len()) as u32;
            self.put(Answer { key_len: name.len() as u16, body_len, ..Answer::default() });
            self.out.put(name);
            self.out.put(bytes);
            return self.put(Answer::default());
        }
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n').peekable();
        let is_list = |line: &&[u8]| match Line::parse(line) {
            Line::Stat(..) | Line::End => true,
            _ => *line == answer::RESET || *line == answer::OK,
        };
        if !lines.peek().is_some_and(is_list) {
            return match bytes.starts_with(b"SERVER_ERROR") {
                true => self.line(bytes),
                false => self.error(Status::NotFound),
            };
        }
        for line in lines {
            let Line::Stat(name, value) = Line::parse(line) else { continue };
            self.put(Answer {
                key_len: name.len() as u16,
                body_len: (name.len() + value.len()) as u32,
                ..Answer::default()
            });
            self.out.put(name);
            self.out.put(value);
        }
        self.put(Answer::default());
    }
}
