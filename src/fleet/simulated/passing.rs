//! Test: what a proxy in a simulated world takes connections with that its workers do not: the real
//! relays and the real line between proxies, over a network that the world has made.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, LocalBoxFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc::UnboundedReceiver, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::NodeStream;
use crate::config::Settings;
use crate::fleet::follow::Follower;
use crate::fleet::hand_over;
use crate::fleet::keeper::{Keeper, Role};
use crate::fleet::peers::{Caller, Host, Serves, Serving};
use crate::fleet::reach::{Reach, answers};
use crate::fleet::relay::{self, Shared, Target};
use crate::fleet::shown::Shown;
use crate::ids::Generation;
use crate::ring::NodeAddr;
use crate::server::{InMemory, Stream};

use super::Kept;

/// Between two looks whether a proxy is suspended.
const LOOK: Duration = Duration::from_millis(10);

/// More than a world has.
const MAX_CLIENTS: usize = 1_000;

/// How a server is connected to, by its name.
pub(crate) type Dials = Box<dyn Fn(NodeAddr) -> BoxFuture<'static, io::Result<NodeStream>> + Send + Sync>;

/// A connection, and what is cancelled where our own kernel gives it up.
pub(crate) type Line = (DuplexStream, CancellationToken);

/// One in the making.
pub(crate) type Connecting = BoxFuture<'static, io::Result<Line>>;

#[derive(Clone)]
pub(crate) struct Passing(Rc<Inner>);

struct Inner {
    me: Caller,
    takeover_wait: Duration,
    clients: TaskTracker,
    links: TaskTracker,
    shown: Arc<Shown>,
    over: CancellationToken,
    keeper: Keeper,
    serves: Serves,
    serving: RefCell<Option<Serving>>,
    /// What each relay goes by: of several that wait for one channel tokio wakes any one first.
    targets: RefCell<Vec<watch::Sender<Target>>>,
}

impl Kept {
    /// Where requests are passed on by, and what is to be done for that: `clients` and `peers` are
    /// those that come; `connects` reaches another proxy by its address.
    pub(crate) fn passes_on(
        &self,
        takeover_wait: Duration,
        connects: Box<dyn Fn(String) -> Connecting + Send + Sync>,
        come: (UnboundedReceiver<DuplexStream>, UnboundedReceiver<DuplexStream>),
    ) -> (Passing, impl Future<Output = ()> + use<>) {
        let (serves, served) = watch::channel(None);
        let me = Caller {
            name: Arc::from(self.own.name.as_str()),
            address: self.me.address.clone(),
            candidate: self.me.candidate,
            lease: self.own.lease,
            connects: Arc::new(move |address, _, _| {
                let connecting = connects(address);
                async move {
                    let (stream, given_up) = connecting.await?;
                    Ok(Stream::Memory(InMemory::of_line(stream, given_up)))
                }
                .boxed()
            }),
        };
        let inner = Rc::new(Inner {
            me,
            takeover_wait,
            clients: TaskTracker::new(),
            links: TaskTracker::new(),
            shown: Arc::default(),
            over: CancellationToken::new(),
            keeper: self.keeper.clone(),
            serves,
            serving: RefCell::default(),
            targets: RefCell::default(),
        });
        (Passing(inner.clone()), inner.serve(served, come))
    }
}

impl Inner {
    fn shared(&self, target: watch::Receiver<Target>) -> Arc<Shared> {
        let (shown, known, hurries) = (self.shown.clone(), self.keeper.known.clone(), self.keeper.clone());
        let address = self.me.address.clone();
        Arc::new(Shared {
            me: self.me.clone(),
            target,
            takeover_wait: self.takeover_wait,
            clients: self.clients.clone(),
            max_clients: MAX_CLIENTS,
            idle_timeout: None,
            links: self.links.clone(),
            shown: self.shown.clone(),
            hurry: Box::new(move || hurries.hurry()),
            show: Box::new(move || shown.lines(&known.borrow(), &address)),
            over: self.over.clone(),
        })
    }

    async fn serve(
        self: Rc<Self>,
        served: watch::Receiver<Option<Serving>>,
        (mut clients, mut peers): (UnboundedReceiver<DuplexStream>, UnboundedReceiver<DuplexStream>),
    ) {
        let (shows, mut target) = watch::channel(Target::default());
        let host = Host { name: self.me.name.clone(), serves: served.clone(), lease: self.me.lease };
        let follower = Follower::new(self.keeper.known.clone(), served, shows, self.shared(target.clone()));
        let mut work = FuturesUnordered::<LocalBoxFuture<'static, ()>>::new();
        work.push(follower.run().boxed_local());
        let stream = |stream| Stream::Memory(InMemory::new(stream));
        loop {
            tokio::select! {
                biased;
                Ok(()) = target.changed() => {
                    let next = target.borrow_and_update().clone();
                    self.targets.borrow_mut().retain(|tells| tells.send(next.clone()).is_ok());
                }
                Some(client) = clients.recv() => {
                    let (tells, target) = watch::channel(target.borrow().clone());
                    self.targets.borrow_mut().push(tells);
                    work.push(relay::serve(stream(client), self.shared(target), None).boxed_local());
                }
                Some(peer) = peers.recv() => work.push(host.clone().take(stream(peer)).boxed_local()),
                Some(()) = work.next() => {}
                else => return,
            }
        }
    }
}

impl Passing {
    /// It is active: requests of other proxies are handed on so.
    pub(crate) fn serve(&self, generation: Generation, hands_on: impl Fn(DuplexStream) + Send + Sync + 'static) {
        let hands_on = move |stream| {
            if let Stream::Memory(stream) = stream {
                hands_on(stream.into_inner());
            }
        };
        let serving = Serving {
            generation,
            hands_on: Arc::new(hands_on),
            leaving: CancellationToken::new(),
            others: TaskTracker::new(),
            standbys: self.0.shown.standbys.clone(),
        };
        *self.0.serving.borrow_mut() = Some(serving.clone());
        self.0.serves.send_replace(Some(serving));
    }

    /// Looks at the servers as long as it is awaited; cancels that where this proxy is active, and
    /// a standby reaches more.
    pub(crate) fn reach(
        &self,
        settings: &Settings,
        dials: Dials,
        hands_over: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let looks = Box::new(move |server| {
            let dial = dials(server);
            async move { answers(dial.await?).await }.boxed()
        });
        let shared = self.0.shared(watch::channel(Target::default()).1);
        let rings = (&settings.primaries[..], &settings.backups[..]);
        Reach::over(rings, looks, self.0.keeper.known.clone(), shared, hands_over).run()
    }

    /// Completes when this proxy is suspended, or is not any more. (Of several that wait for one
    /// channel tokio wakes any one first: so this one looks.)
    pub(crate) async fn is_suspended(&self, suspended: bool) {
        while (self.0.keeper.known.borrow().role == Role::Suspended) != suspended {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Completes when others have nothing unanswered here any more, or had their time.
    pub(crate) async fn hand_over(&self) {
        let serving = self.0.serving.borrow().clone();
        let Some(serving) = serving else { return };
        let told = (self.0.keeper.clone(), self.0.shared(watch::channel(Target::default()).1));
        hand_over((std::future::ready(()), CancellationToken::new()), serving, told).await;
    }

    /// Nothing is sent to servers any more.
    pub(crate) fn serve_no_more(&self) {
        self.0.serves.send_replace(None);
    }

    /// Its clients are told what they are owed, and closed.
    pub(crate) fn end(&self) {
        self.0.over.cancel();
    }
}
