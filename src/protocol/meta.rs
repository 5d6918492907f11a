//! memcached's meta protocol, as clients speak it beside the classic one: requests in, answers out.
//!
//! What memcached 1.6.18 refuses is refused with the same bytes. Of what later versions added, `x`
//! is passed on for the node to judge, and so are flags that have a meaning there only with a
//! certain command; `E` is refused: cas ids that clients choose would defeat the comparison of two
//! copies.
//!
//! A request is a [`Meta`]: the command, and those of its flags that decide what it does to the
//! item. The other flags stand in its line until a node is written to ([`line`](mod@line)), and the
//! node's answer is the client's, with the cas id changed ([`answer`]).

pub mod answer;
pub mod command;
pub mod line;
mod parse;

use super::KEY_LEN_MAX;
use super::out::OutQueue;
use super::outcome::Outcome;

pub use command::{Change, Flag, Meta, Mode, Verb};
pub(super) use parse::Command;

/// What is answered to `mn`.
const MN: &[u8] = b"MN\r\n";

/// Longest opaque token, with its `O`.
const OPAQUE_LEN_MAX: usize = 32;

/// Which answers the client does not want to see (`q`). Errors are always told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hidden {
    Nothing,
    /// `EN`, of `mg`.
    Misses,
    /// `HD`, and `VA` of `ma`.
    Successes,
}

impl Hidden {
    fn hides(self, answer: &[u8]) -> bool {
        match self {
            Hidden::Nothing => false,
            Hidden::Misses => answer.starts_with(b"EN"),
            Hidden::Successes => answer.starts_with(b"HD") || answer.starts_with(b"VA"),
        }
    }
}

/// Writes what came of a request.
pub fn write(hidden: Hidden, outcome: Outcome, out: &mut OutQueue) {
    match outcome {
        Outcome::Raw(bytes) if hidden.hides(&bytes) => {}
        Outcome::Miss if hidden == Hidden::Misses => {}
        Outcome::Miss => out.put(b"EN\r\n"),
        Outcome::Done => out.put(MN),
        told => super::classic::write(told, out),
    }
}

/// A key as its base64 says, decoded in place of the text.
pub struct Decoded {
    bytes: [u8; KEY_LEN_MAX],
    len: usize,
}

impl Decoded {
    /// `None`: that is no base64 to memcached, which passes over what does not belong there.
    pub fn of(text: &[u8]) -> Option<Decoded> {
        let mut decoded = Decoded { bytes: [0; KEY_LEN_MAX], len: 0 };
        decoded.len = super::base64::decode(text, &mut decoded.bytes)?;
        Some(decoded)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests;
