//! What the servers say of earlier turns, asked before this proxy acts: by connections of its own
//! that are closed at once, and read only.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::backend::marker::{FLEET_KEY, FleetMark, SESSION_KEY, Session};
use crate::coord::{Answered, Survey, left};
use crate::ring::NodeAddr;

/// More than two markers take.
const MOST: usize = 4096;

/// Asks all servers.
#[derive(Clone, Debug)]
pub(super) struct Surveyor {
    servers: Vec<NodeAddr>,
}

/// What one says.
type Said = (Option<Session>, Option<FleetMark>);

impl Surveyor {
    pub(super) fn new(servers: impl Iterator<Item = NodeAddr>) -> Surveyor {
        let mut servers: Vec<_> = servers.collect();
        servers.sort_by_key(ToString::to_string);
        servers.dedup();
        Surveyor { servers }
    }

    /// All at once, until the deadline; without a word, who has not answered by then.
    fn ask(&self, deadline: Instant) -> Vec<Said> {
        let (said, hears) = channel();
        for server in &self.servers {
            let (server, said) = (server.clone(), said.clone());
            // (Where no thread can be had, that server has not answered.)
            let _ = std::thread::Builder::new().name("survey".to_owned()).spawn(move || {
                if let Ok(answer) = ask(&server, deadline) {
                    let _ = said.send(answer);
                }
            });
        }
        drop(said);
        let mut all = Vec::new();
        while let Ok(answer) = hears.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            all.push(answer);
        }
        all
    }

    pub(super) fn survey(&self, deadline: Instant) -> Survey {
        let said = self.ask(deadline);
        // What was closed on one server is closed: another one may have been away then.
        let sessions = || said.iter().filter_map(|(session, _)| *session);
        let closed = |open: &Session| sessions().any(|other| other.id == open.id && !other.open);
        Survey {
            answered: match said.len() {
                0 => Answered::None,
                count if count == self.servers.len() => Answered::All,
                _ => Answered::Some,
            },
            highest: said.iter().filter_map(|(_, mark)| Some(mark.as_ref()?.generation)).max().unwrap_or_default(),
            open: sessions().any(|session| session.open && !closed(&session)),
        }
    }

    /// Whether no server that answers is marked by anybody else than this generation of the fleet,
    /// which is active at that address.
    pub(super) fn marks_are_own(&self, own: &FleetMark, deadline: Instant) -> bool {
        let own = |mark: &FleetMark| *mark == *own || mark.name == own.name && mark.generation < own.generation;
        self.ask(deadline).iter().all(|(_, mark)| mark.as_ref().is_none_or(own))
    }

    /// Takes the fleet's marks from all servers.
    ///
    /// # Errors
    ///
    /// Which server has not answered: with one of them left out the fleet might go on there.
    pub(super) fn take_marks(&self, patience: Duration) -> Result<(), String> {
        // All, before any is changed: of a fleet that keeps some of its marks nobody could tell
        // whose the servers are.
        for server in &self.servers {
            if let Err(error) = ask(server, Instant::now() + patience) {
                return Err(format!("server {server} does not answer ({error}), and no mark was taken away"));
            }
        }
        for server in &self.servers {
            let taken = converse(server, Instant::now() + patience, &format!("delete {FLEET_KEY}\r\n"), |answer| {
                answer.ends_with(b"\r\n").then(|| answer.starts_with(b"DELETED") || answer.starts_with(b"NOT_FOUND"))
            });
            match taken {
                Ok(true) => {}
                Ok(false) => return Err(format!("server {server} refuses to delete the fleet's mark")),
                Err(error) => return Err(format!("server {server} does not answer ({error})")),
            }
        }
        Ok(())
    }
}

fn ask(server: &NodeAddr, deadline: Instant) -> io::Result<Said> {
    // Whatever stands there: an answer that cannot be read is none.
    converse(server, deadline, &format!("get {SESSION_KEY} {FLEET_KEY}\r\n"), read)
}

fn converse<T>(
    server: &NodeAddr,
    deadline: Instant,
    question: &str,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<T> {
    let address = (server.host.as_str(), server.port).to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, left(deadline)?)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    let mut block = [0; MOST];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut block)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => answer.extend_from_slice(&block[..n]),
        }
        if let Some(read) = read(&answer) {
            return Ok(read);
        }
        if answer.len() > MOST {
            return Err(ErrorKind::InvalidData.into());
        }
    }
}

/// Once it is whole.
fn read(answer: &[u8]) -> Option<Said> {
    let text = answer.strip_suffix(b"END\r\n")?;
    let text = std::str::from_utf8(text).ok()?;
    let mut lines = text.split("\r\n");
    let mut said = (None, None);
    while let (Some(head), Some(value)) = (lines.next(), lines.next()) {
        match head.split(' ').nth(1) {
            Some(SESSION_KEY) => said.0 = Session::parse(value.as_bytes()),
            Some(FLEET_KEY) => said.1 = FleetMark::parse(value.as_bytes()),
            _ => {}
        }
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Generation;

    #[test]
    fn markers_are_read_from_what_memcached_answers() {
        let whole = "VALUE __resilver__:session 0 21\r\n00000000000000ff open\r\n\
                     VALUE __resilver__:fleet 0 8\r\n7 prod a\r\nEND\r\n";
        let (session, mark) = read(whole.as_bytes()).unwrap();
        assert_eq!(session, Some(Session { id: 255, open: true }));
        let mark = mark.unwrap();
        assert_eq!((mark.generation, mark.name.as_str(), mark.address.as_str()), (Generation(7), "prod", "a"));
        assert_eq!(read(b"END\r\n"), Some((None, None)));
        assert_eq!(read(&whole.as_bytes()[..60]), None);
    }

    #[test]
    fn a_fleet_is_left_on_all_servers_or_on_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // Taken, and free again: nobody listens there.
        let absent = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let servers = [listener.local_addr().unwrap(), absent].map(|addr| addr.to_string().parse().unwrap());
        let surveyor = Surveyor { servers: servers.to_vec() };
        let there = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut block = [0; 200];
            let asked = stream.read(&mut block).unwrap();
            stream.write_all(b"END\r\n").unwrap();
            listener.set_nonblocking(true).unwrap();
            (String::from_utf8_lossy(&block[..asked]).into_owned(), listener)
        });
        let why = surveyor.take_marks(Duration::from_secs(5)).unwrap_err();
        assert!(why.contains(&absent.to_string()) && why.contains("no mark was taken"), "{why}");
        let (asked, listener) = there.join().unwrap();
        assert!(asked.starts_with("get "), "{asked}");
        assert!(listener.accept().is_err(), "it was asked for nothing more");
    }
}
