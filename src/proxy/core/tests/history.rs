//! What clients asked and were told, and whether one memcached could have said it: a search for an
//! order of the commands that keeps what happened before what (the guarantees G3 and G5 in one).

use std::collections::BTreeMap;

use crate::proxy::handles::{ClientId, ClientKey};

use super::world::KEY;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Req {
    Get,
    /// The last token seen is what this client's `Cas` uses.
    Gets,
    Gat,
    Set(&'static str),
    Add(&'static str),
    Replace(&'static str),
    Append(&'static str),
    Prepend(&'static str),
    Cas(&'static str),
    Incr,
    Decr,
    Delete,
    Touch,
}

#[derive(Debug)]
pub(super) struct Client {
    program: Vec<Req>,
    sent: usize,
    answered: usize,
    token: u64,
    pub(super) key: Option<ClientKey>,
    worker: usize,
    input: Vec<u8>,
}

/// Stands for the control plane.
const ADOPTION: usize = usize::MAX;

#[derive(Clone, Debug)]
struct Entry {
    client: usize,
    req: Req,
    token: u64,
    asked: usize,
    told: Option<(usize, String)>,
}

#[derive(Debug)]
pub(super) struct History {
    pub(super) clients: Vec<Client>,
    /// Commands go out without waiting for the answers to earlier ones.
    pub(super) pipelined: bool,
    item: Option<String>,
    entries: Vec<Entry>,
    clock: usize,
}

/// The item of the one true memcached: value, which write it is of, exptime.
type Truth = Option<(String, usize)>;

impl History {
    pub(super) fn new(programs: &[&[Req]], item: Option<&str>, workers: usize) -> History {
        let client = |(at, program): (usize, &&[Req])| Client {
            program: program.to_vec(),
            sent: 0,
            answered: 0,
            token: 0,
            key: None,
            worker: at % workers,
            input: Vec::new(),
        };
        let clients = programs.iter().enumerate().map(client).collect();
        History { clients, pipelined: false, item: item.map(str::to_owned), entries: Vec::new(), clock: 0 }
    }

    /// The item is only on the filling follower, and is to be adopted: as if somebody added it
    /// before any client wrote the key, or never.
    pub(super) fn may_adopt(&mut self, value: &'static str) {
        self.entries.push(Entry { client: ADOPTION, req: Req::Add(value), token: 0, asked: 0, told: None });
    }

    pub(super) fn adopted(&mut self) {
        self.clock += 1;
        let adoption = self.entries.iter_mut().find(|e| e.client == ADOPTION).unwrap();
        adoption.told = Some((self.clock, "STORED".to_owned()));
    }

    /// Clients that may send.
    pub(super) fn ready(&self) -> impl Iterator<Item = usize> + '_ {
        let may = |c: &Client| c.sent < c.program.len() && (self.pipelined || c.sent == c.answered);
        self.clients.iter().enumerate().filter(move |(_, c)| may(c)).map(|(at, _)| at)
    }

    pub(super) fn send(&mut self, at: usize) -> String {
        let client = &mut self.clients[at];
        let (req, token) = (client.program[client.sent], client.token);
        client.sent += 1;
        self.clock += 1;
        self.entries.push(Entry { client: at, req, token, asked: self.clock, told: None });
        let store = |verb: &str, v: &str| format!("{verb} {KEY} 0 0 {}\r\n{v}\r\n", v.len());
        match req {
            Req::Get => format!("get {KEY}\r\n"),
            Req::Gets => format!("gets {KEY}\r\n"),
            Req::Gat => format!("gat 900 {KEY}\r\n"),
            Req::Set(v) => store("set", v),
            Req::Add(v) => store("add", v),
            Req::Replace(v) => store("replace", v),
            Req::Append(v) => store("append", v),
            Req::Prepend(v) => store("prepend", v),
            Req::Cas(v) => format!("cas {KEY} 0 0 {} {token}\r\n{v}\r\n", v.len()),
            Req::Incr => format!("incr {KEY} 1\r\n"),
            Req::Decr => format!("decr {KEY} 1\r\n"),
            Req::Delete => format!("delete {KEY}\r\n"),
            Req::Touch => format!("touch {KEY} 800\r\n"),
        }
    }

    pub(super) fn answered(&mut self, worker: usize, id: ClientId, bytes: &[u8]) {
        let of = |c: &Client| c.worker == worker && c.key.is_some_and(|k| k.id == id);
        let Some(at) = self.clients.iter().position(of) else { return };
        self.clients[at].input.extend_from_slice(bytes);
        loop {
            let text = String::from_utf8(self.clients[at].input.clone()).unwrap();
            let len = if text.starts_with("VALUE ") {
                text.find("END\r\n").map(|e| e + 5)
            } else {
                text.find('\n').map(|e| e + 1)
            };
            let Some(len) = len else { return };
            self.clients[at].input.drain(..len);
            self.clock += 1;
            let clock = self.clock;
            let entry = self
                .entries
                .iter_mut()
                .find(|e| e.client == at && e.told.is_none())
                .expect("an answer without a question");
            entry.told = Some((clock, text[..len].trim_end().to_owned()));
            let client = &mut self.clients[at];
            client.answered += 1;
            if entry.req == Req::Gets
                && let Some(token) = token_of(&text[..len])
            {
                client.token = token.parse().unwrap();
            }
        }
    }

    pub(super) fn unanswered(&self) -> bool {
        self.entries.iter().any(|e| e.told.is_none() && e.client != ADOPTION)
    }

    pub(super) fn errors(&self) -> Option<&str> {
        self.entries.iter().filter_map(|e| e.told.as_ref()).map(|(_, t)| t.as_str()).find(|t| t.contains("ERROR"))
    }

    /// Whether one memcached could have told the clients this and hold `last` at the end (`None`:
    /// nobody knows what it holds).
    pub(super) fn is_possible(&self, last: Option<Option<&str>>) -> bool {
        let truth = self.item.as_ref().map(|v| (v.clone(), 0));
        search(&self.entries, 0, truth, &BTreeMap::new(), last, 1)
    }
}

fn failed(entry: &Entry) -> bool {
    entry.told.as_ref().is_none_or(|(_, t)| t.starts_with("SERVER_ERROR"))
}

fn search(
    all: &[Entry],
    done: u32,
    truth: Truth,
    tokens: &BTreeMap<u64, usize>,
    last: Option<Option<&str>>,
    write: usize,
) -> bool {
    let open: Vec<usize> = (0..all.len()).filter(|i| done & (1 << i) == 0).collect();
    let end = last.is_none_or(|l| l == truth.as_ref().map(|(v, _)| v.as_str()));
    if end && open.iter().all(|&i| failed(&all[i])) {
        return true;
    }
    for &i in &open {
        let entry = &all[i];
        // Nothing that was answered before this was asked may still be open, nor an earlier command
        // of the same client.
        let first = open.iter().all(|&o| {
            let earlier = !failed(&all[o]) && all[o].told.as_ref().is_some_and(|(t, _)| *t < entry.asked);
            o == i || !(earlier || (all[o].client == entry.client && o < i && !failed(&all[o])))
        });
        let written = (0..all.len()).any(|o| done & (1 << o) != 0 && !matches!(all[o].req, Req::Get | Req::Gets));
        if !first || (entry.client == ADOPTION && written) {
            continue;
        }
        let (says, next) = truth_says(entry, &truth, tokens, write);
        let told = entry.told.as_ref().map_or("", |(_, t)| t.as_str());
        let fits = failed(entry)
            || told == says
            || (matches!(entry.req, Req::Cas(_)) && told == "EXISTS")
            || (entry.req == Req::Gets && same_value(told, &says));
        if !fits {
            continue;
        }
        let mut tokens = tokens.clone();
        if let (Req::Gets, Some((_, version)), Some(token)) = (entry.req, &truth, token_of(told)) {
            tokens.insert(token.parse().unwrap(), *version);
        }
        // EXISTS is always a right answer to cas; then nothing was stored.
        let next = if told == "EXISTS" { truth.clone() } else { next };
        if search(all, done | (1 << i), next, &tokens, last, write + 1) {
            return true;
        }
    }
    false
}

/// The cas token of a value.
fn token_of(told: &str) -> Option<&str> {
    told.lines().next().filter(|l| l.starts_with("VALUE ")).and_then(|l| l.split(' ').nth(4))
}

fn same_value(told: &str, says: &str) -> bool {
    told == says || (told.starts_with("VALUE") && told.split("\r\n").nth(1) == says.split("\r\n").nth(1))
}

fn truth_says(entry: &Entry, truth: &Truth, tokens: &BTreeMap<u64, usize>, write: usize) -> (String, Truth) {
    let stays = |says: &str| (says.to_owned(), truth.clone());
    let becomes = |says: &str, value: String| (says.to_owned(), Some((value, write)));
    let number = truth.as_ref().and_then(|(v, _)| v.parse::<u64>().ok());
    match (entry.req, truth) {
        (Req::Get | Req::Gets | Req::Gat, None) => stays("END"),
        (Req::Get | Req::Gets | Req::Gat, Some((v, _))) => stays(&format!("VALUE {KEY} 0 {}\r\n{v}\r\nEND", v.len())),
        (Req::Add(v), None) | (Req::Replace(v), Some(_)) | (Req::Set(v), _) => becomes("STORED", v.to_owned()),
        (Req::Add(_), Some(_)) | (Req::Replace(_) | Req::Append(_) | Req::Prepend(_), None) => stays("NOT_STORED"),
        (Req::Append(v), Some((old, _))) => becomes("STORED", format!("{old}{v}")),
        (Req::Prepend(v), Some((old, _))) => becomes("STORED", format!("{v}{old}")),
        (Req::Cas(_) | Req::Incr | Req::Decr | Req::Delete | Req::Touch, None) => stays("NOT_FOUND"),
        (Req::Cas(v), Some((_, version))) => {
            if tokens.get(&entry.token) == Some(version) {
                becomes("STORED", v.to_owned())
            } else {
                stays("EXISTS")
            }
        }
        (Req::Incr, Some(_)) => match number {
            Some(n) => becomes(&(n + 1).to_string(), (n + 1).to_string()),
            None => stays("CLIENT_ERROR cannot increment or decrement non-numeric value"),
        },
        (Req::Decr, Some(_)) => becomes(
            &number.unwrap_or(0).saturating_sub(1).to_string(),
            number.unwrap_or(0).saturating_sub(1).to_string(),
        ),
        (Req::Delete, Some(_)) => ("DELETED".to_owned(), None),
        (Req::Touch, Some(_)) => stays("TOUCHED"),
    }
}
