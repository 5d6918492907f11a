//! Several proxies, and lists of servers that differ: by mistake, or because a server is taken out.

use std::time::Duration;

use crate::support::fleet::{args, shown};
use crate::support::{Client, DEADLINE, Memcached, Proxy, Stored, wait_until};

const KEYS: usize = 200;

fn key(n: usize) -> String {
    format!("k{n}")
}

fn fill(client: &mut Client, value: &[u8]) {
    for n in 0..KEYS {
        wait_until("it is stored", DEADLINE, || client.set(&key(n), value) == Ok(Stored::Stored));
    }
}

/// How many of them are there, with this value.
fn held(client: &mut Client, value: &[u8]) -> usize {
    (0..KEYS).filter(|&n| client.get(&key(n)).is_ok_and(|item| item.is_some_and(|item| item.value == value))).count()
}

/// Seen: the wrong one of two standbys took over, and no item was readable after.
#[test]
fn a_proxy_with_another_list_does_not_take_the_place_of_one_that_is_stopped() {
    let dir = tempfile::tempdir().expect("a folder");
    let (primaries, backups) = ([Memcached::start(&[])], [Memcached::start(&[])]);
    let fleet = format!("file:{}", dir.path().join("record").display());
    let right = args(&fleet, &primaries, &backups, &["--lease", "1s"]);
    let active = Proxy::start(&right);
    active.wait_mirrored(DEADLINE);
    fill(&mut active.client(), b"v");
    let wrong = args(&fleet, &backups, &primaries, &["--lease", "1s", "--takeover-wait", "10ms"]);
    let wrong = Proxy::start_unready(&wrong);
    wait_until("it has seen who is active", DEADLINE, || shown(&wrong, "active") != "none");
    let mut active = active;
    assert_eq!(active.stop().code(), Some(0));
    // Longer than it would wait for a lease: that it does nothing is no event.
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(shown(&wrong, "role"), "standby");
    let again = Proxy::start(&right);
    again.wait_mirrored(DEADLINE);
    assert_eq!(held(&mut again.client(), b"v"), KEYS);
}

/// The list of lost copies numbers the pairs of the list before. (Seen: read with the new one it
/// left no copy that counts, and all servers were purged.)
#[test]
fn a_dead_server_is_taken_out_of_the_list_and_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut primaries = [Memcached::start(&[]), Memcached::start(&[])];
    let backups = [Memcached::start(&[]), Memcached::start(&[])];
    let fleet = format!("file:{}", dir.path().join("record").display());
    let mut proxy = Proxy::start(&args(&fleet, &primaries, &backups, &["--lease", "1s"]));
    proxy.wait_mirrored(DEADLINE);
    fill(&mut proxy.client(), b"before");
    primaries[0].kill();
    fill(&mut proxy.client(), b"after");
    assert_eq!(proxy.stop().code(), Some(0));
    let proxy = Proxy::start(&args(&fleet, &primaries[1..], &backups, &["--lease", "1s"]));
    proxy.wait_mirrored(DEADLINE);
    assert_eq!(held(&mut proxy.client(), b"after"), KEYS);
}
