//! The record in a file, for proxies of one host.
//!
//! - `PATH` holds the revision and the record. It is read as it is, and replaced as a whole by
//!   whoever holds the lock of `PATH.lock`.
//! - `PATH.HOLDER` is there for each proxy, and locked as long as its process lives. So a proxy
//!   that gets that lock knows that the process has ended, and need not wait for its lease: the
//!   kernel releases the locks of a process when it ends, in whatever way. The file names the
//!   process, so that a stopped or hanging one can be ended. Those of processes that have ended are
//!   removed by whoever starts or becomes active, but for that of the record's holder. If it was
//!   removed, its process makes it again while the record is another's: nobody looks at it before
//!   it is the holder's. The holder does not: between the making and the locking, others would
//!   take it for that of a process that has ended, and not wait for its lease.
//!
//! A host that loses power may leave a file without its content: that is no record. On disk before
//! it takes the old one's place, the new content is what is found then. (That the old one may be
//! found again is like a restored backup, which all are prepared for.)

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock, fstatfs};
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

/// How the names end of what stands beside the record: the lock, and what takes its place next.
const LOCK: &str = "lock";
const NEXT: &str = "new";

#[derive(Debug)]
pub struct FileRegister {
    path: PathBuf,
    me: Holder,
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
    #[error("cannot use {}: that is {what}; give the path of a file (one is made where none is)", .path.display())]
    NoFile { path: PathBuf, what: &'static str },
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
        for path in [path.to_owned(), beside(path, LOCK), beside(path, NEXT)] {
            if let Some(what) = no_file(&path) {
                return Err(Unfit::NoFile { path, what });
            }
        }
        let life = made(&life_path).map_err(unfit)?;
        let kind = fstatfs(&life).map_err(|error| unfit(error.into()))?.f_type as u64;
        if let Some(kind) = network(kind & 0xffff_ffff) {
            let _ = std::fs::remove_file(&life_path);
            return Err(Unfit::Network { path: path.to_owned(), kind });
        }
        let life = held(life, &life_path).map_err(unfit)?;
        let path = path.to_owned();
        let register = FileRegister { path, me, life, life_path, is_slow: false, sync: File::sync_data };
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
            let Ok(mut file) = opened(OpenOptions::new().read(true).write(true), &path) else { continue };
            // One that begins locks its file before it writes its name.
            if names_a_process(&mut file) && is_locked_at(&file, &path).unwrap_or(false) {
                let _ = std::fs::remove_file(&path);
            }
        }
        Ok(())
    }

    fn life_of(&self, holder: Holder) -> Option<File> {
        opened(OpenOptions::new().read(true).write(true), &beside(&self.path, &holder.to_string())).ok()
    }

    fn seen(&self) -> io::Result<Seen> {
        let mut text = String::new();
        match opened(OpenOptions::new().read(true), &self.path) {
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
        let path = beside(&self.path, LOCK);
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
        let file = self.write_next(revision, new)?;
        if !self.is_slow || !seen.value.record().is_some_and(|before| is_heartbeat(before, new)) {
            let begun = Instant::now();
            (self.sync)(&file)?;
            self.is_slow = begun.elapsed() >= deadline.saturating_duration_since(begun) / QUICK;
        }
        std::fs::rename(beside(&self.path, NEXT), &self.path)?;
        if seen.value.record().is_none_or(|before| before.holder != new.holder) {
            let _ = self.sweep(Some(new));
        }
        Ok(Swapped::Done(revision))
    }

    /// Writes what is to take the record's place. To be called with the lock held.
    fn write_next(&self, revision: u64, record: &Record) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let mut file = opened(options.write(true).create(true).truncate(true).mode(MODE), &beside(&self.path, NEXT))?;
        writeln!(file, "{revision} {record}")?;
        Ok(file)
    }

    /// Writes the record that stands there as a swap would, and puts it in no place. Where another
    /// process has the lock all the time nothing is known to be in the way: that may be the holder,
    /// stopped amid a heartbeat, and to end it is the only way to its place.
    fn rehearse(&self, deadline: Instant) -> io::Result<()> {
        let _locked = match self.lock(deadline) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(()),
            locked => locked?,
        };
        let seen = self.seen()?;
        let Some(record) = seen.value.record() else { return Ok(()) };
        (self.sync)(&self.write_next(seen.revision, record)?)?;
        std::fs::remove_file(beside(&self.path, NEXT))
    }

    /// Sees to it that its file is there, by which others see whether this process lives.
    fn stand(&mut self, holder: Option<Holder>) -> Result<(), Unread> {
        if is_at(&self.life, &self.life_path) {
            return Ok(());
        }
        let path = self.life_path.display();
        if holder == Some(self.me) {
            // (See the head of this file.)
            return Err(Unread(format!("{path} was removed: it shows that this process lives")));
        }
        let again = made(&self.life_path).and_then(|file| held(file, &self.life_path));
        self.life = again.map_err(|error| {
            Unread(format!(
                "{path}, which shows that this process lives, was removed, and cannot be made again: {error}"
            ))
        })?;
        tracing::warn!("{path}, which shows that this process lives, was removed, and is made again");
        Ok(())
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
        self.stand(seen.value.record().map(|record| record.holder))?;
        self.replace(seen, new, deadline).map_err(|error| self.unread(&error))
    }

    fn is_fit(&mut self, holder: Holder) -> Result<(), Unread> {
        self.stand(Some(holder))
    }

    fn can_swap(&mut self, deadline: Instant) -> Result<(), Unread> {
        self.rehearse(deadline).map_err(|error| self.unread(&error))
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

/// A pipe, say, is refused: its opening, or reading, would wait for another process.
fn opened(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("that is no file")) }
}

fn made(path: &Path) -> io::Result<File> {
    opened(OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(MODE), path)
}

/// The file of this process, locked, and with its name in it.
fn held(mut file: File, path: &Path) -> io::Result<File> {
    if !is_locked_at(&file, path)? {
        return Err(io::Error::other("another process holds its lock"));
    }
    let own = Process::own().and_then(|own| {
        file.set_len(0)?;
        file.write_all(own.to_string().as_bytes())
    });
    if own.is_err() {
        let _ = std::fs::remove_file(path);
    }
    own.map(|()| file)
}

/// What stands there, if that is something else than a file.
fn no_file(path: &Path) -> Option<&'static str> {
    let kind = path.metadata().ok()?.file_type();
    match kind {
        _ if kind.is_file() => None,
        _ if kind.is_dir() => Some("a directory"),
        _ if kind.is_fifo() => Some("a pipe"),
        _ if kind.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
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
mod tests;
