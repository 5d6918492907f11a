//! Which file it is, whatever its name: another one may stand at its path meanwhile.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device and inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    pub(crate) fn of(file: &Metadata) -> FileId {
        FileId(file.dev(), file.ino())
    }

    /// Whether it stands at that path itself: a symbolic link there is another file.
    pub(crate) fn is_at(self, path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_ok_and(|found| FileId::of(&found) == self)
    }

    /// Whether that path leads to it, also over symbolic links.
    pub(crate) fn is_reached_by(self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|found| FileId::of(&found) == self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_from_one_that_took_its_place_and_from_a_link_to_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, link) = (folder.path().join("file"), folder.path().join("link"));
        let file = std::fs::File::create(&path).expect("a file");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        let id = FileId::of(&file.metadata().expect("it is open"));
        assert!(id.is_at(&path) && id.is_reached_by(&path));
        assert!(!id.is_at(&link) && id.is_reached_by(&link));
        std::fs::remove_file(&path).expect("removed");
        assert!(!id.is_at(&path) && !id.is_reached_by(&path), "nothing is there");
        std::fs::write(&path, "another one").expect("a file");
        assert!(!id.is_at(&path) && !id.is_reached_by(&path));
    }
}
