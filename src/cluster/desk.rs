//! Where the admin listener and the admin socket ask the control plane.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::config::Settings;
use crate::protocol::answer;
use crate::protocol::outcome::Outcome;
use crate::proxy::{Question, SlotNumber};
use crate::report::Report;

/// Requests that may wait here. More wait in front of the channel, until their deadline.
const WAITING_MAX: usize = 8;

/// Within this time a report is made, or never: the control plane does not answer before it has
/// looked at the servers, nor while it ends.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for a command, for which servers may have to be asked.
const COMMAND_PATIENCE: Duration = Duration::from_secs(20);

/// What is asked, and where the answer goes.
#[derive(Debug)]
pub(super) enum Request {
    Report(Looker, oneshot::Sender<Box<Report>>),
    /// The answer as it is written to the text protocol.
    Command(Question, oneshot::Sender<Bytes>),
    /// `lru_crawler metadump` of these classes: pieces, and the last words behind them.
    List(String, mpsc::Sender<Bytes>, oneshot::Sender<Bytes>),
    /// Those of them that can change while the proxy runs; answered when they are in force.
    Settings(Box<Settings>, oneshot::Sender<()>),
}

/// What is said of a control plane that does not answer, where its lease holds.
pub const SILENT: &str = "the control plane does not answer: it is starting, or ending";

/// Who wants a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Looker {
    /// Somebody sees it, and next time what the servers are asked for it now.
    Person,
    /// Something that comes again and again, and wants a word.
    Machine,
}

impl Request {
    /// Whether the caller was already told that there is no answer: the command is not executed
    /// after that.
    pub(super) fn is_given_up(&self) -> bool {
        match self {
            Request::Report(_, reply) => reply.is_closed(),
            Request::Command(_, reply) | Request::List(_, _, reply) => reply.is_closed(),
            Request::Settings(_, reply) => reply.is_closed(),
        }
    }
}

/// A handle for those who ask.
#[derive(Clone, Debug)]
pub struct Desk {
    requests: mpsc::Sender<Request>,
}

/// The other side.
#[derive(Debug)]
pub(super) struct Clerk {
    desk: Desk,
    /// Commands unanswered, by number.
    commands: BTreeMap<SlotNumber, oneshot::Sender<Bytes>>,
    last: SlotNumber,
}

impl Clerk {
    pub(super) fn open() -> (Clerk, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(WAITING_MAX);
        (Clerk { desk: Desk { requests }, commands: BTreeMap::new(), last: SlotNumber(0) }, receiver)
    }

    pub(super) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Whether the answer to a command is still waited for.
    pub(super) fn is_awaited(&self, command: SlotNumber) -> bool {
        self.commands.get(&command).is_some_and(|reply| !reply.is_closed())
    }

    /// Returns the number of a command.
    pub(super) fn wait_for(&mut self, reply: oneshot::Sender<Bytes>) -> SlotNumber {
        self.commands.retain(|_, reply| !reply.is_closed());
        self.last = self.last.next();
        self.commands.insert(self.last, reply);
        self.last
    }

    pub(super) fn answer(&mut self, command: SlotNumber, outcome: Outcome) {
        let said = match outcome {
            Outcome::Raw(bytes) => bytes,
            Outcome::Own(bytes) => Bytes::from_static(bytes),
            Outcome::Refused(refusal) => answer::client_error(refusal.words()),
            _ => Bytes::from_static(answer::OK),
        };
        if let Some(reply) = self.commands.remove(&command) {
            // The receiver of the reply may be gone.
            let _ = reply.send(said);
        }
    }
}

/// A list that is being sent; dropping this ends it.
#[derive(Debug)]
pub struct Listing {
    pieces: mpsc::Receiver<Bytes>,
    end: Option<oneshot::Receiver<Bytes>>,
}

/// What comes of a list next.
#[derive(PartialEq, Eq, Debug)]
pub enum Listed {
    Piece(Bytes),
    /// The last words.
    End(Bytes),
    /// The control plane is ending.
    Nothing,
}

impl Listing {
    /// Waits for it.
    pub async fn next(&mut self) -> Listed {
        if let Some(piece) = self.pieces.recv().await {
            return Listed::Piece(piece);
        }
        match self.end.take() {
            Some(end) => end.await.map_or(Listed::Nothing, Listed::End),
            None => Listed::Nothing,
        }
    }
}

impl Desk {
    /// `None`: it has not begun, or is ending.
    pub async fn report(&self) -> Option<Box<Report>> {
        self.ask(|reply| Request::Report(Looker::Person, reply), PATIENCE).await
    }

    /// The same, for what is known: no server is asked anything for it.
    pub async fn state(&self) -> Option<Box<Report>> {
        self.ask(|reply| Request::Report(Looker::Machine, reply), PATIENCE).await
    }

    /// Whether the control plane is ending, and answers no more.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// See [`Request::Command`].
    pub async fn command(&self, question: Question) -> Option<Bytes> {
        self.ask(|reply| Request::Command(question, reply), COMMAND_PATIENCE).await
    }

    /// All keys, of these classes. `None`: it is ending.
    pub async fn list(&self, classes: String) -> Option<Listing> {
        let ((pieces, taken), (reply, end)) = (mpsc::channel(1), oneshot::channel());
        let asked = tokio::time::timeout(PATIENCE, self.requests.send(Request::List(classes, pieces, reply))).await;
        asked.ok()?.ok()?;
        Some(Listing { pieces: taken, end: Some(end) })
    }

    /// Settings that can change while the proxy runs. Returns false if there is no answer.
    pub async fn settings(&self, new: Settings) -> bool {
        self.ask(|reply| Request::Settings(Box::new(new), reply), PATIENCE).await.is_some()
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request, patience: Duration) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.requests.send(request(reply)).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(patience, asked).await.ok().flatten()
    }
}
