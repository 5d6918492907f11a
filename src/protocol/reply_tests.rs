//! Replies of nodes, whole, in part, and wrong.

use super::super::fuzz::Dice;
use super::*;

fn reply(buf: &[u8]) -> Reply {
    parse_reply(buf).unwrap().unwrap()
}

#[test]
fn one_line_replies() {
    for (line, kind) in [
        ("END", ReplyKind::End),
        ("STORED", ReplyKind::Stored),
        ("NOT_STORED", ReplyKind::NotStored),
        ("EXISTS", ReplyKind::Exists),
        ("NOT_FOUND", ReplyKind::NotFound),
        ("DELETED", ReplyKind::Deleted),
        ("TOUCHED", ReplyKind::Touched),
        ("OK", ReplyKind::Ok),
        ("RESET", ReplyKind::Reset),
        ("0", ReplyKind::Number(0)),
        ("18446744073709551615", ReplyKind::Number(u64::MAX)),
        ("ERROR", ReplyKind::Error),
        ("ERROR locked try again later", ReplyKind::Error),
        ("CLIENT_ERROR bad command line format", ReplyKind::ClientError),
        ("SERVER_ERROR out of memory storing object", ReplyKind::ServerError),
        ("BUSY currently processing crawler request", ReplyKind::Busy),
        ("VERSION 1.6.18", ReplyKind::Version { version: 8..14 }),
        ("STAT pid 7", ReplyKind::Stat { name: 5..8, value: 9..10 }),
        ("STAT a:b c d", ReplyKind::Stat { name: 5..8, value: 9..12 }),
        ("STAT empty ", ReplyKind::Stat { name: 5..10, value: 11..11 }),
        ("STAT empty", ReplyKind::Stat { name: 5..10, value: 10..10 }),
        ("HD", ReplyKind::MetaHd),
        ("HD c12 kfoo", ReplyKind::MetaHd),
        ("EN", ReplyKind::MetaEn),
        ("NS O1", ReplyKind::MetaNs),
        ("EX", ReplyKind::MetaEx),
        ("NF kfoo", ReplyKind::MetaNf),
        ("MN", ReplyKind::MetaMn),
        ("ME foo exp=-1", ReplyKind::MetaMe),
    ] {
        let buf = format!("{line}\r\nrest");
        assert_eq!(reply(buf.as_bytes()), Reply { kind, line: 0..line.len(), len: line.len() + 2 }, "{line}");
    }
}

#[test]
fn values() {
    let buf = b"VALUE foo 7 5 99\r\nhel\r\n\r\nEND\r\n";
    let kind = ReplyKind::Value { key: 6..9, flags: 7, data: 18..23, cas: Some(99) };
    assert_eq!(reply(buf), Reply { kind, line: 0..16, len: 25 });
    let buf = b"VALUE foo 0 0\r\n\r\nVALUE b";
    let kind = ReplyKind::Value { key: 6..9, flags: 0, data: 15..15, cas: None };
    assert_eq!(reply(buf), Reply { kind, line: 0..13, len: 17 });
    let buf = b"VA 5 c12 t-1\r\nhello\r\nMN\r\n";
    assert_eq!(reply(buf), Reply { kind: ReplyKind::MetaVa { data: 14..19 }, line: 0..12, len: 21 });
}

#[test]
fn says_how_much_is_missing() {
    let limits = ReplyLimits::default();
    let needs = |buf: &[u8], need| {
        assert_eq!(parse_reply_within(buf, &limits), Ok(ParsedReply::Incomplete { need }));
        assert_eq!(parse_reply(buf), Ok(None));
    };
    needs(b"", 0);
    needs(b"VALUE foo 0 5", 0);
    needs(b"VALUE foo 0 5\r\n", 22);
    needs(b"VALUE foo 0 5\r\nhello\r", 22);
    needs(b"VA 100\r\n", 110);
}

#[test]
fn errors_name_what_was_wrong() {
    for (buf, message) in [
        ("VALUE foo 0\r\n", "malformed reply line: no length in \"VALUE foo 0\""),
        ("VALUE\r\n", "malformed reply line: no key in \"VALUE\""),
        ("VALUE  0 5\r\n", "malformed reply line: key empty or too long in \"VALUE  0 5\""),
        ("VALUE foo x 5\r\n", "malformed reply line: no client flags of 32 bits in \"VALUE foo x 5\""),
        (
            "VALUE foo 4294967296 5\r\n",
            "malformed reply line: no client flags of 32 bits in \"VALUE foo 4294967296 5\"",
        ),
        ("VALUE foo 0 -5\r\n", "malformed reply line: no length in \"VALUE foo 0 -5\""),
        ("VALUE foo 0 5 x\r\n", "malformed reply line: cas id is no number in \"VALUE foo 0 5 x\""),
        ("VALUE foo 0 5 1 2\r\n", "malformed reply line: too many words in \"VALUE foo 0 5 1 2\""),
        ("VALUE foo 0 1001\r\n", "value of 1001 bytes announced, 1000 at most expected"),
        (
            "VALUE foo 0 18446744073709551615\r\n",
            "value of 18446744073709551615 bytes announced, 1000 at most expected",
        ),
        ("VA 1001\r\n", "value of 1001 bytes announced, 1000 at most expected"),
        ("VA\r\n", "malformed reply line: no length in \"VA\""),
        ("VALUE foo 0 2\r\nhello", "value of 2 bytes does not end where its length says: \"VALUE foo 0 2\""),
        ("STAT\r\n", "malformed reply line: no name in \"STAT\""),
        ("END\n", "reply line without carriage return: \"END\""),
        ("ENDE\r\n", "unknown reply: \"ENDE\""),
        ("END \r\n", "unknown reply: \"END \""),
        ("\r\n", "unknown reply: \"\""),
        ("-1\r\n", "unknown reply: \"-1\""),
        ("18446744073709551616\r\n", "unknown reply: \"18446744073709551616\""),
        ("\x01\u{e9}\r\n", "unknown reply: \"\\x01\\xc3\\xa9\""),
    ] {
        let limits = ReplyLimits { value_len_max: 1000, ..ReplyLimits::default() };
        let error = parse_reply_within(buf.as_bytes(), &limits).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn lines_are_bounded() {
    let limits = ReplyLimits { line_len_max: 10, value_len_max: usize::MAX };
    assert_eq!(parse_reply_within(b"VERSION 1", &limits), Ok(ParsedReply::Incomplete { need: 0 }));
    assert_eq!(parse_reply_within(b"VERSION 12", &limits), Err(ReplyError::LineTooLong { max: 10 }));
    assert_eq!(parse_reply_within(b"VERSION 1\r\n", &limits), Err(ReplyError::LineTooLong { max: 10 }));
    assert!(parse_reply_within(b"VERSION \r\n", &limits).is_ok());
    // With no bound on values the arithmetic must still hold.
    let limits = ReplyLimits { line_len_max: 100, value_len_max: usize::MAX };
    let all = parse_reply_within(b"VA 18446744073709551615\r\n", &limits);
    assert_eq!(all, Ok(ParsedReply::Incomplete { need: usize::MAX }));
}

#[test]
fn meta_flags() {
    let line = b"HD c12 kfoo t-1 W b";
    assert_eq!(meta_flag(line, b'c'), Some(&b"12"[..]));
    assert_eq!(meta_flag(line, b'k'), Some(&b"foo"[..]));
    assert_eq!(meta_flag(line, b't'), Some(&b"-1"[..]));
    assert_eq!(meta_flag(line, b'W'), Some(&b""[..]));
    assert_eq!(meta_flag(line, b'H'), None, "the reply's own word is no flag");
    assert_eq!(meta_flag(b"VA 5 f0", b'5'), None, "nor is the length");
    assert_eq!(meta_flag(b"VA 5 f0", b'f'), Some(&b"0"[..]));
    assert_eq!(meta_flag(b"", b'c'), None);
}

fn check(buf: &[u8]) {
    let limits = ReplyLimits { line_len_max: 64, value_len_max: 100 };
    let whole = parse_reply_within(buf, &limits);
    if let Ok(ParsedReply::Reply(reply)) = &whole {
        assert!(reply.len <= buf.len() && reply.line.end < reply.len);
        if let ReplyKind::Value { key, data, .. } = &reply.kind {
            assert!(!key.is_empty() && key.end < reply.line.end && data.end + 2 == reply.len);
        }
        let _ = meta_flag(&buf[reply.line.clone()], b'c');
    }
    for split in 0..buf.len() {
        match parse_reply_within(&buf[..split], &limits) {
            Ok(ParsedReply::Incomplete { need }) => assert!(need == 0 || need > split),
            other => assert_eq!(other, whole, "{} cut at {split}", buf.escape_ascii()),
        }
    }
}

#[test]
fn no_bytes_panic_and_splits_change_nothing() {
    let seeds: [&[u8]; 10] = [
        b"VALUE foo 7 5 99\r\nhello\r\nEND\r\n",
        b"VALUE foo 0 0\r\n\r\n",
        b"VA 5 c12 t-1\r\nhello\r\nMN\r\n",
        b"HD c12 kfoo\r\n",
        b"STAT curr_items 12\r\n",
        b"VERSION 1.6.18\r\n",
        b"SERVER_ERROR out of memory\r\n",
        b"1234567\r\n",
        b"NOT_FOUND\r\nSTORED\r\n",
        b"ERROR locked\r\n",
    ];
    let mut dice = Dice::new(2);
    for _ in 0..30_000 {
        let mut buf = dice.pick(&seeds).to_vec();
        dice.mutate(&mut buf);
        check(&buf);
    }
    for _ in 0..5_000 {
        check(&dice.bytes(80));
    }
}

/// The short way for the most frequent replies finds what the long one finds, or nothing.
#[test]
fn what_comes_most_often_is_read_as_all_else() {
    let mut dice = Dice::new(7);
    let mut short = 0;
    for _ in 0..200_000 {
        let mut buf = match dice.below(8) {
            0 => answer::STORED.to_vec(),
            1 => b"END\r\nVALUE".to_vec(),
            2 => b"VALUE key-1 0 10\r\n0123456789\r\nEND\r\n".to_vec(),
            3 => b"VALUE k\xc3\xa9y 999999999 3 7\r\n\r\n\r\r\nEND\r\n".to_vec(),
            4 => b"VALUE a\tb 1 0\r\n\r\nVALUE b 4294967295 1 18446744073709551615\r\n1\r\n".to_vec(),
            5 => [b"VALUE ", &[b'k'; 255][..248 + dice.below(7)], b" 0 1 1000000000\r\nx\r\nEND\r\n"].concat(),
            6 => b"VALUE key 4294967296 1000000000\r\n".to_vec(),
            _ => b"VALUE key 5 5\r\nvalue\r\n".to_vec(),
        };
        match dice.below(4) {
            0 => {}
            1 => dice.mutate(&mut buf),
            2 => buf.truncate(dice.below(buf.len() + 1)),
            _ => {
                let at = dice.below(buf.len());
                buf[at] = b" \r\n\0\t9-!"[dice.below(8)];
            }
        }
        let limits = ReplyLimits { line_len_max: 8 << 10, value_len_max: 8 + dice.below(8) };
        if let Some(reply) = most_often(&buf, &limits) {
            short += 1;
            assert_eq!(parse_any(&buf, &limits), Ok(ParsedReply::Reply(reply)), "{}", buf.escape_ascii());
        }
    }
    assert!(short > 30_000, "{short}");
    let narrow = ReplyLimits { line_len_max: 18, value_len_max: 10 };
    let value = |limits: ReplyLimits| most_often(b"VALUE key-1 0 10\r\n0123456789\r\n", &limits);
    assert!(value(narrow).is_some());
    assert!(value(ReplyLimits { line_len_max: 17, ..narrow }).is_none());
    assert!(value(ReplyLimits { value_len_max: 9, ..narrow }).is_none());
}
