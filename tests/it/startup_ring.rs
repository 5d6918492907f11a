//! The list of servers changes between two runs of the proxy, and two proxies work on the same
//! nodes: real processes.

use resilver::internals::ring::{Distribution, Topology};

use crate::support::client::storage;
use crate::support::port::Port;
use crate::support::start::{over, record, set, start, value};
use crate::support::{Client, Cluster, Failure, Memcached, Proxy, Shape, Stored, wait_until};

// ---- changes of the ring ------------------------------------------------------------------------

fn wait_clean(nodes: &[&Memcached]) {
    wait_until("the nodes to be clean", crate::support::DEADLINE, || {
        nodes.iter().all(|n| value(&mut n.client(), "__resilver__:ring").is_some_and(|v| v.ends_with(" clean")))
    });
}

const KEYS: usize = 300;

fn write_all(proxy: &Proxy, value: &str) {
    let mut client = proxy.client();
    let batch: Vec<u8> = (0..KEYS).flat_map(|i| storage("set", &format!("k{i}"), 0, 0, value.as_bytes(), "")).collect();
    client.send(&batch).expect("send");
    for i in 0..KEYS {
        assert_eq!(client.stored(), Ok(Stored::Stored), "k{i}");
    }
}

/// Reads every key until all pairs are mirrored, and once more: only `value` or nothing may come.
/// Returns how many came in the end.
fn only(proxy: &Proxy, expected: &str) -> usize {
    let mut client = proxy.client();
    let mut read = || {
        (0..KEYS)
            .filter(|i| match client.get(&format!("k{i}")) {
                Ok(Some(item)) => {
                    assert_eq!(String::from_utf8_lossy(&item.value), expected, "k{i} is out of date");
                    true
                }
                // A pair of which no node held anything that counts.
                Ok(None) => false,
                Err(other) => panic!("get k{i}: {other}"),
            })
            .count()
    };
    wait_until("mirrored", crate::support::DEADLINE, || {
        read();
        proxy.status().mirrored()
    });
    read()
}

fn nodes() -> [Memcached; 4] {
    std::array::from_fn(|_| Memcached::start(&[]))
}

/// Writes `one` under these primaries, and stops cleanly.
fn first_run(primaries: &[&Memcached], backup: &Memcached) {
    let mut proxy = over(primaries, &[backup], &[]);
    write_all(&proxy, "one");
    proxy.wait_mirrored(crate::support::DEADLINE);
    assert!(proxy.stop().success());
}

#[test]
fn a_primary_added_and_removed_again_leaves_no_old_values() {
    let [a, b, c, m] = nodes();
    first_run(&[&a, &b], &m);

    let mut proxy = over(&[&a, &b, &c], &[&m], &[]);
    only(&proxy, "one");
    write_all(&proxy, "two");
    wait_clean(&[&a, &b, &c, &m]);
    assert_eq!(only(&proxy, "two"), KEYS);
    assert!(proxy.stop().success());

    let proxy = over(&[&a, &b], &[&m], &[]);
    only(&proxy, "two");
}

/// The nodes still hold keys that moved when the proxy dies: then nothing on them is trusted under
/// yet another ring.
#[test]
fn a_crash_before_moved_keys_are_deleted_leaves_no_old_values() {
    let [a, b, c, m] = nodes();
    first_run(&[&a, &b], &m);

    // Nothing is cleaned before the first probe.
    let mut proxy = over(&[&a, &b, &c], &[&m], &["--probe-interval", "60s", "--resync=manual"]);
    write_all(&proxy, "two");
    proxy.kill();
    assert!(value(&mut a.client(), "__resilver__:ring").is_some_and(|v| v.ends_with(" dirty")));

    let mut proxy = over(&[&a, &b], &[&m], &["--probe-interval", "60s"]);
    only(&proxy, "two");
    // The distrust outlives a crash of the proxy that began with it.
    proxy.kill();
    let proxy = over(&[&a, &b], &[&m], &[]);
    only(&proxy, "two");
}

/// The same ring again after a crash: cleaning goes on, and the nodes are trusted meanwhile.
#[test]
fn a_crash_before_moved_keys_are_deleted_costs_nothing_under_the_same_ring() {
    let [a, b, c, m] = nodes();
    first_run(&[&a, &b], &m);
    let mut proxy = over(&[&a, &b, &c], &[&m], &["--probe-interval", "60s", "--resync=manual"]);
    write_all(&proxy, "two");
    proxy.kill();
    let proxy = over(&[&a, &b, &c], &[&m], &[]);
    assert_eq!(only(&proxy, "two"), KEYS);
    wait_clean(&[&a, &b, &c, &m]);
    assert_eq!(only(&proxy, "two"), KEYS);
}

/// Items of its own, so that emptying it takes a while.
fn fill(node: &Memcached, items: usize) {
    let mut client = node.client();
    let batch: Vec<u8> = (0..items).flat_map(|i| storage("set", &format!("own{i}"), 0, 0, b"old", "")).collect();
    client.send(&batch).expect("send");
    (0..items).for_each(|_| assert_eq!(client.stored(), Ok(Stored::Stored)));
}

/// The list changes again before the nodes have lost the keys that moved: nothing on them counts,
/// so every pair begins with a purge of both. Clients that ask meanwhile wait.
#[test]
fn requests_wait_until_a_pair_whose_nodes_are_both_out_of_date_has_a_leader() {
    let [a, b, c, m] = nodes();
    first_run(&[&a, &b], &m);
    let mut proxy = over(&[&a, &b, &c], &[&m], &["--probe-interval", "60s", "--resync=manual"]);
    write_all(&proxy, "two");
    assert!(proxy.stop().success());
    [&a, &b, &m].iter().for_each(|node| fill(node, 20_000));
    let mut proxy = over(&[&a, &b], &[&m], &[]);
    write_all(&proxy, "three");
    assert_eq!(only(&proxy, "three"), KEYS);
    assert!(proxy.stop().success());
    let log = proxy.log();
    assert_eq!(log.matches("no copy that counts is left").count(), 2, "no pair had to wait");
    let purge = format!("purging what the node holds of them node={}", m.addr());
    assert_eq!(log.matches(&purge).count(), 1, "one pass over the node for all its pairs");
}

/// Two nodes that cannot list their keys, so that neither can be emptied, and of which nothing
/// counts any more.
fn out_of_date_for_good(more: &[&str]) -> (Memcached, Memcached, Proxy) {
    let [a, b] = std::array::from_fn(|_| Memcached::start(&["-X"]));
    first_run(&[&a], &b);
    let rings = || [&a, &b].map(|node| value(&mut node.client(), "__resilver__:ring"));
    let first = rings();
    let mut proxy = over(&[&b], &[&a], more);
    // One that is stopped before that has changed nothing.
    wait_until("the other list to be written", crate::support::DEADLINE, || {
        std::iter::zip(rings(), &first).all(|(now, first)| now != *first)
    });
    assert!(proxy.stop().success());
    let proxy = over(&[&a], &[&b], more);
    (a, b, proxy)
}

fn refusal(proxy: &Proxy) -> String {
    match proxy.client().get("k1") {
        Err(Failure::Server(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn wait_logged(proxy: &Proxy, words: &str) {
    wait_until("it in the log", crate::support::DEADLINE, || proxy.log_so_far().contains(words));
}

#[test]
fn requests_of_a_pair_that_nobody_comes_to_lead_are_refused_in_the_end() {
    let (_a, _b, proxy) = out_of_date_for_good(&["--leader-timeout", "500ms"]);
    for _ in 0..2 {
        let why = refusal(&proxy);
        assert!(why.contains("out of date and not purged yet"), "{why}");
    }
    wait_logged(&proxy, "no node of the pair came to lead in time");
}

/// Not before the last of its nodes is lost either; then at once.
#[test]
fn requests_of_a_pair_that_nobody_can_come_to_lead_are_refused_at_once() {
    let (mut a, mut b, proxy) = out_of_date_for_good(&["--leader-timeout", "10m"]);
    wait_logged(&proxy, "no copy that counts is left");
    [&mut a, &mut b].into_iter().for_each(Memcached::kill);
    refusal(&proxy);
    wait_logged(&proxy, "no node of the pair came to lead in time");
}

#[test]
fn a_primary_that_missed_a_period_is_not_trusted_with_its_own_marker() {
    let [a, b, c, m] = nodes();
    first_run(&[&a, &b, &c], &m);
    let mut proxy = over(&[&a, &b], &[&m], &[]);
    write_all(&proxy, "two");
    wait_clean(&[&a, &b, &m]);
    proxy.wait_mirrored(crate::support::DEADLINE);
    assert!(proxy.stop().success());
    // c carries the markers of exactly this ring, and of a clean stop.
    let proxy = over(&[&a, &b, &c], &[&m], &[]);
    only(&proxy, "two");
}

#[test]
fn an_order_changed_and_changed_back_leaves_no_old_values() {
    let (a, b, m) = (Memcached::start(&[]), Memcached::start(&[]), Memcached::start(&[]));
    for (order, value) in [([&a, &b], "one"), ([&b, &a], "two"), ([&a, &b], "three"), ([&b, &a], "four")] {
        let mut proxy = over(&order, &[&m], &[]);
        write_all(&proxy, value);
        wait_clean(&[&a, &b, &m]);
        assert_eq!(only(&proxy, value), KEYS);
        assert!(proxy.stop().success());
    }
    let proxy = over(&[&a, &b], &[&m], &[]);
    only(&proxy, "four");
}

/// A proxy marks a node that is out of date, and dies before it has recorded anything: the marker
/// must still say what the node is.
#[test]
fn a_node_marked_as_stale_is_purged_though_no_record_says_so() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    set(&mut cluster.client(), "k", "new");
    assert!(cluster.proxy.stop().success());
    let mut primary = cluster.primaries[0].client();
    let mark = value(&mut primary, "__resilver__:ring").expect("a ring marker");
    set(&mut primary, "__resilver__:ring", &mark.replace(" clean", " stale"));
    set(&mut primary, "k", "old");
    for node in [&cluster.primaries[0], &cluster.backups[0]] {
        assert_eq!(node.client().delete("__resilver__:pair:0"), Ok(true));
    }
    start(&mut cluster);
    let mut client = cluster.client();
    wait_until("mirrored", crate::support::DEADLINE, || {
        assert_eq!(value(&mut client, "k").as_deref(), Some("new"));
        cluster.proxy.status().mirrored()
    });
    cluster.assert_rings_equal();
    wait_clean(&[&cluster.primaries[0], &cluster.backups[0]]);
}

// ---- terms --------------------------------------------------------------------------------------

/// How far a token's term is above this one. (Tokens carry its lower 15 bits.)
fn above(token: u64, term: u64) -> u64 {
    (token >> 48).wrapping_sub(term) % (1 << 15)
}

/// The term that the pair's record on a node names.
fn term_on(node: &Memcached, pair: u32) -> u64 {
    record(node, pair).split(' ').nth(3).and_then(|term| term.parse().ok()).expect("a term")
}

fn token_of(client: &mut Client, key: &str) -> u64 {
    client.gets(key).expect("an answer").expect("an item").cas.expect("a token")
}

/// The pair's record on a node names this term, as one of a longer history would.
fn write_term(node: &Memcached, pair: u32, term: u64) {
    let found = record(node, pair);
    let mut words: Vec<String> = found.split(' ').map(str::to_owned).collect();
    words[3] = term.to_string();
    set(&mut node.client(), &format!("__resilver__:pair:{pair}"), &words.join(" "));
}

/// A key that belongs to the first of two primaries, and to the second of three.
fn key_that_moves() -> String {
    let pair = |primaries: usize, key: &str| {
        let spec = |i: usize| format!("10.0.0.{i}").parse().expect("an address");
        let ring: Vec<_> = (0..primaries).map(spec).collect();
        Topology::new(&ring, &[spec(9)], Distribution::Modula).pair_of(key.as_bytes()).index()
    };
    let moves = |key: &String| pair(2, key) == 0 && pair(3, key) == 1;
    (0..KEYS).map(|i| format!("k{i}")).find(moves).expect("a key that moves")
}

/// A key moves to another pair, which has had other leaders: its term is the one that the token was
/// taken under, or will be, and its leader's own id of the item the same. Both are brought about;
/// by themselves they take many restarts.
#[test]
fn a_token_of_the_list_before_never_wins() {
    let [a, b, c, m] = nodes();
    fill(&a, 2_000);
    let mut proxy = over(&[&a, &b], &[&m], &[]);
    write_all(&proxy, "one");
    proxy.wait_mirrored(crate::support::DEADLINE);
    let mut client = proxy.client();
    let moved = key_that_moves();
    let tokens: Vec<u64> = (0..500)
        .map(|_| {
            set(&mut client, &moved, "one");
            token_of(&mut client, &moved)
        })
        .collect();
    let term = term_on(&a, 0);
    assert!(tokens.iter().all(|&t| above(t, term) == 0));
    assert!(proxy.stop().success());
    [&a, &b, &m].iter().for_each(|node| write_term(node, 1, term.saturating_sub(2)));

    let proxy = over(&[&a, &b, &c], &[&m], &[]);
    proxy.wait_mirrored(crate::support::DEADLINE);
    let mut client = proxy.client();
    let oldest = tokens[0] & ((1 << 48) - 1);
    let mut beside = b.client();
    set(&mut client, &moved, "two");
    // The proxy's own small items take ids too: some have no token.
    let with = |own: u64| tokens.iter().find(|&&t| t & ((1 << 48) - 1) == own);
    let old = loop {
        let own = token_of(&mut beside, &moved);
        match with(own) {
            Some(old) => break *old,
            None => assert!(own < oldest + 400, "the server's ids went past all that tokens name: {own}"),
        }
        if own < oldest {
            set(&mut beside, "beside", "");
        }
        set(&mut client, &moved, "two");
    };
    assert_eq!(client.cas(&moved, 0, 0, b"an old token won", old), Ok(Stored::Exists));
    assert_eq!(value(&mut client, &moved).as_deref(), Some("two"));
}

/// A server that was away at the start names a term far above the present ones: they move above it.
#[test]
fn terms_rise_above_what_a_server_names_that_comes_late() {
    let [a, mut b, m] = std::array::from_fn(|_| Memcached::start(&[]));
    first_run(&[&a, &b], &m);
    // It belongs to the first.
    let key = key_that_moves();
    let first = term_on(&a, 0);
    let far = first + 5_000;
    write_term(&b, 0, far);
    b.pause();
    let mut proxy = over(&[&a, &b], &[&m], &[]);
    let mut client = proxy.client();
    let before = token_of(&mut client, &key);
    assert!((1..4_000).contains(&above(before, first)), "{before:x} after {first}");
    b.resume();
    proxy.wait_mirrored(crate::support::DEADLINE);
    assert_eq!(client.cas(&key, 0, 0, b"an old token won", before), Ok(Stored::Exists));
    let after = token_of(&mut client, &key);
    assert!((1..100).contains(&above(after, far)), "{after:x} after {far}");
    assert_eq!(client.cas(&key, 0, 0, b"one", after), Ok(Stored::Stored));
    // The next start knows it too, also where no record says so.
    assert!(proxy.stop().success());
    [&a, &m].iter().for_each(|node| (0..2).for_each(|pair| write_term(node, pair, 1)));
    b.kill();
    let proxy = over(&[&a, &b], &[&m], &[]);
    let last = token_of(&mut proxy.client(), &key);
    assert!((2..2_000).contains(&above(last, far)), "{last:x} after {far}");
}

// ---- two proxies --------------------------------------------------------------------------------

#[test]
fn a_second_proxy_is_noticed_and_nobody_is_promoted_under_it() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    set(&mut cluster.client(), "k", "one");
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    let mut second = over(&[&cluster.primaries[0]], &[&cluster.backups[0]], &[]);
    cluster.proxy.wait_status("the first to notice", crate::support::DEADLINE, |s| {
        s.all.get(&format!("node:{primary}:reason")).is_some_and(|r| r == "foreign_session")
            && s.all.get(&format!("node:{backup}:reason")).is_some_and(|r| r == "foreign_session")
            && s.pair(&primary, &backup, "reason") == "foreign_session"
    });
    wait_until("an error in the log", crate::support::DEADLINE, || {
        cluster.proxy.log_so_far().matches("another proxy works on this node").count() == 2
    });
    // Neither calls itself mirrored; the second one uses both copies all the same.
    let both_used = |s: &crate::support::proxy::Status| {
        let used = s.pair(&primary, &backup, "state") == "incomplete" && s.node(&primary) == "up";
        !s.mirrored() && used && s.verify("state") == "done"
    };
    second.wait_status("the second to use both", crate::support::DEADLINE, both_used);
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("one"), "what is led goes on being led");
    cluster.primaries[0].pause();
    cluster.wait_lost(&primary);
    let answer = cluster.client().get("k");
    assert!(matches!(answer, Err(Failure::Server(_))), "the follower was promoted: {answer:?}");
    wait_until("the second to go on without the primary", crate::support::DEADLINE, || {
        second.client().set("k", b"two") == Ok(Stored::Stored)
    });
    cluster.primaries[0].resume();
    second.wait_status("the second to use both again", crate::support::DEADLINE, both_used);
    assert!(second.stop().success());
    // The second one's session is closed on both nodes: the first takes over again, and makes the
    // copies equal.
    cluster.proxy.wait_status("the first to be alone", crate::support::DEADLINE, |s| {
        s.mirrored() && s.pair(&primary, &backup, "reason") == "none"
    });
    assert_eq!(value(&mut cluster.client(), "k").as_deref(), Some("two"));
    set(&mut cluster.client(), "k", "three");
    cluster.assert_rings_equal();
    // And its own session is on the nodes: a clean stop is one.
    assert!(cluster.proxy.stop().success());
    let session = |n: &Memcached| value(&mut n.client(), "__resilver__:session").unwrap_or_default();
    assert!(session(&cluster.primaries[0]).ends_with(" closed") && session(&cluster.backups[0]).ends_with(" closed"));
}

/// An hour would be a word's time.
#[test]
fn after_a_clean_stop_no_word_of_an_earlier_proxy_is_waited_for() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--probe-interval", "1h"]));
    set(&mut cluster.client(), "k", "one");
    assert!(cluster.proxy.stop().success());
    let again = over(&[&cluster.primaries[0]], &[&cluster.backups[0]], &["--probe-interval", "1h"]);
    again.wait_mirrored(crate::support::DEADLINE);
}

#[test]
fn a_proxy_that_stops_closes_no_other_ones_session() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--probe-interval", "60s"]));
    let second = over(&[&cluster.primaries[0]], &[&cluster.backups[0]], &[]);
    second.wait_mirrored(crate::support::DEADLINE);
    assert!(cluster.proxy.stop().success());
    let session = value(&mut cluster.primaries[0].client(), "__resilver__:session").unwrap_or_default();
    assert!(session.ends_with(" open"), "{session}: a crash of the second proxy would pass for a clean stop");
}

/// A refill under way knows nothing of what another proxy has written to the leader alone: it
/// begins anew when that one is gone.
#[test]
fn a_refill_does_not_outlive_another_proxys_writes() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync-rate", "200"]));
    write_all(&cluster.proxy, "one");
    cluster.backups[0].restart();
    let addrs = [cluster.primaries[0].addr(), cluster.backups[0].addr()];
    cluster.wait_copying(&addrs[1]);
    let foreign = |s: &crate::support::proxy::Status| {
        addrs.iter().filter(|addr| s.all[&format!("node:{addr}:reason")] == "foreign_session").count()
    };
    // It fills nothing, so it writes to the primary alone.
    let mut second = over(&[&cluster.primaries[0]], &[&cluster.backups[0]], &["--resync=manual"]);
    cluster.proxy.wait_status("it to be noticed", crate::support::DEADLINE, |s| foreign(s) == 2);
    write_all(&second, "two");
    wait_until("some copies", crate::support::DEADLINE, || {
        let status = cluster.proxy.status();
        status.node(&addrs[1]) != "copying" || status.node_number(&addrs[1], "items_copied") > KEYS as u64 / 2
    });
    assert!(second.stop().success());
    cluster.proxy.wait_status("its end", crate::support::DEADLINE, |s| foreign(s) == 0 && s.mirrored());
    cluster.assert_rings_equal();
    cluster.kill_primaries();
    let mut client = cluster.client();
    (0..KEYS).for_each(|i| assert_eq!(value(&mut client, &format!("k{i}")).as_deref(), Some("two"), "k{i}"));
}

/// It would give the servers' memory other names, and the first one would take all for lost.
#[test]
fn a_proxy_with_another_list_does_not_start_over_servers_that_are_in_use() {
    let [a, b, c, m] = nodes();
    let first = over(&[&a, &b], &[&m], &[]);
    write_all(&first, "one");
    first.wait_mirrored(crate::support::DEADLINE);
    for (primaries, backup) in [(vec![&a, &b, &c], &m), (vec![&b, &a], &m), (vec![&c], &a)] {
        let port = Port::reserve().number.to_string();
        let mut arguments = ["-l", "127.0.0.1", "-p", &port].map(str::to_owned).to_vec();
        primaries.iter().for_each(|node| arguments.extend(["-s".to_owned(), node.addr()]));
        arguments.extend(["-b".to_owned(), backup.addr()]);
        // One that does start ends as well, after a while.
        let limit = crate::support::DEADLINE.as_secs().to_string();
        let mut command = std::process::Command::new("timeout");
        command.arg(limit).arg(Proxy::binary()).args(arguments);
        let output = command.output().expect("run resilver");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(71), "{said}");
        assert!(said.contains("another proxy works on server ") && said.contains("stop it first"), "{said}");
    }
    wait_until("the first to tell of it", crate::support::DEADLINE, || {
        first.log_so_far().matches("another proxy with another list of servers").count() >= 3
    });
    assert!(first.status().mirrored(), "it was disturbed: {}", first.log());
    assert_eq!(only(&first, "one"), KEYS);
    // A dead one keeps nobody away.
    let mut first = first;
    first.kill();
    let second = over(&[&a, &b, &c], &[&m], &[]);
    assert!(only(&second, "one") > KEYS / 2);
}

/// The server hung while the second one started.
#[test]
fn a_proxy_with_another_list_takes_no_server_back_that_is_in_use() {
    let [a, b, c, _] = nodes();
    let first = over(&[&a], &[&b], &[]);
    write_all(&first, "one");
    first.wait_mirrored(crate::support::DEADLINE);
    a.pause();
    first.wait_node(&a.addr(), "lost");
    let second = over(&[&c], &[&a], &[]);
    wait_until("the second to start without it", crate::support::DEADLINE, || {
        second.log_so_far().contains("node does not answer at the start")
    });
    a.resume();
    wait_until("the second to be told", crate::support::DEADLINE, || {
        second.log_so_far().contains("cannot mark a node that came back node=")
            && second.log_so_far().contains(") works on it")
    });
    assert_eq!(only(&first, "one"), KEYS);
    assert_eq!(second.status().node(&a.addr()), "lost");
    drop(first);
    second.wait_mirrored(crate::support::DEADLINE);
}
