//! What a node says about one item, and when that item expires.

use std::time::Duration;

use bytes::Bytes;

use super::base64;
use super::expiry::{self, Offset};
use super::key::may_be_named;
use super::number::parse_u64;
use super::reply::{Frame, ReplyKind};

/// Two nodes hold the same if their items expire within this many seconds: both clocks tick in
/// seconds, and so do the answers.
const TWO_NODES_SLACK_SECS: i64 = 2;

/// One node, asked again, shows the same expiry within this many seconds: its clock ticks in
/// seconds.
pub const ONE_NODE_SLACK_SECS: i64 = 1;

/// So long before the last date that memcached takes, two nodes' dates are taken for one: no two
/// clocks should be further apart.
const LAST_SECS: i64 = 24 * 60 * 60;

/// An item as it was read.
#[derive(Clone, Debug)]
pub struct Item {
    pub value: Bytes,
    pub flags: u32,
    pub cas: u64,
    pub seen: Seen,
    /// The node keeps the key as binary, which is to be so on the other node too.
    pub binary: bool,
}

impl Item {
    /// Whether two nodes hold the same thing, of which a client could not tell one from the other.
    pub fn equals(&self, other: &Item) -> bool {
        let ends_last = self.seen.ends_last() && other.seen.ends_last();
        self.holds_as(other) && (ends_last || self.seen.agrees(&other.seen, TWO_NODES_SLACK_SECS))
    }

    /// The same for one node, asked again: whether the item is what it was.
    pub fn equals_later(&self, later: &Item, slack: i64) -> bool {
        self.holds_as(later) && self.seen.agrees(&later.seen, slack)
    }

    fn holds_as(&self, other: &Item) -> bool {
        self.flags == other.flags && self.value == other.value
    }

    /// What is kept of it until its copy is verified: where there is a cas id, not the value.
    pub fn until_verified(self) -> Item {
        if self.cas == 0 { self } else { Item { value: Bytes::new(), ..self } }
    }
}

/// Whether two nodes hold the same thing under a key, or both nothing.
pub fn are_equal(one: &Option<Item>, other: &Option<Item>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.equals(other),
        (None, None) => true,
        _ => false,
    }
}

/// A remaining TTL, and when it was true: at some moment between sending the question and receiving
/// the answer. Moments are dates of the proxy's own clock.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Seconds; -1 = never expires.
    pub ttl: i64,
    pub asked: Duration,
    pub answered: Duration,
    /// What the node's clock showed then, where it was asked too.
    pub shown: Option<i64>,
}

impl Seen {
    /// Whether both name the same moment of expiry, give or take `slack` seconds. `later` was asked
    /// after this one, or about the same time.
    ///
    /// `touch` changes the TTL but not the cas id, so a copy is verified by both.
    pub fn agrees(&self, later: &Seen, slack: i64) -> bool {
        if self.ttl < 0 || later.ttl < 0 {
            return self.ttl < 0 && later.ttl < 0;
        }
        let least = later.asked.saturating_sub(self.answered).as_secs() as i64;
        let most = ceil_secs(later.answered.saturating_sub(self.asked));
        let back = ceil_secs(self.answered.saturating_sub(later.asked));
        let passed = self.ttl.saturating_sub(later.ttl);
        passed >= least - back.min(1) - slack && passed <= most + slack
    }

    /// Whether it expires when memcached can count no further: of two nodes whose clocks differ,
    /// each does so by its own.
    fn ends_last(&self) -> bool {
        let date = (self.asked.as_secs() as i64).saturating_add(self.ttl);
        self.ttl > 0 && date > expiry::DATE_MAX - LAST_SECS
    }

    /// The date of expiry, by the proxy's clock, of an item of the node whose dates are so far
    /// ahead.
    fn date(&self, there: Option<Offset>) -> i64 {
        match self.shown.zip(there) {
            Some((shown, there)) => there.here(shown.saturating_add(self.ttl)),
            // A second longer or shorter.
            None => (self.asked.as_secs() as i64).saturating_add(self.ttl),
        }
    }

    /// What the other node is to store a copy with; `None` = the item is over. (Remaining 0 stored
    /// as 0 would mean for ever.) `from`, `to`: how far the two nodes' dates are ahead, where that
    /// is known.
    pub fn exptime_of_copy(&self, from: Option<Offset>, to: Option<Offset>, now: Duration) -> Option<i64> {
        if self.ttl < 0 {
            return Some(0);
        }
        let Some(to) = to else { return Some(self.ttl.min(expiry::RELATIVE_MAX_SECS)) };
        expiry::of_copy(self.date(from), now).map(|date| to.exptime(date, now))
    }
}

fn ceil_secs(duration: Duration) -> i64 {
    duration.as_millis().div_ceil(1000) as i64
}

/// When a question was asked, and what the node's clock showed just before it came there.
#[derive(Clone, Copy, Default, Debug)]
pub struct Asked {
    /// A date of the proxy's own clock.
    pub at: Duration,
    /// It was asked for the clock too: what it says, or not, is all there is.
    pub timed: bool,
    pub shown: Option<i64>,
}

/// How far the dates of a copy's two nodes are ahead of the proxy's.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    pub source: Offset,
    pub target: Offset,
}

impl Offsets {
    /// What the target is to store a copy with; `None` = the item is over.
    pub fn to_target(self, seen: &Seen, now: Duration) -> Option<i64> {
        seen.exptime_of_copy(Some(self.source), Some(self.target), now)
    }

    /// The same the other way round: of an item that only the target holds.
    pub fn to_source(self, seen: &Seen, now: Duration) -> Option<i64> {
        seen.exptime_of_copy(Some(self.target), Some(self.source), now)
    }
}

/// What became of a meta command on an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
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

impl Code {
    fn of(kind: &ReplyKind) -> Option<Code> {
        Some(match kind {
            ReplyKind::MetaVa { .. } => Code::Value,
            ReplyKind::MetaHd => Code::Done,
            ReplyKind::MetaEn | ReplyKind::MetaNf => Code::Missing,
            ReplyKind::MetaNs => Code::NotStored,
            ReplyKind::MetaEx => Code::Exists,
            ReplyKind::ServerError => Code::Refused,
            _ => return None,
        })
    }
}

/// The answer to a meta command on one item, with its flags taken apart.
#[derive(Clone, Debug)]
pub struct Answer {
    pub code: Code,
    pub flags: u32,
    /// Seconds that are left; -1 = never expires, or was not asked for.
    pub ttl: i64,
    pub cas: u64,
    /// Bytes of its value, where that was asked for.
    pub size: Option<u64>,
    pub binary: bool,
    /// `X`, or `Z` alone: marked stale, or a place held for somebody who is computing the value.
    /// Not a value to copy.
    pub stale: bool,
    /// `W`: we were just made the one to recompute it.
    pub won: bool,
    /// `X`: a client has said that it is out of date.
    pub invalid: bool,
}

impl Answer {
    /// To a command that had its key echoed (`k`), and on that key. An error means that the answer
    /// does not belong to the command: framing is in doubt.
    pub fn to(key: &[u8], frame: &Frame<'_>) -> Result<Answer, String> {
        let (answer, echo) = Answer::parse(frame, key)?;
        match echo {
            // Some versions answer a bare EN; the position tells whose it is.
            None if answer.code == Code::Value && may_be_named(key) => Err("a value without its key".to_owned()),
            None => Ok(answer),
            Some(echo) if echo == key || (answer.binary && echo == base64::encode(key)) => Ok(answer),
            Some(_) => Err("an answer for another key".to_owned()),
        }
    }

    /// To a store that had its key echoed. What the node does not take it refuses: its version may
    /// know less than the other node's.
    pub fn to_store(key: &[u8], frame: &Frame<'_>) -> Result<Answer, String> {
        match frame.kind() {
            ReplyKind::ClientError => Ok(Answer::new(Code::Refused)),
            _ => Answer::to(key, frame),
        }
    }

    /// To a command that had not: the place in the stream tells whose it is.
    pub fn to_unechoed(frame: &Frame<'_>) -> Result<Answer, String> {
        Answer::parse(frame, b"").map(|(answer, _)| answer)
    }

    fn new(code: Code) -> Answer {
        Answer { code, flags: 0, ttl: -1, cas: 0, size: None, binary: false, stale: false, won: false, invalid: false }
    }

    fn parse<'a>(frame: &Frame<'a>, key: &[u8]) -> Result<(Answer, Option<&'a [u8]>), String> {
        let line = frame.line();
        let Some(code) = Code::of(frame.kind()) else {
            return Err(format!("unexpected answer {:?}", String::from_utf8_lossy(line)));
        };
        let mut answer = Answer::new(code);
        if code == Code::Refused {
            return Ok((answer, None));
        }
        let mut rest = behind_word(line);
        if code == Code::Value {
            rest = behind_word(rest);
        }
        let mut echo = None;
        // An incr can make memcached forget that a key is binary (seen on 1.6.18): then it stands
        // there as it is, blanks and all. It was asked for first, so it comes first.
        if !key.is_empty()
            && let Some(after) = rest.strip_prefix(b"k").and_then(|r| r.strip_prefix(key))
            && matches!(after.first(), None | Some(b' '))
        {
            echo = Some(&rest[1..1 + key.len()]);
            rest = after;
        }
        for word in rest.split(|&b| b == b' ') {
            let (Some(&flag), rest) = (word.first(), word.get(1..).unwrap_or_default()) else { continue };
            match flag {
                b'k' => echo = Some(rest),
                b'b' => answer.binary = true,
                b'f' => answer.flags = parse_u64(rest).and_then(|n| u32::try_from(n).ok()).ok_or("client flags")?,
                b'c' => answer.cas = parse_u64(rest).ok_or("cas id")?,
                b's' => answer.size = Some(parse_u64(rest).ok_or("size")?),
                b't' if rest == b"-1" => answer.ttl = -1,
                // An item that has just expired is seen with a negative TTL by some versions: to us
                // it is over.
                b't' if rest.first() == Some(&b'-') => answer.ttl = 0,
                b't' => answer.ttl = parse_u64(rest).and_then(|n| i64::try_from(n).ok()).ok_or("TTL")?,
                b'X' => (answer.stale, answer.invalid) = (true, true),
                b'Z' => answer.stale = true,
                b'W' => {
                    answer.won = true;
                    answer.stale = true;
                }
                _ => {}
            }
        }
        Ok((answer, echo))
    }

    /// The item of a `VA` answer to a question asked at `asked`.
    pub fn item(&self, frame: &Frame<'_>, asked: Asked) -> Item {
        Item {
            value: frame.data().unwrap_or_default(),
            flags: self.flags,
            cas: self.cas,
            seen: self.seen(frame, asked),
            binary: self.binary,
        }
    }

    pub fn seen(&self, frame: &Frame<'_>, asked: Asked) -> Seen {
        Seen { ttl: self.ttl, asked: asked.at, answered: frame.read_at(), shown: asked.shown }
    }
}

fn behind_word(line: &[u8]) -> &[u8] {
    super::line::find_blank(line).map_or(b"", |at| &line[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::super::reply::{ReplyLimits, Scanned, scan};
    use super::*;

    /// As the answer to a command that had its key echoed.
    fn answer(reply: &[u8], key: &[u8]) -> Result<Answer, String> {
        let mut found = Vec::new();
        let Scanned { used, .. } =
            scan(reply, 1, &ReplyLimits::default(), &mut found).map_err(|error| error.to_string())?;
        assert_eq!(used, reply.len());
        let bytes = Bytes::copy_from_slice(reply);
        Answer::to(key, &Frame::new(&bytes, &found[0], Duration::ZERO))
    }

    #[test]
    fn answers_are_matched_to_their_key() {
        let foo = answer(b"VA 2 kfoo f7 t-1 c4 X W\r\nab\r\n", b"foo").unwrap();
        assert_eq!((foo.code, foo.flags, foo.ttl, foo.cas), (Code::Value, 7, -1, 4));
        assert!(foo.stale && foo.won);
        assert!(answer(b"VA 2 kbar f7 t-1 c4\r\nab\r\n", b"foo").is_err());
        assert!(answer(b"VA 2 f7 t-1 c4\r\nab\r\n", b"foo").is_err());
        assert!(answer(b"HD kZm9v b\r\n", b"foo").unwrap().binary);
        assert!(answer(b"HD kZm9v\r\n", b"foo").is_err());
        let raw = answer(b"VA 2 ka X  W f7 t-1 c4\r\nab\r\n", b"a X  W").unwrap();
        assert!((raw.flags, raw.cas) == (7, 4) && !raw.stale && !raw.binary);
        assert!(answer(b"VA 2 kfoobar f7 t-1 c4\r\nab\r\n", b"foo").is_err());
        assert_eq!(answer(b"EN\r\n", b"foo").unwrap().code, Code::Missing);
        assert!(answer(b"CLIENT_ERROR bad\r\n", b"foo").is_err());
        assert!(answer(b"HD c99999999999999999999999\r\n", b"foo").is_err());
        assert!(answer(b"\r\n", b"foo").is_err());
    }

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn after(seconds: u64) -> Duration {
        NOW + Duration::from_secs(seconds)
    }

    #[test]
    fn expiry_is_compared_as_a_moment() {
        let later = after(5);
        let first = Seen { ttl: 100, asked: NOW, answered: NOW, shown: None };
        let at = |ttl| Seen { ttl, asked: later, answered: later, shown: None };
        assert!(first.agrees(&at(95), 1) && first.agrees(&at(94), 1) && first.agrees(&at(96), 1));
        assert!(!first.agrees(&at(100), 1) && !first.agrees(&at(90), 1) && !first.agrees(&at(-1), 1));
    }

    /// Whoever looks: a repair, a resync, a scrub.
    #[test]
    fn copies_are_equal_that_expire_within_two_seconds() {
        let of = |ttl| {
            let seen = Seen { ttl, asked: NOW, answered: NOW, shown: None };
            Some(Item { value: Bytes::from_static(b"v"), flags: 7, cas: ttl.unsigned_abs(), seen, binary: false })
        };
        assert!(are_equal(&of(100), &of(102)) && are_equal(&of(102), &of(100)) && are_equal(&of(-1), &of(-1)));
        assert!(!are_equal(&of(100), &of(103)) && !are_equal(&of(103), &of(100)));
        assert!(!are_equal(&of(100), &of(-1)) && !are_equal(&of(100), &None) && are_equal(&None, &None));
        let other = |change: fn(&mut Item)| {
            let mut item = of(100).unwrap();
            change(&mut item);
            Some(item)
        };
        assert!(!are_equal(&of(100), &other(|item| item.flags = 8)));
        assert!(!are_equal(&of(100), &other(|item| item.value = Bytes::from_static(b"w"))));
    }

    #[test]
    fn a_copy_has_the_date_of_its_original() {
        let second = NOW.as_secs() as i64;
        let of = |ahead: i64| Offset::seen(second + ahead, NOW - Duration::from_millis(10));
        let offsets = Offsets { source: of(-3), target: of(40) };
        let seen = |ttl, shown| Seen { ttl, asked: NOW, answered: NOW, shown };
        for passed in [0, 30] {
            let later = after(passed);
            assert_eq!(offsets.to_target(&seen(100, Some(second)), later), Some(second + 143));
            assert_eq!(offsets.to_source(&seen(100, Some(second)), later), Some(second + 57));
            assert_eq!(offsets.to_target(&seen(-1, Some(second)), later), Some(0));
            assert_eq!(offsets.to_target(&seen(100, None), later), Some(second + 140));
        }
        // Over by now, or in its last second.
        for ttl in [0, 1] {
            assert_eq!(offsets.to_target(&seen(ttl, None), NOW), None);
        }
        assert_eq!(offsets.to_target(&seen(20, None), after(21)), None);
    }

    /// The last date that memcached takes: one beyond it would be long past on the other node. Such
    /// copies are equal, however far apart the two nodes' clocks are.
    #[test]
    fn a_copy_of_what_ends_last_is_no_later_than_memcached_can_be_told() {
        let second = NOW.as_secs() as i64;
        let of = |ahead: i64| Offset::seen(second + ahead, NOW - Duration::from_millis(10));
        let item = |date: i64, shown: i64| {
            let seen = Seen { ttl: date - shown, asked: NOW, answered: NOW, shown: Some(shown) };
            Some(Item { value: Bytes::new(), flags: 0, cas: 1, seen, binary: false })
        };
        for ahead in [1, 5, 3600] {
            let offsets = Offsets { source: of(0), target: of(ahead) };
            let original = item(expiry::DATE_MAX, second);
            let told = offsets.to_target(&original.as_ref().unwrap().seen, NOW);
            assert_eq!(told, Some(expiry::DATE_MAX));
            let copy = item(expiry::DATE_MAX, second + ahead);
            assert!(are_equal(&original, &copy) && are_equal(&copy, &original));
            assert_eq!(offsets.to_source(&copy.unwrap().seen, NOW), Some(expiry::DATE_MAX - ahead));
            let earlier = item(expiry::DATE_MAX - 10_000_000, second);
            assert!(!are_equal(&original, &earlier) && !are_equal(&earlier, &original));
            assert!(!are_equal(&original, &item(second - 1, second)));
        }
    }

    /// Where nobody has measured the other node's dates it counts by itself.
    #[test]
    fn a_copy_for_a_node_of_unknown_date_has_what_is_left() {
        let seen = |ttl| Seen { ttl, asked: NOW, answered: NOW, shown: None };
        let of = |ttl| seen(ttl).exptime_of_copy(None, None, NOW);
        assert_eq!((of(100), of(-1), of(i64::MAX)), (Some(100), Some(0), Some(expiry::RELATIVE_MAX_SECS)));
    }
}
