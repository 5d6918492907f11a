//! Binary requests and answers, field by field.

use bytes::Bytes;

use super::super::fuzz::Dice;
use super::super::out::OutQueue;
use super::super::outcome::{Fields, Outcome, Refusal};
use super::super::request::{Admin, Keyed, Kind, Limits, Parsed, Request, Style, item_size};
use super::*;

const LIMITS: Limits = Limits { item_size_max: 1000 };
const OPAQUE: [u8; 4] = [9, 8, 7, 6];

/// A request with a right header.
fn packet(opcode: u8, extras: &[u8], key: &[u8], value: &[u8], cas: u64) -> Vec<u8> {
    let mut bytes = vec![MAGIC_REQUEST, opcode];
    bytes.extend((key.len() as u16).to_be_bytes());
    bytes.extend([extras.len() as u8, 0, 0, 0]);
    bytes.extend(((extras.len() + key.len() + value.len()) as u32).to_be_bytes());
    bytes.extend(OPAQUE);
    bytes.extend(cas.to_be_bytes());
    [&bytes, extras, key, value].concat()
}

fn store_extras(flags: u32, exptime: u32) -> Vec<u8> {
    [flags.to_be_bytes(), exptime.to_be_bytes()].concat()
}

fn count_extras(delta: u64, initial: u64, exptime: u32) -> Vec<u8> {
    [&delta.to_be_bytes()[..], &initial.to_be_bytes(), &exptime.to_be_bytes()].concat()
}

fn keyed(bytes: &[u8]) -> Keyed {
    match parse(bytes, &LIMITS) {
        Parsed::Request { request: Request::Keyed(keyed), style, len } => {
            assert_eq!((style, len), (Style::Binary { opcode: Opcode(bytes[1]), opaque: OPAQUE }, bytes.len()));
            assert!(keyed.tells_cas && keyed.keys.count == 1);
            keyed
        }
        other => panic!("{other:?}"),
    }
}

fn refused(bytes: &[u8]) -> (&'static [u8], usize, bool) {
    match parse(bytes, &LIMITS) {
        Parsed::Reject { reply, swallow, close, .. } => (reply, swallow, close.is_some()),
        other => panic!("{other:?}"),
    }
}

/// Status, extras and key and value in one, cas id; nothing if nothing is said.
fn told(opcode: u8, outcome: Outcome) -> Option<(u16, Vec<u8>, u64)> {
    let mut out = OutQueue::default();
    write(Opcode(opcode), OPAQUE, outcome, &mut out);
    let bytes = out.one_piece().unwrap().to_vec();
    let (head, body) = bytes.split_first_chunk::<HEADER_LEN>()?;
    assert_eq!((head[0], head[1], &head[12..16]), (0x81, opcode, &OPAQUE[..]));
    assert_eq!(u32::from_be_bytes(head[8..12].try_into().unwrap()) as usize, body.len());
    let status = u16::from_be_bytes(head[6..8].try_into().unwrap());
    Some((status, body.to_vec(), u64::from_be_bytes(head[16..].try_into().unwrap())))
}

#[test]
fn every_field_is_where_it_belongs() {
    let bytes = packet(0x01, &store_extras(7, 60), b"a b\n", b"value", 0);
    let set = keyed(&bytes);
    assert_eq!((set.kind, set.flags, set.exptime, set.cas, set.initial), (Kind::Set, 7, 60, 0, None));
    assert_eq!((&bytes[set.keys.span], &bytes[set.data]), (&b"a b\n"[..], &b"value"[..]));
    for (opcode, kind) in [(0x05, Kind::Incr), (0x16, Kind::Decr)] {
        let bytes = packet(opcode, &count_extras(3, 40, 60), b"n", b"", 9);
        let count = keyed(&bytes);
        assert_eq!((count.kind, count.delta, count.initial, count.exptime), (kind, 3, Some(40), 60));
        assert_eq!((&bytes[count.keys.span], count.cas), (&b"n"[..], 9));
        let plain = keyed(&packet(opcode, &count_extras(3, 40, u32::MAX), b"n", b"", 0));
        assert_eq!((plain.delta, plain.initial, plain.exptime), (3, None, 0));
    }
    for (opcode, kind) in [(0x1c, Kind::Gats), (0x1d, Kind::Gats), (0x24, Kind::Gats)] {
        let touch = keyed(&packet(opcode, &9_u32.to_be_bytes(), b"k", b"", 5));
        assert_eq!((touch.kind, touch.exptime, touch.cas), (kind, 9, 0));
    }
}

/// A cas id makes `cas` of whatever stores by itself; others keep it as their condition.
#[test]
fn a_cas_id_is_a_condition_of_every_write() {
    for opcode in [0x01, 0x02, 0x03, 0x11, 0x12, 0x13] {
        let set = keyed(&packet(opcode, &store_extras(0, 0), b"k", b"v", 5));
        assert_eq!((set.kind, set.cas), (Kind::Cas, 5));
    }
    for (opcode, kind) in [(0x0e, Kind::Append), (0x1a, Kind::Prepend), (0x04, Kind::Delete), (0x14, Kind::Delete)] {
        let value: &[u8] = if kind == Kind::Delete { b"" } else { b"v" };
        let write = keyed(&packet(opcode, b"", b"k", value, 5));
        assert_eq!((write.kind, write.cas), (kind, 5));
    }
    assert_eq!(keyed(&packet(0x00, b"", b"k", b"", 5)).cas, 0, "a read has no condition");
}

#[test]
fn a_far_date_is_the_last_that_text_can_say() {
    for (exptime, told) in [(0, 0), (i32::MAX as u32, i64::from(i32::MAX)), (1 << 31, i64::from(i32::MAX))] {
        assert_eq!(keyed(&packet(0x01, &store_extras(0, exptime), b"k", b"v", 0)).exptime, told);
    }
}

#[test]
fn what_memcached_refuses_is_refused() {
    const UNKNOWN: &[u8] = b"\x00\x81Unknown command";
    const INVALID: &[u8] = b"\x00\x04Invalid arguments";
    assert_eq!(refused(&packet(0x1b, &[0; 4], b"", b"", 0)), (UNKNOWN, 0, false), "verbosity");
    assert_eq!(refused(&packet(0x77, b"xx", b"key", b"value", 0)), (UNKNOWN, 5, false));
    assert_eq!(refused(&packet(0x20, b"", b"", b"", 0)), (UNKNOWN, 0, false), "SASL list");
    assert_eq!(refused(&packet(0x21, b"", b"PLAIN", b"\0u\0p", 0)), (UNKNOWN, 4, false), "SASL auth");
    assert_eq!(refused(&packet(0x00, b"", b"", b"", 0)), (INVALID, 0, true));
    assert_eq!(refused(&packet(0x01, b"1234", b"k", b"v", 0)), (INVALID, 0, true));
    assert_eq!(refused(&packet(0x00, b"", &[b'k'; 251], b"", 0)), (INVALID, 0, true));
    assert_eq!(refused(&packet(0x0a, b"", b"k", b"", 0)), (INVALID, 0, true));
    let mut short = packet(0x00, b"", b"k", b"", 0);
    short[11] = 0;
    assert_eq!(refused(&short), (UNKNOWN, 0, true), "a key longer than the body");
    let (reply, _, close) = refused(b"get k\r\n");
    assert!(reply.starts_with(b"\x00\x04") && close, "text behind a binary request");
    let (reply, swallow, close) = refused(&packet(0x01, &store_extras(0, 0), &[b' '; 187], b"value", 0));
    assert!(reply.starts_with(b"\x00\x04a key") && (swallow, close) == (5, false));
    keyed(&packet(0x01, &store_extras(0, 0), &[b' '; 186], b"value", 0));
    keyed(&packet(0x01, &store_extras(0, 0), &[0xff; 250], b"value", 0));
}

#[test]
fn what_is_too_large_is_known_before_its_value_comes() {
    let room = LIMITS.item_size_max - item_size(1, 0, 0);
    for opcode in [0x01, 0x0e] {
        let extras = if opcode == 0x01 { store_extras(0, 0) } else { Vec::new() };
        let bytes = packet(opcode, &extras, b"k", &vec![b'x'; room + 1], 8);
        let head = HEADER_LEN + extras.len() + 1;
        match parse(&bytes[..head], &LIMITS) {
            Parsed::TooLarge { request, len, swallow, .. } => {
                assert_eq!((len, swallow), (head, room + 1));
                assert_eq!(request.kind, if opcode == 0x01 { Kind::Set } else { Kind::Append });
            }
            other => panic!("{other:?}"),
        }
        keyed(&packet(opcode, &extras, b"k", &vec![b'x'; room], 0));
    }
}

#[test]
fn a_request_in_pieces_is_waited_for() {
    let bytes = packet(0x01, &store_extras(0, 0), b"key", b"value", 0);
    for len in 0..bytes.len() {
        match parse(&bytes[..len], &LIMITS) {
            Parsed::Incomplete { need } => assert!(need > len && need <= bytes.len(), "{need} of {len}"),
            other => panic!("{len}: {other:?}"),
        }
    }
}

#[test]
fn nothing_makes_the_parser_panic() {
    let mut dice = Dice::new(7);
    let whole = [
        packet(0x01, &store_extras(0, 0), b"key", b"value", 0),
        packet(0x05, &count_extras(1, 2, 3), b"key", b"", 0),
        packet(0x10, b"", b"settings", b"", 0),
    ];
    for _ in 0..100_000 {
        let mut bytes = dice.pick(&[&whole[0][..], &whole[1], &whole[2]]).to_vec();
        dice.mutate(&mut bytes);
        match parse(&bytes, &LIMITS) {
            Parsed::Incomplete { need } => assert!(need > bytes.len()),
            Parsed::Request { len, .. } | Parsed::TooLarge { len, .. } | Parsed::Reject { len, .. } => {
                assert!(len > 0 && len <= bytes.len());
            }
            Parsed::Piece(_) => panic!("no line"),
        }
    }
}

fn fields() -> Outcome {
    let (key, value) = (Bytes::from_static(b"k y"), Bytes::from_static(b"value"));
    Outcome::Item(Box::new(Fields { key, value, flags: 7, cas: 9 }))
}

#[test]
fn reads_are_answered_with_what_they_asked_for() {
    let hit = || Outcome::Hit(Bytes::from_static(b"VALUE key 7 5 9\r\nvalue\r\n"));
    assert_eq!(told(0x00, hit()), Some((0, b"\0\0\0\x07value".to_vec(), 9)));
    assert_eq!(told(0x0c, hit()), Some((0, b"\0\0\0\x07keyvalue".to_vec(), 9)));
    assert_eq!(told(0x0d, fields()), Some((0, b"\0\0\0\x07k yvalue".to_vec(), 9)));
    assert_eq!(told(0x1c, fields()), Some((0, b"\0\0\0\x07".to_vec(), 9)), "touch");
    let miss = || Outcome::MissOf(Bytes::from_static(b"k y"));
    assert_eq!(told(0x00, miss()), Some((1, b"Not found".to_vec(), 0)));
    assert_eq!(told(0x23, miss()), Some((1, b"k y".to_vec(), 0)));
    assert_eq!(told(0x0c, Outcome::Miss), Some((1, b"Not found".to_vec(), 0)));
    for quiet in [0x09, 0x0d, 0x1e, 0x24] {
        assert_eq!(told(quiet, miss()), None);
        assert!(told(quiet, fields()).is_some());
    }
}

#[test]
fn quiet_commands_speak_of_what_went_wrong_alone() {
    for quiet in 0x11..=0x1a_u8 {
        for fine in [Outcome::StoredAs(4), Outcome::Deleted, Outcome::NumberAs { number: 3, cas: 1 }, Outcome::Done] {
            assert_eq!(told(quiet, fine), None);
        }
        assert_eq!(told(quiet, Outcome::NotFound), Some((1, b"Not found".to_vec(), 0)));
        assert!(told(quiet, Outcome::Refused(Refusal::Server("no"))).is_some());
    }
    assert_eq!(told(0x01, Outcome::StoredAs(4)), Some((0, Vec::new(), 4)));
    assert_eq!(told(0x05, Outcome::NumberAs { number: 3, cas: 1 }), Some((0, 3_u64.to_be_bytes().to_vec(), 1)));
    assert_eq!(told(0x07, Outcome::Quit), Some((0, Vec::new(), 0)));
}

#[test]
fn refusals_have_their_status() {
    for (opcode, outcome, status, text) in [
        (0x02, Outcome::NotStored, 2, "Data exists for key."),
        (0x03, Outcome::NotStored, 1, "Not found"),
        (0x0e, Outcome::NotStored, 5, "Not stored."),
        (0x01, Outcome::Exists, 2, "Data exists for key."),
        (0x01, Outcome::Refused(Refusal::TooLarge), 3, "Too large."),
        (0x01, Outcome::Refused(Refusal::NoMemory("no memory")), 0x82, "no memory"),
        (0x00, Outcome::Refused(Refusal::Server("no copy")), 0x84, "no copy"),
        (0x00, Outcome::Refused(Refusal::Client("not yours")), 4, "not yours"),
        (0x55, Outcome::Own(b"\x00\x81Unknown command"), 0x81, "Unknown command"),
    ] {
        assert_eq!(told(opcode, outcome), Some((status, text.as_bytes().to_vec(), 0)));
    }
    for (line, status, text) in [
        (
            "CLIENT_ERROR cannot increment or decrement non-numeric value",
            6,
            "Non-numeric server-side value for incr or decr",
        ),
        ("SERVER_ERROR object too large for cache", 3, "Too large."),
        ("SERVER_ERROR out of memory storing object", 0x82, "out of memory storing object"),
        ("SERVER_ERROR what", 0x84, "what"),
        ("CLIENT_ERROR what", 4, "what"),
        ("ERROR", 0x81, "Unknown command"),
    ] {
        let raw = Outcome::Raw(Bytes::from(format!("{line}\r\n")));
        assert_eq!(told(0x01, raw), Some((status, text.as_bytes().to_vec(), 0)));
    }
    assert_eq!(told(0x08, Outcome::Raw(Bytes::from_static(b"OK\r\n"))), Some((0, Vec::new(), 0)));
}

#[test]
fn statistics_come_one_by_one() {
    let mut out = OutQueue::default();
    let lines = Bytes::from_static(b"STAT pid 7\r\nSTAT name two words\r\nEND\r\n");
    write(Opcode(0x10), OPAQUE, Outcome::Raw(lines), &mut out);
    let all = out.one_piece().unwrap().to_vec();
    let (mut rest, mut seen) = (&all[..], Vec::new());
    while !rest.is_empty() {
        let key_len = u16::from_be_bytes([rest[2], rest[3]]) as usize;
        let len = HEADER_LEN + u32::from_be_bytes(rest[8..12].try_into().unwrap()) as usize;
        let body = String::from_utf8(rest[HEADER_LEN..len].to_vec()).unwrap();
        seen.push((body[..key_len].to_owned(), body[key_len..].to_owned()));
        rest = &rest[len..];
    }
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(seen, [pair("pid", "7"), pair("name", "two words"), pair("", "")]);
    for end in [&b"END\r\n"[..], b"RESET\r\n", b"OK\r\n"] {
        assert_eq!(told(0x10, Outcome::Raw(Bytes::from_static(end))), Some((0, Vec::new(), 0)));
    }
    for none in [&b"ERROR\r\n"[..], b"CLIENT_ERROR no\r\n"] {
        assert_eq!(told(0x10, Outcome::Raw(Bytes::from_static(none))), Some((1, b"Not found".to_vec(), 0)));
    }
}

#[test]
fn admin_commands_are_found() {
    for (bytes, admin) in [
        (packet(0x0a, b"", b"", b"", 0), Admin::Noop),
        (packet(0x0b, b"", b"", b"", 0), Admin::Version),
        (packet(0x07, b"", b"", b"", 0), Admin::Quit),
        (packet(0x17, b"", b"", b"", 0), Admin::Quit),
        (packet(0x08, b"", b"", b"", 0), Admin::FlushAll { delay: 0 }),
        (packet(0x18, &5_u32.to_be_bytes(), b"", b"", 0), Admin::FlushAll { delay: 5 }),
        (packet(0x10, b"", b"", b"", 0), Admin::Stats(24..24)),
        (packet(0x10, b"", b"settings", b"", 0), Admin::Stats(24..32)),
    ] {
        assert!(
            matches!(parse(&bytes, &LIMITS), Parsed::Request { request: Request::Admin(found), .. } if found == admin)
        );
    }
}
