//! Large values: what honest clients ask for deposes nobody, and a node that stops or drips in the
//! midst of one is found.

use std::time::Duration;

use crate::admin::{get, series};
use crate::support::client::storage;
use crate::support::forwarder::Hold;
use crate::support::port::Port;
use crate::support::{Client, Cluster, Shape, Stored};

const MB: usize = 1_000_000;

/// Large values that are there to be read.
const LARGE: usize = 32;

fn store_large(client: &mut Client, count: usize, len: usize) {
    client.set_deadline(Duration::from_secs(60));
    for i in 0..count {
        assert_eq!(client.set(&format!("large:{i}"), &value(i, len)), Ok(Stored::Stored), "large:{i}");
    }
}

fn value(i: usize, len: usize) -> Vec<u8> {
    vec![b'a' + (i % 26) as u8; len]
}

/// Asks for 256 values in one pipeline and reads them as fast as it can.
fn read_pipeline(client: &mut Client) {
    client.set_deadline(Duration::from_secs(60));
    let keys = (0..256).map(|i| i % LARGE);
    client.send(keys.clone().map(|i| format!("get large:{i}\r\n")).collect::<String>().as_bytes()).expect("sent");
    for i in keys {
        let items = client.values().unwrap_or_else(|e| panic!("large:{i}: {e}"));
        assert!(items.len() == 1 && items[0].value == value(i, MB), "large:{i}");
    }
}

/// Runs `large` clients beside small ones, which go on until those are through; returns how often
/// each small one was served.
fn beside_small<L: Fn(usize) + Sync>(cluster: &Cluster, clients: usize, large: L) -> Vec<usize> {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let small: Vec<_> = (0..4)
            .map(|i| {
                let (over, mut client) = (&over, cluster.client());
                scope.spawn(move || {
                    client.set_deadline(Duration::from_secs(30));
                    let mut served = 0;
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        let key = format!("small:{i}");
                        assert_eq!(client.set(&key, b"x"), Ok(Stored::Stored), "{key}");
                        assert!(client.get(&key).is_ok_and(|item| item.is_some_and(|i| i.value == b"x")), "{key}");
                        served += 1;
                    }
                    served
                })
            })
            .collect();
        let large: Vec<_> = (0..clients)
            .map(|i| {
                let large = &large;
                scope.spawn(move || large(i))
            })
            .collect();
        let ends: Vec<_> = large.into_iter().map(|thread| thread.join()).collect();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        let served = small.into_iter().map(|thread| thread.join().expect("a small client")).collect();
        ends.into_iter().for_each(|end| end.expect("a large client"));
        served
    })
}

fn assert_nobody_lost(cluster: &Cluster) {
    let log = cluster.proxy.log();
    assert!(!log.contains("node lost"), "{log}");
    assert_eq!(cluster.proxy.stat("server_errors"), 0);
    assert!(cluster.proxy.status().mirrored());
}

/// 256 MB asked for at once by each: bytes keep arriving, so nobody is late, and others are served
/// in between.
#[test]
fn g4_large_values_depose_no_server_that_delivers_them() {
    let cluster = Cluster::start(&Shape::new(2, 1).nodes(&["-m", "1024"]).proxy(&["--threads", "2"]));
    store_large(&mut cluster.client(), LARGE, MB);
    for clients in [1, 4, 8] {
        let served = beside_small(&cluster, clients, |_| read_pipeline(&mut cluster.client()));
        eprintln!("{clients} clients that pipeline 256 MB each; small clients served meanwhile: {served:?}");
        assert!(served.iter().all(|&n| n >= 3), "{clients} large clients: {served:?}");
        assert_nobody_lost(&cluster);
    }
}

/// The same of clients that were known for small values: each was asked for all at once, and 139 of
/// 256 answers were errors.
#[test]
fn g4_who_has_read_small_values_gets_its_large_ones() {
    for (io_uring, met) in [("auto", true), ("off", true), ("auto", false), ("off", false)] {
        let args = ["--threads", "2", "--io-uring", io_uring, "--client-memory", "64m"];
        let mut cluster = Cluster::start(&Shape::new(2, 1).nodes(&["-m", "1024"]).proxy(&args));
        store_large(&mut cluster.client(), LARGE, MB);
        if !met {
            // Another run of it has met none, and knows only what servers say of their items.
            cluster.proxy.stop();
            cluster.proxy.spawn();
            cluster.proxy.wait_listening(crate::support::DEADLINE);
            cluster.mirrored();
        }
        let begin = std::sync::Barrier::new(8);
        beside_small(&cluster, 8, |_| {
            let mut client = cluster.client();
            (0..1000).for_each(|_| assert!(client.get("none").is_ok_and(|item| item.is_none())));
            begin.wait();
            read_pipeline(&mut client);
        });
        assert_nobody_lost(&cluster);
    }
}

#[test]
fn g4_a_hundred_writers_of_large_values_depose_no_server() {
    let cluster = Cluster::start(&Shape::new(2, 1).nodes(&["-m", "1024"]).proxy(&["--threads", "2"]));
    let served = beside_small(&cluster, 100, |i| {
        let mut client = cluster.client();
        client.set_deadline(Duration::from_secs(60));
        for round in 0..4 {
            let set = storage("set", &format!("large:{i}"), 0, 0, &value(i + round, MB), "");
            client.send(&set).expect("sent");
            assert_eq!(client.stored(), Ok(Stored::Stored), "large:{i}");
        }
    });
    eprintln!("100 writers of 4 MB each; small clients served meanwhile: {served:?}");
    assert!(served.iter().all(|&n| n >= 3), "{served:?}");
    assert_nobody_lost(&cluster);
}

/// The worker's connections show it: no probe is made meanwhile.
#[test]
fn g4_a_server_that_stops_or_drips_in_mid_value_is_found() {
    for hold in [Hold::Drip(1000), Hold::ToProxy] {
        let shape = Shape::new(1, 1).forwarded().proxy(&["--timeout", "250ms", "--probe-interval", "60s"]);
        let cluster = Cluster::start(&shape);
        let mut client = cluster.client();
        store_large(&mut client, 1, MB);
        cluster.primaries[0].network().hold_existing(hold);
        assert!(client.get("large:0").is_ok_and(|item| item.is_some_and(|i| i.value == value(0, MB))), "{hold:?}");
        let primary = cluster.primaries[0].known_as();
        assert_eq!(cluster.proxy.server(&primary, "reason"), "timeout", "{hold:?}");
    }
}

/// It takes what the kernel's buffers hold, and executes none of it.
#[test]
fn g4_a_server_that_is_stopped_while_large_values_are_written_is_found() {
    let cluster = Cluster::start(&Shape::new(1, 1).nodes(&["-m", "1024"]).proxy(&["--probe-interval", "60s"]));
    for follower in [true, false] {
        let node = if follower { &cluster.backups[0] } else { &cluster.primaries[0] };
        node.pause();
        beside_small(&cluster, 16, |i| store_large(&mut cluster.client(), 2 + i % 2, MB));
        assert_eq!(cluster.proxy.server(&node.addr(), "reason"), "timeout");
        node.resume();
        cluster.mirrored();
    }
}

/// A refill whose source or target drips ends in time, and is tried again.
#[test]
fn g4_a_refill_does_not_wait_for_a_server_that_drips() {
    let shape = Shape::new(1, 1).forwarded().proxy(&["--probe-interval", "50ms", "--leader-timeout", "500ms"]);
    let mut cluster = Cluster::start(&shape);
    store_large(&mut cluster.client(), 8, MB);
    let backup = cluster.backups[0].known_as();
    cluster.backups[0].kill();
    cluster.wait_lost(&backup);
    cluster.backups[0].restart();
    cluster.proxy.wait_status("a refill", crate::support::DEADLINE, |s| s.node(&backup) == "copying");
    cluster.backups[0].network().hold_existing(Hold::Drip(0));
    cluster.proxy.wait_status("its end", crate::support::DEADLINE, |s| s.node(&backup) != "copying");
    cluster.backups[0].network().hold(Hold::Nothing);
    cluster.mirrored();
    cluster.assert_rings_equal();
}

/// `--client-memory` of [`clients_that_read_nothing_hold_little_memory`].
const CLIENT_MEMORY: u64 = 128 << 20;

/// What is not counted there: a value more for each client, and its requests.
const EACH_CLIENT: u64 = 3 << 20;

/// Of the connections to the servers: what is being received.
const CONNECTIONS: u64 = 32 << 20;

/// Memory follows what clients may leave unread, not what they ask for, and goes back to the
/// system.
#[test]
fn clients_that_read_nothing_hold_little_memory() {
    let args = ["--threads", "2", "--client-memory", "128m"];
    let cluster = Cluster::start(&Shape::new(2, 1).nodes(&["-m", "1024"]).proxy(&args));
    store_large(&mut cluster.client(), LARGE, MB);
    let idle = cluster.proxy.resident_bytes();
    for clients in [2, 8, 32] {
        let ask: Vec<u8> = (0..256).flat_map(|i| format!("get large:{}\r\n", i % LARGE).into_bytes()).collect();
        let line: Vec<String> = (0..256).map(|i| format!("large:{}", i % LARGE)).collect();
        let line = format!("get {}\r\n", line.join(" ")).into_bytes();
        let silent: Vec<Client> = (0..clients)
            .map(|i| {
                let mut client = cluster.client();
                // Some have read small ones before, and are trusted with more.
                if i % 2 == 0 {
                    (0..300).for_each(|_| assert!(client.get("none").is_ok_and(|item| item.is_none())));
                }
                client.send(if i % 4 < 2 { &ask } else { &line }).expect("sent");
                client
            })
            .collect();
        let most = std::sync::atomic::AtomicU64::new(0);
        let served = beside_small(&cluster, 1, |_| {
            for _ in 0..50 {
                std::thread::sleep(Duration::from_millis(10));
                most.fetch_max(cluster.proxy.resident_bytes(), std::sync::atomic::Ordering::Relaxed);
            }
        });
        let held = most.into_inner();
        eprintln!("{clients} that read nothing: {} MB (idle {} MB), {served:?}", held >> 20, idle >> 20);
        drop(silent);
        crate::support::wait_until("the memory to go back", crate::support::DEADLINE, || {
            cluster.proxy.resident_bytes() < idle + CONNECTIONS
        });
        eprintln!("afterwards {} MB", cluster.proxy.resident_bytes() >> 20);
        assert!(held < idle + CLIENT_MEMORY + clients as u64 * EACH_CLIENT + CONNECTIONS, "{clients}: {held}");
    }
    assert_nobody_lost(&cluster);
}

/// What a burst of small requests has needed goes back, too, while the proxy goes on: 250 bytes for
/// each key, what lies between them, and lists and rooms that were made for them.
#[test]
fn memory_that_very_many_small_requests_needed_goes_back() {
    const CLIENTS: usize = 800;
    /// What may stay of it: 3 MB, as measured.
    const LEFT: u64 = 8 << 20;
    let patient = ["--threads", "1", "--timeout", "30s", "--leader-timeout", "30s", "--probe-timeout", "30s"];
    let cluster = Cluster::start(&Shape::new(1, 0).proxy(&patient));
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| cluster.client()).collect();
    let ask = b"get none\r\n".repeat(256);
    let read = |client: &mut Client| (0..256).for_each(|_| assert!(client.values().is_ok_and(|all| all.is_empty())));
    for client in &mut clients {
        client.set_deadline(Duration::from_secs(60));
        client.send(&ask).expect("sent");
        read(client);
    }
    let before = cluster.proxy.resident_bytes();
    cluster.primaries[0].pause();
    for client in &mut clients {
        client.send(&ask).expect("sent");
    }
    let enough = before + (60 << 20);
    crate::support::wait_until("all to be asked", crate::support::DEADLINE, || cluster.proxy.resident_bytes() > enough);
    let most = cluster.proxy.resident_bytes();
    cluster.primaries[0].resume();
    clients.iter_mut().for_each(read);
    let mut stays = clients.split_off(CLIENTS - 1);
    drop(clients);
    crate::support::wait_until("the memory to go back", crate::support::DEADLINE, || {
        stays.iter_mut().for_each(|client| assert!(client.get("none").is_ok_and(|item| item.is_none())));
        std::thread::sleep(Duration::from_millis(100));
        cluster.proxy.resident_bytes() < before + LEFT
    });
    let now = cluster.proxy.resident_bytes();
    eprintln!("before {} MB, most {} MB, afterwards {} MB", before >> 20, most >> 20, now >> 20);
}

/// Larger than the fixed bound of 256 MiB that answers of a resync once had: such a refill began
/// again for ever.
#[test]
fn g1_an_item_of_280_mb_is_refilled() {
    const LEN: usize = 280 * MB;
    // A thread of memcached reads such a value to its end before it serves another connection: over
    // a second, beside other tests. To a probe that waits for that thread it is silent.
    let shape =
        Shape::new(1, 1).nodes(&["-I", "600m", "-m", "2048"]).proxy(&["--item-size-max", "600m", "--timeout", "2s"]);
    let mut cluster = Cluster::start(&shape);
    store_large(&mut cluster.client(), 1, LEN);
    let backup = cluster.backups[0].known_as();
    cluster.backups[0].kill();
    cluster.wait_lost(&backup);
    cluster.backups[0].restart();
    cluster.proxy.wait_mirrored(Duration::from_secs(60));
    let mut there = Client::connect(&cluster.backups[0].addr());
    there.set_deadline(Duration::from_secs(60));
    let item = there.get("large:0").expect("an answer").expect("the item");
    assert!(item.value.len() == LEN && item.value.iter().all(|&byte| byte == b'a'));
    let log = cluster.proxy.log();
    assert!(!log.contains("resync ended early"), "{log}");
}

/// Clients that begin values of 1 MB, send all but the last byte, and stop: what they may have sent
/// is bounded, others are served, and who finds no room is told.
#[test]
fn clients_that_end_no_value_hold_little_memory() {
    const CLIENTS: usize = 400;
    const LIMIT: u64 = 64 << 20;
    /// What each may have beside that.
    const FREE: u64 = 64 << 10;
    let args = ["--threads", "2", "--client-memory", "64m", "--leader-timeout", "500ms"];
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&args));
    let idle = cluster.proxy.resident_bytes();
    let most = std::sync::atomic::AtomicU64::new(0);
    let refused = std::sync::atomic::AtomicUsize::new(0);
    let served = beside_small(&cluster, CLIENTS, |i| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(cluster.proxy.addr()).expect("connected");
        stream.set_nonblocking(true).expect("non-blocking");
        let mut left = format!("set unended:{i} 0 0 {MB}\r\n").into_bytes();
        left.resize(left.len() + MB - 1, b'x');
        let (mut at, mut said) = (0, Vec::new());
        for _ in 0..150 {
            while at < left.len()
                && stream.write(&left[at..]).is_ok_and(|n| {
                    at += n;
                    n > 0
                })
            {}
            let mut text = [0; 512];
            if let Ok(n @ 1..) = stream.read(&mut text) {
                said.extend_from_slice(&text[..n]);
            }
            std::thread::sleep(Duration::from_millis(20));
            most.fetch_max(cluster.proxy.resident_bytes(), std::sync::atomic::Ordering::Relaxed);
        }
        let words = String::from_utf8_lossy(&said);
        assert!(words.is_empty() || words.starts_with("SERVER_ERROR out of memory storing object: "), "{words}");
        refused.fetch_add(usize::from(!words.is_empty()), std::sync::atomic::Ordering::Relaxed);
    });
    let (held, refused) = (most.into_inner(), refused.into_inner());
    eprintln!(
        "{CLIENTS} that end no value: {} MB (idle {} MB), {refused} were told, {served:?}",
        held >> 20,
        idle >> 20
    );
    assert!(served.iter().all(|&n| n >= 3), "{served:?}");
    // On io_uring 267 MB, before what the kernel has brought by the time that it hears that no
    // more is wanted was counted and bounded.
    assert!(held < idle + LIMIT + CLIENTS as u64 * FREE + CONNECTIONS, "{held}");
    assert!(refused >= CLIENTS - 2 * (LIMIT as usize / MB), "{refused} were told");
    // And afterwards there is room again.
    store_large(&mut cluster.client(), 2, MB);
    assert!(!cluster.proxy.log().contains("node lost"));
}

/// A client that reads is not to wait for those that do not, whatever they hold; nor are these,
/// once they begin to read.
#[test]
fn who_reads_is_served_beside_clients_that_read_nothing() {
    const LIMIT: f64 = (16 << 20) as f64;
    const SILENT: usize = 40;
    const ASKED: usize = 8;
    for io_uring in ["auto", "off"] {
        let admin = Port::reserve();
        let args = ["--threads", "2", "--client-memory", "16m", "--io-uring", io_uring, "--admin", &admin.addr()];
        let cluster = Cluster::start(&Shape::new(2, 1).proxy(&args));
        let mut client = cluster.client();
        store_large(&mut client, 2, MB);
        let names: Vec<String> = (0..100).map(|i| format!("k{i}")).collect();
        names.iter().for_each(|name| assert_eq!(client.set(name, &[b'k'; 1000]), Ok(Stored::Stored)));
        let held = || series(&get(&admin, "/metrics"), "resilver_client_memory_bytes");
        let mut silent = Vec::new();
        for (clients, least) in [(12, LIMIT / 2.0), (SILENT, LIMIT)] {
            while silent.len() < clients {
                let mut client = cluster.client();
                client.send("get large:0\r\n".repeat(ASKED).as_bytes()).expect("sent");
                silent.push(client);
            }
            crate::support::wait_until("their values", crate::support::DEADLINE, || held() > least);
            for verb in ["get", "gets", "gat 0"] {
                for count in [2, 100] {
                    let found = cluster.client().get_many(verb, &names[..count]);
                    let found = found.unwrap_or_else(|e| panic!("{io_uring}, {clients}: {verb} of {count}: {e}"));
                    assert!(found.iter().all(Option::is_some), "{verb} of {count}");
                }
                let large = ["large:0", "large:1"].map(str::to_owned);
                let found = cluster.client().get_many(verb, &large);
                assert!(found.is_ok_and(|found| found.iter().all(Option::is_some)), "{io_uring}, {clients}: {verb}");
            }
        }
        let (held, most) = (held(), LIMIT + (SILENT * MB) as f64);
        assert!(held < most, "{io_uring}: {SILENT} that read nothing hold {held} bytes");
        for client in &mut silent {
            client.set_deadline(Duration::from_secs(60));
            for _ in 0..ASKED {
                let line = client.line().expect("an answer");
                if line.starts_with(b"VALUE ") {
                    client.exactly(MB).expect("the value");
                    assert_eq!(client.line().expect("its end"), b"END");
                } else {
                    let said = b"SERVER_ERROR answers that clients have not read take all of --client-memory";
                    assert_eq!(line, said);
                }
            }
        }
        drop(silent);
        crate::support::wait_until("the memory to go back", crate::support::DEADLINE, || {
            series(&get(&admin, "/metrics"), "resilver_client_memory_bytes") == 0.0
        });
    }
}
