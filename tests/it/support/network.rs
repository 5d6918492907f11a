//! A network that a test can cut, without touching the machine's: the test runs itself again in a
//! network namespace of its own, and has a server in another one, at the far end of a cable (a veth
//! pair).

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{DEADLINE, wait_until};

/// Set where the test runs in its own namespace.
const INSIDE: &str = "RESILVER_TEST_NETWORK";
/// So often what is not acknowledged is sent again, before the kernel gives the connection up:
/// after some 1.3 s.
const RETRIES: &str = "2";

const NEAR: &str = "10.99.0.1/24";
/// Where a server at the far end listens.
pub const FAR: &str = "10.99.0.2";

/// Whether the test is to be made here. Where it is not, it was made in a namespace of its own, and
/// passed; or cannot be made, which is said on stderr.
pub fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let works = run("unshare", &["-n", "ip", "link", "add", "here", "type", "veth", "peer", "name", "there"]);
    if let Err(why) = works {
        eprintln!(
            "SKIPPED {test}: no network namespace with a veth pair can be had here (it takes root, unshare and ip): {why}"
        );
        return false;
    }
    let program = std::env::current_exe().expect("the tests' program");
    let mut again = Command::new("unshare");
    again.arg("-n").arg(program).args(["--exact", test, "--nocapture", "--test-threads", "1"]);
    let output = again.env(INSIDE, "1").stdin(Stdio::null()).output().expect("run unshare(1)");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "in its own network:\n{said}");
    false
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(args).stdin(Stdio::null()).output().map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program} {args:?}: {said}")) }
}

fn ip(args: &[&str]) {
    run("ip", args).expect("ip(8)");
}

/// The cable, and the namespace at its far end, which lasts as long as the process that holds it.
pub struct Cable {
    holder: Child,
}

impl Cable {
    /// Only inside a namespace of the test's own: it has the names of the one that is there.
    pub fn lay() -> Cable {
        ip(&["link", "set", "lo", "up"]);
        fs::write("/proc/sys/net/ipv4/tcp_retries2", RETRIES).expect("tcp_retries2");
        let holder =
            Command::new("unshare").args(["-n", "sleep", "600"]).stdin(Stdio::null()).spawn().expect("unshare");
        let cable = Cable { holder };
        let network =
            |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).unwrap_or_else(|_| PathBuf::new());
        wait_until("the far namespace", DEADLINE, || network(&cable.far()) != network("self"));
        ip(&["link", "add", "here", "type", "veth", "peer", "name", "there", "netns", &cable.far()]);
        ip(&["addr", "add", NEAR, "dev", "here"]);
        ip(&["link", "set", "here", "up"]);
        cable.at_far_end(&["addr", "add", &format!("{FAR}/24"), "dev", "there"]);
        cable.join();
        cable
    }

    /// The process that holds the namespace.
    pub fn far(&self) -> String {
        self.holder.id().to_string()
    }

    fn at_far_end(&self, args: &[&str]) {
        let far = self.far();
        let all: Vec<&str> = ["-t", &far, "-n", "ip"].iter().chain(args).copied().collect();
        run("nsenter", &all).expect("nsenter(1)");
    }

    /// Nothing comes through any more, and nobody is told.
    pub fn cut(&self) {
        self.at_far_end(&["link", "set", "there", "down"]);
    }

    pub fn join(&self) {
        self.at_far_end(&["link", "set", "there", "up"]);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
