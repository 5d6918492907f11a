//! The register, in which proxies agree who is active: one record in a service that answers late or
//! never, executes swaps whose answers are lost, is out of reach, loses its memory, or is restored
//! from a backup.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
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

/// What the register holds before any proxy was active.
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

/// Ways of answering that chance alone would seldom bring about. In milliseconds; an empty range:
/// not at all.
#[derive(Clone, Debug, Default)]
pub(super) struct Course {
    /// Swaps are made so much later, until one makes another proxy the holder.
    pub(super) swaps_ms: Range<u64>,
    /// How long the new holder does not reach it then; and none of its swaps does after that.
    pub(super) deafens_ms: Range<u64>,
    /// Answers come so much later.
    pub(super) answers_ms: Range<u64>,
}

/// What of a machine's requests does not arrive, while answers reach it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lost {
    Swaps,
    All,
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
    /// And until when.
    deaf: BTreeMap<usize, Instant>,
    lost: BTreeMap<usize, Lost>,
    course: Course,
    /// A swap was asked for since that began.
    asked: bool,
    faults: Faults,
    /// How it answers when it is well.
    usual: Faults,
    rng: SmallRng,
}

impl SimRegister {
    pub(super) fn new(usual: Faults, rng: &mut SmallRng) -> SimRegister {
        let rng = SmallRng::seed_from_u64(rng.random());
        let inner = Inner {
            seen: EMPTY,
            backup: None,
            life: 0,
            away: false,
            cut_off: BTreeSet::new(),
            deaf: BTreeMap::new(),
            lost: BTreeMap::new(),
            course: Course::default(),
            asked: false,
            faults: usual,
            usual,
            rng,
        };
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

    pub(super) fn take(&self, course: Course) {
        note(|| format!("FAULT  register: {course:?}"));
        let inner = &mut *self.0.borrow_mut();
        (inner.course, inner.asked) = (course, false);
    }

    /// Whether a swap was asked for since its [`Course`] began.
    pub(super) fn was_asked(&self) -> bool {
        self.0.borrow().asked
    }

    pub(super) fn lose(&self, machine: usize, lost: Lost) {
        note(|| format!("FAULT  register and machine {machine}: lost on the way there: {lost:?}"));
        self.0.borrow_mut().lost.insert(machine, lost);
    }

    /// All reach it, and it answers well.
    pub(super) fn heal(&self) {
        note(|| "FAULT  register is well".to_owned());
        let inner = &mut *self.0.borrow_mut();
        (inner.away, inner.faults, inner.course) = (false, inner.usual, Course::default());
        inner.cut_off.clear();
        inner.deaf.clear();
        inner.lost.clear();
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
        self.ask((machine, false), patience, |inner| inner.seen.clone()).await
    }

    pub(super) async fn swap(
        &self,
        machine: usize,
        (seen, new): (Seen, Record),
        patience: Duration,
    ) -> Result<Swapped, Unread> {
        self.ask((machine, true), patience, move |inner| {
            if seen != inner.seen && holds(Rule::SwapCompares) {
                note(|| format!("register refuses machine {machine}: {new}"));
                return Swapped::Refused;
            }
            note(|| format!("register: {new}"));
            if inner.seen.value.record().is_none_or(|before| before.holder != new.holder) {
                inner.deafen(machine);
            }
            inner.seen = Seen { revision: inner.seen.revision + 1, value: Value::Record(new) };
            Swapped::Done(inner.seen.revision)
        })
        .await
    }

    async fn ask<T: 'static>(
        &self,
        (machine, swaps): (usize, bool),
        patience: Duration,
        deal: impl FnOnce(&mut Inner) -> T + 'static,
    ) -> Result<T, Unread> {
        let deadline = Instant::now() + patience;
        let ((there, back), life) = {
            let inner = &mut *self.0.borrow_mut();
            inner.asked |= swaps;
            let ((there, back), (later, longer)) = ((inner.way(), inner.way()), inner.by_course(swaps));
            let lost = inner.lost.get(&machine).is_some_and(|lost| swaps || *lost == Lost::All);
            let there = there.filter(|_| !lost).map(|there| there + later);
            ((there, back.map(|back| back + longer)), inner.life)
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
        let deaf = self.deaf.get(&machine).is_some_and(|until| Instant::now() < *until);
        !self.away && !deaf && !self.cut_off.contains(&machine)
    }

    /// A machine's claim is made.
    fn deafen(&mut self, machine: usize) {
        let Course { deafens_ms, answers_ms, .. } = std::mem::take(&mut self.course);
        self.course.answers_ms = answers_ms;
        if !deafens_ms.is_empty() {
            let ms = self.rng.random_range(deafens_ms);
            note(|| format!("FAULT  register and machine {machine}: cut off for {ms} ms"));
            self.deaf.insert(machine, Instant::now() + Duration::from_millis(ms));
            self.lost.insert(machine, Lost::Swaps);
        }
    }

    /// How much later it is there, and back.
    fn by_course(&mut self, swaps: bool) -> (Duration, Duration) {
        let Course { swaps_ms, answers_ms, .. } = self.course.clone();
        let mut within = |ms: Range<u64>| if ms.is_empty() { 0 } else { self.rng.random_range(ms) };
        let there = if swaps { within(swaps_ms) } else { 0 };
        (Duration::from_millis(there), Duration::from_millis(within(answers_ms)))
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
