//! Classic requests as memcached 1.6.18 takes them, and what it refuses.

use super::super::fuzz::Dice;
use super::super::meta::Hidden;
use super::super::request::{Admin, Family, Keyed, Kind, Request, item_size};
use super::*;

const LIMITS: Limits = Limits { item_size_max: 1000 };

fn request(buf: &[u8]) -> (Request, bool, usize) {
    match parse(buf, &LIMITS) {
        Parsed::Request { request, style: Style::Classic { noreply }, len } => (request, noreply, len),
        other => panic!("{:?}: {other:?}", buf.escape_ascii().to_string()),
    }
}

fn keyed(buf: &[u8]) -> (Keyed, bool, usize) {
    match request(buf) {
        (Request::Keyed(keyed), noreply, len) => (keyed, noreply, len),
        other => panic!("{:?}: {other:?}", buf.escape_ascii().to_string()),
    }
}

#[test]
fn a_set_has_all_its_fields() {
    let buf = b"  set key-1  7 -3 5 noreply\r\nhello\r\nget x\r\n";
    let (request, noreply, len) = keyed(buf);
    assert_eq!((request.kind, request.keys.count), (Kind::Set, 1));
    assert_eq!(&buf[request.keys.span.clone()], b"key-1");
    assert_eq!((request.flags, request.exptime, noreply), (7, -3, true));
    assert_eq!(&buf[request.data.clone()], b"hello");
    assert_eq!(&buf[len..], b"get x\r\n");
}

/// The short way for lines as most clients write them says what the long one says, or nothing.
#[test]
fn a_store_that_is_plainly_written_is_read_as_all_else() {
    let mut dice = Dice::new(3);
    let mut short = 0;
    for _ in 0..100_000 {
        let key = dice.pick(&["k", "key-000001", "k\tey", "noreply", "", " k", "0"]);
        let long = "k".repeat(248 + dice.below(5));
        let key = if dice.below(8) == 0 { &long } else { key };
        let number =
            |dice: &mut Dice| dice.pick(&["0", "7", "00", "999999999", "1000000000", "-1", "+1", "", "1 ", "1\t"]);
        let (flags, exptime) = (number(&mut dice), number(&mut dice));
        let length = dice.pick(&["3", "3", "3", "4", "03", "999999999", "3 noreply", "3 ", "", "3\0"]);
        let mut buf = format!("{} {key} {flags} {exptime} {length}\r\nabc\r\n", dice.pick(&["set", "add", "append"]));
        if dice.below(4) == 0 {
            buf = buf.replacen(' ', "  ", 1);
        }
        let buf = buf.as_bytes();
        let Line::Whole { end, len: line_len } = first_line(buf) else { panic!("{}", buf.escape_ascii()) };
        let command = Command { buf, line_len, limits: &LIMITS };
        let mut words = Words::new(buf, 0..end);
        words.next();
        short += usize::from(words.word_and_numbers::<3>().is_some());
        assert_eq!(command.storage(Kind::Set, words.clone()), command.storage_spelled(Kind::Set, words));
    }
    assert!((3_000..50_000).contains(&short), "{short}");
}

#[test]
fn a_get_knows_how_many_keys_it_has() {
    for (line, count) in [("get a", 1), ("gets a a", 2), ("gat 0  a bb   ccc ", 3), ("  get  a b c d", 4)] {
        let buf = format!("{line}\r\n");
        let keys = keyed(buf.as_bytes()).0.keys;
        assert_eq!((keys.count as usize, keys.iter(buf.as_bytes()).count()), (count, count), "{line}");
    }
}

#[test]
fn values_may_hold_anything() {
    let buf = b"add k 0 0 7\r\n\r\n\0END\n\r\n";
    let (request, _, len) = keyed(buf);
    assert_eq!((&buf[request.data], len), (&b"\r\n\0END\n"[..], buf.len()));
    assert!(matches!(parse(b"set k 0 0 0\r\n\r\n", &LIMITS), Parsed::Request { len: 15, .. }));
}

#[test]
fn every_verb_is_found_by_its_name() {
    for (line, kind) in [
        ("get k", Kind::Get),
        ("gets k", Kind::Gets),
        ("gat 1 k", Kind::Gat),
        ("gats 1 k", Kind::Gats),
        ("set k 0 0 1", Kind::Set),
        ("add k 0 0 1", Kind::Add),
        ("replace k 0 0 1", Kind::Replace),
        ("append k 0 0 1", Kind::Append),
        ("prepend k 0 0 1", Kind::Prepend),
        ("cas k 0 0 1 9", Kind::Cas),
        ("incr k 1", Kind::Incr),
        ("decr k 1", Kind::Decr),
        ("delete k", Kind::Delete),
        ("touch k 1", Kind::Touch),
    ] {
        let mut buf = format!("{line}\r\n").into_bytes();
        if kind.family() == Family::Store {
            buf.extend_from_slice(b"x\r\n");
        }
        let (request, _, len) = keyed(&buf);
        assert_eq!((request.kind, len), (kind, buf.len()));
        assert!(line.starts_with(kind.name()));
        assert_eq!(request.keys.iter(&buf).map(|key| &buf[key]).collect::<Vec<_>>(), [b"k"], "{line}");
    }
    for (line, admin) in [
        ("flush_all", Admin::FlushAll { delay: 0 }),
        ("version", Admin::Version),
        ("verbosity 1", Admin::Verbosity { level: 1 }),
        ("stats", Admin::Stats(5..5)),
        ("resync", Admin::Resync(6..6)),
        ("quit", Admin::Quit),
    ] {
        let buf = format!("{line}\r\n").into_bytes();
        let (request, noreply, len) = request(&buf);
        assert!(line.starts_with(request.name()));
        assert_eq!((request, noreply, len), (Request::Admin(admin), false, buf.len()));
    }
}

#[test]
fn retrievals_take_many_keys() {
    let mut buf = b"gats -1".to_vec();
    let keys: Vec<Vec<u8>> = (0..250).map(|i| format!("key:{i:0>width$}", width = 10 + i % 200).into_bytes()).collect();
    for key in &keys {
        buf.extend_from_slice(b"  ");
        buf.extend_from_slice(key);
    }
    buf.extend_from_slice(b" \r\n");
    let (request, _, len) = keyed(&buf);
    assert_eq!((request.exptime, len, request.keys.count), (-1, buf.len(), 250));
    assert!(request.keys.iter(&buf).map(|key| &buf[key]).eq(keys.iter().map(Vec::as_slice)));
}

#[test]
fn numbers_land_in_their_fields() {
    let cas = b"cas k 4294967297 4294967297 1 18446744073709551615\r\nx\r\n";
    let (cas, ..) = keyed(cas);
    assert_eq!((cas.flags, cas.exptime, cas.cas), (1, 1, u64::MAX), "flags and exptime are cut to 32 bits");
    assert_eq!(keyed(b"incr k 18446744073709551615\r\n").0.delta, u64::MAX);
    assert_eq!(keyed(b"touch k -2\r\n").0.exptime, -2);
    assert_eq!(request(b"verbosity 3\r\n").0, Request::Admin(Admin::Verbosity { level: 3 }));
    for (line, delay, noreply) in [
        (&b"flush_all\r\n"[..], 0, false),
        (b"flush_all noreply\r\n", 0, true),
        (b"flush_all 10\r\n", 10, false),
        (b"flush_all -1\r\n", -1, false),
        (b"flush_all 10 noreply\r\n", 10, true),
        (b"flush_all 10 20\r\n", 10, false),
    ] {
        let (request, silent, _) = request(line);
        assert_eq!((request, silent), (Request::Admin(Admin::FlushAll { delay }), noreply));
    }
}

#[test]
fn resync_and_stats_keep_their_words() {
    for (line, args) in [
        ("resync", ""),
        ("resync status", "status"),
        ("resync  cancel   x ", "cancel   x"),
        ("resync verify", "verify"),
        ("resync 10.0.0.1:11211", "10.0.0.1:11211"),
        ("stats", ""),
        ("stats cachedump 1 0", "cachedump 1 0"),
    ] {
        let buf = format!("{line}\r\n");
        let (Request::Admin(Admin::Stats(words) | Admin::Resync(words)), ..) = request(buf.as_bytes()) else {
            panic!()
        };
        assert_eq!(&buf[words], args);
    }
}

#[test]
fn says_how_much_is_missing() {
    assert_eq!(parse(b"set k 0 0 500\r\nab", &LIMITS), Parsed::Incomplete { need: 15 + 502 });
    assert_eq!(parse(b"set k 0 0 5", &LIMITS), Parsed::Incomplete { need: 0 });
    assert_eq!(parse(b"", &LIMITS), Parsed::Incomplete { need: 0 });
}

#[test]
fn items_above_the_limit() {
    // 48 + 8 + 1 + 1 + 2 = 60 bytes beside the value, 64 with client flags.
    assert_eq!((item_size(1, 0, 940), item_size(1, 1, 936)), (1000, 1000));
    assert!(matches!(parse(b"set k 0 0 940\r\n", &LIMITS), Parsed::Incomplete { .. }));
    assert!(matches!(parse(b"set k 1 0 936\r\n", &LIMITS), Parsed::Incomplete { .. }));
    assert!(matches!(parse(b"set k 4294967296 0 940\r\n", &LIMITS), Parsed::Incomplete { .. }), "these flags are 0");
    for (line, noreply, swallow) in [
        (&b"set k 0 0 941\r\n"[..], false, 943),
        (b"set k 1 0 937\r\n", false, 939),
        (b"set k 0 0 941 noreply\r\n", true, 943),
        (b"set k 0 0 2147483645\r\n", false, 2_147_483_647),
    ] {
        let Parsed::TooLarge { request, style, len, swallow: found } = parse(line, &LIMITS) else { panic!() };
        assert_eq!((request.kind, &line[request.keys.span], style), (Kind::Set, &b"k"[..], Style::Classic { noreply }));
        assert_eq!((len, found, request.data), (line.len(), swallow, 0..0));
    }
    assert!(matches!(parse(b"set k 0 0 2147483646\r\n", &LIMITS), Parsed::Reject { reply: answer::BAD_FORMAT, .. }));
}

/// Once its length is understood, the value goes with what is refused: left in the stream it would
/// be taken for commands.
#[test]
fn meta_sets_are_refused_with_their_value() {
    for (line, reply, swallow) in [
        (&b"ms key 5 T0 Q\r\n"[..], &b"CLIENT_ERROR invalid flag\r\n"[..], 7),
        (b"ms key 5 E7\r\n", b"CLIENT_ERROR invalid flag\r\n", 7),
        (b"ms key 5 MX\r\n", b"CLIENT_ERROR invalid mode for ms M token\r\n", 7),
        (b"ms key\r\n", answer::BAD_FORMAT, 0),
        (b"ms key x\r\n", answer::BAD_FORMAT, 0),
        (b"mg\r\n", answer::ERROR, 0),
    ] {
        let style = Style::Meta(Hidden::Nothing);
        let expected = Parsed::Reject { reply, style, len: line.len(), swallow, close: None };
        assert_eq!(parse(line, &LIMITS), expected);
    }
}

/// Ranges lie inside the consumed bytes, and a beginning of the buffer is either too little or
/// gives the same.
fn check(buf: &[u8]) {
    let whole = parse(buf, &LIMITS);
    match &whole {
        Parsed::Incomplete { need } => assert!(*need == 0 || *need > buf.len()),
        Parsed::Request { request: Request::Keyed(request), len, .. } => {
            assert!(*len <= buf.len());
            for range in [&request.keys.span, &request.data] {
                assert!(range.start <= range.end && range.end <= *len);
            }
            let mut keys = request.keys.iter(buf).map(|key| &buf[key]).peekable();
            assert!(keys.peek().is_some());
            assert_eq!(request.keys.iter(buf).count(), request.keys.count as usize);
            assert!(request.keys.count == 1 || request.kind.family() == Family::Retrieve);
            assert!(keys.all(|key| (1..=crate::protocol::KEY_LEN_MAX).contains(&key.len())
                && !key.iter().any(|b| b" \n\0".contains(b))));
        }
        Parsed::Request { request: Request::Admin(admin), len, .. } => {
            assert!(*len <= buf.len());
            if let Admin::Stats(words) | Admin::Resync(words) = admin {
                assert!(words.start <= words.end && words.end <= *len);
            }
        }
        Parsed::TooLarge { len, swallow, .. } => assert!(*len <= buf.len() && *swallow >= 2),
        Parsed::Piece(_) => panic!("no line is so long here"),
        Parsed::Reject { reply, len, .. } => {
            assert!(*len <= buf.len() && *len > 0);
            assert!(reply.is_empty() || reply.ends_with(b"\r\n"));
        }
    }
    for split in 0..buf.len() {
        match parse(&buf[..split], &LIMITS) {
            Parsed::Incomplete { need } => assert!(need == 0 || need > split),
            other => assert_eq!(other, whole, "{} cut at {split}", buf.escape_ascii()),
        }
    }
}

#[test]
fn no_bytes_panic_and_splits_change_nothing() {
    let seeds: [&[u8]; 18] = [
        b"get a b  c\r\n",
        b"gat 10 a b\r\n",
        b"set k 1 2 5\r\nhello\r\nget k\r\n",
        b"cas k 0 0 3 77 noreply\r\nabc\r\n",
        b"append k 0 0 0\r\n\r\n",
        b"incr k 5\r\n",
        b"delete k 0 noreply\r\n",
        b"touch k -1\n",
        b"flush_all 10 noreply\r\n",
        b"verbosity 1\r\n",
        b"stats items\r\nquit\r\n",
        b"resync cancel 10.0.0.1:11211\r\n",
        b"ms k 3 T0\r\nabc\r\n",
        b"ms a2V5 3 b F5 ME I C7 q O1\r\nabc\r\n",
        b"mg a2V5 b v k c N30 R5 T0 Oab q\r\n",
        b"ma k N0 J5 D7 MD\r\nmn\r\n",
        b"md k I x T30 C5\r\nme k b\r\n",
        b"GET / HTTP/1.1\r\n",
    ];
    let mut dice = Dice::new(1);
    for _ in 0..30_000 {
        let mut buf = dice.pick(&seeds).to_vec();
        dice.mutate(&mut buf);
        check(&buf);
    }
    for _ in 0..5_000 {
        check(&dice.bytes(60));
    }
    // Around the bounds on lines.
    for start in ["get ", "set k 0 0 ", "x", "gat 1 "] {
        for len in [2047, 2048, 2049, 2050] {
            let mut buf = start.as_bytes().to_vec();
            buf.resize(len, b'1');
            buf.extend_from_slice(b"\r\n");
            check(&buf);
        }
    }
}
