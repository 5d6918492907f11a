//! `resilver status` over a real cluster: while everything is well, while a primary is gone, and
//! while nobody is left.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use crate::support::cluster::fill;
use crate::support::memcached::signal;
use crate::support::{Cluster, Proxy, Shape};

/// Exit code, what it printed, what it complained of.
fn status(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, String, String) {
    let addr = cluster.proxy.addr();
    let mut command = Command::new(Proxy::binary());
    command.args(["status", "--proxy", &addr]).args(arguments).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().expect("run resilver status");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn status_says_in_one_word_how_it_is_and_what_to_do() {
    let mut cluster = Cluster::start(&Shape::new(2, 1));
    fill(&mut cluster.client(), "k", 200, 50);
    let (code, well, complaint) = status(&cluster, &[]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{well}");
    assert!(well.contains("\nMIRRORED  every item has two copies\n"), "{well}");
    assert!(well.contains("\npairs: 2 of 2 mirrored\n") && !well.contains('\x1b'), "{well}");

    let dead = cluster.primaries[1].addr();
    cluster.primaries[1].kill();
    cluster.wait_lost(&dead);
    let (code, text, _) = status(&cluster, &[]);
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "\nDEGRADED  1 of 2 pairs have one copy\n".to_owned(),
        format!("\n! server {dead} is lost, reason "),
        format!("\nnext: start memcached on {dead}; it is refilled by itself\n"),
    ] {
        assert!(text.contains(&part), "{part}: {text}");
    }
    let (code, text, _) = status(&cluster, &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, json["word"].as_str(), json["mirrored"].as_bool()), (Some(1), Some("degraded"), Some(false)));
    let server = json["servers"].as_array().and_then(|all| all.iter().find(|s| s["server"] == dead.as_str()));
    assert_eq!(server.map(|server| &server["state"]), Some(&"lost".into()), "{text}");

    let backup = cluster.backups[0].addr();
    cluster.backups[0].kill();
    cluster.wait_lost(&backup);
    let (code, text, _) = status(&cluster, &["--all"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("\nDARK  1 of 2 pairs refuse their keys"), "{text}");
    assert!(text.contains("resilver ask resync lead HOST:PORT"), "{text}");
}

#[test]
fn who_cannot_be_asked_is_unknown_to_a_monitor_and_named() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let server = cluster.primaries[0].addr();
    for (proxy, why) in [("127.0.0.1:1", "refused"), (server.as_str(), "is no resilver")] {
        let said = Command::new(Proxy::binary()).args(["status", "--proxy", proxy]).output().expect("run");
        let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!((said.status.code(), said.stdout.len()), (Some(3), 0), "{complaint}");
        assert!(complaint.contains(why) && complaint.contains(proxy), "{complaint}");
    }
    assert_eq!(status(&cluster, &["--watch", "--json"]).0, Some(3), "both at once");
}

#[test]
fn watched_it_is_shown_again_and_again() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let mut child = Command::new(Proxy::binary())
        .args(["status", "--watch=50ms", "--proxy", &cluster.proxy.addr()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("run resilver status");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let words = lines.map_while(Result::ok).filter(|line| line.starts_with("MIRRORED  "));
    assert_eq!(words.take(3).count(), 3);
    signal(child.id(), "INT");
    child.wait().expect("it ends");
}
