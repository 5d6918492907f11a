//! Whether a key's history can be put into one order: every operation takes effect at one moment
//! between its call and its answer, and every answer is what memcached says in that order.
//! Operations of unknown outcome take effect at any moment after their call, or never.
//!
//! The search is Wing's and Gong's, remembering the states that led nowhere. Values name their
//! write, so it has few choices.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

use crate::testing::digest::{Digest, Quick};

use super::item::{Item, Meta, Shown, Step, step};

/// What a client asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Call {
    Set(String),
    Add(String),
    Replace(String),
    Append(String),
    Prepend(String),
    /// The value that the token was taken with, and the new one. (A value stands for a version:
    /// none is written twice.)
    Cas(String, String),
    Incr(u64),
    Delete,
    Touch,
    Get,
    /// Or a memory that was lost, and with it the key.
    Flush,
    /// The item that this write made expires.
    Expire(String),
    /// What only a follower held is added, once: not after anybody has deleted or flushed it.
    Arrive(String),
    Meta(Meta),
    /// A look of the proxy's own has won the right to recompute the item,
    Look,
    /// … and gives it back;
    GiveBack,
    /// … or what a client has won.
    Rob,
    /// Another node comes to lead: what is kept on the leader alone may go.
    Leave,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// An error, or no answer: it took effect, or it will, or not.
    Unknown,
    /// It was not to be answered, but takes effect.
    Silent,
    Stored,
    NotStored,
    Exists,
    NotFound,
    Done,
    Number(u64),
    Value(Option<String>),
    Shown(Option<Shown>),
    /// `CLIENT_ERROR`: it did nothing.
    Denied,
}

impl Outcome {
    /// Whether nothing is known of what was said.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Outcome::Unknown | Outcome::Silent)
    }

    /// Whether it says that nothing was changed. (An `mg` may have won.)
    fn changes_nothing(&self) -> bool {
        use Outcome::{Denied, Exists, NotFound, NotStored, Shown, Value};
        matches!(self, NotStored | Exists | NotFound | Value(_) | Shown(_) | Denied)
    }
}

/// One operation on one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Op {
    /// Who and when, for people.
    pub(super) who: String,
    pub(super) call: Call,
    pub(super) outcome: Outcome,
    /// The token of the item behind it, if the answer showed one.
    pub(super) token: Option<u64>,
    /// Moments, counted over all clients' calls and answers. One of unknown outcome that has an end
    /// takes effect before it, or never.
    pub(super) begun: u64,
    pub(super) ended: Option<u64>,
    /// It was answered, and need not fit: it may have been read of a node that was lost, and what
    /// it has done there alone is lost as well.
    pub(super) early: bool,
}

/// Steps of one search; a history that takes more is not judged (and counted).
const MAX_STEPS: usize = 300_000;

/// What the search found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Fine,
    /// No order: the longest that could be found, as indexes into the history, and those that could
    /// come next and did not fit.
    Wrong {
        order: Vec<usize>,
        stuck: Vec<usize>,
    },
    TooLong,
}

/// When an operation was under way, and whether it may have had no effect: its outcome is unknown,
/// or it need not fit. (Most of a search's time goes into looking for what may come next, so this
/// lies close together.)
struct Span {
    begun: u64,
    ended: u64,
    unknown: bool,
}

impl Span {
    fn of(op: &Op) -> Span {
        let unknown = op.early || op.outcome == Outcome::Unknown;
        Span { begun: op.begun, ended: op.ended.unwrap_or(u64::MAX), unknown }
    }
}

struct Search<'a> {
    ops: &'a [Op],
    /// For each operation what a step looks at.
    spans: Vec<Span>,
    words: HashMap<Item, u32, Quick>,
    /// What the numbers of states stand for, but the first.
    items: Vec<Item>,
    /// A bit for each operation that took effect.
    done: Vec<u64>,
    /// The writes of unknown outcome that took effect and may be undone: which, and the states
    /// before and after. The last one first.
    around: Vec<(u32, u32, u32)>,
    lenient: bool,
    arrives: bool,
    order: Vec<usize>,
    best: Vec<usize>,
    stuck: Vec<usize>,
    /// Fingerprints of the situations that were met: two of 64 bits each, for many are kept.
    seen: HashSet<(u64, u64), Quick>,
    mandatory_left: usize,
    steps: usize,
}

/// A state that holds nothing; other states are indexes into `items`.
const NOTHING: u32 = 0;

/// Judges the history of one key, which held nothing at first. `ops` in the order of their calls.
///
/// `lenient`: a write that was never acknowledged may be undone, although somebody has read it. So
/// it is where both nodes of a pair fail: reads go to the leader alone, and what only the leader
/// has executed goes with it. An acknowledged write on top of it makes it stay.
pub(super) fn judge(ops: &[Op], lenient: bool) -> Verdict {
    debug_assert!(ops.is_sorted_by_key(|op| op.begun));
    // Most unanswered writes never happened. Those whose value no client has seen are included
    // only if no order is found without them.
    let seen = |op: &Op| value_of(&op.call).map_or(!is_look(&op.call), |value| is_seen(ops, value));
    let likely: Vec<&Op> = ops.iter().filter(|op| op.outcome != Outcome::Unknown || seen(op)).collect();
    if likely.len() < ops.len() {
        let likely: Vec<Op> = likely.into_iter().cloned().collect();
        if judge(&likely, lenient) == Verdict::Fine {
            return Verdict::Fine;
        }
    }
    let spans: Vec<Span> = ops.iter().map(Span::of).collect();
    let mandatory_left = spans.iter().filter(|span| !span.unknown).count();
    let mut search = Search {
        ops,
        spans,
        words: HashMap::default(),
        items: vec![Item::default()],
        done: vec![0; ops.len().div_ceil(64)],
        around: Vec::new(),
        lenient,
        arrives: ops.iter().any(|op| matches!(op.call, Call::Arrive(_))),
        order: Vec::new(),
        best: Vec::new(),
        stuck: Vec::new(),
        seen: HashSet::default(),
        mandatory_left,
        steps: 0,
    };
    match search.go(NOTHING, 0) {
        _ if search.steps > MAX_STEPS => Verdict::TooLong,
        true => Verdict::Fine,
        false => Verdict::Wrong { order: search.best, stuck: search.stuck },
    }
}

impl Search<'_> {
    /// `first`: no operation before it is still to be ordered.
    fn go(&mut self, state: u32, mut first: usize) -> bool {
        self.steps += 1;
        if self.mandatory_left == 0 || self.steps > MAX_STEPS {
            return true;
        }
        if !self.seen.insert((self.fingerprint(state, 0), self.fingerprint(state, 1))) {
            return false;
        }
        while self.is_done(first) {
            first += 1;
        }
        let mut candidates = self.candidates(first);
        let mut stuck = Vec::new();
        if let Some(at) = self.quiet_one(state, &candidates) {
            candidates = vec![candidates[at]];
        }
        for i in candidates {
            let Some(next) = self.apply(state, i) else {
                stuck.push(i);
                continue;
            };
            if self.spans[i].unknown && next == state {
                // It changes nothing here: as if it had never happened.
                continue;
            }
            if self.goes_with(i, state, next, first) {
                return true;
            }
        }
        if let Some((i, before, after)) = self.around.pop() {
            // What follows is as if it had never happened.
            debug_assert_eq!(after, state);
            if self.go(before, first) {
                return true;
            }
            self.around.push((i, before, after));
        }
        if self.order.len() >= self.best.len() && !stuck.is_empty() {
            self.best.clone_from(&self.order);
            self.stuck = stuck;
        }
        false
    }

    /// A candidate that fits and changes nothing may as well come next: later it could only cease
    /// to fit. (Except where something must have come before it.)
    fn quiet_one(&mut self, state: u32, candidates: &[usize]) -> Option<usize> {
        let bounded = candidates.iter().map(|&i| &self.spans[i]).filter(|span| span.unknown);
        let due = bounded.map(|span| span.ended).min().unwrap_or(u64::MAX);
        candidates.iter().position(|&i| {
            let op = &self.ops[i];
            if op.begun > due || self.spans[i].unknown {
                return false;
            }
            // A delete that finds nothing rules out an item that may still arrive; and a new expiry
            // that is the present one may differ from a later one.
            let renews = matches!(op.call, Call::Meta(Meta::Get { ends: Some(_), .. }));
            let ends = renews || self.arrives && op.call == Call::Delete;
            !ends && op.outcome.changes_nothing() && self.apply(state, i) == Some(state)
        })
    }

    /// Goes on with this operation next, after which the state is `next`. Where that finds no
    /// order, all is as before.
    fn goes_with(&mut self, i: usize, state: u32, next: u32, first: usize) -> bool {
        let unknown = self.spans[i].unknown;
        self.done[i / 64] |= 1 << (i % 64);
        // A write that is acknowledged on top of others makes them stay. (Not a look: the
        // leader alone knows of it.)
        let around = self.around.clone();
        let looks = !self.around.is_empty() && is_look(&self.ops[i].call);
        match (unknown || looks, self.ops[i].call == Call::Flush) {
            (true, false) if self.lenient => self.around.push((i as u32, state, next)),
            _ if next != state => self.around.clear(),
            _ => {}
        }
        self.order.push(i);
        self.mandatory_left -= usize::from(!unknown);
        if self.go(next, first) {
            return true;
        }
        self.mandatory_left += usize::from(!unknown);
        self.order.pop();
        self.done[i / 64] &= !(1 << (i % 64));
        self.around = around;
        false
    }

    /// What may come next, none of them before `first`: what is known to have happened, which
    /// explains more, then what may have.
    fn candidates(&self, first: usize) -> Vec<usize> {
        // What begins after another one's answer cannot come before it.
        let mut fence = u64::MAX;
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        let mut i = first;
        while let Some(span) = self.spans.get(i)
            && span.begun <= fence
        {
            if self.done[i / 64] & (1 << (i % 64)) == 0 {
                if span.unknown {
                    unknown.push(i);
                } else {
                    known.push(i);
                    fence = fence.min(span.ended);
                }
            }
            i += 1;
        }
        known.append(&mut unknown);
        known.retain(|&i| self.spans[i].begun <= fence && !(self.spans[i].unknown && self.is_too_late(i)));
        known
    }

    /// Whether something was done that began when it was over.
    fn is_too_late(&self, i: usize) -> bool {
        let until = self.spans[i].ended;
        let next = if until == u64::MAX { self.spans.len() } else { self.spans.partition_point(|s| s.begun <= until) };
        let (word, bit) = (next / 64, next % 64);
        next < self.spans.len() && (self.done[word] >> bit != 0 || self.done[word + 1..].iter().any(|done| *done != 0))
    }

    fn fingerprint(&self, state: u32, which: u8) -> u64 {
        let mut hasher = Digest::of(which.into());
        (&self.done, &self.around, state).hash(&mut hasher);
        hasher.finish()
    }

    fn is_done(&self, i: usize) -> bool {
        i < self.ops.len() && self.done[i / 64] & (1 << (i % 64)) != 0
    }

    fn word(&mut self, item: Item) -> u32 {
        if let Some(&word) = self.words.get(&item) {
            return word;
        }
        self.items.push(item.clone());
        let word = self.items.len() as u32 - 1;
        self.words.insert(item, word);
        word
    }

    /// The state after the operation, if its answer fits the state before.
    fn apply(&mut self, state: u32, i: usize) -> Option<u32> {
        let Op { call, outcome, token, .. } = &self.ops[i];
        if let Call::Arrive(value) = call {
            let ends = |j: usize| self.is_done(j) && matches!(self.ops[j].call, Call::Delete | Call::Flush);
            let fits = state == NOTHING && !(0..self.ops.len()).any(ends);
            return fits.then(|| self.word(Item::new(value.clone())));
        }
        let item = (state != NOTHING).then(|| &self.items[state as usize]);
        match step(item, call, outcome, *token) {
            Step::Misfit => None,
            Step::Same => Some(state),
            Step::Gone => Some(NOTHING),
            Step::Becomes(item) => Some(self.word(item)),
        }
    }
}

/// Whether it changes no more than who is to recompute an item.
fn is_look(call: &Call) -> bool {
    matches!(call, Call::Meta(Meta::Get { make: None, ends: None, .. }))
}

/// What a write leaves behind in the value, if it names the write.
pub(super) fn value_of(call: &Call) -> Option<&str> {
    match call {
        Call::Set(v)
        | Call::Add(v)
        | Call::Replace(v)
        | Call::Append(v)
        | Call::Prepend(v)
        | Call::Cas(_, v)
        | Call::Arrive(v)
        | Call::Meta(Meta::Set { value: v, .. }) => Some(v),
        Call::Incr(_) | Call::Delete | Call::Touch | Call::Get | Call::Flush | Call::Expire(_) => None,
        Call::Meta(_) | Call::Look | Call::GiveBack | Call::Rob | Call::Leave => None,
    }
}

/// Whether somebody read it. A number is seen in all that was counted from it.
fn is_seen(ops: &[Op], value: &str) -> bool {
    let number = value.parse::<u64>().ok();
    let counted = |first: u64, n: u64| (first..first + 1_000).contains(&n);
    let within = |text: &str| match (number, text.parse::<u64>()) {
        (Some(first), Ok(n)) => counted(first, n),
        _ => text.contains(value),
    };
    ops.iter().any(|op| match &op.outcome {
        Outcome::Value(Some(text)) | Outcome::Shown(Some(Shown { value: Some(text), .. })) => within(text),
        Outcome::Number(n) => number.map_or_else(|| n.to_string().contains(value), |first| counted(first, *n)),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(call: Call, outcome: Outcome, begun: u64, ended: u64) -> Op {
        let ended = (outcome != Outcome::Unknown).then_some(ended);
        Op { who: String::new(), call, outcome, token: None, begun, ended, early: false }
    }

    fn set(v: &str, begun: u64, ended: u64) -> Op {
        op(Call::Set(v.into()), Outcome::Stored, begun, ended)
    }

    fn get(v: Option<&str>, begun: u64, ended: u64) -> Op {
        op(Call::Get, Outcome::Value(v.map(str::to_owned)), begun, ended)
    }

    #[test]
    fn what_is_wrong_is_found_and_what_is_right_is_not() {
        let unknown = |v: &str, at| op(Call::Set(v.into()), Outcome::Unknown, at, 0);
        let arrive = |v: &str, at| op(Call::Arrive(v.into()), Outcome::Unknown, at, 0);
        let fine = [
            vec![set("a", 1, 2), get(Some("a"), 3, 4)],
            // Side by side, in either order.
            vec![set("a", 1, 4), set("b", 2, 5), get(Some("a"), 6, 7)],
            vec![unknown("a", 1), set("b", 2, 3), get(Some("b"), 4, 5), get(Some("a"), 6, 7)],
            vec![unknown("a", 1), get(None, 2, 3), get(None, 4, 5)],
            vec![
                set("7", 1, 2),
                op(Call::Incr(3), Outcome::Silent, 3, 9),
                get(Some("7"), 4, 5),
                get(Some("10"), 10, 11),
            ],
            vec![
                set("a", 1, 2),
                op(Call::Flush, Outcome::Done, 3, 4),
                op(Call::Add("b".into()), Outcome::Stored, 5, 6),
            ],
            vec![set("a", 1, 2), op(Call::Cas("a".into(), "b".into()), Outcome::Exists, 3, 4), get(Some("a"), 5, 6)],
            vec![arrive("a", 1), get(None, 2, 3), get(Some("a"), 4, 5)],
            vec![arrive("a", 1), op(Call::Delete, Outcome::Done, 2, 3), get(None, 4, 5)],
            vec![arrive("a", 1), op(Call::Delete, Outcome::NotFound, 2, 3), get(None, 4, 5)],
            vec![arrive("a", 1), op(Call::Incr(1), Outcome::NotFound, 2, 3), get(Some("a"), 4, 5)],
            vec![arrive("a", 1), op(Call::Delete, Outcome::NotFound, 2, 9), op(Call::Delete, Outcome::Done, 3, 8)],
        ];
        for history in fine {
            assert_eq!(judge(&history, false), Verdict::Fine, "{history:?}");
            assert_eq!(judge(&history, true), Verdict::Fine, "{history:?}");
        }
        let wrong = [
            vec![set("a", 1, 2), get(None, 3, 4)],
            vec![set("a", 1, 2), set("b", 3, 4), get(Some("a"), 5, 6)],
            vec![set("a", 1, 2), op(Call::Delete, Outcome::Done, 3, 4), get(Some("a"), 5, 6)],
            vec![set("a", 1, 2), op(Call::Add("b".into()), Outcome::Stored, 3, 4)],
            vec![
                set("7", 1, 2),
                op(Call::Incr(1), Outcome::Number(8), 3, 6),
                op(Call::Incr(1), Outcome::Number(8), 4, 7),
            ],
            vec![set("a", 1, 2), op(Call::Append("x".into()), Outcome::Stored, 3, 4), get(Some("axx"), 5, 6)],
            vec![set("a", 1, 2), set("b", 3, 4), op(Call::Cas("a".into(), "c".into()), Outcome::Stored, 5, 6)],
            // Once read, an unknown write stays.
            vec![set("b", 1, 2), unknown("a", 3), get(Some("a"), 4, 5), get(Some("b"), 6, 7)],
            vec![set("a", 1, 2), op(Call::Flush, Outcome::Done, 3, 4), get(Some("a"), 5, 6)],
            vec![set("7", 1, 2), op(Call::Incr(3), Outcome::Silent, 3, 9), get(Some("7"), 10, 11)],
            vec![arrive("a", 1), op(Call::Delete, Outcome::NotFound, 2, 3), get(Some("a"), 4, 5)],
            vec![arrive("a", 1), op(Call::Flush, Outcome::Done, 2, 3), get(Some("a"), 4, 5)],
            vec![arrive("a", 1), get(Some("a"), 2, 3), get(None, 4, 5)],
            vec![arrive("a", 1), set("b", 2, 3), get(Some("a"), 4, 5)],
        ];
        for history in wrong {
            assert!(matches!(judge(&history, false), Verdict::Wrong { .. }), "{history:?}");
        }
        let expire = |v: &str, at, until| {
            let outcome = if until == 0 { Outcome::Unknown } else { Outcome::Done };
            op(Call::Expire(v.into()), outcome, at, until)
        };
        let fine = [
            vec![set("a", 1, 2), get(Some("a"), 3, 4), expire("a", 5, 0), get(Some("a"), 6, 7), get(None, 8, 9)],
            vec![set("a", 1, 2), expire("a", 3, 9), get(Some("a"), 4, 5), get(None, 6, 7)],
            vec![set("a", 1, 2), expire("a", 3, 9), set("b", 4, 5), get(Some("b"), 10, 11)],
            // It may even expire before its write is answered.
            vec![set("a", 1, 4), expire("a", 2, 9), get(Some("a"), 5, 6), get(None, 7, 8)],
        ];
        for history in fine {
            assert_eq!(judge(&history, false), Verdict::Fine, "{history:?}");
        }
        let wrong = [
            // Gone before its time; back; there for too long.
            vec![set("a", 1, 2), get(None, 3, 4), expire("a", 5, 9)],
            vec![set("a", 1, 2), expire("a", 3, 9), get(None, 4, 5), get(Some("a"), 6, 7)],
            vec![set("a", 1, 2), expire("a", 3, 4), get(Some("a"), 5, 6)],
            vec![set("a", 1, 2), expire("a", 3, 4), op(Call::Add("b".into()), Outcome::NotStored, 5, 6)],
        ];
        for history in wrong {
            assert!(matches!(judge(&history, false), Verdict::Wrong { .. }), "{history:?}");
        }
        let undone = vec![set("b", 1, 2), unknown("a", 3), get(Some("a"), 4, 5), get(Some("b"), 6, 7)];
        assert_eq!(judge(&undone, true), Verdict::Fine);
        let acknowledged = [set("b", 1, 2), unknown("a", 3), get(Some("a"), 4, 5)];
        let append = op(Call::Append("x".into()), Outcome::Stored, 6, 7);
        let history = [&acknowledged[..], &[append, get(Some("b"), 8, 9)]].concat();
        assert!(matches!(judge(&history, true), Verdict::Wrong { .. }), "what stands on it keeps it");
    }
}
