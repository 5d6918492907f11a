//! `--leave-fleet`: a fleet's marks are taken from the servers, once it is known to be gone.
//!
//! Beside a living one its proxies and this one would write to both copies of an item in two
//! orders. So the proxy that the marks name is asked: it has said that it stopped (its session is
//! closed), or at each address where it was something else answers, or the host there says that
//! nothing listens. All else proves nothing: a connection that ends or waits without a word may be
//! that of a proxy which is stopped or slow; who cannot be reached may be at work; and an address
//! that each host has for itself says nothing of another one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::backend::marker::{FLEET_KEY, FleetMark};
use crate::config::Settings;
use crate::timed::Timed;

use super::register;
use super::survey::{Said, Surveyor, is_open};

/// How long a server, or a proxy, may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A standby takes the place of an active proxy that has crashed within 1.3 leases: so long with
/// the default one, and with shorter ones.
const TAKEOVER: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(200);
/// An active proxy reads its marks with each probe, and writes again what is gone.
const MARKED_AGAIN: Duration = Duration::from_secs(3);

/// Takes a fleet's marks from the servers.
///
/// # Errors
///
/// Which server keeps its mark; which proxy of the fleet lives, or may.
pub fn leave(settings: &Settings) -> io::Result<()> {
    take_leave(&super::surveyor(settings))
}

pub(super) fn take_leave(surveyor: &Surveyor) -> io::Result<()> {
    let leave = || {
        let crashed = is_gone(surveyor)?;
        surveyor.take_marks(PATIENCE).map_err(silent)?;
        match crashed {
            true => stays_away(surveyor, MARKED_AGAIN),
            false => Ok(()),
        }
    };
    leave().map_err(io::Error::other)
}

/// That a host refuses connections is no proof where a firewall says so, or where its address is
/// another one's as well (a bridge's, a virtual one).
fn stays_away(surveyor: &Surveyor, patience: Duration) -> Result<(), String> {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        std::thread::sleep(PAUSE);
        if let Some(FleetMark { name, address, .. }) = latest(&surveyor.all_said(PATIENCE).map_err(silent)?) {
            return Err(format!(
                "--leave-fleet: the fleet {name} lives: a server bears its mark again, which was taken away; the \
                 proxy on {address} refuses connections from here, and works; {STOP}"
            ));
        }
    }
    Ok(())
}

fn silent(why: String) -> String {
    format!(
        "--leave-fleet: {why}; all servers must answer, or the fleet would go on there; \
         start that one, or, where it is gone for good, give -s and -b without it"
    )
}

/// Whether it has crashed, and not stopped.
fn is_gone(surveyor: &Surveyor) -> Result<bool, String> {
    let look = || surveyor.all_said(PATIENCE).map_err(silent);
    let mut said = look()?;
    let Some(mark) = latest(&said).filter(|_| is_open(&said)) else { return Ok(false) };
    judge(&mark, ask(&mark))?;
    // It has crashed: a standby may be about to take its place.
    let until = Instant::now() + takeover(&mark);
    while Instant::now() < until {
        std::thread::sleep(PAUSE);
        said = look()?;
        if let Some(next) = latest(&said).filter(|next| next.generation > mark.generation) {
            return Err(format!(
                "--leave-fleet: the fleet {} lives: the proxy on {} has just taken the place of that on {}; {STOP}",
                next.name, next.address, mark.address
            ));
        }
    }
    Ok(true)
}

/// How long a standby may take, with some time to spare.
fn takeover(mark: &FleetMark) -> Duration {
    TAKEOVER.max(mark.lease * 3 / 2)
}

const STOP: &str = "stop all of its proxies first, the standbys too";

/// The last active proxy's.
fn latest(said: &[Said]) -> Option<FleetMark> {
    said.iter().filter_map(|(_, mark)| mark.clone()).max_by_key(|mark| mark.generation)
}

/// What is found where a proxy was: of several addresses, the last of these counts.
#[derive(Debug)]
enum Found {
    /// Nothing, or something else.
    Nothing,
    /// What is there could not be found out, and why.
    Unknown(String),
    /// Something takes connections, and says nothing.
    Silent,
    Proxy,
}

fn judge(FleetMark { name, generation, address, .. }: &FleetMark, found: Found) -> Result<(), String> {
    let why = match found {
        Found::Nothing => return Ok(()),
        Found::Proxy => format!(
            "the fleet {name} lives: a proxy answers on {address}, where that of generation {generation} is; {STOP}"
        ),
        Found::Silent => format!(
            "the fleet {name} may live: what listens on {address}, where the proxy of generation {generation} is, \
             takes connections and says nothing, as a process that is stopped does; end it first, or, if it is \
             surely none of the fleet's, delete the item {FLEET_KEY} on each server"
        ),
        Found::Unknown(why) => format!(
            "the fleet {name} may live: its proxy of generation {generation} cannot be asked on {address} ({why}); \
             start it again and stop it, or, if it is surely no more, delete the item {FLEET_KEY} on each server"
        ),
    };
    Err(format!("--leave-fleet: {why}"))
}

fn ask(mark: &FleetMark) -> Found {
    match mark.address.to_socket_addrs() {
        Ok(addresses) => ask_at(&addresses.collect::<Vec<_>>(), mark),
        Err(error) => Found::Unknown(error.to_string()),
    }
}

/// Asks all addresses that the name leads to: the proxy may be at any of them.
fn ask_at(addresses: &[SocketAddr], mark: &FleetMark) -> Found {
    let rank = |found: &Found| match found {
        Found::Nothing => 0,
        Found::Unknown(_) => 1,
        Found::Silent => 2,
        Found::Proxy => 3,
    };
    let found = addresses.iter().map(|address| match ask_one(*address, mark) {
        Found::Nothing if address.ip().is_loopback() && !register::is_of_this_host(&mark.name) => {
            Found::Unknown("that is an address of its own host, which may be another one".to_owned())
        }
        found => found,
    });
    found.max_by_key(rank).unwrap_or_else(|| Found::Unknown("it has no address".to_owned()))
}

fn ask_one(address: SocketAddr, mark: &FleetMark) -> Found {
    let stream = match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Found::Nothing,
        Err(error) => return Found::Unknown(error.to_string()),
    };
    let mut stream = Timed::new(stream, Instant::now() + PATIENCE);
    let mut answered = || -> io::Result<Found> {
        // `look` is no known purpose: a proxy answers such a line and keeps no connection.
        stream.write_all(format!("proxy 1 {} look {}\r\n", mark.generation, mark.name).as_bytes())?;
        let mut answer = Vec::new();
        let mut block = [0; 64];
        loop {
            match stream.read(&mut block)? {
                0 => return Ok(Found::Silent),
                n => answer.extend_from_slice(&block[..n]),
            }
            if let Some(found) = begun(&answer) {
                return Ok(found);
            }
        }
    };
    // It took the connection: an error of that says nothing of who did.
    answered().unwrap_or(Found::Silent)
}

/// What answers with these bytes, as soon as they suffice to say.
fn begun(answer: &[u8]) -> Option<Found> {
    const WORDS: [&[u8]; 2] = [b"PROXY ", b"REFUSED "];
    if WORDS.iter().any(|word| answer.starts_with(word)) {
        return Some(Found::Proxy);
    }
    (!WORDS.iter().any(|word| word.starts_with(answer))).then_some(Found::Nothing)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::ids::Generation;

    fn mark(address: &str) -> FleetMark {
        let (name, address, lease) = ("prod".to_owned(), address.to_owned(), Duration::ZERO);
        FleetMark { name, generation: Generation(7), address, lease }
    }

    /// The same for a fleet by a file of that host.
    fn mark_by_file(host: &str, address: &str) -> FleetMark {
        FleetMark { name: format!("file:/run/fleet@{host}"), ..mark(address) }
    }

    /// What is found where that is answered to a question, piece by piece, and the connection then
    /// closed; nothing: it stays open until it is given up.
    fn found(pieces: Option<&'static [&'static str]>) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mark = mark_by_file(&super::super::host(), &listener.local_addr().unwrap().to_string());
        let there = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 200]);
            for piece in pieces.unwrap_or_default() {
                stream.write_all(piece.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            if pieces.is_none() {
                let _ = stream.read(&mut [0; 200]);
            }
        });
        let judged = judge(&mark, ask(&mark));
        there.join().unwrap();
        judged
    }

    fn absent() -> String {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
    }

    #[test]
    fn a_fleet_is_left_where_its_proxy_is_gone_and_not_where_it_lives_or_may() {
        for lives in [
            &["REFUSED look is no purpose\r\n"][..],
            &["REFUSED this proxy is not active\r\n"],
            &["PROXY 1 7\r\n"],
            &["PRO", "XY 1 7\r\n"],
        ] {
            let why = found(Some(lives)).unwrap_err();
            assert!(why.contains("lives: a proxy answers") && why.contains("127.0.0.1:"), "{why}");
        }
        // It waits, it has closed the connection, it has said half a word.
        for silent in [None, Some(&[][..]), Some(&["REF"])] {
            let why = found(silent).unwrap_err();
            assert!(why.contains("may live") && why.contains("says nothing"), "{silent:?}: {why}");
        }
        assert_eq!(found(Some(&["ERROR\r\n"])), Ok(()), "it is something else's address by now");
        let gone = mark_by_file(&super::super::host(), &absent());
        assert_eq!(judge(&gone, ask(&gone)), Ok(()));
        let why = judge(&mark("no address"), ask(&mark("no address"))).unwrap_err();
        assert!(why.contains("may live") && why.contains(FLEET_KEY), "{why}");
    }

    #[test]
    fn a_standby_of_a_fleet_with_a_long_lease_is_looked_for_as_long() {
        let of = |lease| takeover(&FleetMark { lease, ..mark("a:1") });
        assert_eq!((of(Duration::ZERO), of(Duration::from_secs(20))), (TAKEOVER, Duration::from_secs(30)));
    }

    /// A name may have several.
    #[test]
    fn a_proxy_is_looked_for_at_all_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = [absent(), listener.local_addr().unwrap().to_string(), absent()];
        let mark = mark_by_file(&super::super::host(), "several:1");
        let there = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"REFUSED this proxy is suspended\r\n").unwrap();
            let _ = stream.read(&mut [0; 200]);
        });
        let addresses = addresses.map(|address| address.parse().unwrap());
        let found = ask_at(&addresses, &mark);
        // Where nobody has asked, this ends its wait.
        drop(TcpStream::connect(addresses[1]));
        there.join().unwrap();
        assert!(judge(&mark, found).is_err_and(|why| why.contains("lives")), "the second one answers");
        assert!(judge(&mark, ask_at(&[], &mark)).is_err_and(|why| why.contains("may live")), "nobody was asked");
    }

    /// It took the connection, and threw it away: what does that may be a proxy that was too slow.
    #[test]
    fn a_connection_that_is_reset_proves_no_death() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mark = mark_by_file(&super::super::host(), &listener.local_addr().unwrap().to_string());
        let there = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            // What is unread at the end resets it.
            while stream.peek(&mut [0; 200]).is_ok_and(|n| n == 0) {}
        });
        let why = judge(&mark, ask(&mark)).unwrap_err();
        there.join().unwrap();
        assert!(why.contains("may live") && why.contains("says nothing"), "{why}");
    }

    /// Its proxy refuses connections from this host alone.
    #[test]
    fn a_fleet_whose_mark_comes_back_is_not_left() {
        for (answer, lives) in [("VALUE __resilver__:fleet 0 8\r\n7 ours a\r\nEND\r\n", true), ("END\r\n", false)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let server = listener.local_addr().unwrap().to_string().parse().unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    stream.write_all(answer.as_bytes()).unwrap();
                    let _ = stream.read(&mut [0; 200]);
                }
            });
            let judged = stays_away(&Surveyor::new(std::iter::once(server)), 2 * PAUSE);
            match lives {
                true => assert!(judged.is_err_and(|why| why.contains("the fleet ours lives")), "its mark is back"),
                false => assert_eq!(judged, Ok(())),
            }
        }
    }

    /// Every host has its own `127.0.0.1`.
    #[test]
    fn that_nothing_is_at_another_hosts_own_address_here_proves_nothing() {
        for elsewhere in [mark(&absent()), mark_by_file("elsewhere", &absent())] {
            let why = judge(&elsewhere, ask(&elsewhere)).unwrap_err();
            assert!(why.contains("may live") && why.contains("its own host") && why.contains(FLEET_KEY), "{why}");
        }
    }
}
