//! A machine with too much to do: servers that are late together are waited for, and one that fails
//! in the midst of it is found.

use std::io::{Seek, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::{Cluster, Load, Memcached, Mix, Shape, Stored, seed};

/// Busy processes, and threads that take memory and write to the disk, until it is dropped.
struct Burners {
    processes: Vec<Child>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Burners {
    fn start(processes: usize) -> Burners {
        let burner = |_| {
            let mut sh = Command::new("sh");
            sh.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            sh.spawn().expect("a burner")
        };
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |work: fn()| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    work();
                }
            })
        };
        let threads = vec![thread(use_memory), thread(use_disk)];
        Burners { processes: (0..processes).map(burner).collect(), threads, stop }
    }
}

fn use_memory() {
    let mut block = vec![0_u8; 64 << 20];
    block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(block);
}

fn use_disk() {
    let mut file = tempfile::tempfile().expect("a file");
    for _ in 0..8 {
        file.write_all(&[7; 1 << 20]).expect("written");
        file.sync_data().expect("on the disk");
    }
    file.rewind().expect("rewound");
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn all(cluster: &Cluster) -> impl Iterator<Item = &Memcached> {
    cluster.primaries.iter().chain(&cluster.backups)
}

fn stand_still(cluster: &Cluster, ms: u64) {
    all(cluster).for_each(Memcached::pause);
    std::thread::sleep(Duration::from_millis(ms));
    all(cluster).for_each(Memcached::resume);
}

fn assert_nobody_lost(cluster: &Cluster, when: &str) {
    let log = cluster.proxy.log();
    assert!(!log.contains("node lost"), "{when}: {log}");
}

/// Of that no server dies, and no client gets an error: they wait.
#[test]
fn g4_servers_that_all_stand_still_together_are_not_given_up() {
    for (primaries, backups) in [(1, 1), (2, 1)] {
        let cluster = Cluster::start(&Shape::new(primaries, backups));
        let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("all stand still")));
        for ms in [300, 600, 1000] {
            load.wait_operations(500);
            load.mark(&format!("all stand still for {ms} ms"));
            stand_still(&cluster, ms);
        }
        load.wait_operations(500);
        assert_nobody_lost(&cluster, &format!("{primaries}+{backups}"));
        assert!(cluster.proxy.stat("late_together") > 0, "they were not late: nothing is tested");
        assert_eq!(cluster.proxy.stat("late_given_up"), 0);
        assert!(cluster.proxy.log().contains("they are waited for longer"), "{}", cluster.proxy.log());
        cluster.healed_and_complete(load);
    }
}

/// The same with nobody who asks: probes judge alike.
#[test]
fn g4_idle_servers_that_all_stand_still_together_are_not_given_up() {
    let cluster = Cluster::start(&Shape::new(2, 1));
    for ms in [600, 1000] {
        stand_still(&cluster, ms);
        cluster.mirrored();
    }
    assert_nobody_lost(&cluster, "idle");
}

/// A flush that is in doubt is a loss: so it is waited for as well, at once and where it is to be
/// remembered.
#[test]
fn g4_a_flush_while_all_stand_still_loses_nobody() {
    let cluster = Cluster::start(&Shape::new(2, 1));
    let mut client = cluster.client();
    for command in ["flush_all", "flush_all 3600"] {
        assert_eq!(client.set("k", b"v"), Ok(Stored::Stored));
        all(&cluster).for_each(Memcached::pause);
        client.send(format!("{command}\r\n").as_bytes()).expect("sent");
        std::thread::sleep(Duration::from_millis(900));
        all(&cluster).for_each(Memcached::resume);
        assert_eq!(client.text().as_deref(), Ok("OK"), "{command}");
        let left = client.get("k").expect("an answer").is_some();
        assert_eq!(left, command != "flush_all", "{command}");
    }
    assert_nobody_lost(&cluster, "flushed");
    cluster.mirrored();
}

/// One that hangs is not waited for by a flush any longer than by others.
#[test]
fn g4_a_flush_while_one_hangs_goes_on_without_it() {
    let cluster = Cluster::start(&Shape::new(2, 1).proxy(&["--leader-timeout", "60s"]));
    let mut client = cluster.client();
    assert_eq!(client.set("k", b"v"), Ok(Stored::Stored));
    cluster.primaries[1].pause();
    assert_eq!(client.raw_command("flush_all").as_deref(), Ok("OK"));
    assert_eq!(client.get("k"), Ok(None));
    assert_eq!(cluster.proxy.log().matches("node lost").count(), 1, "{}", cluster.proxy.log());
    cluster.primaries[1].resume();
    cluster.mirrored();
    assert_eq!(client.get("k"), Ok(None));
}

/// Many busy processes beside it: nobody is lost before one really fails, and that one is found,
/// twice.
#[test]
fn g4_on_an_overloaded_machine_only_what_fails_is_lost() {
    let mut cluster = Cluster::start(&Shape::new(2, 1));
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("overload")));
    load.wait_operations(500);
    let burners = Burners::start(20);
    load.mark("burners");
    load.run_for(Duration::from_secs(3));
    load.wait_operations(200);
    assert_nobody_lost(&cluster, "with 20 burners");
    let hung = cluster.backups[0].addr();
    load.mark("the backup hangs");
    cluster.backups[0].pause();
    cluster.wait_lost(&hung);
    load.wait_operations(200);
    cluster.backups[0].resume();
    cluster.mirrored();
    let dead = cluster.primaries[0].addr();
    load.mark("a primary dies");
    cluster.primaries[0].kill();
    cluster.wait_lost(&dead);
    load.wait_operations(200);
    let lost = cluster.proxy.log().matches("node lost").count();
    assert_eq!(lost, 2, "{}", cluster.proxy.log());
    drop(burners);
    cluster.primaries[0].restart();
    cluster.healed_and_complete(load);
}

/// One that hangs while all others have just stood still, too: nobody waits for it for long after
/// they are back.
#[test]
fn g4_one_that_goes_on_hanging_when_the_others_wake_is_found() {
    let cluster = Cluster::start(&Shape::new(2, 1));
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("one goes on hanging")));
    load.wait_operations(500);
    load.mark("all stand still");
    all(&cluster).for_each(Memcached::pause);
    std::thread::sleep(Duration::from_millis(600));
    load.mark("all but one go on");
    let hung = &cluster.primaries[1];
    all(&cluster).filter(|node| node.addr() != hung.addr()).for_each(Memcached::resume);
    cluster.wait_lost(&hung.addr());
    load.wait_operations(500);
    assert_eq!(cluster.proxy.log().matches("node lost").count(), 1, "{}", cluster.proxy.log());
    assert!(cluster.proxy.stat("late_given_up") > 0);
    hung.resume();
    cluster.healed_and_complete(load);
}
