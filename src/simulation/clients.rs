//! Clients: many of them on a few keys. Every value is written once, so that a read tells which
//! write it has seen.

mod meta;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::history::{History, is_meta};
use super::item::Shown;
use super::judge::{Call, Outcome};
use super::trace::note;

use meta::Spoken;

/// An answer that takes longer is a hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much sooner than its client asked an item may expire: two seconds, because servers count in
/// seconds, and one for each copy that is made of it in its last ten.
const EARLY: Duration = Duration::from_secs(4);
/// How much longer it may last, because servers' timers are late.
const LATE: Duration = Duration::from_millis(1_100);

/// The doors of all proxies that take clients: a listener for each worker.
pub(super) type Doors = Rc<RefCell<BTreeMap<u32, Vec<UnboundedSender<DuplexStream>>>>>;

/// What a client does, and what counts as wrong for it.
#[derive(Clone, Debug)]
pub(super) struct Habits {
    pub(super) keys: Vec<String>,
    /// Longest pause between two turns, milliseconds.
    pub(super) think_ms: u64,
    pub(super) flushes: bool,
    /// `SERVER_ERROR` is not a violation.
    pub(super) errors_allowed: bool,
    /// After so long without an answer it goes to another proxy. `None`: that is a violation.
    pub(super) gives_up: Option<Duration>,
    /// A proxy that lives may close it: one that passes its requests on.
    pub(super) is_passed_on: bool,
}

pub(super) struct Client {
    id: usize,
    rng: SmallRng,
    habits: Habits,
    history: History,
    doors: Doors,
    link: Option<Link>,
    written: u64,
    /// The last turn met an error.
    refused: bool,
    /// The last token of each key, and the value that it came with.
    tokens: BTreeMap<String, (String, u64)>,
    /// Noreply writes that no later answer stands behind yet.
    silent: Vec<(usize, String)>,
}

struct Link {
    proxy: u32,
    stream: DuplexStream,
    input: BytesMut,
}

/// Why there is no answer.
enum NoAnswer {
    Broken,
    Late,
}

/// A request on the wire, and the operations that it is.
#[derive(Default)]
struct Request {
    wire: String,
    /// With their keys; `None` = on all keys.
    ops: Vec<(usize, Option<String>)>,
    answer: Expect,
    /// For each operation how its answer in the meta protocol is understood.
    spoken: Vec<Spoken>,
    /// Set when it is acknowledged that an item was stored that expires.
    stored: Rc<Cell<Option<Instant>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Expect {
    #[default]
    Line,
    Values,
    Nothing,
    /// One in the meta protocol.
    Meta,
    /// Any number of these, then `MN`.
    Quiet,
}

/// Whether what is stored there lasts for seconds only.
pub(super) fn expires(key: &str) -> bool {
    key.starts_with('e')
}

/// Lets an item expire in the judge's eyes: not before some moment, and not later than its client
/// asked, counted from the acknowledgement. (Of a write that is never acknowledged it is unknown
/// from when on.)
async fn expire(history: History, key: String, value: String, lasts: Duration, stored: Rc<Cell<Option<Instant>>>) {
    let begun = Instant::now();
    sleep(lasts.saturating_sub(EARLY)).await;
    let op = history.call(97, Some(&key), Call::Expire(value));
    sleep_until(begun + lasts + LATE).await;
    if stored.get().is_none() {
        sleep(PATIENCE).await;
    }
    if let Some(stored) = stored.get() {
        sleep_until(stored + lasts + LATE).await;
        history.answer(op, Outcome::Done);
    }
}

impl Link {
    async fn line(&mut self, deadline: Instant) -> Result<String, NoAnswer> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.input) {
                let line = self.input.split_to(end + 1);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            match timeout_at(deadline, self.stream.read_buf(&mut self.input)).await {
                Err(_) => return Err(NoAnswer::Late),
                Ok(Ok(1..)) => {}
                Ok(_) => return Err(NoAnswer::Broken),
            }
        }
    }
}

impl Client {
    pub(super) fn new(id: usize, rng: SmallRng, habits: Habits, history: History, doors: Doors) -> Client {
        let (tokens, silent) = (BTreeMap::new(), Vec::new());
        Client { id, rng, habits, history, doors, link: None, written: 0, refused: false, tokens, silent }
    }

    /// Goes on until `stop` says so.
    pub(super) async fn run(mut self, stop: Rc<std::cell::Cell<bool>>) {
        while !stop.get() {
            self.connect().await;
            let count = if self.rng.random_ratio(1, 4) { self.rng.random_range(2..5) } else { 1 };
            let requests: Vec<Request> = (0..count).map(|_| self.request()).collect();
            self.exchange(requests).await;
            if std::mem::take(&mut self.refused) {
                // Each operation of unknown outcome makes the history harder to judge.
                sleep(Duration::from_millis(self.rng.random_range(50..400))).await;
            } else if self.rng.random_ratio(3, 4) {
                sleep(Duration::from_millis(self.rng.random_range(0..=self.habits.think_ms))).await;
            }
        }
        // An answer behind every noreply write: from then on it is done.
        self.connect().await;
        let keys: Vec<String> = self.silent.iter().map(|(_, key)| key.clone()).collect();
        let reads = keys.iter().map(|key| self.get(std::slice::from_ref(key), "get")).collect();
        self.exchange(reads).await;
    }

    /// Writes every key once.
    pub(super) async fn fill(&mut self) {
        self.connect().await;
        let keys = self.habits.keys.clone();
        let sets = keys.iter().map(|key| self.store(key, "set", false)).collect();
        self.exchange(sets).await;
    }

    /// Reads every key.
    pub(super) async fn read_all(&mut self) {
        self.connect().await;
        let keys = self.habits.keys.clone();
        let looks = keys.iter().map(|key| match is_meta(key) {
            true => self.settled(key),
            false => self.get(std::slice::from_ref(key), "get"),
        });
        let looks = looks.collect();
        self.exchange(looks).await;
    }

    /// Touches every key.
    pub(super) async fn touch_all(&mut self) {
        self.connect().await;
        let keys = self.habits.keys.clone();
        let touches = keys.iter().map(|key| self.line(key, Call::Touch, &format!("touch {key} 0"), false)).collect();
        self.exchange(touches).await;
    }

    /// From now on it knows of these keys only.
    pub(super) fn keep_to(&mut self, keys: Vec<String>) {
        self.habits.keys = keys;
    }

    /// What the proxy says of itself.
    pub(super) async fn ask(&mut self, question: &str) -> Option<Vec<String>> {
        self.connect().await;
        let deadline = Instant::now() + self.patience();
        let link = self.link.as_mut()?;
        let mut lines = Vec::new();
        let asked = async {
            link.stream.write_all(question.as_bytes()).await.map_err(|_| NoAnswer::Broken)?;
            loop {
                let line = link.line(deadline).await?;
                let last = !line.starts_with("STAT ");
                lines.push(line);
                if last {
                    return Ok::<(), NoAnswer>(());
                }
            }
        };
        if asked.await.is_err() {
            self.link = None;
            return None;
        }
        Some(lines)
    }

    fn patience(&self) -> Duration {
        self.habits.gives_up.unwrap_or(PATIENCE)
    }

    async fn connect(&mut self) {
        self.link.take_if(|link| !self.doors.borrow().contains_key(&link.proxy));
        while self.link.is_none() {
            let door = {
                let doors = self.doors.borrow();
                let which = if doors.len() > 1 { self.rng.random_range(0..doors.len()) } else { 0 };
                doors.iter().nth(which).map(|(proxy, workers)| (*proxy, workers.clone()))
            };
            if let Some((proxy, workers)) = door {
                let (near, far) = duplex(64 * 1024);
                if workers[self.rng.random_range(0..workers.len())].send(far).is_ok() {
                    self.link = Some(Link { proxy, stream: near, input: BytesMut::new() });
                    return;
                }
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn value(&mut self, key: &str) -> String {
        self.written += 1;
        let unique = self.id as u64 * 10_000 + self.written;
        if key.starts_with(['n', 'a']) { (unique * 1_000).to_string() } else { format!("<{unique}>") }
    }

    fn request(&mut self) -> Request {
        let key = self.habits.keys[self.rng.random_range(0..self.habits.keys.len())].clone();
        let noreply = self.rng.random_ratio(1, 25);
        if self.habits.flushes && self.rng.random_ratio(1, 250) {
            let op = self.history.call(self.id, None, Call::Flush);
            let (wire, ops) = ("flush_all\r\n".into(), vec![(op, None)]);
            return Request { wire, ops, ..Request::default() };
        }
        let number = key.starts_with('n');
        if is_meta(&key) {
            return match self.rng.random_range(0..100) {
                0..5 => self.get(&[key], "get"),
                5..8 => self.get(&[key], "gets"),
                8..10 => self.get(&self.habits.keys.clone(), "get"),
                10..11 => self.store(&key, "set", noreply),
                11..12 => self.store(&key, "add", noreply),
                12..13 => self.store(&key, "replace", noreply),
                13..15 if key.starts_with('a') => self.line(&key, Call::Incr(3), &format!("incr {key} 3"), noreply),
                13..14 => self.store(&key, "append", noreply),
                14..15 => self.store(&key, "prepend", noreply),
                15..17 => self.line(&key, Call::Delete, &format!("delete {key}"), noreply),
                _ => self.meta(&key),
            };
        }
        if expires(&key) {
            let verb = match self.rng.random_range(0..100) {
                0..50 => return self.get(&[key], "get"),
                50..75 => return self.get(&self.habits.keys.clone(), "get"),
                75..78 => return self.line(&key, Call::Delete, &format!("delete {key}"), noreply),
                78..82 => "set",
                82..96 => "add",
                _ => "replace",
            };
            return self.store(&key, verb, noreply);
        }
        match self.rng.random_range(0..100) {
            0..25 => self.get(&[key], "get"),
            25..32 => {
                let mut keys = vec![key];
                for _ in 0..self.rng.random_range(1..4) {
                    let more = self.habits.keys[self.rng.random_range(0..self.habits.keys.len())].clone();
                    if !keys.contains(&more) {
                        keys.push(more);
                    }
                }
                self.get(&keys, "get")
            }
            32..35 => {
                let verb = ["gat 0", "gat 5000"][self.rng.random_range(0..2)];
                self.get(&[key], verb)
            }
            35..40 => self.line(&key, Call::Touch, &format!("touch {key} {}", self.written % 2 * 9_000), noreply),
            40..48 => self.line(&key, Call::Delete, &format!("delete {key}"), noreply),
            48..58 => self.store(&key, "set", noreply),
            58..66 => self.store(&key, "add", noreply),
            66..70 => self.store(&key, "replace", noreply),
            _ if number => {
                let by = self.rng.random_range(1..9);
                self.line(&key, Call::Incr(by), &format!("incr {key} {by}"), noreply)
            }
            70..80 => self.store(&key, "append", noreply),
            80..83 => self.store(&key, "prepend", noreply),
            83..91 => self.get(&[key], "gets"),
            _ => match self.tokens.remove(&key) {
                Some((old, token)) => self.cas(&key, old, token),
                None => self.get(&[key], "gets"),
            },
        }
    }

    fn get(&mut self, keys: &[String], verb: &str) -> Request {
        let ops = keys.iter().map(|key| (self.history.call(self.id, Some(key), Call::Get), Some(key.clone())));
        let ops = ops.collect();
        let wire = format!("{verb} {}\r\n", keys.join(" "));
        Request { wire, ops, answer: Expect::Values, ..Request::default() }
    }

    fn line(&mut self, key: &str, call: Call, command: &str, noreply: bool) -> Request {
        let op = self.history.call(self.id, Some(key), call);
        let (tail, answer) = if noreply { (" noreply", Expect::Nothing) } else { ("", Expect::Line) };
        let ops = vec![(op, Some(key.to_owned()))];
        Request { wire: format!("{command}{tail}\r\n"), ops, answer, ..Request::default() }
    }

    fn store(&mut self, key: &str, verb: &str, noreply: bool) -> Request {
        let value = self.value(key);
        let call = match verb {
            "set" => Call::Set,
            "add" => Call::Add,
            "replace" => Call::Replace,
            "append" => Call::Append,
            _ => Call::Prepend,
        };
        let flags = if is_meta(key) { 0 } else { self.written % 3 };
        let exptime = match self.written.is_multiple_of(4) {
            _ if is_meta(key) => 0,
            _ if expires(key) => self.rng.random_range(1..15),
            true => 7_000,
            false => 0,
        };
        let mut request =
            self.line(key, call(value.clone()), &format!("{verb} {key} {flags} {exptime} {}", value.len()), noreply);
        request.wire += &format!("{value}\r\n");
        if expires(key) {
            let (history, key, stored) = (self.history.clone(), key.to_owned(), request.stored.clone());
            spawn_local(expire(history, key, value, Duration::from_secs(exptime), stored));
        }
        request
    }

    fn cas(&mut self, key: &str, old: String, token: u64) -> Request {
        let value = self.value(key);
        let command = format!("cas {key} 0 0 {} {token}", value.len());
        let mut request = self.line(key, Call::Cas(old, value.clone()), &command, false);
        request.wire += &format!("{value}\r\n");
        request
    }

    /// Sends the requests in one go and hears their answers.
    async fn exchange(&mut self, requests: Vec<Request>) {
        let Some(mut link) = self.link.take() else { return };
        let wire: String = requests.iter().map(|r| r.wire.as_str()).collect();
        let sent = link.stream.write_all(wire.as_bytes()).await.is_ok();
        if sent && self.rng.random_ratio(1, 200) {
            // The client goes away without waiting.
            note(|| format!("client {}: leaves", self.id));
            self.forget_silent();
            return;
        }
        let mut failed = if sent { None } else { Some(NoAnswer::Broken) };
        for request in &requests {
            if failed.is_none()
                && let Err(why) = self.hear(&mut link, request).await
            {
                failed = Some(why);
            }
        }
        match failed {
            None => self.link = Some(link),
            Some(why) => {
                self.forget_silent();
                let alive = self.doors.borrow().contains_key(&link.proxy);
                match why {
                    NoAnswer::Late if self.habits.gives_up.is_some() => {
                        note(|| format!("client {}: gives proxy {} up", self.id, link.proxy));
                        self.refused = true;
                    }
                    NoAnswer::Late => {
                        self.history.violation(format!("client {}: no answer within {PATIENCE:?} to {wire:?}", self.id))
                    }
                    NoAnswer::Broken if alive && !self.habits.is_passed_on => {
                        self.history
                            .violation(format!("client {}: the proxy broke the connection on {wire:?}", self.id));
                    }
                    NoAnswer::Broken => {}
                }
            }
        }
    }

    fn forget_silent(&mut self) {
        for (op, _) in std::mem::take(&mut self.silent) {
            self.history.answer(op, Outcome::Unknown);
        }
    }

    async fn hear(&mut self, link: &mut Link, request: &Request) -> Result<(), NoAnswer> {
        let deadline = Instant::now() + self.patience();
        match request.answer {
            Expect::Nothing => {
                // Where errors are allowed it may have met one, which is not answered either.
                if !self.habits.errors_allowed {
                    let (op, key) = request.ops[0].clone();
                    self.history.silent(op);
                    self.silent.push((op, key.unwrap_or_default()));
                }
                return Ok(());
            }
            Expect::Line => {
                let line = link.line(deadline).await?;
                let (op, _) = request.ops[0];
                let outcome = match line.as_str() {
                    "STORED" => Outcome::Stored,
                    "NOT_STORED" => Outcome::NotStored,
                    "EXISTS" => Outcome::Exists,
                    "NOT_FOUND" => Outcome::NotFound,
                    "DELETED" | "TOUCHED" | "OK" => Outcome::Done,
                    // An item that is still to be computed is no number.
                    "CLIENT_ERROR cannot increment or decrement non-numeric value" => Outcome::Denied,
                    number if number.starts_with(|c: char| c.is_ascii_digit()) => {
                        Outcome::Number(number.parse().unwrap_or(u64::MAX))
                    }
                    error => self.refused(error, &request.wire),
                };
                if outcome == Outcome::Stored {
                    request.stored.set(Some(Instant::now()));
                }
                self.history.answer(op, outcome);
            }
            Expect::Values => self.hear_values(link, request, deadline).await?,
            Expect::Meta | Expect::Quiet => self.hear_meta(link, request).await?,
        }
        // Its own noreply writes of these keys are done by now.
        for (_, key) in &request.ops {
            let Some(key) = key else { continue };
            let (done, rest) = std::mem::take(&mut self.silent).into_iter().partition(|(_, k)| k == key);
            self.silent = rest;
            let done: Vec<(usize, String)> = done;
            for (op, _) in done {
                self.history.answer(op, Outcome::Silent);
            }
        }
        Ok(())
    }

    async fn hear_values(&mut self, link: &mut Link, request: &Request, deadline: Instant) -> Result<(), NoAnswer> {
        let mut found = BTreeMap::new();
        let mut error = None;
        loop {
            let line = link.line(deadline).await?;
            let words: Vec<&str> = line.split(' ').collect();
            match words[0] {
                "VALUE" => {
                    let value = link.line(deadline).await?;
                    let token = words.get(4).and_then(|token| token.parse::<u64>().ok());
                    found.insert(words[1].to_owned(), (value, token));
                }
                "END" => break,
                _ => {
                    error = Some(self.refused(&line, &request.wire));
                    break;
                }
            }
        }
        for (op, key) in &request.ops {
            let key = key.as_deref().unwrap_or_default();
            let mut told = None;
            let outcome = match (&error, found.remove(key)) {
                (Some(error), _) => error.clone(),
                (None, None) => Outcome::Value(None),
                (None, Some((value, token))) => {
                    if let Some(token) = token {
                        self.tokens.insert(key.to_owned(), (value.clone(), token));
                    }
                    told = token.filter(|_| is_meta(key));
                    match told {
                        Some(_) => Outcome::Shown(Some(Shown { value: Some(value), ..Shown::default() })),
                        None => Outcome::Value(Some(value)),
                    }
                }
            };
            self.history.answer_with(*op, outcome, told);
        }
        if let Some((key, _)) = found.into_iter().next() {
            self.history.violation(format!("client {}: {key} was not asked for in {:?}", self.id, request.wire));
        }
        Ok(())
    }

    fn refused(&mut self, line: &str, wire: &str) -> Outcome {
        self.history.error();
        self.refused = true;
        if !line.starts_with("SERVER_ERROR") || !self.habits.errors_allowed {
            self.history.violation(format!("client {}: {line:?} to {wire:?}", self.id));
        }
        Outcome::Unknown
    }
}
