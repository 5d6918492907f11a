//! A node's socket, read and written as far as it goes now.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::lease;
use crate::protocol::out::{MAX_SLICES, OutQueue};

use super::NodeStream;
use super::blocks::{BLOCK_BYTES, Blocks};

/// Writes from the front of `out` and removes what was taken.
pub(super) fn poll_write(stream: &mut NodeStream, out: &mut OutQueue, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    lease::pass();
    let stream = Pin::new(stream);
    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
    let count = out.slices(&mut slices);
    lease::about_to_send(&slices[..count]);
    let n = match count {
        0 => return Poll::Ready(Ok(0)),
        count if count > 1 && stream.is_write_vectored() => ready!(stream.poll_write_vectored(cx, &slices[..count]))?,
        _ => ready!(stream.poll_write(cx, &slices[0]))?,
    };
    if n == 0 {
        return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
    }
    out.advance(n);
    Poll::Ready(Ok(n))
}

/// Reads into the spare room of `input`; 0 = the peer closed. `need`: how long the answer at its
/// front will be.
pub(super) fn poll_read(
    stream: &mut NodeStream,
    input: &mut BytesMut,
    blocks: &mut Blocks,
    need: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    blocks.make_room(input, need.saturating_sub(input.len()).max(BLOCK_BYTES / 4));
    // The future holds nothing but the two references: made anew at every poll it loses nothing.
    let read = ready!(std::pin::pin!(stream.read_buf(input)).poll(cx));
    lease::pass();
    Poll::Ready(read)
}
