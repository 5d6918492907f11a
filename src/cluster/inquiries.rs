//! What operators and monitors ask the servers for: `stats` and its parts, as one list over all
//! servers that lead.
//!
//! One question is under way at a time, and who asks the same meanwhile hears the next answer:
//! whatever clients do, the servers have one more connection each, with one question on it. A
//! question takes [`PATIENCE`] timeouts at most; who has not answered by then is counted in the
//! answer, and named in the log.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::{Instant, timeout, timeout_at};

use crate::backend::{ANSWER_MAX, Inquirer, InquiryError, NodeError};
use crate::ids::{NodeId, PairId, is_reserved};
use crate::protocol::answer::{self, server_error};
use crate::protocol::number::client_u32;
use crate::protocol::outcome::Outcome;
use crate::protocol::statistics::{Line, Written};
use crate::report::figures::counted;
use crate::report::gathered::{Form, Gathered};
use crate::report::items::Items;
use crate::report::lines::Lines;
use crate::report::since::{Before, LISTS};
use crate::ring::Topology;

use super::asker::Asker;
use super::{Cluster, Duration, Internal};

/// How long all servers together are waited for, in timeouts of one.
const PATIENCE: u32 = 2;
/// How long one server is waited for at most where the proxy's own counters are what is asked for:
/// monitors and `resilver status` wait two seconds for them, and are to have them also while a
/// server hangs that `--timeout` leaves more time.
const OWN_PATIENCE: Duration = Duration::from_millis(500);
/// Servers that are asked at a time.
const AT_ONCE: usize = 4;
/// Markers that a server may hold beside its pairs' records.
const MARKERS: usize = 8;
/// Different questions that wait. All but `cachedump` are a dozen.
const WAITING_MAX: usize = 256;
/// How often it is logged which servers did not answer.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What the servers are asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Inquiry {
    /// `stats`.
    General,
    /// `stats settings`.
    Settings,
    /// Another list of theirs, by its name.
    List(Form, &'static str),
    /// Something is switched on or off, on all of them.
    Switch(&'static str),
    /// `stats cachedump`.
    Items { class: u32, limit: u32 },
    /// `stats reset`: what they have counted until now.
    Reset,
}

impl Inquiry {
    /// What stands behind `stats`, if it is for the servers to answer; `Err`: what is answered at
    /// once, in memcached's words.
    pub(super) fn parse(args: &str) -> Result<Inquiry, Bytes> {
        let mut words = args.split_ascii_whitespace();
        let list = |form, name| Ok(Inquiry::List(form, name));
        match words.next() {
            None => Ok(Inquiry::General),
            Some("settings") => Ok(Inquiry::Settings),
            Some("slabs") => list(Form::Classes, "slabs"),
            Some("items") => list(Form::Classes, "items"),
            Some("sizes") => list(Form::Sizes, "sizes"),
            Some("extstore") => list(Form::General, "extstore"),
            Some("sizes_enable") => Ok(Inquiry::Switch("sizes_enable")),
            Some("sizes_disable") => Ok(Inquiry::Switch("sizes_disable")),
            Some("detail") => match words.next() {
                Some("on") => Ok(Inquiry::Switch("detail on")),
                Some("off") => Ok(Inquiry::Switch("detail off")),
                Some("dump") => list(Form::Prefixes, "detail dump"),
                _ => Err(answer::client_error("usage: stats detail on|off|dump")),
            },
            Some("cachedump") => cachedump(words.next(), words.next()),
            Some("reset") => Ok(Inquiry::Reset),
            Some(_) => Err(Bytes::from_static(answer::ERROR)),
        }
    }

    /// What each is asked for, one after the other, without `stats` in front. `markers`: items that
    /// may not be shown, or [`None`] where that is not known.
    fn parts(&self, markers: Option<usize>) -> Vec<String> {
        match self {
            Inquiry::General => vec![String::new()],
            Inquiry::Settings => vec!["settings".to_owned()],
            Inquiry::List(_, part) | Inquiry::Switch(part) => vec![(*part).to_owned()],
            Inquiry::Items { class, limit } => {
                // What is left out of the answer takes no place in it.
                let ample = markers.filter(|_| *limit > 0).map_or(0, |markers| *limit as usize + markers);
                vec![format!("cachedump {class} {ample}")]
            }
            Inquiry::Reset => LISTS.map(str::to_owned).to_vec(),
        }
    }

    /// How long one server is waited for at most, however long its answers may take.
    fn patience(&self) -> Duration {
        match self {
            Inquiry::General | Inquiry::Settings => OWN_PATIENCE,
            _ => Duration::MAX,
        }
    }

    /// Whether those are asked too that lead nothing now.
    fn is_for_all(&self) -> bool {
        matches!(self, Inquiry::Switch(_) | Inquiry::Reset)
    }
}

/// Whether names that clients chose stand in the answer as they are. One with a line end may look
/// like the answer's end: nothing else is asked on that connection.
fn shows_names(part: &str) -> bool {
    part.starts_with("cachedump") || part == "detail dump"
}

/// `stats cachedump`, judged as memcached does.
fn cachedump(class: Option<&str>, limit: Option<&str>) -> Result<Inquiry, Bytes> {
    const CLASSES: u32 = 64;
    let (Some(class), Some(limit)) = (class, limit) else { return Err(answer::client_error("bad command line")) };
    let (Some(class), Some(limit)) = (client_u32(class.as_bytes()), client_u32(limit.as_bytes())) else {
        return Err(Bytes::from_static(answer::BAD_FORMAT));
    };
    if class < CLASSES { Ok(Inquiry::Items { class, limit }) } else { Err(answer::client_error("Illegal slab id")) }
}

/// What the servers have answered.
#[derive(Debug)]
enum Found {
    List(Gathered),
    Items(Items),
    /// The first one's answer.
    Switched(Option<Bytes>),
    /// By node; an error where that is more than can be kept.
    Counted(Result<Vec<Before>, String>),
}

/// The end of an [`Inquiry`].
#[derive(Debug)]
pub(super) struct Answers {
    inquiry: Inquiry,
    found: Found,
    /// How many have answered.
    asked: usize,
    /// Who has not, and why.
    silent: Vec<(String, String)>,
    /// What one has said instead.
    refusal: Option<String>,
    /// What each node had counted at the last `stats reset`; lent by [`Inquiries`].
    before: Vec<Option<Before>>,
}

impl Answers {
    fn new(inquiry: Inquiry, before: Vec<Option<Before>>, nodes: Vec<Option<u64>>) -> Answers {
        let found = match inquiry {
            Inquiry::General => Found::List(Gathered::new(Form::General)),
            Inquiry::Settings => Found::List(Gathered::new(Form::Settings)),
            Inquiry::List(form, _) => Found::List(Gathered::new(form)),
            Inquiry::Items { limit, .. } => Found::Items(Items::new(limit)),
            Inquiry::Switch(_) => Found::Switched(None),
            Inquiry::Reset => {
                Found::Counted(Ok(nodes.iter().map(|started| Before::new(nodes.len(), *started)).collect()))
            }
        };
        Answers { inquiry, found, asked: 0, silent: Vec::new(), refusal: None, before }
    }

    /// All that one server says.
    fn take(&mut self, node: NodeId, name: &str, told: Told, shown: impl Fn(&[u8]) -> bool) {
        let mut taken = Ok(());
        for (part, answer) in told {
            taken = match answer {
                Ok(answer) => self.take_part(node, &part, answer, &shown),
                Err(error) => return self.silent.push((name.to_owned(), error.to_string())),
            };
            if taken.is_err() {
                break;
            }
        }
        match taken {
            Ok(()) => self.asked += 1,
            Err(said) => {
                self.silent.push((name.to_owned(), format!("answered {said}")));
                self.refusal.get_or_insert(said);
            }
        }
    }

    fn take_part(
        &mut self,
        node: NodeId,
        part: &str,
        answer: Bytes,
        shown: impl Fn(&[u8]) -> bool,
    ) -> Result<(), String> {
        let before = self.before.get_mut(node.index()).and_then(Option::as_mut);
        match &mut self.found {
            Found::List(gathered) => {
                let before = match before {
                    Some(before) => {
                        before.take_late(part, &answer)?;
                        Some(&*before)
                    }
                    None => None,
                };
                gathered.add(&answer, before)
            }
            Found::Items(items) => items.add(&answer, shown),
            Found::Switched(first) => {
                if answer != answer::OK && !Line::parse(&answer).goes_on() {
                    return Err(String::from_utf8_lossy(answer.trim_ascii_end()).into_owned());
                }
                first.get_or_insert(answer);
                Ok(())
            }
            Found::Counted(counted) => {
                let Ok(all) = counted else { return Ok(()) };
                let taken = all[node.index()].take(part, &answer);
                if let Err(why) = &taken {
                    *counted = Err(why.clone());
                }
                taken
            }
        }
    }
}

/// One server's answers, each behind what it was asked for.
type Told = Vec<(String, Result<Bytes, InquiryError>)>;

/// Questions under way.
#[derive(Default)]
pub(super) struct Inquiries {
    /// Who waits for the one that the servers are asked.
    running: Vec<Asker>,
    waiting: VecDeque<(Inquiry, Vec<Asker>)>,
    /// That one is a `cachedump`.
    shows_items: bool,
    /// What each node had counted at the last `stats reset`. Empty while they are asked.
    before: Vec<Option<Before>>,
    /// When it was last logged who did not answer.
    told: Option<Instant>,
}

impl Inquiries {
    /// The longest waiting one. Of `cachedump`, which comes in thousands of kinds, one between two
    /// others: monitors do not wait for what clients think up.
    fn next(&mut self) -> Option<(Inquiry, Vec<Asker>)> {
        let is_other = |(inquiry, _): &(Inquiry, Vec<Asker>)| !matches!(inquiry, Inquiry::Items { .. });
        let at = self.waiting.iter().position(is_other).filter(|_| self.shows_items).unwrap_or(0);
        let (inquiry, askers) = self.waiting.remove(at)?;
        self.shows_items = matches!(inquiry, Inquiry::Items { .. });
        Some((inquiry, askers))
    }
}

impl Cluster {
    /// Asks the servers, and answers with what they say.
    pub(super) fn inquire(&mut self, asker: Asker, inquiry: Inquiry) {
        let waiting = &mut self.operators.inquiries.waiting;
        let full = waiting.len() >= WAITING_MAX;
        match waiting.iter_mut().find(|(queued, _)| *queued == inquiry) {
            Some((_, askers)) => askers.push(asker),
            None if full => {
                let said = "SERVER_ERROR too many different questions wait for the servers' answers\r\n";
                return self.answer(asker, Outcome::Own(said.as_bytes()));
            }
            None => waiting.push_back((inquiry, vec![asker])),
        }
        self.begin_inquiry();
    }

    fn begin_inquiry(&mut self) {
        if !self.operators.inquiries.running.is_empty() {
            return;
        }
        let (inquiry, askers) = loop {
            let Some((inquiry, mut askers)) = self.operators.inquiries.next() else { return };
            // A question whose askers have all left is not sent.
            askers.retain(|asker| self.still_waits(asker));
            if !askers.is_empty() {
                break (inquiry, askers);
            }
        };
        self.operators.inquiries.running = askers;
        let started: Vec<Option<u64>> =
            self.nodes.iter().map(|run| run.view.as_ref().map(|view| view.started)).collect();
        let mut before = std::mem::take(&mut self.operators.inquiries.before);
        for (before, started) in before.iter_mut().zip(&started) {
            // A process that was started since has counted nothing before.
            before.take_if(|before| started.is_some_and(|started| !before.is_of(started)));
        }
        let mut answers = Answers::new(inquiry, before, started);
        let leaders = self.leaders();
        let mut asked = Vec::new();
        for node in self.topology.nodes() {
            let leads = leaders.leads(node);
            let name = self.topology.addr(node).to_string();
            match self.nodes[node].health.is_up() {
                true if leads || answers.inquiry.is_for_all() => {
                    let follows = self.topology.pairs_of(node).any(|p| leaders.at(p) != Some(node));
                    let markers = (!follows).then(|| MARKERS + self.topology.pair_count());
                    asked.push((node, name, markers, self.operators.inquirers[node].clone()));
                }
                // The last full copy: no other node can answer in its place.
                false if leads => answers.silent.push((name, "is not in use".to_owned())),
                _ => {}
            }
        }
        let most = answers.inquiry.patience();
        let by = Instant::now() + PATIENCE * self.node_timeout().min(most);
        self.spawn(async move {
            ask_all(asked, &leaders, &mut answers, (most, by)).await;
            Internal::Gathered(Box::new(answers))
        });
    }

    pub(super) fn gathered(&mut self, mut answers: Answers) {
        self.tell_silent(&answers);
        self.operators.inquiries.before = std::mem::take(&mut answers.before);
        if let Found::Counted(Ok(counted)) = &mut answers.found {
            self.operators.inquiries.before = std::mem::take(counted).into_iter().map(Some).collect();
            self.reset_counters();
        }
        let told = self.tell_answers(answers);
        for asker in std::mem::take(&mut self.operators.inquiries.running) {
            self.answer(asker, Outcome::Raw(told.clone()));
        }
        self.begin_inquiry();
    }

    /// The answer to who asked.
    fn tell_answers(&self, answers: Answers) -> Bytes {
        let Answers { inquiry, found, asked, silent, refusal, .. } = answers;
        let own = matches!(inquiry, Inquiry::General | Inquiry::Settings | Inquiry::Reset);
        if asked == 0 && !own {
            return match (refusal, silent.first()) {
                (Some(said), _) => Bytes::from(format!("{said}\r\n")),
                (None, Some((name, why))) => server_error(format_args!("{name} {why}")),
                (None, None) => server_error("no server is in use"),
            };
        }
        match found {
            Found::List(gathered) => {
                let form = gathered.form();
                let stats = gathered.into_stats();
                match inquiry {
                    Inquiry::General => self.report().stats(stats, (asked, silent.len())).end(),
                    Inquiry::Settings => self.stats_settings(stats),
                    _ if form == Form::Prefixes => {
                        let mut list = Written::default();
                        stats.iter().for_each(|(name, counts)| list.put_prefix(name, counts));
                        list.ended_by(&end(asked, &silent))
                    }
                    _ => {
                        let mut out = Lines::default();
                        stats.into_iter().for_each(|(name, value)| out.put(name, value));
                        if !silent.is_empty() {
                            out.put("servers_not_asked", silent.len());
                        }
                        out.end()
                    }
                }
            }
            Found::Items(items) => {
                let mut lines = items.into_lines();
                lines.extend_from_slice(&end(asked, &silent));
                Bytes::from(lines)
            }
            Found::Switched(first) => match silent.first() {
                // One that is away loses the switch, as by a restart.
                Some((name, why)) => {
                    let did = counted(asked as u64, "server did so", "servers did so");
                    server_error(format_args!("{did}, but {name} {why}"))
                }
                None => first.unwrap_or_else(|| server_error("no server is in use")),
            },
            Found::Counted(Ok(_)) => Bytes::from_static(answer::RESET),
            Found::Counted(Err(why)) => server_error(format_args!("nothing was reset: a server's list has {why}")),
        }
    }

    fn tell_silent(&mut self, answers: &Answers) {
        let told = &mut self.operators.inquiries.told;
        if answers.silent.is_empty() || told.is_some_and(|at| at.elapsed() < TOLD_EVERY) {
            return;
        }
        *told = Some(Instant::now());
        for (node, why) in &answers.silent {
            tracing::warn!(%node, why, "a server did not answer what a client asked of all (stats)");
        }
    }

    /// Who leads each pair.
    pub(super) fn leaders(&self) -> Leaders {
        let leader = |p: PairId| {
            let place = self.pairs[p].pair.state().leader()?;
            self.topology.pair_is_used(p).then(|| self.node_at(p, place))
        };
        Leaders { topology: self.topology.clone(), nodes: self.topology.pairs().map(leader).collect() }
    }

    /// How long a server may take for one answer.
    pub(super) fn node_timeout(&self) -> Duration {
        self.settings.probe_timeout.max(self.settings.timeout)
    }
}

/// Who leads, at one moment.
pub(super) struct Leaders {
    topology: Arc<Topology>,
    nodes: Vec<Option<NodeId>>,
}

impl Leaders {
    fn at(&self, pair: PairId) -> Option<NodeId> {
        self.nodes.get(pair.index()).copied().flatten()
    }

    /// Whether it leads some pair.
    pub(super) fn leads(&self, node: NodeId) -> bool {
        self.topology.pairs_of(node).any(|p| self.at(p) == Some(node))
    }

    /// Whether a key that this node lists is one of the clients', and read here: not a copy of what
    /// another one leads with, nor one of the proxy's own.
    pub(super) fn shows(&self, node: NodeId, key: &[u8]) -> bool {
        !is_reserved(key) && self.at(self.topology.pair_of(key)) == Some(node)
    }
}

async fn ask_all(
    asked: Vec<(NodeId, String, Option<usize>, Arc<Inquirer>)>,
    leaders: &Leaders,
    answers: &mut Answers,
    (most, by): (Duration, Instant),
) {
    let mut awaited: VecDeque<String> = asked.iter().map(|(_, name, ..)| name.clone()).collect();
    let asks = asked.into_iter().map(|(node, _, markers, inquirer)| {
        let parts = answers.inquiry.parts(markers);
        async move {
            let told = timeout(most, ask_one(parts, &inquirer)).await;
            (node, told.unwrap_or_else(|_| vec![(String::new(), Err(NodeError::Timeout.into()))]))
        }
    });
    // In order, so that the first one's settings are always the same one's.
    let mut asks = futures::stream::iter(asks.collect::<Vec<_>>()).buffered(AT_ONCE);
    while let Ok(Some((node, told))) = timeout_at(by, asks.next()).await {
        if let Some(name) = awaited.pop_front() {
            answers.take(node, &name, told, |key| leaders.shows(node, key));
        }
    }
    answers.silent.extend(awaited.into_iter().map(|name| (name, "did not answer in time".to_owned())));
}

/// Up to the first that is not answered.
async fn ask_one(parts: Vec<String>, inquirer: &Inquirer) -> Told {
    let mut told = Vec::with_capacity(parts.len());
    for part in parts {
        let command = format!("stats {part}");
        let answer = match shows_names(&part) {
            true => inquirer.tell(command.trim_end(), ANSWER_MAX).await,
            false => inquirer.ask(command.trim_end(), ANSWER_MAX).await,
        };
        let failed = answer.is_err();
        told.push((part, answer));
        if failed {
            break;
        }
    }
    told
}

/// What stands behind lines that are no `STAT`s: an error where some are missing.
fn end(asked: usize, silent: &[(String, String)]) -> Bytes {
    let Some((name, why)) = silent.first() else { return Bytes::from_static(answer::END) };
    let all = counted((asked + silent.len()) as u64, "server", "servers");
    let are = if asked == 1 { "is" } else { "are" };
    server_error(format_args!("{asked} of {all} {are} shown: {name} {why}"))
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::cluster::alone::alone;

    #[test]
    fn a_monitor_waits_for_one_list_of_items_at_most() {
        let mut inquiries = Inquiries::default();
        let items = |limit| Inquiry::Items { class: 1, limit };
        inquiries.waiting.extend((0..100).map(|limit| (items(limit), Vec::new())));
        let mut next = || {
            let (inquiry, _) = inquiries.next().expect("some wait");
            if matches!(inquiry, Inquiry::Items { limit: 0, .. }) {
                inquiries.waiting.push_back((Inquiry::General, Vec::new()));
                inquiries.waiting.push_back((Inquiry::Settings, Vec::new()));
            }
            inquiry
        };
        assert_eq!([next(), next(), next(), next()], [items(0), Inquiry::General, items(1), Inquiry::Settings]);
    }

    /// It has stood in the queue for longer than its operator was ready to wait.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_switched_for_whom_has_given_up() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
        for waits in [false, true] {
            let (reply, answer) = oneshot::channel();
            let answer = waits.then_some(answer);
            let asker = Asker::at_the_desk(cluster.operators.desk.wait_for(reply));
            cluster.operators.inquiries.waiting.push_back((Inquiry::Switch("detail on"), vec![asker]));
            cluster.begin_inquiry();
            assert_eq!((cluster.operators.inquiries.running.len(), answer.is_some()), (usize::from(waits), waits));
        }
    }

    #[test]
    fn parts_of_stats_are_known_as_by_memcached() {
        for (args, part) in [
            ("", ""),
            ("settings x", "settings"),
            ("slabs", "slabs"),
            ("items x", "items"),
            ("sizes", "sizes"),
            ("detail on x", "detail on"),
            ("detail dump", "detail dump"),
            ("cachedump 1 0", "cachedump 1 0"),
            ("cachedump 63 5 x", "cachedump 63 12"),
            ("extstore", "extstore"),
        ] {
            assert_eq!(Inquiry::parse(args).map(|inquiry| inquiry.parts(Some(7))), Ok(vec![part.to_owned()]), "{args}");
        }
        for (args, answer) in [
            ("nosuch", "ERROR\r\n"),
            ("proxy", "ERROR\r\n"),
            ("noreply", "ERROR\r\n"),
            ("detail", "CLIENT_ERROR usage: stats detail on|off|dump\r\n"),
            ("detail x", "CLIENT_ERROR usage: stats detail on|off|dump\r\n"),
            ("cachedump", "CLIENT_ERROR bad command line\r\n"),
            ("cachedump 1", "CLIENT_ERROR bad command line\r\n"),
            ("cachedump x 1", "CLIENT_ERROR bad command line format\r\n"),
            ("cachedump 300 1", "CLIENT_ERROR Illegal slab id\r\n"),
        ] {
            assert_eq!(Inquiry::parse(args), Err(Bytes::from(answer)), "{args}");
        }
        // Where it is not known how many are left out, all are asked for.
        assert_eq!(
            Inquiry::parse("cachedump 1 5").map(|inquiry| inquiry.parts(None)),
            Ok(vec!["cachedump 1 0".to_owned()])
        );
    }
}
