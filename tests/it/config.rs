//! Settings from a file and from the environment, of a real process.

use std::io::Read as _;
use std::process::{Command, Stdio};

use crate::supervised::Manager;
use crate::support::command::{Running, ended, resilver, run};
use crate::support::memcached::signal;
use crate::support::port::Port;
use crate::support::{Client, Cluster, DEADLINE, Memcached, Proxy, Shape, Stored, wait_until};

#[test]
fn a_proxy_runs_with_the_settings_of_its_file_and_says_what_is_wrong_with_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("resilver.toml");
    let text = path.to_str().expect("text");
    std::fs::write(&path, "resync-rate = 77\nleader-timeout = \"3s\"\nmax-clients = 99\n").expect("written");
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--config", text, "-n", "55"]));
    let settings = cluster.client().stats("settings").expect("stats settings");
    let of = |name: &str| settings.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    assert_eq!((of("resync_rate"), of("maxconns")), (Some("77"), Some("55")), "{settings:?}");

    // It names no server: those of this proxy are on its command line.
    let (code, printed, complaint) = run(&["check-config", text]);
    assert_eq!((code, printed.as_str()), (Some(64), ""), "{complaint}");
    std::fs::write(&path, "server = [\"127.0.0.1:1\"]\nport = 23\ntimeouts = 3\nprot = 5\n").expect("written");
    let (code, _, complaint) = run(&["check-config", text]);
    assert!(code == Some(64) && complaint.contains(&format!("{text}:3: timeouts: ")), "{complaint}");
    assert!(complaint.contains(&format!("{text}:4: prot: ")) && complaint.ends_with(": 2 faults\n"), "{complaint}");
    let (code, _, why) = run(&["--config", text]);
    assert!(code == Some(64) && why.contains(&format!("resilver: {text}:3: timeouts: ")), "{why}");
    std::fs::write(&path, "server = [\"127.0.0.1:1\"]\nport = 23\n").expect("written");
    let (code, printed, _) = run(&["check-config", text]);
    assert_eq!((code, printed), (Some(0), format!("{text}: good: 1 primary, 0 backups, clients on 127.0.0.1:23\n")));
    for (line, code) in
        [(&["check-config", "--defaults"][..], 1), (&["check-config", "--help"], 1), (&["--help"], 71), (&["-V"], 71)]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a disk that is full");
        let unwritten = ended(resilver().args(line).stdout(full));
        assert!(
            unwritten.0 == Some(code) && unwritten.2.contains("cannot write the answer"),
            "{line:?}: {unwritten:?}"
        );
    }
    let (code, printed, _) = run(&["check-config", "--defaults"]);
    assert!(code == Some(0) && printed.contains("\n#leader-timeout = \"2s\"\n"), "{printed}");
    // The environment, too.
    let wrong = ended(resilver().env(concat!("RESILVER", "_PORT"), "x").args(["-s", "a:1"]));
    assert!(wrong.2.contains("resilver: RESILVER_PORT x: must be"), "{wrong:?}");
}

/// A setting as `stats settings` shows it.
fn setting(client: &mut Client, name: &str) -> String {
    let settings = client.stats("settings").expect("stats settings");
    settings.into_iter().find(|(n, _)| n == name).map_or(String::new(), |(_, value)| value)
}

#[test]
fn settings_are_read_again_without_closing_a_client_and_wrong_ones_change_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let (file, socket, log, old_log) = (path("r.toml"), path("admin.sock"), path("log"), path("log.1"));
    let write = |lines: &str| {
        let common = format!("log-file = {log:?}\nadmin-socket = {socket:?}\n");
        std::fs::write(&file, common + lines).expect("written");
    };
    write("resync-rate = 10\nleader-grace = \"20s\"\n");
    let mut cluster = Cluster::start_unmirrored(&Shape::new(1, 1).proxy(&["--config", &file]));
    let mut client = cluster.client();
    client.set("k", b"v").expect("stored");
    let logged = || std::fs::read_to_string(&log).unwrap_or_default();

    // By a signal; the log has been moved away, as logrotate does.
    std::fs::rename(&log, &old_log).expect("moved");
    write(
        "resync-rate = 20\nmax-clients = 77\nprobe-successes = 2\nresync-latency = \"off\"\nverbose = 1\nleader-grace = \"20s\"\n",
    );
    signal(cluster.proxy.pid(), "HUP");
    wait_until("the settings to be taken", DEADLINE, || setting(&mut client, "resync_rate") == "20");
    assert_eq!((setting(&mut client, "maxconns"), setting(&mut client, "resync_latency")), ("77".into(), "off".into()));
    let told = "reloaded: changed: max-clients, resync-rate, resync-latency, verbose\n";
    wait_until("the log", DEADLINE, || logged().contains(told));
    assert!(!std::fs::read_to_string(&old_log).expect("the old log").contains("reloaded: changed"));
    drop(cluster.client());
    wait_until("what -v logs", DEADLINE, || logged().contains("DEBUG"));

    // By a command; what is wrong changes nothing, but that the log was moved away once more.
    let reload = || run(&["reload", "--proxy", &socket]);
    std::fs::rename(&log, path("log.2")).expect("moved");
    write("resync-rate = 30\ntimeouts = 3\n");
    let (code, printed, complaint) = reload();
    assert_eq!((code, printed.as_str()), (Some(1), ""), "{complaint}");
    assert!(complaint.contains("not reloaded") && complaint.contains(&format!("{file}:4: timeouts: ")), "{complaint}");
    assert_eq!(setting(&mut client, "resync_rate"), "20");
    let told = "not reloaded: the log is opened anew, and all else stays as it was: ";
    wait_until("the new log", DEADLINE, || logged().contains(told) && logged().contains(": timeouts: "));
    write("resync-rate = 40\nlog-format = \"json\"\nthreads = 3\nbackup = \"127.0.0.1:1\"\n");
    let (code, printed, complaint) = reload();
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "the command line's servers and threads stay");
    let (begin, end) = ("reloaded: changed: ", "; only at the next start: log-format\n");
    assert!(printed.starts_with(begin) && printed.ends_with(end), "{printed}");
    assert_eq!(setting(&mut client, "resync_rate"), "40");
    let (code, _, complaint) = run(&["reload", "--proxy", &cluster.proxy.addr()]);
    assert!(code == Some(1) && complaint.contains("give --proxy the path of --admin-socket"), "{complaint}");
    let item = client.get("k").expect("the connection that was there at the start").expect("a hit");
    assert_eq!(item.value, b"v");
    assert!(cluster.proxy.stop().success());
}

/// A pipe that nobody reads yet: the control plane goes on.
#[test]
fn a_log_that_takes_long_to_open_keeps_nobody_else_waiting() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let (file, socket, pipe) = (path("r.toml"), path("admin.sock"), path("pipe"));
    let write = |log: &str| {
        std::fs::write(&file, format!("log-file = {log:?}\nadmin-socket = {socket:?}\n")).expect("written");
    };
    write(&path("log"));
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--config", &file]));
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("run mkfifo").success());
    write(&pipe);
    let mut reload = Running::start(resilver().args(["reload", "--proxy", &socket]).stdout(Stdio::piped()));
    let tasks = format!("/proc/{}/task", cluster.proxy.pid());
    wait_until("a thread waits for a reader", DEADLINE, || {
        let mut tasks = std::fs::read_dir(&tasks).expect("its threads").map_while(Result::ok);
        tasks.any(|task| std::fs::read_to_string(task.path().join("wchan")).is_ok_and(|at| at == "wait_for_partner"))
    });
    assert_eq!(run(&["status", "--proxy", &socket]).0, Some(0));
    let reader = std::fs::File::open(&pipe).expect("the pipe");
    let mut printed = String::new();
    reload.0.stdout.take().expect("its output").read_to_string(&mut printed).expect("text");
    assert_eq!(printed, "reloaded: changed: log-file\n");
    assert!(cluster.proxy.stop().success());
    drop(reader);
}

/// Each has its queue of what comes at a new address.
#[test]
fn a_new_address_has_a_socket_for_each_worker_that_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let (file, socket) = (path("r.toml"), path("admin.sock"));
    let (nodes, own) = ([Memcached::start(&[]), Memcached::start(&[])], Port::reserve());
    let write = |listen: &str, threads: u32| {
        let ([primary, backup], port) = ([nodes[0].addr(), nodes[1].addr()], own.number);
        let text = format!(
            "server = {primary:?}\nbackup = {backup:?}\nport = {port}\nlisten = [{listen}]\nthreads = {threads}\n\
             admin-socket = {socket:?}\n"
        );
        std::fs::write(&file, text).expect("written");
    };
    write(r#""127.0.0.1""#, 3);
    let proxy = Running::start(resilver().args(["--config", &file]));
    wait_until("it to listen", DEADLINE, || std::net::TcpStream::connect(own.addr()).is_ok());
    wait_until("its socket", DEADLINE, || run(&["wait", "--ready", "--proxy", &socket]).0 == Some(0));
    for (address, threads) in [("127.0.0.2", 1), ("127.0.0.3", 5)] {
        write(&format!("\"127.0.0.1\", {address:?}"), threads);
        let (code, _, complaint) = run(&["reload", "--proxy", &socket]);
        assert_eq!(code, Some(0), "{complaint}");
        assert_eq!(sockets_at(&format!("{address}:{}", own.number)), 3, "{address}");
    }
    assert!(proxy.end("TERM").success());
}

/// How many sockets listen there.
fn sockets_at(address: &str) -> usize {
    let address: std::net::SocketAddrV4 = address.parse().expect("an address");
    let shown = format!(" {:08X}:{:04X} 00000000:0000 0A ", u32::from_ne_bytes(address.ip().octets()), address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the system's table");
    table.lines().filter(|line| line.contains(&shown)).count()
}

/// Timeouts of workers and probes, and another address, while clients are connected.
#[test]
fn times_and_addresses_change_while_the_proxy_runs() {
    for io_uring in ["auto", "off"] {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
        let (file, socket) = (path("r.toml"), path("admin.sock"));
        let nodes = [Memcached::start(&[]), Memcached::start(&[])];
        let own = Port::reserve();
        let write = |listen: &str, times: &str| {
            let ([primary, backup], port) = ([nodes[0].addr(), nodes[1].addr()], own.number);
            let text = format!(
                "server = {primary:?}\nbackup = {backup:?}\nport = {port}\nlisten = [{listen}]\nadmin-socket = {socket:?}\n\
                 io-uring = {io_uring:?}\n{times}"
            );
            std::fs::write(&file, text).expect("written");
        };
        // Nobody notices a server that hangs for an hour.
        let slow = "timeout = \"1h\"\nleader-timeout = \"1h\"\nprobe-interval = \"1h\"\nprobe-timeout = \"1h\"\n";
        write(r#""127.0.0.1""#, slow);
        let proxy = Running::start(resilver().args(["--config", &file]));
        wait_until("it to listen", DEADLINE, || std::net::TcpStream::connect(own.addr()).is_ok());
        let mut client = Client::connect(&own.addr());
        wait_until("a write", DEADLINE, || client.set("k", b"v") == Ok(Stored::Stored));
        nodes[0].pause();
        let mut waits = Client::connect(&own.addr());
        waits.send(b"get k\r\n").expect("sent");
        let quick =
            "timeout = \"200ms\"\nleader-timeout = \"1s\"\nprobe-interval = \"100ms\"\nprobe-timeout = \"200ms\"\n";
        // An address that is taken changes nothing.
        let both = r#""127.0.0.1", "127.0.0.2""#;
        let taken = std::net::TcpListener::bind(format!("127.0.0.3:{}", own.number)).expect("an address");
        write(&format!("{both}, {:?}", "127.0.0.3"), quick);
        let (code, _, complaint) = run(&["reload", "--proxy", &socket]);
        assert!(code == Some(1) && complaint.contains("cannot listen on 127.0.0.3:"), "{complaint}");
        assert!(std::net::TcpStream::connect(format!("127.0.0.2:{}", own.number)).is_err());
        drop(taken);
        write(both, quick);
        let (code, printed, complaint) = run(&["reload", "--proxy", &socket]);
        assert_eq!(code, Some(0), "{complaint}");
        for part in ["timeout", "leader-timeout", "probe-interval", "probe-timeout"] {
            assert!(printed.contains(part), "{part}: {printed}");
        }
        assert!(printed.contains(&format!("listens on 127.0.0.2:{} too", own.number)), "{printed}");
        // The backup answers what waits already.
        assert_eq!(waits.values().map(|items| items.len()), Ok(1));
        let mut there = Client::connect(&format!("127.0.0.2:{}", own.number));
        assert_eq!(there.get("k").map(|item| item.map(|item| item.value)), Ok(Some(b"v".to_vec())));
        nodes[0].resume();
        assert!(proxy.end("TERM").success());
    }
}

/// A listener that stays while the proxy is restarted: who comes in between waits, and is served.
#[test]
fn sockets_of_systemd_outlive_a_restart_and_others_are_named() {
    let nodes = [Memcached::start(&[]), Memcached::start(&[])];
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let manager = Manager::new();
    let start = |port: u16| {
        let binary = Proxy::binary();
        let line = format!(
            "LISTEN_PID=$$ LISTEN_FDS=1 exec {} -p {port} -s {} -b {} 3<&0 0</dev/null",
            binary.display(),
            nodes[0].addr(),
            nodes[1].addr()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &line]);
        manager.watches(&mut command);
        command.stdin(std::os::fd::OwnedFd::from(listener.try_clone().expect("a copy")));
        command.stderr(Stdio::piped()).spawn().expect("started")
    };
    for value in [b"one", b"two"] {
        // Before anybody serves.
        let mut client = Client::connect(&format!("127.0.0.1:{port}"));
        client.send(&[&b"set k 0 0 3\r\n"[..], value, b"\r\nget k\r\n"].concat()).expect("sent");
        let mut proxy = start(port);
        manager.hears("READY=1");
        assert_eq!(client.text().as_deref(), Ok("STORED"));
        assert_eq!(client.values().map(|items| items[0].value.clone()), Ok(value.to_vec()));
        let said = manager.hears("STATUS=MIRRORED: ");
        assert!(said.contains("WATCHDOG=1"), "{said}");
        signal(proxy.id(), "TERM");
        assert!(proxy.wait().expect("ended").success());
    }
    // Nobody asks for the socket.
    let other = Port::reserve();
    let output = start(other.number).wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(71), "{said}");
    assert!(said.contains(&format!("systemd listens on 127.0.0.1:{port}, and no setting says so")), "{said}");
}

/// `ListenDatagram=` in the unit, for example.
#[test]
fn what_systemd_hands_over_and_is_no_stream_is_named() {
    let own = Port::reserve();
    let line = format!(
        "LISTEN_PID=$$ LISTEN_FDS=1 exec {} -p {} -s 127.0.0.1:1 3<&0 0</dev/null",
        Proxy::binary().display(),
        own.number
    );
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut command = Command::new("sh");
    command.args(["-c", &line]).stdin(std::os::fd::OwnedFd::from(datagrams)).stderr(Stdio::piped());
    let output = command.output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(71), "{said}");
    assert!(said.contains("no listening stream") && said.contains("ListenStream="), "{said}");
}
