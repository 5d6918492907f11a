//! What operators have beside the clients' listeners: a page, metrics and the state over HTTP,
//! which change nothing, and a unix socket that takes their commands.
//!
//! All of it runs on the control plane's thread, never on a worker's; with several proxies on the
//! fleet's thread, which continues when the lease has ended; with several pools on a thread of its
//! own. So everything sent here is bounded:
//! connections, bytes, time, and how often the control plane is asked ([`Shown`]).

mod busy;
mod history;
pub(crate) mod http;
mod process;
mod shown;
mod site;
mod socket;

use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Desk, Losses};
use crate::config::PoolName;
use crate::daemon::OperatorListeners;
use crate::lease;
use crate::proxy::Memory;
use crate::reload::Reload;
use crate::report::metrics::{Around, Standing};
use crate::stats::WorkerStats;
use crate::stats::closings::closed;

use history::Recorder;
use shown::{Metrics, Shown};
use socket::Operators;

/// A pool, as operators see it.
pub(crate) struct Panel {
    /// Its name, where the file has pools.
    pub(crate) pool: Option<PoolName>,
    /// Where the control plane is asked.
    pub(crate) desk: Desk,
    pub(crate) losses: Arc<dyn Losses>,
    /// What is known without it.
    pub(crate) stats: Vec<Arc<WorkerStats>>,
    /// The memory that clients' requests and answers take.
    pub(crate) memory: Arc<Memory>,
}

/// What the connections of the listener share.
struct Admin {
    /// The pools: at least one, which has no name where the settings have no pools.
    pools: Vec<Shown>,
    metrics: Metrics,
    /// The proxy is told to stop.
    shutdown: CancellationToken,
}

impl Admin {
    fn around(&self) -> Around {
        // Of several pools none is one of a fleet's.
        let role = self.pools.first().map_or(Standing::SINGLE.role, |shown| shown.losses.role());
        let lease_held = role != Standing::SINGLE.role && !lease::is_over();
        Around { standing: Standing { role, lease_held }, closed: closed(), process: process::look() }
    }
}

/// Serves whatever was bound, from when the runtime runs until it ends.
///
/// # Errors
///
/// The system refused to watch the sockets.
pub(crate) fn serve(
    runtime: &Handle,
    operators: OperatorListeners,
    panels: Vec<Panel>,
    reload: Option<Arc<Reload>>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let _entered = runtime.enter();
    if let Some(listener) = operators.socket {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        runtime.spawn(socket::accept_forever(listener, Operators::new(&panels, reload)));
    }
    if let Some(listener) = operators.http {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut pools = Vec::new();
        for panel in panels {
            let recorder = Recorder::new(panel.stats);
            pools.push(Shown::new(panel.pool, (panel.desk, panel.losses, panel.memory), recorder.history()));
            runtime.spawn(recorder.record_forever());
        }
        let admin = Admin { pools, metrics: Metrics::default(), shutdown };
        // Also while it stops: it says so.
        runtime.spawn(http::serve(listener, Arc::new(admin), CancellationToken::new()));
    }
    Ok(())
}

/// Serves them from a thread of its own, beside several pools, for as long as the process lives.
///
/// # Errors
///
/// The system refused a thread, or to watch the sockets.
pub(crate) fn serve_apart(
    operators: OperatorListeners,
    panels: Vec<Panel>,
    reload: Arc<Reload>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    serve(runtime.handle(), operators, panels, Some(reload), shutdown)?;
    std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(())
}
