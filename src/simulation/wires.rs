//! The network between the machines of proxies. A connection's bytes are on their way for a while,
//! and stand still, in order, where a way is closed; whoever ends closes it, but what was sent
//! before comes first. One that a cut leaves without an answer for long is given up by the kernel
//! of whoever made it: that end breaks, and what it had sent may arrive all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::fleet::simulated::Line;

use super::trace::note;

/// What a socket holds each way, bytes.
const SOCKET: usize = 16 * 1024;
/// How late something usually is, in milliseconds.
const LATE_MS: u64 = 2;

pub(super) struct Wires {
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    /// Where the process on each machine takes connections.
    listeners: BTreeMap<usize, UnboundedSender<DuplexStream>>,
    /// From which machine to which one nothing gets through.
    closed: BTreeSet<(usize, usize)>,
    /// Connections: from which machine to which one, and what gives them up.
    lines: Vec<(usize, usize, CancellationToken)>,
    late_ms: u64,
    rng: SmallRng,
}

pub(super) fn address(machine: usize) -> String {
    format!("machine{machine}:1")
}

fn machine_at(address: &str) -> Option<usize> {
    address.strip_prefix("machine")?.strip_suffix(":1")?.parse().ok()
}

impl Wires {
    pub(super) fn new(rng: &mut SmallRng) -> Arc<Wires> {
        let rng = SmallRng::seed_from_u64(rng.random());
        let (listeners, closed, lines) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let inner = Mutex::new(Inner { listeners, closed, lines, late_ms: LATE_MS, rng });
        Arc::new(Wires { inner, changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on connections to a machine come here.
    pub(super) fn listen(&self, machine: usize) -> UnboundedReceiver<DuplexStream> {
        let (comes, come) = unbounded_channel();
        self.lock().listeners.insert(machine, comes);
        come
    }

    /// Cuts the way from one machine to another, or opens it again.
    pub(super) fn close(&self, from: usize, to: usize, closed: bool) {
        let way = (from, to);
        let set = &mut self.lock().closed;
        if from != to && if closed { set.insert(way) } else { set.remove(&way) } {
            note(|| format!("FAULT  machine {from} to machine {to}: closed: {closed}"));
        }
        self.changed.notify_waiters();
    }

    /// The kernels of those who made them give up the connections that lead over a closed way.
    pub(super) fn give_up(&self) {
        let Inner { closed, lines, .. } = &mut *self.lock();
        lines.retain(|(from, to, given_up)| {
            let stands = !closed.contains(&(*from, *to)) && !closed.contains(&(*to, *from));
            if !stands && !given_up.is_cancelled() {
                note(|| format!("FAULT  a connection of machine {from} to machine {to} is given up"));
                given_up.cancel();
            }
            stands
        });
    }

    /// Everything is late by so much at most.
    pub(super) fn are_late(&self, late_ms: u64) {
        note(|| format!("FAULT  between machines: late by {late_ms} ms"));
        self.lock().late_ms = late_ms;
    }

    pub(super) fn heal(&self) {
        let mut inner = self.lock();
        (inner.late_ms, inner.closed) = (LATE_MS, BTreeSet::new());
        drop(inner);
        self.changed.notify_waiters();
    }

    /// One way from a machine to another one.
    async fn travel(&self, (from, to): (usize, usize)) {
        let ms = {
            let Inner { late_ms, rng, .. } = &mut *self.lock();
            if rng.random_ratio(1, 3) { rng.random_range(0..=*late_ms) } else { 0 }
        };
        if ms > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
        loop {
            let changed = self.changed.notified();
            if !self.lock().closed.contains(&(from, to)) {
                return;
            }
            changed.await;
        }
    }

    /// Returns with it what is cancelled where our own kernel gives it up.
    pub(super) async fn connect(self: Arc<Wires>, from: usize, address: String) -> io::Result<Line> {
        let to = machine_at(&address).ok_or(io::ErrorKind::HostUnreachable)?;
        self.travel((from, to)).await;
        let ((near, here), (there, far)) = (duplex(SOCKET), duplex(SOCKET));
        let listens = self.lock().listeners.get(&to).is_some_and(|comes| comes.send(far).is_ok());
        self.travel((to, from)).await;
        if !listens {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let ((from_near, to_near), (from_far, to_far)) = (split(here), split(there));
        let given_up = CancellationToken::new();
        self.lock().lines.push((from, to, given_up.clone()));
        tokio::spawn(carry(self.clone(), (from, to), from_near, to_far, CancellationToken::new()));
        tokio::spawn(carry(self, (to, from), from_far, to_near, given_up.clone()));
        Ok((near, given_up))
    }
}

async fn carry(
    wires: Arc<Wires>,
    way: (usize, usize),
    mut source: ReadHalf<DuplexStream>,
    mut sink: WriteHalf<DuplexStream>,
    given_up: CancellationToken,
) {
    let mut block = BytesMut::with_capacity(SOCKET);
    loop {
        let comes = async {
            let goes_on = matches!(source.read_buf(&mut block).await, Ok(1..));
            wires.travel(way).await;
            goes_on
        };
        let goes_on = tokio::select! {
            biased;
            () = given_up.cancelled() => false,
            goes_on = comes => goes_on,
        };
        if !goes_on {
            let _ = sink.shutdown().await;
            return;
        }
        if sink.write_all_buf(&mut block).await.is_err() {
            return;
        }
        block.reserve(SOCKET);
    }
}
