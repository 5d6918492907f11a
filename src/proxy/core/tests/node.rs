//! A memcached of the mind: one map, the commands the data plane sends, one command at a time.

use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Item {
    pub(super) value: Vec<u8>,
    pub(super) flags: u32,
    pub(super) exptime: i64,
    pub(super) cas: u64,
    pub(super) mark: Mark,
}

/// What `mg` shows of an item beside its value.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Mark {
    pub(super) stale: bool,
    /// Somebody was told to recompute it.
    pub(super) sent: bool,
}

impl Mark {
    /// Such an item belongs to the leader alone.
    pub(super) fn is_held_back(self) -> bool {
        self.stale || self.sent
    }

    /// Looks at it: what `mg` says, and whoever looks first at a stale item is told to recompute
    /// it, and so is who finds it `due`.
    pub(super) fn look(&mut self, due: bool) -> String {
        let (z, x) = (if self.sent { " Z" } else { "" }, if self.stale { " X" } else { "" });
        let wins = !self.sent && (self.stale || due);
        self.sent |= wins;
        format!("{z}{x}{}", if wins { " W" } else { "" })
    }
}

#[derive(Clone, Default, Debug)]
pub(super) struct Node {
    /// Its items are marked stale, as `md` with `I` does.
    pub(super) stale: bool,
    pub(super) items: BTreeMap<Vec<u8>, Item>,
    cas: u64,
}

/// The length of the first whole command in the buffer.
pub(super) fn command_len(buf: &[u8]) -> Option<usize> {
    let line = buf.iter().position(|&b| b == b'\n')? + 1;
    let words: Vec<&[u8]> = buf[..line - 2].split(|&b| b == b' ').collect();
    let number = |at: usize| std::str::from_utf8(words[at]).unwrap().parse::<usize>().unwrap();
    let data = match words[0] {
        b"set" | b"add" | b"replace" | b"append" | b"prepend" | b"cas" => number(4) + 2,
        b"ms" => number(2) + 2,
        _ => 0,
    };
    (buf.len() >= line + data).then_some(line + data)
}

/// The flags of an item that outlasts its copy on the other node.
const OUTLASTS: u32 = 77;

impl Node {
    /// An item whose copy on the other node has ended.
    pub(super) fn put_overdue(&mut self, key: &str, value: &str) {
        self.store(key.as_bytes(), value.as_bytes().to_vec(), OUTLASTS, 1);
    }

    /// What is there as far as clients are concerned.
    pub(super) fn counted(&self, key: &[u8]) -> Option<&Item> {
        self.items.get(key).filter(|item| item.flags != OUTLASTS)
    }

    pub(super) fn put(&mut self, key: &str, value: &str) {
        self.store(key.as_bytes(), value.as_bytes().to_vec(), 0, 0);
    }

    fn store(&mut self, key: &[u8], value: Vec<u8>, flags: u32, exptime: i64) {
        self.cas += 1;
        self.items.insert(key.to_vec(), Item { value, flags, exptime, cas: self.cas, mark: Mark::default() });
    }

    /// Executes one command; the answer's bytes.
    pub(super) fn execute(&mut self, command: &[u8]) -> Vec<u8> {
        let end = command.iter().position(|&b| b == b'\r').unwrap();
        let line = String::from_utf8(command[..end].to_vec()).unwrap();
        let data = command.get(end + 2..).filter(|d| !d.is_empty()).map(|d| d[..d.len() - 2].to_vec());
        let words: Vec<&str> = line.split(' ').collect();
        let key = words[1].as_bytes();
        let number = |at: usize| words[at].parse::<i64>().unwrap_or_else(|_| words[at].parse::<u64>().unwrap() as i64);
        let held = self.items.get(key).cloned();
        match (words[0], held) {
            ("gat" | "gats", _) => {
                let key = words[2].as_bytes();
                if let Some(item) = self.items.get_mut(key) {
                    item.exptime = number(1);
                }
                let held = self.items.get(key).cloned();
                [value(key, held.as_ref(), words[0] == "gats"), b"END\r\n".to_vec()].concat()
            }
            ("get" | "gets", _) => {
                let values = words[1..].iter().map(|key| {
                    let key = key.as_bytes();
                    value(key, self.items.get(key), words[0] == "gets")
                });
                values.chain([b"END\r\n".to_vec()]).collect::<Vec<_>>().concat()
            }
            ("add", Some(_)) | ("replace" | "append" | "prepend", None) => b"NOT_STORED\r\n".to_vec(),
            ("set" | "add" | "replace", _) => {
                self.store(key, data.unwrap(), number(2) as u32, number(3));
                b"STORED\r\n".to_vec()
            }
            ("append" | "prepend", Some(held)) => {
                let (old, new) = (held.value, data.unwrap());
                let value = if words[0] == "append" { [old, new].concat() } else { [new, old].concat() };
                self.store(key, value, held.flags, held.exptime);
                b"STORED\r\n".to_vec()
            }
            ("cas", None) => b"NOT_FOUND\r\n".to_vec(),
            ("cas", Some(held)) if held.cas != number(5) as u64 => b"EXISTS\r\n".to_vec(),
            ("cas", Some(_)) => {
                self.store(key, data.unwrap(), number(2) as u32, number(3));
                b"STORED\r\n".to_vec()
            }
            ("incr" | "decr" | "touch" | "delete", None) => b"NOT_FOUND\r\n".to_vec(),
            ("incr" | "decr", Some(held)) => {
                let Ok(old) = String::from_utf8(held.value).unwrap().parse::<u64>() else {
                    return b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n".to_vec();
                };
                let delta = number(2) as u64;
                let new = if words[0] == "incr" { old.wrapping_add(delta) } else { old.saturating_sub(delta) };
                self.store(key, new.to_string().into_bytes(), held.flags, held.exptime);
                format!("{new}\r\n").into_bytes()
            }
            ("touch", Some(_)) => {
                self.items.get_mut(key).unwrap().exptime = number(2);
                b"TOUCHED\r\n".to_vec()
            }
            ("delete", Some(_)) => {
                self.items.remove(key);
                b"DELETED\r\n".to_vec()
            }
            ("mg", None) if argument(&words, 'N').is_none() => b"EN\r\n".to_vec(),
            ("mg", held) => {
                let made = held.is_none();
                if made {
                    self.store(key, Vec::new(), 0, argument(&words, 'N').unwrap());
                }
                let item = self.items.get_mut(key).unwrap();
                item.exptime = argument(&words, 'T').unwrap_or(item.exptime);
                let late = |than| item.exptime != 0 && item.exptime < than;
                let due = made || argument(&words, 'R').is_some_and(late);
                let shown = item.mark.look(due);
                let held = item.clone();
                let ttl = if held.exptime == 0 { -1 } else { held.exptime };
                let flag = |word: &str| match word {
                    "k" => format!(" k{}", words[1]),
                    "f" => format!(" f{}", held.flags),
                    "t" => format!(" t{ttl}"),
                    "c" => format!(" c{}", held.cas),
                    _ => String::new(),
                };
                let mut flags: String = words[2..].iter().map(|w| flag(w)).collect();
                flags.push_str(if self.stale { " X" } else { &shown });
                if words.contains(&"v") {
                    let head = format!("VA {}{flags}\r\n", held.value.len()).into_bytes();
                    [head, held.value, b"\r\n".to_vec()].concat()
                } else {
                    format!("HD{flags}\r\n").into_bytes()
                }
            }
            ("md" | "ma", None) if argument(&words, 'N').is_none() => b"NF\r\n".to_vec(),
            ("md" | "ma" | "ms", Some(held)) if argument(&words, 'C').is_some_and(|cas| cas != held.cas as i64) => {
                b"EX\r\n".to_vec()
            }
            ("md", _) if words.contains(&"I") => {
                self.cas += 1;
                let item = self.items.get_mut(key).unwrap();
                (item.cas, item.mark) = (self.cas, Mark { stale: true, sent: false });
                b"HD\r\n".to_vec()
            }
            ("md", _) => {
                self.items.remove(key);
                b"HD\r\n".to_vec()
            }
            ("ma", held) => {
                let old = held.as_ref().map(|held| String::from_utf8(held.value.clone()).unwrap());
                let delta = argument(&words, 'D').unwrap_or(1) as u64;
                let new = match old.map(|old| old.parse::<u64>()) {
                    None => argument(&words, 'J').unwrap_or(0) as u64,
                    Some(Err(_)) => {
                        return b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n".to_vec();
                    }
                    Some(Ok(old)) if words.contains(&"MD") => old.saturating_sub(delta),
                    Some(Ok(old)) => old.wrapping_add(delta),
                };
                let (flags, exptime) = held.map_or((0, argument(&words, 'N').unwrap_or(0)), |h| (h.flags, h.exptime));
                self.store(key, new.to_string().into_bytes(), flags, exptime);
                let ttl = if exptime == 0 { -1 } else { exptime };
                let told = |flag: &str, number: i64| match words.contains(&flag) {
                    true => format!(" {flag}{number}"),
                    false => String::new(),
                };
                let (cas, ttl) = (told("c", self.cas as i64), told("t", ttl));
                format!("VA {}{cas}{ttl}\r\n{new}\r\n", new.to_string().len()).into_bytes()
            }
            ("ms", None) if argument(&words, 'C').is_some() => b"NF\r\n".to_vec(),
            ("ms", held) => {
                let mode = words.iter().find_map(|word| word.strip_prefix('M')).unwrap_or("S");
                let flags = argument(&words, 'F').unwrap_or(0) as u32;
                match (mode, held) {
                    ("E", Some(_)) | ("A" | "P" | "R", None) => return b"NS\r\n".to_vec(),
                    ("A", Some(held)) => {
                        let value = [held.value, data.unwrap()].concat();
                        self.store(key, value, held.flags, held.exptime);
                    }
                    ("P", Some(held)) => {
                        let value = [data.unwrap(), held.value].concat();
                        self.store(key, value, held.flags, held.exptime);
                    }
                    _ => self.store(key, data.unwrap(), flags, argument(&words, 'T').unwrap_or(0)),
                }
                format!("HD{}\r\n", if words.contains(&"c") { format!(" c{}", self.cas) } else { String::new() })
                    .into_bytes()
            }
            _ => panic!("the model does not know {line}"),
        }
    }
}

/// The number that stands behind a flag.
fn argument(words: &[&str], flag: char) -> Option<i64> {
    let number = words[2..].iter().find_map(|word| word.strip_prefix(flag))?;
    number.parse::<i64>().or_else(|_| number.parse::<u64>().map(|number| number as i64)).ok()
}

fn value(key: &[u8], held: Option<&Item>, cas: bool) -> Vec<u8> {
    let Some(held) = held else { return Vec::new() };
    let key = String::from_utf8_lossy(key);
    let cas = if cas { format!(" {}", held.cas) } else { String::new() };
    let head = format!("VALUE {key} {} {}{cas}\r\n", held.flags, held.value.len()).into_bytes();
    [head, held.value.clone(), b"\r\n".to_vec()].concat()
}
