//! The program under test as a command: run to its end, or running beside a test.

use std::process::{Child, Command, ExitStatus, Output, Stdio};

use super::Proxy;
use super::memcached::signal;

/// It, with nothing to read.
pub fn resilver() -> Command {
    let mut command = Command::new(Proxy::binary());
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end: exit code, what it printed, what it complained of.
pub fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    ended(resilver().args(arguments))
}

/// The same of a command that was made ready.
pub fn ended(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("run resilver");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// Exit code, and everything that it said.
pub fn told(arguments: &[&str]) -> (Option<i32>, String) {
    let (code, printed, complaint) = run(arguments);
    (code, printed + &complaint)
}

/// One that runs beside the test, and is killed at its end whatever happens.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Running {
        Running(command.spawn().expect("start resilver"))
    }

    pub fn end(mut self, with: &str) -> ExitStatus {
        signal(self.0.id(), with);
        self.0.wait().expect("its end")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
