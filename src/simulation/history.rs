//! What clients did, the answers that they got, and all violations that were found otherwise.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::item::{Meta, Shown};
use super::judge::{Call, Op, Outcome, Verdict, judge, value_of};
use super::trace::{Seen, at, note};

/// The gate of a pair that changes is open again within this.
const EDGE_LASTS: Duration = Duration::from_secs(3);

/// Whether what is done with a key is done in the meta protocol, mostly.
pub(super) fn is_meta(key: &str) -> bool {
    key.starts_with(['m', 'a'])
}

/// The history of one world.
#[derive(Clone)]
pub(super) struct History(Rc<RefCell<Inner>>);

struct Inner {
    begun: Instant,
    /// When calls and answers were, in order: moments are counted by them.
    moments: Vec<Duration>,
    ops: Vec<(Option<String>, Op)>,
    violations: Vec<String>,
    errors: u64,
    unjudged: u64,
    /// The last answer to a client that was none of a failure.
    answered: Instant,
}

impl History {
    pub(super) fn new() -> History {
        let (begun, moments, ops, violations) = (Instant::now(), Vec::new(), Vec::new(), Vec::new());
        History(Rc::new(RefCell::new(Inner {
            begun,
            moments,
            ops,
            violations,
            errors: 0,
            unjudged: 0,
            answered: begun,
        })))
    }

    /// An operation begins. `key` = `None`: on every key.
    pub(super) fn call(&self, client: usize, key: Option<&str>, call: Call) -> usize {
        let inner = &mut *self.0.borrow_mut();
        let moment = inner.next_moment();
        let id = inner.ops.len();
        let who = format!("{:.3}s c{client} op{id}", inner.begun.elapsed().as_secs_f64());
        note(|| format!("client {client}: op{id} {} {call:?}", key.unwrap_or("*")));
        let op = Op { who, call, outcome: Outcome::Unknown, token: None, begun: moment, ended: None, early: false };
        inner.ops.push((key.map(str::to_owned), op));
        id
    }

    pub(super) fn answer(&self, id: usize, outcome: Outcome) {
        self.answer_with(id, outcome, None);
    }

    /// `token`: that of the item behind it, if the client was shown one.
    pub(super) fn answer_with(&self, id: usize, outcome: Outcome, token: Option<u64>) {
        let inner = &mut *self.0.borrow_mut();
        let moment = inner.next_moment();
        let with = token.map_or_else(String::new, |token| format!(" with token {token:x}"));
        note(|| format!("client   : op{id} {:?} {outcome:?}{with}", inner.ops[id].0));
        let op = &mut inner.ops[id].1;
        if outcome != Outcome::Unknown {
            op.ended = Some(moment);
            inner.answered = Instant::now();
        }
        (op.outcome, op.token) = (outcome, token);
    }

    /// It will not be answered, but takes effect; nothing tells when.
    pub(super) fn silent(&self, id: usize) {
        self.0.borrow_mut().ops[id].1.outcome = Outcome::Silent;
    }

    /// Whether a client has called `flush_all`.
    pub(super) fn was_flushed(&self) -> bool {
        self.0.borrow().ops.iter().any(|(_, op)| op.call == Call::Flush && !op.who.contains(" c99 "))
    }

    pub(super) fn violation(&self, what: String) {
        note(|| format!("WRONG  {what}"));
        self.0.borrow_mut().violations.push(what);
    }

    pub(super) fn error(&self) {
        self.0.borrow_mut().errors += 1;
    }

    /// When a client was last answered.
    pub(super) fn answered(&self) -> Instant {
        self.0.borrow().answered
    }

    pub(super) fn op_count(&self) -> usize {
        self.0.borrow().ops.len()
    }

    pub(super) fn error_count(&self) -> u64 {
        self.0.borrow().errors
    }

    /// Keys whose history was too long to be judged.
    pub(super) fn unjudged_count(&self) -> u64 {
        self.0.borrow().unjudged
    }

    /// What was read so far counts for nothing.
    pub(super) fn forget_reads(&self) {
        for (_, op) in self.0.borrow_mut().ops.iter_mut().filter(|(_, op)| op.call == Call::Get) {
            op.outcome = Outcome::Unknown;
        }
    }

    /// Forgets all that was done so far.
    pub(super) fn forget(&self) {
        self.0.borrow_mut().ops.clear();
    }

    /// Everything that is wrong. Judges every key.
    pub(super) fn verdict(&self, lenient: bool, seen: &Seen) -> Vec<String> {
        let inner = &mut *self.0.borrow_mut();
        let mut found = inner.violations.clone();
        let mut keys: BTreeMap<&str, Vec<Op>> = BTreeMap::new();
        for key in inner.ops.iter().filter_map(|(key, _)| key.as_deref()) {
            keys.entry(key).or_default();
        }
        for (key, op) in &inner.ops {
            if op.call == Call::Get && op.outcome == Outcome::Unknown {
                continue;
            }
            match key {
                Some(key) => keys.entry(key).or_default().push(op.clone()),
                None => keys.values_mut().for_each(|ops| ops.push(op.clone())),
            }
        }
        let robbed = seen.looks.iter().filter(|(.., call)| *call == Call::Rob);
        found
            .extend(robbed.map(|(at, key, _)| {
                format!("key {key}: the proxy has given away what it had not won, at moment {at}")
            }));
        for (key, mut ops) in keys {
            if is_meta(key) {
                found.extend(tokens_that_came_again(key, &ops));
                add_what_was_seen(&mut ops, key, seen, |edge| {
                    let until = (edge + EDGE_LASTS).duration_since(inner.begun);
                    inner.moments.partition_point(|&at| at <= until) as u64
                });
            }
            let mut verdict = judge(&ops, lenient);
            if let Verdict::Wrong { .. } = verdict
                && let Some(steady) = with_early_reads(&ops, &seen.losses)
                && judge(&steady, lenient) == Verdict::Fine
            {
                verdict = Verdict::Fine;
            }
            match verdict {
                Verdict::Fine => {}
                Verdict::TooLong => inner.unjudged += 1,
                Verdict::Wrong { order, stuck } => found.push(explain(key, &ops, &order, &stuck)),
            }
        }
        found
    }
}

impl Inner {
    fn next_moment(&mut self) -> u64 {
        self.moments.push(self.begun.elapsed());
        let moment = self.moments.len() as u64;
        at(moment);
        moment
    }
}

/// Adds what the proxy was seen to do with a key, which took effect then or not at all; `until`: of
/// an edge, by the moment of its beginning, the last one at which its gate may be closed.
fn add_what_was_seen(ops: &mut Vec<Op>, key: &str, seen: &Seen, until: impl Fn(Instant) -> u64) {
    let op = |who: &str, call, begun, ended| Op {
        who: format!("moment {begun} {who}"),
        call,
        outcome: Outcome::Unknown,
        token: None,
        begun,
        ended: Some(ended),
        early: false,
    };
    let looks = seen.looks.iter().filter(|(_, of, _)| of == key);
    ops.extend(looks.map(|(at, _, call)| op("proxy", call.clone(), *at, *at)));
    ops.extend(seen.edges.iter().map(|&(at, edge)| op("edge", Call::Leave, at, until(edge))));
    ops.sort_by_key(|op| op.begun);
}

/// A token belongs to one version of an item: what came with it is always the same.
fn tokens_that_came_again(key: &str, ops: &[Op]) -> Option<String> {
    let mut values: BTreeMap<u64, &str> = BTreeMap::new();
    ops.iter().find_map(|op| {
        let value = match (&op.call, &op.outcome) {
            (Call::Meta(Meta::Set { value, mode, .. }), Outcome::Stored) if !mode.joins() => value,
            (_, Outcome::Shown(Some(Shown { value: Some(value), .. }))) => value,
            _ => return None,
        };
        let before = values.insert(op.token?, value)?;
        (before != value).then(|| format!("key {key}: token {:?} came with {before:?} and with {value:?}", op.token))
    })
}

/// The history where what was read of a write before that was acknowledged need not fit, if a node
/// was lost in between: the write may have been made on the node that was lost, where it was read,
/// and be made again on the other one only after others have read what was there before.
/// (docs/guarantees.md says so.) It may fit, too, for it may have been read of the next leader:
/// then its client knows the token of what is there. `None` if there is no such read.
fn with_early_reads(ops: &[Op], losses: &[u64]) -> Option<Vec<Op>> {
    let is_early = |read: &Op| {
        let (text, stale, untold) = match &read.outcome {
            Outcome::Value(Some(text)) => (text.as_str(), false, None),
            Outcome::Shown(Some(shown)) => {
                let untold = shown.value.is_none().then_some(shown);
                (shown.value.as_deref().unwrap_or_default(), shown.marks.is_some_and(|marks| marks.stale), untold)
            }
            _ => return false,
        };
        ops.iter().any(|write| {
            let shows = match (value_of(&write.call), &write.outcome) {
                (Some(value), _) => text.contains(value) || untold.is_some_and(|shown| may_be_of(shown, &write.call)),
                (None, Outcome::Number(n)) => *text == n.to_string(),
                // Counted where it was read, and answered by the next leader, which held nothing.
                (None, Outcome::NotFound) if counts(&write.call) => text.bytes().all(|byte| byte.is_ascii_digit()),
                (None, _) => stale && matches!(write.call, Call::Meta(Meta::Delete { invalidate: true, .. })),
            };
            let between = |loss: &u64, until| read.begun.max(write.begun) <= *loss && *loss <= until;
            shows && write.ended.is_some_and(|until| losses.iter().any(|loss| between(loss, until)))
        })
    };
    let steady: Vec<Op> = ops.iter().map(|op| Op { early: is_early(op), ..op.clone() }).collect();
    (steady != ops).then_some(steady)
}

/// Whether what was shown without its value may be what this call has stored.
fn may_be_of(shown: &Shown, call: &Call) -> bool {
    let (flags, ends) = match call {
        Call::Meta(Meta::Set { flags, ends, .. }) => (*flags, *ends),
        _ => (0, 0),
    };
    shown.flags.is_none_or(|shown| shown == flags) && shown.ends.is_none_or(|shown| shown == ends)
}

fn counts(call: &Call) -> bool {
    matches!(call, Call::Incr(_) | Call::Meta(Meta::Count { .. }))
}

/// The end of the longest order that fits, and what fits no more.
fn explain(key: &str, ops: &[Op], order: &[usize], stuck: &[usize]) -> String {
    let line = |&i: &usize| {
        let op = &ops[i];
        format!("      {:<18} {:?} -> {:?}\n", op.who, op.call, op.outcome)
    };
    let last = &order[order.len().saturating_sub(12)..];
    format!(
        "key {key}: no order of its {} operations explains the answers. The longest that does ends\n{}    and none of these fits next:\n{}",
        ops.len(),
        last.iter().map(line).collect::<String>(),
        stuck.iter().map(line).collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::item::Marks;

    /// Stores by token 5 what is stale if that is an older one, and looks at it.
    fn store_with_token(history: &History, stale: bool) {
        let call = |call| history.call(0, Some("k"), call);
        let (mode, value) = (crate::simulation::item::Mode::Set, "c".into());
        let stored = call(Call::Meta(Meta::Set { mode, value, flags: 0, ends: 3_000, token: Some(5), older: true }));
        history.answer(stored, Outcome::Stored);
        let look = call(Call::Meta(Meta::Get { make: None, renew: None, ends: None, settled: false }));
        let marks = Some(Marks { won: stale, taken: false, stale });
        history.answer(look, Outcome::Shown(Some(Shown { ends: Some(3_000), marks, ..Shown::default() })));
    }

    #[test]
    fn what_was_read_of_a_write_that_a_loss_overtook_is_no_violation() {
        let history = |token| {
            let history = History::new();
            let call = |call| history.call(0, Some("k"), call);
            let value = |v: &str| Outcome::Value(Some(v.into()));
            let first = call(Call::Set("a".into()));
            history.answer(first, Outcome::Stored);
            let write = call(Call::Set("b".into()));
            let early = call(Call::Get);
            history.answer_with(early, value("b"), token);
            let late = call(Call::Get);
            history.answer(late, value("a"));
            (history, write)
        };
        // Moments: the early read is called at the fourth, the write answered at the eighth, or
        // later.
        let (lost, write) = history(None);
        lost.answer(write, Outcome::Stored);
        let at = |losses: &[u64]| Seen { losses: losses.to_vec(), ..Seen::default() };
        assert_eq!(lost.verdict(false, &at(&[6])), Vec::<String>::new());
        for losses in [&[][..], &[3], &[9]] {
            assert_eq!(lost.verdict(false, &at(losses)).len(), 1, "{losses:?}");
        }
        // Of the early read only the flags are told.
        for (flags, wrong) in [(7, 0), (8, 1)] {
            let history = History::new();
            let call = |call| history.call(0, Some("k"), call);
            let first = call(Call::Set("a".into()));
            history.answer(first, Outcome::Stored);
            let mode = crate::simulation::item::Mode::Set;
            let made = Meta::Set { mode, value: "b".into(), flags: 7, ends: 0, token: Some(1), older: false };
            let write = call(Call::Meta(made));
            let early = call(Call::Get);
            history.answer(early, Outcome::Shown(Some(Shown { flags: Some(flags), ..Shown::default() })));
            history.answer(write, Outcome::Exists);
            assert_eq!(history.verdict(false, &at(&[5])).len(), wrong, "{flags}");
        }
        // What was told of the next leader is a token all the same: with it nothing is stale.
        for (stale, wrong) in [(false, 0), (true, 1)] {
            let (history, write) = history(None);
            let call = |call| history.call(0, Some("k"), call);
            let told = call(Call::Get);
            history.answer(write, Outcome::Stored);
            let shown = Shown { value: Some("b".into()), ..Shown::default() };
            history.answer_with(told, Outcome::Shown(Some(shown)), Some(5));
            store_with_token(&history, stale);
            assert_eq!(history.verdict(false, &at(&[8])).len(), wrong, "{stale}");
        }
        // What was told of the lost one, before the write was made again, is no token any more.
        let (former, write) = history(Some(5));
        former.answer(write, Outcome::Stored);
        store_with_token(&former, false);
        assert_eq!(former.verdict(false, &at(&[6])).len(), 1);
        // Acknowledged before the late read it must stay.
        let (kept, write) = history(None);
        kept.answer(write, Outcome::Stored);
        let again = kept.call(0, Some("k"), Call::Get);
        kept.answer(again, Outcome::Value(Some("a".into())));
        assert_eq!(kept.verdict(false, &at(&[6])).len(), 1);
    }
}
