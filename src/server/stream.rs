//! A byte stream: a client's, or one between proxies, of whichever kind.

use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

#[cfg(test)]
mod memory;
#[cfg(test)]
pub(crate) use memory::InMemory;

/// A client's connection, or one between proxies.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// In a simulated world.
    #[cfg(test)]
    Memory(InMemory),
}

/// Takes a socket away from tokio, in blocking mode.
///
/// # Errors
///
/// What the system says; the connection is closed then.
pub(crate) fn into_blocking(stream: TcpStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

impl Stream {
    /// Where it comes from, for the log.
    pub(crate) fn peer(&self) -> String {
        match self {
            Stream::Tcp(s) => s.peer_addr().map_or_else(|error| error.to_string(), |peer| peer.to_string()),
            Stream::Unix(_) => "a unix socket".to_owned(),
            #[cfg(test)]
            Stream::Memory(_) => "memory".to_owned(),
        }
    }

    /// Its two ends, as memcached writes them: the client's, and the proxy's.
    pub(crate) fn ends(&self) -> (String, String) {
        match self {
            Stream::Tcp(s) => {
                let tcp = |addr: io::Result<SocketAddr>| {
                    addr.map_or_else(|_| "tcp:unknown".to_owned(), |at| format!("tcp:{at}"))
                };
                (tcp(s.peer_addr()), tcp(s.local_addr()))
            }
            Stream::Unix(s) => {
                let at = s.local_addr().ok().and_then(|at| at.as_pathname().map(|path| path.display().to_string()));
                ("unix".to_owned(), format!("unix:{}", at.unwrap_or_default()))
            }
            #[cfg(test)]
            Stream::Memory(_) => ("memory".to_owned(), "memory".to_owned()),
        }
    }

    /// Takes the socket away from tokio, in blocking mode.
    ///
    /// # Errors
    ///
    /// What the system says; the connection is closed then.
    pub(crate) fn into_blocking(self) -> io::Result<OwnedFd> {
        match self {
            Stream::Tcp(s) => into_blocking(s),
            Stream::Unix(s) => {
                let s = s.into_std()?;
                s.set_nonblocking(false)?;
                Ok(s.into())
            }
            #[cfg(test)]
            Stream::Memory(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Says why it is not served. A client that has left meanwhile misses that.
    pub(crate) async fn refuse(&mut self, why: &[u8]) {
        let _ = self.write_all(why).await;
    }

    /// Nothing more is written to it.
    pub(crate) fn close_half(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => SockRef::from(s).shutdown(Shutdown::Write),
            Stream::Unix(s) => SockRef::from(s).shutdown(Shutdown::Write),
            #[cfg(test)]
            Stream::Memory(s) => s.close_half(),
        }
    }
}

/// For tasks that are polled, as a worker's are.
impl Stream {
    /// After a read that left room in its buffer: waits for more, where there may be none. The same
    /// as another read, for less.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            // The next read returns the error.
            Stream::Tcp(s) => s.poll_read_ready(cx).map(drop),
            Stream::Unix(s) => s.poll_read_ready(cx).map(drop),
            #[cfg(test)]
            Stream::Memory(_) => Poll::Ready(()),
        }
    }

    /// Writes as much of `slices` as the stream takes now.
    pub(crate) fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            // One piece is the rule, and `send` does less for it than `writev`.
            Stream::Tcp(s) if slices.len() == 1 => Pin::new(s).poll_write(cx, &slices[0]),
            Stream::Tcp(s) => Pin::new(s).poll_write_vectored(cx, slices),
            Stream::Unix(s) => Pin::new(s).poll_write_vectored(cx, slices),
            #[cfg(test)]
            Stream::Memory(s) => s.polled().poll_write_vectored(cx, slices),
        }
    }
}

/// For tasks that wait until it is ready and then try, as those of a proxy that passes requests on.
impl Stream {
    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Stream::Tcp(s) => s.ready(interest).await,
            Stream::Unix(s) => s.ready(interest).await,
            #[cfg(test)]
            Stream::Memory(s) => s.ready(interest).await,
        }
    }

    pub(crate) fn try_read(&self, into: &mut BytesMut) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => s.try_read_buf(into),
            Stream::Unix(s) => s.try_read_buf(into),
            #[cfg(test)]
            Stream::Memory(s) => s.try_read_buf(into),
        }
    }

    pub(crate) fn try_write(&self, from: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => s.try_write(from),
            Stream::Unix(s) => s.try_write(from),
            #[cfg(test)]
            Stream::Memory(s) => s.try_write(from),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Unix(s) => Pin::new(s).poll_read(cx, buf),
            #[cfg(test)]
            Stream::Memory(s) => s.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Unix(s) => Pin::new(s).poll_write(cx, buf),
            #[cfg(test)]
            Stream::Memory(s) => s.polled().poll_write(cx, buf),
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
