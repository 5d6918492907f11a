//! Proxies of a simulated world: the very code of the daemon, on the simulation's thread.

use std::sync::Arc;

use futures::future::{FutureExt, LocalBoxFuture};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

use crate::backend::Addresses;
use crate::cluster::{Losses, Names};
use crate::config::Settings;
use crate::lease::process::{Needs, Process};
use crate::ring::Topology;
use crate::server::{Assembly, Listener};

use super::clients::Doors;
use super::late::Scheduled;
use super::net::{Net, SimDialer, SimResolver};

/// What proxies work with.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) net: Arc<Net>,
    pub(super) settings: Settings,
    pub(super) topology: Arc<Topology>,
    pub(super) doors: Doors,
}

/// A proxy that runs.
pub(super) struct Proxy {
    pub(super) id: u32,
    tasks: Vec<JoinHandle<()>>,
    /// The workers, and last the control plane.
    pub(super) parts: Vec<Scheduled>,
    pub(super) shutdown: CancellationToken,
    pub(super) probes: CancellationToken,
}

impl Ground {
    /// Starts a proxy, by its number and the number of its machine.
    pub(super) fn start(
        &self,
        (id, machine): (u32, usize),
        losses: Arc<dyn Losses>,
        process: Option<&Arc<Process>>,
    ) -> Proxy {
        let timeout = self.settings.timeout.max(self.settings.probe_timeout);
        let addresses = Arc::new(Addresses::new(self.topology.nodes().map(|node| self.topology.addr(node))));
        let names = Names { addresses: addresses.clone(), resolver: Arc::new(SimResolver(self.net.clone())) };
        let dialer = Arc::new(SimDialer { net: self.net.clone(), proxy: id, machine, timeout, addresses });
        let assembly = Assembly::new(self.settings.clone(), self.topology.clone(), (dialer, names, losses));
        let shutdown = CancellationToken::new();
        let (mut tasks, mut doors, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let mut run = |worker: bool, work: LocalBoxFuture<'static, ()>| {
            parts.push(Scheduled::default());
            let work = parts[parts.len() - 1].clone().run(worker, work);
            tasks.push(match process {
                Some(process) => spawn_local(process.clone().run(Needs::Lease, work)),
                None => spawn_local(work),
            });
        };
        for worker in assembly.workers {
            let (door, streams) = unbounded_channel();
            doors.push(door);
            let shutdown = shutdown.clone();
            let work = async move {
                // As in the daemon, whatever a worker leaves behind ends with it.
                let local = LocalSet::new();
                local.run_until(worker.run(vec![Listener::Memory(streams)], shutdown)).await;
            };
            run(true, work.boxed_local());
        }
        let control =
            async move { assembly.cluster.run(assembly.events).await.expect("it is of this fleet, or of none") };
        run(false, control.boxed_local());
        self.doors.borrow_mut().insert(id, doors);
        Proxy { id, tasks, parts, shutdown, probes: assembly.probes }
    }
}

impl Proxy {
    /// Its tasks have ended. Returns whether one has panicked.
    pub(super) async fn have_stopped(&mut self) -> bool {
        let mut panicked = false;
        // The caller may be cut off while it waits, and wait again.
        while let Some(task) = self.tasks.last_mut() {
            panicked |= task.await.is_err_and(|error| error.is_panic());
            self.tasks.pop();
        }
        panicked
    }

    /// All of it ends at once.
    pub(super) async fn end(mut self) -> bool {
        self.probes.cancel();
        self.tasks.iter().for_each(JoinHandle::abort);
        self.have_stopped().await
    }
}
