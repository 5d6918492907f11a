//! Both nodes of a pair go, in every order and way, and come back in every order: an error at once, then honest misses or the last
//! full copy, never anything old.

use std::time::{Duration, Instant};

use super::read;
use super::support::cluster::fill;
use super::support::forwarder::Hold;
use super::support::{Client, Cluster, DEADLINE, Memcached, Shape, Stored, read_node, wait_until};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gone {
    /// Its memory goes with it.
    Killed,
    /// It comes back with what it held.
    Stopped,
}

impl Gone {
    fn take_away(self, node: &mut Memcached) {
        match self {
            Gone::Killed => node.kill(),
            Gone::Stopped => node.pause(),
        }
    }

    fn bring_back(self, node: &mut Memcached) {
        match self {
            Gone::Killed => node.restart(),
            Gone::Stopped => node.resume(),
        }
    }
}

const LEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes `first` away, then the other one; brings them back in the order given.
fn both_down(primary_first: bool, first: Gone, second: Gone, first_returns_first: bool) {
    let name = format!(
        "primary first: {primary_first}, {first:?} then {second:?}, first returns first: {first_returns_first}"
    );
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--leader-grace", "300ms", "--leader-timeout", "2s"]));
    let mut client = cluster.client();
    for (key, value) in [("kept", "1"), ("changed", "1"), ("deleted", "1"), ("counted", "1")] {
        assert_eq!(client.set(key, value.as_bytes()), Ok(Stored::Stored));
    }
    let (mut a, mut b) = (cluster.primaries.remove(0), cluster.backups.remove(0));
    if !primary_first {
        std::mem::swap(&mut a, &mut b);
    }
    first.take_away(&mut a);
    cluster.wait_lost(&a.addr());
    // Now the second one holds the only full copy.
    assert_eq!(client.set("changed", b"2"), Ok(Stored::Stored), "{name}");
    assert_eq!(client.delete("deleted"), Ok(true), "{name}");
    assert_eq!(client.incr("counted", 1), Ok(Some(2)), "{name}");
    second.take_away(&mut b);
    // One request may find out about a hung one, and costs the leader's timeout; all others are refused at once.
    let mut slow = 0;
    for _ in 0..10 {
        for request in ["get kept", "set changed 0 0 1\r\n3", "incr counted 1", "delete kept", "touch kept 100"] {
            let begun = Instant::now();
            let answer = client.raw_command(request).unwrap_or_else(|e| panic!("{name}: {request:?}: {e}"));
            slow += usize::from(begun.elapsed() > LEADER_TIMEOUT / 2);
            assert!(
                answer.starts_with("SERVER_ERROR ") && answer.len() > 14,
                "{name}: {request:?} answered {answer:?}"
            );
        }
    }
    assert!(slow <= 1, "{name}: {slow} of 50 requests waited for a node that was known to be gone");
    if first_returns_first {
        first.bring_back(&mut a);
        only_truth(&mut client, second, &name, 60);
        second.bring_back(&mut b);
    } else {
        second.bring_back(&mut b);
        only_truth(&mut client, second, &name, 60);
        first.bring_back(&mut a);
    }
    wait_until(&format!("every pair mirrored: {name}"), DEADLINE, || {
        only_truth(&mut client, second, &name, 1);
        cluster.proxy.status().mirrored()
    });
    for (key, value) in [("kept", "1"), ("changed", "2"), ("counted", "2")] {
        let wanted = (second == Gone::Stopped).then(|| value.as_bytes().to_vec());
        assert_eq!(read(&mut client, key), Ok(wanted), "{name}: {key} at the end");
    }
    assert_eq!(read(&mut client, "deleted"), Ok(None), "{name}");
    assert_eq!(client.set("deleted", b"new"), Ok(Stored::Stored), "{name}");
    if primary_first {
        (cluster.primaries, cluster.backups) = (vec![a], vec![b]);
    } else {
        (cluster.primaries, cluster.backups) = (vec![b], vec![a]);
    }
    cluster.assert_rings_equal();
}

/// Errors, and what is true: an item of the last full copy if that may come back, else a miss.
fn only_truth(client: &mut Client, second: Gone, name: &str, times: usize) {
    for _ in 0..times {
        for (key, value) in [("kept", Some("1")), ("changed", Some("2")), ("counted", Some("2")), ("deleted", None)] {
            let Ok(found) = read(client, key) else { continue };
            let wanted = value.filter(|_| second == Gone::Stopped).map(|v| v.as_bytes().to_vec());
            assert_eq!(found, wanted, "{name}: {key} while they come back");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn every_order(primary_first: bool) {
    for first in [Gone::Killed, Gone::Stopped] {
        for second in [Gone::Killed, Gone::Stopped] {
            for first_returns_first in [true, false] {
                both_down(primary_first, first, second, first_returns_first);
            }
        }
    }
}

#[test]
fn g8_both_nodes_gone_primary_first_and_back_in_every_order() {
    every_order(true);
}

#[test]
fn g8_both_nodes_gone_backup_first_and_back_in_every_order() {
    every_order(false);
}

/// A server that is being filled is cut off and misses a write; then the leader dies, and only after that the refill has wound up, with
/// nothing unverified left behind. What it filled is out of date all the same.
#[test]
fn g3_a_half_filled_server_that_missed_a_write_does_not_lead() {
    half_filled(false);
}

/// The same where the leader was away for a moment, which ended the refill, and took the write when it was back.
#[test]
fn g3_a_half_filled_server_whose_leader_was_away_before_does_not_lead() {
    half_filled(true);
}

fn half_filled(leader_away_first: bool) {
    let (primary, backup) = (Memcached::start(&[]).forwarded(), Memcached::start(&[]).forwarded());
    let (leader, known) = (primary.known_as(), backup.known_as());
    let shape = Shape::new(1, 1).proxy(&["--resync-rate", "100", "--leader-timeout", "20s"]);
    let mut cluster = Cluster::over(vec![primary], vec![backup], &shape);
    cluster.mirrored();
    let mut client = cluster.client();
    fill(&mut client, "k", 2000, 20);
    cluster.backups[0].restart();
    cluster.wait_copying(&known);
    // Written to both while it is filled.
    assert_eq!(client.set("changed", b"old"), Ok(Stored::Stored));
    let lost = format!("node lost node={leader}");
    let mut expected = cluster.proxy.log().matches(&lost).count() + 1;
    let losses = || cluster.proxy.log_so_far().matches(&lost).count();
    cluster.backups[0].network().hold_existing(Hold::ToProxy);
    // An item that is there and does not count as copied: its answer is held, so the refill cannot wind up at once.
    wait_until("an answer to be held", DEADLINE, || {
        let stored = read_node(&cluster.backups[0].addr()).into_keys().filter(|key| key.starts_with(b"k:")).count();
        stored as u64 > cluster.proxy.status().node_number(&known, "items_copied")
    });
    if leader_away_first {
        cluster.primaries[0].network().cut();
        wait_until("the primary's first loss", DEADLINE, || losses() == expected);
        expected += 1;
    } else {
        cluster.proxy.wait_node(&known, "lost");
    }
    wait_until("the write", DEADLINE, || client.set("changed", b"new") == Ok(Stored::Stored));
    assert_eq!(read(&mut cluster.backups[0].client(), "changed"), Ok(Some(b"old".to_vec())));
    cluster.primaries[0].kill();
    cluster.primaries[0].network().cut();
    wait_until("the primary's loss", DEADLINE, || losses() == expected);
    cluster.primaries[0].restart();
    assert!(!cluster.proxy.log().contains("resync ended early"), "it has wound up already");
    cluster.backups[0].network().hold(Hold::Nothing);
    wait_until("somebody to lead", DEADLINE, || client.get("changed").is_ok());
    assert_eq!(read(&mut client, "changed"), Ok(None), "{}", cluster.proxy.log());
}
