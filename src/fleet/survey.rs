//! What the markers on the servers say of earlier active proxies, read before this one acts, over
//! connections that are closed at once. Nothing is written.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::backend::marker::{FLEET_KEY, FleetMark, SESSION_KEY, Session};
use crate::coord::{Answered, LookUp, Survey, share, try_each};
use crate::protocol::node;
use crate::protocol::reply::{ReplyKind, parse_reply};
use crate::ring::NodeAddr;
use crate::timed::{Timed, left};

/// Longest answer that is read, in bytes: more than two markers take.
const MOST: usize = 4096;

/// How often it is logged that no server answers.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Asks all servers.
#[derive(Clone, Debug)]
pub(super) struct Surveyor {
    servers: Vec<Server>,
    /// When it was last said that none answers.
    told: Arc<Mutex<Option<Instant>>>,
}

#[derive(Clone, Debug)]
struct Server {
    name: NodeAddr,
    at: Arc<Mutex<LookUp>>,
}

impl Server {
    fn new(name: NodeAddr) -> Server {
        let at = LookUp::of_host(name.host.clone(), name.port);
        Server { name, at: Arc::new(Mutex::new(at)) }
    }

    /// Its addresses: those found before, if a look-up now takes so long that no time would be left
    /// to ask.
    fn addresses(&self, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let looked = at.look(share(deadline, 1));
        let known = at.known().to_vec();
        if known.is_empty() { looked.map(|()| known) } else { Ok(known) }
    }
}

/// What the markers of one server say.
pub(super) type Said = (Option<Session>, Option<FleetMark>);

/// Whether some session is open. One that is closed on any server is closed: another server may
/// have been away then.
pub(super) fn is_open(said: &[Said]) -> bool {
    let sessions = || said.iter().filter_map(|(session, _)| *session);
    let closed = |open: &Session| sessions().any(|other| other.id == open.id && !other.open);
    sessions().any(|session| session.open && !closed(&session))
}

/// What follows from the answers; `servers`: how many were asked.
pub(super) fn judge(said: &[Said], servers: usize) -> Survey {
    let marks = || said.iter().filter_map(|(_, mark)| mark.as_ref());
    let highest = marks().map(|mark| mark.generation).max().unwrap_or_default();
    // The proxy that claimed the highest has waited for those before. So an earlier mark, on a
    // server that was away since, does not count, though its lease may be longer.
    let latest = marks().filter(|mark| mark.generation == highest);
    Survey {
        answered: match said.len() {
            0 => Answered::None,
            count if count == servers => Answered::All,
            _ => Answered::Some,
        },
        highest,
        lease: latest.map(|mark| mark.lease.as_micros() as u64).max().unwrap_or_default(),
        open: is_open(said),
    }
}

/// Whether none of them is marked by anybody else than this generation of the fleet, which is
/// active at that address.
pub(super) fn are_own(said: &[Said], own: &FleetMark) -> bool {
    let own = |mark: &FleetMark| *mark == *own || mark.name == own.name && mark.generation < own.generation;
    said.iter().all(|(_, mark)| mark.as_ref().is_none_or(own))
}

impl Surveyor {
    pub(super) fn new(servers: impl Iterator<Item = NodeAddr>) -> Surveyor {
        let mut servers: Vec<_> = servers.collect();
        servers.sort_by_key(ToString::to_string);
        servers.dedup();
        Surveyor { servers: servers.into_iter().map(Server::new).collect(), told: Arc::default() }
    }

    /// Asks all servers at once, until the deadline; returns their answers, and why one has not
    /// answered, where that is known by then. A thread ends with the deadline, however long a
    /// look-up takes.
    fn ask(&self, deadline: Instant) -> (Vec<Said>, Option<String>) {
        let (said, hears) = channel();
        for server in &self.servers {
            let (server, said) = (server.clone(), said.clone());
            // Where no thread can be had, that server has not answered.
            let _ = std::thread::Builder::new().name("survey".to_owned()).spawn(move || {
                let _ = said.send(ask(&server, deadline).map_err(|error| format!("server {}: {error}", server.name)));
            });
        }
        drop(said);
        let (mut all, mut silent) = (Vec::new(), None);
        while let Ok(answer) = hears.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            match answer {
                Ok(answer) => all.push(answer),
                Err(why) => silent = Some(why),
            }
        }
        (all, silent)
    }

    fn tell(&self, why: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(why, "no server answers: this proxy does not become active before one does");
        }
    }

    pub(super) fn survey(&self, deadline: Instant) -> Survey {
        let (said, silent) = self.ask(deadline);
        if said.is_empty() {
            self.tell(silent.as_deref().unwrap_or("none has said anything in time"));
        }
        judge(&said, self.servers.len())
    }

    /// Whether no server that answers is marked by anybody else than this generation of the fleet,
    /// which is active at that address.
    pub(super) fn marks_are_own(&self, own: &FleetMark, deadline: Instant) -> bool {
        are_own(&self.ask(deadline).0, own)
    }

    /// What all servers say, asked one after the other: this is done once, when a process starts.
    ///
    /// # Errors
    ///
    /// Which server has not answered.
    pub(super) fn all_said(&self, patience: Duration) -> Result<Vec<Said>, String> {
        let say = |server: &Server| {
            let said = ask(server, Instant::now() + patience);
            let name = &server.name;
            said.map_err(|error| format!("server {name} does not answer ({error}), and no mark was taken away"))
        };
        self.servers.iter().map(say).collect()
    }

    /// Takes the fleet's marks from all servers. To be called after all have answered: of a fleet
    /// that keeps some of its marks, it would be unclear whose the servers are.
    ///
    /// # Errors
    ///
    /// Which server has not answered.
    pub(super) fn take_marks(&self, patience: Duration) -> Result<(), String> {
        for server in &self.servers {
            let name = &server.name;
            let taken = converse(server, Instant::now() + patience, &node::delete_key(FLEET_KEY), |answer| {
                match parse_reply(answer) {
                    Ok(None) => None,
                    Ok(Some(reply)) => Some(matches!(reply.kind, ReplyKind::Deleted | ReplyKind::NotFound)),
                    Err(_) => Some(false),
                }
            });
            match taken {
                Ok(true) => {}
                Ok(false) => return Err(format!("server {name} refuses to delete the fleet's mark")),
                Err(error) => return Err(format!("server {name} does not answer ({error})")),
            }
        }
        Ok(())
    }
}

fn ask(server: &Server, deadline: Instant) -> io::Result<Said> {
    // An answer that cannot be read counts as none.
    converse(server, deadline, &question(), read)
}

/// With the first of its addresses that answers: a name may have one without a listener.
fn converse<T>(server: &Server, deadline: Instant, question: &str, read: impl Fn(&[u8]) -> Option<T>) -> io::Result<T> {
    let addresses = server.addresses(deadline)?;
    try_each(&addresses, deadline, |address, until| converse_with(address, until, question, &read))
}

/// As of all sockets to nodes: what the node's kernel has not taken when this one is closed, also
/// by the end of the process, is never executed.
fn connect(address: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, left(deadline)?)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(stream)
}

fn converse_with<T>(
    address: SocketAddr,
    deadline: Instant,
    question: &str,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<T> {
    let mut stream = Timed::new(connect(address, deadline)?, deadline);
    stream.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    let mut block = [0; MOST];
    loop {
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

/// The question, which asks for both markers.
pub(super) fn question() -> String {
    node::get_keys(&[SESSION_KEY, FLEET_KEY])
}

/// Reads the answer, once it is whole.
pub(super) fn read(answer: &[u8]) -> Option<Said> {
    let mut rest = answer;
    let mut said = (None, None);
    loop {
        let reply = parse_reply(rest).ok()??;
        match reply.kind {
            ReplyKind::Value { key, data, .. } if rest[key.clone()] == *SESSION_KEY.as_bytes() => {
                said.0 = Session::parse(&rest[data]);
            }
            ReplyKind::Value { key, data, .. } if rest[key.clone()] == *FLEET_KEY.as_bytes() => {
                said.1 = FleetMark::parse(&rest[data]);
            }
            ReplyKind::Value { .. } => {}
            ReplyKind::End => return Some(said),
            _ => return None,
        }
        rest = &rest[reply.len..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coord::NameServer;
    use crate::ids::{Generation, SessionId};

    #[test]
    fn markers_are_read_from_what_memcached_answers() {
        let whole = "VALUE __resilver__:session 0 21\r\n00000000000000ff open\r\n\
                     VALUE __resilver__:fleet 0 8\r\n7 prod a\r\nEND\r\n";
        let (session, mark) = read(whole.as_bytes()).unwrap();
        assert_eq!(session, Some(Session { id: SessionId(255), open: true }));
        let mark = mark.unwrap();
        assert_eq!((mark.generation, mark.name.as_str(), mark.address.as_str()), (Generation(7), "prod", "a"));
        assert_eq!(read(b"END\r\n"), Some((None, None)));
        assert_eq!(read(&whole.as_bytes()[..60]), None);
    }

    /// A server with these markers, which answers one question.
    fn server(session: &str, mark: &str) -> NodeAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let value = |key: &str, value: &str| match value {
            "" => String::new(),
            value => format!("VALUE {key} 0 {}\r\n{value}\r\n", value.len()),
        };
        let answer = format!("{}{}END\r\n", value(SESSION_KEY, session), value(FLEET_KEY, mark));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            let _ = stream.read(&mut [0; 200]);
        });
        address
    }

    fn absent() -> NodeAddr {
        // Taken, and free again: nobody listens there.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string().parse().unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn a_survey_tells_who_answered_the_highest_generation_and_what_is_open() {
        const ONE: &str = "00000000000000ff";
        for (sessions, away, expected) in [
            ([" open", " open"], false, (Answered::All, true)),
            // It was away when that was closed.
            ([" open", " closed"], false, (Answered::All, false)),
            ([" closed", ""], true, (Answered::Some, false)),
            (["", ""], false, (Answered::All, false)),
        ] {
            let session = |end: &str| if end.is_empty() { String::new() } else { format!("{ONE}{end}") };
            let mut servers = vec![
                server(&session(sessions[0]), "7 a b:1 9000000"),
                server(&session(sessions[1]), "9 a b:2 3000000"),
            ];
            servers.extend(away.then(absent));
            let survey = Surveyor::new(servers.into_iter()).survey(soon());
            assert_eq!((survey.answered, survey.open), expected, "{sessions:?}");
            // The earlier one's longer lease was waited for by the later one.
            assert_eq!((survey.highest, survey.lease), (Generation(9), 3_000_000));
        }
        assert_eq!(Surveyor::new([absent()].into_iter()).survey(soon()).answered, Answered::None);
        let other =
            Surveyor::new([server(&format!("{ONE} closed"), ""), server("00000000000000aa open", "")].into_iter());
        assert!(other.survey(soon()).open, "another session's end says nothing");
    }

    #[test]
    fn marks_are_ones_own_where_nobody_elses_are_found() {
        let (name, address, lease) = ("a".to_owned(), "b:1".to_owned(), Duration::ZERO);
        let own = FleetMark { name, generation: Generation(7), address, lease };
        for (mark, expected) in [
            ("7 a b:1", true),
            ("6 a b:2", true),
            ("", true),
            ("8 a b:1", false),
            ("7 a b:2", false),
            ("6 c b:1", false),
        ] {
            let surveyor = Surveyor::new([server("", "7 a b:1"), server("", mark), absent()].into_iter());
            assert_eq!(surveyor.marks_are_own(&own, soon()), expected, "{mark}");
        }
    }

    #[test]
    fn a_fleet_is_left_on_all_servers_or_on_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let absent = absent();
        let servers = [listener.local_addr().unwrap().to_string().parse().unwrap(), absent.clone()];
        let surveyor = Surveyor { servers: servers.map(Server::new).to_vec(), told: Arc::default() };
        let there = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut block = [0; 200];
            let asked = stream.read(&mut block).unwrap();
            stream.write_all(b"END\r\n").unwrap();
            listener.set_nonblocking(true).unwrap();
            (String::from_utf8_lossy(&block[..asked]).into_owned(), listener)
        });
        let why = crate::fleet::leave::take_leave(&surveyor).unwrap_err().to_string();
        assert!(why.contains(&absent.to_string()) && why.contains("no mark was taken"), "{why}");
        let (asked, listener) = there.join().unwrap();
        assert!(asked.starts_with("get "), "{asked}");
        assert!(listener.accept().is_err(), "it was asked for nothing more");
    }

    #[test]
    fn what_a_server_has_not_taken_ends_with_the_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(listener.local_addr().unwrap(), soon()).unwrap();
        assert_eq!(SockRef::from(&stream).linger().unwrap(), Some(Duration::ZERO));
    }

    #[test]
    fn each_address_of_a_name_is_asked_and_a_slow_name_server_is_asked_once() {
        let (names, at) = NameServer::new();
        let name = NodeAddr { host: "name".to_owned(), port: 1 };
        let servers = vec![Server { name, at: Arc::new(Mutex::new(at)) }];
        let surveyor = Surveyor { servers, told: Arc::default() };
        for _ in 0..3 {
            let survey = surveyor.survey(Instant::now() + Duration::from_millis(20));
            assert_eq!(survey.answered, Answered::None);
        }
        // A server listens on one of two addresses; then nobody says where any more.
        let listener = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
        let there = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 200]);
                let _ = stream.write_all(b"END\r\n");
            }
        });
        names.answer(&[&format!("127.0.0.1:{}", there.port()), &there.to_string()]);
        for _ in 0..2 {
            let survey = surveyor.survey(Instant::now() + Duration::from_secs(5));
            assert_eq!(survey.answered, Answered::All);
        }
        assert_eq!(names.asked(), 2, "one at a time");
    }
}
