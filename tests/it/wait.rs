//! `resilver wait --mirrored` over real clusters, and what it is for: a rolling restart that loses
//! nothing.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::cluster::{count_filled, fill};
use crate::support::command::told;
use crate::support::{Cluster, Load, Memcached, Mix, Proxy, Shape, seed, wait_until};

/// Exit code and everything it said.
fn wait(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, String) {
    told(&[&["wait", "--mirrored", "--proxy", &cluster.proxy.addr()], arguments].concat())
}

#[test]
fn wait_ends_when_everything_is_mirrored_and_names_what_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s").to_str().expect("a path").to_string();
    let mut cluster = Cluster::start(&Shape::new(2, 1).proxy(&["-f", &socket]));
    fill(&mut cluster.client(), "k", 1000, 50);
    assert_eq!(wait(&cluster, &[]), (Some(0), "mirrored\n".into()));
    assert_eq!(wait(&cluster, &["--proxy", &socket, "--timeout", "1m"]).0, Some(2), "--proxy twice");
    let over_socket = told(&["wait", "--mirrored", "--proxy", &socket]);
    assert_eq!(over_socket.0, Some(0), "{over_socket:?}");

    let (dead, backup) = (cluster.primaries[1].addr(), cluster.backups[0].addr());
    cluster.primaries[1].kill();
    cluster.wait_lost(&dead);
    let (code, said) = wait(&cluster, &["--timeout", "500ms"]);
    assert_eq!(code, Some(1), "{said}");
    for sentence in [
        "not mirrored within 500ms".to_string(),
        format!("pair {dead}|{backup} is degraded, reason reset"),
        format!("server {dead} is lost, reason "),
    ] {
        assert!(said.contains(&sentence), "{sentence}: {said}");
    }
    assert!(!said.contains(&cluster.primaries[0].addr()), "a healthy server is named: {said}");
    cluster.primaries[1].restart();
    let (code, said) = wait(&cluster, &["--timeout", "1m"]);
    assert_eq!(code, Some(0), "{said}");
    cluster.assert_rings_equal();
}

/// Operators get in where clients do not; everybody else is told why not.
#[test]
fn with_all_places_taken_operators_ask_and_wait_and_clients_are_told_of_the_limit() {
    for io_uring in ["auto", "off"] {
        let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["-n", "4", "--io-uring", io_uring]));
        let _clients: Vec<_> = (0..4)
            .map(|_| {
                let mut client = cluster.client();
                assert_eq!(client.raw_command("set k 0 0 1\r\nx").as_deref(), Ok("STORED"), "a place of its own");
                client
            })
            .collect();
        assert!(cluster.proxy.status().mirrored(), "resync status on a place beyond the limit");
        assert_eq!(wait(&cluster, &["--timeout", "1m"]), (Some(0), "mirrored\n".into()));
        for refused in ["get k", "set k 0 0 1\r\ny", "nonsense"] {
            let mut client = cluster.client();
            assert_eq!(client.raw_command(refused).as_deref(), Ok("ERROR Too many open connections"), "{refused}");
            assert!(client.raw_command("version").is_err(), "it is closed");
        }
        // Who takes these places and says nothing gives way.
        let _silent: Vec<_> = (0..40).map(|_| cluster.client()).collect();
        let mut operator = cluster.client();
        assert!(operator.stat_lines("stats").is_ok_and(|lines| !lines.is_empty()));
        // Operators have taken all of them: `wait` says what it is told.
        let mut operators = vec![operator];
        loop {
            let mut operator = cluster.client();
            match operator.raw_command("version").as_deref() {
                Ok(line) if line.starts_with("VERSION") => operators.push(operator),
                Ok("ERROR Too many open connections") => break,
                other => panic!("{other:?} after {} operators", operators.len()),
            }
            assert!(operators.len() <= 64, "without bound");
        }
        let (code, said) = wait(&cluster, &["--timeout", "500ms"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("ERROR Too many open connections"), "{said}");
        let log = cluster.proxy.log();
        assert!(log.contains("clients are refused"), "{log}");
    }
}

/// The proxy has not noticed, and says mirrored: `wait` does not.
#[test]
fn wait_does_not_believe_a_proxy_that_has_not_noticed_a_lost_memory() {
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--probe-interval", "1h"]));
    fill(&mut cluster.client(), "k", 1000, 50);
    let backup = cluster.backups[0].addr();
    assert_eq!(cluster.backups[0].client().raw_command("flush_all").as_deref(), Ok("OK"));
    assert!(cluster.proxy.status().mirrored(), "it was noticed: nothing is tested");
    let (code, said) = wait(&cluster, &["--timeout", "500ms"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("server {backup} does not hold the memory that the proxy knows")), "{said}");
    assert_eq!(wait(&cluster, &["--timeout", "500ms", "--proxy-only"]).0, Some(0));

    // A server that hangs and was not noticed either is no server that is up.
    cluster.primaries[0].pause();
    let (code, said) = wait(&cluster, &["--timeout", "1ms"]);
    cluster.primaries[0].resume();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("server {} does not answer from here", cluster.primaries[0].addr())), "{said}");

    cluster.proxy.operator(&format!("resync {backup}"));
    let (code, said) = wait(&cluster, &["--timeout", "1m"]);
    assert_eq!((code, cluster.assert_rings_equal().len()), (Some(0), 1000), "{said}");
}

/// Over a unix socket and IPv6, servers with IPv6 addresses: the script names each host and port,
/// and asks the proxy for them.
#[test]
fn the_rolling_restart_takes_every_address_that_the_proxy_takes() {
    let (a, b) = (Memcached::start(&["-l", "::1"]), Memcached::start(&["-l", "::1"]));
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let ipv6 = |node: &Memcached| format!("[::1]:{}", node.addr().rsplit(':').next().expect("a port"));
    let args = ["-s", &ipv6(&a), "-b", &ipv6(&b), "-f", &socket.display().to_string(), "-l", "::1"];
    let proxy = Proxy::start(&args.map(str::to_owned));
    let port = proxy.addr().rsplit(':').next().expect("a port").to_owned();
    for addr in [socket.display().to_string(), format!("[::1]:{port}"), proxy.addr()] {
        let said = Command::new("bash")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/rolling-restart.sh"))
            .args(["-P", &addr, "-t", "1m", "-r"])
            .arg(Proxy::binary())
            .arg("echo of %h port %p")
            .stdin(Stdio::null())
            .output()
            .expect("run the script");
        let (out, why) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert_eq!(said.status.code(), Some(0), "{addr}: {out}{why}");
        for node in [&a, &b] {
            let port = node.addr().rsplit(':').next().expect("a port").to_owned();
            assert!(out.contains(&format!("\nof ::1 port {port}\n")), "{addr}: {out}");
        }
    }
}

/// Every server restarted, by the script that the documents recommend, while clients work.
#[test]
fn a_rolling_restart_of_every_server_loses_nothing() {
    const KEYS: usize = 200_000;
    let mut cluster = Cluster::start(&Shape::new(2, 2));
    fill(&mut cluster.client(), "bulk", KEYS, 60);
    let load = Load::start(&cluster.proxy.addr(), Mix::small(seed("rolling restart")));
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().display();
    // The processes are ours: the script's command asks this test to restart one, and waits until
    // that is done.
    let ask = format!("touch {path}/ask.%p; until [ -e {path}/done.%p ]; do sleep 0.02; done");
    let mut script = Command::new("bash")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/rolling-restart.sh"))
        .args(["-P", &cluster.proxy.addr(), "-t", "2m", "-r"])
        .arg(Proxy::binary())
        .arg(ask)
        .stdin(Stdio::null())
        .spawn()
        .expect("run the script");
    let mut restarted = Vec::new();
    let mut ended = None;
    wait_until("the rolling restart to end", Duration::from_secs(300), || {
        for node in cluster.primaries.iter_mut().chain(&mut cluster.backups) {
            let port = node.addr().split(':').next_back().expect("a port").to_string();
            if dir.path().join(format!("ask.{port}")).exists() && !restarted.contains(&port) {
                load.mark(&format!("restart {}", node.addr()));
                node.restart();
                std::fs::write(dir.path().join(format!("done.{port}")), "").expect("say that it is done");
                restarted.push(port);
            }
        }
        ended = script.try_wait().expect("wait for the script");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    load.mark("the script has ended");
    assert_eq!(restarted.len(), 4);
    assert!(cluster.proxy.status().mirrored());
    for node in cluster.primaries.iter().chain(&cluster.backups) {
        assert!(cluster.proxy.server(&node.addr(), "lost") != "0", "{} was not restarted under the proxy", node.addr());
    }
    let mut client = cluster.client();
    assert_eq!(count_filled(&mut client, "bulk", KEYS, 60), KEYS, "keys lost");
    let cluster = cluster.healed_and_complete(load);
    assert!(!cluster.backups.iter().any(Memcached::is_running));
    assert_eq!(count_filled(&mut client, "bulk", KEYS, 60), KEYS, "keys lost after the backups died");
}
