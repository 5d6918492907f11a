//! `mirrored` is said only where every item is known to have two copies: servers that refuse items,
//! evict them, hold too much, or are fought over.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::cluster::{count_filled, fill, filled};
use crate::support::command::told;
use crate::support::{Cluster, Memcached, Proxy, Shape, Stored, wait_until};

/// This many of the large items fit into the smallest server: with `-m 4` one page of them.
const KEPT: usize = 20;

/// Exit code of `resilver wait`, and everything it said.
fn wait(proxy: &Proxy, timeout: &str) -> (Option<i32>, String) {
    told(&["wait", "--mirrored", "--proxy", &proxy.addr(), "--timeout", timeout])
}

fn copies_missing(cluster: &Cluster) -> u64 {
    let (status, stats) = (cluster.proxy.status(), cluster.proxy.stat("copies_missing"));
    assert_eq!(status.all["copies_missing"], stats.to_string(), "{status}");
    stats
}

/// The issue's own case: everything is `STORED`, and the backup took a third of it.
#[test]
fn a_backup_that_refuses_items_is_told_of_and_filled_when_it_takes_them() {
    const ITEMS: usize = 300;
    const BYTES: usize = 20_000;
    let (primary, backup) = (Memcached::start(&[]), Memcached::start(&["-M", "-m", "4"]));
    let mut cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1));
    cluster.mirrored();
    let mut client = cluster.client();
    fill(&mut client, "big", ITEMS, BYTES);
    let held = cluster.backup_ring().len();
    assert!(held < ITEMS, "the backup took everything: nothing is tested");
    assert_eq!(copies_missing(&cluster), (ITEMS - held) as u64);
    let status = cluster.proxy.status();
    let pair = |field: &str| status.pair(&cluster.primaries[0].addr(), &cluster.backups[0].addr(), field).to_owned();
    assert_eq!((pair("state"), pair("reason")), ("incomplete".into(), "copies_missing".into()), "{status}");
    assert_eq!(pair("leader"), cluster.primaries[0].addr(), "it keeps its roles");
    assert!(!status.mirrored(), "{status}");
    assert_eq!((cluster.proxy.stat("pairs_mirrored"), cluster.proxy.stat("pairs_incomplete")), (0, 1));
    let (code, said) = wait(&cluster.proxy, "1s");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("reason copies_missing (keys with one copy: {})", ITEMS - held)), "{said}");
    crate::support::wait_until("the log to name keys", crate::support::DEADLINE, || {
        let log = cluster.proxy.log_so_far();
        log.contains("keys have one copy") && log.contains("first=\"big:")
    });
    // No server's record tells of them, and a stop in good order does not make them equal.
    assert!(cluster.proxy.stop().success());
    cluster.proxy.spawn();
    let (code, said) = wait(&cluster.proxy, "2s");
    assert_eq!(code, Some(1), "{said}");
    cluster.proxy.wait_status("the copies to be compared", crate::support::DEADLINE, |s| {
        s.all["copies_missing"] == (ITEMS - held).to_string()
    });
    let mut client = cluster.client();

    // A client's own delete counts, of a key that only the primary has too; and so does room for
    // the rest.
    let keep: Vec<usize> = (0..ITEMS).filter(|i| i % 15 == 0).collect();
    for i in (0..ITEMS).filter(|i| i % 15 != 0) {
        assert_eq!(client.delete(&format!("big:{i}")), Ok(true));
    }
    cluster.mirrored();
    assert_eq!(copies_missing(&cluster), 0);
    assert_eq!(wait(&cluster.proxy, "10s"), (Some(0), "mirrored\n".into()));
    assert_eq!(cluster.assert_rings_equal().len(), keep.len());
    crate::support::wait_until("the log to say so", crate::support::DEADLINE, || {
        cluster.proxy.log_so_far().contains("every key has two copies again")
    });
    cluster.kill_primaries();
    let mut client = cluster.client();
    for i in keep {
        let item = client.get(&format!("big:{i}")).expect("an answer").unwrap_or_else(|| panic!("big:{i} is lost"));
        assert_eq!(item.value, filled("big", i, BYTES));
    }
}

/// A backup that comes back with less memory, and refuses what does not fit.
#[test]
fn a_refill_that_ends_with_items_refused_is_not_mirrored() {
    const ITEMS: usize = 300;
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "big", ITEMS, 20_000);
    cluster.backups[0].set_args(&["-M", "-m", "4"]);
    cluster.backups[0].restart();
    let addr = cluster.backups[0].addr();
    let status = cluster.proxy.wait_status("the end of the refill", crate::support::DEADLINE, |s| {
        s.all[&format!("node:{addr}:resync")] == "done" && s.node(&addr) == "up"
    });
    let held = cluster.backup_ring().len();
    assert!(held < ITEMS && !status.mirrored(), "{held}: {status}");
    assert_eq!(status.node_number(&addr, "items_failed"), (ITEMS - held) as u64, "{status}");
    assert_eq!(copies_missing(&cluster), (ITEMS - held) as u64);
    // After an absence with its memory it lacks them still, and is known to.
    cluster.backups[0].pause();
    cluster.wait_lost(&addr);
    cluster.backups[0].resume();
    cluster.proxy.wait_status("the end of the partial refill", crate::support::DEADLINE, |s| {
        s.kind(&addr) == "partial" && s.all[&format!("node:{addr}:resync")] == "done" && s.node(&addr) == "up"
    });
    assert_eq!(copies_missing(&cluster), (ITEMS - cluster.backup_ring().len()) as u64);
    assert!(!cluster.proxy.status().mirrored());
    for i in KEPT..ITEMS {
        assert_eq!(client.delete(&format!("big:{i}")), Ok(true));
    }
    cluster.mirrored();
    assert_eq!(cluster.assert_rings_equal().len(), KEPT);
    // What was refused once is missed at the next absence no more.
    cluster.backups[0].kill();
    cluster.wait_lost(&addr);
    cluster.backups[0].restart();
    cluster.mirrored();
    assert_eq!(cluster.assert_rings_equal().len(), KEPT);
}

/// A primary that comes back and refuses items: it does not lead, for clients would miss them.
#[test]
fn a_primary_that_refuses_items_does_not_lead_before_it_takes_them() {
    const ITEMS: usize = 300;
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "big", ITEMS, 20_000);
    cluster.primaries[0].set_args(&["-M", "-m", "4"]);
    cluster.primaries[0].restart();
    let addr = cluster.primaries[0].addr();
    let (primary, backup) = (addr.clone(), cluster.backups[0].addr());
    let status = cluster.proxy.wait_status("refused items", crate::support::DEADLINE, |s| {
        s.pair(&primary, &backup, "reason") == "copies_missing" && s.node(&addr) == "handing_back"
    });
    assert_eq!(status.pair(&primary, &backup, "leader"), backup, "{status}");
    assert!(!status.mirrored());
    assert_eq!(count_filled(&mut client, "big", ITEMS, 20_000), ITEMS, "clients miss what the primary refused");
    // Clients go on writing all the while, also what was refused.
    for i in 0..10 {
        fill(&mut client, "small", 20, 100 + i);
    }
    for i in KEPT..ITEMS {
        assert_eq!(client.delete(&format!("big:{i}")), Ok(true));
    }
    let status =
        cluster.proxy.wait_status("mirrored", crate::support::DEADLINE, crate::support::proxy::Status::mirrored);
    assert_eq!(status.pair(&primary, &backup, "leader"), primary, "{status}");
    assert_eq!(cluster.assert_rings_equal().len(), KEPT + 20);
    assert_eq!(copies_missing(&cluster), 0);
    assert_eq!(client.set("after", b"x"), Ok(Stored::Stored));
}

/// A backup that evicts while it is filled: nobody knows which keys. They are looked for by
/// comparing, when it has evicted nothing more.
#[test]
fn a_refill_with_evictions_is_not_mirrored_before_the_copies_were_compared() {
    const ITEMS: usize = 600;
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "big", ITEMS, 20_000);
    let addr = cluster.backups[0].addr();
    cluster.backups[0].set_args(&["-m", "4"]);
    cluster.backups[0].restart();
    let status = cluster.proxy.wait_status("the end of the refill", crate::support::DEADLINE, |s| {
        s.all[&format!("node:{addr}:resync")] == "done" && s.node(&addr) == "up"
    });
    assert!(status.node_number(&addr, "items_evicted") > 0 && !status.mirrored(), "{status}");
    assert_eq!(status.all["pairs_missing_unknown"], "1", "{status}");
    assert_eq!(cluster.proxy.stat("pairs_missing_unknown"), 1);
    let (code, said) = wait(&cluster.proxy, "500ms");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("keys with one copy: unknown many"), "{said}");
    // A comparing puts back what the backup lacks, which evicts other items there: it has not found
    // them all.
    cluster.proxy.operator("resync verify");
    let status = cluster
        .proxy
        .wait_status("the end of the comparing", crate::support::DEADLINE, |s| s.all["verify:state"] == "done");
    assert_eq!(status.all["pairs_missing_unknown"], "1", "{status}");
    assert!(
        cluster.backups[0]
            .stat("evictions")
            .parse::<u64>()
            .is_ok_and(|n| n > status.node_number(&addr, "items_evicted"))
    );
    // With so few items both have room for all: a comparing by itself finds what the backup lacks,
    // and fills it in.
    for i in KEPT..ITEMS {
        assert_eq!(client.delete(&format!("big:{i}")), Ok(true));
    }
    assert!(cluster.backup_ring().len() < KEPT, "the backup lacks nothing: nothing is tested");
    cluster.mirrored();
    assert_eq!(cluster.assert_rings_equal().len(), KEPT);
}

/// At a first start the backup holds an item that the primary takes no more: it is kept, counted,
/// and tried again; it is readable when the primary dies, and over when a client deletes it.
#[test]
fn an_item_that_the_leader_does_not_adopt_stays_where_it_is() {
    const LARGE: usize = 600_000;
    for dies in [false, true] {
        let (primary, backup) = (Memcached::start(&["-I", "512k"]), Memcached::start(&[]));
        let mut direct = backup.client();
        direct.set("big", &[b'x'; LARGE]).expect("stored");
        fill(&mut direct, "small", 200, 100);
        fill(&mut primary.client(), "other", 200, 100);
        let mut cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1));
        let status = cluster
            .proxy
            .wait_status("the refusal to be told", crate::support::DEADLINE, |s| s.all["copies_missing"] == "1");
        let (primary, backup) = (cluster.primaries[0].known_as(), cluster.backups[0].known_as());
        assert!(!status.mirrored(), "{status}");
        assert_eq!(status.pair(&primary, &backup, "reason"), "copies_missing", "{status}");
        let mut client = cluster.client();
        assert_eq!(count_filled(&mut client, "small", 200, 100), 200, "all others are adopted");
        // Tried again at least once.
        let refused = cluster.primaries[0].stat("store_too_large");
        wait_until("another try", crate::support::DEADLINE, || cluster.primaries[0].stat("store_too_large") != refused);
        assert_eq!(
            cluster.backups[0].client().get("big").expect("an answer").expect("its only copy").value.len(),
            LARGE
        );
        if dies {
            cluster.primaries[0].kill();
            cluster.wait_lost(&primary);
            wait_until("the backup to lead", crate::support::DEADLINE, || {
                client.get("big").is_ok_and(|item| item.is_some_and(|item| item.value.len() == LARGE))
            });
        } else {
            client.delete("big").expect("an answer");
            cluster.mirrored();
            assert_eq!(copies_missing(&cluster), 0);
            assert_eq!(cluster.assert_rings_equal().len(), 400);
        }
        let log = cluster.proxy.log();
        assert!(log.contains("refuses an item that only the follower holds") && log.contains("key=\"big\""), "{log}");
    }
}

/// Whatever is flushed has no copy at all.
#[test]
fn a_flush_ends_what_was_missing() {
    let (primary, backup) = (Memcached::start(&[]), Memcached::start(&["-M", "-m", "4"]));
    let cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1));
    cluster.mirrored();
    let mut client = cluster.client();
    fill(&mut client, "big", 300, 20_000);
    assert!(copies_missing(&cluster) > 0);
    assert_eq!(client.raw_command("flush_all").as_deref(), Ok("OK"));
    assert_eq!(copies_missing(&cluster), 0);
    cluster.mirrored();
}

/// The primary dies with what only it held: that is said.
#[test]
fn the_loss_of_only_copies_is_told() {
    let (primary, backup) = (Memcached::start(&[]), Memcached::start(&["-M", "-m", "4"]));
    let mut cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1));
    cluster.mirrored();
    fill(&mut cluster.client(), "big", 300, 20_000);
    let missing = copies_missing(&cluster);
    assert!(missing > 0);
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    let log = cluster.proxy.log();
    assert!(
        log.contains("held the only copy of some keys") && log.contains(&format!("missing=\"{missing}\"")),
        "{log}"
    );
}

/// Nothing answers when the proxy starts: every word says why.
#[test]
fn nothing_in_reach_at_the_start_has_a_reason() {
    let (primary, backup) = (Memcached::absent(&[]), Memcached::absent(&[]));
    let mut cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1));
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    let status = cluster.proxy.wait_status("a dark pair", crate::support::DEADLINE, |s| {
        s.pair(&primary, &backup, "state") == "dark" && s.pair(&primary, &backup, "reason") != "starting"
    });
    assert_eq!(status.pair(&primary, &backup, "reason"), "refused", "{status}");
    for node in [&primary, &backup] {
        assert_eq!((status.node(node), status.all[&format!("node:{node}:reason")].as_str()), ("lost", "refused"));
    }
    let (code, said) = wait(&cluster.proxy, "300ms");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("pair {primary}|{backup} is dark, reason refused")), "{said}");
    cluster.primaries[0].restart();
    cluster.backups[0].restart();
    cluster.mirrored();
}

/// 16 + 16 servers make 256 pairs, 240 of which never get a key: they are left out, and a server
/// that is down is one line in the log.
#[test]
fn pairs_that_never_get_a_key_are_left_out() {
    let mut primaries: Vec<Memcached> = (0..4).map(|_| Memcached::start(&["-t", "1"])).collect();
    let backups: Vec<Memcached> = (0..6).map(|_| Memcached::start(&["-t", "1"])).collect();
    primaries[3].kill();
    let mut cluster = Cluster::over(primaries, backups, &Shape::new(4, 6));
    cluster.primaries[3].restart();
    cluster.mirrored();
    let status = cluster.proxy.status();
    let pairs =
        |status: &crate::support::proxy::Status| status.all.keys().filter(|name| name.ends_with(":leader")).count();
    assert_eq!((pairs(&status), status.all["pairs_unused"].as_str()), (12, "12"), "{status}");
    assert_eq!((cluster.proxy.stat("pairs_mirrored"), cluster.proxy.stat("pairs_unused")), (12, 12));
    let all = cluster.client().stat_lines("resync status all").expect("an answer");
    assert_eq!(all.iter().filter(|(name, _)| name.ends_with(":leader")).count(), 24);
    let before = cluster.proxy.log().len();
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    let log = cluster.proxy.log()[before..].to_owned();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("degraded")).collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains("pairs are degraded: one copy left pairs=3"), "{log}");
}

/// A way to `node` on which the first listings of keys are broken: of some lines one is left, with
/// a key of 300 bytes.
fn breaking_listings(node: String, breaks: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("address").to_string();
    let broken = Arc::new(AtomicUsize::new(0));
    let count = broken.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&node) else { continue };
            let (mut from_client, mut to_server) = (client.try_clone().expect("dup"), server.try_clone().expect("dup"));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                let _ = to_server.shutdown(std::net::Shutdown::Write);
            });
            let broken = broken.clone();
            std::thread::spawn(move || pass_answers(server, client, &broken, breaks));
        }
    });
    (addr, count)
}

fn pass_answers(mut server: TcpStream, mut client: TcpStream, broken: &AtomicUsize, breaks: usize) -> Option<()> {
    let (mut chunk, mut held) = (vec![0; 64 << 10], Vec::new());
    loop {
        let read = server.read(&mut chunk).ok().filter(|&n| n > 0)?;
        held.extend_from_slice(&chunk[..read]);
        let listing = held.starts_with(b"key=") && broken.load(Ordering::SeqCst) < breaks;
        if listing && !held.ends_with(b"END\r\n") {
            continue;
        }
        if listing {
            broken.fetch_add(1, Ordering::SeqCst);
            let text = String::from_utf8(std::mem::take(&mut held)).ok()?;
            let (items, rest): (Vec<&str>, Vec<&str>) =
                text.split_inclusive('\n').partition(|l| l.starts_with("key=item"));
            let (swallowed, kept) = items.split_at(4);
            let tail = swallowed[3].split_once(' ')?.1;
            held.extend(format!("key={} {tail}", "x".repeat(300)).bytes());
            held.extend(kept.concat().bytes().chain(rest.concat().bytes()));
        }
        client.write_all(&held).ok()?;
        held.clear();
    }
}

/// A listing with an impossible key is no listing: what its other lines were is not known, so
/// nothing is handed back by it.
#[test]
fn a_broken_listing_is_not_taken_for_whole() {
    let (primary, mut backup) = (Memcached::start(&[]), Memcached::start(&[]));
    let (way, broken) = breaking_listings(primary.addr(), 2);
    let args = ["--resync-latency", "off", "--probe-interval", "100ms", "-s", &way, "-b", &backup.addr()];
    let proxy = Proxy::start(&args.map(str::to_owned));
    proxy.wait_mirrored(crate::support::DEADLINE);
    fill(&mut proxy.client(), "item", 200, 50);
    backup.restart();
    let addr = backup.addr();
    proxy.wait_status("a listing to be broken", crate::support::DEADLINE, |_| broken.load(Ordering::SeqCst) > 0);
    let status = proxy.wait_status("the end of the refill", crate::support::DEADLINE, |s| {
        s.mirrored() && s.all[&format!("node:{addr}:resync")] == "done"
    });
    assert_eq!(status.node_number(&addr, "items_copied"), 200, "{status}");
    assert_eq!(broken.load(Ordering::SeqCst), 2);
    let held = crate::support::read_node(&addr);
    assert_eq!((0..200).filter(|i| held.contains_key(format!("item:{i}").as_bytes())).count(), 200);
    assert!(proxy.log().contains("resync ended early"));
}

/// Two proxies over the same servers: neither calls itself mirrored, and each says why; until one
/// of them is gone, and all was compared.
#[test]
fn two_proxies_that_fight_are_both_not_mirrored() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "k", 500, 50);
    let mut second = Proxy::start(&cluster.proxy.args);
    second.wait_status("it to hear of the first", crate::support::DEADLINE, |s| {
        assert!(!s.mirrored(), "it cannot know that yet: {s}");
        s.pair(&cluster.primaries[0].addr(), &cluster.backups[0].addr(), "reason") == "foreign_session"
    });
    for proxy in [&cluster.proxy, &second] {
        proxy.wait_status("the other one to be noticed", crate::support::DEADLINE, |s| {
            [&cluster.primaries[0], &cluster.backups[0]]
                .iter()
                .all(|node| s.all[&format!("node:{}:reason", node.addr())] == "foreign_session")
        });
        let (code, said) = wait(proxy, "1s");
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("reason foreign_session") && said.contains("another proxy works on server"), "{said}");
        assert_eq!(proxy.stat("pairs_mirrored"), 0);
    }
    // Both write, each past the other.
    let mut other = second.client();
    for i in 0..200 {
        assert_eq!(client.set(&format!("k:{i}"), b"first"), Ok(Stored::Stored));
        assert_eq!(other.set(&format!("k:{}", i + 100), b"second"), Ok(Stored::Stored));
    }
    cluster.proxy.kill();
    second.wait_status("the copies to be compared", crate::support::DEADLINE, |s| {
        let reason = s.pair(&cluster.primaries[0].addr(), &cluster.backups[0].addr(), "reason");
        assert_ne!(reason, "copies_missing", "no server has refused or evicted anything: {s}");
        s.mirrored()
    });
    assert!(!second.log_so_far().contains("refused or evicted"), "{}", second.log_so_far());
    assert_eq!(wait(&second, "20s"), (Some(0), "mirrored\n".into()));
    assert_eq!(cluster.assert_rings_equal().len(), 500);
    assert!(second.stop().success());
}

/// memcached holds an item that it moves in its LRU, as it does after a second get of one that is
/// seconds old; then a count makes another item, without the blanks that the number would have
/// behind it in the item's place. (98 of 100 keys had `5` on one server and `5  ` on the other.)
#[test]
fn counters_that_clients_read_are_equal_on_both_servers() {
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut client = cluster.client();
    let keys = |name: &str| (0..40).map(|i| format!("{name}{i}")).collect::<Vec<String>>();
    let (classic, meta, timed) = (keys("c"), keys("m"), keys("t"));
    for key in classic.iter().chain(&meta).chain(&timed) {
        client.set(key, b"100").unwrap();
    }
    // The items are no young ones any more: those are not moved.
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    let mut last = |key: &str, count: &str, join: &str| {
        client.send(format!("get {key}\r\nget {key}\r\n{count}\r\n{join}\r\nmn\r\n").as_bytes()).unwrap();
        client.raw_until(b"MN\r\n").unwrap();
    };
    classic.iter().for_each(|key| last(key, &format!("decr {key} 95"), &format!("append {key} 0 0 1\r\nx")));
    meta.iter().for_each(|key| last(key, &format!("ma {key} MD D95"), &format!("ms {key} 1 MA\r\nx")));
    timed.iter().for_each(|key| last(key, &format!("ma {key} T600"), &format!("mg {key} v")));
    let held = cluster.assert_rings_equal();
    let unpadded = classic.iter().filter(|key| held[key.as_bytes()].value == b"5x").count();
    assert!(unpadded > 0, "each was counted in its place: nothing is tested");
    let times = |server: &Memcached, key: &str| {
        let mut client = server.client();
        client.send(format!("mg {key} t\r\nmn\r\n").as_bytes()).unwrap();
        let (answer, _) = client.raw_until(b"MN\r\n").unwrap();
        String::from_utf8_lossy(&answer).contains(" t-1")
    };
    for key in &timed {
        let (primary, backup) = (times(&cluster.primaries[0], key), times(&cluster.backups[0], key));
        assert_eq!(primary, backup, "{key}: whether it never expires");
    }
}
