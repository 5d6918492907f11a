//! Fences: a key whose copies differ has its later writes wait until its repair is over.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::protocol::item::{Asked, Item};
use crate::proxy::handles::OpId;
use crate::proxy::op::{Op, Stage};
use crate::proxy::table::OpTable;
use crate::stretch::Stretch;

/// The time between two tries of a repair that waits for a marker or a connection.
const REPAIR_RETRY_US: u64 = 10_000;

/// One that was not seen to wait for this long waits no more: ticks come every 25 ms at most.
pub(super) const REPAIR_SEEN_US: u64 = 5 * REPAIR_RETRY_US;

/// How long the count of writes in flight by key is kept up after it was last asked for.
const BEGUN_KEPT_US: u64 = 1_000_000;

/// See the module's words.
#[derive(Default, Debug)]
pub(super) struct Fences {
    /// Sorted, because it is iterated: what a worker does must depend on its input alone.
    by_key: BTreeMap<Bytes, Fence>,
    /// Fences whose repair begins again, and when, in that order; what became of one since is in
    /// the fence.
    retries: VecDeque<(u64, Bytes)>,
    begun: Option<Begun>,
}

/// Writes of one key that wait for its repair.
#[derive(Debug)]
pub(super) struct Fence {
    /// The operation that repairs.
    pub(super) owner: OpId,
    /// Writes of the key begun before; the repair starts when they are through.
    waiting_for: u32,
    /// Operations that found a difference too and are answered with the owner.
    pub(super) attached: Vec<OpId>,
    pub(super) queue: VecDeque<OpId>,
    /// What the leader holds, once read. `None` inside: nothing.
    pub(super) item: Option<Option<Item>>,
    /// What the follower holds, once read: only where it is not known yet that it differs.
    pub(super) copy: Option<Option<Item>>,
    /// That is stale, and equals nothing.
    pub(super) copy_stale: bool,
    pub(super) marker_ok: bool,
    /// The follower's copy was dropped.
    pub(super) written: bool,
    /// The follower was sent a delete, and an `add` of what the leader held, which a marker has
    /// proved: it has what the leader answered, whatever becomes of the leader. Also while the two
    /// are looked at once more.
    pub(super) copied: bool,
    /// When the two were read, and the date that the leader showed just before its item was.
    pub(super) asked: Asked,
    /// It ends with a difference: the follower refused the item, or the leader's changed again and
    /// again.
    pub(super) failed: bool,
    /// Set while the repair waits: for the leader's marker to be written again, or for a
    /// connection.
    retry_at_us: Option<u64>,
    /// Since when it has not come further.
    stuck_us: Option<u64>,
}

/// How many writes are in flight by key, except for those that wait for a repair. Counted from the
/// first repair on, and for a while after the last: each has to know of its key's, and a walk over
/// all operations for each of many repairs grows with their square.
#[derive(Debug)]
struct Begun {
    writes: HashMap<Bytes, u32>,
    asked_at_us: u64,
}

impl Fences {
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Fence> {
        self.by_key.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &[u8]) -> Option<&mut Fence> {
        self.by_key.get_mut(key)
    }

    /// Its repair is over.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Fence> {
        self.by_key.remove(key)
    }

    /// A repair of the key, by this operation. Returns whether it may begin; otherwise writes of
    /// the key are in flight. `ops`: all operations.
    pub(super) fn put_up(&mut self, key: &Bytes, owner: OpId, ops: &OpTable) -> bool {
        let waiting_for = self.begun.as_ref().and_then(|begun| begun.writes.get(key)).copied().unwrap_or(0);
        if cfg!(test) {
            assert_eq!(waiting_for, Begun::of(ops).writes.get(key).copied().unwrap_or(0), "writes in flight");
        }
        self.by_key.insert(key.clone(), Fence::new(owner, waiting_for));
        waiting_for == 0
    }

    /// From now on writes in flight are counted by their keys. `ops`: all operations.
    pub(super) fn begin_counting(&mut self, ops: &OpTable, now_us: u64) {
        self.begun.get_or_insert_with(|| Begun::of(ops)).asked_at_us = now_us;
    }

    /// Whether they are.
    #[inline(always)]
    pub(super) fn is_counting(&self) -> bool {
        self.begun.is_some()
    }

    /// A write gets in flight.
    pub(super) fn count(&mut self, op: &Op) {
        if let Some(begun) = &mut self.begun {
            begun.add(op);
        }
    }

    /// A write is in flight no more, or waits for a repair.
    pub(super) fn discount(&mut self, op: &Op) {
        if let Some(begun) = &mut self.begun
            && let Some(count) = begun.writes.get_mut(op.key())
        {
            *count -= 1;
            if *count == 0 {
                begun.writes.remove(op.key());
            }
        }
    }

    /// A write of the key that was begun before the fence stood is through. Returns the key if the
    /// repair may begin now.
    pub(super) fn pass(&mut self, key: &[u8]) -> Option<Bytes> {
        let key = self.by_key.get_key_value(key)?.0.clone();
        let fence = self.by_key.get_mut(&key).filter(|fence| fence.waiting_for > 0)?;
        fence.waiting_for -= 1;
        (fence.waiting_for == 0).then_some(key)
    }

    /// The repair begins again at a later tick.
    pub(super) fn retry(&mut self, key: &Bytes, now_us: u64) {
        let at_us = now_us + REPAIR_RETRY_US;
        if let Some(fence) = self.by_key.get_mut(key) {
            fence.retry_at_us = Some(at_us);
            self.retries.push_back((at_us, key.clone()));
        }
    }

    /// The next repair that begins again now; `None` inside: it is over, or waits anew.
    pub(super) fn next_due(&mut self, now_us: u64) -> Option<Option<Bytes>> {
        // Retries added during this round are due later.
        self.retries.front().filter(|(at_us, _)| *at_us <= now_us)?;
        let (at_us, key) = self.retries.pop_front()?;
        let waits = self.by_key.get(&key).is_some_and(|fence| fence.retry_at_us == Some(at_us));
        Some(waits.then_some(key))
    }

    /// The repairs that wait to begin again.
    pub(super) fn waiting(&self) -> impl Iterator<Item = OpId> {
        self.by_key.values().filter(|fence| fence.retry_at_us.is_some()).map(|fence| fence.owner)
    }

    /// As of a list.
    pub(super) fn is_stretched(&self) -> bool {
        self.retries.is_stretched()
    }

    pub(super) fn give_back(&mut self) {
        self.retries.give_back();
    }

    /// Called at every tick: where nothing is repaired any more, writes need not be counted.
    pub(super) fn forget(&mut self, now_us: u64) {
        let over = |begun: &Begun| now_us.saturating_sub(begun.asked_at_us) > BEGUN_KEPT_US;
        if self.by_key.is_empty() && self.begun.as_ref().is_some_and(over) {
            self.begun = None;
        }
    }
}

impl Fence {
    fn new(owner: OpId, waiting_for: u32) -> Fence {
        Fence {
            owner,
            waiting_for,
            attached: Vec::new(),
            queue: VecDeque::new(),
            item: None,
            copy: None,
            copy_stale: false,
            marker_ok: false,
            written: false,
            copied: false,
            asked: Asked::default(),
            failed: false,
            retry_at_us: None,
            stuck_us: None,
        }
    }

    /// Its repair begins, or begins again: nothing is read yet.
    pub(super) fn begin(&mut self, date: Duration) {
        self.item = None;
        self.copy = None;
        self.marker_ok = false;
        self.asked = Asked { at: date, ..Asked::default() };
        self.failed = false;
        self.retry_at_us = None;
    }

    /// It waits for a node. Returns since when it has not come further.
    pub(super) fn is_stuck(&mut self, now_us: u64) -> u64 {
        *self.stuck_us.get_or_insert(now_us)
    }

    /// It has come further.
    pub(super) fn goes_on(&mut self) {
        self.stuck_us = None;
    }
}

impl Begun {
    fn of(ops: &OpTable) -> Begun {
        let mut begun = Begun { writes: HashMap::new(), asked_at_us: 0 };
        let counts = |op: &&Op| op.kind.is_write() && op.stage.is_in_flight() && op.stage != Stage::Repair;
        ops.iter().filter(counts).for_each(|op| begun.add(op));
        begun
    }

    fn add(&mut self, op: &Op) {
        match self.writes.get_mut(op.key()) {
            Some(count) => *count += 1,
            None => drop(self.writes.insert(op.raw.slice(op.key.0 as usize..op.key.1 as usize), 1)),
        }
    }
}
