//! Lists of statistics as memcached writes them: a line for each name with its value, and an end.
//! Those of servers are read here, and those of the proxy written.

use std::fmt::{Display, Write as _};

use bytes::Bytes;

use super::{answer, spelled};

const STAT: &str = "STAT ";
const PREFIX: &str = "PREFIX ";
const ITEM: &str = "ITEM ";

/// Names and their values, in the order of the list.
pub(crate) type Stats = Vec<(String, String)>;

/// A list that is being written.
#[derive(Default)]
pub(crate) struct Written(String);

impl Written {
    pub(crate) fn put(&mut self, name: impl Display, value: impl Display) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{STAT}{name} {value}\r\n");
    }

    /// What was counted of a prefix of keys, for `stats detail dump`.
    pub(crate) fn put_prefix(&mut self, name: impl Display, counts: impl Display) {
        let _ = write!(self.0, "{PREFIX}{name} {counts}\r\n");
    }

    /// Its lines, and what stands behind them: the list's end, or why it is not whole.
    pub(crate) fn ended_by(self, end: &[u8]) -> Bytes {
        let mut list = spelled::bytes(&self.0);
        list.extend_from_slice(end);
        Bytes::from(list)
    }

    pub(crate) fn end(self) -> Bytes {
        self.ended_by(answer::END)
    }
}

/// What a line says, which may have its line end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Line<'a> {
    /// A name and its value, which may be empty.
    Stat(&'a [u8], &'a [u8]),
    /// Of `stats detail dump`: a prefix of keys, and what was counted of it.
    Prefix(&'a [u8]),
    /// Of `stats cachedump`: a key, and what is known of its item.
    Item(&'a [u8]),
    End,
    /// It belongs to no list.
    Other,
}

impl Line<'_> {
    pub(crate) fn parse(line: &[u8]) -> Line<'_> {
        let line = line.strip_suffix(b"\n").map_or(line, |line| line.strip_suffix(b"\r").unwrap_or(line));
        if let Some(stat) = line.strip_prefix(STAT.as_bytes()) {
            let blank = memchr::memchr(b' ', stat).unwrap_or(stat.len());
            return Line::Stat(&stat[..blank], stat.get(blank + 1..).unwrap_or_default());
        }
        if let Some(prefix) = line.strip_prefix(PREFIX.as_bytes()) {
            return Line::Prefix(prefix);
        }
        match line.strip_prefix(ITEM.as_bytes()) {
            Some(item) => Line::Item(item),
            None if line == b"END" => Line::End,
            None => Line::Other,
        }
    }

    /// Whether it stands in a list, and is not its end.
    pub(crate) fn goes_on(self) -> bool {
        matches!(self, Line::Stat(..) | Line::Prefix(_) | Line::Item(_))
    }
}

/// A line without the word that memcached marks a statistic with.
pub(crate) fn for_people(line: &[u8]) -> &[u8] {
    line.strip_prefix(STAT.as_bytes()).unwrap_or(line)
}

/// The names and values of an answer.
pub(crate) fn read(answer: &[u8]) -> Stats {
    let stat = |line| match Line::parse(line) {
        Line::Stat(name, value) => Some((spelled::text(name), spelled::text(value))),
        _ => None,
    };
    answer.split_inclusive(|&byte| byte == b'\n').filter_map(stat).collect()
}

/// What stands under a name, if it is a number.
pub(crate) fn number(stats: &[(String, String)], name: &str) -> Option<u64> {
    stats.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut list = Written::default();
        list.put("pid", 7);
        list.put("a:state", "two words");
        list.put("empty", "");
        let list = list.end();
        assert_eq!(list, "STAT pid 7\r\nSTAT a:state two words\r\nSTAT empty \r\nEND\r\n");
        let stats = read(&list);
        let read: Vec<_> = stats.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(read, [("pid", "7"), ("a:state", "two words"), ("empty", "")]);
        assert_eq!((number(&stats, "pid"), number(&stats, "a:state"), number(&stats, "a")), (Some(7), None, None));
        let mut prefixes = Written::default();
        prefixes.put_prefix("a", "get 1");
        assert_eq!(prefixes.ended_by(b"SERVER_ERROR\r\n"), "PREFIX a get 1\r\nSERVER_ERROR\r\n");
    }

    #[test]
    fn a_line_is_known_by_its_first_word() {
        for (line, said) in [
            (&b"STAT a 1\r\n"[..], Line::Stat(b"a", b"1")),
            (b"STAT a b c", Line::Stat(b"a", b"b c")),
            (b"STAT a\r\n", Line::Stat(b"a", b"")),
            (b"PREFIX a get 1\r\n", Line::Prefix(b"a get 1")),
            (b"ITEM k\r [5 b; 0 s]\r\n", Line::Item(b"k\r [5 b; 0 s]")),
            (b"END\r\n", Line::End),
            (b"END", Line::End),
            (b"STATS a 1\r\n", Line::Other),
            (b"STAT", Line::Other),
            (b"ERROR\r\n", Line::Other),
            (b"", Line::Other),
        ] {
            assert_eq!(Line::parse(line), said, "{:?}", String::from_utf8_lossy(line));
        }
        let known = [Line::Stat(b"a", b"1"), Line::Prefix(b""), Line::Item(b""), Line::End, Line::Other];
        assert_eq!(known.map(Line::goes_on), [true, true, true, false, false]);
    }
}
