//! One client command on one key, on its way through the pair: the rules of "leader first, then the
//! follower", without I/O.

mod counted;
mod tables;

use std::ops::Range;

use bytes::Bytes;

use crate::ids::{Incarnation, KeyId, NodeId, PairId, Term, WorkerId};
use crate::protocol::key::wire_form;
use crate::protocol::meta::{self, Flag, Meta, Verb};
use crate::protocol::node;
use crate::protocol::out::OutQueue;
use crate::protocol::outcome::Outcome;
use crate::protocol::reply::ReplyKind;
pub use crate::protocol::request::Kind;
use crate::protocol::request::{Family, Keyed};
use crate::protocol::told::Told;
use crate::rules::{Rule, holds};

use super::handles::{ClientKey, ConnId, SlotNumber, Ticket};
pub(super) use counted::{count, count_end, count_read};
pub use tables::Mirror;
pub(super) use tables::{Agreement, Effect, agreement, effect, meta_agreement, mirror, mirror_filling, shows_absence};

/// How a node is spoken to about an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire {
    /// The classic protocol, which costs least.
    Classic,
    /// The meta protocol, with the key in base64 where it is `binary`.
    Meta { binary: bool },
}

impl Wire {
    /// What a client's request takes.
    #[inline(always)]
    pub(super) fn of_request(request: &Keyed, key: &[u8]) -> Wire {
        if request.tells_cas { Wire::telling(request.kind, key) } else { Wire::Classic }
    }

    /// Where the client is told the cas id. (A classic `gets` tells it too.)
    fn telling(kind: Kind, key: &[u8]) -> Wire {
        let binary = wire_form(key) == Some(true);
        if kind.family() == Family::Retrieve && !binary { Wire::Classic } else { Wire::Meta { binary } }
    }

    /// What a key takes of which nothing else is asked.
    pub(super) fn of_key(key: &[u8]) -> Wire {
        if wire_form(key) == Some(true) { Wire::Meta { binary: true } } else { Wire::Classic }
    }
}

/// Both copies of a counter that may be new expire within this many seconds: each node counts them
/// by a clock of its own.
const COUNTER_SLACK_SECS: u64 = 2;

impl Op {
    /// [`agreement`] of a follower that was spoken to in the meta protocol.
    ///
    /// Where the number is the first one, it is unknown whether it was stored or counted. Two nodes
    /// that have not done the same have items that expire at other times, or one of them is known
    /// to lack the key.
    pub(super) fn agrees(&self, told: &Told) -> Option<Agreement> {
        let agreement = agreement(self.sent, self.number, &told.kind)?;
        let may_be_new = self.sent == Mirror::Arithmetic && self.initial == Some(self.number);
        let together = (self.ttl < 0) == (told.ttl < 0) && self.ttl.abs_diff(told.ttl) <= COUNTER_SLACK_SECS;
        Some(if may_be_new && !together { Agreement::Differ } else { agreement })
    }
}

/// Who waits for the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    Client(Asker),
    /// The control plane; with the ticket of its command.
    Control(Ticket),
    /// What waits for a look at this key.
    Look(KeyId),
}

/// A client that waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// The worker that serves the client.
    pub worker: WorkerId,
    /// Which client there.
    pub client: ClientKey,
    pub slot: SlotNumber,
    /// Which key of the request.
    pub part: u32,
    /// It counts among the client's keys being read.
    pub read: bool,
}

/// Where an operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nothing was sent under the present route.
    New,
    /// The leader was asked how much time the item has left; unanswered.
    Look(NodeId),
    /// The look has won the right to recompute a stale item, which goes back; unanswered.
    GiveBack { node: NodeId, cas: u64 },
    /// Sent to the leader, unanswered.
    Leader(NodeId),
    /// The leader has answered; what it said counts once its marker is read.
    Proof(NodeId),
    /// The leader has answered; sent to the follower, unanswered.
    Follower(NodeId),
    /// The two differ; being repaired.
    Repair,
    /// Done; the client is told once the fleet's mark was read on this node.
    Mark(NodeId),
    /// Waits for its pair's gate: to be begun.
    Parked,
    /// Waits for its pair's gate: the leader executed it, the follower is lost, and the client may
    /// be answered only once that is recorded on this node.
    Held(NodeId),
    /// Waits for its pair's gate: it was sent to this node and may or may not have been executed
    /// there.
    Unknown(NodeId),
    /// Waits for its pair's gate: this node executed it in this memory, or in one that was gone
    /// already. The answer is right if that memory leads again; otherwise nothing has happened.
    Executed(NodeId, Option<Incarnation>),
}

impl Stage {
    /// Begun and unanswered: its pair's gate waits for it.
    pub fn is_in_flight(self) -> bool {
        let looks = matches!(self, Stage::Look(_) | Stage::GiveBack { .. });
        let done = matches!(self, Stage::Repair | Stage::Mark(_));
        looks || done || matches!(self, Stage::Leader(_) | Stage::Proof(_) | Stage::Follower(_))
    }
}

/// A command on one key.
#[derive(Debug)]
pub struct Op {
    /// Who waits for the answer.
    pub origin: Origin,
    /// What is done.
    pub kind: Kind,
    /// With whose items.
    pub pair: PairId,
    /// What it makes a connection carry: the value that is written, or what is expected of the one
    /// that is read. Bytes.
    pub bytes: u32,
    /// Chooses owner and connection: the same for all commands on the key.
    pub hash: u32,
    /// The request as the client sent it, or a part of it that holds key and data.
    pub raw: Bytes,
    /// The key, in `raw`.
    pub key: (u32, u32),
    /// The value, in `raw`.
    pub data: (u32, u32),
    /// Client flags.
    pub flags: u32,
    /// As the client gave it.
    pub exptime: i64,
    /// The date that it means, by the proxy's clock, once it was begun; `None` = each node is told
    /// what the client said.
    pub date: Option<i64>,
    /// The client's cas token.
    pub cas: u64,
    /// The client is told the item's cas id.
    pub tells_cas: bool,
    /// How nodes are spoken to.
    pub wire: Wire,
    /// Of incr and decr.
    pub delta: u64,
    /// What they store where there is nothing.
    pub initial: Option<u64>,
    /// Where it is.
    pub stage: Stage,
    /// What the client will be told, once decided.
    pub answer: Option<Outcome>,
    /// That is so whatever the leader answers.
    pub decided: bool,
    /// What the leader counted, for incr and decr, and when that expires.
    pub number: u64,
    pub ttl: i64,
    /// What the follower was sent.
    pub sent: Mirror,
    /// How long the follower's item was before it counted.
    pub(super) length: u32,
    /// When it was first parked, microseconds of the worker's clock; 0 = never.
    pub parked_at_us: u64,
    /// The data of a repair under way.
    pub repair: Option<Box<Repair>>,
}

/// What a follower's answer means to the client if it leads next.
#[derive(Debug)]
pub(super) struct Decisive {
    pub(super) answer: Outcome,
    /// The follower holds no such item.
    pub(super) absent: bool,
}

/// A repair under way: what the leader holds.
#[derive(Debug, Default)]
pub struct Repair {
    /// What the client is told if the follower leads next, which answered the same write
    /// differently. `None`: the follower was not sent it.
    pub(super) decisive: Option<Decisive>,
    /// Nobody knows yet whether the copies differ.
    pub(super) doubted: bool,
    /// How often it was begun.
    pub tries: u32,
    /// Commands of the repair that are unanswered.
    pub outstanding: u32,
    /// Where they were sent, and their numbers there; those that are answered, too, until all are.
    pub sent: Vec<(ConnId, u64)>,
}

impl Op {
    /// One that has not begun, without value, flags or numbers.
    #[inline(always)]
    pub fn new(origin: Origin, kind: Kind, pair: PairId, hash: u32, raw: Bytes, key: (u32, u32)) -> Op {
        Op {
            origin,
            kind,
            pair,
            bytes: 0,
            hash,
            raw,
            key,
            data: (0, 0),
            flags: 0,
            exptime: 0,
            date: None,
            cas: 0,
            tells_cas: false,
            wire: Wire::Classic,
            delta: 0,
            initial: None,
            stage: Stage::New,
            answer: None,
            decided: false,
            number: 0,
            ttl: -1,
            sent: Mirror::Set,
            length: 0,
            parked_at_us: 0,
            repair: None,
        }
    }

    /// It is finished, and holds no memory any more.
    pub(super) fn let_go(&mut self) {
        self.raw = Bytes::new();
        self.answer = None;
        self.repair = None;
    }

    /// The key.
    #[inline(always)]
    pub fn key(&self) -> &[u8] {
        &self.raw[self.key.0 as usize..self.key.1 as usize]
    }

    /// The flags that a meta command came with.
    pub(super) fn words(&self, meta: Meta) -> impl Iterator<Item = &[u8]> {
        meta::line::flags(meta, &self.raw, self.key.1 as usize)
    }

    /// Whether it may store something because nothing was there.
    #[inline(always)]
    pub(super) fn creates(&self) -> bool {
        self.kind.adds() || self.initial.is_some()
    }

    /// Whether the copies may differ though both have counted to the same number. An item that is
    /// longer than the number is written over, with blanks behind the number; or, while somebody
    /// holds the item, replaced by one without blanks: a read that is being sent holds it, and so
    /// does memcached, which moves an item in its LRU after a second get. `5` stood on one server
    /// and `5  ` on the other. Where the item is no longer than the number, both give the same.
    pub(super) fn may_have_blanks(&self) -> bool {
        self.sent == Mirror::Arithmetic && self.length > self.number.checked_ilog10().unwrap_or(0) + 1
    }

    /// That there is nothing, to a read.
    pub(super) fn miss(&self) -> Outcome {
        match self.tells_cas {
            true => Outcome::MissOf(self.raw.slice(self.key.0 as usize..self.key.1 as usize)),
            false => Outcome::Miss,
        }
    }

    /// Whether what the leader counted is what a counter begins with: it was stored now, or
    /// counting has come to the same number.
    #[inline]
    pub(super) fn shows_first_number(&self) -> bool {
        match self.kind {
            _ if !self.creates() => false,
            Kind::Meta(meta @ Meta { verb: Verb::Arithmetic, .. }) => {
                meta::line::initial(self.words(meta)) == self.number
            }
            _ => self.initial == Some(self.number),
        }
    }

    /// Whether the leader's answer says that the key was not there.
    #[inline(always)]
    pub(super) fn shows_absence(&self, reply: &ReplyKind) -> bool {
        match (reply, self.initial) {
            // It was stored now, or counting has come to the same number.
            (ReplyKind::Number(number), Some(initial)) => *number == initial,
            _ => shows_absence(self.kind, reply),
        }
    }

    /// Writes the command for the leader. `term`: the present one; the token was checked against
    /// it. `exptime`: as the leader is told it.
    pub fn encode_leader(&self, out: &mut OutQueue, term: Option<Term>, exptime: i64) {
        match self.wire {
            Wire::Classic => node::command(out, self.kind, self, exptime, || match self.kind {
                Kind::Meta(meta) if self.cas == 0 && meta.takes_any_at_zero() => 0,
                _ => node_cas(self.cas, term),
            }),
            Wire::Meta { binary } => {
                let cas = (self.cas != 0).then(|| node_cas(self.cas, term));
                node::meta_command(out, self.kind, self, binary, exptime, cas);
            }
        }
    }

    /// Writes the command for the follower, which is told `exptime`.
    pub fn encode_follower(&self, out: &mut OutQueue, mirror: Mirror, exptime: i64) {
        let wire = match self.kind {
            Kind::Meta(meta) => Wire::Meta { binary: meta.has(Flag::Binary) },
            _ => self.wire,
        };
        match (mirror, wire) {
            (Mirror::Set, Wire::Classic) => node::set(out, self, exptime),
            (Mirror::Set, Wire::Meta { binary }) => node::meta_set(out, self, binary, exptime),
            (Mirror::Delete | Mirror::Drop | Mirror::Withhold, Wire::Classic) => node::delete_classic(out, self),
            (Mirror::Delete | Mirror::Drop | Mirror::Withhold, Wire::Meta { binary }) => {
                node::meta_delete(out, self, binary)
            }
            (Mirror::Arithmetic | Mirror::Concat, Wire::Classic) => self.encode_leader(out, None, exptime),
            (Mirror::Arithmetic | Mirror::Concat, Wire::Meta { binary }) => {
                let created = self.initial == Some(self.number);
                node::meta_repeat(out, self.kind, self, binary, (created, exptime));
            }
            (Mirror::Touch, Wire::Classic) => node::touch(out, self, exptime),
            (Mirror::Touch, Wire::Meta { binary }) => node::meta_touch(out, self, binary, exptime),
        }
    }
}

impl node::Command for Op {
    #[inline(always)]
    fn key(&self) -> &[u8] {
        Op::key(self)
    }

    #[inline(always)]
    fn key_end(&self) -> usize {
        self.key.1 as usize
    }

    #[inline(always)]
    fn raw(&self) -> &Bytes {
        &self.raw
    }

    #[inline(always)]
    fn data(&self) -> Range<usize> {
        self.data.0 as usize..self.data.1 as usize
    }

    #[inline(always)]
    fn flags(&self) -> u32 {
        self.flags
    }

    #[inline(always)]
    fn delta(&self) -> u64 {
        self.delta
    }

    fn initial(&self) -> Option<u64> {
        self.initial
    }
}

/// Bits of a node's own cas id in a client's token; the leadership term stands above them.
const RAW_CAS_BITS: u32 = 48;

/// The token a client gets for a node's cas id.
pub(super) fn client_cas(raw: u64, term: Term) -> u64 {
    (term.in_token() << RAW_CAS_BITS) | (raw & ((1 << RAW_CAS_BITS) - 1))
}

/// The cas id a node is asked to compare with, for a client's token under the present term.
///
/// A token taken under another leader or another memory must never win. It is sent as an id that no
/// item has, so that the node still answers NOT_FOUND where there is nothing to compare with.
pub(super) fn node_cas(token: u64, term: Option<Term>) -> u64 {
    const NO_ITEMS: u64 = u64::MAX;
    match term {
        None => token,
        Some(_) if !holds(Rule::CasTermInTokens) => token & ((1 << RAW_CAS_BITS) - 1),
        Some(term) if token >> RAW_CAS_BITS == term.in_token() => token & ((1 << RAW_CAS_BITS) - 1),
        Some(_) => NO_ITEMS,
    }
}

#[cfg(test)]
#[path = "op_tests.rs"]
mod tests;
