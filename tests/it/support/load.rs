//! The workloads: many clients at once, every answer judged.

mod hands;
mod registers;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::client::{Client, Stored, show};
use super::judge::{CasCell, Counter, Drive, History, Lock, Recorder, Verdict};
use super::rings::RingMap;
use super::rng::Rng;
use super::wait_until;
use hands::{Hand, count, lock, raise_cells};
use registers::{read_registers, write_registers};

/// How many clients of which kind.
#[derive(Clone, Debug)]
pub struct Mix {
    pub seed: u64,
    /// All keys begin with it, so that several loads can run on one cluster.
    pub prefix: String,
    pub writers: usize,
    pub readers: usize,
    pub keys_per_writer: usize,
    /// Clients that step shared counters; and how many counters.
    pub counting: usize,
    pub counters: usize,
    pub locking: usize,
    pub locks: usize,
    pub casing: usize,
    pub cas_cells: usize,
    /// Pause between two operations of one client. It leaves the machine time: at 1 ms a few of
    /// these clients took both of two cores, and each other test beside them so much longer.
    pub pace: Duration,
}

impl Mix {
    /// 16 writers, 16 readers, and some of each shared kind.
    pub fn full(seed: u64) -> Mix {
        Mix {
            seed,
            prefix: "t".into(),
            writers: 16,
            readers: 16,
            keys_per_writer: 40,
            counting: 4,
            counters: 6,
            locking: 4,
            locks: 3,
            casing: 4,
            cas_cells: 4,
            pace: Duration::from_millis(8),
        }
    }

    /// The same on fewer clients.
    pub fn small(seed: u64) -> Mix {
        Mix {
            writers: 4,
            readers: 4,
            counting: 2,
            locking: 2,
            casing: 2,
            pace: Duration::from_millis(3),
            ..Mix::full(seed)
        }
    }

    /// Only registers.
    pub fn registers(seed: u64, writers: usize, readers: usize) -> Mix {
        Mix { writers, readers, counting: 0, locking: 0, casing: 0, ..Mix::full(seed) }
    }
}

/// Everything that is known about the keys of one load.
pub struct Model {
    mix: Mix,
    registers: Vec<Vec<Mutex<History>>>,
    counters: Vec<Counter>,
    locks: Vec<Lock>,
    cells: Vec<CasCell>,
    pub recorder: Recorder,
    errors_allowed: AtomicBool,
    stop: AtomicBool,
    operations: AtomicU64,
    next_holder: AtomicU64,
    /// Clients wait before their next round of work; and how many do.
    pausing: AtomicBool,
    parked: AtomicUsize,
    /// Counts the proxy's lives by two; odd while one is ending.
    life: AtomicU64,
}

impl Model {
    fn register_key(&self, writer: usize, k: usize) -> String {
        format!("{}:reg:{writer}:{k}", self.mix.prefix)
    }

    fn history(&self, writer: usize, k: usize) -> std::sync::MutexGuard<'_, History> {
        self.registers[writer][k].lock().expect("a history")
    }

    /// Reads every key through the proxy (all clients have stopped) and judges it.
    pub fn check_through(&self, client: &mut Client) {
        for (w, row) in self.registers.iter().enumerate() {
            let keys: Vec<String> = (0..row.len()).map(|k| self.register_key(w, k)).collect();
            for (chunk_index, chunk) in keys.chunks(20).enumerate() {
                match client.get_many("get", chunk) {
                    Ok(items) => {
                        for (i, item) in items.iter().enumerate() {
                            let history = self.history(w, chunk_index * 20 + i);
                            if let Err(why) = history.judge(history.acked(), item.as_ref()) {
                                self.recorder.violation(format!("at the end, {}: {why}", chunk[i]));
                            }
                        }
                    }
                    Err(failure) => self.recorder.violation(format!("at the end, get {}…: {failure}", chunk[0])),
                }
            }
        }
        let mut read = |key: &str| match client.get(key) {
            Ok(item) => item.map(|i| i.value),
            Err(failure) => {
                self.recorder.violation(format!("at the end, get {key}: {failure}"));
                None
            }
        };
        for counter in &self.counters {
            let value = read(&counter.key);
            self.verdict_on("at the end", counter.judge_final(value.as_deref()));
        }
        for cell in &self.cells {
            let value = read(&cell.key);
            self.verdict_on("at the end", cell.judge_final(value.as_deref()));
        }
        for lock in self.locks.iter().filter(|l| !l.uncertain.load(Ordering::SeqCst)) {
            if let Some(value) = read(&lock.key) {
                self.recorder.violation(format!("at the end, LOCK {} is RESURRECTED: {}", lock.key, show(&value)));
            }
        }
    }

    /// Judges what one ring alone holds (all clients have stopped).
    pub fn check_ring(&self, name: &str, ring: &RingMap) {
        for (w, row) in self.registers.iter().enumerate() {
            for k in 0..row.len() {
                let key = self.register_key(w, k);
                let judged = self.history(w, k).judge_ring(ring.get(key.as_bytes()));
                self.verdict_on(&format!("on the {name} ring, {key}"), judged);
            }
        }
        let value = |key: &str| ring.get(key.as_bytes()).map(|i| i.value.as_slice());
        for counter in &self.counters {
            self.verdict_on(&format!("on the {name} ring"), counter.judge_final(value(&counter.key)));
        }
        for cell in &self.cells {
            self.verdict_on(&format!("on the {name} ring"), cell.judge_final(value(&cell.key)));
        }
        for lock in self.locks.iter().filter(|l| !l.uncertain.load(Ordering::SeqCst)) {
            if ring.contains_key(lock.key.as_bytes()) {
                self.recorder.violation(format!("on the {name} ring, LOCK {} is RESURRECTED", lock.key));
            }
        }
    }

    fn set_shared_keys(&self, client: &mut Client) {
        for counter in &self.counters {
            let stored = client.set(&counter.key, counter.initial.to_string().as_bytes());
            assert_eq!(stored, Ok(Stored::Stored), "set {}", counter.key);
        }
        for cell in &self.cells {
            assert_eq!(client.set(&cell.key, b"0"), Ok(Stored::Stored), "set {}", cell.key);
        }
    }

    /// A `flush_all` was acknowledged while all clients paused: nothing is there any more, whatever
    /// was unknown before.
    pub fn flushed(&self, client: &mut Client) {
        for history in self.registers.iter().flatten() {
            let mut history = history.lock().expect("a history");
            let version = history.begin("flush_all", None);
            history.acknowledge(version);
        }
        for (key, outcome) in (self.counters.iter().map(|c| &c.key))
            .chain(self.cells.iter().map(|c| &c.key))
            .chain(self.locks.iter().map(|l| &l.key))
            .map(|key| (key, client.get(key)))
        {
            if outcome != Ok(None) {
                self.recorder.violation(format!("RESURRECTED: {key} is {outcome:?} after flush_all"));
            }
        }
        self.counters.iter().for_each(Counter::begin_anew);
        self.cells.iter().for_each(CasCell::begin_anew);
        self.locks.iter().for_each(Lock::begin_anew);
        self.set_shared_keys(client);
    }

    fn verdict_on(&self, place: &str, judged: Result<(), String>) {
        if let Err(why) = judged {
            self.recorder.violation(format!("{place}: {why}"));
        }
    }

    pub fn assert_clean(&self) {
        self.recorder.verdict().assert_clean();
    }
}

/// A running load.
pub struct Load {
    pub model: Arc<Model>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Sets the shared keys up and starts the clients; returns when they have done some work.
    pub fn start(addr: &str, mix: Mix) -> Load {
        let p = mix.prefix.clone();
        let drives = [Drive::UpByOne, Drive::Up, Drive::Down];
        let model = Arc::new(Model {
            registers: (0..mix.writers)
                .map(|_| (0..mix.keys_per_writer).map(|_| Mutex::new(History::default())).collect())
                .collect(),
            counters: (0..if mix.counting > 0 { mix.counters } else { 0 })
                .map(|i| Counter::new(format!("{p}:ctr:{i}"), drives[i % 3]))
                .collect(),
            locks: (0..if mix.locking > 0 { mix.locks } else { 0 })
                .map(|i| Lock::new(format!("{p}:lock:{i}")))
                .collect(),
            cells: (0..if mix.casing > 0 { mix.cas_cells } else { 0 })
                .map(|i| CasCell::new(format!("{p}:cas:{i}")))
                .collect(),
            mix,
            recorder: Recorder::default(),
            errors_allowed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            operations: AtomicU64::new(0),
            next_holder: AtomicU64::new(1),
            pausing: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            life: AtomicU64::new(0),
        });
        model.set_shared_keys(&mut Client::connect(addr));
        let mut threads = Vec::new();
        let mut stream = 0;
        let mut spawn = |count: usize, run: fn(&mut Hand, usize)| {
            for i in 0..count {
                stream += 1;
                let (model, addr, rng) = (model.clone(), addr.to_string(), Rng::new(model.mix.seed, stream));
                threads.push(std::thread::spawn(move || {
                    let mut hand = Hand::new(addr, model, rng);
                    run(&mut hand, i);
                    hand.model.recorder.merge(std::mem::take(&mut hand.tally));
                }));
            }
        };
        let mix = &model.mix;
        spawn(mix.writers, write_registers);
        spawn(mix.readers, read_registers);
        spawn(mix.counting, count);
        spawn(mix.locking, lock);
        spawn(mix.casing, raise_cells);
        let load = Load { model, threads };
        load.wait_operations(2 * load.threads.len() as u64);
        load
    }

    /// Waits until this many more operations have been answered: the load is alive, and something
    /// happened meanwhile.
    pub fn wait_operations(&self, more: u64) {
        let target = self.model.operations.load(Ordering::SeqCst) + more;
        wait_until(&format!("{more} more operations of the load"), Duration::from_secs(60), || {
            self.model.operations.load(Ordering::SeqCst) >= target
        });
    }

    /// Lets it run for a while.
    pub fn run_for(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    /// Notes an event, so that the summary shows slow operations beside their cause.
    pub fn mark(&self, what: &str) {
        self.model.recorder.mark(what);
    }

    /// From now on SERVER_ERROR is (not) an answer that clients may get.
    pub fn allow_errors(&self, allowed: bool) {
        self.mark(if allowed { "SERVER_ERROR allowed" } else { "SERVER_ERROR forbidden" });
        self.model.errors_allowed.store(allowed, Ordering::SeqCst);
    }

    /// Runs `quiet` while every client pauses, with nothing in flight.
    pub fn quiet<T>(&self, quiet: impl FnOnce(&Model) -> T) -> T {
        self.model.pausing.store(true, Ordering::SeqCst);
        wait_until("every client to pause", Duration::from_secs(60), || {
            self.model.parked.load(Ordering::SeqCst) == self.threads.len()
        });
        let outcome = quiet(&self.model);
        self.model.pausing.store(false, Ordering::SeqCst);
        outcome
    }

    /// Before the proxy is ended, and again when its process is gone: connections made before that
    /// may break, with an unknown outcome.
    pub fn proxy_ends(&self) {
        self.model.life.fetch_add(1, Ordering::SeqCst);
    }

    /// Stops the clients; everything that was sent is answered when this returns.
    pub fn stop(mut self) -> Arc<Model> {
        self.join();
        self.model.clone()
    }

    fn join(&mut self) {
        self.model.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.model.recorder.violation("a client thread panicked".into());
            }
        }
    }

    /// What is known so far.
    pub fn verdict(&self) -> Verdict {
        self.model.recorder.verdict()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.model.stop.store(true, Ordering::SeqCst);
            eprintln!("*** the load so far: {}", self.verdict().summary());
            for violation in self.verdict().violations.iter().take(10) {
                eprintln!("***   {violation}");
            }
        } else {
            self.join();
        }
    }
}
