//! A machine, or a network, with too much to do.

use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep};

use crate::simulation::late::Scheduled;
use crate::simulation::net::{Lag, Unheard};
use crate::simulation::trace::{self, note};
use crate::simulation::world::World;

use super::NOTICED;
use super::faults::pause;

/// Ways in which everything stands still together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standstill {
    /// The hosts, all at once.
    Hosts,
    /// One host after the other.
    ByTurns,
    /// The network between the proxy and all hosts, in one direction: they execute what comes, and
    /// their answers do not arrive.
    Answers,
    /// One of the proxy's threads, or all of them: answers are there, and are not read.
    Worker,
    Control,
    Proxy,
    /// The whole machine, with the proxy and all its timers.
    Machine,
}

const STANDSTILLS: [Standstill; 7] = [
    Standstill::Hosts,
    Standstill::ByTurns,
    Standstill::Answers,
    Standstill::Worker,
    Standstill::Control,
    Standstill::Proxy,
    Standstill::Machine,
];

/// A machine, or network, with too much to do, and perhaps one node that fails in the midst of it.
pub(super) async fn overload(world: &mut World) {
    let nodes = world.topology.node_count();
    let usual = world.net.lock().host(0).lag;
    let slow = |world: &World, what: &str, lag: Lag| {
        for node in 0..nodes {
            world.net.change(node, what, |host| {
                host.waking_ms = 10;
                host.lag = lag;
            });
        }
    };
    for _ in 0..world.rng.random_range(1..4) {
        let before = trace::losses();
        slow(world, "slow", Lag { one_in: 1, most_ms: 2 });
        pause(world, 0..300).await;
        for _ in 0..world.rng.random_range(1..4) {
            let kind = STANDSTILLS[world.rng.random_range(0..STANDSTILLS.len())];
            stand_still(world, kind).await;
            // Long enough for a probe to be answered: what never answers for longer than the last
            // full copy is waited for is given up.
            pause(world, 250..400).await;
        }
        if trace::losses() > before {
            world.history.violation("a node was given up because all were slow".into());
        }
        if world.rng.random() {
            fail_in_an_overload(world).await;
        }
        slow(world, "as usual", usual);
        sleep(NOTICED).await;
        world.mirrored("after an overload").await;
    }
}

async fn stand_still(world: &mut World, kind: Standstill) {
    let all = |world: &World, what: &str, hung: bool| {
        (0..world.topology.node_count()).for_each(|node| world.net.change(node, what, |host| host.hung = hung));
    };
    match kind {
        Standstill::Hosts => {
            all(world, "stands still with all others", true);
            pause(world, 50..650).await;
            all(world, "goes on with all others", false);
        }
        Standstill::ByTurns => {
            for node in 0..world.topology.node_count() {
                stand_still_alone(world, node, 60).await;
            }
        }
        Standstill::Answers => {
            world.net.hear(Unheard::All);
            pause(world, 50..650).await;
            world.net.hear(Unheard::Nothing);
        }
        Standstill::Worker | Standstill::Control | Standstill::Proxy => {
            let mut parts = world.parts();
            let control = parts.len() - 1;
            match kind {
                Standstill::Worker => parts = vec![parts.swap_remove(world.rng.random_range(0..control))],
                Standstill::Control => parts = vec![parts.swap_remove(control)],
                _ => {}
            }
            note(|| format!("FAULT  late: {kind:?}"));
            parts.iter().for_each(Scheduled::stop);
            if kind != Standstill::Worker {
                // Its probes are tasks of their own here.
                world.net.hear(Unheard::Control);
            }
            pause(world, 50..650).await;
            world.net.hear(Unheard::Nothing);
            parts.iter().for_each(Scheduled::go_on);
        }
        Standstill::Machine => {
            let ms = world.rng.random_range(50..650);
            note(|| format!("FAULT  the machine stands still for {ms} ms"));
            tokio::time::advance(Duration::from_millis(ms)).await;
        }
    }
}

async fn stand_still_alone(world: &mut World, node: usize, most_ms: u64) {
    world.net.change(node, "stands still for a moment", |host| host.hung = true);
    pause(world, 10..most_ms).await;
    world.net.change(node, "goes on", |host| host.hung = false);
}

/// One node hangs or dies while the others are slow and stand still by turns. It is found within
/// twice the time that an answer may take (and a tick of the worker's, which looks so often), and
/// no other one is lost.
async fn fail_in_an_overload(world: &mut World) {
    let before = trace::losses();
    let (failed, dies) = (world.rng.random_range(0..world.topology.node_count()), world.rng.random());
    // What is more is the way of the last question, which may wait behind a probe: seven commands
    // here, one after the other.
    let twice = 2 * (world.settings.timeout + world.settings.timeout / 8) + Duration::from_millis(30);
    if dies {
        world.net.kill(failed);
    } else {
        world.net.change(failed, "hangs", |host| {
            host.hung = true;
            host.owes_since = None;
        });
    }
    let (begun, lasts) = (Instant::now(), Duration::from_millis(world.rng.random_range(900..1_400)));
    let mut found = None;
    while begun.elapsed() < lasts {
        if found.is_none() && trace::losses() > before {
            // A node without client traffic is found by a probe.
            let owes_since = if dies { Some(begun) } else { world.net.lock().host(failed).owes_since };
            found = Some(owes_since.map(|since| since.elapsed()));
        }
        if found.is_none() && world.rng.random_ratio(1, 40) {
            let other = world.rng.random_range(0..world.topology.node_count());
            if other != failed {
                stand_still_alone(world, other, 30).await;
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
    match found {
        None => world.history.violation(format!("node {failed} failed, and nobody noticed")),
        Some(Some(took)) if took > twice => {
            world.history.violation(format!("it took {took:?} to find that node {failed} failed, more than {twice:?}"));
        }
        Some(_) => {}
    }
    if trace::losses() > before + 1 {
        world.history.violation(format!("with node {failed} another one was given up, which was slow"));
    }
    if dies {
        world.net.start(failed);
    } else {
        world.net.change(failed, "goes on", |host| host.hung = false);
    }
}
