//! The enumerated keys that wait to be copied: in memory up to a bound, beyond it in an unlinked
//! temporary file.
//!
//! An enumeration must be drained at full speed (memcached up to 1.6.18 holds item locks while it
//! writes to the socket, so a stalled reader freezes the server), and copying is slower: the keys
//! in between have to be stored.
//!
//! The file is written and read by one thread of its own at a time: a slow disk must not delay the
//! task that copies, nor what shares its thread, the probes. The data waiting to be written is
//! bounded: beyond [`MAX_WRITES`] segments the enumeration [waits](Disk::room), because unbounded
//! growth would be worse.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::Notify;

/// Records are gathered, written and read in segments of about this many bytes.
const SEGMENT_BYTES: usize = 64 * 1024;
/// Segments that may wait to be written: 4 MiB.
const MAX_WRITES: usize = 64;
/// Segments read ahead of the one that is being taken.
const READ_AHEAD: usize = 2;
/// Before each key: pair (4 bytes), item size (4), key length (2).
const HEADER_BYTES: usize = 10;

/// One of a job's pairs of one source, by its place in their list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlotId(u32);

impl SlotId {
    /// Of a job that keeps no list of its pairs.
    pub(super) const ONLY: SlotId = SlotId(0);

    pub(super) fn at(index: usize) -> SlotId {
        SlotId(index as u32)
    }

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A key found by enumeration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) slot: SlotId,
    /// `size` of the dump line: bytes of the whole item.
    pub(super) size: u32,
    pub(super) key: Bytes,
}

/// First in, first out.
#[derive(Debug)]
pub(super) struct Spool {
    bound_bytes: usize,
    /// Segments in memory, oldest first; the file's segments come after them, then `tail`.
    memory: VecDeque<Bytes>,
    memory_bytes: usize,
    disk: Arc<Disk>,
    /// The segments in the file, or on their way there, that were not taken yet.
    in_file: VecDeque<Arc<Segment>>,
    write_at: u64,
    tail: BytesMut,
    head: Bytes,
    len: usize,
}

impl Spool {
    pub(super) fn new(bound_bytes: usize) -> Spool {
        Spool {
            bound_bytes,
            memory: VecDeque::new(),
            memory_bytes: 0,
            disk: Arc::default(),
            in_file: VecDeque::new(),
            write_at: 0,
            tail: BytesMut::new(),
            head: Bytes::new(),
            len: 0,
        }
    }

    /// One whose temporary file cannot be read back.
    #[cfg(test)]
    pub(super) fn broken() -> Spool {
        Spool { head: Bytes::from_static(b"cut"), len: 1, ..Spool::new(0) }
    }

    /// Number of keys waiting.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// To wait for it.
    pub(super) fn disk(&self) -> Arc<Disk> {
        self.disk.clone()
    }

    /// Appends a key; to be called within a runtime. That the file cannot be written is found when
    /// the keys are taken.
    pub(super) fn push(&mut self, slot: SlotId, size: u32, key: &[u8]) -> io::Result<()> {
        let length = u16::try_from(key.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.tail.extend_from_slice(&slot.0.to_le_bytes());
        self.tail.extend_from_slice(&size.to_le_bytes());
        self.tail.extend_from_slice(&length.to_le_bytes());
        self.tail.extend_from_slice(key);
        self.len += 1;
        if self.tail.len() >= SEGMENT_BYTES {
            self.seal();
        }
        Ok(())
    }

    /// Waits until a key can be taken, or there is none.
    pub(super) async fn ready(&mut self) {
        while self.head.is_empty() {
            let disk = self.disk.clone();
            let changed = disk.changed.notified();
            if !matches!(self.refill(), Ok(false)) || self.len == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Takes the oldest key. Its bytes share their segment's memory. `None`: there is none, or it
    /// is still being read from the file; then [`Disk::changed`] tells.
    pub(super) fn pop(&mut self) -> io::Result<Option<Found>> {
        if self.head.is_empty() && !self.refill()? {
            return Ok(None);
        }
        if self.head.len() < HEADER_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (slot, size, length) = (SlotId(self.head.get_u32_le()), self.head.get_u32_le(), self.head.get_u16_le());
        if self.head.len() < usize::from(length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.len -= 1;
        Ok(Some(Found { slot, size, key: self.head.split_to(usize::from(length)) }))
    }

    fn seal(&mut self) {
        let segment = self.tail.split().freeze();
        // Order is kept: once segments lie in the file, later ones go behind them.
        if self.in_file.is_empty() && self.memory_bytes + segment.len() <= self.bound_bytes {
            self.memory_bytes += segment.len();
            self.memory.push_back(segment);
            return;
        }
        if self.in_file.is_empty() && self.disk.lock().writes == 0 {
            self.write_at = 0;
        }
        let segment =
            Arc::new(Segment { at: self.write_at, len: segment.len(), state: Mutex::new(Held::Writing(segment)) });
        self.write_at += segment.len as u64;
        self.in_file.push_back(segment.clone());
        self.disk.order(segment, true);
    }

    /// `false`: there is nothing, or nothing yet.
    fn refill(&mut self) -> io::Result<bool> {
        if let Some(segment) = self.memory.pop_front() {
            self.memory_bytes -= segment.len();
            self.head = segment;
        } else if let Some(segment) = self.in_file.front() {
            let taken = segment.take()?;
            for ahead in self.in_file.iter().take(1 + READ_AHEAD) {
                if ahead.begin_reading() {
                    self.disk.order(ahead.clone(), false);
                }
            }
            let Some(taken) = taken else { return Ok(false) };
            self.in_file.pop_front();
            self.head = taken;
        } else {
            self.head = self.tail.split().freeze();
        }
        Ok(!self.head.is_empty())
    }
}

/// A part of the list that does not fit into memory.
#[derive(Debug)]
struct Segment {
    at: u64,
    len: usize,
    state: Mutex<Held>,
}

#[derive(Debug)]
enum Held {
    Writing(Bytes),
    InFile,
    Reading,
    Read(Bytes),
    Failed(io::ErrorKind),
}

impl Segment {
    /// Its bytes, if they are in memory.
    fn take(&self) -> io::Result<Option<Bytes>> {
        match &*self.lock() {
            Held::Writing(bytes) | Held::Read(bytes) => Ok(Some(bytes.clone())),
            Held::InFile | Held::Reading => Ok(None),
            Held::Failed(kind) => Err((*kind).into()),
        }
    }

    fn begin_reading(&self) -> bool {
        let mut held = self.lock();
        let begins = matches!(*held, Held::InFile);
        if begins {
            *held = Held::Reading;
        }
        begins
    }

    /// On the thread of the file.
    fn carry_out(&self, file: &mut Option<File>) {
        let bytes = if let Held::Writing(bytes) = &*self.lock() { Some(bytes.clone()) } else { None };
        let done = move || {
            let file = match file {
                Some(file) => file,
                None => file.insert(tempfile::tempfile()?),
            };
            if let Some(bytes) = bytes {
                file.write_all_at(&bytes, self.at)?;
                return Ok(Held::InFile);
            }
            let mut bytes = vec![0; self.len];
            file.read_exact_at(&mut bytes, self.at)?;
            Ok::<_, io::Error>(Held::Read(Bytes::from(bytes)))
        };
        let held = done().unwrap_or_else(|error| Held::Failed(error.kind()));
        *self.lock() = held;
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be done with the file, in order, by one thread at a time.
#[derive(Default, Debug)]
pub(super) struct Disk {
    orders: Mutex<Orders>,
    /// Told whenever something was done.
    pub(super) changed: Notify,
}

#[derive(Default, Debug)]
struct Orders {
    queue: VecDeque<(Arc<Segment>, bool)>,
    /// Writes that are not done.
    writes: usize,
    /// Taken by the thread while it works; there is one exactly as long as this is `true`.
    working: bool,
    file: Option<File>,
}

impl Disk {
    /// Waits while too much is to be written.
    pub(super) async fn room(&self) {
        loop {
            let changed = self.changed.notified();
            if self.lock().writes < MAX_WRITES {
                return;
            }
            changed.await;
        }
    }

    fn order(self: &Arc<Disk>, segment: Arc<Segment>, write: bool) {
        let mut orders = self.lock();
        orders.writes += usize::from(write);
        orders.queue.push_back((segment, write));
        if !orders.working {
            orders.working = true;
            let disk = self.clone();
            tokio::task::spawn_blocking(move || disk.work());
        }
    }

    fn work(&self) {
        let mut orders = self.lock();
        let mut file = orders.file.take();
        while let Some((segment, write)) = orders.queue.pop_front() {
            drop(orders);
            segment.carry_out(&mut file);
            orders = self.lock();
            orders.writes -= usize::from(write);
            self.changed.notify_waiters();
        }
        orders.file = file;
        orders.working = false;
    }

    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn key(i: u32) -> Vec<u8> {
        format!("key-{i}-{}", "x".repeat(i as usize % 200)).into_bytes()
    }

    async fn check(bound: usize, chunks: &[(u32, u32)]) -> bool {
        let mut spool = Spool::new(bound);
        let (mut pushed, mut popped) = (0, 0);
        let mut used_file = false;
        for &(push, pop) in chunks {
            for _ in 0..push {
                spool.push(SlotId(pushed), pushed + 1, &key(pushed)).unwrap();
                pushed += 1;
            }
            used_file |= !spool.in_file.is_empty();
            assert!(spool.memory_bytes <= bound);
            for _ in 0..pop.min(pushed - popped) {
                spool.ready().await;
                let found = spool.pop().unwrap().unwrap();
                assert_eq!((found.slot, found.size, &found.key[..]), (SlotId(popped), popped + 1, &key(popped)[..]));
                popped += 1;
            }
            assert_eq!(spool.len() as u32, pushed - popped);
        }
        used_file
    }

    #[tokio::test]
    async fn keeps_the_order_in_memory_and_in_the_file() {
        assert!(!check(1 << 30, &[(10_000, 3), (5, 20_000), (1, 1)]).await);
        assert!(
            check(100_000, &[(10_000, 10), (3_000, 12_000), (9_000, 2_000), (4_000, 90_000), (8_000, 8_000)]).await
        );
        assert!(check(0, &[(2_000, 2_000), (2_000, 2_000)]).await);
    }
    /// The thread of the file is stuck: what is pushed waits in memory, the enumeration waits past
    /// a bound, and nothing else does.
    #[tokio::test]
    async fn a_slow_disk_delays_only_the_enumeration() {
        let mut spool = Spool::new(0);
        let stuck = Arc::new(Segment { at: 0, len: 1, state: Mutex::new(Held::Reading) });
        let (hold, (release, released), (locked, is_locked)) = (stuck.clone(), mpsc::channel::<()>(), mpsc::channel());
        std::thread::spawn(move || {
            let _held = hold.lock();
            locked.send(()).unwrap();
            let _ = released.recv();
        });
        is_locked.recv().unwrap();
        spool.disk.order(stuck, false);
        let mut pushed = 0;
        while tokio::time::timeout(std::time::Duration::from_millis(20), spool.disk().room()).await.is_ok() {
            for _ in 0..100 {
                spool.push(SlotId(pushed), 1, &key(pushed)).unwrap();
                pushed += 1;
            }
        }
        assert_eq!(spool.disk.lock().writes, MAX_WRITES);
        // What is not written yet can be taken all the same.
        spool.ready().await;
        assert_eq!(spool.pop().unwrap().unwrap().slot, SlotId(0));
        drop(release);
        spool.disk().room().await;
        for i in 1..pushed {
            spool.ready().await;
            assert_eq!(spool.pop().unwrap().unwrap().slot, SlotId(i));
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_told_when_its_keys_are_taken() {
        let mut spool = Spool::new(0);
        spool.disk.lock().file = Some(File::open("/dev/null").unwrap());
        (0..5_000).for_each(|i| spool.push(SlotId(i), 1, &key(i)).unwrap());
        while spool.disk.lock().writes > 0 {
            tokio::task::yield_now().await;
        }
        spool.ready().await;
        assert!(spool.pop().is_err());
    }
}
