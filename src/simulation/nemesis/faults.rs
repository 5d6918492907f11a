//! What fails and heals, step by step.

use std::ops::Range;
use std::time::Duration;

use rand::RngExt;
use tokio::time::sleep;

use crate::simulation::judge::Call;
use crate::simulation::net::Lag;
use crate::simulation::world::World;

use super::NOTICED;

/// Something that fails, and heals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
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

pub(super) const FAULTS: [Fault; 7] =
    [Fault::Kill, Fault::Hang, Fault::HangAndKill, Fault::CutOff, Fault::CutOffAndReset, Fault::Resets, Fault::Slow];

pub(super) async fn fail(world: &mut World, node: usize, fault: Fault) {
    let long = world.rng.random_ratio(1, 4);
    let lasts = Duration::from_millis(world.rng.random_range(0..if long { 2_000 } else { 400 }));
    let net = world.net.clone();
    match fault {
        Fault::Kill => {
            net.kill(node);
            if world.rng.random() {
                sleep(lasts).await;
            }
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
            let before = net.lock().host(node).lag;
            let most_ms = world.rng.random_range(5..300);
            let one_in = world.rng.random_range(1..5);
            net.change(node, "slow", |host| host.lag = Lag { one_in, most_ms });
            sleep(lasts).await;
            net.change(node, "fast again", |host| host.lag = before);
        }
    }
}

pub(super) async fn replace_proxy(world: &mut World) {
    if world.rng.random_ratio(1, 3) {
        world.stop_proxy().await;
    } else {
        world.kill_proxy().await;
    }
    let gap = if world.rng.random() { 0 } else { world.rng.random_range(0..400) };
    sleep(Duration::from_millis(gap)).await;
    world.start_proxy();
}

pub(super) async fn heal_all(world: &mut World) {
    for node in 0..world.topology.node_count() {
        heal(world, node);
        pause(world, 0..300).await;
    }
    sleep(NOTICED).await;
    world.mirrored("after all failures").await;
}

pub(super) async fn pause(world: &mut World, ms: Range<u64>) {
    let ms = world.rng.random_range(ms);
    sleep(Duration::from_millis(ms)).await;
}

/// A memory is gone: each key may be.
pub(super) fn lost(world: &World) {
    world.history.call(99, None, Call::Flush);
}

pub(super) fn heal(world: &mut World, node: usize) {
    let up = world.net.lock().host(node).up;
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
