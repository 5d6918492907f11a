//! A client's connection to the active proxy: from the dialling to the end, and to the next one.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::Ready;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::fleet::over::Over;
use crate::fleet::peers::{self, Purpose, Unreached};
use crate::fleet::stream;
use crate::ids::Generation;
use crate::report::statistics::PATIENCE;
use crate::server::Stream;

use super::answers::Answers;
use super::requests::Owed;
use super::{Relay, Target};

/// At a planned change a connection is given up after `IDLE` without motion, or after `LEAVING` in
/// all, if its client is to blame, or if it is unknown what the client is owed.
const IDLE: Duration = Duration::from_millis(100);
const LEAVING: Duration = Duration::from_millis(120);

/// Between two tries to reach the active proxy.
pub(super) const DIAL_PAUSE: Duration = Duration::from_millis(20);

/// The client's connection to the active proxy, open.
pub(super) struct Link {
    generation: Generation,
    pub(super) stream: Stream,
    _counted: TaskTrackerToken,
}

/// How a link ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// Its proxy has closed it: nothing that was sent on it is under way there any more.
    Closed,
    /// Its proxy is not the active one any more: its lease is over.
    Replaced,
    /// Its proxy hands over, and nothing more is waited for.
    Planned,
    /// Unknown: its proxy may be the active one as before.
    Unknown,
}

impl Ending {
    /// What the client gets in place of an answer that does not come.
    fn answer(self) -> &'static [u8] {
        match self {
            Ending::Replaced => b"SERVER_ERROR the active proxy was replaced: nobody knows whether this was done\r\n",
            Ending::Closed => {
                b"SERVER_ERROR the active proxy closed the connection: nobody knows whether this was done\r\n"
            }
            Ending::Planned => b"SERVER_ERROR the active proxy hands over: nobody knows whether this was done\r\n",
            Ending::Unknown => b"SERVER_ERROR the active proxy does not answer: nobody knows whether this was done\r\n",
        }
    }
}

/// Why none is active, as far as this proxy knows.
fn none(target: &Target) -> String {
    match &target.active {
        _ if !target.why.is_empty() => target.why.clone(),
        Some((_, address)) if target.unsaid => format!("that on {address} has ended, or is cut off"),
        Some((_, address)) if target.leaving => format!("that on {address} hands over"),
        Some((_, address)) => format!("that on {address} does not answer"),
        None => "the record names none".to_owned(),
    }
}

pub(super) type Dialling = Pin<Box<dyn Future<Output = Result<Stream, Unreached>> + Send>>;

/// Of the active proxy, and not waited for any more: before it has ended, what was sent on it may
/// be done after what is sent on a new one.
pub(super) struct Former {
    generation: Generation,
    stream: Stream,
    /// Until then, at most. `None`: its proxy is silent (suspended, say), and nothing ends there
    /// before it goes on.
    until: Option<Instant>,
}

impl Relay {
    /// Takes note of where the active proxy is now.
    pub(super) fn follow_target(&mut self) -> Result<(), Over> {
        let target = self.target.borrow_and_update().clone();
        if let Some(Link { generation, .. }) = &self.link {
            let present = target.active.as_ref().is_some_and(|(active, _)| active == generation);
            let in_vain = target.silent && self.awaits && self.asked.elapsed() >= self.shared.takeover_wait;
            if !present || in_vain {
                // The link leads to the former active proxy, which will not answer any more, or
                // to one that has fallen silent (also while it hands over).
                self.link_ended(if present { Ending::Unknown } else { Ending::Replaced })?;
            } else if target.leaving {
                self.drain_link()?;
            } else {
                self.leaving = None;
            }
        }
        let open = target.active.as_ref().filter(|_| !target.leaving);
        if let Some((generation, _)) = &self.dialling
            && open.is_none_or(|(active, _)| active != generation)
        {
            self.dialling = None;
        }
        let present = target.active.as_ref().map(|(active, _)| *active);
        // A former link's proxy that is not active any more: its lease is over.
        self.former = self.former.take().filter(|former| Some(former.generation) == present);
        if let Some(Former { until, .. }) = &mut self.former {
            let patience = self.shared.takeover_wait;
            *until = (!target.silent).then(|| until.unwrap_or_else(|| Instant::now() + patience));
        }
        if self.link.is_none() && self.dialling.is_none() && self.has_work() {
            let waits = *self.waits.get_or_insert_with(Instant::now);
            let may = self.former.is_none() && Instant::now() >= self.next_dial;
            if let Some((generation, address)) = open.cloned().filter(|_| may) {
                let me = self.shared.me.clone();
                let dial = async move { peers::dial(&me, &address, generation, Purpose::Data).await };
                self.dialling = Some((generation, Box::pin(dial)));
            }
            if waits.elapsed() >= self.shared.takeover_wait {
                self.refuse(&self.why_not())?;
            }
        }
        if self.waits.is_some_and(|waits| waits.elapsed() >= PATIENCE) {
            self.tell_statistics(&self.why_not());
        }
        Ok(())
    }

    /// Why what waits is not passed on, in words for its client.
    pub(super) fn why_not(&self) -> String {
        let (target, reached) = (self.target.borrow(), self.shared.shown.reached.load(Ordering::Relaxed));
        match &target.active {
            Some((_, address)) if reached && !target.leaving && !target.silent => {
                format!("the active proxy, on {address}, takes no connection for this client")
            }
            _ => format!("no proxy is active: {}", none(&target)),
        }
    }

    pub(super) fn dialled(&mut self, generation: Generation, dialled: Result<Stream, Unreached>) {
        match dialled {
            Ok(stream) => {
                let _counted = self.shared.links.token();
                self.link = Some(Link { generation, stream, _counted });
                (self.answers, self.waits, self.asked) = (Answers::default(), None, Instant::now());
                (self.moved, self.half_closed) = (Instant::now(), false);
                self.awaits = self.owed.iter().any(Owed::is_awaited);
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

    /// Its proxy hands over: nothing new is sent, and it is closed once all is answered.
    fn drain_link(&mut self) -> Result<(), Over> {
        self.leaving.get_or_insert_with(Instant::now);
        if self.given_up_at().is_some_and(|at| Instant::now() >= at) {
            // All other clients would wait for this one. Its proxy ends before the next one begins,
            // so nothing that was sent on it is executed later.
            return self.link_ended(Ending::Planned).map_err(|_| Over::Planned);
        }
        if self.opaque || self.left > 0 {
            return Ok(());
        }
        if self.owed.is_empty() && self.to_link.is_empty() {
            (self.link, self.leaving) = (None, None);
        } else {
            self.ask_behind();
        }
        Ok(())
    }

    /// When a planned change goes on without a client that does not read, has sent a part of its
    /// request, or whose owed answers are unknown.
    pub(super) fn given_up_at(&self) -> Option<Instant> {
        // Where nobody hands over nobody waits for it: the proxy has ended, and so has this
        // connection soon, or its clients are served as before once it is reached again.
        let planned = self.leaving.filter(|_| !self.target.borrow().unsaid);
        let since = planned.filter(|_| self.opaque || self.left > 0 || !self.to_client.is_empty())?;
        Some((self.moved + IDLE).min(since + LEAVING))
    }

    /// The link has ended, or its answers are not wanted any more.
    pub(super) fn link_ended(&mut self, ending: Ending) -> Result<(), Over> {
        let writes = self.left > 0 || self.owed.iter().any(|owed| !matches!(owed, Owed::Read(_) | Owed::Told(_)));
        if ending == Ending::Unknown && writes {
            // What is sent on another link might be done, and acknowledged, before this is.
            let link = self.link.take().filter(|link| link.stream.close_half().is_ok());
            let Link { generation, stream, .. } = link.ok_or(Over::Replaced)?;
            self.former = Some(Former { generation, stream, until: None });
        }
        (self.link, self.leaving) = (None, None);
        (self.shared.hurry)();
        self.to_link.clear();
        let over = match ending {
            // It was asked to close once all was answered.
            Ending::Closed if self.half_closed => Over::Left,
            // What was asked last may have been to close it.
            Ending::Closed if self.opaque => Over::ByActive,
            _ => Over::Replaced,
        };
        if self.opaque || self.is_amid_answer() {
            // As where a server's connection breaks.
            return Err(over);
        }
        let mut kept = VecDeque::new();
        for owed in std::mem::take(&mut self.owed) {
            match owed {
                Owed::Answer | Owed::NoOp => kept.push_back(Owed::Told(Bytes::from_static(ending.answer()))),
                Owed::Read(_) | Owed::Told(_) => kept.push_back(owed),
                // Its client takes it for done. Closing the connection is all that can say
                // otherwise, as at the crash of a proxy alone.
                Owed::Nothing => return Err(over),
                // The question was this proxy's own.
                Owed::Own => {}
                Owed::Perhaps { .. } | Owed::Named { .. } => return Err(over),
            }
        }
        self.owed = kept;
        // The rest of a request that was passed on in part goes nowhere.
        self.dropped = std::mem::take(&mut self.left);
        (self.answers, self.asks) = (Answers::default(), false);
        self.held.clear();
        self.tell_front();
        Ok(())
    }

    /// Writes and reads what the socket is ready for.
    pub(super) fn move_link(&mut self, ready: Ready) -> io::Result<()> {
        let Some(Link { stream, .. }) = &self.link else { return Ok(()) };
        if ready.is_writable() && !self.to_link.is_empty() {
            match stream.try_write(&self.to_link) {
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
            match stream.try_read(&mut block) {
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
}

/// `true`: it has ended; `false`: its time is over.
pub(super) async fn ended(former: Option<&Former>) -> bool {
    match former {
        Some(Former { stream, until: Some(until), .. }) => {
            tokio::time::timeout_at(*until, stream::ended(stream)).await.unwrap_or(false)
        }
        Some(Former { stream, until: None, .. }) => stream::ended(stream).await,
        None => std::future::pending().await,
    }
}

pub(super) async fn dialled(dialling: &mut Option<(Generation, Dialling)>) -> (Generation, Result<Stream, Unreached>) {
    match dialling {
        Some((generation, dialling)) => (*generation, dialling.await),
        None => std::future::pending().await,
    }
}
