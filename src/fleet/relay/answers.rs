//! Where answers end, however they come. PURE.

use super::requests::opcode;

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
    Binary { opcode: u8, opaque: [u8; 4] },
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
                At::Line(head) if head.is_empty() && rest[0] == 0x81 => self.at = At::Header(Vec::new()),
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
                    let n = rest.len().min(24 - head.len());
                    head.extend_from_slice(&rest[..n]);
                    taken += n;
                    let [_, opcode, k0, k1, _, _, _, _, b0, b1, b2, b3, o0, o1, o2, o3, ..] = head[..] else {
                        continue;
                    };
                    if head.len() < 24 {
                        continue;
                    }
                    let body = u32::from_be_bytes([b0, b1, b2, b3]) as usize;
                    let more = opcode == opcode::STAT && (k0, k1) != (0, 0);
                    let end = (!more).then_some(End::Binary { opcode, opaque: [o0, o1, o2, o3] });
                    self.at = if body > 0 { At::Value { left: body, end } } else { At::default() };
                    if body == 0 && end.is_some() {
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
    let text = String::from_utf8_lossy(line);
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let value = |at: usize, end| {
        let length = words.get(at).and_then(|length| length.parse::<usize>().ok());
        (length.map_or_else(At::default, |length| At::Value { left: length + 2, end }), None)
    };
    match words.first().copied().unwrap_or_default() {
        "VALUE" => value(3, None),
        "VA" => value(1, Some(End::Text(Said::Found))),
        "STAT" | "ITEM" | "PREFIX" | "mg" => (At::default(), None),
        word if word.starts_with("key=") => (At::default(), None),
        "MN" => (At::default(), Some(End::NoOp)),
        "HD" => (At::default(), Some(End::Text(Said::Found))),
        "END" | "STORED" | "NOT_STORED" | "EXISTS" | "NOT_FOUND" | "DELETED" | "TOUCHED" | "OK" | "VERSION" | "EN" => {
            (At::default(), Some(End::Text(Said::Aloud)))
        }
        number if number.parse::<u64>().is_ok() => (At::default(), Some(End::Text(Said::Aloud))),
        _ => (At::default(), Some(End::Text(Said::Other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However they are cut.
    #[test]
    fn answers_end_where_memcached_ends_them() {
        let answers: [&[u8]; 10] = [
            b"VALUE a 0 7\r\nx\r\nEND\r\r\nVALUE b 0 0 9\r\n\r\nEND\r\n",
            b"END\r\n",
            b"VA 5 t-1\r\nHD\r\n1\r\n",
            b"HD\r\n",
            b"STORED\r\n",
            b"STAT a 1\r\nSTAT b 2\r\nEND\r\n",
            b"key=a exp=1\r\nkey=b exp=2\r\nEND\r\n",
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
            let named = |opcode, last| End::Binary { opcode, opaque: [0, 0, 0, last] };
            assert_eq!(ends, [named(0x10, 1), named(0, 2)], "in pieces of {size}");
            assert!(!parser.is_begun());
        }
    }
}
