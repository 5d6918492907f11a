//! What the proxy's statistics say, taken apart by the names that [`super::lines`] prints. The
//! commands make it from the text that they were sent, the admin listener from the lines
//! themselves: so both show the same. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::names::{MIRRORED, MODE, OBSTACLE, PLACE, STATE};
use crate::protocol::statistics::Stats;

/// The fields behind one server's or pair's name.
#[derive(Default, Debug)]
pub struct Fields(pub(super) BTreeMap<String, String>);

impl Fields {
    pub fn of(stats: Stats) -> Fields {
        Fields(stats.into_iter().collect())
    }

    /// Those whose names begin so, without that.
    pub fn behind(&self, prefix: &str) -> Fields {
        let field = |(name, value): (&String, &String)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone()));
        Fields(self.0.iter().filter_map(field).collect())
    }

    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }

    pub fn time(&self) -> Duration {
        Duration::from_secs(self.number("for_seconds"))
    }
}

/// A server, or a pair.
#[derive(Debug)]
pub struct Named {
    pub name: String,
    pub fields: Fields,
}

/// Servers or pairs under construction, in the order in which they were first told of.
#[derive(Default)]
struct List {
    all: Vec<Named>,
    /// There may be 16,384 pairs, and each is told of in several lines.
    places: HashMap<String, usize>,
}

impl List {
    fn put(&mut self, name: &str, field: &str, value: &str) {
        let at = self.places.get(name).copied().unwrap_or_else(|| {
            self.places.insert(name.to_owned(), self.all.len());
            self.all.push(Named { name: name.to_owned(), fields: Fields::default() });
            self.all.len() - 1
        });
        self.all[at].fields.0.insert(field.to_owned(), value.to_owned());
    }
}

/// What the proxy says of itself.
#[derive(Debug)]
pub struct Seen {
    pub mode: String,
    pub mirrored: bool,
    /// Why it is not, a sentence each.
    pub obstacles: Vec<String>,
    /// Those that can hold a key.
    pub pairs: Vec<Named>,
    /// Those that cannot, and are left out.
    pub unused: u64,
    pub servers: Vec<Named>,
    /// `stats`.
    pub counters: Fields,
    /// What `resync status` says of the whole.
    rest: Fields,
}

impl Seen {
    /// From the answers to `resync status`, `stats` and `stats servers`.
    pub fn of([status, counters, servers]: [Stats; 3]) -> Option<Seen> {
        let mut seen = Seen {
            mode: String::new(),
            mirrored: false,
            obstacles: Vec::new(),
            pairs: Vec::new(),
            unused: 0,
            servers: Vec::new(),
            counters: Fields::of(counters),
            rest: Fields::default(),
        };
        let [mut pairs, mut nodes] = [List::default(), List::default()];
        for (name, value) in &status {
            match name.split_once(':') {
                _ if name == MODE => seen.mode.clone_from(value),
                _ if name == MIRRORED => seen.mirrored = value == "1",
                _ if name.starts_with(OBSTACLE) => seen.obstacles.push(value.clone()),
                Some((kind @ ("pair" | "node"), rest)) => {
                    let (name, field) = rest.rsplit_once(':')?;
                    let list = if kind == "pair" { &mut pairs } else { &mut nodes };
                    list.put(name, field, value);
                }
                _ => {
                    seen.rest.0.insert(name.clone(), value.clone());
                }
            }
        }
        for (name, value) in &servers {
            let (name, field) = name.rsplit_once(':')?;
            // The state that `resync status` says was asked for first, with the pairs'.
            if field != STATE && field != "reason" {
                nodes.put(name, field, value);
            }
        }
        (seen.pairs, seen.servers) = (pairs.all, nodes.all);
        seen.servers.retain(|server| !server.fields.text(PLACE).is_empty());
        seen.unused = seen.rest.number("pairs_unused");
        (!seen.mode.is_empty()).then_some(seen)
    }

    pub(super) fn rest(&self) -> &Fields {
        &self.rest
    }

    /// How hard resyncs work for clients' sake, percent of what they could.
    pub fn yielding(&self) -> u64 {
        self.rest.number("yield:percent")
    }

    /// A field of what is said of `resync verify`.
    pub fn verify(&self, field: &str) -> &str {
        self.rest.text(&format!("verify:{field}"))
    }
}

/// For tests: what is asked for as lines of a name and a value.
#[cfg(test)]
pub fn stats(lines: &str) -> Stats {
    let of = |line: &str| line.split_once(' ').map(|(name, value)| (name.to_owned(), value.to_owned()));
    lines.lines().filter_map(|line| of(line.trim())).collect()
}
