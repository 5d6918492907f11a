//! Why clients are closed: counted by reason, and logged where the client's protocol is at fault,
//! or neither side asked for it.

use std::sync::atomic::AtomicU64;

use crate::protocol::foreign::Foreign;
use crate::protocol::request::Close;
use crate::proxy::Ended;
use crate::stats::{WorkerStats, add};

use super::{ClientIo, Shell};

/// Each worker writes one line in this time: refused clients try again, and there may be many.
const TOLD_EVERY_US: u64 = 10_000_000;

/// Closings that are in no line of the log yet.
#[derive(Default)]
pub(super) struct Untold {
    /// Of clients that cannot be served.
    refused: Count,
    /// Of those that were silent for `--idle-timeout`.
    silent: Count,
}

#[derive(Default)]
struct Count {
    count: u64,
    told_at_us: Option<u64>,
}

impl Count {
    /// One more; how many there are, if it is time for a line.
    fn add(&mut self, now_us: u64) -> Option<u64> {
        self.count += 1;
        if self.told_at_us.is_some_and(|at| now_us.saturating_sub(at) < TOLD_EVERY_US) {
            return None;
        }
        self.told_at_us = Some(now_us);
        Some(std::mem::take(&mut self.count))
    }
}

impl Shell {
    /// A client is about to be closed.
    pub(super) fn count_ended(&mut self, why: Ended, io: Option<&ClientIo>) {
        add(counter(&self.stats, why), 1);
        let now_us = self.now().us;
        match why {
            Ended::Refused(_) | Ended::NoMemory => {
                if let Some(closed) = self.untold.refused.add(now_us) {
                    let peer = self.peer(io);
                    tracing::warn!(peer, why = why.word(), closed, "a client is closed that cannot be served");
                }
            }
            Ended::Silent => {
                if let Some(closed) = self.untold.silent.add(now_us) {
                    let peer = self.peer(io);
                    tracing::info!(peer, why = why.word(), closed, "a client is closed that says nothing");
                }
            }
            // Clients too many are told of where they are refused, and the end of the process
            // once.
            Ended::Left | Ended::Quit | Ended::TooMany | Ended::Shutdown => {}
        }
    }

    pub(super) fn peer(&self, io: Option<&ClientIo>) -> String {
        match (io, &self.uring) {
            (Some(ClientIo::Stream { stream, .. }), _) => stream.peer(),
            (Some(ClientIo::Uring(io)), Some(uring)) => uring.peer(io.slot),
            _ => "nobody".to_owned(),
        }
    }
}

fn counter(stats: &WorkerStats, why: Ended) -> &AtomicU64 {
    match why {
        Ended::Left => &stats.closed_by_client,
        Ended::Quit => &stats.closed_quit,
        Ended::Silent => &stats.closed_idle,
        Ended::TooMany => &stats.closed_too_many,
        Ended::NoMemory => &stats.closed_no_memory,
        Ended::Shutdown => &stats.closed_shutdown,
        Ended::Refused(Close::Foreign(Foreign::Tls)) => &stats.closed_tls,
        Ended::Refused(Close::Foreign(Foreign::Http)) => &stats.closed_http,
        Ended::Refused(Close::Foreign(Foreign::Resp)) => &stats.closed_redis,
        Ended::Refused(Close::LongLine) => &stats.closed_long_line,
        Ended::Refused(Close::BadHeader) => &stats.closed_bad_header,
    }
}
