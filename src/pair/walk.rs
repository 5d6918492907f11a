//! Every sequence of events, breadth first over distinct states until no new one appears, with a
//! shadow of what the two nodes hold.
//!
//! | rule | protected by (in `mod.rs`) |
//! |---|---|
//! | 1 only the diagram's arrows | the `match` arms of `apply` and `lost`; `legal` asserts |
//! | 2 what missed a write does not lead before it is purged | `BackSame`: the guard `p == place`; `Purged`: only with `in_sync: None` |
//! | 3 the last full copy is not deposed on suspicion | `lost`, Recovering: `Dark { in_sync: Some(leader), .. }`; Degraded: `then_some(leader)` |
//! | 4 close, then record, then open | `edge`: `Gate::Closing`; `closed`: `Gate::Recording` |
//! | 5 term and epoch | `advance`: the two increments |
//! | 6 no panic, nothing the gate forbids | the gate in the patterns of `BeginRecovery`, `HandBack`, `Drained`, `Recorded`, `closed` |
//! | 7 hand-back only from Recovering | the pattern of `HandBack` |
//! | 10 under a foreign session nobody is promoted | `self.foreign` in `apply` and `lost` |
//! | 8 a closing gate waits for no lost node | `void_while_closing`, `edge(.., Some(place))` in `lost` |
//! | 9 what is listed as different is all that differs | `keeps_difference` |
//! | 11 what leads with the rest missed no more than was deleted | `Kept::lost_by`, `Kept::may_lead` |

use std::collections::{HashSet, VecDeque};

use super::*;
use Place::{Backup, Primary};

/// What a node holds of the pair, as an all-seeing observer would say.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Holds {
    /// Every acknowledged write.
    Full,
    /// Items that missed a write.
    Stale,
    /// Copies of which some are unverified.
    Unverified,
    /// Verified copies of a part.
    Part,
    Empty,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    pair: Pair,
    holds: [Holds; 2],
    /// In use, as far as the control plane knows.
    up: [bool; 2],
    /// Places whose answers some operation may be waiting for while the gate closes.
    waits: [bool; 2],
    /// The route before, while the gate closes or records.
    route: Option<State>,
    /// Who led when the gate was last open with a leader; whether the term has changed, and whether
    /// its memory went, since then.
    led: Option<(Place, bool, bool)>,
    job: bool,
    /// The control plane has a list of the keys that differ; and whether it is true that nothing
    /// else does.
    listed: bool,
    list_is_true: bool,
    /// Which nodes it knows to have kept their memory since that list begins; and whether what each
    /// holds under other keys is true.
    kept: Kept,
    rest_is_true: [bool; 2],
    /// How it came to this; for the message of a failure.
    story: Vec<String>,
}

const PLACES: [Place; 2] = [Primary, Backup];

fn at<T: Copy>(pair: &[T; 2], place: Place) -> T {
    pair[place as usize]
}

/// The arrows as this file understands the diagram, written a second time on purpose.
fn arrow(from: State, to: State, event: Event) -> bool {
    use State::{Dark, Degraded, Mirrored, Recovering};
    match (from, to, event) {
        (Mirrored, Degraded { leader }, Event::Lost(p, ..) | Event::Distrust(p)) => leader == p.other(),
        (Mirrored, Degraded { leader: Primary }, Event::Foreign(false)) => true,
        (
            Mirrored,
            Dark { in_sync: Some(Primary), fallback: Some(Backup) },
            Event::Lost(Primary, Loss::Suspected, _),
        ) => true,
        (Mirrored, Dark { in_sync: Some(Backup), fallback: None }, Event::Lost(Primary, Loss::MemoryGone, _)) => true,
        (
            Dark { in_sync: Some(s), fallback: a @ Some(_) },
            Dark { in_sync: b, fallback: None },
            Event::Lost(p, Loss::MemoryGone, _),
        ) if s == p => a == b,
        (Degraded { leader: a }, Recovering { leader: b }, Event::BeginRecovery) => a == b,
        (Degraded { leader }, Dark { in_sync: Some(s), .. }, Event::Lost(p, Loss::Suspected, _)) => {
            leader == p && s == p
        }
        (Degraded { leader }, Dark { in_sync: None, .. }, Event::Lost(p, Loss::MemoryGone, _)) => leader == p,
        (Recovering { leader }, Dark { in_sync: Some(s), fallback: None }, Event::Lost(p, ..)) => leader == p && s == p,
        (Recovering { leader: a }, Degraded { leader: b }, Event::Lost(p, ..)) => a == b && p == a.other(),
        (Recovering { leader: a }, Degraded { leader: b }, Event::ResyncEnded(_)) => a == b,
        (Recovering { .. }, Mirrored, Event::Drained(true)) => true,
        (Dark { in_sync: Some(s), .. }, Degraded { leader }, Event::BackSame(p)) => s == p && leader == p,
        (Dark { in_sync: Some(s), fallback: Some(f) }, Degraded { leader }, Event::Lost(p, Loss::MemoryGone, _)) => {
            s == p && leader == f
        }
        (
            Dark { in_sync: Some(s), fallback: None },
            Dark { in_sync: None, .. },
            Event::Lost(p, Loss::MemoryGone, _),
        ) => s == p,
        (Dark { in_sync: None, .. }, Degraded { leader }, Event::Purged(p)) => leader == p,
        (Dark { .. }, Degraded { leader }, Event::Promote(p)) => leader == p,
        // What Dark remembers: the fallback comes and goes, a flush voids both.
        (Dark { in_sync: a, .. }, Dark { in_sync: b, fallback }, Event::Undone(p)) => {
            a == b && a != fallback && fallback == Some(p)
        }
        (Dark { in_sync: a, fallback: Some(f) }, Dark { in_sync: b, fallback: None }, Event::Lost(p, ..)) => {
            a == b && f == p
        }
        (Dark { .. }, Dark { in_sync: None, fallback: None }, Event::Flushed) => true,
        _ => false,
    }
}

impl World {
    fn start(state: State, holds: [Holds; 2], up: [bool; 2]) -> World {
        let mut pair = Pair::new(Epoch(1), Term(1));
        let effects = pair.apply(Event::Start(state, Reason::Starting));
        assert_eq!(effects, [Effect::Close { void: None }]);
        let (listed, list_is_true) = (false, false);
        World {
            pair,
            holds,
            up,
            waits: [false; 2],
            route: None,
            led: None,
            job: false,
            listed,
            list_is_true,
            kept: Kept::default(),
            rest_is_true: [false; 2],
            story: Vec::new(),
        }
    }

    /// The state without what only counts up.
    fn key(&self) -> World {
        let mut key = self.clone();
        key.pair.epoch = Epoch(0);
        key.pair.term = Term(0);
        key.pair.reason = Reason::None;
        key.story = Vec::new();
        key
    }

    /// Takes an event and judges what comes of it.
    fn apply(&mut self, event: Event) {
        let before = self.pair.clone();
        let effects = self.pair.apply(event);
        let after = &self.pair.clone();
        let told = || format!("{event:?} on {before:?}");
        let changed = before.state != after.state;
        if changed {
            assert!(arrow(before.state, after.state, event), "rule 1: {} -> {:?}", told(), after.state);
        }
        judge_effects(&before, after, event, &effects);
        let explained = after.state == State::Mirrored || after.reason != Reason::None;
        assert!(explained, "rule 11: {} is {:?} for no reason", told(), after.state);
        self.listed &= !changed || before.state.keeps_difference(after.state);
        if let (State::Mirrored, State::Degraded { leader }) = (before.state, after.state) {
            // Counted from here, though writes miss it only once the gate opens: a second loss
            // inside the barrier is beyond the promise.
            self.miss(leader.other());
        }
        if let (State::Dark { fallback: Some(f), .. }, State::Degraded { leader }) = (before.state, after.state)
            && leader != f
        {
            // As above: the follower of a pair that went dark under a foreign session, and whose
            // leader came back.
            self.miss(f);
        }
        if let (Some(led), true) = (&mut self.led, before.term != after.term) {
            led.1 = true;
        }
        for effect in effects {
            match effect {
                Effect::Close { void } => {
                    if before.gate != Gate::Closing {
                        let route = if before.gate == Gate::Open { Some(before.state) } else { None };
                        self.waits = [false; 2];
                        for place in PLACES {
                            self.waits[place as usize] = match route {
                                Some(State::Mirrored | State::Recovering { .. }) => true,
                                Some(State::Degraded { leader }) => leader == place,
                                _ => false,
                            };
                        }
                        self.route = route;
                    }
                    if let Some(place) = void {
                        self.waits[place as usize] = false;
                    }
                }
                Effect::AbortResync => self.job = false,
                Effect::Open => self.opened(),
                Effect::RecordAlone { .. } | Effect::RecordFilling { .. } | Effect::RecordSync { .. } => {}
                Effect::FinishCopies => assert!(self.job, "{}: nobody copies", told()),
            }
        }
        if !matches!(self.pair.state, State::Recovering { .. }) && before.state != self.pair.state {
            self.job = false;
        }
        if self.pair.gate == Gate::Closing {
            for place in PLACES {
                assert!(
                    at(&self.up, place) || !at(&self.waits, place),
                    "rule 8: the gate waits for the lost {place} after {}",
                    told()
                );
            }
        }
    }

    fn opened(&mut self) {
        self.waits = [false; 2];
        self.route = None;
        let Some(leader) = self.pair.state.leader() else { return };
        let (mine, other) = (at(&self.holds, leader), at(&self.holds, leader.other()));
        assert!(!matches!(mine, Holds::Stale | Holds::Unverified), "rule 2: {leader} leads, stale: {self:?}");
        assert!(mine == Holds::Full || other != Holds::Full, "rule 3: the full copy is deposed: {self:?}");
        if let Some((place, term_changed, memory_gone)) = self.led {
            assert!(
                term_changed || (place == leader && !memory_gone),
                "rule 5: the term is still that of {place}: {self:?}"
            );
        }
        self.led = Some((leader, false, false));
        if mine != Holds::Full {
            // The most that is left: from now on it is the truth. The other one may come back with
            // more.
            self.list_is_true = false;
            self.rest_is_true = [false; 2];
            self.holds[leader as usize] = Holds::Full;
            self.miss(leader.other());
        }
        if self.pair.state == State::Mirrored {
            assert_eq!(self.holds, [Holds::Full; 2], "mirrored but not equal: {self:?}");
            (self.listed, self.list_is_true) = (true, true);
            self.kept.mirrored();
            self.rest_is_true = [true; 2];
        }
    }

    /// The control plane would let the node lead with what it did not miss.
    fn may_lead_with_rest(&self, place: Place) -> bool {
        at(&self.up, place) && self.listed && !self.job && self.kept.may_lead(self.pair.state, place)
    }

    fn miss(&mut self, place: Place) {
        if at(&self.holds, place) != Holds::Empty {
            self.holds[place as usize] = Holds::Stale;
        }
    }

    fn lose(&mut self, place: Place, loss: Loss) {
        self.up[place as usize] = false;
        if matches!(self.pair.state, State::Dark { fallback: Some(f), .. } if f == place) {
            // It was kept from leading, and is given up when it fails itself: two failures, or two
            // proxies and one.
            self.miss(place);
        }
        if loss == Loss::MemoryGone {
            self.holds[place as usize] = Holds::Empty;
            self.list_is_true = false;
            self.rest_is_true[place as usize] = false;
            if let Some(led) = &mut self.led {
                led.2 |= led.0 == place;
            }
        }
        // From the start on both nodes count: before the first job the follower holds no copy, and
        // has made every write.
        let other = place.other();
        let adopts = self.pair.state == State::Recovering { leader: place } && !self.job;
        let fit = adopts && at(&self.up, other) && at(&self.holds, other) == Holds::Part;
        self.apply(Event::Lost(place, loss, Reason::Timeout));
        if fit {
            self.apply(Event::Undone(other));
            if loss == Loss::MemoryGone {
                self.apply(Event::Lost(place, loss, Reason::Timeout));
            }
        }
    }

    /// Everything that can happen next in reality.
    fn next(&self) -> Vec<(String, World)> {
        let mut all = Vec::new();
        let mut add = |name: String, step: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            world.story.push(name.clone());
            step(&mut world);
            all.push((name, world));
        };
        let (state, gate) = (self.pair.state, self.pair.gate);
        for place in PLACES {
            // Suspicion and proof may also come for a node that is lost already.
            add(format!("lose {place}"), &|w| w.lose(place, Loss::Suspected));
            add(format!("{place}'s memory gone"), &|w| w.lose(place, Loss::MemoryGone));
            if !at(&self.up, place) {
                add(format!("{place} counts as gone, and is not"), &|w| {
                    if at(&w.holds, place) != Holds::Empty {
                        w.holds[place as usize] = Holds::Stale;
                    }
                    if let Some(led) = &mut w.led {
                        led.2 |= led.0 == place;
                    }
                    w.apply(Event::Lost(place, Loss::MemoryGone, Reason::Refused));
                });
                add(format!("{place} back, same memory"), &|w| {
                    w.up[place as usize] = true;
                    w.listed &= at(&w.holds, place) != Holds::Empty;
                    w.apply(Event::BackSame(place));
                });
                for empty in [true, false] {
                    add(format!("{place} back, with another memory, empty: {empty}"), &|w| {
                        w.listed &= w.may_lead_with_rest(place.other());
                        w.kept.lost_by(place);
                        w.lose(place, Loss::MemoryGone);
                        w.up[place as usize] = true;
                        if !empty {
                            w.holds[place as usize] = Holds::Stale;
                        } else if !w.may_lead_with_rest(place.other()) {
                            w.apply(Event::Purged(place));
                        }
                    });
                }
            }
            let orphaned = state == State::Dark { in_sync: None, fallback: None };
            if at(&self.up, place) && orphaned && gate == Gate::Open {
                if self.may_lead_with_rest(place) {
                    assert!(at(&self.rest_is_true, place), "rule 11: more is old on {place} than is listed: {self:?}");
                    add(format!("{place} purged of what it missed"), &|w| {
                        w.holds[place as usize] = Holds::Part;
                        w.apply(Event::Purged(place));
                    });
                }
                add(format!("{place} purged"), &|w| {
                    w.holds[place as usize] = Holds::Empty;
                    w.list_is_true = false;
                    w.apply(Event::Purged(place));
                });
            }
            if matches!(state, State::Dark { .. }) && at(&self.up, place) && !self.job {
                add(format!("{place} leads, says the operator"), &|w| {
                    // What it holds counts from now on, and the other one's acknowledged writes do
                    // not: that is what was asked for.
                    w.holds[place as usize] = Holds::Full;
                    w.miss(place.other());
                    w.rest_is_true = [false; 2];
                    w.listed = false;
                    w.apply(Event::Promote(place));
                });
            }
            if state == (State::Degraded { leader: place.other() }) && at(&self.up, place) && gate == Gate::Open {
                if self.listed {
                    assert!(self.list_is_true, "rule 9: more differs than is listed: {self:?}");
                    add(format!("{place} purged of what is listed, resync"), &|w| {
                        w.holds[place as usize] = Holds::Unverified;
                        w.job = true;
                        w.apply(Event::BeginRecovery);
                    });
                }
                add(format!("{place} purged, resync"), &|w| {
                    w.holds[place as usize] = Holds::Unverified;
                    (w.listed, w.list_is_true) = (false, false);
                    w.job = true;
                    w.apply(Event::BeginRecovery);
                });
            }
            if !self.job
                && at(&self.up, place)
                && matches!(state, State::Dark { .. })
                && at(&self.holds, place) == Holds::Unverified
            {
                add(format!("copies on {place} undone"), &|w| {
                    w.holds[place as usize] = Holds::Part;
                    w.apply(Event::Undone(place));
                });
            }
            add(format!("distrust {place}"), &|w| w.apply(Event::Distrust(place)));
        }
        add("another proxy comes".into(), &|w| w.apply(Event::Foreign(true)));
        add("the other proxy is gone".into(), &|w| {
            w.apply(Event::Foreign(false));
            if let State::Dark { in_sync: Some(place), .. } = w.pair.state
                && at(&w.up, place)
            {
                w.apply(Event::BackSame(place));
            }
        });
        if gate == Gate::Open {
            match state {
                State::Degraded { leader } => add("write".into(), &|w| w.miss(leader.other())),
                State::Mirrored | State::Recovering { .. } | State::Dark { .. } => {}
            }
            add("flush_all".into(), &|w| {
                for place in PLACES {
                    w.rest_is_true[place as usize] &= at(&w.up, place);
                    if !at(&w.up, place) {
                        w.miss(place);
                    } else if w.pair.state.leader().is_none() {
                        w.holds[place as usize] = Holds::Empty;
                    }
                }
                // What the flush has ended is not listed, and the list is given up.
                (w.listed, w.list_is_true) =
                    (w.listed && state == State::Mirrored, w.list_is_true && state == State::Mirrored);
                w.apply(Event::Flushed);
            });
        }
        if let State::Recovering { leader } = state
            && !self.job
            && gate == Gate::Open
            && at(&self.up, leader.other())
        {
            add("adoption begins".into(), &|w| {
                w.holds[leader.other() as usize] = Holds::Unverified;
                w.job = true;
                w.apply(Event::BeginRecovery);
            });
        }
        if self.job {
            add("hand-back".into(), &|w| w.apply(Event::HandBack));
            add("its source cannot be enumerated".into(), &|w| w.apply(Event::CannotEnumerate));
            add("resync ends".into(), &|w| {
                w.job = false;
                w.apply(Event::ResyncEnded(Reason::ResyncFailed));
            });
            if gate == Gate::Draining {
                add("more copies to come".into(), &|w| w.apply(Event::Drained(false)));
                add("all copied".into(), &|w| {
                    // Not handed back under a foreign session: then it goes on being copied to,
                    // unverified.
                    if let State::Recovering { leader } = w.pair.state
                        && !w.pair.foreign
                    {
                        w.holds[leader.other() as usize] = Holds::Full;
                    }
                    w.apply(Event::Drained(true));
                });
            }
        }
        if gate == Gate::Closing {
            add("closed".into(), &|w| {
                w.waits = [false; 2];
                w.apply(Event::Closed);
            });
        }
        if gate == Gate::Recording {
            add("recorded".into(), &|w| w.apply(Event::Recorded));
        }
        all
    }
}

/// Rules 4 to 7: what an event may ask for, by the state it met.
fn judge_effects(before: &Pair, after: &Pair, event: Event, effects: &[Effect]) {
    let told = format!("{event:?} on {before:?}: {effects:?} -> {after:?}");
    let closes = effects.iter().filter(|e| matches!(e, Effect::Close { .. })).count();
    let aborts = usize::from(effects.first() == Some(&Effect::AbortResync));
    assert!(closes <= 1 && effects.len() <= 1 + aborts, "rule 4: one thing at a time: {told}");
    let void = match event {
        Event::Lost(place, ..) => Some(place),
        _ => None,
    };
    if closes == 1 {
        // A follower that leads on proof was never in flight to the one whose memory is gone: that
        // one was voided when it was lost.
        let proof = matches!(before.state, State::Dark { fallback: Some(_), .. }) && after.state.leader().is_some();
        let expected = if proof { None } else { void };
        assert_eq!(effects.last(), Some(&Effect::Close { void: expected }), "rule 4: {told}");
        assert_eq!(after.gate, Gate::Closing, "rule 4: {told}");
    }
    if before.state.leader() != after.state.leader()
        || std::mem::discriminant(&before.state) != std::mem::discriminant(&after.state)
    {
        assert!(after.epoch > before.epoch, "rule 5: {told}");
        let hands_back = event == Event::Drained(true) && !before.foreign;
        assert!(closes == 1 || hands_back, "rule 4: an edge that does not close: {told}");
        assert!(!hands_back || before.gate == Gate::Draining, "rule 4: {told}");
        if after.state.leader().is_some_and(|l| Some(l) != before.state.leader()) {
            assert_ne!(before.term, after.term, "rule 5: {told}");
        }
    }
    if before.foreign
        && let Some(leader) = after.state.leader()
        && !matches!(event, Event::Promote(_))
    {
        let waited_for = matches!(before.state, State::Dark { in_sync: Some(p), .. } if p == leader);
        assert!(before.state.leader() == Some(leader) || waited_for, "rule 10: {leader} is promoted: {told}");
        let handed_back = before.state != State::Mirrored && after.state == State::Mirrored;
        assert!(!handed_back, "rule 10: {told}");
    }
    let aborts_expected = matches!((before.state, event), (State::Recovering { .. }, Event::Lost(..)));
    assert_eq!(aborts == 1, aborts_expected, "rule 4: {told}");
    for effect in effects {
        let fits = match *effect {
            Effect::Close { .. } | Effect::AbortResync => true,
            Effect::Open => match event {
                Event::Closed => before.gate == Gate::Closing && after.state.leader().is_none(),
                Event::Recorded => before.gate == Gate::Recording,
                Event::Drained(clean) => before.gate == Gate::Draining && (!clean || before.foreign),
                _ => false,
            },
            Effect::RecordAlone { on } => event == Event::Closed && after.state == State::Degraded { leader: on },
            Effect::RecordFilling { on } => {
                event == Event::Closed && after.state == State::Recovering { leader: on.other() }
            }
            Effect::RecordSync { follower } => match event {
                // Whoever was filled is recorded first: cut short, the newest record then names a
                // node that is full.
                Event::Drained(true) => before.state == State::Recovering { leader: follower.other() },
                Event::Closed => after.state == State::Mirrored,
                _ => false,
            },
            Effect::FinishCopies => event == Event::Closed && before.handing_back && after.gate == Gate::Draining,
        };
        assert!(fits, "rule 6: {told}");
        if matches!(effect, Effect::RecordAlone { .. } | Effect::RecordFilling { .. } | Effect::RecordSync { .. }) {
            assert_eq!(after.gate, Gate::Recording, "rule 4: {told}");
        }
    }
    if event == Event::HandBack && !effects.is_empty() {
        assert!(matches!(before.state, State::Recovering { .. }) && before.gate == Gate::Open, "rule 7: {told}");
    }
    if event == Event::BeginRecovery && !effects.is_empty() {
        // Before the survivor is recorded as leading alone, a crash would leave the follower
        // looking in sync.
        assert_eq!(before.gate, Gate::Open, "rule 6: {told}");
    }
    if after.gate == Gate::Open && before.gate != Gate::Open {
        assert_eq!(effects, [Effect::Open], "rule 4: {told}");
    }
}

fn walk(starts: Vec<World>) -> Vec<World> {
    let mut seen: HashSet<World> = HashSet::new();
    let mut queue: VecDeque<World> = starts.into();
    let mut reached = Vec::new();
    while let Some(world) = queue.pop_front() {
        for (_, next) in world.next() {
            if seen.insert(next.key()) {
                queue.push_back(next);
            }
        }
        reached.push(world);
    }
    reached
}

fn starts() -> Vec<World> {
    use Holds::{Empty, Full, Part, Stale};
    let dark = |in_sync| State::Dark { in_sync, fallback: None };
    vec![
        World::start(State::Mirrored, [Full, Full], [true, true]),
        World::start(State::Degraded { leader: Backup }, [Stale, Full], [true, true]),
        World::start(State::Degraded { leader: Primary }, [Full, Empty], [true, false]),
        World::start(dark(Some(Backup)), [Stale, Full], [true, false]),
        World::start(dark(None), [Stale, Empty], [true, false]),
        // Both nodes' items count: the follower's are a part that may lead if the leader's memory
        // is gone.
        World::start(State::Recovering { leader: Primary }, [Full, Part], [true, true]),
        World::start(State::Dark { in_sync: Some(Primary), fallback: Some(Backup) }, [Full, Part], [false, true]),
    ]
}

/// Every distinct state that any sequence of real events can reach; the rules are asserted on the
/// way.
#[test]
fn every_sequence_of_events_keeps_the_rules() {
    let reached = walk(starts());
    for state in [State::Mirrored, State::Recovering { leader: Primary }, State::Dark { in_sync: None, fallback: None }]
    {
        for gate in [Gate::Open, Gate::Closing] {
            assert!(
                reached.iter().any(|w| w.pair.state == state && w.pair.gate == gate),
                "{state:?} {gate:?} was never reached"
            );
        }
    }
    let fallback = |w: &World| matches!(w.pair.state, State::Dark { fallback: Some(_), .. });
    assert!(reached.iter().any(fallback) && reached.iter().any(|w| w.pair.gate == Gate::Draining));
    let rest = |w: &World| w.story.last().is_some_and(|step| step.ends_with("purged of what it missed"));
    assert!(reached.iter().any(rest), "nobody led with the rest");
    assert!(reached.len() > 1000, "{}", reached.len());
}

/// Events that cannot happen, or come late, in every reachable state: no panic, no arrow that is
/// not in the diagram, no effect that the gate forbids.
#[test]
fn no_event_in_any_state_does_what_the_gate_forbids() {
    let mut events =
        vec![Event::BeginRecovery, Event::HandBack, Event::Drained(true), Event::Drained(false), Event::Closed];
    events.extend([Event::Recorded, Event::Flushed, Event::ResyncEnded(Reason::Cancelled)]);
    for place in PLACES {
        events.extend([Event::BackSame(place), Event::Purged(place), Event::Undone(place), Event::Distrust(place)]);
        events.extend([Event::Promote(place), Event::Foreign(true), Event::Foreign(false)]);
        events.extend([Loss::Suspected, Loss::MemoryGone].map(|loss| Event::Lost(place, loss, Reason::Reset)));
    }
    let pairs: HashSet<Pair> = walk(starts()).into_iter().map(|w| w.key().pair).collect();
    for before in pairs {
        for &event in &events {
            let mut after = before.clone();
            let effects = after.apply(event);
            let arrow = before.state == after.state || arrow(before.state, after.state, event);
            assert!(arrow, "{event:?} on {before:?} -> {after:?}");
            judge_effects(&before, &after, event, &effects);
        }
    }
}

/// With `--resync=off` a node is taken at its word; the arrows are still the diagram's, and every
/// edge still closes.
#[test]
fn taken_back_leads_or_follows_without_a_refill() {
    for world in walk(starts()) {
        for place in PLACES {
            let mut pair = world.pair.clone();
            let (before, effects) = (pair.clone(), pair.apply(Event::TakenBack(place)));
            match before.state {
                State::Degraded { leader } if leader != place => assert_eq!(pair.state, State::Mirrored),
                State::Dark { .. } => assert_eq!(pair.state, State::Degraded { leader: place }),
                _ => {
                    assert_eq!((pair, effects), (before, vec![]));
                    continue;
                }
            }
            assert_eq!(effects, [Effect::Close { void: None }]);
            assert!(pair.epoch > before.epoch && pair.gate == Gate::Closing);
        }
    }
}

/// Records of several ages are found at the start, in any order: what is recorded from then on is
/// later than all of them.
#[test]
fn the_newest_record_gives_the_epoch() {
    let epochs = [Epoch(5), Epoch(9), Epoch(7)];
    for first in 0..epochs.len() {
        let (mut late, mut early) = (Pair::new(Epoch(1_000), Term(1)), Pair::new(Epoch(1), Term(1)));
        for i in 0..epochs.len() {
            late.seed(epochs[(first + i) % epochs.len()]);
            early.seed(epochs[(first + i) % epochs.len()]);
        }
        assert_eq!((late.epoch(), early.epoch()), (Epoch(1_000), Epoch(10)));
    }
}

/// A node that was away at the start carries a later record: the next one written is later still.
/// Of the terms that it names the pair has none after.
#[test]
fn a_later_record_is_outranked() {
    let mut pair = Pair::new(Epoch(10), Term(4));
    assert!(!pair.outrank(Epoch(10)), "its own record, read back");
    assert_eq!((pair.epoch(), pair.term()), (Epoch(10), Term(4)));
    assert!(pair.outrank(Epoch(20)));
    assert!(!pair.rise_above(Term(3)) && pair.rise_above(Term(4)));
    assert_eq!((pair.epoch(), pair.term()), (Epoch(21), Term(5)));
    assert!(pair.rise_above(Term(9)));
    assert_eq!(pair.term(), Term(10));
}

/// A leader whose memory counts as gone may yet come back with it: once a follower that holds a
/// part is to lead in its place, the list of what that follower missed says nothing.
#[test]
fn a_partly_filled_follower_ends_the_list_also_in_two_steps() {
    for foreign in [false, true] {
        let mut pair = Pair::new(Epoch(10), Term(4));
        pair.state = State::Recovering { leader: Primary };
        pair.gate = Gate::Open;
        pair.foreign = foreign;
        let mut kept = true;
        for event in [
            Event::Lost(Primary, Loss::Suspected, Reason::Refused),
            Event::Undone(Backup),
            Event::Lost(Primary, Loss::MemoryGone, Reason::Refused),
            Event::BackSame(Backup),
        ] {
            let before = pair.state;
            pair.apply(event);
            kept &= before == pair.state || before.keeps_difference(pair.state);
        }
        assert_eq!(pair.state, State::Degraded { leader: Backup });
        assert!(!kept, "foreign: {foreign}");
    }
}
