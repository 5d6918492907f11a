//! What one memcached makes of a call: the item behind it, and whether it would have given the
//! answer that the client got.
//!
//! Of the proxy's own looks at a stale item it is known when they won the right to recompute it,
//! and when they gave it back ([`Call::Look`], [`Call::GiveBack`]); and of the pairs, when another
//! node came to lead, for that is when an item may go that is kept on the leader alone
//! ([`Call::Leave`]).

use super::judge::{Call, Outcome};

/// How `ms` stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    Set,
    Add,
    Replace,
    Append,
    Prepend,
}

impl Mode {
    pub(super) fn joins(self) -> bool {
        matches!(self, Mode::Append | Mode::Prepend)
    }
}

/// A call of the meta protocol. Times are how long an item is to last, in seconds; 0: for ever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Meta {
    Get {
        /// `N`
        make: Option<u32>,
        /// `R`: what lasts for less is to be recomputed.
        renew: Option<u32>,
        /// `T`
        ends: Option<u32>,
        /// Everything is at rest: the right to recompute an item is a client's, or free.
        settled: bool,
    },
    Set {
        mode: Mode,
        value: String,
        flags: u32,
        ends: u32,
        /// `C`
        token: Option<u64>,
        /// `I`
        older: bool,
    },
    Delete {
        token: Option<u64>,
        /// `I`
        invalidate: bool,
        ends: Option<u32>,
    },
    Count {
        down: bool,
        by: u64,
        /// `N`, and `J`.
        make: Option<(u32, u64)>,
        ends: Option<u32>,
        token: Option<u64>,
    },
    /// `ms` with `E`.
    SetWithCas,
}

/// What `mg` (or `gets`) shows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Shown {
    pub(super) value: Option<String>,
    pub(super) flags: Option<u32>,
    pub(super) ends: Option<u32>,
    /// `None`: it was not asked in the meta protocol.
    pub(super) marks: Option<Marks>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Marks {
    /// `W`
    pub(super) won: bool,
    /// `Z`
    pub(super) taken: bool,
    /// `X`
    pub(super) stale: bool,
}

/// Whether the right to recompute an item was given, and to whom.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Taken {
    #[default]
    No,
    ByClient,
    ByProxy,
}

/// An item, as far as answers show it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Item {
    pub(super) text: String,
    flags: u32,
    ends: u32,
    stale: bool,
    taken: Taken,
    /// The last token that an answer showed; 0: none since its cas id changed.
    token: u64,
}

/// What becomes of an item.
#[derive(Debug)]
pub(super) enum Step {
    /// The answer is another one.
    Misfit,
    Same,
    Becomes(Item),
    Gone,
}

impl Item {
    pub(super) fn new(text: String) -> Item {
        Item { text, ..Item::default() }
    }

    fn number(&self) -> Option<u64> {
        self.text.split(' ').next()?.parse().ok()
    }

    /// A new item with this value, of which no answer has shown anything.
    fn joined(&self, text: String) -> Item {
        Item { text, flags: self.flags, ends: self.ends, ..Item::default() }
    }

    /// With another number. One that is no longer is written over it, and marks stay; else (`true`)
    /// it is another item.
    fn counted(&self, number: u64) -> (Item, bool) {
        let text = format!("{number:<width$}", width = self.text.len());
        match text.len() > self.text.len() {
            true => (self.joined(text), true),
            false => (Item { text, token: 0, ..self.clone() }, false),
        }
    }

    fn is_kept_by_the_leader_alone(&self) -> bool {
        self.stale || self.taken != Taken::No
    }

    /// Looks at it as `mg` does.
    fn look(&mut self, due: bool, by: Taken) -> Marks {
        let taken = self.taken != Taken::No;
        let won = !taken && (self.stale || due);
        if won {
            self.taken = by;
        }
        Marks { won, taken, stale: self.stale }
    }
}

/// `told`: the token that the answer showed of the item behind it.
pub(super) fn step(item: Option<&Item>, call: &Call, outcome: &Outcome, told: Option<u64>) -> Step {
    let next = match call {
        Call::Meta(meta) => meta_step(item, meta, outcome),
        _ => classic_step(item, call, outcome),
    };
    let Some(token) = told else { return next };
    match (next, item) {
        (Step::Same, Some(item)) if item.token != token => Step::Becomes(Item { token, ..item.clone() }),
        (Step::Becomes(item), _) => Step::Becomes(Item { token, ..item }),
        (next, _) => next,
    }
}

fn classic_step(item: Option<&Item>, call: &Call, outcome: &Outcome) -> Step {
    use Step::{Becomes, Gone, Misfit, Same};
    // What memcached would do and say.
    let (next, said) = match (call, item) {
        (Call::Set(v), _) | (Call::Add(v), None) | (Call::Replace(v), Some(_)) => {
            (Becomes(Item::new(v.clone())), Outcome::Stored)
        }
        (Call::Append(v), Some(item)) => (Becomes(item.joined([&item.text, v.as_str()].concat())), Outcome::Stored),
        (Call::Prepend(v), Some(item)) => (Becomes(item.joined([v.as_str(), &item.text].concat())), Outcome::Stored),
        (Call::Add(_), Some(_)) | (Call::Replace(_) | Call::Append(_) | Call::Prepend(_), None) => {
            (Same, Outcome::NotStored)
        }
        (Call::Cas(..) | Call::Incr(_) | Call::Delete | Call::Touch, None) => (Same, Outcome::NotFound),
        // A token that does not win although nothing was written is all right: leadership has
        // changed.
        (Call::Cas(..), _) if *outcome == Outcome::Exists => return Same,
        (Call::Cas(expected, v), Some(item)) if *expected == item.text => {
            (Becomes(Item::new(v.clone())), Outcome::Stored)
        }
        (Call::Cas(..), _) => (Same, Outcome::Exists),
        (Call::Incr(by), Some(item)) => match item.number() {
            Some(number) => (Becomes(item.counted(number + by).0), Outcome::Number(number + by)),
            None => (Same, Outcome::Denied),
        },
        (Call::Delete, _) => (Gone, Outcome::Done),
        (Call::Touch, _) => (Same, Outcome::Done),
        (Call::Get, _) => match outcome {
            Outcome::Shown(shown) => return if shows(item, shown.as_ref()) { Same } else { Misfit },
            _ => (Same, Outcome::Value(item.map(|item| item.text.trim_end().to_owned()))),
        },
        (Call::Flush, _) => return Gone,
        // None is written twice, so one that is not there any more never is again.
        (Call::Expire(v), _) => return if item.is_some_and(|item| item.text == *v) { Gone } else { Same },
        (Call::Look, Some(item)) if item.stale && item.taken == Taken::No => {
            return Becomes(Item { taken: Taken::ByProxy, ..item.clone() });
        }
        // It may be a client's right by now: then two are asked.
        (Call::GiveBack, Some(item)) if item.stale => {
            return Becomes(Item { taken: Taken::No, token: 0, ..item.clone() });
        }
        (Call::Leave, Some(item)) if item.is_kept_by_the_leader_alone() => return Gone,
        (Call::Look | Call::GiveBack | Call::Rob | Call::Leave, _) => return Same,
        (Call::Arrive(_) | Call::Meta(_), _) => return Misfit,
    };
    if said == *outcome || outcome.is_open() { next } else { Misfit }
}

fn meta_step(item: Option<&Item>, meta: &Meta, outcome: &Outcome) -> Step {
    use Step::{Becomes, Gone, Misfit, Same};
    let (next, said) = match (meta, item) {
        (Meta::Get { .. }, _) => return meta_get(item, meta, outcome),
        (Meta::Set { .. }, _) => meta_set(item, meta, outcome),
        (Meta::Delete { .. }, None) => (Same, Outcome::NotFound),
        (Meta::Delete { token: Some(_), .. } | Meta::Count { token: Some(_), .. }, Some(_))
            if *outcome == Outcome::Exists =>
        {
            return Same;
        }
        (Meta::Delete { token: Some(token), .. }, Some(item)) if *token != item.token => (Same, Outcome::Exists),
        (Meta::Delete { invalidate: true, ends, .. }, Some(item)) => {
            let ends = ends.unwrap_or(item.ends);
            (Becomes(Item { ends, stale: true, taken: Taken::No, token: 0, ..item.clone() }), Outcome::Done)
        }
        (Meta::Delete { .. }, Some(_)) => (Gone, Outcome::Done),
        (Meta::Count { make: None, .. }, None) => (Same, Outcome::NotFound),
        (Meta::Count { make: Some((ends, number)), .. }, None) => {
            (Becomes(Item { ends: *ends, ..Item::new(number.to_string()) }), Outcome::Number(*number))
        }
        (Meta::Count { down, by, ends, token, .. }, Some(item)) => match item.number() {
            None if item.text.is_empty() || token.is_none_or(|token| token == item.token) => (Same, Outcome::Denied),
            _ if token.is_some_and(|token| token != item.token) => (Same, Outcome::Exists),
            None => (Same, Outcome::Denied),
            Some(number) => {
                let number = if *down { number.saturating_sub(*by) } else { number + by };
                let (mut after, replaces) = item.counted(number);
                if !replaces {
                    after.ends = ends.unwrap_or(after.ends);
                }
                (Becomes(after), Outcome::Number(number))
            }
        },
        (Meta::SetWithCas, _) => (Same, Outcome::Denied),
    };
    // The answer may leave the number out.
    let untold = matches!((&said, outcome), (Outcome::Number(_), Outcome::Done));
    if said == *outcome || untold || outcome.is_open() { next } else { Misfit }
}

fn meta_get(item: Option<&Item>, meta: &Meta, outcome: &Outcome) -> Step {
    use Step::{Becomes, Misfit, Same};
    let Meta::Get { make, renew, ends, settled } = meta else { return Misfit };
    let Some(mut after) = item.cloned().or_else(|| make.map(|ends| Item { ends, ..Item::default() })) else {
        return if matches!(outcome, Outcome::Shown(None)) || outcome.is_open() { Same } else { Misfit };
    };
    if *settled && after.stale && after.taken == Taken::ByProxy {
        return Misfit;
    }
    after.ends = ends.unwrap_or(after.ends);
    let due = item.is_none() || renew.is_some_and(|than| after.ends != 0 && after.ends < than);
    let marks = after.look(due, Taken::ByClient);
    let fits = match outcome {
        Outcome::Shown(Some(shown)) => shown.marks == Some(marks) && shows(Some(&after), Some(shown)),
        _ => outcome.is_open(),
    };
    match fits {
        false => Misfit,
        true if item == Some(&after) => Same,
        true => Becomes(after),
    }
}

/// What becomes of the item, and what is said.
fn meta_set(item: Option<&Item>, meta: &Meta, outcome: &Outcome) -> (Step, Outcome) {
    use Step::{Becomes, Misfit, Same};
    let Meta::Set { mode, value, flags, ends, token, older } = meta else { return (Misfit, Outcome::Denied) };
    let fresh = || Item { flags: *flags, ends: *ends, ..Item::new(value.clone()) };
    match (mode, item, token) {
        (Mode::Add, Some(_), _) | (Mode::Append | Mode::Prepend, None, _) | (Mode::Replace, None, None) => {
            (Same, Outcome::NotStored)
        }
        (Mode::Add, None, _) | (Mode::Set, None, None) => (Becomes(fresh()), Outcome::Stored),
        (_, None, Some(_)) => (Same, Outcome::NotFound),
        // Always a right answer.
        (_, Some(_), Some(_)) if *outcome == Outcome::Exists => (Same, Outcome::Exists),
        (_, Some(item), Some(token)) if *token != item.token => match (mode, older) {
            (Mode::Set | Mode::Replace, true) => {
                let ends = item.ends;
                (Becomes(Item { ends, stale: true, taken: item.taken, ..fresh() }), Outcome::Stored)
            }
            _ => (Same, Outcome::Exists),
        },
        (Mode::Append, Some(item), _) => (Becomes(item.joined([&item.text, value.as_str()].concat())), Outcome::Stored),
        (Mode::Prepend, Some(item), _) => {
            (Becomes(item.joined([value.as_str(), &item.text].concat())), Outcome::Stored)
        }
        (Mode::Set | Mode::Replace, Some(_), _) => (Becomes(fresh()), Outcome::Stored),
    }
}

/// Whether that is what was shown of the item, but for its marks.
fn shows(item: Option<&Item>, shown: Option<&Shown>) -> bool {
    match (item, shown) {
        (Some(item), Some(shown)) => {
            shown.value.as_ref().is_none_or(|value| value == item.text.trim_end())
                && shown.flags.is_none_or(|flags| flags == item.flags)
                && shown.ends.is_none_or(|ends| ends == item.ends)
        }
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::judge::{Op, Verdict, judge};

    /// One after the other.
    fn op(at: usize, call: Call, outcome: Outcome, token: Option<u64>) -> Op {
        let begun = 2 * at as u64;
        let ended = (outcome != Outcome::Unknown).then_some(begun + 1);
        Op { who: String::new(), call, outcome, token, begun, ended, early: false }
    }

    fn set(value: &str, token: Option<u64>, older: bool) -> Call {
        Call::Meta(Meta::Set { mode: Mode::Set, value: value.into(), flags: 0, ends: 0, token, older })
    }

    fn mg(make: Option<u32>, renew: Option<u32>, settled: bool) -> Call {
        Call::Meta(Meta::Get { make, renew, ends: None, settled })
    }

    fn invalidate() -> Call {
        Call::Meta(Meta::Delete { token: None, invalidate: true, ends: None })
    }

    /// What `mg` shows: a value, and of `W`, `Z`, `X` those in `marks`.
    fn shown(value: &str, marks: &str) -> Outcome {
        let has = |mark| marks.contains(mark);
        let marks = Marks { won: has('W'), taken: has('Z'), stale: has('X') };
        Outcome::Shown(Some(Shown { value: Some(value.into()), marks: Some(marks), ..Shown::default() }))
    }

    #[test]
    fn marks_and_tokens_are_judged() {
        use Outcome::{Done, Exists, NotFound, Stored};
        let look = || mg(None, None, false);
        let judged = |history: &[(Call, Outcome, Option<u64>)]| {
            let ops: Vec<Op> =
                history.iter().enumerate().map(|(i, (c, o, t))| op(i, c.clone(), o.clone(), *t)).collect();
            judge(&ops, false)
        };
        let begin = [(set("a", None, false), Stored, Some(5)), (invalidate(), Done, None)];
        let won = (look(), shown("a", "WX"), Some(6));
        let fine: &[&[_]] = &[
            &[won.clone(), (look(), shown("a", "ZX"), Some(6))],
            &[(Call::Get, Outcome::Value(Some("a".into())), None), won.clone()],
            // Written anew; by another one; behind another mark.
            &[won.clone(), (set("b", Some(6), false), Stored, None), (look(), shown("b", ""), None)],
            &[won.clone(), (set("b", None, false), Stored, None), (set("c", Some(6), false), Exists, None)],
            &[won.clone(), (invalidate(), Done, None), (look(), shown("a", "WX"), Some(8))],
            // What is older is stored as stale, and somebody is at it already.
            &[won.clone(), (set("b", Some(5), true), Stored, None), (look(), shown("b", "ZX"), None)],
            // The proxy looks, and gives it back; a leader goes, and the item with it.
            &[(Call::Look, Outcome::Unknown, None), (look(), shown("a", "ZX"), None)],
            &[
                (Call::Look, Outcome::Unknown, None),
                (Call::GiveBack, Outcome::Unknown, None),
                (mg(None, None, true), shown("a", "WX"), None),
            ],
            &[
                (Call::Leave, Outcome::Unknown, None),
                (look(), Outcome::Shown(None), None),
                (invalidate(), NotFound, None),
            ],
            &[won.clone(), (Call::Append("b".into()), Stored, None), (look(), shown("ab", ""), None)],
        ];
        for history in fine {
            let history = [&begin, *history].concat();
            assert_eq!(judged(&history), Verdict::Fine, "{history:?}");
        }
        let wrong: &[&[_]] = &[
            // Fresh again; won twice; taken by nobody; gone, and back.
            &[(look(), shown("a", ""), None)],
            &[won.clone(), (look(), shown("a", "WX"), None)],
            &[(look(), shown("a", "ZX"), None)],
            &[(look(), Outcome::Shown(None), None)],
            &[
                (Call::Leave, Outcome::Unknown, None),
                (look(), Outcome::Shown(None), None),
                (look(), shown("a", "WX"), None),
            ],
            // The proxy has kept it.
            &[(Call::Look, Outcome::Unknown, None), (mg(None, None, true), shown("a", "ZX"), None)],
            // Older tokens win; or make nothing stale.
            &[won.clone(), (set("b", Some(5), false), Stored, None)],
            &[won.clone(), (set("b", Some(5), true), Stored, None), (look(), shown("b", "Z"), None)],
            &[won.clone(), (set("b", Some(6), false), Stored, None), (set("c", Some(6), false), Stored, None)],
            // It goes although it is fresh.
            &[
                won.clone(),
                (set("b", None, false), Stored, None),
                (Call::Leave, Outcome::Unknown, None),
                (look(), Outcome::Shown(None), None),
            ],
        ];
        for history in wrong {
            let history = [&begin, *history].concat();
            assert!(matches!(judged(&history), Verdict::Wrong { .. }), "{history:?}");
        }
        // What is made is somebody's to compute; what ends before long, once.
        let made = [(mg(Some(3_000), None, false), shown("", "W"), None), (look(), shown("", "Z"), None)];
        assert_eq!(judged(&made), Verdict::Fine);
        let due = |marks| [made[0].clone(), (mg(None, Some(3_500), false), shown("", marks), None)];
        assert_eq!(judged(&due("Z")), Verdict::Fine);
        assert!(matches!(judged(&due("W")), Verdict::Wrong { .. }));
        let renewed = |renew, marks| {
            let lasts = Call::Meta(Meta::Get { make: None, renew: None, ends: Some(3_000), settled: false });
            judged(&[
                begin[0].clone(),
                (lasts, shown("a", ""), None),
                (mg(None, Some(renew), false), shown("a", marks), None),
            ])
        };
        assert_eq!((renewed(3_500, "W"), renewed(2_500, "")), (Verdict::Fine, Verdict::Fine));
        assert!(
            matches!(renewed(3_500, ""), Verdict::Wrong { .. }) && matches!(renewed(2_500, "W"), Verdict::Wrong { .. })
        );
    }
}
