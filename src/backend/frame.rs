//! Answers as they lie in the read buffer: found without copying, handed out as slices of it.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

/// Longest answer line taken from a node, in bytes: a meta answer echoes at most a 250-byte key and a few numbers.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// Longest value taken from a node, in bytes. Servers run with `-I` up to 1 GB; beyond this it is taken for lost framing.
const MAX_VALUE_BYTES: usize = 256 * 1024 * 1024;

/// One answer: its line, and the data block where the line announces one (`VA`).
#[derive(Debug)]
pub struct Frame<'a> {
    chunk: &'a Bytes,
    span: &'a Span,
    read_at: Instant,
}

impl Frame<'_> {
    /// When it was read, and so a moment after the node has answered: taken once for all that were read together.
    pub fn read_at(&self) -> Instant {
        self.read_at
    }

    /// The line, without its end.
    pub fn line(&self) -> &[u8] {
        &self.chunk[self.span.line.clone()]
    }

    /// The data block. It shares the read buffer, which stays allocated as long as the value is held.
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

/// Finds at most `limit` whole frames at the start of `input`, pushes where they lie, and returns how many bytes they take.
pub(super) fn scan(input: &[u8], limit: usize, spans: &mut Vec<Span>) -> Result<usize, String> {
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
            let size = leading_size(announced)?;
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

/// How many bytes more the buffer should take for the frame that is cut off at its end: large values in few reads.
pub(super) fn missing(input: &BytesMut) -> usize {
    let Some(announced) = input.strip_prefix(b"VA ") else { return 0 };
    let Some(end) = memchr::memchr(b'\n', input) else { return 0 };
    match leading_size(announced) {
        Ok(size) => (end + 1 + size + 2).saturating_sub(input.len()),
        Err(_) => 0,
    }
}

fn leading_size(text: &[u8]) -> Result<usize, String> {
    let digits = text.split(|&b| b == b' ').next().unwrap_or_default();
    let size = std::str::from_utf8(digits).ok().and_then(|s| s.parse::<usize>().ok());
    size.filter(|&n| n <= MAX_VALUE_BYTES)
        .ok_or_else(|| format!("a value of {} bytes", String::from_utf8_lossy(digits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &'static [u8], limit: usize) -> (usize, Vec<(String, Option<Bytes>)>) {
        let mut spans = Vec::new();
        let used = scan(input, limit, &mut spans).unwrap();
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
        assert!(scan(b"VA 2 f0\r\nabcd\r\n", 1, &mut spans).is_err());
        assert!(scan(b"VA -1\r\n\r\n", 1, &mut spans).is_err());
        assert!(scan(b"VA 99999999999999999999\r\n", 1, &mut spans).is_err());
        assert!(scan(&[b'x'; MAX_LINE_BYTES + 1], 1, &mut spans).is_err());
    }
}
