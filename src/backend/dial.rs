//! How a node is reached. Behind a trait, so that tests and simulation put model nodes in the place of TCP.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::deadline::by;
use crate::ids::NodeId;
use crate::ring::NodeAddr;

/// Opens connections to nodes.
pub trait Dial: Send + Sync + 'static {
    /// Connects to a node. The error kinds matter: `ConnectionRefused` means that no process listens there,
    /// `TimedOut` that nobody answered.
    fn dial(&self, node: NodeId) -> BoxFuture<'static, io::Result<NodeStream>>;
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

/// Dials nodes over TCP; host names are resolved anew at every dial, so that a moved node is found.
#[derive(Debug)]
pub struct TcpDialer {
    nodes: Vec<NodeAddr>,
    timeout: Duration,
}

impl TcpDialer {
    /// `nodes` in the order of their [`NodeId`]s; `timeout` bounds resolving and connecting together (as `deadline::by` does).
    pub fn new(nodes: Vec<NodeAddr>, timeout: Duration) -> TcpDialer {
        TcpDialer { nodes, timeout }
    }
}

impl Dial for TcpDialer {
    fn dial(&self, node: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let addr = self.nodes[node.index()].clone();
        let timeout = self.timeout;
        async move {
            let connect = async {
                let stream = TcpStream::connect((addr.host.as_str(), addr.port)).await?;
                stream.set_nodelay(true)?;
                Ok(NodeStream::Tcp(stream))
            };
            by(Instant::now() + timeout, connect).await.unwrap_or_else(|| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{addr} did not accept a connection in {timeout:?}"),
                ))
            })
        }
        .boxed()
    }
}
