//! Sequences of events before, during and after a start: servers taken out and put in again,
//! proxies that end, memories that are lost.

use std::time::Duration;

use crate::support::client::storage;
use crate::support::cluster::{count_filled, fill};
use crate::support::start::{over, set, start, value};
use crate::support::{Client, Cluster, Memcached, Shape, Stored, wait_until};

/// The backups are taken out, clients go on writing, and the backups are put in again with their
/// old markers.
#[test]
fn a_backup_that_was_taken_out_for_a_while_is_not_believed() {
    for primary_restarts in [false, true] {
        let (mut a, m) = (Memcached::start(&[]), Memcached::start(&[]));
        let mut proxy = over(&[&a], &[&m], &[]);
        proxy.wait_mirrored(crate::support::DEADLINE);
        set(&mut proxy.client(), "k", "old");
        set(&mut proxy.client(), "deleted", "old");
        assert!(proxy.stop().success());

        let mut proxy = over(&[&a], &[], &[]);
        if primary_restarts {
            a.restart();
            wait_until("the primary to be back", crate::support::DEADLINE, || proxy.client().get("k").is_ok());
        }
        set(&mut proxy.client(), "k", "new");
        let _ = proxy.client().delete("deleted");
        assert!(proxy.stop().success());

        let proxy = over(&[&a], &[&m], &[]);
        assert_eq!(value(&mut proxy.client(), "k").as_deref(), Some("new"), "primary restarted: {primary_restarts}");
        proxy.wait_mirrored(crate::support::DEADLINE);
        assert_eq!(value(&mut proxy.client(), "k").as_deref(), Some("new"));
        a.kill();
        wait_until("the backup to lead", crate::support::DEADLINE, || proxy.client().get("k").is_ok());
        assert_eq!(value(&mut proxy.client(), "k").as_deref(), Some("new"), "from the backup");
        assert_eq!(value(&mut proxy.client(), "deleted"), None, "from the backup");
    }
}

/// The proxy's machine comes up before its network does: no node answers at the start.
#[test]
fn a_start_while_no_node_answers_loses_nothing() {
    let mut cluster = Cluster::start(&Shape::new(2, 2));
    fill(&mut cluster.client(), "kept", 1000, 50);
    assert!(cluster.proxy.stop().success());
    for node in cluster.primaries.iter().chain(&cluster.backups) {
        node.pause();
    }
    start(&mut cluster);
    assert!(cluster.client().get("kept:1").is_err());
    for node in cluster.primaries.iter().chain(&cluster.backups) {
        node.resume();
    }
    cluster.mirrored();
    assert_eq!(count_filled(&mut cluster.client(), "kept", 1000, 50), 1000);
    cluster.assert_rings_equal();
}

/// One node that was restarted meanwhile answers at the start, the others come a moment later.
#[test]
fn a_start_while_only_an_empty_node_answers_loses_nothing_of_the_other_pairs() {
    let mut cluster = Cluster::start(&Shape::new(2, 2));
    fill(&mut cluster.client(), "kept", 1000, 50);
    assert!(cluster.proxy.stop().success());
    cluster.primaries[0].restart();
    for node in cluster.primaries[1..].iter().chain(&cluster.backups) {
        node.pause();
    }
    start(&mut cluster);
    let mut client = cluster.client();
    wait_until("the empty one to lead", crate::support::DEADLINE, || {
        (0..20).any(|i| client.get(&format!("kept:{i}")).is_ok())
    });
    for node in cluster.primaries[1..].iter().chain(&cluster.backups) {
        node.resume();
    }
    cluster.mirrored();
    // The table lets an unmarked node lead alone, with a warning; keys of the second primary have
    // both their nodes.
    let kept = count_filled(&mut cluster.client(), "kept", 1000, 50);
    let own = cluster.primaries[1].stat("curr_items").parse::<usize>().expect("a number");
    assert!(kept > 300 && own > 300, "{kept} kept, {own} items");
}

/// The same with a time of `--resync=off`, where a node that comes back is taken at its word.
#[test]
fn a_time_without_resync_leaves_no_markers_that_lie() {
    let (a, m) = (Memcached::start(&[]), Memcached::start(&[]));
    let mut proxy = over(&[&a], &[&m], &[]);
    proxy.wait_mirrored(crate::support::DEADLINE);
    set(&mut proxy.client(), "k", "old");
    assert!(proxy.stop().success());

    let mut proxy = over(&[&a], &[&m], &["--resync=off"]);
    m.pause();
    set(&mut proxy.client(), "noticed", "1");
    set(&mut proxy.client(), "k", "new");
    assert!(proxy.stop().success());
    m.resume();

    let mut a = a;
    let proxy = over(&[&a], &[&m], &[]);
    proxy.wait_mirrored(crate::support::DEADLINE);
    a.kill();
    wait_until("the backup to lead", crate::support::DEADLINE, || proxy.client().get("k").is_ok());
    assert_eq!(value(&mut proxy.client(), "k").as_deref(), Some("new"), "from the backup");
}

/// The backup misses a delete and a write, and the list of servers changes before it is refilled.
/// Its own record still says "in sync".
#[test]
fn a_node_that_missed_writes_before_the_ring_changed_is_not_adopted_from() {
    let (a, b, m) = (Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]));
    let mut proxy = over(&[&a], &[&m], &[]);
    proxy.wait_mirrored(crate::support::DEADLINE);
    let mut client = proxy.client();
    for i in 0..100 {
        set(&mut client, &format!("k{i}"), "old");
    }
    m.pause();
    set(&mut client, "noticed", "1");
    for i in 0..100 {
        if i % 2 == 0 {
            assert_eq!(client.delete(&format!("k{i}")), Ok(true));
        } else {
            set(&mut client, &format!("k{i}"), "new");
        }
    }
    assert!(proxy.stop().success());
    m.resume();

    let proxy = over(&[&a, &b], &[&m], &[]);
    let mut client = proxy.client();
    let mut read = || {
        for i in 0..100 {
            if let Ok(item) = client.get(&format!("k{i}")) {
                let found = item.map(|i| String::from_utf8_lossy(&i.value).into_owned());
                let right = found.is_none() || i % 2 == 1 && found.as_deref() == Some("new");
                assert!(right, "k{i}: {found:?}");
            }
        }
        proxy.status().mirrored()
    };
    wait_until("mirrored", crate::support::DEADLINE, &mut read);
    read();
}

/// Nodes without eviction (`-M`) are full to the brim: they refuse to store a marker, and a refused
/// one is gone.
#[test]
fn a_restart_of_the_proxy_over_full_nodes_loses_nothing() {
    for clean in [true, false] {
        let mut cluster = Cluster::start(&Shape::new(1, 1).nodes(&["-M", "-m", "8"]));
        let mut client = cluster.client();
        let mut stored = Vec::new();
        let mut refused = 0;
        // The markers' own size class, last: their neighbours.
        for len in [8000, 2000, 500, 150, 80, 60, 50, 40, 30, 20, 10, 1] {
            for i in 0..400_000 {
                let key = format!("{len}:{i}");
                match client.set(&key, &vec![b'x'; len]) {
                    Ok(Stored::Stored) => stored.push((key, len)),
                    _ => {
                        refused += 1;
                        break;
                    }
                }
            }
        }
        assert!(refused > 0);
        // Several probes look for the markers, and write again what is missing.
        std::thread::sleep(Duration::from_secs(1));
        if clean {
            assert!(cluster.proxy.stop().success());
        } else {
            cluster.proxy.kill();
        }
        start(&mut cluster);
        cluster.mirrored();
        let mut client = cluster.client();
        let lost = stored.iter().filter(|(key, _)| client.get(key).expect("a read").is_none()).count();
        assert_eq!(lost, 0, "of {}; clean stop: {clean}\n{}", stored.len(), cluster.proxy.log());
    }
}

/// Somebody else writes on the proxy's own keys.
#[test]
fn garbage_in_a_marker_heals() {
    let garbage: [(&str, Vec<u8>); 7] = [
        ("incarnation", b"what".to_vec()),
        ("incarnation", vec![b'x'; 900_000]),
        ("ring", b"0 0 0 0 18446744073709551615 clean".to_vec()),
        ("ring", vec![b'x'; 900_000]),
        ("session", b"what".to_vec()),
        ("flush", b"18446744073709551615".to_vec()),
        ("pair:0", b"18446744073709551615 sync primary 1 1".to_vec()),
    ];
    for (key, bytes) in garbage {
        let mut cluster = Cluster::start(&Shape::new(1, 1));
        set(&mut cluster.client(), "k", "one");
        let marker = format!("__resilver__:{key}");
        assert_eq!(cluster.primaries[0].client().set(&marker, &bytes), Ok(Stored::Stored));
        // Several probes read it, which may change nothing that shows.
        std::thread::sleep(Duration::from_millis(600));
        cluster.mirrored();
        assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("one"), "{key}");
        set(&mut cluster.client(), "k", "two");
        assert_eq!(cluster.primaries[0].client().set(&marker, &bytes), Ok(Stored::Stored));
        cluster.proxy.kill();
        start(&mut cluster);
        cluster.mirrored();
        assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("two"), "{key}, at the start");
        cluster.assert_rings_equal();
        let warnings = cluster.proxy.log().matches("its marker was evicted").count();
        assert!(warnings < 5, "{key}: {warnings} times written again");
        assert!(!cluster.proxy.log().contains("panicked"), "{key}: {}", cluster.proxy.log());
    }
}

/// The last full copy hangs with writes of the first proxy in its sockets. That proxy dies; the
/// next one finds the node when it wakes.
#[test]
fn a_dead_proxys_writes_do_not_land_after_the_next_ones_on_a_node_that_was_away_at_the_start() {
    const CLIENTS: usize = 24;
    let shape = Shape::new(1, 1).proxy(&["--leader-timeout", "20s", "-i", "32"]);
    let mut cluster = Cluster::start(&shape);
    cluster.kill_backups();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| cluster.client()).collect();
    for (c, client) in clients.iter_mut().enumerate() {
        set(client, &format!("k{c}"), "first");
    }
    cluster.primaries[0].pause();
    let writers: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(c, mut client)| {
            let sets: Vec<u8> =
                (0..4000).flat_map(|_| storage("set", &format!("k{c}"), 0, 0, &b"late".repeat(100), "")).collect();
            std::thread::spawn(move || {
                let _ = client.send(&sets);
            })
        })
        .collect();
    // As much as goes in stands in the sockets of the stopped server by then.
    std::thread::sleep(Duration::from_secs(2));
    cluster.proxy.kill();
    for writer in writers {
        let _ = writer.join();
    }
    start(&mut cluster);
    let mut client = cluster.client();
    assert!(client.get("k0").is_err());
    cluster.primaries[0].resume();
    wait_until("the primary to lead", crate::support::DEADLINE, || client.get("k0").is_ok());
    for c in 0..CLIENTS {
        set(&mut client, &format!("k{c}"), "newest");
    }
    // What lands late lands now.
    std::thread::sleep(Duration::from_secs(1));
    for c in 0..CLIENTS {
        let found = value(&mut client, &format!("k{c}"));
        assert_eq!(found.as_deref().map(|v| &v[..v.len().min(8)]), Some("newest"), "k{c}");
    }
}
