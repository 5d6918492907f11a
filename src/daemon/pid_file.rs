//! The pid file: says where the daemon is, and that there is only one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use thiserror::Error;

use crate::file_id::FileId;

/// The file can be removed between opening and locking it, once for each process that ends just
/// then.
const ATTEMPTS: usize = 8;

/// Why there is no pid file.
#[derive(Debug, Error)]
pub enum PidFileError {
    /// Another resilver runs with this file.
    #[error("pid file {}: resilver is already running as process {pid}; stop it, or give another --pid-file", .path.display())]
    Running {
        path: PathBuf,
        /// The process in it.
        pid: String,
    },
    #[error("cannot write pid file {}: {cause}; give another --pid-file", .path.display())]
    System { path: PathBuf, cause: io::Error },
}

/// A pid file that is ours; removed on drop.
///
/// It is locked for as long as the process lives. The lock is what counts, not the number in the
/// file: after a crash the number may long be another process's, and in containers nearly every
/// process has the same one.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: Flock<File>,
}

impl PidFile {
    /// Writes this process's id to `path`.
    ///
    /// # Errors
    ///
    /// A living resilver owns it, or it cannot be written.
    pub fn create(path: &Path) -> Result<PidFile, PidFileError> {
        let system = |cause: io::Error| PidFileError::System { path: path.to_owned(), cause };
        for _ in 0..ATTEMPTS {
            // NOFOLLOW: the default may be in /tmp, where others could have planted a link.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(path)
                .map_err(system)?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    return Err(PidFileError::Running { path: path.to_owned(), pid: read_pid(&mut file) });
                }
                Err((_, errno)) => return Err(system(errno.into())),
            };
            // Its owner may have removed it between our opening and our locking it; then the lock
            // is on nothing.
            let ours = file.metadata().map_err(system)?;
            if !FileId::of(&ours).is_at(path) {
                continue;
            }
            let pid = read_pid(&mut file);
            if is_living_resilver(&pid) {
                return Err(PidFileError::Running { path: path.to_owned(), pid });
            }
            // Dropped, and so removed, where the disk is full.
            let mut own = PidFile { path: path.to_owned(), file };
            write_pid(&mut own.file).map_err(system)?;
            return Ok(own);
        }
        Err(system(io::Error::other("it is removed again and again by other processes")))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have removed it, and started another proxy with a file of its own.
        let same = self.file.metadata().is_ok_and(|ours| FileId::of(&ours).is_at(&self.path));
        if same && std::fs::remove_file(&self.path).is_err() {
            // The directory is root's, and the privileges are gone: an empty file names nobody.
            let _ = self.file.set_len(0);
        }
    }
}

fn read_pid(file: &mut File) -> String {
    let mut text = String::new();
    // A pid has ten digits at most; whatever else is in the file is not one.
    match file.take(32).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    use std::io::Seek;
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Whether a process of that number is a resilver other than this one, although it holds no lock:
/// somebody may have written the file by hand. Only Linux tells; elsewhere the lock alone decides.
fn is_living_resilver(pid: &str) -> bool {
    let Ok(pid) = pid.parse::<u32>() else { return false };
    // `4711 (resilver) S …`
    let name_and_state = |who: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{who}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        Some((name.to_owned(), rest.trim_start().chars().next()?))
    };
    let (Some((own, _)), Some((name, state))) = (name_and_state("self"), name_and_state(&pid.to_string())) else {
        return false;
    };
    // In a container without an init nobody collects the dead: a killed resilver keeps its name for
    // ever.
    pid != std::process::id() && name == own && !matches!(state, 'Z' | 'X')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resilver.pid");
        let first = PidFile::create(&path).unwrap();
        let own = std::process::id().to_string();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{own}\n"));
        match PidFile::create(&path) {
            Err(PidFileError::Running { pid, .. }) => assert_eq!(pid, own),
            other => panic!("{other:?}"),
        }
        drop(first);
        assert!(!path.exists());
    }

    /// Somebody has removed it meanwhile, and started another proxy.
    #[test]
    fn another_ones_file_is_left_alone_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resilver.pid");
        let first = PidFile::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = PidFile::create(&path).unwrap();
        drop(first);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_one_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resilver.pid");
        // Longer than what is written over it; a leftover digit would name another process.
        for stale in ["99999999999999", "", "rubbish\nand more of it\n", "1"] {
            std::fs::write(&path, stale).unwrap();
            let file = PidFile::create(&path).unwrap();
            assert_eq!(std::fs::read_to_string(file.path()).unwrap(), format!("{}\n", std::process::id()));
        }
    }

    #[test]
    fn no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("link"), dir.path().join("precious"));
        std::fs::write(&target, "data").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(PidFile::create(&link), Err(PidFileError::System { .. })));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "data");
    }
}
