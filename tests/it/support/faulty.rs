//! A pass-through to one memcached that lies on purpose: the judge must see each kind of lie, or it
//! proves nothing.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What it does wrong, with about one request in [`EVERY`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing: the judge must find nothing either.
    None,
    /// `set` answered STORED but never done.
    LoseSet,
    /// `delete` answered DELETED but never done.
    LoseDelete,
    /// `incr` done twice.
    DoubleIncr,
    /// `incr` and `decr` answered but undone at once.
    UndoIncr,
    /// `append` done twice.
    DoubleAppend,
    /// `add` carried out as `set`.
    AddWins,
    /// `cas` carried out as `set`.
    CasWins,
    /// A value answered as a miss.
    Miss,
    /// A byte of a value changed.
    Corrupt,
    /// Client flags changed.
    WrongFlags,
    /// The first value of the key that this client ever got, answered again.
    Stale,
    /// `SERVER_ERROR` in place of an answer.
    ServerError,
    /// The connection closed in place of an answer.
    Close,
    /// No answer at all.
    Hang,
    /// Wrong exptime on `set`: only a look at the nodes shows it.
    WrongTtl,
}

pub const EVERY: u64 = 40;

/// Its listener's address; it serves until the test process ends.
pub fn start(node: &str, fault: Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("address").to_string();
    let node = node.to_string();
    let dice = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (node, dice) = (node.clone(), dice.clone());
            std::thread::spawn(move || serve(client, &node, fault, &dice));
        }
    });
    addr
}

/// Ends quietly when either side does.
fn serve(client: TcpStream, node: &str, fault: Fault, dice: &AtomicU64) -> Option<()> {
    client.set_nodelay(true).ok()?;
    let backend = TcpStream::connect(node).ok()?;
    backend.set_nodelay(true).ok()?;
    let mut from_client = BufReader::new(client.try_clone().ok()?);
    let mut from_node = BufReader::new(backend.try_clone().ok()?);
    let (mut to_client, mut to_node) = (client, backend);
    let mut previous: HashMap<String, Vec<u8>> = HashMap::new();
    loop {
        let mut line = Vec::new();
        if from_client.read_until(b'\n', &mut line).ok()? == 0 {
            return Some(());
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        let verb = words.first().copied().unwrap_or("");
        let storage = matches!(verb, "set" | "add" | "replace" | "append" | "prepend" | "cas");
        let mut data = Vec::new();
        if storage {
            let len: usize = words.get(4)?.parse().ok()?;
            data = vec![0; len + 2];
            from_client.read_exact(&mut data).ok()?;
        }
        let noreply = words.last() == Some(&"noreply");
        let applies = match fault {
            Fault::LoseSet | Fault::WrongTtl => verb == "set" && !noreply,
            Fault::LoseDelete => verb == "delete",
            Fault::DoubleIncr => verb == "incr",
            Fault::UndoIncr => matches!(verb, "incr" | "decr"),
            Fault::DoubleAppend => verb == "append",
            Fault::AddWins => verb == "add",
            Fault::CasWins => verb == "cas",
            // Counters and locks judge a stale read in words of their own; here it is to be seen
            // where values have versions.
            Fault::Stale => {
                verb == "get" && words.len() == 2 && is_register(words[1]) && previous.contains_key(words[1])
            }
            Fault::Miss | Fault::Corrupt | Fault::WrongFlags => matches!(verb, "get" | "gets"),
            Fault::None => false,
            Fault::ServerError | Fault::Close | Fault::Hang => !noreply,
        };
        let now = applies && dice.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1;
        let mut ask = |line: &[u8], data: &[u8]| -> Option<Vec<u8>> {
            to_node.write_all(&[line, data].concat()).ok()?;
            if noreply {
                return Some(Vec::new());
            }
            read_answer(&mut from_node)
        };
        let answer = match fault {
            _ if !now => ask(&line, &data)?,
            Fault::LoseSet => b"STORED\r\n".to_vec(),
            Fault::LoseDelete => b"DELETED\r\n".to_vec(),
            Fault::DoubleIncr | Fault::DoubleAppend => {
                ask(&line, &data)?;
                ask(&line, &data)?
            }
            Fault::UndoIncr => {
                let answer = ask(&line, b"")?;
                let back = if verb == "incr" { "decr" } else { "incr" };
                ask(format!("{back} {} {}\r\n", words[1], words[2]).as_bytes(), b"")?;
                answer
            }
            Fault::AddWins | Fault::CasWins => {
                ask(format!("set {} {} {} {}\r\n", words[1], words[2], words[3], words[4]).as_bytes(), &data)?
            }
            Fault::WrongTtl => ask(format!("set {} {} 1800 {}\r\n", words[1], words[2], words[4]).as_bytes(), &data)?,
            Fault::Miss => b"END\r\n".to_vec(),
            Fault::Corrupt | Fault::WrongFlags => twist(ask(&line, &data)?, fault),
            Fault::Stale => previous[words[1]].clone(),
            Fault::ServerError => {
                ask(&line, &data)?;
                b"SERVER_ERROR on purpose\r\n".to_vec()
            }
            Fault::Close => return None,
            Fault::Hang => {
                let mut rest = Vec::new();
                from_client.read_to_end(&mut rest).ok()?;
                return None;
            }
            Fault::None => unreachable!("it never applies"),
        };
        if fault == Fault::Stale && verb == "get" && words.len() == 2 && answer.starts_with(b"VALUE ") {
            previous.entry(words[1].to_string()).or_insert_with(|| answer.clone());
        }
        to_client.write_all(&answer).ok()?;
    }
}

fn is_register(key: &str) -> bool {
    !key.contains(":lock:") && !key.contains(":ctr:")
}

fn read_answer(from: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut answer = Vec::new();
    loop {
        let start = answer.len();
        if from.read_until(b'\n', &mut answer).ok()? == 0 {
            return None;
        }
        let line = answer[start..].to_vec();
        if line.starts_with(b"VALUE ") {
            let text = String::from_utf8_lossy(&line).into_owned();
            let len: usize = text.split_whitespace().nth(3)?.parse().ok()?;
            let mut data = vec![0; len + 2];
            from.read_exact(&mut data).ok()?;
            answer.extend_from_slice(&data);
        } else if !line.starts_with(b"STAT ") {
            return Some(answer);
        }
    }
}

fn twist(mut answer: Vec<u8>, fault: Fault) -> Vec<u8> {
    let Some(end) = answer.iter().position(|&b| b == b'\n') else { return answer };
    let head = String::from_utf8_lossy(&answer[..end]).trim_end().to_string();
    let words: Vec<&str> = head.split(' ').collect();
    if words[0] != "VALUE" {
        return answer;
    }
    if fault == Fault::Corrupt {
        answer[end + 1] ^= 0x20;
        return answer;
    }
    let flags = words[2].parse::<u32>().unwrap_or(0) ^ 1;
    let cas = words.get(4).map_or(String::new(), |c| format!(" {c}"));
    let mut out = format!("VALUE {} {flags} {}{cas}\r\n", words[1], words[3]).into_bytes();
    out.extend_from_slice(&answer[end + 1..]);
    out
}
