//! Test: a connection in memory, used as a socket is: asked whether it is ready, and tried.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest, ReadBuf, Ready};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;

/// Where there was no room, it is looked for again.
const FULL: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct InMemory(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    stream: DuplexStream,
    /// What has come, and was not taken.
    input: BytesMut,
    ended: bool,
    full: bool,
    /// Cancelled where its end is not the other one's: our own kernel has given it up.
    given_up: CancellationToken,
}

impl Inner {
    /// Until there is something, or its end.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.input.is_empty() && !self.ended {
            self.ended = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input))? == 0;
        }
        Poll::Ready(if self.input.is_empty() { self.is_given_up() } else { Ok(()) })
    }

    fn is_given_up(&self) -> io::Result<()> {
        if self.given_up.is_cancelled() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl InMemory {
    pub(crate) fn new(stream: DuplexStream) -> InMemory {
        InMemory::of_line(stream, CancellationToken::new())
    }

    /// Of a network that can be cut for long: then it ends once `given_up` is cancelled.
    pub(crate) fn of_line(stream: DuplexStream, given_up: CancellationToken) -> InMemory {
        InMemory(Mutex::new(Inner { stream, input: BytesMut::new(), ended: false, full: false, given_up }))
    }

    /// To be read from as a stream, from now on or before [`ready`](InMemory::ready) was asked.
    pub(crate) fn into_inner(self) -> DuplexStream {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).stream
    }

    /// As a stream, where nobody asks whether it is [`ready`](InMemory::ready).
    pub(super) fn polled(&mut self) -> Pin<&mut DuplexStream> {
        Pin::new(&mut self.0.get_mut().unwrap_or_else(PoisonError::into_inner).stream)
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let before = buf.filled().len();
        ready!(Pin::new(&mut inner.stream).poll_read(cx, buf))?;
        Poll::Ready(if buf.filled().len() == before { inner.is_given_up() } else { Ok(()) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        let reads = async {
            match interest.is_readable() {
                true => poll_fn(|cx| self.lock().poll_input(cx)).await,
                false => pending().await,
            }
        };
        let writes = async {
            if !interest.is_writable() {
                return pending().await;
            }
            let full = std::mem::take(&mut self.lock().full);
            if full {
                tokio::time::sleep(FULL).await;
            }
        };
        tokio::select! {
            biased;
            read = reads => read.map(|()| Ready::READABLE),
            () = writes => Ok(Ready::WRITABLE),
        }
    }

    pub(super) fn try_read_buf(&self, into: &mut BytesMut) -> io::Result<usize> {
        let mut inner = self.lock();
        tried(inner.poll_input(&mut Context::from_waker(Waker::noop())))?;
        let input = std::mem::take(&mut inner.input);
        into.extend_from_slice(&input);
        Ok(input.len())
    }

    pub(super) fn try_write(&self, from: &[u8]) -> io::Result<usize> {
        let mut inner = self.lock();
        let polled = Pin::new(&mut inner.stream).poll_write(&mut Context::from_waker(Waker::noop()), from);
        inner.full = polled.is_pending();
        tried(polled)
    }

    pub(super) fn close_half(&self) -> io::Result<()> {
        let mut cx = Context::from_waker(Waker::noop());
        tried(Pin::new(&mut self.lock().stream).poll_shutdown(&mut cx))
    }
}

fn tried<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(done) => done,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
