//! The meta protocol: generated sequences of commands, valid and broken, answered by the proxy as
//! memcached answers them; and what is left of the commands when a server dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support::{Client, Cluster, Memcached, Rng, Shape, seed};

/// The version whose answers the proxy gives.
const REFERENCE: &str = "1.6.18";

/// A command, with `C$` where the last cas token of its key belongs.
struct Step {
    line: String,
    value: Option<String>,
    key: String,
}

/// One side of the comparison: memcached itself, or the proxy.
struct Side {
    client: Client,
    /// The last token of each key that this side has given.
    tokens: BTreeMap<String, u64>,
}

impl Side {
    fn new(client: Client) -> Side {
        Side { client, tokens: BTreeMap::new() }
    }

    fn ask(&mut self, step: &Step) -> String {
        // Without one, nothing is asked of the cas id. Numbers that were never given are another
        // matter: to the proxy they are no older ones of the same kind.
        let token = self.tokens.get(&step.key).map_or(String::new(), |token| format!("C{token}"));
        let mut input = step.line.replace("C$", &token);
        input += "\r\n";
        if let Some(value) = &step.value {
            input += &format!("{value}\r\n");
        }
        self.client.send(format!("{input}mn\r\n").as_bytes()).unwrap();
        let (answer, _) = self.client.raw_until(b"MN\r\n").unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let mut shown = String::new();
        // What no two servers need agree on: cas ids, and what is counted in seconds or for the
        // LRU.
        for (at, line) in answer.split_inclusive("\r\n").enumerate() {
            let is_head = at == 0 || !answer.starts_with("VA ");
            for word in line.split_inclusive([' ', '\r']) {
                let (bare, end) = word.split_at(word.trim_end_matches([' ', '\r']).len());
                let masked = |flag: &str| {
                    is_head && bare.len() > 1 && bare[1..].parse::<u64>().is_ok() && bare.starts_with(flag)
                };
                let field = bare.split_once('=').map(|(name, _)| name).filter(|_| line.starts_with("ME "));
                if masked("c") {
                    self.tokens.insert(step.key.clone(), bare[1..].parse().unwrap());
                }
                shown += match field {
                    Some(name) if matches!(name, "exp" | "la" | "cas" | "fetch") => name,
                    _ if masked("c") && bare == "c0" => "c0",
                    _ if masked("c") => "c",
                    _ if masked("t") => "t",
                    _ if masked("l") => "l",
                    _ if masked("h") => "h",
                    _ => bare,
                };
                shown += end;
            }
        }
        // Where somebody holds a reference to the item, an incr makes memcached forget that its key
        // is binary: it is echoed as it is then.
        for (coded, key) in [("Zm9v", "foo"), ("YSBi", "a b"), ("bm5u", "nnn")] {
            shown = shown.replace(&format!("{coded} b"), key).replace(coded, key);
        }
        shown
    }
}

struct Generator {
    rng: Rng,
    /// Keys whose items may be marked stale, or won.
    marked: BTreeSet<String>,
}

impl Generator {
    fn below(&mut self, bound: usize) -> usize {
        self.rng.below(bound)
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn step(&mut self) -> Step {
        // Three names of two keys, in both of the ways in which they may be written.
        let (key, name) =
            [("k", "k"), ("foo", "foo"), ("Zm9v", "foo"), ("n", "n"), ("YSBi", "a b"), ("bm5u", "nnn")][self.below(6)];
        let binary = matches!(key, "Zm9v" | "YSBi" | "bm5u");
        let mut flags: Vec<String> = Vec::new();
        if binary {
            flags.push("b".into());
        }
        let verb = self.pick(&["mg", "mg", "mg", "ms", "ms", "md", "ma", "me", "classic"]);
        let own: &[&str] = match verb {
            "mg" => &["v", "v", "c", "f", "s", "t", "k", "O12", "q", "u", "h", "l", "T0", "T500", "N300", "R60", "T-1"],
            "ms" => &[
                "c", "k", "O7", "q", "F5", "T0", "T600", "ME", "MA", "MP", "MR", "MS", "I", "C$", "C$", "C999999", "s",
                "N30",
            ],
            "md" => &["k", "O3", "q", "I", "I", "T300", "C$", "C999999"],
            "ma" => {
                &["v", "v", "c", "t", "k", "O4", "q", "N300", "N0", "J13", "D5", "MD", "MI", "M+", "M-", "T400", "C$"]
            }
            _ => &[],
        };
        for _ in 0..self.below(5) {
            if let Some(flag) = (!own.is_empty()).then(|| self.pick(own)) {
                // A key with a flag twice is refused; that is tried below.
                if flags.iter().all(|given| given[..1] != flag[..1]) {
                    flags.push(flag.to_owned());
                }
            }
        }
        // A quiet `ma` that makes the item is answered by 1.6.18, and not by later versions.
        if verb == "ma" && flags.iter().any(|flag| flag.starts_with('N')) {
            flags.retain(|flag| flag != "q");
        }
        // The token that such a command tells of an item it has made stale does not outlast the
        // proxy's own look at that item: docs/reference.md.
        if verb == "ms" && flags.iter().any(|flag| flag == "I") && flags.iter().any(|flag| flag.starts_with('C')) {
            flags.retain(|flag| flag != "c");
        }
        if verb != "me" && self.below(25) == 0 {
            let odd = self.pick(&[
                "v",
                "v",
                "Q",
                "E5",
                "T",
                "Tx",
                "N",
                "Rx",
                "Fx",
                "Cx",
                "M",
                "MX",
                "Mab",
                "Jx",
                "D-1",
                "b",
                "!",
                "P1",
                "L/x",
                "C0",
                "T4294967300",
                "F99999999999",
                "kjunk",
            ]);
            flags.push(odd.to_owned());
        }
        if self.below(4) == 0 {
            flags.reverse();
        }
        // No classic command can name a key with a blank.
        let name = if verb == "classic" && name.contains(' ') { "k" } else { name };
        let value = match name {
            "n" | "nnn" => self.pick(&["5", "10", "99"]),
            _ => self.pick(&["a", "", "hello", "7"]),
        };
        let key = key.to_owned();
        let (line, value) = match verb {
            "ms" => {
                let length = match self.below(40) {
                    0 => self.pick(&["x", "-1", "+1"]).to_owned(),
                    _ => value.len().to_string(),
                };
                let right = length == value.len().to_string();
                (format!("ms {key} {length} {}", flags.join(" ")), Some(if right { value } else { "v" }.to_owned()))
            }
            "me" => (format!("me {key}{}", if binary { " b" } else { "" }), None),
            // A number that gets shorter is padded where it stands, or replaced where memcached's
            // own housekeeping refers to the item at that moment: what is counted down has one
            // digit.
            "ma" if flags.iter().any(|flag| matches!(flag.as_str(), "MD" | "M-")) => {
                let form = if binary { " b" } else { "" };
                (format!("ms {key} 1 q{form}\r\n9\r\nma {key} {}", flags.join(" ")), None)
            }
            "classic" => {
                let key = name;
                match self.below(8) {
                    0 => (format!("set {key} 3 0 {}", value.len()), Some(value.to_owned())),
                    1 => (format!("add {key} 0 0 {}", value.len()), Some(value.to_owned())),
                    2 => (format!("append {key} 0 0 1"), Some("1".to_owned())),
                    3 => (format!("incr {key} 3"), None),
                    4 => (format!("delete {key}"), None),
                    5 => (format!("touch {key} 300"), None),
                    6 => (format!("gat 200 {key} k"), None),
                    _ => (format!("get {key} k n"), None),
                }
            }
            _ => (format!("{verb} {key} {}", flags.join(" ")), None),
        };
        // What is counted keeps its marks only where nobody else refers to the item at that moment,
        // be it memcached's own housekeeping: nothing to compare.
        let counts = line.starts_with("ma ") || line.starts_with("incr ");
        if counts && self.marked.contains(name) {
            return Step {
                line: format!("mg {key} v{}", if binary { " b" } else { "" }),
                value: None,
                key: name.to_owned(),
            };
        }
        if line.split(' ').any(|word| word == "I" || word.starts_with('N') || word.starts_with('R')) {
            self.marked.insert(name.to_owned());
        } else if line.starts_with("set ") || line == format!("md {key} ") {
            self.marked.remove(name);
        }
        Step { line, value, key: name.to_owned() }
    }
}

fn compare(cluster: &Cluster, steps: usize, what: &str) {
    let reference = Memcached::start(&[]);
    let mut stock = Side::new(reference.client());
    if stock.client.version().unwrap() != REFERENCE {
        eprintln!("skipped: memcached is not {REFERENCE}, whose answers the proxy gives");
        return;
    }
    let mut ours = Side::new(cluster.client());
    let mut generator = Generator { rng: Rng::new(seed(what), 0), marked: BTreeSet::new() };
    let mut before: Vec<String> = Vec::new();
    for at in 0..steps {
        let step = generator.step();
        let (expected, found) = (stock.ask(&step), ours.ask(&step));
        before.push(format!("{}{}", step.line, step.value.as_deref().map_or(String::new(), |v| format!("|{v}"))));
        let recent = &before[before.len().saturating_sub(25)..];
        assert_eq!(found, expected, "step {at}, after\n{}", recent.join("\n"));
    }
}

#[test]
fn sequences_are_answered_as_memcached_answers_them() {
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    compare(&cluster, 8_000, "meta");
    cluster.mirrored();
}

/// Both copies are equal after all of it: what one shows after the other's death is what was there,
/// or a miss where the item was stale or its recomputing was under way.
#[test]
fn both_copies_are_equal_or_the_followers_is_gone() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut client = cluster.client();
    let mut generator = Generator { rng: Rng::new(seed("meta copies"), 0), marked: BTreeSet::new() };
    let keys = ["k", "foo", "n", "YSBi b", "bm5u b", "at_last"];
    for _ in 0..2_000 {
        let step = generator.step();
        let value = step.value.map_or(String::new(), |value| format!("{value}\r\n"));
        client.send(format!("{}\r\n{value}mn\r\n", step.line.replace("C$", "C999999")).as_bytes()).unwrap();
        client.raw_until(b"MN\r\n").unwrap();
    }
    // (Of the others none may be left that is fresh.)
    assert_eq!(say(&mut client, "ms at_last 2 F5 T300\r\nab"), "HD\r\n");
    cluster.mirrored();
    let show = |client: &mut Client| -> Vec<String> {
        let ask = |key: &&str| {
            client.send(format!("mg {key} v f t\r\nmn\r\n").as_bytes()).unwrap();
            let (answer, _) = client.raw_until(b"MN\r\n").unwrap();
            String::from_utf8_lossy(&answer).into_owned()
        };
        keys.iter().map(ask).collect()
    };
    let (leader, follower) = (show(&mut cluster.primaries[0].client()), show(&mut cluster.backups[0].client()));
    let mut fresh = 0;
    for ((key, leader), follower) in keys.iter().zip(&leader).zip(&follower) {
        let head = leader.lines().next().unwrap_or_default();
        if head.ends_with(['W', 'X', 'Z']) {
            assert!(follower.starts_with("EN"), "{key}: {leader:?} {follower:?}");
        } else {
            assert_eq!(untimed(leader), untimed(follower), "{key}");
            fresh += usize::from(head.starts_with("VA"));
        }
    }
    assert!(fresh > 0, "{leader:?}");
    cluster.primaries[0].kill();
    let after = show(&mut cluster.client());
    for ((key, follower), after) in keys.iter().zip(&follower).zip(&after) {
        assert_eq!(untimed(follower), untimed(after), "{key}");
    }
}

/// Without the remaining seconds, which pass.
fn untimed(answer: &str) -> String {
    let is_time = |word: &&str| word.strip_prefix('t').is_some_and(|digits| digits.parse::<u64>().is_ok());
    let (line, value) = answer.split_once("\r\n").unwrap_or((answer, ""));
    let words: Vec<&str> = line.split(' ').map(|word| if is_time(&word) { "t" } else { word }).collect();
    format!("{}\r\n{value}", words.join(" "))
}

fn say(client: &mut Client, line: &str) -> String {
    client.send(format!("{line}\r\nmn\r\n").as_bytes()).unwrap();
    let (answer, _) = client.raw_until(b"MN\r\n").unwrap();
    String::from_utf8_lossy(&answer).trim_end_matches("MN\r\n").to_owned()
}

/// Each state that is the leader's alone, through a fail-over.
#[test]
fn stale_and_won_items_are_misses_after_a_fail_over() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut client = cluster.client();
    for key in ["stale", "won", "stub", "plain", "touched", "counted", "binary"] {
        assert_eq!(say(&mut client, &format!("ms {key} 1 T100 F3\r\n7")), "HD\r\n");
    }
    assert_eq!(say(&mut client, "md stale I T50"), "HD\r\n");
    assert_eq!(say(&mut client, "mg stale v"), "VA 1 X W\r\n7\r\n");
    assert_eq!(say(&mut client, "mg stale v"), "VA 1 Z X\r\n7\r\n");
    assert_eq!(say(&mut client, "mg won v R1000"), "VA 1 W\r\n7\r\n");
    assert_eq!(say(&mut client, "md stub"), "HD\r\n");
    assert_eq!(say(&mut client, "mg stub v N100"), "VA 0 W\r\n\r\n");
    assert_eq!(say(&mut client, "mg stub v N100"), "VA 0 Z\r\n\r\n");
    assert_eq!(say(&mut client, "mg touched T5000"), "HD\r\n");
    assert_eq!(say(&mut client, "ma counted v D5"), "VA 2\r\n12\r\n");
    // In its place: the number is no longer than it was.
    assert_eq!(say(&mut client, "ma counted v D5 T0"), "VA 2\r\n17\r\n");
    assert_eq!(say(&mut client, "ma made N0 J20 v"), "VA 2\r\n20\r\n");
    assert_eq!(say(&mut client, "ms YSBi 1 b\r\nx"), "HD\r\n");
    assert_eq!(say(&mut client, "ms YSBj 1 b\r\nx"), "HD\r\n");
    assert_eq!(say(&mut client, "ms YSBj 1 b MA\r\ny"), "HD\r\n");
    let token = say(&mut client, "mg plain c");
    let token = token.trim().strip_prefix("HD c").unwrap().to_owned();
    cluster.mirrored();
    cluster.primaries[0].kill();
    for key in ["stale", "won", "stub"] {
        assert_eq!(say(&mut client, &format!("mg {key} v")), "EN\r\n", "{key}");
    }
    assert_eq!(say(&mut client, "mg plain v f"), "VA 1 f3\r\n7\r\n");
    assert_eq!(say(&mut client, &format!("ms plain 1 C{token}\r\n8")), "EX\r\n", "a token of another leader");
    assert_eq!(say(&mut client, "mg counted v t"), "VA 2 t-1\r\n17\r\n");
    assert_eq!(say(&mut client, "mg made v t"), "VA 2 t-1\r\n20\r\n");
    let touched = say(&mut client, "mg touched t");
    let left: i64 = touched.trim().strip_prefix("HD t").unwrap().parse().unwrap();
    assert!((4_900..=5_000).contains(&left), "{touched}");
    assert_eq!(say(&mut client, "mg YSBi b k v"), "VA 1 kYSBi b\r\nx\r\n");
    assert_eq!(say(&mut client, "mg YSBj b v"), "VA 2\r\nxy\r\n");
}

/// Whoever looks first at a stale item is to recompute it. A comparing of the copies looks too, and
/// so does a refill: the right is a client's again afterwards. And what the leader alone may hold
/// is no difference.
#[test]
fn to_recompute_an_item_is_told_to_a_client_whoever_else_has_looked() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut client = cluster.client();
    for key in ["stale", "won", "plain"] {
        assert_eq!(say(&mut client, &format!("ms {key} 1 T100\r\n7")), "HD\r\n");
    }
    assert_eq!(say(&mut client, "md stale I"), "HD\r\n");
    assert_eq!(say(&mut client, "mg won v R1000"), "VA 1 W\r\n7\r\n");
    // What stands on the follower under such a key goes.
    let mut direct = cluster.backups[0].client();
    for (differences, key) in [("0", ""), ("1", "stale"), ("1", "won")] {
        if !key.is_empty() {
            direct.set(key, b"7").unwrap();
        }
        cluster.proxy.operator("resync verify");
        let ended = |s: &crate::support::Status| s.verify("state") == "done";
        let status = cluster.proxy.wait_status("the comparing to end", crate::support::DEADLINE, ended);
        assert_eq!([status.verify("different"), status.verify("failed")], [differences, "0"], "{status}");
    }
    assert_eq!(say(&mut client, "mg won v"), "VA 1 Z\r\n7\r\n");
    assert_eq!(say(&mut client, "mg stale v"), "VA 1 X W\r\n7\r\n");
    assert_eq!(say(&mut client, "mg stale v"), "VA 1 Z X\r\n7\r\n");
    assert_eq!(say(&mut client, "md stale I"), "HD\r\n");
    cluster.backups[0].restart();
    cluster.mirrored();
    assert_eq!(say(&mut client, "mg stale v"), "VA 1 X W\r\n7\r\n");
    assert_eq!(say(&mut cluster.backups[0].client(), "mg plain v"), "VA 1\r\n7\r\n");
}

/// memcached 1.6.18 forgets of an item that it made itself that its key came in base64, and names
/// it as it is: an answer would end in the middle of its line. Whoever makes one neither takes
/// servers out of use nor keeps them from being filled.
#[test]
fn a_key_with_a_line_end_in_it_is_never_named_as_it_is() {
    const KEY: &str = "eA0KeQ==";
    let mut cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut client = cluster.client();
    assert_eq!(say(&mut client, &format!("ma {KEY} b N0 J7 v k")), format!("VA 1 k{KEY} b\r\n7\r\n"));
    let whole = format!("VA 1 Oo f0 k{KEY} b t-1\r\n7\r\n");
    let ask = format!("mg {KEY} b Oo f k t v");
    assert_eq!(say(&mut client, &ask), whole);
    assert_eq!(say(&mut client, &format!("mg {KEY} b k")), format!("HD k{KEY} b\r\n"));
    let debug = say(&mut client, &format!("me {KEY} b"));
    assert_eq!(debug, "CLIENT_ERROR this key has a line end in it, and me would show it as it is\r\n");
    assert_eq!(say(&mut client, "ms eA0Keg== 1 b ME k\r\nv"), "HD keA0Keg== b\r\n");
    assert_eq!(say(&mut client, "ms eA0Keg== 1 b ME k\r\nv"), "NS keA0Keg== b\r\n");
    assert_eq!(say(&mut client, "md eA0Keg== b k"), "HD keA0Keg== b\r\n");
    assert_eq!(say(&mut client, "md eA0Keg== b k"), "NF keA0Keg== b\r\n");
    assert_eq!(say(&mut client, "mg eA0Keg== b k v"), "EN keA0Keg== b\r\n");
    // A miss that was told, and a counter that begins anew: it is copied from the leader.
    assert_eq!(say(&mut client, "ma eA0Keg== b N0 J7 v"), "VA 1\r\n7\r\n");
    cluster.mirrored();
    cluster.assert_rings_equal();
    cluster.kill_primaries();
    assert_eq!(say(&mut client, &ask), whole);
    cluster.primaries[0].restart();
    cluster.mirrored();
    cluster.assert_rings_equal();
    cluster.kill_backups();
    assert_eq!(say(&mut client, &ask), whole);
}

/// Through the proxy a key is the same however it is written, beside classic commands on the same
/// connection; quiet requests keep their places in a pipeline.
#[test]
fn meta_and_classic_commands_share_connection_and_keys() {
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut client = cluster.client();
    let sent = "set foo 1 0 3\r\nbar\r\nmg Zm9v b v f k\r\nmg nope v q\r\nmg nope v O1\r\nms foo 3 q MA\r\n++\n\r\nget foo\r\n\
                ms n 1 q\r\n4\r\nma n q\r\nincr n 1\r\nmd n q\r\nmd n q\r\nget n\r\nmn\r\n";
    client.send(sent.as_bytes()).unwrap();
    let (answer, _) = client.raw_until(b"MN\r\n").unwrap();
    let expected =
        "STORED\r\nVA 3 f1 kfoo\r\nbar\r\nEN O1\r\nVALUE foo 1 6\r\nbar++\n\r\nEND\r\n6\r\nNF\r\nEND\r\nMN\r\n";
    assert_eq!(String::from_utf8_lossy(&answer), expected);
    // The proxy's own items do not exist, in whatever way they are named.
    let (plain, coded) = ("__resilver__:incarnation", "X19yZXNpbHZlcl9fOmluY2FybmF0aW9u");
    for (key, b) in [(plain, ""), (coded, " b")] {
        assert_eq!(say(&mut client, &format!("mg {key}{b} v O1")), "EN O1\r\n");
        assert_eq!(say(&mut client, &format!("me {key}{b}")), "EN\r\n");
        for command in
            [format!("md {key}{b}"), format!("ma {key}{b}"), format!("mg {key}{b} N30"), format!("ms {key} 1{b}\r\nx")]
        {
            let refused = say(&mut client, &command);
            let found = if command.starts_with("mg") {
                "EN\r\n"
            } else {
                "CLIENT_ERROR this key is reserved for the proxy\r\n"
            };
            assert_eq!(refused, found, "{command}");
        }
    }
    // An item above the limit is refused, and the old one is gone, as in memcached.
    assert_eq!(say(&mut client, "ms Zm9v 1 b\r\nx"), "HD\r\n");
    let large = "x".repeat(2 << 20);
    let refused = say(&mut client, &format!("ms Zm9v {} b I T5 q\r\n{large}", large.len()));
    assert_eq!(refused, "SERVER_ERROR object too large for cache\r\n");
    assert_eq!(say(&mut client, "mg foo v"), "EN\r\n");
    let value = "y".repeat(900_000);
    assert_eq!(say(&mut client, &format!("ms big {} \r\n{value}", value.len())), "HD\r\n");
    assert_eq!(say(&mut client, "mg big v"), format!("VA {}\r\n{value}\r\n", value.len()));
    client.set_deadline(Duration::from_secs(5));
}
