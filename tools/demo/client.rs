//! A memcached client as small as the demo needs it: classic text protocol, one connection,
//! blocking.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// No answer takes longer; a proxy that hangs is an error of the demo, not its end.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Requests written before their answers are read. The answers must fit into the socket buffers
/// meanwhile.
const BATCH: usize = 500;

/// An item as a client sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Item {
    /// The client's flags.
    pub(crate) flags: u32,
    /// The value.
    pub(crate) value: Vec<u8>,
}

/// A connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

fn unexpected(answer: &str) -> io::Error {
    io::Error::other(format!("answered {answer:?}"))
}

impl Client {
    /// Connects to a port of this machine.
    pub(crate) fn connect(port: u16) -> io::Result<Client> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Client { stream: BufReader::with_capacity(1 << 16, stream) })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Sends one line and reads one.
    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.send(format!("{request}\r\n").as_bytes())?;
        self.line()
    }

    /// The server's version: whether it serves at all.
    pub(crate) fn version(&mut self) -> io::Result<String> {
        let answer = self.ask("version")?;
        answer.strip_prefix("VERSION ").map(str::to_owned).ok_or_else(|| unexpected(&answer))
    }

    /// Stores an item, and means it.
    pub(crate) fn set(&mut self, key: &str, item: &Item) -> io::Result<()> {
        self.set_many(std::slice::from_ref(&(key.to_owned(), item.clone())))
    }

    /// Stores many, pipelined.
    pub(crate) fn set_many(&mut self, items: &[(String, Item)]) -> io::Result<()> {
        for batch in items.chunks(BATCH) {
            let mut requests = Vec::new();
            for (key, Item { flags, value }) in batch {
                write!(requests, "set {key} {flags} 0 {}\r\n", value.len())?;
                requests.extend_from_slice(value);
                requests.extend_from_slice(b"\r\n");
            }
            self.send(&requests)?;
            for _ in batch {
                let answer = self.line()?;
                if answer != "STORED" {
                    return Err(unexpected(&answer));
                }
            }
        }
        Ok(())
    }

    /// Reads an item.
    pub(crate) fn get(&mut self, key: &str) -> io::Result<Option<Item>> {
        Ok(self.get_many(std::slice::from_ref(&key.to_owned()))?.remove(key))
    }

    /// Reads many with one request for each batch; what is not there is not in the answer.
    pub(crate) fn get_many(&mut self, keys: &[String]) -> io::Result<HashMap<String, Item>> {
        let mut found = HashMap::new();
        // The longest line that memcached takes is 2 KiB on old versions; keys here are short.
        for batch in keys.chunks(50) {
            self.send(format!("get {}\r\n", batch.join(" ")).as_bytes())?;
            loop {
                let line = self.line()?;
                if line == "END" {
                    break;
                }
                let fields: Vec<&str> = line.split(' ').collect();
                let ["VALUE", key, flags, length] = fields[..] else { return Err(unexpected(&line)) };
                let (Ok(flags), Ok(length)) = (flags.parse(), length.parse::<usize>()) else {
                    return Err(unexpected(&line));
                };
                let mut value = vec![0; length + 2];
                self.stream.read_exact(&mut value)?;
                value.truncate(length);
                found.insert(key.to_owned(), Item { flags, value });
            }
        }
        Ok(found)
    }

    /// Deletes a key; whether it was there.
    pub(crate) fn delete(&mut self, key: &str) -> io::Result<bool> {
        match self.ask(&format!("delete {key}"))?.as_str() {
            "DELETED" => Ok(true),
            "NOT_FOUND" => Ok(false),
            other => Err(unexpected(other)),
        }
    }

    /// Adds one to a counter; its new value, or `None` if it is not there.
    pub(crate) fn increment(&mut self, key: &str) -> io::Result<Option<u64>> {
        match self.ask(&format!("incr {key} 1"))?.as_str() {
            "NOT_FOUND" => Ok(None),
            answer => answer.parse().map(Some).map_err(|_| unexpected(answer)),
        }
    }

    /// The `STAT` lines that answer a command, by name.
    pub(crate) fn stats(&mut self, command: &str) -> io::Result<HashMap<String, String>> {
        self.send(format!("{command}\r\n").as_bytes())?;
        let mut stats = HashMap::new();
        loop {
            let line = self.line()?;
            match line.split_once(' ') {
                _ if line == "END" => return Ok(stats),
                Some(("STAT", stat)) => {
                    let (name, value) = stat.split_once(' ').unwrap_or((stat, ""));
                    stats.insert(name.to_owned(), value.to_owned());
                }
                _ => return Err(unexpected(&line)),
            }
        }
    }
}
