//! Paths: what the proxy creates, and where.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Check;

/// The longest path of a unix socket, in bytes: `sun_path` has one more, for its end.
const SOCKET_PATH_MAX: usize = 107;

impl Check<'_> {
    pub(super) fn path(&mut self, id: &str, values: &[String]) -> Option<PathBuf> {
        let text = self.single(id, values)?;
        if text.contains('\0') {
            self.bad(id, text, "has a zero byte, which no path may have");
            return None;
        }
        // Absolute, because a daemon leaves the directory it was started in.
        match std::path::absolute(text).and_then(|_| std::path::absolute(self.host.directory.join(text))) {
            Ok(path) if path.file_name().is_some() && !text.ends_with('/') => Some(path),
            Ok(_) => {
                self.bad(id, text, "must be the path of a file");
                None
            }
            Err(why) => {
                self.bad(id, text, format_args!("is no path ({why}); give the path of a file"));
                None
            }
        }
    }

    pub(super) fn socket_path(&mut self, id: &str, values: &[String]) -> Option<PathBuf> {
        let path = self.path(id, values)?;
        if path.as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
            let why = format_args!("a socket's path has at most {SOCKET_PATH_MAX} bytes; give a shorter one");
            self.bad(id, &path.display().to_string(), why);
        }
        Some(path)
    }

    /// Each of them would remove or overwrite the other one's file.
    pub(super) fn files_apart(&mut self, files: &[(&str, Option<&Path>)]) {
        for (at, (id, path)) in files.iter().enumerate() {
            let Some(path) = path else { continue };
            if let Some((other, _)) = files[..at].iter().find(|(_, known)| known == &Some(*path)) {
                let why = format!("is the path of {} too; give another one", self.flag(other));
                self.bad(id, &path.display().to_string(), why);
            }
        }
    }
}
