//! The keeper at the edges of a turn: whom it ends, and what it says then.

use std::sync::Mutex;

use super::*;
use crate::coord::Register;
use crate::fleet::survey::Surveyor;
use crate::lease::process::{Clock, Needs, Process};

const LEASE: Duration = Duration::from_secs(3);

/// A register of a host on which processes can be ended.
#[derive(Clone, Default)]
struct Ends {
    ended: Arc<Mutex<Vec<Holder>>>,
    full: Arc<AtomicBool>,
    unfit: Arc<AtomicBool>,
}

fn unless(fails: &AtomicBool, why: &str) -> Result<(), Unread> {
    if fails.load(Ordering::SeqCst) { Err(Unread(why.to_owned())) } else { Ok(()) }
}

impl Register for Ends {
    fn read(&mut self, _: std::time::Instant) -> Result<Seen, Unread> {
        Err(Unread("nobody reads this".to_owned()))
    }

    fn swap(&mut self, _: &Seen, _: &Record, _: std::time::Instant) -> Result<Swapped, Unread> {
        Ok(Swapped::Refused)
    }

    fn is_fit(&mut self, _: Holder) -> Result<(), Unread> {
        unless(&self.unfit, "its file is away")
    }

    fn can_swap(&mut self, _: std::time::Instant) -> Result<(), Unread> {
        unless(&self.full, "it is full")
    }

    fn end(&mut self, holder: Holder) -> Option<String> {
        self.ended.lock().unwrap().push(holder);
        Some("it is ended".to_owned())
    }
}

fn standby() -> (Work, watch::Receiver<Known>) {
    let me = Me { holder: Holder(1), address: "a:1".to_owned(), fingerprint: 1, candidate: true };
    let (name, place) = ("a".to_owned(), "of a test".to_owned());
    let tools = Tools { name, place, lease: LEASE, former: Arc::default(), fence: Box::new(|| {}) };
    let (shows, known) = watch::channel(Known::default());
    (Work::new(me, tools, channel().0, (Arc::default(), Commits::default(), shows)), known)
}

fn seen(record: &Record) -> Seen {
    Seen { revision: 1, value: Value::Record(record.clone()) }
}

/// It reads that record, and asks what follows.
fn poll(work: &mut Work, asked: &mut Asked, record: &Record) {
    let mut ask = work.heard(Answer::Read(Ok(seen(record))));
    while let Some(what) = ask {
        ask = work.heard(asked.answer(what, LEASE));
    }
}

fn asked(ends: &Ends) -> Asked {
    Asked { register: Box::new(ends.clone()), surveyor: Surveyor::new(std::iter::empty()) }
}

#[test]
fn a_silent_holder_is_ended_after_its_lease_and_none_that_has_another_list() {
    for (fingerprint, lease, is_ended) in [(1, LEASE, true), (2, LEASE, false), (1, 3 * LEASE, false)] {
        let ((mut work, known), ends) = (standby(), Ends::default());
        let mut asked = asked(&ends);
        let record = Record { fingerprint, lease: lease.as_micros() as u64, ..Record::of(Holder(2)) };
        let before = Instant::now().checked_sub(2 * LEASE).expect("the machine has run for longer");
        let (holder, heartbeat) = (record.holder, record.heartbeat);
        let polled = Instant::now();
        work.sight = Some(Sight { holder, heartbeat, since: before, steady: before, polled, lease });
        for _ in 0..2 {
            // Once is enough.
            poll(&mut work, &mut asked, &record);
        }
        assert_eq!(ends.ended.lock().unwrap().len(), usize::from(is_ended), "list {fingerprint}, lease {lease:?}");
        assert_eq!(known.borrow().silent, lease == LEASE);
    }
}

#[test]
fn what_was_said_of_a_holder_is_not_said_where_there_is_none() {
    for none in [Value::Absent, Value::Unreadable] {
        let (mut work, known) = standby();
        work.saw(&seen(&Record { fingerprint: 2, awaits: true, ..Record::of(Holder(2)) }));
        let Known { active, other_list, awaits, .. } = known.borrow().clone();
        assert!(other_list && awaits && active.is_some());
        work.shows.send_modify(|known| known.silent = true);
        work.saw(&Seen { revision: 2, value: none });
        let Known { active, other_list, silent, awaits, .. } = known.borrow().clone();
        assert_eq!((active, other_list, silent, awaits), (None, false, false, false));
        assert!(work.sight.is_none(), "nobody's heartbeat stands still");
    }
}

/// Else `stats proxy` would say for a moment that nobody is awaited.
#[test]
fn who_has_become_active_says_from_the_first_moment_whether_the_former_is_awaited() {
    for awaits in [true, false] {
        let (mut work, known) = standby();
        work.begin(Generation(2), Burden { awaits, ..Burden::default() });
        assert_eq!((known.borrow().role, work.tools.former.load(Ordering::SeqCst)), (Role::Active, awaits));
    }
}

/// An etcd that is full answers each read: twice a lease the log said that all was well.
#[test]
fn what_a_swap_failed_for_is_said_until_one_succeeds() {
    let (serves, none) = (seen(&Record::of(Holder(2))), Seen { revision: 0, value: Value::Absent });
    for (role, found, said) in [
        (Role::Active, &serves, true),
        (Role::Suspended, &serves, true),
        (Role::Standby, &serves, false),
        (Role::Standby, &none, true),
    ] {
        let (mut work, known) = standby();
        work.shows.send_modify(|known| known.role = role);
        let trouble = || known.borrow().trouble.is_some();
        work.heard(Answer::Swapped(Err(Unread("it is full".to_owned()))));
        assert!(trouble());
        work.heard(Answer::Read(Ok(found.clone())));
        assert_eq!(trouble(), said, "{role:?}: a standby swaps nothing for as long as another one is active");
        work.heard(Answer::Swapped(Ok(Swapped::Done(2))));
        work.heard(Answer::Read(Ok(seen(&Record::of(Holder(2))))));
        assert!(!trouble());
    }
}

/// A register out of reach owes its answer, and the keeper waits for that.
#[tokio::test]
async fn who_is_over_by_a_mark_does_nothing_more_before_the_keeper_hears_of_it() {
    let (keeper, told) = Keeper::for_tests(Role::Active);
    let soon = || Boot::now().after(LEASE.as_micros() as u64);
    let mark = FleetMark { name: "a".to_owned(), generation: Generation(8), address: "b:1".to_owned(), lease: LEASE };
    let work = async {
        lease::extend(soon());
        assert!(!lease::is_over());
        keeper.marked(&mark);
        assert!(lease::is_over());
        // The answer to a heartbeat that was under way.
        lease::extend(soon());
        assert!(lease::is_over());
    };
    Process::new(Clock::new(1_000_000, 1_000)).run(Needs::Turns, work).await;
    assert!(matches!(told.try_recv(), Ok(Told::Event(Event::Marked(Generation(8), _)))));
}

/// On a full disk the active proxy is suspended, and its standby, which can write no more than it,
/// killed it.
#[tokio::test(start_paused = true)]
async fn nobody_is_ended_whose_place_this_proxy_could_not_take() {
    let ((mut work, known), ends) = (standby(), Ends::default());
    let (mut asked, ended) = (asked(&ends), || ends.ended.lock().unwrap().len());
    let record = Record { fingerprint: 1, lease: LEASE.as_micros() as u64, ..Record::of(Holder(2)) };
    let mut polls = async |lasts: Duration| {
        for _ in 0..lasts.as_millis() / 100 {
            poll(&mut work, &mut asked, &record);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    ends.full.store(true, Ordering::SeqCst);
    polls(3 * LEASE).await;
    assert_eq!((ended(), known.borrow().trouble.as_deref()), (0, Some("it is full")));
    ends.full.store(false, Ordering::SeqCst);
    polls(LEASE / 2).await;
    assert_eq!(ended(), 0, "it has time for a heartbeat, now that it can write one");
    ends.unfit.store(true, Ordering::SeqCst);
    polls(2 * LEASE).await;
    assert_eq!(ended(), 0, "this proxy is unfit");
    ends.unfit.store(false, Ordering::SeqCst);
    polls(2 * LEASE).await;
    assert_eq!(ended(), 1);
}

/// It said that it was ready, and a candidate, and could not take over.
#[test]
fn a_standby_that_could_not_take_over_says_so_until_it_can() {
    let ((mut work, known), ends) = (standby(), Ends::default());
    let mut asked = asked(&ends);
    let record = Record { fingerprint: 1, ..Record::of(Holder(2)) };
    for unfit in [false, true, false] {
        ends.unfit.store(unfit, Ordering::SeqCst);
        poll(&mut work, &mut asked, &record);
        let Known { trouble, unfit: said, active, .. } = known.borrow().clone();
        assert_eq!((trouble.is_some(), said, active.is_some()), (unfit, unfit, true));
    }
    // Nobody's record is there: what it needs is looked for by the swap itself.
    ends.unfit.store(true, Ordering::SeqCst);
    poll(&mut work, &mut asked, &record);
    work.heard(Answer::Swapped(Ok(Swapped::Refused)));
    assert!(!known.borrow().unfit && known.borrow().trouble.is_none());
}

/// A disk that is full is read: each of a hundred tries a second said that all was well.
#[test]
fn a_standby_whose_swaps_fail_says_so_while_the_same_record_stands_there() {
    let (mut work, known) = standby();
    let record = Record::of(Holder(2));
    work.heard(Answer::Read(Ok(seen(&record))));
    work.heard(Answer::Swapped(Err(Unread("it is full".to_owned()))));
    for _ in 0..2 {
        work.heard(Answer::Read(Ok(seen(&record))));
        assert!(known.borrow().trouble.is_some());
    }
    work.heard(Answer::Read(Ok(seen(&Record { heartbeat: record.heartbeat + 1, ..record }))));
    assert!(known.borrow().trouble.is_none(), "its holder can write, and this one has nothing to");
}
