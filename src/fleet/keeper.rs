//! Keeps the lease: one thread, which alone asks the register, and does nothing else.
//!
//! It does what [`Authority`] says, one request at a time, each for the pause between two
//! heartbeats at most. `Work` says what is to be asked, and takes the answers; who asks is beside
//! it: the thread, or the simulation in virtual time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::backend::marker::FleetMark;
use crate::coord::{
    Action, Authority, Burden, Event, Holder, Me, Record, Seen, Swapped, Tenure, Times, Unread, Value, Why,
};
use crate::ids::Generation;
use crate::lease::{self, Boot};
use crate::rules::{Rule, holds};

use super::asked::{Answer, Ask, Asked, Found};
use super::trouble::{Of, Troubles};

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;

/// Between two looks at the register that others ask for: who waits for a new active proxy asks as
/// soon as it can.
const HURRY: Duration = Duration::from_millis(10);
/// The same where it is no candidate: of those there may be a hundred.
const HURRY_OF_OTHERS: Duration = Duration::from_millis(50);

/// Called with what the record is known to carry; set once this proxy is active.
type Commits = Arc<OnceLock<Box<dyn Fn(&Burden) + Send + Sync>>>;

/// What this proxy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Role {
    #[default]
    Standby,
    Active,
    Suspended,
}

impl Role {
    pub(super) fn word(self) -> &'static str {
        match self {
            Role::Standby => "standby",
            Role::Active => "active",
            Role::Suspended => "suspended",
        }
    }
}

/// What is known of the fleet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Known {
    pub(super) role: Role,
    /// The generation in the record that was read last.
    pub(super) generation: Generation,
    /// The address of the proxy that serves, by that record.
    pub(super) active: Option<String>,
    /// How long that proxy's lease lasts.
    pub(super) lease: Duration,
    /// Its list of servers is another one than this proxy's.
    pub(super) other_list: bool,
    /// The active proxy awaits the end of a former one, by that record.
    pub(super) awaits: bool,
    /// Why the register could not be asked when that was tried last.
    pub(super) trouble: Option<String>,
    /// This proxy could not become active.
    pub(super) unfit: bool,
    /// The active proxy's heartbeat has stood still for longer than a lease.
    pub(super) silent: bool,
}

/// The keeper's input.
#[derive(Debug)]
pub(super) enum Told {
    Event(Event),
    /// Somebody waits for a new active proxy.
    Hurry,
    /// Servers belong to another fleet.
    OtherFleet(FleetMark),
    /// The process is to end at once.
    Quit,
}

/// What the keeper has the rest of the process do.
pub(super) enum Order {
    Begin {
        generation: Generation,
        predecessor: Burden,
        /// The record that it took the place of.
        before: Option<Record>,
    },
    /// The record is free.
    Over,
    /// The process was told to stop.
    Stop,
}

/// Hands the keeper its input. (It ends with the process.)
type Tells = Arc<dyn Fn(Told) + Send + Sync>;

/// Handle of the keeper's thread.
#[derive(Clone)]
pub(super) struct Keeper {
    tells: Tells,
    /// A [`Told::Hurry`] is on its way to the keeper.
    hurried: Arc<AtomicBool>,
    committed: Commits,
    pub(super) known: watch::Receiver<Known>,
    name: String,
}

impl Keeper {
    pub(super) fn tell(&self, event: Event) {
        (self.tells)(Told::Event(event));
    }

    pub(super) fn hurry(&self) {
        if !self.hurried.swap(true, Ordering::SeqCst) {
            (self.tells)(Told::Hurry);
        }
    }

    /// Another proxy, by whose mark this one is over, has marked a server. Whoever keeps the lease
    /// hears of it when the register has answered what it was asked, or its time for that is over:
    /// of a register out of reach this would go on acting meanwhile.
    pub(super) fn marked(&self, mark: &FleetMark) {
        if holds(Rule::FencedByMark) {
            lease::revoke();
        }
        let told = if mark.name == self.name {
            Told::Event(Event::Marked(mark.generation, mark.address.clone()))
        } else {
            Told::OtherFleet(mark.clone())
        };
        (self.tells)(told);
    }

    /// The process ends at once, whatever it was doing.
    pub(super) fn quit(&self) {
        (self.tells)(Told::Quit);
    }

    /// From now on this hears what the record is known to carry.
    pub(super) fn hear_commits(&self, hears: impl Fn(&Burden) + Send + Sync + 'static) {
        // A proxy becomes active once.
        let _ = self.committed.set(Box::new(hears));
    }

    #[cfg(test)]
    pub(super) fn for_tests(role: Role) -> (Keeper, Receiver<Told>) {
        let (tells, hears) = tells();
        let (_, known) = watch::channel(Known { role, ..Known::default() });
        (Keeper { tells, hurried: Arc::default(), committed: Arc::default(), known, name: "a".to_owned() }, hears)
    }
}

fn tells() -> (Tells, Receiver<Told>) {
    let (told, hears) = channel();
    (Arc::new(move |tell| drop(told.send(tell))), hears)
}

/// What the keeper works with.
pub(super) struct Tools {
    /// The fleet's name, as it stands on servers.
    pub(super) name: String,
    /// Where the record stands, for people.
    pub(super) place: String,
    pub(super) lease: Duration,
    /// The former active proxy is not known to be gone: so before anybody sees that this one is
    /// active.
    pub(super) former: Arc<AtomicBool>,
    /// Ends the process: this proxy is fenced.
    pub(super) fence: Box<dyn Fn() + Send>,
}

/// Starts the thread. What others are to do comes out of `orders`.
pub(super) fn start(me: Me, tools: Tools, asked: Asked, orders: Sender<Order>) -> std::io::Result<Keeper> {
    let (tells, hears) = tells();
    let (keeper, work) = prepare(me, tools, orders, tells);
    std::thread::Builder::new().name("lease".to_owned()).spawn(move || run(work, asked, &hears))?;
    Ok(keeper)
}

/// The handle, and the work to be done where `tells` leads.
pub(super) fn prepare(me: Me, tools: Tools, orders: Sender<Order>, tells: Tells) -> (Keeper, Work) {
    let (shows, known) = watch::channel(Known::default());
    let (committed, hurried) = (Commits::default(), Arc::new(AtomicBool::new(false)));
    let name = tools.name.clone();
    let keeper = Keeper { tells, hurried: hurried.clone(), committed: committed.clone(), known, name };
    (keeper, Work::new(me, tools, orders, (hurried, committed, shows)))
}

fn run(mut work: Work, mut asked: Asked, hears: &Receiver<Told>) {
    loop {
        let mut ask = work.tick_if_due();
        while let Some(what) = ask {
            ask = work.heard(asked.answer(what, work.pause));
        }
        match hears.recv_timeout(work.tick.saturating_duration_since(Instant::now())) {
            Ok(told) => {
                let mut ask = work.told(told);
                while let Some(what) = ask {
                    ask = work.heard(asked.answer(what, work.pause));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A heartbeat that was seen in the record, and since when.
struct Sight {
    holder: Holder,
    heartbeat: u64,
    since: Instant,
    /// The same, for polls that followed each other closely: a proxy that stood still has not seen
    /// what was between two of them.
    steady: Instant,
    polled: Instant,
    /// The longer one of its holder's and this proxy's.
    lease: Duration,
}

impl Sight {
    /// Now, after what was seen before.
    fn of(record: &Record, before: Option<Sight>, own: Duration) -> Sight {
        let (now, holder, heartbeat) = (Instant::now(), record.holder, record.heartbeat);
        let before = before.filter(|sight| (sight.holder, sight.heartbeat) == (holder, heartbeat));
        let since = before.as_ref().map_or(now, |sight| sight.since);
        let closely = before.filter(|sight| now.duration_since(sight.polled) <= own / 3);
        let lease = own.max(Duration::from_micros(record.lease));
        Sight { holder, heartbeat, since, steady: closely.map_or(now, |sight| sight.steady), polled: now, lease }
    }

    /// Its heartbeat has stood still for longer than a lease: as far as anybody has seen, and by
    /// polls that followed each other closely.
    fn is_silent(&self) -> bool {
        self.since.elapsed() > self.lease
    }

    fn is_silent_steadily(&self) -> bool {
        self.steady.elapsed() > self.lease
    }

    /// Nobody has seen this heartbeat before.
    fn is_new(&self) -> bool {
        self.since == self.polled
    }
}

pub(super) struct Work {
    me: Me,
    authority: Authority,
    /// Between two heartbeats.
    pub(super) pause: Duration,
    /// When it looks at the register next, unasked.
    pub(super) tick: Instant,
    /// When it last looked because others asked for it.
    looked: Instant,
    tools: Tools,
    orders: Sender<Order>,
    hurried: Arc<AtomicBool>,
    committed: Commits,
    shows: watch::Sender<Known>,
    /// Events that the authority has not been given yet.
    events: VecDeque<Event>,
    /// What was read last, while it is asked whether its holder lives.
    seen: Option<Seen>,
    sight: Option<Sight>,
    /// The record whose place this proxy's claim takes.
    before: Option<Record>,
    troubles: Troubles,
    tried_to_end: Option<Holder>,
    /// The silent holder was not ended, for this proxy could not have written that it is active.
    spared: bool,
    /// It has stopped for good.
    stopped: bool,
}

impl Work {
    fn new(
        me: Me,
        tools: Tools,
        orders: Sender<Order>,
        (hurried, committed, shows): (Arc<AtomicBool>, Commits, watch::Sender<Known>),
    ) -> Work {
        let times = Times::of(tools.lease.as_micros() as u64);
        Work {
            authority: Authority::new(me.clone(), times),
            me,
            pause: Duration::from_micros(times.heartbeat),
            tick: Instant::now(),
            looked: Instant::now(),
            tools,
            orders,
            hurried,
            committed,
            shows,
            events: VecDeque::new(),
            seen: None,
            sight: None,
            before: None,
            troubles: Troubles::default(),
            tried_to_end: None,
            spared: false,
            stopped: false,
        }
    }

    /// Ticks if it is time, whatever else there is to do. Returns what is to be asked; the answer
    /// goes to [`Work::heard`].
    pub(super) fn tick_if_due(&mut self) -> Option<Ask> {
        let now = Instant::now();
        if now < self.tick {
            return None;
        }
        // Two looks that follow each other closely extend nothing.
        (self.tick, self.looked) = (now + self.pause, now);
        self.handle(Event::Tick { turned: lease::turned() })
    }

    pub(super) fn told(&mut self, told: Told) -> Option<Ask> {
        match told {
            Told::Event(event) => return self.handle(event),
            Told::Hurry => {
                self.hurried.store(false, Ordering::SeqCst);
                let is_standby = self.shows.borrow().role == Role::Standby;
                let pause = if self.me.candidate { HURRY } else { HURRY_OF_OTHERS };
                if is_standby && self.looked.elapsed() >= pause {
                    self.looked = Instant::now();
                    return self.handle(Event::Wanted);
                }
            }
            Told::OtherFleet(mark) => {
                tracing::error!(found = %mark.name, own = %self.tools.name, active = %mark.address,
                    "a server belongs to another fleet: this proxy ends");
                (self.tools.fence)();
            }
            Told::Quit => (self.tools.fence)(),
        }
        None
    }

    fn handle(&mut self, event: Event) -> Option<Ask> {
        self.stopped |= event == Event::Stopped;
        self.events.push_back(event);
        self.go_on()
    }

    /// The answer to what was to be asked. Returns what is to be asked next.
    pub(super) fn heard(&mut self, answer: Answer) -> Option<Ask> {
        match answer {
            Answer::Read(read) => {
                let ask = self.read(read);
                if ask.is_some() {
                    return ask;
                }
            }
            Answer::Holder(Found { dead, ended, unfit, spared }) => {
                self.tell_trouble(Of::Standing, unfit.as_ref());
                if spared.is_some() {
                    self.tell_trouble(Of::Swap, spared.as_ref());
                }
                if unfit.is_none() && (spared.is_some() || self.spared) {
                    // It could write no heartbeat either: it has a lease's time, now that it can.
                    self.sight.iter_mut().for_each(|sight| sight.steady = Instant::now());
                    self.spared = spared.is_some();
                }
                let holder = self.sight.as_ref().map(|sight| sight.holder);
                if let Some(what) = ended {
                    self.tried_to_end = holder;
                    tracing::warn!(what, "the active proxy of this host has said nothing for longer than its lease");
                }
                self.events.push_back(Event::Read(self.seen.take()));
                self.events.extend(holder.filter(|_| dead).map(Event::IsDead));
            }
            Answer::Swapped(swapped) => {
                if swapped.is_ok() {
                    self.tell_trouble(Of::Standing, None);
                }
                self.tell_trouble(Of::Swap, swapped.as_ref().err());
                self.events.push_back(Event::Swapped(swapped.unwrap_or(Swapped::Unknown)));
            }
            Answer::Surveyed(survey) => self.events.push_back(Event::Surveyed(survey)),
            Answer::MarksAreOwn(own) => self.events.push_back(Event::MarksAreOwn(own)),
        }
        self.go_on()
    }

    /// Works off the events, until something is to be asked or none is left.
    fn go_on(&mut self) -> Option<Ask> {
        while let Some(event) = self.events.pop_front() {
            let mut ask = None;
            for action in self.authority.handle(Boot::now(), event) {
                // It asks for one thing at a time.
                ask = self.act(action).or(ask);
            }
            if ask.is_some() {
                return ask;
            }
        }
        None
    }

    /// Carries an action out, or returns what is to be asked for that.
    fn act(&mut self, action: Action) -> Option<Ask> {
        match action {
            Action::Read => return Some(Ask::Read),
            Action::Swap { seen, new } => {
                if self.shows.borrow().role == Role::Standby {
                    self.before = seen.value.record().filter(|record| record.holder != new.holder).cloned();
                }
                return Some(Ask::Swap { seen, new });
            }
            Action::Survey => return Some(Ask::Survey),
            Action::ReadMarks => {
                let generation = self.shows.borrow().generation;
                let (name, address) = (self.tools.name.clone(), self.me.address.clone());
                return Some(Ask::Marks(FleetMark { name, generation, address, lease: self.tools.lease }));
            }
            Action::Begin { generation, predecessor } => self.begin(generation, predecessor),
            Action::Extend(until) => {
                lease::extend(until);
                if self.shows.borrow().role == Role::Suspended {
                    tracing::warn!("the lease goes on, and so does this proxy: nobody else was active meanwhile");
                    self.shows.send_modify(|known| known.role = Role::Active);
                }
            }
            Action::Suspend if self.stopped => lease::end(),
            Action::Suspend => {
                lease::end();
                let trouble = self.shows.borrow().trouble.clone().unwrap_or_default();
                tracing::error!(trouble, "the lease is over: nothing is sent to servers before it goes on");
                self.shows.send_modify(|known| known.role = Role::Suspended);
            }
            Action::Committed(burden) => {
                if let Some(hears) = self.committed.get() {
                    hears(&burden);
                }
            }
            Action::Fence(why) => self.fence(why),
            Action::End => {
                lease::end();
                let _ = self.orders.send(Order::Over);
            }
        }
        None
    }

    fn read(&mut self, read: Result<Seen, Unread>) -> Option<Ask> {
        let unreadable = read.as_ref().is_ok_and(|seen| seen.value == Value::Unreadable);
        let unreadable = unreadable.then(|| {
            Unread(format!(
                "{}: what stands there is no record of this release's, and is left alone: no proxy becomes active; \
             if no proxy of another release has written it, stop all, remove it, and start them again",
                self.tools.place
            ))
        });
        self.tell_trouble(Of::Read, read.as_ref().err().or(unreadable.as_ref()));
        let seen = read.ok();
        let ask = match &seen {
            Some(seen) => self.saw(seen),
            None => {
                self.note_silence();
                None
            }
        };
        if ask.is_some() {
            self.seen = seen;
        } else {
            self.events.push_back(Event::Read(seen));
        }
        ask
    }

    fn begin(&mut self, generation: Generation, predecessor: Burden) {
        let address = self.me.address.clone();
        self.tools.former.store(predecessor.awaits, Ordering::SeqCst);
        self.shows.send_modify(|known| {
            (known.role, known.generation, known.active) = (Role::Active, generation, Some(address));
            (known.other_list, known.silent, known.unfit) = (false, false, false);
        });
        let before = self.before.take();
        tracing::info!(%generation, "this proxy is active from now on");
        let _ = self.orders.send(Order::Begin { generation, predecessor, before });
    }

    fn fence(&self, why: Why) {
        lease::end();
        let why = match why {
            Why::Replaced => "another proxy has taken its place",
            Why::Absent => "the record is gone",
            Why::Unreadable => "nobody can read the record",
            Why::Marked => "a server is marked by another one",
        };
        tracing::error!("fenced: {why}; this process ends, and is to be started again as a standby");
        (self.tools.fence)();
    }

    /// A standby, or a suspended proxy, has read the record. Returns what is to be asked about it.
    fn saw(&mut self, seen: &Seen) -> Option<Ask> {
        let Value::Record(record) = &seen.value else {
            // There is no holder now: forget what was known about the last one.
            self.sight = None;
            self.shows.send_if_modified(|known| {
                let none = Known { active: None, other_list: false, silent: false, awaits: false, ..known.clone() };
                let changed = known.role == Role::Standby && *known != none;
                if changed {
                    *known = none;
                }
                changed
            });
            return None;
        };
        let sight = Sight::of(record, self.sight.take(), self.tools.lease);
        let (silent, steadily, new) = (sight.is_silent(), sight.is_silent_steadily(), sight.is_new());
        self.sight = Some(sight);
        if self.shows.borrow().role != Role::Standby {
            return None;
        }
        if new && record.tenure == Tenure::Serving {
            // Another one could write there, and this one has nothing to.
            self.troubles.forget(Of::Swap);
            self.show_trouble();
        }
        self.spared &= !new;
        self.show(record, silent);
        // A process is ended only where this proxy could take its place.
        if record.tenure != Tenure::Serving || !self.me.candidate || record.fingerprint != self.me.fingerprint {
            return None;
        }
        let silent = steadily && self.tried_to_end != Some(record.holder);
        Some(Ask::Holder { holder: record.holder, silent, spared: self.spared })
    }

    /// Publishes and logs what a standby has read.
    fn show(&self, record: &Record, silent: bool) {
        let serving = record.tenure == Tenure::Serving;
        let Known { trouble, unfit, .. } = self.shows.borrow().clone();
        let next = Known {
            role: Role::Standby,
            generation: record.generation,
            active: serving.then(|| record.address.clone()),
            lease: Duration::from_micros(record.lease),
            other_list: serving && record.fingerprint != self.me.fingerprint,
            awaits: serving && record.awaits,
            trouble,
            unfit,
            silent: serving && silent,
        };
        self.shows.send_if_modified(|known| {
            let changed = *known != next;
            if known.active != next.active {
                match &next.active {
                    Some(active) => tracing::info!(active, generation = %next.generation, "the active proxy is another one"),
                    None => tracing::info!(generation = %next.generation, "no proxy is active"),
                }
            }
            if next.other_list && !known.other_list {
                tracing::error!(active = %record.address,
                    "the active proxy has another list of servers or another way to spread keys: this proxy passes nothing on to it, and never takes its place");
            }
            *known = next;
            changed
        });
    }

    /// The register does not answer: what the active proxy owes may never come either.
    fn note_silence(&mut self) {
        let silent = self.sight.as_ref().is_some_and(Sight::is_silent);
        self.shows.send_if_modified(|known| {
            let changed = silent && !known.silent && known.role == Role::Standby;
            known.silent |= changed;
            changed
        });
    }

    fn tell_trouble(&mut self, of: Of, trouble: Option<&Unread>) {
        self.troubles.note(of, trouble);
        self.show_trouble();
    }

    fn show_trouble(&self) {
        let (trouble, unfit) = (self.troubles.present(), self.troubles.is_of(Of::Standing));
        self.shows.send_if_modified(|known| {
            let changed = (&known.trouble, known.unfit) != (&trouble, unfit);
            (known.trouble, known.unfit) = (trouble, unfit);
            changed
        });
    }
}
