//! Hard faults on real processes: each test is a sentence of what was asked for.

mod both_down;
mod cas;
mod cut_network;
mod diverged;
mod flush;
mod hung;
mod large;
mod late_writes;
mod memory_lost;
mod overload;
mod stale;

use std::collections::BTreeMap;

use crate::support::client::{show, storage};
use crate::support::{Client, Failure, RingMap, Stored};

/// What one client knows to be true of its keys; `None` = deleted. Nobody else writes them.
pub struct Truth(BTreeMap<String, Option<Vec<u8>>>);

impl Truth {
    /// Numbers, so that every kind of command can change them.
    pub fn fill(client: &mut Client, count: usize) -> Truth {
        Truth::fill_as("k", client, count)
    }

    pub fn fill_as(name: &str, client: &mut Client, count: usize) -> Truth {
        let number = |i: usize| Some((1000 + i).to_string().into_bytes());
        let truth = Truth((0..count).map(|i| (format!("{name}:{i}"), number(i))).collect());
        let keys: Vec<_> = truth.0.iter().collect();
        for chunk in keys.chunks(500) {
            let value = |v: &Option<Vec<u8>>| v.clone().expect("just filled");
            client
                .send(&chunk.iter().flat_map(|(k, v)| storage("set", k, 0, 0, &value(v), "")).collect::<Vec<_>>())
                .expect("send");
            for (key, _) in chunk {
                assert_eq!(client.stored(), Ok(Stored::Stored), "set {key}");
            }
        }
        truth
    }

    /// Every key but each sixth gets another value or is deleted, by every kind of command. All
    /// must be acknowledged.
    pub fn change(&mut self, client: &mut Client, round: usize) {
        for (i, (key, slot)) in self.0.iter_mut().enumerate() {
            let fresh = format!("{}", 500_000 + round * 10_000 + i).into_bytes();
            match ((i + round) % 6, slot.as_mut()) {
                (0, Some(_)) => {}
                (1, Some(_)) => {
                    assert_eq!(client.delete(key), Ok(true), "delete {key}");
                    *slot = None;
                }
                (2, Some(value)) => {
                    assert_eq!(client.store("append", key, 0, 0, b"7"), Ok(Stored::Stored), "append {key}");
                    value.push(b'7');
                }
                (3, Some(value)) => {
                    let number: u64 = std::str::from_utf8(value).expect("text").parse().expect("a number");
                    assert_eq!(client.incr(key, 3), Ok(Some(number + 3)), "incr {key}");
                    *value = (number + 3).to_string().into_bytes();
                }
                (4, Some(_)) => {
                    assert_eq!(client.delete(key), Ok(true), "delete {key}");
                    assert_eq!(client.store("add", key, 0, 0, &fresh), Ok(Stored::Stored), "add {key}");
                    *slot = Some(fresh);
                }
                (_, Some(_)) => {
                    assert_eq!(client.set(key, &fresh), Ok(Stored::Stored), "set {key}");
                    *slot = Some(fresh);
                }
                (0 | 1, None) => assert_eq!(client.delete(key), Ok(false), "{key} is deleted already"),
                (_, None) => {
                    assert_eq!(client.store("add", key, 0, 0, &fresh), Ok(Stored::Stored), "add {key}, deleted before");
                    *slot = Some(fresh);
                }
            }
        }
    }

    /// Every read through the proxy is true.
    pub fn check(&self, client: &mut Client, when: &str) {
        let keys: Vec<String> = self.0.keys().cloned().collect();
        for chunk in keys.chunks(100) {
            let items = client.get_many("get", chunk).unwrap_or_else(|e| panic!("{when}: get {}…: {e}", chunk[0]));
            for (key, item) in chunk.iter().zip(items) {
                self.judge(key, item.as_ref().map(|i| i.value.as_slice()), when);
            }
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn check_ring(&self, ring: &RingMap, name: &str) {
        for key in self.0.keys() {
            self.judge(key, ring.get(key.as_bytes()).map(|i| i.value.as_slice()), name);
        }
    }

    fn judge(&self, key: &str, found: Option<&[u8]>, when: &str) {
        let wanted = self.0[key].as_deref();
        assert!(found == wanted, "{when}: {key} is {:?}, but {:?} is true", found.map(show), wanted.map(show));
    }
}

/// The answer to a `get`: the value, or `None` for a miss; a `SERVER_ERROR` must say something.
pub fn read(client: &mut Client, key: &str) -> Result<Option<Vec<u8>>, String> {
    match client.get(key) {
        Ok(item) => Ok(item.map(|i| i.value)),
        Err(Failure::Server(line)) => {
            assert!(line.len() > "SERVER_ERROR ".len(), "the cause is not named: {line}");
            Err(line)
        }
        Err(failure) => panic!("get {key}: {failure}"),
    }
}
