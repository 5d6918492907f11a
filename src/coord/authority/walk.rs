//! Every order of everything that can happen to a few proxies and their register, to a fixpoint:
//! requests that are made late, or never, whose answers are late, or never come; threads that stand
//! still; clocks that lose a tick in a lease; a register that loses its memory, or is restored from
//! a backup; a planned change.
//!
//! Times are kept relative to each proxy's present moment, heartbeats and revisions renamed in
//! their order, so that the states are finitely many.

mod normal;
mod steps;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use super::*;
use crate::coord::register::Value;
use crate::lease::Boot;
use crate::rules::off::without;

/// A lease is so many ticks, and no proxy has a longer one.
const LEASE: u64 = 3;
/// The present moment of every proxy's clock.
const NOW: u64 = 1_000;
/// Whatever is longer ago than that is as good as long ago.
const LONG: u64 = LEASE + 2;

/// Of a lease where a clock may lose a tick in so many: one of them to spare.
fn times(lease: u64) -> Times {
    Times { lease, spare: LEASE, gap: 1, heartbeat: 1, ahead: 1, turned: LONG }
}

/// What may happen, beside time and requests.
#[derive(Clone, Copy, Default)]
struct Course {
    proxies: usize,
    /// The lease of the first proxy, and that of the others.
    leases: [u64; 2],
    /// Nobody is active yet.
    from_nothing: bool,
    /// Clocks lose ticks.
    drift: bool,
    /// The register is empty after a while.
    emptied: bool,
    /// The register is restored from a backup, which takes so many ticks. Longer than polls may be
    /// apart: else a heartbeat that came and went between two polls of a candidate's would leave no
    /// trace. And as long as a lease, where the backup may be of the holder that was just replaced:
    /// that one goes on before its successor's lease is over, if the servers are not marked yet.
    restored: Option<u64>,
    /// The register answers nobody for a while. All else is prompt.
    away: bool,
    /// There is a backup from before: the record was free, or some proxy's that is no more.
    old: Option<Tenure>,
    /// The first proxy hands over.
    leaves: bool,
    /// How many answers do not come.
    unheard: u8,
}

impl Course {
    /// Late, lost and unknown answers, also where leases differ; and a register that is away. `make
    /// soak` walks all.
    fn is_walked_always(&self) -> bool {
        let plain = !self.from_nothing && !self.drift && !self.emptied && !self.leaves && self.old.is_none();
        plain && self.restored.is_none()
    }
}

/// What a step does to the world.
type Change<'a> = dyn Fn(&mut World) -> Result<(), String> + 'a;

/// Takes what may happen, by its name.
type Step<'a> = &'a mut dyn FnMut(String, &Change<'_>);

/// Whether a rule was missed.
type Missed<'a> = &'a dyn Fn(&Walked) -> bool;

/// A request on its way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Way {
    /// Made and heard at one moment: what is heard later says the same of then, and whoever has
    /// asked counts from when it hears.
    Read,
    Swap(Seen, Record),
    /// It has been dealt with: the answer is on its way.
    Back(Swapped),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Party {
    authority: Authority,
    /// Ticks since its clock last lost one.
    steady: u64,
    way: Option<Way>,
    /// A swap that nobody waits for any more, and that may be made yet.
    late: Option<(Seen, Record)>,
    /// It has begun, and the servers are to be marked.
    marks: Option<Generation>,
    ticked: bool,
    leaving: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    register: Seen,
    backup: Option<Seen>,
    /// Ticks until it is restored; it answers nobody before.
    down: u64,
    emptied: bool,
    restored: bool,
    away: Option<bool>,
    /// How many more answers may fail to come.
    unheard: u8,
    /// What the servers are marked with, and whether that session is open.
    mark: (Generation, Option<Holder>, bool),
    /// The highest generation that has begun.
    begun: Generation,
    parties: Vec<Party>,
}

/// What the proxy wrote that was active before all of these.
fn of_before(tenure: Tenure) -> Record {
    Record {
        generation: Generation(0),
        holder: Holder(9),
        address: String::new(),
        heartbeat: 1,
        tenure,
        fingerprint: 0,
        lost: Lost::default(),
        term: Term(0),
        awaits: false,
        lease: 0,
    }
}

/// The register, as it was at the beginning and nothing else happened.
const EMPTY: Seen = Seen { revision: 0, value: Value::Absent };

impl World {
    fn new(course: &Course) -> World {
        let party = |i: usize| {
            let me = Me { holder: Holder(i as u64), address: String::new(), fingerprint: 0, candidate: true };
            Party {
                authority: Authority::new(me, times(course.leases[i.min(1)])),
                steady: LEASE,
                way: None,
                late: None,
                marks: None,
                ticked: false,
                leaving: false,
            }
        };
        let mut world = World {
            register: EMPTY,
            backup: None,
            down: 0,
            emptied: !course.emptied,
            restored: course.restored.is_none(),
            away: course.away.then_some(false),
            unheard: course.unheard,
            mark: (Generation(0), None, false),
            begun: Generation(0),
            parties: (0..course.proxies).map(party).collect(),
        };
        if !course.from_nothing {
            // The first proxy is active, and has marked the servers.
            for wanted in ["0 turns", "0 reads", "0's swap is", "0 hears of its swap", "0 marks"] {
                let (_, next) =
                    world.steps(course).into_iter().find(|(name, _)| name.starts_with(wanted)).expect(wanted);
                world = next.expect("nothing is wrong");
            }
        }
        world.backup = course.old.map(|tenure| Seen { revision: 1, value: Value::Record(of_before(tenure)) });
        world
    }

    /// Something happens to a proxy; what it asks for is on its way. Servers answer at once.
    fn tell(&mut self, i: usize, event: Event) -> Result<(), String> {
        let actions = self.parties[i].authority.handle(Boot(NOW), event);
        for action in actions {
            let party = &mut self.parties[i];
            match action {
                Action::Read => party.way = Some(Way::Read),
                Action::Swap { seen, new } => party.way = Some(Way::Swap(seen, new)),
                Action::Survey => {
                    let (highest, holder, open) = self.mark;
                    let lease = holder.map_or(0, |Holder(other)| self.parties[other as usize].authority.times.lease);
                    self.tell(i, Event::Surveyed(Survey { answered: Answered::All, highest, lease, open }))?;
                }
                Action::ReadMarks => {
                    let own = self.mark.1.is_none_or(|holder| holder == Holder(i as u64));
                    self.tell(i, Event::MarksAreOwn(own))?;
                }
                Action::Begin { generation, .. } => {
                    if generation <= self.begun {
                        return Err(format!("generation {generation} begins after {}", self.begun));
                    }
                    self.begun = generation;
                    party.marks = Some(generation);
                }
                Action::Fence(_) | Action::End => {
                    (party.way, party.marks) = (None, None);
                }
                Action::Extend(_) | Action::Suspend | Action::Committed(_) => {}
            }
        }
        Ok(())
    }

    /// The register deals with a swap.
    fn swap(&mut self, seen: &Seen, new: &Record) -> Swapped {
        if *seen != self.register && holds(Rule::SwapCompares) {
            return Swapped::Refused;
        }
        self.register = Seen { revision: self.register.revision + 1, value: Value::Record(new.clone()) };
        Swapped::Done(self.register.revision)
    }

    /// A tick of all clocks but one's.
    fn pass(&mut self, but: Option<usize>) {
        for (i, party) in self.parties.iter_mut().enumerate() {
            party.ticked = false;
            if but == Some(i) {
                party.steady = 0;
            } else {
                party.steady = (party.steady + 1).min(LEASE);
                party.authority.age(1);
            }
        }
        if self.down == 1
            && let Some(backup) = self.backup.take()
        {
            (self.register, self.restored) = (backup, true);
        }
        self.down = self.down.saturating_sub(1);
    }

    /// What must never be.
    fn wrong(&self) -> Option<String> {
        let acting: Vec<usize> =
            (0..self.parties.len()).filter(|&i| self.parties[i].authority.acts(Boot(NOW))).collect();
        let generation = |i: usize| match &self.parties[i].authority.role {
            Role::Active(active) => active.record.generation,
            _ => Generation(0),
        };
        // Whoever has begun does nothing before the servers are marked.
        if let Some(i) = acting.iter().find(|&&i| generation(i) < self.mark.0) {
            return Some(format!("{i} acts with generation {} after {} has acted", generation(*i), self.mark.0));
        }
        (acting.len() > 1).then(|| format!("{acting:?} act at once"))
    }
}

/// How it went.
struct Walked {
    states: usize,
    /// The shortest way to something wrong.
    wrong: Option<(String, Vec<String>)>,
    /// In some states of each kind somebody acts, or has taken over.
    acted: bool,
    taken_over: bool,
}

/// States are known by 128 bits of their hash: millions of them fit into memory so, and that two
/// have the same is out of the question.
fn print(world: &World) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        (salt, world).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

fn walk(course: &Course, most: usize) -> Walked {
    let start = World::new(course).normal();
    let mut known = HashSet::from([print(&start)]);
    // By which step of which state each state was found first.
    let mut found_by: Vec<(u32, u16)> = vec![(0, 0)];
    let mut ahead = VecDeque::from([(0_u32, start.clone())]);
    let (mut acted, mut taken_over) = (false, false);
    while let Some((number, world)) = ahead.pop_front() {
        acted |= world.parties.iter().any(|party| party.authority.acts(Boot(NOW)));
        taken_over |= world.begun > Generation(1);
        let steps = world.steps(course);
        let failed = steps.iter().find_map(|(name, next)| Some(format!("{name}: {}", next.as_ref().err()?)));
        if let Some(what) = world.wrong().or(failed) {
            let wrong = Some((what, story(course, &start, &found_by, number)));
            return Walked { states: found_by.len(), wrong, acted, taken_over };
        }
        for (step, (_, next)) in steps.into_iter().enumerate() {
            let Ok(next) = next else { continue };
            let next = next.normal();
            if known.insert(print(&next)) {
                ahead.push_back((found_by.len() as u32, next));
                found_by.push((number, step as u16));
            }
        }
        assert!(found_by.len() <= most, "more than {most} states");
    }
    Walked { states: found_by.len(), wrong: None, acted, taken_over }
}

/// The steps to a state.
fn story(course: &Course, start: &World, found_by: &[(u32, u16)], mut number: u32) -> Vec<String> {
    let mut steps = Vec::new();
    while number != 0 {
        let (before, step) = found_by[number as usize];
        steps.push(step);
        number = before;
    }
    let mut world = start.clone();
    let mut told = Vec::new();
    for step in steps.into_iter().rev() {
        let (name, next) = world.steps(course).swap_remove(usize::from(step));
        told.push(name);
        world = next.expect("it was a step").normal();
    }
    told
}

/// Two that may act for one lease at most, from nothing.
const BOTH: Course = Course {
    proxies: 2,
    leases: [LEASE; 2],
    from_nothing: false,
    drift: false,
    emptied: false,
    restored: None,
    away: false,
    old: None,
    leaves: false,
    unheard: 1,
};

const SHORTER: [u64; 2] = [LEASE, 1];

/// The register is restored, to a record of long ago.
const OLD: Course = Course { restored: Some(2), old: Some(Tenure::Serving), unheard: 0, ..BOTH };

fn courses() -> Vec<(&'static str, Course)> {
    vec![
        ("from nothing", Course { from_nothing: true, unheard: 0, ..BOTH }),
        ("answers that do not come", BOTH),
        ("clocks that lose ticks", Course { drift: true, unheard: 0, ..BOTH }),
        ("a planned change", Course { leaves: true, ..BOTH }),
        ("a register that is emptied", Course { emptied: true, ..BOTH }),
        ("a register that is restored", Course { restored: Some(LEASE), unheard: 0, ..BOTH }),
        ("... to a record of long ago", OLD),
        ("... to one that was free", Course { restored: Some(2), old: Some(Tenure::Free), unheard: 0, ..BOTH }),
        ("a candidate with a shorter lease", Course { leases: SHORTER, ..BOTH }),
        ("a candidate with a longer lease", Course { leases: [1, LEASE], ..BOTH }),
        ("... and a register that is emptied", Course { leases: SHORTER, emptied: true, ..BOTH }),
        ("... or restored to a record of long ago", Course { leases: SHORTER, ..OLD }),
        ("a register that is away", Course { away: true, ..BOTH }),
    ]
}

fn tell(name: &str, walked: &Walked, begun: Instant) {
    let result =
        walked.wrong.as_ref().map_or("holds".to_owned(), |(what, story)| format!("{what}\n   {}", story.join("\n   ")));
    eprintln!("{name}: {} states in {:?}: {result}", walked.states, begun.elapsed());
}

const MOST: usize = 1_500_000;

#[test]
fn one_proxy_acts_at_a_time_whatever_happens() {
    // All of them take half a minute.
    let all = std::env::var_os("RESILVER_WALK").is_some();
    let courses = courses().into_iter().filter(|(_, course)| all || course.is_walked_always());
    for (name, course) in courses {
        let begun = Instant::now();
        let walked = walk(&course, MOST);
        tell(name, &walked, begun);
        assert!(walked.wrong.is_none() && walked.acted, "{name}");
        assert_eq!(walked.taken_over, !course.away, "{name}: a register that is away replaces nobody");
    }
}

/// Without a rule something goes wrong: named with it is what may then happen.
#[test]
fn each_rule_is_missed() {
    let away = |walked: &Walked| walked.taken_over;
    let wrong = |walked: &Walked| walked.wrong.is_some();
    let both = Course { unheard: 1, ..BOTH };
    let restored = Course { restored: Some(2), unheard: 0, ..BOTH };
    // Of `HeartbeatsAreUnique` a test beside this one tells: that takes too many steps.
    let rules: [(Rule, Course, Missed<'_>); 12] = [
        (Rule::LeaseFromAsking, BOTH, &wrong),
        (Rule::ReadExtendsNothing, both, &wrong),
        (Rule::UnknownIsNotMade, both, &wrong),
        (Rule::ClaimWaits, Course { drift: true, unheard: 0, ..BOTH }, &wrong),
        (Rule::LongerLeaseWaits, Course { leases: SHORTER, ..BOTH }, &wrong),
        (Rule::SwapCompares, both, &wrong),
        (Rule::AnsweredPollsCount, Course { away: true, ..BOTH }, &away),
        (Rule::FreeIsChecked, Course { old: Some(Tenure::Free), ..restored }, &wrong),
        (Rule::AbsentIsChecked, Course { emptied: true, ..BOTH }, &wrong),
        (Rule::FencedByRecord, BOTH, &wrong),
        (Rule::GenerationAboveMarks, Course { old: Some(Tenure::Serving), ..restored }, &wrong),
        (Rule::MarksBeforeResuming, restored, &wrong),
    ];
    for (rule, course, goes_wrong) in rules {
        let begun = Instant::now();
        let walked = without(Some(rule), || walk(&course, MOST));
        tell(&format!("without {rule:?}"), &walked, begun);
        assert!(goes_wrong(&walked), "nothing went wrong without {rule:?}");
    }
}
