//! What a candidate reaches of the servers, by a look of its own once in a lease. A standby tells
//! the active proxy; an active proxy that is cut off from many of them, while a standby reaches
//! all, hands over to it. While no proxy is active, as far as is known, any other one looks too:
//! its clients are to hear why.
//!
//! By connections that last as long as the look: one that stayed would be of unknown origin to the
//! proxy that waits, at a takeover, for those of the former active proxy to close.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, join_all};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::protocol::node;
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

/// Connects to a server, and asks whether it is there.
pub(super) type Looks = Box<dyn Fn(NodeAddr) -> BoxFuture<'static, io::Result<()>> + Send + Sync>;

pub(super) struct Reach {
    primaries: Vec<NodeAddr>,
    backups: Vec<NodeAddr>,
    looks: Looks,
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
        let looks = |server: NodeAddr| {
            async move { answers(TcpStream::connect((server.host.as_str(), server.port)).await?).await }.boxed()
        };
        Reach::over((&settings.primaries, &settings.backups), Box::new(looks), known, shared, hands_over)
    }

    /// The same, by other connections.
    pub(super) fn over(
        (primaries, backups): (&[ServerSpec], &[ServerSpec]),
        looks: Looks,
        known: watch::Receiver<Known>,
        shared: Arc<Shared>,
        hands_over: CancellationToken,
    ) -> Reach {
        let of = |ring: &[ServerSpec]| ring.iter().map(|server| server.addr.clone()).collect();
        let (primaries, backups) = (of(primaries), of(backups));
        Reach { primaries, backups, looks, every: shared.me.lease, known, shared, hands_over }
    }

    pub(super) async fn run(self) {
        let mut tenure = Tenure::default();
        loop {
            tokio::time::sleep(self.every).await;
            let (role, waits) = {
                let known = self.known.borrow();
                (known.role, known.active.is_none() || known.silent)
            };
            if role == Role::Suspended {
                continue;
            }
            if !waits && !self.shared.me.candidate {
                self.shared.shown.reached_servers.send_replace(Reached::Unknown);
                continue;
            }
            let (primaries, backups) = tokio::join!(self.look(&self.primaries), self.look(&self.backups));
            self.shared.shown.reached_servers.send_replace(Reached::of(primaries.iter().chain(&backups)));
            let [primaries, backups] =
                [primaries, backups].map(|ring| ring.iter().map(Result::is_ok).collect::<Vec<_>>());
            let is_cut_off = is_cut_off(&primaries, &backups);
            if !tenure.is_over(role == Role::Active, is_cut_off, self.shared.shown.standbys.one_reaches_all()) {
                continue;
            }
            // While the record cannot be freed, no proxy could take over before the lease is over.
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

    /// Whether each of them answers; why not, with its name.
    async fn look(&self, ring: &[NodeAddr]) -> Vec<Result<(), String>> {
        let patience = self.every / PART;
        join_all(ring.iter().map(|server| async move {
            match tokio::time::timeout(patience, (self.looks)(server.clone())).await {
                Ok(answered) => answered.map_err(|error| format!("{server}: {error}")),
                Err(_) => Err(format!("{server}: no answer in time")),
            }
        }))
        .await
    }
}

pub(super) async fn answers(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.write_all(node::NOOP).await?;
    match stream.read_u8().await? {
        b'M' => Ok(()),
        _ => Err(io::Error::other("it is no memcached, or takes no more connections")),
    }
}

/// By the last look.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) enum Reached {
    /// There was none.
    #[default]
    Unknown,
    /// And why not one of them.
    None(String),
    Some,
    All,
}

impl Reached {
    fn of<'a>(looks: impl Iterator<Item = &'a Result<(), String>> + Clone) -> Reached {
        match (looks.clone().find_map(|look| look.as_ref().err()), looks.clone().any(Result::is_ok)) {
            (None, _) => Reached::All,
            (Some(_), true) => Reached::Some,
            (Some(why), false) => Reached::None(why.clone()),
        }
    }
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
    fn of_no_server_that_answers_it_is_known_why() {
        let (there, away) = (Ok(()), |why: &str| Err(why.to_owned()));
        for (looks, reached) in [
            (vec![there.clone(), there.clone()], Reached::All),
            (vec![away("a:1: refused"), there], Reached::Some),
            (vec![away("a:1: refused"), away("b:1: no answer in time")], Reached::None("a:1: refused".to_owned())),
        ] {
            assert_eq!(Reached::of(looks.iter()), reached, "{looks:?}");
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
