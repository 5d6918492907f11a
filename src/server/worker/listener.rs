//! Where a worker's clients come from.

use std::io;

use crate::daemon::Listening;
use crate::server::stream::ClientStream;

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

    /// Those who have connected and were not accepted yet; nobody can connect after that.
    pub(super) fn end(self) -> Vec<ClientStream> {
        match self {
            Listener::Tcp(Listening { socket, kept }) => socket.into_std().map_or_else(
                |_| Vec::new(),
                |socket| Listening { socket, kept }.end(|socket| of_tcp(socket.accept()?.0)),
            ),
            Listener::Unix(Listening { socket, kept }) => socket.into_std().map_or_else(
                |_| Vec::new(),
                |socket| {
                    Listening { socket, kept }.end(|socket| {
                        let stream = socket.accept()?.0;
                        stream.set_nonblocking(true)?;
                        Ok(ClientStream::Unix(tokio::net::UnixStream::from_std(stream)?))
                    })
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
