//! The classic text protocol through the proxy, over several nodes, side by side with a real
//! memcached where it can be.

mod transcripts;

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::support::client::{show, storage};
use crate::support::cluster::{count_filled, fill, filled};
use crate::support::{Client, Cluster, Failure, Memcached, Rng, Shape, Stored, seed, wait_until};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use transcripts::{assert_same, scripts};

/// Where memcached cuts such a line off depends on how the bytes arrive; that there is an end to it
/// does not.
#[test]
fn a_line_without_an_end_is_cut_off() {
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut flood = cluster.client();
    let before = cluster.proxy.resident_bytes();
    let mut sent = 0;
    while sent < 64 << 20 && flood.send(&[b'a'; 65_536]).is_ok() {
        sent += 65_536;
    }
    assert!(sent < 64 << 20, "64 MB without a line end were taken");
    let grown = cluster.proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes were kept of one line");
    assert_eq!(cluster.client().set("k", b"v"), Ok(Stored::Stored));
}

/// Large values, one at a time and pipelined; beyond the limit memcached's own error, and the old
/// item is gone.
#[test]
fn values_up_to_the_limit_and_beyond() {
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let mut rng = Rng::new(seed("large values"), 6);
    for len in [65_535, 65_536, 500_000, 1_000_000, 1_048_000, 1_048_576, 1_048_577, 3_000_000] {
        let mut script = storage("set", "large", 5, 0, b"the old one", "");
        script.extend(storage("set", "large", 6, 0, &rng.bytes(len), ""));
        script.extend_from_slice(b"get large\r\n");
        script.extend(storage("set", "large2", 6, 0, &rng.bytes(len), " noreply"));
        script.extend_from_slice(b"get large2 large\r\n");
        assert_same(&node, &cluster, &script, usize::MAX, &format!("{len} bytes"));
    }
    let mut client = cluster.client();
    client.set_deadline(Duration::from_secs(60));
    let value = rng.bytes(1_000_000);
    let mut batch = Vec::new();
    for i in 0..20 {
        batch.extend(storage("set", &format!("l{i}"), i, 0, &value, ""));
    }
    // Requests and answers larger than every socket buffer, both ways at once.
    std::thread::scope(|scope| {
        let addr = cluster.proxy.addr();
        let expected = &value;
        scope.spawn(move || {
            let mut reader = Client::connect(&addr);
            reader.set_receive_buffer(65_536);
            reader.set_deadline(Duration::from_secs(60));
            for _ in 0..2 {
                let keys: Vec<String> = (0..20).map(|i| format!("l{i}")).collect();
                for item in reader.get_many("get", &keys).expect("a large multi-get").into_iter().flatten() {
                    assert!(&item.value == expected, "{} differs", show(&item.key));
                }
            }
        });
        client.send(&batch).expect("send 20 MB");
        for _ in 0..20 {
            assert_eq!(client.stored(), Ok(Stored::Stored));
        }
    });
    cluster.assert_rings_equal();
}

#[test]
fn a_multi_get_over_all_nodes_keeps_the_requests_order() {
    let cluster = Cluster::start(&Shape::new(3, 2).patient());
    let mut client = cluster.client();
    for i in (0..200).step_by(2) {
        assert_eq!(client.store("set", &format!("m{i}"), i, 0, format!("value {i}").as_bytes()), Ok(Stored::Stored));
    }
    let holders: std::collections::BTreeSet<usize> = cluster.primary_ring().values().map(|i| i.node).collect();
    assert_eq!(holders.len(), 3, "the keys are spread over all nodes");
    let mut rng = Rng::new(seed("multi-get"), 8);
    for verb in ["get", "gets", "gat 0", "gats 0"] {
        let keys: Vec<String> = (0..300).map(|_| format!("m{}", rng.below(200))).collect();
        let answers = client.get_many(verb, &keys).unwrap_or_else(|e| panic!("{verb}: {e}"));
        for (key, item) in keys.iter().zip(answers) {
            let i: u32 = key[1..].parse().expect("a number");
            let expected = i.is_multiple_of(2).then(|| (format!("value {i}").into_bytes(), i));
            assert_eq!(item.as_ref().map(|i| (i.value.clone(), i.flags)), expected, "{verb} {key}");
            let wants_cas = i.is_multiple_of(2) && verb.contains('s');
            assert_eq!(item.is_some_and(|i| i.cas.is_some()), wants_cas, "{verb} {key}");
        }
    }
}

#[test]
fn a_read_behind_its_own_unanswered_write_sees_it() {
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let mut client = cluster.client();
    let mut batch = Vec::new();
    for i in 0..1000 {
        let tail = if i % 2 == 0 { "" } else { " noreply" };
        batch.extend(storage("set", &format!("own{}", i % 7), i, 0, i.to_string().as_bytes(), tail));
        batch.extend_from_slice(format!("get own{}\r\n", i % 7).as_bytes());
    }
    client.send(&batch).expect("send");
    for i in 0..1000 {
        if i % 2 == 0 {
            assert_eq!(client.stored(), Ok(Stored::Stored));
        }
        let items = client.values().expect("values");
        assert_eq!(items.len(), 1, "own{} after write {i}", i % 7);
        assert_eq!(items[0].value, i.to_string().into_bytes(), "own{} after write {i}", i % 7);
    }
}

#[test]
fn cas_works_through_the_proxy() {
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let (mut one, mut two) = (cluster.client(), cluster.client());
    assert_eq!(one.set("c", b"1"), Ok(Stored::Stored));
    let token = |client: &mut Client| client.gets("c").expect("gets").and_then(|i| i.cas).expect("a token");
    let first = token(&mut one);
    assert_eq!(token(&mut two), first, "the same item, the same token");
    // PHP and Java keep it in a signed number; PHP's cas silently fails on a larger one.
    assert!(first < 1 << 63, "token {first:#x} is beyond 63 bits");
    assert_eq!(two.cas("c", 9, 0, b"2", first), Ok(Stored::Stored));
    assert_eq!(one.cas("c", 9, 0, b"3", first), Ok(Stored::Exists));
    for change in ["append c 0 0 1\r\nx", "set c 0 0 1\r\n5", "incr c 1", "decr c 1"] {
        let before = token(&mut one);
        one.raw_command(change).expect("an answer");
        assert_eq!(two.cas("c", 0, 0, b"lost", before), Ok(Stored::Exists), "after {change:?}");
    }
    let before = token(&mut one);
    assert_eq!(one.touch("c", 0), Ok(true));
    assert_eq!(two.cas("c", 0, 0, b"won", before), Ok(Stored::Stored), "touch changes no token, as in memcached");
    let before = token(&mut one);
    assert_eq!(one.delete("c"), Ok(true));
    assert_eq!(two.cas("c", 0, 0, b"lost", before), Ok(Stored::NotFound));
    assert_eq!(two.set("c", b"again"), Ok(Stored::Stored));
    assert_eq!(two.cas("c", 0, 0, b"lost", before), Ok(Stored::Exists), "deleted and made anew");
    cluster.assert_rings_equal();
}

#[test]
fn every_item_stands_on_both_rings_exactly() {
    let cluster = Cluster::start(&Shape::new(3, 2).patient());
    let mut client = cluster.client();
    fill(&mut client, "k", 2000, 30);
    for i in 0..200 {
        let key = format!("k:{i}");
        match i % 7 {
            0 => assert_eq!(client.delete(&key), Ok(true)),
            1 => assert_eq!(client.store("append", &key, 0, 0, b"+"), Ok(Stored::Stored)),
            2 => assert_eq!(client.store("prepend", &key, 0, 0, b"-"), Ok(Stored::Stored)),
            3 => assert_eq!(client.touch(&key, 700), Ok(true)),
            4 => assert!(client.gat(800, &key).expect("gat").is_some()),
            5 => assert_eq!(client.store("replace", &key, 77, 900, b"10"), Ok(Stored::Stored)),
            _ => {
                assert_eq!(client.store("set", &key, 0, 0, b"10"), Ok(Stored::Stored));
                assert_eq!(client.arithmetic("decr", &key, 1), Ok(Some(9)));
            }
        }
    }
    let ring = cluster.assert_rings_equal();
    assert_eq!(ring.len(), 2000 - 29);
    assert_eq!(ring[b"k:6".as_slice()].value, b"9 ");
    assert!(ring[b"k:3".as_slice()].ttl.is_some_and(|t| (690..=700).contains(&t)));
    assert!(ring[b"k:4".as_slice()].ttl.is_some_and(|t| (790..=800).contains(&t)));
}

#[test]
fn flush_all_at_once_and_delayed() {
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let mut client = cluster.client();
    fill(&mut client, "k", 300, 20);
    assert_eq!(client.raw_command("flush_all").as_deref(), Ok("OK"));
    assert_eq!(count_filled(&mut client, "k", 300, 20), 0);
    cluster.mirrored();
    fill(&mut client, "k", 300, 20);
    assert_eq!(count_filled(&mut client, "k", 300, 20), 300, "items set right after a flush stay");
    client.send(b"flush_all noreply\r\nget k:1 k:2\r\n").expect("send");
    assert_eq!(client.values(), Ok(Vec::new()), "noreply keeps its place in the order");
    fill(&mut client, "k", 300, 20);
    assert_eq!(client.raw_command("flush_all 2").as_deref(), Ok("OK"));
    assert_eq!(count_filled(&mut client, "k", 300, 20), 300, "not yet");
    wait_until("the delayed flush", crate::support::DEADLINE, || count_filled(&mut client, "k", 300, 20) == 0);
    fill(&mut client, "k", 300, 20);
    cluster.mirrored();
    assert_eq!(cluster.assert_rings_equal().len(), 300);
}

#[test]
fn reserved_keys_are_invisible() {
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut client = cluster.client();
    // Whatever markers there are, and one that we plant.
    let mut direct = cluster.primaries[0].client();
    assert_eq!(direct.set("__resilver__:planted", b"5"), Ok(Stored::Stored));
    direct.send(b"lru_crawler metadump hash\r\n").expect("send");
    let lines = direct.dump_lines().expect("a dump");
    let mut markers = 0;
    for line in lines {
        let text = String::from_utf8_lossy(&line).replace("%3A", ":");
        let key = text.strip_prefix("key=").and_then(|r| r.split(' ').next()).expect("a key").to_string();
        markers += usize::from(key.starts_with("__resilver__:"));
        assert_eq!(client.get(&key), Ok(None), "{key}");
        assert_eq!(client.gets(&key), Ok(None), "{key}");
    }
    assert!(markers > 1, "a marker of the proxy's own beside the planted one");
    for request in [
        "set __resilver__:x 0 0 1\r\nx",
        "add __resilver__:x 0 0 1\r\nx",
        "replace __resilver__:planted 0 0 1\r\nx",
        "append __resilver__:planted 0 0 1\r\nx",
        "prepend __resilver__:planted 0 0 1\r\nx",
        "cas __resilver__:planted 0 0 1 1\r\nx",
        "delete __resilver__:planted",
        "incr __resilver__:planted 1",
        "decr __resilver__:planted 1",
        "touch __resilver__:planted 1",
    ] {
        let answer = client.raw_command(request).expect("an answer");
        assert!(answer.starts_with("CLIENT_ERROR "), "{request:?} answered {answer:?}");
    }
    assert_eq!(client.raw_command("set ok 0 0 1\r\nx").as_deref(), Ok("STORED"), "the connection is in step");
    let planted = direct.get("__resilver__:planted").expect("get").expect("untouched");
    assert_eq!(planted.value, b"5");
}

#[test]
fn version_verbosity_stats_and_quit() {
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let mut client = cluster.client();
    assert!(!client.version().expect("version").is_empty());
    assert_eq!(client.raw_command("verbosity 1").as_deref(), Ok("OK"));
    fill(&mut client, "k", 10, 10);
    assert_eq!(count_filled(&mut client, "k", 10, 10), 10);
    assert_eq!(client.get("none"), Ok(None));
    let stats: std::collections::HashMap<_, _> = client.stats("").expect("stats").into_iter().collect();
    for name in [
        "pid",
        "uptime",
        "time",
        "version",
        "curr_connections",
        "cmd_get",
        "cmd_set",
        "get_hits",
        "get_misses",
        "threads",
    ] {
        assert!(stats.contains_key(name), "stats has no {name}: {stats:?}");
    }
    let number = |name: &str| stats[name].parse::<u64>().unwrap_or_else(|_| panic!("{name} is {}", stats[name]));
    assert!(number("cmd_set") >= 10 && number("get_hits") >= 10 && number("get_misses") >= 1, "{stats:?}");
    let servers = client.stats("servers").expect("stats servers");
    for node in cluster.primaries.iter().chain(&cluster.backups) {
        assert!(servers.iter().any(|(n, v)| n.contains(&node.addr()) || v.contains(&node.addr())), "{servers:?}");
    }
    client.stats("resync").expect("stats resync");
    let unknown = client.raw_command("stats nonsense").expect("an answer");
    assert!(!unknown.is_empty());
    let mut client = cluster.client();
    client.send(b"quit\r\n").expect("send");
    assert_eq!(client.at_end(), Ok(true), "quit closes without a word");
}

/// A worker that rests is woken by whatever is said, and nothing but that wakes it here.
#[test]
fn a_client_that_says_all_at_once_and_quits_is_served_by_a_proxy_at_rest() {
    let cluster = Cluster::start(&Shape::new(1, 1).patient().proxy(&["--threads", "1", "--probe-interval", "60s"]));
    let long = [b"set ".as_slice(), &[b'x'; 5000]].concat();
    let sessions: [(&[u8], &[u8]); 4] = [
        (b"quit\r\n", b""),
        (b"set a 0 0 1\r\nx\r\nquit\r\n", b"STORED\r\n"),
        (b"get a\r\nquit\r\n", b"VALUE a 0 1\r\nx\r\nEND\r\n"),
        (&long, b"CLIENT_ERROR line too long\r\n"),
    ];
    for (said, answer) in sessions {
        let mut client = cluster.client();
        // The worker is at rest by then: nothing tells of that.
        std::thread::sleep(Duration::from_millis(300));
        client.send(said).expect("send");
        let text = String::from_utf8_lossy(&said[..said.len().min(30)]).into_owned();
        assert_eq!(client.raw_until(b"never said"), Ok((answer.to_vec(), true)), "{text}");
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_set_stores_nothing() {
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut client = cluster.client();
    assert_eq!(client.set("half", b"whole"), Ok(Stored::Stored));
    for cut in [5, 12, 17, 18, 30, 117] {
        let request = storage("set", "half", 0, 0, &[b'x'; 100], "");
        let mut stream = TcpStream::connect(cluster.proxy.addr()).expect("connect");
        stream.write_all(&request[..cut.min(request.len() - 1)]).expect("write");
        drop(stream);
    }
    // Leaving with answers outstanding is no harm either.
    for _ in 0..50 {
        let mut stream = TcpStream::connect(cluster.proxy.addr()).expect("connect");
        stream.write_all("get half\r\n".repeat(200).as_bytes()).expect("write");
    }
    wait_until("the connections to be gone", crate::support::DEADLINE, || {
        let stats = client.stats("").expect("stats");
        stats.iter().any(|(n, v)| n == "curr_connections" && v.parse::<u32>().is_ok_and(|v| v <= 3))
    });
    assert_eq!(client.get("half").expect("get").expect("there").value, b"whole");
    cluster.assert_rings_equal();
}

#[test]
fn clients_beyond_the_limit_are_refused_clearly() {
    let cluster = Cluster::start(&Shape::new(1, 1).patient().proxy(&["-n", "8"]));
    let mut held = Vec::new();
    let mut refusal = None;
    for _ in 0..20 {
        let mut client = cluster.client();
        // What operators ask is answered beyond the limit too.
        match client.raw_command("get absent") {
            Ok(line) if line.starts_with("END") => held.push(client),
            other => {
                refusal = Some((other, client.at_end()));
                break;
            }
        }
    }
    let (answer, closed) = refusal.expect("the ninth client is refused");
    assert!(held.len() <= 8, "{} clients were taken", held.len());
    assert!(answer.is_err() || answer.as_ref().is_ok_and(|l| l.contains("ERROR")), "{answer:?}");
    eprintln!("{} taken, then {answer:?}", held.len());
    assert!(answer.is_ok(), "the refusal is said before the connection is closed");
    assert_eq!(closed, Ok(true));
    for client in &mut held {
        assert!(client.version().is_ok(), "those inside are served on");
    }
    held.pop();
    wait_until("a place to be free again", crate::support::DEADLINE, || {
        cluster.client().raw_command("get absent").is_ok_and(|l| l.starts_with("END"))
    });
}

#[test]
fn a_unix_socket_serves_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("resilver.sock");
    let cluster = Cluster::start(&Shape::new(1, 1).patient().proxy(&["-f", path.to_str().expect("utf-8")]));
    let mut client = Client::connect_unix(&path).expect("connect to the unix socket");
    fill(&mut client, "u", 1000, 100);
    assert_eq!(count_filled(&mut client, "u", 1000, 100), 1000);
    assert_eq!(count_filled(&mut cluster.client(), "u", 1000, 100), 1000, "the same items over TCP");
}

#[test]
fn ketama_spreads_over_all_nodes_and_mirrors() {
    let mut cluster = Cluster::start(&Shape::new(3, 2).patient().proxy(&["-k"]));
    let mut client = cluster.client();
    fill(&mut client, "k", 3000, 20);
    let ring = cluster.assert_rings_equal();
    for node in 0..3 {
        let share = ring.values().filter(|i| i.node == node).count();
        assert!(share > 300, "node {node} holds {share} of 3000 items");
    }
    cluster.kill_primaries();
    assert_eq!(count_filled(&mut client, "k", 3000, 20), 3000);
}

#[test]
fn without_backups_it_is_a_plain_sharding_proxy() {
    let mut cluster = Cluster::start(&Shape::new(3, 0).patient());
    let node = Memcached::start(&[]);
    for script in scripts() {
        assert_same(&node, &cluster, &script, usize::MAX, "plain sharding");
    }
    let mut client = cluster.client();
    assert_eq!(client.raw_command("flush_all").as_deref(), Ok("OK"));
    fill(&mut client, "k", 900, 20);
    let ring = cluster.primary_ring();
    assert!(ring.len() >= 900);
    cluster.primaries[1].kill();
    let (mut errors, mut hits) = (0, 0);
    for i in 0..900 {
        let key = format!("k:{i}");
        match client.get(&key) {
            Ok(Some(_)) if ring[key.as_bytes()].node != 1 => hits += 1,
            Err(Failure::Server(_)) if ring[key.as_bytes()].node == 1 => errors += 1,
            other => panic!("{key} on node {}: {other:?}", ring[key.as_bytes()].node),
        }
    }
    assert!(errors > 0 && hits > 0);
    cluster.primaries[1].restart();
    wait_until("the node to serve again", crate::support::DEADLINE, || {
        (0..900).all(|i| client.set(&format!("k:{i}"), b"x") == Ok(Stored::Stored))
    });
}

#[test]
fn sigterm_ends_it_with_zero_and_sends_what_was_asked() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).patient());
    let mut client = cluster.client();
    fill(&mut client, "k", 100, 50_000);
    client.send("get k:1 k:2 k:3\r\n".repeat(20).as_bytes()).expect("send");
    assert_eq!(client.values().map(|v| v.len()), Ok(3), "the first answer is on its way: the others are in flight");
    cluster.proxy.terminate();
    for i in 1..20 {
        assert_eq!(client.values().map(|v| v.len()), Ok(3), "answer {i} of 20 after SIGTERM");
    }
    drop(client);
    let status = cluster.proxy.wait_exit();
    assert_eq!(status.code(), Some(0), "{status}");
}

/// What has come by then, from more clients than one look at the sockets tells of.
#[test]
fn sigterm_lets_every_request_be_answered_that_came_before() {
    const CLIENTS: usize = 900;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many files as may be");
    let mut cluster = Cluster::start(&Shape::new(1, 1).patient().proxy(&["--threads", "1"]));
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| cluster.client()).collect();
    assert_eq!(clients[0].set("k", b"x"), Ok(Stored::Stored));
    for client in &mut clients {
        assert!(client.version().is_ok(), "it is accepted");
    }
    cluster.proxy.pause();
    for client in &mut clients {
        client.send(b"get k\r\n").expect("send");
    }
    cluster.proxy.terminate();
    cluster.proxy.resume();
    for (at, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.values().map(|items| items.len()), Ok(1), "client {at}");
    }
    let status = cluster.proxy.wait_exit();
    assert_eq!(status.code(), Some(0), "{status}");
}

/// The check-up that libmemcached brings: what passes against memcached itself passes through the
/// proxy.
#[test]
fn memccapable_passes_as_against_memcached() {
    if Command::new("memccapable").arg("-?").output().is_err() {
        println!("SKIPPED: memccapable (libmemcached-tools) is not installed");
        return;
    }
    let passed = |port: u16| -> (Vec<String>, String) {
        let output = Command::new("memccapable")
            .args(["-t", "10", "-h", "127.0.0.1", "-p", &port.to_string()])
            .output()
            .expect("run memccapable");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let names =
            text.lines().filter(|l| l.contains("[pass]")).filter_map(|l| l.split("  ").next().map(str::to_string));
        (names.collect(), text)
    };
    let node = Memcached::start(&[]);
    let port = node.addr().rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
    let (expected, _) = passed(port);
    // Both protocols.
    assert!(expected.len() > 50, "memccapable against memcached: {expected:?}");
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let (ours, text) = passed(cluster.proxy.port());
    let missing: Vec<_> = expected.iter().filter(|t| !ours.contains(t)).collect();
    assert!(missing.is_empty(), "{missing:?} of {} fail through the proxy:\n{text}", expected.len());
    println!("memccapable: {} of {} pass", ours.len(), expected.len());
}

#[test]
fn phps_clients_work() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/smoke.php");
    let classes =
        Command::new("php").args(["-r", "echo (int)(class_exists('Memcached') || class_exists('Memcache'));"]).output();
    if !classes.is_ok_and(|o| o.stdout == b"1") {
        println!("SKIPPED: php-cli with php-memcached or php-memcache is not installed");
        return;
    }
    let run = |port: u16| {
        let output = Command::new("php").args([script, "127.0.0.1", &port.to_string()]).output().expect("run php");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    };
    let node = Memcached::start(&[]);
    let port = node.addr().rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
    let plain = run(port);
    assert!(plain.0, "against memcached itself: {}", plain.1);
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let ours = run(cluster.proxy.port());
    assert!(ours.0, "{}", ours.1);
    print!("{}", ours.1);
}

/// More keys than are read at once, and far more bytes than are held at once, in one line.
#[test]
fn a_get_of_very_many_keys_is_answered_whole_and_in_order() {
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let mut client = cluster.client();
    fill(&mut client, "many", 500, 10_000);
    let keys: Vec<String> = (0..5_000).map(|i| format!("many:{}", i * 7 % 600)).collect();
    client.send(format!("get {}\r\n", keys.join(" ")).as_bytes()).expect("send");
    let mut expected = Vec::new();
    for i in (0..5_000).map(|i| i * 7 % 600).filter(|&i| i < 500) {
        expected.extend_from_slice(format!("VALUE many:{i} {i} 10000\r\n").as_bytes());
        expected.extend_from_slice(&filled("many", i, 10_000));
        expected.extend_from_slice(b"\r\n");
    }
    expected.extend_from_slice(b"END");
    let got = client.exactly(expected.len()).expect("the answer");
    assert!(got == expected, "{} bytes that differ from the {} expected", got.len(), expected.len());
    assert_eq!(client.get("many:1").expect("get").map(|i| i.value), Some(filled("many", 1, 10_000)));
}

#[test]
fn a_short_request_behind_one_that_had_to_wait_is_answered_whatever_came_in_pieces_before() {
    let cluster = Cluster::start(&Shape::new(1, 0).proxy(&["--timeout", "10s", "--leader-timeout", "10s"]));
    let mut client = cluster.client();
    // The proxy has read what was sent by then: nothing tells of that.
    let pause = || std::thread::sleep(Duration::from_millis(50));
    let large = storage("set", "a", 0, 0, &[b'x'; 1000], "");
    client.send(&large[..100]).unwrap();
    pause();
    client.send(&large[100..]).unwrap();
    assert_eq!(client.text().unwrap(), "STORED");
    cluster.primaries[0].pause();
    // The get waits for the set of its key.
    client.send(b"set b 0 0 1\r\nb\r\nget b\r\n").unwrap();
    pause();
    client.send(b"get c\r\n").unwrap();
    pause();
    client.send(b"get d\r\n").unwrap();
    pause();
    cluster.primaries[0].resume();
    for expected in ["STORED", "VALUE b 0 1", "b", "END", "END", "END"] {
        assert_eq!(client.text().unwrap(), expected);
    }
    assert!(client.version().is_ok());
}
