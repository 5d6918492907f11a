//! Clients that work all the time, know what was acknowledged, and judge every answer by it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::{Client, Item};

/// Bytes of each value.
const VALUE_SIZE: usize = 100;
/// Keys that each client writes.
const KEYS: u64 = 2_000;
/// Counters that each client increments.
const COUNTERS: u64 = 200;

/// What the traffic came to, over all clients.
#[derive(Default)]
pub(crate) struct Counts {
    /// Answers.
    pub(crate) operations: AtomicU64,
    /// Error answers, timeouts and broken connections.
    pub(crate) errors: AtomicU64,
    /// Reads, increments and deletes of keys that must be there.
    pub(crate) reads: AtomicU64,
    /// Of those, the ones that missed.
    pub(crate) lost: AtomicU64,
    /// Reads of a value that was not the last one acknowledged, or of a key that was deleted.
    pub(crate) wrong: AtomicU64,
    /// The slowest answer since the last look, in microseconds.
    pub(crate) longest_us: AtomicU64,
}

/// The share of reads that found what must be there, in per cent.
pub(crate) fn hit_rate(reads: u64, lost: u64) -> f64 {
    if reads == 0 { 100.0 } else { 100.0 * (reads - lost) as f64 / reads as f64 }
}

/// The item that the demo fills in under a number; it never changes.
pub(crate) fn filled(number: u64) -> (String, Item) {
    let mut value = format!("item {number} ").into_bytes();
    value.resize(VALUE_SIZE, b'.');
    (format!("filled:{number}"), Item { flags: number as u32, value })
}

/// What must be under a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// This item.
    Is(Item),
    /// Nothing: it was deleted.
    Nothing,
    /// An error left it open; nothing is judged until it is written again.
    Unsure,
}

/// Keys and what must be under them.
pub(crate) type Model = HashMap<String, Known>;

/// The clients at work.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<Model>>,
}

impl Traffic {
    /// Starts `clients` clients of the proxy at `port`, which also read the `items` that were
    /// filled in.
    pub(crate) fn start(port: u16, clients: u64, items: u64) -> Traffic {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let threads = (0..clients)
            .map(|number| {
                let worker = Worker {
                    port,
                    number,
                    items,
                    random: 0x9E37_79B9_7F4A_7C15 ^ (number + 1),
                    counts: Arc::clone(&counts),
                    model: Model::new(),
                };
                let stop = Arc::clone(&stop);
                thread::spawn(move || worker.run(&stop))
            })
            .collect();
        Traffic { stop, counts, threads }
    }

    /// What it came to so far.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Ends it: what must now be under every key that was written. `None` if a client panicked.
    pub(crate) fn stop(self) -> Option<(Arc<Counts>, Model)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut model = Model::new();
        for thread in self.threads {
            model.extend(thread.join().ok()?);
        }
        Some((self.counts, model))
    }
}

/// One client. Its keys are its own, so it always knows what must be under them.
struct Worker {
    port: u16,
    number: u64,
    items: u64,
    random: u64,
    counts: Arc<Counts>,
    model: Model,
}

impl Worker {
    fn run(mut self, stop: &AtomicBool) -> Model {
        while !stop.load(Ordering::Relaxed) {
            let Ok(mut client) = Client::connect(self.port) else {
                self.counts.errors.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(10));
                continue;
            };
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                let done = self.step(&mut client);
                self.counts.longest_us.fetch_max(start.elapsed().as_micros() as u64, Ordering::Relaxed);
                match done {
                    Ok(()) => self.counts.operations.fetch_add(1, Ordering::Relaxed),
                    Err(_) => self.counts.errors.fetch_add(1, Ordering::Relaxed),
                };
                if done.is_err() {
                    // Its answer may still come and would be taken for the next one's.
                    break;
                }
            }
        }
        self.model
    }

    /// xorshift: fast, and the same every time.
    fn next(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// One operation of a mixed load.
    fn step(&mut self, client: &mut Client) -> io::Result<()> {
        let chosen = self.next(KEYS);
        let key = format!("client{}:{chosen}", self.number);
        match self.next(100) {
            0..45 => {
                let number = self.next(self.items);
                let (key, item) = filled(number);
                let found = client.get(&key)?;
                self.judge(found, &Known::Is(item));
            }
            45..65 => {
                let found = client.get(&key)?;
                let known = self.model.get(&key).cloned().unwrap_or(Known::Nothing);
                self.judge(found, &known);
            }
            65..85 => {
                let mut value = format!("{key} {}", self.random).into_bytes();
                value.resize(VALUE_SIZE, b'-');
                let item = Item { flags: self.random as u32, value };
                self.write(key.clone(), |_| client.set(&key, &item).map(|()| Known::Is(item)))?;
            }
            85..92 => {
                let counts = Arc::clone(&self.counts);
                self.write(key.clone(), |before| {
                    let existed = client.delete(&key)?;
                    let lost = !existed && matches!(before, Known::Is(_));
                    let wrong = existed && *before == Known::Nothing;
                    counts.reads.fetch_add(u64::from(matches!(before, Known::Is(_))), Ordering::Relaxed);
                    counts.lost.fetch_add(u64::from(lost), Ordering::Relaxed);
                    counts.wrong.fetch_add(u64::from(wrong), Ordering::Relaxed);
                    Ok(Known::Nothing)
                })?;
            }
            _ => {
                let chosen = self.next(COUNTERS);
                let key = format!("counter{}:{chosen}", self.number);
                self.count(client, key)?;
            }
        }
        Ok(())
    }

    /// Carries out a write; while its answer is open, nothing is known about the key.
    fn write(&mut self, key: String, write: impl FnOnce(&Known) -> io::Result<Known>) -> io::Result<()> {
        let before = self.model.insert(key.clone(), Known::Unsure).unwrap_or(Known::Nothing);
        let after = write(&before)?;
        self.model.insert(key, after);
        Ok(())
    }

    /// Increments a counter, or makes it if it does not exist: every acknowledged increment must
    /// show exactly once.
    fn count(&mut self, client: &mut Client, key: String) -> io::Result<()> {
        let number = |value: u64| Known::Is(Item { flags: 0, value: value.to_string().into_bytes() });
        let counts = Arc::clone(&self.counts);
        self.write(key.clone(), |before| {
            let Known::Is(item) = before else {
                client.set(&key, &Item { flags: 0, value: b"0".to_vec() })?;
                return Ok(number(0));
            };
            let expected = String::from_utf8_lossy(&item.value).trim().parse().unwrap_or(0) + 1;
            counts.reads.fetch_add(1, Ordering::Relaxed);
            match client.increment(&key)? {
                Some(value) if value == expected => Ok(number(value)),
                Some(value) => {
                    counts.wrong.fetch_add(1, Ordering::Relaxed);
                    Ok(number(value))
                }
                None => {
                    counts.lost.fetch_add(1, Ordering::Relaxed);
                    Ok(Known::Nothing)
                }
            }
        })
    }

    fn judge(&self, found: Option<Item>, known: &Known) {
        judge(&self.counts, found.as_ref(), known);
    }
}

/// Holds what was read against what must be there.
pub(crate) fn judge(counts: &Counts, found: Option<&Item>, known: &Known) {
    let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    match (found, known) {
        (_, Known::Unsure) | (None, Known::Nothing) => {}
        (Some(_), Known::Nothing) => drop(add(&counts.wrong)),
        (None, Known::Is(_)) => {
            add(&counts.reads);
            add(&counts.lost);
        }
        (Some(found), Known::Is(item)) => {
            add(&counts.reads);
            if found != item {
                add(&counts.wrong);
            }
        }
    }
}
