//! Servers at their limit of connections (memcached's `-c`): probes are answered over the one that
//! stands, and whatever else connects is refused.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::cluster::{count_filled, fill};
use crate::support::command::run;
use crate::support::{Cluster, Shape, Stored, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// Clients of the server until it takes no more.
fn all_that_fit(server: &str) -> Vec<TcpStream> {
    let mut others = Vec::new();
    let mut refused = 0;
    while refused < 3 {
        let mut other = TcpStream::connect(server).expect("connected");
        other.write_all(b"version\r\n").expect("sent");
        let mut said = [0; 4];
        let full = other.read_exact(&mut said).is_err() || said == *b"ERRO";
        refused += usize::from(full);
        others.extend((!full).then_some(other));
    }
    others
}

/// Both servers of a pair take so few connections that some workers have none.
#[test]
fn clients_and_status_are_told_of_servers_that_take_no_more_connections() {
    let shape = Shape::new(1, 1).nodes(&["-c", "20"]).proxy(&["-i", "16", "--threads", "4"]);
    let cluster = Cluster::start_unmirrored(&shape);
    let mut client = cluster.client();
    wait_until("an answer that names the limit", DEADLINE, || {
        let told = client.raw_command("get k").unwrap_or_default();
        assert!(!told.contains("memcached's protocol"), "{told}");
        told.contains("its last node takes no more connections (its -c)")
    });
    wait_until("a status that names it", DEADLINE, || {
        let (_, text, _) = run(&["status", "--proxy", &cluster.proxy.addr()]);
        text.contains(" no more connections (memcached's -c): close others, or start the proxy with a lower -i")
    });
}

/// The primary is full of other clients when its backup comes back and is to be filled.
#[test]
fn a_refill_from_a_server_that_takes_no_more_connections_says_so() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).nodes(&["-c", "40"]));
    fill(&mut cluster.client(), "k", 100, 50);
    let source = cluster.primaries[0].addr();
    let others: Vec<TcpStream> = (0..50).filter_map(|_| TcpStream::connect(&source).ok()).collect();
    let backup = cluster.backups[0].addr();
    cluster.backups[0].kill();
    cluster.wait_lost(&backup);
    cluster.backups[0].restart();
    wait_until("a refill that ended early", DEADLINE, || cluster.proxy.log_so_far().contains("resync ended early"));
    let log = cluster.proxy.log_so_far();
    let line = log.lines().find(|line| line.contains("resync ended early")).expect("there");
    let said = "the source takes no more connections (its -c): ERROR Too many open connections";
    assert!(line.contains(&format!("at={source}")) && line.contains(said), "{line}");
    drop(others);
    cluster.mirrored();
    cluster.assert_rings_equal();
}

/// A server that closes idle connections is full of other clients when the proxy wants its own
/// back; one that was not idle stands.
#[test]
fn a_server_that_takes_no_more_connections_is_used_over_one_that_stands() {
    let shape = Shape::new(1, 1).nodes(&["-c", "40", "-o", "idle_timeout=3"]).proxy(&["--threads", "1", "-i", "8"]);
    let cluster = Cluster::start(&shape);
    let server = cluster.primaries[0].addr();
    let mut client = cluster.client();
    wait_until("idle connections to be closed", DEADLINE, || {
        assert_eq!(client.set("busy", b"x"), Ok(Stored::Stored));
        cluster.proxy.server(&server, "connections") == "1"
    });
    let _others = all_that_fit(&server);
    fill(&mut client, "k", 200, 50);
    assert_eq!(count_filled(&mut client, "k", 200, 50), 200);
    let log = cluster.proxy.log_so_far();
    assert!(!log.contains("node lost"), "{log}");
    assert_ne!(cluster.proxy.server(&server, "connections_refused"), "0");
    assert!(log.contains("another one that stands is used in place of one that was refused"), "{log}");
    cluster.mirrored();
}

/// What the backup refuses are the refill's own connections.
#[test]
fn a_refill_to_a_server_that_takes_no_more_connections_loses_nobody() {
    let shape = Shape::new(1, 1).nodes(&["-c", "40"]).proxy(&["--resync=manual", "--threads", "1", "-i", "2"]);
    let mut cluster = Cluster::start(&shape);
    fill(&mut cluster.client(), "k", 100, 50);
    let backup = cluster.backups[0].addr();
    cluster.backups[0].kill();
    cluster.wait_lost(&backup);
    cluster.backups[0].restart();
    wait_until("it to be back", DEADLINE, || cluster.proxy.server(&backup, "connections") == "2");
    let others = all_that_fit(&backup);
    cluster.proxy.operator(&format!("resync {backup}"));
    wait_until("a refill that ended early, and no loss of it", DEADLINE, || {
        let log = cluster.proxy.log_so_far();
        log.contains("resync ended early") && log.contains("it is used over those that stand")
    });
    let log = cluster.proxy.log_so_far();
    assert_eq!(log.matches("node lost").count(), 1, "{log}");
    drop(others);
    cluster.mirrored();
    cluster.assert_rings_equal();
}
