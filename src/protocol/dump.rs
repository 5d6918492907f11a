//! What a node answers to `lru_crawler metadump`: a line for each key, and how the listing ends.

use super::KEY_LEN_MAX;

/// Which keys a client wants to be listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Classes {
    All,
    /// One bit each.
    Some(u64),
}

impl Classes {
    /// `all`, `hash`, or classes with commas between them.
    pub fn parse(text: &str) -> Option<Classes> {
        const CLASSES: u32 = 64;
        if matches!(text, "all" | "hash") {
            return Some(Classes::All);
        }
        let mut classes = 0;
        for class in text.split(',').filter(|class| !class.is_empty()) {
            let class = class.parse().ok().filter(|class| (1..CLASSES).contains(class))?;
            classes |= 1 << class;
        }
        Some(Classes::Some(classes))
    }

    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        *self == Classes::Some(0)
    }

    /// Whether a line is of one of them.
    pub fn has(&self, line: &[u8]) -> bool {
        let Classes::Some(classes) = self else { return true };
        // Behind the key, where it cannot be part of that: its blanks are written as %20.
        let class = memchr::memmem::find(line, b" cls=").map(|at| &line[at + 5..]);
        let class = class.and_then(|rest| number(rest.split(|&byte| byte == b' ').next()?));
        class.is_some_and(|class| class < 64 && classes & 1 << class != 0)
    }
}

/// A line of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    /// A key, which was decoded into the buffer that was given.
    Key {
        /// Bytes of the whole item.
        size: u32,
        /// It has no cas id (`-C`).
        blind: bool,
    },
    /// The listing begins.
    Begun,
    /// It is complete; or there are no items at all.
    End,
    /// Another crawl is under way, or the hash table is growing: that may also stand in for the end
    /// after part of the keys.
    Busy,
    /// The command is understood, the word behind `metadump` is not.
    UnknownMode,
    /// An error: the crawler is off, or the command unknown.
    Refused,
}

/// Takes a line apart, with or without its CR; a key is put into `key`. `None` = no node says so.
pub fn parse(line: &[u8], key: &mut Vec<u8>) -> Option<Said> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    parse_key(line, key).or_else(|| {
        Some(match line {
            b"OK" => Said::Begun,
            b"END" => Said::End,
            _ if line.starts_with(b"NOTSTARTED") => Said::End,
            _ if line.starts_with(b"BUSY") || line.starts_with(b"ERROR locked") => Said::Busy,
            _ if line.starts_with(b"BADCLASS") => Said::UnknownMode,
            _ if line.starts_with(b"ERROR") || line.starts_with(b"CLIENT_ERROR") => Said::Refused,
            _ => return None,
        })
    })
}

/// Which bytes a dump writes as they are in a key; it writes the others as `%XX`.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        plain[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'-' | b'.' | b'_' | b'~');
        byte += 1;
    }
    plain
};

/// The fields that every version writes, in their order; later ones add some behind them.
const FIELDS: [&[u8]; 6] = [b"exp=", b"la=", b"cas=", b"fetch=", b"cls=", b"size="];

/// Takes a dump line apart and decodes its key into `key`; `None` = it is no such line.
///
/// Strictly: where a piece of the dump is missing, a line is made of the beginning of one and the
/// end of a later one, and the keys between them were never listed. If that were taken for one key
/// that cannot be copied, a pair would be handed back without them.
fn parse_key(line: &[u8], key: &mut Vec<u8>) -> Option<Said> {
    let rest = line.strip_prefix(b"key=")?;
    let end = memchr::memchr(b' ', rest)?;
    let (encoded, mut rest) = rest.split_at(end);
    key.clear();
    if encoded.iter().all(|&byte| PLAIN[usize::from(byte)]) {
        key.extend_from_slice(encoded);
    } else {
        let mut bytes = encoded.iter();
        while let Some(&byte) = bytes.next() {
            if byte == b'%' {
                let (high, low) = (hex(*bytes.next()?)?, hex(*bytes.next()?)?);
                key.push(high << 4 | low);
            } else if PLAIN[usize::from(byte)] {
                key.push(byte);
            } else {
                return None;
            }
        }
    }
    if key.is_empty() || key.len() > KEY_LEN_MAX {
        return None;
    }
    let (mut size, mut blind) = (0, false);
    // One look at each word: a search for each name would cost as much as all the rest of the line.
    for (at, name) in FIELDS.iter().enumerate() {
        let field = rest.strip_prefix(b" ")?.strip_prefix(*name)?;
        let length = field.iter().position(|&b| b == b' ').unwrap_or(field.len());
        let value = &field[..length];
        match at {
            3 if value == b"yes" || value == b"no" => {}
            0 if value == b"-1" => {}
            0 | 1 | 4 => drop(number(value)?),
            2 => blind = number(value)? == 0,
            5 => size = number(value)?,
            _ => return None,
        }
        rest = &field[length..];
    }
    // What later versions add: words of their own, of which none is another line's.
    let another = |word: &[u8]| word.starts_with(b"key=") || FIELDS.iter().any(|name| word.starts_with(name));
    if !rest.is_empty() && (rest[0] != b' ' || rest[1..].split(|&b| b == b' ').any(another)) {
        return None;
    }
    Some(Said::Key { size: u32::try_from(size).unwrap_or(u32::MAX), blind })
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits
        .iter()
        .try_fold(0_u64, |n, &b| b.is_ascii_digit().then(|| n.saturating_mul(10).saturating_add(u64::from(b - b'0'))))
}

fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|d| d as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Option<(Vec<u8>, u32, bool)> {
        let mut key = Vec::new();
        match parse(text.as_bytes(), &mut key) {
            Some(Said::Key { size, blind }) => Some((key, size, blind)),
            _ => None,
        }
    }

    #[test]
    fn reads_lines_of_all_versions() {
        let line = "key=a%09b%25 exp=-1 la=1795362483 cas=2 fetch=yes cls=1 size=69";
        assert_eq!(one(line), Some((b"a\tb%".to_vec(), 69, false)));
        let line = "key=foo exp=5 la=1 cas=0 fetch=no cls=1 size=53 flags=7";
        assert_eq!(one(line), Some((b"foo".to_vec(), 53, true)));
        let long = "%20".repeat(250);
        let line = format!("key={long} exp=5 la=1 cas=1 fetch=no cls=1 size=53");
        assert_eq!(one(&line), Some((vec![b' '; 250], 53, false)));
    }

    #[test]
    fn classes_are_those_of_memcached() {
        assert_eq!((Classes::parse("all"), Classes::parse("hash")), (Some(Classes::All), Some(Classes::All)));
        for text in ["x", "0", "64", "1,x", "300", "-1"] {
            assert_eq!(Classes::parse(text), None, "{text}");
        }
        let line = b"key=a exp=-1 la=1 cas=2 fetch=yes cls=12 size=69";
        for (classes, has) in [("1,12", true), ("12", true), ("1,2", false), ("all", true)] {
            assert_eq!(Classes::parse(classes).map(|classes| classes.has(line)), Some(has), "{classes}");
        }
    }

    #[test]
    fn nonsense_is_no_line() {
        for text in ["", "END", "key=", "key=%zz ", "key=%4", "key=%4 x", "BUSY currently processing crawler request"] {
            assert_eq!(one(text), None, "{text}");
        }
        let rest = "exp=-1 la=1 cas=2 fetch=yes cls=1 size=69";
        for key in ["", &"x".repeat(251), &"x".repeat(300), "a=b", "a b", "a\tb", "a:b"] {
            assert_eq!(one(&format!("key={key} {rest}")), None, "{key}");
        }
    }

    /// Any piece that is missing from two lines on, to any later place, is noticed, unless what is
    /// left is a dump's line to the letter.
    #[test]
    fn a_dump_with_a_piece_missing_is_noticed() {
        let lines = "key=alpha%3A1 exp=-1 la=100 cas=2 fetch=yes cls=1 size=69\nkey=beta exp=5 la=101 cas=3 fetch=no cls=2 size=70\nkey=gamma exp=-1 la=102 cas=4 fetch=no cls=1 size=71";
        let (mut noticed, mut passed) = (0, Vec::new());
        for from in 1..lines.len() {
            for to in from + 1..lines.len() {
                let left = format!("{}{}", &lines[..from], &lines[to..]);
                let cut = &lines[from..to];
                if !cut.contains('\n') {
                    continue;
                }
                // What is left of the broken line, and all others.
                if left.split('\n').all(|line| one(line).is_some()) { passed.push(left) } else { noticed += 1 }
            }
        }
        assert!(noticed > 10 * passed.len(), "{noticed} noticed, {} not", passed.len());
        for left in passed {
            // The cut came where the same field stands in both, so that the line is a true one's
            // form.
            assert!(left.lines().all(|line| line.matches('=').count() == 7), "{left}");
        }
    }
}
