//! Clients of a proxy that is not active: each has a connection of its own to the active one, on
//! which its bytes are passed on as they are.
//!
//! One connection a client keeps the order of everything that it asks, whatever that is. When the
//! active proxy changes, a client keeps its connection here: what it has sent and is not answered
//! is answered with an error, for nobody knows whether it was done, and is never sent again, but
//! for pure reads; what was not sent yet waits for the next active proxy.

mod requests;
mod stream;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncWriteExt, Interest, Ready};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ids::Generation;
use crate::protocol::answer::TOO_MANY;

use super::Shown;
use super::peers::{self, Purpose};
use requests::{Answers, End, Head, Owed, head};
pub(super) use stream::Stream;
use stream::{is_ended_there, ready};

/// Bytes that are held of a client, each way, and requests that are owed an answer.
const HELD: usize = 64 << 10;
const OWED_MAX: usize = 2048;
/// Reads that are kept to be asked again stand among so many.
const KEPT_AMONG: usize = 32;

/// A connection of which nobody knows what it is owed is closed at a planned change once nothing
/// has moved on it for so long.
const IDLE: Duration = Duration::from_millis(100);

/// Between two tries to reach the active proxy.
const DIAL_PAUSE: Duration = Duration::from_millis(20);

/// Where requests go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Target {
    /// The active proxy's generation and address.
    pub(super) active: Option<(Generation, String)>,
    /// Nothing new goes there: it hands over.
    pub(super) leaving: bool,
    /// It says nothing any more, and what it owes may never come.
    pub(super) silent: bool,
    /// Why there is none, for clients.
    pub(super) why: String,
}

/// What all relays share.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) target: watch::Receiver<Target>,
    pub(super) takeover_wait: Duration,
    pub(super) lease: Duration,
    /// Clients here, and how many there may be.
    pub(super) clients: AtomicUsize,
    pub(super) max_clients: usize,
    /// Connections to an active proxy.
    pub(super) links: AtomicUsize,
    /// For people.
    pub(super) shown: Arc<Shown>,
    /// A new active proxy is waited for.
    pub(super) hurry: Box<dyn Fn() + Send + Sync>,
    /// What `stats proxy` says.
    pub(super) show: Box<dyn Fn() -> Bytes + Send + Sync>,
    /// This proxy ends.
    pub(super) over: CancellationToken,
}

/// How a link ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    /// By its proxy: nothing of it is under way there any more.
    Closed,
    /// Its proxy is not the active one any more: its lease is over.
    Replaced,
    /// Nobody knows, and its proxy may be the active one as before.
    Unknown,
}

/// Serves a client until it goes, or has to.
pub(super) async fn serve(mut stream: Stream, shared: Arc<Shared>) {
    if shared.clients.fetch_add(1, Ordering::SeqCst) >= shared.max_clients {
        let told = match &mut stream {
            Stream::Tcp(stream) => stream.write_all(TOO_MANY).await,
            Stream::Unix(stream) => stream.write_all(TOO_MANY).await,
        };
        drop(told);
    } else {
        let target = shared.target.clone();
        let mut relay = Relay::new(stream, shared.clone(), target);
        relay.run().await;
        if relay.link.is_some() {
            shared.links.fetch_sub(1, Ordering::SeqCst);
        }
    }
    shared.clients.fetch_sub(1, Ordering::SeqCst);
}

type Dialling = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// One client.
struct Relay {
    client: Stream,
    shared: Arc<Shared>,
    target: watch::Receiver<Target>,
    link: Option<(Generation, Stream)>,
    dialling: Option<(Generation, Dialling)>,
    /// No sooner is it dialled again.
    next_dial: Instant,
    /// From the client, and not passed on.
    input: BytesMut,
    /// On its way to the active proxy, and to the client.
    to_link: BytesMut,
    to_client: BytesMut,
    /// What the client is owed, in order.
    owed: VecDeque<Owed>,
    answers: Answers,
    /// So many bytes of the present request are still to be passed on, or dropped.
    left: usize,
    dropped: usize,
    /// Nobody knows what it is owed.
    opaque: bool,
    /// The client sends nothing more.
    finished: bool,
    /// Since when requests wait for an active proxy.
    waits: Option<Instant>,
    /// Since when the front is owed an answer.
    asked: Instant,
    /// When something last moved on the link.
    moved: Instant,
    /// The link was told that the client sends nothing more.
    half_closed: bool,
    /// A link of the active proxy that was not waited for any more: before it has ended, what was
    /// sent on it may be done after what is sent on a new one. Until then, at most.
    former: Option<Former>,
}

struct Former {
    generation: Generation,
    link: Stream,
    until: Instant,
}

/// The client's connection is to be closed.
struct Over;

impl Relay {
    fn new(client: Stream, shared: Arc<Shared>, target: watch::Receiver<Target>) -> Relay {
        Relay {
            client,
            shared,
            target,
            link: None,
            dialling: None,
            next_dial: Instant::now(),
            input: BytesMut::new(),
            to_link: BytesMut::new(),
            to_client: BytesMut::new(),
            owed: VecDeque::new(),
            answers: Answers::default(),
            left: 0,
            dropped: 0,
            opaque: false,
            finished: false,
            waits: None,
            asked: Instant::now(),
            moved: Instant::now(),
            half_closed: false,
            former: None,
        }
    }

    async fn run(&mut self) {
        while self.turn().await.is_ok() {}
        // What was answered is told.
        let last = async {
            while !self.to_client.is_empty() {
                self.client.ready(Interest::WRITABLE).await?;
                self.write_to_client()?;
            }
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), last).await;
    }

    /// Whether the client is owed nothing that can still come, and nothing of a request is half
    /// passed on.
    fn is_quiet(&self) -> bool {
        !self.opaque && self.left == 0 && self.to_link.is_empty() && self.owed.iter().all(|owed| *owed == Owed::Nothing)
    }

    async fn turn(&mut self) -> Result<(), Over> {
        self.follow_target()?;
        self.pass_on()?;
        self.tell_front();
        if self.finished {
            self.finish()?;
        }
        if self.shared.over.is_cancelled() && self.is_quiet() {
            return Err(Over);
        }
        let room = self.to_client.len() < HELD;
        let reads = !self.finished && self.input.len() < HELD && room;
        let client = match (reads, !self.to_client.is_empty()) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        };
        let link = match (&self.link, room, !self.to_link.is_empty()) {
            (None, _, _) | (_, false, false) => None,
            (Some(_), true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (Some(_), true, false) => Some(Interest::READABLE),
            (Some(_), false, true) => Some(Interest::WRITABLE),
        };
        let wakes = self.wakes();
        let over = self.shared.over.clone();
        tokio::select! {
            changed = self.target.changed() => changed.map_err(|_| Over)?,
            () = over.cancelled(), if !over.is_cancelled() => {}
            ready = ready(Some(&self.client), client) => {
                let ready = ready.map_err(|_| Over)?;
                if ready.is_writable() {
                    self.write_to_client().map_err(|_| Over)?;
                }
                if ready.is_readable() && reads {
                    self.read_from_client()?;
                }
            }
            ready = ready(self.link.as_ref().map(|(_, link)| link), link) => {
                let moved = ready.and_then(|ready| self.move_link(ready));
                if moved.is_err() {
                    let closed = moved.is_err_and(|error| is_ended_there(&error));
                    self.link_ended(if closed { Ending::Closed } else { Ending::Unknown })?;
                }
            }
            ended = ended(self.former.as_ref()) => {
                if !ended {
                    return Err(Over);
                }
                self.former = None;
            }
            (generation, dialled) = dialled(&mut self.dialling) => {
                self.dialling = None;
                self.next_dial = Instant::now() + DIAL_PAUSE;
                self.dialled(generation, dialled);
            }
            () = tokio::time::sleep_until(wakes.unwrap_or_else(Instant::now)), if wakes.is_some() => {
                (self.shared.hurry)();
            }
        }
        Ok(())
    }

    /// When this looks again by itself.
    fn wakes(&self) -> Option<Instant> {
        let soon = (self.waits.is_some() && self.dialling.is_none()).then(|| Instant::now() + DIAL_PAUSE / 2);
        let answered = self.target.borrow().silent && !self.owed.is_empty() && self.link.is_some();
        let late = answered.then(|| self.asked + self.shared.takeover_wait);
        let leaving = self.opaque && self.link.is_some() && self.to_link.is_empty() && self.target.borrow().leaving;
        let idle = leaving.then(|| self.moved + IDLE);
        let finished = (self.half_closed && self.link.is_some()).then(|| self.moved + self.shared.takeover_wait);
        soon.into_iter().chain(late).chain(idle).chain(finished).min()
    }

    /// The client sends nothing more: it is told what it is owed, and no more is waited for than
    /// that.
    fn finish(&mut self) -> Result<(), Over> {
        if self.link.is_none() && self.dialling.is_none() {
            // It may be gone altogether: what waits for a later proxy is not made for it.
            return Err(Over);
        }
        let all_sent = self.to_link.is_empty()
            && if self.opaque { self.input.is_empty() } else { head(&self.input) == Head::Part };
        if !all_sent {
            return Ok(());
        }
        if self.is_quiet() {
            return Err(Over);
        }
        let Some((_, link)) = &self.link else { return if self.opaque { Err(Over) } else { Ok(()) } };
        let unknown = self.opaque
            || self.left > 0
            || self.owed.iter().any(|owed| matches!(owed, Owed::Perhaps | Owed::Named { quiet: true, .. }));
        if unknown && !self.half_closed {
            // Nobody knows what it is owed: its end tells that all was answered.
            link.close_half().map_err(|_| Over)?;
            self.half_closed = true;
        }
        if self.half_closed && self.moved.elapsed() >= self.shared.takeover_wait { Err(Over) } else { Ok(()) }
    }

    /// Whether there is something for an active proxy.
    fn has_work(&self) -> bool {
        !self.input.is_empty() || self.owed.iter().any(|owed| matches!(owed, Owed::Read(_)))
    }

    /// Goes by where the active proxy is now.
    fn follow_target(&mut self) -> Result<(), Over> {
        let target = self.target.borrow_and_update().clone();
        if let Some((generation, _)) = &self.link {
            let present = target.active.as_ref().is_some_and(|(active, _)| active == generation);
            let in_vain = target.silent && !self.owed.is_empty() && self.asked.elapsed() >= self.shared.takeover_wait;
            if present && target.leaving {
                self.drain_link()?;
            } else if !present || in_vain {
                // (Of the one before: what it has not answered by now it never will, or nobody
                // knows.)
                self.link_ended(if present { Ending::Unknown } else { Ending::Replaced })?;
            }
        }
        let open = target.active.as_ref().filter(|_| !target.leaving);
        if let Some((generation, _)) = &self.dialling
            && open.is_none_or(|(active, _)| active != generation)
        {
            self.dialling = None;
        }
        let present = target.active.as_ref().map(|(active, _)| *active);
        // (Of one that is not active any more: its lease is over.)
        self.former = self.former.take().filter(|former| Some(former.generation) == present);
        if self.former.is_some() {
            return Ok(());
        }
        if self.link.is_none() && self.dialling.is_none() && self.has_work() {
            let waits = *self.waits.get_or_insert_with(Instant::now);
            if let Some((generation, address)) = open.cloned().filter(|_| Instant::now() >= self.next_dial) {
                let name = self.shared.name.clone();
                let lease = self.shared.lease;
                let dial = async move { peers::dial(&address, generation, Purpose::Data, &name, lease).await };
                self.dialling = Some((generation, Box::pin(dial)));
            }
            if waits.elapsed() >= self.shared.takeover_wait {
                let why = if target.why.is_empty() { "it does not answer" } else { &target.why };
                self.refuse(&format!("no proxy is active: {why}"))?;
            }
        }
        Ok(())
    }

    fn dialled(&mut self, generation: Generation, dialled: io::Result<TcpStream>) {
        match dialled {
            Ok(stream) => {
                self.shared.links.fetch_add(1, Ordering::SeqCst);
                self.link = Some((generation, Stream::Tcp(stream)));
                (self.answers, self.waits, self.asked) = (Answers::default(), None, Instant::now());
                (self.moved, self.half_closed) = (Instant::now(), false);
                for owed in &self.owed {
                    if let Owed::Read(request) = owed {
                        self.to_link.extend_from_slice(request);
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot reach the active proxy");
                (self.shared.hurry)();
            }
        }
    }

    /// Everything that waits is answered with an error.
    fn refuse(&mut self, why: &str) -> Result<(), Over> {
        let told = Bytes::from(format!("SERVER_ERROR {why}\r\n"));
        for owed in &mut self.owed {
            if matches!(owed, Owed::Read(_)) {
                *owed = Owed::Told(told.clone());
            }
        }
        while self.left == 0 && self.dropped == 0 && self.to_client.len() < HELD {
            match head(&self.input) {
                Head::Part => break,
                Head::Request { bytes, owed } => {
                    match owed {
                        Owed::Nothing => {}
                        Owed::Answer | Owed::NoOp | Owed::Read(_) => self.owed.push_back(Owed::Told(told.clone())),
                        // What is told here is not in its words, or might be taken for another's.
                        _ => return Err(Over),
                    }
                    self.dropped = bytes;
                }
                Head::OfProxy { .. } => break,
                Head::Opaque => return Err(Over),
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

    /// Moves whole requests on, and pieces of the last one.
    fn pass_on(&mut self) -> Result<(), Over> {
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
            match head(&self.input) {
                Head::Part => break,
                Head::OfProxy { bytes } => {
                    if !self.owed.iter().all(|owed| *owed == Owed::Nothing) {
                        break;
                    }
                    self.input.advance(bytes);
                    let shown = (self.shared.show)();
                    self.to_client.extend_from_slice(&shown);
                    if !self.has_work() {
                        self.waits = None;
                    }
                }
                _ if self.link.is_none() || leaving => break,
                // (Only what comes behind a no-op tells what became of these.)
                _ if self.owed.len() >= OWED_MAX && self.owed.front() == Some(&Owed::Perhaps) => self.opaque = true,
                _ if self.owed.len() >= OWED_MAX => break,
                Head::Request { bytes, owed } => {
                    if self.owed.is_empty() {
                        self.asked = Instant::now();
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
        Ok(())
    }

    /// What stands at the front and is known is told.
    fn tell_front(&mut self) {
        while let Some(Owed::Told(told)) = self.owed.front() {
            self.to_client.extend_from_slice(told);
            self.owed.pop_front();
        }
    }

    /// Its proxy hands over: nothing new is sent, and it is closed once all is answered. A question
    /// of this proxy's own tells that what is owed nothing was done.
    fn drain_link(&mut self) -> Result<(), Over> {
        if self.opaque {
            // (Else it would keep the change waiting, and end with the proxy all the same.)
            let idle = self.to_link.is_empty() && self.moved.elapsed() >= IDLE;
            return if idle { Err(Over) } else { Ok(()) };
        }
        if self.left > 0 {
            return Ok(());
        }
        if self.owed.is_empty() && self.to_link.is_empty() {
            self.drop_link();
        } else if self.owed.iter().all(|owed| matches!(owed, Owed::Nothing | Owed::Perhaps)) {
            self.owed.push_back(Owed::Own);
            self.to_link.extend_from_slice(b"mn\r\n");
        }
        Ok(())
    }

    fn drop_link(&mut self) {
        if self.link.take().is_some() {
            self.shared.links.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// It has ended, or nobody listens to it any more.
    fn link_ended(&mut self, ending: Ending) -> Result<(), Over> {
        let writes = self.left > 0 || self.owed.iter().any(|owed| !matches!(owed, Owed::Read(_) | Owed::Told(_)));
        if ending == Ending::Unknown && writes {
            // What is sent on another link might be done, and acknowledged, before this is.
            let link = self.link.take().filter(|(_, link)| link.close_half().is_ok());
            self.shared.links.fetch_sub(1, Ordering::SeqCst);
            let (generation, link) = link.ok_or(Over)?;
            self.former = Some(Former { generation, link, until: Instant::now() + self.shared.takeover_wait });
        }
        self.drop_link();
        (self.shared.hurry)();
        self.to_link.clear();
        if self.opaque || self.answers.is_begun() {
            // (As where a server's connection breaks.)
            return Err(Over);
        }
        const UNKNOWN: &[u8] = b"SERVER_ERROR the active proxy was replaced: nobody knows whether this was done\r\n";
        let mut kept = VecDeque::new();
        for owed in std::mem::take(&mut self.owed) {
            match owed {
                Owed::Answer | Owed::NoOp => kept.push_back(Owed::Told(Bytes::from_static(UNKNOWN))),
                Owed::Read(_) | Owed::Told(_) => kept.push_back(owed),
                // Its client takes it for done: it is told so, as at the crash of a proxy alone.
                Owed::Nothing => return Err(Over),
                // Nobody waits for an answer.
                Owed::Own => {}
                Owed::Perhaps | Owed::Named { .. } => return Err(Over),
            }
        }
        self.owed = kept;
        // The rest of what was begun is not sent to anybody.
        self.dropped = std::mem::take(&mut self.left);
        self.answers = Answers::default();
        self.tell_front();
        Ok(())
    }

    fn read_from_client(&mut self) -> Result<(), Over> {
        self.input.reserve(4096);
        match self.client.try_read(&mut self.input) {
            Ok(0) => {
                self.finished = true;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(Over),
        }
    }

    fn write_to_client(&mut self) -> io::Result<()> {
        match self.client.try_write(&self.to_client) {
            Ok(n) => self.to_client.advance(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn move_link(&mut self, ready: Ready) -> io::Result<()> {
        let Some((_, link)) = &self.link else { return Ok(()) };
        if ready.is_writable() && !self.to_link.is_empty() {
            match link.try_write(&self.to_link) {
                Ok(n) => {
                    self.to_link.advance(n);
                    self.moved = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if ready.is_readable() {
            let mut block = BytesMut::with_capacity(16 << 10);
            match link.try_read(&mut block) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {
                    self.moved = Instant::now();
                    self.answered(&block);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Answers have come.
    fn answered(&mut self, mut bytes: &[u8]) {
        if self.opaque {
            return self.to_client.extend_from_slice(bytes);
        }
        while !bytes.is_empty() {
            let (taken, end) = self.answers.take(bytes);
            // (Also of the beginning of an answer: whose it is, is to be known.)
            while self.owed.front() == Some(&Owed::Nothing) {
                self.owed.pop_front();
            }
            let own = self.owed.front() == Some(&Owed::Own);
            if !own {
                self.to_client.extend_from_slice(&bytes[..taken]);
            }
            bytes = &bytes[taken..];
            match end {
                Some(End::Text) => self.text_ended(),
                Some(End::NoOp) => self.no_op_ended(),
                Some(End::Binary { opcode, opaque }) => self.binary_ended(opcode, opaque),
                None => continue,
            }
            self.asked = Instant::now();
            self.tell_front();
        }
    }

    fn text_ended(&mut self) {
        match self.owed.front() {
            Some(Owed::Answer | Owed::Read(_)) => drop(self.owed.pop_front()),
            // It may be the answer to any that follows, before a no-op.
            Some(Owed::Perhaps) => {}
            _ => self.opaque = true,
        }
    }

    fn no_op_ended(&mut self) {
        while let Some(owed) = self.owed.pop_front() {
            if matches!(owed, Owed::NoOp | Owed::Own) {
                return;
            }
        }
        self.opaque = true;
    }

    fn binary_ended(&mut self, opcode: u8, opaque: [u8; 4]) {
        while let Some(Owed::Named { opcode: asked, opaque: name, quiet }) = self.owed.front() {
            let found = (*asked, *name) == (opcode, opaque);
            if !found && !quiet {
                break;
            }
            self.owed.pop_front();
            if found {
                return;
            }
        }
        self.opaque = true;
    }
}

async fn ended(former: Option<&Former>) -> bool {
    match former {
        Some(Former { link, until, .. }) => stream::ended(link, *until).await,
        None => std::future::pending().await,
    }
}

async fn dialled(dialling: &mut Option<(Generation, Dialling)>) -> (Generation, io::Result<TcpStream>) {
    match dialling {
        Some((generation, dialling)) => (*generation, dialling.await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
