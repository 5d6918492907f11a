//! Host names that a test can move, without touching the machine's: the proxy gets a mount
//! namespace of its own, in which files of the test's stand in the place of `/etc/hosts` and
//! `/etc/nsswitch.conf` (so that no name server is asked).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SWITCH: &str = "nsswitch.conf";

/// A hosts file.
pub struct Names {
    folder: tempfile::TempDir,
}

impl Names {
    /// `None`, said on stderr, where no such namespace can be had: it takes root.
    pub fn new(test: &str) -> Option<Names> {
        let names = Names { folder: tempfile::tempdir().expect("temporary folder") };
        std::fs::write(names.folder.path().join(SWITCH), "hosts: files\n").expect("write nsswitch.conf");
        names.lead(&[("resilver-test-name", "127.0.0.9")]);
        let mut probe = command(&names.file(), Path::new("getent"));
        let found = probe.args(["hosts", "resilver-test-name"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
        let works = found.is_ok_and(|found| String::from_utf8_lossy(&found.stdout).contains("127.0.0.9"));
        if !works {
            eprintln!(
                "SKIPPED {test}: no mount namespace with another /etc/hosts can be had here (it takes root and unshare)"
            );
        }
        works.then_some(names)
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    /// From now on these are all the names there are. The file stays the same one, for that is what
    /// is mounted.
    pub fn lead(&self, names: &[(&str, &str)]) {
        let lines: String = names.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
        std::fs::write(self.file(), format!("127.0.0.1 localhost\n{lines}")).expect("write the hosts file");
    }

    /// A look-up never comes back: whoever opens a FIFO waits for a writer.
    pub fn hang(&self) {
        std::fs::remove_file(self.file()).expect("remove the hosts file");
        let made = Command::new("mkfifo").arg(self.file()).status().expect("run mkfifo(1)");
        assert!(made.success(), "mkfifo: {made}");
    }
}

/// A command that finds `hosts` where `/etc/hosts` is.
pub fn command(hosts: &Path, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    let mounts = r#"mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/nsswitch.conf && shift 2 && exec "$@""#;
    command.args(["-m", "sh", "-c", mounts, "sh"]).arg(hosts).arg(hosts.with_file_name(SWITCH)).arg(program);
    command
}
