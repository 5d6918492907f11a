//! What each kind of client does, and how it judges its answers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::client::{Client, Failure, Item, Outcome, Stored};
use super::super::judge::{Content, Drive, Lock, Tally};
use super::super::rng::Rng;
use super::super::unix_now;
use super::Model;

/// One client and what it needs.
pub(super) struct Hand {
    client: Client,
    addr: String,
    pub(super) model: Arc<Model>,
    pub(super) rng: Rng,
    pub(super) tally: Tally,
    /// The proxy's life in which the connection was made; odd = while it was ending.
    life: u64,
}

impl Hand {
    pub(super) fn new(addr: String, model: Arc<Model>, rng: Rng) -> Hand {
        let life = model.life.load(Ordering::SeqCst);
        Hand { client: Client::connect(&addr), addr, model, rng, tally: Tally::default(), life }
    }

    /// Between two rounds of work: waits while everybody is asked to pause. False when the load is
    /// over.
    pub(super) fn next(&mut self) -> bool {
        if self.model.pausing.load(Ordering::SeqCst) && !self.stopped() {
            self.model.parked.fetch_add(1, Ordering::SeqCst);
            while self.model.pausing.load(Ordering::SeqCst) && !self.stopped() {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.model.parked.fetch_sub(1, Ordering::SeqCst);
        }
        !self.stopped()
    }

    fn stopped(&self) -> bool {
        self.model.stop.load(Ordering::SeqCst)
    }

    pub(super) fn pause(&mut self) {
        if !self.model.mix.pace.is_zero() {
            let pace = self.model.mix.pace.as_micros() as u64;
            std::thread::sleep(Duration::from_micros(pace / 2 + self.rng.next() % pace.max(1)));
        }
    }

    pub(super) fn violation(&self, what: String) {
        self.model.recorder.violation(what);
    }

    /// One operation: timed, its failure judged. `None`: the outcome is unknown.
    pub(super) fn op<T>(
        &mut self,
        verb: &'static str,
        key: &str,
        run: impl FnOnce(&mut Client) -> Outcome<T>,
    ) -> Option<T> {
        let allowed_before = self.model.errors_allowed.load(Ordering::SeqCst);
        let begun = Instant::now();
        let outcome = run(&mut self.client);
        let took = begun.elapsed();
        let at = begun - self.model.recorder.begun;
        self.tally.took(took, at, || format!("{verb} {key}"));
        self.tally.count("operations");
        self.model.operations.fetch_add(1, Ordering::SeqCst);
        let failure = match outcome {
            Ok(value) => return Some(value),
            Err(failure) => failure,
        };
        let allowed = allowed_before || self.model.errors_allowed.load(Ordering::SeqCst);
        match &failure {
            // The proxy has ended since this connection was made, or was ending then: whether it
            // still did this is not known.
            Failure::Closed(_) if self.life % 2 == 1 || self.life != self.model.life.load(Ordering::SeqCst) => {
                self.model.recorder.allowed_error("the connection ended with the proxy".into());
            }
            Failure::Server(line) if allowed => self.model.recorder.allowed_error(line.clone()),
            Failure::Hang(_) => self.violation(format!("HANG: {verb} {key}: {failure}")),
            _ => self.violation(format!("ERROR: {verb} {key}: {failure}")),
        }
        if !matches!(failure, Failure::Server(_) | Failure::Client(_)) {
            self.reconnect();
        } else if verb == "multi-get" || verb == "set noreply + get" {
            self.reconnect(); // an error in the middle: what follows cannot be told
        }
        None
    }

    fn reconnect(&mut self) {
        let begun = Instant::now();
        while !self.stopped() && begun.elapsed() < super::super::DEADLINE {
            // Before the connection is made: should the proxy end meanwhile, it is one of the life
            // before.
            self.life = self.model.life.load(Ordering::SeqCst);
            if let Ok(client) = Client::try_connect(&self.addr) {
                self.client = client;
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(super) fn exptime(&mut self) -> (i64, Option<i64>) {
        let now = unix_now();
        match self.rng.below(4) {
            0 => (3600, Some(now + 3600)),
            1 => (now + 40 * 86400, Some(now + 40 * 86400)),
            2 => (2_592_000, Some(now + 2_592_000)),
            _ => (0, None),
        }
    }

    /// New content that no other state of any register has.
    pub(super) fn content(&mut self, key: &str) -> (Content, i64) {
        let (exptime, expires) = self.exptime();
        let len = match self.rng.below(200) {
            0 => 20_000,
            1..=9 => 2_000,
            n => n,
        };
        let mut bytes = format!("{key}#{:x}#", self.rng.next()).into_bytes();
        bytes.extend(self.rng.bytes(len));
        (Content { bytes, flags: self.rng.next() as u32, expires }, exptime)
    }
}

pub(super) fn count(hand: &mut Hand, _: usize) {
    let model = hand.model.clone();
    while hand.next() {
        let counter = &model.counters[hand.rng.below(model.counters.len())];
        let key = &counter.key;
        let floor = counter.floor();
        if hand.rng.percent(20) {
            if let Some(item) = hand.op("get", key, |c| c.get(key)) {
                let text = item.map(|i| String::from_utf8_lossy(&i.value).trim_end().to_string());
                let judged = match text.as_deref().map(str::parse) {
                    Some(Ok(value)) => counter.within(floor, value),
                    _ => Err(format!("COUNTER {key}: LOST, read {text:?}")),
                };
                model.verdict_on("get", judged);
            }
        } else {
            let delta = if counter.drive == Drive::UpByOne { 1 } else { 1 + hand.rng.next() % 100 };
            counter.begin(delta);
            hand.tally.count("counter steps");
            match hand.op(counter.verb(), key, |c| c.arithmetic(counter.verb(), key, delta)) {
                Some(Some(value)) => model.verdict_on(counter.verb(), counter.answered(floor, delta, value)),
                Some(None) => hand.violation(format!("COUNTER {key}: LOST, {} found nothing", counter.verb())),
                None => counter.outcome_unknown(delta),
            }
        }
        hand.pause();
    }
}

pub(super) fn lock(hand: &mut Hand, _: usize) {
    let model = hand.model.clone();
    while hand.next() {
        let lock = &model.locks[hand.rng.below(model.locks.len())];
        let key = &lock.key;
        let me = model.next_holder.fetch_add(1, Ordering::SeqCst);
        let token = me.to_string();
        match hand.op("add", key, |c| c.store("add", key, 0, 0, token.as_bytes())) {
            Some(Stored::Stored) => {
                hand.tally.count("locks taken");
                model.verdict_on("add", lock.taken(me));
                hold_and_release(hand, lock, me, true);
            }
            Some(Stored::NotStored) => {}
            Some(other) => hand.violation(format!("LOCK {key}: add answered {other:?}")),
            None => {
                // Ours or not? What it holds tells.
                lock.uncertain.store(true, Ordering::SeqCst);
                let held = read_until_answered(hand, key).flatten();
                if held.is_some_and(|i| i.value == token.as_bytes()) {
                    model.verdict_on("add", lock.taken(me));
                    hold_and_release(hand, lock, me, false);
                }
            }
        }
        hand.pause();
    }
}

/// `None`: not within many tries, or the load is over.
fn read_until_answered(hand: &mut Hand, key: &str) -> Option<Option<Item>> {
    for _ in 0..200 {
        if let Some(item) = hand.op("get", key, |c| c.get(key)) {
            return Some(item);
        }
        if hand.stopped() {
            break;
        }
        hand.pause();
    }
    None
}

fn hold_and_release(hand: &mut Hand, lock: &Lock, me: u64, certain: bool) {
    let key = &lock.key;
    for _ in 0..hand.rng.below(4) {
        hand.pause();
        if let Some(item) = hand.op("get", key, |c| c.get(key))
            && item.as_ref().is_none_or(|i| i.value != me.to_string().as_bytes())
        {
            hand.violation(format!("LOCK {key}: {me} holds it, but it reads {item:?}"));
        }
    }
    lock.releasing(me);
    let mut tried = 0;
    loop {
        match hand.op("delete", key, |c| c.delete(key)) {
            Some(true) => return,
            Some(false) => {
                if tried == 0 && certain {
                    hand.violation(format!("LOCK {key}: LOST while {me} held it"));
                }
                return;
            }
            None => {
                // From here on a second delete may hit another client's lock: it must not be sent.
                lock.uncertain.store(true, Ordering::SeqCst);
                tried += 1;
                if tried > 50 {
                    return;
                }
                // Only what it holds tells whether a second one may be sent.
                let Some(held) = read_until_answered(hand, key) else { return };
                if held.is_none_or(|item| item.value != me.to_string().as_bytes()) {
                    return;
                }
            }
        }
    }
}

pub(super) fn raise_cells(hand: &mut Hand, _: usize) {
    let model = hand.model.clone();
    let mut old: Vec<(usize, u64, u64)> = Vec::new();
    while hand.next() {
        let which = hand.rng.below(model.cells.len());
        let cell = &model.cells[which];
        let key = &cell.key;
        let floor = cell.floor();
        let Some(item) = hand.op("gets", key, |c| c.gets(key)) else { continue };
        let parsed =
            item.as_ref().and_then(|i| Some((String::from_utf8(i.value.clone()).ok()?.parse::<u64>().ok()?, i.cas?)));
        let Some((value, token)) = parsed else {
            hand.violation(format!("CAS {key}: LOST, read {item:?}"));
            continue;
        };
        model.verdict_on("gets", cell.within(floor, value));
        if hand.rng.percent(5) {
            old.push((which, value, token));
        }
        raise(hand, &model, which, value, token);
        if hand.rng.percent(10) && !old.is_empty() {
            let (which, value, token) = old.swap_remove(hand.rng.below(old.len()));
            hand.tally.count("old cas tokens tried");
            raise(hand, &model, which, value, token);
        }
        hand.pause();
    }
}

fn raise(hand: &mut Hand, model: &Model, which: usize, value: u64, token: u64) {
    let cell = &model.cells[which];
    let key = &cell.key;
    let floor = cell.floor();
    cell.begin();
    let next = (value + 1).to_string();
    match hand.op("cas", key, |c| c.cas(key, 0, 0, next.as_bytes(), token)) {
        Some(Stored::Stored) => {
            hand.tally.count("cas won");
            model.verdict_on("cas", cell.stored(value, floor));
        }
        Some(Stored::Exists) => hand.tally.count("cas lost"),
        Some(other) => hand.violation(format!("CAS {key}: answered {other:?}")),
        None => cell.outcome_unknown(),
    }
}
