//! memcached's binary protocol, as clients speak it: requests in, outcomes out.
//!
//! What memcached 1.6.18 accepts is accepted, and what it refuses is refused with the same status
//! and text: `tests/it/binary_differential.rs` compares the two. It answers SASL as a memcached
//! without SASL does. Where it is not followed:
//!
//! - Behind a command that it does not know (`verbosity` among them) memcached throws away key and
//!   extras twice, and so the beginning of the next request: here the next request is the next one.
//! - What does not begin with the protocol's magic byte is told so before the connection is closed.
//! - An expiry in 2038 or later is one in January 2038: the servers are spoken to in text, which
//!   has 31 bits for it.
//! - A key that text cannot carry, with a blank, CR, LF or NUL in it and longer than 186 bytes, is
//!   refused: the others with such bytes go to the servers in base64 ([`super::key`]).

mod header;
mod parse;
mod write;

pub use header::{HEADER_LEN, MAGIC_REQUEST, Opcode};
pub(crate) use header::{Header, MAGIC_RESPONSE};
pub use parse::{TOO_MANY, parse, style};
pub(super) use write::write;

#[cfg(test)]
mod tests;
