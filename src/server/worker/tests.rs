//! A worker over in-memory streams, in virtual time.

use futures::FutureExt;
use futures::future::BoxFuture;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::backend::NodeStream;
use crate::ids::{Life, NodeId, WorkerId};
use crate::keys::{Missed, MissedBudget};
use crate::proxy::{CoreSettings, Flow, Follower, Route};
use crate::ring::{Distribution, Topology};
use crate::server::Timekeeper;

/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_millis(800);

/// Hands out the far ends of what it connects.
struct Dialer(UnboundedSender<DuplexStream>);

impl Dial for Dialer {
    fn dial(&self, _: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let (near, far) = duplex(1 << 16);
        self.0.send(far).expect("the test waits");
        std::future::ready(Ok(NodeStream::from(near))).boxed()
    }
}

/// What the worker is given, tells and dials.
struct World {
    clients: UnboundedSender<DuplexStream>,
    events: UnboundedReceiver<Event>,
    dialled: UnboundedReceiver<DuplexStream>,
    _commands: UnboundedSender<Command>,
}

impl World {
    fn connect(&self) -> DuplexStream {
        let (client, near) = duplex(1 << 16);
        self.clients.send(near).expect("accepted");
        client
    }
}

/// What a worker with one node is made of, beside its listeners; what it is told with; what it
/// tells.
fn parts(dialer: Arc<dyn Dial>) -> (Core, WorkerSetup, UnboundedSender<Command>, UnboundedReceiver<Event>) {
    let topology = Arc::new(Topology::new(&["n:1".parse().expect("a server")], &[], Distribution::Modula));
    let settings = CoreSettings {
        worker: WorkerId(0),
        workers: 1,
        lanes: 1,
        timeout_us: TIMEOUT.as_micros() as u64,
        leader_timeout_us: TIMEOUT.as_micros() as u64,
        item_size_max: 1 << 20,
        operator_commands: true,
    };
    let stats = Arc::new(WorkerStats::new(1));
    let core = Core::new(settings, topology.clone(), stats.clone(), Arc::default());
    let ((command, commands), (event, events)) = (unbounded_channel(), unbounded_channel());
    let (peer, inbox) = unbounded_channel();
    let setup = WorkerSetup {
        dialer,
        commands,
        events: event,
        inbox,
        peers: vec![peer],
        stats,
        tick: Duration::from_millis(10),
        live: LiveSettings {
            timeout: TIMEOUT,
            leader_timeout: TIMEOUT,
            operator_commands: true,
            max_clients: 10,
            idle_timeout: None,
            shutdown_grace: Duration::ZERO,
        },
        clients: Arc::default(),
        later: unbounded_channel().1,
        beyond: Beyond::default(),
        work: Arc::new(Work::new(1)),
        unclean: Arc::default(),
        patience: None,
        beat: None,
    };
    for pair in topology.pairs() {
        let missed = Arc::new(Missed::new(Arc::new(MissedBudget::new(1 << 20))));
        let leader = topology.nodes_of(pair).0;
        let flow = Flow {
            leader,
            follower: Follower::None,
            term: None,
            writable: true,
            missed,
            lone: Arc::new(crate::keys::Lone::new(Arc::new(crate::keys::MissedBudget::new(1 << 20)))),
            written: None,
        };
        command.send(Command::Open { pair, route: Route::Open(flow) }).expect("taken");
        command.send(Command::Allow { node: leader, incarnation: None, life: Life(1) }).expect("taken");
    }
    (core, setup, command, events)
}

/// A worker in a task of its own.
fn start() -> World {
    let ((dial, dialled), (clients, accepted)) = (unbounded_channel(), unbounded_channel());
    let (core, setup, command, events) = parts(Arc::new(Dialer(dial)));
    let listeners = vec![Listener::Memory(accepted)];
    spawn_local(run(core, setup, listeners, (1, 1), CancellationToken::new()));
    World { clients, events, dialled, _commands: command }
}

/// The clock is looked at once for many reads, but never later than in the turn before: a node is
/// not blamed for time in which it was not asked.
#[tokio::test(start_paused = true)]
async fn a_request_counts_from_when_it_was_read_and_not_from_an_earlier_turn() {
    LocalSet::new()
        .run_until(async {
            let mut world = start();
            let mut client = world.connect();
            client.write_all(b"get k\r\n").await.expect("sent");
            let mut node = world.dialled.recv().await.expect("a connection");
            let mut asked = [0; 7];
            let mut answer = [0; 5];
            node.read_exact(&mut asked).await.expect("asked");
            node.write_all(b"END\r\n").await.expect("answered");
            client.read_exact(&mut answer).await.expect("answered");
            for start in ["", "g", "get", "get k\r"] {
                // The beginning of a request gives nobody anything to write.
                client.write_all(start.as_bytes()).await.expect("sent");
                tokio::time::sleep(2 * TIMEOUT).await;
                client.write_all(&b"get k\r\n"[start.len()..]).await.expect("sent");
                node.read_exact(&mut asked).await.expect("asked");
                tokio::time::sleep(TIMEOUT / 2).await;
                while let Ok(event) = world.events.try_recv() {
                    assert!(!blames(&event), "behind {start:?}: {event:?}");
                }
                node.write_all(b"END\r\n").await.expect("answered");
                client.read_exact(&mut answer).await.expect("answered");
                assert_eq!((&asked, &answer), (b"get k\r\n", b"END\r\n"));
            }
            // That it would be told.
            client.write_all(b"get k\r\n").await.expect("sent");
            let told = async { while !blames(&world.events.recv().await.expect("the worker lives")) {} };
            let begun = Instant::now();
            tokio::time::timeout(4 * TIMEOUT, told).await.expect("told of a node that does not answer");
            assert!((TIMEOUT..2 * TIMEOUT).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        })
        .await;
}

/// Over TCP.
struct TcpDialer(SocketAddr);

impl Dial for TcpDialer {
    fn dial(&self, _: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let addr = self.0;
        async move { Ok(NodeStream::from(tokio::net::TcpStream::connect(addr).await?)) }.boxed()
    }
}

/// A worker on an io_uring instance, in a thread of its own, over real sockets.
struct UringWorld {
    node: TcpListener,
    front: SocketAddr,
    events: UnboundedReceiver<Event>,
    timekeeper: Timekeeper,
    shutdown: CancellationToken,
    worker: Option<JoinHandle<()>>,
    _commands: UnboundedSender<Command>,
}

fn listening(socket: &TcpListener, kept: bool) -> Listener {
    let socket = socket.try_clone().expect("a handle");
    socket.set_nonblocking(true).expect("set");
    Listener::Tcp(Listening { socket: tokio::net::TcpListener::from_std(socket).expect("registered"), kept })
}

impl UringWorld {
    /// `None` where the system has no io_uring.
    fn start() -> Option<UringWorld> {
        let uring = Uring::for_test()?;
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        // So that little is enough to fill a connection.
        socket.set_recv_buffer_size(4096).expect("set");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bound");
        socket.listen(8).expect("listening");
        let node = TcpListener::from(socket);
        let clients = TcpListener::bind("127.0.0.1:0").expect("bound");
        clients.set_nonblocking(true).expect("set");
        let front = clients.local_addr().expect("an address");
        let (core, setup, commands, events) = parts(Arc::new(TcpDialer(node.local_addr().expect("an address"))));
        let shutdown = CancellationToken::new();
        let (until, timekeeper) = (shutdown.clone(), Timekeeper::start("timekeeper".to_owned()).expect("a thread"));
        let runtime = timekeeper.handle.clone();
        let worker = std::thread::spawn(move || {
            let _entered = runtime.enter();
            let listener = listening(&clients, false);
            run_on_uring(core, setup, (uring.start().expect("started"), vec![listener]), (1, 1), until);
        });
        Some(UringWorld { node, front, events, timekeeper, shutdown, worker: Some(worker), _commands: commands })
    }

    fn connect(&self) -> TcpStream {
        patient(TcpStream::connect(self.front).expect("connected"))
    }

    /// The next connection to the node.
    fn dialled(&self) -> TcpStream {
        self.node.set_nonblocking(true).expect("set");
        for _ in 0..3_000 {
            match self.node.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).expect("set");
                    return patient(stream);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        panic!("the node is not dialled");
    }

    /// Until the worker tells this.
    fn wait_for(&mut self, what: &str, is_it: impl Fn(&Event) -> bool) {
        let events = &mut self.events;
        let told = async { while !is_it(&events.recv().await.expect("the worker lives")) {} };
        let in_time = async { tokio::time::timeout(Duration::from_secs(30), told).await };
        self.timekeeper.handle.block_on(in_time).unwrap_or_else(|_| panic!("not told: {what}"));
    }

    fn wait_for_fault(&mut self, why: Reason) {
        self.wait_for("a fault", |event| matches!(event, Event::Fault { reason, .. } if *reason == why));
    }
}

impl Drop for UringWorld {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let ended = self.worker.take().expect("joined once").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the worker panicked");
    }
}

/// Half of an answer's time is nobody's fault.
fn blames(event: &Event) -> bool {
    matches!(event, Event::Fault { .. }) || matches!(event, Event::Late { age, .. } if *age >= TIMEOUT)
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    stream
}

const ASK: &[u8; 7] = b"get k\r\n";

/// The node is asked and answers, the client has the answer.
fn answer(client: &mut TcpStream, node: &mut TcpStream) {
    let (mut asked, mut answer) = ([0; 7], [0; 5]);
    node.read_exact(&mut asked).expect("asked");
    node.write_all(b"END\r\n").expect("answered");
    client.read_exact(&mut answer).expect("answered");
    assert_eq!((&asked, &answer), (ASK, b"END\r\n"));
}

/// More than the node's connection takes, from clients that wait for it. Returns what the node sees
/// of it.
fn fill(world: &mut UringWorld) -> (Vec<TcpStream>, TcpStream) {
    let mut clients: Vec<_> = (0..4).map(|_| world.connect()).collect();
    for client in &mut clients {
        for _ in 0..3 {
            client.write_all(b"set k 0 0 1000000\r\n").expect("sent");
            client.write_all(&[b'x'; 1_000_000]).expect("sent");
            client.write_all(b"\r\n").expect("sent");
        }
    }
    let node = world.dialled();
    // It is late, so everything was handed over, as far as it went.
    world.wait_for("a late node", blames);
    (clients, node)
}

/// A connection in doubt has drained when the *node* has closed it: until then it may carry out
/// what it was sent.
#[test]
fn a_node_in_doubt_whose_connection_takes_no_more_sees_the_end_and_is_waited_for() {
    let Some(mut world) = UringWorld::start() else { return };
    let (_clients, mut node) = fill(&mut world);
    node.write_all(b"nonsense\r\n").expect("sent");
    world.wait_for("in doubt", |event| matches!(event, Event::Undrained { .. }));
    let (mut read, mut block) = (0, vec![0; 1 << 16]);
    loop {
        match node.read(&mut block).expect("its end") {
            0 => break,
            n => read += n,
        }
    }
    assert!(read < 11_000_000, "what was not sent by then is not sent any more, but {read} bytes came");
    // Time for what must not happen.
    std::thread::sleep(TIMEOUT / 4);
    while let Ok(event) = world.events.try_recv() {
        assert!(!matches!(event, Event::Drained { .. }), "not closed yet");
    }
    drop(node);
    world.wait_for("drained", |event| matches!(event, Event::Drained { .. }));
}

/// What waits for room on a connection must not go on waiting on the next one. (A node that is
/// killed mostly fails the send first.)
#[test]
fn a_node_that_ends_while_its_connection_takes_no_more_is_written_to_over_the_next() {
    let Some(mut world) = UringWorld::start() else { return };
    let (_clients, first) = fill(&mut world);
    first.shutdown(Shutdown::Write).expect("half closed");
    world.wait_for_fault(Reason::Reset);
    let mut client = world.connect();
    client.write_all(ASK).expect("sent");
    let mut second = world.dialled();
    answer(&mut client, &mut second);
}

/// It sleeps with nothing that would wake it but what comes, and then with a tick.
#[test]
fn a_worker_that_was_at_rest_notices_that_a_node_is_late_and_blames_it_for_no_time_before() {
    let Some(mut world) = UringWorld::start() else { return };
    let mut client = world.connect();
    client.write_all(ASK).expect("sent");
    let mut node = world.dialled();
    answer(&mut client, &mut node);
    for _ in 0..2 {
        std::thread::sleep(TIMEOUT + TIMEOUT / 4);
        while world.events.try_recv().is_ok() {}
        let begun = std::time::Instant::now();
        client.write_all(ASK).expect("sent");
        answer(&mut client, &mut node);
        // If this took longer, the test itself stood still.
        if begun.elapsed() < TIMEOUT / 2 {
            assert!(world.events.try_recv().is_err(), "nothing is wrong");
        }
    }
    std::thread::sleep(TIMEOUT / 4);
    while world.events.try_recv().is_ok() {}
    client.write_all(ASK).expect("sent");
    world.wait_for("a late node", blames);
}

/// Nodes are not to blame for the time in which a worker that stops takes what clients have sent,
/// and sends nothing on.
#[test]
fn the_clock_stands_while_a_worker_that_stops_takes_what_clients_have_sent() {
    let Some(uring) = Uring::for_test() else { return };
    let timekeeper = Timekeeper::start("timekeeper".to_owned()).expect("a thread");
    let _entered = timekeeper.handle.enter();
    let tasks = LocalSet::new();
    let _local = tasks.enter();
    let node = SocketAddr::from(([127, 0, 0, 1], 1));
    let (core, setup, _commands, _events) = parts(Arc::new(TcpDialer(node)));
    let (worker, _beginning) = Worker::new(core, setup, Some(uring.start().expect("started")), (1, 1));
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
    let (accepted, _) = listener.accept().expect("accepted");
    accepted.set_nonblocking(true).expect("set");
    worker.admit(Stream::Tcp(tokio::net::TcpStream::from_std(accepted).expect("registered")));
    client.write_all(b"version\r\n").expect("sent");
    worker.work(|shell| {
        let before = shell.now();
        std::thread::sleep(TIMEOUT / 100);
        shell.last_calls();
        assert!(shell.core.dirty_clients() > 0, "heard");
        assert_eq!(shell.core.now().us, before.us, "meanwhile");
        assert!(shell.now().date_us - before.date_us >= (TIMEOUT / 100).as_micros() as u64);
        assert_eq!(shell.now().us, before.us, "afterwards");
    });
}

/// To who has connected the system has said that somebody is there, be it accepted yet or not; and
/// as long as anybody listens it says so to others, who would wait for the end of the process.
#[test]
fn who_has_connected_by_the_end_is_answered_and_nobody_can_after_it() {
    let timekeeper = Timekeeper::start("timekeeper".to_owned()).expect("a thread");
    for (uring, kept) in [(None, false), (None, true), (Uring::for_test(), false), (Uring::for_test(), true)] {
        let socket = TcpListener::bind("127.0.0.1:0").expect("bound");
        let at = socket.local_addr().expect("an address");
        let mut waits = patient(TcpStream::connect(at).expect("connected"));
        waits.write_all(b"version\r\n").expect("sent");
        let (core, setup, _commands, _events) = parts(Arc::new(TcpDialer(at)));
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        match uring {
            Some(uring) => {
                let _entered = timekeeper.handle.enter();
                let listeners = vec![listening(&socket, kept)];
                run_on_uring(core, setup, (uring.start().expect("started"), listeners), (1, 1), shutdown);
            }
            None => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                LocalSet::new().block_on(&runtime, async {
                    run(core, setup, vec![listening(&socket, kept)], (1, 1), shutdown).await;
                });
            }
        }
        if kept {
            // Whoever listens next takes it.
            let (mut later, _) = socket.accept().expect("it waits");
            later.write_all(b"VERSION").expect("sent");
        }
        let mut answer = [0; 7];
        waits.read_exact(&mut answer).expect("answered");
        assert_eq!(&answer, b"VERSION");
        assert_eq!(TcpStream::connect(at).is_ok(), kept);
    }
}

/// Of `node` and `stats` nothing is left behind that the next start would have to compare; of a
/// write that no server has answered there is.
#[tokio::test(start_paused = true)]
async fn who_only_asks_leaves_nothing_unfinished() {
    for (said, unfinished) in [("node n:1 version\r\n", false), ("stats\r\n", false), ("set k 0 0 1\r\nv\r\n", true)] {
        let ended = async {
            let ((dial, _dialled), (clients, accepted)) = (unbounded_channel(), unbounded_channel());
            let (core, setup, _command, _events) = parts(Arc::new(Dialer(dial)));
            let (unclean, shutdown) = (setup.unclean.clone(), CancellationToken::new());
            let stopping = shutdown.clone();
            let worker = spawn_local(run(core, setup, vec![Listener::Memory(accepted)], (1, 1), stopping));
            let (mut client, near) = duplex(1 << 16);
            clients.send(near).expect("accepted");
            client.write_all(said.as_bytes()).await.expect("sent");
            tokio::time::sleep(TIMEOUT / 8).await;
            shutdown.cancel();
            worker.await.expect("it ends");
            let mut told = String::new();
            client.read_to_string(&mut told).await.expect("closed");
            assert!(told.starts_with("SERVER_ERROR"), "{said}: {told}");
            unclean.load(Ordering::Relaxed)
        };
        assert_eq!(LocalSet::new().run_until(ended).await, unfinished, "{said}");
    }
}

/// Of very many clients that have left nothing stays behind the last one that is there.
#[tokio::test(start_paused = true)]
async fn places_of_clients_that_have_left_go_back() {
    LocalSet::new()
        .run_until(async {
            let (dial, _dialled) = unbounded_channel();
            let (core, setup, _command, _events) = parts(Arc::new(Dialer(dial)));
            let (worker, _beginning) = Worker::new(core, setup, None, (1, 1));
            spawn_local(worker.clone().flush_forever());
            let mut clients: Vec<DuplexStream> = Vec::new();
            for _ in 0..5 {
                let (client, near) = duplex(1 << 16);
                worker.admit(Stream::Memory(crate::server::stream::InMemory::new(near)));
                clients.push(client);
            }
            let places = || worker.shell.borrow().clients.len();
            assert_eq!(places(), 5);
            for (at, left) in [(1, 5), (3, 4), (2, 3), (1, 1), (0, 0)] {
                drop(clients.remove(at));
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert_eq!(places(), left);
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_gives_back_what_a_burst_has_needed_of_its_uring_and_rests_then() {
    let Some(mut uring) = Uring::for_test() else { return };
    uring.stretch();
    let (dial, _dialled) = unbounded_channel();
    let (core, setup, _command, _events) = parts(Arc::new(Dialer(dial)));
    let (worker, _beginning) = Worker::new(core, setup, Some(uring), (1, 1));
    for (millis, rests) in [(900, false), (200, true)] {
        tokio::time::advance(Duration::from_millis(millis)).await;
        worker.work(Shell::give_back);
        assert_eq!(worker.shell.borrow().is_quiet(), rests);
    }
}
