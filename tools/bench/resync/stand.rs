//! What is measured: a proxy over servers of which one is killed and comes back empty.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use resilver::internals::ids::{NodeId, PairId};
use resilver::internals::ring::{Distribution, ServerSpec, Topology};

use super::bare;
use crate::client::Client;
use crate::processes::{self, Process};
use crate::wire::put_key;

/// How often the proxy is asked how far it is.
const POLL: Duration = Duration::from_millis(5);
/// A server that is lost again within ten seconds of its return flaps, and is held off: with five
/// quick rounds that hold, up to 2.7 s, passed for the time a resync takes.
const STEADY: Duration = Duration::from_secs(11);
/// Nothing here takes longer.
const TIMEOUT: Duration = Duration::from_secs(80);
/// Ports are looked for from this one on.
const FIRST_PORT: u16 = 13_500;

/// Which servers there are. The target is the first primary, or the backup where there is one of
/// each.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) primaries: usize,
    pub(super) backups: usize,
}

impl Layout {
    /// Two rings of one size place all keys alike by modula, and every backup mirrors one primary:
    /// by ketama every server is in a pair with every server of the other ring.
    fn distribution(self) -> Distribution {
        if self.primaries > 1 && self.backups > 1 { Distribution::Ketama } else { Distribution::Modula }
    }

    fn target(self) -> NodeId {
        NodeId(if self.primaries == 1 { 1 } else { 0 })
    }
}

/// A server that the target is filled from, and what it holds.
pub(super) struct Source {
    pub(super) port: u16,
    node: NodeId,
    _server: Process,
}

/// What is measured, and how it is started.
#[derive(Clone, Copy)]
pub(super) struct ProxyBinary<'a> {
    pub(super) path: &'a Path,
    /// Where its log goes; `None` = it is not kept.
    pub(super) log: Option<&'a Path>,
    pub(super) flags: &'a [String],
}

/// Which keys the target lacks.
pub(super) struct Placement {
    topology: Topology,
    target: NodeId,
}

/// See the head of this file.
pub(super) struct Stand {
    pub(super) placement: Placement,
    pub(super) sources: Vec<Source>,
    _others: Vec<Process>,
    target_port: u16,
    /// Free for a server that only the bare client writes to.
    pub(super) spare: u16,
    target: Option<Process>,
    /// When the target came back.
    returned: Option<Instant>,
    proxy: Process,
    pub(super) proxy_port: u16,
    operator: RefCell<Client>,
    _files: tempfile::TempDir,
}

/// What a resync was.
pub(super) struct Copied {
    pub(super) items: f64,
    /// From the start of the target's process to the end.
    pub(super) seconds: f64,
    /// Of these, until the resync began.
    pub(super) found_after: f64,
    pub(super) cpu_us: f64,
    pub(super) peak_mib: f64,
}

/// Starts a server, empty.
pub(super) fn server(port: u16) -> io::Result<Process> {
    processes::server(&mut command(port), "memcached", port)
}

fn command(port: u16) -> std::process::Command {
    let mut command = std::process::Command::new("memcached");
    command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-U", "0", "-m", "8192", "-t", "2"]);
    if nix::unistd::geteuid().is_root() {
        command.args(["-u", "nobody"]);
    }
    command
}

impl Placement {
    fn holds(&self, node: NodeId, key: u32) -> bool {
        let mut name = Vec::new();
        put_key(&mut name, key);
        self.is_on(node, &name)
    }

    fn is_on(&self, node: NodeId, key: &[u8]) -> bool {
        let (primary, backup) = self.topology.nodes_of(self.topology.pair_of(key));
        node == primary || Some(node) == backup
    }

    /// Whether a source is to give the key to the target.
    pub(super) fn is_missing(&self, key: &[u8]) -> bool {
        self.is_on(self.target, key)
    }

    /// Those of the keys that the target lacks.
    pub(super) fn missing(&self, keys: Range<u32>) -> Vec<u32> {
        keys.filter(|key| self.holds(self.target, *key)).collect()
    }
}

impl Stand {
    /// The sources hold the keys of `keys`, each with `value_len` bytes, which the proxy did not
    /// see being written: they came while the target was away.
    pub(super) fn start(
        binary: ProxyBinary<'_>,
        layout: Layout,
        keys: Range<u32>,
        value_len: usize,
    ) -> io::Result<Stand> {
        let files = tempfile::tempdir()?;
        let servers = layout.primaries + layout.backups;
        let free = processes::free_ports(FIRST_PORT, servers + 2);
        let [nodes @ .., spare, proxy_port] = &free[..] else { return Err(io::Error::other("no free ports")) };
        if nodes.len() < servers {
            return Err(io::Error::other("no free ports"));
        }
        let (primaries, backups) = nodes.split_at(layout.primaries);
        let specs = |ports: &[u16]| -> io::Result<Vec<ServerSpec>> {
            let spec = |port: &u16| format!("127.0.0.1:{port}").parse().map_err(io::Error::other);
            ports.iter().map(spec).collect()
        };
        let topology = Topology::new(&specs(primaries)?, &specs(backups)?, layout.distribution());
        let mut processes: Vec<Option<Process>> =
            nodes.iter().map(|port| server(*port).map(Some)).collect::<io::Result<_>>()?;
        let mut command = processes::resilver_command(binary.path, *proxy_port, primaries, backups);
        if layout.distribution() == Distribution::Ketama {
            command.arg("-k");
        }
        command.args(["--threads", "1"]).args(binary.flags);
        command.arg("--log-file").arg(binary.log.map_or_else(|| files.path().join("resilver.log"), Path::to_owned));
        let proxy = processes::server(&mut command, "resilver", *proxy_port)?;
        let operator = RefCell::new(Client::connect(*proxy_port)?);
        let target_node = layout.target();
        let mut holders: Vec<NodeId> =
            topology.pairs_of(target_node).filter_map(|p| other(&topology, p, target_node)).collect();
        holders.dedup();
        let target = processes[target_node.index()].take();
        let mut sources = Vec::new();
        for node in holders {
            let Some(server) = processes[node.index()].take() else { continue };
            sources.push(Source { port: nodes[node.index()], node, _server: server });
        }
        let mut stand = Stand {
            placement: Placement { topology, target: target_node },
            sources,
            _others: processes.into_iter().flatten().collect(),
            target_port: nodes[target_node.index()],
            spare: *spare,
            target,
            returned: None,
            proxy,
            proxy_port: *proxy_port,
            operator,
            _files: files,
        };
        stand.wait("the proxy has begun", |stand| stand.status("mirrored").map(|word| word == "1"))?;
        stand.lose_target()?;
        for source in &stand.sources {
            // All that it owns, the target's and others' keys.
            let owned: Vec<u32> = keys.clone().filter(|key| stand.placement.holds(source.node, *key)).collect();
            bare::write_all(source.port, &owned, value_len)?;
        }
        Ok(stand)
    }

    pub(super) fn status(&self, name: &str) -> io::Result<String> {
        let mut stats = self.operator.borrow_mut().stats("resync status")?;
        Ok(stats.remove(name).unwrap_or_default())
    }

    fn node(&self, name: &str) -> io::Result<String> {
        self.status(&format!("node:127.0.0.1:{}:{name}", self.target_port))
    }

    pub(super) fn number(&self, name: &str) -> io::Result<f64> {
        let text = self.node(name)?;
        text.parse().map_err(|_| io::Error::other(format!("{name} is {text:?}")))
    }

    fn wait(&self, what: &str, mut done: impl FnMut(&Stand) -> io::Result<bool>) -> io::Result<()> {
        let give_up = Instant::now() + TIMEOUT;
        while !done(self)? {
            if Instant::now() > give_up {
                return Err(io::Error::other(format!("waited in vain until {what}")));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    pub(super) fn lose_target(&mut self) -> io::Result<()> {
        if let Some(returned) = self.returned {
            thread::sleep((returned + STEADY).saturating_duration_since(Instant::now()));
        }
        self.target = None;
        self.wait("the proxy has seen that the target is gone", |stand| stand.node("state").map(|word| word == "lost"))
    }

    /// The target comes back, empty: the proxy begins to fill it.
    pub(super) fn return_target(&mut self) -> io::Result<()> {
        // Its answers are not waited for: that is the proxy's part.
        self.target = Some(Process::start(&mut command(self.target_port))?);
        self.returned = Some(Instant::now());
        self.wait("the resync has begun", |stand| Ok(stand.node("resync")? == "running" || stand.is_done()?))
    }

    pub(super) fn is_done(&self) -> io::Result<bool> {
        Ok(self.status("mirrored")? == "1" && self.node("resync")? == "done")
    }

    /// CPU time of the proxy so far, and the most memory it has had.
    fn usage(&self) -> io::Result<(f64, f64)> {
        let process = format!("/proc/{}", self.proxy.pid());
        let stat = fs::read_to_string(format!("{process}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // utime and stime, in ticks of 10 ms; threads that have ended are in them.
        let ticks: f64 = fields.iter().skip(11).take(2).filter_map(|word| word.parse::<f64>().ok()).sum();
        let status = fs::read_to_string(format!("{process}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(f64::NAN);
        Ok((ticks / 100.0, kib / 1024.0))
    }

    /// The target's process starts, and the time counts until everything has two copies.
    pub(super) fn resync(&mut self) -> io::Result<Copied> {
        let ((before, _), begun) = (self.usage()?, Instant::now());
        self.return_target()?;
        let found_after = begun.elapsed().as_secs_f64();
        self.wait("the resync has ended", Stand::is_done)?;
        let seconds = begun.elapsed().as_secs_f64();
        let (after, peak_mib) = self.usage()?;
        let items = self.number("items_copied")?;
        Ok(Copied { items, seconds, found_after, cpu_us: (after - before) * 1e6 / items, peak_mib })
    }
}

/// The pair's other server.
fn other(topology: &Topology, pair: PairId, node: NodeId) -> Option<NodeId> {
    let (primary, backup) = topology.nodes_of(pair);
    if primary == node { backup } else { Some(primary) }
}
