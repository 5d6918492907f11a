//! The resync job alone, without a proxy around it, on two real memcached processes.

mod strangers;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use resilver::internals::backend::{Batch, Effect};
use resilver::internals::ids::{NodeId, PairId};
use resilver::internals::resync::{Fill, Tuning};
use tokio::sync::RwLock;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use world::{World, all_keys, deadline, fill, item, mutate, unbase64, wire_key};

const LEADER: NodeId = NodeId(0);
const TARGET: NodeId = NodeId(1);
const PAIR: PairId = PairId(0);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_items_under_mutations() {
    const COUNT: usize = 100_000;
    let world = World::start(&[], &[]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    fill(&mut world.pipe(LEADER).await, COUNT, |i| item(i, now)).await;
    // The target holds old items of the pair, leftovers of a ring that it is no longer part of, and
    // a marker.
    let mut target = world.pipe(TARGET).await;
    fill(&mut target, 5_000, |i| format!("ms old-{i} 3\r\nold\r\n").into_bytes()).await;
    fill(&mut target, 5_000, |i| format!("ms key-{i} 3\r\nold\r\n").into_bytes()).await;
    fill(&mut target, 1, |_| b"ms foreign-x 3\r\nold\r\n".to_vec()).await;
    fill(&mut target, 1, |_| b"ms __resilver__:m 1\r\nm\r\n".to_vec()).await;
    fill(&mut world.pipe(LEADER).await, 1, |_| b"ms foreign-y 1\r\nm\r\n".to_vec()).await;
    fill(&mut world.pipe(LEADER).await, 1, |_| b"ms __resilver__:n 1\r\nm\r\n".to_vec()).await;

    let stop = AtomicBool::new(false);
    let job = async {
        // A small memory bound: the key list has to go through its file.
        let tuning = Tuning { memory_bytes: 600_000, ..Tuning::default() };
        let end = world.resync(Fill::Purge, tuning).await;
        // Both nodes take mutations for a while once they are mirrored.
        sleep(Duration::from_millis(200)).await;
        stop.store(true, Ordering::SeqCst);
        end
    };
    let ((outcome, progress), a, b) =
        tokio::join!(job, mutate(&world, 0, 2, COUNT, &stop), mutate(&world, 1, 2, COUNT, &stop));
    assert_eq!(outcome.result, Ok(()));
    assert!(outcome.drains.is_empty() && outcome.undone);
    let sum = |f: fn(&resilver::internals::resync::PairProgress) -> &AtomicU64| progress.sum(f);
    eprintln!(
        "{} mutations, {} copied, {} skipped, {} recopied, gate closed {} us, {:?}",
        a + b,
        sum(|p| &p.copied),
        sum(|p| &p.skipped),
        sum(|p| &p.recopied),
        world.closed_us.load(Ordering::Relaxed),
        progress.elapsed(),
    );
    assert!(progress.purged.load(Ordering::Relaxed) >= 10_001);
    assert_eq!(sum(|p| &p.failed), 0);

    let mut keys = all_keys(COUNT);
    keys.extend((0..5_000).map(|i| format!("old-{i}").into_bytes()));
    assert!(world.assert_equal(&keys).await > COUNT / 2);
    let others: Vec<Vec<u8>> =
        [&b"foreign-x"[..], b"foreign-y", b"__resilver__:m", b"__resilver__:n"].map(Vec::from).to_vec();
    let held = world.content(TARGET, &others).await;
    assert_eq!(held.keys().collect::<Vec<_>>(), [b"__resilver__:m"]);
}

#[tokio::test]
async fn odd_nodes() {
    // Items that the target refuses are counted; what it can take is copied.
    let world = World::start(&["-I", "4m"], &[]);
    let mut leader = world.pipe(LEADER).await;
    let big = "x".repeat(2_000_000);
    fill(&mut leader, 1, |_| format!("ms big {}\r\n{big}\r\n", big.len()).into_bytes()).await;
    fill(&mut leader, 100, |i| item(i, 1)).await;
    // Stale ones are not made fresh, and the right to recompute them is given back.
    fill(&mut leader, 1, |_| b"ms stale 1\r\nx\r\n".to_vec()).await;
    leader.ask(b"md stale I T30\r\n", Effect::Mutation, deadline()).await.unwrap();
    let (outcome, progress) = world.resync(Fill::Empty, Tuning::default()).await;
    assert_eq!(outcome.result, Ok(()));
    assert_eq!(progress.sum(|p| &p.failed), 1);
    let mut keys = all_keys(100);
    keys.push(b"stale".to_vec());
    assert!(world.content(TARGET, &keys).await.len() > 70);
    assert!(world.content(TARGET, &[b"stale".to_vec(), b"big".to_vec()]).await.is_empty());
    let answer = leader.ask(b"mg stale\r\n", Effect::Mutation, deadline()).await.unwrap();
    assert!(answer.contains('W'), "{answer}");

    // A crawler that is off is turned on.
    let world = World::start(&["-o", "no_lru_crawler"], &[]);
    fill(&mut world.pipe(LEADER).await, 100, |i| item(i, 1)).await;
    assert_eq!(world.resync(Fill::Empty, Tuning::default()).await.0.result, Ok(()));
    world.assert_equal(&all_keys(100)).await;

    // Nodes that cannot be enumerated or verified are told so.
    for (target, purge) in [("-C", false), ("-C", true), ("-X", true)] {
        let world = World::start(&[], &[target]);
        fill(&mut world.pipe(LEADER).await, 1, |i| item(i, 1)).await;
        let error =
            world.resync(if purge { Fill::Purge } else { Fill::Empty }, Tuning::default()).await.0.result.unwrap_err();
        assert_eq!(error.reason(), "cannot_enumerate", "{error}");
    }
    // A fresh target need not be enumerated.
    let world = World::start(&[], &["-X"]);
    fill(&mut world.pipe(LEADER).await, 100, |i| item(i, 1)).await;
    assert_eq!(world.resync(Fill::Empty, Tuning::default()).await.0.result, Ok(()));
    world.assert_equal(&all_keys(100)).await;

    // An empty source.
    assert_eq!(World::start(&[], &[]).resync(Fill::Purge, Tuning::default()).await.0.result, Ok(()));
}

/// A leader that cannot be enumerated, or verified by cas ids: its items come as they are read,
/// under mutations, and exactly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_enumerated_is_filled_from_reads() {
    const COUNT: usize = 4_000;
    for args in [&["-X"][..], &["-C"], &["-C", "-X"]] {
        let world = World::start(args, &[]);
        fill(&mut world.pipe(LEADER).await, COUNT, |i| item(i, 1_900_000_000)).await;
        fill(&mut world.pipe(TARGET).await, 100, |i| format!("ms old-{i} 3\r\nold\r\n").into_bytes()).await;
        let (cancel, stop) = (CancellationToken::new(), AtomicBool::new(false));
        let raw = |i: usize| {
            let (key, binary) = wire_key(i);
            if binary.is_empty() { key.into_bytes() } else { unbase64(&key) }
        };
        // Nothing waits, and what was taken out is through: the target's counters stand still.
        let settled = async || {
            let mut target = world.pipe(TARGET).await;
            let mut before = Vec::new();
            loop {
                sleep(Duration::from_millis(200)).await;
                let mut now = target.stats("", deadline()).await.unwrap();
                now.retain(|(name, _)| {
                    name.starts_with("cmd_") || name.ends_with("_hits") || name.ends_with("_misses")
                });
                if world.recopy.is_empty() && !world.recopy.overflowed() && now == before {
                    return;
                }
                before = now;
            }
        };
        let reads = async {
            let begun = Instant::now();
            while !world.recopy.wants_reads() {
                assert!(begun.elapsed() < Duration::from_secs(20), "no trickle");
                sleep(Duration::from_millis(1)).await;
            }
            // The even ones, again and again, while half of all keys are written.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(1500) {
                for i in (0..COUNT).step_by(2) {
                    world.recopy.push_read(&raw(i));
                }
                sleep(Duration::from_millis(5)).await;
            }
            stop.store(true, Ordering::SeqCst);
            settled().await;
            // Once more, now that nothing changes: also those that were not there when they were
            // asked for.
            world.recopy.set_overflow();
            settled().await;
            (0..COUNT).step_by(2).for_each(|i| world.recopy.push_read(&raw(i)));
            settled().await;
            let keys = all_keys(COUNT);
            let even: Vec<Vec<u8>> = keys.iter().step_by(2).cloned().collect();
            world.assert_equal(&even).await;
            let (leader, target) = (world.content(LEADER, &keys).await, world.content(TARGET, &keys).await);
            assert!(
                target.len() > leader.len() / 3 && target.len() < leader.len(),
                "{} of {}",
                target.len(),
                leader.len()
            );
            let there: Vec<Vec<u8>> = target.into_keys().collect();
            world.assert_equal(&there).await;
            assert!(world.content(TARGET, &[b"old-1".to_vec()]).await.is_empty());
            cancel.cancel();
        };
        let job = async {
            let end = world.resync_with(Fill::Purge, Tuning::default(), cancel.clone(), Arc::default()).await;
            stop.store(true, Ordering::SeqCst);
            assert_eq!(end.0.result.as_ref().map_err(|e| e.reason()), Err("cancelled"), "{:?}", end.0);
            end
        };
        // One of two workers: it writes half of the keys, among them read ones and others.
        let ((outcome, progress), (), mutations) = tokio::join!(job, reads, mutate(&world, 0, 3, COUNT, &stop));
        assert!(outcome.undone && outcome.drains.is_empty() && progress.trickles());
        eprintln!(
            "{args:?}: {mutations} mutations, {} copied, {} skipped",
            progress.sum(|p| &p.copied),
            progress.sum(|p| &p.skipped)
        );
    }
}

async fn stat(world: &World, node: NodeId, name: &str) -> u64 {
    let stats = world.pipe(node).await.stats("", deadline()).await.unwrap();
    stats.into_iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1.parse().unwrap()
}

/// A node that holds 200,000 items and missed 1,000 keys: those are repaired, and nothing else on
/// either node is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_was_missed_is_touched() {
    const COUNT: usize = 200_000;
    const MISSED: usize = 1_000;
    let world = World::start(&[], &[]);
    world.fill_both(COUNT, |i| item(i, 1_900_000_000)).await;
    world.missed.reset();
    let mut leader = world.pipe(LEADER).await;
    // The node is away: changed, deleted, new.
    for i in 0..MISSED {
        let (key, binary) = wire_key(i * 200);
        assert!(binary.is_empty());
        let (key, command) = match i % 3 {
            0 => (key.clone(), format!("ms {key} 3 F1 T600\r\nnew\r\n")),
            1 => (key.clone(), format!("md {key}\r\n")),
            _ => (format!("new-{i}"), format!("ms new-{i} 3\r\nnew\r\n")),
        };
        world.missed.insert(key.as_bytes());
        leader.ask(command.as_bytes(), Effect::Mutation, deadline()).await.unwrap();
    }
    let counts = async || {
        let mut all = Vec::new();
        for node in [LEADER, TARGET] {
            for name in ["lru_crawler_starts", "cmd_get", "cmd_set", "delete_hits", "delete_misses", "cmd_touch"] {
                all.push(stat(&world, node, name).await);
            }
        }
        all
    };
    let before = counts().await;
    let (outcome, progress) = world.resync(Fill::Missed, Tuning::default()).await;
    let done: Vec<u64> = counts().await.iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(outcome.result, Ok(()));
    assert!(outcome.undone && outcome.drains.is_empty());
    eprintln!("{MISSED} of {COUNT} missed: {:?}, {done:?}", progress.elapsed());
    assert!(progress.elapsed() < Duration::from_secs(1), "{:?}", progress.elapsed());
    // Copied: 667; deleted on the leader: 333; each read, added and verified, or read and looked
    // for.
    assert_eq!(progress.sum(|p| &p.copied), 667);
    assert_eq!(progress.sum(|p| &p.skipped), 333);
    // Those of the first batches that expire, at most 334, are read once more, with the leader's
    // clock before and behind them.
    assert!((667 + 1000..667 + 1000 + 334 + 16).contains(&done[1]), "{done:?}");
    assert_eq!((done[0], &done[2..]), (0, &[0, 0, 0, 0, 0, 333, 667, 667, 333, 0][..]));
    let mut keys = all_keys(COUNT);
    keys.extend((0..MISSED).map(|i| format!("new-{i}").into_bytes()));
    assert_eq!(world.assert_equal(&keys).await, COUNT);
}

/// Two nodes with the same 50,000 items, except for some: those alone are written, and clients
/// write all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_is_found_by_comparing() {
    const COUNT: usize = 50_000;
    for mode in [Fill::Compare, Fill::Adopt] {
        let world = World::start(&[], &[]);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        world.fill_both(COUNT, |i| item(i, now)).await;
        let (mut leader, mut target) = (world.pipe(LEADER).await, world.pipe(TARGET).await);
        // Different, missing on one side, with another expiry.
        let odd = |name: &str, i: usize, ttl: usize| format!("ms {name}-{i} 3 F{i} T{ttl}\r\nodd\r\n").into_bytes();
        fill(&mut target, 100, |i| format!("ms key-{} 3\r\nold\r\n", 1 + i * 20).into_bytes()).await;
        fill(&mut target, 100, |i| format!("md key-{}\r\n", 2 + i * 20).into_bytes()).await;
        fill(&mut leader, 100, |i| odd("mine", i, 1000)).await;
        fill(&mut target, 1000, |i| odd("theirs", i, if i % 2 == 0 { 0 } else { 2_000 })).await;
        fill(&mut target, 100, |i| format!("ms YmluYXJ5IGtl{:04} 3 b F5 T0\r\nodd\r\n", i).into_bytes()).await;
        fill(&mut target, 100, |i| format!("mg key-{} T77\r\n", 4 + i * 20).into_bytes()).await;
        fill(&mut target, 1, |_| b"ms __resilver__:m 1\r\nm\r\n".to_vec()).await;
        fill(&mut target, 1, |_| b"ms foreign-x 1\r\nm\r\n".to_vec()).await;
        let sets = stat(&world, TARGET, "cmd_set").await;
        let begun = Instant::now();
        let (outcome, progress) = world.resync(mode, Tuning { memory_bytes: 600_000, ..Tuning::default() }).await;
        assert_eq!(outcome.result, Ok(()));
        let written = stat(&world, TARGET, "cmd_set").await - sets;
        let adopted = progress.sum(|p| &p.adopted);
        eprintln!("{mode:?}: {:?}, {written} written, {adopted} adopted", begun.elapsed());
        assert_eq!(progress.sum(|p| &p.copied), written);
        assert_eq!((written, adopted), (400, if mode == Fill::Adopt { 1100 } else { 0 }));
        let mut keys = all_keys(COUNT);
        for (name, count) in [("mine", 100), ("theirs", 1000)] {
            keys.extend((0..count).map(|i| format!("{name}-{i}").into_bytes()));
        }
        keys.extend((0..100).map(|i| format!("YmluYXJ5IGtl{i:04} b").into_bytes()));
        let live = world.assert_equal(&keys).await;
        assert_eq!(live, COUNT + 100 + if mode == Fill::Adopt { 1100 } else { 0 });
        let reserved = world.content(LEADER, &[b"__resilver__:m".to_vec(), b"foreign-x".to_vec()]).await;
        assert!(reserved.is_empty(), "{reserved:?}");

        // Once more, with clients writing.
        fill(&mut target, 100, |i| format!("ms key-{} 3\r\nold\r\n", 1 + i * 20).into_bytes()).await;
        fill(&mut target, 1000, |i| odd("more", i, 0)).await;
        world.mirrored.store(false, Ordering::SeqCst);
        world.recovering.store(false, Ordering::SeqCst);
        let stop = AtomicBool::new(false);
        let job = async {
            let end = world.resync(Fill::Compare, Tuning::default()).await;
            // Both nodes take mutations for a while once they are mirrored.
            sleep(Duration::from_millis(100)).await;
            stop.store(true, Ordering::SeqCst);
            end
        };
        let ((outcome, _), a, b) =
            tokio::join!(job, mutate(&world, 0, 2, COUNT, &stop), mutate(&world, 1, 2, COUNT, &stop));
        assert_eq!(outcome.result, Ok(()));
        assert!(a + b > 100);
        keys.extend((0..1000).map(|i| format!("more-{i}").into_bytes()));
        world.assert_equal(&keys).await;
    }
}

/// What cannot be enumerated, or has no cas ids, cannot be compared: the control plane is told, and
/// purges.
#[tokio::test]
async fn what_cannot_be_compared_says_so() {
    for (leader, target) in [("-X", "-Iv"), ("-C", "-Iv"), ("-Iv", "-X"), ("-Iv", "-C")] {
        let args = |arg: &'static str| if arg == "-Iv" { vec![] } else { vec![arg] };
        let world = World::start(&args(leader), &args(target));
        world.fill_both(100, |i| item(i, 1)).await;
        let (outcome, _) = world.resync(Fill::Compare, Tuning::default()).await;
        let error = outcome.result.unwrap_err();
        assert_eq!(error.reason(), "cannot_enumerate", "{error}");
        assert!(!outcome.undone, "it may hold anything");
    }
}

/// Nothing tells what is old on a node whose list was given up.
#[tokio::test]
async fn a_list_that_was_given_up_copies_nothing() {
    let world = World::start(&[], &[]);
    fill(&mut world.pipe(LEADER).await, 10, |i| item(i, 1)).await;
    world.missed.reset();
    world.missed.insert(b"key-1");
    world.missed.overflow();
    let (outcome, progress) = world.resync(Fill::Missed, Tuning::default()).await;
    assert_eq!(outcome.result.unwrap_err().reason(), "missed_too_many");
    assert!(!outcome.undone);
    assert_eq!((progress.sum(|p| &p.copied), stat(&world, TARGET, "curr_items").await), (0, 0));
}

/// Old and new items, of which the target may hold any part, but nothing else.
async fn assert_part(world: &World, count: usize, now: u64) -> usize {
    let keys = all_keys(count);
    let held = world.content(TARGET, &keys).await;
    for (i, key) in keys.iter().enumerate() {
        if let Some((value, ..)) = held.get(key) {
            let sent = item(i, now);
            assert!(sent.windows(value.len() + 4).any(|w| w == [b"\r\n", &value[..], b"\r\n"].concat()), "item {i}");
        }
    }
    held.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_in_mid_stream() {
    const COUNT: usize = 60_000;
    let now = 1_900_000_000;
    for case in ["cancel", "source killed", "target killed", "target hangs"] {
        let mut world = World::start(&[], &[]);
        fill(&mut world.pipe(LEADER).await, COUNT, |i| item(i, now)).await;
        let cancel = CancellationToken::new();
        let tuning = Tuning { target_timeout: Duration::from_millis(300), ..Tuning::default() };
        let pids = [&world.nodes[0], &world.nodes[1]].map(|node| nix::unistd::Pid::from_raw(node.pid() as i32));
        let signal = |node: NodeId, signal| nix::sys::signal::kill(pids[node.index()], signal).unwrap();
        let cut = async {
            // Some way into the stream: when the target holds a few thousand items.
            let mut target = world.pipe(TARGET).await;
            loop {
                let stats = target.stats("", deadline()).await.unwrap();
                let items = stats.iter().find(|(name, _)| name == "curr_items").unwrap();
                if items.1.parse::<usize>().unwrap() > 2_000 {
                    break;
                }
            }
            match case {
                "cancel" => cancel.cancel(),
                "source killed" => signal(LEADER, nix::sys::signal::SIGKILL),
                "target killed" => signal(TARGET, nix::sys::signal::SIGKILL),
                _ => signal(TARGET, nix::sys::signal::SIGSTOP),
            }
        };
        let ((mut outcome, _), ()) =
            tokio::join!(world.resync_with(Fill::Empty, tuning, cancel.clone(), Arc::default()), cut);
        let reason = outcome.result.expect_err(case).reason();
        match case {
            "cancel" | "source killed" => {
                assert_eq!(reason, if case == "cancel" { "cancelled" } else { "reset" });
                assert!(outcome.undone && outcome.drains.is_empty());
                let held = assert_part(&world, COUNT, now).await;
                assert!((1..COUNT).contains(&held), "{held}");
            }
            "target killed" => assert_eq!(reason, "reset"),
            _ => {
                assert_eq!(reason, "timeout");
                assert!(!outcome.undone && !outcome.drains.is_empty());
                let mut all = futures::future::join_all(outcome.drains.drain(..));
                assert!(tokio::time::timeout(Duration::from_millis(200), &mut all).await.is_err());
                signal(TARGET, nix::sys::signal::SIGCONT);
                let ends = tokio::time::timeout(Duration::from_secs(5), all).await.unwrap();
                assert!(ends.iter().all(|&end| end == resilver::internals::backend::DrainEnd::Answered));
                // Purged and begun again, it ends well.
                assert_eq!(world.resync(Fill::Purge, Tuning::default()).await.0.result, Ok(()));
                world.assert_equal(&all_keys(COUNT)).await;
            }
        }
        for node in &mut world.nodes {
            node.kill();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_finds_no_copy_in_flight_and_an_overflow_is_made_up_for() {
    const COUNT: usize = 100_000;
    let world = World::start(&[], &[]);
    fill(&mut world.pipe(LEADER).await, COUNT, |i| item(i, 1_900_000_000)).await;
    let quiesce: Arc<RwLock<()>> = Arc::default();
    let flushes = async {
        let mut target = world.pipe(TARGET).await;
        let mut waited = Duration::ZERO;
        for round in 0..10 {
            // Copies are made between two flushes.
            sleep(Duration::from_millis(5)).await;
            let at = Instant::now();
            let _alone = quiesce.write().await;
            waited = waited.max(at.elapsed());
            // Nothing lands while the lock is held.
            let mut sets = Vec::new();
            for _ in 0..2 {
                let stats = target.stats("", deadline()).await.unwrap();
                sets.push(stats.into_iter().find(|(name, _)| name == "cmd_set"));
                sleep(Duration::from_millis(3)).await;
            }
            assert_eq!(sets[0], sets[1]);
            if round == 3 {
                world.recopy.set_overflow();
            }
        }
        waited
    };
    let (waited, (outcome, progress)) = tokio::join!(
        flushes,
        world.resync_with(Fill::Empty, Tuning::default(), CancellationToken::new(), quiesce.clone())
    );
    assert_eq!(outcome.result, Ok(()));
    assert!(waited < Duration::from_millis(500), "{waited:?}");
    assert!(progress.sum(|p| &p.enumerated) > COUNT as u64, "a second pass");
    world.assert_equal(&all_keys(COUNT)).await;
}

/// incr on more distinct keys per second than the rate allows to copy, one after the other, so that
/// no two fall together.
async fn flood(world: &World, count: usize, stop: &AtomicBool) -> usize {
    let (mut leader, mut target) = (world.pipe(LEADER).await, world.pipe(TARGET).await);
    let mut done = 0;
    while !stop.load(Ordering::SeqCst) {
        let _open = world.gate.read().await;
        let keys: Vec<String> = (done..done + 100).map(|i| format!("n{}", i % count)).collect();
        let mut batch = Batch::new();
        keys.iter().for_each(|key| batch.command(format!("ma {key}\r\n").as_bytes(), Effect::Mutation));
        leader.exchange(batch, deadline(), |_, _| Ok(())).await.unwrap();
        if world.recovering.load(Ordering::SeqCst) {
            let command = if world.mirrored.load(Ordering::SeqCst) { "ma" } else { "md" };
            let mut batch = Batch::new();
            keys.iter().for_each(|key| batch.command(format!("{command} {key}\r\n").as_bytes(), Effect::Mutation));
            target.exchange(batch, deadline(), |_, _| Ok(())).await.unwrap();
            if command == "md" {
                keys.iter().for_each(|key| world.recopy.push(Bytes::copy_from_slice(key.as_bytes())));
            }
        }
        done += keys.len();
        // 25,000 keys a second: several times the rate that the job has.
        sleep(Duration::from_millis(4)).await;
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_resync_ends_under_more_writes_than_its_rate() {
    const COUNT: usize = 20_000;
    const RATE: u64 = 4_000;
    let mut world = World::start(&[], &[]);
    world.rate = Some(RATE);
    fill(&mut world.pipe(LEADER).await, COUNT, |i| format!("ms n{i} 1\r\n1\r\n").into_bytes()).await;
    let stop = AtomicBool::new(false);
    let job = async {
        let end = tokio::time::timeout(Duration::from_secs(120), world.resync(Fill::Empty, Tuning::default())).await;
        // Both nodes take mutations for a while once they are mirrored.
        sleep(Duration::from_millis(100)).await;
        stop.store(true, Ordering::SeqCst);
        end
    };
    let (end, written) = tokio::join!(job, flood(&world, COUNT, &stop));
    let (outcome, progress) = end.expect("it ends");
    assert_eq!(outcome.result, Ok(()));
    eprintln!(
        "{written} written, {} copied, {} recopied, {} enumerated, gate closed {} us, {:?}",
        progress.sum(|p| &p.copied),
        progress.sum(|p| &p.recopied),
        progress.sum(|p| &p.enumerated),
        world.closed_us.load(Ordering::Relaxed),
        progress.elapsed(),
    );
    // Re-copies take half of the rate from the stream, and no more.
    assert!(progress.elapsed() >= Duration::from_secs(COUNT as u64 / RATE));
    let keys: Vec<Vec<u8>> = (0..COUNT).map(|i| format!("n{i}").into_bytes()).collect();
    assert_eq!(world.assert_equal(&keys).await, COUNT);
}

/// `cargo test --release --test it -- --ignored --nocapture resync_job::speed`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn speed() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();
    const COUNT: usize = 500_000;
    let world = World::start(&[], &[]);
    let value = "v".repeat(100);
    fill(&mut world.pipe(LEADER).await, COUNT, |i| format!("ms key-{i} 100\r\n{value}\r\n").into_bytes()).await;
    for purge in [false, true] {
        for batch in [256, 512, 1024] {
            for lanes in [1, 2, 4] {
                if !purge {
                    world.pipe(TARGET).await.ask(b"flush_all\r\n", Effect::Mutation, deadline()).await.unwrap();
                    sleep(Duration::from_millis(2100)).await;
                } else if batch != 512 {
                    continue;
                }
                let (outcome, p) = world
                    .resync(if purge { Fill::Purge } else { Fill::Empty }, Tuning { batch, lanes, ..Tuning::default() })
                    .await;
                assert_eq!(outcome.result, Ok(()));
                let copied = p.sum(|p| &p.copied);
                let rate = copied as f64 / p.elapsed().as_secs_f64();
                eprintln!("batch {batch}, lanes {lanes}, purge {purge}: {copied} in {:?}, {rate:.0}/s", p.elapsed());
            }
        }
    }
}
