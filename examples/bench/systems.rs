//! What is measured: the proxies, and memcached itself, each with servers of its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::processes::{self, Process};

/// One system under test.
pub(crate) struct System {
    pub(crate) name: &'static str,
    /// Writes reach two servers.
    pub(crate) two_copies: bool,
    pub(crate) addr: SocketAddr,
    /// The process whose cost counts.
    process: Process,
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

/// Starts the servers and, in front of them, all that is to be compared.
pub(crate) fn start(resilver: &Path, threads: usize) -> io::Result<Bench> {
    let files = tempfile::tempdir()?;
    let mut ports = processes::free_ports(13_000, 16).into_iter();
    let mut port = || ports.next().ok_or_else(|| io::Error::other("no free ports from 13000 on"));
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
    // Proxies with one copy may share their servers, for they are driven in turn and store the same.
    let (plain, primaries, backups, direct) = (nodes(2)?, nodes(2)?, nodes(2)?, port()?);
    let mut systems = Vec::new();
    let mut add = |name, two_copies, port: u16, process| {
        systems.push(System { name, two_copies, addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), process });
    };
    add("memcached", false, direct, processes::memcached(direct)?);
    let threads = threads.to_string();
    for (name, two_copies, primaries, backups) in
        [("resilver", false, &plain, &[][..]), ("resilver, 2 copies", true, &primaries, &backups[..])]
    {
        let port = port()?;
        let mut command = processes::resilver_command(resilver, port, primaries, backups);
        command.args(["--threads", &threads]).arg("--log-file").arg(files.path().join("resilver.log"));
        add(name, two_copies, port, processes::server(&mut command, "resilver", port)?);
    }
    match twemproxy(port()?, port()?, &plain, files.path()) {
        Ok((port, process)) => add("twemproxy", false, port, process),
        Err(error) => eprintln!("twemproxy is left out: {error}; Debian's package is nutcracker"),
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
