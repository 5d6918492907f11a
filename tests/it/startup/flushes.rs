//! Flushes that are due, or were not everywhere, when the proxy starts.

use crate::support::cluster::{count_filled, fill};
use crate::support::start::{crash_and_start, record, set, start, value};
use crate::support::{Client, Cluster, DEADLINE, Memcached, Proxy, Shape, wait_until};

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
    wait_until("the first one to be run", DEADLINE, || value(&mut client, "k").is_none());
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

/// Not by a later probe: the proxy may die right after its answer.
#[test]
fn a_delayed_flush_is_on_every_node_before_it_is_acknowledged() {
    let cluster = Cluster::start(&Shape::new(2, 1).proxy(&["--probe-interval", "60s"]));
    flush_all(&mut cluster.client(), "1000");
    for node in cluster.primaries.iter().chain(&cluster.backups) {
        let told = value(&mut node.client(), "__resilver__:flush").unwrap_or_default();
        assert_eq!(told.split(' ').count(), 2, "{told:?}");
    }
}

/// A node that was away still has a delayed flush on its list, which was run without it.
#[test]
fn a_node_that_was_away_does_not_bring_a_delayed_flush_back() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync=manual"]));
    let mut client = cluster.client();
    flush_all(&mut client, "1");
    cluster.backups[0].pause();
    wait_until("the flush to be run", DEADLINE, || pending(&cluster.proxy) == "0");
    set(&mut client, "k", "after");
    cluster.proxy.kill();
    cluster.backups[0].resume();
    start(&mut cluster);
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("after"));
    let told = |n: &Memcached| value(&mut n.client(), "__resilver__:flush");
    wait_until("the node to be told", DEADLINE, || told(&cluster.backups[0]) == told(&cluster.primaries[0]));
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

/// Every node refuses `flush_all` (`-F`): nothing was flushed, so the full copy that is away is as
/// good as before.
#[test]
fn a_flush_that_all_refuse_leaves_a_dark_pair_its_copy() {
    let cluster = Cluster::start(&Shape::new(2, 2).nodes(&["-F"]));
    fill(&mut cluster.client(), "kept", 400, 50);
    // Keys of primary 0 are on backup 0, for two divides two.
    cluster.primaries[0].pause();
    cluster.wait_lost(&cluster.primaries[0].addr());
    cluster.backups[0].pause();
    let pair = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    cluster.proxy.wait_status("dark", DEADLINE, |s| s.pair(&pair.0, &pair.1, "state") == "dark");
    let refused = cluster.client().raw_command("flush_all").expect("an answer");
    assert!(!refused.starts_with("OK"), "{refused}");
    cluster.backups[0].resume();
    cluster.primaries[0].resume();
    cluster.mirrored();
    assert_eq!(count_filled(&mut cluster.client(), "kept", 400, 50), 400);
}

/// A pair is dark, its last full copy is away, and a flush is acknowledged. The proxy crashes; the
/// copy comes back with its record.
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
    wait_until("the primary to be a witness", DEADLINE, || record(&cluster.primaries[0], 0).contains("alone backup"));
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    cluster.backups[0].pause();
    cluster.proxy.wait_status("dark", DEADLINE, |s| s.pair(&primary, &backup, "state") == "dark");
    flush_all(&mut cluster.client(), "");
    assert!(record(&cluster.primaries[0], 0).contains("nobody"), "{}", record(&cluster.primaries[0], 0));
    cluster.proxy.kill();
    cluster.backups[0].resume();
    start(&mut cluster);
    let mut client = cluster.client();
    wait_until("the pair to be led", DEADLINE, || match client.get("k") {
        Ok(item) => {
            assert_eq!(item, None, "what was flushed came back");
            true
        }
        Err(_) => false,
    });
    assert_eq!(value(&mut client, "k2"), None);
}
