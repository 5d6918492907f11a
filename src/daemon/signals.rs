//! Signals: the first SIGTERM or SIGINT stops in good order, the second at once; SIGHUP is ignored.

use std::io;
use std::sync::mpsc;
use std::thread;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a process ended by SIGTERM, as shells show it.
const EXIT_TERMINATED: i32 = 128 + 15;
/// Exit code of a process ended by SIGINT.
const EXIT_INTERRUPTED: i32 = 128 + 2;

/// The caught signals, on a thread of their own: the worker threads may be what hangs when somebody insists.
#[derive(Debug)]
pub struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Catches the signals from here on; until [`Signals::watch`] they wait.
    ///
    /// # Errors
    ///
    /// The system refused.
    pub fn catch() -> io::Result<Signals> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (terminate, interrupt, hangup) = {
            let _inside = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?)
        };
        Ok(Signals { runtime, terminate, interrupt, hangup })
    }

    /// Starts the thread. At the first signal it cancels `shutdown`; at the second it runs `at_once` (remove files, say
    /// goodbye) and ends the process.
    ///
    /// # Errors
    ///
    /// The thread could not be started.
    pub fn watch(self, shutdown: CancellationToken, at_once: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let Signals { runtime, mut terminate, mut interrupt, mut hangup } = self;
        let (started, running) = mpsc::channel();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let _ = started.send(());
            runtime.block_on(async move {
                loop {
                    let (name, code) = tokio::select! {
                        _ = terminate.recv() => ("SIGTERM", EXIT_TERMINATED),
                        _ = interrupt.recv() => ("SIGINT", EXIT_INTERRUPTED),
                        _ = hangup.recv() => {
                            tracing::info!("SIGHUP ignored: settings are read at the start only");
                            continue;
                        }
                    };
                    if shutdown.is_cancelled() {
                        tracing::warn!(signal = name, "stopping at once");
                        at_once();
                        std::process::exit(code);
                    }
                    tracing::info!(signal = name, "stopping: no new clients, finishing what is in flight");
                    shutdown.cancel();
                }
            });
        })?;
        running.recv().map_err(io::Error::other)
    }
}
