//! Where a worker's clients come from.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;

use socket2::SockRef;

use crate::daemon::{BACKLOG, Listening};
use crate::server::stream::ClientStream;

/// This many are accepted at the end at most: the system lets no more wait for that.
const LAST_MAX: usize = BACKLOG as usize;

/// Where clients come from.
pub(crate) enum Listener {
    Tcp(Listening<tokio::net::TcpListener>),
    /// The unix socket.
    Unix(Listening<tokio::net::UnixListener>),
    /// Clients of other proxies, that were accepted elsewhere.
    Handed(tokio::sync::mpsc::UnboundedReceiver<std::net::TcpStream>),
    /// Simulated clients.
    #[cfg(test)]
    Memory(tokio::sync::mpsc::UnboundedReceiver<tokio::io::DuplexStream>),
}

impl Listener {
    pub(super) async fn accept(&mut self) -> io::Result<ClientStream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.socket.accept().await?;
                stream.set_nodelay(true)?;
                Ok(ClientStream::Tcp(stream))
            }
            Listener::Unix(listener) => Ok(ClientStream::Unix(listener.socket.accept().await?.0)),
            Listener::Handed(streams) => match streams.recv().await {
                Some(stream) => of_tcp(stream),
                None => std::future::pending().await,
            },
            #[cfg(test)]
            Listener::Memory(streams) => match streams.recv().await {
                Some(stream) => Ok(ClientStream::Memory(stream)),
                None => std::future::pending().await,
            },
        }
    }

    /// Those who have connected and were not accepted yet: to them the system has said already that
    /// the proxy is there. Nobody can connect after that.
    pub(super) fn end(self) -> Vec<ClientStream> {
        match self {
            // They wait for the next start.
            Listener::Tcp(Listening { kept: true, .. }) | Listener::Unix(Listening { kept: true, .. }) => Vec::new(),
            Listener::Tcp(listener) => listener.socket.into_std().map_or_else(
                |_| Vec::new(),
                |socket| {
                    let left = waiting(|| of_tcp(socket.accept()?.0));
                    end_listening(&socket);
                    left
                },
            ),
            Listener::Unix(listener) => listener.socket.into_std().map_or_else(
                |_| Vec::new(),
                |socket| {
                    let left = waiting(|| {
                        let stream = socket.accept()?.0;
                        stream.set_nonblocking(true)?;
                        Ok(ClientStream::Unix(tokio::net::UnixStream::from_std(stream)?))
                    });
                    end_listening(&socket);
                    left
                },
            ),
            Listener::Handed(mut streams) => {
                streams.close();
                std::iter::from_fn(|| streams.try_recv().ok()).filter_map(|stream| of_tcp(stream).ok()).collect()
            }
            #[cfg(test)]
            Listener::Memory(mut streams) => {
                std::iter::from_fn(|| streams.try_recv().ok()).map(ClientStream::Memory).collect()
            }
        }
    }
}

fn of_tcp(stream: std::net::TcpStream) -> io::Result<ClientStream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(ClientStream::Tcp(tokio::net::TcpStream::from_std(stream)?))
}

/// All that can be accepted at once. Some may have left by now; if the system refuses (no files are
/// left), the others are closed with the socket.
fn waiting(mut accept: impl FnMut() -> io::Result<ClientStream>) -> Vec<ClientStream> {
    let mut found = Vec::new();
    while found.len() < LAST_MAX {
        match accept() {
            Ok(stream) => found.push(stream),
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    found
}

/// For all handles of the socket, this thread's and others': as long as one of them listens, the
/// system lets clients in, who would wait for the end of the process and then be reset (seen: four
/// seconds with a `--shutdown-grace` of four).
fn end_listening(socket: &impl AsFd) {
    if let Err(error) = SockRef::from(socket).shutdown(Shutdown::Both) {
        tracing::debug!(%error, "a listening socket could not be shut down; it is closed with the process");
    }
}
