//! The scrub: comparing the two copies of mirrored pairs while they serve.
//!
//! It writes nothing itself. A write on its way reaches the leader first and the follower after, so
//! one look proves nothing: a key whose copies differ is looked at again when every write begun
//! before the first look has ended, and it counts only if the leader's item is still the same then.
//! Its owner mends it ([`VerifyEvent::Mend`]), behind the fence that all repairs of a key use.
//!
//! Each pair is enumerated on its leader, then on its follower (for what the leader lacks). A pair
//! that leaves Mirrored, or whose node is to be refilled, is left alone from then on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::dump::Coverage;
use super::enumerate::enumerate;
use super::node_stats::node_stats;
use super::spool::{SlotId, Spool};
use super::{Context, JobError, RateLimiter, Settlement};
use crate::ambient;
use crate::backend::{Batch, NodeError, Pipe, give_back};
use crate::ids::{NodeId, PairId, is_reserved};
use crate::protocol::item::{Answer, Asked, Code, Item, are_equal};
use crate::protocol::key::wire_form;
use crate::protocol::node::Ask;

/// Keys whose copies differed once and that wait to be looked at again. More, and the reading
/// pauses.
const MAX_SUSPECTS: usize = 4096;
/// How often a key is looked at whose leader's item changes between two looks; after that it counts
/// as written all the time, and is not judged.
const MAX_LOOKS: u8 = 5;
/// Bytes of items read at once from each node.
const BATCH_BYTES: usize = 1 << 20;
/// How often a failed order is given again, and after which pause.
const MEND_TRIES: u8 = 3;
const MEND_PAUSE: Duration = Duration::from_millis(200);
/// Differences named in the log.
const MAX_NAMED: u64 = 10;

/// One pair to be compared.
#[derive(Clone, Debug)]
pub struct VerifyPair {
    pub pair: PairId,
    pub leader: NodeId,
    pub follower: NodeId,
    /// Cancelled by the control plane when the pair is to be left alone.
    pub leave: CancellationToken,
}

/// What a scrub has found so far. Written by it, read by anybody.
#[derive(Default, Debug)]
pub struct VerifyProgress {
    /// Keys compared, each on the node that it was found on.
    pub checked: AtomicU64,
    /// Keys whose copies differed and did not come to be equal by themselves.
    pub different: AtomicU64,
    /// Those that were mended.
    pub repaired: AtomicU64,
    /// Those that could not be.
    pub failed: AtomicU64,
    /// Pairs left before their end.
    pub left: AtomicU64,
}

/// What a scrub asks of the control plane.
#[derive(Debug)]
pub enum VerifyEvent {
    /// The two copies of the key differ: its owner is to make the follower's equal.
    Mend {
        pair: PairId,
        /// Which key, as clients write it.
        key: Bytes,
        reply: oneshot::Sender<Settlement>,
    },
    /// That was refused, three times.
    Refused { pair: PairId, key: Bytes },
    /// The pair was compared to its end, nothing but refused keys differs any more, and its
    /// follower evicted nothing meanwhile.
    Compared { pair: PairId },
}

/// What a scrub works with, beside a [`Context`] that it shares with the resyncs: dialer, owner,
/// tuning, crawls, cancel.
#[derive(Clone, Debug)]
pub struct Verify {
    /// The pairs, one after the other.
    pub pairs: Vec<VerifyPair>,
    /// Keys a second.
    pub limiter: Arc<RateLimiter>,
    /// It gives way to clients as a resync does, because no operator has asked for it.
    pub yields: bool,
    /// How long a write may take to reach both nodes: the pause between two looks at one key.
    pub settle: Duration,
    pub progress: Arc<VerifyProgress>,
    /// The control plane.
    pub coordinator: mpsc::Sender<VerifyEvent>,
}

/// Compares the pairs; returns how it ended. To stop it, cancel the context's token.
pub async fn verify(verify: Verify, ctx: Context) -> Result<(), JobError> {
    let mut result = Ok(());
    let _at_work = verify.yields.then(|| ctx.shared.pace.job());
    for pair in &verify.pairs {
        let scrub = async {
            let mut scrub = Scrub::connect(&verify, &ctx, pair).await?;
            scrub.all().await
        };
        let cancelled = ctx.cancel.run_until_cancelled(pair.leave.run_until_cancelled(scrub)).await;
        match cancelled {
            None => return Err(JobError::Cancelled),
            Some(None) => drop(verify.progress.left.fetch_add(1, Relaxed)),
            Some(Some(Ok(false))) => {}
            Some(Some(Ok(true))) => {
                let told = verify.coordinator.send(VerifyEvent::Compared { pair: pair.pair });
                told.await.map_err(|_| JobError::Aborted)?;
            }
            // The node's own connections tell whether it is lost; the other pairs can be compared.
            Some(Some(Err(error))) => {
                verify.progress.left.fetch_add(1, Relaxed);
                result = result.and(Err(error));
            }
        }
    }
    result
}

/// A key whose copies differed.
struct Suspect {
    key: Bytes,
    binary: bool,
    /// The leader's cas id, as it was then; `None` = it had no such item.
    cas: Option<u64>,
    again_at: Instant,
    looks: u8,
    /// How often it could not be mended.
    tries: u8,
}

struct Scrub<'a> {
    verify: &'a Verify,
    ctx: &'a Context,
    pair: &'a VerifyPair,
    leader: Pipe,
    follower: Pipe,
    suspects: VecDeque<Suspect>,
    /// Those that could not be mended. They wait together, each for a moment: one after the other
    /// they kept a comparing of 252 keys that a server refuses for 150 s.
    refused: VecDeque<Suspect>,
    /// No key that a client can write is known to differ yet, or could not be judged.
    whole: bool,
}

impl<'a> Scrub<'a> {
    async fn connect(verify: &'a Verify, ctx: &'a Context, pair: &'a VerifyPair) -> Result<Scrub<'a>, JobError> {
        let (leader, follower) = (ctx.connect(pair.leader).await, ctx.connect(pair.follower).await);
        Ok(Scrub {
            verify,
            ctx,
            pair,
            leader: leader.map_err(|e| JobError::Source(pair.leader, e))?,
            follower: follower.map_err(JobError::Target)?,
            suspects: VecDeque::new(),
            refused: VecDeque::new(),
            whole: true,
        })
    }

    /// Whether the copies are known to be equal at the end.
    async fn all(&mut self) -> Result<bool, JobError> {
        let evictions = self.evictions().await?;
        for node in [self.pair.leader, self.pair.follower] {
            let mut spool = self.list(node).await?;
            while self.batch(&mut spool, node == self.pair.follower).await? {}
        }
        while let Some(at) = self.next_look() {
            sleep_until(at).await;
            self.look_again().await?;
        }
        Ok(self.whole && self.evictions().await? == evictions)
    }

    /// How many items the follower has evicted since it began.
    async fn evictions(&mut self) -> Result<u64, JobError> {
        let stats = node_stats(&mut self.follower, self.ctx).await;
        stats.map(|stats| stats.evictions).map_err(JobError::Target)
    }

    async fn list(&mut self, node: NodeId) -> Result<Spool, JobError> {
        let mut spool = Spool::new(self.ctx.tuning.memory_bytes / 4);
        let disk = spool.disk();
        let walk = enumerate(self.ctx, node, &disk, |line| {
            if (self.ctx.owner)(line.key) != self.pair.pair || is_reserved(line.key) {
                return Ok(());
            }
            spool.push(SlotId::ONLY, line.size, line.key)
        });
        let coverage = walk.await.map_err(|e| JobError::of_dump(node, Some(node), e))?;
        self.whole &= coverage == Coverage::Whole;
        Ok(spool)
    }

    /// Compares the next keys; `false` = there are none. `found_on_follower`: only those that the
    /// leader does not have.
    async fn batch(&mut self, spool: &mut Spool, found_on_follower: bool) -> Result<bool, JobError> {
        while let Some(at) = self.next_look()
            && (at <= Instant::now() || self.suspects.len() + self.refused.len() >= MAX_SUSPECTS)
        {
            sleep_until(at).await;
            self.look_again().await?;
        }
        let lot = self.lot().await;
        let mut granted = self.verify.limiter.take(lot);
        while granted == 0 {
            sleep_until(self.verify.limiter.next()).await;
            granted = self.verify.limiter.take(lot);
        }
        let (mut keys, mut bytes) = (Vec::new(), 0);
        spool.ready().await;
        while keys.len() < granted
            && bytes < BATCH_BYTES
            && let Some(found) = spool.pop().map_err(|e| JobError::Spool(e.to_string()))?
        {
            bytes += found.size as usize;
            if let Some(binary) = wire_form(&found.key) {
                keys.push((found.key, binary));
            }
        }
        if keys.is_empty() {
            return Ok(spool.len() > 0);
        }
        self.verify.progress.checked.fetch_add(keys.len() as u64, Relaxed);
        let begun = Instant::now();
        if found_on_follower {
            let there = self.on_leader(&keys).await?;
            keys = keys.into_iter().zip(there).filter(|(_, there)| !there).map(|(key, _)| key).collect();
        }
        let looks = self.look(&keys).await?;
        if self.verify.yields {
            self.ctx.shared.pace.worked(begun.elapsed());
        }
        for ((key, binary), (leader, follower)) in keys.into_iter().zip(looks) {
            if !leader.is_matched_by(&follower) {
                self.suspect(key, binary, &leader.item, 1);
            }
        }
        Ok(true)
    }

    /// How many keys are compared next, once that may be: each rest has an end, and no lot is
    /// empty.
    async fn lot(&self) -> usize {
        let (pace, full) = (&self.ctx.shared.pace, self.ctx.tuning.batch);
        if !self.verify.yields {
            return full;
        }
        pace.rest().await;
        pace.batch(full)
    }

    fn suspect(&mut self, key: Bytes, binary: bool, leader: &Option<Item>, looks: u8) {
        let again_at = Instant::now() + self.verify.settle;
        let cas = leader.as_ref().map(|item| item.cas);
        self.suspects.push_back(Suspect { key, binary, cas, again_at, looks, tries: 0 });
    }

    /// When the next key is due; each queue is in that order.
    fn next_look(&self) -> Option<Instant> {
        [&self.suspects, &self.refused].into_iter().filter_map(|queue| Some(queue.front()?.again_at)).min()
    }

    fn take_due(&mut self, now: Instant) -> Option<Suspect> {
        let is_due = |queue: &VecDeque<Suspect>| queue.front().is_some_and(|s| s.again_at <= now);
        let queue = if is_due(&self.suspects) { &mut self.suspects } else { &mut self.refused };
        if is_due(queue) { queue.pop_front() } else { None }
    }

    /// The second look at those whose time has come.
    async fn look_again(&mut self) -> Result<(), JobError> {
        let now = Instant::now();
        for _ in 0..self.ctx.tuning.batch {
            // One by one: few, and of any size.
            let Some(suspect) = self.take_due(now) else { break };
            let keys = [(suspect.key.clone(), suspect.binary)];
            let Some((leader, follower)) = self.look(&keys).await?.pop() else { continue };
            if leader.is_matched_by(&follower) {
                continue;
            }
            if leader.item.as_ref().map(|item| item.cas) == suspect.cas {
                self.mend(suspect).await?;
            } else if suspect.looks < MAX_LOOKS {
                self.suspect(suspect.key, suspect.binary, &leader.item, suspect.looks + 1);
            } else {
                self.whole = false;
            }
        }
        Ok(())
    }

    async fn mend(&mut self, suspect: Suspect) -> Result<(), JobError> {
        let progress = &self.verify.progress;
        let (reply, answer) = oneshot::channel();
        let event = VerifyEvent::Mend { pair: self.pair.pair, key: suspect.key.clone(), reply };
        self.verify.coordinator.send(event).await.map_err(|_| JobError::Aborted)?;
        match answer.await.map_err(|_| JobError::Aborted)? {
            Settlement::Done => _ = progress.repaired.fetch_add(1, Relaxed),
            Settlement::Superfluous => return Ok(()),
            Settlement::Failed if suspect.tries + 1 < MEND_TRIES => {
                let again_at = Instant::now() + MEND_PAUSE;
                self.refused.push_back(Suspect { again_at, tries: suspect.tries + 1, ..suspect });
                return Ok(());
            }
            Settlement::Failed => {
                progress.failed.fetch_add(1, Relaxed);
                // From now on it is known to have one copy; all else is compared.
                let event = VerifyEvent::Refused { pair: self.pair.pair, key: suspect.key.clone() };
                self.verify.coordinator.send(event).await.map_err(|_| JobError::Aborted)?;
            }
        }
        if progress.different.fetch_add(1, Relaxed) < MAX_NAMED {
            let key = String::from_utf8_lossy(&suspect.key);
            tracing::warn!(pair = self.pair.pair.0, %key, "the two copies of a key differ");
        }
        Ok(())
    }

    async fn on_leader(&mut self, keys: &[(Bytes, bool)]) -> Result<Vec<bool>, JobError> {
        let patience = self.ctx.tuning.source_timeout;
        let there = find(&mut self.leader, keys, patience).await;
        there.map_err(|e| JobError::Source(self.pair.leader, e))
    }

    /// What the two nodes hold under the keys.
    async fn look(&mut self, keys: &[(Bytes, bool)]) -> Result<Vec<(Held, Held)>, JobError> {
        let patience = self.ctx.tuning.source_timeout;
        let (ours, theirs) =
            tokio::join!(read(&mut self.leader, keys, patience), read(&mut self.follower, keys, patience));
        let ours = ours.map_err(|e| JobError::Source(self.pair.leader, e))?;
        Ok(ours.into_iter().zip(theirs.map_err(JobError::Target)?).collect())
    }
}

/// What a node holds under a key.
#[derive(Debug)]
struct Held {
    /// Not what is stale, or is being recomputed.
    item: Option<Item>,
    stale: bool,
}

impl Held {
    /// Whether a follower that holds `other` is equal to a leader that holds this: what is stale
    /// stands on the leader alone.
    fn is_matched_by(&self, other: &Held) -> bool {
        !other.stale && are_equal(&self.item, &other.item)
    }
}

async fn read(pipe: &mut Pipe, keys: &[(Bytes, bool)], patience: Duration) -> Result<Vec<Held>, NodeError> {
    let (mut held, mut won) = (Vec::with_capacity(keys.len()), Vec::new());
    let asked = Asked { at: ambient::date(Instant::now()), ..Asked::default() };
    let answers = pipe.transfer(Batch::of_looks(keys, Ask::KeyAndItem), patience, |i, frame| {
        let (key, _) = keys.get(i).ok_or("an answer too many")?;
        let answer = Answer::to(key, &frame)?;
        let counts = answer.code == Code::Value && answer.ttl != 0 && !answer.stale;
        held.push(Held { item: counts.then(|| answer.item(&frame, asked)), stale: answer.stale });
        won.extend(answer.won.then_some((i, Some(answer.cas))));
        Ok(())
    });
    answers.await?;
    give_back(pipe, keys, won, patience).await?;
    Ok(held)
}

/// Under which keys it holds anything.
async fn find(pipe: &mut Pipe, keys: &[(Bytes, bool)], patience: Duration) -> Result<Vec<bool>, NodeError> {
    let (mut there, mut won) = (Vec::with_capacity(keys.len()), Vec::new());
    let answers = pipe.transfer(Batch::of_looks(keys, Ask::KeyAndState), patience, |i, frame| {
        let (key, _) = keys.get(i).ok_or("an answer too many")?;
        let answer = Answer::to(key, &frame)?;
        there.push(answer.code != Code::Missing);
        won.extend(answer.won.then_some((i, Some(answer.cas))));
        Ok(())
    });
    answers.await?;
    give_back(pipe, keys, won, patience).await?;
    Ok(there)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use std::sync::atomic::AtomicUsize;

    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;
    use crate::backend::{Dial, NodeStream};
    use crate::ids::AddressNumber;
    use crate::resync::governor::Leave;

    /// Nodes that hold nothing, and take a millisecond for each lot of keys.
    #[derive(Default)]
    struct Empty(Arc<AtomicUsize>);

    impl Dial for Empty {
        fn dial(&self, _: NodeId) -> BoxFuture<'static, std::io::Result<NodeStream>> {
            let (near, mut far) = duplex(1 << 20);
            let asked = self.0.clone();
            tokio::spawn(async move {
                let mut block = vec![0; 1 << 20];
                while let Ok(read @ 1..) = far.read(&mut block).await {
                    let keys = memchr::memchr_iter(b'\n', &block[..read]).count();
                    asked.fetch_add(keys, Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if far.write_all("EN\r\n".repeat(keys).as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
            async move { Ok(NodeStream::from(near)) }.boxed()
        }

        fn address(&self, _: NodeId) -> AddressNumber {
            AddressNumber::default()
        }
    }

    /// A comparing that nobody has asked for, after a crash, and one by hand.
    #[tokio::test(start_paused = true)]
    async fn what_yields_compares_small_lots_and_rests_after_each_and_never_for_ever() {
        for (yields, lot) in [(true, 32), (false, 512)] {
            let asked = Arc::new(AtomicUsize::new(0));
            let ctx = Context::alone(Arc::new(Empty(asked.clone())), 2);
            let (leader, follower) = (NodeId(0), NodeId(1));
            let pair = VerifyPair { pair: PairId(0), leader, follower, leave: CancellationToken::new() };
            let verify = Verify {
                pairs: vec![pair.clone()],
                limiter: Arc::new(RateLimiter::new(None)),
                yields,
                settle: Duration::ZERO,
                progress: Arc::default(),
                coordinator: mpsc::channel(1).0,
            };
            let mut spool = Spool::new(1 << 20);
            (0..5_000).for_each(|i| spool.push(SlotId::ONLY, 100, format!("key:{i}").as_bytes()).unwrap());
            let mut scrub = Scrub::connect(&verify, &ctx, &pair).await.unwrap();
            ctx.shared.pace.set(Leave::Share(0.0));
            let (begun, lots) = (Instant::now(), 100);
            for _ in 0..if yields { lots } else { 1 } {
                asked.store(0, Relaxed);
                assert!(scrub.batch(&mut spool, false).await.unwrap());
                assert_eq!(asked.load(Relaxed), 2 * lot, "on both nodes");
            }
            // A millisecond of work, and ten of rest.
            assert!(!yields || begun.elapsed() >= Duration::from_millis(11 * (lots - 1)), "{:?}", begun.elapsed());
            assert!(begun.elapsed() <= Duration::from_millis(13 * lots), "{:?}", begun.elapsed());
            // While clients are listened to.
            ctx.shared.pace.set(Leave::Rest);
            let listens = tokio::time::timeout(Duration::from_millis(60), scrub.batch(&mut spool, false)).await;
            assert_eq!(listens.is_err(), yields);
            ctx.shared.pace.set(Leave::Full);
            asked.store(0, Relaxed);
            assert!(scrub.batch(&mut spool, false).await.unwrap());
            assert_eq!(asked.load(Relaxed), 2 * 512);
            // The governor is told.
            let (pace, mut all) = (ctx.shared.pace.clone(), Box::pin(super::verify(verify.clone(), ctx.clone())));
            assert!(all.as_mut().now_or_never().is_none());
            assert_eq!(pace.at_work(), yields);
            drop(all);
            assert!(!pace.at_work());
        }
    }

    /// Clients store what is stale as well over what was won, twice; another's item was recomputed
    /// by then, and one has no cas id.
    #[tokio::test]
    async fn what_a_look_has_won_is_given_back_until_it_is() {
        let (near, mut far) = duplex(4096);
        let mut pipe = Pipe::over(NodeId(0), NodeStream::from(near));
        let keys = ["a", "b", "c", "d"].map(|key| (Bytes::from_static(key.as_bytes()), false));
        let dialogue = [
            (
                "mg a k v f t c\r\nmg b k v f t c\r\nmg c k v f t c\r\nmg d k v f t c\r\n",
                "VA 1 ka f0 t-1 c4 X W\r\nx\r\nVA 1 kb f0 t-1 c5 X W\r\nx\r\nVA 1 kc f0 t-1 c6\r\nx\r\n\
                 VA 1 kd f0 t-1 c0 X W\r\nx\r\n",
            ),
            ("md a k I C4\r\nmd b k I C5\r\n", "EX ka\r\nEX kb\r\n"),
            ("mg a k t c\r\nmg b k t c\r\n", "HD ka t-1 c7 Z X\r\nHD kb t-1 c8\r\n"),
            ("md a k I C7\r\n", "EX ka\r\n"),
            ("mg a k t c\r\n", "HD ka t-1 c9 Z X\r\n"),
            ("md a k I C9\r\n", "HD ka\r\n"),
        ];
        let node = tokio::spawn(async move {
            for (asked, answer) in dialogue {
                let mut got = vec![0; asked.len()];
                far.read_exact(&mut got).await.unwrap();
                assert_eq!(String::from_utf8_lossy(&got), asked);
                far.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let held = read(&mut pipe, &keys, Duration::from_secs(10)).await.unwrap();
        node.await.unwrap();
        let shown: Vec<_> = held.iter().map(|held| (held.item.is_some(), held.stale)).collect();
        assert_eq!(shown, [(false, true), (false, true), (true, false), (false, true)]);
    }
}
