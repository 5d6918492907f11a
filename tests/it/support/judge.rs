//! What was acknowledged, and whether an answer agrees with it.
//!
//! Every register (key) has one writer, so its history is a row of numbered states. A read that
//! begins when state `a` is the last acknowledged one and ends when state `s` is the last begun one
//! may see any of `a..=s`, and nothing else: an older state is stale (or resurrected, when a delete
//! lies between), a miss is a loss, other bytes are corruption. A write whose outcome is unknown
//! (an allowed SERVER_ERROR) stays begun but not acknowledged, so both outcomes are fine until the
//! next acknowledged write of that key, and none of the older ones after it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::client::{Item, show};
use super::rings::RingItem;

/// A stored item as its writer sent it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub flags: u32,
    /// Unix time, or `None` for never.
    pub expires: Option<i64>,
}

#[derive(Clone, Debug)]
struct State {
    what: &'static str,
    content: Option<Content>,
}

/// One register.
#[derive(Debug)]
pub struct History {
    /// The number of `states[0]`.
    first: u64,
    states: VecDeque<State>,
    acked: u64,
}

/// More than any read can overlap; older states are forgotten, so that a soak's memory stays
/// bounded.
const REMEMBERED: usize = 600;

impl Default for History {
    fn default() -> Self {
        let absent = State { what: "never written", content: None };
        History { first: 0, states: VecDeque::from([absent]), acked: 0 }
    }
}

impl History {
    /// The last acknowledged state.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    fn begun(&self) -> u64 {
        self.first + self.states.len() as u64 - 1
    }

    /// Nothing is under way and no outcome is unknown: the register's state is this.
    pub fn certain(&self) -> bool {
        self.acked == self.begun()
    }

    pub fn last(&self) -> Option<&Content> {
        self.states.back().expect("never empty").content.as_ref()
    }

    /// A write is about to be sent.
    pub fn begin(&mut self, what: &'static str, content: Option<Content>) -> u64 {
        self.states.push_back(State { what, content });
        while self.states.len() > REMEMBERED && self.first < self.acked {
            self.states.pop_front();
            self.first += 1;
        }
        self.begun()
    }

    /// It was answered: it happened.
    pub fn acknowledge(&mut self, version: u64) {
        debug_assert_eq!(version, self.begun());
        self.acked = version;
    }

    /// It was answered: it did not happen.
    pub fn refuse(&mut self, version: u64) {
        let before = self.states[self.states.len() - 2].content.clone();
        let last = self.states.back_mut().expect("never empty");
        last.content = before;
        last.what = "refused";
        self.acknowledge(version);
    }

    /// Judges the answer of a read that began when `from` was acknowledged and has just ended.
    pub fn judge(&self, from: u64, item: Option<&Item>) -> Result<(), String> {
        self.judge_content(from, item.map(|i| (i.value.as_slice(), i.flags)))
    }

    fn judge_content(&self, from: u64, read: Option<(&[u8], u32)>) -> Result<(), String> {
        if from < self.first {
            return Ok(()); // forgotten meanwhile: overtaken by hundreds of writes
        }
        let low = (from - self.first) as usize;
        let matches = |s: &State| match (&s.content, read) {
            (None, None) => true,
            (Some(c), Some((bytes, flags))) => c.bytes == bytes && c.flags == flags,
            _ => false,
        };
        if self.states.range(low..).any(matches) {
            return Ok(());
        }
        let window: Vec<String> = self
            .states
            .range(low..)
            .take(4)
            .enumerate()
            .map(|(i, s)| {
                let content = s.content.as_ref().map_or("absent".to_string(), |c| show(&c.bytes));
                format!("v{} {} -> {content}", from + i as u64, s.what)
            })
            .collect();
        let may = window.join(" | ");
        let Some((bytes, flags)) = read else {
            return Err(format!("LOST: a miss, but acknowledged since: {may}"));
        };
        if self.states.range(low..).any(|s| s.content.as_ref().is_some_and(|c| c.bytes == bytes)) {
            return Err(format!("WRONG FLAGS {flags}: {may}"));
        }
        match self.states.range(..low).rposition(matches) {
            Some(old) => {
                let deleted = self.states.range(old..=low).any(|s| s.content.is_none());
                let kind = if deleted { "RESURRECTED" } else { "STALE" };
                Err(format!("{kind}: read v{} {}, but acknowledged since: {may}", self.first + old as u64, show(bytes)))
            }
            None => Err(format!("WRONG BYTES: read {} (flags {flags}), may be: {may}", show(bytes))),
        }
    }

    /// Judges what one ring holds when all is quiet, expiry included.
    pub fn judge_ring(&self, item: Option<&RingItem>) -> Result<(), String> {
        self.judge_content(self.acked, item.map(|i| (i.value.as_slice(), i.flags)))?;
        if let (Some(item), true, Some(content)) = (item, self.certain(), self.last()) {
            let wall = super::unix_now() - item.read_at.elapsed().as_secs() as i64;
            let expires = item.ttl.map(|t| wall + t);
            let agree = match (expires, content.expires) {
                (None, None) => true,
                (Some(a), Some(b)) => (a - b).abs() <= 3,
                _ => false,
            };
            if !agree {
                return Err(format!("WRONG EXPIRY: {expires:?}, written with {:?}", content.expires));
            }
        }
        Ok(())
    }
}

/// How a counter is driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drive {
    /// `incr 1`: every value answered is answered once only.
    UpByOne,
    /// `incr 1..=100`.
    Up,
    /// `decr 1..=100` from a number that it never gets to.
    Down,
}

/// A counter that many clients share.
#[derive(Debug)]
pub struct Counter {
    pub key: String,
    pub drive: Drive,
    pub initial: u64,
    acked: AtomicU64,
    begun: AtomicU64,
    unknown: AtomicU64,
    answers: Mutex<HashSet<u64>>,
}

impl Counter {
    pub fn new(key: String, drive: Drive) -> Counter {
        let initial = if drive == Drive::Down { 5_000_000_000_000 } else { 1000 };
        let zero = || AtomicU64::new(0);
        Counter { key, drive, initial, acked: zero(), begun: zero(), unknown: zero(), answers: Mutex::default() }
    }

    /// Its key was flushed and will be set to `initial` again; nobody steps it meanwhile.
    pub fn begin_anew(&self) {
        for count in [&self.acked, &self.begun, &self.unknown] {
            count.store(0, Ordering::SeqCst);
        }
        self.answers.lock().expect("answers").clear();
    }

    pub fn verb(&self) -> &'static str {
        if self.drive == Drive::Down { "decr" } else { "incr" }
    }

    /// The sum of all steps that a value stands for.
    fn steps(&self, value: u64) -> Option<u64> {
        if self.drive == Drive::Down { self.initial.checked_sub(value) } else { value.checked_sub(self.initial) }
    }

    /// Before a step or read is sent: what is surely in already.
    pub fn floor(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }

    pub fn begin(&self, delta: u64) {
        self.begun.fetch_add(delta, Ordering::SeqCst);
    }

    pub fn outcome_unknown(&self, delta: u64) {
        self.unknown.fetch_add(delta, Ordering::SeqCst);
    }

    /// A step was answered with `value`.
    pub fn answered(&self, floor: u64, delta: u64, value: u64) -> Result<(), String> {
        self.acked.fetch_add(delta, Ordering::SeqCst);
        self.within(floor + delta, value)?;
        if self.drive == Drive::UpByOne && !self.answers.lock().expect("answers").insert(value) {
            return Err(format!("COUNTER {}: {value} was answered twice", self.key));
        }
        Ok(())
    }

    /// A value read or answered lies between what was acknowledged before and what has been begun
    /// by now.
    pub fn within(&self, floor: u64, value: u64) -> Result<(), String> {
        let begun = self.begun.load(Ordering::SeqCst);
        match self.steps(value) {
            Some(steps) if steps < floor => {
                Err(format!("COUNTER {}: {value} lacks acknowledged steps ({steps} < {floor})", self.key))
            }
            Some(steps) if steps > begun => {
                Err(format!("COUNTER {}: {value} has more steps than were begun ({steps} > {begun})", self.key))
            }
            Some(_) => Ok(()),
            None => Err(format!("COUNTER {}: {value} is on the wrong side of {}", self.key, self.initial)),
        }
    }

    /// The last word, when all is quiet: initial + acknowledged (+ at most the unknown ones).
    pub fn judge_final(&self, bytes: Option<&[u8]>) -> Result<(), String> {
        let Some(bytes) = bytes else {
            return Err(format!("COUNTER {}: LOST", self.key));
        };
        let text = String::from_utf8_lossy(bytes);
        let value: u64 = text.trim_end().parse().map_err(|_| format!("COUNTER {}: holds {}", self.key, show(bytes)))?;
        let (acked, unknown) = (self.acked.load(Ordering::SeqCst), self.unknown.load(Ordering::SeqCst));
        match self.steps(value) {
            Some(steps) if (acked..=acked + unknown).contains(&steps) => Ok(()),
            steps => Err(format!(
                "COUNTER {}: ends at {value} = {steps:?} steps, acknowledged {acked}, unknown {unknown}",
                self.key
            )),
        }
    }
}

/// A lock made by `add`.
#[derive(Debug)]
pub struct Lock {
    pub key: String,
    /// 0 = nobody.
    holder: AtomicU64,
    /// An outcome was unknown once: whether the lock exists now is not known either.
    pub uncertain: AtomicBool,
}

impl Lock {
    pub fn new(key: String) -> Lock {
        Lock { key, holder: AtomicU64::new(0), uncertain: AtomicBool::new(false) }
    }

    /// Its key was flushed: nobody holds it, for certain.
    pub fn begin_anew(&self) {
        self.holder.store(0, Ordering::SeqCst);
        self.uncertain.store(false, Ordering::SeqCst);
    }

    /// `add` was answered STORED.
    pub fn taken(&self, by: u64) -> Result<(), String> {
        match self.holder.swap(by, Ordering::SeqCst) {
            0 => Ok(()),
            other => Err(format!("LOCK {}: `add` succeeded for {by} while {other} holds it", self.key)),
        }
    }

    /// Before the `delete` is sent.
    pub fn releasing(&self, by: u64) {
        let _ = self.holder.compare_exchange(by, 0, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// A number that many clients raise by one with gets and cas.
#[derive(Debug)]
pub struct CasCell {
    pub key: String,
    won: AtomicU64,
    begun: AtomicU64,
    unknown: AtomicU64,
    winners: Mutex<HashSet<u64>>,
}

impl CasCell {
    pub fn new(key: String) -> CasCell {
        let zero = || AtomicU64::new(0);
        CasCell { key, won: zero(), begun: zero(), unknown: zero(), winners: Mutex::default() }
    }

    /// Its key was flushed and will be set to 0 again; nobody raises it meanwhile.
    pub fn begin_anew(&self) {
        for count in [&self.won, &self.begun, &self.unknown] {
            count.store(0, Ordering::SeqCst);
        }
        self.winners.lock().expect("winners").clear();
    }

    pub fn floor(&self) -> u64 {
        self.won.load(Ordering::SeqCst)
    }

    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    pub fn outcome_unknown(&self) {
        self.unknown.fetch_add(1, Ordering::SeqCst);
    }

    /// A value was read.
    pub fn within(&self, floor: u64, value: u64) -> Result<(), String> {
        let begun = self.begun.load(Ordering::SeqCst);
        if value < floor {
            return Err(format!("CAS {}: STALE {value}, {floor} were won before", self.key));
        }
        if value > begun {
            return Err(format!("CAS {}: {value}, but only {begun} attempts were begun", self.key));
        }
        Ok(())
    }

    /// STORED was answered to the cas that would replace `old` by `old + 1`.
    pub fn stored(&self, old: u64, floor: u64) -> Result<(), String> {
        self.won.fetch_add(1, Ordering::SeqCst);
        if !self.winners.lock().expect("winners").insert(old) {
            return Err(format!("CAS {}: two tokens won on the value {old}", self.key));
        }
        if floor > old {
            return Err(format!("CAS {}: a token of {old} won although {floor} had been stored before", self.key));
        }
        Ok(())
    }

    pub fn judge_final(&self, bytes: Option<&[u8]>) -> Result<(), String> {
        let value = bytes.and_then(|b| std::str::from_utf8(b).ok()).and_then(|s| s.parse::<u64>().ok());
        let (won, unknown) = (self.won.load(Ordering::SeqCst), self.unknown.load(Ordering::SeqCst));
        match value {
            Some(n) if (won..=won + unknown).contains(&n) => Ok(()),
            _ => Err(format!("CAS {}: ends at {value:?}, won {won}, unknown {unknown}", self.key)),
        }
    }
}

/// An operation that took long.
#[derive(Clone, Debug)]
pub struct Slow {
    pub took: Duration,
    pub what: String,
    /// Since the load began.
    pub at: Duration,
}

/// One client's own count, so that counting needs no lock.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub counts: BTreeMap<&'static str, u64>,
    pub slowest: Vec<Slow>,
    pub over_100ms: u64,
}

impl Tally {
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn took(&mut self, took: Duration, at: Duration, what: impl FnOnce() -> String) {
        self.over_100ms += u64::from(took > Duration::from_millis(100));
        if self.slowest.len() < 5 || self.slowest.last().is_some_and(|s| took > s.took) {
            self.slowest.push(Slow { took, what: what(), at });
            self.slowest.sort_by_key(|s| std::cmp::Reverse(s.took));
            self.slowest.truncate(5);
        }
    }

    fn merge(&mut self, other: Tally) {
        for (what, n) in other.counts {
            *self.counts.entry(what).or_default() += n;
        }
        self.over_100ms += other.over_100ms;
        self.slowest.extend(other.slowest);
        self.slowest.sort_by_key(|s| std::cmp::Reverse(s.took));
        self.slowest.truncate(5);
    }
}

/// Where all clients report what is wrong.
#[derive(Debug)]
pub struct Recorder {
    pub begun: Instant,
    violations: Mutex<Vec<String>>,
    violation_count: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
    marks: Mutex<Vec<(Duration, String)>>,
    tally: Mutex<Tally>,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder {
            begun: Instant::now(),
            violations: Mutex::default(),
            violation_count: AtomicU64::new(0),
            errors: Mutex::default(),
            marks: Mutex::default(),
            tally: Mutex::default(),
        }
    }
}

impl Recorder {
    pub fn violation(&self, what: String) {
        self.violation_count.fetch_add(1, Ordering::SeqCst);
        let mut violations = self.violations.lock().expect("violations");
        if violations.len() < 50 {
            violations.push(format!("{:>8.3}s {what}", self.begun.elapsed().as_secs_f64()));
        }
    }

    /// A SERVER_ERROR that the test allows; counted by its words.
    pub fn allowed_error(&self, what: String) {
        *self.errors.lock().expect("errors").entry(what).or_default() += 1;
    }

    pub fn mark(&self, what: &str) {
        self.marks.lock().expect("marks").push((self.begun.elapsed(), what.to_string()));
    }

    pub fn merge(&self, tally: Tally) {
        self.tally.lock().expect("tally").merge(tally);
    }

    pub fn verdict(&self) -> Verdict {
        let tally = self.tally.lock().expect("tally").clone();
        Verdict {
            violations: self.violations.lock().expect("violations").clone(),
            violation_count: self.violation_count.load(Ordering::SeqCst),
            allowed_errors: self.errors.lock().expect("errors").clone(),
            counts: tally.counts,
            slowest: tally.slowest,
            over_100ms: tally.over_100ms,
            marks: self.marks.lock().expect("marks").clone(),
        }
    }
}

/// The outcome of a workload.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The first fifty.
    pub violations: Vec<String>,
    pub violation_count: u64,
    pub allowed_errors: BTreeMap<String, u64>,
    pub counts: BTreeMap<&'static str, u64>,
    pub slowest: Vec<Slow>,
    pub over_100ms: u64,
    pub marks: Vec<(Duration, String)>,
}

impl Verdict {
    pub fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// One paragraph for the reader of a test's output.
    pub fn summary(&self) -> String {
        let mut out = String::new();
        for (what, n) in &self.counts {
            out.push_str(&format!("{what} {n}, "));
        }
        out.push_str(&format!("over 100 ms {}\n", self.over_100ms));
        for (what, n) in &self.allowed_errors {
            out.push_str(&format!("  allowed error x{n}: {what}\n"));
        }
        for (at, what) in &self.marks {
            out.push_str(&format!("  {:>8.3}s {what}\n", at.as_secs_f64()));
        }
        for slow in &self.slowest {
            out.push_str(&format!("  slowest {:>8.3?} at {:.3}s: {}\n", slow.took, slow.at.as_secs_f64(), slow.what));
        }
        out
    }

    /// As [`Self::assert_clean`], silent while all is well: a soak stops at the first violation.
    pub fn assert_clean_so_far(&self) {
        if self.violation_count > 0 {
            self.assert_clean();
        }
    }

    pub fn assert_clean(&self) {
        eprintln!("{}", self.summary());
        assert!(
            self.violation_count == 0,
            "{} violations:\n  {}\n{}",
            self.violation_count,
            self.violations.join("\n  "),
            self.summary()
        );
    }
}
