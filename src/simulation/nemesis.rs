//! What goes wrong, and when.

mod faults;
mod overload;

use std::cell::Cell;
use std::time::Duration;

use rand::RngExt;
use tokio::time::sleep;

use crate::ids::{NodeId, Place};

use super::fleet_nemesis;
use super::judge::Call;
use super::net::{Lag, Whither};
use super::node::Refuses;
use super::profile::{CutOff, Profile};
use super::world::World;

use faults::{FAULTS, Fault, fail, heal, heal_all, lost, pause, replace_proxy};
use overload::overload;

/// A fault that was not noticed yet leaves the pairs mirrored: this long after its end it was
/// noticed.
const NOTICED: Duration = Duration::from_millis(700);

/// So long after its start a proxy has looked at every node, and waited for what a dead one sent.
const LOOKED: Duration = Duration::from_millis(800);

/// So long after its start a proxy has given its pairs their first states.
const STARTED: Duration = Duration::from_millis(350);

/// Brings about what the profile says, while clients work; `stop` ends them.
pub(super) async fn play(world: &mut World, profile: Profile, stop: &Cell<bool>) {
    match profile {
        Profile::Single => one_at_a_time(world).await,
        Profile::Anything => anything(world).await,
        Profile::Restarts => restarts(world).await,
        Profile::Stranger => stranger(world).await,
        Profile::Evictions => {
            let hot = world.hot_keys();
            evictions(world, &hot, stop).await;
        }
        Profile::HalfFilled => half_filled(world, stop).await,
        Profile::BothDown => both_down(world).await,
        Profile::Overload => overload(world).await,
        Profile::Witness => witness(world).await,
        Profile::TwoLeaders => two_leaders(world, stop).await,
        Profile::Refusals => refusals(world, stop).await,
        Profile::Adoption => adoption(world).await,
        Profile::Names => names(world).await,
        Profile::Expiry => expiry(world).await,
        Profile::Isolated => isolated(world).await,
        Profile::Meta => one_at_a_time(world).await,
        Profile::MetaAnything => match world.rng.random_range(0..3) {
            0 => anything(world).await,
            1 if world.topology.node_count() == 2 => both_down(world).await,
            _ => restarts(world).await,
        },
        Profile::FleetKills
        | Profile::FleetHosts
        | Profile::FleetPauses
        | Profile::FleetCuts
        | Profile::FleetRegister
        | Profile::FleetLate
        | Profile::FleetFrozen
        | Profile::Doors
        | Profile::DoorsCut => fleet_nemesis::play(world, profile).await,
    }
}

/// One node at a time, or the proxy; the next failure comes after everything is mirrored again.
async fn one_at_a_time(world: &mut World) {
    for _ in 0..world.rng.random_range(1..5) {
        pause(world, 0..150).await;
        if world.rng.random_ratio(1, 4) {
            replace_proxy(world).await;
            sleep(STARTED).await;
            world.mirrored("after a new proxy").await;
            continue;
        }
        let node = world.rng.random_range(0..world.topology.node_count());
        // The same node may fail again before it is refilled.
        for _ in 0..if world.rng.random_ratio(1, 3) { world.rng.random_range(2..4) } else { 1 } {
            let fault = FAULTS[world.rng.random_range(0..FAULTS.len())];
            fail(world, node, fault).await;
            pause(world, 0..900).await;
        }
        sleep(NOTICED).await;
        world.mirrored("after a failure").await;
    }
}

/// One node at a time, again and again, and now and then the proxy: leadership changes as often as
/// possible. Most faults are hangs, because they leave the items where they were.
async fn expiry(world: &mut World) {
    const FAULTS: [Fault; 6] =
        [Fault::Kill, Fault::Resets, Fault::Hang, Fault::Hang, Fault::CutOff, Fault::CutOffAndReset];
    // Their clocks are known by then.
    pause(world, 4_000..9_000).await;
    for _ in 0..world.rng.random_range(4..9) {
        pause(world, 0..1_500).await;
        if world.rng.random_ratio(1, 8) {
            replace_proxy(world).await;
            sleep(STARTED).await;
        } else {
            let node = world.rng.random_range(0..world.topology.node_count());
            let fault = FAULTS[world.rng.random_range(0..FAULTS.len())];
            fail(world, node, fault).await;
        }
        sleep(NOTICED).await;
        world.mirrored("after a failure").await;
    }
}

/// Names come to lead to empty hosts, to earlier hosts with their old items, and to the same host
/// by another address, also while it hangs; the hosts that they led to before go on, and execute
/// what was sent to them.
async fn names(world: &mut World) {
    let mut earlier: Vec<Vec<usize>> = vec![Vec::new(); world.topology.node_count()];
    for _ in 0..world.rng.random_range(1..4) {
        pause(world, 0..150).await;
        let node = world.rng.random_range(0..world.topology.node_count());
        match world.rng.random_range(0..6) {
            0 => world.net.change(node, "hangs", |host| host.hung = true),
            1 => world.net.change(node, "cut off", |host| host.cut_off = true),
            2 => world.net.reset(node, 2),
            _ => {}
        }
        pause(world, 0..500).await;
        for _ in 0..world.rng.random_range(1..3) {
            let host = world.net.leads(node);
            let back: Vec<usize> = earlier[node].iter().copied().filter(|e| *e != host).collect();
            let whither = match world.rng.random_range(0..5) {
                0 => Whither::SameHost,
                1 => {
                    world.net.wake_all();
                    pause(world, 0..500).await;
                    world.net.block_ways(node);
                    pause(world, 0..150).await;
                    world.net.lead(node, Whither::SameHost);
                    // What was sent by the old way arrives when the node is reached by the new one,
                    // as what a dead proxy has sent.
                    let by = world.net.address(node);
                    world.followed(node, Some(by)).await;
                    pause(world, 0..100).await;
                    world.net.wake_all();
                    continue;
                }
                2 if !back.is_empty() => Whither::Back(back[world.rng.random_range(0..back.len())]),
                _ => Whither::EmptyHost,
            };
            earlier[node].push(host);
            world.net.lead(node, whither);
            pause(world, 0..1_200).await;
        }
        world.net.wake_all();
        if world.rng.random_ratio(1, 4) {
            replace_proxy(world).await;
            sleep(STARTED).await;
        }
        world.followed(node, None).await;
        sleep(NOTICED).await;
        world.mirrored("after a name has moved").await;
    }
}

/// Whatever node fails, whenever; at the end all are well.
async fn anything(world: &mut World) {
    for _ in 0..world.rng.random_range(2..8) {
        pause(world, 0..600).await;
        let node = world.rng.random_range(0..world.topology.node_count());
        match world.rng.random_range(0..7) {
            0 => {
                lost(world);
                world.net.kill(node);
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
    heal_all(world).await;
}

/// Nodes are out of reach one after the other or together, and proxies die. Which of two copies is
/// newer may be recorded on no node in reach, so a proxy begins only when all nodes are well; they
/// may break connections meanwhile.
async fn restarts(world: &mut World) {
    for _ in 0..world.rng.random_range(1..4) {
        for _ in 0..world.rng.random_range(0..4) {
            pause(world, 0..500).await;
            let node = world.rng.random_range(0..world.topology.node_count());
            match world.rng.random_range(0..4) {
                0 => world.net.change(node, "hangs", |host| host.hung = true),
                1 => world.net.change(node, "cut off", |host| host.cut_off = true),
                2 => world.net.reset(node, 2),
                _ => heal(world, node),
            }
        }
        pause(world, 0..300).await;
        if world.rng.random_ratio(1, 4) {
            world.stop_proxy().await;
        } else {
            world.kill_proxy().await;
        }
        pause(world, 0..50).await;
        (0..world.topology.node_count()).for_each(|node| heal(world, node));
        world.start_proxy();
        if world.rng.random() {
            // Not in the very first look: to a proxy that knows nothing, a node that breaks the
            // connection then is out of reach.
            pause(world, 100..300).await;
            let node = world.rng.random_range(0..world.topology.node_count());
            world.net.reset(node, 1);
        }
        sleep(LOOKED).await;
    }
    heal_all(world).await;
}

/// Somebody flushes a node. The first reads may miss; then it is noticed, by the misses alone.
async fn stranger(world: &mut World) {
    // A leader: what only the follower has lost is read by no client.
    let node = 0;
    world.net.change(node, "flushed by a stranger", |host| host.node.forget(None));
    for round in 0..60 {
        world.operator.read_all().await;
        sleep(Duration::from_millis(5)).await;
        if round == 30 {
            world.history.forget_reads();
        }
    }
    world.operator.read_all().await;
}

/// The backups lose items that clients are busy with.
async fn evictions(world: &mut World, hot: &[String], stop: &Cell<bool>) {
    for _ in 0..world.rng.random_range(1..6) {
        pause(world, 0..40).await;
        let key = hot[world.rng.random_range(0..hot.len())].clone();
        let pair = world.topology.pair_of(key.as_bytes());
        let Some(backup) = world.topology.node_at(pair, Place::Backup) else { continue };
        world.net.change(backup.index(), &format!("evicts {key}"), |host| host.node.forget(Some(key.as_bytes())));
    }
    pause(world, 100..200).await;
    stop.set(true);
    // A repair that finds the item changed under it begins again, but not for ever: then the two
    // copies stay different for now.
    let stats = world.operator.ask("stats\r\n").await.unwrap_or_default();
    if let Some(failed) = stats.iter().find(|line| line.contains("repair_failed") && !line.ends_with(" 0")) {
        world.history.violation(format!("a repair was disturbed until it was given up: {failed}"));
    }
}

/// The backup returns empty, and while it is filled the primary does so too.
async fn half_filled(world: &mut World, stop: &Cell<bool>) {
    world.net.kill(1);
    world.net.start(1);
    for node in 0..2 {
        world.net.change(node, "slow", |host| host.lag = Lag { one_in: 1, most_ms: 4 });
    }
    for _ in 0..1_000 {
        let status = world.operator.ask("resync status\r\n").await.unwrap_or_default();
        if status.iter().any(|line| line.ends_with(":state recovering")) {
            break;
        }
        sleep(Duration::from_millis(2)).await;
    }
    // Its gate opens, keys are listed and copied: some moment of that.
    pause(world, 30..130).await;
    lost(world);
    world.net.kill(0);
    world.net.start(0);
    pause(world, 50..150).await;
    stop.set(true);
    heal_all(world).await;
}

/// One node misses writes, perhaps once more while it is filled; then the other one dies.
async fn both_down(world: &mut World) {
    let follower = world.rng.random_range(0..2);
    let leader = 1 - follower;
    for _ in 0..world.rng.random_range(1..3) {
        if world.rng.random() {
            world.net.change(follower, "hangs", |host| host.hung = true);
        } else {
            world.net.change(follower, "cut off", |host| host.cut_off = true);
        }
        pause(world, 100..700).await;
        if world.rng.random_ratio(1, 3) {
            heal(world, follower);
            pause(world, 0..150).await;
        }
    }
    let back_early = world.rng.random_ratio(1, 4);
    if back_early {
        // It may lead, empty, before the other one is there.
        lost(world);
    } else {
        // Only keys that were written meanwhile can be missed, and so lost.
        for key in world.hot_keys() {
            world.history.call(99, Some(&key), Call::Delete);
        }
    }
    world.net.kill(leader);
    if back_early {
        pause(world, 0..1_500).await;
        world.net.start(leader);
    }
    pause(world, 0..2_000).await;
    heal(world, follower);
    if world.rng.random_ratio(1, 4) {
        pause(world, 0..300).await;
        world.net.reset(follower, 2);
    }
    // Beyond the grace, and until the follower leads.
    pause(world, 2_000..3_500).await;
    heal_all(world).await;
}

/// A backup leads alone, is restarted empty, and the proxy dies before it learns that. The primary,
/// which missed writes, must not lead.
async fn witness(world: &mut World) {
    let (primary, backup) = (0, world.topology.node_count() - 1);
    world.net.change(primary, "cut off", |host| host.cut_off = true);
    pause(world, 400..900).await;
    world.kill_proxy().await;
    lost(world);
    world.net.kill(backup);
    world.net.start(backup);
    (0..world.topology.node_count()).for_each(|node| heal(world, node));
    world.start_proxy();
    sleep(LOOKED).await;
    heal_all(world).await;
}

/// The primary leads alone; then, under another proxy that cannot know, the backup. What that one
/// acknowledged is newer.
async fn two_leaders(world: &mut World, stop: &Cell<bool>) {
    // So that the primary has seen more changes than the backup will.
    for _ in 0..world.rng.random_range(1..4) {
        world.net.kill(1);
        world.net.start(1);
        sleep(NOTICED).await;
        world.mirrored("while the backup fails").await;
    }
    stop.set(true);
    world.net.change(1, "cut off", |host| host.cut_off = true);
    pause(world, 1_000..1_500).await;
    world.kill_proxy().await;
    world.net.change(0, "cut off", |host| host.cut_off = true);
    heal(world, 1);
    // What only the primary holds is lost for now: the history begins anew.
    world.history.forget();
    world.operator.keep_to(vec!["late0".into(), "late1".into(), "late2".into()]);
    world.start_proxy();
    sleep(LOOKED).await;
    world.operator.fill().await;
    world.kill_proxy().await;
    heal(world, 0);
    world.start_proxy();
    sleep(LOOKED).await;
    world.operator.read_all().await;
    heal_all(world).await;
}

/// The proxy and one node are cut off from all others, which another proxy takes over, with the
/// node out of its reach; no memory is lost.
async fn isolated(world: &mut World) {
    let nodes = world.topology.node_count();
    for _ in 0..world.rng.random_range(1..4) {
        pause(world, 0..150).await;
        // The first primary or the last backup: they are a pair.
        let near = if world.rng.random() { 0 } else { nodes - 1 };
        let far: Vec<usize> = (0..nodes).filter(|node| *node != near).collect();
        for &node in &far {
            world.net.change(node, "cut off", |host| host.cut_off = true);
        }
        pause(world, 50..900).await;
        if world.rng.random_ratio(1, 3) {
            // In the midst of a refill, or of a hand-back.
            far.iter().for_each(|&node| heal(world, node));
            pause(world, 0..900).await;
        }
        world.kill_proxy().await;
        world.net.change(near, "cut off", |host| host.cut_off = true);
        far.iter().for_each(|&node| heal(world, node));
        pause(world, 0..300).await;
        world.start_proxy();
        sleep(LOOKED).await;
        world.operator.read_all().await;
        pause(world, 0..400).await;
        heal(world, near);
        sleep(NOTICED).await;
        world.mirrored("after a cut").await;
    }
}

/// Nodes have no memory for some time: as a follower, or when they come back.
async fn refusals(world: &mut World, stop: &Cell<bool>) {
    for _ in 0..world.rng.random_range(1..4) {
        pause(world, 0..200).await;
        let node = world.rng.random_range(0..world.topology.node_count());
        let leads = world.topology.place(NodeId(node as u16)) == Place::Primary;
        // One that refuses what clients write must not lead.
        let refuses = if leads || world.rng.random() { Refuses::Cold } else { Refuses::All };
        if leads || world.rng.random() {
            world.net.kill(node);
            world.net.start(node);
        }
        world.net.change(node, &format!("refuses {refuses:?}"), |host| host.node.refuse(refuses));
        pause(world, 300..3_000).await;
        if world.rng.random_ratio(1, 8) {
            // Whatever is said now must be true.
            stop.set(true);
            sleep(Duration::from_millis(1_000)).await;
            if world.says_mirrored().await {
                world.compare_copies();
            }
        }
        world.net.change(node, "takes everything again", |host| host.node.refuse(Refuses::Nothing));
        sleep(NOTICED).await;
        world.mirrored("after a node took everything again").await;
    }
}

/// The first start finds full nodes, and is cut off.
async fn adoption(world: &mut World) {
    let nodes = world.topology.node_count();
    let node = world.rng.random_range(0..nodes);
    if world.cut_off != Some(CutOff::Proxies) {
        // At its very first start a proxy does not wait for a node that does not answer.
        sleep(STARTED).await;
    }
    pause(world, 0..600).await;
    match world.cut_off {
        None => {}
        Some(CutOff::Proxies) => {
            for _ in 0..world.rng.random_range(1..6) {
                replace_proxy(world).await;
                pause(world, 0..600).await;
            }
        }
        Some(CutOff::Node) => {
            let faults = FAULTS.into_iter().filter(|fault| !matches!(fault, Fault::Kill | Fault::HangAndKill));
            let faults: Vec<Fault> = faults.collect();
            let fault = faults[world.rng.random_range(0..faults.len())];
            fail(world, node, fault).await;
        }
        Some(CutOff::Death) => {
            die(world, node);
            let fault = if world.rng.random() { Fault::Kill } else { Fault::HangAndKill };
            fail(world, node, fault).await;
        }
        Some(cut_off @ (CutOff::Both | CutOff::BothDeath)) => {
            world.kill_proxy().await;
            if cut_off == CutOff::Both {
                world.net.change(node, "hangs", |host| host.hung = true);
            } else {
                die(world, node);
                world.forget_orphans();
                world.net.kill(node);
                world.net.start(node);
            }
            world.start_proxy();
            pause(world, 0..1_500).await;
            heal(world, node);
        }
        Some(CutOff::Anything) => {
            world.forget_orphans();
            for _ in 0..world.rng.random_range(1..5) {
                let node = world.rng.random_range(0..nodes);
                match world.rng.random_range(0..5) {
                    0 => world.net.change(node, "hangs", |host| host.hung = true),
                    1 => world.net.change(node, "cut off", |host| host.cut_off = true),
                    2 => world.net.reset(node, 1),
                    3 => heal(world, node),
                    _ => {
                        (0..nodes).for_each(|node| heal(world, node));
                        replace_proxy(world).await;
                        sleep(LOOKED).await;
                    }
                }
                pause(world, 0..400).await;
            }
        }
    }
    sleep(NOTICED).await;
    heal_all(world).await;
}

/// A memory is about to be lost, with everything of which it holds the only copy.
fn die(world: &mut World, node: usize) {
    lost(world);
    world.expect_the_backups_word();
    world.forget_orphans_on(node);
}
