//! The daemon put together: worker threads around the data plane, the control plane on the calling
//! thread.

mod stream;
mod uring;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Panel};
use crate::backend::{Addresses, Dial, SystemResolver, TcpDialer};
use crate::cluster::{Cluster, Losses, Names, NoStandby, Workers};
use crate::config::{IoUringMode, PoolName, Settings};
use crate::daemon::{Listeners, Listening, thread_of};
use crate::ids::WorkerId;
use crate::lease;
use crate::proxy::{Adds, Core, CoreSettings, Event, Gone, Memory};
use crate::reload::{Doors, Reload, Serving};
use crate::ring::Topology;
use crate::stats::WorkerStats;

#[cfg(test)]
pub(crate) use stream::InMemory;
pub(crate) use stream::Stream;
use uring::Uring;
pub(crate) use worker::Listener;
use worker::{Beyond, Work, WorkerSetup};

/// Sockets with news that a worker's turn takes up at most (on epoll). With many more clients its
/// nodes have enough to share a write all the same, and what the reading of a request brought into
/// the processor's caches is still there when its answer is written.
const EVENTS_PER_TURN: usize = 256;

/// Where others stand by, a client that takes none of its answers may keep their clients this long
/// waiting for the end of this proxy.
const READER_PATIENCE: Duration = Duration::from_millis(100);

/// How long servers are asked whose they are before any of several pools serves. One that has not
/// answered by then is judged when it is first looked at.
const SURVEY_PATIENCE: Duration = Duration::from_secs(2);

/// How often in a lease each thread reports that it turns. (One that has not for half of it hangs.)
const BEATS: u32 = 8;

/// Serves clients until `shutdown` is cancelled and their requests in flight are answered (or the
/// grace is over). Blocks. `reload` may tell it of other settings. `ready` is called when nothing
/// can keep it from serving any more.
///
/// # Errors
///
/// What the system refused: threads, or the event queue. What `ready` returns. That the servers
/// belong to a fleet of proxies, or to another one.
pub fn run(
    settings: Settings,
    listeners: Listeners,
    shutdown: CancellationToken,
    reload: Option<Arc<Reload>>,
    ready: impl FnOnce() -> std::io::Result<()>,
) -> std::io::Result<()> {
    run_agreed(settings, listeners, shutdown, (Arc::new(NoStandby), Operated::Here { aside: None, reload }), ready)
}

/// Runs one of several pools, which operators are shown together: what they need is sent
/// before `ready` is called. On a thread of its own.
///
/// # Errors
///
/// As of [`run`].
pub(crate) fn run_beside(
    settings: Settings,
    listeners: Listeners,
    shutdown: CancellationToken,
    (panels, reload): (Sender<Panel>, Arc<Reload>),
    ready: impl FnOnce() -> std::io::Result<()>,
) -> std::io::Result<()> {
    run_agreed(settings, listeners, shutdown, (Arc::new(NoStandby), Operated::Together { panels, reload }), ready)
}

/// Where operators are answered.
pub(crate) enum Operated<'a> {
    /// On the control plane's thread; with `aside`, on a runtime that goes on where all other
    /// threads stand still.
    Here { aside: Option<&'a Handle>, reload: Option<Arc<Reload>> },
    /// Where all pools are.
    Together { panels: Sender<Panel>, reload: Arc<Reload> },
}

/// Runs a proxy that agrees on `losses` with those that may take its place.
pub(crate) fn run_agreed(
    settings: Settings,
    mut listeners: Listeners,
    shutdown: CancellationToken,
    (losses, operated): (Arc<dyn Losses>, Operated<'_>),
    ready: impl FnOnce() -> std::io::Result<()>,
) -> std::io::Result<()> {
    let topology = Arc::new(Topology::new(&settings.primaries, &settings.backups, settings.distribution));
    let addresses = Arc::new(Addresses::new(topology.nodes().map(|node| topology.addr(node))));
    let timeout = settings.timeout.max(settings.probe_timeout);
    let dialer: Arc<dyn Dial> = Arc::new(TcpDialer::new(addresses.clone(), timeout, settings.undelivered()));
    let names = Names { addresses, resolver: Arc::new(SystemResolver) };
    let urings = urings(settings.io_uring, settings.threads)?;
    let beat = beat_of(&settings);
    let pool = settings.pool.clone();
    let mut assembly = Assembly::new(settings, topology, (dialer, names, losses.clone()));
    let timekeeper = match urings.is_empty() {
        true => None,
        false => Some(Timekeeper::start(thread_of(pool.as_ref(), "timekeeper")).map_err(cannot_start)?),
    };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
    let handle = timekeeper.as_ref().map(|t| &t.handle);
    let operators = std::mem::take(&mut listeners.operators);
    let desk = assembly.cluster.desk();
    let reload = match &operated {
        Operated::Here { reload, .. } => reload.as_ref(),
        Operated::Together { reload, .. } => Some(reload),
    };
    if let Some(reload) = reload {
        let serving = Serving { desk: desk.clone(), losses: losses.clone() };
        reload.serves(pool.as_ref(), serving, doors(assembly.doors));
    }
    let panel = Panel { pool: pool.clone(), desk, losses, stats: assembly.stats, memory: assembly.memory };
    let is_one_of_several = matches!(operated, Operated::Together { .. });
    match operated {
        Operated::Here { aside, reload } => {
            admin::serve(aside.unwrap_or(runtime.handle()), operators, vec![panel], reload, shutdown.clone())?;
        }
        // The receiver is gone if another pool failed to start, which ends this one too.
        Operated::Together { panels, .. } => drop(panels.send(panel)),
    }
    let own = (pool.as_ref(), handle, &shutdown);
    let threads = prepare(assembly.workers, &mut listeners, urings, own).map_err(cannot_start)?;
    let surveyed = match is_one_of_several {
        true => runtime.block_on(assembly.cluster.survey(SURVEY_PATIENCE)).map_err(std::io::Error::other),
        false => Ok(()),
    };
    if let Err(error) = surveyed.and_then(|()| ready()) {
        runtime.shutdown_background();
        return Err(error);
    }
    for (_, go) in &threads {
        // An error means that the thread has panicked; joining it reports that.
        let _ = go.send(());
    }
    runtime.spawn(lease::beat_forever(beat.map_or(lease::BEAT, |every| every.min(lease::BEAT))));
    let ran = runtime.block_on(assembly.cluster.run(assembly.events));
    assembly.probes.cancel();
    if ran.is_err() {
        shutdown.cancel();
    }
    // A look-up that a slow name server keeps waiting is waited for no more.
    runtime.shutdown_background();
    let ends: Vec<_> = threads.into_iter().map(|(thread, _)| thread.join()).collect();
    if ends.iter().any(Result::is_err) {
        return Err(panicked());
    }
    ran.map_err(std::io::Error::other)
}

/// How often each thread of a fleet's proxy is to say that it turns.
fn beat_of(settings: &Settings) -> Option<Duration> {
    settings.fleet.as_ref().map(|fleet| fleet.lease / BEATS)
}

/// Where listening sockets are given to workers that run already, one to each.
fn doors(workers: Vec<UnboundedSender<std::net::TcpListener>>) -> Doors {
    Box::new(move |sockets| {
        for (worker, socket) in workers.iter().zip(sockets) {
            // A send fails if the worker has ended.
            let _ = worker.send(socket);
        }
    })
}

/// A worker's thread, which waits for its start (and ends if the sender is dropped).
type Prepared = (JoinHandle<()>, Sender<()>);

/// The workers' threads, all of which have what they need: no client is served before all can be.
fn prepare(
    workers: Vec<WorkerParts>,
    listeners: &mut Listeners,
    urings: Vec<Uring>,
    (pool, timekeeper, shutdown): (Option<&PoolName>, Option<&Handle>, &CancellationToken),
) -> std::io::Result<Vec<Prepared>> {
    let mut urings = urings.into_iter();
    let (settled, settlements) = channel();
    let mut threads = Vec::new();
    for (index, parts) in workers.into_iter().enumerate() {
        let own = Own::of(listeners, index)?;
        let (shutdown, settled) = (shutdown.clone(), settled.clone());
        let uring = urings.next().zip(timekeeper.cloned());
        let (go, gone) = channel();
        let of_pool = tracing::Span::current();
        let name = thread_of(pool, &format!("worker-{index}"));
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _of_pool = of_pool.entered();
            let driver = match Driver::new(own, uring) {
                Ok(driver) => driver,
                Err(error) => return drop(settled.send(Err(error))),
            };
            drop(settled.send(Ok(())));
            drop(settled);
            if gone.recv().is_ok() {
                driver.run(parts, shutdown);
            }
        })?;
        threads.push((thread, go));
    }
    drop(settled);
    let settled: Vec<()> = settlements.iter().collect::<std::io::Result<_>>()?;
    if settled.len() < threads.len() { Err(panicked()) } else { Ok(threads) }
}

fn cannot_start(error: std::io::Error) -> std::io::Error {
    let advice = "fewer --threads need less; the limits are those of ulimit -u, -n and -v, and of the service";
    std::io::Error::new(error.kind(), format!("cannot start the worker threads: {error}; {advice}"))
}

fn panicked() -> std::io::Error {
    std::io::Error::other("a worker thread panicked")
}

/// What drives the I/O of a worker, made on its own thread.
enum Driver {
    /// All its sockets on an io_uring instance; tokio's driver is another thread's.
    Uring(Box<Uring>, Handle, Vec<Listener>),
    /// In a runtime of its own.
    Epoll(Runtime, Vec<Listener>),
}

impl Driver {
    fn new(own: Own, uring: Option<(Uring, Handle)>) -> std::io::Result<Driver> {
        if let Some((uring, handle)) = uring {
            let listeners = own.into_listeners(&handle)?;
            return Ok(Driver::Uring(Box::new(uring.start()?), handle, listeners));
        }
        let runtime = Builder::new_current_thread().enable_all().max_io_events_per_tick(EVENTS_PER_TURN).build()?;
        let listeners = own.into_listeners(runtime.handle())?;
        Ok(Driver::Epoll(runtime, listeners))
    }

    fn run(self, parts: WorkerParts, shutdown: CancellationToken) {
        match self {
            Driver::Uring(uring, handle, listeners) => {
                let _entered = handle.enter();
                parts.run_on_uring(*uring, listeners, shutdown);
            }
            Driver::Epoll(runtime, listeners) => {
                LocalSet::new().block_on(&runtime, parts.run(listeners, shutdown));
            }
        }
    }
}

/// A thread that looks to the timers, the listeners and the dials of workers that sleep in their
/// io_uring instances.
struct Timekeeper {
    handle: Handle,
    over: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Timekeeper {
    fn start(name: String) -> std::io::Result<Timekeeper> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, over) = (runtime.handle().clone(), CancellationToken::new());
        let until = over.clone();
        let of_pool = tracing::Span::current();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _of_pool = of_pool.entered();
            runtime.block_on(until.cancelled());
        })?;
        Ok(Timekeeper { handle, over, thread: Some(thread) })
    }
}

impl Drop for Timekeeper {
    fn drop(&mut self) {
        self.over.cancel();
        if let Some(thread) = self.thread.take() {
            // That thread only waits: it does not panic.
            let _ = thread.join();
        }
    }
}

/// One for each worker, or none where sockets are left to epoll.
fn urings(mode: IoUringMode, workers: usize) -> std::io::Result<Vec<Uring>> {
    if mode == IoUringMode::Off {
        return Ok(Vec::new());
    }
    match (0..workers.max(1)).map(|_| Uring::new()).collect() {
        Ok(urings) => Ok(urings),
        Err(error) if mode == IoUringMode::Auto => {
            tracing::info!(%error, "no io_uring here (it takes Linux 6.1, and permission): sockets are on epoll, which costs more");
            Ok(Vec::new())
        }
        Err(error) => Err(std::io::Error::new(
            error.kind(),
            format!(
                "--io-uring on: {error}; it takes Linux 6.1 or later, and a system that permits it (sysctl kernel.io_uring_disabled, seccomp); auto does without"
            ),
        )),
    }
}

/// The proxy put together, without threads and sockets: the simulation runs all of it on one
/// thread.
pub(crate) struct Assembly {
    /// To be run, each in a `LocalSet` of its own.
    pub(crate) workers: Vec<WorkerParts>,
    /// To be run over `events`.
    pub(crate) cluster: Cluster,
    /// What the workers tell.
    pub(crate) events: UnboundedReceiver<Event>,
    /// The workers' counters, and what clients make the proxy hold.
    pub(crate) stats: Vec<Arc<WorkerStats>>,
    pub(crate) memory: Arc<Memory>,
    /// Where each worker is given listeners that come later.
    doors: Vec<UnboundedSender<std::net::TcpListener>>,
    /// Stops what the control plane has left behind when it ends.
    pub(crate) probes: CancellationToken,
}

/// A worker that has not begun.
pub(crate) struct WorkerParts {
    core: Core,
    setup: WorkerSetup,
    nodes: usize,
    lanes: usize,
}

impl WorkerParts {
    /// Serves clients until `shutdown`, then until they are answered or the grace is over.
    pub(crate) async fn run(self, listeners: Vec<Listener>, shutdown: CancellationToken) {
        worker::run(self.core, self.setup, listeners, (self.nodes, self.lanes), shutdown).await;
    }

    /// The same on an io_uring instance; blocks. In the context of a runtime that another thread
    /// drives.
    fn run_on_uring(self, uring: Uring, listeners: Vec<Listener>, shutdown: CancellationToken) {
        let nodes = (self.nodes, self.lanes);
        worker::run_on_uring(self.core, self.setup, (uring, listeners), nodes, shutdown);
    }
}

impl Assembly {
    /// A proxy with these settings, which finds its nodes by `names`, reaches them by `dialer`, and
    /// agrees on `losses` with the proxies that may take its place.
    pub(crate) fn new(
        settings: Settings,
        topology: Arc<Topology>,
        (dialer, names, losses): (Arc<dyn Dial>, Names, Arc<dyn Losses>),
    ) -> Assembly {
        let workers = settings.threads.max(1);
        // A command line gives a multiple.
        let lanes = settings.node_connections.div_ceil(workers).max(1);
        let clients = Arc::new(AtomicUsize::new(0));
        let work = Arc::new(Work::new(workers));
        let beyond = Beyond::default();
        let unclean = Arc::new(AtomicBool::new(false));
        let (event, events) = unbounded_channel();
        let (peers, inboxes): (Vec<_>, Vec<_>) = (0..workers).map(|_| unbounded_channel()).unzip();
        let stats: Vec<_> = (0..workers).map(|_| Arc::new(WorkerStats::new(topology.node_count()))).collect();
        let adds = Arc::new(Adds::new());
        let gone = Arc::new(Gone::new());
        let memory = Arc::new(Memory::new(settings.client_memory));
        let live = settings.live();
        let proves = settings.fleet.as_ref().is_some_and(|fleet| fleet.prove_writes);
        let mark = losses.turn().filter(|_| proves).map(|turn| turn.mark);
        let (mut commands, mut doors) = (Vec::new(), Vec::new());
        let mut parts = Vec::new();
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let (command, commands_from) = unbounded_channel();
            commands.push(command);
            let (listen, later) = unbounded_channel();
            doors.push(listen);
            let (worker, counts) = (WorkerId(index as u16), (workers as u16, lanes as u16));
            let own = CoreSettings::new(worker, counts, settings.item_size_max, &live);
            let mut core = Core::new(own, topology.clone(), stats[index].clone(), adds.clone());
            core.share(memory.clone());
            core.remember(gone.clone());
            if let Some(mark) = mark.clone() {
                core.prove_writes(mark);
            }
            let setup = WorkerSetup {
                dialer: dialer.clone(),
                commands: commands_from,
                events: event.clone(),
                inbox,
                peers: peers.clone(),
                stats: stats[index].clone(),
                tick: live.tick(),
                live,
                clients: clients.clone(),
                later,
                beyond: beyond.clone(),
                work: work.clone(),
                unclean: unclean.clone(),
                patience: settings.fleet.as_ref().map(|_| READER_PATIENCE),
                beat: beat_of(&settings),
            };
            parts.push(WorkerParts { core, setup, nodes: topology.node_count(), lanes });
        }
        let probes = CancellationToken::new();
        let workers = Workers { commands, stats: stats.clone(), unclean };
        let cluster = Cluster::new(settings, topology, (dialer, names, losses), workers, probes.clone());
        Assembly { workers: parts, cluster, events, stats, memory, doors, probes }
    }
}

/// A worker's own handles of the listening sockets.
struct Own {
    tcp: Vec<Listening<std::net::TcpListener>>,
    unix: Option<Listening<std::os::unix::net::UnixListener>>,
    handed: Option<UnboundedReceiver<std::net::TcpStream>>,
}

impl Own {
    /// Those of the worker with this index.
    fn of(listeners: &mut Listeners, index: usize) -> std::io::Result<Own> {
        let mut own = Own { tcp: Vec::new(), unix: None, handed: listeners.handed.pop() };
        for listening in &listeners.tcp {
            own.tcp.push(listening.by(|queues| queues[index % queues.len()].try_clone())?);
        }
        own.unix = listeners.unix.as_ref().map(|listening| listening.by(|socket| socket.try_clone())).transpose()?;
        Ok(own)
    }

    fn into_listeners(self, runtime: &Handle) -> std::io::Result<Vec<Listener>> {
        let _entered = runtime.enter();
        let mut listeners = Vec::new();
        for Listening { socket, kept } in self.tcp {
            socket.set_nonblocking(true)?;
            listeners.push(Listener::Tcp(Listening { socket: tokio::net::TcpListener::from_std(socket)?, kept }));
        }
        if let Some(Listening { socket, kept }) = self.unix {
            socket.set_nonblocking(true)?;
            listeners.push(Listener::Unix(Listening { socket: tokio::net::UnixListener::from_std(socket)?, kept }));
        }
        listeners.extend(self.handed.map(Listener::Handed));
        Ok(listeners)
    }
}
