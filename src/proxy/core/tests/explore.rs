//! Every order of everything: depth first over distinct states, by replaying choices from the
//! start.

use std::collections::HashSet;

use crate::pair::{Gate, State};

use super::node::{Item, Node, is_held_back};
use super::world::{Fault, KEY, Process, World};

/// What an exploration expects of every end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Errors {
    /// G4: one node of a mirrored pair failed, and no client may notice.
    None,
    /// The only full copy failed.
    Allowed,
}

/// More distinct states than this mean that a scenario is too large for a test.
const MAX_STATES: usize = 400_000;

/// Walks every order; `Err`: what went wrong, and the choices that led there.
pub(super) fn explore(make: impl Fn() -> World, errors: Errors) -> Result<usize, String> {
    let mut seen: HashSet<u64> = HashSet::new();
    let mut stack: Vec<Vec<u8>> = vec![vec![]];
    while let Some(prefix) = stack.pop() {
        let mut world = make();
        let mut path = Vec::with_capacity(prefix.len() + 16);
        for &at in &prefix {
            let choice = world.choices().swap_remove(at as usize);
            world.step(&choice);
            path.push(at);
        }
        if !prefix.is_empty() && !seen.insert(world.digest()) {
            continue;
        }
        loop {
            let choices = world.choices();
            if choices.is_empty() {
                judge(&world, errors).map_err(|error| format!("{error}\n{}", told(&make, &path)))?;
                break;
            }
            for other in (1..choices.len()).rev() {
                stack.push(path.iter().copied().chain([other as u8]).collect());
            }
            world.step(&choices[0]);
            path.push(0);
            if !seen.insert(world.digest()) {
                break;
            }
            assert!(seen.len() < MAX_STATES, "the scenario is too large");
        }
    }
    Ok(seen.len())
}

fn told(make: &impl Fn() -> World, path: &[u8]) -> String {
    let mut world = make();
    let mut text = String::new();
    for &at in path {
        let choice = world.choices().swap_remove(at as usize);
        world.step(&choice);
        text += &format!("  {choice:?}\n");
    }
    text + &format!(
        "  pair {:?} {:?}\n  nodes {:?}\n  {:?}\n",
        world.pair.state(),
        world.pair.gate(),
        world.nodes,
        world.history
    )
}

/// Everything is quiet: what must hold.
pub(super) fn judge(world: &World, errors: Errors) -> Result<(), String> {
    if world.history.unanswered() {
        return Err("a client waits for ever".into());
    }
    if world.has_orders() {
        return Err("the control plane waits for ever".into());
    }
    if let (Errors::None, Some(error)) = (errors, world.history.errors()) {
        return Err(format!("G4: a client was told {error}"));
    }
    if world.fault == Some(Fault::Replace) {
        // What this proxy was about to send may change it later; nobody has promised that it does
        // not.
        return match world.history.is_possible(None) {
            true => Ok(()),
            false => Err("no order of the commands explains what clients of both proxies were told".into()),
        };
    }
    let (state, gate) = (world.pair.state(), world.pair.gate());
    if gate != Gate::Open {
        return Err(format!("the gate stays {gate:?} in {state:?}"));
    }
    let item = |node: usize| world.nodes[node].counted(KEY.as_bytes());
    let lost_memory =
        |node| world.faulted && [Some(Fault::Restart(node)), Some(Fault::Flush(node))].contains(&world.fault);
    // Nobody has asked the emptied node since for what it does not hold: that is for the next probe
    // to find.
    let unnoticed = [0, 1].into_iter().any(|node| lost_memory(node) && world.in_use[node]);
    let last = state
        .leader()
        .filter(|&l| world.process[l as usize] != Process::Dead && !lost_memory(l as usize))
        .map(|l| item(l as usize).map(|i| std::str::from_utf8(&i.value).unwrap()));
    if !world.diverged && !world.history.is_possible(last) {
        return Err(format!("no order of the commands explains what clients were told (and {last:?} at the end)"));
    }
    // Marked items are on the leader alone; a follower that led may have kept one.
    let held_back = |i: &&Item| is_held_back(i.mark);
    let plain = |i: &Item| (i.value.clone(), i.flags, i.exptime);
    if state == State::Mirrored
        && !unnoticed
        && item(0).filter(|i| !held_back(i)).map(plain) != item(1).filter(|i| !held_back(i)).map(plain)
    {
        return Err("leader and follower differ".into());
    }
    if let State::Recovering { leader } = state
        && let Some(copy) = item(leader.other() as usize)
        && item(leader as usize).filter(|i| !held_back(i)).map(plain) != Some(plain(copy))
        && world.recopy.is_empty()
        && world.copier.is_none()
    {
        return Err("the filling node holds something old".into());
    }
    judge_missed(world)?;
    if !world.undrained.is_empty() && world.process == [Process::Running; 2] {
        return Err(format!("undrained for ever: {:?}", world.undrained));
    }
    Ok(())
}

/// A node that was lost and kept its memory: when it comes back, having executed whatever was still
/// under way to it, every key that differs is known to have been missed.
pub(super) fn judge_missed(world: &World) -> Result<(), String> {
    let memory_gone = world.faulted && matches!(world.fault, Some(Fault::Restart(_) | Fault::Flush(_)));
    let said = !world.missed.overflowed() && !world.missed.contains(KEY.as_bytes());
    if world.pair.state() == State::Mirrored || memory_gone || !said || (world.unequal && !world.noticed()) {
        return Ok(());
    }
    let counts = |i: &&Item| !is_held_back(i.mark);
    let plain =
        |node: &Node| node.counted(KEY.as_bytes()).filter(counts).map(|i| (i.value.clone(), i.flags, i.exptime));
    for primary in world.ends_of(0) {
        for backup in world.ends_of(1) {
            if plain(&primary) != plain(&backup) {
                return Err(format!("missed, and nobody knows: {:?} and {:?}", plain(&primary), plain(&backup)));
            }
        }
    }
    Ok(())
}

/// Asserts that every order ends well.
pub(super) fn holds(name: &str, make: impl Fn() -> World, errors: Errors) {
    if let Err(story) = explore(make, errors) {
        panic!("{name}: {story}");
    }
}
