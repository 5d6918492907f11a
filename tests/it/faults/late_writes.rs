//! Writes that sat in a hung node's sockets must not land after their keys were repaired: a node is
//! taken back only when every connection that was given up has answered.

use std::time::{Duration, Instant};

use crate::support::client::{show, storage};
use crate::support::{Client, Cluster, Hold, RingMap, Shape, Stored};

const CLIENTS: usize = 24;
const KEYS: usize = 20;

fn key(client: usize, k: usize) -> String {
    format!("late:{client}:{k}")
}

/// Large values, so that no socket buffer holds them all.
fn value(name: &str, client: usize, k: usize) -> Vec<u8> {
    format!("{name} of {};", key(client, k)).into_bytes().repeat(2000)
}

fn pipelined_sets(clients: &mut [Client], name: &str) {
    for (c, client) in clients.iter_mut().enumerate() {
        let sets: Vec<u8> = (0..KEYS).flat_map(|k| storage("set", &key(c, k), 0, 0, &value(name, c, k), "")).collect();
        client.send(&sets).expect("send");
    }
    for (c, client) in clients.iter_mut().enumerate() {
        for k in 0..KEYS {
            assert_eq!(client.stored(), Ok(Stored::Stored), "set {} to {name}", key(c, k));
        }
    }
}

fn assert_newest(ring: &RingMap, place: &str) {
    let late = (0..CLIENTS)
        .flat_map(|c| (0..KEYS).map(move |k| (c, k)))
        .filter(|&(c, k)| ring.get(key(c, k).as_bytes()).is_none_or(|item| item.value != value("newest", c, k)))
        .count();
    assert_eq!(late, 0, "of {} keys are not what was acknowledged last, {place}", CLIENTS * KEYS);
}

/// Leaves `hang` to stop the primary with writes in its sockets, and `wake` to let it execute them.
fn late_writes(cluster: &Cluster, hang: impl Fn(), wake: impl Fn()) {
    let primary = cluster.primaries[0].known_as();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| cluster.client()).collect();
    pipelined_sets(&mut clients, "first");
    hang();
    // These sit in the sockets of a node that does not read them; the other copy acknowledges them
    // after the timeout.
    pipelined_sets(&mut clients, "piled up");
    cluster.wait_lost(&primary);
    pipelined_sets(&mut clients, "newest");
    // A proxy that does not care refills the node now; one that does waits, however long.
    let begun = Instant::now();
    let mut healed_too_early = false;
    while begun.elapsed() < Duration::from_secs(2) && !healed_too_early {
        healed_too_early = cluster.proxy.status().mirrored();
        std::thread::sleep(Duration::from_millis(10));
    }
    wake();
    cluster.mirrored();
    // What lands late lands now.
    std::thread::sleep(Duration::from_millis(500));
    let mut client = cluster.client();
    for c in 0..CLIENTS {
        for k in 0..KEYS {
            let item = client.get(&key(c, k)).unwrap_or_else(|e| panic!("get {}: {e}", key(c, k)));
            let found = item.map(|i| i.value);
            assert!(found == Some(value("newest", c, k)), "{} is stale: {:?}", key(c, k), found.as_deref().map(show));
        }
    }
    cluster.assert_rings_equal();
    assert_newest(&cluster.primary_ring(), "on the primary");
    assert_newest(&cluster.backup_ring(), "on the backup");
    assert!(!healed_too_early, "taken back with writes unanswered");
}

/// New connections work, the old ones hang: probes say that the node is fine.
#[test]
fn g3_a_node_is_not_taken_back_while_old_connections_hold_unanswered_writes() {
    let shape = Shape::new(1, 1).forwarded().proxy(&["--probe-successes", "1", "-i", "8", "--threads", "2"]);
    let cluster = Cluster::start(&shape);
    let network = cluster.primaries[0].network();
    late_writes(&cluster, || network.hold_existing(Hold::ToNode), || network.hold(Hold::Nothing));
}

/// The process hangs, with megabytes in its sockets, and wakes up. (memcached mostly executes them
/// before it answers three probes; the test above is the one that fails without the rule.)
#[test]
fn g3_writes_in_a_hung_nodes_sockets_never_land_on_repaired_keys() {
    let shape = Shape::new(1, 1).proxy(&["--probe-successes", "1", "-i", "32", "--threads", "2"]);
    let cluster = Cluster::start(&shape);
    for _ in 0..2 {
        let node = &cluster.primaries[0];
        late_writes(&cluster, || node.pause(), || node.resume());
    }
}
