//! Two rings of real memcached processes and a proxy in front of them.

use std::path::PathBuf;
use std::time::Duration;

use super::client::Client;
use super::load::Load;
use super::memcached::Memcached;
use super::names::Names;
use super::proxy::Proxy;
use super::rings::{RingMap, compare_rings, read_ring};

/// What to start.
#[derive(Clone, Debug)]
pub struct Shape {
    pub primaries: usize,
    pub backups: usize,
    /// More arguments for every memcached.
    pub node_args: Vec<String>,
    /// More arguments for the proxy; a flag given here replaces the harness's own.
    pub proxy_args: Vec<String>,
    /// The proxy reaches every node through a forwarder.
    pub forwarded: bool,
    /// What `/etc/hosts` is for the proxy.
    pub hosts: Option<PathBuf>,
}

impl Shape {
    pub fn new(primaries: usize, backups: usize) -> Shape {
        Shape { primaries, backups, node_args: Vec::new(), proxy_args: Vec::new(), forwarded: false, hosts: None }
    }

    pub fn nodes(mut self, args: &[&str]) -> Shape {
        self.node_args.extend(args.iter().map(|a| a.to_string()));
        self
    }

    /// No server is lost for being late, as a healthy one may be on a starved machine: for tests
    /// whose answers depend on who leads (cas tokens, stale items, counters of one server).
    pub fn patient(self) -> Shape {
        self.proxy(&["--timeout", "10s", "--leader-timeout", "10s", "--probe-timeout", "10s"])
    }

    pub fn forwarded(mut self) -> Shape {
        self.forwarded = true;
        self
    }

    pub fn hosts(mut self, names: &Names) -> Shape {
        self.hosts = Some(names.file());
        self
    }

    pub fn proxy(mut self, args: &[&str]) -> Shape {
        self.proxy_args.extend(args.iter().map(|a| a.to_string()));
        self
    }
}

/// The harness's own settings: quick enough for a test, slow enough for two loaded cores.
const DEFAULTS: [(&str, &str); 8] = [
    ("--timeout", "250ms"),
    ("--probe-interval", "100ms"),
    ("--probe-timeout", "250ms"),
    ("--probe-successes", "3"),
    ("--threads", "2"),
    ("--leader-timeout", "2s"),
    ("--leader-grace", "10s"),
    ("--resync=auto", ""),
];

/// The whole. The fields' order is the order of dropping: the proxy goes first.
pub struct Cluster {
    pub proxy: Proxy,
    pub primaries: Vec<Memcached>,
    pub backups: Vec<Memcached>,
}

impl Cluster {
    /// Starts everything and waits until every pair is mirrored.
    pub fn start(shape: &Shape) -> Cluster {
        let cluster = Cluster::start_unmirrored(shape);
        if shape.backups > 0 && !shape.proxy_args.iter().any(|a| a == "--resync=off") {
            cluster.mirrored();
        }
        cluster
    }

    pub fn start_unmirrored(shape: &Shape) -> Cluster {
        let args: Vec<&str> = shape.node_args.iter().map(String::as_str).collect();
        let node = |_| {
            let node = Memcached::start(&args);
            if shape.forwarded { node.forwarded() } else { node }
        };
        Cluster::over((0..shape.primaries).map(node).collect(), (0..shape.backups).map(node).collect(), shape)
    }

    /// A proxy over nodes that the test has prepared.
    pub fn over(primaries: Vec<Memcached>, backups: Vec<Memcached>, shape: &Shape) -> Cluster {
        let mut args = Vec::new();
        for (flag, value) in DEFAULTS {
            let name = flag.split('=').next().expect("a flag");
            // Without backups there is nothing to refill from, and asking for it is an error.
            let pointless = backups.is_empty() && name == "--resync";
            if pointless || shape.proxy_args.iter().any(|a| a.split('=').next() == Some(name)) {
                continue;
            }
            args.push(flag.to_string());
            if !value.is_empty() {
                args.push(value.to_string());
            }
        }
        for node in &primaries {
            args.extend(["-s".to_string(), node.known_as()]);
        }
        for node in &backups {
            args.extend(["-b".to_string(), node.known_as()]);
        }
        args.extend(shape.proxy_args.iter().cloned());
        Cluster { proxy: Proxy::start_with(&args, shape.hosts.clone()), primaries, backups }
    }

    pub fn client(&self) -> Client {
        self.proxy.client()
    }

    /// Waits until every pair is mirrored.
    pub fn mirrored(&self) {
        self.proxy.wait_mirrored(super::DEADLINE);
    }

    /// Waits until the proxy knows that the node is gone. Not merely that it is not `up`: just
    /// after its pairs are mirrored, its resync may still be winding up.
    pub fn wait_lost(&self, addr: &str) {
        self.proxy.wait_status(&format!("{addr} noticed as lost"), super::DEADLINE, |s| s.node(addr) == "lost");
    }

    /// Ends the test with everything that a test should end with: healed, equal rings, every answer
    /// right, and each ring alone has it all.
    pub fn healed_and_complete(mut self, load: Load) -> Cluster {
        self.mirrored();
        load.mark("mirrored");
        load.wait_operations(500);
        let model = load.stop();
        self.assert_rings_equal();
        model.check_ring("primary", &self.primary_ring());
        model.check_ring("backup", &self.backup_ring());
        model.check_through(&mut self.client());
        model.recorder.mark("kill every backup");
        self.kill_backups();
        model.check_through(&mut self.client());
        model.assert_clean();
        self
    }

    pub fn primary_ring(&self) -> RingMap {
        read_ring(&self.primaries)
    }

    pub fn backup_ring(&self) -> RingMap {
        read_ring(&self.backups)
    }

    /// Each ring alone holds every live item, exactly; returns what the rings hold.
    pub fn assert_rings_equal(&self) -> RingMap {
        let (primaries, backups) = (self.primary_ring(), self.backup_ring());
        let differences = compare_rings(&primaries, &backups);
        assert!(
            differences.is_empty(),
            "the rings differ in {} of {} / {} items:\n  {}",
            differences.len(),
            primaries.len(),
            backups.len(),
            differences.iter().take(20).cloned().collect::<Vec<_>>().join("\n  ")
        );
        primaries
    }

    /// Kills every node of a ring and waits until the proxy has noticed, so that only the other
    /// ring can answer. On a starved machine a healthy node may just have been taken for lost: the
    /// second failure comes after it is mirrored.
    pub fn kill_backups(&mut self) {
        self.mirrored();
        self.backups.iter_mut().for_each(Memcached::kill);
        let addrs: Vec<String> = self.backups.iter().map(Memcached::known_as).collect();
        addrs.iter().for_each(|a| self.wait_lost(a));
    }

    /// As [`Self::kill_backups`].
    pub fn kill_primaries(&mut self) {
        self.mirrored();
        self.primaries.iter_mut().for_each(Memcached::kill);
        let addrs: Vec<String> = self.primaries.iter().map(Memcached::known_as).collect();
        addrs.iter().for_each(|a| self.wait_lost(a));
    }

    /// Waits until a resync of this node has copied something and is not done.
    pub fn wait_copying(&self, addr: &str) {
        self.proxy.wait_status(&format!("{addr} being copied to"), super::DEADLINE, |s| {
            s.node(addr) == "copying" && s.node_number(addr, "items_copied") > 0
        });
    }
}

/// Fills `count` keys `prefix:0…` over one pipelined connection with values of `len` bytes that
/// name their key.
pub fn fill(client: &mut Client, prefix: &str, count: usize, len: usize) {
    client.set_deadline(Duration::from_secs(60));
    let indices: Vec<usize> = (0..count).collect();
    for chunk in indices.chunks(500) {
        let mut batch = Vec::new();
        for &i in chunk {
            batch.extend(super::client::storage(
                "set",
                &format!("{prefix}:{i}"),
                i as u32,
                0,
                &filled(prefix, i, len),
                "",
            ));
        }
        client.send(&batch).expect("send a batch of sets");
        for &i in chunk {
            assert_eq!(client.stored(), Ok(super::Stored::Stored), "set {prefix}:{i}");
        }
    }
}

/// The value [`fill`] gives to a key.
pub fn filled(prefix: &str, i: usize, len: usize) -> Vec<u8> {
    let name = format!("{prefix}:{i};");
    name.bytes().cycle().take(len.max(name.len())).collect()
}

/// Reads back what [`fill`] wrote: how many are there; a wrong value fails the test.
pub fn count_filled(client: &mut Client, prefix: &str, count: usize, len: usize) -> usize {
    client.set_deadline(Duration::from_secs(60));
    let mut there = 0;
    let indices: Vec<usize> = (0..count).collect();
    for chunk in indices.chunks(100) {
        let keys: Vec<String> = chunk.iter().map(|i| format!("{prefix}:{i}")).collect();
        let answers = client.get_many("get", &keys).unwrap_or_else(|e| panic!("get {prefix}: {e}"));
        for (&i, item) in chunk.iter().zip(answers) {
            if let Some(item) = item {
                assert_eq!(item.value, filled(prefix, i, len), "value of {prefix}:{i}");
                assert_eq!(item.flags, i as u32, "flags of {prefix}:{i}");
                there += 1;
            }
        }
    }
    there
}
