//! What goes wrong, and when.

use std::time::Duration;

use rand::RngExt;
use tokio::time::sleep;

use super::judge::Call;
use super::net::Lag;
use super::world::World;

/// A fault that nobody has noticed yet leaves the pairs mirrored: so long after its end it was noticed.
const NOTICED: Duration = Duration::from_millis(700);

/// Something that fails, and heals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Killed, and started again after so long.
    Kill,
    /// Stopped, and continued.
    Hang,
    /// Stopped, then killed.
    HangAndKill,
    /// Out of reach; then what was on its way arrives.
    CutOff,
    /// Out of reach; then the connections are reset.
    CutOffAndReset,
    /// Some of its connections break.
    Resets,
    /// Its answers are late.
    Slow,
}

const FAULTS: [Fault; 7] =
    [Fault::Kill, Fault::Hang, Fault::HangAndKill, Fault::CutOff, Fault::CutOffAndReset, Fault::Resets, Fault::Slow];

/// One node at a time, or the proxy; the next failure comes after everything is mirrored again.
pub(super) async fn one_at_a_time(world: &mut World) {
    for _ in 0..world.rng.random_range(1..5) {
        let between = world.rng.random_range(0..150);
        sleep(Duration::from_millis(between)).await;
        if world.rng.random_ratio(1, 5) {
            replace_proxy(world).await;
        } else {
            let node = world.rng.random_range(0..world.topology.node_count());
            // The same node may fail again before it is refilled.
            for _ in 0..if world.rng.random_ratio(1, 3) { world.rng.random_range(2..4) } else { 1 } {
                let fault = FAULTS[world.rng.random_range(0..FAULTS.len())];
                fail(world, node, fault).await;
                let gap = world.rng.random_range(0..900);
                sleep(Duration::from_millis(gap)).await;
            }
        }
        sleep(NOTICED).await;
        world.mirrored("after a failure").await;
    }
}

/// Whatever fails, whenever; at the end all are well.
pub(super) async fn anything(world: &mut World) {
    for _ in 0..world.rng.random_range(2..8) {
        let between = world.rng.random_range(0..600);
        sleep(Duration::from_millis(between)).await;
        if world.rng.random_ratio(1, 5) {
            replace_proxy(world).await;
            continue;
        }
        let node = world.rng.random_range(0..world.topology.node_count());
        match world.rng.random_range(0..7) {
            0 => {
                lost(world);
                world.net.kill(node);
                if world.rng.random() {
                    world.net.start(node);
                }
            }
            1 => {
                lost(world);
                world.net.kill(node);
                world.net.start(node);
            }
            2 => world.net.change(node, "hangs", |host| host.hung = true),
            3 => world.net.change(node, "cut off", |host| host.cut_off = true),
            4 => world.net.reset(node, 2),
            _ => heal(world, node),
        }
    }
    for node in 0..world.topology.node_count() {
        heal(world, node);
        let gap = world.rng.random_range(0..300);
        sleep(Duration::from_millis(gap)).await;
    }
    sleep(NOTICED).await;
    world.mirrored("after all failures").await;
}

/// A memory is gone: each key may be.
fn lost(world: &World) {
    world.history.call(99, None, Call::Flush);
}

fn heal(world: &mut World, node: usize) {
    let up = world.net.lock().hosts[node].up;
    if !up {
        world.net.start(node);
    }
    if world.rng.random_ratio(1, 3) {
        world.net.reset(node, 1);
    }
    world.net.change(node, "well again", |host| {
        host.hung = false;
        host.cut_off = false;
    });
}

async fn replace_proxy(world: &mut World) {
    if world.rng.random_ratio(1, 3) {
        world.stop_proxy().await;
    } else {
        world.kill_proxy().await;
    }
    let gap = if world.rng.random() { 0 } else { world.rng.random_range(0..400) };
    sleep(Duration::from_millis(gap)).await;
    world.start_proxy();
}

async fn fail(world: &mut World, node: usize, fault: Fault) {
    let long = world.rng.random_ratio(1, 4);
    let lasts = Duration::from_millis(world.rng.random_range(0..if long { 2_000 } else { 400 }));
    let net = world.net.clone();
    match fault {
        Fault::Kill => {
            net.kill(node);
            sleep(lasts).await;
            net.start(node);
        }
        Fault::Hang | Fault::HangAndKill => {
            net.change(node, "hangs", |host| host.hung = true);
            sleep(lasts).await;
            if fault == Fault::HangAndKill {
                net.kill(node);
                net.start(node);
            } else {
                net.change(node, "goes on", |host| host.hung = false);
            }
        }
        Fault::CutOff | Fault::CutOffAndReset => {
            net.change(node, "cut off", |host| host.cut_off = true);
            sleep(lasts).await;
            if fault == Fault::CutOffAndReset {
                net.reset(node, 1);
            }
            net.change(node, "in reach again", |host| host.cut_off = false);
        }
        Fault::Resets => {
            let one_in = world.rng.random_range(1..4);
            net.reset(node, one_in);
        }
        Fault::Slow => {
            let before = net.lock().hosts[node].lag;
            let most_ms = world.rng.random_range(5..300);
            let one_in = world.rng.random_range(1..5);
            net.change(node, "slow", |host| host.lag = Lag { one_in, most_ms });
            sleep(lasts).await;
            net.change(node, "fast again", |host| host.lag = before);
        }
    }
}
