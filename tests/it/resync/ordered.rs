//! What operators order: resyncs, verifies, their ends; `--resync=manual` and `off`.

use std::time::Duration;

use crate::support::cluster::{count_filled, fill, filled};
use crate::support::{Cluster, Load, Memcached, Mix, Shape, Stored, seed, wait_until};

use super::refilling;

/// Nobody failed, but the operator knows that a node's content is wrong.
#[test]
fn an_operators_resync_of_a_node_repairs_it_though_it_seems_fine() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "k", 3000, 50);
    let load = Load::start(&cluster.proxy.addr(), Mix { prefix: "l".into(), ..Mix::small(seed("operator")) });
    let spoil = |node: &Memcached| {
        let mut direct = node.client();
        for i in 0..100 {
            assert_eq!(direct.delete(&format!("k:{i}")), Ok(true));
            assert_eq!(direct.set(&format!("k:{}", 100 + i), b"spoilt"), Ok(Stored::Stored));
            assert_eq!(direct.set(&format!("extra:{i}"), b"nobody wrote this"), Ok(Stored::Stored));
        }
    };
    for addr in [cluster.backups[0].addr(), cluster.primaries[0].addr()] {
        load.mark(&format!("spoil and resync {addr}"));
        spoil(if addr == cluster.primaries[0].addr() { &cluster.primaries[0] } else { &cluster.backups[0] });
        cluster.proxy.operator(&format!("resync {addr}"));
        wait_until("the operator's resync to be done", crate::support::DEADLINE, || {
            let status = cluster.proxy.status();
            status.mirrored() && status.node_number(&addr, "items_copied") >= 3000
        });
        load.wait_operations(300);
    }
    let model = load.stop();
    assert_eq!(count_filled(&mut client, "k", 3000, 50), 3000);
    let ring = cluster.assert_rings_equal();
    assert!(!ring.contains_key(b"extra:1".as_slice()), "what the leader does not hold is purged");
    model.check_ring("primary", &ring);
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "k", 3000, 50), 3000);
    model.assert_clean();
}

/// Copies spoilt past the proxy, on the follower: found and mended while clients write, and nothing
/// else counts as different.
#[test]
fn verify_finds_and_mends_what_differs() {
    let mut cluster = Cluster::start(&Shape::new(2, 1).proxy(&["--verify-rate=20000", "--leader-timeout=500ms"]));
    let mut client = cluster.client();
    fill(&mut client, "k", 3000, 50);
    let load = Load::start(&cluster.proxy.addr(), Mix { prefix: "l".into(), ..Mix::small(seed("verify")) });
    load.wait_operations(300);
    let mut direct = cluster.backups[0].client();
    for i in 0..100 {
        assert_eq!(direct.delete(&format!("k:{i}")), Ok(true));
        assert_eq!(direct.set(&format!("k:{}", 100 + i), b"spoilt"), Ok(Stored::Stored));
        assert_eq!(direct.set(&format!("extra:{i}"), b"nobody wrote this"), Ok(Stored::Stored));
        assert_eq!(direct.touch(&format!("k:{}", 200 + i), 1000), Ok(true));
    }
    let verified = |different: &str| {
        cluster.proxy.operator("resync verify");
        let ended = |s: &crate::support::Status| s.verify("state") != "running";
        let status = cluster.proxy.wait_status("the comparing to end", crate::support::DEADLINE, ended);
        let found = ["state", "different", "repaired", "failed", "pairs_left"].map(|name| status.verify(name));
        assert_eq!(found, ["done", different, different, "0", "0"], "{status}");
        assert!(status.verify("checked").parse::<u64>().unwrap() >= 6000, "{status}");
    };
    verified("400");
    verified("0");
    let model = load.stop();
    let ring = cluster.assert_rings_equal();
    assert!(!ring.contains_key(b"extra:1".as_slice()));
    model.check_ring("primary", &ring);
    cluster.kill_primaries();
    assert_eq!(count_filled(&mut client, "k", 3000, 50), 3000);
    model.assert_clean();
}

#[test]
fn verify_is_cancelled_and_leaves_what_is_not_mirrored() {
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--verify-rate=500"]));
    let mut client = cluster.client();
    fill(&mut client, "k", 3000, 50);
    cluster.proxy.operator("resync verify");
    assert!(client.raw_command("resync verify").unwrap().starts_with("CLIENT_ERROR resync verify: one is under way"));
    cluster.proxy.operator("resync cancel");
    let state = |wanted: &'static str| move |s: &crate::support::Status| s.verify("state") == wanted;
    cluster.proxy.wait_status("the cancelled end", crate::support::DEADLINE, state("cancelled"));
    // At this rate it would take 12 s.
    let backup = cluster.backups[0].addr();
    cluster.proxy.operator(&format!("resync verify {backup}"));
    cluster.proxy.operator(&format!("resync {backup}"));
    let status = cluster.proxy.wait_status("the end of the comparing", Duration::from_secs(5), state("incomplete"));
    assert_eq!(status.verify("pairs_left"), "1");
    cluster.mirrored();
    cluster.assert_rings_equal();
    assert!(client.raw_command("resync verify nobody:1").unwrap().starts_with("CLIENT_ERROR"));
}

#[test]
fn manual_mode_waits_for_the_operator() {
    let mut cluster = Cluster::start(&Shape::new(2, 1).proxy(&["--resync=manual"]));
    assert_eq!(cluster.proxy.status().mode(), "manual");
    let mut client = cluster.client();
    fill(&mut client, "k", 2000, 50);
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("manual")));
    load.wait_operations(500);
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    cluster.primaries[0].restart();
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    cluster.proxy.wait_node(&primary, "waiting");
    load.wait_operations(2000);
    let status = cluster.proxy.status();
    assert!(!status.mirrored(), "healed without the operator: {status}");
    assert_eq!(status.pair(&primary, &backup, "state"), "degraded", "{status}");
    assert_eq!(status.pair(&primary, &backup, "leader"), backup, "{status}");
    assert_eq!(count_filled(&mut client, "k", 2000, 50), 2000);
    cluster.proxy.operator("resync");
    cluster.mirrored();
    load.wait_operations(300);
    let model = load.stop();
    cluster.assert_rings_equal();
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "k", 2000, 50), 2000);
    model.check_through(&mut client);
    model.assert_clean();
}

/// magent's flaw, on purpose: it also shows that the other tests would see it.
#[test]
fn off_mode_behaves_like_magent() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync=off"]));
    let mut client = cluster.client();
    fill(&mut client, "k", 1000, 50);
    let load = Load::start(&cluster.proxy.addr(), Mix { prefix: "l".into(), ..Mix::registers(seed("off"), 4, 4) });
    load.wait_operations(1000);
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    assert_eq!(count_filled(&mut client, "k", 1000, 50), 1000, "the backup answers while the primary is down");
    cluster.primaries[0].restart();
    wait_until("the empty primary to be trusted", crate::support::DEADLINE, || {
        count_filled(&mut client, "k", 1000, 50) == 0
    });
    wait_until("the judge to see the losses", crate::support::DEADLINE, || load.verdict().violation_count > 0);
    let verdict = load.stop().recorder.verdict();
    let lost = verdict.violations.iter().find(|v| v.contains("LOST"));
    eprintln!("as expected without a resync: {lost:?}");
    assert!(lost.is_some(), "{:#?}", verdict.violations);
}

#[test]
fn a_cancelled_resync_stops_and_can_be_started_again() {
    let cluster = refilling(1000, &["--resync=auto"], |client| fill(client, "k", 10_000, 50));
    let primary = cluster.primaries[0].addr();
    let mut client = cluster.client();
    for cancel in ["resync cancel".to_string(), format!("resync cancel {primary}")] {
        cluster.proxy.operator(&cancel);
        let status = cluster.proxy.wait_node(&primary, "waiting");
        assert!(!status.mirrored(), "{status}");
        assert_eq!(count_filled(&mut client, "k", 10_000, 50), 10_000, "the leader serves on");
        let status = cluster.proxy.status();
        assert_eq!(status.node(&primary), "waiting", "a cancelled resync began again by itself: {status}");
        assert_eq!(client.set("between", b"x"), Ok(Stored::Stored));
        assert_eq!(client.delete("k:5"), Ok(true));
        assert_eq!(client.store("set", "k:5", 5, 0, &filled("k", 5, 50)), Ok(Stored::Stored));
        if cancel == "resync cancel" {
            cluster.proxy.operator(&format!("resync {primary}"));
            cluster.wait_copying(&primary);
        }
    }
    // The rate is too slow to wait for the end here: it is enough that it runs.
    cluster.proxy.operator("resync");
    cluster.wait_copying(&primary);
}

#[test]
fn operator_commands_name_what_they_do_not_know() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    for (command, word) in [
        ("resync 127.0.0.1:1", "127.0.0.1:1"),
        ("resync cancel 127.0.0.1:1", "127.0.0.1:1"),
        ("resync sideways", "sideways"),
        ("resync cancel sideways", "sideways"),
    ] {
        let answer = client.raw_command(command).expect("an answer");
        assert!(answer.starts_with("CLIENT_ERROR ") && answer.contains(word), "{command:?} answered {answer:?}");
    }
    // With nothing to heal these are fine and change nothing.
    assert_eq!(client.raw_command("resync").as_deref(), Ok("OK"));
    assert_eq!(client.raw_command("resync cancel").as_deref(), Ok("OK"));
    cluster.mirrored();
    for command in ["stats resync", "stats servers", "resync status"] {
        assert!(!client.stat_lines(command).unwrap_or_else(|e| panic!("{command}: {e}")).is_empty(), "{command}");
    }
}
