//! `flush_all` during a resync, among writes, and across a fail-over.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::cluster::{count_filled, fill};
use crate::support::{Client, Cluster, Shape, Stored, wait_until};

use super::{lose_and_return, refilling};

#[test]
fn g2_flush_all_during_a_resync_stays_done() {
    let mut cluster = refilling(3000, &[], |client| fill(client, "old", 9000, 50));
    let mut client = cluster.client();
    assert_eq!(client.raw_command("flush_all").as_deref(), Ok("OK"));
    assert_eq!(count_filled(&mut client, "old", 9000, 50), 0, "right after the flush");
    fill(&mut client, "new", 2000, 50);
    cluster.mirrored();
    let ring = cluster.assert_rings_equal();
    assert_eq!(ring.len(), 2000, "items flushed came back");
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "old", 9000, 50), 0, "flushed items came back");
    assert_eq!(count_filled(&mut client, "new", 2000, 50), 2000);
}

/// Sets and flushes at the same time, mirrored and in mid-resync: what was acknowledged before is
/// gone, what was begun after is there, what overlapped is on both rings or on neither.
#[test]
fn g2_g3_flushes_among_writes_leave_both_rings_equal() {
    let mut cluster = Cluster::start(&Shape::new(2, 1).proxy(&["--resync-rate", "2000"]));
    fill(&mut cluster.client(), "old", 4000, 50);
    let begun = Instant::now();
    let stop = AtomicBool::new(false);
    // key -> (begun, acknowledged)
    let written: Mutex<Vec<(String, Duration, Duration)>> = Mutex::default();
    let addr = cluster.proxy.addr();
    let mut flushes = Vec::new();
    std::thread::scope(|scope| {
        for w in 0..4 {
            let (addr, stop, written) = (&addr, &stop, &written);
            scope.spawn(move || {
                let mut client = Client::connect(addr);
                let mut mine = Vec::new();
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let key = format!("w{w}:{n}");
                    let from = begun.elapsed();
                    assert_eq!(client.set(&key, key.as_bytes()), Ok(Stored::Stored), "set {key}");
                    mine.push((key, from, begun.elapsed()));
                    std::thread::sleep(Duration::from_millis(1));
                }
                written.lock().expect("written").extend(mine);
            });
        }
        let _stop = StopOnDrop(&stop);
        let mut client = cluster.client();
        for round in 0..6 {
            if round == 3 {
                lose_and_return(&mut cluster);
            }
            std::thread::sleep(Duration::from_millis(150));
            let from = begun.elapsed();
            assert_eq!(client.raw_command("flush_all").as_deref(), Ok("OK"), "flush_all");
            flushes.push((from, begun.elapsed()));
        }
        cluster.mirrored();
        // Writes go on after the last flush.
        std::thread::sleep(Duration::from_millis(100));
    });
    cluster.mirrored();
    let ring = cluster.assert_rings_equal();
    let (last_from, last_to) = *flushes.last().expect("six flushes");
    let written = written.into_inner().expect("written");
    let (mut gone, mut there) = (0, 0);
    for (key, from, to) in &written {
        let present = ring.contains_key(key.as_bytes());
        assert!(*to >= last_from || !present, "{key} survived a flush_all");
        assert!(*from <= last_to || present, "{key} was set after the last flush_all and is lost");
        if present { there += 1 } else { gone += 1 }
    }
    eprintln!("{} keys: {gone} flushed, {there} there", written.len());
    assert!(gone > 0 && there > 0);
    assert_eq!(count_filled(&mut cluster.client(), "old", 4000, 50), 0);
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A delayed flush is a promise that outlives a node.
#[test]
fn g2_a_delayed_flush_comes_true_across_a_failover() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    fill(&mut client, "old", 500, 50);
    let asked = Instant::now();
    assert_eq!(client.raw_command("flush_all 3").as_deref(), Ok("OK"));
    lose_and_return(&mut cluster);
    cluster.mirrored();
    if asked.elapsed() < Duration::from_millis(1500) {
        assert_eq!(count_filled(&mut client, "old", 500, 50), 500, "flushed too early");
    }
    wait_until("the delayed flush", crate::support::DEADLINE, || count_filled(&mut client, "old", 500, 50) == 0);
    fill(&mut client, "new", 500, 50);
    cluster.mirrored();
    assert_eq!(cluster.assert_rings_equal().len(), 500);
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "old", 500, 50), 0);
    assert_eq!(count_filled(&mut client, "new", 500, 50), 500);
}
