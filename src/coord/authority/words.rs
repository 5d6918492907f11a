//! What an authority is told, and what it has done about it.

use crate::coord::record::{Holder, Record};
use crate::coord::register::{Seen, Swapped};
use crate::ids::Generation;
use crate::lease::Boot;

use super::Burden;

/// What the servers say of earlier turns.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Survey {
    pub answered: Answered,
    /// The highest generation that is marked on one.
    pub highest: Generation,
    /// The longest lease that is marked on one beside the highest generation; 0: none is.
    pub lease: u64,
    /// Some session is open.
    pub open: bool,
}

/// Which servers have answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answered {
    None,
    Some,
    All,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Comes every [`Times::heartbeat`](super::Times::heartbeat). Every thread has turned since
    /// then.
    Tick { turned: Boot },
    /// Somebody waits for a new active proxy.
    Wanted,
    /// The answer to [`Action::Read`]; nothing: it could not be read.
    Read(Option<Seen>),
    /// What came of [`Action::Swap`].
    Swapped(Swapped),
    /// The answer to [`Action::Survey`].
    Surveyed(Survey),
    /// The answer to [`Action::ReadMarks`]: no server that answers is marked by anybody else.
    MarksAreOwn(bool),
    /// The process of this holder is known to be no more.
    IsDead(Holder),
    /// This generation is marked on a server, with the address of its proxy.
    Marked(Generation, String),
    /// The record is to carry this from now on.
    Carry(Burden),
    /// The operator wants this proxy to end.
    Leave,
    /// Nothing is sent to servers any more, and the sessions there are closed.
    Stopped,
}

/// Each request is answered once, in the end: an answer that does not come is reported as unread,
/// unknown, or as one of no server. None is made while another one is unanswered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Read,
    Swap {
        seen: Seen,
        new: Record,
    },
    Survey,
    ReadMarks,
    /// This proxy is the active one: it starts over the servers. (Whether their last proxy stopped
    /// cleanly, their session markers say.)
    Begin {
        generation: Generation,
        predecessor: Burden,
    },
    /// It may act until then.
    Extend(Boot),
    /// It may not act any more: nothing is sent to servers, none of their answers is believed, and
    /// no client is answered.
    Suspend,
    /// The record is known to carry this.
    Committed(Burden),
    /// Somebody else acts, or may: this process ends.
    Fence(Why),
    /// The record is free: this process ends.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Why {
    /// The record is another proxy's.
    Replaced,
    /// The record is not there any more.
    Absent,
    /// It cannot be read by this release.
    Unreadable,
    /// A server is marked by another proxy.
    Marked,
}
