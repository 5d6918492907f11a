//! Going to the background without `fork`, which a process with threads cannot do safely.
//!
//! `resilver -d` starts its own binary again with the same arguments and one hidden flag, in a
//! session of its own. The child says over a pipe when it is ready; until then its stderr is its
//! parent's, so that every error is seen where the command was typed. The parent ends with the
//! child's verdict.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use thiserror::Error;

/// What the child writes once it serves.
const READY: &[u8] = b"ready\n";

/// Why the process is not in the background.
#[derive(Debug, Error)]
pub enum BackgroundError {
    /// A step of starting the child, or of cutting the ties to its parent, failed.
    #[error("cannot go to the background: {step}: {cause}")]
    System {
        step: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// The child ended before it was ready, and has said why on stderr.
    #[error("the process in the background ended before it was ready ({})", .0.map_or("by a signal".to_owned(), |code| format!("exit code {code}")))]
    Ended(Option<i32>),
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> BackgroundError {
    move |cause| BackgroundError::System { step, cause: cause.into() }
}

/// In the parent: starts the child and waits until it is ready. Returns its process id.
///
/// # Errors
///
/// The child could not be started, or ended; its exit code is in [`BackgroundError::Ended`].
pub fn start_in_background(arguments: impl IntoIterator<Item = OsString>) -> Result<u32, BackgroundError> {
    let program = std::env::current_exe().map_err(failed("finding the own program"))?;
    let (mut reader, writer) = io::pipe().map_err(failed("pipe"))?;
    let mut command = Command::new(program);
    // First: behind a `--` it would be no flag.
    command.arg("--background-child").args(arguments).stdin(Stdio::null()).stdout(writer);
    let mut child = command.spawn().map_err(failed("starting the own program"))?;
    // It holds our end of the pipe: the end of the file would never come.
    drop(command);
    let mut said = Vec::new();
    // The child closes its end when it is ready, or by ending.
    reader.read_to_end(&mut said).map_err(failed("waiting for the child"))?;
    if said == READY {
        return Ok(child.id());
    }
    let status = child.wait().map_err(failed("waiting for the child"))?;
    Err(BackgroundError::Ended(status.code()))
}

/// In the child, first of all: leaves the session of the terminal, so that closing it does not end
/// the daemon.
///
/// # Errors
///
/// `setsid` was refused.
pub fn detach() -> Result<(), BackgroundError> {
    nix::unistd::setsid().map(drop).map_err(failed("setsid"))
}

/// In the child, when it serves: tells the parent, and lets go of its terminal and directory.
///
/// # Errors
///
/// The parent is gone, or `/dev/null` cannot be opened.
pub fn tell_ready() -> Result<(), BackgroundError> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed("opening /dev/null"))?;
    std::env::set_current_dir("/").map_err(failed("leaving the directory"))?;
    let mut stdout = io::stdout();
    stdout.write_all(READY).and_then(|()| stdout.flush()).map_err(failed("telling the parent"))?;
    nix::unistd::dup2_stderr(&null).map_err(failed("closing stderr"))?;
    // Last: this is what the parent waits for.
    nix::unistd::dup2_stdout(&null).map_err(failed("closing stdout"))
}
