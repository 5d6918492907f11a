//! Blocking sockets with a deadline: however slowly the other side reads and answers, a
//! conversation ends with it. Its error is then always [`ErrorKind::TimedOut`].

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A socket whose calls can be made to end.
pub(crate) trait Limited: Read + Write {
    /// Each call ends after this long.
    fn limit(&self, most: Duration) -> io::Result<()>;
}

impl Limited for TcpStream {
    fn limit(&self, most: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(most))?;
        self.set_write_timeout(Some(most))
    }
}

impl Limited for UnixStream {
    fn limit(&self, most: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(most))?;
        self.set_write_timeout(Some(most))
    }
}

impl Limited for Box<dyn Limited> {
    fn limit(&self, most: Duration) -> io::Result<()> {
        (**self).limit(most)
    }
}

/// The time until the deadline; an error once it has passed.
pub(crate) fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// See the module's words.
#[derive(Debug)]
pub(crate) struct Timed<S> {
    socket: S,
    deadline: Instant,
}

impl<S: Limited> Timed<S> {
    pub(crate) fn new(socket: S, deadline: Instant) -> Timed<S> {
        Timed { socket, deadline }
    }

    /// What follows has a deadline of its own.
    pub(crate) fn begin_anew(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    pub(crate) fn into_inner(self) -> S {
        self.socket
    }

    fn call<T>(&mut self, mut call: impl FnMut(&mut S) -> io::Result<T>) -> io::Result<T> {
        loop {
            self.socket.limit(left(self.deadline)?)?;
            match call(&mut self.socket) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What the kernel says of a call whose time is over.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                done => return done,
            }
        }
    }
}

impl<S: Limited> Read for Timed<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.call(|socket| socket.read(buffer))
    }
}

impl<S: Limited> Write for Timed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.call(|socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    /// One that reads nothing, and one that says nothing; and drops do not make it longer.
    #[test]
    fn a_conversation_ends_with_its_deadline() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut timed = Timed::new(here, soon());
        let error = timed.write_all(&vec![0; 16 << 20]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "it reads nothing");
        let drips = std::thread::spawn(move || while (&there).write_all(b"x").is_ok() {});
        timed.begin_anew(soon());
        let mut input = [0];
        let error = loop {
            if let Err(error) = timed.read_exact(&mut input) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut, "it goes on");
        drop(timed.into_inner());
        drips.join().unwrap();
        let (here, _there) = UnixStream::pair().unwrap();
        let error = Timed::new(here, soon()).read(&mut input).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "it says nothing");
    }
}
