//! What must hold of each step.

use super::*;

/// The arrows as this file understands the diagram, written a second time on purpose.
pub(super) fn arrow(from: State, to: State, event: Event) -> bool {
    use State::{Dark, Degraded, Mirrored, Recovering};
    match (from, to, event) {
        (Mirrored, Degraded { leader }, Event::Lost(p, ..) | Event::Distrust(p)) => leader == p.other(),
        (Mirrored, Degraded { leader: Primary }, Event::Foreign(false)) => true,
        (
            Mirrored,
            Dark { in_sync: Some(Primary), fallback: Some(Backup) },
            Event::Lost(Primary, Loss::Suspected | Loss::SuspectedUncompared, _),
        ) => true,
        (Mirrored, Dark { in_sync: Some(Backup), fallback: None }, Event::Lost(Primary, Loss::MemoryGone, _)) => true,
        (
            Dark { in_sync: Some(s), fallback: a @ Some(_) },
            Dark { in_sync: b, fallback: None },
            Event::Lost(p, Loss::MemoryGone, _),
        ) if s == p => a == b,
        (Degraded { leader: a }, Recovering { leader: b }, Event::BeginRecovery) => a == b,
        (Degraded { leader }, Dark { in_sync: Some(s), .. }, Event::Lost(p, Loss::Suspected, _)) => {
            leader == p && s == p
        }
        (Degraded { leader }, Dark { in_sync: None, .. }, Event::Lost(p, Loss::MemoryGone, _)) => leader == p,
        (Recovering { leader }, Dark { in_sync: Some(s), fallback: None }, Event::Lost(p, ..)) => leader == p && s == p,
        (Recovering { leader: a }, Degraded { leader: b }, Event::Lost(p, ..)) => a == b && p == a.other(),
        (Recovering { leader: a }, Degraded { leader: b }, Event::ResyncEnded(_)) => a == b,
        (Recovering { .. }, Mirrored, Event::Drained(true)) => true,
        (Dark { in_sync: Some(s), .. }, Degraded { leader }, Event::BackSame(p)) => s == p && leader == p,
        (Dark { in_sync: Some(s), fallback: Some(f) }, Degraded { leader }, Event::Lost(p, Loss::MemoryGone, _)) => {
            s == p && leader == f
        }
        (
            Dark { in_sync: Some(s), fallback: None },
            Dark { in_sync: None, .. },
            Event::Lost(p, Loss::MemoryGone, _),
        ) => s == p,
        (Dark { in_sync: None, .. }, Degraded { leader }, Event::Purged(p)) => leader == p,
        (Dark { .. }, Degraded { leader }, Event::Promote(p)) => leader == p,
        // What Dark remembers: the fallback comes and goes, a flush voids both.
        (Dark { in_sync: a, .. }, Dark { in_sync: b, fallback }, Event::Undone(p)) => {
            a == b && a != fallback && fallback == Some(p)
        }
        (Dark { in_sync: a, fallback: Some(f) }, Dark { in_sync: b, fallback: None }, Event::Lost(p, ..)) => {
            a == b && f == p
        }
        (Dark { .. }, Dark { in_sync: None, fallback: None }, Event::Flushed) => true,
        _ => false,
    }
}

/// Rules 4 to 7: what an event may ask for, by the state it met.
pub(super) fn judge_effects(before: &Pair, after: &Pair, event: Event, effects: &[Effect]) {
    // Formatted only on failure: it took half of the walk's time.
    let told = || format!("{event:?} on {before:?}: {effects:?} -> {after:?}");
    let closes = effects.iter().filter(|e| matches!(e, Effect::Close { .. })).count();
    let aborts = usize::from(effects.first() == Some(&Effect::AbortResync));
    assert!(closes <= 1 && effects.len() <= 1 + aborts, "rule 4: one thing at a time: {}", told());
    let void = match event {
        Event::Lost(place, ..) => Some(place),
        _ => None,
    };
    if closes == 1 {
        // A follower that leads on proof was never in flight to the one whose memory is gone: that
        // one was voided when it was lost.
        let proof = matches!(before.state, State::Dark { fallback: Some(_), .. }) && after.state.leader().is_some();
        let expected = if proof { None } else { void };
        assert_eq!(effects.last(), Some(&Effect::Close { void: expected }), "rule 4: {}", told());
        assert_eq!(after.gate, Gate::Closing, "rule 4: {}", told());
    }
    if before.state.leader() != after.state.leader()
        || std::mem::discriminant(&before.state) != std::mem::discriminant(&after.state)
    {
        assert!(after.epoch > before.epoch, "rule 5: {}", told());
        let hands_back = event == Event::Drained(true) && !before.foreign;
        assert!(closes == 1 || hands_back, "rule 4: an edge that does not close: {}", told());
        assert!(!hands_back || before.gate == Gate::Draining, "rule 4: {}", told());
        if after.state.leader().is_some_and(|l| Some(l) != before.state.leader()) {
            assert_ne!(before.term, after.term, "rule 5: {}", told());
        }
    }
    if before.foreign
        && let Some(leader) = after.state.leader()
        && !matches!(event, Event::Promote(_))
    {
        let waited_for = matches!(before.state, State::Dark { in_sync: Some(p), .. } if p == leader);
        assert!(before.state.leader() == Some(leader) || waited_for, "rule 10: {leader} is promoted: {}", told());
        let handed_back = before.state != State::Mirrored && after.state == State::Mirrored;
        assert!(!handed_back, "rule 10: {}", told());
    }
    let aborts_expected = matches!((before.state, event), (State::Recovering { .. }, Event::Lost(..)));
    assert_eq!(aborts == 1, aborts_expected, "rule 4: {}", told());
    for effect in effects {
        assert!(fits(*effect, event, before, after), "rule 6: {}", told());
        if matches!(effect, Effect::RecordAlone { .. } | Effect::RecordFilling { .. } | Effect::RecordSync { .. }) {
            assert_eq!(after.gate, Gate::Recording, "rule 4: {}", told());
        }
    }
    if event == Event::HandBack && !effects.is_empty() {
        assert!(matches!(before.state, State::Recovering { .. }) && before.gate == Gate::Open, "rule 7: {}", told());
    }
    if event == Event::BeginRecovery && !effects.is_empty() {
        // Before the survivor is recorded as leading alone, a crash would leave the follower
        // looking in sync.
        assert_eq!(before.gate, Gate::Open, "rule 6: {}", told());
    }
    if after.gate == Gate::Open && before.gate != Gate::Open {
        assert_eq!(effects, [Effect::Open], "rule 4: {}", told());
    }
}

/// Whether an event may ask for this.
fn fits(effect: Effect, event: Event, before: &Pair, after: &Pair) -> bool {
    match effect {
        Effect::Close { .. } | Effect::AbortResync => true,
        Effect::Open => match event {
            Event::Closed => before.gate == Gate::Closing && after.state.leader().is_none(),
            Event::Recorded => before.gate == Gate::Recording,
            Event::Drained(clean) => before.gate == Gate::Draining && (!clean || before.foreign),
            _ => false,
        },
        Effect::RecordAlone { on } => event == Event::Closed && after.state == State::Degraded { leader: on },
        Effect::RecordFilling { on } => {
            event == Event::Closed && after.state == State::Recovering { leader: on.other() }
        }
        Effect::RecordSync { follower } => match event {
            // Whoever was filled is recorded first: cut short, the newest record then names a
            // node that is full.
            Event::Drained(true) => before.state == State::Recovering { leader: follower.other() },
            Event::Closed => after.state == State::Mirrored,
            _ => false,
        },
        Effect::FinishCopies => event == Event::Closed && before.handing_back && after.gate == Gate::Draining,
    }
}
