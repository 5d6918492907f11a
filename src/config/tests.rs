//! The command line, judged without root, DNS or the environment.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sources::VARIABLES;
use super::{
    Account, CommandLine, Host, IoUringMode, LogFormat, Plan, ProcessSettings, RegisterSettings, ResyncMode, Settings,
    UsageErrors,
};
use crate::ring::Distribution;

fn account(id: u32) -> Option<Account> {
    Some(Account { uid: id, gid: Some(id), name: Some(format!("user{id}")) })
}

fn host() -> Host {
    Host {
        uid: 1000,
        gid: 1000,
        cores: 8,
        runtime_dir: None,
        rust_log: None,
        directory: std::env::current_dir().expect("a directory"),
        variables: Vec::new(),
        find_user: |name| match name {
            "root" | "0" => account(0),
            "me" | "1000" => account(1000),
            "nobody" => account(65534),
            "4242" => Some(Account { uid: 4242, gid: None, name: None }),
            _ => None,
        },
        find_group: |name| match name {
            "root" => Some(0),
            "us" | "1000" => Some(1000),
            "nogroup" => Some(65534),
            _ => None,
        },
        resolve: |name| match name {
            "localhost" => Ok(vec![IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)]),
            "six" => Ok(vec![IpAddr::V6(Ipv6Addr::LOCALHOST)]),
            _ => Err(io::Error::other("no such host")),
        },
    }
}

fn root() -> Host {
    Host { uid: 0, gid: 0, ..host() }
}

fn parse(line: &str, host: &Host) -> Result<CommandLine, UsageErrors> {
    CommandLine::parse(format!("resilver {line}").split_whitespace(), host)
}

/// A process with one pool, whose settings are those that are meant unless the others are named.
#[derive(Debug)]
struct One {
    process: ProcessSettings,
    pool: Settings,
}

impl std::ops::Deref for One {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.pool
    }
}

impl From<Box<Plan>> for One {
    fn from(plan: Box<Plan>) -> One {
        let Plan { process, mut pools } = *plan;
        assert_eq!(pools.len(), 1, "{pools:?}");
        One { process, pool: pools.remove(0) }
    }
}

fn run_on(line: &str, host: &Host) -> One {
    match parse(line, host) {
        Ok(CommandLine::Run(plan)) => plan.into(),
        other => panic!("{line}: {other:?}"),
    }
}

fn run(line: &str) -> One {
    run_on(line, &host())
}

fn faults_on(line: &str, host: &Host) -> Vec<String> {
    match parse(line, host) {
        Err(UsageErrors(faults)) => faults,
        Ok(other) => panic!("{line} was accepted: {other:?}"),
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn addresses(servers: &[crate::ring::ServerSpec]) -> Vec<String> {
    servers.iter().map(|server| server.addr.to_string()).collect()
}

#[test]
fn magents_line_runs_unchanged() {
    let line = "-u root -n 51200 -l 127.0.0.1 -p 12000 -s 127.0.0.1:11211 -s 127.0.0.1:11212 -b 127.0.0.1:11213";
    let settings = run_on(line, &root());
    assert_eq!(addresses(&settings.primaries), ["127.0.0.1:11211", "127.0.0.1:11212"]);
    assert_eq!(addresses(&settings.backups), ["127.0.0.1:11213"]);
    assert_eq!(settings.process.user.as_deref(), Some("root"));
    assert_eq!(settings.max_clients, 51_200);
    assert_eq!(settings.listen, ["127.0.0.1:12000".parse::<SocketAddr>().unwrap()]);
    assert_eq!(settings.distribution, Distribution::Modula);
    assert_eq!((settings.resync, settings.io_uring), (ResyncMode::Auto, IoUringMode::Auto));
    assert_eq!(run("-s a:1 --io-uring on").io_uring, IoUringMode::On);
    assert_eq!(run("-s a:1 --io-uring=off").io_uring, IoUringMode::Off);
    // Without spaces, as getopt takes it too.
    let settings = run_on("-uroot -n51200 -l127.0.0.1 -p12000 -s127.0.0.1:11211 -kDv -i20", &root());
    assert_eq!((settings.distribution, settings.node_connections), (Distribution::Ketama, 20));
}

#[test]
fn defaults() {
    let settings = run("-s a:1");
    assert_eq!(settings.listen, ["127.0.0.1:11211".parse::<SocketAddr>().unwrap()]);
    assert_eq!((settings.max_clients, settings.threads, settings.node_connections), (4096, 4, 4));
    assert_eq!((settings.timeout, settings.leader_timeout, settings.leader_grace), (ms(250), ms(2_000), ms(10_000)));
    assert_eq!((settings.probe_interval, settings.probe_timeout, settings.probe_successes), (ms(500), ms(250), 3));
    assert_eq!((settings.resync_rate, settings.resync_memory, settings.item_size_max), (None, 64 << 20, 1 << 20));
    assert_eq!(settings.client_memory, 512 << 20);
    assert_eq!(
        (settings.shutdown_grace, settings.idle_timeout, settings.resync_latency),
        (ms(5_000), None, Some(ms(1)))
    );
    assert_eq!((&settings.unix_socket, &settings.process.pid_file, settings.process.daemonize), (&None, &None, false));
    assert_eq!(settings.unix_socket_mode, 0o700);
    assert_eq!(
        (settings.process.log.filter.as_str(), settings.process.log.format),
        ("warn,resilver=info", LogFormat::Text)
    );
    // One thread costs least for each request; the other half of the cores is the nodes' and
    // clients' and the kernel's.
    assert_eq!(run_on("-s a:1", &Host { cores: 2, ..host() }).threads, 1);
    assert_eq!(run_on("-s a:1", &Host { cores: 1, ..host() }).threads, 1);
}

#[test]
fn every_option_arrives() {
    let settings = run(
        "--server a:1 --backup b:2 --ketama --listen ::1 --port 7 --unix-socket /s --unix-socket-mode 0770 --max-clients 9 \
         --node-connections 6 --threads 2 --resync=manual --resync-rate 50000 --resync-latency 2500us --resync-memory 2g \
         --item-size-max 8MiB --client-memory 1g \
         --timeout 1s --leader-timeout 3s --leader-grace 4s --probe-interval 200ms --probe-timeout 100ms \
         --probe-successes 5 --shutdown-grace 0 --idle-timeout 1h --daemon --pid-file /p --log-format json \
         --log-file /l -vv --user me --group us",
    );
    assert_eq!(settings.listen, ["[::1]:7".parse::<SocketAddr>().unwrap()]);
    assert_eq!((settings.unix_socket.as_deref(), settings.unix_socket_mode), (Some(Path::new("/s")), 0o770));
    assert_eq!((settings.max_clients, settings.node_connections, settings.threads), (9, 6, 2));
    assert_eq!((settings.resync, settings.resync_rate), (ResyncMode::Manual, Some(50_000)));
    assert_eq!(settings.resync_latency, Some(Duration::from_micros(2_500)));
    assert_eq!(run("-s a:1 -b b:2 --resync-latency off").resync_latency, None);
    assert_eq!((settings.resync_memory, settings.item_size_max), (2 << 30, 8 << 20));
    assert_eq!(settings.client_memory, 1 << 30);
    assert_eq!((settings.timeout, settings.leader_timeout, settings.leader_grace), (ms(1_000), ms(3_000), ms(4_000)));
    assert_eq!((settings.probe_interval, settings.probe_timeout, settings.probe_successes), (ms(200), ms(100), 5));
    assert_eq!((settings.shutdown_grace, settings.idle_timeout), (ms(0), Some(ms(3_600_000))));
    assert_eq!((settings.process.daemonize, settings.process.pid_file), (true, Some(PathBuf::from("/p"))));
    assert_eq!((settings.process.log.format, settings.process.log.file), (LogFormat::Json, Some(PathBuf::from("/l"))));
    assert_eq!(settings.process.log.filter, "info,resilver=trace");
    assert_eq!((settings.process.user.as_deref(), settings.process.group.as_deref()), (Some("me"), Some("us")));
}

#[test]
fn resync_takes_its_value_only_after_an_equals_sign() {
    for (line, mode, filter) in [
        ("-s a:1 -b b:2 --resync", ResyncMode::Auto, "warn,resilver=info"),
        ("-s a:1 -b b:2 --resync -v", ResyncMode::Auto, "info,resilver=debug"),
        ("--resync=off -s a:1 -b b:2", ResyncMode::Off, "warn,resilver=info"),
        ("-s a:1 -b b:2 --resync=auto", ResyncMode::Auto, "warn,resilver=info"),
        // Off is what a plain sharding proxy does anyhow.
        ("-s a:1 --resync=off", ResyncMode::Off, "warn,resilver=info"),
    ] {
        let settings = run(line);
        assert_eq!((settings.resync, settings.process.log.filter.as_str()), (mode, filter), "{line}");
    }
}

#[test]
fn listening() {
    for (line, listen) in [
        ("", vec!["127.0.0.1:7"]),
        ("-l 0.0.0.0", vec!["0.0.0.0:7"]),
        ("-l ::", vec!["[::]:7"]),
        ("-l [::1]", vec!["[::1]:7"]),
        ("-l 127.0.0.1 -l ::1", vec!["127.0.0.1:7", "[::1]:7"]),
        ("-l 127.0.0.1,::1,127.0.0.1", vec!["127.0.0.1:7", "[::1]:7"]),
        ("-l localhost", vec!["127.0.0.1:7"]),
        ("-l six", vec!["[::1]:7"]),
    ] {
        let settings = run(&format!("-s a:1 -p 7 {line}"));
        let listen: Vec<SocketAddr> = listen.into_iter().map(|address| address.parse().unwrap()).collect();
        assert_eq!(settings.listen, listen, "{line}");
    }
    assert!(run("-s a:1 -p 0 -f /s").listen.is_empty());
}

#[test]
fn neighbours_of_a_given_value_give_way() {
    assert_eq!(run("-s a:1 --timeout 5s").leader_timeout, ms(5_000));
    // Probes follow each other, so a timeout longer than the interval only spaces them out.
    assert_eq!(run("-s a:1 --probe-interval 100ms").probe_timeout, ms(250));
    assert_eq!(run("-s a:1 -b b:2 --item-size-max 128m").resync_memory, 128 << 20);
    assert_eq!(run("-s a:1 -i 2 --threads 4").node_connections, 4);
    assert_eq!(run("-s a:1 -i 5 --threads 4").node_connections, 4);
    assert_eq!(run("-s a:1 -i 8 --threads 4").node_connections, 8);
}

#[test]
fn pid_files() {
    let with = |line: &str, host: &Host| run_on(line, host).process.pid_file;
    let session = Host { runtime_dir: Some(PathBuf::from("/run/user/1000")), ..host() };
    assert_eq!(with("-s a:1 -d", &root()), Some(PathBuf::from("/run/resilver.pid")));
    assert_eq!(with("-s a:1 -d", &session), Some(PathBuf::from("/run/user/1000/resilver.pid")));
    assert_eq!(with("-s a:1 -d", &host()), Some(PathBuf::from("/tmp/resilver-1000.pid")));
    assert_eq!(with("-s a:1", &root()), None);
    assert_eq!(with("-s a:1 --pid-file p", &host()), Some(std::env::current_dir().unwrap().join("p")));
}

#[test]
fn rust_log_counts_unless_v_is_given() {
    let host = |filter: &str| Host { rust_log: Some(filter.to_owned()), ..host() };
    assert_eq!(run_on("-s a:1", &host("resilver=trace")).process.log.filter, "resilver=trace");
    assert_eq!(run_on("-s a:1", &host("")).process.log.filter, "warn,resilver=info");
    assert_eq!(run_on("-s a:1 -v", &host("resilver=trace")).process.log.filter, "info,resilver=debug");
    assert!(faults_on("-s a:1", &host("resilver=loud"))[0].starts_with("RUST_LOG=resilver=loud: "));
}

/// One fault each: the line, and what the message must hold.
#[test]
fn one_fault_at_a_time() {
    for (line, words) in [
        ("", "-s/--server: no server was given"),
        ("-s a:0", "-s/--server a:0: "),
        ("-s a:99999", "-s/--server a:99999: "),
        ("-s a:1 -b :2", "-b/--backup :2: "),
        ("-s ::1:11", "-s/--server ::1:11: "),
        ("-s a:1:3", "add -k"),
        ("-k -s a:1:x", "-s/--server a:1:x: "),
        ("-s a:1 -s a:1", "-s/--server a:1: stands twice"),
        ("-s a:1 -b b:1 -b B:1", "-b/--backup B:1: stands twice"),
        ("-s a:1 -b a:1", "-b/--backup a:1: is a primary too"),
        ("-s [::1]:1 -b [0:0::1]:1", "is a primary too"),
        ("-s localhost:1 -b 127.0.0.1:1", "is a primary too"),
        ("-s [::ffff:10.0.0.1]:1 -s 10.0.0.1:1", "stands twice"),
        ("-s 127.0.0.1:11211", "-s/--server 127.0.0.1:11211: the proxy would listen there itself"),
        ("-s a:1 -b 127.0.0.1:11211", "-b/--backup 127.0.0.1:11211: the proxy would listen there itself"),
        ("-s localhost:7 -p 7 -l 0.0.0.0", "talk to itself"),
        ("-s a:1 -p 0", "leaves nowhere to listen"),
        ("-s a:1 -p 0 -f /s -l 0.0.0.0", "-l/--listen contradicts"),
        ("-s a:1 -p 65536", "-p/--port 65536: must be a whole number from 0 to 65535"),
        ("-s a:1 -p -1", "-p/--port -1: "),
        ("-s a:1 -p x", "-p/--port x: "),
        ("-s a:1 -p 1 -p 2", "was given twice, as 1 and as 2"),
        ("-s a:1 -l 1.2.3.4:5", "-l/--listen 1.2.3.4:5: is no address"),
        ("-s a:1 -l fe80::1%eth0", "-l/--listen fe80::1%eth0: a link-local address is one interface's"),
        ("-s a:1 -l [fe80::1]", "-l/--listen [fe80::1]: a link-local address is one interface's"),
        ("-s a:1 --admin [fe80::1%eth0]:9150", "--admin [fe80::1%eth0]:9150: a link-local address"),
        ("-s a:1 -l nowhere", "-l/--listen nowhere: cannot be resolved"),
        ("-s a:1 -f /", "-f/--unix-socket /: must be the path of a file"),
        ("-s a:1 -f /a\0b", r#"-f/--unix-socket "/a\0b": has a zero byte"#),
        ("-s a:1 --log-file a\0b", r#"--log-file "a\0b": has a zero byte"#),
        ("-s a:1 -b b:1 --coordinate file:/a\0b", "must be the absolute path of a file"),
        ("-s a:1 -f /s -a 778", "-a/--unix-socket-mode 778: must be an octal mode from 0 to 777"),
        ("-s a:1 -f /s -a 1777", "-a/--unix-socket-mode 1777: must be an octal mode"),
        ("-s a:1 -f /s -a +7", "-a/--unix-socket-mode +7: must be an octal mode"),
        ("-s a:1 -f /s -a rw", "-a/--unix-socket-mode rw: must be an octal mode"),
        ("-s a:1 -a 770", "-a/--unix-socket-mode without -f/--unix-socket changes nothing"),
        ("-s a:1 -n 0", "-n/--max-clients 0: "),
        ("-s a:1 -n -5", "-n/--max-clients -5: "),
        ("-s a:1 -i many", "-i/--node-connections many: "),
        ("-s a:1 -i 1001", "-i/--node-connections 1001: "),
        (
            "-s a:1 --threads 0",
            "--threads 0: must be a whole number from 1 to 64 (auto = half as many as there are cores",
        ),
        ("-s a:1 --threads 65", "--threads 65: "),
        ("-s a:1 --io-uring maybe", "--io-uring maybe: "),
        ("-s a:1 -b b:2 --resync=on", "--resync=on: there is no such mode"),
        ("-s a:1 -b b:2 --resync auto", "--resync auto: the mode needs an equals sign; write --resync=auto"),
        ("--resync manual -s a:1 -b b:2", "--resync manual: the mode needs an equals sign; write --resync=manual"),
        ("-s a:1 --resync=manual", "--resync=manual without -b/--backup"),
        ("-s a:1 --resync-rate 5", "--resync-rate without -b/--backup"),
        ("-s a:1 -b b:2 --resync=off --resync-memory 64m", "--resync-memory contradicts --resync=off"),
        ("-s a:1 -b b:2 --resync-rate 1k", "--resync-rate 1k: "),
        ("-s a:1 --resync-latency 2ms", "--resync-latency without -b/--backup"),
        ("-s a:1 -b b:2 --resync-latency fast", "--resync-latency fast: not a time"),
        ("-s a:1 -b b:2 --resync-latency 0", "--resync-latency 0: cannot be zero"),
        ("-s a:1 -b b:2 --resync-latency off --resync-latency 1ms", "was given twice, as off and as 1ms"),
        ("-s a:1 -b b:2 --resync-memory 1k", "--resync-memory 1k: must be from 1m"),
        ("-s a:1 -b b:2 --resync-memory 2m --item-size-max 4m", "cannot hold one item"),
        ("-s a:1 --client-memory 1m", "--client-memory 1m: must be from 16m to"),
        (
            "-s a:1 --client-memory 1g --item-size-max 600m",
            "--client-memory 1g: must be twice --item-size-max at least: 1200m",
        ),
        ("-s a:1 --item-size-max 2000m", "--item-size-max 2000m: must be from 1k to 1g"),
        ("-s a:1 --item-size-max big", "--item-size-max big: not a size"),
        ("-s a:1 --timeout 0", "--timeout 0: cannot be zero"),
        ("-s a:1 --timeout 250", "write 250ms or 250s"),
        ("-s a:1 --timeout inf", "--timeout inf: not a time"),
        ("-s a:1 --timeout 2h", "--timeout 2h: must be from 1ms to 1h"),
        ("-s a:1 --leader-timeout 0s", "--leader-timeout 0s: cannot be zero"),
        ("-s a:1 --leader-timeout 100ms", "is shorter than --timeout 250ms"),
        ("-s a:1 --leader-grace 0s", "--leader-grace 0s: cannot be zero"),
        ("-s a:1 --probe-interval 0s", "--probe-interval 0s: cannot be zero"),
        ("-s a:1 --probe-timeout 0s", "--probe-timeout 0s: cannot be zero"),
        ("-s a:1 --probe-successes 0", "--probe-successes 0: "),
        ("-s a:1 --idle-timeout never", "--idle-timeout never: not a time"),
        ("-s a:1 --idle-timeout 1ns", "--idle-timeout 1ns: must be from 1ms to "),
        ("-s a:1 -f /s --log-file /s", "--log-file /s: is the path of -f/--unix-socket too"),
        ("-s a:1 --admin-socket /s --pid-file /s", "--pid-file /s: is the path of --admin-socket too"),
        ("-s a:1 --log-file /s --pid-file /s", "--log-file /s: is the path of --pid-file too"),
        ("-s a:1 -f /s --pid-file /./s", "--pid-file /s: is the path of -f/--unix-socket too"),
        (&format!("-s a:1 -f /{}", "x".repeat(107)), ": a socket's path has at most 107 bytes"),
        (&format!("-s a:1 --admin-socket /{}", "x".repeat(107)), ": a socket's path has at most 107 bytes"),
        ("-s a:1 -d -D", "-d/--daemon contradicts -D/--foreground"),
        ("-s a:1 -u ghost", "-u/--user ghost: there is no such user"),
        ("-s a:1 -u nobody", "only root can become another user, and this is user 1000"),
        ("-s a:1 -u root", "only root can become another user"),
        ("-s a:1 -g ghosts", "-g/--group ghosts: there is no such group"),
        ("-s a:1 -g nogroup", "only root can change the group"),
        ("-s a:1 --log-format xml", "--log-format xml: there is no such form"),
        ("-s a:1 --bogus", "unexpected argument '--bogus'"),
        ("-s a:1 --bogus=5", "unexpected argument '--bogus'"),
        ("-s a:1 --bogus 5", "unexpected argument '--bogus'"),
        ("-s a:1 -Z", "unexpected argument '-Z'"),
        ("-s a:1 -kZv", "unexpected argument '-Z'"),
        ("-s a:1 stray", "unexpected argument 'stray'"),
        ("-s a:1 -p", "--port <PORT>"),
    ] {
        let faults = faults_on(line, &host());
        assert_eq!(faults.len(), 1, "{line}: {faults:#?}");
        assert!(faults[0].contains(words) && !faults[0].contains('\n'), "{line}: {:?} lacks {words:?}", faults[0]);
    }
    for text in ["--config=", "--config= -s a:1"] {
        assert_eq!(faults_on(text, &host()), ["--config \"\": is no path; give the path of a file"]);
    }
    let empty = Host { variables: vec![variable("CONFIG", "")], ..host() };
    assert!(faults_on("-s a:1", &empty)[0].starts_with(&variable("CONFIG", "").0), "{empty:?}");
    let faults = faults_on("-s a:1 -u 4242", &root());
    assert!(faults[0].contains("give -g too"), "{faults:?}");
    assert_eq!(run_on("-s a:1 -u 4242 -g nogroup", &root()).process.user.as_deref(), Some("4242"));
}

/// Which argument is no text; and one that nobody reads to its end does not hide what to do.
#[test]
fn arguments_that_are_no_text_and_very_long_ones_are_named() {
    use std::os::unix::ffi::OsStringExt as _;
    let other = std::ffi::OsString::from_vec(vec![b'a', 0xff]);
    let mut with_flag = std::ffi::OsString::from("--pid-file=");
    with_flag.push(&other);
    let line = ["resilver".into(), "-s".into(), "a:1".into(), "--log-file".into(), other, with_flag, "-nx".into()];
    let UsageErrors(faults) = CommandLine::parse(line, &host()).expect_err("no text");
    assert_eq!(faults[..2], ["--log-file a\u{fffd}: is no text (UTF-8)", "--pid-file=a\u{fffd}: is no text (UTF-8)"]);
    assert!(faults.len() == 3 && faults[2].starts_with("-n/--max-clients x: "), "{faults:?}");
    let long = "x".repeat(10_000);
    for flag in ["--timeout=", "--resync=", "--ketama=", "--stray=", "--coordinate=", "-u", "-s"] {
        let faults = faults_on(&format!("-s a:1 -b b:1 {flag}{long}"), &host());
        assert!(faults.len() == 1 && faults[0].len() < 800, "{flag}: {faults:?}");
    }
    // A path may be as long as that.
    let path = format!("/{}", "x".repeat(250));
    assert!(faults_on(&format!("-s a:1 -f {path}"), &host())[0].contains(&path));
}

#[test]
fn all_faults_at_once() {
    let faults = faults_on(
        "--bogus -p 99999 --timeout 0 -b b:2 -b b:2 --wrong=1 --resync=on -d -D -n x --log-format xml",
        &host(),
    );
    let expected = [
        "'--bogus'",
        "'--wrong'",
        "no server",
        "stands twice",
        "99999",
        "-n/--max-clients x",
        "--timeout 0",
        "--resync=on",
        "-d/--daemon",
        "xml",
    ];
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    for words in expected {
        assert!(faults.iter().any(|fault| fault.contains(words)), "{words}: {faults:#?}");
    }
    let text = UsageErrors(faults).to_string();
    assert!(text.lines().all(|line| line.starts_with("resilver: ")), "{text}");
    assert!(text.contains("10 settings are wrong"), "{text}");
}

#[test]
fn too_many_nodes() {
    let line = |count: usize| (0..count).fold(String::new(), |line, n| format!("{line} -s n{n}:1"));
    assert_eq!(run(&line(256)).primaries.len(), 256);
    assert!(faults_on(&line(257), &host())[0].contains("257 servers are too many"));
}

#[test]
fn help_and_version() {
    for (line, words) in [
        ("-h", "--server <HOST:PORT>"),
        ("--help", "[default: 250ms]"),
        ("--help", "64 wrong or contradictory settings"),
        ("-V", env!("CARGO_PKG_VERSION")),
        ("--version", "resilver"),
        // Help is what one asks for when something is wrong.
        ("--bogus -h", "--server <HOST:PORT>"),
    ] {
        match parse(line, &host()) {
            Ok(CommandLine::Print(text)) => assert!(text.contains(words), "{line}: {text}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn the_definition_is_consistent() {
    <super::args::Args as clap::CommandFactory>::command().debug_assert();
    // The real machine is only asked for what it surely has.
    let host = Host::this();
    assert_eq!((host.find_user)("root"), Some(Account { uid: 0, gid: Some(0), name: Some("root".to_owned()) }));
    assert_eq!((host.find_group)("0"), Some(0));
    assert_eq!((host.find_user)("no-such-user-here"), None);
}

#[test]
fn what_operators_reach_it_by() {
    let settings = run("-s a:1");
    assert!(settings.process.admin.is_none() && settings.process.admin_socket.is_none());
    assert!(settings.operator_commands);
    let settings = run("-s a:1 --admin localhost:9150 --admin-socket /run/x.sock --operator-commands off");
    assert_eq!(settings.process.admin, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9150))), "IPv4 first, as with -l");
    assert_eq!(settings.process.admin_socket.as_deref(), Some(Path::new("/run/x.sock")));
    assert!(!settings.operator_commands);
    assert_eq!(run("-s a:1 --admin [::1]:9150").process.admin, Some(SocketAddr::from((Ipv6Addr::LOCALHOST, 9150))));
    let own = "the proxy would listen there itself (127.0.0.1:9150)";
    for (line, words) in [
        ("--admin 9150", "the port is missing"),
        ("--admin 127.0.0.1", "the port is missing"),
        ("--admin [::1]", "the port is missing"),
        ("--admin 127.0.0.1:x", "port \"x\" is not a number"),
        ("--admin nosuch:9150", "cannot be resolved"),
        ("--admin 127.0.0.1:11211", "clients are listened for there"),
        ("--admin 0.0.0.0:11211", "clients are listened for there"),
        ("--admin 127.0.0.1:9150 -s 127.0.0.1:9150", own),
        ("--admin a:1 --admin b:2", "was given twice"),
        ("--operator-commands maybe", "must be on or off"),
        (
            "-f /run/x.sock --admin-socket /run/x.sock",
            "--admin-socket /run/x.sock: is the path of -f/--unix-socket too",
        ),
        ("--admin-socket /run/", "must be the path of a file"),
    ] {
        let faults = faults_on(&format!("-s a:1 {line}"), &host());
        assert!(faults.iter().any(|fault| fault.contains(words)), "{line}: {faults:?}");
    }
}

#[test]
fn several_proxies() {
    let fleet = |line: &str| run(&format!("-s a:1 -b b:2 {line}")).pool.fleet.expect("given");
    let etcd = fleet("--coordinate etcd://e1:2379,[::1]:2380/prod-1");
    let members = ["e1:2379", "[::1]:2380"].map(str::to_owned).to_vec();
    assert_eq!(etcd.register, RegisterSettings::Etcd { members, name: "prod-1".to_owned() });
    assert_eq!((etcd.lease, etcd.takeover_wait, etcd.candidate), (ms(3_000), ms(6_000), true));
    let file = fleet("--coordinate file:/run/fleet --lease 1s --candidate no --takeover-wait 0 --advertise h:7");
    assert_eq!(file.register, RegisterSettings::File(PathBuf::from("/run/fleet")));
    assert_eq!((file.lease, file.takeover_wait, file.candidate), (ms(1_000), ms(0), false));
    assert_eq!(file.advertise.map(|at| at.to_string()).as_deref(), Some("h:7"));
    assert_eq!(run("-s a:1 -b b:2").fleet, None);
    for (line, words) in [
        ("-s a:1 -b b:2 --coordinate etcd://e1/prod", "e1: the port is missing"),
        ("-s a:1 -b b:2 --coordinate etcd://e1:2379", "etcd://HOST:PORT"),
        ("-s a:1 -b b:2 --coordinate etcd://e1:2379/a/b", "the name must be"),
        ("-s a:1 -b b:2 --coordinate https://e1:2379/prod", "TLS"),
        ("-s a:1 -b b:2 --coordinate file:fleet", "absolute path"),
        ("-s a:1 -b b:2 --coordinate zk://a:1/b", "etcd://HOST:PORT"),
        ("-s a:1 --coordinate file:/run/fleet", "needs backups"),
        ("-s a:1 -b b:2 --coordinate file:/run/fleet --resync=off", "--resync=off"),
        ("-s a:1 -b b:2 --coordinate file:/run/fleet --leave-fleet", "--leave-fleet"),
        ("-s a:1 -b b:2 --coordinate file:/run/fleet --coordinate-login /etc/login", "--coordinate-login"),
        ("-s a:1 -b b:2 --coordinate file:/run/fleet --lease 10ms", "--lease 10ms"),
        ("-s a:1 -b b:2 --coordinate file:/run/fleet --candidate perhaps", "--candidate perhaps"),
        ("-s a:1 -b b:2 --coordinate file:/run/fleet --advertise 0.0.0.0:1", "--advertise 0.0.0.0:1"),
        ("-s a:1 -b b:2 --coordinate file:/run/fleet --advertise 10.0.0.5", "the port is missing"),
        ("-s a:1 -b b:2 --coordinate file:/run/fleet --advertise [::1]", "the port is missing"),
        ("-s a:1 -b b:2 --coordinate file:/run/fleet -p 0 -f /run/socket", "--advertise HOST:PORT"),
        ("-s a:1 -b b:2 --lease 1s", "--lease without --coordinate"),
        ("-s a:1 -b b:2 --prove-writes", "--prove-writes without --coordinate"),
    ] {
        let faults = faults_on(line, &host());
        assert!(faults.len() == 1 && faults[0].contains(words), "{line}: {faults:?}");
    }
}

mod pools;
mod sources;

/// Of the environment.
fn variable(option: &str, value: &str) -> (String, std::ffi::OsString) {
    (format!("{VARIABLES}{option}"), value.into())
}

/// A file, and what is wrong with it (without its path) or what it sets.
fn file(text: &str, line: &str, variables: &[(&str, &str)]) -> Result<One, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    std::fs::write(&path, text).unwrap();
    let host = Host { variables: variables.iter().map(|(name, value)| variable(name, value)).collect(), ..host() };
    let path = path.to_str().unwrap();
    match CommandLine::parse(format!("resilver --config {path} {line}").split_whitespace(), &host) {
        Ok(CommandLine::Run(plan)) => Ok(plan.into()),
        Err(UsageErrors(faults)) => Err(faults.iter().map(|fault| fault.replace(path, "r.toml")).collect()),
        Ok(other) => panic!("{other:?}"),
    }
}
