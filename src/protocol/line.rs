//! Lines and words, cut as memcached cuts them.

use std::ops::Range;

use memchr::{memchr, memchr2};

use super::number::short_number;

/// Longest line that is no get of many keys, without its newline. memcached closes the connection
/// when more than so much has come without one; it may take more that comes in one piece, which no
/// client should count on.
pub(super) const LINE_LEN_MAX: usize = 2048;
/// A get of more bytes is taken in pieces of this many: a line of 1 MiB takes 0.8 to 7 ms to be
/// parsed, in which no other client is served.
pub(super) const LONG_FROM: usize = 32 * 1024;
/// Longest get of many keys that offsets are made for. memcached has no bound here, and long before
/// this one `--client-memory` has no room for it.
const GET_LEN_MAX: usize = 1 << 30;
/// memcached looks no further for the command's name when it has to decide whether a long line is a
/// get.
const LEADING_BLANKS_MAX: usize = 100;

/// What the buffer begins with.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Line {
    /// No newline yet.
    Incomplete,
    /// Longer than allowed. `len` is how much proves it.
    TooLong { len: usize },
    /// A whole line: `end` is where its text ends, `len` counts its newline too.
    Whole { end: usize, len: usize },
    /// A get that is there as a whole, to be taken in pieces.
    Long,
}

/// Finds the first line.
///
/// Its end is LF, or CR LF. A NUL ends the text earlier, as memcached handles lines as C strings.
pub(super) fn first_line(buf: &[u8]) -> Line {
    let window = &buf[..buf.len().min(GET_LEN_MAX + 1)];
    let (text_end, newline) = match memchr2(b'\n', 0, window) {
        Some(at) if window[at] == b'\n' => (at, Some(at)),
        Some(nul) => (nul, memchr(b'\n', &window[nul..]).map(|at| nul + at)),
        None => (window.len(), None),
    };
    let text_len = newline.unwrap_or(window.len());
    if text_len > LINE_LEN_MAX && !is_retrieval(buf) {
        return Line::TooLong { len: LINE_LEN_MAX + 1 };
    }
    let Some(newline) = newline else {
        return if text_len > GET_LEN_MAX { Line::TooLong { len: GET_LEN_MAX + 1 } } else { Line::Incomplete };
    };
    if newline >= LONG_FROM {
        return Line::Long;
    }
    let mut end = text_end;
    // memcached keeps the CR of an otherwise empty line; the answer is ERROR either way.
    if end == newline && end > 0 && buf[end - 1] == b'\r' {
        end -= 1;
    }
    Line::Whole { end, len: newline + 1 }
}

/// Whether a line of which the first `searched` bytes hold no end is [`Line::Incomplete`].
pub(super) fn goes_on(buf: &[u8], searched: usize) -> bool {
    let may_be_long = buf.len() <= LINE_LEN_MAX || buf.len() <= GET_LEN_MAX && is_retrieval(buf);
    may_be_long && memchr(b'\n', &buf[searched..]).is_none()
}

/// memcached lets only `get` and `gets` be long. `gat` and `gats` with many keys it takes or not as
/// they happen to arrive; here they are taken.
fn is_retrieval(buf: &[u8]) -> bool {
    let blanks = buf.iter().take_while(|&&byte| byte == b' ').count();
    let name = &buf[blanks..];
    blanks <= LEADING_BLANKS_MAX
        && [&b"get "[..], b"gets ", b"gat ", b"gats "].iter().any(|verb| name.starts_with(verb))
}

/// Where the first blank is. Words are short: what `memchr` does before it looks at the first byte
/// is more than all of this.
pub(super) fn find_blank(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(chunk) = text[at..].first_chunk::<8>() {
        if let Some(blank) = blank_in(chunk) {
            return Some(at + blank);
        }
        at += 8;
    }
    match text.last_chunk::<8>() {
        // Some of it once more: it costs less than byte by byte.
        Some(last) if at < text.len() => blank_in(last).map(|blank| text.len() - 8 + blank),
        Some(_) => None,
        None => text.iter().position(|&byte| byte == b' '),
    }
}

fn blank_in(bytes: &[u8; 8]) -> Option<usize> {
    const LOW: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = LOW << 7;
    // A blank's byte is zero now; borrowing sets the high bit of the first such byte, and at most
    // of bytes behind it.
    let bytes = u64::from_le_bytes(*bytes) ^ u64::from_le_bytes([b' '; 8]);
    let zeroes = bytes.wrapping_sub(LOW) & !bytes & HIGH;
    (zeroes != 0).then(|| zeroes.trailing_zeros() as usize / 8)
}

/// The first byte of 8 that is a blank or below it, a control byte so.
fn low_in(bytes: &[u8; 8]) -> Option<usize> {
    const LOW: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = LOW << 7;
    let bytes = u64::from_le_bytes(*bytes);
    // As above, with what is below 33 in the place of zero.
    let below = bytes.wrapping_sub(LOW * 33) & !bytes & HIGH;
    (below != 0).then(|| below.trailing_zeros() as usize / 8)
}

/// How many bytes come before the first blank or control byte. `None`: none is there, or it stands
/// among the last seven.
#[inline(always)]
pub(super) fn find_low(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        if let Some(low) = low_in(chunk) {
            return Some(at + low);
        }
        at += 8;
    }
    None
}

/// The words of a text from a place on, separated by blanks (and nothing else: a tab belongs to the
/// word).
#[derive(Clone)]
pub(super) struct Words<'a> {
    text: &'a [u8],
    pos: usize,
}

impl<'a> Words<'a> {
    pub(super) fn new(buf: &'a [u8], span: Range<usize>) -> Words<'a> {
        Words { text: &buf[..span.end], pos: span.start }
    }

    /// What is left, from the next word to the end of the last one; empty at the end when there is
    /// none.
    pub(super) fn rest(&self) -> Range<usize> {
        let end = self.text.len();
        let left = &self.text[self.pos..];
        match left.iter().position(|&byte| byte != b' ') {
            Some(skip) => {
                let trailing = left.iter().rev().take_while(|&&byte| byte == b' ').count();
                self.pos + skip..end - trailing
            }
            None => end..end,
        }
    }

    /// The next word and `N` numbers of at most nine digits behind it, where nothing else is left
    /// and one blank stands before each: most lines are written so, and word by word they cost four
    /// times as much.
    #[inline(always)]
    pub(super) fn word_and_numbers<const N: usize>(&self) -> Option<(Range<usize>, [u32; N])> {
        let behind_blank = |at: usize| self.text.get(at..)?.strip_prefix(b" ");
        let left = behind_blank(self.pos)?;
        let word = self.pos + 1..self.pos + 1 + find_blank(left).filter(|&len| len > 0)?;
        let (mut numbers, mut at) = ([0; N], word.end);
        for number in &mut numbers {
            let (value, len) = short_number(behind_blank(at)?)?;
            *number = value;
            at += 1 + len;
        }
        (at == self.text.len()).then_some((word, numbers))
    }
}

impl Iterator for Words<'_> {
    type Item = Range<usize>;

    #[inline(always)]
    fn next(&mut self) -> Option<Range<usize>> {
        let mut start = self.pos;
        while *self.text.get(start)? == b' ' {
            start += 1;
        }
        let left = &self.text[start..];
        self.pos = start + find_blank(left).unwrap_or(left.len());
        Some(start..self.pos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends() {
        for (buf, end, len) in [
            (&b"a\r\nb"[..], 1, 3),
            (b"a\n", 1, 2),
            (b"\n", 0, 1),
            (b"\r\n", 0, 2),
            (b"a\r\r\n", 2, 4),
            (b"a\0b\r\n", 1, 5),
            (b"a\r\0\n", 2, 4),
            (b"\0\0\n", 0, 3),
        ] {
            assert_eq!(first_line(buf), Line::Whole { end, len }, "{buf:?}");
        }
        assert_eq!(first_line(b""), Line::Incomplete);
        assert_eq!(first_line(b"a\0b"), Line::Incomplete);
    }

    #[test]
    fn only_gets_may_be_long() {
        let line = |start: &str, len: usize| [start.as_bytes(), &vec![b'x'; len - start.len()]].concat();
        assert_eq!(first_line(&line("set ", 2048)), Line::Incomplete);
        assert_eq!(first_line(&line("set ", 2049)), Line::TooLong { len: 2049 });
        let mut ended = line("set ", 2049);
        ended.push(b'\n');
        assert_eq!(first_line(&ended), Line::TooLong { len: 2049 });
        for start in ["get ", "gets ", "   get ", "gat 0 ", "gats 0 "] {
            for (len, long) in [(2049, false), (LONG_FROM - 2, false), (LONG_FROM - 1, true), (5 << 20, true)] {
                assert_eq!(first_line(&line(start, len)), Line::Incomplete);
                let mut ended = line(start, len);
                ended.extend_from_slice(b"\r\n");
                let whole = Line::Whole { end: len, len: len + 2 };
                assert_eq!(first_line(&ended), if long { Line::Long } else { whole }, "{start} {len}");
            }
        }
        assert_eq!(first_line(&line(&format!("{:101}get ", ""), 3000)), Line::TooLong { len: 2049 });
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_judged_as_one_that_comes_whole() {
        for start in ["get ", "set ", "x", "get \0"] {
            let mut line = start.as_bytes().to_vec();
            for piece in [1, 5, 2040, 2, 1, 1, 3000, 1 << 20, 1] {
                let searched = line.len();
                line.resize(searched + piece, b'x');
                let incomplete = |line: &[u8]| first_line(line) == Line::Incomplete;
                if !incomplete(&line[..searched]) {
                    break;
                }
                assert_eq!(goes_on(&line, searched), incomplete(&line), "{start} {searched} + {piece}");
                for at in [searched, line.len() - 1] {
                    let mut ended = line.clone();
                    ended[at] = b'\n';
                    assert!(!goes_on(&ended, searched));
                }
            }
        }
    }

    #[test]
    fn the_first_blank_is_found_wherever_it_is() {
        // Bytes that a borrow in the word-wise search could take for a blank.
        for other in [b'!', 0x1f, b'x', 0, 0xff, 0xa0, 0xa1] {
            for len in 0..40 {
                let mut text = vec![other; len];
                assert_eq!(find_blank(&text), None, "{other} * {len}");
                for at in (0..len).rev() {
                    text[at] = b' ';
                    assert_eq!(find_blank(&text), Some(at), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn words_are_cut_at_blanks_only() {
        let buf = b"  set a\tb   5 ";
        let mut words = Words::new(buf, 0..buf.len());
        assert_eq!(words.next(), Some(2..5));
        assert_eq!(words.rest(), 6..13);
        let rest: Vec<&[u8]> = words.clone().map(|word| &buf[word]).collect();
        assert_eq!(rest, [&b"a\tb"[..], b"5"]);
        assert_eq!(Words::new(buf, 13..14).next(), None);
        assert!(Words::new(buf, 13..14).rest().is_empty());
    }
}
