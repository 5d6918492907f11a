//! What is measured: the proxies, and memcached itself, each with servers of its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::processes::{self, Process};

/// One system under test.
pub(crate) struct System {
    pub(crate) name: String,
    /// Writes reach two servers.
    pub(crate) two_copies: bool,
    pub(crate) addr: SocketAddr,
    /// The process whose cost counts.
    process: Process,
}

/// A binary of resilver.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
}

impl Build {
    /// `PATH` or `NAME=PATH`.
    pub(crate) fn parse(text: &str) -> Result<Build, String> {
        let (name, path) = text.split_once('=').unwrap_or_else(|| {
            let file = text.rsplit('/').next().unwrap_or(text);
            (file, text)
        });
        if Path::new(path).is_file() {
            Ok(Build { name: name.to_owned(), program: PathBuf::from(path) })
        } else {
            Err(format!("{path} is no file; `cargo build --release` makes target/release/resilver"))
        }
    }
}

/// Everything that runs; ended when dropped.
pub(crate) struct Bench {
    pub(crate) systems: Vec<System>,
    _servers: Vec<Process>,
    _files: tempfile::TempDir,
}

/// What a process has used and uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// On a processor, all threads, user and system.
    pub(crate) cpu: Duration,
    /// Resident, bytes.
    pub(crate) memory: u64,
}

impl System {
    /// From the kernel's accounting.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let process = format!("/proc/{}", self.process.pid());
        let mut nanos = 0;
        for thread in std::fs::read_dir(format!("{process}/task"))? {
            // A thread that has just ended took its count with it; none does here.
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            nanos += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        let status = std::fs::read_to_string(format!("{process}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse::<u64>().ok());
        Ok(Usage { cpu: Duration::from_nanos(nanos), memory: kib.unwrap_or(0) * 1024 })
    }
}

/// Starts the servers and, in front of them, all that is to be compared and `wanted` by its name.
pub(crate) fn start(builds: &[Build], threads: usize, wanted: &dyn Fn(&str) -> bool) -> io::Result<Bench> {
    let files = tempfile::tempdir()?;
    let ports = std::cell::RefCell::new(processes::free_ports(13_000, 16 + 16 * builds.len()).into_iter());
    let port = || ports.borrow_mut().next().ok_or_else(|| io::Error::other("no free ports from 13000 on"));
    let mut servers = Vec::new();
    let mut nodes = |count: usize| -> io::Result<Vec<u16>> {
        let mut started = Vec::new();
        for _ in 0..count {
            let port = port()?;
            servers.push(processes::memcached(port)?);
            started.push(port);
        }
        Ok(started)
    };
    let mut systems = Vec::new();
    let mut add = |name: &str, two_copies, port: u16, process| {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        systems.push(System { name: name.to_owned(), two_copies, addr, process });
    };
    if wanted("memcached") {
        let port = port()?;
        add("memcached", false, port, processes::memcached(port)?);
    }
    let threads = threads.to_string();
    for Build { name, program } in builds {
        for (name, two_copies) in [(name.clone(), false), (format!("{name}, 2 copies"), true)] {
            if !wanted(&name) {
                continue;
            }
            // Servers of its own: a second resilver takes the first one's markers for a crash.
            let (primaries, backups) = (nodes(2)?, nodes(if two_copies { 2 } else { 0 })?);
            let port = port()?;
            let mut command = processes::resilver_command(program, port, &primaries, &backups);
            command.args(["--threads", &threads]).arg("--log-file").arg(files.path().join(format!("{port}.log")));
            add(&name, two_copies, port, processes::server(&mut command, &name, port)?);
        }
    }
    if wanted("twemproxy") {
        match twemproxy(port()?, port()?, &nodes(2)?, files.path()) {
            Ok((port, process)) => add("twemproxy", false, port, process),
            Err(error) => eprintln!("twemproxy is left out: {error}; Debian's package is nutcracker"),
        }
    }
    if systems.is_empty() {
        return Err(io::Error::other("no system has such a name"));
    }
    Ok(Bench { systems, _servers: servers, _files: files })
}

fn twemproxy(port: u16, stats_port: u16, nodes: &[u16], files: &Path) -> io::Result<(u16, Process)> {
    let mut text = format!(
        "bench:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: ketama\n  timeout: 1000\n  auto_eject_hosts: false\n  preconnect: true\n  servers:\n"
    );
    for node in nodes {
        text += &format!("   - 127.0.0.1:{node}:1\n");
    }
    let config = files.join("nutcracker.yml");
    std::fs::write(&config, text)?;
    let mut command = std::process::Command::new("nutcracker");
    command.arg("-c").arg(&config).arg("-o").arg(files.join("nutcracker.log"));
    command.args(["-a", "127.0.0.1", "-s", &stats_port.to_string()]);
    Ok((port, processes::server(&mut command, "nutcracker", port)?))
}
