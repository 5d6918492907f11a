//! Binding what clients connect to.

use std::fs::Permissions;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedReceiver;

use super::handed::Handed;
use crate::config::{Plan, Settings};
use crate::file_id::FileId;

/// Connections that may wait to be accepted. All of a web farm's workers connect at once after a
/// deployment; the kernel cuts this down to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// All that the process listens on.
#[derive(Debug, Default)]
pub struct Bound {
    /// For each pool, in the order of [`Plan::pools`].
    pub pools: Vec<Listeners>,
    pub operators: OperatorListeners,
    /// Unix sockets whose files are somebody else's.
    pub kept: Vec<PathBuf>,
}

/// What operators reach the process by.
#[derive(Debug, Default)]
pub struct OperatorListeners {
    pub http: Option<TcpListener>,
    /// For `--admin-socket`.
    pub socket: Option<UnixListener>,
}

/// What clients come to.
#[derive(Debug)]
pub struct Listening<S> {
    pub socket: S,
    /// A service manager holds it too: clients that are not accepted wait there for the next start.
    pub kept: bool,
}

impl<S> Listening<S> {
    /// The same listener by another handle, or by one of its sockets.
    pub(crate) fn by<T>(&self, socket: impl FnOnce(&S) -> io::Result<T>) -> io::Result<Listening<T>> {
        Ok(Listening { socket: socket(&self.socket)?, kept: self.kept })
    }
}

impl Listening<TcpListener> {
    /// Ends the listening, and returns the clients that have connected and were not accepted yet:
    /// to them the system has said already that the proxy is there. No more can connect after that.
    /// (Where the socket is kept, they wait for the next start.) To be called inside a runtime.
    pub(crate) fn end(&self) -> Vec<tokio::net::TcpStream> {
        self.end_by(|socket| into_tokio(socket.accept()?.0))
    }
}

impl Listening<UnixListener> {
    /// The same for the unix socket.
    pub(crate) fn end(&self) -> Vec<tokio::net::UnixStream> {
        self.end_by(|socket| {
            let stream = socket.accept()?.0;
            stream.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(stream)
        })
    }
}

/// A client's connection that was accepted without the runtime.
pub(crate) fn into_tokio(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    tokio::net::TcpStream::from_std(stream)
}

impl<S: AsFd> Listening<S> {
    fn end_by<C>(&self, accept: impl Fn(&S) -> io::Result<C>) -> Vec<C> {
        if self.kept {
            return Vec::new();
        }
        let found = waiting(|| accept(&self.socket));
        // For all handles of the socket, this thread's and others': as long as one of them listens,
        // the system lets clients in, who would wait for the end of the process and then be reset
        // (seen: four seconds with a `--shutdown-grace` of four).
        if let Err(error) = SockRef::from(&self.socket).shutdown(Shutdown::Both) {
            tracing::debug!(%error, "a listening socket could not be shut down; it is closed with the process");
        }
        found
    }
}

/// All that can be accepted at once. Some may have left by now; if the system refuses (no files are
/// left), the others are closed with the socket.
fn waiting<C>(mut accept: impl FnMut() -> io::Result<C>) -> Vec<C> {
    let mut found = Vec::new();
    // (The system lets no more wait.)
    while found.len() < BACKLOG as usize {
        match accept() {
            Ok(client) => found.push(client),
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    found
}

/// Bound, listening, non-blocking sockets of a pool.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For each of [`Settings::listen`] as many as there are worker threads: each has a queue of
    /// its own, so that a connection wakes one thread and not all. (One for all of them where the
    /// system cannot do that.)
    pub tcp: Vec<Listening<Vec<TcpListener>>>,
    /// For [`Settings::unix_socket`].
    pub unix: Option<Listening<UnixListener>>,
    /// Of a pool that is alone in its process: what operators reach that by.
    pub operators: OperatorListeners,
    /// Where clients of other proxies come from that were accepted already, one for each worker
    /// thread; none without `--coordinate`.
    pub handed: Vec<UnboundedReceiver<TcpStream>>,
}

/// How long nothing is accepted after it failed.
const PAUSE: Duration = Duration::from_millis(100);

/// `what` could not be accepted. Out of files, most likely: without a pause whoever accepts would
/// spin until one is closed. (Somebody who left before is no failure.)
pub(crate) async fn cannot_accept(what: &str, error: &io::Error) {
    if error.kind() != io::ErrorKind::ConnectionAborted {
        tracing::warn!(%error, "cannot accept {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Its mode: whoever starts the proxy, and the group. Anybody else may not say `resync lead`.
const ADMIN_SOCKET_MODE: u32 = 0o660;

/// Why a socket could not be bound.
#[derive(Debug, Error)]
pub enum BindError {
    /// The system refused a TCP address.
    #[error("cannot listen on {address}: {cause}{}", hint(.cause))]
    Tcp {
        /// The address as given with `-l` and `-p`.
        address: SocketAddr,
        cause: io::Error,
    },
    /// The same for the admin listener's.
    #[error("cannot listen on {address} for --admin: {cause}; give an address of this machine and a port that is free")]
    Admin {
        /// The address as given with `--admin`.
        address: SocketAddr,
        cause: io::Error,
    },
    /// The system refused a unix socket.
    #[error("cannot listen on unix socket {}: {cause}", .path.display())]
    Unix {
        /// The path given with `-f` or `--admin-socket`.
        path: PathBuf,
        cause: io::Error,
    },
    /// Another process serves the unix socket.
    #[error("cannot listen on unix socket {}: another process answers on it; stop that one or give another path", .0.display())]
    InUse(PathBuf),
    /// What a service manager has bound for the proxy could not be taken.
    #[error("cannot take the sockets of systemd (LISTEN_FDS): {0}")]
    Handed(io::Error),
    /// No setting asks for one of them.
    #[error(
        "systemd listens on {0}, and no setting says so: give -l and -p (or -f, --admin, --admin-socket) as the socket unit has it, or take it out there"
    )]
    Unasked(String),
    /// Something else stands where the unix socket should be, and is left alone.
    #[error("cannot listen on unix socket {}: a file that is no socket is there; remove it or give another path", .0.display())]
    NotASocket(PathBuf),
}

/// What to do about the refusals that everybody meets.
fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::AddrInUse => "; stop what listens there or give another -p",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root, CAP_NET_BIND_SERVICE, or a systemd socket unit"
        }
        io::ErrorKind::AddrNotAvailable => "; -l must be an address of this machine",
        _ => "",
    }
}

/// Binds everything that the settings name, and is not bound already by a service manager.
///
/// # Errors
///
/// The first address that could not be bound, with the cause; what was bound before is closed
/// again.
pub fn bind(plan: &Plan) -> Result<Bound, BindError> {
    let mut bound = Bound::default();
    let mut handed = Handed::take().map_err(BindError::Handed)?;
    for settings in &plan.pools {
        let listeners = bind_pool(settings, &mut handed, &mut bound.kept)?;
        bound.pools.push(listeners);
    }
    if let Some(path) = &plan.process.admin_socket {
        bound.operators.socket = Some(unix(path, ADMIN_SOCKET_MODE, &mut handed, &mut bound.kept)?);
    }
    if let Some(address) = plan.process.admin {
        bound.operators.http = match handed.tcp(address) {
            Some(listener) => Some(listener),
            None => {
                let queues = bind_tcp(address, false, 1)
                    .map_err(|cause| taken(&handed, address, &cause).unwrap_or(BindError::Admin { address, cause }))?;
                queues.into_iter().next()
            }
        };
    }
    handed.left().map_or(Ok(bound), |left| Err(BindError::Unasked(left)))
}

fn bind_pool(settings: &Settings, handed: &mut Handed, kept: &mut Vec<PathBuf>) -> Result<Listeners, BindError> {
    // A wildcard IPv6 socket also takes IPv4 by default, and then an IPv4 address on the same port
    // is "in use".
    let only_v6 = settings.listen.iter().any(SocketAddr::is_ipv4);
    let mut listeners = Listeners::default();
    for &address in &settings.listen {
        if let Some(listener) = handed.tcp(address) {
            listeners.tcp.push(Listening { socket: vec![listener], kept: true });
            continue;
        }
        let queues = bind_tcp(address, only_v6, settings.threads)
            .map_err(|cause| taken(handed, address, &cause).unwrap_or(BindError::Tcp { address, cause }))?;
        listeners.tcp.push(Listening { socket: queues, kept: false });
    }
    if let Some(path) = &settings.unix_socket {
        let socket = unix(path, settings.unix_socket_mode, handed, kept)?;
        listeners.unix = Some(Listening { socket, kept: kept.contains(path) });
    }
    Ok(listeners)
}

/// What has taken an address in use may be a socket of the service manager's under another name:
/// `ListenStream=11211` is `[::]:11211`, and takes `0.0.0.0:11211` too.
fn taken(handed: &Handed, address: SocketAddr, cause: &io::Error) -> Option<BindError> {
    let taken = handed.at_port(address.port()).filter(|_| cause.kind() == io::ErrorKind::AddrInUse);
    taken.map(|taken| BindError::Unasked(taken.to_string()))
}

fn unix(path: &Path, mode: u32, handed: &mut Handed, kept: &mut Vec<PathBuf>) -> Result<UnixListener, BindError> {
    match handed.unix(path) {
        Some(listener) => {
            kept.push(path.to_owned());
            Ok(listener)
        }
        None => bind_unix(path, mode),
    }
}

/// Binds addresses that clients may connect to while the proxy runs: a socket of each for each of
/// this many workers.
///
/// # Errors
///
/// The first one that could not be bound; the others are closed again.
pub(crate) fn bind_also(
    settings: &Settings,
    addresses: &[SocketAddr],
    workers: usize,
) -> Result<Vec<(SocketAddr, Vec<TcpListener>)>, BindError> {
    let only_v6 = settings.listen.iter().any(SocketAddr::is_ipv4);
    let bound = |&address: &SocketAddr| match bind_tcp(address, only_v6, workers).and_then(|q| shared(q, workers)) {
        Ok(sockets) => Ok((address, sockets)),
        Err(cause) => Err(BindError::Tcp { address, cause }),
    };
    addresses.iter().map(bound).collect()
}

/// Where the system knows one queue alone, all have it.
fn shared(mut queues: Vec<TcpListener>, workers: usize) -> io::Result<Vec<TcpListener>> {
    while let (Some(last), true) = (queues.last(), queues.len() < workers) {
        queues.push(last.try_clone()?);
    }
    Ok(queues)
}

fn bind_tcp(address: SocketAddr, only_v6: bool, queues: usize) -> io::Result<Vec<TcpListener>> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // So that a restart does not wait for connections of the last run in TIME_WAIT.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        Ok::<_, io::Error>(socket)
    };
    // The first one is bound as if it were alone: were the port shared from the beginning, a second
    // proxy started by mistake would take a part of the first one's clients instead of being
    // refused.
    let first = open()?;
    first.bind(&address.into())?;
    let mut sockets = vec![first];
    // Linux spreads connections over such sockets; elsewhere one of them gets all.
    #[cfg(target_os = "linux")]
    if queues > 1 {
        sockets[0].set_reuse_port(true)?;
        let bound = sockets[0].local_addr()?;
        for _ in 1..queues {
            let next = open()?;
            next.set_reuse_port(true)?;
            next.bind(&bound)?;
            sockets.push(next);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = queues;
    let listening = |socket: Socket| {
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    sockets.into_iter().map(listening).collect()
}

/// Binds an address that others than clients connect to: one socket, which lets as many wait.
///
/// # Errors
///
/// What the system refused.
pub(crate) fn bind_for_others(address: SocketAddr) -> io::Result<TcpListener> {
    let queues = bind_tcp(address, false, 1)?;
    queues.into_iter().next().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, BindError> {
    remove_stale(path)?;
    let bound = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // The mode is set before `listen`, so that no client connects under the umask's mode.
        std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(UnixListener::from(socket))
    };
    bound().map_err(|cause| BindError::Unix { path: path.to_owned(), cause })
}

/// Removes the socket file that a killed process has left, and nothing else.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let system = |cause| BindError::Unix { path: path.to_owned(), cause };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    let address = SockAddr::unix(path).map_err(system)?;
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(system)?;
    // Not to wait for an owner whose queue is full: that is an answer too.
    probe.set_nonblocking(true).map_err(system)?;
    match probe.connect(&address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(system),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(()) => Err(BindError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(BindError::InUse(path.to_owned())),
        Err(error) => Err(system(error)),
    }
}

/// The file of a bound unix socket; removed on drop, if it is still the same one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Another resilver may have put its own socket there meanwhile.
    identity: FileId,
}

impl SocketFile {
    /// Takes charge of a socket file that this process has just bound.
    ///
    /// # Errors
    ///
    /// The file is not there any more.
    pub fn own(path: &Path) -> io::Result<SocketFile> {
        let found = std::fs::symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_owned(), identity: FileId::of(&found) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = self.identity.is_at(&self.path);
        // After dropping privileges the directory may forbid it; the next start finds the file
        // stale and removes it.
        if same && let Err(cause) = std::fs::remove_file(&self.path) {
            tracing::info!(path = %self.path.display(), %cause, "unix socket left behind; the next start removes it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CommandLine, Host};

    /// `ListenStream=PORT` of a unit is `[::]:PORT`, which takes all of `0.0.0.0:PORT` too: who is
    /// told to stop what listens there looks for a process that does not exist.
    #[test]
    fn an_address_that_systemd_has_taken_is_named_as_the_unit_has_it() {
        // (Not every machine has IPv6.)
        let Ok(everywhere) = TcpListener::bind("[::]:0") else { return };
        let taken = everywhere.local_addr().unwrap();
        let bound = |line: &str, handed: &mut Handed| {
            let line = format!("resilver -s a:1 -p {} {line}", taken.port());
            let Ok(CommandLine::Run(plan)) = CommandLine::parse(line.split_whitespace(), &Host::this()) else {
                panic!("{line}")
            };
            bind_pool(&plan.pools[0], handed, &mut Vec::new())
        };
        for line in ["-l 0.0.0.0", "-l 127.0.0.1"] {
            let mut handed = Handed::of(everywhere.try_clone().unwrap());
            match bound(line, &mut handed) {
                Err(BindError::Unasked(left)) => assert_eq!(left, taken.to_string()),
                other => panic!("{line}: {other:?}"),
            }
        }
        let foreign = bound("-l 0.0.0.0", &mut Handed::default());
        assert!(matches!(foreign, Err(BindError::Tcp { .. })), "{foreign:?}");
        assert!(bound("-l ::", &mut Handed::of(everywhere)).is_ok());
    }
}
