//! A node's memory is lost while its process lives on: somebody said `flush_all` to it past the proxy.

use super::Truth;
use super::support::{Cluster, Load, Memcached, Mix, Shape, seed, wait_until};

fn flush_past_the_proxy(node: &Memcached) {
    assert_eq!(node.client().raw_command("flush_all").as_deref(), Ok("OK"));
}

/// Nobody asks for anything: the probes see that the marker is gone.
#[test]
fn g1_a_strangers_flush_of_either_node_is_noticed_and_healed_without_traffic() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let truth = Truth::fill(&mut cluster.client(), 2000);
    for (round, node) in [&cluster.primaries[0], &cluster.backups[0], &cluster.primaries[0]].into_iter().enumerate() {
        let lost = cluster.proxy.server(&node.addr(), "lost");
        flush_past_the_proxy(node);
        wait_until("the lost memory to be noticed", super::support::DEADLINE, || {
            cluster.proxy.server(&node.addr(), "lost") != lost
        });
        assert_ne!(cluster.proxy.server(&node.addr(), "lost_marker_lost"), "", "another reason, round {round}");
        cluster.mirrored();
        assert_eq!(cluster.assert_rings_equal().len(), 2000, "round {round}");
        truth.check(&mut cluster.client(), "healed");
    }
}

/// A client asks at once, and no probe comes: misses make the proxy look at the marker. Those that were answered before it has looked are
/// passed on (the leader's answer is the client's answer), and that is all: no other value, and an end to it.
#[test]
fn g1_g3_misses_reveal_a_strangers_flush_of_the_leader_without_any_probe() {
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--probe-interval", "1h"]));
    let mut client = cluster.client();
    let mut truth = Truth::fill(&mut client, 2000);
    for round in 0..3 {
        flush_past_the_proxy(&cluster.primaries[0]);
        let (mut misses, mut reads) = (0, 0);
        wait_until("an end of the misses", super::support::DEADLINE, || {
            let before = misses;
            misses += truth.count_misses(&mut client, "right after a stranger's flush of the leader");
            reads += 1;
            misses == before
        });
        eprintln!("round {round}: {misses} misses in {reads} times {} reads", truth.count());
        assert!(misses > 0, "the flush did nothing: nothing is tested");
        truth.check(&mut client, "noticed");
        assert_eq!(cluster.proxy.server(&cluster.primaries[0].addr(), "lost_marker_lost"), (round + 1).to_string());
        cluster.mirrored();
        cluster.assert_rings_equal();
        truth.check(&mut client, "healed");
        truth.change(&mut client, round);
    }
}

/// The leader's answers are right all the time.
#[test]
fn g1_g5_a_strangers_flush_of_the_backup_under_load_harms_nobody() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("stranger's flush, backup")));
    for _ in 0..3 {
        load.wait_operations(1000);
        cluster.mirrored();
        load.mark("a stranger flushes the backup");
        let lost = cluster.proxy.server(&cluster.backups[0].addr(), "lost");
        flush_past_the_proxy(&cluster.backups[0]);
        wait_until("the lost memory to be noticed", super::support::DEADLINE, || {
            cluster.proxy.server(&cluster.backups[0].addr(), "lost") != lost
        });
    }
    cluster.healed_and_complete(load);
}
