//! What `-v` and `-vv` say: who came and went and why, what was refused and what was slow; each
//! request's command.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use crate::admin::{get, series};
use crate::support::forwarder::Hold;
use crate::support::port::Port;
use crate::support::{Cluster, DEADLINE, Shape, wait_until};

/// The lines that hold all of these.
fn lines<'a>(log: &'a str, words: &[&str]) -> Vec<&'a str> {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).collect()
}

#[test]
fn v_tells_who_was_refused_and_slow_and_closed_and_why() {
    let args = ["-v", "-n", "2", "--threads", "1", "--idle-timeout", "1s", "--timeout", "2s", "--item-size-max", "1k"];
    let cluster = Cluster::start(&Shape::new(1, 1).forwarded().proxy(&args));
    let mut slow = cluster.client();
    slow.set("slow", b"secret").expect("stored");
    cluster.primaries[0].network().hold(Hold::ToProxy);
    slow.send(b"get slow\r\n").expect("sent");
    // So long the answer takes: it is what makes the request a slow one.
    std::thread::sleep(Duration::from_millis(100));
    cluster.primaries[0].network().hold(Hold::Nothing);
    assert_eq!(slow.values().expect("an answer").len(), 1);
    let large = "x".repeat(2_000);
    slow.send(format!("set large 0 0 2000\r\n{large}\r\nnonsense\r\nquit\r\n").as_bytes()).expect("sent");
    for said in ["SERVER_ERROR object too large for cache", "ERROR"] {
        assert_eq!(slow.line().expect("an answer"), said.as_bytes());
    }
    assert_eq!(slow.at_end(), Ok(true));
    drop(cluster.client());
    let mut alien = cluster.client();
    alien.send(large.as_bytes()).expect("sent");
    alien.send(large.as_bytes()).expect("sent");
    assert!(alien.at_end().is_ok());
    let mut silent = cluster.client();
    silent.version().expect("an answer");
    silent.set_deadline(DEADLINE);
    assert_eq!(silent.at_end(), Ok(true));
    // Whoever is here, with the two that stay, one is too many.
    let mut many: Vec<_> = (0..3).map(|_| cluster.client()).collect();
    for client in &mut many {
        let _ = client.send(b"get nothing\r\n");
        let _ = client.text();
    }
    drop(many);
    let closed = [
        "quit",
        "it closed the connection",
        "does not speak memcached's protocol",
        "silent for --idle-timeout",
        "--max-clients are connected",
    ];
    wait_until("the log", DEADLINE, || {
        let log = cluster.proxy.log();
        closed.iter().all(|why| !lines(&log, &["a client is closed", "peer=", why]).is_empty())
    });
    for counter in ["closed_quit", "closed_by_client", "closed_long_line", "closed_idle", "closed_too_many"] {
        assert!(cluster.proxy.stat(counter) > 0, "{counter}");
    }
    let log = cluster.proxy.log();
    assert!(!lines(&log, &["a client is closed that says nothing", "closed=1"]).is_empty(), "{log}");
    assert!(!lines(&log, &["a client has connected", "peer=\"127.0.0.1:"]).is_empty(), "{log}");
    assert_eq!(lines(&log, &["a request is slow", "key=slow", "kind=Get"]).len(), 1, "{log}");
    assert_eq!(lines(&log, &["a request is refused", "object too large"]).len(), 1, "{log}");
    assert_eq!(lines(&log, &["a request is refused", "said=ERROR"]).len(), 1, "{log}");
    assert_eq!(lines(&log, &["a request is refused", "said=CLIENT_ERROR line too long"]).len(), 1, "{log}");
    assert!(!lines(&log, &["clients are refused"]).is_empty(), "{log}");
    assert!(!log.contains("a request client") && lines(&log, &["command="]).is_empty(), "that is for -vv: {log}");
}

/// Who waits for an answer when the proxy ends is told so, and the log how many there were.
#[test]
fn a_client_that_is_not_answered_before_the_end_is_told_so() {
    for io_uring in ["auto", "off"] {
        let args = ["--threads", "1", "--shutdown-grace", "200ms", "--timeout", "20s", "--leader-timeout", "20s"];
        let shape = Shape::new(1, 1).forwarded().proxy(&args).proxy(&["--io-uring", io_uring]);
        let cluster = Cluster::start(&shape);
        let (mut waits, mut rests) = (cluster.client(), cluster.client());
        waits.set("k", b"v").expect("stored");
        rests.version().expect("an answer");
        cluster.primaries[0].network().hold(Hold::ToProxy);
        waits.send(b"get k\r\nget k other\r\nmg k v O1 q\r\n").expect("sent");
        let mut last = cluster.client();
        last.send(b"get k\r\n").expect("sent");
        // What has come by then is taken.
        cluster.proxy.terminate();
        let said = "SERVER_ERROR the proxy ends before this is answered; the command may or may not have taken effect";
        for _ in 0..3 {
            assert_eq!(waits.line(), Ok(said.into()));
        }
        assert_eq!(waits.at_end(), Ok(true));
        assert_eq!(last.line(), Ok(said.into()));
        assert_eq!(rests.at_end(), Ok(true), "it waits for nothing, and is told nothing");
        let log = cluster.proxy.log();
        assert!(!lines(&log, &["clients are closed: the proxy ends", "clients=3"]).is_empty(), "{log}");
        let told = ["--shutdown-grace is over", "requests=4", "clients=2"];
        assert!(!lines(&log, &told).is_empty(), "{log}");
    }
}

/// Who waits for nothing is closed at once, and counted, while others are still answered.
#[test]
fn clients_that_are_closed_at_the_end_are_counted() {
    for io_uring in ["auto", "off"] {
        let admin = Port::reserve();
        let args = ["--threads", "1", "--shutdown-grace", "20s", "--timeout", "20s", "--leader-timeout", "20s"];
        let more = ["--probe-timeout", "20s", "--admin", &admin.addr(), "--io-uring", io_uring];
        let cluster = Cluster::start(&Shape::new(1, 1).forwarded().proxy(&args).proxy(&more));
        let (mut waits, mut rests) = (cluster.client(), cluster.client());
        waits.set("k", b"v").expect("stored");
        rests.version().expect("an answer");
        cluster.primaries[0].network().hold(Hold::ToProxy);
        waits.send(b"get k\r\n").expect("sent");
        cluster.proxy.terminate();
        assert_eq!(rests.at_end(), Ok(true));
        let late = TcpStream::connect(cluster.proxy.addr()).map_err(|error| error.kind());
        assert_eq!(late.map(drop), Err(ErrorKind::ConnectionRefused), "it is not kept waiting");
        let closed = r#"resilver_clients_closed_total{reason="shutdown"}"#;
        assert_eq!(series(&get(&admin, "/metrics"), closed), 1.0);
        cluster.primaries[0].network().hold(Hold::Nothing);
        assert_eq!(waits.values().expect("an answer").len(), 1);
        assert_eq!(waits.at_end(), Ok(true));
    }
}

#[test]
fn vv_tells_each_requests_command_and_nothing_of_keys_and_values() {
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["-vv", "--threads", "1"]));
    let mut client = cluster.client();
    client.set("hidden-key", b"secret").expect("stored");
    client.get("hidden-key").expect("an answer");
    client.send(b"delete hidden-key noreply\r\nversion\r\n").expect("sent");
    client.text().expect("an answer");
    // Too many for any log are counted.
    client.send(&b"get hidden-key\r\n".repeat(3_000)).expect("sent");
    (0..3_000).for_each(|_| drop(client.values().expect("an answer")));
    let told = || lines(&cluster.proxy.log(), &["not in the log", "left_out="]).len();
    wait_until("those left out to be told of", DEADLINE, || {
        client.version().expect("an answer");
        // They are told of with the first request of the next second; few requests until then.
        std::thread::sleep(Duration::from_millis(100));
        told() > 0
    });
    let log = cluster.proxy.log();
    for (command, noreply) in [("set", false), ("get", false), ("delete", true), ("version", false)] {
        let line = [&*format!("command=\"{command}\""), &*format!("noreply={noreply}"), "client="];
        assert!(!lines(&log, &line).is_empty(), "{command}: {log}");
    }
    assert!(lines(&log, &["command=\"get\""]).len() <= 2_000, "some were left out");
    assert!(!log.contains("hidden-key") && !log.contains("secret"), "{log}");
}
