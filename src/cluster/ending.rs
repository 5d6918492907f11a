//! The end: the workers have ended, and with them all requests. What the servers' records say then
//! is what the next start goes by, if every session is closed: so changes of pairs that are under
//! way (a server was lost a moment ago) are carried through before that, and a stop in such a
//! moment costs no compare.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout, timeout_at};

use crate::backend::marker::Session;
use crate::ids::{NodeId, PairId};
use crate::pair::Gate;
use crate::proxy::Event;

use super::events::Internal;
use super::{Cluster, PairRun};

/// How long changes of pairs are waited for: a record, and a fleet's word on it, take milliseconds,
/// and whoever takes this proxy's place has clients that wait.
const CHANGES_MAX: Duration = Duration::from_millis(500);

/// How long a server may take at the end to mark the session closed, however long requests may wait
/// for it: service managers kill what does not end.
const CLOSE_MAX: Duration = Duration::from_secs(2);

impl Cluster {
    /// Marks the session closed on every node in use: the next start may trust what it finds.
    pub(super) async fn stop(&mut self, inbox: &mut UnboundedReceiver<Internal>) {
        if !self.marked() {
            return;
        }
        self.end_changes(inbox).await;
        if let Some(what) = self.unfinished() {
            // Some write may have reached one node only: the session stays open, and the next start
            // will compare.
            tracing::warn!(what, "stopping with work unfinished: the next start will treat this as a crash");
            return;
        }
        let closed = Session { id: self.session.id, open: false };
        let mark = async |node: NodeId| {
            let run = &self.nodes[node];
            let (true, Some(incarnation)) = (run.health.is_up(), run.incarnation) else { return };
            let marked = timeout(CLOSE_MAX, self.controls[node].session(incarnation, closed));
            let error = match marked.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", CLOSE_MAX.as_secs()),
            };
            tracing::warn!(node = %self.topology.addr(node), %error, "cannot mark the session closed; the next start will be careful");
        };
        futures::future::join_all(self.topology.nodes().map(mark)).await;
    }

    /// Goes on with what its own tasks report, until no pair changes.
    async fn end_changes(&mut self, inbox: &mut UnboundedReceiver<Internal>) {
        let deadline = Instant::now() + CHANGES_MAX;
        // What was cut off may have reached one node only, and no change of a pair mends that.
        while !self.unclean.load(Relaxed) {
            self.confirm_for_workers();
            self.settle();
            // (A pair that is not decided, or whose record a full server refuses, is waited for in
            // vain.)
            let changes = |run: &PairRun| is_changing(run) && !run.beginning.undecided && !run.recording.refused;
            if !self.flush.is_active() && !self.pairs.iter().any(changes) {
                return;
            }
            match timeout_at(deadline, inbox.recv()).await {
                Ok(Some(internal)) => self.own_task_said(internal),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// What a gate waits for them to finish is finished, or they would not have ended.
    fn confirm_for_workers(&mut self) {
        for pair in self.topology.pairs() {
            let PairRun { round, unconfirmed, .. } = &self.pairs[pair];
            let (round, unconfirmed) = (*round, unconfirmed.clone());
            for worker in unconfirmed {
                self.worker_said(Event::Closed { worker, pair, round });
            }
        }
    }

    /// What keeps the next start from trusting what it finds, in words.
    fn unfinished(&self) -> Option<String> {
        if self.unclean.load(Relaxed) {
            return Some("requests were cut off that may have reached one server only".to_owned());
        }
        // (A delayed one, for which no client waits, may have reached one node of a pair only.)
        if self.flush.is_active() {
            return Some("a flush_all is under way".to_owned());
        }
        let such = |is: &dyn Fn(PairId, &PairRun) -> bool| {
            let such: Vec<PairId> = self.topology.pairs().filter(|pair| is(*pair, &self.pairs[*pair])).collect();
            such.first().map(|first| format!("{} pairs, {} for one", such.len(), self.pair_name(*first)))
        };
        if let Some(pairs) = such(&|_, run| is_changing(run)) {
            return Some(format!("who leads is not recorded yet, of {pairs}"));
        }
        // Of copies that were never compared, and of those that a server has refused or evicted, no
        // record tells: the next start would call the pair mirrored, and say that either server may
        // be restarted. (252 of 300 items were lost so.)
        if let Some(pairs) = such(&|_, run| run.plan.is_uncompared()) {
            return Some(format!("copies were not compared since a crash, of {pairs}"));
        }
        // A comparing goes by the primary's word: where it is the primary that lacks items, they
        // would be deleted on the backup, which alone has them.
        if let Some(pairs) = such(&|pair, _| self.leader_may_lack(pair)) {
            tracing::warn!(%pairs, "the primary evicted items while it was filled, and no record says so: after the next start say resync HOST:PORT with it");
            return None;
        }
        such(&|pair, _| self.pair_facts(pair).are_unequal())
            .map(|pairs| format!("items have one copy, or may, of {pairs}"))
    }
}

fn is_changing(run: &PairRun) -> bool {
    run.pair.gate() != Gate::Open
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::unanswered;
    use crate::ids::{Incarnation, Place};
    use crate::pair::{Fill, FillEvent, Loss, Reason, State};
    use crate::testing::log::Log;

    const PAIR: PairId = PairId(0);
    const UNFINISHED: &str = "stopping with work unfinished";

    async fn stop(cluster: &mut Cluster) {
        let mut inbox = cluster.inbox.take().expect("not running");
        cluster.stop(&mut inbox).await;
    }

    /// One after the other, or for as long as requests may wait for them, servers that hang would
    /// hold up the end for longer than a service manager waits.
    #[tokio::test(start_paused = true)]
    async fn servers_that_hang_hold_up_the_end_once_and_not_for_long() {
        let servers = |flag: &str, first: u16| {
            (first..first + 16).map(|port| format!(" {flag} 127.0.0.1:{port}")).collect::<String>()
        };
        for patience in ["--probe-timeout 1s", "--probe-timeout 20s", "--timeout 1h"] {
            let log = Log::listen();
            let mut cluster = unanswered(&format!("{patience}{}{}", servers("-s", 1), servers("-b", 101)));
            cluster.begin_open(State::Mirrored);
            cluster.nodes.iter_mut().for_each(|node| node.incarnation = Some(Incarnation(1)));
            let begun = Instant::now();
            stop(&mut cluster).await;
            assert!((1..=3).contains(&begun.elapsed().as_secs()), "{patience}: {:?}", begun.elapsed());
            assert_eq!(log.count(&["cannot mark the session closed"]), 32, "{patience}");
        }
    }

    /// A server dies, and the proxy is stopped before the workers have heard of it, or the other
    /// server has been told that it is alone. (One stop in seven was taken for a crash, where a
    /// server had died 15 ms before.)
    #[tokio::test(start_paused = true)]
    async fn a_loss_that_is_being_recorded_is_carried_through_at_the_end() {
        for recorded in [true, false] {
            let log = Log::listen();
            let mut cluster = unanswered("-s 127.0.0.1:1 -b 127.0.0.1:2");
            cluster.begin_open(State::Mirrored);
            cluster.nodes.iter_mut().for_each(|node| node.incarnation = Some(Incarnation(1)));
            cluster.lost(NodeId(0), Reason::Reset, Loss::Suspected, true);
            let run = &cluster.pairs[PAIR];
            assert!(run.pair.gate() == Gate::Closing && !run.unconfirmed.is_empty());
            let (epoch, internal) = (run.pair.epoch(), cluster.internal.clone());
            tokio::spawn(async move {
                tokio::time::sleep(CHANGES_MAX / 2).await;
                // The server's answer.
                let said = Internal::Recorded { pair: PAIR, epoch, result: Ok(()) };
                if recorded {
                    let _ = internal.send(said);
                }
            });
            stop(&mut cluster).await;
            let pair = &cluster.pairs[PAIR].pair;
            assert_eq!(pair.state(), State::Degraded { leader: Place::Backup });
            assert_eq!(pair.gate() == Gate::Open, recorded);
            assert_eq!(log.count(&[UNFINISHED, "who leads is not recorded yet, of 1 pairs"]), usize::from(!recorded));
            // (Its server hangs.)
            assert_eq!(log.count(&["cannot mark the session closed"]), usize::from(recorded));
        }
    }

    /// What these have reached nobody knows: nothing is waited for.
    #[tokio::test(start_paused = true)]
    async fn after_requests_that_were_cut_off_and_over_copies_that_were_not_compared_sessions_stay_open() {
        for (cut_off, why) in [(true, "requests were cut off"), (false, "copies were not compared since a crash")] {
            let log = Log::listen();
            let mut cluster = unanswered("-s 127.0.0.1:1 -b 127.0.0.1:2");
            let compares = FillEvent::Decided { state: State::Mirrored, fill: Some(Fill::Compare), cut_off: None };
            cluster.plan(PAIR, compares);
            cluster.begin_open(State::Mirrored);
            cluster.nodes.iter_mut().for_each(|node| node.incarnation = Some(Incarnation(1)));
            if cut_off {
                cluster.unclean.store(true, Relaxed);
                cluster.plan(PAIR, FillEvent::Compared);
                cluster.lost(NodeId(0), Reason::Reset, Loss::Suspected, true);
            }
            let begun = Instant::now();
            stop(&mut cluster).await;
            assert_eq!((log.count(&[UNFINISHED, why]), begun.elapsed()), (1, Duration::ZERO), "{why}");
        }
    }
    /// What a server refused or evicted the other one alone holds, and no record says so.
    #[tokio::test(start_paused = true)]
    async fn where_items_have_one_copy_or_may_sessions_stay_open() {
        for (keys, more, two_nodes, by_leader) in [
            (0, false, true, false),
            (1, false, true, false),
            (0, true, true, false),
            (0, true, false, false),
            (0, true, true, true),
        ] {
            let log = Log::listen();
            let mut cluster = unanswered(&format!("-s 127.0.0.1:1{}", if two_nodes { " -b 127.0.0.1:2" } else { "" }));
            cluster.begin_open(State::Mirrored);
            cluster.nodes.iter_mut().for_each(|node| node.incarnation = Some(Incarnation(1)));
            let lone = &cluster.pairs[PAIR].lone;
            (0..keys).for_each(|_| lone.insert(b"key"));
            if more {
                lone.add_more();
            }
            if by_leader {
                cluster.evicted_during_fill(NodeId(0), 1);
            }
            stop(&mut cluster).await;
            let unequal = two_nodes && (keys > 0 || more) && !by_leader;
            assert_eq!(log.count(&["the primary evicted items while it was filled"]), usize::from(by_leader));
            assert_eq!(
                log.count(&[UNFINISHED, "items have one copy"]),
                usize::from(unequal),
                "{keys} {more} {two_nodes}"
            );
        }
    }
}
