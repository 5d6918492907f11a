//! A cas token taken before a later write never wins, whatever happened to the nodes in between.

use crate::support::{Client, Cluster, Proxy, Shape, Stored};

const KEY: &str = "cell";

struct Tokens {
    old: Vec<(&'static str, u64)>,
    writes: u32,
    refused: u32,
}

impl Tokens {
    /// A later write has made every token worthless. This many writes that a cas counter begun anew
    /// passes all their numbers.
    fn try_all(&mut self, client: &mut Client, when: &str) {
        for _ in 0..40 {
            self.writes += 1;
            let value = format!("write {}", self.writes);
            assert_eq!(client.set(KEY, value.as_bytes()), Ok(Stored::Stored), "{when}");
            for (taken, token) in &self.old {
                let answer = client.cas(KEY, 0, 0, b"an old token won", *token);
                assert!(
                    matches!(answer, Ok(Stored::Exists | Stored::NotFound)),
                    "a token taken {taken} was answered {answer:?} {when}, behind {value:?}"
                );
                self.refused += 1;
            }
            assert_eq!(client.get(KEY).map(|i| i.map(|i| i.value)), Ok(Some(value.into_bytes())), "{when}");
        }
    }

    fn take(&mut self, client: &mut Client, taken: &'static str) {
        let item = client.gets(KEY).expect("gets").expect("it is there");
        let token = item.cas.expect("a token");
        self.old.push((taken, token));
    }
}

/// Not restarted at all, restarted, both restarted one after the other, both at once, and the proxy
/// too.
#[test]
fn g5_no_token_outlives_a_later_write_across_fail_over_return_hand_back_and_restarts() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--resync-rate", "2000", "--leader-grace", "300ms"]));
    crate::support::cluster::fill(&mut cluster.client(), "bulk", 1500, 50);
    let mut client = cluster.client();
    let mut tokens = Tokens { old: Vec::new(), writes: 0, refused: 0 };
    assert_eq!(client.set(KEY, b"begin"), Ok(Stored::Stored));
    tokens.take(&mut client, "before everything");
    tokens.try_all(&mut client, "mirrored");
    tokens.take(&mut client, "while mirrored");
    for round in 0..2 {
        let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
        cluster.primaries[0].kill();
        cluster.wait_lost(&primary);
        tokens.try_all(&mut client, "after the fail-over");
        tokens.take(&mut client, "after the fail-over");
        cluster.primaries[0].restart();
        cluster.wait_copying(&primary);
        tokens.try_all(&mut client, "while the primary is refilled");
        tokens.take(&mut client, "while the primary is refilled");
        cluster.mirrored();
        tokens.try_all(&mut client, "after the hand-back");
        tokens.take(&mut client, "after the hand-back");
        cluster.backups[0].kill();
        cluster.wait_lost(&backup);
        tokens.try_all(&mut client, "without the backup");
        tokens.take(&mut client, "without the backup");
        cluster.backups[0].restart();
        cluster.mirrored();
        cluster.primaries[0].pause();
        cluster.wait_lost(&primary);
        tokens.try_all(&mut client, "after the fail-over from a hung primary");
        tokens.take(&mut client, "after the fail-over from a hung primary");
        cluster.primaries[0].resume();
        cluster.mirrored();
        tokens.try_all(&mut client, "after the hung primary's return");
        // Both at once: the item is gone, and the counters begin at 1.
        cluster.primaries[0].kill();
        cluster.backups[0].kill();
        cluster.wait_lost(&primary);
        cluster.wait_lost(&backup);
        cluster.primaries[0].restart();
        cluster.backups[0].restart();
        cluster.mirrored();
        for (taken, token) in &tokens.old {
            let answer = client.cas(KEY, 0, 0, b"an old token won", *token);
            assert_eq!(answer, Ok(Stored::NotFound), "a token taken {taken}, both memories gone");
        }
        tokens.try_all(&mut client, "both memories gone");
        tokens.take(&mut client, "both memories gone");
        crate::support::cluster::fill(&mut client, "bulk", 1500, 50);
        if round == 0 {
            assert!(cluster.proxy.stop().success());
        } else {
            cluster.proxy.kill();
        }
        cluster.proxy.spawn();
        cluster.proxy.wait_listening(crate::support::DEADLINE);
        client = reconnected(&cluster.proxy);
        cluster.mirrored();
        tokens.try_all(&mut client, "behind a new proxy");
        tokens.take(&mut client, "behind a new proxy");
    }
    eprintln!("{} old tokens tried, none won", tokens.refused);
    cluster.assert_rings_equal();
}

fn reconnected(proxy: &Proxy) -> Client {
    proxy.client()
}

/// The token of a client that read, stepped aside while its node was restarted, and comes back: no
/// later write, but another memory.
#[test]
fn g5_a_token_from_before_both_sides_restarted_one_after_the_other_does_not_win_over_a_later_write() {
    let mut cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    for i in 0..50 {
        let key = format!("cell:{i}");
        assert_eq!(client.set(&key, b"1"), Ok(Stored::Stored));
    }
    let tokens: Vec<u64> = (0..50)
        .map(|i| client.gets(&format!("cell:{i}")).expect("gets").expect("an item").cas.expect("a token"))
        .collect();
    for node in 0..2 {
        let nodes = if node == 0 { &mut cluster.primaries } else { &mut cluster.backups };
        let addr = nodes[0].addr();
        nodes[0].kill();
        cluster.wait_lost(&addr);
        let nodes = if node == 0 { &mut cluster.primaries } else { &mut cluster.backups };
        nodes[0].restart();
        cluster.mirrored();
    }
    for (i, token) in tokens.iter().enumerate() {
        let key = format!("cell:{i}");
        if i % 2 == 0 {
            assert_eq!(client.set(&key, b"2"), Ok(Stored::Stored));
        }
        let answer = client.cas(&key, 0, 0, b"an old token won", *token);
        assert_eq!(answer, Ok(Stored::Exists), "{key}");
        let wanted: &[u8] = if i % 2 == 0 { b"2" } else { b"1" };
        assert_eq!(client.get(&key).expect("get").map(|i| i.value).as_deref(), Some(wanted), "{key}");
    }
    cluster.assert_rings_equal();
}
