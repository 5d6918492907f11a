//! For tests: a control plane whose nodes nobody can reach. Its events are what the test says.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures::future::{BoxFuture, FutureExt};
use tokio::sync::mpsc::unbounded_channel;
use tokio_util::sync::CancellationToken;

use super::{Cluster, Losses, Names, NoStandby, Workers};
use crate::backend::{Addresses, Dial, NodeStream, Resolve};
use crate::config::{CommandLine, Host};
use crate::ids::{NodeId, PairId};
use crate::pair::{self, Gate, Reason, State};
use crate::ring::Topology;
use crate::stats::WorkerStats;

struct Nobody;

impl Resolve for Nobody {
    fn resolve(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        async { Ok(vec![]) }.boxed()
    }
}

impl Dial for Nobody {
    fn dial(&self, _: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        async { Err(io::ErrorKind::ConnectionRefused.into()) }.boxed()
    }
}

/// Of nodes that take connections and say nothing.
struct Silent;

impl Dial for Silent {
    fn dial(&self, _: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        std::future::pending().boxed()
    }
}

/// Of a proxy with these arguments.
pub(super) fn alone(arguments: &str) -> Cluster {
    agreeing(arguments, Arc::new(NoStandby))
}

/// The same for one that agrees on losses there.
pub(super) fn agreeing(arguments: &str, losses: Arc<dyn Losses>) -> Cluster {
    over(arguments, Arc::new(Nobody), losses)
}

/// Of nodes that hang.
pub(super) fn unanswered(arguments: &str) -> Cluster {
    over(arguments, Arc::new(Silent), Arc::new(NoStandby))
}

fn over(arguments: &str, dialer: Arc<dyn Dial>, losses: Arc<dyn Losses>) -> Cluster {
    let line = format!("resilver {arguments}");
    let Ok(CommandLine::Run(plan)) = CommandLine::parse(line.split(' '), &Host::this()) else { panic!("{line}") };
    let settings = plan.pools[0].clone();
    let topology = Arc::new(Topology::new(&settings.primaries, &settings.backups, settings.distribution));
    let addresses = Arc::new(Addresses::new(topology.nodes().map(|node| topology.addr(node))));
    let names = Names { addresses, resolver: Arc::new(Nobody) };
    // What workers are told nobody hears.
    let commands = (0..settings.threads).map(|_| unbounded_channel().0).collect();
    let stats = (0..settings.threads).map(|_| Arc::new(WorkerStats::new(topology.node_count()))).collect();
    let workers = Workers { commands, stats, unclean: Arc::new(AtomicBool::new(false)) };
    Cluster::new(settings, topology, (dialer, names, losses), workers, CancellationToken::new())
}

impl Cluster {
    /// All nodes are in use, and all pairs in this state. They are recorded by nobody yet.
    pub(super) fn begin_recording(&mut self, state: State) {
        let now = self.now();
        self.nodes.iter_mut().for_each(|node| node.health.back(now));
        let begins = match state {
            State::Recovering { leader } => State::Degraded { leader },
            state => state,
        };
        for id in self.topology.pairs() {
            self.pairs[id].beginning.undecided = false;
            self.apply(id, pair::Event::Start(begins, Reason::None));
            self.apply(id, pair::Event::Closed);
            if begins != state {
                self.apply(id, pair::Event::Recorded);
                self.apply(id, pair::Event::BeginRecovery);
                self.apply(id, pair::Event::Closed);
            }
            let pair = &self.pairs[id].pair;
            assert_eq!((pair.state(), pair.gate()), (state, Gate::Recording), "{id:?}");
        }
    }

    /// The same, and their gates are open.
    pub(super) fn begin_open(&mut self, state: State) {
        self.begin_recording(state);
        for id in self.topology.pairs() {
            self.apply(id, pair::Event::Recorded);
            assert_eq!(self.gate_of(id), Gate::Open, "{id:?}");
        }
    }

    fn gate_of(&self, id: PairId) -> Gate {
        self.pairs[id].pair.gate()
    }
}
