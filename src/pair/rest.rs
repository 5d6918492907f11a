//! Which of a pair's nodes may lead with the items that it did not miss, once no full copy is left.

use super::State;
use crate::ids::Place;

/// The places whose nodes have kept their memory since the pair was last mirrored.
///
/// As long as every key is listed whose last write may have reached one node only, such a node
/// holds what is true under any other key. Where the node that led has lost its memory, or never
/// comes back, deleting the listed keys leaves a part of the items, none of them old.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Kept([bool; 2]);

impl Kept {
    /// Both nodes hold the same, and the list is empty.
    pub fn mirrored(&mut self) {
        self.0 = [true; 2];
    }

    /// The node at `place` has another memory than before.
    pub fn lost_by(&mut self, place: Place) {
        self.0[place as usize] = false;
    }

    /// Whether the node at `place` has kept its memory.
    pub fn by(self, place: Place) -> bool {
        self.0[place as usize]
    }

    /// Whether the node at `place`, purged of what is listed, may lead.
    ///
    /// Not the one that is awaited: until its memory is proved gone, it leads with everything. Nor
    /// one beside a verified part, which leads in its place.
    pub fn may_lead(self, state: State, place: Place) -> bool {
        let dark = matches!(state, State::Dark { in_sync, fallback: None } if in_sync != Some(place));
        dark && self.by(place)
    }
}
