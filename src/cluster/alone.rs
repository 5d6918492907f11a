//! For tests: a control plane whose nodes nobody can reach. Its events are what the test says.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures::future::{BoxFuture, FutureExt};
use tokio::sync::mpsc::unbounded_channel;
use tokio_util::sync::CancellationToken;

use super::{Cluster, Names};
use crate::backend::{Addresses, Dial, NodeStream, Resolve};
use crate::config::{CommandLine, Host};
use crate::ids::NodeId;
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

/// Of a proxy with these arguments.
pub(super) fn alone(arguments: &str) -> Cluster {
    let line = format!("resilver {arguments}");
    let Ok(CommandLine::Run(settings)) = CommandLine::parse(line.split(' '), &Host::this()) else { panic!("{line}") };
    let topology = Arc::new(Topology::new(&settings.primaries, &settings.backups, settings.distribution));
    let addresses = Arc::new(Addresses::new(topology.nodes().map(|node| topology.addr(node))));
    let names = Names { addresses, resolver: Arc::new(Nobody) };
    // What workers are told nobody hears.
    let commands = (0..settings.threads).map(|_| unbounded_channel().0).collect();
    let stats = (0..settings.threads).map(|_| Arc::new(WorkerStats::new(topology.node_count()))).collect();
    let (unclean, probes) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    Cluster::new(*settings, topology, (Arc::new(Nobody), names), commands, stats, unclean, probes)
}
