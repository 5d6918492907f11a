//! Records written on a real memcached, many at once: on the memory that they are meant for, and never over a later one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::Memcached;
use resilver::internals::backend::marker::{Fact, Leftovers, Period, Record, RingMark, Session};
use resilver::internals::backend::{Addresses, MarkError, NodeControl, TcpDialer};
use resilver::internals::ids::{Epoch, Incarnation, NodeId, PairId, Place, Term};
use resilver::internals::ring::NodeAddr;

const MEMORY: Incarnation = Incarnation(7);
const PAIRS: u32 = 500;

fn record(epoch: u64) -> Record {
    Record { epoch: Epoch(epoch), fact: Fact::Alone(Place::Primary), term: Term(1), period: Period(1) }
}

async fn marked(node: &Memcached) -> Arc<NodeControl> {
    let port = node.addr().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let addr = NodeAddr { host: "127.0.0.1".to_owned(), port };
    let second = Duration::from_secs(1);
    let control = Arc::new(NodeControl::new(
        NodeId(0),
        Arc::new(TcpDialer::new(Arc::new(Addresses::new([addr].iter())), second)),
        second,
    ));
    let ring = RingMark {
        fingerprint: 1,
        node: NodeId(0),
        primaries: 1,
        backups: 1,
        period: Period(1),
        term: Term(1),
        leftovers: Leftovers::Clean,
    };
    control.mark(None, MEMORY, ring, Session { id: 1, open: true }).await.expect("markers");
    control
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
