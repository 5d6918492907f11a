//! A command's line, word by word.

use std::str::FromStr;

/// A line without its end.
#[derive(Clone, Copy)]
pub(super) struct Line<'a>(&'a [u8]);

/// The flags of a meta command, in order.
#[derive(Clone, Copy)]
pub(super) struct Flags<'a>(&'a [u8]);

impl<'a> Line<'a> {
    /// A command's line, and its data block without its end.
    pub(super) fn split(command: &'a [u8]) -> (Line<'a>, &'a [u8]) {
        let end = command.iter().position(|&byte| byte == b'\r').unwrap_or(command.len());
        let data = command.get(end + 2..).unwrap_or_default();
        (Line(&command[..end]), data.strip_suffix(b"\r\n").unwrap_or(data))
    }

    fn words(self) -> impl Iterator<Item = &'a [u8]> {
        self.0.split(|&byte| byte == b' ')
    }

    /// The word of this number, or nothing.
    pub(super) fn word(self, at: usize) -> &'a [u8] {
        self.words().nth(at).unwrap_or_default()
    }

    pub(super) fn signed(self, at: usize) -> i64 {
        number(self.word(at)).unwrap_or(0)
    }

    pub(super) fn unsigned(self, at: usize) -> u64 {
        number(self.word(at)).unwrap_or(0)
    }

    /// What stands from this word on.
    pub(super) fn flags(self, from: usize) -> Flags<'a> {
        let before = self.words().take(from).map(|word| word.len() + 1).sum();
        Flags(self.0.get(before..).unwrap_or_default())
    }

    pub(super) fn keys(self) -> impl Iterator<Item = &'a [u8]> {
        let (before, most) = match self.word(0) {
            b"get" | b"gets" => (1, usize::MAX),
            b"gat" | b"gats" => (2, usize::MAX),
            _ => (1, 1),
        };
        self.words().skip(before).take(most)
    }
}

impl<'a> Flags<'a> {
    pub(super) fn words(self) -> impl Iterator<Item = &'a [u8]> {
        self.0.split(|&byte| byte == b' ').filter(|word| !word.is_empty())
    }

    pub(super) fn has(self, flag: &[u8]) -> bool {
        self.words().any(|word| word == flag)
    }

    /// The number behind a flag.
    pub(super) fn number<T: FromStr>(self, flag: u8) -> Option<T> {
        self.words().find(|word| word[0] == flag).and_then(|word| number(&word[1..]))
    }

    /// What `ms` and `ma` are told of how they do it.
    pub(super) fn mode(self) -> u8 {
        self.words().find(|word| word[0] == b'M').and_then(|word| word.get(1)).map_or(b'S', |&mode| mode)
    }
}

/// The key that base64 stands for.
pub(super) fn from_base64(text: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextets = text.iter().map_while(|byte| ALPHABET.iter().position(|letter| letter == byte));
    let (mut bits, mut held, mut key) = (0_u32, 0, Vec::new());
    for sextet in sextets {
        (bits, held) = (bits << 6 | sextet as u32, held + 6);
        if held >= 8 {
            held -= 8;
            key.push((bits >> held) as u8);
        }
    }
    key
}

pub(super) fn number<T: FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The length of the first whole command in a buffer, with its data block.
pub fn command_len(input: &[u8]) -> Option<usize> {
    let end = memchr::memchr(b'\n', input)? + 1;
    let line = Line(&input[..end - 2]);
    let data = match line.word(0) {
        b"set" | b"add" | b"replace" | b"append" | b"prepend" | b"cas" => line.unsigned(4) + 2,
        b"ms" => line.unsigned(2) + 2,
        _ => 0,
    };
    let len = end + data as usize;
    (input.len() >= len).then_some(len)
}
