//! The real job against scripted nodes: every order of the races between copies, re-copies,
//! clients' mutations and failures.
//!
//! The nodes hold each command until the explorer lets it run; the clients' mutations are scripted
//! in the steps that the data path makes them in while a pair is Recovering (leader first, then the
//! target). The explorer walks all orders, depth first, by running the job from the start for each;
//! two runs that have led to the same contents, held commands and transcripts of all connections
//! are one. Switches in the world (never in the product) show that the checks can fail.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::digest::Digest;
use crate::scripted::{Fault, NEVER, ScriptedDialer, Shared, World};
use bytes::Bytes;
use resilver::internals::ids::{NodeId, PairId};
use resilver::internals::keys::{Missed, MissedBudget, Recopy};
use resilver::internals::resync::{
    Context, Fill, JobEvent, JobSpec, Outcome, Progress, Settlement, Tuning, Verdict, run,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

const LEADER: usize = 0;
const TARGET: usize = 1;
/// More steps than any run of these scenarios needs: one that does not end is a violation.
const MAX_STEPS: usize = 150;
/// A bound on each exploration; those below end well before it.
const MAX_RUNS: usize = 1_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Op {
    Set,
    Add,
    Delete,
    Incr,
    Touch,
    /// Only of use where the leader cannot be enumerated: its worker pushes the key.
    Read,
    /// Stores what stood there at first.
    SetBack,
    AddBack,
}

/// How the leader's keys become known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Listed,
    /// It cannot be enumerated.
    Unlisted,
    /// Nor has it cas ids.
    NoCas,
}

/// What happens besides mutations, once, at any moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Failure {
    None,
    /// The target is killed and comes back empty.
    TargetKilled,
    /// Its connections break; what was sent is lost, or executed unanswered.
    TargetReset,
    SourceReset,
    Cancel,
    /// The proxy is killed: whatever it had begun ends where it stands, and the next one knows only
    /// what was recorded.
    Crash,
    /// The job is cancelled; a crash follows while the next one is at work.
    CancelAndCrash,
}

impl Failure {
    /// How many jobs it takes where each that is cut off is followed by another one.
    fn jobs(self) -> usize {
        if self == Failure::CancelAndCrash { 3 } else { 2 }
    }
}

#[derive(Clone, Debug)]
struct Scenario {
    /// Each on its key.
    ops: Vec<(Op, &'static str)>,
    keys: Vec<&'static str>,
    /// The target holds old items and was not purged, as after a late write of a dead connection.
    prefilled: bool,
    failure: Failure,
    fault: Fault,
    lanes: usize,
    source: Source,
    /// How the target is filled; with [`Fill::Missed`] operations may also begin before the
    /// barrier.
    fill: Fill,
    /// What the two nodes hold at first, where it is not the usual: leader, target. All keys that
    /// differ are missed.
    held: Option<[Option<&'static str>; 2]>,
    failing_orders: usize,
    /// A job that was cancelled is followed by another one.
    again: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    Execute(usize),
    /// The next step of an operation.
    Step(usize),
    /// The owner of a key that only the target holds takes the order to add it.
    Adopt,
    /// The pair goes into Recovering: nothing begun before is unanswered.
    Barrier,
    CloseGate,
    Fail,
    FailExecuted,
}

/// Where an operation stands: 0 not begun, then its steps; see `Run::step`.
const FINISHED: u8 = 9;

struct Run<'a> {
    scenario: &'a Scenario,
    world: Shared,
    recopy: Arc<Recopy>,
    missed: Arc<Missed>,
    cancel: CancellationToken,
    events: mpsc::Receiver<JobEvent>,
    purged: Option<oneshot::Sender<bool>>,
    recovering: bool,
    /// Keys to be adopted; and those that clients wrote.
    orders: VecDeque<(String, String, oneshot::Sender<Settlement>)>,
    written: BTreeSet<&'static str>,
    /// The same for the job.
    written_list: Arc<Missed>,
    /// The leader holds everything; and what the record says: that both nodes count.
    adopted: bool,
    adopting: bool,
    /// Operations that a crash has cut off.
    given_up: Vec<bool>,
    abort: Option<AbortHandle>,
    crashed: bool,
    /// So many orders fail first.
    failing_orders: usize,
    ready: Option<oneshot::Sender<bool>>,
    gate_closed: bool,
    mirrored: bool,
    failed: bool,
    /// The job goes on without an enumeration.
    trickles: bool,
    /// A read was taken up by the job.
    taken_up: Vec<bool>,
    progress: Vec<u8>,
    /// What the leader's answer was: nothing to do on the target.
    void: Vec<bool>,
    value: Vec<Option<String>>,
    /// Actions taken; and what they were, where a run is told again.
    steps: usize,
    log: Option<Vec<String>>,
}

impl Run<'_> {
    async fn settle(&mut self, ms: u64) {
        // With the clock paused, this returns when every task waits for something.
        tokio::time::sleep(Duration::from_millis(ms)).await;
        while let Ok(event) = self.events.try_recv() {
            match event {
                JobEvent::Purged { reply } => self.purged = Some(reply),
                JobEvent::Adopting { reply } => {
                    self.adopting = true;
                    let _ = reply.send(true);
                }
                JobEvent::AllAdopted { reply } => {
                    (self.adopted, self.adopting) = (true, self.scenario.fault == Fault::AdoptsCopies);
                    let _ = reply.send(true);
                }
                JobEvent::Adopt { key, value, reply, .. } => {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    self.orders.push_back((text(&key), text(&value), reply));
                }
                JobEvent::CannotEnumerate { .. } => self.trickles = true,
                JobEvent::Ready { reply, .. } => self.ready = Some(reply),
                JobEvent::Drained { clean, reply, .. } => {
                    self.gate_closed = false;
                    self.mirrored |= clean;
                    let _ = reply.send(if clean { Verdict::Mirrored } else { Verdict::Again });
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn in_flight(&self) -> bool {
        self.progress.iter().any(|&p| p > 0 && p < FINISHED)
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions: Vec<Action> = self.world.lock().unwrap().held().into_iter().map(Action::Execute).collect();
        let source_lost = self.failed && matches!(self.scenario.failure, Failure::SourceReset);
        for (i, &p) in self.progress.iter().enumerate() {
            let key = self.scenario.ops[i].1;
            let earlier = |done: &dyn Fn(u8) -> bool| {
                (0..i).all(|j| {
                    self.scenario.ops[j].1 != key || self.scenario.ops[j].0 == Op::Read || done(self.progress[j])
                })
            };
            // One owner orders a key's writes on each node; the next one need not wait for the
            // target's answer.
            let may = match p {
                // Any worker reads, at any time.
                0 if self.scenario.ops[i].0 == Op::Read => !source_lost,
                // As if the target had been purged before the first of them.
                0 if !self.recovering && self.scenario.held.is_none() => false,
                0 => !self.gate_closed && !source_lost && earlier(&|p| p > 0),
                FINISHED => false,
                _ => earlier(&|p| p == FINISHED),
            };
            if may {
                actions.push(Action::Step(i));
            }
        }
        if !self.orders.is_empty() {
            actions.push(Action::Adopt);
        }
        if self.purged.is_some() && !self.in_flight() {
            actions.push(Action::Barrier);
        }
        if self.ready.is_some() && !self.in_flight() && !self.gate_closed {
            actions.push(Action::CloseGate);
        }
        if !self.failed && self.scenario.failure != Failure::None && !self.mirrored {
            actions.push(Action::Fail);
            if matches!(self.scenario.failure, Failure::TargetReset | Failure::Crash) {
                actions.push(Action::FailExecuted);
            }
        }
        if self.failed && self.scenario.failure == Failure::CancelAndCrash && !self.crashed && !self.mirrored {
            actions.push(Action::Fail);
        }
        actions
    }

    fn take(&mut self, action: Action) {
        let mut world = self.world.lock().unwrap();
        self.steps += 1;
        if let Some(log) = &mut self.log {
            log.push(match action {
                Action::Execute(connection) => world.describe(connection),
                Action::Step(i) => format!("op {i} {:?}, step {}", self.scenario.ops[i], self.progress[i]),
                other => format!("{other:?} {:?}", self.scenario.failure),
            });
        }
        match action {
            Action::Execute(connection) => world.execute(connection),
            Action::Adopt => {
                let (key, value, reply) = self.orders.pop_front().expect("ordered");
                let leader = &mut world.nodes[LEADER];
                let end = if self.failing_orders > 0 {
                    self.failing_orders -= 1;
                    Settlement::Failed
                } else if (self.written.contains(&*key) && self.scenario.fault != Fault::ForgetsWrites)
                    || leader.get(&key).is_some()
                {
                    Settlement::Superfluous
                } else {
                    leader.put(&key, &value, NEVER);
                    Settlement::Done
                };
                let _ = reply.send(end);
            }
            Action::Barrier => {
                self.recovering = true;
                let _ = self.purged.take().expect("asked").send(true);
            }
            Action::CloseGate => {
                self.gate_closed = true;
                let _ = self.ready.take().expect("asked").send(true);
            }
            Action::Fail | Action::FailExecuted => {
                let failure = match self.scenario.failure {
                    Failure::CancelAndCrash if self.failed => Failure::Crash,
                    Failure::CancelAndCrash => Failure::Cancel,
                    failure => failure,
                };
                self.failed = true;
                match failure {
                    Failure::TargetKilled => world.kill(TARGET),
                    Failure::TargetReset => world.break_connections(TARGET, action == Action::FailExecuted),
                    Failure::SourceReset => world.refuse(LEADER),
                    Failure::Cancel => self.cancel.cancel(),
                    Failure::Crash => {
                        self.crashed = true;
                        for node in [LEADER, TARGET] {
                            world.break_connections(node, action == Action::FailExecuted);
                        }
                        if let Some(job) = self.abort.take() {
                            job.abort();
                        }
                        for (progress, given_up) in self.progress.iter_mut().zip(&mut self.given_up) {
                            if (1..FINISHED).contains(progress) {
                                (*progress, *given_up) = (FINISHED, true);
                            }
                        }
                    }
                    Failure::CancelAndCrash | Failure::None => {}
                }
            }
            Action::Step(i) => {
                drop(world);
                self.step(i);
            }
        }
    }

    /// An operation's next step: 1 = on the leader, 2 = on the target, 3 = the push that follows a
    /// drop.
    fn step(&mut self, i: usize) {
        let mut world = self.world.lock().unwrap();
        let (op, key) = self.scenario.ops[i];
        let conditional = matches!(op, Op::Incr | Op::Touch);
        if self.progress[i] == 0 && op != Op::Read {
            self.written.insert(key);
            self.written_list.insert(key.as_bytes());
        }
        let on = |node: &mut crate::scripted::Node| -> bool {
            let standing = node.content(key);
            match (op, standing) {
                (Op::Set, _) | (Op::Add, None) => {
                    node.put(key, &(100 * (i + 1)).to_string(), NEVER);
                }
                (Op::SetBack, _) | (Op::AddBack, None) => {
                    node.put(key, "5", NEVER);
                }
                (Op::Delete, _) => node.remove(key),
                (Op::Incr, Some((value, exptime))) => {
                    node.put(key, &(value.parse::<u64>().unwrap() + 1).to_string(), exptime);
                }
                (Op::Touch, Some(_)) => node.touch(key, 100 * (i as i64 + 1)),
                _ => return false,
            }
            true
        };
        let follower_first = self.scenario.fault == Fault::FollowerFirst && !conditional;
        match self.progress[i] {
            0 if op == Op::Read => {
                let hit = world.nodes[LEADER].get(key).is_some();
                self.taken_up[i] = hit && self.recopy.wants_reads();
                if hit {
                    self.recopy.push_read(key.as_bytes());
                }
                self.progress[i] = FINISHED;
            }
            0 if follower_first => {
                on(&mut world.nodes[TARGET]);
                self.progress[i] = 1;
            }
            1 if follower_first => {
                on(&mut world.nodes[LEADER]);
                self.progress[i] = FINISHED;
            }
            // Degraded: the leader alone, and noted before it is sent.
            0 if !self.recovering => {
                if self.scenario.fault != Fault::NotNoted {
                    self.missed.insert(key.as_bytes());
                }
                on(&mut world.nodes[LEADER]);
                self.progress[i] = FINISHED;
            }
            0 => {
                self.void[i] = !on(&mut world.nodes[LEADER]) && op != Op::Delete;
                self.value[i] = world.nodes[LEADER].content(key).map(|(value, _)| value);
                self.progress[i] = if self.void[i] { FINISHED } else { 1 };
            }
            1 if self.mirrored || (self.scenario.fault == Fault::Reexecute && op == Op::Incr) => {
                on(&mut world.nodes[TARGET]);
                self.progress[i] = FINISHED;
            }
            1 if conditional => {
                world.nodes[TARGET].remove(key);
                self.progress[i] = 2;
            }
            1 => {
                match (op, &self.value[i]) {
                    (Op::Delete, _) | (_, None) => world.nodes[TARGET].remove(key),
                    (_, Some(value)) => world.nodes[TARGET].put(key, value, NEVER),
                }
                self.progress[i] = FINISHED;
            }
            _ => {
                self.recopy.push(Bytes::from_static(key.as_bytes()));
                self.progress[i] = FINISHED;
            }
        }
    }

    fn fingerprint(&self, jobs: usize, finished: bool) -> u64 {
        let mut hasher = Digest::default();
        (jobs, finished, self.crashed).hash(&mut hasher);
        self.world.lock().unwrap().hash(&mut hasher);
        (&self.progress, &self.void, &self.value, self.ready.is_some(), self.gate_closed).hash(&mut hasher);
        (self.mirrored, self.failed, self.recopy.len(), self.trickles, &self.taken_up).hash(&mut hasher);
        (self.purged.is_some(), self.recovering, self.missed.keys()).hash(&mut hasher);
        (self.orders.len(), self.failing_orders, &self.written).hash(&mut hasher);
        (self.adopted, self.adopting, &self.given_up).hash(&mut hasher);
        hasher.finish()
    }

    /// What is wrong when a trickle has nothing to do: every key that was taken up is there, and
    /// whatever is there is right.
    fn judge_trickle(&self) -> Option<String> {
        let world = self.world.lock().unwrap();
        let content = |node: usize, key: &str| world.nodes[node].content(key);
        for &key in &self.scenario.keys {
            let (leader, target) = (content(LEADER, key), content(TARGET, key));
            let due = (0..self.taken_up.len()).any(|i| self.taken_up[i] && self.scenario.ops[i].1 == key);
            if (due || target.is_some()) && leader != target {
                return Some(format!("trickled, but {key} is {leader:?} on the leader and {target:?} on the target"));
            }
        }
        (!self.trickles).then(|| "no trickle".to_owned())
    }

    /// What is wrong at the end.
    fn judge(&self, outcome: &Outcome) -> Option<String> {
        let problem = self.judge_end(outcome);
        problem.or_else(|| match (&outcome.result, self.failed) {
            (Ok(()), _) if !self.mirrored => Some("ended well without a hand-back".to_owned()),
            (Err(_), true) if self.scenario.again => Some("the second job failed too".to_owned()),
            (Err(error), false) => Some(format!("failed without a failure: {error}")),
            _ => None,
        })
    }

    /// What a job's account of itself has wrong.
    fn judge_end(&self, outcome: &Outcome) -> Option<String> {
        let world = self.world.lock().unwrap();
        let content = |node: usize, key: &str| world.nodes[node].content(key);
        for &key in &self.scenario.keys {
            let (leader, target) = (content(LEADER, key), content(TARGET, key));
            if outcome.result.is_ok() {
                if leader != target && !(self.failed && self.scenario.failure == Failure::TargetKilled) {
                    return Some(format!(
                        "handed back, but {key} is {leader:?} on the leader and {target:?} on the target"
                    ));
                }
                let of_key = |&i: &usize| self.scenario.ops[i].1 == key && self.progress[i] > 0;
                let last = (0..self.progress.len()).rfind(of_key);
                if last.is_some_and(|i| self.given_up[i]) {
                    // Nobody was told what became of it.
                    continue;
                }
                let last = last.map(|i| self.scenario.ops[i].0);
                if last == Some(Op::Delete) && leader.is_some() {
                    return Some(format!("{key} was deleted and is {leader:?}"));
                }
                if let (Fill::Adopt, None, Some([None, Some(value)])) = (self.scenario.fill, last, self.scenario.held)
                    && leader.as_ref().is_none_or(|(stands, _)| stands != value)
                {
                    return Some(format!("only the target held {key}, and it is {leader:?}"));
                }
            } else if self.scenario.fill == Fill::Adopt && !self.has_changed(key) {
                // What the target holds of its own may lead where the leader's memory is gone.
            } else if outcome.undone && target.is_some() && leader != target {
                return Some(format!("undone, but {key} is {leader:?} on the leader and {target:?} on the target"));
            }
        }
        None
    }
}

impl Run<'_> {
    /// Whether any operation has had an effect on the key.
    fn has_changed(&self, key: &str) -> bool {
        (0..self.progress.len()).any(|i| self.scenario.ops[i].1 == key && self.progress[i] > 0 && !self.void[i])
    }
}

struct Explored {
    violation: Option<String>,
    runs: usize,
    states: usize,
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Walks all orders of a scenario until one is wrong.
fn explore(scenario: &Scenario) -> Explored {
    let mut seen = HashSet::new();
    let mut stack: Vec<Vec<usize>> = vec![Vec::new()];
    let mut runs = 0;
    while let Some(prefix) = stack.pop() {
        runs += 1;
        assert!(runs <= MAX_RUNS, "{scenario:?}: more orders than the bound");
        let runtime = paused();
        let mut path = prefix;
        let violation = runtime.block_on(one(scenario, &mut path, Some((&mut seen, &mut stack))));
        if violation.is_some() {
            drop(runtime);
            let told = paused().block_on(one(scenario, &mut path, None));
            return Explored { violation: told.or(violation), runs, states: seen.len() };
        }
    }
    Explored { violation: None, runs, states: seen.len() }
}

fn list() -> Arc<Missed> {
    let list = Missed::new(Arc::new(MissedBudget::new(1 << 20)));
    list.reset();
    Arc::new(list)
}

/// Starts the job of a scenario in the current runtime.
fn begin(scenario: &Scenario) -> (Run<'_>, JoinHandle<Outcome>) {
    let missed = list();
    let mut world = World::new(scenario.fault);
    world.nodes[LEADER].memory.no_crawler = scenario.source != Source::Listed;
    world.nodes[LEADER].memory.no_cas = scenario.source == Source::NoCas;
    for (i, key) in scenario.keys.iter().enumerate() {
        if scenario.prefilled {
            world.nodes[TARGET].put(key, "1", NEVER);
        }
        // The cas ids of the two nodes overlap, so that a mix-up shows.
        world.nodes[LEADER].put(key, &(5 + i).to_string(), NEVER);
        if let Some([leader, target]) = scenario.held {
            for (node, value) in [(LEADER, leader), (TARGET, target)] {
                world.nodes[node].remove(key);
                value.into_iter().for_each(|value| world.nodes[node].put(key, value, NEVER));
            }
            if leader != target {
                missed.insert(key.as_bytes());
            }
        }
    }
    let world = Arc::new(Mutex::new(world));
    let count = scenario.ops.len();
    let mut run = Run {
        scenario,
        world,
        recopy: Arc::default(),
        missed,
        cancel: CancellationToken::new(),
        events: mpsc::channel(1).1,
        purged: None,
        recovering: false,
        orders: VecDeque::new(),
        written: BTreeSet::new(),
        written_list: list(),
        adopted: false,
        adopting: true,
        given_up: vec![false; count],
        abort: None,
        crashed: false,
        failing_orders: scenario.failing_orders,
        ready: None,
        gate_closed: false,
        mirrored: false,
        failed: false,
        trickles: false,
        taken_up: vec![false; count],
        progress: vec![0; count],
        void: vec![false; count],
        value: vec![None; count],
        steps: 0,
        log: None,
    };
    let job = run.begin_job();
    (run, job)
}

impl Run<'_> {
    /// The first job, or another one after it.
    fn begin_job(&mut self) -> JoinHandle<Outcome> {
        let (scenario, world) = (self.scenario, self.world.clone());
        let (coordinator, events) = mpsc::channel(4);
        let crashed = self.crashed;
        let fill = match scenario.fill {
            Fill::Adopt if crashed && !self.adopting => Fill::Purge,
            Fill::Adopt if !crashed && self.adopted => Fill::Compare,
            fill => fill,
        };
        // Between the two the leader was alone.
        self.adopting &= crashed || !self.failed;
        // From the start on both nodes count, and every write reaches both.
        let counts = fill == Fill::Adopt && (crashed || !self.failed);
        if crashed {
            (self.written, self.written_list) = (BTreeSet::new(), list());
        }
        let mut written = BTreeMap::from([(PairId(0), self.written_list.clone())]);
        written.retain(|_, _| fill == Fill::Adopt && !counts && scenario.fault != Fault::NotPurgedOfWritten);
        let noted = scenario.fill.keeps_list() && scenario.fault != Fault::DropsNotNoted;
        let recopy = Arc::new(if noted { Recopy::noting(self.missed.clone()) } else { Recopy::new() });
        let cancel = CancellationToken::new();
        let ctx = Context {
            dialer: Arc::new(ScriptedDialer(world.clone())),
            memories: BTreeMap::new(),
            names: Arc::default(),
            item_limits: BTreeMap::new(),
            owner: Arc::new(|_: &[u8]| PairId(0)),
            holds: Arc::new(|_, _| true),
            tuning: Tuning { lanes: scenario.lanes, gate_budget: Duration::from_secs(2), ..Tuning::default() },
            shared: resilver::internals::resync::Shared::new(2, None),
            cancel: cancel.clone(),
            progress: Arc::new(Progress::new([PairId(0)])),
            recopy: BTreeMap::from([(PairId(0), recopy.clone())]),
            missed: BTreeMap::from([(PairId(0), self.missed.clone())]),
            lone: BTreeMap::new(),
            written,
            coordinator,
        };
        let spec = JobSpec { target: NodeId(1), pairs: vec![(PairId(0), NodeId(0))], fill, leads: false };
        (self.recopy, self.cancel, self.events) = (recopy, cancel, events);
        (self.purged, self.ready, self.recovering, self.gate_closed) = (None, None, counts, false);
        self.orders.clear();
        let job = tokio::spawn(run(spec, ctx));
        self.abort = Some(job.abort_handle());
        job
    }
}

/// One run along the path, and on into what nobody has seen. Without what was seen it ends with the
/// path, and its story is told: a million runs that end well need none.
async fn one(
    scenario: &Scenario,
    path: &mut Vec<usize>,
    mut unseen: Option<(&mut HashSet<u64>, &mut Vec<Vec<usize>>)>,
) -> Option<String> {
    let (mut run, mut job) = begin(scenario);
    run.log = unseen.is_none().then(Vec::new);
    let given = path.len();
    let mut jobs = 1;
    let most = if scenario.again { scenario.failure.jobs() } else { 1 };
    let mut idle = 0;
    loop {
        run.settle(1).await;
        let mut actions = run.actions();
        if job.is_finished() {
            // What has not begun waits for the second job, and may begin before its barrier.
            let more = jobs < most && !run.mirrored;
            actions.retain(|a| match *a {
                Action::Execute(_) => true,
                Action::Step(i) => !more || run.progress[i] > 0,
                _ => false,
            });
        }
        if actions.is_empty() {
            if job.is_finished() {
                if jobs < most && !run.mirrored {
                    jobs += 1;
                    run.world.lock().unwrap().forget_the_job();
                    run.log.iter_mut().for_each(|log| log.push("another job".to_owned()));
                    let end = std::mem::replace(&mut job, run.begin_job()).await;
                    if run.crashed {
                        continue;
                    }
                    let end = end.expect("the job does not panic");
                    if let Some(what) = run.judge_end(&end) {
                        return Some(format!("{what}, after {:#?}", run.log));
                    }
                    continue;
                }
                break;
            }
            idle += 1;
            if scenario.source != Source::Listed && idle == 2 {
                // Nobody but the control plane ends it, also when a node is lost while nothing is
                // asked of it.
                if !run.failed
                    && let Some(what) = run.judge_trickle()
                {
                    return Some(format!("{what}, after {:#?}", run.log));
                }
                run.failed = true;
                run.cancel.cancel();
                continue;
            }
            if idle > 20 {
                return Some(format!("hangs after {:#?}", run.log));
            }
            run.settle(2_000).await;
            continue;
        }
        idle = 0;
        if run.steps >= MAX_STEPS {
            return Some(format!("does not end: {:#?}", run.log));
        }
        let choice = if run.steps < given {
            path[run.steps]
        } else {
            let (seen, stack) = unseen.as_mut()?;
            if !seen.insert(run.fingerprint(jobs, job.is_finished())) {
                return None;
            }
            for alternative in 1..actions.len() {
                let mut other = path.clone();
                other.push(alternative);
                stack.push(other);
            }
            path.push(0);
            0
        };
        run.take(actions[choice]);
    }
    let outcome = job.await.expect("the job does not panic");
    let problem = run.judge(&outcome);
    // Nothing is held any more, so every drain completes.
    for drain in outcome.drains {
        if tokio::time::timeout(Duration::from_secs(1), drain).await.is_err() {
            let held = run.world.lock().unwrap().held();
            if held.is_empty() {
                return Some(format!("a drain does not end after {:#?}", run.log));
            }
        }
    }
    if scenario.source != Source::Listed && scenario.failure == Failure::None && !outcome.undone {
        return Some(format!("a trickle that was cancelled left unverified copies after {:#?}", run.log));
    }
    problem.map(|what| format!("{what}, after {:#?}", run.log))
}

const OPS: [Op; 5] = [Op::Set, Op::Add, Op::Delete, Op::Incr, Op::Touch];

fn scenario(ops: &[Op]) -> Scenario {
    Scenario {
        ops: ops.iter().map(|&op| (op, "k")).collect(),
        keys: vec!["k"],
        prefilled: false,
        failure: Failure::None,
        fault: Fault::None,
        lanes: 1,
        source: Source::Listed,
        fill: Fill::Empty,
        held: None,
        failing_orders: 0,
        again: false,
    }
}

/// The key is old on the target, or was deleted on the leader, or neither, and then it may be
/// written before the barrier.
const HELD: [[Option<&str>; 2]; 3] = [[Some("5"), Some("1")], [None, Some("1")], [Some("5"), Some("5")]];

fn partial(held: [Option<&'static str>; 2], ops: &[Op]) -> Scenario {
    Scenario { fill: Fill::Missed, held: Some(held), ..scenario(ops) }
}

/// One read of the key, at any time among the mutations; with two lanes two copiers can be at it at
/// once.
fn trickle(source: Source, ops: &[Op]) -> Scenario {
    let ops = std::iter::once(Op::Read).chain(ops.iter().copied());
    Scenario { ops: ops.map(|op| (op, "k")).collect(), source, ..scenario(&[]) }
}

fn sequences(longest: usize) -> Vec<Vec<Op>> {
    let mut all: Vec<Vec<Op>> = vec![vec![]];
    let mut from = 0;
    for _ in 0..longest {
        let to = all.len();
        for i in from..to {
            for op in OPS {
                all.push([&all[i][..], &[op]].concat());
            }
        }
        from = to;
    }
    all
}

fn all_hold(what: &str, scenarios: impl IntoIterator<Item = Scenario>) {
    let started = std::time::Instant::now();
    let (mut count, mut runs, mut states) = (0, 0, 0);
    for scenario in scenarios {
        let explored = explore(&scenario);
        assert_eq!(explored.violation, None, "{scenario:?}");
        count += 1;
        runs += explored.runs;
        states += explored.states;
    }
    eprintln!("{what}: {count} scenarios, {runs} runs, {states} states, {:?}", started.elapsed());
}

fn some_break(what: &str, scenarios: impl IntoIterator<Item = Scenario>) {
    let broken = scenarios.into_iter().find_map(|s| explore(&s).violation);
    let example =
        broken.unwrap_or_else(|| panic!("{what}: no order was found to go wrong, so the checks prove nothing"));
    eprintln!("{what}: {example}");
}

/// Two mutations of which the first can invalidate a copy and the second its repair; the rest is in
/// `every_order_of_everything`.
const TELLING: [[Op; 2]; 7] = [
    [Op::Set, Op::Delete],
    [Op::Delete, Op::Add],
    [Op::Set, Op::Incr],
    [Op::Incr, Op::Set],
    [Op::Touch, Op::Delete],
    [Op::Touch, Op::Set],
    [Op::Delete, Op::Set],
];

fn short() -> impl Iterator<Item = Vec<Op>> {
    sequences(1).into_iter()
}

#[test]
fn every_order_of_two_mutations_ends_equal() {
    all_hold("two mutations", short().chain(TELLING.map(Vec::from)).map(|ops| scenario(&ops)));
}

#[test]
fn every_order_with_two_copiers_at_once_ends_equal() {
    all_hold(
        "two lanes",
        short().chain([vec![Op::Incr, Op::Delete]]).map(|ops| Scenario { lanes: 2, ..scenario(&ops) }),
    );
}

#[test]
fn every_order_over_leftovers_ends_equal() {
    let ops = short().chain(TELLING.map(Vec::from));
    all_hold("leftovers", ops.map(|ops| Scenario { prefilled: true, ..scenario(&ops) }));
}

#[test]
fn every_order_of_a_trickle_holds_what_was_read() {
    for source in [Source::Unlisted, Source::NoCas] {
        let ops = short().chain(TELLING.map(Vec::from));
        all_hold(&format!("trickle, {source:?}"), ops.map(|ops| trickle(source, &ops)));
        let two = short().chain([vec![Op::Incr, Op::Delete]]);
        all_hold(
            &format!("trickle, {source:?}, two lanes"),
            two.map(|ops| Scenario { lanes: 2, ..trickle(source, &ops) }),
        );
        for failure in FAILURES {
            let ops = short().map(|ops| Scenario { failure, ..trickle(source, &ops) });
            all_hold(&format!("trickle, {source:?}, {failure:?}"), ops);
        }
    }
}

/// Changed and changed back between read and verify: without cas ids the verify does not see it,
/// and need not.
#[test]
fn every_order_of_changes_that_verify_by_content_cannot_see() {
    // Every set stores another value, but an item can go and come as it was, or be touched and
    // touched back.
    let back = [
        vec![Op::Delete, Op::SetBack],
        vec![Op::Set, Op::SetBack],
        vec![Op::Incr, Op::SetBack],
        vec![Op::Delete, Op::AddBack],
        vec![Op::SetBack, Op::Delete],
        vec![Op::SetBack, Op::Incr],
    ];
    for lanes in [1, 2] {
        let ops = back.iter().map(|ops| Scenario { lanes, ..trickle(Source::NoCas, ops) });
        all_hold(&format!("changed back, {lanes} lanes"), ops);
    }
}

#[test]
fn every_order_of_a_partial_resync_ends_equal() {
    for held in HELD {
        let ops = || short().chain(TELLING.map(Vec::from));
        all_hold(&format!("partial, {held:?}"), ops().map(|ops| partial(held, &ops)));
        // Neither needs to be enumerated, nor the leader to have cas ids.
        for source in [Source::Unlisted, Source::NoCas] {
            let ops = short().map(|ops| Scenario { source, ..partial(held, &ops) });
            all_hold(&format!("partial, {held:?}, {source:?}"), ops);
        }
    }
}

#[test]
fn a_partial_resync_cut_off_at_every_step_is_made_good_by_the_next() {
    for held in HELD {
        for failure in FAILURES {
            let ops = short().map(|ops| Scenario { failure, ..partial(held, &ops) });
            all_hold(&format!("partial, {held:?}, {failure:?}"), ops);
        }
        let ops = short().chain([vec![Op::Incr, Op::Set], vec![Op::Touch, Op::Delete]]);
        let again = ops.map(|ops| Scenario { failure: Failure::Cancel, again: true, ..partial(held, &ops) });
        all_hold(&format!("partial, {held:?}, cut off and again"), again);
    }
}

const COMPARED: [[Option<&str>; 2]; 4] =
    [[Some("5"), Some("1")], [None, Some("1")], [Some("5"), None], [Some("5"), Some("5")]];

fn compared(fill: Fill, held: [Option<&'static str>; 2], ops: &[Op]) -> Scenario {
    Scenario { fill, held: Some(held), ..scenario(ops) }
}

#[test]
fn every_order_of_a_compare_pass_ends_equal() {
    for fill in [Fill::Compare, Fill::Adopt] {
        for held in COMPARED {
            let ops = short().chain(TELLING.map(Vec::from).into_iter().take(5));
            all_hold(&format!("{fill:?}, {held:?}"), ops.map(|ops| compared(fill, held, &ops)));
            for failure in [Failure::TargetReset, Failure::SourceReset] {
                let ops = short().map(|ops| Scenario { failure, ..compared(fill, held, &ops) });
                all_hold(&format!("{fill:?}, {held:?}, {failure:?}"), ops);
            }
            let again = |ops: Vec<Op>| Scenario { failure: Failure::Cancel, again: true, ..compared(fill, held, &ops) };
            all_hold(&format!("{fill:?}, {held:?}, cut off and again"), short().map(again));
        }
    }
    for held in COMPARED {
        for failure in [Failure::None, Failure::SourceReset] {
            let ops = short().map(|ops| Scenario { failure, ..compared(Fill::CompareRest, held, &ops) });
            all_hold(&format!("the rest, {held:?}, {failure:?}"), ops);
        }
    }
}

/// What only the target holds outlives the proxy, and what was deleted does not come back.
#[test]
fn a_crash_at_every_step_of_an_adoption_loses_and_revives_nothing() {
    for held in COMPARED {
        let ops = [vec![Op::Touch, Op::Delete], vec![Op::Delete, Op::Add], vec![Op::Set, Op::Delete]];
        let ops = short().chain(ops);
        all_hold(&format!("{held:?}, crash"), ops.map(|ops| crashing(held, &ops)));
    }
}

fn crashing(held: [Option<&'static str>; 2], ops: &[Op]) -> Scenario {
    Scenario { failure: Failure::Crash, again: true, ..compared(Fill::Adopt, held, ops) }
}

/// The same after a time in which writes missed the target.
#[test]
fn a_crash_at_every_step_of_an_adoption_that_was_cancelled_revives_nothing() {
    for held in COMPARED {
        let ops = [vec![Op::Delete], vec![Op::Set], vec![Op::Incr]];
        all_hold(&format!("{held:?}, cancel and crash"), ops.iter().map(|ops| cancelled_and_crashing(held, ops)));
    }
}

fn cancelled_and_crashing(held: [Option<&'static str>; 2], ops: &[Op]) -> Scenario {
    Scenario { failure: Failure::CancelAndCrash, ..crashing(held, ops) }
}

#[test]
fn every_order_of_an_adoption_that_fails_at_first_ends_equal() {
    for failing_orders in [1, 4] {
        let ops = short().map(|ops| Scenario { failing_orders, ..compared(Fill::Adopt, [None, Some("1")], &ops) });
        all_hold(&format!("{failing_orders} orders fail"), ops);
    }
}

#[test]
fn every_order_of_two_keys_ends_equal() {
    let pairs = [(Op::Set, Op::Delete), (Op::Touch, Op::Delete)];
    all_hold("two keys", pairs.into_iter().map(two_keys));
}

fn two_keys((a, b): (Op, Op)) -> Scenario {
    Scenario { ops: vec![(a, "k"), (b, "l")], keys: vec!["k", "l"], ..scenario(&[]) }
}

/// `cargo test --release --test it -- --ignored --nocapture resync_races::`: some minutes.
#[test]
#[ignore = "long; the others walk the telling part of it"]
fn every_order_of_everything() {
    all_hold("two mutations", sequences(2).iter().map(|ops| scenario(ops)));
    all_hold("leftovers", sequences(2).iter().map(|ops| Scenario { prefilled: true, ..scenario(ops) }));
    all_hold("two keys", OPS.iter().flat_map(|&a| OPS.map(|b| (a, b))).map(two_keys));
    for failure in FAILURES {
        all_hold(&format!("{failure:?}"), sequences(2).iter().map(|ops| Scenario { failure, ..scenario(ops) }));
    }
    // Three copiers of one key (two conditional mutations) have more than a million orders: not
    // among these.
    let two = TELLING.into_iter().filter(|ops| *ops != [Op::Incr, Op::Set] && *ops != [Op::Set, Op::Incr]);
    all_hold("two lanes", two.map(|ops| Scenario { lanes: 2, ..scenario(&ops) }));
}

const FAILURES: [Failure; 4] = [Failure::TargetKilled, Failure::TargetReset, Failure::SourceReset, Failure::Cancel];

#[test]
fn a_failure_at_every_step_leaves_a_true_account() {
    for failure in FAILURES {
        all_hold(
            &format!("{failure:?}"),
            short().chain(TELLING.map(Vec::from)).map(|ops| Scenario { failure, ..scenario(&ops) }),
        );
    }
}

#[test]
fn the_checks_can_fail() {
    let with =
        |fault, prefilled| sequences(2).into_iter().map(move |ops| Scenario { fault, prefilled, ..scenario(&ops) });
    some_break("without verify", with(Fault::NoVerify, false));
    some_break("NOT_STORED trusted", with(Fault::TrustNotStored, true));
    some_break("incr executed on the target", with(Fault::Reexecute, false));
    some_break("target first", with(Fault::FollowerFirst, false));
    let blind = |fault| sequences(2).into_iter().map(move |ops| Scenario { fault, ..trickle(Source::NoCas, &ops) });
    some_break("without verify by content", blind(Fault::NoContentVerify));
    some_break("incr executed on the target in a trickle", blind(Fault::Reexecute));
    let cut = |fault| {
        let again = move |held, op| Scenario { fault, failure: Failure::Cancel, again: true, ..partial(held, &[op]) };
        HELD.into_iter().flat_map(move |held| OPS.map(|op| again(held, op)))
    };
    some_break("a write before the barrier that is not noted", cut(Fault::NotNoted));
    some_break("a drop on the target that is not noted", cut(Fault::DropsNotNoted));
    let fault = Fault::ForgetsWrites;
    let forgets = OPS.map(|op| Scenario { fault, ..compared(Fill::Adopt, [None, Some("1")], &[op]) });
    some_break("an owner that forgets what clients wrote", forgets);
    let fault = Fault::AdoptsCopies;
    let copies = COMPARED.map(|held| Scenario { fault, ..crashing(held, &[Op::Delete]) });
    some_break("a copy that was cut off, adopted", copies);
    let fault = Fault::NotPurgedOfWritten;
    let again = COMPARED.map(|held| Scenario { fault, ..cancelled_and_crashing(held, &[Op::Delete]) });
    some_break("what was deleted in the target's absence, adopted", again);
}

/// The last full copy is waited for, however slow, and mutations that come meanwhile are not lost.
#[tokio::test(start_paused = true)]
async fn a_slow_source_is_waited_for() {
    // No touch: these nodes' TTLs do not count down, which over seconds looks like a change.
    let scenario = scenario(&[Op::Set, Op::Incr, Op::Incr]);
    let (mut run, job) = begin(&scenario);
    while !job.is_finished() {
        run.settle(1).await;
        // Mutations first, then the target: the leader's answers are always the last to come.
        let slow = |a: &Action| matches!(*a, Action::Execute(c) if run.world.lock().unwrap().describe(c).starts_with("leader"));
        let Some(action) = run.actions().into_iter().min_by_key(|a| (slow(a), matches!(a, Action::Execute(_)))) else {
            continue;
        };
        if slow(&action) {
            run.settle(10_000).await;
        }
        run.take(action);
    }
    let outcome = job.await.unwrap();
    assert_eq!(outcome.result, Ok(()));
    assert_eq!(run.judge(&outcome), None, "{:#?}", run.log);
}
