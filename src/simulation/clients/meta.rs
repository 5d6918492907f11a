//! What clients say in the meta protocol, and how they understand the answers.
//!
//! Each command has an opaque token of its own, by which a quiet batch's answers are known. Items
//! last for ever or for whole thousands of seconds, longer than any world: so what `t` shows says
//! which.

use rand::RngExt;
use tokio::time::Instant;

use super::{Client, Expect, Link, NoAnswer, PATIENCE, Request};
use crate::protocol::base64;
use crate::simulation::item::{Marks, Meta, Mode, Shown};
use crate::simulation::judge::{Call, Outcome};

/// How an answer is understood.
pub(super) struct Spoken {
    opaque: String,
    /// What it means that nothing was answered.
    silence: Outcome,
}

/// An answer.
struct Told {
    outcome: Outcome,
    token: Option<u64>,
    opaque: Option<String>,
}

/// What is shown as so many seconds left is one of these thousands. (A copy may show one second
/// more: nodes turn to theirs at different moments.)
fn lasts(left: i64) -> Option<u32> {
    match left {
        -1 => Some(0),
        1.. => u32::try_from(left - 1).ok().map(|left| left.div_ceil(1_000) * 1_000),
        _ => None,
    }
}

impl Client {
    /// A command, or a quiet batch of some, on a key (or several).
    pub(super) fn meta(&mut self, key: &str) -> Request {
        if !self.rng.random_ratio(1, 6) {
            let call = self.meta_call(key);
            let mut request = Request { answer: Expect::Meta, ..Request::default() };
            self.say(&mut request, key, call, false);
            return request;
        }
        let mut request = Request { answer: Expect::Quiet, ..Request::default() };
        for _ in 0..self.rng.random_range(1..4) {
            let key = self.habits.keys[self.rng.random_range(0..self.habits.keys.len())].clone();
            let call = self.meta_call(&key);
            if call != Meta::SetWithCas {
                self.say(&mut request, &key, call, true);
            }
        }
        request.wire += "mn\r\n";
        request
    }

    /// A look at an item while everything is at rest.
    pub(super) fn settled(&mut self, key: &str) -> Request {
        let mut request = Request { answer: Expect::Meta, ..Request::default() };
        let call = Meta::Get { make: None, renew: None, ends: None, settled: true };
        self.say(&mut request, key, call, false);
        request
    }

    fn meta_call(&mut self, key: &str) -> Meta {
        let number = key.starts_with('a');
        let get = Meta::Get { make: None, renew: None, ends: None, settled: false };
        let token = self.tokens.get(key).map(|(_, token)| *token);
        if self.rng.random() && token.is_some() {
            // Otherwise it is used once more, when it is an older one.
            self.tokens.remove(key);
        }
        let any = |client: &mut Client| client.rng.random_range(0..9) * 1_000;
        match self.rng.random_range(0..100) {
            0..24 => get,
            24..32 => Meta::Get { make: Some(any(self)), renew: None, ends: None, settled: false },
            32..40 => Meta::Get { make: None, renew: Some(any(self) + 500), ends: None, settled: false },
            40..44 => Meta::Get { make: None, renew: None, ends: Some(any(self)), settled: false },
            44..56 => self.meta_set(key, Mode::Set, None, false),
            56..60 => self.meta_set(key, Mode::Add, None, false),
            60..63 => self.meta_set(key, Mode::Replace, None, false),
            63..68 if number => {
                let make = self.rng.random::<bool>().then(|| (any(self), self.value(key).parse().unwrap_or(0)));
                let (down, by) = (self.rng.random_ratio(1, 4), self.rng.random_range(1..9));
                Meta::Count { down, by, make, ends: None, token: None }
            }
            63..66 => self.meta_set(key, Mode::Append, None, false),
            66..68 => self.meta_set(key, Mode::Prepend, None, false),
            68..74 => self.meta_set(key, Mode::Set, token, false),
            74..77 => self.meta_set(key, Mode::Set, token, true),
            77..78 if number => {
                let ends = Some(any(self));
                Meta::Count { down: false, by: 1, make: None, ends, token }
            }
            77..78 => self.meta_set(key, Mode::Append, token, false),
            78..92 => {
                let ends = self.rng.random_ratio(1, 3).then(|| any(self));
                Meta::Delete { token: None, invalidate: true, ends }
            }
            92..94 => Meta::Delete { token, invalidate: true, ends: None },
            94..96 => Meta::Delete { token, invalidate: false, ends: None },
            96..99 => Meta::Delete { token: None, invalidate: false, ends: None },
            _ => Meta::SetWithCas,
        }
    }

    fn meta_set(&mut self, key: &str, mode: Mode, token: Option<u64>, older: bool) -> Meta {
        let (flags, ends) = match mode.joins() {
            true => (0, 0),
            false => (self.rng.random_range(0..3), self.rng.random_range(0..9) * 1_000),
        };
        Meta::Set { mode, value: self.value(key), flags, ends, token, older: older && token.is_some() }
    }

    /// Puts a command on the wire.
    fn say(&mut self, request: &mut Request, key: &str, meta: Meta, quiet: bool) {
        let rng = &mut self.rng;
        let op = self.history.call(self.id, Some(key), Call::Meta(meta.clone()));
        let opaque = format!("O{op}");
        let mut flags = vec![opaque.clone()];
        let number = |flag: char, of: Option<u64>| of.map(|of| format!("{flag}{of}"));
        let (verb, value, silence) = match &meta {
            Meta::Get { make, renew, ends, settled } => {
                flags.extend(number('N', make.map(u64::from)));
                flags.extend(number('T', ends.map(u64::from)));
                flags.extend(number('R', renew.map(u64::from)));
                let asks = ["v", "f", "t", "c"].into_iter().filter(|_| *settled || rng.random_ratio(2, 3));
                flags.extend(asks.map(str::to_owned));
                ("mg", None, Outcome::Shown(None))
            }
            Meta::Set { mode, value, flags: client_flags, ends, token, older } => {
                let mode = match mode {
                    Mode::Set => "S",
                    Mode::Add => "E",
                    Mode::Replace => "R",
                    Mode::Append => "A",
                    Mode::Prepend => "P",
                };
                flags.push(format!("M{mode}"));
                flags.extend([format!("F{client_flags}"), format!("T{ends}")]);
                flags.extend(number('C', *token));
                flags.extend(older.then(|| "I".to_owned()));
                flags.extend(rng.random::<bool>().then(|| "c".to_owned()));
                ("ms", Some(value.clone()), Outcome::Stored)
            }
            Meta::Delete { token, invalidate, ends } => {
                flags.extend(number('C', *token));
                flags.extend(invalidate.then(|| "I".to_owned()));
                flags.extend(number('T', ends.map(u64::from)));
                ("md", None, Outcome::Done)
            }
            Meta::Count { down, by, make, ends, token } => {
                flags.extend([format!("D{by}"), format!("M{}", if *down { "D" } else { "I" })]);
                flags.extend(make.iter().flat_map(|(ends, number)| [format!("N{ends}"), format!("J{number}")]));
                flags.extend(number('T', ends.map(u64::from)));
                flags.extend(number('C', *token));
                let asks = ["v", "c"].into_iter().filter(|_| rng.random());
                flags.extend(asks.map(str::to_owned));
                ("ma", None, Outcome::Done)
            }
            Meta::SetWithCas => {
                flags.push("E7".to_owned());
                ("ms", Some("<refused>".to_owned()), Outcome::Unknown)
            }
        };
        let name = match rng.random_range(0..8) {
            0 => String::from_utf8_lossy(&base64::encode(key.as_bytes())).into_owned(),
            _ => key.to_owned(),
        };
        match name == key {
            true => flags.extend(rng.random_ratio(1, 4).then(|| "k".to_owned())),
            false => flags.push("b".to_owned()),
        }
        flags.extend(quiet.then(|| "q".to_owned()));
        let len = value.as_ref().map_or_else(String::new, |value| format!(" {}", value.len()));
        request.wire += &format!("{verb} {name}{len} {}\r\n", flags.join(" "));
        if let Some(value) = value {
            request.wire += &format!("{value}\r\n");
        }
        request.ops.push((op, Some(key.to_owned())));
        request.spoken.push(Spoken { opaque, silence });
    }

    /// Hears the answers to a command, or to all of a quiet batch.
    pub(super) async fn hear_meta(&mut self, link: &mut Link, request: &Request) -> Result<(), NoAnswer> {
        let deadline = Instant::now() + PATIENCE;
        let quiet = request.answer == Expect::Quiet;
        let mut told: Vec<Option<Told>> = request.spoken.iter().map(|_| None).collect();
        let mut failed = false;
        loop {
            let line = link.line(deadline).await?;
            if quiet && line == "MN" {
                break;
            }
            let value = match line.starts_with("VA ") {
                true => Some(link.line(deadline).await?),
                false => None,
            };
            let at = match quiet {
                true => {
                    let named = |s: &Spoken| line.split(' ').any(|word| word == s.opaque);
                    request.spoken.iter().position(named)
                }
                false => Some(0),
            };
            let answer = self.understand(request, at.unwrap_or(0), &line, value);
            match at {
                Some(at) if told[at].is_none() && (!quiet || told[at..].iter().all(Option::is_none)) => {
                    let asked = &request.spoken[at].opaque;
                    if answer.opaque.as_ref().is_some_and(|opaque| opaque != asked) {
                        self.history.violation(format!("client {}: {line:?} to {:?}", self.id, request.wire));
                    }
                    told[at] = Some(answer);
                }
                // An error names nothing.
                _ if line.contains("ERROR") => failed = true,
                _ => self.history.violation(format!("client {}: {line:?} to {:?}", self.id, request.wire)),
            }
            if !quiet {
                break;
            }
        }
        for (((op, key), spoken), told) in request.ops.iter().zip(&request.spoken).zip(told) {
            let (outcome, token) = match told {
                Some(told) => (told.outcome, told.token),
                None if failed => (Outcome::Unknown, None),
                None => (spoken.silence.clone(), None),
            };
            if let (Some(key), Some(token)) = (key, token) {
                self.tokens.insert(key.clone(), (String::new(), token));
            }
            self.history.answer_with(*op, outcome, token);
        }
        Ok(())
    }

    fn understand(&mut self, request: &Request, at: usize, line: &str, value: Option<String>) -> Told {
        let mut told = Told { outcome: Outcome::Unknown, token: None, opaque: None };
        let mut shown = Shown { value, ..Shown::default() };
        let mut marks = Marks::default();
        let words: Vec<&str> = line.split(' ').collect();
        let flags = words.iter().skip(if words[0] == "VA" { 2 } else { 1 });
        for word in flags.take_while(|_| !line.contains("ERROR")) {
            let rest = word.get(1..).unwrap_or_default();
            match word.as_bytes().first() {
                Some(b'O') => told.opaque = Some((*word).to_owned()),
                Some(b'f') => shown.flags = rest.parse().ok(),
                Some(b't') => shown.ends = rest.parse().ok().and_then(lasts).or(Some(u32::MAX)),
                Some(b'c') => told.token = rest.parse().ok().filter(|token| *token != 0),
                Some(b'W') => marks.won = true,
                Some(b'Z') => marks.taken = true,
                Some(b'X') => marks.stale = true,
                Some(b'k') => {
                    let key = request.ops[at].1.as_deref().unwrap_or_default();
                    if rest != key {
                        self.history.violation(format!("client {}: {line:?} names another key than {key}", self.id));
                    }
                }
                _ => {}
            }
        }
        if line.starts_with("CLIENT_ERROR") {
            told.outcome = Outcome::Denied;
            return told;
        }
        let silence = &request.spoken[at].silence;
        told.outcome = match (words[0], silence) {
            ("EN", Outcome::Shown(_)) => Outcome::Shown(None),
            ("HD" | "VA", Outcome::Shown(_)) => {
                shown.marks = Some(marks);
                Outcome::Shown(Some(shown))
            }
            ("HD", Outcome::Stored | Outcome::Done) => silence.clone(),
            ("VA", Outcome::Done) => {
                shown.value.and_then(|value| value.parse().ok()).map_or(Outcome::Unknown, Outcome::Number)
            }
            ("NS", Outcome::Stored) => Outcome::NotStored,
            ("NF", Outcome::Stored | Outcome::Done) => Outcome::NotFound,
            ("EX", Outcome::Stored | Outcome::Done) => Outcome::Exists,
            _ if line.contains("ERROR") => self.refused(line, &request.wire),
            _ => {
                self.history.violation(format!("client {}: {line:?} to {:?}", self.id, request.wire));
                Outcome::Unknown
            }
        };
        told
    }
}
