//! The daemon put together: worker threads around the data plane, the control plane on the calling thread.

mod stream;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::backend::{Dial, TcpDialer};
use crate::cluster::Cluster;
use crate::config::Settings;
use crate::daemon::Listeners;
use crate::proxy::{Core, CoreSettings};
use crate::ring::Topology;
use crate::stats::WorkerStats;

pub use stream::ClientStream;
use worker::{Listener, Work, WorkerSetup};

/// Serves clients until `shutdown` is cancelled and their requests in flight are answered (or the grace is over). Blocks.
///
/// # Errors
///
/// What the system refused: threads, or the event queue.
pub fn run(settings: Settings, listeners: Listeners, shutdown: CancellationToken) -> std::io::Result<()> {
    let topology = Arc::new(Topology::new(&settings.primaries, &settings.backups, settings.distribution));
    let addrs = topology.nodes().map(|node| topology.addr(node).clone()).collect();
    let dialer: Arc<dyn Dial> = Arc::new(TcpDialer::new(addrs, settings.timeout.max(settings.probe_timeout)));
    let workers = settings.threads.max(1);
    let lanes = settings.node_connections.div_ceil(workers).max(1);
    let clients = Arc::new(AtomicUsize::new(0));
    let work = Arc::new(Work::new(workers));
    let unclean = Arc::new(AtomicBool::new(false));
    let (events, events_from) = unbounded_channel();
    let (peers, inboxes): (Vec<_>, Vec<_>) = (0..workers).map(|_| unbounded_channel()).unzip();
    let stats: Vec<_> = (0..workers).map(|_| Arc::new(WorkerStats::new(topology.node_count()))).collect();
    let mut commands = Vec::new();
    let mut threads = Vec::new();
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let (command, commands_from) = unbounded_channel();
        commands.push(command);
        let core = Core::new(
            CoreSettings {
                worker: index as u16,
                workers: workers as u16,
                lanes,
                timeout_us: settings.timeout.as_micros() as u64,
                leader_timeout_us: settings.leader_timeout.as_micros() as u64,
                item_size_max: settings.item_size_max,
            },
            topology.clone(),
            stats[index].clone(),
        );
        let setup = WorkerSetup {
            dialer: dialer.clone(),
            commands: commands_from,
            events: events.clone(),
            inbox,
            peers: peers.clone(),
            stats: stats[index].clone(),
            tick: (settings.timeout / 8).clamp(Duration::from_millis(1), Duration::from_millis(25)),
            idle_timeout: settings.idle_timeout,
            clients: clients.clone(),
            max_clients: settings.max_clients,
            work: work.clone(),
            unclean: unclean.clone(),
        };
        let own =
            Own { tcp: clone_all(&listeners.tcp)?, unix: listeners.unix.as_ref().map(|l| l.try_clone()).transpose()? };
        let (shutdown, grace, nodes) = (shutdown.clone(), settings.shutdown_grace, topology.node_count());
        let thread =
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || -> std::io::Result<()> {
                let runtime = Builder::new_current_thread().enable_all().build()?;
                LocalSet::new().block_on(&runtime, async move {
                    let listeners = own.into_listeners()?;
                    worker::run(core, setup, listeners, nodes, lanes, shutdown, grace).await;
                    Ok(())
                })
            })?;
        threads.push(thread);
    }
    drop(events);
    drop(peers);
    let probes = CancellationToken::new();
    let cluster = Cluster::new(settings, topology, dialer, commands, stats, unclean, probes.clone());
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cluster.run(events_from));
    probes.cancel();
    for thread in threads {
        match thread.join() {
            Ok(result) => result?,
            Err(_) => return Err(std::io::Error::other("a worker thread panicked")),
        }
    }
    Ok(())
}

/// A worker's own handles of the listening sockets.
struct Own {
    tcp: Vec<std::net::TcpListener>,
    unix: Option<std::os::unix::net::UnixListener>,
}

impl Own {
    fn into_listeners(self) -> std::io::Result<Vec<Listener>> {
        let mut listeners = Vec::new();
        for listener in self.tcp {
            listener.set_nonblocking(true)?;
            listeners.push(Listener::Tcp(tokio::net::TcpListener::from_std(listener)?));
        }
        if let Some(listener) = self.unix {
            listener.set_nonblocking(true)?;
            listeners.push(Listener::Unix(tokio::net::UnixListener::from_std(listener)?));
        }
        Ok(listeners)
    }
}

fn clone_all(listeners: &[std::net::TcpListener]) -> std::io::Result<Vec<std::net::TcpListener>> {
    listeners.iter().map(std::net::TcpListener::try_clone).collect()
}
