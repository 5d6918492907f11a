//! What the tests of the proxy's start share.

use super::{Client, Cluster, Memcached, Proxy, Stored};

/// SIGKILL, then a new proxy with the same settings.
pub fn crash_and_start(cluster: &mut Cluster) {
    cluster.proxy.kill();
    start(cluster);
}

pub fn start(cluster: &mut Cluster) {
    cluster.proxy.spawn();
    cluster.proxy.wait_listening(super::DEADLINE);
}

pub fn value(client: &mut Client, key: &str) -> Option<String> {
    let item = client.get(key).unwrap_or_else(|e| panic!("get {key}: {e}"));
    item.map(|i| String::from_utf8(i.value).expect("a text"))
}

pub fn set(client: &mut Client, key: &str, value: &str) {
    assert_eq!(client.set(key, value.as_bytes()), Ok(Stored::Stored), "set {key}");
}

/// What a later start of the same proxy logged: everything since its last "started".
pub fn last_run(cluster: &Cluster) -> String {
    let log = cluster.proxy.log();
    log.rsplit_once(" started ").map_or_else(String::new, |(_, rest)| rest.to_owned())
}

pub fn record(node: &Memcached, pair: u32) -> String {
    value(&mut node.client(), &format!("__resilver__:pair:{pair}")).unwrap_or_default()
}

/// A proxy over some of the nodes, in that order.
pub fn over(primaries: &[&Memcached], backups: &[&Memcached], more: &[&str]) -> Proxy {
    let mut args: Vec<String> =
        ["--timeout", "250ms", "--probe-timeout", "250ms", "--threads", "2"].map(str::to_owned).into();
    if !more.contains(&"--probe-interval") {
        args.extend(["--probe-interval", "50ms"].map(str::to_owned));
    }
    args.extend(more.iter().map(|&a| a.to_owned()));
    for node in primaries {
        args.extend(["-s".to_owned(), node.known_as()]);
    }
    for node in backups {
        args.extend(["-b".to_owned(), node.known_as()]);
    }
    Proxy::start(&args)
}
