//! Markers and records written on a real memcached: on the memory that they are meant for alone,
//! and records never over a later one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Client, Memcached};
use resilver::internals::backend::marker::{
    Fact, INCARNATION_KEY, Leftovers, Period, RING_KEY, Record, RingMark, Session, UNSURE,
};
use resilver::internals::backend::{
    Addresses, Flushed, MarkError, Memories, NewName, NodeControl, NodeError, NodeView, Pipe, TcpDialer,
};
use resilver::internals::ids::{Epoch, Incarnation, NodeId, PairId, Place, SessionId, Term};
use resilver::internals::ring::NodeAddr;

const MEMORY: Incarnation = Incarnation(7);
const PAIRS: u32 = 500;

fn record(epoch: u64) -> Record {
    Record { epoch: Epoch(epoch), fact: Fact::Alone(Place::Primary), term: Term(1), period: Period(1) }
}

fn control(addr: &str) -> Arc<NodeControl> {
    let port = addr.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let addr = NodeAddr { host: "127.0.0.1".to_owned(), port };
    let second = Duration::from_secs(1);
    let dialer = TcpDialer::new(Arc::new(Addresses::new([addr].iter())), second, 10 * second);
    Arc::new(NodeControl::new(NodeId(0), Arc::new(dialer), Arc::default(), second))
}

async fn mark(control: &NodeControl, seen: &NodeView) -> Result<(), MarkError> {
    let ring = RingMark {
        fingerprint: 1,
        node: NodeId(0),
        primaries: 1,
        backups: 1,
        period: Period(1),
        term: Term(1),
        leftovers: Leftovers::Clean,
    };
    control.mark(seen, MEMORY, ring, Session { id: SessionId(1), open: true }).await.map(drop)
}

async fn marked(node: &Memcached) -> Arc<NodeControl> {
    let control = control(&node.addr());
    let seen = control.view(0).await.expect("a look");
    mark(&control, &seen).await.expect("markers");
    control
}

/// What a connection that reads the marker would see.
fn shown(node: &Memcached) -> Option<String> {
    let found = node.client().get(INCARNATION_KEY).expect("an answer");
    found.map(|item| String::from_utf8_lossy(&item.value).into_owned())
}

fn markers() -> Vec<(String, String)> {
    let of = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    vec![of(INCARNATION_KEY, &MEMORY.to_string()), of(RING_KEY, "a ring")]
}

/// The process that was looked at is gone, and another one answers already, over a connection of
/// its own.
async fn replaced(node: &mut Memcached, control: &NodeControl) {
    node.kill();
    node.restart();
    let begun = Instant::now();
    while control.probe(&[]).await.is_err() && begun.elapsed() < crate::support::DEADLINE {}
    control.probe(&[]).await.expect("an answer of the new process");
}

/// The epochs on the node, by pair; 0 where there is no record.
async fn epochs(control: &NodeControl) -> Vec<u64> {
    let mut epochs = vec![0; PAIRS as usize];
    for (pair, record) in control.view(PAIRS as usize).await.expect("a view").records {
        epochs[pair.0 as usize] = record.epoch.0;
    }
    epochs
}

#[tokio::test]
async fn only_the_process_that_was_looked_at_is_marked() {
    let mut node = Memcached::start(&[]);
    let control = control(&node.addr());
    let seen = control.view(0).await.expect("a look");
    replaced(&mut node, &control).await;
    // It may hold anything: it was restarted warm, or somebody has filled it.
    node.client().set("old", b"1").expect("stored");
    assert_eq!(mark(&control, &seen).await, Err(MarkError::Node(NodeError::Reset)));
    assert_eq!(shown(&node), None);
    let again = control.view(0).await.expect("a look");
    mark(&control, &again).await.expect("markers");
    assert_eq!((again.curr_items, shown(&node)), (1, Some(MEMORY.to_string())));
}

#[tokio::test]
async fn evicted_markers_are_written_again_only_where_their_absence_was_seen() {
    let mut node = Memcached::start(&[]);
    let control = marked(&node).await;
    let evict = |node: &Memcached| node.client().delete(INCARNATION_KEY).expect("deleted");
    evict(&node);
    let seen = control.view(0).await.expect("a look");
    assert_eq!(control.restore(&seen, &markers()).await, Ok(()));
    assert_eq!(shown(&node), Some(MEMORY.to_string()));
    // As a try that was cut off leaves it.
    evict(&node);
    node.client().set(INCARNATION_KEY, UNSURE.as_bytes()).expect("stored");
    let seen = control.view(0).await.expect("a look");
    assert_eq!((seen.incarnation, seen.incarnation_unread), (None, false));
    assert_eq!(control.restore(&seen, &markers()).await, Ok(()));
    assert_eq!(shown(&node), Some(MEMORY.to_string()));

    evict(&node);
    let seen = control.view(0).await.expect("a look");
    replaced(&mut node, &control).await;
    assert_eq!(control.restore(&seen, &markers()).await, Err(MarkError::Node(NodeError::Reset)));
    assert_eq!(shown(&node), None, "another process would pass for the memory that is gone");
}

#[tokio::test]
async fn a_connection_waits_while_nobody_is_sure_of_the_memory() {
    let node = Memcached::start(&[]);
    drop(marked(&node).await);
    let second = Duration::from_secs(1);
    let port = node.port();
    let addr = NodeAddr { host: "127.0.0.1".to_owned(), port };
    let dialer = TcpDialer::new(Arc::new(Addresses::new([addr].iter())), second, 10 * second);
    let memories = Memories::default();
    let connect = |patience: Duration| {
        let deadline = tokio::time::Instant::now() + patience;
        Pipe::connect_to(&dialer, NodeId(0), Some((&memories, MEMORY)), deadline)
    };
    node.client().set(INCARNATION_KEY, UNSURE.as_bytes()).expect("stored");
    assert_eq!(connect(Duration::from_millis(100)).await.err(), Some(NodeError::MarkerLost));
    let writing = async {
        // The connection has looked for the marker in vain by then, at least once.
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.client().set(INCARNATION_KEY, MEMORY.to_string().as_bytes()).expect("stored");
    };
    let (connected, ()) = tokio::join!(connect(crate::support::DEADLINE), writing);
    connected.expect("a connection");
}

/// The connection stays the same, and the memory does not: flushed after the look, and at every
/// step of the writing.
#[tokio::test]
async fn evicted_markers_are_not_written_on_a_memory_that_was_flushed_meanwhile() {
    for before in [&b"mg "[..], UNSURE.as_bytes(), b"stats\r\n", b" C"] {
        let node = Memcached::start(&[]);
        drop(marked(&node).await);
        node.client().delete(INCARNATION_KEY).expect("deleted");
        let (addr, armed) = flushing(node.addr(), before);
        let control = control(&addr);
        let seen = control.view(0).await.expect("a look");
        armed.store(true, Ordering::SeqCst);
        let result = control.restore(&seen, &markers()).await;
        let before = String::from_utf8_lossy(before);
        assert!(!armed.load(Ordering::SeqCst), "flushed before {before:?}");
        assert!(matches!(result, Err(MarkError::MemoryGone | MarkError::Refused(_))), "{before:?}: {result:?}");
        assert_ne!(shown(&node), Some(MEMORY.to_string()), "{before:?}");
    }
}

#[tokio::test]
async fn only_the_memory_that_is_meant_is_flushed() {
    let node = Memcached::start(&[]);
    drop(marked(&node).await);
    let flush = async |control: &NodeControl, from, to: Incarnation| {
        node.client().set("k", b"1").expect("stored");
        let markers = [(INCARNATION_KEY.to_owned(), to.to_string()), (RING_KEY.to_owned(), "a ring".to_owned())];
        let result = control
            .flush(Some(NewName { from, to }), &markers, Duration::from_secs(2), std::future::pending())
            .await
            .map_err(|(error, drain)| {
                assert!(drain.is_none(), "nothing was sent");
                error
            });
        (result, node.client().get("k").expect("an answer").is_some())
    };
    let other = control(&node.addr());
    let named = [MEMORY.flushed(1), MEMORY.flushed(2)];
    assert_eq!(flush(&other, MEMORY, named[0]).await, (Ok(Flushed::Done), false));
    assert_eq!(shown(&node), Some(named[0].to_string()));
    assert_eq!(flush(&other, Incarnation(8 << 32), named[1]).await, (Err(MarkError::OtherMemory), true));
    // What was begun before the flush, under the name before, is meant for this memory still.
    assert_eq!(other.record(MEMORY, PairId(0), record(1)).await, Ok(()));
    // But not by one that has not sent the flush: to that it is somebody else's.
    let stranger = control(&node.addr());
    assert_eq!(stranger.record(MEMORY, PairId(0), record(2)).await, Err(MarkError::OtherMemory));
    // Evicted: the process is known by the connection, or not at all.
    node.client().delete(INCARNATION_KEY).expect("deleted");
    let unknown = control(&node.addr());
    assert_eq!(flush(&unknown, named[0], named[1]).await, (Err(MarkError::MemoryGone), true));
    assert_eq!(flush(&other, named[0], named[1]).await, (Ok(Flushed::Done), false));
    assert_eq!(shown(&node), Some(named[1].to_string()));
}

/// In front of a node: where armed, somebody flushes it before it gets a command that has this in
/// it.
fn flushing(node: String, before: &'static [u8]) -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address").to_string();
    let armed = Arc::new(AtomicBool::new(false));
    let told = armed.clone();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let (node, armed) = (node.clone(), armed.clone());
            let mut server = TcpStream::connect(&node).expect("a connection");
            let (mut back, mut answers) =
                (client.try_clone().expect("a handle"), server.try_clone().expect("a handle"));
            std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
            std::thread::spawn(move || {
                let mut chunk = [0; 64 * 1024];
                while let Ok(n @ 1..) = client.read(&mut chunk) {
                    let due = memchr::memmem::find(&chunk[..n], before).is_some();
                    if due && armed.swap(false, Ordering::SeqCst) {
                        Client::connect(&node).command("flush_all").expect("flushed");
                    }
                    if server.write_all(&chunk[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (addr, told)
}

#[tokio::test]
async fn many_records_are_written_together_and_later_ones_stay() {
    let node = Memcached::start(&[]);
    let control = marked(&node).await;
    control.record(MEMORY, PairId(3), record(9)).await.expect("a record");
    // From many tasks, as pairs change one by one; every pair twice, in either order.
    for pair in 0..PAIRS {
        for epoch in if pair % 2 == 0 { [4, 5] } else { [5, 4] } {
            control.testify(MEMORY, [(PairId(pair), record(epoch))]);
        }
    }
    let expected: Vec<u64> = (0..PAIRS).map(|pair| if pair == 3 { 9 } else { 5 }).collect();
    let begun = Instant::now();
    while epochs(&control).await != expected && begun.elapsed() < crate::support::DEADLINE {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(epochs(&control).await, expected);
    // One that was on its way for long.
    control.record_all(MEMORY, &[(PairId(0), record(1)), (PairId(1), record(6))]).await.expect("written");
    assert_eq!(epochs(&control).await[..4], [5, 6, 5, 9]);
}

#[tokio::test]
async fn records_of_another_memory_are_not_written() {
    let node = Memcached::start(&[]);
    let control = marked(&node).await;
    let records = [(PairId(0), record(1)), (PairId(1), record(1))];
    assert_eq!(control.record_all(Incarnation(8), &records).await, Err(MarkError::OtherMemory));
    node.client().command("flush_all").expect("flushed");
    assert_eq!(control.record_all(MEMORY, &records).await, Err(MarkError::MemoryGone));
    assert_eq!(epochs(&control).await[..2], [0, 0]);
}
