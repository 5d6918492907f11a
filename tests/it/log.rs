//! What `-v` and `-vv` say: who came and went and why, what was refused and what was slow; each
//! request's command.

use std::time::Duration;

use crate::support::forwarder::Hold;
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
    // (Whoever is here, with the two that stay, one is too many.)
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
    let log = cluster.proxy.log();
    assert!(!lines(&log, &["a client has connected", "peer=\"127.0.0.1:"]).is_empty(), "{log}");
    assert_eq!(lines(&log, &["a request is slow", "key=slow", "kind=Get"]).len(), 1, "{log}");
    assert_eq!(lines(&log, &["a request is refused", "object too large"]).len(), 1, "{log}");
    assert_eq!(lines(&log, &["a request is refused", "said=ERROR"]).len(), 1, "{log}");
    assert!(!lines(&log, &["clients are refused"]).is_empty(), "{log}");
    assert!(!log.contains("a request client") && lines(&log, &["command="]).is_empty(), "that is for -vv: {log}");
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
