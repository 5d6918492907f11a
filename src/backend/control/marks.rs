//! What is written on a node: markers, each on the memory that it is meant for, and on no other.

use std::time::Duration;

use crate::backend::deadline::Limit;
use crate::backend::marker::{self, FleetMark, Leftovers, Pending, Record, RingMark, Session};
use crate::backend::{Batch, NodeError, Pipe};
use crate::ids::{Incarnation, PairId, SessionId};
use crate::protocol::node::{self, Condition};
use crate::protocol::reply::ReplyKind;
use crate::rules::{Rule, holds};

use super::{Connection, Found, NodeControl, NodeView, read};

/// How often a node that refuses to store a marker is asked.
const MARK_TRIES: usize = 3;

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
    #[error("another proxy (session {0}) works on it")]
    Foreign(SessionId),
    /// It is a fleet's of proxies: another one's, or that of a proxy that belongs to none, or this
    /// one's in a later generation.
    #[error("it belongs to fleet {} (generation {})", .0.name, .0.generation)]
    OfFleet(FleetMark),
    /// The marker was changed by somebody else meanwhile, or could not be stored.
    #[error("it refused to store a marker: {0}")]
    Refused(String),
}

impl NodeControl {
    /// Writes a new incarnation marker on what was `seen`, and on nothing else: on the very
    /// connection of the look, for a process that was started since then has no marker either, and
    /// may hold anything. Returns the session of another proxy that stood open there.
    pub async fn mark(
        &self,
        seen: &NodeView,
        incarnation: Incarnation,
        ring: RingMark,
        session: Session,
    ) -> Result<Option<SessionId>, MarkError> {
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
                // Give up if another proxy has written meanwhile, or if the expected memory is
                // gone.
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

    /// Says that the proxy of this session works beside another one; for this many seconds.
    /// Blindly: it certifies nothing.
    pub async fn rival(&self, session: SessionId, seconds: u64) -> Result<(), NodeError> {
        // A full node may refuse it: the next probe tries again.
        self.say(marker::RIVAL_KEY, session, seconds).await
    }

    /// Asks another proxy that may work on the node to say so, and waits for that. Returns the
    /// session of one that did.
    pub async fn knock(&self, session: SessionId, wait: Duration) -> Result<Option<SessionId>, NodeError> {
        // A full node may refuse the marker: the knock then goes unanswered, as with an older
        // release.
        self.say(marker::KNOCK_KEY, session, wait.as_secs() + 2).await?;
        tokio::time::sleep(wait).await;
        let found = self.probe(&[marker::RING_KEY.to_owned()]).await?;
        Ok(found.rival.filter(|id| *id != session))
    }

    async fn say(&self, key: &str, session: SessionId, seconds: u64) -> Result<(), NodeError> {
        self.connected(async |Connection { pipe, .. }, deadline| {
            let (value, seconds) = (session.to_string(), seconds as i64);
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
            // A proxy that closes a session, or takes a node over from a closed one, must not write
            // over the session of another proxy that runs.
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
}

/// The record that was read, if it is a later one. Writes of two records of one pair may overtake
/// each other on their way here, and a node that was away may carry one that is not known: the
/// newer one stays, and the write is reported as not made.
fn later(found: &Found, new: &Record) -> Option<Record> {
    found.as_ref().and_then(|(old, _)| Record::parse(old)).filter(|old| old.outlives(new))
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
