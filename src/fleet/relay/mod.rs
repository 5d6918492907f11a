//! Clients of a proxy that is not active: each has its own connection to the active one, which
//! forwards its bytes unchanged.
//!
//! One connection for each client keeps all its requests in order, whatever they are. When the
//! active proxy changes, a client keeps its connection here: its unanswered requests get an error,
//! because it is unknown whether they were executed, and are never sent again, except pure reads;
//! requests not forwarded yet wait for the next active proxy.

mod admitted;
mod answers;
mod link;
mod requests;
mod settle;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ids::Generation;
use crate::protocol::answer::{TOO_MANY, server_error};
use crate::protocol::binary::MAGIC_REQUEST;
use crate::protocol::dialect::Dialect;
use crate::protocol::out::OutQueue;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::reload::Reload;
use crate::report::statistics::{PATIENCE, Statistics};
use crate::server::Stream;

use super::over::Over;
use super::peers::Caller;
use super::shown::Shown;
use super::stream::{interest, is_ended_there, ready};
use admitted::Admission;
use answers::Answers;
use link::{DIAL_PAUSE, Dialling, Ending, Former, Link, dialled, ended};
use requests::{Head, Owed, head, statistics};

/// Most bytes that are buffered for a client in each direction, and most of its requests that are
/// unanswered.
const HELD: usize = 64 << 10;
const OWED_MAX: usize = 2048;
/// How long this proxy, when it ends, waits for input that a client has sent already. Not zero: a
/// socket that was just accepted becomes readable with the runtime's next poll.
const LOOK: Duration = Duration::from_millis(2);
/// A read is kept, to be sent again, if fewer requests than this are unanswered before it.
const KEPT_AMONG: usize = 32;

/// Where requests go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Target {
    /// The active proxy's generation and address.
    pub(super) active: Option<(Generation, String)>,
    /// It hands over: no new requests go to it.
    pub(super) leaving: bool,
    /// Nobody has said so: a connection to it has ended. It may be dead, or cut off, or live.
    pub(super) unsaid: bool,
    /// It has fallen silent: answers that it owes may never come.
    pub(super) silent: bool,
    /// Why there is none, for clients.
    pub(super) why: String,
}

/// What all relays share.
pub(super) struct Shared {
    pub(super) me: Caller,
    pub(super) target: watch::Receiver<Target>,
    pub(super) takeover_wait: Duration,
    /// Clients here, and how many there may be.
    pub(super) clients: TaskTracker,
    pub(super) max_clients: usize,
    /// `--idle-timeout`.
    pub(super) idle_timeout: Option<Duration>,
    /// Connections to an active proxy.
    pub(super) links: TaskTracker,
    /// What people are shown of this proxy.
    pub(super) shown: Arc<Shown>,
    /// Called while clients wait for an active proxy: this one then looks for it at once.
    pub(super) hurry: Box<dyn Fn() + Send + Sync>,
    /// What `stats proxy` says.
    pub(super) show: Box<dyn Fn() -> Bytes + Send + Sync>,
    /// This proxy ends.
    pub(super) over: CancellationToken,
}

/// Serves a client until it leaves or is sent away. With `reload` it is an operator, who may have
/// the settings read again.
pub(super) fn serve(mut client: Stream, shared: Arc<Shared>, reload: Option<Arc<Reload>>) -> impl Future<Output = ()> {
    // Before the first poll: whoever waits until all clients are served waits for this one too.
    let counted = shared.clients.token();
    let admission = Admission::of(shared.clients.len(), shared.max_clients);
    async move {
        let _counted = counted;
        if admission == Admission::Refused {
            shared.shown.ends.count(Over::TooMany, || client.peer());
            return client.refuse(TOO_MANY).await;
        }
        Relay { reload, admission, ..Relay::new(client, shared) }.run().await;
    }
}

/// One client.
struct Relay {
    client: Stream,
    shared: Arc<Shared>,
    target: watch::Receiver<Target>,
    link: Option<Link>,
    dialling: Option<(Generation, Dialling)>,
    /// The active proxy is dialled again at this time, and no sooner.
    next_dial: Instant,
    /// What the client has sent that was not passed on yet.
    input: BytesMut,
    /// On its way to the active proxy, and to the client.
    to_link: BytesMut,
    to_client: BytesMut,
    /// What the client is owed, in order.
    owed: VecDeque<Owed>,
    answers: Answers,
    /// This proxy has asked something itself; and the beginning of what may be the answer to that.
    asks: bool,
    held: BytesMut,
    /// How many bytes of the present request are still to be passed on, and how many to be thrown
    /// away.
    left: usize,
    dropped: usize,
    /// The client has sent something that is not understood here: its bytes are passed on, and what
    /// it is owed for them is unknown.
    opaque: bool,
    dialect: Dialect,
    /// Nothing more is read from the client: it has closed its half, or this proxy ends.
    finished: bool,
    /// Nothing more is read because this proxy ends.
    ends: bool,
    /// Since when requests wait for an active proxy.
    waits: Option<Instant>,
    /// Whether the client waits for any of it, and since when for the first.
    awaits: bool,
    asked: Instant,
    /// When something last moved on the link.
    moved: Instant,
    /// The link's sending side is closed, because the client sends nothing more.
    half_closed: bool,
    /// Since when the link's proxy is known to hand over.
    leaving: Option<Instant>,
    former: Option<Former>,
    admission: Admission,
    /// When the client last sent something, or took the last of what it had asked for.
    rested: Instant,
    /// An operator's connection: reads the settings again; and the reading under way.
    reload: Option<Arc<Reload>>,
    reloading: Option<BoxFuture<'static, Bytes>>,
}

impl Relay {
    fn new(client: Stream, shared: Arc<Shared>) -> Relay {
        Relay {
            client,
            target: shared.target.clone(),
            shared,
            link: None,
            dialling: None,
            next_dial: Instant::now(),
            input: BytesMut::new(),
            to_link: BytesMut::new(),
            to_client: BytesMut::new(),
            owed: VecDeque::new(),
            answers: Answers::default(),
            asks: false,
            held: BytesMut::new(),
            left: 0,
            dropped: 0,
            opaque: false,
            dialect: Dialect::default(),
            finished: false,
            ends: false,
            waits: None,
            awaits: false,
            asked: Instant::now(),
            moved: Instant::now(),
            half_closed: false,
            leaving: None,
            former: None,
            admission: Admission::Client,
            rested: Instant::now(),
            reload: None,
            reloading: None,
        }
    }

    async fn run(&mut self) {
        let why = loop {
            if let Err(why) = self.turn().await {
                break why;
            }
        };
        self.shared.shown.ends.count(why, || self.client.peer());
        self.say_why(why);
        // Answers that have come are still delivered.
        let last = async {
            while !self.to_client.is_empty() {
                self.client.ready(Interest::WRITABLE).await?;
                self.write_to_client()?;
            }
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), last).await;
    }

    /// Tells the client why it is closed, unless it has received a part of an answer.
    fn say_why(&mut self, why: Over) {
        if self.opaque || self.is_amid_answer() {
            return;
        }
        let Some(words) = why.last_words() else { return };
        let mut out = OutQueue::default();
        self.dialect.unasked().write(Outcome::Refused(Refusal::Server(words)), &mut out);
        // A short text is in one piece.
        self.to_client.extend_from_slice(out.one_piece().unwrap_or_default());
    }

    /// Whether no answer can still come, and no request was passed on in part.
    fn is_quiet(&self) -> bool {
        !self.opaque && self.left == 0 && self.to_link.is_empty() && self.is_owed_nothing()
    }

    /// Whether all earlier requests are answered, so that an answer of this proxy's own may follow.
    fn is_owed_nothing(&self) -> bool {
        self.reloading.is_none() && self.owed.iter().all(|owed| *owed == Owed::Nothing)
    }

    async fn turn(&mut self) -> Result<(), Over> {
        if self.shared.over.is_cancelled() && !self.finished && !self.opaque && self.left == 0 {
            self.read_last().await?;
        }
        self.end_silence()?;
        self.follow_target()?;
        self.pass_on();
        self.tell_front();
        if self.finished {
            self.finish().map_err(|over| if self.ends && over == Over::Left { Over::Shutdown } else { over })?;
        }
        let room = self.to_client.len() < HELD;
        let reads = !self.finished && self.input.len() < HELD && room;
        let client = interest(reads, !self.to_client.is_empty());
        let link = self.link.as_ref().and_then(|_| interest(room, !self.to_link.is_empty()));
        let wakes = self.wakes();
        let over = self.shared.over.clone();
        tokio::select! {
            // Always in this order, so that a seed of the simulation has one course. Each branch is
            // bounded, so none starves the others.
            biased;
            changed = self.target.changed() => changed.map_err(|_| Over::Shutdown)?,
            () = over.cancelled(), if !over.is_cancelled() => {}
            ready = ready(Some(&self.client), client) => {
                let ready = ready.map_err(|_| Over::Left)?;
                if ready.is_writable() {
                    self.write_to_client().map_err(|_| Over::Left)?;
                }
                if ready.is_readable() && reads {
                    self.read_from_client()?;
                }
            }
            ready = ready(self.link.as_ref().map(|link| &link.stream), link) => {
                let moved = ready.and_then(|ready| self.move_link(ready));
                if moved.is_err() {
                    let closed = moved.is_err_and(|error| is_ended_there(&error));
                    self.link_ended(if closed { Ending::Closed } else { Ending::Unknown })?;
                }
            }
            ended = ended(self.former.as_ref()) => {
                if !ended {
                    return Err(Over::Former);
                }
                self.former = None;
            }
            (generation, dialled) = dialled(&mut self.dialling) => {
                self.dialling = None;
                self.next_dial = Instant::now() + DIAL_PAUSE;
                self.dialled(generation, dialled);
            }
            said = reloaded(&mut self.reloading) => {
                self.reloading = None;
                self.to_client.extend_from_slice(&said);
            }
            () = tokio::time::sleep_until(wakes.unwrap_or_else(Instant::now)), if wakes.is_some() => {
                (self.shared.hurry)();
            }
        }
        Ok(())
    }

    /// When to look again if nothing else happens.
    fn wakes(&self) -> Option<Instant> {
        let soon = (self.waits.is_some() && self.dialling.is_none()).then(|| Instant::now() + DIAL_PAUSE / 2);
        let answered = self.target.borrow().silent && self.awaits && self.link.is_some();
        let late = answered.then(|| self.asked + self.shared.takeover_wait);
        let finished = (self.half_closed && self.link.is_some()).then(|| self.moved + self.shared.takeover_wait);
        // While an active proxy is dialled that does not answer.
        let own = self.waits.filter(|_| self.asks_for_statistics().is_some()).map(|waits| waits + PATIENCE);
        soon.into_iter().chain(own).chain(late).chain(self.given_up_at()).chain(finished).chain(self.silent_at()).min()
    }

    /// The client sends nothing more: it gets the answers that it is owed, and then the connection
    /// ends.
    fn finish(&mut self) -> Result<(), Over> {
        let own = !self.opaque && self.left == 0 && matches!(self.next(), Head::OfProxy { .. } | Head::Reload { .. });
        if self.reloading.is_some() || own && self.to_client.len() >= HELD {
            // This proxy answers it itself, once it knows the answer or has room for it.
            return Ok(());
        }
        if self.link.is_none() && self.dialling.is_none() {
            // The client may be gone altogether: requests that wait for a later proxy are refused
            // now instead.
            self.refuse(&self.why_not())?;
            return Err(Over::Left);
        }
        let all_sent =
            self.to_link.is_empty() && if self.opaque { self.input.is_empty() } else { self.next() == Head::Part };
        if !all_sent {
            return Ok(());
        }
        if self.is_quiet() {
            return Err(Over::Left);
        }
        let Some(Link { stream, .. }) = &self.link else { return if self.opaque { Err(Over::Left) } else { Ok(()) } };
        let unknown = self.opaque
            || self.left > 0
            || self.owed.iter().any(|owed| matches!(owed, Owed::Perhaps { .. } | Owed::Named { quiet: true, .. }));
        if unknown && !self.half_closed {
            // What it is owed is unknown: only the link's end shows that all was answered.
            stream.close_half().map_err(|_| Over::Unanswered)?;
            self.half_closed = true;
        }
        if self.half_closed && self.moved.elapsed() >= self.shared.takeover_wait {
            Err(Over::Unanswered)
        } else {
            Ok(())
        }
    }

    /// Statistics, which this proxy can tell where the active one does not for long.
    fn asks_for_statistics(&self) -> Option<Statistics> {
        let is_next = self.link.is_none()
            && self.former.is_none()
            && self.left == 0
            && self.dropped == 0
            && self.is_owed_nothing();
        statistics(&self.input).filter(|_| is_next && !self.opaque && self.to_client.len() < HELD)
    }

    /// No active proxy is reached, and a client has waited long enough for statistics: this proxy
    /// says what it knows.
    fn tell_statistics(&mut self, why: &str) {
        while let (Some(asked), Head::Request { bytes, .. }) = (self.asks_for_statistics(), self.head()) {
            self.input.advance(bytes);
            match asked {
                Statistics::All | Statistics::OfProxy => self.to_client.extend_from_slice(&(self.shared.show)()),
                Statistics::Part => self.to_client.extend_from_slice(&server_error(why)),
            }
        }
        if !self.has_work() {
            self.waits = None;
        }
    }

    /// Whether there is something for an active proxy.
    fn has_work(&self) -> bool {
        !self.input.is_empty() || self.owed.iter().any(|owed| matches!(owed, Owed::Read(_)))
    }

    /// Everything that waits is answered with an error.
    fn refuse(&mut self, why: &str) -> Result<(), Over> {
        let told = server_error(why);
        for owed in &mut self.owed {
            if matches!(owed, Owed::Read(_)) {
                *owed = Owed::Told(told.clone());
            }
        }
        while self.left == 0 && self.dropped == 0 && self.to_client.len() < HELD {
            match self.head() {
                Head::Part => break,
                Head::Request { bytes, owed } => {
                    match owed {
                        Owed::Nothing => {}
                        Owed::Answer | Owed::NoOp | Owed::Read(_) => self.owed.push_back(Owed::Told(told.clone())),
                        // An error in text is not understood there, or might be taken for the
                        // answer to another request.
                        _ => return Err(Over::NoneActive),
                    }
                    self.dropped = bytes;
                }
                Head::OfProxy { .. } | Head::Reload { .. } => break,
                Head::Opaque => return Err(Over::NoneActive),
            }
            self.drop_input();
            self.tell_front();
        }
        self.tell_front();
        if !self.has_work() {
            self.waits = None;
        }
        Ok(())
    }

    fn drop_input(&mut self) {
        let n = self.dropped.min(self.input.len());
        self.input.advance(n);
        self.dropped -= n;
    }

    fn head(&self) -> Head {
        let is_binary = self.input.first() == Some(&MAGIC_REQUEST);
        if !self.input.is_empty() && self.dialect == (if is_binary { Dialect::Text } else { Dialect::Binary }) {
            // A connection has one protocol: the active proxy says so, and closes it.
            return Head::Opaque;
        }
        match head(&self.input) {
            Head::Reload { bytes } if self.reload.is_none() => Head::Request { bytes, owed: Owed::Answer },
            head => head,
        }
    }

    /// What is to be passed on next. A request that fits into the buffer is passed on whole, so
    /// that a client that stops in the middle of one has nothing under way.
    fn next(&self) -> Head {
        match self.head() {
            Head::Request { bytes, .. } if bytes > self.input.len() && bytes <= HELD => Head::Part,
            head => head,
        }
    }

    /// Moves whole requests on, and pieces of large ones.
    fn pass_on(&mut self) {
        self.drop_input();
        let leaving = self.target.borrow().leaving;
        while self.dropped == 0 {
            if self.left > 0 || self.opaque {
                let all = if self.opaque { self.input.len() } else { self.left };
                let n = all.min(self.input.len()).min(HELD.saturating_sub(self.to_link.len()));
                if n == 0 || self.link.is_none() {
                    break;
                }
                self.to_link.extend_from_slice(&self.input[..n]);
                self.input.advance(n);
                self.left = self.left.saturating_sub(n);
                continue;
            }
            match self.next() {
                Head::Part => break,
                Head::OfProxy { bytes } => {
                    // A client that asks a lot and does not read has to wait.
                    if !self.is_owed_nothing() || self.to_client.len() >= HELD {
                        self.ask_behind();
                        break;
                    }
                    self.input.advance(bytes);
                    let shown = (self.shared.show)();
                    self.to_client.extend_from_slice(&shown);
                    if !self.has_work() {
                        self.waits = None;
                    }
                }
                Head::Reload { bytes } => {
                    let Some(reload) = self.reload.clone().filter(|_| self.is_owed_nothing()) else {
                        self.ask_behind();
                        break;
                    };
                    self.input.advance(bytes);
                    self.reloading = Some(Box::pin(async move { reload.answer().await }));
                    if !self.has_work() {
                        self.waits = None;
                    }
                }
                _ if self.link.is_none() || leaving || self.asks || self.reloading.is_some() => break,
                _ if self.owed.len() >= OWED_MAX => {
                    self.ask_behind();
                    break;
                }
                Head::Request { bytes, owed } => {
                    if owed.is_awaited() {
                        self.is_asked();
                    }
                    self.shared.shown.forwarded.fetch_add(1, Ordering::Relaxed);
                    let owed = match owed {
                        Owed::Read(_) if self.owed.len() >= KEPT_AMONG => Owed::Answer,
                        owed => owed,
                    };
                    self.owed.push_back(owed);
                    self.left = bytes;
                }
                Head::Opaque => self.opaque = true,
            }
        }
    }

    /// The client has asked for something that it waits for.
    fn is_asked(&mut self) {
        if !std::mem::replace(&mut self.awaits, true) {
            self.asked = Instant::now();
        }
    }

    /// Sends the answers at the front that are known.
    fn tell_front(&mut self) {
        while let Some(Owed::Told(told)) = self.owed.front() {
            self.to_client.extend_from_slice(told);
            self.owed.pop_front();
        }
    }

    fn read_from_client(&mut self) -> Result<(), Over> {
        self.input.reserve(4096);
        match self.client.try_read(&mut self.input) {
            Ok(0) => {
                self.finished = true;
                Ok(())
            }
            Ok(_) => {
                if self.dialect == Dialect::Unknown {
                    self.dialect = Dialect::of(&self.input);
                }
                if let Dialect::Foreign(who) = self.dialect {
                    self.to_client.extend_from_slice(who.answer());
                    return Err(Over::Foreign);
                }
                self.rested = Instant::now();
                self.admit()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(Over::Left),
        }
    }

    /// This proxy ends: what the client has sent so far is still answered, as by an active proxy.
    async fn read_last(&mut self) -> Result<(), Over> {
        let ready = tokio::time::timeout(LOOK, self.client.ready(Interest::READABLE)).await;
        let mut goes_on = ready.is_ok();
        while goes_on && self.input.len() < HELD {
            let before = self.input.len();
            self.read_from_client()?;
            goes_on = self.input.len() > before;
        }
        (self.finished, self.ends) = (true, true);
        Ok(())
    }

    fn write_to_client(&mut self) -> io::Result<()> {
        match self.client.try_write(&self.to_client) {
            Ok(n) => {
                self.to_client.advance(n);
                self.rested = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

async fn reloaded(reloading: &mut Option<BoxFuture<'static, Bytes>>) -> Bytes {
    match reloading {
        Some(reloading) => reloading.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
