//! This proxy's turn over the servers, as one of a fleet: its marks on them, and the former active
//! proxy, which may not be gone.
//!
//! A proxy whose lease is over sends nothing more, but for what it was about to send when it was
//! paused: that may arrive at any time until it wakes, or is no more. A write of a client that was
//! never told of it does no harm where it lands late. But a purge, or a copy of a refill, that
//! lands on a node which leads by now takes an acknowledged item away, or brings a deleted one
//! back. So while the former active proxy may be there, nothing is filled, and no lead moves
//! without a fault; nothing is called mirrored.
//!
//! It is gone from a server when the server has closed each connection that it had when this turn
//! began: one made later reads the marks before anything else is sent on it, and its proxy's lease
//! was over before that was answered. Or when the server was started since.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::NodeControl;
use crate::backend::marker::FleetMark;
use crate::backend::sight::Sight;
use crate::ids::{Epoch, NodeId, PairId, Term};
use crate::pair::{self, FillEvent};
use crate::rules::{Rule, holds};

use super::{Cluster, Internal};

/// How often servers are asked whether its connections are closed.
const LOOK: Duration = Duration::from_millis(200);

/// Seconds. A server's clock has whole seconds, so its start may seem a little later than before.
const CLOCK: u64 = 2;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    pub mark: FleetMark,
    /// No higher term was given before, as far as the others know.
    pub term: Term,
    /// The former active proxy, in words, if it may still be at work.
    pub former: Option<String>,
    /// After this long it counts as gone.
    pub grace: Duration,
}

/// What is known of the former active proxy at one server.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Former {
    /// There was none, or it is gone.
    #[default]
    Gone,
    /// What it was about to send may still arrive.
    There,
}

/// Why the proxy does not start.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    #[error(
        "the servers belong to the fleet {name} (server {server} says so; its active proxy is, or was, {address}): \
             give --coordinate as its proxies have it, or, when all of them are stopped, --leave-fleet"
    )]
    NoFleet { server: String, name: String, address: String },
    #[error(
        "the servers belong to the fleet {name} (server {server} says so; its active proxy is, or was, {address}), \
             and this proxy to {own}: give the same --coordinate to all"
    )]
    OtherFleet { server: String, name: String, address: String, own: String },
    #[error(
        "another proxy works on server {server}, with other servers, or the same in another order or with other \
             weights: it would take all that they hold for lost; stop it first, or give this one servers of its own"
    )]
    OtherList { server: String },
}

impl Cluster {
    /// At the start: whether these servers belong to this fleet, or to none.
    pub(super) fn judge_fleet(&self) -> Result<(), Refused> {
        for (node, run) in self.topology.nodes().zip(&self.nodes) {
            let Some(found) = run.view.as_ref().and_then(|view| view.fleet.clone()) else { continue };
            self.may_be_marked(node, &found)?;
            if let Some(turn) = &self.fleet.turn
                && turn.mark.is_ended_by(&found)
            {
                self.fleet.losses.marked_by_other(&found);
            }
        }
        Ok(())
    }

    fn may_be_marked(&self, node: NodeId, found: &FleetMark) -> Result<(), Refused> {
        let (server, FleetMark { name, address, .. }) = (self.topology.addr(node).to_string(), found.clone());
        match &self.fleet.turn {
            None => Err(Refused::NoFleet { server, name, address }),
            Some(turn) if turn.mark.name != name => {
                Err(Refused::OtherFleet { server, name, address, own: turn.mark.name.clone() })
            }
            Some(_) => Ok(()),
        }
    }

    /// Before the start: the same of those servers that answer within `patience`. Nothing else
    /// comes of it.
    pub async fn survey(&mut self, patience: Duration) -> Result<(), Refused> {
        // A timeout is fine: servers without an address are left out.
        let _ = tokio::time::timeout(patience, self.look_up_all()).await;
        let looks = self.topology.nodes().map(|node| {
            let look = tokio::time::timeout(patience, self.controls[node].view(0));
            async move { Some((node, look.await.ok()?.ok()?.fleet?)) }
        });
        let found = futures::future::join_all(looks).await;
        found.into_iter().flatten().try_for_each(|(node, mark)| self.may_be_marked(node, &mark))
    }

    /// At every answer to a probe, whatever else it shows: whoever took over may have flushed the
    /// server, and this proxy may have lost it for that. Returns whether this proxy is over.
    pub(super) fn judge_later_mark(&self, found: Option<&FleetMark>) -> bool {
        let later = found.filter(|found| self.fleet.turn.as_ref().is_some_and(|turn| turn.mark.is_ended_by(found)));
        later.inspect(|later| self.fleet.losses.marked_by_other(later)).is_some()
    }

    /// At every good probe of a node in use.
    pub(super) fn judge_fleet_mark(&mut self, node: NodeId, found: Option<FleetMark>) {
        let (Some(turn), Some(found)) = (&self.fleet.turn, found) else { return };
        if found == turn.mark || self.judge_later_mark(Some(&found)) {
            return;
        }
        tracing::warn!(node = %self.topology.addr(node), found = %found, "a former active proxy has marked the server late: it is marked again");
        if let Some(incarnation) = self.nodes[node].incarnation {
            self.tell_node(node, |control| async move {
                // If this fails, the next probe finds the old one again.
                let _ = control.fleet_again(incarnation).await;
            });
        }
    }

    /// A later record was found on a server: by a later generation this proxy is replaced.
    pub(super) fn judge_epoch(&self, found: Epoch) {
        let Some(turn) = &self.fleet.turn else { return };
        let next = turn.mark.generation.next();
        if found >= Epoch::first_of(next) {
            self.fleet.losses.marked_by_other(&FleetMark { generation: next, ..turn.mark.clone() });
        }
    }

    /// Epochs and terms of this turn are above all of earlier ones.
    pub(super) fn begin_turn(&mut self) {
        let Some(turn) = &self.fleet.turn else { return };
        for run in &mut self.pairs {
            run.pair.begin_from(Epoch::first_of(turn.mark.generation));
        }
    }

    /// Before workers connect: from now on their connections are among those that a server has.
    pub(super) async fn look_for_former(&mut self) {
        let Some(former) = self.fleet.turn.as_ref().and_then(|turn| turn.former.clone()) else { return };
        if !holds(Rule::FormerIsWaitedFor) {
            return;
        }
        tracing::warn!(former, "the former active proxy is not known to be gone: nothing is filled before it is");
        for node in self.topology.nodes() {
            self.nodes[node].former = Former::There;
        }
        self.fleet.losses.awaits_former(true);
        // (One that has not answered the start would be waited for as long as requests may take.)
        let looks = self.nodes.iter().zip(&self.controls).map(|(run, control)| async move {
            if run.view.is_some() { control.connections().await.ok() } else { None }
        });
        let found = futures::future::join_all(looks).await;
        for (node, found) in self.topology.nodes().zip(found) {
            let mut there = There::default();
            if let Some(sight) = found {
                there.look(&sight);
            }
            let control = self.controls[node].clone();
            let over = self.fleet.former_looks.clone();
            self.spawn(async move {
                tokio::select! {
                    () = over.cancelled() => {}
                    () = awaited(control, there) => {}
                }
                Internal::FormerGone { node: Some(node), how: "its connections are closed" }
            });
        }
        let grace = self.fleet.turn.as_ref().map_or(Duration::ZERO, |turn| turn.grace);
        self.after(grace, Internal::FormerGone { node: None, how: "--former-grace is over" });
        for pair in self.topology.pairs() {
            self.apply(pair, pair::Event::Foreign(true));
        }
    }

    /// At one server, or at all.
    pub(super) fn former_gone(&mut self, node: Option<NodeId>, how: &str) {
        // When this proxy ends, the waiting ends with it. That is no proof that the former one is
        // gone, and the record must not say so.
        if self.shutdown.is_cancelled() || !self.awaits_former() {
            return;
        }
        for gone in self.topology.nodes().filter(|n| node.is_none_or(|node| node == *n)) {
            self.nodes[gone].former = Former::Gone;
        }
        for pair in self.topology.pairs() {
            let run = &self.pairs[pair];
            if !run.pair.is_foreign() || self.stays_foreign(pair) {
                continue;
            }
            // What the former one wrote late is on no list of what a node has missed.
            let uncompared = run.plan.is_uncompared();
            self.plan(pair, FillEvent::FormerGone(run.pair.state()));
            match uncompared {
                true => self.apply(pair, pair::Event::FormerGone),
                false => self.end_foreign(pair),
            }
        }
        if !self.awaits_former() {
            tracing::info!(how, "the former active proxy is gone");
            self.fleet.losses.awaits_former(false);
            self.fleet.former_looks.cancel();
        }
        for node in self.topology.nodes() {
            self.changed(node);
        }
    }

    /// Whether the former active proxy may still be at work.
    pub(super) fn awaits_former(&self) -> bool {
        self.nodes.iter().any(|run| run.former == Former::There)
    }

    /// Whether the former active proxy is awaited on a pair's nodes.
    pub(super) fn awaits_former_of(&self, pair: PairId) -> bool {
        let (primary, backup) = self.topology.nodes_of(pair);
        std::iter::once(primary).chain(backup).any(|node| self.nodes[node].former == Former::There)
    }
}

/// Completes when the server has closed all that it had when it was first asked, or is another
/// process than then.
async fn awaited(control: Arc<NodeControl>, mut there: There) {
    // (Of a proxy that was killed all is closed by now. A server that fails in a moment would say
    // nothing of that before it is back, and its pairs would be dark.)
    while !there.is_gone() {
        tokio::time::sleep(if there.first.is_none() { LOOK / 10 } else { LOOK }).await;
        if let Ok(sight) = control.connections().await {
            there.look(&sight);
        }
    }
}

/// What of the first look at a server is still there.
#[derive(Default)]
struct There {
    /// Its connections, and when its process started.
    first: Option<(BTreeSet<String>, u64)>,
}

impl There {
    /// Whether all of it is gone.
    fn look(&mut self, sight: &Sight) -> bool {
        match &mut self.first {
            // Both times by one clock: this proxy's may show any other time.
            Some((there, started)) if sight.started > *started + CLOCK => there.clear(),
            // The connection that asks is among `sight.all`; the first look has left it out.
            Some((there, _)) => there.retain(|connection| sight.all.contains(connection)),
            // This may include connections of this proxy, if they came first; the wait is longer
            // then.
            None => self.first = sight.others().map(|others| (others, sight.started)),
        }
        self.is_gone()
    }

    fn is_gone(&self) -> bool {
        self.first.as_ref().is_some_and(|(there, _)| there.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::future::{BoxFuture, FutureExt};
    use tokio::time::Instant;

    use super::*;
    use crate::backend::{NodeView, Probe};
    use crate::cluster::alone::{agreeing, alone};
    use crate::cluster::{Losses, Lost};
    use crate::ids::{Generation, Incarnation, Place};
    use crate::pair::State;

    const SERVERS: &str = "-s 127.0.0.1:1 -b 127.0.0.1:2";
    const ONE: NodeId = NodeId(0);

    fn mark(name: &str, generation: u64, address: &str) -> FleetMark {
        let (name, address) = (name.to_owned(), address.to_owned());
        FleetMark { name, generation: Generation(generation), address, lease: Duration::ZERO }
    }

    /// Another mark than this proxy's own, and whether its proxy is told of it.
    fn marks() -> [(FleetMark, bool); 5] {
        [
            (mark("a", 7, "here:1"), false),
            (mark("a", 6, "there:1"), false),
            (mark("a", 8, "there:1"), true),
            // Of a register that was restored, or of two of one name.
            (mark("a", 7, "there:1"), true),
            (mark("a", 9, "here:1"), true),
        ]
    }

    /// What those who keep the lease are told, of generation 7 of the fleet `a`.
    #[derive(Default)]
    struct Told {
        marks: Mutex<Vec<FleetMark>>,
        awaits: Mutex<Vec<bool>>,
    }

    impl Losses for Told {
        fn listed(&self) -> Vec<(PairId, Lost, Epoch)> {
            Vec::new()
        }

        fn commit(&self, _: PairId, _: Epoch, _: Lost) -> BoxFuture<'static, ()> {
            async {}.boxed()
        }

        fn turn(&self) -> Option<Turn> {
            let former = Some("another one".to_owned());
            Some(Turn { mark: mark("a", 7, "here:1"), term: Term(0), former, grace: Duration::from_secs(600) })
        }

        fn marked_by_other(&self, mark: &FleetMark) {
            self.marks.lock().unwrap().push(mark.clone());
        }

        fn awaits_former(&self, awaits: bool) {
            self.awaits.lock().unwrap().push(awaits);
        }
    }

    fn cluster() -> (Cluster, Arc<Told>) {
        let told = Arc::new(Told::default());
        (agreeing(SERVERS, told.clone()), told)
    }

    fn found(cluster: &mut Cluster, mark: &FleetMark) {
        cluster.nodes[NodeId(1)].view = Some(NodeView { fleet: Some(mark.clone()), ..NodeView::default() });
    }

    #[tokio::test]
    async fn servers_of_another_fleet_are_refused_and_a_later_generations_end_the_proxy() {
        for (mark, is_told) in marks() {
            let (mut cluster, told) = cluster();
            found(&mut cluster, &mark);
            assert_eq!(cluster.judge_fleet(), Ok(()), "{mark}");
            assert_eq!(told.marks.lock().unwrap().contains(&mark), is_told, "{mark}");
        }
        let (mut of_a, _) = cluster();
        found(&mut of_a, &mark("b", 1, "there:1"));
        let why = of_a.judge_fleet().unwrap_err().to_string();
        assert!(["fleet b", "127.0.0.1:2", "there:1", "to a"].iter().all(|word| why.contains(word)), "{why}");
        let mut without = alone(SERVERS);
        assert_eq!(without.judge_fleet(), Ok(()));
        found(&mut without, &mark("a", 7, "here:1"));
        let why = without.judge_fleet().unwrap_err().to_string();
        assert!(why.contains("fleet a") && why.contains("--leave-fleet"), "{why}");
    }

    #[tokio::test]
    async fn a_probe_that_finds_a_later_generations_mark_or_record_ends_the_proxy() {
        for (mark, is_told) in marks().into_iter().chain([(mark("b", 1, "there:1"), true)]) {
            let (mut cluster, told) = cluster();
            cluster.judge_fleet_mark(ONE, Some(mark.clone()));
            assert_eq!(told.marks.lock().unwrap().contains(&mark), is_told, "{mark}");
        }
        let (cluster, told) = cluster();
        let next = Epoch::first_of(Generation(8));
        cluster.judge_epoch(Epoch(next.0 - 1));
        assert!(told.marks.lock().unwrap().is_empty());
        cluster.judge_epoch(next);
        assert_eq!(told.marks.lock().unwrap().len(), 1);
    }

    /// The next proxy has flushed the server, say, and this one has lost it for that.
    #[tokio::test]
    async fn a_later_mark_counts_in_each_answer_to_a_probe() {
        for (is_up, incarnation, missing) in [
            (true, Some(Incarnation(2)), false),
            (true, Some(Incarnation(1)), true),
            (true, None, true),
            (false, Some(Incarnation(1)), false),
        ] {
            let (mut cluster, told) = cluster();
            cluster.begin_open(State::Degraded { leader: Place::Primary });
            let now = cluster.now();
            cluster.nodes[ONE].incarnation = Some(Incarnation(1));
            if !is_up {
                cluster.nodes[ONE].health.lost(now);
            }
            let later = mark("a", 8, "there:1");
            let found = Probe { incarnation, missing, fleet: Some(later.clone()), ..Probe::default() };
            cluster.probed(ONE, Instant::now(), Ok(found));
            assert!(told.marks.lock().unwrap().contains(&later), "{is_up} {incarnation:?} {missing}");
        }
    }

    #[tokio::test]
    async fn epochs_of_a_turn_begin_above_all_of_earlier_ones() {
        let (mut cluster, _) = cluster();
        cluster.begin_turn();
        assert!(cluster.pairs.iter().all(|run| run.pair.epoch() >= Epoch::first_of(Generation(7))));
    }

    #[tokio::test]
    async fn the_former_is_gone_when_it_is_gone_from_all_servers_and_not_at_this_proxys_end() {
        for stops in [false, true] {
            let (mut cluster, told) = cluster();
            cluster.begin_open(State::Degraded { leader: Place::Primary });
            for node in &mut cluster.nodes {
                node.former = Former::There;
            }
            let pair = PairId(0);
            cluster.apply(pair, pair::Event::Foreign(true));
            cluster.former_gone(Some(ONE), "of a test");
            assert!(cluster.awaits_former() && cluster.pairs[PairId(0)].pair.is_foreign());
            if stops {
                cluster.shutdown.cancel();
            }
            cluster.former_gone(None, "of a test");
            // When this proxy stops, waiting ends without proof.
            assert_eq!(cluster.awaits_former(), stops);
            assert_eq!(told.awaits.lock().unwrap().contains(&false), !stops);
            assert_eq!(cluster.pairs[PairId(0)].pair.is_foreign(), stops);
        }
    }

    /// Its host is lost together with this server, say: all others would wait for that, too.
    #[tokio::test]
    async fn a_server_that_has_not_answered_the_start_is_not_waited_for() {
        let (mut cluster, _) = cluster();
        assert!(cluster.nodes.iter().all(|run| run.view.is_none()));
        assert!(cluster.look_for_former().now_or_never().is_some(), "it goes on at once");
        assert!(cluster.awaits_former());
    }

    /// Nobody reaches these servers: it is by the end of the grace, or the operator's word.
    #[tokio::test(start_paused = true)]
    async fn once_the_former_is_gone_no_server_is_asked_for_it() {
        let (mut cluster, _) = cluster();
        cluster.look_for_former().await;
        let mut inbox = cluster.inbox.take().unwrap();
        cluster.former_gone(None, "of a test");
        for _ in &cluster.nodes {
            let over =
                async { while !matches!(inbox.recv().await, Some(Internal::FormerGone { node: Some(_), .. })) {} };
            tokio::time::timeout(Duration::from_secs(60), over).await.expect("who asks this server ends");
        }
        assert!(!cluster.awaits_former());
    }

    fn sight(started: u64, connections: &[(u32, &str)]) -> Sight {
        let said = [("time", 100 + started), ("uptime", 100)].map(|(name, value)| (name.to_owned(), value.to_string()));
        let conns = connections.iter().flat_map(|(number, state)| {
            [
                (format!("{number}:addr"), format!("tcp:10.0.0.1:{number}")),
                (format!("{number}:state"), (*state).to_owned()),
            ]
        });
        Sight::new(&said, conns.collect())
    }

    #[test]
    fn a_connection_that_executes_something_is_there_all_the_same() {
        const OWN: (u32, &str) = (30, "conn_parse_cmd");
        let mut there = There::default();
        // Which of the two asks?
        assert!(!there.look(&sight(5, &[(26, "conn_listening"), OWN, (31, "conn_parse_cmd")])));
        assert_eq!(there.first, None);
        assert!(!there.look(&sight(5, &[(26, "conn_listening"), OWN, (31, "conn_read")])));
        assert!(!there.look(&sight(5, &[(26, "conn_listening"), OWN, (31, "conn_parse_cmd")])));
        assert!(!there.look(&sight(5, &[(26, "conn_listening"), OWN, (31, "conn_read"), (32, "conn_read")])));
        assert!(there.look(&sight(5, &[(26, "conn_listening"), OWN, (32, "conn_read")])));
    }

    /// A server that fails in the next moment would say nothing of it before it is back.
    #[tokio::test(start_paused = true)]
    async fn whoever_has_no_connection_at_the_first_look_is_not_waited_for() {
        let cluster = alone(SERVERS);
        let none = There { first: Some((BTreeSet::new(), 5)) };
        let waits = awaited(cluster.controls[ONE].clone(), none);
        assert!(waits.now_or_never().is_some(), "at once");
    }

    #[test]
    fn a_server_that_was_started_since_has_nothing_of_the_former() {
        let connections = [(30, "conn_parse_cmd"), (31, "conn_read")];
        let mut there = There::default();
        // However its clock stands.
        for (started, gone) in [(5_000_000, false), (5_000_000, false), (5_000_003, true)] {
            assert_eq!(there.look(&sight(started, &connections)), gone);
        }
    }
}
