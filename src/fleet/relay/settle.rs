//! Whose an answer is that has come, and what it settles of what was asked before.
//!
//! What may get no answer is settled by one to a later request, where its words tell that it is
//! none to a quiet one, or by one to a no-op. Where the client asks none, and this proxy has to
//! know, it asks one itself, and keeps the answer: it holds back what may be the beginning of that.

use crate::protocol::binary::{HEADER_LEN, MAGIC_REQUEST, Opcode};
use crate::protocol::node;

use super::Relay;
use super::answers::{End, Said};
use super::requests::Owed;

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;

/// A no-op of this proxy's own in the binary protocol, and what comes back with its answer.
const OPAQUE: [u8; 4] = *b"own?";
const BINARY_NOOP: [u8; HEADER_LEN] = {
    let mut packet = [0; HEADER_LEN];
    (packet[0], packet[1]) = (MAGIC_REQUEST, Opcode::NOOP.0);
    let mut at = 0;
    while at < OPAQUE.len() {
        packet[12 + at] = OPAQUE[at];
        at += 1;
    }
    packet
};

impl Relay {
    /// Something of an answer has gone to the client, and not all.
    pub(super) fn is_amid_answer(&self) -> bool {
        self.answers.is_begun() && self.held.is_empty()
    }

    /// Asks behind what may get no answer, unless something that settles it is asked already.
    pub(super) fn ask_behind(&mut self) {
        let can_ask = self.link.is_some() && !self.half_closed && !self.opaque && self.left == 0;
        if !can_ask || self.asks || self.is_to_be_settled() {
            return;
        }
        let binary = matches!(self.owed.back(), Some(Owed::Named { .. }));
        self.to_link.extend_from_slice(if binary { &BINARY_NOOP } else { node::NOOP });
        self.owed.push_back(Owed::Own);
        self.asks = true;
    }

    /// Whether the answers that are to come tell of all that was asked.
    fn is_to_be_settled(&self) -> bool {
        let mut answered = false;
        for owed in self.owed.iter().rev() {
            match owed {
                Owed::NoOp | Owed::Own | Owed::Named { quiet: false, .. } => return true,
                Owed::Perhaps { .. } | Owed::Named { quiet: true, .. } => return false,
                Owed::Nothing if !answered => return false,
                Owed::Answer | Owed::Read(_) => answered = true,
                Owed::Nothing | Owed::Told(_) => {}
            }
        }
        true
    }

    /// Answers have come.
    pub(super) fn answered(&mut self, mut bytes: &[u8]) {
        if self.opaque {
            return self.to_client.extend_from_slice(bytes);
        }
        while !bytes.is_empty() {
            let (taken, end) = self.answers.take(bytes);
            let (piece, rest) = bytes.split_at(taken);
            bytes = rest;
            while self.owed.front() == Some(&Owed::Nothing) {
                self.owed.pop_front();
            }
            match end {
                None if self.asks && self.answers.may_be_no_op() => self.held.extend_from_slice(piece),
                Some(end) if self.is_own(end) => self.held.clear(),
                _ => {
                    self.to_client.extend_from_slice(&self.held);
                    self.held.clear();
                    self.to_client.extend_from_slice(piece);
                }
            }
            match end {
                Some(End::Text(said)) => self.text_ended(said),
                Some(End::NoOp) => self.no_op_ended(),
                Some(End::Binary { opcode, opaque }) => self.binary_ended(opcode, opaque),
                None => continue,
            }
            self.asked = tokio::time::Instant::now();
            self.tell_front();
        }
        self.awaits = self.owed.iter().any(Owed::is_awaited);
    }

    /// Whether that ends the answer to this proxy's own question.
    fn is_own(&self, end: End) -> bool {
        let answers_no_op = match end {
            End::NoOp => true,
            End::Binary { opcode, opaque } => (opcode, opaque) == (Opcode::NOOP, OPAQUE),
            End::Text(_) => false,
        };
        let no_op = |owed: &&Owed| matches!(owed, Owed::NoOp | Owed::Own | Owed::Named { opcode: Opcode::NOOP, .. });
        self.asks && answers_no_op && self.owed.iter().find(no_op) == Some(&Owed::Own)
    }

    fn text_ended(&mut self, said: Said) {
        let answers = |owed: &Owed| match (owed, said) {
            (Owed::Nothing, _) | (Owed::Perhaps { .. }, Said::Aloud) => false,
            (Owed::Perhaps { reads }, Said::Found) => *reads,
            _ => true,
        };
        while self.owed.front().is_some_and(|owed| !answers(owed)) {
            self.owed.pop_front();
        }
        match self.owed.front() {
            Some(Owed::Answer | Owed::Read(_)) => drop(self.owed.pop_front()),
            // It may be the answer to any that follows, before a no-op. (Or it is an error that
            // tells of what is owed nothing.)
            Some(Owed::Perhaps { .. } | Owed::Own) => {}
            _ => self.opaque = true,
        }
    }

    fn no_op_ended(&mut self) {
        while let Some(owed) = self.owed.pop_front() {
            self.asks &= owed != Owed::Own;
            if matches!(owed, Owed::NoOp | Owed::Own) {
                return;
            }
        }
        self.opaque = true;
    }

    fn binary_ended(&mut self, opcode: Opcode, opaque: [u8; 4]) {
        while let Some(owed) = self.owed.front() {
            let (asked, quiet) = match *owed {
                Owed::Named { opcode, opaque, quiet } => ((opcode, opaque), quiet),
                Owed::Own => ((Opcode::NOOP, OPAQUE), false),
                _ => break,
            };
            let found = asked == (opcode, opaque);
            if !found && !quiet {
                break;
            }
            self.asks &= *owed != Owed::Own;
            self.owed.pop_front();
            if found {
                return;
            }
        }
        self.opaque = true;
    }
}
