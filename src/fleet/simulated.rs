//! Test: what a proxy of a fleet is beside its assembly, in a simulated world: who keeps its lease,
//! in virtual time, and where it agrees on losses.

mod passing;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::backend::marker::FleetMark;
use crate::cluster::Losses;
use crate::coord::{Event, Me, Record, Seen, Swapped, Unread};
use crate::ids::Generation;

use super::agreement::{Agreement, Shown};
use super::asked::{Answer, Ask, Found};
use super::keeper::{self, Keeper, Order, Told, Tools, Work};
use super::{survey, turn};

pub(crate) use passing::{Connecting, Dials, Line, Passing};

/// Whom it asks, and for how long at most.
pub(crate) trait Reaches {
    async fn read(&self, patience: Duration) -> Result<Seen, Unread>;
    async fn swap(&self, seen: Seen, new: Record, patience: Duration) -> Result<Swapped, Unread>;
    /// What each server answers, of those that do; and how many there are.
    async fn ask_servers(&self, question: &str, patience: Duration) -> (Vec<Vec<u8>>, usize);
    /// Something was done about an answer, or the time.
    fn has_acted(&self);
}

/// What a proxy says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) name: String,
    pub(crate) lease: Duration,
    pub(crate) grace: Duration,
}

/// What becomes of a proxy.
pub(crate) enum Becomes {
    /// It is active, and agrees on losses so.
    Active(Generation, Arc<dyn Losses>),
    /// Its record is free.
    Over,
}

/// Who keeps its lease.
pub(crate) struct Kept {
    work: Work,
    keeper: Keeper,
    told: UnboundedReceiver<Told>,
    orders: Receiver<Order>,
    me: Me,
    own: Own,
}

/// How it is told that the process is to end.
#[derive(Clone)]
pub(crate) struct Ends(Keeper);

impl Ends {
    /// It is a standby, and stops.
    pub(crate) fn leave(&self) {
        self.0.tell(Event::Leave);
    }

    /// Somebody waits for a new active proxy.
    pub(crate) fn hurry(&self) {
        self.0.hurry();
    }

    /// It has stopped, and nothing is sent to servers any more.
    pub(crate) fn stopped(&self) {
        self.0.tell(Event::Stopped);
    }
}

impl Kept {
    pub(crate) fn new(me: Me, own: Own, fence: Box<dyn Fn() + Send>) -> Kept {
        let (tells, told) = unbounded_channel();
        let (order, orders) = channel();
        let (name, place) = (own.name.clone(), "the simulated register".to_owned());
        let tools = Tools { name, place, lease: own.lease, former: Arc::default(), fence };
        let tells = Arc::new(move |tell| drop(tells.send(tell)));
        let (keeper, work) = keeper::prepare(me.clone(), tools, order, tells);
        Kept { work, keeper, told, orders, me, own }
    }

    pub(crate) fn ends(&self) -> Ends {
        Ends(self.keeper.clone())
    }

    /// Works as the keeper's thread does.
    pub(crate) async fn run(mut self, reaches: impl Reaches, becomes: UnboundedSender<Becomes>) {
        loop {
            let ask = self.work.tick_if_due();
            self.ask(ask, &reaches, &becomes).await;
            tokio::select! {
                biased;
                told = self.told.recv() => {
                    // It has a handle itself.
                    let Some(told) = told else { return };
                    let ask = self.work.told(told);
                    self.ask(ask, &reaches, &becomes).await;
                }
                () = sleep_until(self.work.tick) => {}
            }
        }
    }

    async fn ask(&mut self, mut ask: Option<Ask>, reaches: &impl Reaches, becomes: &UnboundedSender<Becomes>) {
        self.pass_on(becomes);
        reaches.has_acted();
        while let Some(what) = ask {
            let answer = answer(reaches, what, self.work.pause).await;
            ask = self.work.heard(answer);
            self.pass_on(becomes);
            reaches.has_acted();
        }
    }

    fn pass_on(&self, becomes: &UnboundedSender<Becomes>) {
        while let Ok(order) = self.orders.try_recv() {
            let next = match order {
                Order::Begin { generation, predecessor, before } => {
                    let (Own { name, lease, grace }, address) = (self.own.clone(), self.me.address.clone());
                    let turn = turn(FleetMark { name, generation, address, lease }, (&predecessor, before), grace);
                    let shown = Shown {
                        former: Arc::new(AtomicBool::new(false)),
                        all: Box::new(|| Bytes::from_static(b"END\r\n")),
                        standbys: Arc::default(),
                        serves: Arc::default(),
                    };
                    let hands_over = CancellationToken::new();
                    let agreement = Agreement::new(self.keeper.clone(), turn, predecessor, (shown, hands_over));
                    self.keeper.hear_commits(agreement.hears());
                    Becomes::Active(generation, Arc::new(agreement))
                }
                Order::Over | Order::Stop => Becomes::Over,
            };
            let _ = becomes.send(next);
        }
    }
}

async fn answer(reaches: &impl Reaches, ask: Ask, patience: Duration) -> Answer {
    let said = async || {
        let (answers, servers) = reaches.ask_servers(&survey::question(), patience).await;
        (answers.iter().filter_map(|answer| survey::read(answer)).collect::<Vec<_>>(), servers)
    };
    match ask {
        Ask::Read => Answer::Read(reaches.read(patience).await),
        Ask::Swap { seen, new } => Answer::Swapped(reaches.swap(seen, new, patience).await),
        Ask::Survey => {
            let (said, servers) = said().await;
            Answer::Surveyed(survey::judge(&said, servers))
        }
        Ask::Marks(own) => Answer::MarksAreOwn(survey::are_own(&said().await.0, &own)),
        // Of a process on another machine.
        Ask::Holder { .. } => Answer::Holder(Found::default()),
    }
}
