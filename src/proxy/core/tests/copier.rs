//! The resync of the one key, step by step: read, add, verify, undo; and the keys that are to be
//! copied again.

use crate::keys::Recopy;

use super::node::{Item, Node, is_held_back};
use super::world::KEY;

#[derive(Clone, Debug)]
enum Step {
    Read,
    Add(Item),
    Verify { read: Item, stored: u64 },
}

#[derive(Clone, Debug)]
pub(super) struct Copier {
    /// `None`: nothing in hand.
    step: Option<Step>,
    enumerated: bool,
}

impl Copier {
    pub(super) fn new() -> Copier {
        Copier { step: None, enumerated: false }
    }

    /// Of a partial resync that has copied every key that was missed.
    pub(super) fn of_what_comes() -> Copier {
        Copier { step: None, enumerated: true }
    }

    pub(super) fn has_work(&self, recopy: &Recopy) -> bool {
        self.step.is_some() || !self.enumerated || !recopy.is_empty()
    }

    pub(super) fn is_done(&self, recopy: &Recopy) -> bool {
        !self.has_work(recopy)
    }

    pub(super) fn step(&mut self, nodes: &mut [Node; 2], source: usize, target: usize, recopy: &Recopy) {
        let held = nodes[source].items.get(KEY.as_bytes()).filter(|item| !is_held_back(item.mark)).cloned();
        self.step = match self.step.take() {
            None => {
                if !self.enumerated {
                    self.enumerated = true;
                } else {
                    recopy.take_batch(1);
                }
                Some(Step::Read)
            }
            Some(Step::Read) => held.map(Step::Add),
            Some(Step::Add(read)) => {
                let there = nodes[target].items.get(KEY.as_bytes()).cloned();
                match there {
                    None => {
                        let line = format!("ms {KEY} {} ME F{} T{}\r\n", read.value.len(), read.flags, read.exptime);
                        nodes[target].execute(&[line.into_bytes(), read.value.clone(), b"\r\n".to_vec()].concat());
                        let stored = nodes[target].items[KEY.as_bytes()].cas;
                        Some(Step::Verify { read, stored })
                    }
                    Some(there)
                        if held.as_ref().is_some_and(|h| h.value == there.value && h.exptime == there.exptime) =>
                    {
                        None
                    }
                    Some(_) => {
                        nodes[target].items.remove(KEY.as_bytes());
                        Some(Step::Read)
                    }
                }
            }
            Some(Step::Verify { read, stored }) => {
                if held.is_some_and(|h| h.cas == read.cas && h.exptime == read.exptime) {
                    None
                } else {
                    if nodes[target].items.get(KEY.as_bytes()).is_some_and(|i| i.cas == stored) {
                        nodes[target].items.remove(KEY.as_bytes());
                    }
                    Some(Step::Read)
                }
            }
        };
    }
}
