//! A node: the model memcached, in virtual time, by a clock of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::testing::memcached::{Memcached, command_len};

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
    /// A `metadump` runs: a second one is answered BUSY.
    pub(super) dumping: bool,
}

impl Node {
    /// An empty process in a world that began at `begun`; this is its clock.
    pub(super) fn new(begun: Instant, clock: Clock) -> Node {
        let started = Instant::now();
        let mut node = Node { memory: Memcached::default(), begun, started, clock, dumping: false };
        node.memory.started = node.now();
        node
    }

    /// What it holds.
    pub(super) fn contents(&mut self) -> BTreeMap<Vec<u8>, Shown> {
        let skew_ms = self.clock.skew_ms;
        let ends = |date: i64| (date != 0).then(|| (date - EPOCH) * 1000 - skew_ms);
        let alive = self.at_present().alive();
        alive.map(|(key, item)| (key.clone(), (item.value.clone(), item.flags, ends(item.exptime)))).collect()
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
        self.at_present().execute(command, &mut answer);
        answer
    }
}

/// Takes the first command off what a connection has brought, data block included.
pub(super) fn take_command(input: &mut bytes::BytesMut) -> Option<bytes::BytesMut> {
    command_len(input).map(|len| input.split_to(len))
}
