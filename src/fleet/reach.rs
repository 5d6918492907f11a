//! What a candidate reaches of the servers, by a look of its own once in a lease. A standby tells
//! the active proxy; an active proxy that is cut off from many of them, while a standby reaches
//! all, hands over to it.
//!
//! By connections that last as long as the look: one that stayed would be of unknown origin to
//! whoever waits at a takeover for those of the former active proxy to close.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::ring::{NodeAddr, ServerSpec};

use super::keeper::{Known, Role};
use super::relay::Shared;

/// After so many looks in a row that reached too few: the standby's last word then comes from a
/// look that began after the first of them.
const LOOKS: u32 = 3;

/// Not sooner after it became active, so that no two proxies give the servers back and forth.
const SETTLED: u32 = 10;

/// A look takes so much of the time between two at most.
const PART: u32 = 2;

pub(super) struct Reach {
    primaries: Vec<NodeAddr>,
    backups: Vec<NodeAddr>,
    every: Duration,
    known: watch::Receiver<Known>,
    shared: Arc<Shared>,
    hands_over: CancellationToken,
}

impl Reach {
    pub(super) fn new(
        settings: &Settings,
        known: watch::Receiver<Known>,
        shared: Arc<Shared>,
        hands_over: CancellationToken,
    ) -> Reach {
        let of = |ring: &[ServerSpec]| ring.iter().map(|server| server.addr.clone()).collect();
        let (primaries, backups) = (of(&settings.primaries), of(&settings.backups));
        Reach { primaries, backups, every: shared.me.lease, known, shared, hands_over }
    }

    pub(super) async fn run(self) {
        let mut tenure = Tenure::default();
        loop {
            tokio::time::sleep(self.every).await;
            let role = self.known.borrow().role;
            if role == Role::Suspended {
                continue;
            }
            let (primaries, backups) = tokio::join!(self.look(&self.primaries), self.look(&self.backups));
            let all = primaries.iter().chain(&backups).all(|reached| *reached);
            self.shared.shown.reaches_all.store(all, Ordering::Relaxed);
            let is_cut_off = is_cut_off(&primaries, &backups);
            if !tenure.is_over(role == Role::Active, is_cut_off, self.shared.shown.peers.one_reaches_all()) {
                continue;
            }
            // (Nobody could take over before the lease is over.)
            if self.known.borrow().trouble.is_some() || self.hands_over.is_cancelled() {
                continue;
            }
            let reached = primaries.iter().chain(&backups).filter(|reached| **reached).count();
            tracing::warn!(
                reached,
                servers = primaries.len() + backups.len(),
                "a standby reaches all servers, and this proxy does not: it hands over"
            );
            self.hands_over.cancel();
        }
    }

    /// Which of them answer.
    async fn look(&self, ring: &[NodeAddr]) -> Vec<bool> {
        let patience = self.every / PART;
        join_all(
            ring.iter().map(|server| async move {
                matches!(tokio::time::timeout(patience, answers(server)).await, Ok(Ok(true)))
            }),
        )
        .await
    }
}

async fn answers(server: &NodeAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
    stream.write_all(b"mn\r\n").await?;
    Ok(stream.read_u8().await? == b'M')
}

/// Half of all servers, or a whole ring.
fn is_cut_off(primaries: &[bool], backups: &[bool]) -> bool {
    let lost = |ring: &[bool]| ring.iter().filter(|reached| !**reached).count();
    let whole = |ring: &[bool]| !ring.is_empty() && lost(ring) == ring.len();
    2 * (lost(primaries) + lost(backups)) >= primaries.len() + backups.len() || whole(primaries) || whole(backups)
}

/// An active proxy's looks.
#[derive(Default)]
struct Tenure {
    looks: u32,
    cut_off: u32,
}

impl Tenure {
    /// After one more: whether it is to hand over.
    fn is_over(&mut self, is_active: bool, is_cut_off: bool, another_reaches_all: bool) -> bool {
        if !is_active {
            *self = Tenure::default();
            return false;
        }
        self.looks = self.looks.saturating_add(1);
        self.cut_off = if is_cut_off { self.cut_off.saturating_add(1) } else { 0 };
        self.cut_off >= LOOKS && self.looks >= SETTLED && another_reaches_all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_servers_or_a_whole_ring_is_too_much_to_be_cut_off_from() {
        for (primaries, backups, cut_off) in [
            (&[true][..], &[true][..], false),
            (&[false], &[true], true),
            (&[true, true, true], &[false], true),
            (&[true, true, false], &[true], false),
            (&[true, false, false], &[true], true),
            (&[true, false, true], &[], false),
            (&[false, false, false], &[], true),
        ] {
            assert_eq!(is_cut_off(primaries, backups), cut_off, "{primaries:?} {backups:?}");
        }
    }

    #[test]
    fn it_hands_over_when_it_was_cut_off_for_some_looks_and_somebody_else_is_not() {
        let mut tenure = Tenure::default();
        for look in 1..SETTLED {
            assert!(!tenure.is_over(true, true, true), "it has just begun: {look}");
        }
        assert!(!tenure.is_over(true, true, false), "nobody else reaches more");
        assert!(tenure.is_over(true, true, true));
        assert!(!tenure.is_over(true, false, true), "it reaches them");
        for look in 1..LOOKS {
            assert!(!tenure.is_over(true, true, true), "the standby may not know yet: {look}");
        }
        assert!(tenure.is_over(true, true, true));
        assert!(!tenure.is_over(false, true, true), "a standby has nothing to hand over");
        assert!(!tenure.is_over(true, true, true), "it begins anew");
    }
}
