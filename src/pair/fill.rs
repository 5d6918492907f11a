//! How a pair's follower is made equal, when that is next begun: by what the start-up table said,
//! by what is known to differ, or from nothing. Pure, and walked together with
//! [`Pair`](super::Pair).
//!
//! The sets of keys that workers write down stand beside it: what the follower *missed* since both
//! held the same, and while both nodes' items count what clients have *written*. This says when
//! such a set begins, and when it has ended to say anything ([`FillEffect`]).

use super::{Event, Kept, Loss, State};
use crate::ids::{Epoch, Place};

/// What the target of a resync is known to hold when it begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fill {
    /// Provably nothing: a fresh process that no write of these pairs can have reached.
    Empty,
    /// Possibly old items: all of them are deleted first.
    Purge,
    /// What the leader holds, except for the keys that it missed: those are deleted and copied.
    Missed,
    /// The same, and perhaps except for what was in flight when the proxy before died: what it
    /// missed is deleted, and every key is compared.
    CompareRest,
    /// Most probably what the leader holds: every key is compared, and what differs is dropped and
    /// copied.
    Compare,
    /// Items of its own, as the leader does: first what only the target holds is added to the
    /// leader, then [`Fill::Compare`].
    Adopt,
}

impl Fill {
    /// What begins first where the pairs of one node differ: the smaller, the sooner it is done.
    pub(crate) fn cost(self) -> u8 {
        match self {
            Fill::Missed => 0,
            Fill::Empty => 1,
            Fill::CompareRest => 2,
            Fill::Compare => 3,
            Fill::Adopt => 4,
            Fill::Purge => 5,
        }
    }

    /// The word for it in `resync status`.
    pub fn word(self) -> &'static str {
        match self {
            Fill::Empty | Fill::Purge => "full",
            Fill::Missed => "partial",
            Fill::Compare | Fill::CompareRest => "compare",
            Fill::Adopt => "adopt",
        }
    }

    /// Whether the target is compared, and not purged.
    pub fn compares(self) -> bool {
        matches!(self, Fill::CompareRest | Fill::Compare | Fill::Adopt)
    }

    /// Whether the list of what the target missed is deleted there first, and stays true: from then
    /// on nothing there is out of date.
    pub fn keeps_list(self) -> bool {
        matches!(self, Fill::Missed | Fill::CompareRest)
    }
}

/// An adoption that was cut off: who led it, by the record that says so.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CutOff {
    pub leader: Place,
    pub epoch: Epoch,
}

/// What a node that is first seen after the start says of the pair.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Word {
    /// It has no record, or is none of the pair's nodes.
    Nothing,
    /// It has no record under this ring, and was in use before.
    Used,
    /// An adoption under the same leader, as of this epoch.
    Adopting(Epoch),
    /// Something else, as of this epoch.
    Other(Epoch),
}

/// What it is told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FillEvent {
    /// By the start-up table. `cut_off`: where an adoption is taken up again.
    Decided { state: State, fill: Option<Fill>, cut_off: Option<CutOff> },
    /// The pair was told something, which may have changed its state.
    Edge { event: Event, before: State, after: State },
    /// Its route is published.
    Opened(State),
    /// A resync begins, by this way.
    JobBegins(Fill),
    /// The job that adopts has deleted on the follower what clients had written, or it was made
    /// there too.
    Adopting,
    /// The leader holds everything: copies come.
    Adopted,
    /// The job could not compare the two.
    CannotCompare,
    /// A node came back with another memory than the pair knew of. `first`: it was not seen before
    /// in this run, and what was said of it still stands. `listed`: the list still tells what is
    /// true on the other one, which leads with the rest.
    OtherMemory { place: Place, first: bool, listed: bool },
    /// What a node says that is first seen.
    FirstWord(Place, Word),
    /// The copies of a mirrored pair were compared to the end, and differ nowhere any more.
    Compared,
    /// `flush_all` is about to be sent.
    FlushSent,
    /// It took effect somewhere.
    Flushed(State),
    /// Another proxy that worked on the nodes is gone.
    ForeignEnded(State),
    /// The former active proxy of the fleet is gone.
    FormerGone(State),
    /// A job has ended, and copies may stand on the follower that were not verified.
    CopiesLeft(Fill),
    /// What the follower may hold beside the list is not known any more: commands may have landed
    /// there in whatever order, or it could not be purged.
    ListVoid,
    /// The operator wants it filled in full, or wants another one to lead.
    Operator,
}

/// What is to be done with the sets of keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FillEffect {
    /// The list of what the follower missed is not all any more.
    ListVoid,
    /// Both hold the same: the list begins anew, with the keys that are known to have one copy.
    ListBegins,
    /// What clients write is noted from now on: what they delete must not come back.
    NoteWrites,
    /// What clients wrote is not needed any more.
    ForgetWrites,
    /// The leader of an adoption is lost, and no job is known here to be at work: the follower has
    /// made every write.
    FollowerMayLead(Place),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Plan {
    /// How the follower is filled when that is first done. Forgotten when a node of the pair is
    /// lost, distrusted, or refilled in another way; an adoption only when a memory is lost, for
    /// what clients write is noted.
    first: Option<Fill>,
    /// The pair is Recovering, and an adoption that is cut off can be taken up again: its record
    /// says so, and so long as that is true no acknowledged write has missed the follower, and no
    /// copy stands there.
    adopting: bool,
    cut_off: Option<CutOff>,
    /// The pair opened as mirrored and has not changed since: what is missed now are the keys that
    /// its follower refused, which a gate that only closed for a `flush_all` (refused, perhaps)
    /// does not forget.
    was_mirrored: bool,
    /// The list tells what has missed the follower since a proxy died, and not what was in flight
    /// then: no client was told of that. So the follower may lead where the leader is gone, and is
    /// compared where it is there.
    after_crash: bool,
    /// The pair has been mirrored since the start after that crash, and its copies were not
    /// compared yet.
    uncompared: bool,
    notes_writes: bool,
    kept: Kept,
}

impl Plan {
    /// Whether its record says that an adoption can be taken up again.
    pub fn is_adopting(&self) -> bool {
        self.adopting
    }

    /// Whether a mirrored pair's copies may differ by what was in flight when a proxy died, and are
    /// to be compared.
    pub fn is_uncompared(&self) -> bool {
        self.uncompared
    }

    /// Whether the node at `place` leads copies that were not compared since a crash. What clients
    /// have read of it the other one may lack, so one that is only late is waited for.
    pub fn awaits(&self, place: Place) -> bool {
        self.uncompared && place == Place::Primary
    }

    /// Whether the follower holds all that was acknowledged by the leader at `place`, which is
    /// awaited, and all that it lacks is what was in flight when a proxy died. `whole`: no key is
    /// missing in the list.
    pub fn may_follow(&self, place: Place, whole: bool) -> bool {
        self.after_crash && self.knows_missed(place.other(), whole)
    }

    /// The adoption that was taken up again.
    #[cfg(test)]
    pub(super) fn cut_off(&self) -> Option<CutOff> {
        self.cut_off
    }

    #[cfg(test)]
    pub(super) fn may_adopt(&self) -> bool {
        self.adopting || self.first == Some(Fill::Adopt)
    }

    #[cfg(test)]
    pub(super) fn forget_cut_off(&mut self) {
        self.cut_off = None;
    }

    /// Whether what the node at `place` holds is right except for the missed keys, and for what no
    /// client was told of. `whole`: no key is missing in that list.
    pub fn knows_missed(&self, place: Place, whole: bool) -> bool {
        whole && self.kept.by(place)
    }

    /// Whether the node at `place`, purged of what it missed, may lead the pair, of which no full
    /// copy is left.
    pub fn may_lead(&self, state: State, place: Place, whole: bool) -> bool {
        self.knows_missed(place, whole) && self.kept.may_lead(state, place)
    }

    /// How the copy at `place` is made equal. `empty`: the node is proved to hold nothing.
    pub fn fill(&self, state: State, place: Place, empty: bool, whole: bool) -> Fill {
        // One that is Recovering already is written to: a purge would not end.
        let written_to = matches!(state, State::Recovering { .. });
        match self.first {
            // Emptiness proved once does not last: from the first write on, the next resync purges.
            // A job that ends before that leaves it.
            _ if empty => Fill::Empty,
            _ if self.knows_missed(place, whole) && self.after_crash => Fill::CompareRest,
            _ if self.knows_missed(place, whole) => Fill::Missed,
            Some(first) => first,
            None if written_to => Fill::Compare,
            None => Fill::Purge,
        }
    }

    /// A job ended at which nothing was copied to the follower, which has made every write: the
    /// pair is where it was when the job began, and the next one goes on.
    pub fn goes_on_adopting(&self, state: State, leader: Place) -> bool {
        self.adopting && self.first == Some(Fill::Adopt) && state == State::Recovering { leader }
    }

    /// Whether the node at `place` leads an adoption that was taken up again, by the follower's
    /// word. The proxy before may have died before it wrote that on the leader too.
    pub fn leads_adoption(&self, place: Place) -> bool {
        self.cut_off.is_some_and(|cut_off| cut_off.leader == place)
    }

    /// Whether the node at `place` is one whose items are to be adopted.
    pub fn follows_in_adoption(&self, state: State, place: Place) -> bool {
        self.first == Some(Fill::Adopt) && state == State::Degraded { leader: place.other() }
    }

    /// Takes an event; returns what is to be done, in order.
    pub fn apply(&mut self, event: FillEvent) -> Vec<FillEffect> {
        match event {
            FillEvent::Decided { state, fill, cut_off } => {
                (self.first, self.cut_off) = (fill, cut_off);
                self.adopting = matches!(state, State::Recovering { .. });
                vec![]
            }
            FillEvent::Edge { event, before, after } => self.edge(event, before, after),
            FillEvent::Opened(state) => self.opened(state),
            FillEvent::JobBegins(fill) => self.job_begins(fill),
            FillEvent::Adopting => {
                self.adopting = true;
                vec![]
            }
            FillEvent::Adopted => {
                self.adopting = false;
                self.first = Some(Fill::Compare);
                vec![]
            }
            FillEvent::CannotCompare => {
                self.first = None;
                // It would be compared again for its sake.
                void_list_if(self.after_crash)
            }
            // Of keys that the list names only, where nothing else was copied. (Nor of a pair that
            // the job has handed back: its list has begun anew.)
            FillEvent::CopiesLeft(fill) => void_list_if(fill == Fill::CompareRest && self.after_crash),
            FillEvent::OtherMemory { place, first, listed } => self.other_memory(place, first, listed),
            FillEvent::FirstWord(place, word) => self.first_word(place, word),
            FillEvent::Compared => {
                if std::mem::take(&mut self.uncompared) {
                    self.after_crash = false;
                }
                vec![]
            }
            FillEvent::FlushSent => {
                // What survives on the follower (memcached from 1.6.25 on), or is on one that is
                // not reached, must not be adopted.
                self.adopting = false;
                vec![]
            }
            FillEvent::Flushed(state) => self.flushed(state),
            // What it has written late was in flight when it was replaced, and no client was told.
            FillEvent::FormerGone(_) if self.after_crash => vec![],
            FillEvent::ForeignEnded(state) | FillEvent::FormerGone(state) => {
                self.first = (state == State::Mirrored).then_some(Fill::Compare);
                vec![FillEffect::ListVoid]
            }
            FillEvent::ListVoid => vec![FillEffect::ListVoid],
            FillEvent::Operator => {
                self.first = None;
                vec![FillEffect::ListVoid]
            }
        }
    }

    fn job_begins(&mut self, fill: Fill) -> Vec<FillEffect> {
        if self.first != Some(fill) && fill != Fill::CompareRest {
            self.first = None;
        }
        // From its first step on the node lacks more than it missed.
        void_list_if(!fill.keeps_list())
    }

    fn other_memory(&mut self, place: Place, first: bool, listed: bool) -> Vec<FillEffect> {
        self.kept.lost_by(place);
        if !first && self.first == Some(Fill::Adopt) {
            // What was to be adopted is gone, or who was to adopt it.
            self.first = None;
        }
        void_list_if(!listed)
    }

    fn first_word(&mut self, place: Place, word: Word) -> Vec<FillEffect> {
        // Where nothing is known of the pair, what no proxy has used counts.
        let fits = self.cut_off.map_or(word == Word::Nothing, |cut_off| cut_off.fits(place, word));
        if self.first == Some(Fill::Adopt) && !fits {
            self.first = None;
        }
        vec![]
    }

    fn flushed(&mut self, state: State) -> Vec<FillEffect> {
        if state == State::Mirrored {
            // A node that is in use has what the flush left, which is the same on both.
            return vec![];
        }
        // What only the follower holds after it has survived it, and must not be added to the
        // leader.
        self.first = self.first.map(|_| Fill::Compare);
        // A node that is away misses this for all its keys.
        vec![FillEffect::ListVoid]
    }

    fn edge(&mut self, event: Event, before: State, after: State) -> Vec<FillEffect> {
        let mut effects = Vec::new();
        let adopted = self.adopting;
        let distrusted = matches!(event, Event::Distrust(_));
        let crashed = matches!((event, self.first), (Event::Start(..), Some(Fill::Compare)));
        if before != after {
            (self.was_mirrored, self.uncompared) = (false, false);
            // From the next open gate on a write may miss the follower, or a copy may stand there.
            self.adopting &= matches!(after, State::Recovering { .. });
            if !before.keeps_difference(after) || distrusted {
                effects.push(FillEffect::ListVoid);
            }
            if after == State::Mirrored {
                self.first = None;
            }
        }
        if crashed {
            // Both are there with what was acknowledged, and no route is open yet.
            self.kept.mirrored();
            (self.after_crash, self.uncompared) = (true, after == State::Mirrored);
            effects.push(FillEffect::ListBegins);
        }
        if let Event::Lost(place, loss, _) = event {
            self.forget(before, after, place, loss);
        }
        if let (State::Recovering { leader }, State::Dark { .. }, true) = (before, after, adopted) {
            effects.push(FillEffect::FollowerMayLead(leader.other()));
        }
        effects
    }

    /// A node was lost: what was thought of how the follower is to be filled may not hold any more.
    fn forget(&mut self, before: State, after: State, place: Place, loss: Loss) {
        let led = match before {
            State::Dark { in_sync, .. } => in_sync,
            state => state.leader(),
        };
        self.first = match self.first {
            // With the leader's memory its word is gone. What the follower holds is looked at when
            // it is back.
            Some(Fill::Adopt) if loss == Loss::MemoryGone && led != Some(place.other()) => None,
            Some(Fill::Adopt) => Some(Fill::Adopt),
            fill if before == after => fill,
            _ => None,
        };
    }

    fn opened(&mut self, state: State) -> Vec<FillEffect> {
        let mut effects = Vec::new();
        let notes = self.first == Some(Fill::Adopt);
        if notes != self.notes_writes {
            self.notes_writes = notes;
            effects.push(if notes { FillEffect::NoteWrites } else { FillEffect::ForgetWrites });
        }
        if state == State::Mirrored && !self.was_mirrored {
            self.kept.mirrored();
            (self.was_mirrored, self.after_crash) = (true, self.uncompared);
            effects.push(FillEffect::ListBegins);
        }
        effects
    }
}

fn void_list_if(it_is: bool) -> Vec<FillEffect> {
    if it_is { vec![FillEffect::ListVoid] } else { vec![] }
}

impl CutOff {
    /// Whether what a node says leaves it as it is.
    fn fits(self, place: Place, word: Word) -> bool {
        let leads = self.leader == place;
        match word {
            // Later, it led alone since, or has everything already: what the other one holds is out
            // of date.
            Word::Adopting(epoch) | Word::Other(epoch) if leads => epoch <= self.epoch,
            Word::Adopting(epoch) => epoch >= self.epoch,
            Word::Other(_) => false,
            Word::Nothing | Word::Used => leads,
        }
    }
}

#[cfg(test)]
mod tests;
