//! What clients feel: reads at a fixed rate, their latency counted from the moment they were meant to be sent.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::histogram::Histogram;
use crate::wire::put_key;

/// Connections, each with a thread of its own and a share of the rate.
const CONNECTIONS: u32 = 4;
/// An answer that takes longer is an error.
const STALLED: Duration = Duration::from_secs(10);

/// Reads that go on until [`Foreground::end`].
pub(super) struct Foreground {
    stop: Arc<AtomicBool>,
    part: Arc<AtomicU8>,
    threads: Vec<JoinHandle<io::Result<Vec<Histogram>>>>,
}

impl Foreground {
    /// `rate` requests a second over all connections, of `keys` different keys, through the proxy at `port`.
    pub(super) fn begin(port: u16, rate: u32, keys: u32, parts: u8) -> io::Result<Foreground> {
        let (stop, part) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU8::new(0)));
        let mut threads = Vec::new();
        for index in 0..CONNECTIONS {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(STALLED))?;
            let (stop, part) = (stop.clone(), part.clone());
            let pause = Duration::from_secs(1) * CONNECTIONS / rate;
            threads.push(thread::spawn(move || {
                let mut seen = vec![Histogram::new(); usize::from(parts)];
                let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(index + 1) << 32;
                let (mut request, mut answer) = (Vec::new(), vec![0; 64 << 10]);
                let mut due = Instant::now() + pause * index / CONNECTIONS;
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
                    let now_in = usize::from(part.load(Relaxed));
                    stream.write_all(&request)?;
                    let mut length = 0;
                    while !answer[..length].ends_with(b"END\r\n") && !answer[..length].starts_with(b"SERVER_ERROR") {
                        let n = stream.read(&mut answer[length..])?;
                        if n == 0 {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        length += n;
                    }
                    if !answer.starts_with(b"VALUE ") {
                        return Err(io::Error::other("a read missed, or failed"));
                    }
                    seen[now_in].add(due.elapsed());
                }
                Ok(seen)
            }));
        }
        Ok(Foreground { stop, part, threads })
    }

    /// From now on latencies count for this part.
    pub(super) fn part(&self, part: u8) {
        self.part.store(part, Relaxed);
    }

    /// The latencies of each part.
    pub(super) fn end(self) -> io::Result<Vec<Histogram>> {
        self.stop.store(true, Relaxed);
        let mut all: Option<Vec<Histogram>> = None;
        for thread in self.threads {
            let seen = thread.join().map_err(|_| io::Error::other("a client's thread panicked"))??;
            match &mut all {
                None => all = Some(seen),
                Some(all) => all.iter_mut().zip(&seen).for_each(|(sum, one)| sum.merge(one)),
            }
        }
        Ok(all.unwrap_or_default())
    }
}
