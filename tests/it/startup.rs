//! The proxy starts: what it finds on real nodes after clean stops, crashes and node restarts, with
//! delayed flushes pending. Changed lists of servers: `startup_ring.rs`.

mod flushes;

use crate::faults::Truth;
use crate::support::cluster::{count_filled, fill};
use crate::support::start::{crash_and_start, last_run, record, set, start, value};
use crate::support::{Client, Cluster, DEADLINE, Failure, Memcached, Shape, Status, Stored, wait_until};

// ---- rows of the start-up table -----------------------------------------------------------------

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
        wait_until("some writes", DEADLINE, || {
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
        assert!(last_run(&cluster).contains("verify done"), "{}", last_run(&cluster));
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

/// What only the backup holds is added to the primary, except for what clients deleted or wrote
/// meanwhile.
#[test]
fn row_both_with_items_and_no_markers_what_only_the_backup_holds_is_adopted() {
    const KEYS: usize = 4000;
    let (primary, backup) = (Memcached::start(&[]), Memcached::start(&[]));
    set(&mut primary.client(), "own", "1");
    fill(&mut backup.client(), "only", KEYS, 50);
    let mut cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1).proxy(&["--resync-rate", "3000"]));
    let mut client = cluster.client();
    let mut during = 0;
    for i in (0..KEYS).step_by(8) {
        // Adopted already or not: deleted it stays.
        client.delete(&format!("only:{i}")).unwrap_or_else(|e| panic!("delete only:{i}: {e}"));
        set(&mut client, &format!("only:{}", i + 1), "newer");
        during += usize::from(!cluster.proxy.status().mirrored());
    }
    assert!(during > 50, "the adoption was over after {during} of the writes");
    cluster.mirrored();
    let all = cluster.assert_rings_equal();
    assert_eq!(all.len(), 1 + KEYS - KEYS / 8);
    cluster.kill_backups();
    for i in 0..KEYS {
        let found = value(&mut client, &format!("only:{i}"));
        let adopted = || String::from_utf8(crate::support::cluster::filled("only", i, 50)).expect("a text");
        let wanted = match i % 8 {
            0 => None,
            1 => Some("newer".to_owned()),
            _ => Some(adopted()),
        };
        assert_eq!(found, wanted, "only:{i}");
    }
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
    wait_until("the warning", DEADLINE, || cluster.proxy.log_so_far().contains("leads on its own word"));
    cluster.primaries[0].restart();
    cluster.mirrored();
    assert_eq!(cluster.assert_rings_equal().len(), 2);
}

/// The primary hangs, the backup takes a write alone and then hangs too; a new proxy finds only the
/// primary, which is out of date.
fn only_the_stale_one_answers() -> Cluster {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    set(&mut cluster.client(), "k", "old");
    cluster.primaries[0].pause();
    // The hung node executes what was sent to it before it was given up on: that is the first
    // write, not the second.
    set(&mut cluster.client(), "noticed", "1");
    set(&mut cluster.client(), "k", "new");
    // The primary is told that the backup leads alone when it comes back; nobody refills it before
    // the proxy dies.
    cluster.proxy.kill();
    cluster.proxy.args.extend(["--resync=manual".to_owned()]);
    cluster.proxy.args.retain(|a| a != "--resync=auto");
    cluster.primaries[0].resume();
    start(&mut cluster);
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("new"));
    wait_until("the primary to be a witness", DEADLINE, || record(&cluster.primaries[0], 0).contains("alone backup"));
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
    wait_until("the backup to lead", DEADLINE, || client.get("k").is_ok());
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
    wait_until("the primary to lead", DEADLINE, || client.get("k").is_ok());
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

// ---- crashes at the worst moment ----------------------------------------------------------------

/// Degraded is recorded on the survivor before the first write is acknowledged without the other.
#[test]
fn a_crash_right_after_the_first_write_alone_never_shows_the_old_value() {
    for hung_primary in [true, false] {
        let mut cluster = Cluster::start(&Shape::new(1, 1));
        set(&mut cluster.client(), "k", "old");
        let hung = if hung_primary { &cluster.primaries[0] } else { &cluster.backups[0] };
        hung.pause();
        // The hung node executes what was sent to it before it was given up on: that is the first
        // write, not the second.
        let mut client = cluster.client();
        set(&mut client, "noticed", "1");
        set(&mut client, "k", "new");
        cluster.proxy.kill();
        let hung = if hung_primary { &cluster.primaries[0] } else { &cluster.backups[0] };
        hung.resume();
        start(&mut cluster);
        let mut client = cluster.client();
        wait_until("mirrored", DEADLINE, || {
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

/// The half-filled node keeps its part, and what is on it may be deleted, before the next proxy
/// comes.
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
    let status = cluster
        .proxy
        .wait_status("decided", DEADLINE, |s| s.pair(&primary, &cluster.backups[0].addr(), "leader") != "none");
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
    wait_until("the backup to lead", DEADLINE, || cluster.client().get("a:2999").is_ok());
    assert_eq!(count_filled(&mut cluster.client(), "a", 3000, 50), 2800);
}

/// The proxy dies, and before the copies are compared the primary does: the backup holds what
/// clients were told of before and since, and leads.
#[test]
fn g1_a_primary_that_dies_before_the_copies_were_compared_takes_nothing_with_it() {
    // The comparing takes 10 s. The primary comes back empty, or is gone for good.
    for comes_back in [true, false] {
        let args = ["--resync-rate", "400", "--leader-grace", "60s"];
        let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&args));
        let mut client = cluster.client();
        let rest = Truth::fill_as("rest", &mut client, 1900);
        let mut changed = Truth::fill_as("changed", &mut client, 100);
        crash_and_start(&mut cluster);
        let pair = cluster.proxy.wait_status("incomplete", DEADLINE, |s| shown(&cluster, s) == "incomplete starting");
        assert!(!pair.mirrored());
        let mut client = cluster.client();
        (0..3).for_each(|round| changed.change(&mut client, round));
        if comes_back {
            cluster.primaries[0].restart();
        } else {
            cluster.primaries[0].kill();
        }
        wait_until("the backup leads", DEADLINE, || client.get("rest:0").is_ok());
        let when = format!("the primary comes back: {comes_back}");
        rest.check(&mut client, &when);
        changed.check(&mut client, &when);
        changed.change(&mut client, 3);
        cluster.primaries[0].restart();
        cluster.mirrored();
        rest.check(&mut client, "mirrored again");
        changed.check(&mut client, "mirrored again");
        cluster.assert_rings_equal();
        assert!(!cluster.proxy.log().contains("no copy is left"), "{}", cluster.proxy.log());
    }
}

/// One that is only late is waited for: what clients have read of it the backup may lack.
#[test]
fn g3_a_primary_that_hangs_before_the_copies_were_compared_is_waited_for() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync-rate", "50"]));
    let mut client = cluster.client();
    let mut truth = Truth::fill(&mut client, 200);
    cluster.proxy.kill();
    // As a write that was under way when the proxy died.
    set(&mut cluster.primaries[0].client(), "on-one", "read by clients");
    start(&mut cluster);
    let mut client = cluster.client();
    assert_eq!(value(&mut client, "on-one").as_deref(), Some("read by clients"));
    cluster.primaries[0].pause();
    let addr = cluster.proxy.addr();
    let waits = std::thread::spawn(move || value(&mut Client::connect(&addr), "on-one"));
    // Four times as long as one of two equal copies is waited for.
    std::thread::sleep(std::time::Duration::from_secs(1));
    cluster.primaries[0].resume();
    assert_eq!(waits.join().expect("a reader").as_deref(), Some("read by clients"));
    truth.change(&mut client, 0);
    assert_eq!(
        cluster.proxy.status().pair(&cluster.primaries[0].addr(), &cluster.backups[0].addr(), "leader"),
        cluster.primaries[0].addr()
    );
    cluster.mirrored();
    truth.check(&mut client, "mirrored");
    cluster.assert_rings_equal();
}

/// Nobody else would know that they may differ.
#[test]
fn a_stop_before_the_copies_were_compared_is_no_clean_one() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync-rate", "10"]));
    fill(&mut cluster.client(), "a", 300, 50);
    crash_and_start(&mut cluster);
    for _ in 0..2 {
        cluster.proxy.wait_status("decided", DEADLINE, |s| shown(&cluster, s) == "incomplete starting");
        assert!(cluster.proxy.stop().success());
        assert!(last_run(&cluster).contains("stopping with work unfinished"), "{}", last_run(&cluster));
        start(&mut cluster);
    }
    assert_eq!(count_filled(&mut cluster.client(), "a", 300, 50), 300);
}

/// With `--resync=manual` the primary leads alone until somebody has the copies compared: what was
/// written since goes with it, and nothing else.
#[test]
fn a_primary_that_dies_before_anybody_had_the_copies_compared_takes_little_with_it() {
    let args = ["--resync=manual", "--leader-grace", "300ms"];
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&args));
    fill(&mut cluster.client(), "a", 1900, 50);
    fill(&mut cluster.client(), "changed", 100, 50);
    crash_and_start(&mut cluster);
    cluster.proxy.wait_status("decided", DEADLINE, |s| shown(&cluster, s) == "degraded starting");
    let mut client = cluster.client();
    for i in 0..100 {
        set(&mut client, &format!("changed:{i}"), "new");
    }
    cluster.primaries[0].restart();
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    cluster.proxy.wait_status("the backup leads", DEADLINE, |s| s.pair(&primary, &backup, "leader") == backup);
    let mut client = cluster.client();
    for i in 0..100 {
        assert_eq!(value(&mut client, &format!("changed:{i}")), None, "changed:{i}");
    }
    assert_eq!(count_filled(&mut client, "a", 1900, 50), 1900);
}

/// State and reason of the first pair.
fn shown(cluster: &Cluster, status: &Status) -> String {
    let pair = |what| status.pair(&cluster.primaries[0].addr(), &cluster.backups[0].addr(), what);
    format!("{} {}", pair("state"), pair("reason"))
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

/// The clock was set back: a node that is away at the start carries a later record than any that
/// this proxy would write.
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

/// The servers were used by several proxies in turn, and one of those goes on recording, having
/// stood still since its turn ended: whoever was next records what is later.
#[test]
fn g3_what_a_former_generation_still_records_is_outranked() {
    let (primary, backup) = (Memcached::start(&[]), Memcached::start(&[]));
    let mut cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1));
    cluster.mirrored();
    set(&mut cluster.client(), "k", "old");
    assert!(cluster.proxy.stop().success());
    let found = record(&cluster.primaries[0], 0);
    let of_generation = |fact: &str, count: u64| {
        let words: Vec<&str> = found.split(' ').collect();
        let epoch = (1 << 52) + (7 << 32) + count;
        format!("{epoch} {fact} primary {} {}", words[3], words[4])
    };
    let write = |node: &Memcached, value: &str| set(&mut node.client(), "__resilver__:pair:0", value);
    for node in [&cluster.primaries[0], &cluster.backups[0]] {
        write(node, &of_generation("sync", 5));
    }
    start(&mut cluster);
    cluster.mirrored();
    cluster.primaries[0].pause();
    set(&mut cluster.client(), "noticed", "by this");
    cluster.wait_lost(&cluster.primaries[0].addr());
    set(&mut cluster.client(), "k", "new");
    cluster.proxy.kill();
    cluster.primaries[0].resume();
    write(&cluster.primaries[0], &of_generation("alone", 1_000));
    start(&mut cluster);
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("new"));
    cluster.mirrored();
    cluster.assert_rings_equal();
}

// ---- flush_all ----------------------------------------------------------------------------------
