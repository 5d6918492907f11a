//! The pair, and a shadow of what its two nodes hold, as an all-seeing observer would say.

use std::fmt;

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::*;

/// What a node holds of the pair, as an all-seeing observer would say.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Holds {
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
pub(super) struct World {
    pub(super) pair: Pair,
    pub(super) holds: [Holds; 2],
    /// In use, as far as the control plane knows.
    pub(super) up: [bool; 2],
    /// Places whose answers some operation may be waiting for while the gate closes.
    pub(super) waits: [bool; 2],
    /// The route before, while the gate closes or records.
    pub(super) route: Option<State>,
    /// Who led when the gate was last open with a leader; whether the term has changed, and whether
    /// its memory went, since then.
    pub(super) led: Option<(Place, bool, bool)>,
    /// How the follower is being filled.
    pub(super) job: Option<Fill>,
    /// How it is filled when that is next begun.
    pub(super) plan: Plan,
    /// The control plane has a list of the keys that differ; and whether it is true that nothing
    /// else does.
    pub(super) listed: bool,
    pub(super) list_is_true: bool,
    /// Keys that the follower refused while the pair was mirrored stand in that list.
    pub(super) refused: bool,
    /// Whether what each node holds under other keys is true.
    pub(super) rest_is_true: [bool; 2],
    /// What clients write is noted.
    pub(super) noted: bool,
    /// Whether nothing that was deleted comes back when what only this node holds is added to the
    /// other one, except for what is noted.
    pub(super) counts: [bool; 2],
    /// Whether the node has made every acknowledged write, and holds no copy.
    pub(super) made_all: [bool; 2],
    /// A flush has replaced the record that says so, though it was refused.
    pub(super) unsaid: bool,
    /// A job that adopted was stopped before it copied anything to that node.
    pub(super) stopped: Option<Place>,
    /// The memory is gone with which the node was last in use: none can come back with it.
    pub(super) gone: [bool; 2],
    /// A job of every key has copied to that node, and its end was not told yet: copies that are
    /// not verified may stand there, of keys that are not listed.
    pub(super) loose: Option<Place>,
    /// Another proxy works on the nodes; the former active one may be there.
    pub(super) stranger: bool,
    pub(super) former: bool,
    /// Nodes that were seen since the start.
    pub(super) seen: [bool; 2],
    /// How it came to this; for the message of a failure.
    pub(super) story: Story,
}

/// What has happened, the last first.
#[derive(Clone, Default)]
pub(super) struct Story(pub(super) Option<Arc<(String, Story)>>);

impl Story {
    pub(super) fn last(&self) -> Option<&str> {
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

pub(super) const PLACES: [Place; 2] = [Primary, Backup];

pub(super) fn at<T: Copy>(pair: &[T; 2], place: Place) -> T {
    pair[place as usize]
}

impl World {
    pub(super) fn start(state: State, holds: [Holds; 2], up: [bool; 2]) -> World {
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
            loose: None,
            stranger: false,
            former: false,
            seen: up,
            story: Story::default(),
        }
    }

    /// Its nodes were in use before: one that comes back has the memory that is known, or another.
    pub(super) fn known(mut self) -> World {
        self.seen = [true; 2];
        self
    }

    /// As the start-up table says. `adopts`: both nodes' items count, the backup's beside what the
    /// primary holds.
    pub(super) fn decided(mut self, fill: Option<Fill>, cut_off: Option<CutOff>) -> World {
        let adopts = fill == Some(Fill::Adopt);
        (self.counts[1], self.made_all[1]) = (adopts, adopts);
        // After a crash both hold what clients were told of.
        self.rest_is_true = [fill == Some(Fill::Compare); 2];
        let state = self.pair.state;
        self.plan(FillEvent::Decided { state, fill, cut_off });
        let (event, before) = (Event::Start(state, Reason::Starting), State::Dark { in_sync: None, fallback: None });
        self.plan(FillEvent::Edge { event, before, after: state });
        self
    }

    /// The proxy before may only be paused.
    pub(super) fn awaiting_former(mut self) -> World {
        self.former = true;
        self.apply(Event::Foreign(true));
        self
    }

    /// As the control plane carries it out. Returns a follower that has lost the leader of its
    /// adoption.
    pub(super) fn plan(&mut self, event: FillEvent) -> Option<Place> {
        let mut orphaned = None;
        for effect in self.plan.apply(event) {
            match effect {
                FillEffect::ListVoid => self.listed = false,
                FillEffect::ListBegins => {
                    // With the refused keys, where that is not the same time of being mirrored.
                    // After a crash more differs than is listed from then on.
                    let equal = self.pair.state == State::Mirrored && !self.plan.is_uncompared();
                    self.list_is_true = !self.refused && equal;
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
    pub(super) fn key(&self) -> World {
        let mut key = self.clone();
        key.pair.epoch = Epoch(0);
        key.pair.term = Term(0);
        key.pair.reason = Reason::None;
        key.story = Story::default();
        key.list_is_true &= key.listed;
        for place in PLACES {
            key.gone[place as usize] &= !at(&key.up, place);
            key.rest_is_true[place as usize] &= key.plan.knows_missed(place, true);
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
    pub(super) fn apply(&mut self, event: Event) {
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
        self.carry_out(&before, effects);
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
        self.judge_present(told);
    }

    /// What an event asks for.
    fn carry_out(&mut self, before: &Pair, effects: Vec<Effect>) {
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
                Effect::FinishCopies => assert!(self.job.is_some(), "nobody copies: {before:?}"),
            }
        }
    }

    /// What holds after any event. `told`: which it was.
    fn judge_present(&self, told: impl Fn() -> String) {
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

    pub(super) fn opened(&mut self) {
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
            self.loose = None;
            self.rest_is_true = [true; 2];
        }
    }

    /// The control plane would let the node lead with what it did not miss.
    pub(super) fn may_lead_with_rest(&self, place: Place) -> bool {
        at(&self.up, place) && self.job.is_none() && self.plan.may_lead(self.pair.state, place, self.listed)
    }

    pub(super) fn miss(&mut self, place: Place) {
        self.made_all[place as usize] = false;
        if at(&self.holds, place) != Holds::Empty {
            self.holds[place as usize] = Holds::Stale;
        }
    }

    pub(super) fn lose(&mut self, place: Place, loss: Loss) {
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
    pub(super) fn begin(&mut self, place: Place, fill: Fill) {
        let leader = place.other();
        match fill {
            Fill::Missed => assert!(self.list_is_true, "rule 9: more differs than is listed: {self:?}"),
            Fill::Adopt => {
                self.judge_adoption(place);
                // One that begins in the middle deletes nothing first.
                let begun = matches!(self.pair.state, State::Recovering { .. });
                assert!(!begun || at(&self.made_all, place), "rule 12: what clients deleted comes back: {self:?}");
            }
            Fill::CompareRest => {
                assert!(at(&self.rest_is_true, place), "rule 11: more is old on {place} than is listed: {self:?}");
                self.loose = Some(place);
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

    pub(super) fn judge_adoption(&self, follower: Place) {
        assert!(at(&self.counts, follower), "rule 12: adopts what does not count: {self:?}");
    }

    pub(super) fn copies_come(&mut self, place: Place) {
        self.holds[place as usize] = Holds::Unverified;
        self.counts[place as usize] = false;
        self.made_all[place as usize] = false;
    }

    /// A node that was away at the start is seen for the first time, with the memory that it had
    /// then.
    pub(super) fn first_seen(&mut self, place: Place, word: Word, full: bool) {
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
}
