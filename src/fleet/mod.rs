//! Several proxies over the same servers, of which one is *active* (see [`crate::coord`]).
//!
//! A process begins as a *standby*: it accepts clients, and forwards their requests to the active
//! proxy. When that one has ended, it becomes active itself: it starts over the servers as any
//! proxy does after the end of the one before, and serves clients as any proxy does. Connections
//! that it forwarded before, it forwards to itself from then on. Once it is replaced, the process
//! ends.
//!
//! - `register`: where the proxies agree, opened.
//! - `keeper`: the lease, by a thread of its own.
//! - `asked`: whom the keeper asks; `trouble`: why it was asked in vain.
//! - `agreement`: losses, agreed on through the record.
//! - `survey`: what servers' marks say of earlier turns; `leave`: deleting these marks.
//! - `peers`: how proxies talk to each other; `follow`: where the active one is.
//! - `reach`: what this proxy reaches of the servers; `standbys`: what the others say of that.
//! - `doors`: a standby's listening sockets; `relay`: its clients; `admin`: its HTTP listener.
//! - `over`: why a standby's clients are closed.
//! - `stream`: a connection that is passed on; `shown`: what `stats proxy` answers.

mod admin;
mod agreement;
mod asked;
mod doors;
mod follow;
mod ghosts;
mod keeper;
mod leave;
mod over;
mod peers;
mod reach;
mod register;
mod relay;
mod shown;
#[cfg(test)]
pub(crate) mod simulated;
mod standbys;
mod stream;
mod survey;
#[cfg(test)]
mod testing;
mod trouble;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ambient;
use crate::backend::marker::FleetMark;
use crate::cluster::{Losses, Turn};
use crate::config::{FleetSettings, Settings};
use crate::coord::{Burden, Event, Holder, Me, Record};
use crate::daemon::Listeners;
use crate::ids::Generation;
use crate::lease;
use crate::reload::Reload;
use crate::ring::Topology;
use crate::server;

use agreement::Agreement;
use asked::Asked;
use doors::Doors;
use follow::Follower;
use ghosts::Ghosts;
use keeper::{Keeper, Order, Role, Tools};
pub use leave::leave;
use peers::{Caller, Host, Serves, Serving};
use reach::Reach;
use register::Opened;
use relay::{Shared, Target};
use shown::Shown;
use survey::Surveyor;

/// How a process of a fleet ends that is to be started again, as a standby (`EX_TEMPFAIL`).
pub const EXIT_FENCED: u8 = 75;

/// How long a planned change waits for requests that other proxies have passed on. Then this one
/// stops, and answers those that it has. (Clients that do not read delay no other ones: see
/// `relay`.)
const LEAVING: Duration = Duration::from_millis(150);

/// A request waits so long in any case: with a shorter `--takeover-wait` it would be refused while
/// the connection to an active proxy that is well comes about.
const LEAST_WAIT: Duration = Duration::from_millis(100);

/// How long the log is given to be written.
const LAST_WORDS: Duration = Duration::from_millis(20);

fn surveyor(settings: &Settings) -> Surveyor {
    Surveyor::new(settings.primaries.iter().chain(&settings.backups).map(|server| server.addr.clone()))
}

/// What a standby and an active proxy share.
struct Fleet {
    settings: Settings,
    own: FleetSettings,
    /// Where other proxies reach this one.
    address: String,
    keeper: Keeper,
    orders: Receiver<Order>,
    serves: Arc<Serves>,
    shared: Arc<Shared>,
    /// Takes no clients any more.
    taking: CancellationToken,
    /// The operator wants another proxy to be active, or this one to stop.
    hands_over: CancellationToken,
    runtime: Handle,
}

/// Called before the process ends because this proxy was replaced.
type AtEnd = Box<dyn Fn() + Send>;

/// Serves clients as a standby, and as the active proxy once no other one is. Blocks until
/// `shutdown` is cancelled, or this proxy was told to hand over, and everything is answered; then
/// returns the exit code. `ready` is called when clients are taken; `at_end` before the process
/// ends because it was replaced.
///
/// # Errors
///
/// What the system refused; a register that will never do.
pub fn run(
    settings: Settings,
    own: FleetSettings,
    listeners: Listeners,
    (shutdown, reload): (CancellationToken, Arc<Reload>),
    ready: impl FnOnce() -> std::io::Result<()>,
    at_end: impl Fn() + Send + 'static,
) -> std::io::Result<u8> {
    lease::end();
    let holder = Holder(ambient::random_u64().max(1));
    let opened = register::open(&own, holder)?;
    let peers = peers::bind(&settings, &own)?;
    let fleet = Fleet::start(settings, own, (holder, opened), peers, (shutdown.clone(), Box::new(at_end)))?;
    let doors = fleet.take_clients(&listeners, &reload)?;
    reload.stands_by(fleet.in_one_line());
    ready()?;
    let ended = fleet.stand_by((listeners, doors), reload);
    fleet.shared.over.cancel();
    ended?;
    // Roles go one way in a process: it is to be started again, as a standby.
    let again = fleet.hands_over.is_cancelled() && !shutdown.is_cancelled();
    Ok(if again { EXIT_FENCED } else { 0 })
}

/// This machine's name.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl Fleet {
    fn start(
        settings: Settings,
        own: FleetSettings,
        (holder, opened): (Holder, Opened),
        (peers, address): (TcpListener, String),
        (shutdown, at_end): (CancellationToken, AtEnd),
    ) -> std::io::Result<Fleet> {
        let hands_over = shutdown.child_token();
        // A thread of its own: the control plane's, and the workers', stand still without a lease.
        let driver = Builder::new_current_thread().enable_all().build()?;
        let runtime = driver.handle().clone();
        let name = opened.name.clone();
        let (send_order, orders) = channel();
        let former = Arc::<AtomicBool>::default();
        let me = (holder, address.clone(), former.clone());
        let keeper = keep(&settings, &own, me, opened, at_end, send_order.clone())?;
        let (shows, target) = watch::channel(Target::default());
        let (serves, served) = watch::channel(None);
        let shared = share(&settings, &own, name.clone(), (&keeper, address.clone(), former), target);
        runtime.spawn(peers::listen(peers, Host { name, serves: served.clone(), lease: own.lease }));
        runtime.spawn(Follower::new(keeper.known.clone(), served, shows, shared.clone()).run());
        runtime.spawn(Ghosts::new(&settings, keeper.known.clone(), shared.clone()).run());
        runtime.spawn(Reach::new(&settings, keeper.known.clone(), shared.clone(), hands_over.clone()).run());
        runtime.spawn(async move {
            shutdown.cancelled().await;
            let _ = send_order.send(Order::Stop);
        });
        // It ends with the process: the last clients are answered after `over`.
        std::thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(move || driver.block_on(std::future::pending::<()>()))?;
        let (taking, serves) = (CancellationToken::new(), Arc::new(serves));
        Ok(Fleet { settings, own, address, keeper, orders, serves, shared, taking, hands_over, runtime })
    }

    /// Takes clients until it becomes active: their requests are passed on. Returns what it takes
    /// them on later, while its workers stand still. All that can fail is done before it becomes
    /// active: a failure after that would leave the record its own, and no proxy acting.
    fn take_clients(&self, listeners: &Listeners, reload: &Arc<Reload>) -> std::io::Result<Doors> {
        let (known, shown) = (self.keeper.known.clone(), self.shared.shown.clone());
        let standby = move || {
            let known = known.borrow();
            admin::Standby { ready: shown.is_ready_standby(&known), active: known.active.clone() }
        };
        let _inside = self.runtime.enter();
        let doors = Doors::of(listeners)?;
        doors.open(&self.shared, &self.taking)?;
        doors::open_for_operators(listeners, &self.shared, (standby, reload), &self.taking)?;
        Ok(doors)
    }

    /// A standby's state, for the service manager.
    fn in_one_line(&self) -> impl Fn() -> String + Send + Sync + 'static {
        let (known, shown) = (self.keeper.known.clone(), self.shared.shown.clone());
        move || shown.in_one_line(&known.borrow())
    }

    fn stand_by(&self, doors: (Listeners, Doors), reload: Arc<Reload>) -> std::io::Result<()> {
        match self.orders.recv() {
            Ok(Order::Begin { generation, predecessor, before }) => {
                self.act((generation, predecessor, before), doors, reload)
            }
            Ok(Order::Stop) => {
                self.taking.cancel();
                {
                    let _inside = self.runtime.enter();
                    doors.1.end(&self.shared);
                }
                stand_by_no_more(&self.keeper, &self.orders, self.own.lease);
                self.shared.over.cancel();
                let grace = self.settings.shutdown_grace;
                // Clients that are left then are cut off.
                let _ = self.runtime.block_on(async { timeout(grace, none_left(&self.shared.clients)).await });
                Ok(())
            }
            // The keeper ends with the process.
            Ok(Order::Over) | Err(_) => Ok(()),
        }
    }

    /// The active proxy's life.
    fn act(
        &self,
        (generation, predecessor, before): (Generation, Burden, Option<Record>),
        (mut listeners, doors): (Listeners, Doors),
        reload: Arc<Reload>,
    ) -> std::io::Result<()> {
        self.taking.cancel();
        let (workers, handed): (Vec<_>, Vec<_>) =
            (0..self.settings.threads.max(1)).map(|_| mpsc::unbounded_channel()).unzip();
        listeners.handed = handed;
        let (name, address) = (self.shared.me.name.to_string(), self.address.clone());
        let mark = FleetMark { name, generation, address, lease: self.own.lease };
        let turn = turn(mark, (&predecessor, before), self.own.former_grace);
        let agreement = {
            let shared = self.shared.clone();
            let Shown { former, standbys, serves, .. } = &*shared.shown;
            let (former, standbys, serves) = (former.clone(), standbys.clone(), serves.clone());
            let shown = agreement::Shown { former, all: Box::new(move || (shared.show)()), standbys, serves };
            Agreement::new(self.keeper.clone(), turn, predecessor, (shown, self.hands_over.clone()))
        };
        self.keeper.hear_commits(agreement.hears());
        let (leaving, stop) = (CancellationToken::new(), CancellationToken::new());
        let serving = Serving {
            generation,
            hands_on: peers::to_workers(workers),
            leaving: leaving.clone(),
            others: TaskTracker::new(),
            standbys: self.shared.shown.standbys.clone(),
        };
        self.runtime.spawn(hand_over(
            (self.hands_over.clone().cancelled_owned(), stop.clone()),
            serving.clone(),
            (self.keeper.clone(), self.shared.clone()),
        ));
        let serves = self.serves.clone();
        self.runtime.spawn(doors::while_suspended(doors, (self.keeper.known.clone(), self.shared.clone())));
        let operated = server::Operated::Here { aside: Some(&self.runtime), reload: Some(reload) };
        let agreed: (Arc<dyn Losses>, _) = (Arc::new(agreement), operated);
        let ended = server::run_agreed(self.settings.clone(), listeners, stop, agreed, move || {
            serves.send_replace(Some(serving));
            Ok(())
        });
        // Nothing is sent to servers any more.
        self.serves.send_replace(None);
        free_record(&self.keeper, &self.orders, self.own.lease);
        ended
    }
}

/// A standby ends. If it has claimed the record in the same moment, the record is freed: otherwise
/// the others would wait until the lease is over, and then for a proxy that never acted.
fn stand_by_no_more(keeper: &Keeper, orders: &Receiver<Order>, patience: Duration) {
    keeper.tell(Event::Leave);
    if let Ok(Order::Begin { .. }) = orders.recv_timeout(patience) {
        free_record(keeper, orders, patience);
    }
}

fn free_record(keeper: &Keeper, orders: &Receiver<Order>, patience: Duration) {
    keeper.tell(Event::Stopped);
    let deadline = Instant::now() + patience;
    loop {
        match orders.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Order::Over) => return,
            Ok(_) => {}
            Err(_) => {
                return tracing::warn!(
                    "the record cannot be freed: the next active proxy waits for the end of the lease"
                );
            }
        }
    }
}

/// Starts the thread that keeps the lease.
fn keep(
    settings: &Settings,
    own: &FleetSettings,
    (holder, address, former): (Holder, String, Arc<AtomicBool>),
    opened: Opened,
    at_end: AtEnd,
    orders: Sender<Order>,
) -> std::io::Result<Keeper> {
    let topology = Topology::new(&settings.primaries, &settings.backups, settings.distribution);
    let me = Me { holder, address, fingerprint: topology.fingerprint(), candidate: own.candidate };
    let fence = Box::new(move || {
        at_end();
        // The log has a thread of its own. Nothing is sent to servers or clients meanwhile.
        std::thread::sleep(LAST_WORDS);
        std::process::exit(i32::from(EXIT_FENCED));
    });
    let Opened { register, name, place } = opened;
    let (surveyor, name) = (surveyor(settings), name.to_string());
    keeper::start(me, Tools { name, place, lease: own.lease, former, fence }, Asked { register, surveyor }, orders)
}

fn share(
    settings: &Settings,
    own: &FleetSettings,
    name: Arc<str>,
    (keeper, address, former): (&Keeper, String, Arc<AtomicBool>),
    target: watch::Receiver<Target>,
) -> Arc<Shared> {
    let shown = Shown { former, ..Shown::default() };
    let (shown, known, hurries) = (Arc::new(shown), keeper.known.clone(), keeper.clone());
    let connects = peers::over_tcp();
    let me = Caller { name, address: address.clone(), candidate: own.candidate, lease: own.lease, connects };
    Arc::new(Shared {
        me,
        target,
        takeover_wait: own.takeover_wait.max(LEAST_WAIT),
        clients: TaskTracker::new(),
        max_clients: settings.max_clients,
        idle_timeout: settings.idle_timeout,
        links: TaskTracker::new(),
        shown: shown.clone(),
        hurry: Box::new(move || hurries.hurry()),
        show: Box::new(move || shown.lines(&known.borrow(), &address)),
        over: CancellationToken::new(),
    })
}

fn turn(mark: FleetMark, (predecessor, before): (&Burden, Option<Record>), grace: Duration) -> Turn {
    Turn { mark, term: predecessor.term, former: predecessor.awaits.then(|| in_words(before)), grace }
}

/// The former active proxy, which is not known to be gone, by its record.
fn in_words(before: Option<Record>) -> String {
    let Some(Record { generation, address, awaits, .. }) = before else {
        return "some proxy with an open session".to_owned();
    };
    let earlier = if awaits { ", or an earlier one" } else { "" };
    format!("that of generation {generation}, which was reached on {address}{earlier}")
}

/// Completes when all that were counted are gone.
async fn none_left(counted: &TaskTracker) {
    counted.close();
    counted.wait().await;
}

/// At a planned change nothing new comes from other proxies before this one stops: what they have
/// sent is answered first, so that no client of theirs sees an error.
async fn hand_over(
    (leaves, stop): (impl Future<Output = ()>, CancellationToken),
    serving: Serving,
    (keeper, shared): (Keeper, Arc<Shared>),
) {
    leaves.await;
    if let Err(why) = serving.standbys.successors() {
        // (That may be intended: all are being stopped, say.)
        tracing::warn!(why, "nobody is known to take over: clients wait, unless another proxy is started");
    }
    let mut known = keeper.known.clone();
    tokio::spawn(async move {
        // A suspended proxy can neither answer clients nor speak to servers, and its workers stand
        // still, so that the grace would never be over. This may happen at any moment of the stop.
        if known.wait_for(|known| known.role == Role::Suspended).await.is_ok() {
            keeper.quit();
        }
    });
    serving.leaving.cancel();
    let answered = async {
        none_left(&serving.others).await;
        none_left(&shared.links).await;
    };
    // Else they hear of it as where a proxy ends unasked.
    let _ = timeout(LEAVING, answered).await;
    stop.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::{LONG, shared};

    fn serving() -> Serving {
        Serving {
            generation: Generation(1),
            hands_on: peers::to_workers(Vec::new()),
            leaving: CancellationToken::new(),
            others: TaskTracker::new(),
            standbys: Arc::default(),
        }
    }

    fn sharing() -> Arc<Shared> {
        Arc::new(shared(watch::channel(Target::default()).1, LONG, LONG))
    }

    /// SIGTERM comes as the record is claimed; or before.
    #[test]
    fn a_record_that_is_claimed_while_its_standby_ends_is_freed() {
        let begin = || Order::Begin { generation: Generation(2), predecessor: Burden::default(), before: None };
        for (first, told) in [(begin(), vec!["Leave", "Stopped"]), (Order::Over, vec!["Leave"])] {
            let (keeper, tells) = Keeper::for_tests(Role::Standby);
            let (order, orders) = channel();
            order.send(first).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || stand_by_no_more(&keeper, &orders, LONG));
                for event in told {
                    let said = tells.recv_timeout(LONG).expect("the keeper is told");
                    assert!(format!("{said:?}").contains(event), "{said:?}");
                }
                let _ = order.send(Order::Over);
            });
            assert!(tells.try_recv().is_err(), "no more");
        }
    }

    /// Else a request of a client elsewhere would come when nobody takes it any more.
    #[tokio::test(start_paused = true)]
    async fn an_active_proxy_stops_when_the_others_have_been_answered_or_have_had_their_time() {
        for (answered, links_first) in [(true, false), (true, true), (false, false)] {
            let (keeper, _told) = Keeper::for_tests(Role::Active);
            let (serving, shared, stop) = (serving(), sharing(), CancellationToken::new());
            // Another proxy, and a client of its own that it had as a standby.
            let (other, link) = (serving.others.token(), shared.links.token());
            tokio::spawn(hand_over((async {}, stop.clone()), serving.clone(), (keeper, shared)));
            tokio::time::sleep(LEAVING / 2).await;
            assert!(serving.leaving.is_cancelled() && !stop.is_cancelled());
            let begun = tokio::time::Instant::now();
            if answered {
                let (first, second) = if links_first { (link, other) } else { (other, link) };
                drop(first);
                tokio::time::sleep(LEAVING / 8).await;
                assert!(!stop.is_cancelled());
                drop(second);
                stop.cancelled().await;
                assert!(begun.elapsed() < LEAVING / 4);
            } else {
                stop.cancelled().await;
                assert!(begun.elapsed() >= LEAVING / 4);
            }
        }
    }

    /// It can say nothing to servers, and so not that it has stopped.
    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_is_to_stop_and_is_suspended_ends_at_once() {
        for before in [true, false] {
            let (mut keeper, told) = Keeper::for_tests(Role::Active);
            let (shows, known) = watch::channel(keeper::Known { role: Role::Active, ..keeper::Known::default() });
            keeper.known = known;
            let suspend = || shows.send_modify(|known| known.role = Role::Suspended);
            if before {
                suspend();
            }
            hand_over((async {}, CancellationToken::new()), serving(), (keeper, sharing())).await;
            assert!(before || told.try_recv().is_err());
            suspend();
            tokio::time::sleep(LEAVING).await;
            assert!(matches!(told.try_recv(), Ok(keeper::Told::Quit)), "suspended before: {before}");
        }
    }
}
