//! What clients asked and were told, and whether one memcached could have said it: a search for an
//! order of the commands that keeps what happened before what (the guarantees G3 and G5 in one).

use std::collections::BTreeMap;

use crate::proxy::handles::{ClientId, ClientKey};

use super::node::{Mark, is_held_back};
use super::spoken::{self, Spoken};
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
    /// Begins with this where there is nothing (binary alone, as the next).
    IncrFrom(u64),
    /// If it has the last token seen.
    DeleteCas,
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
    /// The token that came with it, or 0.
    given: u64,
}

#[derive(Debug)]
pub(super) struct History {
    pub(super) clients: Vec<Client>,
    /// Commands go out without waiting for the answers to earlier ones.
    pub(super) pipelined: bool,
    pub(super) spoken: Spoken,
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
            spoken: Spoken::Classic,
            marked_may_go: false,
            item: item.map(str::to_owned),
            entries: Vec::new(),
            clock: 0,
        }
    }

    /// The item is only on the filling follower, and is to be adopted: as if somebody added it
    /// before any client wrote the key, or never.
    pub(super) fn may_adopt(&mut self, value: &'static str) {
        self.entries.push(Entry { client: ADOPTION, req: Req::Add(value), token: 0, asked: 0, told: None, given: 0 });
    }

    pub(super) fn adopted(&mut self) {
        self.clock += 1;
        let adoption = self.entries.iter_mut().find(|e| e.client == ADOPTION).unwrap();
        adoption.told = Some((self.clock, "STORED".to_owned()));
    }

    /// A client of another proxy reads the key, all at once.
    pub(super) fn reads_elsewhere(&mut self, value: Option<&str>) {
        let words = value.map_or("END".to_owned(), |v| format!("VALUE {KEY} 0 {}\r\n{v}\r\nEND", v.len()));
        let (asked, told) = (self.clock + 1, Some((self.clock + 2, words)));
        self.clock += 2;
        self.entries.push(Entry { client: ADOPTION - 1, req: Req::Get, token: 0, asked, told, given: 0 });
    }

    /// Clients that may send.
    pub(super) fn ready(&self) -> impl Iterator<Item = usize> + '_ {
        let may = |c: &Client| c.sent < c.program.len() && (self.pipelined || c.sent == c.answered);
        self.clients.iter().enumerate().filter(move |(_, c)| may(c)).map(|(at, _)| at)
    }

    pub(super) fn send(&mut self, at: usize) -> Vec<u8> {
        let client = &mut self.clients[at];
        let (req, token) = (client.program[client.sent], client.token);
        client.sent += 1;
        self.clock += 1;
        self.entries.push(Entry { client: at, req, token, asked: self.clock, told: None, given: 0 });
        spoken::ask(self.spoken, req, token)
    }

    pub(super) fn answered(&mut self, worker: usize, id: ClientId, bytes: &[u8]) {
        let of = |c: &Client| c.worker == worker && c.key.is_some_and(|k| k.id == id);
        let Some(at) = self.clients.iter().position(of) else { return };
        self.clients[at].input.extend_from_slice(bytes);
        loop {
            if self.clients[at].input.is_empty() {
                return;
            }
            let open = self.entries.iter_mut().find(|e| e.client == at && e.told.is_none());
            let entry = open.expect("an answer without a question");
            let Some((words, len, token)) = spoken::told(self.spoken, entry.req, &self.clients[at].input) else {
                return;
            };
            self.clients[at].input.drain(..len);
            self.clock += 1;
            entry.told = Some((self.clock, words));
            entry.given = token;
            let client = &mut self.clients[at];
            client.answered += 1;
            if token != 0 {
                client.token = token;
            }
        }
    }

    pub(super) fn unanswered(&self) -> bool {
        self.entries.iter().any(|e| e.told.is_none() && e.client != ADOPTION)
    }

    /// What came of the request of this number.
    pub(super) fn told(&self, number: usize) -> Option<&str> {
        self.entries[number].told.as_ref().map(|(_, words)| words.as_str())
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
        && truth.as_ref().is_some_and(|(_, _, mark, _)| is_held_back(*mark))
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
            || (matches!(entry.req, Req::Cas(_) | Req::MsCas(_) | Req::DeleteCas) && exists)
            || (entry.req == Req::Gets && same_value(answer, &says));
        if !fits {
            continue;
        }
        let mut tokens = tokens.clone();
        // EXISTS is always a right answer to cas; then nothing was stored.
        let next = if exists { truth.clone() } else { next };
        if let (Some((_, version, ..)), 1..) = (&next, entry.given) {
            tokens.insert(entry.given, *version);
        }
        if search(told, done | (1 << i), next, &tokens, last, write + 1) {
            return true;
        }
    }
    false
}

fn same_value(told: &str, says: &str) -> bool {
    told == says || (told.starts_with("VALUE") && told.split("\r\n").nth(1) == says.split("\r\n").nth(1))
}

fn truth_says(entry: &Entry, truth: &Truth, tokens: &BTreeMap<u64, usize>, write: usize) -> (String, Truth) {
    let stays = |says: &str| (says.to_owned(), truth.clone());
    let becomes = |says: &str, value: String| (says.to_owned(), Some((value, write, Mark::default(), 0)));
    let number = truth.as_ref().and_then(|(v, ..)| v.trim_end().parse::<u64>().ok());
    // As `mg` shows what there is then; `due`: it is to be recomputed.
    let looked = |value: &str, version: usize, mut mark: Mark, exptime: u32, due: bool| {
        let says = format!("VA {}{}\r\n{value}", value.len(), mark.look(due));
        (says.trim_end().to_owned(), Some((value.to_owned(), version, mark, exptime)))
    };
    // A number that is no longer than what stands there is written over it: marks stay.
    let counted = |says: &str, number: u64| {
        let (old, _, mark, exptime) = truth.as_ref().expect("there is something to count on");
        let value = format!("{number:<width$}", width = old.len());
        let mark = if value.len() > old.len() { Mark::default() } else { *mark };
        (says.to_owned(), Some((value, write, mark, *exptime)))
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
            Some(n) => counted(&format!("VA {}\r\n{}", (n + 1).to_string().len(), n + 1), n + 1),
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
        (Req::IncrFrom(initial), None) => becomes(&initial.to_string(), initial.to_string()),
        (Req::Cas(_) | Req::Incr | Req::Decr | Req::Delete | Req::DeleteCas | Req::Touch, None) => stays("NOT_FOUND"),
        (Req::Cas(v), Some((_, version, ..))) => {
            if tokens.get(&entry.token) == Some(version) {
                becomes("STORED", v.to_owned())
            } else {
                stays("EXISTS")
            }
        }
        (Req::DeleteCas, Some((_, version, ..))) => match tokens.get(&entry.token) == Some(version) {
            true => ("DELETED".to_owned(), None),
            false => stays("EXISTS"),
        },
        (Req::Incr | Req::IncrFrom(_), Some(_)) => match number {
            Some(n) => counted(&(n + 1).to_string(), n + 1),
            None => stays("CLIENT_ERROR cannot increment or decrement non-numeric value"),
        },
        (Req::Decr, Some(_)) => {
            let less = number.unwrap_or(0).saturating_sub(1);
            counted(&less.to_string(), less)
        }
        (Req::Delete, Some(_)) => ("DELETED".to_owned(), None),
    }
}
