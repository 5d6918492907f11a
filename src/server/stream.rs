//! A client's byte stream, of whichever kind.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A client connection.
#[derive(Debug)]
pub enum ClientStream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over the unix socket.
    Unix(UnixStream),
    /// In memory, from a simulated client.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
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

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ClientStream::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            ClientStream::Unix(s) => Pin::new(s).poll_read(cx, buf),
            #[cfg(test)]
            ClientStream::Memory(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl ClientStream {
    /// Where it comes from, for the log.
    pub(crate) fn peer(&self) -> String {
        match self {
            ClientStream::Tcp(s) => s.peer_addr().map_or_else(|error| error.to_string(), |peer| peer.to_string()),
            ClientStream::Unix(_) => "the unix socket".to_owned(),
            #[cfg(test)]
            ClientStream::Memory(_) => "memory".to_owned(),
        }
    }

    /// Its two ends, as memcached writes them: the client's, and the proxy's.
    pub(crate) fn ends(&self) -> (String, String) {
        match self {
            ClientStream::Tcp(s) => {
                let tcp = |addr: io::Result<SocketAddr>| {
                    addr.map_or_else(|_| "tcp:unknown".to_owned(), |at| format!("tcp:{at}"))
                };
                (tcp(s.peer_addr()), tcp(s.local_addr()))
            }
            ClientStream::Unix(s) => {
                let at = s.local_addr().ok().and_then(|at| at.as_pathname().map(|path| path.display().to_string()));
                ("unix".to_owned(), format!("unix:{}", at.unwrap_or_default()))
            }
            #[cfg(test)]
            ClientStream::Memory(_) => ("memory".to_owned(), "memory".to_owned()),
        }
    }

    /// After a read that left room in its buffer: waits for more, where there may be none. The same
    /// as another read, for less.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            // The next read returns the error.
            ClientStream::Tcp(s) => s.poll_read_ready(cx).map(drop),
            ClientStream::Unix(s) => s.poll_read_ready(cx).map(drop),
            #[cfg(test)]
            ClientStream::Memory(_) => Poll::Ready(()),
        }
    }

    /// Takes the socket away from tokio, in blocking mode.
    ///
    /// # Errors
    ///
    /// What the system says; the connection is closed then.
    pub(crate) fn into_blocking(self) -> io::Result<OwnedFd> {
        match self {
            ClientStream::Tcp(s) => into_blocking(s),
            ClientStream::Unix(s) => {
                let s = s.into_std()?;
                s.set_nonblocking(false)?;
                Ok(s.into())
            }
            #[cfg(test)]
            ClientStream::Memory(_) => Err(io::ErrorKind::Unsupported.into()),
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
            ClientStream::Tcp(s) if slices.len() == 1 => Pin::new(s).poll_write(cx, &slices[0]),
            ClientStream::Tcp(s) => Pin::new(s).poll_write_vectored(cx, slices),
            ClientStream::Unix(s) => Pin::new(s).poll_write_vectored(cx, slices),
            #[cfg(test)]
            ClientStream::Memory(s) => Pin::new(s).poll_write_vectored(cx, slices),
        }
    }
}
