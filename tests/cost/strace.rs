//! System calls, counted by strace in the real proxy over real memcached servers. Clients work in
//! lock step: what is read and written in one call depends little on the scheduler then.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};

use crate::drive::{Request, Workload};
use crate::support::memcached::signal;
use crate::support::{Cluster, DEADLINE, Proxy, Shape, wait_until};
use crate::whole::Clients;
use crate::{GET, SET, alone, skipped};

const REQUESTS: usize = 2_000;

/// Calls that move bytes, and all calls, of one request as measured last, on epoll and on io_uring
/// (where one call moves the bytes of all clients); [`MARGIN`] is granted. (One client's `get` over
/// io_uring is 4.1 to 5.6 calls, the same binary minutes apart: a send that is done before the wait
/// begins ends it at once.)
const CEILINGS: [(Workload, [f64; 2], [f64; 2]); 5] = [
    (GET, [4.0, 6.4], [5.6, 5.7]),
    (Workload { name: "get, 8 clients", clients: 8, ..GET }, [2.5, 2.9], [0.57, 0.58]),
    (Workload { name: "get, pipelined by 16", pipeline: 16, ..GET }, [0.39, 0.6], [0.28, 0.28]),
    (Workload { name: "set, mirrored", mirrored: true, request: Request::Set, ..GET }, [6.0, 10.6], [7.3, 7.4]),
    (Workload { name: "set, mirrored, 8 clients", mirrored: true, clients: 8, ..SET }, [3.0, 3.6], [0.87, 0.88]),
];

/// What comes together in one call depends a little on the scheduler.
const MARGIN: f64 = 1.3;

/// A machine busy with something else takes the clients out of step, so what is over the bound is
/// measured again: the least counts.
const ATTEMPTS: usize = 4;

/// strace, attached to every thread of a process.
struct Strace {
    child: Child,
    out: tempfile::NamedTempFile,
}

impl Strace {
    fn attach(pid: u32) -> Result<Strace, String> {
        let out = tempfile::NamedTempFile::new().expect("temporary file");
        let mut child = Command::new("strace")
            .args(["-f", "-c", "-p", &pid.to_string(), "-o"])
            .arg(out.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("strace is not installed (scripts/need-meters): {error}"))?;
        let tracer = format!("TracerPid:\t{}\n", child.id());
        let traced = |task: std::io::Result<fs::DirEntry>| {
            let status = task.and_then(|t| fs::read_to_string(t.path().join("status"))).unwrap_or_default();
            status.contains(&tracer)
        };
        let mut ended = false;
        wait_until("strace to attach", DEADLINE, || {
            ended = child.try_wait().expect("wait").is_some();
            ended || fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|mut all| all.all(traced))
        });
        if ended {
            let output = child.wait_with_output().expect("strace's words");
            return Err(format!("strace may not attach: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(Strace { child, out })
    }

    /// Calls by name, since it was attached.
    fn detach(mut self) -> BTreeMap<String, u64> {
        signal(self.child.id(), "INT");
        self.child.wait().expect("reap strace");
        let text = fs::read_to_string(self.out.path()).expect("strace's table");
        // % time, seconds, usecs/call, calls, errors (or nothing), name
        let row = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let name = words.last().filter(|name| **name != "total")?;
            Some((name.to_string(), words.get(3)?.parse().ok()?))
        };
        let calls: BTreeMap<String, u64> = text.lines().filter_map(row).collect();
        assert!(!calls.is_empty(), "strace's table was not understood: {text}");
        calls
    }
}

fn moves_bytes(name: &str) -> bool {
    ["read", "write", "readv", "writev", "recvfrom", "sendto", "recvmsg", "sendmsg", "io_uring_enter"].contains(&name)
}

fn within(now: [f64; 2], measured: [f64; 2]) -> bool {
    now[0] <= measured[0] * MARGIN && now[1] <= measured[1] * MARGIN
}

#[test]
fn system_calls_of_the_proxy_over_epoll() {
    count("off", &[], &CEILINGS.map(|(workload, over_epoll, _)| (workload, over_epoll)));
}

#[test]
fn system_calls_of_the_proxy_over_io_uring() {
    count("auto", &[], &CEILINGS.map(|(workload, _, over_ring)| (workload, over_ring)));
}

/// `--coordinate` costs the active proxy none.
#[test]
fn system_calls_of_an_active_proxy_are_those_of_one_by_itself() {
    for (workload, over_epoll, over_ring) in [1, 4].map(|at| CEILINGS[at]) {
        for (io_uring, measured) in [("off", over_epoll), ("auto", over_ring)] {
            let dir = tempfile::tempdir().expect("temporary folder");
            let fleet = format!("file:{}", dir.path().join("fleet").display());
            // No heartbeat in between.
            count(io_uring, &["--coordinate", &fleet, "--lease", "60s"], &[(workload, measured)]);
        }
    }
}

/// Whether a process (by its number, or `self`) has an io_uring.
pub fn has_ring(pid: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("the proxy's files");
    files.flatten().any(|f| fs::read_link(f.path()).is_ok_and(|to| to.to_string_lossy().contains("io_uring")))
}

fn count(io_uring: &str, more: &[&str], ceilings: &[(Workload, [f64; 2])]) {
    let _alone = alone();
    let mut broken = Vec::new();
    println!("system calls of a request that move bytes, of all kinds, with --io-uring {io_uring} {more:?}:");
    for &(workload, measured) in ceilings {
        // A fleet has some.
        let backups = if workload.mirrored || !more.is_empty() { 2 } else { 0 };
        // No probe in between, and nobody is late, however slow tracing is.
        let args = ["--threads", "1", "--probe-interval", "60s", "--timeout", "10s", "--leader-timeout", "20s"];
        let args = [&args[..], &["--io-uring", io_uring], more].concat();
        let cluster = Cluster::start(&Shape::new(2, backups).proxy(&args));
        let on_ring = has_ring(&cluster.proxy.pid().to_string());
        if io_uring == "auto" && !on_ring {
            return skipped("system calls over io_uring", "the system has none");
        }
        assert_eq!(on_ring, io_uring == "auto", "--io-uring {io_uring}");
        let mut clients = Clients::connect(&cluster.proxy.addr(), &workload);
        clients.run(200);
        let (least, list) = match least(&cluster.proxy, &mut clients, measured) {
            Ok(counted) => counted,
            Err(why) => return skipped("system calls per request", &why),
        };
        println!("  {:<32} {:>6.2} {:>6.2}  {list}", workload.name, least[0], least[1]);
        if !within(least, measured) {
            broken.push(format!("{}: {least:.2?} instead of {measured:?} ({})", workload.name, list.trim_start()));
        }
    }
    assert!(
        broken.is_empty(),
        "a request takes over {MARGIN} times the system calls that `CEILINGS` in tests/cost/strace.rs say (moving bytes, all): {broken:#?}"
    );
}

/// The least of some times that are counted, and of what calls it is made; or why nothing can be.
fn least(proxy: &Proxy, clients: &mut Clients, measured: [f64; 2]) -> Result<([f64; 2], String), String> {
    let mut least = [f64::MAX; 2];
    let mut list = String::new();
    for _ in 0..ATTEMPTS {
        let strace = Strace::attach(proxy.pid())?;
        clients.run(REQUESTS);
        let calls = strace.detach();
        let each = |n: u64| n as f64 / REQUESTS as f64;
        let moving = calls.iter().filter(|(name, _)| moves_bytes(name)).map(|(_, n)| n).sum();
        let now = [each(moving), each(calls.values().sum())];
        if now[1] < least[1] {
            list = calls.iter().map(|(name, &n)| format!(" {name} {:.3}", each(n))).collect();
        }
        least = [least[0].min(now[0]), least[1].min(now[1])];
        if within(least, measured) {
            break;
        }
    }
    Ok((least, list))
}

/// The same of a standby, which passes requests on to the active proxy: two sockets a client, on
/// epoll whatever there is.
const PASSED_ON: [(Workload, [f64; 2]); 3] = [
    (GET, [6.0, 8.0]),
    (Workload { name: "get, pipelined by 16", pipeline: 16, ..GET }, [0.40, 0.53]),
    (Workload { name: "set, mirrored", mirrored: true, request: Request::Set, ..GET }, [6.0, 8.0]),
];

#[test]
fn system_calls_of_a_request_that_is_passed_on() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("temporary folder");
    let fleet = format!("file:{}", dir.path().join("fleet").display());
    // No look at the record in between.
    let args = ["--threads", "1", "--probe-interval", "60s", "--timeout", "10s", "--leader-timeout", "20s"];
    let args = [&args[..], &["--coordinate", &fleet, "--lease", "60s"]].concat();
    let cluster = Cluster::start(&Shape::new(2, 2).proxy(&args));
    let standby = Proxy::start(&cluster.proxy.args);
    wait_until("the standby reaches the active proxy", DEADLINE, || {
        let lines = standby.client().stats("proxy").expect("stats proxy");
        lines.iter().any(|(name, value)| name == "proxy:ready" && value == "1")
    });
    let mut broken = Vec::new();
    println!("system calls of a standby for a request that it passes on, that move bytes, of all kinds:");
    for (workload, measured) in PASSED_ON {
        let mut clients = Clients::connect(&standby.addr(), &workload);
        clients.run(200);
        let (least, list) = match least(&standby, &mut clients, measured) {
            Ok(counted) => counted,
            Err(why) => return skipped("system calls of a request that is passed on", &why),
        };
        println!("  {:<32} {:>6.2} {:>6.2}  {list}", workload.name, least[0], least[1]);
        if !within(least, measured) {
            broken.push(format!("{}: {least:.2?} instead of {measured:?} ({})", workload.name, list.trim_start()));
        }
    }
    assert!(
        broken.is_empty(),
        "passing a request on takes over {MARGIN} times the system calls that `PASSED_ON` in tests/cost/strace.rs say: {broken:#?}"
    );
}

/// All calls of the proxy in a second in which nobody asks for anything and no probe is due.
const CALLS_IN_PEACE: u64 = 10;

#[test]
fn a_proxy_that_has_nothing_to_do_sleeps() {
    let _alone = alone();
    let args = ["--threads", "2", "--probe-interval", "60s"];
    let cluster = Cluster::start(&Shape::new(2, 2).proxy(&args));
    let mut clients = Clients::connect(&cluster.proxy.addr(), &SET);
    clients.run(200);
    let mut seen = BTreeMap::new();
    for _ in 0..ATTEMPTS {
        let strace = match Strace::attach(cluster.proxy.pid()) {
            Ok(strace) => strace,
            Err(why) => return skipped("system calls in peace", &why),
        };
        std::thread::sleep(std::time::Duration::from_secs(1));
        seen = strace.detach();
        if seen.values().sum::<u64>() <= CALLS_IN_PEACE {
            println!("system calls in a second of peace: {seen:?}");
            return;
        }
    }
    panic!("over {CALLS_IN_PEACE} system calls in a second without work: {seen:?}");
}
