//! The protocols that clients speak. The data plane asks a client's dialect for its next request,
//! and a request's style for how its outcome is written; it knows no other word of them.

use bytes::Bytes;

use super::binary;
use super::classic;
use super::meta;
use super::out::OutQueue;
use super::outcome::Outcome;
use super::request::{Limits, Parsed, Style};

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Dialect {
    /// Lines of text: the classic protocol and the meta protocol.
    #[default]
    Text,
}

impl Dialect {
    /// What the input begins with.
    #[inline(always)]
    pub fn next(self, input: &[u8], limits: &Limits) -> Parsed {
        match self {
            Dialect::Text => classic::parse(input, limits),
        }
    }

    /// Whether [`Dialect::next`] would want more of a request of which nothing is known yet, where
    /// the first `searched` bytes hold no end of it.
    pub fn goes_on(self, input: &[u8], searched: usize) -> bool {
        match self {
            Dialect::Text => super::line::goes_on(input, searched),
        }
    }

    /// Bytes of the longest request, except for values.
    pub fn longest(self) -> usize {
        match self {
            Dialect::Text => classic::LINE_MAX,
        }
    }

    /// How the proxy speaks unasked, or of a request that it has not understood.
    pub fn unasked(self) -> Style {
        match self {
            Dialect::Text => Style::Classic { noreply: false },
        }
    }
}

impl Style {
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
