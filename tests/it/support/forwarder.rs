//! A piece of network between the proxy and one node, which a test can cut, hold and refuse.
//!
//! What is held stays in it and is delivered later, in order, as TCP does after a partition: a node
//! can thus be handed writes that are minutes old. Holding one way only is a network that loses one
//! direction.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::port::Port;

/// Which bytes are held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    Nothing,
    ToNode,
    ToProxy,
    Both,
    /// To the node: a `flush_all`, and what comes behind it.
    Flushes,
    /// This many bytes of each chunk go on to the proxy, then one each second.
    Drip(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    ToNode,
    ToProxy,
}

#[derive(Debug)]
struct State {
    hold: Hold,
    /// Connections numbered from here on are not held.
    held_below: u64,
    next: u64,
    refusing: bool,
    ended: bool,
    connections: Vec<(TcpStream, TcpStream)>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Dropping it cuts everything.
#[derive(Debug)]
pub struct Forwarder {
    port: Port,
    shared: Arc<Shared>,
}

impl Forwarder {
    pub fn start(node: String) -> Forwarder {
        Forwarder::start_at([127, 0, 0, 1], Port::reserve(), node)
    }

    /// On an address of this machine's own.
    pub fn start_at(host: [u8; 4], port: Port, node: String) -> Forwarder {
        let state = State {
            hold: Hold::Nothing,
            held_below: u64::MAX,
            next: 0,
            refusing: false,
            ended: false,
            connections: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let own = SocketAddr::from((host, port.number));
        let mut listener = Some(listen(own));
        let moved = shared.clone();
        std::thread::spawn(move || {
            loop {
                let (refusing, ended) = moved.with(|s| (s.refusing, s.ended));
                if ended {
                    return;
                }
                if refusing {
                    listener = None;
                } else if listener.is_none() {
                    listener = Some(listen(own));
                }
                match listener.as_ref().map(Socket::accept) {
                    Some(Ok((socket, _))) => moved.connect(TcpStream::from(socket), &node),
                    _ => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Forwarder { port, shared }
    }

    pub fn addr(&self) -> String {
        self.port.addr()
    }

    pub fn hold(&self, hold: Hold) {
        self.shared.with(|s| (s.hold, s.held_below) = (hold, u64::MAX));
        self.shared.changed.notify_all();
    }

    /// As [`Self::hold`], but connections made from now on work.
    pub fn hold_existing(&self, hold: Hold) {
        self.shared.with(|s| (s.hold, s.held_below) = (hold, s.next));
        self.shared.changed.notify_all();
    }

    /// Closes every connection; what is held in them is lost.
    pub fn cut(&self) {
        let connections = self.shared.with(|s| std::mem::take(&mut s.connections));
        for (a, b) in connections {
            let _ = a.shutdown(Shutdown::Both);
            let _ = b.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
    }

    /// The proxy's side of every connection closes; what is held still goes to the node, whenever
    /// it is let go: as if whoever had sent it were gone.
    pub fn hang_up(&self) {
        let connections = self.shared.with(|s| std::mem::take(&mut s.connections));
        for (proxy, _) in connections {
            let _ = proxy.shutdown(Shutdown::Both);
        }
    }

    /// Nobody listens any more (and what is open is cut), or somebody does again.
    pub fn refuse(&self, refuse: bool) {
        self.shared.with(|s| s.refusing = refuse);
        if refuse {
            self.cut();
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.with(|s| s.ended = true);
        self.cut();
    }
}

fn listen(own: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    socket.set_reuse_address(true).expect("SO_REUSEADDR");
    socket.bind(&own.into()).expect("bind to the forwarder's own port");
    socket.listen(128).expect("listen");
    socket.set_nonblocking(true).expect("non-blocking");
    socket
}

impl Shared {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().expect("the forwarder's state"))
    }

    fn connect(self: &Arc<Self>, proxy: TcpStream, node: &str) {
        // A node that is down: the proxy's connection is closed again, as a network address
        // translator would do.
        let Ok(node) = TcpStream::connect(node) else { return };
        let _ = (proxy.set_nonblocking(false), proxy.set_nodelay(true), node.set_nodelay(true));
        let both = || Some((proxy.try_clone().ok()?, node.try_clone().ok()?));
        let (Some(kept), Some(there), Some(back)) = (both(), both(), both()) else { return };
        let number = self.with(|s| {
            s.connections.push(kept);
            s.next += 1;
            s.next - 1
        });
        let shared = self.clone();
        std::thread::spawn(move || shared.pump(number, there.0, there.1, Way::ToNode));
        let shared = self.clone();
        std::thread::spawn(move || shared.pump(number, back.1, back.0, Way::ToProxy));
    }

    /// Ends quietly when either side does, and ends the other side with it.
    fn pump(&self, number: u64, mut from: TcpStream, mut to: TcpStream, way: Way) {
        let mut chunk = vec![0; 65536];
        while let Ok(read) = from.read(&mut chunk) {
            if read > 0 && !self.drip(number, way, &chunk[..read], &mut to) {
                continue;
            }
            self.wait_free(number, way, &chunk[..read]);
            if read == 0 || to.write_all(&chunk[..read]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Returns whether the chunk is still to be passed on.
    fn drip(&self, number: u64, way: Way, chunk: &[u8], to: &mut TcpStream) -> bool {
        let rule = |s: &State| match s.hold {
            Hold::Drip(first) if number < s.held_below && way == Way::ToProxy && !s.ended => Some(first),
            _ => None,
        };
        let mut state = self.state.lock().expect("the forwarder's state");
        let Some(first) = rule(&state) else { return true };
        let first = first.min(chunk.len());
        let mut fine = to.write_all(&chunk[..first]).is_ok();
        for byte in &chunk[first..] {
            if rule(&state).is_some() {
                let waited = self.changed.wait_timeout(state, Duration::from_secs(1));
                state = waited.expect("the forwarder's state").0;
            }
            fine = fine && to.write_all(&[*byte]).is_ok();
        }
        false
    }

    /// Also the end of a stream waits: a partition hides it.
    fn wait_free(&self, number: u64, way: Way, chunk: &[u8]) {
        let flushes = memchr::memmem::find(chunk, b"flush_all").is_some();
        let held = |s: &State| {
            number < s.held_below
                && match s.hold {
                    Hold::Nothing | Hold::Drip(_) => false,
                    Hold::Both => true,
                    Hold::ToNode => way == Way::ToNode,
                    Hold::Flushes => way == Way::ToNode && flushes,
                    Hold::ToProxy => way == Way::ToProxy,
                }
        };
        let mut state = self.state.lock().expect("the forwarder's state");
        while held(&state) && !state.ended {
            state = self.changed.wait(state).expect("the forwarder's state");
        }
    }
}
