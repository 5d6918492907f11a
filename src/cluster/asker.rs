//! Who is to be answered: a client, by its worker, or somebody at the desk.

use crate::ids::WorkerId;
use crate::proxy::{ClientId, ClientKey, Occupant, SlotNumber};

/// Who asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asker {
    pub(super) worker: WorkerId,
    pub(super) client: ClientKey,
    pub(super) slot: SlotNumber,
}

impl Asker {
    /// No worker's number: there are 64 at most.
    pub(super) const AT_THE_DESK: WorkerId = WorkerId(u16::MAX);

    pub(super) fn at_the_desk(slot: SlotNumber) -> Asker {
        Asker { worker: Asker::AT_THE_DESK, client: NOBODY, slot }
    }

    pub(super) fn is(&self, worker: WorkerId, client: ClientKey) -> bool {
        (self.worker, self.client) == (worker, client)
    }
}

pub(super) const NOBODY: ClientKey = ClientKey { id: ClientId(0), occupant: Occupant(0) };
