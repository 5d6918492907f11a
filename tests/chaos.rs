//! One node at a time is killed, stopped or restarted, at random moments; every answer is judged.
//!
//! The next failure comes only after everything is mirrored again. As a soak:
//! `RESILVER_TEST_SECONDS=3600 cargo test --release --test chaos -- --nocapture`; a seed that failed runs again with
//! `RESILVER_TEST_SEED=…`.

mod support;

use std::time::{Duration, Instant};

use support::cluster::{count_filled, fill};
use support::{Cluster, Load, Memcached, Mix, Rng, Shape, duration_or, seed};

fn chaos(shape: &Shape, seconds: u64, seed: u64) {
    let mut rng = Rng::new(seed, 99);
    let mut cluster = Cluster::start(shape);
    let mut client = cluster.client();
    let filler = 5000;
    fill(&mut client, "filler", filler, 100);
    let load = Load::start(&cluster.proxy.addr(), Mix::full(seed));
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < duration_or(Duration::from_secs(seconds)) {
        load.run_for(Duration::from_millis(100 + rng.next() % 400));
        let (primaries, all) = (cluster.primaries.len(), cluster.primaries.len() + cluster.backups.len());
        let pick = rng.below(all);
        let ring = if pick < primaries { "primary" } else { "backup" };
        let node: &mut Memcached =
            if pick < primaries { &mut cluster.primaries[pick] } else { &mut cluster.backups[pick - primaries] };
        let millis = rng.next() % 800;
        let what = rng.below(4);
        let name = ["kill, later restart", "restart at once", "stop for a while", "kill, restart, kill again"][what];
        load.mark(&format!("{name} ({millis} ms): {ring} {}", node.addr()));
        match what {
            0 => {
                node.kill();
                load.run_for(Duration::from_millis(millis));
                node.restart();
            }
            1 => node.restart(),
            2 => {
                node.pause();
                load.run_for(Duration::from_millis(millis));
                node.resume();
            }
            _ => {
                node.restart();
                load.run_for(Duration::from_millis(millis));
                node.kill();
                load.run_for(Duration::from_millis(millis / 2));
                node.restart();
            }
        }
        load.wait_operations(300);
        // A node that has just restarted may not have been noticed yet; `mirrored` would then be said too early, and a
        // second failure would hit the only full copy. Its filler tells.
        let addr = node.addr();
        let before = cluster.proxy.status();
        eprintln!("round {rounds}: {name} {addr}: {}", before.node(&addr));
        cluster.mirrored();
        wait_filled(&cluster, filler);
        load.mark("mirrored");
        rounds += 1;
    }
    load.wait_operations(500);
    let model = load.stop();
    cluster.mirrored();
    cluster.assert_rings_equal();
    model.check_ring("primary", &cluster.primary_ring());
    model.check_ring("backup", &cluster.backup_ring());
    if rng.percent(50) {
        cluster.kill_backups()
    } else {
        cluster.kill_primaries()
    }
    model.check_through(&mut cluster.client());
    assert_eq!(count_filled(&mut client, "filler", filler, 100), filler);
    eprintln!("{rounds} failures");
    model.assert_clean();
    assert!(rounds > 0);
}

/// Every node holds its share: as many items on each ring as were filled, at least.
fn wait_filled(cluster: &Cluster, filler: usize) {
    for ring in [&cluster.primaries, &cluster.backups] {
        support::wait_until("the ring to hold the filler again", support::DEADLINE, || {
            let items: usize = ring.iter().map(|n| n.stat("curr_items").parse::<usize>().expect("a number")).sum();
            items >= filler && cluster.proxy.status().mirrored()
        });
    }
}

#[test]
fn g1_to_g5_hold_under_random_failures_of_one_node_at_a_time() {
    chaos(&Shape::new(2, 1), 20, seed("chaos"));
}

#[test]
fn g1_to_g5_hold_with_ketama_and_slow_resyncs() {
    chaos(&Shape::new(2, 2).proxy(&["-k", "--resync-rate", "8000"]), 15, seed("chaos, ketama"));
}
