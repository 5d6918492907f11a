//! Lists that a burst has made long: their memory is nobody's need for ever.

use std::collections::VecDeque;

/// So much room a list keeps whatever happens, in bytes.
const KEPT: usize = 64 << 10;

/// A list that keeps its room when it gets shorter.
pub trait Stretch {
    /// Whether most of its room is empty, and that is much.
    fn is_stretched(&self) -> bool;

    /// Gives back what is empty, if it is stretched, except for as much as is in use: to grow again
    /// costs no more for each of its elements than to have grown.
    fn give_back(&mut self);
}

fn is_much<T>(len: usize, room: usize) -> bool {
    room * size_of::<T>() > KEPT && len < room / 4
}

fn kept<T>(len: usize) -> usize {
    (2 * len).max(KEPT / size_of::<T>())
}

impl<T> Stretch for Vec<T> {
    #[inline(always)]
    fn is_stretched(&self) -> bool {
        is_much::<T>(self.len(), self.capacity())
    }

    fn give_back(&mut self) {
        if self.is_stretched() {
            self.shrink_to(kept::<T>(self.len()));
        }
    }
}

impl<T> Stretch for VecDeque<T> {
    #[inline(always)]
    fn is_stretched(&self) -> bool {
        is_much::<T>(self.len(), self.capacity())
    }

    fn give_back(&mut self) {
        if self.is_stretched() {
            self.shrink_to(kept::<T>(self.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_is_given_back_once_and_what_is_in_use_stays() {
        let small = KEPT / size_of::<u64>();
        let mut list: VecDeque<u64> = (0..10 * small as u64).collect();
        list.drain(..5 * small);
        list.give_back();
        assert!(list.capacity() >= 10 * small, "half of it is in use");
        list.drain(..4 * small);
        assert!(list.is_stretched());
        list.give_back();
        assert!(!list.is_stretched() && list.capacity() == 2 * small, "{}", list.capacity());
        assert!(list.iter().copied().eq(9 * small as u64..10 * small as u64));
        list.clear();
        list.give_back();
        assert_eq!(list.capacity(), small);
        let mut list = vec![0_u64; small];
        list.clear();
        assert!(!list.is_stretched(), "that little is kept");
    }
}
