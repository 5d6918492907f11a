//! Nodes' answers to meta commands, as clients are told them.

use bytes::{Bytes, BytesMut};

use super::super::base64;
use super::super::key::may_be_named;
use super::super::number::parse_u64;
use super::super::out::OutQueue;
use super::super::reply::{Reply, ReplyKind};
use super::command::{Flag, Meta, Verb};

/// What a client is told of the leader's answer. `token`: makes a client's token of the node's cas
/// id, where there is a difference. Nothing is copied unless something has to be changed.
pub fn of_leader(meta: Meta, key: &[u8], reply: &Reply, unit: Bytes, token: impl Fn(u64) -> u64) -> Bytes {
    match (&reply.kind, meta.verb) {
        (ReplyKind::MetaVa { data }, Verb::Arithmetic) if !meta.has(Flag::Value) => {
            // The client did not ask for the number: the proxy did.
            let line = &unit[reply.line.clone()];
            let behind = line.iter().skip(3).position(|&byte| byte == b' ').map_or(line.len(), |at| 3 + at);
            debug_assert!(data.start > behind);
            let line = [b"HD", &line[behind..], b"\r\n"].concat();
            with_token(&line, line.len() - 2, key, meta, token).unwrap_or(line.into())
        }
        (
            ReplyKind::MetaVa { .. } | ReplyKind::MetaHd | ReplyKind::MetaEx | ReplyKind::MetaNs | ReplyKind::MetaNf,
            _,
        ) => with_token(&unit, reply.line.end, key, meta, token).unwrap_or(unit),
        (ReplyKind::MetaMe, Verb::Debug) => with_debug_token(&unit, reply.line.end, token).unwrap_or(unit),
        _ => unit,
    }
}

/// The same in the words of memcached 1.6.18, whatever the node's version: up to 1.6.17 a miss has
/// neither opaque nor key, and some codes have a blank too many behind them. And with the key,
/// where the node was not asked for it. `flags`: those of the client's line.
pub fn as_promised<'a, F: Iterator<Item = &'a [u8]>>(
    told: Bytes,
    meta: Meta,
    key: &[u8],
    flags: impl Fn() -> F,
) -> Bytes {
    let has_key = may_be_named(key);
    match &told[..] {
        [b'E', b'N', rest @ ..] if rest == b"\r\n" || !has_key => {
            let asks = flags().any(|flag| matches!(flag[0], b'O' | b'k'));
            if asks { own(b"EN", meta, key, flags()) } else { told }
        }
        [_, _, b' ', b' ' | b'\r', ..] => {
            let told = [&told[..2], &told[3..]].concat().into();
            if has_key { told } else { with_key(told, key, flags()) }
        }
        _ if has_key => told,
        _ => with_key(told, key, flags()),
    }
}

/// With the key behind what the node has said to the flags in front of it.
fn with_key<'a>(told: Bytes, key: &[u8], flags: impl Iterator<Item = &'a [u8]>) -> Bytes {
    let word_end = |from: usize| {
        let end = told.iter().skip(from).position(|byte| matches!(byte, b' ' | b'\r'));
        end.map_or(told.len(), |end| from + end)
    };
    let mut at = match &told[..] {
        [b'V', b'A', ..] => word_end(3),
        [b'H', b'D', ..] | [b'N', b'S' | b'F', ..] | [b'E', b'X', ..] => 2,
        // Errors carry no key.
        _ => return told,
    };
    for flag in flags {
        if flag[0] == b'k' {
            return [&told[..at], b" k", &base64::encode(key), b" b", &told[at..]].concat().into();
        }
        if told[at..].starts_with(&[b' ', flag[0]]) {
            at = word_end(at + 1);
        }
    }
    told
}

/// The same bytes with a token in the place of the cas id in their line, if it has one.
fn with_token(bytes: &[u8], line_end: usize, key: &[u8], meta: Meta, token: impl Fn(u64) -> u64) -> Option<Bytes> {
    if !meta.has(Flag::TellCas) {
        return None;
    }
    let at = word(&bytes[..line_end], key, b'c')?;
    replaced(bytes, at + 1, line_end, token)
}

/// `ME <key> exp=… la=… cas=…`: no key has a blank that could be taken for one of these.
fn with_debug_token(bytes: &[u8], line_end: usize, token: impl Fn(u64) -> u64) -> Option<Bytes> {
    const CAS: &[u8] = b" cas=";
    let at = bytes[..line_end].windows(CAS.len()).rposition(|window| window == CAS)?;
    replaced(bytes, at + CAS.len(), line_end, token)
}

fn replaced(bytes: &[u8], start: usize, line_end: usize, token: impl Fn(u64) -> u64) -> Option<Bytes> {
    let digits = bytes[start..line_end].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let raw = parse_u64(&bytes[start..start + digits])?;
    if raw == 0 {
        // Nothing was stored.
        return None;
    }
    let told = token(raw);
    let mut out = BytesMut::with_capacity(bytes.len() + 20);
    out.extend_from_slice(&bytes[..start]);
    out.extend_from_slice(itoa::Buffer::new().format(told).as_bytes());
    out.extend_from_slice(&bytes[start + digits..]);
    Some(out.freeze())
}

/// Where the flag stands in an answer's line. The key, where it is echoed as it is, may have
/// blanks: an incr can make memcached 1.6.18 forget that a key is binary.
fn word(line: &[u8], key: &[u8], flag: u8) -> Option<usize> {
    let mut at = 0;
    while let Some(blank) = line[at..].iter().position(|&byte| byte == b' ') {
        at += blank + 1;
        match line.get(at) {
            Some(&first) if first == flag => return Some(at),
            Some(b'k') if line[at + 1..].starts_with(key) => at += key.len(),
            _ => {}
        }
    }
    None
}

/// Whether the item is marked stale (`X`), or somebody was told to recompute it (`W` the client
/// that asked, `Z` another one).
pub fn is_held_back(line: &[u8], key: &[u8]) -> bool {
    b"WXZ".iter().any(|&flag| word(line, key, flag).is_some())
}

/// Whether this client was told to recompute the item.
pub fn has_won(line: &[u8], key: &[u8]) -> bool {
    word(line, key, b'W').is_some()
}

/// An answer of the proxy's own, with what the client wants to see in every answer. `flags`: those
/// of its line.
pub fn own<'a>(code: &[u8], meta: Meta, key: &[u8], flags: impl Iterator<Item = &'a [u8]>) -> Bytes {
    let mut out = OutQueue::default();
    out.put(code);
    for flag in flags {
        match flag[0] {
            b'O' => {
                out.put(b" ");
                out.put(flag);
            }
            b'k' if meta.has(Flag::Binary) => {
                out.put(b" k");
                out.put(&base64::encode(key));
                out.put(b" b");
            }
            b'k' => {
                out.put(b" k");
                out.put(key);
            }
            _ => {}
        }
    }
    out.put(b"\r\n");
    Bytes::copy_from_slice(out.one_piece().unwrap_or_default())
}

/// What `ma` is answered with this number, by the proxy itself.
pub fn own_number<'a>(number: u64, meta: Meta, key: &[u8], flags: impl Iterator<Item = &'a [u8]>) -> Bytes {
    if !meta.has(Flag::Value) {
        return own(b"HD", meta, key, flags);
    }
    let number = number.to_string();
    let head = format!("VA {}", number.len());
    [&own(head.as_bytes(), meta, key, flags)[..], number.as_bytes(), b"\r\n"].concat().into()
}

/// How long the value is, in the answer to an `mg` that asked for nothing else.
pub fn length(line: &[u8]) -> Option<u64> {
    parse_u64(line.strip_prefix(b"HD s")?.trim_ascii_end())
}

/// The number in the answer to `ma`.
pub fn number(reply: &Reply, unit: &[u8]) -> Option<u64> {
    match &reply.kind {
        ReplyKind::MetaVa { data } => parse_u64(unit[data.clone()].trim_ascii_end()),
        _ => None,
    }
}
