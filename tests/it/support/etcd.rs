//! One real etcd process, which can be stopped and continued, killed, and started again.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::memcached::{pause, signal};
use super::port::Port;
use super::wait_until;

/// A member that is alone. Dropping it kills the process (by pid).
pub struct Etcd {
    client: Port,
    _peer: Port,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Etcd {
    pub fn start() -> Etcd {
        // Where it is memory its fsyncs cost nothing.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.expect("temporary directory");
        let (client, peer) = (Port::reserve(), Port::reserve());
        let (at, between) = (format!("http://{}", client.addr()), format!("http://{}", peer.addr()));
        let child = Command::new("etcd")
            .args(["--name", "a", "--heartbeat-interval", "25", "--election-timeout", "250"])
            .args(["--listen-client-urls", &at, "--advertise-client-urls", &at])
            .args(["--listen-peer-urls", &between, "--initial-advertise-peer-urls", &between])
            .args(["--initial-cluster", &format!("a={between}"), "--data-dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is there: scripts/need-etcd installs it");
        let etcd = Etcd { client, _peer: peer, child, _dir: dir };
        wait_until("etcd listens", super::DEADLINE, || std::net::TcpStream::connect(etcd.client.addr()).is_ok());
        etcd
    }

    /// For `--coordinate`.
    pub fn fleet(&self, name: &str) -> String {
        format!("etcd://{}/{name}", self.client.addr())
    }

    pub fn pause(&self) {
        pause(self.child.id());
    }

    pub fn resume(&self) {
        signal(self.child.id(), "CONT");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
