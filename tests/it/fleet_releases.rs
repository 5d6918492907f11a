//! A fleet of two releases that follow each other. (There is one yet: `src/later.rs` plays the
//! next.)

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::fleet::{args, get, shown};
use crate::support::port::Port;
use crate::support::{Client, DEADLINE, Fleet, Proxy, Stored, wait_until};

fn play_later(proxy: &mut Proxy, later: bool) {
    let variables = if later { vec![("RESILVER_TEST_LATER", "1".into())] } else { vec![] };
    proxy.set_variables(variables);
}

/// Clients of that door count, and read what they have counted, while this is done.
fn while_clients_count(door: &str, round: usize, act: impl FnOnce()) {
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for n in 0..2 {
            let (over, done) = (&over, &done);
            scope.spawn(move || {
                let mut client = Client::connect(door);
                let key = format!("count:{round}:{n}");
                assert_eq!(client.set(&key, b"0"), Ok(Stored::Stored));
                let mut count = 0;
                while !over.load(Ordering::SeqCst) {
                    count += 1;
                    assert_eq!(client.incr(&key, 1), Ok(Some(count)), "{key}");
                    assert_eq!(get(&mut client, &key), Some(count.to_string()));
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let goes_on = || {
            let before = done.load(Ordering::SeqCst);
            wait_until("clients are at work", DEADLINE, || done.load(Ordering::SeqCst) > before + 20);
        };
        goes_on();
        act();
        goes_on();
        over.store(true, Ordering::SeqCst);
    });
}

/// A proxy without `--coordinate`, which asks a living one of them to leave: what it hears.
fn knocks(fleet: &Fleet, variables: &[(&str, &str)]) -> String {
    let port = Port::reserve();
    let over = args("x", &fleet.primaries, &fleet.backups, &[]);
    let over = over.iter().skip_while(|arg| *arg != "-s");
    let mut command = Command::new(Proxy::binary());
    command.args(["-l", "127.0.0.1", "-p", &port.number.to_string(), "--leave-fleet"]).args(over);
    let output = command.envs(variables.iter().copied()).output().expect("run");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// From this release to the next, and back: each is active once while the other passes on what its
/// clients ask, each hands over to the other, and each takes the place of one that is killed.
#[test]
fn releases_that_follow_each_other_make_one_fleet() {
    let mut fleet = Fleet::by_file(2);
    fleet.mirrored();
    assert_eq!(fleet.active(), 0);
    // The standby first, as an upgrade goes.
    assert_eq!(fleet.proxies[1].stop().code(), Some(0));
    play_later(&mut fleet.proxies[1], true);
    fleet.proxies[1].spawn();
    fleet.all_ready();
    let known = |active: usize, other: usize, fleet: &Fleet| {
        let peer = format!("peer:{}", shown(&fleet.proxies[other], "own"));
        wait_until("the active one knows it", DEADLINE, || {
            shown(&fleet.proxies[active], &peer).starts_with("standby, candidate, ")
        });
    };
    for (round, active) in [0, 1].into_iter().enumerate() {
        let other = 1 - active;
        assert_eq!(fleet.active(), active);
        known(active, other, &fleet);
        let living = knocks(&fleet, &[]);
        assert!(living.contains("lives: a proxy answers"), "{living}");
        let door = fleet.proxies[other].addr();
        let leaves = &mut fleet.proxies[active];
        while_clients_count(&door, round, || assert_eq!(leaves.stop().code(), Some(0)));
        fleet.proxies[active].spawn();
        fleet.all_ready();
        fleet.mirrored();
        let log = fleet.proxies[other].log();
        assert!(!log.contains("resync begins"), "copies were compared:\n{log}");
    }
    let living = knocks(&fleet, &[("RESILVER_TEST_LATER", "1")]);
    assert!(living.contains("lives: a proxy answers"), "{living}");
    for killed in [0, 1] {
        assert_eq!(fleet.active(), killed);
        let mut there = fleet.proxies[1 - killed].client();
        assert_eq!(there.set("k", killed.to_string().as_bytes()), Ok(Stored::Stored));
        fleet.proxies[killed].kill();
        assert_eq!(get(&mut there, "k"), Some(killed.to_string()));
        fleet.proxies[killed].spawn();
        fleet.all_ready();
        fleet.mirrored();
    }
    fleet.copies_are_equal();
}
