//! A network that is really cut, so that this machine's kernel ends connections by itself
//! (`ETIMEDOUT`) while the server at the other end holds what it had received, and executes it when
//! it wakes.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::cluster::{count_filled, fill};
use crate::support::network::{Cable, FAR, is_inside};
use crate::support::{Cluster, DEADLINE, Memcached, Shape, wait_until};

const ITEMS: usize = 200;

/// Sends a command, and does not wait for its answer.
fn send(cluster: &Cluster, command: &str) -> TcpStream {
    let mut stream = TcpStream::connect(cluster.proxy.addr()).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    stream.write_all(command.as_bytes()).expect("sent");
    stream
}

fn answer(stream: &mut TcpStream) -> String {
    let mut said = [0; 100];
    let count = stream.read(&mut said).expect("an answer");
    String::from_utf8_lossy(&said[..count]).into_owned()
}

/// The server hangs with a write in its socket; the cable is cut, and this machine gives the
/// connection up. That proves nothing of the write: when the server is back it executes it, and is
/// taken back after that, purged of everything.
#[test]
fn g3_a_connection_that_our_own_kernel_ended_is_no_word_of_the_server() {
    let test = "faults::cut_network::g3_a_connection_that_our_own_kernel_ended_is_no_word_of_the_server";
    if !is_inside(test) {
        return;
    }
    let cable = Cable::lay();
    for io_uring in ["off", "auto"] {
        let (primary, backup) = (Memcached::beyond(&cable, FAR), Memcached::start(&[]));
        // Both commands are to be on one connection; the timeout leaves time to cut the cable
        // between them.
        let args = ["--threads", "1", "--node-connections", "1", "--timeout", "1s", "--io-uring", io_uring];
        let mut cluster = Cluster::over(vec![primary], vec![backup], &Shape::new(1, 1).proxy(&args));
        cluster.mirrored();
        let (name, mut client) = (cluster.primaries[0].known_as(), cluster.client());
        fill(&mut client, "key", ITEMS, 50);
        cluster.primaries[0].pause();
        let mut first = send(&cluster, "set k 0 0 3\r\nold\r\n");
        wait_until("the write to be in the server's socket", DEADLINE, || cluster.primaries[0].unread() > 0);
        cable.cut();
        let mut second = send(&cluster, "set other 0 0 1\r\nx\r\n");
        cluster.wait_lost(&name);
        // Both are executed by the backup.
        assert_eq!((answer(&mut first), answer(&mut second)), ("STORED\r\n".to_owned(), "STORED\r\n".to_owned()));
        client.set("k", b"new").expect("stored");
        wait_until("the kernel to give the connection up", DEADLINE, || {
            cluster.proxy.log_so_far().contains("this machine's kernel gave up a connection with commands unanswered")
        });
        assert!(cluster.primaries[0].unread() > 0, "the old write is still there");
        cable.join();
        cluster.primaries[0].resume();
        cluster.mirrored();
        let status = cluster.proxy.status();
        assert_eq!(status.kind(&name), "full", "what it holds is not believed: {status}");
        assert_eq!(client.get("k").expect("an answer").expect("an item").value, b"new");
        cluster.assert_rings_equal();
        cluster.kill_backups();
        assert_eq!(client.get("k").expect("an answer").expect("an item").value, b"new");
        assert_eq!(count_filled(&mut client, "key", ITEMS, 50), ITEMS);
    }
}
