//! Where answers end, however they come. PURE.

use crate::protocol::binary::{HEADER_LEN, Header, MAGIC_RESPONSE, Opcode};
use crate::protocol::number::parse_u64;
use crate::protocol::whole::{Next, next_after};

/// Where answers end.
#[derive(Debug, Default)]
pub(super) struct Answers {
    at: At,
    /// Something of an answer has come that is not over.
    begun: bool,
}

#[derive(Debug)]
enum At {
    /// Within a line, of which this has come.
    Line(Vec<u8>),
    /// So many bytes before the end of a value; and whether its answer ends there.
    Value { left: usize, end: Option<End> },
    /// Within the head of an answer in the binary protocol.
    Header(Vec<u8>),
}

impl Default for At {
    fn default() -> At {
        At::Line(Vec::new())
    }
}

/// The end of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Text(Said),
    NoOp,
    Binary { opcode: Opcode, opaque: [u8; 4] },
}

/// What an answer's words tell of what it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said {
    /// No quiet command (`q`) is answered so.
    Aloud,
    /// `HD` or `VA`: of quiet commands `mg` alone is answered so.
    Found,
    /// Any may be answered so: an error, say.
    Other,
}

/// How much of a line is looked at: a key has 250 bytes, and four numbers follow.
const HEAD_MAX: usize = 512;

impl Answers {
    /// Whether something of an answer has come, and not all.
    pub(super) fn is_begun(&self) -> bool {
        self.begun
    }

    /// Whether what has come of an answer may be the beginning of one to a no-op.
    pub(super) fn may_be_no_op(&self) -> bool {
        match &self.at {
            At::Line(head) => b"MN\r\n".starts_with(head),
            At::Header(_) => true,
            At::Value { .. } => false,
        }
    }

    /// Takes what has come up to the end of an answer, or all. Returns how many bytes that are.
    pub(super) fn take(&mut self, input: &[u8]) -> (usize, Option<End>) {
        let mut taken = 0;
        while taken < input.len() {
            let rest = &input[taken..];
            self.begun = true;
            match &mut self.at {
                At::Line(head) if head.is_empty() && rest[0] == MAGIC_RESPONSE => self.at = At::Header(Vec::new()),
                At::Line(head) => {
                    let end = memchr::memchr(b'\n', rest).map(|end| end + 1);
                    let piece = &rest[..end.unwrap_or(rest.len())];
                    head.extend_from_slice(&piece[..piece.len().min(HEAD_MAX - head.len().min(HEAD_MAX))]);
                    taken += piece.len();
                    if end.is_some() {
                        let (at, end) = after(head);
                        self.at = at;
                        if end.is_some() {
                            self.begun = false;
                            return (taken, end);
                        }
                    }
                }
                At::Value { left, end } => {
                    let n = rest.len().min(*left);
                    (taken, *left) = (taken + n, *left - n);
                    if *left == 0 {
                        let end = *end;
                        self.at = At::default();
                        if end.is_some() {
                            self.begun = false;
                            return (taken, end);
                        }
                    }
                }
                At::Header(head) => {
                    let n = rest.len().min(HEADER_LEN - head.len());
                    head.extend_from_slice(&rest[..n]);
                    taken += n;
                    let Some(head) = head.first_chunk::<HEADER_LEN>() else { continue };
                    let Header { opcode, key_len, body_len, opaque, .. } = Header::read(head);
                    // Of statistics the last answer alone has no key.
                    let more = opcode.is_stat() && key_len > 0;
                    let end = (!more).then_some(End::Binary { opcode, opaque });
                    self.at = if body_len > 0 { At::Value { left: body_len, end } } else { At::default() };
                    if body_len == 0 && end.is_some() {
                        self.begun = false;
                        return (taken, end);
                    }
                }
            }
        }
        (taken, None)
    }
}

/// What follows a line, and what is over with it.
fn after(line: &[u8]) -> (At, Option<End>) {
    let line = line.trim_ascii_end();
    match next_after(line) {
        Next::Line => (At::default(), None),
        Next::Value { len, last } => (At::Value { left: len, end: last.then_some(End::Text(Said::Found)) }, None),
        Next::Nothing if first_word(line) == b"MN" => (At::default(), Some(End::NoOp)),
        Next::Nothing => (At::default(), Some(End::Text(Said::by(line)))),
    }
}

fn first_word(line: &[u8]) -> &[u8] {
    line.split(u8::is_ascii_whitespace).next().unwrap_or_default()
}

impl Said {
    /// By the last line of an answer that ends with it.
    fn by(line: &[u8]) -> Said {
        match first_word(line) {
            b"HD" => Said::Found,
            b"END" | b"STORED" | b"NOT_STORED" | b"EXISTS" | b"NOT_FOUND" | b"DELETED" | b"TOUCHED" | b"OK"
            | b"VERSION" | b"EN" => Said::Aloud,
            number if parse_u64(number).is_some() => Said::Aloud,
            _ => Said::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However they are cut.
    #[test]
    fn answers_end_where_memcached_ends_them() {
        let answers: [&[u8]; 12] = [
            b"VALUE a 0 7\r\nx\r\nEND\r\r\nVALUE b 0 0 9\r\n\r\nEND\r\n",
            b"END\r\n",
            b"VA 5 t-1\r\nHD\r\n1\r\n",
            b"HD\r\n",
            b"STORED\r\n",
            b"STAT a 1\r\nSTAT b 2\r\nEND\r\n",
            b"key=a exp=1\r\nkey=b exp=2\r\nEND\r\n",
            b"mg a\r\nmg b\r\nEN\r\n",
            b"ITEM a [5 b; 0 s]\r\nEND\r\n",
            b"SERVER_ERROR it is late\r\n",
            b"12\r\n",
            b"EN\r\n",
        ];
        let all = answers.concat();
        for size in 1..all.len() {
            let (mut parser, mut ends, mut seen) = (Answers::default(), Vec::new(), 0);
            for piece in all.chunks(size) {
                let mut piece = piece;
                while !piece.is_empty() {
                    let (taken, end) = parser.take(piece);
                    (seen, piece) = (seen + taken, &piece[taken..]);
                    if let Some(end) = end {
                        assert!(matches!(end, End::Text(_)) && !parser.is_begun());
                        ends.push(seen);
                    }
                }
            }
            let wanted = answers.iter().scan(0, |at, answer| {
                *at += answer.len();
                Some(*at)
            });
            assert_eq!(ends, wanted.collect::<Vec<_>>(), "in pieces of {size}");
        }
    }

    #[test]
    fn binary_answers_are_told_apart_by_their_names() {
        let answer = |code: u8, key: u8, body: &[u8], opaque: u8| {
            let mut packet = vec![0; 24];
            (packet[0], packet[1], packet[3], packet[11], packet[15]) = (0x81, code, key, body.len() as u8, opaque);
            packet.extend_from_slice(body);
            packet
        };
        let all = [answer(0x10, 1, b"ab", 1), answer(0x10, 0, b"", 1), answer(0x00, 0, b"\x81\n", 2)].concat();
        for size in 1..=all.len() {
            let (mut parser, mut ends) = (Answers::default(), Vec::new());
            for mut piece in all.chunks(size) {
                while !piece.is_empty() {
                    let (taken, end) = parser.take(piece);
                    piece = &piece[taken..];
                    ends.extend(end);
                }
            }
            let named = |code, last| End::Binary { opcode: Opcode(code), opaque: [0, 0, 0, last] };
            assert_eq!(ends, [named(0x10, 1), named(0, 2)], "in pieces of {size}");
            assert!(!parser.is_begun());
        }
    }
}
