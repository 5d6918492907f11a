//! `stats cachedump` of several servers as one list.

use crate::protocol::statistics::Line;

/// Bytes of the answer, as memcached bounds its own.
const BYTES_MAX: usize = 2 << 20;

/// `ITEM` lines under construction.
#[derive(Debug)]
pub struct Items {
    lines: Vec<u8>,
    /// Lines that are still wanted.
    wanted: usize,
}

impl Items {
    /// At most this many lines; 0: as many as there are.
    pub fn new(limit: u32) -> Items {
        Items { lines: Vec::new(), wanted: if limit == 0 { usize::MAX } else { limit as usize } }
    }

    /// Takes those lines of a server's answer whose key is one to be shown; `Err`: it is no list,
    /// but this line.
    pub fn add(&mut self, answer: &[u8], shown: impl Fn(&[u8]) -> bool) -> Result<(), String> {
        for line in answer.split_inclusive(|&byte| byte == b'\n') {
            let item = match Line::parse(line) {
                Line::Item(item) => item,
                Line::End => return Ok(()),
                _ => return Err(String::from_utf8_lossy(line.trim_ascii_end()).into_owned()),
            };
            // `key [5 b; 0 s]`: a key may have any byte in it but a line end.
            let Some(end) = memchr::memmem::rfind(item, b" [") else {
                return Err(String::from_utf8_lossy(line).into_owned());
            };
            if self.wanted > 0 && self.lines.len() + line.len() < BYTES_MAX && shown(&item[..end]) {
                self.wanted -= 1;
                self.lines.extend_from_slice(line);
            }
        }
        Err("a list without END".to_owned())
    }

    pub fn into_lines(self) -> Vec<u8> {
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_to_be_shown_takes_no_place() {
        let first = b"ITEM a [5 b; 0 s]\r\nITEM hidden [5 b; 0 s]\r\nITEM b [x [7 b; 12 s]\r\nEND\r\n";
        let second = b"ITEM c [1 b; 0 s]\r\nITEM d [1 b; 0 s]\r\nEND\r\n";
        let gather = |limit| {
            let mut items = Items::new(limit);
            for answer in [&first[..], second] {
                items.add(answer, |key| key != b"hidden").expect("a list");
            }
            String::from_utf8(items.into_lines()).expect("text")
        };
        assert_eq!(gather(3), "ITEM a [5 b; 0 s]\r\nITEM b [x [7 b; 12 s]\r\nITEM c [1 b; 0 s]\r\n");
        assert_eq!(gather(0).lines().count(), 4);
        let mut items = Items::new(0);
        let refusal = items.add(b"CLIENT_ERROR stats cachedump not allowed\r\n", |_| true);
        assert_eq!(refusal, Err("CLIENT_ERROR stats cachedump not allowed".to_owned()));
        let line = [b"ITEM ", &[b'k'; 250][..], b" [5 b; 0 s]\r\n"].concat();
        items.add(&[&line.repeat(10_000)[..], b"END\r\n"].concat(), |_| true).expect("a list");
        assert!(items.into_lines().len() <= BYTES_MAX);
    }
}
