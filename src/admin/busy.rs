//! Visitors of an HTTP listener that are not answered, this proxy's or that of a standby: one too
//! many, too late, or wrong.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

/// How often refusals and closings are logged.
const TOLD_EVERY: Duration = Duration::from_secs(10);

pub(crate) const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 52\r\n\
    Connection: close\r\n\r\ntoo many connections to the admin listener; try anew";

/// Writes why the connection is refused, without waiting for the socket.
pub(crate) fn refuse(stream: TcpStream, why: &[u8]) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(why);
    }
}

/// When it was last logged that some are refused, and by what.
pub(crate) struct Refusals {
    by: &'static str,
    told: Option<Instant>,
}

impl Refusals {
    pub(crate) fn of(by: &'static str) -> Refusals {
        Refusals { by, told: None }
    }

    /// Logs that one is refused, because so many are open.
    pub(crate) fn tell(&mut self, open: usize) {
        if self.told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            tracing::warn!(open, "{} refuses connections: too many are open", self.by);
            self.told = Some(Instant::now());
        }
    }
}

/// Connections to an HTTP listener that were closed before they were answered in full, and are in
/// no line of the log yet; when the last line was written.
#[derive(Default, Debug)]
pub(crate) struct Closings(Mutex<(u64, Option<Instant>)>);

impl Closings {
    /// One more, from `peer`.
    pub(crate) fn tell(&self, peer: Option<SocketAddr>, why: &str) {
        // Nothing waits while it is held.
        let mut untold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        untold.0 += 1;
        if untold.1.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            let peer = peer.map_or_else(String::new, |peer| peer.to_string());
            tracing::warn!(peer, why, closed = untold.0, "a connection to the admin listener is closed");
            *untold = (0, Some(Instant::now()));
        }
    }
}
