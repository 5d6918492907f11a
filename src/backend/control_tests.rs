//! One node over a stream in memory: how long it is waited for, and a flush in the midst of what is
//! asked of it.

use std::io;
use std::sync::Mutex as StdMutex;

use bytes::BytesMut;
use futures::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::sleep;

use super::*;
use crate::backend::NodeStream;
use crate::ids::Generation;
use crate::testing::memcached::{Memcached, command_len};

const TIMEOUT: Duration = Duration::from_millis(250);

/// Dialled once.
struct Once(StdMutex<Option<DuplexStream>>);

impl Dial for Once {
    fn dial(&self, _: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let stream = self.0.lock().expect("not poisoned").take().map(NodeStream::from);
        async { stream.ok_or(io::ErrorKind::ConnectionRefused.into()) }.boxed()
    }
}

/// A memcached from 1.6.25 on whose items were all written in the second of the flush: it leaves
/// them alone.
#[derive(Default)]
struct Node {
    memory: Memcached,
    /// Before it takes each command.
    pause: Duration,
    executed: usize,
    /// Somebody flushes it before it executes the command of this number.
    flushed_before: Option<usize>,
}

impl Node {
    async fn serve(mut self, mut stream: DuplexStream) {
        let mut input = BytesMut::new();
        loop {
            while let Some(len) = command_len(&input) {
                let command = input.split_to(len);
                sleep(self.pause).await;
                if stream.write_all(&self.execute(&command)).await.is_err() {
                    return;
                }
            }
            if !matches!(stream.read_buf(&mut input).await, Ok(1..)) {
                return;
            }
        }
    }

    fn execute(&mut self, command: &[u8]) -> Vec<u8> {
        self.memory.flushes += u64::from(self.flushed_before == Some(self.executed));
        self.executed += 1;
        let mut answer = Vec::new();
        self.memory.execute(command, &mut answer);
        answer
    }
}

fn control(node: Node) -> NodeControl {
    let (near, far) = duplex(1 << 16);
    tokio::spawn(node.serve(far));
    NodeControl::new(NodeId(0), Arc::new(Once(StdMutex::new(Some(near)))), Arc::default(), TIMEOUT)
}

/// How looking at it ends, and when. It is asked for some 300 markers.
async fn look(pause: Duration) -> (Result<(), NodeError>, Duration) {
    let control = control(Node { pause, ..Node::default() });
    let begun = Instant::now();
    let view = control.view(300).await;
    (view.map(drop), begun.elapsed())
}

/// A restart's look at a node with many pairs takes as long as it takes.
#[tokio::test(start_paused = true)]
async fn a_node_that_answers_one_marker_after_the_other_is_waited_for() {
    let (result, took) = look(Duration::from_millis(10)).await;
    assert_eq!(result, Ok(()));
    assert!(took > 10 * TIMEOUT, "{took:?}");
}

/// Fewer than eight answers within the timeout are no progress.
#[tokio::test(start_paused = true)]
async fn a_node_that_drips_answers_is_not() {
    let (result, took) = look(Duration::from_millis(40)).await;
    assert_eq!(result, Err(NodeError::Timeout));
    assert!(took < 3 * TIMEOUT, "{took:?}");
}

/// Whenever somebody flushes a node on which a marker is put back, its memory counts as gone:
/// nothing else shows it where the marker has outlived the flush.
#[tokio::test(start_paused = true)]
async fn a_flush_at_any_moment_of_a_restore_is_seen() {
    let markers = [(marker::INCARNATION_KEY.to_owned(), Incarnation(7).to_string())];
    let mut outcomes = Vec::new();
    // The look is three commands for its statistics, and five markers.
    for flushed_before in 8..16 {
        let control = control(Node { flushed_before: Some(flushed_before), ..Node::default() });
        let seen = control.view(0).await.expect("seen");
        outcomes.push(control.restore(&seen, &markers).await);
    }
    let asked = outcomes.iter().position(Result::is_ok).expect("flushed when it was over");
    assert_eq!(asked, 6, "read, taken, read, counted, written, counted");
    assert!(outcomes[..asked].iter().all(|outcome| *outcome == Err(MarkError::MemoryGone)), "{outcomes:?}");
    assert!(outcomes[asked..].iter().all(Result::is_ok), "{outcomes:?}");
}

fn fleet_mark(generation: u64, name: &str, address: &str) -> FleetMark {
    let (name, address) = (name.to_owned(), address.to_owned());
    FleetMark { name, generation: Generation(generation), address, lease: Duration::ZERO }
}

/// What may stand on a server of generation 7 of the fleet `a`, and whether that one may work
/// there.
fn fleet_marks() -> [(Option<FleetMark>, bool); 4] {
    [
        (None, true),
        (Some(fleet_mark(6, "a", "there:1")), true),
        (Some(fleet_mark(8, "a", "there:1")), false),
        (Some(fleet_mark(6, "b", "there:1")), false),
    ]
}

/// A server with that mark.
fn marked(incarnation: Incarnation, mark: Option<&FleetMark>) -> Node {
    let mut node = Node::default();
    let markers = [(marker::INCARNATION_KEY, Some(incarnation.to_string()))];
    let markers = markers.into_iter().chain([(marker::FLEET_KEY, mark.map(FleetMark::to_string))]);
    for (key, value) in markers.filter_map(|(key, value)| Some((key, value?))) {
        node.execute(format!("set {key} 0 0 {}\r\n{value}\r\n", value.len()).as_bytes());
    }
    node
}

/// It was executed, and took the marks away with all else: nobody else would tell.
#[tokio::test(start_paused = true)]
async fn a_flush_of_a_proxy_that_was_replaced_is_told_apart() {
    for (there, allowed) in fleet_marks() {
        let node = marked(Incarnation(7), there.as_ref());
        let control = control(node).of_fleet(Some(fleet_mark(7, "a", "here:1")));
        let flushed = control.flush(None, &[], Duration::from_secs(1), std::future::pending()).await;
        match flushed {
            Ok(flushed) => assert!(allowed && matches!(flushed, Flushed::Done), "{there:?}: {flushed:?}"),
            Err((error, _)) => assert_eq!((Some(error), allowed), (there.map(MarkError::OfFleet), false)),
        }
    }
}

/// A later generation's mark, or another fleet's, may have come after the node was looked at.
#[tokio::test(start_paused = true)]
async fn a_mark_of_a_later_generation_or_of_another_fleet_is_not_written_over() {
    let own = fleet_mark(7, "a", "here:1");
    for (there, allowed) in fleet_marks() {
        let incarnation = Incarnation(7);
        let control = control(marked(incarnation, there.as_ref())).of_fleet(Some(own.clone()));
        let written = control.fleet_again(incarnation).await;
        let expected = if allowed { Ok(()) } else { Err(MarkError::OfFleet(there.clone().expect("a mark"))) };
        assert_eq!(written, expected, "{there:?}");
        let found = control.view(0).await.expect("seen").fleet;
        assert_eq!(found, if allowed { Some(own.clone()) } else { there });
    }
}
