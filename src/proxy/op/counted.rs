//! Commands and their ends, counted under memcached's names.

use crate::protocol::meta::{Flag, Meta, Mode, Verb};
use crate::protocol::outcome::Outcome;
use crate::protocol::request::Kind;
use crate::stats::{WorkerStats, add};

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
        Verb::Get => {
            add(&stats.cmd_get, 1);
            add(&stats.cmd_touch, meta.has(Flag::Ttl).into());
        }
        Verb::Set => add(&stats.cmd_set, 1),
        Verb::Delete => add(&stats.cmd_delete, 1),
        Verb::Arithmetic => add(&stats.cmd_arithmetic, 1),
        Verb::Debug => {}
    }
}

/// Counts what came of a client's write.
#[inline(always)]
pub(in crate::proxy) fn count_end(kind: Kind, outcome: &Outcome, stats: &WorkerStats) {
    // Of most writes there is nothing to be counted here.
    if !matches!((kind, outcome), (Kind::Set, Outcome::Stored)) {
        count_end_of(kind, outcome, stats);
    }
}

#[inline(never)]
fn count_end_of(kind: Kind, outcome: &Outcome, stats: &WorkerStats) {
    let (hits, misses) = match kind {
        Kind::Delete => (&stats.delete_hits, &stats.delete_misses),
        Kind::Incr => (&stats.incr_hits, &stats.incr_misses),
        Kind::Decr => (&stats.decr_hits, &stats.decr_misses),
        Kind::Touch => (&stats.touch_hits, &stats.touch_misses),
        Kind::Cas => (&stats.cas_hits, &stats.cas_misses),
        _ => return count_other_end(kind, outcome, stats),
    };
    match outcome {
        Outcome::NotFound | Outcome::Miss => add(misses, 1),
        Outcome::Exists => add(&stats.cas_badval, 1),
        Outcome::Raw(_) | Outcome::Refused(_) | Outcome::Own(_) => count_other_end(kind, outcome, stats),
        _ => add(hits, 1),
    }
}

#[inline(never)]
fn count_other_end(kind: Kind, outcome: &Outcome, stats: &WorkerStats) {
    let Outcome::Raw(said) = outcome else { return };
    if said.starts_with(b"SERVER_ERROR out of memory") {
        return add(&stats.store_no_memory, 1);
    }
    let Kind::Meta(meta) = kind else { return };
    let (hits, misses) = match meta.verb {
        Verb::Delete => (&stats.delete_hits, &stats.delete_misses),
        Verb::Arithmetic if meta.mode == Mode::Decrement => (&stats.decr_hits, &stats.decr_misses),
        Verb::Arithmetic => (&stats.incr_hits, &stats.incr_misses),
        Verb::Set if meta.has(Flag::Cas) => (&stats.cas_hits, &stats.cas_misses),
        Verb::Set | Verb::Get | Verb::Debug => return,
    };
    match said.get(..2) {
        Some(b"HD" | b"VA") => add(hits, 1),
        Some(b"NF") => add(misses, 1),
        Some(b"EX") => add(&stats.cas_badval, 1),
        _ => {}
    }
}
