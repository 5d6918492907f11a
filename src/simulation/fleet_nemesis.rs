//! What goes wrong where there are several proxies, and when. One failure at a time: of a proxy, a
//! node, a host with one of each, a network, or where they agree.

use std::ops::Range;
use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep};

use super::fleet::Fleet;
use super::net::Way;
use super::profile::Profile;
use super::register::{Course, Faults, Lost};
use super::trace::note;
use super::world::World;
use crate::ids::{NodeId, Place};

/// So long after its end a fault has been noticed, also by a proxy that takes another's place:
/// until then the pairs may still be called mirrored.
const NOTICED: Duration = Duration::from_millis(800);
/// Somebody is active after so long.
const FOUND: Duration = Duration::from_secs(20);

/// Clients come back to a proxy that serves within that.
const CLIENTS: Duration = Duration::from_millis(30);

pub(super) async fn play(world: &mut World, profile: Profile) {
    for _ in 0..world.rng.random_range(1..4) {
        pause(world, 0..400).await;
        let active = active(world).await;
        match profile {
            Profile::FleetKills => kills(world, active).await,
            Profile::FleetHosts => host(world, active).await,
            Profile::FleetPauses => pauses(world, active).await,
            Profile::FleetCuts => cuts(world, active).await,
            Profile::FleetLate => late(world, active).await,
            Profile::FleetFrozen => frozen(world, active).await,
            Profile::Doors => doors(world, active).await,
            Profile::DoorsCut => doors_cut(world, active).await,
            _ => register(world, active).await,
        }
        fleet(world).heal();
        sleep(NOTICED).await;
        world.mirrored("after a failure").await;
    }
}

fn fleet(world: &World) -> &Fleet {
    world.fleet.as_ref().expect("there are several proxies")
}

async fn pause(world: &mut World, ms: Range<u64>) {
    let ms = world.rng.random_range(ms);
    sleep(Duration::from_millis(ms)).await;
}

/// The machine of the active proxy.
async fn active(world: &mut World) -> usize {
    let deadline = Instant::now() + FOUND;
    loop {
        if let Some(active) = fleet(world).active() {
            return active;
        }
        if Instant::now() > deadline {
            world.history.violation(format!("no proxy is active within {FOUND:?}"));
            return 0;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// The active one, or another one.
fn one(world: &mut World, active: usize) -> usize {
    let machines = fleet(world).machines().len();
    if world.rng.random_ratio(3, 4) { active } else { world.rng.random_range(0..machines) }
}

/// A node of which the memory is gone, as one failure of a host or beside another one's end.
fn restart(world: &mut World, node: usize) {
    world.net.kill(node);
    world.net.start(node);
}

async fn kills(world: &mut World, active: usize) {
    let machine = one(world, active);
    let node = world.rng.random_range(0..world.topology.node_count());
    match world.rng.random_range(0..5) {
        0 => fleet(world).stop(machine),
        1 => {
            // A host with both.
            fleet(world).down(machine, true);
            fleet(world).kill(machine);
            world.net.kill(node);
            pause(world, 0..3_000).await;
            world.net.start(node);
        }
        2 => {
            // In the midst of a refill.
            restart(world, node);
            pause(world, 0..900).await;
            fleet(world).kill(machine);
        }
        3 => {
            fleet(world).stop(machine);
            pause(world, 0..150).await;
            fleet(world).kill(machine);
        }
        _ => fleet(world).kill(machine),
    }
    pause(world, 0..2_500).await;
}

/// What is promised of a crash holds, too, where a server dies with the proxy, and nobody answers
/// for it.
async fn host(world: &mut World, active: usize) {
    let node = world.rng.random_range(0..world.topology.node_count());
    fleet(world).down(active, true);
    fleet(world).kill(active);
    world.net.change(node, "its host is lost", |host| host.cut_off = true);
    let begun = Instant::now();
    let promised = fleet(world).longest_lease().mul_f64(1.3) + Duration::from_millis(300);
    // What a client had sent to the proxy is not answered any more.
    while world.history.answered() <= begun + Duration::from_millis(20) {
        if begun.elapsed() > promised + CLIENTS {
            world.history.violation(format!("nobody has been served for {promised:?}"));
            break;
        }
        fleet(world).hurry();
        sleep(Duration::from_millis(5)).await;
    }
    note(|| format!("world  served again after {:?} of {promised:?}", begun.elapsed()));
    pause(world, 0..1_500).await;
    world.net.kill(node);
    world.net.change(node, "its host is back", |host| host.cut_off = false);
    world.net.start(node);
}

async fn pauses(world: &mut World, active: usize) {
    let machine = one(world, active);
    let node = world.rng.random_range(0..world.topology.node_count());
    match world.rng.random_range(0..4) {
        // In the midst of a refill, or of what comes before it.
        0 | 1 => {
            restart(world, node);
            pause(world, 0..900).await;
        }
        2 => {
            world.net.change(node, "hangs", |host| host.hung = true);
            pause(world, 0..600).await;
            world.net.change(node, "goes on", |host| host.hung = false);
            pause(world, 0..600).await;
        }
        _ => {}
    }
    if world.rng.random_ratio(1, 5) {
        fleet(world).hang(machine, true);
        pause(world, 100..3_000).await;
        fleet(world).hang(machine, false);
        return;
    }
    let unsent = world.rng.random();
    if unsent {
        fleet(world).hold(machine, true);
        pause(world, 0..4).await;
    }
    fleet(world).pause(machine, unsent);
    let long = world.rng.random_ratio(2, 3);
    pause(world, if long { 800..4_000 } else { 10..800 }).await;
    if world.rng.random_ratio(1, 4) {
        fleet(world).kill(machine);
    }
    fleet(world).go_on(machine);
    pause(world, 0..30).await;
    fleet(world).hold(machine, false);
    pause(world, 0..600).await;
}

async fn cuts(world: &mut World, active: usize) {
    let (nodes, machines) = (world.topology.node_count(), fleet(world).machines());
    let machine = one(world, active);
    let node = world.rng.random_range(0..nodes);
    let net = world.net.clone();
    let ways: &[Way] = match world.rng.random_range(0..4) {
        0 => &[Way::There],
        1 => &[Way::Back],
        _ => &[Way::There, Way::Back],
    };
    let cut = |machine: usize, node: usize| ways.iter().for_each(|way| net.close(machine, node, *way, true));
    match world.rng.random_range(0..6) {
        // It and a node are on one side, all else on the other.
        0..3 => {
            (0..nodes).filter(|other| *other != node).for_each(|other| cut(machine, other));
            machines.clone().filter(|other| *other != machine).for_each(|other| cut(other, node));
            let later = world.rng.random_ratio(1, 3);
            if later {
                pause(world, 0..700).await;
            }
            fleet(world).register().cut_off(machine, true);
        }
        3 => fleet(world).register().cut_off(machine, true),
        4 => cut(machine, node),
        // It alone.
        _ => {
            (0..nodes).for_each(|node| cut(machine, node));
            if world.rng.random() {
                fleet(world).register().cut_off(machine, true);
            }
        }
    }
    pause(world, 50..4_000).await;
    if world.rng.random_ratio(1, 4) {
        // The networks are whole again at different moments.
        fleet(world).register().cut_off(machine, false);
        pause(world, 0..700).await;
    }
}

async fn register(world: &mut World, active: usize) {
    let machine = one(world, active);
    let faults = Faults {
        lost_one_in: [0, 2, 4, 10][world.rng.random_range(0..4)],
        late_one_in: [0, 1, 3][world.rng.random_range(0..3)],
        late_ms: world.rng.random_range(20..400),
    };
    let longest = fleet(world).longest_lease();
    match world.rng.random_range(0..6) {
        0 => away(world).await,
        1 => {
            fleet(world).register().empty();
            pause(world, 0..3_000).await;
        }
        2 => restored(world, active, longest).await,
        _ => {
            fleet(world).register().answer_with(faults);
            pause(world, 0..3_000).await;
            match world.rng.random_range(0..4) {
                0 => fleet(world).kill(machine),
                1 => fleet(world).register().cut_off(machine, true),
                2 => fleet(world).pause(machine, false),
                _ => {}
            }
            pause(world, 0..3_000).await;
            fleet(world).go_on(machine);
        }
    }
}

/// A fault as in the other profiles, or one proxy after the other hands over.
async fn doors(world: &mut World, active: usize) {
    match world.rng.random_range(0..3) {
        0 => {
            for machine in fleet(world).machines() {
                fleet(world).stop(machine);
                pause(world, 0..1_500).await;
            }
        }
        1 => pauses(world, active).await,
        _ => kills(world, active).await,
    }
}

async fn doors_cut(world: &mut World, active: usize) {
    let machine = one(world, active);
    let (there, back) = [(true, true), (true, false), (false, true)][world.rng.random_range(0..3)];
    if world.rng.random_ratio(1, 12) {
        // From servers, for so long that it hands over. (Seldom: such a world lasts long, and is
        // hard to judge.)
        return cut_off_from_servers(world, active).await;
    }
    match world.rng.random_range(0..5) {
        // For so long, perhaps, that connections are given up.
        0 => {
            fleet(world).part(machine, there, back, true);
            pause(world, 100..3_000).await;
            fleet(world).wires().iter().for_each(|wires| wires.give_up());
        }
        // Later, again and again.
        1 => {
            for _ in 0..world.rng.random_range(1..6) {
                fleet(world).part(machine, there, back, true);
                pause(world, 0..900).await;
                fleet(world).part(machine, there, back, false);
                pause(world, 0..300).await;
            }
        }
        2 => {
            let late_ms = world.rng.random_range(20..600);
            fleet(world).wires().iter().for_each(|wires| wires.are_late(late_ms));
        }
        // With a network to nodes or to where they agree.
        3 => {
            fleet(world).part(machine, there, back, true);
            cuts(world, active).await;
        }
        // Who is cut off is replaced, or asked to hand over.
        _ => {
            fleet(world).part(machine, there, back, true);
            pause(world, 0..600).await;
            if world.rng.random_ratio(1, 3) {
                fleet(world).wires().iter().for_each(|wires| wires.give_up());
            }
            match world.rng.random_range(0..4) {
                0 => fleet(world).stop(active),
                1 => fleet(world).kill(active),
                2 => {
                    fleet(world).pause(active, false);
                    pause(world, 200..3_000).await;
                    fleet(world).go_on(active);
                }
                _ => fleet(world).register().cut_off(active, true),
            }
        }
    }
    pause(world, 50..3_000).await;
}

/// An active proxy that is no newcomer from half of all servers, or from a ring.
async fn cut_off_from_servers(world: &mut World, active: usize) {
    let lease = fleet(world).longest_lease();
    sleep(lease * 10).await;
    let nodes = world.topology.node_count();
    let backups: bool = world.rng.random();
    let ring = |world: &World, node: usize| (world.topology.place(NodeId(node as u16)) == Place::Backup) == backups;
    for node in 0..nodes {
        if ring(world, node) {
            [Way::There, Way::Back].into_iter().for_each(|way| world.net.close(active, node, way, true));
        }
    }
    sleep(lease * 6).await;
}

/// Schedules that chance seldom brings about: each would go wrong without one of the rules.
async fn late(world: &mut World, active: usize) {
    let longest = fleet(world).longest_lease();
    let ms = longest.as_millis() as u64;
    match world.rng.random_range(0..4) {
        // The last heartbeat that is made is answered late.
        0 | 1 => {
            fleet(world).register().take(Course { answers_ms: 0..ms / 6, ..Course::default() });
            pause(world, 300..1_000).await;
            fleet(world).register().lose(active, Lost::All);
        }
        // None is made any more, and what stands there is read.
        2 => fleet(world).register().lose(active, Lost::Swaps),
        // A claim is made so late that its proxy asks for it again, after a survey that takes all
        // its time (the one before it does not: polls would be too far apart), and hears of that
        // one only when the first one is worth nothing any more. Who takes it for the second one
        // acts until another one does, whom no heartbeat stops.
        _ => {
            let node = world.rng.random_range(0..world.topology.node_count());
            fleet(world).kill(active);
            let course = Course { swaps_ms: ms / 6..ms / 3, deafens_ms: ms * 3 / 4..ms, ..Course::default() };
            fleet(world).register().take(course);
            let deadline = Instant::now() + longest * 4;
            while !fleet(world).register().was_asked() && Instant::now() < deadline {
                sleep(Duration::from_millis(1)).await;
            }
            world.net.change(node, "hangs", |host| host.hung = true);
            sleep(longest / 2).await;
            world.net.change(node, "goes on", |host| host.hung = false);
        }
    }
    sleep(longest * 2).await;
    pause(world, 0..1_000).await;
}

async fn frozen(world: &mut World, active: usize) {
    if world.rng.random() {
        let node = world.rng.random_range(0..world.topology.node_count());
        restart(world, node);
        pause(world, 0..900).await;
    }
    let frozen = fleet(world).process_on(active);
    fleet(world).freeze(active);
    // The proxy that takes its place may not reach the register for long.
    sleep(fleet(world).longest_lease()).await;
    pause(world, 1_500..4_000).await;
    if world.rng.random_ratio(3, 4) {
        fleet(world).register().cut_off(active, true);
    }
    fleet(world).thaw(active);
    sleep(fleet(world).longest_lease()).await;
    if fleet(world).process_on(active) == frozen {
        // Nobody has taken its place; no client is let in to it any more.
        fleet(world).kill(active);
    }
}

/// It becomes what it was before others were active, or while nobody was. What is under way to it
/// is not made by what is restored.
async fn restored(world: &mut World, active: usize, longest: Duration) {
    fleet(world).register().back_up();
    let down = if world.rng.random() {
        fleet(world).stop(active);
        pause(world, 0..60).await;
        fleet(world).register().back_up();
        // Its holder is no more. Longer than polls may be apart: a heartbeat leaves its trace.
        longest * 2 / 3
    } else {
        // Its holder is there: longer than the lease of whoever took its place.
        fleet(world).register().cut_off(active, true);
        longest * 5 / 4
    };
    pause(world, 1_000..3_000).await;
    fleet(world).register().is_away(true);
    sleep(down).await;
    fleet(world).register().restore();
    fleet(world).register().heal();
    pause(world, 0..3_000).await;
}

/// Nobody is replaced because the register does not answer, if all else is well.
async fn away(world: &mut World) {
    let active = active(world).await;
    let before = fleet(world).process_on(active);
    fleet(world).register().is_away(true);
    pause(world, 50..4_000).await;
    fleet(world).register().is_away(false);
    sleep(fleet(world).longest_lease() * 2).await;
    let now = fleet(world).active().and_then(|machine| fleet(world).process_on(machine));
    if now != before {
        world.history.violation(format!("proxy {now:?} took the place of {before:?}, because the register was away"));
    }
}
