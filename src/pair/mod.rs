//! One pair's life: who leads, who follows, and what may happen next. Pure: events in, effects out;
//! no I/O, no clock.
//!
//! ```text
//!              node lost                 node back, purged               all copied, none outstanding
//!  Mirrored ─────────────▶ Degraded{l} ─────────────────▶ Recovering{l} ────────────────────────────▶ Mirrored
//!     ▲                     │  ▲  ▲                         │   │                                        │
//!     │                     │  │  └── follower lost ────────┘   │ leader lost                            │
//!     │         leader lost ▼  │ back, same memory            ▼                                        │
//!     │                   Dark{in_sync: l} ◀───────────────────┘                                        │
//!     │                     │ proof that l's memory is gone (or a flush while it was away)              │
//!     │                     ▼                                                                           │
//!     │                   Dark{in_sync: none} ── a node of the pair is empty or purged ──▶ Degraded     │
//!     └─────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Two arrows are left out. Mirrored to Dark: the primary of a mirrored pair is late while another
//! proxy works on the nodes, or before the copies were compared after a crash. Degraded to
//! Mirrored: the other node is back with `--resync=off`. And from Dark the start enters any state.
//!
//! **Every edge is a barrier**: the state changes at once, but the gate goes `Closing` (no worker
//! begins an operation; each confirms that nothing it began under the old route is unanswered),
//! then `Recording` (who leads alone, or that both are in sync, is written on the nodes), and only
//! then `Open`. Without the barrier two workers increment on two leaders
//! (`docs/internals/models/routes.py`).
//!
//! **The last full copy is never deposed on suspicion.** In `Degraded` and `Recovering` a leader
//! that is slow or unreachable makes the pair `Dark`, and `Dark` remembers which node led: it ends
//! with that node's return, or with the proof that its memory is gone.

mod fill;
mod rest;
mod state;

use crate::ids::{Epoch, Place, Term};
use crate::rules::{Rule, holds};

pub use fill::{CutOff, Fill, FillEffect, FillEvent, Plan, Word};
pub use rest::Kept;
pub use state::{Reason, State, legal};

/// Whether requests of the pair flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Gate {
    /// They flow, by the state's route.
    Open,
    /// Workers finish what they began under the old route.
    Closing,
    /// Closed; the new state is being recorded on the nodes.
    Recording,
    /// Closed for the last copies of a hand-back.
    Draining,
}

/// How a node was lost, as far as it matters to a pair.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Loss {
    /// Late or broken: its memory may still be there.
    Suspected,
    /// Suspected, and the primary of a pair whose copies were not compared since a crash: the other
    /// node may lack what clients have read of it, so it is waited for until its process is gone.
    SuspectedUncompared,
    /// Its marker is gone from a live connection, or its process has refused connections beyond the
    /// grace: the memory is gone.
    MemoryGone,
}

/// What a pair is told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// The start-up table decided (see [`crate::cluster`]); only for a pair that is still `Dark`
    /// from the start. With the reason why it is not mirrored.
    Start(State, Reason),
    /// A node of the pair is not to be used from now on.
    Lost(Place, Loss, Reason),
    /// A node is back with the memory that it had when it was lost; or has it, and what kept it
    /// from leading is over.
    BackSame(Place),
    /// What a node holds of this pair missed nothing: it is proved empty, or was purged, of
    /// everything or of all that it missed. Matters when no copy is left.
    Purged(Place),
    /// The follower is purged and drained: the resync may begin to copy.
    BeginRecovery,
    /// Everything is copied: the resync asks for the gate.
    HandBack,
    /// The resync finished the last copies behind the closed gate (`true`), or there are more to
    /// come (`false`).
    Drained(bool),
    /// A node of the pair cannot be enumerated: said as the reason, nothing else changes.
    CannotEnumerate,
    /// The resync ended early.
    ResyncEnded(Reason),
    /// The ended resync had undone every unverified copy on this follower.
    Undone(Place),
    /// Every worker confirmed that nothing begun under the old route is unanswered.
    Closed,
    /// The state was recorded on the nodes that must carry it.
    Recorded,
    /// `flush_all` emptied the pair's reachable nodes, behind closed gates; the unreachable ones'
    /// items are void.
    Flushed,
    /// Another proxy's open session was found on a node of the pair; or it is there no more.
    Foreign(bool),
    /// The former active proxy of the fleet is gone, beside which the pair has been mirrored, and
    /// its copies are still to be compared.
    FormerGone,
    /// The operator's word: this node of a dark pair leads with what it holds, whatever that is.
    Promote(Place),
    /// The operator wants a node refilled although it seems fine.
    Distrust(Place),
    /// A node is back and taken at its word, unfilled: only with `--resync=off`, which behaves like
    /// magent.
    TakenBack(Place),
}

/// What a pair asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Publish the route as closed and let the workers confirm. Answers of the `void` node count
    /// for nothing any more.
    Close {
        /// The deposed node.
        void: Option<Place>,
    },
    /// Record on `on`, by a conditional write, that it leads alone since this epoch.
    RecordAlone {
        /// The survivor.
        on: Place,
    },
    /// Record on the follower that it is being filled.
    RecordFilling {
        /// The follower.
        on: Place,
    },
    /// Record on both that they are in sync: the follower first.
    RecordSync {
        /// Who was filled.
        follower: Place,
    },
    /// Publish the route of the present state.
    Open,
    /// Let the resync finish the pair's last copies.
    FinishCopies,
    /// Stop the resync of this pair.
    AbortResync,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pair {
    state: State,
    gate: Gate,
    reason: Reason,
    term: Term,
    epoch: Epoch,
    /// Set while a hand-back's gate is closing or drained; cleared by every other edge.
    handing_back: bool,
    /// The places whose answers count for nothing since the gate closed: primary, backup.
    voided: [bool; 2],
    /// Another proxy works on the pair's nodes: no node that does not lead already is promoted.
    foreign: bool,
}

impl Pair {
    /// A pair of which nothing is known yet.
    pub fn new(epoch: Epoch, term: Term) -> Pair {
        Pair {
            state: State::Dark { in_sync: None, fallback: None },
            gate: Gate::Closing,
            reason: Reason::Starting,
            term,
            epoch,
            handing_back: false,
            voided: [false; 2],
            foreign: false,
        }
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether requests flow.
    pub fn gate(&self) -> Gate {
        self.gate
    }

    /// Why it is in this state.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Whether another proxy works on its nodes.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// The leadership term, for cas tokens.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The epoch of the present state.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A record found on a node; only at the start, once for each record in any order.
    pub fn seed(&mut self, epoch: Epoch) {
        self.epoch = self.epoch.max(epoch.outranked());
    }

    /// Where its epochs begin at least; only at the start.
    pub fn begin_from(&mut self, epoch: Epoch) {
        self.epoch = self.epoch.max(epoch);
    }

    /// Where its terms begin; only at the start.
    pub fn begin_at(&mut self, term: Term) {
        self.term = term;
    }

    /// A later record than this pair's own was found on a node that did not answer at the start
    /// (some clock was set back, or another proxy wrote it): what is recorded from now on must be
    /// later still. Returns whether it was later.
    pub fn outrank(&mut self, epoch: Epoch) -> bool {
        let later = epoch > self.epoch && holds(Rule::UniqueEpochs);
        if later {
            self.epoch = epoch.outranked();
        }
        later
    }

    /// Tokens may have been given under this term elsewhere, and none of them may win here. Returns
    /// whether the term changed.
    pub fn rise_above(&mut self, term: Term) -> bool {
        let rises = self.term <= term;
        if rises {
            self.term = term.next();
        }
        rises
    }

    /// What is recorded of the present state is to be something else from now on, and later than
    /// what was.
    pub fn renew(&mut self) {
        self.epoch = Epoch(self.epoch.0 + 1);
    }

    /// Takes an event; returns what is to be done, in order.
    ///
    /// An event may be late: what it speaks of has ended, or another one has led on meanwhile. Then
    /// it is [`ignored`](Pair::ignored) on purpose, and each arm names the states in which it is.
    /// One that cannot come at all ([`Pair::can_come`]) ends the process, as an edge does that is
    /// not in the diagram.
    pub fn apply(&mut self, event: Event) -> Vec<Effect> {
        assert!(self.can_come(event), "{event:?} cannot come: {self:?}");
        match event {
            Event::Start(State::Mirrored, _) => self.edge(State::Mirrored, Reason::None, None),
            Event::Start(state, reason) => self.edge(state, reason, None),
            Event::Lost(place, loss, reason) => self.lost(place, loss, reason),
            Event::BackSame(place) => self.back_same(place),
            Event::Purged(place) => self.purged(place),
            Event::BeginRecovery => self.begin_recovery(),
            Event::HandBack => self.hand_back(),
            Event::Drained(clean) => self.drained(clean),
            Event::CannotEnumerate => {
                if matches!(self.state, State::Degraded { .. } | State::Recovering { .. }) {
                    self.reason = Reason::CannotEnumerate;
                }
                vec![]
            }
            Event::ResyncEnded(reason) => match self.state {
                State::Recovering { leader } => self.edge(State::Degraded { leader }, reason, None),
                // Handed back, or lost, before its end.
                State::Mirrored | State::Degraded { .. } | State::Dark { .. } => self.ignored(),
            },
            Event::Undone(place) => {
                if let State::Dark { in_sync: Some(p), fallback } = &mut self.state
                    && *p != place
                {
                    *fallback = Some(place);
                }
                vec![]
            }
            Event::Closed => self.closed(),
            Event::Recorded => {
                self.gate = Gate::Open;
                vec![Effect::Open]
            }
            Event::Flushed => self.flushed(),
            Event::TakenBack(place) => self.taken_back(place),
            Event::Foreign(foreign) => self.set_foreign(foreign),
            Event::FormerGone => {
                self.foreign = false;
                if self.state == State::Mirrored {
                    self.reason = Reason::None;
                }
                vec![]
            }
            Event::Promote(place) => self.edge(State::Degraded { leader: place }, Reason::Operator, None),
            Event::Distrust(place) => self.distrust(place),
        }
    }

    /// Whether the event can come now at all. Those that cannot have senders who look at the pair
    /// first, in the same turn of the control plane.
    pub fn can_come(&self, event: Event) -> bool {
        match event {
            // Of a pair that is not decided, which is dark; of one that is dark, says the operator;
            // of one whose leader is awaited.
            Event::Start(..) | Event::Promote(_) | Event::Undone(_) => matches!(self.state, State::Dark { .. }),
            // Workers confirm one round of closing, and a record is of one epoch: what is confirmed
            // or written of an earlier one is not told.
            Event::Closed => self.gate == Gate::Closing,
            Event::Recorded => self.gate == Gate::Recording,
            Event::Lost(place, Loss::SuspectedUncompared, _) => {
                self.state == State::Mirrored && place == Place::Primary
            }
            // A node's events are told to all its pairs, jobs and operators do not know what has
            // happened meanwhile.
            Event::Lost(..) | Event::BackSame(_) | Event::Purged(_) | Event::Foreign(_) | Event::Flushed => true,
            Event::FormerGone => true,
            Event::BeginRecovery | Event::HandBack | Event::Drained(_) | Event::ResyncEnded(_) => true,
            Event::CannotEnumerate | Event::Distrust(_) | Event::TakenBack(_) => true,
        }
    }

    /// The event is late, or asks for what is not to be done: nothing changes, without effects.
    fn ignored(&self) -> Vec<Effect> {
        vec![]
    }

    fn back_same(&mut self, place: Place) -> Vec<Effect> {
        match self.state {
            State::Dark { in_sync: Some(p), .. } if p == place => {
                self.edge(State::Degraded { leader: place }, self.reason, None)
            }
            // It missed writes, or nothing: the other one is in sync, or both are, or a refill is
            // at work.
            State::Dark { .. } | State::Mirrored | State::Degraded { .. } | State::Recovering { .. } => self.ignored(),
        }
    }

    fn purged(&mut self, place: Place) -> Vec<Effect> {
        match self.state {
            State::Dark { in_sync: None, .. } if !self.foreign => {
                self.edge(State::Degraded { leader: place }, self.reason, None)
            }
            // A full copy is awaited, or leads; or no node may be promoted.
            State::Dark { .. } | State::Mirrored | State::Degraded { .. } | State::Recovering { .. } => self.ignored(),
        }
    }

    fn begin_recovery(&mut self) -> Vec<Effect> {
        match (self.state, self.gate) {
            (State::Degraded { leader }, Gate::Open) => {
                // This try may find what the last one did not.
                let stale = self.reason == Reason::CannotEnumerate;
                let reason = if stale { Reason::ResyncFailed } else { self.reason };
                self.edge(State::Recovering { leader }, reason, None)
            }
            // It adopts, and was never alone.
            (State::Recovering { .. }, _) => self.ignored(),
            // An edge has overtaken the purge: the job is told by the state that it finds.
            (State::Degraded { .. }, Gate::Closing | Gate::Recording | Gate::Draining)
            | (State::Mirrored | State::Dark { .. }, _) => self.ignored(),
        }
    }

    fn hand_back(&mut self) -> Vec<Effect> {
        match (self.state, self.gate) {
            (State::Recovering { .. }, Gate::Open) if !self.foreign && !holds(Rule::GateClosedAtHandBack) => {
                self.gate = Gate::Draining;
                vec![Effect::FinishCopies]
            }
            (State::Recovering { .. }, Gate::Open) if !self.foreign => {
                self.gate = Gate::Closing;
                self.handing_back = true;
                vec![Effect::Close { void: None }]
            }
            // Not now: the job asks again, or its pair has an edge that ends it.
            (State::Recovering { .. } | State::Mirrored | State::Degraded { .. } | State::Dark { .. }, _) => {
                self.ignored()
            }
        }
    }

    fn drained(&mut self, clean: bool) -> Vec<Effect> {
        match (self.state, self.gate) {
            (State::Recovering { leader }, Gate::Draining) => {
                self.handing_back = false;
                if clean && !self.foreign {
                    self.advance(State::Mirrored, Reason::None);
                    self.gate = Gate::Recording;
                    vec![Effect::RecordSync { follower: leader.other() }]
                } else {
                    self.gate = Gate::Open;
                    vec![Effect::Open]
                }
            }
            // An edge, or a flush, has taken the gate meanwhile.
            (State::Recovering { .. }, Gate::Open | Gate::Closing | Gate::Recording)
            | (State::Mirrored | State::Degraded { .. } | State::Dark { .. }, _) => self.ignored(),
        }
    }

    fn flushed(&mut self) -> Vec<Effect> {
        if let State::Dark { .. } = self.state {
            // Whoever is away holds items that the flush has ended: nobody is in sync any more, and
            // a record that says so is later than the one on that node.
            self.darken(None, None);
            self.epoch = Epoch(self.epoch.0 + 1);
        }
        vec![]
    }

    fn taken_back(&mut self, place: Place) -> Vec<Effect> {
        match self.state {
            State::Degraded { leader } if leader != place => self.edge(State::Mirrored, Reason::None, None),
            State::Dark { .. } => self.edge(State::Degraded { leader: place }, self.reason, None),
            // It leads, and was lost for less than its return took; or it follows; or it was waited
            // for as the source of a refill that the operator ordered.
            State::Mirrored | State::Degraded { .. } | State::Recovering { .. } => self.ignored(),
        }
    }

    fn set_foreign(&mut self, foreign: bool) -> Vec<Effect> {
        let ended = self.foreign && !foreign;
        self.foreign = foreign;
        match self.state {
            // Two proxies wrote the same keys in an order of their own each: the copies may differ.
            State::Mirrored if ended => {
                self.edge(State::Degraded { leader: Place::Primary }, Reason::ForeignSession, None)
            }
            State::Mirrored if foreign => {
                self.reason = Reason::ForeignSession;
                vec![]
            }
            // The flag alone counts.
            State::Mirrored | State::Degraded { .. } | State::Recovering { .. } | State::Dark { .. } => vec![],
        }
    }

    fn distrust(&mut self, place: Place) -> Vec<Effect> {
        match self.state {
            State::Mirrored if !self.foreign => {
                self.edge(State::Degraded { leader: place.other() }, Reason::Operator, None)
            }
            // It is to be filled already, or is all that is left; or no node may be promoted.
            State::Mirrored | State::Degraded { .. } | State::Recovering { .. } | State::Dark { .. } => self.ignored(),
        }
    }

    fn lost(&mut self, place: Place, loss: Loss, reason: Reason) -> Vec<Effect> {
        let loss = if holds(Rule::DarkRemembersInSync) { loss } else { Loss::MemoryGone };
        match self.state {
            // The other proxy may not have lost the leader, and goes on writing there. The follower
            // holds everything, and is what is left if the leader's memory is gone once the other
            // proxy is.
            State::Mirrored if self.foreign && place == Place::Primary => {
                let state = match loss {
                    Loss::Suspected | Loss::SuspectedUncompared => {
                        State::Dark { in_sync: Some(place), fallback: Some(place.other()) }
                    }
                    Loss::MemoryGone => State::Dark { in_sync: Some(place.other()), fallback: None },
                };
                self.edge(state, Reason::ForeignSession, Some(place))
            }
            State::Mirrored if loss == Loss::SuspectedUncompared && place == Place::Primary => {
                self.edge(State::Dark { in_sync: Some(place), fallback: Some(place.other()) }, reason, Some(place))
            }
            // Also while a hand-back is being recorded: whichever is lost, the other one holds
            // everything.
            State::Mirrored => self.edge(State::Degraded { leader: place.other() }, reason, Some(place)),
            State::Degraded { leader } if leader == place => {
                let in_sync = (loss != Loss::MemoryGone).then_some(leader);
                self.edge(State::Dark { in_sync, fallback: None }, reason, Some(place))
            }
            State::Degraded { .. } => self.void_while_closing(place),
            State::Recovering { leader } if leader == place => {
                // The half-filled follower leads only on proof, and only after its unverified
                // copies are undone (`Undone`): otherwise one slow answer in a busy resync promotes
                // a part of the data, and the only full copy is later purged as older.
                let mut effects = vec![Effect::AbortResync];
                effects.extend(self.edge(State::Dark { in_sync: Some(leader), fallback: None }, reason, Some(place)));
                effects
            }
            State::Recovering { leader } => {
                let mut effects = vec![Effect::AbortResync];
                effects.extend(self.edge(State::Degraded { leader }, reason, Some(place)));
                effects
            }
            State::Dark { in_sync, fallback } => {
                if fallback == Some(place) {
                    self.darken(in_sync, None);
                    return self.void_while_closing(place);
                }
                if in_sync == Some(place) && loss == Loss::MemoryGone {
                    return match fallback {
                        // It leads when the foreign session has ended (`BackSame`).
                        Some(_) if self.foreign => {
                            self.darken(fallback, None);
                            self.void_while_closing(place)
                        }
                        Some(follower) => self.edge(State::Degraded { leader: follower }, reason, None),
                        None => {
                            self.darken(None, None);
                            self.reason = reason;
                            self.void_while_closing(place)
                        }
                    };
                }
                self.void_while_closing(place)
            }
        }
    }

    /// A node that does not lead is lost. The state stays, but operations begun under the route
    /// before may still wait for that node's answer (a refill was cancelled, then its target hung):
    /// unless they are told to wait no longer, the gate never closes.
    fn void_while_closing(&mut self, place: Place) -> Vec<Effect> {
        if self.gate != Gate::Closing || self.voided[place as usize] {
            return vec![];
        }
        self.voided[place as usize] = true;
        vec![Effect::Close { void: Some(place) }]
    }

    /// The state changes now; the gate closes and opens again when workers and records are through.
    fn edge(&mut self, next: State, reason: Reason, void: Option<Place>) -> Vec<Effect> {
        self.advance(next, reason);
        if self.gate != Gate::Closing {
            self.voided = [false; 2];
        }
        if let Some(place) = void {
            self.voided[place as usize] = true;
        }
        self.gate = Gate::Closing;
        self.handing_back = false;
        vec![Effect::Close { void }]
    }

    /// What a pair without a leader remembers changes: no edge, for no route does.
    fn darken(&mut self, in_sync: Option<Place>, fallback: Option<Place>) {
        assert!(matches!(self.state, State::Dark { .. }), "{:?} is not dark", self.state);
        self.state = State::Dark { in_sync, fallback };
    }

    /// The only place where the state changes along an arrow of the diagram.
    fn advance(&mut self, next: State, reason: Reason) {
        // In release too: from a state that no walk has seen, the end of the process is the safe
        // way on, for the next start trusts nothing that it has not read, and compares the copies.
        assert!(legal(self.state, next), "{:?} -> {next:?}", self.state);
        let (before, after) = (self.state.leader(), next.leader());
        // A token taken under another leader must never win; leaving Dark counts, for the leader's
        // connection broke.
        if after.is_some() && before != after {
            self.term = self.term.next();
        }
        self.epoch = Epoch(self.epoch.0 + 1);
        self.state = next;
        self.reason = reason;
    }

    fn closed(&mut self) -> Vec<Effect> {
        if self.handing_back {
            self.gate = Gate::Draining;
            return vec![Effect::FinishCopies];
        }
        self.gate = Gate::Recording;
        match self.state {
            State::Degraded { leader } => vec![Effect::RecordAlone { on: leader }],
            State::Recovering { leader } => vec![Effect::RecordFilling { on: leader.other() }],
            State::Mirrored => vec![Effect::RecordSync { follower: Place::Backup }],
            State::Dark { .. } => {
                self.gate = Gate::Open;
                vec![Effect::Open]
            }
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
