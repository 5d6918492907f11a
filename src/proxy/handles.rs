//! What a worker calls its own things by: connections, clients, operations.

use crate::ids::NodeId;

/// One of a worker's connections to a node. Commands on one key always take the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lane(pub u16);

/// A worker's connection to a node, whichever stands there now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId {
    pub node: NodeId,
    pub lane: Lane,
}

impl ConnId {
    /// The first of the worker's connections to a node.
    pub fn first(node: NodeId) -> ConnId {
        ConnId { node, lane: Lane(0) }
    }
}

/// A client's place in the worker's table; others come to sit there after it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u32);

impl ClientId {
    /// The index into tables of clients.
    #[inline(always)]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A worker's clients, counted: tells those apart that sit in one place after each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Occupant(pub u32);

impl Occupant {
    /// The next client of the worker.
    #[must_use]
    pub fn next(self) -> Occupant {
        Occupant(self.0.wrapping_add(1))
    }
}

/// A client connection of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientKey {
    pub id: ClientId,
    pub occupant: Occupant,
}

/// A client's requests, counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct SlotNumber(pub u64);

impl SlotNumber {
    /// The client's next request.
    #[inline(always)]
    #[must_use]
    pub fn next(self) -> SlotNumber {
        self.after(1)
    }

    /// The request that comes this many after it.
    #[inline(always)]
    #[must_use]
    pub fn after(self, count: u64) -> SlotNumber {
        SlotNumber(self.0 + count)
    }

    /// How many requests came from `first` on before it; `None`: it came before `first`.
    #[inline(always)]
    pub fn place_from(self, first: SlotNumber) -> Option<usize> {
        self.0.checked_sub(first.0).map(|place| place as usize)
    }
}

/// A connection's dials, counted: what an earlier one answers is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DialNumber(pub u32);

impl DialNumber {
    /// The next dial of the connection.
    #[must_use]
    pub fn next(self) -> DialNumber {
        DialNumber(self.0.wrapping_add(1))
    }
}

/// An unfinished operation of a worker, by its place in the worker's table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(pub u32);

impl OpId {
    /// The index into the worker's table.
    #[inline(always)]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An order of the control plane about one key; what became of it is told with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ticket(pub u64);
