//! `lru_crawler metadump`: the keys of all servers that lead, without the proxy's own, sent in
//! pieces.
//!
//! A piece is handed to the client's worker as bytes that know when they are dropped: written, or
//! not going to be. As many as [`WINDOW`] of them are on their way; the others wait in the listing
//! (memory up to a bound, then a file), whether the client is slow or stopped. For a client that
//! takes nothing for [`STALLED`] the list ends with an error. An operator at the desk takes the
//! pieces one by one.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ids::{NodeId, WorkerId};
use crate::protocol::answer::{self, server_error};
use crate::protocol::dump::Classes;
use crate::protocol::outcome::Outcome;
use crate::proxy::{ClientKey, Command};
use crate::resync::{ListError, Progress, list};

use super::Cluster;
use super::asker::Asker;
use super::events::Internal;

/// Listings at a time: each keeps a file, and a server that lists does little else.
const AT_ONCE: usize = 2;
/// Pieces that the client has not taken: 32 KiB each.
const WINDOW: usize = 8;
/// How long a client may take nothing.
const STALLED: Duration = Duration::from_secs(60);

/// The lists of keys that are being sent.
#[derive(Default)]
pub(super) struct Listings(Vec<Listing>);

struct Listing {
    asker: Asker,
    over: CancellationToken,
    /// A resync begins.
    gives_way: CancellationToken,
}

/// A piece on its way to the client.
struct Piece {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Cluster {
    /// For a client.
    pub(super) fn list(&mut self, asker: Asker, classes: &str) {
        let Some(worker) = self.workers.get(asker.worker.index()).cloned() else { return };
        let (pieces, mut listed) = mpsc::channel::<Bytes>(1);
        let room = Arc::new(Semaphore::new(WINDOW));
        let tell = async move {
            while let Some(bytes) = listed.recv().await {
                let Ok(Ok(free)) = timeout(STALLED, room.clone().acquire_owned()).await else { return };
                let bytes = Bytes::from_owner(Piece { bytes, _room: free });
                if worker.send(Command::Part { client: asker.client, bytes }).is_err() {
                    return;
                }
            }
        };
        self.list_to(asker, classes, pieces, tell);
    }

    /// For an operator, who takes the pieces before the end.
    pub(super) fn list_at_the_desk(&mut self, asker: Asker, classes: &str, pieces: mpsc::Sender<Bytes>) {
        self.list_to(asker, classes, pieces, ready(()));
    }

    /// The end is sent once `tell` is over.
    fn list_to(
        &mut self,
        asker: Asker,
        classes: &str,
        pieces: mpsc::Sender<Bytes>,
        tell: impl Future<Output = ()> + Send + 'static,
    ) {
        let Some(classes) = Classes::parse(classes) else {
            return self.answer(asker, Outcome::Own(b"BADCLASS invalid class id\r\n"));
        };
        if classes.is_empty() {
            return self.answer(asker, Outcome::Own(b"NOTSTARTED no items to crawl\r\n"));
        }
        // A resync has the servers' crawlers for itself.
        if self.operators.listings.0.len() >= AT_ONCE || self.nodes.iter().any(|run| run.refills.job.is_some()) {
            return self.answer(asker, Outcome::Own(b"BUSY currently processing crawler request\r\n"));
        }
        let leaders = self.leaders();
        let nodes: Vec<NodeId> = self.topology.nodes().filter(|&node| leaders.leads(node)).collect();
        if let Some(away) = nodes.iter().find(|node| !self.nodes[**node].health.is_up()) {
            let name = self.topology.addr(*away).to_string();
            return self.answer(asker, Outcome::Raw(failed(&name, "is not in use")));
        }
        let (over, gives_way) = (CancellationToken::new(), CancellationToken::new());
        self.operators.listings.0.push(Listing { asker, over: over.clone(), gives_way: gives_way.clone() });
        // It asks the control plane nothing.
        let (coordinator, _) = mpsc::channel(1);
        let context = self.context(over.clone(), Arc::new(Progress::new(std::iter::empty())), coordinator);
        self.spawn(async move {
            let wanted = move |node, key: &[u8], line: &[u8]| classes.has(line) && leaders.shows(node, key);
            let told = async { futures::join!(list(&context, nodes, wanted, pieces), tell).0 };
            let result = tokio::select! {
                biased;
                () = over.cancelled() => Err(ListError::Unwanted),
                () = gives_way.cancelled() => Err(ListError::GivesWay),
                told = told => told,
            };
            Internal::Listed { asker, result }
        });
    }

    pub(super) fn listed(&mut self, asker: Asker, result: Result<(), ListError>) {
        self.operators.listings.0.retain(|listing| listing.asker != asker);
        let end = match result {
            Ok(()) => Bytes::from_static(answer::END),
            Err(error) => {
                let at = match &error {
                    ListError::Server(node, _) => self.topology.addr(*node).to_string(),
                    ListError::Spool(_) | ListError::GivesWay | ListError::Unwanted => "the list".to_owned(),
                };
                tracing::warn!(at, %error, "a list of all keys ends before its end");
                failed(&at, error)
            }
        };
        self.answer(asker, Outcome::Raw(end));
    }

    /// Every listing asks the leaders, from which nodes are filled.
    pub(super) fn end_listings(&self) {
        self.operators.listings.0.iter().for_each(|listing| listing.gives_way.cancel());
    }

    /// A client that was being sent a list is gone.
    pub(super) fn unwanted(&mut self, worker: WorkerId, client: ClientKey) {
        self.operators.listings.0.iter().filter(|l| l.asker.is(worker, client)).for_each(|l| l.over.cancel());
    }
}

/// Stands in for `END`.
fn failed(what: &str, why: impl std::fmt::Display) -> Bytes {
    server_error(format_args!("{what} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::alone;
    use crate::ids::Place;
    use crate::pair::{Fill, State};
    use crate::proxy::{ClientId, Occupant, SlotNumber};

    /// A client that asks for all keys again and again, and reads slowly, keeps no node from being
    /// filled.
    #[tokio::test(start_paused = true)]
    async fn a_list_of_all_keys_gives_way_to_a_resync() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
        cluster.begin_open(State::Degraded { leader: Place::Primary });
        let client = ClientKey { id: ClientId(0), occupant: Occupant(0) };
        let asker = |slot| Asker { worker: WorkerId(0), client, slot: SlotNumber(slot) };
        cluster.list(asker(1), "all");
        assert_eq!(cluster.operators.listings.0.len(), 1);
        let target = cluster.node_at(crate::ids::PairId(0), Place::Backup);
        cluster.begin_job(target, vec![crate::ids::PairId(0)], Fill::Purge);
        assert!(cluster.operators.listings.0[0].gives_way.is_cancelled());
        cluster.operators.listings.0.clear();
        cluster.list(asker(2), "all");
        assert!(cluster.operators.listings.0.is_empty(), "not while it is being filled");
    }

    /// Those of several operators are told apart, and each takes one of the places.
    #[tokio::test(start_paused = true)]
    async fn operators_have_lists_of_their_own() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
        cluster.begin_open(State::Degraded { leader: Place::Primary });
        let (pieces, _taken) = mpsc::channel(1);
        let ask = |cluster: &mut Cluster| {
            let (reply, said) = tokio::sync::oneshot::channel();
            let asker = Asker::at_the_desk(cluster.operators.desk.wait_for(reply));
            cluster.list_at_the_desk(asker, "all", pieces.clone());
            (asker, said)
        };
        let ((first, mut of_first), (second, _of_second), (_, third)) =
            (ask(&mut cluster), ask(&mut cluster), ask(&mut cluster));
        assert!(third.await.expect("an answer").starts_with(b"BUSY"));
        cluster.listed(second, Ok(()));
        assert!(cluster.operators.listings.0.len() == 1 && cluster.operators.listings.0[0].asker == first);
        assert!(of_first.try_recv().is_err(), "its list goes on");
        cluster.listed(first, Ok(()));
        assert_eq!(of_first.try_recv().expect("the end"), answer::END);
    }
}
