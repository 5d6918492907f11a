//! Lists of keys that workers write for others to read: keys that a lost node missed, keys to be
//! copied again, keys with one copy.

mod lone;
mod missed;
mod recopy;

pub use lone::Lone;
pub use missed::{Missed, MissedBudget};
pub use recopy::{MAX_RECOPY_KEYS, Recopy};
