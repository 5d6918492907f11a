//! The control plane of the model: what `src/cluster` does with events and effects, one pair, nodes
//! that never come back into use.

use crate::backend::marker::{FLEET_KEY, INCARNATION_KEY};
use crate::ids::{NodeId, Place};
use crate::pair::{self, Loss, Reason, State};
use crate::proxy::route::{Flow, Follower, Route};

use super::super::*;
use super::world::{Fault, KEY, LEADER_TIMEOUT_US, MARKER, PAIR, Process, TIMEOUT_US, World};

impl World {
    pub(super) fn worker_said(&mut self, event: Event) {
        match event {
            Event::Left { .. } | Event::Abandoned { .. } | Event::Unwanted { .. } => {}
            Event::Closed { worker, round, .. } => {
                if round == self.round && self.unconfirmed.remove(&worker) && self.unconfirmed.is_empty() {
                    self.apply(pair::Event::Closed);
                }
            }
            Event::Fault { node, reason: Reason::MarkerLost, .. } => {
                let evicted = matches!(self.fault, Some(Fault::Evict(n) | Fault::Unsure(n)) if n == node.index());
                if evicted {
                    self.nodes[node.index()].put(INCARNATION_KEY, MARKER);
                } else {
                    self.lost(node, Reason::MarkerLost, Loss::MemoryGone, true);
                }
            }
            Event::Fault { node, reason, .. } => self.lost(node, reason, Loss::Suspected, false),
            Event::Late { node, age, .. } => {
                let age = age.as_micros() as u64;
                if age >= TIMEOUT_US {
                    self.lost(node, Reason::Timeout, Loss::Suspected, age >= LEADER_TIMEOUT_US);
                }
            }
            Event::Undrained { worker, node } => assert!(self.undrained.insert((worker, node.0))),
            Event::Drained { worker, node } => assert!(self.undrained.remove(&(worker, node.0))),
            Event::Hint { node } => {
                // A probe.
                let items = &self.nodes[node.index()].items;
                let empty = !items.contains_key(INCARNATION_KEY.as_bytes());
                if let Some(mark) = self.mark.as_ref().filter(|_| !empty && !items.contains_key(FLEET_KEY.as_bytes())) {
                    let again = mark.to_string();
                    self.nodes[node.index()].put(FLEET_KEY, &again);
                }
                if self.process[node.index()] == Process::Dead {
                    self.lost(node, Reason::Refused, Loss::Suspected, true);
                } else if empty {
                    self.lost(node, Reason::MarkerLost, Loss::MemoryGone, true);
                }
            }
            Event::Settled { settlement, .. } => self.settled(settlement),
            // The real control plane ends the process.
            Event::Marked { .. } => {}
            Event::Connected { .. } => panic!("no script asks who is connected"),
            Event::Ask { .. } => panic!("no script asks"),
        }
    }

    fn settled(&mut self, settlement: Settlement) {
        self.settled.push(settlement);
        if self.written.is_none() {
            return;
        }
        match settlement {
            Settlement::Done => self.history.adopted(),
            // The job looks at the key again: what only the follower holds goes.
            Settlement::Superfluous if !self.nodes[0].items.contains_key(KEY.as_bytes()) => {
                self.nodes[1].items.remove(KEY.as_bytes());
            }
            _ => {}
        }
    }

    pub(super) fn lost(&mut self, node: NodeId, reason: Reason, loss: Loss, patience_over: bool) {
        let place = if node.0 == 0 { Place::Primary } else { Place::Backup };
        let led =
            matches!(self.pair.state(), State::Degraded { leader } | State::Recovering { leader } if leader == place);
        if reason == Reason::Timeout && !patience_over && led {
            return;
        }
        self.in_use[node.index()] = false;
        self.apply(pair::Event::Lost(place, loss, reason));
    }

    pub(super) fn apply(&mut self, event: pair::Event) {
        for effect in self.pair.apply(event) {
            match effect {
                pair::Effect::Close { void } => {
                    self.round += 1;
                    self.record_due = false;
                    let void = void.map(|place| NodeId(place as u16));
                    self.unconfirmed = WorkerId::all(self.cores.len()).collect();
                    for commands in &mut self.commands {
                        commands.push_back(Command::Close { pair: PAIR, void, round: self.round });
                    }
                    if !self.barrier {
                        self.unconfirmed.clear();
                        self.apply(pair::Event::Closed);
                    }
                }
                pair::Effect::RecordAlone { .. }
                | pair::Effect::RecordFilling { .. }
                | pair::Effect::RecordSync { .. } => {
                    self.record_due = true;
                }
                pair::Effect::Open => self.publish(),
                pair::Effect::FinishCopies => {
                    let done = self.copier.as_ref().is_some_and(|c| c.is_done(&self.recopy));
                    if done || self.copier.is_none() {
                        self.copier = None;
                        self.apply(pair::Event::Drained(done));
                    }
                }
                pair::Effect::AbortResync => self.copier = None,
            }
        }
    }

    pub(super) fn record(&mut self) {
        self.record_due = false;
        let needed: Vec<usize> = match self.pair.state() {
            State::Mirrored => vec![0, 1],
            State::Degraded { leader } => vec![leader as usize],
            State::Recovering { leader } => vec![leader.other() as usize],
            State::Dark { .. } => vec![],
        };
        match needed.into_iter().find(|&n| self.process[n] != Process::Running) {
            None => self.apply(pair::Event::Recorded),
            Some(node) => self.lost(NodeId(node as u16), Reason::Reset, Loss::Suspected, true),
        }
    }

    pub(super) fn publish(&mut self) {
        let route = match (self.pair.state(), self.pair.state().leader()) {
            (State::Mirrored, _) => (Place::Primary, Follower::InSync(NodeId(1))),
            (State::Recovering { leader }, _) => {
                (leader, Follower::Filling(NodeId(leader.other() as u16), self.recopy.clone()))
            }
            (_, Some(leader)) => (leader, Follower::None),
            (_, None) => {
                let reason = self.pair.reason();
                return self
                    .commands
                    .iter_mut()
                    .for_each(|c| c.push_back(Command::Open { pair: PAIR, route: Route::Dark(reason) }));
            }
        };
        if self.pair.state() == State::Mirrored {
            self.missed.reset();
        }
        let flow = Flow {
            leader: NodeId(route.0 as u16),
            follower: route.1,
            term: Some(self.pair.term()),
            writable: true,
            missed: self.missed.clone(),
            lone: self.lone.clone(),
            written: self.written.clone(),
        };
        for commands in &mut self.commands {
            commands.push_back(Command::Open { pair: PAIR, route: Route::Open(flow.clone()) });
        }
    }
}
