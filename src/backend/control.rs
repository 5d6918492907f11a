//! The control plane's way to one node: probe, view, markers, flush. One command at a time, each
//! for as long as the node makes progress with it.

mod look;
mod marks;
mod stored;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::ids::{Incarnation, NodeId};
use crate::protocol::key::Key;
use crate::protocol::node::{self, Ask, Condition};
use crate::protocol::number;
use crate::protocol::reply::{self, ReplyKind, ReplyLimits};
use crate::rules::{Rule, holds};

use super::allowance::Allowance;
use super::deadline::Limit;
use super::marker::{self, FleetMark};
use super::memories::Memories;
use super::witness::Witnesses;
use super::{Batch, Dial, Drain, Effect, NodeError, Pipe};
pub use look::{NodeView, Probe};
pub use marks::MarkError;
pub use stored::Stored;

/// Tells the connections of one [`NodeControl`] apart, from 1 on. A connection leads to one
/// process: what was read on it is true of whatever is written on it, except for a flush in
/// between.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ConnectionId(u64);

/// A flush gives a memory another name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewName {
    pub from: Incarnation,
    pub to: Incarnation,
}

/// How a flush was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Flushed {
    /// The node is empty, and carries its markers.
    Done,
    /// It refuses the command (`-F`), in these words; nothing else has changed, except perhaps for
    /// the memory's name.
    Refused { said: String, renamed: bool },
}

/// The control plane's way to one node.
pub struct NodeControl {
    node: NodeId,
    dialer: Arc<dyn Dial>,
    timeout: Allowance,
    memories: Arc<Memories>,
    connections: Mutex<Connections>,
    pub(super) witnesses: Witnesses,
    /// What it may store at most, by its `-I`; set by [`NodeControl::view`].
    value_max: AtomicUsize,
    /// With which every memory is marked, if this proxy is one of a fleet.
    fleet: Option<FleetMark>,
}

#[derive(Debug, Default)]
struct Connections {
    present: Option<Connection>,
    made: ConnectionId,
}

#[derive(Debug)]
struct Connection {
    pipe: Pipe,
    id: ConnectionId,
    /// The incarnation marker that was last read on it: the process has, or had, that memory.
    shown: Option<Incarnation>,
}

impl Connection {
    /// Reads items with their cas ids.
    async fn read(&mut self, deadline: Limit, keys: &[&str]) -> Result<Vec<Found>, NodeError> {
        let found = read(&mut self.pipe, deadline, keys).await?;
        if keys.first() == Some(&marker::INCARNATION_KEY)
            && let Some((value, _)) = &found[0]
        {
            self.shown = marker::parse_incarnation(value);
        }
        Ok(found)
    }

    /// Flushes of the process so far.
    async fn flushes(&mut self, deadline: Limit) -> Result<u64, NodeError> {
        let stats = self.pipe.stats("", deadline).await?;
        let count = stats.into_iter().find(|(name, _)| name == "cmd_flush").and_then(|(_, value)| value.parse().ok());
        count.ok_or_else(|| NodeError::Protocol("its stats do not count flushes".to_owned()))
    }
}

impl NodeControl {
    /// How long the node may take to be connected to, and then make no progress with what it is
    /// asked. (Eight answers are progress, so one that answers few questions has this long for all
    /// of them.)
    pub fn new(node: NodeId, dialer: Arc<dyn Dial>, memories: Arc<Memories>, timeout: Duration) -> NodeControl {
        NodeControl {
            node,
            dialer,
            timeout: Allowance::new(timeout),
            memories,
            connections: Mutex::default(),
            witnesses: Witnesses::default(),
            value_max: AtomicUsize::new(ReplyLimits::default().value_len_max),
            fleet: None,
        }
    }

    /// From now on it may take this long.
    pub fn allow(&self, timeout: Duration) {
        self.timeout.set(timeout);
    }

    /// Of a proxy that is one of a fleet.
    pub fn of_fleet(self, mark: Option<FleetMark>) -> NodeControl {
        NodeControl { fleet: mark, ..self }
    }

    /// Whether a mark that stands on the node forbids this proxy to work there.
    fn forbids(&self, found: &Found) -> Option<FleetMark> {
        let found = FleetMark::parse(&found.as_ref()?.0)?;
        let allowed =
            self.fleet.as_ref().is_some_and(|own| own.name == found.name && own.generation >= found.generation);
        (!allowed).then_some(found)
    }

    fn is_ended_by(&self, found: &FleetMark) -> bool {
        self.fleet.as_ref().is_some_and(|own| own.is_ended_by(found))
    }

    /// Empties the node and re-sets its markers in the same write, so that no moment shows it
    /// without them; among them, and first, another name for the memory. Not before the connection
    /// has shown the memory that is meant (`None`: no markers are kept): what has taken its place
    /// is somebody else's, or is purged when it comes back. If it fails, the connection must be
    /// drained before the node is used again: the flush may still be executed.
    ///
    /// It has `patience`, until it is `given_up`: a flush in doubt is a loss, also where all nodes
    /// stand still for a moment.
    pub async fn flush(
        &self,
        memory: Option<NewName>,
        markers: &[(String, String)],
        patience: Duration,
        given_up: impl Future<Output = ()>,
    ) -> Result<Flushed, (MarkError, Option<Drain>)> {
        let mut given_up = pin!(given_up);
        let mut connections = self.connections.lock().await;
        let deadline = Instant::now() + patience;
        let connected = tokio::select! {
            biased;
            () = given_up.as_mut() => Err(NodeError::Timeout.into()),
            connection = self.connect_to(&mut connections, memory.map(|name| name.from), deadline) => connection,
        };
        let mut connection = connected.map_err(|e| (e, None))?;
        if let Some(NewName { from, to }) = memory {
            self.memories.flushes(self.node, from, to);
        }
        let mut batch = Batch::new();
        // In front of it: a proxy that was replaced takes the marks away with all else.
        let ahead = usize::from(self.fleet.is_some());
        if self.fleet.is_some() {
            batch.command(node::FLEET_READ, Effect::Read);
        }
        batch.command(node::FLUSH_ALL, Effect::Mutation);
        for (key, value) in markers.iter().filter(|_| holds(Rule::FlushWithMarkers)) {
            batch.add(|out| node::ms_own(out, key, value.as_bytes(), 0, Condition::None));
        }
        let (mut refused, mut unnamed, mut replaced) = (None, None, None);
        let exchange = connection.pipe.exchange(batch, deadline, |index, frame| {
            let said = || Some(String::from_utf8_lossy(frame.line()).into_owned());
            let Some(index) = index.checked_sub(ahead) else {
                replaced =
                    frame.data().and_then(|mark| FleetMark::parse(&mark)).filter(|found| self.is_ended_by(found));
                return Ok(());
            };
            match index {
                0 if *frame.kind() != ReplyKind::Ok => refused = said(),
                1 if memory.is_some() && *frame.kind() != ReplyKind::MetaHd => unnamed = said(),
                // Another marker that was not stored is found missing by the next probe.
                _ => {}
            }
            Ok(())
        });
        let done = tokio::select! {
            biased;
            () = given_up => Err(NodeError::Timeout),
            done = exchange => done,
        };
        if let Err(error) = done {
            self.memories.forget(self.node);
            return Err((error.into(), Some(connection.pipe.into_drain())));
        }
        if unnamed.is_none() && holds(Rule::FlushWithMarkers) {
            connection.shown = memory.map(|name| name.to).or(connection.shown);
        }
        connections.present = Some(connection);
        if let Some(mark) = replaced {
            return Err((MarkError::OfFleet(mark), None));
        }
        match (refused, unnamed) {
            (Some(said), unnamed) => Ok(Flushed::Refused { said, renamed: unnamed.is_none() }),
            (None, None) => Ok(Flushed::Done),
            (None, Some(said)) => Err((MarkError::Refused(said), None)),
        }
    }

    /// A connection that has shown the memory, if one is given.
    async fn connect_to(
        &self,
        connections: &mut Connections,
        memory: Option<Incarnation>,
        deadline: Instant,
    ) -> Result<Connection, MarkError> {
        let mut connection = loop {
            match self.take_or_connect(connections, None, deadline).await {
                // A dial has a time of its own.
                Err(NodeError::Timeout) if Instant::now() < deadline => {}
                connection => break connection?,
            }
        };
        let Some(memory) = memory else { return Ok(connection) };
        let found = connection.read(deadline.into(), &[marker::INCARNATION_KEY]).await?;
        match self.check_memory(&found[0], memory) {
            // It was evicted, or flushed: from the process that had it.
            Err(MarkError::MemoryGone) if connection.shown == Some(memory) => Ok(connection),
            Err(error) => Err(error),
            Ok(()) => Ok(connection),
        }
    }

    /// The connection that is at hand, if it leads to where the node is now. `looked_at`: that one
    /// or none.
    async fn take_or_connect(
        &self,
        connections: &mut Connections,
        looked_at: Option<ConnectionId>,
        deadline: Instant,
    ) -> Result<Connection, NodeError> {
        let present = |c: &mut Connection| looked_at.is_none_or(|id| c.id == id) && self.is_present(&c.pipe);
        if let Some(mut connection) = connections.present.take_if(present) {
            connection.pipe.begin_work();
            return Ok(connection);
        }
        if looked_at.is_some() {
            return Err(NodeError::Reset);
        }
        let pipe = Pipe::connect(&*self.dialer, self.node, deadline).await?;
        let pipe = pipe.with_values(self.value_max.load(Relaxed));
        connections.made.0 += 1;
        Ok(Connection { pipe, id: connections.made, shown: None })
    }

    /// Whether the incarnation marker that was read is the one of the memory that is written to.
    fn check_memory(&self, found: &Found, incarnation: Incarnation) -> Result<(), MarkError> {
        match found.as_ref().map(|(value, _)| marker::parse_incarnation(value)) {
            None => Err(MarkError::MemoryGone),
            Some(Some(there)) if self.memories.is(self.node, incarnation, there) => Ok(()),
            Some(_) => Err(MarkError::OtherMemory),
        }
    }

    /// Whether it leads to where the node is now.
    fn is_present(&self, pipe: &Pipe) -> bool {
        pipe.address() == self.dialer.address(self.node) || !holds(Rule::OneAddressAConnection)
    }

    async fn connected<T>(
        &self,
        work: impl AsyncFnOnce(&mut Connection, Limit) -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        self.connected_as(None, work).await
    }

    /// `looked_at`: over that connection, or not at all.
    async fn connected_as<T>(
        &self,
        looked_at: Option<ConnectionId>,
        work: impl AsyncFnOnce(&mut Connection, Limit) -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        let mut connections = self.connections.lock().await;
        let deadline = Instant::now() + self.timeout.get();
        let mut connection = self.take_or_connect(&mut connections, looked_at, deadline).await?;
        let result = work(&mut connection, Limit::Progress(self.timeout.get())).await;
        if !self.is_present(&connection.pipe) {
            // The node is elsewhere by now: this says nothing about it.
            return Err(NodeError::Reset);
        }
        if result.is_ok() {
            connections.present = Some(connection);
        }
        // One in error is dropped: all that was unanswered on it is reads and conditional writes of
        // markers, which cannot certify a memory they were not meant for.
        result
    }
}

type Found = Option<(Bytes, u64)>;

/// Reads items with their cas ids.
async fn read(pipe: &mut Pipe, deadline: Limit, keys: &[&str]) -> Result<Vec<Found>, NodeError> {
    let mut batch = Batch::new();
    for key in keys {
        batch.add(|out| node::mg(out, Key::plain(key.as_bytes()), Ask::ValueAndCas));
    }
    let mut found = Vec::with_capacity(keys.len());
    pipe.exchange(batch, deadline, |_, frame| {
        found.push(match frame.kind() {
            ReplyKind::MetaVa { .. } => {
                let data = frame.data().ok_or("no value")?;
                let cas = reply::meta_flag(frame.line(), b'c').and_then(number::parse_u64);
                Some((data, cas.ok_or("no cas id in the answer")?))
            }
            ReplyKind::MetaEn => None,
            _ => return Err(format!("unexpected answer to mg: {}", String::from_utf8_lossy(frame.line()))),
        });
        Ok(())
    })
    .await?;
    Ok(found)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
