//! What the nodes really hold, read past the proxy, and whether two rings hold the same.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::client::{Client, Failure, show};
use super::memcached::Memcached;

/// Items of the proxy's own: kept on nodes, of no interest to a client.
pub const RESERVED: &[u8] = b"__resilver__:";

/// One item as a node holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingItem {
    pub value: Vec<u8>,
    pub flags: u32,
    /// Seconds left when it was read; `None` = never expires.
    pub ttl: Option<i64>,
    pub read_at: Instant,
    /// Which node of the ring holds it.
    pub node: usize,
}

pub type RingMap = BTreeMap<Vec<u8>, RingItem>;

/// Every live item of a ring. A key held by two nodes of one ring fails the test: one of them is
/// not its owner.
pub fn read_ring(nodes: &[Memcached]) -> RingMap {
    let mut ring = RingMap::new();
    for (index, node) in nodes.iter().enumerate().filter(|(_, n)| n.is_running()) {
        for (key, mut item) in read_node(&node.addr()) {
            item.node = index;
            if let Some(other) = ring.insert(key.clone(), item) {
                panic!("{} stands on nodes {} and {index} of one ring", show(&key), other.node);
            }
        }
    }
    ring
}

/// Every live item of one node, except for the proxy's own: enumerated by
/// `lru_crawler metadump hash`, read by `mg`.
pub fn read_node(addr: &str) -> RingMap {
    let mut client = Client::connect(addr);
    client.set_deadline(Duration::from_secs(60));
    let mut items = RingMap::new();
    let keys = list_keys(&mut client);
    for chunk in keys.chunks(200) {
        let mut batch = Vec::new();
        for key in chunk {
            match key.iter().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
                true => batch.extend_from_slice(&[b"mg ", &base64(key)[..], b" v f t c b\r\n"].concat()),
                false => batch.extend_from_slice(&[b"mg ", &key[..], b" v f t c\r\n"].concat()),
            }
        }
        client.send(&batch).expect("send mg");
        for key in chunk {
            if let Some(item) = read_mg(&mut client, key) {
                items.insert(key.clone(), item);
            }
        }
    }
    items
}

fn read_mg(client: &mut Client, key: &[u8]) -> Option<RingItem> {
    let line = client.line().unwrap_or_else(|e| panic!("mg {}: {e}", show(key)));
    if line == b"EN" {
        return None; // expired or deleted since it was listed
    }
    let text = String::from_utf8(line).expect("an answer to mg is text");
    let words: Vec<&str> = text.split(' ').collect();
    assert!(words.len() == 5 && words[0] == "VA", "mg {} answered {text}", show(key));
    let number = |word: &str| word[1..].parse::<i64>().unwrap_or_else(|_| panic!("mg answered {text}"));
    let len: usize = words[1].parse().unwrap_or_else(|_| panic!("mg answered {text}"));
    let value = client.exactly(len).unwrap_or_else(|e| panic!("mg {}: {e}", show(key)));
    let ttl = number(words[3]);
    Some(RingItem {
        value,
        flags: number(words[2]) as u32,
        ttl: (ttl >= 0).then_some(ttl),
        read_at: Instant::now(),
        node: 0,
    })
}

/// The keys on a node (also expired ones that are not reclaimed yet), without the proxy's own.
fn list_keys(client: &mut Client) -> Vec<Vec<u8>> {
    let begun = Instant::now();
    loop {
        client.send(b"lru_crawler metadump hash\r\n").expect("send metadump");
        match client.dump_lines() {
            Ok(lines) => {
                return lines
                    .iter()
                    .filter_map(|line| line.strip_prefix(b"key="))
                    .map(|rest| decode(rest.split(|&b| b == b' ').next().expect("at least one word")))
                    .filter(|key| !key.starts_with(RESERVED))
                    .collect();
            }
            // Another crawl is under way.
            Err(Failure::Server(_)) if begun.elapsed() < super::DEADLINE => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(failure) => panic!("metadump: {failure}"),
        }
    }
}

fn decode(encoded: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match hex {
            Some(value) if byte == b'%' => {
                key.push(value);
                rest = &tail[2..];
            }
            _ => {
                key.push(byte);
                rest = tail;
            }
        }
    }
    key
}

/// Differences between two rings, each as a sentence; none = each alone holds every live item
/// exactly. TTLs may differ by two seconds and what passes between the readings: each server counts
/// whole seconds from its own start, by a timer that may be late. (Measured: of one date, set on
/// twelve servers and asked of all at once, their answers differ by two in every third trial.)
pub fn compare_rings(primaries: &RingMap, backups: &RingMap) -> Vec<String> {
    let mut differences = Vec::new();
    for (key, p) in primaries {
        let Some(b) = backups.get(key) else {
            // It may have expired between the two readings.
            if p.ttl.is_none_or(|t| t > 2) {
                differences.push(format!("{} is on no backup (TTL {:?})", show(key), p.ttl));
            }
            continue;
        };
        if p.value != b.value {
            differences.push(format!(
                "{}: value {} on primary, {} on backup",
                show(key),
                show(&p.value),
                show(&b.value)
            ));
        }
        if p.flags != b.flags {
            differences.push(format!("{}: flags {} on primary, {} on backup", show(key), p.flags, b.flags));
        }
        if !same_expiry(p, b) {
            differences.push(format!("{}: TTL {:?} on primary, {:?} on backup", show(key), p.ttl, b.ttl));
        }
    }
    for (key, b) in backups {
        if !primaries.contains_key(key) && b.ttl.is_none_or(|t| t > 2) {
            differences.push(format!("{} is on no primary (TTL {:?})", show(key), b.ttl));
        }
    }
    differences
}

fn same_expiry(p: &RingItem, b: &RingItem) -> bool {
    match (p.ttl, b.ttl) {
        (None, None) => true,
        (Some(pt), Some(bt)) => {
            // Both brought to the moment of the later reading.
            let (earlier, later, gap) =
                if p.read_at <= b.read_at { (pt, bt, b.read_at - p.read_at) } else { (bt, pt, p.read_at - b.read_at) };
            // Seconds that both clocks may have counted meanwhile; an item was read a little before
            // its answer was.
            let gap = gap.as_secs_f64();
            let (least, most) = ((gap - 0.1).max(0.0).floor() as i64, (gap + 0.1).ceil() as i64);
            (least - 2..=most + 2).contains(&(earlier - later))
        }
        _ => false,
    }
}

/// How a key is written that stands on no line as it is.
pub fn base64(bytes: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let bits = (0..3).fold(0_usize, |bits, i| bits << 8 | usize::from(three.get(i).copied().unwrap_or(0)));
        let letter = |i: usize| if i <= three.len() { LETTERS[bits >> (18 - 6 * i) & 63] } else { b'=' };
        [letter(0), letter(1), letter(2), letter(3)]
    };
    bytes.chunks(3).flat_map(group).collect()
}
