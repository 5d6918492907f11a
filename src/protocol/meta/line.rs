//! Meta commands on their way to a node.
//!
//! The leader's line is written anew from the client's, word by word: without `q`, for a node must
//! always answer; with the numbers as the parser understood them, with the date that the item is to
//! expire by that node's clock, and with the cas id that the client's token stands for. The
//! follower's has what makes its copy equal and nothing else.

use super::super::key::may_be_named;
use super::super::line::Words;
use super::super::node::{Command, meta_begin, meta_end, meta_number};
use super::super::number::{client_i32, client_u64};
use super::super::out::OutQueue;
use super::command::{Flag, Meta, Verb};

/// The flags of a command line, in order. `raw`: the line, and what was parsed behind it;
/// `key_end`: where the key ends, or what is left of it once it was decoded in its place.
pub fn flags(meta: Meta, raw: &[u8], key_end: usize) -> impl Iterator<Item = &[u8]> {
    let rest = &raw[key_end..];
    let end = rest.iter().position(|&byte| byte == b'\n' || byte == 0).unwrap_or(rest.len());
    let end = end - usize::from(rest.get(end) == Some(&b'\n') && rest[..end].ends_with(b"\r"));
    // What was left of an encoded key, and the length of a value, are no flags.
    let start = rest[..end].iter().position(|&byte| byte == b' ').unwrap_or(end);
    let words = Words::new(rest, start..end).skip(usize::from(meta.verb == Verb::Set));
    let most = if meta.verb == Verb::Debug { 0 } else { usize::MAX };
    words.take(most).map(|word| &rest[word])
}

/// What an `ma` begins with where there is nothing to count on.
pub fn initial<'a>(mut flags: impl Iterator<Item = &'a [u8]>) -> u64 {
    flags.find_map(|flag| flag.strip_prefix(b"J")).and_then(client_u64).unwrap_or(0)
}

/// Writes a client's command for the leader. `exptime`: as this node is told it; `cas`: the id that
/// it compares with.
pub fn put(out: &mut OutQueue, meta: Meta, of: &impl Command, exptime: i64, cas: u64) {
    out.put(meta.name().as_bytes());
    meta_begin(out, b" ", of, meta.has(Flag::Binary), meta.verb == Verb::Set);
    let bare = out.len();
    for word in flags(meta, of.raw(), of.key_end()) {
        let (flag, rest) = (word[0], &word[1..]);
        // Numbers that the parser has not kept; it has looked at all of them.
        let signed = || client_i32(rest).unwrap_or_default();
        match (flag, meta.verb) {
            (b'T', _) => meta_number(out, b" T", exptime),
            (b'C', _) => meta_number(out, b" C", cas),
            // Where the item is made both nodes are to give it one date, too.
            (b'N', Verb::Arithmetic) if !meta.has(Flag::Ttl) => meta_number(out, b" N", exptime),
            (b'N', Verb::Get | Verb::Set | Verb::Arithmetic) => meta_number(out, b" N", signed()),
            (b'R', Verb::Get) => meta_number(out, b" R", signed()),
            (b'F', Verb::Set) => meta_number(out, b" F", of.flags()),
            (b'D', Verb::Arithmetic) => meta_number(out, b" D", of.delta()),
            (b'J', Verb::Arithmetic) => meta_number(out, b" J", client_u64(rest).unwrap_or_default()),
            (b'M', Verb::Set | Verb::Arithmetic) => out.put(meta.mode.flag()),
            (b'O', _) => {
                out.put(b" ");
                out.put(word);
            }
            // `answer::as_promised` puts the key into the answer.
            (b'k', _) if !may_be_named(of.key()) => {}
            (b'c' | b'k' | b'x', _)
            | (b'f' | b'h' | b'l' | b's' | b't' | b'u' | b'v', Verb::Get)
            | (b's' | b'I', Verb::Set)
            | (b'I', Verb::Delete)
            | (b't', Verb::Arithmetic) => out.put(&[b' ', flag]),
            // `q`, `b` (written with the key), `v` of `ma` (below), and what means nothing here.
            _ => {}
        }
    }
    match meta.verb {
        // The follower's number has to agree with it.
        Verb::Arithmetic => out.put(b" v"),
        // Up to 1.6.17 an `mg` without any flag is refused. This one means nothing to it.
        Verb::Get if out.len() == bare && !meta.has(Flag::Binary) => out.put(b" F0"),
        _ => {}
    }
    meta_end(out, meta.verb == Verb::Set, of);
}

/// Counts as the command does, and answers with the number.
///
/// memcached 1.6.18 gives `T` to an item that it may just have replaced by a longer one, on both
/// nodes alike.
pub fn put_count(out: &mut OutQueue, meta: Meta, of: &impl Command, exptime: i64) {
    meta_begin(out, b"ma ", of, meta.has(Flag::Binary), false);
    out.put(meta.mode.flag());
    meta_number(out, b" D", of.delta());
    for word in flags(meta, of.raw(), of.key_end()) {
        match word[0] {
            b'T' => meta_number(out, b" T", exptime),
            b'N' if !meta.has(Flag::Ttl) => meta_number(out, b" N", exptime),
            b'N' => meta_number(out, b" N", client_i32(&word[1..]).unwrap_or_default()),
            b'J' => meta_number(out, b" J", client_u64(&word[1..]).unwrap_or_default()),
            _ => {}
        }
    }
    out.put(b" v\r\n");
}
