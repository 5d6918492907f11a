//! A first start over two full rings, cut off at any moment: what only a backup holds is not lost,
//! and what clients deleted does not come back.

mod others;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::cluster::{fill, filled};
use crate::support::start::{record, set, start, value};
use crate::support::{Cluster, Memcached, Shape, Stored, wait_until};

/// What the two nodes hold at first. A second of `--resync-rate` is enough for every wait below, on
/// a slow machine too.
#[derive(Clone, Copy)]
struct Sizes {
    /// Keys of the primary alone, with the values that [`fill`] gives them.
    own: usize,
    /// Keys of both, with different values.
    both: usize,
    /// Keys of the backup alone.
    only: usize,
}

const SIZES: Sizes = Sizes { own: 300, both: 300, only: 2000 };

/// One primary, one backup, and what a client may read once they are mirrored. What was never
/// acknowledged is not in it.
struct World {
    cluster: Cluster,
    truth: BTreeMap<String, Option<String>>,
    /// Keys that clients have written: their truth holds at once.
    written: Vec<String>,
    serial: usize,
}

impl World {
    fn begin(sizes: Sizes, rate: &str, more: &[&str]) -> World {
        World::over(Memcached::start(&[]), Memcached::start(&[]), sizes, rate, more)
    }

    fn over(primary: Memcached, backup: Memcached, sizes: Sizes, rate: &str, more: &[&str]) -> World {
        let mut truth = BTreeMap::new();
        fill(&mut primary.client(), "own", sizes.own, 50);
        fill(&mut backup.client(), "only", sizes.only, 50);
        for (prefix, count) in [("own", sizes.own), ("only", sizes.only)] {
            let text = |i| String::from_utf8(filled(prefix, i, 50)).expect("a text");
            truth.extend((0..count).map(|i| (format!("{prefix}:{i}"), Some(text(i)))));
        }
        let (mut one, mut other) = (primary.client(), backup.client());
        for i in 0..sizes.both {
            set(&mut one, &format!("both:{i}"), "the primary's");
            set(&mut other, &format!("both:{i}"), "the backup's");
            truth.insert(format!("both:{i}"), Some("the primary's".into()));
        }
        let proxy = [&["--resync-rate", rate], more].concat();
        let cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1).proxy(&proxy));
        World { cluster, truth, written: Vec::new(), serial: 0 }
    }

    fn figure(&self, name: &str) -> u64 {
        self.cluster.proxy.status().node_number(&self.cluster.backups[0].addr(), name)
    }

    /// Waits until the job at work has adopted this many items, and not all.
    fn adopted(&self, count: u64) {
        let addr = self.cluster.backups[0].known_as();
        let status = self.cluster.proxy.wait_status("some adopted", crate::support::DEADLINE, |s| {
            s.mirrored() || s.node(&addr) == "copying" && s.node_number(&addr, "items_adopted") >= count.max(1)
        });
        assert!(!status.mirrored(), "the adoption is over: {status}");
        assert_eq!((status.kind(&addr), status.node_number(&addr, "items_copied")), ("adopt", 0), "{status}");
    }

    /// Deletes and overwrites some keys of every kind, others for every `round`; a refused write
    /// leaves its key untold.
    fn write(&mut self, round: usize) {
        let mut client = self.cluster.client();
        let keys: Vec<String> = self.truth.keys().cloned().collect();
        for (i, key) in keys.iter().enumerate().filter(|(i, _)| i % 48 / 3 == round) {
            self.serial += 1;
            let new = format!("new {}", self.serial);
            let done = match i % 3 {
                0 => client.delete(key).map(|_| None),
                1 => client.set(key, new.as_bytes()).map(|stored| {
                    assert_eq!(stored, Stored::Stored, "{key}");
                    Some(new)
                }),
                // Deleted, written and deleted again.
                _ => client.set(key, new.as_bytes()).and_then(|_| client.delete(key)).map(|_| None),
            };
            match done {
                Ok(now) => {
                    self.truth.insert(key.clone(), now);
                    self.written.push(key.clone());
                }
                Err(_) => {
                    self.truth.remove(key);
                    self.written.retain(|k| k != key);
                }
            }
        }
        assert!(self.serial > 0);
    }

    /// What clients have written is read as they left it, at any moment.
    fn look(&self) {
        let mut client = self.cluster.client();
        for key in &self.written {
            assert_eq!(value(&mut client, key), self.truth[key], "{key}\n{}", self.cluster.proxy.log());
        }
    }

    fn set_rate(&mut self, rate: Option<&str>) {
        let args = &mut self.cluster.proxy.args;
        if let Some(at) = args.iter().position(|a| a == "--resync-rate") {
            args.drain(at..at + 2);
        }
        args.extend(rate.map(|rate| ["--resync-rate".to_owned(), rate.to_owned()]).into_iter().flatten());
    }

    fn stop(&mut self, clean: bool) {
        if clean {
            assert!(self.cluster.proxy.stop().success());
        } else {
            self.cluster.proxy.kill();
        }
    }

    fn restart(&mut self, clean: bool) {
        self.stop(clean);
        start(&mut self.cluster);
    }

    /// Everything is there that should be, on both nodes, and nothing else.
    fn end(mut self) {
        self.cluster.mirrored();
        self.check("mirrored");
        self.cluster.assert_rings_equal();
        self.cluster.kill_backups();
        self.check("from the primary");
    }

    fn check(&self, when: &str) {
        let mut client = self.cluster.client();
        let wrong = |(key, wanted): (&String, &Option<String>)| {
            let found = value(&mut client, key);
            (found != *wanted).then(|| format!("{key}: {found:?}, not {wanted:?}"))
        };
        let wrong: Vec<String> = self.truth.iter().filter_map(wrong).collect();
        assert!(
            wrong.is_empty(),
            "{when}: {} of {} are wrong: {:#?}\n{}",
            wrong.len(),
            self.truth.len(),
            &wrong[..wrong.len().min(10)],
            self.cluster.proxy.log()
        );
    }
}

/// What only the backup holds is added to the primary on a first start. The proxy stops in the
/// middle of that, again and again.
#[test]
fn a_crash_in_the_middle_of_an_adoption_loses_nothing() {
    for clean in [true, false] {
        let mut world = World::begin(SIZES, "400", &[]);
        for round in 0..4 {
            world.adopted(30 * round as u64);
            world.write(2 * round);
            world.restart(clean);
            world.look();
            world.write(2 * round + 1);
        }
        world.adopted(20);
        world.stop(clean);
        world.set_rate(None);
        start(&mut world.cluster);
        world.end();
    }
}

/// The moments before the first item is adopted: between the first looks, marks, records and
/// routes.
#[test]
fn a_crash_at_the_very_start_of_an_adoption_loses_nothing() {
    let mut world = World::begin(SIZES, "400", &[]);
    for round in 0..25 {
        world.stop(false);
        world.cluster.proxy.spawn();
        std::thread::sleep(Duration::from_millis(round * 12));
    }
    world.stop(false);
    world.set_rate(None);
    start(&mut world.cluster);
    world.end();
}

/// Nothing but what the leader holds counts once the copies are made: what is cut off then is
/// purged.
#[test]
fn a_crash_while_the_copies_are_compared_loses_and_revives_nothing() {
    for clean in [true, false] {
        let mut world = World::begin(Sizes { own: 3000, both: 500, only: 300 }, "700", &[]);
        wait_until("copies", crate::support::DEADLINE, || world.figure("items_copied") > 50);
        assert_eq!(world.figure("items_adopted"), 300);
        world.write(0);
        world.stop(clean);
        world.set_rate(None);
        start(&mut world.cluster);
        world.look();
        world.end();
    }
}

/// The backup hangs; it comes back with what it held, and has missed writes.
#[test]
fn a_backup_that_hangs_in_the_middle_of_an_adoption_is_adopted_from_when_it_is_back() {
    let mut world = World::begin(SIZES, "500", &[]);
    world.adopted(50);
    world.write(0);
    for round in 1..3 {
        let backup = world.cluster.backups[0].known_as();
        world.cluster.backups[0].pause();
        world.cluster.wait_lost(&backup);
        world.write(2 * round - 1);
        world.cluster.backups[0].resume();
        world.adopted(50);
        world.write(2 * round);
        world.look();
    }
    // What was written in its absence must not come back after a crash either.
    world.restart(false);
    world.look();
    world.adopted(20);
    world.end();
}

/// The primary hangs, which leaves nobody to lead: what only it knows is waited for.
#[test]
fn a_primary_that_hangs_in_the_middle_of_an_adoption_goes_on_adopting_when_it_is_back() {
    let mut world = World::begin(SIZES, "500", &[]);
    world.adopted(50);
    world.write(0);
    let primary = world.cluster.primaries[0].known_as();
    world.cluster.primaries[0].pause();
    world.cluster.wait_lost(&primary);
    assert!(world.cluster.client().get("own:1").is_err());
    world.cluster.primaries[0].resume();
    wait_until("the primary to lead", crate::support::DEADLINE, || world.cluster.client().get("own:1").is_ok());
    world.write(1);
    world.adopted(50);
    world.write(2);
    world.look();
    world.restart(false);
    world.adopted(20);
    world.look();
    world.end();
}

/// The primary is killed and comes back empty. What only it held is lost with the only copy; all
/// that the backup holds leads.
#[test]
fn a_primary_that_dies_in_the_middle_of_an_adoption_leaves_what_the_backup_holds() {
    // Before it is noticed that it is back it refuses connections, or it is back at once.
    for (crashes, adopted) in [(false, 0), (false, 100), (true, 100)] {
        let mut world = World::begin(SIZES, "500", &[]);
        world.adopted(adopted);
        world.write(0);
        if crashes {
            world.cluster.proxy.kill();
            world.cluster.primaries[0].restart();
            start(&mut world.cluster);
        } else {
            world.cluster.primaries[0].restart();
        }
        wait_until("the backup to lead", crate::support::DEADLINE, || world.cluster.client().get("only:1").is_ok());
        world.look_at_what_is_left();
        world.write(1);
        world.cluster.mirrored();
        world.look_at_what_is_left();
        world.end();
    }
}

impl World {
    /// Takes what only the primary held out of what must be there: it may be, where it was copied.
    fn look_at_what_is_left(&mut self) {
        let written = self.written.clone();
        self.truth.retain(|key, _| key.starts_with("only:") || written.contains(key));
        self.check("what the backup held");
    }
}

/// The primary dies while the copies are compared: what was copied is there too, and nothing that
/// was deleted.
#[test]
fn a_primary_that_dies_while_the_copies_are_compared_leaves_what_the_backup_holds() {
    let mut world = World::begin(Sizes { own: 3000, both: 500, only: 300 }, "700", &[]);
    wait_until("copies", crate::support::DEADLINE, || world.figure("items_copied") > 200);
    world.write(0);
    world.cluster.primaries[0].restart();
    wait_until("the backup to lead", crate::support::DEADLINE, || world.cluster.client().get("only:1").is_ok());
    let mut client = world.cluster.client();
    let own = (0..3000).filter(|i| value(&mut client, &format!("own:{i}")).is_some()).count();
    assert!(own > 100, "{own} of what was copied");
    world.look_at_what_is_left();
    world.end();
}

/// The backup is killed and comes back empty: what the primary holds by then is all that is left.
#[test]
fn a_backup_that_dies_in_the_middle_of_an_adoption_takes_only_what_was_not_adopted() {
    let mut world = World::begin(SIZES, "500", &[]);
    world.adopted(200);
    world.write(0);
    let mut client = world.cluster.client();
    let keys: Vec<String> = world.truth.keys().cloned().collect();
    let there: Vec<&String> = keys.iter().filter(|key| value(&mut client, key).is_some()).collect();
    let adopted = there.iter().filter(|key| key.starts_with("only:")).count();
    assert!(adopted >= 150, "{adopted}");
    world.cluster.backups[0].restart();
    let written = world.written.clone();
    world.truth.retain(|key, _| there.contains(&key) || written.contains(key));
    world.write(1);
    world.look();
    world.end();
}

/// Everything ends with a flush, also what waits to be adopted.
#[test]
fn a_flush_in_the_middle_of_an_adoption_ends_what_waits_to_be_adopted() {
    for (delay, crashes) in [(None, false), (None, true), (Some(2), false), (Some(2), true)] {
        let mut world = World::begin(SIZES, "300", &[]);
        world.adopted(50);
        let command = delay.map_or("flush_all".to_owned(), |delay| format!("flush_all {delay}"));
        assert_eq!(world.cluster.client().command(&command), Ok("OK".to_owned()));
        if crashes {
            world.stop(false);
            if delay.is_none() {
                // Later memcacheds keep items that were written within the second of the flush.
                set(&mut world.cluster.backups[0].client(), "only:1", "survived");
            }
            world.set_rate(None);
            start(&mut world.cluster);
        }
        let mut client = world.cluster.client();
        wait_until("its end", crate::support::DEADLINE, || client.get("own:1").is_ok_and(|item| item.is_none()));
        set(&mut client, "later", "1");
        world.truth.values_mut().for_each(|value| *value = None);
        world.truth.insert("later".into(), Some("1".into()));
        world.check("flushed");
        world.end();
    }
}

/// The proxy dies and the backup hangs at once; what is written before it is back is not undone by
/// it.
#[test]
fn a_backup_that_is_away_when_the_proxy_starts_again_is_adopted_from_later() {
    let mut world = World::begin(SIZES, "500", &[]);
    world.adopted(50);
    world.write(0);
    world.cluster.backups[0].pause();
    world.restart(false);
    world.write(1);
    world.look();
    world.cluster.backups[0].resume();
    world.adopted(50);
    world.write(2);
    world.look();
    world.end();
}

/// The same with the primary: it is waited for, and comes back with its memory, or without.
#[test]
fn a_primary_that_is_away_when_the_proxy_starts_again_is_waited_for() {
    for dies in [false, true] {
        let mut world = World::begin(SIZES, "500", &[]);
        world.adopted(50);
        world.write(0);
        world.cluster.primaries[0].pause();
        world.restart(false);
        assert!(world.cluster.client().get("only:1").is_err(), "what is missing on the backup may be on the primary");
        if dies {
            world.cluster.primaries[0].restart();
        } else {
            world.cluster.primaries[0].resume();
        }
        wait_until("somebody to lead", crate::support::DEADLINE, || world.cluster.client().get("only:1").is_ok());
        world.write(1);
        if dies {
            world.look_at_what_is_left();
        } else {
            world.adopted(50);
        }
        world.end();
    }
}

/// The backup missed writes, which only the primary's record tells; then the proxy dies. It is
/// purged as ever.
#[test]
fn a_backup_that_missed_writes_is_not_adopted_from_by_the_next_proxy() {
    let mut world = World::begin(SIZES, "300", &[]);
    world.adopted(50);
    let backup = world.cluster.backups[0].known_as();
    world.cluster.backups[0].pause();
    world.cluster.wait_lost(&backup);
    world.write(0);
    world.cluster.proxy.kill();
    world.cluster.backups[0].resume();
    assert!(record(&world.cluster.backups[0], 0).contains("adopting"));
    start(&mut world.cluster);
    let written = world.written.clone();
    // Two failures at once: what only the backup held is gone.
    world.truth.retain(|key, _| !key.starts_with("only:") || written.contains(key));
    world.look();
    world.cluster.mirrored();
    world.look();
    world.end();
}

/// Another list of servers, or a time without records: nothing that was deleted comes back, as if
/// there had been no adoption.
#[test]
fn an_adoption_does_not_outlive_a_change_of_the_servers_or_a_time_without_records() {
    for change in ["servers", "off"] {
        let mut world = World::begin(SIZES, "300", &[]);
        world.adopted(50);
        world.stop(false);
        let (before, other) = (world.cluster.proxy.args.clone(), Memcached::start(&[]));
        let args = &mut world.cluster.proxy.args;
        match change {
            "servers" => args.extend(["-s".to_owned(), other.addr()]),
            _ => {
                args.retain(|a| !["--resync=auto", "--resync-rate", "300"].contains(&a.as_str()));
                args.push("--resync=off".to_owned());
            }
        }
        start(&mut world.cluster);
        if change == "off" {
            // Nobody writes to the backup, so that it misses them.
            world.cluster.backups[0].pause();
            let _ = world.cluster.client().delete("own:1");
        }
        world.write(0);
        world.stop(false);
        world.cluster.backups[0].resume();
        world.cluster.proxy.args = before;
        world.set_rate(None);
        start(&mut world.cluster);
        world.cluster.mirrored();
        let mut client = world.cluster.client();
        for key in &world.written {
            // Nothing but what was written last, or nothing: keys have moved.
            let found = value(&mut client, key);
            assert!(found.is_none() || found == world.truth[key], "{change}, {key}: {found:?}");
        }
        world.cluster.assert_rings_equal();
    }
}

/// Nobody but the operator begins a refill: until then the primary leads alone, and what it deletes
/// stays deleted.
#[test]
fn an_adoption_that_waits_for_the_operator_begins_when_asked() {
    let mut world = World::begin(SIZES, "400", &["--resync=manual"]);
    world.write(0);
    assert_eq!(world.cluster.client().command("resync"), Ok("OK".to_owned()));
    world.adopted(50);
    world.write(1);
    // Begun, it is taken up again, when asked.
    world.restart(false);
    world.write(2);
    world.look();
    assert_eq!(world.cluster.client().command("resync"), Ok("OK".to_owned()));
    world.adopted(20);
    world.look();
    world.end();
}

#[test]
fn an_adoption_that_was_cancelled_goes_on_when_asked() {
    let mut world = World::begin(SIZES, "400", &[]);
    for round in 0..2 {
        world.adopted(50);
        assert_eq!(world.cluster.client().command("resync cancel"), Ok("OK".to_owned()));
        let (primary, backup) = (world.cluster.primaries[0].addr(), world.cluster.backups[0].addr());
        world
            .cluster
            .proxy
            .wait_status("cancelled", crate::support::DEADLINE, |s| s.pair(&primary, &backup, "state") == "degraded");
        // These miss the backup.
        world.write(2 * round);
        assert_eq!(world.cluster.client().command("resync"), Ok("OK".to_owned()));
        world.write(2 * round + 1);
    }
    world.adopted(50);
    // A crash now must not bring back what the backup missed.
    world.restart(false);
    world.look();
    world.end();
}

/// Connections break under it, again and again: each time another job goes on.
#[test]
fn an_adoption_whose_connections_break_goes_on() {
    let (primary, backup) = (Memcached::start(&[]).forwarded(), Memcached::start(&[]).forwarded());
    let mut world = World::over(primary, backup, SIZES, "1000", &[]);
    for round in 0..4 {
        wait_until("a connection at work", crate::support::DEADLINE, || {
            let status = world.cluster.proxy.status();
            status.node(&world.cluster.backups[0].known_as()) == "copying"
        });
        if round % 2 == 0 {
            world.cluster.backups[0].network().cut();
        } else {
            world.cluster.primaries[0].network().cut();
        }
        world.write(round);
    }
    world.end();
}
