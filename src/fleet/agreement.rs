//! Losses, agreed on through the record that the keeper of the lease writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::backend::marker::FleetMark;
use crate::cluster::{Losses, Lost, Turn};
use crate::coord::{self, Burden, Event};
use crate::ids::{Epoch, PairId, Place};

use super::keeper::Keeper;
use super::standbys::Standbys;

/// What this proxy has agreed on, and is about to.
pub(super) struct Agreement {
    keeper: Keeper,
    turn: Turn,
    listed: Vec<(PairId, Lost, Epoch)>,
    wanted: Arc<Mutex<Wanted>>,
    shown: Shown,
    /// Cancelled when the operator wants another proxy to be active.
    hands_over: CancellationToken,
}

/// What others may look at.
pub(super) struct Shown {
    /// The former active proxy is waited for.
    pub(super) former: Arc<AtomicBool>,
    /// What `stats proxy` says.
    pub(super) all: Box<dyn Fn() -> Bytes + Send + Sync>,
    pub(super) standbys: Arc<Standbys>,
    /// Its start over the servers is done.
    pub(super) serves: Arc<AtomicBool>,
}

/// One burden after the other. If the keeper got the next one before the record is known to carry
/// this one, a return to an earlier burden would look as if the record carried it already.
#[derive(Default)]
struct Wanted {
    /// What is wanted now, and how often that has changed.
    burden: Burden,
    changes: u64,
    /// The burden that the keeper got last, and the number of changes then; whether the record
    /// carries it.
    told: (u64, Burden),
    is_known: bool,
    /// What it was known to carry last.
    carried: Burden,
    /// The epoch of each pair's last loss.
    epochs: BTreeMap<PairId, Epoch>,
    /// Who waits until the record carries what was wanted after so many changes, or something
    /// later.
    waiting: Vec<(u64, oneshot::Sender<()>)>,
}

impl Agreement {
    pub(super) fn new(
        keeper: Keeper,
        turn: Turn,
        predecessor: Burden,
        (shown, hands_over): (Shown, CancellationToken),
    ) -> Agreement {
        let mut listed: BTreeMap<PairId, (Lost, Epoch)> = BTreeMap::new();
        for (pair, place, epoch) in predecessor.lost.iter() {
            let (lost, since) = listed.entry(pair).or_default();
            *lost = if *lost == Lost::Nothing { Lost::Copy(place) } else { Lost::Both };
            *since = epoch.max(*since);
        }
        let told = (0, predecessor.clone());
        let carried = predecessor.clone();
        let wanted = Wanted { burden: predecessor, told, is_known: true, carried, ..Wanted::default() };
        let listed = listed.into_iter().map(|(pair, (lost, since))| (pair, lost, since)).collect();
        let wanted = Arc::new(Mutex::new(wanted));
        Agreement { keeper, turn, listed, wanted, shown, hands_over }
    }

    /// Returns what is to be called with what the record is known to carry.
    pub(super) fn hears(&self) -> impl Fn(&Burden) + Send + Sync + use<> {
        let (wanted, keeper) = (self.wanted.clone(), self.keeper.clone());
        move |burden| held(&wanted).known(burden, &keeper)
    }
}

fn held(wanted: &Mutex<Wanted>) -> MutexGuard<'_, Wanted> {
    wanted.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wanted {
    /// The record is known to carry this burden.
    fn known(&mut self, burden: &Burden, keeper: &Keeper) {
        if *burden != self.told.1 {
            return;
        }
        self.is_known = true;
        self.carried = burden.clone();
        let known = self.told.0;
        // Dropped, they complete.
        self.waiting.retain(|(change, _)| *change > known);
        self.tell(keeper);
    }

    fn tell(&mut self, keeper: &Keeper) {
        if !self.is_known || self.told.0 == self.changes {
            return;
        }
        if self.told.1 == self.burden {
            // It was wanted otherwise for a moment, of which the keeper has not heard.
            self.told.0 = self.changes;
            self.waiting.clear();
            return;
        }
        (self.told, self.is_known) = ((self.changes, self.burden.clone()), false);
        keeper.tell(Event::Carry(self.burden.clone()));
    }
}

/// Which copies of a pair are on the list.
fn listed(lost: Lost) -> &'static [Place] {
    match lost {
        Lost::Nothing => &[],
        Lost::Copy(Place::Primary) => &[Place::Primary],
        Lost::Copy(Place::Backup) => &[Place::Backup],
        Lost::Both => &[Place::Primary, Place::Backup],
    }
}

impl Losses for Agreement {
    fn listed(&self) -> Vec<(PairId, Lost, Epoch)> {
        self.listed.clone()
    }

    fn commit(&self, pair: PairId, epoch: Epoch, lost: Lost) -> BoxFuture<'static, ()> {
        let mut wanted = held(&self.wanted);
        let known = wanted.epochs.entry(pair).or_default();
        if epoch >= *known {
            *known = epoch;
            let mut set: coord::Lost = wanted.burden.lost.clone();
            // Its epoch too, if the same copy was listed before: a record of an epoch in between
            // may say that it is in sync.
            set.set(pair, epoch, listed(lost));
            if set != wanted.burden.lost {
                wanted.burden.lost = set;
                wanted.changes += 1;
                wanted.tell(&self.keeper);
            }
        }
        if wanted.is_known && wanted.told.0 == wanted.changes {
            return futures::future::ready(()).boxed();
        }
        let (told, hears) = oneshot::channel();
        let change = wanted.changes;
        wanted.waiting.push((change, told));
        drop(wanted);
        async move {
            // Completes when the sender is dropped, see `known`.
            let _ = hears.await;
        }
        .boxed()
    }

    fn is_listed(&self, pair: PairId) -> bool {
        let wanted = held(&self.wanted);
        [&wanted.carried, &wanted.told.1].iter().any(|burden| burden.lost.iter().any(|(listed, ..)| listed == pair))
    }

    fn turn(&self) -> Option<Turn> {
        Some(self.turn.clone())
    }

    fn marked_by_other(&self, mark: &FleetMark) {
        self.keeper.marked(mark);
    }

    fn awaits_former(&self, awaits: bool) {
        self.shown.former.store(awaits, Ordering::Relaxed);
        let mut wanted = held(&self.wanted);
        if wanted.burden.awaits != awaits {
            wanted.burden.awaits = awaits;
            wanted.changes += 1;
            wanted.tell(&self.keeper);
        }
    }

    fn shown(&self) -> Option<Bytes> {
        Some((self.shown.all)())
    }

    fn role(&self) -> &'static str {
        self.keeper.known.borrow().role.word()
    }

    fn trouble(&self) -> Option<String> {
        self.keeper.known.borrow().trouble.clone()
    }

    fn started(&self) {
        self.shown.serves.store(true, Ordering::Relaxed);
    }

    fn hand_over(&self) -> Result<Vec<String>, String> {
        let successors = self.shown.standbys.successors()?;
        // The record could not be freed: no proxy could take over before the lease is over, and
        // clients would wait in vain (an etcd that had just been restarted: 706 errors in two
        // seconds).
        if let Some(trouble) = self.trouble() {
            return Err(format!(
                "the record cannot be freed for another proxy now: {trouble}; try again when stats proxy \
                                says no proxy:trouble"
            ));
        }
        tracing::info!(to = successors.join(" "), "the operator wants another proxy to be active: this one hands over");
        self.hands_over.cancel();
        Ok(successors)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::fleet::keeper::{Known, Role, Told};
    use crate::fleet::standbys::{Fitness, Peer};
    use crate::ids::{Generation, Term};

    /// An agreement, what its keeper is told, and how it hears of what is known.
    fn agreement(predecessor: Burden) -> (Agreement, mpsc::Receiver<Told>, impl Fn(&Burden)) {
        let (keeper, told) = Keeper::for_tests(Role::Active);
        let (name, address, lease) = ("a".to_owned(), "b:1".to_owned(), Duration::ZERO);
        let mark = FleetMark { name, generation: Generation(3), address, lease };
        let turn = Turn { mark, term: Term(0), former: None, grace: Duration::ZERO };
        let all = Box::new(Bytes::new);
        let shown = Shown { former: Arc::default(), all, standbys: Arc::default(), serves: Arc::default() };
        let agreement = Agreement::new(keeper, turn, predecessor, (shown, CancellationToken::new()));
        let hears = agreement.hears();
        (agreement, told, hears)
    }

    fn carried(told: &mpsc::Receiver<Told>) -> Burden {
        match told.try_recv().expect("something is to be carried") {
            Told::Event(Event::Carry(burden)) => burden,
            other => panic!("{other:?}"),
        }
    }

    fn is_done(future: &mut BoxFuture<'static, ()>) -> bool {
        future.as_mut().now_or_never().is_some()
    }

    #[test]
    fn a_loss_is_agreed_on_when_the_record_carries_it_and_not_before() {
        let (agreement, told, hears) = agreement(Burden::default());
        assert!(is_done(&mut agreement.commit(PairId(0), Epoch(5), Lost::Nothing)), "nothing was lost");
        assert!(told.try_recv().is_err());
        let mut first = agreement.commit(PairId(0), Epoch(6), Lost::Copy(Place::Backup));
        let alone = carried(&told);
        assert!(alone.lost.contains(PairId(0), Place::Backup));
        let mut again = agreement.commit(PairId(0), Epoch(6), Lost::Copy(Place::Backup));
        let mut second = agreement.commit(PairId(1), Epoch(6), Lost::Both);
        assert!(told.try_recv().is_err(), "one after the other");
        assert!(!is_done(&mut first) && !is_done(&mut again) && !is_done(&mut second));
        hears(&alone);
        let both = carried(&told);
        assert!(is_done(&mut first) && is_done(&mut again));
        assert!(!is_done(&mut second), "the record does not carry it yet");
        hears(&both);
        assert!(is_done(&mut second));
        assert!(is_done(&mut agreement.commit(PairId(1), Epoch(6), Lost::Both)), "it is known");
    }

    #[test]
    fn the_latest_epoch_of_a_pair_counts() {
        let (agreement, told, hears) = agreement(Burden::default());
        let mut late = agreement.commit(PairId(0), Epoch(7), Lost::Nothing);
        let mut early = agreement.commit(PairId(0), Epoch(6), Lost::Copy(Place::Backup));
        assert!(told.try_recv().is_err() && is_done(&mut late) && is_done(&mut early));
        let mut lost = agreement.commit(PairId(0), Epoch(8), Lost::Copy(Place::Primary));
        let mut back = agreement.commit(PairId(0), Epoch(9), Lost::Nothing);
        let mut anew = agreement.commit(PairId(0), Epoch(10), Lost::Copy(Place::Primary));
        let first = carried(&told);
        hears(&first);
        assert!(is_done(&mut lost), "the record lists the copy");
        let again = carried(&told);
        assert!(!is_done(&mut back) && !is_done(&mut anew), "as of epoch 8: a server's record of 9 would outdo that");
        hears(&again);
        assert!(is_done(&mut back) && is_done(&mut anew));
        let mut back = agreement.commit(PairId(0), Epoch(11), Lost::Nothing);
        let mut anew = agreement.commit(PairId(0), Epoch(12), Lost::Copy(Place::Primary));
        let none = carried(&told);
        hears(&again);
        assert!(!is_done(&mut anew), "what the record was before does not count");
        hears(&none);
        assert!(is_done(&mut back) && !is_done(&mut anew));
        hears(&carried(&told));
        assert!(is_done(&mut anew));
    }

    /// Whoever takes over in between lets no listed copy lead, and the other one may be gone.
    #[test]
    fn a_copy_may_be_listed_until_the_record_is_known_not_to_list_it() {
        let mut burden = Burden::default();
        burden.lost.set(PairId(0), Epoch(4), &[Place::Backup]);
        let (agreement, told, hears) = agreement(burden);
        assert!(agreement.is_listed(PairId(0)) && !agreement.is_listed(PairId(1)));
        let mut back = agreement.commit(PairId(0), Epoch(5), Lost::Nothing);
        let none = carried(&told);
        assert!(agreement.is_listed(PairId(0)), "it is asked for, and no more");
        hears(&none);
        assert!(is_done(&mut back) && !agreement.is_listed(PairId(0)));
        let _lost = agreement.commit(PairId(1), Epoch(6), Lost::Copy(Place::Primary));
        assert!(agreement.is_listed(PairId(1)), "the record may carry it");
    }

    #[test]
    fn the_record_says_that_the_former_is_awaited_until_it_is_gone() {
        let (agreement, told, hears) = agreement(Burden { awaits: true, ..Burden::default() });
        agreement.awaits_former(true);
        assert!(told.try_recv().is_err(), "it says so already");
        agreement.awaits_former(false);
        let gone = carried(&told);
        assert!(!gone.awaits);
        hears(&gone);
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn it_is_handed_over_to_a_candidate_alone_that_can_take_over() {
        let (mut agreement, _told, _) = agreement(Burden::default());
        assert!(agreement.hand_over().unwrap_err().contains("no other candidate"));
        let standbys = agreement.shown.standbys.clone();
        let witness = standbys.enter(Peer::of(&["10.0.0.6:1", "no", "1.0.0"]), 2);
        witness.asked(Fitness::Fit.byte());
        assert!(agreement.hand_over().is_err() && !agreement.hands_over.is_cancelled());
        let candidate = standbys.enter(Peer::of(&["10.0.0.7:1", "yes", "1.0.0", "what a later one says"]), 2);
        candidate.asked(Fitness::NoStore.byte());
        let refused = agreement.hand_over().unwrap_err();
        assert!(refused.contains("10.0.0.7:1") && !agreement.hands_over.is_cancelled(), "{refused}");
        candidate.asked(Fitness::Fit.byte());
        let knows =
            tokio::sync::watch::Sender::new(Known { trouble: Some("it is away".to_owned()), ..Known::default() });
        agreement.keeper.known = knows.subscribe();
        let refused = agreement.hand_over().unwrap_err();
        assert!(refused.contains("it is away") && !agreement.hands_over.is_cancelled(), "{refused}");
        knows.send_modify(|known| known.trouble = None);
        assert_eq!(agreement.hand_over(), Ok(vec!["10.0.0.7:1".to_owned()]));
        assert!(agreement.hands_over.is_cancelled());
        drop((candidate, witness));
        assert!(agreement.hand_over().is_err());
    }

    #[test]
    fn what_the_predecessor_lost_is_listed() {
        let mut burden = Burden::default();
        burden.lost.set(PairId(1), Epoch(4), &[Place::Primary]);
        burden.lost.set(PairId(2), Epoch(6), &[Place::Primary, Place::Backup]);
        let (agreement, _told, _) = agreement(burden);
        let expected = [(PairId(1), Lost::Copy(Place::Primary), Epoch(4)), (PairId(2), Lost::Both, Epoch(6))];
        assert_eq!(agreement.listed(), expected);
    }
}
