//! The servers and the proxy: processes of their own, ended however the demo ends.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Client;

/// A server or proxy that does not answer by then will not.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// What runs now. Drop is not enough: a panic aborts in release builds, and Ctrl-C ends the process
/// elsewhere.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Ends every process that the demo has started and not ended yet.
pub(crate) fn end_all() {
    let mut running = match RUNNING.lock() {
        Ok(running) => running,
        Err(poisoned) => poisoned.into_inner(),
    };
    for pid in running.drain(..) {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
}

/// A process of the demo's.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> io::Result<Process> {
        // A group of its own: Ctrl-C is for the demo, which ends the others itself.
        let child = command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        RUNNING.lock().map_err(|_| io::Error::other("the list of processes is broken"))?.push(child.id());
        Ok(Process { child })
    }

    /// For people who want to kill it themselves.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        // Off the list first: after wait() the number may be somebody else's.
        if let Ok(mut running) = RUNNING.lock() {
            running.retain(|pid| *pid != self.child.id());
        }
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Waits until it answers on `port`.
    fn wait_ready(mut self, name: &str, port: u16) -> io::Result<Process> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("{name} ended at once ({status})")));
            }
            match Client::connect(port).and_then(|mut client| client.version()) {
                Ok(_) => return Ok(self),
                Err(error) if start.elapsed() > START_TIMEOUT => {
                    return Err(io::Error::other(format!("{name} does not answer on port {port}: {error}")));
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Starts any other server and waits until it answers on `port`.
pub(crate) fn server(command: &mut Command, name: &str, port: u16) -> io::Result<Process> {
    let process = Process::start(command).map_err(|error| io::Error::other(format!("cannot start {name}: {error}")))?;
    process.wait_ready(name, port)
}

/// Starts a memcached, empty.
pub(crate) fn memcached(port: u16) -> io::Result<Process> {
    memcached_with(port, &[])
}

/// The same with more flags; of a flag given twice memcached takes the last.
pub(crate) fn memcached_with(port: u16, flags: &[&str]) -> io::Result<Process> {
    let mut command = Command::new("memcached");
    command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-U", "0", "-m", "256", "-t", "2"]);
    // It refuses to run as root.
    if nix::unistd::geteuid().is_root() {
        command.args(["-u", "nobody"]);
    }
    command.args(flags);
    let process = Process::start(&mut command).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::other("memcached is not installed; scripts/need-memcached tells how"),
        _ => error,
    })?;
    process.wait_ready("memcached", port)
}

/// Starts the proxy in front of them.
pub(crate) fn resilver(
    program: &Path,
    (port, admin): (u16, u16),
    primaries: &[u16],
    backups: &[u16],
    log: &Path,
) -> io::Result<Process> {
    let mut command = resilver_command(program, port, primaries, backups);
    command.arg("--admin").arg(format!("127.0.0.1:{admin}"));
    server(command.arg("--log-file").arg(log), &program.display().to_string(), port)
}

/// What `resilver status` says of the proxy.
pub(crate) fn status(program: &Path, port: u16) -> io::Result<String> {
    let output = Command::new(program).args(["status", "--proxy", &format!("127.0.0.1:{port}")]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Below 3 the exit code says how the proxy is.
    match output.status.code() {
        Some(0..=2) => Ok(text),
        _ => Err(io::Error::other(format!("resilver status: {}", String::from_utf8_lossy(&output.stderr).trim_end()))),
    }
}

/// The proxy's command line.
pub(crate) fn resilver_command(program: &Path, port: u16, primaries: &[u16], backups: &[u16]) -> Command {
    let mut command = Command::new(program);
    command.args(["-l", "127.0.0.1", "-p", &port.to_string()]);
    for (flag, ports) in [("-s", primaries), ("-b", backups)] {
        for port in ports {
            command.args([flag, &format!("127.0.0.1:{port}")]);
        }
    }
    command
}

/// Whether nobody listens on a port of this machine.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The first `count` free ports from `first` on. Not the system's ephemeral ones: while a server is
/// dead, somebody's outgoing connection could sit on its port.
pub(crate) fn free_ports(first: u16, count: usize) -> Vec<u16> {
    (first..first.saturating_add(1_000)).filter(|port| is_free(*port)).take(count).collect()
}
