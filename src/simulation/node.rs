//! A model memcached: one process's memory, and what it answers to the commands that the proxy
//! uses.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Bound;
use std::time::Duration;

use tokio::time::Instant;

/// Exptimes above so many seconds are dates.
const RELATIVE_MAX: i64 = 30 * 24 * 60 * 60;
/// The date at which the world begins, by a node's clock that is right.
const EPOCH: i64 = 1_800_000_000;

const OUT_OF_MEMORY: &str = "SERVER_ERROR out of memory storing object\r\n";

/// What stands under a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Item {
    pub(super) value: Vec<u8>,
    pub(super) flags: u32,
    /// By the node's clock, unix seconds.
    pub(super) expires: Option<i64>,
    cas: u64,
}

/// An item as it is compared: value, client flags, when it ends, in milliseconds since the world
/// began.
pub(super) type Shown = (Vec<u8>, u32, Option<i64>);

/// What a node refuses to store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Refuses {
    #[default]
    Nothing,
    /// Keys that no client writes any more.
    Cold,
    /// All but the proxy's own.
    All,
}

/// A host's clock, and how a process reads it.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Clock {
    /// How far it is ahead, in milliseconds: so it also turns to its seconds at moments of its own.
    pub(super) skew_ms: i64,
    /// memcached reads it once a second, by a timer that is so late each time, in microseconds. A
    /// second is passed over in the end. 0: it reads it all the time.
    pub(super) late_us: u64,
}

/// One life of a node's memory.
#[derive(Debug)]
pub(super) struct Node {
    items: BTreeMap<Vec<u8>, Item>,
    /// Of the last item stored; a new process begins at 0.
    cas: u64,
    /// Items that were flushed and still count as `curr_items`.
    ghosts: usize,
    flushes: u64,
    begun: Instant,
    started: Instant,
    clock: Clock,
    /// It has no memory for these keys (`-M`): what is stored under them is refused, and what stood
    /// there goes.
    pub(super) refuses: Refuses,
    /// A `metadump` runs: a second one is answered BUSY.
    pub(super) dumping: bool,
}

/// What an answer line says of an item, flag by flag as asked.
struct Asked<'a>(&'a [&'a str]);

impl Asked<'_> {
    fn has(&self, flag: &str) -> bool {
        self.0.contains(&flag)
    }

    fn value(&self, flag: char) -> Option<&str> {
        self.0.iter().find_map(|word| word.strip_prefix(flag))
    }
}

impl Node {
    /// An empty process in a world that began at `begun`; this is its clock.
    pub(super) fn new(begun: Instant, clock: Clock) -> Node {
        let started = Instant::now();
        Node {
            items: BTreeMap::new(),
            cas: 0,
            ghosts: 0,
            flushes: 0,
            begun,
            started,
            clock,
            refuses: Refuses::Nothing,
            dumping: false,
        }
    }

    /// What it holds.
    pub(super) fn contents(&self) -> BTreeMap<Vec<u8>, Shown> {
        let now = self.now();
        let alive = self.items.iter().filter(|(_, item)| item.expires.is_none_or(|at| at > now));
        let ends = |at: i64| (at - EPOCH) * 1000 - self.clock.skew_ms;
        alive.map(|(k, i)| (k.clone(), (i.value.clone(), i.flags, i.expires.map(ends)))).collect()
    }

    /// Somebody else empties it, or evicts one item.
    pub(super) fn forget(&mut self, only: Option<&[u8]>) {
        match only {
            Some(key) => {
                self.items.remove(key);
            }
            None => {
                self.ghosts += self.items.len();
                self.items.clear();
                self.flushes += 1;
            }
        }
    }

    fn now(&self) -> i64 {
        let Clock { skew_ms, late_us } = self.clock;
        let mut seen = self.begun.elapsed();
        if late_us > 0 {
            let (lived, tick) = (self.started.elapsed().as_micros() as u64, 1_000_000 + late_us);
            seen -= Duration::from_micros(lived % tick);
        }
        EPOCH + (seen.as_millis() as i64 + skew_ms).div_euclid(1000)
    }

    fn expiry(&self, exptime: i64) -> Option<i64> {
        match exptime {
            0 => None,
            t if t > RELATIVE_MAX => Some(t),
            t => Some(self.now() + t),
        }
    }

    fn find(&mut self, key: &[u8]) -> Option<&mut Item> {
        let now = self.now();
        if self.items.get(key).is_some_and(|item| item.expires.is_some_and(|at| at <= now)) {
            self.items.remove(key);
        }
        self.items.get_mut(key)
    }

    fn next_cas(&mut self) -> u64 {
        self.cas += 1;
        self.cas
    }

    /// Stores an item.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8], flags: u32, exptime: i64) -> u64 {
        let (cas, expires) = (self.next_cas(), self.expiry(exptime));
        self.items.insert(key.to_vec(), Item { value: value.to_vec(), flags, expires, cas });
        cas
    }

    /// Whether it refuses what is to be stored there; then nothing stands there.
    fn refuses(&mut self, key: &[u8]) -> bool {
        let refused = match self.refuses {
            Refuses::Nothing => false,
            Refuses::Cold => key.starts_with(b"cold"),
            Refuses::All => !crate::ids::is_reserved(key),
        };
        if refused {
            self.items.remove(key);
        }
        refused
    }

    /// The next keys of a dump after `cursor`, as its lines.
    pub(super) fn dump(&self, cursor: &mut Option<Vec<u8>>, count: usize) -> Option<String> {
        let from = cursor.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut lines = String::new();
        let mut last = None;
        for (key, item) in self.items.range::<Vec<u8>, _>((from, Bound::Unbounded)).take(count) {
            let _ = writeln!(
                lines,
                "key={} exp=-1 la=0 cas={} fetch=no cls=1 size=60",
                text(key).replace(':', "%3A"),
                item.cas
            );
            last = Some(key.clone());
        }
        *cursor = Some(last?);
        Some(lines)
    }

    /// Executes one command, data block included, and returns the whole answer.
    pub(super) fn execute(&mut self, command: &[u8]) -> String {
        let end = command.iter().position(|&b| b == b'\r').unwrap_or(command.len());
        let line = text(&command[..end]);
        let data = command.get(end + 2..).map_or(&[][..], |rest| rest.strip_suffix(b"\r\n").unwrap_or(rest));
        let words: Vec<&str> = line.split(' ').collect();
        let key = words.get(1).map_or(&[][..], |word| word.as_bytes());
        let number = |at: usize| words.get(at).and_then(|w| w.parse::<i64>().ok()).unwrap_or(0);
        match words[0] {
            "get" | "gets" => {
                let values = words[1..].iter().map(|key| self.read(key.as_bytes(), words[0] == "gets"));
                values.collect::<String>() + "END\r\n"
            }
            "gat" | "gats" => {
                let (key, expires) = (words[2].as_bytes(), self.expiry(number(1)));
                if let Some(item) = self.find(key) {
                    item.expires = expires;
                }
                self.read(key, words[0] == "gats") + "END\r\n"
            }
            "set" | "add" | "replace" | "append" | "prepend" | "cas" => self.store(&words, key, data),
            "incr" | "decr" => {
                let cas = self.next_cas();
                let Some(item) = self.find(key) else { return "NOT_FOUND\r\n".into() };
                let Ok(old) = text(&item.value).parse::<u64>() else {
                    return "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n".into();
                };
                let delta = number(2) as u64;
                let new = if words[0] == "incr" { old.wrapping_add(delta) } else { old.saturating_sub(delta) };
                item.value = new.to_string().into_bytes();
                item.cas = cas;
                format!("{new}\r\n")
            }
            "delete" => match self.find(key).is_some() {
                true => {
                    self.items.remove(key);
                    "DELETED\r\n".into()
                }
                false => "NOT_FOUND\r\n".into(),
            },
            "touch" => {
                let expires = self.expiry(number(2));
                match self.find(key) {
                    Some(item) => {
                        item.expires = expires;
                        "TOUCHED\r\n".into()
                    }
                    None => "NOT_FOUND\r\n".into(),
                }
            }
            "mn" => "MN\r\n".into(),
            "mg" => self.meta_get(key, &Asked(&words[2..])),
            "ms" => self.meta_set(key, &Asked(&words[3..]), data),
            "md" => {
                let asked = Asked(&words[2..]);
                let guard = asked.value('C').and_then(|c| c.parse::<u64>().ok());
                let echo = if asked.has("k") { format!(" k{}", text(key)) } else { String::new() };
                match (self.find(key).map(|item| item.cas), guard) {
                    (None, _) => format!("NF{echo}\r\n"),
                    (Some(cas), Some(guard)) if cas != guard => format!("EX{echo}\r\n"),
                    _ => {
                        self.items.remove(key);
                        format!("HD{echo}\r\n")
                    }
                }
            }
            "flush_all" => {
                self.forget(None);
                "OK\r\n".into()
            }
            "stats" if words.len() == 1 => format!(
                "STAT pid 1\r\nSTAT uptime {}\r\nSTAT time {}\r\nSTAT version 1.6.18\r\nSTAT cmd_flush {}\r\nSTAT curr_items {}\r\nSTAT evictions 0\r\nEND\r\n",
                self.started.elapsed().as_secs(),
                self.now(),
                self.flushes,
                self.items.len() + self.ghosts
            ),
            "stats" => "STAT item_size_max 1048576\r\nSTAT cas_enabled yes\r\nEND\r\n".into(),
            "lru_crawler" => "BUSY currently processing crawler request\r\n".into(),
            _ => "ERROR\r\n".into(),
        }
    }

    fn read(&mut self, key: &[u8], with_cas: bool) -> String {
        match self.find(key) {
            None => String::new(),
            Some(item) => {
                let cas = if with_cas { format!(" {}", item.cas) } else { String::new() };
                let (flags, len, value) = (item.flags, item.value.len(), text(&item.value));
                format!("VALUE {} {flags} {len}{cas}\r\n{value}\r\n", text(key))
            }
        }
    }

    fn store(&mut self, words: &[&str], key: &[u8], data: &[u8]) -> String {
        let number = |at: usize| words.get(at).and_then(|w| w.parse::<i64>().ok()).unwrap_or(0);
        let standing = self.find(key).map(|item| (item.cas, item.value.clone()));
        let refused = match (words[0], &standing) {
            ("add", Some(_)) | ("replace" | "append" | "prepend", None) => Some("NOT_STORED\r\n"),
            ("cas", None) => Some("NOT_FOUND\r\n"),
            ("cas", Some((cas, _))) if words[5].parse() != Ok(*cas) => Some("EXISTS\r\n"),
            _ => None,
        };
        if let Some(refused) = refused {
            return refused.into();
        }
        if self.refuses(key) {
            return OUT_OF_MEMORY.into();
        }
        match (words[0], standing) {
            ("append" | "prepend", Some((_, old))) => {
                let parts = if words[0] == "append" { [&old[..], data] } else { [data, &old[..]] };
                let cas = self.next_cas();
                if let Some(item) = self.find(key) {
                    item.value = parts.concat();
                    item.cas = cas;
                }
            }
            _ => {
                self.put(key, data, number(2) as u32, number(3));
            }
        }
        "STORED\r\n".into()
    }

    fn meta_get(&mut self, key: &[u8], asked: &Asked<'_>) -> String {
        let now = self.now();
        let Some(item) = self.find(key) else { return "EN\r\n".into() };
        let mut head = if asked.has("v") { format!("VA {}", item.value.len()) } else { "HD".to_owned() };
        for word in asked.0 {
            let _ = match *word {
                "k" => write!(head, " k{}", text(key)),
                "f" => write!(head, " f{}", item.flags),
                "t" => write!(head, " t{}", item.expires.map_or(-1, |at| at - now)),
                "c" => write!(head, " c{}", item.cas),
                _ => Ok(()),
            };
        }
        if asked.has("v") { format!("{head}\r\n{}\r\n", text(&item.value)) } else { format!("{head}\r\n") }
    }

    fn meta_set(&mut self, key: &[u8], asked: &Asked<'_>, data: &[u8]) -> String {
        let number = |flag| asked.value(flag).and_then(|v| v.parse::<i64>().ok());
        let standing = self.find(key).map(|item| item.cas);
        let code = match (standing, number('C')) {
            (Some(_), None) if asked.has("ME") => "NS",
            (Some(cas), Some(guard)) if cas != guard as u64 => "EX",
            (None, Some(_)) => "NF",
            _ => "HD",
        };
        let mut cas = 0;
        if code == "HD" && self.refuses(key) {
            return OUT_OF_MEMORY.into();
        }
        if code == "HD" {
            cas = self.put(key, data, number('F').unwrap_or(0) as u32, number('T').unwrap_or(0));
        }
        let mut answer = code.to_owned();
        for word in asked.0 {
            let _ = match *word {
                "k" => write!(answer, " k{}", text(key)),
                "c" => write!(answer, " c{cas}"),
                _ => Ok(()),
            };
        }
        answer + "\r\n"
    }
}

/// Takes the first command off what a connection has brought, data block included.
pub(super) fn take_command(input: &mut bytes::BytesMut) -> Option<bytes::BytesMut> {
    let end = memchr::memchr(b'\n', input)? + 1;
    let line = text(&input[..end - 2]);
    let words: Vec<&str> = line.split(' ').collect();
    let size = match words[0] {
        "set" | "add" | "replace" | "append" | "prepend" | "cas" => words.get(4),
        "ms" => words.get(2),
        _ => None,
    };
    let data = size.map_or(0, |size| size.parse::<usize>().expect("the proxy checks lengths") + 2);
    (input.len() >= end + data).then(|| input.split_to(end + data))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
