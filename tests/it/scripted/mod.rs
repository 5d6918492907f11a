//! Scripted nodes: model memcacheds over in-memory streams, which hold every command on an item
//! until they are told to run it.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex};

use futures::future::{BoxFuture, FutureExt};
use resilver::internals::backend::{Dial, NodeStream};
use resilver::internals::ids::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::memcached::{Item, Memcached, command_len};

/// What the nodes' clocks show: they stand still, for a run takes some milliseconds of virtual
/// time.
const NOW: i64 = 1_700_000_000;
/// An exptime for ever.
pub(crate) const NEVER: i64 = 0;

/// What is deliberately wrong with the world, to show that the checks can fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    /// The source answers a verify with what the copier has read, whatever stands there: as if
    /// there were no verify.
    NoVerify,
    /// As if NOT_STORED were taken for a newer write: the target answers it as stored, and the
    /// verify finds nothing wrong.
    TrustNotStored,
    /// The data path executes incr on the follower instead of dropping the copy.
    Reexecute,
    /// The data path writes to the follower first.
    FollowerFirst,
    /// A source without cas ids answers a second read as it did the first: as if the content were
    /// not verified.
    NoContentVerify,
    /// The data path does not note what it writes to the leader alone.
    NotNoted,
    /// The owner of a key adds what only the target held although a client has written the key.
    ForgetsWrites,
    /// The data path does not note what it drops on the target.
    DropsNotNoted,
    /// An adoption is taken up again although copies stand on the target.
    AdoptsCopies,
    /// What clients wrote in the target's absence is not deleted there before the adoption goes on.
    NotPurgedOfWritten,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) memory: Memcached,
    refuses: bool,
}

impl Default for Node {
    fn default() -> Node {
        Node { memory: Memcached::at(NOW), refuses: false }
    }
}

impl Node {
    pub(crate) fn put(&mut self, key: &str, value: &str, exptime: i64) {
        self.memory.put(key.as_bytes(), value.as_bytes(), 0, exptime);
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Item> {
        self.memory.items.get(key.as_bytes())
    }

    /// Value and date of expiry.
    pub(crate) fn content(&self, key: &str) -> Option<(String, i64)> {
        self.get(key).map(|item| (String::from_utf8_lossy(&item.value).into_owned(), item.exptime))
    }

    /// The TTL changes, the cas id does not.
    pub(crate) fn touch(&mut self, key: &str, ttl: i64) {
        self.execute(&format!("touch {key} {ttl}\r\n"));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.memory.items.remove(key.as_bytes());
    }

    fn execute(&mut self, command: &str) -> String {
        let mut answer = Vec::new();
        self.memory.execute(command.as_bytes(), &mut answer);
        String::from_utf8(answer).expect("text")
    }

    /// As if this stood under the key.
    fn pretend(&mut self, key: &str, item: Item, command: &str) -> String {
        let truth = self.memory.items.insert(key.into(), item);
        let answer = self.execute(command);
        self.remove(key);
        self.memory.items.extend(truth.map(|item| (key.into(), item)));
        answer
    }
}

struct Connection {
    node: usize,
    pending: VecDeque<String>,
    replies: Option<mpsc::UnboundedSender<String>>,
    /// Everything that went over it: with the nodes' contents it determines what the job knows.
    transcript: Digest,
    last_read: BTreeMap<String, Item>,
    /// Of a job that has ended: what it knew is gone with it, and what it sent may still be run.
    of_the_past: bool,
}

pub(crate) struct World {
    pub(crate) nodes: [Node; 2],
    connections: Vec<Connection>,
    pub(crate) fault: Fault,
}

pub(crate) type Shared = Arc<Mutex<World>>;

impl World {
    pub(crate) fn new(fault: Fault) -> World {
        World { nodes: [Node::default(), Node::default()], connections: Vec::new(), fault }
    }

    /// Connections on which a command is held.
    pub(crate) fn held(&self) -> Vec<usize> {
        (0..self.connections.len()).filter(|&i| !self.connections[i].pending.is_empty()).collect()
    }

    pub(crate) fn describe(&self, connection: usize) -> String {
        let c = &self.connections[connection];
        format!("{} runs {:?}", if c.node == 0 { "leader" } else { "target" }, c.pending.front())
    }

    /// Runs the oldest command of a connection and answers it.
    pub(crate) fn execute(&mut self, connection: usize) {
        let command = self.connections[connection].pending.pop_front().expect("a command is held");
        let reply = self.run(connection, &command);
        let c = &mut self.connections[connection];
        (&command, &reply).hash(&mut c.transcript);
        if let Some(replies) = &c.replies {
            let _ = replies.send(reply);
        }
    }

    /// Breaks all connections to a node. Commands held are lost or, with `executed`, run without an
    /// answer.
    pub(crate) fn break_connections(&mut self, node: usize, executed: bool) {
        for i in 0..self.connections.len() {
            if self.connections[i].node == node {
                self.connections[i].replies = None;
                while executed && !self.connections[i].pending.is_empty() {
                    self.execute(i);
                }
                self.connections[i].pending.clear();
            }
        }
    }

    /// SIGKILL; the process is there again at once, empty, and counts cas ids from 1.
    pub(crate) fn kill(&mut self, node: usize) {
        self.break_connections(node, false);
        self.nodes[node] = Node::default();
    }

    pub(crate) fn refuse(&mut self, node: usize) {
        self.break_connections(node, false);
        self.nodes[node].refuses = true;
    }

    /// The job has ended, and another one begins.
    pub(crate) fn forget_the_job(&mut self) {
        for c in &mut self.connections {
            (c.of_the_past, c.transcript) = (true, Digest::default());
        }
    }

    pub(crate) fn hash(&self, hasher: &mut impl Hasher) {
        for node in &self.nodes {
            node.memory.items.hash(hasher);
            node.memory.cas.hash(hasher);
        }
        for c in self.connections.iter().filter(|c| !c.of_the_past || !c.pending.is_empty()) {
            (c.node, c.pending.iter().collect::<Vec<_>>(), c.transcript.finish(), c.replies.is_some()).hash(hasher);
        }
    }

    fn run(&mut self, connection: usize, command: &str) -> String {
        let line = command.split("\r\n").next().unwrap_or(command);
        let words: Vec<&str> = line.split(' ').collect();
        let (fault, c) = (self.fault, &mut self.connections[connection]);
        let node = &mut self.nodes[c.node];
        let key = words.get(1).copied().unwrap_or_default();
        let lie = match words[0] {
            "mg" if words.contains(&"v") => {
                let read = c.last_read.remove(key);
                let lie = read.filter(|item| fault == Fault::NoContentVerify && item.cas == 0);
                if let (None, Some(item)) = (&lie, node.get(key)) {
                    c.last_read.insert(key.to_owned(), item.clone());
                }
                lie
            }
            "mg" if fault == Fault::NoVerify => c.last_read.get(key).cloned(),
            _ => None,
        };
        if let Some(item) = lie {
            return node.pretend(key, item, command);
        }
        if let ("ms", Fault::TrustNotStored, Some(item)) = (words[0], fault, node.get(key)) {
            return format!("HD k{key} c{}\r\n", item.cas);
        }
        let answer = node.execute(command);
        if let ("ms", Some(item)) = (words[0], node.memory.items.get_mut(key.as_bytes())) {
            item.exptime = to_the_nearest(item.exptime);
        }
        answer
    }
}

/// Dials the scripted nodes.
pub(crate) struct ScriptedDialer(pub(crate) Shared);

impl Dial for ScriptedDialer {
    fn dial(&self, node: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let world = self.0.clone();
        async move {
            let (near, far) = duplex(1 << 12);
            let (replies, mut answers) = mpsc::unbounded_channel();
            let id = {
                let mut w = world.lock().unwrap();
                if w.nodes[node.index()].refuses {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                w.connections.push(Connection {
                    node: node.index(),
                    pending: VecDeque::new(),
                    replies: Some(replies),
                    transcript: Digest::default(),
                    last_read: BTreeMap::new(),
                    of_the_past: false,
                });
                w.connections.len() - 1
            };
            tokio::spawn(async move { serve(far, id, &world, &mut answers).await });
            Ok(NodeStream::from(near))
        }
        .boxed()
    }
}

async fn serve(mut stream: DuplexStream, id: usize, world: &Shared, answers: &mut mpsc::UnboundedReceiver<String>) {
    let mut input = Vec::new();
    loop {
        tokio::select! {
            biased;
            reply = answers.recv() => match reply {
                Some(reply) => stream.write_all(reply.as_bytes()).await.unwrap_or(()),
                // The node broke the connection.
                None => return,
            },
            n = stream.read_buf(&mut input) => {
                if !matches!(n, Ok(n) if n > 0) {
                    // The peer is gone; what it sent stays held and is executed at any later time,
                    // as on a hung node.
                    std::future::pending::<()>().await;
                }
                while let Some(command) = take_command(&mut input) {
                    let mut w = world.lock().unwrap();
                    let held = command.starts_with('m');
                    w.connections[id].pending.push_back(command);
                    if !held {
                        w.execute(id);
                    }
                }
            }
        }
    }
}

fn take_command(input: &mut Vec<u8>) -> Option<String> {
    let len = command_len(input)?;
    Some(String::from_utf8_lossy(&input.drain(..len).collect::<Vec<u8>>()).into_owned())
}

/// No time passes on a model node, and it tells its own to the second only, while a copy's date
/// counts on: all times to live in these tests are hundreds of seconds, and a date is understood to
/// the nearest.
fn to_the_nearest(date: i64) -> i64 {
    if date == 0 { 0 } else { NOW + (date - NOW + 50) / 100 * 100 }
}
