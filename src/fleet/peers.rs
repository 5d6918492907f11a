//! How the proxies of a fleet talk to each other: the *peer listener* of the active one.
//!
//! A connection begins with one line each way, and is an ordinary client's from then on:
//!
//! ```text
//! proxy 2 GENERATION data NAME       ->   PROXY 2 GENERATION     or   REFUSED why
//! ```
//!
//! The number counts what this line means. The answer names the later one that both know, and both
//! go by that: so proxies of releases that follow each other work together. What a later one says
//! behind these words is read over.
//!
//! With `control` in the place of `data` it carries no requests: it ends when the active proxy
//! does, which the other one hears at once so, and `leaving` comes on it when the active one is
//! about to hand over. Whatever the other one sends on it is answered with one byte: that the
//! network between them is whole. By the byte that it asks with it says what it reaches itself (see
//! `standbys`; in version 1 only whether that is all servers). (A line of the active one's that
//! this release does not know is read over.) At `leaving` nothing new is sent to it, and the
//! control connection is closed when all that was sent is answered. Behind the name the other one
//! says where it is reached itself, whether it is a candidate (`yes` or `no`), and its release.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc::UnboundedSender, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{FleetSettings, RegisterSettings, Settings};
use crate::daemon::{bind_for_others, cannot_accept};
use crate::ids::Generation;
use crate::later;
use crate::lease;
use crate::ring::NodeAddr;
use crate::server::Stream;
use crate::stats::closings::Closing;

use super::standbys::{Peer, Standbys};

/// The version of the line between proxies, and the earliest that is understood.
const VERSION: u32 = 2;
const OLDEST: u32 = 1;

/// The latest that this proxy speaks.
fn latest() -> u32 {
    VERSION + u32::from(later::is_played())
}

/// The answer to whatever is sent on a control connection to hear of the other end.
pub(super) const PONG: u8 = b'!';

/// What the active one says on it before it hands over.
pub(super) const LEAVING: &[u8] = b"leaving";

/// Longer than any first line.
pub(super) const LINE_MAX: usize = 512;

/// How many control connections there may be: one of each other proxy.
const CONTROLS: usize = 1000;

/// How long the first line may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is done with a connection that carries requests.
pub(super) type HandsOn = Arc<dyn Fn(Stream) + Send + Sync>;

/// How another proxy is connected to, by its address.
pub(super) type Connects =
    Arc<dyn Fn(String, Purpose, Duration) -> BoxFuture<'static, io::Result<Stream>> + Send + Sync>;

/// What an active proxy serves others with.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) generation: Generation,
    /// Gives a connection to the workers.
    pub(super) hands_on: HandsOn,
    /// It is about to hand over.
    pub(super) leaving: CancellationToken,
    /// Control connections of other proxies.
    pub(super) others: TaskTracker,
    /// What is known of them.
    pub(super) standbys: Arc<Standbys>,
}

/// Who calls: this proxy, as it tells others of itself.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) name: Arc<str>,
    /// Where others reach it.
    pub(super) address: String,
    pub(super) candidate: bool,
    pub(super) lease: Duration,
    pub(super) connects: Connects,
}

/// Publishes what this proxy serves others with while it is active.
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

/// Whether a proxy of another host may have to reach this one: the place where they agree is not on
/// this host.
fn may_be_elsewhere(own: &FleetSettings) -> bool {
    let RegisterSettings::Etcd { members, .. } = &own.register else { return false };
    let here = |member: &String| {
        let host = member.parse::<NodeAddr>().map_or_else(|_| member.clone(), |member| member.host);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    own.candidate && !members.iter().all(here)
}

/// Where an address given by `--advertise` leads on this machine.
fn leads_to(address: &NodeAddr) -> io::Result<Option<SocketAddr>> {
    let named = |error: io::Error| {
        let why =
            format!("--advertise {address}: {error}; give an address of this machine, or a name that leads to one");
        io::Error::new(error.kind(), why)
    };
    Ok((address.host.as_str(), address.port).to_socket_addrs().map_err(named)?.next())
}

/// Binds the peer listener. Returns with it where other proxies reach this one.
///
/// # Errors
///
/// What the system refused, and what to give then.
pub(super) fn bind(settings: &Settings, own: &FleetSettings) -> io::Result<(StdListener, String)> {
    let first = settings.listen.first().map(SocketAddr::ip);
    let at = match &own.advertise {
        Some(address) => leads_to(address)?,
        None => first.map(|ip| SocketAddr::new(ip, 0)),
    };
    let at = at.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
    if own.advertise.is_none() && (at.ip().is_unspecified() || at.ip().is_loopback() && may_be_elsewhere(own)) {
        let name = super::host();
        return Err(io::Error::other(format!(
            "--advertise is missing: by -l {} the proxies of other hosts do not reach this one; give for example \
             --advertise {name}:11300, or --candidate no if it is only to pass requests on",
            at.ip()
        )));
    }
    if let Some(address) = own.advertise.as_ref().filter(|_| at.ip().is_loopback() && may_be_elsewhere(own)) {
        return Err(io::Error::other(format!(
            "--advertise {address} leads to {} on this machine, where the proxies of other hosts do not reach this \
             one; give an address of this machine that they reach (or change /etc/hosts), or --candidate no if it is \
             only to pass requests on",
            at.ip()
        )));
    }
    let listener = bind_for_others(at).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen for other proxies on {at}: {error}; give --advertise an address of this machine and a port that is free"))
    })?;
    let bound = listener.local_addr()?;
    let address = match &own.advertise {
        Some(address) => NodeAddr { port: bound.port(), ..address.clone() }.to_string(),
        None => bound.to_string(),
    };
    Ok((listener, address))
}

/// Takes connections of other proxies for as long as the runtime lives.
pub(super) async fn listen(listener: StdListener, host: Host) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen for other proxies"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(host.clone().take(Stream::Tcp(stream)));
            }
            Err(error) => cannot_accept("another proxy", &error).await,
        }
    }
}

/// Who takes connections of other proxies.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) name: Arc<str>,
    pub(super) serves: watch::Receiver<Option<Serving>>,
    pub(super) lease: Duration,
}

impl Host {
    /// Serves a connection until it is given to a worker, or ends.
    pub(super) async fn take(self, stream: Stream) {
        let Guest { stream, serving, purpose, version, peer } = match welcome(stream, &self.name, &self.serves).await {
            Ok(Ok(guest)) => guest,
            Ok(Err(closing)) => return closing.count(),
            Err(_) => return Closing::PeerBroken.count(),
        };
        let _ = watched(&stream, purpose, self.lease);
        match purpose {
            Purpose::Data => (serving.hands_on)(stream),
            Purpose::Control => {
                keep(stream, serving, (peer, version)).await;
                Closing::PeerLeft.count();
            }
        }
    }
}

/// Its end is noticed within some leases also where a network is cut. What is not taken within a
/// lease ends a control connection alone: on one that carries requests a client that reads nothing
/// for a while would be cut off.
fn watched(stream: &Stream, purpose: Purpose, lease: Duration) -> io::Result<()> {
    const RETRIES: u32 = 3;
    let Stream::Tcp(stream) = stream else { return Ok(()) };
    let every = (lease / RETRIES).max(Duration::from_secs(1));
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(every).with_interval(every).with_retries(RETRIES))?;
    match purpose {
        Purpose::Control => socket.set_tcp_user_timeout(Some(lease)),
        Purpose::Data => Ok(()),
    }
}

/// A connection that is welcome.
struct Guest {
    stream: Stream,
    serving: Serving,
    purpose: Purpose,
    /// Of the line, by which both go.
    version: u32,
    peer: Option<Peer>,
}

/// Reads the first line and answers it. `Err(Closing)`: it was refused, and told why.
async fn welcome(
    mut stream: Stream,
    name: &str,
    serves: &watch::Receiver<Option<Serving>>,
) -> io::Result<Result<Guest, Closing>> {
    let line = match tokio::time::timeout(PATIENCE, first_line(&mut stream)).await {
        Ok(Err(error)) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
        said => said.map(Result::unwrap_or_default),
    };
    let words: Vec<&str> = line.as_deref().unwrap_or_default().split(' ').collect();
    let serving = serves.borrow().clone();
    let closing = if line.is_ok() { Closing::PeerRefused } else { Closing::PeerSilent };
    let judged = match line {
        Ok(_) => judge(&words, name, serving, !lease::is_over()),
        Err(_) => Err("the line between proxies has to come within one second".to_owned()),
    };
    match judged {
        Ok((serving, purpose, version)) => {
            let answer = format!("PROXY {version} {}{}\r\n", serving.generation, later::word());
            stream.write_all(answer.as_bytes()).await?;
            let peer = words.get(5..).and_then(Peer::of);
            Ok(Ok(Guest { stream, serving, purpose, version, peer }))
        }
        Err(why) => {
            stream.write_all(format!("REFUSED {why}\r\n").as_bytes()).await?;
            Ok(Err(closing))
        }
    }
}

/// Whether the first line is welcome, and why not.
fn judge(words: &[&str], name: &str, serving: Option<Serving>, acts: bool) -> Result<(Serving, Purpose, u32), String> {
    let ["proxy", version, generation, purpose, theirs, ..] = words else {
        return Err("this is the line between proxies, and no client's".to_owned());
    };
    let Some(asked) = version.parse::<u32>().ok().filter(|&version| version >= OLDEST) else {
        let latest = latest();
        return Err(format!("this proxy speaks versions {OLDEST} to {latest} of this line, and not {version}"));
    };
    // An earlier release knows nothing of a later one's: both go by the earlier.
    let version = asked.min(latest());
    if *theirs != name {
        return Err(format!("this proxy is of the fleet {name}"));
    }
    let Some(serving) = serving else { return Err("this proxy is not active".to_owned()) };
    if generation.parse() != Ok(serving.generation.0) {
        return Err(format!("this is generation {}", serving.generation));
    }
    if !acts {
        return Err("this proxy is suspended".to_owned());
    }
    if serving.leaving.is_cancelled() {
        return Err("this proxy is leaving".to_owned());
    }
    match *purpose {
        "data" => Ok((serving, Purpose::Data, version)),
        "control" if serving.others.len() >= CONTROLS => {
            Err(format!("{CONTROLS} control connections to this proxy are open"))
        }
        "control" => Ok((serving, Purpose::Control, version)),
        other => Err(format!("{other} is no purpose of a connection between proxies that this one knows")),
    }
}

/// Reads byte by byte, for what follows is read by others; once for each connection.
async fn first_line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
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

/// Gives connections to these workers, in turn.
pub(super) fn to_workers(workers: Vec<UnboundedSender<std::net::TcpStream>>) -> HandsOn {
    let next = AtomicUsize::new(0);
    Arc::new(move |stream| {
        let Stream::Tcp(stream) = stream else { return };
        let Ok(stream) = stream.into_std() else { return };
        let at = next.fetch_add(1, Ordering::Relaxed) % workers.len().max(1);
        if let Some(worker) = workers.get(at) {
            // An error: it has ended, and the connection with it.
            let _ = worker.send(stream);
        }
    })
}

/// Connects over TCP.
pub(super) fn over_tcp() -> Connects {
    Arc::new(|address, purpose, lease| {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream = Stream::Tcp(stream);
            watched(&stream, purpose, lease)?;
            Ok(stream)
        })
    })
}

/// A control connection, until the other end closes it. While this proxy is suspended it answers
/// nothing: others would take it for one that serves clients.
async fn keep(mut stream: Stream, serving: Serving, (peer, version): (Option<Peer>, u32)) {
    let _counted = serving.others.token();
    let entry = serving.standbys.enter(peer, version);
    if later::is_played() && stream.write_all(later::LINE).await.is_err() {
        return;
    }
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            () = serving.leaving.cancelled(), if !told => {
                told = true;
                if stream.write_all(&[LEAVING, b"\r\n"].concat()).await.is_err() {
                    return;
                }
            }
            read = stream.read_u8() => {
                let Ok(byte) = read else { return };
                entry.asked(byte);
                if !lease::is_over() && stream.write_all(&[PONG]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Why the active proxy is not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreached {
    /// Nothing answers there, or the connection broke.
    #[error("{0}")]
    Broken(#[from] io::Error),
    /// It answers, and refuses this proxy, in these words.
    #[error("it refuses this proxy: {0}")]
    Refused(String),
}

/// Dials the active proxy.
///
/// # Errors
///
/// Why not, in words.
pub(super) async fn dial(
    me: &Caller,
    address: &str,
    generation: Generation,
    purpose: Purpose,
) -> Result<Stream, Unreached> {
    let dialled = async {
        let mut stream = (me.connects)(address.to_owned(), purpose, me.lease).await?;
        let latest = latest();
        let mut line = format!("proxy {latest} {generation} {} {}", purpose.word(), me.name);
        if purpose == Purpose::Control {
            let candidate = if me.candidate { "yes" } else { "no" };
            line += &format!(" {} {candidate} {}", me.address, env!("CARGO_PKG_VERSION"));
        }
        line += later::word();
        stream.write_all((line + "\r\n").as_bytes()).await?;
        if later::is_played() && purpose == Purpose::Control {
            stream.write_all(later::LINE).await?;
        }
        let answer = first_line(&mut stream).await?;
        let words: Vec<&str> = answer.split(' ').collect();
        match words[..] {
            ["PROXY", version, theirs, ..] if theirs.parse() == Ok(generation.0) => match version.parse::<u32>() {
                Ok(version) if (OLDEST..=latest).contains(&version) => Ok(stream),
                _ => Err(Unreached::Refused(format!(
                    "it speaks version {version} of the line between proxies, and this one {OLDEST} to {latest}"
                ))),
            },
            ["REFUSED", ..] => Err(Unreached::Refused(answer["REFUSED".len()..].trim_start().to_owned())),
            _ => Err(Unreached::Refused("what listens there is no active proxy".to_owned())),
        }
    };
    let late = || Err(io::Error::from(io::ErrorKind::TimedOut).into());
    tokio::time::timeout(PATIENCE, dialled).await.unwrap_or_else(|_| late())
}

#[cfg(test)]
mod tests;
