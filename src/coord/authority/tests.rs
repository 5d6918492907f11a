//! The authority of one proxy, event by event; `walk` has all orders of several.

use super::*;
use crate::ids::{Epoch, PairId, Place};

/// Three seconds.
const LEASE: u64 = 3_000_000;
const ALL_CLOSED: Survey = Survey { answered: Answered::All, highest: Generation(0), lease: 0, open: false };

fn proxy(holder: u64) -> Authority {
    let me = Me { holder: Holder(holder), address: format!("10.0.0.{holder}:12000"), fingerprint: 7, candidate: true };
    Authority::new(me, Times::of(LEASE))
}

fn record(holder: u64, tenure: Tenure) -> Record {
    let (generation, fingerprint, term) = (Generation(5), 7, Term(40));
    Record { generation, tenure, fingerprint, term, heartbeat: 9, ..Record::of(Holder(holder)) }
}

fn seen(value: Value) -> Seen {
    Seen { revision: 3, value }
}

/// A standby reads this at each poll, from 0 on, until so long after.
fn poll(proxy: &mut Authority, value: &Value, until: u64) -> Vec<Action> {
    let mut last = vec![];
    for us in (0..=until).step_by(LEASE as usize / 6) {
        if proxy.handle(Boot(us), Event::Tick { turned: Boot(us) }) == [Action::Read] {
            last = proxy.handle(Boot(us), Event::Read(Some(seen(value.clone()))));
        }
    }
    last
}

/// A standby reads this at each poll, and the servers say that, until it claims: when, and what.
fn claim(proxy: &mut Authority, value: &Value, survey: Survey) -> Option<(u64, Record)> {
    (0..=3 * LEASE).step_by(LEASE as usize / 6).find_map(|us| {
        let now = Boot(us);
        proxy.handle(now, Event::Tick { turned: now });
        let mut asked = proxy.handle(now, Event::Read(Some(seen(value.clone()))));
        if asked == [Action::Survey] {
            asked = proxy.handle(now, Event::Surveyed(survey));
        }
        match &asked[..] {
            [Action::Swap { new, .. }] => Some((us, new.clone())),
            _ => None,
        }
    })
}

/// One that claimed an absent record at 0, and begins.
fn active() -> Authority {
    let mut proxy = proxy(1);
    assert_eq!(poll(&mut proxy, &Value::Absent, 0), [Action::Survey]);
    let claim = proxy.handle(Boot(0), Event::Surveyed(ALL_CLOSED));
    assert!(matches!(&claim[..], [Action::Swap { new, .. }] if new.generation == Generation(1)), "{claim:?}");
    let begun = proxy.handle(Boot(10), Event::Swapped(Swapped::Done(1)));
    let predecessor = Burden::default();
    assert_eq!(begun, [Action::Extend(Boot(LEASE)), Action::Begin { generation: Generation(1), predecessor }]);
    proxy
}

#[test]
fn a_record_is_claimed_after_its_heartbeat_was_seen_for_longer_than_a_lease() {
    let mut before = record(2, Tenure::Serving);
    before.lost.set(PairId(3), Epoch(5), &[Place::Backup]);
    let value = Value::Record(before.clone());
    assert_eq!(poll(&mut proxy(1), &value, LEASE * 5 / 6), []);
    let mut late = proxy(1);
    assert_eq!(poll(&mut late, &value, LEASE + LEASE / 3), [Action::Survey]);
    let marked = Survey { highest: Generation(8), ..ALL_CLOSED };
    assert_eq!(late.handle(Boot(2 * LEASE), Event::Surveyed(marked)), [], "the last poll is too long ago");
    let (at, new) = claim(&mut proxy(1), &value, marked).expect("a claim");
    assert!((LEASE + LEASE / 8..LEASE + LEASE / 3).contains(&at), "after {at} us");
    assert_eq!((new.generation, new.term), (Generation(9), Term(40)), "above the servers' marks too");
}

/// A server that has died with the proxy takes all the time that is given to it.
#[test]
fn the_servers_are_asked_while_the_heartbeat_is_waited_for() {
    let value = Value::Record(record(2, Tenure::Serving));
    let read = |proxy: &mut Authority, now| {
        assert_eq!(proxy.handle(now, Event::Tick { turned: now }), [Action::Read]);
        proxy.handle(now, Event::Read(Some(seen(value.clone()))))
    };
    let is_claim = |actions: &[Action]| matches!(actions, [Action::Swap { .. }]);
    let due = LEASE + LEASE / 8;
    // It is heard of when the claim is due.
    let mut standby = proxy(1);
    assert_eq!(poll(&mut standby, &value, LEASE), [Action::Survey]);
    assert!(is_claim(&standby.handle(Boot(due), Event::Surveyed(ALL_CLOSED))));
    // Before it: nothing is asked again.
    let mut standby = proxy(1);
    assert_eq!(poll(&mut standby, &value, LEASE), [Action::Survey]);
    assert_eq!(standby.handle(Boot(LEASE), Event::Surveyed(ALL_CLOSED)), []);
    assert_eq!(read(&mut standby, Boot(due - 1)), []);
    assert!(is_claim(&read(&mut standby, Boot(due))));
    // What was said too long ago does not count.
    let mut standby = proxy(1);
    assert_eq!(poll(&mut standby, &value, LEASE), [Action::Survey]);
    let of_long = Survey { lease: 2 * LEASE, ..ALL_CLOSED };
    assert_eq!(standby.handle(Boot(LEASE), Event::Surveyed(of_long)), []);
    for sixths in [7, 8] {
        assert_eq!(read(&mut standby, Boot(LEASE / 6 * sixths)), []);
    }
    assert_eq!(read(&mut standby, Boot(LEASE / 6 * 9)), [Action::Survey]);
    // Nobody has said anything: that is asked again at once.
    let mut standby = proxy(1);
    assert_eq!(poll(&mut standby, &value, LEASE), [Action::Survey]);
    let nobody = Survey { answered: Answered::None, ..ALL_CLOSED };
    assert_eq!(standby.handle(Boot(LEASE + 1), Event::Surveyed(nobody)), []);
    assert_eq!(read(&mut standby, Boot(LEASE + 2)), [Action::Survey]);
}

/// The list of what is lost is of the last holder, and of the same pairs.
#[test]
fn what_is_lost_stays_so_unless_the_record_is_an_old_one_or_of_another_list() {
    for (fingerprint, highest, stays) in [(7, 5, true), (7, 0, true), (7, 6, false), (8, 5, false)] {
        let mut before = Record { fingerprint, ..record(2, Tenure::Free) };
        before.lost.set(PairId(3), Epoch(5), &[Place::Backup]);
        let marked = Survey { highest: Generation(highest), ..ALL_CLOSED };
        let new = claim(&mut proxy(1), &Value::Record(before), marked).expect("a claim").1;
        assert_eq!(!new.lost.is_empty(), stays, "fingerprint {fingerprint}, highest {highest}");
        assert_eq!(new.term, Term(40));
    }
}

/// All items would be in the wrong place. (Seen: the wrong one of two standbys took over in three
/// of five planned changes, and no item was readable after.)
#[test]
fn a_proxy_with_another_list_takes_no_place_that_was_just_left() {
    let of_others = |tenure| Value::Record(Record { fingerprint: 8, ..record(2, tenure) });
    for left in [of_others(Tenure::Free), Value::Absent] {
        let mut proxy = proxy(1);
        assert_eq!(poll(&mut proxy, &of_others(Tenure::Serving), 0), []);
        assert_eq!(poll(&mut proxy, &left, 3 * LEASE), [], "{left:?}");
        // One with its own list serves, and leaves.
        assert_eq!(poll(&mut proxy, &Value::Record(record(3, Tenure::Serving)), 0), []);
        assert_eq!(poll(&mut proxy, &Value::Record(record(3, Tenure::Free)), 0), [Action::Survey]);
    }
    // At a start with a new list that with the one before comes first.
    let claimed = claim(&mut proxy(1), &of_others(Tenure::Free), ALL_CLOSED).expect("a claim");
    assert!(claimed.0 > LEASE, "{claimed:?}");
}

/// By what the record says, and where that is lost, or an old one, by the servers' marks.
#[test]
fn a_holder_with_a_longer_lease_is_waited_for_that_long() {
    let long = 3 * LEASE;
    let of_long = Value::Record(Record { lease: long, ..record(2, Tenure::Serving) });
    assert_eq!(poll(&mut proxy(1), &of_long, long + LEASE / 6), []);
    assert_eq!(poll(&mut proxy(1), &of_long, long + LEASE / 2), [Action::Survey]);
    let marked = Survey { lease: long, open: true, ..ALL_CLOSED };
    for value in [Value::Absent, Value::Record(record(2, Tenure::Free)), Value::Record(record(2, Tenure::Serving))] {
        let mut proxy = proxy(1);
        let claimed = (0..=2 * long).step_by(LEASE as usize / 6).find(|&us| {
            let now = Boot(us);
            assert_eq!(proxy.handle(now, Event::Tick { turned: now }), [Action::Read], "{value:?}");
            let asked = proxy.handle(now, Event::Read(Some(seen(value.clone()))));
            let is_asked = asked == [Action::Survey];
            !if is_asked { proxy.handle(now, Event::Surveyed(marked)) } else { asked }.is_empty()
        });
        let claimed = claimed.expect("in the end");
        assert!((long + long / 8..long + long / 8 + LEASE / 3).contains(&claimed), "{value:?}: after {claimed} us");
    }
}

#[test]
fn what_a_candidate_leaves_alone() {
    let other_list = Value::Record(Record { fingerprint: 8, ..record(2, Tenure::Serving) });
    for value in [other_list, Value::Unreadable] {
        assert_eq!(poll(&mut proxy(1), &value, 3 * LEASE), [], "{value:?}");
    }
    let mut witness = proxy(1);
    witness.me.candidate = false;
    assert_eq!(poll(&mut witness, &Value::Absent, 3 * LEASE), []);
    let mut beside = proxy(1);
    beside.me.candidate = false;
    poll(&mut beside, &Value::Record(record(2, Tenure::Serving)), 0);
    assert_eq!(beside.handle(Boot(0), Event::IsDead(Holder(2))), [], "it is no candidate");
    let mut cut_off = proxy(1);
    let long = LEASE + LEASE / 3;
    assert_eq!(poll(&mut cut_off, &Value::Record(record(2, Tenure::Serving)), long), [Action::Survey]);
    let nobody = Survey { answered: Answered::None, ..ALL_CLOSED };
    assert_eq!(cut_off.handle(Boot(long), Event::Surveyed(nobody)), [], "it reaches no server");
    let mut other_list = proxy(1);
    poll(&mut other_list, &Value::Record(Record { fingerprint: 8, ..record(2, Tenure::Serving) }), 0);
    assert_eq!(other_list.handle(Boot(0), Event::IsDead(Holder(2))), [], "whoever is dead had another list");
}

#[test]
fn a_free_record_is_claimed_at_once_unless_a_session_is_open() {
    for (open, claims) in [(false, true), (true, false)] {
        let mut proxy = proxy(1);
        assert_eq!(poll(&mut proxy, &Value::Record(record(2, Tenure::Free)), 0), [Action::Survey]);
        let answer = Survey { answered: Answered::Some, open, ..ALL_CLOSED };
        assert_eq!(!proxy.handle(Boot(0), Event::Surveyed(answer)).is_empty(), claims);
    }
}

/// Who is gone may have waited for one that is not.
#[test]
fn who_is_awaited_stays_so_over_a_second_takeover() {
    for (tenure, dead, open, awaited, awaits) in [
        (Tenure::Free, false, false, false, false),
        (Tenure::Free, false, false, true, true),
        (Tenure::Serving, true, true, false, false),
        (Tenure::Serving, true, true, true, true),
        (Tenure::Serving, false, false, false, true),
        (Tenure::Free, false, true, false, true),
    ] {
        let mut proxy = proxy(1);
        let value = Value::Record(Record { awaits: awaited, ..record(2, tenure) });
        let case = format!("{tenure:?}, dead: {dead}, open: {open}, awaited: {awaited}");
        let mut claim = None;
        for us in (0..=LEASE + LEASE / 3).step_by(LEASE as usize / 6) {
            let now = Boot(us);
            assert_eq!(proxy.handle(now, Event::Tick { turned: now }), [Action::Read], "{case}");
            let mut asked = proxy.handle(now, Event::Read(Some(seen(value.clone()))));
            if dead {
                asked = proxy.handle(now, Event::IsDead(Holder(2)));
            }
            if asked == [Action::Survey] {
                asked = proxy.handle(now, Event::Surveyed(Survey { open, ..ALL_CLOSED }));
            }
            if let [Action::Swap { new, .. }] = &asked[..] {
                claim = Some(new.clone());
                let begun = proxy.handle(now, Event::Swapped(Swapped::Done(4)));
                let told = |a: &Action| matches!(a, Action::Begin { predecessor, .. } if predecessor.awaits == awaits);
                assert!(begun.iter().any(told), "{case}: {begun:?}");
                break;
            }
        }
        assert_eq!(claim.expect(&case).awaits, awaits, "{case}");
    }
}

#[test]
fn a_loss_is_committed_once_the_record_carries_it() {
    let mut proxy = active();
    let mut burden = Burden { term: Term(41), ..Burden::default() };
    burden.lost.set(PairId(3), Epoch(5), &[Place::Backup]);
    // At once, and not at the next heartbeat.
    let asked = proxy.handle(Boot(20), Event::Carry(burden.clone()));
    let [Action::Swap { new, .. }] = &asked[..] else { panic!("{asked:?}") };
    assert!(new.lost.contains(PairId(3), Place::Backup) && new.term == Term(41));
    // What is wanted meanwhile is asked for behind it.
    let more = Burden { term: Term(42), ..burden.clone() };
    assert_eq!(proxy.handle(Boot(25), Event::Carry(more.clone())), []);
    let done = proxy.handle(Boot(30), Event::Swapped(Swapped::Done(2)));
    assert_eq!(done[..2], [Action::Committed(burden), Action::Extend(Boot(LEASE + 20))]);
    assert!(matches!(&done[2], Action::Swap { new, .. } if new.term == Term(42)), "{done:?}");
    // An outcome that is not known is no commit, before a read shows it.
    let Action::Swap { new, .. } = done[2].clone() else { unreachable!() };
    assert_eq!(proxy.handle(Boot(40), Event::Swapped(Swapped::Unknown)), []);
    assert_eq!(proxy.handle(Boot(50), Event::Tick { turned: Boot(50) }), [Action::Read]);
    let read = proxy.handle(Boot(60), Event::Read(Some(seen(Value::Record(new)))));
    assert_eq!(read, [Action::Committed(more), Action::Extend(Boot(LEASE + 30))]);
}

#[test]
fn a_proxy_whose_threads_hang_lets_its_lease_end() {
    let mut proxy = active();
    let mut asked = 0;
    for us in (LEASE / 6..3 * LEASE).step_by(LEASE as usize / 6) {
        // Its threads have not turned since 10.
        for action in proxy.handle(Boot(us), Event::Tick { turned: Boot(10) }) {
            if let Action::Swap { .. } = action {
                asked += 1;
                proxy.handle(Boot(us), Event::Swapped(Swapped::Done(1 + asked)));
            }
        }
    }
    assert!((2..=3).contains(&asked), "{asked} heartbeats in half a lease");
    assert!(!proxy.acts(Boot(3 * LEASE)));
}

#[test]
fn a_suspended_proxy_goes_on_once_its_heartbeat_is_in_and_the_marks_are_its_own() {
    for own in [true, false] {
        let mut proxy = active();
        let late = Boot(LEASE + 5);
        let tick = proxy.handle(late, Event::Tick { turned: late });
        assert!(matches!(&tick[..], [Action::Suspend, Action::Swap { .. }]), "{tick:?}");
        assert_eq!(proxy.handle(late, Event::Swapped(Swapped::Done(2))), [Action::ReadMarks]);
        assert!(!proxy.acts(late));
        let went = proxy.handle(late, Event::MarksAreOwn(own));
        assert_eq!(went, [if own { Action::Extend(late.after(LEASE)) } else { Action::Fence(Why::Marked) }]);
        assert_eq!(proxy.acts(late), own);
    }
}

#[test]
fn what_fences() {
    let other = |generation| Value::Record(Record { generation: Generation(generation), ..record(2, Tenure::Serving) });
    for (value, why) in [
        (other(2), Why::Replaced),
        (other(0), Why::Replaced),
        (Value::Absent, Why::Absent),
        (Value::Unreadable, Why::Unreadable),
    ] {
        let mut proxy = active();
        let tick = Boot(10 + LEASE / 6);
        assert!(matches!(&proxy.handle(tick, Event::Tick { turned: tick })[..], [Action::Swap { .. }]));
        assert_eq!(proxy.handle(tick, Event::Swapped(Swapped::Refused)), [Action::Read]);
        assert_eq!(proxy.handle(tick, Event::Read(Some(seen(value)))), [Action::Fence(why)]);
        assert!(!proxy.acts(tick));
        assert_eq!(proxy.handle(tick, Event::Tick { turned: tick }), [], "for good");
    }
    let mut proxy = active();
    let marked = |generation, address: &str| Event::Marked(Generation(generation), address.to_owned());
    assert_eq!(proxy.handle(Boot(20), marked(1, "10.0.0.1:12000")), []);
    assert_eq!(proxy.clone().handle(Boot(20), marked(2, "10.0.0.2:12000")), [Action::Fence(Why::Marked)]);
    assert_eq!(
        proxy.handle(Boot(20), marked(1, "10.0.0.2:12000")),
        [Action::Fence(Why::Marked)],
        "it is another one's"
    );
}

#[test]
fn one_that_has_stopped_frees_the_record_and_ends() {
    let mut proxy = active();
    let stopped = proxy.handle(Boot(20), Event::Stopped);
    assert!(
        matches!(&stopped[..], [Action::Suspend, Action::Swap { new, .. }] if new.tenure == Tenure::Free),
        "{stopped:?}"
    );
    assert!(!proxy.acts(Boot(20)));
    // Until it is known to be in.
    assert_eq!(proxy.handle(Boot(30), Event::Swapped(Swapped::Unknown)), []);
    assert_eq!(proxy.handle(Boot(40), Event::Tick { turned: Boot(0) }), [Action::Read]);
    let [_, Action::Swap { new, .. }] = &stopped[..] else { unreachable!() };
    assert_eq!(proxy.handle(Boot(50), Event::Read(Some(seen(Value::Record(new.clone()))))), [Action::End]);
    let mut standby = super::tests::proxy(2);
    assert_eq!(standby.handle(Boot(0), Event::Leave), [Action::End]);
}

/// A claim that nobody answered is made long ago, and another candidate has seen its heartbeat
/// since. One that is asked for later must not be taken for it.
#[test]
fn a_claim_counts_from_its_own_asking() {
    for (rule, until) in [(None, LEASE), (Some(Rule::HeartbeatsAreUnique), LEASE + LEASE / 2)] {
        crate::rules::off::without(rule, || {
            let mut proxy = proxy(1);
            assert_eq!(poll(&mut proxy, &Value::Absent, 0), [Action::Survey]);
            let first = proxy.handle(Boot(0), Event::Surveyed(ALL_CLOSED));
            let [Action::Swap { new: made, .. }] = &first[..] else { panic!("{first:?}") };
            proxy.handle(Boot(0), Event::Swapped(Swapped::Unknown));
            // It is late, and the record seems to be absent still.
            let later = Boot(LEASE / 2);
            proxy.handle(later, Event::Tick { turned: later });
            assert_eq!(proxy.handle(later, Event::Read(Some(seen(Value::Absent)))), [Action::Survey]);
            assert!(!proxy.handle(later, Event::Surveyed(ALL_CLOSED)).is_empty());
            proxy.handle(later, Event::Swapped(Swapped::Unknown));
            proxy.handle(later, Event::Tick { turned: later });
            let begun = proxy.handle(later, Event::Read(Some(seen(Value::Record(made.clone())))));
            let expected = if rule.is_some() { vec![LEASE, until] } else { vec![until] };
            let Some(Action::Extend(extended)) = begun.first() else { panic!("{begun:?}") };
            assert!(expected.contains(&extended.0), "{begun:?}");
            assert_eq!(rule.is_none(), extended.0 == LEASE && made.heartbeat == 1);
        });
    }
}

/// Else its clients would wait for a lease after each planned change.
#[test]
fn whoever_is_no_candidate_reads_the_record_when_somebody_waits() {
    let mut proxy = proxy(1);
    proxy.me.candidate = false;
    let seen = || Event::Read(Some(seen(Value::Record(record(2, Tenure::Serving)))));
    assert_eq!(proxy.handle(Boot(10), Event::Tick { turned: Boot(10) }), [Action::Read]);
    assert_eq!(proxy.handle(Boot(11), Event::Wanted), [], "it is reading");
    assert_eq!(proxy.handle(Boot(12), seen()), []);
    assert_eq!(proxy.handle(Boot(20), Event::Tick { turned: Boot(20) }), [], "it knows where the active one is");
    assert_eq!(proxy.handle(Boot(21), Event::Wanted), [Action::Read]);
}

/// What stands there is not what it compared with: its time counts anew, also where the same is
/// seen again (a register that was restored).
#[test]
fn a_claim_that_was_refused_begins_to_wait_anew() {
    let value = Value::Record(record(2, Tenure::Serving));
    let mut proxy = proxy(1);
    assert_eq!(poll(&mut proxy, &value, LEASE + LEASE / 3), [Action::Survey]);
    let now = Boot(LEASE + LEASE / 3);
    assert!(matches!(&proxy.handle(now, Event::Surveyed(ALL_CLOSED))[..], [Action::Swap { .. }]));
    assert_eq!(proxy.handle(now, Event::Swapped(Swapped::Refused)), []);
    let next = now.after(LEASE / 6);
    assert_eq!(proxy.handle(next, Event::Tick { turned: next }), [Action::Read]);
    assert_eq!(proxy.handle(next, Event::Read(Some(seen(value)))), []);
}

/// Its answer would be taken for that of what is asked now.
#[test]
fn one_thing_is_asked_at_a_time() {
    let value = Value::Record(record(2, Tenure::Serving));
    let mut standby = proxy(1);
    poll(&mut standby, &value, 0);
    let now = Boot(LEASE / 6);
    assert_eq!(standby.handle(now, Event::Tick { turned: now }), [Action::Read]);
    assert_eq!(standby.handle(now, Event::IsDead(Holder(2))), [], "it is reading");
    assert_eq!(standby.handle(now, Event::Tick { turned: now }), []);
    assert_eq!(standby.handle(now, Event::Read(Some(seen(value)))), []);
    assert_eq!(standby.handle(now, Event::IsDead(Holder(2))), [Action::Survey]);
    assert_eq!(standby.handle(now, Event::Tick { turned: now }), [], "servers are asked");
    // A suspended one whose heartbeat is in reads the marks before it asks for anything else.
    let mut holder = active();
    let late = Boot(LEASE + 5);
    holder.handle(late, Event::Tick { turned: late });
    holder.handle(late, Event::Carry(Burden { term: Term(50), ..Burden::default() }));
    assert_eq!(holder.handle(late, Event::Swapped(Swapped::Done(2))), [Action::ReadMarks]);
    assert_eq!(holder.handle(late, Event::Tick { turned: late }), []);
    let went = holder.handle(late, Event::MarksAreOwn(true));
    assert_eq!(went, [Action::Extend(late.after(LEASE))]);
    let asked = holder.handle(late, Event::Tick { turned: late });
    assert!(matches!(&asked[..], [Action::Swap { new, .. }] if new.term == Term(50)), "{asked:?}");
}

/// Nothing is sent to servers any more, whatever comes of what was asked before.
#[test]
fn one_that_has_stopped_acts_no_more() {
    let mut proxy = active();
    let due = Boot(LEASE / 6 + 10);
    assert!(matches!(&proxy.handle(due, Event::Tick { turned: due })[..], [Action::Swap { .. }]));
    assert_eq!(proxy.handle(due, Event::Stopped), [Action::Suspend]);
    let done = proxy.handle(due, Event::Swapped(Swapped::Done(2)));
    assert!(matches!(&done[..], [Action::Swap { new, .. }] if new.tenure == Tenure::Free), "{done:?}");
    assert!(!proxy.acts(due));
    // The same of one that reads the marks, at the end of a suspension.
    let mut proxy = active();
    let late = Boot(LEASE + 5);
    proxy.handle(late, Event::Tick { turned: late });
    assert_eq!(proxy.handle(late, Event::Swapped(Swapped::Done(2))), [Action::ReadMarks]);
    proxy.handle(late, Event::Stopped);
    assert_eq!(proxy.handle(late, Event::MarksAreOwn(true)), []);
    assert!(!proxy.acts(late));
}

/// What the one before has left is carried on, or it would be forgotten with the next heartbeat.
#[test]
fn a_heartbeat_carries_what_was_taken_over() {
    let mut proxy = proxy(1);
    let mut before = record(2, Tenure::Free);
    before.lost.set(PairId(3), Epoch(5), &[Place::Backup]);
    let (us, claimed) = claim(&mut proxy, &Value::Record(before), ALL_CLOSED).expect("a claim");
    proxy.handle(Boot(us), Event::Swapped(Swapped::Done(4)));
    let due = Boot(us + LEASE / 6);
    let beat = proxy.handle(due, Event::Tick { turned: due });
    let [Action::Swap { new, .. }] = &beat[..] else { panic!("{beat:?}") };
    assert_eq!(*new, Record { heartbeat: claimed.heartbeat + 1, ..claimed });
}
