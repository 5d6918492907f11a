//! memcached's protocols as bytes: requests from clients, replies from nodes. Pure: no I/O, no
//! clock.
//!
//! Both parsers take what has arrived so far and say what it begins with; they keep no state.
//! Ranges are offsets into the buffer that was parsed, so that nothing is copied or allocated.

pub mod answer;
pub mod classic;
pub mod clock;
mod command;
pub mod dump;
pub mod expiry;
#[cfg(test)]
mod fuzz;
pub mod item;
pub mod key;
mod line;
pub mod node;
pub mod number;
pub mod out;
pub mod outcome;
pub mod reply;
pub mod request;

/// Longest key, in bytes, memcached's `KEY_MAX_LENGTH`.
pub const KEY_LEN_MAX: usize = 250;
