//! Which file it is, whatever its name: another one may stand at its path meanwhile.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device and inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileId(u64, u64);

impl FileId {
    pub(super) fn of(file: &Metadata) -> FileId {
        FileId(file.dev(), file.ino())
    }

    /// Whether it is still what stands there.
    pub(super) fn is_at(self, path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_ok_and(|found| FileId::of(&found) == self)
    }
}
