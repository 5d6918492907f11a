//! How a proxy becomes the active one of its fleet, stays so, and ends. Pure: events with the time
//! in, actions out; no I/O, no clock.
//!
//! ```text
//!            nobody else acts: claimed            end of the lease
//!  Standby ─────────────────────────▶ Active ◀──────────────────▶ Suspended
//!     │                                  │  a heartbeat is in,        │
//!     │ leaves                           │  the marks are its own     │
//!     ▼                                  ▼                            ▼
//!   over ◀──────────────────────────── over: the record is free, or another's (fenced)
//! ```
//!
//! Roles go one way: a proxy that is fenced ends, and starts again as a standby.
//!
//! **The lease.** The holder of the record raises its heartbeat regularly. It may act for one lease
//! from the moment at which it *requested* a swap, once that swap is known to have succeeded. A
//! candidate claims a record whose heartbeat it has seen unchanged for longer than that. It cannot
//! have seen the heartbeat before that was requested, so the holder's lease has ended by then, by
//! the candidate's clock, with an eighth to spare for clocks of different speed. Its claim compares
//! the record that it has seen, so no heartbeat can have come in between.
//!
//! Each rule below has a counter-example in the walk:
//!
//! - A read extends no lease: it leaves no trace for the candidates. Nor does a swap of unknown
//!   outcome, until a read shows exactly its heartbeat; so each attempt has its own number, or an
//!   old one would be taken for a recent one.
//! - The holder's lease may differ from the candidate's: the candidate waits by the longer one. The
//!   record says which it is, and so do the servers' marks, if the record is lost or an old one.
//! - Time counts only between polls that were answered. While the service is away no proxy is
//!   replaced: the holder could not raise its heartbeat either.
//! - *Free* is the word of a holder that has stopped. The record may be an old one that was
//!   restored from a backup: it is accepted at once only if no server has an open session,
//!   otherwise after the same wait as for a heartbeat. The same applies to an absent record, which
//!   says less: then all servers have to answer.
//! - If the record is another's, of any generation, or absent, the proxy is fenced. After a restore
//!   an earlier holder may find itself there again. It was suspended for a long time, and reads the
//!   servers' marks before it continues.
//! - A generation is above all generations marked on the servers, whatever the record says.
//! - A proxy that has seen one with another list of servers serve claims nothing, also when that
//!   one leaves: all items would be in the wrong place. Where such a record is found free, at a
//!   start with a new list, it is claimed after the wait, so that one with the list that it was
//!   left with comes first. The list of lost copies is not taken over: it numbers the pairs of
//!   another list of servers.
//! - A proxy that reaches no server claims nothing. What the servers say may be as old as polls may
//!   be apart when it claims: they are asked before the wait is over, for one that is silent takes
//!   its time.

mod words;

use super::record::{Holder, Lost, Record, Tenure};
use super::register::{Seen, Swapped, Value};
use crate::ids::{Generation, Term};
use crate::lease::Boot;
use crate::rules::{Rule, holds};

pub use words::{Action, Answered, Event, Survey, Why};

/// All in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Times {
    pub lease: u64,
    /// A candidate waits for a lease and one part in so many of it, for clocks of different speed.
    spare: u64,
    /// Polls further apart than this prove nothing of the time between them.
    gap: u64,
    /// How often the heartbeat is raised, and candidates poll.
    pub heartbeat: u64,
    /// So long before a claim is due the servers are asked what it needs to know.
    ahead: u64,
    /// A thread that has not turned for so long hangs, and the heartbeat with it.
    turned: u64,
}

impl Times {
    pub fn of(lease: u64) -> Times {
        Times { lease, spare: 8, gap: lease / 3, heartbeat: lease / 6, ahead: lease / 6, turned: lease / 2 }
    }

    /// How long a candidate sees one heartbeat before it claims a record of that lease.
    fn claim(&self, theirs: u64) -> u64 {
        let longer = if holds(Rule::LongerLeaseWaits) { self.lease.max(theirs) } else { self.lease };
        longer + if holds(Rule::ClaimWaits) { longer.div_ceil(self.spare) } else { 0 }
    }
}

/// Who this proxy is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Me {
    pub holder: Holder,
    pub address: String,
    pub fingerprint: u64,
    /// Whether it may become active.
    pub candidate: bool,
}

/// What the record is to carry for the next active proxy.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Burden {
    pub lost: Lost,
    pub term: Term,
    /// The former active proxy is not known to be gone.
    pub awaits: bool,
}

impl Burden {
    fn of(record: &Record) -> Burden {
        Burden { lost: record.lost.clone(), term: record.term, awaits: record.awaits }
    }
}

/// See the head of this file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Authority {
    me: Me,
    times: Times,
    /// How many swaps were asked for: the number of the last one's heartbeat.
    asked: u64,
    /// When the thread that had not turned for longest last did.
    turned: Boot,
    burden: Burden,
    /// The proxy that serves, or served last, has another list of servers. Its place is never
    /// taken, also after it has stopped.
    other_list: bool,
    role: Role,
    /// The request that is not answered yet.
    request: Option<Request>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Role {
    Standby {
        sight: Option<Sight>,
        /// Claims of unknown outcome.
        claims: Vec<Ask>,
    },
    Active(Active),
    Over,
}

/// What stands in the register, by uninterrupted polls.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Sight {
    seen: Seen,
    since: Boot,
    answered: Boot,
    /// Its holder's process is known to have ended: the heartbeat is not raised any more, and none
    /// of its requests is under way.
    dead: bool,
    /// What the servers have said of the turn before, and when they were asked: one that is silent
    /// is waited for while the heartbeat is.
    survey: Option<(Boot, Survey)>,
}

/// A swap, by its heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Ask {
    heartbeat: u64,
    asked: Boot,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Request {
    Read { asked: Boot },
    Swap { ask: Ask, new: Record },
    Survey { asked: Boot },
    Marks,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Active {
    /// What is known to stand there, or stood there last.
    seen: Seen,
    record: Record,
    until: Boot,
    /// It has begun over the servers.
    begun: bool,
    /// It may act, while `until` lasts.
    acting: bool,
    /// Heartbeats of unknown outcome, of one lease.
    unknown: Vec<Ask>,
    /// When it last asked for a swap.
    last: Boot,
    /// The record has to be read before the next swap.
    look: bool,
    /// It has stopped for good.
    stopped: bool,
}

impl Authority {
    pub fn new(me: Me, times: Times) -> Authority {
        let role = Role::Standby { sight: None, claims: Vec::new() };
        Authority {
            me,
            times,
            asked: 0,
            turned: Boot::default(),
            burden: Burden::default(),
            other_list: false,
            role,
            request: None,
        }
    }

    /// Whether this proxy may act at a moment that is now.
    #[cfg(test)]
    pub fn acts(&self, now: Boot) -> bool {
        matches!(&self.role, Role::Active(active) if active.acting && now < active.until)
    }

    /// Takes an event; returns what is to be done, in order.
    pub fn handle(&mut self, now: Boot, event: Event) -> Vec<Action> {
        let mut actions = self.expire(now);
        actions.extend(match event {
            Event::Tick { turned } => self.tick(now, turned),
            Event::Wanted => self.wanted(now),
            Event::Read(seen) => self.read(now, seen),
            Event::Swapped(outcome) => self.swapped(now, outcome),
            Event::Surveyed(survey) => self.surveyed(now, survey),
            Event::MarksAreOwn(own) => self.marks_read(now, own),
            Event::IsDead(holder) => self.is_dead(now, holder),
            Event::Marked(generation, address) => self.marked(generation, &address),
            Event::Carry(burden) => {
                self.burden = burden;
                self.ask_if_due(now)
            }
            Event::Leave => self.leave(),
            Event::Stopped => self.stopped(now),
        });
        actions
    }

    /// The end of the lease, whatever else happens now.
    fn expire(&mut self, now: Boot) -> Vec<Action> {
        match &mut self.role {
            Role::Active(active) if active.acting && now >= active.until && holds(Rule::SuspendedAtItsEnd) => {
                active.acting = false;
                vec![Action::Suspend]
            }
            _ => vec![],
        }
    }

    fn tick(&mut self, now: Boot, turned: Boot) -> Vec<Action> {
        self.turned = turned;
        match &self.role {
            Role::Standby { sight, .. } if self.request.is_none() => {
                // A proxy that is no candidate only needs to know where the active one is.
                let read = sight.as_ref().map(|sight| now.since(sight.answered));
                let due = self.me.candidate || read.is_none_or(|since| since >= self.times.lease);
                if due { self.ask_to_read(now) } else { vec![] }
            }
            Role::Active(_) => self.ask_if_due(now),
            Role::Standby { .. } | Role::Over => vec![],
        }
    }

    /// Clients wait: the record is read, also by a proxy that is no candidate.
    fn wanted(&mut self, now: Boot) -> Vec<Action> {
        match &self.role {
            Role::Standby { .. } if self.request.is_none() => self.ask_to_read(now),
            _ => vec![],
        }
    }

    fn ask_to_read(&mut self, now: Boot) -> Vec<Action> {
        self.request = Some(Request::Read { asked: now });
        vec![Action::Read]
    }

    fn ask_to_swap(&mut self, now: Boot, seen: Seen, mut new: Record) -> Vec<Action> {
        if holds(Rule::HeartbeatsAreUnique) || matches!(self.role, Role::Active(_)) {
            self.asked += 1;
        }
        new.heartbeat = self.asked;
        let ask = Ask { heartbeat: new.heartbeat, asked: now };
        self.request = Some(Request::Swap { ask, new: new.clone() });
        vec![Action::Swap { seen, new }]
    }

    // ---- standby --------------------------------------------------------------------------------

    /// A candidate has seen what stands there.
    fn sighted(&mut self, now: Boot, seen: Seen) -> Vec<Action> {
        let (times, me) = (self.times, &self.me);
        let Role::Standby { sight, claims } = &mut self.role else { return vec![] };
        // (What they would begin is over by then: this bounds how many there are.)
        claims.retain(|ask| now.since(ask.asked) < times.lease);
        if let Some(record) = seen.value.record().filter(|record| record.holder == me.holder) {
            // A claim whose answer was lost. One that is no longer remembered is too old to
            // extend the lease.
            let asked = claims.iter().find(|ask| ask.heartbeat == record.heartbeat).map(|ask| ask.asked);
            let until = asked.map_or(Boot(0), |asked| asked.after(times.lease));
            let record = record.clone();
            return self.become_active(now, seen, record, until);
        }
        let gone_on = |sight: &Sight| now.since(sight.answered) <= times.gap || !holds(Rule::AnsweredPollsCount);
        let before = sight.take().filter(|sight| sight.seen == seen && gone_on(sight));
        let since = before.as_ref().map_or(now, |sight| sight.since);
        let survey = before.and_then(|sight| sight.survey).filter(|(asked, _)| now.since(*asked) <= times.gap);
        let sight = sight.insert(Sight { seen, since, answered: now, dead: false, survey });
        if !me.candidate {
            return vec![];
        }
        if let Some(record) = sight.seen.value.record().filter(|record| record.tenure == Tenure::Serving) {
            self.other_list = record.fingerprint != me.fingerprint;
        }
        let due = match &sight.seen.value {
            Value::Unreadable => false,
            Value::Record(record) if record.tenure == Tenure::Serving => {
                let soon = now.since(sight.since) + times.ahead >= times.claim(record.lease);
                record.fingerprint == me.fingerprint && soon
            }
            Value::Record(_) | Value::Absent => true,
        };
        if !due || self.other_list {
            return vec![];
        }
        match survey {
            Some((_, said)) => self.judge_survey(now, said),
            None => self.ask_servers(now),
        }
    }

    fn ask_servers(&mut self, now: Boot) -> Vec<Action> {
        self.request = Some(Request::Survey { asked: now });
        vec![Action::Survey]
    }

    fn is_dead(&mut self, now: Boot, holder: Holder) -> Vec<Action> {
        let me = &self.me;
        let Role::Standby { sight: Some(sight), .. } = &mut self.role else { return vec![] };
        let seen = sight.seen.value.record();
        let claimed = seen.is_some_and(|record| record.holder == holder && record.fingerprint == me.fingerprint);
        if !claimed || !me.candidate || self.request.is_some() {
            return vec![];
        }
        sight.dead = true;
        self.ask_servers(now)
    }

    /// What the servers say of the turn before.
    fn surveyed(&mut self, now: Boot, survey: Survey) -> Vec<Action> {
        let request = self.request.take();
        if let (Role::Standby { sight: Some(sight), .. }, Some(Request::Survey { asked })) = (&mut self.role, request)
            && survey.answered != Answered::None
            && sight.seen.value.record().is_some_and(|record| record.tenure == Tenure::Serving)
        {
            sight.survey = Some((asked, survey));
        }
        self.judge_survey(now, survey)
    }

    /// Claims the record, if by this it may.
    fn judge_survey(&mut self, now: Boot, survey: Survey) -> Vec<Action> {
        let Role::Standby { sight: Some(sight), .. } = &mut self.role else { return vec![] };
        let theirs = sight.seen.value.record().map_or(0, |record| record.lease).max(survey.lease);
        let waited = sight.dead || now.since(sight.since) >= self.times.claim(theirs);
        let interrupted = !sight.dead && now.since(sight.answered) > self.times.gap && holds(Rule::AnsweredPollsCount);
        let closed = |rule: Rule, enough: bool| !survey.open && enough || !holds(rule);
        let at_once = match &sight.seen.value {
            Value::Record(record) if record.tenure == Tenure::Free => {
                // A proxy with the list of servers that it was freed under comes first.
                let same_list = record.fingerprint == self.me.fingerprint;
                same_list && closed(Rule::FreeIsChecked, true)
            }
            Value::Absent => closed(Rule::AbsentIsChecked, survey.answered == Answered::All),
            Value::Record(_) | Value::Unreadable => false,
        };
        if survey.answered == Answered::None || interrupted || !(waited || at_once) {
            return vec![];
        }
        let before = sight.seen.value.record();
        let highest = if holds(Rule::GenerationAboveMarks) { survey.highest } else { Generation::default() };
        let generation = before.map_or(highest, |record| record.generation.max(highest)).next();
        let Me { holder, address, fingerprint, .. } = self.me.clone();
        // A record that is absent, or free, with an open session may be an old one: see the head of
        // this file. And the end of the last one is no proof about one that it waited for itself.
        let free = before.is_none_or(|record| record.tenure == Tenure::Free);
        let awaits = !(sight.dead || free && !survey.open) || before.is_some_and(|record| record.awaits);
        let lost = before.filter(|record| {
            // Pairs of another list are other pairs; and a record from before a claim that has been
            // made since is an old one, that was restored.
            record.fingerprint == fingerprint && record.generation >= highest
        });
        let lost = lost.map_or_else(Lost::default, |record| record.lost.clone());
        let claim = Record {
            generation,
            holder,
            address,
            heartbeat: 0,
            tenure: Tenure::Serving,
            fingerprint,
            lost,
            term: before.map_or_else(Term::default, |record| record.term),
            awaits,
            lease: self.times.lease,
        };
        let seen = sight.seen.clone();
        // The next claim, if this one is not heard of, asks them anew.
        sight.survey = None;
        self.ask_to_swap(now, seen, claim)
    }

    fn become_active(&mut self, now: Boot, seen: Seen, record: Record, until: Boot) -> Vec<Action> {
        self.burden = Burden::of(&record);
        self.role = Role::Active(Active {
            seen,
            record,
            until,
            begun: false,
            acting: false,
            unknown: Vec::new(),
            last: now,
            look: false,
            stopped: false,
        });
        self.go_on(now)
    }

    // ---- active ---------------------------------------------------------------------------------

    /// A lease that is not over: it begins with that, or goes on, having read the marks.
    fn go_on(&mut self, now: Boot) -> Vec<Action> {
        let Role::Active(active) = &mut self.role else { return vec![] };
        if active.stopped || now >= active.until {
            return vec![];
        }
        if active.acting || active.begun && !holds(Rule::MarksBeforeResuming) {
            active.acting = true;
            return vec![Action::Extend(active.until)];
        }
        if active.begun {
            self.request = Some(Request::Marks);
            return vec![Action::ReadMarks];
        }
        (active.begun, active.acting) = (true, true);
        let (generation, predecessor) = (active.record.generation, self.burden.clone());
        vec![Action::Extend(active.until), Action::Begin { generation, predecessor }]
    }

    /// The servers' marks were read, at the end of a suspension.
    fn marks_read(&mut self, now: Boot, own: bool) -> Vec<Action> {
        self.request = None;
        let Role::Active(active) = &mut self.role else { return vec![] };
        if !own {
            return self.fence(Why::Marked);
        }
        if active.stopped || now >= active.until {
            return vec![];
        }
        active.acting = true;
        vec![Action::Extend(active.until)]
    }

    /// The same generation at another address is of a register that was restored, or of two of one
    /// name: there, too, one of the two has to end, and the mark that stands was written last.
    fn marked(&mut self, generation: Generation, address: &str) -> Vec<Action> {
        let Role::Active(active) = &self.role else { return vec![] };
        let own = active.record.generation;
        let other = generation > own || generation == own && address != self.me.address;
        if other && holds(Rule::FencedByMark) { self.fence(Why::Marked) } else { vec![] }
    }

    /// The next swap, or a look at what came of the last one, if it is time.
    fn ask_if_due(&mut self, now: Boot) -> Vec<Action> {
        let Role::Active(active) = &mut self.role else { return vec![] };
        if self.request.is_some() {
            return vec![];
        }
        if active.look {
            return self.ask_to_read(now);
        }
        let new = Burden::of(&active.record) != self.burden;
        let hangs = now.since(self.turned) > self.times.turned;
        if !active.stopped && (hangs || !new && now.since(active.last) < self.times.heartbeat) {
            return vec![];
        }
        active.last = now;
        let tenure = if active.stopped { Tenure::Free } else { Tenure::Serving };
        let Burden { lost, term, awaits } = self.burden.clone();
        let (seen, record) = (active.seen.clone(), Record { tenure, lost, term, awaits, ..active.record.clone() });
        self.ask_to_swap(now, seen, record)
    }

    fn swapped(&mut self, now: Boot, outcome: Swapped) -> Vec<Action> {
        let Some(Request::Swap { ask, new }) = self.request.take() else { return vec![] };
        let asked = if holds(Rule::LeaseFromAsking) { ask.asked } else { now };
        let until = asked.after(self.times.lease);
        match (outcome, &mut self.role) {
            (Swapped::Done(revision), Role::Standby { .. }) => {
                let seen = Seen { revision, value: Value::Record(new.clone()) };
                self.become_active(now, seen, new, until)
            }
            (Swapped::Done(revision), Role::Active(active)) => {
                // What was asked for before compares with what stood there then: none of it will be
                // read. (This too bounds how many there are.)
                active.unknown.clear();
                active.seen = Seen { revision, value: Value::Record(new.clone()) };
                self.known_in(now, new, Some(until))
            }
            (Swapped::Refused, Role::Active(active)) => {
                // (Where the read is not answered it is asked again, and no swap that is refused.)
                active.look = true;
                self.ask_to_read(now)
            }
            (Swapped::Refused, Role::Standby { sight, .. }) => {
                *sight = None;
                vec![]
            }
            (Swapped::Unknown, role) => {
                match role {
                    Role::Standby { claims, .. } => claims.push(ask),
                    Role::Active(active) => {
                        // (As of claims.)
                        active.unknown.retain(|before| now.since(before.asked) < self.times.lease);
                        active.unknown.push(ask);
                        active.look = true;
                        if !holds(Rule::UnknownIsNotMade) {
                            active.until = active.until.max(until);
                        }
                    }
                    Role::Over => {}
                }
                vec![]
            }
            (Swapped::Done(_) | Swapped::Refused, Role::Over) => vec![],
        }
    }

    fn read(&mut self, now: Boot, seen: Option<Seen>) -> Vec<Action> {
        let Some(Request::Read { asked }) = self.request.take() else { return vec![] };
        let (Some(seen), Role::Active(active)) = (seen.clone(), &mut self.role) else {
            return seen.map_or(vec![], |seen| self.sighted(now, seen));
        };
        let why = match &seen.value {
            Value::Record(record) if record.holder == self.me.holder || !holds(Rule::FencedByRecord) => {
                active.look = false;
                let record = record.clone();
                let made = active.unknown.iter().find(|ask| ask.heartbeat == record.heartbeat);
                let made = made.map(|ask| ask.asked).or((!holds(Rule::ReadExtendsNothing)).then_some(asked));
                active.seen = seen;
                let until = made.map(|asked| asked.after(self.times.lease));
                return self.known_in(now, record, until);
            }
            Value::Record(_) => Why::Replaced,
            Value::Absent => Why::Absent,
            Value::Unreadable => Why::Unreadable,
        };
        self.fence(why)
    }

    /// This record of this proxy's stands there.
    fn known_in(&mut self, now: Boot, record: Record, until: Option<Boot>) -> Vec<Action> {
        let Role::Active(active) = &mut self.role else { return vec![] };
        let burden = Burden::of(&record);
        let new = Burden::of(&active.record) != burden;
        let ended = record.tenure == Tenure::Free;
        active.record = record;
        active.until = active.until.max(until.unwrap_or_default());
        if ended {
            self.role = Role::Over;
            return vec![Action::End];
        }
        let mut actions = if new { vec![Action::Committed(burden)] } else { vec![] };
        actions.extend(self.go_on(now));
        // What is to be carried may have changed while this was under way; or it has stopped.
        actions.extend(self.ask_if_due(now));
        actions
    }

    // ---- the end --------------------------------------------------------------------------------

    fn fence(&mut self, why: Why) -> Vec<Action> {
        self.role = Role::Over;
        vec![Action::Fence(why)]
    }

    fn leave(&mut self) -> Vec<Action> {
        match self.role {
            // A claim of unknown outcome may be made yet: candidates then wait for a heartbeat that
            // never comes.
            Role::Standby { .. } => {
                self.role = Role::Over;
                vec![Action::End]
            }
            // What is under way needs its lease, and may take longer than that lasts.
            Role::Active(_) | Role::Over => vec![],
        }
    }

    fn stopped(&mut self, now: Boot) -> Vec<Action> {
        let Role::Active(active) = &mut self.role else { return vec![] };
        (active.stopped, active.acting) = (true, false);
        let mut actions = vec![Action::Suspend];
        actions.extend(self.ask_if_due(now));
        actions
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
