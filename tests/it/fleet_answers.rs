//! Several proxies: what they say where they can do no more.

use std::time::Duration;

use crate::support::fleet::{FENCED, asked_for, get, said, shown};
use crate::support::port::Port;
use crate::support::{Client, DEADLINE, Etcd, Failure, Fleet, Forwarder, Hold, Proxy, Stored, wait_until};

/// Else the record is freed, and nobody takes it.
#[test]
fn it_is_handed_over_to_nobody_who_cannot_take_over_and_who_can_is_named() {
    let etcd = Etcd::start();
    let way = Forwarder::start(etcd.addr());
    let each = [(etcd.fleet("fit"), &[][..], vec![]), (format!("etcd://{}/fit", way.addr()), &[][..], vec![])];
    let mut fleet = Fleet::start_apart(&each);
    fleet.mirrored();
    assert_eq!(fleet.active(), 0);
    let candidate = shown(&fleet.proxies[1], "own");
    let peer = || shown(&fleet.proxies[0], &format!("peer:{candidate}"));
    wait_until("it is fit", DEADLINE, || peer().starts_with("standby, candidate") && !peer().contains("cannot"));
    way.hold(Hold::Both);
    wait_until("it is not", DEADLINE, || peer().contains("cannot take over"));
    for door in [0, 1] {
        let (code, why) = said(&fleet.proxies[door], &["handover"]);
        assert!(code == Some(1) && why.contains(&candidate) && why.contains("--coordinate"), "{why}");
    }
    // Its clients are served all the same.
    assert_eq!(fleet.proxies[1].client().set("k", b"v"), Ok(Stored::Stored));
    assert_eq!(shown(&fleet.proxies[0], "role"), "active");
    way.hold(Hold::Nothing);
    wait_until("it is fit again", DEADLINE, || !peer().is_empty() && !peer().contains("cannot"));
    assert_eq!(said(&fleet.proxies[1], &["handover"]), (Some(0), format!("OK {candidate}\n")));
    assert_eq!(fleet.proxies[0].wait_exit().code(), Some(FENCED));
    assert_eq!(fleet.active_but(0), 1);
    assert_eq!(get(&mut fleet.proxies[1].client(), "k").as_deref(), Some("v"));
}

fn refused(door: &Proxy) -> String {
    match door.client().set("k", b"v") {
        Err(Failure::Server(line)) => line,
        other => panic!("{other:?}"),
    }
}

/// At a proxy that is active, and at others when it is gone too, whether they may become active or
/// not.
#[test]
fn clients_are_told_that_no_server_answers() {
    const SHORT: [&str; 4] = ["--lease", "1s", "--takeover-wait", "500ms"];
    let dir = tempfile::tempdir().expect("temporary directory");
    let place = format!("file:{}", dir.path().join("fleet").display());
    let never = [&SHORT[..], &["--candidate", "no"]].concat();
    let mut fleet = Fleet::start_each(&place, &[&SHORT, &SHORT, &never]);
    fleet.mirrored();
    assert_eq!(fleet.active(), 0);
    let mut servers: Vec<String> = fleet.primaries.iter().chain(&fleet.backups).map(|node| node.known_as()).collect();
    fleet.primaries[0].kill();
    fleet.backups[0].kill();
    for door in &fleet.proxies {
        wait_until("it is told", DEADLINE, || refused(door).contains("no copy of this key is reachable"));
    }
    fleet.proxies[0].kill();
    for door in &fleet.proxies[1..] {
        wait_until("it is told", DEADLINE, || {
            let line = refused(door);
            line.contains("no server answers") && servers.iter().any(|server| line.contains(server.as_str()))
        });
        assert!(shown(door, "trouble").contains("no server answers"));
        let status = said(door, &["status"]).1;
        assert!(status.contains("no server answers"), "{status}");
    }
    servers.clear();
    fleet.primaries[0].restart();
    fleet.backups[0].restart();
    assert_eq!(fleet.active_but(0), 1);
    for door in &fleet.proxies[1..] {
        wait_until("it is served", DEADLINE, || door.client().set("k", b"v") == Ok(Stored::Stored));
        assert_eq!(shown(door, "trouble"), "");
    }
}

/// A server hangs for longer than anybody waits for an answer.
#[test]
fn while_the_active_proxy_starts_whoever_asks_how_it_is_hears_that() {
    let admins = [(); 3].map(|()| Port::reserve());
    let at = admins.each_ref().map(Port::addr);
    let each = at.each_ref().map(|at| ["--timeout", "10m", "--leader-timeout", "10m", "--admin", at]);
    let each: Vec<&[&str]> = each.iter().map(|args| &args[..]).collect();
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut fleet = Fleet::start_each(&format!("file:{}", dir.path().join("fleet").display()), &each);
    fleet.mirrored();
    assert_eq!(fleet.active(), 0);
    fleet.primaries[0].pause();
    fleet.proxies[0].kill();
    let next = fleet.active_but(0);
    let (active, standby) = (&fleet.proxies[next], &fleet.proxies[3 - next]);
    assert_eq!((shown(active, "ready"), shown(active, "starting")), ("0".to_owned(), "1".to_owned()));
    let starting = |line: &str| line.contains("is starting: its servers are looked at");
    for door in [active, standby] {
        wait_until("the status says so", DEADLINE, || starting(&said(door, &["status"]).1));
        let mut client = door.client();
        let answer = client.raw_command("stats servers");
        assert!(answer.as_deref().is_ok_and(starting), "{answer:?}");
        assert!(client.raw_command("resync status").as_deref().is_ok_and(starting));
        let mut client: Client = door.client();
        client.send(b"stats\r\n").expect("sent");
        let lines = client.lines_to_end().expect("an answer");
        assert!(lines.iter().any(|line| line == "STAT proxy:role active"), "{lines:?}");
    }
    let ready = said(active, &["wait", "--ready", "--timeout", "100ms"]).1;
    assert!(starting(&ready), "{ready}");
    for (path, code) in [("/livez", "200"), ("/readyz", "503"), ("/status.json", "503")] {
        let (answered, text) = asked_for(&admins[next], path);
        assert!(answered == code && (code == "200" || text.contains("starting")), "{path}: {answered} {text}");
    }
    fleet.primaries[0].resume();
    wait_until("it serves", Duration::from_secs(60), || shown(active, "ready") == "1");
    assert_eq!(shown(active, "starting"), "");
    assert_eq!(standby.client().set("k", b"v"), Ok(Stored::Stored));
}
