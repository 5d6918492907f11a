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
//! | 12 only what counts is adopted | `Plan`: all that sets `first`, and `NoteWrites` |
//! | 13 a record that says "adopting" is true | `Plan`: all that sets `adopting` |
//! | 14 nothing that counts is purged unasked | `Plan`: all that keeps `first`, and `goes_on_adopting` |
//! | 15 a follower that made all writes leads when its leader is gone | `FollowerMayLead` |

use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

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
    /// How the follower is being filled.
    job: Option<Fill>,
    /// How it is filled when that is next begun.
    plan: Plan,
    /// The control plane has a list of the keys that differ; and whether it is true that nothing
    /// else does.
    listed: bool,
    list_is_true: bool,
    /// Keys that the follower refused while the pair was mirrored stand in that list.
    refused: bool,
    /// Whether what each node holds under other keys is true.
    rest_is_true: [bool; 2],
    /// What clients write is noted.
    noted: bool,
    /// Whether nothing that was deleted comes back when what only this node holds is added to the
    /// other one, except for what is noted.
    counts: [bool; 2],
    /// Whether the node has made every acknowledged write, and holds no copy.
    made_all: [bool; 2],
    /// A flush has replaced the record that says so, though it was refused.
    unsaid: bool,
    /// A job that adopted was stopped before it copied anything to that node.
    stopped: Option<Place>,
    /// The memory is gone with which the node was last in use: none can come back with it.
    gone: [bool; 2],
    /// Nodes that were seen since the start.
    seen: [bool; 2],
    /// How it came to this; for the message of a failure.
    story: Story,
}

/// What has happened, the last first.
#[derive(Clone, Default)]
struct Story(Option<Arc<(String, Story)>>);

impl Story {
    fn last(&self) -> Option<&str> {
        self.0.as_ref().map(|told| told.0.as_str())
    }
}

impl fmt::Debug for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(told) => write!(f, "{:?}; {}", told.1, told.0),
            None => f.write_str("start"),
        }
    }
}

/// One world is another one, however it came to it.
impl PartialEq for Story {
    fn eq(&self, _: &Story) -> bool {
        true
    }
}

impl Eq for Story {}

impl Hash for Story {
    fn hash<H: Hasher>(&self, _: &mut H) {}
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
        World {
            pair,
            holds,
            up,
            waits: [false; 2],
            route: None,
            led: None,
            job: None,
            plan: Plan::default(),
            listed: false,
            list_is_true: false,
            refused: false,
            rest_is_true: [false; 2],
            noted: false,
            counts: [false; 2],
            made_all: [false; 2],
            unsaid: false,
            stopped: None,
            gone: [false; 2],
            seen: up,
            story: Story::default(),
        }
    }

    /// Its nodes were in use before: one that comes back has the memory that is known, or another.
    fn known(mut self) -> World {
        self.seen = [true; 2];
        self
    }

    /// As the start-up table says. `adopts`: both nodes' items count, the backup's beside what the
    /// primary holds.
    fn decided(mut self, fill: Option<Fill>, cut_off: Option<CutOff>) -> World {
        let adopts = fill == Some(Fill::Adopt);
        (self.counts[1], self.made_all[1]) = (adopts, adopts);
        self.plan(FillEvent::Decided { state: self.pair.state, fill, cut_off });
        self
    }

    /// As the control plane carries it out. Returns a follower that has lost the leader of its
    /// adoption.
    fn plan(&mut self, event: FillEvent) -> Option<Place> {
        let mut orphaned = None;
        for effect in self.plan.apply(event) {
            match effect {
                FillEffect::ListVoid => self.listed = false,
                FillEffect::ListBegins => {
                    // With the refused keys, where that is not the same time of being mirrored.
                    self.list_is_true = !self.refused;
                    self.listed = true;
                }
                FillEffect::NoteWrites => self.noted = true,
                FillEffect::ForgetWrites => self.noted = false,
                FillEffect::FollowerMayLead(place) => orphaned = Some(place),
            }
        }
        orphaned
    }

    /// The state without what only counts up, and what nothing asks for any more.
    fn key(&self) -> World {
        let mut key = self.clone();
        key.pair.epoch = Epoch(0);
        key.pair.term = Term(0);
        key.pair.reason = Reason::None;
        key.story = Story::default();
        key.list_is_true &= key.listed;
        for place in PLACES {
            key.gone[place as usize] &= !at(&key.up, place);
            key.rest_is_true[place as usize] &= key.plan.knows_difference(place, true);
        }
        // No event begins another adoption.
        if !key.plan.may_adopt() && key.job != Some(Fill::Adopt) {
            (key.counts, key.made_all) = ([false; 2], [false; 2]);
            if key.seen == [true; 2] {
                key.plan.forget_cut_off();
            }
        }
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
        let job = self.job.is_some();
        let orphaned = self.plan(FillEvent::Edge { event, before: before.state, after: after.state });
        if changed {
            (self.refused, self.unsaid) = (false, false);
        }
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
                Effect::AbortResync => {
                    if let (State::Recovering { leader }, Some(Fill::Adopt)) = (before.state, self.job) {
                        self.stopped = Some(leader.other());
                    }
                    self.job = None;
                }
                Effect::Open => self.opened(),
                Effect::RecordAlone { .. } | Effect::RecordFilling { .. } | Effect::RecordSync { .. } => {}
                Effect::FinishCopies => assert!(self.job.is_some(), "{}: nobody copies", told()),
            }
        }
        if !matches!(self.pair.state, State::Recovering { .. }) && before.state != self.pair.state {
            self.job = None;
        }
        if !matches!(self.pair.state, State::Dark { .. }) {
            self.stopped = None;
        }
        if let Some(follower) = orphaned
            && !job
        {
            // Nobody is at work there, whose end would tell: it has made every write.
            self.apply(Event::Undone(follower));
            if let Event::Lost(_, Loss::MemoryGone, _) = event {
                self.apply(event);
            }
        }
        if self.plan.is_adopting() && self.pair.gate == Gate::Open {
            let State::Recovering { leader } = self.pair.state else { panic!("rule 13: nobody adopts: {self:?}") };
            assert!(
                at(&self.made_all, leader.other()),
                "rule 13: a write missed the follower, or a copy stands there: {self:?}"
            );
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
        self.plan(FillEvent::Opened(self.pair.state));
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
            self.rest_is_true = [true; 2];
        }
    }

    /// The control plane would let the node lead with what it did not miss.
    fn may_lead_with_rest(&self, place: Place) -> bool {
        at(&self.up, place) && self.job.is_none() && self.plan.may_lead(self.pair.state, place, self.listed)
    }

    fn miss(&mut self, place: Place) {
        self.made_all[place as usize] = false;
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
            self.counts[place as usize] = false;
            self.made_all[place as usize] = false;
            self.gone[place as usize] = true;
            if let Some(led) = &mut self.led {
                led.2 |= led.0 == place;
            }
        }
        let follower = place.other();
        let adopts = self.pair.state == State::Recovering { leader: place } && self.job.is_none();
        let whole = adopts && at(&self.made_all, follower) && at(&self.counts, follower) && !self.unsaid;
        self.apply(Event::Lost(place, loss, Reason::Timeout));
        if whole && loss == Loss::MemoryGone && !self.pair.foreign {
            let leads = State::Degraded { leader: follower };
            assert_eq!(self.pair.state, leads, "rule 15: the follower has made every write: {self:?}");
        }
        if loss == Loss::MemoryGone {
            // Whoever leads now leads with what it has, and nobody is left to add it to.
            self.counts = [false; 2];
        }
    }

    /// A job begins, by the plan's way.
    fn begin(&mut self, place: Place, fill: Fill) {
        let leader = place.other();
        match fill {
            Fill::Missed => assert!(self.list_is_true, "rule 9: more differs than is listed: {self:?}"),
            Fill::Adopt => {
                self.judge_adoption(place);
                // One that begins in the middle deletes nothing first.
                let begun = matches!(self.pair.state, State::Recovering { .. });
                assert!(!begun || at(&self.made_all, place), "rule 12: what clients deleted comes back: {self:?}");
            }
            Fill::Empty | Fill::Compare | Fill::Purge => {}
        }
        let lost = fill != Fill::Adopt && at(&self.counts, place);
        assert!(!lost, "rule 14: what only {place} holds is lost by {fill:?}: {self:?}");
        self.plan(FillEvent::JobBegins(fill));
        self.job = Some(fill);
        if fill != Fill::Missed {
            self.list_is_true = false;
        }
        if fill != Fill::Adopt {
            self.copies_come(place);
        }
        self.apply(Event::BeginRecovery);
        assert_eq!(self.pair.state, State::Recovering { leader });
    }

    fn judge_adoption(&self, follower: Place) {
        assert!(at(&self.counts, follower), "rule 12: adopts what does not count: {self:?}");
    }

    fn copies_come(&mut self, place: Place) {
        self.holds[place as usize] = Holds::Unverified;
        self.counts[place as usize] = false;
        self.made_all[place as usize] = false;
    }

    /// A node that was away at the start is seen for the first time, with the memory that it had
    /// then.
    fn first_seen(&mut self, place: Place, word: Word, full: bool) {
        let listed = self.may_lead_with_rest(place.other());
        self.plan(FillEvent::OtherMemory { place, first: true, listed });
        (self.up[place as usize], self.seen[place as usize]) = (true, true);
        self.gone[place as usize] = false;
        self.plan(FillEvent::FirstWord(place, word));
        if full {
            self.apply(Event::BackSame(place));
        } else if !self.plan.follows_in_adoption(self.pair.state, place) {
            self.apply(Event::Lost(place, Loss::MemoryGone, Reason::MarkerLost));
            self.list_is_true = false;
            self.rest_is_true[place as usize] = false;
        }
    }

    /// Everything that can happen next in reality.
    fn next(&self) -> Vec<World> {
        let mut all = Vec::new();
        let mut add = |name: String, step: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            world.story = Story(Some(Arc::new((name, world.story))));
            step(&mut world);
            all.push(world);
        };
        let (state, gate) = (self.pair.state, self.pair.gate);
        for place in PLACES {
            // Suspicion and proof may also come for a node that is lost already.
            add(format!("lose {place}"), &|w| w.lose(place, Loss::Suspected));
            add(format!("{place}'s memory gone"), &|w| w.lose(place, Loss::MemoryGone));
            if !at(&self.up, place) && !at(&self.seen, place) {
                self.add_first_looks(place, &mut add);
            }
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
            }
            if !at(&self.up, place) && at(&self.seen, place) {
                if !at(&self.gone, place) {
                    add(format!("{place} back, same memory"), &|w| {
                        w.up[place as usize] = true;
                        w.apply(Event::BackSame(place));
                    });
                }
                for empty in [true, false] {
                    add(format!("{place} back, with another memory, empty: {empty}"), &|w| {
                        let listed = w.may_lead_with_rest(place.other());
                        w.plan(FillEvent::OtherMemory { place, first: false, listed });
                        w.lose(place, Loss::MemoryGone);
                        w.up[place as usize] = true;
                        w.gone[place as usize] = false;
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
                        w.plan(FillEvent::JobBegins(Fill::Missed));
                        w.holds[place as usize] = Holds::Part;
                        w.apply(Event::Purged(place));
                    });
                }
                add(format!("{place} purged"), &|w| {
                    w.plan(FillEvent::JobBegins(Fill::Purge));
                    w.holds[place as usize] = Holds::Empty;
                    w.counts[place as usize] = false;
                    w.list_is_true = false;
                    w.apply(Event::Purged(place));
                });
            }
            if matches!(state, State::Dark { .. }) && at(&self.up, place) && self.job.is_none() {
                add(format!("{place} leads, says the operator"), &|w| {
                    // What it holds counts from now on, and the other one's acknowledged writes do
                    // not: that is what was asked for.
                    w.holds[place as usize] = Holds::Full;
                    w.miss(place.other());
                    w.rest_is_true = [false; 2];
                    w.counts = [false; 2];
                    w.plan(FillEvent::Operator);
                    w.apply(Event::Promote(place));
                });
            }
            let lacks = state == (State::Degraded { leader: place.other() })
                || state == (State::Recovering { leader: place.other() }) && self.job.is_none();
            if lacks && at(&self.up, place) && at(&self.up, place.other()) && gate == Gate::Open && !self.pair.foreign {
                let empty = at(&self.holds, place) == Holds::Empty && matches!(state, State::Degraded { .. });
                for empty in if empty { vec![false, true] } else { vec![false] } {
                    let fill = self.plan.fill(state, place, empty, self.listed);
                    add(format!("resync of {place}: {fill:?}"), &|w| w.begin(place, fill));
                }
            }
            if self.job.is_none()
                && at(&self.up, place)
                && matches!(state, State::Dark { .. })
                && (at(&self.holds, place) == Holds::Unverified
                    || self.stopped == Some(place) && at(&self.made_all, place))
            {
                add(format!("copies on {place} undone"), &|w| {
                    w.holds[place as usize] = Holds::Part;
                    w.stopped = None;
                    w.apply(Event::Undone(place));
                });
            }
            add(format!("distrust {place}"), &|w| {
                if w.pair.state == (State::Degraded { leader: place.other() }) {
                    w.plan(FillEvent::Operator);
                }
                if w.pair.state == State::Mirrored || w.pair.state == (State::Degraded { leader: place.other() }) {
                    // It holds what it should not, says the operator.
                    w.list_is_true = false;
                    w.counts = [false; 2];
                }
                w.apply(Event::Distrust(place));
            });
        }
        add("another proxy comes".into(), &|w| w.apply(Event::Foreign(true)));
        add("the other proxy is gone".into(), &|w| {
            if !w.pair.foreign {
                return;
            }
            // What it has written, and deleted, nobody noted.
            (w.counts, w.list_is_true, w.rest_is_true) = ([false; 2], false, [false; 2]);
            w.plan(FillEvent::ForeignEnded(w.pair.state));
            w.job = None;
            w.apply(Event::ResyncEnded(Reason::ForeignSession));
            w.apply(Event::Foreign(false));
            if let State::Dark { in_sync: Some(place), .. } = w.pair.state
                && at(&w.up, place)
            {
                w.apply(Event::BackSame(place));
            }
        });
        if gate == Gate::Open {
            match state {
                State::Degraded { leader } => add("write".into(), &|w| {
                    let follower = leader.other();
                    w.counts[follower as usize] &= w.noted;
                    w.miss(follower);
                }),
                State::Mirrored | State::Recovering { .. } | State::Dark { .. } => {}
            }
            if state == State::Mirrored && !self.refused {
                add("an item is refused".into(), &|w| w.refused = true);
            }
            add("flush_all, refused by all".into(), &|w| {
                w.flush_sent();
                w.plan(FillEvent::Opened(w.pair.state));
            });
            add("flush_all".into(), &|w| {
                w.flush_sent();
                for place in PLACES {
                    w.rest_is_true[place as usize] &= at(&w.up, place);
                    if !at(&w.up, place) {
                        w.miss(place);
                    } else if w.pair.state.leader().is_none() {
                        w.holds[place as usize] = Holds::Empty;
                    }
                }
                // Items that have survived it.
                w.counts = [false; 2];
                w.made_all = [false; 2];
                (w.refused, w.unsaid) = (false, false);
                // What the flush has ended is not listed.
                w.list_is_true &= state == State::Mirrored;
                w.plan(FillEvent::Flushed(w.pair.state));
                w.apply(Event::Flushed);
                w.plan(FillEvent::Opened(w.pair.state));
            });
        }
        if let (State::Recovering { leader }, Gate::Open, Some(Fill::Adopt)) = (state, gate, self.job) {
            let follower = leader.other();
            // Both ask for the writes that were noted; without them the job ends.
            if self.noted {
                add("what clients wrote is made there".into(), &|w| {
                    w.holds[follower as usize] = Holds::Part;
                    w.made_all[follower as usize] = true;
                    w.plan(FillEvent::Adopting);
                    w.unsaid = false;
                });
                if self.plan.is_adopting() {
                    add("the leader holds everything".into(), &|w| {
                        w.judge_adoption(follower);
                        w.plan(FillEvent::Adopted);
                        w.job = Some(Fill::Compare);
                        w.copies_come(follower);
                    });
                }
            }
            add("it cannot be compared".into(), &|w| {
                // What only the follower holds is given up.
                w.counts = [false; 2];
                w.plan(FillEvent::CannotCompare);
                w.end_job(leader);
                let next = w.plan.fill(w.pair.state, follower, false, w.listed);
                assert!(!next.compares(), "rule 14: it would be compared for ever: {w:?}");
            });
        }
        if let (Some(fill), State::Recovering { leader }) = (self.job, state) {
            if fill != Fill::Adopt {
                add("hand-back".into(), &|w| w.apply(Event::HandBack));
            }
            add("its source cannot be enumerated".into(), &|w| w.apply(Event::CannotEnumerate));
            add("resync ends".into(), &|w| w.end_job(leader));
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

type Add<'a> = &'a mut dyn FnMut(String, &dyn Fn(&mut World));

impl World {
    fn end_job(&mut self, leader: Place) {
        self.job = None;
        if !self.plan.goes_on_adopting(self.pair.state, leader) {
            self.apply(Event::ResyncEnded(Reason::ResyncFailed));
        }
    }

    /// The record that says "adopting" is replaced on every node, behind the gate.
    fn flush_sent(&mut self) {
        self.unsaid |= self.plan.is_adopting();
        self.plan(FillEvent::FlushSent);
    }

    /// All that a node may say that was away at the start, and what it holds then.
    fn add_first_looks(&self, place: Place, add: Add<'_>) {
        add(format!("{place} seen, with another memory"), &|w| {
            w.counts[place as usize] = false;
            w.miss(place);
            w.first_seen(place, Word::Nothing, false);
        });
        let Some(CutOff { epoch, leader }) = self.plan.cut_off().filter(|_| !at(&self.gone, place)) else {
            return;
        };
        let (before, after) = (Epoch(epoch.0 - 1), Epoch(epoch.0 + 1));
        add(format!("{place} seen, in the middle of the adoption"), &|w| {
            w.first_seen(place, Word::Adopting(epoch), place == leader);
        });
        if place == leader {
            // The proxy before may have died before it wrote its last record here.
            add(format!("{place} seen, with an older record"), &|w| {
                w.first_seen(place, Word::Other(before), true);
            });
            add(format!("{place} seen, without a record"), &|w| {
                let full = w.plan.leads_adoption(place);
                w.first_seen(place, Word::Nothing, full);
            });
            // Where it is not awaited any more it counted as gone, and was not: two failures.
            if matches!(self.pair.state, State::Dark { in_sync: Some(p), .. } if p == place) {
                add(format!("{place} seen, it led alone since"), &|w| {
                    w.counts[place.other() as usize] = false;
                    w.miss(place.other());
                    w.first_seen(place, Word::Other(after), true);
                });
            }
        } else {
            for word in [Word::Nothing, Word::Other(after), Word::Other(before), Word::Adopting(before)] {
                add(format!("{place} seen, it says {word:?}"), &|w| {
                    // Copies stand there, or it missed writes, or it is another memory.
                    w.counts[place as usize] = false;
                    w.miss(place);
                    let full = word == Word::Nothing && w.plan.leads_adoption(place);
                    w.first_seen(place, word, full);
                });
            }
        }
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

/// All that can be reached, walked once for all tests.
static REACHED: LazyLock<Vec<World>> = LazyLock::new(|| walk(starts()));

fn walk(starts: Vec<World>) -> Vec<World> {
    let mut seen: HashSet<World> = HashSet::new();
    let mut queue: VecDeque<World> = starts.into();
    let mut reached = Vec::new();
    while let Some(world) = queue.pop_front() {
        for next in world.next() {
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
    let (adopt, cut_off) = (Some(Fill::Adopt), Some(CutOff { leader: Primary, epoch: Epoch(5) }));
    let recovering = State::Recovering { leader: Primary };
    vec![
        World::start(State::Mirrored, [Full, Full], [true, true]),
        World::start(State::Degraded { leader: Backup }, [Stale, Full], [true, true]),
        World::start(State::Degraded { leader: Primary }, [Full, Empty], [true, false]).known(),
        World::start(dark(Some(Backup)), [Stale, Full], [true, false]).known(),
        World::start(dark(None), [Stale, Empty], [true, false]).known(),
        // After a crash.
        World::start(State::Degraded { leader: Primary }, [Full, Stale], [true, true])
            .decided(Some(Fill::Compare), None),
        // Both nodes' items count: the follower's are a part that may lead if the leader's memory
        // is gone.
        World::start(recovering, [Full, Part], [true, true]).decided(adopt, None),
        // The same, taken up again: both are there, one of them, or none.
        World::start(recovering, [Full, Part], [true, true]).decided(adopt, cut_off),
        World::start(State::Degraded { leader: Primary }, [Full, Part], [true, false]).decided(adopt, cut_off),
        World::start(State::Dark { in_sync: Some(Primary), fallback: Some(Backup) }, [Full, Part], [false, true])
            .decided(adopt, cut_off),
        World::start(dark(Some(Primary)), [Full, Part], [false, false]).decided(adopt, cut_off),
    ]
}

/// Every distinct state that any sequence of real events can reach; the rules are asserted on the
/// way.
#[test]
fn every_sequence_of_events_keeps_the_rules() {
    let reached = &*REACHED;
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
    for fill in [Fill::Empty, Fill::Purge, Fill::Missed, Fill::Compare, Fill::Adopt] {
        assert!(reached.iter().any(|w| w.job == Some(fill)), "{fill:?} never began");
    }
    assert!(reached.iter().any(|w| w.job.is_none() && w.plan.is_adopting()), "no adoption was cut off");
    assert!(reached.len() > 100_000, "{}", reached.len());
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
    let pairs: HashSet<Pair> = REACHED.iter().map(|w| w.key().pair).collect();
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
    for world in REACHED.iter() {
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
