//! `bench floor PORT`: a server that does nothing but what no server and no proxy can leave out —
//! for a client's requests one read, one write, and its share of the waiting. It keeps one value
//! for all keys. Its cost is the least that anything can cost that answers clients over TCP through
//! epoll; a proxy that reached it would have its nodes for nothing.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);
const BLOCK: usize = 64 << 10;

struct Connection {
    stream: TcpStream,
    /// The beginning of a request.
    partial: Vec<u8>,
    /// Answers that the socket has not taken.
    unsent: Vec<u8>,
}

struct Floor {
    connections: Vec<Option<Connection>>,
    value: Vec<u8>,
    block: Vec<u8>,
}

/// Serves until it is killed.
pub(crate) fn run(port: &str) -> Result<(), Box<dyn Error>> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse()?)))?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut floor = Floor { connections: Vec::new(), value: Vec::new(), block: vec![0; BLOCK] };
    let mut events = Events::with_capacity(1024);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in events.iter() {
            if event.token() == LISTENER {
                floor.accept(&poll, &listener)?;
                continue;
            }
            let place = &mut floor.connections[event.token().0];
            if let Some(mut connection) = place.take()
                && floor.serve(&mut connection).is_ok()
            {
                floor.connections[event.token().0] = Some(connection);
            }
        }
    }
}

impl Floor {
    fn accept(&mut self, poll: &Poll, listener: &TcpListener) -> io::Result<()> {
        loop {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let free = self.connections.iter().position(Option::is_none).unwrap_or(self.connections.len());
            poll.registry().register(&mut stream, Token(free), Interest::READABLE | Interest::WRITABLE)?;
            self.connections.resize_with(self.connections.len().max(free + 1), || None);
            self.connections[free] = Some(Connection { stream, partial: Vec::new(), unsent: Vec::new() });
        }
    }

    /// Once the connection has news. An error: it is done with.
    fn serve(&mut self, connection: &mut Connection) -> io::Result<()> {
        send(connection)?;
        loop {
            let read = match connection.stream.read(&mut self.block) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let Connection { partial, unsent, .. } = connection;
            if partial.is_empty() {
                let used = answer(&self.block[..read], &mut self.value, unsent)?;
                partial.extend_from_slice(&self.block[used..read]);
            } else {
                partial.extend_from_slice(&self.block[..read]);
                let used = answer(partial, &mut self.value, unsent)?;
                partial.drain(..used);
            }
            send(connection)?;
            if read < BLOCK {
                // The socket is empty; what comes next is told.
                return Ok(());
            }
        }
    }
}

fn send(connection: &mut Connection) -> io::Result<()> {
    let mut sent = 0;
    while sent < connection.unsent.len() {
        match connection.stream.write(&connection.unsent[sent..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    connection.unsent.drain(..sent);
    Ok(())
}

/// Answers the whole requests at the front of `input`, of those that the load generator sends;
/// returns how many bytes they were.
fn answer(input: &[u8], value: &mut Vec<u8>, out: &mut Vec<u8>) -> io::Result<usize> {
    let strange = |line: &[u8]| io::Error::other(format!("unexpected request: {}", String::from_utf8_lossy(line)));
    let mut used = 0;
    while let Some(end) = memchr::memchr(b'\n', &input[used..]) {
        let line = input[used..used + end].trim_ascii_end();
        let behind = used + end + 1;
        if let Some(keys) = line.strip_prefix(b"get ") {
            for key in keys.split(|&b| b == b' ') {
                out.extend_from_slice(b"VALUE ");
                out.extend_from_slice(key);
                out.extend_from_slice(b" 0 ");
                out.extend_from_slice(value);
            }
            out.extend_from_slice(b"END\r\n");
            used = behind;
        } else if line.starts_with(b"set ") {
            let digits = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
            let text = std::str::from_utf8(digits).map_err(|_| strange(line))?;
            let length: usize = text.parse().map_err(|_| strange(line))?;
            let Some(data) = input.get(behind..behind + length + 2) else { break };
            // Kept as it is sent. Of one size all values are alike here.
            if value.len() != digits.len() + 2 + data.len() {
                value.clear();
                value.extend_from_slice(digits);
                value.extend_from_slice(b"\r\n");
                value.extend_from_slice(data);
            }
            out.extend_from_slice(b"STORED\r\n");
            used = behind + data.len();
        } else if line == b"version" {
            out.extend_from_slice(b"VERSION floor\r\n");
            used = behind;
        } else {
            return Err(strange(line));
        }
    }
    Ok(used)
}
