//! Several pools in one process, each with a control plane, workers and servers of its own, on
//! threads of its own: what happens to one of them does not touch the others. They share what
//! belongs to the process: the log, what operators reach it by, and its beginning and end.

use std::io::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use tokio_util::sync::CancellationToken;

use crate::admin::{self, Panel};
use crate::config::{Plan, PoolName};
use crate::daemon::{Bound, Listeners, OperatorListeners, span_of, thread_of};
use crate::reload::Reload;
use crate::server;

/// What a pool tells.
enum Told {
    /// Nothing can keep it from serving any more.
    Ready,
    /// It has ended, or could not begin.
    Ended(String, Result<()>),
}

/// All of them, while they run.
struct Running {
    threads: Vec<JoinHandle<()>>,
    told: Receiver<Told>,
    /// A word for each that waits to begin.
    go: Vec<Sender<()>>,
    shutdown: CancellationToken,
}

/// Serves the clients of all pools until `shutdown` is cancelled and every pool has ended. Blocks.
/// `ready` is called when nothing can keep any of them from serving.
///
/// # Errors
///
/// Why a pool could not begin, with its name; then all end. What `ready` returns.
pub fn run(
    plan: Plan,
    bound: Bound,
    (shutdown, reload): (CancellationToken, Arc<Reload>),
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let (panels, panels_from) = channel();
    let names: Vec<Option<PoolName>> = plan.pools.iter().map(|settings| settings.pool.clone()).collect();
    let Bound { pools, operators, .. } = bound;
    let begun = begin(plan, pools, (&shutdown, &reload), panels);
    let (running, begun) = match begun {
        (running, Ok(())) => {
            let begun = running.all_are_ready();
            (running, begun)
        }
        other => other,
    };
    let begun = begun.and_then(|()| show(&names, &panels_from, operators, (reload, shutdown))).and_then(|()| ready());
    running.until_the_end(begun)
}

/// A thread for each. An error: the system refused one.
fn begin(
    plan: Plan,
    listeners: Vec<Listeners>,
    (shutdown, reload): (&CancellationToken, &Arc<Reload>),
    panels: Sender<Panel>,
) -> (Running, Result<()>) {
    let (tells, told) = channel();
    let mut running = Running { threads: Vec::new(), told, go: Vec::new(), shutdown: shutdown.clone() };
    for (settings, listeners) in plan.pools.into_iter().zip(listeners) {
        let (go, gone) = channel();
        let name = settings.pool.as_deref().unwrap_or_default().to_owned();
        let (tells, shutdown, shared) = (tells.clone(), shutdown.clone(), (panels.clone(), reload.clone()));
        let thread = Builder::new().name(thread_of(settings.pool.as_ref(), "pool")).spawn(move || {
            let _of_pool = span_of(settings.pool.as_ref()).entered();
            let is_ready = tells.clone();
            let ready = move || {
                let _ = is_ready.send(Told::Ready);
                gone.recv().map_err(|_| Error::other("another pool cannot begin"))
            };
            // A pool that says nothing at all would be waited for. Of builds whose panics unwind,
            // as in tests: a panic of the released program ends the process.
            let serves = || server::run_beside(settings, listeners, shutdown, shared, ready);
            let ended = catch_unwind(AssertUnwindSafe(serves));
            let ended = ended.unwrap_or_else(|_| Err(Error::other("its control plane panicked")));
            let _ = tells.send(Told::Ended(name, ended));
        });
        match thread {
            Ok(thread) => {
                running.threads.push(thread);
                running.go.push(go);
            }
            Err(error) => return (running, Err(error)),
        }
    }
    (running, Ok(()))
}

/// Operators see them in the order of the file.
fn show(
    names: &[Option<PoolName>],
    panels: &Receiver<Panel>,
    operators: OperatorListeners,
    (reload, shutdown): (Arc<Reload>, CancellationToken),
) -> Result<()> {
    let mut panels: Vec<Panel> = panels.try_iter().collect();
    panels.sort_by_key(|panel| names.iter().position(|name| *name == panel.pool));
    admin::serve_apart(operators, panels, reload, shutdown)
}

fn of_pool(name: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("pool {name}: {error}"))
}

impl Running {
    /// Returns when all are; an error is the first one's that cannot be.
    fn all_are_ready(&self) -> Result<()> {
        for _ in &self.threads {
            match self.told.recv() {
                Ok(Told::Ready) => {}
                Ok(Told::Ended(name, Err(error))) => return Err(of_pool(&name, &error)),
                Ok(Told::Ended(name, Ok(()))) => return Err(of_pool(&name, &Error::other("it has ended"))),
                Err(_) => return Err(Error::other("no pool is left")),
            }
        }
        Ok(())
    }

    /// All begin, unless something kept one of them from it; returns when all have ended. (One that
    /// ends with an error has a server that was silent before, and is a fleet's: then all end. What
    /// is over by itself is so because of `shutdown`.)
    fn until_the_end(self, begun: Result<()>) -> Result<()> {
        let Running { threads, told, go, shutdown } = self;
        let mut outcome = begun;
        if outcome.is_ok() {
            for pool in &go {
                // An error means that the thread has panicked; joining it reports that.
                let _ = pool.send(());
            }
        } else {
            shutdown.cancel();
        }
        drop(go);
        // The channel closes with the last thread.
        for word in told {
            let Told::Ended(name, ended) = word else { continue };
            shutdown.cancel();
            if let (Ok(()), Err(error)) = (&outcome, ended) {
                outcome = Err(of_pool(&name, &error));
            }
        }
        for thread in threads {
            // Its panic was caught and reported.
            let _ = thread.join();
        }
        outcome
    }
}
