//! Meta commands: what leader and follower are sent, and what the client is told.

use bytes::Bytes;

use super::super::reply::{ParsedReply, ReplyLimits, parse_reply_within};
use super::super::request::{Keyed, Kind, Limits, Parsed, Request, Style};
use super::*;
use crate::protocol::classic::parse;
use crate::protocol::node::{self, Command as NodeCommand};

/// A request as an operation holds it: the key decoded in its place.
struct Held {
    raw: Bytes,
    key: (usize, usize),
    request: Keyed,
}

impl NodeCommand for Held {
    fn key(&self) -> &[u8] {
        &self.raw[self.key.0..self.key.1]
    }
    fn key_end(&self) -> usize {
        self.key.1
    }
    fn raw(&self) -> &Bytes {
        &self.raw
    }
    fn data(&self) -> std::ops::Range<usize> {
        self.request.data.clone()
    }
    fn flags(&self) -> u32 {
        self.request.flags
    }
    fn delta(&self) -> u64 {
        self.request.delta
    }
    fn initial(&self) -> Option<u64> {
        self.request.initial
    }
}

fn request(input: &str) -> (Keyed, Meta, Style) {
    match parse(input.as_bytes(), &Limits::default()) {
        Parsed::Request { request: Request::Keyed(keyed), style, len } if len == input.len() => {
            let Kind::Meta(meta) = keyed.kind else { panic!("{input}") };
            (keyed, meta, style)
        }
        other => panic!("{input}: {other:?}"),
    }
}

fn held(input: &str) -> (Held, Meta) {
    let (request, meta, _) = request(input);
    let mut raw = input.as_bytes().to_vec();
    let span = request.keys.span.clone();
    let mut key = (span.start, span.end);
    if meta.has(Flag::Binary) {
        let decoded = Decoded::of(&raw[span]).unwrap();
        key.1 = key.0 + decoded.bytes().len();
        raw[key.0..key.1].copy_from_slice(decoded.bytes());
    }
    (Held { raw: raw.into(), key, request }, meta)
}

fn written(put: impl FnOnce(&mut OutQueue)) -> String {
    let mut out = OutQueue::default();
    put(&mut out);
    String::from_utf8(out.one_piece().unwrap().to_vec()).unwrap()
}

/// What the leader is sent, with another expiry and cas id than the client's.
#[test]
fn the_leaders_line_is_written_anew() {
    for (input, sent) in [
        ("mg k\r\n", "mg k F0\r\n"),
        ("mg k q\r\n", "mg k F0\r\n"),
        ("mg k q Lpath Pq\r\n", "mg k F0\r\n"),
        ("mg a2V5 b q\r\n", "mg a2V5 b\r\n"),
        ("mg k s v q Oab k t f h l u c\r\n", "mg k s v Oab k t f h l u c\r\n"),
        ("mg  k  vjunk  T\t30  N+5 R-1x\r\n", ""),
        ("mg k v T30 N+5 R-1\n", "mg k v T77 N5 R-1\r\n"),
        ("mg k v Lpath Pq F1 MS I J1 D1\r\n", "mg k v\r\n"),
        ("mg Zm9v b v k x C9\r\n", "mg Zm9v b v k x C88\r\n"),
        // Blanks and a line's end in a key, and more than one way to write it.
        ("mg Z!gog b v O1\r\n", "mg Zgog b v O1\r\n"),
        ("ms k 2 T30 F4294967301 I q c\r\nab\r\n", "ms k 2 T77 F5 I c\r\nab\r\n"),
        ("ms k +2 ME\r\nab\r\n", "ms k 2 ME\r\nab\r\n"),
        ("ms a2V5 0 b MA N60 C5 s k\r\n\r\n", "ms a2V5 0 b MA N60 C88 s k\r\n\r\n"),
        ("md k q\r\n", "md k\r\n"),
        ("md k I T30 x C5 O7 k\r\n", "md k I T77 x C88 O7 k\r\n"),
        ("ma k\r\n", "ma k v\r\n"),
        ("ma k MD D+5 N60 J\t7 T1 t c v q\r\n", "ma k MD D5 N60 J7 T77 t c v\r\n"),
        ("ma k N60\r\n", "ma k N77 v\r\n"),
        ("ma k M+ F1 f h l s u I R1\r\n", "ma k MI v\r\n"),
        ("me k\r\n", "me k\r\n"),
        ("me a2V5 b\r\n", "me a2V5 b\r\n"),
        ("me k v b\r\n", "me k\r\n"),
    ] {
        if sent.is_empty() {
            assert!(matches!(parse(input.as_bytes(), &Limits::default()), Parsed::Reject { .. }), "{input}");
            continue;
        }
        let (of, meta) = held(input);
        assert_eq!(written(|out| line::put(out, meta, &of, 77, 88)), sent, "{input}");
    }
}

#[test]
fn the_followers_line_makes_its_copy_equal() {
    let (of, meta) = held("ms a2V5 2 b T30 F5 MR C7 c q\r\nab\r\n");
    assert_eq!(written(|out| node::meta_set(out, &of, meta.has(Flag::Binary), 77)), "ms a2V5 2 b T77 F5\r\nab\r\n");
    assert_eq!(written(|out| node::meta_set(out, &of, meta.has(Flag::Binary), 0)), "ms a2V5 2 b F5\r\nab\r\n");
    assert_eq!(written(|out| node::meta_delete(out, &of, meta.has(Flag::Binary))), "md a2V5 b\r\n");
    let (of, meta) = held("ms k 2 MP N5 C7\r\nab\r\n");
    assert_eq!(
        written(|out| node::meta_repeat(out, Kind::Meta(meta), &of, meta.has(Flag::Binary), (false, 0))),
        "ms k 2 MP\r\nab\r\n"
    );
    let (of, meta) = held("ma k MD D5 N60 J9\r\n");
    assert_eq!(written(|out| line::put_count(out, meta, &of, 77)), "ma k MD D5 N77 J9 v\r\n");
    let (of, meta) = held("ma k T30 q c C5 O1 k\r\n");
    assert_eq!(written(|out| line::put_count(out, meta, &of, 77)), "ma k MI D1 T77 v\r\n");
    let (of, meta) = held("ma k N60 T30\r\n");
    assert_eq!(written(|out| line::put_count(out, meta, &of, 77)), "ma k MI D1 N60 T77 v\r\n");
    let (of, meta) = held("ma a2V5 b N60 J9\r\n");
    assert_eq!(written(|out| line::put_count(out, meta, &of, 0)), "ma a2V5 b MI D1 N0 J9 v\r\n");
    let (of, meta) = held("mg k T30 v\r\n");
    assert_eq!(written(|out| node::meta_touch(out, &of, meta.has(Flag::Binary), -1)), "mg k T-1\r\n");
}

#[test]
fn what_a_command_may_change() {
    for (input, write, repeatable, adds, change) in [
        ("mg k v c t f h l s u k q\r\n", false, true, false, Change::Touched),
        ("mg k T0\r\n", true, true, false, Change::Touched),
        ("mg k N5\r\n", true, true, true, Change::Touched),
        ("mg k R5\r\n", true, true, false, Change::Touched),
        ("me k\r\n", false, true, false, Change::Touched),
        ("ms k 0\r\n\r\n", true, true, false, Change::Stored),
        ("ms k 0 MR\r\n\r\n", true, true, false, Change::Stored),
        ("ms k 0 C5\r\n\r\n", true, false, false, Change::Stored),
        ("ms k 0 I\r\n\r\n", true, true, false, Change::Stored),
        ("ms k 0 I C5\r\n\r\n", true, false, false, Change::Unclear),
        ("ms k 0 ME\r\n\r\n", true, false, true, Change::Stored),
        ("ms k 0 MA\r\n\r\n", true, false, false, Change::Joined),
        ("ms k 0 MP N5\r\n\r\n", true, false, true, Change::Joined),
        ("md k\r\n", true, true, false, Change::Deleted),
        ("md k I x\r\n", true, true, false, Change::Stale),
        ("md k x\r\n", true, true, false, Change::Unclear),
        ("ma k\r\n", true, false, false, Change::Counted),
        ("ma k N5\r\n", true, false, true, Change::Counted),
        ("ma k T5\r\n", true, false, false, Change::Unclear),
    ] {
        let (_, meta, _) = request(input);
        let found = (meta.is_write(), meta.is_repeatable(), meta.adds(), meta.change());
        assert_eq!(found, (write, repeatable, adds, change), "{input}");
    }
}

fn told(input: &str, reply: &str) -> String {
    let (of, meta) = held(input);
    let Ok(ParsedReply::Reply(parsed)) = parse_reply_within(reply.as_bytes(), &ReplyLimits::default()) else {
        panic!("{reply}")
    };
    let unit = Bytes::copy_from_slice(reply.as_bytes());
    let told = answer::of_leader(meta, of.key(), &parsed, unit.clone(), |raw| raw + 1000);
    if told == unit {
        assert_eq!(told.as_ptr(), unit.as_ptr(), "copied for nothing");
    }
    String::from_utf8(told.to_vec()).unwrap()
}

#[test]
fn the_leaders_answer_is_passed_on() {
    for (input, reply, client) in [
        ("mg k v\r\n", "VA 2\r\nc5\r\n", "VA 2\r\nc5\r\n"),
        ("mg k v c Oc7 k\r\n", "VA 2 c5 Oc7 kk W\r\nc5\r\n", "VA 2 c1005 Oc7 kk W\r\nc5\r\n"),
        ("mg k c\r\n", "HD c18446744073709550000\r\n", "HD c18446744073709551000\r\n"),
        // A binary key that memcached has forgotten to be one.
        ("mg YSBjNQ== b k c\r\n", "HD ka c5 c9\r\n", "HD ka c5 c1009\r\n"),
        ("ms k 0 c\r\n\r\n", "NS c0\r\n", "NS c0\r\n"),
        ("ma k\r\n", "VA 2\r\n10\r\n", "HD\r\n"),
        ("ma k c O1 t\r\n", "VA 2 c7 O1 t-1\r\n10\r\n", "HD c1007 O1 t-1\r\n"),
        ("ma k v\r\n", "VA 2\r\n10\r\n", "VA 2\r\n10\r\n"),
        ("ma k c v\r\n", "VA 2 c7\r\n10\r\n", "VA 2 c1007\r\n10\r\n"),
        ("ma k c\r\n", "NF\r\n", "NF\r\n"),
        (
            "me k\r\n",
            "ME k exp=-1 la=0 cas=7 fetch=no cls=1 size=63\r\n",
            "ME k exp=-1 la=0 cas=1007 fetch=no cls=1 size=63\r\n",
        ),
        ("mg k c\r\n", "SERVER_ERROR c5\r\n", "SERVER_ERROR c5\r\n"),
    ] {
        assert_eq!(told(input, reply), client, "{input}");
    }
    assert!(answer::is_held_back(b"HD kk Z", b"k") && answer::has_won(b"HD X W", b"k"));
    assert!(!answer::is_held_back(b"HD OW ka W t5", b"a W") && answer::has_won(b"HD ka W W", b"a W"));
}

#[test]
fn a_key_that_the_node_was_not_asked_for_is_told_all_the_same() {
    for (input, reply, client) in [
        ("mg eA0KeQ== b v k f\r\n", "VA 1 f0\r\n7\r\n", "VA 1 keA0KeQ== b f0\r\n7\r\n"),
        ("mg eA0KeQ== b v k\r\n", "VA 1\r\n7\r\n", "VA 1 keA0KeQ== b\r\n7\r\n"),
        ("mg eA0KeQ== b k\r\n", "HD\r\n", "HD keA0KeQ== b\r\n"),
        ("md eA0KeQ== b k O1\r\n", "NF O1\r\n", "NF keA0KeQ== b O1\r\n"),
        ("md eA0KeQ== b O1 k\r\n", "NF O1\r\n", "NF O1 keA0KeQ== b\r\n"),
        ("md eA0KeQ== b O1 k\r\n", "NF  O1\r\n", "NF O1 keA0KeQ== b\r\n"),
        ("mg eA0KeQ== b v q f T9 k O1 s\r\n", "VA 1 f0 O1 s1 W\r\n7\r\n", "VA 1 f0 keA0KeQ== b O1 s1 W\r\n7\r\n"),
        ("ms eA0KeQ== 0 b T9 c k\r\n\r\n", "NS c0\r\n", "NS c0 keA0KeQ== b\r\n"),
        ("mg eA0KeQ== b v f\r\n", "VA 1 f0\r\n7\r\n", "VA 1 f0\r\n7\r\n"),
        ("mg eA0KeQ== b k\r\n", "EN\r\n", "EN keA0KeQ== b\r\n"),
        ("mg eA0KeQ== b f O1 k\r\n", "EN O1\r\n", "EN O1 keA0KeQ== b\r\n"),
        ("mg eA0KeQ== b k\r\n", "SERVER_ERROR out of memory\r\n", "SERVER_ERROR out of memory\r\n"),
        ("mg eA0KeQ== b k\r\n", "ERROR\r\n", "ERROR\r\n"),
        ("mg YSBi b k\r\n", "HD kYSBi b\r\n", "HD kYSBi b\r\n"),
    ] {
        assert_eq!(promised(input, reply), client, "{input}");
    }
}

fn promised(input: &str, reply: &str) -> String {
    let (of, meta) = held(input);
    let flags = || line::flags(meta, of.raw(), of.key_end());
    let told = answer::as_promised(Bytes::copy_from_slice(reply.as_bytes()), meta, of.key(), flags);
    String::from_utf8(told.to_vec()).unwrap()
}

/// The answers of 1.6.10 to 1.6.17, some of which have a blank too many or nothing but their code.
#[test]
fn a_version_that_words_it_otherwise_is_told_as_the_one_that_is_promised() {
    for (input, reply, client) in [
        ("md k\r\n", "HD \r\n", "HD\r\n"),
        ("md k O3 k\r\n", "NF  O3 kk\r\n", "NF O3 kk\r\n"),
        ("ma k\r\n", "NF \r\n", "NF\r\n"),
        ("mg k v O12 k\r\n", "EN\r\n", "EN O12 kk\r\n"),
        ("mg a2V5 b k\r\n", "EN\r\n", "EN ka2V5 b\r\n"),
        ("mg k v\r\n", "EN\r\n", "EN\r\n"),
        ("me k\r\n", "EN\r\n", "EN\r\n"),
        ("mg k v\r\n", "VA 2\r\n  \r\n", "VA 2\r\n  \r\n"),
        ("mg k v\r\n", "VA 0\r\n\r\n", "VA 0\r\n\r\n"),
    ] {
        assert_eq!(promised(input, reply), client, "{input}");
    }
}

#[test]
fn the_proxys_own_answers_have_what_was_asked_for() {
    let own = |input: &str, code: &str| {
        let (of, meta) = held(input);
        let flags = line::flags(meta, of.raw(), of.key_end());
        String::from_utf8(answer::own(code.as_bytes(), meta, of.key(), flags).to_vec()).unwrap()
    };
    assert_eq!(own("mg k v Oab c k\r\n", "EN"), "EN Oab kk\r\n");
    assert_eq!(own("mg a2V5 b k O1 q\r\n", "EN"), "EN ka2V5 b O1\r\n");
    assert_eq!(own("ms k 0 k\r\n\r\n", "NS"), "NS kk\r\n");
    let number = |input: &str| {
        let (of, meta) = held(input);
        let flags = line::flags(meta, of.raw(), of.key_end());
        String::from_utf8(answer::own_number(10, meta, of.key(), flags).to_vec()).unwrap()
    };
    assert_eq!((number("ma k O1\r\n"), number("ma k v O1\r\n")), ("HD O1\r\n".into(), "VA 2 O1\r\n10\r\n".into()));
    let (of, meta) = held("ma k N0 J\t12\r\n");
    assert_eq!(line::initial(line::flags(meta, of.raw(), of.key_end())), 12);
}

/// Quiet requests are told what is out of the ordinary, and every error.
#[test]
fn what_is_not_told() {
    let told = |input: &str, outcome: Outcome| {
        let (_, _, style) = request(input);
        written(|out| style.write(outcome, out))
    };
    let raw = |text: &'static str| Outcome::Raw(Bytes::from_static(text.as_bytes()));
    for (input, reply, silent) in [
        ("mg k v q\r\n", "EN O1\r\n", true),
        ("mg k v q\r\n", "VA 1\r\nv\r\n", false),
        ("mg k v q\r\n", "HD\r\n", false),
        ("mg k v\r\n", "EN\r\n", false),
        ("ms k 0 q\r\n\r\n", "HD\r\n", true),
        ("ms k 0 q\r\n\r\n", "NS\r\n", false),
        ("md k q\r\n", "HD\r\n", true),
        ("md k q\r\n", "NF\r\n", false),
        ("ma k v q\r\n", "VA 1\r\n5\r\n", true),
        ("ma k v q\r\n", "EX\r\n", false),
        ("ma k q\r\n", "SERVER_ERROR out of memory\r\n", false),
    ] {
        assert_eq!(told(input, raw(reply)), if silent { "" } else { reply }, "{input}");
    }
    let refused = Outcome::Refused(super::super::outcome::Refusal::Server("no"));
    assert_eq!(told("ms k 0 q\r\n\r\n", refused), "SERVER_ERROR no\r\n");
    let Parsed::Request { style, .. } = parse(b"mn\r\n", &Limits::default()) else { panic!() };
    assert_eq!(written(|out| style.write(Outcome::Done, out)), "MN\r\n");
}
