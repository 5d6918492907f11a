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

/// A server's clock is in seconds: its start may be told a little later than before.
const CLOCK: u64 = 2;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    pub mark: FleetMark,
    /// No higher term was given before, as far as the others know.
    pub term: Term,
    /// The former active proxy, in words, if it may still be at work.
    pub former: Option<String>,
    /// After so long it counts as gone.
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
}

impl Cluster {
    /// At the start: whether these servers are this fleet's, or nobody's.
    pub(super) fn judge_fleet(&self) -> Result<(), Refused> {
        for (node, run) in self.topology.nodes().zip(&self.nodes) {
            let Some(found) = run.view.as_ref().and_then(|view| view.fleet.clone()) else { continue };
            let (server, FleetMark { name, address, .. }) = (self.topology.addr(node).to_string(), found.clone());
            match &self.turn {
                None => return Err(Refused::NoFleet { server, name, address }),
                Some(turn) if turn.mark.name != name => {
                    return Err(Refused::OtherFleet { server, name, address, own: turn.mark.name.clone() });
                }
                Some(turn) if turn.mark.generation <= found.generation && found != turn.mark => {
                    self.losses.marked_by_other(&found);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// At every good probe of a node in use.
    pub(super) fn judge_fleet_mark(&mut self, node: NodeId, found: Option<FleetMark>) {
        let (Some(turn), Some(found)) = (&self.turn, found) else { return };
        if found == turn.mark {
            return;
        }
        // (The same generation at another address: see `Authority`.)
        if found.name != turn.mark.name || found.generation >= turn.mark.generation {
            return self.losses.marked_by_other(&found);
        }
        tracing::warn!(node = %self.topology.addr(node), found = %found, "a former active proxy has marked the server late: it is marked again");
        if let Some(incarnation) = self.nodes[node.index()].incarnation {
            self.tell_node(node, |control| async move {
                // If this fails, the next probe finds the old one again.
                let _ = control.fleet_again(incarnation).await;
            });
        }
    }

    /// A later record was found on a server: by a later generation this proxy is replaced.
    pub(super) fn judge_epoch(&self, found: Epoch) {
        let Some(turn) = &self.turn else { return };
        let next = turn.mark.generation.next();
        if found >= Epoch::first_of(next) {
            self.losses.marked_by_other(&FleetMark { generation: next, ..turn.mark.clone() });
        }
    }

    /// Epochs and terms of this turn are above all of earlier ones.
    pub(super) fn begin_turn(&mut self) {
        let Some(turn) = &self.turn else { return };
        for run in &mut self.pairs {
            run.pair.begin_from(Epoch::first_of(turn.mark.generation));
        }
    }

    /// Before workers connect: from now on their connections are among those that a server has.
    pub(super) async fn look_for_former(&mut self) {
        let Some(former) = self.turn.as_ref().and_then(|turn| turn.former.clone()) else { return };
        if !holds(Rule::FormerIsWaitedFor) {
            return;
        }
        tracing::warn!(former, "the former active proxy is not known to be gone: nothing is filled before it is");
        for node in self.topology.nodes() {
            self.nodes[node.index()].former = Former::There;
        }
        self.losses.awaits_former(true);
        let looks = self.controls.iter().map(|control| control.connections());
        let found = futures::future::join_all(looks).await;
        for (node, found) in self.topology.nodes().zip(found) {
            let mut there = There::default();
            if let Some(sight) = found.ok().filter(|_| self.nodes[node.index()].view.is_some()) {
                there.look(&sight);
            }
            let control = self.controls[node.index()].clone();
            let shutdown = self.shutdown.clone();
            self.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = awaited(control, there) => {}
                }
                Internal::FormerGone { node: Some(node), how: "its connections are closed" }
            });
        }
        let grace = self.turn.as_ref().map_or(Duration::ZERO, |turn| turn.grace);
        self.after(grace, Internal::FormerGone { node: None, how: "--former-grace is over" });
        for pair in self.topology.pairs() {
            self.apply(pair, pair::Event::Foreign(true));
        }
    }

    /// At one server, or at all.
    pub(super) fn former_gone(&mut self, node: Option<NodeId>, how: &str) {
        // (At the end of this proxy nobody waits any more: that says nothing of the former one, and
        // the record must not say so.)
        if self.shutdown.is_cancelled() || !self.awaits_former() {
            return;
        }
        for gone in self.topology.nodes().filter(|n| node.is_none_or(|node| node == *n)) {
            self.nodes[gone.index()].former = Former::Gone;
        }
        for pair in self.topology.pairs() {
            let run = &self.pairs[pair.index()];
            if !run.pair.is_foreign() || self.stays_foreign(pair) {
                continue;
            }
            // What the former one wrote late is on no list of what a node has missed.
            self.plan(pair, FillEvent::FormerGone(run.pair.state()));
            self.end_foreign(pair);
        }
        if !self.awaits_former() {
            tracing::info!(how, "the former active proxy is gone");
            self.losses.awaits_former(false);
        }
        for node in self.topology.nodes() {
            self.changed(node);
        }
    }

    /// Whether the former active proxy may still be at work.
    pub(super) fn awaits_former(&self) -> bool {
        self.nodes.iter().any(|run| run.former == Former::There)
    }

    /// The same of a pair's nodes.
    pub(super) fn awaits_former_of(&self, pair: PairId) -> bool {
        let (primary, backup) = self.topology.nodes_of(pair);
        std::iter::once(primary).chain(backup).any(|node| self.nodes[node.index()].former == Former::There)
    }
}

/// Completes when the server has closed all that it had when it was first asked, or is another
/// process than then.
async fn awaited(control: Arc<NodeControl>, mut there: There) {
    loop {
        tokio::time::sleep(if there.first.is_none() { LOOK / 10 } else { LOOK }).await;
        if let Ok(sight) = control.connections().await
            && there.look(&sight)
        {
            return;
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
            Some((_, started)) if sight.started > *started + CLOCK => return true,
            // (With the one that asks: it was told apart at the first look.)
            Some((there, _)) => there.retain(|connection| sight.all.contains(connection)),
            // (With this proxy's own, where they were quicker: then it takes longer.)
            None => self.first = sight.others().map(|others| (others, sight.started)),
        }
        self.first.as_ref().is_some_and(|(there, _)| there.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
