//! The load generator: one thread, many connections.
//!
//! *Closed loop*: a connection sends its next requests as soon as the last ones are answered. A
//! proxy that answers faster is then asked more often, and finds fewer requests waiting each time
//! it looks; so where the processors are full, cost and speed are entangled. *Open loop*
//! (`Work::rate`): requests become due at random times, so many a second, whatever the system does;
//! each takes the connection that has been idle longest, and its latency counts from when it was
//! due. All systems then do the same work.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::histogram::Histogram;
use crate::usage::{self, Usage};
use crate::wire::{self, Answers};

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
    /// `mg` and `ms` in the place of `get` and `set`.
    pub(crate) meta: bool,
    /// Different keys.
    pub(crate) keys: u32,
    /// Requests a second; none: as fast as answers come.
    pub(crate) rate: Option<u32>,
    /// Errors and closed connections are counted; otherwise they end the run.
    pub(crate) faults_expected: bool,
}

/// What they saw, and what it cost.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) requests: u64,
    pub(crate) elapsed: Duration,
    /// Of the process measured.
    pub(crate) cpu: Duration,
    /// Of the generator itself.
    pub(crate) own_cpu: Duration,
    /// Resident bytes of the process measured, at the end, under load.
    pub(crate) memory: u64,
    /// From sending a connection's requests (open loop: from when they were due) to the last of
    /// their answers.
    pub(crate) latency: Histogram,
    /// The same of those that were gets alone, and sets alone.
    pub(crate) reads: Histogram,
    pub(crate) writes: Histogram,
    /// The longest time from sending to the last answer, or to the connection's end.
    pub(crate) longest: Duration,
    /// Keys asked for that were not there.
    pub(crate) misses: u64,
    /// Requests answered `SERVER_ERROR`.
    pub(crate) errors: u64,
    /// Connections that the other side closed.
    pub(crate) closed: u64,
}

struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
    answers: Answers,
    /// Keys asked for.
    values: u64,
    /// Sets among the requests in flight.
    sets: usize,
    sent_at: Instant,
    due_at: Instant,
}

/// Connected clients.
pub(crate) struct Load<'a> {
    addr: SocketAddr,
    work: &'a Work,
    poll: Poll,
    connections: Vec<Connection>,
    /// Those with nothing in flight, the longest idle first.
    idle: VecDeque<usize>,
    set_tail: Vec<u8>,
    random: u64,
    block: Vec<u8>,
    seen: Seen,
}

/// Stores every key once, so that gets hit.
pub(crate) fn fill(addr: SocketAddr, work: &Work) -> io::Result<()> {
    let mut stream = std::net::TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(STALLED))?;
    let tail = wire::set_tail(work.value_len);
    let mut answers = Vec::new();
    for chunk in (0..work.keys).collect::<Vec<_>>().chunks(64) {
        let mut out = Vec::new();
        for key in chunk {
            wire::put_set(&mut out, *key, &tail);
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

impl Seen {
    fn new() -> Seen {
        let (none, count) = (Duration::ZERO, 0);
        Seen {
            requests: count,
            elapsed: none,
            cpu: none,
            own_cpu: none,
            memory: 0,
            latency: Histogram::new(),
            reads: Histogram::new(),
            writes: Histogram::new(),
            longest: none,
            misses: count,
            errors: count,
            closed: count,
        }
    }
}

impl<'a> Load<'a> {
    /// Connects them all.
    pub(crate) fn connect(addr: SocketAddr, work: &'a Work) -> io::Result<Load<'a>> {
        let mut load = Load {
            addr,
            work,
            poll: Poll::new()?,
            connections: Vec::with_capacity(work.connections),
            idle: VecDeque::with_capacity(work.connections),
            set_tail: if work.meta { wire::ms_tail(work.value_len) } else { wire::set_tail(work.value_len) },
            random: 0x9e37_79b9_7f4a_7c15,
            block: vec![0; 256 << 10],
            seen: Seen::new(),
        };
        for index in 0..work.connections {
            let stream = load.open(index)?;
            let (answers, now) = (Answers::default(), Instant::now());
            let (out, sent_at, due_at) = (Vec::new(), now, now);
            let connection = Connection { stream, out, written: 0, answers, values: 0, sets: 0, sent_at, due_at };
            load.connections.push(connection);
            load.idle.push_back(index);
        }
        Ok(load)
    }

    fn open(&self, index: usize) -> io::Result<TcpStream> {
        let stream = std::net::TcpStream::connect(self.addr)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(index), interest)?;
        Ok(stream)
    }

    /// Every connection sends one `get` and has its answer.
    pub(crate) fn touch_all(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(4096);
        while let Some(index) = self.idle.pop_front() {
            self.send(index, Instant::now())?;
            while self.connections[index].answers.owed > 0 {
                self.turn(&mut events, Some(STALLED), &mut |_, _| Ok(()))?;
            }
        }
        self.idle.extend(0..self.connections.len());
        Ok(())
    }

    /// Drives the system; what happens in the first `warm` does not count. `usage` is that of the
    /// process measured.
    pub(crate) fn run(
        &mut self,
        warm: Duration,
        time: Duration,
        usage: &dyn Fn() -> io::Result<Usage>,
    ) -> io::Result<Seen> {
        let mut events = Events::with_capacity(self.work.connections.clamp(64, 4096));
        let begun = Instant::now();
        let mut window: Option<(Instant, Usage, Duration)> = None;
        let mut result = None;
        let mut due = VecDeque::new();
        let mut next_due = begun;
        if self.work.rate.is_none() {
            while let Some(index) = self.idle.pop_front() {
                self.send(index, Instant::now())?;
            }
        }
        while result.is_none() || self.idle.len() < self.connections.len() {
            let now = Instant::now();
            match window {
                None if now - begun >= warm => {
                    self.seen = Seen::new();
                    window = Some((Instant::now(), usage()?, usage::own_cpu()?));
                }
                Some((start, before, own)) if result.is_none() && now - start >= time => {
                    let after = usage()?;
                    let mut seen = std::mem::replace(&mut self.seen, Seen::new());
                    seen.elapsed = start.elapsed();
                    seen.cpu = after.cpu.saturating_sub(before.cpu);
                    seen.own_cpu = usage::own_cpu()?.saturating_sub(own);
                    seen.memory = after.memory;
                    result = Some(seen);
                }
                _ => {}
            }
            let going_on = result.is_none();
            let Some(rate) = self.work.rate else {
                self.turn(&mut events, Some(STALLED), &mut |load, index| match going_on {
                    true => load.send(index, Instant::now()),
                    false => load.rest(index),
                })?;
                continue;
            };
            while going_on && next_due <= now {
                due.push_back(next_due);
                next_due += self.pause(rate);
            }
            while going_on && !due.is_empty() && !self.idle.is_empty() {
                if let (Some(due), Some(index)) = (due.pop_front(), self.idle.pop_front()) {
                    self.send(index, due)?;
                }
            }
            // epoll's timeout is in milliseconds, too coarse for the next due time: look again at
            // once, but let others run first.
            self.turn(&mut events, Some(Duration::ZERO), &mut Load::rest)?;
            std::thread::yield_now();
        }
        // What the drained rest saw (the answer that came late, above all) belongs to it too.
        let late = &self.seen;
        let mut result = result.ok_or_else(|| io::Error::other("the run ended before it began"))?;
        result.longest = result.longest.max(late.longest);
        result.errors += late.errors;
        result.closed += late.closed;
        result.misses += late.misses;
        Ok(result)
    }

    /// Waits for events once; `done` gets every connection that has all its answers.
    fn turn(
        &mut self,
        events: &mut Events,
        timeout: Option<Duration>,
        done: &mut dyn FnMut(&mut Self, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        if events.is_empty() && timeout.is_some_and(|timeout| !timeout.is_zero()) {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("no answer for {STALLED:?}")));
        }
        for event in events.iter() {
            let index = event.token().0;
            if event.is_writable() {
                self.flush(index)?;
            }
            // Once is enough: nothing can be there that was not asked for, and what is asked for
            // next brings another event.
            if event.is_readable() && self.receive(index)? {
                done(self, index)?;
            }
        }
        Ok(())
    }

    fn rest(&mut self, index: usize) -> io::Result<()> {
        self.idle.push_back(index);
        Ok(())
    }

    fn next(&mut self) -> u32 {
        // xorshift64*: more than good enough to choose keys.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Until the next request is due: exponential, as where many clients know nothing of each
    /// other.
    fn pause(&mut self, rate: u32) -> Duration {
        let share = (f64::from(self.next()) + 1.0) / (f64::from(u32::MAX) + 1.0);
        Duration::from_secs_f64(-share.ln() / f64::from(rate))
    }

    fn send(&mut self, index: usize, due_at: Instant) -> io::Result<()> {
        let work = self.work;
        let mut out = std::mem::take(&mut self.connections[index].out);
        out.clear();
        let (mut values, mut sets) = (0, 0);
        for _ in 0..work.pipeline {
            if self.next() % 100 < work.sets_percent {
                sets += 1;
                let key = self.next() % work.keys;
                match work.meta {
                    true => wire::put_ms(&mut out, key, &self.set_tail),
                    false => wire::put_set(&mut out, key, &self.set_tail),
                }
            } else if work.meta {
                wire::put_mg(&mut out, self.next() % work.keys);
                values += 1;
            } else {
                wire::put_get(&mut out, (0..work.keys_per_get).map(|_| self.next() % work.keys));
                values += work.keys_per_get as u64;
            }
        }
        let connection = &mut self.connections[index];
        connection.out = out;
        connection.written = 0;
        (connection.values, connection.sets) = (values, sets);
        connection.answers.owed = work.pipeline;
        connection.answers.values = 0;
        connection.answers.errors = 0;
        (connection.due_at, connection.sent_at) = (due_at, Instant::now());
        self.flush(index)
    }

    fn flush(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        while connection.written < connection.out.len() {
            match connection.stream.write(&connection.out[connection.written..]) {
                Ok(n) => connection.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The other side is gone: reading says so, too, and counts it.
                Err(_) if self.work.faults_expected => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads until nothing is left; `true` once all that was owed has come.
    fn receive(&mut self, index: usize) -> io::Result<bool> {
        let connection = &mut self.connections[index];
        if connection.answers.owed == 0 {
            return Ok(false);
        }
        loop {
            match connection.stream.read(&mut self.block) {
                Ok(n) if n > 0 => {
                    connection.answers.take(&self.block[..n])?;
                    if connection.answers.owed == 0 {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ if self.work.faults_expected => {
                    self.seen.closed += 1;
                    connection.answers = Answers::lost(connection.answers.owed);
                    let stream = self.open(index)?;
                    self.connections[index].stream = stream;
                    break;
                }
                Ok(_) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection was closed")),
                Err(error) => return Err(error),
            }
        }
        let now = Instant::now();
        let connection = &self.connections[index];
        let errors = connection.answers.errors;
        if errors > 0 && !self.work.faults_expected {
            return Err(io::Error::other("a request was answered SERVER_ERROR"));
        }
        self.seen.errors += errors;
        self.seen.longest = self.seen.longest.max(now - connection.sent_at);
        let took = now - connection.due_at;
        self.seen.latency.add(took);
        match connection.sets {
            0 => self.seen.reads.add(took),
            sets if sets == self.work.pipeline => self.seen.writes.add(took),
            _ => {}
        }
        self.seen.requests += self.work.pipeline as u64;
        if errors == 0 {
            self.seen.misses += connection.values.saturating_sub(connection.answers.values);
        }
        Ok(true)
    }
}
