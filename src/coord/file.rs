//! The record in a file, for proxies of one host.
//!
//! - `PATH` holds the revision and the record. It is read as it is, and replaced as a whole by
//!   whoever holds the lock of `PATH.lock`.
//! - `PATH.HOLDER` is there for each proxy, and locked as long as its process lives. So a proxy
//!   that gets that lock knows that the process has ended, and need not wait for its lease: the
//!   kernel releases the locks of a process when it ends, in whatever way. The file names the
//!   process, so that a stopped or hanging one can be ended. Those of processes that have ended are
//!   removed by whoever starts or becomes active, but for that of the record's holder.
//!
//! A host that loses power may leave a file without its content: that is no record. On disk before
//! it takes the old one's place, the new content is what is found then. (That the old one may be
//! found again is like a restored backup, which all are prepared for.)

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, fstatfs};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::file_id::FileId;

use super::record::{Holder, Record};
use super::register::{Register, Seen, Swapped, Unread, Value};

/// The lock is held for a read and a write of one small file: a proxy that finds it taken tries
/// again after this.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// How long a start waits for that lock, to remove what others left.
const PATIENCE: Duration = Duration::from_millis(100);

/// Only proxies of one user, or root's, share a record.
const MODE: u32 = 0o600;

/// More than any record.
const MOST: u64 = 1 << 20;

/// After a write that took more than 1/`QUICK` of a swap's time, heartbeats are not synced to disk:
/// each is replaced by the next one, and they must not take the lease's time. (Measured: 4 ms, at
/// most 77 ms beside a writer of gigabytes, of 500 with the default lease.)
const QUICK: u32 = 4;

#[derive(Debug)]
pub struct FileRegister {
    path: PathBuf,
    /// Locked as long as this process lives.
    life: File,
    life_path: PathBuf,
    /// The disk was last asked to write a record, and was not [quick](QUICK).
    is_slow: bool,
    /// How the disk is asked to write; tests replace it.
    sync: fn(&File) -> io::Result<()>,
}

/// Why a file will not do.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("{} is on a network file system ({kind}): locks there outlive the processes that hold them, or do not hold; \
             give a path on a file system of this host, for example below /run", .path.display())]
    Network { path: PathBuf, kind: &'static str },
    #[error("cannot use {}: the directory {} is not there; make it, on this host and for this user (under systemd: \
             RuntimeDirectory=), or give another path", .path.display(), .directory.display())]
    NoDirectory { path: PathBuf, directory: PathBuf },
    #[error("cannot use {}: {cause}; this user must be able to make files in its directory", .path.display())]
    System { path: PathBuf, cause: io::Error },
}

impl FileRegister {
    /// Makes the lock of this process.
    pub fn open(path: &Path, me: Holder) -> Result<FileRegister, Unfit> {
        let life_path = beside(path, &me.to_string());
        let unfit = |cause: io::Error| match path.parent() {
            // It is not made: with a path that is misspelt a proxy would begin another fleet.
            Some(directory) if cause.kind() == io::ErrorKind::NotFound && !directory.is_dir() => {
                Unfit::NoDirectory { path: path.to_owned(), directory: directory.to_owned() }
            }
            _ => Unfit::System { path: path.to_owned(), cause },
        };
        let mut life = made(&life_path).map_err(unfit)?;
        let kind = fstatfs(&life).map_err(|error| unfit(error.into()))?.f_type as u64;
        if let Some(kind) = network(kind & 0xffff_ffff) {
            let _ = std::fs::remove_file(&life_path);
            return Err(Unfit::Network { path: path.to_owned(), kind });
        }
        // No other process knows of this file yet.
        flock(&life, FlockOperation::NonBlockingLockExclusive).map_err(|error| unfit(error.into()))?;
        life.write_all(Process::own().map_err(unfit)?.to_string().as_bytes()).map_err(unfit)?;
        let register = FileRegister { path: path.to_owned(), life, life_path, is_slow: false, sync: File::sync_data };
        // Files that other processes left do no harm: a failure here is none.
        let deadline = Instant::now() + PATIENCE;
        let _ = register.lock(deadline).and_then(|_locked| register.sweep(register.seen()?.value.record()));
        Ok(register)
    }

    /// Removes the files of processes that have ended. To be called with the lock held, so that
    /// none becomes the record's holder meanwhile. The holder's file stays: it is the proof of its
    /// end.
    fn sweep(&self, record: Option<&Record>) -> io::Result<()> {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(()) };
        let kept = record.map(|record| record.holder.to_string());
        for entry in directory.read_dir()? {
            let path = entry?.path();
            let Some(end) = path.file_name().and_then(|own| holder_of(name.as_bytes(), own.as_bytes())) else {
                continue;
            };
            if Some(end) == kept.as_deref() {
                continue;
            }
            let Ok(mut file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
            // One that begins locks its file before it writes its name.
            if names_a_process(&mut file) && is_locked_at(&file, &path).unwrap_or(false) {
                let _ = std::fs::remove_file(&path);
            }
        }
        Ok(())
    }

    fn life_of(&self, holder: Holder) -> Option<File> {
        OpenOptions::new().read(true).write(true).open(beside(&self.path, &holder.to_string())).ok()
    }

    fn seen(&self) -> io::Result<Seen> {
        let mut text = String::new();
        match File::open(&self.path) {
            Ok(file) => file.take(MOST).read_to_string(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Seen { revision: 0, value: Value::Absent });
            }
            Err(error) => return Err(error),
        };
        // A file whose length alone was written reads as zeros.
        if text.trim_matches('\0').is_empty() {
            return Ok(Seen { revision: 0, value: Value::Absent });
        }
        let (revision, record) = text.trim_end().split_once(' ').unwrap_or_default();
        Ok(match (revision.parse(), Record::parse(record)) {
            (Ok(revision), Some(record)) => Seen { revision, value: Value::Record(record) },
            _ => Seen { revision: 1, value: Value::Unreadable },
        })
    }

    /// The lock under which processes read and replace the file, one after the other.
    fn lock(&self, deadline: Instant) -> io::Result<File> {
        let path = beside(&self.path, "lock");
        loop {
            let file = made(&path)?;
            if is_locked_at(&file, &path)? {
                return Ok(file);
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds its lock all the time"));
            }
            std::thread::sleep(LOCK_PAUSE);
        }
    }

    fn replace(&mut self, seen: &Seen, new: &Record, deadline: Instant) -> io::Result<Swapped> {
        let _locked = self.lock(deadline)?;
        if self.seen()? != *seen {
            return Ok(Swapped::Refused);
        }
        let revision = seen.revision + 1;
        let next = beside(&self.path, "new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&next)?;
        writeln!(file, "{revision} {new}")?;
        if !self.is_slow || !seen.value.record().is_some_and(|before| is_heartbeat(before, new)) {
            let begun = Instant::now();
            (self.sync)(&file)?;
            self.is_slow = begun.elapsed() >= deadline.saturating_duration_since(begun) / QUICK;
        }
        std::fs::rename(&next, &self.path)?;
        if seen.value.record().is_none_or(|before| before.holder != new.holder) {
            let _ = self.sweep(Some(new));
        }
        Ok(Swapped::Done(revision))
    }

    fn unread(&self, error: &io::Error) -> Unread {
        Unread(format!("{}: {error}", self.path.display()))
    }
}

impl Register for FileRegister {
    fn read(&mut self, _: Instant) -> Result<Seen, Unread> {
        self.seen().map_err(|error| self.unread(&error))
    }

    fn swap(&mut self, seen: &Seen, new: &Record, deadline: Instant) -> Result<Swapped, Unread> {
        if !is_at(&self.life, &self.life_path) {
            // Other proxies look for this file to see whether this process lives.
            return Err(Unread(format!("{} was removed: it shows that this process lives", self.life_path.display())));
        }
        self.replace(seen, new, deadline).map_err(|error| self.unread(&error))
    }

    fn is_dead(&mut self, holder: Holder) -> bool {
        let path = beside(&self.path, &holder.to_string());
        let Some(file) = self.life_of(holder) else { return false };
        is_locked_at(&file, &path).unwrap_or(false)
    }

    fn end(&mut self, holder: Holder) -> Option<String> {
        let mut text = String::new();
        self.life_of(holder)?.take(MOST).read_to_string(&mut text).ok()?;
        let process = Process::parse(&text)?;
        let ended = process.end().map_or_else(|error| format!("cannot be: {error}"), |()| "is".to_owned());
        Some(format!("process {} {ended} ended by SIGKILL", process.pid))
    }
}

impl Drop for FileRegister {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.life_path);
    }
}

/// A process, so that another one with its number is not taken for it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Process {
    pid: i32,
    /// When it was started, in the kernel's ticks since the machine's start.
    started: String,
    /// Which start of the machine that was, and the name space that its number belongs to.
    boot: String,
    numbers: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Process { pid, started, boot, numbers } = self;
        write!(f, "{pid} {started} {boot} {numbers}")
    }
}

impl Process {
    fn own() -> io::Result<Process> {
        Process::of(std::process::id() as i32)
    }

    fn of(pid: i32) -> io::Result<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Behind the name, which may hold anything: the 20th word is the 22nd field.
        let started = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
        let started = started.ok_or_else(|| io::Error::other("/proc does not tell when it began"))?.to_owned();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let numbers = std::fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned();
        Ok(Process { pid, started, boot, numbers })
    }

    fn parse(text: &str) -> Option<Process> {
        let mut words = text.split(' ').map(str::to_owned);
        let pid = words.next()?.parse().ok().filter(|&pid| pid > 1)?;
        Some(Process { pid, started: words.next()?, boot: words.next()?, numbers: words.next()? })
    }

    fn end(&self) -> io::Result<()> {
        let gone = || io::Error::other("it is not there");
        let pid = Pid::from_raw(self.pid).ok_or_else(gone)?;
        // From here on the number is that process's, whichever it is.
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        if Process::of(self.pid)? != *self {
            return Err(gone());
        }
        Ok(pidfd_send_signal(process.as_fd(), Signal::KILL)?)
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

fn made(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(MODE).open(path)
}

/// Whether nothing else changes.
fn is_heartbeat(before: &Record, new: &Record) -> bool {
    *new == Record { heartbeat: new.heartbeat, ..before.clone() }
}

/// The HOLDER of a file called `PATH.HOLDER`; `None` if it is called otherwise.
fn holder_of<'a>(path: &[u8], name: &'a [u8]) -> Option<&'a str> {
    let end = std::str::from_utf8(name.strip_prefix(path)?.strip_prefix(b".")?).ok()?;
    (end.len() == 16 && end.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(end)
}

fn names_a_process(file: &mut File) -> bool {
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).is_ok() && Process::parse(&text).is_some()
}

/// Locks the file, unless another process has. Returns whether it is locked now, and what that path
/// leads to: between the opening and this somebody may have removed it, and another one made the
/// next, whose lock says something else.
fn is_locked_at(file: &File, path: &Path) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(is_at(file, path)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether this file is what that path leads to.
fn is_at(file: &File, path: &Path) -> bool {
    file.metadata().is_ok_and(|own| FileId::of(&own).is_reached_by(path))
}

/// Which file system of a network that is, by `statfs`.
fn network(kind: u64) -> Option<&'static str> {
    Some(match kind {
        0x6969 => "nfs",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "smb",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse",
        0x00c3_6400 => "ceph",
        0x5346_414f => "afs",
        0x0bd0_0bd0 => "lustre",
        0x0116_1970 => "gfs2",
        0x7461_636f => "ocfs2",
        0x7375_7245 => "coda",
        0x564c => "ncp",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn record(holder: Holder, heartbeat: u64) -> Record {
        Record { heartbeat, ..Record::of(holder) }
    }

    #[test]
    fn a_swap_is_made_only_where_what_was_seen_still_stands() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let mut one = FileRegister::open(&path, Holder(1)).unwrap();
        let mut other = FileRegister::open(&path, Holder(2)).unwrap();
        let absent = one.read(soon()).unwrap();
        assert_eq!(absent, Seen { revision: 0, value: Value::Absent });
        assert_eq!(one.swap(&absent, &record(Holder(1), 1), soon()), Ok(Swapped::Done(1)));
        assert_eq!(other.swap(&absent, &record(Holder(2), 1), soon()), Ok(Swapped::Refused));
        let seen = other.read(soon()).unwrap();
        assert_eq!(seen, Seen { revision: 1, value: Value::Record(record(Holder(1), 1)) });
        assert_eq!(other.swap(&seen, &record(Holder(2), 2), soon()), Ok(Swapped::Done(2)));
        assert_eq!(one.swap(&seen, &record(Holder(1), 2), soon()), Ok(Swapped::Refused));
        std::fs::write(&path, "something else").unwrap();
        assert_eq!(one.read(soon()).unwrap().value, Value::Unreadable);
    }

    /// Signals to these numbers would go to others, or to the first process.
    #[test]
    fn no_other_number_is_taken_for_a_process_and_no_other_file_for_a_holders() {
        for pid in ["-1", "0", "1", "x", ""] {
            assert_eq!(Process::parse(&format!("{pid} 2 3 4")), None, "{pid}");
        }
        assert!(Process::parse("2 2 3 4").is_some() && Process::parse("2 2 3").is_none());
        assert_eq!(holder_of(b"fleet", b"fleet.00000000000000ff"), Some("00000000000000ff"));
        for name in ["fleet.ff", "fleet.00000000000000fg", "fleet.lock", "fleet", "other.00000000000000ff"] {
            assert_eq!(holder_of(b"fleet", name.as_bytes()), None, "{name}");
        }
        assert!(network(0x6969).is_some() && network(0x0102_1994).is_none(), "tmpfs is of this host");
    }

    #[test]
    fn a_file_without_its_content_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let mut register = FileRegister::open(&path, Holder(1)).unwrap();
        for left in ["", "\0\0\0\0"] {
            std::fs::write(&path, left).unwrap();
            let absent = register.read(soon()).unwrap();
            assert_eq!(absent, Seen { revision: 0, value: Value::Absent });
            assert_eq!(register.swap(&absent, &record(Holder(1), 1), soon()), Ok(Swapped::Done(1)));
        }
    }

    #[test]
    fn a_record_is_on_disk_before_it_takes_the_old_ones_place_and_a_slow_disk_delays_no_heartbeat() {
        thread_local! { static SYNCED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) } }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let mut register = FileRegister::open(&path, Holder(1)).unwrap();
        register.sync = |_| {
            SYNCED.set(SYNCED.get() + 1);
            Ok(())
        };
        let swap = |register: &mut FileRegister, new: Record| {
            let seen = register.read(soon()).unwrap();
            assert!(matches!(register.swap(&seen, &new, soon()), Ok(Swapped::Done(_))));
            SYNCED.get()
        };
        assert_eq!(swap(&mut register, record(Holder(1), 1)), 1);
        assert_eq!(swap(&mut register, record(Holder(1), 2)), 2);
        register.is_slow = true;
        assert_eq!(swap(&mut register, record(Holder(1), 3)), 2);
        let changed = Record { tenure: crate::coord::Tenure::Free, ..record(Holder(1), 4) };
        assert_eq!(swap(&mut register, changed), 3);
        assert!(!register.is_slow, "it was quick this time");
        let seen = register.read(soon()).unwrap();
        assert!(register.swap(&seen, &record(Holder(1), 5), Instant::now()).is_ok());
        assert!(register.is_slow, "it took more than its time");
        register.sync = |file| {
            let length = file.metadata()?.len();
            Err(io::Error::other(format!("{length} bytes cannot be written")))
        };
        let seen = register.read(soon()).unwrap();
        let changed = Record { tenure: crate::coord::Tenure::Free, ..record(Holder(1), 6) };
        assert!(register.swap(&seen, &changed, soon()).is_err());
        assert_eq!(register.read(soon()).unwrap(), seen, "what is not on disk takes no place");
    }

    #[test]
    fn what_ended_processes_left_is_removed_but_for_the_proof_that_the_holder_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let kept = |holder: u64| beside(&path, &Holder(holder).to_string());
        let mut one = FileRegister::open(&path, Holder(1)).unwrap();
        let absent = one.read(soon()).unwrap();
        assert_eq!(one.swap(&absent, &record(Holder(1), 1), soon()), Ok(Swapped::Done(1)));
        // Killed: one and a standby. Another standby lives, and a file is none of theirs.
        let text = std::fs::read(&one.life_path).unwrap();
        drop(one);
        let living = FileRegister::open(&path, Holder(3)).unwrap();
        for holder in [1, 2] {
            std::fs::write(kept(holder), &text).unwrap();
        }
        std::fs::write(kept(4), "somebody else's").unwrap();
        std::fs::write(beside(&path, "more"), &text).unwrap();
        let mut other = FileRegister::open(&path, Holder(5)).unwrap();
        let there = || (1..6).filter(|&holder| kept(holder).exists()).collect::<Vec<_>>();
        assert_eq!(there(), [1, 3, 4, 5]);
        assert!(other.is_dead(Holder(1)));
        let seen = other.read(soon()).unwrap();
        assert_eq!(other.swap(&seen, &record(Holder(5), 1), soon()), Ok(Swapped::Done(2)));
        assert_eq!(there(), [3, 4, 5]);
        assert!(beside(&path, "more").exists() && is_at(&living.life, &living.life_path));
    }

    /// The file of a process, or of the record's lock, is removed and made again by others between
    /// its opening and its locking here: that lock says nothing of the one that is there.
    #[test]
    fn a_lock_counts_on_the_file_that_is_there_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let opened = made(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!is_locked_at(&opened, &path).unwrap(), "it was removed");
        let next = made(&path).unwrap();
        assert!(!is_locked_at(&opened, &path).unwrap(), "another one was made");
        assert!(is_locked_at(&next, &path).unwrap());
        assert!(!is_locked_at(&made(&path).unwrap(), &path).unwrap(), "another one has it");
        drop(next);
        assert!(is_locked_at(&made(&path).unwrap(), &path).unwrap());
    }

    #[test]
    fn many_swaps_at_once_are_made_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        std::thread::scope(|scope| {
            for holder in 1..5 {
                let path = &path;
                scope.spawn(move || {
                    let mut register = FileRegister::open(path, Holder(holder)).unwrap();
                    for heartbeat in 0..50 {
                        while let Ok(seen) = register.read(soon()) {
                            let made = register.swap(&seen, &record(Holder(holder), heartbeat), soon()).unwrap();
                            if made == Swapped::Done(seen.revision + 1) {
                                break;
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(FileRegister::open(&path, Holder(9)).unwrap().read(soon()).unwrap().revision, 200);
    }

    #[test]
    fn a_process_is_dead_when_its_lock_is_free_and_not_where_nobody_knows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let mut one = FileRegister::open(&path, Holder(1)).unwrap();
        let other = FileRegister::open(&path, Holder(2)).unwrap();
        assert!(!one.is_dead(Holder(2)), "it lives");
        assert!(!one.is_dead(Holder(3)), "nobody knows it");
        // As a process that is killed: its file stays.
        let kept = std::fs::read(&other.life_path).unwrap();
        drop(other);
        assert!(!one.is_dead(Holder(2)), "it has ended in good order, and its record is free");
        std::fs::write(beside(&path, &Holder(2).to_string()), kept).unwrap();
        assert!(one.is_dead(Holder(2)));
    }

    #[test]
    fn a_holder_whose_lock_was_removed_raises_no_heartbeat() {
        let dir = tempfile::tempdir().unwrap();
        let mut register = FileRegister::open(&dir.path().join("record"), Holder(1)).unwrap();
        std::fs::remove_file(&register.life_path).unwrap();
        let seen = register.read(soon()).unwrap();
        assert!(register.swap(&seen, &record(Holder(1), 1), soon()).is_err());
    }

    #[test]
    fn a_stopped_process_is_ended_and_no_other_one_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let mut one = FileRegister::open(&path, Holder(1)).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        let life = beside(&path, &Holder(2).to_string());
        for other in [
            Process { started: "1".to_owned(), ..process.clone() },
            Process { boot: "another".to_owned(), ..process.clone() },
            Process { numbers: "pid:[1]".to_owned(), ..process.clone() },
        ] {
            std::fs::write(&life, other.to_string()).unwrap();
            assert!(one.end(Holder(2)).unwrap().contains("cannot"), "{other}");
        }
        assert_eq!(child.try_wait().unwrap(), None);
        std::fs::write(&life, process.to_string()).unwrap();
        assert!(!one.end(Holder(2)).unwrap().contains("cannot"));
        child.wait().unwrap();
    }

    #[test]
    fn network_file_systems_are_refused_by_name() {
        assert_eq!((network(0x6969), network(0xff53_4d42)), (Some("nfs"), Some("smb")));
        // ext4, tmpfs, xfs, btrfs, overlayfs.
        for local in [0xef53, 0x0102_1994, 0x5846_5342, 0x9123_683e, 0x794c_7630] {
            assert_eq!(network(local), None);
        }
        let missing = FileRegister::open(Path::new("/nowhere/at/all"), Holder(1)).unwrap_err().to_string();
        assert!(missing.contains("the directory /nowhere/at is not there; make it"), "{missing}");
    }
}
