//! How a node is reached. Behind a trait, so that tests and simulation put model nodes in the place of TCP.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::address::Addresses;
use super::deadline::by;
use crate::ids::NodeId;

/// Opens connections to nodes.
pub trait Dial: Send + Sync + 'static {
    /// Connects to a node. The error kinds matter: `ConnectionRefused` means that no process listens there,
    /// `TimedOut` that nobody answered, `NotFound` that its name never resolved.
    fn dial(&self, node: NodeId) -> BoxFuture<'static, io::Result<NodeStream>>;

    /// Connects to another address than the node's own, to see what is there.
    fn dial_at(&self, _node: NodeId, _at: SocketAddr) -> BoxFuture<'static, io::Result<NodeStream>> {
        async { Err(io::ErrorKind::Unsupported.into()) }.boxed()
    }

    /// Counts the node's addresses: a connection that was dialled under an earlier one leads to another server, or may.
    fn life(&self, _node: NodeId) -> u64 {
        0
    }
}

/// A byte stream to a node.
#[derive(Debug)]
pub enum NodeStream {
    /// A real connection.
    Tcp(TcpStream),
    /// An in-memory one, to a scripted or simulated node.
    Memory(DuplexStream),
}

impl AsyncRead for NodeStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            NodeStream::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            NodeStream::Memory(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for NodeStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            NodeStream::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            NodeStream::Memory(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            // One piece is the rule, and `send` does less for it than `writev`.
            NodeStream::Tcp(s) if bufs.len() == 1 => Pin::new(s).poll_write(cx, &bufs[0]),
            NodeStream::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            NodeStream::Memory(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, NodeStream::Tcp(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            NodeStream::Tcp(s) => Pin::new(s).poll_flush(cx),
            NodeStream::Memory(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            NodeStream::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            NodeStream::Memory(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// Dials nodes over TCP, each at its present address.
#[derive(Debug)]
pub struct TcpDialer {
    addresses: Arc<Addresses>,
    timeout: Duration,
}

impl TcpDialer {
    /// `timeout` bounds a dial (as `deadline::by` does).
    pub fn new(addresses: Arc<Addresses>, timeout: Duration) -> TcpDialer {
        TcpDialer { addresses, timeout }
    }
}

impl Dial for TcpDialer {
    fn dial(&self, node: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let (addresses, timeout) = (self.addresses.clone(), self.timeout);
        async move {
            let connect = at_present_address(&addresses, node, |address| async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(NodeStream::Tcp(stream))
            });
            by(Instant::now() + timeout, connect).await.unwrap_or_else(|| {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection was accepted in {timeout:?}")))
            })
        }
        .boxed()
    }

    fn dial_at(&self, _: NodeId, at: SocketAddr) -> BoxFuture<'static, io::Result<NodeStream>> {
        let timeout = self.timeout;
        async move {
            let stream = by(Instant::now() + timeout, TcpStream::connect(at)).await;
            Ok(NodeStream::Tcp(stream.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?))
        }
        .boxed()
    }

    fn life(&self, node: NodeId) -> u64 {
        self.addresses.life(node)
    }
}

/// Connects to where the node is when the connection stands. A worker is told of another address after that was published, so a
/// connection to an earlier one either is dropped here or stands already when the worker is told.
pub(crate) async fn at_present_address<T, F>(
    addresses: &Addresses,
    node: NodeId,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    loop {
        let (address, life) = addresses.get(node)?;
        let connected = connect(address).await;
        if addresses.life(node) == life {
            return connected;
        }
    }
}
