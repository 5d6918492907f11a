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
    /// Whether a holder's process is known to be no more. One that is silent is to be ended; of one
    /// that was spared it is asked again whether it has to be.
    Holder {
        holder: Holder,
        silent: bool,
        spared: bool,
    },
}

pub(crate) enum Answer {
    Read(Result<Seen, Unread>),
    Swapped(Result<Swapped, Unread>),
    Surveyed(Survey),
    MarksAreOwn(bool),
    Holder(Found),
}

/// What was found about the record's holder, and this proxy.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) dead: bool,
    /// What was done to end its process.
    pub(crate) ended: Option<String>,
    /// Why this proxy could not take its place.
    pub(crate) unfit: Option<Unread>,
    /// Why its process is not ended: this proxy could not write that it has taken its place.
    pub(crate) spared: Option<Unread>,
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
            Ask::Holder { holder, silent, spared } => {
                let unfit = self.register.is_fit(holder).err();
                let tries = (silent || spared) && unfit.is_none();
                let full = if tries { self.register.can_swap(deadline).err() } else { None };
                let ends = tries && !spared && full.is_none();
                let (ended, spared) = (if ends { self.register.end(holder) } else { None }, full);
                Answer::Holder(Found { dead: self.register.is_dead(holder), ended, unfit, spared })
            }
        }
    }
}
