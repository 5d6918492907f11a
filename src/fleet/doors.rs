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

use crate::admin::http;
use crate::daemon::{Listeners, Listening, cannot_accept};
use crate::reload::Reload;
use crate::server::Stream;

use super::admin::{Seen, Standby};
use super::keeper::{Known, Role};
use super::relay::{self, Shared};

/// Where clients come.
pub(super) struct Doors {
    tcp: Vec<Listening<TcpListener>>,
    unix: Vec<Listening<UnixListener>>,
}

impl Doors {
    /// Makes handles of its own of these listening sockets.
    ///
    /// # Errors
    ///
    /// What the system refused.
    pub(super) fn of(listeners: &Listeners) -> io::Result<Doors> {
        let mut tcp = Vec::new();
        for listening in &listeners.tcp {
            for queue in &listening.socket {
                tcp.push(listening.by(|_| queue.try_clone())?);
            }
        }
        let unix = listeners.unix.iter().map(|listening| listening.by(UnixListener::try_clone));
        Ok(Doors { tcp, unix: unix.collect::<Result<_, _>>()? })
    }

    /// Takes clients, whose requests are passed on, until `over`. To be called inside the runtime
    /// that sees to them.
    ///
    /// # Errors
    ///
    /// What the system refused.
    pub(super) fn open(&self, shared: &Arc<Shared>, over: &CancellationToken) -> io::Result<()> {
        for listener in &self.tcp {
            let listener = tokio::net::TcpListener::from_std(listener.socket.try_clone()?)?;
            let (shared, over) = (shared.clone(), over.clone());
            tokio::spawn(async move {
                while let Some((stream, _)) = accept("a client", &over, |cx| listener.poll_accept(cx)).await {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(relay::serve(Stream::Tcp(stream), shared.clone(), None));
                }
            });
        }
        self.unix.iter().try_for_each(|listener| take_local(&listener.socket, (shared, None), over))
    }

    /// This proxy ends, and has never been active: clients that have connected are served, and no
    /// more can connect. To be called inside the same runtime.
    pub(super) fn end(&self, shared: &Arc<Shared>) {
        let tcp = self.tcp.iter().flat_map(|listening| listening.end()).map(Stream::Tcp);
        let unix = self.unix.iter().flat_map(|listening| listening.end()).map(Stream::Unix);
        for stream in tcp.chain(unix) {
            tokio::spawn(relay::serve(stream, shared.clone(), None));
        }
    }
}

/// Takes clients on a unix socket; with a `reload`, operators.
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
    (standby, reload): (impl Fn() -> Standby + Send + Sync + 'static, &Arc<Reload>),
    over: &CancellationToken,
) -> io::Result<()> {
    if let Some(listener) = &listeners.operators.socket {
        take_local(listener, (shared, Some(reload)), over)?;
    }
    if let Some(listener) = &listeners.operators.http {
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        tokio::spawn(http::serve(listener, Arc::new(Seen(standby)), over.clone()));
    }
    Ok(())
}

/// The workers of a suspended proxy stand still: clients that come meanwhile are taken here, wait
/// as at a standby, and get errors with the reason. (Those that a worker has already get no answer
/// before the lease goes on.)
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

/// Waits for the next connection; `None` once `over` is cancelled.
async fn accept<S>(
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

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;
    use crate::fleet::relay::Target;
    use crate::fleet::testing::{Active, LONG, shared};

    /// The system has told them that they are connected, so what they have sent is answered.
    #[tokio::test]
    async fn whoever_waits_to_be_let_in_when_a_standby_ends_is_served_and_nobody_else_comes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clients");
        for kept in [false, true] {
            let _ = std::fs::remove_file(&path);
            let (tcp, unix) = (TcpListener::bind("127.0.0.1:0").unwrap(), UnixListener::bind(&path).unwrap());
            let at = tcp.local_addr().unwrap();
            tcp.set_nonblocking(true).unwrap();
            unix.set_nonblocking(true).unwrap();
            let listeners = Listeners {
                tcp: vec![Listening { socket: vec![tcp], kept }],
                unix: Some(Listening { socket: unix, kept }),
                ..Listeners::default()
            };
            let active = Active::new(1).await;
            let (_shows, target) = watch::channel(active.target());
            let shared = Arc::new(Shared { max_clients: 2, ..shared(target, LONG, LONG) });
            let doors = Doors::of(&listeners).unwrap();
            let mut local = tokio::net::UnixStream::connect(&path).await.unwrap();
            let mut client = tokio::net::TcpStream::connect(at).await.unwrap();
            local.write_all(b"version\r\n").await.unwrap();
            client.write_all(b"version\r\n").await.unwrap();
            doors.end(&shared);
            shared.over.cancel();
            if kept {
                assert!(shared.clients.is_empty(), "they wait for the next start");
                assert!(std::net::TcpStream::connect(at).is_ok(), "and so does who comes now");
                continue;
            }
            assert_eq!(shared.clients.len(), 2, "they are waited for");
            for _ in 0..2 {
                let mut link = active.welcome("data").await;
                timeout(LONG, link.read_exact(&mut [0; 9])).await.expect("the request").unwrap();
                link.write_all(b"VERSION 1\r\n").await.unwrap();
                tokio::spawn(async move { link.read(&mut [0; 100]).await });
            }
            let mut said = String::new();
            timeout(LONG, client.read_to_string(&mut said)).await.expect("an end").unwrap();
            timeout(LONG, local.read_to_string(&mut said)).await.expect("an end").unwrap();
            assert_eq!(said, "VERSION 1\r\nVERSION 1\r\n");
            for refused in
                [std::net::TcpStream::connect(at).map(drop), std::os::unix::net::UnixStream::connect(&path).map(drop)]
            {
                assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused));
            }
        }
    }

    /// No proxy is active: whoever has asked is told so, and the end waits for none to come.
    #[tokio::test]
    async fn whoever_waits_to_be_let_in_at_the_end_is_told_if_nobody_serves_it() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = tcp.local_addr().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let tcp = vec![Listening { socket: vec![tcp], kept: false }];
        let doors = Doors::of(&Listeners { tcp, ..Listeners::default() }).unwrap();
        let nobody = Target { why: "etcd is away".to_owned(), ..Target::default() };
        let (_shows, target) = watch::channel(nobody);
        let shared = Arc::new(shared(target, LONG * 100, LONG));
        let mut client = tokio::net::TcpStream::connect(at).await.unwrap();
        client.write_all(b"get k\r\n").await.unwrap();
        doors.end(&shared);
        shared.over.cancel();
        let mut said = String::new();
        timeout(LONG, client.read_to_string(&mut said)).await.expect("an end").unwrap();
        assert_eq!(said, "SERVER_ERROR no proxy is active: etcd is away\r\n");
    }
}
