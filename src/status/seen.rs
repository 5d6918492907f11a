//! What the proxy's statistics say, taken apart by the names that [`crate::report::lines`] prints.
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::report::lines::{MIRRORED, MODE, OBSTACLE, PLACE, STATE};

/// Of the JSON: goes up when a name changes its meaning or goes; new names may come at any time.
const JSON_VERSION: u32 = 1;

type Stats = Vec<(String, String)>;

/// The whole in one word, from the worst to the best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Word {
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
    pub(super) fn text(self) -> &'static str {
        match self {
            Word::Dark => "DARK",
            Word::Degraded => "DEGRADED",
            Word::Recovering => "RECOVERING",
            Word::Incomplete => "INCOMPLETE",
            Word::Mirrored => "MIRRORED",
        }
    }

    /// As Nagios reads it: 0 good, 1 warning, 2 critical.
    pub(super) fn exit_code(self) -> u8 {
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

/// The fields behind one server's or pair's name.
#[derive(Default, Debug)]
pub(super) struct Fields(BTreeMap<String, String>);

impl Fields {
    pub(super) fn of(stats: Stats) -> Fields {
        Fields(stats.into_iter().collect())
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }

    pub(super) fn time(&self) -> Duration {
        Duration::from_secs(self.number("for_seconds"))
    }

    /// Numbers as numbers.
    fn json(&self) -> BTreeMap<&str, Value> {
        let value = |text: &String| text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number));
        self.0.iter().map(|(name, text)| (name.as_str(), value(text))).collect()
    }
}

/// A server, or a pair.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) fields: Fields,
}

impl Named {
    /// Puts a field where it belongs; names come in one piece each.
    fn put(list: &mut Vec<Named>, name: &str, field: &str, value: &str) {
        let at = list.iter().rposition(|named| named.name == name).unwrap_or_else(|| {
            list.push(Named { name: name.to_owned(), fields: Fields::default() });
            list.len() - 1
        });
        list[at].fields.0.insert(field.to_owned(), value.to_owned());
    }

    fn json(&self, called: &str) -> Value {
        let mut fields = self.fields.json();
        fields.insert(called, json!(self.name));
        json!(fields)
    }
}

/// What the proxy says of itself.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) mode: String,
    mirrored: bool,
    /// Why it is not, a sentence each.
    pub(super) obstacles: Vec<String>,
    /// Those that can hold a key.
    pub(super) pairs: Vec<Named>,
    /// Those that cannot, and are left out.
    pub(super) unused: u64,
    pub(super) servers: Vec<Named>,
    /// `stats`.
    pub(super) counters: Fields,
    /// What `resync status` says of the whole.
    rest: Fields,
}

impl Seen {
    /// From the answers to `resync status`, `stats` and `stats servers`.
    pub(super) fn of(answers: &[Stats]) -> Option<Seen> {
        let [status, counters, servers] = answers else { return None };
        let mut seen = Seen {
            mode: String::new(),
            mirrored: false,
            obstacles: Vec::new(),
            pairs: Vec::new(),
            unused: 0,
            servers: Vec::new(),
            counters: Fields::of(counters.clone()),
            rest: Fields::default(),
        };
        for (name, value) in status {
            match name.split_once(':') {
                _ if name == MODE => seen.mode.clone_from(value),
                _ if name == MIRRORED => seen.mirrored = value == "1",
                _ if name.starts_with(OBSTACLE) => seen.obstacles.push(value.clone()),
                Some((kind @ ("pair" | "node"), rest)) => {
                    let (name, field) = rest.rsplit_once(':')?;
                    let list = if kind == "pair" { &mut seen.pairs } else { &mut seen.servers };
                    Named::put(list, name, field, value);
                }
                _ => {
                    seen.rest.0.insert(name.clone(), value.clone());
                }
            }
        }
        for (name, value) in servers {
            let (name, field) = name.rsplit_once(':')?;
            // The state that `resync status` says was asked for first, with the pairs'.
            if field != STATE && field != "reason" {
                Named::put(&mut seen.servers, name, field, value);
            }
        }
        seen.servers.retain(|server| !server.fields.text(PLACE).is_empty());
        seen.unused = seen.rest.number("pairs_unused");
        (!seen.mode.is_empty()).then_some(seen)
    }

    /// The pairs' worst, and never better than what the proxy says of the whole.
    pub(super) fn word(&self) -> Word {
        let most = if self.mirrored { Word::Mirrored } else { Word::Incomplete };
        self.pairs.iter().map(|pair| Word::of_pair(pair.fields.text(STATE))).fold(most, Word::min)
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "version": JSON_VERSION,
            "word": self.word().text().to_lowercase(),
            "mirrored": self.mirrored,
            "mode": self.mode,
            "obstacles": self.obstacles,
            "pairs": self.pairs.iter().map(|pair| pair.json("pair")).collect::<Vec<_>>(),
            "servers": self.servers.iter().map(|server| server.json("server")).collect::<Vec<_>>(),
            "resync": self.rest.json(),
            "counters": self.counters.json(),
        })
    }
}
