//! A server does not answer when the proxy starts, and nothing that does answer knows of its pair:
//! what it holds counts when it is back, if no proxy has used it before.

use crate::support::cluster::{count_filled, fill};
use crate::support::start::{last_run, set, start, value};
use crate::support::{Client, Cluster, DEADLINE, Failure, Memcached, Shape, wait_until};

const COUNT: usize = 300;

/// Over two servers of which one is paused at the start.
fn over(primary: Memcached, backup: Memcached, args: &[&str]) -> Cluster {
    let mut shape = Shape::new(1, 1);
    shape.proxy_args = args.iter().map(|a| (*a).to_owned()).collect();
    Cluster::over(vec![primary], vec![backup], &shape)
}

/// Clients delete, overwrite and add meanwhile: that counts, and all else is as it was.
fn what_is_written_meanwhile_counts(cluster: &mut Cluster, resume: impl Fn(&Cluster)) {
    let mut client = cluster.client();
    assert_eq!(count_filled(&mut client, "old", COUNT, 50), 0);
    set(&mut client, "old:1", "new");
    set(&mut client, "more", "new");
    set(&mut client, "old:2", "deleted");
    assert_eq!(client.delete("old:2"), Ok(true));
    assert_eq!(client.delete("old:3"), Ok(false));
    resume(cluster);
    cluster.mirrored();
    assert_eq!(value(&mut client, "old:1").as_deref(), Some("new"));
    assert_eq!(value(&mut client, "more").as_deref(), Some("new"));
    for gone in ["old:2", "old:3"] {
        assert_eq!(value(&mut client, gone), None, "{gone}");
    }
    assert_eq!(client.delete("old:1"), Ok(true));
    assert_eq!(count_filled(&mut client, "old", COUNT, 50), COUNT - 3);
    assert_eq!(cluster.assert_rings_equal().len(), COUNT - 2);
}

#[test]
fn a_full_server_beside_a_new_one_keeps_its_items_where_it_is_late_at_the_first_start() {
    for late_is_primary in [true, false] {
        let (full, new) = (Memcached::start(&[]), Memcached::start(&[]));
        fill(&mut full.client(), "old", COUNT, 50);
        full.pause();
        let (primary, backup) = if late_is_primary { (full, new) } else { (new, full) };
        let mut cluster = over(primary, backup, &[]);
        what_is_written_meanwhile_counts(&mut cluster, |cluster| {
            let ring = if late_is_primary { &cluster.primaries } else { &cluster.backups };
            ring[0].resume();
        });
    }
}

/// The backup hangs, and misses the new values of `k`.
fn with_a_backup_that_hangs() -> Cluster {
    let cluster = Cluster::start(&Shape::new(1, 1));
    set(&mut cluster.client(), "k", "old");
    cluster.backups[0].pause();
    cluster
}

/// A server that was in use before may have been away for a week: who could tell is gone.
#[test]
fn a_late_server_that_was_in_use_before_is_purged_where_nobody_knows_what_it_missed() {
    let mut cluster = with_a_backup_that_hangs();
    set(&mut cluster.client(), "k", "new");
    let _ = cluster.proxy.stop();
    cluster.primaries[0].restart();
    start(&mut cluster);
    assert_eq!(value(&mut cluster.client(), "k"), None);
    cluster.backups[0].resume();
    cluster.mirrored();
    assert_eq!(value(&mut cluster.client(), "k"), None);
    assert!(last_run(&cluster).contains("leads on its own word"), "{}", last_run(&cluster));
    cluster.assert_rings_equal();
}

/// The backup missed what the primary wrote alone, and says so: nothing of it comes back.
#[test]
fn a_late_server_that_missed_something_is_purged() {
    let mut cluster = with_a_backup_that_hangs();
    set(&mut cluster.client(), "noticed", "1");
    set(&mut cluster.client(), "k", "new");
    cluster.proxy.kill();
    cluster.proxy.args.retain(|a| a != "--resync=auto");
    cluster.proxy.args.push("--resync=manual".to_owned());
    // It hears from the primary's record that it missed something.
    cluster.backups[0].resume();
    start(&mut cluster);
    let addr = cluster.backups[0].addr();
    wait_until("the backup to be a witness", DEADLINE, || {
        crate::support::start::record(&cluster.backups[0], 0).contains("alone primary")
    });
    assert_eq!(cluster.backups[0].client().get("k").map(|item| item.map(|i| i.value)), Ok(Some(b"old".to_vec())));
    cluster.proxy.kill();
    cluster.proxy.args.retain(|a| a != "--resync=manual");
    cluster.proxy.args.push("--resync=auto".to_owned());
    cluster.backups[0].pause();
    cluster.primaries[0].restart();
    start(&mut cluster);
    assert_eq!(value(&mut cluster.client(), "k"), None);
    cluster.backups[0].resume();
    cluster.mirrored();
    assert_eq!(cluster.client().get("k").map(|item| item.is_some()), Ok::<_, Failure>(false), "{addr}");
    cluster.assert_rings_equal();
}

/// A slow machine is no reason to refuse what would be answered a moment later.
#[test]
fn requests_wait_where_all_servers_are_late_at_the_start() {
    for clean in [true, false] {
        let mut cluster = Cluster::start(&Shape::new(2, 1));
        fill(&mut cluster.client(), "old", COUNT, 50);
        match clean {
            true => assert!(cluster.proxy.stop().success()),
            false => cluster.proxy.kill(),
        }
        cluster.primaries.iter().chain(&cluster.backups).for_each(Memcached::pause);
        cluster.proxy.spawn();
        wait_until("the proxy takes clients", DEADLINE, || Client::try_connect(&cluster.proxy.addr()).is_ok());
        let clients: Vec<_> = (0..20)
            .map(|i| {
                let mut client = cluster.client();
                std::thread::spawn(move || (i, client.get(&format!("old:{i}")).map(|item| item.is_some())))
            })
            .collect();
        // Longer than the first look lasts, 250 ms, and shorter than a leader is waited for, 2 s.
        std::thread::sleep(std::time::Duration::from_millis(600));
        cluster.primaries.iter().chain(&cluster.backups).for_each(Memcached::resume);
        for client in clients {
            let (i, got) = client.join().expect("a client");
            assert_eq!(got, Ok(true), "old:{i}, clean: {clean}");
        }
        cluster.mirrored();
    }
}
