//! Which late servers are given up, in standstills of all kinds.

use super::*;

const TIMEOUT: Duration = Duration::from_millis(240);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Server 0 of three is judged; 2 can stand in for it.
fn others() -> Others {
    Others { witnesses: vec![NodeId(1), NodeId(2)], partners: vec![NodeId(2)], only_copy: false }
}

fn of_1() -> Others {
    Others { witnesses: vec![NodeId(0), NodeId(2)], partners: vec![NodeId(2)], only_copy: false }
}

fn suspicions() -> Suspicions {
    Suspicions::new(3, TIMEOUT, ms(2000))
}

/// Server 0 was asked at `asked`, and owes the answer at `now`.
fn owes(s: &mut Suspicions, asked: u64, now: u64) -> Verdict {
    s.report(NodeId(0), ms(now - asked), ms(now), &others())
}

fn answer(s: &mut Suspicions, nodes: &[u16], now: u64) {
    nodes.iter().for_each(|&node| s.answered(NodeId(node), ms(now)));
}

fn wait(nodes: &[u16]) -> Verdict {
    Verdict::Wait(nodes.iter().map(|&n| NodeId(n)).collect())
}

/// Server 0 is asked something at `asked` and answers nothing; those named answer each question
/// after `takes`. When it is given up, looked for in each millisecond from `from` on.
fn given_up_at(s: &mut Suspicions, asked: u64, from: u64, answer: &[u16], takes: u64) -> Option<u64> {
    let mut due: Vec<(u64, NodeId)> = Vec::new();
    for now in from..from + 4000 {
        let come = due.extract_if(.., |(at, _)| *at <= now).map(|(_, node)| node).collect::<Vec<_>>();
        come.iter().for_each(|&node| s.answered(node, ms(now)));
        let tick = (now - asked).is_multiple_of(30);
        if !(tick || !come.is_empty() && s.pending(ms(now)).iter().any(|(node, _)| *node == NodeId(0))) {
            continue;
        }
        match owes(s, asked, now) {
            Verdict::GiveUp => return Some(now),
            Verdict::Wait(nodes) => {
                due.extend(nodes.into_iter().filter(|n| answer.contains(&n.0)).map(|n| (now + takes, n)));
            }
        }
    }
    None
}

#[test]
fn lateness_has_four_steps() {
    let of = |age| Lateness::of(ms(age), ms(104), ms(800));
    assert_eq!([of(12), of(13), of(103)], [None, Some(Lateness::Slow), Some(Lateness::Slow)]);
    assert_eq!([of(104), of(207)], [Some(Lateness::Late); 2]);
    assert_eq!([of(208), of(799), of(800)], [Lateness::Overdue, Lateness::Overdue, Lateness::Hopeless].map(Some));
    assert_eq!(Lateness::of(ms(100), ms(100), ms(100)), Some(Lateness::Hopeless));
}

#[test]
fn one_that_is_late_while_the_others_answer_is_given_up_at_once() {
    let mut s = suspicions();
    assert_eq!(owes(&mut s, 1000, 1030), wait(&[1, 2, 0]));
    answer(&mut s, &[1, 2], 1031);
    for now in [1120, 1210, 1240] {
        assert_eq!(owes(&mut s, 1000, now), wait(&[1, 2]), "again and again: {now}");
        answer(&mut s, if now < 1240 { &[1, 2] } else { &[1] }, now + 1);
    }
    assert_eq!(s.pending(ms(1241)), [(NodeId(0), ms(241))]);
    assert_eq!(owes(&mut s, 1000, 1241), wait(&[]), "one of two has answered");
    answer(&mut s, &[2], 1242);
    assert_eq!(owes(&mut s, 1000, 1242), Verdict::GiveUp);
    assert_eq!((s.held, s.given_up), (0, 0));
    assert_eq!(given_up_at(&mut suspicions(), 1000, 1000, &[1, 2], 1), Some(1241));
}

/// All stand still for a time, from a moment on. Server 0 was asked at 1000, and answers when
/// it has run for this long. Whether it is given up before that; it answers nothing else
/// meanwhile.
fn is_convicted(needs: u64, (from, len): (u64, u64), phase: u64) -> bool {
    let stands = |at: u64| (from..from + len).contains(&at);
    let answers = if 1000 + needs <= from { 1000 + needs } else { 1000 + needs + len };
    let mut s = suspicions();
    let mut due: Vec<(u64, NodeId)> = Vec::new();
    for now in 1000..answers {
        let come: Vec<_> = due.extract_if(.., |(at, _)| *at <= now && !stands(now)).map(|(_, node)| node).collect();
        come.iter().for_each(|&node| s.answered(node, ms(now)));
        let tick = now >= 1030 + phase && (now - 1030 - phase).is_multiple_of(30);
        if !(tick || !come.is_empty() && s.pending(ms(now)).iter().any(|(node, _)| *node == NodeId(0))) {
            continue;
        }
        match owes(&mut s, 1000, now) {
            Verdict::GiveUp => return true,
            Verdict::Wait(nodes) => due.extend(nodes.into_iter().filter(|n| n.0 != 0).map(|n| (now + 1, n))),
        }
    }
    false
}

/// Not seen is a standstill that falls between two questions; and they are asked anew with each
/// report. (With half as many it convicted those who needed half of their time.)
#[test]
fn no_standstill_convicts_who_needs_no_more_than_three_quarters_of_its_time() {
    for len in (10..=600).step_by(15) {
        for (phase, from) in [0, 7, 15, 22, 29].into_iter().flat_map(|p| (1000..1300).step_by(9).map(move |f| (p, f))) {
            assert!(!is_convicted(180, (from, len), phase), "{len} ms from {from} on, reports at {phase}");
        }
    }
}

#[test]
fn one_that_nobody_can_be_compared_with_is_given_up() {
    let mut s = suspicions();
    assert_eq!(s.report(NodeId(0), TIMEOUT, ms(1000), &Others::default()), Verdict::GiveUp);
}

/// The control plane had no time for the reports, and has them all at once when it has: it
/// asked nobody meanwhile.
#[test]
fn a_proxy_that_is_late_itself_gives_nobody_up_at_once() {
    let mut s = suspicions();
    for age in (30..=240).step_by(30) {
        s.report(NodeId(0), ms(age), ms(1240), &others());
    }
    answer(&mut s, &[1, 2], 1241);
    let found = given_up_at(&mut s, 1000, 1242, &[1, 2], 1);
    assert!(found.is_some_and(|at| (1361..1480).contains(&at)), "they have run for half of the time: {found:?}");
    assert_eq!(s.held, 1);
}

/// An answer to what was asked before says nothing of now.
#[test]
fn an_old_answer_clears_nobody() {
    let mut s = suspicions();
    owes(&mut s, 1000, 1240);
    answer(&mut s, &[1, 2], 1241);
    assert_eq!(owes(&mut s, 9000, 9240), wait(&[1, 2]));
}

#[test]
fn what_is_over_is_forgotten_and_so_is_all_of_one_that_is_lost() {
    let mut s = suspicions();
    owes(&mut s, 1000, 1240);
    assert_eq!(s.pending(ms(1240)), [(NodeId(0), ms(240))]);
    s.forget(NodeId(0));
    assert_eq!(s.pending(ms(1240)), []);

    let mut s = suspicions();
    s.troubled(NodeId(1), ms(1100));
    owes(&mut s, 1000, 1240);
    assert_eq!(s.waited_for(ms(1240)), [(NodeId(0), ms(240))]);
    s.lost(NodeId(0));
    assert_eq!((s.pending(ms(1240)), s.waited_for(ms(1240))), (vec![], vec![]));
    // It is asked anew, whatever it owed.
    assert_eq!(owes(&mut s, 1241, 1300), wait(&[0]));
}

/// One whose question came to nothing was in trouble, and the next one that is late is not
/// alone.
#[test]
fn a_question_that_comes_to_nothing_is_a_sign_of_trouble() {
    let verdict = |comes_to_nothing: bool| {
        let mut s = suspicions();
        owes(&mut s, 1000, 1030);
        answer(&mut s, if comes_to_nothing { &[2] } else { &[1, 2] }, 1031);
        if comes_to_nothing {
            s.unanswered(NodeId(1), ms(1031));
        }
        given_up_at(&mut s, 1000, 1031, &[1, 2], 1)
    };
    assert!(verdict(true) > verdict(false), "{:?} {:?}", verdict(true), verdict(false));
    // Nobody had asked it.
    let mut s = suspicions();
    s.unanswered(NodeId(1), ms(1000));
    assert_eq!(given_up_at(&mut s, 1000, 1000, &[1, 2], 1), Some(1241));
}

#[test]
fn two_that_are_late_together_are_waited_for_twice_as_long() {
    let mut s = suspicions();
    assert_eq!(s.report(NodeId(1), TIMEOUT, ms(1015), &of_1()), wait(&[0, 2, 1]));
    answer(&mut s, &[0, 1, 2], 1016);
    assert_eq!(given_up_at(&mut s, 1000, 1030, &[1, 2], 1), Some(1480), "not before, and not later");
    assert_eq!((s.held, s.given_up), (2, 1), "each is counted once");
}

/// Twice the time is enough where the others are slow, as long as an answer takes no more than
/// a third of its own.
#[test]
fn one_that_hangs_among_slow_ones_is_found_within_twice_its_time() {
    for takes in [31, 60, 80] {
        let mut s = suspicions();
        let found = given_up_at(&mut s, 1000, 1000, &[1, 2], takes);
        assert!(found.is_some_and(|at| (1480..1480 + takes).contains(&at)), "{takes}: {found:?}");
        assert_eq!((s.held, s.given_up), (1, 1), "{takes}");
    }
}

/// Those who answer each question only after more than that: a quarter of its time counts for
/// each.
#[test]
fn among_very_slow_ones_it_takes_longer() {
    let found = given_up_at(&mut suspicions(), 1000, 1000, &[1, 2], 200);
    assert!(found.is_some_and(|at| (1600..2000).contains(&at)), "{found:?}");
}

#[test]
fn slow_answers_show_a_slow_machine_for_a_while() {
    let mut s = suspicions();
    owes(&mut s, 1000, 1240);
    answer(&mut s, &[1, 2], 1271);
    assert_eq!(owes(&mut s, 1000, 1272), wait(&[]));
    // Also the next one is waited for, by a count of its own.
    assert_eq!(given_up_at(&mut s, 1300, 1330, &[1, 2], 1), Some(1780));
    assert_eq!((s.held, s.given_up), (2, 1));
    // And that ends.
    let mut s = suspicions();
    owes(&mut s, 1000, 1240);
    answer(&mut s, &[1, 2], 1271);
    assert_eq!(given_up_at(&mut s, 3000, 3000, &[1, 2], 1), Some(3241));
}

/// Of a question that came to nothing, a failed probe is told with one age: the server may lead
/// alone.
#[test]
fn a_question_that_came_to_nothing_shows_it_as_well() {
    let mut s = suspicions();
    owes(&mut s, 1000, 1030);
    answer(&mut s, &[2], 1031);
    s.unanswered(NodeId(1), ms(1050));
    assert_eq!(given_up_at(&mut s, 1000, 1060, &[1, 2], 1), Some(1480));
}

/// All stand still for a third of the time, and what is behind it in the queue takes the rest.
#[test]
fn a_standstill_that_ends_before_one_is_late_is_seen() {
    let mut s = suspicions();
    assert_eq!(owes(&mut s, 1000, 1030), wait(&[1, 2, 0]));
    answer(&mut s, &[1, 2], 1080);
    assert_eq!(given_up_at(&mut s, 1000, 1090, &[1, 2], 1), Some(1480));
    assert_eq!(s.held, 1);
}

/// All stood still, and wake one after the other.
#[test]
fn where_nobody_answers_nobody_is_given_up_before_it_is_hopeless() {
    let mut s = suspicions();
    owes(&mut s, 1000, 1240);
    for now in (1270..2000).step_by(30) {
        assert_eq!(owes(&mut s, 1000, now), wait(&[]), "{now}");
    }
    // Now they wake. The late one has as long for what it owes, except for the quarter that an
    // answer may have taken.
    answer(&mut s, &[1, 2], 2000);
    let found = given_up_at(&mut s, 1000, 2020, &[1, 2], 1);
    assert!(
        found.is_some_and(|at| (2180..2180 + 90).contains(&at)),
        "a question and a report later at most: {found:?}"
    );
    assert_eq!(given_up_at(&mut suspicions(), 1000, 1000, &[], 1), Some(3010), "the next report after 3,000");
}

/// What was told of one silence is no word on the next one. (Seen in the simulation: a server
/// was given up as soon as the others woke from their second standstill, for they had answered
/// after the first.)
#[test]
fn a_second_standstill_is_judged_by_itself() {
    let mut s = suspicions();
    owes(&mut s, 1000, 1240);
    answer(&mut s, &[0, 1, 2], 1300);
    // Reports of two connections, of which one is older, and of one that is slow, come in
    // between.
    for now in (1330..1900).step_by(30) {
        assert_ne!(owes(&mut s, 1300, now), Verdict::GiveUp, "{now}");
        assert_ne!(owes(&mut s, 1310, now + 1), Verdict::GiveUp, "{now}");
        assert_ne!(owes(&mut s, now - 50, now + 2), Verdict::GiveUp, "{now}");
    }
    answer(&mut s, &[2], 1900);
    assert_ne!(owes(&mut s, 1300, 1901), Verdict::GiveUp, "nobody has had time to answer");
    assert_eq!(s.held, 2, "each silence is counted once");
}

/// Each time that they answer they are closer together than a standstill is long.
#[test]
fn standstills_by_turns_do_not_add_up_to_time_in_which_it_could_have_answered() {
    let mut s = suspicions();
    for standstill in 0..3 {
        let begins = 1000 + 300 * standstill;
        for now in (begins + 30..begins + 300).step_by(30) {
            assert_ne!(owes(&mut s, 1000, now), Verdict::GiveUp, "{now}");
        }
        answer(&mut s, &[1, 2], begins + 300);
        assert_ne!(owes(&mut s, 1000, begins + 301), Verdict::GiveUp, "{begins}");
    }
}

/// That others live is no reason to give a pair's only living server up.
#[test]
fn only_who_can_stand_in_for_it_ends_the_wait() {
    assert_eq!(given_up_at(&mut suspicions(), 1000, 1000, &[1], 1), Some(3010));
    let found = given_up_at(&mut suspicions(), 1000, 1000, &[2], 1);
    assert_eq!(found, Some(1480));
}

/// Who could stand in for it has answered long enough, and then no more: perhaps both stand
/// still now.
#[test]
fn one_that_has_fallen_silent_itself_stands_in_for_nobody() {
    let mut s = suspicions();
    s.troubled(NodeId(1), ms(1000));
    for now in (1030..1360).step_by(30) {
        assert_ne!(owes(&mut s, 1000, now), Verdict::GiveUp, "{now}");
        answer(&mut s, &[1, 2], now + 1);
    }
    assert_eq!(given_up_at(&mut s, 1000, 1360, &[1], 1), Some(3010));
}

/// One connection is late, and others of it answer: somebody waits for a turn of its thread. It
/// counts as long as they answer.
#[test]
fn one_that_answers_elsewhere_is_alive() {
    let mut s = suspicions();
    s.troubled(NodeId(1), ms(1000));
    let found = given_up_at(&mut s, 1000, 1030, &[0, 1, 2], 1);
    assert!(found.is_some_and(|at| (1960..2000).contains(&at)), "when no other one was late any more: {found:?}");
    let mut s = suspicions();
    s.troubled(NodeId(1), ms(1000));
    owes(&mut s, 1000, 1030);
    answer(&mut s, &[0, 1, 2], 1031);
    assert_eq!(given_up_at(&mut s, 1000, 1060, &[1, 2], 1), Some(1480), "it stopped then");
}

#[test]
fn an_only_copy_is_not_given_up_on_the_short_deadline() {
    let mut s = suspicions();
    let others = Others { only_copy: true, ..others() };
    for now in (1030..1480).step_by(30) {
        assert_ne!(s.report(NodeId(0), ms(now - 1000), ms(now), &others), Verdict::GiveUp, "{now}");
        answer(&mut s, &[1, 2], now + 1);
    }
    assert_eq!(s.report(NodeId(0), ms(480), ms(1480), &others), Verdict::GiveUp);
    assert_eq!((s.held, s.given_up), (1, 1));
}

/// A server that was late and answered is as any other after a while.
#[test]
fn a_suspicion_that_is_not_repeated_ends() {
    let mut s = suspicions();
    s.report(NodeId(1), TIMEOUT, ms(1000), &of_1());
    owes(&mut s, 760, 1000);
    assert_eq!(s.waited_for(ms(1001)), [(NodeId(0), TIMEOUT), (NodeId(1), TIMEOUT)]);
    assert_eq!(s.relieved(NodeId(0), ms(1001)), None, "it still is waited for");
    answer(&mut s, &[0, 1, 2], 1010);
    assert_eq!(s.relieved(NodeId(0), ms(1300)), Some(TIMEOUT));
    assert_eq!(s.relieved(NodeId(0), ms(1301)), None, "told once");
    assert_eq!(given_up_at(&mut s, 3000, 3000, &[1, 2], 1), Some(3241));
}
