//! One real etcd process, which can be stopped and continued, killed, and started again with what
//! it held before.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::memcached::{pause, signal};
use super::port::Port;
use super::wait_until;

/// A member that is alone. Dropping it kills the process (by pid).
pub struct Etcd {
    client: Port,
    peer: Port,
    child: Child,
    dir: tempfile::TempDir,
}

/// Where it is memory etcd's fsyncs cost nothing.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("temporary directory")
}

fn spawn(client: &Port, peer: &Port, dir: &Path) -> Child {
    let (at, between) = (format!("http://{}", client.addr()), format!("http://{}", peer.addr()));
    let child = Command::new("etcd")
        .args(["--name", "a", "--heartbeat-interval", "25", "--election-timeout", "250"])
        .args(["--listen-client-urls", &at, "--advertise-client-urls", &at])
        .args(["--listen-peer-urls", &between, "--initial-advertise-peer-urls", &between])
        .args(["--initial-cluster", &format!("a={between}"), "--data-dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd is there: scripts/need-etcd installs it");
    wait_until("etcd listens", super::DEADLINE, || std::net::TcpStream::connect(client.addr()).is_ok());
    child
}

impl Etcd {
    pub fn start() -> Etcd {
        let (client, peer, dir) = (Port::reserve(), Port::reserve(), folder());
        let child = spawn(&client, &peer, dir.path());
        Etcd { client, peer, child, dir }
    }

    /// For `--coordinate`.
    pub fn fleet(&self, name: &str) -> String {
        format!("etcd://{}/{name}", self.addr())
    }

    pub fn addr(&self) -> String {
        self.client.addr()
    }

    pub fn pause(&self) {
        pause(self.child.id());
    }

    pub fn resume(&self) {
        signal(self.child.id(), "CONT");
    }

    /// A copy of what it holds now.
    pub fn backup(&self) -> tempfile::TempDir {
        let copy = folder();
        self.pause();
        let from = self.dir.path().join("member");
        let copied = Command::new("cp").arg("-r").arg(from).arg(copy.path()).status().expect("run cp(1)");
        self.resume();
        assert!(copied.success(), "cp: {copied}");
        copy
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after [`Self::kill`], with that in the place of what it held, or with
    /// nothing.
    pub fn restore(&mut self, backup: Option<tempfile::TempDir>) {
        self.dir = backup.unwrap_or_else(folder);
        self.child = spawn(&self.client, &self.peer, self.dir.path());
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
