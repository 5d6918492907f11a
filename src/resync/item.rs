//! What a node says about one item, and how a key is written on the wire.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::ambient;
use crate::backend::{Batch, Frame};
use crate::protocol::expiry::{self, Offset};

/// Longest key that memcached takes on the wire, in bytes; base64 counts as it is written.
const MAX_WIRE_KEY_BYTES: usize = 250;
/// An item as it was read.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) value: Bytes,
    pub(super) flags: u32,
    pub(super) cas: u64,
    pub(super) seen: Seen,
    /// The node keeps the key as binary, which is to be so on the other node too.
    pub(super) binary: bool,
}

impl Item {
    /// Whether two nodes hold the same thing. Both clocks tick in seconds and so do the answers,
    /// hence the tolerance.
    pub(super) fn equals(&self, other: &Item) -> bool {
        self.equals_later(other, 2)
    }

    /// The same of one node, asked again: whether the item is what it was.
    pub(super) fn equals_later(&self, later: &Item, slack: i64) -> bool {
        self.flags == later.flags && self.value == later.value && self.seen.agrees(&later.seen, slack)
    }

    /// What is kept of it until its copy is verified: where there is a cas id, not the value.
    pub(super) fn until_verified(self) -> Item {
        if self.cas == 0 { self } else { Item { value: Bytes::new(), ..self } }
    }
}

/// A remaining TTL, and when it was true: at some moment between sending the question and receiving
/// the answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Seconds; -1 = never expires.
    pub(super) ttl: i64,
    pub(super) asked: Instant,
    pub(super) answered: Instant,
    /// What the node's clock showed then, where it was asked too.
    pub(super) shown: Option<i64>,
}

impl Seen {
    /// Whether both name the same moment of expiry, give or take `slack` seconds. `later` was asked
    /// after this one, or about the same time.
    ///
    /// `touch` changes the TTL but not the cas id, so a copy is verified by both.
    pub(super) fn agrees(&self, later: &Seen, slack: i64) -> bool {
        if self.ttl < 0 || later.ttl < 0 {
            return self.ttl < 0 && later.ttl < 0;
        }
        let least = later.asked.saturating_duration_since(self.answered).as_secs() as i64;
        let most = ceil_secs(later.answered.saturating_duration_since(self.asked));
        let back = ceil_secs(self.answered.saturating_duration_since(later.asked));
        let passed = self.ttl.saturating_sub(later.ttl);
        passed >= least - back.min(1) - slack && passed <= most + slack
    }

    /// The date of expiry, by the proxy's clock, of an item of the node whose dates are so far
    /// ahead.
    fn date(&self, there: Offset) -> i64 {
        match self.shown {
            Some(shown) => there.here(shown.saturating_add(self.ttl)),
            // A second longer or shorter.
            None => (ambient::date(self.asked).as_secs() as i64).saturating_add(self.ttl),
        }
    }
}

fn ceil_secs(duration: Duration) -> i64 {
    duration.as_millis().div_ceil(1000) as i64
}

/// When a question was asked, and what the node's clock showed just before it came there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) at: Instant,
    /// It was asked for the clock too: what it says, or not, is all there is.
    pub(super) timed: bool,
    pub(super) shown: Option<i64>,
}

/// How far the dates of a lane's two nodes are ahead of the proxy's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offsets {
    pub(super) source: Offset,
    pub(super) target: Offset,
}

impl Offsets {
    /// What the target is to store a copy with; `None` = the item is over. (Remaining 0 stored as 0
    /// would mean for ever.)
    pub(super) fn to_target(self, seen: &Seen, now: Instant) -> Option<i64> {
        copied(seen, self.source, self.target, now)
    }

    /// The same the other way round: of an item that only the target holds.
    pub(super) fn to_source(self, seen: &Seen, now: Instant) -> Option<i64> {
        copied(seen, self.target, self.source, now)
    }
}

fn copied(seen: &Seen, from: Offset, to: Offset, now: Instant) -> Option<i64> {
    if seen.ttl < 0 {
        return Some(0);
    }
    expiry::of_copy(seen.date(from), ambient::date(now)).map(|date| to.there(date))
}

/// First word of a meta answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Code {
    /// `VA`: an item with its value.
    Value,
    /// `HD`: done, or an item without its value.
    Done,
    /// `EN` or `NF`: no such item.
    Missing,
    /// `NS`: not stored.
    NotStored,
    /// `EX`: the cas id is another one.
    Exists,
    /// `SERVER_ERROR`: too large, or out of memory.
    Refused,
}

/// A meta answer, taken apart and matched to the key it was asked for.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) code: Code,
    pub(super) flags: u32,
    pub(super) ttl: i64,
    pub(super) cas: u64,
    pub(super) binary: bool,
    /// `X`, or `Z` alone: marked stale, or a place held for somebody who is computing the value.
    /// Not a value to copy.
    pub(super) stale: bool,
    /// `W`: we were just made the one to recompute it.
    pub(super) won: bool,
}

impl Answer {
    /// Takes the line apart. An error means that the answer does not belong to the command: framing
    /// is in doubt.
    pub(super) fn parse(line: &[u8], key: &[u8]) -> Result<Answer, String> {
        let (word, mut rest) = split_word(line);
        let code = match word {
            b"VA" => Code::Value,
            b"HD" => Code::Done,
            b"EN" | b"NF" => Code::Missing,
            b"NS" => Code::NotStored,
            b"EX" => Code::Exists,
            b"SERVER_ERROR" => Code::Refused,
            _ => return Err(format!("unexpected answer {:?}", String::from_utf8_lossy(line))),
        };
        let mut answer = Answer { code, flags: 0, ttl: -1, cas: 0, binary: false, stale: false, won: false };
        if code == Code::Refused {
            return Ok(answer);
        }
        if code == Code::Value {
            rest = split_word(rest).1;
        }
        let mut echo = None;
        // An incr can make memcached forget that a key is binary (seen on 1.6.18): then it stands
        // there as it is, blanks and all. It was asked for first, so it comes first.
        if let Some(after) = rest.strip_prefix(b"k").and_then(|r| r.strip_prefix(key))
            && matches!(after.first(), None | Some(b' '))
        {
            (echo, rest) = (Some(key), after);
        }
        for word in rest.split(|&b| b == b' ') {
            let (Some(&flag), rest) = (word.first(), word.get(1..).unwrap_or_default()) else { continue };
            match flag {
                b'k' => echo = Some(rest),
                b'b' => answer.binary = true,
                b'f' => answer.flags = number(rest).and_then(|n| u32::try_from(n).ok()).ok_or("client flags")?,
                b'c' => answer.cas = number(rest).ok_or("cas id")?,
                b't' if rest == b"-1" => answer.ttl = -1,
                // An item that has just expired is seen with a negative TTL by some versions: to us
                // it is over.
                b't' if rest.first() == Some(&b'-') => answer.ttl = 0,
                b't' => answer.ttl = number(rest).and_then(|n| i64::try_from(n).ok()).ok_or("TTL")?,
                b'X' | b'Z' => answer.stale = true,
                b'W' => {
                    answer.won = true;
                    answer.stale = true;
                }
                _ => {}
            }
        }
        match echo {
            // Some versions answer a bare EN; the position tells whose it is.
            None if code == Code::Value => Err("a value without its key".to_owned()),
            None => Ok(answer),
            Some(echo) if echo == key || (answer.binary && echo == base64(key)) => Ok(answer),
            Some(_) => Err("an answer for another key".to_owned()),
        }
    }

    /// The item of a `VA` answer to a question asked at `asked`.
    pub(super) fn item(&self, frame: &Frame<'_>, asked: Asked) -> Item {
        Item {
            value: frame.data().unwrap_or_default(),
            flags: self.flags,
            cas: self.cas,
            seen: self.seen(frame, asked),
            binary: self.binary,
        }
    }

    pub(super) fn seen(&self, frame: &Frame<'_>, asked: Asked) -> Seen {
        Seen { ttl: self.ttl, asked: asked.at, answered: frame.read_at(), shown: asked.shown }
    }
}

fn split_word(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b' ', line) {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, b""),
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |n, &b| {
        b.is_ascii_digit().then_some(())?;
        n.checked_mul(10)?.checked_add(u64::from(b - b'0'))
    })
}

/// Whether the key cannot stand on a command line as it is.
pub(super) fn needs_base64(key: &[u8]) -> bool {
    key.iter().any(|&b| b <= 0x20 || b == 0x7f)
}

/// How a key is written on the wire; `None` = in no way.
///
/// base64 makes a key a third longer, and memcached limits what is written: a long key with a
/// control byte, which a classic client may store, is only reachable plain.
pub(super) fn wire_form(key: &[u8]) -> Option<bool> {
    if key.is_empty() || key.len() > MAX_WIRE_KEY_BYTES {
        return None;
    }
    if !needs_base64(key) {
        return Some(false);
    }
    if key.len().div_ceil(3) * 4 <= MAX_WIRE_KEY_BYTES {
        return Some(true);
    }
    is_plain(key).then_some(false)
}

/// Whether a classic client can write the key.
pub(super) fn is_plain(key: &[u8]) -> bool {
    !key.iter().any(|&b| matches!(b, 0 | b' ' | b'\r' | b'\n'))
}

/// Appends `<command> <key>`. The `b` flag that goes with a binary key is the caller's: it stands
/// behind the length in `ms`.
pub(super) fn put_key(batch: &mut Batch, command: &[u8], key: &[u8], binary: bool) {
    batch.put(command);
    if binary {
        batch.put(&base64(key));
    } else {
        batch.put(key);
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 with padding.
fn base64(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let three = [group[0], group.get(1).copied().unwrap_or(0), group.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for i in 0..4 {
            let six = (bits >> (18 - 6 * i)) & 63;
            out.push(if i <= group.len() { ALPHABET[six as usize] } else { b'=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded.as_bytes());
        }
    }

    #[test]
    fn answers_are_matched_to_their_key() {
        let answer = Answer::parse(b"VA 2 kfoo f7 t-1 c4 X W", b"foo").unwrap();
        assert_eq!((answer.code, answer.flags, answer.ttl, answer.cas), (Code::Value, 7, -1, 4));
        assert!(answer.stale && answer.won);
        assert!(Answer::parse(b"VA 2 kbar f7 t-1 c4", b"foo").is_err());
        assert!(Answer::parse(b"VA 2 f7 t-1 c4", b"foo").is_err());
        assert!(Answer::parse(b"HD kZm9v b", b"foo").unwrap().binary);
        assert!(Answer::parse(b"HD kZm9v", b"foo").is_err());
        let raw = Answer::parse(b"VA 2 ka X  W f7 t-1 c4", b"a X  W").unwrap();
        assert!((raw.flags, raw.cas) == (7, 4) && !raw.stale && !raw.binary);
        assert!(Answer::parse(b"VA 2 kfoobar f7 t-1 c4", b"foo").is_err());
        assert_eq!(Answer::parse(b"EN", b"foo").unwrap().code, Code::Missing);
        assert!(Answer::parse(b"CLIENT_ERROR bad", b"foo").is_err());
        assert!(Answer::parse(b"HD c99999999999999999999999", b"foo").is_err());
        assert!(Answer::parse(b"", b"foo").is_err());
    }

    #[test]
    fn keys_find_their_form() {
        assert_eq!(wire_form(b"plain"), Some(false));
        assert_eq!(wire_form(b"with space"), Some(true));
        assert_eq!(wire_form(&[b'\t'; 250]), Some(false));
        assert_eq!(wire_form(&[b' '; 250]), None);
        assert_eq!(wire_form(&[0xff; 250]), Some(false));
        assert_eq!(wire_form(b""), None);
    }

    #[tokio::test(start_paused = true)]
    async fn expiry_is_compared_as_a_moment() {
        let asked = Instant::now();
        let later = asked + Duration::from_secs(5);
        let first = Seen { ttl: 100, asked, answered: asked, shown: None };
        let at = |ttl| Seen { ttl, asked: later, answered: later, shown: None };
        assert!(first.agrees(&at(95), 1) && first.agrees(&at(94), 1) && first.agrees(&at(96), 1));
        assert!(!first.agrees(&at(100), 1) && !first.agrees(&at(90), 1) && !first.agrees(&at(-1), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_has_the_date_of_its_original() {
        let (now, second) = (Instant::now(), ambient::date(Instant::now()).as_secs() as i64);
        let of = |ahead: i64| Offset::seen(second + ahead, Duration::from_millis(second as u64 * 1000 - 10));
        let offsets = Offsets { source: of(-3), target: of(40) };
        let seen = |ttl, shown| Seen { ttl, asked: now, answered: now, shown };
        for passed in [0, 30] {
            let later = now + Duration::from_secs(passed);
            assert_eq!(offsets.to_target(&seen(100, Some(second)), later), Some(second + 143));
            assert_eq!(offsets.to_source(&seen(100, Some(second)), later), Some(second + 57));
            assert_eq!(offsets.to_target(&seen(-1, Some(second)), later), Some(0));
            assert_eq!(offsets.to_target(&seen(100, None), later), Some(second + 140));
        }
        // Over by now, or in its last second.
        for ttl in [0, 1] {
            assert_eq!(offsets.to_target(&seen(ttl, None), now), None);
        }
        assert_eq!(offsets.to_target(&seen(20, None), now + Duration::from_secs(21)), None);
    }
}
