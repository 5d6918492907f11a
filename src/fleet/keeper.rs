//! Keeps the lease: one thread, which alone asks the register, and does nothing else.
//!
//! It does what [`Authority`] says, one request at a time, each for the pause between two
//! heartbeats at most.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::backend::marker::FleetMark;
use crate::coord::{
    Action, Authority, Burden, Event, Holder, Me, Record, Register, Seen, Swapped, Tenure, Times, Unread, Value, Why,
};
use crate::ids::Generation;
use crate::lease::{self, Boot};

use super::survey::Surveyor;

/// Between two looks at the register that others ask for: who waits for a new active proxy asks as
/// soon as it can.
const HURRY: Duration = Duration::from_millis(10);

/// Said no more often than that while it lasts.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Who is to hear what the record is known to carry.
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
    /// Of the record that was read last.
    pub(super) generation: Generation,
    /// The proxy that serves by it.
    pub(super) active: Option<String>,
    /// What it calls a lease.
    pub(super) lease: Duration,
    /// Its list of servers is another one than this proxy's.
    pub(super) other_list: bool,
    /// Why the register could not be asked when that was tried last.
    pub(super) trouble: Option<String>,
    /// The active proxy's heartbeat has stood still for longer than a lease.
    pub(super) silent: bool,
}

/// What the keeper is told.
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

/// To be done by others.
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

/// Handle of the keeper's thread.
#[derive(Clone)]
pub(super) struct Keeper {
    told: Sender<Told>,
    /// It is told of that already.
    hurried: Arc<AtomicBool>,
    committed: Commits,
    pub(super) known: watch::Receiver<Known>,
    name: String,
}

impl Keeper {
    pub(super) fn tell(&self, event: Event) {
        // (It ends with the process.)
        let _ = self.told.send(Told::Event(event));
    }

    pub(super) fn hurry(&self) {
        if !self.hurried.swap(true, Ordering::SeqCst) {
            let _ = self.told.send(Told::Hurry);
        }
    }

    pub(super) fn marked(&self, mark: &FleetMark) {
        let told = if mark.name == self.name {
            Told::Event(Event::Marked(mark.generation, mark.address.clone()))
        } else {
            Told::OtherFleet(mark.clone())
        };
        let _ = self.told.send(told);
    }

    /// The process ends at once, whatever it was doing.
    pub(super) fn quit(&self) {
        let _ = self.told.send(Told::Quit);
    }

    /// From now on this hears what the record is known to carry.
    pub(super) fn hear_commits(&self, hears: impl Fn(&Burden) + Send + Sync + 'static) {
        // (A proxy becomes active once.)
        let _ = self.committed.set(Box::new(hears));
    }

    #[cfg(test)]
    pub(super) fn for_tests(role: Role) -> (Keeper, Receiver<Told>) {
        let (told, hears) = channel();
        let (_, known) = watch::channel(Known { role, ..Known::default() });
        (Keeper { told, hurried: Arc::default(), committed: Arc::default(), known, name: "a".to_owned() }, hears)
    }
}

/// What it works with.
pub(super) struct Tools {
    pub(super) register: Box<dyn Register>,
    pub(super) surveyor: Surveyor,
    /// The fleet's name, as it stands on servers.
    pub(super) name: String,
    /// Where the record stands, for people.
    pub(super) place: String,
    pub(super) lease: Duration,
    /// Ends the process: this proxy is fenced.
    pub(super) fence: Box<dyn Fn() + Send>,
}

/// Starts the thread. What others are to do comes out of `orders`.
pub(super) fn start(me: Me, tools: Tools, orders: Sender<Order>) -> std::io::Result<Keeper> {
    let (told, hears) = channel();
    let (shows, known) = watch::channel(Known::default());
    let committed = Commits::default();
    let hurried = Arc::new(AtomicBool::new(false));
    let keeper =
        Keeper { told, hurried: hurried.clone(), committed: committed.clone(), known, name: tools.name.clone() };
    let work = Work::new(me, tools, orders, (hurried, committed, shows));
    std::thread::Builder::new().name("lease".to_owned()).spawn(move || work.run(&hears))?;
    Ok(keeper)
}

/// A heartbeat that was seen.
struct Sight {
    holder: Holder,
    heartbeat: u64,
    since: Instant,
    /// The same, of polls that followed each other closely: one who stood still has seen nothing of
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
}

struct Work {
    me: Me,
    authority: Authority,
    /// Between two heartbeats.
    pause: Duration,
    tools: Tools,
    orders: Sender<Order>,
    hurried: Arc<AtomicBool>,
    committed: Commits,
    shows: watch::Sender<Known>,
    sight: Option<Sight>,
    /// The record that was claimed.
    before: Option<Record>,
    told_trouble: Option<(String, Instant)>,
    tried_to_end: Option<Holder>,
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
            tools,
            orders,
            hurried,
            committed,
            shows,
            sight: None,
            before: None,
            told_trouble: None,
            tried_to_end: None,
            stopped: false,
        }
    }

    fn run(mut self, hears: &Receiver<Told>) {
        let (mut tick, mut hurried) = (Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            if now >= tick {
                self.handle(Event::Tick { turned: lease::turned() });
                // (From now on: two that follow each other closely extend nothing.)
                (tick, hurried) = (now + self.pause, now);
            }
            match hears.recv_timeout(tick.saturating_duration_since(Instant::now())) {
                Ok(Told::Event(event)) => self.handle(event),
                Ok(Told::Hurry) => {
                    self.hurried.store(false, Ordering::SeqCst);
                    let is_standby = self.shows.borrow().role == Role::Standby;
                    if is_standby && hurried.elapsed() >= HURRY {
                        tick = Instant::now();
                    }
                }
                Ok(Told::OtherFleet(mark)) => {
                    tracing::error!(found = %mark.name, own = %self.tools.name, active = %mark.address,
                        "a server belongs to another fleet: this proxy ends");
                    (self.tools.fence)();
                }
                Ok(Told::Quit) => (self.tools.fence)(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn handle(&mut self, event: Event) {
        self.stopped |= event == Event::Stopped;
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.authority.handle(Boot::now(), event) {
                events.extend(self.act(action));
            }
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.pause
    }

    /// What comes of an action.
    fn act(&mut self, action: Action) -> Vec<Event> {
        match action {
            Action::Read => return self.read(),
            Action::Swap { seen, new } => return vec![self.swap(&seen, &new)],
            Action::Survey => return vec![Event::Surveyed(self.tools.surveyor.survey(self.deadline()))],
            Action::ReadMarks => {
                let generation = self.shows.borrow().generation;
                let (name, address) = (self.tools.name.clone(), self.me.address.clone());
                let own = FleetMark { name, generation, address, lease: self.tools.lease };
                return vec![Event::MarksAreOwn(self.tools.surveyor.marks_are_own(&own, self.deadline()))];
            }
            Action::Begin { generation, predecessor } => self.begin(generation, predecessor),
            Action::Extend(until) => {
                lease::own().extend(until);
                if self.shows.borrow().role == Role::Suspended {
                    tracing::warn!("the lease goes on, and so does this proxy: nobody else was active meanwhile");
                    self.shows.send_modify(|known| known.role = Role::Active);
                }
            }
            Action::Suspend if self.stopped => lease::own().end(),
            Action::Suspend => {
                lease::own().end();
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
                lease::own().end();
                let _ = self.orders.send(Order::Over);
            }
        }
        vec![]
    }

    fn read(&mut self) -> Vec<Event> {
        let deadline = self.deadline();
        let read = self.tools.register.read(deadline);
        let unreadable = read.as_ref().is_ok_and(|seen| seen.value == Value::Unreadable);
        let unreadable = unreadable.then(|| {
            Unread(format!(
                "{}: what stands there is no record of this release's, and is left alone: no proxy becomes active; \
             if no proxy of another release has written it, stop all, remove it, and start them again",
                self.tools.place
            ))
        });
        self.tell_trouble(read.as_ref().err().or(unreadable.as_ref()));
        let seen = read.ok();
        if seen.is_none() {
            self.note_silence();
        }
        let mut events = vec![Event::Read(seen.clone())];
        events.extend(seen.and_then(|seen| self.saw(&seen)));
        events
    }

    fn swap(&mut self, seen: &Seen, new: &Record) -> Event {
        let deadline = self.deadline();
        if self.shows.borrow().role == Role::Standby {
            self.before = seen.value.record().filter(|record| record.holder != new.holder).cloned();
        }
        let swapped = self.tools.register.swap(seen, new, deadline);
        self.tell_trouble(swapped.as_ref().err());
        Event::Swapped(swapped.unwrap_or(Swapped::Unknown))
    }

    fn begin(&mut self, generation: Generation, predecessor: Burden) {
        let address = self.me.address.clone();
        self.shows.send_modify(|known| {
            (known.role, known.generation, known.active) = (Role::Active, generation, Some(address));
            (known.other_list, known.silent) = (false, false);
        });
        let before = self.before.take();
        tracing::info!(%generation, "this proxy is active from now on");
        let _ = self.orders.send(Order::Begin { generation, predecessor, before });
    }

    fn fence(&self, why: Why) {
        lease::own().end();
        let why = match why {
            Why::Replaced => "another proxy has taken its place",
            Why::Absent => "the record is gone",
            Why::Unreadable => "nobody can read the record",
            Why::Marked => "a server is marked by another one",
        };
        tracing::error!("fenced: {why}; this process ends, and is to be started again as a standby");
        (self.tools.fence)();
    }

    /// A standby, or a suspended proxy, has read the record.
    fn saw(&mut self, seen: &Seen) -> Option<Event> {
        let Value::Record(record) = &seen.value else {
            // Nothing that was said of the holder is true of nobody.
            self.sight = None;
            self.shows.send_if_modified(|known| {
                let none = Known { active: None, other_list: false, silent: false, ..known.clone() };
                let changed = known.role == Role::Standby && *known != none;
                if changed {
                    *known = none;
                }
                changed
            });
            return None;
        };
        let sight = Sight::of(record, self.sight.take(), self.tools.lease);
        let (silent, steadily) = (sight.is_silent(), sight.is_silent_steadily());
        self.sight = Some(sight);
        if self.shows.borrow().role != Role::Standby {
            return None;
        }
        self.show(record, silent);
        // (Whom this one never takes the place of it does not end either.)
        if record.tenure != Tenure::Serving || !self.me.candidate || record.fingerprint != self.me.fingerprint {
            return None;
        }
        if steadily
            && self.tried_to_end != Some(record.holder)
            && let Some(what) = self.tools.register.end(record.holder)
        {
            self.tried_to_end = Some(record.holder);
            tracing::warn!(what, "the active proxy of this host has said nothing for longer than its lease");
        }
        self.tools.register.is_dead(record.holder).then_some(Event::IsDead(record.holder))
    }

    /// To whoever looks, and in the log, what a standby has read.
    fn show(&self, record: &Record, silent: bool) {
        let serving = record.tenure == Tenure::Serving;
        let next = Known {
            role: Role::Standby,
            generation: record.generation,
            active: serving.then(|| record.address.clone()),
            lease: Duration::from_micros(record.lease),
            other_list: serving && record.fingerprint != self.me.fingerprint,
            trouble: None,
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

    fn tell_trouble(&mut self, trouble: Option<&Unread>) {
        let text = trouble.map(|Unread(why)| why.clone());
        match (&text, &self.told_trouble) {
            (Some(why), Some((told, at))) if why == told && at.elapsed() < TOLD_EVERY => {}
            (Some(why), _) => {
                tracing::warn!("{why}");
                self.told_trouble = Some((why.clone(), Instant::now()));
            }
            (None, Some(_)) => {
                tracing::info!("where the proxies agree answers again");
                self.told_trouble = None;
            }
            (None, None) => {}
        }
        self.shows.send_if_modified(|known| {
            let changed = known.trouble != text;
            known.trouble = text;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    /// A register of a host on which processes can be ended.
    #[derive(Clone, Default)]
    struct Ends(Arc<Mutex<Vec<Holder>>>);

    impl Register for Ends {
        fn read(&mut self, _: Instant) -> Result<Seen, Unread> {
            Err(Unread("nobody reads this".to_owned()))
        }

        fn swap(&mut self, _: &Seen, _: &Record, _: Instant) -> Result<Swapped, Unread> {
            Ok(Swapped::Refused)
        }

        fn end(&mut self, holder: Holder) -> Option<String> {
            self.0.lock().unwrap().push(holder);
            Some("it is ended".to_owned())
        }
    }

    fn standby() -> (Work, watch::Receiver<Known>, Ends) {
        let ends = Ends::default();
        let me = Me { holder: Holder(1), address: "a:1".to_owned(), fingerprint: 1, candidate: true };
        let tools = Tools {
            register: Box::new(ends.clone()),
            surveyor: Surveyor::new(std::iter::empty()),
            name: "a".to_owned(),
            place: "of a test".to_owned(),
            lease: LEASE,
            fence: Box::new(|| {}),
        };
        let (shows, known) = watch::channel(Known::default());
        (Work::new(me, tools, channel().0, (Arc::default(), Commits::default(), shows)), known, ends)
    }

    fn seen(record: &Record) -> Seen {
        Seen { revision: 1, value: Value::Record(record.clone()) }
    }

    #[test]
    fn a_silent_holder_is_ended_after_its_lease_and_none_that_has_another_list() {
        for (fingerprint, lease, is_ended) in [(1, LEASE, true), (2, LEASE, false), (1, 3 * LEASE, false)] {
            let (mut work, known, ends) = standby();
            let record = Record { fingerprint, lease: lease.as_micros() as u64, ..Record::of(Holder(2)) };
            let before = Instant::now().checked_sub(2 * LEASE).expect("the machine has run for longer");
            let (holder, heartbeat) = (record.holder, record.heartbeat);
            let polled = Instant::now();
            work.sight = Some(Sight { holder, heartbeat, since: before, steady: before, polled, lease });
            assert_eq!(work.saw(&seen(&record)), None);
            assert_eq!(!ends.0.lock().unwrap().is_empty(), is_ended, "list {fingerprint}, lease {lease:?}");
            assert_eq!(known.borrow().silent, lease == LEASE);
        }
    }

    #[test]
    fn what_was_said_of_a_holder_is_not_said_where_there_is_none() {
        for none in [Value::Absent, Value::Unreadable] {
            let (mut work, known, _) = standby();
            work.saw(&seen(&Record { fingerprint: 2, ..Record::of(Holder(2)) }));
            assert!(known.borrow().other_list && known.borrow().active.is_some());
            work.shows.send_modify(|known| known.silent = true);
            work.saw(&Seen { revision: 2, value: none });
            let Known { active, other_list, silent, .. } = known.borrow().clone();
            assert_eq!((active, other_list, silent), (None, false, false));
            assert!(work.sight.is_none(), "nobody's heartbeat stands still");
        }
    }
}
