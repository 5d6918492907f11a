//! A fleet of two releases that follow each other. (There is one yet: `src/later.rs` plays the
//! next.)

use crate::support::command::{ended, resilver};
use crate::support::fleet::{args, get, shown, while_clients_count};
use crate::support::port::Port;
use crate::support::{Client, DEADLINE, Fleet, Proxy, Stored, wait_until};

fn play_later(proxy: &mut Proxy, later: bool) {
    let variables = if later { vec![("RESILVER_TEST_LATER", "1".into())] } else { vec![] };
    proxy.set_variables(variables);
}

/// A proxy without `--coordinate`, which asks a living one of them to leave: what it hears.
fn knocks(fleet: &Fleet, variables: &[(&str, &str)]) -> String {
    let port = Port::reserve();
    let over = args("x", &fleet.primaries, &fleet.backups, &[]);
    let over = over.iter().skip_while(|arg| *arg != "-s");
    let mut command = resilver();
    command.args(["-l", "127.0.0.1", "-p", &port.number.to_string(), "--leave-fleet"]).args(over);
    let (code, _, why) = ended(command.envs(variables.iter().copied()));
    assert_ne!(code, Some(0));
    why
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
        let reads = |client: &mut Client, key: &str, count: u64| assert_eq!(get(client, key), Some(count.to_string()));
        while_clients_count(&[&door, &door], &format!("count:{round}"), reads, || {
            assert_eq!(leaves.stop().code(), Some(0));
        });
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
