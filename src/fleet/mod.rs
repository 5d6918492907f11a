//! Several proxies over the same servers, of which one is *active* (see [`crate::coord`]).
//!
//! A process begins as a *standby*: it takes clients, and passes what they ask on to the active
//! proxy. When that one is no more it becomes active itself: it starts over the servers as any
//! proxy does after the one before it ended, and takes clients as any proxy does. What it passed on
//! before it passes on to itself from then on. Once it is replaced, it ends.
//!
//! - `keeper`: the lease, by a thread of its own.
//! - `agreement`: losses, agreed on through the record.
//! - `survey`: what servers say of earlier turns.
//! - `peers`: how proxies talk to each other.
//! - `relay`: clients of a proxy that is not active; `admin`: its HTTP listener.

mod admin;
mod agreement;
mod keeper;
mod peers;
mod relay;
mod survey;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::ambient;
use crate::backend::marker::FleetMark;
use crate::cluster::Turn;
use crate::config::{FleetSettings, RegisterSettings, Settings};
use crate::coord::{Access, Burden, Etcd, Event, FIRST_WORD, FileRegister, Holder, Me, Register};
use crate::daemon::Listeners;
use crate::ids::Generation;
use crate::lease::{self, Boot};
use crate::ring::{NodeAddr, Topology};
use crate::server;

use agreement::Agreement;
use keeper::{Keeper, Known, Order, Role, Tools};
use peers::{Purpose, Serves, Serving};
use relay::{Shared, Stream, Target};
use survey::Surveyor;

/// How a process of a fleet ends that is to be started again, as a standby (`EX_TEMPFAIL`).
pub const EXIT_FENCED: u8 = 75;

/// How long the clients of other proxies may take to be answered at a planned change.
const LEAVING: Duration = Duration::from_secs(1);

/// Of a fleet's name: it stands in one line between proxies, see `peers`.
const NAME_MAX: usize = 200;

/// How long the log is given to be written.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// How long the fleet's marks may take to be taken away, of each server.
const TAKING: Duration = Duration::from_secs(2);

/// Takes a fleet's marks from the servers: `--leave-fleet`.
///
/// # Errors
///
/// Which server keeps its mark.
pub fn leave(settings: &Settings) -> Result<(), std::io::Error> {
    surveyor(settings).take_marks(TAKING).map_err(|why| {
        std::io::Error::other(format!(
            "--leave-fleet: {why}; all servers must answer, or the fleet would go on there; \
             start that one, or, where it is gone for good, give -s and -b without it"
        ))
    })
}

fn surveyor(settings: &Settings) -> Surveyor {
    Surveyor::new(settings.primaries.iter().chain(&settings.backups).map(|server| server.addr.clone()))
}

/// What a standby and an active proxy share.
struct Fleet {
    settings: Settings,
    own: FleetSettings,
    name: Arc<str>,
    address: String,
    keeper: Keeper,
    orders: Receiver<Order>,
    serves: Arc<Serves>,
    shared: Arc<Shared>,
    shown: Arc<Shown>,
    /// Takes no clients any more.
    taking: CancellationToken,
    over: CancellationToken,
    runtime: Handle,
}

/// Serves clients as a standby, and as the active proxy once no other one is. Blocks until
/// `shutdown` is cancelled and everything is answered. `ready` is called when clients are taken;
/// `at_end` before the process ends because it was replaced.
///
/// # Errors
///
/// What the system refused; a register that will never do.
pub fn run(
    settings: Settings,
    own: FleetSettings,
    listeners: Listeners,
    shutdown: CancellationToken,
    ready: impl FnOnce() -> std::io::Result<()>,
    at_end: impl Fn() + Send + 'static,
) -> std::io::Result<()> {
    lease::own().end();
    let holder = Holder(ambient::random_u64().max(1));
    let (register, name) = register(&own, holder)?;
    let peers = peer_listener(&settings, &own)?;
    let bound = peers.local_addr()?;
    let address = own
        .advertise
        .as_ref()
        .map_or_else(|| bound.to_string(), |address| NodeAddr { port: bound.port(), ..address.clone() }.to_string());
    let ends = (shutdown.clone(), Box::new(at_end) as Box<dyn Fn() + Send>);
    let fleet = Fleet::start(settings, own, (register, name, holder), (peers, address), ends)?;
    fleet.take_clients(&listeners)?;
    ready()?;
    let ended = fleet.stand_by(listeners, &shutdown);
    fleet.over.cancel();
    ended
}

/// Where the proxies agree, and the fleet's name.
fn register(own: &FleetSettings, holder: Holder) -> std::io::Result<(Box<dyn Register>, Arc<str>)> {
    let refuse = |why: String| std::io::Error::other(format!("--coordinate: {why}"));
    match &own.register {
        RegisterSettings::File(path) => {
            // One file has one name, however its path is spelt.
            let directory = path.parent().and_then(|parent| parent.canonicalize().ok());
            let path = directory.zip(path.file_name()).map_or_else(|| path.clone(), |(at, file)| at.join(file));
            // Of this host: another one's file of that name is another one.
            let host = host();
            let name = format!("file:{}@{host}", path.display()).replace(char::is_whitespace, "_");
            if name.len() > NAME_MAX {
                let most = NAME_MAX + path.as_os_str().len() - name.len();
                return Err(refuse(format!("{} is too long: give a path of at most {most} bytes", path.display())));
            }
            let register = FileRegister::open(&path, holder).map_err(|why| refuse(why.to_string()))?;
            Ok((Box::new(register), name.into()))
        }
        RegisterSettings::Etcd { members, name } => {
            let access = own.login.as_deref().map(login).transpose()?;
            let mut etcd = Etcd::new(members, name, access);
            match etcd.judge(Instant::now() + FIRST_WORD) {
                Ok(None) => {}
                Ok(Some(why)) => return Err(refuse(why)),
                // It may come: whoever is a standby waits for it.
                Err(why) => tracing::error!("{why}: no proxy can become active before one answers"),
            }
            Ok((Box::new(etcd), name.as_str().into()))
        }
    }
}

fn login(path: &Path) -> std::io::Result<Access> {
    let refuse = |why: String| std::io::Error::other(format!("--coordinate-login {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    match text.trim_end_matches(['\r', '\n']).split_once(':') {
        Some((user, password)) if !user.is_empty() => {
            Ok(Access { user: user.to_owned(), password: password.to_owned() })
        }
        _ => Err(refuse("must hold one line, USER:PASSWORD".to_owned())),
    }
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Where other proxies reach this one.
fn peer_listener(settings: &Settings, own: &FleetSettings) -> std::io::Result<TcpListener> {
    let first = settings.listen.first().map(SocketAddr::ip);
    let at = match &own.advertise {
        Some(address) => (address.host.as_str(), address.port).to_socket_addrs()?.next(),
        None => first.map(|ip| SocketAddr::new(ip, 0)),
    };
    let at = at.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
    if own.advertise.is_none() && at.ip().is_unspecified() {
        let name = host();
        return Err(std::io::Error::other(format!(
            "--advertise is missing: -l {} says nothing of where other proxies reach this one; give for example --advertise {name}:11300",
            at.ip()
        )));
    }
    let listener = TcpListener::bind(at).map_err(|error| {
        std::io::Error::new(error.kind(), format!("cannot listen for other proxies on {at}: {error}; give --advertise an address of this machine and a port that is free"))
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What others may look at.
#[derive(Default)]
struct Shown {
    forwarded: AtomicU64,
    /// A control connection to the active proxy is open.
    reached: AtomicBool,
    /// The active proxy, where this is it, waits for the former one to be gone.
    former: Arc<AtomicBool>,
}

impl Shown {
    /// For `stats proxy`.
    fn lines(&self, known: &Known, own: &str) -> Bytes {
        let reached = self.reached.load(Ordering::Relaxed);
        let ready = known.role == Role::Active || known.role == Role::Standby && reached;
        let lease_ms = match known.role {
            Role::Active => lease::own().left(Boot::now()).as_millis(),
            Role::Standby | Role::Suspended => 0,
        };
        let mut out = String::new();
        let mut put = |name: &str, value: &dyn std::fmt::Display| {
            // Writing to a string cannot fail.
            let _ = write!(out, "STAT proxy:{name} {value}\r\n");
        };
        put("role", &known.role.word());
        put("generation", &known.generation);
        put("active", &known.active.as_deref().unwrap_or("none"));
        put("own", &own);
        put("lease_ms", &lease_ms);
        put("former", &if self.former.load(Ordering::Relaxed) { "awaited" } else { "none" });
        put("ready", &u8::from(ready));
        put("forwarded", &self.forwarded.load(Ordering::Relaxed));
        if let Some(trouble) = &known.trouble {
            put("trouble", &trouble.replace(char::is_control, " "));
        }
        out.push_str("END\r\n");
        Bytes::from(out)
    }
}

impl Fleet {
    fn start(
        settings: Settings,
        own: FleetSettings,
        (register, name, holder): (Box<dyn Register>, Arc<str>, Holder),
        (peers, address): (TcpListener, String),
        (shutdown, at_end): (CancellationToken, Box<dyn Fn() + Send>),
    ) -> std::io::Result<Fleet> {
        // A thread of its own: the control plane's, and the workers', stand still without a lease.
        let driver = Builder::new_current_thread().enable_all().build()?;
        let runtime = driver.handle().clone();
        let over = CancellationToken::new();
        let topology = Topology::new(&settings.primaries, &settings.backups, settings.distribution);
        let (fingerprint, candidate) = (alike(&topology, own.lease), own.candidate);
        let me = Me { holder, address: address.clone(), fingerprint, candidate };
        let (send_order, orders) = channel();
        let fence = Box::new(move || {
            at_end();
            // (The log has a thread of its own. Nothing is sent or told meanwhile.)
            std::thread::sleep(LAST_WORDS);
            std::process::exit(i32::from(EXIT_FENCED));
        });
        let place = match &own.register {
            RegisterSettings::File(path) => format!("--coordinate file:{}", path.display()),
            RegisterSettings::Etcd { name, .. } => format!("etcd, key /resilver/v1/{name}/active"),
        };
        let (surveyor, name_text) = (surveyor(&settings), name.to_string());
        let tools = Tools { register, surveyor, name: name_text, place, lease: own.lease, fence };
        let keeper = keeper::start(me, tools, send_order.clone())?;
        let (shows, target) = watch::channel(Target::default());
        let (serves, served) = watch::channel(None);
        let shown = Arc::new(Shown::default());
        let show = {
            let (known, own, shown) = (keeper.known.clone(), address.clone(), shown.clone());
            move || shown.lines(&known.borrow(), &own)
        };
        let shared = Arc::new(Shared {
            name: name.clone(),
            target,
            takeover_wait: own.takeover_wait,
            lease: own.lease,
            clients: AtomicUsize::new(0),
            max_clients: settings.max_clients,
            links: AtomicUsize::new(0),
            shown: shown.clone(),
            hurry: {
                let keeper = keeper.clone();
                Box::new(move || keeper.hurry())
            },
            show: Box::new(show),
            over: over.clone(),
        });
        runtime.spawn(peers::listen(peers, name.clone(), served.clone(), own.lease));
        runtime.spawn(follow(keeper.clone(), shows, served, shared.clone()));
        runtime.spawn(async move {
            shutdown.cancelled().await;
            let _ = send_order.send(Order::Stop);
        });
        // (It ends with the process: the last clients are answered after `over`.)
        std::thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(move || driver.block_on(std::future::pending::<()>()))?;
        let (taking, serves) = (CancellationToken::new(), Arc::new(serves));
        Ok(Fleet { settings, own, name, address, keeper, orders, serves, shared, taking, over, runtime, shown })
    }

    /// Takes clients until it becomes active: their requests are passed on.
    fn take_clients(&self, listeners: &Listeners) -> std::io::Result<()> {
        let _inside = self.runtime.enter();
        for listener in listeners.tcp.iter().flatten() {
            let listener = listener.try_clone()?;
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let (shared, taking) = (self.shared.clone(), self.taking.clone());
            self.runtime.spawn(async move {
                loop {
                    let accepted = tokio::select! {
                        biased;
                        () = taking.cancelled() => return,
                        accepted = listener.accept() => accepted,
                    };
                    match accepted {
                        Ok((stream, _)) => {
                            let _ = stream.set_nodelay(true);
                            tokio::spawn(relay::serve(Stream::Tcp(stream), shared.clone()));
                        }
                        Err(error) => cannot_accept(&error).await,
                    }
                }
            });
        }
        if let Some(listener) = &listeners.admin {
            let listener = listener.try_clone()?;
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let (known, shown) = (self.keeper.known.clone(), self.shown.clone());
            let standby = move || admin::Standby {
                ready: shown.reached.load(Ordering::Relaxed),
                active: known.borrow().active.clone(),
            };
            self.runtime.spawn(admin::serve(listener, standby, self.taking.clone()));
        }
        // (Operators' commands are for the active one too.)
        for listener in [&listeners.unix, &listeners.admin_socket].into_iter().flatten() {
            let listener = listener.try_clone()?;
            listener.set_nonblocking(true)?;
            let listener = tokio::net::UnixListener::from_std(listener)?;
            let (shared, taking) = (self.shared.clone(), self.taking.clone());
            self.runtime.spawn(async move {
                loop {
                    let accepted = tokio::select! {
                        biased;
                        () = taking.cancelled() => return,
                        accepted = listener.accept() => accepted,
                    };
                    match accepted {
                        Ok((stream, _)) => drop(tokio::spawn(relay::serve(Stream::Unix(stream), shared.clone()))),
                        Err(error) => cannot_accept(&error).await,
                    }
                }
            });
        }
        Ok(())
    }

    fn stand_by(&self, listeners: Listeners, shutdown: &CancellationToken) -> std::io::Result<()> {
        match self.orders.recv() {
            Ok(Order::Begin { generation, predecessor, before }) => {
                let former = predecessor.awaits.then(|| {
                    before.map_or("some proxy with an open session".to_owned(), |record| {
                        let earlier = if record.awaits { ", or an earlier one" } else { "" };
                        format!(
                            "that of generation {}, which was reached on {}{earlier}",
                            record.generation, record.address
                        )
                    })
                });
                self.act((generation, predecessor, former), listeners, shutdown)
            }
            Ok(Order::Stop) => {
                self.taking.cancel();
                self.keeper.tell(Event::Leave);
                self.over.cancel();
                let deadline = Instant::now() + self.settings.shutdown_grace;
                while self.shared.clients.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            }
            // (The keeper ends with the process.)
            Ok(Order::Over) | Err(_) => Ok(()),
        }
    }

    /// The active proxy's life.
    fn act(
        &self,
        (generation, predecessor, former): (Generation, Burden, Option<String>),
        mut listeners: Listeners,
        shutdown: &CancellationToken,
    ) -> std::io::Result<()> {
        self.taking.cancel();
        let (workers, handed): (Vec<_>, Vec<_>) =
            (0..self.settings.threads.max(1)).map(|_| mpsc::unbounded_channel()).unzip();
        listeners.handed = handed;
        let mark = FleetMark { name: self.name.to_string(), generation, address: self.address.clone() };
        let turn = Turn { mark, term: predecessor.term, former, grace: self.own.former_grace };
        let agreement = {
            let shared = self.shared.clone();
            let shown = agreement::Shown { former: self.shown.former.clone(), all: Box::new(move || (shared.show)()) };
            Agreement::new(self.keeper.clone(), turn, predecessor, shown)
        };
        self.keeper.hear_commits(agreement.hears());
        let (leaving, stop) = (CancellationToken::new(), CancellationToken::new());
        let serving = Serving { generation, workers, leaving: leaving.clone(), others: Arc::default() };
        self.runtime.spawn(hand_over(
            (shutdown.clone(), stop.clone()),
            serving.clone(),
            (self.keeper.clone(), self.shared.clone()),
        ));
        let serves = self.serves.clone();
        let ended = server::run_agreed(self.settings.clone(), listeners, stop, Arc::new(agreement), move || {
            serves.send_replace(Some(serving));
            Ok(())
        });
        // Nothing is sent to servers any more.
        self.serves.send_replace(None);
        self.keeper.tell(Event::Stopped);
        let deadline = Instant::now() + self.own.lease;
        loop {
            match self.orders.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Order::Over) => break,
                Ok(_) => {}
                Err(_) => {
                    tracing::warn!("the record cannot be freed: the next active proxy waits for the end of the lease");
                    break;
                }
            }
        }
        ended
    }
}

async fn cannot_accept(error: &std::io::Error) {
    if error.kind() != std::io::ErrorKind::ConnectionAborted {
        tracing::warn!(%error, "cannot accept a client");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// At a planned change nothing new comes from other proxies before this one stops: what they have
/// sent is answered first, so that no client of theirs sees an error.
async fn hand_over(
    (shutdown, stop): (CancellationToken, CancellationToken),
    serving: Serving,
    (keeper, shared): (Keeper, Arc<Shared>),
) {
    shutdown.cancelled().await;
    if keeper.known.borrow().role == Role::Suspended {
        // Nobody can be answered, and nothing is to be said to servers.
        keeper.quit();
    }
    serving.leaving.cancel();
    let deadline = Instant::now() + LEAVING;
    let busy = || serving.others.load(Ordering::SeqCst) + shared.links.load(Ordering::SeqCst) > 0;
    while busy() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.cancel();
}

/// Tells the relays where the active proxy is, and holds a control connection to it.
async fn follow(
    keeper: Keeper,
    shows: watch::Sender<Target>,
    mut served: watch::Receiver<Option<Serving>>,
    shared: Arc<Shared>,
) {
    let mut known = keeper.known.clone();
    // Of this generation it is known that it hands over, or has ended.
    let mut leaving = None;
    let mut control: Option<(Generation, tokio::net::TcpStream)> = None;
    let mut byte = [0];
    // The one that is active by the record, and when it was last heard, or first known.
    let mut heard = (None, Instant::now());
    let mut asked = Instant::now();
    loop {
        let now = known.borrow_and_update().clone();
        let own = served.borrow_and_update().clone();
        let own_leaves = own.as_ref().map(|serving| serving.leaving.clone());
        if own_leaves.as_ref().is_some_and(CancellationToken::is_cancelled) {
            leaving = own.as_ref().map(|serving| serving.generation);
        }
        let serving = own.map(|serving| serving.generation);
        let active = match now.role {
            Role::Standby if now.other_list => None,
            Role::Standby => now.active.clone().map(|address| (now.generation, address)),
            Role::Active | Role::Suspended => {
                now.active.clone().filter(|_| serving.is_some()).map(|at| (now.generation, at))
            }
        };
        let why = match (&now.trouble, now.other_list) {
            (_, true) => "the active one has another list of servers, or another --lease".to_owned(),
            (Some(trouble), _) => trouble.clone(),
            (None, _) => String::new(),
        };
        let is_leaving = active.as_ref().is_some_and(|(generation, _)| leaving == Some(*generation));
        let at = active.as_ref().map(|(generation, _)| *generation);
        if heard.0 != at {
            heard = (at, Instant::now());
        }
        // The record may go on where the network to its holder is cut.
        let cut = now.role == Role::Standby && at.is_some() && heard.1.elapsed() > shared.lease;
        let silent = now.silent || now.role == Role::Suspended || cut;
        if cut {
            control = None;
        }
        let target = Target { active, leaving: is_leaving, silent, why };
        shows.send_if_modified(|shown| {
            let changed = *shown != target;
            *shown = target.clone();
            changed
        });
        let present = target.active.as_ref().map(|(generation, _)| *generation);
        if control.as_ref().is_some_and(|(generation, _)| Some(*generation) != present)
            || is_leaving && shared.links.load(Ordering::SeqCst) == 0
        {
            control = None;
        }
        shared.shown.reached.store(control.is_some(), Ordering::Relaxed);
        if control.is_none()
            && now.role == Role::Standby
            && !is_leaving
            && let Some((generation, address)) = &target.active
        {
            match peers::dial(address, *generation, Purpose::Control, &shared.name, shared.lease).await {
                Ok(stream) => {
                    heard.1 = Instant::now();
                    control = Some((*generation, stream));
                    continue;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot reach the active proxy");
                    (shared.hurry)();
                    tokio::time::sleep(FOLLOW_PAUSE).await;
                    continue;
                }
            }
        }
        let waits = is_leaving || now.role == Role::Standby && target.active.is_none();
        let own_leaves = async {
            match &own_leaves {
                Some(leaves) if !leaves.is_cancelled() => leaves.cancelled().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = known.changed() => if changed.is_err() { return },
            changed = served.changed() => if changed.is_err() { return },
            () = own_leaves => {}
            read = read_control(&mut control, &mut byte) => match read {
                Ok(n) if n > 0 && byte == [peers::PONG] => heard.1 = Instant::now(),
                Ok(n) if n > 0 => leaving = present,
                // Our own kernel has given it up: the other end may be there.
                Err(error) if !crate::backend::is_from_node(&error) => control = None,
                _ => {
                    control = None;
                    leaving = present;
                    (shared.hurry)();
                }
            },
            () = tokio::time::sleep(FOLLOW_PAUSE), if waits => (shared.hurry)(),
            () = tokio::time::sleep_until((asked + shared.lease / PINGS).into()), if control.is_some() && !waits => {
                asked = Instant::now();
                if let Some((_, stream)) = &control {
                    // (Full: it will be found silent.)
                    let _ = stream.try_write(&[peers::PING]);
                }
            }
        }
    }
}

/// So often in a lease the other end of a control connection is asked whether it is there.
const PINGS: u32 = 6;

/// Between two looks for a new active proxy.
const FOLLOW_PAUSE: Duration = Duration::from_millis(10);

async fn read_control(
    control: &mut Option<(Generation, tokio::net::TcpStream)>,
    byte: &mut [u8],
) -> std::io::Result<usize> {
    match control {
        Some((_, stream)) => stream.read(byte).await,
        None => std::future::pending().await,
    }
}

/// What all proxies must have alike: the ring; and the lease, for a candidate with a shorter one
/// would act while the active one still may (seen: 1s beside 3s).
fn alike(topology: &Topology, lease: Duration) -> u64 {
    topology.fingerprint() ^ (lease.as_millis() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Distribution;

    #[test]
    fn a_proxy_with_another_lease_takes_nobodys_place() {
        let server = ["127.0.0.1:1".parse().unwrap()];
        let topology = Topology::new(&server, &server, Distribution::Modula);
        let of = |secs| alike(&topology, Duration::from_secs(secs));
        assert!(of(3) != of(1) && of(3) == of(3));
    }
}
