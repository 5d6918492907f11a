//! Where it was measured.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::systems::{self, Program, Spec};

/// The machine, and the versions of what ran on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_gib: f64,
    pub(crate) system: String,
    pub(crate) kernel: String,
    /// Program → what it says its version is.
    pub(crate) versions: BTreeMap<String, String>,
    /// The command lines whose figures are here, the newest last.
    pub(crate) commands: Vec<String>,
}

impl Machine {
    pub(crate) fn look() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str, separator: char| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(separator).map_or("unknown", |(_, value)| value).trim().trim_matches('"').to_owned()
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal", ':');
        let kib = memory.split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0);
        Machine {
            processor: value(&read("/proc/cpuinfo"), "model name", ':'),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib / f64::from(1 << 20),
            system: value(&read("/etc/os-release"), "PRETTY_NAME", '='),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            versions: BTreeMap::new(),
            commands: vec![command_line()],
        }
    }

    /// What was measured later is added.
    pub(crate) fn take_over(&mut self, new: Machine) {
        let (mut versions, mut commands) = (std::mem::take(&mut self.versions), std::mem::take(&mut self.commands));
        versions.extend(new.versions.clone());
        commands.retain(|command| !new.commands.contains(command));
        commands.extend(new.commands.clone());
        *self = Machine { versions, commands, ..new };
    }

    /// Asks them all.
    pub(crate) fn ask_versions(&mut self, specs: &[Spec]) {
        for spec in specs {
            let (program, flag) = match &spec.program {
                Program::Floor => continue,
                Program::Memcached => (Path::new("memcached"), "-V"),
                Program::Twemproxy => (Path::new("nutcracker"), "-V"),
                Program::MemcachedProxy(program) => (program.as_path(), "-V"),
                Program::Resilver(program) | Program::Active(program) | Program::Standby(program) => {
                    (program.as_path(), "--version")
                }
            };
            let said = systems::runs(program, flag).unwrap_or_default();
            let name = spec.name.split(',').next().unwrap_or_default();
            self.versions.insert(name.to_owned(), said.lines().next().unwrap_or_default().to_owned());
        }
    }
}

/// As it was typed, but without the path to this program.
fn command_line() -> String {
    std::iter::once("bench".to_owned()).chain(std::env::args().skip(1)).collect::<Vec<_>>().join(" ")
}

/// Many clients need many files, here and in what is started from here; says how many there may be.
pub(crate) fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}
