//! Refilling a node from the surviving copies, while clients go on reading and writing.
//!
//! # When
//!
//! A node that was lost and answers again holds nothing (it was restarted) or possibly outdated
//! items (it hung). The control plane first waits until every abandoned connection to that node has
//! [drained](crate::backend::Drain): a node that hung and continues executes the commands still in
//! its sockets. Then it starts one *job* for the node, the *target*, over all its pairs that need
//! it. Each pair's *source* is its leader, which serves its clients all along. A lost backup is
//! refilled in the same way.
//!
//! # How
//!
//! 1. **Purge** ([`Fill`]; not if the target is provably empty). What the target holds of the pairs
//!    is deleted, by enumeration, while the pairs are still Degraded and no client's write goes
//!    there. Without it a key deleted in the node's absence comes back; and copies left by an
//!    interrupted job (`resync_model.py design crash`) stay for good, because only that job knew
//!    that they were unverified.
//! 2. **Barrier** ([`JobEvent::Purged`]): the control plane brings the pairs into Recovering; from
//!    now on writes go to the leader first and then to the target. The enumeration begins only now:
//!    otherwise a key written before would be neither listed nor sent to the target.
//! 3. **Enumerate** each source (`lru_crawler metadump hash`), drained at full speed into a spool.
//!    **Read** each key, **add** it on the target, **verify**: ask the leader for its cas id and
//!    expiry again. If they changed, the copy is **undone**, guarded by the cas id that the target
//!    gave it, and made again.
//! 4. **Re-copy** the keys that workers push to [`Recopy`], by the same three steps.
//! 5. **Hand back** pair by pair. [`JobEvent::Ready`]: the control plane closes the pair's gate, so
//!    that no mutation is in flight; the job copies the last few keys within
//!    [`Tuning::gate_budget`]; [`JobEvent::Drained`] says whether nothing is outstanding. If so the
//!    control plane checks the markers and opens the pair as Mirrored; after that the job does not
//!    touch the pair again.
//!
//! # A node that missed little
//!
//! A node that comes back with its memory intact differs from the leader only in the keys of
//! [`Missed`], and [`Fill::Missed`] is the same resync over that list: neither node is enumerated.
//!
//! - *Purge* deletes the listed keys, once before the barrier, and then those that were listed
//!   meanwhile. From there on the target is like a purged one that already holds more right items:
//!   a re-copy queue that overflows is replaced by the list again, or by an enumeration. Before
//!   that it holds outdated items, and [`Outcome::undone`] does not call it fit to lead.
//! - *A list that was discarded before it was read* ends the job: nothing else shows what is
//!   outdated on a target that was not purged.
//! - *What is dropped on the target for [`Recopy`] is listed too*: the job may be cut off before
//!   the copy, and the next one would not know that the key is not there.
//! - *The list is kept until the pair is mirrored*, through any number of such jobs. It is
//!   discarded when either node's memory was replaced, when another node leads after Dark, and when
//!   a job of another kind begins.
//!
//! # Two nodes that most probably hold the same
//!
//! After a crash of the proxy ([`Fill::Compare`]) the two may differ in what was in flight; on a
//! first start ([`Fill::Adopt`]) in anything. Nothing is purged. After the barrier every key of the
//! source is compared, by content: the target is read first, as described below for NOT_STORED, and
//! each of the three results (nothing, equal, different) is handled as there. Then the *target* is
//! enumerated: a key that the source has was compared, or was written since by a worker, on both
//! nodes; any other is looked at on both again, and dropped by its cas id. So a client's newer
//! write survives.
//!
//! The target of such a job may not lead before all that is done, with one exception: if the list
//! of [`Missed`] was begun right after the crash, and so names everything that the target has
//! missed since ([`Fill::CompareRest`]). Then the listed keys are deleted first, as above, and if
//! the leader's memory is lost in the middle of the job the target leads with the rest. It holds
//! everything that was acknowledged before the crash, and nothing that was overwritten since.
//! Copies that were not verified and could not be undone may be of any key: they end the list.
//!
//! Items that only the target holds are *adopted*: added to the leader, before anything is copied.
//! That must not bring back a key that a client has deleted, and neither node shows that. So the
//! worker that owns the key does it ([`JobEvent::Adopt`]): it knows which keys clients have written
//! since the pair's first route opened, and every later write of the key comes after the add, on
//! both nodes. Keys that no client can write are added by the job itself. No `flush_all` comes
//! between the look at an item and its adding: `quiesce` is held till then.
//!
//! *An interrupted adoption is resumed*, also by another proxy, which does not know what clients
//! wrote. That is correct as long as the target has executed every acknowledged write (then a
//! deleted key is on neither node, and an overwritten one is on the leader, whose item counts), and
//! holds no copies: a copy interrupted before its verify would pass for an item of the target's
//! own, and a deleted key would come back. So the pair is Recovering from its first route on; a job
//! after an absence of the target first deletes there what clients wrote ([`Context::written`])
//! before and behind the barrier, as with a list, and says so ([`JobEvent::Adopting`]); no step of
//! the adopting writes to the target; and [`JobEvent::AllAdopted`] is recorded on the target before
//! the first copy. From there on the leader holds everything, and the next proxy purges. Until
//! then, and while it is compared, the target may lead if the leader's memory is gone: it has
//! missed nothing.
//!
//! A source or target that cannot be enumerated cannot be compared: the job ends, and the next one
//! purges.
//!
//! # What clients may do meanwhile
//!
//! Everything. Take a copy that reads at r, adds at a and verifies at v (r < a < v), and a mutation
//! that the leader executes at m and the target at f > m. If m < r the copy saw it. If r < m < v
//! the verify sees the change and repeats. If m > v then f > m > v > a: the target gets the
//! mutation after the copy. So the order *leader first* carries the proof; a write sent to both at
//! once breaks it. What a target that does not hold the key cannot execute (incr, append, touch …)
//! is not sent to it: its worker *drops* the key there, guarded by nothing, and then pushes it to
//! `Recopy`. Executed on a copy, an incr would be counted twice where the copy was read after it
//! (`resync_model.py reexec`).
//!
//! The unusual steps, each with the case that requires it:
//!
//! - *NOT_STORED is compared*, not taken for a newer write: it may be another copier's unverified
//!   copy, which is undone a moment later, or a leftover that a purge missed. The two sides cannot
//!   be read at the same moment; the target is read **first**. An item on the target was put there
//!   by a mutation, which is right until a later one, whose target step is still to come; or by a
//!   copier, which verifies it itself. So "equal" needs no second read. "Differs" drops exactly the
//!   item that was read (by its cas id), and copies again.
//! - *A key that the leader does not have* (gone, expired, marked stale) is looked for on the
//!   target in the same way; nothing is dropped there unseen, for a worker's newer `set` may just
//!   have landed.
//! - *The expiry is verified too*: `touch` changes it and not the cas id.
//! - *Remaining TTL 0* would mean for ever when stored: such an item is over. Any other is sent as
//!   a date by the target's own clock ([`crate::protocol::expiry`]), so it does not matter when the
//!   add is executed; and nodes turn to their seconds at different moments, so a batch of items
//!   that expire is framed by two looks at the source's clock. If they differ, it turned in
//!   between, and the items are read once more.
//! - *A refused add* (too large, out of memory) deletes what the target held, even a newer value:
//!   it is verified like a stored one.
//! - *Stale items* (`X`, `Z`) would become fresh by copying. Reading one can win the right to
//!   recompute it (`W`), and then no client would be asked to do so: the right is given back by
//!   marking the item stale again.
//! - *Verify on the connection of the read, undo on that of the add*: cas ids restart at 1 with the
//!   process, so an id seen on a new connection may belong to another item. An unbroken connection
//!   is the proof that the process is the same.
//! - *All cas ids 0* (`-C`): verify by cas id is blind, and an undo cannot be guarded. A target
//!   like that is refused before anything is copied; a source like that is treated as one that
//!   cannot be enumerated, and verified by content.
//! - *A key leaves `Recopy` before its copy starts*, so that a push during the copy is not taken
//!   for the one being served.
//! - *A key that fails [again and again](crate::resync) goes to the end of `Recopy`*: clients write
//!   it all the time, and it is copied last, while the gate is closed for the hand-back.
//!
//! # A leader that cannot be enumerated
//!
//! An old server, a managed one, `-X`, or `-C` as said above. The first pass finds out
//! ([`JobEvent::CannotEnumerate`]). The job continues without an enumeration, in a *trickle*:
//! workers push to [`Recopy`] the keys that clients read ([`Recopy::push_read`]), and each is read,
//! added and verified as usual. So the target holds a part of the leader's items, all of them
//! right, which grows with what clients use, and never is complete: no pair is handed back, the
//! leader keeps leading, and only a cancel or the loss of a node ends the job. Re-copies that
//! overflow are forgotten: their keys are not on the target, and the next read pushes them again.
//!
//! *Verified by content* (no cas ids): the verify reads the whole item again and compares it with
//! what was added. An item that was changed and changed back in between passes, and that is right:
//! what was added is what the leader holds at v, so it has in it every mutation with m < v, and
//! each of those whose f is still to come is repeated on the target after the copy, in their order;
//! it sets, deletes or drops, and needs nothing of what stood there. The expiry is part of the
//! content. The undo is guarded by the target's cas id as ever.
//!
//! # Giving way to clients
//!
//! The [`Governor`] decides by the workers' waiting times how fast all jobs may copy, and [`Pace`]
//! turns that into smaller batches and pauses between them. A pause only moves r, a and v further
//! apart. There is none where clients would wait for its end, or would create work faster than it
//! is done (`Refill::is_urgent`): the gate of a hand-back, `flush_all`, a long queue of re-copies.
//!
//! # Failure in mid-stream
//!
//! [`run`] always returns an [`Outcome`] that says what is left behind. *The target fails*:
//! connections with unanswered mutations are returned as drains, and the next job purges. *The
//! source fails, or the job is cancelled*: the target's answers are awaited (a mutation sent counts
//! as executed), unverified copies are undone, and [`Outcome::undone`] says that all items of the
//! pairs on the target are verified: a part of the items, but right ones, so that it may lead if
//! the leader's memory is proved gone. *A slow source is waited for* ([`Tuning::source_timeout`]):
//! it holds the last full copy. *The target refuses items*: they are counted and the first few
//! named. *It evicts*: the job ends well but says how incomplete the copy is.
//!
//! `flush_all` takes [`Shared::quiesce`] for writing: then no copy is in flight, so none read
//! before the flush lands after it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::{Dial, Drain, Memories, NodeError, Pipe};
use crate::ids::{Incarnation, NodeId, PairId};
use crate::keys::{Lone, Missed, Recopy};
use crate::protocol::reply::ReplyLimits;

mod clocks;
mod crawls;
mod dump;
mod entry;
mod enumerate;
mod governor;
mod job;
mod lane;
mod limiter;
mod listing;
mod node_stats;
mod pace;
mod progress;
mod purge;
mod refill;
mod shared;
mod spool;
mod table;
mod verify;

pub use crate::pair::Fill;
pub use crate::proxy::Settlement;
pub use clocks::Clocks;
pub use crawls::Crawls;
pub use governor::{Governor, Leave, TICK};
pub use job::run;
pub use limiter::RateLimiter;
pub use listing::{ListError, list};
pub use pace::Pace;
pub use progress::{PairProgress, Phase, Progress};
pub use purge::clean;
pub use shared::Shared;
pub use verify::{Verify, VerifyEvent, VerifyPair, VerifyProgress, verify};

/// What a job is to do.
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// The node to be filled.
    pub target: NodeId,
    /// The pairs, each with its source: the leader.
    pub pairs: Vec<(PairId, NodeId)>,
    /// What the target holds of them, and so how it is made equal.
    pub fill: Fill,
    /// The target leads the pairs that are handed back. So none is handed back of which it refuses
    /// an item: that would be lost to clients.
    pub leads: bool,
}

/// Which pair a key belongs to.
pub type Owner = Arc<dyn Fn(&[u8]) -> PairId + Send + Sync>;
/// Whether a node is one of a pair's two.
pub type Holds = Arc<dyn Fn(NodeId, PairId) -> bool + Send + Sync>;

/// What a job works with.
#[derive(Clone)]
pub struct Context {
    /// Opens connections to nodes.
    pub dialer: Arc<dyn Dial>,
    /// What each node's memory was when the job began. A connection to another one is not believed.
    /// A node that is left out carries no marker.
    pub memories: BTreeMap<NodeId, Incarnation>,
    /// By what other names they are known since.
    pub names: Arc<Memories>,
    /// The largest item of each node, in bytes, by its `-I`. Unknown for a node that is left out:
    /// it may be as large as any memcached's.
    pub item_limits: BTreeMap<NodeId, usize>,
    /// Which pair a key belongs to.
    pub owner: Owner,
    /// Whether a node is one of a pair's two: keys of other pairs are leftovers, and purged.
    pub holds: Holds,
    /// Bounds and deadlines.
    pub tuning: Tuning,
    pub shared: Shared,
    /// Stops the job; go on awaiting [`run`].
    pub cancel: CancellationToken,
    /// What the job has done so far; written by the job.
    pub progress: Arc<Progress>,
    /// Per pair the keys to be copied again, pushed by the workers.
    pub recopy: BTreeMap<PairId, Arc<Recopy>>,
    /// Per pair the keys that the target missed; read where the job [fills](Fill::Missed) those
    /// only.
    pub missed: BTreeMap<PairId, Arc<Missed>>,
    /// Per pair the keys that have one copy: those that the target refuses are inserted.
    pub lone: BTreeMap<PairId, Arc<Lone>>,
    /// Where the job [adopts](Fill::Adopt), for each pair whose target may have missed writes: the
    /// keys that clients have written since both nodes count.
    pub written: BTreeMap<PairId, Arc<Missed>>,
    /// The control plane.
    pub coordinator: mpsc::Sender<JobEvent>,
}

impl Context {
    /// Connects to a node, if its memory is still the one that the job is about.
    pub(crate) async fn connect(&self, node: NodeId) -> Result<Pipe, NodeError> {
        let deadline = Instant::now() + self.tuning.connect_timeout;
        let memory = self.memories.get(&node).map(|&memory| (&*self.names, memory));
        let pipe = Pipe::connect_to(&*self.dialer, node, memory, deadline).await?;
        let limits =
            self.item_limits.get(&node).map_or_else(ReplyLimits::default, |&bytes| ReplyLimits::of_node(bytes));
        Ok(pipe.with_values(limits.value_len_max))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("tuning", &self.tuning).finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Context {
    /// Of pair 0, on this many nodes whose memory nobody knows; nobody hears what the job asks.
    pub(crate) fn alone(dialer: Arc<dyn Dial>, nodes: usize) -> Context {
        Context {
            dialer,
            memories: BTreeMap::new(),
            names: Arc::default(),
            item_limits: BTreeMap::new(),
            owner: Arc::new(|_: &[u8]| PairId(0)),
            holds: Arc::new(|_, _| true),
            tuning: Tuning::default(),
            shared: Shared::new(nodes, None),
            cancel: CancellationToken::new(),
            progress: Arc::new(Progress::new([PairId(0)])),
            recopy: BTreeMap::new(),
            missed: BTreeMap::new(),
            lone: BTreeMap::new(),
            written: BTreeMap::new(),
            coordinator: mpsc::channel(1).0,
        }
    }
}

/// Bounds and deadlines of a job.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Bytes that key list and values on their way may take, about half each; the rest of the list
    /// goes to a file.
    pub memory_bytes: usize,
    /// Keys sent to a node in one go on one connection.
    pub batch: usize,
    /// Pairs of connections per source.
    pub lanes: usize,
    /// How long a connect may take.
    pub connect_timeout: Duration,
    /// How long the source may take for one batch. Long: it holds the last full copy, and is waited
    /// for.
    pub source_timeout: Duration,
    /// How long the target may take for one batch.
    pub target_timeout: Duration,
    /// How long a crawler that is busy with somebody else's crawl is waited for.
    pub busy_timeout: Duration,
    /// How long a pair's gate may stay closed for the last keys.
    pub gate_budget: Duration,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            memory_bytes: 64 * 1024 * 1024,
            batch: 512,
            lanes: 4,
            connect_timeout: Duration::from_secs(2),
            source_timeout: Duration::from_secs(30),
            target_timeout: Duration::from_secs(5),
            busy_timeout: Duration::from_secs(120),
            gate_budget: Duration::from_millis(50),
        }
    }
}

/// What a job tells the control plane. It waits for the answer, unless cancelled; a dropped reply
/// ends the job as [`JobError::Aborted`].
#[derive(Debug)]
pub enum JobEvent {
    /// The target holds nothing of the pairs, which are still Degraded. The control plane brings
    /// them into Recovering (barrier, fresh marker) and answers `true`, or `false` to end the job.
    Purged {
        /// Whether to go on.
        reply: oneshot::Sender<bool>,
    },
    /// A leader cannot be enumerated. Its pairs go on as they are: copied is what clients read, and
    /// none of them is ever ready. No answer is waited for.
    CannotEnumerate {
        source: NodeId,
        pairs: Vec<PairId>,
        /// For the log.
        why: String,
    },
    /// What clients have written is deleted on the target, or was made there too: from here on an
    /// adoption that is cut off can be taken up again. The control plane records that, and answers
    /// `true`, or `false` to end the job.
    Adopting {
        /// Whether to go on.
        reply: oneshot::Sender<bool>,
    },
    /// The leaders hold everything: the target is compared with them from now on, and holds copies
    /// that are not verified. The control plane records that before it answers `true`; `false` ends
    /// the job.
    AllAdopted {
        /// Whether to go on.
        reply: oneshot::Sender<bool>,
    },
    /// Only the target holds this key: its owner is to add the item to the leader, unless a client
    /// has written the key meanwhile.
    Adopt {
        pair: PairId,
        /// Which key, as clients write it.
        key: Bytes,
        value: Bytes,
        flags: u32,
        /// As the leader is to be sent it.
        exptime: i64,
        reply: oneshot::Sender<Settlement>,
    },
    /// All of the pair but a few keys is copied. The control plane closes its gate, waits until no
    /// mutation is in flight, and answers `true`; `false` = not now, ask again later.
    Ready {
        pair: PairId,
        /// Whether the gate is closed.
        reply: oneshot::Sender<bool>,
    },
    /// The last keys were copied (`clean`), or could not be within [`Tuning::gate_budget`].
    Drained {
        pair: PairId,
        /// Nothing of the pair is outstanding, and the target holds what the leader holds.
        clean: bool,
        reply: oneshot::Sender<Verdict>,
    },
}

/// What the control plane made of a pair that was [drained](JobEvent::Drained).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Mirrored: the job does not touch the pair any more. Only to be given where `clean` was said.
    Mirrored,
    /// Its gate is open again and it is still Recovering: the job goes on and asks again later.
    Again,
    /// The job ends.
    Abort,
}

/// How a job ended.
#[derive(Debug)]
pub struct Outcome {
    /// `Ok` = every pair was handed back.
    pub result: Result<(), JobError>,
    /// Connections with mutations outstanding: their node must not be refilled before they
    /// complete.
    pub drains: Vec<Drain>,
    /// Every unverified copy was undone and none can land any more: what the target holds of the
    /// pairs is verified.
    pub undone: bool,
    /// Copies may stand there, or may yet land, that are not verified.
    pub copies_left: bool,
}

/// Why a job ended before its time.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum JobError {
    /// Its token was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The control plane ended it.
    #[error("ended by the control plane")]
    Aborted,
    /// The node to be filled failed.
    #[error("the target {0}")]
    Target(NodeError),
    /// A leader failed.
    #[error("the source {1}")]
    Source(NodeId, NodeError),
    /// The target cannot be enumerated, so that what it may hold cannot be purged, or has no cas
    /// ids. (Of a source that cannot be, [`JobEvent::CannotEnumerate`] tells, and the job goes on.)
    #[error("its keys cannot be enumerated: {why}")]
    CannotEnumerate {
        node: NodeId,
        /// For the log.
        why: String,
    },
    /// Somebody else's crawls kept a node's crawler busy.
    #[error("its crawler stayed busy")]
    CrawlerBusy(NodeId),
    /// It answers, but a list of its keys that was begun does not go on.
    #[error("its crawler stands still in a list of keys")]
    CrawlerStandsStill(NodeId),
    /// The purge found keys again and again: somebody writes to the target past the proxy.
    #[error("the target still held keys after {passes} passes")]
    PurgeUnfinished {
        /// How many were made.
        passes: usize,
    },
    /// More keys were missed than are remembered: everything is copied by the next resync.
    #[error("more keys were missed than are remembered")]
    MissedTooMany,
    /// The leader refuses more of the items that only the target holds than are tried again one by
    /// one.
    #[error("the leader refuses what only the target holds: has it the memory, and the -I, of the other one?")]
    AdoptionRefused(NodeId),
    /// The temporary file for the keys failed.
    #[error("the key list's temporary file: {0}")]
    Spool(String),
}

const NO_CAS: &str = "its items have no cas ids (-C), so copies cannot be verified or undone by them";

impl JobError {
    /// The word for it in log, metrics and `stats`.
    pub fn reason(&self) -> &'static str {
        match self {
            JobError::Cancelled => "cancelled",
            JobError::Aborted => "aborted",
            JobError::Target(error) | JobError::Source(_, error) => error.reason(),
            JobError::CannotEnumerate { .. } => "cannot_enumerate",
            JobError::CrawlerBusy(_) => "crawler_busy",
            JobError::CrawlerStandsStill(_) => "crawler_stands_still",
            JobError::PurgeUnfinished { .. } => "purge_unfinished",
            JobError::MissedTooMany => "missed_too_many",
            JobError::AdoptionRefused(_) => "adoption_refused",
            JobError::Spool(_) => "spool",
        }
    }

    /// Which node it is about, where that is not the target alone. The text does not name it: its
    /// address is told beside it.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            JobError::Source(node, _)
            | JobError::CannotEnumerate { node, .. }
            | JobError::CrawlerBusy(node)
            | JobError::CrawlerStandsStill(node)
            | JobError::AdoptionRefused(node) => Some(*node),
            _ => None,
        }
    }

    fn blind(node: NodeId) -> JobError {
        JobError::CannotEnumerate { node, why: NO_CAS.to_owned() }
    }

    /// `source` is given where the node is one, and not the target.
    fn of_dump(node: NodeId, source: Option<NodeId>, error: dump::DumpError) -> JobError {
        match (error, source) {
            (dump::DumpError::Node(error), Some(source)) => JobError::Source(source, error),
            (dump::DumpError::Node(error), None) => JobError::Target(error),
            (dump::DumpError::Cannot(why), _) => JobError::CannotEnumerate { node, why },
            (dump::DumpError::Busy, _) => JobError::CrawlerBusy(node),
            (dump::DumpError::StandsStill, _) => JobError::CrawlerStandsStill(node),
            (dump::DumpError::Spool(error), _) => JobError::Spool(error.to_string()),
        }
    }
}
