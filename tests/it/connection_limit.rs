//! Servers at their limit of connections (memcached's `-c`): probes are answered over the one that
//! stands, and whatever else connects is refused.

use std::net::TcpStream;
use std::time::Duration;

use crate::status::run;
use crate::support::cluster::fill;
use crate::support::{Cluster, Shape, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// Both servers of a pair take fewer connections than the workers want.
#[test]
fn clients_and_status_are_told_of_servers_that_take_no_more_connections() {
    let shape = Shape::new(1, 1).nodes(&["-c", "20"]).proxy(&["-i", "16"]);
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
