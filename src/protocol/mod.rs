//! The wire layer: whatever reads or writes memcached's bytes. Pure: no I/O, no clock.
//!
//! Clients: a [`dialect`] makes [`request`]s of their input, and writes [`outcome`]s. Servers:
//! [`node`] writes commands, with keys as [`key`] says; [`reply`] reads what they answer, [`item`]
//! what a meta answer says of an item. A new dialect of clients is a file here, an arm in
//! [`dialect::Dialect`] and a [`request::Style`].
//!
//! Parsers take what has arrived so far and say what it begins with; they keep no state. Ranges are
//! offsets into the buffer that was parsed, so that nothing is copied or allocated.

pub mod answer;
pub(crate) mod base64;
pub mod binary;
pub mod classic;
pub mod clock;
pub mod dialect;
pub mod dump;
pub mod expiry;
pub mod foreign;
#[cfg(test)]
mod fuzz;
pub mod item;
pub mod key;
mod line;
pub mod mark;
pub mod meta;
pub mod node;
pub mod number;
pub mod out;
pub mod outcome;
pub mod reply;
pub mod request;
pub mod spelled;
pub(crate) mod statistics;
pub mod told;
pub mod whole;

/// Longest key, in bytes, memcached's `KEY_MAX_LENGTH`.
pub const KEY_LEN_MAX: usize = 250;
