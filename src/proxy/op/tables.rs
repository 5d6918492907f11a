//! What a node's answer means for the two copies: pure tables.

use crate::protocol::meta::{self, Change, Flag, Meta, Mode, Verb};
use crate::protocol::reply::{Reply, ReplyKind};
use crate::protocol::request::Kind;
use crate::rules::{Rule, holds};

/// What the leader's answer says about its copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::proxy) enum Effect {
    /// The item is as it was.
    Nothing,
    /// The command took effect.
    Done,
    /// The leader failed, or does not tell; what its copy is now must be read from it.
    Unknown,
    /// The leader has the item marked stale, or remembers that somebody recomputes it.
    HeldBack,
}

/// What the follower is sent to be made equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mirror {
    /// The same value, flags and exptime, unconditionally.
    Set,
    /// Removal, as on the leader.
    Delete,
    /// Removal of what cannot be repeated on a follower that is being filled; the key is copied
    /// again.
    Drop,
    /// The same arithmetic; the numbers must agree, and so must the blanks behind them: see
    /// [`Op::may_have_blanks`](super::Op::may_have_blanks).
    Arithmetic,
    /// The same append or prepend.
    Concat,
    /// The same expiry.
    Touch,
    /// Removal of what the leader has marked stale, or told somebody to recompute: that state is
    /// the leader's alone, and after a fail-over such an item is a miss, not a fresh one.
    Withhold,
}

impl Mirror {
    /// As which command of a client's it is answered; `of`: the one that it mirrors.
    pub(in crate::proxy) fn kind(self, of: Kind) -> Kind {
        match self {
            Mirror::Set => Kind::Set,
            Mirror::Delete | Mirror::Drop | Mirror::Withhold => Kind::Delete,
            Mirror::Arithmetic | Mirror::Concat => of,
            Mirror::Touch => Kind::Touch,
        }
    }
}

/// Judges the leader's answer. `None`: that is no answer to this command, so the connection cannot
/// be trusted any more.
pub(in crate::proxy) fn effect(kind: Kind, reply: &ReplyKind) -> Option<Effect> {
    use ReplyKind as R;
    if let Kind::Meta(meta) = kind {
        return meta_effect(meta, reply);
    }
    Some(match (kind, reply) {
        (_, R::ServerError) => {
            if kind.is_write() {
                Effect::Unknown
            } else {
                Effect::Nothing
            }
        }
        (_, R::ClientError | R::Error) => Effect::Nothing,
        (Kind::Get | Kind::Gets, R::Value { .. } | R::End) => Effect::Nothing,
        (Kind::Gat | Kind::Gats, R::Value { .. }) => Effect::Done,
        (Kind::Gat | Kind::Gats, R::End) => Effect::Nothing,
        (Kind::Set, R::Stored) => Effect::Done,
        // memcached answers so when it cannot store for want of memory under -M in some versions.
        (Kind::Set, R::NotStored) => Effect::Unknown,
        (Kind::Add | Kind::Replace | Kind::Append | Kind::Prepend, R::Stored) => Effect::Done,
        (Kind::Add | Kind::Replace | Kind::Append | Kind::Prepend, R::NotStored) => Effect::Nothing,
        (Kind::Cas, R::Stored) => Effect::Done,
        (Kind::Cas, R::Exists | R::NotFound | R::NotStored) => Effect::Nothing,
        (Kind::Incr | Kind::Decr, R::Number(_)) => Effect::Done,
        (Kind::Incr | Kind::Decr, R::NotFound) => Effect::Nothing,
        // Sent to the follower whatever the leader found: a copy that only the follower holds must
        // go too.
        (Kind::Delete, R::Deleted | R::NotFound) => Effect::Done,
        (Kind::Touch, R::Touched) => Effect::Done,
        (Kind::Touch, R::NotFound) => Effect::Nothing,
        _ => return None,
    })
}

/// Whether an `mg` has won is not in the kind of its answer.
fn meta_effect(meta: Meta, reply: &ReplyKind) -> Option<Effect> {
    use ReplyKind as R;
    Some(match (meta.verb, reply) {
        (_, R::ServerError) if meta.is_write() => Effect::Unknown,
        (_, R::ServerError | R::ClientError | R::Error) => Effect::Nothing,
        (Verb::Get, R::MetaHd | R::MetaVa { .. }) if meta.has(Flag::Ttl) => Effect::Done,
        (Verb::Get, R::MetaHd | R::MetaVa { .. } | R::MetaEn) => Effect::Nothing,
        (Verb::Debug, R::MetaMe | R::MetaEn) => Effect::Nothing,
        (Verb::Set | Verb::Delete, R::MetaHd) | (Verb::Arithmetic, R::MetaVa { .. }) => match meta.change() {
            Change::Unclear if holds(Rule::UnclearIsRead) => Effect::Unknown,
            Change::Stale if !holds(Rule::MarkedIsWithheld) => Effect::Nothing,
            _ => Effect::Done,
        },
        // Sent to the follower whatever the leader found, as with `delete`.
        (Verb::Delete, R::MetaNf) => Effect::Done,
        // Memory is short.
        (Verb::Delete, R::MetaNs) => Effect::Unknown,
        (Verb::Set, R::MetaNs) if meta.mode == Mode::Set => Effect::Unknown,
        (Verb::Set | Verb::Arithmetic, R::MetaNs | R::MetaNf | R::MetaEx) => Effect::Nothing,
        (Verb::Delete, R::MetaEx) => Effect::Nothing,
        _ => return None,
    })
}

/// Whether the leader's answer says that the key was not there.
pub(in crate::proxy) fn shows_absence(kind: Kind, reply: &ReplyKind) -> bool {
    match reply {
        ReplyKind::MetaEn | ReplyKind::MetaNf => true,
        ReplyKind::MetaHd => matches!(kind, Kind::Meta(Meta { verb: Verb::Set, .. })) && kind.adds(),
        ReplyKind::MetaNs => {
            matches!(kind, Kind::Meta(Meta { mode: Mode::Replace | Mode::Append | Mode::Prepend, .. }))
        }
        ReplyKind::NotFound | ReplyKind::End => true,
        ReplyKind::Stored => kind == Kind::Add,
        // To a set it says that memory is short.
        ReplyKind::NotStored => !matches!(kind, Kind::Add | Kind::Set),
        _ => false,
    }
}

/// How a command that took effect is repeated on a follower that is in sync.
pub(in crate::proxy) fn mirror(kind: Kind) -> Mirror {
    match kind {
        Kind::Set | Kind::Add | Kind::Replace | Kind::Cas => Mirror::Set,
        Kind::Delete => Mirror::Delete,
        Kind::Incr | Kind::Decr => Mirror::Arithmetic,
        Kind::Append | Kind::Prepend => Mirror::Concat,
        Kind::Touch | Kind::Gat | Kind::Gats => Mirror::Touch,
        Kind::Meta(meta) => match meta.change() {
            Change::Stored => Mirror::Set,
            Change::Joined => Mirror::Concat,
            Change::Deleted => Mirror::Delete,
            Change::Touched => Mirror::Touch,
            Change::Counted => Mirror::Arithmetic,
            Change::Unclear if !holds(Rule::UnclearIsRead) && meta.verb == Verb::Arithmetic => Mirror::Arithmetic,
            Change::Unclear if !holds(Rule::UnclearIsRead) => Mirror::Set,
            // An unclear change is read back from the leader, unless there was no item.
            Change::Stale | Change::Unclear => Mirror::Withhold,
        },
        Kind::Get | Kind::Gets => unreachable!("a read is never mirrored"),
        Kind::Mend => unreachable!("a mend is nothing but a repair"),
    }
}

/// The same on a follower that is being filled: what would be re-executed there is dropped instead,
/// and copied again. A re-executed `incr` meets a copy that may or may not have it already
/// (`resync_model.py reexec`).
pub(in crate::proxy) fn mirror_filling(kind: Kind) -> Mirror {
    match mirror(kind) {
        plain @ (Mirror::Set | Mirror::Delete) => plain,
        _ if holds(Rule::NoReexecutionOnFilling) => Mirror::Drop,
        other => other,
    }
}

/// What the follower's answer means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::proxy) enum Agreement {
    /// The two copies are equal.
    Agree,
    /// They may differ: the key is repaired before the client is answered.
    Differ,
}

/// Judges the follower's answer. `number`: what the leader counted. `None`: no answer to this
/// command.
pub(in crate::proxy) fn agreement(sent: Mirror, number: u64, reply: &ReplyKind) -> Option<Agreement> {
    use ReplyKind as R;
    let agree = match (sent, reply) {
        (_, R::ServerError | R::ClientError | R::Error) => false,
        (Mirror::Set | Mirror::Concat, R::Stored) => true,
        (Mirror::Set | Mirror::Concat, R::NotStored) => false,
        (Mirror::Delete | Mirror::Drop, R::Deleted | R::NotFound) => true,
        (Mirror::Arithmetic, R::Number(n)) => *n == number,
        (Mirror::Arithmetic, R::NotFound) => false,
        (Mirror::Touch, R::Touched) => true,
        (Mirror::Touch, R::NotFound) => false,
        _ => return None,
    };
    Some(if agree { Agreement::Agree } else { Agreement::Differ })
}

/// The same for the answer to a meta command; `unit`: the whole of it.
pub(in crate::proxy) fn meta_agreement(sent: Mirror, number: u64, reply: &Reply, unit: &[u8]) -> Option<Agreement> {
    use ReplyKind as R;
    let agree = match (sent, &reply.kind) {
        (_, R::ServerError | R::ClientError | R::Error) => false,
        (Mirror::Set | Mirror::Concat, R::MetaHd) => true,
        (Mirror::Set | Mirror::Concat, R::MetaNs) => false,
        (Mirror::Delete | Mirror::Drop | Mirror::Withhold, R::MetaHd | R::MetaNf) => true,
        (Mirror::Arithmetic, R::MetaVa { .. }) => meta::answer::number(reply, unit) == Some(number),
        (Mirror::Arithmetic, R::MetaNf) => false,
        (Mirror::Touch, R::MetaHd) => true,
        (Mirror::Touch, R::MetaEn) => false,
        _ => return None,
    };
    Some(if agree { Agreement::Agree } else { Agreement::Differ })
}
