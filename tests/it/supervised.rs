//! What a service manager hears of a proxy, and when it hears no more that it lives.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::fleet::Hung;
use crate::support::port::Port;
use crate::support::{Client, DEADLINE, Etcd, Memcached, Proxy, wait_until};

/// Stands in for systemd. The proxy is to say within two seconds that it lives.
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Manager {
    pub fn new() -> Manager {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        Manager { socket, path, _dir: dir }
    }

    /// What it starts is told where it listens.
    pub fn watches(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", "2000000");
    }

    /// Whether it was told nothing, so far.
    pub fn heard_nothing(&self) -> bool {
        self.socket.set_nonblocking(true).expect("set");
        self.socket.recv(&mut [0; 4096]).is_err()
    }

    /// The next word that says this.
    pub fn hears(&self, wanted: &str) -> String {
        let (mut block, mut last, begun) = ([0; 4096], String::new(), Instant::now());
        loop {
            assert!(begun.elapsed() < DEADLINE, "never heard {wanted}, but {last}");
            let Ok(read) = self.socket.recv(&mut block) else { panic!("never heard {wanted}, but {last}") };
            last = String::from_utf8_lossy(&block[..read]).into_owned();
            if last.contains(wanted) {
                return last;
            }
        }
    }
}

/// A proxy that is watched; killed when dropped.
struct Watched {
    child: Child,
    port: Port,
}

impl Watched {
    fn start(manager: &Manager, nodes: &[Memcached; 2], more: &[&str]) -> Watched {
        let port = Port::reserve();
        let mut command = Command::new(Proxy::binary());
        command.args(["-l", "127.0.0.1", "-p", &port.number.to_string(), "--threads", "1"]);
        command.args(["-s", &nodes[0].addr(), "-b", &nodes[1].addr()]).args(more);
        manager.watches(&mut command);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
        Watched { child, port }
    }

    /// Its control plane, from now on.
    fn hangs(&self) -> Option<Hung> {
        let hung = Hung::of(self.child.id(), "resilver");
        if hung.is_none() {
            eprintln!("SKIPPED: no thread can be made to hang: strace is missing (scripts/need-meters)");
        }
        hung
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Else it is ended while it only waits, and its clients with it.
#[test]
fn a_suspended_proxy_lives_and_says_why_it_waits_but_for_one_that_hangs() {
    let (etcd, manager, nodes) = (Etcd::start(), Manager::new(), [Memcached::start(&[]), Memcached::start(&[])]);
    let proxy = Watched::start(&manager, &nodes, &["--coordinate", &etcd.fleet("watched"), "--lease", "1s"]);
    manager.hears("STATUS=MIRRORED: ");
    etcd.pause();
    for _ in 0..5 {
        let said = manager.hears("STATUS=SUSPENDED: its lease is over");
        assert!(said.contains("WATCHDOG=1"), "{said}");
    }
    manager.hears("before it goes on; etcd ");
    if let Some(_hung) = proxy.hangs() {
        let said = manager.hears("STATUS=the control plane does not answer");
        assert!(!said.contains("WATCHDOG=1"), "{said}");
    }
    manager.hears("STATUS=SUSPENDED: ");
    etcd.resume();
    manager.hears("STATUS=MIRRORED: ");
}

#[test]
fn a_standby_says_so() {
    let (manager, nodes) = (Manager::new(), [Memcached::start(&[]), Memcached::start(&[])]);
    let dir = tempfile::tempdir().expect("a folder");
    let fleet = format!("file:{}", dir.path().join("fleet").display());
    let _active = Watched::start(&manager, &nodes, &["--coordinate", &fleet]);
    manager.hears("STATUS=MIRRORED: ");
    let second = Manager::new();
    let _standby = Watched::start(&second, &nodes, &["--coordinate", &fleet]);
    let said = second.hears("STATUS=STANDBY: clients are served by the active proxy, 127.0.0.1:");
    assert!(said.contains("WATCHDOG=1"), "{said}");
}

#[test]
fn a_control_plane_that_hangs_is_not_said_to_live() {
    let (manager, nodes) = (Manager::new(), [Memcached::start(&[]), Memcached::start(&[])]);
    let proxy = Watched::start(&manager, &nodes, &[]);
    manager.hears("STATUS=MIRRORED: ");
    let Some(_hung) = proxy.hangs() else { return };
    for _ in 0..3 {
        let said = manager.hears("STATUS=the control plane does not answer");
        assert!(!said.contains("WATCHDOG=1"), "{said}");
    }
}

/// It answers nobody before it has looked at the servers, for which they have their time.
#[test]
fn a_proxy_that_waits_for_its_servers_at_the_start_lives() {
    let (manager, nodes) = (Manager::new(), [Memcached::start(&[]), Memcached::start(&[])]);
    nodes[0].pause();
    let proxy = Watched::start(&manager, &nodes, &["--timeout", "1h", "--probe-timeout", "1h"]);
    for _ in 0..5 {
        let said = manager.hears("STATUS=STARTING: the servers are looked at");
        assert!(said.contains("WATCHDOG=1"), "{said}");
    }
    if let Some(_hung) = proxy.hangs() {
        let said = manager.hears("STATUS=the control plane does not answer");
        assert!(!said.contains("WATCHDOG=1"), "{said}");
    }
    manager.hears("STATUS=STARTING: ");
    nodes[0].resume();
    manager.hears("STATUS=MIRRORED: ");
}

/// Who looks at a page asks what servers hold, but not a service manager, every few seconds.
#[test]
fn a_service_manager_costs_the_servers_no_question() {
    let (manager, nodes) = (Manager::new(), [Memcached::start(&[]), Memcached::start(&[])]);
    let proxy = Watched::start(&manager, &nodes, &[]);
    for _ in 0..3 {
        manager.hears("STATUS=MIRRORED: ");
    }
    let held = |client: &mut Client| {
        let servers = client.stats("servers").expect("stats servers");
        servers.into_iter().any(|(name, _)| name.ends_with(":items"))
    };
    let mut client = Client::connect(&proxy.port.addr());
    assert!(!held(&mut client), "the servers were asked before anybody looked");
    wait_until("what they hold", DEADLINE, || held(&mut client));
}
