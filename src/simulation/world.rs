//! One world: nodes, a proxy, clients, and what goes wrong, all from one seed.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use crate::ambient;
use crate::cluster::{Losses, NoStandby};
use crate::config::{IoUringMode, ResyncMode, Settings};
use crate::ids::{NodeId, Place, is_reserved};
use crate::ring::{Distribution, ServerSpec, Topology};

use super::clients::{Client, Doors, Habits, expires};
use super::fleet::Fleet;
use super::history::History;
use super::judge::{Call, Outcome};
use super::late::Scheduled;
use super::losses::{Agreed, SimLosses};
use super::nemesis;
use super::net::{Lag, Net, host_at};
use super::node::Shown;
use super::profile::{CutOff, Profile};
use super::proxies::{Ground, Proxy};
use super::trace::{self, note};

/// All nodes being well, everything is mirrored again within this.
const HEALING: Duration = Duration::from_secs(60);
/// Nor do nodes execute more commands than this meanwhile. A refill that goes round in circles
/// would take hours of real time to reach the end of that minute.
const HEALING_COMMANDS: u64 = 500_000;
/// No run takes longer.
const LIFE: Duration = Duration::from_secs(1_200);
/// The two copies of an item end within so many milliseconds: a second, for nodes turn to theirs at
/// different moments, and another one for what was written in the first second after a node's
/// return, before its clock was measured.
const ENDS_APART_MS: u64 = 2_000;

/// The result of one run.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Report {
    pub(super) violations: Vec<String>,
    pub(super) trace: Vec<String>,
    pub(super) operations: usize,
    pub(super) errors: u64,
    /// Keys whose history could not be judged.
    pub(super) unjudged: u64,
    /// Virtual time that it took.
    pub(super) lasted: Duration,
}

/// One run.
pub(super) struct World {
    pub(super) rng: SmallRng,
    pub(super) net: Arc<Net>,
    pub(super) settings: Settings,
    pub(super) topology: Arc<Topology>,
    pub(super) history: History,
    /// Where proxies agree on losses; empty where one proxy is all there is.
    agreed: Option<Arc<Mutex<Agreed>>>,
    doors: Doors,
    /// Where there are several proxies.
    pub(super) fleet: Option<Fleet>,
    proxy: Option<Proxy>,
    proxies: u32,
    pub(super) operator: Client,
    habits: Habits,
    pub(super) cut_off: Option<CutOff>,
    /// Items that only a backup holds at first, under keys that no client writes; and a backup's
    /// values of keys for which the primary has another value.
    orphans: Vec<(String, String)>,
    twice: Vec<(String, String)>,
}

/// Runs one seed.
pub(super) fn run(seed: u64, profile: Profile, traced: bool) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing of the system");
    LocalSet::new().block_on(&runtime, async move {
        trace::begin(traced);
        let begun = Instant::now();
        ambient::simulated::begin(seed);
        let mut world = World::new(seed, profile);
        if timeout(LIFE, world.live(profile)).await.is_err() {
            world.history.violation(format!("it has no end within {LIFE:?}"));
        }
        ambient::simulated::end();
        let violations = world.history.verdict(profile.allows_errors(), &trace::take_seen());
        let (operations, errors) = (world.history.op_count(), world.history.error_count());
        let unjudged = world.history.unjudged_count();
        Report { violations, trace: trace::take(), operations, errors, unjudged, lasted: begun.elapsed() }
    })
}

impl World {
    fn new(seed: u64, profile: Profile) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let shapes: &[(usize, usize)] = match profile {
            Profile::Witness => &[(2, 1), (1, 2)],
            Profile::TwoLeaders | Profile::HalfFilled | Profile::BothDown => &[(1, 1)],
            _ => &[(1, 1), (1, 1), (2, 1), (1, 2), (2, 2)],
        };
        let (primaries, backups) = shapes[rng.random_range(0..shapes.len())];
        let mut settings = settings(&mut rng, primaries, backups);
        if profile == Profile::Adoption {
            settings.resync_rate = Some(rng.random_range(6..100));
        }
        if profile == Profile::Stranger {
            settings.probe_interval = Duration::from_secs(3);
        }
        let topology = Arc::new(Topology::new(&settings.primaries, &settings.backups, settings.distribution));
        let lag = Lag { one_in: [2, 4, 8, 40][rng.random_range(0..4)], most_ms: rng.random_range(0..=3) };
        let net = Net::new(primaries + backups, lag, &mut rng);
        note(|| {
            format!(
                "world  seed {seed}, {profile:?}, {primaries}+{backups} nodes, {} workers, {lag:?}",
                settings.threads
            )
        });
        let history = History::new();
        let doors = Doors::default();
        let cut_off = (profile == Profile::Adoption).then(|| CutOff::ALL[rng.random_range(0..CutOff::ALL.len())]);
        let habits = habits(&mut rng, profile, &net);
        let operator = Client::new(
            0,
            SmallRng::seed_from_u64(rng.random()),
            Habits { keys: habits.keys.iter().cloned().chain(cold_keys()).collect(), ..habits.clone() },
            history.clone(),
            doors.clone(),
        );
        let agreed = (profile == Profile::Isolated).then(|| Agreed::new(&mut rng));
        let ground =
            Ground { net: net.clone(), settings: settings.clone(), topology: topology.clone(), doors: doors.clone() };
        let fleet = profile.has_fleet().then(|| Fleet::new(ground, history.clone(), profile, &mut rng));
        World {
            rng,
            net,
            settings,
            topology,
            history,
            agreed,
            doors,
            fleet,
            proxy: None,
            proxies: 0,
            operator,
            habits,
            cut_off,
            orphans: Vec::new(),
            twice: Vec::new(),
        }
    }

    /// Both nodes of every pair hold items before any proxy has seen them.
    fn prefill(&mut self) {
        let keys: Vec<String> = self.habits.keys.iter().cloned().chain(cold_keys()).collect();
        for (i, key) in keys.into_iter().enumerate() {
            let value = |place: Place| {
                let number = 1_000_000_000 * (1 + place as u64) + 1_000 * i as u64;
                if key.starts_with('n') { number.to_string() } else { format!("<{number}>") }
            };
            let (first, second) = (value(Place::Primary), value(Place::Backup));
            let cold = key.starts_with("cold");
            let (mine, theirs) = match self.rng.random_range(0..6) {
                0 => (Some(&first), None),
                1 => (Some(&first), Some(&first)),
                // If a client deletes one of them, and the proxy dies before it answers, the other
                // one may be left.
                2 if cold => (Some(&first), Some(&second)),
                3 if !cold => (None, None),
                _ => (None, Some(&second)),
            };
            let pair = self.topology.pair_of(key.as_bytes());
            for (place, value) in [(Place::Primary, mine), (Place::Backup, theirs)] {
                if let (Some(node), Some(value)) = (self.topology.node_at(pair, place), value) {
                    self.net.lock().host(node.index()).node.put(key.as_bytes(), value.as_bytes(), 0, 0);
                }
            }
            note(|| format!("world  {key}: primary {mine:?}, backup {theirs:?}"));
            match (mine, theirs) {
                (Some(value), theirs) => {
                    if let Some(theirs) = theirs.filter(|theirs| *theirs != value) {
                        self.twice.push((key.clone(), theirs.clone()));
                    }
                    let op = self.history.call(98, Some(&key), Call::Set(value.clone()));
                    self.history.answer(op, Outcome::Stored);
                }
                (None, Some(value)) => {
                    self.history.call(98, Some(&key), Call::Arrive(value.clone()));
                    if cold {
                        self.orphans.push((key, value.clone()));
                    }
                }
                (None, None) => {}
            }
        }
    }

    /// Checks that what only a backup held is still there. After a `flush_all` it need not be.
    fn check_orphans(&self) {
        if self.history.was_flushed() {
            return;
        }
        let inner = &mut *self.net.lock();
        for (key, value) in &self.orphans {
            let pair = self.topology.pair_of(key.as_bytes());
            let node = self.topology.node_at(pair, Place::Primary).map_or(0, NodeId::index);
            let found = inner.host(node).node.contents().remove(key.as_bytes()).map(|(value, ..)| value);
            if found.as_deref() != Some(value.as_bytes()) {
                let found = found.map(|found| trace::show(&found));
                self.history.violation(format!("only a backup held {key} = {value}, and now it is {found:?}"));
            }
        }
    }

    /// This node's memory is lost, and with it the items that only it holds.
    pub(super) fn forget_orphans_on(&mut self, node: usize) {
        let topology = self.topology.clone();
        let stands = |key: &str| topology.node_at(topology.pair_of(key.as_bytes()), Place::Backup).map(NodeId::index);
        self.orphans.retain(|(key, _)| stands(key) != Some(node));
    }

    /// A primary's memory is lost: where the backup held another value, that is the one that is
    /// left.
    pub(super) fn expect_the_backups_word(&self) {
        for (key, value) in &self.twice {
            self.history.call(99, Some(key), Call::Set(value.clone()));
        }
    }

    /// What only a backup holds may be lost now, or not: it is not checked any more.
    pub(super) fn forget_orphans(&mut self) {
        self.orphans.clear();
    }

    async fn live(&mut self, profile: Profile) {
        if profile == Profile::Adoption {
            self.prefill();
        }
        match &self.fleet {
            Some(fleet) => fleet.start(),
            None => self.start_proxy(),
        }
        if profile != Profile::Adoption {
            self.mirrored("at the start").await;
            self.operator.fill().await;
        }
        let stop = Rc::new(Cell::new(false));
        let hands = if profile == Profile::Stranger { 0 } else { self.rng.random_range(2..6) };
        let clients: Vec<_> = (0..hands)
            .map(|id| {
                let rng = SmallRng::seed_from_u64(self.rng.random());
                let habits = self.habits.clone();
                let client = Client::new(id + 1, rng, habits, self.history.clone(), self.doors.clone());
                spawn_local(client.run(stop.clone()))
            })
            .collect();
        sleep(Duration::from_millis(self.rng.random_range(0..100))).await;
        nemesis::play(self, profile, &stop).await;
        stop.set(true);
        for client in clients {
            if client.await.is_err() {
                self.history.violation("a client panicked".into());
            }
        }
        self.mirrored("at the end").await;
        if profile == Profile::Evictions {
            // What was evicted on one node only and not written since is found out by a write.
            self.operator.touch_all().await;
        }
        self.operator.read_all().await;
        sleep(Duration::from_millis(100)).await;
        self.compare_copies();
        self.check_orphans();
        match &self.fleet {
            Some(fleet) => fleet.end().await,
            None => self.stop_proxy().await,
        }
    }

    /// The keys that clients use.
    pub(super) fn hot_keys(&self) -> Vec<String> {
        self.habits.keys.clone()
    }

    /// Waits until every pair is mirrored.
    pub(super) async fn mirrored(&mut self, when: &str) {
        let deadline = Instant::now() + HEALING;
        let commands = self.net.executed();
        loop {
            let status = self.operator.ask("resync status\r\n").await.unwrap_or_default();
            let commands = self.net.executed() - commands;
            if commands > HEALING_COMMANDS {
                // In virtual time the healing would end at last, and this would go unnoticed.
                return self.history.violation(format!("{when}: not mirrored, and {commands} commands executed"));
            }
            if status.iter().any(|line| line == "STAT mirrored 1") {
                note(|| "world  everything is mirrored".to_owned());
                return;
            }
            if Instant::now() > deadline {
                let states: Vec<_> = status.iter().filter(|l| l.contains("state") || l.contains("reason")).collect();
                return self.history.violation(format!("{when}: not mirrored within {HEALING:?}: {states:?}"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the proxy says now that everything is mirrored.
    pub(super) async fn says_mirrored(&mut self) -> bool {
        let status = self.operator.ask("resync status\r\n").await.unwrap_or_default();
        status.iter().any(|line| line == "STAT mirrored 1")
    }

    /// Waits until the proxy uses the host that the node's name leads to; `by`: over this address.
    pub(super) async fn followed(&mut self, node: usize, by: Option<SocketAddr>) {
        let host = self.net.leads(node);
        let prefix = format!("STAT {}:address ", self.topology.addr(NodeId(node as u16)));
        let deadline = Instant::now() + HEALING;
        loop {
            let stats = self.operator.ask("stats servers\r\n").await.unwrap_or_default();
            let address = stats.iter().find_map(|line| line.strip_prefix(&prefix)?.parse().ok());
            if address.is_some_and(|at| host_at(at) == host && by.is_none_or(|by| by == at)) {
                return;
            }
            if Instant::now() > deadline {
                let found: Vec<_> = stats.iter().filter(|line| line.contains(":address")).collect();
                return self
                    .history
                    .violation(format!("node {node} is not at host {host} within {HEALING:?}: {found:?}"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What two nodes hold of a pair that is mirrored must be the same.
    pub(super) fn compare_copies(&self) {
        let inner = &mut *self.net.lock();
        for node in self.topology.nodes().filter(|node| self.topology.place(*node) == Place::Backup) {
            for key in inner.host(node.index()).node.marked() {
                let key = trace::show(&key);
                self.history.violation(format!("a backup that does not lead holds {key}, which is stale or won"));
            }
        }
        let copies: Vec<_> = (0..self.topology.node_count()).map(|node| inner.host(node).node.contents()).collect();
        for pair in self.topology.pairs() {
            let of = |place| {
                let node = self.topology.node_at(pair, place).map_or(0, NodeId::index);
                // An item that is about to expire may have done so on one of them.
                let kept = |key: &[u8]| !is_reserved(key) && !expires(&String::from_utf8_lossy(key));
                copies[node].iter().filter(move |(key, _)| kept(key) && self.topology.pair_of(key) == pair)
            };
            let (mut left, mut right) = (of(Place::Primary), of(Place::Backup));
            loop {
                match (left.next(), right.next()) {
                    (None, None) => break,
                    (Some((a, x)), Some((b, y)))
                        if a == b
                            && x.0 == y.0
                            && x.1 == y.1
                            && x.2.is_some() == y.2.is_some()
                            && x.2.unwrap_or(0).abs_diff(y.2.unwrap_or(0)) < ENDS_APART_MS => {}
                    (a, b) => {
                        let show = |item: Option<(&Vec<u8>, &Shown)>| {
                            item.map(|(k, v)| {
                                format!("{} = {} flags {} ends {:?} ms", trace::show(k), trace::show(&v.0), v.1, v.2)
                            })
                        };
                        self.history.violation(format!(
                            "copies of pair {} differ: primary {:?}, backup {:?}",
                            pair.0,
                            show(a),
                            show(b)
                        ));
                        break;
                    }
                }
            }
        }
    }

    // ---- the proxy ------------------------------------------------------------------------------

    pub(super) fn start_proxy(&mut self) {
        self.proxies += 1;
        let id = self.proxies;
        note(|| format!("world  proxy {id} starts"));
        let losses: Arc<dyn Losses> = match &self.agreed {
            Some(agreed) => Arc::new(SimLosses::of(agreed, id)),
            None => Arc::new(NoStandby),
        };
        let (net, settings, topology) = (self.net.clone(), self.settings.clone(), self.topology.clone());
        let ground = Ground { net, settings, topology, doors: self.doors.clone() };
        self.proxy = Some(ground.start((id, 0), losses, None));
    }

    /// The parts of the proxy that may be scheduled late: its workers, and last its control plane.
    pub(super) fn parts(&self) -> Vec<Scheduled> {
        self.proxy.as_ref().map_or_else(Vec::new, |proxy| proxy.parts.clone())
    }

    pub(super) async fn kill_proxy(&mut self) {
        let Some(proxy) = self.proxy.take() else { return };
        note(|| format!("FAULT  proxy {} is killed", proxy.id));
        self.doors.borrow_mut().clear();
        self.net.kill_proxy(proxy.id);
        // A task that has panicked shows by the answers that clients do not get.
        proxy.end().await;
    }

    /// SIGTERM.
    pub(super) async fn stop_proxy(&mut self) {
        let Some(mut proxy) = self.proxy.take() else { return };
        note(|| format!("world  proxy {} is stopped", proxy.id));
        self.doors.borrow_mut().clear();
        proxy.shutdown.cancel();
        if proxy.have_stopped().await {
            self.history.violation("a part of the proxy panicked".into());
        }
        proxy.probes.cancel();
        self.net.kill_proxy(proxy.id);
    }
}

/// Keys that no client uses: the operator alone writes and reads them.
fn cold_keys() -> impl Iterator<Item = String> {
    (0..12).map(|i| format!("cold{i}"))
}

/// What clients do, by what the profile is to find out.
fn habits(rng: &mut SmallRng, profile: Profile, net: &Net) -> Habits {
    let hot = rng.random_range(1..5);
    let mut keys: Vec<String> = (0..hot).map(|i| format!("s{i}")).collect();
    keys.extend((0..rng.random_range(0..3)).map(|i| format!("n{i}")));
    let crowded = matches!(profile, Profile::Evictions | Profile::HalfFilled);
    if crowded {
        // A repair or a copy is disturbed only where many write one key.
        keys = vec!["n0".into()];
    }
    if profile == Profile::Expiry {
        keys = (0..rng.random_range(8..16)).map(|i| format!("e{i}")).collect();
        net.let_clocks_drift(rng);
    }
    if profile.is_meta() {
        keys = (0..rng.random_range(1..4)).map(|i| format!("m{i}")).collect();
        keys.extend((0..rng.random_range(0..3)).map(|i| format!("a{i}")));
    }
    Habits {
        keys,
        think_ms: match profile {
            _ if crowded => 8,
            // Of each key there are more states than of others.
            Profile::MetaAnything => rng.random_range(150..400),
            _ => rng.random_range(20..150),
        },
        flushes: !matches!(profile, Profile::Stranger | Profile::TwoLeaders | Profile::BothDown)
            && !crowded
            && profile != Profile::Expiry
            && rng.random_ratio(1, 3),
        errors_allowed: profile.allows_errors(),
        // (Where it is seen how long they wait they do.)
        gives_up: (profile.has_fleet() && profile != Profile::FleetHosts)
            .then(|| Duration::from_millis(rng.random_range(200..1_500))),
        is_passed_on: profile.passes_on(),
    }
}

fn settings(rng: &mut SmallRng, primaries: usize, backups: usize) -> Settings {
    let specs = |from: usize, count: usize| -> Vec<ServerSpec> {
        (from..from + count).map(|i| format!("node{i}:11211").parse().expect("a server")).collect()
    };
    let ms = Duration::from_millis;
    Settings {
        pool: None,
        primaries: specs(0, primaries),
        backups: specs(primaries, backups),
        distribution: if rng.random() { Distribution::Ketama } else { Distribution::Modula },
        listen: Vec::new(),
        unix_socket: None,
        unix_socket_mode: 0o700,
        operator_commands: true,
        max_clients: 100,
        node_connections: rng.random_range(1..5),
        threads: rng.random_range(1..4),
        // Its clients are in memory.
        io_uring: IoUringMode::Off,
        resync: ResyncMode::Auto,
        timeout: ms(100),
        leader_timeout: ms(800),
        leader_grace: ms(1_000),
        probe_interval: ms(200),
        probe_timeout: ms(150),
        probe_successes: rng.random_range(1..3),
        resync_rate: None,
        resync_memory: 1 << 20,
        resync_latency: Some(Duration::from_millis(1)),
        verify_rate: None,
        item_size_max: 1 << 20,
        client_memory: 16 << 20,
        shutdown_grace: ms(2_000),
        idle_timeout: None,
        fleet: None,
        leave_fleet: false,
    }
}
