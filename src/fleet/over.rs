//! Why the connections of a standby's clients are closed: counted by reason, logged where neither
//! side asked for it, and said to the client where its protocol has words for it.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::stats::reasons;

/// How often it is logged.
const TOLD_EVERY: Duration = Duration::from_secs(10);

impl Over {
    /// Its name in `stats proxy`.
    fn name(self) -> &'static str {
        self.texts().0
    }

    fn words(self) -> &'static str {
        self.texts().1
    }

    /// What is sent to the client at the end, if it is still there and does not know the reason.
    pub(super) fn last_words(self) -> Option<&'static str> {
        match self {
            Over::Left | Over::ByActive | Over::Idle | Over::Foreign | Over::TooMany | Over::Shutdown => None,
            Over::Planned | Over::Replaced | Over::NoneActive | Over::Former | Over::Unanswered => Some(self.words()),
        }
    }
}

reasons! {
    /// See the module's words. Name, and words.
    pub(super) enum Over {
        /// The client has closed it, or its half of it and has all answers; or it broke.
        Left = "closed_by_client", "it closed the connection";
        /// By the active proxy, which knows why: it said `quit`, say.
        ByActive = "closed_by_active", "the active proxy closed it";
        /// It has sent nothing, and waited for nothing, for so long.
        Idle = "closed_idle", "silent for --idle-timeout";
        /// TLS, HTTP or Redis's protocol: it was told so in that.
        Foreign = "closed_foreign", "it does not speak memcached's protocol";
        /// `-n`. The client has got an error that says so.
        TooMany = "closed_too_many", "-n/--max-clients are connected";
        /// This proxy ends, or becomes the active one, which has its clients anew.
        Shutdown = "closed_shutdown", "this proxy ends";
        /// The active proxy hands over, and which answers this client is owed is unknown.
        Planned = "closed_hand_over", "the active proxy hands over: nobody knows whether the last requests were done";
        /// The active proxy is replaced or its connection broke, with that unanswered which cannot
        /// be answered by an error: quiet commands, the binary protocol, half an answer.
        Replaced = "closed_replaced", "the active proxy was replaced, or does not answer: nobody knows whether the last requests were done";
        /// No proxy is active, and what it asks cannot be answered by an error either.
        NoneActive = "closed_none_active", "no proxy is active: the last requests were not done";
        /// What it asked of the active proxy may be done later than what it asks now.
        Former = "closed_former", "an earlier connection to the active proxy did not end";
        /// It has closed its half, and its answers did not come.
        Unanswered = "closed_unanswered", "it sends no more, and the active proxy did not answer";
    }
}

/// How the clients of this proxy as a standby ended.
#[derive(Default)]
pub(super) struct Ends {
    counts: [AtomicU64; Over::ALL.len()],
    /// Those that are in no line of the log yet, and when the last line was written.
    untold: Mutex<(u64, Option<Instant>)>,
}

impl Ends {
    /// One more; `peer`: where it came from.
    pub(super) fn count(&self, why: Over, peer: impl FnOnce() -> String) {
        self.counts[why as usize].fetch_add(1, Ordering::Relaxed);
        if matches!(why, Over::Left | Over::ByActive | Over::Idle | Over::Shutdown) {
            return;
        }
        // Nothing waits while it is held.
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        untold.0 += 1;
        if untold.1.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            tracing::warn!(peer = peer(), why = why.words(), closed = untold.0, "a client of this standby is closed");
            *untold = (0, Some(Instant::now()));
        }
    }

    #[cfg(test)]
    pub(super) fn of(&self, why: Over) -> u64 {
        self.counts[why as usize].load(Ordering::Relaxed)
    }

    /// Names and counts.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Over::ALL.iter().map(|&why| (why.name(), self.counts[why as usize].load(Ordering::Relaxed)))
    }
}
