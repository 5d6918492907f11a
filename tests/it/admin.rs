//! The admin listener and the admin socket of a running proxy.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::cluster::fill;
use crate::support::command::run;
use crate::support::port::Port;
use crate::support::{Cluster, Proxy, Shape, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// What a head is followed by, and the body behind it.
struct Answer {
    head: String,
    body: String,
}

impl Answer {
    fn code(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn of(bytes: &[u8]) -> Answer {
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Answer { head: head.to_owned(), body: body.to_owned() }
    }
}

fn connect(admin: &Port) -> TcpStream {
    let stream = TcpStream::connect(admin.addr()).expect("the admin listener");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    stream
}

/// All that comes until the end; a reset behind it is an end too.
fn rest(stream: &mut impl std::io::Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut block = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut block) {
        bytes.extend_from_slice(&block[..read]);
    }
    bytes
}

fn ask(admin: &Port, request: &str) -> Answer {
    let mut stream = connect(admin);
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("sent");
    Answer::of(&rest(&mut stream))
}

pub fn get(admin: &Port, path: &str) -> String {
    let answer = ask(admin, &format!("GET {path}"));
    assert_eq!(answer.code(), "200", "{path}: {}", answer.head);
    answer.body
}

/// Its code, and what it says.
pub fn answer(admin: &Port, path: &str) -> (String, String) {
    let answer = ask(admin, &format!("GET {path}"));
    (answer.code().to_owned(), answer.body)
}

/// The value of a series; 0 where it never happened.
pub fn series(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

pub fn with_admin(primaries: usize, backups: usize) -> (Port, Cluster) {
    with_admin_and(primaries, backups, &[])
}

pub fn with_admin_and(primaries: usize, backups: usize, more: &[&str]) -> (Port, Cluster) {
    let admin = Port::reserve();
    let address = admin.addr();
    let arguments = [&["--admin", address.as_str()], more].concat();
    let cluster = Cluster::start(&Shape::new(primaries, backups).proxy(&arguments));
    (admin, cluster)
}

#[test]
fn the_state_is_served_and_nothing_can_be_changed() {
    let (admin, mut cluster) = with_admin(2, 1);
    assert_eq!((get(&admin, "/livez").as_str(), get(&admin, "/readyz").as_str()), ("alive\n", "ready\n"));
    let well = ask(&admin, "GET /status.json?x=1");
    assert!(well.head.contains("content-type: application/json") && well.head.contains("no-store"), "{}", well.head);
    let json = well.json();
    assert_eq!((&json["word"], &json["version"], &json["mirrored"]), (&"mirrored".into(), &1.into(), &true.into()));
    let first = &json["servers"][0];
    let known = cluster.proxy.server(&cluster.primaries[0].addr(), "incarnation");
    assert_eq!(first["incarnation"].as_str(), Some(known.as_str()), "a number of 64 bits, to the last digit");
    assert!(json["history"]["step_seconds"].as_u64() == Some(2) && json["changes"].is_array(), "{json}");

    // How full servers are is asked when somebody looks, and known a moment later.
    let held = |json: &Value| json["servers"].as_array().is_some_and(|all| all.iter().all(|s| s["bytes_max"].is_u64()));
    let mut json = json;
    wait_until("how full servers are", DEADLINE, || {
        json = ask(&admin, "GET /status.json").json();
        held(&json)
    });
    // The same words as in the terminal: whatever stands there stands here too.
    let said = run(&["status", "--json", "--proxy", &cluster.proxy.addr()]).1;
    let told: Value = serde_json::from_str(&said).expect("JSON");
    let same = ["version", "word", "why", "next", "mirrored", "mode", "obstacles"];
    same.iter().for_each(|name| assert_eq!(told[name], json[name], "{name}"));
    for (list, name) in [("pairs", "pair"), ("servers", "server")] {
        let (told, here) = (told[list].as_array().expect("a list"), json[list].as_array().expect("a list"));
        assert_eq!(told.len(), here.len(), "{list}");
        for (told, here) in told.iter().zip(here) {
            assert_eq!((&told[name], &told["state"]), (&here[name], &here["state"]), "{list}");
            told.as_object()
                .expect("fields")
                .keys()
                .for_each(|field| assert!(!here[field].is_null(), "{field}: {here}"));
        }
    }

    // One dead server: it serves, and says what has happened.
    let dead = cluster.primaries[1].addr();
    cluster.primaries[1].kill();
    cluster.wait_lost(&dead);
    wait_until("the loss to be shown", DEADLINE, || ask(&admin, "GET /status.json").json()["word"] == "degraded");
    let json = ask(&admin, "GET /status.json").json();
    assert_eq!(get(&admin, "/readyz"), "ready\n");
    let changes = json["changes"].as_array().expect("changes");
    let lost = changes.iter().find(|change| change["name"] == format!("server {dead}") && change["what"] == "lost");
    assert!(lost.is_some_and(|change| change["reason"] != "none"), "{changes:?}");
    assert!(changes.iter().any(|change| change["what"].as_str().is_some_and(|what| what.starts_with("mirrored →"))));

    // Nobody leads anywhere: it cannot serve.
    cluster.primaries[0].kill();
    cluster.backups[0].kill();
    wait_until("every pair to be dark", DEADLINE, || ask(&admin, "GET /readyz").code() == "503");
    assert_eq!(get(&admin, "/livez"), "alive\n");

    for (request, code) in
        [("POST /status.json", "405"), ("DELETE /", "405"), ("PUT /metrics", "405"), ("GET /etc/passwd", "404")]
    {
        let answer = ask(&admin, request);
        assert_eq!(answer.code(), code, "{request}");
        assert_eq!(answer.head.contains("allow: GET, HEAD"), code == "405", "{}", answer.head);
    }
    let head = ask(&admin, "HEAD /status.json");
    assert!(head.code() == "200" && head.body.is_empty() && head.head.contains("content-length: "), "{}", head.head);
}

/// Prometheus would take them.
pub fn check_metrics(text: &str) {
    if let Some(said) = promtool(&["check", "metrics"], text) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(said.status.success(), "{}{}", text(&said.stdout), text(&said.stderr));
    }
}

/// promtool's own rules for names, help and types.
fn promtool(arguments: &[&str], input: &str) -> Option<Output> {
    let mut child = match Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) => {
            eprintln!("SKIPPED: what promtool says of {arguments:?}: {error} (scripts/need-prometheus installs it)");
            return None;
        }
    };
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("sent");
    Some(child.wait_with_output().expect("promtool ends"))
}

#[test]
fn the_metrics_say_what_clients_did_and_pass_promtool() {
    let (admin, cluster) = with_admin(1, 1);
    let mut client = cluster.client();
    fill(&mut client, "k", 50, 10);
    for command in
        ["get k:1", "get k:1 nosuch", "delete nosuch", "incr nosuch 1", "mg k:1 v", "mg nosuch v", "nonsense"]
    {
        client.send(format!("{command}\r\n").as_bytes()).expect("sent");
        client.raw_command("version").ok();
    }
    let mut fresh = cluster.client();
    fresh.raw_command("version").expect("an answer");
    let counted = |text: &str| series(text, r#"resilver_requests_total{command="mg",result="miss"}"#) == 1.0;
    wait_until("all of it to be counted", DEADLINE, || counted(&get(&admin, "/metrics")));
    let text = get(&admin, "/metrics");
    for (name, value) in [
        (r#"requests_total{command="set",result="stored"}"#, 50.0),
        (r#"requests_total{command="get",result="hit"}"#, 2.0),
        (r#"requests_total{command="get",result="miss"}"#, 1.0),
        (r#"requests_total{command="delete",result="not_found"}"#, 1.0),
        (r#"requests_total{command="incr",result="not_found"}"#, 1.0),
        (r#"requests_total{command="mg",result="hit"}"#, 1.0),
        (r#"requests_total{command="other",result="client_error"}"#, 1.0),
        // Two gets, one of two keys, and two of meta's.
        (r#"request_seconds_count{kind="read"}"#, 4.0),
        (r#"request_seconds_count{kind="write"}"#, 52.0),
        ("mirrored", 1.0),
        (r#"pairs{state="mirrored"}"#, 1.0),
        (r#"role{role="single"}"#, 1.0),
    ] {
        assert_eq!(series(&text, &format!("resilver_{name}")), value, "{name}: {text}");
    }
    let server = cluster.primaries[0].addr();
    for name in [
        format!("server_up{{server=\"{server}\",place=\"primary\"}}"),
        format!("server_seconds_count{{server=\"{server}\"}}"),
        format!("server_commands_total{{server=\"{server}\"}}"),
        "clients".to_owned(),
        "client_received_bytes_total".to_owned(),
        "process_resident_memory_bytes".to_owned(),
        "process_start_time_seconds".to_owned(),
    ] {
        assert!(series(&text, &format!("resilver_{name}")) > 0.0, "{name}: {text}");
    }
    assert!(!text.contains("k:1") && !text.contains("nosuch"), "keys in labels: {text}");
    check_metrics(&text);
}

/// The most servers that one would have: a page of metrics of a few hundred kilobytes.
#[test]
fn the_series_are_bounded_by_the_servers() {
    let admin = Port::reserve();
    let mut args = vec!["--admin".to_owned(), admin.addr()];
    for number in 1..=16 {
        args.extend(["-s".to_owned(), format!("127.0.0.1:{number}"), "-b".to_owned(), format!("127.0.0.2:{number}")]);
    }
    let _proxy = Proxy::start(&args);
    wait_until("it to have looked at its servers", DEADLINE, || ask(&admin, "GET /metrics").code() == "200");
    let text = get(&admin, "/metrics");
    let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    // 32 servers with a histogram of 19 and some 20 more each, 256 pairs that are not mirrored, and
    // a few hundred whatever there is.
    assert!((1000..2500).contains(&series.len()), "{} series", series.len());
    let mut names: Vec<&str> = series.iter().filter_map(|line| line.rsplit_once(' ').map(|(name, _)| name)).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "a series stands twice");
    check_metrics(&text);
}

#[test]
fn whoever_comes_in_lots_or_says_too_much_or_nothing_holds_up_nobody() {
    let (admin, cluster) = with_admin(1, 1);
    let mut big = connect(&admin);
    let lines: String = (0..200).map(|number| format!("X-{number}: {}\r\n", "a".repeat(200))).collect();
    let _ = big.write_all(format!("GET / HTTP/1.1\r\n{lines}").as_bytes());
    let answer = Answer::of(&rest(&mut big));
    assert!(["431", "400"].contains(&answer.code()), "a head of 40 KB: {}", answer.head);
    let mut wrong = connect(&admin);
    wrong.write_all(b"get k\r\n\r\n").expect("sent");
    assert_eq!(Answer::of(&rest(&mut wrong)).code(), "400");

    let mut idle: Vec<TcpStream> = (0..1000).map(|_| connect(&admin)).collect();
    // All but 32 are told at once, while the others are waited for.
    let mut told = 0;
    for stream in &mut idle[..1000 - 32] {
        let answer = Answer::of(&rest(stream));
        told += usize::from(answer.code() == "503" && answer.body.starts_with("too many connections"));
    }
    assert_eq!(told, 1000 - 32);
    idle.iter_mut().rev().take(8).for_each(|stream| drop(stream.write_all(b"GET / HTTP/1.1\r\nX-Slow: ")));
    // Whoever asks is answered meanwhile; clients do not notice.
    assert_eq!(get(&admin, "/livez"), "alive\n");
    fill(&mut cluster.client(), "k", 50, 10);
    let text = get(&admin, "/metrics");
    let closed = |text: &str, reason: &str| {
        series(text, &format!("resilver_listener_closed_total{{listener=\"admin_http\",reason=\"{reason}\"}}"))
    };
    assert!(closed(&text, "too_many") >= 969.0 && closed(&text, "broken") >= 1.0, "{text}");
    // These wait for the deadline of a connection that says nothing, five seconds.
    for stream in &mut idle[1000 - 30..] {
        assert_ne!(Answer::of(&rest(stream)).code(), "200");
    }
    let text = get(&admin, "/metrics");
    assert!(closed(&text, "late") >= 30.0);
    assert_eq!(cluster.proxy.stat("admin_http_closed_late") as f64, closed(&text, "late"));
    assert!(cluster.proxy.log().contains("the admin listener refuses connections"), "the log says so");
}

fn said_on(socket: &Path, command: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("the admin socket");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    stream.write_all(format!("{command}\r\nquit\r\n").as_bytes()).expect("sent");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("an answer");
    said
}

#[test]
fn operator_commands_are_taken_on_the_admin_socket_and_on_demand_nowhere_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("admin.sock");
    let path = socket.to_str().expect("text");
    let cluster =
        Cluster::start_unmirrored(&Shape::new(1, 1).proxy(&["--admin-socket", path, "--operator-commands", "off"]));
    let mode = std::fs::metadata(&socket).expect("the socket").permissions().mode() & 0o777;
    assert_eq!(mode, 0o660, "{mode:o}");
    let waited = |proxy: &str| run(&["wait", "--mirrored", "--timeout", "30s", "--proxy", proxy]).0 == Some(0);
    // What only looks works on both.
    for proxy in [path.to_owned(), cluster.proxy.addr()] {
        assert!(waited(&proxy), "{proxy}");
        assert_eq!(run(&["status", "--proxy", &proxy]).0, Some(0), "{proxy}");
    }
    let mut client = cluster.client();
    for command in ["resync", "resync status", "resync lead 127.0.0.1:1", "node 127.0.0.1:1 version"] {
        let refusal = client.raw_command(command).expect("an answer");
        assert!(
            refusal.starts_with("CLIENT_ERROR operator commands (resync, node)")
                && refusal.contains("--operator-commands off"),
            "{refusal}"
        );
    }
    assert_eq!(said_on(&socket, "resync"), "OK\r\n");
    let unknown = said_on(&socket, "resync lead nosuch:1");
    assert!(unknown.starts_with("CLIENT_ERROR resync: unknown node"), "{unknown}");
    assert!(said_on(&socket, "resync status").starts_with("STAT mode auto\r\n"));
    assert!(said_on(&socket, "stats").contains("STAT resilver_version ") && said_on(&socket, "version").len() > 9);
    let server = cluster.primaries[0].addr();
    assert!(said_on(&socket, &format!("node {server} version")).starts_with("VERSION "));
    for command in ["get k", "flush_all", ""] {
        let refusal = said_on(&socket, command);
        assert!(
            refusal.starts_with("CLIENT_ERROR ")
                && refusal.contains("stats, resync, node, reload, version, lru_crawler metadump"),
            "{refusal}"
        );
    }
    assert!(said_on(&socket, &"x".repeat(5000)).starts_with("CLIENT_ERROR a command has at most"));
    // A last line without its end, as of `printf 'resync status' | nc -U`.
    let mut stream = UnixStream::connect(&socket).expect("the admin socket");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    stream.write_all(b"resync status").expect("sent");
    stream.shutdown(std::net::Shutdown::Write).expect("no more is said");
    assert!(String::from_utf8_lossy(&rest(&mut stream)).starts_with("STAT mode auto\r\n"));
    assert_eq!(said_on(&socket, "stats reset"), "RESET\r\n");
    let text = cluster.proxy.log();
    let logged: Vec<&str> = text.lines().filter(|line| line.contains("an operator's command on")).collect();
    for told in ["lead nosuch:1", "unknown node or word", "RESET"] {
        assert!(logged.iter().any(|line| line.contains(told)), "{told}: {logged:?}");
    }
    // Sixteen at a time.
    let held: Vec<UnixStream> = (0..16).map(|_| UnixStream::connect(&socket).expect("a connection")).collect();
    let refused = || {
        let mut stream = UnixStream::connect(&socket).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a deadline");
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        said.starts_with("SERVER_ERROR too many connections")
    };
    wait_until("the seventeenth to be refused", DEADLINE, refused);
    drop(held);
    wait_until("there is room again", DEADLINE, || !refused());
}

#[test]
fn all_keys_are_listed_through_the_admin_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("admin.sock");
    let path = socket.to_str().expect("text");
    let cluster = Cluster::start(&Shape::new(2, 1).proxy(&["--admin-socket", path]));
    let mut client = cluster.client();
    // More than is handed over in one piece, or waits in a socket.
    for number in 0..4_000 {
        client.set(&format!("{number}{}", "k".repeat(200)), b"v").expect("stored");
    }
    let listed = |proxy: &str| {
        let (code, printed, _) = run(&["keys", "--proxy", proxy]);
        let mut keys: Vec<String> = printed.lines().map(str::to_owned).collect();
        keys.sort();
        (code, keys)
    };
    let (code, keys) = listed(path);
    assert!(code == Some(0) && keys.len() == 4_000 && keys[0].starts_with("key=0k"), "{code:?}, {}", keys.len());
    assert_eq!(listed(&cluster.proxy.addr()), (Some(0), keys));
    assert!(said_on(&socket, "lru_crawler metadump all\r\nversion").contains("\nEND\r\nVERSION "));
    assert_eq!(said_on(&socket, "lru_crawler metadump nonsense"), "BADCLASS invalid class id\r\n");
    for other in ["lru_crawler", "lru_crawler metadumps all", "lru_crawler crawl all"] {
        assert!(said_on(&socket, other).starts_with("CLIENT_ERROR lru_crawler: the admin socket takes "), "{other}");
    }
    // Those who leave in the middle take no place from others.
    for _ in 0..3 {
        let mut leaves = UnixStream::connect(&socket).expect("the admin socket");
        leaves.write_all(b"lru_crawler metadump all\r\n").expect("sent");
        leaves.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        leaves.read_exact(&mut [0; 10]).expect("a piece");
        drop(leaves);
        wait_until("its place to be free", DEADLINE, || listed(path).0 == Some(0));
    }
}

#[test]
fn a_socket_file_is_removed_at_the_end_and_a_port_in_use_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("admin.sock");
    let path = socket.to_str().expect("text").to_owned();
    let admin = Port::reserve();
    let mut cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--admin-socket", &path, "--admin", &admin.addr()]));
    let other = Port::reserve();
    let port = other.number.to_string();
    let (code, _, why) = run(&["-s", "127.0.0.1:1", "-p", &port, "--admin", &admin.addr()]);
    assert_eq!(code, Some(71), "{why}");
    assert!(why.contains(&format!("cannot listen on {} for --admin", admin.addr())), "{why}");
    assert!(cluster.proxy.stop().success());
    assert!(!socket.exists());
}
