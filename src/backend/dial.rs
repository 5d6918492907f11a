//! How a node is reached. Behind a trait, so that tests and simulation put model nodes in the place
//! of TCP.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use super::address::Addresses;
use super::allowance::Allowance;
use super::deadline::by;
use crate::ids::{AddressNumber, NodeId};
use crate::rules::{Rule, holds};

/// Opens connections to nodes.
pub trait Dial: Send + Sync + 'static {
    /// Connects to a node. The error kinds matter: `ConnectionRefused` means that no process
    /// listens there, `TimedOut` that nobody answered, `NotFound` that its name never resolved.
    fn dial(&self, node: NodeId) -> BoxFuture<'static, io::Result<NodeStream>>;

    /// Connects to another address than the node's own, to see what is there.
    fn dial_at(&self, _node: NodeId, _at: SocketAddr) -> BoxFuture<'static, io::Result<NodeStream>> {
        async { Err(io::ErrorKind::Unsupported.into()) }.boxed()
    }

    /// Counts the node's addresses: a connection that was dialled under an earlier one leads to
    /// another server, or may.
    fn address(&self, _node: NodeId) -> AddressNumber {
        AddressNumber::default()
    }

    /// From now on a dial may take this long, and what a node's kernel has not taken after
    /// `undelivered` is dropped, of connections that are made from then on.
    fn allow(&self, _timeout: Duration, _undelivered: Duration) {}
}

/// A byte stream to a node.
#[derive(Debug)]
pub struct NodeStream {
    inner: Inner,
    /// The first error did not come from the node. Kept, because the kernel tells an error once: a
    /// write that ends with `ETIMEDOUT` is followed by a read that finds the end.
    unproven: bool,
}

#[derive(Debug)]
enum Inner {
    Tcp(TcpStream),
    Memory(DuplexStream),
    #[cfg(test)]
    Failing(io::ErrorKind),
}

/// Whether an error of a connection that stood shows that the node's kernel has thrown the
/// connection away, with all that it had not read: `ECONNRESET`, or `EPIPE` where the node had
/// closed its half before. All others are our own kernel's (nothing was acknowledged for too long,
/// no route), and the node may still hold what was sent.
pub(crate) fn is_from_node(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Whether a failed send means that our own kernel has given the connection up. One for which it
/// had no memory has ended nothing: the node's end is still to come.
pub(crate) fn gives_up(error: &io::Error) -> bool {
    const NO_MEMORY: [i32; 2] = [nix::libc::ENOMEM, nix::libc::ENOBUFS];
    !is_from_node(error) && !error.raw_os_error().is_some_and(|errno| NO_MEMORY.contains(&errno))
}

impl From<TcpStream> for NodeStream {
    /// A real connection.
    fn from(stream: TcpStream) -> NodeStream {
        NodeStream { inner: Inner::Tcp(stream), unproven: false }
    }
}

impl From<DuplexStream> for NodeStream {
    /// An in-memory one, to a scripted or simulated node.
    fn from(stream: DuplexStream) -> NodeStream {
        NodeStream { inner: Inner::Memory(stream), unproven: false }
    }
}

impl NodeStream {
    /// The kernel asks the node's every ten seconds whether it is there, and gives it up after
    /// three that find no answer.
    pub(super) fn keep_alive(&self) {
        const EVERY: Duration = Duration::from_secs(10);
        if let Inner::Tcp(stream) = &self.inner {
            let asked = TcpKeepalive::new().with_time(EVERY).with_interval(EVERY).with_retries(3);
            let _ = SockRef::from(stream).set_tcp_keepalive(&asked);
        }
    }

    /// Every read and write ends with this error.
    #[cfg(test)]
    pub(crate) fn failing(kind: io::ErrorKind) -> NodeStream {
        NodeStream { inner: Inner::Failing(kind), unproven: false }
    }

    /// The socket, of a real connection.
    ///
    /// # Errors
    ///
    /// The stream itself, of another one.
    pub(crate) fn into_tcp(self) -> Result<TcpStream, NodeStream> {
        match self.inner {
            Inner::Tcp(stream) => Ok(stream),
            inner => Err(NodeStream { inner, ..self }),
        }
    }

    /// Once it has ended: whether the node closed or reset it, so that nothing that was sent can
    /// take effect any more.
    pub(crate) fn was_ended_by_node(&self) -> bool {
        !self.unproven
    }

    fn written(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(error)) = &result {
            self.unproven |= gives_up(error);
        }
        result
    }
}

impl AsyncRead for NodeStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let result = match &mut me.inner {
            Inner::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Inner::Memory(s) => Pin::new(s).poll_read(cx, buf),
            #[cfg(test)]
            Inner::Failing(kind) => Poll::Ready(Err((*kind).into())),
        };
        if let Poll::Ready(Err(error)) = &result {
            me.unproven |= !is_from_node(error);
        }
        result
    }
}

impl AsyncWrite for NodeStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let result = match &mut me.inner {
            Inner::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Inner::Memory(s) => Pin::new(s).poll_write(cx, buf),
            #[cfg(test)]
            Inner::Failing(kind) => Poll::Ready(Err((*kind).into())),
        };
        me.written(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let result = match &mut me.inner {
            // One piece is the rule, and `send` does less for it than `writev`.
            Inner::Tcp(s) if bufs.len() == 1 => Pin::new(s).poll_write(cx, &bufs[0]),
            Inner::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Inner::Memory(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            #[cfg(test)]
            Inner::Failing(kind) => Poll::Ready(Err((*kind).into())),
        };
        me.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self.inner, Inner::Tcp(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Tcp(s) => Pin::new(s).poll_flush(cx),
            Inner::Memory(s) => Pin::new(s).poll_flush(cx),
            #[cfg(test)]
            Inner::Failing(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Inner::Memory(s) => Pin::new(s).poll_shutdown(cx),
            #[cfg(test)]
            Inner::Failing(_) => Poll::Ready(Ok(())),
        }
    }
}

/// Dials nodes over TCP, each at its present address.
#[derive(Debug)]
pub struct TcpDialer {
    addresses: Arc<Addresses>,
    timeout: Allowance,
    undelivered: Allowance,
}

impl TcpDialer {
    /// `timeout` bounds a dial (as `deadline::by` does). After `undelivered` our own kernel drops
    /// what a node's has not taken.
    pub fn new(addresses: Arc<Addresses>, timeout: Duration, undelivered: Duration) -> TcpDialer {
        TcpDialer { addresses, timeout: Allowance::new(timeout), undelivered: Allowance::new(undelivered) }
    }
}

/// The one place where sockets to nodes are made: of workers, probes, refills and all else. (Except
/// for those of one question, of a fleet's survey and a standby's look:
/// docs/internals/connections.md.)
///
/// What a socket holds outlives whoever wrote it, and memcached executes it whenever it comes. So
/// from its beginning on each drops what the node's kernel has not taken:
/// - when it is closed, also by the end of this process (a linger of 0). Seen without: after
///   `kill -9` of the writer 8.3 MB of writes to a stopped server were delivered all the same;
///   with it none that its kernel had not taken before.
/// - after `undelivered`, also while this process stands still, or the network does
///   (`TCP_USER_TIMEOUT`). Else the kernel goes on for a quarter of an hour, and longer where the
///   node's kernel says that it is full: for ever. How such a connection ends proves nothing (see
///   [`is_from_node`]).
async fn connect(at: SocketAddr, undelivered: Duration) -> io::Result<TcpStream> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    SockRef::from(&socket).set_tcp_user_timeout(Some(undelivered))?;
    socket.set_nodelay(true)?;
    socket.connect(at).await
}

impl Dial for TcpDialer {
    fn dial(&self, node: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let (addresses, timeout, undelivered) = (self.addresses.clone(), self.timeout.get(), self.undelivered.get());
        async move {
            let connected = at_present_address(&addresses, node, |address| async move {
                connect(address, undelivered).await.map(NodeStream::from)
            });
            by(Instant::now() + timeout, connected).await.unwrap_or_else(|| {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection was accepted in {timeout:?}")))
            })
        }
        .boxed()
    }

    fn dial_at(&self, _: NodeId, at: SocketAddr) -> BoxFuture<'static, io::Result<NodeStream>> {
        let (timeout, undelivered) = (self.timeout.get(), self.undelivered.get());
        async move {
            let stream = by(Instant::now() + timeout, connect(at, undelivered)).await;
            Ok(NodeStream::from(stream.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?))
        }
        .boxed()
    }

    fn address(&self, node: NodeId) -> AddressNumber {
        self.addresses.number(node)
    }

    fn allow(&self, timeout: Duration, undelivered: Duration) {
        self.timeout.set(timeout);
        self.undelivered.set(undelivered);
    }
}

/// Connects to where the node is when the connection stands. A worker is told of another address
/// after that was published, so a connection to an earlier one either is dropped here or stands
/// already when the worker is told.
pub(crate) async fn at_present_address<T, F>(
    addresses: &Addresses,
    node: NodeId,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    loop {
        let (address, number) = addresses.get(node)?;
        let connected = connect(address).await;
        if addresses.number(node) == number || !holds(Rule::OneAddressAConnection) {
            return connected;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use bytes::BytesMut;
    use tokio::time::timeout;

    use super::super::{Drain, DrainEnd};
    use super::*;
    use crate::protocol::out::OutQueue;
    use crate::protocol::reply::ReplyLimits;
    use crate::ring::NodeAddr;

    const NODE: NodeId = NodeId(0);
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A node that takes connections and reads nothing, and a connection to it, made by each of the
    /// ways there are.
    async fn unread(undelivered: Duration) -> Vec<(TcpListener, NodeStream)> {
        let mut made = Vec::new();
        for by_address in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
            let at = listener.local_addr().expect("its address");
            let host = NodeAddr { host: "127.0.0.1".to_owned(), port: at.port() };
            let dialer = TcpDialer::new(Arc::new(Addresses::new([host].iter())), PATIENCE, undelivered);
            let dial = if by_address { dialer.dial_at(NODE, at) } else { dialer.dial(NODE) };
            made.push((listener, dial.await.expect("connected")));
        }
        made
    }

    /// More than both kernels take.
    fn flood() -> OutQueue {
        let mut out = OutQueue::default();
        (0..400).for_each(|_| out.put(&[b'x'; 100_000]));
        out
    }

    /// Writes as much as is taken; how much that was.
    fn fill(stream: NodeStream) -> (tokio::net::TcpStream, usize) {
        let stream = stream.into_tcp().expect("a socket");
        let (mut taken, chunk) = (0, [b'x'; 65_536]);
        while let Ok(more) = stream.try_write(&chunk) {
            taken += more;
        }
        (stream, taken)
    }

    /// What the node's kernel has not taken when the proxy ends, or gives the connection up, is not
    /// sent any more.
    #[tokio::test]
    async fn what_a_nodes_kernel_had_not_taken_when_a_connection_closed_is_dropped() {
        for (listener, stream) in unread(PATIENCE).await {
            let (stream, written) = fill(stream);
            drop(stream);
            let (mut far, _): (TcpStream, _) = listener.accept().expect("a connection");
            far.set_read_timeout(Some(PATIENCE)).expect("a deadline");
            let mut came = Vec::new();
            let end = far.read_to_end(&mut came).expect_err("no end in peace");
            assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
            assert!(came.len() < written, "all of {written} bytes came");
        }
    }

    /// Also of one that is drained, and whatever this process does meanwhile; and it is no word of
    /// the node's.
    #[tokio::test]
    async fn what_a_nodes_kernel_does_not_take_is_given_up_and_proves_nothing() {
        for (_listener, stream) in unread(Duration::from_millis(100)).await {
            let nothing = (BytesMut::new(), ReplyLimits::default());
            let drain = Drain::new(NODE, AddressNumber(0), stream, flood(), nothing, false);
            assert_eq!(timeout(PATIENCE, drain).await.expect("given up"), DrainEnd::Abandoned);
        }
    }

    /// Of connections that are made later.
    #[tokio::test]
    async fn other_times_count_for_what_is_dialled_from_then_on() {
        let backlog = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        backlog.bind(&"127.0.0.1:0".parse::<SocketAddr>().expect("an address").into()).expect("bound");
        backlog.listen(0).expect("it listens");
        let listener = TcpListener::from(backlog);
        let port = listener.local_addr().expect("its address").port();
        let host = NodeAddr { host: "127.0.0.1".to_owned(), port };
        let dialer = TcpDialer::new(Arc::new(Addresses::new([host].iter())), PATIENCE, PATIENCE);
        let (new, undelivered) = (Duration::from_millis(50), Duration::from_secs(3));
        dialer.allow(new, undelivered);
        // There is room for one, and whoever comes then is not answered.
        let stream = dialer.dial(NODE).await.expect("connected").into_tcp().expect("a socket");
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().expect("set"), Some(undelivered));
        let mut told = dialer.dial(NODE).await;
        while told.is_ok() {
            told = dialer.dial(NODE).await;
        }
        assert_eq!(told.expect_err("no room").to_string(), format!("no connection was accepted in {new:?}"));
    }

    /// The node moves while it is dialled: the connection to where it was is dropped, and it is
    /// dialled where it is.
    #[tokio::test]
    async fn a_connection_leads_to_where_the_node_is_when_it_stands() {
        let node = NodeId(0);
        let host = NodeAddr { host: "cache1".to_owned(), port: 11211 };
        let addresses = Addresses::new([host].iter());
        let [one, other]: [SocketAddr; 2] = ["10.0.0.1:11211", "10.0.0.2:11211"].map(|at| at.parse().unwrap());
        addresses.set(node, one);
        let dialled = RefCell::new(Vec::new());
        let connect = |address| {
            dialled.borrow_mut().push(address);
            addresses.set(node, other);
            async move { Ok(address) }
        };
        assert_eq!(at_present_address(&addresses, node, connect).await.unwrap(), other);
        assert_eq!(*dialled.borrow(), [one, other]);
    }
}
