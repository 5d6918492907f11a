//! The protocols that clients speak. The data plane asks a client's dialect for its next request,
//! and a request's style for how its outcome is written; it knows no other word of them.

use bytes::Bytes;

use super::answer;
use super::binary::{self, Opcode};
use super::classic::{self, SAID};
use super::foreign::Foreign;
use super::meta;
use super::out::OutQueue;
use super::outcome::Outcome;
use super::request::{Close, Limits, Parsed, Style};

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Dialect {
    /// It has sent nothing yet.
    #[default]
    Unknown,
    /// Lines of text: the classic protocol and the meta protocol.
    Text,
    Binary,
    /// None of memcached's.
    Foreign(Foreign),
}

impl Dialect {
    /// By what a connection begins with, as memcached decides: for good.
    pub fn of(first: &[u8]) -> Dialect {
        match first.first() {
            // A star alone may be anybody's: what comes next decides.
            None | Some(b'*') if first.len() < 2 => Dialect::Unknown,
            Some(&binary::MAGIC_REQUEST) => Dialect::Binary,
            _ => Foreign::of(first).map_or(Dialect::Text, Dialect::Foreign),
        }
    }

    /// What the input begins with.
    #[inline(always)]
    pub fn next(self, input: &[u8], limits: &Limits) -> Parsed {
        match self {
            Dialect::Text | Dialect::Unknown => classic::parse(input, limits),
            Dialect::Binary => binary::parse(input, limits),
            Dialect::Foreign(who) => {
                let close = Some(Close::Foreign(who));
                Parsed::Reject { reply: who.answer(), style: SAID, len: input.len(), swallow: 0, close }
            }
        }
    }

    /// Whether [`Dialect::next`] would want more of a request of which nothing is known yet, where
    /// the first `searched` bytes hold no end of it.
    pub fn goes_on(self, input: &[u8], searched: usize) -> bool {
        match self {
            Dialect::Text | Dialect::Unknown => super::line::goes_on(input, searched),
            Dialect::Binary | Dialect::Foreign(_) => false,
        }
    }

    /// How the answer to the request is told that the input begins with, however little of it is
    /// there.
    pub fn asked(self, input: &[u8]) -> Style {
        match self {
            Dialect::Binary => binary::style(input).unwrap_or(self.unasked()),
            _ => self.unasked(),
        }
    }

    /// How the proxy speaks unasked, or of a request that it has not understood.
    pub fn unasked(self) -> Style {
        match self {
            Dialect::Text | Dialect::Unknown | Dialect::Foreign(_) => SAID,
            Dialect::Binary => Style::Binary { opcode: Opcode(0), opaque: [0; 4] },
        }
    }
}

impl Style {
    /// That there is no place for another client.
    pub fn too_many(self) -> &'static [u8] {
        match self {
            Style::Classic { .. } | Style::Meta(_) => answer::TOO_MANY,
            Style::Binary { .. } => binary::TOO_MANY,
        }
    }

    /// Tells the outcome of a request.
    #[inline(always)]
    pub fn write(self, outcome: Outcome, out: &mut OutQueue) {
        match self {
            Style::Classic { noreply: true } => {}
            Style::Classic { noreply: false } => classic::write(outcome, out),
            Style::Binary { opcode, opaque } => binary::write(opcode, opaque, outcome, out),
            Style::Meta(hidden) => meta::write(hidden, outcome, out),
        }
    }

    /// Tells one value of several; what ends them is a [`Outcome::Miss`], or an error.
    #[inline(always)]
    pub fn write_value(self, item: Bytes, out: &mut OutQueue) {
        match self {
            Style::Classic { .. } | Style::Meta(_) => out.put_shared(item),
            Style::Binary { opcode, opaque } => binary::write(opcode, opaque, Outcome::Hit(item), out),
        }
    }
}
