//! `-d`: the process in the background, and its pid file.

use std::net::TcpListener;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{EXIT_OS, SERVER, free_port, is_alive, limited, path, resilver, text, until};

/// A resilver in the background, ended at the end of the test whatever happens.
pub(super) struct Daemon {
    pub(super) pid: i32,
}

impl Daemon {
    /// Runs `resilver -d`; the process is the one that the pid file names.
    pub(super) fn start(arguments: &[&str], pid_file: &Path) -> Daemon {
        let output = resilver().args(SERVER).arg("-d").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        // No waiting: when the parent ends, everything is ready.
        Daemon { pid: std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap() }
    }

    pub(super) fn end(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap();
        until("the daemon ends", || !is_alive(self.pid));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if is_alive(self.pid) {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

#[test]
fn goes_to_the_background_with_a_pid_file() {
    let dir = TempDir::new().unwrap();
    let ((_, log_text), (pid_file, pid_text)) = (path(&dir, "log"), path(&dir, "pid"));
    let port = free_port();
    let arguments = ["-p", &port.to_string(), "--pid-file", &pid_text, "--log-file", &log_text];
    let daemon = Daemon::start(&arguments, &pid_file);
    let pid = daemon.pid;
    assert!(is_alive(pid));
    std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens when the parent has ended");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string(), "it leads a session of its own");
    for stream in 0..=2 {
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap(), Path::new("/dev/null"));
    }

    // A second one refuses, and says so where it was started.
    let other_port = free_port().to_string();
    let second = resilver().args(SERVER).args(["-d", "-p", &other_port, "--pid-file", &pid_text]).output().unwrap();
    assert_eq!(second.status.code(), Some(EXIT_OS));
    let message = format!("already running as process {pid}");
    assert!(text(&second.stderr).contains(&message), "{}", text(&second.stderr));
    assert!(pid_file.exists() && is_alive(pid));

    daemon.end(Signal::SIGTERM);
    assert!(!pid_file.exists());
    assert!(std::fs::read_to_string(dir.path().join("log")).unwrap().contains("stopped"));
}

/// Also what goes wrong last, where threads are started: here the address space has no room for so
/// many stacks.
#[test]
fn what_keeps_a_daemon_from_serving_is_said_where_it_was_started() {
    let dir = TempDir::new().unwrap();
    let (pid_file, pid_text) = path(&dir, "pid");
    let port = free_port().to_string();
    // Large stacks, so that what else needs memory finds some where one more does not.
    let output = limited("ulimit -v 1048576")
        .env("RUST_MIN_STACK", (64 << 20).to_string())
        .env("MALLOC_ARENA_MAX", "1")
        .args(SERVER)
        .args(["-d", "-p", &port, "--pid-file", &pid_text, "--threads", "64", "--io-uring", "off"])
        .output()
        .unwrap();
    let _daemon = std::fs::read_to_string(&pid_file).ok().map(|pid| Daemon { pid: pid.trim().parse().unwrap() });
    assert_eq!(output.status.code(), Some(EXIT_OS), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("cannot start the worker threads"), "{}", text(&output.stderr));
    assert!(!pid_file.exists());
}

#[test]
fn a_pid_file_of_a_killed_daemon_is_taken_over() {
    let dir = TempDir::new().unwrap();
    let (pid_file, pid_text) = path(&dir, "pid");
    let arguments = || vec!["-p".to_owned(), free_port().to_string(), "--pid-file".to_owned(), pid_text.clone()];
    let start = || {
        let arguments = arguments();
        Daemon::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &pid_file)
    };
    let first = start();
    first.end(Signal::SIGKILL);
    assert!(pid_file.exists());
    let second = start();
    assert_ne!(first.pid, second.pid);
    second.end(Signal::SIGTERM);
    assert!(!pid_file.exists());
}

#[test]
fn what_stops_the_background_process_is_told_in_the_foreground() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = TempDir::new().unwrap();
    let (pid_file, pid_text) = path(&dir, "pid");
    let output = resilver().args(SERVER).args(["-d", "-p", &port, "--pid-file", &pid_text]).output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_OS));
    assert!(text(&output.stderr).contains("cannot listen on"), "{}", text(&output.stderr));
    assert!(!pid_file.exists());
}

#[test]
fn a_pid_file_that_cannot_be_written_is_named() {
    let output = resilver().args(SERVER).args(["--pid-file", "/nonexistent/dir/pid"]).output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_OS));
    assert!(text(&output.stderr).contains("cannot write pid file /nonexistent/dir/pid"), "{}", text(&output.stderr));
    // On a full disk no file is left that names nobody.
    let dir = TempDir::new().unwrap();
    let (pid_file, pid_text) = path(&dir, "pid");
    let mut command = limited("trap '' XFSZ; ulimit -f 0");
    let output = command.args(SERVER).args(["-p", &free_port().to_string(), "--pid-file", &pid_text]).output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_OS));
    assert!(text(&output.stderr).contains("cannot write pid file"), "{}", text(&output.stderr));
    assert!(!pid_file.exists());
}
