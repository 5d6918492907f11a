//! What clients asked and were told, and whether one memcached could have said it: a search for an
//! order of the commands that keeps what happened before what (the guarantees G3 and G5 in one).

use std::collections::BTreeMap;

use crate::proxy::handles::{ClientId, ClientKey};

use super::node::Mark;
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
    /// `mg` with the value.
    Mg,
    /// With `N`: makes an item that somebody is told to compute.
    Vivify,
    /// With `R`: tells somebody to recompute what expires before long.
    Recache,
    /// With `T`.
    MgTouch,
    Ms(&'static str),
    MsAdd(&'static str),
    MsAppend(&'static str),
    MsCas(&'static str),
    Ma,
    /// With `N` and `J`.
    MaMake,
    Md,
    /// With `I`.
    Invalidate,
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
    /// What is marked stale, or about to be recomputed, may be gone at any moment.
    pub(super) marked_may_go: bool,
    entries: Vec<Entry>,
    clock: usize,
}

/// The item of the one true memcached: value, which write it is of, marks, exptime.
type Truth = Option<(String, usize, Mark, u32)>;

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
        History {
            clients,
            pipelined: false,
            marked_may_go: false,
            item: item.map(str::to_owned),
            entries: Vec::new(),
            clock: 0,
        }
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
        let meta = |flags: &str, v: &str| format!("ms {KEY} {}{flags}\r\n{v}\r\n", v.len());
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
            Req::Mg => format!("mg {KEY} v\r\n"),
            Req::Vivify => format!("mg {KEY} v N700\r\n"),
            Req::Recache => format!("mg {KEY} R1000 v\r\n"),
            Req::MgTouch => format!("mg {KEY} v T800\r\n"),
            Req::Ms(v) => meta("", v),
            Req::MsAdd(v) => meta(" ME", v),
            Req::MsAppend(v) => meta(" MA", v),
            Req::MsCas(v) => meta(&format!(" C{token}"), v),
            Req::Ma => format!("ma {KEY} v\r\n"),
            Req::MaMake => format!("ma {KEY} N0 J40 v\r\n"),
            Req::Md => format!("md {KEY}\r\n"),
            Req::Invalidate => format!("md {KEY} I\r\n"),
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
            } else if text.starts_with("VA ") {
                let value = text.find('\n').map_or(0, |e| e + 1);
                text[value..].find('\n').map(|e| value + e + 1)
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
        let truth = self.item.as_ref().map(|v| (v.clone(), 0, Mark::default(), 0));
        let all = Told { entries: &self.entries, marked_may_go: self.marked_may_go };
        search(&all, 0, truth, &BTreeMap::new(), last, 1)
    }
}

fn failed(entry: &Entry) -> bool {
    entry.told.as_ref().is_none_or(|(_, t)| t.starts_with("SERVER_ERROR"))
}

struct Told<'a> {
    entries: &'a [Entry],
    marked_may_go: bool,
}

fn search(
    told: &Told<'_>,
    done: u32,
    truth: Truth,
    tokens: &BTreeMap<u64, usize>,
    last: Option<Option<&str>>,
    write: usize,
) -> bool {
    let all = told.entries;
    if told.marked_may_go
        && truth.as_ref().is_some_and(|(_, _, mark, _)| mark.is_held_back())
        && search(told, done, None, tokens, last, write)
    {
        return true;
    }
    let open: Vec<usize> = (0..all.len()).filter(|i| done & (1 << i) == 0).collect();
    let end = last.is_none_or(|l| l == truth.as_ref().map(|(v, ..)| v.as_str()));
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
        let written =
            (0..all.len()).any(|o| done & (1 << o) != 0 && !matches!(all[o].req, Req::Get | Req::Gets | Req::Mg));
        if !first || (entry.client == ADOPTION && written) {
            continue;
        }
        let (says, next) = truth_says(entry, &truth, tokens, write);
        let answer = entry.told.as_ref().map_or("", |(_, t)| t.as_str());
        let exists = answer == "EXISTS" || answer == "EX";
        let fits = failed(entry)
            || answer == says
            || (matches!(entry.req, Req::Cas(_) | Req::MsCas(_)) && exists)
            || (entry.req == Req::Gets && same_value(answer, &says));
        if !fits {
            continue;
        }
        let mut tokens = tokens.clone();
        if let (Req::Gets, Some((_, version, ..)), Some(token)) = (entry.req, &truth, token_of(answer)) {
            tokens.insert(token.parse().unwrap(), *version);
        }
        // EXISTS is always a right answer to cas; then nothing was stored.
        let next = if exists { truth.clone() } else { next };
        if search(told, done | (1 << i), next, &tokens, last, write + 1) {
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
    let becomes = |says: &str, value: String| (says.to_owned(), Some((value, write, Mark::default(), 0)));
    let number = truth.as_ref().and_then(|(v, ..)| v.parse::<u64>().ok());
    // As `mg` shows what there is then; `due`: it is to be recomputed.
    let looked = |value: &str, version: usize, mut mark: Mark, exptime: u32, due: bool| {
        let says = format!("VA {}{}\r\n{value}", value.len(), mark.look(due));
        (says.trim_end().to_owned(), Some((value.to_owned(), version, mark, exptime)))
    };
    match (entry.req, truth) {
        (Req::Get | Req::Gets | Req::Gat, None) => stays("END"),
        (Req::Gat, Some((v, version, mark, _))) => {
            (format!("VALUE {KEY} 0 {}\r\n{v}\r\nEND", v.len()), Some((v.clone(), *version, *mark, 900)))
        }
        (Req::Touch, Some((v, version, mark, _))) => ("TOUCHED".to_owned(), Some((v.clone(), *version, *mark, 800))),
        (Req::Mg | Req::MgTouch | Req::Recache, None) => stays("EN"),
        (Req::Vivify, None) => looked("", write, Mark::default(), 700, true),
        (Req::Mg | Req::Vivify, Some((v, version, mark, exptime))) => looked(v, *version, *mark, *exptime, false),
        (Req::MgTouch, Some((v, version, mark, _))) => looked(v, *version, *mark, 800, false),
        (Req::Recache, Some((v, version, mark, exptime))) => {
            looked(v, *version, *mark, *exptime, *exptime != 0 && *exptime < 1000)
        }
        (Req::MsAdd(v), None) | (Req::Ms(v), _) => becomes("HD", v.to_owned()),
        (Req::MsAdd(_), Some(_)) | (Req::MsAppend(_), None) => stays("NS"),
        (Req::MsAppend(v), Some((old, ..))) => becomes("HD", format!("{old}{v}")),
        (Req::MsCas(_) | Req::Ma | Req::Md | Req::Invalidate, None) => stays("NF"),
        (Req::MsCas(v), Some((_, version, ..))) => match tokens.get(&entry.token) == Some(version) {
            true => becomes("HD", v.to_owned()),
            false => stays("EX"),
        },
        (Req::MaMake, None) => becomes("VA 2\r\n40", "40".to_owned()),
        (Req::Ma | Req::MaMake, Some(_)) => match number {
            Some(n) => becomes(&format!("VA {}\r\n{}", (n + 1).to_string().len(), n + 1), (n + 1).to_string()),
            None => stays("CLIENT_ERROR cannot increment or decrement non-numeric value"),
        },
        (Req::Md, Some(_)) => ("HD".to_owned(), None),
        (Req::Invalidate, Some((v, _, _, exptime))) => {
            ("HD".to_owned(), Some((v.clone(), write, Mark { stale: true, sent: false }, *exptime)))
        }
        (Req::Get | Req::Gets, Some((v, ..))) => stays(&format!("VALUE {KEY} 0 {}\r\n{v}\r\nEND", v.len())),
        (Req::Add(v), None) | (Req::Replace(v), Some(_)) | (Req::Set(v), _) => becomes("STORED", v.to_owned()),
        (Req::Add(_), Some(_)) | (Req::Replace(_) | Req::Append(_) | Req::Prepend(_), None) => stays("NOT_STORED"),
        (Req::Append(v), Some((old, ..))) => becomes("STORED", format!("{old}{v}")),
        (Req::Prepend(v), Some((old, ..))) => becomes("STORED", format!("{v}{old}")),
        (Req::Cas(_) | Req::Incr | Req::Decr | Req::Delete | Req::Touch, None) => stays("NOT_FOUND"),
        (Req::Cas(v), Some((_, version, ..))) => {
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
    }
}
