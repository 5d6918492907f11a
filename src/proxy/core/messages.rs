//! A worker's commands, and its reports.

use std::time::Duration;

use bytes::Bytes;

use crate::ids::{AddressNumber, Incarnation, Life, NodeId, PairId, Term, WorkerId};
use crate::pair::Reason;
use crate::protocol::expiry::Offset;
use crate::protocol::mark::FleetMark;
use crate::protocol::outcome::Outcome;
use crate::proxy::core::Connected;
use crate::proxy::handles::{ClientKey, SlotNumber, Ticket};
use crate::proxy::op::{Asker, Op};
use crate::proxy::route::Route;
use crate::report::statistics::Statistics;

/// What of the settings can change while the proxy runs, as far as workers go by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LiveSettings {
    /// How long an answer may take, and that of a last full copy.
    pub timeout: Duration,
    pub leader_timeout: Duration,
    /// Clients may say `resync`.
    pub operator_commands: bool,
    /// For the shell, which has the sockets: how many clients at once, over all workers.
    pub max_clients: usize,
    /// Clients silent for this long are closed.
    pub idle_timeout: Option<Duration>,
    /// At the end clients' requests may take this long.
    pub shutdown_grace: Duration,
}

impl LiveSettings {
    /// How often late answers are looked for.
    pub fn tick(&self) -> Duration {
        (self.timeout / 8).clamp(Duration::from_millis(1), Duration::from_millis(25))
    }
}

/// What the control plane tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Begin nothing more for the pair; answer with [`Event::Closed`] once nothing of it is
    /// unanswered. From now on what the `void` node answers counts for nothing.
    Close {
        pair: PairId,
        void: Option<NodeId>,
        /// Repeated in the answer, so that an old one is recognised.
        round: u64,
    },
    /// The pair's requests flow (or are refused) by this route from now on.
    Open { pair: PairId, route: Route },
    /// The pair's requests flow as before, but tokens carry this term from now on: those that were
    /// given before count no more.
    Term { pair: PairId, term: Term },
    /// The node is up with this memory; connections to it are opened, and checked to be to that
    /// memory.
    Allow {
        node: NodeId,
        /// `None`: no markers are kept.
        incarnation: Option<Incarnation>,
        /// Counts how often it came back into use; repeated in [`Event::Fault`].
        life: Life,
    },
    /// How far the node's dates are ahead of the proxy's; `None` = it is not known.
    Clock { node: NodeId, offset: Option<Offset> },
    /// The node is at another address: every connection that stands is given up; those made from
    /// now on lead to the new one. Answered with [`Event::Left`].
    Moved {
        node: NodeId,
        /// Which of its addresses that is; the answer repeats it.
        address: AddressNumber,
    },
    /// The answer to an [`Event::Ask`].
    Answer { client: ClientKey, slot: SlotNumber, outcome: Outcome },
    /// What of the settings can change has changed.
    Settings(LiveSettings),
    /// Who is connected? The core leaves that to the shell, which has the sockets; the answer is an
    /// [`Event::Connected`].
    WhoIsConnected { round: u64 },
    /// The next piece of an answer that is too long to be held: there is more. Where the client is
    /// gone, the answer is an [`Event::Unwanted`].
    Part {
        client: ClientKey,
        /// Dropped once it is written, or is not going to be: that makes room for others.
        bytes: Bytes,
    },
    /// Items larger than this are refused: the smallest limit of the nodes.
    ItemLimit(usize),
    /// The node's own `-I`: no value that it sends is larger.
    ReplyLimit { node: NodeId, bytes: usize },
    /// How large the items are that nodes hold, in bytes (0: none is large), and that hardly any
    /// is.
    Stored { largest: u32, rarely: bool },
    /// The node refuses connections at its limit, one for the control plane too: one of the
    /// worker's that rests makes room.
    MakeRoom { node: NodeId },
    /// To the key's owner ([`crate::proxy::owner_of`]): compare the copies of a mirrored pair, and
    /// make the follower's equal to the leader's, while later writes of the key wait (a fenced
    /// repair). Answered with [`Event::Settled`]; equal copies are superfluous.
    Mend {
        /// Repeated in the answer.
        ticket: Ticket,
        pair: PairId,
        /// Which key, as clients write it.
        key: Bytes,
    },
    /// To the key's owner ([`crate::proxy::owner_of`]): `add` this item, found on the filling
    /// follower only, to the leader, unless a client has written the key since the pair adopts
    /// ([`crate::proxy::Flow::written`]). Answered with [`Event::Settled`].
    Adopt {
        /// Repeated in the answer.
        ticket: Ticket,
        pair: PairId,
        /// Which key, as clients write it.
        key: Bytes,
        item: Adopted,
    },
}

/// An item that only the follower holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Adopted {
    pub value: Bytes,
    pub flags: u32,
    /// As the leader is to be sent it: 0 = never, or a date by the leader's clock.
    pub exptime: i64,
}

/// What became of a key that its owner was asked to see to: to adopt an item that only the follower
/// held ([`Command::Adopt`]), or to mend one whose copies differ ([`Command::Mend`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// The copies of the key are equal, or a write on its way makes them so.
    Done,
    /// Nothing was done: a client wrote the key, or there is nothing to mend.
    Superfluous,
    /// It cannot be done now: the pair is between two states, a node failed, or refused it.
    Failed,
}

/// What a worker tells the control plane.
#[derive(PartialEq, Eq, Debug)]
pub enum Event {
    /// Nothing that this worker began for the pair is unanswered.
    Closed {
        worker: WorkerId,
        pair: PairId,
        /// Of which [`Command::Close`].
        round: u64,
    },
    /// A node failed a request.
    Fault {
        node: NodeId,
        /// Of the last [`Command::Allow`] that the worker had taken: what was seen before the node
        /// came back says nothing about it now.
        life: Life,
        reason: Reason,
    },
    /// An answer of a node is late, or takes more than an eighth of its time. Told again and again
    /// as long as it is.
    Late {
        node: NodeId,
        /// As in [`Event::Fault`].
        life: Life,
        /// For how long it is awaited.
        age: Duration,
    },
    /// Answers that count for nothing are outstanding: until [`Event::Drained`] the node may still
    /// execute old commands.
    Undrained { worker: WorkerId, node: NodeId },
    /// They have all come, or their connections were closed by the node.
    Drained { worker: WorkerId, node: NodeId },
    /// No connection to an earlier address of the node is left, after a [`Command::Moved`].
    Left {
        worker: WorkerId,
        node: NodeId,
        /// As in the command.
        address: AddressNumber,
        /// Commands were unanswered: nobody knows whether they take effect.
        owing: bool,
    },
    /// A connection ended with commands unanswered that may still take effect, for it was not the
    /// node that ended it. Told before its fault.
    Abandoned { node: NodeId },
    /// Worth a probe: a node closed an idle connection, or lacks its fleet's mark.
    Hint { node: NodeId },
    /// A node's mark says that the turn of this proxy is over.
    Marked { node: NodeId, found: FleetMark },
    /// What became of a key that its owner was asked to see to: to adopt an item that only the
    /// follower held ([`Command::Adopt`]), or to mend one whose copies differ ([`Command::Mend`]).
    Settled {
        /// Of the command.
        ticket: Ticket,
        settlement: Settlement,
    },
    /// The answer to [`Command::WhoIsConnected`], and how many more there are.
    Connected { worker: WorkerId, round: u64, told: Vec<Connected>, more: usize },
    /// The client of an answer in pieces is gone.
    Unwanted { worker: WorkerId, client: ClientKey },
    /// A client's command that the control plane answers.
    Ask { worker: WorkerId, client: ClientKey, slot: SlotNumber, question: Question },
}

/// Client commands that the control plane answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// `flush_all [delay]`, in seconds.
    FlushAll {
        /// Seconds from now, or absolute unix time above 30 days; 0 = now.
        delay: i64,
    },
    /// `stats [args]`.
    Stats(String),
    /// `resync [args]`.
    Resync(String),
    /// `node [args]`.
    Node(String),
    /// `lru_crawler metadump [classes]`; answered in pieces ([`Command::Part`]).
    List(String),
}

impl Question {
    /// Which statistics it asks for, if any.
    pub fn statistics(&self) -> Option<Statistics> {
        let (verb, rest) = match self {
            Question::Stats(rest) => ("stats", rest),
            Question::Resync(rest) => ("resync", rest),
            Question::FlushAll { .. } | Question::Node(_) | Question::List(_) => return None,
        };
        Statistics::asked_by(std::iter::once(verb).chain(rest.split_ascii_whitespace()))
    }
}

/// Between workers.
#[derive(Debug)]
pub enum PeerMessage {
    /// A write for a key that the receiver owns.
    Op(Box<Op>),
    Answer(Asker, Outcome),
    /// A client of the receiver's beyond the limit of clients is to make room for another, if it
    /// has said nothing yet.
    TurnAway(ClientKey),
}
