//! A worker's connections to one node: what was sent on each and is unanswered, in order.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::ids::{Incarnation, Life};
use crate::progress::Progress;
use crate::protocol::expiry::Offset;
use crate::protocol::node;
use crate::protocol::out::OutQueue;
use crate::protocol::reply::ReplyLimits;
use crate::stretch::Stretch;

use super::handles::{DialNumber, Lane, OpId};
use super::op::{Effect, Kind};
use super::room;
use super::waiting::Waiting;

/// Keys that share one `get` line at most: it ends there, so that its first values come before
/// long.
const GET_KEYS_MAX: usize = 64;

/// Bytes of such a line: memcached has to grow its buffer for longer ones.
const GET_LINE_MAX: usize = 4096;

/// Bytes that one connection may have outstanding, of commands and of the answers that are
/// expected; what is more waits. Enough to keep a node busy, and little enough for what is small
/// not to wait long behind it.
const ASKED_MAX: usize = 4 << 20;

/// The same for a node, over all workers' connections, which have equal parts of it; but none less
/// than [`ASKED_LEAST`]. (Each may have one command that is larger than all its room.)
const ASKED_OF_NODE: usize = 16 << 20;
const ASKED_LEAST: usize = 256 << 10;

/// What is smaller never waits for room.
const WAITS_FROM: u32 = 8 << 10;

/// From here on a value is large: a client may leave fewer of them unread than it may ask for.
pub(super) const LARGE: u32 = 16 << 10;

/// What an unanswered command belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flight {
    /// An operation, by its place in the worker's table.
    Op(OpId),
    /// An operation that is one key of a `get` line shared with others: answered by a value with
    /// its key, or by none before the next one's, or the end. A [`Flight::GetEnd`] stands behind
    /// the line's last key.
    Get(OpId),
    /// Such a key, whose answer counts for nothing.
    VoidGet,
    /// The `END` of a shared `get` line.
    GetEnd,
    /// How long the item was that the operation right behind it counts.
    Length(OpId),
    /// A command of an operation's repair.
    Repair(OpId, RepairStep),
    /// The answer is void, but its command may still be executed, so the node is not drained before
    /// it came.
    Void,
    /// The marker, read before anything else on a connection, or behind an answer that needs it; in
    /// which round of [`Link::round`].
    Marker(u32),
    /// The fleet's mark, read behind writes.
    Mark,
}

/// The commands of a repair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RepairStep {
    /// The leader's marker: is its memory still the one that the route was made for?
    Marker,
    /// The leader's clock.
    Clock,
    /// The leader's item.
    Read,
    /// The right to recompute the leader's item, which is stale, goes back: the read has won it.
    GiveBack,
    /// The follower's item, where it is not known yet whether it differs.
    Compare,
    /// Removal on the follower.
    Drop,
    /// The leader's item, added on the follower.
    Add,
    /// Whether the leader's item is still the same.
    Verify,
}

/// An unanswered command.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// What it belongs to.
    pub flight: Flight,
    /// When it was queued, microseconds of the worker's clock.
    pub at_us: u64,
    /// What it counts for among what the connection has outstanding.
    pub bytes: u32,
}

/// A leader's answer that counts only once the marker was read behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unproven {
    /// Whose.
    pub(super) op: OpId,
    /// What it says about the leader's copy.
    pub(super) effect: Effect,
    /// When it came, microseconds of the worker's clock.
    pub(super) at_us: u64,
    /// It says that the key is not there: when the node was asked.
    pub(super) gone_us: Option<u64>,
}

/// A write that is done, and told of only once the fleet's mark was read behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unmarked {
    /// Whose.
    pub(super) op: OpId,
    /// The mark must be asked for behind as many commands: what it proves has happened on another
    /// connection. 0: on this one, so any mark that is yet to come was.
    pub(super) behind: u64,
    /// Since when it waits, microseconds of the worker's clock.
    pub(super) at_us: u64,
}

/// Whether a connection may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// Not connected; the next operation dials.
    Idle,
    /// Being connected.
    Dialing,
    /// Connected; waits for the answer that shows whose memory this is.
    Checking,
    /// In use.
    Ready,
    /// Its framing is in doubt: nothing is sent any more, and what comes is thrown away until the
    /// peer closes.
    Discarding,
}

/// A `get` line that has not ended.
#[derive(Debug)]
struct GetLine {
    /// Get or Gets.
    kind: Kind,
    keys: usize,
    bytes: usize,
}

#[derive(Debug)]
pub struct Conn {
    /// Whether it may be used.
    pub state: LinkState,
    /// Which connection in this place; answers to an earlier dial are ignored.
    pub dial: DialNumber,
    /// The node's life when it was dialled, or when it was last found to be in order.
    pub life: Life,
    /// To be written, except for the end of `get_line`.
    out: OutQueue,
    /// The `get` line at the end of `out`, as long as further keys may join it.
    get_line: Option<GetLine>,
    /// Unanswered, in order.
    pub flights: VecDeque<Sent>,
    /// How many have ever been put there, which tells where one of them stands now.
    pushed: u64,
    /// As many before it stood.
    pushed_before: u64,
    /// No answer is awaited to the commands before this one.
    awaited_from: u64,
    /// Bytes of `flights`, and how many there may be.
    asked: usize,
    asked_max: usize,
    /// Since when it stands, or was last found to be in order. Microseconds of the worker's clock.
    stands_us: u64,
    /// It was refused, and is not used: this other one is in its place.
    pub(super) stand_in: Option<Lane>,
    /// When that was, microseconds of the worker's clock.
    pub(super) refused_us: u64,
    /// Operations that wait for the connection.
    pub waiting: Waiting,
    /// Read and not parsed yet.
    pub input: BytesMut,
    /// Length of the answer that has not arrived whole, once known.
    pub need: usize,
    /// Already on the worker's list of connections to be written to, or blocked.
    pub dirty: bool,
    /// Its socket takes no more; the shell, which waits for that, puts it on the list again.
    pub blocked: bool,
    /// What is to be written has a follower's part of a write in it: the client waits for its
    /// second node already.
    pub urgent: bool,
    /// Void answers outstanding.
    pub voids: u32,
    /// When the command was queued that is being answered, unless a value answers it.
    pub(super) asked_us: u64,
    /// What the node has moved, microseconds of the worker's clock.
    pub(super) progress: Progress<u64>,
    /// Bytes of `input` that were looked at already.
    pub(super) seen: usize,
    /// Bytes that the kernel did not take when it was last asked.
    stuck: usize,
    /// Answers that wait for the marker, in the order in which they came.
    pub(super) unproven: VecDeque<Unproven>,
    /// How many of them are writes.
    pub(super) unproven_writes: u32,
    /// Markers among `flights`.
    pub(super) markers: u32,
    /// The marker is to be read behind what is in `out` at the end of the turn.
    pub(super) marker_due: bool,
    /// Writes that wait for the fleet's mark, in the order in which they were done.
    pub(super) unmarked: VecDeque<Unmarked>,
    /// Such marks among `flights`.
    pub(super) marks: u32,
    /// The fleet's mark is to be read behind what is in `out` at the end of the turn.
    pub(super) mark_due: bool,
    /// Since when it has not been this proxy's own.
    pub(super) mark_missing_us: Option<u64>,
}

impl Conn {
    /// Not connected. `of`: how many connections all workers have to the node.
    pub fn new(of: usize) -> Conn {
        Conn {
            state: LinkState::Idle,
            dial: DialNumber(0),
            life: Life::default(),
            out: OutQueue::default(),
            get_line: None,
            flights: VecDeque::new(),
            pushed: 0,
            pushed_before: 0,
            awaited_from: 0,
            asked: 0,
            asked_max: (ASKED_OF_NODE / of.max(1)).clamp(ASKED_LEAST, ASKED_MAX),
            stands_us: 0,
            stand_in: None,
            refused_us: 0,
            waiting: Waiting::default(),
            input: BytesMut::new(),
            need: 0,
            dirty: false,
            blocked: false,
            urgent: false,
            voids: 0,
            asked_us: 0,
            progress: Progress::new(0),
            seen: 0,
            stuck: 0,
            unproven: VecDeque::new(),
            unproven_writes: 0,
            markers: 0,
            marker_due: false,
            unmarked: VecDeque::new(),
            marks: 0,
            mark_due: false,
            mark_missing_us: None,
        }
    }
}

impl Conn {
    /// `input`, with room for the next read.
    pub fn room(&mut self) -> &mut BytesMut {
        room::make(&mut self.input, self.need);
        &mut self.input
    }

    /// The next command is answered.
    #[inline(always)]
    pub(super) fn arrive(&mut self) -> Option<Sent> {
        let sent = self.flights.pop_front()?;
        self.asked -= sent.bytes as usize;
        Some(sent)
    }

    /// Nothing of it will be answered any more.
    pub(super) fn take_flights(&mut self) -> VecDeque<Sent> {
        self.asked = 0;
        std::mem::take(&mut self.flights)
    }

    /// Whether another operation of this many bytes can be sent now. One that is larger than all
    /// room goes alone.
    #[inline(always)]
    pub(super) fn has_room(&self, bytes: u32) -> bool {
        bytes < WAITS_FROM || self.asked == 0 || self.asked + bytes as usize <= self.asked_max
    }

    /// Whether an operation has to wait for room, or for others that do. What is small overtakes
    /// them, but a write none of its own key.
    #[inline(always)]
    pub(super) fn must_wait(&self, bytes: u32, write: bool, hash: u32) -> bool {
        if self.waiting.is_empty() {
            return !self.has_room(bytes);
        }
        bytes >= WAITS_FROM || write && self.waiting.may_hold(hash)
    }

    /// It stands, and was asked nothing yet.
    pub(super) fn begins(&mut self) {
        self.pushed_before = self.pushed;
    }

    /// Whether anything was answered on it since it stands.
    pub(super) fn has_answered(&self) -> bool {
        self.answered_number() > self.pushed_before
    }

    /// Whether nothing is unanswered, nor waits for it or for what it says.
    pub(super) fn owes_nothing(&self) -> bool {
        self.flights.is_empty() && self.waiting.is_empty() && self.unproven.is_empty() && self.unmarked.is_empty()
    }

    /// It stands, or is in order: what waited until now waited for something else.
    pub(super) fn stands(&mut self, now_us: u64) {
        self.stands_us = now_us;
    }

    /// Since when something waits for it that no unanswered command shows: for its marker, which
    /// may be gone and not be written again; or for room behind answers that count for nothing, and
    /// that nothing else waits for. While it is dialled the dial has a deadline.
    pub(super) fn waited_for_since(&self) -> Option<u64> {
        let stands = matches!(self.state, LinkState::Checking | LinkState::Ready);
        self.waiting.since_us().filter(|_| stands).map(|since| since.max(self.stands_us))
    }

    /// A whole answer has come.
    #[inline(always)]
    pub(super) fn answered(&mut self) {
        self.progress.answered();
    }

    /// The socket is full, with this many bytes still to be taken (0: it is not). That it takes
    /// some of them shows that the node reads: a stopped one lets the kernel take what its buffers
    /// hold, at once, and nothing after that.
    pub fn is_stuck_with(&mut self, bytes: usize, now_us: u64) {
        let before = std::mem::replace(&mut self.stuck, bytes);
        self.progress.add(before.saturating_sub(bytes), now_us);
    }

    /// Bytes that are to be written.
    pub fn unsent(&self) -> usize {
        self.out.len()
    }

    /// What is to be written, for whole commands to be added to. `now_us`: the worker's clock.
    #[inline(always)]
    pub(super) fn out(&mut self, now_us: u64) -> &mut OutQueue {
        if self.get_line.is_some() {
            self.end_get_line(now_us);
        }
        &mut self.out
    }

    fn end_get_line(&mut self, now_us: u64) {
        self.get_line = None;
        node::end_get(&mut self.out);
        self.push(Flight::GetEnd, now_us, 0);
    }

    /// Adds a key to the `get` (or `gets`) line at the end of `out`, or begins one: one line costs
    /// both sides less than one for each key, whichever clients ask. The answers come in the order
    /// of the keys.
    pub(super) fn put_get(&mut self, kind: Kind, key: &[u8], id: OpId, now_us: u64, bytes: u32) {
        match &mut self.get_line {
            Some(line) if line.kind == kind && line.keys < GET_KEYS_MAX && line.bytes + key.len() < GET_LINE_MAX => {
                line.keys += 1;
                line.bytes += 1 + key.len();
                node::add_key(&mut self.out, key);
            }
            _ => {
                let bytes = node::begin_get(self.out(now_us), kind, key);
                self.get_line = Some(GetLine { kind, keys: 1, bytes });
            }
        }
        self.push(Flight::Get(id), now_us, bytes);
    }

    /// Adds to what is unanswered; returns its number. `bytes`: what it counts for among what is
    /// outstanding.
    #[inline(always)]
    pub(super) fn push(&mut self, flight: Flight, now_us: u64, bytes: u32) -> u64 {
        self.asked += bytes as usize;
        self.flights.push_back(Sent { flight, at_us: now_us, bytes });
        self.pushed += 1;
        self.pushed
    }

    /// How much was ever sent on it: commands, keys and ends of `get` lines.
    pub(super) fn sent(&self) -> u64 {
        self.pushed
    }

    /// The answer to what has this number, if it is unanswered and a command of that operation's
    /// repair, counts for nothing any more.
    pub(super) fn void_repair(&mut self, number: u64, op: OpId) {
        let behind = (self.pushed - number) as usize;
        if let Some(at) = self.flights.len().checked_sub(1 + behind)
            && let sent = &mut self.flights[at]
            && matches!(sent.flight, Flight::Repair(id, _) if id == op)
        {
            sent.flight = Flight::Void;
            self.voids += 1;
        }
    }

    /// When the first command was queued whose answer is awaited. (A missing `END` alone shows with
    /// the next command.) Looked for where the last look ended: behind what counts for nothing, of
    /// which there may be very much.
    pub(super) fn awaited_since(&mut self) -> Option<u64> {
        let answered = self.pushed - self.flights.len() as u64;
        let from = self.awaited_from.max(answered);
        let awaited = |s: &Sent| !matches!(s.flight, Flight::Void | Flight::VoidGet | Flight::GetEnd);
        let place = self.flights.range((from - answered) as usize..).position(awaited);
        self.awaited_from = place.map_or(self.pushed, |place| from + place as u64);
        self.flights.get((self.awaited_from - answered) as usize).map(|sent| sent.at_us)
    }

    /// Whether something was sent on it, and is unanswered, that may take effect later. (Reads
    /// alone need not be told apart from it.)
    pub(super) fn owes_effects(&self) -> bool {
        let effects = |sent: &Sent| matches!(sent.flight, Flight::Op(_) | Flight::Repair(..) | Flight::Void);
        self.state == LinkState::Discarding || self.flights.iter().any(effects)
    }

    /// Whether a burst has left one of its lists long.
    pub(super) fn is_stretched(&self) -> bool {
        self.flights.is_stretched()
            || self.waiting.is_stretched()
            || self.unproven.is_stretched()
            || self.unmarked.is_stretched()
    }

    /// What is empty of them goes back.
    pub(super) fn give_back(&mut self) {
        self.flights.give_back();
        self.waiting.give_back();
        self.unproven.give_back();
        self.unmarked.give_back();
    }

    /// Forgets what was to be written.
    pub(super) fn clear_out(&mut self) {
        self.out = OutQueue::default();
        self.get_line = None;
        self.stuck = 0;
    }

    /// The answers that wait for a marker, once the connection is given up.
    pub(super) fn take_answers(&mut self) -> VecDeque<Unproven> {
        self.unproven_writes = 0;
        self.markers = 0;
        self.marker_due = false;
        std::mem::take(&mut self.unproven)
    }

    /// The writes that wait for the fleet's mark, likewise.
    pub(super) fn take_unmarked(&mut self) -> VecDeque<Unmarked> {
        self.marks = 0;
        self.mark_due = false;
        self.mark_missing_us = None;
        std::mem::take(&mut self.unmarked)
    }

    /// Since when writes wait for the fleet's mark on a node that does not have it.
    pub(super) fn mark_missed_since(&self) -> Option<u64> {
        self.mark_missing_us.filter(|_| !self.unmarked.is_empty())
    }

    /// The number of the command that was answered last.
    pub(super) fn answered_number(&self) -> u64 {
        self.pushed - self.flights.len() as u64
    }
}

/// A repair that waits for a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct RepairWaits {
    pub(super) since_us: u64,
    /// When it was last seen to wait: it tries again and again.
    pub(super) seen_us: u64,
}

/// A worker's way to one node.
#[derive(Debug)]
pub(super) struct Link {
    /// The memory that routes to this node were made for. `None`: not checked (no backups, or
    /// `--resync=off`).
    pub incarnation: Option<Incarnation>,
    /// Counts what the control plane told of the node's memory, so that markers asked for before
    /// are told apart.
    pub round: u32,
    /// The control plane's count of the node's returns, as far as it was told.
    pub life: Life,
    /// How far its date is ahead of the proxy's; `None` = it is not known.
    pub offset: Option<Offset>,
    /// What it may make the worker buffer.
    pub replies: ReplyLimits,
    /// Commands on one key always take the same connection.
    pub conns: Vec<Conn>,
    /// How often it could have been told that the answer which is awaited longest is late.
    pub lateness: u64,
    /// The repair that has waited longest for the node.
    pub repair_waits: Option<RepairWaits>,
    /// The control plane was told that answers are outstanding that count for nothing, and waits to
    /// hear that they came.
    pub undrained: bool,
}

impl Link {
    /// `lanes` connections, none of them open; so have `workers` in all.
    pub(super) fn new(lanes: u16, workers: u16) -> Link {
        Link {
            incarnation: None,
            round: 0,
            life: Life::default(),
            offset: None,
            replies: ReplyLimits::default(),
            conns: (0..lanes).map(|_| Conn::new(usize::from(lanes) * usize::from(workers))).collect(),
            lateness: 0,
            repair_waits: None,
            undrained: false,
        }
    }

    /// A repair has waited for the node since then.
    pub(super) fn repair_waits(&mut self, since_us: u64, now_us: u64) {
        // Of very many the one that waits longest.
        let waits = self.repair_waits.filter(|waits| waits.seen_us == now_us);
        let since_us = waits.map_or(since_us, |waits| waits.since_us.min(since_us));
        self.repair_waits = Some(RepairWaits { since_us, seen_us: now_us });
    }

    /// Void answers outstanding on any connection.
    pub(super) fn voids(&self) -> bool {
        self.conns.iter().any(|c| c.voids > 0)
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
