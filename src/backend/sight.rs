//! What a server says of its connections. PURE.

use std::collections::{BTreeMap, BTreeSet};

use crate::protocol::statistics;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sight {
    /// All but those that it listens on: each by its number there and where it comes from.
    pub all: BTreeSet<String>,
    /// Those of them that execute something: the connection that asks is one.
    executing: BTreeSet<String>,
    /// When its process started, by its own clock.
    pub started: u64,
}

impl Sight {
    /// By what it answers to `stats` and to `stats conns`.
    pub fn new(stats: &[(String, String)], conns: Vec<(String, String)>) -> Sight {
        let number = |name: &str| statistics::number(stats, name).unwrap_or(0);
        let (mut from, mut states) = (BTreeMap::new(), BTreeMap::new());
        for (name, value) in conns {
            match name.split_once(':') {
                Some((number, "addr")) => drop(from.insert(number.to_owned(), value)),
                Some((number, "state")) => drop(states.insert(number.to_owned(), value)),
                _ => {}
            }
        }
        let in_state = |number: &str, state: &str| states.get(number).is_some_and(|found| found == state);
        let mut sight = Sight { started: number("time").saturating_sub(number("uptime")), ..Sight::default() };
        for (number, from) in from {
            if in_state(&number, "conn_listening") {
                continue;
            }
            let connection = format!("{number} {from}");
            if in_state(&number, "conn_parse_cmd") {
                sight.executing.insert(connection.clone());
            }
            sight.all.insert(connection);
        }
        sight
    }

    /// All but the one that asks, if it can be told apart: if no other one executes anything.
    pub fn others(&self) -> Option<BTreeSet<String>> {
        (self.executing.len() == 1).then(|| self.all.difference(&self.executing).cloned().collect())
    }
}
