//! Each pair's route, as this worker knows it, and what waits for the next one.

use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

use crate::ids::{NodeId, PairId};
use crate::proxy::handles::OpId;
use crate::proxy::op::Stage;
use crate::proxy::route::{Flow, Route};

/// See the module's words.
#[derive(Debug)]
pub(super) struct Pairs {
    slots: Vec<PairSlot>,
}

/// A pair's route and what waits for the next one.
#[derive(Debug)]
pub(super) struct PairSlot {
    pub(super) route: Route,
    /// The last open route: what is in flight while the gate closes goes on by it.
    pub(super) flow: Option<Flow>,
    /// Set while the gate closes.
    pub(super) closing: Option<Closing>,
    pub(super) parked: Parked,
}

/// Operations that wait for their pair's next route, in order.
#[derive(Debug, Default)]
pub(super) struct Parked {
    ids: VecDeque<OpId>,
    /// How many of them a node may have executed, or has.
    pub(super) in_doubt: usize,
    /// None of them has waited too long before then.
    pub(super) look_at_us: u64,
}

#[derive(Debug)]
pub(super) struct Closing {
    pub(super) round: u64,
    pub(super) in_flight: usize,
    pub(super) void: Vec<NodeId>,
    pub(super) reported: bool,
}

impl Pairs {
    /// This many, without a route: everything waits.
    pub(super) fn new(pairs: usize) -> Pairs {
        let slot = || PairSlot { route: Route::Closed, flow: None, closing: None, parked: Parked::default() };
        Pairs { slots: (0..pairs).map(|_| slot()).collect() }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = PairId> + use<> {
        (0..self.slots.len() as u32).map(PairId)
    }

    /// Who leads, or did last. `None`: the pair never had an open route here.
    pub(super) fn leader_of(&self, pair: PairId) -> Option<NodeId> {
        self[pair].flow.as_ref().map(|flow| flow.leader)
    }

    /// Who follows, or did last.
    pub(super) fn follower_of(&self, pair: PairId) -> Option<NodeId> {
        self[pair].flow.as_ref().and_then(|flow| flow.follower.node())
    }

    /// Whether what the node answers counts for nothing any more: it was deposed.
    pub(super) fn is_void(&self, pair: PairId, node: NodeId) -> bool {
        self[pair].closing.as_ref().is_some_and(|closing| closing.void.contains(&node))
    }
}

impl Parked {
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// `look_at_us`: when it has waited too long.
    pub(super) fn push(&mut self, id: OpId, stage: Stage, look_at_us: u64) {
        self.look_at_us = if self.ids.is_empty() { look_at_us } else { self.look_at_us.min(look_at_us) };
        self.in_doubt += usize::from(stage != Stage::Parked);
        self.ids.push_back(id);
    }

    pub(super) fn take(&mut self) -> VecDeque<OpId> {
        std::mem::take(self).ids
    }
}

impl Index<PairId> for Pairs {
    type Output = PairSlot;

    #[inline(always)]
    fn index(&self, pair: PairId) -> &PairSlot {
        &self.slots[pair.index()]
    }
}

impl IndexMut<PairId> for Pairs {
    #[inline(always)]
    fn index_mut(&mut self, pair: PairId) -> &mut PairSlot {
        &mut self.slots[pair.index()]
    }
}
