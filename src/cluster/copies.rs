//! Keys that are known to have one copy: reported, and tried again; where it is unknown which they
//! are, looked for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::lost_items::Lacks;
use super::verify::Why;
use super::{Cluster, Internal, PairRun, summary};
use crate::config::ResyncMode;
use crate::ids::{NodeId, PairId, Place};
use crate::keys::Lone;
use crate::lease;
use crate::pair::{Gate, State};
use crate::proxy::{Command, owner_of};
use crate::resync::Settlement;

/// How often the pairs are looked over.
const TICK: Duration = Duration::from_millis(500);
/// Keys of a pair that are mended at once: each may be of any size.
const WINDOW: usize = 8;
/// First and longest pause between two tries of keys that were refused.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// First and longest pause between two comparings of a pair that lacks copies of unknown keys.
const COMPARE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));
/// The shortest time between two log lines about a pair, and how many of its keys one names.
const TELL: Duration = Duration::from_secs(10);
const NAMED: usize = 5;

/// What is done about one pair's keys that have one copy.
#[derive(Debug)]
pub(super) struct Copies {
    under_way: bool,
    /// The last key tried, where the next round goes on.
    last: Option<Bytes>,
    next_at: Instant,
    pause: Duration,
    compare_at: Option<Instant>,
    compare_pause: Duration,
    told_at: Option<Instant>,
    /// Insertions, and times that there were more, when it was last logged.
    told: (u64, u64),
    /// Another proxy wrote to the nodes too: nothing else is known of those keys.
    by_rival: bool,
    /// The leader itself lacks items that it evicted while it was filled: by its word the
    /// follower's copies would go.
    by_leader: bool,
}

impl Default for Copies {
    fn default() -> Copies {
        Copies {
            under_way: false,
            last: None,
            next_at: Instant::now(),
            pause: RETRY.0,
            compare_at: None,
            compare_pause: COMPARE.0,
            told_at: None,
            told: (0, 0),
            by_rival: false,
            by_leader: false,
        }
    }
}

impl Copies {
    /// Mended, or compared and found equal; the pair's roles may change any time.
    fn rest(&mut self) {
        let under_way = self.under_way;
        *self = Copies { under_way, told: self.told, ..Copies::default() };
    }
}

impl PairRun {
    /// Whether unknown keys may have one copy, or two that differ.
    fn lacks_unknown(&self) -> bool {
        self.lone.has_more() || self.plan.is_uncompared()
    }
}

impl Cluster {
    pub(super) fn spawn_copies_ticker(&self) {
        let (internal, shutdown) = (self.internal.clone(), self.shutdown.clone());
        lease::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(TICK) => {}
                }
                if internal.send(Internal::LookForCopies).is_err() {
                    return;
                }
            }
        });
    }

    /// At every tick.
    pub(super) fn look_for_copies(&mut self) {
        // A job that lingers, a list that is full, an edge that is overdue: what jobs, workers and
        // time change by themselves is looked at now.
        for node in self.topology.nodes() {
            self.unsettled.node(node);
            self.ask_of_evictions(node);
        }
        let mut compare = Vec::new();
        for id in self.topology.pairs() {
            self.note_word(id);
            let run = &self.pairs[id];
            if run.lone.is_empty() && !run.lacks_unknown() && !self.is_in_doubt(id) {
                if run.copies.told_at.is_some() && run.pair.state() == State::Mirrored {
                    tracing::info!(pair = %self.pair_name(id), "every key has two copies again");
                }
                if run.copies.told_at.is_some()
                    || run.copies.compare_at.is_some()
                    || run.copies.by_leader
                    || run.copies.by_rival
                {
                    self.pairs[id].copies.rest();
                }
                continue;
            }
            self.tell_of_copies(id);
            self.mend_some(id);
            if self.is_to_be_compared(id) {
                compare.push(id);
            }
        }
        let uncompared = compare.iter().any(|id| self.pairs[*id].plan.is_uncompared());
        let why = if uncompared { Why::Crash } else { Why::Order };
        if !compare.is_empty() && self.begin_verify_of(&compare, why).is_ok() {
            for id in compare {
                let copies = &mut self.pairs[id].copies;
                copies.compare_pause = (copies.compare_pause * 2).min(COMPARE.1);
                // Begins when this one is over.
                copies.compare_at = None;
            }
        }
    }

    fn tell_of_copies(&mut self, id: PairId) {
        let more = self.lacks_more(id);
        let run = &mut self.pairs[id];
        let now = (run.lone.inserted(), run.lone.more());
        let state = run.pair.state();
        // In the other states all keys of the pair have one copy.
        let due = run.copies.told_at.is_none_or(|at| at.elapsed() >= TELL);
        if !matches!(state, State::Mirrored | State::Recovering { .. }) || run.copies.told == now || !due {
            return;
        }
        run.copies.told = now;
        run.copies.told_at = Some(Instant::now());
        let missing = summary::missing(run.lone.len(), more);
        let names: Vec<String> = run.lone.after(None, NAMED).iter().map(|key| key.escape_ascii().to_string()).collect();
        let (names, by_leader) = (names.join(" "), run.copies.by_leader);
        let adopting = run.plan.is_adopting();
        let lacks = match state {
            State::Recovering { leader } if adopting => self.node_at(id, leader),
            State::Recovering { leader } => self.node_at(id, leader.other()),
            _ => self.node_at(id, Place::Backup),
        };
        let (pair, node) = (self.pair_name(id), self.topology.addr(lacks).to_string());
        match state {
            State::Recovering { .. } if adopting => tracing::warn!(%pair, %node, missing, first = names,
                "keys have one copy, on the follower: the node, which leads, refuses their items (has it the memory, and the -I, of the other one?). They are kept, and tried again"),
            State::Recovering { .. } => tracing::warn!(%pair, %node, missing, first = names,
                "keys have one copy, for the node refuses their items: it does not lead before it takes them (has it the memory, and the -I, of the other one?)"),
            _ if by_leader => tracing::warn!(%pair, missing,
                "keys have one copy: the leader evicted items while it was filled. Give it memory and say resync HOST:PORT, or resync verify to go by what it holds"),
            _ if self.are_doubted_for_rival(id) => tracing::warn!(%pair,
                "keys may have one copy, or two that differ: another proxy has written to the nodes. They are compared"),
            _ => tracing::warn!(%pair, %node, missing, first = names,
                "keys have one copy: the node refused or evicted their items. They are tried again"),
        }
    }

    /// Another proxy wrote to the pair's nodes.
    pub(super) fn doubt_for_rival(&mut self, id: PairId) {
        let run = &mut self.pairs[id];
        // What a server evicted is named before what another proxy may have done.
        run.copies.by_rival |= !run.lone.has_more();
        run.lone.add_more();
    }

    /// Whether its copies are in doubt for that alone.
    pub(super) fn are_doubted_for_rival(&self, id: PairId) -> bool {
        let run = &self.pairs[id];
        run.copies.by_rival
            && run.lone.has_more()
            && run.lone.is_empty()
            && !run.copies.by_leader
            && !self.is_in_doubt(id)
    }

    /// Whether the pair's leader itself may lack items that its follower has.
    pub(super) fn leader_may_lack(&self, id: PairId) -> bool {
        let run = &self.pairs[id];
        run.pair.state() == State::Mirrored && (run.copies.by_leader || self.is_in_doubt(id))
    }

    /// Whether nothing is in the way of work on single keys of the pair.
    fn may_mend(&self, id: PairId) -> bool {
        self.is_settled(id) && !self.is_contested(id)
    }

    fn is_settled(&self, id: PairId) -> bool {
        let pair = &self.pairs[id].pair;
        let settled = pair.state() == State::Mirrored && pair.gate() == Gate::Open && !pair.is_foreign();
        settled && !self.flush.is_active()
    }

    fn mend_some(&mut self, id: PairId) {
        let may = self.may_mend(id);
        let run = &mut self.pairs[id];
        if !may || run.copies.under_way || run.copies.next_at > Instant::now() {
            return;
        }
        let keys = run.lone.after(run.copies.last.as_ref(), WINDOW);
        let Some(last) = keys.last() else { return };
        run.copies.last = Some(last.clone());
        run.copies.under_way = true;
        let mut answers = Vec::new();
        for key in keys {
            let (reply, answer) = oneshot::channel();
            answers.push(answer);
            let owner = owner_of(&key, self.workers.len() as u16);
            let ticket = self.ticket(reply);
            let _ = self.workers[owner.index()].send(Command::Mend { ticket, pair: id, key });
        }
        self.spawn(async move {
            let settled = futures::future::join_all(answers).await;
            let mended = settled.iter().any(|s| matches!(s, Ok(Settlement::Done | Settlement::Superfluous)));
            Internal::Mended { pair: id, mended }
        });
    }

    /// What became of the keys tried; the workers have removed those that have two copies now.
    pub(super) fn mended(&mut self, id: PairId, mended: bool) {
        let copies = &mut self.pairs[id].copies;
        copies.under_way = false;
        copies.pause = if mended { RETRY.0 } else { (copies.pause * 2).min(RETRY.1) };
        copies.next_at = Instant::now() + if mended { Duration::ZERO } else { copies.pause };
        if mended {
            self.mend_some(id);
        }
    }

    fn is_to_be_compared(&mut self, id: PairId) -> bool {
        // After a crash also beside another proxy: until then the primary is waited for.
        let uncompared = self.pairs[id].plan.is_uncompared();
        let may = if uncompared { self.is_settled(id) } else { self.may_mend(id) };
        // Where the leader may lack items itself, its word is not gone by yet.
        let may = may && self.settings.resync == ResyncMode::Auto && !self.is_verifying() && !self.is_in_doubt(id);
        let run = &mut self.pairs[id];
        // While it refuses what is known, it would refuse the others too.
        if !run.lacks_unknown() || !run.lone.is_empty() || run.copies.by_leader || !may {
            return false;
        }
        let now = Instant::now();
        let at_once = uncompared && run.copies.compare_pause == COMPARE.0;
        let pause = if at_once { Duration::ZERO } else { run.copies.compare_pause };
        *run.copies.compare_at.get_or_insert(now + pause) <= now
    }

    /// A node evicted items while it was filled. Which ones, and of which pair, is unknown.
    pub(super) fn evicted_during_fill(&mut self, node: NodeId, evicted: u64) {
        let mut concerned = 0;
        for id in self.topology.pairs_of(node) {
            let leads = self.topology.place(node) == Place::Primary;
            let run = &mut self.pairs[id];
            // Also where the other node leads alone meanwhile: this one may come back with all but
            // what it missed. One that is filled from the beginning forgets it.
            run.lone.add_more();
            run.copies.by_rival = false;
            run.copies.by_leader |= leads;
            concerned += usize::from(run.pair.state() == State::Mirrored);
        }
        if concerned > 0 {
            tracing::warn!(node = %self.topology.addr(node), evicted, "the node evicted items while it was filled: its copy is incomplete");
        }
    }

    /// A pair's copies were compared to the end, and differ nowhere any more. `more`: as often as
    /// it was known before that there are more keys with one copy.
    pub(super) fn copies_compared(&mut self, id: PairId, more: u64) {
        let run = &mut self.pairs[id];
        run.lone.resolve(more);
        run.copies.by_leader &= run.lone.has_more();
        run.copies.by_rival &= run.lone.has_more();
    }

    /// The primary is lost, and with it what only it held.
    pub(super) fn lose_only_copies(&mut self, id: PairId) {
        let lone: Arc<Lone> = self.pairs[id].lone.clone();
        let more = self.lacks_more(id);
        if lone.is_empty() && !more {
            return;
        }
        let missing = summary::missing(lone.len(), more);
        tracing::error!(pair = %self.pair_name(id), missing, "the node that is lost held the only copy of some keys: they are misses from now on");
        self.items_lost(id, Lacks::Keys { known: lone.len(), more });
        lone.forget_known();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::alone;
    use crate::ids::SessionId;
    use crate::pair::{Event, Reason};

    /// The pair has lost its primary since, which will come back with its memory.
    #[tokio::test(start_paused = true)]
    async fn what_was_evicted_while_it_was_filled_is_not_forgotten_by_a_loss() {
        for (node, by_leader) in [(NodeId(0), true), (NodeId(1), false)] {
            let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
            cluster.begin_open(State::Degraded { leader: Place::Backup });
            cluster.evicted_during_fill(node, 1);
            assert!(cluster.pairs[PairId(0)].lone.has_more());
            assert_eq!(cluster.pairs[PairId(0)].copies.by_leader, by_leader, "who lacks them");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pair_is_incomplete_since_the_other_proxy_was_seen() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
        for event in [Event::Start(State::Mirrored, Reason::None), Event::Closed, Event::Recorded] {
            cluster.apply(PairId(0), event);
        }
        cluster.pairs[PairId(0)].beginning.undecided = false;
        let shown = |cluster: &Cluster| {
            let pair = cluster.report().pairs.swap_remove(0);
            (pair.state, pair.for_seconds)
        };
        cluster.look_for_copies();
        tokio::time::advance(Duration::from_secs(60)).await;
        cluster.look_for_copies();
        assert_eq!(shown(&cluster), ("mirrored", 60));
        cluster.judge_rival(NodeId(0), Some(SessionId(9)), Instant::now());
        assert_eq!(shown(&cluster), ("incomplete", 0), "before the next tick");
        cluster.look_for_copies();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(shown(&cluster), ("incomplete", 2));
    }

    /// What the backup evicted while it was filled a comparing puts back. What the primary evicted,
    /// and leads without, it would end on the backup.
    #[tokio::test(start_paused = true)]
    async fn copies_are_not_compared_by_themselves_where_the_leader_lacks_items() {
        for (evicted, compared) in [(NodeId(1), true), (NodeId(0), false)] {
            let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
            let pair = PairId(0);
            for event in [Event::Start(State::Mirrored, Reason::None), Event::Closed, Event::Recorded] {
                cluster.apply(pair, event);
            }
            assert!(cluster.may_mend(pair), "{:?}", cluster.pairs[PairId(0)].pair);
            cluster.evicted_during_fill(evicted, 1);
            for _ in 0..20 {
                tokio::time::advance(TICK).await;
                cluster.look_for_copies();
            }
            assert_eq!(cluster.is_verifying(), compared, "{evicted:?}");
        }
    }
}
