//! Delayed flushes: kept until they are due, and written on the nodes, one write at a time, so that
//! the last one written is the last that was true.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::marker::Pending;
use crate::cluster::asker::Asker;

/// Kept at once, one for each second; more are refused. They stand in one small item on every node.
const MAX: usize = 64;

#[derive(Default)]
pub(in crate::cluster) struct Delayed {
    /// Those that are not due yet.
    pending: Pending,
    /// Clients that wait for theirs to be recorded.
    unrecorded: Vec<Asker>,
    /// Since when no node in use answered that it is written.
    unheard_since: Option<Instant>,
    /// They are being written on the nodes; and they have changed since.
    writing: bool,
    again: bool,
}

/// What became of a write.
pub(super) enum Written {
    /// Nodes stand still together: it is tried again after a pause, and nothing that is struck off
    /// counts as that before it is known to be.
    Unheard,
    /// The clients are answered. `again`: what was written is not the last that is true.
    Over { askers: Vec<Asker>, again: bool },
}

impl Delayed {
    pub(in crate::cluster) fn pending(&self) -> &Pending {
        &self.pending
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing
    }

    /// Returns when it is due, or nothing where there are too many.
    pub(super) fn add(&mut self, due: u64) -> Option<u64> {
        (self.pending.len() < MAX || self.pending.contains(due)).then(|| self.pending.add(due))
    }

    /// What a node knows of; returns those that are news.
    pub(in crate::cluster) fn merge(&mut self, found: &Pending) -> Vec<u64> {
        self.pending.merge(found)
    }

    /// What is known so far, as if it were not.
    pub(in crate::cluster) fn take_known(&mut self) -> Pending {
        std::mem::take(&mut self.pending)
    }

    pub(super) fn strike_off(&mut self, due: u64) {
        self.pending.run_up_to(due);
    }

    /// The client is answered when its own is recorded.
    pub(super) fn await_record(&mut self, asker: Asker) {
        self.unrecorded.push(asker);
    }

    /// What is to be written now, and who waits for that; nothing while a write is under way, which
    /// is then repeated.
    pub(super) fn begin_write(&mut self) -> Option<(Vec<Asker>, Pending)> {
        if std::mem::replace(&mut self.writing, true) {
            self.again = true;
            return None;
        }
        Some((std::mem::take(&mut self.unrecorded), self.pending.clone()))
    }

    /// The pause before another try is over.
    pub(super) fn retry(&mut self) {
        self.writing = false;
    }

    /// A write ended. `recorded`: on some node. `waited_for`: a node that did not answer is in use
    /// all the same.
    pub(super) fn written(
        &mut self,
        askers: Vec<Asker>,
        (recorded, waited_for): (bool, bool),
        now: Instant,
        patience: Duration,
    ) -> Written {
        let since = self.unheard_since.take();
        if !recorded && waited_for && since.is_none_or(|since| now - since < patience) {
            self.unheard_since = since.or(Some(now));
            self.unrecorded.extend(askers);
            return Written::Unheard;
        }
        self.writing = false;
        Written::Over { askers, again: std::mem::take(&mut self.again) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::WorkerId;
    use crate::proxy::{ClientId, ClientKey, Occupant, SlotNumber};

    const PATIENCE: Duration = Duration::from_secs(5);

    fn asker(slot: u64) -> Asker {
        Asker {
            worker: WorkerId(0),
            client: ClientKey { id: ClientId(0), occupant: Occupant(0) },
            slot: SlotNumber(slot),
        }
    }

    /// A client's `OK` comes of a write that has its flush in it.
    #[test]
    fn one_write_at_a_time_and_the_last_has_all() {
        let (mut delayed, now) = (Delayed::default(), Instant::now());
        delayed.add(100);
        delayed.await_record(asker(1));
        let (askers, first) = delayed.begin_write().expect("none is under way");
        delayed.add(200);
        delayed.await_record(asker(2));
        assert!(delayed.begin_write().is_none() && !first.contains(200));
        let Written::Over { askers, again: true } = delayed.written(askers, (true, false), now, PATIENCE) else {
            panic!("the second one is not written")
        };
        assert_eq!(askers.iter().map(|a| a.slot.0).collect::<Vec<_>>(), [1]);
        let (askers, second) = delayed.begin_write().expect("none is under way");
        assert!(second.contains(100) && second.contains(200) && askers.len() == 1);
        let over = delayed.written(askers, (true, false), now, PATIENCE);
        assert!(matches!(over, Written::Over { again: false, .. }) && !delayed.is_writing());
    }

    /// Nodes that stand still together are waited for, but no longer than a leader is.
    #[test]
    fn a_write_that_nobody_answers_is_tried_again_for_a_while() {
        let (mut delayed, begun) = (Delayed::default(), Instant::now());
        delayed.add(100);
        delayed.await_record(asker(1));
        let mut now = begun;
        loop {
            let (askers, _) = delayed.begin_write().expect("none is under way");
            assert_eq!(askers.len(), 1, "who waits is not forgotten");
            match delayed.written(askers, (false, true), now, PATIENCE) {
                Written::Unheard => assert!(delayed.is_writing() && now - begun < PATIENCE),
                Written::Over { .. } => break,
            }
            delayed.retry();
            now += Duration::from_secs(1);
        }
        assert_eq!(now - begun, PATIENCE);
        assert!(!delayed.is_writing());
    }

    #[test]
    fn more_than_a_few_are_refused_and_what_is_known_is_not() {
        let mut delayed = Delayed::default();
        (0..MAX as u64).for_each(|due| assert!(delayed.add(1_000 + due).is_some()));
        assert_eq!(delayed.add(1), None);
        assert_eq!(delayed.add(1_000), Some(1_000));
        delayed.strike_off(1_000);
        assert!(delayed.add(1).is_some_and(|due| due > 1_000), "never at a second that was run");
    }
}
