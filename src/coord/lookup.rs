//! The addresses of a name, within a deadline. The system's resolver knows no deadline, and a slow
//! name server must not take a lease's time: so a look-up runs on a thread of its own, one at a
//! time for each name, and what was found before counts until it is done.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

/// Most addresses of one name that are used.
const MOST: usize = 16;

/// A name without an address is looked up again after so long, or at once for a caller that waits.
const AGAIN: Duration = Duration::from_secs(1);

/// Of several that are tried in turn, each but the last gets the time that is left divided by this.
const SHARE: u32 = 2;

/// The deadline of one of several that are tried in turn; `others`: how many come after it.
pub(crate) fn share(deadline: Instant, others: usize) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / if others == 0 { 1 } else { SHARE }
}

/// Tries one address after the other, until an attempt succeeds.
pub(crate) fn try_each<T>(
    addresses: &[SocketAddr],
    deadline: Instant,
    mut attempt: impl FnMut(SocketAddr, Instant) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::new(ErrorKind::NotFound, "its name leads nowhere");
    for (at, address) in addresses.iter().enumerate() {
        match attempt(*address, share(deadline, addresses.len() - at - 1)) {
            Ok(done) => return Ok(done),
            Err(error) => last = error,
        }
    }
    Err(last)
}

type Found = io::Result<Vec<SocketAddr>>;

pub(crate) struct LookUp {
    /// Asks the system. `None`: the name is an address itself.
    finds: Option<Arc<dyn Fn() -> Found + Send + Sync>>,
    known: Vec<SocketAddr>,
    under_way: Option<Receiver<Found>>,
    failed: Option<Instant>,
}

impl std::fmt::Debug for LookUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.known)
    }
}

impl LookUp {
    /// `HOST:PORT`.
    pub(crate) fn of_authority(authority: String) -> LookUp {
        match authority.parse() {
            Ok(address) => LookUp::at(address),
            Err(_) => LookUp::by(move || Ok(authority.to_socket_addrs()?.collect())),
        }
    }

    /// A host without brackets.
    pub(crate) fn of_host(host: String, port: u16) -> LookUp {
        match host.parse() {
            Ok(address) => LookUp::at(SocketAddr::new(address, port)),
            Err(_) => LookUp::by(move || Ok((host.as_str(), port).to_socket_addrs()?.collect())),
        }
    }

    pub(crate) fn by(finds: impl Fn() -> Found + Send + Sync + 'static) -> LookUp {
        LookUp { finds: Some(Arc::new(finds)), known: Vec::new(), under_way: None, failed: None }
    }

    fn at(address: SocketAddr) -> LookUp {
        LookUp { finds: None, known: vec![address], under_way: None, failed: None }
    }

    /// What the last successful look-up has found: IPv4 before IPv6, then by number.
    pub(crate) fn known(&self) -> &[SocketAddr] {
        &self.known
    }

    /// Looks it up, and waits until then. What is found later counts at the next call.
    ///
    /// # Errors
    ///
    /// What is known stays as it was.
    pub(crate) fn look(&mut self, until: Instant) -> io::Result<()> {
        self.begin()?;
        let Some(under_way) = &self.under_way else { return Ok(()) };
        match under_way.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(found) => self.found(found),
            Err(RecvTimeoutError::Timeout) => {
                Err(io::Error::new(ErrorKind::TimedOut, "its name is still being looked up"))
            }
            Err(RecvTimeoutError::Disconnected) => self.found(Err(io::Error::other("its look-up has broken off"))),
        }
    }

    /// Whether an address is known. If none is, a look-up is begun, and not waited for.
    pub(crate) fn is_known(&mut self) -> bool {
        let rests = self.failed.is_some_and(|at| at.elapsed() < AGAIN);
        if self.known.is_empty() && !rests && self.begin().is_ok() {
            match self.under_way.as_ref().map(Receiver::try_recv) {
                Some(Ok(found)) => drop(self.found(found)),
                Some(Err(TryRecvError::Disconnected)) => drop(self.found(Err(ErrorKind::Other.into()))),
                Some(Err(TryRecvError::Empty)) | None => {}
            }
        }
        !self.known.is_empty()
    }

    /// Begins a look-up, unless one is under way.
    fn begin(&mut self) -> io::Result<()> {
        let Some(finds) = self.finds.clone().filter(|_| self.under_way.is_none()) else { return Ok(()) };
        let (tells, hears) = channel();
        std::thread::Builder::new().name("name".to_owned()).spawn(move || drop(tells.send(finds())))?;
        self.under_way = Some(hears);
        Ok(())
    }

    fn found(&mut self, found: Found) -> io::Result<()> {
        self.under_way = None;
        self.failed = Some(Instant::now());
        let mut found = found?;
        found.sort_unstable();
        found.dedup();
        found.truncate(MOST);
        if found.is_empty() {
            return Err(io::Error::new(ErrorKind::NotFound, "its name leads nowhere"));
        }
        (self.known, self.failed) = (found, None);
        Ok(())
    }
}

/// A name server that answers when a test says so.
#[cfg(test)]
pub(crate) mod testing {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::Sender;
    use std::sync::{Mutex, PoisonError};

    use super::*;

    pub(crate) struct NameServer {
        answers: Sender<Vec<SocketAddr>>,
        asked: Arc<AtomicUsize>,
    }

    impl NameServer {
        pub(crate) fn new() -> (NameServer, LookUp) {
            let (answers, hears) = channel();
            let (asked, hears) = (Arc::new(AtomicUsize::new(0)), Mutex::new(hears));
            let counts = asked.clone();
            let name = LookUp::by(move || {
                counts.fetch_add(1, Ordering::SeqCst);
                hears.lock().unwrap_or_else(PoisonError::into_inner).recv().map_err(io::Error::other)
            });
            (NameServer { answers, asked }, name)
        }

        /// To one look-up.
        pub(crate) fn answer(&self, addresses: &[&str]) {
            self.answers.send(addresses.iter().map(|address| address.parse().unwrap()).collect()).unwrap();
        }

        pub(crate) fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::NameServer;
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn at_once() -> Instant {
        Instant::now() + Duration::from_millis(1)
    }

    #[test]
    fn a_look_up_that_is_slow_is_waited_for_until_the_deadline_and_begun_once() {
        let (server, mut name) = NameServer::new();
        for _ in 0..3 {
            assert_eq!(name.look(at_once()).unwrap_err().kind(), ErrorKind::TimedOut);
            assert!(!name.is_known());
        }
        server.answer(&["[::1]:1", "127.0.0.2:1", "127.0.0.1:1", "127.0.0.2:1"]);
        name.look(soon()).unwrap();
        assert_eq!(server.asked(), 1);
        let known = ["127.0.0.1:1", "127.0.0.2:1", "[::1]:1"].map(|address| address.parse().unwrap());
        assert_eq!(name.known(), known, "IPv4 first");
        // It is slow again, then it leads nowhere: what is known counts.
        assert!(name.look(at_once()).is_err() && name.is_known());
        server.answer(&[]);
        assert_eq!(name.look(soon()).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(name.known(), known);
    }

    /// Each look-up is a thread; and each address has its share of the time.
    #[test]
    fn a_name_that_leads_nowhere_is_left_for_a_while_and_one_that_leads_everywhere_is_believed_in_part() {
        let (server, mut name) = NameServer::new();
        assert!(!name.is_known());
        server.answer(&[]);
        assert_eq!(name.look(soon()).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(name.failed.is_some());
        // (For as long as this test may take.)
        name.failed = Some(Instant::now() + Duration::from_secs(3600));
        assert!(!name.is_known() && name.under_way.is_none(), "it rests");
        name.failed = Instant::now().checked_sub(AGAIN);
        assert!(!name.is_known() && name.under_way.is_some());
        let all: Vec<String> = (1..=MOST + 4).map(|host| format!("127.0.0.{host}:1")).collect();
        server.answer(&all.iter().map(String::as_str).collect::<Vec<_>>());
        name.look(soon()).unwrap();
        assert_eq!(name.known().len(), MOST);
    }

    /// Else it would be waited for until the deadline each time, and never begun again.
    #[test]
    fn a_look_up_that_breaks_off_is_over() {
        // (Without the panic's message in the log.)
        let mut name = LookUp::by(|| std::panic::resume_unwind(Box::new(())));
        assert_ne!(name.look(soon()).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(name.under_way.is_none());
        name.failed = None;
        while name.failed.is_none() {
            assert!(!name.is_known());
            std::thread::yield_now();
        }
        assert!(name.under_way.is_none());
    }

    #[test]
    fn an_address_is_known_and_each_of_several_is_tried() {
        for mut name in [LookUp::of_authority("[::1]:7".to_owned()), LookUp::of_host("::1".to_owned(), 7)] {
            assert!(name.is_known() && name.look(at_once()).is_ok());
            assert_eq!(name.known(), ["[::1]:7".parse().unwrap()]);
        }
        let addresses = ["127.0.0.1:1", "127.0.0.2:1"].map(|address| address.parse().unwrap());
        let deadline = soon();
        let mut ends = Vec::new();
        let tried = try_each(&addresses, deadline, |address, until| {
            ends.push(until);
            if address == addresses[1] { Ok(address) } else { Err(ErrorKind::TimedOut.into()) }
        });
        assert_eq!(tried.unwrap(), addresses[1]);
        assert!(ends[0] < deadline && ends[1] >= deadline - Duration::from_micros(1), "the first leaves time");
    }
}
