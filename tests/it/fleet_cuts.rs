//! Several proxies: each way between two of them, the servers and etcd is cut by itself.

use std::time::{Duration, Instant};

use crate::support::fleet::{args, shown};
use crate::support::network::{Cable, FAR, is_inside};
use crate::support::port::Port;
use crate::support::wait_until;
use crate::support::{Client, DEADLINE, Etcd, Failure, Fleet, Forwarder, Hold, Memcached, Names, Proxy, Stored};

/// Longer than between two looks of a proxy at the servers or at etcd, which are a lease apart at
/// most.
const LOOKED: Duration = Duration::from_millis(3_300);

/// By which one proxy reaches the others.
struct Ways {
    primary: Forwarder,
    backup: Forwarder,
    etcd: Forwarder,
    other: Forwarder,
}

/// Two proxies over one pair, each of which reaches all others by ways of its own.
fn start(etcd: &Etcd, names: [&Names; 2]) -> (Fleet, [Ways; 2]) {
    let (primary, backup) = (Memcached::start(&[]).named("primary"), Memcached::start(&[]).named("backup"));
    let peers = [Port::reserve(), Port::reserve()];
    let ways = [0, 1].map(|at: u8| {
        let to = |host: u8, port: Port| {
            let node = port.addr();
            Forwarder::start_at([127, 0, at + 1, host], port, node)
        };
        let other = to(4, peers[usize::from(1 - at)].clone());
        let etcd = Forwarder::start(etcd.addr());
        Ways { primary: to(2, primary.reserved()), backup: to(3, backup.reserved()), etcd, other }
    });
    for (at, names) in names.into_iter().enumerate() {
        let [primary, backup, other] = [2, 3, 4].map(|host| format!("127.0.{}.{host}", at + 1));
        let hosts = ["127.0.0.1", &other];
        names.lead(&[("primary", &primary), ("backup", &backup), ("one", hosts[at]), ("two", hosts[1 - at])]);
    }
    let mut fleet = Fleet { proxies: vec![], primaries: vec![primary], backups: vec![backup], _dir: None };
    for (at, host) in ["one", "two"].into_iter().enumerate() {
        let place = format!("etcd://{}/ways", ways[at].etcd.addr());
        let advertised = format!("{host}:{}", peers[at].number);
        let more = ["--lease", "3s", "--takeover-wait", "300ms", "--advertise", &advertised];
        let args = args(&place, &fleet.primaries, &fleet.backups, &more);
        fleet.proxies.push(Proxy::start_with(&args, Some(names[at].file())));
        fleet.all_ready();
    }
    fleet.mirrored();
    (fleet, ways)
}

/// What clients of both doors were told to have written, one key each for each cut.
struct Writers {
    clients: [Client; 2],
    told: Vec<(String, u64)>,
}

impl Writers {
    fn write(&mut self, door: usize, key: &str, number: u64) {
        let stored = self.clients[door].set(key, number.to_string().as_bytes());
        assert_eq!(stored, Ok(Stored::Stored), "{key} at door {door}");
        match self.told.iter_mut().find(|(told, _)| told == key) {
            Some((_, last)) => *last = number,
            None => self.told.push((key.to_owned(), number)),
        }
    }

    /// No client of these doors sees an error before it is so.
    fn write_until(&mut self, doors: &[usize], cut: &str, mut so: impl FnMut() -> bool) {
        let mut number = 0;
        wait_until(cut, DEADLINE, || {
            number += 1;
            for &door in doors {
                self.write(door, &format!("{cut}:{door}"), number);
            }
            so()
        });
    }
}

/// (Those of the active proxy from etcd and from a whole ring for longer, and of the active one
/// with a server from all else, are in `fleet_faults`.)
#[test]
fn whichever_way_is_cut_in_either_direction_nothing_that_was_acknowledged_is_lost() {
    let test = "whichever_way_is_cut_in_either_direction_nothing_that_was_acknowledged_is_lost";
    let (Some(one), Some(two)) = (Names::new(test), Names::new(test)) else { return };
    let etcd = Etcd::start();
    let (fleet, ways) = start(&etcd, [&one, &two]);
    let clients = [0, 1].map(|at: usize| fleet.proxies[at].client());
    let mut writers = Writers { clients, told: vec![] };
    let (active, standby) = (fleet.active(), 1 - fleet.active());
    let (here, there) = (&fleet.proxies[active], &fleet.proxies[standby]);
    let servers = [fleet.primaries[0].known_as(), fleet.backups[0].known_as()];
    for hold in [Hold::ToNode, Hold::ToProxy] {
        // The active one from a server, which is replaced by the other one.
        for (server, way) in servers.iter().zip([&ways[active].primary, &ways[active].backup]) {
            let cut = format!("active:{server}:{hold:?}");
            way.hold(hold);
            writers.write_until(&[active, standby], &cut, || here.status().node(server) == "lost");
            way.hold(Hold::Nothing);
            writers.write_until(&[active, standby], &cut, || here.status().mirrored());
        }
        // The standby from the servers, and from etcd: nobody notices.
        let Ways { primary, backup, etcd, .. } = &ways[standby];
        for (name, cut_off) in [("servers", vec![primary, backup]), ("etcd", vec![etcd])] {
            let begun = Instant::now();
            cut_off.iter().for_each(|way| way.hold(hold));
            let cut = format!("standby:{name}:{hold:?}");
            writers.write_until(&[active, standby], &cut, || begun.elapsed() > LOOKED);
            assert!(here.status().mirrored(), "{cut}");
            cut_off.iter().for_each(|way| way.hold(Hold::Nothing));
        }
        // The two from each other. (What is asked there may be done when it is healed.)
        ways[standby].other.hold(hold);
        let cut = format!("between:{hold:?}");
        writers.write_until(&[active], &cut, || shown(there, "ready") == "0");
        let refused = writers.clients[standby].set(&format!("{cut}:refused"), b"x");
        assert!(matches!(&refused, Err(Failure::Server(_) | Failure::Closed(_))), "{refused:?}");
        ways[standby].other.hold(Hold::Nothing);
        writers.write_until(&[active], &cut, || shown(there, "ready") == "1");
        writers.clients[standby] = there.client();
        writers.write(standby, &format!("{cut}:{standby}"), 1);
        assert_eq!([here, there].map(|proxy| shown(proxy, "role")), ["active", "standby"], "{cut}");
    }
    fleet.mirrored();
    for (key, number) in &writers.told {
        for client in &mut writers.clients {
            let value = client.get(key).expect("an answer").map(|item| item.value);
            assert_eq!(value.as_deref(), Some(number.to_string().as_bytes()), "{key}");
        }
    }
    fleet.copies_are_equal();
}

/// The active proxy ends while nothing of its host reaches a server, which never hears of that.
#[test]
fn connections_that_a_proxy_has_left_behind_are_reset_by_another_process_on_its_host() {
    let test = "fleet_cuts::connections_that_a_proxy_has_left_behind_are_reset_by_another_process_on_its_host";
    if !is_inside(test) {
        return;
    }
    let (cable, etcd) = (Cable::lay(), Etcd::start());
    let (primaries, backups) = (vec![Memcached::beyond(&cable, FAR)], vec![Memcached::start(&[])]);
    let mut fleet = Fleet { proxies: vec![], primaries, backups, _dir: None };
    for _ in 0..2 {
        let args = args(&etcd.fleet("ghosts"), &fleet.primaries, &fleet.backups, &[]);
        fleet.proxies.push(Proxy::start(&args));
        fleet.all_ready();
    }
    fleet.mirrored();
    let former = fleet.active();
    cable.cut();
    fleet.proxies[former].kill();
    let active = fleet.active_but(former);
    wait_until("the former is awaited", DEADLINE, || shown(&fleet.proxies[active], "former") == "awaited");
    cable.join();
    fleet.proxies[active].wait_mirrored(DEADLINE);
    assert_eq!(shown(&fleet.proxies[active], "former"), "none");
    fleet.copies_are_equal();
}
