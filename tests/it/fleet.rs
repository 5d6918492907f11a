//! Several proxies over the same servers: real processes, a lock file or a real etcd.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::command::{ended, resilver};
use crate::support::fleet::{FENCED, LEASE, args, asked_for, get, said, shown};
use crate::support::port::Port;
use crate::support::{Client, DEADLINE, Etcd, Failure, Fleet, Proxy, Rng, Stored, duration_or, seed, wait_until};

#[test]
fn every_command_goes_through_every_door_in_the_order_of_its_client() {
    let fleet = Fleet::by_file(2);
    let (active, standby) = (&fleet.proxies[fleet.active()], fleet.standby());
    assert_eq!((shown(standby, "role"), shown(active, "role")), ("standby".into(), "active".into()));
    assert_eq!(shown(standby, "active"), shown(active, "own"));
    let release = env!("CARGO_PKG_VERSION");
    let peer = format!("peer:{}", shown(standby, "own"));
    wait_until("the active one knows it", DEADLINE, || {
        shown(active, &peer) == format!("standby, candidate, {release}")
    });
    assert_eq!(shown(standby, &format!("peer:{}", shown(active, "own"))), "active, reached");
    let (mut here, mut there) = (standby.client(), active.client());
    // In one piece: each sees what the one before it did.
    here.send(
        b"set a 5 0 1\r\n1\r\nincr a 4\r\nappend a 0 0 1 noreply\r\n0\r\nget a\r\nmg a v f\r\nms b 2 T60\r\nhi\r\nmn\r\n\
          delete a\r\nget a\r\ntouch b 100\r\n",
    )
    .unwrap();
    for line in ["STORED", "5", "VALUE a 5 2", "50", "END", "VA 2 f5", "50", "HD", "MN", "DELETED", "END", "TOUCHED"] {
        assert_eq!(here.text().as_deref(), Ok(line));
    }
    assert_eq!(get(&mut there, "b").as_deref(), Some("hi"));
    // A large value, in both directions.
    let large = vec![b'x'; 900_000];
    assert_eq!(here.set("large", &large), Ok(Stored::Stored));
    assert_eq!(here.get("large").unwrap().unwrap().value, large);
    // cas tokens are the same at both doors.
    let token = there.gets("b").unwrap().unwrap().cas;
    assert_eq!(here.gets("b").unwrap().unwrap().cas, token);
    assert_eq!(here.cas("b", 0, 0, b"new", token.expect("gets tells it")), Ok(Stored::Stored));
    assert_eq!(here.stats("").unwrap().iter().filter(|(name, _)| name == "cmd_set").count(), 1);
    assert_eq!(here.command("flush_all").as_deref(), Ok("OK"));
    assert_eq!((get(&mut there, "b"), get(&mut here, "large")), (None, None));
    // The binary protocol: a no-op.
    let mut binary = std::net::TcpStream::connect(standby.addr()).unwrap();
    binary.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut packet = [0_u8; 24];
    (packet[0], packet[1], packet[15]) = (0x80, 0x0a, 7);
    binary.write_all(&packet).unwrap();
    binary.read_exact(&mut packet).unwrap();
    assert_eq!((packet[0], packet[1], packet[15]), (0x81, 0x0a, 7));
    assert_ne!(shown(standby, "forwarded"), "0");
}

#[test]
fn the_next_proxy_takes_the_place_of_one_that_is_killed_and_its_clients_stay() {
    let mut fleet = Fleet::by_file(3);
    fleet.mirrored();
    let mut there = fleet.standby().client();
    for i in 0..100 {
        assert_eq!(there.set(&format!("k{i}"), format!("v{i}").as_bytes()), Ok(Stored::Stored));
    }
    let active = fleet.active();
    let generation: u64 = shown(&fleet.proxies[active], "generation").parse().unwrap();
    fleet.proxies[active].kill();
    // Asked before anybody has taken over: it waits. Nothing was asked of the dead one.
    for i in 0..100 {
        assert_eq!(get(&mut there, &format!("k{i}")), Some(format!("v{i}")));
    }
    let next = fleet.active();
    assert_ne!(next, active);
    assert_eq!(shown(&fleet.proxies[next], "generation"), (generation + 1).to_string());
    // The lock file shows that the former one is no more.
    assert_eq!(shown(&fleet.proxies[next], "former"), "none");
    fleet.mirrored();
    fleet.copies_are_equal();
    fleet.proxies[active].spawn();
    fleet.all_ready();
    assert_eq!(shown(&fleet.proxies[active], "role"), "standby");
}

/// It wakes with requests of its clients before it: none of them may be made, or answered.
#[test]
fn a_paused_proxy_that_was_replaced_does_nothing_when_it_wakes() {
    let etcd = Etcd::start();
    let mut fleet = Fleet::start(2, &etcd.fleet("paused"));
    fleet.mirrored();
    let (former, next) = (fleet.active(), 1 - fleet.active());
    let mut late: Vec<Client> = (0..20).map(|_| fleet.proxies[former].client()).collect();
    for (i, client) in late.iter_mut().enumerate() {
        assert_eq!(client.set(&format!("k{i}"), b"before"), Ok(Stored::Stored));
    }
    fleet.proxies[former].pause();
    for (i, client) in late.iter_mut().enumerate() {
        client.send(format!("set k{i} 0 0 4\r\nlate\r\nget k{i}\r\n").as_bytes()).unwrap();
    }
    let mut there = fleet.proxies[next].client();
    for i in 0..20 {
        assert_eq!(there.set(&format!("k{i}"), b"after"), Ok(Stored::Stored));
    }
    // It may still send what it was about to: nothing is called mirrored, and nothing filled.
    assert_eq!(shown(&fleet.proxies[next], "former"), "awaited");
    let status = fleet.proxies[next].status();
    assert!(!status.mirrored());
    let (primary, backup) = (fleet.primaries[0].known_as(), fleet.backups[0].known_as());
    assert_eq!(status.pair(&primary, &backup, "reason"), "former_active");
    fleet.proxies[former].resume();
    assert_eq!(fleet.proxies[former].wait_exit().code(), Some(FENCED));
    for client in &mut late {
        let answer = client.text();
        assert!(matches!(answer, Err(Failure::Closed(_))), "it was answered: {answer:?}");
    }
    // Its connections are closed.
    fleet.mirrored();
    assert_eq!(shown(&fleet.proxies[next], "former"), "none");
    for i in 0..20 {
        assert_eq!(get(&mut there, &format!("k{i}")).as_deref(), Some("after"));
    }
    fleet.copies_are_equal();
}

/// A proxy that knows no fleets works there for a moment: its end says nothing of the former one.
#[test]
fn nothing_is_filled_before_the_former_proxy_is_gone_whoever_else_has_come_and_gone() {
    let etcd = Etcd::start();
    let mut fleet = Fleet::start_with(2, &etcd.fleet("guest"), &["--former-grace", "10m"]);
    fleet.mirrored();
    let (former, next) = (fleet.active(), 1 - fleet.active());
    fleet.proxies[former].pause();
    wait_until("it is awaited", DEADLINE, || shown(&fleet.proxies[next], "former") == "awaited");
    fleet.backups[0].restart();
    fleet.proxies[next].wait_node(&fleet.backups[0].known_as(), "waiting");
    let mut server = fleet.primaries[0].client();
    for (session, noticed) in [
        ("00000000000000ff open", "another proxy works on this node"),
        ("00000000000000ff closed", "the other proxy is gone"),
    ] {
        assert_eq!(server.set("__resilver__:session", session.as_bytes()), Ok(Stored::Stored));
        wait_until(noticed, DEADLINE, || fleet.proxies[next].log_so_far().contains(noticed));
    }
    fleet.proxies[former].resume();
    assert_eq!(fleet.proxies[former].wait_exit().code(), Some(FENCED));
    fleet.mirrored();
    let log = fleet.proxies[next].log();
    let (gone, filled) = (log.find("the former active proxy is gone"), log.find("resync begins"));
    assert!(gone.is_some() && gone < filled, "it was filled too early:\n{log}");
    fleet.copies_are_equal();
}

#[test]
fn without_etcd_nobody_is_replaced_and_the_active_proxy_goes_on_when_it_is_back() {
    let etcd = Etcd::start();
    let admins = [Port::reserve(), Port::reserve()];
    let [first, second] = admins.each_ref().map(Port::addr);
    let dir = tempfile::tempdir().expect("a folder");
    let [one, other] = [0, 1].map(|at| dir.path().join(format!("{at}")).to_str().expect("text").to_owned());
    let each: [&[&str]; 2] =
        [&["--admin", &first, "--admin-socket", &one], &["--admin", &second, "--admin-socket", &other]];
    let fleet = Fleet::start_each(&etcd.fleet("away"), &each);
    fleet.mirrored();
    let at = fleet.active();
    let (active, standby, admin) = (&fleet.proxies[at], fleet.standby(), &admins[at]);
    let generation = shown(active, "generation");
    let mut there = standby.client();
    assert_eq!(there.set("k", b"before"), Ok(Stored::Stored));
    assert_eq!(asked_for(admin, "/readyz").0, "200");
    let is = |role: &str, lease_held: &str| (role.to_owned(), lease_held.to_owned(), "1".to_owned());
    assert_eq!((standing(admin), standing(&admins[1 - at])), (is("active", "1"), is("standby", "0")));
    let mut had = active.client();
    assert_eq!(get(&mut had, "k").as_deref(), Some("before"));
    // It waits for nothing.
    let mut quiet = standby.client();
    quiet.send(b"set quiet 0 0 1 noreply\r\n1\r\n").unwrap();
    wait_until("it is done", DEADLINE, || get(&mut had, "quiet").is_some());
    etcd.pause();
    wait_until("the lease is over", DEADLINE, || active.log_so_far().contains("the lease is over"));
    let mut own = active.client();
    for client in [&mut own, &mut had] {
        client.send(b"set own 0 0 1\r\n1\r\n").unwrap();
    }
    // Whoever looks is told.
    wait_until("it says so", DEADLINE, || shown(active, "role") == "suspended");
    assert_eq!((shown(active, "ready"), shown(active, "lease_ms")), ("0".into(), "0".into()));
    assert_eq!(asked_for(admin, "/livez").0, "200");
    for path in ["/readyz", "/status.json"] {
        let (code, said) = asked_for(admin, path);
        assert!(code == "503" && said.contains("suspended: its lease is over"), "{path}: {code} {said}");
    }
    // (An error would look as if it were down.)
    assert_eq!(standing(admin), ("suspended".to_owned(), "0".to_owned(), "0".to_owned()));
    let status = said(active, &["status"]);
    assert!(status.0 == Some(3) && status.1.contains("is suspended"), "{status:?}");
    let waited = said(active, &["wait", "--ready", "--timeout", "1ms"]);
    assert!(waited.0 == Some(1) && waited.1.contains("is suspended, and serves nobody"), "{waited:?}");
    // Nobody is served there either, though the active proxy's process lives.
    wait_until("the standby says so", DEADLINE, || shown(standby, "ready") == "0");
    assert_eq!(asked_for(&admins[1 - at], "/readyz").0, "503");
    let status = said(standby, &["status"]);
    assert!(status.1.contains("is a standby that does not reach the active proxy"), "{status:?}");
    let socket = dir.path().join(format!("{at}"));
    for command in ["reload", "resync"] {
        let (code, _, why) = ended(resilver().arg(command).arg("--proxy").arg(&socket));
        assert!(code != Some(0) && why.contains("this proxy is suspended: its lease is over"), "{why}");
    }
    // With the reason, after --takeover-wait.
    let refused = there.set("k", b"unknown").unwrap_err();
    assert!(matches!(&refused, Failure::Server(_)), "{refused}");
    let refused = own.stored().unwrap_err();
    assert!(matches!(&refused, Failure::Server(why) if why.contains("this one is suspended")), "{refused}");
    // Who waits for a write that may still be made is not closed for that, and told again.
    let refused = there.set("k", b"later").unwrap_err();
    assert!(matches!(&refused, Failure::Server(why) if why.contains("no proxy is active")), "{refused}");
    etcd.resume();
    assert_eq!(had.stored(), Ok(Stored::Stored), "it was waited for");
    wait_until("the active proxy goes on", DEADLINE, || shown(active, "role") == "active");
    assert_eq!(own.set("own", b"1"), Ok(Stored::Stored), "it stays");
    wait_until("it is ready again", DEADLINE, || asked_for(admin, "/readyz").0 == "200");
    assert_eq!(said(active, &["wait", "--ready"]), (Some(0), "ready\n".to_owned()));
    assert_eq!(shown(active, "generation"), generation);
    assert!(get(&mut there, "k").is_some_and(|value| ["before", "unknown"].contains(&value.as_str())));
    assert_eq!(get(&mut quiet, "quiet").as_deref(), Some("1"));
    assert!(active.status().mirrored());
    assert_eq!(active.log().matches("resync begins").count(), 0);
}

/// Every system call of a thread takes half a minute from now on; ended when dropped.
pub struct Hung(Child);

impl Hung {
    /// Nothing: there is no strace, or it may not attach.
    pub fn of(pid: u32, thread: &str) -> Option<Hung> {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
        let named = |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == thread);
        let task = tasks.map(|task| task.expect("a thread").path()).find(named).expect("a thread of that name");
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-o", "/dev/null", "-e", "inject=all:delay_exit=30000000", "-p"]);
        strace.arg(task.file_name().expect("its number")).stdin(Stdio::null()).stderr(Stdio::null());
        let mut hung = Hung(strace.spawn().ok()?);
        let tracer = format!("TracerPid:\t{}\n", hung.0.id());
        let mut attached = false;
        wait_until("strace attaches", DEADLINE, || {
            let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
            attached = status.contains(&tracer);
            attached || hung.0.try_wait().expect("wait").is_some()
        });
        attached.then_some(hung)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Its process lives, and all its other threads.
#[test]
fn a_proxy_of_which_one_thread_hangs_is_replaced() {
    let mut fleet = Fleet::by_file_with(3, &["--lease", "1s"]);
    fleet.mirrored();
    let mut hung = Vec::new();
    for thread in ["worker-0", "resilver"] {
        let pid = fleet.proxies[fleet.active()].pid();
        let Some(hangs) = Hung::of(pid, thread) else {
            return eprintln!("SKIPPED: {thread} cannot be made to hang: strace is missing (scripts/need-meters)");
        };
        hung.push(hangs);
        // As a service manager would: on a busy machine others lose their lease, too.
        wait_until("another one is active", DEADLINE, || {
            fleet.proxies.iter_mut().for_each(Proxy::spawn_if_ended);
            fleet.find_active().is_some_and(|found| fleet.proxies[found].pid() != pid)
        });
        let mut client = fleet.proxies[fleet.active()].client();
        assert_eq!(client.set(thread, b"1"), Ok(Stored::Stored));
    }
}

/// Of a former active proxy, and of a later one.
#[test]
fn an_earlier_mark_on_a_server_is_written_over_and_a_later_one_ends_the_proxy() {
    let mut fleet = Fleet::by_file(1);
    fleet.mirrored();
    let mut server = fleet.backups[0].client();
    let own = get(&mut server, "__resilver__:fleet").expect("a mark");
    let words: Vec<&str> = own.split(' ').collect();
    let [generation, name, _, lease] = words[..] else { panic!("{own}") };
    assert_eq!(lease, "2000000", "in microseconds, for candidates with a shorter one");
    let generation: u64 = generation.parse().expect("a number");
    let marked = |generation: u64| format!("{generation} {name} 127.0.0.1:1");
    assert_eq!(server.set("__resilver__:fleet", marked(generation - 1).as_bytes()), Ok(Stored::Stored));
    wait_until("it is marked again", DEADLINE, || get(&mut server, "__resilver__:fleet").as_deref() == Some(&own));
    assert_eq!(server.set("__resilver__:fleet", marked(generation + 1).as_bytes()), Ok(Stored::Stored));
    assert_eq!(fleet.proxies[0].wait_exit().code(), Some(FENCED));
    assert!(fleet.proxies[0].log_so_far().contains("a server is marked by another one"));
}

/// The role, whether it has the lease, and whether it is ready, by its metrics.
fn standing(admin: &Port) -> (String, String, String) {
    let (code, text) = asked_for(admin, "/metrics");
    assert_eq!(code, "200", "{text}");
    let of = |begin: &str| text.lines().find_map(|line| line.strip_prefix(begin)).unwrap_or_default().to_owned();
    let role = of("resilver_role{role=\"").trim_end_matches("\"} 1").to_owned();
    (role, of("resilver_lease_held "), of("resilver_ready "))
}

/// A client at each door that reads nothing, and one that has sent a part of its request.
/// It has the record already, and nobody else acts before it has given that back.
#[test]
fn a_standby_that_cannot_become_active_gives_the_record_back() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let record = dir.path().join("fleet");
    let mut fleet = Fleet::start(2, &format!("file:{}", record.display()));
    assert_eq!(fleet.active(), 0, "it was there first");
    // A few files more can be opened: enough to ask two servers and to write the record, and fewer
    // than two runtimes take, which each have four.
    let pid = fleet.proxies[1].pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limits = format!("--nofile={}:", open + 5);
    assert!(Command::new("prlimit").args(["--pid", &pid.to_string(), &limits]).status().unwrap().success());
    fleet.proxies[0].kill();
    let ended = fleet.proxies[1].wait_exit();
    let log = fleet.proxies[1].log_so_far();
    assert!(!ended.success() && log.contains("this proxy is active from now on"), "{ended}: {log}");
    let record = std::fs::read_to_string(&record).unwrap();
    assert!(record.contains(" free "), "{record}{log}");
}

#[test]
fn a_lease_is_changed_by_restarting_one_proxy_after_the_other() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let place = format!("file:{}", dir.path().join("fleet").display());
    let mut fleet = Fleet::start_each(&place, &[&["--lease", "2s"], &["--lease", "900ms"]]);
    let mut client = fleet.proxies[1].client();
    for (active, other) in [(0, 1), (1, 0)] {
        assert_eq!(fleet.active(), active);
        assert_eq!(client.set("k", b"v"), Ok(Stored::Stored), "by the active one, whatever its lease");
        assert_eq!(fleet.proxies[active].stop().code(), Some(0));
        wait_until("the other one is active", DEADLINE, || shown(&fleet.proxies[other], "role") == "active");
        fleet.proxies[active].spawn();
        wait_until("it is back", DEADLINE, || shown(&fleet.proxies[active], "ready") == "1");
        client = fleet.proxies[active].client();
        assert_eq!(get(&mut client, "k").as_deref(), Some("v"));
    }
}

#[test]
fn the_operator_hands_over_and_no_slow_client_keeps_the_others_waiting() {
    let mut fleet = Fleet::by_file(2);
    fleet.mirrored();
    let (active, next) = (fleet.active(), 1 - fleet.active());
    let value = vec![b'x'; 900_000];
    assert_eq!(fleet.proxies[active].client().set("large", &value), Ok(Stored::Stored));
    let slow: Vec<Client> = fleet
        .proxies
        .iter()
        .flat_map(|proxy| {
            let line = format!("get{}\r\n", " large".repeat(60));
            let halves = format!("set half 0 0 200000\r\n{}", "x".repeat(100_000));
            [line, halves, "set half 0 0 9\r\n1".to_owned()].map(|said| {
                let mut client = proxy.client();
                client.send(said.as_bytes()).unwrap();
                client
            })
        })
        .collect();
    let mut there = fleet.proxies[next].client();
    assert_eq!(there.set("k", b"0"), Ok(Stored::Stored));
    // (So much has come from the one that does not read that nothing more moves.)
    let busy = || fleet.proxies[active].stat("bytes_written");
    let mut before = 0;
    wait_until("the clients are stuck", DEADLINE, || {
        let now = busy();
        std::thread::sleep(Duration::from_millis(50));
        std::mem::replace(&mut before, now) + 100_000 > now
    });
    let to = format!("OK {}\n", shown(&fleet.proxies[next], "own"));
    assert_eq!(said(&fleet.proxies[next], &["handover"]), (Some(0), to));
    let mut slowest = Duration::ZERO;
    let mut count = 0;
    wait_until("another one is active", DEADLINE, || {
        let asked = Instant::now();
        count += 1;
        assert_eq!(there.incr("k", 1), Ok(Some(count)));
        slowest = slowest.max(asked.elapsed());
        shown(&fleet.proxies[next], "role") == "active"
    });
    eprintln!("the slowest of {count} requests took {slowest:?}");
    assert_eq!(fleet.proxies[active].wait_exit().code(), Some(FENCED));
    let told = fleet.proxies[active].log();
    assert!(told.contains("clients are closed that do not take their answers"), "{told}");
    let log = fleet.proxies[next].log();
    assert!(!log.contains("resync begins") && fleet.proxies[next].status().mirrored(), "{log}");
    let alone = said(&fleet.proxies[next], &["handover"]);
    assert!(alone.0 == Some(1) && alone.1.contains("no other candidate"), "{alone:?}");
    drop(slow);
    fleet.proxies[active].spawn();
    fleet.all_ready();
    assert_eq!(shown(&fleet.proxies[active], "role"), "standby");
    fleet.copies_are_equal();
}

/// The process ends at once, and says why.
fn refused(args: &[String]) -> String {
    let port = Port::reserve();
    let (code, _, why) = ended(resilver().args(["-l", "127.0.0.1", "-p", &port.number.to_string()]).args(args));
    assert_eq!(code, Some(71), "{why}");
    why
}

#[test]
fn what_does_not_belong_to_the_fleet_is_refused_with_the_reason() {
    let etcd = Etcd::start();
    let mut fleet = Fleet::start(1, &etcd.fleet("ours"));
    let plain: Vec<String> = args("x", &fleet.primaries, &fleet.backups, &[])
        .into_iter()
        .filter(|arg| !["--coordinate", "x", "--lease", LEASE].contains(&arg.as_str()))
        .collect();
    let beside = refused(&plain);
    assert!(beside.contains("fleet ours") && beside.contains("--leave-fleet"), "{beside}");
    let other = refused(&args(&etcd.fleet("theirs"), &fleet.primaries, &fleet.backups, &[]));
    assert!(other.contains("fleet ours") && other.contains("theirs"), "{other}");
    let nowhere = refused(&args("file:/nowhere/fleet", &fleet.primaries, &fleet.backups, &[]));
    assert!(nowhere.contains("/nowhere/fleet"), "{nowhere}");
    // No etcd: it may come, and until then its clients hear why.
    let memcached = fleet.primaries[0].known_as();
    let no_etcd = format!("etcd://{memcached}/ours");
    let waiting = args(&no_etcd, &fleet.primaries, &fleet.backups, &["--takeover-wait", "10ms"]);
    let waiting = Proxy::start_unready(&waiting);
    let answer = waiting.client().get("k").unwrap_err();
    assert!(matches!(&answer, Failure::Server(why) if why.contains(&memcached)), "{answer}");
    drop(waiting);
    // Another list of servers: it passes nothing on.
    let swapped = args(&etcd.fleet("ours"), &fleet.backups, &fleet.primaries, &["--takeover-wait", "10ms"]);
    let stranger = Proxy::start_unready(&swapped);
    let answer = stranger.client().get("k").unwrap_err();
    assert!(matches!(&answer, Failure::Server(why) if why.contains("another list of servers")), "{answer}");
    drop(stranger);

    // It lives: its marks are left alone.
    let left: Vec<String> = plain.iter().cloned().chain(["--leave-fleet".to_owned()]).collect();
    let lives = refused(&left);
    assert!(lives.contains("fleet ours lives") && lives.contains(&shown(&fleet.proxies[0], "own")), "{lives}");
    fleet.proxies[0].pause();
    let hangs = refused(&left);
    assert!(hangs.contains("may live") && hangs.contains("says nothing"), "{hangs}");
    fleet.proxies[0].resume();
    wait_until("the active proxy goes on", DEADLINE, || shown(&fleet.proxies[0], "role") == "active");

    // The last one goes, and its marks are taken away.
    assert_eq!(fleet.proxies[0].stop().code(), Some(0));
    let still = refused(&plain);
    assert!(still.contains("fleet ours"), "{still}");
    let alone = Proxy::start(&left);
    alone.wait_mirrored(DEADLINE);
    assert_eq!(shown(&alone, "role"), "active");
}

/// What one client knows of its own key.
struct Known {
    /// What may stand there.
    may: BTreeSet<Option<String>>,
}

/// Asks through random doors, over connections of its own.
struct Guest<'a> {
    doors: &'a [String],
    client: Option<Client>,
    rng: Rng,
}

impl Guest<'_> {
    fn ask<T>(&mut self, ask: impl FnOnce(&mut Client) -> Result<T, Failure>) -> Result<T, Failure> {
        if self.client.is_none() || self.rng.below(40) == 0 {
            let door = self.rng.below(self.doors.len());
            let client = Client::try_connect(&self.doors[door]);
            self.client = Some(client.map_err(|error| Failure::Closed(error.to_string()))?);
        }
        let answer = ask(self.client.as_mut().expect("connected"));
        if matches!(answer, Err(Failure::Closed(_))) {
            self.client = None;
            std::thread::sleep(Duration::from_millis(20));
        }
        answer
    }
}

/// A client with keys of its own: whatever it reads is what it wrote, or what it was told may have
/// been written.
fn guest(n: u64, seed: u64, doors: &[String], over: &AtomicBool) -> (u64, Vec<(String, Known)>) {
    let mut guest = Guest { doors, client: None, rng: Rng::new(seed, 1 + n) };
    let mut known: Vec<(String, Known)> =
        (0..6).map(|k| (format!("guest:{n}:{k}"), Known { may: BTreeSet::from([None]) })).collect();
    let (mut done, mut written) = (0, 0);
    while !over.load(Ordering::SeqCst) {
        let at = guest.rng.below(known.len());
        let (key, known) = &mut known[at];
        let answered = match guest.rng.below(10) {
            0..4 => {
                written += 1;
                let value = format!("{n}-{written}");
                known.may.insert(Some(value.clone()));
                guest.ask(|client| client.set(key, value.as_bytes())).map(|stored| {
                    assert_eq!(stored, Stored::Stored, "{key}");
                    known.may = BTreeSet::from([Some(value)]);
                })
            }
            4 => {
                known.may.insert(None);
                guest.ask(|client| client.delete(key)).map(|found| {
                    let possible = known.may.iter().any(|value| value.is_some() == found);
                    assert!(possible, "{key} was deleted: {found}; it may be {:?}", known.may);
                    known.may = BTreeSet::from([None]);
                })
            }
            _ => guest.ask(|client| client.get(key)).map(|item| {
                let value = item.map(|item| String::from_utf8(item.value).expect("a text"));
                assert!(known.may.contains(&value), "{key} is {value:?}; it may be {:?}", known.may);
                known.may = BTreeSet::from([value]);
            }),
        };
        match answered {
            Ok(()) => done += 1,
            Err(Failure::Closed(_) | Failure::Server(_)) => {}
            Err(other) => panic!("{key}: {other}"),
        }
    }
    (done, known)
}

/// The active proxy is killed, paused and stopped again and again, all of them are started again as
/// they end, and etcd stands still: nothing that was acknowledged is lost, nothing is stale, and at
/// the end both copies are equal.
#[test]
fn whatever_happens_to_the_active_proxy_nothing_is_lost() {
    let seed = seed("fleet");
    let mut rng = Rng::new(seed, 0);
    let etcd = Etcd::start();
    let mut fleet = Fleet::start(3, &etcd.fleet("chaos"));
    let doors: Vec<String> = fleet.proxies.iter().map(Proxy::addr).collect();
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let lasts = duration_or(Duration::from_secs(15));
    let mut changes = 0;
    let known: Vec<_> = std::thread::scope(|scope| {
        let guests: Vec<_> = (0..8)
            .map(|n| {
                let (doors, over) = (&doors, &over);
                scope.spawn(move || guest(n, seed, doors, over))
            })
            .collect();
        while begun.elapsed() < lasts && !guests.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            let active = fleet.active();
            match rng.below(4) {
                0 => fleet.proxies[active].kill(),
                1 => assert_eq!(fleet.proxies[active].stop().code(), Some(0)),
                2 => {
                    fleet.proxies[active].pause();
                    // Shorter than a lease, or until another one is active.
                    std::thread::sleep(Duration::from_millis([300, 3_000][rng.below(2)]));
                    fleet.proxies[active].resume();
                }
                _ => {
                    etcd.pause();
                    std::thread::sleep(Duration::from_millis([300, 2_500][rng.below(2)]));
                    etcd.resume();
                }
            }
            changes += 1;
            // As a service manager would.
            wait_until("every proxy runs", DEADLINE, || {
                fleet.proxies.iter_mut().for_each(Proxy::spawn_if_ended);
                fleet.find_active().is_some()
            });
        }
        over.store(true, Ordering::SeqCst);
        guests.into_iter().map(|guest| guest.join().expect("what it has seen is right")).collect()
    });
    fleet.proxies.iter_mut().for_each(Proxy::spawn_if_ended);
    fleet.all_ready();
    fleet.mirrored();
    fleet.copies_are_equal();
    let mut client = fleet.proxies[fleet.active()].client();
    let mut done = 0;
    for (count, keys) in known {
        done += count;
        for (key, known) in keys {
            let value = get(&mut client, &key);
            assert!(known.may.contains(&value), "at the end {key} is {value:?}; it may be {:?}", known.may);
        }
    }
    eprintln!("{done} requests, {changes} changes");
    assert!(done > 100 && changes > 2);
}
