//! Which of the servers that answer late count as lost. Pure: reports and the time in, verdicts
//! out.
//!
//! One server that is late while the others answer hangs. If several are late at once, or
//! everything at this proxy, the cause is an overloaded machine or network: dropping servers for
//! that would remove the second copies just when the next real failure is likely. Observed at a
//! load of 20: two of three servers lost within 60 ms of each other, though both worked.
//!
//! So as soon as one takes an eighth of its time, it and all others are asked repeatedly.
//!
//! - *All others answer promptly, and did so meanwhile*: a late one is lost at once. Without an
//!   overload that costs one round trip.
//! - *One of them does not*: the late one gets until it is [`Lateness::Overdue`]. It is lost then
//!   if it answers nothing at all, and a server that can replace it *ran* for as long as an answer
//!   may take since the late one fell silent. Only time between answers in close succession counts
//!   as running. (If all stood still together, the first to continue would otherwise convict the
//!   others; and its answers from before the standstill prove nothing about now.)
//! - *No server that could replace it ran for so long*: dropping it would help nobody. It gets as
//!   long as a last full copy.
//!
//! A server that holds the only copy of some pair is not lost by the others' answers before it is
//! overdue. Waiting longer is always safe: a verdict only decides when a loss is declared, never
//! what is true.
//!
//! A server has many connections, and each worker reports the longest silence that it sees. So of a
//! silence only the time of its last report is kept: each report says when the silence began, and
//! is judged by what the others did since then.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::NodeId;

/// How late an answer is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lateness {
    /// An eighth of its time is over: nobody is blamed for that, but others may be late with it.
    Slow,
    /// It should be there.
    Late,
    /// It has had twice its time.
    Overdue,
    /// Not even a last full copy is waited for so long.
    Hopeless,
}

impl Lateness {
    /// Of an answer that is awaited for so long, where it may take `timeout`, and that of a last
    /// full copy `patience`.
    pub fn of(age: Duration, timeout: Duration, patience: Duration) -> Option<Lateness> {
        if age >= patience.max(timeout) {
            Some(Lateness::Hopeless)
        } else if age >= 2 * timeout {
            Some(Lateness::Overdue)
        } else if age >= timeout {
            Some(Lateness::Late)
        } else {
            (age >= timeout / 8).then_some(Lateness::Slow)
        }
    }
}

/// What is to be done about a late server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is given up.
    GiveUp,
    /// It is waited for. These are to be asked something now, and [`Suspicions::answered`] told.
    Wait(Vec<NodeId>),
}

/// The servers that may be compared with a late one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Others {
    /// All others in use.
    pub witnesses: Vec<NodeId>,
    /// Those of them that hold what the late one holds, for some pair.
    pub partners: Vec<NodeId>,
    /// The late one holds the only copy of some pair.
    pub only_copy: bool,
}

/// A question that was answered.
#[derive(Clone, Copy, Debug)]
struct Answered {
    asked: Duration,
    at: Duration,
}

/// A silence that was reported as late.
#[derive(Clone, Copy, Debug)]
struct Report {
    at: Duration,
    since: Duration,
}

/// A server that is waited for longer.
#[derive(Clone, Copy, Debug)]
struct Held {
    last: Duration,
    longest: Duration,
}

#[derive(Clone, Debug, Default)]
struct Server {
    /// The last silence that was reported as late.
    late: Option<Report>,
    /// Empty when nobody waits for it longer than usual, and after [`Suspicions::relieved`].
    held: Option<Held>,
    /// When it was last late, or slow to answer a question.
    troubled: Option<Duration>,
    /// When the question was asked that it has not answered.
    asked: Option<Duration>,
    answered: Option<Answered>,
    /// From when until when it ran, by its answers: no two of these overlap, and the newest is
    /// last.
    ran: VecDeque<(Duration, Duration)>,
}

impl Server {
    /// For how long it ran since then, as far as known.
    fn ran_since(&self, since: Duration) -> Duration {
        self.ran.iter().map(|&(from, until)| until.saturating_sub(from.max(since))).sum()
    }
}

/// What is suspected of whom. Times are measured from any fixed moment.
#[derive(Clone, Debug)]
pub struct Suspicions {
    /// How long an answer may take, and that of a last full copy.
    timeout: Duration,
    patience: Duration,
    servers: Vec<Server>,
    /// How often a late server was waited for longer.
    pub held: u64,
    /// How often one was given up after that.
    pub given_up: u64,
}

impl Suspicions {
    /// Of so many servers.
    pub fn new(servers: usize, timeout: Duration, patience: Duration) -> Suspicions {
        Suspicions { timeout, patience, servers: vec![Server::default(); servers], held: 0, given_up: 0 }
    }

    /// From now on an answer may take so long, and that of a last full copy.
    pub fn allow(&mut self, timeout: Duration, patience: Duration) {
        (self.timeout, self.patience) = (timeout, patience);
    }

    /// An answer that takes no longer shows a server with time to spare.
    fn prompt(&self) -> Duration {
        self.timeout / 8
    }

    /// Servers late within so long of each other are late together.
    fn window(&self) -> Duration {
        4 * self.timeout
    }

    /// An answer of a server in use is awaited for so long, and still is. To be repeated as long as
    /// that is so.
    pub fn report(&mut self, node: NodeId, age: Duration, now: Duration, others: &Others) -> Verdict {
        let Some(lateness) = Lateness::of(age, self.timeout, self.patience) else { return Verdict::Wait(Vec::new()) };
        let since = now.saturating_sub(age);
        if lateness == Lateness::Slow {
            // How all answer in the meantime shows whether they stand still together.
            return Verdict::Wait(self.ask(node, since, now, others));
        }
        self.servers[node.index()].late = Some(Report { at: now, since });
        self.troubled(node, now);
        let overdue = lateness >= Lateness::Overdue;
        let apart = self.is_apart(node, now) && self.have_all_run(since, others) && !others.only_copy;
        if lateness == Lateness::Hopeless
            || others.witnesses.is_empty()
            || apart && self.have_all_answered(since + self.timeout, others)
            || overdue && !self.is_alive(node, since, now) && self.may_be_replaced(since, now, others)
        {
            return self.give_up(node);
        }
        if overdue || !apart {
            self.hold(node, age, since, now);
        }
        Verdict::Wait(self.ask(node, since + self.timeout, now, others))
    }

    /// The server was late, or slow to answer: whoever is late soon after may be so for the same
    /// reason.
    pub fn troubled(&mut self, node: NodeId, now: Duration) {
        self.servers[node.index()].troubled = Some(now);
    }

    fn hold(&mut self, node: NodeId, age: Duration, since: Duration, now: Duration) {
        let held = &mut self.servers[node.index()].held;
        // One that was answered between is over, and the next one counts anew.
        let before = held.filter(|held| since <= held.last);
        self.held += u64::from(before.is_none());
        *held = Some(Held { last: now, longest: before.map_or(age, |before| before.longest.max(age)) });
    }

    /// Those that owe no answer, and have not answered lately what they were asked since `needed`.
    fn ask(&mut self, node: NodeId, needed: Duration, now: Duration, others: &Others) -> Vec<NodeId> {
        // Whoever has answered by the next report is asked anew: a standstill shows in an answer
        // that takes long, and the time between two questions hides one.
        let (mut asked, again) = (Vec::new(), self.prompt() / 2);
        for &witness in others.witnesses.iter().chain([&node]) {
            let witnessed = &mut self.servers[witness.index()];
            let lately = |last: Answered| last.asked >= needed && now.saturating_sub(last.at) < again;
            if witnessed.asked.is_none() && !witnessed.answered.is_some_and(lately) {
                witnessed.asked = Some(now);
                asked.push(witness);
            }
        }
        asked
    }

    /// A server has answered what it was asked at [`Verdict::Wait`]. Others that were late a moment
    /// ago ([`Suspicions::pending`]) are to be reported again.
    pub fn answered(&mut self, node: NodeId, now: Duration) {
        let (prompt, close, breath) = (self.prompt(), self.timeout / 2, self.timeout / 4);
        let server = &mut self.servers[node.index()];
        let Some(asked) = server.asked.take() else { return };
        let before = server.answered.replace(Answered { asked, at: now }).map(|before| before.at);
        match (before.filter(|&before| now.saturating_sub(before) <= close), server.ran.back_mut()) {
            (Some(_), Some((_, until))) => *until = now,
            // It may have stood still since it was asked; some of that time it needed for the
            // answer.
            _ => server.ran.push_back((asked.max(now.saturating_sub(breath)), now)),
        }
        while server.ran.front().is_some_and(|(_, until)| now.saturating_sub(*until) > self.patience) {
            server.ran.pop_front();
        }
        if now.saturating_sub(asked) > prompt {
            self.troubled(node, now);
        }
    }

    /// What it was asked came to nothing: it is late itself, or lost.
    pub fn unanswered(&mut self, node: NodeId, now: Duration) {
        if self.servers[node.index()].asked.take().is_some() {
            self.troubled(node, now);
        }
    }

    /// The servers that were told of just now, and wait for the others' answers; with the ages of
    /// what they owe.
    pub fn pending(&self, now: Duration) -> Vec<(NodeId, Duration)> {
        let recent = |report: &Report| now.saturating_sub(report.at) <= self.prompt();
        self.each(|server| server.late.filter(recent).map(|report| now.saturating_sub(report.since)))
    }

    /// The servers that are waited for now, and for how long.
    pub fn waited_for(&self, now: Duration) -> Vec<(NodeId, Duration)> {
        let present = |held: &Held| now.saturating_sub(held.last) <= self.timeout;
        self.each(|server| server.held.filter(present).map(|held| held.longest))
    }

    fn each(&self, what: impl Fn(&Server) -> Option<Duration>) -> Vec<(NodeId, Duration)> {
        let servers = self.servers.iter().enumerate();
        servers.filter_map(|(i, server)| Some((NodeId(i as u16), what(server)?))).collect()
    }

    /// For how long the server was waited for, told once, when that is over.
    pub fn relieved(&mut self, node: NodeId, now: Duration) -> Option<Duration> {
        let over = |held: &mut Held| now.saturating_sub(held.last) > self.timeout;
        self.servers[node.index()].held.take_if(over).map(|held| held.longest)
    }

    /// What was reported of it last is over.
    pub fn forget(&mut self, node: NodeId) {
        self.servers[node.index()].late = None;
    }

    /// It was given up, for whatever reason.
    pub fn lost(&mut self, node: NodeId) {
        let server = &mut self.servers[node.index()];
        (server.late, server.held, server.asked) = (None, None, None);
    }

    fn give_up(&mut self, node: NodeId) -> Verdict {
        self.given_up += u64::from(self.servers[node.index()].held.is_some());
        self.lost(node);
        Verdict::GiveUp
    }

    /// No other one is late or slow, or was a moment ago.
    fn is_apart(&mut self, node: NodeId, now: Duration) -> bool {
        let (prompt, window) = (self.prompt(), self.window());
        let mut apart = true;
        for (_, other) in self.servers.iter_mut().enumerate().filter(|(i, _)| *i != node.index()) {
            if other.asked.is_some_and(|at| now.saturating_sub(at) > prompt) {
                other.troubled = Some(now);
            }
            apart &= other.troubled.is_none_or(|at| now.saturating_sub(at) > window);
        }
        apart
    }

    /// All others are known to have run for half of the time that the answer may take. Where that
    /// is not so, nobody asked them: this proxy was late itself, and heard of the silence when it
    /// was over.
    fn have_all_run(&self, since: Duration, others: &Others) -> bool {
        others.witnesses.iter().all(|other| self.servers[other.index()].ran_since(since) >= self.timeout / 2)
    }

    /// All others have answered what they were asked since then.
    fn have_all_answered(&self, since: Duration, others: &Others) -> bool {
        let answered = |other: &NodeId| self.servers[other.index()].answered.is_some_and(|last| last.asked >= since);
        others.witnesses.iter().all(answered)
    }

    /// It answers on another connection: a thread of it, or of this proxy, waits for its turn.
    fn is_alive(&self, node: NodeId, since: Duration, now: Duration) -> bool {
        let lately = since.max(now.saturating_sub(self.timeout));
        self.servers[node.index()].answered.is_some_and(|last| last.asked >= lately)
    }

    /// One that holds what the late one holds answers, and ran for as long as an answer may take
    /// since then.
    fn may_be_replaced(&self, since: Duration, now: Duration, others: &Others) -> bool {
        let answers = |last: Answered| now.saturating_sub(last.at) < self.timeout / 2;
        let runs = |server: &Server| server.answered.is_some_and(answers) && server.ran_since(since) >= self.timeout;
        others.partners.iter().any(|partner| runs(&self.servers[partner.index()]))
    }
}

#[cfg(test)]
mod tests {
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
    /// it has run for so long. Whether it is given up before that; it answers nothing else
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
            for (phase, from) in
                [0, 7, 15, 22, 29].into_iter().flat_map(|p| (1000..1300).step_by(9).map(move |f| (p, f)))
            {
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
}
