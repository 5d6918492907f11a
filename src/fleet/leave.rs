//! `--leave-fleet`: a fleet's marks are taken from the servers, once it is known to be gone.
//!
//! Beside a living one its proxies and this one would write to both copies of an item in two
//! orders. So the proxy that the marks name is asked: it has said that it stopped (its session is
//! closed), nothing listens where it was, or something else does. Who cannot be asked may be at
//! work.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::backend::marker::{FLEET_KEY, FleetMark};
use crate::config::Settings;

use super::survey::{Said, Surveyor, is_open};

/// How long a server, or a proxy, may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A standby takes the place of an active proxy that has crashed within 1.3 leases; so long with
/// the default one.
const TAKEOVER: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(200);

/// Takes a fleet's marks from the servers.
///
/// # Errors
///
/// Which server keeps its mark; which proxy of the fleet lives, or may.
pub fn leave(settings: &Settings) -> io::Result<()> {
    take_leave(&super::surveyor(settings))
}

pub(super) fn take_leave(surveyor: &Surveyor) -> io::Result<()> {
    is_gone(surveyor).and_then(|()| surveyor.take_marks(PATIENCE).map_err(silent)).map_err(io::Error::other)
}

fn silent(why: String) -> String {
    format!(
        "--leave-fleet: {why}; all servers must answer, or the fleet would go on there; \
         start that one, or, where it is gone for good, give -s and -b without it"
    )
}

fn is_gone(surveyor: &Surveyor) -> Result<(), String> {
    let look = || surveyor.all_said(PATIENCE).map_err(silent);
    let mut said = look()?;
    let Some(mark) = latest(&said).filter(|_| is_open(&said)) else { return Ok(()) };
    judge(&mark, ask(&mark))?;
    // It has crashed: a standby may be about to take its place.
    let until = Instant::now() + TAKEOVER;
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
    Ok(())
}

const STOP: &str = "stop all of its proxies first, the standbys too";

/// The last active proxy's.
fn latest(said: &[Said]) -> Option<FleetMark> {
    said.iter().filter_map(|(_, mark)| mark.clone()).max_by_key(|mark| mark.generation)
}

/// What is found where a proxy was.
#[derive(Debug)]
enum Found {
    Proxy,
    /// Something takes connections, and says nothing.
    Silent,
    /// Nothing, or something else.
    Nothing,
    /// Nobody knows.
    Unknown(io::Error),
}

fn judge(FleetMark { name, generation, address }: &FleetMark, found: Found) -> Result<(), String> {
    let why = match found {
        Found::Nothing => return Ok(()),
        Found::Proxy => format!(
            "the fleet {name} lives: a proxy answers on {address}, where that of generation {generation} is; {STOP}"
        ),
        Found::Silent => format!(
            "the fleet {name} may live: what listens on {address}, where the proxy of generation {generation} is, \
             takes connections and says nothing, as a process that is stopped does; end it first"
        ),
        Found::Unknown(error) => format!(
            "the fleet {name} may live: its proxy of generation {generation} cannot be asked on {address} ({error}); \
             if its host is surely off, delete the item {FLEET_KEY} on each server"
        ),
    };
    Err(format!("--leave-fleet: {why}"))
}

fn ask(mark: &FleetMark) -> Found {
    let asked = || -> io::Result<Vec<u8>> {
        let address = mark.address.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // (Of no purpose that there is: it is answered, and no connection comes of it.)
        stream.write_all(format!("proxy 1 {} look {}\r\n", mark.generation, mark.name).as_bytes())?;
        let mut answer = vec![0; 64];
        let n = stream.read(&mut answer)?;
        answer.truncate(n);
        Ok(answer)
    };
    match asked() {
        Ok(answer) if [&b"PROXY "[..], b"REFUSED "].iter().any(|begin| answer.starts_with(begin)) => Found::Proxy,
        Ok(_) => Found::Nothing,
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Found::Nothing,
            // (That of the read; that of the dial is `TimedOut`.)
            ErrorKind::WouldBlock => Found::Silent,
            _ => Found::Unknown(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::ids::Generation;

    fn mark(address: &str) -> FleetMark {
        FleetMark { name: "prod".to_owned(), generation: Generation(7), address: address.to_owned() }
    }

    /// What is found where that is answered; nothing: nothing is.
    fn found(answer: Option<&'static str>) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mark = mark(&listener.local_addr().unwrap().to_string());
        let silent = answer.is_none();
        let there = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 200]);
            stream.write_all(answer.unwrap_or_default().as_bytes()).unwrap();
            if silent {
                // Until it is given up.
                let _ = stream.read(&mut [0; 200]);
            }
        });
        let judged = judge(&mark, ask(&mark));
        there.join().unwrap();
        judged
    }

    #[test]
    fn a_fleet_is_left_where_its_proxy_is_gone_and_not_where_it_lives_or_may() {
        for lives in ["REFUSED look is no purpose\r\n", "REFUSED this proxy is not active\r\n", "PROXY 1 7\r\n"] {
            let why = found(Some(lives)).unwrap_err();
            assert!(why.contains("the fleet prod lives") && why.contains("127.0.0.1:"), "{why}");
        }
        let why = found(None).unwrap_err();
        assert!(why.contains("may live") && why.contains("says nothing"), "{why}");
        assert_eq!(found(Some("ERROR\r\n")), Ok(()), "it is something else's address by now");
        let absent = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert_eq!(judge(&mark(&absent), ask(&mark(&absent))), Ok(()));
        let why = judge(&mark("no address"), ask(&mark("no address"))).unwrap_err();
        assert!(why.contains("may live") && why.contains(FLEET_KEY), "{why}");
    }
}
