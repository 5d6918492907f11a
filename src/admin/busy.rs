//! Visitors of an HTTP listener that are one too many: this proxy's, or that of a standby.

use std::io::Write as _;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

/// How often it is logged.
const TOLD_EVERY: Duration = Duration::from_secs(10);

pub(crate) const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 52\r\n\
    Connection: close\r\n\r\ntoo many connections to the admin listener; try anew";

/// Says why, without waiting.
pub(crate) fn refuse(stream: TcpStream, why: &[u8]) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(why);
    }
}

/// When it was last logged that some are refused.
#[derive(Default)]
pub(crate) struct Refusals(Option<Instant>);

impl Refusals {
    /// One is, while so many are open.
    pub(crate) fn tell(&mut self, open: usize) {
        if self.0.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            tracing::warn!(open, "the admin listener refuses connections: too many are open");
            self.0 = Some(Instant::now());
        }
    }
}
