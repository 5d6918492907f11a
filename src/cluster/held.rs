//! How much each server holds, and how full it is: asked of the servers when somebody looks at the
//! report, and not again for a while, however often that happens.

use std::time::Duration;

use tokio::time::Instant;

use super::{Cluster, Internal};
use crate::ids::NodeId;
use crate::protocol::statistics;
use crate::report::HeldReport;

/// Between two questions to a server.
const AGAIN: Duration = Duration::from_secs(5);
/// An older answer is not shown. (Prometheus may come once a minute, and sees what was asked for at
/// its visit before.)
const SHOWN_FOR: Duration = Duration::from_secs(150);
/// `stats` has some 3 KiB.
const BYTES_MAX: usize = 64 << 10;

/// See the module's words.
#[derive(Default, Debug)]
pub(super) struct Held {
    asked: Option<Instant>,
    /// When it was asked for.
    found: Option<(Instant, HeldReport)>,
}

impl Held {
    /// `since`: since when it is the same memory, as far as known.
    pub(super) fn report(&self, since: Instant) -> Option<HeldReport> {
        self.found.filter(|(at, _)| *at >= since && at.elapsed() < SHOWN_FOR).map(|(_, held)| held)
    }
}

impl Cluster {
    /// Somebody looks at the report: the figures are asked for now, and are in the next report.
    pub(super) fn ask_what_is_held(&mut self) {
        for node in self.topology.nodes() {
            let run = &mut self.nodes[node];
            let was_asked = run.held.asked.is_some_and(|at| at >= run.since && at.elapsed() < AGAIN);
            if !run.health.is_up() || was_asked {
                continue;
            }
            let at = Instant::now();
            run.held.asked = Some(at);
            let inquirer = self.operators.inquirers[node].clone();
            self.spawn(async move {
                let answer = inquirer.ask("stats", BYTES_MAX).await;
                let found = answer.ok().and_then(|answer| read(&answer));
                Internal::Held { node, at, found }
            });
        }
    }

    pub(super) fn held(&mut self, node: NodeId, at: Instant, found: Option<HeldReport>) {
        if let Some(found) = found {
            self.nodes[node].held.found = Some((at, found));
        }
    }
}

/// From memcached's answer to `stats`.
fn read(answer: &[u8]) -> Option<HeldReport> {
    let stats = statistics::read(answer);
    let number = |name: &str| statistics::number(&stats, name);
    Some(HeldReport {
        items: number("curr_items")?,
        bytes: number("bytes")?,
        bytes_max: number("limit_maxbytes")?,
        evictions: number("evictions")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::alone::alone;
    use crate::pair::State;

    #[test]
    fn a_servers_statistics_are_read_by_whole_names() {
        let answer = b"STAT total_items 9\r\nSTAT curr_items 7\r\nSTAT bytes_read 1\r\nSTAT bytes 500\r\n\
            STAT limit_maxbytes 1000\r\nSTAT evictions 2\r\nEND\r\n";
        let held = HeldReport { items: 7, bytes: 500, bytes_max: 1000, evictions: 2 };
        assert_eq!(read(answer), Some(held));
        assert_eq!(read(b"STAT curr_items 7\r\nEND\r\n"), None, "what is not said is not known");
    }

    /// What a server held before it was lost says nothing of what it holds now.
    #[tokio::test(start_paused = true)]
    async fn what_was_held_is_shown_of_the_same_memory_and_not_for_ever() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
        cluster.begin_open(State::Mirrored);
        let node = NodeId(0);
        let shown = |cluster: &Cluster| cluster.report().nodes[0].held.map(|held| held.items);
        let held = HeldReport { items: 7, ..HeldReport::default() };
        cluster.held(node, Instant::now(), Some(held));
        assert_eq!(shown(&cluster), Some(7));
        tokio::time::advance(SHOWN_FOR).await;
        assert_eq!(shown(&cluster), None);
        let asked = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        cluster.nodes[NodeId(0)].since = Instant::now();
        cluster.held(node, asked, Some(held));
        assert_eq!(shown(&cluster), None);
    }
}
