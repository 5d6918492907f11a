//! Leadership terms from one start to the next: where they begin, and what they rise above. PURE.
//!
//! A cas token carries the term that it was taken under and the leader's own id of the item. Ids of
//! different servers, and of one server before and after its restart, are small numbers that
//! repeat, so a term that tokens were given under must not come again while another server leads
//! the key. A key belongs to another pair once the list of servers has changed: so not only the
//! pair's own history counts, but every term of every pair, under every list.
//!
//! - **All pairs begin above every term that any node names**: in any record, of whatever pair and
//!   period, and in its ring marker. The marker names the term that the pairs began at, and is
//!   written before any of them leads: a start that never got as far as a record leaves its trace,
//!   and so does a list with more pairs whose records a shorter one does not read any more.
//! - **A node that was not read may name a higher term.** Every record is written to every node in
//!   use, so that takes more than one failure. So the pairs begin a random number of terms above
//!   the highest known one: then tokens from such a node match hardly ever, instead of certainly.
//!   When the node is read later, the terms in use rise above its terms before it is used.
//! - **A first start begins at a random term**, the same for all pairs: the memory that held
//!   earlier terms may be gone, while clients still hold tokens.
//!
//! Terms only grow, and never wrap where they are recorded. Tokens carry their lower 15 bits: one
//! that a client has kept through 32,767 changes of leader and starts (fewer where servers were
//! away at the start) may meet its term again.

use crate::backend::NodeView;
use crate::ids::Term;

/// Terms that a node may have named which was not read.
const UNREAD: u64 = 1024;

/// The highest term that a node names.
pub(super) fn named(view: &NodeView) -> Term {
    let of_records = view.records.iter().map(|(_, record)| record.term);
    of_records.chain(view.ring.map(|mark| mark.term)).max().unwrap_or_default()
}

/// Where all pairs begin. `found`: the highest term that any node names, nothing if that is 0.
/// `all_read`: every node that may have named one was read.
pub(super) fn first(found: Term, all_read: bool, chance: u64) -> Term {
    match found {
        Term(0) => Term::random(chance),
        found if all_read => found.next(),
        found => Term(found.0 + chance % UNREAD).next(),
    }
}

/// Whether a node that came back names a term that this proxy has not given itself. `own`: the
/// highest in use. `first`: it was not read before in this run, so nothing on it is this proxy's.
pub(super) fn is_foreign(found: Term, own: Term, first: bool) -> bool {
    first || found > own
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::backend::marker::{Fact, Leftovers, Period, Record, RingMark};
    use crate::ids::{Epoch, NodeId, PairId};
    use crate::pair::Pair;

    /// What tells a node of terms.
    #[derive(Clone, Default, Debug)]
    struct Node {
        records: BTreeMap<u32, Term>,
        mark: Option<(u16, Term)>,
    }

    impl Node {
        /// As `NodeControl::view` reads it for a list of this many pairs.
        fn view(&self, pairs: u16) -> NodeView {
            let most = self.mark.map_or(0, |(pairs, _)| pairs).max(pairs);
            let record = |term| Record { epoch: Epoch(1), fact: Fact::Sync, term, period: Period(1) };
            let read = self.records.range(..u32::from(most));
            let mark = |(primaries, term)| RingMark {
                fingerprint: 0,
                node: NodeId(0),
                primaries,
                backups: 1,
                period: Period(1),
                term,
                leftovers: Leftovers::Clean,
            };
            NodeView {
                records: read.map(|(&pair, &term)| (PairId(pair), record(term))).collect(),
                ring: self.mark.map(mark),
                ..NodeView::default()
            }
        }
    }

    /// A list: its nodes, and how many pairs it has.
    type List = (&'static [usize], u16);
    const LISTS: [List; 4] = [(&[0, 1, 2], 2), (&[0, 1, 2, 3], 3), (&[0, 2], 1), (&[1, 3], 1)];

    /// One run of a proxy.
    struct Run {
        list: List,
        term: Term,
        pairs: Vec<Pair>,
        /// Nodes that were read since it started, and those of them that are in use.
        read: BTreeSet<usize>,
        up: BTreeSet<usize>,
    }

    /// Given to a client.
    struct Token {
        term: Term,
        run: usize,
        pair: usize,
        /// Nodes that had its term in a record before it was given, and have their memory still.
        witnesses: BTreeSet<usize>,
    }

    struct World {
        nodes: Vec<Node>,
        runs: usize,
        run: Option<Run>,
        tokens: Vec<Token>,
        met: usize,
    }

    impl World {
        fn new() -> World {
            World { nodes: vec![Node::default(); 4], runs: 0, run: None, tokens: Vec::new(), met: 0 }
        }

        /// Whatever ran before is gone without a word. `away`: does not answer.
        fn start(&mut self, list: List, away: Option<usize>) {
            let read: BTreeSet<usize> = list.0.iter().copied().filter(|&n| Some(n) != away).collect();
            let found = read.iter().map(|&n| named(&self.nodes[n].view(list.1))).max().unwrap_or_default();
            let same_list = self.run.as_ref().is_some_and(|run| run.list == list);
            // The worst chance.
            let term = first(found, same_list && away.is_none(), 0);
            read.iter().for_each(|&n| self.nodes[n].mark = Some((list.1, term)));
            let pairs = (0..list.1).map(|_| Pair::new(Epoch(1), term)).collect();
            self.runs += 1;
            self.run = Some(Run { list, term, pairs, up: read.clone(), read });
        }

        /// A pair has another leader, recorded on all nodes in use before a token is given.
        fn lead(&mut self, pair: usize) {
            let Some(run) = &mut self.run else { return };
            let pair = pair % run.pairs.len();
            let before = run.pairs[pair].term();
            run.pairs[pair].rise_above(before);
            let term = run.pairs[pair].term();
            run.up.iter().for_each(|&n| {
                self.nodes[n].records.insert(pair as u32, term);
            });
            self.tokens.push(Token { term, run: self.runs, pair, witnesses: run.up.clone() });
        }

        fn lose(&mut self, node: usize, memory: bool) {
            if memory {
                self.nodes[node] = Node::default();
                self.tokens.iter_mut().for_each(|token| {
                    token.witnesses.remove(&node);
                });
            }
            if let Some(run) = &mut self.run {
                run.up.remove(&node);
            }
        }

        fn come_back(&mut self, node: usize) {
            let Some(run) = self.run.as_mut().filter(|run| run.list.0.contains(&node)) else { return };
            let found = named(&self.nodes[node].view(run.list.1));
            let own = run.pairs.iter().map(Pair::term).max().unwrap_or_default();
            run.up.insert(node);
            if is_foreign(found, own, run.read.insert(node)) {
                let risen = run.pairs.iter_mut().filter_map(|pair| pair.rise_above(found).then_some(())).count();
                if risen > 0 {
                    run.term = run.term.max(found.next());
                    run.up.iter().for_each(|&n| self.nodes[n].mark = Some((run.list.1, run.term)));
                }
            }
            self.nodes[node].mark = Some((run.list.1, run.term));
        }

        /// No token wins that another leader than the present one has given, and that a node which
        /// was read knows of.
        fn judge(&mut self, story: &[String]) {
            let Some(run) = &self.run else { return };
            for token in self.tokens.iter().filter(|token| !token.witnesses.is_disjoint(&run.read)) {
                self.met += 1;
                for (pair, live) in run.pairs.iter().enumerate() {
                    let same = token.run == self.runs && (token.pair != pair || token.term == live.term());
                    let meets = token.term.in_token() == live.term().in_token();
                    assert!(
                        same || !meets && live.term() > token.term,
                        "{:?} meets {:?}: {story:#?}",
                        token.term,
                        live.term()
                    );
                }
            }
        }
    }

    /// Lists that change, proxies that crash before and after the first record, nodes that are away
    /// at the start and come later, nodes that lose their memory: a token never meets its own term
    /// where a node that names it was read.
    #[test]
    fn no_token_meets_its_term_again() {
        let mut met = 0;
        for seed in 0..20_000 {
            let (mut rng, mut world, mut story) = (SmallRng::seed_from_u64(seed), World::new(), Vec::new());
            for _ in 0..14 {
                let (what, which) = (rng.random_range(0..10), rng.random_range(0..16));
                match what {
                    0..=2 => {
                        let list = LISTS[which / 4];
                        let away = list.0.get(which % 4).copied().filter(|_| rng.random_bool(0.5));
                        story.push(format!("start {list:?} without {away:?}"));
                        world.start(list, away);
                    }
                    3..=6 => {
                        story.push(format!("pair {which} gets a leader"));
                        world.lead(which);
                    }
                    7 => {
                        story.push(format!("node {which} lost, memory too: {}", which >= 12));
                        world.lose(which % 4, which >= 12);
                    }
                    _ => {
                        story.push(format!("node {} comes back", which % 4));
                        world.come_back(which % 4);
                    }
                }
                world.judge(&story);
            }
            met += world.met;
        }
        assert!(met > 100_000, "{met}");
    }

    #[test]
    fn terms_begin_above_what_is_found_and_skip_what_tokens_of_no_pair_carry() {
        for chance in [0, 1, 32_766, 32_767, u64::MAX] {
            let begun = first(Term(0), true, chance);
            assert!((1..1 << 15).contains(&begun.0), "{begun:?}");
            assert_eq!(first(Term(40_000), true, chance), Term(40_001));
            assert!((40_001..40_001 + UNREAD).contains(&first(Term(40_000), false, chance).0));
        }
        assert_eq!(Term((1 << 15) - 1).next(), Term((1 << 15) + 1));
        assert_eq!(Term((1 << 15) + 1).in_token(), 1);
    }
}
