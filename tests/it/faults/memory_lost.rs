//! A node's memory is lost while its process lives on: somebody said `flush_all` to it past the
//! proxy.

use super::Truth;
use crate::support::{Cluster, Load, Memcached, Mix, Shape, seed, wait_until};

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
        wait_until("the lost memory to be noticed", crate::support::DEADLINE, || {
            cluster.proxy.server(&node.addr(), "lost") != lost
        });
        assert_ne!(cluster.proxy.server(&node.addr(), "lost_marker_lost"), "", "another reason, round {round}");
        cluster.mirrored();
        assert_eq!(cluster.assert_rings_equal().len(), 2000, "round {round}");
        truth.check(&mut cluster.client(), "healed");
    }
}

/// A client asks at once, and no probe comes: what is not there makes the proxy look at the marker
/// before it says so.
#[test]
fn g1_g3_a_strangers_flush_of_the_leader_is_not_noticed_by_readers() {
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--probe-interval", "1h"]));
    let mut client = cluster.client();
    let mut truth = Truth::fill(&mut client, 2000);
    for round in 0..3 {
        flush_past_the_proxy(&cluster.primaries[0]);
        truth.check(&mut client, "right after a stranger's flush of the leader");
        noticed_and_healed(&cluster, round);
        truth.check(&mut client, "healed");
        truth.change(&mut client, round);
    }
}

fn noticed_and_healed(cluster: &Cluster, round: usize) {
    assert_eq!(cluster.proxy.server(&cluster.primaries[0].addr(), "lost_marker_lost"), (round + 1).to_string());
    cluster.mirrored();
    cluster.assert_rings_equal();
}

/// Every command that says whether the key was there is the first one to meet the emptied leader;
/// many in one write.
#[test]
fn g5_conditional_commands_stay_true_through_a_strangers_flush_of_the_leader() {
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--probe-interval", "1h"]));
    let mut client = cluster.client();
    let commands = [
        ("add {} 0 0 1\r\n9\r\n", "NOT_STORED"),
        ("incr {} 0\r\n", "{v}"),
        ("append {} 0 0 0\r\n\r\n", "STORED"),
        ("replace {} 0 0 4\r\n{v}\r\n", "STORED"),
        ("touch {} 0\r\n", "TOUCHED"),
        ("cas {} 0 0 1 1\r\n9\r\n", "EXISTS"),
        ("delete {}\r\n", "DELETED"),
    ];
    let truth = Truth::fill(&mut client, 2000);
    for (round, (command, told)) in commands.into_iter().enumerate() {
        flush_past_the_proxy(&cluster.primaries[0]);
        let with = |text: &str, i: usize| text.replace("{}", &format!("k:{i}")).replace("{v}", &(1000 + i).to_string());
        client.send(&(0..2000).flat_map(|i| with(command, i).into_bytes()).collect::<Vec<_>>()).expect("send");
        let wrong: Vec<_> = (0..2000)
            .map(|i| (i, client.text()))
            .filter(|(i, line)| line.as_deref() != Ok(with(told, *i).as_str()))
            .collect();
        assert!(wrong.is_empty(), "{command:?}: {} wrong answers, first {:?}", wrong.len(), wrong.first());
        noticed_and_healed(&cluster, round);
        if told != "DELETED" {
            truth.check(&mut client, command);
        }
    }
}

/// The same, with everything under way that clients do.
#[test]
fn g1_g5_a_strangers_flush_of_the_leader_under_load_harms_nobody() {
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--probe-interval", "1h"]));
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("stranger's flush, leader")));
    for _ in 0..5 {
        load.wait_operations(1000);
        cluster.mirrored();
        load.mark("a stranger flushes the leader");
        let lost = cluster.proxy.server(&cluster.primaries[0].addr(), "lost");
        flush_past_the_proxy(&cluster.primaries[0]);
        wait_until("the lost memory to be noticed", crate::support::DEADLINE, || {
            cluster.proxy.server(&cluster.primaries[0].addr(), "lost") != lost
        });
    }
    cluster.healed_and_complete(load);
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
        wait_until("the lost memory to be noticed", crate::support::DEADLINE, || {
            cluster.proxy.server(&cluster.backups[0].addr(), "lost") != lost
        });
    }
    cluster.healed_and_complete(load);
}

/// One marker outlived the flush, as may happen from memcached 1.6.25 on: the others' absence and
/// the server's count of flushes tell.
#[test]
fn g1_a_strangers_flush_that_left_a_marker_is_noticed_all_the_same() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let truth = Truth::fill(&mut cluster.client(), 2000);
    let (node, key) = (&cluster.primaries[0], "__resilver__:incarnation");
    let mut client = node.client();
    let marker = client.get(key).expect("a get").expect("a marker").value;
    let add = crate::support::client::storage("add", key, 0, 0, &marker, "");
    // In one write, so that nobody sees it without.
    client.send(&[b"flush_all\r\n", &add[..]].concat()).expect("send");
    assert_eq!((client.text().as_deref(), client.stored()), (Ok("OK"), Ok(crate::support::Stored::Stored)));
    wait_until("the lost memory to be noticed", crate::support::DEADLINE, || {
        cluster.proxy.server(&node.addr(), "lost_marker_lost") == "1"
    });
    cluster.mirrored();
    assert_eq!(cluster.assert_rings_equal().len(), 2000);
    truth.check(&mut cluster.client(), "healed");
}
