//! As much of HTTP/1.1 as etcd's JSON gateway needs: one request at a time to one address, over a
//! connection that is kept, each under a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use super::lookup::{LookUp, try_each};
use crate::timed::{Timed, left};

/// With which an answer begins.
const HTTP: &[u8] = b"HTTP/1.";

/// What is said of what listens there and is something else.
pub const NO_HTTP: &str = "it does not speak HTTP";

/// The same of what speaks HTTP within TLS.
pub const TLS: &str = "it speaks TLS, which is not spoken here: give a port on which it speaks plain HTTP";

/// The beginning of a handshake that nobody goes on with: who speaks TLS says so in a record.
const HELLO: &[u8] = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00";

/// More than any answer to what is asked here.
const MOST: usize = 1 << 20;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// For how long a server is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Until {
    /// It has to be reached by then.
    pub reached: Instant,
    pub answered: Instant,
}

impl From<Instant> for Until {
    fn from(deadline: Instant) -> Until {
        Until { reached: deadline, answered: deadline }
    }
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HttpError {
    /// Nothing was sent: it was surely not done.
    #[error("cannot be reached: {0}")]
    NotSent(String),
    /// It may have been done.
    #[error("has not answered: {0}")]
    Unanswered(String),
}

/// HTTP with one server, over a connection that is kept.
#[derive(Debug)]
pub struct Http {
    /// `HOST:PORT`, as it was given.
    authority: String,
    name: LookUp,
    kept: Option<TcpStream>,
}

impl Http {
    pub fn new(authority: String) -> Http {
        Http { name: LookUp::of_authority(authority.clone()), authority, kept: None }
    }

    #[cfg(test)]
    pub fn with_name(authority: String, name: LookUp) -> Http {
        Http { authority, name, kept: None }
    }

    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// `body`: a POST of that, else a GET. `token`: what authorizes it.
    pub fn ask(
        &mut self,
        path: &str,
        body: Option<&str>,
        token: Option<&str>,
        until: impl Into<Until>,
    ) -> Result<Answer, HttpError> {
        let Until { reached, answered: deadline } = until.into();
        let stream = match self.kept.take().filter(is_quiet) {
            Some(stream) => stream,
            None => self.connect(reached).map_err(|error| HttpError::NotSent(error.to_string()))?,
        };
        let mut stream = Timed::new(stream, deadline);
        let method = if body.is_some() { "POST" } else { "GET" };
        let authorization = token.map_or_else(String::new, |token| format!("Authorization: {token}\r\n"));
        let (authority, body) = (&self.authority, body.unwrap_or_default());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {authority}\r\n{authorization}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answered = stream.write_all(request.as_bytes()).and_then(|()| answer(&mut stream));
        let (answer, keeps) = answered.map_err(|error| HttpError::Unanswered(in_words(&error)))?;
        self.kept = keeps.then(|| stream.into_inner());
        Ok(answer)
    }

    /// Whether TLS is spoken there, as far as that is known by the deadline.
    pub fn speaks_tls(&mut self, deadline: Instant) -> bool {
        let mut said = [0; 2];
        let said = self.connect(deadline).and_then(|stream| {
            let mut stream = Timed::new(stream, deadline);
            stream.write_all(HELLO)?;
            stream.read_exact(&mut said)?;
            Ok(said)
        });
        // An alert, or a handshake, of any version.
        matches!(said, Ok([0x15 | 0x16, 0x03]))
    }

    /// Whether it is known where it is. What is not known yet is looked up meanwhile.
    pub fn is_known(&mut self) -> bool {
        self.name.is_known()
    }

    fn connect(&mut self, deadline: Instant) -> io::Result<TcpStream> {
        // A name is looked up when what it led to does not answer, and not each time.
        let known = self.name.known().to_vec();
        let refused = match dial(&known, deadline) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match self.name.look(deadline) {
            Ok(()) if self.name.known() != known => dial(self.name.known(), deadline),
            Err(error) if known.is_empty() => Err(error),
            Ok(()) | Err(_) => Err(refused),
        }
    }
}

fn dial(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    try_each(addresses, deadline, |address, until| {
        let stream = TcpStream::connect_timeout(&address, left(until)?)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::TimedOut => "not in time".to_owned(),
        _ => error.to_string(),
    }
}

/// Whether nothing has come on it, and no end either: then what is sent is most likely heard.
fn is_quiet(stream: &TcpStream) -> bool {
    let quiet = stream.set_nonblocking(true).is_ok()
        && stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    quiet && stream.set_nonblocking(false).is_ok()
}

/// Reads an answer; and whether the connection can be kept.
fn answer(stream: &mut Timed<TcpStream>) -> io::Result<(Answer, bool)> {
    let mut input = Input { stream, buffer: Vec::new() };
    let Head { status, length, keeps } = input.head()?;
    let body = match length {
        Length::InPieces => input.pieces()?,
        Length::Known(length) => input.take(length)?,
    };
    let body = String::from_utf8(body).map_err(|_| wrong("its answer is no text"))?;
    Ok((Answer { status, body }, keeps && input.buffer.is_empty()))
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{NO_HTTP}: {what}"))
}

/// What stands before an answer's body.
struct Head {
    status: u16,
    length: Length,
    /// The connection is kept.
    keeps: bool,
}

enum Length {
    Known(usize),
    InPieces,
}

impl Head {
    fn parse(text: &str) -> io::Result<Head> {
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1."));
        let status = status.and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or_else(|| wrong("no status"))?;
        let (mut length, mut chunked, mut keeps) = (None, false, true);
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let (name, value) = (name.to_ascii_lowercase(), value.trim().to_ascii_lowercase());
            match name.as_str() {
                "content-length" => {
                    length = Some(value.parse::<usize>().map_err(|_| wrong("its length is no number"))?);
                }
                "transfer-encoding" => chunked = value == "chunked",
                "connection" => keeps = value != "close",
                _ => {}
            }
        }
        let length = match length {
            _ if chunked => Length::InPieces,
            Some(length) if length <= MOST => Length::Known(length),
            _ => return Err(wrong("an answer without a length")),
        };
        Ok(Head { status, length, keeps })
    }
}

/// What a connection answers, as far as it has come.
struct Input<'s> {
    stream: &'s mut Timed<TcpStream>,
    buffer: Vec<u8>,
}

impl Input<'_> {
    fn more(&mut self) -> io::Result<()> {
        let mut block = [0; 4096];
        match self.stream.read(&mut block)? {
            0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "it has closed the connection")),
            _ if self.buffer.len() > MOST => Err(io::Error::new(ErrorKind::InvalidData, "its answer is too long")),
            n => {
                self.buffer.extend_from_slice(&block[..n]);
                Ok(())
            }
        }
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more()?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    fn head(&mut self) -> io::Result<Head> {
        let head = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break self.take(end + 4)?;
            }
            if self.buffer.len() >= HTTP.len() && !self.buffer.starts_with(HTTP) {
                return Err(wrong("what it answers is something else"));
            }
            self.more()?;
        };
        Head::parse(&String::from_utf8(head).map_err(|_| wrong("its head is no text"))?)
    }

    /// A body of which each piece begins with its length. (No trailers: etcd sends none behind what
    /// is asked here, and a connection that has some is not quiet, so it is not used again.)
    fn pieces(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n") {
                    break self.take(end + 2)?;
                }
                self.more()?;
            };
            let size = std::str::from_utf8(&line).ok().and_then(|line| line.trim().split(';').next());
            let size = size.and_then(|size| usize::from_str_radix(size, 16).ok()).filter(|&size| size <= MOST);
            let size = size.ok_or_else(|| wrong("a piece without a size"))?;
            body.extend(self.take(size + 2)?.into_iter().take(size));
            if size == 0 {
                return Ok(body);
            }
            if body.len() > MOST {
                return Err(wrong("its answer is too long"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;
    use crate::coord::NameServer;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    /// Answers one connection after the other with these, each to one request a piece.
    fn serve(connections: Vec<Vec<&'static str>>) -> (Http, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = std::thread::spawn(move || {
            let mut heard = Vec::new();
            for answers in connections {
                let (mut stream, _) = listener.accept().unwrap();
                for answer in answers {
                    let mut block = [0; 4096];
                    let n = stream.read(&mut block).unwrap();
                    heard.push(String::from_utf8_lossy(&block[..n]).into_owned());
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
            heard
        });
        (Http::new(address), serving)
    }

    #[test]
    fn asks_over_a_connection_that_is_kept_and_dials_again_where_it_was_closed() {
        let plain = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let pieces = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x\r\nlo\r\n0\r\n\r\n";
        let refused = "HTTP/1.1 429 Too Many\r\nConnection: close\r\ncontent-length: 2\r\n\r\nno";
        let (mut http, serving) = serve(vec![vec![plain, pieces, refused], vec![plain]]);
        for status in [200, 200, 429, 200] {
            let answer = http.ask("/v3/kv/range", Some("{}"), Some("word"), soon()).unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (status, if status == 200 { "hello" } else { "no" }));
        }
        let heard = serving.join().unwrap();
        assert!(heard[0].starts_with("POST /v3/kv/range HTTP/1.1\r\nHost: 127.0.0.1:"), "{heard:?}");
        assert!(heard[0].contains("\r\nAuthorization: word\r\n") && heard[0].ends_with("\r\n\r\n{}"), "{heard:?}");
    }

    #[test]
    fn an_answer_that_does_not_come_leaves_the_outcome_open() {
        let (mut http, serving) = serve(vec![vec![""]]);
        let lost = http.ask("/", None, None, soon()).unwrap_err();
        assert!(matches!(&lost, HttpError::Unanswered(why) if why.contains("closed")), "{lost}");
        serving.join().unwrap();
        let refused = http.ask("/", None, None, soon()).unwrap_err();
        assert!(matches!(refused, HttpError::NotSent(_)), "{refused}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut silent = Http::new(listener.local_addr().unwrap().to_string());
        let late = silent.ask("/", None, None, Instant::now() + Duration::from_millis(50)).unwrap_err();
        assert_eq!(late, HttpError::Unanswered("not in time".to_owned()));
    }

    #[test]
    fn a_server_that_is_reached_has_all_the_time_to_answer() {
        let plain = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let (mut http, serving) = serve(vec![vec![plain, plain]]);
        let late = Until { reached: Instant::now(), answered: soon() };
        assert!(matches!(http.ask("/", None, None, late), Err(HttpError::NotSent(_))));
        for until in [Until::from(soon()), late] {
            assert_eq!(http.ask("/", None, None, until).unwrap().body, "hello");
        }
        serving.join().unwrap();
    }

    /// Its end without a word, and what is no part of an answer, are found before something else is
    /// sent: nobody would know whether that was done.
    #[test]
    fn a_kept_connection_is_used_again_only_while_nothing_comes_on_it() {
        let plain = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let more = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more";
        let (mut http, serving) = serve(vec![vec![plain], vec![more], vec![plain]]);
        for is_kept in [true, false, true] {
            assert_eq!(http.ask("/", None, None, soon()).unwrap().body, "hello");
            assert_eq!(http.kept.is_some(), is_kept);
            while http.kept.as_ref().is_some_and(is_quiet) {
                std::thread::yield_now();
            }
        }
        assert_eq!(serving.join().unwrap().len(), 3);
    }

    #[test]
    fn an_answer_without_an_end_is_given_up() {
        let head = "HTTP/1.1 200 OK\r\n";
        let piece = format!("80000\r\n{}\r\n", "a".repeat(0x80000));
        for endless in [
            format!("{head}X: {}", "a".repeat(2 * MOST)),
            format!("{head}Transfer-Encoding: chunked\r\n\r\n{}", piece.repeat(4)),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut http = Http::new(listener.local_addr().unwrap().to_string());
            let serving = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]);
                // (Nobody reads all of it.)
                let _ = stream.write_all(endless.as_bytes());
            });
            let wrong = http.ask("/", None, None, soon()).unwrap_err();
            assert!(wrong.to_string().contains("too long"), "{wrong}");
            serving.join().unwrap();
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_followed_when_nobody_answers_where_it_led() {
        let (names, name) = NameServer::new();
        let (there, serving) = serve(vec![vec!["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]]);
        let mut http = Http::with_name("name".to_owned(), name);
        let nobody = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        nobody.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        names.answer(&[&nobody.local_addr().unwrap().as_socket().unwrap().to_string()]);
        assert!(matches!(http.ask("/", None, None, soon()), Err(HttpError::NotSent(_))));
        names.answer(&[there.authority()]);
        assert_eq!(http.ask("/", None, None, soon()).unwrap().body, "ok");
        serving.join().unwrap();
    }

    #[test]
    fn what_is_no_http_is_an_error() {
        for answer in [
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nwithout a length",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n99999999\r\n",
        ] {
            let (mut http, serving) = serve(vec![vec![answer]]);
            let wrong = http.ask("/", None, None, soon()).unwrap_err();
            assert!(matches!(&wrong, HttpError::Unanswered(why) if why.contains("HTTP")), "{wrong}");
            serving.join().unwrap();
        }
    }
}
