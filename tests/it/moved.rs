//! A server is known by a name, and the name leads to another one from some moment on: a change of
//! server, which no client notices.
//!
//! The first server listens on 127.0.0.1, the second on the same port of 127.0.0.2.

use std::time::Duration;

use crate::support::cluster::{count_filled, fill};
use crate::support::{Client, Cluster, DEADLINE, Load, Memcached, Mix, Names, Shape, Status, seed, wait_until};

const NAME: &str = "cache1";
const FIRST: &str = "127.0.0.1";
const SECOND: &str = "127.0.0.2";

/// One primary, known by its name, and one backup.
struct Moving {
    names: Names,
    cluster: Cluster,
}

impl Moving {
    /// `None`: not on this machine.
    fn start(test: &str) -> Option<Moving> {
        let names = Names::new(test)?;
        names.lead(&[(NAME, FIRST)]);
        let cluster = over(&names, Memcached::start(&[]).named(NAME), &[]);
        cluster.mirrored();
        Some(Moving { names, cluster })
    }

    fn name(&self) -> String {
        self.cluster.primaries[0].known_as()
    }

    /// The name leads to an empty server from now on. Returns the one it led to before, which goes
    /// on.
    fn lead_elsewhere(&mut self) -> Memcached {
        let other = self.cluster.primaries[0].twin(SECOND);
        self.names.lead(&[(NAME, SECOND)]);
        std::mem::replace(&mut self.cluster.primaries[0], other)
    }

    /// Waits until the pair is mirrored with the server that the name leads to.
    fn healed(&self) {
        let address = self.cluster.primaries[0].addr();
        wait_until("the node to be where its name leads", DEADLINE, || {
            self.cluster.proxy.server(&self.name(), "address") == address
        });
        self.cluster.mirrored();
    }
}

fn over(names: &Names, primary: Memcached, args: &[&str]) -> Cluster {
    Cluster::over(vec![primary], vec![Memcached::start(&[])], &Shape::new(1, 1).hosts(names).proxy(args))
}

fn number(client: &mut Client, key: &str) -> String {
    let item = client.get(key).expect("an answer").unwrap_or_else(|| panic!("{key} is lost"));
    String::from_utf8_lossy(&item.value).into_owned()
}

/// Issue 16, item 4, as it was seen: the name moves, then the backup restarts, then the old primary
/// dies.
#[test]
fn g1_a_name_that_moves_loses_nothing() {
    let Some(mut moving) = Moving::start("g1_a_name_that_moves_loses_nothing") else { return };
    let mut client = moving.cluster.client();
    fill(&mut client, "key", 2000, 50);
    client.set("n", b"1000").expect("stored");
    let mut old = moving.lead_elsewhere();
    moving.cluster.backups[0].restart();
    assert_eq!(client.incr("n", 1), Ok(Some(1001)));
    moving.healed();
    assert_eq!(client.incr("n", 1), Ok(Some(1002)));
    old.kill();
    assert_eq!(count_filled(&mut client, "key", 2000, 50), 2000);
    assert_eq!(number(&mut client, "n"), "1002");
    // `mirrored 1` is true of the second server.
    moving.cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "key", 2000, 50), 2000);
    assert_eq!(number(&mut client, "n"), "1002");
}

#[test]
fn g5_increments_are_exact_when_a_refill_is_asked_for_after_a_name_has_moved() {
    let Some(mut moving) = Moving::start("g5_increments_are_exact…") else { return };
    let mut client = moving.cluster.client();
    fill(&mut client, "key", 500, 50);
    client.set("n", b"1000").expect("stored");
    let mut old = moving.lead_elsewhere();
    assert_eq!(client.incr("n", 1), Ok(Some(1001)));
    moving.cluster.proxy.operator(&format!("resync {}", moving.name()));
    assert_eq!(client.incr("n", 1), Ok(Some(1002)));
    moving.healed();
    old.kill();
    assert_eq!(client.incr("n", 1), Ok(Some(1003)));
    moving.cluster.kill_backups();
    assert_eq!(number(&mut client, "n"), "1003");
    assert_eq!(count_filled(&mut client, "key", 500, 50), 500);
}

#[test]
fn g4_a_name_that_moves_under_load_costs_no_client_an_error() {
    let Some(mut moving) = Moving::start("g4_a_name_that_moves_under_load_costs_no_client_an_error") else { return };
    let load = Load::start(&moving.cluster.proxy.addr(), Mix::full(seed("a name moves")));
    load.wait_operations(2000);
    moving.cluster.mirrored();
    load.mark("the name moves");
    let mut old = moving.lead_elsewhere();
    moving.healed();
    load.mark("healed");
    load.wait_operations(1000);
    load.mark("the old server dies");
    old.kill();
    load.wait_operations(1000);
    let log = moving.cluster.proxy.log();
    assert_eq!(log.matches("node lost").count(), 1, "{log}");
    moving.cluster.healed_and_complete(load);
}

/// It is not the name's last word that decides then, but the items.
#[test]
fn g1_the_only_full_copy_is_left_when_it_is_copied_and_not_before() {
    let test = "g1_the_only_full_copy_is_left_when_it_is_copied_and_not_before";
    let Some(mut moving) = Moving::start(test) else { return };
    let mut client = moving.cluster.client();
    fill(&mut client, "key", 1000, 50);
    moving.cluster.backups[0].kill();
    moving.cluster.wait_lost(&moving.cluster.backups[0].addr());
    let old = moving.lead_elsewhere();
    let elsewhere = moving.cluster.primaries[0].addr();
    wait_until("the move to be noticed", DEADLINE, || {
        moving.cluster.proxy.server(&moving.name(), "leads_elsewhere") == elsewhere
    });
    assert_eq!(count_filled(&mut client, "key", 1000, 50), 1000);
    client.set("late", b"1").expect("stored");
    assert_eq!(moving.cluster.proxy.server(&moving.name(), "address"), old.addr());
    moving.cluster.backups[0].restart();
    moving.healed();
    drop(old);
    moving.cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "key", 1000, 50), 1000);
    assert_eq!(number(&mut client, "late"), "1");
}

#[test]
fn g1_a_server_that_died_is_replaced_by_the_one_that_its_name_leads_to() {
    let test = "g1_a_server_that_died_is_replaced_by_the_one_that_its_name_leads_to";
    let Some(mut moving) = Moving::start(test) else { return };
    let mut client = moving.cluster.client();
    fill(&mut client, "key", 500, 50);
    moving.cluster.primaries[0].kill();
    moving.cluster.wait_lost(&moving.name());
    drop(moving.lead_elsewhere());
    moving.healed();
    moving.cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "key", 500, 50), 500);
}

/// A hung one holds writes that nobody will ever hear of; they are its own affair.
#[test]
fn g4_a_server_that_hangs_is_replaced_by_the_one_that_its_name_leads_to() {
    let test = "g4_a_server_that_hangs_is_replaced_by_the_one_that_its_name_leads_to";
    let Some(mut moving) = Moving::start(test) else { return };
    let load = Load::start(&moving.cluster.proxy.addr(), Mix::small(seed("a hung server's name moves")));
    load.wait_operations(1000);
    moving.cluster.mirrored();
    load.mark("the primary hangs");
    moving.cluster.primaries[0].pause();
    moving.cluster.wait_lost(&moving.name());
    load.mark("its name moves");
    let old = moving.lead_elsewhere();
    moving.healed();
    load.mark("healed; the old one wakes");
    old.resume();
    load.wait_operations(500);
    moving.cluster.healed_and_complete(load);
}

#[test]
fn the_same_memory_at_another_address_is_no_loss() {
    let Some(names) = Names::new("the_same_memory_at_another_address_is_no_loss") else { return };
    names.lead(&[(NAME, FIRST)]);
    let primary = Memcached::start(&["-l", SECOND]).named(NAME);
    let (first, port) = (primary.addr(), primary.port());
    let mut cluster = over(&names, primary, &[]);
    let name = cluster.primaries[0].known_as();
    cluster.mirrored();
    let mut client = cluster.client();
    fill(&mut client, "key", 500, 50);
    names.lead(&[(NAME, SECOND)]);
    wait_until("the log to say so", DEADLINE, || cluster.proxy.log_so_far().contains("where the same memory is"));
    assert_eq!(cluster.proxy.server(&name, "leads_elsewhere"), format!("{SECOND}:{port}"));
    assert_eq!(cluster.proxy.server(&name, "address"), first);
    assert_eq!(cluster.proxy.server(&name, "lost"), "0");
    // When it comes back after a loss it may be by either way.
    cluster.primaries[0].pause();
    cluster.wait_lost(&name);
    cluster.primaries[0].resume();
    cluster.mirrored();
    client.set("late", b"1").expect("stored");
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "key", 500, 50), 500);
    assert_eq!(number(&mut client, "late"), "1");
}

#[test]
fn g4_a_name_that_leads_to_nobody_moves_nobody() {
    let Some(mut moving) = Moving::start("g4_a_name_that_leads_to_nobody_moves_nobody") else { return };
    let address = moving.cluster.primaries[0].addr();
    let mut client = moving.cluster.client();
    fill(&mut client, "key", 100, 50);
    moving.names.lead(&[(NAME, SECOND)]);
    wait_until("the log to say so", DEADLINE, || {
        moving.cluster.proxy.log_so_far().contains("until somebody answers there")
    });
    assert_eq!(moving.cluster.proxy.server(&moving.name(), "address"), address);
    assert_eq!(moving.cluster.proxy.server(&moving.name(), "lost"), "0");
    let _old = moving.lead_elsewhere();
    moving.healed();
    assert_eq!(count_filled(&mut client, "key", 100, 50), 100);
}

#[test]
fn a_name_that_comes_and_goes_or_has_several_addresses_moves_nobody() {
    let Some(moving) = Moving::start("a_name_that_comes_and_goes_or_has_several_addresses_moves_nobody") else {
        return;
    };
    let (name, proxy) = (moving.name(), &moving.cluster.proxy);
    let address = moving.cluster.primaries[0].addr();
    let look_ups = |more: usize| {
        // Nothing tells of a look-up; another name, whose address changes with each, would be
        // another node. So: time, several intervals.
        std::thread::sleep(Duration::from_millis(130 * more as u64));
    };
    let lists: [&[(&str, &str)]; 6] = [
        &[(NAME, SECOND), (NAME, FIRST)],
        &[(NAME, FIRST), (NAME, SECOND), (NAME, "::1")],
        &[],
        &[(NAME, "::1"), (NAME, FIRST)],
        &[],
        &[(NAME, FIRST)],
    ];
    let said = |what: &str, times: usize| {
        wait_until(what, DEADLINE, || proxy.log_so_far().matches(what).count() >= times);
    };
    let (mut absences, mut returns) = (0, 0);
    for list in lists {
        moving.names.lead(list);
        if list.is_empty() {
            absences += 1;
            said("does not resolve", absences);
        } else if returns < absences {
            returns += 1;
            said("its name leads to its address", returns);
        } else {
            look_ups(3);
        }
    }
    assert_eq!(proxy.server(&name, "address"), address);
    assert_eq!(proxy.server(&name, "lost"), "0");
    let log = proxy.log();
    assert_eq!(log.matches("does not resolve").count(), 2, "said once for each time:\n{log}");
}

#[test]
fn a_server_is_found_at_whichever_address_of_its_name_it_listens() {
    let Some(names) = Names::new("a_server_is_found_at_whichever_address_of_its_name_it_listens") else { return };
    names.lead(&[(NAME, FIRST), (NAME, SECOND), (NAME, "::1")]);
    let absent = Memcached::absent(&[]).named(NAME);
    let cluster = over(&names, absent.twin(SECOND), &[]);
    cluster.mirrored();
    assert_eq!(cluster.proxy.server(&cluster.primaries[0].known_as(), "address"), cluster.primaries[0].addr());
}

#[test]
fn a_name_that_never_resolved_is_called_so_until_it_does() {
    let Some(names) = Names::new("a_name_that_never_resolved_is_called_so_until_it_does") else { return };
    names.lead(&[]);
    let cluster = over(&names, Memcached::start(&[]).named(NAME), &[]);
    let name = cluster.primaries[0].known_as();
    let reason = |status: &Status| status.all[&format!("node:{name}:reason")].clone();
    let status = cluster.proxy.wait_status("the backup leads", DEADLINE, |s| {
        s.pair(&name, &cluster.backups[0].addr(), "leader") == cluster.backups[0].addr()
    });
    assert_eq!(reason(&status), "unresolved");
    assert_eq!(cluster.proxy.server(&name, "address"), "none");
    let mut client = cluster.client();
    fill(&mut client, "key", 100, 50);
    assert_eq!(reason(&cluster.proxy.status()), "unresolved");
    names.lead(&[(NAME, FIRST)]);
    cluster.mirrored();
    assert_eq!(reason(&cluster.proxy.status()), "none");
    assert_eq!(count_filled(&mut client, "key", 100, 50), 100);
}

#[test]
fn a_look_up_that_never_ends_stalls_nothing() {
    let Some(names) = Names::new("a_look_up_that_never_ends_stalls_nothing") else { return };
    names.hang();
    let mut cluster = over(&names, Memcached::start(&[]).named(NAME), &[]);
    let name = cluster.primaries[0].known_as();
    cluster.proxy.wait_status("the backup leads", DEADLINE, |s| {
        s.pair(&name, &cluster.backups[0].addr(), "leader") == cluster.backups[0].addr()
    });
    fill(&mut cluster.client(), "key", 100, 50);
    assert!(cluster.proxy.stop().success());
}

#[test]
fn two_nodes_are_never_one_server() {
    let Some(mut moving) = Moving::start("two_nodes_are_never_one_server") else { return };
    let mut client = moving.cluster.client();
    fill(&mut client, "key", 200, 50);
    // A second name, of a backup on the primary's port, leads to the primary.
    let backup = moving.cluster.primaries[0].twin(SECOND).named("cache2");
    moving.names.lead(&[(NAME, FIRST), ("cache2", SECOND)]);
    moving.cluster.proxy.stop();
    let primary = moving.cluster.primaries.remove(0);
    let cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1).hosts(&moving.names));
    cluster.mirrored();
    moving.names.lead(&[(NAME, FIRST), ("cache2", FIRST)]);
    wait_until("the log to say so", DEADLINE, || cluster.proxy.log_so_far().contains("that address does not count"));
    assert_eq!(cluster.proxy.server(&cluster.backups[0].known_as(), "lost"), "0");
    assert!(cluster.proxy.status().mirrored());
}
