//! Several proxies over the same nodes, each on a machine of its own: with its own clock, network,
//! and way to the register. Whoever becomes active runs the whole proxy; a process that ends is
//! started again as a standby.
//!
//! What is real: the authority and all that the keeper of a lease does, the agreement on losses,
//! the proxy. Clients go to whoever believes that it is active; or, over [`Wires`], to any of them,
//! which passes their requests on as in the daemon. Not here: threads.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{FutureExt, join_all};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::ambient;
use crate::cluster::{JITTER, Losses};
use crate::config::Settings;
use crate::coord::{Holder, Me, Record, Seen, Swapped, Unread};
use crate::fleet::simulated::{Becomes, Connecting, Dials, Ends, Kept, Own, Passing, Reaches};
use crate::ids::Generation;
use crate::lease::process::{Clock, Needs, Process};

use super::history::History;
use super::net::Way;
use super::profile::Profile;
use super::proxies::{Ground, Proxy};
use super::register::{Faults, SimRegister};
use super::trace::note;
use super::wires::{self, Wires};

/// No pause between a look at the lease and a send outlasts this.
const GRACE: Duration = Duration::from_secs(20);
/// A clock that is right goes so far in a thousandth.
const RIGHT: u64 = 1_000;
/// None is quicker than another one by more than an eighth.
const QUICKEST: u64 = 1_120;

/// After its clock stood still a proxy takes itself for active until a probe finds the mark of a
/// later one, for so long at most: a probe that had read the marks before, or is not answered, ends
/// within its timeout; the next one follows within the longest pause, and is answered in time.
fn fenced_within(settings: &Settings) -> Duration {
    settings.probe_interval.mul_f64(JITTER.end) + 2 * settings.probe_timeout
}

pub(super) struct Fleet(Rc<Inner>);

struct Inner {
    ground: Ground,
    register: SimRegister,
    /// Where clients go to any proxy.
    wires: Option<Arc<Wires>>,
    history: History,
    machines: RefCell<Vec<Machine>>,
    /// Processes so far.
    count: Cell<u32>,
    over: Cell<bool>,
    /// The last generation.
    begun: Cell<u64>,
    rng: RefCell<SmallRng>,
}

struct Machine {
    clock: Clock,
    lease: Duration,
    /// It is switched off: no process is started on it.
    down: bool,
    present: Option<Present>,
}

/// The process on a machine.
#[derive(Clone)]
struct Present {
    id: u32,
    process: Arc<Process>,
    /// Cancelled when it has ended, by itself or not.
    ended: CancellationToken,
    /// Cancelled for SIGTERM.
    stops: CancellationToken,
    /// The generation under which it is active; 0: it is not.
    generation: Rc<Cell<u64>>,
    /// When it went on after its clock had stood still.
    thawed: Rc<Cell<Option<Instant>>>,
    ends: Ends,
}

impl Present {
    /// Whether it may act.
    fn acts(&self) -> bool {
        !self.process.has_ended() && self.process.has_lease()
    }
}

impl Fleet {
    pub(super) fn new(ground: Ground, history: History, profile: Profile, rng: &mut SmallRng) -> Fleet {
        let lease = Duration::from_millis(rng.random_range(600..1_000));
        let machines: Vec<Machine> = (0..rng.random_range(2..4))
            .map(|_| {
                let (per_thousand, other) = match profile {
                    // Where all depends on what clocks show they differ most.
                    Profile::FleetLate => ([RIGHT, QUICKEST][rng.random_range(0..2)], false),
                    _ => (rng.random_range(RIGHT..=QUICKEST), rng.random_ratio(1, 4)),
                };
                let lease = if other { lease * rng.random_range(5..20) / 10 } else { lease };
                let clock = Clock::new(rng.random_range(1..1_000_000_000), per_thousand);
                Machine { clock, lease, down: false, present: None }
            })
            .collect();
        for (i, machine) in machines.iter().enumerate() {
            note(|| format!("world  machine {i}: lease {:?}, speed {}", machine.lease, machine.clock.per_thousand));
        }
        let longest = machines.iter().map(|machine| machine.lease).max().unwrap_or(lease);
        let shortest = machines.iter().map(|machine| machine.lease).min().unwrap_or(lease);
        ground.net.have_machines(longest);
        // Later than a heartbeat may be it is never heard.
        let late_ms = rng.random_range(0..shortest.as_millis() as u64 / 6);
        let late_one_in = [0, 1, 3][rng.random_range(0..3)];
        // Where it is late, nobody takes over in time.
        let late_one_in = if profile == Profile::FleetHosts { 0 } else { late_one_in };
        let usual = Faults { lost_one_in: 0, late_one_in, late_ms };
        let register = SimRegister::new(usual, rng);
        let wires = profile.passes_on().then(|| Wires::new(rng));
        let (machines, rng) = (RefCell::new(machines), RefCell::new(SmallRng::seed_from_u64(rng.random())));
        let (count, over, begun) = (Cell::new(0), Cell::new(false), Cell::new(0));
        Fleet(Rc::new(Inner { ground, register, wires, history, machines, count, over, begun, rng }))
    }

    pub(super) fn start(&self) {
        for machine in self.machines() {
            spawn_local(self.0.clone().start_again_and_again(machine));
        }
    }

    pub(super) fn machines(&self) -> std::ops::Range<usize> {
        0..self.0.machines.borrow().len()
    }

    pub(super) fn register(&self) -> &SimRegister {
        &self.0.register
    }

    /// The network between them, where there is one.
    pub(super) fn wires(&self) -> Option<&Arc<Wires>> {
        self.0.wires.as_ref()
    }

    /// Cuts the ways from a machine to all others, or back, or opens them again.
    pub(super) fn part(&self, machine: usize, there: bool, back: bool, closed: bool) {
        let Some(wires) = self.wires() else { return };
        for other in self.machines() {
            let ways = [(there, machine, other), (back, other, machine)];
            ways.iter().filter(|(is, ..)| *is).for_each(|(_, from, to)| wires.close(*from, *to, closed));
        }
    }

    /// None of them waits for longer.
    pub(super) fn longest_lease(&self) -> Duration {
        self.0.machines.borrow().iter().map(|machine| machine.lease).max().unwrap_or_default()
    }

    fn present(&self, machine: usize) -> Option<Present> {
        self.0.machines.borrow()[machine].present.clone()
    }

    /// The machine whose proxy has a lease.
    pub(super) fn active(&self) -> Option<usize> {
        self.machines().find(|&machine| self.present(machine).is_some_and(|present| present.acts()))
    }

    /// Which process is on a machine, counted over all.
    pub(super) fn process_on(&self, machine: usize) -> Option<u32> {
        self.present(machine).map(|present| present.id)
    }

    /// SIGKILL. It is started again if the machine is not down.
    pub(super) fn kill(&self, machine: usize) {
        if let Some(present) = self.present(machine) {
            note(|| format!("FAULT  machine {machine}: proxy {} is killed", present.id));
            present.process.end();
            present.ended.cancel();
        }
    }

    /// Switches a machine off, or on again: no process is started on one that is off.
    pub(super) fn down(&self, machine: usize, down: bool) {
        self.0.machines.borrow_mut()[machine].down = down;
    }

    /// SIGTERM.
    pub(super) fn stop(&self, machine: usize) {
        if let Some(present) = self.present(machine) {
            note(|| format!("FAULT  machine {machine}: proxy {} is to stop", present.id));
            present.stops.cancel();
        }
    }

    /// Clients wait at all of them.
    pub(super) fn hurry(&self) {
        self.machines().filter_map(|machine| self.present(machine)).for_each(|present| present.ends.hurry());
    }

    /// SIGSTOP. `unsent`: what it has written just now to these hosts is not sent before it goes
    /// on.
    pub(super) fn pause(&self, machine: usize, unsent: bool) {
        let Some(present) = self.present(machine) else { return };
        note(|| format!("FAULT  machine {machine}: proxy {} is paused", present.id));
        present.process.stop();
        self.hold(machine, unsent);
    }

    /// All of the machine stands still, and its clock: clients have left its proxy when it goes on.
    pub(super) fn freeze(&self, machine: usize) {
        let Some(present) = self.present(machine) else { return };
        note(|| format!("FAULT  machine {machine} and its clock stand still with proxy {}", present.id));
        present.process.freeze();
        present.thawed.set(Some(Instant::now()));
        self.0.ground.doors.borrow_mut().remove(&present.id);
        self.hold(machine, true);
    }

    /// It goes on.
    pub(super) fn thaw(&self, machine: usize) {
        if let Some(present) = self.present(machine) {
            present.thawed.set(Some(Instant::now()));
        }
        self.hold(machine, false);
        self.go_on(machine);
    }

    /// What it writes from now on is not sent yet.
    pub(super) fn hold(&self, machine: usize, holds: bool) {
        for host in 0..self.0.ground.topology.node_count() {
            self.0.ground.net.close(machine, host, Way::Unsent, holds);
        }
    }

    /// SIGCONT, of whoever is there.
    pub(super) fn go_on(&self, machine: usize) {
        note(|| format!("FAULT  machine {machine}: its proxy goes on"));
        if let Some(present) = self.present(machine) {
            present.process.go_on();
        }
    }

    /// One of its threads hangs, or does not any more.
    pub(super) fn hang(&self, machine: usize, hangs: bool) {
        note(|| format!("FAULT  machine {machine}: a thread hangs: {hangs}"));
        if let Some(present) = self.present(machine) {
            present.process.hangs(hangs);
        }
    }

    /// All machines, networks and the register are well.
    pub(super) fn heal(&self) {
        self.0.register.heal();
        self.wires().iter().for_each(|wires| wires.heal());
        for machine in self.machines() {
            self.down(machine, false);
            for host in 0..self.0.ground.topology.node_count() {
                [Way::There, Way::Back, Way::Unsent]
                    .into_iter()
                    .for_each(|way| self.0.ground.net.close(machine, host, way, false));
            }
            self.hang(machine, false);
            self.go_on(machine);
        }
    }

    /// Ends all of them.
    pub(super) async fn end(&self) {
        self.0.over.set(true);
        self.machines().for_each(|machine| self.kill(machine));
        while self.machines().any(|machine| self.present(machine).is_some()) {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Inner {
    async fn start_again_and_again(self: Rc<Inner>, machine: usize) {
        while !self.over.get() {
            self.clone().live(machine).await;
            self.machines.borrow_mut()[machine].present = None;
            let ms = self.rng.borrow_mut().random_range(1..400);
            sleep(Duration::from_millis(ms)).await;
            while !self.over.get() && self.machines.borrow()[machine].down {
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// One process's life.
    async fn live(self: Rc<Inner>, machine: usize) {
        self.count.set(self.count.get() + 1);
        let id = self.count.get();
        let (clock, lease) = {
            let machine = &self.machines.borrow()[machine];
            (machine.clock, machine.lease)
        };
        let (ended, stops) = (CancellationToken::new(), CancellationToken::new());
        let (process, generation) = (Process::new(clock), Rc::new(Cell::new(0)));
        note(|| format!("world  machine {machine}: proxy {id} starts"));
        let me = Me {
            holder: Holder(ambient::random_u64().max(1)),
            address: wires::address(machine),
            fingerprint: self.ground.topology.fingerprint(),
            candidate: true,
        };
        let own = Own { name: "sim".to_owned(), lease, grace: GRACE };
        let fence = {
            let (process, ended) = (process.clone(), ended.clone());
            Box::new(move || {
                process.end();
                ended.cancel();
            })
        };
        let kept = Kept::new(me, own, fence);
        let ends = kept.ends();
        let present = Present {
            id,
            process: process.clone(),
            ended: ended.clone(),
            stops: stops.clone(),
            generation: generation.clone(),
            thawed: Rc::default(),
            ends: ends.clone(),
        };
        self.machines.borrow_mut()[machine].present = Some(present);
        let (passing, passes) = self.pass_on(&kept, (id, machine), &process).unzip();
        let beside = passing.as_ref().map(|passing| self.beside(passing, (id, machine), (&process, &stops)));
        let (tells, becomes) = unbounded_channel();
        let reach = Reach { fleet: self.clone(), machine, id };
        let keeper = spawn_local(process.clone().run(Needs::Turns, kept.run(reach, tells)));
        let mut life = Life { fleet: self.clone(), machine, id, process, generation, ends, passing, proxy: None };
        tokio::select! {
            biased;
            () = ended.cancelled() => {}
            () = life.run(becomes, stops, lease) => {}
        }
        life.process.end();
        self.ground.doors.borrow_mut().remove(&id);
        self.ground.net.kill_proxy(id);
        let mut panicked = false;
        for task in [Some(keeper), passes].into_iter().flatten().chain(beside.into_iter().flatten()) {
            task.abort();
            panicked |= task.await.is_err_and(|error| error.is_panic());
        }
        if let Some(proxy) = life.proxy {
            panicked |= proxy.end().await;
        }
        if panicked {
            self.history.violation("a part of a proxy panicked".into());
        }
        note(|| format!("world  machine {machine}: proxy {id} has ended"));
    }

    /// A process takes clients before it is active, and passes their requests on.
    fn pass_on(
        &self,
        kept: &Kept,
        (id, machine): (u32, usize),
        process: &Arc<Process>,
    ) -> Option<(Passing, JoinHandle<()>)> {
        let wires = self.wires.clone()?;
        let (door, clients) = unbounded_channel();
        self.ground.doors.borrow_mut().insert(id, vec![door]);
        let longest = self.machines.borrow().iter().map(|machine| machine.lease).max().unwrap_or_default();
        let come = (clients, wires.listen(machine));
        let connects = Box::new(move |address| -> Connecting { wires.clone().connect(machine, address).boxed() });
        let (passing, work) = kept.passes_on(longest * 2, connects, come);
        Some((passing, spawn_local(process.clone().run(Needs::Turns, work))))
    }

    /// What a process does beside that.
    fn beside(
        self: &Rc<Inner>,
        passing: &Passing,
        (id, machine): (u32, usize),
        (process, stops): (&Arc<Process>, &CancellationToken),
    ) -> Vec<JoinHandle<()>> {
        let reach = passing.reach(&self.ground.settings, self.dials((id, machine)), stops.clone());
        let takes = self.clone().take_while_suspended(id, passing.clone());
        vec![spawn_local(process.clone().run(Needs::Turns, reach)), spawn_local(takes)]
    }

    /// How a process reaches a server by its name.
    fn dials(&self, (id, machine): (u32, usize)) -> Dials {
        let (net, topology) = (self.ground.net.clone(), self.ground.topology.clone());
        Box::new(move |server| {
            let node = topology.nodes().find(|node| *topology.addr(*node) == server);
            let at = net.address(node.map_or(0, |node| node.index()));
            net.dial((id, machine, false), at).boxed()
        })
    }

    /// As the daemon's doors do: its workers stand still, and take nobody.
    async fn take_while_suspended(self: Rc<Inner>, id: u32, passing: Passing) {
        // Those of a standby.
        let Some(own) = self.ground.doors.borrow().get(&id).cloned() else { return };
        loop {
            passing.is_suspended(true).await;
            note(|| format!("world  proxy {id} is suspended"));
            let instead = |doors| self.ground.doors.borrow_mut().get_mut(&id).map(|own| std::mem::replace(own, doors));
            let workers = instead(own.clone());
            passing.is_suspended(false).await;
            if let Some(workers) = workers {
                instead(workers);
            }
        }
    }

    /// The active proxy's workers take what others pass on, too.
    fn take_from_others(&self, id: u32, generation: Generation, passing: &Passing) {
        let workers = self.ground.doors.borrow().get(&id).cloned().unwrap_or_default();
        let next = AtomicUsize::new(0);
        passing.serve(generation, move |stream| {
            let at = next.fetch_add(1, Ordering::Relaxed) % workers.len().max(1);
            // An error: it has ended, and the connection with it.
            if let Some(worker) = workers.get(at) {
                let _ = worker.send(stream);
            }
        });
    }

    /// One proxy acts at a time, and none after a later generation has.
    fn check(&self) {
        let machines = self.machines.borrow();
        let acting = machines.iter().filter_map(|machine| machine.present.as_ref()).filter(|p| p.acts());
        let (thawed, acting): (Vec<_>, Vec<_>) = acting.partition(|present| present.thawed.get().is_some());
        let acting: Vec<_> = acting.iter().map(|present| (present.id, present.generation.get())).collect();
        if acting.len() > 1 {
            self.history.violation(format!("proxies {acting:?} have a lease at the same time"));
        }
        let marked = self.ground.net.highest_mark();
        if let Some((id, generation)) = acting.iter().find(|(_, generation)| (1..marked).contains(generation)) {
            self.history.violation(format!("proxy {id} acts in generation {generation} after {marked} has acted"));
        }
        // By its clock it has a lease, but no client asks it anything.
        for present in thawed.iter().filter(|present| !present.process.is_stopped()) {
            let generation = present.generation.get();
            let outdone = self.ground.net.outdone(generation).filter(|_| generation > 0);
            let since = present.thawed.get().zip(outdone).map(|(thawed, outdone)| thawed.max(outdone));
            if since.is_some_and(|since| since.elapsed() > fenced_within(&self.ground.settings)) {
                self.history.violation(format!("proxy {} acts on after its clock stood still", present.id));
            }
        }
    }
}

/// A process under way.
struct Life {
    fleet: Rc<Inner>,
    machine: usize,
    id: u32,
    process: Arc<Process>,
    /// See [`Present`].
    generation: Rc<Cell<u64>>,
    ends: Ends,
    /// Where clients go to any proxy.
    passing: Option<Passing>,
    /// While it is active.
    proxy: Option<Proxy>,
}

impl Life {
    /// From a standby to its end, which it has `lease` for once it is told to stop.
    async fn run(&mut self, mut becomes: UnboundedReceiver<Becomes>, stops: CancellationToken, lease: Duration) {
        let mut until = None;
        loop {
            tokio::select! {
                biased;
                next = becomes.recv() => match next {
                    Some(Becomes::Active(generation, losses)) => self.begin(generation, losses, stops.is_cancelled()),
                    // The keeper panicked: that is told of at the end.
                    Some(Becomes::Over) | None => return,
                },
                () = stops.cancelled(), if until.is_none() => {
                    self.stop().await;
                    until = Some(Instant::now() + lease);
                }
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return,
            }
        }
    }

    /// It is active.
    fn begin(&mut self, generation: Generation, losses: Arc<dyn Losses>, is_to_stop: bool) {
        let Life { fleet, machine, id, .. } = self;
        note(|| format!("world  machine {machine}: proxy {id} is active, generation {generation}"));
        self.generation.set(generation.0);
        let before = fleet.begun.replace(generation.0);
        if before >= generation.0 {
            fleet.history.violation(format!("generation {generation} begins after {before}"));
        }
        if is_to_stop {
            return self.ends.stopped();
        }
        self.proxy = Some(fleet.ground.start((*id, *machine), losses, Some(&self.process)));
        if let Some(passing) = &self.passing {
            fleet.take_from_others(*id, generation, passing);
        }
    }

    /// SIGTERM.
    async fn stop(&mut self) {
        self.fleet.ground.doors.borrow_mut().remove(&self.id);
        let Some(proxy) = &mut self.proxy else {
            self.ends.leave();
            self.passing.iter().for_each(Passing::end);
            return;
        };
        if let Some(passing) = &self.passing {
            self.process.clone().run(Needs::Turns, passing.hand_over()).await;
        }
        proxy.shutdown.cancel();
        if proxy.have_stopped().await {
            self.fleet.history.violation("a part of a proxy panicked".into());
        }
        self.passing.iter().for_each(Passing::serve_no_more);
        self.ends.stopped();
    }
}

/// What a process reaches.
struct Reach {
    fleet: Rc<Inner>,
    machine: usize,
    id: u32,
}

impl Reaches for Reach {
    async fn read(&self, patience: Duration) -> Result<Seen, Unread> {
        self.fleet.register.read(self.machine, patience).await
    }

    async fn swap(&self, seen: Seen, new: Record, patience: Duration) -> Result<Swapped, Unread> {
        self.fleet.register.swap(self.machine, (seen, new), patience).await
    }

    async fn ask_servers(&self, question: &str, patience: Duration) -> (Vec<Vec<u8>>, usize) {
        let net = &self.fleet.ground.net;
        let servers = self.fleet.ground.topology.node_count();
        let asks = (0..servers).map(|node| {
            timeout(patience, async move {
                let mut stream = net.dial((self.id, self.machine, false), net.address(node)).await.ok()?;
                stream.write_all(question.as_bytes()).await.ok()?;
                let mut answer = Vec::new();
                while !answer.ends_with(b"END\r\n") {
                    if stream.read_buf(&mut answer).await.ok()? == 0 {
                        return None;
                    }
                }
                Some(answer)
            })
        });
        let answers = join_all(asks).await;
        (answers.into_iter().filter_map(|answer| answer.ok().flatten()).collect(), servers)
    }

    fn has_acted(&self) {
        self.fleet.check();
    }
}
