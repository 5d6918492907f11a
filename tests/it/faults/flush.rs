//! `flush_all` in every state of a pair, at once and delayed: nothing older is ever read again,
//! also after the nodes return.

use std::time::Duration;

use super::read;
use crate::support::cluster::{count_filled, fill};
use crate::support::{Client, Cluster, DEADLINE, Hold, Shape, Stored, wait_until};

const KEYS: usize = 1500;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum When {
    Mirrored,
    /// Without the primary: it hangs, and returns with old items.
    WithoutPrimary,
    WithoutBackup,
    /// The primary is being refilled, slowly.
    Recovering,
    /// Both hang, and return with old items.
    Dark,
}

/// None of the old items; errors are allowed while a pair is dark.
fn none_of_the_old(client: &mut Client, dark: bool, when: &str) {
    for i in (0..KEYS).step_by(7) {
        match read(client, &format!("old:{i}")) {
            Ok(None) => {}
            Err(_) if dark => {}
            other => panic!("{when}: old:{i} is {other:?} after flush_all"),
        }
    }
}

fn flush(when: When, delay: u64) {
    let name = format!("{when:?}, delay {delay}");
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync-rate", "1000", "--leader-timeout", "500ms"]));
    let mut client = cluster.client();
    fill(&mut client, "old", KEYS, 50);
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    match when {
        When::Mirrored => {}
        When::WithoutPrimary => {
            cluster.primaries[0].pause();
            cluster.wait_lost(&primary);
        }
        When::WithoutBackup => {
            cluster.backups[0].pause();
            cluster.wait_lost(&backup);
        }
        When::Recovering => {
            cluster.primaries[0].kill();
            cluster.wait_lost(&primary);
            cluster.primaries[0].restart();
            cluster.wait_copying(&primary);
        }
        When::Dark => {
            cluster.primaries[0].pause();
            cluster.wait_lost(&primary);
            cluster.backups[0].pause();
            cluster.wait_lost(&backup);
        }
    }
    let command = if delay == 0 { "flush_all".to_string() } else { format!("flush_all {delay}") };
    let said = client.raw_command(&command).unwrap_or_else(|e| panic!("{name}: {e}"));
    if when == When::Dark {
        // Nobody can remember it but the proxy, which says so, and does it all the same.
        let what = if delay > 0 { "record the delayed flush" } else { "be flushed" };
        assert!(said.starts_with(&format!("SERVER_ERROR no server could {what}")), "{name}: {said}");
    } else {
        assert_eq!(said, "OK", "{name}");
    }
    if delay > 0 {
        // Two seconds more than the delay, by anyone's clock.
        std::thread::sleep(Duration::from_secs(delay + 1));
        wait_until(&format!("the delayed flush: {name}"), crate::support::DEADLINE, || {
            !matches!(read(&mut client, "old:1"), Ok(Some(_)))
        });
    }
    let dark = when == When::Dark;
    none_of_the_old(&mut client, dark, &name);
    let mut newer = 0;
    if !dark {
        for i in 0..100 {
            assert_eq!(client.set(&format!("new:{i}"), b"new"), Ok(Stored::Stored), "{name}");
            newer += 1;
        }
        // The same name anew: the flush is over, and does not take what came after it.
        assert_eq!(client.store("add", "old:3", 0, 0, b"anew"), Ok(Stored::Stored), "{name}");
        assert_eq!(client.delete("old:3"), Ok(true), "{name}");
    }
    match when {
        When::Mirrored | When::Recovering => {}
        When::WithoutPrimary => cluster.primaries[0].resume(),
        When::WithoutBackup => cluster.backups[0].resume(),
        When::Dark => {
            // The last full copy comes last.
            cluster.primaries[0].resume();
            none_of_the_old(&mut client, true, &name);
            cluster.backups[0].resume();
        }
    }
    wait_until(&format!("every pair mirrored: {name}"), crate::support::DEADLINE, || {
        none_of_the_old(&mut client, dark, &name);
        cluster.proxy.status().mirrored()
    });
    none_of_the_old(&mut client, false, &name);
    let ring = cluster.assert_rings_equal();
    assert_eq!(
        ring.len(),
        newer,
        "{name}: {:?}",
        ring.keys().take(3).map(|k| String::from_utf8_lossy(k)).collect::<Vec<_>>()
    );
    // Nor from one copy alone.
    cluster.kill_primaries();
    none_of_the_old(&mut client, false, &name);
    assert_eq!(read(&mut client, "new:1").map(|v| v.is_some()), Ok(newer > 0), "{name}");
}

/// The command was sent, and who sent it is gone; it comes to the server when that one has been in
/// use again for long, with the markers that stood there. The server is empty then, and leads.
#[test]
fn g1_a_flush_that_is_executed_late_is_noticed() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).forwarded().proxy(&["--probe-successes", "1"]));
    let primary = cluster.primaries[0].known_as();
    let mut client = cluster.client();
    fill(&mut client, "before", 20, 50);
    cluster.primaries[0].network().hold(Hold::Flushes);
    assert_eq!(client.raw_command("flush_all").as_deref(), Ok("OK"));
    cluster.wait_lost(&primary);
    cluster.primaries[0].network().hang_up();
    cluster.mirrored();
    fill(&mut client, "after", KEYS, 50);
    let flushes = cluster.primaries[0].stat("cmd_flush");
    cluster.primaries[0].network().hold(Hold::Nothing);
    wait_until("the late flush", DEADLINE, || cluster.primaries[0].stat("cmd_flush") != flushes);
    assert_eq!(count_filled(&mut client, "after", KEYS, 50), KEYS);
    wait_until("the loss to be noticed", DEADLINE, || cluster.proxy.log_so_far().contains("reason=marker_stale"));
    cluster.mirrored();
    cluster.assert_rings_equal();
    cluster.kill_backups();
    assert_eq!(count_filled(&mut client, "after", KEYS, 50), KEYS);
}

#[test]
fn g2_flush_all_while_mirrored() {
    flush(When::Mirrored, 0);
    flush(When::Mirrored, 1);
}

#[test]
fn g2_flush_all_while_the_primary_hangs() {
    flush(When::WithoutPrimary, 0);
    flush(When::WithoutPrimary, 1);
}

#[test]
fn g2_flush_all_while_the_backup_hangs() {
    flush(When::WithoutBackup, 0);
    flush(When::WithoutBackup, 2);
}

#[test]
fn g2_flush_all_while_a_node_is_refilled() {
    flush(When::Recovering, 0);
    flush(When::Recovering, 1);
}

#[test]
fn g2_flush_all_while_nobody_leads() {
    flush(When::Dark, 0);
    flush(When::Dark, 1);
}
