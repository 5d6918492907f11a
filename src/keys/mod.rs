//! Keys that workers write down for others to read: what a lost node missed, what is to be copied
//! again, what has one copy.

mod lone;
mod missed;
mod recopy;

pub use lone::Lone;
pub use missed::{Missed, MissedBudget};
pub use recopy::{MAX_RECOPY_KEYS, Recopy};
