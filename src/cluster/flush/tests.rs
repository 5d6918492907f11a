//! Flushes of which nodes take no notice, or only a part.

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::cluster::alone::alone;
use crate::ids::WorkerId;
use crate::proxy::{ClientId, ClientKey, Command, Event, Occupant, SlotNumber};
use crate::rules::off::without;

const NODE: NodeId = NodeId(0);

/// A connection that is checked while the flush is under way finds the name that this gives, or
/// finds it before its worker was told: that is no loss. Nor is it forgotten later on that
/// another name is one.
#[tokio::test(start_paused = true)]
async fn the_name_that_a_flush_gives_is_no_other_memory() {
    let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
    cluster.begin_open(State::Mirrored);
    let before = Incarnation(7 << 32);
    cluster.nodes.iter_mut().for_each(|run| run.incarnation = Some(before));
    let asker = Asker {
        worker: WorkerId(0),
        client: ClientKey { id: ClientId(0), occupant: Occupant(0) },
        slot: SlotNumber(1),
    };
    cluster.flush_all(asker, 0);
    cluster.settle();
    let (pair, round) = (PairId(0), cluster.pairs[PairId(0)].round);
    cluster.worker_said(Event::Closed { worker: WorkerId(0), pair, round });
    cluster.settle();
    assert!(cluster.flush.awaits(NODE), "it is sent");
    let (life, name) = (cluster.nodes[NODE].life, before.flushed(5));
    let told = |cluster: &mut Cluster, life| {
        cluster.worker_said(Event::Fault { node: NODE, life, reason: Reason::MarkerStale });
        cluster.nodes[NODE].health.is_up()
    };
    assert!(told(&mut cluster, life), "told before the answer came");
    cluster.flushed(NODE, Some(name), Ok(Flushed::Done), None);
    assert_eq!(cluster.nodes[NODE].incarnation, Some(name));
    assert!(told(&mut cluster, life), "told before the worker knew the name");
    assert!(!told(&mut cluster, life.next()), "told of another name than this");
}

/// Two flushes, and the first is executed once more, late: it puts its own markers back. It is
/// noticed by the name in them.
#[test]
fn a_flush_that_is_executed_late_gives_no_present_name() {
    let passes_unnoticed = || {
        let first = new_name(Incarnation(7 << 32));
        new_name(first) == first
    };
    assert!(!passes_unnoticed());
    assert!(without(Some(Rule::FlushIsANewMemory), passes_unnoticed));
}

/// A node does not answer. Its items are void for whoever comes after this proxy only once it
/// is recorded that the other one leads alone. What the client is told at last.
async fn flush_that_one_missed(is_full: bool) -> String {
    let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
    cluster.begin_open(State::Mirrored);
    let mut told = heard(&mut cluster);
    cluster.nodes.iter_mut().for_each(|run| run.incarnation = Some(Incarnation(7 << 32)));
    let asker = Asker {
        worker: WorkerId(0),
        client: ClientKey { id: ClientId(0), occupant: Occupant(0) },
        slot: SlotNumber(1),
    };
    let pair = PairId(0);
    let closed = |cluster: &mut Cluster| {
        let round = cluster.pairs[pair].round;
        cluster.worker_said(Event::Closed { worker: WorkerId(0), pair, round });
        cluster.settle();
    };
    cluster.flush_all(asker, 0);
    cluster.settle();
    closed(&mut cluster);
    cluster.flushed(NODE, None, Err(MarkError::Node(crate::backend::NodeError::Timeout)), None);
    cluster.flushed(NodeId(1), None, Ok(Flushed::Done), None);
    cluster.settle();
    assert!(cluster.flush.is_active(), "the gate is being closed");
    closed(&mut cluster);
    assert!(cluster.flush.is_active(), "it is being recorded");
    let epoch = cluster.pairs[pair].pair.epoch();
    let refused = || Err((NodeId(1), MarkError::Refused("SERVER_ERROR out of memory".to_owned())));
    cluster.recorded(pair, epoch, refused());
    cluster.settle();
    assert!(cluster.flush.is_active(), "it is tried again");
    if is_full {
        tokio::time::advance(cluster.settings.leader_timeout).await;
        cluster.recorded(pair, epoch, refused());
    } else {
        cluster.recorded(pair, epoch, Ok(()));
    }
    cluster.settle();
    assert!(!cluster.flush.is_active());
    answered(&mut told)
}

/// What the client was told.
fn answered(told: &mut UnboundedReceiver<Command>) -> String {
    loop {
        if let Command::Answer { outcome: Outcome::Raw(said), .. } = told.try_recv().expect("it was answered") {
            return String::from_utf8_lossy(&said).into();
        }
    }
}

/// What workers are told.
fn heard(cluster: &mut Cluster) -> UnboundedReceiver<Command> {
    let (worker, told) = unbounded_channel();
    cluster.workers = vec![worker];
    told
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_nobody_could_record_is_not_called_done() {
    assert_eq!(flush_that_one_missed(false).await, "OK\r\n");
    let said = flush_that_one_missed(true).await;
    assert!(said.starts_with("SERVER_ERROR no server could record the flush"), "{said}");
}

/// A full node refused its record for long; the flush gives it room.
#[tokio::test(start_paused = true)]
async fn a_record_that_was_refused_before_a_flush_is_tried_again_after_it() {
    let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
    cluster.begin_recording(State::Degraded { leader: crate::ids::Place::Primary });
    cluster.nodes.iter_mut().for_each(|run| run.incarnation = Some(Incarnation(7 << 32)));
    let mut told = heard(&mut cluster);
    let pair = PairId(0);
    let epoch = cluster.pairs[pair].pair.epoch();
    tokio::time::advance(cluster.settings.leader_timeout).await;
    cluster.recorded(pair, epoch, Err((NODE, MarkError::Refused("SERVER_ERROR out of memory".to_owned()))));
    let asker = Asker {
        worker: WorkerId(0),
        client: ClientKey { id: ClientId(0), occupant: Occupant(0) },
        slot: SlotNumber(1),
    };
    cluster.flush_all(asker, 0);
    cluster.settle();
    for node in [NODE, NodeId(1)].into_iter().filter(|&node| cluster.flush.awaits(node)).collect::<Vec<_>>() {
        cluster.flushed(node, None, Ok(Flushed::Done), None);
    }
    cluster.settle();
    assert!(cluster.flush.is_active(), "it is tried again");
    cluster.recorded(pair, epoch, Ok(()));
    cluster.settle();
    assert_eq!(answered(&mut told), "OK\r\n");
}

/// Both are cut off, and what was sent to them may never come.
#[tokio::test(start_paused = true)]
async fn a_flush_that_may_have_reached_nobody_is_not_called_done() {
    let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
    cluster.begin_open(State::Mirrored);
    let mut told = heard(&mut cluster);
    cluster.nodes.iter_mut().for_each(|run| run.incarnation = Some(Incarnation(7 << 32)));
    let asker = Asker {
        worker: WorkerId(0),
        client: ClientKey { id: ClientId(0), occupant: Occupant(0) },
        slot: SlotNumber(1),
    };
    cluster.flush_all(asker, 0);
    cluster.settle();
    for _ in 0..3 {
        let (pair, round) = (PairId(0), cluster.pairs[PairId(0)].round);
        cluster.worker_said(Event::Closed { worker: WorkerId(0), pair, round });
        cluster.settle();
        for node in [NODE, NodeId(1)].into_iter().filter(|&node| cluster.flush.awaits(node)).collect::<Vec<_>>() {
            let late = MarkError::Node(crate::backend::NodeError::Timeout);
            cluster.flushed(node, None, Err(late), Some(cluster.address_number(node)));
        }
        cluster.settle();
    }
    while cluster.flush.is_active() {
        let said = cluster.inbox.as_mut().expect("not running").recv().await.expect("something goes on");
        if let Internal::NobodyRecorded { carried } = said {
            cluster.nobody_recorded(carried);
        }
        cluster.settle();
    }
    let said = answered(&mut told);
    assert!(said.starts_with("SERVER_ERROR no server could record the flush"), "{said}");
}

/// The name is written whether or not the flush is refused, unless that is refused too.
#[tokio::test(start_paused = true)]
async fn a_node_that_refuses_the_flush_has_the_name_that_it_stored() {
    for renamed in [true, false] {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
        cluster.begin_open(State::Mirrored);
        let (before, name) = (Incarnation(7 << 32), Incarnation(7 << 32).flushed(5));
        cluster.nodes[NODE].incarnation = Some(before);
        let result = Ok(Flushed::Refused { said: "CLIENT_ERROR flush_all not allowed".to_owned(), renamed });
        cluster.flushed(NODE, Some(name), result, None);
        assert_eq!(cluster.nodes[NODE].incarnation, Some(if renamed { name } else { before }));
    }
}
