//! The control plane's way to one node: probe, view, markers, flush. One command at a time, each
//! for as long as the node makes progress with it.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::ambient;
use crate::ids::{Incarnation, NodeId, PairId};
use crate::protocol::clock;
use crate::protocol::expiry::Offset;
use crate::protocol::key::Key;
use crate::protocol::node::{self, Ask, Condition};
use crate::protocol::number;
use crate::protocol::reply::{self, ReplyKind, ReplyLimits};
use crate::rules::{Rule, holds};

use super::allowance::Allowance;
use super::deadline::{Limit, by};
use super::marker::{self, FleetMark, Leftovers, Pending, Record, RingMark, Session};
use super::memories::Memories;
use super::sight::Sight;
use super::witness::Witnesses;
use super::{Batch, Dial, Drain, Effect, NodeError, Pipe};

/// More pairs than any ring has (256 nodes): a marker that claims more is not believed.
const MAX_PAIRS: usize = 128 * 128;

/// A node that refuses to store a marker is asked so often.
const MARK_TRIES: usize = 3;

/// Tells the connections of one [`NodeControl`] apart, from 1 on. A connection leads to one
/// process: what was read on it is true of whatever is written on it, except for a flush in
/// between.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ConnectionId(u64);

/// What a node says of itself and what the proxy has written on it.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// At which of the node's addresses it was seen ([`Dial::life`]).
    pub life: u64,
    /// The connection that it was read on, and so the process.
    pub connection: ConnectionId,
    /// The incarnation marker.
    pub incarnation: Option<Incarnation>,
    /// Something stands in the incarnation marker's place that is none.
    pub incarnation_unread: bool,
    pub ring: Option<RingMark>,
    /// Something stands in the ring marker's place that this release cannot read.
    pub ring_unread: bool,
    /// The session marker.
    pub session: Option<Session>,
    /// The fleet marker.
    pub fleet: Option<FleetMark>,
    /// Delayed flushes that it remembers.
    pub pending: Option<Pending>,
    /// The pairs' records, of this node's pairs and of others, of whatever period: also of the ring
    /// that the marker names.
    pub records: Vec<(PairId, Record)>,
    /// Items, the proxy's own and flushed ones included: 0 proves emptiness, more proves nothing.
    pub curr_items: u64,
    /// The node's clock, unix seconds.
    pub time: u64,
    /// What that says of its dates, and the proxy's.
    pub offset: Option<Offset>,
    /// `time - uptime`: when the process started, by its own clock.
    pub started: u64,
    /// Flushes since then.
    pub cmd_flush: u64,
    /// `-I`, bytes.
    pub item_size_max: Option<usize>,
    /// Whether items have cas ids (no `-C`).
    pub cas_enabled: bool,
    /// memcached's version.
    pub version: String,
}

/// What a probe found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The incarnation marker; `None` = the node lives, and has none.
    pub incarnation: Option<Incarnation>,
    /// One of the other markers is gone.
    pub missing: bool,
    /// The session marker, if it was asked for.
    pub session: Option<Session>,
    /// Delayed flushes that it remembers, if other markers were asked for.
    pub pending: Option<Pending>,
    /// The session of a proxy that says that it works beside another one, likewise.
    pub rival: Option<u64>,
    /// The session of a proxy that asks whether somebody works here, likewise.
    pub knock: Option<u64>,
    /// The fleet marker, if it was asked for.
    pub fleet: Option<FleetMark>,
}

/// Why a marker was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// The node could not be talked to.
    #[error("it {0}")]
    Node(#[from] NodeError),
    /// The incarnation marker is gone: so is the memory that the write was meant for.
    #[error("its memory is gone")]
    MemoryGone,
    /// Another incarnation's marker stands there: the memory is not the one that was known.
    #[error("it holds another incarnation than expected")]
    OtherMemory,
    /// A later record of the pair stands there, which was not known: nothing was written.
    #[error("it holds a later record")]
    Newer(Record),
    /// Another proxy has its open session there.
    #[error("another proxy (session {0:016x}) works on it")]
    Foreign(u64),
    /// It is a fleet's of proxies: another one's, or that of a proxy that belongs to none, or this
    /// one's in a later generation.
    #[error("it belongs to fleet {} (generation {})", .0.name, .0.generation)]
    OfFleet(FleetMark),
    /// The marker was changed by somebody else meanwhile, or could not be stored.
    #[error("it refused to store a marker: {0}")]
    Refused(String),
}

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
    /// asked. (Eight answers are progress, so one that answers few questions has so long for all of
    /// them.)
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

    /// From now on it may take so long.
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

    /// Reads the incarnation marker, and `others` with it: a marker that is never read is the first
    /// thing a node under pressure evicts.
    pub async fn probe(&self, others: &[String]) -> Result<Probe, NodeError> {
        self.connected(async |connection, deadline| {
            let mut keys = vec![marker::INCARNATION_KEY];
            keys.extend(others.iter().map(String::as_str));
            if !others.is_empty() {
                keys.extend([marker::FLUSH_KEY, marker::RIVAL_KEY, marker::KNOCK_KEY]);
            }
            let mut found = connection.read(deadline, &keys).await?;
            let session = |value: Option<(Bytes, u64)>| {
                value.and_then(|(v, _)| u64::from_str_radix(std::str::from_utf8(&v).ok()?, 16).ok())
            };
            let knock = if others.is_empty() { None } else { found.pop().flatten() };
            let rival = if others.is_empty() { None } else { found.pop().flatten() };
            let pending = if others.is_empty() { None } else { found.pop().flatten() };
            let at = |key: &str| keys.iter().position(|k| *k == key).and_then(|at| found[at].as_ref()).map(|(v, _)| v);
            Ok(Probe {
                incarnation: at(marker::INCARNATION_KEY).and_then(|v| marker::parse_incarnation(v)),
                missing: found[1..].iter().any(Option::is_none),
                session: if others.is_empty() { None } else { at(marker::SESSION_KEY).and_then(|v| Session::parse(v)) },
                pending: pending.and_then(|(v, _)| Pending::parse(&v)),
                rival: session(rival),
                knock: session(knock),
                fleet: if others.is_empty() { None } else { at(marker::FLEET_KEY).and_then(|v| FleetMark::parse(v)) },
            })
        })
        .await
    }

    /// The incarnation marker of whoever is at another address than the node's.
    pub async fn peek(&self, at: SocketAddr) -> Result<Option<Incarnation>, NodeError> {
        let deadline = Instant::now() + self.timeout.get();
        let stream = by(deadline, self.dialer.dial_at(self.node, at)).await.ok_or(NodeError::Timeout)??;
        let found = read(&mut Pipe::over(self.node, stream), deadline.into(), &[marker::INCARNATION_KEY]).await?;
        Ok(found[0].as_ref().and_then(|(value, _)| marker::parse_incarnation(value)))
    }

    /// Reads all there is to know; the records of pairs `0..pairs`.
    pub async fn view(&self, pairs: usize) -> Result<NodeView, NodeError> {
        self.connected(async |connection, deadline| {
            let (life, id) = (connection.pipe.life(), connection.id);
            let mut view = NodeView { life, connection: id, cas_enabled: true, ..NodeView::default() };
            for (name, value) in connection.pipe.stats("", deadline).await? {
                let number = || value.parse::<u64>().unwrap_or(0);
                match name.as_str() {
                    "curr_items" => view.curr_items = number(),
                    "time" => view.time = number(),
                    "uptime" => view.started = number(),
                    "cmd_flush" => view.cmd_flush = number(),
                    "version" => view.version = value,
                    _ => {}
                }
            }
            let seen = |time: u64| i64::try_from(time).map(|time| Offset::seen(time, ambient::date(Instant::now())));
            view.offset = seen(view.time).ok();
            view.started = view.time.saturating_sub(view.started);
            for (name, value) in connection.pipe.stats("settings", deadline).await? {
                match name.as_str() {
                    "item_size_max" => view.item_size_max = value.parse().ok(),
                    "cas_enabled" => view.cas_enabled = value != "no",
                    _ => {}
                }
            }
            if let Some(bytes) = view.item_size_max {
                self.value_max.store(ReplyLimits::of_node(bytes).value_len_max, Relaxed);
            }
            let pair_keys: Vec<String> = (0..pairs).map(|p| marker::pair_key(PairId(p as u32))).collect();
            let mut keys = vec![marker::INCARNATION_KEY, marker::RING_KEY, marker::SESSION_KEY, marker::FLUSH_KEY];
            keys.push(marker::FLEET_KEY);
            keys.extend(pair_keys.iter().map(String::as_str));
            let mut found = connection.read(deadline, &keys).await?.into_iter();
            let mut next = || found.next().flatten().map(|(value, _)| value);
            let incarnation = next();
            view.incarnation = incarnation.as_ref().and_then(|v| marker::parse_incarnation(v));
            view.incarnation_unread = incarnation.is_some_and(|v| !marker::is_unsure(&v)) && view.incarnation.is_none();
            let ring = next();
            view.ring = ring.as_ref().and_then(|v| RingMark::parse(v));
            view.ring_unread = ring.is_some() && view.ring.is_none();
            view.session = next().and_then(|v| Session::parse(&v));
            view.pending = next().and_then(|v| Pending::parse(&v));
            view.fleet = next().and_then(|v| FleetMark::parse(&v));
            let mut records: Vec<Option<Bytes>> = (0..pairs).map(|_| next()).collect();
            // Another ring may have had more pairs.
            let more = view.ring.map_or(0, |mark| mark.pair_count().min(MAX_PAIRS));
            if pairs > 0 && more > pairs {
                let keys: Vec<String> = (pairs..more).map(|p| marker::pair_key(PairId(p as u32))).collect();
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                records.extend(connection.read(deadline, &keys).await?.into_iter().map(|f| f.map(|(value, _)| value)));
            }
            for (pair, value) in records.into_iter().enumerate() {
                if let Some(record) = value.and_then(|v| Record::parse(&v)) {
                    view.records.push((PairId(pair as u32), record));
                }
            }
            Ok(view)
        })
        .await
    }

    /// Reads the node's clock. The item that tells it is made on the memory that is `incarnation`,
    /// and on no other, `time`: about its date.
    pub async fn clock(&self, incarnation: Incarnation, time: i64) -> Result<Option<Offset>, NodeError> {
        self.connected(async |Connection { pipe, .. }, deadline| {
            let mut batch = Batch::new();
            batch.command(node::MARKER_READ, Effect::Read);
            batch.command(clock::CLOCK_READ, Effect::Read);
            let (mut known, mut due, mut shown) = (false, false, None);
            pipe.exchange(batch, deadline, |index, frame| {
                match index {
                    0 => {
                        let found = frame.data().and_then(|v| marker::parse_incarnation(&v));
                        known = found.is_some_and(|found| self.memories.is(self.node, incarnation, found));
                    }
                    _ => {
                        due = clock::is_due(&frame);
                        shown = clock::shown(&frame);
                    }
                }
                Ok(())
            })
            .await?;
            let offset = shown.map(|shown| Offset::seen(shown, ambient::date(Instant::now())));
            if known && due {
                // Refused by a node that is full, it is tried again at the next reading.
                pipe.ask_with(|out| clock::make(out, shown.unwrap_or(time)), deadline).await?;
            }
            Ok(offset.filter(|_| known))
        })
        .await
    }

    /// Writes a new incarnation marker on what was `seen`, and on nothing else: on the very
    /// connection of the look, for a process that was started since then has no marker either, and
    /// may hold anything. Returns the session of another proxy that stood open there.
    pub async fn mark(
        &self,
        seen: &NodeView,
        incarnation: Incarnation,
        ring: RingMark,
        session: Session,
    ) -> Result<Option<u64>, MarkError> {
        self.connected_as(Some(seen.connection), async |connection, deadline| {
            let keys = [marker::INCARNATION_KEY, marker::RING_KEY, marker::SESSION_KEY, marker::FLEET_KEY];
            let found = connection.read(deadline, &keys).await?;
            let there = found[2].as_ref().and_then(|(v, _)| Session::parse(v));
            let others = there.filter(|there| there.open && there.id != session.id).map(|there| there.id);
            if found[0].as_ref().and_then(|(v, _)| marker::parse_incarnation(v)) != seen.incarnation {
                return Ok(Err(MarkError::OtherMemory));
            }
            if let Some(mark) = self.forbids(&found[3]) {
                return Ok(Err(MarkError::OfFleet(mark)));
            }
            let fleet = self.fleet.as_ref().map_or_else(String::new, FleetMark::to_string);
            let values = [incarnation.to_string(), ring.to_string(), session.to_string(), fleet];
            let keys = if self.fleet.is_some() { &keys[..] } else { &keys[..3] };
            // What is right already stays untouched: a node that is full (`-M`) refuses the write
            // and deletes the marker.
            let mut missing: Vec<usize> =
                (0..keys.len()).filter(|&i| found[i].as_ref().is_none_or(|(v, _)| *v != values[i])).collect();
            let certified = !missing.contains(&0);
            let mut cas: Vec<Option<u64>> = found.iter().map(|f| f.as_ref().map(|(_, cas)| *cas)).collect();
            let mut result = Ok(());
            // Its place is free then: the next try often succeeds.
            for _ in 0..MARK_TRIES {
                let writes = missing.iter().map(|&i| (keys[i], values[i].as_str(), cas[i]));
                result = write(&mut connection.pipe, deadline, writes).await?;
                if result.is_ok() {
                    break;
                }
                let found = connection.read(deadline, keys).await?;
                // Nobody else may have written meanwhile, and a memory that was the expected one
                // must still be.
                let ours = |i: usize| found[i].as_ref().is_none_or(|(v, c)| *v == values[i] || Some(*c) == cas[i]);
                if !(0..keys.len()).all(ours) || certified && found[0].is_none() {
                    break;
                }
                missing.retain(|&i| found[i].as_ref().is_none_or(|(v, _)| *v != values[i]));
                if missing.is_empty() {
                    result = Ok(());
                    break;
                }
                cas = found.iter().map(|f| f.as_ref().map(|(_, cas)| *cas)).collect();
            }
            if result.is_ok() {
                connection.shown = Some(incarnation);
            }
            Ok(result.map(|()| others))
        })
        .await?
    }

    /// Writes a ring marker and nothing else, whatever memory this is. Keys that are not the node's
    /// stay so.
    pub async fn stamp(&self, mark: RingMark) -> Result<(), MarkError> {
        self.connected(async |Connection { pipe, .. }, deadline| {
            let found = read(pipe, deadline, &[marker::RING_KEY]).await?;
            let old = found[0].as_ref().and_then(|(v, _)| RingMark::parse(v));
            let dirty = old.is_some_and(|old| old.leftovers == Leftovers::Dirty);
            let mark = if dirty { RingMark { leftovers: Leftovers::Dirty, ..mark } } else { mark };
            if old == Some(mark) {
                return Ok(Ok(()));
            }
            let cas = found[0].as_ref().map(|(_, cas)| *cas);
            write(pipe, deadline, std::iter::once((marker::RING_KEY, mark.to_string().as_str(), cas))).await
        })
        .await?
    }

    /// Writes the fleet marker again, which a former active proxy has written late, or somebody has
    /// taken away, on the memory that is `incarnation`, and on no other.
    pub async fn fleet_again(&self, incarnation: Incarnation) -> Result<(), MarkError> {
        match &self.fleet {
            Some(mark) => self.write_marked(incarnation, marker::FLEET_KEY, &mark.to_string()).await,
            None => Ok(()),
        }
    }

    /// The connections that the node has.
    pub async fn connections(&self) -> Result<Sight, NodeError> {
        self.connected(async |Connection { pipe, .. }, deadline| {
            let said = pipe.stats("", deadline).await?;
            Ok(Sight::new(&said, pipe.stats("conns", deadline).await?))
        })
        .await
    }

    /// Writes a pair's record on the memory that is `incarnation`, and on no other.
    pub async fn record(&self, incarnation: Incarnation, pair: PairId, record: Record) -> Result<(), MarkError> {
        self.write_marked(incarnation, &marker::pair_key(pair), &record.to_string()).await
    }

    /// Writes the records of several pairs on the memory that is `incarnation`, and on no other,
    /// each where no later one stands. Does not tell which of them the node refused.
    pub async fn record_all(&self, incarnation: Incarnation, records: &[(PairId, Record)]) -> Result<(), MarkError> {
        let of_pairs: Vec<_> =
            records.iter().map(|(pair, record)| (marker::pair_key(*pair), record.to_string())).collect();
        let mut keys = vec![marker::INCARNATION_KEY];
        keys.extend(of_pairs.iter().map(|(key, _)| key.as_str()));
        self.connected(async |connection, deadline| {
            let found = connection.read(deadline, &keys).await?;
            if let Err(error) = self.check_memory(&found[0], incarnation) {
                return Ok(Err(error));
            }
            let there = records.iter().zip(&of_pairs).zip(&found[1..]);
            let due = there.filter(|(((_, new), _), found)| later(found, new).is_none());
            let writes = due.map(|((_, (key, value)), found)| (&**key, &**value, found.as_ref().map(|(_, cas)| *cas)));
            write(&mut connection.pipe, deadline, writes).await
        })
        .await?
    }

    /// Writes the ring marker on the memory that is `incarnation`, and on no other.
    pub async fn ring(&self, incarnation: Incarnation, mark: RingMark) -> Result<(), MarkError> {
        self.write_marked(incarnation, marker::RING_KEY, &mark.to_string()).await
    }

    /// Writes the delayed flushes on the memory that is `incarnation`, and on no other.
    pub async fn pending(&self, incarnation: Incarnation, pending: &Pending) -> Result<(), MarkError> {
        self.write_marked(incarnation, marker::FLUSH_KEY, &pending.to_string()).await
    }

    /// Writes the session marker on the memory that is `incarnation`, and on no other.
    pub async fn session(&self, incarnation: Incarnation, session: Session) -> Result<(), MarkError> {
        let value = session.to_string();
        let write = || self.write_marked(incarnation, marker::SESSION_KEY, &value);
        match write().await {
            // A full node (`-M`) has deleted the old one: its place is free now.
            Err(MarkError::Refused(_)) => write().await,
            result => result,
        }
    }

    /// Says that the proxy of this session works beside another one; for so many seconds. Blindly:
    /// it certifies nothing.
    pub async fn rival(&self, session: u64, seconds: u64) -> Result<(), NodeError> {
        // A full node may refuse it: the next probe tries again.
        self.say(marker::RIVAL_KEY, session, seconds).await
    }

    /// Asks whoever works on the node to say so, and waits for that. Returns the session of one who
    /// did.
    pub async fn knock(&self, session: u64, wait: Duration) -> Result<Option<u64>, NodeError> {
        // (A full node may refuse it: then nobody is heard, as before there were knocks.)
        self.say(marker::KNOCK_KEY, session, wait.as_secs() + 2).await?;
        tokio::time::sleep(wait).await;
        let found = self.probe(&[marker::RING_KEY.to_owned()]).await?;
        Ok(found.rival.filter(|id| *id != session))
    }

    async fn say(&self, key: &str, session: u64, seconds: u64) -> Result<(), NodeError> {
        self.connected(async |Connection { pipe, .. }, deadline| {
            let (value, seconds) = (format!("{session:016x}"), seconds as i64);
            let said = |out: &mut _| node::ms_own(out, key, value.as_bytes(), seconds, Condition::None);
            pipe.ask_with(said, deadline).await?;
            Ok(())
        })
        .await
    }

    async fn write_marked(&self, incarnation: Incarnation, key: &str, value: &str) -> Result<(), MarkError> {
        self.connected(async |connection, deadline| {
            let found = connection.read(deadline, &[marker::INCARNATION_KEY, key]).await?;
            if let Err(error) = self.check_memory(&found[0], incarnation) {
                return Ok(Err(error));
            }
            if key == marker::FLEET_KEY
                && let Some(mark) = self.forbids(&found[1])
            {
                return Ok(Err(MarkError::OfFleet(mark)));
            }
            if let Some(new) = Record::parse(value.as_bytes())
                && let Some(old) = later(&found[1], &new)
            {
                return Ok(if holds(Rule::UniqueEpochs) { Err(MarkError::Newer(old)) } else { Ok(()) });
            }
            // Whoever closes a session, or takes a node over from one that is closed, must not do
            // it to another proxy that runs.
            if key == marker::SESSION_KEY
                && let Some(there) = found[1].as_ref().and_then(|(old, _)| Session::parse(old))
                && there.open
                && Session::parse(value.as_bytes()).is_some_and(|ours| ours.id != there.id)
            {
                return Ok(Err(MarkError::Foreign(there.id)));
            }
            let cas = found[1].as_ref().map(|(_, cas)| *cas);
            write(&mut connection.pipe, deadline, std::iter::once((key, value, cas))).await
        })
        .await?
    }

    /// Puts markers back that were evicted from the memory that was `seen`, where there still are
    /// none. `markers`: the incarnation's first.
    ///
    /// On the very connection of the look: another process has no markers either. It may be flushed
    /// meanwhile all the same. So the place of the incarnation marker is taken first, by what shows
    /// nothing; then the flushes are counted; then the marker is put there by cas. A flush before
    /// the count is counted, one after it has taken what the cas asks for. (It may have left that
    /// alone, from memcached 1.6.25 on: they are counted once more.)
    pub async fn restore(&self, seen: &NodeView, markers: &[(String, String)]) -> Result<(), MarkError> {
        self.connected_as(Some(seen.connection), async |connection, deadline| {
            let keys: Vec<&str> = markers.iter().map(|(key, _)| key.as_str()).collect();
            let [incarnation, ..] = markers else { return Ok(Ok(())) };
            let mut found = connection.read(deadline, &keys).await?;
            if found[0].is_none() {
                let taken = std::iter::once((keys[0], marker::UNSURE, None));
                if let Err(error) = write(&mut connection.pipe, deadline, taken).await? {
                    return Ok(Err(error));
                }
                found[0] = connection.read(deadline, &keys[..1]).await?.pop().flatten();
            }
            let unsure = match &found[0] {
                Some((value, _)) if *value == incarnation.1 => None,
                Some((value, cas)) if marker::is_unsure(value) => Some(*cas),
                Some(_) => return Ok(Err(MarkError::OtherMemory)),
                None => return Ok(Err(MarkError::MemoryGone)),
            };
            if connection.flushes(deadline).await? != seen.cmd_flush {
                return Ok(Err(MarkError::MemoryGone));
            }
            let gone = markers.iter().zip(&found).skip(1).filter(|(_, f)| f.is_none());
            let gone = gone.map(|((key, value), _)| (key.as_str(), value.as_str(), None));
            let unsure = unsure.map(|cas| (keys[0], incarnation.1.as_str(), Some(cas)));
            let written = write(&mut connection.pipe, deadline, unsure.into_iter().chain(gone)).await?;
            if connection.flushes(deadline).await? != seen.cmd_flush {
                return Ok(Err(MarkError::MemoryGone));
            }
            Ok(written)
        })
        .await?
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
        pipe.life() == self.dialer.life(self.node) || !holds(Rule::OneAddressAConnection)
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

/// The record that was read, if it is a later one. Writes of two records of one pair may overtake
/// each other on their way here, and a node that was away may carry one that is not known: the
/// newer one stays, and whoever waits for the write is told.
fn later(found: &Found, new: &Record) -> Option<Record> {
    found.as_ref().and_then(|(old, _)| Record::parse(old)).filter(|old| old.outlives(new))
}

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

/// Writes markers: over what was read (by cas), or where there was nothing (add).
async fn write<'a>(
    pipe: &mut Pipe,
    deadline: Limit,
    writes: impl Iterator<Item = (&'a str, &'a str, Option<u64>)>,
) -> Result<Result<(), MarkError>, NodeError> {
    let mut batch = Batch::new();
    for (key, value, cas) in writes {
        let condition = match cas {
            // Without cas ids (-C) nothing can be compared; then the write is as blind as the
            // server wants it.
            Some(0) => Condition::None,
            Some(cas) => Condition::Cas(cas),
            None => Condition::Absent,
        };
        batch.add(|out| node::ms_own(out, key, value.as_bytes(), 0, condition));
    }
    let mut refused = None;
    pipe.exchange(batch, deadline, |_, frame| {
        if *frame.kind() != ReplyKind::MetaHd {
            refused = Some(String::from_utf8_lossy(frame.line()).into_owned());
        }
        Ok(())
    })
    .await?;
    Ok(refused.map_or(Ok(()), |said| Err(MarkError::Refused(said))))
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
