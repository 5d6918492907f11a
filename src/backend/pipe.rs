//! The control plane's pipelined connection to one node: batches of commands out, their answers
//! back, under a deadline.
//!
//! Reading goes on while writing: a batch whose answers fill both sockets would otherwise stop both
//! sides for ever.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep};

use crate::ambient;
use crate::ids::{AddressNumber, Incarnation, NodeId};
use crate::progress::Progress;
use crate::protocol::node;
use crate::protocol::out::OutQueue;
use crate::protocol::reply::{self, Found, Frame, ReplyKind, ReplyLimits, Scanned};

use super::batch::{Batch, Effect};
use super::blocks::Blocks;
use super::deadline::{Limit, Patience, by};
use super::drain::Drain;
use super::marker::{is_unsure, parse_incarnation};
use super::memories::Memories;
use super::poll::{poll_read, poll_write};
use super::{Dial, NodeError, NodeStream};

/// A marker that is missing is looked for again after this long.
const MARKER_PAUSE: Duration = Duration::from_millis(50);

/// A connection to one node. After any error it is of no more use than to be dropped or
/// [drained](Pipe::into_drain).
#[derive(Debug)]
pub struct Pipe {
    node: NodeId,
    /// Under which of the node's addresses it was dialled.
    address: AddressNumber,
    stream: NodeStream,
    /// Bytes not yet taken by the socket.
    out: OutQueue,
    /// Bytes of commands taken by the socket, and handed to the pipe, since it was opened.
    written: u64,
    loaded: u64,
    /// Where commands end, counted like `written`: a cut between them leaves the framing whole.
    ends: VecDeque<u64>,
    input: BytesMut,
    blocks: Blocks,
    /// How long the answer at the front of `input` will be, where that is known, else 0: large
    /// values are read in few pieces.
    need: usize,
    /// Answers that were read together; kept for its room.
    found: Vec<Found>,
    owed: usize,
    mutations_owed: bool,
    failed: Option<NodeError>,
    /// What the node has moved.
    progress: Progress<Instant>,
    /// The socket took no more when it was last asked: what it takes next shows that the node
    /// reads.
    stuck: bool,
    /// What the node may send.
    limits: ReplyLimits,
}

impl Pipe {
    pub async fn connect(dialer: &dyn Dial, node: NodeId, deadline: Instant) -> Result<Pipe, NodeError> {
        let address = dialer.address(node);
        let stream = by(deadline, dialer.dial(node)).await.ok_or(NodeError::Timeout)??;
        Ok(Pipe { address, ..Pipe::over(node, stream) })
    }

    /// Connects to a memory: nothing is read or written before the marker was. What was restarted
    /// or replaced meanwhile is found so, for a connection leads to one process. `None`: no markers
    /// are kept.
    pub async fn connect_to(
        dialer: &dyn Dial,
        node: NodeId,
        memory: Option<(&Memories, Incarnation)>,
        deadline: Instant,
    ) -> Result<Pipe, NodeError> {
        let mut pipe = Pipe::connect(dialer, node, deadline).await?;
        let Some((memories, memory)) = memory else { return Ok(pipe) };
        loop {
            let mut batch = Batch::new();
            batch.command(node::MARKER_READ, Effect::Read);
            let mut found = None;
            let read = pipe.exchange(batch, deadline, |_, frame| {
                found = frame.data();
                Ok(())
            });
            read.await?;
            match found.filter(|value| !is_unsure(value)).map(|value| parse_incarnation(&value)) {
                Some(Some(found)) if memories.is(node, memory, found) => return Ok(pipe),
                Some(_) => return Err(NodeError::OtherMemory),
                // Where it was evicted the control plane writes it again.
                None if Instant::now() + MARKER_PAUSE < deadline => sleep(MARKER_PAUSE).await,
                None => return Err(NodeError::MarkerLost),
            }
        }
    }

    /// A pipe over a stream that is already open, and on which nothing is outstanding.
    pub fn over(node: NodeId, stream: NodeStream) -> Pipe {
        Pipe {
            node,
            address: AddressNumber::default(),
            stream,
            out: OutQueue::default(),
            written: 0,
            loaded: 0,
            ends: VecDeque::new(),
            input: BytesMut::new(),
            blocks: Blocks::default(),
            need: 0,
            found: Vec::new(),
            owed: 0,
            mutations_owed: false,
            failed: None,
            progress: Progress::new(Instant::now()),
            stuck: false,
            limits: ReplyLimits::default(),
        }
    }

    /// The same pipe, for values of up to this many bytes. What a node announces beyond that is
    /// taken for lost framing, and no memory is asked for it.
    ///
    /// That holds where markers alone are read too: whoever writes to the node past the proxy may
    /// store an item of any size in a marker's place. (A bound of 64 KiB there lost a node for ever
    /// by 900 KB.)
    pub fn with_values(self, value_max: usize) -> Pipe {
        Pipe { limits: ReplyLimits { value_len_max: value_max, ..self.limits }, ..self }
    }

    /// The node at the other end.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Under which of the node's addresses it was dialled ([`Dial::address`]).
    pub fn address(&self) -> AddressNumber {
        self.address
    }

    /// Whether commands that change items were sent, or begun, and not answered: then drain it,
    /// never just drop it.
    pub fn owes_mutations(&self) -> bool {
        self.mutations_owed
    }

    /// Sends a batch and hands each answer, with its number, to `on_reply`. An error from there
    /// means that the answer does not fit the command; the connection is given up as
    /// [`NodeError::Protocol`].
    ///
    /// Dropped in the middle, the pipe still knows what is owed, and can be drained.
    pub async fn exchange<F>(&mut self, batch: Batch, limit: impl Into<Limit>, mut on_reply: F) -> Result<(), NodeError>
    where
        F: FnMut(usize, Frame<'_>) -> Result<(), String>,
    {
        self.begin(batch)?;
        let mut index = 0;
        let done = self.wait(limit.into(), |pipe, cx| pipe.poll_exchange(cx, &mut index, &mut on_reply)).await;
        self.exchanged(done)
    }

    /// From here on several exchanges are one piece of work: what the node moves in any of them is
    /// progress of all.
    pub(super) fn begin_work(&mut self) {
        self.progress = Progress::new(Instant::now());
    }

    async fn wait<T>(
        &mut self,
        limit: Limit,
        mut work: impl FnMut(&mut Pipe, &mut Context<'_>) -> Poll<T>,
    ) -> Option<T> {
        match limit {
            Limit::Until(deadline) => by(deadline, poll_fn(|cx| work(self, cx))).await,
            Limit::Progress(patience) => {
                let mut patience = Patience::new(patience, self.progress.since());
                let done = poll_fn(|cx| {
                    if let Poll::Ready(done) = work(self, cx) {
                        return Poll::Ready(Some(done));
                    }
                    patience.poll_over(self.progress.since(), cx).map(|()| None)
                });
                done.await
            }
        }
    }

    /// As [`Pipe::exchange`], of answers or commands of any size: for as long as the node makes
    /// progress, and no longer than `patience` without. (For what is small and known, a deadline
    /// for the whole is stricter.)
    pub async fn transfer<F>(&mut self, batch: Batch, patience: Duration, on_reply: F) -> Result<(), NodeError>
    where
        F: FnMut(usize, Frame<'_>) -> Result<(), String>,
    {
        self.begin_work();
        self.exchange(batch, Limit::Progress(patience), on_reply).await
    }

    fn begin(&mut self, batch: Batch) -> Result<(), NodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.owed > 0 || !self.out.is_empty() {
            return Err(NodeError::Protocol("an earlier batch was given up half-way".to_owned()));
        }
        self.load(batch);
        Ok(())
    }

    fn exchanged(&mut self, done: Option<Result<(), NodeError>>) -> Result<(), NodeError> {
        self.noted(done)?;
        self.mutations_owed = false;
        Ok(())
    }

    /// Sends one command and returns its answer's line.
    pub async fn ask(&mut self, command: &[u8], effect: Effect, limit: impl Into<Limit>) -> Result<String, NodeError> {
        let written = |out: &mut OutQueue| {
            out.put(command);
            effect
        };
        self.ask_with(written, limit).await
    }

    /// The same for a command that is written now.
    pub(super) async fn ask_with(
        &mut self,
        write: impl FnOnce(&mut OutQueue) -> Effect,
        limit: impl Into<Limit>,
    ) -> Result<String, NodeError> {
        let mut batch = Batch::new();
        batch.add(write);
        let mut line = String::new();
        self.exchange(batch, limit, |_, frame| {
            line = String::from_utf8_lossy(frame.line()).into_owned();
            Ok(())
        })
        .await?;
        Ok(line)
    }

    /// Sends a `stats` command and returns its lines in the order they came.
    pub async fn stats(&mut self, what: &str, limit: impl Into<Limit>) -> Result<Vec<(String, String)>, NodeError> {
        self.send_unframed(|out| node::stats(out, what))?;
        let mut lines = Vec::new();
        let done = self.wait(limit.into(), |pipe, cx| pipe.poll_stats(&mut lines, cx)).await;
        self.noted(done)?;
        Ok(lines)
    }

    fn poll_stats(&mut self, lines: &mut Vec<(String, String)>, cx: &mut Context<'_>) -> Poll<Result<(), NodeError>> {
        loop {
            let (bytes, found) = ready!(self.poll_reply(cx))?;
            let frame = Frame::new(&bytes, &found, Duration::ZERO);
            is_taken(&frame)?;
            let text = |range| String::from_utf8_lossy(frame.text(range)).into_owned();
            match frame.kind() {
                ReplyKind::Stat { name, value } if lines.len() < MAX_STATS => lines.push((text(name), text(value))),
                // A line is no answer yet: ten thousand that drip would be waited for one by one.
                ReplyKind::End | ReplyKind::Reset => {
                    self.progress.answered();
                    return Poll::Ready(Ok(()));
                }
                _ => {
                    let line = String::from_utf8_lossy(frame.line());
                    return Poll::Ready(Err(NodeError::Protocol(format!("stats: {line}"))));
                }
            }
        }
    }

    /// Queues a reading command whose answer is not framed like others (`metadump`), to be read by
    /// [`Pipe::read_chunk`].
    pub fn send(&mut self, command: &[u8]) -> Result<(), NodeError> {
        self.send_unframed(|out| out.put(command))
    }

    fn send_unframed(&mut self, write: impl FnOnce(&mut OutQueue)) -> Result<(), NodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut batch = Batch::new();
        write(&mut batch.out);
        batch.end(0, Effect::Read);
        self.load(batch);
        Ok(())
    }

    /// Writes what is queued and returns the next bytes that come, whatever they are. Safe to drop
    /// and call again.
    pub async fn read_chunk(&mut self, deadline: Instant) -> Result<Bytes, NodeError> {
        let work = poll_fn(|cx| {
            if self.input.is_empty() {
                ready!(self.poll_move(cx))?;
            }
            Poll::Ready(Ok(self.input.split().freeze()))
        });
        let done = by(deadline, work).await;
        self.noted(done)
    }

    /// A node that is gone without a word is noticed within a minute, though nothing is sent to it.
    pub fn keep_alive(&self) {
        self.stream.keep_alive();
    }

    /// What a wait came to (`None`: to nothing in time). After an error the pipe is of no more use.
    fn noted<T>(&mut self, done: Option<Result<T, NodeError>>) -> Result<T, NodeError> {
        let result = done.unwrap_or(Err(NodeError::Timeout));
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// Turns a pipe that is no longer used into the future of its last answer.
    pub fn into_drain(mut self) -> Drain {
        // Commands of which no byte was sent need not be executed at all: cut after the one that
        // was begun.
        let cut = self.ends.iter().copied().find(|&end| end >= self.written).unwrap_or(self.loaded);
        self.out.truncate((cut - self.written) as usize);
        let framing_lost = matches!(self.failed, Some(NodeError::Protocol(_)));
        Drain::new(self.node, self.address, self.stream, self.out, (self.input, self.limits), framing_lost)
    }

    fn load(&mut self, batch: Batch) {
        while self.ends.front().is_some_and(|&end| end <= self.written) {
            self.ends.pop_front();
        }
        let base = self.loaded;
        self.ends.extend(batch.ends.iter().map(|end| base + end));
        self.loaded += batch.len() as u64;
        self.owed += batch.replies;
        self.mutations_owed |= batch.mutates;
        self.out.append(batch.out);
    }

    fn poll_exchange<F>(
        &mut self,
        cx: &mut Context<'_>,
        index: &mut usize,
        on_reply: &mut F,
    ) -> Poll<Result<(), NodeError>>
    where
        F: FnMut(usize, Frame<'_>) -> Result<(), String>,
    {
        while self.owed > 0 || !self.out.is_empty() {
            ready!(self.poll_move(cx))?;
            self.take_frames(index, on_reply)?;
        }
        if self.input.is_empty() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Ready(Err(NodeError::Protocol("more answers than commands".to_owned())))
        }
    }

    fn take_frames<F>(&mut self, index: &mut usize, on_reply: &mut F) -> Result<(), NodeError>
    where
        F: FnMut(usize, Frame<'_>) -> Result<(), String>,
    {
        self.found.clear();
        let used = self.scan(self.owed)?;
        if used == 0 {
            return Ok(());
        }
        let bytes = self.input.split_to(used).freeze();
        let read_at = ambient::date(Instant::now());
        for found in &self.found {
            self.owed -= 1;
            self.progress.answered();
            let frame = Frame::new(&bytes, found, read_at);
            is_taken(&frame)?;
            on_reply(*index, frame).map_err(NodeError::Protocol)?;
            *index += 1;
        }
        Ok(())
    }

    /// Finds whole answers; returns their bytes.
    fn scan(&mut self, most: usize) -> Result<usize, NodeError> {
        let scanned = reply::scan(&self.input, most, &self.limits, &mut self.found);
        let Scanned { used, need } = scanned.map_err(|error| NodeError::Protocol(error.to_string()))?;
        self.need = need;
        Ok(used)
    }

    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Bytes, Found), NodeError>> {
        loop {
            self.found.clear();
            let used = self.scan(1)?;
            if let Some(found) = self.found.pop() {
                return Poll::Ready(Ok((self.input.split_to(used).freeze(), found)));
            }
            ready!(self.poll_move(cx))?;
        }
    }

    /// Moves bytes both ways. Ready once anything was read or written.
    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), NodeError>> {
        let (mut moved, mut broken) = (false, None);
        if !self.out.is_empty() {
            match poll_write(&mut self.stream, &mut self.out, cx) {
                // It may have said why: what came is read first.
                Poll::Ready(Err(error)) => broken = Some(error),
                Poll::Ready(Ok(n)) => {
                    self.written += n as u64;
                    moved = true;
                    if self.stuck {
                        self.progress.add(n, Instant::now());
                    }
                    self.stuck = false;
                }
                Poll::Pending => self.stuck = true,
            }
        }
        match poll_read(&mut self.stream, &mut self.input, &mut self.blocks, self.need, cx) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(NodeError::Reset)),
            Poll::Ready(Ok(n)) => {
                self.progress.add(n, Instant::now());
                moved = true;
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(broken.unwrap_or(error).into())),
            Poll::Pending => {
                if let Some(error) = broken {
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
        if moved { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

/// Whether the node takes the connection at all.
fn is_taken(frame: &Frame<'_>) -> Result<(), NodeError> {
    if matches!(frame.kind(), ReplyKind::Error) && reply::is_full(frame.line()) {
        return Err(NodeError::Full(String::from_utf8_lossy(frame.line()).into_owned()));
    }
    Ok(())
}

/// Most lines taken from one `stats` answer.
const MAX_STATS: usize = 10_000;

#[cfg(test)]
mod tests;
