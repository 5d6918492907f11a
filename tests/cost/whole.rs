//! The whole proxy in this process, worker's shell and control plane included, over real memcached
//! servers: what it allocates.

use std::io::{Read, Write};
use std::net::TcpStream;

use resilver::config::{CommandLine, Host};
use tokio_util::sync::CancellationToken;

use crate::drive::Workload;
use crate::strace::has_ring;
use crate::support::port::Port;
use crate::support::{Client, DEADLINE, Memcached, wait_until};
use crate::{GET, SET, allocations, alone, live_bytes, skipped};

const REQUESTS: usize = 10_000;

/// Clients that are connected, have asked once, and wait: both ends of all of them are files of
/// this process, which may open 1,024.
const IDLE: usize = 400;

/// What one of them holds at most by `--io-uring`, bytes: of the allocator's, without its rounding
/// and the kernel's part.
const IDLE_BYTES: [(&str, usize); 2] = [("off", 760), ("auto", 420)];

/// Different bursts of a client.
const BURSTS: usize = 16;

/// Allocations of one request at most. Probes and ticks allocate by the clock and how much arrives
/// together depends on the scheduler, so these bounds are not exact. (In lock step the one
/// allocation of each write to a node is the flusher's list, `flush_all` in
/// `src/server/worker.rs`.)
const CEILINGS: [(Workload, f64); 4] = [
    (GET, 0.1),
    (Workload { name: "get, 8 clients pipelined by 8", clients: 8, pipeline: 8, ..GET }, 0.1),
    (Workload { name: "set, mirrored", mirrored: true, ..SET }, 0.2),
    (Workload { name: "set, mirrored, 8 clients by 8", mirrored: true, clients: 8, pipeline: 8, ..SET }, 0.1),
];

/// Connections in lock step: each writes its burst, then each reads its answers. They allocate
/// nothing once connected.
pub struct Clients {
    streams: Vec<TcpStream>,
    /// By client and number: requests, answers.
    bursts: Vec<Vec<(Vec<u8>, Vec<u8>)>>,
    buffer: Vec<u8>,
    pipeline: usize,
    turn: usize,
}

impl Clients {
    /// Connects, and stores what will be asked for.
    pub fn connect(addr: &str, workload: &Workload) -> Clients {
        let bursts: Vec<Vec<_>> =
            (0..workload.clients).map(|c| (0..BURSTS).map(|b| workload.burst(c, b)).collect()).collect();
        let mut client = Client::connect(addr);
        let value = "v".repeat(workload.value).into_bytes();
        for (c, b, r) in (0..workload.clients)
            .flat_map(|c| (0..BURSTS).flat_map(move |b| (0..workload.pipeline).map(move |r| (c, b, r))))
        {
            client.set(&workload.key(c, b, r, 0), &value).expect("stored");
        }
        let longest = bursts.iter().flatten().map(|(_, answers)| answers.len()).max().expect("a burst");
        let streams = (0..workload.clients).map(|_| connect(addr)).collect();
        Clients { streams, bursts, buffer: vec![0; longest], pipeline: workload.pipeline, turn: 0 }
    }

    /// This many requests, or a few more to fill the last burst; every answer is compared.
    pub fn run(&mut self, requests: usize) {
        for _ in 0..requests.div_ceil(self.pipeline * self.streams.len()) {
            self.turn += 1;
            let at = self.turn % BURSTS;
            for (stream, bursts) in self.streams.iter_mut().zip(&self.bursts) {
                stream.write_all(&bursts[at].0).expect("write");
            }
            for (stream, bursts) in self.streams.iter_mut().zip(&self.bursts) {
                let answers = &bursts[at].1;
                let buffer = &mut self.buffer[..answers.len()];
                stream.read_exact(buffer).expect("answers");
                assert!(buffer == answers.as_slice(), "answered {:?}", String::from_utf8_lossy(buffer));
            }
        }
    }
}

fn connect(addr: &str) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    stream
}

/// The proxy on threads of this process.
struct Inside {
    port: Port,
    shutdown: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
    _nodes: Vec<Memcached>,
}

impl Inside {
    fn start(mirrored: bool, io_uring: &str) -> Inside {
        let port = Port::reserve();
        let mut line = format!(
            "resilver -l 127.0.0.1 -p {} --threads 1 --timeout 10s --leader-timeout 20s --io-uring {io_uring}",
            port.number
        );
        let mut nodes = Vec::new();
        for flag in if mirrored { ["-s", "-s", "-b", "-b"].as_slice() } else { ["-s", "-s"].as_slice() } {
            nodes.push(Memcached::start(&[]));
            line += &format!(" {flag} {}", nodes[nodes.len() - 1].addr());
        }
        let mut plan = match CommandLine::parse(line.split(' '), &Host::this()) {
            Ok(CommandLine::Run(plan)) => plan,
            other => panic!("{line}: {other:?}"),
        };
        let listeners = resilver::daemon::bind(&plan).expect("a port of its own").pools.remove(0);
        let settings = plan.pools.remove(0);
        let shutdown = CancellationToken::new();
        let until = shutdown.clone();
        let thread = std::thread::spawn(move || {
            resilver::server::run(settings, listeners, until, None, || Ok(())).expect("the proxy");
        });
        if mirrored {
            let mut client = Client::connect(&port.addr());
            wait_until("every pair mirrored", DEADLINE, || {
                let lines = client.stat_lines("resync status").expect("resync status");
                lines.iter().any(|(name, value)| name == "mirrored" && value == "1")
            });
        }
        Inside { port, shutdown, thread: Some(thread), _nodes: nodes }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn allocations_of_the_proxy() {
    let _alone = alone();
    let mut broken = Vec::new();
    println!("allocations of a request in the whole proxy, bound:");
    for (workload, ceiling) in CEILINGS {
        let proxy = Inside::start(workload.mirrored, "auto");
        let mut clients = Clients::connect(&proxy.port.addr(), &workload);
        clients.run(2_000);
        let each = allocations(|| clients.run(REQUESTS)) as f64 / REQUESTS as f64;
        println!("  {:<32} {each:>7.3} {ceiling:>7.3}", workload.name);
        if each > ceiling {
            broken.push(format!("{}: {each:.3} instead of {ceiling:.3}", workload.name));
        }
    }
    assert!(
        broken.is_empty(),
        "a request in the whole proxy allocates more than `CEILINGS` in tests/cost/whole.rs say: {broken:#?}"
    );
}

#[test]
fn memory_of_an_idle_client() {
    let _alone = alone();
    for (io_uring, bound) in IDLE_BYTES {
        let proxy = Inside::start(false, io_uring);
        // Its worker has a ring, or none, once it answers.
        Client::connect(&proxy.port.addr()).command("version").expect("an answer");
        if io_uring == "auto" && !has_ring("self") {
            return skipped("memory of an idle client over io_uring", "the system has none");
        }
        let each = idle_client(&proxy);
        println!("bytes of an idle client with --io-uring {io_uring}, bound: {each} {bound}");
        assert!(each <= bound, "an idle client holds {each} bytes, more than `IDLE_BYTES` in tests/cost/whole.rs");
    }
}

fn idle_client(proxy: &Inside) -> usize {
    // What the worker holds for all of them together.
    let mut client = Client::connect(&proxy.port.addr());
    client.set("k", b"v").expect("stored");
    let mut streams = Vec::with_capacity(IDLE);
    let mut told = [0; 5];
    let before = live_bytes();
    for _ in 0..IDLE {
        let mut stream = connect(&proxy.port.addr());
        stream.write_all(b"get nothing\r\n").expect("write");
        stream.read_exact(&mut told).expect("an answer");
        assert_eq!(&told, b"END\r\n");
        streams.push(stream);
    }
    live_bytes().saturating_sub(before) / IDLE
}
