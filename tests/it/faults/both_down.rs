//! Both nodes of a pair go, in every order and way, and come back in every order: an error at once,
//! then honest misses or the last full copy, never anything old.

use std::time::{Duration, Instant};

use super::{Truth, read};
use crate::support::cluster::fill;
use crate::support::forwarder::Hold;
use crate::support::{Client, Cluster, DEADLINE, Memcached, Shape, Status, Stored, read_node, wait_until};

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

/// What is true of the items of before, once both are back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kept {
    All,
    /// What the first one to go did not miss.
    Unchanged,
    Nothing,
}

impl Kept {
    fn new(first: Gone, second: Gone, first_returns_first: bool) -> Kept {
        match (first, second) {
            (_, Gone::Stopped) => Kept::All,
            (Gone::Stopped, Gone::Killed) if first_returns_first => Kept::Unchanged,
            _ => Kept::Nothing,
        }
    }

    /// The value of a key that was written before both were gone; `changed` after the first one
    /// was.
    fn value(self, value: &str, changed: bool) -> Option<Vec<u8>> {
        let kept = self == Kept::All || self == Kept::Unchanged && !changed;
        kept.then(|| value.as_bytes().to_vec())
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
    // One request may find out about a hung one, and costs the leader's timeout; all others are
    // refused at once.
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
    let kept = Kept::new(first, second, first_returns_first);
    if first_returns_first {
        first.bring_back(&mut a);
        only_truth(&mut client, kept, &name, 60);
        if kept == Kept::Unchanged {
            // An empty server that comes before it is taken back leads.
            wait_until("the one that missed a little", DEADLINE, || cluster.proxy.status().node(&a.addr()) == "up");
        }
        second.bring_back(&mut b);
    } else {
        second.bring_back(&mut b);
        only_truth(&mut client, kept, &name, 60);
        first.bring_back(&mut a);
    }
    wait_until(&format!("every pair mirrored: {name}"), DEADLINE, || {
        only_truth(&mut client, kept, &name, 1);
        cluster.proxy.status().mirrored()
    });
    for (key, value, changed) in [("kept", "1", false), ("changed", "2", true), ("counted", "2", true)] {
        let wanted = kept.value(value, changed);
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

/// Errors, and what is true.
fn only_truth(client: &mut Client, kept: Kept, name: &str, times: usize) {
    for _ in 0..times {
        for (key, value) in [("kept", Some("1")), ("changed", Some("2")), ("counted", Some("2")), ("deleted", None)] {
            let Ok(found) = read(client, key) else { continue };
            let wanted = value.and_then(|value| kept.value(value, key != "kept"));
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

/// A server that is being filled is cut off and misses a write; then the leader dies, and only
/// after that the refill has wound up, with nothing unverified left behind. What it filled is out
/// of date all the same.
#[test]
fn g3_a_half_filled_server_that_missed_a_write_does_not_lead() {
    half_filled(false);
}

/// The same where the leader was away for a moment, which ended the refill, and took the write when
/// it was back.
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
    // An item that is there and does not count as copied: its answer is held, so the refill cannot
    // wind up at once.
    wait_until("an answer to be held", DEADLINE, || {
        let stored = read_node(&cluster.backups[0].addr()).into_keys().filter(|key| key.starts_with(b"k:")).count();
        stored as u64 > cluster.proxy.status().node_number(&known, "items_copied")
    });
    if leader_away_first {
        cluster.primaries[0].network().cut();
        wait_until("the primary's first loss", DEADLINE, || losses() == expected);
        expected += 1;
    } else {
        // New connections too: on a loaded machine a server that answers on one of them is not
        // given up for the others' silence before --leader-timeout, which is longer than anything
        // waits here.
        cluster.backups[0].network().hold(Hold::ToProxy);
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

/// Two servers of which the backup hung, missed every key of `missed`, each by two kinds of writes,
/// and then the primary died.
struct Lone {
    cluster: Cluster,
    rest: Truth,
    missed: Truth,
}

impl Lone {
    /// This many keys are missed; `back` brings servers back.
    fn new(args: &[&str], missed: usize, back: impl FnOnce(&mut Cluster)) -> Lone {
        let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(args));
        let mut client = cluster.client();
        let rest = Truth::fill_as("rest", &mut client, 1250);
        let mut missed = Truth::fill_as("missed", &mut client, missed);
        cluster.backups[0].pause();
        cluster.wait_lost(&cluster.backups[0].addr());
        (0..2).for_each(|round| missed.change(&mut client, round));
        cluster.primaries[0].kill();
        cluster.wait_lost(&cluster.primaries[0].addr());
        back(&mut cluster);
        wait_until("somebody to lead", DEADLINE, || client.get("rest:0").is_ok());
        Lone { cluster, rest, missed }
    }

    /// What was missed is gone, and nothing else.
    fn check(&self, when: &str) {
        let mut client = self.cluster.client();
        self.rest.check(&mut client, when);
        self.check_missed(&mut client, when);
    }

    fn check_missed(&self, client: &mut Client, when: &str) {
        for key in self.missed.keys() {
            assert_eq!(read(client, key), Ok(None), "{when}: {key}");
        }
    }
}

fn wait_logged(cluster: &Cluster, line: &str) {
    wait_until(line, DEADLINE, || cluster.proxy.log_so_far().contains(line));
}

fn back_with_its_memory(cluster: &mut Cluster) {
    cluster.backups[0].resume();
    let line = format!("node is back node={} memory=\"same\"", cluster.backups[0].addr());
    wait_logged(cluster, &line);
}

/// The primary is dead for good: after the grace just what the backup missed is deleted there, and
/// it leads with the rest.
#[test]
fn g8_a_backup_whose_primary_is_dead_for_good_leads_with_all_that_it_did_not_miss() {
    for after_the_grace in [false, true] {
        let mut lone = Lone::new(&["--leader-grace", "300ms"], 250, |cluster| {
            if after_the_grace {
                wait_logged(cluster, "its memory counts as gone");
            }
            back_with_its_memory(cluster);
        });
        let when = format!("back after the grace: {after_the_grace}");
        lone.check(&when);
        // It is the truth from now on, also for a server that comes back empty.
        lone.cluster.primaries[0].restart();
        lone.cluster.mirrored();
        lone.check(&format!("{when}, mirrored"));
        lone.cluster.assert_rings_equal();
        lone.cluster.backups[0].kill();
        lone.cluster.wait_lost(&lone.cluster.backups[0].addr());
        lone.check(&format!("{when}, the primary alone"));
    }
}

/// The primary comes back empty while the backup is there: it does not lead with nothing where the
/// other one has nearly all.
#[test]
fn g8_an_empty_primary_does_not_lead_where_the_backup_has_the_rest() {
    let lone = Lone::new(&["--leader-grace", "60s"], 250, |cluster| {
        back_with_its_memory(cluster);
        cluster.primaries[0].restart();
    });
    lone.check("an empty primary");
    lone.cluster.mirrored();
    lone.check("mirrored");
    lone.cluster.assert_rings_equal();
}

/// The same while the backup is being filled from another primary, which it has missed writes of
/// too.
#[test]
fn g8_an_empty_primary_does_not_lead_where_the_backup_is_filled_from_another() {
    let args = ["--leader-grace", "60s", "--resync-rate", "50"];
    let mut cluster = Cluster::start(&Shape::new(2, 1).proxy(&args));
    let mut client = cluster.client();
    let rest = Truth::fill_as("rest", &mut client, 600);
    let mut missed = Truth::fill_as("missed", &mut client, 600);
    let (first, second) = (cluster.primaries[0].addr(), cluster.primaries[1].addr());
    let backup = cluster.backups[0].addr();
    cluster.backups[0].pause();
    cluster.wait_lost(&backup);
    missed.change(&mut client, 0);
    cluster.primaries[0].pause();
    cluster.wait_lost(&first);
    cluster.backups[0].resume();
    // Some three hundred keys at fifty a second.
    let filled = |s: &Status| s.pair(&second, &backup, "state") == "recovering";
    let dark = |s: &Status| s.pair(&first, &backup, "state") == "dark";
    cluster.proxy.wait_status("the other pair is filled", DEADLINE, |s| filled(s) && dark(s));
    cluster.primaries[0].kill();
    cluster.primaries[0].restart();
    wait_until("somebody to lead", DEADLINE, || rest.keys().take(20).all(|key| client.get(key).is_ok()));
    rest.check(&mut client, "an empty primary");
    cluster.mirrored();
    rest.check(&mut client, "mirrored");
    cluster.assert_rings_equal();
}

/// More was missed than is remembered: nothing tells what the backup may keep from what is old.
#[test]
fn g8_a_backup_that_missed_more_than_is_known_leads_with_nothing() {
    let args = ["--leader-grace", "300ms", "--resync-memory", "1m", "--item-size-max", "512k"];
    let lone = Lone::new(&args, 6000, back_with_its_memory);
    let mut client = lone.cluster.client();
    lone.check_missed(&mut client, "too many");
    for key in lone.rest.keys() {
        assert_eq!(read(&mut client, key), Ok(None), "{key}");
    }
}

/// What it missed is being filled, and the primary dies in the midst: also that the backup was lost
/// once more, and missed more of it.
#[test]
fn g8_a_backup_that_was_partly_filled_leads_with_no_more_than_is_true() {
    for lost_again in [false, true] {
        let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--leader-grace", "300ms", "--resync-rate", "100"]));
        let mut client = cluster.client();
        let rest = Truth::fill_as("rest", &mut client, 500);
        let mut missed = Truth::fill_as("missed", &mut client, 600);
        let backup = cluster.backups[0].addr();
        cluster.backups[0].pause();
        cluster.wait_lost(&backup);
        (0..2).for_each(|round| missed.change(&mut client, round));
        cluster.backups[0].resume();
        cluster.wait_copying(&backup);
        // Now on both, or dropped there to be copied again.
        missed.change(&mut client, 2);
        if lost_again {
            cluster.backups[0].pause();
            cluster.wait_lost(&backup);
            missed.change(&mut client, 3);
        }
        cluster.primaries[0].kill();
        cluster.wait_lost(&cluster.primaries[0].addr());
        if lost_again {
            cluster.backups[0].resume();
        }
        wait_until("somebody to lead", DEADLINE, || client.get("rest:0").is_ok());
        rest.check(&mut client, "the rest");
        let mut kept = 0;
        for key in missed.keys() {
            let found = read(&mut client, key).expect("it leads");
            let wanted = missed.0[key].as_deref();
            assert!(found.is_none() || found.as_deref() == wanted, "{key} is {found:?}, but {wanted:?} is true");
            kept += usize::from(found.is_some());
        }
        assert!(lost_again == (kept == 0), "lost again: {lost_again}, {kept} kept");
    }
}
