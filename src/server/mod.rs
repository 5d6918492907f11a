//! The daemon's core. Placeholder of the agreed signature until the real one is merged over it.

use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::daemon::Listeners;

/// Serves clients until `shutdown` is cancelled. Blocks.
///
/// # Errors
///
/// What the system refused.
pub fn run(settings: Settings, listeners: Listeners, shutdown: CancellationToken) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(shutdown.cancelled());
    drop((settings, listeners));
    Ok(())
}
