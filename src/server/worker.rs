//! One worker thread's I/O around its [`Core`]: sockets in, sockets out, and nothing decided here.
//!
//! Every socket has a small task that reads and feeds the core. All writing is done by one
//! *flusher* task, which runs after the readers of the same turn of the event loop: so the requests
//! of many clients to one node, and the answers of many requests to one client, leave in one write.
//! On io_uring there are neither: see `on_uring`.

mod admission;
mod bursts;
mod census;
mod clock;
mod ended;
mod flusher;
mod listener;
mod node_ios;
mod on_epoll;
mod on_uring;
mod slow;
mod writable;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::Dial;
use crate::daemon::{Listening, stir_heap};
use crate::lease;
use crate::pair::Reason;
use crate::proxy::{ClientId, Command, ConnId, Core, DialNumber, Event, LiveSettings, Now, PeerMessage};
use crate::stats::WorkerStats;

use super::stream::Stream;
use super::uring::Uring;
pub(super) use admission::Beyond;
use clock::Clock;
pub(crate) use listener::Listener;
use node_ios::{NodeIo, NodeIos, NodeSocket};
use on_uring::UringClient;
pub(super) use on_uring::run_on_uring;
use slow::Slow;
use writable::Writable;

/// Sockets whose input is taken before the clock is looked at again, in a turn of very many (on
/// epoll, clients' only).
const READS_PER_CLOCK: u32 = 16;

/// Ticks missed after which a worker counts as having stood still (with a `--timeout` of 8 ms or
/// more there are at least eight to it).
const STALL_TICKS: u32 = 4;

/// From here on an answer is slow, for the log.
const SLOW_US: u64 = 50_000;

/// What a worker needs of the world.
pub(super) struct WorkerSetup {
    /// Opens connections to nodes.
    pub dialer: Arc<dyn Dial>,
    /// From the control plane.
    pub commands: UnboundedReceiver<Command>,
    /// To the control plane.
    pub events: UnboundedSender<Event>,
    /// From other workers.
    pub inbox: UnboundedReceiver<PeerMessage>,
    /// To every worker, by number.
    pub peers: Vec<UnboundedSender<PeerMessage>>,
    pub stats: Arc<WorkerStats>,
    /// How often late answers are looked for.
    pub tick: Duration,
    /// What can change while it runs.
    pub live: LiveSettings,
    /// Clients connected to all workers.
    pub clients: Arc<AtomicUsize>,
    /// Listeners that come later.
    pub later: UnboundedReceiver<std::net::TcpListener>,
    /// Clients beyond that.
    pub beyond: Beyond,
    /// Unfinished work of all workers.
    pub work: Arc<Work>,
    /// Set if this worker ends with work unfinished.
    pub unclean: Arc<AtomicBool>,
    /// How long the shutdown waits for a client that takes nothing of what it was answered, if less
    /// than for all others.
    pub patience: Option<Duration>,
    /// How often the thread is to say that it turns.
    pub beat: Option<Duration>,
}

/// What is unfinished, over all workers: at the end each goes on until the others need nothing of
/// it any more.
#[derive(Debug)]
pub(super) struct Work {
    /// Clients and operations, by worker; each writes its own.
    live: Vec<AtomicUsize>,
    /// Messages between workers on their way.
    transit: AtomicUsize,
}

impl Work {
    pub(super) fn new(workers: usize) -> Work {
        Work { live: (0..workers).map(|_| AtomicUsize::new(1)).collect(), transit: AtomicUsize::new(0) }
    }

    fn is_done(&self) -> bool {
        // A receiver counts what a message made before it takes the message off, so nothing falls
        // between.
        self.transit.load(Ordering::SeqCst) == 0 && self.live.iter().all(|l| l.load(Ordering::SeqCst) == 0)
    }
}

enum ClientIo {
    /// With a task that reads.
    Stream {
        stream: Stream,
        /// Woken when the client's input may go on.
        reader: Option<Waker>,
    },
    /// On the worker's io_uring.
    Uring(UringClient),
}

/// The I/O state of a worker, shared by its tasks (never across an await).
pub(crate) struct Shell {
    core: Core,
    clients: Vec<Option<ClientIo>>,
    /// Where all sockets are, if not in tokio's hands.
    uring: Option<Uring>,
    nodes: NodeIos,
    /// Connections on io_uring that are to be received from again, and whether more has come than
    /// was taken.
    to_receive: Vec<(ConnId, bool)>,
    block: BytesMut,
    clock: Clock,
    /// How often there is a tick.
    tick: Duration,
    live: LiveSettings,
    /// When what a burst has needed was last given back.
    gave_back_us: u64,
    flusher: Option<Waker>,
    /// Woken when there is something to be late again.
    ticker: Option<Waker>,
    /// Reads that brought something.
    reads: u32,
    /// Sockets taken from since the clock was looked at; 0 when it is to be looked at before the
    /// next, as at the end of a turn.
    reads_on_clock: u32,
    /// Sockets that took no more.
    writable: Arc<Writable>,
    blocked_conns: Vec<ConnId>,
    /// Empty, except for the time of a flush.
    flushed_conns: Vec<ConnId>,
    events: UnboundedSender<Event>,
    peers: Vec<UnboundedSender<PeerMessage>>,
    stats: Arc<WorkerStats>,
    work: Arc<Work>,
    draining: bool,
    untold: ended::Untold,
    /// Where clients come from, while the log has lines about them.
    named: BTreeMap<ClientId, String>,
}

/// A worker's handle for its own tasks.
#[derive(Clone)]
pub(crate) struct Worker {
    shell: Rc<RefCell<Shell>>,
    dialer: Arc<dyn Dial>,
    count: Arc<AtomicUsize>,
    beyond: Beyond,
    /// Told when there is another [`LiveSettings::idle_timeout`].
    idle: Rc<Notify>,
}

impl Shell {
    fn count_work(&self) {
        // Before it drains a worker counts as busy, for clients may still come.
        let live = self.core.client_count() + self.core.op_count() + usize::from(!self.draining);
        self.work.live[self.core.worker().index()].store(live, Ordering::SeqCst);
    }

    /// (Those of other workers' keys are counted there, or are on their way.)
    fn has_no_operations(&self) -> bool {
        self.core.op_count() == 0 && self.work.transit.load(Ordering::SeqCst) == 0
    }

    fn now(&self) -> Now {
        self.clock.now()
    }

    fn turn(&mut self) {
        let unseen = self.clock.look();
        // While an answer is awaited there are ticks, far more often than that. If this many were
        // missed, this process did not run: what a node was asked just before is sent now, and
        // what it answered meanwhile is not read yet. No node is to blame for that.
        if unseen > STALL_TICKS * self.tick && !self.core.is_quiet() {
            // Except for one tick: a worker that is always late finds a hung node late, and not
            // never.
            self.clock.stood_still(unseen - self.tick);
        }
    }

    /// Takes what clients have sent by now, and nothing after that. It may take long, and nothing
    /// is sent on before its end: nodes are to blame for none of that time.
    fn last_calls(&mut self) {
        self.draining = true;
        let clients = self.core.client_count();
        if clients > 0 {
            tracing::info!(clients, worker = self.core.worker().0, "clients are closed: the proxy ends");
        }
        self.core.begin_last_turn();
        let on_uring = self.uring.is_some();
        if on_uring {
            self.take_all_news();
        }
        for id in self.core.client_ids() {
            if on_uring {
                self.last_uring_call(id);
            } else {
                self.last_call(id);
            }
        }
        let taken = self.clock.look();
        self.clock.stood_still(taken);
    }

    /// As [`Shell::turn`], where so many come one after the other that looking at the clock costs
    /// more than it tells.
    fn turn_of_many(&mut self) {
        if self.reads_on_clock == 0 {
            self.turn();
            // It ends the turn, also if nothing is to be written: the next one may be much later.
            if let Some(waker) = self.flusher.take() {
                waker.wake();
            }
        }
        self.reads_on_clock = (self.reads_on_clock + 1) % READS_PER_CLOCK;
    }

    /// The flusher runs once after everybody who is ready now.
    fn wake(&mut self) {
        if self.ticker.is_some()
            && !self.is_quiet()
            && let Some(waker) = self.ticker.take()
        {
            waker.wake();
        }
        if self.has_output()
            && let Some(waker) = self.flusher.take()
        {
            waker.wake();
        }
    }

    /// Whether there is anything to be written or handed on.
    fn has_output(&self) -> bool {
        self.core.has_output() || !self.writable.is_empty()
    }
}

/// What a worker's tasks begin with.
pub(super) struct Beginning {
    commands: UnboundedReceiver<Command>,
    inbox: UnboundedReceiver<PeerMessage>,
    later: UnboundedReceiver<std::net::TcpListener>,
    unclean: Arc<AtomicBool>,
    patience: Option<Duration>,
    beat: Option<Duration>,
}

/// Runs a worker on the current thread until `shutdown`, then until its clients are answered or
/// `--shutdown-grace` is over.
pub(super) async fn run(
    core: Core,
    setup: WorkerSetup,
    listeners: Vec<Listener>,
    (nodes, lanes): (usize, usize),
    shutdown: CancellationToken,
) {
    let (worker, beginning) = Worker::new(core, setup, None, (nodes, lanes));
    tokio::task::spawn_local(worker.clone().flush_forever());
    // What is awaited right here is looked at in each turn, which of a task costs a tenth.
    let serving = tokio::task::spawn_local(worker.serve(beginning, listeners, shutdown));
    if let Err(ended) = serving.await
        && let Ok(panic) = ended.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

impl Worker {
    fn new(
        core: Core,
        setup: WorkerSetup,
        uring: Option<Uring>,
        (nodes, lanes): (usize, usize),
    ) -> (Worker, Beginning) {
        let shell = Rc::new(RefCell::new(Shell {
            core,
            clients: Vec::new(),
            uring,
            nodes: NodeIos::new(nodes, lanes),
            to_receive: Vec::new(),
            block: BytesMut::new(),
            clock: Clock::new(),
            tick: setup.tick,
            live: setup.live,
            gave_back_us: 0,
            flusher: None,
            ticker: None,
            reads: 0,
            reads_on_clock: 0,
            writable: Arc::default(),
            blocked_conns: Vec::new(),
            flushed_conns: Vec::new(),
            events: setup.events,
            peers: setup.peers,
            stats: setup.stats,
            work: setup.work,
            draining: false,
            untold: ended::Untold::default(),
            named: BTreeMap::new(),
        }));
        let worker =
            Worker { shell, dialer: setup.dialer, count: setup.clients, beyond: setup.beyond, idle: Rc::default() };
        let beginning = Beginning {
            commands: setup.commands,
            inbox: setup.inbox,
            later: setup.later,
            unclean: setup.unclean,
            patience: setup.patience,
            beat: setup.beat,
        };
        (worker, beginning)
    }

    /// All but the sockets' bytes: begins the tasks that do it, and ends when the worker is to end.
    async fn serve(self, mut beginning: Beginning, listeners: Vec<Listener>, shutdown: CancellationToken) {
        tokio::task::spawn_local(self.clone().take_commands(beginning.commands));
        tokio::task::spawn_local(self.clone().take_messages(beginning.inbox));
        tokio::task::spawn_local(self.clone().tick_forever());
        if let Some(every) = beginning.beat {
            tokio::task::spawn_local(lease::beat_forever(every));
        }
        tokio::task::spawn_local(self.clone().close_silent_forever());
        let accept = |listener| tokio::task::spawn_local(self.clone().accept_forever(listener, shutdown.clone()));
        let mut accepting: Vec<_> = listeners.into_iter().map(accept).collect();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(listener) = beginning.later.recv() => match tokio::net::TcpListener::from_std(listener) {
                    Ok(socket) => accepting.push(accept(Listener::Tcp(Listening { socket, kept: false }))),
                    Err(error) => tracing::error!(%error, "this worker takes no clients at a new address"),
                },
            }
        }
        for last in accepting {
            // It fails if it has panicked, and then this thread has as well.
            let _ = last.await;
        }
        let grace = self.shell.borrow().live.shutdown_grace;
        if !self.drain(grace, beginning.patience).await {
            beginning.unclean.store(true, Ordering::Relaxed);
        }
    }

    /// Whatever is done with the core is done in here: it knows the time then, and what it leaves
    /// behind (to be written, to be late) wakes those who see to it. A worker at rest has no tick
    /// that would make up for one that was not woken. (Or in `uring_cycle`, which does the same.)
    fn work<T>(&self, work: impl FnOnce(&mut Shell) -> T) -> T {
        self.work_by(Shell::turn, work)
    }

    fn work_by<T>(&self, clock: impl FnOnce(&mut Shell), work: impl FnOnce(&mut Shell) -> T) -> T {
        let shell = &mut *self.shell.borrow_mut();
        clock(shell);
        let result = work(shell);
        shell.wake();
        result
    }

    async fn run_conn(self, at: ConnId, dial: DialNumber) {
        let dialled = self.dialer.dial(at.node).await;
        self.work(|shell| {
            let now = shell.now();
            debug_assert!(shell.core.is_current(at, dial));
            match dialled.and_then(|stream| shell.take_on(at, stream)) {
                Ok(stream) => {
                    let reader = match &stream {
                        NodeSocket::Stream(_) => {
                            let reader = tokio::task::spawn_local(self.clone().read_conn(at));
                            Some(reader.abort_handle())
                        }
                        NodeSocket::Uring(_) => None,
                    };
                    shell.nodes[at] = Some(NodeIo { stream, shut: false, reader });
                    shell.core.handle_conn_up(now, at);
                }
                Err(error) => {
                    let reason = match error.kind() {
                        io::ErrorKind::ConnectionRefused => Reason::Refused,
                        io::ErrorKind::NotFound => Reason::Unresolved,
                        _ => Reason::Timeout,
                    };
                    shell.core.handle_conn_down(now, at, reason);
                }
            }
        });
    }

    async fn take_commands(self, mut commands: UnboundedReceiver<Command>) {
        while let Some(command) = commands.recv().await {
            self.work(|shell| {
                if let Command::WhoIsConnected { round } = command {
                    return shell.tell_connected(round);
                }
                if let Command::Settings(new) = command {
                    shell.tick = new.tick();
                    shell.live = new;
                    self.idle.notify_one();
                }
                shell.core.handle_command(shell.clock.now(), command);
                while let Some(at) = shell.core.poll_hangup() {
                    shell.hang_up(at);
                }
            });
        }
    }

    async fn take_messages(self, mut inbox: UnboundedReceiver<PeerMessage>) {
        let mut batch = Vec::new();
        while inbox.recv_many(&mut batch, 256).await > 0 {
            self.work(|shell| {
                let count = batch.len();
                for message in batch.drain(..) {
                    shell.core.handle_peer(shell.clock.now(), message);
                }
                shell.count_work();
                shell.work.transit.fetch_sub(count, Ordering::SeqCst);
            });
        }
    }

    /// Looks for what is late, as long as anything can be.
    async fn tick_forever(self) {
        loop {
            let tick = self.shell.borrow().tick;
            tokio::time::sleep(tick).await;
            self.work(|shell| {
                shell.tell_what_is_stuck();
                shell.core.handle_tick(shell.clock.now());
                shell.give_back();
            });
            stir_heap();
            poll_fn(|cx| {
                let shell = &mut *self.shell.borrow_mut();
                if !shell.is_quiet() {
                    return Poll::Ready(());
                }
                shell.ticker = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
        }
    }

    async fn close_silent_forever(self) {
        loop {
            let timeout = self.shell.borrow().live.idle_timeout;
            // Every client is looked at: often enough to be exact for users, seldom enough to cost
            // nothing.
            match timeout.map(|timeout| (timeout / 8).clamp(Duration::from_millis(1), Duration::from_secs(1))) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => {
                    self.idle.notified().await;
                    continue;
                }
            }
            self.work(|shell| {
                if let Some(timeout) = shell.live.idle_timeout {
                    shell.core.close_silent(shell.clock.now(), timeout);
                }
            });
        }
    }

    /// No new requests; what is in flight is answered and brought to both nodes, for at most
    /// `grace`. A worker without clients of its own stays for the keys it owns. Returns whether
    /// every operation was finished.
    async fn drain(&self, grace: Duration, patience: Option<Duration>) -> bool {
        // On epoll the system reports this many sockets at once: that something has come on
        // others is not known yet.
        let turns = 1 + self.shell.borrow().core.client_count().div_ceil(super::EVENTS_PER_TURN);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        // In one poll tokio lets a task read only so often, and then says that nothing has come:
        // that would be the last word on all clients behind the first hundred.
        tokio::task::unconstrained(async {
            self.work(Shell::last_calls);
        })
        .await;
        let deadline = Instant::now() + grace;
        let mut slow = patience.map(Slow::new);
        loop {
            if let Some(slow) = &mut slow {
                self.let_slow_go(slow);
            }
            let done = {
                let shell = self.shell.borrow();
                shell.count_work();
                shell.work.is_done()
            };
            if done {
                return true;
            }
            if Instant::now() >= deadline {
                // Who only asks (`node`, `stats`) leaves nothing on the servers.
                let finished = self.shell.borrow().has_no_operations();
                self.give_clients_up().await;
                return finished;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Who waits for an answer is told that there will be none, as far as the sockets take that at
    /// once.
    async fn give_clients_up(&self) {
        poll_fn(|cx| {
            self.work(|shell| {
                let (requests, clients) = shell.core.give_clients_up(shell.clock.now());
                if requests > 0 {
                    tracing::warn!(requests, clients, "--shutdown-grace is over: requests are answered with an error");
                }
                self.flush_clients(shell, cx);
                shell.turn_uring();
            });
            Poll::Ready(())
        })
        .await;
    }
}

impl Shell {
    /// For [`Core::handle_tick`]: which nodes' sockets are full.
    fn tell_what_is_stuck(&mut self) {
        for at in self.nodes.ids() {
            let bytes = match (self.nodes[at].as_ref().map(|io| &io.stream), &self.uring) {
                (Some(NodeSocket::Stream(_)), _) if self.blocked_conns.contains(&at) => self.core.unsent_to_node(at),
                // What waits behind a send that is not done waits for the same.
                (Some(NodeSocket::Uring(slot)), Some(uring)) => uring.unsent(*slot),
                _ => 0,
            };
            self.core.handle_stuck(self.clock.now(), at, bytes);
        }
    }

    /// Closes a connection that the core has given up.
    fn hang_up(&mut self, at: ConnId) {
        let Some(NodeIo { stream, reader, .. }) = self.nodes[at].take() else { return };
        if let Some(reader) = reader {
            reader.abort();
        }
        if let (NodeSocket::Uring(slot), Some(uring)) = (stream, &mut self.uring) {
            uring.close(slot);
        }
    }

    /// Something has come from a node.
    fn node_received(&mut self, at: ConnId) {
        lease::pass();
        self.reads = self.reads.wrapping_add(1);
        let now = self.now();
        if let Some(sent_us) = self.core.asked_since(at) {
            let latency_us = now.us.saturating_sub(sent_us);
            self.stats.nodes[at.node.index()].latencies.add(latency_us);
            if latency_us >= SLOW_US && tracing::enabled!(tracing::Level::DEBUG) {
                self.core.tell_slow(at, latency_us);
            }
        }
        self.core.handle_node_input(now, at);
    }
}

#[cfg(test)]
#[path = "worker/tests.rs"]
mod tests;
