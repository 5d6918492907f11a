//! Where proxies agree who is active: one record in a service that answers late, or never, makes
//! swaps of which nobody hears, is out of reach, loses its memory, or is restored from a backup.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::coord::{Record, Seen, Swapped, Unread, Value};
use crate::rules::{Rule, holds};

use super::trace::note;

/// Nobody was ever active.
const EMPTY: Seen = Seen { revision: 0, value: Value::Absent };

/// How badly it answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// One of so many requests, and of so many answers, is lost. 0: none.
    pub(super) lost_one_in: u32,
    /// One of so many is late, by so many milliseconds at most. 0: none.
    pub(super) late_one_in: u32,
    pub(super) late_ms: u64,
}

#[derive(Clone)]
pub(super) struct SimRegister(Rc<RefCell<Inner>>);

struct Inner {
    seen: Seen,
    backup: Option<Seen>,
    /// Counts its lives: what was under way to an earlier one is not made by a later one.
    life: u32,
    away: bool,
    /// Machines that do not reach it.
    cut_off: BTreeSet<usize>,
    faults: Faults,
    /// How it answers when it is well.
    usual: Faults,
    rng: SmallRng,
}

impl SimRegister {
    pub(super) fn new(usual: Faults, rng: &mut SmallRng) -> SimRegister {
        let rng = SmallRng::seed_from_u64(rng.random());
        let cut_off = BTreeSet::new();
        let inner = Inner { seen: EMPTY, backup: None, life: 0, away: false, cut_off, faults: usual, usual, rng };
        SimRegister(Rc::new(RefCell::new(inner)))
    }

    pub(super) fn answer_with(&self, faults: Faults) {
        note(|| format!("FAULT  register: {faults:?}"));
        self.0.borrow_mut().faults = faults;
    }

    /// It answers nobody, or everybody again.
    pub(super) fn is_away(&self, away: bool) {
        note(|| format!("FAULT  register away: {away}"));
        self.0.borrow_mut().away = away;
    }

    pub(super) fn cut_off(&self, machine: usize, cut_off: bool) {
        let set = &mut self.0.borrow_mut().cut_off;
        if if cut_off { set.insert(machine) } else { set.remove(&machine) } {
            note(|| format!("FAULT  register and machine {machine}: cut off: {cut_off}"));
        }
    }

    /// All reach it, and it answers well.
    pub(super) fn heal(&self) {
        note(|| "FAULT  register is well".to_owned());
        let inner = &mut *self.0.borrow_mut();
        (inner.away, inner.faults) = (false, inner.usual);
        inner.cut_off.clear();
    }

    /// It has lost its memory.
    pub(super) fn empty(&self) {
        note(|| "FAULT  register is emptied".to_owned());
        self.0.borrow_mut().seen = EMPTY;
    }

    pub(super) fn back_up(&self) {
        let inner = &mut *self.0.borrow_mut();
        inner.backup = Some(inner.seen.clone());
        note(|| format!("world  register is backed up: {:?}", inner.seen));
    }

    /// It is what it was at the last backup.
    pub(super) fn restore(&self) {
        let inner = &mut *self.0.borrow_mut();
        if let Some(backup) = &inner.backup {
            inner.seen = backup.clone();
            inner.life += 1;
            note(|| format!("FAULT  register is restored: {:?}", inner.seen));
        }
    }

    pub(super) async fn read(&self, machine: usize, patience: Duration) -> Result<Seen, Unread> {
        self.ask(machine, patience, |inner| inner.seen.clone()).await
    }

    pub(super) async fn swap(
        &self,
        machine: usize,
        (seen, new): (Seen, Record),
        patience: Duration,
    ) -> Result<Swapped, Unread> {
        self.ask(machine, patience, move |inner| {
            if seen != inner.seen && holds(Rule::SwapCompares) {
                note(|| format!("register refuses machine {machine}: {new}"));
                return Swapped::Refused;
            }
            note(|| format!("register: {new}"));
            inner.seen = Seen { revision: inner.seen.revision + 1, value: Value::Record(new) };
            Swapped::Done(inner.seen.revision)
        })
        .await
    }

    async fn ask<T: 'static>(
        &self,
        machine: usize,
        patience: Duration,
        deal: impl FnOnce(&mut Inner) -> T + 'static,
    ) -> Result<T, Unread> {
        let deadline = Instant::now() + patience;
        let ((there, back), life) = {
            let inner = &mut *self.0.borrow_mut();
            ((inner.way(), inner.way()), inner.life)
        };
        let (told, hears) = oneshot::channel();
        let register = self.clone();
        spawn_local(async move {
            let Some(there) = there else { return };
            sleep(there).await;
            let answer = {
                let inner = &mut *register.0.borrow_mut();
                if !inner.is_reached_by(machine) || inner.life != life {
                    return;
                }
                deal(inner)
            };
            let Some(back) = back else { return };
            sleep(back).await;
            if register.0.borrow().is_reached_by(machine) {
                let _ = told.send(answer);
            }
        });
        if let Ok(Ok(answer)) = timeout_at(deadline, hears).await {
            return Ok(answer);
        }
        sleep_until(deadline).await;
        Err(Unread("the simulated register does not answer".to_owned()))
    }
}

impl Inner {
    fn is_reached_by(&self, machine: usize) -> bool {
        !self.away && !self.cut_off.contains(&machine)
    }

    /// How long something is on its way; nothing: for ever.
    fn way(&mut self) -> Option<Duration> {
        let Faults { lost_one_in, late_one_in, late_ms } = self.faults;
        let mut one_in = |n: u32| n > 0 && self.rng.random_ratio(1, n);
        let (lost, late) = (one_in(lost_one_in), one_in(late_one_in));
        let ms = if late { self.rng.random_range(0..=late_ms) } else { self.rng.random_range(0..3) };
        (!lost).then(|| Duration::from_millis(ms))
    }
}
