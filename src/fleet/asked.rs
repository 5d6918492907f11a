//! What the keeper asks, and who is asked: the register, and the servers for their marks.

use std::time::{Duration, Instant};

use crate::backend::marker::FleetMark;
use crate::coord::{Holder, Record, Register, Seen, Survey, Swapped, Unread};

use super::survey::Surveyor;

/// What is to be asked of the register, or of servers, before anything else is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    Read,
    Swap {
        seen: Seen,
        new: Record,
    },
    Survey,
    /// Whether what the servers are marked with is this, or earlier.
    Marks(FleetMark),
    /// Whether a holder's process is known to be no more. One that is silent is to be ended.
    Holder {
        holder: Holder,
        silent: bool,
    },
}

pub(crate) enum Answer {
    Read(Result<Seen, Unread>),
    Swapped(Result<Swapped, Unread>),
    Surveyed(Survey),
    MarksAreOwn(bool),
    Holder { dead: bool, ended: Option<String> },
}

/// What the keeper asks: the register, and the servers.
pub(super) struct Asked {
    pub(super) register: Box<dyn Register>,
    pub(super) surveyor: Surveyor,
}

impl Asked {
    /// Asks, and blocks for `patience` at most.
    pub(super) fn answer(&mut self, ask: Ask, patience: Duration) -> Answer {
        let deadline = Instant::now() + patience;
        match ask {
            Ask::Read => Answer::Read(self.register.read(deadline)),
            Ask::Swap { seen, new } => Answer::Swapped(self.register.swap(&seen, &new, deadline)),
            Ask::Survey => Answer::Surveyed(self.surveyor.survey(deadline)),
            Ask::Marks(own) => Answer::MarksAreOwn(self.surveyor.marks_are_own(&own, deadline)),
            Ask::Holder { holder, silent } => {
                let ended = if silent { self.register.end(holder) } else { None };
                Answer::Holder { dead: self.register.is_dead(holder), ended }
            }
        }
    }
}
