//! What the proxy says of itself as JSON: `resilver status --json`, and most of `/status.json`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::names::INCARNATION;
use super::seen::{Fields, Named, Seen};
use super::verdict::small;

/// Of the JSON: goes up when a name changes its meaning or goes; new names may come at any time.
pub const JSON_VERSION: u32 = 1;

impl Seen {
    pub fn json(&self) -> Value {
        json!({
            "version": JSON_VERSION,
            "word": small(Some(self.word())),
            "why": self.why(),
            "next": self.next(""),
            "mirrored": self.mirrored,
            "one_may_restart": self.one_may_restart(),
            "mode": self.mode,
            "obstacles": self.obstacles,
            "lost_items": self.lost_items(),
            "verify": self.verified(),
            "pairs": self.pairs.iter().map(|pair| pair.json("pair")).collect::<Vec<_>>(),
            "servers": self.servers.iter().map(|server| server.json("server")).collect::<Vec<_>>(),
            "resync": self.rest().json(),
            "counters": self.counters.json(),
        })
    }
}

/// In place of it, where one of several pools does not answer.
pub fn silent_json(pool: Option<&str>, why: &str) -> Value {
    json!({ "version": JSON_VERSION, "pool": pool, "word": small(None), "why": why, "mirrored": false })
}

impl Fields {
    /// Counts as numbers. An incarnation is none, even if all its sixteen digits happen to be
    /// decimal: a reader of JSON keeps 53 of its bits.
    fn json(&self) -> BTreeMap<&str, Value> {
        let value = |name: &str, text: &String| match text.parse::<u64>() {
            Ok(number) if name != INCARNATION => json!(number),
            _ => json!(text),
        };
        self.0.iter().map(|(name, text)| (name.as_str(), value(name, text))).collect()
    }
}

impl Named {
    fn json(&self, called: &str) -> Value {
        let mut fields = self.fields.json();
        fields.insert(called, json!(self.name));
        json!(fields)
    }
}
