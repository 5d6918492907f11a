//! Whole transcripts, word for word as one memcached answers.

use std::time::Duration;

use crate::support::client::{show, storage};
use crate::support::{Client, Cluster, Memcached, Rng, Shape, seed};

/// Everything that is answered to `script` on a fresh connection, and whether the connection was
/// closed over it.
fn transcript(addr: &str, script: &[u8], piece: usize) -> (Vec<u8>, bool) {
    let mut client = Client::connect(addr);
    client.set_deadline(Duration::from_secs(20));
    // The last answer is that to this command, and it is unlike any other.
    let sentinel = b"set sentinel:of:the:transcript 0 0 8\r\nSENTINEL\r\nget sentinel:of:the:transcript\r\n";
    let end = b"VALUE sentinel:of:the:transcript 0 8\r\nSENTINEL\r\nEND\r\n";
    for part in script.chunks(piece) {
        if client.send(part).is_err() {
            break; // closed over it: what was answered before can still be read
        }
    }
    let _ = client.send(sentinel);
    client.raw_until(end).unwrap_or_else(|e| panic!("no end of answers to {}: {e}", show(script)))
}

pub(super) fn assert_same(node: &Memcached, cluster: &Cluster, script: &[u8], piece: usize, what: &str) {
    let real = transcript(&node.addr(), script, usize::MAX);
    let ours = transcript(&cluster.proxy.addr(), script, piece);
    if real != ours {
        let at = real.0.iter().zip(&ours.0).position(|(a, b)| a != b).unwrap_or(real.0.len().min(ours.0.len()));
        let near = |bytes: &[u8]| show(&bytes[at.saturating_sub(60).min(bytes.len())..(at + 60).min(bytes.len())]);
        panic!(
            "{what}: {}\n  memcached: … {} closed {}\n  resilver:  … {} closed {}",
            show(script),
            near(&real.0),
            real.1,
            near(&ours.0),
            ours.1
        );
    }
}

/// Scripts whose answers are the same on every memcached.
pub(super) fn scripts() -> Vec<Vec<u8>> {
    let long_key = "k".repeat(251);
    let mut scripts: Vec<Vec<u8>> = [
        "set a 1 0 1\r\nx\r\nget a\r\nget a b a\r\nget b\r\nget\r\n",
        "set a 4294967295 0 3\r\n\r\n\0\r\nget a\r\n",
        "set a 4294967296 0 1\r\nx\r\nget a\r\n",
        "set a -1 0 1\r\nx\r\nget a\r\n",
        "set a 0 0 0\r\n\r\nget a\r\n",
        "add a 0 0 1\r\n1\r\nadd fresh1 0 0 1\r\n2\r\nadd fresh1 0 0 1\r\n3\r\nget fresh1\r\n",
        "replace none1 0 0 1\r\n1\r\nset r 0 0 1\r\n1\r\nreplace r 5 0 2\r\n22\r\nget r\r\n",
        "append none2 0 0 1\r\n1\r\nset p 7 0 1\r\n1\r\nappend p 9 9 2\r\n22\r\nprepend p 1 1 1\r\n0\r\nget p\r\n",
        "set n 0 0 2\r\n10\r\nincr n 5\r\ndecr n 6\r\nget n\r\ndecr n 100\r\nincr n 18446744073709551615\r\nincr n 2\r\nget n\r\n",
        "set t 0 0 3\r\nabc\r\nincr t 1\r\ndecr t 1\r\nincr none3 1\r\nincr n x\r\nincr n -1\r\nincr n\r\nincr\r\n",
        "set n 0 0 20\r\n18446744073709551615\r\nincr n 1\r\nget n\r\n",
        "set d 0 0 1\r\nx\r\ndelete d\r\ndelete d\r\nget d\r\ndelete d 0\r\ndelete d 5\r\ndelete d noreply\r\ndelete\r\n",
        "set c 0 0 1\r\nx\r\ncas c 0 0 1 9999999999999\r\ny\r\ncas none4 0 0 1 1\r\ny\r\ncas c 0 0 1\r\nget c\r\n",
        "set tt 0 0 1\r\nx\r\ntouch tt 100\r\ntouch none5 1\r\ntouch tt\r\ntouch tt x\r\ntouch tt -1\r\nget tt\r\n",
        "set g 3 0 1\r\nx\r\ngat 100 g none6 g\r\ngat\r\ngat 1\r\ngat x g\r\ngat -1 g\r\nget g\r\n",
        "set e 0 -1 1\r\nx\r\nget e\r\nset e 0 0 1\r\ny\r\nget e\r\n",
        "set q 0 0 1 noreply\r\n1\r\nadd q 0 0 1 noreply\r\n2\r\nget q\r\nappend q 0 0 1 noreply\r\n3\r\nincr q 1 noreply\r\nget q\r\n\
         touch q 0 noreply\r\ndecr q 4 noreply\r\nget q\r\ndelete q noreply\r\nget q\r\nreplace q 0 0 1 noreply\r\nx\r\nprepend q 0 0 1 noreply\r\nx\r\nget q\r\n",
        "\r\n \r\nnonsense\r\nGET a\r\nget a\r\nset\r\nset a\r\nset a 0 0\r\nset a 0 0 x\r\nset a x 0 1\r\nset a 0 x 1\r\n",
        "set a 0 0 -1\r\nget a\r\n",
        "set a 0 0 3\r\nabcdef\r\nget a\r\n",
        "set a 0 0 3\r\nabc\nget a\r\n",
        "get a\nset b 0 0 1\nx\r\nget b\n",
        "  get a\r\nget  a\r\nget a \r\n",
        "verbosity 1\r\nverbosity\r\nverbosity 0 noreply\r\n",
        "flush_all noreply\r\nget a\r\nset a 0 0 1\r\nx\r\nget a\r\nflush_all\r\nget a\r\nflush_all 0\r\nflush_all x\r\n",
        "set x 0 0 1\r\na\r\nget x\r\nquit\r\nget x\r\n",
    ]
    .iter()
    .map(|s| s.as_bytes().to_vec())
    .collect();
    for line in ["get", "delete", "gat 1"] {
        // One to a connection: memcached 1.6.18 forgets the pipelined answers before a get that is
        // refused.
        scripts.push(format!("{line} {long_key}\r\n").into_bytes());
        scripts.push(format!("{line} ok {long_key}\r\n").into_bytes());
    }
    for verb in ["set", "add", "append"] {
        scripts.push(storage(verb, &long_key, 0, 0, b"x", ""));
    }
    for verb in ["incr", "decr", "touch"] {
        scripts.push(format!("{verb} {long_key} 1\r\n").into_bytes());
    }
    let edge = "k".repeat(250);
    scripts.push([storage("set", &edge, 0, 0, b"x", ""), format!("get {edge}\r\n").into_bytes()].concat());
    let many: Vec<String> = (0..500).map(|i| format!("many:{}", i % 100)).collect();
    scripts
        .push([storage("set", "many:7", 0, 0, b"x", ""), format!("get {}\r\n", many.join(" ")).into_bytes()].concat());
    scripts
}

#[test]
fn answers_are_memcacheds_own_word_for_word() {
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(3, 2).patient());
    for script in scripts() {
        assert_same(&node, &cluster, &script, usize::MAX, "in one write");
    }
    cluster.assert_rings_equal();
}

#[test]
fn requests_that_drip_in_byte_by_byte_are_answered_the_same() {
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    for script in scripts().iter().filter(|s| s.len() < 400) {
        assert_same(&node, &cluster, script, 1, "byte by byte");
    }
}

/// Thousands of random requests in one go: answered in order, as one memcached would.
#[test]
fn random_pipelines_are_answered_as_by_one_memcached() {
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(3, 2).patient());
    let mut rng = Rng::new(seed("random pipelines"), 5);
    for round in 0..20 {
        let mut script = Vec::new();
        for _ in 0..1000 {
            random_request(&mut rng, &mut script);
        }
        let piece = [usize::MAX, 1000, 37][round % 3];
        assert_same(&node, &cluster, &script, piece, &format!("round {round}, pieces of {piece}"));
    }
    cluster.assert_rings_equal();
}

fn random_request(rng: &mut Rng, script: &mut Vec<u8>) {
    let key = |rng: &mut Rng| format!("key{}", rng.below(25));
    let noreply = if rng.percent(25) { " noreply" } else { "" };
    let name = key(rng);
    match rng.below(20) {
        0..=6 => {
            let keys: Vec<String> = (0..=rng.below(8)).map(|_| key(rng)).collect();
            script.extend_from_slice(format!("get {}\r\n", keys.join(" ")).as_bytes());
        }
        verb @ 7..=12 => {
            let verb = ["set", "set", "add", "replace", "append", "prepend"][verb - 7];
            let len = if rng.percent(2) { rng.below(30_000) } else { rng.below(20) };
            // Numbers never get shorter: whether memcached then fills them with blanks depends on
            // whether an answer that is still being sent holds the old item, so two runs differ.
            let value = if rng.percent(40) {
                (5_000_000 + rng.below(1000)).to_string().into_bytes()
            } else {
                [b"#".as_slice(), &rng.bytes(len)].concat()
            };
            let exptime = [0, 0, 0, 1000, -1][rng.below(5)];
            script.extend(storage(verb, &name, rng.next() as u32, exptime, &value, noreply));
        }
        13 => script.extend_from_slice(format!("delete {name}{noreply}\r\n").as_bytes()),
        14 | 15 => {
            let verb = if rng.percent(50) { "incr" } else { "decr" };
            script.extend_from_slice(format!("{verb} {name} {}{noreply}\r\n", rng.below(200)).as_bytes());
        }
        16 => script.extend_from_slice(format!("touch {name} 500{noreply}\r\n").as_bytes()),
        17 => script.extend_from_slice(format!("gat 500 {name} {}\r\n", key(rng)).as_bytes()),
        18 => script.extend(storage("cas", &name, 0, 0, b"never", &format!(" 99999999999{noreply}"))),
        _ => script.extend_from_slice([b"bogus\r\n".as_slice(), b"get\r\n", b"incr x\r\n"][rng.below(3)]),
    }
}

/// 10,000 keys of 105 bytes, 50,000 (PHP's getMulti): the answer is larger than all buffers
/// between, and the client sends the whole line before it reads.
#[test]
fn gets_of_very_many_keys_are_answered_as_by_memcached() {
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let key = |i: usize| format!("key:{i:0>101}");
    for mut client in [node.client(), cluster.client()] {
        client.set_deadline(Duration::from_secs(60));
        let sets: Vec<u8> = (0..50_000)
            .step_by(10)
            .flat_map(|i| storage("set", &key(i), 7, 0, &vec![b'x'; 4_000], " noreply"))
            .collect();
        client.send(&sets).expect("sent");
        assert!(client.version().is_ok());
    }
    for (count, end) in [(10_000, "\r\n"), (50_000, "\r\n"), (10_000, " \0a b\n")] {
        let keys: String = (0..count).map(|i| format!(" {}", key(i))).collect();
        let [real, ours] = [node.client(), cluster.client()].map(|mut client| {
            client.set_deadline(Duration::from_secs(60));
            client.send(format!("get{keys}{end}get nosuch\r\n").as_bytes()).expect("sent");
            let items = client.values().unwrap_or_else(|e| panic!("{count} keys: {e}"));
            assert_eq!(client.values(), Ok(Vec::new()), "what stands behind");
            items
        });
        assert!(real == ours && real.len() == count / 10, "{count} keys: {} and {} items", real.len(), ours.len());
    }
    // One wrong key: what was found before it, an error, and nothing else; the connection goes on.
    let keys: String = (0..5_000).map(|i| format!(" {}", key(i))).collect();
    let script = format!("get{keys} {}{keys}\r\nversion\r\n", "x".repeat(251));
    let (said, closed) = transcript(&cluster.proxy.addr(), script.as_bytes(), 70_000);
    let said = String::from_utf8(said).expect("text");
    let errors = said.matches("CLIENT_ERROR bad command line format\r\nVERSION 1.6.18\r\n").count();
    assert_eq!((errors, said.matches("ERROR").count(), said.matches("END\r\n").count(), closed), (1, 1, 1, false));
    assert_eq!(cluster.proxy.stat("closed_long_line"), 0);
    assert_eq!(cluster.proxy.stat("client_errors"), 1);
}
