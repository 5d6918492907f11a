//! A strict text-protocol client: blocking, with a deadline on every read, that takes no reply it
//! cannot account for.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a proxy says of its statistics before its start is over.
const STARTING: &str = "SERVER_ERROR this proxy is starting";

thread_local! {
    /// What one read takes at most: filled with zeros once, not before each.
    static CHUNK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Why an operation has no answer that it may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// `SERVER_ERROR …`: the whole line.
    Server(String),
    /// `CLIENT_ERROR …` or `ERROR`: the whole line.
    Client(String),
    /// The peer closed or reset the connection, or it could not be made.
    Closed(String),
    /// No answer within the deadline.
    Hang(Duration),
    /// Bytes that are no answer to what was asked.
    Protocol(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Server(line) | Failure::Client(line) => write!(f, "{line}"),
            Failure::Closed(why) => write!(f, "connection lost: {why}"),
            Failure::Hang(after) => write!(f, "no answer within {after:?}"),
            Failure::Protocol(what) => write!(f, "not an answer to this request: {what}"),
        }
    }
}

pub type Outcome<T> = Result<T, Failure>;

/// One `VALUE`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    pub key: Vec<u8>,
    pub flags: u32,
    pub value: Vec<u8>,
    pub cas: Option<u64>,
}

/// The answer to a storage command, by memcached's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::enum_variant_names)] // they are memcached's own words
pub enum Stored {
    Stored,
    NotStored,
    Exists,
    NotFound,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection.
pub struct Client {
    stream: Stream,
    buffer: Vec<u8>,
    start: usize,
    deadline: Duration,
    /// What the socket was told last: for a read, for a write.
    told: [Option<Duration>; 2],
}

impl Client {
    pub fn connect(addr: &str) -> Client {
        Client::try_connect(addr).unwrap_or_else(|e| panic!("connect to {addr}: {e}"))
    }

    pub fn try_connect(addr: &str) -> io::Result<Client> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        Ok(Client::over(Stream::Tcp(stream)))
    }

    pub fn connect_unix(path: &Path) -> io::Result<Client> {
        Ok(Client::over(Stream::Unix(UnixStream::connect(path)?)))
    }

    fn over(stream: Stream) -> Client {
        Client { stream, buffer: Vec::new(), start: 0, deadline: Duration::from_secs(15), told: [None; 2] }
    }

    /// How long one answer may take, all of it.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    pub fn send(&mut self, bytes: &[u8]) -> Outcome<()> {
        if self.told[1] != Some(self.deadline) {
            let _ = match &self.stream {
                Stream::Tcp(s) => s.set_write_timeout(Some(self.deadline)),
                Stream::Unix(s) => s.set_write_timeout(Some(self.deadline)),
            };
            self.told[1] = Some(self.deadline);
        }
        let result = match &mut self.stream {
            Stream::Tcp(s) => s.write_all(bytes),
            Stream::Unix(s) => s.write_all(bytes),
        };
        result.map_err(|e| self.failure(&e))
    }

    /// No more requests: the peer sees the end of the stream, answers can still be read.
    pub fn finish_sending(&mut self) {
        let _ = match &self.stream {
            Stream::Tcp(s) => s.shutdown(Shutdown::Write),
            Stream::Unix(s) => s.shutdown(Shutdown::Write),
        };
    }

    fn failure(&self, error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::Hang(self.deadline),
            _ => Failure::Closed(error.to_string()),
        }
    }

    /// Reads more bytes; 0 at the end of the stream.
    fn fill(&mut self, until: Instant) -> Outcome<usize> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Hang(self.deadline));
        }
        self.wait_at_most(left).map_err(|e| self.failure(&e))?;
        let (stream, buffer) = (&mut self.stream, &mut self.buffer);
        let result = CHUNK.with_borrow_mut(|chunk| {
            chunk.resize(65536, 0);
            let n = match stream {
                Stream::Tcp(s) => s.read(chunk),
                Stream::Unix(s) => s.read(chunk),
            }?;
            buffer.extend_from_slice(&chunk[..n]);
            Ok(n)
        });
        result.map_err(|e| self.failure(&e))
    }

    /// How long the next read waits. The socket is told where that is more than before, or less by
    /// a tenth: told each time, it was a third of what a load of these clients asked of the system.
    fn wait_at_most(&mut self, left: Duration) -> io::Result<()> {
        if self.told[0].is_some_and(|told| left <= told && told <= left + left / 10) {
            return Ok(());
        }
        // Not what is left, which is less the next time: what answers have from the beginning on.
        let told = if self.deadline <= left + left / 10 { self.deadline.max(left) } else { left };
        match &self.stream {
            Stream::Tcp(s) => s.set_read_timeout(Some(told))?,
            Stream::Unix(s) => s.set_read_timeout(Some(told))?,
        }
        self.told[0] = Some(told);
        Ok(())
    }

    fn need(&mut self, len: usize, until: Instant) -> Outcome<()> {
        while self.buffer.len() - self.start < len {
            if self.fill(until)? == 0 {
                return Err(Failure::Closed("end of stream inside an answer".into()));
            }
        }
        Ok(())
    }

    /// One line, without its `\r\n`; a line that ends otherwise is an error.
    pub fn line(&mut self) -> Outcome<Vec<u8>> {
        self.line_until(Instant::now() + self.deadline)
    }

    fn line_until(&mut self, until: Instant) -> Outcome<Vec<u8>> {
        let mut searched = self.start;
        loop {
            if let Some(i) = self.buffer[searched..].iter().position(|&b| b == b'\n') {
                let end = searched + i;
                let line = self.buffer[self.start..end].to_vec();
                self.start = end + 1;
                return match line.strip_suffix(b"\r") {
                    Some(line) => Ok(line.to_vec()),
                    None => Err(Failure::Protocol(format!("line without \\r: {}", show(&line)))),
                };
            }
            searched = self.buffer.len() - self.start;
            match self.fill(until) {
                Ok(0) => return Err(Failure::Closed(format!("end of stream after {}", show(&self.buffer)))),
                Ok(_) => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// A line that is text, errors told apart.
    pub fn text(&mut self) -> Outcome<String> {
        let line = self.line()?;
        text_of(line)
    }

    /// `VALUE` blocks up to `END`.
    pub fn values(&mut self) -> Outcome<Vec<Item>> {
        let until = Instant::now() + self.deadline;
        let mut items = Vec::new();
        loop {
            let line = self.line_until(until)?;
            if line == b"END" {
                return Ok(items);
            }
            let Some(rest) = line.strip_prefix(b"VALUE ") else {
                let text = text_of(line)?;
                return Err(Failure::Protocol(format!("{text:?} among values")));
            };
            let (key, flags, len, cas) = parse_value_line(rest).ok_or_else(|| Failure::Protocol(show(&line)))?;
            self.need(len + 2, until)?;
            let value = self.buffer[self.start..self.start + len].to_vec();
            let end = &self.buffer[self.start + len..self.start + len + 2];
            if end != b"\r\n" {
                return Err(Failure::Protocol(format!("value of {} not ended by \\r\\n", show(&key))));
            }
            self.start += len + 2;
            items.push(Item { key, flags, value, cas });
        }
    }

    /// This many bytes and the `\r\n` after them, which is checked and dropped.
    pub fn exactly(&mut self, len: usize) -> Outcome<Vec<u8>> {
        self.need(len + 2, Instant::now() + self.deadline)?;
        let bytes = self.buffer[self.start..self.start + len].to_vec();
        let end = &self.buffer[self.start + len..self.start + len + 2];
        if end != b"\r\n" {
            return Err(Failure::Protocol(format!("{} not ended by \\r\\n", show(&bytes))));
        }
        self.start += len + 2;
        Ok(bytes)
    }

    /// A metadump: lines ended by `\n` alone, up to `END\r\n`. `BUSY` and the like come back as a
    /// server's error.
    pub fn dump_lines(&mut self) -> Outcome<Vec<Vec<u8>>> {
        let until = Instant::now() + self.deadline;
        let mut lines = Vec::new();
        let mut rest = Vec::new();
        loop {
            rest.extend_from_slice(&self.buffer[self.start..]);
            self.start = self.buffer.len();
            let mut from = 0;
            while let Some(i) = rest[from..].iter().position(|&b| b == b'\n') {
                let line = &rest[from..from + i];
                from += i + 1;
                match line {
                    b"END\r" => return Ok(lines),
                    b"OK\r" => {}
                    line if line.ends_with(b"\r") => {
                        return Err(Failure::Server(String::from_utf8_lossy(line).trim_end().to_string()));
                    }
                    line => lines.push(line.to_vec()),
                }
            }
            rest.drain(..from);
            if self.fill(until)? == 0 {
                return Err(Failure::Closed("end of stream inside a dump".into()));
            }
        }
    }

    /// Everything up to and including `end`, or up to the end of the stream (then `true`).
    pub fn raw_until(&mut self, end: &[u8]) -> Outcome<(Vec<u8>, bool)> {
        let until = Instant::now() + self.deadline;
        loop {
            let have = &self.buffer[self.start..];
            if have.len() >= end.len()
                && let Some(at) = have.windows(end.len()).position(|w| w == end)
            {
                let bytes = have[..at + end.len()].to_vec();
                self.start += at + end.len();
                return Ok((bytes, false));
            }
            match self.fill(until) {
                Ok(0) | Err(Failure::Closed(_)) => return Ok((self.buffer.split_off(self.start), true)),
                Ok(_) => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// True when the peer has ended the stream and nothing is left to read.
    pub fn at_end(&mut self) -> Outcome<bool> {
        if self.start < self.buffer.len() {
            return Ok(false);
        }
        let until = Instant::now() + self.deadline;
        match self.fill(until) {
            Ok(n) => Ok(n == 0),
            Err(Failure::Closed(_)) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// Sends one line and reads one.
    pub fn command(&mut self, line: &str) -> Outcome<String> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.text()
    }

    /// Sends one line and reads one as it is, also an error.
    pub fn raw_command(&mut self, line: &str) -> Outcome<String> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.line().map(|l| String::from_utf8_lossy(&l).into_owned())
    }

    pub fn version(&mut self) -> Outcome<String> {
        let line = self.command("version")?;
        line.strip_prefix("VERSION ").map(str::to_string).ok_or(Failure::Protocol(line))
    }

    pub fn get(&mut self, key: &str) -> Outcome<Option<Item>> {
        self.read("get", key)
    }

    pub fn gets(&mut self, key: &str) -> Outcome<Option<Item>> {
        self.read("gets", key)
    }

    pub fn gat(&mut self, exptime: i64, key: &str) -> Outcome<Option<Item>> {
        self.read(&format!("gat {exptime}"), key)
    }

    fn read(&mut self, verb: &str, key: &str) -> Outcome<Option<Item>> {
        self.send(format!("{verb} {key}\r\n").as_bytes())?;
        let mut items = self.values()?;
        if items.len() > 1 || items.iter().any(|i| i.key != key.as_bytes() || i.cas.is_some() != (verb == "gets")) {
            return Err(Failure::Protocol(format!("{verb} {key} answered {items:?}")));
        }
        Ok(items.pop())
    }

    /// Any number of keys; the answer must be a subsequence of them, in order.
    pub fn get_many(&mut self, verb: &str, keys: &[String]) -> Outcome<Vec<Option<Item>>> {
        self.send(format!("{verb} {}\r\n", keys.join(" ")).as_bytes())?;
        let mut found = self.values()?.into_iter().peekable();
        let answers = keys.iter().map(|key| found.next_if(|item| item.key == key.as_bytes())).collect();
        match found.next() {
            None => Ok(answers),
            Some(item) => Err(Failure::Protocol(format!("VALUE {} out of order or not asked for", show(&item.key)))),
        }
    }

    pub fn store(&mut self, verb: &str, key: &str, flags: u32, exptime: i64, value: &[u8]) -> Outcome<Stored> {
        self.send(&storage(verb, key, flags, exptime, value, ""))?;
        self.stored()
    }

    pub fn set(&mut self, key: &str, value: &[u8]) -> Outcome<Stored> {
        self.store("set", key, 0, 0, value)
    }

    pub fn cas(&mut self, key: &str, flags: u32, exptime: i64, value: &[u8], token: u64) -> Outcome<Stored> {
        self.send(&storage("cas", key, flags, exptime, value, &format!(" {token}")))?;
        self.stored()
    }

    pub fn stored(&mut self) -> Outcome<Stored> {
        match self.text()?.as_str() {
            "STORED" => Ok(Stored::Stored),
            "NOT_STORED" => Ok(Stored::NotStored),
            "EXISTS" => Ok(Stored::Exists),
            "NOT_FOUND" => Ok(Stored::NotFound),
            other => Err(Failure::Protocol(other.to_string())),
        }
    }

    /// True when there was something to delete.
    pub fn delete(&mut self, key: &str) -> Outcome<bool> {
        self.yes_or_not_found(&format!("delete {key}"), "DELETED")
    }

    pub fn touch(&mut self, key: &str, exptime: i64) -> Outcome<bool> {
        self.yes_or_not_found(&format!("touch {key} {exptime}"), "TOUCHED")
    }

    fn yes_or_not_found(&mut self, line: &str, yes: &str) -> Outcome<bool> {
        match self.command(line)?.as_str() {
            "NOT_FOUND" => Ok(false),
            answer if answer == yes => Ok(true),
            other => Err(Failure::Protocol(format!("{line} answered {other}"))),
        }
    }

    pub fn incr(&mut self, key: &str, delta: u64) -> Outcome<Option<u64>> {
        self.arithmetic("incr", key, delta)
    }

    pub fn arithmetic(&mut self, verb: &str, key: &str, delta: u64) -> Outcome<Option<u64>> {
        match self.command(&format!("{verb} {key} {delta}"))?.as_str() {
            "NOT_FOUND" => Ok(None),
            number => match number.parse() {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(Failure::Protocol(format!("{verb} {key} answered {number}"))),
            },
        }
    }

    /// Lines up to `END`.
    pub fn lines_to_end(&mut self) -> Outcome<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            match self.text()?.as_str() {
                "END" => return Ok(lines),
                line if line.starts_with(STARTING) => return Err(Failure::Server(line.to_owned())),
                line => lines.push(line.to_string()),
            }
        }
    }

    /// `stats [argument]`: names and values.
    pub fn stats(&mut self, argument: &str) -> Outcome<Vec<(String, String)>> {
        self.stat_lines(format!("stats {argument}").trim_end())
    }

    /// Any command that answers with `STAT` lines and `END`; of a proxy that is starting once its
    /// start is over.
    pub fn stat_lines(&mut self, command: &str) -> Outcome<Vec<(String, String)>> {
        let lines = loop {
            self.send(format!("{command}\r\n").as_bytes())?;
            match self.lines_to_end() {
                Err(Failure::Server(why)) if why.starts_with(STARTING) => {}
                Ok(lines) if command == "stats" && lines.iter().any(|line| line.starts_with("STAT proxy:role")) => {}
                lines => break lines?,
            }
        };
        lines
            .into_iter()
            .map(|line| {
                let rest = line.strip_prefix("STAT ").ok_or_else(|| Failure::Protocol(line.clone()))?;
                let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
                Ok((name.to_string(), value.to_string()))
            })
            .collect()
    }

    pub fn set_receive_buffer(&self, bytes: usize) {
        if let Stream::Tcp(stream) = &self.stream {
            let _ = socket2::SockRef::from(stream).set_recv_buffer_size(bytes);
        }
    }
}

/// A storage request; `tail` is a cas token or `noreply`, with its leading blank.
pub fn storage(verb: &str, key: &str, flags: u32, exptime: i64, value: &[u8], tail: &str) -> Vec<u8> {
    let mut request = format!("{verb} {key} {flags} {exptime} {}{tail}\r\n", value.len()).into_bytes();
    request.extend_from_slice(value);
    request.extend_from_slice(b"\r\n");
    request
}

fn text_of(line: Vec<u8>) -> Outcome<String> {
    let text = String::from_utf8(line).map_err(|e| Failure::Protocol(show(e.as_bytes())))?;
    if text.starts_with("SERVER_ERROR") {
        Err(Failure::Server(text))
    } else if text.starts_with("CLIENT_ERROR") || text == "ERROR" {
        Err(Failure::Client(text))
    } else {
        Ok(text)
    }
}

fn parse_value_line(rest: &[u8]) -> Option<(Vec<u8>, u32, usize, Option<u64>)> {
    let mut words = rest.split(|&b| b == b' ');
    let key = words.next()?.to_vec();
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<u64>().ok();
    let flags = u32::try_from(number(words.next()?)?).ok()?;
    let len = usize::try_from(number(words.next()?)?).ok()?;
    let cas = match words.next() {
        Some(word) => Some(number(word)?),
        None => None,
    };
    words.next().is_none().then_some((key, flags, len, cas))
}

/// Bytes for a message: short and printable.
pub fn show(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(120)];
    let more = if bytes.len() > cut.len() { format!("… ({} bytes)", bytes.len()) } else { String::new() };
    format!("\"{}\"{more}", cut.escape_ascii())
}
