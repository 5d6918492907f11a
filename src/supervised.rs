//! Regular reports to a service manager (systemd): the proxy's state in words and, if it has a
//! watchdog, that the proxy works. Each report asks the control plane: if that hangs, none is sent,
//! and the service manager ends the process.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use crate::daemon::Supervisor;
use crate::reload::Reload;

/// Between two words.
const PAUSE: Duration = Duration::from_secs(5);
/// So many in the time that it may be silent for.
const WORDS: u32 = 4;

/// Tells it from a thread of its own. `reload` knows the proxy.
///
/// # Errors
///
/// The system refused a thread.
pub fn tell(supervisor: Arc<Supervisor>, reload: Arc<Reload>, shutdown: CancellationToken) -> std::io::Result<()> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let pause = supervisor.watchdog.map_or(PAUSE, |most| PAUSE.min(most / WORDS));
    let words = async move {
        loop {
            let said = match reload.desk() {
                // It starts, or passes clients on to the active proxy.
                None => Some("WATCHDOG=1".to_owned()),
                Some(desk) => desk.report().await.map(|report| format!("WATCHDOG=1\nSTATUS={}", report.in_one_line())),
            };
            if let Some(said) = said {
                supervisor.tell(&said);
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        supervisor.tell("STOPPING=1\nSTATUS=finishing what is in flight");
    };
    std::thread::Builder::new().name("supervisor".to_owned()).spawn(move || runtime.block_on(words))?;
    Ok(())
}
