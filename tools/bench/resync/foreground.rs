//! What clients feel: reads at a fixed rate, their latency counted from the moment they were meant
//! to be sent.
//!
//! None waits for the one before: a client that does is behind for as long as one answer was late,
//! and what is found is its own backlog.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::histogram::Histogram;
use crate::wire::put_key;

/// Connections, each with a share of the rate, a thread that sends, and one that reads.
const CONNECTIONS: u32 = 4;
/// An answer that takes longer is an error.
const STALLED: Duration = Duration::from_secs(10);

/// Bytes of answers read at once.
const READ_BYTES: usize = 64 << 10;

/// Reads that go on until [`Foreground::end`].
pub(super) struct Foreground {
    stop: Arc<AtomicBool>,
    part: Arc<AtomicU8>,
    senders: Vec<JoinHandle<io::Result<()>>>,
    readers: Vec<JoinHandle<io::Result<Vec<Histogram>>>>,
}

impl Foreground {
    /// `rate` requests a second over all connections, of `keys` different keys, through the proxy
    /// at `port`.
    pub(super) fn begin(port: u16, rate: u32, keys: u32, parts: u8) -> io::Result<Foreground> {
        let (stop, part) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU8::new(0)));
        let (mut senders, mut readers) = (Vec::new(), Vec::new());
        let pause = Duration::from_secs(1) * CONNECTIONS / rate;
        let begun = Instant::now() + Duration::from_millis(10);
        for index in 0..CONNECTIONS {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(STALLED))?;
            let from = begun + pause * index / CONNECTIONS;
            let (of_reader, of_sender, now_in) = (stream.try_clone()?, stop.clone(), part.clone());
            senders.push(thread::spawn(move || send(&stream, &of_sender, (from, pause), index, keys)));
            readers.push(thread::spawn(move || read(&of_reader, &now_in, (from, pause), parts)));
        }
        Ok(Foreground { stop, part, senders, readers })
    }

    /// From now on latencies count for this part.
    pub(super) fn part(&self, part: u8) {
        self.part.store(part, Relaxed);
    }

    /// The latencies of each part.
    pub(super) fn end(self) -> io::Result<Vec<Histogram>> {
        self.stop.store(true, Relaxed);
        for sender in self.senders {
            sender.join().map_err(|_| io::Error::other("a client's thread panicked"))??;
        }
        let mut all: Option<Vec<Histogram>> = None;
        for reader in self.readers {
            let seen = reader.join().map_err(|_| io::Error::other("a client's thread panicked"))??;
            match &mut all {
                None => all = Some(seen),
                Some(all) => all.iter_mut().zip(&seen).for_each(|(sum, one)| sum.merge(one)),
            }
        }
        Ok(all.unwrap_or_default())
    }
}

/// Sends each request when it is due; at the end tells the proxy that no more come.
fn send(
    mut stream: &TcpStream,
    stop: &AtomicBool,
    (from, pause): (Instant, Duration),
    index: u32,
    keys: u32,
) -> io::Result<()> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(index + 1) << 32;
    let (mut request, mut due) = (Vec::new(), from);
    while !stop.load(Relaxed) {
        due += pause;
        let now = Instant::now();
        if due > now {
            thread::sleep(due - now);
        }
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        request.clear();
        request.extend_from_slice(b"get ");
        put_key(&mut request, (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u32 % keys);
        request.extend_from_slice(b"\r\n");
        stream.write_all(&request)?;
    }
    stream.shutdown(Shutdown::Write)
}

/// Takes the answers until there are no more: they come in the order in which their requests were
/// due.
fn read(
    mut stream: &TcpStream,
    part: &AtomicU8,
    (from, pause): (Instant, Duration),
    parts: u8,
) -> io::Result<Vec<Histogram>> {
    let mut seen = vec![Histogram::new(); usize::from(parts)];
    let (mut block, mut rest, mut due) = (vec![0; READ_BYTES], Vec::new(), from);
    loop {
        let n = stream.read(&mut block)?;
        if n == 0 && rest.is_empty() {
            return Ok(seen);
        }
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (now, now_in) = (Instant::now(), usize::from(part.load(Relaxed)));
        rest.extend_from_slice(&block[..n]);
        let mut at = 0;
        // The values have no line ends.
        while let Some(end) = memchr::memmem::find(&rest[at..], b"END\r\n") {
            if !rest[at..].starts_with(b"VALUE ") {
                return Err(io::Error::other("a read missed"));
            }
            at += end + 5;
            due += pause;
            seen[now_in].add(now.saturating_duration_since(due));
        }
        rest.drain(..at);
        if rest.starts_with(b"SERVER_ERROR") {
            return Err(io::Error::other("a read failed"));
        }
    }
}
