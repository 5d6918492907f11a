//! Expiry through refills and role changes: no item lasts longer than its client asked for, none
//! loses time again and again, and each is over on both servers within one second.

use std::time::{Duration, Instant};

use crate::support::{Client, Cluster, Memcached, Shape, Stored, wait_until};

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
    wait_until("the server's clock to turn", crate::support::DEADLINE, || left(&mut client, &items[0].key) < first);
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
            wait_until("the refill", crate::support::DEADLINE, || {
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
