//! The binary protocol through the proxy, beside a real memcached; keys that text cannot carry,
//! through a fail-over and a refill; what is no protocol of memcached's.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use crate::binary_differential::{Connection, Packet, random_request};
use crate::support::{Cluster, Memcached, Shape, given_seed, wait_until};

pub fn packet(opcode: u8, extras: &[u8], key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80, opcode];
    bytes.extend((key.len() as u16).to_be_bytes());
    bytes.extend([extras.len() as u8, 0, 0, 0]);
    bytes.extend(((extras.len() + key.len() + value.len()) as u32).to_be_bytes());
    bytes.extend([0; 12]);
    [&bytes, extras, key, value].concat()
}

/// What was said, with every cas id the same: the proxy's are its own.
fn without_cas(packets: &[Packet]) -> Vec<Vec<u8>> {
    let plain = |packet: &Packet| {
        let mut bytes = packet.bytes.clone();
        let given = u8::from(packet.cas() != 0);
        bytes[16..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, given]);
        bytes
    };
    packets.iter().map(plain).collect()
}

/// Behind a number that got shorter memcached keeps blanks, or not if somebody else holds the item
/// in that moment: a thread of its own, or one that has just told another connection. So the number
/// that was counted is compared, and written as it is.
fn level(real: &mut Connection, ours: &mut Connection, request: &[u8]) {
    let key_len: usize = u16::from_be_bytes([request[2], request[3]]).into();
    let key = &request[24 + usize::from(request[4])..][..key_len];
    let counted = [&mut *real, &mut *ours].map(|side| Some(get(side, key)?.trim_ascii_end().to_vec()));
    let shown = key.escape_ascii();
    assert_eq!(counted[0], counted[1], "{shown}");
    let [Some(number), _] = counted else { return };
    if number.iter().all(u8::is_ascii_digit) {
        let set = packet(0x01, &[0; 8], key, &number);
        assert_eq!([real, ours].map(|side| side.ask(&set).0[0].status()), [0, 0], "{shown}");
    }
}

/// One after the other on one connection: each answer depends on all requests before.
#[test]
fn random_requests_are_answered_as_by_memcached() {
    const REQUESTS: usize = 6_000;
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut real = Connection::open(&node.addr());
    let mut ours = Connection::open(&cluster.proxy.addr());
    let mut state = given_seed().unwrap_or(0xb2);
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let mut answers = 0;
    for at in 0..REQUESTS {
        let mut request = random_request(&mut below, false);
        // Statistics are each one's own; of a token nobody has, `1` may be one here; what is no
        // request at all is told so (documented).
        if request[1] == 0x10 || request[0] != 0x80 {
            continue;
        }
        if request[16..24] == 1_u64.to_be_bytes() {
            request[16] = 0x60;
        }
        let (expected, got) = (real.ask(&request), ours.ask(&request));
        let shown = request[..request.len().min(120)].escape_ascii();
        assert_eq!((without_cas(&got.0), got.1), (without_cas(&expected.0), expected.1), "request {at}, {shown}");
        answers += got.0.len();
        if got.1 {
            (real, ours) = (Connection::open(&node.addr()), Connection::open(&cluster.proxy.addr()));
        } else if matches!(request[1], 0x05 | 0x06 | 0x15 | 0x16) {
            level(&mut real, &mut ours, &request);
        }
    }
    assert!(answers > REQUESTS / 3, "{answers} answers");
    cluster.assert_rings_equal();
}

/// The first byte of a connection says for good what it speaks: a header of this protocol behind
/// another one is a line of text, which both wait for to end.
#[test]
fn a_connection_that_begins_otherwise_speaks_text() {
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    let header = packet(0x0b, b"", b"", b"");
    let said = |addr: &str, first: u8| {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream.write_all(&[&[first], &header[1..], b"\r\nmn\r\n"].concat()).unwrap();
        let mut said = Vec::new();
        let mut piece = [0; 1024];
        while !said.ends_with(b"MN\r\n") {
            let count = stream.read(&mut piece).unwrap();
            assert!(count > 0, "{first:#x}: closed behind {}", said.escape_ascii());
            said.extend_from_slice(&piece[..count]);
        }
        said.escape_ascii().to_string()
    };
    for first in (0..=0xff).filter(|first| *first != 0x80) {
        let expected = said(&node.addr(), first);
        assert!(expected.starts_with("ERROR"), "{first:#x}: {expected}");
        assert_eq!(said(&cluster.proxy.addr(), first), expected, "{first:#x}");
    }
}

fn nasty_keys() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = (0..=0xff_u8).map(|byte| vec![b'k', byte, byte]).collect();
    keys.extend([b" ".to_vec(), b"a 0 0 1\r\nflush_all\r\n".to_vec(), vec![0; 186], vec![0xff; 250]]);
    keys
}

fn get(connection: &mut Connection, key: &[u8]) -> Option<Vec<u8>> {
    let (packets, closed) = connection.ask(&packet(0x00, b"", key, b""));
    assert!(!closed && packets.len() == 1);
    (packets[0].status() == 0).then(|| packets[0].body()[4..].to_vec())
}

/// Keys with any byte are on both nodes under the name that a binary client gives them, survive
/// their primary, are refilled, and survive their backup then.
#[test]
fn keys_that_text_cannot_carry_have_two_copies_always() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut client = Connection::open(&cluster.proxy.addr());
    let keys = nasty_keys();
    let value = |key: &[u8]| [b"of ", key].concat();
    for key in &keys {
        let (packets, _) = client.ask(&packet(0x01, &[0, 0, 0, 9, 0, 0, 0, 0], key, &value(key)));
        assert_eq!(packets[0].status(), 0, "{}", key.escape_ascii());
        // A counter that the servers make themselves: they do not know how its key came.
        let counter = [b"c", &key[..]].concat();
        if counter.len() <= 186 || counter.iter().all(u8::is_ascii_graphic) {
            let count = [&1_u64.to_be_bytes()[..], &7_u64.to_be_bytes(), &0_u32.to_be_bytes()].concat();
            assert_eq!(client.ask(&packet(0x05, &count, &counter, b"")).0[0].status(), 0, "{}", counter.escape_ascii());
        }
    }
    let (packets, _) = client.ask(&packet(0x01, &[0; 8], &[b' '; 187], b"v"));
    assert_eq!(packets[0].status(), 4, "longer than base64 has room for");
    for node in [&cluster.primaries[0], &cluster.backups[0]] {
        let mut direct = Connection::open(&node.addr());
        for key in &keys {
            assert_eq!(get(&mut direct, key), Some(value(key)), "{} on a node", key.escape_ascii());
        }
    }
    // One is not refilled: it is deleted while its primary is away.
    let (gone, kept) = keys.split_first().unwrap();
    cluster.kill_primaries();
    let all = |cluster: &Cluster, gone: Option<&[u8]>| {
        let mut client = Connection::open(&cluster.proxy.addr());
        for key in kept {
            assert_eq!(get(&mut client, key), Some(value(key)), "{}", key.escape_ascii());
        }
        gone.map(|key| assert_eq!(client.ask(&packet(0x04, b"", key, b"")).0[0].status(), 0))
    };
    all(&cluster, Some(gone));
    cluster.primaries[0].restart();
    cluster.mirrored();
    cluster.assert_rings_equal();
    cluster.kill_backups();
    all(&cluster, None);
    assert_eq!(get(&mut Connection::open(&cluster.proxy.addr()), gone), None);
}

#[test]
fn the_unix_socket_speaks_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _cluster = Cluster::start(&Shape::new(1, 0).patient().proxy(&["-f", path.to_str().unwrap()]));
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&packet(0x0b, b"", b"", b"")).unwrap();
    let mut header = [0; 24];
    stream.read_exact(&mut header).unwrap();
    assert_eq!((header[0], header[1], header[11]), (0x81, 0x0b, 6), "1.6.18");
}

/// A TLS hello, a browser and a Redis client are answered and closed at once, counted each, and the
/// log says what came from where; also where it comes byte by byte.
#[test]
fn strangers_are_closed_at_once_and_told_of() {
    let cluster = Cluster::start(&Shape::new(1, 0).patient());
    for (first, answer, counter) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &b"\x15\x03"[..], "closed_tls"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400", "closed_http"),
        (b"*1\r\n$4\r\nPING\r\n", b"-ERR", "closed_redis"),
        (&[b'x'; 3000], b"CLIENT_ERROR line too long\r\n", "closed_long_line"),
        (&[0x80; 24], b"\x81\x80", "closed_bad_header"),
    ] {
        let mut first = first.to_vec();
        if counter == "closed_bad_header" {
            first[8..12].copy_from_slice(&[0; 4]);
            first.resize(24 + 0x80 + 0x8080, 0);
        }
        let pieces = if first.len() < 64 { &[usize::MAX, 1][..] } else { &[usize::MAX] };
        for (nth, &piece) in (1..).zip(pieces) {
            let mut stream = TcpStream::connect(cluster.proxy.addr()).unwrap();
            let from = stream.local_addr().unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // It may be closed before all is written.
            let _ = first.chunks(piece).try_for_each(|part| stream.write_all(part));
            let mut said = Vec::new();
            // It may be reset over what it did not read.
            let _ = stream.read_to_end(&mut said);
            assert!(piece == 1 || said.starts_with(answer), "{counter}: {}", said.escape_ascii());
            assert_eq!(cluster.proxy.stat(counter), nth, "{counter}");
            if counter == "closed_tls" && nth == 1 {
                let line = format!("peer=\"{from}\" why=\"it speaks TLS\" closed=1");
                wait_until("the log names it", Duration::from_secs(10), || cluster.proxy.log_so_far().contains(&line));
            }
        }
    }
    // Of each thread.
    assert!(cluster.proxy.log_so_far().matches("cannot be served").count() <= 2, "one line in ten seconds");
}

/// Whoever is one too many understands why: in the protocol that it speaks. An operator's request
/// may come in pieces.
#[test]
fn clients_too_many_are_told_so_in_their_own_protocol() {
    let cluster = Cluster::start(&Shape::new(1, 0).patient().proxy(&["-n", "1"]));
    // Whoever looked whether the proxy is ready may not have left yet.
    let mut client = cluster.client();
    wait_until("the only place to be free", Duration::from_secs(10), || {
        client.set("k", b"v").is_ok() || {
            client = cluster.client();
            false
        }
    });
    let extras = [0; 8];
    for mut request in [
        packet(0x00, b"", b"k", b""),
        packet(0x0d, b"", b"k", b""),
        packet(0x01, &extras, b"k", b"v"),
        packet(0x11, &extras, b"k", &[b'v'; 5000]),
    ] {
        request[12..16].copy_from_slice(b"mine");
        let told = |packets: &[Packet]| packets[0].bytes.clone();
        let (packets, closed) = Connection::open(&cluster.proxy.addr()).ask(&request);
        assert!(closed && packets.len() == 1, "{request:?}");
        let bytes = told(&packets);
        assert_eq!((packets[0].status(), bytes[1], &bytes[12..16]), (0x85, request[1], &b"mine"[..]));
        assert_eq!(packets[0].body(), b"Too many open connections");
    }
    for piece in [usize::MAX, 24, 10, 1] {
        let (packets, closed) =
            Connection::open(&cluster.proxy.addr()).ask_in_pieces(&packet(0x10, b"", b"", b""), piece);
        assert!(!closed && packets.len() > 50, "in pieces of {piece}: {}", packets.len());
    }
    for (first, answer, counter) in [
        (&b"\x16\x03\x01\x02\x00\x01"[..], &b"\x15\x03"[..], "closed_tls"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400", "closed_http"),
        (b"*1\r\n$4\r\nPING\r\n", b"-ERR", "closed_redis"),
        (b"get k\r\n", b"ERROR Too many open connections\r\n", "closed_too_many"),
    ] {
        let counted = cluster.proxy.stat(counter);
        let mut stream = TcpStream::connect(cluster.proxy.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(first).unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(said.starts_with(answer), "{counter}: {}", said.escape_ascii());
        assert_eq!(cluster.proxy.stat(counter), counted + 1, "{counter}");
    }
}

/// Sessions with default settings, and PHP's binary client.
#[test]
fn phps_sessions_work_by_default() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/sessions.php");
    let classes = Command::new("php").args(["-r", "echo (int)class_exists('Memcached');"]).output();
    if !classes.is_ok_and(|output| output.stdout == b"1") {
        println!("SKIPPED: php-cli with php-memcached is not installed");
        return;
    }
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    for addr in [node.addr(), cluster.proxy.addr()] {
        let output = Command::new("timeout").args(["60", "php", script, &addr]).output().expect("run php");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{addr}: {text}");
    }
}
