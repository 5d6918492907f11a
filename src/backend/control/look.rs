//! What is read from a node: at every probe, and all that there is to know.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use tokio::time::Instant;

use crate::ambient;
use crate::backend::deadline::by;
use crate::backend::marker::{self, FleetMark, Pending, Record, RingMark, Session};
use crate::backend::sight::Sight;
use crate::backend::{Batch, Effect, NodeError, Pipe};
use crate::ids::{AddressNumber, Incarnation, PairId, SessionId};
use crate::protocol::clock;
use crate::protocol::expiry::Offset;
use crate::protocol::node;
use crate::protocol::reply::ReplyLimits;

use super::{Connection, ConnectionId, NodeControl, Stored, read};

/// More pairs than any ring has (256 nodes): a marker that claims more is not believed.
const MAX_PAIRS: usize = 128 * 128;

/// What a node says of itself and what the proxy has written on it.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// At which of the node's addresses it was seen ([`address`](crate::backend::Dial::address)).
    pub address: AddressNumber,
    /// The connection that it was read on, and so the process.
    pub connection: ConnectionId,
    /// The incarnation marker.
    pub incarnation: Option<Incarnation>,
    /// Something stands in the incarnation marker's place that is none.
    pub incarnation_unread: bool,
    pub ring: Option<RingMark>,
    /// Something stands in the ring marker's place that this release cannot read.
    pub ring_unread: bool,
    pub session: Option<Session>,
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
    /// Items evicted since then.
    pub evictions: u64,
    /// `-I`, bytes.
    pub item_size_max: Option<usize>,
    /// How large its items may be.
    pub stored: Stored,
    /// Whether items have cas ids (no `-C`).
    pub cas_enabled: bool,
    pub version: String,
}

/// What a probe found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
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
    pub rival: Option<SessionId>,
    /// The session of a proxy that asks whether somebody works here, likewise.
    pub knock: Option<SessionId>,
    /// The fleet marker, if it was asked for.
    pub fleet: Option<FleetMark>,
}

/// The first release whose `md` compares cas ids. (From 1.6.10 to 1.6.12 it compares with 0, so
/// that no copy is taken back that a client's write has overtaken.)
const GUARDED_DELETES: [u32; 3] = [1, 6, 13];

impl NodeView {
    /// Whether refills to and from the node may have no end while clients write.
    pub fn deletes_unguarded(&self) -> bool {
        let number = |part: &str| part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
        let numbers: Option<Vec<u32>> = self.version.splitn(3, '.').map(number).collect();
        numbers.is_some_and(|numbers| numbers.len() == 3 && numbers[..] < GUARDED_DELETES[..])
    }
}

impl NodeControl {
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
            let session =
                |value: Option<(Bytes, u64)>| value.and_then(|(v, _)| SessionId::parse(std::str::from_utf8(&v).ok()?));
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

    /// The incarnation marker of the server at another address than the node's.
    pub async fn peek(&self, at: SocketAddr) -> Result<Option<Incarnation>, NodeError> {
        let deadline = Instant::now() + self.timeout.get();
        let stream = by(deadline, self.dialer.dial_at(self.node, at)).await.ok_or(NodeError::Timeout)??;
        let found = read(&mut Pipe::over(self.node, stream), deadline.into(), &[marker::INCARNATION_KEY]).await?;
        Ok(found[0].as_ref().and_then(|(value, _)| marker::parse_incarnation(value)))
    }

    /// Reads all there is to know; the records of pairs `0..pairs`.
    pub async fn view(&self, pairs: usize) -> Result<NodeView, NodeError> {
        self.connected(async |connection, deadline| {
            let (address, id) = (connection.pipe.address(), connection.id);
            let mut view = NodeView { address, connection: id, cas_enabled: true, ..NodeView::default() };
            for (name, value) in connection.pipe.stats("", deadline).await? {
                let number = || value.parse::<u64>().unwrap_or(0);
                match name.as_str() {
                    "curr_items" => view.curr_items = number(),
                    "time" => view.time = number(),
                    "uptime" => view.started = number(),
                    "cmd_flush" => view.cmd_flush = number(),
                    "evictions" => view.evictions = number(),
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
            view.stored = connection.stored(deadline, self.value_max.load(Relaxed)).await?;
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

    /// The connections that the node has.
    pub async fn connections(&self) -> Result<Sight, NodeError> {
        self.connected(async |Connection { pipe, .. }, deadline| {
            let said = pipe.stats("", deadline).await?;
            Ok(Sight::new(&said, pipe.stats("conns", deadline).await?))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_whose_deletes_are_not_guarded_are_known() {
        let unguarded = |version: &str| NodeView { version: version.into(), ..NodeView::default() }.deletes_unguarded();
        for version in ["1.5.22", "1.6.9", "1.6.10", "1.6.12", "1.6.12_4_gabc", "0.9.9"] {
            assert!(unguarded(version), "{version}");
        }
        for version in ["1.6.13", "1.6.13-rc1", "1.6.18", "1.6.45", "1.7.0", "2.0.1", "", "UNKNOWN", "1.6"] {
            assert!(!unguarded(version), "{version}");
        }
    }
}
