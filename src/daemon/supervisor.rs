//! What a service manager (systemd) is told, where one has started the proxy and says where
//! (`NOTIFY_SOCKET`): that it is ready, that it lives, how it is, that it ends.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Somebody who listens.
#[derive(Debug)]
pub struct Supervisor {
    socket: UnixDatagram,
    to: SocketAddr,
    /// The process is ended if it says nothing for this long.
    pub watchdog: Option<Duration>,
}

impl Supervisor {
    /// Whoever has started this process, if that is one.
    ///
    /// # Errors
    ///
    /// There is one, and it cannot be told anything.
    pub fn of_this_process() -> io::Result<Option<Supervisor>> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
        let to = match name.as_encoded_bytes() {
            [b'@', abstracted @ ..] => SocketAddr::from_abstract_name(abstracted)?,
            _ => SocketAddr::from_pathname(&name)?,
        };
        // The watchdog's setting counts only if it names this process.
        let ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let microseconds = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        let watchdog = microseconds.filter(|us| ours && *us > 0).map(Duration::from_micros);
        Ok(Some(Supervisor { socket: UnixDatagram::unbound()?, to, watchdog }))
    }

    /// Lines of `NAME=value`. Whoever does not listen any more is no reason to end.
    pub fn tell(&self, lines: &str) {
        if let Err(error) = self.socket.send_to_addr(lines.as_bytes(), &self.to) {
            tracing::debug!(%error, "the service manager cannot be told anything");
        }
    }
}
