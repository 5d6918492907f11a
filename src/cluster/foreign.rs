//! Another proxy over the same nodes. It shows itself by its open session where this proxy's was:
//! started later, it took this one for dead. Two proxies that judge failures independently would
//! promote different nodes, so this one promotes none while that session is open, and says so.
//! When it ends, what both wrote may differ between the copies: they are compared, as after a
//! crash.
//!
//! The later one sees nothing of that. So the earlier one leaves word on the nodes as long as it
//! lives ([`RIVAL_KEY`](crate::backend::marker::RIVAL_KEY)): the later one goes on, calls nothing
//! mirrored, and compares the copies when that word has expired. Nor does it call anything mirrored
//! before the earlier one has had the time to leave it: whether the session that stood open there
//! was a dead proxy's is not known until then, unless nobody else is connected to the node.
//!
//! That is so for two proxies with the same list of servers. One with another list would give the
//! memory of each server another name, and the proxy that is at work would take all that they hold
//! for lost, and delete it. So it asks before it marks anything
//! ([`KNOCK_KEY`](crate::backend::marker::KNOCK_KEY)): where somebody answers, it does not start,
//! nor take a server back.
//!
//! While two work on a node, neither deletes there what belongs to none of its own pairs: the other
//! one may serve it.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::NodeView;
use crate::backend::marker::Session;
use crate::ids::{NodeId, PairId, SessionId};
use crate::pair::{self, FillEvent, Reason, State};

use super::probes::JITTER;
use super::turn::Refused;
use super::{Cluster, Internal};

/// No client is served meanwhile: so a proxy that probes less often than this is not noticed.
const KNOCK_MAX: Duration = Duration::from_secs(5);

/// What is known of another proxy on one node.
#[derive(Default)]
pub(super) struct Foreign {
    /// Its session.
    live: Option<SessionId>,
    /// The session that stood there before this proxy marked the node, since the first probe that
    /// found it: that one may have been under way.
    suspected: Option<SessionId>,
    /// The session of an earlier proxy that still works.
    rival: Option<SessionId>,
    /// By then an earlier proxy, if it still works, has written its rival marker.
    word_due: Option<Instant>,
    /// The last session of a proxy whose knock was answered: the log names it once.
    knocked: Option<SessionId>,
    /// How many such sessions there were.
    pub(super) count: u64,
}

impl Foreign {
    fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Whether another proxy works on it, earlier or later than this one.
    pub(super) fn is_contested(&self) -> bool {
        self.live.is_some() || self.rival.is_some()
    }

    /// Whether the proxy whose session this one has taken the place of may still work, and had no
    /// time to say so.
    fn awaits_word(&self) -> bool {
        self.word_due.is_some()
    }

    /// Whether items on the node that belong to none of this proxy's pairs may be another proxy's.
    pub(super) fn may_be_shared(&self) -> bool {
        self.is_contested() || self.awaits_word()
    }
}

impl Cluster {
    /// This proxy's session stands where another one's was open.
    pub(super) fn await_word(&mut self, node: NodeId) {
        let wait = self.word_time();
        self.nodes[node].foreign.word_due = Some(Instant::now() + wait);
        self.after(wait, Internal::WordDue { node });
    }

    /// Another proxy finds what this one has written at its next probe, and has written in its turn
    /// by then. (Its interval is taken to be this one's.)
    pub(super) fn word_time(&self) -> Duration {
        self.settings.probe_interval.mul_f64(JITTER.end) + self.settings.probe_timeout
    }

    /// How long to wait for a sign of a proxy with another list.
    pub(super) fn knock_time(&self) -> Duration {
        self.word_time().min(KNOCK_MAX)
    }

    /// Before anything is marked: whether a proxy with another list of servers works on one of
    /// them.
    pub(super) async fn must_be_alone(&self) -> Result<(), Refused> {
        let mut doubtful = Vec::new();
        for node in self.topology.nodes() {
            let Some(view) = &self.nodes[node].view else { continue };
            if self.is_others(node, view) && !self.is_alone_on(node).await {
                doubtful.push(node);
            }
        }
        let (session, wait) = (self.session.id, self.knock_time());
        let knocks = doubtful.iter().map(|node| self.controls[*node].knock(session, wait));
        let answers = futures::future::join_all(knocks).await;
        // An error says nothing about the node, like a node that was never reached.
        match doubtful.iter().zip(answers).find(|(_, answer)| matches!(answer, Ok(Some(_)))) {
            Some((&node, _)) => Err(Refused::OtherList { server: self.topology.addr(node).to_string() }),
            None => Ok(()),
        }
    }

    /// Whether the memory was last used under another list of servers, by a proxy that has not said
    /// goodbye.
    pub(super) fn is_others(&self, node: NodeId, view: &NodeView) -> bool {
        let open = view.session.is_some_and(|session| session.open && session.id != self.session.id);
        open && view.incarnation.is_some() && !self.is_ours(node, view)
    }

    /// At every good probe of a node in use: does a proxy with another list ask whether somebody
    /// works on it?
    pub(super) fn answer_knock(&mut self, node: NodeId, found: Option<SessionId>) {
        let Some(id) = found.filter(|id| *id != self.session.id) else { return };
        self.leave_word(node);
        if self.nodes[node].foreign.knocked.replace(id) != Some(id) {
            tracing::error!(node = %self.topology.addr(node), session = %id,
                "another proxy with another list of servers was started over this node: it is told that this one works, and keeps away");
        }
    }

    /// It is looked for at once.
    pub(super) fn word_due(&self, node: NodeId) {
        self.nodes[node].hint.notify_one();
    }

    /// At every good probe of a node in use: whose session does it carry?
    pub(super) fn judge_session(&mut self, node: NodeId, found: Option<Session>) {
        let run = &mut self.nodes[node];
        let before = run.view.as_ref().and_then(|view| view.session);
        let foreign = &mut run.foreign;
        match found {
            Some(other) if other.open && other.id != self.session.id => {
                if foreign.live == Some(other.id) {
                    self.leave_word(node);
                    return;
                }
                if before.is_some_and(|before| before.id == other.id) && foreign.suspected != Some(other.id) {
                    foreign.suspected = Some(other.id);
                    return;
                }
                foreign.live = Some(other.id);
                foreign.count += 1;
                self.leave_word(node);
                tracing::error!(node = %self.topology.addr(node), session = %other.id, reason = %Reason::ForeignSession,
                    "another proxy works on this node: nobody is promoted before it stops. Stop one of the two");
                for pair in self.topology.pairs_of(node) {
                    self.apply(pair, pair::Event::Foreign(true));
                }
            }
            _ => {
                foreign.suspected = None;
                let ended = foreign.live.take();
                if found.is_some_and(|s| s.id != self.session.id)
                    && let Some(incarnation) = self.nodes[node].incarnation
                {
                    let session = self.session;
                    self.tell_node(node, |control| async move {
                        // If this fails, the next probe finds the old session again.
                        let _ = control.session(incarnation, session).await;
                    });
                }
                if let Some(id) = ended {
                    tracing::warn!(node = %self.topology.addr(node), session = %id, "the other proxy is gone: what both wrote is compared");
                    self.foreign_ended(node);
                }
            }
        }
    }

    /// For the later proxy; it outlasts a few probes.
    fn leave_word(&self, node: NodeId) {
        let (session, seconds) = (self.session.id, (4 * self.settings.probe_interval).as_secs() + 2);
        self.tell_node(node, |control| async move {
            // If this fails, the next probe repeats it.
            let _ = control.rival(session, seconds).await;
        });
    }

    /// At every good probe of a node in use, when that began: does an earlier proxy say that it
    /// works too?
    pub(super) fn judge_rival(&mut self, node: NodeId, found: Option<SessionId>, begun: Instant) {
        let found = found.filter(|&id| id != self.session.id);
        let foreign = &mut self.nodes[node].foreign;
        foreign.word_due = foreign.word_due.filter(|due| begun < *due);
        let known = std::mem::replace(&mut foreign.rival, found);
        match (known, found) {
            (None, Some(id)) => {
                foreign.count += 1;
                tracing::error!(node = %self.topology.addr(node), session = %id, reason = %Reason::ForeignSession,
                    "an earlier proxy still works on this node: what both write may differ between the copies. Stop one of the two");
            }
            (Some(id), None) => {
                tracing::warn!(node = %self.topology.addr(node), session = %id, "the earlier proxy is gone: what both wrote is compared");
            }
            _ => {}
        }
        if found != known {
            for pair in self.topology.pairs_of(node) {
                // What that one has written, to one node alone perhaps, is on no list; nor what it
                // wrote after a refill that was meant to make the nodes equal.
                if found.is_some() {
                    self.plan(pair, FillEvent::ListVoid);
                }
                self.doubt_for_rival(pair);
            }
        }
    }

    fn foreign_ended(&mut self, node: NodeId) {
        for pair in self.topology.pairs_of(node) {
            // Both may have been written by two proxies, each in its order.
            self.plan(pair, FillEvent::ForeignEnded(self.pairs[pair].pair.state()));
            if self.stays_foreign(pair) {
                continue;
            }
            // A refill under way knows nothing of what the other one has written, to one node alone
            // perhaps, nor of what it has deleted of an adoption's items.
            self.abort_job_of(pair);
            self.apply(pair, pair::Event::ResyncEnded(Reason::ForeignSession));
            self.end_foreign(pair);
        }
    }

    /// Whether there is still a reason to promote no node of the pair: a former proxy and a foreign
    /// one end independently, and the last end counts. (A rival is no such reason.)
    pub(super) fn stays_foreign(&self, pair: PairId) -> bool {
        self.awaits_former_of(pair) || self.any_foreign(pair, Foreign::is_live)
    }

    /// A node that was kept from leading may lead.
    pub(super) fn end_foreign(&mut self, pair: PairId) {
        self.apply(pair, pair::Event::Foreign(false));
        // The follower of a leader that lost its memory meanwhile was kept from it, and has been up
        // all along. (A node that came back with another memory is awaited no more.)
        if let State::Dark { in_sync: Some(awaited), .. } = self.pairs[pair].pair.state()
            && self.nodes[self.node_at(pair, awaited)].health.is_up()
        {
            self.apply(pair, pair::Event::BackSame(awaited));
        }
    }

    /// Whether another proxy works on a node of the pair.
    pub(super) fn is_contested(&self, pair: PairId) -> bool {
        self.any_foreign(pair, Foreign::is_contested)
    }

    /// Whether that is not known yet.
    pub(super) fn awaits_word_of(&self, pair: PairId) -> bool {
        self.any_foreign(pair, Foreign::awaits_word)
    }

    fn any_foreign(&self, pair: PairId, holds: impl Fn(&Foreign) -> bool) -> bool {
        let (primary, backup) = self.topology.nodes_of(pair);
        std::iter::once(primary).chain(backup).any(|node| holds(&self.nodes[node].foreign))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::marker::Leftovers;
    use crate::cluster::alone::alone;
    use crate::cluster::refills::Due;
    use crate::ids::Incarnation;

    const ONE: NodeId = NodeId(0);

    /// Of another proxy, later or earlier than this one, is heard on the first node; or nothing
    /// more.
    fn contest(cluster: &mut Cluster, earlier: bool, works: bool) {
        match earlier {
            true => cluster.judge_rival(ONE, works.then_some(SessionId(9)), Instant::now()),
            false => cluster.judge_session(ONE, works.then_some(Session { id: SessionId(9), open: true })),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_proxy_may_lead_with_is_not_deleted() {
        for earlier in [true, false] {
            let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
            let now = cluster.now();
            cluster.nodes.iter_mut().for_each(|node| node.health.back(now));
            let dark = State::Dark { in_sync: None, fallback: None };
            for event in [pair::Event::Start(dark, Reason::MarkerStale), pair::Event::Closed] {
                cluster.apply(PairId(0), event);
            }
            cluster.pairs[PairId(0)].beginning.undecided = false;
            let purges = |cluster: &Cluster| matches!(cluster.refill_due(ONE), Some(Due::Purge { .. }));
            assert!(purges(&cluster));
            contest(&mut cluster, earlier, true);
            assert!(!purges(&cluster), "earlier: {earlier}");
            contest(&mut cluster, earlier, false);
            assert!(purges(&cluster), "it has gone, earlier: {earlier}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_proxy_may_own_there_is_not_cleaned_away() {
        let cleans = |cluster: &mut Cluster| {
            cluster.clean(ONE);
            cluster.nodes[ONE].cleaning.is_under_way()
        };
        let new = || {
            let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
            cluster.begin_open(State::Mirrored);
            cluster.nodes[ONE].leftovers = Leftovers::Dirty;
            cluster.nodes[ONE].incarnation = Some(Incarnation(1));
            cluster
        };
        for earlier in [true, false] {
            let mut cluster = new();
            contest(&mut cluster, earlier, true);
            assert!(!cleans(&mut cluster), "earlier: {earlier}");
            contest(&mut cluster, earlier, false);
            assert!(cleans(&mut cluster), "it has gone, earlier: {earlier}");
        }
        let mut cluster = new();
        cluster.await_word(ONE);
        assert!(!cleans(&mut cluster), "whether one works there is not known yet");
        tokio::time::advance(2 * cluster.word_time()).await;
        cluster.judge_rival(ONE, None, Instant::now());
        assert!(cleans(&mut cluster), "none has said so in time");
    }
}
