//! A node: the model memcached, in virtual time, by a clock of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::testing::memcached::{Mark, Memcached, command_len};

use super::history::is_meta;
use super::judge::Call;
use super::trace;

/// The date at which the world begins, by a node's clock that is right.
const EPOCH: i64 = 1_800_000_000;

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
    memory: Memcached,
    begun: Instant,
    started: Instant,
    clock: Clock,
    /// How often the proxy has won the right to recompute an item by looks of its own, and kept it.
    won: BTreeMap<Vec<u8>, u32>,
    /// A `metadump` runs: a second one is answered BUSY.
    pub(super) dumping: bool,
}

impl Node {
    /// An empty process in a world that began at `begun`; this is its clock.
    pub(super) fn new(begun: Instant, clock: Clock) -> Node {
        let started = Instant::now();
        let mut node =
            Node { memory: Memcached::default(), begun, started, clock, won: BTreeMap::new(), dumping: false };
        node.memory.started = node.now();
        node
    }

    /// What it holds, but for what belongs to the leader alone.
    pub(super) fn contents(&mut self) -> BTreeMap<Vec<u8>, Shown> {
        let skew_ms = self.clock.skew_ms;
        let ends = |date: i64| (date != 0).then(|| (date - EPOCH) * 1000 - skew_ms);
        let alive = self.at_present().alive().filter(|(_, item)| item.mark == Mark::default());
        alive.map(|(key, item)| (key.clone(), (item.value.clone(), item.flags, ends(item.exptime)))).collect()
    }

    /// What it holds that belongs to the leader alone: items that are stale, or that a client was
    /// told to recompute.
    pub(super) fn marked(&mut self) -> Vec<Vec<u8>> {
        let alive = self.at_present().alive().filter(|(_, item)| item.mark != Mark::default());
        alive.map(|(key, _)| key.clone()).collect()
    }

    /// Somebody else empties it, or evicts one item.
    pub(super) fn forget(&mut self, only: Option<&[u8]>) {
        match only {
            Some(key) => drop(self.memory.items.remove(key)),
            None => self.memory.flush(),
        }
    }

    /// From now on.
    pub(super) fn refuse(&mut self, what: Refuses) {
        self.memory.refuses = match what {
            Refuses::Nothing => None,
            Refuses::Cold => Some(|key| key.starts_with(b"cold")),
            Refuses::All => Some(|key| !crate::ids::is_reserved(key)),
        };
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

    fn at_present(&mut self) -> &mut Memcached {
        self.memory.now = self.now();
        &mut self.memory
    }

    /// Stores an item.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8], flags: u32, exptime: i64) {
        self.at_present().put(key, value, flags, exptime);
    }

    /// The next keys of a dump after `cursor`, as its lines.
    pub(super) fn dump(&mut self, cursor: &mut Option<Vec<u8>>, count: usize) -> Option<Vec<u8>> {
        let mut lines = Vec::new();
        *cursor = Some(self.at_present().dump(cursor.as_deref(), count, &mut lines)?);
        Some(lines)
    }

    /// Executes one command, data block included, and returns the whole answer.
    pub(super) fn execute(&mut self, command: &[u8]) -> Vec<u8> {
        if command.starts_with(b"lru_crawler") {
            return b"BUSY currently processing crawler request\r\n".to_vec();
        }
        let mut answer = Vec::new();
        let key = command.split(|byte| matches!(byte, b' ' | b'\r')).nth(1).unwrap_or_default();
        let marked = self.at_present().items.get(key).is_some_and(|item| item.mark != Mark::default());
        self.memory.execute(command, &mut answer);
        self.overhear(command, &answer, marked);
        answer
    }

    /// What the proxy does of itself with items that are stale, or won. (A client's meta commands
    /// all carry an opaque token.)
    fn overhear(&mut self, command: &[u8], answer: &[u8], marked: bool) {
        let line =
            |bytes: &[u8]| String::from_utf8_lossy(bytes.split(|b| *b == b'\r').next().unwrap_or(bytes)).into_owned();
        if !command.starts_with(b"mg ") && !command.starts_with(b"md ") {
            return;
        }
        let (command, answer) = (line(command), line(answer));
        let words: Vec<&str> = command.split(' ').collect();
        let key = words[1];
        if !is_meta(key) || words.iter().any(|word| word.starts_with('O')) {
            return;
        }
        if words[0] == "mg" && answer.split(' ').any(|word| word == "W") {
            *self.won.entry(key.into()).or_default() += 1;
            trace::looked(key.as_bytes(), Call::Look);
        } else if words[0] == "md" && marked && !words.contains(&"I") && answer.starts_with("HD") {
            trace::looked(key.as_bytes(), Call::Leave);
        } else if words[0] == "md" && words.contains(&"I") && answer.starts_with("HD") {
            // What it has not won is not its to give.
            let won = self.won.entry(key.into()).or_default();
            trace::looked(key.as_bytes(), if *won > 0 { Call::GiveBack } else { Call::Rob });
            *won = won.saturating_sub(1);
        }
    }
}

/// Takes the first command off what a connection has brought, data block included.
pub(super) fn take_command(input: &mut bytes::BytesMut) -> Option<bytes::BytesMut> {
    command_len(input).map(|len| input.split_to(len))
}
