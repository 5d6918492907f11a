//! Where an answer of a server ends, whichever command it answers: for operators' questions the
//! form of the answer is not known beforehand.

use memchr::memchr;

use super::number::parse_u64;
use super::statistics::Line;

/// Longest value that is believed in, bytes: memcached's largest `-I`.
const VALUE_LEN_MAX: u64 = 1 << 30;

/// Looks for the end of one answer, which comes in pieces.
#[derive(Default, Debug)]
pub struct Whole {
    /// How much of it was looked at.
    seen: usize,
    /// `STAT` lines are followed by no `END`.
    unended: bool,
}

/// What follows a line of an answer.
pub(crate) enum Next {
    /// Another line.
    Line,
    /// A value of this many bytes, and then another line if there is one.
    Value {
        len: usize,
        last: bool,
    },
    Nothing,
}

impl Whole {
    /// Of the answer to this command, without its line end.
    pub fn answer_to(command: &str) -> Whole {
        // memcached 1.6.18 forgets the END of these two.
        let unended = matches!(command, "stats sizes_enable" | "stats sizes_disable");
        Whole { seen: 0, unended }
    }

    /// Whether a `STAT` line is the last one of the answer to this command, and no `END` follows.
    pub fn ends_with_stat(command: &str, line: &[u8]) -> bool {
        let is_last = || matches!(Whole::answer_to(command).follows(line.trim_ascii_end()), Next::Nothing);
        matches!(Line::parse(line), Line::Stat(..)) && is_last()
    }

    /// How long the answer is, once it is there. `input`: all that has come, from its beginning.
    pub fn len(&mut self, input: &[u8]) -> Option<usize> {
        loop {
            let rest = input.get(self.seen..)?;
            let line = &rest[..memchr(b'\n', rest)?];
            let end = self.seen + line.len() + 1;
            match self.follows(line.trim_ascii_end()) {
                Next::Line => self.seen = end,
                Next::Value { len, last: false } => self.seen = end + len,
                Next::Value { len, last: true } => return (input.len() >= end + len).then_some(end + len),
                Next::Nothing => return Some(end),
            }
        }
    }

    fn follows(&self, line: &[u8]) -> Next {
        match Line::parse(line) {
            Line::Stat(..) if self.unended && !line.ends_with(b"sizes_status error") => Next::Nothing,
            _ => next_after(line),
        }
    }
}

/// What follows a line, whichever command is answered. `line`: without its end.
pub(crate) fn next_after(line: &[u8]) -> Next {
    let mut words = line.split(|&byte| byte == b' ');
    let value = |word: Option<&[u8]>, last| match word.and_then(parse_u64) {
        Some(len @ ..=VALUE_LEN_MAX) => Next::Value { len: len as usize + 2, last },
        _ => Next::Nothing,
    };
    match words.next().unwrap_or_default() {
        _ if Line::parse(line).goes_on() => Next::Line,
        b"VALUE" => value(words.nth(2), false),
        b"VA" => value(words.next(), true),
        // Of keys that are listed: `lru_crawler mgdump`, and `metadump`.
        b"mg" => Next::Line,
        word if word.starts_with(b"key=") => Next::Line,
        _ => Next::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_memcached_ends_it() {
        for (command, answer) in [
            ("version", "VERSION 1.6.18\r\n"),
            ("stats slabs", "STAT active_slabs 0\r\nSTAT total_malloced 0\r\nEND\r\n"),
            ("stats reset", "RESET\r\n"),
            ("stats nosuch", "ERROR\r\n"),
            ("stats sizes", "STAT sizes_status disabled\r\nEND\r\n"),
            ("stats sizes_enable", "STAT sizes_status enabled\r\n"),
            ("stats sizes_enable", "STAT sizes_status error\r\nSTAT sizes_error no cas\r\n"),
            ("stats cachedump 1 0", "ITEM k [5 b; 0 s]\r\nEND\r\n"),
            ("stats detail dump", "PREFIX a get 1 hit 1 set 0 del 0\r\nEND\r\n"),
            ("get a b", "VALUE a 0 9\r\nEND\r\nEND\r\r\nVALUE b 0 0\r\n\r\nEND\r\n"),
            ("gets a", "VALUE a 7 1 12\r\nv\r\nEND\r\n"),
            ("mg a v", "VA 4 s4\r\nEN\r\n\r\n"),
            ("mg a", "HD\r\n"),
            ("mg a v", "VA \r\n"),
            ("get a", "VALUE a 0 99999999999\r\n"),
        ] {
            let mut whole = Whole::answer_to(command);
            for at in 0..answer.len() {
                assert_eq!(whole.len(&answer.as_bytes()[..at]), None, "{command}: {answer:?} up to {at}");
            }
            let last = answer.lines().last().unwrap_or_default();
            let unended = last.starts_with("STAT");
            assert_eq!(Whole::ends_with_stat(command, last.as_bytes()), unended, "{command}: {last}");
            let more = format!("{answer}END\r\n");
            assert_eq!(whole.len(more.as_bytes()), Some(answer.len()), "{command}: {answer:?}");
            assert_eq!(Whole::answer_to(command).len(more.as_bytes()), Some(answer.len()), "{command}: {answer:?}");
        }
    }
}
