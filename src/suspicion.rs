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
//! - *No server that could replace it ran for this long*: dropping it would help nobody. It gets as
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
    /// So long not even a last full copy is waited for.
    Hopeless,
}

impl Lateness {
    /// Of an answer that is awaited for this long, where it may take `timeout`, and that of a last
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
    /// Of this many servers.
    pub fn new(servers: usize, timeout: Duration, patience: Duration) -> Suspicions {
        Suspicions { timeout, patience, servers: vec![Server::default(); servers], held: 0, given_up: 0 }
    }

    /// From now on an answer may take this long, and that of a last full copy.
    pub fn allow(&mut self, timeout: Duration, patience: Duration) {
        (self.timeout, self.patience) = (timeout, patience);
    }

    /// An answer that takes no longer shows a server with time to spare.
    fn prompt(&self) -> Duration {
        self.timeout / 8
    }

    /// Servers late within this long of each other are late together.
    fn window(&self) -> Duration {
        4 * self.timeout
    }

    /// An answer of a server in use is awaited for this long, and still is. To be repeated as long
    /// as that is so.
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
mod tests;
