//! Hung and flapping nodes: what they may cost, and how often leadership may move.

use std::time::Duration;

use crate::support::{Cluster, Load, Mix, Shape, Stored, seed};

/// A request costs at most the timeout, once; after that nobody waits. Counted, not timed: every
/// client has one request in flight.
#[test]
fn g4_a_hung_node_costs_each_client_one_slow_request_at_most() {
    for primary in [true, false] {
        let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--timeout", "250ms"]));
        let mix = Mix::small(seed("hung node"));
        let clients = mix.writers + mix.readers + mix.counting + mix.locking + mix.casing;
        let load = Load::start(&cluster.proxy.addr(), mix);
        load.wait_operations(1000);
        let node = if primary { &cluster.primaries[0] } else { &cluster.backups[0] };
        load.mark("stop");
        node.pause();
        cluster.wait_lost(&node.addr());
        load.mark("noticed");
        // Were each request to wait, this would be hundreds of slow ones for each client.
        load.wait_operations(5000);
        let model = load.stop();
        let verdict = model.recorder.verdict();
        assert!(
            verdict.over_100ms <= 2 * clients as u64,
            "{} requests over 100 ms, {clients} clients:\n{}",
            verdict.over_100ms,
            verdict.summary()
        );
        assert!(verdict.over_100ms > 0, "nobody met the hung node: nothing is tested");
        node.resume();
        cluster.mirrored();
        model.check_through(&mut cluster.client());
        cluster.assert_rings_equal();
        model.assert_clean();
    }
}

#[test]
fn g4_a_node_that_hangs_while_nobody_asks_is_noticed_by_probes() {
    let cluster = Cluster::start(&Shape::new(2, 1));
    let mut client = cluster.client();
    for i in 0..200 {
        assert_eq!(client.set(&format!("k:{i}"), b"x"), Ok(Stored::Stored));
    }
    for node in [&cluster.primaries[1], &cluster.backups[0]] {
        node.pause();
        cluster.wait_lost(&node.addr());
        assert_eq!(cluster.proxy.server(&node.addr(), "reason"), "timeout");
        for i in 0..200 {
            assert!(client.get(&format!("k:{i}")).is_ok_and(|item| item.is_some()), "k:{i}");
        }
        node.resume();
        cluster.mirrored();
    }
    assert_eq!(cluster.proxy.stat("server_errors"), 0);
}

/// A worker that has nothing to be late looks at no clock; the first request wakes it, also one
/// that waited behind a command without a key.
#[test]
fn g4_a_node_that_hangs_is_noticed_by_the_first_request_after_a_rest() {
    for (behind_stats, finished) in [(false, false), (true, false), (true, true)] {
        let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--timeout", "250ms", "--probe-interval", "60s"]));
        let mut client = cluster.client();
        assert_eq!(client.set("k", b"x"), Ok(Stored::Stored));
        // A rest that is longer than --timeout.
        std::thread::sleep(Duration::from_millis(300));
        cluster.primaries[0].pause();
        client.set_deadline(Duration::from_secs(20));
        let item = if behind_stats {
            client.send(b"stats\r\nget k\r\n").expect("sent");
            if finished {
                client.finish_sending();
            }
            client.lines_to_end().expect("stats");
            client.values().map(|items| items.into_iter().next())
        } else {
            client.get("k")
        };
        assert!(item.is_ok_and(|item| item.is_some()), "behind stats: {behind_stats}, finished: {finished}");
        cluster.primaries[0].resume();
    }
}

/// Seconds of the day of a log line, by its time stamp.
fn seconds(line: &str) -> f64 {
    let time = line.split('T').nth(1).and_then(|rest| rest.split('Z').next()).expect("a time stamp");
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().expect("a number"))
}

/// Each return of a flapping node waits longer. Only lower bounds are asserted: they hold however
/// slow the machine is.
#[test]
fn g4_a_flapping_node_waits_longer_for_each_return() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let addr = cluster.primaries[0].addr();
    for _ in 0..4 {
        cluster.primaries[0].pause();
        cluster.wait_lost(&addr);
        cluster.primaries[0].resume();
        cluster.mirrored();
    }
    let log = cluster.proxy.log();
    let of_node = |what: &str| -> Vec<f64> {
        log.lines().filter(|l| l.contains(what) && l.contains(&addr)).map(seconds).collect()
    };
    let (lost, back) = (of_node("node lost"), of_node("node is back"));
    // On a starved machine it may be taken for lost once more, just before the log is read.
    assert!(lost.len() >= back.len() && back.len() >= 4, "{log}");
    let between = |from: f64, to: f64| (to - from).rem_euclid(86_400.0);
    let (mut hold, mut longest) = (0.0_f64, 0.0_f64);
    for i in 1..back.len() {
        // Only what follows its last return within ten seconds is flapping.
        hold = if between(back[i - 1], lost[i]) < 9.5 { (2.0 * hold).clamp(0.25, 4.0) } else { 0.0 };
        longest = longest.max(hold);
        let waited = between(lost[i], back[i]);
        eprintln!("lost, and back after {waited:.3} s; {hold} s is the least");
        assert!(waited >= hold, "back after {waited} s instead of {hold}: {log}");
    }
    assert!(longest >= 0.25, "too slow a machine to make a node flap: {log}");
}

/// Twenty stops within seconds: leadership moves with returns only, and those are few.
#[test]
fn g4_a_flapping_node_does_not_flip_leadership_back_and_forth() {
    const CYCLES: usize = 20;
    let cluster = Cluster::start(&Shape::new(1, 1));
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("flapping")));
    load.wait_operations(500);
    let addr = cluster.primaries[0].addr();
    for _ in 0..CYCLES {
        cluster.primaries[0].pause();
        load.run_for(Duration::from_millis(350));
        cluster.primaries[0].resume();
        load.run_for(Duration::from_millis(350));
    }
    load.mark("it flaps no more");
    cluster.mirrored();
    let log = cluster.proxy.log();
    let leaders: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("pair ") && l.contains("leader="))
        .filter_map(|l| l.split("leader=").nth(1)?.split(' ').next())
        .collect();
    let changes = leaders.windows(2).filter(|w| w[0] != w[1]).count();
    let returns = log.lines().filter(|l| l.contains("node is back") && l.contains(&addr)).count();
    eprintln!("{CYCLES} stops: {returns} returns, {changes} changes of leader");
    assert!(changes >= 2, "nothing happened: {log}");
    assert!(changes <= 2 * returns, "{changes} changes of leader, {returns} returns: {log}");
    assert!(returns <= CYCLES / 2, "taken back {returns} times in {CYCLES} stops: it is not held off");
    cluster.healed_and_complete(load);
}

/// Many workers, many clients, few keys: every acknowledged step is in, once, across every edge of
/// a pair.
#[test]
fn g5_increments_through_four_workers_are_exact_across_every_edge() {
    let shape = Shape::new(1, 1).proxy(&["--threads", "4", "--resync-rate", "3000"]);
    let mut cluster = Cluster::start(&shape);
    crate::support::cluster::fill(&mut cluster.client(), "bulk", 3000, 50);
    let mix =
        Mix { counting: 24, counters: 6, pace: Duration::from_millis(4), ..Mix::registers(seed("four workers"), 0, 0) };
    let load = Load::start(&cluster.proxy.addr(), mix);
    for round in 0..4 {
        load.wait_operations(2000);
        cluster.mirrored();
        let nodes = if round % 2 == 0 { &mut cluster.primaries } else { &mut cluster.backups };
        let addr = nodes[0].addr();
        load.mark(&format!("round {round}: {addr}"));
        if round < 2 {
            nodes[0].kill();
            load.wait_operations(1000);
            nodes[0].restart();
        } else {
            nodes[0].pause();
            cluster.wait_lost(&addr);
            let nodes = if round % 2 == 0 { &cluster.primaries } else { &cluster.backups };
            load.wait_operations(1000);
            nodes[0].resume();
        }
        load.wait_operations(500);
    }
    cluster.healed_and_complete(load);
}
