//! Test: an active proxy, as standbys see it, that says what it likes.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ids::Generation;
use crate::report::lines::Lines;
use crate::report::names;

use super::keeper::Known;
use super::peers::{self, Caller};
use super::relay::{Shared, Target};

pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) struct Active {
    pub(super) listener: TcpListener,
    generation: Generation,
}

impl Active {
    pub(super) async fn new(generation: u64) -> Active {
        Active { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), generation: Generation(generation) }
    }

    pub(super) fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// What relays go by.
    pub(super) fn target(&self) -> Target {
        Target { active: Some((self.generation, self.address())), ..Target::default() }
    }

    /// What a standby has read.
    pub(super) fn known(&self) -> Known {
        Known { generation: self.generation, active: Some(self.address()), ..Known::default() }
    }

    /// The next connection, and its first line.
    pub(super) async fn called(&self) -> (TcpStream, String) {
        let (mut stream, _) = timeout(LONG, self.listener.accept()).await.expect("it is dialled").unwrap();
        let mut line = String::new();
        while !line.ends_with('\n') {
            line.push(timeout(LONG, stream.read_u8()).await.expect("a first line").unwrap().into());
        }
        (stream, line)
    }

    /// The next connection, which is welcome.
    pub(super) async fn welcome(&self, purpose: &str) -> TcpStream {
        let (mut stream, line) = self.called().await;
        let wanted = format!("proxy 2 {} {purpose} fleet", self.generation);
        assert!(line.starts_with(&wanted), "{line}");
        stream.write_all(format!("PROXY 2 {}\r\n", self.generation).as_bytes()).await.unwrap();
        stream
    }

    /// The next connection, which is not.
    pub(super) async fn refuse(&self, why: &str) {
        let (mut stream, _) = self.called().await;
        stream.write_all(format!("REFUSED {why}\r\n").as_bytes()).await.unwrap();
    }
}

/// What a standby of one client at a time shares.
pub(super) fn shared(target: watch::Receiver<Target>, takeover_wait: Duration, lease: Duration) -> Shared {
    let (address, connects) = ("10.0.0.6:1".to_owned(), peers::over_tcp());
    let me = Caller { name: "fleet".into(), address, candidate: true, lease, connects };
    Shared {
        me,
        target,
        takeover_wait,
        clients: TaskTracker::new(),
        max_clients: 1,
        idle_timeout: None,
        links: TaskTracker::new(),
        shown: Arc::default(),
        hurry: Box::new(|| {}),
        show: Box::new(|| {
            let mut out = Lines::default();
            out.put(names::ROLE, "standby");
            out.end()
        }),
        over: CancellationToken::new(),
    }
}

/// It is closed.
pub(super) async fn ends(stream: &mut TcpStream) {
    assert_eq!(timeout(LONG, stream.read(&mut [0])).await.expect("it is closed").unwrap_or(0), 0, "it is closed");
}
