//! Where a pair is in its life, why, and what may follow.

use std::fmt;

use crate::ids::Place;

/// Why a node or pair is where it is. One word for log, metrics and `stats`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// Nothing is wrong.
    None,
    /// The proxy has just started. Of a node: it has not been heard of yet. Of a pair: what its
    /// nodes held then did not show that both copies are equal.
    Starting,
    /// The node's process refuses connections.
    Refused,
    /// A connection broke with requests unanswered.
    Reset,
    /// The node did not answer in time.
    Timeout,
    /// Its name never resolved, so it has no address.
    Unresolved,
    /// Its name leads to another address now, so to another server.
    Moved,
    /// The node answered something that is not memcached's protocol, or not the answer to the
    /// question.
    Protocol,
    /// The node has as many connections as it may have (memcached's `-c`), and refused one more.
    ConnectionLimit,
    /// The marker is gone from a live node: so is its memory.
    MarkerLost,
    /// The node holds the marker of an earlier time: it missed writes.
    MarkerStale,
    /// The node came back without anything in it.
    Empty,
    /// The operator asked for it.
    Operator,
    /// A resync stopped before its end.
    ResyncFailed,
    /// A resync was cancelled by the operator.
    Cancelled,
    /// A node cannot list its keys. The leader: its follower is filled from the reads that pass
    /// through, and stays a follower. The follower: what it may hold cannot be purged, so it is not
    /// refilled.
    CannotEnumerate,
    /// Another proxy works on the same node: no node is promoted before its session ends.
    ForeignSession,
    /// The former active proxy of the fleet is not known to be gone. No pair's own reason.
    FormerActive,
    /// The node is recorded as having missed writes, and the one that has them does not answer.
    StaleAlone,
    /// Items are known to have one copy: the other server refused them, or evicted some while it
    /// was filled. No pair's own reason.
    CopiesMissing,
    /// What the pair is now is being recorded on its nodes. No pair's own reason.
    Recording,
    /// `--resync=off`: servers are taken at their word, so nothing is known of what they hold. No
    /// pair's own reason.
    ResyncOff,
    /// The pair has one node. No pair's own reason.
    NoBackup,
}

impl Reason {
    /// The word shown in log, metrics and `stats`.
    pub fn word(self) -> &'static str {
        match self {
            Reason::None => "none",
            Reason::Starting => "starting",
            Reason::Refused => "refused",
            Reason::Reset => "reset",
            Reason::Timeout => "timeout",
            Reason::Unresolved => "unresolved",
            Reason::Moved => "moved",
            Reason::Protocol => "protocol",
            Reason::ConnectionLimit => "connection_limit",
            Reason::MarkerLost => "marker_lost",
            Reason::MarkerStale => "marker_stale",
            Reason::Empty => "empty",
            Reason::Operator => "operator",
            Reason::ResyncFailed => "resync_failed",
            Reason::Cancelled => "cancelled",
            Reason::CannotEnumerate => "cannot_enumerate",
            Reason::ForeignSession => "foreign_session",
            Reason::FormerActive => "former_active",
            Reason::StaleAlone => "stale_alone",
            Reason::CopiesMissing => "copies_missing",
            Reason::Recording => "recording",
            Reason::ResyncOff => "resync_off",
            Reason::NoBackup => "no_backup",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Where a pair is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Leader (the primary) and follower hold the same items.
    Mirrored,
    /// One node leads alone; the other is lost, or not trusted yet.
    Degraded {
        /// Who leads.
        leader: Place,
    },
    /// One node leads, the other is being filled from it.
    Recovering {
        /// Who leads.
        leader: Place,
    },
    /// Nobody leads: requests are refused at once, with the cause.
    Dark {
        /// The node that was in sync when the pair went dark. `None`: no copy is left, or none is
        /// known to be in sync.
        in_sync: Option<Place>,
        /// The follower, if it may lead once the leader's memory proves gone: one that was being
        /// filled, with a verified part of the items and nothing unverified; or, out of `Mirrored`,
        /// a whole one. While another proxy works on the nodes it waits until that one has stopped.
        fallback: Option<Place>,
    },
}

impl State {
    /// The word shown in log, metrics and `stats`.
    pub fn word(self) -> &'static str {
        match self {
            State::Mirrored => "mirrored",
            State::Degraded { .. } => "degraded",
            State::Recovering { .. } => "recovering",
            State::Dark { .. } => "dark",
        }
    }

    /// Whether the keys that are known to differ between the two nodes stay all that differ, when
    /// this state is followed by `next`.
    ///
    /// Not where a pair leaves Dark with another leader: the new leader was emptied, or holds a
    /// part, and the node whose memory counted as gone may yet come back with it.
    pub fn keeps_difference(self, next: State) -> bool {
        match (self, next) {
            (State::Dark { in_sync: last, .. }, State::Degraded { leader }) => last == Some(leader),
            // The same in two steps, while another proxy works on the nodes: a follower that holds
            // a part is to lead.
            (State::Dark { in_sync: last, .. }, State::Dark { in_sync: next @ Some(_), .. }) => last == next,
            _ => true,
        }
    }

    /// Who leads, if anyone does.
    pub fn leader(self) -> Option<Place> {
        match self {
            State::Mirrored => Some(Place::Primary),
            State::Degraded { leader } | State::Recovering { leader } => Some(leader),
            State::Dark { .. } => None,
        }
    }
}

/// The arrows of the diagram at the head of [`super`].
pub fn legal(from: State, to: State) -> bool {
    use State::{Dark, Degraded, Mirrored, Recovering};
    match (from, to) {
        (Mirrored, Degraded { .. }) => true,
        // While another proxy works on the nodes, or where the copies were not compared since a
        // crash.
        (Mirrored, Dark { in_sync: Some(_), .. }) => true,
        (Degraded { leader: a }, Recovering { leader: b }) => a == b,
        (Degraded { leader }, Dark { in_sync, .. }) => in_sync.is_none_or(|p| p == leader),
        (Recovering { leader: a }, Degraded { leader: b }) => a == b,
        (Recovering { leader }, Dark { in_sync, .. }) => in_sync == Some(leader),
        (Recovering { .. }, Mirrored) => true,
        // Only with `--resync=off`.
        (Degraded { .. }, Mirrored) => true,
        // From the start every state may follow, by the start-up table; later on Dark ends with one
        // node alone.
        (Dark { .. }, _) => true,
        _ => false,
    }
}
