//! One end of a connection that is passed on: a client's, or the link to the active proxy.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

#[cfg(test)]
mod memory;
#[cfg(test)]
pub(super) use memory::Memory;

/// A client's connection, or one between proxies.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// In a simulated world.
    #[cfg(test)]
    Memory(Memory),
}

impl Stream {
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Stream::Tcp(stream) => stream.ready(interest).await,
            Stream::Unix(stream) => stream.ready(interest).await,
            #[cfg(test)]
            Stream::Memory(stream) => stream.ready(interest).await,
        }
    }

    pub(super) fn try_read(&self, into: &mut BytesMut) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_read_buf(into),
            Stream::Unix(stream) => stream.try_read_buf(into),
            #[cfg(test)]
            Stream::Memory(stream) => stream.try_read_buf(into),
        }
    }

    pub(super) fn try_write(&self, from: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_write(from),
            Stream::Unix(stream) => stream.try_write(from),
            #[cfg(test)]
            Stream::Memory(stream) => stream.try_write(from),
        }
    }

    /// Where it comes from.
    pub(super) fn peer(&self) -> String {
        match self {
            Stream::Tcp(stream) => stream.peer_addr().map_or_else(|error| error.to_string(), |peer| peer.to_string()),
            Stream::Unix(_) => "a unix socket".to_owned(),
            #[cfg(test)]
            Stream::Memory(_) => "memory".to_owned(),
        }
    }

    /// Says why it is not served; an end meanwhile is no matter.
    pub(super) async fn refuse(&mut self, why: &[u8]) {
        let _ = self.write_all(why).await;
    }

    /// Nothing more is written to it.
    pub(super) fn close_half(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
            Stream::Unix(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
            #[cfg(test)]
            Stream::Memory(stream) => stream.close_half(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(test)]
            Stream::Memory(stream) => stream.polled().poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            #[cfg(test)]
            Stream::Memory(stream) => stream.polled().poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // (Nothing is held back here.)
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.close_half())
    }
}

/// Whether the other end has ended it: by then all that it had of it is over there. What our own
/// kernel gives up may still be read.
pub(super) fn is_ended_there(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || crate::backend::is_from_node(error)
}

/// Whether the other end has ended it, in time.
pub(super) async fn ended(link: &Stream, until: Instant) -> bool {
    let ended = async {
        let mut block = BytesMut::with_capacity(16 << 10);
        loop {
            let ready = link.ready(Interest::READABLE).await;
            block.clear();
            match ready.and_then(|_| link.try_read(&mut block)) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return is_ended_there(&error),
            }
        }
    };
    tokio::time::timeout_at(until, ended).await.unwrap_or(false)
}

pub(super) async fn ready(stream: Option<&Stream>, interest: Option<Interest>) -> io::Result<Ready> {
    match (stream, interest) {
        (Some(stream), Some(interest)) => stream.ready(interest).await,
        _ => std::future::pending().await,
    }
}

/// What it is awaited for.
pub(super) fn interest(reads: bool, writes: bool) -> Option<Interest> {
    match (reads, writes) {
        (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
        (true, false) => Some(Interest::READABLE),
        (false, true) => Some(Interest::WRITABLE),
        (false, false) => None,
    }
}
