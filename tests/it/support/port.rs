//! A TCP port that stays ours while its process is dead.
//!
//! A port chosen by binding 0 and closing again may be handed to another test before our process
//! takes it, and again while a killed node is down; worse, a client that dials a free port of the
//! ephemeral range can be given that same port as its source and connect to itself. So a socket
//! stays bound (never listening) to the port as long as the test lives: with SO_REUSEADDR, which
//! memcached and the proxy set too, it hinders neither, the kernel gives the port to nobody else,
//! and dialling it while nobody listens is refused as it should be.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};

/// Keeps a port on 127.0.0.1 reserved.
#[derive(Clone, Debug)]
pub struct Port {
    _reservation: Arc<Socket>,
    pub number: u16,
}

impl Port {
    pub fn reserve() -> Port {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("bind to a free port");
        let number = socket.local_addr().expect("local address").as_socket().expect("an IP socket").port();
        Port { _reservation: Arc::new(socket), number }
    }

    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}
