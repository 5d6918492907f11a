//! Sockets that listen already when the process begins: a service manager (systemd) has bound them
//! (`LISTEN_FDS`), and keeps them while the proxy is restarted, so that no client is refused: its
//! connection waits.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;

/// What is said of a socket of UDP, a FIFO, or a stream that does not listen.
const NO_STREAM: &str = "one of them is no listening stream, and the proxy serves nothing else: give the socket unit \
                         ListenStream= alone, and Accept=no";

/// Those that nobody has asked for yet.
#[derive(Default, Debug)]
pub(super) struct Handed {
    tcp: Vec<(SocketAddr, TcpListener)>,
    unix: Vec<(PathBuf, UnixListener)>,
}

impl Handed {
    /// Those of this process; once.
    pub(super) fn take() -> io::Result<Handed> {
        let mut handed = Handed::default();
        let mut found = ListenFd::from_env();
        for at in 0..found.len() {
            if let Ok(Some(listener)) = found.take_tcp_listener(at) {
                listener.set_nonblocking(true)?;
                handed.tcp.push((listener.local_addr()?, listener));
                continue;
            }
            let unix = found.take_unix_listener(at).map_err(|_| io::Error::other(NO_STREAM))?;
            let Some(listener) = unix else { continue };
            listener.set_nonblocking(true)?;
            let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
            let path = path.ok_or_else(|| io::Error::other("a unix socket without a path"))?;
            handed.unix.push((path, listener));
        }
        Ok(handed)
    }

    pub(super) fn tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self.tcp.iter().position(|(known, _)| *known == address)?;
        Some(self.tcp.swap_remove(at).1)
    }

    /// One of this port, whatever its address.
    pub(super) fn at_port(&self, port: u16) -> Option<SocketAddr> {
        self.tcp.iter().map(|(address, _)| *address).find(|address| address.port() == port)
    }

    pub(super) fn unix(&mut self, path: &Path) -> Option<UnixListener> {
        let at = self.unix.iter().position(|(known, _)| known == path)?;
        Some(self.unix.swap_remove(at).1)
    }

    #[cfg(test)]
    pub(super) fn of(listener: TcpListener) -> Handed {
        let address = listener.local_addr().expect("it has one");
        Handed { tcp: vec![(address, listener)], unix: Vec::new() }
    }

    /// One that nobody wants.
    pub(super) fn left(&self) -> Option<String> {
        let unix = self.unix.first().map(|(path, _)| path.display().to_string());
        self.tcp.first().map(|(address, _)| address.to_string()).or(unix)
    }
}
