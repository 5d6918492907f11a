//! Expiry through refills and role changes: no item lasts longer than its client asked for, none
//! loses time again and again, and each is over on both servers within one second.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::{Client, Cluster, DEADLINE, Memcached, Shape, Stored, wait_until};

/// What the clocks of this test and of the servers may differ by: a tick of memcached's timer, and
/// the proxy's measuring of it.
const SLACK: f64 = 0.1;

/// Keys, each with the moment at which it was acknowledged, and what was asked for.
struct Item {
    key: String,
    set: Instant,
    acknowledged: Instant,
    exptime: u64,
}

/// In every part of a second one.
fn items(client: &mut Client, exptime: u64) -> Vec<Item> {
    let begun = Instant::now();
    let mut items: Vec<Item> = Vec::new();
    for i in 0..10 {
        // Not a wait for anything: where in a second an item is set is what is tried.
        std::thread::sleep((begun + Duration::from_millis(100 * i)).saturating_duration_since(Instant::now()));
        let (key, set) = (format!("item{i}"), Instant::now());
        assert_eq!(client.store("set", &key, 0, exptime as i64, b"v"), Ok(Stored::Stored));
        items.push(Item { key, set, acknowledged: Instant::now(), exptime });
    }
    items
}

/// Until when a server keeps each item, in seconds after it was set: exactly, from the moment at
/// which the server's clock turns.
fn lifetimes(node: &Memcached, items: &[Item]) -> Vec<f64> {
    let mut client = node.client();
    let left = |client: &mut Client, key: &str| -> i64 {
        let line = client.raw_command(&format!("mg {key} t")).expect("mg");
        line.strip_prefix("HD t").unwrap_or_else(|| panic!("{key}: {line}")).parse().expect("a number")
    };
    let first = left(&mut client, &items[0].key);
    wait_until("the server's clock to turn", DEADLINE, || left(&mut client, &items[0].key) < first);
    let turned = Instant::now();
    let end = |item: &Item| turned.duration_since(item.set).as_secs_f64();
    items.iter().map(|item| end(item) + left(&mut client, &item.key) as f64).collect()
}

fn check(what: &str, node: &Memcached, items: &[Item]) -> Vec<f64> {
    let lifetimes = lifetimes(node, items);
    for (item, lifetime) in items.iter().zip(&lifetimes) {
        let asked = item.acknowledged.duration_since(item.set).as_secs_f64() + item.exptime as f64;
        assert!(
            *lifetime <= asked + SLACK,
            "{what}: {} lasts {lifetime:.2} s instead of {asked:.2}: {lifetimes:.2?}",
            item.key
        );
        assert!(
            *lifetime > asked - 2.0 - SLACK,
            "{what}: {} lasts {lifetime:.2} s instead of {asked:.2}: {lifetimes:.2?}",
            item.key
        );
    }
    lifetimes
}

/// A copy of a copy of a copy.
#[test]
fn g7_refill_after_refill_an_item_keeps_its_date() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let items = items(&mut cluster.client(), 1000);
    let mirrored = check("mirrored, backup", &cluster.backups[0], &items);
    check("mirrored, primary", &cluster.primaries[0], &items);
    for round in 0..6 {
        for backup in [false, true] {
            let node = if backup { &mut cluster.backups[0] } else { &mut cluster.primaries[0] };
            node.kill();
            node.restart();
            let addr = node.addr();
            wait_until("the refill", DEADLINE, || {
                cluster.proxy.status().mirrored() && !crate::support::read_node(&addr).is_empty()
            });
        }
        if round % 5 > 0 {
            continue;
        }
        let copies = check(&format!("round {round}"), &cluster.backups[0], &items);
        for (copy, original) in copies.iter().zip(&mirrored) {
            assert!((copy - original).abs() < 1.0 + SLACK, "round {round}: {copies:.2?} instead of {mirrored:.2?}");
        }
    }
}

/// Sleeps until the proxy's second, which is the host's, is so far on: where in a second something
/// happens is what is tried.
fn at(part: f64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64().fract();
    std::thread::sleep(Duration::from_secs_f64((part - now).rem_euclid(1.0)));
}

/// A pair whose servers turn to their seconds at these parts of the proxy's.
fn pair_that_turns_at(primary: f64, backup: f64) -> Cluster {
    let [primary, backup] = [primary, backup].map(|part| {
        at(part);
        Memcached::start(&[])
    });
    let cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1));
    cluster.mirrored();
    cluster
}

const VERBS: [&str; 11] =
    ["get", "gets", "gat", "touch", "delete", "incr", "append", "prepend", "replace", "cas", "add"];

/// The backup turns to its next second 0.45 s after the primary: so much longer it shows what has
/// expired.
#[test]
fn g7_what_was_seen_expired_stays_so_when_its_leader_dies() {
    let mut cluster = pair_that_turns_at(0.15, 0.6);
    let mut client = cluster.client();
    // Both kinds are over at the same tick of the primary.
    let kinds = [("dated", 11, Duration::ZERO), ("counted", 3, Duration::from_secs(7))];
    let key = |kind: &str, verb: &str| format!("{kind}:{verb}");
    at(0.7);
    let begun = Instant::now();
    let mut tokens = Vec::new();
    for (kind, exptime, later) in kinds {
        std::thread::sleep((begun + later).saturating_duration_since(Instant::now()));
        for verb in VERBS {
            assert_eq!(client.store("set", &key(kind, verb), 0, exptime, b"5"), Ok(Stored::Stored));
        }
        tokens.push(client.gets(&key(kind, "cas")).expect("gets").expect("just stored").cas.expect("a token"));
    }
    let all: Vec<String> = kinds.iter().flat_map(|(kind, ..)| VERBS.map(|verb| key(kind, verb))).collect();
    wait_until("the items to expire", Duration::from_secs(12), || {
        client.get_many("get", &all).expect("get").iter().all(Option::is_none)
    });
    cluster.primaries[0].kill();
    for ((kind, ..), token) in kinds.into_iter().zip(tokens) {
        let key = |verb| key(kind, verb);
        assert_eq!(client.get(&key("get")), Ok(None), "{kind}");
        assert_eq!(client.gets(&key("gets")), Ok(None), "{kind}");
        assert_eq!(client.get_many("get", &[key("get"), key("gets")]), Ok(vec![None, None]), "{kind}");
        assert_eq!(client.gat(100, &key("gat")), Ok(None), "{kind}");
        assert_eq!(client.touch(&key("touch"), 100), Ok(false), "{kind}");
        assert_eq!(client.delete(&key("delete")), Ok(false), "{kind}");
        assert_eq!(client.incr(&key("incr"), 1), Ok(None), "{kind}");
        for verb in ["append", "prepend", "replace"] {
            assert_eq!(client.store(verb, &key(verb), 0, 0, b"6"), Ok(Stored::NotStored), "{kind}");
        }
        let cas = client.cas(&key("cas"), 0, 0, b"6", token).expect("cas");
        assert_eq!(cas, Stored::NotFound, "{kind}");
        assert_eq!(client.store("add", &key("add"), 0, 0, b"6"), Ok(Stored::Stored), "{kind}");
        // Nothing of that may depend on how long the second lasts.
        assert_eq!(client.get(&key("touch")), Ok(None), "{kind}");
    }
    // What is written now ends when its client says.
    assert_eq!(client.store("add", "lock", 0, 2, b"1"), Ok(Stored::Stored));
    assert_eq!(client.store("add", "lock", 0, 2, b"2"), Ok(Stored::NotStored));
    assert!(client.get("lock").expect("get").is_some());
    assert_eq!(client.store("set", "touched", 0, 0, b"1"), Ok(Stored::Stored));
    assert_eq!(client.touch("touched", 2), Ok(true));
    assert!(client.get("touched").expect("get").is_some());
}

/// Here it is the primary that turns later. It hangs, misses little, and gets the leadership back
/// with what it held; again and again, while items expire in every second.
#[test]
fn g7_what_was_seen_expired_stays_so_when_leadership_is_handed_back() {
    let cluster = pair_that_turns_at(0.6, 0.15);
    let addr = cluster.primaries[0].addr();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut client, mut written, mut gone) = (cluster.client(), Vec::new(), BTreeSet::new());
            let begun = Instant::now();
            while !done.load(Relaxed) {
                if begun.elapsed() >= Duration::from_millis(100 * written.len() as u64) {
                    for (kind, exptime) in [("dated", 11), ("counted", 2)] {
                        let key = format!("{kind}{}", written.len() / 2);
                        assert_eq!(client.store("set", &key, 0, exptime, b"v"), Ok(Stored::Stored));
                        written.push(key);
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
                for keys in written.chunks(90) {
                    for (key, item) in keys.iter().zip(client.get_many("get", keys).expect("get")) {
                        if item.is_none() {
                            gone.insert(key.clone());
                        } else {
                            assert!(!gone.contains(key), "{key} is back, {:?} after the start", begun.elapsed());
                        }
                    }
                }
            }
            gone.len()
        });
        for _ in 0..8 {
            if reader.is_finished() {
                break;
            }
            cluster.primaries[0].pause();
            cluster.wait_lost(&addr);
            cluster.primaries[0].resume();
            cluster.mirrored();
            // The next one at another part of a second.
            std::thread::sleep(Duration::from_millis(530));
        }
        wait_until("items to expire", DEADLINE, || reader.is_finished() || cluster.proxy.stat("get_misses") > 50);
        done.store(true, Relaxed);
        assert!(reader.join().expect("the reader") > 20);
    });
}
