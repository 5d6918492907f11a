//! Records that a node carries for other pairs' sake: *witnesses* for the next start. Nothing waits
//! for them, so those of many pairs are written together; written one by one, a start with n
//! primaries and n backups would cost 4n³ round trips.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::{Incarnation, PairId};
use crate::lease;

use super::marker::Record;
use super::{MarkError, NodeControl};

/// Records written together. The node answers all of them under one deadline.
const AT_ONCE: usize = 128;

/// A connection may have been closed since it was last used.
const TRIES: usize = 2;

/// What is to be written on one node.
#[derive(Debug, Default)]
pub(super) struct Witnesses(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// The newest of each pair, and on which memory.
    records: BTreeMap<PairId, (Incarnation, Record)>,
    /// Somebody writes them.
    busy: bool,
}

impl Witnesses {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the caller has to see to the writing.
    fn put(&self, incarnation: Incarnation, records: impl IntoIterator<Item = (PairId, Record)>) -> bool {
        let waiting = &mut *self.lock();
        for (pair, record) in records {
            // Tasks may come here in another order than they began, also for a memory that is gone
            // by now.
            if !waiting.records.get(&pair).is_some_and(|(_, old)| old.outlives(&record)) {
                waiting.records.insert(pair, (incarnation, record));
            }
        }
        !std::mem::replace(&mut waiting.busy, true)
    }

    /// The next to be written, all for one memory; `None`: there are no more, and the writer's task
    /// ends.
    fn take(&self) -> Option<(Incarnation, Vec<(PairId, Record)>)> {
        let waiting = &mut *self.lock();
        let Some(&(incarnation, _)) = waiting.records.values().next() else {
            waiting.busy = false;
            return None;
        };
        let on_it = waiting.records.iter().filter(|(_, (on, _))| *on == incarnation);
        let records: Vec<_> = on_it.take(AT_ONCE).map(|(&pair, &(_, record))| (pair, record)).collect();
        for (pair, _) in &records {
            waiting.records.remove(pair);
        }
        Some((incarnation, records))
    }
}

impl NodeControl {
    /// Writes records on the memory that is `incarnation`, and on no other, some time soon. One
    /// that cannot be written is left out: a node that fails is noticed by its probe.
    pub fn testify(self: &Arc<Self>, incarnation: Incarnation, records: impl IntoIterator<Item = (PairId, Record)>) {
        if !self.witnesses.put(incarnation, records) {
            return;
        }
        let control = self.clone();
        lease::spawn(async move {
            while let Some((incarnation, records)) = control.witnesses.take() {
                control.record_where_possible(incarnation, &records).await;
            }
        });
    }

    /// Writes the records of several pairs on the memory that is `incarnation`, and on no other, as
    /// far as the node takes them. Returns whether it has taken all.
    pub async fn record_where_possible(&self, incarnation: Incarnation, records: &[(PairId, Record)]) -> bool {
        let mut all = true;
        for lot in records.chunks(AT_ONCE) {
            let mut carried = Err(MarkError::MemoryGone);
            for _ in 0..TRIES {
                carried = self.record_all(incarnation, lot).await;
                if !matches!(carried, Err(MarkError::Node(_))) {
                    break;
                }
            }
            all &= carried.is_ok();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::marker::{Fact, Period};
    use crate::ids::{Epoch, Term};

    fn record(epoch: u64) -> Record {
        Record { epoch: Epoch(epoch), fact: Fact::Sync, term: Term(1), period: Period(1) }
    }

    fn pairs(taken: Option<(Incarnation, Vec<(PairId, Record)>)>) -> Option<(u64, Vec<(u32, u64)>)> {
        taken.map(|(on, records)| (on.0, records.iter().map(|(pair, record)| (pair.0, record.epoch.0)).collect()))
    }

    #[test]
    fn the_newest_of_each_pair_is_written_once_and_memories_are_kept_apart() {
        let witnesses = Witnesses::default();
        assert!(witnesses.put(Incarnation(1), [(PairId(0), record(5)), (PairId(1), record(1))]), "nobody writes yet");
        assert!(!witnesses.put(Incarnation(1), [(PairId(0), record(4)), (PairId(1), record(2))]), "somebody does");
        // The node came back with another memory; then comes one who does not know that yet.
        witnesses.put(Incarnation(2), [(PairId(1), record(3)), (PairId(2), record(1))]);
        witnesses.put(Incarnation(1), [(PairId(1), record(2))]);
        assert_eq!(pairs(witnesses.take()), Some((1, vec![(0, 5)])));
        witnesses.put(Incarnation(2), [(PairId(3), record(1))]);
        assert_eq!(pairs(witnesses.take()), Some((2, vec![(1, 3), (2, 1), (3, 1)])));
        assert_eq!(pairs(witnesses.take()), None);
        assert!(witnesses.put(Incarnation(2), [(PairId(0), record(6))]), "nobody writes any longer");
    }

    #[test]
    fn many_are_written_in_lots() {
        let witnesses = Witnesses::default();
        let all = AT_ONCE as u32 + 10;
        witnesses.put(Incarnation(1), (0..all).map(|pair| (PairId(pair), record(1))));
        let lots = std::iter::from_fn(|| witnesses.take()).map(|(_, records)| records.len());
        assert_eq!(lots.collect::<Vec<_>>(), [AT_ONCE, 10]);
    }
}
