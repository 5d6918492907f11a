//! Registers: keys with one writer each, of which it is known what they may hold.

use super::super::client::{Item, Stored, storage};
use super::super::judge::Content;
use super::Model;
use super::hands::Hand;

/// A token kept from long ago: the register, the token, the state it was taken in.
type OldToken = (usize, u64, u64);

pub(super) fn write_registers(hand: &mut Hand, writer: usize) {
    let model = hand.model.clone();
    let mut old_tokens: Vec<OldToken> = Vec::new();
    while hand.next() {
        let k = hand.rng.below(model.mix.keys_per_writer);
        Register::new(hand, &model, writer, k).write(&mut old_tokens);
        hand.pause();
    }
}

pub(super) fn read_registers(hand: &mut Hand, _: usize) {
    let model = hand.model.clone();
    if model.mix.writers == 0 {
        return;
    }
    while hand.next() {
        let mut picks = Vec::new();
        for _ in 0..=hand.rng.below(12) {
            let pick = (hand.rng.below(model.mix.writers), hand.rng.below(model.mix.keys_per_writer));
            if !picks.contains(&pick) {
                picks.push(pick);
            }
        }
        let keys: Vec<String> = picks.iter().map(|&(w, k)| model.register_key(w, k)).collect();
        let from: Vec<u64> = picks.iter().map(|&(w, k)| model.history(w, k).acked()).collect();
        let verb = if hand.rng.percent(20) { "gets" } else { "get" };
        if let Some(items) = hand.op("multi-get", &keys[0], |c| c.get_many(verb, &keys)) {
            for ((&(w, k), from), item) in picks.iter().zip(from).zip(items) {
                hand.tally.count("reads");
                if item.is_some() {
                    hand.tally.count("hits");
                }
                judge_read(hand, &model, w, k, from, item.as_ref(), verb);
            }
        }
        hand.pause();
    }
}

fn judge_read(hand: &Hand, model: &Model, w: usize, k: usize, from: u64, item: Option<&Item>, what: &str) -> bool {
    let judged = model.history(w, k).judge(from, item);
    if let Err(why) = &judged {
        hand.violation(format!("{what} {}: {why}", model.register_key(w, k)));
    }
    judged.is_ok()
}

/// One register, in the hand of its writer.
struct Register<'a> {
    hand: &'a mut Hand,
    model: &'a Model,
    writer: usize,
    k: usize,
    key: String,
}

impl<'a> Register<'a> {
    fn new(hand: &'a mut Hand, model: &'a Model, writer: usize, k: usize) -> Register<'a> {
        let key = model.register_key(writer, k);
        Register { hand, model, writer, k, key }
    }

    /// One operation, chosen by lot.
    fn write(&mut self, old_tokens: &mut Vec<OldToken>) {
        let (last, certain) = {
            let history = self.model.history(self.writer, self.k);
            (history.last().cloned(), history.certain())
        };
        let lot = if certain { self.hand.rng.below(100) } else { self.hand.rng.below(45) };
        match (lot, last) {
            (0..35, _) => drop(self.store("set", "")),
            (35..45, last) => self.delete(certain, last.is_some()),
            (45..51, None) => drop(self.store("add", "RESURRECTED, an absent key: ")),
            (45..51, Some(_)) => self.store_in_vain("add", "ADD on an existing key"),
            (51..64, None) => {
                self.store_in_vain(["replace", "append", "prepend"][lot % 3], "RESURRECTED, deleted before");
            }
            (51..55, Some(_)) => drop(self.store("replace", "LOST: ")),
            (55..64, Some(content)) if content.bytes.len() < 4000 => {
                self.lengthen(if lot < 60 { "append" } else { "prepend" }, content);
            }
            (64..70, Some(content)) => self.touch(content),
            (70..74, Some(content)) => self.gat(content),
            (74..84, Some(_)) => self.cas(old_tokens),
            (84..88, Some(_)) => self.overtake_a_token(),
            (88..92, _) => self.use_one_of(old_tokens),
            (92..96, _) => self.set_and_read(),
            _ => self.read(),
        }
    }

    fn begin(&self, what: &'static str, content: Option<Content>) -> u64 {
        self.model.history(self.writer, self.k).begin(what, content)
    }

    fn acknowledge(&self, version: u64) {
        self.model.history(self.writer, self.k).acknowledge(version);
    }

    /// Of the register's own key.
    fn judge(&self, from: u64, item: Option<&Item>, what: &str) -> bool {
        judge_read(self.hand, self.model, self.writer, self.k, from, item, what)
    }

    /// `wrong`: begins the violation where it is not stored. Returns whether it is.
    fn store(&mut self, verb: &'static str, wrong: &str) -> bool {
        let key = &self.key;
        let (content, exptime) = self.hand.content(key);
        let version = self.begin(verb, Some(content.clone()));
        match self.hand.op(verb, key, |c| c.store(verb, key, content.flags, exptime, &content.bytes)) {
            Some(Stored::Stored) => {
                self.acknowledge(version);
                return true;
            }
            Some(other) => self.hand.violation(format!("{wrong}{verb} {key} answered {other:?}")),
            None => {}
        }
        false
    }

    /// What must not be stored, for `why` (also the violation's beginning where it is).
    fn store_in_vain(&mut self, verb: &'static str, why: &str) {
        let key = &self.key;
        let (content, exptime) = self.hand.content(key);
        let answer = self.hand.op(verb, key, |c| c.store(verb, key, content.flags, exptime, &content.bytes));
        if let Some(answer) = answer
            && answer != Stored::NotStored
        {
            self.hand.violation(format!("{why}: {verb} {key} answered {answer:?}"));
            self.begin(verb, Some(content));
        }
    }

    fn delete(&mut self, certain: bool, is_there: bool) {
        let key = &self.key;
        let version = self.begin("delete", None);
        if let Some(found) = self.hand.op("delete", key, |c| c.delete(key)) {
            self.acknowledge(version);
            if certain && found && !is_there {
                self.hand.violation(format!("RESURRECTED: delete {key} found an item, deleted before"));
            } else if certain && !found && is_there {
                self.hand.violation(format!("LOST: delete {key} found nothing"));
            }
        }
    }

    fn lengthen(&mut self, verb: &'static str, mut content: Content) {
        let key = &self.key;
        let piece = format!("<{:x}>", self.hand.rng.next()).into_bytes();
        if verb == "append" {
            content.bytes.extend_from_slice(&piece);
        } else {
            content.bytes.splice(0..0, piece.iter().copied());
        }
        let version = self.begin(verb, Some(content));
        match self.hand.op(verb, key, |c| c.store(verb, key, 0, 0, &piece)) {
            Some(Stored::Stored) => self.acknowledge(version),
            Some(other) => self.hand.violation(format!("LOST: {verb} {key} answered {other:?}")),
            None => {}
        }
    }

    fn touch(&mut self, content: Content) {
        let key = &self.key;
        let (exptime, expires) = self.hand.exptime();
        let version = self.begin("touch", Some(Content { expires, ..content }));
        match self.hand.op("touch", key, |c| c.touch(key, exptime)) {
            Some(true) => self.acknowledge(version),
            Some(false) => self.hand.violation(format!("LOST: touch {key} found nothing")),
            None => {}
        }
    }

    fn gat(&mut self, content: Content) {
        let key = &self.key;
        let (exptime, expires) = self.hand.exptime();
        let version = self.begin("gat", Some(Content { expires, ..content }));
        if let Some(item) = self.hand.op("gat", key, |c| c.gat(exptime, key)) {
            self.judge(version, item.as_ref(), "gat");
            if item.is_some() {
                self.acknowledge(version);
            }
        }
    }

    /// `gets` of a key that its owner knows to be there.
    fn gets(&mut self) -> Option<u64> {
        let key = &self.key;
        let from = self.model.history(self.writer, self.k).acked();
        let item = self.hand.op("gets", key, |c| c.gets(key))?;
        self.hand.tally.count("reads");
        self.judge(from, item.as_ref(), "own gets");
        item.and_then(|i| i.cas)
    }

    fn cas(&mut self, old_tokens: &mut Vec<OldToken>) {
        let Some(token) = self.gets() else { return };
        let key = &self.key;
        if self.hand.rng.percent(20) {
            old_tokens.push((self.k, token, self.model.history(self.writer, self.k).acked()));
        }
        let (content, exptime) = self.hand.content(key);
        let version = self.begin("cas", Some(content.clone()));
        match self.hand.op("cas", key, |c| c.cas(key, content.flags, exptime, &content.bytes, token)) {
            Some(Stored::Stored) => self.acknowledge(version),
            Some(Stored::Exists) => {
                // Right when the leader has changed since; counted.
                self.hand.tally.count("cas refused though nobody wrote");
                self.model.history(self.writer, self.k).refuse(version);
            }
            Some(other) => self.hand.violation(format!("LOST: cas {key} answered {other:?}")),
            None => {}
        }
    }

    fn overtake_a_token(&mut self) {
        let Some(token) = self.gets() else { return };
        if self.store("set", "") {
            self.use_old(token);
        }
    }

    fn use_one_of(&mut self, old_tokens: &mut Vec<OldToken>) {
        let Some(last) = old_tokens.len().checked_sub(1) else { return };
        let (k, token, taken) = old_tokens.swap_remove(self.hand.rng.below(last + 1));
        let overtaken = {
            let history = self.model.history(self.writer, k);
            history.certain() && history.acked() > taken && history.last().is_some()
        };
        if overtaken {
            Register::new(self.hand, self.model, self.writer, k).use_old(token);
        }
    }

    /// A token that a later acknowledged write has made worthless must not win.
    fn use_old(&mut self, token: u64) {
        let key = &self.key;
        let (content, exptime) = self.hand.content(key);
        let version = self.begin("cas", Some(content.clone()));
        self.hand.tally.count("old cas tokens tried");
        match self.hand.op("cas", key, |c| c.cas(key, content.flags, exptime, &content.bytes, token)) {
            Some(Stored::Exists) => self.model.history(self.writer, self.k).refuse(version),
            Some(Stored::Stored) => {
                self.acknowledge(version);
                self.hand.violation(format!("OLD TOKEN WON: cas {key} with {token}, taken before a later write"));
            }
            Some(other) => self.hand.violation(format!("LOST: cas {key} answered {other:?}")),
            None => {}
        }
    }

    /// A write without an answer, and a read behind it in the same breath.
    fn set_and_read(&mut self) {
        let key = &self.key;
        let (content, exptime) = self.hand.content(key);
        let version = self.begin("set noreply", Some(content.clone()));
        let mut bytes = storage("set", key, content.flags, exptime, &content.bytes, " noreply");
        bytes.extend_from_slice(format!("get {key}\r\n").as_bytes());
        let answer = self.hand.op("set noreply + get", key, |c| c.send(&bytes).and_then(|()| c.values()));
        if let Some(mut items) = answer {
            let item = items.pop();
            if self.judge(version, item.as_ref(), "get behind own noreply set") {
                self.acknowledge(version);
            }
        }
    }

    fn read(&mut self) {
        let key = &self.key;
        let from = self.model.history(self.writer, self.k).acked();
        if let Some(item) = self.hand.op("get", key, |c| c.get(key)) {
            self.hand.tally.count("reads");
            self.judge(from, item.as_ref(), "own get");
        }
    }
}
