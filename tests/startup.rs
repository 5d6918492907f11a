//! The proxy starts: what it finds on real nodes after clean stops, crashes and node restarts, and after the list of servers changed.

mod support;

use support::client::storage;
use support::cluster::{count_filled, fill};
use support::{Client, Cluster, Failure, Memcached, Proxy, Shape, Stored, wait_until};

/// SIGKILL, then a new proxy with the same settings.
fn crash_and_start(cluster: &mut Cluster) {
    cluster.proxy.kill();
    start(cluster);
}

fn start(cluster: &mut Cluster) {
    cluster.proxy.spawn();
    cluster.proxy.wait_listening(support::DEADLINE);
}

fn value(client: &mut Client, key: &str) -> Option<String> {
    let item = client.get(key).unwrap_or_else(|e| panic!("get {key}: {e}"));
    item.map(|i| String::from_utf8(i.value).expect("a text"))
}

fn set(client: &mut Client, key: &str, value: &str) {
    assert_eq!(client.set(key, value.as_bytes()), Ok(Stored::Stored), "set {key}");
}

/// What a later start of the same proxy logged: everything since its last "started".
fn last_run(cluster: &Cluster) -> String {
    let log = cluster.proxy.log();
    log.rsplit_once(" started ").map_or_else(String::new, |(_, rest)| rest.to_owned())
}

fn record(node: &Memcached, pair: u32) -> String {
    value(&mut node.client(), &format!("__resilver__:pair:{pair}")).unwrap_or_default()
}

// ---- rows of the start-up table -------------------------------------------------------------------------------------------------

#[test]
fn row_both_in_sync_after_a_clean_stop_is_mirrored_without_a_resync() {
    let mut cluster = Cluster::start(&Shape::new(2, 1));
    fill(&mut cluster.client(), "clean", 500, 50);
    assert!(cluster.proxy.stop().success());
    start(&mut cluster);
    cluster.mirrored();
    let run = last_run(&cluster);
    assert!(!run.contains("resync begins") && !run.contains("did not stop cleanly"), "{run}");
    assert_eq!(count_filled(&mut cluster.client(), "clean", 500, 50), 500);
}

#[test]
fn row_both_in_sync_after_a_crash_under_load_loses_nothing_and_heals() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    fill(&mut cluster.client(), "before", 2000, 50);
    for round in 0..3 {
        let addr = cluster.proxy.addr();
        let writer = std::thread::spawn(move || {
            let mut client = Client::connect(&addr);
            let mut acknowledged = 0u64;
            // Until the proxy dies under it.
            while client.set("counter", (acknowledged + 1).to_string().as_bytes()) == Ok(Stored::Stored) {
                acknowledged += 1;
            }
            acknowledged
        });
        let mut busy = cluster.client();
        wait_until("some writes", support::DEADLINE, || {
            value(&mut busy, "counter").is_some_and(|v| v.parse::<u64>().expect("a number") > 200)
        });
        crash_and_start(&mut cluster);
        let acknowledged = writer.join().expect("the writer");
        let read: u64 = value(&mut cluster.client(), "counter").and_then(|v| v.parse().ok()).unwrap_or(0);
        assert!(
            (acknowledged..=acknowledged + 1).contains(&read),
            "round {round}: {acknowledged} acknowledged, {read} read"
        );
        assert!(last_run(&cluster).contains("did not stop cleanly"));
        cluster.mirrored();
        let again: u64 = value(&mut cluster.client(), "counter").and_then(|v| v.parse().ok()).unwrap_or(0);
        assert_eq!(again, read, "round {round}");
        cluster.assert_rings_equal();
        assert_eq!(cluster.client().delete("counter"), Ok(true));
    }
    cluster.kill_primaries();
    assert_eq!(count_filled(&mut cluster.client(), "before", 2000, 50), 2000);
}

#[test]
fn row_a_node_restarted_while_no_proxy_ran_is_refilled_from_the_other() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    fill(&mut cluster.client(), "kept", 2000, 50);
    for primary in [true, false] {
        assert!(cluster.proxy.stop().success());
        if primary {
            cluster.primaries[0].restart()
        } else {
            cluster.backups[0].restart()
        }
        start(&mut cluster);
        assert_eq!(count_filled(&mut cluster.client(), "kept", 2000, 50), 2000, "right after the start");
        cluster.mirrored();
        cluster.assert_rings_equal();
    }
    cluster.kill_primaries();
    assert_eq!(count_filled(&mut cluster.client(), "kept", 2000, 50), 2000, "from the backup");
}

#[test]
fn row_both_nodes_restarted_while_no_proxy_ran_are_empty_and_mirrored() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    set(&mut cluster.client(), "gone", "1");
    cluster.proxy.kill();
    cluster.primaries[0].restart();
    cluster.backups[0].restart();
    start(&mut cluster);
    cluster.mirrored();
    let mut client = cluster.client();
    assert_eq!(value(&mut client, "gone"), None);
    set(&mut client, "new", "2");
    cluster.assert_rings_equal();
}

#[test]
fn row_both_with_items_and_no_markers_the_primary_leads() {
    let (primary, backup) = (Memcached::start(&[]), Memcached::start(&[]));
    set(&mut primary.client(), "both", "primary's");
    set(&mut primary.client(), "left", "primary's");
    set(&mut backup.client(), "both", "backup's");
    let cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1));
    let mut client = cluster.client();
    assert_eq!(value(&mut client, "both").as_deref(), Some("primary's"));
    assert_eq!(value(&mut client, "left").as_deref(), Some("primary's"));
    cluster.mirrored();
    assert_eq!(value(&mut client, "both").as_deref(), Some("primary's"));
    let all = cluster.assert_rings_equal();
    assert!(all.len() >= 2, "{all:?}");
}

#[test]
fn row_unreachable_and_in_sync_leads_alone() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    fill(&mut cluster.client(), "kept", 500, 50);
    assert!(cluster.proxy.stop().success());
    cluster.primaries[0].kill();
    start(&mut cluster);
    let mut client = cluster.client();
    assert_eq!(count_filled(&mut client, "kept", 500, 50), 500);
    set(&mut client, "more", "1");
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    let status = cluster.proxy.status();
    assert_eq!(status.pair(&primary, &backup, "state"), "degraded", "{status}");
    assert_eq!(status.pair(&primary, &backup, "leader"), backup, "{status}");
    cluster.primaries[0].restart();
    cluster.mirrored();
    cluster.assert_rings_equal();
}

#[test]
fn row_unreachable_and_no_markers_leads_with_a_warning() {
    let backup = Memcached::start(&[]);
    set(&mut backup.client(), "old", "1");
    let mut cluster = Cluster::over(vec![Memcached::absent(&[])], vec![backup], &Shape::new(1, 1));
    let mut client = cluster.client();
    assert_eq!(value(&mut client, "old").as_deref(), Some("1"));
    set(&mut client, "new", "2");
    wait_until("the warning", support::DEADLINE, || cluster.proxy.log().contains("leads on its own word"));
    cluster.primaries[0].restart();
    cluster.mirrored();
    assert_eq!(cluster.assert_rings_equal().len(), 2);
}

/// The primary hangs, the backup takes a write alone and then hangs too; a new proxy finds only the primary, which is out of date.
fn only_the_stale_one_answers() -> Cluster {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    set(&mut cluster.client(), "k", "old");
    cluster.primaries[0].pause();
    // The hung node executes what was sent to it before it was given up on: that is the first write, not the second.
    set(&mut cluster.client(), "noticed", "1");
    set(&mut cluster.client(), "k", "new");
    // The primary is told that the backup leads alone when it comes back; nobody refills it before the proxy dies.
    cluster.proxy.kill();
    cluster.proxy.args.extend(["--resync=manual".to_owned()]);
    cluster.proxy.args.retain(|a| a != "--resync=auto");
    cluster.primaries[0].resume();
    start(&mut cluster);
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("new"));
    wait_until("the primary to be a witness", support::DEADLINE, || {
        record(&cluster.primaries[0], 0).contains("alone backup")
    });
    cluster.proxy.kill();
    cluster.backups[0].pause();
    start(&mut cluster);
    cluster
}

#[test]
fn row_unreachable_and_stale_is_refused_until_the_other_answers() {
    let cluster = only_the_stale_one_answers();
    let mut client = cluster.client();
    for _ in 0..20 {
        match client.get("k") {
            Err(Failure::Server(line)) => assert!(line.contains("recorded as out of date"), "{line}"),
            other => panic!("an out-of-date node answered {other:?}"),
        }
    }
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    let status = cluster.proxy.status();
    assert_eq!(status.pair(&primary, &backup, "reason"), "stale_alone", "{status}");
    cluster.backups[0].resume();
    wait_until("the backup to lead", support::DEADLINE, || client.get("k").is_ok());
    assert_eq!(value(&mut client, "k").as_deref(), Some("new"));
    cluster.proxy.operator("resync");
    cluster.mirrored();
    assert_eq!(value(&mut client, "k").as_deref(), Some("new"));
    cluster.assert_rings_equal();
}

#[test]
fn row_unreachable_and_stale_leads_on_the_operators_word() {
    let cluster = only_the_stale_one_answers();
    let mut client = cluster.client();
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    let refused = client.raw_command(&format!("resync lead {backup}")).expect("an answer");
    assert!(refused.starts_with("CLIENT_ERROR") && refused.contains("does not answer"), "{refused}");
    cluster.proxy.operator(&format!("resync lead {primary}"));
    wait_until("the primary to lead", support::DEADLINE, || client.get("k").is_ok());
    assert_eq!(value(&mut client, "k").as_deref(), Some("old"), "what it holds");
    set(&mut client, "k", "newest");
    let refused = client.raw_command(&format!("resync lead {primary}")).expect("an answer");
    assert!(refused.starts_with("CLIENT_ERROR") && refused.contains("no dark pair"), "{refused}");
    cluster.backups[0].resume();
    cluster.proxy.wait_node(&backup, "waiting");
    cluster.proxy.operator("resync");
    cluster.mirrored();
    assert_eq!(value(&mut client, "k").as_deref(), Some("newest"));
    cluster.assert_rings_equal();
}

// ---- crashes at the worst moment ------------------------------------------------------------------------------------------------

/// Degraded is recorded on the survivor before the first write is acknowledged without the other.
#[test]
fn a_crash_right_after_the_first_write_alone_never_shows_the_old_value() {
    for hung_primary in [true, false] {
        let mut cluster = Cluster::start(&Shape::new(1, 1));
        set(&mut cluster.client(), "k", "old");
        let hung = if hung_primary { &cluster.primaries[0] } else { &cluster.backups[0] };
        hung.pause();
        // The hung node executes what was sent to it before it was given up on: that is the first write, not the second.
        let mut client = cluster.client();
        set(&mut client, "noticed", "1");
        set(&mut client, "k", "new");
        cluster.proxy.kill();
        let hung = if hung_primary { &cluster.primaries[0] } else { &cluster.backups[0] };
        hung.resume();
        start(&mut cluster);
        let mut client = cluster.client();
        wait_until("mirrored", support::DEADLINE, || {
            assert_eq!(value(&mut client, "k").as_deref(), Some("new"), "hung primary: {hung_primary}");
            cluster.proxy.status().mirrored()
        });
        assert_eq!(value(&mut client, "k").as_deref(), Some("new"));
        cluster.assert_rings_equal();
    }
}

#[test]
fn a_crash_while_degraded_keeps_what_the_survivor_took() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    fill(&mut cluster.client(), "a", 1000, 50);
    cluster.primaries[0].kill();
    fill(&mut cluster.client(), "b", 500, 50);
    assert_eq!(cluster.client().delete("a:0"), Ok(true));
    cluster.proxy.kill();
    cluster.primaries[0].restart();
    start(&mut cluster);
    let mut client = cluster.client();
    assert_eq!(count_filled(&mut client, "a", 1000, 50), 999);
    assert_eq!(count_filled(&mut client, "b", 500, 50), 500);
    cluster.mirrored();
    cluster.assert_rings_equal();
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "a", 1000, 50), 999);
    assert_eq!(count_filled(&mut client, "b", 500, 50), 500);
}

/// The half-filled node keeps its part, and what is on it may be deleted, before the next proxy comes.
#[test]
fn a_crash_in_mid_resync_lets_no_half_filled_node_lead() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync-rate", "500"]));
    fill(&mut cluster.client(), "a", 3000, 50);
    cluster.primaries[0].restart();
    let primary = cluster.primaries[0].addr();
    cluster.wait_copying(&primary);
    let mut client = cluster.client();
    for i in 0..200 {
        client.delete(&format!("a:{i}")).expect("a delete");
    }
    cluster.proxy.kill();
    start(&mut cluster);
    let status = cluster.proxy.wait_status("decided", support::DEADLINE, |s| {
        s.pair(&primary, &cluster.backups[0].addr(), "leader") != "none"
    });
    assert_eq!(status.pair(&primary, &cluster.backups[0].addr(), "leader"), cluster.backups[0].addr(), "{status}");
    assert_eq!(count_filled(&mut cluster.client(), "a", 3000, 50), 2800);
    // Again, and this time the backup is away at the start: what the primary holds is a part.
    cluster.wait_copying(&primary);
    cluster.proxy.kill();
    cluster.backups[0].pause();
    start(&mut cluster);
    let answer = cluster.client().get("a:2999");
    assert!(matches!(answer, Err(Failure::Server(_))), "{answer:?}");
    cluster.backups[0].resume();
    wait_until("the backup to lead", support::DEADLINE, || cluster.client().get("a:2999").is_ok());
    assert_eq!(count_filled(&mut cluster.client(), "a", 3000, 50), 2800);
}

/// A clean stop cannot close the session on a node that is away. That is no crash.
#[test]
fn a_clean_stop_while_a_node_is_away_is_no_crash() {
    let mut cluster = Cluster::start(&Shape::new(3, 1));
    fill(&mut cluster.client(), "a", 1000, 50);
    cluster.primaries[2].pause();
    cluster.wait_lost(&cluster.primaries[2].addr());
    assert!(cluster.proxy.stop().success());
    cluster.primaries[2].resume();
    start(&mut cluster);
    cluster.mirrored();
    let run = last_run(&cluster);
    assert!(!run.contains("did not stop cleanly"), "{run}");
    let refilled: Vec<&str> = run.lines().filter(|l| l.contains("resync begins")).collect();
    assert!(!refilled.is_empty(), "nobody was refilled: {run}");
    let expected = format!("node={}", cluster.primaries[2].addr());
    assert!(refilled.iter().all(|line| line.contains(&expected)), "{refilled:?}");
    assert_eq!(count_filled(&mut cluster.client(), "a", 1000, 50), 1000);
}

/// The clock was set back: a node that is away at the start carries a later record than any that this proxy would write.
#[test]
fn a_later_record_that_comes_back_is_outranked_before_the_next_start() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync=manual"]));
    set(&mut cluster.client(), "k", "old");
    assert!(cluster.proxy.stop().success());
    let later = record(&cluster.primaries[0], 0).replacen(|_: char| true, "9", 1);
    assert!(later.starts_with('9') && later.contains("sync"), "{later}");
    set(&mut cluster.primaries[0].client(), "__resilver__:pair:0", &later);
    cluster.primaries[0].pause();
    start(&mut cluster);
    set(&mut cluster.client(), "k", "new");
    cluster.primaries[0].resume();
    cluster.proxy.wait_node(&cluster.primaries[0].addr(), "waiting");
    cluster.proxy.kill();
    start(&mut cluster);
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("new"));
    cluster.proxy.operator("resync");
    cluster.mirrored();
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("new"));
}

// ---- changes of the ring --------------------------------------------------------------------------------------------------------

/// A proxy over some of the nodes, in that order.
fn over(primaries: &[&Memcached], backups: &[&Memcached], more: &[&str]) -> Proxy {
    let mut args: Vec<String> =
        ["--timeout", "250ms", "--probe-timeout", "250ms", "--threads", "2"].map(str::to_owned).into();
    if !more.contains(&"--probe-interval") {
        args.extend(["--probe-interval", "50ms"].map(str::to_owned));
    }
    args.extend(more.iter().map(|&a| a.to_owned()));
    for node in primaries {
        args.extend(["-s".to_owned(), node.addr()]);
    }
    for node in backups {
        args.extend(["-b".to_owned(), node.addr()]);
    }
    Proxy::start(&args)
}

fn wait_clean(nodes: &[&Memcached]) {
    wait_until("the nodes to be clean", support::DEADLINE, || {
        nodes.iter().all(|n| value(&mut n.client(), "__resilver__:ring").is_some_and(|v| v.ends_with(" clean")))
    });
}

const KEYS: usize = 300;

fn write_all(proxy: &Proxy, value: &str) {
    let mut client = proxy.client();
    let batch: Vec<u8> = (0..KEYS).flat_map(|i| storage("set", &format!("k{i}"), 0, 0, value.as_bytes(), "")).collect();
    client.send(&batch).expect("send");
    for i in 0..KEYS {
        assert_eq!(client.stored(), Ok(Stored::Stored), "k{i}");
    }
}

/// Reads every key until all pairs are mirrored, and once more: only `value` or nothing may come. Returns how many came in the end.
fn only(proxy: &Proxy, expected: &str) -> usize {
    let mut client = proxy.client();
    let mut read = || {
        (0..KEYS)
            .filter(|i| match client.get(&format!("k{i}")) {
                Ok(Some(item)) => {
                    assert_eq!(String::from_utf8_lossy(&item.value), expected, "k{i} is out of date");
                    true
                }
                Ok(None) => false,
                // A pair whose nodes are all purged before one leads.
                Err(Failure::Server(_)) => false,
                Err(other) => panic!("get k{i}: {other}"),
            })
            .count()
    };
    wait_until("mirrored", support::DEADLINE, || {
        read();
        proxy.status().mirrored()
    });
    read()
}

#[test]
fn a_primary_added_and_removed_again_leaves_no_old_values() {
    let (a, b, c, m) = (Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]));
    let mut proxy = over(&[&a, &b], &[&m], &[]);
    write_all(&proxy, "one");
    proxy.wait_mirrored(support::DEADLINE);
    assert!(proxy.stop().success());

    let mut proxy = over(&[&a, &b, &c], &[&m], &[]);
    only(&proxy, "one");
    write_all(&proxy, "two");
    wait_clean(&[&a, &b, &c, &m]);
    assert_eq!(only(&proxy, "two"), KEYS);
    assert!(proxy.stop().success());

    let proxy = over(&[&a, &b], &[&m], &[]);
    only(&proxy, "two");
}

/// The nodes still hold keys that moved when the proxy dies: then nothing on them is trusted under yet another ring.
#[test]
fn a_crash_before_moved_keys_are_deleted_leaves_no_old_values() {
    let (a, b, c, m) = (Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]));
    let mut proxy = over(&[&a, &b], &[&m], &[]);
    write_all(&proxy, "one");
    proxy.wait_mirrored(support::DEADLINE);
    assert!(proxy.stop().success());

    // Nothing is cleaned before the first probe.
    let mut proxy = over(&[&a, &b, &c], &[&m], &["--probe-interval", "60s", "--resync=manual"]);
    write_all(&proxy, "two");
    proxy.kill();
    assert!(value(&mut a.client(), "__resilver__:ring").is_some_and(|v| v.ends_with(" dirty")));

    let mut proxy = over(&[&a, &b], &[&m], &["--probe-interval", "60s"]);
    only(&proxy, "two");
    // The distrust outlives a crash of the proxy that began with it.
    proxy.kill();
    let proxy = over(&[&a, &b], &[&m], &[]);
    only(&proxy, "two");
}

/// The same ring again after a crash: cleaning goes on, and the nodes are trusted meanwhile.
#[test]
fn a_crash_before_moved_keys_are_deleted_costs_nothing_under_the_same_ring() {
    let (a, b, c, m) = (Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]));
    let mut proxy = over(&[&a, &b], &[&m], &[]);
    write_all(&proxy, "one");
    proxy.wait_mirrored(support::DEADLINE);
    assert!(proxy.stop().success());
    let mut proxy = over(&[&a, &b, &c], &[&m], &["--probe-interval", "60s", "--resync=manual"]);
    write_all(&proxy, "two");
    proxy.kill();
    let proxy = over(&[&a, &b, &c], &[&m], &[]);
    assert_eq!(only(&proxy, "two"), KEYS);
    wait_clean(&[&a, &b, &c, &m]);
    assert_eq!(only(&proxy, "two"), KEYS);
}

#[test]
fn a_primary_that_missed_a_period_is_not_trusted_with_its_own_marker() {
    let (a, b, c, m) = (Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]));
    let mut proxy = over(&[&a, &b, &c], &[&m], &[]);
    write_all(&proxy, "one");
    proxy.wait_mirrored(support::DEADLINE);
    assert!(proxy.stop().success());
    let mut proxy = over(&[&a, &b], &[&m], &[]);
    write_all(&proxy, "two");
    wait_clean(&[&a, &b, &m]);
    proxy.wait_mirrored(support::DEADLINE);
    assert!(proxy.stop().success());
    // c carries the markers of exactly this ring, and of a clean stop.
    let proxy = over(&[&a, &b, &c], &[&m], &[]);
    only(&proxy, "two");
}

#[test]
fn an_order_changed_and_changed_back_leaves_no_old_values() {
    let (a, b, m) = (Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]));
    for (order, value) in [([&a, &b], "one"), ([&b, &a], "two"), ([&a, &b], "three"), ([&b, &a], "four")] {
        let mut proxy = over(&order, &[&m], &[]);
        write_all(&proxy, value);
        wait_clean(&[&a, &b, &m]);
        assert_eq!(only(&proxy, value), KEYS);
        assert!(proxy.stop().success());
    }
    let proxy = over(&[&a, &b], &[&m], &[]);
    only(&proxy, "four");
}

// ---- flush_all ------------------------------------------------------------------------------------------------------------------

fn flush_all(client: &mut Client, delay: &str) {
    assert_eq!(client.raw_command(format!("flush_all {delay}").trim_end()).as_deref(), Ok("OK"));
}

fn pending(proxy: &Proxy) -> String {
    let stats = proxy.client().stats("").expect("stats");
    stats.into_iter().find(|(name, _)| name == "delayed_flushes").expect("delayed_flushes").1
}

#[test]
fn delayed_flushes_outlive_crashes_and_immediate_ones() {
    let mut cluster = Cluster::start(&Shape::new(2, 1));
    let mut client = cluster.client();
    flush_all(&mut client, "3");
    flush_all(&mut client, "8");
    flush_all(&mut client, "8");
    set(&mut client, "k", "one");
    // The immediate one cancels neither.
    flush_all(&mut client, "");
    assert_eq!(value(&mut client, "k"), None);
    set(&mut client, "k", "two");
    assert_eq!(pending(&cluster.proxy), "2");
    crash_and_start(&mut cluster);
    assert_eq!(pending(&cluster.proxy), "2");
    let mut client = cluster.client();
    assert_eq!(value(&mut client, "k").as_deref(), Some("two"), "not due yet");
    wait_until("the first one to be run", support::DEADLINE, || value(&mut client, "k").is_none());
    assert_eq!(pending(&cluster.proxy), "1");
    set(&mut client, "k", "three");
    // Struck off behind the closed gates: a new proxy does not run it a second time.
    crash_and_start(&mut cluster);
    let mut client = cluster.client();
    assert_eq!(value(&mut client, "k").as_deref(), Some("three"), "run twice");
    assert_eq!(pending(&cluster.proxy), "1");
    // The second one comes due while no proxy runs.
    cluster.proxy.kill();
    std::thread::sleep(std::time::Duration::from_secs(7));
    start(&mut cluster);
    let mut client = cluster.client();
    assert_eq!(value(&mut client, "k"), None, "a flush that was acknowledged never ran");
    set(&mut client, "k", "four");
    assert_eq!(pending(&cluster.proxy), "0");
    assert!(cluster.proxy.stop().success());
    start(&mut cluster);
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("four"), "run twice");
    cluster.mirrored();
    cluster.assert_rings_equal();
}

/// A node that was away still has a delayed flush on its list, which was run without it.
#[test]
fn a_node_that_was_away_does_not_bring_a_delayed_flush_back() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync=manual"]));
    let mut client = cluster.client();
    flush_all(&mut client, "1");
    cluster.backups[0].pause();
    wait_until("the flush to be run", support::DEADLINE, || pending(&cluster.proxy) == "0");
    set(&mut client, "k", "after");
    cluster.proxy.kill();
    cluster.backups[0].resume();
    start(&mut cluster);
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("after"));
    let told = |n: &Memcached| value(&mut n.client(), "__resilver__:flush");
    wait_until("the node to be told", support::DEADLINE, || told(&cluster.backups[0]) == told(&cluster.primaries[0]));
    assert!(told(&cluster.backups[0]).is_some_and(|t| !t.contains(' ')), "{:?}", told(&cluster.backups[0]));
}

#[test]
fn too_many_delayed_flushes_are_refused() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    for i in 0..64 {
        flush_all(&mut client, &(1000 + 10 * i).to_string());
    }
    let refused = client.raw_command("flush_all 99999").expect("an answer");
    assert!(refused.starts_with("SERVER_ERROR too many"), "{refused}");
    assert_eq!(pending(&cluster.proxy), "64");
}

/// Every node refuses `flush_all` (`-F`): nothing was flushed, so the full copy that is away is as good as before.
#[test]
fn a_flush_that_all_refuse_leaves_a_dark_pair_its_copy() {
    let cluster = Cluster::start(&Shape::new(2, 2).nodes(&["-F"]));
    fill(&mut cluster.client(), "kept", 400, 50);
    // Keys of primary 0 are on backup 0, for two divides two.
    cluster.primaries[0].pause();
    cluster.wait_lost(&cluster.primaries[0].addr());
    cluster.backups[0].pause();
    let pair = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    cluster.proxy.wait_status("dark", support::DEADLINE, |s| s.pair(&pair.0, &pair.1, "state") == "dark");
    let refused = cluster.client().raw_command("flush_all").expect("an answer");
    assert!(!refused.starts_with("OK"), "{refused}");
    cluster.backups[0].resume();
    cluster.primaries[0].resume();
    cluster.mirrored();
    assert_eq!(count_filled(&mut cluster.client(), "kept", 400, 50), 400);
}

/// A pair is dark, its last full copy is away, and a flush is acknowledged. The proxy crashes; the copy comes back with its record.
#[test]
fn a_flush_while_the_last_copy_is_away_outlives_a_crash() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    set(&mut cluster.client(), "k", "old");
    cluster.primaries[0].pause();
    set(&mut cluster.client(), "k2", "old");
    set(&mut cluster.client(), "k", "flushed");
    cluster.proxy.kill();
    cluster.primaries[0].resume();
    cluster.proxy.args.retain(|a| a != "--resync=auto");
    cluster.proxy.args.push("--resync=manual".to_owned());
    start(&mut cluster);
    wait_until("the primary to be a witness", support::DEADLINE, || {
        record(&cluster.primaries[0], 0).contains("alone backup")
    });
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    cluster.backups[0].pause();
    cluster.proxy.wait_status("dark", support::DEADLINE, |s| s.pair(&primary, &backup, "state") == "dark");
    flush_all(&mut cluster.client(), "");
    assert!(record(&cluster.primaries[0], 0).contains("nobody"), "{}", record(&cluster.primaries[0], 0));
    cluster.proxy.kill();
    cluster.backups[0].resume();
    start(&mut cluster);
    let mut client = cluster.client();
    wait_until("the pair to be led", support::DEADLINE, || match client.get("k") {
        Ok(item) => {
            assert_eq!(item, None, "what was flushed came back");
            true
        }
        Err(_) => false,
    });
    assert_eq!(value(&mut client, "k2"), None);
}

// ---- two proxies ----------------------------------------------------------------------------------------------------------------

#[test]
fn a_second_proxy_is_noticed_and_nobody_is_promoted_under_it() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    set(&mut cluster.client(), "k", "one");
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    let mut second = over(&[&cluster.primaries[0]], &[&cluster.backups[0]], &[]);
    cluster.proxy.wait_status("the first to notice", support::DEADLINE, |s| {
        s.all.get(&format!("node:{primary}:reason")).is_some_and(|r| r == "foreign_session")
            && s.all.get(&format!("node:{backup}:reason")).is_some_and(|r| r == "foreign_session")
            && s.pair(&primary, &backup, "reason") == "foreign_session"
    });
    wait_until("an error in the log", support::DEADLINE, || {
        cluster.proxy.log().matches("another proxy works on this node").count() == 2
    });
    second.wait_mirrored(support::DEADLINE);
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("one"), "what is led goes on being led");
    cluster.primaries[0].pause();
    cluster.wait_lost(&primary);
    let answer = cluster.client().get("k");
    assert!(matches!(answer, Err(Failure::Server(_))), "the follower was promoted: {answer:?}");
    wait_until("the second to go on without the primary", support::DEADLINE, || {
        second.client().set("k", b"two") == Ok(Stored::Stored)
    });
    cluster.primaries[0].resume();
    second.wait_mirrored(support::DEADLINE);
    assert!(second.stop().success());
    // The second one's session is closed on both nodes: the first takes over again, and makes the copies equal.
    cluster.proxy.wait_status("the first to be alone", support::DEADLINE, |s| {
        s.mirrored() && s.pair(&primary, &backup, "reason") == "none"
    });
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("two"));
    set(&mut cluster.client(), "k", "three");
    cluster.assert_rings_equal();
    // And its own session is on the nodes: a clean stop is one.
    assert!(cluster.proxy.stop().success());
    let session = |n: &Memcached| value(&mut n.client(), "__resilver__:session").unwrap_or_default();
    assert!(session(&cluster.primaries[0]).ends_with(" closed") && session(&cluster.backups[0]).ends_with(" closed"));
}

#[test]
fn a_proxy_that_stops_closes_no_other_ones_session() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--probe-interval", "60s"]));
    let second = over(&[&cluster.primaries[0]], &[&cluster.backups[0]], &[]);
    second.wait_mirrored(support::DEADLINE);
    assert!(cluster.proxy.stop().success());
    let session = value(&mut cluster.primaries[0].client(), "__resilver__:session").unwrap_or_default();
    assert!(session.ends_with(" open"), "{session}: a crash of the second proxy would pass for a clean stop");
}
