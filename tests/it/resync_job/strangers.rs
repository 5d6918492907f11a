//! Another server in a node's place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resilver::internals::backend::{Addresses, Dial, Effect, NodeStream, Pipe, TcpDialer};
use resilver::internals::ids::{Incarnation, NodeId};
use resilver::internals::resync::{Fill, JobError, Progress, RateLimiter, Tuning, Verify, VerifyPair, verify};
use resilver::internals::ring::NodeAddr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::support::Memcached;

use super::world::{World, deadline};
use super::{LEADER, PAIR, TARGET};

/// Dials nodes, but once another server in a node's place: it was restarted or replaced between two
/// connections.
struct Replaced {
    nodes: Arc<dyn Dial>,
    stranger: TcpDialer,
    at: usize,
    dials: AtomicUsize,
}

impl Dial for Replaced {
    fn dial(&self, node: NodeId) -> futures::future::BoxFuture<'static, std::io::Result<NodeStream>> {
        let strange = self.dials.fetch_add(1, Ordering::SeqCst) == self.at;
        if strange { self.stranger.dial(node) } else { self.nodes.dial(node) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    Fill(Fill),
    Verify,
    Clean,
}

impl World {
    async fn work(&self, work: Work) -> Result<(), JobError> {
        if let Work::Fill(fill) = work {
            return self.resync(fill, Tuning::default()).await.0.result;
        }
        let (cancel, progress) = (CancellationToken::new(), Arc::new(Progress::new([])));
        let ctx = self.context(Tuning::default(), cancel, Arc::default(), progress, mpsc::channel(1).0);
        if work == Work::Clean {
            return resilver::internals::resync::clean(TARGET, ctx).await.result;
        }
        let pair = VerifyPair { pair: PAIR, leader: LEADER, follower: TARGET, leave: CancellationToken::new() };
        // That the pair was compared to its end is told, and heard by nobody here.
        let (coordinator, _told) = mpsc::channel(1);
        let scrub = Verify {
            pairs: vec![pair],
            limiter: Arc::new(RateLimiter::new(None)),
            yields: false,
            settle: Duration::from_millis(1),
            progress: Arc::default(),
            coordinator,
        };
        verify(scrub, ctx).await
    }
}

/// Each connection of each work leads, once, to another server than the node that it is about: it
/// is not believed, nor touched.
#[tokio::test]
async fn no_connection_is_believed_before_it_has_shown_the_memory_that_is_meant() {
    let stranger = Memcached::start(&[]);
    let at_stranger = NodeAddr { host: "127.0.0.1".to_owned(), port: stranger.port() };
    let strange = || {
        let addresses = Addresses::new([at_stranger.clone(), at_stranger.clone()].iter());
        TcpDialer::new(Arc::new(addresses), Duration::from_secs(2), Duration::from_secs(20))
    };
    let marker = |memory: Incarnation| format!("ms __resilver__:incarnation 16 T0\r\n{memory}\r\n");
    let mut pipe = Pipe::connect(&strange(), LEADER, deadline()).await.unwrap();
    for command in [marker(Incarnation(3)), "ms strange 1 T0\r\nx\r\n".to_owned()] {
        assert_eq!(pipe.ask(command.as_bytes(), Effect::Mutation, deadline()).await.unwrap(), "HD");
    }
    let counted = ["cmd_get", "cmd_set", "cmd_touch", "delete_hits", "delete_misses", "lru_crawler_starts", "cmd_meta"];
    let fills = [Fill::Purge, Fill::Empty, Fill::Missed, Fill::Compare, Fill::Adopt].map(Work::Fill);
    for (work, connections) in fills.into_iter().chain([Work::Verify, Work::Clean]).zip([7, 6, 5, 7, 13, 4, 2]) {
        for at in 0.. {
            let mut world = World::start(&[], &[]);
            world.missed.reset();
            world.memories = BTreeMap::from([(LEADER, Incarnation(1)), (TARGET, Incarnation(2))]);
            for (node, memory) in world.memories.clone() {
                let mut pipe = world.pipe(node).await;
                pipe.ask(marker(memory).as_bytes(), Effect::Mutation, deadline()).await.unwrap();
                pipe.ask(b"ms key 1 T0\r\nx\r\n", Effect::Mutation, deadline()).await.unwrap();
            }
            let before = pipe.stats("", deadline()).await.unwrap();
            let dialer =
                Arc::new(Replaced { nodes: world.dialer.clone(), stranger: strange(), at, dials: AtomicUsize::new(0) });
            world.dialer = dialer.clone();
            let result = world.work(work).await;
            if dialer.dials.load(Ordering::SeqCst) <= at {
                assert_eq!(result, Ok(()), "{work:?}");
                assert!(at >= connections, "{work:?} made {at} connections");
                break;
            }
            let error = result.expect_err(&format!("{work:?} with connection {at} to another server"));
            assert!(error.to_string().contains("another memory"), "{work:?}, connection {at}: {error}");
            let after = pipe.stats("", deadline()).await.unwrap();
            let value = |stats: &[(String, String)], name: &str| {
                stats.iter().find(|(n, _)| n == name).map_or(0, |(_, value)| value.parse::<u64>().unwrap())
            };
            for name in counted {
                let most = if name == "cmd_get" || name == "cmd_meta" { 1 } else { 0 };
                let more = value(&after, name) - value(&before, name);
                assert!(more <= most, "{work:?}, connection {at}: {more} more {name} at the stranger");
            }
        }
    }
}
