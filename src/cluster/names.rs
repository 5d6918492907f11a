//! Host names: their addresses, and what happens when one changes. The only place where names are
//! resolved.
//!
//! A node's present address stays its address as long as its name lists it, whatever else is listed
//! and in whatever order, and as long as look-ups fail or come back empty. If two look-ups in a row
//! leave it out and agree on another address, and a node with another memory answers there, that is
//! a change of server: a loss, then a return. The proxy leaves a last full copy only when it is
//! lost, or mirrored again: its items are copied first.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::ambient;
use crate::backend::{Addresses, NodeError, NodeView, Resolve};
use crate::ids::{AddressNumber, Incarnation, NodeId, PairId, WorkerId};
use crate::lease;
use crate::pair::{Loss, Reason, State};
use crate::proxy::Command;
use crate::rules::{Rule, holds};

use super::probes::JITTER;
use super::startup::{FIRST_LOOK_PAUSE, FIRST_LOOKS};
use super::{Cluster, Internal};

/// The longest time between two look-ups of a lost node's name, whatever the probe interval.
const LOST_LOOK_UP_MAX: Duration = Duration::from_millis(500);

/// Addresses of one name that are taken into account.
const MAX_ADDRESSES: usize = 16;

/// How nodes are found.
#[derive(Clone)]
pub struct Names {
    /// Written by the control plane, read at every dial.
    pub addresses: Arc<Addresses>,
    /// Asked by the control plane alone.
    pub resolver: Arc<dyn Resolve>,
}

/// What is known of one node's name. Pure.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Name {
    /// What the last good look-up listed: IPv4 before IPv6, then by number, whatever order the
    /// answer had.
    listed: Vec<SocketAddr>,
    /// The node was in use at its present address.
    settled: bool,
    /// The last look-up left the present address out, and this is the first that it listed.
    elsewhere: Option<SocketAddr>,
    /// It is asked what memory is there.
    peeking: bool,
    /// Since when it shows the memory of the node, which is lost at its present address.
    same_since: Option<Instant>,
    /// What was last said about it in the log.
    said: Option<String>,
}

impl Name {
    /// A look-up's answer. Returns where the node is to be reached from now on, if that is a
    /// change.
    fn looked_up(&mut self, present: Option<SocketAddr>, mut found: Vec<SocketAddr>) -> Option<SocketAddr> {
        found.sort_unstable();
        found.dedup();
        found.truncate(MAX_ADDRESSES);
        let first = *found.first()?;
        self.listed = found;
        match present {
            Some(present) if self.listed.contains(&present) => {
                self.elsewhere = None;
                None
            }
            Some(_) if self.settled => {
                // A name that alternates between its addresses never gives the same one twice in
                // a row: the node stays where it is.
                let agreed = self.elsewhere.filter(|to| self.listed.contains(to));
                self.elsewhere = agreed.or(Some(first));
                agreed
            }
            _ => Some(first),
        }
    }

    /// The node could not be reached. Where it never was in use, and its name has another address,
    /// that one is next.
    fn after(&self, present: Option<SocketAddr>) -> Option<SocketAddr> {
        let at = self.listed.iter().position(|a| Some(*a) == present)?;
        let next = self.listed[(at + 1) % self.listed.len()];
        (!self.settled && Some(next) != present).then_some(next)
    }

    /// Whether `what` was not said yet.
    fn is_news(&mut self, what: &str) -> bool {
        let news = self.said.as_deref() != Some(what);
        if news {
            self.said = Some(what.to_owned());
        }
        news
    }
}

/// Looks at a node that nothing is known of, at each of its addresses until one answers.
pub(super) async fn look_for<F>(
    names: &Names,
    name: &Name,
    node: NodeId,
    patience: Duration,
    look: impl Fn() -> F,
) -> Result<NodeView, NodeError>
where
    F: Future<Output = Result<NodeView, NodeError>>,
{
    let begun = Instant::now();
    let mut looked = look().await;
    for _ in 1..name.listed.len() {
        let present = names.addresses.get(node).ok().map(|(at, _)| at);
        let Some(next) = name.after(present).filter(|_| looked.is_err() && begun.elapsed() < patience) else { break };
        names.addresses.set(node, next);
        looked = look().await;
    }
    looked
}

impl Cluster {
    /// The nodes of each host name; literal addresses need no look-up.
    fn hosts(&self) -> BTreeMap<String, Vec<NodeId>> {
        let mut hosts: BTreeMap<String, Vec<NodeId>> = BTreeMap::new();
        for node in self.topology.nodes() {
            let host = &self.topology.addr(node).host;
            if host.parse::<IpAddr>().is_err() {
                hosts.entry(host.clone()).or_default().push(node);
            }
        }
        hosts
    }

    pub(super) fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.names.addresses.get(node).ok().map(|(at, _)| at)
    }

    /// Counts the node's addresses, each of which counts as a server of its own.
    pub(super) fn address_number(&self, node: NodeId) -> AddressNumber {
        self.names.addresses.number(node)
    }

    /// The first look-up of every name, before any node is looked at. None is waited for longer
    /// than the timeout.
    pub(super) async fn look_up_all(&mut self) {
        let patience = self.settings.timeout.max(self.settings.probe_timeout);
        let hosts = self.hosts();
        let looks = hosts.keys().map(|host| tokio::time::timeout(patience, first_look_up(&*self.names.resolver, host)));
        let found = futures::future::join_all(looks).await;
        for ((_, nodes), found) in hosts.into_iter().zip(found) {
            let found = found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            self.looked_up(&nodes, found);
        }
    }

    /// Goes on looking names up, each host's for itself: one look-up at a time, however long the
    /// system takes.
    pub(super) fn spawn_resolvers(&mut self) {
        for (host, nodes) in self.hosts() {
            let hint = Arc::new(tokio::sync::Notify::new());
            for node in &nodes {
                self.nodes[*node].look_up = hint.clone();
            }
            let away: Vec<_> = nodes.iter().map(|node| self.nodes[*node].away.clone()).collect();
            let (resolver, internal) = (self.names.resolver.clone(), self.internal.clone());
            let (times, shutdown) = (self.probe_times.subscribe(), self.shutdown.clone());
            lease::spawn(async move {
                loop {
                    let interval = times.borrow().interval;
                    let lost = away.iter().any(|away| away.load(Ordering::Relaxed));
                    let pause = if lost { interval.min(LOST_LOOK_UP_MAX) } else { interval };
                    tokio::select! {
                        biased;
                        () = shutdown.cancelled() => return,
                        () = hint.notified() => {}
                        () = tokio::time::sleep(pause.mul_f64(ambient::random_in(JITTER))) => {}
                    }
                    let found = resolver.resolve(&host).await;
                    if internal.send(Internal::LookedUp { nodes: nodes.clone(), found }).is_err() {
                        return;
                    }
                }
            });
        }
    }

    pub(super) fn looked_up(&mut self, nodes: &[NodeId], found: std::io::Result<Vec<SocketAddr>>) {
        for &node in nodes {
            let name = self.topology.addr(node).to_string();
            let found = match &found {
                Ok(found) => found.iter().map(|at| with_port(*at, self.topology.addr(node).port)).collect(),
                Err(error) => {
                    self.not_found(node, &format!("its name does not resolve: {error}"));
                    continue;
                }
            };
            let free = self.without_others(node, found);
            if free.is_empty() {
                self.not_found(node, "its name resolves to no address that is its own");
                continue;
            }
            let present = self.address(node);
            let run = &mut self.nodes[node];
            match run.name.looked_up(present, free) {
                Some(to) => self.lead_to(node, to),
                // An address may be back, or on its way.
                None if run.name.elsewhere.is_none() && run.name.said.take().is_some() => {
                    tracing::info!(node = %name, address = %present.map_or_else(String::new, |at| at.to_string()), "its name leads to its address");
                }
                None => {}
            }
        }
    }

    /// No answer says that the server is gone: the last address stays.
    fn not_found(&mut self, node: NodeId, why: &str) {
        self.names.addresses.unresolved(node, why.to_owned());
        let address = self.address(node).map_or_else(|| "none".to_owned(), |at| at.to_string());
        if self.nodes[node].name.is_news(why) {
            tracing::warn!(node = %self.topology.addr(node), %address, "{why}; the last address stays");
        }
    }

    /// Two nodes at one address would be one memory that counts as two copies.
    fn without_others(&mut self, node: NodeId, mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
        if !self.marked() {
            return found;
        }
        for other in self.topology.nodes().filter(|other| *other != node) {
            let Some(taken) = self.address(other).filter(|at| found.contains(at)) else { continue };
            found.retain(|at| *at != taken);
            let what = format!(
                "its name leads to {taken}, where {} is: that address does not count",
                self.topology.addr(other)
            );
            if self.nodes[node].name.is_news(&what) {
                tracing::error!(node = %self.topology.addr(node), "{what}");
            }
        }
        found
    }

    /// The name leads to another address.
    fn lead_to(&mut self, node: NodeId, to: SocketAddr) {
        let Some(from) = self.address(node) else {
            tracing::info!(node = %self.topology.addr(node), address = %to, "its name resolves");
            self.names.addresses.set(node, to);
            self.nodes[node].name.said = None;
            return self.nodes[node].hint.notify_one();
        };
        let run = &mut self.nodes[node];
        if !run.name.settled {
            return self.move_to(node, to);
        }
        if std::mem::replace(&mut run.name.peeking, true) {
            return;
        }
        tracing::debug!(node = %self.topology.addr(node), %from, %to, "its name leads elsewhere");
        self.ask_node(node, move |control| async move { Internal::Peeked { node, to, found: control.peek(to).await } });
    }

    /// What memory there is at the address that a name leads to.
    pub(super) fn peeked(&mut self, node: NodeId, to: SocketAddr, found: Result<Option<Incarnation>, NodeError>) {
        self.nodes[node].name.peeking = false;
        let run = &self.nodes[node];
        if run.name.elsewhere.is_none() || !run.name.listed.contains(&to) {
            return;
        }
        let from = self.address(node).map_or_else(|| "none".to_owned(), |at| at.to_string());
        let found_there = found.as_ref().ok().copied().flatten();
        let same = run.incarnation.zip(found_there).is_some_and(|(known, there)| self.memories.is(node, known, there));
        if !same {
            self.nodes[node].name.same_since = None;
        }
        let stays = match found {
            Err(error) => Some(format!("its name leads to {to} now, which {error}; it stays at {from} until somebody answers there")),
            Ok(_) if same => self.stays_with_memory(node).then(|| format!("its name leads to {to} now, where the same memory is; it stays at {from} as long as it answers there")),
            Ok(_) => self.leads_alone(node).then(|| format!("its name leads to {to} now; it stays at {from} until what it alone holds is copied, or it is lost")),
        };
        match stays {
            Some(what) if self.nodes[node].name.is_news(&what) => {
                tracing::warn!(node = %self.topology.addr(node), "{what}");
            }
            Some(_) => {}
            None => self.move_to(node, to),
        }
    }

    /// The same memory is to be had by another way. Commands that were given up unanswered may take
    /// effect on it, so what is lost is drained first. An old way on which nothing comes any more
    /// is waited for as long as a leader, while the memory answers by the new one.
    fn stays_with_memory(&mut self, node: NodeId) -> bool {
        let patience = self.settings.leader_timeout;
        let run = &mut self.nodes[node];
        if run.health.is_up() {
            run.name.same_since = None;
            return true;
        }
        let since = *run.name.same_since.get_or_insert_with(Instant::now);
        !run.is_drained() && since.elapsed() < patience
    }

    /// Whether some pair has its only full copy there.
    fn leads_alone(&self, node: NodeId) -> bool {
        let place = self.topology.place(node);
        let alone = |state: State| matches!(state, State::Degraded { leader } | State::Recovering { leader } if leader == place);
        self.marked() && self.topology.pairs_of(node).any(|pair: PairId| alone(self.pairs[pair].pair.state()))
    }

    /// Another server takes the node's place. What was sent to the old one counts for nothing, and
    /// its connections are given up.
    fn move_to(&mut self, node: NodeId, to: SocketAddr) {
        let from = self.address(node).map_or_else(|| "none".to_owned(), |at| at.to_string());
        if self.nodes[node].name.settled {
            tracing::warn!(node = %self.topology.addr(node), %from, %to, "its name leads to another address: a change of server");
            self.lost(node, Reason::Moved, Loss::Suspected, true);
        }
        self.names.addresses.set(node, to);
        self.resyncs.shared.crawls.moved(node);
        let (flushing, address) = (self.flush.is_sent(), self.address_number(node));
        let run = &mut self.nodes[node];
        run.reason = Reason::Moved;
        run.name = Name { listed: std::mem::take(&mut run.name.listed), ..Name::default() };
        // Should the same process be there, what is given up unanswered may still take effect.
        let unanswered = run.drains > 0 || !run.undrained.is_empty() || run.refills.job.is_some() || flushing;
        run.abandoned |= unanswered && holds(Rule::AbandonedAtMove);
        run.drains = 0;
        run.refused_since = None;
        run.silent_since = None;
        if let Some(job) = &run.refills.job {
            job.yield_to_others();
        }
        // Told after the address is published (see `at_present_address`).
        run.leaving = WorkerId::all(self.workers.len()).collect();
        for worker in &self.workers {
            let _ = worker.send(Command::Moved { node, address });
        }
        run.hint.notify_one();
        self.changed(node);
    }

    /// A worker has no connection to the node's addresses before this one any more.
    pub(super) fn left(&mut self, worker: WorkerId, node: NodeId, address: AddressNumber, owing: bool) {
        let last = address == self.address_number(node);
        let run = &mut self.nodes[node];
        run.abandoned |= owing && holds(Rule::AbandonedAtMove);
        // If the node has moved again since, the confirmation of that move is still to come.
        if last {
            run.leaving.remove(&worker);
        }
        self.changed(node);
    }

    /// A node that never was in use could not be reached: its name may have another address.
    pub(super) fn try_next_address(&mut self, node: NodeId) {
        if let Some(next) = self.nodes[node].name.after(self.address(node)) {
            self.names.addresses.set(node, next);
        }
    }

    /// It is in use there.
    pub(super) fn settle_address(&mut self, node: NodeId) {
        self.nodes[node].name.settled = true;
    }

    /// Where the name leads, if that is not where the node is.
    pub(super) fn leads_elsewhere(&self, node: NodeId) -> Option<SocketAddr> {
        self.nodes[node].name.elsewhere
    }
}

/// One answer that fails is no reason to do without a server at the start.
async fn first_look_up(resolver: &dyn Resolve, host: &str) -> std::io::Result<Vec<SocketAddr>> {
    let mut found = resolver.resolve(host).await;
    for _ in 1..FIRST_LOOKS {
        if found.as_ref().is_ok_and(|found| !found.is_empty()) {
            break;
        }
        tokio::time::sleep(FIRST_LOOK_PAUSE).await;
        found = resolver.resolve(host).await;
    }
    found
}

fn with_port(mut at: SocketAddr, port: u16) -> SocketAddr {
    at.set_port(port);
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::alone;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn all(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| at(text)).collect()
    }

    /// Looks up again and again, and follows; the addresses that the node had.
    fn follow(name: &mut Name, mut present: Option<SocketAddr>, answers: &[&[&str]]) -> Vec<String> {
        let show = |at: Option<SocketAddr>| at.map_or_else(|| "none".to_owned(), |at| at.to_string());
        let mut seen = Vec::new();
        for answer in answers {
            if let Some(to) = name.looked_up(present, all(answer)) {
                (present, name.elsewhere) = (Some(to), None);
            }
            seen.push(show(present));
        }
        seen
    }

    /// Counts what it is asked, and finds nothing.
    #[derive(Default)]
    struct Asked(tokio::sync::Notify);

    impl Resolve for Asked {
        fn resolve(&self, _: &str) -> futures::future::BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> {
            self.0.notify_one();
            Box::pin(async { Ok(vec![]) })
        }
    }

    /// The pause that has begun was drawn from the old settings.
    #[tokio::test(start_paused = true)]
    async fn a_shorter_interval_counts_at_once_for_names_too() {
        let mut cluster = alone("-s cache1:1 -b 127.0.0.1:2 --threads 1 --probe-interval 1h");
        let asked = Arc::new(Asked::default());
        cluster.names.resolver = asked.clone();
        cluster.spawn_resolvers();
        tokio::task::yield_now().await;
        let second = Duration::from_secs(1);
        cluster.take_settings(&crate::config::Settings { probe_interval: second, ..cluster.settings.clone() });
        for _ in 0..3 {
            tokio::time::timeout(5 * second, asked.0.notified()).await.expect("it is looked up");
        }
    }

    fn settled() -> Name {
        Name { settled: true, ..Name::default() }
    }

    const A: &str = "10.0.0.1:1";
    const B: &str = "10.0.0.2:1";
    const C: &str = "10.0.0.3:1";
    const V6: &str = "[fd00::1]:1";

    #[test]
    fn the_first_address_is_the_same_in_whatever_order_they_come() {
        assert_eq!(follow(&mut Name::default(), None, &[&[V6, C, A, B]]), [A]);
        assert_eq!(follow(&mut Name::default(), None, &[&[B, V6, A, C]]), [A]);
        assert_eq!(follow(&mut Name::default(), None, &[&[V6]]), [V6]);
    }

    #[test]
    fn a_present_address_that_is_still_listed_stays() {
        let answers: &[&[&str]] = &[&[A, B], &[B, A], &[V6, B, A], &[B], &[A, B], &[B], &[A]];
        assert_eq!(follow(&mut settled(), Some(at(B)), &answers[..6]), [B; 6]);
        // Left out once, and back.
        assert_eq!(follow(&mut settled(), Some(at(A)), &[&[B], &[A], &[B], &[A, B], &[C]]), [A; 5]);
    }

    #[test]
    fn two_look_ups_in_a_row_that_agree_are_a_move() {
        assert_eq!(follow(&mut settled(), Some(at(A)), &[&[B], &[B]]), [A, B]);
        assert_eq!(follow(&mut settled(), Some(at(A)), &[&[B, V6], &[V6, C, B], &[B]]), [A, B, B]);
        assert_eq!(follow(&mut settled(), Some(at(A)), &[&[V6], &[V6]]), [A, V6]);
    }

    #[test]
    fn a_name_that_is_answered_by_turns_moves_nobody() {
        assert_eq!(follow(&mut settled(), Some(at(A)), &[&[B], &[C], &[B], &[C], &[B], &[A]]), [A; 6]);
    }

    #[test]
    fn an_empty_answer_changes_nothing_and_breaks_no_agreement() {
        assert_eq!(follow(&mut settled(), Some(at(A)), &[&[], &[], &[B], &[], &[B]]), [A, A, A, A, B]);
        assert_eq!(follow(&mut Name::default(), None, &[&[], &[B]]), ["none", B]);
    }

    #[test]
    fn a_node_that_never_was_in_use_is_looked_for_at_all_its_addresses() {
        let mut name = Name::default();
        assert_eq!(name.looked_up(None, all(&[V6, A, B])), Some(at(A)));
        assert_eq!(name.after(Some(at(A))), Some(at(B)));
        assert_eq!(name.after(Some(at(B))), Some(at(V6)));
        assert_eq!(name.after(Some(at(V6))), Some(at(A)));
        assert_eq!(name.looked_up(Some(at(B)), all(&[C])), Some(at(C)), "nothing was at its present one");
        assert_eq!(name.after(Some(at(C))), None);
        name.looked_up(Some(at(C)), all(&[A, C]));
        name.settled = true;
        assert_eq!(name.after(Some(at(C))), None, "its memory is there");
    }

    #[test]
    fn no_more_addresses_than_a_few_are_kept() {
        let many: Vec<SocketAddr> = (0..100).map(|i| SocketAddr::new([10, 0, 1, i].into(), 1)).collect();
        let mut name = Name::default();
        name.looked_up(None, many);
        assert_eq!(name.listed.len(), MAX_ADDRESSES);
    }

    /// The look waits for every worker's word of the *last* move: one of an earlier move says
    /// nothing of the connections since.
    #[tokio::test]
    async fn a_node_that_has_moved_is_not_looked_at_before_all_workers_have_left() {
        let mut cluster = alone("-s cache1:1 -b 127.0.0.1:2 --threads 2");
        let addresses = cluster.names.addresses.clone();
        let node = NodeId(0);
        let drained = |cluster: &Cluster| cluster.nodes[node].is_drained();
        cluster.move_to(node, at(A));
        let first = addresses.number(node);
        cluster.left(WorkerId(0), node, first, false);
        assert!(!drained(&cluster), "the other worker has not left");
        cluster.move_to(node, at(B));
        let second = addresses.number(node);
        for worker in [0, 1].map(WorkerId) {
            cluster.left(worker, node, first, false);
        }
        assert!(!drained(&cluster), "they have left the first address");
        cluster.left(WorkerId(0), node, second, false);
        cluster.left(WorkerId(1), node, second, true);
        assert!(drained(&cluster));
        assert!(cluster.nodes[node].abandoned, "one of them left commands unanswered");
    }
}
