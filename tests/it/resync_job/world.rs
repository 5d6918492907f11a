//! Two real memcached processes, their items, and mutations as the data path makes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use resilver::internals::backend::{Addresses, Batch, Dial, Effect, Pipe, TcpDialer};
use resilver::internals::ids::{Incarnation, NodeId, PairId};
use resilver::internals::keys::{Missed, MissedBudget, Recopy};
use resilver::internals::resync::{
    Context, Fill, JobEvent, JobSpec, Progress, Settlement, Shared, Tuning, Verdict, run,
};
use resilver::internals::ring::NodeAddr;
use tokio::sync::{RwLock, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::Memcached;
use crate::support::rings::base64;

use super::{LEADER, PAIR, TARGET};

/// Keys that begin so belong to another pair of the same source.
pub(super) const FOREIGN: &[u8] = b"foreign";

pub(super) struct World {
    pub(super) nodes: [Memcached; 2],
    pub(super) dialer: Arc<dyn Dial>,
    pub(super) recopy: Arc<Recopy>,
    pub(super) missed: Arc<Missed>,
    /// Mutations hold it for reading; the control plane closes it for the hand-back.
    pub(super) gate: Arc<RwLock<()>>,
    /// The target is purged: mutations go there too.
    pub(super) recovering: Arc<AtomicBool>,
    pub(super) mirrored: Arc<AtomicBool>,
    pub(super) closed_us: Arc<AtomicU64>,
    pub(super) rate: Option<u64>,
    /// What the job takes for the nodes' memories.
    pub(super) memories: BTreeMap<NodeId, Incarnation>,
}

impl World {
    pub(super) fn start(leader: &[&str], target: &[&str]) -> World {
        let start = |args: &[&str]| Memcached::start(&[&["-m", "1024"], args].concat());
        let (leader, target) = (start(leader), start(target));
        let addr = |m: &Memcached| NodeAddr { host: "127.0.0.1".to_owned(), port: m.port() };
        let addresses = Addresses::new([addr(&leader), addr(&target)].iter());
        let dialer = Arc::new(TcpDialer::new(Arc::new(addresses), Duration::from_secs(2), Duration::from_secs(20)));
        World {
            nodes: [leader, target],
            dialer,
            recopy: Arc::default(),
            missed: Arc::new(Missed::new(Arc::new(MissedBudget::new(1 << 24)))),
            gate: Arc::default(),
            recovering: Arc::default(),
            mirrored: Arc::default(),
            closed_us: Arc::default(),
            rate: None,
            memories: BTreeMap::new(),
        }
    }

    /// The same items on both nodes. Part by part: an exptime counts from when the node is told,
    /// and 200,000 items take seconds on a busy machine.
    pub(super) async fn fill_both(&self, count: usize, item: impl Fn(usize) -> Vec<u8>) {
        let (mut leader, mut target) = (self.pipe(LEADER).await, self.pipe(TARGET).await);
        for from in (0..count).step_by(1000) {
            let part = |i: usize| item(from + i);
            let len = (count - from).min(1000);
            tokio::join!(fill(&mut leader, len, part), fill(&mut target, len, part));
        }
    }

    pub(super) async fn pipe(&self, node: NodeId) -> Pipe {
        Pipe::connect(&*self.dialer as &dyn Dial, node, deadline()).await.unwrap()
    }

    /// Runs a job with a control plane that only knows the gate.
    pub(super) async fn resync(
        &self,
        fill: Fill,
        tuning: Tuning,
    ) -> (resilver::internals::resync::Outcome, Arc<Progress>) {
        self.resync_with(fill, tuning, CancellationToken::new(), Arc::default()).await
    }

    pub(super) fn context(
        &self,
        tuning: Tuning,
        cancel: CancellationToken,
        quiesce: Arc<RwLock<()>>,
        progress: Arc<Progress>,
        coordinator: mpsc::Sender<JobEvent>,
    ) -> Context {
        Context {
            dialer: self.dialer.clone(),
            memories: self.memories.clone(),
            names: Arc::default(),
            item_limits: BTreeMap::new(),
            owner: Arc::new(|key: &[u8]| if key.starts_with(FOREIGN) { PairId(1) } else { PAIR }),
            holds: Arc::new(|node, pair| node == LEADER || pair == PAIR),
            tuning,
            shared: Shared { quiesce, ..Shared::new(2, self.rate) },
            cancel,
            progress,
            recopy: BTreeMap::from([(PAIR, self.recopy.clone())]),
            missed: BTreeMap::from([(PAIR, self.missed.clone())]),
            lone: BTreeMap::new(),
            written: BTreeMap::new(),
            coordinator,
        }
    }

    pub(super) async fn resync_with(
        &self,
        fill: Fill,
        tuning: Tuning,
        cancel: CancellationToken,
        quiesce: Arc<RwLock<()>>,
    ) -> (resilver::internals::resync::Outcome, Arc<Progress>) {
        let (coordinator, mut events) = mpsc::channel(4);
        let progress = Arc::new(Progress::new([PAIR]));
        let ctx = self.context(tuning, cancel, quiesce, progress.clone(), coordinator);
        let spec = JobSpec { target: TARGET, pairs: vec![(PAIR, LEADER)], fill, leads: false };
        let control = async {
            let mut closed = None;
            while let Some(event) = events.recv().await {
                match event {
                    JobEvent::CannotEnumerate { source, pairs, .. } => {
                        assert_eq!((source, pairs), (LEADER, vec![PAIR]))
                    }
                    JobEvent::Purged { reply } => {
                        let _barrier = self.gate.write().await;
                        self.recovering.store(true, Ordering::SeqCst);
                        let _ = reply.send(true);
                    }
                    JobEvent::Adopting { reply } | JobEvent::AllAdopted { reply } => {
                        let _ = reply.send(true);
                    }
                    JobEvent::Adopt { key, value, flags, exptime, reply, .. } => {
                        let coded = key.iter().any(|byte| *byte <= b' ');
                        let name = if coded { base64(&key) } else { key.to_vec() };
                        let form = if coded { " b" } else { "" };
                        let head = format!(" {}{form} ME F{flags} T{exptime}\r\n", value.len());
                        let add = [b"ms ", &name[..], head.as_bytes(), &value, b"\r\n"].concat();
                        let mut leader = self.pipe(LEADER).await;
                        let answer = leader.ask(&add, Effect::Mutation, deadline()).await.unwrap();
                        let _ = reply.send(if answer.starts_with("HD") {
                            Settlement::Done
                        } else {
                            Settlement::Superfluous
                        });
                    }
                    JobEvent::Ready { reply, .. } => {
                        closed = Some((self.gate.write().await, Instant::now()));
                        let _ = reply.send(true);
                    }
                    JobEvent::Drained { clean, reply, .. } => {
                        let (_guard, at) = closed.take().expect("the gate is closed");
                        self.closed_us.store(at.elapsed().as_micros() as u64, Ordering::Relaxed);
                        self.mirrored.store(clean, Ordering::SeqCst);
                        let _ = reply.send(if clean { Verdict::Mirrored } else { Verdict::Again });
                    }
                }
            }
        };
        let (outcome, ()) = tokio::join!(run(spec, ctx), control);
        (outcome, progress)
    }

    /// Everything a node holds, read by `mg`: value, flags, TTL.
    pub(super) async fn content(&self, node: NodeId, keys: &[Vec<u8>]) -> BTreeMap<Vec<u8>, (Bytes, String, i64)> {
        let mut pipe = self.pipe(node).await;
        let mut found = BTreeMap::new();
        for group in keys.chunks(1000) {
            let mut batch = Batch::new();
            for key in group {
                batch.command(&[b"mg ", &key[..], b" v f t\r\n"].concat(), Effect::Read);
            }
            pipe.exchange(batch, deadline(), |i, frame| {
                let line = String::from_utf8_lossy(frame.line()).into_owned();
                if let Some(data) = frame.data() {
                    let (flags, ttl) = line.split_once(" f").unwrap().1.split_once(" t").unwrap();
                    found.insert(group[i].clone(), (data, flags.to_owned(), ttl.parse().unwrap()));
                }
                Ok(())
            })
            .await
            .unwrap();
        }
        found
    }

    pub(super) async fn assert_equal(&self, keys: &[Vec<u8>]) -> usize {
        let mut held = 0;
        // Both nodes at once, part by part: to read 100,000 keys of one node takes seconds on a
        // busy machine, and the other one's TTLs would be as much less.
        for keys in keys.chunks(1000) {
            let (leader, target) = tokio::join!(self.content(LEADER, keys), self.content(TARGET, keys));
            for key in keys {
                let name = String::from_utf8_lossy(key);
                match (leader.get(key), target.get(key)) {
                    (Some((value, flags, ttl)), Some((value2, flags2, ttl2))) => {
                        assert_eq!((value, flags), (value2, flags2), "{name}");
                        assert!((ttl < &0) == (ttl2 < &0) && (ttl - ttl2).abs() <= 3, "{name}: TTL {ttl} and {ttl2}");
                    }
                    (one, other) => assert_eq!(one, other, "{name}"),
                }
            }
            held += leader.len();
        }
        held
    }
}

pub(super) fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(super) async fn fill(pipe: &mut Pipe, count: usize, item: impl Fn(usize) -> Vec<u8>) {
    for from in (0..count).step_by(1000) {
        let mut batch = Batch::new();
        for i in from..count.min(from + 1000) {
            batch.command(&item(i), Effect::Mutation);
        }
        pipe.exchange(batch, deadline(), |_, f| {
            assert!(f.line().starts_with(b"HD") || f.line() == b"STORED", "{:?}", String::from_utf8_lossy(f.line()));
            Ok(())
        })
        .await
        .unwrap();
    }
}

pub(super) const TTLS: [&str; 4] = ["0", "100", "2000000", "4000000"];

/// An item of many kinds: empty and large values, flags, TTLs on both sides of 30 days, binary
/// keys.
pub(super) fn item(i: usize, now: u64) -> Vec<u8> {
    let ttl = match TTLS[i % 4] {
        "4000000" => (now + 4_000_000).to_string(),
        ttl => ttl.to_owned(),
    };
    let value = if i.is_multiple_of(10) {
        String::new()
    } else {
        format!("{i}\r\n").repeat(if i % 1000 == 7 { 5000 } else { 1 + i % 9 })
    };
    let (key, binary) = wire_key(i);
    format!("ms {key} {}{binary} F{} T{ttl}\r\n{value}\r\n", value.len(), i % 70_000).into_bytes()
}

pub(super) fn wire_key(i: usize) -> (String, &'static str) {
    // "YWJj" + digits is base64 for "abc" and other bytes, among them blanks and control
    // characters.
    if i % 50 == 3 { (format!("YWJjICAg{i:08}"), " b") } else { (format!("key-{i}"), "") }
}

pub(super) fn all_keys(count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|i| {
            let (key, binary) = wire_key(i);
            format!("{key}{binary}").into_bytes()
        })
        .collect()
}

/// Mutations as the data path makes them while a pair is Recovering: leader first, its answer
/// decides, target after.
pub(super) async fn mutate(world: &World, worker: usize, workers: usize, count: usize, stop: &AtomicBool) -> usize {
    let (mut leader, mut target) = (world.pipe(LEADER).await, world.pipe(TARGET).await);
    let mut seed = 77 + worker as u64;
    let mut done = 0;
    while !stop.load(Ordering::SeqCst) {
        let _open = world.gate.read().await;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let r = (seed >> 33) as usize;
        let hot = if r.is_multiple_of(3) { 10 } else { count / workers };
        let i = ((r / 3) % hot) * workers + worker;
        let (key, binary) = wire_key(i);
        let raw = Bytes::from(if binary.is_empty() { key.clone().into_bytes() } else { unbase64(&key) });
        let set = format!("ms {key} 4{binary} F9 T50\r\n{:04}\r\n", done % 10_000);
        let (command, conditional) = match r / 7 % 4 {
            0 => (set, false),
            1 => (format!("md {key}{binary}\r\n"), false),
            2 => (format!("ma {key}{binary} D3\r\n"), true),
            _ => (format!("mg {key}{binary} t T77\r\n"), true),
        };
        let answer = leader.ask(command.as_bytes(), Effect::Mutation, deadline()).await.unwrap();
        let effect = answer.starts_with("HD");
        if !world.recovering.load(Ordering::SeqCst) {
            // Degraded: the leader alone.
        } else if !conditional || (effect && world.mirrored.load(Ordering::SeqCst)) {
            target.ask(command.as_bytes(), Effect::Mutation, deadline()).await.unwrap();
        } else if effect {
            target.ask(format!("md {key}{binary}\r\n").as_bytes(), Effect::Mutation, deadline()).await.unwrap();
            world.recopy.push(raw);
        }
        done += 1;
    }
    done
}

pub(super) fn unbase64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let six: Vec<u32> = text.bytes().map(|b| ALPHABET.iter().position(|&a| a == b).unwrap() as u32).collect();
    let groups = six.chunks(4).map(|g| g[0] << 18 | g[1] << 12 | g[2] << 6 | g[3]);
    groups.flat_map(|bits| bits.to_be_bytes()[1..].to_vec()).collect()
}
