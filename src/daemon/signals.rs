//! Signals: the first SIGTERM, SIGINT or SIGQUIT stops in good order, the second at once. Those
//! that by default end a process and that somebody may send without meaning that are ignored;
//! docs/operating.md has the list, and what is left alone.

use std::future::poll_fn;
use std::io;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;

use nix::sys::signal::Signal as Number;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What stops the proxy, and the exit code of a process that it ends, as shells show it. (SIGQUIT
/// is a slip of the finger beside Ctrl-C, and what some supervisors mean by a quiet stop; whoever
/// wants a core has SIGABRT.)
const STOPPING: [(&str, SignalKind, i32); 3] = [
    ("SIGTERM", SignalKind::terminate(), 128 + 15),
    ("SIGINT", SignalKind::interrupt(), 128 + 2),
    ("SIGQUIT", SignalKind::quit(), 128 + 3),
];

/// What is logged and changes nothing. (SIGPIPE is ignored by Rust itself.)
const IGNORED: [(&str, SignalKind, &str); 8] = [
    // Other daemons rotate logs or restart by them.
    ("SIGUSR1", SignalKind::user_defined1(), "it means nothing here"),
    ("SIGUSR2", SignalKind::user_defined2(), "it means nothing here"),
    ("SIGALRM", SignalKind::alarm(), "no timer of this process sends it"),
    ("SIGVTALRM", SignalKind::from_raw(Number::SIGVTALRM as i32), "no timer of this process sends it"),
    ("SIGPROF", SignalKind::from_raw(Number::SIGPROF as i32), "no timer of this process sends it"),
    ("SIGIO", SignalKind::io(), "nothing here asks for it"),
    ("SIGPWR", SignalKind::from_raw(Number::SIGPWR as i32), "who stops the machine stops this process too"),
    // The write fails all the same, and whoever wrote deals with that.
    ("SIGXFSZ", SignalKind::from_raw(Number::SIGXFSZ as i32), "a file has reached the limit of its size (ulimit -f)"),
];

/// The caught signals, on a thread of their own: the worker threads may be what hangs when somebody
/// insists.
#[derive(Debug)]
pub struct Signals {
    runtime: Runtime,
    stopping: Vec<Caught<i32>>,
    ignored: Vec<Caught<&'static str>>,
    reloading: Signal,
}

/// A signal's name, what is to be known of it, and where it comes in.
type Caught<T> = (&'static str, T, Signal);

fn catch<T: Copy>(signals: &[(&'static str, SignalKind, T)]) -> io::Result<Vec<Caught<T>>> {
    signals.iter().map(|&(name, kind, about)| Ok((name, about, signal(kind)?))).collect()
}

/// Waits for the next one of them.
async fn next<T: Copy>(caught: &mut [Caught<T>]) -> (&'static str, T) {
    poll_fn(|context| {
        let came = caught
            .iter_mut()
            .find_map(|(name, about, signal)| signal.poll_recv(context).is_ready().then_some((*name, *about)));
        came.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

impl Signals {
    /// Catches the signals from here on; until [`Signals::watch`] they wait.
    ///
    /// # Errors
    ///
    /// The system refused.
    pub fn catch() -> io::Result<Signals> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stopping, ignored, reloading) = {
            let _inside = runtime.enter();
            (catch(&STOPPING)?, catch(&IGNORED)?, signal(SignalKind::hangup())?)
        };
        Ok(Signals { runtime, stopping, ignored, reloading })
    }

    /// Starts the thread. At SIGHUP it does what `reload` makes, one after the other. At the first
    /// signal that stops it cancels `shutdown`; at the second it runs `at_once` (remove files, say
    /// goodbye) and ends the process.
    ///
    /// # Errors
    ///
    /// The thread could not be started.
    pub fn watch<R: Future<Output = ()> + Send + 'static>(
        self,
        shutdown: CancellationToken,
        reload: impl Fn() -> R + Send + 'static,
        at_once: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let Signals { runtime, mut stopping, mut ignored, mut reloading } = self;
        let (started, running) = mpsc::channel();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let _ = started.send(());
            runtime.block_on(async move {
                let mut heard = false;
                loop {
                    let (name, code) = tokio::select! {
                        stop = next(&mut stopping) => stop,
                        _ = reloading.recv() => {
                            tracing::info!("SIGHUP: the settings are read again");
                            // In a task, so that a stop is heard while it runs.
                            tokio::spawn(reload());
                            continue;
                        }
                        (name, why) = next(&mut ignored) => {
                            tracing::info!("{name} ignored: {why}");
                            continue;
                        }
                    };
                    if insists(&mut heard, &shutdown) {
                        tracing::warn!(signal = name, "stopping at once");
                        at_once();
                        std::process::exit(code);
                    }
                    tracing::info!(signal = name, "stopping: no new clients, finishing what is in flight");
                }
            });
        })?;
        running.recv().map_err(io::Error::other)
    }
}

/// Whether a signal that stops is not the first that was `heard`; that one cancels `shutdown`,
/// which may be cancelled already: a pool that ends by itself, and a hand-over, stop the proxy too.
fn insists(heard: &mut bool, shutdown: &CancellationToken) -> bool {
    shutdown.cancel();
    std::mem::replace(heard, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_signal_insists_whatever_else_has_stopped_the_proxy() {
        for stopped in [false, true] {
            let (mut heard, shutdown) = (false, CancellationToken::new());
            if stopped {
                shutdown.cancel();
            }
            assert!(!insists(&mut heard, &shutdown) && shutdown.is_cancelled(), "{stopped}");
            assert!(insists(&mut heard, &shutdown), "{stopped}");
        }
    }
}
