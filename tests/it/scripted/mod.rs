//! Scripted nodes: model memcacheds over in-memory streams, which hold every command on an item
//! until they are told to run it.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex};

use futures::future::{BoxFuture, FutureExt};
use resilver::internals::backend::{Dial, NodeStream};
use resilver::internals::ids::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

/// What stands under a key. TTLs do not count down: a run takes some milliseconds of virtual time.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Stored {
    pub(crate) value: String,
    pub(crate) ttl: i64,
    pub(crate) cas: u64,
}

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

#[derive(Default, Debug)]
pub(crate) struct Node {
    pub(crate) items: BTreeMap<String, Stored>,
    next_cas: u64,
    refuses: bool,
    /// Its crawler is off, and stays so.
    pub(crate) unlisted: bool,
    /// `-C`: all its cas ids are 0.
    pub(crate) no_cas: bool,
}

impl Node {
    pub(crate) fn put(&mut self, key: &str, value: &str, ttl: i64) -> u64 {
        self.next_cas += 1;
        let cas = if self.no_cas { 0 } else { self.next_cas };
        self.items.insert(key.to_owned(), Stored { value: value.to_owned(), ttl, cas });
        cas
    }
}

struct Connection {
    node: usize,
    pending: VecDeque<String>,
    replies: Option<mpsc::UnboundedSender<String>>,
    /// Everything that went over it: with the nodes' contents it determines what the job knows.
    transcript: DefaultHasher,
    last_read: BTreeMap<String, Stored>,
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

    pub(crate) fn hash(&self, hasher: &mut impl Hasher) {
        for node in &self.nodes {
            node.items.hash(hasher);
            node.next_cas.hash(hasher);
        }
        for c in &self.connections {
            (c.pending.iter().collect::<Vec<_>>(), c.transcript.finish(), c.replies.is_some()).hash(hasher);
        }
    }

    fn run(&mut self, connection: usize, command: &str) -> String {
        let (line, data) = command.split_once("\r\n").unwrap_or((command, ""));
        let words: Vec<&str> = line.split(' ').collect();
        let (fault, c) = (self.fault, &mut self.connections[connection]);
        let node = &mut self.nodes[c.node];
        let key = words.get(1).copied().unwrap_or_default().to_owned();
        let flag = |f: char| words.iter().skip(2).find_map(|w| w.strip_prefix(f));
        let standing = node.items.get(&key).cloned();
        match words[0] {
            "mn" => "MN\r\n".to_owned(),
            "mg" if words.contains(&"v") => {
                let lie = c.last_read.remove(&key).filter(|it| fault == Fault::NoContentVerify && it.cas == 0);
                if let (None, Some(it)) = (&lie, &standing) {
                    c.last_read.insert(key.clone(), it.clone());
                }
                match lie.or(standing) {
                    None => "EN\r\n".to_owned(),
                    Some(it) => {
                        format!("VA {} k{key} f0 t{} c{}\r\n{}\r\n", it.value.len(), it.ttl, it.cas, it.value)
                    }
                }
            }
            "mg" => {
                let lie = (fault == Fault::NoVerify).then(|| c.last_read.get(&key).cloned()).flatten();
                match lie.or(standing) {
                    None => "EN\r\n".to_owned(),
                    Some(it) => format!("HD k{key} t{} c{}\r\n", it.ttl, it.cas),
                }
            }
            "ms" => match standing {
                Some(it) if fault == Fault::TrustNotStored => format!("HD k{key} c{}\r\n", it.cas),
                Some(_) => format!("NS k{key} c0\r\n"),
                None => {
                    let ttl = match flag('T') {
                        Some("0") | None => -1,
                        Some(ttl) => remaining(ttl.parse().unwrap()),
                    };
                    let cas = node.put(&key, data.trim_end(), ttl);
                    format!("HD k{key} c{cas}\r\n")
                }
            },
            "md" => match (standing, flag('C').map(|c| c.parse::<u64>().unwrap())) {
                (None, _) => format!("NF k{key}\r\n"),
                (Some(it), Some(cas)) if it.cas != cas => format!("EX k{key}\r\n"),
                _ => {
                    node.items.remove(&key);
                    format!("HD k{key}\r\n")
                }
            },
            "stats" if words.len() == 1 => "STAT time 1700000000\r\nSTAT evictions 0\r\nEND\r\n".to_owned(),
            "stats" => "STAT cas_enabled yes\r\nEND\r\n".to_owned(),
            "lru_crawler" if words[1] == "enable" => "OK\r\n".to_owned(),
            "lru_crawler" if node.unlisted => "CLIENT_ERROR lru crawler disabled\r\n".to_owned(),
            "lru_crawler" => {
                let lines = node
                    .items
                    .iter()
                    .map(|(key, it)| format!("key={key} exp=-1 la=0 cas={} fetch=no cls=1 size=60\n", it.cas));
                lines.collect::<String>() + "END\r\n"
            }
            _ => "ERROR\r\n".to_owned(),
        }
    }
}

/// Dials the scripted nodes.
pub(crate) struct ScriptedDialer(pub(crate) Shared);

impl Dial for ScriptedDialer {
    fn dial(&self, node: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let world = self.0.clone();
        async move {
            let (near, far) = duplex(1 << 16);
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
                    transcript: DefaultHasher::new(),
                    last_read: BTreeMap::new(),
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
    let end = input.windows(2).position(|w| w == b"\r\n")? + 2;
    let line = String::from_utf8_lossy(&input[..end]).into_owned();
    let size = if line.starts_with("ms ") { line.split(' ').nth(2)?.parse::<usize>().ok()? + 2 } else { 0 };
    if input.len() < end + size {
        return None;
    }
    Some(String::from_utf8_lossy(&input.drain(..end + size).collect::<Vec<u8>>()).into_owned())
}

/// What is left until a date, as it is written in an `ms`. No time passes on a model node, and it
/// tells its own to the second only, while a copy's date counts on: all times to live in these
/// tests are hundreds of seconds, and a date is understood to the nearest.
fn remaining(exptime: i64) -> i64 {
    if exptime <= 30 * 24 * 60 * 60 { exptime } else { (exptime - 1_700_000_000 + 50) / 100 * 100 }
}
