//! The judge on trial: clean over one honest memcached, red over each kind of lie. A judge that
//! cannot fail proves nothing.

use std::time::{Duration, Instant};

use crate::support::faulty::{self, Fault};
use crate::support::{Client, Load, Memcached, Mix, Verdict, compare_rings, read_node, read_ring};

/// Runs every workload over the pass-through until enough has been done, or enough has gone wrong.
fn judge(fault: Fault, words: &[&str]) -> Verdict {
    let node = Memcached::start(&[]);
    let addr = faulty::start(&node.addr(), fault);
    let seed = crate::support::seed(&format!("{fault:?}"));
    let load = Load::start(&node.addr(), Mix { pace: Duration::ZERO, prefix: "calm".into(), ..Mix::small(seed) });
    load.stop().assert_clean();
    let mix = Mix { pace: Duration::from_micros(200), prefix: "lied".into(), keys_per_writer: 10, ..Mix::small(seed) };
    let load = Load::start(&addr, mix);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) || fault != Fault::None {
        if fault != Fault::None
            && (load.verdict().violations.iter().any(|v| words.iter().any(|w| v.contains(w)))
                || begun.elapsed() > Duration::from_secs(20))
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let model = load.stop();
    model.check_through(&mut node.client());
    model.check_ring("only", &read_ring(std::slice::from_ref(&node)));
    model.recorder.verdict()
}

fn must_see(fault: Fault, words: &[&str]) {
    let verdict = judge(fault, words);
    let seen = verdict.violations.iter().find(|v| words.iter().any(|w| v.contains(w)));
    let seen = seen.unwrap_or_else(|| {
        panic!("{fault:?} went unseen; violations: {:#?}\n{}", verdict.violations, verdict.summary())
    });
    eprintln!("{fault:?} seen as: {seen}");
}

#[test]
fn an_honest_memcached_is_clean() {
    let verdict = judge(Fault::None, &[]);
    verdict.assert_clean();
    for what in ["reads", "hits", "counter steps", "locks taken", "cas won", "old cas tokens tried"] {
        assert!(verdict.count(what) > 0, "no {what}: {}", verdict.summary());
    }
    assert_eq!(verdict.count("cas refused though nobody wrote"), 0);
}

#[test]
fn a_lost_set_is_seen() {
    must_see(Fault::LoseSet, &["LOST", "STALE", "RESURRECTED"]);
}

#[test]
fn a_lost_delete_is_seen() {
    must_see(Fault::LoseDelete, &["RESURRECTED", "STALE", "LOCK"]);
}

#[test]
fn a_double_increment_is_seen() {
    must_see(Fault::DoubleIncr, &["COUNTER"]);
}

#[test]
fn an_undone_increment_is_seen() {
    must_see(Fault::UndoIncr, &["COUNTER"]);
}

#[test]
fn a_doubled_append_is_seen() {
    must_see(Fault::DoubleAppend, &["WRONG BYTES"]);
}

#[test]
fn an_add_that_overwrites_is_seen() {
    must_see(Fault::AddWins, &["ADD on an existing", "LOCK"]);
}

#[test]
fn an_old_cas_token_that_wins_is_seen() {
    must_see(Fault::CasWins, &["OLD TOKEN", "CAS"]);
}

#[test]
fn a_miss_is_seen() {
    must_see(Fault::Miss, &["LOST"]);
}

#[test]
fn a_wrong_byte_is_seen() {
    must_see(Fault::Corrupt, &["WRONG BYTES", "COUNTER", "CAS", "LOCK"]);
}

#[test]
fn wrong_flags_are_seen() {
    must_see(Fault::WrongFlags, &["WRONG FLAGS"]);
}

#[test]
fn a_stale_read_is_seen() {
    // An old answer for a key that was deleted since is stale too, and is called by its other name.
    must_see(Fault::Stale, &["STALE", "RESURRECTED"]);
}

#[test]
fn an_error_is_seen() {
    must_see(Fault::ServerError, &["ERROR"]);
}

#[test]
fn a_closed_connection_is_seen() {
    must_see(Fault::Close, &["connection lost"]);
}

#[test]
fn a_wrong_exptime_is_seen_on_the_ring() {
    let node = Memcached::start(&[]);
    let addr = faulty::start(&node.addr(), Fault::WrongTtl);
    // This many keys that what was stored wrongly is hardly ever overwritten before the look.
    let mix = Mix { keys_per_writer: 500, ..Mix::registers(crate::support::seed("WrongTtl"), 4, 1) };
    let load = Load::start(&addr, mix);
    load.wait_operations(2000);
    let model = load.stop();
    model.check_ring("only", &read_ring(std::slice::from_ref(&node)));
    let verdict = model.recorder.verdict();
    assert!(verdict.violations.iter().any(|v| v.contains("WRONG EXPIRY")), "{}", verdict.summary());
}

#[test]
fn a_hang_is_seen() {
    let node = Memcached::start(&[]);
    let mut client = Client::connect(&faulty::start(&node.addr(), Fault::Hang));
    client.set_deadline(Duration::from_millis(300));
    let hang = (0..faulty::EVERY).find_map(|_| client.get("x").err());
    assert!(matches!(hang, Some(crate::support::Failure::Hang(_))), "{hang:?}");
}

#[test]
fn two_rings_that_differ_are_told_apart() {
    let (a, b) = (Memcached::start(&[]), Memcached::start(&[]));
    let (mut ca, mut cb) = (a.client(), b.client());
    let differences = || compare_rings(&read_node(&a.addr()), &read_node(&b.addr()));
    for client in [&mut ca, &mut cb] {
        for i in 0..50 {
            client.store("set", &format!("k{i}"), i, 100, b"same \r\n bytes").expect("set");
        }
        client.set("__resilver__:marker", b"x").expect("set");
    }
    ca.set("__resilver__:other", b"y").expect("set");
    assert_eq!(differences(), Vec::<String>::new());
    for (key, on_a, flags, exptime, value) in [
        ("only-a", true, 0, 0, "v"),
        ("only-b", false, 0, 0, "v"),
        ("k1", false, 1, 100, "other bytes"),
        ("k2", false, 7, 100, "same \r\n bytes"),
        ("k3", false, 3, 0, "same \r\n bytes"),
        ("k4", false, 4, 110, "same \r\n bytes"),
    ] {
        let client = if on_a { &mut ca } else { &mut cb };
        client.store("set", key, flags, exptime, value.as_bytes()).expect("set");
    }
    let found = differences();
    assert_eq!(found.len(), 6, "{found:#?}");
    for word in ["only-a", "only-b", "value", "flags", "TTL None", "k4"] {
        assert!(found.iter().any(|d| d.contains(word)), "{word} missing in {found:#?}");
    }
}

/// What every cache without a second copy does when its node restarts.
#[test]
fn a_restart_of_the_only_copy_is_seen() {
    let mut node = Memcached::start(&[]);
    let load = Load::start(&node.addr(), Mix::small(crate::support::seed("only copy")));
    load.wait_operations(1000);
    node.restart();
    crate::support::wait_until("the losses to be seen", crate::support::DEADLINE, || {
        let violations = load.verdict().violations;
        violations.iter().any(|v| v.contains("LOST")) && violations.iter().any(|v| v.contains("connection lost"))
    });
    load.stop();
}

/// Deletes that one copy missed: the older copy, served again, is told from the newer.
#[test]
fn an_old_copy_served_again_is_seen() {
    let (fresh, old) = (Memcached::start(&[]), Memcached::start(&[]));
    let mut history = crate::support::judge::History::default();
    let content = |text: &str| Some(crate::support::judge::Content { bytes: text.into(), flags: 0, expires: None });
    let (mut now, mut before) = (fresh.client(), old.client());
    for (text, missed) in [("one", false), ("two", true)] {
        let version = history.begin("set", content(text));
        now.set("k", text.as_bytes()).expect("set");
        if !missed {
            before.set("k", text.as_bytes()).expect("set");
        }
        history.acknowledge(version);
    }
    let read = |client: &mut Client| client.get("k").expect("get");
    assert_eq!(history.judge(history.acked(), read(&mut now).as_ref()), Ok(()));
    let stale = history.judge(history.acked(), read(&mut before).as_ref());
    assert!(stale.as_ref().is_err_and(|w| w.starts_with("STALE")), "{stale:?}");
    let version = history.begin("delete", None);
    now.delete("k").expect("delete");
    assert_eq!(
        history.judge(history.acked(), read(&mut now).as_ref()),
        Ok(()),
        "a delete under way may be seen or not"
    );
    history.acknowledge(version);
    let resurrected = history.judge(history.acked(), read(&mut before).as_ref());
    assert!(resurrected.as_ref().is_err_and(|w| w.starts_with("RESURRECTED")), "{resurrected:?}");
    assert_eq!(history.judge(history.acked(), read(&mut now).as_ref()), Ok(()));
}
