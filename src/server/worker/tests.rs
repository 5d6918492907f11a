//! A worker over in-memory streams, in virtual time.

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::proxy::{CoreSettings, Flow, Follower, Route};
use crate::resync::{Missed, MissedBudget};
use crate::ring::{Distribution, Topology};

/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_millis(800);

/// Hands out the far ends of what it connects.
struct Dialer(UnboundedSender<DuplexStream>);

impl Dial for Dialer {
    fn dial(&self, _: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let (near, far) = duplex(1 << 16);
        self.0.send(far).expect("the test waits");
        std::future::ready(Ok(NodeStream::Memory(near))).boxed()
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

/// A worker with one node, in a task of its own.
fn start() -> World {
    let topology = Arc::new(Topology::new(&["n:1".parse().expect("a server")], &[], Distribution::Modula));
    let settings = CoreSettings {
        worker: 0,
        workers: 1,
        lanes: 1,
        timeout_us: TIMEOUT.as_micros() as u64,
        leader_timeout_us: TIMEOUT.as_micros() as u64,
        item_size_max: 1 << 20,
    };
    let stats = Arc::new(WorkerStats::new(1));
    let core = Core::new(settings, topology.clone(), stats.clone(), Arc::default());
    let ((command, commands), (event, events)) = (unbounded_channel(), unbounded_channel());
    let ((peer, inbox), (dial, dialled)) = (unbounded_channel(), unbounded_channel());
    let (clients, accepted) = unbounded_channel();
    let setup = WorkerSetup {
        dialer: Arc::new(Dialer(dial)),
        commands,
        events: event,
        inbox,
        peers: vec![peer],
        stats,
        tick: Duration::from_millis(10),
        idle_timeout: None,
        clients: Arc::default(),
        max_clients: 10,
        work: Arc::new(Work::new(1)),
        unclean: Arc::default(),
    };
    for pair in topology.pairs() {
        let missed = Arc::new(Missed::new(Arc::new(MissedBudget::new(1 << 20))));
        let leader = topology.nodes_of(pair).0;
        let flow = Flow { leader, follower: Follower::None, term: None, writable: true, missed, written: None };
        command.send(Command::Open { pair, route: Route::Open(flow) }).expect("taken");
        command.send(Command::Allow { node: leader, incarnation: None, life: 1, unix_time: 1_000_000 }).expect("taken");
    }
    let entrance = Entrance { listeners: vec![Listener::Memory(accepted)], ring: None };
    spawn_local(run(core, setup, entrance, 1, 1, CancellationToken::new(), Duration::ZERO));
    World { clients, events, dialled, _commands: command }
}

/// The clock is looked at once for many reads, but never later than in the turn before: a node is not blamed for time in which it was not asked.
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
                    assert!(!matches!(event, Event::Fault { .. }), "behind {start:?}: {event:?}");
                }
                node.write_all(b"END\r\n").await.expect("answered");
                client.read_exact(&mut answer).await.expect("answered");
                assert_eq!((&asked, &answer), (b"get k\r\n", b"END\r\n"));
            }
            // That it would be told.
            client.write_all(b"get k\r\n").await.expect("sent");
            let told =
                async { while !matches!(world.events.recv().await.expect("the worker lives"), Event::Fault { .. }) {} };
            let begun = Instant::now();
            tokio::time::timeout(4 * TIMEOUT, told).await.expect("told of a node that does not answer");
            assert!((TIMEOUT..2 * TIMEOUT).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        })
        .await;
}
