//! Where a worker's clients come from.

use std::io;

use crate::daemon::{Listening, into_tokio};
#[cfg(test)]
use crate::server::stream::InMemory;
use crate::server::stream::Stream;

/// Where clients come from.
pub(crate) enum Listener {
    Tcp(Listening<tokio::net::TcpListener>),
    Unix(Listening<tokio::net::UnixListener>),
    /// Clients of other proxies, that were accepted elsewhere.
    Handed(tokio::sync::mpsc::UnboundedReceiver<std::net::TcpStream>),
    /// Simulated clients.
    #[cfg(test)]
    Memory(tokio::sync::mpsc::UnboundedReceiver<tokio::io::DuplexStream>),
}

impl Listener {
    pub(super) async fn accept(&mut self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.socket.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Listener::Unix(listener) => Ok(Stream::Unix(listener.socket.accept().await?.0)),
            Listener::Handed(streams) => match streams.recv().await {
                Some(stream) => Ok(Stream::Tcp(into_tokio(stream)?)),
                None => std::future::pending().await,
            },
            #[cfg(test)]
            Listener::Memory(streams) => match streams.recv().await {
                Some(stream) => Ok(Stream::Memory(InMemory::new(stream))),
                None => std::future::pending().await,
            },
        }
    }

    /// Clients that have connected and were not accepted yet; no more can connect after that.
    pub(super) fn end(self) -> Vec<Stream> {
        match self {
            Listener::Tcp(Listening { socket, kept }) => {
                let Ok(socket) = socket.into_std() else { return Vec::new() };
                Listening { socket, kept }.end().into_iter().map(Stream::Tcp).collect()
            }
            Listener::Unix(Listening { socket, kept }) => {
                let Ok(socket) = socket.into_std() else { return Vec::new() };
                Listening { socket, kept }.end().into_iter().map(Stream::Unix).collect()
            }
            Listener::Handed(mut streams) => {
                streams.close();
                let left = std::iter::from_fn(|| streams.try_recv().ok());
                left.filter_map(|stream| into_tokio(stream).ok()).map(Stream::Tcp).collect()
            }
            #[cfg(test)]
            Listener::Memory(mut streams) => {
                std::iter::from_fn(|| streams.try_recv().ok()).map(InMemory::new).map(Stream::Memory).collect()
            }
        }
    }
}
