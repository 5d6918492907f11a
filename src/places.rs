//! Things by place. A free place is given to the next one, the lowest first, so that the end of the
//! table becomes free when there are fewer, and its memory goes back.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::{Index, IndexMut};

use crate::stretch::Stretch;

/// See the module's words.
#[derive(Debug)]
pub struct Places<T> {
    /// The last one is taken.
    places: Vec<Option<T>>,
    /// Every free place, and some that are behind the end by now.
    free: BinaryHeap<Reverse<usize>>,
    taken: usize,
}

impl<T> Default for Places<T> {
    fn default() -> Places<T> {
        Places { places: Vec::new(), free: BinaryHeap::new(), taken: 0 }
    }
}

impl<T> Places<T> {
    /// Returns its place.
    pub fn insert(&mut self, thing: T) -> usize {
        self.taken += 1;
        if let Some(Reverse(at)) = self.free.pop()
            && let Some(place) = self.places.get_mut(at)
        {
            *place = Some(thing);
            return at;
        }
        // All that are behind the end are free, so that one was the next.
        self.places.push(Some(thing));
        self.places.len() - 1
    }

    /// Makes the place free; returns what was there.
    pub fn remove(&mut self, at: usize) -> Option<T> {
        let gone = self.places.get_mut(at)?.take()?;
        self.taken -= 1;
        self.free.push(Reverse(at));
        // Each was pushed once, so this takes no longer than that did.
        while let Some(None) = self.places.last() {
            self.places.pop();
        }
        self.places.give_back();
        if self.places.is_empty() {
            self.free = BinaryHeap::new();
        }
        Some(gone)
    }

    #[inline(always)]
    pub fn get(&self, at: usize) -> Option<&T> {
        self.places.get(at)?.as_ref()
    }

    #[inline(always)]
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.places.get_mut(at)?.as_mut()
    }

    pub fn len(&self) -> usize {
        self.taken
    }

    pub fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// All of them with their places, in order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.places.iter().enumerate().filter_map(|(at, place)| Some((at, place.as_ref()?)))
    }
}

impl<T> Index<usize> for Places<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, at: usize) -> &T {
        self.places[at].as_ref().expect("a place that is taken")
    }
}

impl<T> IndexMut<usize> for Places<T> {
    #[inline(always)]
    fn index_mut(&mut self, at: usize) -> &mut T {
        self.places[at].as_mut().expect("a place that is taken")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn answers_as_a_map_would_and_gives_back_its_end() {
        let (mut places, mut model) = (Places::default(), BTreeMap::new());
        let mut state = 16_u64;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let (mut most, mut ends) = (0, 0);
        for step in 0..200_000_u64 {
            // By turns mostly more, mostly fewer, down to none.
            if below(100) < if step % 20_000 < 10_000 { 70 } else { 5 } {
                let at = places.insert(step);
                assert!(model.insert(at, step).is_none(), "step {step}: given twice");
                assert!((0..at).rev().take(20).all(|lower| model.contains_key(&lower)), "step {step}: the lowest");
            } else {
                let last = model.last_key_value().map_or(0, |(at, _)| *at);
                let at = if below(4) > 0 { last } else { below(last as u64 + 10) as usize };
                assert_eq!(places.remove(at), model.remove(&at), "step {step}");
            }
            let last = model.last_key_value().map_or(0, |(at, _)| at + 1);
            assert_eq!((places.len(), places.places.len()), (model.len(), last), "step {step}");
            most = most.max(last);
            ends += u32::from(model.is_empty());
            if step % 1_000 == 0 {
                assert!(places.iter().map(|(at, thing)| (at, *thing)).eq(model.iter().map(|(at, t)| (*at, *t))));
                assert!(model.iter().all(|(&at, &thing)| places[at] == thing && places.get(at) == Some(&thing)));
            }
        }
        assert!(most > 3_000 && ends > 0, "{most} {ends}");
    }

    #[test]
    fn what_very_many_needed_is_given_back() {
        let mut places = Places::default();
        let all: Vec<usize> = (0..100_000_u64).map(|i| places.insert(i)).collect();
        for &at in &all[1..] {
            places.remove(at);
        }
        assert!(places.len() == 1 && places.places.capacity() < 10_000, "{}", places.places.capacity());
        places.remove(0);
        assert_eq!((places.free.capacity(), places.is_empty()), (0, true));
    }
}
