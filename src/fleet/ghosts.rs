//! Connections that servers still have of a proxy which is no more: it ended, or its kernel gave
//! them up, while nothing of this host reached the servers. They keep them for hours, and whoever
//! took its place waits for them to close (`cluster/turn.rs`): what was sent may be under way.
//!
//! A process on the same host has them closed. It connects once more from the port of such a
//! connection. The server answers by the state of the old one, of which this kernel knows nothing:
//! it resets it (RFC 9293, 3.5.1). What was under way is refused from then on, and what had arrived
//! is executed before the server has closed it. So its list of connections stays the proof. A word
//! of the former proxy that all of its own are closed would be none: what left before may be
//! executed after that word (`models/fleet/ghosts.py`).
//!
//! A port that some socket of this host has cannot be taken: so nothing is closed that a process
//! here has, also one that stands still. Where hosts share an address (behind a NAT), a connection
//! that is not silent for a lease is somebody's.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::Settings;
use crate::ring::NodeAddr;

use super::keeper::{Known, Role};
use super::relay::Shared;

/// A server's list of 30,000 connections is shorter.
const MOST: usize = 8 << 20;
/// At one look, so that no more ports are taken at once; the others are had at the next ones.
const AT_ONCE: usize = 256;
/// A reset has left by then. (The connection itself comes, if at all, when it is asked for again,
/// after a second.)
const ANSWERED: Duration = Duration::from_millis(300);

pub(super) struct Ghosts {
    servers: Vec<NodeAddr>,
    known: watch::Receiver<Known>,
    shared: Arc<Shared>,
}

impl Ghosts {
    pub(super) fn new(settings: &Settings, known: watch::Receiver<Known>, shared: Arc<Shared>) -> Ghosts {
        let servers = settings.primaries.iter().chain(&settings.backups).map(|server| server.addr.clone());
        Ghosts { servers: servers.collect(), known, shared }
    }

    /// Looks for them once in a lease, while a former active proxy is awaited.
    pub(super) async fn run(self) {
        let lease = self.shared.me.lease;
        loop {
            sleep(lease).await;
            if !self.is_awaited() {
                continue;
            }
            join_all(self.servers.iter().map(|server| async move {
                // A server that does not answer is asked again.
                if let Ok(Ok(count @ 1..)) = timeout(lease, end_at(server, lease)).await {
                    tracing::info!(%server, count, "connections were reset that a proxy which is no more has left there");
                }
            }))
            .await;
        }
    }

    fn is_awaited(&self) -> bool {
        let known = self.known.borrow();
        match known.role {
            Role::Standby => known.awaits,
            Role::Active => self.shared.shown.former.load(Ordering::Relaxed),
            Role::Suspended => false,
        }
    }
}

/// Has those of this host closed that nobody here has. Returns how many there were.
async fn end_at(server: &NodeAddr, lease: Duration) -> io::Result<usize> {
    let mut stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
    let (own, at) = (stream.local_addr()?, stream.peer_addr()?);
    stream.write_all(b"stats conns\r\n").await?;
    let mut list = Vec::new();
    while !list.ends_with(b"END\r\n") {
        if stream.read_buf(&mut list).await? == 0 || list.len() > MOST {
            return Err(ErrorKind::InvalidData.into());
        }
    }
    let silent = silent_from(&list, own, lease);
    let ends = silent.into_iter().take(AT_ONCE).map(|from| end(from, at));
    Ok(join_all(ends).await.into_iter().filter(|taken| *taken).count())
}

/// Where connections come from, by a server's list, that come from this host and were silent for a
/// lease.
fn silent_from(list: &[u8], own: SocketAddr, lease: Duration) -> Vec<SocketAddr> {
    let least = lease.as_secs().max(1);
    let (mut found, mut from) = (Vec::new(), None);
    for line in String::from_utf8_lossy(list).lines() {
        let Some((name, value)) = line.strip_prefix("STAT ").and_then(|line| line.split_once(' ')) else { continue };
        match name.split_once(':') {
            Some((number, "addr")) => {
                // A server that listens on both families shows IPv4 within IPv6.
                let address = value.split_once(':').and_then(|(_, address)| address.parse::<SocketAddr>().ok());
                let here = address.filter(|a| a.ip().to_canonical() == own.ip().to_canonical());
                let port = here.map(|a| a.port()).filter(|port| *port != own.port());
                from = port.map(|port| (number.to_owned(), SocketAddr::new(own.ip(), port)));
            }
            Some((number, "secs_since_last_cmd")) => {
                let silent = value.parse::<u64>().is_ok_and(|seconds| seconds >= least);
                found.extend(from.take().filter(|(of, _)| silent && of == number).map(|(_, from)| from));
            }
            _ => {}
        }
    }
    found
}

/// Connects from there, and is reset, or resets; unless a socket of this host has that port.
async fn end(from: SocketAddr, at: SocketAddr) -> bool {
    let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let Ok(socket) = socket else { return false };
    // Nor is the new one to stay.
    if SockRef::from(&socket).set_linger(Some(Duration::ZERO)).is_err() || socket.bind(from).is_err() {
        return false;
    }
    // What comes of it the server's list will show.
    let _ = timeout(ANSWERED, socket.connect(at)).await;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::relay::Target;
    use crate::fleet::testing::shared;
    use tokio::net::TcpListener;

    const LEASE: Duration = Duration::from_secs(3);

    #[test]
    fn connections_of_this_host_that_are_silent_for_a_lease_may_be_of_nobody() {
        let own = "10.0.0.1:5000".parse().unwrap();
        for (address, seconds, found) in [
            ("tcp:10.0.0.1:5001", "3", true),
            ("tcp6:[::ffff:10.0.0.1]:5001", "3", true),
            ("tcp:10.0.0.1:5001", "2", false),
            ("tcp:10.0.0.2:5001", "3", false),
            // The one that asks.
            ("tcp:10.0.0.1:5000", "3", false),
            ("tcp:0.0.0.0:11211", "3", false),
            ("unix:/run/memcached", "3", false),
            ("tcp:10.0.0.1:5001", "", false),
            ("", "3", false),
        ] {
            let list = format!(
                "STAT 26:addr {address}\r\nSTAT 26:state conn_read\r\nSTAT 26:secs_since_last_cmd {seconds}\r\n"
            );
            let expected: Vec<SocketAddr> = if found { vec!["10.0.0.1:5001".parse().unwrap()] } else { vec![] };
            assert_eq!(silent_from(list.as_bytes(), own, LEASE), expected, "{list}");
        }
        let cut_short = b"STAT 26:addr tcp:10.0.0.1:5001\r\nSTAT 27:secs_since_last_cmd 9\r\nEND\r\n";
        assert_eq!(silent_from(cut_short, own, LEASE), vec![]);
    }

    /// Else what a process that stands still has would be closed, and it would count as gone.
    #[tokio::test]
    async fn a_connection_that_a_process_here_has_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (held, ends) = (TcpStream::connect(at).await.unwrap(), TcpStream::connect(at).await.unwrap());
        let _accepted = [listener.accept().await.unwrap(), listener.accept().await.unwrap()];
        let of_nobody = ends.local_addr().unwrap();
        SockRef::from(&ends).set_linger(Some(Duration::ZERO)).unwrap();
        drop(ends);
        assert!(!end(held.local_addr().unwrap(), at).await, "its port is taken");
        assert!(end(of_nobody, at).await);
        match timeout(LEASE, listener.accept()).await.expect("it is dialled") {
            Ok((_, from)) => assert_eq!(from, of_nobody),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "it is reset already"),
        }
    }

    #[test]
    fn they_are_looked_for_while_a_former_proxy_is_awaited() {
        let (shows, known) = watch::channel(Known::default());
        let shared = Arc::new(shared(watch::channel(Target::default()).1, LEASE, LEASE));
        let ghosts = Ghosts { servers: vec![], known, shared };
        for (role, awaits, former, looks) in [
            (Role::Standby, true, false, true),
            (Role::Standby, false, true, false),
            (Role::Active, false, true, true),
            (Role::Active, true, false, false),
            (Role::Suspended, true, true, false),
        ] {
            shows.send_replace(Known { role, awaits, ..Known::default() });
            ghosts.shared.shown.former.store(former, Ordering::Relaxed);
            assert_eq!(ghosts.is_awaited(), looks, "{role:?} {awaits} {former}");
        }
    }
}
