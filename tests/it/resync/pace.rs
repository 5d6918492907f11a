//! How hard a resync works: by its rate, by what clients feel, and beside hot keys.

use std::time::{Duration, Instant};

use crate::support::cluster::{count_filled, fill};
use crate::support::{Cluster, Load, Mix, Shape, seed};

#[test]
fn g6_the_rate_setting_throttles() {
    const RATE: u32 = 1000;
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync-rate", &RATE.to_string()]));
    fill(&mut cluster.client(), "k", 4000, 50);
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    let begun = Instant::now(); // before the node is back: later readings only ever look slower
    cluster.primaries[0].restart();
    let addr = cluster.primaries[0].addr();
    cluster.proxy.wait_status("the throttled resync to end", crate::support::DEADLINE, |status| {
        let copied = status.node_number(&addr, "items_copied");
        let allowed = f64::from(RATE) * (begun.elapsed().as_secs_f64() + 1.0);
        assert!(copied as f64 <= allowed, "{copied} items after {:?}", begun.elapsed());
        status.mirrored()
    });
    assert!(begun.elapsed() > Duration::from_millis(2900), "4000 items at {RATE}/s in {:?}", begun.elapsed());
    assert_eq!(cluster.assert_rings_equal().len(), 4000);
}

/// Clients without pause, all of them slower for the refill: it gives way to them and ends
/// nevertheless.
#[test]
fn g6_a_resync_yields_to_clients_and_ends() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    fill(&mut cluster.client(), "bulk", 50_000, 100);
    let mix = Mix { pace: Duration::from_millis(2), ..Mix::full(seed("yielding")) };
    let load = Load::start(&cluster.proxy.addr(), mix);
    load.wait_operations(5000);
    load.mark("kill the primary");
    cluster.primaries[0].kill();
    cluster.wait_lost(&cluster.primaries[0].addr());
    cluster.primaries[0].restart();
    cluster.proxy.wait_status("the yielding resync to end", crate::support::DEADLINE, |status| {
        let (word, percent) = status.yielding();
        assert!(["idle", "listening", "full", "yielding"].contains(&word), "{word}");
        assert!(percent.parse::<u32>().unwrap() <= 100, "{percent}");
        status.mirrored()
    });
    load.mark("mirrored");
    load.wait_operations(500);
    let model = load.stop();
    cluster.assert_rings_equal();
    cluster.kill_backups();
    model.check_through(&mut cluster.client());
    assert_eq!(count_filled(&mut cluster.client(), "bulk", 50_000, 100), 50_000);
    model.assert_clean();
}

/// Keys written without pause while they are being copied: it ends nevertheless.
#[test]
fn g6_hot_keys_do_not_keep_a_resync_from_ending() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    fill(&mut cluster.client(), "k", 3000, 50);
    let mix = Mix {
        keys_per_writer: 1,
        counters: 1,
        cas_cells: 1,
        locks: 1,
        pace: Duration::ZERO,
        ..Mix::small(seed("hot keys"))
    };
    let load = Load::start(&cluster.proxy.addr(), mix);
    load.wait_operations(2000);
    for _ in 0..3 {
        load.mark("kill the primary");
        cluster.primaries[0].kill();
        cluster.wait_lost(&cluster.primaries[0].addr());
        cluster.primaries[0].restart();
        load.mark("it is back, empty");
        cluster.mirrored();
        load.mark("mirrored, under the flood");
    }
    load.wait_operations(1000);
    let model = load.stop();
    let ring = cluster.assert_rings_equal();
    model.check_ring("primary", &ring);
    cluster.kill_backups();
    model.check_through(&mut cluster.client());
    assert_eq!(count_filled(&mut cluster.client(), "k", 3000, 50), 3000);
    model.assert_clean();
}
