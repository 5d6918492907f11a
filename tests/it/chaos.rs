//! One fault at a time, at random moments, of every kind; every answer is judged.
//!
//! The next fault comes only after everything is mirrored again, by the word of `resilver wait`.
//! Now and then all clients pause, and both rings are compared with each other and with what was
//! acknowledged. As a soak: `make soak MINUTES=60`; a seed that failed runs again with
//! `RESILVER_TEST_SEED=…`.

use std::time::{Duration, Instant};

use crate::support::cluster::{count_filled, fill};
use crate::support::command::run;
use crate::support::{Cluster, DEADLINE, Hold, Load, Memcached, Mix, Rng, Shape, duration_or, seed, soaks};

const FILLER: usize = 5000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Kill,
    /// Killed and restarted within milliseconds.
    Bounce,
    /// Killed, and again soon after it is back.
    KillTwice,
    Pause,
    /// The network delivers nothing, or one way only; what it holds arrives later.
    Partition,
    /// The same, and every connection is cut at the end.
    PartitionAndCut,
    /// Connections are refused, the process lives.
    Refuse,
    /// A client says `flush_all`.
    Flush,
    /// A client says `flush_all` while a node is away with its memory.
    FlushWithoutNode,
    /// Somebody says `flush_all` to one server, past the proxy.
    StrangersFlush,
    /// SIGKILL of the proxy, and a new one.
    ProxyCrash,
    /// SIGTERM of the proxy, and a new one.
    ProxyRestart,
}

/// Each kind with its weight.
const FAULTS: [(Fault, usize); 12] = [
    (Fault::Kill, 4),
    (Fault::Bounce, 3),
    (Fault::KillTwice, 2),
    (Fault::Pause, 4),
    (Fault::Partition, 4),
    (Fault::PartitionAndCut, 2),
    (Fault::Refuse, 2),
    (Fault::Flush, 2),
    (Fault::FlushWithoutNode, 2),
    (Fault::StrangersFlush, 2),
    (Fault::ProxyCrash, 3),
    (Fault::ProxyRestart, 2),
];

fn choose(rng: &mut Rng) -> Fault {
    let mut lot = rng.below(FAULTS.iter().map(|(_, weight)| weight).sum());
    for (fault, weight) in FAULTS {
        match lot.checked_sub(weight) {
            Some(rest) => lot = rest,
            None => return fault,
        }
    }
    unreachable!("the lot is below the sum of the weights")
}

/// Every node is up, and every item on two of them: the proxy's word is held against each node's
/// own memory.
fn wait_healed(cluster: &Cluster) {
    let timeout = format!("{}s", 2 * DEADLINE.as_secs());
    let (code, _, why) = run(&["wait", "--mirrored", "--proxy", &cluster.proxy.addr(), "--timeout", &timeout]);
    assert_eq!(code, Some(0), "not healed: {why}");
}

fn flush(cluster: &Cluster, load: &Load) {
    load.quiet(|model| {
        let mut client = cluster.client();
        assert_eq!(client.raw_command("flush_all").as_deref(), Ok("OK"));
        model.flushed(&mut client);
        assert_eq!(count_filled(&mut client, "filler", FILLER, 100), 0, "after flush_all");
        fill(&mut client, "filler", FILLER, 100);
    });
}

/// Brings one fault about and ends it.
fn inflict(fault: Fault, cluster: &mut Cluster, load: &Load, rng: &mut Rng) {
    let pause = Duration::from_millis(rng.next() % 800);
    let pick = rng.below(cluster.primaries.len() + cluster.backups.len());
    let hold = [Hold::Both, Hold::ToNode, Hold::ToProxy][rng.below(3)];
    let node = node_at(cluster, pick);
    load.mark(&format!("{fault:?} ({pause:?}) {}", node.known_as()));
    match fault {
        Fault::Kill => {
            node.kill();
            load.run_for(pause);
            node.restart();
        }
        Fault::Bounce => node.restart(),
        Fault::KillTwice => {
            node.restart();
            load.run_for(pause);
            node.kill();
            load.run_for(pause / 2);
            node.restart();
        }
        Fault::Pause => {
            node.pause();
            load.run_for(pause);
            node.resume();
        }
        Fault::Partition | Fault::PartitionAndCut => {
            node.network().hold(hold);
            load.run_for(pause);
            if fault == Fault::PartitionAndCut {
                node.network().cut();
            }
            node.network().hold(Hold::Nothing);
        }
        Fault::Refuse => {
            node.network().refuse(true);
            load.run_for(pause);
            node.network().refuse(false);
        }
        Fault::Flush => flush(cluster, load),
        Fault::FlushWithoutNode => {
            node.pause();
            let known = node.known_as();
            cluster.wait_lost(&known);
            flush(cluster, load);
            load.run_for(pause);
            node_at(cluster, pick).resume();
        }
        Fault::StrangersFlush => {
            assert_eq!(node.client().raw_command("flush_all").as_deref(), Ok("OK"));
        }
        Fault::ProxyCrash | Fault::ProxyRestart => {
            load.allow_errors(true);
            load.proxy_ends();
            if fault == Fault::ProxyCrash {
                cluster.proxy.kill();
            } else {
                assert!(cluster.proxy.stop().success());
            }
            load.proxy_ends();
            load.run_for(pause / 4);
            cluster.proxy.spawn();
            cluster.proxy.wait_listening(DEADLINE);
            wait_healed(cluster);
            // Whatever was refused while the new one looked around is answered by now.
            load.wait_operations(200);
            load.allow_errors(false);
        }
    }
}

/// Counted through both rings.
fn node_at(cluster: &mut Cluster, pick: usize) -> &mut Memcached {
    match pick.checked_sub(cluster.primaries.len()) {
        None => &mut cluster.primaries[pick],
        Some(backup) => &mut cluster.backups[backup],
    }
}

fn chaos(shape: &Shape, seconds: u64, seed: u64) {
    let mut rng = Rng::new(seed, 99);
    let mut cluster = Cluster::start(&shape.clone().forwarded());
    fill(&mut cluster.client(), "filler", FILLER, 100);
    let mut mix = Mix::full(seed);
    if soaks() {
        // Nothing runs beside it.
        mix.pace /= 4;
    }
    let load = Load::start(&cluster.proxy.addr(), mix);
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < duration_or(Duration::from_secs(seconds)) {
        load.run_for(Duration::from_millis(100 + rng.next() % 400));
        let fault = choose(&mut rng);
        eprintln!("{:>6.1} s, round {rounds}: {fault:?}", begun.elapsed().as_secs_f64());
        inflict(fault, &mut cluster, &load, &mut rng);
        load.wait_operations(300);
        wait_healed(&cluster);
        load.mark("mirrored");
        rounds += 1;
        if rounds % 5 == 0 {
            load.quiet(|model| {
                wait_healed(&cluster);
                cluster.assert_rings_equal();
                model.check_ring("primary", &cluster.primary_ring());
                model.check_ring("backup", &cluster.backup_ring());
                assert_eq!(count_filled(&mut cluster.client(), "filler", FILLER, 100), FILLER);
            });
            load.verdict().assert_clean_so_far();
        }
    }
    load.wait_operations(500);
    let model = load.stop();
    wait_healed(&cluster);
    cluster.assert_rings_equal();
    model.check_ring("primary", &cluster.primary_ring());
    model.check_ring("backup", &cluster.backup_ring());
    if rng.percent(50) {
        cluster.kill_backups()
    } else {
        cluster.kill_primaries()
    }
    model.check_through(&mut cluster.client());
    assert_eq!(count_filled(&mut cluster.client(), "filler", FILLER, 100), FILLER);
    eprintln!("{rounds} faults");
    model.assert_clean();
    assert!(rounds > 0);
}

#[test]
fn g1_to_g5_hold_under_random_faults_one_at_a_time() {
    chaos(&Shape::new(2, 1), 30, seed("chaos"));
}

#[test]
fn g1_to_g5_hold_with_ketama_and_slow_resyncs() {
    chaos(&Shape::new(2, 2).proxy(&["-k", "--resync-rate", "8000"]), 30, seed("chaos, ketama"));
}
