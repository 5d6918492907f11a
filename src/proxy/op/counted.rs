//! Commands and their ends, counted under memcached's names and as memcached 1.6.18 counts them
//! (`tests/it/counters.rs` holds every command with every end against one).

use crate::protocol::meta::{Flag, Meta, Mode, Verb};
use crate::protocol::outcome::Outcome;
use crate::protocol::request::Kind;
use crate::stats::{WorkerStats, add};

use super::Op;

/// Counts a command, under memcached's names. (Classic ones are counted with their answers.)
#[inline(always)]
pub(in crate::proxy) fn count(kind: Kind, stats: &WorkerStats) {
    if let Kind::Meta(meta) = kind {
        count_meta(meta, stats);
    }
}

fn count_meta(meta: Meta, stats: &WorkerStats) {
    add(&stats.cmd_meta, 1);
    match meta.verb {
        Verb::Set => add(&stats.cmd_set, 1),
        Verb::Delete => add(&stats.cmd_delete, 1),
        Verb::Arithmetic => add(&stats.cmd_arithmetic, 1),
        // An `mg` is a touch or a get by what comes of it.
        Verb::Get | Verb::Debug => {}
    }
}

/// Counts what came of a client's read. (Of classic gets it is counted with the answer.)
#[inline(always)]
pub(in crate::proxy) fn count_read(kind: Kind, hit: bool, stats: &WorkerStats) {
    if !matches!(kind, Kind::Get | Kind::Gets) {
        count_other_read(kind, hit, stats);
    }
}

#[inline(never)]
fn count_other_read(kind: Kind, hit: bool, stats: &WorkerStats) {
    match kind {
        Kind::Gat | Kind::Gats => add(if hit { &stats.touch_hits } else { &stats.touch_misses }, 1),
        Kind::Meta(meta) if meta.verb == Verb::Get => {
            if hit && meta.has(Flag::Ttl) {
                add(&stats.cmd_touch, 1);
                add(&stats.touch_hits, 1);
            } else {
                add(&stats.cmd_get, 1);
                stats.read(hit);
            }
        }
        _ => {}
    }
}

/// Counts what came of a client's write.
#[inline(always)]
pub(in crate::proxy) fn count_end(op: &Op, outcome: &Outcome, stats: &WorkerStats) {
    // Of most writes there is nothing to be counted here.
    if !matches!((op.kind, outcome), (Kind::Set, Outcome::Stored)) {
        count_end_of(op, outcome, stats);
    }
}

#[inline(never)]
fn count_end_of(op: &Op, outcome: &Outcome, stats: &WorkerStats) {
    let (hits, misses) = match op.kind {
        Kind::Delete => (&stats.delete_hits, &stats.delete_misses),
        Kind::Incr => (&stats.incr_hits, &stats.incr_misses),
        Kind::Decr => (&stats.decr_hits, &stats.decr_misses),
        Kind::Touch => (&stats.touch_hits, &stats.touch_misses),
        Kind::Cas => (&stats.cas_hits, &stats.cas_misses),
        _ => return count_other_end(op, outcome, stats),
    };
    match outcome {
        Outcome::NotFound | Outcome::Miss => add(misses, 1),
        Outcome::Exists if op.kind == Kind::Cas => add(&stats.cas_badval, 1),
        Outcome::Exists => {}
        Outcome::Raw(_) | Outcome::Refused(_) | Outcome::Own(_) => count_other_end(op, outcome, stats),
        // What has stored its first number found nothing, and is no miss.
        _ if op.shows_first_number() => {}
        _ => add(hits, 1),
    }
}

#[inline(never)]
fn count_other_end(op: &Op, outcome: &Outcome, stats: &WorkerStats) {
    let Outcome::Raw(said) = outcome else { return };
    if said.starts_with(b"SERVER_ERROR out of memory") {
        return add(&stats.store_no_memory, 1);
    }
    let Kind::Meta(meta) = op.kind else { return };
    let decrements = meta.mode == Mode::Decrement;
    let counter = match (meta.verb, said.get(..2).unwrap_or_default()) {
        // Marked as stale, it is not deleted.
        (Verb::Delete, b"HD") if meta.has(Flag::Stale) => return,
        (Verb::Delete, b"HD") => &stats.delete_hits,
        (Verb::Delete, b"NF" | b"EX") => &stats.delete_misses,
        (Verb::Arithmetic, b"HD" | b"VA") if op.shows_first_number() => return,
        (Verb::Arithmetic, b"HD" | b"VA") if decrements => &stats.decr_hits,
        (Verb::Arithmetic, b"HD" | b"VA") => &stats.incr_hits,
        (Verb::Arithmetic, b"NF") if decrements => &stats.decr_misses,
        (Verb::Arithmetic, b"NF") => &stats.incr_misses,
        (Verb::Set, code) if meta.has(Flag::Cas) && matches!(meta.mode, Mode::Set | Mode::Replace) => match code {
            b"HD" => &stats.cas_hits,
            b"NF" => &stats.cas_misses,
            b"EX" => &stats.cas_badval,
            _ => return,
        },
        _ => return,
    };
    add(counter, 1);
}
