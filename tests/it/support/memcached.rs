//! One real memcached process, which can be killed, restarted on its port, stopped and continued.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::client::Client;
use super::forwarder::Forwarder;
use super::network::Cable;
use super::port::Port;
use super::{wait_answering, wait_until};

/// A node. Dropping it kills the process (by pid).
#[derive(Debug)]
pub struct Memcached {
    /// Where it listens.
    host: String,
    port: Port,
    args: Vec<String>,
    child: Option<Child>,
    log: tempfile::NamedTempFile,
    /// The proxy reaches it through this.
    forwarder: Option<Forwarder>,
    /// The proxy knows it by this host name.
    name: Option<String>,
    /// It runs in the network namespace of this process.
    network: Option<String>,
}

impl Memcached {
    pub fn start(args: &[&str]) -> Memcached {
        let mut node = Memcached::absent(args);
        node.restart();
        node
    }

    /// One at the far end of a cable, where it has this address.
    pub fn beyond(cable: &Cable, host: &str) -> Memcached {
        let mut node = Memcached::absent(&[]);
        (node.host, node.network) = (host.to_owned(), Some(cable.far()));
        node.restart();
        node
    }

    /// A node that has a port but no process yet: dialling it is refused.
    pub fn absent(args: &[&str]) -> Memcached {
        Memcached {
            host: "127.0.0.1".to_owned(),
            port: Port::reserve(),
            args: args.iter().map(|a| a.to_string()).collect(),
            child: None,
            log: tempfile::NamedTempFile::new().expect("temporary file"),
            forwarder: None,
            name: None,
            network: None,
        }
    }

    /// Another one on the same port of another loopback address, so that one name may lead to
    /// either.
    pub fn twin(&self, host: &str) -> Memcached {
        let mut twin = Memcached::absent(&[]);
        twin.host = host.to_owned();
        twin.port = self.port.clone();
        twin.args.clone_from(&self.args);
        twin.name.clone_from(&self.name);
        twin.restart();
        twin
    }

    pub fn addr(&self) -> String {
        format!("{}:{}", self.host, self.port.number)
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The same, kept also by whoever listens on it at another address.
    pub fn reserved(&self) -> Port {
        self.port.clone()
    }

    /// From now on [`Self::known_as`] is a forwarder's address.
    pub fn forwarded(mut self) -> Memcached {
        self.forwarder = Some(Forwarder::start(self.addr()));
        self
    }

    /// The address that the proxy is given; tests themselves go past any forwarder.
    pub fn known_as(&self) -> String {
        match (&self.forwarder, &self.name) {
            (Some(forwarder), _) => forwarder.addr(),
            (None, Some(name)) => format!("{name}:{}", self.port.number),
            (None, None) => self.addr(),
        }
    }

    /// From now on [`Self::known_as`] has this host name.
    pub fn named(mut self, name: &str) -> Memcached {
        self.name = Some(name.to_owned());
        self
    }

    pub fn network(&self) -> &Forwarder {
        self.forwarder.as_ref().expect("a node made with `forwarded`")
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// SIGKILL, and the process is reaped when this returns.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill memcached");
            child.wait().expect("reap memcached");
        }
    }

    /// Kills what runs and starts an empty memcached on the same port; returns when it answers.
    pub fn restart(&mut self) {
        self.spawn();
        self.wait_answering(Duration::from_secs(20));
    }

    /// As [`Self::restart`], without waiting for the first answer.
    pub fn spawn(&mut self) {
        self.kill();
        let mut command = match &self.network {
            Some(holder) => {
                // It becomes memcached, and keeps its pid.
                let mut command = Command::new("nsenter");
                command.args(["-t", holder, "-n", "memcached"]);
                command
            }
            None => Command::new("memcached"),
        };
        command.args(["-l", &self.host, "-p", &self.port.number.to_string(), "-U", "0", "-c", "4096"]);
        if nix::unistd::geteuid().is_root() {
            command.args(["-u", "nobody"]);
        }
        if !self.args.iter().any(|a| a == "-m") {
            command.args(["-m", "256"]);
        }
        if !self.args.iter().any(|a| a == "-t") {
            command.args(["-t", "2"]);
        }
        let log = File::create(self.log.path()).expect("memcached's log");
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("start memcached (is it installed?)"));
    }

    pub fn set_args(&mut self, args: &[&str]) {
        self.args = args.iter().map(|a| a.to_string()).collect();
    }

    pub fn wait_answering(&mut self, deadline: Duration) {
        let (addr, log) = (self.addr(), self.log.path());
        let told = || format!("memcached's log: {}", std::fs::read_to_string(log).unwrap_or_default());
        wait_answering(&addr, &mut self.child, deadline, told);
    }

    /// SIGSTOP: the kernel still accepts connections and bytes, nobody answers. Every thread has
    /// stopped when this returns.
    pub fn pause(&self) {
        pause(self.pid());
    }

    /// Bytes that wait in its sockets and were not read by it.
    pub fn unread(&self) -> u64 {
        self.waiting(|[local, _]| local, |queues| queues.split(':').nth(1))
    }

    /// Bytes that other kernels' sockets hold for it, of processes that live or not, and its own
    /// has not taken.
    pub fn undelivered(&self) -> u64 {
        self.waiting(|[_, remote]| remote, |queues| queues.split(':').next())
    }

    /// In the sockets of which this end is its own.
    fn waiting(&self, end: fn([&str; 2]) -> &str, queue: fn(&str) -> Option<&str>) -> u64 {
        let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.pid())).expect("its sockets");
        let own = format!(":{:04X}", self.port());
        let bytes = |line: &str| {
            let mut words = line.split_whitespace().skip(1);
            let (local, remote, _, queues) = (words.next()?, words.next()?, words.next()?, words.next()?);
            let bytes = u64::from_str_radix(queue(queues)?, 16).ok()?;
            end([local, remote]).ends_with(&own).then_some(bytes)
        };
        sockets.lines().skip(1).filter_map(bytes).sum()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running memcached").id()
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Starts a memcached with `-e` again that was ended by [`Self::end_gracefully`].
    pub fn restart_warm(&mut self) {
        // It refuses a memory that was left in the second it starts in.
        std::thread::sleep(Duration::from_millis(2100));
        self.restart();
        assert_ne!(
            self.stat("curr_items"),
            "0",
            "the memory is not the old one: {:?}",
            std::fs::read_to_string(self.log.path())
        );
    }

    /// SIGUSR1 makes a memcached with `-e` write its memory's state down and end; a start with the
    /// same file finds it again.
    pub fn end_gracefully(&mut self) {
        self.signal("USR1");
        let mut child = self.child.take().expect("a running memcached");
        wait_until("memcached to end after SIGUSR1", super::DEADLINE, || child.try_wait().expect("wait").is_some());
    }

    fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// A connection past the proxy.
    pub fn client(&self) -> Client {
        Client::connect(&self.addr())
    }

    /// One of memcached's own `stats`.
    pub fn stat(&self, name: &str) -> String {
        let stats = self.client().stats("").expect("stats of a node");
        stats.into_iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no stat {name}")).1
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        self.kill();
    }
}

/// SIGSTOP; every thread has stopped when this returns, and kill(2) itself returns earlier.
pub fn pause(pid: u32) {
    signal(pid, "STOP");
    let tasks = format!("/proc/{pid}/task");
    wait_until("every thread to stop", super::DEADLINE, || {
        let stopped = |task: std::io::Result<std::fs::DirEntry>| task.is_ok_and(|t| is_in_state(&t.path(), 'T'));
        std::fs::read_dir(&tasks).is_ok_and(|mut all| all.all(stopped))
    });
}

/// Whether a process or thread, by its folder in /proc, is in this state of proc(5): T stopped, Z
/// ended and not reaped.
pub fn is_in_state(task: &Path, state: char) -> bool {
    let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(state))
}

/// Sends a signal to a child of ours that has not been reaped, so the pid cannot be anyone else's.
pub fn signal(pid: u32, name: &str) {
    let signal: Signal = format!("SIG{name}").parse().expect("a signal's name");
    let child = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(child, signal).unwrap_or_else(|error| panic!("SIG{name} to {pid}: {error}"));
}
