//! The lines of the log on their way into a file or to stderr, and those that get lost.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::ErrorCounter;

pub(super) type Writer = Box<dyn Write + Send>;

/// Where lines go from the next one on, if that has changed.
pub(super) type Next = Arc<Mutex<Option<Writer>>>;

/// The line that tells of lost ones must not, by itself, be what fills a queue that is full.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Lines that nobody can read: the file took none, or too many waited for it.
#[derive(Default)]
pub(super) struct Lost {
    refused: AtomicU64,
    /// Of the queue in front of the writing thread.
    queue: OnceLock<ErrorCounter>,
}

impl Lost {
    pub(super) fn also_of(&self, queue: ErrorCounter) {
        // One queue in a process.
        let _ = self.queue.set(queue);
    }

    pub(super) fn lines(&self) -> u64 {
        self.refused.load(Relaxed) + self.queue.get().map_or(0, |queue| queue.dropped_lines() as u64)
    }
}

/// Where lines go: a file or stderr, and another file from when the log is reloaded on. Owned by
/// the thread that writes: whoever reloads never waits for a write.
pub(super) struct Target {
    writer: Writer,
    next: Next,
    lost: Arc<Lost>,
    /// The last line was written in part.
    torn: bool,
    /// What the log says is lost.
    told: (u64, Option<Instant>),
    why: Option<io::Error>,
}

impl Target {
    pub(super) fn new(writer: Writer, next: Next, lost: Arc<Lost>) -> Target {
        Target { writer, next, lost, torn: false, told: (0, None), why: None }
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(next) = next {
            // An error in closing the old file has no log to go to.
            self.writer = next;
            self.torn = false;
        }
        if self.torn {
            self.writer.write_all(b"\n")?;
            self.torn = false;
        }
        let mut left = line;
        while !left.is_empty() {
            match self.writer.write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.torn = left.len() < line.len();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// As a line of the log, which waits in the queue like any other.
    fn tell(&mut self) {
        let (lines, (told, when)) = (self.lost.lines(), self.told);
        if lines > told && when.is_none_or(|when| when.elapsed() >= TELL_EVERY) {
            self.told = (lines, Some(Instant::now()));
            let why = self.why.take().map_or_else(|| "too many were waiting".to_owned(), |why| why.to_string());
            tracing::warn!(lines = lines - told, why, "lines of the log are lost: they could not be written");
        }
    }
}

impl Write for Target {
    /// Takes a line as a whole, written or lost.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.put(line) {
            Ok(()) => self.tell(),
            Err(why) => {
                self.lost.refused.fetch_add(1, Relaxed);
                self.why = Some(why);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::log::Log;

    /// A disk: so many bytes are free, and what was written.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(usize, Vec<u8>)>>);

    impl Disk {
        fn free(&self, bytes: usize) {
            self.0.lock().unwrap().0 = bytes;
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().1.clone()).unwrap()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let taken = bytes.len().min(disk.0);
            disk.0 -= taken;
            disk.1.extend_from_slice(&bytes[..taken]);
            if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_a_full_disk_took_none_or_a_part_of_are_counted_and_told_and_tear_no_other() {
        let log = Log::listen();
        let (disk, next, lost) = (Disk::default(), Next::default(), Arc::new(Lost::default()));
        let mut target = Target::new(Box::new(disk.clone()), next.clone(), lost.clone());
        disk.free(10);
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            target.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!((disk.text().as_str(), lost.lines()), ("one\ntwo\nth", 2));
        assert_eq!(log.count(&["lines of the log are lost"]), 0);
        disk.free(100);
        target.write_all(b"five\n").unwrap();
        assert_eq!(disk.text(), "one\ntwo\nth\nfive\n");
        assert_eq!(log.count(&["lines of the log are lost", "lines=2", "no storage space"]), 1);
        // Not for each line, and not of what was told.
        target.write_all(b"six\n").unwrap();
        disk.free(1);
        target.write_all(b"seven\n").unwrap();
        // Another file begins with a whole line.
        let other = Disk::default();
        other.free(100);
        *next.lock().unwrap() = Some(Box::new(other.clone()));
        target.write_all(b"eight\n").unwrap();
        assert_eq!((other.text().as_str(), lost.lines()), ("eight\n", 3));
        assert_eq!(log.count(&["lines of the log are lost"]), 1);
    }
}
