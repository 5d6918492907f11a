//! `resilver status` over a real cluster, in every state that it can be in, and the same for a
//! monitor; and whoever cannot be asked.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::cluster::fill;
use crate::support::command::{Running, resilver, run};
use crate::support::memcached::signal;
use crate::support::port::Port;
use crate::support::{Cluster, Memcached, Shape, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

fn status(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, String, String) {
    run(&[&["status", "--proxy", &cluster.proxy.addr()], arguments].concat())
}

/// Its counters are the proxy's; the servers' part of them is left out. What only the server knows
/// is said to be unknown.
#[test]
fn a_server_that_hangs_keeps_the_status_from_nobody() {
    let patient = ["--timeout", "3s", "--leader-timeout", "3s", "--probe-timeout", "3s"];
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&patient));
    let hung = cluster.primaries[0].addr();
    cluster.primaries[0].pause();
    let told = [status(&cluster, &[]), status(&cluster, &["--check"])];
    let (code, text, complaint) = run(&["key", "k", "--proxy", &cluster.proxy.addr()]);
    signal(cluster.primaries[0].pid(), "CONT");
    assert_eq!((code, complaint.as_str()), (Some(1), ""), "{text}");
    assert!(text.contains(&hung) && text.contains("did not answer in time"), "{text}");
    for (code, text, complaint) in told {
        assert_eq!((code, complaint.as_str()), (Some(0), ""), "{text}");
    }
}

/// A primary is killed, comes back and is filled; then it is killed again, and the backup with it.
#[test]
fn status_says_in_one_word_how_it_is_and_what_to_do() {
    let mut cluster = Cluster::start(&Shape::new(2, 1).proxy(&["--resync-rate=400"]));
    fill(&mut cluster.client(), "k", 1200, 50);
    let (code, well, complaint) = status(&cluster, &[]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{well}");
    assert!(well.contains("\nMIRRORED  every item has two copies ("), "{well}");
    let wait = format!("resilver wait --mirrored --proxy {}\n", cluster.proxy.addr());
    let (safe, next) =
        ("safe to restart one server: yes, after:", "next: nothing; before and after a server is restarted:");
    assert!(well.contains(&format!("\n{safe} {wait}{next} {wait}")), "{well}");
    assert!(well.contains("\npairs: 2 of 2 mirrored\n") && !well.contains('\x1b'), "{well}");
    let (code, line, _) = status(&cluster, &["--check"]);
    assert_eq!(code, Some(0));
    assert!(line.starts_with("RESILVER OK: MIRRORED, every item has two copies | clients="), "{line}");

    let (dead, backup) = (cluster.primaries[1].addr(), cluster.backups[0].addr());
    cluster.primaries[1].kill();
    cluster.wait_lost(&dead);
    let (code, text, _) = status(&cluster, &[]);
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "\nDEGRADED  1 of 2 pairs has one copy (".to_owned(),
        format!("\n! server {dead} is lost, reason "),
        format!("\n! {backup} leads one pair alone: do not touch it\nsafe to restart one server: NO\n"),
        format!("\nnext: start memcached on {dead}; it is refilled by itself\n"),
        format!("\n{dead}  primary  ! lost  "),
    ] {
        assert!(text.contains(&part), "{part}: {text}");
    }
    let (code, text, _) = status(&cluster, &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, json["word"].as_str(), json["mirrored"].as_bool()), (Some(1), Some("degraded"), Some(false)));
    assert_eq!(json["one_may_restart"], false);
    let server = json["servers"].as_array().and_then(|all| all.iter().find(|s| s["server"] == dead.as_str()));
    assert_eq!(server.map(|server| &server["state"]), Some(&"lost".into()), "{text}");
    let (code, line, _) = status(&cluster, &["--check"]);
    assert!(
        code == Some(1) && line.starts_with("RESILVER WARNING: DEGRADED, 1 of 2 pairs has one copy; next: "),
        "{line}"
    );

    // Some 600 items at 400 a second.
    cluster.primaries[1].restart();
    cluster.wait_copying(&dead);
    let mut recovering = String::new();
    wait_until("a bar", DEADLINE, || {
        recovering = status(&cluster, &[]).1;
        recovering.contains("(full)  [") || recovering.contains("\nMIRRORED")
    });
    for part in [
        "\nRECOVERING  1 of 2 pairs has one copy, and its second is being filled (".to_owned(),
        format!("\n! {backup} leads one pair alone: do not touch it\nsafe to restart one server: NO\n"),
        format!("\nresync {dead} <- {backup} (full)  ["),
        format!("\n{dead}  primary  ~ copying  "),
        format!("|{backup}  ! recovering  {backup}  "),
    ] {
        assert!(recovering.contains(&part), "{part}: {recovering}");
    }

    cluster.primaries[1].kill();
    cluster.wait_lost(&dead);
    cluster.backups[0].kill();
    cluster.wait_lost(&backup);
    let (code, text, _) = status(&cluster, &["--all"]);
    assert_eq!(code, Some(2), "{text}");
    for part in [
        "\nDARK  1 of 2 pairs refuses its keys: no copy is reachable (".to_owned(),
        format!("\nX pair {dead}|{backup} is dark, "),
        format!("\nnext: bring back {dead}, {backup}: resume it, or mend the way to it, where its process still lives"),
    ] {
        assert!(text.contains(&part), "{part}: {text}");
    }
    let row = text.lines().find(|line| line.starts_with(&format!("{dead}|{backup}"))).unwrap_or_default();
    assert_eq!(row.split_whitespace().skip(1).take(3).collect::<Vec<_>>(), ["X", "dark", "nobody"], "{text}");
    let (code, line, _) = status(&cluster, &["--check"]);
    assert!(code == Some(2) && line.starts_with("RESILVER CRITICAL: DARK, 1 of 2 pairs refuses its keys"), "{line}");

    // All is well again, but for what is lost.
    cluster.primaries[1].restart();
    cluster.backups[0].restart();
    cluster.mirrored();
    let (code, text, _) = status(&cluster, &[]);
    assert!(code == Some(0) && text.contains("\nMIRRORED  every item has two copies ("), "{text}");
    assert!(text.contains("\n! 1 pair began empty: what they held is lost (last "), "{text}");
    assert_eq!((cluster.proxy.stat("pairs_begun_empty"), cluster.proxy.stat("keys_lost")), (1, 0));
    let log = cluster.proxy.log_so_far();
    assert!(log.contains("the pairs begin empty, and what they held is lost"), "{log}");
    // Each server is asked what it holds, and has said so at the next look.
    wait_until("what the servers hold", DEADLINE, || {
        let text = status(&cluster, &[]).1;
        [&cluster.primaries[0].addr(), &dead, &backup].iter().all(|server| {
            let row = text.lines().find(|line| line.starts_with(server.as_str())).unwrap_or_default();
            row.split_whitespace().nth(4).is_some_and(|items| items.parse::<u64>().is_ok_and(|items| items > 0))
        })
    });
}

/// A listener that says this to whoever connects, and then no more.
pub fn says(words: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.write_all(words);
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    addr
}

#[test]
fn who_cannot_be_asked_is_unknown_to_a_monitor_and_named_with_what_to_do() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let (server, silent, http) = (cluster.primaries[0].addr(), says(b""), says(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    let lying = says(b"STAT mode auto\r\nSTAT pair:x\r\nEND\r\nSTAT a 1\r\nEND\r\nSTAT b 1\r\nEND\r\n");
    let cut = says(b"STAT mode auto\r\n");
    for (proxy, why) in [
        ("127.0.0.1:1", "nothing listens there: start the proxy"),
        (server.as_str(), "is no resilver"),
        (http.as_str(), "that is HTTP, as on --admin"),
        (lying.as_str(), "is no resilver, or of another version"),
        (silent.as_str(), "no answer within 2s"),
        (cut.as_str(), "no answer within 2s"),
        ("/nosuch/socket", "there is no such socket"),
    ] {
        for command in [&["status"][..], &["top", "--once"], &["key", "k"], &["verify"]] {
            let slow = [silent.as_str(), cut.as_str()].contains(&proxy);
            // Two seconds each; and these make no sense of one line of statistics.
            if (slow || proxy == lying) && command[0] != "status" {
                continue;
            }
            let begun = Instant::now();
            let (code, printed, complaint) = run(&[command, &["--proxy", proxy]].concat());
            assert!(printed.is_empty() && !matches!(code, Some(0) | None), "{command:?}: {complaint}");
            assert_eq!(code == Some(3), command == ["status"], "{command:?}: {code:?} {complaint}");
            assert!(complaint.contains(proxy), "{command:?}: {complaint}");
            // A memcached answers an operator's command that it does not know with ERROR alone.
            assert!(complaint.contains(why), "{command:?}: {complaint}");
            assert!(begun.elapsed() < DEADLINE, "{command:?}");
        }
    }
    let (code, line, complaint) = run(&["status", "--check", "--proxy", "127.0.0.1:1"]);
    assert_eq!((code, complaint.as_str()), (Some(3), ""));
    assert!(line.starts_with("RESILVER UNKNOWN: 127.0.0.1:1: "), "{line}");
    assert_eq!(status(&cluster, &["--watch", "--json"]).0, Some(3), "both at once");
}

#[test]
fn watched_it_is_shown_again_and_again() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let addr = cluster.proxy.addr();
    let mut watch =
        Running::start(resilver().args(["status", "--watch=50ms", "--proxy", &addr]).stdout(Stdio::piped()));
    let lines = BufReader::new(watch.0.stdout.take().expect("its output")).lines();
    let words = lines.map_while(Result::ok).filter(|line| line.starts_with("MIRRORED  "));
    assert_eq!(words.take(3).count(), 3);
    watch.end("INT");
}

/// It answers nothing else then, and nobody is told that its process hangs.
#[test]
fn a_standby_without_an_active_proxy_says_so() {
    let nodes = [(); 2].map(|()| Memcached::start(&[]));
    let (port, nobody) = (Port::reserve(), Port::reserve());
    let mut standby = resilver();
    standby.args(["-p", &port.number.to_string(), "-s", &nodes[0].addr(), "-b", &nodes[1].addr()]);
    standby.args(["--coordinate", &format!("etcd://{}/x", nobody.addr())]).stderr(Stdio::null());
    let _standby = Running::start(&mut standby);
    let mut told = String::new();
    wait_until("it to be told", DEADLINE, || {
        let (code, _, complaint) = run(&["status", "--proxy", &port.addr()]);
        assert_eq!(code, Some(3), "{complaint}");
        told = complaint;
        told.contains("is a standby, and no proxy of the fleet is active: clients wait; etcd on ")
    });
}
