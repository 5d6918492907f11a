//! One node over a stream in memory: how long it is waited for, and a flush in the midst of what is
//! asked of it.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex as StdMutex;

use futures::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::time::sleep;

use super::*;
use crate::backend::NodeStream;

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
    items: HashMap<String, (String, u64)>,
    cas: u64,
    flushes: u64,
    /// Before it takes each command.
    pause: Duration,
    executed: usize,
    /// Somebody flushes it before it executes the command of this number.
    flushed_before: Option<usize>,
}

impl Node {
    async fn serve(mut self, stream: DuplexStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = String::new();
            if !matches!(stream.read_line(&mut line).await, Ok(1..)) {
                return;
            }
            let words: Vec<&str> = line.trim_end().split(' ').collect();
            let mut data = Vec::new();
            if words[0] == "ms" {
                data.resize(words[2].parse::<usize>().expect("a length") + 2, 0);
                stream.read_exact(&mut data).await.expect("the value");
                data.truncate(data.len() - 2);
            }
            sleep(self.pause).await;
            let answer = self.execute(&words, String::from_utf8(data).expect("a marker"));
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn execute(&mut self, words: &[&str], data: String) -> String {
        self.flushes += u64::from(self.flushed_before == Some(self.executed));
        self.executed += 1;
        let there = words.get(1).and_then(|key| self.items.get(*key));
        match words[0] {
            "stats" => format!("STAT cmd_flush {}\r\nEND\r\n", self.flushes),
            "mg" => there.map_or_else(
                || "EN\r\n".to_owned(),
                |(value, cas)| format!("VA {} c{cas}\r\n{value}\r\n", value.len()),
            ),
            "ms" => {
                let guard = words.iter().skip(3).find_map(|word| word.strip_prefix('C'));
                if guard.is_some_and(|cas| there.is_none_or(|(_, found)| found.to_string() != cas)) {
                    return "EX\r\n".to_owned();
                }
                self.cas += 1;
                self.items.insert(words[1].to_owned(), (data, self.cas));
                "HD\r\n".to_owned()
            }
            other => panic!("not asked of it: {other}"),
        }
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
    // The look is two commands for its statistics, and four markers.
    for flushed_before in 6..14 {
        let control = control(Node { flushed_before: Some(flushed_before), ..Node::default() });
        let seen = control.view(0).await.expect("seen");
        outcomes.push(control.restore(&seen, &markers).await);
    }
    let asked = outcomes.iter().position(Result::is_ok).expect("flushed when it was over");
    assert_eq!(asked, 6, "read, taken, read, counted, written, counted");
    assert!(outcomes[..asked].iter().all(|outcome| *outcome == Err(MarkError::MemoryGone)), "{outcomes:?}");
    assert!(outcomes[asked..].iter().all(Result::is_ok), "{outcomes:?}");
}
