//! How large a node's items may be, by what it says of its slab classes: before a client meets one.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use crate::backend::NodeError;

use super::{Connection, NodeControl};

/// Of smaller ones as many as a client may have read at once come in a moment.
const LARGE: u64 = 64 << 10;

/// A class has items of different sizes. None of them is much larger than so many averages.
const SPREAD: u64 = 2;

/// Large ones are rare where less than one item of so many is.
const RARE: u64 = 1000;

/// What nodes say of their items' sizes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stored {
    /// About as large as the largest, in bytes; 0 = none is large.
    pub largest: u32,
    large: u64,
    items: u64,
}

impl Stored {
    /// By the lines of `stats items`. `most`: no item is larger.
    fn of(lines: &[(String, String)], most: usize) -> Stored {
        let mut classes: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (name, value) in lines {
            let Some((class, figure)) = name.strip_prefix("items:").and_then(|name| name.split_once(':')) else {
                continue;
            };
            let number = value.parse().unwrap_or(0);
            match figure {
                "number" => classes.entry(class).or_default().0 = number,
                "mem_requested" => classes.entry(class).or_default().1 = number,
                _ => {}
            }
        }
        let mut stored = Stored::default();
        for (items, bytes) in classes.into_values() {
            stored.items = stored.items.saturating_add(items);
            let largest = bytes.checked_div(items).unwrap_or(0).saturating_mul(SPREAD);
            if largest >= LARGE {
                stored.large = stored.large.saturating_add(items);
                let largest = largest.min(most as u64);
                stored.largest = stored.largest.max(u32::try_from(largest).unwrap_or(u32::MAX));
            }
        }
        stored
    }

    /// What both hold.
    pub fn with(self, other: Stored) -> Stored {
        Stored {
            largest: self.largest.max(other.largest),
            large: self.large.saturating_add(other.large),
            items: self.items.saturating_add(other.items),
        }
    }

    /// Hardly any is large.
    pub fn is_rarely_large(&self) -> bool {
        self.large.saturating_mul(RARE) <= self.items
    }
}

impl Connection {
    /// Asks for it; as [`Stored::of`].
    pub(super) async fn stored(&mut self, deadline: super::Limit, most: usize) -> Result<Stored, NodeError> {
        Ok(Stored::of(&self.pipe.stats("items", deadline).await?, most))
    }
}

impl NodeControl {
    /// How large its items may be.
    pub async fn stored(&self) -> Result<Stored, NodeError> {
        let most = self.value_max.load(Relaxed);
        self.connected(async |connection, deadline| connection.stored(deadline, most).await).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: usize = 1 << 20;

    /// Of a memcached with classes of these many items, and bytes.
    fn of(classes: &[(u64, u64)]) -> Stored {
        let line = |class: usize, figure: &str, value: u64| (format!("items:{class}:{figure}"), value.to_string());
        let lines: Vec<(String, String)> = classes
            .iter()
            .enumerate()
            .flat_map(|(class, &(number, bytes))| {
                [line(class, "number", number), line(class, "number_hot", 7), line(class, "mem_requested", bytes)]
            })
            .collect();
        Stored::of(&lines, MB)
    }

    #[test]
    fn the_largest_class_tells_how_large_items_may_be() {
        assert_eq!(of(&[]), Stored::default());
        let small = of(&[(1_000_000, 100_000_000), (10, 10 * 32_000)]);
        assert_eq!((small.largest, small.is_rarely_large()), (0, true));
        let some = of(&[(1_000_000, 100_000_000), (10, 400_000), (0, 0)]);
        assert_eq!((some.largest, some.is_rarely_large()), (80_000, true));
        let many = of(&[(1000, 100_000), (5, 3_668_305), (2, 200_000)]);
        assert_eq!((many.largest, many.is_rarely_large()), (MB as u32, false), "no larger than its -I");
        assert_eq!(of(&[(0, 3_000_000)]).largest, 0, "nothing is there any more");
        let both = some.with(many);
        assert_eq!((both.largest, both.is_rarely_large()), (MB as u32, true), "17 of a million");
    }
}
