//! Why the register could not be asked, by what was asked of it: for the log, which gets one line
//! of a kind in ten seconds however the texts alternate, and for `stats proxy`.

use std::time::Duration;

use tokio::time::Instant;

use crate::coord::Unread;

/// A line of one kind is written no more often than that.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What it was asked for. (A disk or an etcd that is full answers reads all the same.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Of {
    Read,
    Swap,
    /// What this proxy needs beside the record to take it.
    Standing,
}

#[derive(Debug, Default)]
pub(super) struct Troubles {
    kinds: [Trouble; 3],
    /// The log has a line of one, and none that it is over.
    told: bool,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Since it last failed; `None`: it has worked since.
    why: Option<String>,
    told: Option<Instant>,
}

impl Troubles {
    /// It has failed with that, or has worked.
    pub(super) fn note(&mut self, of: Of, trouble: Option<&Unread>) {
        let kind = &mut self.kinds[of as usize];
        match trouble {
            Some(Unread(why)) => {
                kind.why = Some(why.clone());
                if kind.told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
                    tracing::warn!("{why}");
                    (kind.told, self.told) = (Some(Instant::now()), true);
                }
            }
            None => {
                let was = kind.why.take().is_some();
                if was && self.present().is_none() && std::mem::take(&mut self.told) {
                    tracing::info!("where the proxies agree answers again");
                }
            }
        }
    }

    /// It is not asked for that any more, and nobody knows whether it would work.
    pub(super) fn forget(&mut self, of: Of) {
        self.kinds[of as usize].why = None;
        self.told &= self.present().is_some();
    }

    pub(super) fn is_of(&self, of: Of) -> bool {
        self.kinds[of as usize].why.is_some()
    }

    pub(super) fn present(&self) -> Option<String> {
        self.kinds.iter().find_map(|kind| kind.why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::log::Log;

    fn failed(why: &str) -> Unread {
        Unread(why.to_owned())
    }

    /// A full disk, or three members of an etcd that fail in turn, wrote 160 lines a second.
    #[tokio::test(start_paused = true)]
    async fn the_log_gets_one_line_of_a_kind_in_ten_seconds() {
        let (log, mut troubles) = (Log::listen(), Troubles::default());
        for at in 0..1_000 {
            troubles.note(Of::Read, None);
            troubles.note(Of::Swap, Some(&failed(if at % 2 == 0 { "one is away" } else { "another is away" })));
        }
        assert_eq!((log.count(&["is away"]), log.count(&["answers again"])), (1, 0));
        assert_eq!(troubles.present().as_deref(), Some("another is away"), "what was last is shown");
        troubles.note(Of::Read, Some(&failed("nothing is read")));
        assert_eq!(log.count(&["nothing is read"]), 1, "of another kind");
        tokio::time::advance(TOLD_EVERY).await;
        troubles.note(Of::Swap, Some(&failed("another is away")));
        assert_eq!(log.count(&["is away"]), 2);
        troubles.note(Of::Read, None);
        assert_eq!(log.count(&["answers again"]), 0, "swaps fail as before");
        troubles.note(Of::Swap, None);
        assert_eq!((log.count(&["answers again"]), troubles.present()), (1, None));
        for _ in 0..100 {
            troubles.note(Of::Swap, Some(&failed("one is away")));
            troubles.note(Of::Swap, None);
        }
        assert_eq!((log.count(&["is away"]), log.count(&["answers again"])), (2, 1), "it comes and goes");
    }

    #[tokio::test(start_paused = true)]
    async fn of_what_is_not_asked_any_more_nobody_says_that_it_works() {
        let (log, mut troubles) = (Log::listen(), Troubles::default());
        troubles.note(Of::Swap, Some(&failed("it is full")));
        troubles.forget(Of::Swap);
        troubles.note(Of::Read, None);
        troubles.note(Of::Swap, None);
        assert_eq!((log.count(&["answers again"]), troubles.present()), (0, None));
    }
}
