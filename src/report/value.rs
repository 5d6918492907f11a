//! What stands in a server's list of statistics: a number, a text, or the counts of a prefix.

use crate::protocol::spelled;
use crate::protocol::statistics::Line;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    /// Of a prefix: reads, hits, stores, deletions.
    Counts([u64; 4]),
}

impl Value {
    pub(super) fn text(self) -> String {
        match self {
            Value::Number(number) => number.to_string(),
            Value::Text(text) => text,
            Value::Counts([get, hit, set, del]) => format!("get {get} hit {hit} set {set} del {del}"),
        }
    }
}

/// Each line of a list; `Err`: it is no list, but this line.
pub(super) fn read(answer: &[u8], mut each: impl FnMut(&str, Value) -> Result<(), String>) -> Result<(), String> {
    let mut ended = false;
    for line in answer.split_inclusive(|&byte| byte == b'\n') {
        let whole = || String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
        match Line::parse(line) {
            Line::Stat(name, value) => {
                let [name, value] = [name, value].map(spelled::text);
                each(&name, value.parse().map_or(Value::Text(value), Value::Number))?;
            }
            Line::Prefix(prefix) => {
                let prefix = spelled::text(prefix);
                let (name, counts) = prefix_counts(&prefix).ok_or_else(whole)?;
                each(name, Value::Counts(counts))?;
            }
            Line::End => ended = true,
            Line::Item(_) | Line::Other => return Err(whole()),
        }
    }
    if ended { Ok(()) } else { Err("a list without END".to_owned()) }
}

/// `name get 1 hit 1 set 0 del 0`; a prefix may have blanks in it.
fn prefix_counts(line: &str) -> Option<(&str, [u64; 4])> {
    let mut words = line.rsplitn(9, ' ');
    let mut counts = [0; 4];
    for (at, name) in ["get", "hit", "set", "del"].iter().enumerate().rev() {
        counts[at] = words.next()?.parse().ok()?;
        (words.next()? == *name).then_some(())?;
    }
    Some((words.next()?, counts))
}
