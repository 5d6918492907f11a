//! The request parser against memcached itself: what it refuses must be refused with the same
//! bytes, what it takes must be taken. Once against answers recorded from 1.6.18, once against
//! whatever memcached is installed, with random lines too.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use resilver::internals::protocol::answer;
use resilver::internals::protocol::classic::parse;
use resilver::internals::protocol::reply::{Reply, ReplyKind, parse_reply};
use resilver::internals::protocol::request::{Admin, Family, Kind, Limits, Parsed, Request};

use crate::support::{Memcached, given_seed};

const VECTORS: &str = include_str!("../vectors/classic-memcached-1.6.18.tsv");
/// The version whose answers the parser gives, to the byte. Others differ: from 1.6.40 on a `set`
/// line with a bad key takes its value with it, for example.
const REFERENCE: &str = "1.6.18";
const PATIENCE: Duration = Duration::from_secs(5);

/// What came back for one input on a connection of its own.
#[derive(PartialEq, Eq)]
struct Observed {
    bytes: Vec<u8>,
    closed: bool,
}

/// `(input, what memcached answers)`, line by line.
fn vectors() -> Vec<(Vec<u8>, Observed)> {
    let split = |line: &'static str| {
        let (input, answer) = line.split_once('\t').expect("two columns");
        let (text, closed) = answer.strip_suffix("<closed>").map_or((answer, false), |text| (text, true));
        let text = text.strip_suffix("<waits>").unwrap_or(text);
        (unescape(input), Observed { bytes: unescape(text), closed })
    };
    VECTORS.lines().filter(|line| !line.starts_with('#')).map(split).collect()
}

/// C escapes, and `${x*9}` for nine x.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(repeat) = rest.strip_prefix("${") {
            let (what, behind) = repeat.split_once('}').unwrap();
            let (byte, count) = what.split_once('*').unwrap();
            bytes.extend(byte.repeat(count.parse().unwrap()).into_bytes());
            rest = behind;
        } else if let Some(hex) = rest.strip_prefix("\\x") {
            bytes.push(u8::from_str_radix(&hex[..2], 16).unwrap());
            rest = &hex[2..];
        } else if let Some(escaped) = rest.strip_prefix('\\') {
            bytes.push(match escaped.as_bytes()[0] {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'0' => 0,
                other => panic!("unknown escape {other}"),
            });
            rest = &escaped[1..];
        } else {
            bytes.extend(first.to_string().into_bytes());
            rest = &rest[first.len_utf8()..];
        }
    }
    bytes
}

/// Parses all of `input` and walks through `observed` beside it: every refusal must be there, every
/// accepted request must have got an answer that is none.
fn compare(input: &[u8], observed: &Observed) -> Result<(), String> {
    let mut rest = input;
    let mut answers = observed.bytes.as_slice();
    let mut closes = false;
    while !closes && !rest.is_empty() {
        let (len, swallow) = match parse(rest, &Limits::default()) {
            Parsed::Incomplete { .. } => break,
            Parsed::Piece { .. } => return Err("no line is so long here".to_owned()),
            Parsed::Request { request, style, len } => {
                if request == Request::Admin(Admin::Quit) {
                    closes = true;
                } else if matches!(request, Request::Admin(Admin::Resync(_) | Admin::Node(_))) {
                    // Ours: memcached does not know it.
                    answers = answers.strip_prefix(answer::ERROR).ok_or("memcached knows resync?")?;
                } else if !style.is_silent() {
                    let taken = answer_len(&request, answers)?;
                    answers = &answers[taken..];
                }
                (len, 0)
            }
            Parsed::TooLarge { style, len, swallow, .. } => {
                let reply = match style.is_silent() {
                    true => answer::SILENCE,
                    false => b"SERVER_ERROR object too large for cache\r\n",
                };
                answers = answers.strip_prefix(reply).ok_or("not too large for memcached")?;
                (len, swallow)
            }
            Parsed::Reject { reply, len, swallow, close, .. } => {
                let expected = || format!("refused with {:?}", reply.escape_ascii().to_string());
                answers = answers.strip_prefix(reply).ok_or_else(expected)?;
                closes = close.is_some();
                (len, swallow)
            }
        };
        rest = &rest[(len + swallow).min(rest.len())..];
    }
    if !answers.is_empty() {
        return Err(format!("memcached also said {:?}", answers.escape_ascii().to_string()));
    }
    if closes != observed.closed {
        return Err(format!("closes: {closes}, memcached: {}", observed.closed));
    }
    Ok(())
}

/// Length of memcached's answer to a request that the parser accepted.
fn answer_len(request: &Request, answers: &[u8]) -> Result<usize, String> {
    let (kind_asked, admin) = match request {
        Request::Keyed(keyed) => (Some(keyed.kind), None),
        Request::Admin(admin) => (None, Some(admin)),
    };
    let is = |family| kind_asked.is_some_and(|kind| kind.family() == family);
    let is_stats = matches!(admin, Some(Admin::Stats(_)));
    let mut len = 0;
    loop {
        let reply = parse_reply(&answers[len..]).map_err(|error| error.to_string())?;
        let Reply { kind, line, len: reply_len } = reply.ok_or(format!("no answer to {}", request.name()))?;
        let text = &answers[len..][line];
        len += reply_len;
        let right = match kind {
            ReplyKind::Value { .. } if is(Family::Retrieve) => continue,
            ReplyKind::Stat { .. } if is_stats => continue,
            ReplyKind::End => is(Family::Retrieve) || is_stats,
            ReplyKind::Reset => is_stats,
            ReplyKind::Version { .. } => admin == Some(&Admin::Version),
            ReplyKind::Ok => matches!(admin, Some(Admin::FlushAll { .. } | Admin::Verbosity { .. })),
            ReplyKind::Stored | ReplyKind::NotStored => is(Family::Store),
            ReplyKind::Exists => kind_asked == Some(Kind::Cas),
            ReplyKind::NotFound => {
                kind_asked == Some(Kind::Cas) || is(Family::Arithmetic) || is(Family::Delete) || is(Family::Touch)
            }
            ReplyKind::Deleted => is(Family::Delete),
            ReplyKind::Touched => is(Family::Touch),
            ReplyKind::Number(_) => is(Family::Arithmetic),
            // The request is right; the item is not a number.
            ReplyKind::ClientError => text.ends_with(b"non-numeric value"),
            _ => false,
        };
        let refused =
            || format!("accepted as {}, memcached says {:?}", request.name(), text.escape_ascii().to_string());
        return if right { Ok(len) } else { Err(refused()) };
    }
}

/// The memcached that is installed.
struct Reference(Memcached);

impl Reference {
    fn start() -> Reference {
        Reference(Memcached::start(&[]))
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.0.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Sends an input, and `mn` behind it where it is a whole number of lines, to learn where its
    /// answers end.
    fn ask(&self, stream: &mut TcpStream, input: &[u8]) -> Observed {
        let whole = input.ends_with(b"\n");
        let sent = if whole { [input, b"mn\r\n"].concat() } else { input.to_vec() };
        if !whole {
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        }
        // It may close before all is written.
        let _ = stream.write_all(&sent);
        let mut bytes = Vec::new();
        let mut piece = [0; 16384];
        loop {
            match stream.read(&mut piece) {
                Ok(0) => return Observed { bytes, closed: true },
                Ok(len) => bytes.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Observed { bytes, closed: true },
                Err(error) if !whole && error.kind() == ErrorKind::WouldBlock => {
                    return Observed { bytes, closed: false };
                }
                Err(error) => panic!("{:?} got {:?}, then {error}", excerpt(input), excerpt(&bytes)),
            }
            if whole && bytes.ends_with(b"MN\r\n") {
                bytes.truncate(bytes.len() - 4);
                return Observed { bytes, closed: false };
            }
        }
    }

    fn version(&self) -> String {
        let observed = self.ask(&mut self.connect(), b"version\r\n");
        String::from_utf8(observed.bytes).unwrap().trim().replace("VERSION ", "")
    }
}

fn excerpt(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(200)].escape_ascii().to_string()
}

#[test]
fn refuses_what_memcached_was_seen_to_refuse() {
    let vectors = vectors();
    assert!(vectors.len() > 200);
    let wrong: Vec<String> = vectors
        .iter()
        .filter_map(|(input, observed)| compare(input, observed).err().map(|why| format!("{}: {why}", excerpt(input))))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn refuses_what_the_installed_memcached_refuses() {
    let memcached = Reference::start();
    let version = memcached.version();
    let mut wrong = Vec::new();
    for (input, recorded) in vectors() {
        let observed = memcached.ask(&mut memcached.connect(), &input);
        if version == REFERENCE && observed != recorded {
            wrong.push(format!("{}: not as recorded: {}", excerpt(&input), excerpt(&observed.bytes)));
        }
        if let Err(why) = compare(&input, &observed) {
            wrong.push(format!("{}: {why}", excerpt(&input)));
        }
    }
    if version == REFERENCE {
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    } else {
        eprintln!("memcached {version} differs from {REFERENCE} in {} lines:\n{}", wrong.len(), wrong.join("\n"));
    }
}

/// Lines put together at random from words that mean something, with values of the right and the
/// wrong length behind.
#[test]
fn agrees_with_the_installed_memcached_on_random_lines() {
    const LINES: usize = 20_000;
    let memcached = Reference::start();
    let version = memcached.version();
    if version != REFERENCE {
        eprintln!("skipped: memcached {version} is not {REFERENCE}, whose answers the parser gives");
        return;
    }
    let mut state = given_seed().unwrap_or(0x5eed);
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let mut stream = memcached.connect();
    for line in 0..LINES {
        let mut input = random_line(&mut below);
        // Supply the value that the parser waits for. Should memcached wait for more, the read
        // times out and says so.
        let mut at = 0;
        while at < input.len() {
            at += match parse(&input[at..], &Limits::default()) {
                Parsed::Incomplete { need } if need > 0 => {
                    input.resize(at + need, b'x');
                    continue;
                }
                Parsed::Incomplete { .. } => {
                    input.extend_from_slice(b"\r\n");
                    continue;
                }
                Parsed::Request { len, .. } => len,
                Parsed::Piece(piece) => piece.len,
                Parsed::TooLarge { len, swallow, .. } | Parsed::Reject { len, swallow, .. } => {
                    if at + len + swallow > input.len() {
                        input.resize(at + len + swallow, b'y');
                    }
                    len + swallow
                }
            };
        }
        // What ends in a value that is no line still needs the sentinel: an empty line more is
        // harmless.
        if !input.ends_with(b"\n") {
            input.extend_from_slice(b"\r\n");
        }
        let observed = memcached.ask(&mut stream, &input);
        if let Err(why) = compare(&input, &observed) {
            panic!("line {line}, {}: {why}; memcached: {}", excerpt(&input), excerpt(&observed.bytes));
        }
        if observed.closed {
            stream = memcached.connect();
        }
    }
}

fn random_line(below: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    const NAMES: [&str; 23] = [
        "get",
        "gets",
        "gat",
        "gats",
        "set",
        "add",
        "replace",
        "append",
        "prepend",
        "cas",
        "incr",
        "decr",
        "delete",
        "touch",
        "flush_all",
        "version",
        "verbosity",
        "quit",
        "Set",
        "sets",
        "x",
        "PUT",
        "stats",
    ];
    const WORDS: [&str; 33] = [
        "k",
        "n",
        "k2",
        "0",
        "1",
        "5",
        "5",
        "5",
        "-1",
        "+5",
        "100",
        "00",
        "noreply",
        "noreply",
        "noreply",
        "abc",
        "5x",
        "\t5",
        "5\t",
        "5\tx-",
        "4294967296",
        "4294967301",
        "9223372036854775808",
        "-9223372036854775809",
        "18446744073709551615",
        "18446744073709551616",
        "1048516",
        "2147483646",
        "HTTP/1.1",
        "a\0b",
        "\u{e9}",
        "\r",
        "2000000",
    ];
    let mut line: Vec<u8> = b"   "[..[0, 0, 0, 0, 1, 3][below(6)]].to_vec();
    let name = NAMES[below(NAMES.len())];
    line.extend_from_slice(name.as_bytes());
    let usual = match name {
        "set" | "add" | "replace" | "append" | "prepend" => 4,
        "cas" => 5,
        "incr" | "decr" | "touch" => 2,
        "stats" => 0,
        _ => 1,
    };
    let words = if name == "stats" { 0 } else { (usual + below(4)).saturating_sub(below(2)) };
    for index in 0..words {
        line.extend_from_slice(&b"   "[..1 + below(8) / 7]);
        if index == 0 && below(3) > 0 {
            line.extend_from_slice(["k", "n", "k2"][below(3)].as_bytes());
        } else if below(60) == 0 {
            line.extend(std::iter::repeat_n(b'k', 249 + below(4)));
        } else if index > 0 && below(2) > 0 {
            line.extend_from_slice(["0", "1", "5", "7"][below(4)].as_bytes());
        } else {
            line.extend_from_slice(WORDS[below(WORDS.len())].as_bytes());
        }
    }
    line.extend_from_slice([&b"\r\n"[..], b"\r\n", b"\r\n", b"\n", b" \r\n"][below(5)]);
    line.extend_from_slice([&b""[..], b"hello\r\n", b"1\r\n", b"hello12\r\n"][below(4)]);
    line
}
