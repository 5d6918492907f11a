//! What is awaited of a connection that is passed on: a client's, or the link to the active proxy.

use std::io;

use bytes::BytesMut;
use tokio::io::{Interest, Ready};

use crate::server::Stream;

/// Whether the other end has ended it: by then all that it had of it is over there. What our own
/// kernel gives up may still be read.
pub(super) fn is_ended_there(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || crate::backend::is_from_node(error)
}

/// Completes at its end: whether the other end has ended it.
pub(super) async fn ended(link: &Stream) -> bool {
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
