//! Nodes die, hang and come back under load: nothing acknowledged is lost, nothing stale is read,
//! no client sees an error.

use std::time::{Duration, Instant};

use crate::support::cluster::{count_filled, fill};
use crate::support::{Client, Cluster, Failure, Load, Mix, Shape, Stored, seed, wait_until};

fn healed_and_complete(cluster: Cluster, load: Load) {
    cluster.healed_and_complete(load);
}

#[test]
fn g4_a_killed_primary_costs_no_client_an_error() {
    let mut cluster = Cluster::start(&Shape::new(2, 1));
    let load = Load::start(&cluster.proxy.addr(), Mix::full(seed("killed primary")));
    load.wait_operations(2000);
    cluster.mirrored();
    load.mark("kill primary 0");
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    load.mark("noticed");
    load.wait_operations(3000);
    let degraded = cluster.proxy.status();
    let backup = cluster.backups[0].addr();
    assert_eq!(degraded.pair(&cluster.primaries[0].addr(), &backup, "state"), "degraded", "{degraded}");
    assert_eq!(degraded.pair(&cluster.primaries[0].addr(), &backup, "leader"), backup, "{degraded}");
    assert_eq!(degraded.pair(&cluster.primaries[1].addr(), &backup, "state"), "mirrored", "{degraded}");
    load.mark("restart primary 0, empty");
    cluster.primaries[0].restart();
    cluster.mirrored();
    let healed = cluster.proxy.status();
    assert_eq!(healed.pair(&cluster.primaries[0].addr(), &backup, "leader"), cluster.primaries[0].addr(), "{healed}");
    healed_and_complete(cluster, load);
}

#[test]
fn g4_a_killed_backup_costs_no_client_an_error() {
    let mut cluster = Cluster::start(&Shape::new(1, 2));
    let load = Load::start(&cluster.proxy.addr(), Mix::full(seed("killed backup")));
    load.wait_operations(2000);
    cluster.mirrored();
    load.mark("kill backup 0");
    cluster.backups[0].kill();
    cluster.wait_lost(&cluster.backups[0].addr());
    load.wait_operations(3000);
    load.mark("restart backup 0, empty");
    cluster.backups[0].restart();
    cluster.mirrored();
    // Now the primary goes too: the backups must hold everything.
    load.mark("kill primary 0");
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    load.wait_operations(2000);
    load.mark("restart primary 0, empty");
    cluster.primaries[0].restart();
    healed_and_complete(cluster, load);
}

/// A thousand good probes are asked of a server that comes back, one of a new process that holds
/// nothing: it can be nothing but what it says.
#[test]
fn a_new_and_empty_server_is_refilled_at_its_first_answer() {
    let mut cluster = Cluster::start(&Shape::new(1, 2).proxy(&["--probe-successes", "1000"]));
    crate::support::cluster::fill(&mut cluster.client(), "k", 500, 50);
    let hung = cluster.backups[0].addr();
    cluster.backups[0].pause();
    cluster.wait_lost(&hung);
    cluster.backups[0].resume();
    let new = cluster.backups[1].addr();
    cluster.backups[1].kill();
    cluster.wait_lost(&new);
    cluster.backups[1].restart();
    let status = cluster.proxy.wait_status("the new server to be refilled", crate::support::DEADLINE, |status| {
        status.pair(&cluster.primaries[0].addr(), &new, "state") == "mirrored"
    });
    assert_eq!(status.node(&hung), "lost", "one that answers again with what it held is tried longer: {status}");
}

#[test]
fn g4_g3_a_hung_primary_costs_no_error_and_wakes_up_harmless() {
    let cluster = Cluster::start(&Shape::new(2, 1));
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("hung primary")));
    load.wait_operations(1000);
    cluster.mirrored();
    load.mark("stop primary 0");
    cluster.primaries[0].pause();
    cluster.wait_lost(&cluster.primaries[0].addr());
    load.mark("noticed");
    load.wait_operations(3000);
    load.mark("continue primary 0, with its old items");
    cluster.primaries[0].resume();
    load.wait_operations(1000);
    healed_and_complete(cluster, load);
}

#[test]
fn g4_g3_a_hung_backup_costs_no_error_and_wakes_up_harmless() {
    let mut cluster = Cluster::start(&Shape::new(2, 1));
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("hung backup")));
    load.wait_operations(1000);
    cluster.mirrored();
    load.mark("stop the backup");
    cluster.backups[0].pause();
    cluster.wait_lost(&cluster.backups[0].addr());
    load.mark("noticed");
    load.wait_operations(3000);
    load.mark("continue the backup, with its old items");
    cluster.backups[0].resume();
    cluster.mirrored();
    // What it holds now must be what was acknowledged: let it lead.
    load.mark("kill both primaries");
    cluster.kill_primaries();
    load.wait_operations(2000);
    cluster.primaries.iter_mut().for_each(crate::support::Memcached::restart);
    healed_and_complete(cluster, load);
}

/// A short pause, shorter than what makes a node lost, and one about as long as the timeout.
#[test]
fn g3_g4_short_pauses_around_the_timeout_do_no_harm() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let mut rng = crate::support::Rng::new(seed("short pauses"), 1);
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("short pauses")));
    for (i, millis) in [100, 240, 260, 300].into_iter().enumerate() {
        let node = if (i + rng.below(2)).is_multiple_of(2) { &cluster.primaries[0] } else { &cluster.backups[0] };
        load.mark(&format!("stop {} for {millis} ms", node.addr()));
        node.pause();
        load.run_for(Duration::from_millis(millis));
        node.resume();
        load.wait_operations(300);
        cluster.mirrored();
        load.mark("mirrored");
    }
    healed_and_complete(cluster, load);
}

#[test]
fn g1_g3_a_restart_within_milliseconds_under_load_loses_nothing() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let load = Load::start(&cluster.proxy.addr(), Mix::full(seed("quick restarts")));
    for round in 0..2 {
        load.wait_operations(1000);
        cluster.mirrored();
        load.mark("kill and restart the primary at once");
        cluster.primaries[0].restart();
        load.wait_operations(500);
        cluster.mirrored();
        load.mark(&format!("mirrored, round {round}; kill and restart the backup at once"));
        cluster.backups[0].restart();
        load.wait_operations(500);
        cluster.mirrored();
    }
    healed_and_complete(cluster, load);
}

/// Nobody talks to the node while it restarts: only a look at what it is (its marker) tells that
/// its memory is gone.
#[test]
fn g1_a_restart_that_no_request_noticed_is_noticed() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "quiet", 2000, 100);
    cluster.primaries[0].restart();
    // A client asks at once, before any probe can have come round: a hit, or the other copy's
    // answer, never a miss.
    assert_eq!(count_filled(&mut client, "quiet", 2000, 100), 2000, "misses right after an unnoticed restart");
    // The state read at once may be the old one; the node's items tell when it was healed.
    crate::support::wait_until("the primary to be refilled", crate::support::DEADLINE, || {
        cluster.proxy.status().mirrored() && cluster.primary_ring().len() == 2000
    });
    cluster.assert_rings_equal();
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "quiet", 2000, 100), 2000, "misses after the backup died");
}

/// The same with `flush_all` by somebody else: the process is the same, the memory is gone.
#[test]
fn g1_a_foreign_flush_of_one_node_is_healed() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "flushed", 1000, 50);
    assert_eq!(cluster.backups[0].client().raw_command("flush_all").as_deref(), Ok("OK"));
    crate::support::wait_until("the backup to be refilled", crate::support::DEADLINE, || {
        cluster.proxy.status().mirrored() && cluster.backup_ring().len() == 1000
    });
    assert_eq!(count_filled(&mut client, "flushed", 1000, 50), 1000);
    cluster.assert_rings_equal();
}

#[test]
fn g1_survives_failover_return_resync_and_then_the_backups_death() {
    let mut cluster = Cluster::start(&Shape::new(2, 2));
    let mut client = cluster.client();
    fill(&mut client, "a", 10_000, 100);
    cluster.primaries[1].kill();
    assert_eq!(count_filled(&mut client, "a", 10_000, 100), 10_000, "misses right after the kill");
    fill(&mut client, "b", 2_000, 100);
    cluster.wait_lost(&cluster.primaries[1].addr());
    cluster.primaries[1].restart();
    assert_eq!(count_filled(&mut client, "a", 10_000, 100), 10_000, "misses while it is refilled");
    cluster.mirrored();
    cluster.assert_rings_equal();
    let status = cluster.proxy.status();
    assert!(status.node_number(&cluster.primaries[1].addr(), "items_copied") > 0, "{status}");
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "a", 10_000, 100), 10_000, "misses after the backups died");
    assert_eq!(count_filled(&mut client, "b", 2_000, 100), 2_000, "misses after the backups died");
}

#[test]
fn g1_g4_two_primaries_at_once() {
    let mut cluster = Cluster::start(&Shape::new(2, 2));
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("two primaries")));
    load.wait_operations(2000);
    cluster.mirrored();
    load.mark("kill both primaries");
    let [first, second] = &mut cluster.primaries[..] else { unreachable!("two primaries") };
    first.kill();
    second.kill();
    load.wait_operations(2000);
    load.mark("restart both");
    first.spawn();
    second.restart();
    first.wait_answering(crate::support::DEADLINE);
    healed_and_complete(cluster, load);
}

#[test]
fn g1_the_target_killed_again_in_mid_resync() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync-rate", "4000"]));
    let mut client = cluster.client();
    fill(&mut client, "f", 6000, 100);
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("target killed again")));
    load.mark("kill the primary");
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    cluster.primaries[0].restart();
    let addr = cluster.primaries[0].addr();
    cluster.wait_copying(&addr);
    load.mark("kill the primary again, half-filled");
    cluster.primaries[0].kill();
    load.wait_operations(1000);
    cluster.primaries[0].restart();
    cluster.wait_copying(&addr);
    load.mark("stop the primary, half-filled");
    cluster.primaries[0].pause();
    cluster
        .proxy
        .wait_status("copying to a stopped node given up", crate::support::DEADLINE, |s| s.node(&addr) != "copying");
    load.wait_operations(500);
    cluster.primaries[0].resume();
    cluster.mirrored();
    assert_eq!(count_filled(&mut client, "f", 6000, 100), 6000);
    healed_and_complete(cluster, load);
}

/// The only full copy dies while it is being copied. What was not copied is gone: that is said, and
/// never papered over.
#[test]
fn g8_the_source_killed_in_mid_resync() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync-rate", "3000", "--leader-grace", "500ms"]));
    let mut client = cluster.client();
    fill(&mut client, "f", 9000, 100);
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    cluster.primaries[0].restart();
    cluster.wait_copying(&cluster.primaries[0].addr());
    let load = Load::start(
        &cluster.proxy.addr(),
        Mix { prefix: "late".into(), ..Mix::registers(seed("source killed"), 2, 2) },
    );
    load.allow_errors(true);
    drop(load.stop()); // only to have items written in the middle of it
    cluster.backups[0].kill();
    // Beyond the promise: an error at once, never a hang, never a wrong value; `count_filled`
    // checks each value.
    let begun = Instant::now();
    let mut errors = 0;
    loop {
        match client.get("f:1") {
            Err(Failure::Server(line)) => {
                assert!(line.len() > "SERVER_ERROR ".len(), "the cause is not named: {line}");
                errors += 1;
            }
            Err(failure) => panic!("{failure}"),
            Ok(_) => break,
        }
        assert!(begun.elapsed() < crate::support::DEADLINE, "errors for ever although the grace is over");
        std::thread::sleep(Duration::from_millis(10));
    }
    eprintln!("{errors} errors in {:?} until the rest of the copy led", begun.elapsed());
    let there = count_filled(&mut client, "f", 9000, 100);
    eprintln!("{there} of 9000 items were saved");
    assert!(there < 9000, "the resync was over before its source died: nothing was tested");
    cluster.backups[0].restart();
    cluster.mirrored();
    assert_eq!(count_filled(&mut client, "f", 9000, 100), there, "what was saved stays");
    cluster.assert_rings_equal();
    assert_eq!(client.set("f:1", b"new"), Ok(Stored::Stored));
}

/// One slow answer of the last full copy promotes nobody: the half-filled node must not lead.
#[test]
fn g1_the_source_hung_in_mid_resync_is_waited_for() {
    let cluster_shape = Shape::new(1, 1).proxy(&["--resync-rate", "3000", "--leader-timeout", "5s"]);
    let mut cluster = Cluster::start(&cluster_shape);
    let mut client = cluster.client();
    fill(&mut client, "f", 9000, 100);
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    cluster.primaries[0].restart();
    cluster.wait_copying(&cluster.primaries[0].addr());
    let load = Load::start(&cluster.proxy.addr(), Mix { prefix: "late".into(), ..Mix::small(seed("source hung")) });
    for millis in [300, 1000] {
        load.wait_operations(200);
        load.mark(&format!("stop the source for {millis} ms"));
        cluster.backups[0].pause();
        load.run_for(Duration::from_millis(millis));
        cluster.backups[0].resume();
    }
    cluster.mirrored();
    load.mark("mirrored");
    assert_eq!(count_filled(&mut client, "f", 9000, 100), 9000, "a full copy was deposed on suspicion");
    healed_and_complete(cluster, load);
}

/// The same beyond the leader's timeout: SERVER_ERROR while it lasts, and every item is there
/// afterwards.
#[test]
fn g1_g8_a_sole_leader_hung_beyond_its_timeout_keeps_leading() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--leader-timeout", "500ms"]));
    let mut client = cluster.client();
    fill(&mut client, "f", 2000, 100);
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("sole leader hung")));
    load.wait_operations(500);
    load.allow_errors(true);
    load.mark("stop the sole leader");
    cluster.backups[0].pause();
    crate::support::wait_until("an error, not a hang", crate::support::DEADLINE, || {
        !load.verdict().allowed_errors.is_empty()
    });
    // An empty primary comes up meanwhile: it is no reason to depose a full copy.
    cluster.primaries[0].restart();
    load.run_for(Duration::from_millis(700));
    load.mark("continue it");
    cluster.backups[0].resume();
    cluster.mirrored();
    // What timed out is answered by now.
    load.allow_errors(false);
    assert_eq!(count_filled(&mut client, "f", 2000, 100), 2000, "a full copy was deposed on suspicion");
    healed_and_complete(cluster, load);
}

#[test]
fn g8_both_nodes_down_is_an_error_at_once_and_both_empty_are_honest_misses() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--leader-grace", "500ms"]));
    let mut client = cluster.client();
    fill(&mut client, "gone", 500, 50);
    cluster.primaries[0].kill();
    cluster.backups[0].kill();
    let mut longest = Duration::ZERO;
    for request in ["get gone:1", "set gone:1 0 0 1\r\nx", "incr gone:1 1", "delete gone:1", "touch gone:1 1"] {
        let begun = Instant::now();
        let answer = client.raw_command(request).expect("an answer");
        longest = longest.max(begun.elapsed());
        assert!(answer.starts_with("SERVER_ERROR ") && answer.len() > 14, "{request:?} answered {answer:?}");
    }
    eprintln!("longest operation with both nodes down: {longest:?}");
    assert!(client.version().is_ok(), "the connection is usable after errors");
    cluster.primaries[0].spawn();
    cluster.backups[0].restart();
    cluster.primaries[0].wait_answering(crate::support::DEADLINE);
    cluster.mirrored();
    assert_eq!(count_filled(&mut client, "gone", 500, 50), 0, "both memories are gone");
    fill(&mut client, "gone", 500, 50);
    assert_eq!(count_filled(&mut client, "gone", 500, 50), 500);
    assert_eq!(cluster.assert_rings_equal().len(), 500);
}

/// One pair's death is not another's.
#[test]
fn g8_a_dark_pair_leaves_the_others_alone() {
    let mut cluster = Cluster::start(&Shape::new(2, 2));
    let mut client = cluster.client();
    fill(&mut client, "k", 400, 20);
    let owners = (cluster.primary_ring(), cluster.backup_ring());
    cluster.primaries[0].kill();
    cluster.backups[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    cluster.wait_lost(&cluster.backups[0].addr());
    let (mut dark, mut served) = (0, 0);
    for i in 0..400 {
        let key = format!("k:{i}");
        let both = owners.0[key.as_bytes()].node == 0 && owners.1[key.as_bytes()].node == 0;
        match client.get(&key) {
            Err(Failure::Server(_)) if both => dark += 1,
            Ok(Some(_)) if !both => served += 1,
            other => panic!("{key}, dark {both}: {other:?}"),
        }
    }
    assert!(dark > 0 && served > 0, "{dark} dark, {served} served");
}

/// A node that was never there: the other leads from the start, and the late one is filled when it
/// comes.
#[test]
fn g1_a_start_with_one_node_missing_serves_and_heals() {
    use crate::support::Memcached;
    let shape = Shape::new(1, 1);
    let mut cluster = Cluster::over(vec![Memcached::absent(&[])], vec![Memcached::start(&[])], &shape);
    let mut client: Client = cluster.client();
    crate::support::wait_until("the first set to be taken", crate::support::DEADLINE, || {
        client.set("first", b"1") == Ok(Stored::Stored)
    });
    fill(&mut client, "k", 1000, 50);
    cluster.primaries[0].restart();
    cluster.mirrored();
    assert_eq!(cluster.assert_rings_equal().len(), 1001);
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "k", 1000, 50), 1000);
}

/// The primary hangs with more under way to it than the sockets hold, and then dies.
#[test]
fn g1_g4_a_node_killed_with_megabytes_on_their_way_costs_nothing_and_heals() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--threads", "1"]));
    let mut client = cluster.client();
    fill(&mut client, "k", 100, 50);
    cluster.primaries[0].pause();
    // Several times what the sockets between the two hold.
    let mut writers: Vec<Client> = (0..8).map(|_| cluster.client()).collect();
    for (i, writer) in writers.iter_mut().enumerate() {
        for j in 0..6 {
            let set = crate::support::client::storage("set", &format!("large:{i}:{j}"), 0, 0, &vec![b'x'; 500_000], "");
            writer.send(&set).expect("sent");
        }
    }
    cluster.wait_lost(&cluster.primaries[0].addr());
    for writer in &mut writers {
        for _ in 0..6 {
            assert_eq!(writer.stored(), Ok(Stored::Stored), "the backup has it");
        }
    }
    cluster.primaries[0].restart();
    cluster.mirrored();
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "k", 100, 50), 100);
    assert_eq!(client.set("k:0", b"new"), Ok(Stored::Stored));
    assert_eq!(client.get("large:7:5").map(|item| item.map(|i| i.value.len())), Ok(Some(500_000)));
}

/// Who answered while the proxy itself stood still (a pause of its machine, say) is not late.
#[test]
fn g4_a_proxy_that_stood_still_blames_no_node_for_it() {
    let cluster = Cluster::start(&Shape::new(2, 1));
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("stood still")));
    for _ in 0..8 {
        load.wait_operations(300);
        cluster.proxy.pause();
        std::thread::sleep(Duration::from_millis(600));
        cluster.proxy.resume();
    }
    load.wait_operations(300);
    let servers = cluster.client().stats("servers").expect("stats servers");
    let lost: Vec<_> = servers.iter().filter(|(name, _)| name.ends_with(":lost")).collect();
    assert_eq!(lost.len(), 3);
    assert!(lost.iter().all(|(_, times)| times == "0"), "{servers:#?}");
    healed_and_complete(cluster, load);
}

/// Nodes that hold items already, and no markers: adopted, not wiped.
#[test]
fn g1_a_start_over_full_primaries_and_empty_backups_keeps_everything() {
    use crate::support::Memcached;
    let primary = Memcached::start(&[]);
    fill(&mut primary.client(), "old", 2000, 60);
    let mut cluster = Cluster::over(vec![primary], vec![Memcached::start(&[])], &Shape::new(1, 1));
    cluster.mirrored();
    let mut client = cluster.client();
    assert_eq!(count_filled(&mut client, "old", 2000, 60), 2000);
    assert_eq!(cluster.assert_rings_equal().len(), 2000);
    cluster.kill_primaries();
    assert_eq!(count_filled(&mut client, "old", 2000, 60), 2000);
}

/// A node under pressure evicts the proxy's markers one by one. They are written again, and it
/// stays what it was: without its ring marker it would look like a stranger after its next absence,
/// and the last full copy would be purged.
#[test]
fn g1_evicted_markers_are_written_again_and_a_hang_after_that_costs_nothing() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "e", 1000, 100);
    let markers = ["incarnation", "ring", "session", "pair:0"].map(|name| format!("__resilver__:{name}"));
    let mut node = cluster.backups[0].client();
    for key in &markers {
        assert_eq!(node.delete(key), Ok(true), "{key}");
        wait_until("the marker is written again", crate::support::DEADLINE, || {
            node.get(key).is_ok_and(|item| item.is_some())
        });
        assert!(cluster.proxy.status().mirrored(), "losing {key} cost the pair its mirror");
    }
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    for key in &markers[1..] {
        // Its record is restored as what it is now: it leads alone.
        assert_eq!(node.delete(key), Ok(true), "{key}");
    }
    cluster.backups[0].pause();
    wait_until("the last copy is noticed to hang", crate::support::DEADLINE, || client.get("e:1").is_err());
    cluster.backups[0].resume();
    wait_until("it leads again", crate::support::DEADLINE, || client.get("e:1").is_ok());
    assert_eq!(count_filled(&mut client, "e", 1000, 100), 1000);
    cluster.primaries[0].restart();
    cluster.mirrored();
    assert_eq!(count_filled(&mut client, "e", 1000, 100), 1000);
}
