//! The real `resilver` process.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::client::Client;
use super::memcached::{is_in_state, pause, signal};
use super::port::Port;
use super::{wait_answering, wait_until};

/// The proxy under test. Dropping it kills the process (by pid); the log's tail is printed when a
/// test is failing.
pub struct Proxy {
    port: Port,
    child: Option<Child>,
    log: tempfile::NamedTempFile,
    pub args: Vec<String>,
    /// What `/etc/hosts` is for it.
    hosts: Option<PathBuf>,
    /// Of its environment.
    variables: Vec<(&'static str, PathBuf)>,
}

/// What `resync status` said.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub all: BTreeMap<String, String>,
}

impl Status {
    pub fn mirrored(&self) -> bool {
        self.all.get("mirrored").is_some_and(|v| v == "1")
    }

    pub fn mode(&self) -> &str {
        self.all.get("mode").map_or("", String::as_str)
    }

    /// `up`, `lost`, `copying`, …
    pub fn node(&self, addr: &str) -> &str {
        self.field(&format!("node:{addr}:state"))
    }

    /// Of the comparing under way, or the last one.
    pub fn verify(&self, name: &str) -> &str {
        self.field(&format!("verify:{name}"))
    }

    /// What resyncs do for clients' sake, and percent of the time that they may work.
    pub fn yielding(&self) -> (&str, &str) {
        (self.field("yield:state"), self.field("yield:percent"))
    }

    /// Of its last refill, or the one under way.
    pub fn kind(&self, addr: &str) -> &str {
        self.field(&format!("node:{addr}:kind"))
    }

    /// A figure of a node's resync; 0 while it has had none (then the lines are left out).
    pub fn node_number(&self, addr: &str, field: &str) -> u64 {
        let state = self.node(addr);
        let Some(value) = self.all.get(&format!("node:{addr}:{field}")) else {
            assert!(!matches!(state, "copying" | "handing_back"), "a node being copied to has no {field}: {self}");
            return 0;
        };
        value.parse().unwrap_or_else(|_| panic!("node:{addr}:{field} is no number: {value}"))
    }

    pub fn pair(&self, primary: &str, backup: &str, field: &str) -> &str {
        self.field(&format!("pair:{primary}|{backup}:{field}"))
    }

    fn field(&self, name: &str) -> &str {
        self.all.get(name).unwrap_or_else(|| panic!("`resync status` has no line {name}: {self}"))
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.all.iter().try_for_each(|(name, value)| write!(f, "\n    {name} {value}"))
    }
}

impl Proxy {
    /// The binary under test; `RESILVER_TEST_BIN` puts another in its place (to try the harness on
    /// something else).
    pub fn binary() -> PathBuf {
        std::env::var_os("RESILVER_TEST_BIN").map_or_else(|| env!("CARGO_BIN_EXE_resilver").into(), PathBuf::from)
    }

    /// Starts it with `args` on a port of its own and waits until it answers clients.
    pub fn start(args: &[String]) -> Proxy {
        Proxy::start_with(args, None)
    }

    /// As [`Self::start`]; with `hosts` in the place of its `/etc/hosts`, which takes a mount
    /// namespace of its own.
    pub fn start_with(args: &[String], hosts: Option<PathBuf>) -> Proxy {
        let mut proxy = Proxy::absent(args, hosts);
        proxy.spawn();
        proxy.wait_listening(Duration::from_secs(20));
        proxy
    }

    /// As [`Self::start`]; with these variables in its environment.
    pub fn start_where(args: &[String], variables: Vec<(&'static str, PathBuf)>) -> Proxy {
        let mut proxy = Proxy::absent(args, None);
        proxy.variables = variables;
        proxy.spawn();
        proxy.wait_listening(Duration::from_secs(20));
        proxy
    }

    fn absent(args: &[String], hosts: Option<PathBuf>) -> Proxy {
        Proxy {
            port: Port::reserve(),
            child: None,
            log: tempfile::NamedTempFile::new().expect("temporary file"),
            args: args.to_vec(),
            hosts,
            variables: Vec::new(),
        }
    }

    /// As [`Self::start`] of one that will serve nobody: waits until it takes connections.
    pub fn start_unready(args: &[String]) -> Proxy {
        let mut proxy = Proxy::absent(args, None);
        proxy.spawn();
        wait_until("resilver takes connections", super::DEADLINE, || Client::try_connect(&proxy.addr()).is_ok());
        proxy
    }

    /// From its next start on.
    pub fn set_variables(&mut self, variables: Vec<(&'static str, PathBuf)>) {
        self.variables = variables;
    }

    /// Starts it again if it has ended by itself.
    pub fn spawn_if_ended(&mut self) {
        let runs = self.child.as_mut().is_some_and(|child| child.try_wait().expect("wait").is_none());
        if !runs {
            self.spawn();
        }
    }

    /// Starts it (again). `RESILVER_TEST_IO_URING` is its `--io-uring`, for all tests: `make test`
    /// runs some of them with both.
    pub fn spawn(&mut self) {
        let log = File::options().append(true).open(self.log.path()).expect("the proxy's log");
        let mut command = match &self.hosts {
            Some(hosts) => super::names::command(hosts, &Proxy::binary()),
            None => Command::new(Proxy::binary()),
        };
        // Tests read the log as it is by default.
        command.env_remove("RUST_LOG");
        command.envs(self.variables.iter().cloned());
        command.args(["-l", "127.0.0.1", "-p", &self.port.number.to_string()]);
        if let Some(mode) = std::env::var_os("RESILVER_TEST_IO_URING") {
            command.arg("--io-uring").arg(mode);
        }
        command.args(&self.args);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("dup")).stderr(log);
        self.child = Some(command.spawn().expect("start resilver"));
    }

    pub fn wait_listening(&mut self, deadline: Duration) {
        let (addr, args, log) = (self.addr(), &self.args, self.log.path());
        let told = || format!("resilver {args:?}, end of its log:\n{}", tail(&read_log(log), 40));
        wait_answering(&addr, &mut self.child, deadline, told);
    }

    pub fn addr(&self) -> String {
        self.port.addr()
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.addr())
    }

    pub fn status(&self) -> Status {
        let lines = self.client().stat_lines("resync status").unwrap_or_else(|e| panic!("`resync status`: {e}"));
        let count = lines.len();
        let all: BTreeMap<_, _> = lines.into_iter().collect();
        assert_eq!(all.len(), count, "a name stands twice in `resync status`");
        Status { all }
    }

    /// A field of a server in `stats servers`; empty where it is left out.
    pub fn server(&self, addr: &str, field: &str) -> String {
        let name = format!("{addr}:{field}");
        let stats = self.client().stats("servers").expect("stats servers");
        stats.into_iter().find(|(n, _)| *n == name).map_or(String::new(), |(_, value)| value)
    }

    /// A number of `stats`.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.client().stats("").expect("stats");
        let value = stats.into_iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no stat {name}")).1;
        value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}"))
    }

    /// Waits until every pair is mirrored.
    pub fn wait_mirrored(&self, deadline: Duration) {
        self.wait_status("every pair mirrored", deadline, Status::mirrored);
    }

    /// Polls `resync status` until `holds`.
    pub fn wait_status(&self, what: &str, deadline: Duration, holds: impl Fn(&Status) -> bool) -> Status {
        let begun = Instant::now();
        let mut client = self.client();
        loop {
            let lines = client.stat_lines("resync status").unwrap_or_else(|e| panic!("`resync status`: {e}"));
            let status = Status { all: lines.into_iter().collect() };
            if holds(&status) {
                return status;
            }
            assert!(begun.elapsed() < deadline, "waited {deadline:?} in vain for: {what}. Status:{status}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the proxy calls the node `state`.
    pub fn wait_node(&self, addr: &str, state: &str) -> Status {
        self.wait_status(&format!("node {addr} {state}"), super::DEADLINE, |s| s.node(addr) == state)
    }

    /// An operator's word that must be answered with `OK`.
    pub fn operator(&self, command: &str) {
        let answer = self.client().raw_command(command);
        assert_eq!(answer.as_deref(), Ok("OK"), "`{command}`");
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        pause(self.pid());
    }

    /// SIGCONT.
    pub fn resume(&self) {
        signal(self.pid(), "CONT");
    }

    pub fn terminate(&self) {
        signal(self.pid(), "TERM");
    }

    /// SIGTERM, then its exit status.
    pub fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.wait_exit()
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running proxy");
        let mut status = None;
        wait_until("resilver to end after SIGTERM", super::DEADLINE, || {
            status = child.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("just waited for it")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill resilver");
            child.wait().expect("reap resilver");
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running proxy").id()
    }

    pub fn resident_bytes(&self) -> u64 {
        let pid = self.pid();
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("/proc");
        let pages: u64 = statm.split(' ').nth(1).and_then(|w| w.parse().ok()).expect("resident pages");
        pages * 4096
    }

    /// The log with everything in it that was said before now. A thread of the proxy's own writes
    /// it, later than a client may learn of the same thing: SIGUSR1, which only makes it say so,
    /// marks where now is. What a proxy said just before it was killed may be lost.
    pub fn log(&self) -> String {
        const MARK: &str = "SIGUSR1 ignored";
        let Some(child) = &self.child else { return self.log_so_far() };
        let marks = || self.log_so_far().matches(MARK).count();
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        let has_ended = || is_in_state(&process, 'Z');
        let before = marks();
        signal(child.id(), "USR1");
        super::wait_until("the proxy's log to be written", super::DEADLINE, || marks() > before || has_ended());
        self.log_so_far()
    }

    /// What is written of the log, for those that poll.
    pub fn log_so_far(&self) -> String {
        read_log(self.log.path())
    }

    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log_so_far(), lines)
    }
}

fn read_log(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let died = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
        if std::thread::panicking() {
            if let Some(status) = died {
                eprintln!("*** resilver had ended by itself: {status}");
            }
            eprintln!("*** resilver {:?}, end of its log:\n{}\n***", self.args, self.log_tail(400));
        }
        if died.is_none() {
            self.kill();
        }
    }
}
