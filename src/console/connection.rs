//! A connection to a proxy or a server, for commands that run in a terminal: every answer has a
//! deadline.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::backend::ANSWER_MAX;
use crate::protocol::reply::{Frame, ParsedReply, Reply, ReplyError, ReplyKind, ReplyLimits, parse_reply_within};
use crate::protocol::statistics::Line;
use crate::ring::{NodeAddr, SpecError};
use crate::timed::{Limited, Timed};

/// The longest line, and the longest value, of an answer: no server's that is passed on is longer.
const LIMITS: ReplyLimits = ReplyLimits { line_len_max: ANSWER_MAX, value_len_max: ANSWER_MAX };

/// Where the proxy listens.
#[derive(Clone, Debug)]
pub(crate) enum Endpoint {
    Tcp(NodeAddr),
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Endpoint, String> {
        if text.contains('/') {
            return Ok(Endpoint::Unix(PathBuf::from(text)));
        }
        text.parse().map(Endpoint::Tcp).map_err(|error: SpecError| error.problem.to_string())
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Tcp(addr) => addr.fmt(f),
            Endpoint::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A part of an answer.
pub(crate) enum Said {
    Reply(Bytes, Reply),
    /// A line that memcached does not write.
    Strange(String),
}

impl Said {
    /// Its first line, for people.
    pub(crate) fn line(&self) -> String {
        match self {
            Said::Reply(bytes, reply) => {
                String::from_utf8_lossy(Frame::first(bytes, reply, Duration::ZERO).line()).into_owned()
            }
            Said::Strange(line) => line.clone(),
        }
    }

    /// A statistic's name and value.
    pub(crate) fn stat(&self) -> Option<(String, String)> {
        match self {
            Said::Reply(bytes, Reply { kind: ReplyKind::Stat { name, value }, .. }) => {
                let text = |range: &std::ops::Range<usize>| String::from_utf8_lossy(&bytes[range.clone()]).into_owned();
                Some((text(name), text(value)))
            }
            _ => None,
        }
    }

    /// A key and its value.
    pub(crate) fn item(&self) -> Option<(&[u8], &[u8])> {
        match self {
            Said::Reply(bytes, Reply { kind: ReplyKind::Value { key, data, .. }, .. }) => {
                Some((&bytes[key.clone()], &bytes[data.clone()]))
            }
            _ => None,
        }
    }

    /// As the wire layer reads it; when it came does not matter to people.
    pub(crate) fn frame(&self) -> Option<Frame<'_>> {
        match self {
            Said::Reply(bytes, reply) => Some(Frame::first(bytes, reply, Duration::ZERO)),
            Said::Strange(_) => None,
        }
    }

    /// Whether more parts follow: it is one of a list.
    pub(crate) fn goes_on(&self) -> bool {
        match self {
            Said::Reply(_, reply) => matches!(reply.kind, ReplyKind::Stat { .. } | ReplyKind::Value { .. }),
            // The lists of keys, and of statistics that memcached writes without `STAT`.
            Said::Strange(line) => line.starts_with("key=") || Line::parse(line.as_bytes()).goes_on(),
        }
    }

    /// A line that stands in no list either.
    pub(crate) fn is_strange(&self) -> bool {
        matches!(self, Said::Strange(_)) && !self.goes_on()
    }

    /// All of it, as it came.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Said::Reply(bytes, _) => bytes,
            Said::Strange(line) => line.as_bytes(),
        }
    }

    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Said::Reply(_, Reply { kind: ReplyKind::End, .. }))
    }

    pub(crate) fn is_error(&self) -> bool {
        let Said::Reply(_, reply) = self else { return false };
        matches!(reply.kind, ReplyKind::Error | ReplyKind::ClientError | ReplyKind::ServerError)
    }
}

pub(crate) struct Connection {
    stream: Timed<Box<dyn Limited>>,
    input: BytesMut,
    /// How long an answer may take, in however many drops it comes.
    patience: Duration,
}

impl Connection {
    /// It stands within `patience`, and this long has each answer.
    pub(crate) fn open(to: &Endpoint, patience: Duration) -> Result<Connection> {
        let socket: Box<dyn Limited> = match to {
            Endpoint::Tcp(addr) => Box::new(dial(addr, patience)?),
            Endpoint::Unix(path) => Box::new(dial_unix(path, patience)?),
        };
        Ok(Connection { stream: Timed::new(socket, Instant::now()), input: BytesMut::new(), patience })
    }

    /// Asks, and returns the first part of the answer.
    pub(crate) fn ask(&mut self, command: &str) -> Result<Said> {
        self.be_patient(self.patience);
        match self.stream.write_all(format!("{command}\r\n").as_bytes()) {
            Ok(()) => self.reply(),
            // It may have said why before it closed the connection.
            Err(error) => self.reply().map_err(|_| error),
        }
    }

    /// The rest of the answer has this long.
    pub(crate) fn be_patient(&mut self, patience: Duration) {
        self.patience = patience;
        self.stream.begin_anew(Instant::now() + patience);
    }

    /// The next part of the answer.
    pub(crate) fn reply(&mut self) -> Result<Said> {
        loop {
            match parse_reply_within(&self.input, &LIMITS) {
                Ok(ParsedReply::Reply(reply)) => {
                    return Ok(Said::Reply(self.input.split_to(reply.len).freeze(), reply));
                }
                Ok(ParsedReply::Incomplete { .. }) => self.receive()?,
                Err(error @ (ReplyError::LineTooLong { .. } | ReplyError::ValueTooLong { .. })) => {
                    return Err(Error::other(error));
                }
                Err(_) => return Ok(Said::Strange(self.take_line())),
            }
        }
    }

    fn take_line(&mut self) -> String {
        let end = memchr::memchr(b'\n', &self.input).map_or(self.input.len(), |at| at + 1);
        String::from_utf8_lossy(&self.input.split_to(end)).trim_end().to_owned()
    }

    fn receive(&mut self) -> Result<()> {
        let mut block = [0; 16 * 1024];
        match self.stream.read(&mut block) {
            Ok(0) => Err(Error::other("it closed the connection")),
            Ok(read) => {
                self.input.extend_from_slice(&block[..read]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                Err(Error::other(format!("no answer within {:?}", self.patience)))
            }
            Err(error) => Err(error),
        }
    }
}

fn dial(addr: &NodeAddr, patience: Duration) -> Result<TcpStream> {
    let mut last = Error::other("the name has no address");
    for address in (addr.host.as_str(), addr.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A listener whose queue is full keeps whoever connects waiting, for as long as it may send.
fn dial_unix(path: &Path, patience: Duration) -> Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(patience))?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(socket.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(Error::other(format!("it took no connection within {patience:?}")))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    /// What the work comes to; it ends.
    fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, over) = mpsc::channel();
        thread::spawn(move || done.send(work()));
        over.recv_timeout(Duration::from_secs(20)).expect("it waits for ever")
    }

    /// Says `first`, and `then` again and again, to whoever connects.
    fn server(first: &'static [u8], then: &'static [u8]) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut said = stream.write_all(first);
            while said.is_ok() {
                thread::sleep(PAUSE);
                said = stream.write_all(then);
            }
        });
        addr.parse().expect("an endpoint")
    }

    const PAUSE: Duration = Duration::from_millis(20);

    #[test]
    fn an_answer_that_drips_is_not_waited_for_drop_by_drop() {
        for (first, then) in
            [(&b""[..], &b"S"[..]), (b"VALUE k 0 1000000\r\n", b"x"), (b"STAT a 1\r\n", b"STAT a 1\r\n")]
        {
            let proxy = server(first, then);
            let error = ends(move || {
                let mut connection = Connection::open(&proxy, PATIENCE).expect("connect");
                let mut said = connection.ask("stats");
                while let Ok(part) = &said {
                    assert!(part.stat().is_some());
                    said = connection.reply();
                }
                said.err().map(|error| error.to_string())
            });
            assert_eq!(error.as_deref(), Some("no answer within 200ms"));
        }
    }

    #[test]
    fn a_socket_whose_queue_is_full_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        let address = SockAddr::unix(&path).expect("an address");
        listener.bind(&address).expect("bind");
        listener.listen(0).expect("listen");
        let mut waiting = Vec::new();
        loop {
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
            client.set_nonblocking(true).expect("a setting");
            match client.connect(&address) {
                Ok(()) => waiting.push(client),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        let error =
            ends(move || Connection::open(&Endpoint::Unix(path), PATIENCE).err().map(|error| error.to_string()));
        assert_eq!(error.as_deref(), Some("it took no connection within 200ms"));
    }

    #[test]
    fn what_no_memcached_says_is_shown_as_it_is() {
        let stranger = server(b"SSH-2.0-x\r\n", b"");
        let mut connection = Connection::open(&stranger, PATIENCE).expect("connect");
        let said = connection.ask("stats").expect("an answer");
        assert_eq!((said.line(), said.is_error(), said.is_end()), ("SSH-2.0-x".to_owned(), false, false));
    }
}
