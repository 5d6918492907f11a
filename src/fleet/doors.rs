//! What a proxy takes connections on as long as its workers do not: the very sockets on which they
//! do when it is active.

use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::daemon::{Listeners, cannot_accept};
use crate::reload::Reload;

use super::admin::{self, Standby};
use super::keeper::{Known, Role};
use super::relay::{self, Shared};
use super::stream::Stream;

/// Where clients come.
pub(super) struct Doors {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
}

impl Doors {
    /// Handles of its own.
    ///
    /// # Errors
    ///
    /// What the system refused.
    pub(super) fn of(listeners: &Listeners) -> io::Result<Doors> {
        let tcp = listeners.tcp.iter().flat_map(|l| &l.socket).map(TcpListener::try_clone).collect::<Result<_, _>>()?;
        let unix = listeners.unix.iter().map(|l| l.socket.try_clone()).collect::<Result<_, _>>()?;
        Ok(Doors { tcp, unix })
    }

    /// Takes clients, whose requests are passed on, until `over`. To be called inside the runtime
    /// that sees to them.
    ///
    /// # Errors
    ///
    /// What the system refused.
    pub(super) fn open(&self, shared: &Arc<Shared>, over: &CancellationToken) -> io::Result<()> {
        for listener in &self.tcp {
            let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
            let (shared, over) = (shared.clone(), over.clone());
            tokio::spawn(async move {
                while let Some((stream, _)) = accept("a client", &over, |cx| listener.poll_accept(cx)).await {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(relay::serve(Stream::Tcp(stream), shared.clone(), None));
                }
            });
        }
        self.unix.iter().try_for_each(|listener| take_local(listener, (shared, None), over))
    }
}

/// With a `reload` those who come are operators.
fn take_local(
    listener: &UnixListener,
    (shared, reload): (&Arc<Shared>, Option<&Arc<Reload>>),
    over: &CancellationToken,
) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener.try_clone()?)?;
    let (shared, reload, over) = (shared.clone(), reload.cloned(), over.clone());
    tokio::spawn(async move {
        while let Some((stream, _)) = accept("a client", &over, |cx| listener.poll_accept(cx)).await {
            tokio::spawn(relay::serve(Stream::Unix(stream), shared.clone(), reload.clone()));
        }
    });
    Ok(())
}

/// The same for operators, whose commands are for the active proxy too, but for `reload`, and for
/// visitors of the HTTP listener.
///
/// # Errors
///
/// What the system refused.
pub(super) fn open_for_operators(
    listeners: &Listeners,
    shared: &Arc<Shared>,
    (standby, reload): (impl Fn() -> Standby + Clone + Send + 'static, &Arc<Reload>),
    over: &CancellationToken,
) -> io::Result<()> {
    if let Some(listener) = &listeners.operators.socket {
        take_local(listener, (shared, Some(reload)), over)?;
    }
    if let Some(listener) = &listeners.operators.http {
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        tokio::spawn(admin::serve(listener, standby, over.clone()));
    }
    Ok(())
}

/// The workers of a suspended proxy stand still: whoever comes meanwhile is taken here, waits as at
/// a standby, and is told why. (Whom a worker has already hears nothing before the lease goes on.)
pub(super) async fn while_suspended(doors: Doors, (mut known, shared): (watch::Receiver<Known>, Arc<Shared>)) {
    let is = |role: Role| move |known: &Known| known.role == role;
    while known.wait_for(is(Role::Suspended)).await.is_ok() {
        let over = CancellationToken::new();
        if let Err(error) = doors.open(&shared, &over) {
            tracing::warn!(%error, "new clients are not told that this proxy is suspended");
        }
        let goes_on = known.wait_for(is(Role::Active)).await.is_ok();
        over.cancel();
        if !goes_on {
            return;
        }
    }
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
