//! What the clients did and were told, and what else is wrong.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::time::Instant;

use super::judge::{Call, Op, Outcome, Verdict, judge, value_of};
use super::trace::{at, note};

/// Of one world.
#[derive(Clone)]
pub(super) struct History(Rc<RefCell<Inner>>);

struct Inner {
    begun: Instant,
    /// Calls and answers so far.
    moment: u64,
    ops: Vec<(Option<String>, Op)>,
    violations: Vec<String>,
    errors: u64,
    unjudged: u64,
}

impl History {
    pub(super) fn new() -> History {
        let inner =
            Inner { begun: Instant::now(), moment: 0, ops: Vec::new(), violations: Vec::new(), errors: 0, unjudged: 0 };
        History(Rc::new(RefCell::new(inner)))
    }

    /// An operation begins. `key` = `None`: on every key.
    pub(super) fn call(&self, client: usize, key: Option<&str>, call: Call) -> usize {
        let inner = &mut *self.0.borrow_mut();
        inner.moment += 1;
        at(inner.moment);
        let id = inner.ops.len();
        let who = format!("{:.3}s c{client} op{id}", inner.begun.elapsed().as_secs_f64());
        note(|| format!("client {client}: op{id} {} {call:?}", key.unwrap_or("*")));
        let op = Op { who, call, outcome: Outcome::Unknown, begun: inner.moment, ended: None };
        inner.ops.push((key.map(str::to_owned), op));
        id
    }

    pub(super) fn answer(&self, id: usize, outcome: Outcome) {
        let inner = &mut *self.0.borrow_mut();
        inner.moment += 1;
        at(inner.moment);
        note(|| format!("client   : op{id} {:?} {:?}", inner.ops[id].0, outcome));
        let op = &mut inner.ops[id].1;
        if outcome != Outcome::Unknown {
            op.ended = Some(inner.moment);
        }
        op.outcome = outcome;
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

    /// Nothing that was done so far counts.
    pub(super) fn forget(&self) {
        self.0.borrow_mut().ops.clear();
    }

    /// Everything that is wrong. Judges every key. `losses`: when the proxy lost a node.
    pub(super) fn verdict(&self, lenient: bool, losses: &[u64]) -> Vec<String> {
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
        for (key, ops) in keys {
            let mut verdict = judge(&ops, lenient);
            if let Verdict::Wrong { .. } = verdict
                && let Some(steady) = without_early_reads(&ops, losses)
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

/// The history without what was read of a write before that was acknowledged, where a node was lost
/// in between: the write may have been made on the node that was lost, where it was read, and be
/// made again on the other one only after others have read what was there before.
/// (docs/guarantees.md says so.) `None` if there is no such read.
fn without_early_reads(ops: &[Op], losses: &[u64]) -> Option<Vec<Op>> {
    let is_early = |read: &Op| {
        let Outcome::Value(Some(text)) = &read.outcome else { return false };
        ops.iter().any(|write| {
            let shows = match (value_of(&write.call), &write.outcome) {
                (Some(value), _) => text.contains(value),
                (None, Outcome::Number(n)) => *text == n.to_string(),
                _ => false,
            };
            let between = |loss: &u64, until| read.begun.max(write.begun) <= *loss && *loss <= until;
            shows && write.ended.is_some_and(|until| losses.iter().any(|loss| between(loss, until)))
        })
    };
    let steady: Vec<Op> = ops.iter().filter(|op| !is_early(op)).cloned().collect();
    (steady.len() < ops.len()).then_some(steady)
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

    #[test]
    fn what_was_read_of_a_write_that_a_loss_overtook_is_no_violation() {
        let history = || {
            let history = History::new();
            let call = |call| history.call(0, Some("k"), call);
            let value = |v: &str| Outcome::Value(Some(v.into()));
            let first = call(Call::Set("a".into()));
            history.answer(first, Outcome::Stored);
            let write = call(Call::Set("b".into()));
            let early = call(Call::Get);
            history.answer(early, value("b"));
            let late = call(Call::Get);
            history.answer(late, value("a"));
            (history, write)
        };
        // Moments: the early read is called at the fourth, the write answered at the eighth, or
        // later.
        let (lost, write) = history();
        lost.answer(write, Outcome::Stored);
        assert_eq!(lost.verdict(false, &[6]), Vec::<String>::new());
        for losses in [&[][..], &[3], &[9]] {
            assert_eq!(lost.verdict(false, losses).len(), 1, "{losses:?}");
        }
        // Acknowledged before the late read it must stay.
        let (kept, write) = history();
        kept.answer(write, Outcome::Stored);
        let again = kept.call(0, Some("k"), Call::Get);
        kept.answer(again, Outcome::Value(Some("a".into())));
        assert_eq!(kept.verdict(false, &[6]).len(), 1);
    }
}
