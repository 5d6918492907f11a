//! What came of a client's request, or of one key of a get, whatever the protocol it was asked in.

use bytes::Bytes;

use super::answer;
use super::reply::ReplyKind;

/// How it is written is the business of the client's dialect ([`super::classic`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// An item, as the node's `VALUE` line and value: passed on without copying.
    Hit(Bytes),
    /// An item by its parts.
    Item(Box<Fields>),
    /// No such item, to a read.
    Miss,
    /// No such item, with the key, for clients that asked for it.
    MissOf(Bytes),
    Stored,
    /// Stored, with the item's cas id, as a client's token.
    StoredAs(u64),
    NotStored,
    /// The cas id is another one.
    Exists,
    /// No such item, to a write.
    NotFound,
    Deleted,
    Touched,
    /// Done, and nothing else to be said.
    Done,
    /// What `incr` or `decr` made of it.
    Number(u64),
    /// The number, with the item's cas id.
    NumberAs {
        number: u64,
        cas: u64,
    },
    Refused(Refusal),
    /// The version that is spoken.
    Version(&'static str),
    /// The connection ends, as the client has asked.
    Quit,
    /// In the words of the client's own dialect, chosen where its bytes were read.
    Own(&'static [u8]),
    /// Lines of a node, or of the control plane, passed on as they are.
    Raw(Bytes),
}

/// An item as a client is told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fields {
    pub key: Bytes,
    pub value: Bytes,
    pub flags: u32,
    /// The client's token.
    pub cas: u64,
}

/// Why a request is not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The client's request is at fault.
    Client(&'static str),
    /// The proxy or its servers are.
    Server(&'static str),
    /// There is no memory for it.
    NoMemory(&'static str),
    /// An item above the limit.
    TooLarge,
}

impl Refusal {
    /// The sentence without the word in front.
    pub fn words(self) -> &'static str {
        match self {
            Refusal::Client(words) | Refusal::Server(words) | Refusal::NoMemory(words) => words,
            Refusal::TooLarge => "object too large for cache",
        }
    }

    /// memcached's word in front of the sentence.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Refusal::Client(_) => "CLIENT_ERROR ",
            Refusal::Server(_) | Refusal::NoMemory(_) | Refusal::TooLarge => "SERVER_ERROR ",
        }
    }
}

impl Outcome {
    /// What a node has said; `bytes`: the whole of it.
    #[inline(always)]
    pub fn of(reply: &ReplyKind, bytes: Bytes) -> Outcome {
        match reply {
            ReplyKind::Stored => Outcome::Stored,
            ReplyKind::NotStored => Outcome::NotStored,
            ReplyKind::Exists => Outcome::Exists,
            ReplyKind::NotFound => Outcome::NotFound,
            ReplyKind::Deleted => Outcome::Deleted,
            ReplyKind::Touched => Outcome::Touched,
            ReplyKind::End => Outcome::Miss,
            ReplyKind::Value { .. } => Outcome::Hit(bytes),
            ReplyKind::Number(number) => Outcome::Number(*number),
            _ => Outcome::Raw(bytes),
        }
    }

    /// Bytes that it takes while it waits to be written, about: exact for those that are held by
    /// reference.
    pub fn weight(&self) -> usize {
        match self {
            Outcome::Hit(bytes) | Outcome::Raw(bytes) => bytes.len(),
            Outcome::Item(fields) => fields.value.len(),
            Outcome::Own(bytes) => bytes.len(),
            Outcome::Refused(refusal) => refusal.words().len(),
            _ => answer::NOT_STORED.len(),
        }
    }
}
