//! What is measured: resilver, and memcached itself, each with servers of its own. The other
//! proxies: `rivals.rs`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::processes::{self, Process};
use crate::rivals;
use crate::usage::{self, Usage};

/// A process that used less than a twentieth of a processor for so long is calm,
const CALM_SPAN: Duration = Duration::from_millis(100);
/// and one that is not calm by then is measured as it is.
const CALM_TIMEOUT: Duration = Duration::from_secs(10);

/// What a system is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// No proxy at all.
    Server,
    /// Somebody else's proxy.
    Rival,
    /// Ours.
    Resilver,
}

/// A binary of resilver.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
}

/// How to start a system.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// See `floor.rs`.
    Floor,
    Memcached,
    Resilver(PathBuf),
    /// The active one of several (`--coordinate`), and a standby, which passes on to it.
    Active(PathBuf),
    Standby(PathBuf),
    Twemproxy,
    MemcachedProxy(PathBuf),
}

/// A system that could be started.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// On how many servers a write ends.
    pub(crate) copies: usize,
    pub(crate) program: Program,
}

/// What it is started with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Primaries; as many backups where there are two copies.
    pub(crate) primaries: usize,
    pub(crate) threads: usize,
    /// Servers with little memory and one thread: there are many.
    pub(crate) small_servers: bool,
    /// Clients at once.
    pub(crate) clients: usize,
    /// The rivals get what they have against failures: short timeouts, reads of the other copy,
    /// ejection.
    pub(crate) fail_over: bool,
}

/// One that runs; ended when dropped.
pub(crate) struct System {
    pub(crate) spec: Spec,
    pub(crate) addr: SocketAddr,
    /// The process whose cost counts.
    process: Process,
    /// The servers behind it, primaries first.
    pub(crate) servers: Vec<Process>,
}

/// Free ports, one after the other, below the system's own choice for outgoing connections.
pub(crate) struct Ports(u16);

impl Build {
    /// `PATH` or `NAME=PATH`.
    pub(crate) fn parse(text: &str) -> Result<Build, String> {
        let (name, path) = text.split_once('=').unwrap_or_else(|| (text.rsplit('/').next().unwrap_or(text), text));
        if Path::new(path).is_file() {
            Ok(Build { name: name.to_owned(), program: PathBuf::from(path) })
        } else {
            Err(format!("{path} is no file; `cargo build --release` makes target/release/resilver"))
        }
    }
}

impl Ports {
    pub(crate) fn new() -> Ports {
        Ports(13_000)
    }

    pub(crate) fn next(&mut self) -> io::Result<u16> {
        let port = processes::free_ports(self.0, 1).pop().ok_or_else(|| io::Error::other("no free ports"))?;
        self.0 = port + 1;
        Ok(port)
    }
}

impl Default for Layout {
    fn default() -> Layout {
        Layout { primaries: 2, threads: 1, small_servers: false, clients: 4096, fail_over: false }
    }
}

/// All that can be compared here; says what is left out, and why.
pub(crate) fn available(builds: &[Build], memcached_proxy: Option<&Path>) -> Vec<Spec> {
    let spec = |name: &str, kind, copies, program| Spec { name: name.to_owned(), kind, copies, program };
    let mut specs = vec![
        spec("one read, one write", Kind::Server, 1, Program::Floor),
        spec("memcached", Kind::Server, 1, Program::Memcached),
    ];
    for build in builds {
        for copies in [1, 2] {
            let name = if copies == 1 { build.name.clone() } else { format!("{}, 2 copies", build.name) };
            specs.push(spec(&name, Kind::Resilver, copies, Program::Resilver(build.program.clone())));
        }
        for (what, program) in [("active of two", Program::Active as fn(PathBuf) -> _), ("standby", Program::Standby)] {
            specs.push(spec(&format!("{}, {what}", build.name), Kind::Resilver, 2, program(build.program.clone())));
        }
    }
    match runs(Path::new("nutcracker"), "-V") {
        Some(_) => specs.push(spec("twemproxy", Kind::Rival, 1, Program::Twemproxy)),
        None => eprintln!("twemproxy is left out: there is no nutcracker (the name of Debian's package, too)"),
    }
    let program = memcached_proxy.unwrap_or(Path::new("memcached"));
    if runs(program, "-h").is_some_and(|help| help.contains("proxy_config")) {
        for (name, copies) in [("memcached's proxy", 1), ("memcached's proxy, 2 copies", 2)] {
            specs.push(spec(name, Kind::Rival, copies, Program::MemcachedProxy(program.to_owned())));
        }
    } else {
        let program = program.display();
        eprintln!("memcached's own proxy is left out: {program} was built without it; --memcached-proxy names another");
    }
    specs
}

/// What a program says, if it can be run.
pub(crate) fn runs(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

impl Spec {
    /// Whether it is one of several proxies over the same servers: what a request costs it is
    /// measured, and no more.
    pub(crate) fn is_of_several(&self) -> bool {
        matches!(self.program, Program::Active(_) | Program::Standby(_))
    }

    /// Whether it knows `mg` and `ms`.
    pub(crate) fn speaks_meta(&self) -> bool {
        !matches!(self.program, Program::Twemproxy | Program::Floor)
    }

    /// Starts it, and the servers that it needs, and waits until all are ready. Its files go to
    /// `files`.
    pub(crate) fn start(&self, layout: &Layout, ports: &mut Ports, files: &Path) -> io::Result<System> {
        let mut servers = Vec::new();
        let mut nodes = |count: usize, ports: &mut Ports| -> io::Result<Vec<u16>> {
            let mut started = Vec::new();
            for _ in 0..count {
                let port = ports.next()?;
                let flags: &[&str] = if layout.small_servers { &["-m", "8", "-t", "1"] } else { &[] };
                servers.push(processes::memcached_with(port, flags)?);
                started.push(port);
            }
            Ok(started)
        };
        let port = ports.next()?;
        let (primaries, backups) = match self.program {
            Program::Floor | Program::Memcached => (Vec::new(), Vec::new()),
            _ => (nodes(layout.primaries, ports)?, nodes((self.copies - 1) * layout.primaries, ports)?),
        };
        let process = match &self.program {
            Program::Floor => {
                let mut command = Command::new(std::env::current_exe()?);
                processes::server(command.args(["floor", &port.to_string()]), &self.name, port)?
            }
            Program::Memcached => {
                let (threads, clients) = (layout.threads.to_string(), (layout.clients + 16).to_string());
                processes::memcached_with(port, &["-t", &threads, "-c", &clients])?
            }
            Program::Resilver(program) => {
                let mut command = resilver(program, port, (&primaries, &backups), layout, files);
                let process = processes::server(&mut command, &self.name, port)?;
                if self.copies > 1 {
                    wait(program, port, "--mirrored")?;
                }
                process
            }
            Program::Active(program) | Program::Standby(program) => {
                let fleet = format!("file:{}", files.join(format!("{port}.fleet")).display());
                let other = ports.next()?;
                let start = |port: u16, until: &str| -> io::Result<Process> {
                    let mut command = resilver(program, port, (&primaries, &backups), layout, files);
                    let process = processes::server(command.args(["--coordinate", &fleet]), &self.name, port)?;
                    wait(program, port, until)?;
                    Ok(process)
                };
                let is_active = matches!(self.program, Program::Active(_));
                let active = start(if is_active { port } else { other }, "--mirrored")?;
                let standby = start(if is_active { other } else { port }, "--ready")?;
                let (process, behind) = if is_active { (active, standby) } else { (standby, active) };
                servers.push(behind);
                process
            }
            Program::Twemproxy => {
                let mut command = rivals::twemproxy(port, ports.next()?, &primaries, layout, files)?;
                processes::server(&mut command, &self.name, port)?
            }
            Program::MemcachedProxy(program) => {
                let mut command = rivals::memcached_proxy(program, port, &primaries, &backups, layout, files)?;
                processes::server(&mut command, &self.name, port)?
            }
        };
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let system = System { spec: self.clone(), addr, process, servers };
        system.wait_calm()?;
        Ok(system)
    }
}

fn resilver(
    program: &Path,
    port: u16,
    (primaries, backups): (&[u16], &[u16]),
    layout: &Layout,
    files: &Path,
) -> Command {
    let mut command = processes::resilver_command(program, port, primaries, backups);
    command.args(["--threads", &layout.threads.to_string()]);
    // (The active one of several has the other ones' clients too.)
    command.args(["--max-clients", &(layout.clients + 16).to_string()]);
    command.arg("--log-file").arg(files.join(format!("{port}.log")));
    command
}

/// A new pair is looked at before it is trusted; that belongs to no measurement.
fn wait(program: &Path, port: u16, until: &str) -> io::Result<()> {
    let mut command = Command::new(program);
    command.args(["wait", until, "--timeout", "20s", "--proxy", &format!("127.0.0.1:{port}")]);
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{} wait: {}", program.display(), String::from_utf8_lossy(&output.stderr))))
}

impl System {
    /// A start may go on behind the first answers (resilver writes its records to many pairs); that
    /// belongs to no measurement either.
    fn wait_calm(&self) -> io::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < CALM_TIMEOUT {
            let before = self.usage()?.cpu;
            thread::sleep(CALM_SPAN);
            if self.usage()?.cpu.saturating_sub(before) < CALM_SPAN / 20 {
                break;
            }
        }
        Ok(())
    }

    /// From the kernel's accounting.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        usage::of(self.process.pid())
    }
}
