//! The hosts that the nodes run on, and the connections to them: what is on its way, what waits in
//! a socket, what breaks.
//!
//! A connection is an in-memory stream, of which a small task holds the node's end: it takes
//! commands off it, executes each at a moment of chance's choosing, and answers at another. A hung
//! node's tasks stand still, while bytes still go into the streams; what a proxy wrote before it
//! gave a connection up, or died, is executed all the same, sooner or later.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::duplex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::backend::{Addresses, Dial, NodeStream, Resolve, at_present_address};
use crate::ids::{AddressNumber, NodeId};

use super::late;
use super::node::{Clock, Node};
use super::trace::note;

mod serving;

use serving::Serving;

/// What a stream holds each way before its writer must wait, bytes.
const SOCKET: usize = 64 * 1024;
/// How much longer, in milliseconds, a connection may wait at a node that wakes, unless the host is
/// set otherwise.
const WAKING_MS: u64 = 600;
/// How long a proxy may not notice that a connection broke, in milliseconds.
const NEWS_MS: u64 = 12;
/// Commands that all hosts execute without any time going by.
const AT_ONCE: u64 = 10_000;
/// How a node's answers come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lag {
    /// One of so many steps is delayed.
    pub(super) one_in: u32,
    /// How many milliseconds such a step is delayed at most.
    pub(super) most_ms: u64,
}

/// A host, and the process on it.
pub(super) struct Host {
    pub(super) node: Node,
    /// Counts the processes; connections belong to one.
    life: u32,
    pub(super) up: bool,
    /// SIGSTOP: nothing is executed, connects succeed.
    pub(super) hung: bool,
    /// Nothing gets through in either direction.
    pub(super) cut_off: bool,
    /// The first address that is open: by earlier ones nothing gets through in either direction.
    open_from: u8,
    pub(super) lag: Lag,
    pub(super) waking_ms: u64,
    /// Since when a worker's request lies there while it hangs.
    pub(super) owes_since: Option<Instant>,
    clock: Clock,
}

impl Host {
    fn new(begun: Instant, lag: Lag, clock: Clock) -> Host {
        let node = Node::new(begun, clock);
        Host {
            node,
            life: 0,
            up: true,
            hung: false,
            cut_off: false,
            open_from: 0,
            lag,
            waking_ms: WAKING_MS,
            owes_since: None,
            clock,
        }
    }
}

/// How a connection ended before its peers closed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    No,
    /// Nothing that is unread is executed any more, and the proxy sees the connection break.
    ByNode,
    /// The proxy is dead: nothing more comes from it, and what had come is executed.
    ByProxy,
}

struct Conn {
    host: usize,
    /// Which of the host's addresses was dialled.
    way: u8,
    life: u32,
    proxy: u32,
    machine: usize,
    broken: Broken,
    open: bool,
    /// Its proxy's kernel has given it up, unheard by the node.
    lost: bool,
    /// Answers that wait in the host's kernel for their way to be open.
    backlog: Vec<u8>,
    /// A worker's, and not the control plane's.
    of_worker: bool,
}

/// Whose answers the proxy does not take for now, because it is late itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unheard {
    Nothing,
    All,
    Control,
}

/// What does not come through between a proxy's machine and a host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Way {
    /// What the proxy sends.
    There,
    /// What the host answers.
    Back,
    /// What the proxy was about to send when it was stopped.
    Unsent,
}

/// All hosts and connections.
pub(super) struct Net {
    inner: Mutex<Inner>,
    /// Told at every change of a host or connection.
    changed: Notify,
}

pub(super) struct Inner {
    hosts: Vec<Host>,
    /// Which host each node's name leads to, by which of its addresses.
    leads: Vec<(usize, u8)>,
    /// Look-ups of each name, in a row, that found nothing.
    unfound: Vec<u32>,
    conns: Vec<Conn>,
    unheard: Unheard,
    rng: SmallRng,
    begun: Instant,
    dead_proxies: BTreeSet<u32>,
    /// Between which machine and which host.
    closed: BTreeSet<(usize, usize, Way)>,
    /// How long a machine's kernel waits for a host's, where each proxy has a machine of its own.
    undelivered: Option<Duration>,
    /// The generations that hosts were marked with, and when each was first.
    marked: BTreeMap<u64, Instant>,
    /// Commands that hosts have executed for those that wait for their answers.
    executed: u64,
    /// How many of them were executed at this moment of virtual time.
    at_once: (Instant, u64),
}

impl Net {
    pub(super) fn new(nodes: usize, lag: Lag, rng: &mut SmallRng) -> Arc<Net> {
        let begun = Instant::now();
        let hosts = (0..nodes).map(|_| {
            let skew_ms = rng.random_range(-30_000..30_000);
            Host::new(begun, lag, Clock { skew_ms, late_us: 0 })
        });
        let hosts = hosts.collect();
        let leads = (0..nodes).map(|host| (host, 0)).collect();
        let rng = SmallRng::seed_from_u64(rng.random());
        let inner = Inner {
            hosts,
            leads,
            unfound: vec![0; nodes],
            conns: Vec::new(),
            unheard: Unheard::Nothing,
            rng,
            begun,
            dead_proxies: BTreeSet::new(),
            closed: BTreeSet::new(),
            undelivered: None,
            marked: BTreeMap::new(),
            executed: 0,
            at_once: (begun, 0),
        };
        Arc::new(Net { inner: Mutex::new(inner), changed: Notify::new() })
    }

    /// Processes read their clocks once a second from now on, and a little later each time.
    pub(super) fn let_clocks_drift(&self, rng: &mut SmallRng) {
        let inner = &mut *self.lock();
        for host in &mut inner.hosts {
            host.clock.late_us = rng.random_range(100..2_500);
            host.node = Node::new(inner.begun, host.clock);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many commands hosts have executed so far.
    pub(super) fn executed(&self) -> u64 {
        self.lock().executed
    }

    /// Changes a host, and tells its connections.
    pub(super) fn change(&self, node: usize, what: &str, change: impl FnOnce(&mut Host)) {
        note(|| format!("FAULT  node {node}: {what}"));
        change(self.lock().host(node));
        self.changed.notify_waiters();
    }

    /// SIGKILL: connections break, the memory is gone, connects are refused.
    pub(super) fn kill(&self, node: usize) {
        let begun = self.lock().begun;
        self.change(node, "killed", |host| {
            host.up = false;
            host.hung = false;
            host.life += 1;
            host.node = Node::new(begun, host.clock);
        });
    }

    /// A new process, empty.
    pub(super) fn start(&self, node: usize) {
        let begun = self.lock().begun;
        self.change(node, "started", |host| {
            host.up = true;
            host.node = Node::new(begun, host.clock);
        });
    }

    /// The node's name leads elsewhere from now on; the host that it led to goes on as it is.
    pub(super) fn lead(&self, node: usize, whither: Whither) {
        let inner = &mut *self.lock();
        let (host, way) = inner.leads[node];
        let to = match whither {
            Whither::SameHost => (host, way + 1),
            Whither::EmptyHost => {
                let (begun, lag, skew_ms) =
                    (inner.begun, inner.hosts[host].lag, inner.rng.random_range(-30_000..30_000));
                inner.hosts.push(Host::new(begun, lag, Clock { skew_ms, late_us: 0 }));
                (inner.hosts.len() - 1, 0)
            }
            Whither::Back(earlier) => (earlier, way + 1),
        };
        note(|| format!("FAULT  node {node}: its name leads to host {} by {}", to.0, address(to)));
        inner.leads[node] = to;
    }

    /// Sets whose answers are taken from now on.
    pub(super) fn hear(&self, unheard: Unheard) {
        note(|| format!("FAULT  unheard: {unheard:?}"));
        self.lock().unheard = unheard;
        self.changed.notify_waiters();
    }

    /// Closes the addresses that the node's host has so far, in both directions; what was sent
    /// waits in the sockets.
    pub(super) fn block_ways(&self, node: usize) {
        note(|| format!("FAULT  node {node}: is out of reach by its present address"));
        let inner = &mut *self.lock();
        let (host, way) = inner.leads[node];
        inner.hosts[host].open_from = way + 1;
    }

    /// The address that the node's name leads to.
    pub(super) fn address(&self, node: usize) -> SocketAddr {
        address(self.lock().leads[node])
    }

    /// Where the node's name leads.
    pub(super) fn leads(&self, node: usize) -> usize {
        self.lock().leads[node].0
    }

    /// Hosts that hang or are out of reach go on, also those that nodes had earlier.
    pub(super) fn wake_all(&self) {
        note(|| "FAULT  all hosts are well".to_owned());
        for host in &mut self.lock().hosts {
            (host.hung, host.cut_off, host.open_from) = (false, false, 0);
        }
        self.changed.notify_waiters();
    }

    /// Breaks connections to a node: each with one chance in `one_in`.
    pub(super) fn reset(&self, node: usize, one_in: u32) {
        {
            let inner = &mut *self.lock();
            let (host, _) = inner.leads[node];
            for (id, conn) in inner.conns.iter_mut().enumerate() {
                if conn.host == host && conn.open && conn.broken == Broken::No && inner.rng.random_ratio(1, one_in) {
                    conn.broken = Broken::ByNode;
                    note(|| format!("FAULT  node {node}: connection {id} is reset"));
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// Everything of a proxy ends at once, but what it wrote is on its way.
    pub(super) fn kill_proxy(&self, proxy: u32) {
        {
            let mut inner = self.lock();
            inner.dead_proxies.insert(proxy);
            let Inner { conns, closed, .. } = &mut *inner;
            for conn in conns.iter_mut().filter(|c| c.proxy == proxy && c.broken == Broken::No) {
                conn.broken = Broken::ByProxy;
                // What the host has not taken never comes.
                let ways = [Way::There, Way::Unsent];
                conn.lost |= ways.iter().any(|way| closed.contains(&(conn.machine, conn.host, *way)));
            }
        }
        self.changed.notify_waiters();
    }

    /// There are several proxies, each on a machine of its own. What a host has not taken after so
    /// long is dropped.
    pub(super) fn have_machines(&self, undelivered: Duration) {
        self.lock().undelivered = Some(undelivered);
    }

    /// The highest generation that a host was marked with.
    pub(super) fn highest_mark(&self) -> u64 {
        self.lock().marked.last_key_value().map_or(0, |(generation, _)| *generation)
    }

    /// When a host was first marked with a later generation than that.
    pub(super) fn outdone(&self, generation: u64) -> Option<Instant> {
        self.lock().marked.range(generation + 1..).map(|(_, at)| *at).min()
    }

    /// From now on this way is closed, or open again.
    pub(super) fn close(&self, machine: usize, host: usize, way: Way, closed: bool) {
        let between = (machine, host, way);
        let inner = &mut *self.lock();
        let changed = if closed { inner.closed.insert(between) } else { inner.closed.remove(&between) };
        if changed {
            note(|| format!("FAULT  machine {machine} and host {host}: {way:?} closed: {closed}"));
        }
        self.changed.notify_waiters();
    }

    /// Waits until a condition on a connection's world holds.
    async fn until<T>(&self, mut look: impl FnMut(&mut Inner) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            changed.await;
        }
    }

    /// A delay of chance's choosing.
    async fn pause(&self, host: usize) {
        let ms = {
            let inner = &mut *self.lock();
            let lag = inner.hosts[host].lag;
            if lag.most_ms > 0 && inner.rng.random_ratio(1, lag.one_in) {
                inner.rng.random_range(1..=lag.most_ms)
            } else {
                0
            }
        };
        if ms > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
    }

    /// Commands take time, if there are many: a task that repeats them without end would otherwise
    /// stop the world's clock, and go unnoticed.
    async fn take_time(&self) {
        let now = Instant::now();
        let crowded = {
            let inner = &mut *self.lock();
            inner.executed += 1;
            let (at, count) = &mut inner.at_once;
            (*at, *count) = if *at == now { (now, *count + 1) } else { (now, 1) };
            *count > AT_ONCE
        };
        if crowded {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Inner {
    /// Where the node's name leads.
    pub(super) fn host(&mut self, node: usize) -> &mut Host {
        &mut self.hosts[self.leads[node].0]
    }

    /// Whether nothing gets through to the host by that address.
    fn is_cut_off(&self, host: usize, way: u8) -> bool {
        let host = &self.hosts[host];
        host.cut_off || way < host.open_from
    }

    /// A dump ends half-way: others may begin, if it is still the same process.
    fn end_dump(&mut self, id: usize) {
        let conn = &self.conns[id];
        if conn.life == self.hosts[conn.host].life {
            self.hosts[conn.host].node.dumping = false;
        }
    }

    fn is_closed(&self, id: usize, way: Way) -> bool {
        let conn = &self.conns[id];
        self.closed.contains(&(conn.machine, conn.host, way))
    }

    /// Answers that waited for their way to be open may come now.
    fn has_backlog(&self, id: usize) -> bool {
        !self.conns[id].backlog.is_empty() && !self.is_closed(id, Way::Back)
    }

    /// Whether the node executes nothing of the connection for now.
    fn is_stopped(&self, id: usize) -> bool {
        let conn = &self.conns[id];
        let stands = self.hosts[conn.host].hung || self.is_cut_off(conn.host, conn.way);
        stands || self.is_closed(id, Way::There) || self.is_closed(id, Way::Unsent)
    }

    /// `stats conns`.
    fn list_conns(&self, asks: usize) -> Vec<u8> {
        let host = self.conns[asks].host;
        let life = self.hosts[host].life;
        let there = self.conns.iter().enumerate().filter(|(_, c)| c.open && c.host == host && c.life == life);
        let lines = there.map(|(id, conn)| {
            let state = if id == asks { "conn_parse_cmd" } else { "conn_read" };
            format!("STAT {id}:addr tcp:10.1.0.{}:{id}\r\nSTAT {id}:state {state}\r\n", conn.machine)
        });
        (lines.collect::<String>() + "END\r\n").into_bytes()
    }

    fn is_unheard(&self, id: usize) -> bool {
        match self.unheard {
            Unheard::Nothing => false,
            Unheard::All => true,
            Unheard::Control => !self.conns[id].of_worker,
        }
    }

    /// `true` = gone: nothing of the connection is executed any more.
    fn is_over(&self, id: usize) -> bool {
        let conn = &self.conns[id];
        conn.broken == Broken::ByNode || conn.life != self.hosts[conn.host].life
    }
}

/// Where a name leads to next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whither {
    /// One with nothing on it.
    EmptyHost,
    /// One that it led to before, which holds what it held then.
    Back(usize),
    /// Another address of the same one.
    SameHost,
}

fn address((host, way): (usize, u8)) -> SocketAddr {
    (Ipv4Addr::new(10, way, 0, host as u8), 11211).into()
}

pub(super) fn host_at(address: SocketAddr) -> usize {
    host_and_way(address).0
}

fn host_and_way(address: SocketAddr) -> (usize, u8) {
    let IpAddr::V4(ip) = address.ip() else { unreachable!("hosts have IPv4 addresses") };
    let [_, way, _, host] = ip.octets();
    (usize::from(host), way)
}

/// The name server: it may fail, or list nothing, twice in a row.
pub(super) struct SimResolver(pub(super) Arc<Net>);

impl Resolve for SimResolver {
    fn resolve(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let node: usize = name.trim_start_matches("node").parse().expect("a node's name");
        let net = self.0.clone();
        async move {
            let inner = &mut *net.lock();
            let at = address(inner.leads[node]);
            if inner.unfound[node] < 2 && inner.rng.random_ratio(1, 4) {
                inner.unfound[node] += 1;
                let listed_none = inner.rng.random();
                return if listed_none { Ok(vec![]) } else { Err(io::Error::other("no answer")) };
            }
            inner.unfound[node] = 0;
            Ok(vec![at])
        }
        .boxed()
    }
}

/// The proxy's way to the hosts. Each proxy has its own.
pub(super) struct SimDialer {
    pub(super) net: Arc<Net>,
    pub(super) proxy: u32,
    pub(super) machine: usize,
    pub(super) timeout: Duration,
    pub(super) addresses: Arc<Addresses>,
}

impl Dial for SimDialer {
    fn dial(&self, node: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let (net, limit, addresses) = (self.net.clone(), self.timeout, self.addresses.clone());
        let from = (self.proxy, self.machine, late::is_worker());
        async move {
            let dial = at_present_address(&addresses, node, |at| net.dial(from, at));
            timeout(limit, dial).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        }
        .boxed()
    }

    fn dial_at(&self, _: NodeId, at: SocketAddr) -> BoxFuture<'static, io::Result<NodeStream>> {
        let (connect, limit) = (self.net.dial((self.proxy, self.machine, late::is_worker()), at), self.timeout);
        async move { timeout(limit, connect).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? }.boxed()
    }

    fn address(&self, node: NodeId) -> AddressNumber {
        self.addresses.number(node)
    }
}

impl Net {
    /// From a proxy on a machine, for a worker or not.
    pub(super) fn dial(
        self: &Arc<Net>,
        (proxy, machine, of_worker): (u32, usize, bool),
        at: SocketAddr,
    ) -> impl Future<Output = io::Result<NodeStream>> + use<> {
        let (net, (host, way)) = (self.clone(), host_and_way(at));
        async move {
            net.pause(host).await;
            let connect = net.until(|inner| {
                let there = &inner.hosts[host];
                if inner.dead_proxies.contains(&proxy) {
                    return Some(Err(io::Error::from(io::ErrorKind::NetworkDown)));
                }
                let closed = [Way::There, Way::Back].iter().any(|way| inner.closed.contains(&(machine, host, *way)));
                if inner.is_cut_off(host, way) || closed {
                    return None;
                }
                if !there.up {
                    return Some(Err(io::Error::from(io::ErrorKind::ConnectionRefused)));
                }
                inner.conns.push(Conn {
                    host,
                    way,
                    life: there.life,
                    proxy,
                    machine,
                    broken: Broken::No,
                    open: true,
                    lost: false,
                    backlog: Vec::new(),
                    of_worker,
                });
                Some(Ok(inner.conns.len() - 1))
            });
            let id = connect.await?;
            note(|| format!("net    connection {id} to host {host}"));
            let (near, far) = duplex(SOCKET);
            tokio::spawn(async move {
                let mut serving = Serving { net: net.clone(), id, host, far: Some(far) };
                serving.run().await;
                let lost = net.lock().conns[id].lost;
                if lost {
                    serving.far = None;
                    // The host hears of it when it is reached again.
                    net.until(|inner| (!inner.is_closed(id, Way::There) || inner.is_over(id)).then_some(())).await;
                }
                // The news travels over each connection in its own time.
                let ms = {
                    let inner = &mut *net.lock();
                    inner.conns[id].open = false;
                    if inner.rng.random() { inner.rng.random_range(0..NEWS_MS) } else { 0 }
                };
                sleep(Duration::from_millis(ms)).await;
                drop(serving);
            });
            Ok(NodeStream::from(near))
        }
    }
}
