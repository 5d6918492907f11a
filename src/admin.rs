//! What operators have beside the clients' listeners: a page, metrics and the state over HTTP,
//! which change nothing, and a unix socket that takes their commands.
//!
//! All of it runs on the control plane's thread, never on a worker's; with several proxies on the
//! fleet's thread, which continues when the lease has ended. So everything sent here is bounded:
//! connections, bytes, time, and how often the control plane is asked ([`Shown`]).

mod busy;
mod history;
mod http;
mod process;
mod shown;
mod socket;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Desk, Losses};
use crate::daemon::OperatorListeners;
use crate::lease::{self, Boot};
use crate::proxy::Memory;
use crate::reload::Reload;
use crate::report::metrics::{Around, Standing};
use crate::stats::WorkerStats;

pub(crate) use busy::{BUSY, Refusals, refuse};
use history::Recorder;
use shown::Shown;
use socket::Operators;

/// What is known of those who came.
#[derive(Default, Debug)]
struct Visits {
    /// HTTP requests answered.
    served: AtomicU64,
    /// Connections refused, because too many are open.
    refused: AtomicU64,
    /// Connections ended because they were too slow.
    late: AtomicU64,
    /// Connections ended because they spoke no HTTP, or too much of it, or broke.
    broken: AtomicU64,
}

/// What the listener and the socket share.
struct Admin {
    desk: Desk,
    shown: Shown,
    visits: Visits,
    /// Where several proxies agree: what this one is of them.
    losses: Arc<dyn Losses>,
    /// Of clients' requests and answers.
    memory: Arc<Memory>,
    /// The proxy is told to stop.
    shutdown: CancellationToken,
}

impl Visits {
    fn told(&self) -> Vec<(&'static str, u64)> {
        let all =
            [("served", &self.served), ("refused", &self.refused), ("late", &self.late), ("broken", &self.broken)];
        all.into_iter().map(|(result, count)| (result, count.load(Relaxed))).collect()
    }
}

impl Admin {
    fn around(&self) -> Around {
        let role = self.losses.role();
        let lease_held = role != Standing::SINGLE.role && lease::own().holds(Boot::now());
        Around {
            standing: Standing { role, lease_held },
            client_memory: self.memory.account(),
            visits: self.visits.told(),
            process: process::look(),
        }
    }
}

/// Where the control plane is asked, and what is known without it.
type Known = (Desk, Vec<Arc<WorkerStats>>, Arc<Memory>);

/// Serves whatever was bound, from when the runtime runs until it ends.
///
/// # Errors
///
/// The system refused to watch the sockets.
pub(crate) fn serve(
    runtime: &Handle,
    operators: OperatorListeners,
    ((desk, stats, memory), losses): (Known, Arc<dyn Losses>),
    reload: Option<Arc<Reload>>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let _entered = runtime.enter();
    if let Some(listener) = operators.socket {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        runtime
            .spawn(socket::accept_forever(listener, Operators { desk: desk.clone(), losses: losses.clone(), reload }));
    }
    if let Some(listener) = operators.http {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let recorder = Recorder::new(stats);
        let shown = Shown::new(recorder.history());
        runtime.spawn(recorder.record_forever());
        let admin = Admin { desk, shown, visits: Visits::default(), losses, memory, shutdown };
        runtime.spawn(http::accept_forever(listener, Arc::new(admin)));
    }
    Ok(())
}
