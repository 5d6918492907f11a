//! The protocol of the model clients: what they ask is written in it, and what they are told is
//! read in the words of the classic one, by which it is judged.

use super::history::Req;
use super::world::KEY;

/// See the module's words.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Spoken {
    /// The classic and the meta protocol.
    #[default]
    Classic,
    Binary,
}

const HEADER: usize = 24;
/// No item has it: for a client that has seen none.
const NO_TOKEN: u64 = 1 << 62;

/// `token`: the last one that the client has seen, or 0.
pub(super) fn ask(spoken: Spoken, req: Req, token: u64) -> Vec<u8> {
    match spoken {
        Spoken::Classic => classic(req, token).into_bytes(),
        Spoken::Binary => binary(req, if token == 0 { NO_TOKEN } else { token }),
    }
}

fn classic(req: Req, token: u64) -> String {
    let store = |verb: &str, v: &str| format!("{verb} {KEY} 0 0 {}\r\n{v}\r\n", v.len());
    let meta = |flags: &str, v: &str| format!("ms {KEY} {}{flags}\r\n{v}\r\n", v.len());
    match req {
        Req::Get => format!("get {KEY}\r\n"),
        Req::Gets => format!("gets {KEY}\r\n"),
        Req::Gat => format!("gat 900 {KEY}\r\n"),
        Req::Set(v) => store("set", v),
        Req::Add(v) => store("add", v),
        Req::Replace(v) => store("replace", v),
        Req::Append(v) => store("append", v),
        Req::Prepend(v) => store("prepend", v),
        Req::Cas(v) => format!("cas {KEY} 0 0 {} {token}\r\n{v}\r\n", v.len()),
        Req::Incr => format!("incr {KEY} 1\r\n"),
        Req::Decr => format!("decr {KEY} 1\r\n"),
        Req::Delete => format!("delete {KEY}\r\n"),
        Req::Touch => format!("touch {KEY} 800\r\n"),
        Req::Mg => format!("mg {KEY} v\r\n"),
        Req::Vivify => format!("mg {KEY} v N700\r\n"),
        Req::Recache => format!("mg {KEY} R1000 v\r\n"),
        Req::MgTouch => format!("mg {KEY} v T800\r\n"),
        Req::Ms(v) => meta("", v),
        Req::MsAdd(v) => meta(" ME", v),
        Req::MsAppend(v) => meta(" MA", v),
        Req::MsCas(v) => meta(&format!(" C{token}"), v),
        Req::Ma => format!("ma {KEY} v\r\n"),
        Req::MaMake => format!("ma {KEY} N0 J40 v\r\n"),
        Req::Md => format!("md {KEY}\r\n"),
        Req::Invalidate => format!("md {KEY} I\r\n"),
        Req::IncrFrom(_) | Req::DeleteCas => panic!("no text protocol has {req:?}"),
    }
}

fn binary(req: Req, token: u64) -> Vec<u8> {
    let count = |initial: u64, exptime: u32| {
        [&1_u64.to_be_bytes()[..], &initial.to_be_bytes(), &exptime.to_be_bytes()].concat()
    };
    let (opcode, extras, value, cas) = match req {
        Req::Get => (0x00, vec![], "", 0),
        Req::Gets => (0x0c, vec![], "", 0),
        Req::Gat => (0x1d, 900_u32.to_be_bytes().to_vec(), "", 0),
        Req::Set(v) => (0x01, vec![0; 8], v, 0),
        Req::Add(v) => (0x02, vec![0; 8], v, 0),
        Req::Replace(v) => (0x03, vec![0; 8], v, 0),
        Req::Append(v) => (0x0e, vec![], v, 0),
        Req::Prepend(v) => (0x0f, vec![], v, 0),
        Req::Cas(v) => (0x01, vec![0; 8], v, token),
        Req::Incr => (0x05, count(0, u32::MAX), "", 0),
        Req::Decr => (0x06, count(0, u32::MAX), "", 0),
        Req::IncrFrom(initial) => (0x05, count(initial, 0), "", 0),
        Req::Delete => (0x04, vec![], "", 0),
        Req::DeleteCas => (0x04, vec![], "", token),
        Req::Touch => (0x1c, 800_u32.to_be_bytes().to_vec(), "", 0),
        _ => panic!("the binary protocol has no {req:?}"),
    };
    packet(opcode, &extras, KEY.as_bytes(), value.as_bytes(), cas)
}

/// A request of the binary protocol.
pub(super) fn packet(opcode: u8, extras: &[u8], key: &[u8], value: &[u8], cas: u64) -> Vec<u8> {
    let mut bytes = vec![0x80, opcode];
    bytes.extend((key.len() as u16).to_be_bytes());
    bytes.extend([extras.len() as u8, 0, 0, 0]);
    bytes.extend(((extras.len() + key.len() + value.len()) as u32).to_be_bytes());
    bytes.extend(b"opaq");
    bytes.extend(cas.to_be_bytes());
    [&bytes, extras, key, value].concat()
}

/// What a client was told to `req`, where it is all there: in classic words, its bytes, and a cas
/// token, or 0.
pub(super) fn told(spoken: Spoken, req: Req, input: &[u8]) -> Option<(String, usize, u64)> {
    match spoken {
        Spoken::Classic => told_classic(req, input),
        Spoken::Binary => told_binary(req, input),
    }
}

fn told_classic(req: Req, input: &[u8]) -> Option<(String, usize, u64)> {
    let text = String::from_utf8(input.to_vec()).unwrap();
    let len = if text.starts_with("VALUE ") {
        text.find("END\r\n").map(|e| e + 5)
    } else if text.starts_with("VA ") {
        let value = text.find('\n').map_or(0, |e| e + 1);
        text[value..].find('\n').map(|e| value + e + 1)
    } else {
        text.find('\n').map(|e| e + 1)
    }?;
    let token = text.lines().next().filter(|l| l.starts_with("VALUE ")).and_then(|l| l.split(' ').nth(4));
    let token = token.filter(|_| req == Req::Gets).map_or(0, |token| token.parse().unwrap());
    Some((text[..len].trim_end().to_owned(), len, token))
}

fn told_binary(req: Req, input: &[u8]) -> Option<(String, usize, u64)> {
    let (header, rest) = input.split_at_checked(HEADER)?;
    assert_eq!((header[0], &header[12..16]), (0x81, &b"opaq"[..]), "an answer to this client");
    let number = |at: usize, len: usize| header[at..at + len].iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    let (key_len, extras, status, body_len) =
        (number(2, 2) as usize, number(4, 1) as usize, number(6, 2), number(8, 4));
    let body = rest.get(..body_len as usize)?;
    let cas = number(16, 8);
    let text = String::from_utf8_lossy(&body[extras + key_len..]).into_owned();
    let words = match (status, req) {
        (0, Req::Get | Req::Gat) => format!("VALUE {KEY} 0 {}\r\n{text}\r\nEND", text.len()),
        (0, Req::Gets) => format!("VALUE {KEY} 0 {} {cas}\r\n{text}\r\nEND", text.len()),
        (0, Req::Incr | Req::Decr | Req::IncrFrom(_)) => {
            u64::from_be_bytes(body.try_into().expect("a number")).to_string()
        }
        (0, Req::Delete | Req::DeleteCas) => "DELETED".to_owned(),
        (0, Req::Touch) => "TOUCHED".to_owned(),
        (0, _) => "STORED".to_owned(),
        (1, Req::Get | Req::Gets | Req::Gat) => "END".to_owned(),
        (1, Req::Replace(_)) | (2, Req::Add(_)) | (5, _) => "NOT_STORED".to_owned(),
        (1, _) => "NOT_FOUND".to_owned(),
        (2, _) => "EXISTS".to_owned(),
        (6, _) => "CLIENT_ERROR cannot increment or decrement non-numeric value".to_owned(),
        (_, _) => format!("SERVER_ERROR {text}"),
    };
    // A number that the follower decided comes without a cas id.
    let without = matches!(req, Req::Delete | Req::DeleteCas | Req::Incr | Req::Decr | Req::IncrFrom(_));
    assert!(status != 0 || cas != 0 || without, "{req:?} is told no cas id");
    Some((words, HEADER + body_len as usize, cas))
}
