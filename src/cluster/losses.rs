//! Losses are agreed on before they count.
//!
//! A proxy that is cut off together with a server continues with that server alone, and
//! acknowledges writes that no other server has. A proxy that takes its place meanwhile reaches
//! only the other server, whose record says that it is in sync: it would let that server lead, and
//! the acknowledged writes would be lost. A single network cut suffices for that. So no leader
//! acknowledges anything alone before every possible successor of this proxy is sure to learn that
//! the other copy is lost. That copy is *listed*: it does not lead before the leader answers, or
//! its memory is proved gone, as if a third server were a witness.
//!
//! A refilled copy is removed from the list once its record says that it is in sync. Before that is
//! confirmed the pair is not called mirrored: a host with this proxy and the other copy may fail.
//! If the lead moves to it, the gate stays closed until the removal is confirmed: no write may go
//! to one copy first while a successor would let the other one lead.

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};

use crate::backend::marker::{Fact, FleetMark, Record};
use crate::ids::{Epoch, PairId, Place};
use crate::rules::{Rule, holds};

use super::Cluster;
use super::turn::Turn;

/// Of a pair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Lost {
    #[default]
    Nothing,
    Copy(Place),
    /// Neither copy counts: a `flush_all` has ended what both held while they were away.
    Both,
}

/// Where it is agreed which copies are lost.
pub trait Losses: Send + Sync + 'static {
    /// What was agreed on last when this proxy took the place of another one, and from which epoch
    /// of each pair on.
    fn listed(&self) -> Vec<(PairId, Lost, Epoch)>;

    /// Lists `lost` from this epoch of the pair on. It is asked for at once, also if nothing awaits
    /// the result. Completes when it is agreed on, and never if another proxy is active by then. Of
    /// several for one pair the one with the latest epoch counts, in whatever order they come.
    fn commit(&self, pair: PairId, epoch: Epoch, lost: Lost) -> BoxFuture<'static, ()>;

    /// Whether the record may still list a copy of the pair: a successor lets no listed copy lead.
    fn is_listed(&self, _: PairId) -> bool {
        false
    }

    /// This proxy's turn, where it is one of several.
    fn turn(&self) -> Option<Turn> {
        None
    }

    /// A server bears the mark of a later generation, or of another fleet.
    fn marked_by_other(&self, _: &FleetMark) {}

    /// Whether the former active proxy is waited for.
    fn awaits_former(&self, _: bool) {}

    /// What `stats proxy` says.
    fn shown(&self) -> Option<Bytes> {
        None
    }

    /// What this proxy is among those that agree.
    fn role(&self) -> &'static str {
        "single"
    }

    /// Why its lease may be over: what is wrong where the proxies agree.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// The start is over: from now on requests are answered.
    fn started(&self) {}

    /// The operator wants another proxy to take this one's place. Returns where those are reached
    /// that may do so.
    ///
    /// # Errors
    ///
    /// Why that is not begun, in words.
    fn hand_over(&self) -> Result<Vec<String>, String> {
        Err("no other proxy can take its place: it runs without --coordinate".to_owned())
    }
}

/// One proxy alone: no other one may take its place, so there is nothing to agree on.
pub struct NoStandby;

impl Losses for NoStandby {
    fn listed(&self) -> Vec<(PairId, Lost, Epoch)> {
        Vec::new()
    }

    fn commit(&self, _: PairId, _: Epoch, _: Lost) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}

/// What is lost by that record. Of an adoption both copies count.
fn lost_by(fact: Fact) -> Lost {
    match fact {
        Fact::Alone(place) => Lost::Copy(place.other()),
        Fact::Filling(place) => Lost::Copy(place),
        Fact::Nobody => Lost::Both,
        Fact::Sync | Fact::Adopting(_) => Lost::Nothing,
    }
}

impl Cluster {
    /// To be awaited when this record is written, before the gate opens. A loss is agreed on beside
    /// the writing. `first`: the place that it is written on first.
    pub(super) fn committed(&self, pair: PairId, record: &Record, first: Option<Place>) -> BoxFuture<'static, ()> {
        let (losses, epoch) = (self.fleet.losses.clone(), record.epoch);
        let lost = lost_by(record.fact);
        if lost != Lost::Nothing {
            let counts = losses.commit(pair, epoch, lost);
            return if holds(Rule::LossCommittedBeforeAck) { counts } else { ready(()).boxed() };
        }
        async move {
            let counts = losses.commit(pair, epoch, lost);
            if first == Some(Place::Primary) {
                counts.await;
            }
        }
        .boxed()
    }

    /// What the former active proxy's list says of the pair, if it lists a copy, and no record on
    /// the servers has a later epoch. `newest`: the latest of these.
    ///
    /// A record may be written before the list says the same. That does no harm: what it says was
    /// true, and nothing that came after it was acknowledged. The list may be an old one: of a
    /// register that was restored, or was left for a while. (Seen with each: who led alone since
    /// was purged, or who had been lost since led.)
    pub(super) fn agreed(&self, pair: PairId, newest: Option<Record>) -> Option<Record> {
        if !holds(Rule::ListedCopiesDoNotLead) {
            return None;
        }
        let &(_, lost, since) = self.fleet.listed.iter().find(|(listed, ..)| *listed == pair)?;
        if newest.is_some_and(|record| record.epoch > since) {
            return None;
        }
        let fact = match lost {
            Lost::Nothing => return None,
            Lost::Copy(place) => Fact::Alone(place.other()),
            Lost::Both => Fact::Nobody,
        };
        let term = newest.map_or(self.precedence.term(), |record| record.term);
        Some(Record { epoch: since, fact, term, period: self.precedence.period() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::oneshot;

    use super::*;
    use crate::cluster::alone::agreeing;
    use crate::ids::Term;

    /// Agrees when it is told to.
    #[derive(Default)]
    struct Slow(Mutex<Vec<(Lost, oneshot::Sender<()>)>>);

    impl Losses for Slow {
        fn listed(&self) -> Vec<(PairId, Lost, Epoch)> {
            Vec::new()
        }

        fn commit(&self, _: PairId, _: Epoch, lost: Lost) -> BoxFuture<'static, ()> {
            let (agrees, agreed) = oneshot::channel();
            self.0.lock().unwrap().push((lost, agrees));
            async { agreed.await.unwrap_or_default() }.boxed()
        }
    }

    /// The list may be that of a register that was restored: who it says is lost has come back
    /// since, and leads alone.
    #[tokio::test]
    async fn the_list_counts_as_long_as_no_record_is_of_a_later_epoch() {
        let mut cluster = agreeing("-s 127.0.0.1:1 -b 127.0.0.1:2", std::sync::Arc::new(Slow::default()));
        cluster.fleet.listed = vec![(PairId(0), Lost::Copy(Place::Primary), Epoch(9))];
        let record = |epoch| Record {
            epoch: Epoch(epoch),
            fact: Fact::Sync,
            term: Term(1),
            period: cluster.precedence.period(),
        };
        for (newest, counts) in [(None, true), (Some(8), true), (Some(9), true), (Some(10), false)] {
            let agreed = cluster.agreed(PairId(0), newest.map(record));
            let expected = counts.then_some((Fact::Alone(Place::Backup), Epoch(9)));
            assert_eq!(agreed.map(|record| (record.fact, record.epoch)), expected, "{newest:?}");
        }
        assert!(cluster.agreed(PairId(1), None).is_none());
    }

    /// Whoever takes this proxy's place in between would let the other copy lead.
    #[tokio::test]
    async fn no_gate_opens_before_it_is_agreed_on_who_leads_alone_or_that_the_lead_moves() {
        let slow = std::sync::Arc::new(Slow::default());
        let cluster = agreeing("-s 127.0.0.1:1 -b 127.0.0.1:2", slow.clone());
        for (fact, first, lost, waits) in [
            (Fact::Alone(Place::Primary), None, Lost::Copy(Place::Backup), true),
            (Fact::Filling(Place::Primary), None, Lost::Copy(Place::Primary), true),
            (Fact::Nobody, None, Lost::Both, true),
            (Fact::Sync, Some(Place::Primary), Lost::Nothing, true),
            // The same node leads as before.
            (Fact::Sync, Some(Place::Backup), Lost::Nothing, false),
            (Fact::Sync, None, Lost::Nothing, false),
        ] {
            let record = Record { epoch: Epoch(9), fact, term: Term(1), period: cluster.precedence.period() };
            let mut committed = cluster.committed(PairId(0), &record, first);
            assert_eq!(committed.as_mut().now_or_never().is_none(), waits, "{fact:?}, first {first:?}");
            let (asked, agrees) = slow.0.lock().unwrap().pop().expect("it is asked for at once");
            assert_eq!(asked, lost, "{fact:?}");
            if waits {
                agrees.send(()).unwrap();
                assert!(committed.now_or_never().is_some(), "{fact:?}");
            }
        }
    }
}
