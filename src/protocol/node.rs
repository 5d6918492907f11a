//! Commands to a node. Nothing else in the proxy formats one, and the form of their keys is chosen
//! in [`super::key`] alone.

use std::ops::Range;

use bytes::Bytes;

use super::key::Key;
use super::meta::{self, Mode, Verb};
use super::out::OutQueue;
use super::request::{Family, Kind};

/// Whether a command changes what the node holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It only reads.
    Read,
    /// It changes items: unanswered, it may still be executed at any later time.
    Mutation,
}

/// Reads the marker that names the life of a node's memory.
pub const MARKER_READ: &[u8] = b"mg __resilver__:incarnation v\r\n";

/// Reads the mark that names the fleet's active proxy.
pub const FLEET_READ: &[u8] = b"mg __resilver__:fleet v\r\n";

/// Answered when everything before it was handled.
pub const NOOP: &[u8] = b"mn\r\n";

pub const FLUSH_ALL: &[u8] = b"flush_all\r\n";

pub const CRAWLER_ENABLE: &[u8] = b"lru_crawler enable\r\n";

/// Lists all keys, by the hash table.
pub const DUMP_HASH: &[u8] = b"lru_crawler metadump hash\r\n";

/// Lists keys, by the LRU lists: those that move in them meanwhile may be missed.
pub const DUMP_LISTS: &[u8] = b"lru_crawler metadump all\r\n";

/// `stats`, or one of its parts.
pub fn stats(out: &mut OutQueue, part: &str) {
    out.put(b"stats");
    if !part.is_empty() {
        out.put(b" ");
        out.put(part.as_bytes());
    }
    out.put(b"\r\n");
}

/// What `mg` asks of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    ValueAndCas,
    Cas,
    /// All that makes an item, with the key, by which the answer is known.
    KeyAndItem,
    /// Key, remaining time and cas id: what changes when the item does.
    KeyAndState,
    /// The same without the key.
    State,
    /// How long its value is.
    Length,
}

impl Ask {
    fn flags(self) -> &'static [u8] {
        match self {
            Ask::ValueAndCas => b" v c",
            Ask::Cas => b" c",
            Ask::KeyAndItem => b" v f t c",
            Ask::State | Ask::KeyAndState => b" t c",
            Ask::Length => b" s",
        }
    }

    fn names_key(self) -> bool {
        matches!(self, Ask::KeyAndItem | Ask::KeyAndState)
    }
}

/// Reads an item, or what is asked of it.
pub fn mg(out: &mut OutQueue, key: Key<'_>, ask: Ask) -> Effect {
    read(out, key, ask, b"")
}

/// The same, and its place in the node's LRU stays as it is. (A node that moves an item in a thread
/// of its own does not count in the item's place meanwhile: 0 stood there in place of a 0 and
/// blanks.)
pub fn mg_unmoved(out: &mut OutQueue, key: Key<'_>, ask: Ask) -> Effect {
    read(out, key, ask, b" u")
}

fn read(out: &mut OutQueue, key: Key<'_>, ask: Ask, more: &[u8]) -> Effect {
    out.put(b"mg ");
    key.put(out);
    key.put_flag(out);
    if ask.names_key() {
        key.put_named(out);
    }
    out.put(ask.flags());
    out.put(more);
    out.put(b"\r\n");
    Effect::Read
}

/// Deletes whatever is there. The answer does not name the key.
pub fn md_unechoed(out: &mut OutQueue, key: Key<'_>) -> Effect {
    delete(out, key, false, b"", None)
}

/// Deletes the item, if it has this cas id where one is given.
pub fn md(out: &mut OutQueue, key: Key<'_>, cas: Option<u64>) -> Effect {
    delete(out, key, true, b"", cas)
}

/// Marks the item with this cas id as stale again.
pub fn md_stale(out: &mut OutQueue, key: Key<'_>, cas: u64) -> Effect {
    delete(out, key, true, b" I", Some(cas))
}

fn delete(out: &mut OutQueue, key: Key<'_>, echo: bool, flags: &[u8], cas: Option<u64>) -> Effect {
    out.put(b"md ");
    key.put(out);
    key.put_flag(out);
    if echo {
        key.put_named(out);
    }
    out.put(flags);
    if let Some(cas) = cas {
        out.put(b" C");
        out.put_number(cas);
    }
    out.put(b"\r\n");
    Effect::Mutation
}

/// Adds a copy of an item where there is none. `echo`: the answer is to name the key and the copy's
/// cas id.
pub fn ms_add(out: &mut OutQueue, key: Key<'_>, value: &Bytes, (flags, exptime): (u32, i64), echo: bool) -> Effect {
    out.put(b"ms ");
    key.put(out);
    out.put(b" ");
    out.put_number(value.len());
    key.put_flag(out);
    out.put(b" ME");
    if echo {
        key.put_named(out);
        out.put(b" c");
    }
    out.put(b" T");
    out.put_number(exptime);
    out.put(b" F");
    out.put_number(flags);
    out.put(b"\r\n");
    out.put_shared(value.clone());
    out.put(b"\r\n");
    Effect::Mutation
}

/// On what a write of one of the proxy's own items depends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    None,
    /// Nothing is there.
    Absent,
    /// The item that is there has this cas id.
    Cas(u64),
}

/// Writes one of the proxy's own items, which has a plain key and a short value.
pub fn ms_own(out: &mut OutQueue, key: &str, value: &[u8], exptime: i64, condition: Condition) -> Effect {
    out.put(b"ms ");
    out.put(key.as_bytes());
    out.put(b" ");
    out.put_number(value.len());
    out.put(b" T");
    out.put_number(exptime);
    match condition {
        Condition::None => {}
        Condition::Absent => out.put(b" ME"),
        Condition::Cas(cas) => {
            out.put(b" C");
            out.put_number(cas);
        }
    }
    out.put(b"\r\n");
    out.put(value);
    out.put(b"\r\n");
    Effect::Mutation
}

/// A client's command on one key, as far as a node is told of it.
pub trait Command {
    fn key(&self) -> &[u8];
    /// Where it ends in `raw`.
    fn key_end(&self) -> usize;
    /// Bytes that key and value lie in, as a client sent them or not.
    fn raw(&self) -> &Bytes;
    /// The value, in `raw`.
    fn data(&self) -> Range<usize>;
    fn flags(&self) -> u32;
    fn delta(&self) -> u64;
    /// What `incr` and `decr` store where there is nothing.
    fn initial(&self) -> Option<u64>;
}

/// Writes a client's command on one key. `exptime`: as this node is told it; `cas`: the id that it
/// compares with.
#[inline(always)]
pub fn command(out: &mut OutQueue, kind: Kind, of: &impl Command, exptime: i64, cas: impl FnOnce() -> u64) {
    match kind {
        Kind::Get => line(out, b"get ", of.key()),
        Kind::Gets => line(out, b"gets ", of.key()),
        Kind::Gat => gat(out, b"gat ", of, exptime),
        Kind::Gats => gat(out, b"gats ", of, exptime),
        Kind::Set => set(out, of, exptime),
        Kind::Add => store(out, b"add ", of, exptime, None),
        Kind::Replace => store(out, b"replace ", of, exptime, None),
        Kind::Append => store(out, b"append ", of, exptime, None),
        Kind::Prepend => store(out, b"prepend ", of, exptime, None),
        Kind::Cas => store(out, b"cas ", of, exptime, Some(cas())),
        Kind::Incr => arithmetic(out, b"incr ", of),
        Kind::Decr => arithmetic(out, b"decr ", of),
        Kind::Delete => delete_classic(out, of),
        Kind::Touch => touch(out, of, exptime),
        Kind::Meta(meta) => meta::line::put(out, meta, of, exptime, cas()),
        Kind::Mend => unreachable!("a mend is nothing but a repair"),
    }
}

/// The same in the meta protocol, which alone takes keys in base64 (`binary`), tells the cas id of
/// what a write has stored, and takes one as the condition of any write.
pub fn meta_command(out: &mut OutQueue, kind: Kind, of: &impl Command, binary: bool, exptime: i64, cas: Option<u64>) {
    match kind {
        Kind::Get | Kind::Gets => meta_head(out, b"mg ", of, binary, b" v f c"),
        Kind::Gat | Kind::Gats => meta_head(out, b"mg ", of, binary, b" v f c"),
        Kind::Touch => meta_head(out, b"mg ", of, binary, b" f c"),
        Kind::Incr => meta_head(out, b"ma ", of, binary, b" v c"),
        Kind::Decr => meta_head(out, b"ma ", of, binary, b" MD v c"),
        Kind::Delete => meta_head(out, b"md ", of, binary, b""),
        Kind::Set | Kind::Cas => meta_store(out, of, binary, b" c", exptime),
        Kind::Add => meta_store(out, of, binary, b" ME c", exptime),
        Kind::Replace => meta_store(out, of, binary, b" MR c", exptime),
        Kind::Append => meta_store(out, of, binary, b" MA c", exptime),
        Kind::Prepend => meta_store(out, of, binary, b" MP c", exptime),
        Kind::Meta(_) => unreachable!("it is written word by word"),
        Kind::Mend => unreachable!("a mend is nothing but a repair"),
    }
    if matches!(kind, Kind::Gat | Kind::Gats | Kind::Touch) {
        meta_number(out, b" T", exptime);
    }
    if matches!(kind, Kind::Incr | Kind::Decr) {
        meta_number(out, b" D", of.delta());
        meta_initial(out, of, exptime);
    }
    if let Some(cas) = cas {
        meta_number(out, b" C", cas);
    }
    meta_end(out, kind.family() == Family::Store, of);
}

/// Stores the command's value, whatever is there, in the meta protocol.
pub fn meta_set(out: &mut OutQueue, of: &impl Command, binary: bool, exptime: i64) {
    meta_store(out, of, binary, b"", exptime);
    meta_end(out, true, of);
}

/// Deletes the command's key.
pub fn meta_delete(out: &mut OutQueue, of: &impl Command, binary: bool) {
    meta_head(out, b"md ", of, binary, b"");
    meta_end(out, false, of);
}

pub fn meta_touch(out: &mut OutQueue, of: &impl Command, binary: bool, exptime: i64) {
    meta_head(out, b"mg ", of, binary, b"");
    meta_number(out, b" T", exptime);
    meta_end(out, false, of);
}

fn meta_initial(out: &mut OutQueue, of: &impl Command, exptime: i64) {
    if let Some(initial) = of.initial() {
        meta_number(out, b" N", exptime);
        meta_number(out, b" J", initial);
        // Behind `N`: memcached takes flag by flag, and has not set the expiry before.
        out.put(b" t");
    }
}

/// Counts on what is there, or adds to it, as a client's command has done on the leader. `created`:
/// it may have found nothing there, and stored the first number.
pub fn meta_repeat(out: &mut OutQueue, kind: Kind, of: &impl Command, binary: bool, (created, exptime): (bool, i64)) {
    match kind {
        Kind::Append => return meta_join(out, of, binary, Mode::Append),
        Kind::Prepend => return meta_join(out, of, binary, Mode::Prepend),
        Kind::Meta(meta) if meta.verb == Verb::Set => return meta_join(out, of, binary, meta.mode),
        Kind::Meta(meta) => return meta::line::put_count(out, meta, of, exptime),
        _ => {
            meta_head(out, b"ma ", of, binary, if kind == Kind::Decr { b" MD v" } else { b" v" });
            meta_number(out, b" D", of.delta());
            if created {
                meta_initial(out, of, exptime);
            }
        }
    }
    meta_end(out, false, of);
}

/// Adds the command's value to what is there, at the end that the mode says.
fn meta_join(out: &mut OutQueue, of: &impl Command, binary: bool, mode: Mode) {
    meta_begin(out, b"ms ", of, binary, true);
    out.put(mode.flag());
    meta_end(out, true, of);
}

/// A meta command up to its flags.
pub(super) fn meta_begin(out: &mut OutQueue, verb: &[u8], of: &impl Command, binary: bool, with_value: bool) {
    let key = Key::new(of.key(), binary);
    out.put(verb);
    key.put(out);
    if with_value {
        meta_number(out, b" ", of.data().len());
    }
    key.put_flag(out);
}

fn meta_head(out: &mut OutQueue, verb: &[u8], of: &impl Command, binary: bool, flags: &[u8]) {
    meta_begin(out, verb, of, binary, false);
    out.put(flags);
}

fn meta_store(out: &mut OutQueue, of: &impl Command, binary: bool, flags: &[u8], exptime: i64) {
    meta_begin(out, b"ms ", of, binary, true);
    out.put(flags);
    if exptime != 0 {
        meta_number(out, b" T", exptime);
    }
    if of.flags() != 0 {
        meta_number(out, b" F", of.flags());
    }
}

pub(super) fn meta_number(out: &mut OutQueue, flag: &[u8], number: impl itoa::Integer) {
    out.put(flag);
    out.put_number(number);
}

pub(super) fn meta_end(out: &mut OutQueue, with_value: bool, of: &impl Command) {
    out.put(b"\r\n");
    if with_value {
        put_value(out, of);
    }
}

/// Stores the command's value, whatever is there.
pub fn set(out: &mut OutQueue, of: &impl Command, exptime: i64) {
    store(out, b"set ", of, exptime, None);
}

/// Reads keys of the proxy's own, by themselves.
pub(crate) fn get_keys(keys: &[&str]) -> String {
    format!("get {}\r\n", keys.join(" "))
}

/// Deletes a key of the proxy's own.
pub(crate) fn delete_key(key: &str) -> String {
    format!("delete {key}\r\n")
}

/// Deletes the command's key.
pub fn delete_classic(out: &mut OutQueue, of: &impl Command) {
    line(out, b"delete ", of.key());
}

pub fn touch(out: &mut OutQueue, of: &impl Command, exptime: i64) {
    out.put(b"touch ");
    out.put(of.key());
    out.put(b" ");
    out.put_number(exptime);
    out.put(b"\r\n");
}

/// Begins a `get` or `gets` line with its first key; returns its bytes so far.
pub fn begin_get(out: &mut OutQueue, kind: Kind, key: &[u8]) -> usize {
    let verb: &[u8] = if kind == Kind::Gets { b"gets " } else { b"get " };
    out.put(verb);
    out.put(key);
    verb.len() + key.len()
}

/// Adds a key to it.
pub fn add_key(out: &mut OutQueue, key: &[u8]) {
    out.put(b" ");
    out.put(key);
}

/// Ends it.
pub fn end_get(out: &mut OutQueue) {
    out.put(b"\r\n");
}

fn line(out: &mut OutQueue, verb: &[u8], key: &[u8]) {
    out.put(verb);
    out.put(key);
    out.put(b"\r\n");
}

fn gat(out: &mut OutQueue, verb: &[u8], of: &impl Command, exptime: i64) {
    out.put(verb);
    out.put_number(exptime);
    out.put(b" ");
    out.put(of.key());
    out.put(b"\r\n");
}

fn arithmetic(out: &mut OutQueue, verb: &[u8], of: &impl Command) {
    out.put(verb);
    out.put(of.key());
    out.put(b" ");
    out.put_number(of.delta());
    out.put(b"\r\n");
}

fn store(out: &mut OutQueue, verb: &[u8], of: &impl Command, exptime: i64, cas: Option<u64>) {
    out.put(verb);
    out.put(of.key());
    if (of.flags(), exptime) == (0, 0) {
        out.put(b" 0 0 ");
    } else {
        out.put(b" ");
        out.put_number(of.flags());
        out.put(b" ");
        out.put_number(exptime);
        out.put(b" ");
    }
    let data = of.data();
    out.put_number(data.len() as u32);
    if let Some(cas) = cas {
        out.put(b" ");
        out.put_number(cas);
    }
    out.put(b"\r\n");
    put_value(out, of);
}

/// The command's value, and the line's end behind it.
#[inline(always)]
fn put_value(out: &mut OutQueue, of: &impl Command) {
    let data = of.data();
    // As a client of a text protocol sent it there is the line's end behind it.
    let whole = data.start..data.end + 2;
    match of.raw().get(whole.clone()) {
        Some(value) if value.ends_with(b"\r\n") => out.put_part(of.raw(), whole),
        _ => {
            out.put_part(of.raw(), data);
            out.put(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut OutQueue) -> Effect) -> (String, Effect) {
        let mut out = OutQueue::default();
        let effect = write(&mut out);
        (String::from_utf8(out.one_piece().unwrap().to_vec()).unwrap(), effect)
    }

    #[test]
    fn keys_have_their_form_in_every_command() {
        let value = Bytes::from_static(b"v");
        for (key, wire, flag) in [(Key::plain(b"k"), "k", ""), (Key::new(b"a b", true), "YSBi", " b")] {
            let read = |ask| written(|out| mg(out, key, ask));
            assert_eq!(read(Ask::KeyAndItem), (format!("mg {wire}{flag} k v f t c\r\n"), Effect::Read));
            assert_eq!(read(Ask::Cas).0, format!("mg {wire}{flag} c\r\n"));
            let deleted = |cas| written(|out| md(out, key, cas));
            assert_eq!(deleted(Some(7)), (format!("md {wire}{flag} k C7\r\n"), Effect::Mutation));
            assert_eq!(deleted(None).0, format!("md {wire}{flag} k\r\n"));
            assert_eq!(written(|out| md_stale(out, key, 7)).0, format!("md {wire}{flag} k I C7\r\n"));
            assert_eq!(written(|out| md_unechoed(out, key)).0, format!("md {wire}{flag}\r\n"));
            let added = |echo| written(|out| ms_add(out, key, &value, (5, 0), echo)).0;
            assert_eq!(added(true), format!("ms {wire} 1{flag} ME k c T0 F5\r\nv\r\n"));
            assert_eq!(added(false), format!("ms {wire} 1{flag} ME T0 F5\r\nv\r\n"));
            assert_eq!(written(|out| mg_unmoved(out, key, Ask::Cas)).0, format!("mg {wire}{flag} c u\r\n"));
            assert_eq!(written(|out| mg_unmoved(out, key, Ask::Length)).0, format!("mg {wire}{flag} s u\r\n"));
        }
    }

    #[test]
    fn a_key_with_a_line_end_in_it_is_never_to_be_named() {
        let (key, value) = (Key::known(b"x\r\ny"), Bytes::from_static(b"v"));
        for ask in [Ask::KeyAndItem, Ask::KeyAndState] {
            assert_eq!(written(|out| mg(out, key, ask)).0, format!("mg eA0KeQ== b{}\r\n", ask.flags().escape_ascii()));
        }
        assert_eq!(written(|out| md(out, key, None)).0, "md eA0KeQ== b\r\n");
        assert_eq!(written(|out| md_stale(out, key, 7)).0, "md eA0KeQ== b I C7\r\n");
        let added = written(|out| ms_add(out, key, &value, (5, 0), true)).0;
        assert_eq!(added, "ms eA0KeQ== 1 b ME c T0 F5\r\nv\r\n");
    }

    #[test]
    fn the_proxys_own_items_are_written_under_their_condition() {
        let own = |condition| written(|out| ms_own(out, "m", b"xyz", 9, condition)).0;
        assert_eq!(own(Condition::None), "ms m 3 T9\r\nxyz\r\n");
        assert_eq!(own(Condition::Absent), "ms m 3 T9 ME\r\nxyz\r\n");
        assert_eq!(own(Condition::Cas(4)), "ms m 3 T9 C4\r\nxyz\r\n");
    }
}
