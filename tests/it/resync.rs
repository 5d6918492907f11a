//! What a resync promises while it runs and when it is done. Slow on purpose (`--resync-rate`)
//! where clients must meet it half-way; afterwards each ring alone must hold, and serve, every live
//! item.

mod flushes;
mod ordered;
mod pace;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::support::client::show;
use crate::support::cluster::{count_filled, fill, filled};
use crate::support::{Client, Cluster, Load, Memcached, Mix, RingMap, Rng, Shape, Stored, seed, unix_now, wait_until};

/// A pair whose primary has just come back empty and is being refilled at `rate` items a second;
/// `setup` fills it before.
fn refilling(rate: u32, more: &[&str], setup: impl FnOnce(&mut Client)) -> Cluster {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync-rate", &rate.to_string()]).proxy(more));
    setup(&mut cluster.client());
    lose_and_return(&mut cluster);
    cluster.wait_copying(&cluster.primaries[0].addr());
    cluster
}

fn lose_and_return(cluster: &mut Cluster) {
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    cluster.primaries[0].restart();
}

/// Expected content of every key, as one client knows it; `None` = deleted.
type Expected = HashMap<String, Option<(Vec<u8>, u32)>>;

/// Each ring alone holds exactly what is expected (of the keys named there), and the primaries
/// alone serve it.
fn assert_complete(cluster: &mut Cluster, expected: &Expected) {
    cluster.mirrored();
    cluster.assert_rings_equal();
    let check = |place: &str, got: Option<(&[u8], u32)>, key: &str| {
        let want = expected[key].as_ref().map(|(v, f)| (v.as_slice(), *f));
        assert!(
            got == want,
            "{key} {place}: {:?}, expected {:?}",
            got.map(|(v, f)| (show(v), f)),
            want.map(|(v, f)| (show(v), f))
        );
    };
    for (name, ring) in [("on the primaries", cluster.primary_ring()), ("on the backups", cluster.backup_ring())] {
        for key in expected.keys() {
            check(name, ring.get(key.as_bytes()).map(|i| (i.value.as_slice(), i.flags)), key);
        }
    }
    cluster.kill_backups();
    let mut client = cluster.client();
    for key in expected.keys() {
        let item = client.get(key).unwrap_or_else(|e| panic!("get {key}: {e}"));
        check("after the backups died", item.as_ref().map(|i| (i.value.as_slice(), i.flags)), key);
    }
}

#[test]
fn g1_g3_g5_a_resync_under_full_load() {
    let mut cluster = Cluster::start(&Shape::new(2, 1).proxy(&["--resync-rate", "10000"]));
    fill(&mut cluster.client(), "bulk", 20_000, 100);
    let load = Load::start(&cluster.proxy.addr(), Mix::full(seed("resync under load")));
    load.wait_operations(1000);
    cluster.mirrored();
    load.mark("kill primary 0");
    cluster.primaries[0].kill();
    load.wait_operations(1000);
    cluster.primaries[0].restart();
    load.mark("it is back, empty");
    cluster.wait_copying(&cluster.primaries[0].addr());
    load.mark("copying");
    load.wait_operations(500);
    cluster.mirrored();
    load.mark("mirrored");
    load.wait_operations(500);
    cluster.mirrored();
    load.mark("kill the backup");
    cluster.backups[0].kill();
    load.wait_operations(1000);
    cluster.backups[0].restart();
    cluster.mirrored();
    load.mark("mirrored");
    load.wait_operations(500);
    let model = load.stop();
    cluster.assert_rings_equal();
    model.check_ring("primary", &cluster.primary_ring());
    model.check_ring("backup", &cluster.backup_ring());
    cluster.kill_backups();
    model.check_through(&mut cluster.client());
    assert_eq!(count_filled(&mut cluster.client(), "bulk", 20_000, 100), 20_000);
    model.assert_clean();
}

/// One client, every kind of mutation, on keys copied already, not yet, and just now.
#[test]
fn g2_g3_g5_every_mutation_during_a_resync_ends_equal() {
    const KEYS: usize = 6000;
    let mut rng = Rng::new(seed("every mutation"), 7);
    let mut cluster = refilling(2000, &[], |client| fill_numbers(client, KEYS));
    let mut client = cluster.client();
    let mut expected: Expected =
        (0..KEYS).map(|i| (format!("n:{i}"), Some((i.to_string().into_bytes(), i as u32)))).collect();
    let mut during = 0;
    let mut status = cluster.client();
    let copying = |status: &mut Client| {
        let lines = status.stat_lines("resync status").expect("status");
        !lines.iter().any(|(name, value)| name == "mirrored" && value == "1")
    };
    while copying(&mut status) {
        for _ in 0..50 {
            let key = format!("n:{}", rng.below(KEYS));
            let slot = expected.get_mut(&key).expect("a key of ours");
            mutate(&mut client, &mut rng, &key, slot);
            during += 1;
        }
    }
    eprintln!("{during} mutations during the resync");
    assert!(during >= 100, "the resync was over before anything happened");
    assert_complete(&mut cluster, &expected);
}

fn fill_numbers(client: &mut Client, count: usize) {
    let mut batch = Vec::new();
    for i in 0..count {
        batch.extend(crate::support::client::storage(
            "set",
            &format!("n:{i}"),
            i as u32,
            0,
            i.to_string().as_bytes(),
            "",
        ));
    }
    client.send(&batch).expect("send");
    for _ in 0..count {
        assert_eq!(client.stored(), Ok(Stored::Stored));
    }
}

/// One random mutation, its answer checked against what is known, which is brought up to date.
fn mutate(client: &mut Client, rng: &mut Rng, key: &str, slot: &mut Option<(Vec<u8>, u32)>) {
    let fresh = (rng.next() % 1_000_000).to_string().into_bytes();
    let number = slot.as_ref().and_then(|(v, _)| std::str::from_utf8(v).ok()?.parse::<u64>().ok());
    // Not of one with a zero in front (a 7 appended to "0"): memcached fills the shorter number
    // with blanks too.
    let number = number.filter(|n| slot.as_ref().is_some_and(|(v, _)| *v == n.to_string().as_bytes()));
    let flags = rng.next() as u32;
    let present = slot.is_some();
    let fine = |answer: Stored| if present { answer } else { Stored::NotStored };
    match rng.below(11) {
        0 => {
            assert_eq!(client.store("set", key, flags, 0, &fresh), Ok(Stored::Stored), "set {key}");
            *slot = Some((fresh, flags));
        }
        1 | 2 => {
            assert_eq!(client.delete(key), Ok(present), "delete {key}");
            *slot = None;
        }
        3 => {
            let expected = if present { Stored::NotStored } else { Stored::Stored };
            assert_eq!(client.store("add", key, flags, 0, &fresh), Ok(expected), "add {key}");
            slot.get_or_insert((fresh, flags));
        }
        4 => {
            assert_eq!(client.store("replace", key, flags, 0, &fresh), Ok(fine(Stored::Stored)), "replace {key}");
            if present {
                *slot = Some((fresh, flags));
            }
        }
        verb @ (5 | 6) => {
            let verb = ["append", "prepend"][verb - 5];
            assert_eq!(client.store(verb, key, 0, 0, b"7"), Ok(fine(Stored::Stored)), "{verb} {key}");
            if let Some((value, _)) = slot {
                value.insert(if verb == "append" { value.len() } else { 0 }, b'7');
            }
        }
        7 if !present || number.is_some_and(|n| n < u64::MAX / 2) => {
            assert_eq!(client.incr(key, 3), Ok(number.map(|n| n + 3)), "incr {key}");
            if let (Some((value, _)), Some(n)) = (slot.as_mut(), number) {
                *value = (n + 3).to_string().into_bytes();
            }
        }
        // Never to a shorter number: memcached fills it with blanks unless somebody (the copier)
        // holds the old item.
        8 if number.is_none_or(|n| n >= 5 && n.to_string().len() == (n - 5).to_string().len())
            && present == number.is_some() =>
        {
            let down = number.map(|n| n - 5);
            assert_eq!(client.arithmetic("decr", key, 5), Ok(down), "decr {key}");
            if let (Some((value, _)), Some(n)) = (slot.as_mut(), down) {
                *value = n.to_string().into_bytes();
            }
        }
        9 => assert_eq!(client.touch(key, 0), Ok(present), "touch {key}"),
        _ => {
            let item = client.gets(key).unwrap_or_else(|e| panic!("gets {key}: {e}"));
            let read = item.as_ref().map(|i| (i.value.clone(), i.flags));
            assert_eq!(&read, slot, "gets {key}");
            let Some(token) = item.and_then(|i| i.cas) else { return };
            match client.cas(key, flags, 0, &fresh, token) {
                Ok(Stored::Stored) => *slot = Some((fresh, flags)),
                Ok(Stored::Exists) => {} // the leader changed in between
                other => panic!("cas {key}: {other:?}"),
            }
        }
    }
}

#[test]
fn g2_deletes_during_a_resync_stay_done() {
    const KEYS: usize = 8000;
    let mut cluster = refilling(3000, &[], |client| fill(client, "d", KEYS, 50));
    let mut client = cluster.client();
    let mut expected: Expected = (0..KEYS).map(|i| (format!("d:{i}"), Some((filled("d", i, 50), i as u32)))).collect();
    // From the end and from the start: keys copied already and keys not yet listed.
    for i in (0..KEYS / 4).flat_map(|i| [KEYS - 1 - i * 2, i * 2]) {
        let key = format!("d:{i}");
        let there = expected[&key].is_some();
        assert_eq!(client.delete(&key), Ok(there), "delete {key}");
        assert_eq!(client.get(&key), Ok(None), "{key} right after its delete");
        expected.insert(key, None);
    }
    assert_complete(&mut cluster, &expected);
}

#[test]
fn g7_a_copy_is_exact() {
    let mut rng = Rng::new(seed("exact copies"), 3);
    let mut cluster = Cluster::start(&Shape::new(2, 2));
    let mut client = cluster.client();
    let mut expected: Expected = HashMap::new();
    let now = unix_now();
    let exptimes = [0, 60, 100, 3600, 2_592_000, now + 500, now + 2_592_001 + 86_400, now + 400 * 86_400];
    let flags = [0, 1, 255, 65_535, 65_536, u32::MAX];
    let odd_keys = ["%41", "a=b", "a%20b", "schlüssel-ключ-鍵", "tab\tkey", "q", "END", "\"quoted\\\""];
    let values: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"\r\n".to_vec(),
        b"END\r\n".to_vec(),
        b"VALUE x 0 1\r\ny\r\n".to_vec(),
        (0..=255).collect(),
        vec![0; 1000],
        rng.bytes(10_000),
        rng.bytes(100_000),
        rng.bytes(1_000_000),
    ];
    let mut put = |client: &mut Client, key: String, flags: u32, exptime: i64, value: &[u8]| {
        let stored = client.store("set", &key, flags, exptime, value);
        assert_eq!(stored, Ok(Stored::Stored), "set {key} {flags} {exptime} of {} bytes", value.len());
        expected.insert(key, Some((value.to_vec(), flags)));
    };
    for (i, exptime) in exptimes.into_iter().enumerate() {
        for (j, flags) in flags.into_iter().enumerate() {
            put(&mut client, format!("e{i}f{j}"), flags, exptime, &rng.bytes(i * 7 + j));
        }
    }
    for (i, value) in values.iter().enumerate() {
        put(&mut client, format!("value{i}"), i as u32, 0, value);
    }
    for (i, key) in odd_keys.into_iter().enumerate() {
        put(&mut client, key.to_string(), i as u32, 0, key.as_bytes());
    }
    put(&mut client, "k".repeat(250), 9, 0, b"longest key");
    put(&mut client, "shrunk".into(), 0, 0, b"100");
    assert_eq!(client.arithmetic("decr", "shrunk", 1), Ok(Some(99)));
    expected.insert("shrunk".into(), Some((b"99 ".to_vec(), 0)));
    assert_eq!(client.touch("value0", 1234), Ok(true));
    assert!(client.gat(4321, "value1").expect("gat").is_some());

    // The originals, before anything failed: the copies must equal them, not only one another.
    let before = cluster.primary_ring();
    assert_same_expiry(&before, &cluster.backup_ring(), "mirrored writes");
    assert_eq!(before.len(), expected.len());
    for round in ["primaries", "backups"] {
        let nodes = if round == "primaries" { &mut cluster.primaries } else { &mut cluster.backups };
        nodes.iter_mut().for_each(Memcached::kill);
        nodes.iter_mut().for_each(Memcached::restart);
        let addrs: Vec<String> = nodes.iter().map(Memcached::addr).collect();
        wait_until(&format!("the {round} to be refilled"), crate::support::DEADLINE, || {
            cluster.proxy.status().mirrored() && addrs.iter().all(|a| !crate::support::read_node(a).is_empty())
        });
        cluster.assert_rings_equal();
        assert_same_expiry(&before, &cluster.primary_ring(), round);
        assert_same_expiry(&before, &cluster.backup_ring(), round);
    }
    assert_complete(&mut cluster, &expected);
}

fn assert_same_expiry(before: &RingMap, after: &RingMap, what: &str) {
    let differences = crate::support::compare_rings(before, after);
    assert!(differences.is_empty(), "{what}, against the originals: {differences:#?}");
}

/// Remaining time 0 stored back would mean "for ever".
#[test]
fn g7_items_that_expire_meanwhile_do_not_become_immortal() {
    let mut short = Vec::new();
    let mut set_at = Instant::now();
    let mut cluster = refilling(1500, &[], |client| {
        fill(client, "f", 3000, 50);
        for i in 0..3000 {
            short.push((format!("short:{i}"), 2 + i64::from(i % 4)));
        }
        let mut batch = Vec::new();
        for (key, exptime) in &short {
            batch.extend(crate::support::client::storage("set", key, 0, *exptime, b"mortal", ""));
        }
        client.send(&batch).expect("send");
        short.iter().for_each(|_| assert_eq!(client.stored(), Ok(Stored::Stored)));
        set_at = Instant::now();
    });
    cluster.mirrored();
    wait_until("the short-lived items to expire", crate::support::DEADLINE, || {
        set_at.elapsed() > Duration::from_secs(7)
    });
    let mut client = cluster.client();
    for (key, exptime) in &short {
        assert_eq!(client.get(key), Ok(None), "{key} outlived its {exptime} s");
    }
    let ring = cluster.assert_rings_equal();
    assert_eq!(ring.len(), 3000, "only the immortal ones are left");
    cluster.kill_backups();
    for (key, exptime) in &short {
        assert_eq!(client.get(key), Ok(None), "{key} outlived its {exptime} s on the primary");
    }
}

/// Tokens of another leader or another life of the memory never win, although each server counts
/// from 1 again.
#[test]
fn g5_cas_tokens_do_not_survive_their_leader() {
    const KEYS: usize = 300;
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "c", KEYS, 20);
    let tokens = |client: &mut Client| -> Vec<u64> {
        (0..KEYS).map(|i| client.gets(&format!("c:{i}")).expect("gets").and_then(|i| i.cas).expect("there")).collect()
    };
    let none_wins = |client: &mut Client, tokens: &[u64], when: &str| {
        for (i, &token) in tokens.iter().enumerate() {
            let answer = client.cas(&format!("c:{i}"), 0, 0, b"won by an old token", token);
            assert_eq!(answer, Ok(Stored::Exists), "{when}: c:{i} with token {token}");
        }
    };
    let under_primary = tokens(&mut client);
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    none_wins(&mut client, &under_primary, "the backup leads, token of the primary");
    let under_backup = tokens(&mut client);
    for token in under_primary.iter().chain(&under_backup) {
        assert!(*token < 1 << 63, "token {token:#x} is beyond the 63 bits that PHP and Java can hold");
    }
    cluster.primaries[0].restart();
    cluster.mirrored();
    // Every key gets new raw ids on the refilled primary: wherever they collide, the token is still
    // of another term.
    none_wins(&mut client, &under_backup, "the primary leads again, token of the backup");
    none_wins(&mut client, &under_primary, "the primary leads again, token of its former life");
    // Every small number: a raw id of the node, without its term, must not win either.
    for token in 0..2 * KEYS as u64 {
        let answer = client.cas("c:7", 0, 0, b"guessed", token);
        assert_eq!(answer, Ok(Stored::Exists), "token {token} without a term");
    }
    let fresh = tokens(&mut client);
    assert_eq!(client.cas("c:1", 1, 0, b"right", fresh[1]), Ok(Stored::Stored), "a fresh token must win");
    assert_eq!(client.cas("c:1", 1, 0, b"twice", fresh[1]), Ok(Stored::Exists), "but once");
    cluster.assert_rings_equal();
}

#[test]
fn g1_a_hundred_thousand_items() {
    const ITEMS: usize = 100_000;
    let mut cluster = Cluster::start(&Shape::new(2, 1));
    let mut client = cluster.client();
    fill(&mut client, "big", ITEMS, 100);
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("100,000 items")));
    load.mark("kill primary 0");
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    load.wait_operations(500);
    cluster.primaries[0].restart();
    let begun = Instant::now();
    load.mark("it is back, empty");
    cluster.mirrored();
    load.mark("mirrored");
    let status = cluster.proxy.status();
    let copied = status.node_number(&cluster.primaries[0].addr(), "items_copied");
    eprintln!(
        "{copied} items copied, mirrored after {:?}, resident {} MB",
        begun.elapsed(),
        cluster.proxy.resident_bytes() >> 20
    );
    assert!(copied as usize > ITEMS / 4, "a half of {ITEMS} was to be copied: {status}");
    let model = load.stop();
    let ring = cluster.assert_rings_equal();
    assert!(ring.len() >= ITEMS);
    model.check_ring("primary", &ring);
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "big", ITEMS, 100), ITEMS);
    model.check_through(&mut client);
    model.assert_clean();
}

/// The node that comes back takes smaller items than the one that has them.
#[test]
fn an_item_that_the_target_refuses_has_a_defined_end() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "small", 1000, 100);
    let large = vec![b'x'; 700_000];
    for key in ["large:0", "large:1"] {
        assert_eq!(client.set(key, &large), Ok(Stored::Stored));
    }
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    cluster.primaries[0].set_args(&["-I", "512k"]);
    cluster.primaries[0].restart();
    let addr = cluster.primaries[0].addr();
    let status = cluster.proxy.wait_status("the end of a resync with refused items", crate::support::DEADLINE, |s| {
        s.mirrored() || s.node_number(&addr, "items_failed") + s.node_number(&addr, "items_skipped") >= 2
    });
    eprintln!("a resync with refused items ended so: {status}");
    // It goes on trying, and the primary, which refuses what the backup has, does not lead.
    let backup = cluster.backups[0].addr();
    let status = cluster.proxy.wait_status("the primary to be kept from leading", crate::support::DEADLINE, |s| {
        s.pair(&addr, &backup, "reason") == "copies_missing" && s.all["copies_missing"] == "2"
    });
    assert_eq!((status.pair(&addr, &backup, "leader"), status.mirrored()), (backup.as_str(), false), "{status}");
    let counted = status.node_number(&addr, "items_failed") + status.node_number(&addr, "items_skipped");
    assert_eq!(counted, 2, "refused items are counted: {status}");
    assert_eq!(count_filled(&mut client, "small", 1000, 100), 1000);
    for key in ["large:0", "large:1"] {
        let item = client.get(key).unwrap_or_else(|e| panic!("get {key}: {e}"));
        assert!(item.is_some_and(|i| i.value == large), "{key} is not whole");
    }
    // The smaller limit is the pair's now: refused as memcached refuses it, and the old item is
    // gone on both.
    let answer = client.set("small:1", &large);
    assert!(matches!(&answer, Err(crate::support::Failure::Server(l)) if l.contains("too large")), "{answer:?}");
    assert_eq!(client.get("small:1"), Ok(None), "a refused set removes the old item, as memcached does");
    assert_eq!(client.set("small:1", b"new"), Ok(Stored::Stored));
    // What the primary cannot hold stays on the backup, whole: a later failover finds it, and a
    // delete still reaches it.
    let (primaries, mut backups) = (cluster.primary_ring(), cluster.backup_ring());
    for key in ["large:0", "large:1"] {
        assert!(!primaries.contains_key(key.as_bytes()), "{key} is on the primary in spite of its -I");
        let item = backups.remove(key.as_bytes()).unwrap_or_else(|| panic!("{key} was thrown away"));
        assert_eq!(item.value, large);
    }
    assert_eq!(crate::support::compare_rings(&primaries, &backups), Vec::<String>::new());
    client.delete("large:0").expect("delete");
    assert!(!cluster.backup_ring().contains_key(&b"large:0"[..]), "a deleted item stays on the backup");
    client.delete("large:1").expect("delete");
    // Nothing has one copy any more.
    cluster.mirrored();
    cluster.assert_rings_equal();
}

/// A node that hung missed little and gets just that; a node whose memory is new gets everything.
#[test]
fn a_node_that_kept_its_memory_gets_what_it_missed() {
    const MISSED: u64 = 300;
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "k", 5000, 50);
    for which in ["primary", "backup"] {
        let node = if which == "primary" { &cluster.primaries[0] } else { &cluster.backups[0] };
        let addr = node.addr();
        node.pause();
        for i in 0..MISSED / 3 {
            assert_eq!(client.set(&format!("k:{i}"), which.as_bytes()), Ok(Stored::Stored));
            client.delete(&format!("k:{}", 1000 + i)).unwrap();
            assert_eq!(client.set(&format!("{which}:{i}"), b"new"), Ok(Stored::Stored));
        }
        cluster.wait_lost(&addr);
        node.resume();
        cluster.mirrored();
        let status = cluster.proxy.status();
        assert_eq!(status.kind(&addr), "partial");
        let total = status.node_number(&addr, "items_total");
        // The key that was in flight when it hung may be among them twice over; nothing else is.
        assert!((MISSED..=MISSED + 5).contains(&total), "{total} keys");
        cluster.assert_rings_equal();
    }
    lose_and_return(&mut cluster);
    cluster.mirrored();
    let addr = cluster.primaries[0].addr();
    assert_eq!(cluster.proxy.status().kind(&addr), "full");
    cluster.assert_rings_equal();
}

/// A leader that lists nothing cannot be copied from: it is said, it keeps leading, nothing is
/// lost.
#[test]
fn g1_a_leader_that_cannot_enumerate_keeps_leading() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).nodes(&["-X"]));
    let mut client = cluster.client();
    fill(&mut client, "k", 1000, 50);
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("cannot enumerate")));
    lose_and_return(&mut cluster);
    load.wait_operations(3000);
    assert_eq!(count_filled(&mut client, "k", 1000, 50), 1000);
    let status = cluster.proxy.status();
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    assert_eq!(status.pair(&primary, &backup, "leader"), backup, "{status}");
    assert!(!status.mirrored(), "{status}");
    let model = load.stop();
    model.check_through(&mut client);
    model.assert_clean();
}

/// What a leader cannot list comes as it is read, exactly, and stays right under every mutation;
/// pairs of other leaders are mirrored.
#[test]
fn g1_what_cannot_be_enumerated_is_filled_from_reads() {
    for args in ["-X", "-C"] {
        const KEYS: usize = 2000;
        let shape = Shape::new(1, 2);
        let primaries = vec![Memcached::start(&[])];
        let mut cluster = Cluster::over(primaries, vec![Memcached::start(&[args]), Memcached::start(&[])], &shape);
        cluster.mirrored();
        let mut client = cluster.client();
        fill_numbers(&mut client, KEYS);
        lose_and_return(&mut cluster);
        let (primary, odd, even) = (cluster.primaries[0].addr(), cluster.backups[0].addr(), cluster.backups[1].addr());
        let status =
            cluster.proxy.wait_status("the other pair mirrored, this one trickling", crate::support::DEADLINE, |s| {
                s.pair(&primary, &even, "state") == "mirrored" && s.pair(&primary, &odd, "reason") == "cannot_enumerate"
            });
        assert_eq!(status.pair(&primary, &odd, "state"), "recovering", "{status}");
        assert_eq!(status.pair(&primary, &odd, "leader"), odd, "{status}");
        assert_eq!(status.node(&primary), "copying", "{status}");
        let lines = client.stat_lines("stats resync").expect("stats resync");
        assert!(lines.contains(&(format!("node:{primary}:resync"), "trickle".into())), "{status}");
        let lines = client.stat_lines("stats").expect("stats");
        assert!(lines.contains(&("pairs_cannot_enumerate".into(), "1".into())), "{lines:?}");

        // Two thirds are read, and the first half of all written by every kind of mutation.
        let mut expected: Expected =
            (0..KEYS).map(|i| (format!("n:{i}"), Some((i.to_string().into_bytes(), i as u32)))).collect();
        let mut rng = Rng::new(seed("trickle"), 11);
        for round in 0..2 {
            for i in (0..KEYS).filter(|i| i % 3 != 0) {
                let key = format!("n:{i}");
                let item = client.get(&key).unwrap_or_else(|e| panic!("get {key}: {e}"));
                assert_eq!(item.map(|i| (i.value, i.flags)), expected[&key], "{key}");
                if round == 0 {
                    let key = format!("n:{}", rng.below(KEYS / 2));
                    let slot = expected.get_mut(&key).expect("a key of ours");
                    // Without cas ids a token is the same for every item: the node decides, as
                    // without a proxy.
                    if args == "-C" {
                        assert_eq!(client.delete(&key), Ok(slot.is_some()), "delete {key}");
                        *slot = None;
                        if i % 2 == 0 {
                            assert_eq!(client.store("set", &key, 9, 0, b"5"), Ok(Stored::Stored), "set {key}");
                            assert_eq!(client.incr(&key, 2), Ok(Some(7)), "incr {key}");
                            *slot = Some((b"7".to_vec(), 9));
                        }
                    } else {
                        mutate(&mut client, &mut rng, &key, slot);
                    }
                }
            }
        }
        // Every key that was read is there, and whatever is there is right.
        wait_until("what was read to be on the primary", crate::support::DEADLINE, || {
            let held = cluster.primary_ring();
            (0..KEYS)
                .filter(|i| i % 3 != 0)
                .map(|i| format!("n:{i}"))
                .all(|key| held.contains_key(key.as_bytes()) == expected[&key].is_some())
        });
        let held = cluster.primary_ring();
        for (key, want) in &expected {
            if let Some(item) = held.get(key.as_bytes()) {
                assert_eq!(want.as_ref(), Some(&(item.value.clone(), item.flags)), "{key} on the primary ({args})");
            }
        }
        let status = cluster.proxy.status();
        assert!(held.len() < KEYS && !status.mirrored(), "{status}");
        assert_eq!(status.pair(&primary, &odd, "leader"), odd, "{status}");
        assert!(status.node_number(&primary, "items_copied") > 0, "{status}");
        // It ends when it is told to.
        cluster.proxy.operator("resync cancel");
        cluster.proxy.wait_node(&primary, "waiting");
        for (key, want) in &expected {
            let item = client.get(key).unwrap_or_else(|e| panic!("get {key}: {e}"));
            assert_eq!(item.map(|i| (i.value, i.flags)), *want, "{key} at the end ({args})");
        }
    }
}
