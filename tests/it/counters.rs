//! What is counted under memcached's names, held against a real memcached: each command with each
//! end that it has, in all three dialects. And what keys are called in lists.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::binary::packet;
use crate::binary_differential::Connection;
use crate::support::{Cluster, DEADLINE, Memcached, Shape};

/// Counters of `stats` that a command moves.
pub const COUNTERS: [&str; 18] = [
    "cmd_get",
    "cmd_set",
    "cmd_flush",
    "cmd_touch",
    "get_hits",
    "get_misses",
    "delete_hits",
    "delete_misses",
    "incr_hits",
    "incr_misses",
    "decr_hits",
    "decr_misses",
    "cas_hits",
    "cas_misses",
    "cas_badval",
    "touch_hits",
    "touch_misses",
    "store_too_large",
];

/// Text and meta, one a line: `k` is 5, `s` is no number, `v` was not there a moment ago, and `n`
/// never was. `CAS` stands for the cas id of `k`.
const TEXT: &str = r"
get k|get n|get k n k|gets k|gets n|gets k n
gat 0 k|gat 0 n|gats 0 k|gats 0 n|gats 0 k n|touch k 0|touch n 0
set k 0 0 1\r\n1|set v 0 0 1\r\n1|add k 0 0 1\r\n1|add v 0 0 1\r\n1
replace k 0 0 1\r\n1|replace n 0 0 1\r\n1|append k 0 0 1\r\n1|append n 0 0 1\r\n1
prepend k 0 0 1\r\n1|prepend n 0 0 1\r\n1
cas k 0 0 1 CAS\r\n1|cas k 0 0 1 9000000000000000000\r\n1|cas n 0 0 1 5\r\n1
incr k 1|incr n 1|incr s 1|decr k 1|decr n 1|decr s 1|delete k|delete n
mg k v|mg k|mg n v|mg k T0|mg n T0|mg k v q|mg n v q|mg v N0 v|mg k N0 v|mg v N0 T0 v|mg k N0 T0
mg k R30 v|mg k t f s|mg aw== b v|mg bg== b v|me k|me n|mn
ms k 1\r\n1|ms v 1\r\n1|ms k 1 ME\r\n1|ms v 1 ME\r\n1|ms k 1 MR\r\n1|ms n 1 MR\r\n1|ms k 1 MA\r\n1
ms n 1 MA\r\n1|ms k 1 MP\r\n1|ms n 1 MP\r\n1|ms k 1 q\r\n1
ms k 1 CCAS\r\n1|ms k 1 C9000000000000000000\r\n1|ms n 1 C5\r\n1
ms k 1 MR CCAS\r\n1|ms k 1 MR C9000000000000000000\r\n1|ms n 1 MR C5\r\n1
ms k 1 MA CCAS\r\n1|ms k 1 MA C9000000000000000000\r\n1|ms n 1 MA C5\r\n1
ms k 1 MP CCAS\r\n1|ms k 1 MP C9000000000000000000\r\n1|ms n 1 MP C5\r\n1
ma k|ma n|ma s|ma k MD|ma n MD|ma s MD|ma v N0 J7|ma k N0 J7|ma v N0 J7 MD|ma k N0 J7 MD|ma k t v c
ma v N0|ma k T0|ma n T0|ma k CCAS|ma k C9000000000000000000|ma n C5|ma k q|ma n q
ma k MD CCAS|ma k MD C9000000000000000000|ma n MD C5
md k|md n|md k I|md n I|md k I T30|md k CCAS|md k C9000000000000000000|md n C5|md k I CCAS
md k I C9000000000000000000|md k q|md n q|md aw== b
get|incr k|incr k x|touch k|bogus|mg|ms k x|ma k Dx|md k M|flush_all|version|verbosity 1
";

/// By their opcodes, quiet ones too.
fn binary(cas: u64) -> Vec<(String, Vec<u8>)> {
    const COUNT: [u8; 8] = 1_u64.to_be_bytes();
    let first = |exptime: u32| [&COUNT[..], &7_u64.to_be_bytes(), &exptime.to_be_bytes()].concat();
    let (begins, never) = (first(0), first(u32::MAX));
    let mut cases = Vec::new();
    let mut case = |opcode: u8, extras: &[u8], key: &str, value: &[u8], cas: u64| {
        let mut bytes = packet(opcode, extras, key.as_bytes(), value);
        bytes[16..24].copy_from_slice(&cas.to_be_bytes());
        cases.push((format!("binary {opcode:#x} {key:?} of {cas}, {extras:?}"), bytes));
    };
    for key in ["k", "n", "k k", "n n"] {
        for opcode in [0x00, 0x09, 0x0c, 0x0d] {
            case(opcode, b"", key, b"", 0);
        }
        for opcode in [0x1c, 0x1d, 0x1e, 0x23, 0x24] {
            case(opcode, &[0; 4], key, b"", 0);
        }
        for cas in [0, cas, 77] {
            for opcode in [0x01, 0x02, 0x03, 0x11, 0x12, 0x13] {
                case(opcode, &[0; 8], key, b"5", cas);
            }
            for opcode in [0x04, 0x0e, 0x0f, 0x14, 0x19, 0x1a] {
                case(opcode, b"", key, if opcode & 0xf == 4 { b"" } else { b"5" }, cas);
            }
            for opcode in [0x05, 0x06, 0x15, 0x16] {
                case(opcode, &never, key, b"", cas);
                case(opcode, &begins, key, b"", cas);
            }
        }
    }
    case(0x05, &never, "s", b"", 0);
    case(0x05, &begins, "v", b"", 0);
    case(0x06, &begins, "v", b"", 0);
    case(0x08, b"", "", b"", 0);
    case(0x77, b"", "", b"", 0);
    cases
}

/// A server, or the proxy.
struct Side {
    text: TcpStream,
    binary: Connection,
}

impl Side {
    fn of(addr: &str) -> Side {
        let text = TcpStream::connect(addr).expect("connected");
        text.set_read_timeout(Some(DEADLINE)).expect("a socket");
        text.set_nodelay(true).expect("a socket");
        Side { text, binary: Connection::open(addr) }
    }

    /// All that is said to these lines.
    fn say(&mut self, lines: &str, end: &str) -> String {
        String::from_utf8(self.say_bytes(lines.as_bytes(), end)).expect("text")
    }

    fn say_bytes(&mut self, lines: &[u8], end: &str) -> Vec<u8> {
        self.text.write_all(lines).expect("written");
        let (mut said, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while !said.ends_with(end.as_bytes()) {
            let count = self.text.read(&mut buffer).expect("an answer");
            assert!(count > 0, "closed behind {}", said.escape_ascii());
            said.extend_from_slice(&buffer[..count]);
        }
        said
    }

    /// The same items as before, and the cas id of `k`.
    fn prepare(&mut self) -> u64 {
        let key = |key: &[u8]| packet(0x01, &[0; 8], key, b"5");
        for opcode in [0x04, 0x01] {
            let bytes = if opcode == 4 { packet(4, b"", b"n n", b"") } else { key(b"k k") };
            self.binary.ask(&bytes);
        }
        let lines = "set k 0 0 1\r\n5\r\nset s 0 0 1\r\nx\r\ndelete v\r\ndelete n\r\ngets k\r\nmn\r\n";
        let said = self.say(lines, "MN\r\n");
        let token = said.split("VALUE k 0 1 ").nth(1).and_then(|rest| rest.split("\r\n").next());
        token.and_then(|token| token.parse().ok()).unwrap_or_else(|| panic!("no cas id in {said:?}"))
    }

    fn counted(&mut self) -> BTreeMap<&'static str, i64> {
        let said = self.say("stats\r\n", "END\r\n");
        let of = |name: &str| said.lines().find_map(|l| l.strip_prefix("STAT ")?.strip_prefix(name)?.strip_prefix(' '));
        COUNTERS.map(|name| (name, of(name).and_then(|n| n.parse().ok()).expect("a number"))).into()
    }

    /// What a request adds to which counter.
    fn moved(&mut self, request: impl FnOnce(u64) -> Request) -> BTreeMap<&'static str, i64> {
        let cas = self.prepare();
        let before = self.counted();
        match request(cas) {
            Request::Text(line) => drop(self.say(&format!("{line}\r\nmn\r\n"), "MN\r\n")),
            Request::Binary(bytes) => drop(self.binary.ask(&bytes)),
        }
        let after = self.counted();
        COUNTERS.iter().map(|&name| (name, after[name] - before[name])).filter(|(_, by)| *by != 0).collect()
    }
}

enum Request {
    Text(String),
    Binary(Vec<u8>),
}

#[test]
fn each_command_is_counted_by_its_end_as_memcached_counts_it() {
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    cluster.mirrored();
    let (mut real, mut ours) = (Side::of(&node.addr()), Side::of(&cluster.proxy.addr()));
    let mut wrong = Vec::new();
    let mut compare = |name: &str, of: &dyn Fn(u64) -> Request| {
        let (stock, counted) = (real.moved(of), ours.moved(of));
        if stock != counted {
            wrong.push(format!("{name}: memcached {stock:?}, proxy {counted:?}"));
        }
    };
    for line in TEXT.split(['|', '\n']).filter(|line| !line.is_empty()) {
        let line = line.replace(r"\r\n", "\r\n");
        compare(&line, &|cas| Request::Text(line.replace("CAS", &cas.to_string())));
    }
    for at in 0..binary(0).len() {
        let (name, _) = binary(0).swap_remove(at);
        compare(&name, &|cas| Request::Binary(binary(cas).swap_remove(at).1));
    }
    assert_eq!(wrong, [""; 0]);
}

/// A key may be in any character set: it is asked for, listed and counted under its own name.
#[test]
fn names_that_are_no_utf_8_are_told_from_each_other() {
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    cluster.mirrored();
    let dumps = [node.addr(), cluster.proxy.addr()].map(|addr| {
        let mut side = Side::of(&addr);
        let mut say = |lines: &[u8], end: &str| side.say_bytes(&[lines, b"mn\r\n"].concat(), end);
        say(b"stats detail on\r\n", "MN\r\n");
        for byte in [0xe8, 0xe9] {
            say(&[b"set caf", &[byte][..], b":1 0 0 1\r\nx\r\n"].concat(), "MN\r\n");
        }
        say(b"get caf\xe9:1\r\n", "MN\r\n");
        let said = say(b"stats detail dump\r\n", "MN\r\n");
        let mut lines: Vec<String> = said.split(|&b| b == b'\n').map(|l| l.escape_ascii().to_string()).collect();
        lines.sort();
        lines
    });
    assert_eq!(dumps[1], dumps[0]);
    let mut ours = Side::of(&cluster.proxy.addr());
    let command = [b"node ", cluster.primaries[0].addr().as_bytes(), &b" get caf\xe9:1\r\nmn\r\n"[..]].concat();
    let said = ours.say_bytes(&command, "MN\r\n");
    assert_eq!(said.escape_ascii().to_string(), r"VALUE caf\xe9:1 0 1\r\nx\r\nEND\r\nMN\r\n");
    let said = ours.say_bytes(b"stats key caf\xe9:1\r\nmn\r\n", "MN\r\n");
    assert!(said.starts_with(b"STAT key caf\xe9:1\r\n"), "{}", said.escape_ascii());
}

/// What a text client has stored is shown under the same name when it was copied.
#[test]
fn a_key_with_a_tab_keeps_its_name_through_a_refill() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).patient());
    cluster.mirrored();
    let mut ours = Side::of(&cluster.proxy.addr());
    let looked = "mg t\tb k v\r\nmn\r\n";
    let shown = "VA 1 kt\tb\r\nx\r\nMN\r\n";
    ours.say("set t\tb 0 0 1\r\nx\r\nmn\r\n", "MN\r\n");
    assert_eq!(ours.say(looked, "MN\r\n"), shown);
    let primary = cluster.primaries[0].addr();
    cluster.primaries[0].kill();
    cluster.wait_lost(&primary);
    cluster.primaries[0].restart();
    cluster.mirrored();
    for addr in [cluster.proxy.addr(), primary, cluster.backups[0].addr()] {
        assert_eq!(Side::of(&addr).say(looked, "MN\r\n"), shown, "{addr}");
    }
}
