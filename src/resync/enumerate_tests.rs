//! Listing the keys of a server whose crawler is slow, busy or broken.

use std::io;
use std::sync::{Arc, Mutex};

use futures::future::{BoxFuture, FutureExt, ready};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

use super::super::spool::Spool;
use super::super::table::GROWS_WITHIN;
use super::*;
use crate::backend::{Dial, NodeStream};

const NODE: NodeId = NodeId(0);
const PATIENCE: Duration = Duration::from_secs(10);

/// A server whose dumps do not come to their end by themselves. (The tests' clock stands still
/// except where all tasks wait: a sleep of theirs lets the others go first.)
struct Server {
    stats: Mutex<Vec<&'static str>>,
    /// How a dump begins, and what comes behind that by itself, piece by piece.
    first: &'static str,
    behind: Mutex<Vec<&'static str>>,
    dumps: Mutex<Vec<DuplexStream>>,
}

/// What it has told of itself when it is asked once more.
const AT_REST: &str = "STAT hash_power_level 16\r\nSTAT hash_is_expanding 0\r\nSTAT curr_items 9\r\nEND\r\n";
const FULL: &str = "STAT hash_power_level 16\r\nSTAT hash_is_expanding 0\r\nSTAT curr_items 97000\r\nEND\r\n";
const GROWING: &str = "STAT hash_power_level 17\r\nSTAT hash_is_expanding 1\r\nSTAT curr_items 98305\r\nEND\r\n";
const KEY: &str = "key=a exp=-1 la=1 cas=5 fetch=no cls=1 size=60\n";

impl Default for Server {
    fn default() -> Server {
        Server { stats: Mutex::default(), first: KEY, behind: Mutex::default(), dumps: Mutex::default() }
    }
}

impl Server {
    fn dumps(&self) -> usize {
        self.dumps.lock().unwrap().len()
    }

    async fn serve(self: Arc<Server>, mut stream: DuplexStream) {
        let mut line = Vec::new();
        while let Ok(byte) = stream.read_u8().await {
            line.push(byte);
            if byte != b'\n' {
                continue;
            }
            if std::mem::take(&mut line).starts_with(b"lru_crawler metadump") {
                let behind = std::mem::take(&mut *self.behind.lock().unwrap());
                let (near, far) = behind.split_first().map_or(("", &[][..]), |(near, far)| (*near, far));
                stream.write_all([self.first, near].concat().as_bytes()).await.unwrap();
                for piece in far {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    stream.write_all(piece.as_bytes()).await.unwrap();
                }
                return self.dumps.lock().unwrap().push(stream);
            }
            let next = self.stats.lock().unwrap().pop().unwrap_or(AT_REST);
            stream.write_all(next.as_bytes()).await.unwrap();
        }
    }

    /// Its crawler goes on.
    async fn goes_on(&self) {
        let mut stream = self.dumps.lock().unwrap().pop().expect("it was asked for a dump");
        stream.write_all(format!("{KEY}END\r\n").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

struct Dialer(Arc<Server>);

impl Dial for Dialer {
    fn dial(&self, _: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let (near, far) = duplex(1 << 16);
        tokio::spawn(self.0.clone().serve(far));
        ready(Ok(NodeStream::from(near))).boxed()
    }
}

fn context(server: &Arc<Server>) -> Context {
    let mut ctx = Context::alone(Arc::new(Dialer(server.clone())), 1);
    ctx.tuning.source_timeout = PATIENCE;
    ctx
}

async fn keys(ctx: &Context) -> Result<usize, DumpError> {
    let disk = Spool::new(1 << 20).disk();
    let mut keys = 0;
    let each = |_: DumpLine<'_>| {
        keys += 1;
        Ok(())
    };
    enumerate(ctx, NODE, &disk, each).await.map(|_| keys)
}

/// Each further dump would block one of its threads, until none is left for clients.
#[tokio::test(start_paused = true)]
async fn a_server_whose_crawler_stands_still_is_asked_for_one_dump_alone() {
    let server = Arc::new(Server::default());
    let ctx = context(&server);
    for _ in 0..3 {
        assert!(matches!(keys(&ctx).await, Err(DumpError::StandsStill)));
        assert_eq!(server.dumps(), 1);
    }
    // It was slow, no more: whoever waits for it has its turn.
    let waits = async { ctx.shared.crawls.is_free(NODE).await };
    let (_, waited) = tokio::join!(server.goes_on(), timeout(PATIENCE, waits));
    assert!(waited.is_ok());
    let asked = async {
        while server.dumps() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.goes_on().await;
    };
    let (found, ()) = tokio::join!(keys(&ctx), asked);
    assert_eq!(found.unwrap(), 2);
}

/// Whoever asked has gone, as a client that did not wait for the end of its list.
#[tokio::test(start_paused = true)]
async fn a_dump_that_nobody_wants_any_more_is_read_to_its_end() {
    let server = Arc::new(Server::default());
    let ctx = context(&server);
    assert!(timeout(Duration::from_secs(1), keys(&ctx)).await.is_err());
    assert!(timeout(Duration::from_secs(1), keys(&ctx)).await.is_err());
    assert_eq!(server.dumps(), 1);
    server.goes_on().await;
    assert!(timeout(Duration::from_secs(1), keys(&ctx)).await.is_err());
    assert_eq!(server.dumps(), 1, "asked for anew");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_for_while_the_hash_table_grows() {
    let server = Arc::new(Server::default());
    let ctx = context(&server);
    *server.stats.lock().unwrap() = vec![AT_REST, GROWING, GROWING, FULL, FULL];
    let mut asked = Box::pin(keys(&ctx));
    while server.stats.lock().unwrap().len() > 1 {
        assert!(timeout(Duration::from_millis(1), &mut asked).await.is_err());
        assert_eq!(server.dumps(), 0);
    }
    assert!(timeout(Duration::from_secs(1), &mut asked).await.is_err());
    assert_eq!(server.dumps(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_table_that_does_not_grow_is_walked() {
    let server = Arc::new(Server::default());
    let ctx = context(&server);
    *server.stats.lock().unwrap() = vec![FULL; 100];
    let began = Instant::now();
    let mut asked = Box::pin(keys(&ctx));
    while server.dumps() == 0 {
        assert!(timeout(Duration::from_millis(10), &mut asked).await.is_err());
    }
    let waited = began.elapsed();
    assert!((GROWS_WITHIN..GROWS_WITHIN * 2).contains(&waited), "{waited:?}");
}

/// What comes behind an error is not lost with it: nobody would wait in vain for an end that has
/// come.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_dump_is_found_in_the_same_bytes_as_what_spoilt_it() {
    for behind in [&["END\r\n"][..], &["key=", "b exp=-1 la=1 cas=0 fetch=no cls=1 size=60\nEN", "D\r\n"]] {
        let server =
            Arc::new(Server { first: "key=a exp=-1 la=1 cas=0 fetch=no cls=1 size=60\n", ..Server::default() });
        server.behind.lock().unwrap().extend(behind);
        let ctx = context(&server);
        assert!(matches!(keys(&ctx).await, Err(DumpError::Cannot(_))));
        assert!(timeout(PATIENCE, ctx.shared.crawls.is_free(NODE)).await.is_ok(), "{behind:?}");
        assert_eq!(server.dumps(), 1, "not before its end: {behind:?}");
    }
}

/// It is read for whoever comes next, as slowly as it comes.
#[tokio::test(start_paused = true)]
async fn a_dump_that_goes_on_is_waited_for() {
    let server = Arc::new(Server::default());
    let ctx = context(&server);
    assert!(timeout(Duration::from_secs(1), keys(&ctx)).await.is_err());
    let mut asked = Box::pin(keys(&ctx));
    for _ in 0..15 {
        assert!(timeout(Duration::from_secs(1), &mut asked).await.is_err(), "lines come");
        let mut dump = server.dumps.lock().unwrap().pop().unwrap();
        dump.write_all(KEY.as_bytes()).await.unwrap();
        server.dumps.lock().unwrap().push(dump);
    }
    assert!(matches!(timeout(2 * PATIENCE, asked).await, Ok(Err(DumpError::StandsStill))));
}

/// Whatever the one before is still at.
#[tokio::test(start_paused = true)]
async fn another_server_of_the_same_name_is_asked_at_once() {
    let server = Arc::new(Server::default());
    let ctx = context(&server);
    assert!(matches!(keys(&ctx).await, Err(DumpError::StandsStill)));
    ctx.shared.crawls.moved(NODE);
    assert!(timeout(Duration::from_secs(1), keys(&ctx)).await.is_err());
    assert_eq!(server.dumps(), 2);
}
