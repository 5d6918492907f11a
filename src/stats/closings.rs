//! Why connections end at the listeners that are not clients': counted for the whole process, whose
//! pools share two of the three.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

reasons! {
    /// See the module's words. Listener, and reason.
    pub enum Closing {
        /// A visitor of the admin listener, also of a standby's, has its answer.
        AdminAnswered = "admin_http", "answered";
        /// It has asked nothing, and left.
        AdminLeft = "admin_http", "left";
        /// There was no room for it, or it made room for another one.
        AdminTooMany = "admin_http", "too_many";
        /// It asked too late, or did not take its answer.
        AdminLate = "admin_http", "late";
        /// It spoke no HTTP, or broke.
        AdminBroken = "admin_http", "broken";
        /// An operator has closed the connection to the admin socket, or broken it.
        SocketLeft = "admin_socket", "left";
        SocketQuit = "admin_socket", "quit";
        /// Nothing was said for too long.
        SocketIdle = "admin_socket", "idle";
        SocketLongLine = "admin_socket", "long_line";
        /// The answer was not taken.
        SocketLate = "admin_socket", "late";
        SocketTooMany = "admin_socket", "too_many";
        /// Another proxy was told why it is not welcome at the peer listener.
        PeerRefused = "peers", "refused";
        /// It said nothing in time, and was told so.
        PeerSilent = "peers", "silent";
        /// It broke off before it was answered.
        PeerBroken = "peers", "broken";
        /// Its control connection has ended. One for requests is handed on, as a client's.
        PeerLeft = "peers", "left";
    }
}

static COUNTS: [AtomicU64; Closing::ALL.len()] = [const { AtomicU64::new(0) }; Closing::ALL.len()];

impl Closing {
    /// One more.
    pub fn count(self) {
        COUNTS[self as usize].fetch_add(1, Relaxed);
    }
}

/// How many connections to one of these listeners ended for one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed {
    pub listener: &'static str,
    pub reason: &'static str,
    pub count: u64,
}

/// Since the process began.
pub fn closed() -> Vec<Closed> {
    let of = |why: &Closing| {
        let ((listener, reason), count) = (why.texts(), COUNTS[*why as usize].load(Relaxed));
        Closed { listener, reason, count }
    };
    Closing::ALL.iter().map(of).collect()
}

/// For tests: how often since something began, whatever other tests of the process do.
#[cfg(test)]
pub(crate) fn count_of(why: Closing) -> u64 {
    COUNTS[why as usize].load(Relaxed)
}
