//! The files that the process has made for itself, to be removed at its end whoever ends it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{PidFile, SocketFile};

/// The pid file and the files of unix sockets. They are made while the process starts, and a signal
/// may end it at any moment of that: what is made later is removed at once.
#[derive(Clone, Debug, Default)]
pub struct OwnFiles(Arc<Mutex<Made>>);

#[derive(Debug, Default)]
struct Made {
    pid_file: Option<PidFile>,
    sockets: Vec<SocketFile>,
    is_over: bool,
}

impl OwnFiles {
    pub fn add_pid_file(&self, file: PidFile) {
        self.add(|made| made.pid_file = Some(file));
    }

    pub fn add_socket(&self, file: SocketFile) {
        self.add(|made| made.sockets.push(file));
    }

    fn add(&self, put: impl FnOnce(&mut Made)) {
        let mut made = self.made();
        put(&mut made);
        if made.is_over {
            made.remove();
        }
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        let made = self.made();
        let pid_file = made.pid_file.iter().map(PidFile::path);
        pid_file.chain(made.sockets.iter().map(SocketFile::path)).map(Path::to_owned).collect()
    }

    pub fn remove(&self) {
        self.made().remove();
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Made {
    fn remove(&mut self) {
        *self = Made { is_over: true, ..Made::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_after_the_end_goes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (pid, socket) = (dir.path().join("pid"), dir.path().join("socket"));
        let own = OwnFiles::default();
        own.add_pid_file(PidFile::create(&pid).unwrap());
        assert_eq!(own.paths(), std::slice::from_ref(&pid));
        own.remove();
        assert!(!pid.exists() && own.paths().is_empty());
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        own.add_socket(SocketFile::own(&socket).unwrap());
        assert!(!socket.exists());
    }
}
