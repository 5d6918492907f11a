//! What operators say to a running proxy without `nc`: a command for each of its own,
//! `resilver key` and `resilver top`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::status::says;
use crate::support::client::Stored;
use crate::support::cluster::fill;
use crate::support::command::{Running, ended, resilver, run};
use crate::support::{Cluster, Shape, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// Else it is told "no answer", and what was asked for happens later.
#[test]
fn an_operator_waits_for_a_proxy_that_has_a_lot_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("its address").to_string();
    let busy = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("an operator");
        let mut lines = BufReader::new(stream.try_clone().expect("a copy")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "stats proxy");
        stream.write_all(b"STAT proxy:role active\r\nSTAT proxy:ready 1\r\nEND\r\n").expect("answered");
        assert_eq!(lines.next().expect("a line").expect("text"), "resync lead a:1");
        // Longer than whoever only looks is ready to wait.
        std::thread::sleep(Duration::from_millis(2500));
        let _ = stream.write_all(b"OK\r\n");
    });
    let said = run(&["lead", "--yes", "a:1", "--proxy", &at]);
    assert_eq!(said, (Some(0), "OK\n".to_owned(), String::new()));
    busy.join().expect("asked as it should be");
}

#[test]
fn every_operator_command_has_one_of_its_own() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--leader-timeout=300ms"]));
    fill(&mut cluster.client(), "k", 30, 10);
    let (proxy, primary) = (cluster.proxy.addr(), cluster.primaries[0].addr());
    let said = |command: &[&str]| run(&[command, &["--proxy", &proxy]].concat());
    let good = |command: &[&str]| {
        let (code, printed, complaint) = said(command);
        assert_eq!((code, complaint.as_str()), (Some(0), ""), "{command:?}: {printed}");
        printed
    };
    assert_eq!(good(&["verify"]), "OK\n");
    wait_until("the end of it", DEADLINE, || cluster.proxy.status().verify("state") == "done");
    let screen = good(&["status"]);
    assert!(screen.contains("\nverify done, ") && screen.contains(" keys compared, 0 differed\n"), "{screen}");
    assert_eq!(good(&["verify", &primary]), "OK\n");
    assert_eq!(good(&["resync", &primary]), "OK\n");
    cluster.mirrored();
    assert_eq!(good(&["resync"]), "OK\n");
    assert_eq!(good(&["cancel"]), "OK\n");
    assert!(good(&["stats"]).contains("\nresilver_version ") && !good(&["stats"]).contains("STAT "));
    assert!(good(&["stats", "servers"]).contains(&format!("{primary}:state up\n")));
    assert!(good(&["node", &primary, "version"]).starts_with("VERSION "));
    assert!(good(&["node", &primary, "stats", "items"]).contains("items:"));
    assert_eq!(good(&["node", &primary, "get", "k:1", "k:2"]).lines().count(), 4, "two items");
    let keys = good(&["keys"]);
    assert_eq!(
        (keys.lines().count(), keys.lines().filter(|line| line.starts_with("key=k%3A")).count()),
        (30, 30),
        "{keys}"
    );

    // What is refused is told, and changes nothing.
    for (command, code, why) in [
        (&["verify", "nosuch:1"][..], 1, "unknown node or word nosuch:1"),
        (&["resync", "nosuch:1"], 1, "unknown node"),
        (&["cancel", &primary], 1, "no resync of"),
        (&["lead", &primary], 2, "say --yes"),
        (&["lead", &primary, "--yes"], 1, "has no dark pair"),
        (&["stats", "nosuch"], 1, "ERROR"),
        (&["resync", "a", "b"], 2, "unexpected argument"),
        (&["ask", "flush_all"], 2, "no operator's command"),
    ] {
        let (ended, printed, complaint) = said(command);
        assert_eq!((ended, printed.as_str()), (Some(code), ""), "{command:?}: {complaint}");
        assert!(complaint.contains(why), "{command:?}: {complaint}");
        assert!(complaint.starts_with(&format!("resilver {}: ", command[0])), "{command:?}: {complaint}");
    }
    let (_, _, complaint) = said(&["stats", "nosuch"]);
    let parts = complaint.trim_end().split("the parts of stats are ").nth(1).unwrap_or_default();
    assert!(parts.split(", ").count() > 9, "{complaint}");
    for part in parts.split(", ") {
        let (_, _, complaint) = said(&[&["stats"][..], &part.split(' ').take(1).collect::<Vec<_>>()].concat());
        assert!(!complaint.contains("the parts of stats are"), "{part}: {complaint}");
        assert!(!complaint.contains("no answer"), "{part}: {complaint}");
    }
    // memcached 1.6.18 ends the answer to this one without a word.
    assert_eq!(good(&["stats", "sizes_enable"]), "sizes_status enabled\n");
    assert_eq!(good(&["node", &primary, "stats", "sizes_disable"]), "sizes_status disabled\n");
    assert!(said(&["node", &primary, "flush_all"]).2.contains("it would empty one copy"));

    // The last word of an outage.
    let backup = cluster.backups[0].addr();
    cluster.backups[0].kill();
    cluster.wait_lost(&backup);
    cluster.client().raw_command("touch k:1 0").ok();
    cluster.primaries[0].pause();
    cluster.backups[0].restart();
    cluster.proxy.wait_status("a dark pair", DEADLINE, |status| status.pair(&primary, &backup, "state") == "dark");
    let mut complaint = String::new();
    wait_until("the backup to answer", DEADLINE, || {
        let (code, _, why) = said(&["lead", &backup, "--yes"]);
        complaint = why;
        code == Some(0)
    });
    cluster
        .proxy
        .wait_status("somebody to lead", DEADLINE, |status| status.pair(&primary, &backup, "leader") == backup);
    cluster.primaries[0].resume();
}

/// Says this again and again to whoever connects.
fn repeats(words: &'static [u8], pause: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                while stream.write_all(words).is_ok() {
                    std::thread::sleep(pause);
                }
            });
        }
    });
    addr
}

/// A memcached answers `stats` and lists keys as well, and others might say anything for ever.
#[test]
fn what_is_no_resilver_is_said_no_operators_command() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let server = cluster.primaries[0].addr();
    let drip = repeats(b"STAT a b\r\n", Duration::from_millis(100));
    let flood = repeats(&[b's'; 1 << 16], Duration::from_millis(5));
    let lines = repeats(b"STAT a b\r\nSTAT c d\r\n", Duration::from_millis(1));
    let rubbish = says(b"STAT a b\r\nEND\r\nSTAT a b\r\nEND\r\n");
    std::thread::scope(|scope| {
        // Those that go on for ever are waited for, two seconds.
        for (proxy, why, commands) in [
            (&server, "is no resilver", 5),
            (&rubbish, "is no resilver, or of another version", 5),
            (&drip, "no answer within 2s", 3),
            (&flood, "", 1),
            (&lines, "", 1),
        ] {
            for command in [&["stats"][..], &["keys"], &["resync"], &["ask", "version"], &["node", "a:1", "version"]]
                .into_iter()
                .take(commands)
            {
                scope.spawn(move || {
                    let begun = Instant::now();
                    let (code, printed, complaint) = run(&[command, &["--proxy", proxy.as_str()]].concat());
                    assert_eq!((code, printed.as_str()), (Some(1), ""), "{command:?} {proxy}: {complaint}");
                    let begins = format!("resilver {}: {proxy}: ", command[0]);
                    assert!(complaint.starts_with(&begins) && complaint.contains(why), "{command:?}: {complaint}");
                    assert!(begun.elapsed() < DEADLINE, "{command:?} {proxy}");
                });
            }
        }
    });
}

#[test]
fn a_key_is_found_on_both_servers() {
    let mut cluster = Cluster::start(&Shape::new(2, 1));
    let proxy = cluster.proxy.addr();
    let key = |key: &str| run(&["key", key, "--proxy", &proxy]);
    let mut client = cluster.client();
    client.send(b"set user:17 5 100 3\r\nabc\r\n").expect("sent");
    client.raw_command("version").expect("answers");
    let (code, text, complaint) = key("user:17");
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{text}");
    let backup = cluster.backups[0].addr();
    let of = |text: &str, server: &str| text.lines().find(|line| line.starts_with(server)).map(str::to_owned);
    let holder = cluster.primaries.iter().map(|server| server.addr()).find(|server| of(&text, server).is_some());
    let holder = holder.unwrap_or_else(|| panic!("no primary: {text}"));
    assert!(text.contains(&format!("key user:17\npair {holder}|{backup}  mirrored, led by {holder}\n")), "{text}");
    let words =
        |line: Option<String>| line.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (primary, follower) = (words(of(&text, &holder)), words(of(&text, &backup)));
    assert_eq!(primary[1..6], ["primary", "leader", "an", "item", "3"], "{text}");
    assert_eq!(follower[1..6], ["backup", "follower", "an", "item", "3"], "{text}");
    assert!(text.ends_with("the same on both: value, flags and time (each server has cas ids of its own)\n"), "{text}");
    let (code, text, _) = key("nosuch");
    assert!(
        code == Some(0) && text.matches("nothing").count() == 2 && text.ends_with("\nneither server holds it\n"),
        "{text}"
    );
    assert_eq!(key("a b").0, Some(2));

    // What is stale stands on the leader alone, and whoever looks first is to recompute it: a
    // client, not the operator.
    client.send(b"ms user:18 3\r\nabc\r\nmd user:18 I\r\nmn\r\n").expect("sent");
    client.raw_until(b"MN\r\n").expect("answers");
    let (code, text, _) = key("user:18");
    assert!(text.contains(" a stale item ") && text.contains(" nothing "), "{text}");
    assert!(text.ends_with("\nstale, or being recomputed: the leader alone keeps it, as it should\n"), "{text}");
    assert_eq!(code, Some(0));
    client.send(b"mg user:18 v\r\nmn\r\n").expect("sent");
    assert_eq!(client.raw_until(b"MN\r\n").expect("answers").0, b"VA 3 X W\r\nabc\r\nMN\r\n");

    // Somebody has written past the proxy.
    cluster.backups[0].client().send(b"set user:17 5 100 3\r\nxyz\r\n").expect("sent");
    wait_until("it to differ", DEADLINE, || key("user:17").0 == Some(1));
    let different = format!("! DIFFERENT, in several looks: resilver verify --proxy {proxy} compares all keys");
    assert!(key("user:17").1.contains(&different));
    cluster.backups[0].kill();
    cluster.wait_lost(&backup);
    let (code, text, _) = key("user:17");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("degraded, led by ") && text.contains("unknown"), "{text}");
    assert!(text.contains(&format!("! {backup} could not be asked: ")) && text.contains("not known whether"), "{text}");
}

/// Its value is in no answer that the proxy passes on, and both servers were said to be unknown.
#[test]
fn a_key_with_a_large_value_is_compared_by_its_size() {
    let shape = Shape::new(1, 1).nodes(&["-I", "16m", "-m", "128"]).proxy(&["--item-size-max", "16m"]);
    let cluster = Cluster::start(&shape);
    let value = vec![b'a'; 5_000_000];
    assert_eq!(cluster.client().set("large", &value), Ok(Stored::Stored));
    let key = || run(&["key", "large", "--proxy", &cluster.proxy.addr()]);
    let (code, text, complaint) = key();
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{text}");
    assert!(text.matches("an item  5000000").count() == 2 && text.contains("are not compared"), "{text}");
    // Somebody has written past the proxy.
    assert_eq!(cluster.backups[0].client().set("large", &value[1..]), Ok(Stored::Stored));
    wait_until("it to differ", DEADLINE, || key().0 == Some(1));
}

#[test]
fn top_shows_what_is_asked_between_two_looks() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let addr = cluster.proxy.addr();
    let mut top =
        Running::start(resilver().args(["top", "--every=100ms", "--batch", "--proxy", &addr]).stdout(Stdio::piped()));
    let mut lines = BufReader::new(top.0.stdout.take().expect("its output")).lines().map_while(Result::ok);
    let mut client = cluster.client();
    let mut next = |begins: &str| {
        fill(&mut client, "k", 50, 10);
        lines.by_ref().take(1000).find(|line| line.starts_with(begins)).unwrap_or_default()
    };
    assert!(next("resilver ").contains("  MIRRORED  clients "));
    assert!(next("COMMAND ").contains("REQ/S"));
    let set = next("set ");
    assert!(set.split_whitespace().nth(1).is_some_and(|rate| rate != "0") && set.contains("ms"), "{set}");
    let server = next(&cluster.primaries[0].addr());
    assert!(server.contains("  primary  up  "), "{server}");
    top.end("INT");
    let (code, once, complaint) = run(&["top", "--once", "--every=100ms", "--proxy", &cluster.proxy.addr()]);
    assert_eq!((code, complaint.as_str(), once.matches("resilver ").count()), (Some(0), "", 1), "{once}");

    // A disk is full: what could not be written was not said.
    for command in
        [&["top", "--once", "--every=100ms"][..], &["status"], &["status", "--check"], &["key", "k"], &["stats"]]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a device that is full");
        let (code, _, complaint) =
            ended(resilver().args(command).args(["--proxy", &cluster.proxy.addr()]).stdout(full));
        assert!(code != Some(0) && complaint.contains("cannot write the answer: "), "{command:?}: {complaint}");
    }
}
