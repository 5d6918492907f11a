//! The log: one subscriber for the whole process.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use thiserror::Error;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};

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
        // Appended to, so that several runs share it and `copytruncate` of logrotate works.
        Some(path) => match OpenOptions::new().append(true).create(true).open(path) {
            Ok(file) => (Box::new(file) as Box<dyn io::Write + Send>, false),
            Err(cause) => return Err(LogError::File { path: path.clone(), cause }),
        },
        None => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            (Box::new(io::stderr()) as Box<dyn io::Write + Send>, io::stderr().is_terminal() && !plain)
        }
    };
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(MAX_WAITING_LINES).thread_name("log").finish(writer);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&settings.filter)?)
        .with_writer(writer)
        .with_ansi(colours)
        // A full disk must not turn every line into an error on stderr, which may be the same disk.
        .log_internal_errors(false);
    let installed = match settings.format {
        LogFormat::Text => subscriber.compact().try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    installed.map_err(|_| LogError::Twice)?;
    Ok(guard)
}
