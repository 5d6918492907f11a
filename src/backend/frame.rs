//! Answers as they lie in the read buffer: found without copying, handed out as slices of it.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

/// Longest answer line taken from a node, in bytes: a meta answer echoes at most a 250-byte key and
/// a few numbers.
const MAX_LINE_BYTES: usize = 8 * 1024;

/// One answer: its line, and the data block where the line announces one (`VA`).
#[derive(Debug)]
pub struct Frame<'a> {
    chunk: &'a Bytes,
    span: &'a Span,
    read_at: Instant,
}

impl Frame<'_> {
    /// When it was read, and so a moment after the node has answered: taken once for all that were
    /// read together.
    pub fn read_at(&self) -> Instant {
        self.read_at
    }

    /// The line, without its end.
    pub fn line(&self) -> &[u8] {
        &self.chunk[self.span.line.clone()]
    }

    /// The data block. It shares the read buffer, which stays allocated as long as the value is
    /// held.
    pub fn data(&self) -> Option<Bytes> {
        self.span.data.clone().map(|range| self.chunk.slice(range))
    }
}

/// Where a frame lies within the bytes that [`scan`] saw.
#[derive(Debug)]
pub(super) struct Span {
    line: Range<usize>,
    data: Option<Range<usize>>,
}

impl Span {
    pub(super) fn frame<'a>(&'a self, chunk: &'a Bytes, read_at: Instant) -> Frame<'a> {
        Frame { chunk, span: self, read_at }
    }
}

/// Finds at most `limit` whole frames at the start of `input`, pushes where they lie, and returns
/// how many bytes they take. A value of more than `value_max` bytes is taken for lost framing.
pub(super) fn scan(input: &[u8], limit: usize, value_max: usize, spans: &mut Vec<Span>) -> Result<usize, String> {
    let mut at = 0;
    for _ in 0..limit {
        let rest = &input[at..];
        let Some(end) = memchr::memchr(b'\n', rest) else {
            if rest.len() > MAX_LINE_BYTES {
                return Err("an answer without an end of line".to_owned());
            }
            break;
        };
        let line_end = if end > 0 && rest[end - 1] == b'\r' { end - 1 } else { end };
        let line = at..at + line_end;
        let mut next = at + end + 1;
        let mut data = None;
        if let Some(announced) = input[line.clone()].strip_prefix(b"VA ") {
            let size = leading_size(announced, value_max)?;
            let stop = next + size;
            if input.len() < stop + 2 {
                break;
            }
            if &input[stop..stop + 2] != b"\r\n" {
                return Err("a value that does not end where it was announced to".to_owned());
            }
            data = Some(next..stop);
            next = stop + 2;
        }
        spans.push(Span { line, data });
        at = next;
    }
    Ok(at)
}

/// How many bytes more the buffer should take for the frame that is cut off at its end: large
/// values in few reads.
pub(super) fn missing(input: &BytesMut, value_max: usize) -> usize {
    let Some(announced) = input.strip_prefix(b"VA ") else { return 0 };
    let Some(end) = memchr::memchr(b'\n', input) else { return 0 };
    match leading_size(announced, value_max) {
        Ok(size) => (end + 1 + size + 2).saturating_sub(input.len()),
        Err(_) => 0,
    }
}

fn leading_size(text: &[u8], value_max: usize) -> Result<usize, String> {
    let digits = text.split(|&b| b == b' ').next().unwrap_or_default();
    let size = std::str::from_utf8(digits).ok().and_then(|s| s.parse::<usize>().ok());
    size.filter(|&n| n <= value_max).ok_or_else(|| {
        let said = String::from_utf8_lossy(&digits[..digits.len().min(32)]);
        format!("a value of {said} bytes, where {value_max} are the most")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &'static [u8], limit: usize) -> (usize, Vec<(String, Option<Bytes>)>) {
        let mut spans = Vec::new();
        let used = scan(input, limit, 9, &mut spans).unwrap();
        let chunk = Bytes::from_static(input);
        let found = spans.iter().map(|s| s.frame(&chunk, Instant::now()));
        (used, found.map(|f| (String::from_utf8_lossy(f.line()).into_owned(), f.data())).collect())
    }

    #[test]
    fn finds_whole_frames_only() {
        let (used, found) = lines(b"HD c1\r\nVA 4 f0\r\na\r\nb\r\nEN\r\nVA 9 f0\r\nabc", 9);
        assert_eq!(used, 7 + 9 + 6 + 4);
        assert_eq!(found[1], ("VA 4 f0".to_owned(), Some(Bytes::from_static(b"a\r\nb"))));
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn stops_at_the_number_owed() {
        assert_eq!(lines(b"MN\r\nMN\r\n", 1).0, 4);
    }

    #[test]
    fn lost_framing_is_an_error_and_never_a_panic() {
        let mut spans = Vec::new();
        assert!(scan(b"VA 2 f0\r\nabcd\r\n", 1, 9, &mut spans).is_err());
        assert!(scan(b"VA -1\r\n\r\n", 1, 9, &mut spans).is_err());
        assert!(scan(b"VA 99999999999999999999\r\n", 1, usize::MAX, &mut spans).is_err());
        assert!(scan(&[b'x'; MAX_LINE_BYTES + 1], 1, 9, &mut spans).is_err());
    }

    /// What a server says must not make the proxy ask for more memory than that server's items can
    /// take.
    #[test]
    fn a_value_larger_than_the_server_stores_is_lost_framing() {
        let mut spans = Vec::new();
        assert_eq!(scan(b"VA 9 f0\r\nab", 1, 9, &mut spans), Ok(0));
        assert_eq!(missing(&BytesMut::from(&b"VA 9 f0\r\nab"[..]), 9), 9);
        let error = scan(b"VA 10 f0\r\nab", 1, 9, &mut spans).unwrap_err();
        assert_eq!(error, "a value of 10 bytes, where 9 are the most");
        assert_eq!(missing(&BytesMut::from(&b"VA 10 f0\r\nab"[..]), 9), 0);
    }
}
