//! Lists with one entry for each node, or for each pair, in the order of their numbers. The id is
//! the index, and nothing else is: a node's number cannot stand in a pair's place.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

use super::{NodeId, PairId};

/// An id that counts from 0.
pub trait Numbered: Copy {
    fn of(number: usize) -> Self;
    fn number(self) -> usize;
}

impl Numbered for NodeId {
    fn of(number: usize) -> NodeId {
        NodeId(number as u16)
    }

    fn number(self) -> usize {
        self.index()
    }
}

impl Numbered for PairId {
    fn of(number: usize) -> PairId {
        PairId(number as u32)
    }

    fn number(self) -> usize {
        self.index()
    }
}

/// See the module's words.
#[derive(Clone, Debug)]
pub struct ById<I, T> {
    entries: Vec<T>,
    id: PhantomData<I>,
}

impl<I: Numbered, T> ById<I, T> {
    /// With the ids.
    pub fn all(&self) -> impl Iterator<Item = (I, &T)> {
        self.entries.iter().enumerate().map(|(number, entry)| (I::of(number), entry))
    }

    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.entries.iter()
    }

    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.entries.iter_mut()
    }

    /// `None`: there is none with this id.
    pub fn get_mut(&mut self, id: I) -> Option<&mut T> {
        self.entries.get_mut(id.number())
    }

    /// Several at once; `None`: two ids are the same, or there is none with one of them.
    pub fn get_disjoint_mut<const N: usize>(&mut self, ids: [I; N]) -> Option<[&mut T; N]> {
        self.entries.get_disjoint_mut(ids.map(I::number)).ok()
    }
}

impl<I: Numbered, T> Index<I> for ById<I, T> {
    type Output = T;

    fn index(&self, id: I) -> &T {
        &self.entries[id.number()]
    }
}

impl<I: Numbered, T> IndexMut<I> for ById<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.entries[id.number()]
    }
}

impl<I: Numbered, T> FromIterator<T> for ById<I, T> {
    fn from_iter<E: IntoIterator<Item = T>>(entries: E) -> ById<I, T> {
        ById { entries: entries.into_iter().collect(), id: PhantomData }
    }
}

impl<'a, I: Numbered, T> IntoIterator for &'a ById<I, T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, I: Numbered, T> IntoIterator for &'a mut ById<I, T> {
    type Item = &'a mut T;
    type IntoIter = std::slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_an_id_is_the_one_at_its_number() {
        let mut letters: ById<NodeId, char> = "abc".chars().collect();
        letters[NodeId(1)] = 'B';
        assert_eq!(letters.all().collect::<Vec<_>>(), [(NodeId(0), &'a'), (NodeId(1), &'B'), (NodeId(2), &'c')]);
        assert_eq!(letters.get_disjoint_mut([NodeId(2), NodeId(0)]), Some([&mut 'c', &mut 'a']));
        assert_eq!(letters.get_disjoint_mut([NodeId(2), NodeId(2)]), None, "one cannot be borrowed twice");
        assert_eq!((letters.get_mut(NodeId(0)).is_some(), letters.get_mut(NodeId(3))), (true, None));
        let pairs: ById<PairId, PairId> = (0..3).map(PairId).collect();
        assert!(pairs.all().all(|(id, own)| id == *own));
    }
}
