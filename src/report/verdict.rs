//! The overall state in one word, why, and what to do next: the head of `resilver status` and of
//! the admin page. Pure.

use std::collections::BTreeSet;

use super::Report;
use super::figures::{counted, short, some_of, time};
use super::names::{LOST_ITEMS, STATE};
use super::seen::{Named, Seen};

/// This many servers are named in one sentence.
const NAMED: usize = 4;

/// The whole in one word, from the worst to the best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Word {
    /// Some keys are refused: no copy of them is reachable.
    Dark,
    /// Some items have one copy.
    Degraded,
    /// They do, and are being copied.
    Recovering,
    /// Both servers of each pair are in use, and it is not known that they hold the same.
    Incomplete,
    /// Every item has two copies.
    Mirrored,
}

impl Word {
    pub fn text(self) -> &'static str {
        match self {
            Word::Dark => "DARK",
            Word::Degraded => "DEGRADED",
            Word::Recovering => "RECOVERING",
            Word::Incomplete => "INCOMPLETE",
            Word::Mirrored => "MIRRORED",
        }
    }

    /// As Nagios reads it: 0 good, 1 warning, 2 critical.
    pub fn exit_code(self) -> u8 {
        match self {
            Word::Mirrored => 0,
            Word::Degraded | Word::Recovering | Word::Incomplete => 1,
            Word::Dark => 2,
        }
    }

    fn of_pair(state: &str) -> Word {
        match state {
            "mirrored" => Word::Mirrored,
            "incomplete" => Word::Incomplete,
            "recovering" => Word::Recovering,
            "degraded" => Word::Degraded,
            // A word that this version does not know claims nothing.
            _ => Word::Dark,
        }
    }
}

/// Of several pools the worst; `None`: one of them says nothing, and none is known to refuse keys.
pub fn worst(words: impl IntoIterator<Item = Option<Word>>) -> Option<Word> {
    let (known, unknown): (Vec<_>, Vec<_>) = words.into_iter().partition(Option::is_some);
    known.into_iter().flatten().min().filter(|word| unknown.is_empty() || *word == Word::Dark)
}

/// As in a list of pools.
pub fn small(word: Option<Word>) -> String {
    word.map_or("unknown", Word::text).to_lowercase()
}

impl Report {
    /// The state in one line.
    pub fn in_one_line(&self) -> String {
        self.seen().map_or(String::new(), |seen| {
            let clients = seen.counters.number("curr_connections");
            format!("{}: {}; {}", seen.word().text(), seen.why(), counted(clients, "client", "clients"))
        })
    }
}

impl Seen {
    /// The pairs' worst, and never better than what the proxy says of the whole.
    pub fn word(&self) -> Word {
        let most = if self.mirrored { Word::Mirrored } else { Word::Incomplete };
        self.pairs.iter().map(|pair| Word::of_pair(pair.fields.text(STATE))).fold(most, Word::min)
    }

    /// A sentence.
    pub fn why(&self) -> String {
        // The subject and the verb of a sentence about this many of them.
        let all = counted(self.pairs.len() as u64, "pair", "pairs");
        let pairs =
            |some: usize, has: &str, have: &str| format!("{some} of {all} {}", if some == 1 { has } else { have });
        let of = |state: &str| self.pairs.iter().filter(|pair| pair.fields.text(STATE) == state).count();
        match self.word() {
            Word::Mirrored => "every item has two copies".to_owned(),
            Word::Dark => {
                format!("{}: no copy is reachable", pairs(of("dark"), "refuses its keys", "refuse their keys"))
            }
            Word::Degraded => pairs(of("degraded"), "has one copy", "have one copy"),
            Word::Recovering => {
                let recovering = || self.pairs.iter().filter(|pair| pair.fields.text(STATE) == "recovering");
                match recovering().filter(|pair| pair.fields.text("reason") != "recording").count() {
                    0 => pairs(
                        of("recovering"),
                        "is being recorded on its servers",
                        "are being recorded on their servers",
                    ),
                    filled => pairs(
                        filled,
                        "has one copy, and its second is being filled",
                        "have one copy, and their second is being filled",
                    ),
                }
            }
            Word::Incomplete => "it is not known that every item has two copies".to_owned(),
        }
    }

    /// How long it has been so, in seconds; `None`: not known.
    pub fn since(&self) -> Option<u64> {
        let word = self.word();
        let of = self.pairs.iter().filter(|pair| Word::of_pair(pair.fields.text(STATE)) == word);
        let times = of.map(|pair| pair.fields.number("for_seconds"));
        if word == Word::Mirrored { times.min() } else { times.max() }
    }

    /// A server may be restarted, and no item is lost with its memory. (A proxy that has not
    /// noticed the last restart yet says so too: `resilver wait --mirrored` asks the servers as
    /// well.)
    pub fn one_may_restart(&self) -> bool {
        self.word() == Word::Mirrored
    }

    /// What was lost of late with both copies. Its pairs are well again by now, perhaps.
    pub fn lost_items(&self) -> Option<String> {
        let lost = self.rest().behind(LOST_ITEMS);
        let pairs = |count: u64| counted(count, "pair", "pairs");
        let empty = match lost.number("pairs_empty") {
            0 => None,
            count => Some(format!("{} began empty: what they held is lost", pairs(count))),
        };
        let keys = match (lost.number("keys"), lost.number("keys_unknown")) {
            (0, _) => "keys that nobody knows".to_owned(),
            (keys, 0) => counted(keys, "key", "keys"),
            (keys, _) => format!("{} and more that nobody knows", counted(keys, "key", "keys")),
        };
        let partial = match lost.number("pairs_partial") {
            0 => None,
            count => Some(format!("{} went on without {keys}, of which no copy was left", pairs(count))),
        };
        let told: Vec<String> = empty.into_iter().chain(partial).collect();
        let ago = time(lost.number("seconds_ago"));
        (!told.is_empty()).then(|| format!("{} (last {ago} ago)", told.join("; ")))
    }

    /// Of the comparing under way, or the last one.
    pub fn verified(&self) -> Option<String> {
        let count = |field| self.verify(field).parse().unwrap_or(0);
        let mut said = match self.verify("state") {
            "none" | "" => return None,
            "running" => "running".to_owned(),
            ended => format!("{ended}, {} ago", time(count("ended_seconds_ago"))),
        };
        let (checked, different) = (count("checked"), count("different"));
        let keys = if checked == 1 { "key" } else { "keys" };
        said += &format!(": {} {keys} compared, {different} differed", short(checked));
        if different > 0 {
            said += &format!(": {} mended, {} not", count("repaired"), count("failed"));
        }
        if count("failed") > 0 {
            said += " (a server that is full refuses or evicts them: more memory, -m)";
        }
        if count("pairs_left") > 0 {
            said += &format!("; {} left out", counted(count("pairs_left"), "pair", "pairs"));
        }
        Some(said)
    }

    /// The servers that hold the only copy of items, and of how many pairs.
    pub fn alone(&self) -> Vec<(&str, usize)> {
        let mut alone: Vec<(&str, usize)> = Vec::new();
        let one_copy = |pair: &&Named| matches!(pair.fields.text(STATE), "degraded" | "recovering");
        for pair in self.pairs.iter().filter(one_copy) {
            let leader = pair.fields.text("leader");
            match alone.iter_mut().find(|(name, _)| *name == leader) {
                Some((_, pairs)) => *pairs += 1,
                None => alone.push((leader, 1)),
            }
        }
        alone
    }

    /// Servers of dark pairs: those that are lost, and those that answer, which could lead with
    /// what they hold.
    fn of_dark(&self) -> (Vec<&str>, Vec<&str>) {
        let dark = self.pairs.iter().filter(|pair| pair.fields.text(STATE) == "dark");
        let names: BTreeSet<&str> = dark.flat_map(|pair| pair.name.split('|')).collect();
        // One that was told of without a state is neither.
        let of = self.servers.iter().filter(|server| names.contains(server.name.as_str()) && !state(server).is_empty());
        let (lost, up): (Vec<&Named>, Vec<&Named>) = of.partition(|server| is_lost(server));
        (names_of(&lost), names_of(&up))
    }

    fn next_where_dark(&self, again: &str) -> String {
        let (lost, up) = self.of_dark();
        let first = match lost.as_slice() {
            [] => "wait".to_owned(),
            lost => format!(
                "bring back {}: resume it, or mend the way to it, where its process still lives (a memcached that is \
                 started anew has nothing)",
                some_of(lost, NAMED)
            ),
        };
        match up.first() {
            Some(who) => format!("{first}; or give up the writes that {who} missed: resilver lead {who} --yes{again}"),
            None => first,
        }
    }

    /// What to do. `again`: what stands behind each command of `resilver` that is named, so that it
    /// is for this proxy.
    pub fn next(&self, again: &str) -> String {
        let any = |reason: &str| {
            let shows = |named: &&Named| named.fields.text("reason") == reason;
            self.pairs.iter().chain(&self.servers).find(shows)
        };
        if any("former_active").is_some() {
            return format!(
                "wait until the servers have closed what the former active proxy had, or, where its process is surely \
                 no more: resilver gone{again}"
            );
        }
        if let Some(named) = any("foreign_session") {
            return format!("another proxy works on {}: stop one of the two", named.name);
        }
        if any("no_backup").is_some() {
            return "no backups (-b) are given: nothing is held twice, and nothing heals".to_owned();
        }
        if any("resync_off").is_some() || self.mode == "off" {
            return "--resync=off: servers are taken at their word, and never refilled".to_owned();
        }
        let lost: Vec<&Named> = self.servers.iter().filter(|server| is_lost(server)).collect();
        let refilled = match self.mode.as_str() {
            "manual" => format!("then: resilver resync{again}"),
            _ if lost.len() > 1 => "they are refilled by themselves".to_owned(),
            _ => "it is refilled by itself".to_owned(),
        };
        // Its process may live.
        let full: Vec<&Named> =
            lost.iter().copied().filter(|server| server.fields.text("reason") == "connection_limit").collect();
        match self.word() {
            _ if !full.is_empty() => format!(
                "{} {} no more connections (memcached's -c): close others, or start the proxy with a lower -i; {refilled}",
                some_of(&names_of(&full), NAMED),
                if full.len() == 1 { "takes" } else { "take" }
            ),
            Word::Mirrored => {
                format!("nothing; before and after a server is restarted: resilver wait --mirrored{again}")
            }
            Word::Dark => self.next_where_dark(again),
            _ if !lost.is_empty() => format!("{}; {refilled}", next_where_lost(&lost)),
            _ if any("copies_missing").is_some() => {
                "a server refuses or evicts items: give it more memory (-m); they are tried again".to_owned()
            }
            _ if any("cannot_enumerate").is_some() => {
                "a server cannot list its keys: start it with the LRU crawler on (memcached's default)".to_owned()
            }
            Word::Degraded if self.mode == "manual" => format!("resilver resync{again}"),
            _ => "wait; it heals by itself".to_owned(),
        }
    }
}

/// What is done to servers that are lost: one that hangs may have its memory.
fn next_where_lost(lost: &[&Named]) -> String {
    let hangs = |server: &&Named| server.fields.text("reason") == "timeout";
    let (hang, ended): (Vec<&Named>, Vec<&Named>) = lost.iter().copied().partition(hangs);
    let start = format!("start memcached on {}", some_of(&names_of(&ended), NAMED));
    if hang.is_empty() {
        return start;
    }
    let resume = format!(
        "resume or restart memcached on {}, or mend the way to {}",
        some_of(&names_of(&hang), NAMED),
        if hang.len() == 1 { "it: it does not answer" } else { "them: they do not answer" }
    );
    if ended.is_empty() { resume } else { format!("{resume}; {start}") }
}

fn state(server: &Named) -> &str {
    server.fields.text(STATE)
}

fn is_lost(server: &Named) -> bool {
    state(server) == "lost"
}

fn names_of<'a>(servers: &[&'a Named]) -> Vec<&'a str> {
    servers.iter().map(|server| server.name.as_str()).collect()
}
