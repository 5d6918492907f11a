//! Adoptions with more than two servers, and with another proxy at work on them.

use super::{SIZES, Sizes, World};
use crate::support::start::{over, record, set, start, value};
use crate::support::{Cluster, Memcached, Shape, wait_until};

const ONLY: usize = 400;

/// Those of the keys that only a backup holds that are still there.
fn found(cluster: &Cluster, keys: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut client = cluster.client();
    keys.filter(|i| value(&mut client, &format!("only:{i}")).is_some()).collect()
}

/// Two primaries adopt from one backup, and one of them dies: the other one's adoption is none the
/// worse for it, also when the proxy crashes before the next job.
#[test]
fn an_adoption_goes_on_when_the_primary_of_another_pair_dies() {
    let nodes = (vec![Memcached::start(&[]), Memcached::start(&[])], vec![Memcached::start(&[])]);
    crate::support::cluster::fill(&mut nodes.1[0].client(), "only", ONLY, 50);
    // Not blank, so that there is something to be made equal with.
    nodes.0.iter().for_each(|node| set(&mut node.client(), "not-blank", "1"));
    let mut cluster = Cluster::over(nodes.0, nodes.1, &Shape::new(2, 1).proxy(&["--resync-rate", "50"]));
    let backup = cluster.backups[0].addr();
    cluster
        .proxy
        .wait_status("some adopted", crate::support::DEADLINE, |s| s.node_number(&backup, "items_adopted") >= 5);
    assert_eq!(cluster.proxy.status().kind(&backup), "adopt");
    let dead = cluster.primaries[0].addr();
    cluster.primaries[0].kill();
    wait_until("the job to end", crate::support::DEADLINE, || {
        cluster.proxy.log_so_far().contains("resync ended early")
    });
    let log = cluster.proxy.log();
    cluster.proxy.kill();
    let fallen = format!("pair={}|{backup} from=\"recovering\" to=\"degraded\"", cluster.primaries[1].addr());
    assert!(log.contains(&format!("pair={dead}|{backup} from=")), "it is told so");
    assert!(!log.contains(&fallen), "{log}");
    cluster.primaries[0].restart();
    cluster.proxy.args.retain(|arg| arg != "--resync-rate" && arg != "50");
    start(&mut cluster);
    cluster.mirrored();
    assert_eq!(found(&cluster, 0..ONLY).len(), ONLY);
    cluster.assert_rings_equal();
}

/// A server that was away comes back with a later record of the pair than this proxy's (some clock
/// was set back). It is outranked by one that still says that both servers' items count.
#[test]
fn a_later_record_elsewhere_does_not_end_an_adoption() {
    let (primary, backups) = (Memcached::start(&[]), vec![Memcached::start(&[]), Memcached::start(&[])]);
    crate::support::cluster::fill(&mut primary.client(), "own", 100, 50);
    crate::support::cluster::fill(&mut backups[0].client(), "only", ONLY, 50);
    let mut cluster = Cluster::over(vec![primary], backups, &Shape::new(1, 2).proxy(&["--resync-rate", "50"]));
    let addrs: Vec<String> = cluster.backups.iter().map(Memcached::addr).collect();
    let adopting = |cluster: &Cluster| {
        cluster
            .proxy
            .wait_status("some adopted", crate::support::DEADLINE, |s| s.node_number(&addrs[0], "items_adopted") >= 5);
    };
    adopting(&cluster);
    wait_until("a witness", crate::support::DEADLINE, || record(&cluster.backups[1], 0).contains("adopting"));
    // Keys of the other pair are none that this backup should hold.
    let ours: Vec<usize> = {
        let status = cluster.proxy.status();
        assert_eq!(status.kind(&addrs[0]), "adopt", "{status}");
        let ring = resilver::internals::ring::Topology::new(
            &[cluster.primaries[0].addr().parse().expect("an address")],
            &[addrs[0].parse().expect("an address"), addrs[1].parse().expect("an address")],
            resilver::internals::ring::Distribution::Modula,
        );
        (0..ONLY).filter(|i| ring.pair_of(format!("only:{i}").as_bytes()).0 == 0).collect()
    };
    assert!(ours.len() > ONLY / 4);
    cluster.proxy.kill();
    let epoch = |text: &str| text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let found_there = record(&cluster.backups[1], 0);
    let (_, rest) = found_there.split_once(' ').expect("a record");
    let late = epoch(&found_there) + 1_000_000_000_000;
    set(&mut cluster.backups[1].client(), "__resilver__:pair:0", &format!("{late} {rest}"));
    cluster.backups[1].pause();
    start(&mut cluster);
    adopting(&cluster);
    assert!(epoch(&record(&cluster.backups[0], 0)) < late);
    cluster.backups[1].resume();
    wait_until("a later one", crate::support::DEADLINE, || {
        [&cluster.primaries[0], &cluster.backups[0]].iter().any(|node| epoch(&record(node, 0)) > late)
    });
    cluster.proxy.kill();
    cluster.proxy.args.retain(|arg| arg != "--resync-rate" && arg != "50");
    start(&mut cluster);
    cluster.mirrored();
    assert_eq!(found(&cluster, ours.iter().copied()).len(), ours.len());
    cluster.assert_rings_equal();
}

/// From its first record on the backup says that its items count: a proxy that dies before it has
/// begun to add them to the primary leaves a backup that is adopted from.
#[test]
fn a_backup_never_says_that_it_is_filled_before_its_items_are_adopted() {
    let mut world = World::begin(SIZES, "400", &[]);
    for _ in 0..5 {
        world.adopted(1);
        world.stop(false);
        let mut client = world.cluster.backups[0].client();
        let mut said = || value(&mut client, "__resilver__:pair:0").unwrap_or_default();
        let before = said();
        world.cluster.proxy.spawn();
        // As often as it can be asked: the job that adopts comes a few milliseconds after the
        // start's own record.
        let begun = std::time::Instant::now();
        let mut first = said();
        while first == before && begun.elapsed() < crate::support::DEADLINE {
            first = said();
        }
        assert!(first != before && first.contains(" adopting primary "), "{before}, then {first}");
    }
}

/// Another proxy's writes were made without this one's knowledge: after it nothing that the backup
/// holds counts.
#[test]
fn an_adoption_does_not_outlive_another_proxys_writes() {
    // One item a second: nothing is adopted while it is looked at.
    let mut world = World::begin(Sizes { own: 20, both: 20, only: 100 }, "1", &[]);
    world.adopted(1);
    let nodes = [&world.cluster.primaries[0], &world.cluster.backups[0]];
    let reasons =
        |s: &crate::support::proxy::Status| nodes.map(|n| s.all[&format!("node:{}:reason", n.addr())].clone());
    let foreign = |s: &crate::support::proxy::Status| reasons(s).map(|reason| reason == "foreign_session");
    // It fills nothing, so it writes to the primary alone.
    let mut second = over(&[nodes[0]], &[nodes[1]], &["--resync=manual"]);
    world.cluster.proxy.wait_status("it to be noticed", crate::support::DEADLINE, |s| foreign(s) == [true; 2]);
    for i in 0..20 {
        set(&mut second.client(), &format!("both:{i}"), "new");
    }
    assert_eq!(value(&mut nodes[1].client(), "both:1").as_deref(), Some("the backup's"));
    const ENDED: &str = "resync ended early";
    assert!(!world.cluster.proxy.log().contains(ENDED));
    assert!(second.stop().success());
    world.cluster.proxy.wait_status("its end", crate::support::DEADLINE, |s| foreign(s) == [false; 2]);
    wait_until("the job's end", crate::support::DEADLINE, || world.cluster.proxy.log_so_far().contains(ENDED));
    world.cluster.primaries[0].restart();
    let mut client = world.cluster.client();
    wait_until("somebody to lead", crate::support::DEADLINE, || client.get("both:1").is_ok());
    for i in 0..20 {
        let now = value(&mut client, &format!("both:{i}"));
        assert!(now.is_none() || now.as_deref() == Some("new"), "{now:?}\n{}", world.cluster.proxy.log());
    }
}
