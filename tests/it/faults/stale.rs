//! A node comes back with old items, in every way in which that can happen: nothing stale is read,
//! nothing deleted comes back.

use std::os::unix::fs::PermissionsExt;

use super::Truth;
use crate::support::{Cluster, Hold, Load, Memcached, Mix, Shape, seed};

/// `leave` takes a node away with its memory, `back` brings it back; meanwhile nearly every key
/// changes.
fn comes_back(mut cluster: Cluster, primary: bool, leave: impl Fn(&mut Memcached), back: impl Fn(&mut Memcached)) {
    let mut client = cluster.client();
    let mut truth = Truth::fill(&mut client, 3000);
    let mix = Mix { prefix: "load".into(), ..Mix::small(seed("comes back stale")) };
    let load = Load::start(&cluster.proxy.addr(), mix);
    load.wait_operations(500);
    let known = node(&mut cluster, primary).known_as();
    for round in 0..2 {
        cluster.mirrored();
        load.mark(&format!("{known} leaves"));
        leave(node(&mut cluster, primary));
        cluster.wait_lost(&known);
        truth.change(&mut client, round);
        truth.check(&mut client, "while it is away");
        load.wait_operations(500);
        load.mark("it comes back with old items");
        back(node(&mut cluster, primary));
        let mut reads = 0;
        while !cluster.proxy.status().mirrored() || reads == 0 {
            truth.check(&mut client, "while it is taken back");
            reads += 1;
        }
        truth.change(&mut client, round + 7);
        truth.check(&mut client, "mirrored");
        assert_ne!(cluster.proxy.server(&known, "lost"), "0");
    }
    // Its copy alone must tell the truth too.
    cluster.mirrored();
    truth.check_ring(&cluster.primary_ring(), "on the primaries");
    truth.check_ring(&cluster.backup_ring(), "on the backups");
    let cluster = cluster.healed_and_complete(load);
    truth.check(&mut cluster.client(), "from the primaries alone");
}

fn node(cluster: &mut Cluster, primary: bool) -> &mut Memcached {
    if primary { &mut cluster.primaries[0] } else { &mut cluster.backups[0] }
}

#[test]
fn g2_g3_a_primary_stopped_for_seconds_returns_with_old_items() {
    comes_back(Cluster::start(&Shape::new(1, 1)), true, |n| n.pause(), |n| n.resume());
}

#[test]
fn g2_g3_a_backup_stopped_for_seconds_returns_with_old_items() {
    comes_back(Cluster::start(&Shape::new(1, 1)), false, |n| n.pause(), |n| n.resume());
}

/// What was under way when the network failed arrives when it heals, minutes late.
#[test]
fn g2_g3_a_partition_heals_and_delivers_what_it_held() {
    let cluster = || Cluster::start(&Shape::new(1, 1).forwarded());
    for primary in [true, false] {
        comes_back(cluster(), primary, |n| n.network().hold(Hold::Both), |n| n.network().hold(Hold::Nothing));
    }
}

/// Requests arrive, answers do not: the node executes what counts as failed.
#[test]
fn g2_g3_a_network_that_loses_one_direction_heals() {
    for (primary, hold) in [(true, Hold::ToProxy), (true, Hold::ToNode), (false, Hold::ToProxy)] {
        let cluster = Cluster::start(&Shape::new(1, 1).forwarded());
        comes_back(cluster, primary, |n| n.network().hold(hold), |n| n.network().hold(Hold::Nothing));
    }
}

/// A partition that ends with every connection reset.
#[test]
fn g2_g3_a_partition_that_cuts_every_connection_heals() {
    let cluster = Cluster::start(&Shape::new(1, 1).forwarded());
    let back = |n: &mut Memcached| {
        n.network().cut();
        n.network().hold(Hold::Nothing);
    };
    comes_back(cluster, true, |n| n.network().hold(Hold::Both), back);
}

/// Nobody is reached, and the process lives on with its memory: a firewall that rejects.
#[test]
fn g2_g3_a_network_that_refuses_heals() {
    let cluster = Cluster::start(&Shape::new(1, 1).forwarded());
    comes_back(cluster, true, |n| n.network().refuse(true), |n| n.network().refuse(false));
}

/// `memcached -e`: another process with the same memory, markers and cas counter, which missed
/// every write in between.
#[test]
fn g2_g3_a_warm_restart_returns_with_old_items() {
    for primary in [true, false] {
        let shm = std::path::Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.expect("a directory");
        // memcached gives root up before it makes the file.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("chmod");
        let file = dir.path().join("memory").to_str().expect("a path").to_string();
        let warm = Memcached::start(&["-m", "64", "-e", &file]);
        let other = Memcached::start(&[]);
        let (primaries, backups) = if primary { (vec![warm], vec![other]) } else { (vec![other], vec![warm]) };
        let cluster = Cluster::over(primaries, backups, &Shape::new(1, 1));
        cluster.mirrored();
        comes_back(cluster, primary, Memcached::end_gracefully, Memcached::restart_warm);
    }
}
