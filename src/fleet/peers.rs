//! How the proxies of a fleet talk to each other: the *peer listener* of the active one.
//!
//! A connection begins with one line each way, and is an ordinary client's from then on:
//!
//! ```text
//! proxy 1 GENERATION data NAME       ->   PROXY 1 GENERATION     or   REFUSED why
//! ```
//!
//! The number counts what this line means. The answer names the later one that both know, and both
//! go by that: so proxies of releases that follow each other work together. What a later one says
//! behind these words is read over.
//!
//! With `control` in the place of `data` it carries no requests: it ends when the active proxy
//! does, which the other one hears at once so, and `leaving` comes on it when the active one is
//! about to hand over. Whatever the other one sends on it is answered with one byte: that the
//! network between them is whole, and by the byte that it asks with it says whether it reaches all
//! servers (see `reach`). (A line of the active one's that this release does not know is read
//! over.) At `leaving` nothing new is sent to it, and the control connection is closed when all
//! that was sent is answered. Behind the name the other one says where it is reached itself,
//! whether it is a candidate (`yes` or `no`), and its release.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc::UnboundedSender, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{FleetSettings, RegisterSettings, Settings};
use crate::daemon::cannot_accept;
use crate::ids::Generation;
use crate::later;
use crate::lease;
use crate::ring::NodeAddr;
use crate::stats::closings::Closing;

use super::stream::Stream;

/// Of what is said here, and the earliest that is understood.
const VERSION: u32 = 1;
const OLDEST: u32 = 1;

/// The latest that this proxy speaks.
fn latest() -> u32 {
    VERSION + u32::from(later::is_played())
}

/// What is sent on a control connection to hear of the other end, and its answer.
pub(super) const PING: u8 = b'?';

/// The same, by a standby that has just reached all servers.
pub(super) const PING_REACHES_ALL: u8 = b'+';
pub(super) const PONG: u8 = b'!';

/// What the active one says on it before it hands over.
pub(super) const LEAVING: &[u8] = b"leaving";

/// Longer than any first line.
pub(super) const LINE_MAX: usize = 512;

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
    /// To the workers.
    pub(super) hands_on: HandsOn,
    /// It is about to hand over.
    pub(super) leaving: CancellationToken,
    /// Control connections of other proxies.
    pub(super) others: TaskTracker,
    /// What is known of them.
    pub(super) peers: Arc<Peers>,
}

/// Who calls: this proxy, as it tells others of itself.
#[derive(Clone)]
pub(super) struct Caller {
    /// The fleet's name.
    pub(super) name: Arc<str>,
    /// Where others reach it.
    pub(super) address: String,
    pub(super) candidate: bool,
    pub(super) lease: Duration,
    pub(super) connects: Connects,
}

/// Another proxy, as it tells of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Peer {
    pub(super) address: String,
    pub(super) candidate: bool,
    release: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.candidate { "candidate" } else { "no candidate" };
        write!(f, "standby, {what}, {}", self.release)
    }
}

impl Peer {
    /// By what stands behind the name. Whoever says less is not shown.
    pub(super) fn of(words: &[&str]) -> Option<Peer> {
        let [address, candidate, release, ..] = words else { return None };
        let (address, release) = ((*address).to_owned(), (*release).to_owned());
        Some(Peer { address, candidate: *candidate == "yes", release })
    }
}

/// The other proxies that have a control connection to this one.
#[derive(Default, Debug)]
pub(super) struct Peers(Mutex<(u64, BTreeMap<u64, KnownPeer>)>);

/// One of them, and whether it reached all servers when it last asked.
#[derive(Debug)]
struct KnownPeer {
    peer: Peer,
    reaches_all: bool,
}

impl Peers {
    fn held(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, KnownPeer>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn all(&self) -> Vec<Peer> {
        self.held().1.values().map(|known| known.peer.clone()).collect()
    }

    /// Whether a candidate among them reaches all servers.
    pub(super) fn one_reaches_all(&self) -> bool {
        self.held().1.values().any(|known| known.peer.candidate && known.reaches_all)
    }

    /// From now on it is one of them, until that is dropped.
    pub(super) fn enter(self: &Arc<Self>, peer: Option<Peer>) -> Entry {
        let mut held = self.held();
        held.0 += 1;
        let number = held.0;
        if let Some(peer) = peer {
            held.1.insert(number, KnownPeer { peer, reaches_all: false });
        }
        drop(held);
        Entry { peers: self.clone(), number }
    }
}

pub(super) struct Entry {
    peers: Arc<Peers>,
    number: u64,
}

impl Entry {
    /// It has asked.
    fn asked(&self, reaches_all: bool) {
        if let Some(known) = self.peers.held().1.get_mut(&self.number) {
            known.reaches_all = reaches_all;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.peers.held().1.remove(&self.number);
    }
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
    if own.advertise.is_none() && (at.ip().is_unspecified() || at.ip().is_loopback() && may_be_elsewhere(own)) {
        let name = super::host();
        return Err(io::Error::other(format!(
            "--advertise is missing: by -l {} the proxies of other hosts do not reach this one; give for example \
             --advertise {name}:11300, or --candidate no if it is only to pass requests on",
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
    /// One of them: until it is handed on, or ends.
    pub(super) async fn take(self, stream: Stream) {
        let Guest { stream, serving, purpose, peer } = match welcome(stream, &self.name, &self.serves).await {
            Ok(Ok(guest)) => guest,
            Ok(Err(closing)) => return closing.count(),
            Err(_) => return Closing::PeerBroken.count(),
        };
        let _ = watched(&stream, purpose, self.lease);
        match purpose {
            Purpose::Data => (serving.hands_on)(stream),
            Purpose::Control => {
                keep(stream, serving, peer).await;
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
    peer: Option<Peer>,
}

/// Whoever is not welcome has been told why.
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
            Ok(Ok(Guest { stream, serving, purpose, peer }))
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
    // (An earlier release knows nothing of a later one's: both go by the earlier.)
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
        "control" => Ok((serving, Purpose::Control, version)),
        other => Err(format!("{other} is no purpose of a connection between proxies that this one knows")),
    }
}

/// Byte by byte: what follows is others' to read. It comes once for each connection.
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

/// To these workers, by turns.
pub(super) fn to_workers(workers: Vec<UnboundedSender<std::net::TcpStream>>) -> HandsOn {
    let next = AtomicUsize::new(0);
    Arc::new(move |stream| {
        let Stream::Tcp(stream) = stream else { return };
        let Ok(stream) = stream.into_std() else { return };
        let at = next.fetch_add(1, Ordering::Relaxed) % workers.len().max(1);
        if let Some(worker) = workers.get(at) {
            // (An error: it has ended, and the connection with it.)
            let _ = worker.send(stream);
        }
    })
}

/// By TCP.
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

/// A control connection, until the other end closes it.
async fn keep(mut stream: Stream, serving: Serving, peer: Option<Peer>) {
    let _counted = serving.others.token();
    let entry = serving.peers.enter(peer);
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
                // (Whatever else a later release says is answered all the same.)
                if [PING, PING_REACHES_ALL].contains(&byte) {
                    entry.asked(byte == PING_REACHES_ALL);
                }
                if stream.write_all(&[PONG]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Why the active proxy is not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreached {
    /// Nobody answers, or breaks off.
    #[error("{0}")]
    Broken(#[from] io::Error),
    /// It answers, and does not want this one.
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
mod tests {
    use super::*;
    use crate::stats::closings::count_of;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_candidate_that_other_hosts_do_not_reach_is_told_to_say_where_it_is() {
        let at = |members: &[&str], candidate| FleetSettings {
            register: RegisterSettings::Etcd {
                members: members.iter().map(|&member| member.to_owned()).collect(),
                name: "a".to_owned(),
            },
            login: None,
            advertise: None,
            lease: LONG,
            candidate,
            takeover_wait: LONG,
            former_grace: LONG,
            prove_writes: false,
        };
        assert!(may_be_elsewhere(&at(&["127.0.0.1:2379", "e2:2379"], true)));
        assert!(!may_be_elsewhere(&at(&["e2:2379"], false)), "nobody is to reach it");
        assert!(!may_be_elsewhere(&at(&["127.0.0.1:2379", "localhost:2379", "[::1]:2379"], true)));
    }

    fn caller() -> Caller {
        let (address, connects) = ("10.0.0.6:1".to_owned(), over_tcp());
        Caller { name: "a".into(), address, candidate: true, lease: LONG, connects }
    }

    fn serving() -> Serving {
        let (worker, _) = tokio::sync::mpsc::unbounded_channel();
        Serving {
            generation: Generation(7),
            hands_on: to_workers(vec![worker]),
            leaving: CancellationToken::new(),
            others: TaskTracker::new(),
            peers: Arc::default(),
        }
    }

    /// A peer listener of the fleet `a`, and where it is.
    async fn listening(serves: Option<Serving>) -> String {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tells, serves) = watch::channel(serves);
        tokio::spawn(async move {
            listen(listener, Host { name: "a".into(), serves, lease: LONG }).await;
            drop(tells);
        });
        address
    }

    async fn says(address: &str, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(line.as_bytes()).await.unwrap();
        tokio::time::timeout(LONG, first_line(&mut stream)).await.expect("an answer").unwrap()
    }

    #[tokio::test]
    async fn who_is_not_welcome_is_told_why_and_a_later_version_is_answered_with_ones_own() {
        let address = listening(Some(serving())).await;
        for (line, answer) in [
            ("proxy 1 7 data a\r\n", "PROXY 1 7"),
            ("proxy 2 7 data a what a later one says\r\n", "PROXY 1 7"),
            ("proxy 0 7 data a\r\n", "REFUSED this proxy speaks versions 1 to 1 of this line, and not 0"),
            ("proxy x 7 data a\r\n", "REFUSED this proxy speaks versions 1 to 1 of this line, and not x"),
            ("proxy 1 7 data b\r\n", "REFUSED this proxy is of the fleet a"),
            ("proxy 1 6 data a\r\n", "REFUSED this is generation 7"),
            ("proxy 1 8 data a\r\n", "REFUSED this is generation 7"),
            ("proxy 1 7 spy a\r\n", "REFUSED spy is no purpose of a connection between proxies that this one knows"),
            ("get a\r\n", "REFUSED this is the line between proxies, and no client's"),
        ] {
            assert_eq!(says(&address, line).await, answer, "{line}");
        }
        let standby = listening(None).await;
        assert_eq!(says(&standby, "proxy 1 7 control a\r\n").await, "REFUSED this proxy is not active");
        let leaves = serving();
        leaves.leaving.cancel();
        let leaves = listening(Some(leaves)).await;
        assert_eq!(says(&leaves, "proxy 1 7 data a\r\n").await, "REFUSED this proxy is leaving");
        let words: Vec<&str> = "proxy 1 7 data a".split(' ').collect();
        let suspended = judge(&words, "a", Some(serving()), false).map(|(_, purpose, _)| purpose);
        assert_eq!(suspended, Err("this proxy is suspended".to_owned()));
    }

    #[tokio::test]
    async fn who_says_too_much_or_nothing_is_told_what_is_to_be_said() {
        let address = listening(Some(serving())).await;
        let counts = || [Closing::PeerRefused, Closing::PeerSilent].map(count_of);
        let before = counts();
        let long = says(&address, &"x".repeat(LINE_MAX)).await;
        assert_eq!(long, "REFUSED this is the line between proxies, and no client's");
        let silent = says(&address, "proxy 1 7").await;
        assert_eq!(silent, "REFUSED the line between proxies has to come within one second");
        let counted = async {
            while !counts().iter().zip(before).all(|(count, before)| *count > before) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, counted).await.expect("one of each");
    }

    #[tokio::test]
    async fn an_active_proxy_of_a_version_that_nobody_here_knows_is_refused_with_a_sentence() {
        for (answer, wanted) in [
            ("PROXY 1 7", None),
            ("PROXY 1 7 what a later one says", None),
            (
                "PROXY 2 7",
                Some("it refuses this proxy: it speaks version 2 of the line between proxies, and this one 1 to 1"),
            ),
            ("REFUSED this proxy speaks versions 3 to 4 of this line, and not 1", Some("versions 3 to 4")),
            ("PROXY 1 8", Some("no active proxy")),
            ("ERROR", Some("no active proxy")),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let answers = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let line = first_line(&mut stream).await.unwrap();
                stream.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
                line
            });
            let dialled = dial(&caller(), &address, Generation(7), Purpose::Control).await;
            let release = env!("CARGO_PKG_VERSION");
            assert_eq!(answers.await.unwrap(), format!("proxy 1 7 control a 10.0.0.6:1 yes {release}"));
            match (dialled, wanted) {
                (Ok(_), None) => {}
                (Err(why), Some(wanted)) => assert!(why.to_string().contains(wanted), "{why}"),
                (dialled, _) => panic!("{answer}: {dialled:?}"),
            }
        }
    }

    #[tokio::test]
    async fn who_has_a_control_connection_is_known_as_long_as_that_lasts() {
        let serving = serving();
        let peers = serving.peers.clone();
        let address = listening(Some(serving)).await;
        let mut stream = dial(&caller(), &address, Generation(7), Purpose::Control).await.unwrap();
        // (Answered once it is kept.)
        stream.write_all(&[PING]).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), PONG);
        let [peer] = &peers.all()[..] else { panic!("{peers:?}") };
        assert_eq!((peer.address.as_str(), peer.candidate), ("10.0.0.6:1", true));
        drop(stream);
        let gone = async {
            while !peers.all().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, gone).await.expect("it is forgotten");
    }
}
