//! Several proxies: what a proxy that was replaced still does, etcd that forgets, cut networks.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::client::storage;
use crate::support::fleet::{FENCED, args, get, shown};
use crate::support::memcached::is_in_state;
use crate::support::port::Port;
use crate::support::{
    Client, DEADLINE, Etcd, Failure, Fleet, Forwarder, Hold, Memcached, Names, Proxy, Stored, wait_until,
};

/// (Two of them wait for one lease after the other.)
const SHORT: &str = "1s";

/// Its machine's clock stands still, and it reaches etcd no more: by all that it knows its lease
/// goes on, while another proxy acts.
#[test]
fn a_proxy_whose_clock_stands_still_acknowledges_no_write_once_it_was_replaced() {
    let etcd = Etcd::start();
    let way = Forwarder::start(etcd.addr());
    let dir = tempfile::tempdir().expect("temporary directory");
    let clock = dir.path().join("clock");
    // (No probe finds the other one's marks.)
    let proves: &[&str] = &["--lease", SHORT, "--prove-writes", "--probe-interval", "1m"];
    let each = [
        (format!("etcd://{}/held", way.addr()), proves, vec![("RESILVER_TEST_CLOCK", clock.clone())]),
        (etcd.fleet("held"), &["--lease", SHORT], vec![]),
    ];
    let mut fleet = Fleet::start_apart(&each);
    assert_eq!(fleet.active(), 0);
    fleet.mirrored();
    let mut here = fleet.proxies[0].client();
    assert_eq!(here.set("k", b"before"), Ok(Stored::Stored));
    assert_eq!(here.incr("none", 1), Ok(None));
    std::fs::write(&clock, "stands still").expect("write");
    way.hold(Hold::Both);
    assert_eq!(fleet.active_but(0), 1);
    let mut there = fleet.proxies[1].client();
    assert_eq!(there.set("k", b"after"), Ok(Stored::Stored));
    assert_eq!(shown(&fleet.proxies[0], "role"), "active", "it believes its lease");
    // What remains without a proof: reads.
    assert_eq!(get(&mut here, "k").as_deref(), Some("after"));
    let late = here.set("k", b"late").unwrap_err();
    let told = |why: &String| why.contains("another proxy has taken this one's place");
    assert!(matches!(&late, Failure::Closed(_)) || matches!(&late, Failure::Server(why) if told(why)), "{late}");
    assert_eq!(fleet.proxies[0].wait_exit().code(), Some(FENCED));
    let log = fleet.proxies[0].log_so_far();
    assert!(log.contains("a server is marked by another one"), "{log}");
    fleet.proxies[1].wait_mirrored(DEADLINE);
    assert!(["late", "after"].contains(&get(&mut there, "k").as_deref().unwrap_or_default()));
    fleet.copies_are_equal();
}

/// Two proxies, each of which can be stopped between its look at the lease and a sending.
struct Gap {
    fleet: Fleet,
    stops: Vec<PathBuf>,
    _etcd: Etcd,
    _dir: tempfile::TempDir,
}

impl Gap {
    fn new(name: &str) -> Gap {
        let (etcd, dir) = (Etcd::start(), tempfile::tempdir().expect("temporary directory"));
        let stops: Vec<PathBuf> = (0..2).map(|at| dir.path().join(format!("stop{at}"))).collect();
        let more: &[&str] = &["--lease", SHORT, "--io-uring", "off"];
        let each = |stop: &PathBuf| (etcd.fleet(name), more, vec![("RESILVER_TEST_STOP", stop.clone())]);
        let each: Vec<_> = stops.iter().map(each).collect();
        let fleet = Fleet::start_apart(&each);
        fleet.mirrored();
        Gap { fleet, stops, _etcd: etcd, _dir: dir }
    }

    /// The active one stops before it sends this, which is brought about so, and is replaced.
    /// Returns both.
    fn stops_before(&mut self, text: &str, bring_about: impl FnOnce(&mut Fleet, usize)) -> (usize, usize) {
        let former = self.fleet.active();
        std::fs::write(&self.stops[former], text).expect("write");
        bring_about(&mut self.fleet, former);
        let process = PathBuf::from(format!("/proc/{}", self.fleet.proxies[former].pid()));
        wait_until(&format!("it stops before {text}"), DEADLINE, || is_in_state(&process, 'T'));
        let next = self.fleet.active_but(former);
        assert_eq!(shown(&self.fleet.proxies[next], "former"), "awaited");
        assert!(!self.fleet.proxies[next].status().mirrored());
        (former, next)
    }

    /// It wakes, and sends what it was about to; then all is well again.
    fn wakes(&mut self, former: usize) {
        self.fleet.proxies[former].resume();
        assert_eq!(self.fleet.proxies[former].wait_exit().code(), Some(FENCED));
        self.fleet.proxies[1 - former].wait_mirrored(DEADLINE);
        self.fleet.copies_are_equal();
        self.fleet.proxies[former].spawn();
        self.fleet.all_ready();
    }

    /// A client asks the active one, which stops before it sends the text.
    fn asks(&mut self, request: &str, text: &str) -> (Client, usize, Client) {
        let mut late = self.fleet.proxies[self.fleet.active()].client();
        let (former, next) = self.stops_before(text, |_, _| late.send(request.as_bytes()).expect("sent"));
        (late, former, self.fleet.proxies[next].client())
    }
}

fn is_not_answered(late: &mut Client) {
    let answer = late.text();
    assert!(matches!(answer, Err(Failure::Closed(_))), "it was answered: {answer:?}");
}

/// memcached cannot prevent that a write lands late. But nobody is told of it, and the copies are
/// equal before anything is called mirrored.
#[test]
fn what_a_proxy_was_about_to_write_lands_late_and_harms_no_copy() {
    let mut gap = Gap::new("writes");
    // The leader's part: it may overwrite what was acknowledged since, there and so in both.
    let (mut late, former, mut there) = gap.asks("set a 0 0 4\r\nlate\r\n", "set a 0 0 4");
    assert_eq!(there.set("a", b"after"), Ok(Stored::Stored));
    gap.wakes(former);
    is_not_answered(&mut late);
    assert!(["late", "after"].contains(&get(&mut there, "a").as_deref().unwrap_or_default()));

    // The follower's: nothing is left of it.
    let (mut late, former, mut there) = gap.asks("add b 0 0 4\r\nlate\r\n", "set b 0 0 4");
    assert_eq!(there.set("b", b"after"), Ok(Stored::Stored));
    gap.wakes(former);
    is_not_answered(&mut late);
    assert_eq!(get(&mut there, "b").as_deref(), Some("after"));

    // One that leads alone.
    let active = gap.fleet.active();
    gap.fleet.backups[0].kill();
    assert_eq!(gap.fleet.proxies[active].client().set("c", b"before"), Ok(Stored::Stored));
    let (mut late, former, mut there) = gap.asks("set c 0 0 4\r\nlate\r\n", "set c 0 0 4");
    assert_eq!(get(&mut there, "c").as_deref(), Some("before"));
    assert_eq!(there.set("c", b"after"), Ok(Stored::Stored));
    gap.fleet.backups[0].restart();
    gap.wakes(former);
    is_not_answered(&mut late);
    assert!(["late", "after"].contains(&get(&mut there, "c").as_deref().unwrap_or_default()));
}

/// A copy, a purge, a flush of a proxy that was replaced.
#[test]
fn what_a_proxy_was_about_to_heal_with_lands_late_and_harms_nobody() {
    let mut gap = Gap::new("heals");
    let mut client = gap.fleet.proxies[gap.fleet.active()].client();
    for i in 0..50 {
        assert_eq!(client.set(&format!("h{i}"), b"before"), Ok(Stored::Stored));
    }
    // Before a hand-back: the primary is filled, and would get a key that was deleted since.
    let (former, next) = gap.stops_before("ms h7 ", |fleet, _| fleet.primaries[0].restart());
    let mut there = gap.fleet.proxies[next].client();
    assert_eq!((there.delete("h7"), there.set("h8", b"after")), (Ok(true), Ok(Stored::Stored)));
    gap.wakes(former);
    assert_eq!((get(&mut there, "h7"), get(&mut there, "h8").as_deref()), (None, Some("after")));
    assert_eq!(get(&mut there, "h9").as_deref(), Some("before"));

    // A purge of what the backup has missed.
    let (former, next) = gap.stops_before("md p", |fleet, active| {
        fleet.backups[0].pause();
        let mut client = fleet.proxies[active].client();
        assert_eq!(client.set("p", b"before"), Ok(Stored::Stored));
        fleet.backups[0].resume();
    });
    let mut there = gap.fleet.proxies[next].client();
    assert_eq!(there.set("p", b"after"), Ok(Stored::Stored));
    gap.wakes(former);
    assert_eq!(get(&mut there, "p").as_deref(), Some("after"));

    // A flush: it is noticed, and is one that took effect late, or not at all.
    let (mut late, former, mut there) = gap.asks("flush_all\r\n", "flush_all");
    assert_eq!(there.set("f", b"after"), Ok(Stored::Stored));
    gap.wakes(former);
    is_not_answered(&mut late);
    let left = get(&mut there, "f");
    assert!(left.as_deref().is_none_or(|value| value == "after"), "{left:?}");
    assert_eq!(there.set("f", b"1"), Ok(Stored::Stored));
}

/// It is killed after it woke and before it could say anything, so all that is known of it is that
/// its connections are closed.
#[test]
fn a_proxy_that_dies_as_it_wakes_leaves_equal_copies() {
    let mut gap = Gap::new("dies");
    let (mut late, former, mut there) = gap.asks("add b 0 0 4\r\nlate\r\n", "set b 0 0 4");
    assert_eq!(there.set("b", b"after"), Ok(Stored::Stored));
    gap.fleet.proxies[former].resume();
    gap.fleet.proxies[former].kill();
    is_not_answered(&mut late);
    gap.fleet.proxies[1 - former].wait_mirrored(DEADLINE);
    gap.fleet.copies_are_equal();
    assert_eq!(get(&mut there, "b").as_deref(), Some("after"));
}

/// A server takes nothing, and the kernel of the active proxy is full of writes to it. Returns
/// their keys.
fn fill_kernel(fleet: &Fleet) -> Vec<String> {
    assert_eq!(fleet.active(), 0);
    fleet.mirrored();
    let keys: Vec<String> = (0..30).map(|i| format!("late:{i}")).collect();
    fleet.primaries[0].pause();
    let mut client = fleet.proxies[0].client();
    for key in &keys {
        client.send(&storage("set", key, 0, 0, &[b'x'; 100_000], "")).expect("sent");
    }
    wait_until("the kernel is full", DEADLINE, || fleet.primaries[0].undelivered() > 100_000);
    keys
}

/// The server reads again: what its own kernel had taken is all that comes, before the next proxy
/// tells anybody of anything.
fn nothing_is_delivered_late(fleet: &Fleet, keys: &[String]) {
    fleet.primaries[0].resume();
    let mut there = fleet.proxies[1].client();
    for key in keys {
        // (The next one may not have found the server yet.)
        wait_until("it is stored", DEADLINE, || there.set(key, b"after") == Ok(Stored::Stored));
    }
    wait_until("it has read all", DEADLINE, || fleet.primaries[0].unread() == 0);
    for key in keys {
        assert_eq!(get(&mut there, key).as_deref(), Some("after"), "{key}");
    }
}

/// Waits longer for a server than it is full of writes to it; and closes its sockets as it ends.
const PATIENT: &[&str] = &["--timeout", "15s", "--leader-timeout", "15s", "--io-uring", "off"];

/// Whatever it does itself: it is paused.
#[test]
fn what_the_kernel_of_a_paused_proxy_holds_is_dropped() {
    let etcd = Etcd::start();
    let mut fleet = Fleet::start_each(&etcd.fleet("full"), &[PATIENT, &[]]);
    let keys = fill_kernel(&fleet);
    fleet.proxies[0].pause();
    let (begun, mut dropped) = (Instant::now(), None);
    wait_until("the kernel drops it, and another one is active", DEADLINE, || {
        if dropped.is_none() && fleet.primaries[0].undelivered() == 0 {
            dropped = Some(begun.elapsed());
        }
        dropped.is_some() && shown(&fleet.proxies[1], "role") == "active"
    });
    eprintln!("dropped after {:?}; another one was active by {:?}", dropped.expect("it is"), begun.elapsed());
    nothing_is_delivered_late(&fleet, &keys);
    fleet.proxies[0].resume();
    assert_eq!(fleet.proxies[0].wait_exit().code(), Some(FENCED));
    fleet.proxies[1].wait_mirrored(DEADLINE);
    fleet.copies_are_equal();
}

/// At once: the next one does not wait for the end of its lease.
#[test]
fn what_the_kernel_of_a_killed_proxy_holds_is_dropped() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let place = format!("file:{}", dir.path().join("fleet").display());
    let mut fleet = Fleet::start_each(&place, &[PATIENT, &[]]);
    let keys = fill_kernel(&fleet);
    fleet.proxies[0].kill();
    assert_eq!(fleet.primaries[0].undelivered(), 0);
    fleet.active_but(0);
    nothing_is_delivered_late(&fleet, &keys);
    fleet.proxies[1].wait_mirrored(DEADLINE);
    fleet.copies_are_equal();
}

/// What it knew of who is active is lost, or an old one is back: whoever acts ends, and the next
/// one goes on above all that stands on the servers.
#[test]
fn an_etcd_that_was_restored_or_emptied_costs_no_item() {
    let mut etcd = Etcd::start();
    let mut fleet = Fleet::start_with(2, &etcd.fleet("old"), &["--lease", SHORT]);
    fleet.mirrored();
    let former = fleet.active();
    let backup = etcd.backup();
    // (Copying 64 MB may have taken longer than a lease: a suspended proxy ends otherwise.)
    wait_until("its lease goes on", DEADLINE, || shown(&fleet.proxies[former], "role") == "active");
    assert_eq!(fleet.proxies[former].stop().code(), Some(0));
    let active = fleet.active_but(former);
    fleet.proxies[former].spawn();
    fleet.all_ready();
    let generation = |fleet: &Fleet| shown(&fleet.proxies[fleet.active()], "generation").parse::<u64>().expect("one");
    let mut client = fleet.proxies[active].client();
    let mut backups = [Some(backup), None].into_iter().enumerate();
    for (round, restored) in &mut backups {
        let (key, before) = (format!("k{round}"), generation(&fleet));
        assert_eq!(client.set(&key, b"v"), Ok(Stored::Stored));
        let active = fleet.active();
        etcd.kill();
        wait_until("its lease is over", DEADLINE, || shown(&fleet.proxies[active], "role") == "suspended");
        etcd.restore(restored);
        assert_eq!(fleet.proxies[active].wait_exit().code(), Some(FENCED));
        fleet.proxies[active].spawn();
        fleet.all_ready();
        assert!(generation(&fleet) > before, "round {round}");
        fleet.mirrored();
        client = fleet.proxies[fleet.active()].client();
        assert_eq!(get(&mut client, &key).as_deref(), Some("v"), "round {round}");
        fleet.copies_are_equal();
    }
}

/// The second one leaves in peace, and the record says that somebody before it is awaited; until an
/// operator says that it is gone.
#[test]
fn who_takes_over_while_a_paused_proxy_is_awaited_awaits_it_too() {
    let etcd = Etcd::start();
    let mut fleet = Fleet::start_with(3, &etcd.fleet("awaits"), &["--lease", SHORT]);
    fleet.mirrored();
    let first = fleet.active();
    fleet.proxies[first].pause();
    let second = fleet.active_but(first);
    assert_eq!(shown(&fleet.proxies[second], "former"), "awaited");
    let mut client = fleet.proxies[second].client();
    assert_eq!(client.set("k", b"v"), Ok(Stored::Stored));
    assert_eq!(fleet.proxies[second].stop().code(), Some(0));
    let third = 3 - first - second;
    wait_until("the third is active", DEADLINE, || shown(&fleet.proxies[third], "role") == "active");
    assert_eq!(shown(&fleet.proxies[third], "former"), "awaited");
    assert!(!fleet.proxies[third].status().mirrored());
    let mut client = fleet.proxies[third].client();
    assert_eq!(client.raw_command("resync gone").as_deref(), Ok("OK"));
    fleet.proxies[third].wait_mirrored(DEADLINE);
    assert_eq!(shown(&fleet.proxies[third], "former"), "none");
    assert_eq!(get(&mut client, "k").as_deref(), Some("v"));
    // Nothing was about to be sent by it.
    fleet.proxies[first].resume();
    assert_eq!(fleet.proxies[first].wait_exit().code(), Some(FENCED));
    assert!(fleet.proxies[third].status().mirrored());
    fleet.copies_are_equal();
}

/// The standby, then the active proxy, which loses one way, then the other.
#[test]
fn a_cut_between_a_proxy_and_etcd_costs_no_item() {
    let etcd = Etcd::start();
    let ways: Vec<Forwarder> = (0..2).map(|_| Forwarder::start(etcd.addr())).collect();
    let each: Vec<(String, &[&str], _)> =
        ways.iter().map(|way| (format!("etcd://{}/cuts", way.addr()), &["--lease", SHORT][..], vec![])).collect();
    let mut fleet = Fleet::start_apart(&each);
    fleet.mirrored();
    assert_eq!(fleet.active(), 0);
    let (mut here, mut there) = (fleet.proxies[0].client(), fleet.proxies[1].client());
    assert_eq!(here.set("a", b"1"), Ok(Stored::Stored));

    // The standby from etcd: nobody notices.
    ways[1].hold(Hold::Both);
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!((here.set("b", b"1"), there.set("c", b"1")), (Ok(Stored::Stored), Ok(Stored::Stored)));
    assert_eq!(
        (shown(&fleet.proxies[0], "role"), shown(&fleet.proxies[1], "role")),
        ("active".into(), "standby".into())
    );
    ways[1].hold(Hold::Nothing);

    // The active one, one way and both: it is replaced, and acts no more.
    for hold in [Hold::ToNode, Hold::ToProxy] {
        let active = fleet.active();
        ways[active].hold(hold);
        let next = fleet.active_but(active);
        let mut client = fleet.proxies[next].client();
        assert_eq!(client.set("d", format!("{hold:?}").as_bytes()), Ok(Stored::Stored));
        assert_eq!(shown(&fleet.proxies[active], "role"), "suspended");
        ways[active].hold(Hold::Nothing);
        assert_eq!(fleet.proxies[active].wait_exit().code(), Some(FENCED));
        fleet.proxies[next].wait_mirrored(DEADLINE);
        for key in ["a", "b", "c"] {
            assert_eq!(get(&mut client, key).as_deref(), Some("1"));
        }
        fleet.copies_are_equal();
        fleet.proxies[active].spawn();
        fleet.all_ready();
    }
}

/// The active proxy and one server on one side of a cut, the other server, etcd and a candidate on
/// the other.
#[test]
fn what_is_acknowledged_on_either_side_of_a_cut_is_kept() {
    let Some(names) = Names::new("what_is_acknowledged_on_either_side_of_a_cut_is_kept") else { return };
    let Some(others) = Names::new("the other side") else { return };
    let etcd = Etcd::start();
    let (near, far) = (Memcached::start(&[]).named("near"), Memcached::start(&[]).named("far"));
    // Each proxy reaches one of them by a way that can be cut.
    let to = |server: &Memcached, host: [u8; 4]| Forwarder::start_at(host, server.reserved(), server.addr());
    let (to_far, to_near) = (to(&far, [127, 0, 0, 2]), to(&near, [127, 0, 0, 3]));
    let to_etcd = Forwarder::start(etcd.addr());
    let peer = Port::reserve();
    let between = Forwarder::start_at([127, 0, 0, 4], peer.clone(), peer.addr());
    names.lead(&[("near", "127.0.0.1"), ("far", "127.0.0.2"), ("first", "127.0.0.1")]);
    others.lead(&[("near", "127.0.0.3"), ("far", "127.0.0.1"), ("first", "127.0.0.4")]);
    let (primaries, backups) = (vec![near], vec![far]);
    let first = format!("first:{}", peer.number);
    let start = |place: String, names: &Names, more: &[&str]| {
        let args =
            args(&place, &primaries, &backups, &[&["--lease", SHORT, "--takeover-wait", "300ms"], more].concat());
        Proxy::start_with(&args, Some(names.file()))
    };
    let mut proxies = vec![start(format!("etcd://{}/sides", to_etcd.addr()), &names, &["--advertise", &first])];
    wait_until("the first is active", DEADLINE, || shown(&proxies[0], "role") == "active");
    proxies.push(start(etcd.fleet("sides"), &others, &[]));
    let mut fleet = Fleet { proxies, primaries, backups, _dir: None };
    fleet.all_ready();
    fleet.mirrored();
    let mut here = fleet.proxies[0].client();
    assert_eq!(here.set("k", b"0"), Ok(Stored::Stored));
    // The two proxies from each other alone: the standby serves nobody, and takes nobody's place.
    between.hold(Hold::Both);
    wait_until("the standby knows", DEADLINE, || shown(&fleet.proxies[1], "ready") == "0");
    let refused = fleet.proxies[1].client().set("cut", b"x");
    assert!(matches!(&refused, Err(Failure::Server(_) | Failure::Closed(_))), "{refused:?}");
    assert_eq!(shown(&fleet.proxies[1], "role"), "standby");
    between.hold(Hold::Nothing);
    fleet.all_ready();
    assert_eq!(fleet.proxies[1].client().set("l", b"0"), Ok(Stored::Stored));
    assert_eq!(fleet.active(), 0);
    // And now the sides.
    for way in [&to_far, &to_near, &to_etcd, &between] {
        way.hold(Hold::Both);
    }
    // What the first side was told is done must be so on the other, which is what stays.
    let (mut told, mut asked) = (0, 0);
    // (Longer than a server is waited for: then one that leads alone could tell of it.)
    here.set_deadline(Duration::from_millis(700));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(700) {
        asked += 1;
        match here.set("k", asked.to_string().as_bytes()) {
            Ok(_) => told = asked,
            Err(_) => break,
        }
    }
    assert_eq!(fleet.active_but(0), 1);
    let mut there = fleet.proxies[1].client();
    let value: u64 = get(&mut there, "k").expect("an item").parse().expect("a number");
    assert!((told..=asked).contains(&value), "{told} was acknowledged, {asked} asked for: {value}");
    assert_eq!(there.set("after", b"1"), Ok(Stored::Stored));
    for way in [&to_far, &to_near, &to_etcd, &between] {
        way.hold(Hold::Nothing);
    }
    assert_eq!(fleet.proxies[0].wait_exit().code(), Some(FENCED));
    fleet.proxies[1].wait_mirrored(DEADLINE);
    assert_eq!(get(&mut there, "after").as_deref(), Some("1"));
    let kept: u64 = get(&mut there, "k").expect("an item").parse().expect("a number");
    assert!((told..=asked).contains(&kept), "{kept}");
    fleet.copies_are_equal();
}

/// The way from the active proxy to the backup is cut, and no other one.
#[test]
fn a_proxy_that_is_cut_off_from_a_ring_hands_over_to_one_that_is_not() {
    let Some(names) = Names::new("a_proxy_that_is_cut_off_from_a_ring_hands_over_to_one_that_is_not") else { return };
    let Some(others) = Names::new("the other proxy") else { return };
    let etcd = Etcd::start();
    let place = etcd.fleet("reach");
    let (near, far) = (Memcached::start(&[]).named("near"), Memcached::start(&[]).named("far"));
    let to_far = Forwarder::start_at([127, 0, 0, 2], far.reserved(), far.addr());
    names.lead(&[("near", "127.0.0.1"), ("far", "127.0.0.2")]);
    others.lead(&[("near", "127.0.0.1"), ("far", "127.0.0.1")]);
    let (primaries, backups) = (vec![near], vec![far]);
    let start = |names: &Names| {
        let args = args(&place, &primaries, &backups, &["--lease", SHORT]);
        Proxy::start_with(&args, Some(names.file()))
    };
    let mut proxies = vec![start(&names)];
    wait_until("the first is active", DEADLINE, || shown(&proxies[0], "role") == "active");
    proxies.push(start(&others));
    let mut fleet = Fleet { proxies, primaries, backups, _dir: None };
    fleet.all_ready();
    fleet.mirrored();
    let mut there = fleet.proxies[1].client();
    assert_eq!(there.set("k", b"0"), Ok(Stored::Stored));
    to_far.hold(Hold::Both);
    let mut count = 0;
    wait_until("the other one is active", DEADLINE, || {
        count += 1;
        assert_eq!(there.incr("k", 1), Ok(Some(count)), "no client of another door sees an error");
        shown(&fleet.proxies[1], "role") == "active"
    });
    assert_eq!(fleet.proxies[0].wait_exit().code(), Some(FENCED));
    let log = fleet.proxies[0].log_so_far();
    assert!(log.contains("a standby reaches all servers"), "{log}");
    to_far.hold(Hold::Nothing);
    fleet.proxies[1].wait_mirrored(DEADLINE);
    assert_eq!(there.incr("k", 1), Ok(Some(count + 1)));
    fleet.copies_are_equal();
    fleet.proxies[0].spawn();
    fleet.all_ready();
    assert_eq!(fleet.active(), 1);
}
