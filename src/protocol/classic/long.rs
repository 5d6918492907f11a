//! Gets of very many keys: a line that is taken in pieces, so that no turn has much to do for it.
//! memcached sets no bound to such a line (a client asks for 50,000 keys of 100 bytes).

use memchr::{memchr, memrchr};

use super::super::line::{LONG_FROM, Words};
use super::super::number::client_i32;
use super::super::request::{Keyed, Keys, Kind, Parsed, Piece};
use super::super::{KEY_LEN_MAX, answer};

/// What is left of a line of which a piece was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongLine {
    kind: Kind,
    exptime: i64,
    /// Nothing that counts, up to its end: a key was wrong, or a NUL has ended the text.
    ignored: bool,
}

impl LongLine {
    /// The first piece of a get that has arrived whole.
    pub(super) fn begin(buf: &[u8]) -> Parsed {
        let mut words = Words::new(buf, 0..LONG_FROM.min(buf.len()));
        let kind = match words.next().map_or(&b""[..], |name| &buf[name]) {
            b"gets" => Kind::Gets,
            b"gat" => Kind::Gat,
            b"gats" => Kind::Gats,
            _ => Kind::Get,
        };
        let mut line = LongLine { kind, exptime: 0, ignored: false };
        if matches!(kind, Kind::Gat | Kind::Gats) {
            match words.next().map(|word| client_i32(&buf[word])) {
                Some(Some(exptime)) => line.exptime = exptime.into(),
                Some(None) => return LongLine { ignored: true, ..line }.piece(buf, 0, Some(answer::BAD_EXPTIME)),
                None => return LongLine { ignored: true, ..line }.piece(buf, 0, Some(answer::ERROR)),
            }
        }
        line.piece(buf, words.rest().start, None)
    }

    /// The next piece.
    pub fn next(self, buf: &[u8]) -> Parsed {
        self.piece(buf, 0, None)
    }

    /// The keys from `from` on. The whole line is there.
    fn piece(self, buf: &[u8], from: usize, mut refused: Option<&'static [u8]>) -> Parsed {
        let window = &buf[..buf.len().min(LONG_FROM)];
        let newline = memchr(b'\n', window);
        let text = &window[..newline.unwrap_or(window.len())];
        let nul = if self.ignored { Some(from) } else { memchr(0, &text[from..]).map(|at| from + at) };
        let (end, len) = match (nul, newline) {
            (Some(nul), None) => (nul, text.len()),
            (Some(nul), Some(newline)) => (nul, newline + 1),
            (None, Some(newline)) => (text.strip_suffix(b"\r").unwrap_or(text).len().max(from), newline + 1),
            // A word that goes on belongs to the next piece; one without end is no key.
            (None, None) => match memrchr(b' ', &text[from..]) {
                Some(blank) => (from + blank, from + blank + 1),
                None if from == text.len() => (from, from),
                None => {
                    refused = Some(answer::BAD_FORMAT);
                    (from, text.len())
                }
            },
        };
        let mut keys = Keys { span: from..from, count: 0 };
        for key in Words::new(buf, from..end) {
            if key.len() > KEY_LEN_MAX {
                refused = Some(answer::BAD_FORMAT);
                break;
            }
            keys.span = if keys.count == 0 { key } else { keys.span.start..key.end };
            keys.count += 1;
        }
        if refused.is_some() {
            keys = Keys { span: from..from, count: 0 };
        }
        let ignored = nul.is_some() || refused.is_some();
        let rest = newline.is_none().then_some(LongLine { ignored, ..self });
        let request = Keyed { exptime: self.exptime, ..Keyed::new(self.kind, keys) };
        Parsed::Piece(Box::new(Piece { request, refused, len, rest }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use crate::protocol::request::Limits;

    /// All keys of a line and what else is said, and how many pieces it took.
    fn taken(line: &[u8]) -> (Vec<Vec<u8>>, Vec<&'static [u8]>, usize) {
        let (mut keys, mut said, mut pieces) = (Vec::new(), Vec::new(), 0);
        let mut rest = line;
        let mut parsed = parse(rest, &Limits::default());
        loop {
            let Parsed::Piece(piece) = parsed else { panic!("{parsed:?}") };
            let Piece { request, refused, len, rest: line } = *piece;
            assert!(len <= LONG_FROM);
            pieces += 1;
            keys.extend(request.keys.iter(rest).map(|key| rest[key].to_vec()));
            said.extend(refused);
            rest = &rest[len..];
            match line {
                Some(line) => parsed = line.next(rest),
                None => {
                    assert_eq!(rest, b"");
                    return (keys, said, pieces);
                }
            }
        }
    }

    #[test]
    fn a_long_line_has_all_its_keys_wherever_it_is_cut() {
        for (count, width) in [(20_000, 5), (5_000, 250), (300, 120), (40_000, 1)] {
            let keys: Vec<Vec<u8>> = (0..count).map(|i| format!("{i:0>width$}").into_bytes()).collect();
            for (begin, end) in [("get ", "\r\n"), ("gats 5  ", "\n"), ("  gets ", "  \r\n"), ("get ", "\0a b\r\n")] {
                let line = [begin.as_bytes(), &keys.join(&b' '), end.as_bytes()].concat();
                if line.len() <= LONG_FROM {
                    continue;
                }
                let (found, said, pieces) = taken(&line);
                assert_eq!((found.len(), said.len()), (keys.len(), 0), "{begin}{width}");
                assert!(found == keys && pieces >= line.len() / LONG_FROM, "{begin}{width}");
                // Before its end there is nothing to begin.
                for len in [line.len() - 1, LONG_FROM + 1, LONG_FROM] {
                    assert_eq!(parse(&line[..len], &Limits::default()), Parsed::Incomplete { need: 0 });
                }
            }
        }
    }

    #[test]
    fn a_wrong_key_is_refused_once_and_the_line_is_over_where_it_ends() {
        let keys = "key ".repeat(20_000);
        for long in [251, 2 * LONG_FROM] {
            let line = format!("get {keys}{} {keys}\r\n", "x".repeat(long));
            let (found, said, _) = taken(line.as_bytes());
            assert_eq!(said, [answer::BAD_FORMAT], "{long}");
            assert!(found.len() <= 20_000 && found.iter().all(|key| key == b"key"), "{}", found.len());
        }
        let (found, said, _) = taken(format!("gat x {keys}\r\n").as_bytes());
        assert_eq!((found.len(), said), (0, vec![answer::BAD_EXPTIME]));
        let (found, said, _) = taken(format!("get {}\r\n", "x".repeat(2 * LONG_FROM)).as_bytes());
        assert_eq!((found.len(), said), (0, vec![answer::BAD_FORMAT]));
    }
}
