//! A model memcached: one process's memory, and what 1.6.18 answers to the commands that the proxy
//! sends. Pure: it knows no connection and no clock, and does one command at a time. What differs
//! from test to test (faults, delays, scripts) is a thin shell around it; `tests/it/model.rs` holds
//! it against the real one.
#![allow(dead_code, unused_imports)] // Every crate of tests uses its part of it.

mod line;
mod meta;

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Bound;

use line::Line;
pub use line::command_len;

/// Exptimes above this many seconds are dates.
const RELATIVE_MAX: i64 = 30 * 24 * 60 * 60;
/// An exptime that has always passed.
const PASSED: i64 = -1;

const NOT_NUMERIC: &[u8] = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
const OUT_OF_MEMORY: &[u8] = b"SERVER_ERROR out of memory storing object\r\n";

/// What stands under a key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Item {
    pub value: Vec<u8>,
    pub flags: u32,
    /// A date by the node's clock, in unix seconds; 0: it never expires.
    pub exptime: i64,
    pub cas: u64,
    pub mark: Mark,
}

impl Item {
    fn has_expired(&self, now: i64) -> bool {
        self.exptime != 0 && self.exptime <= now
    }
}

/// What `mg` shows of an item beside what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Mark {
    pub stale: bool,
    /// Somebody was told to recompute it.
    pub sent: bool,
}

impl Mark {
    /// Looks at it: what `mg` says. Whoever looks first at a stale item is told to recompute it,
    /// and so is who finds it `due`.
    pub fn look(&mut self, due: bool) -> &'static str {
        let wins = !self.sent && (self.stale || due);
        let shown = match (self.sent, self.stale, wins) {
            (true, true, _) => " Z X",
            (true, false, _) => " Z",
            (false, true, _) => " X W",
            (false, false, true) => " W",
            (false, false, false) => "",
        };
        self.sent |= wins;
        shown
    }
}

/// One life of a node's memory.
#[derive(Clone, Default, Debug)]
pub struct Memcached {
    pub items: BTreeMap<Vec<u8>, Item>,
    /// Its clock, in unix seconds: whoever drives it sets it.
    pub now: i64,
    /// When the process began, by the same clock.
    pub started: i64,
    /// `-C`: its items have no cas ids.
    pub no_cas: bool,
    /// It lists no keys.
    pub no_crawler: bool,
    /// It has no memory left for these keys (`-M`): what is stored under them is refused, and what
    /// stood there goes.
    pub refuses: Option<fn(&[u8]) -> bool>,
    /// What it shows under every key under which nothing was stored: for a node that has all.
    pub elsewhere: Option<Item>,
    /// A thread of its own holds the item just then, as the LRU's does once in some thousand times:
    /// what is counted to is another item, also where it fits.
    pub holds_items: bool,
    /// Of the last item stored; a new process begins at 0.
    pub cas: u64,
    pub flushes: u64,
    /// Items that were flushed and still count as `curr_items`.
    pub ghosts: usize,
}

/// A node's date for an exptime as commands have it.
fn date(now: i64, exptime: i64) -> i64 {
    match exptime {
        0 => 0,
        ..0 => PASSED,
        t if t > RELATIVE_MAX => t,
        t => now + t,
    }
}

impl Memcached {
    /// A process that begins at that date.
    pub fn at(now: i64) -> Memcached {
        Memcached { now, started: now, ..Memcached::default() }
    }

    /// Executes one command, with its data block; the answer is written behind what `out` has.
    pub fn execute(&mut self, command: &[u8], out: &mut Vec<u8>) {
        let (line, data) = Line::split(command);
        let (verb, named) = (line.word(0), line.word(1));
        // Items do not remember that their key came in base64: `k` shows plain keys.
        let decoded = (verb.len() == 2 && line.flags(2).has(b"b")).then(|| line::from_base64(named));
        let key = decoded.as_deref().unwrap_or(named);
        match verb {
            b"get" | b"gets" | b"gat" | b"gats" => self.retrieve(line, out),
            b"set" | b"add" | b"replace" | b"append" | b"prepend" | b"cas" => {
                out.extend_from_slice(self.store(line, data));
            }
            b"incr" | b"decr" => {
                let Some(item) = self.find(key) else { return out.extend_from_slice(b"NOT_FOUND\r\n") };
                match item.counted(verb == b"decr", line.unsigned(2)) {
                    None => out.extend_from_slice(NOT_NUMERIC),
                    Some(number) => {
                        self.recount(key, number);
                        put(out, format_args!("{number}\r\n"));
                    }
                }
            }
            b"delete" => {
                let stood = self.find_asked(key).is_some();
                self.items.remove(key);
                out.extend_from_slice(if stood { b"DELETED\r\n" } else { b"NOT_FOUND\r\n" });
            }
            b"touch" => {
                let exptime = date(self.now, line.signed(2));
                let stood = self.find(key).map(|item| item.exptime = exptime).is_some();
                out.extend_from_slice(if stood { b"TOUCHED\r\n" } else { b"NOT_FOUND\r\n" });
            }
            b"mn" => out.extend_from_slice(b"MN\r\n"),
            b"mg" => self.meta_get(key, line.flags(2), out),
            b"ms" => self.meta_set(key, line.flags(3), data, out),
            b"md" => self.meta_delete(key, line.flags(2), out),
            b"ma" => self.meta_arithmetic(key, line.flags(2), out),
            b"flush_all" => {
                self.flush();
                out.extend_from_slice(b"OK\r\n");
            }
            b"stats" => self.stats(key, out),
            b"lru_crawler" => self.crawl(key, out),
            _ => out.extend_from_slice(b"ERROR\r\n"),
        }
    }

    /// What stands there and has not expired.
    pub fn find(&mut self, key: &[u8]) -> Option<&mut Item> {
        let now = self.now;
        self.items.get_mut(key).filter(|item| !item.has_expired(now))
    }

    /// The same for a command that asks, or deletes, what was never stored, perhaps.
    fn find_asked(&mut self, key: &[u8]) -> Option<&mut Item> {
        let now = self.now;
        self.items.get_mut(key).filter(|item| !item.has_expired(now)).or(self.elsewhere.as_mut())
    }

    /// Stores an item, whatever stands there: its cas id.
    pub fn put(&mut self, key: &[u8], value: &[u8], flags: u32, exptime: i64) -> u64 {
        let (cas, exptime, mark) = (self.next_cas(), date(self.now, exptime), Mark::default());
        match self.items.get_mut(key) {
            // In the memory that it has.
            Some(item) => {
                item.value.clear();
                item.value.extend_from_slice(value);
                (item.flags, item.exptime, item.cas, item.mark) = (flags, exptime, cas, mark);
            }
            None => {
                let item = Item { value: value.to_vec(), flags, exptime, cas, mark };
                self.items.insert(key.to_vec(), item);
            }
        }
        cas
    }

    /// What it holds that has not expired.
    pub fn alive(&self) -> impl Iterator<Item = (&Vec<u8>, &Item)> {
        self.items.iter().filter(|(_, item)| !item.has_expired(self.now))
    }

    pub fn flush(&mut self) {
        self.ghosts += self.items.len();
        self.items.clear();
        self.flushes += 1;
    }

    /// The next keys of a dump behind `after`, as its lines: the last one's key. `None`: there are
    /// no more.
    pub fn dump(&self, after: Option<&[u8]>, count: usize, out: &mut Vec<u8>) -> Option<Vec<u8>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let items = self.items.range::<[u8], _>((from, Bound::Unbounded));
        let mut last = None;
        for (key, item) in items.filter(|(_, item)| !item.has_expired(self.now)).take(count) {
            out.extend_from_slice(b"key=");
            for &byte in key {
                match byte {
                    b'-' | b'.' | b'_' | b'~' => out.push(byte),
                    _ if byte.is_ascii_alphanumeric() => out.push(byte),
                    _ => put(out, format_args!("%{byte:02X}")),
                }
            }
            let exptime = if item.exptime == 0 { -1 } else { item.exptime };
            put(out, format_args!(" exp={exptime} la=0 cas={} fetch=no cls=1 size=60\n", item.cas));
            last = Some(key);
        }
        last.cloned()
    }

    fn next_cas(&mut self) -> u64 {
        self.cas += 1;
        if self.no_cas { 0 } else { self.cas }
    }

    /// Whether it refuses what is to be stored there; then nothing stands there.
    fn has_no_memory_for(&mut self, key: &[u8]) -> bool {
        let refused = self.refuses.is_some_and(|refuses| refuses(key));
        if refused {
            self.items.remove(key);
        }
        refused
    }

    fn retrieve(&mut self, line: Line<'_>, out: &mut Vec<u8>) {
        let verb = line.word(0);
        let exptime = verb.starts_with(b"gat").then(|| date(self.now, line.signed(1)));
        for key in line.keys() {
            let Some(item) = self.find_asked(key) else { continue };
            item.exptime = exptime.unwrap_or(item.exptime);
            out.extend_from_slice(b"VALUE ");
            out.extend_from_slice(key);
            put(out, format_args!(" {} {}", item.flags, item.value.len()));
            if verb.ends_with(b"s") {
                put(out, format_args!(" {}", item.cas));
            }
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(&item.value);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"END\r\n");
    }

    fn store(&mut self, line: Line<'_>, data: &[u8]) -> &'static [u8] {
        let (verb, key) = (line.word(0), line.word(1));
        // A `set` ignores what is there.
        let standing = if verb == b"set" { None } else { self.find(key).map(|item| item.cas) };
        match (verb, standing) {
            (b"add", Some(_)) | (b"replace" | b"append" | b"prepend", None) => return b"NOT_STORED\r\n",
            (b"cas", None) => return b"NOT_FOUND\r\n",
            (b"cas", Some(cas)) if cas != line.unsigned(5) => return b"EXISTS\r\n",
            _ => {}
        }
        if self.has_no_memory_for(key) {
            return OUT_OF_MEMORY;
        }
        match verb {
            b"append" | b"prepend" => self.join(key, data, verb == b"append"),
            _ => drop(self.put(key, data, line.signed(2) as u32, line.signed(3))),
        }
        b"STORED\r\n"
    }

    /// Adds to the value that stands there: a new item, of which nobody was told anything.
    fn join(&mut self, key: &[u8], data: &[u8], behind: bool) {
        let cas = self.next_cas();
        let item = self.items.get_mut(key).expect("it stands there");
        let at = if behind { item.value.len() } else { 0 };
        item.value.splice(at..at, data.iter().copied());
        (item.cas, item.mark) = (cas, Mark::default());
    }

    /// Gives an item the number that it was counted to. One that is no longer than what stands
    /// there is written over it: blanks fill the rest, and marks stay. Else another item replaces
    /// it (`true`).
    fn recount(&mut self, key: &[u8], number: u64) -> bool {
        let cas = self.next_cas();
        let item = self.items.get_mut(key).expect("it stands there");
        let had = item.value.len();
        item.value.clear();
        put(&mut item.value, format_args!("{number}"));
        let replaces = item.value.len() > had || self.holds_items;
        if replaces {
            item.mark = Mark::default();
        } else {
            item.value.resize(had, b' ');
        }
        item.cas = cas;
        replaces
    }

    fn stats(&self, part: &[u8], out: &mut Vec<u8>) {
        if part == b"settings" {
            let cas = if self.no_cas { "no" } else { "yes" };
            return put(out, format_args!("STAT item_size_max 1048576\r\nSTAT cas_enabled {cas}\r\nEND\r\n"));
        }
        if part == b"items" {
            let bytes: usize = self.items.values().map(|item| item.value.len()).sum();
            put(
                out,
                format_args!("STAT items:1:number {}\r\nSTAT items:1:mem_requested {bytes}\r\n", self.items.len()),
            );
            return out.extend_from_slice(b"END\r\n");
        }
        let uptime = self.now - self.started;
        put(
            out,
            format_args!("STAT pid 1\r\nSTAT uptime {uptime}\r\nSTAT time {}\r\nSTAT version 1.6.18\r\n", self.now),
        );
        let items = self.items.len() + self.ghosts;
        put(out, format_args!("STAT cmd_flush {}\r\nSTAT curr_items {items}\r\n", self.flushes));
        out.extend_from_slice(b"STAT evictions 0\r\nEND\r\n");
    }

    fn crawl(&self, what: &[u8], out: &mut Vec<u8>) {
        match what {
            b"enable" => out.extend_from_slice(b"OK\r\n"),
            _ if self.no_crawler => out.extend_from_slice(b"CLIENT_ERROR lru crawler disabled\r\n"),
            _ => {
                self.dump(None, usize::MAX, out);
                out.extend_from_slice(b"END\r\n");
            }
        }
    }
}

impl Item {
    /// What its number becomes, if it is one: its digits may have blanks behind them.
    fn counted(&self, down: bool, delta: u64) -> Option<u64> {
        let end = self.value.iter().position(|&byte| byte == b' ').unwrap_or(self.value.len());
        let number = line::number::<u64>(&self.value[..end])?;
        Some(if down { number.saturating_sub(delta) } else { number.wrapping_add(delta) })
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes everything");
}
