//! What the servers can do at best: a bare pipelined client that decides nothing, keeps nothing and
//! checks only that all was answered.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::wire::{put_key, put_set, set_tail};

/// No answer for so long: the server hangs.
const STALLED: Duration = Duration::from_secs(20);
/// Keys handed from the dump to the reader together.
const KEYS_AT_ONCE: usize = 512;
/// Bytes of answers asked for, and of items sent, before the last but one lot's answers are taken:
/// they fit into the sockets' buffers.
const LOT_BYTES: usize = 128 << 10;

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALLED))?;
    Ok(stream)
}

fn other(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

/// Stores these items, of `value_len` bytes each, quietly; the time it took.
pub(super) fn write_all(port: u16, keys: &[u32], value_len: usize) -> io::Result<Duration> {
    let mut stream = connect(port)?;
    let mut tail = format!(" {value_len} ME q T0 F7\r\n").into_bytes();
    tail.extend(std::iter::repeat_n(b'v', value_len));
    tail.extend_from_slice(b"\r\n");
    let begun = Instant::now();
    let (mut lot, mut owed, mut keys) = (Vec::with_capacity(LOT_BYTES * 2), 0, keys.iter().peekable());
    while keys.peek().is_some() {
        lot.clear();
        while lot.len() < LOT_BYTES
            && let Some(&key) = keys.next()
        {
            lot.extend_from_slice(b"ms ");
            put_key(&mut lot, key);
            lot.extend_from_slice(&tail);
        }
        lot.extend_from_slice(b"mn\r\n");
        stream.write_all(&lot)?;
        owed += 1;
        while owed > usize::from(keys.peek().is_some()) {
            let mut answer = [0; 4];
            stream.read_exact(&mut answer)?;
            if &answer != b"MN\r\n" {
                return Err(other("a quiet write was answered: the server has no room, or holds the item"));
            }
            owed -= 1;
        }
    }
    Ok(begun.elapsed())
}

/// Stores the first `count` items through a proxy, each lot as soon as the one before is answered.
pub(super) fn load(port: u16, count: u32, value_len: usize) -> io::Result<()> {
    const STORED: &[u8] = b"STORED\r\n";
    let mut stream = connect(port)?;
    let tail = set_tail(value_len);
    let (mut lot, mut answers) = (Vec::with_capacity(LOT_BYTES * 2), Vec::new());
    for first in (0..count).step_by(KEYS_AT_ONCE) {
        lot.clear();
        let keys = first..count.min(first + KEYS_AT_ONCE as u32);
        keys.clone().for_each(|key| put_set(&mut lot, key, &tail));
        stream.write_all(&lot)?;
        answers.resize(keys.len() * STORED.len(), 0);
        stream.read_exact(&mut answers)?;
        if answers.chunks(STORED.len()).any(|answer| answer != STORED) {
            return Err(other("a write was refused"));
        }
    }
    Ok(())
}

/// Enumerates the server and reads every item that is wanted as it is found; how many, and the time
/// it took.
pub(super) fn read_all(
    port: u16,
    value_len: usize,
    wanted: &(impl Fn(&[u8]) -> bool + Sync),
) -> io::Result<(u64, Duration)> {
    let begun = Instant::now();
    let (send, found) = channel::<Vec<u8>>();
    thread::scope(|scope| {
        let dump = scope.spawn(move || dump(port, wanted, &send));
        let read = read_found(port, value_len, &found);
        dump.join().map_err(|_| other("the dump's thread panicked"))??;
        Ok((read?, begun.elapsed()))
    })
}

fn dump(port: u16, wanted: &impl Fn(&[u8]) -> bool, send: &Sender<Vec<u8>>) -> io::Result<()> {
    let mut stream = connect(port)?;
    stream.write_all(b"lru_crawler metadump hash\r\n")?;
    let (mut block, mut rest) = (vec![0; 256 << 10], Vec::new());
    let (mut keys, mut count) = (Vec::new(), 0);
    loop {
        let n = stream.read(&mut block)?;
        rest.extend_from_slice(&block[..n]);
        let mut at = 0;
        while let Some(length) = memchr::memchr(b'\n', &rest[at..]) {
            let line = &rest[at..at + length];
            at += length + 1;
            if let Some(key) = line.strip_prefix(b"key=") {
                let (end, begins) = (memchr::memchr(b' ', key).unwrap_or(key.len()), keys.len());
                put_decoded(&mut keys, &key[..end]);
                if !wanted(&keys[begins..]) {
                    keys.truncate(begins);
                    continue;
                }
                keys.push(b'\n');
                count += 1;
                if count == KEYS_AT_ONCE {
                    count = 0;
                    send.send(std::mem::take(&mut keys)).map_err(|_| other("the reader ended"))?;
                }
            } else if line.starts_with(b"END") {
                return send.send(keys).map_err(|_| other("the reader ended"));
            } else if !line.starts_with(b"OK") {
                return Err(other(&String::from_utf8_lossy(line)));
            }
        }
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        rest.drain(..at);
    }
}

/// Lets the server list its keys and throws the list away; the time it took.
pub(super) fn list_all(port: u16) -> io::Result<Duration> {
    let begun = Instant::now();
    let mut stream = connect(port)?;
    stream.write_all(b"lru_crawler metadump hash\r\n")?;
    let (mut block, mut end) = (vec![0; 256 << 10], Vec::new());
    while !end.ends_with(b"END\r\n") {
        let n = stream.read(&mut block)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // No key ends so: every line of the list has a number at its end.
        end.drain(..end.len().saturating_sub(5));
        end.extend_from_slice(&block[n.saturating_sub(5)..n]);
    }
    Ok(begun.elapsed())
}

/// `%XX` is how a dump writes what is no letter or digit.
fn put_decoded(out: &mut Vec<u8>, key: &[u8]) {
    let mut bytes = key.iter();
    let digit = |byte: Option<&u8>| byte.and_then(|&b| char::from(b).to_digit(16)).unwrap_or(0) as u8;
    while let Some(&byte) = bytes.next() {
        if byte == b'%' {
            let high = digit(bytes.next());
            out.push(high << 4 | digit(bytes.next()));
        } else {
            out.push(byte);
        }
    }
}

fn read_found(port: u16, value_len: usize, found: &Receiver<Vec<u8>>) -> io::Result<u64> {
    let mut stream = connect(port)?;
    let per_lot = (LOT_BYTES / (value_len + 64)).clamp(1, KEYS_AT_ONCE);
    let (mut block, mut rest) = (vec![0; 256 << 10], Vec::new());
    let (mut lot, mut owed, mut count) = (Vec::new(), 0, 0);
    for keys in found {
        let mut keys = keys.split(|&b| b == b'\n').filter(|key| !key.is_empty()).peekable();
        while keys.peek().is_some() {
            lot.clear();
            let mut sent = 0;
            for key in keys.by_ref().take(per_lot) {
                lot.extend_from_slice(b"mg ");
                lot.extend_from_slice(key);
                lot.extend_from_slice(b" k v f t c\r\n");
                sent += 1;
            }
            stream.write_all(&lot)?;
            owed += sent;
            count += sent as u64;
            take_values(&mut stream, &mut block, &mut rest, &mut owed, sent)?;
        }
    }
    take_values(&mut stream, &mut block, &mut rest, &mut owed, 0)?;
    Ok(count)
}

/// Takes answers until no more than `left` are owed.
fn take_values(
    stream: &mut TcpStream,
    block: &mut [u8],
    rest: &mut Vec<u8>,
    owed: &mut usize,
    left: usize,
) -> io::Result<()> {
    while *owed > left {
        let n = stream.read(block)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        rest.extend_from_slice(&block[..n]);
        let mut at = 0;
        while *owed > 0
            && let Some(end) = memchr::memchr(b'\n', &rest[at..])
        {
            let line = &rest[at..at + end];
            let Some(size) = line.strip_prefix(b"VA ") else { return Err(other("an item that was listed is gone")) };
            let size = size.iter().take_while(|b| b.is_ascii_digit()).fold(0, |n, b| n * 10 + usize::from(b - b'0'));
            if rest.len() < at + end + 1 + size + 2 {
                break;
            }
            at += end + 1 + size + 2;
            *owed -= 1;
        }
        rest.drain(..at);
    }
    Ok(())
}
