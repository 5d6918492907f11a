//! Sequences of all three protocols over the same keys, valid and broken, several commands in one
//! write or cut anywhere, answered by the proxy as a real memcached answers them, to the byte.
//! (Each protocol alone, with more that is broken: `protocol`, `meta`, `binary`, and the parsers'
//! own comparisons.)
//!
//! What is left out, for two memcacheds would not agree on it, or for a difference that
//! docs/reference.md names: statistics and lists; the numbers of cas ids (whether one is told, and
//! whether it wins, is compared); what is counted in seconds; numbers that get shorter, counting on
//! marked items, and `T` of `ma` (they depend on memcached's own housekeeping); `ms` with `I`, `C`
//! and `c`; a quiet `ma` that makes its item; a get that is refused behind others (memcached
//! forgets their answers); keys and extras of unknown binary commands; `me` of a key with a line
//! end; tokens of items that may be stale; stale items whose key text cannot carry.

use std::collections::BTreeMap;

use crate::binary::packet;
use crate::binary_differential::Connection;
use crate::support::{Client, Cluster, Memcached, Rng, Shape, seed};

/// The version whose answers the proxy gives.
const REFERENCE: &str = "1.6.18";

const BATCHES: usize = 4_000;

/// As the binary protocol names them, and the text protocols; in base64, if they must.
const KEYS: [(&[u8], &str, &str); 5] =
    [(b"k", "k", ""), (b"foo", "foo", "Zm9v"), (b"n", "n", ""), (b"a b", "", "YSBi"), (b"x\r\ny", "", "eA0KeQ==")];

/// Stands for the last token of the key with this number.
const TOKEN: &str = "$TOKEN";

/// A batch of commands on one of a side's two connections.
#[derive(Debug)]
enum Batch {
    /// Lines, and values behind them. `quits`: the last one ends the connection.
    Text { lines: Vec<String>, token_of: Option<usize>, quits: bool },
    /// Requests, each with the key whose token it takes.
    Binary { requests: Vec<Vec<u8>>, token_of: Option<usize>, quits: bool },
}

/// memcached itself, or the proxy.
struct Side {
    addr: String,
    text: Client,
    binary: Connection,
    tokens: BTreeMap<usize, u64>,
    /// Says of every other batch where it is cut. (memcached itself is sent all in one write.)
    cuts: Option<Rng>,
}

impl Side {
    fn new(addr: String, cuts: Option<Rng>) -> Side {
        let (text, binary) = (Client::connect(&addr), Connection::open(&addr));
        Side { addr, text, binary, tokens: BTreeMap::new(), cuts }
    }

    /// How many bytes are sent at a time: never so few that it takes thousands of writes. What is
    /// sent behind a `quit` would cost the client the answers before it.
    fn piece(&mut self, len: usize, quits: bool) -> usize {
        let cuts = self.cuts.as_mut().filter(|_| !quits);
        let piece = cuts.and_then(|rng| rng.percent(50).then(|| 1 + rng.below(40)));
        piece.map_or(usize::MAX, |piece| piece.max(len / 500))
    }

    /// What is answered, without what is each one's own.
    fn ask(&mut self, batch: &Batch) -> Vec<String> {
        match batch {
            Batch::Text { lines, token_of, quits } => {
                let input: String = lines.iter().map(|line| self.with_token(line)).collect();
                let input = format!("{input}mn\r\n");
                let piece = self.piece(input.len(), *quits);
                input.as_bytes().chunks(piece).try_for_each(|part| self.text.send(part)).unwrap();
                let (answer, closed) = self.text.raw_until(b"MN\r\n").unwrap();
                assert_eq!(closed, *quits, "{lines:?}");
                if closed {
                    self.text = Client::connect(&self.addr);
                }
                let answer = String::from_utf8_lossy(&answer).into_owned();
                if let (Some(key), Some(token)) = (token_of, told_token(&answer)) {
                    self.tokens.insert(*key, token);
                }
                vec![masked(&answer)]
            }
            Batch::Binary { requests, token_of, quits } => {
                let token = token_of.and_then(|key| self.tokens.get(&key).copied());
                let mut input = requests.concat();
                if let (Some(token), true) = (token, requests.len() == 1) {
                    input[16..24].copy_from_slice(&token.to_be_bytes());
                }
                let piece = self.piece(input.len(), *quits);
                let (packets, closed) = self.binary.ask_in_pieces(&input, piece);
                assert_eq!(closed, *quits, "{}", input.escape_ascii());
                if closed {
                    self.binary = Connection::open(&self.addr);
                }
                if let (Some(key), [only]) = (token_of, &packets[..])
                    && only.cas() != 0
                {
                    self.tokens.insert(*key, only.cas());
                }
                let shown = packets.iter().map(|packet| {
                    let mut bytes = packet.bytes.clone();
                    bytes[16..24].copy_from_slice(&u64::from(packet.cas() != 0).to_be_bytes());
                    bytes.escape_ascii().to_string()
                });
                shown.collect()
            }
        }
    }

    /// Without one nothing is asked of the cas id.
    fn with_token(&self, line: &str) -> String {
        let Some((before, behind)) = line.split_once(TOKEN) else { return line.to_owned() };
        let (key, behind) = behind.split_at(1);
        let token = self.tokens.get(&key.parse().unwrap());
        match token {
            Some(token) => format!("{before}{token}{behind}"),
            // A classic `cas` with a token that nobody has.
            None if before.starts_with("cas") => format!("{before}9223372036854775807{behind}"),
            None => format!("{}{behind}", before.strip_suffix('C').unwrap_or(before)),
        }
    }
}

/// The cas id that an answer of one command tells.
fn told_token(answer: &str) -> Option<u64> {
    let line = answer.lines().next()?;
    match line.strip_prefix("VALUE ") {
        Some(value) => value.split(' ').nth(3)?.parse().ok(),
        None => line.split(' ').find_map(|word| word.strip_prefix('c')?.parse().ok()).filter(|token| *token != 0),
    }
}

/// An answer without cas ids, and what is counted in seconds or for the LRU; keys in base64 as they
/// are, for memcached forgets of some items how their key came.
fn masked(answer: &str) -> String {
    let word = |line: &str, at: usize, word: &str| {
        let digits = |flag: char| word.strip_prefix(flag).is_some_and(|rest| rest.parse::<u64>().is_ok());
        let field = word.split_once('=').map(|(name, _)| name);
        match field {
            Some(name) if line.starts_with("ME ") && matches!(name, "exp" | "la" | "cas" | "fetch") => name.to_owned(),
            _ if line.starts_with("VALUE ") && at == 4 => "cas".to_owned(),
            _ if word == "c0" => word.to_owned(),
            _ if ['c', 't', 'l', 'h'].into_iter().any(digits) => word[..1].to_owned(),
            _ => word.to_owned(),
        }
    };
    let line = |line: &str| {
        let words = line.split(' ').enumerate().map(|(at, one)| word(line, at, one));
        words.collect::<Vec<_>>().join(" ")
    };
    let mut shown = answer.split("\r\n").map(line).collect::<Vec<_>>().join("\r\n");
    for (coded, key) in [("Zm9v", "foo"), ("YSBi", "a b"), ("eA0KeQ==", "x\r\ny")] {
        shown = shown.replace(&format!("{coded} b"), key).replace(coded, key);
    }
    shown
}

struct Generator {
    rng: Rng,
    /// Keys whose items may be marked stale, or won: nobody counts on them.
    marked: [bool; KEYS.len()],
}

impl Generator {
    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.below(of.len())]
    }

    /// Numbers never get shorter.
    fn value(&mut self) -> String {
        match self.rng.below(4) {
            0 => (5_000_000 + self.rng.below(1_000)).to_string(),
            _ => self.pick(&["", "a", "hello", "#\r\nget k\r\n", "7x"]).to_owned(),
        }
    }

    fn batch(&mut self) -> Batch {
        match self.rng.below(20) {
            // A token that is told in one protocol is used in the other.
            0..2 => {
                let at = self.rng.below(3);
                let line =
                    if self.rng.percent(50) { format!("gets {}", KEYS[at].1) } else { format!("mg {} c", KEYS[at].1) };
                Batch::Text { lines: vec![line + "\r\n"], token_of: Some(at), quits: false }
            }
            2 => self.odd(),
            3..7 => self.binary(),
            _ => {
                let count = 1 + self.rng.below(6);
                let lines =
                    (0..count).map(|_| if self.rng.percent(45) { self.classic() } else { self.meta() }).collect();
                Batch::Text { lines, token_of: None, quits: false }
            }
        }
    }

    /// What is alone in its write.
    fn odd(&mut self) -> Batch {
        let (long, large) = ("k".repeat(251), "x".repeat(2 << 20));
        let lines = match self.rng.below(24) {
            0 => vec![format!("get k {long}\r\n")],
            1 => vec![format!("set foo 0 0 {}\r\n{large}\r\n", large.len())],
            2 => vec![format!("ms Zm9v {} b\r\n{large}\r\n", large.len())],
            3 => {
                let lines = vec!["set k 0 0 1 noreply\r\nx\r\nmg k v q\r\n".to_owned(), "quit\r\n".to_owned()];
                return Batch::Text { lines, token_of: None, quits: true };
            }
            4 => {
                let requests = vec![packet(0x11, &[0; 8], b"k", b"quiet"), packet(0x07, b"", b"", b"")];
                return Batch::Binary { requests, token_of: None, quits: true };
            }
            5 => {
                self.marked = [false; KEYS.len()];
                vec!["flush_all\r\n".to_owned(), "get k foo n\r\n".to_owned()]
            }
            6 => {
                self.marked = [false; KEYS.len()];
                return Batch::Binary { requests: vec![packet(0x08, b"", b"", b"")], token_of: None, quits: false };
            }
            7 => vec!["version\r\nverbosity 1\r\nverbosity 0 noreply\r\n".to_owned()],
            8 => vec!["gat 1\r\n".to_owned()],
            9 => vec![format!("mg {long} v\r\n")],
            10 => vec![format!("ms {long} 1\r\nx\r\n")],
            11 => vec!["\r\n \r\nGET k\r\nmg\r\nms k\r\nma\r\nmd\r\nme\r\nmx k\r\n".to_owned()],
            // A header of the binary protocol that cannot be, behind one that can.
            12 => {
                let requests = vec![packet(0x0d, b"", b"k", b""), packet(0x00, &[1], b"k", b"")];
                return Batch::Binary { requests, token_of: None, quits: true };
            }
            _ => vec![self.pick(&["get\r\n", "mg k v v\r\n", "incr x\r\n", "mg k b\r\n", "delete k 5\r\n"]).to_owned()],
        };
        Batch::Text { lines, token_of: None, quits: false }
    }

    fn classic(&mut self) -> String {
        let at = self.rng.below(3);
        let (key, noreply) = (KEYS[at].1, if self.rng.percent(20) { " noreply" } else { "" });
        let value = self.value();
        let length = match self.rng.below(60) {
            0 => "x".to_owned(),
            _ => value.len().to_string(),
        };
        // What is behind a length that is none is a line of its own.
        let value = if length == "x" { "version".to_owned() } else { value };
        let exptime = [0, 0, 500, -1][self.rng.below(4)];
        match self.rng.below(16) {
            0..3 => format!("get {key} nosuch {}\r\n", KEYS[self.rng.below(3)].1),
            3 => format!("gets {key} k\r\n"),
            4 => format!("gat 300 {key} n\r\n"),
            5 => format!("gats 300 {key}\r\n"),
            6..9 => {
                let verb = self.pick(&["set", "add", "replace"]);
                self.marked[at] &= verb == "add" || length == "x";
                format!("{verb} {key} {} {exptime} {length}{noreply}\r\n{value}\r\n", self.rng.below(9))
            }
            9 => format!("{} {key} 0 0 {length}{noreply}\r\n{value}\r\n", self.pick(&["append", "prepend"])),
            10 if !self.marked[at] => format!("cas {key} 0 0 {length} {TOKEN}{at}{noreply}\r\n{value}\r\n"),
            11 if !self.marked[at] => format!("incr {key} {}{noreply}\r\n", self.rng.below(90)),
            11 | 12 => format!("touch {key} 400{noreply}\r\n"),
            13 => {
                self.marked[at] = false;
                format!("delete {key}{noreply}\r\n")
            }
            14 if !self.marked[at] => format!("decr {key} {}\r\n", self.rng.below(2)),
            _ => self.pick(&["bogus\r\n", "incr n x\r\n", "touch k\r\n", "set k 0 0\r\n", "verbosity\r\n"]).to_owned(),
        }
    }

    fn meta(&mut self) -> String {
        let at = self.rng.below(KEYS.len());
        let (_, plain, coded) = KEYS[at];
        let binary = plain.is_empty() || !coded.is_empty() && self.rng.percent(50);
        let (key, b) = if binary { (coded, " b") } else { (plain, "") };
        let verb = self.pick(&["mg", "mg", "mg", "ms", "ms", "md", "ma", "me"]);
        let verb = if verb == "me" && KEYS[at].0.contains(&b'\n') { "mg" } else { verb };
        let own: &[&str] = match verb {
            "mg" => &["v", "v", "c", "f", "s", "t", "k", "O12", "q", "u", "h", "l", "T0", "T500", "N300", "R60", "T-1"],
            "ms" => &[
                "c",
                "k",
                "O7",
                "q",
                "F5",
                "T0",
                "T600",
                "ME",
                "MA",
                "MP",
                "MR",
                "MS",
                "I",
                "C$",
                "C999999999",
                "s",
                "N30",
            ],
            "md" => &["k", "O3", "q", "I", "I", "T300", "C$", "C999999999"],
            "ma" => &["v", "c", "t", "k", "O4", "q", "N300", "J5000013", "D5", "MI", "M+", "C$"],
            _ => &[],
        };
        let mut flags: Vec<&str> = Vec::new();
        for _ in 0..self.rng.below(5) {
            let flag = if own.is_empty() { "b" } else { self.pick(own) };
            if own.is_empty() || flags.iter().any(|given| given[..1] == flag[..1]) {
                continue;
            }
            // A binary get of it would be told to recompute it, see docs/reference.md.
            if !(flag == "I" && plain.is_empty() || flag == "C$" && self.marked[at]) {
                flags.push(flag);
            }
        }
        let has = |flags: &[&str], begin: &str| flags.iter().any(|flag| flag.starts_with(begin));
        if verb == "ma" && has(&flags, "N") {
            flags.retain(|flag| *flag != "q");
        }
        if verb == "ms" && has(&flags, "I") && has(&flags, "C") {
            flags.retain(|flag| *flag != "c");
        }
        if verb == "ma" && self.marked[at] {
            return format!("mg {key} v{b}\r\n");
        }
        // A counter of fewer digits than another one would be given blanks.
        if verb == "ma" && has(&flags, "N") && !has(&flags, "J") {
            flags.push("J5000013");
        }
        if has(&flags, "I") || has(&flags, "R") || verb == "mg" && has(&flags, "N") {
            self.marked[at] = true;
        }
        if self.rng.percent(2) {
            flags.push(["Q", "E5", "T", "Cx", "MX", "F99999999999", "!"][self.rng.below(7)]);
        }
        let flags: String =
            flags.iter().map(|flag| format!(" {}", flag.replace("C$", &format!("C{TOKEN}{at}")))).collect();
        match verb {
            "ms" => {
                let value = self.value();
                format!("ms {key} {}{b}{flags}\r\n{value}\r\n", value.len())
            }
            _ => format!("{verb} {key}{b}{flags}\r\n"),
        }
    }

    fn binary(&mut self) -> Batch {
        let count = if self.rng.percent(50) { 1 } else { 2 + self.rng.below(5) };
        let mut token_of = None;
        let requests = (0..count)
            .map(|nth| {
                let at = self.rng.below(KEYS.len());
                let key = KEYS[at].0;
                let opcodes = [
                    0x00, 0x09, 0x0c, 0x0d, 0x01, 0x11, 0x02, 0x12, 0x03, 0x13, 0x04, 0x14, 0x05, 0x15, 0x0e, 0x19,
                    0x0f, 0x1a, 0x1c, 0x1d, 0x1e, 0x23, 0x24, 0x0a, 0x0b, 0x77,
                ];
                let mut opcode: u8 = opcodes[self.rng.below(opcodes.len())];
                if matches!(opcode, 0x05 | 0x15) && self.marked[at] {
                    opcode = 0x00;
                }
                // Alone it may have a token that does not win.
                self.marked[at] &= count == 1 || !matches!(opcode, 0x01 | 0x11 | 0x04 | 0x14);
                let delta = [&1_u64.to_be_bytes()[..], &5_000_100_u64.to_be_bytes(), &[0, 0, 1, 0][..]].concat();
                let (extras, key, value): (&[u8], &[u8], String) = match opcode {
                    0x01..=0x03 | 0x11..=0x13 => (&[0, 0, 0, 3, 0, 0, 0, 200], key, self.value()),
                    0x05 | 0x15 => (&delta, key, String::new()),
                    0x0e | 0x0f | 0x19 | 0x1a => (&[], key, self.value()),
                    0x1c..=0x1e | 0x23 | 0x24 => (&[0, 0, 0, 100], key, String::new()),
                    0x0a | 0x0b | 0x77 => (&[], b"", String::new()),
                    _ => (&[], key, String::new()),
                };
                let mut request = packet(opcode, extras, key, value.as_bytes());
                request[12..16].copy_from_slice(&(nth as u32).to_be_bytes());
                if count == 1 && !key.is_empty() && !self.marked[at] && self.rng.percent(60) {
                    token_of = Some(at);
                }
                request
            })
            .collect();
        Batch::Binary { requests, token_of, quits: false }
    }
}

#[test]
fn all_protocols_together_are_answered_as_by_memcached() {
    let reference = Memcached::start(&[]);
    if reference.client().version().unwrap() != REFERENCE {
        eprintln!("skipped: memcached is not {REFERENCE}, whose answers the proxy gives");
        return;
    }
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    let seed = seed("sequences");
    let mut stock = Side::new(reference.addr(), None);
    let mut ours = Side::new(cluster.proxy.addr(), Some(Rng::new(seed, 1)));
    let mut generator = Generator { rng: Rng::new(seed, 0), marked: [false; KEYS.len()] };
    let mut before = Vec::new();
    for at in 0..BATCHES {
        let batch = generator.batch();
        let shown: String = format!("{batch:?}").chars().take(600).collect();
        before.push(shown);
        let recent = || before[before.len().saturating_sub(12)..].join("\n");
        let (expected, found) = (stock.ask(&batch), ours.ask(&batch));
        let short = |answers: &[String]| answers.iter().map(|a| a.chars().take(600).collect()).collect::<Vec<String>>();
        assert_eq!(short(&found), short(&expected), "batch {at}, after\n{}", recent());
    }
    cluster.mirrored();
    // What is marked has one copy, the leader's.
    let mut client = cluster.client();
    for line in ["md k", "md foo", "md n", "md YSBi b", "md eA0KeQ== b"] {
        client.raw_command(line).unwrap();
    }
    cluster.assert_rings_equal();
}
