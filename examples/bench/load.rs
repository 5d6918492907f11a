//! The load generator: one thread, many connections, each with so many requests in flight, as fast as answers come.
//!
//! It parses no more than it must, for on a machine with few cores its own work takes from what it measures.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::histogram::Histogram;

/// No answer for so long: the system under test hangs.
const STALLED: Duration = Duration::from_secs(10);

/// What clients do.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) connections: usize,
    /// Requests sent together on a connection; the next follow when all are answered.
    pub(crate) pipeline: usize,
    /// Of 100 requests so many are sets.
    pub(crate) sets_percent: u32,
    /// Keys of one get.
    pub(crate) keys_per_get: usize,
    /// Bytes of a value.
    pub(crate) value_len: usize,
    /// Different keys.
    pub(crate) keys: u32,
}

/// What they saw.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) requests: u64,
    pub(crate) elapsed: Duration,
    /// From sending a connection's requests to the last of their answers.
    pub(crate) latency: Histogram,
    /// Keys asked for that were not there.
    pub(crate) misses: u64,
    /// The longest time without any answer.
    pub(crate) longest: Duration,
}

struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    /// Answers owed.
    owed: usize,
    /// Values owed, if all keys are there.
    values: u64,
    sent_at: Instant,
}

struct Generator<'a> {
    work: &'a Work,
    value: Vec<u8>,
    random: u64,
    block: Vec<u8>,
}

/// Stores every key once, so that gets hit.
pub(crate) fn fill(addr: SocketAddr, work: &Work) -> io::Result<()> {
    let mut stream = std::net::TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(STALLED))?;
    let value = vec![b'v'; work.value_len];
    let mut answers = Vec::new();
    for chunk in (0..work.keys).collect::<Vec<_>>().chunks(64) {
        let mut out = Vec::new();
        for key in chunk {
            put_set(&mut out, *key, &value);
        }
        stream.write_all(&out)?;
        answers.resize(chunk.len() * b"STORED\r\n".len(), 0);
        stream.read_exact(&mut answers)?;
        if !answers.chunks(8).all(|answer| answer == b"STORED\r\n") {
            return Err(io::Error::other(format!("a set failed: {}", String::from_utf8_lossy(&answers))));
        }
    }
    Ok(())
}

/// Drives `addr` for so long.
pub(crate) fn drive(addr: SocketAddr, work: &Work, duration: Duration) -> io::Result<Seen> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(work.connections.clamp(64, 4096));
    let mut generator =
        Generator { work, value: vec![b'v'; work.value_len], random: 0x9e37_79b9_7f4a_7c15, block: vec![0; 256 << 10] };
    let mut connections = Vec::with_capacity(work.connections);
    for index in 0..work.connections {
        let stream = std::net::TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        let (out, input) = (Vec::new(), Vec::new());
        connections.push(Connection { stream, out, written: 0, input, owed: 0, values: 0, sent_at: Instant::now() });
    }
    let mut seen =
        Seen { requests: 0, elapsed: Duration::ZERO, latency: Histogram::new(), misses: 0, longest: Duration::ZERO };
    let begun = Instant::now();
    for connection in &mut connections {
        generator.send(connection)?;
    }
    let mut busy = connections.len();
    let mut last = begun;
    while busy > 0 {
        poll.poll(&mut events, Some(STALLED))?;
        if events.is_empty() {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("no answer for {STALLED:?}")));
        }
        for event in &events {
            let connection = &mut connections[event.token().0];
            if event.is_writable() {
                connection.flush()?;
            }
            if !event.is_readable() {
                continue;
            }
            while generator.receive(connection, &mut seen)? {
                let now = Instant::now();
                seen.longest = seen.longest.max(now - last);
                last = now;
                seen.latency.add(now - connection.sent_at);
                seen.requests += work.pipeline as u64;
                if now - begun >= duration {
                    busy -= 1;
                    break;
                }
                generator.send(connection)?;
            }
        }
    }
    seen.elapsed = begun.elapsed();
    Ok(seen)
}

impl Connection {
    fn flush(&mut self) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes whole answers off the input.
    fn parse(&mut self) -> io::Result<()> {
        let mut at = 0;
        while self.owed > 0 {
            let rest = &self.input[at..];
            let Some(end) = memchr::memchr(b'\n', rest) else { break };
            let line = &rest[..end.saturating_sub(1)];
            if line.starts_with(b"VALUE ") {
                let length = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
                let length: usize =
                    std::str::from_utf8(length).ok().and_then(|t| t.parse().ok()).ok_or_else(|| strange(line))?;
                if rest.len() < end + 1 + length + 2 {
                    break;
                }
                self.values -= 1;
                at += end + 1 + length + 2;
            } else if line == b"END" || line == b"STORED" {
                self.owed -= 1;
                at += end + 1;
            } else {
                return Err(strange(line));
            }
        }
        self.input.drain(..at);
        Ok(())
    }
}

fn strange(line: &[u8]) -> io::Error {
    io::Error::other(format!("unexpected answer: {}", String::from_utf8_lossy(line)))
}

impl Generator<'_> {
    fn next(&mut self) -> u32 {
        // xorshift64*: more than good enough to choose keys.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u32
    }

    fn send(&mut self, connection: &mut Connection) -> io::Result<()> {
        connection.out.clear();
        connection.written = 0;
        connection.values = 0;
        for _ in 0..self.work.pipeline {
            if self.next() % 100 < self.work.sets_percent {
                let key = self.next() % self.work.keys;
                put_set(&mut connection.out, key, &self.value);
                continue;
            }
            connection.out.extend_from_slice(b"get");
            for _ in 0..self.work.keys_per_get {
                connection.out.push(b' ');
                put_key(&mut connection.out, self.next() % self.work.keys);
            }
            connection.out.extend_from_slice(b"\r\n");
            connection.values += self.work.keys_per_get as u64;
        }
        connection.owed = self.work.pipeline;
        connection.sent_at = Instant::now();
        connection.flush()
    }

    /// Reads until nothing is left; `true` once all that was owed has come.
    fn receive(&mut self, connection: &mut Connection, seen: &mut Seen) -> io::Result<bool> {
        if connection.owed == 0 {
            return Ok(false);
        }
        loop {
            match connection.stream.read(&mut self.block) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection was closed")),
                Ok(n) => {
                    connection.input.extend_from_slice(&self.block[..n]);
                    connection.parse()?;
                    if connection.owed == 0 {
                        seen.misses += connection.values;
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn put_key(out: &mut Vec<u8>, key: u32) {
    out.extend_from_slice(b"bench:key:");
    let mut digits = [b'0'; 10];
    let mut rest = key;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&digits);
}

fn put_set(out: &mut Vec<u8>, key: u32, value: &[u8]) {
    out.extend_from_slice(b"set ");
    put_key(out, key);
    out.extend_from_slice(format!(" 0 0 {}\r\n", value.len()).as_bytes());
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
