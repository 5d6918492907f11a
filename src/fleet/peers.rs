//! How the proxies of a fleet talk to each other: the *peer listener* of the active one.
//!
//! A connection begins with one line each way, and is an ordinary client's from then on:
//!
//! ```text
//! proxy 1 GENERATION data NAME       ->   PROXY 1 GENERATION     or   REFUSED why
//! ```
//!
//! With `control` in the place of `data` it carries no requests: it ends when the active proxy
//! does, which the other one hears at once so, and `leaving` comes on it when the active one is
//! about to hand over. Whatever the other one sends on it is answered with one byte: that the
//! network between them is whole. At `leaving` nothing new is sent to it, and the control
//! connection is closed when all that was sent is answered.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc::UnboundedSender, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{FleetSettings, Settings};
use crate::daemon::cannot_accept;
use crate::ids::Generation;
use crate::lease::{self, Boot};
use crate::ring::NodeAddr;

/// Of what is said here; a proxy of another version is refused.
const VERSION: &str = "1";

/// What is sent on a control connection to hear of the other end, and its answer.
pub(super) const PING: u8 = b'?';
pub(super) const PONG: u8 = b'!';

/// Longer than any first line.
const LINE_MAX: usize = 256;

/// How long the first line may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// What an active proxy serves others with.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) generation: Generation,
    /// To the workers, by turns.
    pub(super) workers: Vec<UnboundedSender<std::net::TcpStream>>,
    /// It is about to hand over.
    pub(super) leaving: CancellationToken,
    /// Control connections of other proxies.
    pub(super) others: TaskTracker,
}

/// Where this proxy is while it is active.
pub(super) type Serves = watch::Sender<Option<Serving>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Data,
    Control,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Purpose::Data => "data",
            Purpose::Control => "control",
        }
    }
}

/// Binds the peer listener. Returns with it where other proxies reach this one.
///
/// # Errors
///
/// What the system refused, and what to give then.
pub(super) fn bind(settings: &Settings, own: &FleetSettings) -> io::Result<(StdListener, String)> {
    let first = settings.listen.first().map(SocketAddr::ip);
    let at = match &own.advertise {
        Some(address) => (address.host.as_str(), address.port).to_socket_addrs()?.next(),
        None => first.map(|ip| SocketAddr::new(ip, 0)),
    };
    let at = at.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
    if own.advertise.is_none() && at.ip().is_unspecified() {
        let name = super::host();
        return Err(io::Error::other(format!(
            "--advertise is missing: -l {} says nothing of where other proxies reach this one; give for example --advertise {name}:11300",
            at.ip()
        )));
    }
    let listener = StdListener::bind(at).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen for other proxies on {at}: {error}; give --advertise an address of this machine and a port that is free"))
    })?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let address = match &own.advertise {
        Some(address) => NodeAddr { port: bound.port(), ..address.clone() }.to_string(),
        None => bound.to_string(),
    };
    Ok((listener, address))
}

/// Takes connections of other proxies for as long as the runtime lives.
pub(super) async fn listen(
    listener: StdListener,
    name: Arc<str>,
    serves: watch::Receiver<Option<Serving>>,
    lease: Duration,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen for other proxies"),
    };
    let next = Arc::new(AtomicUsize::new(0));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (name, serves, next) = (name.clone(), serves.clone(), next.clone());
                tokio::spawn(async move {
                    // (Whoever is refused, or breaks off, has heard of it.)
                    let _ = tokio::time::timeout(PATIENCE, welcome(stream, &name, &serves)).await.map(|welcomed| {
                        if let Ok(Some((stream, serving, purpose))) = welcomed {
                            let _ = watched(&stream, purpose, lease);
                            match purpose {
                                Purpose::Data => hand_on(stream, &serving, &next),
                                Purpose::Control => drop(tokio::spawn(keep(stream, serving))),
                            }
                        }
                    });
                });
            }
            Err(error) => cannot_accept("another proxy", &error).await,
        }
    }
}

/// Its end is noticed within some leases also where a network is cut. What is not taken within a
/// lease ends a control connection alone: on one that carries requests a client that reads nothing
/// for a while would be cut off.
fn watched(stream: &TcpStream, purpose: Purpose, lease: Duration) -> io::Result<()> {
    const RETRIES: u32 = 3;
    let every = (lease / RETRIES).max(Duration::from_secs(1));
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(every).with_interval(every).with_retries(RETRIES))?;
    match purpose {
        Purpose::Control => socket.set_tcp_user_timeout(Some(lease)),
        Purpose::Data => Ok(()),
    }
}

async fn welcome(
    mut stream: TcpStream,
    name: &str,
    serves: &watch::Receiver<Option<Serving>>,
) -> io::Result<Option<(TcpStream, Serving, Purpose)>> {
    stream.set_nodelay(true)?;
    let line = first_line(&mut stream).await?;
    let words: Vec<&str> = line.split(' ').collect();
    let serving = serves.borrow().clone();
    let judged = match (&words[..], serving) {
        (["proxy", version, ..], _) if *version != VERSION => Err(format!("this proxy speaks version {VERSION}")),
        (["proxy", _, _, _, theirs], _) if *theirs != name => Err(format!("this proxy is of the fleet {name}")),
        (["proxy", _, _, _, _], None) => Err("this proxy is not active".to_owned()),
        (["proxy", _, theirs, purpose, _], Some(serving)) => match (theirs.parse(), *purpose) {
            (Ok(theirs), _) if Generation(theirs) != serving.generation => {
                Err(format!("this is generation {}", serving.generation))
            }
            _ if !lease::own().holds(Boot::now()) => Err("this proxy is suspended".to_owned()),
            _ if serving.leaving.is_cancelled() => Err("this proxy is leaving".to_owned()),
            (Ok(_), "data") => Ok((serving, Purpose::Data)),
            (Ok(_), "control") => Ok((serving, Purpose::Control)),
            _ => Err("this line is none".to_owned()),
        },
        _ => Err("this is the line between proxies, and no client's".to_owned()),
    };
    match judged {
        Ok((serving, purpose)) => {
            stream.write_all(format!("PROXY {VERSION} {}\r\n", serving.generation).as_bytes()).await?;
            Ok(Some((stream, serving, purpose)))
        }
        Err(why) => {
            stream.write_all(format!("REFUSED {why}\r\n").as_bytes()).await?;
            Ok(None)
        }
    }
}

/// Byte by byte: what follows is others' to read. It comes once for each connection.
async fn first_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    while line.len() < LINE_MAX {
        match stream.read_u8().await? {
            b'\n' => {
                let text = String::from_utf8_lossy(&line);
                return Ok(text.trim_end_matches('\r').to_owned());
            }
            byte => line.push(byte),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

fn hand_on(stream: TcpStream, serving: &Serving, next: &AtomicUsize) {
    let Ok(stream) = stream.into_std() else { return };
    let at = next.fetch_add(1, Ordering::Relaxed) % serving.workers.len().max(1);
    if let Some(worker) = serving.workers.get(at) {
        // (An error: it has ended, and the connection with it.)
        let _ = worker.send(stream);
    }
}

/// A control connection, until the other end closes it.
async fn keep(mut stream: TcpStream, serving: Serving) {
    let _counted = serving.others.token();
    let mut told = false;
    loop {
        tokio::select! {
            () = serving.leaving.cancelled(), if !told => {
                told = true;
                if stream.write_all(b"leaving\r\n").await.is_err() {
                    return;
                }
            }
            read = stream.read_u8() => {
                if read.is_err() || stream.write_all(&[PONG]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Dials the active proxy.
///
/// # Errors
///
/// Why not, in words.
pub(super) async fn dial(
    address: &str,
    generation: Generation,
    purpose: Purpose,
    name: &str,
    lease: Duration,
) -> io::Result<TcpStream> {
    let dialled = async {
        let mut stream = TcpStream::connect(address).await?;
        watched(&stream, purpose, lease)?;
        stream.set_nodelay(true)?;
        let line = format!("proxy {VERSION} {generation} {} {name}\r\n", purpose.word());
        stream.write_all(line.as_bytes()).await?;
        let answer = first_line(&mut stream).await?;
        if answer == format!("PROXY {VERSION} {generation}") {
            return Ok(stream);
        }
        let why = answer.strip_prefix("REFUSED ").unwrap_or("what listens there is no active proxy");
        Err(io::Error::other(why.to_owned()))
    };
    tokio::time::timeout(PATIENCE, dialled).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
