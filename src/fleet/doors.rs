//! What a standby takes connections on: the very sockets on which it takes them as the active
//! proxy.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_util::sync::CancellationToken;

use crate::daemon::{Listeners, cannot_accept};

use super::admin::{self, Standby};
use super::relay::{self, Shared, Stream};

/// Takes clients, whose requests are passed on, and visitors of the HTTP listener until `over`.
/// To be called inside the runtime that sees to them.
///
/// # Errors
///
/// What the system refused.
pub(super) fn open(
    listeners: &Listeners,
    shared: &Arc<Shared>,
    standby: impl Fn() -> Standby + Clone + Send + 'static,
    over: &CancellationToken,
) -> io::Result<()> {
    for listener in listeners.tcp.iter().flatten() {
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        let (shared, over) = (shared.clone(), over.clone());
        tokio::spawn(async move {
            while let Some((stream, _)) = accept("a client", &over, |cx| listener.poll_accept(cx)).await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(relay::serve(Stream::Tcp(stream), shared.clone()));
            }
        });
    }
    // (Operators' commands are for the active one too.)
    for listener in [&listeners.unix, &listeners.admin_socket].into_iter().flatten() {
        let listener = tokio::net::UnixListener::from_std(listener.try_clone()?)?;
        let (shared, over) = (shared.clone(), over.clone());
        tokio::spawn(async move {
            while let Some((stream, _)) = accept("a client", &over, |cx| listener.poll_accept(cx)).await {
                tokio::spawn(relay::serve(Stream::Unix(stream), shared.clone()));
            }
        });
    }
    if let Some(listener) = &listeners.admin {
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        tokio::spawn(admin::serve(listener, standby, over.clone()));
    }
    Ok(())
}

/// The next that comes; nobody, once that is over.
pub(super) async fn accept<S>(
    what: &str,
    over: &CancellationToken,
    poll: impl Fn(&mut Context<'_>) -> Poll<io::Result<S>>,
) -> Option<S> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = over.cancelled() => return None,
            accepted = poll_fn(&poll) => accepted,
        };
        match accepted {
            Ok(stream) => return Some(stream),
            Err(error) => cannot_accept(what, &error).await,
        }
    }
}
