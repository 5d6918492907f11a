//! The `resilver` program from outside: exit codes, messages, files, signals, privileges.
//!
//! No test needs a memcached: the servers named here do not exist, and a proxy starts without them.

mod background;
mod waiting;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use background::Daemon;

/// Longer than anything here takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(20);
/// A server that nobody runs: port 1 is tcpmux.
const SERVER: [&str; 2] = ["-s", "127.0.0.1:1"];

const EXIT_USAGE: i32 = 64;
const EXIT_OS: i32 = 71;

const PROGRAM: &str = env!("CARGO_BIN_EXE_resilver");

fn resilver() -> Command {
    clean(PROGRAM)
}

/// One under what `ulimit` is told: without `unsafe` a parent cannot set its child's limits, but a
/// shell can lower its own.
fn limited(ulimits: &str) -> Command {
    let mut command = clean("bash");
    command.args(["-c", &format!("{ulimits} && exec \"$0\" \"$@\""), PROGRAM]);
    command
}

fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_remove("RUST_LOG").env_remove("XDG_RUNTIME_DIR").stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    resilver().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A running resilver, ended at the end of the test whatever happens.
struct Running {
    child: Child,
}

impl Running {
    /// Starts one in the foreground and waits until `ready` is true.
    fn start(arguments: &[&str], ready: impl Fn() -> bool) -> Running {
        let child =
            resilver().args(SERVER).args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Running { child };
        until("resilver is ready", || {
            assert_eq!(running.child.try_wait().unwrap(), None, "it ended before it was ready");
            ready()
        });
        running
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the end: exit code and stderr.
    fn end(&mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_alive(pid: i32) -> bool {
    // A process that has ended and was not waited for by its (other) parent is dead for us too.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn path(dir: &TempDir, name: &str) -> (PathBuf, String) {
    let path = dir.path().join(name);
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn help_and_version_go_to_stdout() {
    for (flag, words) in
        [("-h", "magent"), ("--help", "Exit codes"), ("--version", env!("CARGO_PKG_VERSION")), ("-V", "resilver ")]
    {
        let output = output(&[flag]);
        assert_eq!(output.status.code(), Some(0), "{flag}");
        assert!(text(&output.stdout).contains(words), "{flag}");
        assert!(output.stderr.is_empty(), "{flag}");
    }
}

#[test]
fn all_errors_at_once_one_line_each() {
    let output = output(&["-p", "99999", "--timeout", "0", "--bogus", "-b", "b:2", "-b", "b:2", "--log-format", "xml"]);
    assert_eq!(output.status.code(), Some(EXIT_USAGE));
    assert!(output.stdout.is_empty());
    let stderr = text(&output.stderr);
    for words in
        ["no server was given", "-p/--port 99999", "--timeout 0", "--bogus", "stands twice", "--log-format xml"]
    {
        assert_eq!(stderr.lines().filter(|line| line.contains(words)).count(), 1, "{words}: {stderr}");
    }
    assert_eq!(stderr.lines().count(), 7, "{stderr}");
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = resilver().args(SERVER).args(["-p", &address.port().to_string()]).output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_OS));
    let stderr = text(&output.stderr);
    assert!(stderr.contains(&format!("cannot listen on {address}")) && stderr.contains("give another -p"), "{stderr}");
}

/// Threads share the port, proxies do not.
#[test]
fn each_thread_has_a_queue_of_its_own_and_a_second_proxy_none() {
    let port = free_port();
    let (port_text, hex) = (port.to_string(), format!(":{port:04X}"));
    // State 0A: listening.
    let queues = || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let listens = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words[1].ends_with(&hex) && words[3] == "0A"
        };
        table.lines().skip(1).filter(listens).count()
    };
    let arguments = ["-p", &port_text, "--threads", "3"];
    let mut first = Running::start(&arguments, || queues() == 3);
    let second = resilver().args(SERVER).args(arguments).output().unwrap();
    assert_eq!(second.status.code(), Some(EXIT_OS));
    assert!(text(&second.stderr).contains("give another -p"), "{}", text(&second.stderr));
    first.signal(Signal::SIGTERM);
    assert_eq!(first.end().0, Some(0));
}

#[test]
fn an_address_of_another_machine_is_named() {
    // TEST-NET-1 belongs to nobody.
    let output = resilver().args(SERVER).args(["-l", "192.0.2.1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_OS));
    assert!(text(&output.stderr).contains("must be an address of this machine"), "{}", text(&output.stderr));
}

#[test]
fn terminate_and_interrupt_stop_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let dir = TempDir::new().unwrap();
        let ((socket, socket_text), (pid, pid_text)) = (path(&dir, "s"), path(&dir, "pid"));
        let mut running = Running::start(&["-p", "0", "-f", &socket_text, "--pid-file", &pid_text], || socket.exists());
        until("the log says so", || std::fs::read_to_string(&pid).is_ok_and(|pid| !pid.is_empty()));
        // SIGHUP would end a process that does not care for it.
        until("signals are caught", || catches(running.child.id(), Signal::SIGHUP));
        running.signal(Signal::SIGHUP);
        running.signal(signal);
        let (code, log) = running.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("started") && log.contains(signal.as_str()) && log.contains("stopped"), "{log}");
        assert!(!log.contains('\x1b'), "colours without a terminal: {log}");
        assert!(!socket.exists() && !pid.exists());
    }
}

/// As a shell uses them, and man shows them.
#[test]
fn completions_and_the_manual_are_those_of_the_commands() {
    let script = format!(
        "source <({program} completions bash)\n\
         complete_for() {{ COMP_WORDS=(resilver \"$@\"); COMP_CWORD=$#; COMPREPLY=(); _resilver resilver \"${{!#}}\" \"\"; \
         echo \"${{COMPREPLY[@]}}\"; }}\n\
         complete_for st\ncomplete_for status --wa\ncomplete_for --leader-\n",
        program = env!("CARGO_BIN_EXE_resilver")
    );
    let completed = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(
        text(&completed.stdout),
        "status stats\n--watch\n--leader-timeout --leader-grace\n",
        "{}",
        text(&completed.stderr)
    );
    for (shell, part) in [("zsh", "#compdef resilver"), ("fish", "complete -c resilver")] {
        let said = output_of(&["completions", shell]);
        assert!(said.contains(part) && said.contains("check-config"), "{shell}: {said}");
    }
    let dir = TempDir::new().unwrap();
    assert_eq!(output_of(&["manual", dir.path().to_str().unwrap()]), "");
    let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let (daemon, status) = (page("resilver.1"), page("resilver-status.1"));
    assert!(daemon.contains("leader\\-timeout") && daemon.contains("resilver\\-status(1)"), "{daemon}");
    assert!(status.contains("\\fBresilver status\\fR") && status.contains("\\-\\-watch"), "{status}");
    assert_eq!(output(&["manual", "/nonexistent"]).status.code(), Some(1));
    assert_eq!(output(&["completions", "csh"]).status.code(), Some(2));
}

/// What a command prints that ends well.
fn output_of(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout).to_string()
}

/// What is sent by mistake ends nothing, nor does SIGHUP (what that does: tests/it/config.rs).
/// SIGQUIT stops as SIGTERM does.
#[test]
fn signals_that_mean_nothing_here_are_logged_and_ignored() {
    let dir = TempDir::new().unwrap();
    let (socket, socket_text) = path(&dir, "s");
    let mut running = Running::start(&["-p", "0", "-f", &socket_text], || socket.exists());
    let ignored = [
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGXFSZ,
    ];
    until("signals are caught", || catches(running.child.id(), Signal::SIGXFSZ));
    for signal in ignored.into_iter().chain([Signal::SIGPIPE, Signal::SIGHUP]) {
        running.signal(signal);
        let asked = output(&["ask", "--proxy", &socket_text, "version"]);
        assert_eq!(asked.status.code(), Some(0), "after {signal}: {}", text(&asked.stderr));
    }
    running.signal(Signal::SIGTSTP);
    running.signal(Signal::SIGCONT);
    running.signal(Signal::SIGQUIT);
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("SIGQUIT") && log.contains("stopped"), "{log}");
    for signal in ignored {
        assert!(log.contains(&format!("{signal} ignored")), "{signal}: {log}");
    }
    assert!(log.contains("SIGHUP: the settings are read again"), "{log}");
}

/// The kernel's way to say that a file may not grow any more: of a log that is the end of the log
/// alone.
#[test]
fn a_log_file_at_its_limit_ends_nothing() {
    let dir = TempDir::new().unwrap();
    let ((socket, socket_text), (log, log_text)) = (path(&dir, "s"), path(&dir, "log"));
    let mut command = limited("ulimit -f 4");
    command.args(SERVER).args(["-p", "0", "-f", &socket_text, "--log-file", &log_text]);
    let mut running = Running { child: command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap() };
    until("signals are caught", || socket.exists() && catches(running.child.id(), Signal::SIGXFSZ));
    let length = || std::fs::metadata(&log).map_or(0, |log| log.len());
    until("the log is full", || {
        running.signal(Signal::SIGUSR1);
        length() >= 4096
    });
    for _ in 0..20 {
        running.signal(Signal::SIGUSR1);
        assert_eq!(output(&["ask", "--proxy", &socket_text, "version"]).status.code(), Some(0));
    }
    assert_eq!(length(), 4096);
    // The next file that takes lines says that some are lost.
    std::fs::rename(&log, dir.path().join("log.1")).unwrap();
    running.signal(Signal::SIGHUP);
    until("the log says so", || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("lines of the log are lost"))
    });
    running.signal(Signal::SIGTERM);
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_unix_socket_has_the_mode_that_was_asked_for_whatever_the_umask() {
    for (umask, asked, mode) in
        [("000", None, 0o700), ("077", Some("666"), 0o666), ("022", Some("0770"), 0o770), ("000", Some("0"), 0)]
    {
        let dir = TempDir::new().unwrap();
        let (socket, socket_text) = path(&dir, "s");
        let mut command = limited(&format!("umask {umask}"));
        command
            .args(SERVER)
            .args(["-p", "0", "-f", &socket_text])
            .args(asked.map(|mode| ["-a", mode]).iter().flatten());
        let mut running = Running { child: command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap() };
        let found = || std::fs::symlink_metadata(&socket).map_or(u32::MAX, |found| found.mode() & 0o7777);
        until("signals are caught", || socket.exists() && catches(running.child.id(), Signal::SIGXFSZ));
        assert_eq!(found(), mode, "umask {umask}, -a {asked:?}");
        running.signal(Signal::SIGTERM);
        assert_eq!(running.end().0, Some(0));
    }
}

#[test]
fn ask_prints_answers_and_says_what_is_wrong() {
    let dir = TempDir::new().unwrap();
    let (socket, socket_text) = path(&dir, "s");
    let port = free_port().to_string();
    let _running =
        Running::start(&["-b", "127.0.0.1:2", "-l", "::1", "-p", &port, "-f", &socket_text], || socket.exists());
    for proxy in [socket_text.clone(), format!("[::1]:{port}")] {
        let ask = |command: &[&str]| {
            let said = resilver().args(["ask", "--proxy", &proxy]).args(command).output().unwrap();
            (said.status.code(), text(&said.stdout), text(&said.stderr))
        };
        let (code, status, _) = ask(&["resync", "status"]);
        assert!(code == Some(0) && status.lines().any(|line| line == "mode auto"), "{status}");
        let (code, version, _) = ask(&["version"]);
        assert!(code == Some(0) && version.starts_with("VERSION "), "{version}");
        let (code, none, why) = ask(&["resync", "nosuch:1"]);
        assert!(code == Some(1) && none.is_empty() && why.contains("unknown node or word"), "{why}");
        let (code, _, why) = ask(&["set", "k", "0", "0", "1"]);
        assert!(code == Some(2) && why.contains("no operator's command"), "{why}");
    }
    let nobody = output(&["ask", "--proxy", "127.0.0.1:1", "version"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("127.0.0.1:1: Connection refused"), "{}", text(&nobody.stderr));
}

/// Whether a process has a handler for a signal, by the bit mask that Linux shows.
fn catches(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_owned();
    u64::from_str_radix(&mask, 16).is_ok_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
}

#[test]
fn the_log_can_be_json_and_go_to_a_file() {
    let dir = TempDir::new().unwrap();
    let (log, log_text) = path(&dir, "log");
    let port = free_port().to_string();
    std::fs::write(&log, "older\n").unwrap();
    let started = || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("started"));
    let mut running = Running::start(&["-p", &port, "--log-format", "json", "--log-file", &log_text], started);
    running.signal(Signal::SIGTERM);
    let (code, stderr) = running.end();
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let log = std::fs::read_to_string(&log).unwrap();
    let (older, lines) = log.split_once('\n').unwrap();
    assert_eq!(older, "older");
    assert!(lines.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{lines}");
    assert!(lines.contains(&format!("\"listen\":\"127.0.0.1:{port}\"")), "{lines}");
}

#[test]
fn a_log_file_that_cannot_be_written_is_named() {
    let output = resilver().args(SERVER).args(["--log-file", "/nonexistent/dir/log"]).output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_OS));
    assert!(text(&output.stderr).contains("/nonexistent/dir/log"), "{}", text(&output.stderr));
}

#[test]
fn listens_on_ipv4_and_ipv6_wildcards_together() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("no IPv6 on this machine: nothing to test");
        return;
    }
    let port = free_port();
    let reachable = || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() && std::net::TcpStream::connect(("::1", port)).is_ok()
    };
    let _running = Running::start(&["-p", &port.to_string(), "-l", "0.0.0.0", "-l", "::"], reachable);
}

#[test]
fn a_stale_unix_socket_is_replaced() {
    let dir = TempDir::new().unwrap();
    let (socket, socket_text) = path(&dir, "s");
    // What a killed process leaves: the file, and nobody behind it.
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let answered = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
    let _running = Running::start(&["-p", "0", "-f", &socket_text], answered);
}

#[test]
fn a_living_unix_socket_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let (socket, socket_text) = path(&dir, "s");
    let _owner = UnixListener::bind(&socket).unwrap();
    let output = resilver().args(SERVER).args(["-p", "0", "-f", &socket_text]).output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_OS));
    assert!(text(&output.stderr).contains("another process answers on it"), "{}", text(&output.stderr));
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let (file, file_text) = path(&dir, "precious");
    std::fs::write(&file, "data").unwrap();
    let output = resilver().args(SERVER).args(["-p", "0", "-f", &file_text]).output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_OS));
    assert!(text(&output.stderr).contains("a file that is no socket is there"), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
}

/// Starts one that may open `soft` files now and `hard` at most; its `Max open files` and its log
/// once it serves.
fn with_files(clients: u64, soft: u64, hard: u64) -> (u64, String) {
    let dir = TempDir::new().unwrap();
    let ((log, log_text), port) = (path(&dir, "log"), free_port());
    let mut command = limited(&format!("ulimit -Sn {soft} && ulimit -Hn {hard}"));
    command.args(SERVER).args(["-n", &clients.to_string(), "-p", &port.to_string(), "--log-file", &log_text]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let running = Running { child };
    until("it is started", || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("started")));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", running.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let now = files.split_whitespace().nth(3).unwrap().parse().unwrap();
    (now, std::fs::read_to_string(&log).unwrap())
}

#[test]
fn the_file_limit_is_raised_to_what_the_clients_need() {
    let (now, log) = with_files(1_000, 200, 2_000);
    assert!((1_001..=2_000).contains(&now), "{now}");
    assert!(log.contains("max_clients=1000") && !log.contains("file limit"), "{log}");
}

#[test]
fn a_file_limit_that_cannot_be_raised_is_told_with_its_numbers() {
    // Over the kernel's own limit (fs.nr_open), which root cannot raise either.
    let (now, log) = with_files(10_000_000, 500, 1_000);
    assert_eq!(now, 1_000);
    assert!(log.contains("-n 10000000 needs 100001") && log.contains("the system allows 1000"), "{log}");
}

#[test]
fn unknown_users_and_groups_are_named_together() {
    let output = resilver().args(SERVER).args(["-u", "no-such-user", "-g", "no-such-group"]).output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_USAGE));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("-u/--user no-such-user") && stderr.contains("-g/--group no-such-group"), "{stderr}");
}

#[test]
fn only_root_may_become_another_user() {
    let mut command;
    // Somebody else than root runs a copy, because the build directory may be closed to him.
    let dir = TempDir::new().unwrap();
    if is_root() {
        let copy = dir.path().join("resilver");
        std::fs::copy(env!("CARGO_BIN_EXE_resilver"), &copy).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        command = Command::new(copy);
        command.uid(65_534).gid(65_534).current_dir("/");
    } else {
        command = resilver();
    }
    let output = command.args(SERVER).args(["-u", "root"]).output().unwrap();
    assert_eq!(output.status.code(), Some(EXIT_USAGE));
    assert!(text(&output.stderr).contains("only root can become another user"), "{}", text(&output.stderr));
}

#[test]
fn drops_privileges_after_binding() {
    if !is_root() {
        eprintln!("not root: nothing to drop");
        return;
    }
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let ((pid_file, pid_text), (socket, socket_text)) = (path(&dir, "pid"), path(&dir, "s"));
    let (log, log_text) = path(&dir, "log");
    let arguments = ["-u", "nobody", "-p", "0", "-f", &socket_text, "--pid-file", &pid_text, "--log-file", &log_text];
    let daemon = Daemon::start(&arguments, &pid_file);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid)).unwrap();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let ids = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned()).unwrap()
    };
    assert_eq!(field("Uid:"), ids(nobody.uid.as_raw()));
    assert_eq!(field("Gid:"), ids(nobody.gid.as_raw()));
    assert!(!field("Groups:").split_whitespace().any(|group| group == "0"), "root's groups are gone");
    for file in [&pid_file, &socket, &log] {
        assert_eq!(std::fs::metadata(file).unwrap().uid(), nobody.uid.as_raw());
    }
    // So that user opens the log again, and no reload fails for it.
    kill(Pid::from_raw(daemon.pid), Signal::SIGHUP).unwrap();
    until("it is reloaded", || {
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(!log.contains("not reloaded"), "{log}");
        log.contains("reloaded: nothing has changed")
    });
    daemon.end(Signal::SIGTERM);
    // The directory is root's, so the files could only be emptied; they must not stop the next
    // start.
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap_or_default(), "");
    Daemon::start(&arguments, &pid_file).end(Signal::SIGTERM);
}

#[test]
fn magents_command_line_runs() {
    let port = free_port().to_string();
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    let reachable = || std::net::TcpStream::connect(("127.0.0.1", port.parse().unwrap())).is_ok();
    let mut running = Running::start(
        &["-u", &user, "-n", "51200", "-l", "127.0.0.1", "-p", &port, "-s", "127.0.0.1:2", "-b", "127.0.0.1:3"],
        reachable,
    );
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().0, Some(0));
}

/// A start that was told to stop at once: whatever of it is seen first (the pid file comes before
/// the sockets, and those before the clients are served), the process ends in good order, and a
/// SIGHUP ends nothing.
#[test]
fn signals_are_heeded_from_the_first_sign_of_life_on() {
    for signs in ["the pid file", "the socket"].repeat(8).iter().zip(0..) {
        let (sign, round) = signs;
        let dir = tempfile::tempdir().unwrap();
        let ((pid_file, pid_text), (socket, socket_text)) = (path(&dir, "pid"), path(&dir, "socket"));
        let mut command = resilver();
        command.args(SERVER).args([
            "--pid-file",
            &pid_text,
            "--unix-socket",
            &socket_text,
            "-p",
            &free_port().to_string(),
        ]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Running { child };
        let seen = if *sign == "the pid file" { &pid_file } else { &socket };
        // No sleep: what is looked for lasts for some hundred microseconds.
        let start = Instant::now();
        while !seen.exists() {
            assert!(start.elapsed() < DEADLINE, "waited in vain for {sign}");
            std::thread::yield_now();
        }
        if round % 4 > 1 {
            running.signal(Signal::SIGHUP);
        }
        running.signal(Signal::SIGTERM);
        let (code, log) = running.end();
        assert_eq!(code, Some(0), "{sign}, round {round}: {log}");
        assert!(!pid_file.exists() && !socket.exists(), "{sign}, round {round}: {log}");
    }
}

/// stderr is a pipe that is full and that nobody reads, as under a supervisor that hangs: clients
/// are served all the same.
#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // Exactly what a pipe holds on Linux: the next byte would wait.
    writer.write_all(&[b'x'; 65_536]).unwrap();
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_resilver"));
    command
        .args(SERVER)
        .args(["-vv", "-p", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer);
    let mut running = Running { child: command.spawn().unwrap() };
    until("it answers", || {
        let Ok(mut client) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.write_all(b"version\r\nstats\r\n").unwrap();
        let mut answer = [0; 8];
        client.read_exact(&mut answer).is_ok_and(|()| answer.starts_with(b"VERSION"))
    });
    kill(Pid::from_raw(running.child.id() as i32), Signal::SIGTERM).unwrap();
    let mut ended = None;
    until("it stops", || {
        ended = running.child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    drop(reader);
}
