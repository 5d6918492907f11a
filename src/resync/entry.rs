//! One key on its way: a state machine that always has exactly one command outstanding, at one of
//! the two nodes.
//!
//! ```text
//!  Read ──item──▶ Add ──stored──▶ Verify ──same──▶ copied
//!   │              │ │               └──changed──▶ Undo ──▶ Read again
//!   │              │ └─an error──────▶ VerifyRefused ──changed──▶ Read again
//!   │              │                        └──same──▶ TargetLook
//!   │              └──NOT_STORED──▶ TargetLook ──nothing there──▶ Read again
//!   └──gone, expired, stale──▶ TargetLook ──nothing there──▶ skipped
//!                                  └──something──▶ SourceLook ──equal──▶ equal
//!                                                       └──differs──▶ Drop ──▶ Read again
//! ```
//! A target that was not purged is *compared*: TargetLook comes first, and Read only if nothing is
//! there. Keys found on it afterwards begin with Exists: only keys that the source does not have
//! are read. (They are dropped. If the target's items count, they are added to the source instead,
//! and no step writes to the target.)
//!
//! Several of them may be at work on one key at once, and clients' mutations between any two steps:
//! leader first, follower after. The head of [`crate::resync`] says why the copies end equal.

use std::time::Duration;

use bytes::Bytes;

use crate::backend::Batch;
use crate::protocol::item::{Answer, Asked, Code, Item, ONE_NODE_SLACK_SECS, Offsets};
use crate::protocol::key::{Key, needs_base64};
use crate::protocol::node::{self, Ask};
use crate::protocol::reply::Frame;
use crate::rules::{Rule, holds};

use super::spool::SlotId;

/// How often a key is begun again before it goes to the end of the re-copy queue, where its next
/// turn comes later.
const MAX_TRIES: u8 = 4;

/// Where an entry's command goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Source,
    Target,
}

/// Why the target's item is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// The leader has nothing to copy.
    Absent,
    /// The add was answered NOT_STORED.
    NotStored,
    /// The target refused the item.
    Refused,
    /// It was not purged, and may hold anything.
    First,
}

/// How an entry ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Copied and verified: bytes of the value.
    Copied(u64),
    /// The target holds the same already.
    Equal,
    /// Nothing to copy.
    Skipped,
    /// The target takes no such item, and holds nothing under the key.
    Refused,
    /// Too many tries, or too much memory at once: to the end of the re-copy queue.
    Requeue,
    /// The source has no cas ids (`-C`): to be begun anew and verified by content.
    NoCas,
    /// Only the target holds it: [`Entry::found`] is to be added to the source by the key's owner.
    Adopt,
}

#[derive(Clone, Debug)]
pub(super) enum Stage {
    Read,
    /// Of a key that was found on the target: whether the source has it.
    Exists,
    Add(Item),
    /// `item` is what was read; its value is kept only where it is what the copy is verified by.
    Verify {
        item: Item,
        bytes: u64,
        copy: u64,
    },
    VerifyRefused(Item),
    Undo {
        copy: u64,
    },
    TargetLook(Look),
    SourceLook(Item),
    Drop {
        cas: u64,
    },
    /// We won the right to recompute a stale item by merely looking at it: give it back, then go
    /// on.
    GiveBack {
        cas: u64,
        then: Box<Stage>,
    },
    /// The target is to lead, and what the source alone knows of is to go: whether it still stands
    /// there.
    WithdrawLook,
    Withdraw {
        cas: u64,
    },
    /// What we won has another cas id by now: a client has stored over it what is stale as well
    /// (`ms` with `I` and an older `C`), and memcached keeps in mind that somebody recomputes it.
    LookBack {
        then: Box<Stage>,
    },
    Done(End),
}

/// Why an answer ends more than its entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// The connection's framing is in doubt.
    Protocol(String),
    /// The target's cas ids are 0 (`-C`): an undo cannot be guarded.
    Blind,
}

impl From<String> for Trouble {
    fn from(what: String) -> Trouble {
        Trouble::Protocol(what)
    }
}

/// A node's answer to an entry's command.
struct Said<'a> {
    answer: &'a Answer,
    frame: &'a Frame<'a>,
    asked: Asked,
}

impl Said<'_> {
    fn item(&self) -> Item {
        self.answer.item(self.frame, self.asked)
    }

    /// Whether it shows what was read before.
    fn shows_still(&self, item: &Item) -> bool {
        match (self.answer.code, item.cas) {
            (Code::Value, 0) => !self.answer.stale && item.equals_later(&self.item(), ONE_NODE_SLACK_SECS),
            (Code::Value | Code::Done, cas) => {
                let seen = self.answer.seen(self.frame, self.asked);
                self.answer.cas == cas && item.seen.agrees(&seen, ONE_NODE_SLACK_SECS)
            }
            _ => false,
        }
    }

    fn unexpected(&self) -> Trouble {
        Trouble::Protocol(format!("unexpected {:?} to a copy's command", self.answer.code))
    }
}

fn after_add(item: Item, said: &Said<'_>) -> Result<Stage, Trouble> {
    Ok(match said.answer.code {
        Code::Done if said.answer.cas == 0 => return Err(Trouble::Blind),
        Code::Done => {
            Stage::Verify { bytes: item.value.len() as u64, copy: said.answer.cas, item: item.until_verified() }
        }
        // Not assumed to be newer: it may be another copier's that is undone in a moment, or a
        // leftover.
        Code::NotStored | Code::Exists => Stage::TargetLook(Look::NotStored),
        // A refused store deletes what the target held, be it newer than what we read: verify all
        // the same.
        Code::Refused => Stage::VerifyRefused(item.until_verified()),
        _ => return Err(said.unexpected()),
    })
}

/// One key being copied.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Bytes,
    pub(super) slot: SlotId,
    /// Bytes booked in the lane's memory budget.
    pub(super) booked: usize,
    /// It came from the re-copy queue, not from the enumeration.
    pub(super) recopy: bool,
    pub(super) stage: Stage,
    binary: bool,
    tries: u8,
    /// Where the source has no cas ids, a copy may be verified by its content.
    by_content: bool,
    /// Cas id of a stale item that we won and must give back.
    won: Option<u64>,
    /// An item that only the target holds is to be adopted: attempts that have failed so far.
    pub(super) adopts: Option<u8>,
    /// What is to be adopted.
    pub(super) found: Option<Box<Item>>,
    /// The item expires, and the node was not asked for its clock: it is read once more.
    pub(super) undated: bool,
    /// How often the node's clock went on to its next second while the item was read.
    turned: u8,
    /// How often an item that was won had changed before it was given back.
    lost_hold: u8,
    /// The source has it marked stale, or remembers that somebody recomputes it.
    pub(super) marked: bool,
}

impl Entry {
    pub(super) fn new(key: Bytes, binary: bool, slot: SlotId, booked: usize, recopy: bool) -> Entry {
        Entry {
            key,
            slot,
            booked,
            recopy,
            stage: Stage::Read,
            binary,
            tries: 0,
            by_content: false,
            won: None,
            adopts: None,
            found: None,
            undated: false,
            turned: 0,
            lost_hold: 0,
            marked: false,
        }
    }

    /// An entry of a source that cannot be enumerated, and may have no cas ids either.
    pub(super) fn by_content(self) -> Entry {
        Entry { by_content: true, ..self }
    }

    /// An entry of a target that was not purged.
    pub(super) fn compared(self) -> Entry {
        Entry { stage: Stage::TargetLook(Look::First), ..self }
    }

    /// An entry of a key that was found on the target; `whole`: what the source has of the pair was
    /// compared before.
    pub(super) fn swept(self, whole: bool, adopts: Option<u8>) -> Entry {
        let stage = if whole { Stage::Exists } else { Stage::TargetLook(Look::First) };
        Entry { stage, adopts, ..self }
    }

    /// An entry of a key that is marked on the source alone, which is to lead no more.
    pub(super) fn withdrawn(self) -> Entry {
        Entry { stage: Stage::WithdrawLook, ..self }
    }

    /// The same key from the beginning.
    pub(super) fn again(self) -> Entry {
        Entry { by_content: self.by_content, ..Entry::new(self.key, self.binary, self.slot, self.booked, self.recopy) }
    }

    /// Where the next command goes; `None` = done.
    pub(super) fn side(&self) -> Option<Side> {
        match self.stage {
            Stage::Read | Stage::Verify { .. } | Stage::VerifyRefused(_) => Some(Side::Source),
            Stage::Exists | Stage::SourceLook(_) => Some(Side::Source),
            Stage::GiveBack { .. } | Stage::LookBack { .. } => Some(Side::Source),
            Stage::WithdrawLook | Stage::Withdraw { .. } => Some(Side::Source),
            Stage::Add(_) | Stage::Undo { .. } | Stage::TargetLook(_) | Stage::Drop { .. } => Some(Side::Target),
            Stage::Done(_) => None,
        }
    }

    /// The copy on the target that was not verified yet, by the cas id it has there.
    pub(super) fn unverified(&self) -> Option<u64> {
        let mut stage = &self.stage;
        while let Stage::GiveBack { then, .. } | Stage::LookBack { then } = stage {
            stage = then;
        }
        match *stage {
            Stage::Verify { copy, .. } | Stage::Undo { copy } => Some(copy),
            _ => None,
        }
    }

    /// The right to recompute the item, won and not given back yet: its key, and the cas id where
    /// that is known.
    pub(super) fn held(&self) -> Option<((Bytes, bool), Option<u64>)> {
        let cas = match self.stage {
            Stage::GiveBack { cas, .. } => Some(cas),
            Stage::LookBack { .. } => None,
            _ => Some(self.won?),
        };
        Some(((self.key.clone(), self.binary), cas))
    }

    /// Whether what is read now is what a copy is made of.
    pub(super) fn is_to_be_dated(&self) -> bool {
        match self.stage {
            Stage::Read => true,
            Stage::TargetLook(_) => self.adopts.is_some(),
            _ => false,
        }
    }

    /// The node's clock went on to its next second while a batch was read: to which of the two
    /// seconds an item's remaining time belongs is unknown, and it is read once more. (If that goes
    /// on, the earlier one counts.)
    pub(super) fn date_again(&mut self) {
        if let Stage::Add(item) = &self.stage
            && item.seen.ttl > 0
            && self.turned < MAX_TRIES
        {
            self.turned += 1;
            self.stage = Stage::Read;
        }
    }

    /// Whether the dates of both nodes are needed for its next step.
    pub(super) fn needs_offsets(&self) -> bool {
        match &self.stage {
            Stage::Add(item) => item.seen.ttl > 0,
            _ => self.found.as_ref().is_some_and(|item| item.seen.ttl > 0),
        }
    }

    /// Appends the next command. `false` = there is none: the item expired while it waited, the
    /// stage was changed. `now`: the proxy's date.
    pub(super) fn command(&mut self, batch: &mut Batch, offsets: Offsets, now: Duration) -> bool {
        let key = Key::new(&self.key, self.binary);
        match &self.stage {
            Stage::Add(item) => {
                let Some(exptime) = offsets.to_target(&item.seen, now) else {
                    self.stage = Stage::TargetLook(Look::Absent);
                    return false;
                };
                batch.add(|out| node::ms_add(out, key, &item.value, (item.flags, exptime), true));
            }
            Stage::Read | Stage::TargetLook(_) | Stage::SourceLook(_) => {
                batch.add(|out| node::mg(out, key, Ask::KeyAndItem));
            }
            Stage::Verify { item, .. } | Stage::VerifyRefused(item) if item.cas == 0 => {
                batch.add(|out| node::mg(out, key, Ask::KeyAndItem));
            }
            Stage::Verify { .. }
            | Stage::VerifyRefused(_)
            | Stage::Exists
            | Stage::LookBack { .. }
            | Stage::WithdrawLook => {
                batch.add(|out| node::mg(out, key, Ask::KeyAndState));
            }
            &Stage::Undo { copy: cas } | &Stage::Drop { cas } | &Stage::Withdraw { cas } => {
                batch.add(|out| node::md(out, key, Some(cas)))
            }
            &Stage::GiveBack { cas, .. } => batch.add(|out| node::md_stale(out, key, cas)),
            Stage::Done(_) => return false,
        }
        true
    }

    /// Takes the answer to the command.
    pub(super) fn answer(&mut self, frame: &Frame<'_>, asked: Asked) -> Result<(), Trouble> {
        let answer = match self.stage {
            Stage::Add(_) => Answer::to_store(&self.key, frame)?,
            _ => Answer::to(&self.key, frame)?,
        };
        self.undated = answer.ttl > 0 && answer.code == Code::Value && !asked.timed && self.is_to_be_dated();
        if self.undated && !is_stale(&answer) {
            return Ok(());
        }
        // Without cas ids the giving back cannot be guarded, and would hit the fresh item that a
        // client has just stored.
        let is_won = answer.won && answer.cas != 0 && holds(Rule::WonIsGivenBack);
        if is_won && self.side() == Some(Side::Source) {
            self.won = Some(answer.cas);
        }
        let tells = !matches!(self.stage, Stage::GiveBack { .. });
        if tells && self.side() == Some(Side::Source) {
            self.marked = answer.stale;
        }
        let stage = std::mem::replace(&mut self.stage, Stage::Read);
        let mut next = self.next(stage, &Said { answer: &answer, frame, asked })?;
        // While the target's own items count, nothing is copied there, for a copy that is cut off
        // would pass for one of them; what differs is left to the comparing.
        if self.adopts.is_some() && matches!(next, Stage::Read | Stage::Drop { .. } | Stage::Done(End::Requeue)) {
            next = Stage::Done(End::Skipped);
        }
        self.stage = self.give_back_first(next);
        Ok(())
    }

    fn next(&mut self, stage: Stage, said: &Said<'_>) -> Result<Stage, Trouble> {
        let code = said.answer.code;
        Ok(match stage {
            Stage::Read => self.after_read(said)?,
            Stage::Exists => match code {
                // Compared before, or written by a client since, which the target got too.
                Code::Done if !said.answer.stale && said.answer.ttl != 0 => Stage::Done(End::Equal),
                Code::Done | Code::Missing => Stage::TargetLook(Look::Absent),
                _ => return Err(said.unexpected()),
            },
            Stage::Add(item) => after_add(item, said)?,
            Stage::Verify { item, bytes, copy } => {
                if !holds(Rule::Verify) || said.shows_still(&item) && !is_stale(said.answer) {
                    Stage::Done(End::Copied(bytes))
                } else {
                    Stage::Undo { copy }
                }
            }
            Stage::VerifyRefused(item) => match said.shows_still(&item) {
                true => Stage::TargetLook(Look::Refused),
                false => self.retry(),
            },
            // EX: somebody's newer write stands there; NF: it is gone. Both are fine, and are
            // looked at again.
            Stage::Undo { .. } | Stage::Drop { .. } => match code {
                Code::Done | Code::Missing | Code::Exists => self.retry(),
                _ => return Err(said.unexpected()),
            },
            Stage::TargetLook(look) => self.after_target_look(look, said)?,
            Stage::SourceLook(theirs) => self.after_source_look(theirs, said)?,
            // An end to it, should a client write without a pause.
            Stage::GiveBack { then, .. } if code == Code::Exists && self.lost_hold < MAX_TRIES => {
                self.lost_hold += 1;
                Stage::LookBack { then }
            }
            Stage::GiveBack { then, .. } => *then,
            // The right may be another client's by now, and is given twice then: two clients
            // recompute the item, where otherwise none might.
            Stage::LookBack { then } if said.answer.invalid && said.answer.cas != 0 => {
                self.won = Some(said.answer.cas);
                *then
            }
            Stage::LookBack { then } => *then,
            Stage::WithdrawLook if said.answer.stale && said.answer.cas != 0 => {
                Stage::Withdraw { cas: said.answer.cas }
            }
            Stage::WithdrawLook => {
                // Written anew, or nothing that could be deleted without hitting a later one.
                self.marked = false;
                Stage::Done(End::Skipped)
            }
            Stage::Withdraw { .. } => match code {
                Code::Done | Code::Missing => {
                    self.won = None;
                    Stage::Done(End::Skipped)
                }
                Code::Exists => self.retry(),
                _ => return Err(said.unexpected()),
            },
            Stage::Done(_) => return Err(said.unexpected()),
        })
    }

    fn after_read(&mut self, said: &Said<'_>) -> Result<Stage, Trouble> {
        Ok(match said.answer.code {
            Code::Missing => Stage::TargetLook(Look::Absent),
            Code::Value if said.answer.cas == 0 && !self.by_content => Stage::Done(End::NoCas),
            // Remaining 0 stored back would mean for ever; a stale item copied would be a fresh
            // one.
            Code::Value if is_stale(said.answer) || said.answer.ttl == 0 => Stage::TargetLook(Look::Absent),
            Code::Value => {
                let item = said.item();
                // The key is kept as binary where the leader keeps it so, and only if it can be
                // written so.
                self.binary = item.binary || (self.binary && needs_base64(&self.key));
                Stage::Add(item)
            }
            _ => return Err(said.unexpected()),
        })
    }

    fn after_target_look(&mut self, look: Look, said: &Said<'_>) -> Result<Stage, Trouble> {
        Ok(match (said.answer.code, look) {
            (Code::Missing, Look::Absent) => Stage::Done(End::Skipped),
            (Code::Missing, Look::Refused) => Stage::Done(End::Refused),
            (Code::Missing, Look::NotStored) => self.retry(),
            (Code::Missing, Look::First) => Stage::Read,
            (Code::Value, _) if said.answer.cas == 0 => return Err(Trouble::Blind),
            // The target is looked at first and the leader after it. The other way round, a write
            // that came between the two would make the leader's older value the judge, and the
            // drop would hit the newer one.
            (Code::Value, _) if said.answer.stale => Stage::Drop { cas: said.answer.cas },
            (Code::Value, _) => Stage::SourceLook(said.item()),
            _ => return Err(said.unexpected()),
        })
    }

    /// `theirs`: what the target holds.
    fn after_source_look(&mut self, theirs: Item, said: &Said<'_>) -> Result<Stage, Trouble> {
        let code = said.answer.code;
        let same = code == Code::Value && !said.answer.stale && theirs.equals(&said.item());
        Ok(match code {
            Code::Value | Code::Missing if same => Stage::Done(End::Equal),
            // Not what is about to expire: the leader's may have done so a tick earlier, and would
            // be back for a moment.
            Code::Missing if self.adopts.is_some() && !(0..=ONE_NODE_SLACK_SECS).contains(&theirs.seen.ttl) => {
                self.adopt(theirs)
            }
            Code::Value | Code::Missing => Stage::Drop { cas: theirs.cas },
            _ => return Err(said.unexpected()),
        })
    }

    /// A client's write of the key must not be undone by the adding, and its owner knows of all of
    /// them.
    fn adopt(&mut self, item: Item) -> Stage {
        self.binary = item.binary || self.binary;
        self.found = Some(Box::new(item));
        Stage::Done(End::Adopt)
    }

    /// A stale item that we won is given back before the entry goes on, unless an unverified copy
    /// must be undone first.
    fn give_back_first(&mut self, next: Stage) -> Stage {
        match (self.won, next) {
            (None, next) | (_, next @ (Stage::Undo { .. } | Stage::Withdraw { .. })) => next,
            (Some(cas), next) => {
                self.won = None;
                Stage::GiveBack { cas, then: Box::new(next) }
            }
        }
    }

    fn retry(&mut self) -> Stage {
        self.tries += 1;
        if self.tries < MAX_TRIES { Stage::Read } else { Stage::Done(End::Requeue) }
    }
}

/// Whether a client is to make the item anew, so that no copy of it is made.
fn is_stale(answer: &Answer) -> bool {
    answer.stale && holds(Rule::StaleIsNotCopied)
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
