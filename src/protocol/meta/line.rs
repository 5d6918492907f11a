//! Meta commands on their way to a node.
//!
//! The leader's line is written anew from the client's, word by word: without `q`, for a node must
//! always answer; with the numbers as the parser understood them, with the date that the item is to
//! expire by that node's clock, and with the cas id that the client's token stands for. The
//! follower's has what makes its copy equal and nothing else.

use super::super::key::Key;
use super::super::line::Words;
use super::super::node::Command;
use super::super::number::{client_i32, client_u64};
use super::super::out::OutQueue;
use super::command::{Flag, Meta, Mode, Verb};

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
    head(out, meta.name().as_bytes(), meta, of, meta.verb == Verb::Set);
    for word in flags(meta, of.raw(), of.key_end()) {
        let (flag, rest) = (word[0], &word[1..]);
        // Numbers that the parser has not kept; it has looked at all of them.
        let signed = || client_i32(rest).unwrap_or_default();
        match (flag, meta.verb) {
            (b'T', _) => number(out, b" T", exptime),
            (b'C', _) => number(out, b" C", cas),
            // Where the item is made both nodes are to give it one date, too.
            (b'N', Verb::Arithmetic) if !meta.has(Flag::Ttl) => number(out, b" N", exptime),
            (b'N', Verb::Get | Verb::Set | Verb::Arithmetic) => number(out, b" N", signed()),
            (b'R', Verb::Get) => number(out, b" R", signed()),
            (b'F', Verb::Set) => number(out, b" F", of.flags()),
            (b'D', Verb::Arithmetic) => number(out, b" D", of.delta()),
            (b'J', Verb::Arithmetic) => number(out, b" J", client_u64(rest).unwrap_or_default()),
            (b'M', Verb::Set | Verb::Arithmetic) => put_mode(out, meta.mode),
            (b'O', _) => {
                out.put(b" ");
                out.put(word);
            }
            (b'c' | b'k' | b'x', _)
            | (b'f' | b'h' | b'l' | b's' | b't' | b'u' | b'v', Verb::Get)
            | (b's' | b'I', Verb::Set)
            | (b'I', Verb::Delete)
            | (b't', Verb::Arithmetic) => out.put(&[b' ', flag]),
            // `q`, `b` (written with the key), `v` of `ma` (below), and what means nothing here.
            _ => {}
        }
    }
    if meta.verb == Verb::Arithmetic {
        // The follower's number has to agree with it.
        out.put(b" v");
    }
    end(out, meta, of);
}

/// Stores the command's value, client flags and expiry, whatever is there.
pub fn put_set(out: &mut OutQueue, meta: Meta, of: &impl Command, exptime: i64) {
    head(out, b"ms", meta, of, true);
    if exptime != 0 {
        number(out, b" T", exptime);
    }
    if of.flags() != 0 {
        number(out, b" F", of.flags());
    }
    end_with_value(out, of);
}

/// Adds the command's value to what is there, by its mode.
pub fn put_join(out: &mut OutQueue, meta: Meta, of: &impl Command) {
    head(out, b"ms", meta, of, true);
    put_mode(out, meta.mode);
    end_with_value(out, of);
}

/// Removes the item.
pub fn put_delete(out: &mut OutQueue, meta: Meta, of: &impl Command) {
    head(out, b"md", meta, of, false);
    out.put(b"\r\n");
}

/// Gives the item the command's expiry.
pub fn put_touch(out: &mut OutQueue, meta: Meta, of: &impl Command, exptime: i64) {
    head(out, b"mg", meta, of, false);
    number(out, b" T", exptime);
    out.put(b"\r\n");
}

/// Counts as the command does, and answers with the number.
///
/// (memcached 1.6.18 gives `T` to an item that it may just have replaced by a longer one, on both
/// nodes alike.)
pub fn put_count(out: &mut OutQueue, meta: Meta, of: &impl Command, exptime: i64) {
    head(out, b"ma", meta, of, false);
    put_mode(out, meta.mode);
    number(out, b" D", of.delta());
    for word in flags(meta, of.raw(), of.key_end()) {
        match word[0] {
            b'T' => number(out, b" T", exptime),
            b'N' if !meta.has(Flag::Ttl) => number(out, b" N", exptime),
            b'N' => number(out, b" N", client_i32(&word[1..]).unwrap_or_default()),
            b'J' => number(out, b" J", client_u64(&word[1..]).unwrap_or_default()),
            _ => {}
        }
    }
    out.put(b" v\r\n");
}

fn head(out: &mut OutQueue, verb: &[u8], meta: Meta, of: &impl Command, with_value: bool) {
    let key = Key::new(of.key(), meta.has(Flag::Binary));
    out.put(verb);
    out.put(b" ");
    key.put(out);
    if with_value {
        number(out, b" ", of.data().len());
    }
    key.put_flag(out);
}

fn end(out: &mut OutQueue, meta: Meta, of: &impl Command) {
    match meta.verb {
        Verb::Set => end_with_value(out, of),
        _ => out.put(b"\r\n"),
    }
}

fn end_with_value(out: &mut OutQueue, of: &impl Command) {
    out.put(b"\r\n");
    super::super::node::put_value(out, of);
}

fn put_mode(out: &mut OutQueue, mode: Mode) {
    out.put(match mode {
        Mode::Set => b" MS",
        Mode::Add => b" ME",
        Mode::Append => b" MA",
        Mode::Prepend => b" MP",
        Mode::Replace => b" MR",
        Mode::Increment => b" MI",
        Mode::Decrement => b" MD",
    });
}

fn number(out: &mut OutQueue, before: &[u8], number: impl itoa::Integer) {
    out.put(before);
    out.put_number(number);
}
