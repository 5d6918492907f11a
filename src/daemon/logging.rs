//! The log: one subscriber for the whole process.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError};

use thiserror::Error;
use tracing::Span;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings, PoolName};

use super::log_lines::{Lost, Next, Target, Writer};

/// Why there is no log.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file cannot be opened.
    #[error("cannot write log file {}: {cause}; give another --log-file", .path.display())]
    File {
        /// `--log-file`.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The filter was not understood; the command line checks it, so this is for other callers.
    #[error("log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Somebody has set up a log already.
    #[error("the log was set up twice")]
    Twice,
}

/// Lines that may wait for a slow disk or a pipe that nobody reads; more are lost.
const MAX_WAITING_LINES: usize = 16 * 1024;

/// Bytes of a thread's name that the system keeps.
const THREAD_NAME_MAX: usize = 15;

/// The log of this process, for [`open_log`].
struct Log {
    next: Next,
    lost: Arc<Lost>,
    filter: Box<dyn Fn(EnvFilter) + Send + Sync>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Appended to, so that several runs share it and `copytruncate` of logrotate works.
fn open(path: &Path) -> Result<Writer, LogError> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    let file = opened.map_err(|cause| LogError::File { path: path.to_owned(), cause })?;
    Ok(Box::new(file))
}

/// A log that is not used yet.
pub(crate) struct OpenedLog {
    writer: Writer,
    filter: EnvFilter,
}

/// Opens the log's file anew (it may have been moved away, or be another one).
///
/// # Errors
///
/// The file cannot be opened.
pub(crate) fn open_log(settings: &LogSettings) -> Result<OpenedLog, LogError> {
    let writer = match &settings.file {
        Some(path) => open(path)?,
        None => Box::new(io::stderr()),
    };
    Ok(OpenedLog { writer, filter: EnvFilter::try_new(&settings.filter)? })
}

impl OpenedLog {
    /// What is logged goes there from now on, as much as the settings ask for.
    pub(crate) fn put_in_place(self) {
        if let Some(log) = LOG.get() {
            *log.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.writer);
            (log.filter)(self.filter);
        }
    }
}

/// Sets up the log of this process. Everything goes to stderr, because stdout belongs to `-d`'s
/// handshake.
///
/// A thread of its own does the writing, and loses lines rather than keep anybody waiting: a write
/// to a busy disk was seen to take 30 s, in which nobody noticed dead nodes, and a memcached whose
/// key list was not read meanwhile froze too. Keep what is returned until the end of the process;
/// dropping it writes what still waits.
///
/// # Errors
///
/// The file cannot be opened, or a log was set up before.
pub fn start_logging(settings: &LogSettings) -> Result<WorkerGuard, LogError> {
    let (writer, colours) = match &settings.file {
        Some(path) => (open(path)?, false),
        None => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            (Box::new(io::stderr()) as Writer, io::stderr().is_terminal() && !plain)
        }
    };
    let (next, lost) = (Next::default(), Arc::new(Lost::default()));
    let target = Target::new(writer, next.clone(), lost.clone());
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(MAX_WAITING_LINES).thread_name("log").finish(target);
    lost.also_of(writer.error_counter());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&settings.filter)?)
        .with_writer(writer)
        .with_ansi(colours)
        // A full disk must not turn every line into an error on stderr, which may be the same disk.
        .log_internal_errors(false);
    let (installed, filter): (_, Box<dyn Fn(EnvFilter) + Send + Sync>) = match settings.format {
        LogFormat::Text => {
            let subscriber = subscriber.compact().with_filter_reloading();
            let handle = subscriber.reload_handle();
            // `reload` fails only after the log is gone, at the end of the process.
            (subscriber.try_init(), Box::new(move |filter| drop(handle.reload(filter))))
        }
        LogFormat::Json => {
            let subscriber = subscriber.json().flatten_event(true).with_filter_reloading();
            let handle = subscriber.reload_handle();
            (subscriber.try_init(), Box::new(move |filter| drop(handle.reload(filter))))
        }
    };
    installed.map_err(|_| LogError::Twice)?;
    let _ = LOG.set(Log { next, lost, filter });
    Ok(guard)
}

/// Lines of the log that were lost, because they could not be written.
pub(crate) fn lost_log_lines() -> u64 {
    LOG.get().map_or(0, |log| log.lost.lines())
}

/// A thread's name on the system's lists, which show [`THREAD_NAME_MAX`] bytes: with the first
/// letters of the pool's in front, where it has a name.
pub(crate) fn thread_of(pool: Option<&PoolName>, thread: &str) -> String {
    // A pool's name is ASCII, so characters are bytes.
    let room = THREAD_NAME_MAX.saturating_sub(thread.len() + 1);
    match pool.map(|name| name.chars().take(room).collect::<String>()) {
        Some(first) if !first.is_empty() => format!("{first}:{thread}"),
        _ => thread.to_owned(),
    }
}

/// What names a pool in the log, where it has a name.
pub fn span_of(pool: Option<&PoolName>) -> Span {
    // At the level of errors, so that no filter removes the name.
    pool.map_or_else(Span::none, |name| tracing::error_span!("pool", pool = %name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_named_after_its_pool_as_far_as_there_is_room() {
        let of = |pool: &str, thread| thread_of(Some(&PoolName::from(pool)), thread);
        assert_eq!(of("sessions", "worker-0"), "sessio:worker-0");
        assert_eq!(of("near", "timekeeper"), "near:timekeeper");
        assert_eq!(of("a", "worker-17"), "a:worker-17");
        assert_eq!(of("near", "exactly-14-byt"), "exactly-14-byt");
        assert_eq!(thread_of(None, "worker-0"), "worker-0");
    }
}
